"""SCOP: knockoffs have the moments that they must have, scales are those of a naive loop, known answers come out."""

import copy
import warnings
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm
from zoo import traced_model

from nas_prune.base.errors import DataError, DivergedError, SpaceError
from nas_prune.derivation.trace import trace
from nas_prune.methods.criteria.of_features.knockoffs import knockoffs
from nas_prune.methods.criteria.of_features.scop import doubted, scop
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing import Axes

Batch = tuple[Tensor, Tensor]
RATE, FIRST, SECOND, TINY = 4e-3, 0.5, 0.9, 1e-8  # Adam, as in the authors' code
FAST, EPOCHS = 0.05, 15  # a rate that brings scales to their ends in as many epochs of two steps


def seeded(seed: int = 0) -> torch.Generator:
    """The same random numbers every time."""
    return torch.Generator().manual_seed(seed)


# knockoffs


def population() -> Tensor:
    """Images of five correlated pixels, in float64."""
    return torch.randn(9, 5, generator=seeded(), dtype=torch.float64) @ torch.randn(5, 5, generator=seeded(1)).double()


@pytest.mark.parametrize("distance", [0.2, 0.7, 1.0])
def test_knockoffs_are_those_of_the_model_x_construction(distance: float) -> None:
    images = population()
    count, mean, none, one = 9, images.mean(0), torch.zeros(5, 9).double(), torch.eye(9).double()
    covariance = (images - mean).T @ (images - mean) / count
    lengths, components = torch.linalg.eigh(covariance)
    s = distance * lengths

    def of_components(values: Tensor) -> Tensor:
        return components @ values.diag() @ components.T

    told = torch.eye(5).double() - of_components(s / lengths)  # what is left of x - m
    left = knockoffs(torch.eye(5).double() + mean, images, none, distance) - mean
    noise = knockoffs(mean.expand(9, 5), images, one, distance) - mean
    assert torch.allclose(left, told.T, atol=1e-12)
    assert torch.allclose(noise.T @ noise, of_components(2 * s - s.square() / lengths), atol=1e-12)
    whole = left.T @ covariance @ left + noise.T @ noise
    assert torch.allclose(whole, covariance, atol=1e-12)  # of x~, that of x
    assert torch.allclose(covariance @ left, covariance - of_components(s), atol=1e-12)  # of both, but for s


def test_many_knockoffs_have_the_covariance_that_they_must_have() -> None:
    images, draws, distance = population(), 40_000, 0.4
    x = images[torch.randint(9, (draws,), generator=seeded(2))]
    found = knockoffs(x, images, torch.randn(draws, 9, generator=seeded(3)).double(), distance)
    covariance = torch.cov(images.T, correction=0)
    expected = torch.cat([torch.cat([covariance, (1 - distance) * covariance], 1) for _ in range(2)])
    expected[5:] = torch.cat([(1 - distance) * covariance, covariance], 1)
    error = torch.cov(torch.cat([x, found], 1).T) - expected
    size = covariance.diagonal().sqrt().repeat(2)
    assert float((error / torch.outer(size, size)).abs().max()) < 6 * 2 / draws**0.5  # of products, 2 at the most
    assert float(((found.mean(0) - images.mean(0)) / size[:5]).abs().max()) < 5 / draws**0.5


def test_knockoffs_of_maps_are_those_of_their_pixels() -> None:
    images, noise = population()[:, :4], torch.randn(3, 9, generator=seeded(2)).double()
    flat = knockoffs(images[:3], images, noise)
    assert torch.equal(knockoffs(images[:3].reshape(3, 1, 2, 2), images.reshape(9, 1, 2, 2), noise).flatten(1), flat)
    assert torch.equal(knockoffs(images[:3], images, noise, 0.0), images[:3])
    assert torch.allclose(knockoffs(images[3:6], images, noise), flat, atol=1e-12)  # at distance 1, whatever x is


# the criterion


