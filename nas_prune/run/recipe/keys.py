"""Which keys a recipe may hold: the dotted names, their types, and a hint for a name that does not exist.

Sections are pydantic models and lists of them have numbered items, so ``search.penalties.0.name`` is a key. Below a
free-form mapping (``gate.options``) every name is allowed; the part that is given the options checks them.
"""

import copy
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typing_extensions import TypeIs

from nas_prune.base.registry import hint
from nas_prune.base.settings import PartSettings

Section = type[BaseModel]


@dataclass(frozen=True)
class Key:
    """One key as the help shows it."""

    name: str
    kind: str
    default: str
    description: str


def keys(section: Section, prefix: str = "") -> Iterator[Key]:
    """Every key below ``section``, in the order of declaration."""
    for name, field in section.model_fields.items():
        dotted = f"{prefix}{name}"
        if is_section(field.annotation):
            yield from keys(field.annotation, f"{dotted}.")
        else:
            yield Key(dotted, spelled(field.annotation), _default(field), field.description or "")


def is_section(annotation: Any) -> TypeIs[Section]:
    """Whether a type is a section of named keys."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_part(annotation: Any) -> bool:
    """Whether a type is the section of a part, for which its name alone may stand."""
    return is_section(annotation) and issubclass(annotation, PartSettings)


def type_at(section: Section, path: Sequence[str]) -> Any:
    """The type of the value at a path, Any below a free-form mapping; KeyError if there is no such key."""
    here: Any = section
    for name in path:
        if is_section(here):
            here = here.model_fields[name].annotation
        elif get_origin(here) is list and name.isdigit():
            here = get_args(here)[0]
        elif here is Any or get_origin(here) is dict:
            return Any
        else:
            raise KeyError(name)
    return here


def suggestion(section: Section, path: Sequence[str]) -> str:
    """Where the user may have meant to go: a key of that last name elsewhere, or a near name in that section."""
    dotted = [key.name for key in keys(section)]
    elsewhere = [name for name in dotted if name.rsplit(".", 1)[-1] == path[-1]]
    if elsewhere:
        return f"; did you mean {' or '.join(repr(name) for name in elsewhere)}?"
    depth = next((depth for depth in range(len(path)) if not _exists(section, path[: depth + 1])), None)
    if depth is None:  # below a mapping of sections
        return ""
    here = type_at(section, path[:depth])
    names = list(here.model_fields) if is_section(here) else []
    return hint(path[depth], names) if names else f"; '{'.'.join(path[:depth])}' holds no further keys"


def members(annotation: Any) -> set[Any]:
    """The alternatives of a type: ``str | None`` -> {str, NoneType}; a Literal counts as the type of its values."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*(members(part) for part in get_args(annotation)))
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    return members(get_args(annotation)[0]) if origin is Annotated else {annotation}


def default_value(field: FieldInfo) -> Any:
    """The default of a key that is not required, as plain data of its own: lists and mappings are copies."""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, list):
        return [item.model_dump() if isinstance(item, BaseModel) else item for item in default]
    return copy.deepcopy(default)


def spelled(annotation: Any) -> str:
    """A type in words that a user of YAML knows."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(spelled(part) for part in parts)
    if origin is Literal:
        return " | ".join(str(part) for part in parts)
    if origin is Annotated:
        return spelled(parts[0])
    if origin is tuple:
        return f"[{', '.join(spelled(part) for part in parts if part is not Ellipsis)}]"
    if origin is list:
        return f"list of {spelled(parts[0])}"
    names = {str: "text", int: "integer", float: "number", bool: "true | false", types.NoneType: "null"}
    return "mapping" if origin is dict or is_section(annotation) else names.get(annotation, str(annotation))


def _exists(section: Section, path: Sequence[str]) -> bool:
    try:
        type_at(section, path)
    except KeyError:
        return False
    return True


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = default_value(field)
    if default is None or isinstance(default, bool):
        return "null" if default is None else str(default).lower()
    return str(default)
