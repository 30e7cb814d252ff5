"""W&B's own agent, driven without a server: it starts real processes, and what a server would say is scripted.

The names that are replaced are private to wandb and move between versions: where one is missing, the test says which.
"""

import queue
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb import wandb_agent
from wandb.apis.public import sweeps as public

REPLACED = {public: ("_register_agent", "_sweep_with_runs", "_agent_heartbeat"), wandb: ("Api",)}
Commands = list[dict[str, Any]]


@dataclass
class Server:
    """What the server of a sweep says: the runs in turn, each when the one before has ended, then exit.

    ``stop``: called with the runs at work at every heartbeat; the ids that it returns are told to stop.
    """

    config: Mapping[str, Any]
    runs: list[tuple[str, Mapping[str, Any]]]
    stop: Callable[[Mapping[str, bool]], list[str]] = lambda _: []
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
        return [{"type": "run", "run_id": run, "args": args, "program": program}]


def drive(server: Server, folder: Path, patch: pytest.MonkeyPatch) -> wandb_agent.Agent:
    """Let the agent work in ``folder`` until the server says exit."""
    missing = [name for module, names in REPLACED.items() for name in names if not hasattr(module, name)]
    assert not missing, f"wandb {wandb.__version__} has no {', '.join(missing)}: look where they went, and mend this"
    patch.chdir(folder)
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_DIR", str(folder))
    patch.setenv("WANDB_SWEEP_ID", "sweep1")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        patch.setenv(name, "")  # the agent writes them into its own environment, which is that of all tests
    patch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    patch.setattr(public, "_register_agent", lambda *_, **__: {"id": "agent1"})
    patch.setattr(public, "_sweep_with_runs", lambda *_, **__: {"config": yaml.safe_dump(dict(server.config))})
    patch.setattr(public, "_agent_heartbeat", server.heartbeat)
    patch.setattr(wandb, "Api", lambda *_, **__: object())
    patch.setattr(wandb_agent.util, "read_many_from_queue", lambda *_: [])
    agent = wandb_agent.Agent(object(), queue.Queue(), sweep_id="sweep1")
    agent.POLL_INTERVAL = 1
    agent.run()
    return agent
