"""Selectors: how scores and a limit become an architecture. The registry ``selectors`` knows their names."""

from nas_prune.selectors.genotype import genotype
from nas_prune.selectors.optimal import optimal
from nas_prune.selectors.price import price
from nas_prune.selectors.program import program
from nas_prune.selectors.ranked import ranked
from nas_prune.selectors.selector import Scores, Selector, selectors

__all__ = ["Scores", "Selector", "genotype", "optimal", "price", "program", "ranked", "selectors"]
