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
    """A row for each face, against the training faces of other families than its own."""
    others = [(face, _vectors(of), of.labels) for face, of in training]
    return [_row(face, of, [other for other in others if other[0].family != face.family]) for face, of in faces]


def _row(face: Face, of: Made, others: Sequence[tuple[Face, Vectors, NDArray[np.int64]]]) -> Row:
    own, best = _vectors(of), np.full((len(of.labels), 2), -1.0, np.float32)  # n (right wrong)
    medians, same = [], np.full(len(of.labels), -1.0, np.float32)
    for _, vectors, labels in others:
        alike = own @ vectors.T
        right = of.labels[:, None] == labels[None]
        mine, wrong = np.where(right, alike, -1).max(1), np.where(right, -1, alike).max(1)
        best = np.maximum(best, np.stack([mine, wrong], axis=1))
        medians.append(float(np.median(mine)))
        same = np.maximum(same, mine)
    nearest = int(np.argmax(medians))
    top1, share = float((best[:, 0] > best[:, 1]).mean()), float((same > SAME).mean())
    return Row(face, top1, others[nearest][0].name, medians[nearest], share)


def _vectors(of: Made) -> Vectors:
    """Images (n size size) -> (n d), of no mean and of length one, so that a product is a correlation."""
    flat = of.images.reshape(len(of.images), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9))
