"""Compensations: what is a combination of others goes without an error; what is not leaves less of one."""

import copy
from functools import cache

import pytest
import torch
from accelerate import Accelerator
from known_answers import Perceptron, planted_width
from torch import Tensor, nn

from nas_prune.base.errors import DataError
from nas_prune.costs import Budget, Macs
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.methods.compensations import compensations
from nas_prune.methods.compensations.compensation import refitted
from nas_prune.methods.compensations.ridge import ridge
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.arch import Arch
from nas_prune.train.loop import Run
from nas_prune.train.search import search
from nas_prune.train.settings import SearchSettings

KEPT = Arch({"first": [0, 1, 3], "second": [0, 2, 3]})


class Net(nn.Module):
    """Two convolutions, one with a BatchNorm behind it and one with a bias, and a pooled head."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, padding=padding, bias=False)
        self.norm, self.third, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=padding), nn.Linear(6, 4)

    def maps(self, x: Tensor) -> Tensor:
        """Before they are pooled."""
        return self.third(self.norm(self.second(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x).relu().mean((2, 3)))


@cache
def made(padding: int = 0) -> tuple[GatedModel, Tensor]:
    """The network in float64, and images. Units 2 and 4 of ``first`` and 1 of ``second`` are combinations of others."""
    generator = torch.Generator().manual_seed(3)
    model = Net(padding).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for tensor in (model.first.weight, model.first.bias):
            tensor[2], tensor[4] = 0.5 * tensor[0] - 2 * tensor[1], tensor[3]
        model.first.bias[2] += 3
        model.second.weight[1] = -model.second.weight[3]
        model.norm.running_mean.copy_(torch.randn(4, generator=generator))
    images = torch.randn(6, 3, 9, 8, generator=generator).double()
    return GatedModel(model, trace(model, images)), images


def net(padding: int = 0) -> tuple[GatedModel, list[tuple[Tensor, Tensor]]]:
    """A copy of it, and two batches."""
    gated, images = copy.deepcopy(made(padding))
    return gated, [(each, torch.zeros(3).long()) for each in images.split(3)]


def small_of(gated: GatedModel, arch: Arch, edits: dict[str, Tensor]) -> nn.Module:
    """What is derived."""
    return derive(gated.backbone, gated.axes, arch, edits=edits).eval()


def test_combinations_of_others_go_without_an_error() -> None:
    gated, batches = net()
    images = torch.cat([x for x, _ in batches])
    small = small_of(gated, KEPT, ridge(gated, KEPT, batches, strength=0.0))
    others = torch.randn(4, 3, 9, 8).double()
    with torch.no_grad():
        for x in (images, others):  # the combinations hold for all images
            assert torch.allclose(small(x), gated.backbone(x), atol=1e-9)
            assert not torch.allclose(small_of(gated, KEPT, {})(x), gated.backbone(x), atol=1e-1)


def test_what_is_derived_computes_what_the_edited_model_does() -> None:
    gated, batches = net(padding=1)
    for compensate in compensations.values():
        edits = compensate(gated, KEPT, batches)
        small, edited = small_of(gated, KEPT, edits), copy.deepcopy(gated)
        edited.backbone.load_state_dict({**edited.backbone.state_dict(), **edits})
        with torch.no_grad():
            assert torch.allclose(small(batches[0][0]), edited.fixed(KEPT)(batches[0][0]), atol=1e-9)


@pytest.mark.parametrize("name", compensations)
def test_what_a_constant_unit_said_goes_on_and_only_borders_see_it_go(name: str) -> None:
    for padding in (0, 1):
        gated, batches = net(padding)
        with torch.no_grad():
            gated.backbone.first.weight[2] = 0
        arch = Arch({"first": [0, 1, 3, 4]})
        small = small_of(gated, arch, compensations[name](gated, arch, batches))
        with torch.no_grad():
            error = (small.maps(batches[0][0]) - gated.backbone.maps(batches[0][0])).abs().amax((0, 1))
        border = 2 * padding  # two layers of 3 x 3
        inside = error[border : error.shape[0] - border, border : error.shape[1] - border]
        assert float(inside.max()) < 1e-9
        assert (float(error.max()) > 0.1) == bool(padding)


@pytest.mark.parametrize("name", compensations)
def test_what_gates_had_closed_leaves_nothing_to_make_up_for(name: str) -> None:
    gated, batches = net()
    arch = Arch({"first": [0, 1, 3, 4]})
    gated.gate("first").keep[2] = 0
    with torch.no_grad():
        expected = gated(batches[0][0])
    small = small_of(gated, arch, compensations[name](gated, arch, batches))
    with torch.no_grad():
        assert torch.allclose(small(batches[0][0]), expected, atol=1e-9)


def test_ridge_is_the_least_squares_of_what_is_missing() -> None:
    gated, batches = net()
    arch, images = Arch({"second": [0, 2]}), torch.cat([x for x, _ in batches])
    edits = ridge(gated, arch, batches, strength=0.3)
    model = gated.backbone
    with torch.no_grad():
        x = model.norm(model.second(model.first(images))).movedim(1, -1).reshape(-1, 4)
    z, d = x[:, [0, 2]] - x[:, [0, 2]].mean(0), x[:, [1, 3]]
    hold = 0.3 * z.square().mean() * len(z)
    solved = torch.linalg.solve(z.T @ z + hold * torch.eye(2), z.T @ (d - d.mean(0)))  # (m n)
    added = torch.einsum("onij,mn->omij", model.third.weight[:, [1, 3]], solved)
    assert torch.allclose(edits["third.weight"][:, [0, 2]], model.third.weight[:, [0, 2]] + added)
    assert torch.equal(edits["third.weight"][:, [1, 3]], model.third.weight[:, [1, 3]])
    constant = d.mean(0) - x[:, [0, 2]].mean(0) @ solved
    bias = model.third.bias + torch.einsum("onij,n->o", model.third.weight[:, [1, 3]], constant)
    assert torch.allclose(edits["third.bias"], bias)
    assert set(edits) == {"third.weight", "third.bias"}
    means = refitted(gated, KEPT, batches, 6)
    assert set(means) == {"norm.running_mean", "third.bias"}
    assert refitted(gated, Arch(), batches, 6) == {}


def test_as_many_images_are_looked_at_as_are_asked_for() -> None:
    gated, batches = net()
    images = torch.cat([x for x, _ in batches])
    for compensate in (compensations[name] for name in ("ridge", "mean")):
        some = compensate(gated, KEPT, batches, images=4)
        assert all(torch.allclose(v, some[k]) for k, v in compensate(gated, KEPT, [(images[:4], None)]).items())
        assert not torch.equal(some["third.bias"], compensate(gated, KEPT, batches)["third.bias"])
        with pytest.raises(DataError, match="at least one batch"):
            compensate(gated, KEPT, [])


def test_a_network_that_was_trained_errs_less_right_after_it_was_derived() -> None:
    torch.manual_seed(0)
    task = planted_width(8)
    assert isinstance(task.net, Perceptron)
    optimizer = torch.optim.Adam(task.net.parameters(), lr=1e-2)
    for _, (x, labels) in zip(range(60), task.loader(), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(task.net(x), labels).backward()
        optimizer.step()
    gated, (x, labels) = GatedModel(task.net, trace(task.net, task.train[0][:1])), task.held_out
    (name,) = gated.axes.free
    arch = Arch({name: gated.weights(name)[0].norm(dim=1).topk(24).indices.tolist()})
    errors, right = [], []
    for edits in [{}, *(compensations[each](gated, arch, [task.train]) for each in ("mean", "ridge"))]:
        with torch.no_grad():
            logits, dense = small_of(gated, arch, edits)(x), task.net(x)
        errors.append(float((logits - dense).square().mean() / dense.var()))
        right.append(float((logits.argmax(1) == labels).float().mean()))
    assert errors[2] < 0.5 * errors[1] < 0.5 * errors[0]  # 0.090, 0.42 and 0.58 seen, of the variance of the logits
    assert right[2] > right[1] > right[0]  # 0.68, 0.56 and 0.46 seen


def test_a_search_compensates_for_what_it_decides() -> None:
    torch.manual_seed(0)
    task = planted_width(4)
    made = GatedModel(task.net, trace(task.net, task.train[0][:1]))
    budget, (x, _) = Budget("0.5x", Macs(made.axes)), task.held_out
    dense, errors = task.net(x).detach(), []
    for name in (None, "ridge"):
        gated = copy.deepcopy(made)
        settings = SearchSettings(warmup=0, joint=0, freeze=0, compensation={"name": name}, criterion_batches=2)
        arch = search(gated, task.loader(), budget=budget, settings=settings, run=Run(Accelerator(cpu=True)))
        with torch.no_grad():
            errors.append(float((gated.eval().fixed(arch)(x) - dense).square().mean()))
    assert errors[1] < 0.5 * errors[0]
