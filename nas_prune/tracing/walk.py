"""One walk over the graph: each operator's rule turns the terms of its inputs into the terms of its outputs.

On the way a rule leaves a record, and everything later is read off that record:
``Site``  where a closed unit would otherwise be seen (gate here),
``Literal``  an argument that holds a size (recompute it when deriving),
``product``  the multiply-adds of the node as a product of terms (cost).
``presence``  the bits of the branches that a node is inside of: factors of its work (cost).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from nas_prune.base.axis import Kind, Role
from nas_prune.tracing.graph.capture import Captured
from nas_prune.tracing.ruled import RULES
from nas_prune.tracing.terms import Dims, Fix, Term, UnknownFormError, Var, free, freeze, leaves, unify

Tie = tuple[str, int, bool]  # a module, a size that it knows by one number, whether it is fixed somewhere


@dataclass(frozen=True)
class Site:
    """A node that contracts, averages or compares over ``term``: the gate must act here.

    ``how``: what becomes of closed units of argument ``arg`` along ``dim`` (a key of ``masked.FILLS``, ``mask`` being
    zero), or of its weights (``masked.WEIGHTS``), or the masked form that takes its place (a key of ``masked.FORMS``).
    ``weight``: for a convolution or linear, the term of the weight's input dimension, an equivalent place to gate.
    """

    node: Node
    how: str
    arg: int
    dim: int
    term: Term
    weight: Term | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Site:  # a fact about the graph: copies of a model share it
        return self


@dataclass(frozen=True)
class Literal:
    """An argument of a node that holds sizes: ``terms`` says what it is once units are removed."""

    node: Node
    arg: int
    terms: Term | tuple[Term, ...]

    @property
    def sizes(self) -> tuple[Term, ...]:
        """The terms, also where the argument is one number."""
        return self.terms if isinstance(self.terms, tuple) else (self.terms,)


@dataclass
class Walk:
    """The record of one walk."""

    captured: Captured
    terms: dict[Node, Any] = field(default_factory=dict)
    tied: dict[str, Dims] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    literals: dict[Node, list[Literal]] = field(default_factory=dict)
    constants: dict[Node, dict[str, Any]] = field(default_factory=dict)
    products: dict[Node, list[tuple[Term, ...]]] = field(default_factory=dict)
    presence: dict[Node, list[Var]] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    kinds: list[tuple[Term, Kind]] = field(default_factory=list)

    def of(self, value: Any) -> Dims:
        """Terms of a tensor argument; a Python number has no dimension."""
        return self.terms[value] if isinstance(value, Node) else ()

    def dims(self, node: Node) -> list[Term]:
        """Terms of all dimensions of all outputs of a node."""
        return [term for dims in _each(self.terms[node]) for term in dims] if node in self.terms else []

    def shape(self, node: Node) -> tuple[int, ...]:
        """Traced shape of a node that is one tensor."""
        return tuple(int(size) for size in node.meta["val"].shape)

    def tensor(self, value: Any) -> str | None:
        """Name of the parameter or buffer that a value is, if it is one."""
        return self.captured.tensors.get(value.name) if isinstance(value, Node) else None

    def where(self, node: Node) -> str:
        """The node as a user would find it: operator and module."""
        owner = self.captured.owner(node) or "the model"
        return f"{operator(node)} in {owner}"

    def role(self, weight: Any, dim: int, role: Role) -> None:
        """Say that a dimension of a parameter writes or reads an axis."""
        while isinstance(weight, Node) and weight.op == "call_function" and weight.all_input_nodes:
            weight = weight.all_input_nodes[0]
        name = self.tensor(weight)
        if name is not None:
            self.roles.setdefault((name, dim), role)

    def sizes(self, node: Node, arg: int, terms: Term | tuple[Term, ...]) -> None:
        """Record that an argument holds sizes."""
        self.literals.setdefault(node, []).append(Literal(node, arg, terms))

    def tie(self, node: Node, first: Term, second: Term) -> Term:
        """Unify two terms; if one cannot change, the reason names this node."""
        return unify(first, second, f"tied to a fixed dimension by {self.where(node)}")

    def broadcast(self, node: Node, *operands: Dims) -> Dims:
        """Align from the right, tie equal dimensions; dimensions of one unit follow the others."""
        rank = max(map(len, operands), default=0)
        result: list[Term] = []
        for position in range(-rank, 0):
            terms = [dims[position] for dims in operands if len(dims) >= -position and dims[position].size != 1]
            for term in terms[1:]:
                self.tie(node, terms[0], term)
            result.append(terms[0] if terms else Fix(1))
        return tuple(result)

    def frozen(self, node: Node, why: str) -> Dims | list[Dims]:
        """Freeze all that the node touches, with a reason; its outputs are fixed."""
        for argument in node.all_input_nodes:
            for dims in _each(self.terms[argument]):
                for term in dims:
                    freeze(term, why)
        return _map(node.meta.get("val"), lambda tensor: tuple(Fix(int(size)) for size in tensor.shape))


def walk(
    captured: Captured,
    *,
    freeze_tensors: Mapping[tuple[str, int], str] | None = None,
    freeze_nodes: Mapping[str, str] | None = None,
    ties: Collection[Tie] = (),
    trained: Captured | None = None,
) -> Walk:
    """Solve the terms of every node.

    ``freeze_tensors``: dimensions of parameters that must not change, and why; ``freeze_nodes``: names of nodes of
    the graph whose inputs must not, and why; ``ties``: what modules know by one number. ``trained``: the graph in
    training, where parts run that evaluation never reads.
    """
    record = Walk(captured)
    _solve(record, freeze_tensors or {}, freeze_nodes or {})
    for node in captured.graph.find_nodes(op="output"):
        record.frozen(node, "model output")
    for tie in ties:
        _tie_size(record, tie)
    if trained is not None:
        _freeze_trained(record, trained)
    for term in (term for node in _unused(record) for term in record.terms[node]):
        freeze(term, "never used in the forward pass")
    _freeze_unlearnt(record)
    record.sites = [site for site in record.sites if free(site.term)]
    return record


def _freeze_unlearnt(record: Walk) -> None:
    """What only buffers run along is nothing that could be pruned."""
    buffers = [node for _, node in _tensors(record) if node.name in record.captured.buffers]
    parameters = [node for _, node in _tensors(record) if node.name not in record.captured.buffers]
    learnt = {var for node in parameters for term in record.dims(node) for var in leaves(term)}
    for var in (var for node in buffers for term in record.dims(node) for var in leaves(term)):
        if var not in learnt:
            freeze(var, "no parameter runs along it")


def _solve(record: Walk, asked: Mapping[tuple[str, int], str], stops: Mapping[str, str]) -> None:
    """Apply the rule of every node, in order."""
    captured = record.captured
    variables = _needing_parameters(captured)
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            record.terms[node] = _placeholder(record, node, asked)
        elif node.op == "call_function":
            record.terms[node] = _solved(record, node, constant=node not in variables)
            why = stops.get(node.name) or (f"inside {record.where(node)}" if captured.opaque(node) else "")
            for term in touched(record, node) if why else ():
                freeze(term, why)


def _freeze_trained(record: Walk, trained: Captured) -> None:
    """What is read by parts that run in training only must stay: no gate acts there."""
    unused = {known for known, node in _tensors(record) if node in set(_unused(record))}
    other = Walk(trained, tied=record.tied)
    _solve(other, {}, {})
    for node in trained.graph.nodes:
        if any(trained.tensors.get(given.name) in unused for given in node.all_input_nodes):
            for term in (term for given in node.all_input_nodes for term in other.dims(given)):
                freeze(term, f"read by {trained.owner(node)}, which runs in training only")


def _solved(record: Walk, node: Node, *, constant: bool) -> Dims | list[Dims]:
    """What the operator's rule says; what makes a constant table stays fixed, but its multiply-adds are counted."""
    known = RULES.get(operator(node))
    fixed = record.frozen(node, "used to compute a constant table") if constant else None
    if known is None:
        return fixed or record.frozen(node, f"no rule for operator {record.where(node)}")
    try:
        terms = known(record, node)
        _check_sizes(terms, node)
    except (UnknownFormError, IndexError):  # more or fewer dimensions than the operator has elsewhere
        return fixed or record.frozen(node, f"no rule for this form of operator {record.where(node)}")
    return fixed or terms


