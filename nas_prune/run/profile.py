"""Where the milliseconds of a model go: each call timed whole, and in the same call each of its stages.

A stage is a direct child of the model that runs (``conv1``, ``layer1``, ``head``). A child that only lists others, such
as ``stages`` or ``blocks``, is opened one level: ``blocks.0``, ``blocks.1``. A derived model keeps the module names of
the dense one, so the two can be compared stage by stage. The idea is the profiler's; the choice of stages is ours.

The figures are medians over calls that alternate between the models; ``other`` is what a call spends between its stages
(and in the hooks: some microseconds a stage). Medians of parts do not add up to the median of the whole: on a busy
machine most calls are interrupted somewhere, each stage but rarely. So all figures of a model are scaled by one factor,
1 on a quiet machine, with which they add up to the median of the whole call.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from nas_prune.costs.timing.heap import keep_freed_memory
from nas_prune.costs.timing.measure import warm_up
from nas_prune.costs.timing.runtimes import threads as using
from nas_prune.costs.timing.turn import turn
from nas_prune.methods.intercept import plain_copy
from nas_prune.tracing.graph.capture import Inputs, device_of, each_tensor

OTHER = "other"
IDLE = (nn.Identity, nn.Dropout)  # compute nothing in eval mode
ROUNDS = 5  # at the least

Clock = Callable[[], Any]
Marks = list[tuple[str, Any]]  # (stage, time) at every entry and exit


def stage_times(
    models: Mapping[str, nn.Module],
    example_inputs: Inputs,
    *,
    seconds: float = 1.0,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Median milliseconds of every stage of every model, run eagerly in eval mode where its parameters are.

    For about ``seconds`` per model. Stages come in the order in which they run, ``other`` last; a stage that does not
    run in one of the models takes 0 ms there. Copies are timed: the models stay as they are. A GPU is timed by its own
    events, not by ``clock`` (in seconds).
    """
    keep_freed_memory()
    timed = {name: _Staged(model, example_inputs, clock) for name, model in models.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    with torch.inference_mode(), using(threads), turn():
        for model in timed.values():
            warm_up(model, seconds / 10, clock)
        end = clock() + seconds * len(models)
        while clock() < end or min(map(len, rounds.values()), default=ROUNDS) < ROUNDS:
            for name, model in timed.items():
                rounds[name].append(model())
    ran = dict.fromkeys(stage for each in rounds.values() for stage in each[0] if stage != OTHER)
    return {name: _medians(each, [*ran, OTHER]) for name, each in rounds.items()}


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that count as stages by name, whether they run or not."""
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if _lists_stages(name, child):
            found |= {f"{name}.{inner}": module for inner, module in child.named_children()}
        else:
            found[name] = child
    return {name: module for name, module in found.items() if name != OTHER and not isinstance(module, IDLE)}


class _Staged:
    """A copy of a model whose call returns milliseconds: of each stage in the order of running, and of the whole."""

    def __init__(self, model: nn.Module, example_inputs: Inputs, clock: Clock) -> None:
        self.model, self.marks = plain_copy(model).eval(), Marks()
        device = device_of(self.model)
        self.inputs = each_tensor(lambda value: value.to(device), example_inputs)
        self.device = device if device.type == "cuda" else None
        self.clock = clock if self.device is None else self._event
        for name, module in stages(self.model).items():
            mark = partial(self._mark, name)
            module.register_forward_pre_hook(mark)
            module.register_forward_hook(mark)

    def __call__(self) -> dict[str, float]:
        self.marks.clear()
        self._mark("")
        self.model(*self.inputs)
        self._mark("")
        if self.device is not None:
            torch.cuda.synchronize(self.device)
        return _spent(self.marks)

    def _mark(self, name: str, *_: Any) -> None:
        self.marks.append((name, self.clock()))

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event


def _lists_stages(name: str, child: nn.Module) -> bool:
    """A list, which cannot run itself, or a sequence with a plural name: ``stages``, ``blocks``, ``features``."""
    return isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and name.endswith("s"))


def _spent(marks: Marks) -> dict[str, float]:
    """Milliseconds by stage, ``other`` included; a stage that ran twice counts twice."""
    spent: dict[str, float] = {}
    entered: dict[str, Any] = {}
    for name, now in marks:
        if name in entered:
            spent[name] = spent.get(name, 0.0) + _milliseconds(entered.pop(name), now)
        else:
            entered[name] = now
    whole = spent.pop("")
    return {**spent, OTHER: max(0.0, whole - sum(spent.values()))}


def _milliseconds(start: Any, end: Any) -> float:
    return float(start.elapsed_time(end)) if isinstance(start, torch.cuda.Event) else 1e3 * float(end - start)


def _medians(rounds: list[dict[str, float]], names: list[str]) -> dict[str, float]:
    """Median of each stage over the rounds, scaled so that they add up to the median of the whole call."""
    table = torch.tensor([[each.get(name, 0.0) for name in names] for each in rounds], dtype=torch.float64)
    medians, whole = table.quantile(0.5, dim=0), table.sum(dim=1).quantile(0.5)
    return dict(zip(names, (medians * whole / medians.sum()).tolist(), strict=True))
