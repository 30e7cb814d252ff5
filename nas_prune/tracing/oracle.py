"""The oracle: the captured graph, run twice side by side, once gated and once sliced.

It needs none of the model's code, so it tells whether the terms are right, apart from whether an eager model can
express them. Nodes are compared one by one: what the gated node keeps must be what the sliced node computes.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map_only

from nas_prune.tracing.arch import Arch
from nas_prune.tracing.axes import Axes
from nas_prune.tracing.graph.capture import Inputs, as_tuple
from nas_prune.tracing.masked import FILLS, FORMS, WEIGHTS
from nas_prune.tracing.stripes import alive
from nas_prune.tracing.terms import Term
from nas_prune.tracing.walk import Site, operator

Values = dict[Node, Any]
SHOWS = 1e-6  # a missing gate; rounding is 1e-14
ATTENTION = "scaled_dot_product_attention"
DROPOUT = 4  # its argument that says how much it drops
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
SKIPPED = ("_assert_tensor_metadata.default", "_assert_scalar.default")


@dataclass(frozen=True)
class NodeReport:
    """Outcome of a node-by-node comparison; errors are relative to the magnitude of the node's values.

    The worst is the first node that computes NaN, if any does.
    """

    worst_node: str
    worst_error: float
    output_error: float
    nodes: int


def perturbed(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """State of a model in float64 with every number moved: zeros and ones of a fresh model would hide errors."""
    state: dict[str, Tensor] = model.state_dict()  # with the versions of its modules, which some of them ask for
    for name, value in state.items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            moved = 0.1 * (noise.flip(0) - 0.5) if noise.ndim and not name.endswith("var") else 0.0
            state[name] = value.double() * (0.8 + 0.4 * noise) + moved
    return state


def compare(
    axes: Axes,
    arch: Arch,
    state: Mapping[str, Tensor],
    inputs: Inputs,
    *,
    without: Site | None = None,
) -> NodeReport:
    """Run the gated and the sliced graph in float64 on the same inputs.

    ``state``: name -> tensor of the whole model. ``without``: leave this gate out, and stop where that shows.
    """
    arch.check(axes)
    keep = {name: arch.keep(axes[name]) for name in {*arch.kept, *(each.name for each in axes.closed(arch))}}
    sites = defaultdict[Node, list[Site]](list)
    for site in axes.walk.sites:
        sites[site.node] += [site] if site is not without else []
    given = iter(tree_leaves(axes.walk.captured.batched(as_tuple(inputs))))
    closed = _closed(axes, arch)
    gated, sliced = Values(), Values()
    report = NodeReport("none", 0.0, 0.0, 0)
    with in_float64():
        for node in axes.walk.captured.graph.nodes:
            if node.op == "placeholder":
                gated[node], sliced[node] = _given(axes, arch, node, state, given)
            elif node.op == "call_function" and node.target.__name__ not in SKIPPED:
                gated[node] = _run_gated(axes, node, gated, sites[node], keep)
                if _drawn(node):
                    sliced[node] = _kept(axes, arch, node, gated[node])
                else:
                    sliced[node] = _run_sliced(axes, arch, node, sliced, closed.get(node))
                report = _worse(report, node, _difference(axes, arch, node, gated[node], sliced[node]))
            elif node.op == "output":
                last = list(node.all_input_nodes)
                error = max(_difference(axes, arch, value, gated[value], sliced[value]) for value in last)
                report = NodeReport(report.worst_node, report.worst_error, error, report.nodes)
            _forget(node, gated, sliced)
            if without is not None and report.worst_error > SHOWS:
                break
    return report


def _drawn(node: Node) -> bool:
    """Whether a node returns what was drawn, or lay in memory: the sliced graph takes what the gated one got."""
    name = operator(node).split(".")[0]
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return name in EMPTY or (seeded and name not in (ATTENTION, *RECURRENT))


def _kept(axes: Axes, arch: Arch, node: Node, value: Any) -> Any:
    """What is kept of a node's value."""
    terms = axes.walk.terms[node]
    if isinstance(terms, list):
        return [axes.take(each, term, arch) for each, term in zip(value, terms, strict=True)]
    return axes.take(value, terms, arch)


