"""Overrides: keys of a recipe that are set on the command line.

    --search.joint=5   --search.joint 5   search.joint=5        three ways to write one thing; - and _ are equal in keys
    --model.pretrained   --no-model.pretrained                  switches
    --gate="{'name': 'sigmoid'}"                                a mapping changes the keys it names, the others stay
    --gate.options="{'init': 0.5}"                              a free-form mapping is replaced as a whole
    --search.penalties.0.options.strength=2                     items of a list have numbers

Values are YAML or Python literals (true or True, null or None, 1e-3, [1, 2] or (1, 2)); where a key wants text, the
text is taken as it stands. That is also what W&B sweeps pass (``${args}``, ``${args_no_equals}``,
``${args_no_hyphens}``, ``${args_no_boolean_flags}``); the ``_wandb`` entry that they add is ignored.
"""

import ast
import copy
import re
import types
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from nas_prune.base.errors import RecipeError, one_line, shown
from nas_prune.base.files.yaml_text import YamlError
from nas_prune.base.files.yaml_text import parse as parse_yaml
from nas_prune.run.recipe.keys import Section, default_value, is_part, is_section, members, suggestion, type_at

_ASSIGNMENT = re.compile(r"(?:--|\+{1,2})?(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)
_SWITCH_WORDS = ("true", "false", "1", "0", "yes", "no", "on", "off")
_NOTHING = ("None", "null", "none", "~")


@dataclass(frozen=True)
class Override:
    """One key and its new value; ``text`` is the override as ``--key=value``."""

    text: str
    path: tuple[str, ...]
    value: Any


def parse(tokens: Sequence[str], section: Section) -> tuple[list[Override], list[str]]:
    """The overrides among the words of a command line, and the words that are none."""
    waiting, found, rest = deque(tokens), [], []
    while waiting:
        token = waiting.popleft()
        assignment = _ASSIGNMENT.fullmatch(token)
        if assignment:
            found.append((assignment["key"], assignment["value"]))
        elif token.startswith("--"):
            found.append(_flag(token[2:], waiting, section))
        else:
            rest.append(token)
    return [_override(key, value, section) for key, value in found if not _is_private(key)], rest


def apply(document: Mapping[str, Any], overrides: Sequence[Override], section: Section) -> dict[str, Any]:
    """A new document with the overrides in place; later ones win."""
    changed = copy.deepcopy(dict(document))
    for override in overrides:
        _set(changed, override, section)
    return changed


def flags(flat: Mapping[str, Any]) -> list[str]:
    """The command line that ``parse`` reads back to the same values."""
    return [f"--{key}={_written(value)}" for key, value in flat.items()]


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what a YAML file can hold."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _path(key: str) -> tuple[str, ...]:
    return tuple(key.replace("-", "_").split("."))


def _is_private(key: str) -> bool:
    return key.split(".")[0] == "_wandb"


def _type(key: str, section: Section) -> Any:
    try:
        return type_at(section, _path(key))
    except KeyError:
        raise RecipeError(
            f"override --{one_line(key)}: unknown key {shown(key)}{suggestion(section, _path(key))}"
        ) from None


def _flag(key: str, waiting: deque[str], section: Section) -> tuple[str, str]:
    """A word ``--key`` without ``=``: its value is the next word, unless the key is a switch."""
    negated = re.fullmatch(r"no[-_](.+)", key)
    if negated:
        if members(_type(negated[1], section)) & {bool, Any}:
            return negated[1], "False"
        raise RecipeError(f"override --{key}: {negated[1]} is not a switch; write --{negated[1]}=VALUE")
    kinds = {Any} if _is_private(key) else members(_type(key, section))
    following = waiting[0] if waiting else "--"
    if bool in kinds:
        return key, waiting.popleft() if following.lower() in _SWITCH_WORDS else "True"
    if not following.startswith("--") and not (Any in kinds and _ASSIGNMENT.fullmatch(following)):
        return key, waiting.popleft()
    if Any in kinds:
        return key, "True"
    raise RecipeError(f"override --{key} needs a value: --{key}=VALUE")


def _override(key: str, text: str, section: Section) -> Override:
    kinds = members(_type(key, section))
    value = _value(text, kinds)
    if isinstance(value, str) and value.strip()[:1] in ("{", "[") and not kinds & {str, Any}:
        closed = all(value.count(one) == value.count(other) for one, other in ("{}", "[]"))
        what = "it is neither YAML nor Python" if closed else "its brackets do not close"
        raise RecipeError(
            f'override {one_line(f"--{key}={text}")}: {what}; write --{key}="{{name: value}}", or a [list]'
        )
    return Override(f"--{key}={text}", _path(key), value)


def _value(text: str, kinds: set[Any]) -> Any:
    """What a text stands for, given the types that the key accepts."""
    if kinds - {types.NoneType} != {str}:
        return _literal(text.strip())
    if types.NoneType in kinds and text in _NOTHING:
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    unquoted = _literal(text) if quoted else text
    return unquoted if isinstance(unquoted, str) else text


def _literal(text: str) -> Any:
    """A Python literal, else a YAML value, else the text itself."""
    try:
        value = plain(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _yaml(text)
    return value if _is_plain(value) else _yaml(text)


def _yaml(text: str) -> Any:
    """A YAML value, else the text itself."""
    try:
        return parse_yaml(text)
    except YamlError:
        return text


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value))


