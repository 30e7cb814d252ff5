"""The task that every method is given: data, backbones, epochs, how stages train, and how results are measured."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from nas_prune.base.errors import CheckpointError, RecipeError
from nas_prune.base.files import tensors
from nas_prune.base.files.whole import atomic_write
from nas_prune.base.files.yaml_text import read_mapping
from nas_prune.costs import Conditions, Timings, count, measure_together
from nas_prune.run import build
from nas_prune.run.recipe.overrides import flags
from nas_prune.run.recipe.recipe import Recipe, read
from nas_prune.train.data.loaders import Data, load
from nas_prune.train.evaluate import top1
from nas_prune.train.finetune import finetune
from nas_prune.train.loop import Run, fit
from nas_prune.train.objective import task_objective
from nas_prune.train.optimizers import optimizer_of
from nas_prune.train.stage import Stage

from .cells import Cell

HERE = Path(__file__).parent
TRAINING_IMAGES = 28_000  # of glyphs as they are made by default
STAGES = ("dense", "search", "finetune")
QUICK = {"latency.predictor": "additive", "latency.samples": 12, "latency.seconds": 0.02}  # where it decides nothing


@dataclass(frozen=True)
class Outcome:
    """What a method has made of a cell: the network, and what training it took, dense phases included.

    ``seconds``: of a processor, which other work on the machine does not stretch.
    """

    model: nn.Module
    seconds: float
    epochs: int


@dataclass(frozen=True)
class Scene:
    """What the stages of a cell share: the recipe that says how they train, the data, and where they train."""

    recipe: Recipe
    data: Data
    run: Run

    def backbone(self) -> nn.Module:
        """The dense network, with random weights: the same ones for the same seed."""
        build.accelerator(self.recipe)  # seeds every generator
        return build.model(self.recipe.model, self.data)


@dataclass(frozen=True)
class Pretrained:
    """A dense network, the ``seconds`` and ``epochs`` that it took, and how many epochs are ``left`` for the rest."""

    model: nn.Module
    scene: Scene
    seconds: float
    epochs: int
    left: int

    def finish(self, pruned: nn.Module, epochs: int, began: float) -> Outcome:
        """Fine-tune what a method made of it, in the last of its epochs; ``began``: when its own training did."""
        settings = self.scene.recipe.finetune.model_copy(update={"epochs": epochs})
        finetune(pruned, None, self.scene.data, settings=settings, run=self.scene.run, images=self.scene.recipe.data)
        return Outcome(pruned, self.seconds + time.process_time() - began, self.epochs + self.left)


@dataclass(frozen=True)
class Task:
    """``epochs`` of each setting after what it begins with; ``dense_epochs`` of the network that is then pruned.

    ``glyphs``: the folder of the data. ``cache``: where trained dense networks and unfinished runs lie. ``changes``: of
    base.yaml, for all methods.
    """

    glyphs: Path
    cache: Path
    epochs: Mapping[str, int] = field(default_factory=lambda: {"scratch": 8, "tuned": 2, "untouched": 0})
    dense_epochs: int = 8
    seconds: float = 2.0  # of timing a network in one runtime
    changes: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, cell: Cell, changes: Mapping[str, Any]) -> Recipe:
        """base.yaml for a cell, with a method's changes."""
        known = backbones()
        if cell.backbone not in known:
            raise RecipeError(f"unknown backbone {cell.backbone!r}; backbones.yaml has {', '.join(known)}")
        own = known[cell.backbone]
        told = {
            "seed": cell.seed,
            "data.root": str(self.glyphs),
            **{f"model.{key}": value for key, value in own["model"].items()},
            **{f"{stage}.{key}": value for stage in STAGES for key, value in own["training"].items()},
            "budget.cost": cell.cost,
            "budget.target": cell.target,
            **(QUICK if cell.cost == "macs" else {}),
        }
        return read(HERE / "base.yaml", flags({**told, **self.changes, **changes}))

    def scene(self, cell: Cell) -> Scene:
        """What methods that are not a recipe train with."""
        recipe = self.recipe(cell, {})
        data = load(recipe.data, seed=recipe.seed)
        return Scene(recipe, data, Run(build.accelerator(recipe), recipe.seed, pace=build.pace(recipe)))

    def dense(self, cell: Cell, epochs: int) -> tuple[Path, float]:
        """A file of the dense network's weights after so many epochs, and the seconds that its training took.

        It is trained once for a backbone and a seed, as ``scratch`` trains.
        """
        path = self.cache / "dense" / f"{cell.backbone}-{epochs}-{cell.seed}.safetensors"
        if not path.exists():
            scene = self.scene(Cell("scratch", cell.backbone, cell.cost, cell.target, cell.seed, cell.method))
            model, began = scene.backbone(), time.process_time()
            train(scene, "dense", model, epochs)
            told = {"seconds": str(time.process_time() - began)}
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, tensors.content(model.state_dict(), told))
        return path, float(tensors.metadata(path, CheckpointError)["seconds"])

    def trained(self, cell: Cell, scene: Scene, epochs: int) -> tuple[nn.Module, float]:
        """The dense network after so many epochs, and the seconds that its training took."""
        path, seconds = self.dense(cell, epochs)
        model = scene.backbone()
        model.load_state_dict(safetensors.torch.load_file(path))
        return model, seconds

    def pretrained(self, cell: Cell) -> "Pretrained":
        """The dense network that a method of another package prunes: for half of the epochs, where none was trained."""
        scene, own = self.scene(cell), cell.setting == "scratch"
        before = self.epochs[cell.setting] // 2 if own else self.dense_epochs
        model, seconds = self.trained(cell, scene, before)
        return Pretrained(model, scene, seconds, before, self.epochs[cell.setting] - own * before)

    def figures(self, cell: Cell, outcome: Outcome) -> dict[str, float | int]:
        """What the table shows of a cell: costs as shares of the dense network's, timed in turn with it."""
        scene = self.scene(cell)
        models = {"dense": scene.backbone().eval(), "pruned": outcome.model.eval()}
        one = build.example(scene.recipe, scene.data, batch=1)
        macs = {name: count(model, one).macs for name, model in models.items()}
        self.network(cell).parent.mkdir(parents=True, exist_ok=True)
        torch.save(outcome.model, self.network(cell))
        return {
            "top1": round(top1(outcome.model, scene.data, scene.run.accelerator), 3),
            "macs": round(macs["pruned"] / macs["dense"], 4),
            **self.shares(scene, models),
            "seconds": round(outcome.seconds, 1),
            "epochs": outcome.epochs,
        }

    def network(self, cell: Cell) -> Path:
        """The file of the network that came of a cell, so that it can be timed again."""
        return self.cache / "networks" / f"{cell}.pt"

    def latencies(self, cell: Cell) -> dict[str, float]:
        """Those of the network that is kept of a cell, timed again."""
        scene = self.scene(cell)
        pruned: nn.Module = torch.load(self.network(cell), weights_only=False)  # a file of our own
        return self.shares(scene, {"dense": scene.backbone().eval(), "pruned": pruned.eval()})

    def shares(self, scene: Scene, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """By runtime, the latency of ``pruned`` as a share of that of ``dense``."""
        return {runtime: round(self.share(scene, models, runtime), 4) for runtime in ("onnxruntime", "eager")}

    def share(self, scene: Scene, models: Mapping[str, nn.Module], runtime: str, seconds: float | None = None) -> float:
        """The latency of ``pruned`` as a share of that of ``dense``: one thread, timed in turn."""
        how = scene.recipe.latency
        images = build.example(scene.recipe, scene.data, batch=how.batch_size)
        conditions = Conditions(runtime, how.threads)  # type: ignore[arg-type]
        timings: Timings = measure_together(models, images, conditions=conditions, seconds=seconds or self.seconds)
        return timings.ratio("pruned", "dense").median


def backbones() -> dict[str, Any]:
    """Backbone -> what timm builds, and how it trains."""
    return read_mapping(HERE / "backbones.yaml", RecipeError)


def train(scene: Scene, name: str, model: nn.Module, epochs: int) -> None:
    """Train a network in place with the settings of dense training."""
    settings = scene.recipe.dense
    stage = Stage(name, epochs, settings, scene.recipe.data)
    fit(scene.run, stage, model, scene.data, task_objective(settings), [optimizer_of(model, settings)])
