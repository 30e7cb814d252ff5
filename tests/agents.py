"""W&B's own agent, driven without a server: it starts real processes, and what a server would say is scripted.

The names that are replaced are private to wandb and move between versions: where one is missing, the test says which.
"""

import multiprocessing
import queue
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wandb
import yaml
from wandb import wandb_agent
from wandb.apis.public import sweeps as public

REPLACED = {public: ("_register_agent", "_sweep_with_runs", "_agent_heartbeat"), wandb: ("Api",)}
Commands = list[dict[str, Any]]
PROCESSES = multiprocessing.get_context("spawn")


class Ended(NamedTuple):
    """How many runs an agent has seen end, and how many of these failed."""

    finished: int
    failed: int


def nobody(_running: Mapping[str, bool]) -> list[str]:
    """No run is to stop."""
    return []


@dataclass
class Server:
    """What the server of a sweep says: the runs in turn, each when the one before has ended, then exit.

    ``stop``: called with the runs at work at every heartbeat; the ids that it returns are told to stop. ``kind``: of
    command by which runs are started: run, or resume.
    """

    config: Mapping[str, Any]
    runs: list[tuple[str, Mapping[str, Any]]]
    stop: Callable[[Mapping[str, bool]], list[str]] = nobody
    kind: str = "run"
    seen: list[dict[str, bool]] = field(default_factory=list)

    def heartbeat(self, _api: object, _agent: object, _metrics: object, running: Mapping[str, bool]) -> Commands:
        """The commands of one heartbeat."""
        self.seen.append(dict(running))
        stopping: Commands = [{"type": "stop", "run_id": run} for run in self.stop(running)]
        if running or stopping:
            return stopping
        if not self.runs:
            return [{"type": "exit"}]
        run, values = self.runs.pop(0)
        program, args = str(self.config.get("program", "")), {key: {"value": value} for key, value in values.items()}
        return [{"type": self.kind, "run_id": run, "args": args, "program": program}]


def drive(server: Server, folder: Path, *, forward_signals: bool = False) -> Ended:
    """Let the agent work in ``folder`` until the server says exit."""
    missing = [name for module, names in REPLACED.items() for name in names if not hasattr(module, name)]
    assert not missing, f"wandb {wandb.__version__} has no {', '.join(missing)}: look where they went, and mend this"
    told = {"MODE": "offline", "DIR": str(folder), "SWEEP_ID": "sweep1"}
    told |= {"RUN_ID": "", "SWEEP_PARAM_PATH": ""}  # which the agent writes into its environment, that of all tests
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in told.items():
            patch.setenv(f"WANDB_{name}", value)
        patch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
        patch.setattr(public, "_register_agent", lambda *_, **__: {"id": "agent1"})
        patch.setattr(public, "_sweep_with_runs", lambda *_, **__: {"config": yaml.safe_dump(dict(server.config))})
        patch.setattr(public, "_agent_heartbeat", server.heartbeat)
        patch.setattr(wandb, "Api", lambda *_, **__: object())
        patch.setattr(wandb_agent.util, "read_many_from_queue", lambda *_: time.sleep(0.1) or [])
        agent = wandb_agent.Agent(object(), queue.Queue(), sweep_id="sweep1", forward_signals=forward_signals)
        agent.run()
    return Ended(agent._finished, agent._failed)


def drive_at_once(servers: list[Server], folder: Path) -> list[Ended]:
    """An agent for each of them, all at work in one folder, each in a process of its own."""
    with ProcessPoolExecutor(len(servers), PROCESSES) as pool:
        return list(pool.map(drive, servers, [folder] * len(servers)))


def started(server: Server, folder: Path) -> Any:
    """An agent in a process of its own, as ``wandb agent --forward-signals`` starts one."""
    process = PROCESSES.Process(target=drive, args=(server, folder), kwargs={"forward_signals": True})
    process.start()
    return process
