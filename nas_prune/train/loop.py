"""Train: the one loop of this package. What is trained, and on which loss, are its arguments.

A stage can be stopped at any step: its checkpoint holds everything that the next step depends on. What is random (order
and augmentation of batches, mixup, dropout) depends on the seed, the stage and the step alone. So a resumed stage ends
in the same bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.optim import Optimizer

from nas_prune.base.errors import DivergedError, InterruptedRunError
from nas_prune.methods.movers.mover import Mover, Still
from nas_prune.train.average import Average, set_alike
from nas_prune.train.data.loaders import Data, check_labels, mixer, set_epoch
from nas_prune.train.data.order import drawing
from nas_prune.train.descent import Pace, descend, ready
from nas_prune.train.evaluate import top1
from nas_prune.train.objective import Objective, beside_the_model
from nas_prune.train.optimizers import schedule_of
from nas_prune.train.record import checkpoint
from nas_prune.train.record.progress import Bars
from nas_prune.train.record.stage_file import Length, Live, restore
from nas_prune.train.record.track import Track
from nas_prune.train.stage import Stage
from nas_prune.train.stop_signals import StopRequest, stop_signals

Watch = Callable[[float], Mapping[str, float]]
LOOK_EVERY = 25  # steps between two looks at the loss: a look waits for the device


@dataclass(frozen=True)
class Run:
    """What every stage of a run shares. Without a folder nothing is kept, without a track nothing is recorded.

    ``identity``: what a checkpoint must say to be of this run.
    """

    accelerator: Accelerator
    seed: int = 0
    folder: Path | None = None
    track: Track | None = None
    bars: Bars = field(default_factory=Bars)
    identity: str = ""
    pace: Pace = field(default_factory=Pace)


@dataclass
class Position:
    """How far a stage has come: whole epochs, steps into the next one, and the loss of the last of these."""

    epoch: int = 0
    step: int = 0
    loss: Tensor | None = None


def fit(
    run: Run,
    stage: Stage,
    model: nn.Module,
    data: Data,
    objective: Objective,
    optimizers: Sequence[Optimizer],
    *,
    watch: Watch = lambda _: {},
    mover: Mover | None = None,
) -> None:
    """Train ``model`` in place for the epochs of the stage, or for what is left of them.

    The first optimizer follows the schedule, and trains what the objective learns. ``watch`` makes the columns of a row
    of the journal. Raises DivergedError for a loss that is not finite, InterruptedRunError when asked to stop.
    """
    if not stage.epochs:
        return
    trained, loader = ready(run.accelerator, model, run.pace), run.accelerator.prepare_data_loader(data.train)
    steps = steps_of(loader, stage)
    mix = mixer(stage.images, data.classes, stage.settings.label_smoothing) or _as_they_are
    _begin(run, stage, model, data, objective)
    beside = beside_the_model(objective, mover, optimizers[0], run.accelerator)
    schedule = schedule_of(optimizers[0], stage, steps)
    memory = _Memory(run, stage, model, beside, optimizers)
    position = memory.recall(steps)
    bar = run.bars.bar(stage.name, stage.epochs * steps, position.epoch * steps + position.step, lines=stage.epochs)
    with stop_signals() as stop:
        while position.epoch < stage.epochs:
            memory.open_epoch(position)
            for number, images, labels in _batches(loader, stage, position, data):
                _open_step(schedule, objective, stage.first * steps + number, steps)
                with drawing(run.seed, stage.name, number):
                    loss = objective(trained, *mix(images, labels))
                    descend(run.accelerator, trained, loss, optimizers, stage.settings.clip_grad)
                position.step, position.loss = position.step + 1, loss.detach()
                bar.advance(_look(stage, position, steps))
                memory.close_step(position, stop)
            position = memory.close_epoch(position, watch, data)
            memory.stop_if_asked(stop)


def _begin(run: Run, stage: Stage, model: nn.Module, data: Data, objective: Objective) -> None:
    """What comes before a stage, and before its checkpoint is put back."""
    with drawing(run.seed, stage.name, "loss"):
        objective.begin(model, lambda: next(iter(data.evaluation))[0][:2].to(run.accelerator.device))


def _open_step(schedule: Any, objective: Objective, number: int, steps: int) -> None:
    """The learning rate of a step, and the limit of the budget, where it slides."""
    schedule.step_update(number)
    objective.slide(number / steps)


def steps_of(loader: Sized, stage: Stage) -> int:
    """Steps of an epoch."""
    return min(len(loader), stage.settings.max_steps or len(loader))


def _as_they_are(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """No mixup."""
    return images, labels


def _batches(loader: Any, stage: Stage, position: Position, data: Data) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The batches of this epoch that are still to do, each with the number of its step in the stage.

    Raises DataError if the labels of the first one do not fit.
    """
    steps = steps_of(loader, stage)
    if position.step == steps:
        return
    set_epoch(loader, stage.first + position.epoch)
    rest = skip_first_batches(loader, position.step) if position.step else loader
    for number, (images, labels) in zip(range(position.step, steps), rest, strict=False):
        if number == position.step:
            check_labels(labels, data.classes)
        yield position.epoch * steps + number, images, labels


def _look(stage: Stage, position: Position, steps: int) -> str:
    """Now and then, look at the loss: for the bar, and to stop a training that has diverged."""
    if position.loss is None or (position.step % LOOK_EVERY and position.step != steps):
        return ""
    value = float(position.loss)
    if not abs(value) < float("inf"):
        raise DivergedError(
            f"the loss of stage {stage.name} is {value} in epoch {position.epoch + 1}, step {position.step}. "
            f"Lower its learning rate ({stage.settings.lr}) or set clip_grad; the last checkpoint is kept"
        )
    return f"epoch {position.epoch + 1}, loss {value:.3f}"


