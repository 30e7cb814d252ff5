"""A glyph becomes a bad scan: turned, sheared, struck through, blurred, on uneven ground, noisy.

Everything random is drawn from the generator that is passed in. Lengths are in shares of the side of the image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from glyph_images.drawing import Pixels

FINER = 2  # pixels of the canvas that glyphs are laid on, for one of the image
Ink = NDArray[np.float64]


@dataclass(frozen=True)
class Scan:
    """How bad scans are. ``turn`` in degrees; ``blur`` and ``noise`` from half of that up to that."""

    turn: float = 8.0
    shear: float = 0.15
    stretch: float = 0.15
    fill: tuple[float, float] = (0.7, 0.95)
    struck: float = 0.25
    blur: float = 0.02
    ground: float = 0.3
    contrast: tuple[float, float] = (0.6, 0.95)
    noise: float = 0.06


def scanned(glyph: Pixels, size: int, scan: Scan, draw: Generator) -> Pixels:
    """Ink (h w) of any size, as a grey image (size size), dark on light."""
    turn, shear, stretch, x, y = draw.uniform(-1, 1, 5)
    fill = draw.uniform(*scan.fill)
    turned, stretch = np.deg2rad(scan.turn * turn), np.exp(scan.stretch * stretch)
    rotation = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
    shape = rotation @ np.array([[1.0, scan.shear * shear], [0.0, 1.0]]) @ np.diag([stretch, 1 / stretch])
    canvas = _laid(glyph, size * FINER, shape * fill, (1 - fill) / 2 * np.array([x, y]))
    if draw.uniform() < scan.struck:
        _strike(canvas, draw)
    blur = scan.blur * draw.uniform(0.5, 1)
    ink = gaussian_filter(np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) / 255, blur * size)
    ground = 0.85 - scan.ground * _uneven(size, draw)
    image = ground - draw.uniform(*scan.contrast) * ink * ground
    image += scan.noise * draw.uniform(0.5, 1) * draw.standard_normal((size, size))
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def clean(glyph: Pixels, size: int) -> Pixels:
    """The same without a scanner's faults: black on white, upright, in the middle."""
    canvas = _laid(glyph, size * FINER, 0.9 * np.eye(2), np.zeros(2))
    return 255 - np.asarray(canvas.resize((size, size), Image.Resampling.BOX))


def _laid(glyph: Pixels, side: int, shape: Ink, shift: Ink) -> Image.Image:
    """Ink on a square canvas: the longer side of the glyph is the canvas's, seen through ``shape``, (x y) to (x y)."""
    longer, centre = max(glyph.shape), np.array(glyph.shape[::-1]) / 2
    back = np.linalg.inv(shape * side / longer)  # from the canvas to the glyph
    offset = centre - back @ (side / 2 + shift * side)
    return Image.fromarray(_smooth(glyph, longer / side)).transform(
        (side, side),
        Image.Transform.AFFINE,
        (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1]),
        Image.Resampling.BILINEAR,
    )


def _smooth(glyph: Pixels, finer: float) -> Pixels:
    """What is finer than the canvas is smoothed first, with a border for what the smoothing spreads."""
    return gaussian_filter(glyph, 0.3 * finer) if finer > 1 else glyph


def _strike(canvas: Image.Image, draw: Generator) -> None:
    """A line from edge to edge, across or along."""
    side = canvas.width
    ends = draw.uniform(0.15, 0.85, 2) * side
    line = (0, ends[0], side, ends[1]) if draw.uniform() < 0.7 else (ends[0], 0, ends[1], side)
    ImageDraw.Draw(canvas).line(line, fill=int(draw.integers(160, 256)), width=round(draw.uniform(0.03, 0.07) * side))


def _uneven(size: int, draw: Generator) -> Ink:
    """Smooth hills (size size) in [0, 1]."""
    coarse = Image.fromarray(draw.uniform(0, 1, (3, 3)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64).clip(0, 1)
