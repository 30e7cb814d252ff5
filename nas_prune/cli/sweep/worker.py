"""One run of a local sweep as a process of its own, started as W&B's agent would start it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_prune.base.errors import one_line
from nas_prune.base.files.whole import atomic_write, writing
from nas_prune.base.files.yaml_text import dump
from nas_prune.base.sweeps import RUN, SWEEP, VALUES
from nas_prune.cli.sweep.command_line import OurCommand
from nas_prune.cli.sweep.file import Sweep
from nas_prune.cli.sweep.journal import Entry
from nas_prune.cli.sweep.parameters import nested
from nas_prune.costs.timing.turn import MEASURING_LOCK

GRACE = 30.0  # seconds between the signal that asks and the one that does not, as W&B's agent has it
DIRECT = ("env", "nas-prune", "__main__.py", "nas_prune", "-m")  # launchers that are Python itself, one way or another
APART = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # no run is part of what launched it
FORM = {"wandb_version": 1}  # of a file of values, as W&B writes and reads it


@dataclass(frozen=True)
class How:
    """How runs are started: where, with how many threads, and what W&B is to do."""

    out: Path
    threads: int | None = None
    wandb: str = "disabled"


@dataclass
class Worker:
    """A run at work."""

    entry: Entry
    process: subprocess.Popen[bytes]
    since: float = field(default_factory=time.monotonic)
    stopped: bool = False

    @property
    def seconds(self) -> float:
        """How long it has been at work."""
        return time.monotonic() - self.since

    def stop(self) -> None:
        """Ask it to save its checkpoint and end."""
        self.stopped = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)


def argv(sweep: Sweep, values: Mapping[str, Any], folder: Path, wandb: str) -> list[str]:
    """The words of the process. What launches nas-prune is this very Python, unless it is a launcher of many."""
    words = sweep.ours
    launcher = [sys.executable, "-m", "nas_prune"] if words is None or _is_direct(words) else _launcher(words)
    return [*launcher, *sweep.words(values), "--out", str(folder), f"--track.wandb={wandb}"]


def start(sweep: Sweep, entry: Entry, identity: str, how: How) -> Worker:
    """Start a run, or go on with it; what it says is appended to its log."""
    folder, log = how.out / entry.run, how.out / f"{entry.run}.log"
    atomic_write(values_file(entry.run, how), dump({**FORM, **_rows(entry.values)}))
    with writing(log), log.open("ab") as said:
        process = subprocess.Popen(
            argv(sweep, entry.values, folder, how.wandb),
            env=environment(identity, entry.run, how),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Worker(entry, process)


def values_file(run: str, how: How) -> Path:
    """Where a run finds the values that were chosen for it, as an agent leaves them: beside its log."""
    return (how.out / f"{run}.yaml").resolve()


def environment(identity: str, run: str, how: How) -> dict[str, str]:
    """What the agent gives a run, and what lets several of them share a machine."""
    kept = {name: value for name, value in os.environ.items() if name not in APART}
    threads = {"OMP_NUM_THREADS": str(how.threads)} if how.threads else {}
    return {
        "OMP_NUM_THREADS": "1",
        MEASURING_LOCK: str((how.out / ".measuring.lock").resolve()),
        **kept,
        **threads,
        SWEEP: identity,
        RUN: run,
        VALUES: str(values_file(run, how)),
        "WANDB_MODE": how.wandb,
    }


def end_all(workers: Sequence[Worker]) -> None:
    """Ask all to end, and kill those that do not."""
    for worker in workers:
        worker.stop()
    deadline = time.monotonic() + GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def end_orphan(entry: Entry, out: Path) -> None:
    """End the process of a run that has outlived a killed sweep, so that the run can be gone on with."""
    if entry.process is None or not _is_run(entry.process, out / entry.run):
        return
    os.kill(entry.process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while _is_run(entry.process, out / entry.run):
        if time.monotonic() > deadline:
            os.kill(entry.process, signal.SIGKILL)
        time.sleep(0.1)


def last_words(log: Path) -> str:
    """What a run said when it failed: its error, or its last line."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines()[-200:] if line.strip()]
    except OSError as error:
        return f"its log {log} cannot be read ({error.strerror})"
    errors = [line for line in lines if line.startswith(("error:", "Error:"))]
    return one_line((errors or lines or ["it said nothing"])[-1], 300)


def _rows(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by flat names as W&B writes them down."""
    return {key: {"value": value} for key, value in nested(values).items()}


def _is_run(process: int, folder: Path) -> bool:
    """Whether a process of that number is there and works in that folder; nobody knows where there is no /proc."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(folder) in words


def _is_direct(command: OurCommand) -> bool:
    return all(
        word.startswith("${") or Path(word).name in DIRECT or Path(word).name.startswith("python")
        for word in command.launcher
    )


def _launcher(command: OurCommand) -> list[str]:
    """What the agent would make of a launcher such as torchrun."""
    stands = {"${env}": [], "${interpreter}": [sys.executable]}
    return [word for each in command.launcher for word in stands.get(each, [each])]
