"""Torch-Pruning 1.6.1 (https://github.com/VainF/Torch-Pruning): train, prune step by step until the target, fine-tune.

As its own reproduce/main.py does it: global pruning towards a ratio of 1 in 400 steps, until the target is met; the
classifier is left alone. Channels are rounded to 8 where latency is limited, as its README advises, else not at all.
What begins untrained is trained for half of the epochs first, as its ImageNet scripts do with 90 epochs before and 90
after. Importances: examples/transformers/prune_timm_vit.py (Taylor from 10 batches, Hessian from single images, both
with gradients of the dense network, in evaluation mode). Sparse learning: reproduce/scripts/prune/cifar/group_pruner.sh
and bn_pruner.sh (no weight decay meanwhile, and the strength they name), in half of the epochs after the first
training. ``_floor``: every layer keeps 10 % of its channels, which is what PruningBench (arXiv 2406.12315) protects;
main.py's default is no floor, and one script for MobileNetV2 keeps 30 %.

Training, data and fine-tuning are the task's, as for every method.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from torch import nn

from nas_prune.base.errors import BudgetError
from nas_prune.costs import count
from nas_prune.run import build
from nas_prune.train.data.loaders import FirstBatches
from nas_prune.train.data.order import drawing
from nas_prune.train.loop import fit
from nas_prune.train.objective import task_objective
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.stage import Stage

from .cells import Cell
from .task import Outcome, Scene, Task

VERSION, STEPS = "1.6.1", 400
BATCHES, SINGLE = 10, 64  # batches that gradients come from; images of each that are looked at one by one
ROUND_TO = {"macs": None, "latency": 8}
FLOOR = 0.9  # the largest share that a layer may lose, where there is a floor
TIMED = (0.1, 2.0, 2.0)  # seconds of timings that must all be within the target; a single one may be lucky


@dataclass(frozen=True)
class TorchPruning:
    """One of its importances. ``sparse``: strength of its sparse learning; None: there is none."""

    importance: Callable[[Any], Any]
    pruner: str = "BasePruner"
    gradients: Callable[[nn.Module, FirstBatches], None] | None = None
    sparse: float | None = None
    most: float = 1.0

    def has(self, cell: Cell) -> bool:
        """Slimming needs BatchNorm, and sparse learning training."""
        return not (self.pruner == "BNScalePruner" and cell.backbone == "vit") and not (
            self.sparse is not None and cell.setting == "untouched"
        )

    def missing(self) -> str | None:
        """What is to be installed before it can run."""
        return None if find_spec("torch_pruning") else f"pip install torch-pruning=={VERSION}"

    def run(self, task: Task, cell: Cell) -> Outcome:
        """Take the dense network, learn sparsely, prune, fine-tune. Choosing channels counts as training."""
        given, began = task.pretrained(cell), time.process_time()
        model, scene = given.model, given.scene
        sparse = 0 if self.sparse is None else given.left // 2
        with unfused(model):
            pruner = self._pruner(model, scene, ROUND_TO[cell.cost])
            if sparse:
                learn_sparsely(scene, model, pruner, sparse)
            met = goal(task, scene, cell, copy.deepcopy(model).eval())
            if self.gradients is not None:
                self.gradients(model.eval(), FirstBatches(scene.data, BATCHES, torch.device("cpu")))
            with drawing(cell.seed, "torch_pruning"):
                prune(pruner, model.eval(), met)
        return given.finish(model, given.left - sparse, began)

    def _pruner(self, model: nn.Module, scene: Scene, round_to: int | None) -> Any:
        """Its pruner; the mappings are given because its default ones are shared by all pruners of a process."""
        library = import_module("torch_pruning")
        return getattr(library.pruner, self.pruner)(
            model,
            build.example(scene.recipe, scene.data, batch=1),
            importance=self.importance(library.importance),
            global_pruning=True,
            pruning_ratio=1.0,
            iterative_steps=STEPS,
            max_pruning_ratio=self.most,
            round_to=round_to,
            ignored_layers=[model.get_classifier()],  # type: ignore[operator]
            num_heads={each.qkv: each.num_heads for each in attentions(model)},
            in_channel_groups={},
            out_channel_groups={},
            **({} if self.sparse is None else {"reg": self.sparse}),
        )


def learn_sparsely(scene: Scene, model: nn.Module, pruner: Any, epochs: int) -> None:
    """Train with its regularizer, which acts on gradients between the backward pass and the optimizer's step."""
    settings = scene.recipe.dense.model_copy(update={"weight_decay": 0.0})
    optimizer = optimizer_of(model, settings)
    optimizer.register_step_pre_hook(lambda *_: pruner.regularize(model))
    stage = Stage("sparse", epochs, settings, scene.recipe.data)
    fit(scene.run, stage, model, scene.data, task_objective(settings), [optimizer])


