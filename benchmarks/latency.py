"""Is a latency target in milliseconds predicted and met? On one model and runtime after the other, in one run.

python benchmarks/latency.py [--model resnet18:64 ...] [--runtime eager ...] [--samples 200] [--targets 20]

For each: sub-networks are timed and the best predictor is fitted (how long that takes, how wrong it is on networks that
it has not seen, beside how much two timings of one network differ); random targets, from 0.2x or the smallest network
to 0.9x, are met by select, derive, measure, adjust; then each derived network is timed in turn with the dense one, five
times, in a fresh process of its own. Last, per model, the slopes of the monotone predictor at 10,000 random points, and
what a predictor adds to a training step.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from nas_prune.base.errors import BudgetError
from nas_prune.base.files.documents import read_document
from nas_prune.costs import Budget, Conditions, measure_together, predictors
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.methods.selectors import Question, selectors
from nas_prune.run.calibration.calibrate import Calibration, calibrate
from nas_prune.run.calibration.settings import LatencySettings
from nas_prune.run.files import CalibrationPage
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.choose import meet

TIMINGS = 5  # in a fresh process; their median counts
MODELS, RUNTIMES = ("resnet18:64", "mobilenetv3_small_100:96"), ("eager", "onnxruntime", "openvino")
HEAD = f"{'model':<24} {'runtime':<12} {'min':>5} {'predictor':<10} {'MAPE':>7} {'Kendall':>8} {'noise':>7} {'met':>11}"


def prepared(spec: str, batch: int, device: str = "cpu") -> tuple[nn.Module, SearchSpace, Tensor]:
    """A model with 10 classes, the space ``channels`` over it, and a batch of images; the same ones every time."""
    torch.manual_seed(0)
    name, _, size = spec.partition(":")
    model = timm.create_model(name, num_classes=10).eval().to(device)
    images = torch.randn(batch, 3, int(size), int(size)).to(device)
    return model, SearchSpace.read("channels", trace(model, images[:1])), images


def settings(runtime: str, arguments: argparse.Namespace) -> LatencySettings:
    """How everything here is timed."""
    asked = {"runtime": runtime, "samples": arguments.samples, "seconds": arguments.seconds, "threads": 1}
    return LatencySettings.model_validate({**asked, "batch_size": arguments.batch})


def share(dense: nn.Module, small: nn.Module, images: Tensor, conditions: Conditions, calm_ms: float) -> float:
    """The share of the dense model's time that a small one takes.

    Of new copies, alone in memory: where tensors lie is worth some percent of a small model's time.
    """
    pair = {"dense": dense, "small": small}
    times = measure_together(pair, images, conditions=conditions, seconds=0.5, calm={"dense": calm_ms})
    return times.ratio("small", "dense").median


def met(
    model: nn.Module,
    space: SearchSpace,
    images: Tensor,
    calibration: Calibration,
    conditions: Conditions,
    wanted: float,
) -> Arch | None:
    """The architecture that measures within a share of the dense model's time, by random scores."""
    generator = torch.Generator().manual_seed(round(1e6 * wanted))
    scores = {name: torch.rand(axis.size, generator=generator) for name, axis in space.free.items()}

    def cost(arch: Arch) -> float:
        small = derive(model, space.axes, arch)
        return calibration.dense_ms * share(model, small, images, conditions, calibration.calm_ms)

    budget = Budget(f"{wanted:.4f}x", calibration.predictor)
    try:
        return meet(Question(scores, budget.cost, budget.limit, space), selectors["optimal"], cost).arch
    except BudgetError as error:
        print(f"  {wanted:.3f}x: {error}")
        return None


def again(spec: str, batch: int, conditions: Conditions, path: Path) -> None:
    """In a fresh process: the share that a derived network takes, the median of TIMINGS, on standard output.

    A process per network, as in deployment: in one that held all twenty, small ones took up to 4 % longer.
    """
    model, space, images = prepared(spec, batch)
    calm_ms = read_document(path.parent / "calibration.json", CalibrationPage)["calm_ms"]
    small = derive(model, space.axes, Arch.read(path))
    print(median(share(model, small, images, conditions, calm_ms) for _ in range(TIMINGS)))


