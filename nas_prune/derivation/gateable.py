"""Whether an eager model makes the calls that the record names: where it makes others, no gate could act.

A function may be composed of several operators (``torch.tensordot``), or be a method that nobody foresaw. The model
runs once and its calls are counted as gates would count them; what does not add up cannot be gated.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from nas_prune.derivation.trial_runs import Copied, tried
from nas_prune.methods.eager_calls import NODE_KINDS
from nas_prune.methods.intercept import Board, Interceptor, calls_of_modules, intercept, release
from nas_prune.tracing import Axes
from nas_prune.tracing.terms import Term, leaves
from nas_prune.tracing.walk import Site, operator


@contextmanager
def counting(model: nn.Module, axes: Axes) -> Iterator[Board]:
    """Count the calls of a model inside the block."""
    board = Board()
    board.counting = True
    board.open({}, [None] * len(axes.walk.sites))
    intercept(model, axes, [site for site in axes.walk.sites if operator(site.node) in NODE_KINDS], board, {})
    try:
        yield board
    finally:
        board.close()
        release(model)


def unreached(model: nn.Module, axes: Axes, copied: Copied, board: Board) -> list[Site]:
    """The sites that gates would miss, by the calls of a smaller model: it may have been told to make others in their
    place, so the model itself is asked before any is named.
    """
    if not _missed(axes, board):
        return []
    dense, mode = copied(model)
    with counting(dense, axes) as own:
        tried(dense, mode, axes.walk.captured)
    return _missed(axes, own)


def _missed(axes: Axes, board: Board) -> list[Site]:
    """The sites of free axes that the eager model would leave open."""
    calls = calls_of_modules(axes)
    found = [site for site in axes.walk.sites if operator(site.node) not in NODE_KINDS]
    ran = Counter[int]()
    for hook, call, seen in board.counted:
        ran[id(hook)] += 1
        if ran[id(hook)] <= hook.times:  # a model may be run again, in another way
            found += _uncounted(axes, hook, call, seen, calls)
    return [site for site in found if _free(axes, site.term)]


def _uncounted(
    axes: Axes, hook: Interceptor, call: int, seen: Counter[str], calls: dict[tuple[str, str], int]
) -> list[Site]:
    """The sites of one call of a module that saw more or fewer calls of their kind than the graph has."""
    found = []
    for (asked, kind, _), indices in hook.calls.items():
        for site in (hook.sites[index] for index in indices if asked == call):
            key = next(reversed(axes.walk.captured.running(site.node)))
            if seen[kind] != calls[key, kind]:
                found.append(site)
    return found


def _free(axes: Axes, term: Term) -> bool:
    return any(axes.variables.get(var) in axes.free for var in leaves(term))
