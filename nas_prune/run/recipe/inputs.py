"""What a recipe names by path: files that decide about its run as its keys do, and may change while it is away.

``inputs.json`` of a run folder has the SHA-256 of each, by the key that names it; where they lie is no part of that. Of
images in folders it is that of their names: to read them all would take as long as an epoch.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
YOUNG = 2_000_000_000  # nanoseconds


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
    """The SHA-256 of a file, or of the names in a folder of images; None where nothing is. Taken once by a process, as
    long as nothing is written there: the names of a million images take seconds.
    """
    try:
        known = _taken.get(path)
        if known is None or not known.holds():
            known = _take(path)
            _taken[path] = known
        return known.sum
    except OSError as error:
        raise RecipeError(
            f"{key}: {path} cannot be read ({error.strerror}); correct the path, or let it be read"
        ) from error


@dataclass(frozen=True)
class _Taken:
    """A sum, when it was taken, and the stamps of all files and folders that would have others if it were another."""

    sum: str | None
    stamps: Mapping[Path, tuple[int, int] | None]
    at: int

    def holds(self) -> bool:
        """Whether nothing was written since. Of what was young then nobody knows: clocks of file systems are coarse."""
        young = any(stamp and stamp[0] > self.at - YOUNG for stamp in self.stamps.values())
        return not young and all(_stamp(each) == stamp for each, stamp in self.stamps.items())


_taken: dict[Path, _Taken] = {}


def _take(path: Path) -> _Taken:
    at = time.time_ns()
    if not isdir(path):
        stamp = _stamp(path)  # before it is read: what is written meanwhile is seen the next time
        return _Taken(sum_of(path) if isfile(path) else None, {path: stamp}, at)
    stamps, names = {path: _stamp(path)}, list[str]()
    for part in (*TRAINING, *EVALUATION):
        for folder, _, files in os.walk(path / part):
            stamps[Path(folder)] = _stamp(Path(folder))
            names += (os.path.relpath(os.path.join(folder, name), path) for name in files if has_suffix(name))
    text = "\n".join(sorted(names)).encode(errors="surrogateescape")
    return _Taken(hashlib.sha256(text).hexdigest(), stamps, at)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written, or a name in a folder; None where nothing is."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


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
