"""nas_prune: differentiable pruning of timm models as architecture search, to a latency that is measured and met.

Every width that can shrink; which of them may, and to which sizes; a gate on each:

    >>> import timm, torch, nas_prune as npr
    >>> model, images = timm.create_model("test_resnet", num_classes=10), torch.randn(1, 3, 32, 32)
    >>> axes = npr.trace(model, images)
    >>> list(axes.free)[:4]
    ['conv1.0', 'conv1.3', 'conv1.6', 'layer1.0.conv1']
    >>> space = npr.SearchSpace.read("channels", axes)
    >>> gated = npr.GatedModel(model, space, gate="weight")
    >>> gated.gate("conv1.6").size
    32

Weights and gates are trained together, under a limit; what the gates decide is an architecture:

    >>> from nas_prune.costs import Macs
    >>> from nas_prune.settings import SearchSettings
    >>> data = torch.utils.data.DataLoader([(torch.randn(3, 32, 32), label) for label in range(10)], batch_size=5)
    >>> budget = npr.Budget("0.5x", cost=Macs(axes))
    >>> brief = SearchSettings(warmup=0, joint=1, freeze=0)
    >>> arch = npr.search(gated, data, budget=budget, settings=brief)
    >>> arch == npr.Arch.dense(axes)
    False

It becomes an ordinary, smaller model, which is proved to compute the same, and loads with nothing of the search:

    >>> small = npr.derive(model, axes, arch)
    >>> npr.verify(model, axes, arch, images).max_rel_error < 1e-9
    True
    >>> npr.count(small, images).macs <= budget.limit
    True
    >>> npr.save(small, "derived")
    >>> torch.equal(npr.load("derived")(images), small.eval()(images))
    True

The examples of the functions go on from here.

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
