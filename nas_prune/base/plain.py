"""Plain data: what JSON can hold, and how large numbers and lists in it may be."""

import math
from typing import Any

LARGEST = 1_000_000  # more than any width, image size or number of classes


def is_plain(value: object) -> bool:
    """Whether JSON can hold a value: None, booleans, finite numbers, text, and lists, tuples and dicts of them."""
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def is_moderate(value: Any, largest: int = LARGEST) -> bool:
    """Whether no number and no list in an argument is absurdly large."""
    if isinstance(value, dict):
        return all(is_moderate(item, largest) for item in value.values())
    if isinstance(value, list | tuple):
        return len(value) <= largest and all(is_moderate(item, largest) for item in value)
    return not isinstance(value, int | float) or abs(value) <= largest


def tuples(value: Any) -> Any:
    """The value with a tuple for every list in it: timm writes tuples where JSON only knows lists."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
