"""YAML as a reader expects it: 1e-3 is a number, ``no`` is a word, and a key that is given twice is an error.

It is a small text: how long, how deep and how much, with every alias written out, is limited before it is believed.

PyYAML follows YAML 1.1, where 1e-3 is text and ``no`` is false. This file reads the core schema of YAML 1.2 instead
(https://yaml.org/spec/1.2.2/#103-core-schema), and quotes on writing whatever either version would misread.
"""

import re
from collections.abc import Hashable
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any, cast

import yaml

from nas_prune.base.errors import NasPruneError, first_line, one_line, shown
from nas_prune.base.files.whole import read_bytes

YamlError = yaml.YAMLError
LONGEST, DEEPEST, MOST = 2**16, 40, 2**15  # characters, levels, values; a recipe has 1 % of them
LINE = 100  # characters of a text that count as one value
DIGITS = 19  # of a whole number: more do not fit 64 bits

_CORE = (
    ("null", r"~|null|Null|NULL", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
_TAG = "tag:yaml.org,2002:"
_TAGS = {"null", "bool", "int", "float", "str", "map", "seq", "merge"}
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
    """Reads the core schema and nothing else, from texts that stay small when their aliases are written out."""

    yaml_implicit_resolvers = _resolvers()
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _refused(f"nested more than {DEEPEST} levels deep", _here(self))
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and node.tag.removeprefix(_TAG) not in _TAGS:
            raise _refused(f"the tag {shown(node.tag)} is not part of YAML's core schema", node.start_mark)
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > MOST:
            raise _refused(f"it holds more than {MOST} values, with every alias written out", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _refused(f"the key {shown(key.value)} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > DIGITS:
            raise _refused(f"a number has {len(node.value)} digits", node.start_mark)
        return int(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = float(super().construct_yaml_float(node))
        if not isfinite(value):
            raise _refused(f"{shown(node.value)} is not a finite number", node.start_mark)
        return value


_Reader.add_constructor(f"{_TAG}int", _Reader.construct_yaml_int)
_Reader.add_constructor(f"{_TAG}float", _Reader.construct_yaml_float)


def _here(reader: Any) -> yaml.Mark:
    return cast(yaml.Mark, reader.peek_event().start_mark)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, every alias counted as what it stands for; one inside itself as too many."""
    if id(node) not in known:
        known[id(node)] = MOST + 1  # while it is being counted
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        size = 1 if isinstance(node, yaml.CollectionNode) else 1 + len(node.value) // LINE
        inside = chain.from_iterable(parts) if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = size + sum(_written_out(part, known) for part in inside)
    return known[id(node)]


def _refused(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


class _Writer(yaml.SafeDumper):
    yaml_implicit_resolvers = _both(_resolvers(), yaml.SafeDumper.yaml_implicit_resolvers)

    def ignore_aliases(self, _data: object) -> bool:
        return True


def parse(text: str) -> Any:
    """The value of one YAML document; raises ``YamlError``, whatever is wrong with it."""
    if len(text) > LONGEST:
        raise YamlError(f"it is longer than {LONGEST} characters")
    try:
        return yaml.load(text, Loader=_Reader)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as cause:
        raise YamlError(f"a value does not fit its tag ({first_line(cause)})") from cause


def dump(value: object) -> str:
    """YAML that ``parse`` reads back to an equal value (of plain lists, dicts and scalars)."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)


def read_mapping(path: Path, error: type[NasPruneError]) -> dict[str, Any]:
    """The mapping that a YAML file holds; whatever is wrong with the file raises ``error``."""
    try:
        value = parse(read_bytes(path, error, LONGEST, "is it the file that you meant?").decode())
    except (YamlError, UnicodeDecodeError) as cause:
        raise error(f"{path} is not valid YAML: {_one_line(cause)}") from cause
    if not isinstance(value, dict):
        found = {type(None): "empty", list: "a list", str: "text", bool: "a truth value"}.get(type(value), "a number")
        raise error(f"{path} must hold a mapping of names to values (key: value), it is {found}")
    for key in value:
        if not isinstance(key, str):
            raise error(f"{path}: the key {shown(key)} is not text, as names are; write it in quotes")
    return value


def _one_line(cause: Exception) -> str:
    if isinstance(cause, UnicodeDecodeError):
        return f"it is not text (byte {cause.start} is not UTF-8)"
    mark = getattr(cause, "problem_mark", None)
    problem = getattr(cause, "problem", None)
    if mark is None or problem is None:
        return one_line(str(cause), 200)
    return f"line {mark.line + 1}, column {mark.column + 1}: {one_line(problem, 200)}"
