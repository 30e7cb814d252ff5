"""Documents: what a file says is believed once its kind has validated it, and every reader of a kind reads it here.

A kind is a pydantic type, kept beside the owner of the format: strict, frozen, and without keys that nobody knows. What
a file holds is limited in size, depth and count before it is parsed. Whatever is wrong is one error of one kind, which
names the file and says what to do; a value is never printed beyond a few words.
"""

import os
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nas_prune.base.errors import NasPruneError
from nas_prune.base.files.mistakes import explained
from nas_prune.base.files.whole import read_json, read_lines

REMAKE = "restore it, or delete it to have it made again"

LARGEST, MOST = 1e39, 2**53  # no float32 is larger; a float counts no further

Natural = Annotated[int, Field(ge=0, le=MOST)]
Whole = Annotated[int, Field(gt=0, le=MOST)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Text = Annotated[str, Field(max_length=10_000)]


class Document(BaseModel):
    """A mapping whose keys and types are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


def read_document(
    path: str | os.PathLike[str], kind: Any, error: type[NasPruneError] = NasPruneError, *, advice: str = REMAKE
) -> Any:
    """The plain value of a JSON file, once ``kind`` has validated it; whatever is wrong raises ``error``."""
    value = read_json(path, error)
    validated(value, kind, str(path), error, advice)
    return value


def read_journal(
    path: str | os.PathLike[str], kind: Any, error: type[NasPruneError] = NasPruneError
) -> list[dict[str, Any]]:
    """The plain rows of a journal, each validated by ``kind``; no file is an empty journal."""
    rows = read_lines(path, error)
    for number, row in enumerate(rows, 1):
        validated(row, kind, f"line {number} of {path}", error, "delete that line, or the file to have it made again")
    return rows


def validated(value: Any, kind: Any, where: str, error: type[NasPruneError], advice: str = REMAKE) -> Any:
    """What ``kind`` makes of a value; raises ``error`` where it is none of that kind."""
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as cause:
        what = explained(cause, kind)
        told = f"{what} {advice[:1].upper()}{advice[1:]}" if what.endswith("?") else f"{what}; {advice}"
        raise error(f"{where}: {told}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
