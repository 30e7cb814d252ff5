"""Time a model in the runtime that will run it.

Medians of single calls, interleaved round by round when several models are compared, so that a machine that slows down
slows all of them down. The spread is the half-width of the interquartile range.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nas_prune.errors import RuntimeMissingError
from nas_prune.tracing.capture import Inputs, as_tuple, evaluating

Runtime = Literal["eager", "onnxruntime"]
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, half the interquartile range, and how many calls were timed."""

    median_ms: float
    spread_ms: float
    calls: int

    @property
    def spread(self) -> float:
        """Spread as a share of the median."""
        return self.spread_ms / self.median_ms


def measure(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    runtime: Runtime = "eager",
    seconds: float = 1.0,
    threads: int | None = None,
) -> Timing:
    """Median latency of ``model(example_inputs)`` in eval mode."""
    return measure_together({"model": model}, example_inputs, runtime=runtime, seconds=seconds, threads=threads)[
        "model"
    ]


def measure_together(
    models: Mapping[str, nn.Module],
    example_inputs: Inputs,
    *,
    runtime: Runtime = "eager",
    seconds: float = 1.0,
    threads: int | None = None,
) -> dict[str, Timing]:
    """Latency of several models, one call of each in turn, for about ``seconds`` per model.

    Raises RuntimeMissingError when the runtime is not installed.
    """
    with torch.inference_mode(), _threads(threads), ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluating(model))
        calls = {name: prepare(model, example_inputs, runtime, threads) for name, model in models.items()}
        return time_calls(calls, seconds)


def time_calls(calls: Mapping[str, Call], seconds: float) -> dict[str, Timing]:
    """Warm up, then time single calls in turn until the time is used, at least five rounds."""
    for call in calls.values():
        _warm_up(call, seconds / 10)
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: _timing(values) for name, values in times.items()}


def prepare(model: nn.Module, example_inputs: Inputs, runtime: Runtime, threads: int | None = None) -> Call:
    """A function that runs a model in eval mode once, and returns when the result is there."""
    if runtime == "onnxruntime":
        return _onnxruntime(model, as_tuple(example_inputs), threads)
    device = next(model.parameters()).device
    inputs = tuple(value.to(device) if isinstance(value, Tensor) else value for value in as_tuple(example_inputs))

    def run() -> None:
        model(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _onnxruntime(model: nn.Module, inputs: tuple[Any, ...], threads: int | None) -> Call:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise RuntimeMissingError('ONNX Runtime is not installed; run: pip install "nas_prune[onnx]"') from error
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(model.cpu(), inputs, dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {given.name: value.numpy() for given, value in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)


def _warm_up(call: Call, seconds: float) -> None:
    end = time.perf_counter() + seconds
    call()
    call()
    while time.perf_counter() < end:
        call()


def _timing(values: Sequence[float]) -> Timing:
    low, median, high = np.percentile(values, [25, 50, 75])
    return Timing(float(median), float(high - low) / 2, len(values))


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """torch's CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
