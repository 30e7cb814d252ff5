"""In a ball or not: one layer of non-linearities cannot learn it, two can (arXiv 2112.02393); a search keeps both."""

import torch
from torch import nn

import nas_prune as npr
from nas_prune.costs import Macs
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.selectors import Question
from nas_prune.methods.selectors.ranked import ranked


class Net(nn.Sequential):  # the second non-linearity sits in a residual branch
    def forward(self, x):
        return self[2]((y := self[0](x).relu()) + self[1](y))


def error(model, points, d=20):  # squared: a cross-entropy would bring a non-linearity of its own
    radius, direction = (0.5 * torch.randn(points, 1)).exp(), nn.functional.normalize(torch.randn(points, d))
    return (model(d**0.5 * radius * direction) - (radius < 1).float()).square().mean()


def fit(gated, steps, price=lambda _: 0.0):
    optimizer = torch.optim.Adam(gated.parameters(), 2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (error(gated.train(), 256) + price(gated)).backward()
        optimizer.step()
    return float(error(gated.eval(), 10000).detach())


net = Net(nn.Linear(20, 200), nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 200)), nn.Linear(200, 1))
axes = npr.trace(net, torch.randn(1, 20))
gated = npr.GatedModel(net, axes, gate="weight", kinds={"depth": ("hard_concrete", {})})
budget = npr.Budget("0.05x", Macs(axes))  # as much as the branch closed and all widths kept would take
fit(gated, 400, BudgetPenalty(budget, alpha=0.03))
arch = ranked(Question(gated.scores(), budget.cost, budget.limit, gated.space)).arch
with gated.fixed(arch):
    found = fit(gated, 200)
with gated.fixed(npr.Arch({name: () for name, axis in axes.items() if axis.kind == "depth"})):
    closed = fit(gated, 400)
print(f"found {arch.sizes(axes.free)}: squared error {found:.3f}; branch closed, all widths kept: {closed:.3f}")
