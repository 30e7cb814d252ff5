"""Do widths, depth and operations decided together beat widths alone, at the same measured latency?

python benchmarks/joint.py [--recipe NAME] [--seeds 0 1 2] [--target 0.5x] [--out FOLDER] [--precision=bf16 ...]

A recipe with space ``operations``, and the same with the space ``channels`` and one gate for all: the same dense
training, steps of search and epochs of fine-tuning; top-1 as derived and fine-tuned. With --out a benchmark that was
stopped goes on, and seeds that were run apart are put together.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nas_prune.run import pipeline
from nas_prune.run.recipe import recipe

RECIPE = "fashion_mnist/resnet18_shapley_operations"  # or fashion_mnist/resnet18_ablation
SPACES = {"widths": ["--space=channels", "--gate.kinds={}"], "together": []}


def main() -> None:
    """A line per space and seed, then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", default="0.5x")
    parser.add_argument("--out", type=Path)
    arguments, more = parser.parse_known_args()
    top1: dict[str, dict[str, list[float]]] = {name: {"derived": [], "finetuned": []} for name in SPACES}
    with tempfile.TemporaryDirectory() as parent:
        for seed in arguments.seeds:
            for name, changes in SPACES.items():
                settings = [f"--seed={seed}", f"--budget.target={arguments.target}", *changes, *more]
                folder = (arguments.out or Path(parent)) / f"{name}-{seed}"
                results: dict[str, Any] = pipeline.run(recipe.read(arguments.recipe, settings), folder)
                for state, values in top1[name].items():
                    values.append(results[state]["top1"])
                print(
                    f"{name:<9} seed {seed}: top-1 {results['dense']['top1']:.2f} % dense, "
                    f"{results['derived']['top1']:.2f} % derived, {results['finetuned']['top1']:.2f} % fine-tuned, "
                    f"measured {results['measured_share']:.3f}x, "
                    f"macs {results['finetuned']['macs'] / results['dense']['macs']:.3f}x",
                    flush=True,
                )
    for name, states in top1.items():
        print(f"{name:<9} {', '.join(f'{state} {spread(values)}' for state, values in states.items())}")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f} %"


if __name__ == "__main__":
    main()
