"""Calibrate: derive sub-networks for real, time them here, and train the latency predictor on them.

Every sub-network is timed in turn with the dense model and recorded as a share of it, so that a machine that slows
down does not look like a slow network. Each timing is journalled when it is taken: a calibration that was stopped goes
on where it was, and one that is finished is read, not repeated.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas_prune.arch import Arch, allowed_width
from nas_prune.costs import LatencyPredictor, PredictionError, Timing, measure_together
from nas_prune.derivation import derive
from nas_prune.device import fingerprint
from nas_prune.errors import ArtifactError, BudgetError
from nas_prune.files import append_line, read_json, read_lines, write_json, write_lines
from nas_prune.order import seeded
from nas_prune.settings import LatencySettings
from nas_prune.space import SearchSpace

HELD_OUT_EVERY = 4  # one sub-network in four is not trained on
REPEATED = 3  # so many of those are timed again at the end: the noise floor

Progress = Callable[[Iterable[int], str], Iterable[int]]
TimePair = Callable[[Arch], tuple[Timing, Timing]]


@dataclass(frozen=True)
class Calibration:
    """A predictor, what it was trained on, and how wrong it is."""

    predictor: LatencyPredictor
    error: PredictionError
    noise: float
    dense_ms: float
    smallest_ms: float


def calibrate(
    model: nn.Module,
    space: SearchSpace,
    example_inputs: Tensor,
    settings: LatencySettings,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress = lambda steps, _: steps,
) -> Calibration:
    """Time ``settings.samples`` sub-networks of ``model`` and fit a LatencyPredictor; all of it is kept in ``folder``.

    The first sub-network is the smallest of the space: what it takes is the least that any budget can ask for.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def time_pair(arch: Arch) -> tuple[Timing, Timing]:
        pair = {"dense": model, "small": derive(model, space.axes, arch)}
        runtime, seconds, threads = settings.runtime, settings.seconds, settings.threads
        times = measure_together(pair, example_inputs, runtime=runtime, seconds=seconds, threads=threads)
        return times["dense"], times["small"]

    plan = [*range(settings.samples), *range(HELD_OUT_EVERY - 1, settings.samples, HELD_OUT_EVERY)[:REPEATED]]
    arch_of = partial(sample, space, seed=seed, jitter=settings.jitter)
    rows = _measured(plan, arch_of, time_pair, folder / "timings.jsonl", progress)
    dense_ms = float(torch.tensor([row["dense_ms"] for row in rows]).median())
    samples = [row for row in rows if not row["repeat"]]
    predictor = _fitted(space, samples, dense_ms, settings, seed)
    shares, ms = _tensors(predictor, samples, dense_ms)
    held_out = torch.tensor([bool(row["held_out"]) for row in samples])
    error = predictor.error(shares[held_out], ms[held_out])
    result = Calibration(predictor, error, _noise(rows), dense_ms, float(ms[0]))
    _write(result, samples, shares, settings, folder)
    return result


def sample(space: SearchSpace, index: int, *, seed: int, jitter: float) -> Arch:
    """Sub-network number ``index``: the smallest, the half, then one global ratio and a deviation per axis.

    Independent ratios per axis would all be near the middle; a global ratio first reaches both ends. The spread of the
    deviations differs from sample to sample, 0 to twice ``jitter``: a search ends at uneven widths, so they are needed.
    """
    generator = seeded(seed, index)
    ratio = {0: 0.0, 1: 0.5}.get(index, float(torch.rand((), generator=generator)))
    spread = 0.0 if index < 2 else 2 * jitter * float(torch.rand((), generator=generator))
    kept = {}
    for name, axis in space.free.items():
        least = space.minimum[name] / axis.size
        share = ratio + spread * float(torch.randn((), generator=generator))
        width = allowed_width(axis, axis.size * (least + (1 - least) * min(1.0, max(0.0, share))))
        kept[name] = range(max(space.minimum[name], width))
    return Arch(kept)


