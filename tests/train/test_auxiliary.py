"""Laws of a loss that brings a head of its own: it learns beside the model, and a run that is stopped goes on."""

import contextlib
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from stops import Stop
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas_prune.base.errors import InterruptedRunError
from nas_prune.methods.losses import Said
from nas_prune.methods.losses.auxiliary import Auxiliary
from nas_prune.train import loop
from nas_prune.train.data import loaders
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.finetune import finetune
from nas_prune.train.loop import Run
from nas_prune.train.record import checkpoint
from nas_prune.train.settings import FinetuneSettings, LossSettings

DATA = DataSettings(name="generated", image_size=8, batch_size=32)
LOSS = LossSettings(name="auxiliary", options={"module": "1"})


def trained(folder: Path, epochs: int = 2, loss: LossSettings = LOSS) -> nn.Module:
    """A small network after epochs of two steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    settings = FinetuneSettings(epochs=epochs, lr=0.05, distill=0.0, recalibrate_batches=0, loss=loss)
    run = Run(Accelerator(cpu=True), 3, folder, identity="test")
    finetune(net, None, loaders.load(DATA, seed=3), settings=settings, run=run)
    return net


def test_the_head_learns_in_the_checkpoint_and_is_no_part_of_the_model(tmp_path: Path) -> None:
    heads: list[dict[str, Tensor]] = []
    plain = trained(tmp_path / "plain", loss=LossSettings()).state_dict()
    for epochs in (1, 2):
        net = trained(tmp_path / str(epochs), epochs)
        state = checkpoint.load(tmp_path / str(epochs) / "checkpoints" / "finetune.ckpt")
        heads.append({name: value for name, value in state["beside"].items() if "head" in name})
    assert net.state_dict().keys() == plain.keys()
    assert not torch.equal(net[0].weight, plain["0.weight"])
    assert not any(module._forward_hooks for module in net.modules())
    assert heads[0].keys() == heads[1].keys()
    assert not torch.equal(heads[0]["objective.loss.head.9.weight"], heads[1]["objective.loss.head.9.weight"])


def test_a_training_that_is_stopped_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: Path, after: int) -> dict[str, Tensor]:
        monkeypatch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(Stop(after)))
        return trained(folder).state_dict()

    whole = run(tmp_path / "whole", 0)
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "stopped", 2)
    torch.testing.assert_close(run(tmp_path / "stopped", 0), whole, rtol=0, atol=0)


@torch.no_grad()
def test_a_batch_of_one_image_is_learnt_without_the_head_and_seen_with_it_in_eval() -> None:
    torch.manual_seed(0)
    loss, maps, logits, labels = Auxiliary(0.0, module="1"), torch.randn(3, 4, 6, 6), torch.randn(3, 5), torch.arange(3)
    loss.begin(nn.Identity(), lambda: Said(logits, {"1": maps}))
    few, one = Said(logits, {"1": maps}), Said(logits[:1], {"1": maps[:1]})
    assert float(loss.train()(few, labels)) > float(cross_entropy(logits, labels))
    torch.testing.assert_close(loss(one, labels[:1]), cross_entropy(logits[:1], labels[:1]))
    assert float(loss.eval()(one, labels[:1])) > float(cross_entropy(logits[:1], labels[:1]))
