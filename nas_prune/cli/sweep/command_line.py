"""The command of a sweep file: what W&B's agent would execute, and which part of it is ours.

The agent executes a list, without a shell. Each element of the form ``${macro}`` becomes what the macro stands for, an
unknown one nothing; a macro inside a longer element stays as it is written. As in ``wandb/sdk/launch/sweeps/utils.py``
and ``wandb_agent.py`` of wandb 0.31.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
MACRO = re.compile(r"\$\{([^{}]*)\}")
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
PLACES = ("env", "interpreter", "program")
COMMANDS = ("run", "search", "calibrate")  # of ours, that take a recipe

Given = Mapping[str, Any]  # parameter -> value; a nested one is a mapping


def _true_alone(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}={value}"]


WRITTEN: dict[str, Callable[[str, Any], list[str]]] = {  # macro -> the words that one parameter becomes
    "args": lambda name, value: [f"--{name}={value}"],
    "args_no_equals": lambda name, value: [f"--{name}", str(value)],
    "args_no_hyphens": lambda name, value: [f"{name}={value}"],
    "args_no_boolean_flags": _true_alone,
    "args_append_hydra": lambda name, value: [f"+{name}={value}"],
    "args_override_hydra": lambda name, value: [f"++{name}={value}"],
}
AS_JSON = ("args_json", "args_json_file")


@dataclass(frozen=True)
class OurCommand:
    """A command that runs nas-prune: what launches it, the command of ours, its recipe, and its other words."""

    launcher: tuple[str, ...]
    verb: str | None
    recipe: str | None
    words: tuple[str, ...]


def expanded(command: Sequence[Any], program: str | None, given: Given) -> list[str]:
    """The words that the agent would execute."""
    words: list[str] = []
    for element in command:
        text = VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), str(element))
        macro = text[2:-1] if text.startswith("${") and text.endswith("}") else None
        words += [text] if macro is None else _stands_for(macro, program, given)
    return words


def macro_of(command: Sequence[Any]) -> str | None:
    """The first macro, as a whole element, that stands for the parameters."""
    found = [str(element)[2:-1] for element in command if MACRO.fullmatch(str(element))]
    return next((name for name in found if name in WRITTEN or name in AS_JSON), None)


def ours(command: Sequence[Any], program: str | None) -> OurCommand | None:
    """What a command does with nas-prune; None where it starts something else."""
    words = [str(element) for element in command]
    if program is not None:
        words = [program if word == "${program}" else word for word in words]
    end = _end_of_launcher(words)
    if end is None:
        return None
    rest = [word for word in words[end:] if not MACRO.fullmatch(word)]
    verb, *rest = rest or [""]
    named = [word for word in rest if not word.startswith("-") and "=" not in word]
    others = [word for word in rest if word not in named[:1]]
    return OurCommand(tuple(words[:end]), verb or None, named[0] if named else None, tuple(others))


def _end_of_launcher(words: Sequence[str]) -> int | None:
    """Where our own words begin: behind ``nas-prune``, or ``-m nas_prune``, or the file that does the same."""
    for place, word in enumerate(words):
        behind = words[place - 1] if place else ""
        path = PurePath(word)
        if path.name == "nas-prune" or path.parts[-2:] == ("nas_prune", "__main__.py"):
            return place + 1
        if word == "nas_prune" and behind in ("-m", "--module"):
            return place + 1
    return None


def _stands_for(macro: str, program: str | None, given: Given) -> list[str]:
    if macro in WRITTEN:
        return [word for name, value in given.items() for word in WRITTEN[macro](name, value)]
    known = {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [program] if program else []}
    known["args_json"] = [json.dumps(dict(given))]
    return known.get(macro, [])
