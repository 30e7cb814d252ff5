"""Pruning methods side by side: ours, and those of other packages, on one task, at one cost, from the same seeds.

python benchmarks/peers.py --glyphs FOLDER [--settings scratch tuned untouched] [--backbones resnet18_half ...]
                           [--costs macs latency] [--targets 0.5x 0.25x 0.1x] [--seeds 0 1 2] [--methods uniform ...]
                           [--minutes 60] [--list]         (cells that are left; each adds a line to --out)
python benchmarks/peers.py --glyphs FOLDER --time          (all networks once more, when nothing else runs)
python benchmarks/peers.py --report                        (the tables in docs/benchmarks.md, and the drawings)

A cell is a method in a setting on a backbone at a target with a seed. A run that is stopped loses the cell it was at;
the same command goes on there. Settings: `scratch`, 8 epochs in all; `tuned`, 2 epochs in all from a dense network that
was trained for 8; `untouched`, that network pruned, and only its BatchNorm statistics estimated anew.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from peers_parts.cells import COSTS, SETTINGS, Cell, Results, cells_of
from peers_parts.chart import write_charts
from peers_parts.ours import Dense, recipe_methods
from peers_parts.table import write_tables
from peers_parts.task import Outcome, Task, backbones
from peers_parts.torch_dag_method import TorchDag
from peers_parts.torch_pruning_methods import torch_pruning_methods

from nas_prune.base.errors import (
    DataError,
    InterruptedRunError,
    InUseError,
    NasPruneError,
    RuntimeMissingError,
    StorageError,
    first_line,
)
from nas_prune.base.registry import hint

# what is no method's fault ends the run
STOPPING = (InterruptedRunError, StorageError, InUseError, DataError, RuntimeMissingError)
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


class Method(Protocol):
    """A way to a smaller network."""

    def has(self, cell: Cell) -> bool:
        """Whether it has a meaning there."""

    def missing(self) -> str | None:
        """What is to be installed before it can run."""

    def run(self, task: Task, cell: Cell) -> Outcome:
        """Train and prune; BudgetError where the target cannot be met."""


def main() -> int:
    """The exit code: 0, or that of the error that is told."""
    arguments = asked()
    try:
        results, known = Results(arguments.out / "cells.jsonl"), methods()
        if arguments.report:
            write_tables(PAGE, results.rows, known)
            write_charts(arguments.out, results.rows)
            return 0
        cells = wanted(arguments, known)
        if arguments.list:
            print("\n".join(map(str, results.left(cells))))
            return 0
        check(arguments, known)
        glyphs = arguments.glyphs if arguments.glyphs.is_dir() else arguments.glyphs.parent
        task = Task(glyphs.resolve(), arguments.cache or arguments.out / "cache")
        if arguments.time:
            time_again(task, cells, results)
        else:
            run(task, cells, results, known, minutes=arguments.minutes)
    except NasPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def methods() -> dict[str, Method]:
    """Every method by its name."""
    return {"dense": Dense(), **recipe_methods(), **torch_pruning_methods(), "torch_dag": TorchDag()}


def asked() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glyphs", type=Path, help="the folder that benchmarks/glyphs.py has made, or its file")
    parser.add_argument("--out", type=Path, default=PAGE.parent / "peers", help="folder of cells.jsonl")
    parser.add_argument("--cache", type=Path, help="folder of dense networks and unfinished runs; OUT/cache by default")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--backbones", nargs="+", choices=list(backbones()), default=list(backbones()))
    parser.add_argument("--costs", nargs="+", choices=COSTS, default=COSTS)
    parser.add_argument("--targets", nargs="+", default=["0.5x", "0.25x", "0.1x"], help="shares of the dense network")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="all by default")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--list", action="store_true", help="name the cells that are left, and run none")
    parser.add_argument("--time", action="store_true", help="time again what was timed beside other work")
    parser.add_argument("--report", action="store_true", help="write the tables into docs/benchmarks.md")
    return parser.parse_args()


def wanted(arguments: argparse.Namespace, known: Mapping[str, Method]) -> list[Cell]:
    """The cells that the command line asks for, without those that have no meaning. NasPruneError for unknown words."""
    names = arguments.methods or list(known)
    for name in names:
        if name not in known:
            raise NasPruneError(f"unknown method {name!r}{hint(name, known)}")
    for target in arguments.targets:
        if not target.endswith("x") or not 0 < _number(target[:-1]) < 1:
            raise NasPruneError(f"--targets: {target!r} is no share of the dense network; write 0.25x")
    words = (arguments.settings, arguments.backbones, arguments.costs, arguments.targets, arguments.seeds, names)
    return [cell for cell in cells_of(words) if known[cell.method].has(cell)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def check(arguments: argparse.Namespace, known: Mapping[str, Method]) -> None:
    """Raise for what would stop the run later: no data, or a package that is not installed."""
    if arguments.glyphs is None:
        raise NasPruneError("--glyphs FOLDER is needed; python benchmarks/glyphs.py FOLDER makes it")
    for name in arguments.methods or known:
        lacking = known[name].missing()
        if lacking is not None:
            raise RuntimeMissingError(f"the method {name} needs a package: {lacking}; or name --methods without it")


def run(
    task: Task, cells: Sequence[Cell], results: Results, known: Mapping[str, Method], *, minutes: float = float("inf")
) -> None:
    """Run the cells that are left, one after the other, and keep what came of each as it comes."""
    began, left = time.monotonic(), results.left(cells)
    for number, cell in enumerate(left):
        if time.monotonic() - began >= 60 * minutes:
            print(f"{len(left) - number} cells are left; the same command goes on")
            return
        about = results.minutes(left[number:])
        print(f"{len(left) - number} left{'' if about is None else f', about {about:.0f} min'}: {cell}", flush=True)
        found = tried(task, cell, known[cell.method])
        results.add(cell, found)
        print(f"  {found['failed'] or told(found)}", flush=True)


def time_again(task: Task, cells: Sequence[Cell], results: Results) -> None:
    """Time the networks whose files are there and which were not timed like this before; a line of results for each."""
    for cell in cells:
        row = results.of(cell)
        if row is not None and not row.get("timed_alone") and task.network(cell).exists():
            found = {**row, **task.latencies(cell), "timed_alone": True}
            results.add(cell, found)
            print(f"{cell}\n  {told(found)}", flush=True)


def tried(task: Task, cell: Cell, method: Method) -> dict[str, Any]:
    """What came of a cell: figures, or why there are none. Another package's errors are results, too."""
    began = time.perf_counter()
    try:
        figures: dict[str, Any] = {"failed": None, **task.figures(cell, method.run(task, cell))}
    except STOPPING:
        raise
    except Exception as error:
        traceback.print_exc()
        figures = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        figures |= dict.fromkeys(("top1", "macs", "onnxruntime", "eager", "seconds", "epochs"))
    return {"took": round(time.perf_counter() - began, 1), **figures}


def told(found: Mapping[str, Any]) -> str:
    """A cell's figures in a line."""
    return (
        f"top-1 {found['top1']:.2f} %, MACs {found['macs']:.3f}x, ONNX Runtime {found['onnxruntime']:.3f}x, "
        f"eager {found['eager']:.3f}x, {found['seconds']:.0f} CPU s of training, {found['took']:.0f} s in all"
    )


if __name__ == "__main__":
    sys.exit(main())
