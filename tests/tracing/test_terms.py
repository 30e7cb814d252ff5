"""Known answers of the unification, and one law: whatever is done to terms, they keep their sizes."""

import random
from functools import reduce

import pytest

from nas_prune.tracing.rules.shapes import reshape
from nas_prune.tracing.terms import (
    Cat,
    Fix,
    Term,
    UnknownFormError,
    Var,
    cat,
    factorize,
    free,
    freeze,
    frozen_leaves,
    leaves,
    prod,
    resolve,
    split,
    unify,
)


def shape(term: Term) -> object:
    """A term as plain data: a size where fixed, a string of a size where free, nested tuples otherwise."""
    term = resolve(term)
    if isinstance(term, Fix):
        return term.size
    if isinstance(term, Var):
        return f"v{term.size}"
    return ("cat" if isinstance(term, Cat) else "prod", *map(shape, term.parts))


def test_normal_form_of_cat() -> None:
    a, b = Var(3), Var(4)
    assert shape(cat([Fix(1), Fix(2), cat([a, Fix(0), b]), Fix(5)])) == ("cat", 3, "v3", "v4", 5)
    assert cat([Fix(0), a]) is a
    assert shape(cat([])) == 0


def test_normal_form_of_prod() -> None:
    a, b = Var(3), Var(4)
    assert shape(prod([Fix(2), Fix(3), prod([a, Fix(1), b])])) == ("prod", 6, "v3", "v4")
    assert prod([Fix(1), a]) is a
    assert shape(prod([])) == 1


def test_a_bound_variable_is_flattened_into_what_holds_it() -> None:
    a, b = Var(6), Var(2)
    whole = cat([a, b])
    split(a, 2)
    assert shape(whole) == ("cat", "v2", "v4", "v2")
    product = prod([Var(5), b])
    unify(b, Fix(2))
    assert shape(product) == ("prod", "v5", 2)


def test_split_of_each_kind() -> None:
    assert [shape(piece) for piece in split(Fix(7), 3)] == [3, 4]
    assert [shape(piece) for piece in split(Var(7), 3)] == ["v3", "v4"]
    assert [shape(piece) for piece in split(cat([Var(4), Var(4)]), 6)] == [("cat", "v4", "v2"), "v2"]
    assert [shape(piece) for piece in split(Var(7), 0)] == [0, "v7"]
    assert [shape(piece) for piece in split(Var(7), 7)] == ["v7", 0]


def test_both_halves_of_a_split_product_share_what_runs_faster() -> None:
    inner = Var(4)
    left, right = split(prod([Var(6), inner]), 8)
    assert (shape(left), shape(right)) == (("prod", "v2", "v4"), ("prod", "v4", "v4"))
    assert resolve(left).parts[1] is resolve(right).parts[1] is inner


def test_a_product_cut_inside_a_factor_freezes_only_what_leads() -> None:
    outer, inner = Var(3), Var(4)
    left, right = split(prod([outer, inner]), 6)
    assert left.size == right.size == 6
    assert outer.why == "cut inside a product of axes"


def test_factorize_of_each_kind() -> None:
    assert [shape(factor) for factor in factorize(Var(12), 3, 4)] == ["v3", "v4"]
    assert [shape(factor) for factor in factorize(Fix(12), 3, 4)] == [3, 4]
    assert [shape(factor) for factor in factorize(Var(12), 1, 12)] == [1, "v12"]
    assert [shape(factor) for factor in factorize(prod([Var(2), Var(6)]), 4, 3)] == [("prod", "v2", "v2"), "v3"]
    assert [shape(factor) for factor in factorize(cat([Var(8), Var(4)]), 3, 4)] == [("cat", "v2", 1), "v4"]


def test_factorize_freezes_what_does_not_align() -> None:
    a, b = Var(6), Var(6)
    factorize(cat([a, b]), 3, 4)
    assert a.why == b.why == "a concatenation that a view cuts in between"
    c, d = Var(2), Var(3)
    factorize(prod([c, d]), 3, 2)
    assert c.why == d.why == "a product of axes that a view cuts in between"


def test_unify_ties_variables_to_one_another() -> None:
    a, b, c = Var(4), Var(4), Var(4)
    unify(a, b)
    unify(c, a)
    assert resolve(a) is resolve(b) is resolve(c)
    assert unify(a, c) is resolve(b)


def test_unify_of_concatenations_cuts_at_all_boundaries() -> None:
    first, second = cat([Var(3), Var(5)]), cat([Var(6), Var(2)])
    assert shape(unify(first, second)) == ("cat", "v3", "v3", "v2")
    assert list(leaves(first)) == list(leaves(second))


