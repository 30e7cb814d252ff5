"""Training: the loop, the search, the choice, fine-tuning. The loop itself is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_prune.train.loop import Run, fit
    from nas_prune.train.stage import Stage

__all__ = ["Run", "Stage", "fit"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'stage' if name == 'Stage' else 'loop'}"), name)
