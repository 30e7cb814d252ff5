"""``nas-prune export``: a derived model as a file of the runtime that will serve it."""

from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas_prune.base.errors import NasPruneError, UnknownNameError
from nas_prune.base.registry import hint

if TYPE_CHECKING:
    from torch import nn

    from nas_prune.artifact.export import Exported

EXAMPLES = """Examples

nas-prune export runs/quickstart/finetuned --to onnx

nas-prune export small/ --to openvino --out served/small.xml --batch 1

nas-prune export small/ --to torch-export --img-size 192
"""


@dataclass(frozen=True)
class ExportOptions:
    """Write a derived model as ONNX, OpenVINO or torch.export, and check it there.

    The file is opened in its own runtime and compared with PyTorch on random
    images. It stays only if the outputs differ by at most 1e-4 of the largest
    one (float32).
    """

    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="the folder of a derived model"),
    ]
    to: Annotated[str, typer.Option(metavar="FORM", help="onnx (.onnx), torch-export (.pt2) or openvino (.xml, .bin)")]
    out: Annotated[Path | None, typer.Option(help="file to write; beside FOLDER, by its name, if left out")] = None
    batch: Annotated[str, typer.Option(metavar="dynamic|N", help="any batch, or batches of N images only")] = "dynamic"
    img_size: Annotated[
        int | None, typer.Option(min=1, help="side of the images in pixels; the one it was trained with if left out")
    ] = None
    opset: Annotated[int | None, typer.Option(min=1, help="version of ONNX's operators, for --to onnx")] = None


@wraps(ExportOptions)
def command(**options: Any) -> None:
    """Run ``nas-prune export``: write one artefact as a file; print its size and how far its outputs are off."""
    import torch

    from nas_prune.artifact.export import export, image_shape

    asked = ExportOptions(**options)
    batch, target = _batch(asked.batch), _target(asked)
    model, facts = _artefact(asked.folder)
    images = torch.zeros(1, *image_shape(facts, asked.img_size))
    _show(export(model, images, target, batch=batch, opset=asked.opset))


def _batch(text: str) -> int | None:
    if text != "dynamic" and not text.isdecimal():
        raise NasPruneError(f"--batch {text} makes no sense; write --batch dynamic, or a number from 1")
    return None if text == "dynamic" else int(text)


def _target(asked: ExportOptions) -> Path:
    """The file to write; its suffix is that of the form."""
    from nas_prune.artifact.export_forms import forms

    known = forms()
    if asked.to not in known:
        raise UnknownNameError(f"cannot export to {asked.to!r}{hint(asked.to, known)}")
    suffix, given = known[asked.to].suffix, asked.folder
    folder = given if given.name not in ("", "..") else given.resolve()
    target = asked.out or folder.with_name(f"{folder.name}{suffix}")
    if target.suffix != suffix or target.is_dir():
        raise NasPruneError(f"--out {target} must be a file whose name ends in {suffix} for --to {asked.to}")
    return target


def _artefact(folder: Path) -> "tuple[nn.Module, dict[str, Any]]":
    """A derived model and what its config tells."""
    from nas_prune.artifact.folder import describe, load

    return load(folder), describe(folder)


def _show(exported: "Exported") -> None:
    from rich.console import Console
    from rich.text import Text

    from nas_prune.run.report.terminal import terminal_table

    table = terminal_table("file", "#MB", "runtime", "#largest difference", "#seconds")
    files = "\n".join(map(str, exported.files))
    figures = f"{exported.max_difference:.1e}", f"{exported.seconds:.1f}"
    table.add_row(files, f"{exported.megabytes:.2f}", exported.runtime, *figures)
    for part in (table, Text(_compared(exported))):
        Console().print(part)


def _compared(exported: "Exported") -> str:
    small, large = exported.batches
    batches = f"{small} and {large}, the file takes any" if small != large else f"{small}, the file takes no other"
    told = f"Difference from PyTorch relative to its largest output, in float32, on random images; batch {batches}."
    return f"{told} {exported.note}.".removesuffix(" .")
