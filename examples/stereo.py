"""Stereo by local similarity patterns: the tower that describes both views, and the rest, become half as expensive.

Beside it the dense network, trained for as many steps.
"""

import copy

import torch
from networks.stereo_network import StereoNetwork, stereo_loss
from networks.stereograms import stereograms

import nas_prune as npr
from nas_prune.costs import Macs
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.methods.selectors import Question
from nas_prune.methods.selectors.ranked import ranked

STEPS, DISPARITIES = 100, 6


def fit(model, steps, price=lambda _: 0.0):
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(steps):
        left, right, wanted = stereograms(4, disparities=DISPARITIES, seed=step + 1)
        optimizer.zero_grad()
        (stereo_loss(model.train()(left, right), wanted) + price(model)).backward()
        optimizer.step()
    left, right, wanted = stereograms(32, disparities=DISPARITIES)  # of a seed that nothing was trained on
    with torch.no_grad():
        refined = model.eval()(left, right)[1]
    return float((refined - wanted).abs()[:, :, DISPARITIES:].mean())  # where both views see the same


torch.manual_seed(0)
net = StereoNetwork(DISPARITIES, width=12, stages=2)
axes = npr.trace(net, stereograms(1, disparities=DISPARITIES)[:2])
gated = npr.GatedModel(net, npr.SearchSpace.read("channels", axes), gate="weight")
budget = npr.Budget("0.5x", Macs(axes))
dense = fit(copy.deepcopy(net), 3 * STEPS)
fit(net, STEPS)
searched = fit(gated, STEPS, BudgetPenalty(budget))
arch = ranked(Question(gated.scores(), budget.cost, budget.limit, gated.space)).arch
small = npr.derive(net, axes, arch)
share = float(Macs(axes)(arch.sizes(axes.free))) / float(Macs(axes)({}))
tuned = fit(small, STEPS)
print(
    f"{share:.2f}x of the MACs, end-point error in pixels: {searched:.2f} gated, {tuned:.2f} derived, {dense:.2f} dense"
)
