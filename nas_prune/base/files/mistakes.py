"""What pydantic finds wrong with a value, in the words of those who write YAML."""

import re
import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nas_prune.base.errors import one_line, shown
from nas_prune.base.registry import hint

MAPPING, LIST = "should be a mapping (key: value)", "should be a list"
WORDS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), MAPPING),
    **dict.fromkeys(("list_type", "tuple_type"), LIST),
    "string_type": "should be text",
    "invalid_key": "is no name: names are text, so write it in quotes",
}


def worded(detail: ErrorDetails) -> str:
    """What is wrong with one value, in a few words that go on after its key."""
    known = WORDS.get(detail["type"]) or re.sub(r"^\w+ (?=should )", "", detail["msg"])
    return one_line(known.removeprefix("Value error, "), 160)


def explained(cause: ValidationError, kind: Any = None, most: int = 3) -> str:
    """The first few mistakes in one line, and how many more there are; ``kind``: the type that was asked for."""
    found = cause.errors(include_url=False, include_input=False, include_context=False)
    told = [_told(each, kind) for each in found[:most]]
    return "; ".join(told) + (f"; and {len(found) - most} more" if len(found) > most else "")


def _told(detail: ErrorDetails, kind: Any) -> str:
    path = [str(each) for each in detail["loc"]]
    dotted = one_line(".".join(path), 80)
    if detail["type"] == "extra_forbidden":
        known = _keys_at(kind, path[:-1])
        return f"unknown key {shown(dotted, 80)}{hint(path[-1], known) if known else ''}"
    if detail["type"] == "missing":
        return f"the key {shown(dotted, 80)} is missing"
    what = worded(detail)
    return f"{dotted or 'it'} {what}" if what.startswith(("should ", "is ")) else f"{dotted}: {what}".removeprefix(": ")


def _keys_at(kind: Any, path: list[str]) -> list[str]:
    """The keys that a mapping at this path may have, where that is known."""
    for name in path:
        kind = _below(kind, name)
    return list(getattr(_bare(kind), "model_fields", ()))


def _below(kind: Any, name: str) -> Any:
    """The type of what a value of this type holds under a name; None where that is not known."""
    kind = _bare(kind)
    fields = getattr(kind, "model_fields", None)
    if fields is not None:
        return fields[name].annotation if name in fields else None
    return get_args(kind)[-1] if get_origin(kind) in (dict, list) else None


def _bare(kind: Any) -> Any:
    """A type without its annotations, and without None beside it."""
    inside = [each for each in get_args(kind) if each is not types.NoneType]
    if get_origin(kind) is Annotated or (get_origin(kind) in (Union, types.UnionType) and len(inside) == 1):
        return _bare(inside[0])
    return kind
