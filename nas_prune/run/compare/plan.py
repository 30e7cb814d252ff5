"""The plan of a comparison: its cells, and the recipe of each.

Every method has the same epochs in all. What methods spend on a search that trains nothing (the passes of a criterion),
controls may spend on training: they can have an allowance of epochs more, and the tables name what took longer.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_prune.base.errors import RecipeError, shown
from nas_prune.base.files import lock
from nas_prune.run.compare.cells import DENSE, Cell
from nas_prune.run.compare.methods import Method
from nas_prune.run.job import identity
from nas_prune.run.recipe.overrides import flags
from nas_prune.run.recipe.recipe import Recipe, changed
from nas_prune.tracing.arch import Arch

OWN = ("cells.jsonl", "runs", "comparison.md", "comparison.svg", lock.FILE)  # what a comparison leaves in its folder


@dataclass(frozen=True)
class Plan:
    """``base``: the recipe; ``methods`` by name, those whose widths others take before them; ``out``: for all runs;
    ``allowance``: epochs that controls have more than methods; ``every``: whichever of the methods can go."""

    base: Recipe
    methods: Mapping[str, Method]
    targets: Sequence[str]
    seeds: Sequence[int]
    out: Path
    allowance: int = 0
    every: bool = False

    @property
    def own(self) -> bool:
        """Whether the dense network is trained here, and not given."""
        return not (self.base.model.pretrained or self.base.model.checkpoint)

    @property
    def epochs(self) -> int:
        """What every method may train beyond the dense network that it begins with."""
        return self.base.search.epochs + self.base.finetune.epochs

    def cells(self) -> list[Cell]:
        """All of them, seed by seed: the dense network, methods, then controls."""
        return [cell for seed in self.seeds for cell in (Cell(DENSE, "", seed), *self._of(seed))]

    def _of(self, seed: int) -> Iterator[Cell]:
        ordered = sorted(self.methods, key=lambda name: self.methods[name].control)
        return (Cell(name, target, seed) for target in self.targets for name in ordered)

    def check(self) -> None:
        """Raise RecipeError for what no comparison can be made of; see ``objections`` for single methods."""
        for option, given in (("--methods", self.methods), ("--targets", self.targets)):
            if not given:
                raise RecipeError(f"{option} names nothing; give at least one")
        for target in self.targets:
            if not re.fullmatch(r"[\w.]+", target):
                raise RecipeError(f"--targets: {shown(target)} is to name a folder, too; write it as 0.5x or 5ms")
        strange = sorted(each.name for each in self.out.iterdir() if each.name not in OWN) if self.out.is_dir() else []
        if strange:
            raise RecipeError(f"{self.out} holds something else than a comparison, {strange[0]}; choose another --out")
        if self.own and not self.base.dense.epochs:
            raise RecipeError("dense.epochs is 0 and no weights are given: there is no dense network to begin with")

    def rehearsed(self, name: str) -> list[Recipe]:
        """The recipes of a method, one per target, before anything is run. Raises RecipeError where there is none."""
        method = self.methods[name]
        if method.begins == "random" and not self.own:
            raise RecipeError(
                "it begins with random weights, and the recipe with trained ones, whose epochs nobody knows: leave it "
                "out of --methods"
            )
        return [method.recipe(self.base, self.epochs, {"budget.target": target}) for target in self.targets]

    def identity(self, cell: Cell) -> str:
        """By what a cell knows its own recipe and the files that are given, wherever the folder lies."""
        own = {"model.checkpoint"} if cell.method != DENSE and self.shares(self.methods[cell.method]) else set()
        return identity(self.recipe(cell, Path()), but=own)

    def recipe(self, cell: Cell, out: Path | None = None) -> Recipe:
        """What is run for a cell, in this folder or another one."""
        if cell.method == DENSE:
            longer = {"dense.epochs": self.base.dense.epochs + self.epochs} if self.own else {}
            return changed(self.base, flags({**longer, "dense.baseline": False, "seed": cell.seed}))
        method = self.methods[cell.method]
        told: dict[str, Any] = {"seed": cell.seed, "budget.target": cell.target}
        if self.shares(method):
            told["model.checkpoint"] = str(self.start(cell.seed, out))
        if method.units_of:
            told["search.selector.options"] = {"widths": self._widths(Cell(method.units_of, cell.target, cell.seed))}
        return method.recipe(self.base, self.allowed(method), told)

    def shares(self, method: Method) -> bool:
        """Whether a method begins with the dense network that is trained here."""
        return method.begins == "dense" and self.own

    def start(self, seed: int, out: Path | None = None) -> Path:
        """The file of that network."""
        return (out or self.out.resolve()) / Cell(DENSE, "", seed).folder / "start.safetensors"

    def allowed(self, method: Method) -> int:
        """The epochs of a method, beyond those of the dense network that it begins with."""
        before = self.base.dense.epochs if method.begins == "random" else 0
        return self.epochs + before + (self.allowance if method.control else 0)

    def _widths(self, other: Cell) -> dict[str, int]:
        """The sizes that another method has chosen; none where it has chosen nothing."""
        path = self.out / other.folder / "arch.json"
        return {name: len(units) for name, units in Arch.read(path).kept.items()} if path.exists() else {}