def test_unify_of_a_concatenation_with_a_product() -> None:
    heads, width = Var(3), Var(4)
    q, kv = Var(4), Var(8)
    assert shape(unify(cat([q, kv]), prod([heads, width]))) == ("cat", "v4", ("prod", "v2", "v4"))
    assert resolve(q) is resolve(width)
    assert shape(heads) == ("cat", "v1", "v2")


def test_unify_of_products_refines_the_coarser() -> None:
    first, second = prod([Var(2), Var(6)]), prod([Var(4), Var(3)])
    assert shape(unify(first, second)) == ("prod", "v2", "v2", "v3")
    assert list(leaves(first)) == list(leaves(second))


def test_products_that_do_not_align_are_frozen_with_a_reason() -> None:
    first, second = prod([Var(2), Var(3)]), prod([Var(3), Var(2)])
    unify(first, second)
    assert not free(first)
    assert not free(second)
    assert {var.why for var in [*frozen_leaves(first), *frozen_leaves(second)]} == {"two views that do not align"}


def test_a_reason_stays_with_the_variable_that_was_frozen() -> None:
    a, b, whole = Var(3), Var(4), Var(7)
    unify(whole, cat([a, b]))
    unify(a, Fix(3), "a is asked for")
    freeze(whole, "all of it")
    assert (a.why, b.why) == ("a is asked for", "all of it")
    assert [var.why for var in frozen_leaves(whole)] == ["a is asked for", "all of it"]


def test_terms_of_different_sizes_cannot_be_tied() -> None:
    with pytest.raises(UnknownFormError, match="cannot tie 3 units to 4"):
        unify(Var(3), Var(4))


def test_views_split_and_merge_factors() -> None:
    heads, width, tokens = Var(3), Var(4), Fix(5)
    merged = reshape((tokens, heads, width), (5, 12), "uneven")
    assert [shape(term) for term in merged] == [5, ("prod", "v3", "v4")]
    assert [resolve(term) for term in reshape(merged, (5, 3, 4), "uneven")[1:]] == [heads, width]
    reshape((Var(4), tokens, heads), (2, 2, 15), "uneven")
    assert free(heads)
    reshape((heads, Fix(8)), (4, 6), "uneven")
    assert heads.why == "uneven"


def random_term(source: random.Random, size: int) -> Term:
    """A term of this size, of any kind."""
    divisors = [d for d in range(2, size) if size % d == 0]
    kind = source.choice(["fix", "var", "var", "cat", "prod"])
    if kind == "cat" and size > 1:
        at = source.randrange(1, size)
        return cat([random_term(source, at), random_term(source, size - at)])
    if kind == "prod" and divisors:
        outer = source.choice(divisors)
        return prod([random_term(source, outer), random_term(source, size // outer)])
    return Fix(size) if kind == "fix" else Var(size)


def kept(term: Term, chosen: dict[Var, list[int]], source: random.Random) -> list[int]:
    """Which units of a term are kept (0 or 1 each), variables keeping units at random; a single unit always stays."""
    term = resolve(term)
    if isinstance(term, Var) and term.size > 1:
        return chosen.setdefault(term, [source.randint(0, 1) for _ in range(term.size)])
    if isinstance(term, Fix | Var):
        return [1] * term.size
    parts = [kept(part, chosen, source) for part in term.parts]
    if isinstance(term, Cat):
        return [unit for part in parts for unit in part]
    return reduce(lambda outer, inner: [i * j for i in outer for j in inner], parts)


@pytest.mark.parametrize("seed", range(100))
def test_sizes_and_meaning_are_preserved_whatever_is_done(seed: int) -> None:
    source = random.Random(seed)
    size = source.choice([12, 16, 24, 30, 36])
    terms = [random_term(source, size) for _ in range(4)]
    for _ in range(8):
        term, other, at = source.choice(terms), source.choice(terms), source.randrange(size + 1)
        inner = source.choice([d for d in range(1, size + 1) if size % d == 0])
        operation = source.choice(["split", "factorize", "unify"])
        if operation == "split":
            pieces = split(term, at)
            assert [resolve(piece).size for piece in pieces] == [at, size - at]
            other = cat(pieces)
        elif operation == "factorize":
            factors = factorize(term, size // inner, inner)
            assert [resolve(factor).size for factor in factors] == [size // inner, inner]
            other = prod(factors)
        else:
            unify(term, other)
        chosen: dict[Var, list[int]] = {}
        assert kept(term, chosen, source) == kept(other, chosen, source)
        assert all(resolve(known).size == known.size == size for known in terms)
