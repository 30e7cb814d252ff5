"""The characters that the first levels of JIS X 0208, GB 2312 and Big5 share: Python's codecs know them.

The codecs map to one code point where two standards have the same character, so that a face from Tokyo and one from
Taipei draw the same class.
"""

import hashlib
from functools import cache

from nas_prune.base.errors import DataError, shown

LEVELS = {"euc_jp": range(0xB0, 0xD0), "gb2312": range(0xB0, 0xD8), "big5": range(0xA4, 0xC7)}  # lead bytes
KOREAN = "euc_kr"  # KS X 1001
ABSENT = "牙盈徽穆"  # of the faces in faces.yaml, those of Fontworks lack the first, Sawarabi Mincho the others


@cache
def shared() -> tuple[str, ...]:
    """All of them, in the order of JIS X 0208."""
    pairs = (bytes([lead, trail]) for lead in LEVELS["euc_jp"] for trail in range(0xA1, 0xFF))
    found = (pair.decode("euc_jp", "ignore") for pair in pairs)
    return tuple(each for each in found if len(each) == 1 and all(_has(each, codec) for codec in LEVELS))


def chosen(count: int) -> tuple[str, ...]:
    """So many classes, those first that every face has; the order is that of a hash, so that more classes begin with
    the same ones. Raises DataError where there are not so many.
    """
    if not 2 <= count <= len(shared()):
        raise DataError(f"--classes {shown(count)} must be 2 to {len(shared())}: so many characters are shared")
    return tuple(sorted(shared(), key=_rank)[:count])


def _has(character: str, codec: str) -> bool:
    """Whether a codec has the character, and in its first level where it has levels."""
    try:
        code = character.encode(codec)
    except UnicodeEncodeError:
        return False
    return len(code) == 2 and (codec not in LEVELS or code[0] in LEVELS[codec])


def _rank(character: str) -> tuple[bool, bytes]:
    everywhere = _has(character, KOREAN) and character not in ABSENT
    return not everywhere, hashlib.sha256(character.encode()).digest()
