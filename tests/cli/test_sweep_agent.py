"""W&B's own agent runs our program: three runs of a sweep, by a server that is made up here.

The names that stand in for the server are private to wandb 0.31; where they have moved, the test is skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nas_prune.base.files.whole import read_json

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = ("_register_agent", "_sweep_with_runs", "_agent_heartbeat")
SWEEP = {
    "method": "grid",
    "metric": {"name": "sweep/score", "goal": "maximize"},
    "command": ["${env}", "${interpreter}", "-m", "nas_prune", "run", "smoke/quickstart", "${args}"],
    "parameters": {"budget.target": {"values": ["0.9x", "0.02x", "fast"]}},
}
AGENT = """
import json, os, queue, sys, time
import wandb
from wandb import wandb_agent
from wandb.apis.public import sweeps

asked, log = json.loads(sys.argv[1]), []
left = [(f"run{number}", {"budget.target": {"value": target}}) for number, target in enumerate(asked)]

def heartbeat(_api, _agent, _metrics, running):
    time.sleep(0.1)
    if running:
        return []
    if not left:
        return [{"type": "exit"}]
    run, args = left.pop(0)
    return [{"type": "run", "run_id": run, "args": args, "program": None}]

wandb.Api = lambda *_, **__: None
sweeps._register_agent = lambda *_, **__: {"id": "agent"}
sweeps._sweep_with_runs = lambda *_: {"config": sys.argv[2]}
sweeps._agent_heartbeat = heartbeat
wandb_agent.util.read_many_from_queue = lambda *_: time.sleep(0.2) or []
os.environ["WANDB_SWEEP_ID"] = "abc"
agent = wandb_agent.Agent(None, queue.Queue(), sweep_id="abc")
agent.run()
print(json.dumps({"finished": agent._finished, "failed": agent._failed}))
"""


@pytest.mark.sweep
def test_to_wandbs_agent_a_missed_budget_is_no_failure_and_a_bad_recipe_is(tmp_path: Path) -> None:
    from wandb.apis.public import sweeps

    if not all(hasattr(sweeps, name) for name in PRIVATE):
        pytest.skip("this version of wandb has other names for what its agent asks the server")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "WANDB_MODE": "disabled"}
    targets = SWEEP["parameters"]["budget.target"]["values"]  # type: ignore[index]
    words = [sys.executable, "-c", AGENT, json.dumps(targets), yaml.safe_dump(SWEEP)]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"finished": 3, "failed": 1}
    runs = tmp_path / "runs" / "abc"
    assert read_json(runs / "run0" / "results.json")["status"] in ("met", "missed")
    assert read_json(runs / "run1" / "results.json")["status"] == "infeasible"
    assert not (runs / "run2").exists()