def _tie_size(record: Walk, tie: Tie) -> None:
    """Sizes of what goes into a module, and of what it works on itself, that are one number stay one number."""
    module, size, fixed = tie
    first: Term | None = Fix(size) if fixed else None
    inside = [node for node in record.terms if module in record.captured.running(node).values()]
    known = set(inside)
    for node in inside:
        own = [node, *node.all_input_nodes] if record.captured.owner(node) == module else []
        coming = [given for given in node.all_input_nodes if given.op == "call_function" and given not in known]
        for term in (term for each in (*own, *coming) for term in record.dims(each)):
            if term.size == size and free(term):
                first = unify(first or term, term, f"tied to a fixed size by {record.where(node)}")


def touched(record: Walk, node: Node) -> list[Term]:
    """Free terms of what is computed and goes into a node; of its parameters, where nothing else does."""
    computed = [given for given in node.all_input_nodes if given.op == "call_function"]
    terms = [term for each in computed or node.all_input_nodes for term in record.dims(each)]
    return [term for term in terms if free(term)]


def _needing_parameters(captured: Captured) -> set[Node]:
    """Nodes that depend on a parameter, a buffer or an input; the others compute constants, which cannot be sliced."""
    needing: set[Node] = set()
    for node in captured.graph.nodes:
        given = node.op == "placeholder" and node.name not in captured.constants
        if given or any(argument in needing for argument in node.all_input_nodes):
            needing.add(node)
    return needing


