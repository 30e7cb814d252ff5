"""A gated step does no work that changes nothing: a mask per term, none that is open, no weights nobody looks at."""

from collections import Counter

import pytest
from torch import Tensor
from zoo import traced

from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.terms import Cat, Fix, Prod, Term, Var, identity, leaves, resolve


def masks(gated: GatedModel, images: Tensor) -> list[Tensor | None]:
    """The masks of the sites in a forward pass."""
    gated(images)
    return gated._board.masks


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_mask_is_built_once_per_term(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = traced(name), Counter[object]()
    build = Axes.mask
    gated = GatedModel(net.fresh(), net.axes, "sigmoid").train()
    with monkeypatch.context() as patched:
        patched.setattr(Axes, "mask", lambda axes, term, keep: asked.update([term]) or build(axes, term, keep))
        found = masks(gated, net.images)
    terms = {identity(site.term): site.term for site in gated._sites}
    assert all(asked[term] == 1 for term in terms.values() if not isinstance(resolve(term), Var))
    assert len({id(mask) for mask in found}) == len(terms) < len(gated._sites)


def test_terms_of_the_same_units_are_the_same() -> None:
    one, other, bound = Var(4), Var(4), Var(4)
    bound.bound = one
    pairs: list[tuple[Term, Term]] = [
        (Cat((one, Fix(2))), Cat((bound, Fix(2)))),
        (Prod((one, other)), Prod((bound, other))),
    ]
    assert all(identity(first) == identity(second) for first, second in pairs)
    assert identity(Cat((one, other))) != identity(Prod((one, other))) != identity(Prod((other, one)))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_what_is_open_is_not_masked_and_what_is_closed_is(name: str) -> None:
    net = traced(name)
    gated = GatedModel(net.fresh(), net.axes, "mask").train()
    assert masks(gated, net.images) == [None] * len(gated._sites)
    closed = next(iter(net.axes.free))
    gated.gate(closed).get_buffer("keep")[0] = 0
    touched = [closed in {net.axes.variables.get(var) for var in leaves(site.term)} for site in gated._sites]
    assert [mask is not None for mask in masks(gated, net.images)] == touched
    with gated.fixed(Arch.dense(net.axes)):
        assert masks(gated, net.images) == [None] * len(gated._sites)


@pytest.mark.parametrize("gate", ["weight", "sigmoid"])
def test_gates_that_learn_are_masks_even_where_open(gate: str) -> None:
    net = traced("test_vit")
    gated = GatedModel(net.fresh(), net.axes, gate).train()
    assert all(mask is not None and mask.requires_grad for mask in masks(gated, net.images))


def test_what_is_more_than_a_product_acts_on_what_is_open_too() -> None:
    net = traced("test_resnet")
    gated = GatedModel(net.fresh(), net.axes, Blend)
    assert masks(gated, net.images) == [None] * len(gated._sites)
    assert all(gated._board.mixes)


class Blend(gates["mask"]):  # type: ignore[misc]
    """What acts is more than a product."""

    @staticmethod
    def mix(x: Tensor, keep: Tensor) -> Tensor:
        """Half of it stays."""
        return x * (1 + keep) / 2


@pytest.mark.parametrize(("gate", "looks"), [("weight", True), ("mask", False), ("sigmoid", False)])
def test_weights_are_looked_up_by_gates_that_look_at_them(
    gate: str, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = traced("test_resnet")
    gated, seen = GatedModel(net.fresh(), net.axes, gate), list[str]()
    weights = GatedModel.weights
    monkeypatch.setattr(GatedModel, "weights", lambda self, name: seen.append(name) or weights(self, name))
    gated.gate_values()
    assert bool(seen) == looks
    assert len(seen) == len(set(seen)), "looked up once"
