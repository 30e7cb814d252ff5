"""Set the integers that modules keep about their widths to what the graph says they became.

Evidence comes in five strengths. A layer's own weight tells its widths exactly. So does the source, where an attribute
stands in place of a size. Otherwise a module's integer is replaced if the module used that very number as a size (a
view, a split, groups) and the graph has one new value for it.
One that is called like a width may instead be known from the dimensions of all tensors that the module works on. And
what its code does not use (widths of a classifier head, of layers that will be fused): there, the tensors that pass
through it are the evidence.
"""

from typing import Any

from torch import nn
from torch.fx import Node

from nas_prune.derivation.source.literals import numerals
from nas_prune.derivation.source.sizes import forward_names, named_sequences, named_sizes, names_used
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.terms import free
from nas_prune.tracing.walk import Tie, operator

GEOMETRY = {"kernel_size", "stride", "padding", "dilation", "output_padding", "num_classes", "img_size", "image_size"}
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
WIDTHS = ("dim", "chan", "chs", "feat", "width", "heads", "planes", "hidden", "embed", "groups", "filters")
GROUPED = (nn.modules.conv._ConvNd, nn.GroupNorm, nn.ChannelShuffle)
Changes = dict[str, dict[int, set[int]]]  # module path -> old size -> the new sizes that it became there


def repair(model: nn.Module, axes: Axes, arch: Arch) -> None:
    """Set the integers that modules keep about their widths to what these became; the tensors are sliced already."""
    evidence = Evidence(model, axes, arch)
    for path, module in model.named_modules():
        certain = _from_weight(module) | (evidence.groups.get(path, {}) if isinstance(module, GROUPED) else {})
        for name, value in list(vars(module).items()):
            sequence = evidence.sequence(path, name)
            if sequence is not None:
                setattr(module, name, type(value)(sequence))
            elif name not in certain and _is_width(name, value):
                setattr(module, name, _renewed(value, evidence.of(path, name, value)))
        for name, value in certain.items():
            setattr(module, name, value)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.in_channels = module.weight.shape[1] * module.groups
        if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            module.out_channels = module.weight.shape[1] * module.groups


def ambiguous(model: nn.Module, axes: Axes, arch: Arch) -> set[Tie]:
    """A tie for each number of a module that its methods read and that has become several numbers."""
    evidence, found = Evidence(model, axes, arch), set[Tie]()
    for path, module in model.named_modules():
        used = names_used(type(module))  # type: ignore[arg-type]
        for name, value in vars(module).items():
            if name in used and _is_width(name, value) and evidence.sequence(path, name) is None:
                known = evidence.of(path, name, value)
                items = value if isinstance(value, tuple | list) else (value,)
                found |= {(path, item, item in known[item]) for item in items if len(known.get(item, ())) > 1}
    return found


def _is_width(name: str, value: Any) -> bool:
    """Whether an attribute is a number, or a short sequence of numbers, that could be a width."""
    items = value if isinstance(value, tuple | list) and len(value) <= 8 else (value,)
    return name not in GEOMETRY and not name.startswith("_") and all(type(item) is int for item in items)


class Evidence:
    """What the numbers that modules hold became with an architecture, as far as the graph tells."""

    def __init__(self, model: nn.Module, axes: Axes, arch: Arch) -> None:
        self.named: dict[tuple[str, str], set[int]] = {}
        explained = named_sizes(model, axes)
        for named in explained:
            new = axes.size_of(named.term, arch) * named.over // named.times
            self.named.setdefault((named.module, named.attribute), set()).add(new)
        known = {(named.node, named.index) for named in explained}
        for node, literals in axes.walk.literals.items():
            path = axes.walk.captured.owner(node)
            for numeral in numerals(type(model.get_submodule(path)), node, literals):
                self.named.setdefault((path, numeral.attribute), set()).add(axes.size_of(numeral.term, arch))
                known.add((node, numeral.argument))
        self.sequences: dict[tuple[str, str], set[tuple[int, ...]]] = {}
        for node, path, name, terms in named_sequences(model, axes):
            new_sizes = tuple(axes.size_of(term, arch) for term in terms)
            self.sequences.setdefault((path, name), set()).add(new_sizes)
            known |= {(node, index) for index in range(len(terms))}
        self.asked = _asked(axes, arch, known)
        self.seen, self.through = _seen(axes, arch)
        self.groups = _groups(axes, arch)
        self.read = {path: forward_names(type(module)) for path, module in model.named_modules()}

    def sequence(self, path: str, name: str) -> tuple[int, ...] | None:
        """What an attribute has become that stands for all sizes of a split, wherever it does so."""
        found = self.sequences.get((path, name), set())
        return next(iter(found)) if len(found) == 1 else None

    def of(self, path: str, name: str, value: Any) -> dict[int, set[int]]:
        """Old number -> the numbers that it may have become, for one attribute of one module."""
        if (path, name) in self.named:
            return {value: self.named[path, name]}
        if path and name in HEAD_WIDTHS:
            return self.through.get(path, {})
        asked = self.asked.get(path, {})
        known = any(item in asked for item in (value if isinstance(value, tuple | list) else (value,)))
        if known or not any(word in name for word in WIDTHS):
            return asked
        unread = bool(path) and name not in self.read[path]  # kept for others: who fuses layers asks for it
        return (self.through.get(path, {}) if unread else {}) | self.seen.get(path, {})


