"""torch-dag 0.1.3 (https://github.com/TCLResearchEurope/torch-dag): a learnt mask on every channel.

As its resources/pruning_readme.md does it: convert, insert masks, train weights and masks together under its losses of
FLOPs, entropy and distortion with their default weights, remove channels, fine-tune. It advises Adam at 1e-4 for 50000
steps and more, which no cell has; so the masks' rate is such that rate times steps are the same, and the weights are
trained as in every method. Of the epochs after the dense training, half are with masks.

It limits FLOPs alone. It is made for torch 2.1 and timm 0.9; with today's, ResNets and MobileNets go through it, and
ViTs do not: of timm's attention it makes a graph whose inputs are x, attn_mask and is_causal.
"""

import time
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.base.errors import BudgetError
from nas_prune.costs import count
from nas_prune.methods.penalties import Penalty
from nas_prune.run import build
from nas_prune.train.loop import fit, steps_of
from nas_prune.train.objective import Objective, task_loss
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.stage import Stage

from .cells import Cell
from .task import Outcome, Scene, Task

WAY = 1e-4 * 50_000  # rate times steps, as it advises
OVER = 1.05  # times the target: above this, it has not been met


@dataclass(frozen=True)
class TorchDag:
    """Its channel pruning."""

    def has(self, cell: Cell) -> bool:
        """It limits FLOPs, and its masks need training."""
        return cell.cost == "macs" and cell.backbone != "vit" and cell.setting != "untouched"

    def missing(self) -> str | None:
        """What is to be installed before it can run; its own requirements would bring an older torch."""
        lacking = any(find_spec(name) is None for name in ("torch_dag", "fvcore", "graphviz"))
        return "pip install fvcore graphviz && pip install --no-deps torch-dag==0.1.3" if lacking else None

    def run(self, task: Task, cell: Cell) -> Outcome:
        """Take the dense network, learn its masks, remove channels, fine-tune."""
        given, began = task.pretrained(cell), time.process_time()
        scene, masking = given.scene, given.left // 2
        one = build.example(scene.recipe, scene.data, batch=1)
        macs = count(given.model, one).macs
        pruned = masked(scene, given.model.eval(), cell.share, masking)
        reached = count(pruned, one).macs / macs
        if reached > OVER * cell.share:
            raise BudgetError(f"after {masking} epochs of masks torch-dag was at {reached:.2f}x of the MACs")
        return given.finish(pruned, given.left - masking, began)


def masked(scene: Scene, model: nn.Module, share: float, epochs: int) -> nn.Module:
    """The network with the channels that its masks have left, after they were trained for so many epochs."""
    library, algorithms = import_module("torch_dag"), import_module("torch_dag_algorithms").pruning
    settings = scene.recipe.dense
    stage = Stage("masks", epochs, settings, scene.recipe.data)
    steps = epochs * steps_of(scene.data.train, stage)
    shape = build.example(scene.recipe, scene.data, batch=1).shape[1:]
    graph = library.build_from_unstructured_module(model)
    pruning = algorithms.ChannelPruning(graph, tuple(shape), pruning_proportion=share, num_training_steps=steps)
    trained: nn.Module = pruning.prepare_for_pruning()
    masks = [
        parameter for orbit in set(algorithms.get_orbits_dict(trained).values()) for parameter in orbit.parameters()
    ]
    for parameter in masks:
        parameter.requires_grad_(False)
    optimizers = [optimizer_of(trained, settings)]  # of the weights: what asks for no gradient is left out
    for parameter in masks:
        parameter.requires_grad_()
    optimizers.append(torch.optim.Adam(masks, lr=WAY / steps))
    objective = Objective(task_loss(settings), penalties=[MaskLosses(pruning)])
    fit(scene.run, stage, trained, scene.data, objective, optimizers)
    removed: nn.Module = pruning.remove_channels()
    if removed.output_vertex is None:
        raise BudgetError(f"in {epochs} epochs torch-dag's masks have closed a whole layer, and so the network")
    return removed


class MaskLosses(Penalty):
    """torch-dag's losses of FLOPs, entropy and distortion, of the forward pass of the same step."""

    def __init__(self, pruning: Any) -> None:
        super().__init__()
        self._pruning = (pruning,)  # in a tuple: the network is no part of this module
        self.step = 0

    def forward(self, gated: object) -> Tensor:  # noqa: ARG002
        """Their sum, ()."""
        _, *losses = self._pruning[0].compute_current_proportion_and_pruning_losses(global_step=self.step)
        self.step += 1
        total: Tensor = sum(losses, torch.zeros(()))
        return total
