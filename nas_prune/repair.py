"""Set the integers that modules keep about their widths to what the graph says they became.

Evidence comes in three strengths. A layer's own weight tells its widths exactly. Otherwise a module's integer is
replaced if the module used that very number as a size (a view, a split, groups) and the graph has one new value for it.
A classifier head keeps widths that its code does not use: there, the tensors that pass through it are the evidence.
"""

from typing import Any

from torch import nn

from nas_prune.arch import Arch
from nas_prune.tracing import Axes
from nas_prune.tracing.oracle import size_of, sizes_of

GEOMETRY = {"kernel_size", "stride", "padding", "dilation", "output_padding", "num_classes", "img_size"}
GEOMETRY |= {
    "window_size",
    "grid_size",
    "num_prefix_tokens",
    "num_reg_tokens",
    "training",
    "global_pool",
    "output_size",
}
HEAD_WIDTHS = {"in_features", "num_features", "hidden_size"}  # what timm's classifier heads keep about themselves
Changes = dict[str, dict[int, set[int]]]  # module path -> old size -> the new sizes that it became there


def repair(model: nn.Module, axes: Axes, arch: Arch) -> None:
    """Repair every module of a model whose tensors are sliced already."""
    changes = _changes(axes, arch)
    for path, module in model.named_modules():
        certain = _from_weight(module)
        passing = _passing(axes, arch, path) if path and HEAD_WIDTHS & vars(module).keys() - certain.keys() else {}
        for name, value in list(vars(module).items()):
            if name not in GEOMETRY and name not in certain and not name.startswith("_"):
                evidence = passing if name in HEAD_WIDTHS else changes.get(path, {})
                setattr(module, name, _renewed(value, evidence))
        for name, value in certain.items():
            setattr(module, name, value)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.in_channels = module.weight.shape[1] * module.groups
    _attention_scales(model, axes, arch)


def _from_weight(module: nn.Module) -> dict[str, Any]:
    """Widths of a layer that its own weight tells."""
    weight = module._parameters.get("weight")
    if weight is None:
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return {"out_channels": weight.shape[0], "in_channels": weight.shape[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": weight.shape[0]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": tuple(weight.shape)}
    return {"num_channels": weight.shape[0]} if isinstance(module, nn.GroupNorm) else {}


def _changes(axes: Axes, arch: Arch) -> Changes:
    """What each module's size arguments were and became."""
    changes: Changes = {}
    for literal in axes.walk.literals:
        terms = literal.terms if isinstance(literal.terms, tuple) else (literal.terms,)
        new = sizes_of(axes, arch, terms)
        owner = changes.setdefault(axes.walk.captured.owner(literal.node), {})
        for term, size in zip(terms, new if isinstance(new, list) else [new], strict=True):
            if size != term.size:
                owner.setdefault(term.size, set()).add(size)
    return changes


def _passing(axes: Axes, arch: Arch, path: str) -> dict[int, set[int]]:
    """What the dimensions of the tensors that go into or through a module were and became."""
    sizes: dict[int, set[int]] = {}
    for node in axes.walk.captured.graph.nodes:
        if any(path == name for name, _ in node.meta.get("nn_module_stack", {}).values()):
            for term in (term for each in (node, *node.all_input_nodes) for term in axes.walk.dims(each)):
                sizes.setdefault(term.size, set()).add(size_of(axes, arch, term))
    return sizes


def _renewed(value: Any, changes: dict[int, set[int]]) -> Any:
    """An integer, or a short tuple of integers, with every number replaced that has exactly one new value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and len(changes.get(value, ())) == 1:
        return next(iter(changes[value]))
    if isinstance(value, tuple) and len(value) <= 8 and value and all(type(item) is int for item in value):
        return tuple(_renewed(item, changes) for item in value)
    return value


def _attention_scales(model: nn.Module, axes: Axes, arch: Arch) -> None:
    """The scale that a module would use without fused attention follows the head_dim that its queries now have."""
    for node, _ in axes.walk.constants:
        module = model.get_submodule(axes.walk.captured.owner(node))
        old = axes.walk.of(node.args[0])[-1].size
        if getattr(module, "scale", None) == old**-0.5:
            module.scale = size_of(axes, arch, axes.walk.of(node.args[0])[-1]) ** -0.5
