"""Images as one file of tensors, or as PNG files in a folder for each class; whole or not at all."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, features

from glyph_images.faces import PARTS
from glyph_images.making import MadeParts, Wanted
from nas_prune.base.errors import DataError
from nas_prune.base.files.folders import check_writable, whole_folder
from nas_prune.base.files.whole import writing


def check_place(out: Path, *, folder: bool) -> None:
    """Raise an error before any work if the images could not be written there."""
    with writing(out):
        check_writable(out)
        taken = folder and out.is_dir() and any(out.iterdir())
    if taken:
        raise DataError(f"{out} is not empty, and --folder makes a folder of its own; name a new one")


def write_file(out: Path, wanted: Wanted, made: MadeParts) -> None:
    """What ``data.name: glyphs`` reads, with ``data.root`` the folder ``out``."""
    import torch

    from nas_prune.train.data import glyphs

    arrays = {}
    for part in PARTS:
        sizes = [len(of.labels) for _, of in made[part]]
        arrays[f"{part}.images"] = np.concatenate([of.images for _, of in made[part]])
        arrays[f"{part}.labels"] = np.concatenate([of.labels for _, of in made[part]])
        arrays[f"{part}.faces"] = np.repeat(np.arange(len(sizes)), sizes)
    pixels = arrays["train.images"] / 255
    about = glyphs.About(
        format=glyphs.FORMAT,
        classes=list(wanted.characters),
        faces={part: [face.name for face, _ in made[part]] for part in PARTS},
        mean=round(float(pixels.mean()), 4),
        std=round(float(pixels.std()), 4),
        made=_how(wanted),
    )
    glyphs.write(out / glyphs.FILE, about, {name: torch.from_numpy(array) for name, array in arrays.items()})


def write_folder(out: Path, wanted: Wanted, made: MadeParts) -> None:
    """What ``data.name: folder`` reads, with ``data.root`` the folder ``out``."""
    with writing(out), whole_folder(out) as empty:
        for part in PARTS:
            for character in wanted.characters:
                (empty / part / _named(character)).mkdir(parents=True)
            for face, of in made[part]:
                for number, (image, label) in enumerate(zip(of.images, of.labels, strict=True)):
                    name = f"{face.name}-{number % wanted.copies}.png"
                    Image.fromarray(image).save(empty / part / _named(wanted.characters[label]) / name)


def _named(character: str) -> str:
    return f"U+{ord(character):04X}"


def _how(wanted: Wanted) -> dict[str, str]:
    """What the bytes depend on besides the fonts."""
    libraries = {name: version(name) for name in ("pillow", "numpy", "scipy")}
    return {
        "scan": str(wanted.scan),
        "copies": str(wanted.copies),
        "freetype": str(features.version("freetype2")),
    } | libraries