def taylor_gradients(model: nn.Module, batches: FirstBatches) -> None:
    """Leave gradients of the loss with the weights."""
    model.zero_grad()
    for images, labels in batches:
        torch.autograd.backward(nn.functional.cross_entropy(model(images), labels))


def squared_gradients(model: nn.Module, batches: FirstBatches) -> None:
    """Leave the sum of squared gradients of single images with the weights.

    That is where GroupHessianImportance looks for it. Its own accumulate_grad forgets all images but the last one
    (1.6.1 looks its sums up by name, and keeps them by parameter), which would not be a fair comparison.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for images, labels in batches:
        for image, label in islice(zip(images, labels, strict=True), SINGLE):
            loss = nn.functional.cross_entropy(model(image[None]), label[None])
            for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                total += gradient.square()
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total


def prune(pruner: Any, model: nn.Module, met: Callable[[nn.Module], bool]) -> None:
    """Prune ``model`` in place, step by step, until it meets the target. Raises BudgetError if it never does."""
    for _ in range(STEPS):
        pruner.step()
        for each in attentions(model):  # what its forward pass knows beside the weights
            each.num_heads = pruner.num_heads[each.qkv]
            each.attn_dim = each.qkv.out_features // 3
            each.head_dim = each.attn_dim // each.num_heads
        if met(model):
            return
    raise BudgetError(f"Torch-Pruning has taken all its {STEPS} steps, and the target is not met")


def goal(task: Task, scene: Scene, cell: Cell, dense: nn.Module) -> Callable[[nn.Module], bool]:
    """Whether a network meets the target of a cell.

    Latency falls no faster than MACs do, so it is only timed from there on.
    """
    one = build.example(scene.recipe, scene.data, batch=1)
    most = cell.share * count(dense, one).macs

    def met(model: nn.Module) -> bool:
        models, runtime = {"dense": dense, "pruned": model}, scene.recipe.latency.runtime
        return count(model, one).macs <= most and (
            cell.cost == "macs" or all(task.share(scene, models, runtime, seconds) <= cell.share for seconds in TIMED)
        )

    return met


def attentions(model: nn.Module) -> list[Any]:
    """timm's attentions, of which Torch-Pruning has to be told the number of heads."""
    return [module for module in model.modules() if hasattr(module, "qkv") and hasattr(module, "attn_dim")]


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Attention written out, as Torch-Pruning traces it."""
    before = [(each, each.fused_attn) for each in attentions(model)]
    for each, _ in before:
        each.fused_attn = False
    try:
        yield
    finally:
        for each, fused in before:
            each.fused_attn = fused


def torch_pruning_methods() -> dict[str, TorchPruning]:
    """Its importances, each without a floor and with one."""
    plain = {
        "tp_random": TorchPruning(lambda known: known.RandomImportance()),
        "tp_magnitude": TorchPruning(lambda known: known.GroupMagnitudeImportance(p=2)),
        "tp_taylor": TorchPruning(lambda known: known.GroupTaylorImportance(), gradients=taylor_gradients),
        "tp_hessian": TorchPruning(lambda known: known.GroupHessianImportance(), gradients=squared_gradients),
        "tp_slimming": TorchPruning(lambda known: known.BNScaleImportance(), "BNScalePruner", sparse=1e-5),
        "tp_group_sparse": TorchPruning(
            lambda known: known.GroupMagnitudeImportance(p=2, normalizer="max"), "GroupNormPruner", sparse=5e-4
        ),
    }
    return plain | {f"{name}_floor": TorchPruning(**{**vars(each), "most": FLOOR}) for name, each in plain.items()}
