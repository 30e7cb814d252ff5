"""Operators that only move entries: view, permute, expand, concatenate, split, slice, select."""

from collections.abc import Sequence
from typing import Any, cast

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.rules.linear import argument
from nas_prune.tracing.terms import Cat, Dims, Fix, Prod, Term, Var, cat, factorize, freeze, prod, resolve, split
from nas_prune.tracing.walk import Walk, operator


@rule("view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "unflatten.int")
def view(walk: Walk, node: Node) -> Dims:
    """Input factors are collected into output dimensions, segment by segment between common boundaries."""
    x, shape = walk.of(node.args[0]), walk.shape(node)
    result = reshape(x, shape, f"a view that cuts an axis unevenly: {walk.where(node)}")
    for index, sizes in enumerate(node.args):
        if isinstance(sizes, list | tuple):  # all sizes, or (unflatten) those of one dimension
            first = cast(int, node.args[1]) % len(x) if index == 2 else 0
            walk.sizes(node, index, result[first : first + len(sizes)])
    return result


def reshape(x: Dims, shape: Sequence[int], why: str) -> Dims:
    """Terms of ``x`` seen with another shape of the same number of entries."""
    result: list[Term] = []
    left, want = list(x), list(shape)
    while want:
        outputs = [want.pop()]
        inputs: list[Term] = [left.pop()] if left else [Fix(1)]
        while (have := prod(inputs).size) != (need := _product(outputs)):
            if have < need:
                inputs.insert(0, left.pop())
            else:
                outputs.insert(0, want.pop())
        result = [*_segment(inputs, outputs, why), *result]
    return tuple(result)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _segment(inputs: list[Term], outputs: list[int], why: str) -> list[Term]:
    """One segment: split its product from the right, or freeze it where the view does not align."""
    rest = prod(inputs)
    aligned: list[Term] = []
    for size in reversed(outputs[1:]):
        if not divisible(rest, size):
            freeze(rest, why)
        rest, inner = factorize(rest, rest.size // size, size)
        aligned.insert(0, inner)
    return [resolve(rest), *map(resolve, aligned)]


def divisible(term: Term, inner: int) -> bool:
    """Whether the last ``inner`` units of a term can be seen as a dimension of their own."""
    term = resolve(term)
    if isinstance(term, Prod):
        missing = inner
        for factor in reversed(term.parts):
            if factor.size % missing == 0:
                return divisible(factor, missing) if factor.size != missing else True
            if missing % factor.size:
                return False
            missing //= factor.size
        return missing == 1
    if isinstance(term, Cat):
        return all(part.size % inner == 0 for part in term.parts)
    return term.size % inner == 0


@rule("permute.default")
def permute(walk: Walk, node: Node) -> Dims:
    """Dimensions in another order."""
    x = walk.of(node.args[0])
    return tuple(x[dim] for dim in cast(Sequence[int], node.args[1]))


@rule("transpose.int")
def transpose(walk: Walk, node: Node) -> Dims:
    """Two dimensions swapped."""
    x = list(walk.of(node.args[0]))
    i, j = (cast(int, dim) for dim in node.args[1:3])
    x[i], x[j] = x[j], x[i]
    return tuple(x)


@rule("t.default", "numpy_T.default")
def matrix_transpose(walk: Walk, node: Node) -> Dims:
    """All dimensions reversed."""
    return tuple(reversed(walk.of(node.args[0])))


@rule("unsqueeze.default")
def unsqueeze(walk: Walk, node: Node) -> Dims:
    """A new dimension of one."""
    x = list(walk.of(node.args[0]))
    x.insert(cast(int, node.args[1]) % (len(x) + 1), Fix(1))
    return tuple(x)


@rule("squeeze.dim", "squeeze.dims", "squeeze.default")
def squeeze(walk: Walk, node: Node) -> Dims:
    """Dimensions of one dropped."""
    x = walk.of(node.args[0])
    asked = argument(node, 1, range(len(x)))
    dims = {dim % len(x) for dim in ([asked] if isinstance(asked, int) else asked)}
    return tuple(term for dim, term in enumerate(x) if dim not in dims or term.size != 1)


@rule("expand.default")
def expand(walk: Walk, node: Node) -> Dims:
    """Dimensions of one repeated: an axis without a parameter, which may be tied to a real one later."""
    x, shape = walk.of(node.args[0]), walk.shape(node)
    padded = (*(Fix(1) for _ in range(len(shape) - len(x))), *x)
    result = tuple(Var(size) if term.size == 1 != size else term for term, size in zip(padded, shape, strict=True))
    walk.sizes(node, 1, result)
    return result


@rule("cat.default")
def concatenate(walk: Walk, node: Node) -> Dims:
    """Units of the parts one after the other; the other dimensions are tied."""
    parts = [walk.of(part) for part in cast(Sequence[Node], node.args[0])]
    dim = cast(int, argument(node, 1, 0)) % len(parts[0])
    given = [walk.tensor(_source(part)) is not None for part in cast(Sequence[Node], node.args[0])]
    if len(parts[0]) > 2 and any(given) and not all(given):
        for part, own in zip(parts, given, strict=True):
            if own:
                freeze(part[dim], f"tokens of the model's own, put in front by {walk.where(node)}")
    others = walk.broadcast(node, *((*part[:dim], Fix(1), *part[dim + 1 :]) for part in parts))
    return (*others[:dim], cat([part[dim] for part in parts]), *others[dim + 1 :])


def _source(node: Any) -> Any:
    """What a tensor is an expanded or moved view of."""
    while isinstance(node, Node) and operator(node).split(".")[0] in (
        "expand",
        "unsqueeze",
        "clone",
        "view",
        "permute",
    ):
        node = node.args[0]
    return node


@rule("stack.default")
def stack(walk: Walk, node: Node) -> Dims:
    """A new dimension, one entry per part, which cannot change."""
    parts = [walk.of(part) for part in cast(Sequence[Node], node.args[0])]
    dim = cast(int, argument(node, 1, 0)) % (len(parts[0]) + 1)
    others = walk.broadcast(node, *parts)
    return (*others[:dim], Fix(len(parts)), *others[dim:])


@rule("split.Tensor", "split_with_sizes.default", "chunk.default", "split.sizes")
def pieces(walk: Walk, node: Node) -> list[Dims]:
    """Consecutive pieces of one dimension, each an axis of its own where nothing ties them.

    Code that asks for equal pieces can only express pieces that stay equal: there, they are tied.
    """
    x = walk.of(node.args[0])
    dim = cast(int, argument(node, 2, 0)) % len(x)
    result, rest = list[Dims](), x[dim]
    for value in node.meta["val"]:
        piece, rest = split(rest, int(value.shape[dim]))
        result.append((*x[:dim], piece, *x[dim + 1 :]))
    cut = [piece[dim] for piece in result]
    if isinstance(node.args[1], int) and not all(isinstance(resolve(piece), Fix) for piece in cut):
        for piece in cut[1:]:
            if piece.size != cut[0].size:
                freeze(x[dim], f"cut into unequal pieces by {walk.where(node)}")
                break
            walk.tie(node, cut[0], piece)
    if operator(node) != "chunk.default":
        walk.sizes(node, 1, cut[0] if isinstance(node.args[1], int) else tuple(cut))
    return result


@rule("slice.Tensor")
def slicing(walk: Walk, node: Node) -> Dims | list[Dims]:
    """Units from start to end of one dimension; every s-th unit only where it can be seen as a factor."""
    x = walk.of(node.args[0])
    dim = cast(int, argument(node, 1, 0)) % len(x)
    size = x[dim].size
    start, end, step = (_index(argument(node, 2), 0, size), _index(argument(node, 3), size, size), argument(node, 4, 1))
    if step != 1:
        return _every(walk, node, dim, (start, end, step))
    prefix, rest = split(x[dim], start)
    piece, _ = split(rest, max(0, end - start))
    if (start, end) != (0, size):
        walk.sizes(node, 2, prefix)
        walk.sizes(node, 3, cat([prefix, piece]))
    return (*x[:dim], resolve(piece), *x[dim + 1 :])


def _every(walk: Walk, node: Node, dim: int, bounds: tuple[int, int, int]) -> Dims:
    """Every step-th unit of the whole dimension: seen as (n / step, step), of which the second is fixed."""
    x, (start, end, step) = walk.of(node.args[0]), bounds
    if x[dim].size % step or start >= step or end != x[dim].size or not divisible(x[dim], step):
        return freeze_dim(walk, node, dim)
    outer, inner = factorize(x[dim], x[dim].size // step, step)
    freeze(inner, f"picked apart by {walk.where(node)}")
    return (*x[:dim], resolve(outer), *x[dim + 1 :])


def _index(value: Any, default: int, size: int) -> int:
    """A Python slice bound as an index between 0 and size."""
    return default if value is None else min(size, max(0, value + size if value < 0 else value))


def freeze_dim(walk: Walk, node: Node, dim: int) -> Dims:
    """Freeze one dimension; the others pass if they keep their sizes, in order."""
    x = walk.of(node.args[0])
    freeze(x[dim], f"picked apart by {walk.where(node)}")
    return tuple(
        Fix(size) if i == dim else term for i, (term, size) in enumerate(zip(x, walk.shape(node), strict=True))
    )


@rule("select.int")
def select(walk: Walk, node: Node) -> Dims:
    """One entry of a dimension, which cannot change; the dimension disappears."""
    x = walk.of(node.args[0])
    dim = cast(int, node.args[1]) % len(x)
    freeze(x[dim], f"picked apart by {walk.where(node)}")
    return (*x[:dim], *x[dim + 1 :])


@rule("unbind.int")
def unbind(walk: Walk, node: Node) -> list[Dims]:
    """Every entry of a dimension on its own; the dimension cannot change."""
    x = walk.of(node.args[0])
    dim = cast(int, argument(node, 1, 0)) % len(x)
    freeze(x[dim], f"picked apart by {walk.where(node)}")
    return [(*x[:dim], *x[dim + 1 :]) for _ in range(x[dim].size)]


@rule("flip.default", "roll.default")
def reorder(walk: Walk, node: Node) -> Dims:
    """Entries of some dimensions change places, of all where none is named; those dimensions cannot change."""
    x = walk.of(node.args[0])
    dims = argument(node, 1 if operator(node) == "flip.default" else 2) or range(len(x))
    for dim in cast(Sequence[int], dims if isinstance(dims, Sequence) else [dims]):
        freeze(x[dim], f"reordered by {walk.where(node)}")
    return tuple(map(resolve, x))


@rule("pad.default", "constant_pad_nd.default")
def pad(walk: Walk, node: Node) -> Dims | list[Dims]:
    """What is added before and after a dimension is fixed; a padding that repeats entries fixes the whole dimension."""
    x, amounts = walk.of(node.args[0]), cast(Sequence[int], node.args[1])
    constant = argument(node, 2, "constant") == "constant" or "constant" in str(node.target)
    result = list(x)
    for index in range(0, len(amounts), 2):
        dim, before, after = len(x) - 1 - index // 2, *amounts[index : index + 2]
        if before or after:
            if not constant or min(before, after) < 0:
                result[dim] = freeze(x[dim], f"padded by {walk.where(node)}")
            result[dim] = cat([Fix(before), x[dim], Fix(after)])
    return tuple(Fix(size) if term.size != size else term for term, size in zip(result, walk.shape(node), strict=True))


@rule("getitem")
def getitem(walk: Walk, node: Node) -> Dims:
    """One output of a node that has several."""
    return cast(Dims, walk.terms[cast(Node, node.args[0])][cast(int, node.args[1])])