@contextmanager
def in_float64() -> Iterator[None]:
    """Tensors that code makes out of nothing are as precise as the others."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def _forget(node: Node, *runs: Values) -> None:
    """Drop what no later node reads."""
    for given in node.all_input_nodes:
        if list(given.users)[-1] is node:
            for values in runs:
                values.pop(given, None)


def _given(axes: Axes, arch: Arch, node: Node, state: Mapping[str, Tensor], given: Any) -> tuple[Any, Any]:
    captured = axes.walk.captured
    if node.name in captured.tensors:
        whole = (
            state[captured.tensors[node.name]] if captured.tensors[node.name] in state else captured.values[node.name]
        )
        whole = whole.double() if whole.is_floating_point() else whole
        return whole, axes.take(whole, axes.walk.terms[node], arch)
    value = captured.constants[node.name] if node.name in captured.constants else next(given)
    value = value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
    return value, value


def _arguments(node: Node, values: Values) -> tuple[list[Any], dict[str, Any]]:
    """What a node gets, on the CPU wherever it was captured, in float64, and an attention without dropout."""
    given = map_arg((node.args, node.kwargs), lambda argument: values[argument])
    args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), given)
    if operator(node).startswith(ATTENTION) and len(args) > DROPOUT:
        args = [*args[:DROPOUT], 0.0, *args[DROPOUT + 1 :]]
    if kwargs.get("dtype") == torch.float32:
        kwargs = {**kwargs, "dtype": torch.float64}
    return list(args), dict(kwargs)


def _run_gated(axes: Axes, node: Node, values: Values, sites: list[Site], keep: Mapping[str, Tensor]) -> Any:
    args, kwargs = _arguments(node, values)
    for site in sites:
        if site.how in FILLS:
            _close(site, args, axes.mask(site.term, keep))
        elif site.how in WEIGHTS:
            WEIGHTS[site.how](args, axes.mask(site.term, keep))
    for site in sites:
        if site.how not in (*FILLS, *WEIGHTS):
            return _masked(site, args, kwargs, axes.mask(site.term, keep))
    function = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
    return function(*args, **kwargs)  # type: ignore[operator]


def _close(site: Site, args: list[Any], keep: Tensor) -> None:
    """Close the units of one operand; an einsum has its operands in a list."""
    operands = args
    if isinstance(args[0], str):
        operands = args[1] = list(args[1])
    x = operands[site.arg]
    shape = [-1 if dim == site.dim else 1 for dim in range(x.ndim)]
    operands[site.arg] = torch.where(keep.reshape(shape) > 0, x, FILLS[site.how])


def _masked(site: Site, args: list[Any], kwargs: Mapping[str, Any], keep: Tensor) -> Any:
    if site.how != "standardize":
        return FORMS[site.how](args, kwargs, site.dim, keep)
    x, *rest = args  # the ATen operator has no running statistics, and returns more than the functional one
    return FORMS[site.how]([x, None, None, *rest], kwargs, site.dim, keep), None, None


def _closed(axes: Axes, arch: Arch) -> dict[Node, dict[int, Tensor | float]]:
    """Node -> argument -> what it is multiplied by in the sliced graph: 0 for a closed branch, live stripes."""
    closed: dict[Node, dict[int, Tensor | float]] = defaultdict(dict)
    for branch in axes.closed(arch):
        closed[branch.add][branch.operand] = 0.0
    for each in axes.stripes:
        if each.name in arch.kept:
            filters = axes.indices(axes.walk.of(each.node.args[1])[0], arch)
            closed[each.node][1] = rearrange(alive(each, arch, filters).double(), "n i j -> n 1 i j")
    return closed


def _run_sliced(axes: Axes, arch: Arch, node: Node, values: Values, closed: Mapping[int, Tensor | float] | None) -> Any:
    args, kwargs = _arguments(node, values)
    for argument, factor in (closed or {}).items():
        args[argument] = args[argument] * factor
    kwargs.update(axes.walk.constants.get(node, {}))
    for literal in axes.walk.literals.get(node, ()):
        args[literal.arg] = _sizes(axes, arch, literal.terms)
    function = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
    return function(*args, **kwargs)  # type: ignore[operator]


def _sizes(axes: Axes, arch: Arch, terms: Term | tuple[Term, ...]) -> int | list[int]:
    """The sizes that a literal holds once the architecture is derived."""
    if isinstance(terms, tuple):
        return [axes.size_of(term, arch) for term in terms]
    return axes.size_of(terms, arch)


def _difference(axes: Axes, arch: Arch, node: Node, gated: Any, sliced: Any) -> float:
    """Largest difference between what the gated value keeps and the sliced value, relative to its magnitude."""
    terms = axes.walk.terms[node]
    if _drawn(node):
        return 0.0
    if isinstance(terms, list):
        pairs = [(g, s, t) for g, s, t in zip(gated, sliced, terms, strict=False) if g is not None]
        return max(_apart(axes.take(g, t, arch), s) for g, s, t in pairs[:1] or pairs)
    return _apart(axes.take(gated, terms, arch), sliced) if isinstance(gated, Tensor) else 0.0


def _apart(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape:
        return inf
    if not expected.numel() or not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else inf
    same = expected == got  # equal infinities are equal
    difference = torch.where(same, 0.0, (expected - got).abs())
    if difference.isnan().any():
        return nan if expected.isnan().any() else inf
    finite = expected[expected.isfinite()]
    return float(difference.max() / (1 + (finite.abs().max() if finite.numel() else 0.0)))


def _worse(report: NodeReport, node: Node, error: float) -> NodeReport:
    if error > report.worst_error or (isnan(error) and not isnan(report.worst_error)):
        return NodeReport(node.name, error, report.output_error, report.nodes + 1)
    return NodeReport(report.worst_node, report.worst_error, report.output_error, report.nodes + 1)
