"""The record of a run: one journal in the run folder, always; the same rows in Weights & Biases, where wanted.

The journal (metrics.jsonl) is the truth that a report is made from and that a resumed run goes on from. W&B is a copy
of it for people and sweeps: when the copy fails, the run goes on and says so. Epochs count per stage in the journal; in
W&B they run on through the whole run, so that a curve never goes back on its axis.
"""

import logging
import netrc
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from nas_prune.base.errors import ArtifactError, BudgetError, InterruptedRunError, NasPruneError, one_line
from nas_prune.base.files.documents import read_document, read_journal
from nas_prune.base.files.whole import append_line, finite, write_json, write_lines
from nas_prune.base.interrupts import Terminated
from nas_prune.base.sweeps import RUN, SWEEP, in_a_sweep
from nas_prune.train.record.heart import Heart
from nas_prune.train.record.journals import MetricsRow, WandbFile
from nas_prune.train.settings import TrackSettings

JournalRow = Mapping[str, float | int | str]
JournalRows = list[dict[str, Any]]


class Track:
    """Where a run writes its progress. ``client`` is a W&B run, or None."""

    def __init__(self, folder: Path, client: Any = None, *, resumed: bool = False, preemptible: bool = False) -> None:
        self.folder = folder
        self.client = client
        self._resumed, self._preemptible = resumed, preemptible
        self._heart = Heart(lambda: self._beat())
        self._sent: set[tuple[object, ...]] = set()
        self._around: tuple[JournalRows, JournalRows] = (
            [],
            [],
        )  # the rows before and after those of a stage that is repeated
        self._follow(read_journal(self._journal, MetricsRow, ArtifactError))

    def log(self, row: JournalRow, *, stage: str, epoch: float) -> None:
        """Append one row; ``epoch`` counts from the start of the stage and may be a fraction."""
        seconds = self._seconds_before + time.monotonic() - self._since
        entry = {"stage": stage, "epoch": epoch, "time": round(seconds, 3), **row}
        self._write(entry)
        self._last_epochs[stage] = epoch
        if _identity(entry) not in self._sent:
            self.tell("take a row", lambda client: client.log(present({**entry, "epoch": self._run_epoch(entry)})))

    def rewind(self, stage: str, epoch: float) -> None:
        """Drop the rows of ``stage`` after ``epoch``: a resumed stage is about to write them again.

        A stage whose checkpoint was lost is repeated when later ones are done: its rows keep their place before those.
        They go when the first new one comes, so that the place is known however often the stage is stopped.
        """
        rows = read_journal(self._journal, MetricsRow, ArtifactError)
        dropped = [row for row in rows if row["stage"] == stage and row["epoch"] > epoch]
        end = max((number for number, row in enumerate(rows, 1) if row["stage"] == stage), default=len(rows))
        before = [row for row in rows[:end] if row["stage"] != stage or row["epoch"] <= epoch]
        self._around = before, rows[end:]
        if dropped and end == len(rows):
            write_lines(self._journal, before)
        if self._resumed:  # W&B cannot take rows back, so those that it has are not sent again
            self._sent.update(map(_identity, dropped))
        self._follow(before + rows[end:])

    def tell(self, what: str, call: Callable[[Any], object]) -> None:
        """Call ``call`` with W&B's run, if there is one; where that fails, say so once and go on without it."""
        if self.client is None:
            return
        try:
            call(self.client)
        except Exception as error:  # whatever W&B raises, the run goes on without it
            self.client = None
            _warn(what, error)

    def summary(self, values: JournalRow) -> None:
        """Set the final figures of the run in W&B."""
        self.tell("take the summary", lambda client: client.summary.update(present(values)))

    def finish(self, exit_code: int = 0) -> None:
        """Close the W&B run, if there is one; the journal needs no closing."""
        self.tell("finish", lambda client: client.finish(exit_code=exit_code))
        self.client = None

    def _beat(self) -> None:
        """A sign of life: W&B takes a run that is silent for five minutes for dead."""
        self.tell("take a heartbeat", lambda client: client.log({"heartbeat": time.monotonic() - self._since}))

    def __enter__(self) -> Self:
        if self.client is not None:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heart.stop()
        if isinstance(error, InterruptedRunError | KeyboardInterrupt):
            if self._preemptible:
                self.tell("be told to start it again", lambda client: client.mark_preempting())
        elif isinstance(error, NasPruneError):
            self.summary(_end_of(error))
            error.told = self.client is not None
        self.finish(_exit_code(error))

    @property
    def _journal(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _write(self, entry: dict[str, Any]) -> None:
        """Append a row to those of its stage."""
        before, after = self._around
        if after:
            before.append(entry)
            write_lines(self._journal, before + after)
        else:
            append_line(self._journal, entry)

    def _follow(self, rows: JournalRows) -> None:
        """Go on from these rows: their clock and the last epoch of each stage."""
        self._since = time.monotonic()
        self._seconds_before = max((float(row["time"]) for row in rows), default=0.0)
        self._last_epochs: dict[str, float] = {row["stage"]: row["epoch"] for row in rows}

    def _run_epoch(self, entry: Mapping[str, Any]) -> float:
        """Epochs since the start of the whole run."""
        stages = list(self._last_epochs)
        earlier = stages[: stages.index(entry["stage"])]
        return float(sum(self._last_epochs[stage] for stage in earlier) + entry["epoch"])


def track_of_first(
    folder: Path, settings: TrackSettings, *, config: Mapping[str, Any], name: str, first: bool
) -> AbstractContextManager[Track | None]:
    """The record of the run in ``folder``, which the first of its processes keeps; the others have none."""
    return open_track(folder, settings, config=config, name=name) if first else nullcontext()


def open_track(folder: Path, settings: TrackSettings, *, config: Mapping[str, Any], name: str) -> Track:
    """Open the record of the run in ``folder``; ``config``: dotted key -> value of the recipe, ``name``: W&B's name."""
    folder.mkdir(parents=True, exist_ok=True)
    if RUN in os.environ:  # also where W&B is off, or fails: the folder is this run's
        write_json(folder / "wandb.json", {"id": os.environ[RUN]})
    mode = os.environ.get("WANDB_MODE") if settings.wandb == "auto" else settings.wandb
    if mode == "disabled":
        return Track(folder)
    try:
        known = known_run(folder)
        client = _client(folder, settings, config=dict(config), name=name, run_id=known)
    except Exception as error:  # whatever W&B raises, the run goes on without it
        _warn("start", error)
        return Track(folder)
    write_json(folder / "wandb.json", {"id": client.id})
    preemptible = settings.preemptible or "SLURM_JOB_ID" in os.environ
    return Track(folder, client, resumed=client.id == known, preemptible=preemptible)


def _client(folder: Path, settings: TrackSettings, *, config: dict[str, Any], name: str, run_id: str | None) -> Any:
    """A W&B run inside ``folder``. In a sweep the agent names the run, elsewhere the folder remembers it."""
    import wandb  # here, because a run without W&B must not pay for it

    given = os.environ.keys()
    run = wandb.init(
        project=None if "WANDB_PROJECT" in given else settings.project,
        name=None if given & {"WANDB_NAME", SWEEP} else name,  # a sweep names its runs apart
        dir=str(folder),
        config=config,
        mode=_mode(settings),
        id=None if given & {RUN, SWEEP} else run_id,
        resume="allow",
        settings=wandb.Settings(reinit="create_new"),
    )
    run.define_metric("epoch")
    for pattern in ("train/*", "eval/*", "search/*", "gate/*", "sweep/*"):
        run.define_metric(pattern, step_metric="epoch")
    run.define_metric("eval/top1", step_metric="epoch", summary="max")
    return run


def _mode(settings: TrackSettings) -> Literal["online", "offline", "disabled"] | None:
    """What to ask of W&B; None leaves it to W&B's own environment and settings files."""
    if settings.wandb != "auto":
        return settings.wandb
    return None if "WANDB_MODE" in os.environ or _logged_in() else "offline"


def _logged_in() -> bool:
    """Whether W&B would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    hosts = {urlsplit(wandb.setup().settings.base_url).netloc}
    if "WANDB_BASE_URL" not in os.environ:
        hosts.add("api.wandb.ai")  # where `wandb login` files its key whatever front door the client uses
    try:
        return not hosts.isdisjoint(netrc.netrc(os.environ.get("NETRC")).hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def tell_end(error: NasPruneError) -> None:
    """Tell W&B how a run of a sweep ended before it had a record; where W&B fails, nothing more is lost."""
    try:
        import wandb

        run = wandb.init(resume="allow", settings=wandb.Settings(reinit="create_new"))
        run.summary.update(_end_of(error))
        run.finish(exit_code=_exit_code(error))
    except Exception as failure:  # whatever W&B raises, the error itself is told on the terminal
        _warn("be told of the error", failure)


def _end_of(error: NasPruneError) -> dict[str, str]:
    """What the summary says of an error: that nothing meets a budget is a result."""
    status = "infeasible" if isinstance(error, BudgetError) else "failed"
    return {"status": status, "error": one_line(str(error), 1000)}


def _exit_code(error: BaseException | None) -> int:
    """With which exit code a W&B run ends."""
    if error is None or (isinstance(error, BudgetError) and in_a_sweep()):
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.number if isinstance(error, Terminated) else 2)
    return int(getattr(error, "exit_code", 1))


def known_run(folder: Path) -> str | None:
    """The W&B run that this folder was recorded in before."""
    path = folder / "wandb.json"
    return str(read_document(path, WandbFile, ArtifactError)["id"]) if path.exists() else None


def _identity(row: Mapping[str, Any]) -> tuple[object, ...]:
    """What makes two rows the same row: stage, epoch, and which figures they hold."""
    return row["stage"], row["epoch"], *sorted(row)


def present(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that are numbers or text: W&B gets no NaN, which a sweep would count as a score."""
    return {key: value for key, value in row.items() if finite(value) is not None}


def _warn(what: str, error: Exception) -> None:
    text = f"W&B failed to {what} ({type(error).__name__}: {error}); the run goes on and metrics.jsonl has every row. "
    advice = "Check the network and `wandb login`, or set track.wandb=disabled"
    logging.getLogger(__name__).warning("%s", text + advice)
