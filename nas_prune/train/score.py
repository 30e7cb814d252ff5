"""The one figure by which runs of a sweep are compared: the accuracy of what would be derived now, under its budget.

    score = top-1 - 100 * max(0, cost / limit - 1)

in points of top-1 (%). A network at twice its limit scores a hundred points less, so that no network that misses its
budget scores above one that meets it at chance level (ours). Only searches and what comes after them have a score: a
sweep that reads the best row of a run, or the last one, never reads that of a dense network.
"""

SCORE = "sweep/score"
PRICE = 100.0  # points for as much again as the limit


def score(top1: float, cost: float, limit: float) -> float:
    """Points of top-1 (%), less what the cost exceeds its limit by, in the same unit."""
    return top1 - PRICE * max(0.0, cost / limit - 1)
