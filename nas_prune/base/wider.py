"""Which models may be larger than their origins: those that were widened, their copies, what is derived from them."""

from torch import nn

MARK = "_nas_prune_widened"
WIDEST = 16  # times the units of an axis that it may be widened to


def mark(model: nn.Module) -> None:
    """Let a model be known as one that may be larger than its origin."""
    setattr(model, MARK, True)


def is_wider(model: nn.Module) -> bool:
    """Whether a model may be larger than its origin."""
    return getattr(model, MARK, False) is True
