"""Evaluations that estimators of Shapley values need, until they rank the players of a supernet as the exact values do.

python benchmarks/shapley.py [--seeds 10] [--walks 2048] [--fits 128] [--games planted:0,digits:0,digits:1,chain:1]

``planted``: four choices of four candidates; the network is as good as the product of its choices, each choice
saturates in its candidates, and candidates help or hinder each other, but the best of each choice is known.
``digits``: a supernet of four residual blocks, each a choice of four candidates, trained on scikit-learn's digits;
worth is -cross-entropy. ``chain``: the same without residual sums, so that it breaks when a choice loses candidates.
All 65536 coalitions are known, so the exact values are. Two figures: evaluations until the mean Spearman and the mean
Kendall over seeds are >= 0.95 for good; and the mean squared error with about 1000 evaluations, as the ratio of the
evaluations that plain permutations need for the same error (their error times their evaluations is constant).
"""

import argparse
from collections.abc import Callable

import torch
from scipy.stats import kendalltau, spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.methods.shapley import Game, exact
from nas_prune.methods.shapley.estimate import EstimatePlan, estimated
from nas_prune.methods.shapley.walks import Walks, coalitions, pairs

CHOICES, CANDIDATES = 4, 4
PLAYERS = CHOICES * CANDIDATES
GROUPS = tuple(tuple(range(c * CANDIDATES, (c + 1) * CANDIDATES)) for c in range(CHOICES))
EVERY = ((torch.arange(2**PLAYERS)[:, None] >> torch.arange(PLAYERS)) & 1).bool()
CHECKS = [
    2,
    4,
    6,
    8,
    10,
    12,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    64,
    80,
    96,
    128,
    160,
    192,
    256,
    320,
    384,
    512,
    640,
    768,
    1024,
    1536,
    2048,
]

Curve = list[tuple[Tensor, int]]  # estimates, and their evaluations


def planted(seed: int = 0) -> Tensor:
    """Worth (65536) of every coalition."""
    generator = torch.Generator().manual_seed(seed)
    quality = torch.linspace(0.05, 0.65, PLAYERS, dtype=torch.float64)[torch.randperm(PLAYERS, generator=generator)]
    quality = quality.view(CHOICES, CANDIDATES)
    quality[range(CHOICES), [c % CANDIDATES for c in range(CHOICES)]] = torch.tensor([0.8, 0.9, 1.0, 1.1]).double()
    help_ = 0.1 * torch.randn(CHOICES, CANDIDATES, CANDIDATES, generator=generator, dtype=torch.float64)
    kept = EVERY.double().view(-1, CHOICES, CANDIDATES)
    together = help_ * quality[:, :, None] * quality[:, None, :]
    strength = (kept * quality).sum(2) + 0.5 * torch.einsum("scj,cjk,sck->sc", kept, together, kept)
    return 0.1 + 0.9 * (0.25 + 0.75 * (1 - torch.exp(-2 * strength.clamp(min=0)))).prod(1)


class Supernet(nn.Module):
    """Stem, choices (candidates are summed, then normalised), head."""

    def __init__(self, residual: bool, width: int = 24) -> None:
        super().__init__()
        self.residual = residual
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.choices = nn.ModuleList(nn.ModuleList(self.candidates(width)) for _ in range(CHOICES))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(CHOICES))

    @staticmethod
    def candidates(width: int) -> list[nn.Module]:
        """A layer, a linear map, a narrow block, a wide one."""
        return [
            nn.Sequential(nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, width),
            nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, width)),
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)),
        ]

    def stage(self, x: Tensor, number: int, kept: Tensor) -> Tensor:
        """Outputs (s ... d) of one choice for each subset (s k) of its candidates."""
        outputs = torch.stack([candidate(x) for candidate in self.choices[number]], -1)
        summed = torch.einsum("...k,sk->s...", outputs, 0.5 * kept)
        summed = summed + x if self.residual else summed
        return self.norms[number](summed.flatten(0, -2)).view(summed.shape)


