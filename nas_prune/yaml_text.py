"""YAML as a reader expects it: 1e-3 is a number, ``no`` is a word, and a key that is given twice is an error.

PyYAML follows YAML 1.1, where 1e-3 is text and ``no`` is false. This file reads the core schema of YAML 1.2 instead
(https://yaml.org/spec/1.2.2/#103-core-schema), and quotes on writing whatever either version would misread.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from nas_prune.errors import NasPruneError

_CORE = (
    ("null", r"~|null|Null|NULL", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


def _resolvers() -> Resolvers:
    """PyYAML's table: first character of a plain scalar -> (tag, pattern); an empty scalar is filed under ''."""
    table: Resolvers = {}
    for name, pattern, firsts in _CORE:
        for first in firsts:
            table.setdefault(first, []).append((f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z")))
    table[""] = [("tag:yaml.org,2002:null", re.compile(r"\Z"))]
    return table


def _both(ours: Resolvers, theirs: Resolvers) -> Resolvers:
    return {first: ours.get(first, []) + theirs.get(first, []) for first in {*ours, *theirs}}


class _Reader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Writer(yaml.SafeDumper):
    yaml_implicit_resolvers = _both(_resolvers(), yaml.SafeDumper.yaml_implicit_resolvers)

    def ignore_aliases(self, _data: object) -> bool:
        return True


def parse(text: str) -> Any:
    """The value of one YAML document; raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_Reader)


def dump(value: object) -> str:
    """YAML that ``parse`` reads back to an equal value (of plain lists, dicts and scalars)."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)


def read_mapping(path: Path, error: type[NasPruneError]) -> dict[str, Any]:
    """The mapping that a YAML file holds; whatever is wrong with the file raises ``error``."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}") from cause
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as cause:
        raise error(f"{path} is not valid YAML: {_one_line(cause)}") from cause
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        found = "empty" if value is None else f"a {type(value).__name__}"
        raise error(f"{path} must hold a mapping of names to values (key: value), it is {found}")
    return value


def _one_line(cause: Exception) -> str:
    mark = getattr(cause, "problem_mark", None)
    problem = getattr(cause, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(cause).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