def _placeholder(record: Walk, node: Node, asked: Mapping[tuple[str, int], str]) -> Dims:
    """A variable for every dimension of a parameter or buffer, the same ones for all names of a tied one."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ()
    name = record.tensor(node)
    if name is None:
        return tuple(Fix(int(size)) for size in value.shape)
    first = record.captured.shared.get(name, name)
    if first not in record.tied:
        record.tied[first] = tuple(Var(int(size)) if size != 1 else Fix(1) for size in value.shape)
    dims = record.tied[first]
    for dim, term in enumerate(dims):
        if (name, dim) in asked:
            freeze(term, asked[name, dim])
    return dims


def _unused(record: Walk) -> list[Node]:
    """Parameters and buffers that the forward pass never reads: they say nothing about their units."""
    shared = record.captured.shared
    read = {shared.get(name, name) for name, node in _tensors(record) if node.users}
    return [node for name, node in _tensors(record) if shared.get(name, name) not in read]


def _tensors(record: Walk) -> list[tuple[str, Node]]:
    known = record.captured.tensors
    return [(known[node.name], node) for node in record.captured.graph.nodes if node.name in known]


def operator(node: Node) -> str:
    """Name of the ATen operator of a node, such as ``conv2d.default``."""
    return str(getattr(node.target, "__name__", node.target))


def _each(terms: Any) -> list[Dims]:
    """Terms of a node as a list, one entry per output tensor."""
    return terms if isinstance(terms, list) else [terms]


def _map(value: Any, function: Callable[[Tensor], Dims]) -> Dims | list[Dims]:
    if isinstance(value, tuple | list):
        return [function(item) if isinstance(item, Tensor) else () for item in value]
    return function(value) if isinstance(value, Tensor) else ()


def _check_sizes(terms: Any, node: Node) -> None:
    """The terms must have the sizes that were traced: whatever a rule got wrong shows here at once."""
    values = node.meta.get("val")
    for dims, value in zip(_each(terms), values if isinstance(values, tuple | list) else [values], strict=True):
        if isinstance(value, Tensor):
            got, want = tuple(term.size for term in dims), tuple(int(size) for size in value.shape)
            if got != want:
                raise UnknownFormError(f"the rule says {got}, the graph says {want}")