def read(folder: Path, space: SearchSpace) -> Calibration:
    """A calibration that was finished before."""
    facts = read_json(folder / "calibration.json", ArtifactError)
    predictor = LatencyPredictor({n: a.size for n, a in space.free.items()}, facts["dense_ms"], hidden=facts["hidden"])
    predictor.load_state_dict(load_file(folder / "predictor.safetensors"))
    predictor.requires_grad_(False)
    return Calibration(
        predictor, PredictionError(**facts["error"]), facts["noise"], facts["dense_ms"], facts["smallest_ms"]
    )


def refuse_unreachable(calibration: Calibration, limit: float, space: SearchSpace) -> None:
    """Before any training: raise BudgetError if even the smallest sub-network measured slower than the limit."""
    if calibration.smallest_ms > limit:
        share = calibration.smallest_ms / calibration.dense_ms
        raise BudgetError(
            f"the budget of {limit:.3g} ms cannot be met: the smallest network of search space {space.name} measured "
            f"{calibration.smallest_ms:.3g} ms here ({share:.2f}x of the dense model's {calibration.dense_ms:.3g} ms). "
            f"Ask for at least {share * 1.05:.2f}x, lower `minimum` in the search space, or raise latency.batch_size"
        )


def _measured(
    plan: Sequence[int], arch_of: Callable[[int], Arch], time_pair: TimePair, journal: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Every row of the journal, the missing ones timed now; a number that comes again is a repetition."""
    rows = read_lines(journal, ArtifactError)
    for position in progress(range(len(rows), len(plan)), "timing sub-networks"):
        index = plan[position]
        arch = arch_of(index)
        dense, small = time_pair(arch)
        row = {
            "sizes": {name: len(units) for name, units in arch.kept.items()},
            "share": small.median_ms / dense.median_ms,
            "spread": small.spread,
            "dense_ms": dense.median_ms,
            "held_out": index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1,
            "repeat": index in plan[:position],
            "index": index,
        }
        append_line(journal, row)
        rows.append(row)
    return rows


def _fitted(
    space: SearchSpace, samples: Sequence[dict[str, Any]], dense_ms: float, settings: LatencySettings, seed: int
) -> LatencyPredictor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = LatencyPredictor({n: a.size for n, a in space.free.items()}, dense_ms, hidden=settings.hidden)
    training = [row for row in samples if not row["held_out"]]
    predictor.fit(*_tensors(predictor, training, dense_ms), steps=settings.steps, generator=seeded(seed))
    return predictor


def _tensors(predictor: LatencyPredictor, rows: Sequence[dict[str, Any]], dense_ms: float) -> tuple[Tensor, Tensor]:
    """Shares of units (b n) and milliseconds (b)."""
    return predictor.shares([row["sizes"] for row in rows]), dense_ms * torch.tensor([row["share"] for row in rows])


def _noise(rows: Sequence[dict[str, Any]]) -> float:
    """Mean difference, as a share, between two timings of the same network."""
    first = {row["index"]: row["share"] for row in rows if not row["repeat"]}
    again = [abs(row["share"] / first[row["index"]] - 1) for row in rows if row["repeat"]]
    return float(sum(again)) / max(1, len(again))


def _write(
    result: Calibration, samples: Sequence[dict[str, Any]], shares: Tensor, settings: LatencySettings, folder: Path
) -> None:
    """The files that a report and a later run read."""
    predicted = result.predictor.predict(shares).tolist()
    save_file(result.predictor.state_dict(), folder / "predictor.safetensors")
    write_lines(
        folder / "samples.jsonl",
        [
            {**row, "ms": result.dense_ms * row["share"], "predicted_ms": ms}
            for row, ms in zip(samples, predicted, strict=True)
        ],
    )
    write_json(
        folder / "calibration.json",
        {
            "runtime": settings.runtime,
            "batch_size": settings.batch_size,
            "threads": settings.threads or torch.get_num_threads(),
            "device": fingerprint(),
            "hidden": settings.hidden,
            "dense_ms": result.dense_ms,
            "smallest_ms": result.smallest_ms,
            "error": asdict(result.error),
            "noise": result.noise,
        },
    )
