"""Export: a model as a file that another runtime opens, and that is compared with PyTorch there before it may stay.

ONNX (``.onnx``), OpenVINO (``.xml`` and ``.bin``, made from the ONNX graph) or torch.export (``.pt2``): the name of the
file says which. No file holds a pickle. What differs from PyTorch by more than 1e-4 is deleted, not delivered.
"""

import copy
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from nas_prune.artifact.export_forms import ExportedCall, ExportForm, forms
from nas_prune.base.errors import (
    ArtifactError,
    ExactnessError,
    NasPruneError,
    RunError,
    RuntimeMissingError,
    UnknownNameError,
)
from nas_prune.base.random_images import random_images
from nas_prune.base.registry import hint
from nas_prune.tracing.graph.capture import output_tensors

TOLERANCE = 1e-4  # float32, relative to the largest output: runtimes add up in another order
WIDEST = 2**15  # pixels of a side, or channels
TRIED = (1, 3)  # batches on which a file of dynamic batch is compared


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its outputs are from PyTorch's, relative to the largest output."""

    files: tuple[Path, ...]
    runtime: str
    note: str
    max_difference: float
    batches: tuple[int, ...]
    seconds: float

    @property
    def megabytes(self) -> float:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files) / 1e6


def export(
    model: nn.Module,
    example_images: Tensor,
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    opset: int | None = None,
) -> Exported:
    """Write ``model`` in float32 and eval mode as the file ``path``, whole or not at all; it is left untouched.

    ``example_images`` (b c h w): only c, h and w matter. ``batch``: None for any batch. ``opset``: None for the usual.
    Raises RuntimeMissingError, RunError if the model cannot be converted, ExactnessError if it comes out different.
    """
    start, target = time.monotonic(), Path(path)
    form = _form(target, batch, opset)
    plain = copy.deepcopy(model).cpu().float().eval()
    sizes = TRIED if batch is None else (batch, batch)
    images = [random_images(size, *example_images.shape[1:], seed=seed) for seed, size in enumerate(sizes)]
    with torch.no_grad(), _together(target) as (temporary, files):
        expected = _expected(plain, images)
        with _converting(plain, form, dynamic=batch is None):
            form.write(_captured(plain, images[-1], dynamic=batch is None), temporary, opset)
            difference = _difference(form.open(temporary), images, expected)
        if not difference <= TOLERANCE:
            raise ExactnessError(
                f"{form.runtime} computes something else than PyTorch: outputs differ by {difference:.1e} of the "
                f"largest one, at most {TOLERANCE:.0e} is allowed. {target} was not written; export to another runtime"
            )
    return Exported(tuple(files), form.runtime, form.note, difference, sizes, time.monotonic() - start)


def image_shape(facts: Mapping[str, Any], img_size: int | None = None) -> tuple[int, int, int]:
    """(c, h, w) of the images that a model takes.

    ``facts``: its ``model_args``, its ``pretrained_cfg`` and, if known, its ``provenance``, as ``artifact.describe``
    gives them; the recipe that trained it counts most. Raises ArtifactError if they do not tell.
    """
    arguments, size = facts["model_args"], facts["pretrained_cfg"].get("input_size")
    recipe = (facts.get("provenance") or {}).get("recipe")
    trained = recipe.get("data.image_size") if isinstance(recipe, Mapping) else None
    channels, *known = size if isinstance(size, list | tuple) and size else [None]
    side = img_size or trained or arguments.get("img_size") or known
    shape = (arguments.get("in_chans") or channels or 3, *(side if isinstance(side, list | tuple) else (side, side)))
    if len(shape) != 3 or any(type(size) is not int or not 1 <= size <= WIDEST for size in shape):
        name = facts.get("backbone", "this model")
        raise ArtifactError(
            f"{name} does not say what size of images it takes; give their side in pixels: --img-size N"
        )
    return shape


def _form(target: Path, batch: int | None, opset: int | None) -> ExportForm:
    """The form that a file's name asks for, if it is installed and takes these options."""
    known = {form.suffix: form for form in forms().values()}
    if target.suffix not in known:
        raise UnknownNameError(f"cannot export to {target}: no form has the suffix {target.suffix!r}{hint('', known)}")
    form = known[target.suffix]
    if opset is not None and form.suffix != ".onnx":
        raise NasPruneError(f"an opset is a version of ONNX; leave out --opset for {form.runtime}")
    if batch is not None and batch < 1:
        raise NasPruneError(f"a batch of {batch} images makes no sense; give --batch dynamic, or a number from 1")
    extra = "openvino" if "openvino" in form.packages else "onnx"
    for package in form.packages:
        try:
            import_module(package)
        except ImportError as error:
            raise RuntimeMissingError(
                f'exporting to {form.runtime} needs the package {package}; run: pip install "nas_prune[{extra}]"'
            ) from error
    return form


def _expected(model: nn.Module, images: list[Tensor]) -> list[list[Tensor]]:
    """PyTorch's outputs for each batch."""
    try:
        return [output_tensors(model(batch)) for batch in images]
    except Exception as error:
        height, width = images[0].shape[-2:]
        raise ArtifactError(
            f"{type(model).__name__} does not take images of {height}x{width} pixels: {_first_line(error)}. "
            "Give the side that it takes: --img-size N"
        ) from error


def _captured(model: nn.Module, images: Tensor, *, dynamic: bool) -> ExportedProgram:
    """The model as a graph, for any batch or for that of the images, which it forgets: they would be pickled."""
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
    program.example_inputs = None
    return program


@contextmanager
def _converting(model: nn.Module, form: ExportForm, *, dynamic: bool) -> Iterator[None]:
    """Whatever stops a converter inside the block is one RunError; what it logs and warns of is about its inside."""
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except NasPruneError:
        raise
    except Exception as error:
        advice = "a fixed batch is easier: --batch 1" if dynamic else "export to another runtime"
        raise RunError(
            f"{type(model).__name__} cannot be converted for {form.runtime}: {_first_line(error)}; {advice}"
        ) from error
    finally:
        logging.disable(logged)


@contextmanager
def _together(target: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A path to write to, and the list of the files that are there once the block has ended without an error.

    They are written in a folder beside ``target`` and moved from it, ``target`` itself last.
    """
    files: list[Path] = []
    folder = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder / target.name, files
        written = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
        if len(written) > 1:
            target.unlink(missing_ok=True)  # an old one must never stand beside new weights
        files.extend(file.replace(target.with_name(file.name)) for file in written)
    except OSError as error:
        raise ArtifactError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _difference(run: ExportedCall, images: list[Tensor], expected: list[list[Tensor]]) -> float:
    """Largest difference of any output, relative to the largest magnitude of that output; NaN if there is a NaN."""
    worst = torch.zeros(())
    for batch, outputs in zip(images, expected, strict=True):
        for output, got in zip(outputs, run(batch), strict=True):
            if output.shape != got.shape:
                raise ExactnessError(f"an output of shape {tuple(output.shape)} came out as {tuple(got.shape)}")
            apart = (output - got).abs().max() / output.abs().max().clamp_min(torch.finfo(output.dtype).tiny)
            worst = torch.maximum(worst, apart)
    return float(worst)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
