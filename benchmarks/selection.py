"""Does a solver choose better widths than a plain threshold? The same scores, cut to the same limits by each selector.

python benchmarks/selection.py [--recipe digits/w_gates] [--criterion taylor] [--seeds 3] [--targets 0.7x 0.5x 0.3x]

The recipe is trained once per seed and selector up to its scores (a run is the same whatever its selector is), then
derived at every target: top-1 as derived, with BatchNorm statistics taken anew, and after the recipe's fine-tuning.
Mean over the seeds, with their standard deviation.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

from nas_prune.run import pipeline
from nas_prune.run.recipe import recipe


def derived(arguments: argparse.Namespace, selector: str, seed: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Target -> top-1 as derived, and fine-tuned, in percent."""
    changes = [f"--seed={seed}", f"--search.selector={selector}", f"--budget.cost={arguments.cost}"]
    changes += ["--budget.target=0.9x", "--track.wandb=disabled"]
    if arguments.criterion != "none":
        changes += [f"--search.criterion={arguments.criterion}", "--search.warmup=0", "--search.joint=0"]
    pipeline.run(recipe.read(arguments.recipe, changes), folder, until="search")
    rows = pipeline.derive_many(folder, arguments.targets, tune=True)["targets"]
    return {row["target"]: (row["top1"], row["top1_finetuned"]) for row in rows}


def figure(values: list[float]) -> str:
    """Mean and standard deviation."""
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"


def main() -> None:
    """A line per selector and target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits/w_gates")
    parser.add_argument("--criterion", default="taylor", help="or none: the recipe's gates")
    parser.add_argument("--selectors", nargs="+", default=["ranked", "optimal"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=["0.7x", "0.5x", "0.3x"])
    parser.add_argument("--cost", default="macs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        found = {
            selector: [
                derived(arguments, selector, s, Path(parent) / f"{selector}-{s}") for s in range(arguments.seeds)
            ]
            for selector in arguments.selectors
        }
    print(f"{arguments.recipe}, scores: {arguments.criterion}, cost: {arguments.cost}, {arguments.seeds} seeds")
    print(f"{'selector':<10} {'target':>7} {'as derived':>15} {'fine-tuned':>15}")
    for target in arguments.targets:
        for selector, runs in found.items():
            before, after = zip(*(run[target] for run in runs), strict=True)
            print(f"{selector:<10} {target:>7} {figure(list(before)):>15} {figure(list(after)):>15}")


if __name__ == "__main__":
    main()
