"""Glyphs: characters in many faces, scanned badly; trained on in some designs and tested on in others.

``benchmarks/glyphs.py`` draws them, into one file that this module owns: images (n h w) as bytes, labels and faces (n)
of both parts, and as JSON in the header what the classes and faces are called, and how to normalise.
"""

import json
import os
from pathlib import Path
from typing import Literal

from einops import rearrange
from torch import Tensor

from nas_prune.base.errors import DataError
from nas_prune.base.files import tensors
from nas_prune.base.files.documents import Document, Number, Positive, Text, validated
from nas_prune.base.files.json_text import parse
from nas_prune.base.files.whole import atomic_write
from nas_prune.train.data.memory_images import ImageSet
from nas_prune.train.data.settings import DataSettings

FILE, ENTRY, FORMAT = "glyphs.safetensors", "glyphs", "nas_prune.glyphs/1"
PARTS = ("train", "test")
MAKE = "make it with `python benchmarks/glyphs.py FOLDER` (docs/benchmarks.md), and set data.root to that folder"


class About(Document):
    """What the header says: names of the classes and, by part, of the faces; mean and spread of the training images;
    in ``made``, how the images were made.
    """

    format: Literal["nas_prune.glyphs/1"]
    classes: list[Text]
    faces: dict[Literal["train", "test"], list[Text]]
    mean: Number
    std: Positive
    made: dict[Text, Text]


def glyphs(settings: DataSettings) -> tuple[ImageSet, ImageSet]:
    """The two parts in ``data.root``. Raises DataError where there is no such file, or it is broken."""
    if settings.root is None:
        raise DataError(f"data.name glyphs needs data.root, the folder of {FILE}; {MAKE}")
    path = Path(settings.root) / FILE
    if not os.path.isfile(path):
        raise DataError(f"there is no file {path}; {MAKE}")
    about, found = read(path)
    train, test = (
        ImageSet(
            rearrange(found[f"{part}.images"], "n h w -> n 1 h w"),
            found[f"{part}.labels"],
            about.mean,
            about.std,
            tuple(about.classes),
        )
        for part in PARTS
    )
    return train, test


def read(path: Path) -> tuple[About, dict[str, Tensor]]:
    """What the header says, and the tensors; DataError where they do not belong together."""
    try:
        value = parse(tensors.metadata(path, DataError).get(ENTRY, "").encode())
    except ValueError as cause:
        raise DataError(f"{path} does not say what its images are ({cause}); {MAKE}") from cause
    about: About = validated(value, About, str(path), DataError, MAKE)
    found = tensors.read(path, DataError)
    wrong = next((wrong for part in PARTS if (wrong := _wrong(part, about, found))), "")
    if wrong:
        raise DataError(f"{path}: {wrong}; {MAKE}")
    return about, found


def write(path: Path, about: About, found: dict[str, Tensor]) -> None:
    """Write the file, whole or not at all; the same bytes for the same images."""
    header = {ENTRY: json.dumps(about.model_dump(), ensure_ascii=False, sort_keys=True)}
    atomic_write(path, tensors.content(found, header))


def _wrong(part: str, about: About, found: dict[str, Tensor]) -> str:
    """What keeps the tensors of a part from being what the header says; empty where nothing does."""
    missing = [name for name in ("images", "labels", "faces") if f"{part}.{name}" not in found]
    if missing:
        return f"it has no {part}.{missing[0]}"
    images, labels, faces = (found[f"{part}.{name}"] for name in ("images", "labels", "faces"))
    if (
        str(images.dtype) != "torch.uint8"
        or images.ndim != 3
        or not images.numel()
        or images.shape[1] != images.shape[2]
    ):
        return f"{part}.images are {tuple(images.shape)} of {images.dtype}, not square images (n h w) of bytes"
    kinds = {"labels": (labels, about.classes), "faces": (faces, about.faces.get(part, []))}  # type: ignore[call-overload]
    for name, (numbers, names) in kinds.items():
        if numbers.shape != images.shape[:1] or str(numbers.dtype) != "torch.int64":
            return f"{part}.{name} are {tuple(numbers.shape)} of {numbers.dtype}, of {len(images)} images"
        if not 0 <= int(numbers.min()) <= int(numbers.max()) < len(names):
            return f"{part}.{name} are {int(numbers.min())} to {int(numbers.max())}, there are {len(names)}"
    return ""
