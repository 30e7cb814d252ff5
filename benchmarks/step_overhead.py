"""What a gated training step costs, as a ratio of a plain one, interleaved in one process.

python benchmarks/step_overhead.py [--model resnet18] [--size 64] [--batch 64] [--rounds 15] [--device cpu]

Of every gate that is registered; ``skeleton`` on stripes, the others on widths.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from nas_prune.costs import Budget, Macs
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.tracing.space import SearchSpace


def stepper(model: nn.Module, images: Tensor, labels: Tensor, penalty: nn.Module | None) -> Callable[[], None]:
    """One training step: forward, loss, backward, update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        if penalty is not None:
            loss = loss + penalty(model)
        loss.backward()
        optimizer.step()

    return step


def compared(model: str, size: int, batch: int, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of a training step of the plain model and with each gate, one step of each in turn."""
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    plain = timm.create_model(model).to(device)
    steps = {"plain": stepper(copy.deepcopy(plain), images, labels, None)}
    for gate in gates:
        backbone, striped = copy.deepcopy(plain), gate == "skeleton"
        space = SearchSpace.read("stripes" if striped else "channels", trace(backbone, images[:2], stripes=striped))
        gated = GatedModel(backbone, space, gate).to(device)
        penalty = BudgetPenalty(Budget("0.5x", Macs(space.axes)))
        steps[gate] = stepper(gated, images, labels, penalty)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if torch.device(device).type != "cpu":
                torch.accelerator.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure, and print one line per gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"{options.model}, {options.size}x{options.size}, batch {options.batch}, {torch.get_num_threads()} threads")
    seconds = compared(**vars(options))
    for name, value in seconds.items():
        print(f"{name:>14}: {1e3 * value:7.1f} ms a step, {value / seconds['plain']:.3f}x")


if __name__ == "__main__":
    main()
