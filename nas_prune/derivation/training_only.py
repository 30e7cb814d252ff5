"""Parts of a model that run in training only: auxiliary classifiers, deep supervision.

The model is captured in evaluation, where they leave no trace but parameters that nobody reads. Where the code around
them asks whether it is in training, it is captured once more with its answer yes.
"""

from collections.abc import Collection

from torch import nn

from nas_prune.base.errors import TraceError
from nas_prune.derivation.source.sizes import names_used
from nas_prune.tracing import Inputs, capture
from nas_prune.tracing.graph.capture import Captured


def in_training(model: nn.Module, inputs: Inputs, asking: Collection[nn.Module]) -> Captured | None:
    """The graph in which these parts run too; None if there are none, or if it cannot be captured."""
    try:
        return capture(model, inputs, training=asking) if asking else None
    except TraceError:  # training takes targets, too, or draws
        return None


def asking(model: nn.Module, captured: Captured) -> list[nn.Module]:
    """The modules around parameters that evaluation never reads, if any of them asks whether it is in training.

    Layers of torch are none of them: it is not their statistics that matter.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    nodes = {captured.tensors[node.name]: node for node in captured.graph.nodes if node.name in captured.tensors}
    read = {captured.shared.get(name, name) for name, node in nodes.items() if node.users}
    found: dict[nn.Module, None] = {}
    for name, node in nodes.items():
        if node.name not in captured.buffers and captured.shared.get(name, name) not in read:
            parts = name.split(".")[:-1]
            for path in (".".join(parts[:depth]) for depth in range(len(parts) + 1)):
                if not type(modules[path]).__module__.startswith("torch.nn."):
                    found[modules[path]] = None
    return list(found) if any("training" in names_used(kind) for kind in set(map(type, found))) else []
