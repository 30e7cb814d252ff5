"""Terms: what the indices of one tensor dimension mean, solved by first-order unification.

    Fix(n)          no identity: space, batch, tokens, classes, kernel taps, everything frozen
    Var(n)          an unknown axis; may later be bound to another term of the same size
    Cat(t1..tk)     indices are the concatenation of the parts
    Prod(t1..tk)    row-major product: index = ((i0 * n1) + i1) * n2 + i2 ...

Every free ``Var`` left in a parameter's dimension is an axis, and its indices are the units. What remains of a ``Cat``
is the concatenation of what remains of its parts, of a ``Prod`` the outer product; so whatever is kept, every view,
split and concatenation of the smaller model can be expressed, by construction. The terms are ours.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import prod as product


class UnknownFormError(Exception):
    """A rule met an operator in a form that it does not know: sizes that do not go together."""


@dataclass(frozen=True, eq=False, slots=True)
class Fix:
    """A dimension whose indices have no identity: nothing of it can be removed. ``why``: the reason, if frozen."""

    size: int
    why: str | None = None


@dataclass(eq=False, slots=True)
class Var:
    """An unknown axis. ``bound``: what it turned out to be; ``why``: the reason, if it was frozen."""

    size: int
    bound: Term | None = None
    why: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Cat:
    """Concatenation of parts."""

    parts: tuple[Term, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, eq=False, slots=True)
class Prod:
    """Row-major product of parts, the last one running fastest."""

    parts: tuple[Term, ...]

    @property
    def size(self) -> int:
        return product(part.size for part in self.parts)


@dataclass(frozen=True, eq=False, slots=True)
class Striped:
    """No dimension, but a factor of a product: the stripes of so many filters that live, one per ``positions`` each."""

    filters: Term
    stripes: Var
    positions: int

    @property
    def size(self) -> int:
        return self.stripes.size


Term = Fix | Var | Cat | Prod | Striped
Dims = tuple[Term, ...]


def cat(parts: Sequence[Term]) -> Term:
    """Concatenation in normal form: flat, no empty part, neighbouring Fix merged."""
    flat: list[Term] = []
    for part in map(resolve, parts):
        for piece in part.parts if isinstance(part, Cat) else (part,):
            if isinstance(piece, Fix) and flat and isinstance(flat[-1], Fix):
                flat[-1] = Fix(flat[-1].size + piece.size)
            elif piece.size:
                flat.append(piece)
    return flat[0] if len(flat) == 1 else Cat(tuple(flat)) if flat else Fix(0)


def prod(parts: Sequence[Term]) -> Term:
    """Product in normal form: flat, no factor of one, neighbouring Fix merged."""
    flat: list[Term] = []
    for part in map(resolve, parts):
        for factor in part.parts if isinstance(part, Prod) else (part,):
            if isinstance(factor, Fix) and flat and isinstance(flat[-1], Fix):
                flat[-1] = Fix(flat[-1].size * factor.size)
            elif factor.size != 1:
                flat.append(factor)
    return flat[0] if len(flat) == 1 else Prod(tuple(flat)) if flat else Fix(1)


def resolve(term: Term) -> Term:
    """What the term is known to be by now: bindings followed, in normal form."""
    if isinstance(term, Var):
        while isinstance(term, Var) and term.bound is not None:
            term = term.bound
        return term if isinstance(term, Var) else resolve(term)
    if isinstance(term, Cat):
        return cat(term.parts)
    if isinstance(term, Prod):
        return prod(term.parts)
    return term


def identity(term: Term) -> Hashable:
    """What two terms have in common that stand for the same units."""
    term = resolve(term)
    if isinstance(term, Cat | Prod):
        return type(term), tuple(map(identity, term.parts))
    return term.size if isinstance(term, Fix) else term


def leaves(term: Term) -> Iterator[Var]:
    """The free axes that a term is made of, left to right, repeats included."""
    term = resolve(term)
    if isinstance(term, Var):
        yield term
    elif isinstance(term, Striped):
        yield from leaves(term.filters)
        yield from leaves(term.stripes)
    elif isinstance(term, Cat | Prod):
        for part in term.parts:
            yield from leaves(part)


def frozen_leaves(term: Term) -> Iterator[Var]:
    """The axes inside a term that were frozen, each with its reason in ``why``."""
    while isinstance(term, Var) and term.bound is not None:
        if term.why is not None:
            yield term
            return
        term = term.bound
    if isinstance(term, Cat | Prod):
        for part in term.parts:
            yield from frozen_leaves(part)


def free(term: Term) -> bool:
    """Whether anything of the term can be removed."""
    return next(leaves(term), None) is not None


def freeze(term: Term, why: str, root: str | None = None) -> Fix:
    """Nothing of this term can be removed, for the reason ``why``, which may have a reason of its own, the ``root``."""
    root = root or why
    for var in leaves(term):
        var.bound, var.why = Fix(var.size, root), why if why == root else f"{why} ({root})"
    return Fix(term.size, root)


def split(term: Term, at: int) -> tuple[Term, Term]:
    """Cut a term in two, the first piece having ``at`` units (concatenate, slice, chunk)."""
    term = resolve(term)
    if at in (0, term.size):
        return (Fix(0), term) if at == 0 else (term, Fix(0))
    if isinstance(term, Fix):
        return Fix(at), Fix(term.size - at)
    if isinstance(term, Var):
        left, right = Var(at), Var(term.size - at)
        term.bound = Cat((left, right))
        return left, right
    if isinstance(term, Cat):
        return _split_parts(term.parts, at)
    assert isinstance(term, Prod), "live stripes are a factor, not a dimension"
    return _split_product(term, at)


def _split_parts(parts: tuple[Term, ...], at: int) -> tuple[Term, Term]:
    first, rest = parts[0], parts[1:]
    if at >= first.size:
        left, right = _split_parts(rest, at - first.size) if at > first.size else (Fix(0), cat(rest))
        return cat([first, left]), right
    left, right = split(first, at)
    return left, cat([right, *rest])


def _split_product(term: Prod, at: int) -> tuple[Term, Term]:
    """Cut along the leading factor; what runs faster is shared by both halves."""
    for lead in range(1, len(term.parts) + 1):
        inner = prod(term.parts[lead:])
        if at % inner.size == 0:
            outer = term.parts[0] if lead == 1 else freeze(prod(term.parts[:lead]), "cut inside a product of axes")
            left, right = split(outer, at // inner.size)
            return prod([left, inner]), prod([right, inner])
    raise AssertionError("a product of no factors has size one and cannot be cut")


def factorize(term: Term, outer: int, inner: int) -> tuple[Term, Term]:
    """See a term as a row-major product of ``outer x inner`` (view, grouped convolution, group norm)."""
    term = resolve(term)
    if outer * inner != term.size:
        raise UnknownFormError(f"cannot cut {term.size} units into {outer} times {inner}")
    if outer == 1 or inner == 1:
        return (Fix(1), term) if outer == 1 else (term, Fix(1))
    if isinstance(term, Var):
        pair = Var(outer), Var(inner)
        term.bound = Prod(pair)
        return pair
    if isinstance(term, Cat):
        return _factorize_parts(term, outer, inner)
    if isinstance(term, Prod):
        return _regroup(term, outer, inner)
    return Fix(outer), Fix(inner)


def _factorize_parts(term: Cat, outer: int, inner: int) -> tuple[Term, Term]:
    if any(part.size % inner for part in term.parts):
        freeze(term, "a concatenation that a view cuts in between")
        return Fix(outer), Fix(inner)
    pairs = [factorize(part, part.size // inner, inner) for part in term.parts]
    for _, other in pairs[1:]:
        unify(pairs[0][1], other)
    return cat([pair[0] for pair in pairs]), pairs[0][1]


def _regroup(term: Prod, outer: int, inner: int) -> tuple[Term, Term]:
    left, right, missing = list(term.parts), list[Term](), inner
    while missing > 1:
        factor = left.pop()
        if missing % factor.size == 0:
            right.insert(0, factor)
            missing //= factor.size
        elif factor.size % missing == 0:
            more, last = factorize(factor, factor.size // missing, missing)
            left.append(more)
            right.insert(0, last)
            missing = 1
        else:
            freeze(term, "a product of axes that a view cuts in between")
            return Fix(outer), Fix(inner)
    return prod(left), prod(right)


def unify(first: Term, second: Term, why: str = "tied to a dimension that cannot change") -> Term:
    """Make two terms of one size mean the same units; returns the common term."""
    first, second = resolve(first), resolve(second)
    if first.size != second.size:
        raise UnknownFormError(f"cannot tie {first.size} units to {second.size}")
    if first is second:
        return first
    if isinstance(first, Fix) or isinstance(second, Fix):
        root = next((each.why for each in (first, second) if isinstance(each, Fix) and each.why), None)
        freeze(first, why, root)
        return freeze(second, why, root)
    if isinstance(first, Var):
        first.bound = second
    elif isinstance(second, Var):
        second.bound = first
    elif isinstance(first, Prod) and isinstance(second, Prod):
        _unify_products(first, second, why)
    else:
        _unify_pieces(first, second, why)
    return resolve(first)


def _unify_pieces(first: Term, second: Term, why: str) -> None:
    """Cut both at the union of their boundaries, and tie piece to piece."""
    while first.size:
        lead = min(_first_piece(first), _first_piece(second))
        left, first = split(first, lead)
        right, second = split(second, lead)
        unify(left, right, why)
        first, second = resolve(first), resolve(second)


def _first_piece(term: Term) -> int:
    return term.parts[0].size if isinstance(term, Cat) else term.size


def _unify_products(first: Prod, second: Prod, why: str) -> None:
    """Align the factors from the right, refining the coarser one."""
    ones, twos = list(first.parts), list(second.parts)
    while ones and twos:
        one, two = resolve(ones.pop()), resolve(twos.pop())
        if one.size < two.size:
            one, two, ones, twos = two, one, twos, ones
        if one.size % two.size:
            freeze(prod([*ones, one]), "two views that do not align")
            freeze(prod([*twos, two]), "two views that do not align")
            return
        outer, inner = factorize(one, one.size // two.size, two.size)
        unify(inner, two, why)
        if outer.size > 1:
            ones.append(outer)
