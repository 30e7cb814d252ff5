"""A sweep on the terminal and as one chart."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from nas_prune.base.files.whole import atomic_write
from nas_prune.cli.sweep import outcome
from nas_prune.cli.sweep.local import Local
from nas_prune.cli.sweep.outcome import Outcome
from nas_prune.cli.sweep.parameters import dotted
from nas_prune.run.report.summary import duration, milliseconds, quantity
from nas_prune.run.report.terminal import terminal_table, texts


class Screen:
    """What is seen of a sweep at work: on a terminal its table, elsewhere a line for each run that ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Screen":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, local: Local, ended: Outcome | None) -> None:
        """A run has ended; or, with None, time has passed."""
        if ended is not None:
            self.console.print(line(local, ended), markup=False, highlight=False, soft_wrap=True)
        elif self.live is not None:
            self.live.update(table(local.outcomes(), local.sweep.varying))


def line(local: Local, ended: Outcome) -> str:
    """A run that has ended, and the time that is left."""
    done = sum(entry.state is not None for entry in local.journal.entries.values())
    left = local.seconds_left()
    told = f"; {duration(left)} left" if left else ""
    return (
        f"[{done}/{local.total}] {ended.run} {_short(ended, local.sweep.varying)}: {said(ended)} after "
        f"{duration(ended.seconds)}{told}"
    )


def said(each: Outcome) -> str:
    """How a run ended, in a few words."""
    if each.state != "finished" or each.top1 is None:
        told = {"stopped": "stopped early"}.get(each.state, each.status or each.state)
        return f"{told} ({each.message})" if each.message else told
    return f"{each.status}, top-1 {each.top1:.2f} %, {milliseconds(each.measured_ms)} ms"


def table(found: Sequence[Outcome], varying: Sequence[str]) -> Table:
    """All runs; those that no other one beats are marked."""
    stars = {each.run for each in outcome.survivors(found)}
    shown = terminal_table(
        "#run", ", ".join(map(dotted, varying)), "state", "#score", "#top-1, %", "#ms", "#MACs", "#time"
    )
    for each in found:
        state = each.status if each.state == "finished" and each.status else each.state
        score, top1 = ("—" if value is None else f"{value:.2f}" for value in (each.score, each.top1))
        figures = [score, top1, milliseconds(each.measured_ms), quantity(each.macs)]
        spent = duration(each.seconds) if each.seconds else ""
        star = "* " if each.run in stars else ""
        shown.add_row(*texts(f"{star}{each.run}", _short(each, varying), state, *figures, spent))
    if stars:
        shown.caption = "* no other run is both as accurate and as cheap"
    return shown


def failures(found: Sequence[Outcome]) -> list[str]:
    """What the runs said that failed."""
    return [f"{each.run} failed: {each.message}" for each in found if each.state == "failed"]


def save_chart(found: Sequence[Outcome], varying: Sequence[str], path: Path) -> Path | None:
    """Top-1 against cost of all runs, those that no other one beats highlighted; None where there is none to draw."""
    from nas_prune.run.report.curves import Ink, blank, legend, style, svg
    from nas_prune.run.report.targets import alone

    stars = sorted(outcome.survivors(found), key=_placed)
    if not stars:
        return None
    rest = [each for each in found if outcome.place(each) is not None and each not in stars]
    missed = [each for each in [*rest, *stars] if each.status == "missed"]
    in_macs = all(each.cost == "macs" for each in [*stars, *rest])
    with style():
        figure, axes = blank("top-1, %", "MACs" if in_macs else "measured latency of a call, ms", height=4.2)
        axes.plot(*_columns(stars), color=Ink.SEARCH.value, lw=1.2, alpha=0.5)
        axes.scatter(*_columns(rest), s=24, color=Ink.DENSE.value, zorder=3, label="beaten by another run")
        axes.scatter(*_columns(stars), s=44, color=Ink.SEARCH.value, zorder=3, label="not beaten")
        if missed:
            axes.scatter(*_columns(missed), marker="x", s=64, color=Ink.BAD.value, zorder=4, label="target missed")
        for one in stars:
            text = axes.annotate(_short(one, varying), _placed(one), (0, 7), textcoords="offset points", ha="center")
            text.set(color=Ink.TEXT.value, fontsize=9, parse_math=False)
        axes.set_position((0.12, 0.13, 0.86, 0.78))
        axes.margins(x=0.14, y=0.14)
        legend(axes)
        atomic_write(path, alone(svg(figure, "top-1 against cost, one point per run of the sweep")))
    return path


def _placed(each: Outcome) -> tuple[float, float]:
    return outcome.place(each) or (0.0, 0.0)


def _columns(found: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """Costs, and accuracies."""
    return [_placed(each)[0] for each in found], [_placed(each)[1] for each in found]


def _short(each: Outcome, varying: Sequence[str]) -> str:
    """The values by which a run differs from the others."""
    return " ".join(_value(each.values.get(name)) for name in varying)


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
