"""Runtimes: what can run a model when it is timed, one function each, from a model to a call that runs it once.

The model that is given stays as it is: each runtime gets a copy in eval mode, in the precision, the memory layout and
on the device that it is to be timed in.

ONNX Runtime and OpenVINO open an ONNX graph. It is made by torch's older exporter, which follows the model's own code
once: ten times as fast as the newer one (ResNet-18: 0.2 s for 1.8 s; a calibration makes hundreds), and ONNX Runtime
takes as long for either graph. What the older one cannot export, the newer one does.
"""

import copy
import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nas_prune.base.errors import NasPruneError, RunError, RuntimeMissingError, first_line
from nas_prune.base.registry import Registry
from nas_prune.costs.timing.conditions import USUAL, Conditions, Precision, Runtime
from nas_prune.costs.timing.heap import keep_freed_memory
from nas_prune.tracing.graph.capture import Inputs, device_of, each_tensor, evaluating

ModelCall = Callable[[], Any]  # runs a model once, and gives its outputs when they are there
Arguments = tuple[Any, ...]

_ALL: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeKind:
    """A runtime: how a call is made, which packages it needs, from where, and what it can be asked for.

    ``device``: where it runs, None for where the model is. ``casts``: it computes in the precision by itself, and is
    given a model in float32. ``layout``: whether a memory layout is the caller's choice.
    """

    build: Callable[[nn.Module, Arguments, Conditions], ModelCall]
    packages: tuple[str, ...] = ()
    install: str = ""
    precisions: tuple[Precision, ...] = _ALL
    device: str | None = None
    casts: bool = False
    layout: bool = False


runtimes: Registry[RuntimeKind] = Registry("runtime", None)


def available() -> list[Runtime]:
    """The runtimes that can be used here."""
    return [cast(Runtime, name) for name in runtimes if missing(cast(Runtime, name)) is None]


def missing(runtime: Runtime) -> str | None:
    """What a runtime lacks here and how to get it, or None. Raises UnknownNameError for a name that is none."""
    kind = runtimes[runtime]
    absent = [package for package in kind.packages if importlib.util.find_spec(package) is None]
    if absent:
        return f"{runtime} needs the package {absent[0]}, which is not installed; run: {kind.install}"
    if kind.device == "cuda" and not torch.cuda.is_available():
        return f"{runtime} needs an NVIDIA GPU, and torch sees none; choose another runtime"
    if runtime == "compile" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))):
        return "torch.compile needs a C++ compiler, and there is none; install one, e.g.: apt-get install g++"
    return None


def prepare(model: nn.Module, example_inputs: Inputs, conditions: Conditions = USUAL) -> ModelCall:
    """A function that runs a copy of the model in eval mode once, and gives its outputs when they are there.

    Raises RuntimeMissingError with what to install, NasPruneError for conditions that the runtime cannot meet,
    RunError if the model does not run there. ``threads`` of eager and compile are torch's: call inside ``threads``.
    """
    return prepare_all({"model": model}, example_inputs, conditions)["model"]


def prepare_all(
    models: Mapping[str, nn.Module], example_inputs: Inputs, conditions: Conditions = USUAL
) -> dict[str, ModelCall]:
    """``prepare`` for models that are timed together, in a process that keeps the memory that a call has freed.

    What torch.compile compiled before, it forgets here.
    """
    refuse_conditions(conditions)
    keep_freed_memory()
    compiling = _compiling(len(models)) if conditions.runtime == "compile" else nullcontext()
    with compiling, threads(conditions.threads), torch.inference_mode(False), torch.no_grad():
        return {name: _prepared(model, example_inputs, conditions) for name, model in models.items()}


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """torch's CPU threads inside the block; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _compiling(models: int) -> Iterator[None]:
    """torch.compile as if it had compiled nothing yet: after eight models of one class it would compile no more."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=8 + models):
        yield


def refuse_conditions(conditions: Conditions) -> None:
    """Raise for conditions that cannot be met here."""
    lacking, kind = missing(conditions.runtime), runtimes[conditions.runtime]
    if lacking is not None:
        raise RuntimeMissingError(lacking)
    if conditions.precision not in kind.precisions:
        raise NasPruneError(
            f"{conditions.runtime} cannot be timed in {conditions.precision} here; it can in "
            f"{', '.join(kind.precisions)}. For {conditions.precision} choose eager, compile or openvino"
        )
    if conditions.channels_last and not kind.layout:
        raise NasPruneError(f"{conditions.runtime} chooses its memory layout itself; leave out channels_last")


