"""A face draws characters, each as dark as its ink and cropped to it. What a face lacks, it does not draw."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from nas_prune.base.errors import DataError, first_line

NOBODYS = "\uffff"  # no character: whoever is asked for it draws what stands for the missing ones
Pixels = NDArray[np.uint8]


def drawn(path: Path, index: int, characters: Sequence[str], height: int) -> dict[str, Pixels]:
    """Character -> ink (h w), 255 where it is darkest, of a face of ``height`` pixels.

    Left out is what has no ink, what looks like a missing character, and what looks like another one of these: faces
    draw a box, or a smile, for all that they lack.
    """
    try:
        face = ImageFont.truetype(str(path), height, index, layout_engine=ImageFont.Layout.BASIC)
    except OSError as cause:
        raise DataError(f"{path} is no font ({first_line(cause)}); delete its folder to unpack it again") from cause
    found = {each: glyph for each in characters if (glyph := _ink(face, each)) is not None}
    looks = Counter(map(_look, found.values()))
    if (missing := _ink(face, NOBODYS)) is not None:
        looks[_look(missing)] += 2
    return {each: glyph for each, glyph in found.items() if looks[_look(glyph)] == 1}


def _ink(face: ImageFont.FreeTypeFont, character: str) -> Pixels | None:
    """The glyph, cropped; None where there is none, or its instructions cannot be carried out."""
    try:
        mask = face.getmask(character, mode="L")
    except OSError:
        return None
    image = Image.frombytes("L", mask.size, bytes(mask)) if all(mask.size) else None
    box = image.getbbox() if image else None
    return np.asarray(image.crop(box)) if image and box else None


def _look(glyph: Pixels) -> tuple[tuple[int, ...], bytes]:
    return glyph.shape, glyph.tobytes()
