"""Progress on the terminal: one bar per piece of work, with the time that is left."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

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


class Bar:
    """One piece of work."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, text: str = "") -> None:
        """One more step is done; ``text`` tells how it stands."""
        self._progress.update(self._task, advance=1, note=text) if text else self._progress.advance(self._task)

    def end(self) -> None:
        """No more steps will come; says so where it was not known how many there are."""
        done = next(each.completed for each in self._progress.tasks if each.id == self._task)
        self._progress.update(self._task, total=done)


class Bars:
    """The bars of a run, on standard error; also where a run says what it does next."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
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
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """One line above the bars."""
        self._progress.console.print(text)

    def bar(self, name: str, total: int | None, done: int = 0) -> Bar:
        """A bar for work of ``total`` steps, None if nobody knows, ``done`` of which were done before."""
        return Bar(self._progress, self._progress.add_task(name, total=total, completed=done, note=""))

    def follow(self, steps: Iterable[Item], name: str) -> Iterator[Item]:
        """The steps, each of them counted once it is done."""
        listed = list(steps)
        bar = self.bar(name, len(listed)) if listed else None
        for step in listed:
            yield step
            if bar is not None:
                bar.advance()
