"""What holds for one model (traced, gated equals derived, saved, loaded, exported): a row of the coverage table.

Everything is tried for real on the smallest model of each of timm's model modules (``zoo.json``), with random weights:
whether it holds does not depend on what a model has learnt.
"""

import copy
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from nas_prune.artifact import folder as artifact
from nas_prune.base.errors import ExactnessError
from nas_prune.base.random_images import random_images
from nas_prune.costs import Macs, Params, count, counted
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import TOLERANCE, allowed, control_error, eager_error
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.capture import output_tensors
from nas_prune.tracing.oracle import compare, perturbed

KEEPS = ((0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (0.5, 0.5))  # of the units, and of the residual branches


@dataclass(frozen=True)
class Case:
    """A model of the table: its timm module, its name, image size (c, h, w), and arguments that make it smaller."""

    module: str
    model: str
    size: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def cases() -> dict[str, Case]:
    """The smallest model of each timm module, by module."""
    known = json.loads((Path(__file__).parent / "zoo.json").read_text())
    return {
        module: Case(module, facts["model"], tuple(facts["size"]), facts.get("kwargs", {}))
        for module, facts in known.items()
    }


def examine(case: Case) -> dict[str, Any]:
    """One row: figures, and under ``problems`` what did not hold, as text."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"module": case.module, "model": case.model, "size": case.size, "problems": {}}
    start = time.monotonic()
    model = timm.create_model(case.model, **case.kwargs).eval()
    images = random_images(2, *case.size)
    row["params"] = sum(p.numel() for p in model.parameters())
    axes = _timed(row, "trace_s", lambda: trace(model, images))
    row["free"], row["frozen"] = len(axes.free), len(axes) - len(axes.free)
    row["depth"] = sum(axis.kind == "depth" for axis in axes.free.values())
    reasons = [axis.frozen.split(" in ")[0] for axis in axes.values() if axis.frozen]  # without the module's path
    row["reasons"] = dict(Counter(reasons).most_common(6))
    archs = [
        Arch.random(axes, keep, bits=bits, generator=torch.Generator().manual_seed(i))
        for i, (keep, bits) in enumerate(KEEPS)
    ]
    middle = archs[1]
    row["macs"] = _share(Macs(axes), axes, middle)
    row["params_kept"] = _share(Params(axes), axes, middle)
    double = copy.deepcopy(model).double()
    state = perturbed(double, torch.Generator().manual_seed(0))
    double.load_state_dict(state)
    _attempt(row, "graph", lambda: _graph(row, axes, middle, state, images))
    _attempt(row, "eager", lambda: _eager(row, double, axes, archs, images))
    if "eager" not in row["problems"]:
        small = _timed(row, "derive_s", lambda: derive(model, axes, middle))
        origin = (case.model, case.kwargs)
        _attempt(row, "counted", lambda: _counted(axes, middle, small, images))
        _attempt(row, "reload", lambda: _reload(small, origin, middle, images))
        _attempt(row, "timm", lambda: _citizen(small, images))
        _attempt(row, "export", lambda: _export(small, images))
    row["seconds"] = round(time.monotonic() - start, 1)
    return row


def _attempt(row: dict[str, Any], name: str, check: Callable[[], None]) -> None:
    """Do one check; what it raises is written into the row."""
    try:
        check()
    except Exception as error:  # whatever the model's own code raises is a finding
        row["problems"][name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _timed(row: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    start = time.monotonic()
    result = work()
    row[name] = round(time.monotonic() - start, 2)
    return result


def _share(cost: Macs | Params, axes: Axes, arch: Arch) -> float:
    return round(float(cost(arch.sizes(axes)) / cost({})), 4)


def _graph(row: dict[str, Any], axes: Axes, arch: Arch, state: dict[str, Tensor], images: Tensor) -> None:
    """The captured graph, gated against sliced, node by node; and with one gate left out, which must show."""
    report = compare(axes, arch, state, images)
    row["graph_error"] = report.worst_error
    _require(report.worst_error <= TOLERANCE, f"gated and sliced differ at {report.worst_node}")
    row["control_error"] = control_error(axes, arch, state, images)


def _eager(row: dict[str, Any], double: nn.Module, axes: Axes, archs: list[Arch], images: Tensor) -> None:
    """The eager model in float64, gated against derived."""
    row["eager_error"] = max(eager_error(double, axes, arch, images) for arch in archs)
    tolerance = allowed(double, images, row["eager_error"])
    _require(row["eager_error"] <= tolerance, f"gated and derived differ by {row['eager_error']:.1e}")


def _counted(axes: Axes, arch: Arch, small: nn.Module, images: Tensor) -> None:
    """What is predicted is what is counted."""
    real = count(small, images)
    said = counted(axes, arch.sizes(axes))
    _require(said.params == real.params, f"{said.params} parameters predicted, {real.params} counted")
    _require(said.macs == real.macs, f"{said.macs} MACs predicted, {real.macs} counted")


def _reload(small: nn.Module, origin: tuple[str, dict[str, Any]], arch: Arch, images: Tensor) -> None:
    """Saved, and loaded three ways to the same bits."""
    with tempfile.TemporaryDirectory() as parent, torch.no_grad():
        folder = Path(parent) / "derived"
        artifact.save(small, folder, origin=origin, arch=arch)
        expected = small(images)
        for loaded in (artifact.load(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)):
            same = zip(output_tensors(loaded.eval()(images)), output_tensors(expected), strict=True)
            _require(all(torch.equal(one, other) for one, other in same), "outputs are not bit-equal")


def _citizen(small: Any, images: Tensor) -> None:
    """What timm's users do with a model."""
    with torch.no_grad():
        features = small.forward_features(images)
        small.forward_head(features)
        if hasattr(small, "forward_intermediates"):
            stages = small.forward_intermediates(images, intermediates_only=True)
            found = {int(stage.shape[1]) for stage in stages}
            listed = {int(info["num_chs"]) for info in small.feature_info}
            _require(found <= listed, f"stages have {sorted(found)} channels, feature_info says {sorted(listed)}")
        small.get_classifier()
        if hasattr(small, "group_matcher"):
            _require(bool(small.group_matcher()), "group_matcher is empty")
        small.reset_classifier(7)
        _require(output_tensors(small(images))[0].shape[-1] == 7, "reset_classifier(7) does not give 7 logits")


def _export(small: nn.Module, images: Tensor) -> None:
    """Exported for any batch, and the same at another one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the weights of an LSTM
        program = torch.export.export(small, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    more = torch.cat([images, images[:1]])
    with torch.no_grad():
        expected, got = output_tensors(small(more))[0], output_tensors(program.module()(more))[0]
    error = float((expected - got).abs().max() / (1 + expected.abs().max()))
    _require(error <= 1e-4, f"the exported model differs by {error:.1e}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ExactnessError(otherwise)
