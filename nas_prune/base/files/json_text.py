"""JSON from anyone: how large, how deep and how much is known before it is parsed, and every number is one.

Python's parser takes NaN, numbers of a million digits and a key that is given twice, and dies of deep nesting. Here
each of these is a ValueError of one line, and memory is bounded by what a text may hold.
"""

import json
import math
import re
from itertools import accumulate
from typing import Any

from nas_prune.base.errors import shown

DEEPEST, MOST = 40, 2**22  # levels and values; what nas_prune writes has less than ten levels
DIGITS = 19  # of a whole number: more do not fit 64 bits

_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def parse(content: bytes) -> Any:
    """The value of one JSON document in UTF-8. Raises ValueError, in one short line, for anything else."""
    text = content.decode()
    marks = _STRING.sub(b"", content)
    if sum(map(marks.count, (b",", b"[", b"{"))) > MOST:
        raise ValueError(f"it holds more than {MOST} values")
    if max(accumulate(map(_STEPS.__getitem__, marks.translate(None, _OTHERS))), default=0) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    value = json.loads(
        text, parse_int=_integer, parse_float=_number, parse_constant=_constant, object_pairs_hook=_mapping
    )
    if r"\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    return value


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is beyond every floating-point number")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(next(name for name in names if names.count(name) > 1))} is given twice")
    return found
