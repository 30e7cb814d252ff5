"""Does a calibration still fit this machine? A few of its sub-networks are timed again, and compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.artifact.bounds import Work, bounded
from nas_prune.artifact.origin import Origin
from nas_prune.base.errors import CalibrationError, one_line
from nas_prune.base.fingerprint import fingerprint
from nas_prune.base.random_images import random_images
from nas_prune.base.wider import WIDEST
from nas_prune.costs import Conditions, counted, measure_together
from nas_prune.derivation.derive import derive
from nas_prune.derivation.replace import substitute
from nas_prune.derivation.trace import trace
from nas_prune.derivation.widening import unwidenable, widen
from nas_prune.run.calibration import file as calibration_file
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import Replacement

AGAIN = 8  # sub-networks that are timed again
LEAST_PARTS, PARTS_PER_AXIS = 4_000, 200  # the largest timm models register 3,700, a supernet of cells 120 per axis
NUMBERS = 2**31  # in a model
AGAIN_MADE = "make it again with `nas-prune calibrate`"
FITS = 0.05  # mean difference of their shares of the dense time, beyond that of two timings


def check(path: Path, *, seconds: float = 1.0) -> dict[str, Any]:
    """Time every n-th sub-network of a calibration again, in turn with the dense model.

    Returns the figures. Raises CalibrationError, with the figures, where the file does not fit any more.
    """
    tensors, facts = calibration_file.read(path)
    here = {**facts, "device": fingerprint()}
    model = model_of(path, facts)
    images = random_images(facts["batch_size"], *facts["image"])
    axes = _axes(path, model, images[:1], facts)
    dense = derive(model, axes, Arch())
    known = tensors["share"].tolist()
    numbers = sorted({round(i) for i in torch.linspace(0, len(known) - 1, AGAIN).tolist()})
    off = []
    for number in numbers:
        widths = dict(zip(facts["axes"], tensors["sizes"][number].tolist(), strict=True))
        small = derive(model, axes, Arch({name: range(width) for name, width in widths.items()}))
        place = "cuda" if "accelerator" in facts["device"] and torch.cuda.is_available() else "cpu"
        pair = {"dense": dense.to(place), "small": small.to(place)}
        how = Conditions(**facts["conditions"])
        times = measure_together(pair, images, conditions=how, seconds=seconds, calm={"dense": facts["calm_ms"]})
        off.append(abs(times.ratio("small", "dense").median / known[number] - 1))
    mean = sum(off) / len(off)
    different = list(calibration_file.differences(facts, here))
    figures = {
        "sub-networks": len(off),
        "mean difference": mean,
        "largest difference": max(off),
        "noise": facts["noise"],
    }
    if mean > FITS + facts["noise"]:
        raise CalibrationError(
            f"{path} does not fit this machine any more: the share of the dense model's time that {len(off)} "
            f"sub-networks take is {100 * mean:.1f} % off on average (noise was {100 * facts['noise']:.1f} %)"
            + (f"; {'; '.join(different)}" if different else "")
            + f"; {AGAIN_MADE}"
        )
    return {**figures, "fits": True, "different": "; ".join(different) or "nothing"}


def _axes(path: Path, model: nn.Module, images: Tensor, facts: Mapping[str, Any]) -> Axes:
    """The axes of a model, which gets the units that the search space of its calibration gave it."""
    axes = trace(model, images, stripes=facts["stripes"])
    sizes = _wider(path, axes, facts["axes"])
    if not sizes:
        return axes
    widen(model, axes, sizes)
    return trace(model, images, stripes=facts["stripes"])


def _wider(path: Path, axes: Axes, known: Mapping[str, int]) -> dict[str, int]:
    """The axes to which a search space gave more units, and how many they have then. Raises CalibrationError for those
    that cannot have them, and for more than any model has.
    """
    sizes = {name: size for name, size in known.items() if name in axes and size != axes[name].size}
    for name, size in sizes.items():
        why = unwidenable(axes, name, size)
        why = f"more than {WIDEST} times its {axes[name].size}" if size > WIDEST * axes[name].size else why
        if why is not None:
            raise CalibrationError(f"the calibration {path} is of {size} units of axis {name}: {why}; {AGAIN_MADE}")
    if sizes and counted(axes, {name: float(size) for name, size in sizes.items()}).params > NUMBERS:
        raise CalibrationError(
            f"the calibration {path} is of a model with more than {NUMBERS:.0e} numbers; {AGAIN_MADE}"
        )
    return sizes


def model_of(path: Path, facts: Mapping[str, Any]) -> nn.Module:
    """The model of a file that may be a stranger's, with its choices. Raises CalibrationError for one that reaches for
    other files, or asks for more work than any model."""
    origin = Origin(facts["model"]["name"], facts["model"]["kwargs"])
    rules = [Replacement.model_validate(rule) for rule in facts["replaced"]]
    try:
        with bounded(Work(parts=LEAST_PARTS + PARTS_PER_AXIS * len(facts["axes"]), numbers=NUMBERS)):
            with torch.device("meta"):  # a rehearsal, which allocates nothing
                substitute(origin.build("meta"), rules)
            model = origin.build()
            substitute(model, rules)
    except Exception as error:  # operations, too, may raise anything when their options do not fit
        what = one_line(str(error), 400)
        raise CalibrationError(f"the model of the calibration {path} is not built: {what}") from error
    return model
