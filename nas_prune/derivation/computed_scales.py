"""Numbers that code computes from widths: ``q.size(-1) ** -0.5`` is a constant of the graph, and another one in a
smaller model.

The calls of arithmetic of the dense model and of the smaller one are listed side by side; where a number differs, the
dense one must come back. It does if the number scales the scores of an attention whose queries are the rows of one
layer: these rows are multiplied by old / new (ours).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from nas_prune.derivation.attention_scale import MOVES, SAME, Queries
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.axes import Scale
from nas_prune.tracing.walk import operator

TIMES = {"mul", "rmul", "imul", "multiply"}
OVER = {"div", "truediv", "rtruediv", "itruediv", "divide", "true_divide"}
OTHERS = {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "pow", "rpow", "ipow", "addmm", "baddbmm", "addbmm"}
OTHERS |= {"addcmul", "addcdiv", "lerp", "tensor", "as_tensor", "scalar_tensor", "full", "full_like", "new_full"}
OTHERS |= {"new_tensor", "arange", "linspace", "logspace"}
ATTENTION = "scaled_dot_product_attention"
GivenNumbers = tuple[str, tuple[float, ...]]  # name of a function, and the numbers that it was given


class Numbers(TorchFunctionMode):
    """Lists the numbers that calls of arithmetic are given, and those of other calls that are no whole numbers: a size
    is one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[GivenNumbers] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", "")).strip("_")
        given = [*args, *(kwargs or {}).values()] if name != ATTENTION else [(kwargs or {}).get("scale")]
        if name not in TIMES | OVER | OTHERS | {ATTENTION}:
            given = [each for each in given if isinstance(each, float)]
        if given or name == ATTENTION:
            self.found.append((name, _plain(given)))
        return func(*args, **(kwargs or {}))


def differing(dense: list[GivenNumbers], small: list[GivenNumbers]) -> list[int]:
    """The calls that are given other numbers; none where the two do not make the same calls."""
    if [name for name, _ in dense] != [name for name, _ in small]:
        return []
    return [index for index, (one, other) in enumerate(zip(dense, small, strict=True)) if one != other]


def scales(axes: Axes, dense: list[GivenNumbers], indices: Iterable[int]) -> dict[int, Scale]:
    """Those of the calls that scale the scores of an attention, by their index."""
    queries = Queries(axes)
    found = {}
    for index in indices:
        name, numbers = dense[index]
        nodes, alike = _nodes(axes, dense[index]), [i for i, number in enumerate(dense) if _alike(number, dense[index])]
        if name in TIMES | OVER | {ATTENTION} and len(numbers) == 1 and len(nodes) == len(alike):
            node = nodes[alike.index(index)]
            if queries.of(_scores(node)) is not None:
                found[index] = Scale(index, node, numbers[0], name in OVER)
    return found


def keep_dense(small: nn.Module, axes: Axes, arch: Arch, numbers: list[GivenNumbers]) -> None:
    """Multiply the rows of queries in a derived model, so that every score is what the dense scale makes it."""
    queries = Queries(axes)
    for scale in axes.scales:
        new = numbers[scale.index][1][0]
        factor = new / scale.dense if scale.over else scale.dense / new
        for name, rows in queries.of(_scores(scale.node)) or () if factor != 1 else ():
            kept = axes.indices(axes.tensors[name][0], arch)
            parameter = small.get_parameter(name)
            own = torch.isin(torch.arange(len(parameter)) if kept is None else kept.cpu(), rows.cpu())
            with torch.no_grad():
                parameter[own.to(parameter.device)] *= factor


def _scores(node: Node) -> Node:
    """The product of queries and keys that a node scales, or the node itself, if it scales the queries."""
    source: Any = node.args[0]
    while isinstance(source, Node) and operator(source).split(".")[0] in MOVES | SAME:
        source = source.args[0]
    contracts = isinstance(source, Node) and operator(source).split(".")[0] in ("matmul", "bmm", "mm", "einsum")
    return source if contracts and operator(node).split(".")[0] != ATTENTION else node


def _alike(one: GivenNumbers, other: GivenNumbers) -> bool:
    """Whether two calls would be the same operator with the same number."""
    kinds: list[Callable[[str], bool]] = [TIMES.__contains__, OVER.__contains__, ATTENTION.__eq__]
    return one[1] == other[1] and any(kind(one[0]) and kind(other[0]) for kind in kinds)


def _nodes(axes: Axes, number: GivenNumbers) -> list[Node]:
    """The nodes of the graph that such a call makes, in order."""
    name, numbers = number
    wanted = "mul" if name in TIMES else "div" if name in OVER else name
    made = [node for node in axes.walk.captured.graph.nodes if node.op == "call_function"]
    return [node for node in made if operator(node).split(".")[0] == wanted and _given(node) == numbers]


def _given(node: Node) -> tuple[float, ...]:
    attention = operator(node).startswith(ATTENTION)
    return _plain([node.kwargs.get("scale")] if attention else [*node.args, *node.kwargs.values()])


def _plain(values: Iterable[Any]) -> tuple[float, ...]:
    """The numbers among the arguments of a call, also those in lists."""
    flat = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return tuple(float(each) for each in flat if isinstance(each, int | float) and not isinstance(each, bool))
