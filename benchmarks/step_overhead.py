"""What a gated training step costs over a plain one: the median of paired ratios, interleaved in one process.

python benchmarks/step_overhead.py [--model NAME ...] [--gate NAME ...] [--rounds 15] [--device cpu] [--threads 1]

Every gate that is registered, ``skeleton`` on stripes, the others on widths, ``mask`` also half closed, and ``weight``
also when as much has been removed as by the middle, and by the end, of a search in rounds for a quarter of the MACs. A
step is forward, loss, backward and SGD; a gated one has a penalty on MACs, too. Steps go plain, gated, plain, gated,
plain, ...: a gated one is divided by the mean of the plain ones before and after it, and of these ratios the median
counts. On a busy machine look at the CPU time: it is of this process alone. Of each model the images (b, px): resnet18
(32, 64), mobilenetv3_small_100 (64, 64), vit_tiny_patch16_224 (8, 224); ``--batch`` and ``--size`` say otherwise. It
takes about two minutes for the first two, and ten for the last.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import timm
import torch
from torch import Tensor, nn

from nas_prune.costs import Budget, Macs
from nas_prune.derivation.regated import gated_again
from nas_prune.derivation.removal import removed
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.schedules.soft_to_hard import ghfp
from nas_prune.methods.selectors.uniform import uniform_widths
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace

Step = Callable[[], None]
Seconds = tuple[float, float]  # on the wall, of the processor
MIDDLE = 1 - 0.75 * ghfp(3, 8).closed  # of the MACs, after four of eight rounds for a quarter of them
MODELS = {"resnet18": (32, 64), "mobilenetv3_small_100": (64, 64), "vit_tiny_patch16_224": (8, 224)}


def stepper(model: nn.Module, images: Tensor, labels: Tensor, penalty: nn.Module | None) -> Step:
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


def steppers(model: str, images: Tensor, names: list[str]) -> dict[str, Step]:
    """The step of the plain model, and of the same model with each gate."""
    device = images.device
    labels = torch.randint(1000, (len(images),), device=device)
    plain = timm.create_model(model).to(device)
    steps = {"plain": stepper(copy.deepcopy(plain), images, labels, None)}
    for gate in (*names, *(["mask, half"] if "mask" in names else [])):
        backbone, striped = copy.deepcopy(plain), gate == "skeleton"
        space = SearchSpace.read("stripes" if striped else "channels", trace(backbone, images[:2], stripes=striped))
        if not space.free:
            continue
        gated = GatedModel(backbone, space, gate.removesuffix(", half")).to(device)
        for name, axis in space.free.items() if gate == "mask, half" else ():
            gated.gate(name).get_buffer("keep")[: axis.size // 2] = 0
        steps[gate] = stepper(gated, images, labels, BudgetPenalty(Budget("0.5x", Macs(space.axes))))
        for share in (MIDDLE, 0.25) if gate == "weight" else ():
            widths = uniform_widths(space, Macs(space.axes), share * float(Macs(space.axes)({})))
            left, _ = gated_again(gated, removed(gated, Arch({name: range(int(w)) for name, w in widths.items()})))
            steps[f"weight, {share:.2f}x"] = stepper(
                left, images, labels, BudgetPenalty(Budget("0.25x", Macs(space.axes)))
            )
    return steps


def timed(step: Step) -> Seconds:
    """Seconds of a step."""
    start, began = time.perf_counter(), time.process_time()
    step()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start, time.process_time() - began


def compared(steps: dict[str, Step], rounds: int) -> tuple[float, dict[str, list[list[float]]]]:
    """Median seconds of a plain step; and of each gate the ratios of every round, [on the wall, of the processor]."""
    plain = steps.pop("plain")
    for step in (plain, *steps.values()):
        step()
    around = [timed(plain)]
    between: dict[str, list[Seconds]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            between[name].append(timed(step))
            around.append(timed(plain))
    means = [[(before + after) / 2 for before, after in zip(*pair, strict=True)] for pair in pairwise(around)]
    ratios: dict[str, list[list[float]]] = {}
    for index, (name, gated) in enumerate(between.items()):
        pairs = list(zip(gated, means[index :: len(steps)], strict=True))
        ratios[name] = [[taken[clock] / mean[clock] for taken, mean in pairs] for clock in (0, 1)]
    return statistics.median(seconds for seconds, _ in around), ratios


def main() -> None:
    """Measure, and print one line per model and gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--gate", nargs="+", default=list(gates), choices=list(gates))
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for model in options.model:
        batch, size = MODELS.get(model, (32, 224))
        batch, size = options.batch or batch, options.size or size
        images = torch.randn(batch, 3, size, size, device=options.device)
        seconds, ratios = compared(steppers(model, images, options.gate), options.rounds)
        print(f"{model}, {batch} images of {size} px, {options.threads} threads: {1e3 * seconds:.0f} ms a plain step")
        for gate, clocks in ratios.items():
            wall, processor = map(statistics.median, clocks)
            low, _, high = statistics.quantiles(clocks[1], n=4)
            spread = f"({low:.3f} to {high:.3f})"
            print(f"{gate:>14}: {wall:.3f}x on the wall, {processor:.3f}x CPU time {spread}", flush=True)


if __name__ == "__main__":
    main()
