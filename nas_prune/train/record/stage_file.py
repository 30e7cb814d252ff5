"""What the checkpoint of a training stage holds, and putting it back: all of it fits, or nothing is touched.

A right SHA-256 says that a file is as it was written, not who wrote it. So names, shapes and types are compared with
the model that is there, and with the state that its optimizers have after a step.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import Optimizer

from nas_prune.base.errors import CheckpointError, shown
from nas_prune.base.files.documents import LARGEST, MOST, Natural, validated
from nas_prune.base.files.tensors import misfit
from nas_prune.train.record import checkpoint

AGAIN = "delete that file to start the stage again"


class StageState(BaseModel):
    """How far a stage has come, and everything that its next step depends on; of a finished one, what it has learnt."""

    model_config = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    epoch: Natural
    step: Natural
    loss: Tensor | None = None
    identity: str
    model: dict[str, Tensor]
    beside: dict[str, Tensor]
    optimizers: list[dict[str, Any]] | None = None
    scaler: dict[str, float | int] | None = None
    processes: Natural = 1
    average: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Live:
    """What a checkpoint is put back into.

    ``beside``: what else learns or remembers. ``scaler``: of mixed precision, where there is one.
    """

    model: nn.Module
    beside: nn.Module
    optimizers: Sequence[Optimizer]
    average: nn.Module | None = None
    scaler: Any = None


@dataclass(frozen=True)
class Length:
    """How long a stage is: epochs, and steps in each of them; ``goes_on``: whether another one goes on from it.

    ``processes``: that share the batches of an epoch; in a step, each of them takes one.
    """

    epochs: int
    steps: int
    goes_on: bool = False
    processes: int = 1

    def steps_done(self, step: int, processes: int) -> int:
        """The steps that stand for so many of another number of processes; no batch of an epoch comes twice."""
        return step if processes == self.processes else min(self.steps, -(-step * processes // self.processes))


def restore(path: Path, live: Live, length: Length, identity: str) -> StageState:
    """Put everything back to where the checkpoint has it; raises CheckpointError, and changes nothing, if it is not of
    this run, or does not fit."""
    state: StageState = validated(checkpoint.load(path), StageState, f"the checkpoint {path}", CheckpointError, AGAIN)
    if state.identity != identity:
        raise CheckpointError(f"{path} is of a run of another recipe; {AGAIN}")
    state = state.model_copy(update={"step": length.steps_done(state.step, state.processes)})
    done = state.epoch == length.epochs and not length.goes_on
    problem = _problem(state, live, length, done=done)
    if problem:
        raise CheckpointError(f"the checkpoint {path} does not fit: {problem}; {AGAIN}")
    live.model.load_state_dict(state.model)
    live.beside.load_state_dict(state.beside)
    if not done:
        for optimizer, saved in zip(live.optimizers, state.optimizers or [], strict=True):
            optimizer.load_state_dict(saved)
        if live.average is not None and state.average is not None:
            live.average.load_state_dict(state.average)
        if live.scaler is not None:
            live.scaler.load_state_dict(state.scaler)
    return state


def _problem(state: StageState, live: Live, length: Length, *, done: bool) -> str:
    """What keeps a state from being put back, if anything does."""
    if state.epoch > length.epochs or state.step > (0 if state.epoch == length.epochs else length.steps):
        return f"it is at epoch {state.epoch}, step {state.step} of {length.epochs} epochs of {length.steps} steps"
    if state.loss is not None and (state.loss.ndim or not state.loss.is_floating_point()):
        return "its loss is not one number"
    problem = misfit(live.model.state_dict(), state.model)
    problem = problem or misfit(live.beside.state_dict(), state.beside)
    if problem or done:
        return problem
    if (live.average is None) != (state.average is None) or (live.scaler is None) != (state.scaler is None):
        return "it is of a training with other options"
    if len(state.optimizers or []) != len(live.optimizers):
        return f"it has {len(state.optimizers or [])} optimizers, the stage has {len(live.optimizers)}"
    if live.average is not None and state.average is not None:
        problem = misfit(live.average.state_dict(), state.average)
    found = (_misfit_of(*pair) for pair in zip(live.optimizers, state.optimizers or [], strict=True))
    return problem or next((each for each in found if each), "")


def _misfit_of(optimizer: Optimizer, saved: Mapping[str, Any]) -> str:
    """What keeps an optimizer from taking a state."""
    now, later = optimizer.state_dict(), _after_a_step(optimizer)
    if saved.keys() != now.keys() or (type(saved["state"]), type(saved["param_groups"])) != (dict, list):
        return "it is not the state of an optimizer"
    groups = now["param_groups"], later["param_groups"], saved["param_groups"]
    if len(groups[0]) != len(groups[2]) or not all(map(_is_group, *groups)):
        return "its optimizer has other groups of parameters, or other settings"
    for number, state in saved["state"].items():
        known = later["state"].get(number)
        if known is None or not isinstance(state, dict) or state.keys() != known.keys():
            return f"its optimizer knows other things about the parameter {shown(number)}"
        problem = misfit(_tensors(known), _tensors(state))
        if problem or not all(_alike(known[name], value) for name, value in state.items()):
            return f"its optimizer, parameter {shown(number)}: {problem or 'a number of another kind'}"
        if any(bool(torch.as_tensor(state[name]).lt(0).any()) for name in state if name == "step" or "_sq" in name):
            return f"its optimizer, parameter {shown(number)}: a count of steps or a square is negative"
    return ""


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _is_group(now: Mapping[str, Any], later: Mapping[str, Any], found: Any) -> bool:
    """Whether a group of parameters has the settings of now; the learning rate, and what a step changes, may differ."""
    if not isinstance(found, dict) or found.keys() not in (now.keys(), later.keys()):
        return False
    still = {name for name, value in now.items() if name != "lr" and _equal(value, later[name])}
    return all(_equal(now[name], found[name]) if name in still else _alike(later[name], found[name]) for name in found)


def _equal(known: Any, found: Any) -> bool:
    """Whether plain values are the same, True and 1 apart."""
    if isinstance(known, Tensor) or isinstance(found, Tensor):
        return isinstance(known, Tensor) and isinstance(found, Tensor) and torch.equal(known, found)
    if isinstance(known, list | tuple):
        return type(found) is type(known) and len(found) == len(known) and all(map(_equal, known, found))
    return type(found) is type(known) and bool(found == known)


def _alike(known: Any, found: Any) -> bool:
    """Whether a value is of the same sort: a number for a number, any list for a list."""
    if isinstance(known, int | float) and not isinstance(known, bool):
        return type(found) in (int, float) and abs(found) <= (MOST if type(found) is int else LARGEST)
    return type(found) is type(known)


def _after_a_step(optimizer: Optimizer) -> dict[str, Any]:
    """The state that an optimizer like this one has after a step; without memory, where its step can do without."""
    try:
        return _stepped(optimizer, lambda parameter: torch.empty_like(parameter, device="meta"))
    except Exception as cause:  # a step that looks at numbers says so in many ways
        try:
            return _stepped(optimizer, torch.zeros_like)
        except Exception as error:
            raise CheckpointError(f"{type(optimizer).__name__} cannot go on from a checkpoint: {error}") from cause


def _stepped(optimizer: Optimizer, like: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    stand_ins: dict[int, Any] = {}
    for parameter in (each for group in optimizer.param_groups for each in group["params"]):
        twin = nn.Parameter(like(parameter), requires_grad=parameter.requires_grad)
        twin.grad = torch.empty_like(twin) if twin.is_meta else torch.zeros_like(twin)
        stand_ins[id(parameter)] = twin
    with torch.random.fork_rng(devices=[]):
        copied = copy.deepcopy(optimizer, stand_ins)
        copied.step()
    state: dict[str, Any] = copied.state_dict()
    return state