def digits(seed: int = 0, *, residual: bool = True) -> Tensor:
    """Worth (65536) of every coalition of a trained supernet: -cross-entropy of 128 images. Choices share prefixes."""
    torch.manual_seed(seed)
    data = load_digits()
    order = torch.randperm(len(data.target))
    images, labels = torch.tensor(data.data / 16).float()[order], torch.tensor(data.target)[order]
    net, everything = Supernet(residual), torch.ones(1, CANDIDATES)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(180):
        batch = slice(step % 12 * 100, step % 12 * 100 + 100)
        x = F.relu(net.stem(images[batch]))
        for number in range(CHOICES):
            x = net.stage(x, number, everything)[0]
        optimizer.zero_grad()
        F.cross_entropy(net.head(x), labels[batch]).backward()
        optimizer.step()
    net.eval()
    subsets, x, target = EVERY[:16, :CANDIDATES].float(), images[1200:1328], labels[1200:1328]
    worth = torch.zeros(16, 16, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        firsts = net.stage(net.stage(F.relu(net.stem(x)), 0, subsets), 1, subsets)
        for second in range(16):
            for first in range(16):
                logits = net.head(net.stage(net.stage(firsts[second, first], 2, subsets), 3, subsets))
                log_p = logits.log_softmax(-1).gather(-1, target.expand(16, 16, -1)[..., None])
                worth[:, :, second, first] = log_p.squeeze(-1).mean(-1).double()
    return worth.flatten()


def chain(seed: int = 0) -> Tensor:
    """The same for a supernet without residual sums."""
    return digits(seed, residual=False)


def walks_of(worth: Tensor, orders: Tensor) -> Walks:
    """Walks, read from the table."""
    left = coalitions(orders)
    return Walks(orders, left, worth[number(left)])


def number(left: Tensor) -> Tensor:
    """The row of ``EVERY`` of each coalition."""
    return (left.long() << torch.arange(PLAYERS)).sum(-1)


def some(walks: Walks, count: int) -> Walks:
    """The first so many walks."""
    return walks.some(torch.arange(count))


def mean(walks: Walks) -> Tensor:
    """The plain estimate."""
    return walks.marginals().mean(0)


def ours(walks: Walks, groups: tuple[tuple[int, ...], ...] = GROUPS) -> Tensor:
    """The package's estimate from these walks."""
    return estimated(Game(lambda _: 0.0, PLAYERS, groups), walks, EstimatePlan()).values


def unbiased(walks: Walks) -> Tensor:
    """The mean of its samples, in which the surrogate is a control variate only."""
    return estimated(Game(lambda _: 0.0, PLAYERS, GROUPS), walks, EstimatePlan()).samples.mean(0)


def pairwise(walks: Walks) -> Tensor:
    """Shapley values of a ridge regression with all pairs, not corrected."""
    rows, values = walks.coalitions.flatten(0, 1), walks.values.flatten()
    i, j = torch.triu_indices(PLAYERS, PLAYERS, 1)
    signs = rows.double() * 2 - 1
    features = torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), signs, signs[:, i] * signs[:, j]], 1)
    inner = features.T @ features + 1e-3 * torch.eye(features.shape[1], dtype=torch.float64)
    return 2 * torch.linalg.solve(inner, features.T @ values)[1 : PLAYERS + 1]


