"""nas_prune: differentiable pruning of timm models as architecture search, to a latency that is measured and met.

    axes  = trace(model, example_inputs)               every width that can shrink
    space = SearchSpace.read("channels", axes)         which of them may, and to which sizes
    gated = GatedModel(model, space, gate="weight")    a gate on each
    met   = search(gated, data, budget=..., ...)       weights and gates trained together
    small = derive(model, axes, met.arch)              an ordinary, smaller model

Names are imported when they are first used, so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module

from nas_prune.artifact import timm_entry

TYPE_CHECKING = False  # as typing says, which would take longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from nas_prune.artifact.folder import load, save
    from nas_prune.base.axis import Axis
    from nas_prune.base.errors import NasPruneError
    from nas_prune.costs import Budget, LatencyPredictor, count, measure
    from nas_prune.derivation.derive import derive
    from nas_prune.derivation.trace import trace
    from nas_prune.derivation.verify import Certificate, verify
    from nas_prune.methods.gated import GatedModel
    from nas_prune.methods.gates import Gate
    from nas_prune.tracing import Axes
    from nas_prune.tracing.arch import Arch
    from nas_prune.tracing.space import SearchSpace
    from nas_prune.train.search import search

__all__ = [
    "Arch",
    "Axes",
    "Axis",
    "Budget",
    "Certificate",
    "Gate",
    "GatedModel",
    "LatencyPredictor",
    "NasPruneError",
    "SearchSpace",
    "count",
    "derive",
    "load",
    "measure",
    "save",
    "search",
    "trace",
    "verify",
]

_HOME = {
    "Arch": "tracing.arch",
    "Axes": "tracing",
    "Axis": "base.axis",
    "Budget": "costs",
    "Certificate": "derivation.verify",
    "Gate": "methods.gates",
    "GatedModel": "methods.gated",
    "LatencyPredictor": "costs",
    "NasPruneError": "base.errors",
    "SearchSpace": "tracing.space",
    "count": "costs",
    "derive": "derivation.derive",
    "load": "artifact.folder",
    "measure": "costs",
    "save": "artifact.folder",
    "search": "train.search",
    "trace": "derivation.trace",
    "verify": "derivation.verify",
}


timm_entry.install()  # the one thing that an import does: timm.create_model("local-dir:FOLDER") finds artefacts


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