def _written(value: Any) -> str:
    """As Python (and so W&B) spells it; text that would read as something else is quoted."""
    if isinstance(value, str) and (value in _NOTHING or value[:1] in ("'", '"')):
        return repr(value)
    return str(value)


def _set(document: dict[str, Any], override: Override, section: Section) -> None:
    here: Any = document
    *parents, last = override.path
    for depth, name in enumerate(parents):
        here = _step(here, name, _default(section, override.path[: depth + 1]), override)
    value = override.value
    if override.path == ("budget", "target"):
        here.pop("share", None)  # the later word counts
    if isinstance(value, str) and is_part(type_at(section, override.path)):
        value = {"name": value, "options": {}}
    if isinstance(value, dict) and is_section(type_at(section, override.path)) and isinstance(here, dict):
        here[last] = _merged(type_at(section, override.path), here.get(last), value)
    elif isinstance(here, list):
        here[_number(here, last, override)] = value
    else:
        here[last] = value


def _step(here: Any, name: str, default: Any, override: Override) -> Any:
    if isinstance(here, list):
        below = here[_number(here, name, override)]
    else:
        if here.get(name) is None:
            here[name] = default
        below = here[name]
        if isinstance(below, str) and default == {}:  # a part by its name alone
            below = here[name] = {"name": below}
    if not isinstance(below, dict | list):
        raise RecipeError(
            f"override {one_line(override.text)}: {shown(name)} is {shown(below)} in the recipe; make it a "
            "section there first"
        )
    return below


def _number(items: list[Any], name: str, override: Override) -> int:
    if name.isdigit() and int(name) < len(items):
        return int(name)
    raise RecipeError(
        f"override {one_line(override.text)}: there is no item {shown(name)} in a list of {len(items)} (the first is 0)"
    )


def _default(section: Section, path: Sequence[str]) -> Any:
    """What a recipe that does not name ``path`` has there: an empty section, or the default of the key."""
    parent, kind = type_at(section, path[:-1]), type_at(section, path)
    if not is_section(parent) or is_section(kind):
        return {}
    return default_value(parent.model_fields[path[-1]])


def _merged(section: Section, base: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``value``, section by section."""
    merged = dict(base) if isinstance(base, Mapping) else {}
    for key, item in value.items():
        name = str(key).replace("-", "_")
        below = section.model_fields[name].annotation if name in section.model_fields else None
        merged[name] = _merged(below, merged.get(name), item) if is_section(below) and isinstance(item, dict) else item
    return merged