def _prepared(model: nn.Module, example_inputs: Inputs, conditions: Conditions) -> ModelCall:
    """A call that has run once: whatever stops it is known before anything is timed."""
    try:
        own, inputs = _copied(model, example_inputs, conditions)
        call = runtimes[conditions.runtime].build(own, inputs, conditions)
        call()
    except NasPruneError:
        raise
    except Exception as error:
        raise RunError(
            f"{type(model).__name__} does not run under these conditions: {conditions}. {type(error).__name__}: "
            f"{first_line(error)}. Check that `model(example_inputs)` runs in eval mode, or time it under others"
        ) from error
    return call


def _copied(model: nn.Module, example_inputs: Inputs, conditions: Conditions) -> tuple[nn.Module, Arguments]:
    """A copy of the model in eval mode and of its inputs, as the conditions want them."""
    kind = runtimes[conditions.runtime]
    with evaluating(model):  # which, when it is left, drops what modules cached: that cannot be copied
        home = device_of(model)
    device, dtype = torch.device(kind.device or home), torch.float32 if kind.casts else conditions.dtype

    def converted(value: Tensor) -> Tensor:
        new = value.detach().clone().to(device, dtype if value.is_floating_point() else None)
        return new.contiguous(memory_format=torch.channels_last) if conditions.channels_last and new.ndim == 4 else new

    layout = torch.channels_last if conditions.channels_last else torch.contiguous_format  # whatever it was trained in
    own = copy.deepcopy(model).eval().to(device, dtype).to(memory_format=layout)
    return own, each_tensor(converted, example_inputs)


def _eager(model: nn.Module, inputs: Arguments, _conditions: Conditions) -> ModelCall:
    places = {value.device for value in tree_leaves(inputs) if isinstance(value, Tensor)}
    waited_for = [device for device in places if device.type != "cpu"]

    def run() -> Any:
        with torch.inference_mode():
            output = model(*inputs)
        for device in waited_for:
            torch.accelerator.synchronize(device)
        return output

    return run


def _compile(model: nn.Module, inputs: Arguments, conditions: Conditions) -> ModelCall:
    return _eager(cast(nn.Module, torch.compile(model, dynamic=False)), inputs, conditions)


def _onnxruntime(model: nn.Module, inputs: Arguments, conditions: Conditions) -> ModelCall:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = conditions.threads or torch.get_num_threads()
    # models that are timed in turn: the threads of one must not wait for work while another one runs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(_onnx(model, inputs), options, providers=["CPUExecutionProvider"])
    feed = {given.name: value for given, value in zip(session.get_inputs(), _arrays(inputs), strict=True)}
    return lambda: session.run(None, feed)


def _openvino(model: nn.Module, inputs: Arguments, conditions: Conditions) -> ModelCall:
    import openvino

    core, hint = openvino.Core(), {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[conditions.precision]
    able = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}[hint]
    if able not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NasPruneError(f"OpenVINO cannot compute in {conditions.precision} on this processor; use float32")
    settings = {
        "INFERENCE_PRECISION_HINT": hint,  # left to itself, it may choose bfloat16
        "INFERENCE_NUM_THREADS": conditions.threads or torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(_onnx(model, inputs)), "CPU", settings).create_infer_request()
    arrays = _arrays(inputs)
    return lambda: request.infer(arrays, share_inputs=True, share_outputs=True).to_tuple()


def _tensorrt(model: nn.Module, inputs: Arguments, conditions: Conditions) -> ModelCall:
    compiler = import_module("torch_tensorrt")
    fast = compiler.compile(model, ir="dynamo", inputs=list(inputs), enabled_precisions={conditions.dtype})
    return _eager(fast, inputs, conditions)


def _onnx(model: nn.Module, inputs: Arguments) -> bytes:
    """The model as an ONNX graph. What the exporters warn of is about their inside, or that one is the older."""
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(model, inputs, path, dynamo=False)
            return path.read_bytes()
        except Exception as error:
            _log.debug("torch's older ONNX exporter cannot export %s: %s", type(model).__name__, error)
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
        assert program is not None
        return bytes(program.model_proto.SerializeToString())


def _arrays(inputs: Arguments) -> list[Any]:
    """The tensors among the arguments as arrays, in order."""
    return [value.numpy() for value in tree_leaves(inputs) if isinstance(value, Tensor)]


_ONNX, _OPENVINO = 'pip install "nas_prune[onnx]"', 'pip install "nas_prune[openvino]"'
runtimes.register("eager")(RuntimeKind(_eager, layout=True))
runtimes.register("compile")(RuntimeKind(_compile, layout=True))
runtimes.register("onnxruntime")(
    RuntimeKind(_onnxruntime, ("onnxruntime", "onnxscript"), _ONNX, precisions=("float32",), device="cpu")
)
runtimes.register("openvino")(RuntimeKind(_openvino, ("openvino", "onnxscript"), _OPENVINO, device="cpu", casts=True))
runtimes.register("tensorrt")(RuntimeKind(_tensorrt, ("torch_tensorrt",), "pip install torch-tensorrt", device="cuda"))