def _from_weight(module: nn.Module) -> dict[str, Any]:
    """Widths of a layer that its own weight tells."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.RNNBase):
        first, state = (module.get_parameter(name) for name in ("weight_ih_l0", "weight_hh_l0"))
        return {"input_size": first.shape[1]} | ({} if module.proj_size else {"hidden_size": state.shape[1]})
    if weight is None:
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return {"out_channels": weight.shape[0], "in_channels": weight.shape[1]}
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return {"in_channels": weight.shape[0]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": weight.shape[0]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": tuple(weight.shape)}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    return {"num_channels": weight.shape[0]} if isinstance(module, nn.GroupNorm) else {}


def _groups(axes: Axes, arch: Arch) -> dict[str, dict[str, int]]:
    """Path of a layer -> how many groups it has: its operator says so, whatever other numbers are the same."""
    found: dict[str, dict[str, int]] = {}
    for node, literals in axes.walk.literals.items():
        name = operator(node).split(".")[0]
        attribute = "groups" if "conv" in name or name.endswith("channel_shuffle") else "num_groups"
        if attribute == "groups" or name == "group_norm":
            found[axes.walk.captured.owner(node)] = {attribute: axes.size_of(literals[0].sizes[0], arch)}
    return found


def _asked(axes: Axes, arch: Arch, explained: set[tuple[Node, int]]) -> Changes:
    """What each module's size arguments were and became, but for those that the source explains."""
    changes: Changes = {}
    for node, literals in axes.walk.literals.items():
        owners = {axes.walk.captured.owner(node), _reader(axes, node)}
        for literal in literals:
            given = node.args[literal.arg] if literal.arg < len(node.args) else None
            for index, term in enumerate(literal.sizes):
                size, asked = axes.size_of(term, arch), not isinstance(given, list | tuple) or given[index] != -1
                for owner in owners if size != term.size and asked and (node, index) not in explained else ():
                    changes.setdefault(owner, {}).setdefault(term.size, set()).add(size)
    return changes


def _reader(axes: Axes, node: Node) -> str:
    """The module whose parameter a node reshapes: a method called from another module runs in that one's name."""
    source: Any = node
    while isinstance(source, Node) and source.op == "call_function" and source.args:
        source = source.args[0]
    name = axes.walk.tensor(source)
    return axes.walk.captured.owner(node) if name is None else name.rpartition(".")[0]


def _seen(axes: Axes, arch: Arch) -> tuple[Changes, Changes]:
    """What the free dimensions of tensors became: of those that each module works on, and also of those inside it."""
    seen: Changes = {}
    through: Changes = {}
    for node in axes.walk.captured.graph.nodes:
        stack = list(axes.walk.captured.running(node).values())
        terms = [term for each in (node, *node.all_input_nodes) for term in axes.walk.dims(each)] if stack else []
        for old, new in {(term.size, axes.size_of(term, arch)) for term in terms if free(term)}:
            seen.setdefault(stack[-1], {}).setdefault(old, set()).add(new)
            for path in stack:
                through.setdefault(path, {}).setdefault(old, set()).add(new)
    return seen, through


def _renewed(value: Any, changes: dict[int, set[int]]) -> Any:
    """A number, or a sequence of numbers, with each replaced that has exactly one new value."""
    if isinstance(value, tuple | list):
        return type(value)(_renewed(item, changes) for item in value)
    return next(iter(changes[value])) if len(changes.get(value, ())) == 1 else value
