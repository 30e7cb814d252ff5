"""sweep.jsonl: what a local sweep has suggested, started and seen end; by it, a killed sweep goes on where it was.

A suggestion is on the disk before its run starts. A run that has not ended is started again, and resumes by itself.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from nas_prune.base.errors import RecipeError
from nas_prune.base.files.documents import Document, Natural, NotNegative, Text, read_journal
from nas_prune.base.files.whole import append_line
from nas_prune.cli.sweep.file import SCORE, Goal, Sweep

FILE = "sweep.jsonl"
State = Literal["finished", "stopped", "failed"]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class BegunRow(Document):
    """The first line: which sweep this is."""

    kind: Literal["begun"]
    sweep: RunId
    seed: int
    file: Text
    metric: Text = SCORE
    goal: Goal = "maximize"


class SuggestedRow(Document):
    """A run that is to be, and its values by flat names."""

    kind: Literal["suggested"]
    run: RunId
    number: Natural
    values: dict[str, Any]


class StartedRow(Document):
    """The process that a run was started as."""

    kind: Literal["started"]
    run: RunId
    process: Natural


class EndedRow(Document):
    """How a run ended, after how many seconds of its last process; what it said, if it failed."""

    kind: Literal["ended"]
    run: RunId
    state: State
    seconds: NotNegative
    message: Text


Row = Annotated[BegunRow | SuggestedRow | StartedRow | EndedRow, Field(discriminator="kind")]


@dataclass
class Entry:
    """A run as the journal knows it."""

    run: str
    number: int
    values: Mapping[str, Any]
    process: int | None = None
    state: State | None = None
    seconds: float = 0.0
    message: str = ""


@dataclass
class Journal:
    """The runs of a sweep in the order of their suggestion."""

    path: Path
    sweep: str
    seed: int
    metric: str = SCORE
    goal: Goal = "maximize"
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, identity: str, seed: int, sweep: Sweep) -> "Journal":
        """The journal in a folder, begun if need be. Raises RecipeError where it is that of another sweep."""
        journal = cls(folder / FILE, identity, seed, sweep.metric, sweep.goal)
        rows = read_journal(folder / FILE, Row, RecipeError)
        if rows and rows[0].get("sweep") != identity:
            raise RecipeError(
                f"{folder} holds another sweep (its file, its recipe, a file that this names, or the seed has changed "
                "since); choose another --out, or take back the change"
            )
        if not rows:
            begun = {"kind": "begun", "sweep": identity, "seed": seed, "file": str(sweep.path)}
            append_line(journal.path, {**begun, "metric": sweep.metric, "goal": sweep.goal})
        journal.follow(rows)
        return journal

    @classmethod
    def read(cls, folder: Path) -> "Journal":
        """The journal of a sweep that was begun. Raises RecipeError where there is none."""
        rows = read_journal(folder / FILE, Row, RecipeError)
        if not rows or rows[0]["kind"] != "begun":
            raise RecipeError(f"{folder} holds no sweep: it has no {FILE}; start one with `nas-prune sweep local`")
        begun = rows[0]
        told = begun.get("metric", SCORE), begun.get("goal", "maximize")
        journal = cls(folder / FILE, begun["sweep"], begun["seed"], *told)
        journal.follow(rows)
        return journal

    def suggest(self, values: Mapping[str, Any]) -> Entry:
        """Write down the next run."""
        number = len(self.entries)
        return self._write({"kind": "suggested", "run": self.name(number), "number": number, "values": dict(values)})

    def start(self, entry: Entry, process: int) -> None:
        """Write down the process that a run is started as."""
        self._write({"kind": "started", "run": entry.run, "process": process})

    def end(self, entry: Entry, state: State, seconds: float, message: str = "") -> None:
        """Write down how a run has ended."""
        row = {"kind": "ended", "run": entry.run, "state": state, "seconds": seconds, "message": message}
        self._write(row)

    def name(self, number: int) -> str:
        """The name of the run of that number, the same after a restart."""
        return hashlib.sha256(f"{self.sweep}:{number}".encode()).hexdigest()[:8]

    def _write(self, row: dict[str, Any]) -> Entry:
        append_line(self.path, row)
        self.follow([row])
        return self.entries[row["run"]]

    def follow(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take rows of the file into account."""
        for row in rows:
            if row["kind"] == "suggested":
                self.entries[row["run"]] = Entry(row["run"], row["number"], row["values"])
            elif row["kind"] == "started":
                self._known(row).process = row["process"]
            elif row["kind"] == "ended":
                entry = self._known(row)
                entry.state, entry.seconds, entry.message = row["state"], row["seconds"], row["message"]

    def _known(self, row: Mapping[str, Any]) -> Entry:
        if row["run"] not in self.entries:
            raise RecipeError(f"{self.path}: run {row['run']} was never suggested; delete the line, or the folder")
        return self.entries[row["run"]]