class Residual(nn.Module):
    """A stem, a residual branch with a width of its own, and a classifier; the stem's norm stands on the sum, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.inner, self.between = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.outer, self.after = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.after(self.outer(self.between(self.inner(x)).relu()))
        return self.head(x.relu().mean((2, 3)))


@cache
def axes_of(kind: type[nn.Module], *shape: int) -> Axes:
    """The axes of a network of this kind, traced once, in float64."""
    return trace(kind().double(), torch.zeros(2, *shape).double())


def residual(dtype: torch.dtype = torch.float64) -> tuple[GatedModel, list[Batch]]:
    """The network above, every number random, and batches of two sizes."""
    model = Residual().to(dtype)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=seeded(index))
            parameter.copy_(drawn.abs() if name.endswith("bias") else drawn)  # no unit is closed by chance
    draw = [torch.randn(size, 2, 5, 5, generator=seeded(size), dtype=dtype) for size in (6, 4)]
    batches = [(x, x.mean((2, 3)).argmax(1) + (x.mean((1, 2, 3)) > 0)) for x in draw]
    return GatedModel(model, axes_of(Residual, 2, 5, 5)), batches


def naive(model: Residual, batches: list[Batch], rate: float) -> dict[str, Tensor]:
    """The authors' loop, written out: what the two widths' scales are in the end."""

    def blend(z: Tensor, k: Tensor) -> Tensor:
        half = len(z) // 2
        rows = [k[:, None, None] * z[i] + (1 - k[:, None, None]) * z[half + i] for i in range(half)]
        return torch.stack([*rows, *z[half:]])

    def norm(layer: nn.BatchNorm2d, z: Tensor) -> Tensor:
        mean, variance = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), correction=0, keepdim=True)
        z = (z - mean) / (variance + layer.eps).sqrt()
        return layer.weight[:, None, None] * z + layer.bias[:, None, None]

    k = {"stem": torch.full((4,), 0.5).double(), "inner": torch.full((3,), 0.5).double()}
    first, second = ({name: torch.zeros_like(each) for name, each in k.items()} for _ in range(2))
    images, generator = torch.cat([x for x, _ in batches]), seeded()
    for step, (x, labels) in enumerate(batches * EPOCHS, 1):
        other = knockoffs(x, images, torch.randn(len(x), len(images), generator=generator).double())
        at = {name: each.clone().requires_grad_() for name, each in k.items()}
        z = norm(model.norm, blend(model.stem(torch.cat([x, other])), at["stem"])).relu()
        inner = norm(model.between, blend(model.inner(z), at["inner"])).relu()
        z = z + norm(model.after, blend(model.outer(inner), at["stem"]))
        logits = model.head(z.relu().mean((2, 3)))[: len(x)]
        slopes = dict(zip(at, torch.autograd.grad(F.cross_entropy(logits, labels), list(at.values())), strict=True))
        for name, slope in slopes.items():
            first[name] = FIRST * first[name] + (1 - FIRST) * slope
            second[name] = SECOND * second[name] + (1 - SECOND) * slope**2
            size = (second[name] / (1 - SECOND**step)).sqrt() + TINY
            k[name] = (k[name] - rate * first[name] / (1 - FIRST**step) / size).clamp(0, 1)
    return k


@pytest.mark.parametrize("rate", [RATE, FAST])
def test_scores_are_those_of_the_naive_loop(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gated, batches = residual()
    model = gated.plain()
    k = naive(model, batches, rate)
    gamma = {"stem": (model.norm.weight.abs() + model.after.weight.abs()) / 2, "inner": model.between.weight.abs()}
    if rate != RATE:
        monkeypatch.setattr("nas_prune.methods.criteria.of_features.scop.RATE", rate)
    scores = scop(gated, batches, epochs=EPOCHS)
    for name, each in k.items():
        assert torch.allclose(scores[name], (gamma[name] * (2 * each - 1)).detach(), atol=1e-7)
    ends = torch.cat(list(k.values()))
    assert {0.0, 1.0} <= set(ends.tolist()) or rate == RATE, "at each end some are cut off"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_knockoff_that_is_the_image_tells_no_unit_from_another(dtype: torch.dtype) -> None:
    gated, batches = residual(dtype)
    scores = scop(gated, batches, distance=0.0, epochs=EPOCHS)
    assert [score.count_nonzero().item() for score in scores.values()] == [0] * len(scores)


def test_a_unit_that_its_norm_closes_and_one_that_nobody_reads_score_0() -> None:
    gated, batches = residual()
    with torch.no_grad():
        gated.backbone.between.weight[1] = 0
        gated.backbone.outer.weight[:, 2] = 0
    score = scop(gated, batches, epochs=4)["inner"]
    assert score[1:].tolist() == [0, 0]
    assert float(score[0]) != 0


def test_scores_follow_their_units() -> None:
    gated, batches = residual()
    moved, order = copy.deepcopy(gated.plain()), torch.tensor([2, 0, 1])
    with torch.no_grad():
        for layer in (moved.inner, moved.between):
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        moved.outer.weight.copy_(moved.outer.weight[:, order])
    scores, there = (scop(each, batches, epochs=EPOCHS) for each in (gated, GatedModel(moved, gated.axes)))
    assert torch.allclose(there["inner"], scores["inner"][order], atol=1e-7)
    assert torch.allclose(there["stem"], scores["stem"], atol=1e-7)
    assert float(scores["inner"].diff().abs().min()) > 1e-3


def test_random_numbers_come_from_the_seed_alone_and_every_step_is_one_pass_of_twice_the_images() -> None:
    gated, batches = residual()
    seen: list[int] = []
    gated.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    before = torch.get_rng_state()
    first, other = scop(gated, batches, epochs=3), scop(gated, batches, epochs=3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert seen == [12, 8] * 6
    assert not torch.equal(first["inner"], other["inner"])


class Channels(nn.Module):
    """What is in each channel of an image is averaged, and tells two classes apart, or is noise to them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("informative", [0, 1])
