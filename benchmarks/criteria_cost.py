"""What a criterion costs, as a multiple of one first-order pass (Taylor scores) over the same batches, in one process.

python benchmarks/criteria_cost.py [--model resnet18] [--criterion NAME ...] [--rounds 5] [--device cpu] [--threads 1]

Passes go taylor, other, taylor, other, taylor, ...: each is divided by the mean of the Taylor passes before and after,
and of these ratios the median counts. On a busy machine look at the CPU time: it is of this process alone. By default
every criterion that is registered, with its default options, on resnet18 with ten classes, four batches of 32 images of
32 px, search space channels; one that takes more than ``--most`` times as long (Shapley values, pairs of units)
runs once.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from rich.console import Console

from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.run.report.terminal import terminal_table
from nas_prune.tracing.space import SearchSpace

Seconds = tuple[float, float]  # on the wall, of the processor
UNIT = "taylor"


def timed(pass_: Callable[[], object]) -> Seconds:
    """Seconds of one pass."""
    start, began = time.perf_counter(), time.process_time()
    pass_()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start, time.process_time() - began


def compared(unit: Callable[[], object], other: Callable[[], object], rounds: int, most: float) -> list[Seconds]:
    """The ratios of every round, on the wall and of the processor; of one round where they are above ``most``."""
    unit()
    ratios: list[Seconds] = []
    before = timed(unit)
    for _ in range(rounds + 1):  # the first warms up, and counts if it is the only one
        taken, after = timed(other), timed(unit)
        ratios.append(tuple(2 * each / (a + b) for each, a, b in zip(taken, before, after, strict=True)))
        before = after
        if ratios[-1][1] > most:
            return ratios[-1:]
    return ratios[1:]


def rows(gated: GatedModel, batches: list, options: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """Name, median ratio on the wall, of the processor, and quartiles of the latter."""
    found = []
    for name in options.criterion:
        ratios = compared(
            lambda: criteria[UNIT](gated, batches),
            lambda name=name: criteria[name](gated, batches),
            options.rounds,
            options.most,
        )
        wall, processor = (statistics.median(clock) for clock in zip(*ratios, strict=True))
        spread = statistics.quantiles([each for _, each in ratios], n=4) if len(ratios) > 1 else [processor]
        found.append((name, f"{wall:.2f}x", f"{processor:.2f}x", f"{spread[0]:.2f} to {spread[-1]:.2f}"))
        print(*found[-1], flush=True)
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--criterion", nargs="+", default=list(criteria), choices=list(criteria))
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = timm.create_model(options.model, num_classes=10).to(options.device)
    draw = [torch.randn(options.batch, 3, options.size, options.size) for _ in range(options.batches)]
    batches = [(x.to(options.device), torch.randint(10, (len(x),), device=options.device)) for x in draw]
    gated = GatedModel(model, SearchSpace.read("channels", trace(model, batches[0][0][:2])))
    title = f"{options.model}, {options.batches} x {options.batch} images of {options.size} px, {options.device}"
    table = terminal_table("criterion", "#wall", "#CPU time", "#quartiles", title=f"{title}: times a Taylor pass")
    for row in sorted(rows(gated, batches, options), key=lambda row: float(row[2][:-1])):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