def shifted(count: int, generator: torch.Generator) -> Tensor:
    """Orders whose cyclic shifts put each player in each place, and their reverses."""
    base = torch.stack([torch.randperm(PLAYERS, generator=generator) for _ in range(count // 2 // PLAYERS + 1)])
    rolled = torch.stack([base.roll(shift, 1) for shift in range(PLAYERS)], 1)
    mixed = rolled[:, torch.randperm(PLAYERS, generator=generator)].flatten(0, 1)
    return torch.stack([mixed, mixed.flip(1)], 1).flatten(0, 1)[:count]


def kernel_shap(worth: Tensor, count: int, generator: torch.Generator, leverage: bool) -> tuple[Tensor, int]:
    """Regression on paired coalitions: Covert and Lee (arXiv 2012.01536); leverage: Musco and Witter (2410.01917)."""
    sizes = torch.arange(1, PLAYERS, dtype=torch.float64)
    law = torch.ones_like(sizes) if leverage else 1 / (sizes * (PLAYERS - sizes))
    size = torch.multinomial(law, count * (PLAYERS - 1) // 2, replacement=True, generator=generator) + 1
    half = torch.rand(len(size), PLAYERS, generator=generator).argsort(1).argsort(1) < size[:, None]
    kept = torch.cat([half, ~half])
    total, width = worth[-1] - worth[0], kept.sum(1).double()
    weight = (1 / (width * (PLAYERS - width))).sqrt() if leverage else torch.ones_like(width)
    centre = torch.eye(PLAYERS, dtype=torch.float64) - 1 / PLAYERS
    target = worth[number(kept)] - worth[0] - width * total / PLAYERS
    solved = torch.linalg.lstsq((kept.double() @ centre) * weight[:, None], (target * weight)[:, None], driver="gelsd")
    return total / PLAYERS + centre @ solved.solution[:, 0], len(number(kept).unique()) + 2


def curve(worth: Tensor, name: str, seed: int, counts: list[int]) -> Curve:
    """(estimate, evaluations) of one method after each number of walks."""
    generator = torch.Generator().manual_seed(seed)
    most = counts[-1]
    if name in ("paired regression", "leverage regression"):
        return [kernel_shap(worth, count, generator, "leverage" in name) for count in counts]
    if name == "plain permutations":
        orders = torch.stack([torch.randperm(PLAYERS, generator=generator) for _ in range(most)])
    elif name == "shifted antithetic":
        orders = shifted(most, generator)
    else:
        orders = pairs(most // 2, PLAYERS, generator)
    walks = walks_of(worth, orders)
    estimator = METHODS[name]
    return [(estimator(some(walks, count)), some(walks, count).distinct()) for count in counts]


METHODS: dict[str, Callable[[Walks], Tensor]] = {
    "plain permutations": mean,
    "antithetic": mean,
    "shifted antithetic": mean,
    "paired regression": mean,
    "leverage regression": mean,
    "pairwise regression": pairwise,
    "ours without choices": lambda walks: ours(walks, ()),
    "ours": ours,
    "ours unbiased": unbiased,
}


def reached(curves: list[Curve], truth: Tensor) -> float | None:
    """Mean evaluations at the first check from which on both mean correlations hold."""
    first = None
    for step in zip(*curves, strict=True):
        means = [sum(float(of(values, truth)[0]) for values, _ in step) / len(step) for of in (spearmanr, kendalltau)]
        evaluations = sum(count for _, count in step) / len(step)
        first = None if min(means) < 0.95 else first or evaluations
    return first


def cost(curves: list[Curve], truth: Tensor, near: float = 1000) -> float:
    """Mean squared error times evaluations, at the check nearest to so many evaluations."""
    step = min(zip(*curves, strict=True), key=lambda step: abs(step[0][1] - near))
    error = sum(float((values - truth).square().mean()) for values, _ in step) / len(step)
    return error * sum(count for _, count in step) / len(step)


def parsed() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--walks", type=int, default=2048, help="walks of the plain estimators, at most")
    parser.add_argument("--fits", type=int, default=128, help="walks of those that fit a surrogate, at most")
    parser.add_argument("--games", default="planted:0,digits:0,digits:1,chain:1")
    parser.add_argument("--methods", default=",".join(METHODS))
    return parser.parse_args()


def main() -> None:
    """Print one table per game."""
    options = parsed()
    for game in options.games.split(","):
        kind, _, which = game.partition(":")
        worth = {"planted": planted, "digits": digits, "chain": chain}[kind](int(which or 0))
        truth = exact(lambda kept, worth=worth: float(worth[number(kept)]), PLAYERS)
        print(f"{game}: {PLAYERS} players, exact values {[round(float(value), 3) for value in truth]}")
        plain = base = None
        for name in options.methods.split(","):
            fits = "ours" in name or "pairwise" in name
            counts = [check for check in CHECKS if check <= (options.fits if fits else options.walks)]
            counts = [check for check in counts if check >= 4] if fits else counts
            curves = [curve(worth, name, seed, counts) for seed in range(options.seeds)]
            need, spent = reached(curves, truth), cost(curves, truth)
            plain, base = (need, spent) if name == "plain permutations" else (plain, base)
            ratio = f"{plain / need:5.1f}x fewer" if plain and need else ""
            figure = f"{need:7.0f} evaluations {ratio}" if need else "not reached"
            worse = f"error of {base / spent:5.1f}x evaluations" if base else ""
            print(f"  {name:36s} {figure:32s} {worse}", flush=True)


if __name__ == "__main__":
    main()
