"""Does a design that is tested on stand in the training set, under another name?

Glyphs without a scanner's faults are compared pixel by pixel, by the correlation of two images. For each face: how many
of its glyphs have one of the same class as their nearest among the training faces of other families (top-1 of one
nearest neighbour); which face is nearest, by the median over the classes; and how many are all but the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glyph_images.faces import Face
from glyph_images.making import Made

SAME = 0.93  # correlation of two glyphs that are all but the same; strangers of one style reach 0.88 in the median
TOLERATED = 0.1  # share of such glyphs that a design may have by chance: strokes like 一 differ little anywhere
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """How near a face comes to the training faces of other families. Shares are of its glyphs, in [0, 1]."""

    face: Face
    top1: float
    nearest: str
    alike: float
    same: float

    @property
    def leaks(self) -> bool:
        """Whether it is hardly a design of its own."""
        return self.same > TOLERATED or self.alike > SAME


def compared(faces: Sequence[tuple[Face, Made]], training: Sequence[tuple[Face, Made]]) -> list[Row]:
    """A row for each face (one image of each character), against the training faces of other families than its own."""
    others = [(face, _vectors(of), of.labels) for face, of in training]
    return [_row(face, of, [other for other in others if other[0].family != face.family]) for face, of in faces]


def _row(face: Face, of: Made, others: Sequence[tuple[Face, Vectors, NDArray[np.int64]]]) -> Row:
    own, count = _vectors(of), len(of.labels)
    right, wrong, medians = np.full(count, -1.0), np.full(count, -1.0), []
    for _, vectors, labels in others:
        alike = own @ vectors.T
        _, here, there = np.intersect1d(of.labels, labels, return_indices=True)
        twins = alike[here, there]
        medians.append(float(np.median(twins)))
        right[here] = np.maximum(right[here], twins)
        alike[here, there] = -1
        wrong = np.maximum(wrong, alike.max(axis=1))
    nearest = int(np.argmax(medians))
    top1, same = float((right > wrong).mean()), float((right > SAME).mean())
    return Row(face, top1, others[nearest][0].name, medians[nearest], same)


def _vectors(of: Made) -> Vectors:
    """Images (n size size) -> (n d), of no mean and of length one, so that a product is a correlation."""
    flat = of.images.reshape(len(of.images), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9))
