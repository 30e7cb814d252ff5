"""Keep the attention scale of the dense model when head_dim shrinks; attention divides by the root of what it sees.

Folding sqrt(new / old) into the rows that make the queries keeps q.k / sqrt(head_dim) what it was, and the module
ordinary (ours). Where the queries are no linear function of one layer's rows, a timm module is told to multiply by its
own ``scale`` instead of using the fused kernel, which is as exact and slower.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from nas_prune.base.errors import DeriveError
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.walk import operator

WRITERS = {
    "linear": (-1, 1),
    "conv1d": (1, 1),
    "conv2d": (1, 1),
}  # dimension that rows make, weight
WRITERS |= {"_native_batch_norm_legit_no_training": (1, 1), "layer_norm": (-1, 2), "rms_norm": (-1, 2)}
MOVES = {"view", "_unsafe_view", "permute", "transpose", "unbind", "getitem", "select", "split", "split_with_sizes"}
MOVES |= {"chunk", "slice", "unsqueeze", "squeeze", "clone", "expand", "unflatten", "flatten", "contiguous", "reshape"}
SAME = {"neg", "dropout", "_to_copy", "type_as", "alias", "to"}


def keep_scales(model: nn.Module, axes: Axes, arch: Arch) -> None:
    """Make every attention of a dense ``model`` ready for the head_dim that it will have. Raises DeriveError."""
    queries = Queries(axes)
    for node in axes.walk.constants:
        term = axes.walk.of(node.args[0])[-1]
        new = axes.size_of(term, arch)
        if new == term.size:
            continue
        owner = model.get_submodule(axes.walk.captured.owner(node))
        rows = queries.of(node)
        if rows is None:
            _unfuse(owner, term.size, node, axes.walk.where(node))
            continue
        for name, index in rows:
            _scale(model.get_parameter(name), index, sqrt(new / term.size))
        if getattr(owner, "scale", None) == term.size**-0.5:  # what the module uses without fused attention
            owner.scale = new**-0.5


def _scale(tensor: Tensor, rows: Tensor, factor: float) -> None:
    with torch.no_grad():
        tensor[rows.to(tensor.device)] *= factor


def _unfuse(owner: nn.Module, head_dim: int, node: Node, where: str) -> None:
    """Let the module multiply by its own, unchanged scale."""
    if not hasattr(owner, "fused_attn") or getattr(owner, "scale", None) != head_dim**-0.5:
        raise DeriveError(
            f"the scale of {where} cannot be kept when head_dim shrinks: its queries are no linear function of one "
            f"layer, or something else reads them, too",
            node=node.name,
        )
    owner.fused_attn = False  # type: ignore[assignment]


class Queries:
    """Follows queries back to the layer whose rows make them."""

    def __init__(self, axes: Axes) -> None:
        self.walk = axes.walk
        self.writers: set[Node] = set()
        self.made: dict[Node, Any] = {}  # rows of the nodes on the way
        self.depending: set[Node] = set()  # what depends on the input of the model
        captured = axes.walk.captured
        for node in captured.graph.nodes:
            given = node.op == "placeholder" and node.name not in (*captured.tensors, *captured.constants)
            if given or any(argument in self.depending for argument in node.all_input_nodes):
                self.depending.add(node)

    def of(self, attention: Node) -> list[tuple[str, Tensor]] | None:
        """(parameter, its rows) of the one layer that makes the queries, and no others; None if there is none."""
        self.writers.clear()
        self.made.clear()
        made = self._rows(cast(list[Any], attention.args[1])[0] if _name(attention) == "einsum" else attention.args[0])
        if made is None or len(self.writers) != 1:
            return None
        writer, rows = next(iter(self.writers)), _marked(made).nonzero().flatten()
        if self._read_elsewhere(attention, rows):
            return None
        weight = WRITERS[_name(writer)][1]
        both = [self._parameters(value, rows) for value in writer.args[weight : weight + 2] if isinstance(value, Node)]
        if not both or None in both:
            return None
        return [each for found in both if found for each in found]

    def _parameters(self, value: Node, rows: Tensor) -> list[tuple[str, Tensor]] | None:
        """The parameters, or pieces of a concatenation, in which rows of a weight or bias lie."""
        name = self.walk.tensor(value)
        if name is not None:
            return None if value.name in self.walk.captured.buffers else [(name, rows)]
        if _name(value) != "cat":
            return None
        found, first = list[tuple[str, Tensor]](), 0
        for part in cast(Sequence[Node], value.args[0]):
            size = self.walk.shape(part)[0]
            inside = rows[(rows >= first) & (rows < first + size)] - first
            pieces = self._parameters(part, inside) if len(inside) else []
            if pieces is None:
                return None
            found, first = [*found, *pieces], first + size
        return found

    def _read_elsewhere(self, attention: Node, rows: Tensor) -> bool:
        """Whether anything but this attention reads the queries."""
        operands = cast(Sequence[Any], attention.args[1] if _name(attention) == "einsum" else attention.args)
        waiting = list(self.made.items())
        ours = _marked(rows, max(_past(each) for _, made in waiting for each in _each(made)))
        for node, made in waiting:
            if not any(bool(ours[_once(each)].any()) for each in _each(made)):
                continue
            for user in [user for user in node.users if user not in self.made and user.users]:
                if user is attention:
                    if any(node is operand for operand in operands[1:]):
                        return True
                elif _name(user) in SAME:
                    waiting.append((user, made))
                elif _name(user) in MOVES and user.args[0] is node:
                    waiting.append((user, _moved(user, made)))
                else:
                    return True
        return False

    def _rows(self, node: Any) -> Any:
        """For each entry of a node, the row that makes it; None where that cannot be said."""
        made = self._traced(node)
        if made is not None:
            self.made[node] = made
        return made

    def _traced(self, node: Any) -> Any:
        name = _name(node)
        if name in WRITERS:
            return self._first_rows(node, WRITERS[name][0])
        if name == "getitem" and _name(node.args[0]) in WRITERS:  # a norm that returns its statistics, too
            return self._rows(node.args[0])
        if name in SAME:
            return self._rows(node.args[0])
        if name in MOVES:
            before = self._rows(node.args[0])
            return None if before is None else _moved(node, before)
        if name in ("cat", "stack"):
            parts = [self._rows(part) for part in node.args[0]]
            return None if any(part is None for part in parts) else node.target(parts, *node.args[1:])
        if name in ("mul", "div"):
            return self._scaled(node)
        pair = [self._rows(value) for value in node.args[:2]] if name in ("add", "sub") else [None]
        return None if any(each is None for each in pair) else cast(Tensor, pair[0]).expand(self.walk.shape(node))

    def _scaled(self, node: Node) -> Any:
        """A product with what does not depend on the input."""
        one, other = node.args[:2]
        if _name(node) == "mul" and one not in self.depending:
            one, other = other, one
        made = None if other in self.depending else self._rows(one)
        return None if made is None else made.expand(self.walk.shape(node))

    def _first_rows(self, node: Node, dim: int) -> Tensor:
        self.writers.add(node)
        value = node.meta["val"]
        shape = tuple(int(size) for size in (value[0] if isinstance(value, tuple | list) else value).shape)
        rows = torch.arange(shape[dim]).reshape([-1 if d == dim % len(shape) else 1 for d in range(len(shape))])
        return rows.expand(shape)


def _once(rows: Tensor) -> Tensor:
    """The same row numbers, without the dimensions along which they are merely repeated, such as images and tokens."""
    return rows[tuple(slice(1) if stride == 0 else slice(None) for stride in rows.stride())]


def _past(rows: Tensor) -> int:
    """The first row number that is above all of these; a piece of a concatenation may have none."""
    return int(_once(rows).max()) + 1 if rows.numel() else 0


def _marked(rows: Tensor, size: int = 0) -> Tensor:
    """Whether each row number is there (bool); there are as many entries as activations, so nothing is sorted."""
    marked = torch.zeros(max(size, _past(rows)), dtype=torch.bool)
    marked[_once(rows).flatten()] = True
    return marked


def _moved(node: Node, made: Any) -> Any:
    """The rows of a node that only moves entries of another."""
    function: Any = torch.ops.aten.reshape.default if _name(node) in ("view", "_unsafe_view") else node.target
    return function(made, *node.args[1:], **node.kwargs)


def _each(made: Any) -> Sequence[Tensor]:
    return made if isinstance(made, tuple | list) else [made]


def _name(value: Any) -> str:
    """Operator of a node without its overload; nothing for what is no call."""
    called = isinstance(value, Node) and value.op == "call_function"
    return operator(value).split(".")[0] if called else ""
