"""Progress of a run, on standard error, with the time that is left.

On a terminal, one bar per piece of work. Elsewhere (nohup, SLURM, a pipe) a bar that is drawn anew many times a second
is a log of garbage, or nothing until it ends: there a piece of work says a line at each tenth of it, or each epoch.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")
TENTHS = 10
PATIENCE = 30.0  # seconds between two lines about work of which nobody knows how much it is


class Bar(Protocol):
    """One piece of work."""

    def advance(self, text: str = "") -> None:
        """One more step is done; ``text`` tells how it stands."""

    def end(self) -> None:
        """No more steps will come; says so where it was not known how many there are."""


class Drawn:
    """A bar on a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, text: str = "") -> None:
        """Draw it one step longer."""
        self._progress.update(self._task, advance=1, note=text) if text else self._progress.advance(self._task)

    def end(self) -> None:
        """Draw it full."""
        done = next(each.completed for each in self._progress.tasks if each.id == self._task)
        self._progress.update(self._task, total=done)


class Told:
    """A piece of work that says a line now and then. ``lines``: at most so many, where it is known how much it is."""

    def __init__(self, say: Callable[[str], None], name: str, total: int | None, *, done: int, lines: int) -> None:
        self._say, self._name, self._total, self._lines = say, name, total, lines
        self._before = self._done = done
        self._start = self._last = time.monotonic()
        self._note = ""

    def advance(self, text: str = "") -> None:
        """Count a step; say how it stands where another part of the work is done."""
        self._done, self._note = self._done + 1, text or self._note
        now = time.monotonic()
        if self._total is None:
            due = now - self._last >= PATIENCE
        else:
            due = self._done * self._lines // self._total > (self._done - 1) * self._lines // self._total
        if due:
            self._last = now
            self._say(", ".join(filter(None, [self._stands(now), self._note])))

    def end(self) -> None:
        """Say how many steps it was."""
        if self._total is None:
            self._say(f"{self._name}: {self._done} in {_clock(time.monotonic() - self._start)}")

    def _stands(self, now: float) -> str:
        spent = now - self._start
        if self._total is None:
            return f"{self._name}: {self._done} in {_clock(spent)}"
        where = f"{self._name}: {self._done} of {self._total} ({100 * self._done // self._total} %)"
        left = spent / (self._done - self._before) * (self._total - self._done)
        return f"{where}, {_clock(left)} left" if self._done < self._total else f"{where} in {_clock(spent)}"


def _clock(seconds: float) -> str:
    """0:01:30."""
    return str(timedelta(seconds=round(seconds)))


class Bars:
    """The bars of a run; also where a run says what it does next. Bars show while the block is open, words always."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._open = False
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )

    def __enter__(self) -> Self:
        self._open = True
        if self.console.is_terminal:
            self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self.console.is_terminal:
            self._progress.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """One line above the bars."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def bar(self, name: str, total: int | None, done: int = 0, *, lines: int = TENTHS) -> Bar:
        """A bar for work of ``total`` steps, None if nobody knows, ``done`` of which were done before.

        ``lines``: how many it says at most where there is no terminal, such as one per epoch.
        """
        if self.console.is_terminal:
            return Drawn(self._progress, self._progress.add_task(name, total=total, completed=done, note=""))
        return Told(self._line, name, total, done=done, lines=lines)

    def _line(self, text: str) -> None:
        """A line of a piece of work."""
        if self._open:
            self.say(text)

    def follow(self, steps: Iterable[Item], name: str) -> Iterator[Item]:
        """The steps, each of them counted once it is done."""
        listed = list(steps)
        bar = self.bar(name, len(listed)) if listed else None
        for step in listed:
            yield step
            if bar is not None:
                bar.advance()
