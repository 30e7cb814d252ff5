"""The forms in which a model can be exported: ONNX, OpenVINO (made from the ONNX graph), torch.export.

Each knows how a captured model is written, and how the file is opened in the runtime that it is for.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from nas_prune.base.errors import RunError
from nas_prune.tracing.graph.capture import output_tensors

_BFLOAT = "It was opened with INFERENCE_PRECISION_HINT f32; left to itself, OpenVINO may choose bfloat16"

ExportedCall = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class ExportForm:
    """One kind of file: its suffix, the runtime that opens it, the packages it needs, how it is written and opened.

    ``note``: what who opens it should know.
    """

    suffix: str
    runtime: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Path, int | None], None]
    open: Callable[[Path], ExportedCall]
    note: str = ""


def forms() -> dict[str, ExportForm]:
    """The kinds of file by name."""
    onnx = ("onnx", "onnxscript", "onnxruntime")
    return {
        "onnx": ExportForm(".onnx", "ONNX Runtime", onnx, _write_onnx, _open_onnx),
        "torch-export": ExportForm(".pt2", "torch.export", (), _write_torch, _open_torch),
        "openvino": ExportForm(".xml", "OpenVINO", ("openvino", *onnx[:2]), _write_openvino, _open_openvino, _BFLOAT),
    }


def _write_torch(program: ExportedProgram, path: Path, _opset: int | None) -> None:
    torch.export.save(program, path)


def _open_torch(path: Path) -> ExportedCall:
    module = torch.export.load(path).module()
    return lambda images: output_tensors(module(images))


def _write_onnx(program: ExportedProgram, path: Path, opset: int | None) -> None:
    """One file; above 2 GB, which is all that a file of that kind can hold, the weights go into a second one."""
    made = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=[f"output{number}" for number in range(len(program.graph_signature.user_outputs))],
        opset_version=opset,
        dynamic_shapes=({0: "batch"},) if program.range_constraints else None,
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    written = made.model.opset_imports[""]
    if opset not in (None, written):
        raise RunError(f"the model cannot be written in opset {opset} of ONNX, but in {written}: --opset {written}")
    made.save(path)


def _open_onnx(path: Path) -> ExportedCall:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]


def _write_openvino(program: ExportedProgram, path: Path, _opset: int | None) -> None:
    """By way of ONNX: OpenVINO's reader takes its dynamic batch as it is, and reports nothing to anybody."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        _write_onnx(program, Path(folder) / "model.onnx", None)
        read = openvino.Core().read_model(str(Path(folder) / "model.onnx"))
        openvino.save_model(read, str(path), compress_to_fp16=False)


def _open_openvino(path: Path) -> ExportedCall:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda images: [torch.from_numpy(value.copy()) for value in compiled(images.numpy()).to_tuple()]
