"""Selectors: how scores and a limit become an architecture. The registry ``selectors`` knows their names."""

from nas_prune.methods.selectors.genotype import genotype
from nas_prune.methods.selectors.milp import program
from nas_prune.methods.selectors.optimal import optimal
from nas_prune.methods.selectors.price import price
from nas_prune.methods.selectors.ranked import ranked
from nas_prune.methods.selectors.selector import Scores, Selector, selectors

__all__ = ["Scores", "Selector", "genotype", "optimal", "price", "program", "ranked", "selectors"]