def agree(accelerator: Accelerator, model: nn.Module) -> None:
    """Of several processes, each has BatchNorm statistics of its own images: let all have their mean."""
    if accelerator.num_processes > 1:
        distribute_bn(model, accelerator.num_processes, reduce=True)


class _Memory:
    """What outlives a step: the average of the weights, the checkpoint, the journal."""

    def __init__(
        self, run: Run, stage: Stage, model: nn.Module, beside: nn.Module, optimizers: Sequence[Optimizer]
    ) -> None:
        self.run, self.stage, self.model = run, stage, model
        self.beside, self.optimizers = beside, optimizers
        self.mover: Still = beside.get_submodule("mover")  # type: ignore[assignment]
        decay, known = stage.settings.ema_decay, stage.chain.average if stage.chain else None
        self.average = known if known or decay is None else Average(model, decay=decay)
        if stage.chain is not None:
            stage.chain.average = self.average
        self.path = None if run.folder is None else run.folder / "checkpoints" / f"{stage.name}.ckpt"

    def open_epoch(self, position: Position) -> None:
        """Move, before the first step of an epoch; then the model is in training mode."""
        if position.step == 0:
            with set_alike(self.model, self.average):
                self.mover.begin_epoch(self.stage.first + position.epoch)
        self.model.train()

    def close_step(self, position: Position, stop: StopRequest) -> None:
        """Move, average the weights; if a signal has asked to stop, save and stop."""
        self.mover.after_step()
        if self.average is not None:
            self.average.update(self.model)
        number = self._asked(stop, now=position.step % LOOK_EVERY == 0)
        if number:
            self.keep(position)
            raise self._stopped(number)

    def stop_if_asked(self, stop: StopRequest) -> None:
        """A signal that came at any time ends the stage where it can be resumed."""
        number = self._asked(stop, now=True)
        if number:
            raise self._stopped(number)

    def _asked(self, stop: StopRequest, *, now: bool) -> int:
        """The signal that asks to stop, or 0. Several processes stop at one step: now and then, they ask each other."""
        accelerator, number = self.run.accelerator, stop.requested or 0
        if accelerator.num_processes == 1:
            return number
        return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max()) if now else 0

    def _stopped(self, number: int) -> InterruptedRunError:
        return InterruptedRunError(f"stopped in {self.stage.name}; the same command resumes it", number)

    def close_epoch(self, position: Position, watch: Watch, data: Data) -> Position:
        """Move, evaluate, write the row to the journal, save; returns where the next epoch begins."""
        with drawing(self.run.seed, self.stage.name, "end of epoch", position.epoch):
            with set_alike(self.model, self.average):
                self.mover.after_epoch(self.stage.first + position.epoch)
            self._journal(position, watch, data)
        following = Position(position.epoch + 1)
        self.keep(following)
        return following

    def _journal(self, position: Position, watch: Watch, data: Data) -> None:
        """Evaluate, and write the row of an epoch whose steps are done."""
        models = [self.model] if self.average is None else [self.model, self.average.module]
        for model in models:
            agree(self.run.accelerator, model)
        accuracy = top1(models[-1], data, self.run.accelerator)
        columns = watch(accuracy)  # by all processes: they may have to evaluate together
        if self.run.track is not None and self.run.accelerator.is_main_process:
            assert position.loss is not None, "an epoch has at least one step"
            rate = float(self.optimizers[0].param_groups[0]["lr"])
            row = {"train/loss": float(position.loss), **columns, "train/lr": rate, "eval/top1": accuracy}
            self.run.track.log(row, stage=self.stage.name, epoch=position.epoch + 1)

    def keep(self, position: Position) -> None:
        """Save everything that the next step depends on; of a finished stage what it has learnt."""
        done = position.epoch == self.stage.epochs and not self.stage.goes_on
        if done and self.average is not None:
            self.average.follow(self.model)
            self.model.load_state_dict(self.average.module.state_dict())
        if self.path is None or not self.run.accelerator.is_main_process:
            return
        state: dict[str, Any] = {
            **vars(position),
            "model": self.model.state_dict(),
            "beside": self.beside.state_dict(),
            "identity": self.run.identity,
            "processes": self.run.accelerator.num_processes,
        }
        if not done:
            scaler = self.run.accelerator.scaler
            state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
            state["scaler"] = None if scaler is None else scaler.state_dict()
            state["average"] = None if self.average is None else self.average.module.state_dict()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.path, state)

    def recall(self, steps: int) -> Position:
        """Go on from the checkpoint, if there is one; the journal, too."""
        position = self._restored(self.path, steps) if self.path is not None and self.path.exists() else Position()
        if self.run.track is not None:
            self.run.track.rewind(self.stage.name, position.epoch)
        return position

    def _restored(self, path: Path, steps: int) -> Position:
        """Put everything back to where ``keep`` found it."""
        average, scaler = None if self.average is None else self.average.module, self.run.accelerator.scaler
        live, length = (
            Live(self.model, self.beside, self.optimizers, average, scaler),
            Length(self.stage.epochs, steps, self.stage.goes_on, self.run.accelerator.num_processes),
        )
        state = restore(path, live, length, self.run.identity)
        if state.processes != length.processes and state.epoch < length.epochs:
            text = f"processes: {state.processes} before, {length.processes} now; a step is one batch of each"
            self.run.bars.say(f"{text}, so {self.stage.name} ends in other numbers than with either")
        return Position(state.epoch, state.step, state.loss)
