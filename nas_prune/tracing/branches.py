"""Branches: what a sum adds and could do without. A residual branch is a unit of depth, a candidate one of operations.

A residual branch begins and ends at one stream: ``x + f(x)``, where everything that f computes on the way is used for f
alone. A candidate is one summand of an ``ops.Choice``. Either is closed by one bit, a variable of one unit, that
multiplies the summand; all the work inside of a branch is worth its bit, so costs stay polynomials. Ours.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from nas_prune.base.axis import Kind
from nas_prune.tracing.graph.capture import Captured
from nas_prune.tracing.terms import Var
from nas_prune.tracing.walk import Site, Walk, operator

ADD = "add.Tensor"
LINEAR = (  # how the names of operators begin that turn zeros into zeros
    *("mul.", "view", "reshape", "permute", "transpose", "roll", "slice", "select", "clone", "contiguous", "dropout"),
    *("expand", "unsqueeze", "squeeze", "index.", "constant_pad", "alias", "detach", "_to_copy", "to.", "unflatten"),
    *("flatten", "cat.", "t.", "neg", "div."),
)
SAME = ("clone", "contiguous", "alias", "detach", "dropout")
AGAIN = ("relu.default", "relu6.default")  # twice is as good as once


@dataclass(frozen=True, eq=False)
class Branch:
    """A summand that can be left out.

    ``name``: of its axis; ``bit``: the variable that closes it, shared by branches that are decided together.
    ``add``, ``operand``: where it is added. ``inside``: the nodes that nothing else needs, parameters included.
    ``modules``: what of the eager model is all inside, in the order of the last nodes; or, if ``whole``, the one block
    that gives back its input when the branch is closed. ``optional``: a candidate that is not the first of its choice,
    which is closed unless asked for. ``why``: the reason, if it cannot be left out.
    """

    name: str
    kind: Kind
    bit: Var
    add: Node
    operand: int
    inside: frozenset[Node]
    modules: tuple[str, ...]
    whole: bool = False
    optional: bool = False
    why: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Branch:  # a fact about the graph: copies of a model share it
        return self


def branches(walk: Walk) -> list[Branch]:
    """The candidates of every choice, and the residual branches outside of them."""
    chosen = list(_candidates(walk.captured))
    adds = {branch.add for branch in chosen}
    return [*chosen, *_residuals(walk.captured, adds)]


def close(walk: Walk, found: Sequence[Branch]) -> None:
    """Enter the bits into the record: where they act, and whose work is theirs."""
    for branch in found:
        if branch.why is None:
            walk.sites.append(Site(branch.add, "mask", branch.operand, 0, branch.bit))
            for node in branch.inside:
                if node.op == "call_function" or _within(walk.captured.tensors.get(node.name, ""), branch.modules):
                    walk.presence.setdefault(node, []).append(branch.bit)
    for node in walk.presence.keys() & walk.products.keys():
        walk.products[node] = [(*terms, *walk.presence[node]) for terms in walk.products[node]]


def sums(captured: Captured) -> Iterator[Node]:
    """The nodes that add two tensors of one shape."""
    called = (node for node in captured.graph.nodes if node.op == "call_function")
    return (node for node in called if operator(node) == ADD and _of_tensors(node))


def passes(captured: Captured, path: str, closed: Collection[Branch]) -> bool:
    """Whether a module gives back its input when these branches are closed."""
    inside = {node for node in captured.graph.nodes if path in captured.running(node).values()}
    outputs = [node for node in inside if any(user not in inside for user in node.users)]
    operands = {branch.add: branch.operand for branch in closed}
    node: Any = outputs[0] if len(outputs) == 1 else None
    idempotent = set[str]()
    while node in inside:
        if node in operands:
            node = node.args[1 - operands[node]]
        elif operator(node) in AGAIN:
            idempotent.add(operator(node))
            node = node.args[0]
        elif operator(node).startswith(SAME):
            node = node.args[0]
        else:
            return False
    return isinstance(node, Node) and all(operator(node) == name for name in idempotent)


def _within(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in modules)


def _residuals(captured: Captured, known: set[Node]) -> Iterator[Branch]:
    found = []
    for node in sums(captured):
        if node not in known:
            for operand in (0, 1):
                inside = _residual(captured, node, operand)
                if inside:
                    found.append((node, operand, inside))
    owners = Counter(captured.owner(node) for node, _, _ in found)
    for node, operand, inside in found:
        owner, bit = captured.owner(node), Var(1)
        alone = Branch(f"{owner}.depth", "depth", bit, node, operand, inside, (owner,), whole=True)
        if owners[owner] == 1 and owner and passes(captured, owner, [alone]):
            yield alone
        else:
            modules = _modules(captured, inside)
            name = owner if not modules or (owner and owners[owner] == 1) else _largest(captured, inside, modules)
            why = _shared(owner, modules) or _why(captured, node.args[1 - operand], node.args[operand], inside, modules)
            yield replace(alone, name=f"{name}.depth", modules=modules, whole=False, why=why)


def _of_tensors(node: Node) -> bool:
    """Whether a sum is of two tensors of numbers of one shape."""
    values = [given.meta.get("val") for given in node.args if isinstance(given, Node)]
    return len(values) == 2 and all(
        value is not None and value.is_floating_point() and value.shape == node.meta["val"].shape for value in values
    )


def _residual(captured: Captured, add: Node, operand: int) -> frozenset[Node]:
    """What is computed for one operand alone, if it starts from the other operand; else nothing."""
    branch, stream = add.args[operand], add.args[1 - operand]
    inside = exclusive(branch, add) if isinstance(branch, Node) and isinstance(stream, Node) else frozenset()
    starts = any(given is stream for node in inside for given in node.all_input_nodes)
    learnt = any(node.name in captured.tensors and node.name not in captured.buffers for node in inside)
    return inside if starts and learnt and stream not in inside else frozenset()


def exclusive(last: Node, user: Node) -> frozenset[Node]:
    """``last`` and all nodes that only it needs, parameters included, provided that only ``user`` needs it."""
    if set(last.users) != {user} or last.op != "call_function":
        return frozenset()
    inside, waiting = {last}, list(last.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node not in inside and all(each in inside for each in node.users):
            inside.add(node)
            waiting += node.all_input_nodes
    return frozenset(inside)


def _modules(captured: Captured, inside: frozenset[Node]) -> tuple[str, ...]:
    """Outermost modules all of whose nodes are inside, in the order of their last nodes."""
    ran: dict[str, list[Node]] = defaultdict(list)
    for node in captured.graph.nodes:
        if node.op == "call_function":
            for path in captured.running(node).values():
                ran[path].append(node)
    whole = {path for path, nodes in ran.items() if path and inside.issuperset(nodes)}
    outermost = [path for path in whole if not any(path.startswith(f"{other}.") for other in whole)]
    position = {node: index for index, node in enumerate(captured.graph.nodes)}
    return tuple(sorted(outermost, key=lambda path: position[ran[path][-1]]))


def _largest(captured: Captured, inside: frozenset[Node], modules: tuple[str, ...]) -> str:
    """The module of most parameters: what a branch of several in a block is called after."""
    numbers: dict[str, int] = dict.fromkeys(modules, 0)
    for node in inside:
        name = captured.tensors.get(node.name, "")
        for path in modules:
            if _within(name, [path]):
                numbers[path] += int(node.meta["val"].numel())
    return max(numbers, key=lambda path: numbers[path])


def _shared(owner: str, modules: tuple[str, ...]) -> str | None:
    """Why not, if a module inside a module of the block would have to go: its parent may ask for its weight."""
    parents = {path.rpartition(".")[0] for path in modules} - {owner}
    return f"{min(parents)} computes more than this branch" if parents else None


def _why(captured: Captured, stream: Any, last: Any, inside: frozenset[Node], modules: tuple[str, ...]) -> str | None:
    """Why a branch cannot be taken out of the eager model; None if it can: zeros of its last module stay zeros."""
    if not modules:
        return "no module computes this branch that could be left out"
    if any(captured.opaque(node) for node in inside):
        return f"{modules[-1]} gives more than the branch"
    tail = set[Node]()
    while modules[-1] not in captured.running(last).values():
        computed = [given for given in last.all_input_nodes if given in inside and given.op == "call_function"]
        if not operator(last).startswith(LINEAR) or len(computed) != 1:
            return f"after {modules[-1]} the branch goes on with {operator(last)}, which no module computes"
        tail.add(last)
        last = computed[0]
    given = _given(captured, inside, modules[-1])
    if given is None or _shape(given) == _shape(last):
        return None
    if any(_reshapes(node) and not _of(captured, node, modules) for node in inside - tail) or (
        _shape(stream) != _shape(last)
    ):
        return f"{modules[-1]} changes the shape of what it is given"
    return None


def _reshapes(node: Node) -> bool:
    """Whether a node gives another shape than it gets."""
    given = next((each for each in node.all_input_nodes if _computed(each)), None)
    return _computed(node) and given is not None and _shape(given) != _shape(node)


def _given(captured: Captured, inside: frozenset[Node], module: str) -> Node | None:
    """What goes into a module first."""
    own = [node for node in captured.graph.nodes if node in inside and _of(captured, node, [module])]
    return next(
        (given for node in own for given in node.all_input_nodes if given not in own and _computed(given)), None
    )


def _of(captured: Captured, node: Node, modules: Collection[str]) -> bool:
    """Whether one of the modules computes a node."""
    return any(path in modules for path in captured.running(node).values())


def _computed(node: Node) -> bool:
    return node.op == "call_function"


def _shape(node: Node) -> tuple[int, ...] | None:
    """Shape of what a node gives; None where that is several tensors."""
    shape = getattr(node.meta["val"], "shape", None)
    return None if shape is None else tuple(shape)


def _candidates(captured: Captured) -> Iterator[Branch]:
    """Every summand of every choice; choices of one name share their bits."""
    bits: dict[str, Var] = {}
    for path, (shared, names) in captured.choices.items():
        adds = [n for n in captured.graph.nodes if n.op == "call_function" and captured.owner(n) == path]
        adds = [node for node in adds if operator(node) == ADD]
        if len(names) == 1 or len(adds) != len(names) - 1:
            continue
        for index, name in enumerate(names):
            add, operand = adds[max(0, index - 1)], min(1, index)
            axis = f"{shared}.{name}"
            last = add.args[operand]
            inside = exclusive(last, add) if isinstance(last, Node) else frozenset()
            module = f"{path}.candidates.{name}"
            bit, optional = bits.setdefault(axis, Var(1)), index > 0
            yield Branch(axis, "operation", bit, add, operand, inside, (module,), optional=optional)
