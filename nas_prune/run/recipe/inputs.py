"""What a recipe names by path: files that decide about its run as its keys do, and may change while it is away.

``inputs.json`` of a run folder has the SHA-256 of each, by the key that names it; where they lie is no part of that. Of
images in folders it is that of their names: to read them all would take as long as an epoch.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from os.path import isdir, isfile
from pathlib import Path

from nas_prune.artifact.config import CONFIG, sum_of
from nas_prune.base.errors import CheckpointError, RecipeError
from nas_prune.base.files.documents import read_document
from nas_prune.base.files.whole import write_json
from nas_prune.run.checks import OVERLAY
from nas_prune.run.files import InputsFile
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.tracing.space import spaces
from nas_prune.train.data.decoding import has_suffix
from nas_prune.train.data.file_images import EVALUATION, TRAINING
from nas_prune.train.data.glyphs import FILE as GLYPHS

FILE, LOCAL = "inputs.json", "local-dir:"


def named(recipe: Recipe) -> dict[str, Path]:
    """Key -> the file, or folder of images, that it names, whether it is there or not."""
    model, data, overlay = recipe.model, recipe.data, recipe.model.kwargs.get(OVERLAY)
    found: dict[str, str | None] = {f"parts.{number}": file for number, file in enumerate(recipe.parts)}
    found["space"] = None if recipe.space in spaces() else recipe.space
    found["model.checkpoint"] = model.checkpoint
    if model.name.startswith(LOCAL):  # its config has the sums of all its files
        found["model.name"] = os.path.join(model.name.removeprefix(LOCAL), CONFIG)
    if isinstance(overlay, dict) and isinstance(overlay.get("file"), str):
        found[f"model.kwargs.{OVERLAY}.file"] = overlay["file"]
    found["latency.calibration"] = recipe.latency.calibration
    if data.root is not None and data.name in ("folder", "glyphs"):
        found["data.root"] = os.path.join(data.root, GLYPHS) if data.name == "glyphs" else data.root
    return {key: Path(path) for key, path in found.items() if path is not None}


def sums(recipe: Recipe) -> dict[str, str]:
    """Key -> SHA-256 of what it names; what is not there has none. Raises RecipeError for what cannot be read."""
    found = {key: sum_at(key, path) for key, path in named(recipe).items()}
    return {key: each for key, each in found.items() if each is not None}


def sum_at(key: str, path: Path) -> str | None:
    """The SHA-256 of a file, or of the names in a folder of images; None where nothing is."""
    try:
        if isfile(path):
            return sum_of(path)
        return (
            hashlib.sha256("\n".join(sorted(_images(path))).encode(errors="surrogateescape")).hexdigest()
            if isdir(path)
            else None
        )
    except OSError as error:
        raise RecipeError(
            f"{key}: {path} cannot be read ({error.strerror}); correct the path, or let it be read"
        ) from error


def _images(root: Path) -> Iterator[str]:
    """The image files of the parts of a data set, by their paths below its root."""
    for part in (*TRAINING, *EVALUATION):
        for folder, _, names in os.walk(root / part):
            yield from (os.path.relpath(os.path.join(folder, name), root) for name in names if has_suffix(name))


def keep(recipe: Recipe, folder: Path) -> None:
    """Write down what the files are that a run begins with."""
    write_json(folder / FILE, sums(recipe))


def changed(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """Key -> file that is not what it was when the run in this folder began. One that is gone has not changed: whoever
    needs it says that.
    """
    known = _known(folder)
    files = named(recipe)
    return {key: files[key] for key, found in sums(recipe).items() if known.get(key) != found}


def said(files: Mapping[str, Path], folder: Path) -> str:
    """What has changed since a run in a folder began, as the first half of a sentence."""
    (key, path), *_ = files.items()
    if key not in _known(folder):
        return f"nobody wrote down what {path} ({key}) was when the run in {folder} began"
    return f"{path} ({key}) has changed since the run in {folder} began"


def _known(folder: Path) -> dict[str, str]:
    path = folder / FILE
    found: dict[str, str] = read_document(path, InputsFile, CheckpointError) if path.exists() else {}
    return found
