"""Images of characters in faces: a face is one piece of work, and an image a function of its name.

The generator of an image is seeded by its character, its face and the number of its copy. So an image is the same
whatever else is made beside it, in whatever order and by however many processes.
"""

import multiprocessing
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glyph_images.drawing import Pixels, drawn
from glyph_images.faces import Face, Part
from glyph_images.scanning import Scan, clean, scanned

SEED = 0
FINE = 3  # pixels of a face's height for one of the image
Located = tuple[Face, Path]


@dataclass(frozen=True)
class Wanted:
    """What is made of each face: ``scan`` None is an image without a scanner's faults."""

    characters: tuple[str, ...]
    size: int
    copies: int = 1
    scan: Scan | None = None


@dataclass(frozen=True)
class Made:
    """Images (n size size) of one face, in the order of their labels (n)."""

    images: Pixels
    labels: NDArray[np.int64]


MadeParts = Mapping[Part, Sequence[tuple[Face, Made]]]


def made(face: Located, wanted: Wanted) -> Made:
    """The images of one face; of characters that it lacks there are none."""
    what, path = face
    found = drawn(path, what.index, wanted.characters, max(48, FINE * wanted.size))
    labels = [label for label, character in enumerate(wanted.characters) if character in found]
    images = [
        clean(found[character], wanted.size)
        if wanted.scan is None
        else scanned(found[character], wanted.size, wanted.scan, generator(character, what.name, copy))
        for character in (wanted.characters[label] for label in labels)
        for copy in range(wanted.copies)
    ]
    pixels = np.stack(images) if images else np.zeros((0, wanted.size, wanted.size), np.uint8)
    return Made(pixels, np.repeat(np.array(labels, np.int64), wanted.copies))


def generator(character: str, face: str, copy: int) -> np.random.Generator:
    """Randomness of one image."""
    return np.random.default_rng([SEED, ord(character), zlib.crc32(face.encode()), copy])


@contextmanager
def each_made(faces: Sequence[Located], wanted: Wanted, processes: int) -> Iterator[Iterable[Made]]:
    """The images of every face, in the order of the faces, while the block is open."""
    if processes == 1:
        yield (made(face, wanted) for face in faces)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield pool.imap(partial(made, wanted=wanted), faces)
