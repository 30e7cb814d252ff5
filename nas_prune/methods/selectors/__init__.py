"""Selectors: how scores and a limit become a decision. The registry ``selectors`` knows their names."""

from nas_prune.methods.selectors.selector import Decision, Question, Selector, selectors

__all__ = ["Decision", "Question", "Selector", "selectors"]