def test_the_scale_of_the_channel_that_tells_the_classes_goes_to_1_and_that_of_noise_does_not(informative: int) -> None:
    x, labels = torch.randn(256, 2, 3, 3, generator=seeded()), torch.arange(256) % 2
    x[:, informative] += 2.0 * labels[:, None, None] - 1
    model = Channels()
    with torch.no_grad():
        model.conv.weight.copy_(torch.eye(2)[:, :, None, None])
        model.head.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        model.head.bias.zero_()
    batches = list(zip(x.split(32), labels.split(32), strict=True))
    (score,) = scop(GatedModel(model, axes_of(Channels, 2, 3, 3)), batches).values()
    assert float(score[informative]) == 1
    assert float(score[1 - informative]) < 0.5


class Transposed(nn.Module):
    """A width that a transposed convolution of two groups writes, each unit once per group."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(x).relu().mean((2, 3)))


def test_a_unit_that_is_written_once_per_group_is_blended_in_all_of_them() -> None:
    model, x = Transposed().double(), torch.randn(6, 4, 3, 3, generator=seeded()).double()
    with torch.no_grad():
        model.head.weight[:, [1, 2, 5]] = 0  # the second group's unit 1 is read, nothing of unit 2 is
    (score,) = scop(GatedModel(model, axes_of(Transposed, 4, 3, 3)), [(x, torch.arange(6) % 2)], epochs=2).values()
    assert (score != 0).tolist() == [True, True, False]


class Tokens(nn.Module):
    """Positions come before images while a linear layer writes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.transpose(0, 1)).relu().mean(0))


class Own(nn.Module):
    """A width that a parameter writes, and no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(6, 3)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.weight).relu())


def test_what_cannot_be_blended_is_an_error() -> None:
    labels = torch.arange(4) % 2
    for model, shape, why in ((Tokens(), (4, 5, 3), "first dimension"), (Own(), (4, 3), "such as taylor")):
        net = traced_model(model, torch.randn(shape, generator=seeded()))
        with pytest.raises(SpaceError, match=why):
            scop(GatedModel(net.fresh(), net.axes), [(net.images, labels)])


def test_scales_that_tell_no_units_apart_are_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gated, batches = residual()
    scop(gated, batches, epochs=1)
    assert "all at 0.5 still" in caplog.text
    caplog.clear()
    monkeypatch.setattr("nas_prune.methods.criteria.of_features.scop.RATE", FAST)
    scop(gated, batches, epochs=EPOCHS)
    assert not caplog.text
    doubted(torch.tensor([1.0] * 19 + [0.0]))
    assert "95 % of SCOP's scales k have ended at 1" in caplog.text


def test_too_few_images_and_no_number_are_errors() -> None:
    gated, batches = residual()
    for few in ([], [(batches[0][0][:1], batches[0][1][:1])]):
        with pytest.raises(DataError, match="there was"):
            scop(gated, few)
    with pytest.raises(DivergedError, match="not a number"):
        scop(gated, [(x * torch.nan, labels) for x, labels in batches])


def test_weights_that_are_computed_of_others_are_scored_as_those_that_are_not() -> None:
    gated, batches = residual()
    expected = scop(gated, batches, epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = gated.plain()
        normed.inner = weight_norm(normed.inner)
    normed(batches[0][0])  # which leaves a computed weight behind
    scores = scop(GatedModel(normed, trace(normed, batches[0][0])), batches, epochs=2)
    assert torch.allclose(scores["inner"], expected["inner"], atol=1e-9)
