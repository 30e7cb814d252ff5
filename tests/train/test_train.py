"""Laws of the loop: stopped after any step, once or again and again, a stage ends in the same bytes and rows."""

import contextlib
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from stops import Stop
from torch import nn
from torch.nn import functional

from nas_prune.base.errors import InterruptedRunError
from nas_prune.base.files.whole import read_lines
from nas_prune.methods.losses import Loss, Said
from nas_prune.methods.penalties import Penalty
from nas_prune.train import loop as train
from nas_prune.train.data import loaders as data
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.objective import Objective
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.record.track import Track
from nas_prune.train.settings import OptimSettings
from nas_prune.train.stage import Stage

EPOCHS, STEPS = 2, 3
IMAGES = DataSettings(name="generated", image_size=8, batch_size=8, mixup=0.2, cutmix=0.2, shift=1)
HOW = OptimSettings(lr=0.1, optimizer="adamw", ema_decay=0.9, max_steps=STEPS)


class Weighing(Loss):
    """A loss that learns how much each class counts."""

    def __init__(self, smoothing: float, *, classes: int) -> None:
        super().__init__(smoothing)
        self.weight = nn.Parameter(torch.zeros(classes))

    def forward(self, said: Said, targets: torch.Tensor) -> torch.Tensor:
        each = functional.cross_entropy(said.logits * self.weight.exp(), targets, reduction="none")
        return each.mean() + self.weight.square().sum()


class Fading(Penalty):
    """A penalty that remembers how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, gated: object) -> torch.Tensor:  # noqa: ARG002
        self.asked += 1
        return 1 / self.asked


def fitted(folder: Path, monkeypatch: pytest.MonkeyPatch, *, stop: int = 0) -> dict[str, torch.Tensor]:
    """The weights after a stage with everything that is random in it: mixup, cutmix, shift, dropout, an average."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 64, 10), nn.BatchNorm1d(10))
    loaded = data.load(IMAGES, seed=3)
    monkeypatch.setattr(train, "stop_signals", lambda: contextlib.nullcontext(Stop(stop)))
    torch.rand(stop)  # whatever the process drew before does not matter
    run = train.Run(Accelerator(cpu=True), 3, folder, Track(folder), identity="test")
    stage = Stage("dense", EPOCHS, HOW, IMAGES)
    objective = Objective(Weighing(0.1, classes=10), penalties=[Fading()])
    train.fit(run, stage, model, loaded, objective, [optimizer_of(model, HOW)])
    return {**model.state_dict(), **objective.state_dict()}


def rows(folder: Path) -> list[dict[str, object]]:
    """The journal, times aside."""
    return [{key: value for key, value in row.items() if key != "time"} for row in read_lines(folder / "metrics.jsonl")]


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    """Weights and journal of a stage that nothing stopped."""
    return fitted(tmp_path / "whole", monkeypatch), rows(tmp_path / "whole")


def test_a_stage_stopped_after_any_step_ends_in_the_same_bytes(tmp_path, monkeypatch, whole) -> None:
    looks = EPOCHS * (STEPS + 1)  # after every step, and after every epoch
    for after in range(1, looks + 1):
        folder = tmp_path / str(after)
        with pytest.raises(InterruptedRunError):
            fitted(folder, monkeypatch, stop=after)
        torch.testing.assert_close(fitted(folder, monkeypatch), whole[0], rtol=0, atol=0)
        assert rows(folder) == whole[1], after


def test_a_stage_stopped_after_every_step_ends_in_the_same_bytes(tmp_path, monkeypatch, whole) -> None:
    for _ in range(EPOCHS * STEPS):
        with pytest.raises(InterruptedRunError):
            fitted(tmp_path / "run", monkeypatch, stop=1)
    torch.testing.assert_close(fitted(tmp_path / "run", monkeypatch), whole[0], rtol=0, atol=0)
    assert rows(tmp_path / "run") == whole[1]


def test_a_stage_whose_checkpoint_was_deleted_is_repeated_without_a_trace(tmp_path, monkeypatch, whole) -> None:
    with pytest.raises(InterruptedRunError):
        fitted(tmp_path / "run", monkeypatch, stop=STEPS + 2)
    (tmp_path / "run" / "checkpoints" / "dense.ckpt").unlink()
    torch.testing.assert_close(fitted(tmp_path / "run", monkeypatch), whole[0], rtol=0, atol=0)
    assert rows(tmp_path / "run") == whole[1]


def test_what_the_objective_learns_and_remembers_is_trained_and_kept(whole) -> None:
    assert float(whole[0]["penalties.0.asked"]) == EPOCHS * STEPS
    assert float(whole[0]["loss.weight"].abs().max()) > 0
