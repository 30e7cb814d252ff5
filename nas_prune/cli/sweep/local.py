"""A sweep without a server: W&B's rules suggest, processes run, and a journal lets a killed sweep go on.

Several runs train at once, each with its own thread, but only one of them measures at a time. The first run calibrates
for all: the others are started when its calibration is there.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from nas_prune.base.errors import InterruptedRunError, RecipeError
from nas_prune.base.files.lock import locked
from nas_prune.base.files.whole import write_json, writing
from nas_prune.cli.sweep import outcome, worker
from nas_prune.cli.sweep.file import Sweep
from nas_prune.cli.sweep.journal import Entry, Journal, State
from nas_prune.cli.sweep.lint import refuse
from nas_prune.cli.sweep.outcome import Outcome
from nas_prune.cli.sweep.suggest import Past, require, suggest, to_stop
from nas_prune.cli.sweep.trial import identity
from nas_prune.cli.sweep.worker import How, Worker
from nas_prune.run.calibration.calibrate import FILE as CALIBRATION

LOOK = 0.5  # seconds between two looks at the runs
Seen = Callable[["Local", Outcome | None], None]  # told when a run has ended, and with None at every look


@dataclass
class Local:
    """A sweep at work: ``workers`` runs at once, ``total`` in all (None: until the grid is complete)."""

    sweep: Sweep
    journal: Journal
    how: How
    workers: int = 1
    total: int | None = None
    active: dict[str, Worker] = field(default_factory=dict)
    complete: bool = False

    def go(self, seen: Seen) -> list[Outcome]:
        """Run to the end; raises InterruptedRunError, when all runs have ended, where a signal stops it."""
        for entry in self.unfinished():
            worker.end_orphan(entry, self.how.out)
        try:
            with _signals():
                while self._fill() or self.active:
                    time.sleep(LOOK)
                    self._end_those_that_lose()
                    for ended in self._ended():
                        self.write()
                        seen(self, ended)
                    seen(self, None)
        finally:
            worker.end_all(list(self.active.values()))
            self.write()
        return self.outcomes()

    def outcomes(self) -> list[Outcome]:
        """Every run that was suggested, as far as it has come."""
        return [self.outcome(entry) for entry in self.journal.entries.values()]

    def outcome(self, entry: Entry) -> Outcome:
        """One run, as far as it has come."""
        state = entry.state or ("running" if entry.run in self.active else "waiting")
        told = outcome.figures(self.how.out / entry.run, self.sweep.metric)
        return Outcome(entry.run, entry.values, state, entry.seconds, entry.message, **told)

    def unfinished(self) -> list[Entry]:
        """Runs that were suggested, have not ended, and are not at work."""
        return [e for e in self.journal.entries.values() if e.state is None and e.run not in self.active]

    def forgive(self) -> None:
        """Runs that have failed are tried again."""
        for entry in self.journal.entries.values():
            entry.state = None if entry.state == "failed" else entry.state

    def write(self) -> None:
        """sweep.json: the sweep as far as it has come."""
        found = self.outcomes()
        chosen = outcome.best(found, self.sweep.goal)
        content = {
            "sweep": self.journal.sweep,
            "seed": self.journal.seed,
            "file": str(self.sweep.path),
            "method": self.sweep.method,
            "metric": self.sweep.metric,
            "goal": self.sweep.goal,
            "runs": [each.plain for each in found],
            "survivors": [each.run for each in outcome.survivors(found)],
            "best": chosen and chosen.run,
        }
        write_json(self.how.out / "sweep.json", content)

    def seconds_left(self) -> float | None:
        """How long it will take at the pace of the runs that have ended here; None where nobody can tell."""
        ended = [e.seconds for e in self.journal.entries.values() if e.state in ("finished", "stopped")]
        if self.total is None or not ended:
            return None
        open_runs = self.total - sum(e.state is not None for e in self.journal.entries.values())
        pace = sum(ended) / len(ended)
        begun = sum(min(self._seconds(each), pace) for each in self.active.values())
        return max(0.0, open_runs * pace - begun) / min(self.workers, max(1, open_runs))

    def _fill(self) -> bool:
        """Start runs on workers that are free; whether any run is at work or to come."""
        while len(self.active) < self.workers and not self._calibrating():
            waiting = self.unfinished()
            entry = waiting[0] if waiting else self._next()
            if entry is None:
                break
            self.active[entry.run] = worker.start(self.sweep, entry, self.journal.sweep, self.how)
            self.journal.start(entry, self.active[entry.run].process.pid)
        return bool(self.active)

    def _next(self) -> Entry | None:
        """The next suggestion, written down."""
        if self.complete or (self.total is not None and len(self.journal.entries) >= self.total):
            return None
        values = suggest(self.sweep, self._past(), self.journal.seed)
        self.complete = values is None
        return None if values is None else self.journal.suggest(values)

    def _calibrating(self) -> bool:
        """Whether the one run at work is still making the calibration that others can use."""
        known = [self.how.out / entry.run / "calibration" / CALIBRATION for entry in self.journal.entries.values()]
        return bool(self.active) and not any(path.exists() for path in known)

    def _past(self) -> list[Past]:
        states = {"finished": "finished", "stopped": "finished", "failed": "failed"}
        found = []
        for entry in self.journal.entries.values():
            told = outcome.scores(self.how.out / entry.run, self.sweep.metric)
            last = outcome.figures(self.how.out / entry.run, self.sweep.metric)["score"]
            values = told or ([last] if last is not None else [])
            found.append(Past(entry.run, entry.values, states.get(entry.state or "", "running"), values))
        return found

    def _end_those_that_lose(self) -> None:
        if "early_terminate" not in self.sweep.content:
            return
        for run in to_stop(self.sweep, self._past()):
            if run in self.active and not self.active[run].stopped:
                self.active[run].stop()

    def _ended(self) -> Iterator[Outcome]:
        """The runs that have ended since the last look, written down."""
        for run, each in list(self.active.items()):
            if each.process.poll() is None:
                continue
            del self.active[run]
            state, message = self._how_it_ended(each)
            self.journal.end(each.entry, state, round(self._seconds(each), 1), message)
            yield self.outcome(each.entry)

    def _seconds(self, each: Worker) -> float:
        """How long a run has taken, all attempts together."""
        return max(each.seconds, outcome.spent(self.how.out / each.entry.run))

    def _how_it_ended(self, each: Worker) -> tuple[State, str]:
        """A budget that was missed, or that nothing can meet, is a result."""
        known = outcome.results(self.how.out / each.entry.run)
        if known is not None:
            return "finished", str(known.get("why") or "")
        if each.stopped:
            return "stopped", "hyperband"
        return "failed", worker.last_words(self.how.out / f"{each.entry.run}.log")


@contextmanager
def opened(sweep: Sweep, how: How, seed: int, *, count: int | None, workers: int) -> Iterator[Local]:
    """A sweep in its folder, begun or gone on with. Raises RecipeError for one that cannot be run here."""
    require()
    refuse(sweep)
    if sweep.ours is None or sweep.ours.verb != "run":
        raise RecipeError(f"{sweep.path} does not run nas-prune; see `nas-prune sweep lint {sweep.path}`")
    size = sweep.size
    total = min((each for each in (count, size) if each is not None), default=None)
    if total is None:
        raise RecipeError(f"a sweep of method {sweep.method} never ends by itself; say --count, or run_cap in the file")
    with writing(how.out):
        how.out.mkdir(parents=True, exist_ok=True)
    with locked(how.out):
        journal = Journal.open(how.out, identity(sweep, seed), seed, sweep)
        yield Local(sweep, journal, how, workers, total)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the block with an error that says how to go on."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise InterruptedRunError("stopped; the same command goes on with the sweep from here", number)

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