def one(spec: str, runtime: str, arguments: argparse.Namespace) -> None:
    """One line of the table."""
    how = settings(runtime, arguments)
    conditions = Conditions(how.runtime, how.threads)
    model, space, images = prepared(spec, how.batch_size)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(arguments.targets, generator=generator).tolist()
    with tempfile.TemporaryDirectory() as parent:
        folder, start = Path(parent), time.monotonic()
        calibration = calibrate(model, space, images, how, folder, about={"name": spec, "kwargs": {"num_classes": 10}})
        minutes = (time.monotonic() - start) / 60
        least = max(0.2, 1.05 * calibration.smallest_ms / calibration.dense_ms)
        wanted = [least + (0.9 - least) * each for each in drawn]
        found = [met(model, space, images, calibration, conditions, each) for each in wanted]
        words = [sys.executable, __file__, "--model", spec, "--runtime", runtime, "--batch", str(arguments.batch)]
        shares = []
        for number, arch in enumerate(found):
            path = folder / f"arch-{number:02d}.json"
            (arch or Arch()).write(path)
            shares.append(float(subprocess.check_output([*words, "--again", str(path)], text=True)))
    off = [real / target - 1 for real, target in zip(shares, wanted, strict=True)]
    allowed = max(0.03, calibration.noise)
    error, kept = calibration.error, sum(excess <= allowed for excess in off)
    print(
        f"{spec:<24} {runtime:<12} {minutes:5.1f} {calibration.name:<10} {error.mape:7.2%} {error.kendall:8.3f} "
        f"{calibration.noise:7.2%} {kept:>5} of {len(off):<3}",
        flush=True,
    )
    others = ", ".join(f"{name} {e.mape:.2%} (Kendall {e.kendall:.3f})" for name, e in calibration.errors.items())
    print(f"  predictors: {others}; smallest network {calibration.smallest_ms / calibration.dense_ms:.3f}x")
    print(f"  measured against target in a fresh process: {min(off):+.1%} to {max(off):+.1%}", flush=True)


def slopes(spec: str) -> None:
    """Negative partial derivatives of the monotone predictor at random points, fitted to random times."""
    _, space, _ = prepared(spec, 1)
    generator = torch.Generator().manual_seed(0)
    predictor: Any = predictors["monotone"](space.axes, 10.0, None)
    shares = torch.rand(200, len(space.free), generator=generator)
    predictor.fit(shares, 2 + 8 * shares.square().mean(1), generator=generator)
    points = (0.05 + 0.95 * torch.rand(10_000, len(space.free), generator=generator)).requires_grad_()
    (slope,) = torch.autograd.grad(predictor.predict(points).sum(), points)
    print(f"monotone predictor of {spec}: {int((slope < 0).sum())} negative of {slope.numel()} slopes at 10,000 points")


def overhead(spec: str, rounds: int = 20) -> None:
    """A predictor's forward and backward pass, as a share of a plain training step (batch 64)."""
    model, space, images = prepared(spec, 64)
    labels = torch.arange(64) % 10
    sizes = {name: torch.tensor(float(axis.size), requires_grad=True) for name, axis in space.free.items()}
    took: dict[str, list[float]] = {}
    made = {name: factory(space.axes, 10.0, None) for name, factory in predictors.items()}
    for _ in range(rounds):
        start = time.perf_counter()
        nn.functional.cross_entropy(model.train()(images), labels).backward()
        took.setdefault("step", []).append(time.perf_counter() - start)
        for name, predictor in made.items():
            start = time.perf_counter()
            predictor(sizes).backward()
            took.setdefault(name, []).append(time.perf_counter() - start)
    middle = {name: sorted(times)[len(times) // 2] for name, times in took.items()}
    shares = ", ".join(f"{name} {middle[name] / middle['step']:.2%}" for name in made)
    print(f"forward and backward of a predictor, share of a training step of {spec} (batch 64): {shares}")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--runtime", nargs="+", default=RUNTIMES)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.3, help="on timing each sub-network")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--again", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.again is not None:
        again(arguments.model[0], arguments.batch, Conditions(arguments.runtime[0], 1), arguments.again)
        return
    print(f"batch {arguments.batch}, one thread, float32, {arguments.samples} sub-networks\n{HEAD}")
    for spec in arguments.model:
        for runtime in arguments.runtime:
            one(spec, runtime, arguments)
    for spec in arguments.model:
        slopes(spec)
        overhead(spec)


if __name__ == "__main__":
    main()
