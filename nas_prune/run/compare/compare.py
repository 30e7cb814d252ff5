"""The comparison at work: cell by cell, each a run in a folder of its own, all of a seed from one dense network."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas_prune.base.errors import (
    BudgetError,
    CheckpointError,
    NasPruneError,
    RecipeError,
    first_line,
)
from nas_prune.base.files import tensors
from nas_prune.base.files.lock import locked
from nas_prune.base.files.whole import atomic_write, writing
from nas_prune.run import build, pipeline
from nas_prune.run.compare.cells import DENSE, Cell, Journal, Row, figures, latest
from nas_prune.run.compare.objections import STOPPING, objections
from nas_prune.run.compare.plan import Plan
from nas_prune.run.job import check_folder
from nas_prune.run.recipe.overrides import flags
from nas_prune.run.recipe.recipe import Recipe, changed
from nas_prune.run.steps import train_dense
from nas_prune.train.evaluate import top1


def compare(plan: Plan, say: Callable[[str], None], *, again: bool = False) -> list[Row]:
    """Run the cells that are left; ``again``: those that have failed, too. Returns the rows of the whole plan.

    Raises RecipeError where the folder holds another comparison, or a method that is named cannot go, InUseError where
    another process runs in the folder.
    """
    plan.check()
    against = objections(plan, _left(plan, again=again))
    for name, why in against.items():
        say(f"{name} cannot go: {why}")
    with writing(plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
    with locked(plan.out):
        journal, cells = Journal(plan.out / "cells.jsonl"), plan.cells()
        began, ran = time.monotonic(), 0
        for number, cell in enumerate(cells):
            identity = plan.identity(cell)
            if journal.done(cell, identity, again=again):
                continue
            pace = (time.monotonic() - began) / ran if ran else 0.0
            left = f", about {pace * (len(cells) - number) / 60:.0f} min left" if ran else ""
            say(f"[{number + 1}/{len(cells)}] {cell}{left}")
            journal.add(_tried(plan, cell, identity, against.get(cell.method)))
            say(f"    {told(journal.rows[-1])}")
            ran += 1
    asked = {(cell.method, cell.target, cell.seed) for cell in cells}
    return [row for row in latest(journal.rows) if (row.method, row.target, row.seed) in asked]


def told(row: Row) -> str:
    """A row as a line."""
    if row.top1 is None:
        return f"{row.status}: {row.message}"
    share = f", measured latency {row.latency:.3f}x" if row.latency else ""
    return f"{row.status}: top-1 {row.top1:.2f} %, MACs {row.macs:.3f}x{share}, {row.seconds:.0f} s of training"


def _left(plan: Plan, *, again: bool) -> set[str]:
    """The methods that have cells to be run. Raises RecipeError where one was run, or begun, with another recipe."""
    journal, found = Journal(plan.out / "cells.jsonl"), set[str]()
    for cell in plan.cells():
        if not journal.done(cell, plan.identity(cell), again=again):
            found.add(cell.method)
            folder = _folder(plan, cell)
            if folder.exists():
                check_folder(build.resolved(plan.recipe(cell)), folder, resume=True, force=False)
    return found


def _folder(plan: Plan, cell: Cell) -> Path:
    """Where a cell is run."""
    return plan.out / cell.folder / "whole" if cell.method == DENSE else plan.out / cell.folder


def _tried(plan: Plan, cell: Cell, identity: str, against: str | None) -> Row:
    """What came of a cell: figures, or why there are none; ``against``: why it cannot be run."""
    kept: dict[str, Any] = {"method": cell.method, "target": cell.target, "seed": cell.seed, "recipe": identity}
    if against is not None:
        return Row(**kept, status="failed", message=against)
    recipe = plan.recipe(cell)
    try:
        return Row(**kept, **(_dense if cell.method == DENSE else _run)(plan, cell, recipe))
    except BudgetError as error:
        return Row(**kept, status="infeasible", message=first_line(error))
    except STOPPING:
        raise
    except NasPruneError as error:
        return Row(**kept, status="failed", message=first_line(error))


def _run(plan: Plan, cell: Cell, recipe: Recipe) -> dict[str, Any]:
    """Run a method's recipe in its folder, or go on with it; its figures."""
    method = plan.methods[cell.method]
    if method.units_of and not recipe.search.selector.options["widths"]:
        raise RecipeError(f"it takes the widths of {method.units_of}, and that has come to none")
    shared = plan.shares(method)
    before = _started(plan, cell.seed) if shared else 0.0
    results = pipeline.run(recipe, _folder(plan, cell))
    spent = {step: results["seconds"].get(step, 0.0) for step in ("dense", "search", "finetune")}
    scored = 0.0 if recipe.search.epochs else spent["search"]
    return figures(results) | {
        "status": results["status"],
        "message": str(results.get("short") or ""),
        "scored": scored,
        "seconds": before + sum(spent.values()) - scored,
        "epochs": recipe.search.epochs + recipe.finetune.epochs + plan.base.dense.epochs * shared,
    }


def _dense(plan: Plan, cell: Cell, recipe: Recipe) -> dict[str, Any]:
    """Train the dense network for as long as all train; its figures."""
    with pipeline.opened(recipe, _folder(plan, cell)) as job:
        with job.timed("dense"):
            train_dense(job)
        found = top1(job.model, job.data, job.run.accelerator)
        spent = job.seconds["dense"]
    shares = dict.fromkeys(("latency", "macs", "params"), 1.0)
    epochs = recipe.dense.epochs if plan.own else 0
    return {"status": "met", "derived": found, "top1": found, "seconds": spent, "epochs": epochs, **shares}


def _started(plan: Plan, seed: int) -> float:
    """The seconds that the dense network took which methods begin with; it is trained unless it is there."""
    path = plan.start(seed)
    if not path.exists():
        recipe = changed(plan.base, flags({"dense.baseline": False, "seed": seed}))
        with pipeline.opened(recipe, path.parent / "start") as job:
            with job.timed("dense"):
                train_dense(job)
            facts = {"seconds": str(job.seconds["dense"])}
            atomic_write(path, tensors.content(job.model.state_dict(), facts))
    return float(tensors.metadata(path, CheckpointError)["seconds"])
