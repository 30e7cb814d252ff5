"""The words of a command line, in whatever form a person or an agent gives them, as overrides one reads alike.

--config FILE                    a YAML file of keys and values, nested or dotted
--args-json FILE, FILE.json      a JSON file, as W&B's ${args_json_file} names it
'{"search.joint": 5}'            JSON, as W&B's ${args_json} writes it
--recipe NAME                    the recipe, where a sweep chooses among several
"""

from collections import deque
from collections.abc import Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from nas_prune.base.errors import RecipeError, one_line, shown
from nas_prune.base.files import yaml_text
from nas_prune.base.files.json_text import parse as parse_json
from nas_prune.run.recipe.overrides import flags

FILES = ("config", "args_json")


def expanded(words: Sequence[str]) -> list[str]:
    """Names of recipes and overrides, those of files in their place. Raises RecipeError for what cannot be read, and
    for a macro that nobody has replaced.
    """
    waiting, found = deque(words), list[str]()
    while waiting:
        word = waiting.popleft()
        if "${" in word:
            raise RecipeError(
                f"{shown(word)} was left as it stands: W&B replaces a macro only where it is a whole element of "
                "`command:`, such as - ${args}"
            )
        key, given, value = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        option = word.startswith("--") or bool(given)
        value_of_one = bool(found) and found[-1].startswith("--") and "=" not in found[-1]  # --gate "{'name': ...}"
        if option and key in (*FILES, "recipe"):
            if not given and not waiting:
                raise RecipeError(f"{word} wants a value: {word}=NAME")
            value = value if given else waiting.popleft()
            found += [value] if key == "recipe" else of_file(value)
        elif value_of_one:
            found.append(word)
        elif word.startswith("{"):
            found += as_words(_object(word, "the JSON among the arguments"))
        elif not option and word.endswith(".json"):
            found += of_file(word)
        else:
            found.append(word)
    return found


def of_file(path: str) -> list[str]:
    """The words that a YAML or JSON file stands for."""
    if not isfile(path):
        raise RecipeError(f"there is no file {shown(path)} of keys and values; correct the path")
    if path.endswith(".json"):
        return as_words(_object(Path(path).read_text(errors="replace"), path))
    return as_words(yaml_text.read_mapping(Path(path), RecipeError))


def as_words(values: Mapping[str, Any]) -> list[str]:
    """Keys and values as overrides; ``recipe`` is the name of one."""
    names = [str(value) for key, value in values.items() if key == "recipe"]
    return [*names, *flags({key: value for key, value in values.items() if key not in ("recipe", "_wandb")})]


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = parse_json(text.encode())
    except ValueError as error:
        raise RecipeError(f"{where} is not JSON ({one_line(str(error))}); write keys and values in braces") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{where} is {shown(value)}; write keys and values in braces")
    return value
