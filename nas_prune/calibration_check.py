"""Does a calibration still fit this machine? A few of its sub-networks are timed again, and compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_prune import calibration_file
from nas_prune.arch import Arch
from nas_prune.bounds import Work, bounded
from nas_prune.costs import Conditions, measure_together
from nas_prune.derivation import derive
from nas_prune.device import fingerprint
from nas_prune.errors import ArtifactError, CalibrationError
from nas_prune.expressible import trace
from nas_prune.origin import Origin
from nas_prune.space import Replacement
from nas_prune.substitute import substitute

AGAIN = 8  # sub-networks that are timed again
LEAST_PARTS, PARTS_PER_AXIS = 8_000, 200  # a timm model registers up to 4000, a supernet of cells some per axis
FITS = 0.05  # mean difference of their shares of the dense time, beyond that of two timings


def check(path: Path, *, seconds: float = 1.0) -> dict[str, Any]:
    """Time every n-th sub-network of a calibration again, in turn with the dense model.

    Returns the figures. Raises CalibrationError, with the figures, where the file does not fit any more.
    """
    tensors, facts = calibration_file.read(path)
    here = {**facts, "device": fingerprint()}
    model = _built(path, facts)
    images = torch.randn(facts["batch_size"], *facts["image"], generator=torch.Generator().manual_seed(0))
    axes = trace(model, images[:1], stripes=facts["stripes"])
    dense = derive(model, axes, Arch())
    known = tensors["share"].tolist()
    numbers = sorted({round(i) for i in torch.linspace(0, len(known) - 1, AGAIN).tolist()})
    off = []
    for number in numbers:
        widths = dict(zip(facts["axes"], tensors["sizes"][number].tolist(), strict=True))
        small = derive(model, axes, Arch({name: range(width) for name, width in widths.items()}))
        pair = {"dense": dense, "small": small}
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
            + "; make it again with `nas-prune calibrate`"
        )
    return {**figures, "fits": True, "different": "; ".join(different) or "nothing"}


def _built(path: Path, facts: Mapping[str, Any]) -> nn.Module:
    """The model of a file that may be a stranger's: names and arguments that reach for other files are refused."""
    origin = Origin(facts["model"]["name"], facts["model"]["kwargs"])
    try:
        with bounded(Work(parts=LEAST_PARTS + PARTS_PER_AXIS * len(facts["axes"]), numbers=2**31)):
            origin.build("meta")
            model = origin.build()
            substitute(model, [Replacement.model_validate(rule) for rule in facts["replaced"]])
    except ArtifactError as error:
        raise CalibrationError(f"the model of the calibration {path} is not built: {error}") from error
    return model
