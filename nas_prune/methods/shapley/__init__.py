"""Shapley values of any game: exact, by permutations as Shapley-NAS does it, and with far fewer evaluations."""

from nas_prune.methods.shapley.estimate import Estimate, EstimatePlan, Processes, estimate
from nas_prune.methods.shapley.exact import exact
from nas_prune.methods.shapley.game import Game
from nas_prune.methods.shapley.permutations import permutations
from nas_prune.methods.shapley.step import ascended, standardised
from nas_prune.methods.shapley.surrogate import Surrogate, fitted

__all__ = [
    "Estimate",
    "EstimatePlan",
    "Game",
    "Processes",
    "Surrogate",
    "ascended",
    "estimate",
    "exact",
    "fitted",
    "permutations",
    "standardised",
]
