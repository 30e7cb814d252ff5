"""Laws of sweeps at work: W&B's own agent starts real runs, in turn, two at once, stopped and gone on with."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from agents import Server, drive, drive_at_once, started
from sent import exit_codes, sent_config, sent_records, sent_rows, sent_summary

from nas_prune.base.files.whole import read_json, read_lines
from nas_prune.cli.sweep import local as local_sweep
from nas_prune.cli.sweep.file import Sweep
from nas_prune.cli.sweep.parameters import nested
from nas_prune.cli.sweep.suggest import Past, first_runs, to_stop
from nas_prune.cli.sweep.worker import How
from nas_prune.run.recipe.recipe import flat, read
from nas_prune.train.score import SCORE

pytestmark = pytest.mark.sweep
QUICK = ["budget.cost=macs", "track.wandb=offline"]
COMMAND = ["${env}", "${interpreter}", "-m", "nas_prune", "run", "smoke/digits_w_gates", *QUICK]
RUNS = Path("runs") / "smoke" / "digits_w_gates"
HYPERBAND = {"type": "hyperband", "min_iter": 3, "eta": 4}  # by the fourth score, of three runs the best goes on
RARER = ["args_no_equals", "args_no_hyphens", "args_json", "args_append_hydra"]  # their words are tried without a run
MACROS = ["args", "args_json_file", *(pytest.param(each, marks=pytest.mark.slow) for each in RARER)]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


def sweep(*command: str, **values: Any) -> dict[str, Any]:
    """A sweep as W&B's documentation writes one."""
    parameters = {key: {"value": value} for key, value in values.items()}
    metric = {"name": SCORE, "goal": "maximize"}
    return {"method": "grid", "metric": metric, "parameters": parameters, "command": [*COMMAND, *command]}


def journal(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, times aside."""
    return [{key: value for key, value in row.items() if key != "time"} for row in read_lines(folder / "metrics.jsonl")]


def model(folder: Path) -> bytes:
    """What a run has learnt."""
    return (folder / "finetuned" / "model.safetensors").read_bytes()


def untimed(folder: Path) -> list[Any]:
    """The results of a run, as far as no clock has a say in them."""
    found = read_json(folder / "results.json")
    return [found["status"], found["max_abs_error"], *(found["finetuned"][key] for key in ("top1", "macs", "params"))]


def searching(folder: Path) -> bool:
    """Whether a run is in the midst of its search."""
    path = folder / "metrics.jsonl"
    return path.exists() and "search-joint" in path.read_text()


@pytest.mark.parametrize("macro", MACROS)
def test_the_real_agent_and_each_macro(macro: str, tmp_path: Path) -> None:
    values = {"search.lr": 0.02, "budget.target": "0.8x", "gate": {"name": "sigmoid"}, "data.shift": 0}
    assert drive(Server(sweep(f"${{{macro}}}"), [("run1", values)]), tmp_path) == (1, 0)
    folder = tmp_path / RUNS / "run1"
    recipe = read(folder / "recipe.yaml")
    assert (recipe.search.lr, recipe.budget.target, recipe.gate.name) == (0.02, "0.8x", "sigmoid")
    assert [SCORE in row for row in journal(folder)] == [
        row["stage"] not in ("dense", "baseline") for row in journal(folder)
    ]


def test_a_first_sweep_with_everything_that_goes_wrong(tmp_path: Path) -> None:
    """No macro, a budget that nothing meets, a run like the first one, a mistake: each ends as what it is."""
    runs: list[tuple[str, Mapping[str, Any]]] = [
        ("forgot", {"search.lr": 0.03}),
        ("impossible", {"budget.target": "0.001x"}),
        ("again", {"search.lr": 0.03}),
        ("mistake", {"search.lrr": 1}),
    ]
    ended, folder = drive(Server(sweep(), list(runs)), tmp_path), tmp_path / RUNS
    assert read(folder / "forgot" / "recipe.yaml").search.lr == 0.03
    results = [read_json(folder / run / "results.json")["status"] for run, _ in runs[:3]]
    assert results == ["met", "infeasible", "met"]
    assert model(folder / "forgot") == model(folder / "again")
    assert ended == (4, 1)


def test_a_false_that_the_macro_leaves_out_runs_and_is_recorded_and_one_that_is_contradicted_fails(
    tmp_path: Path,
) -> None:
    """``${args_no_boolean_flags}`` writes nothing for false, where the recipe, or the command itself, says true."""
    quiet, loud = {"dense.baseline": False, "compile": False}, {"search.once": False}
    command = ["--search.once", "${args_no_boolean_flags}"]
    runs = [("quiet", quiet), ("loud", loud)]
    assert drive(Server(sweep(*command), list(runs)), tmp_path) == (2, 1)
    recipe = flat(read(tmp_path / RUNS / "quiet" / "recipe.yaml"))
    assert {key: recipe[key] for key in quiet} == quiet
    recorded = sent_config(tmp_path / RUNS / "quiet")
    assert {key: recorded[key] for key in recipe} == recipe
    assert not (tmp_path / RUNS / "loud").exists()
    failed = sent_summary(tmp_path)
    assert failed["status"] == "failed"
    assert "the sweep has search.once: False, and the command line says otherwise" in failed["error"]
    assert exit_codes(tmp_path) == [2]


def test_a_run_that_is_told_to_stop_makes_room_and_goes_on_at_another_agent(tmp_path: Path) -> None:
    """The server ends one of two equal runs; another agent resumes it from its whole config, and both end the same."""
    values, folder, stops = {"search.joint": 3}, tmp_path / RUNS, list[float]()

    def stop(running: Mapping[str, bool]) -> list[str]:
        if "one" in running and searching(folder / "one"):
            stops.append(time.monotonic())
            return ["one"]
        return []

    runs = [("one", values), ("whole", values)]
    assert drive(Server(sweep("${args}"), list(runs), stop), tmp_path) == (2, 0), "death by the signal is no failure"
    assert stops
    assert not (folder / "one" / "results.json").exists()
    assert exit_codes(folder / "one") == [143]
    config = sent_config(folder / "one")
    assert "_wandb" in config
    assert drive(Server(sweep("${args}"), [("one", config)], kind="resume"), tmp_path) == (1, 0)
    assert exit_codes(folder / "one") == [143, 0]
    assert journal(folder / "one") == journal(folder / "whole")
    assert model(folder / "one") == model(folder / "whole")
    assert len({record.run.run_id for record in sent_records(folder / "one") if record.HasField("run")}) == 1


def test_a_machine_that_is_taken_away_asks_for_its_run_to_be_started_again(tmp_path: Path) -> None:
    """SIGTERM to the agent reaches the run; what is saved goes on under an agent elsewhere."""
    folder, command = tmp_path / RUNS / "run1", sweep("track.preemptible=true", "${args}")
    values = {"search.joint": 3, "search.lr": 0.02}
    agent = started(Server(command, [("run1", values)]), tmp_path)
    deadline = time.monotonic() + 900  # on a machine with much else to do
    while not searching(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert searching(folder)
    agent.terminate()
    agent.join(60)
    before = journal(folder)
    assert not (folder / "results.json").exists()
    assert any(record.HasField("preempting") for record in sent_records(folder))
    config = sent_config(folder)
    assert drive(Server(command, [("run1", config)], kind="resume"), tmp_path) == (1, 0)
    assert journal(folder)[: len(before)] == before
    assert read_json(folder / "results.json")["status"] == "met"


def test_two_agents_at_once_share_a_calibration_and_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_PRUNE_CACHE", str(tmp_path / "cache"))
    lists = [[(f"{agent}{gate}", {"gate.name": gate, "search.lr": lr}) for gate in ("weight", "sigmoid")]
             for agent, lr in (("a", 0.01), ("b", 0.02))]  # fmt: skip
    servers = [Server(sweep("${args}"), list(runs)) for runs in lists]
    assert drive_at_once(servers, tmp_path) == [(2, 0), (2, 0)]
    runs = {run: values for each in lists for run, values in each}
    assert {path.name for path in (tmp_path / RUNS).iterdir()} == runs.keys()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    for run, values in runs.items():
        folder = tmp_path / RUNS / run
        recipe, recorded = flat(read(folder / "recipe.yaml")), sent_config(folder)
        assert {key: (recipe[key], recorded[key]) for key in values} == {k: (v, v) for k, v in values.items()}
        assert {record.run.run_id for record in sent_records(folder) if record.HasField("run")} == {run}
        assert [row["train/loss"] for row in sent_rows(folder)] == [row["train/loss"] for row in journal(folder)]
        assert sent_summary(folder)["final/top1"] == read_json(folder / "results.json")["finetuned"]["top1"]


def test_a_local_sweep_runs_and_records_what_the_agent_does(tmp_path: Path) -> None:
    content: dict[str, Any] = sweep("${args_no_boolean_flags}")
    content["parameters"] = {
        "gate.name": {"values": ["sigmoid", "weight"]},
        "search": {"parameters": {"lr": {"value": 0.02}, "joint": {"value": 2}}},
        "dense.baseline": {"value": False},
        "finetune.weight_decay": {"value": 0.00001},
    }
    here, there = Sweep(tmp_path / "sweep.yaml", content), tmp_path / "agent"
    with local_sweep.opened(here, How(tmp_path / "local", wandb="offline"), 0, count=1, workers=1) as work:
        (local,) = work.go(lambda *_: None)
    there.mkdir()
    (values,) = first_runs(here, 1, seed=0)
    assert drive(Server(content, [(local.run, nested(values))]), there) == (1, 0)
    folders = tmp_path / "local" / local.run, there / RUNS / local.run
    recipes = {(folder / "recipe.yaml").read_bytes() for folder in folders}
    assert len(recipes) == len(set(map(model, folders))) == 1
    assert flat(read(folders[0] / "recipe.yaml"))["dense.baseline"] is False
    assert journal(folders[0]) == journal(folders[1])
    configs = [{key: value for key, value in sent_config(each).items() if key != "_wandb"} for each in folders]
    assert configs[0] == configs[1]
    assert configs[0]["search"] == {"lr": 0.02, "joint": 2}
    first, second = map(untimed, folders)
    assert first == second


def test_all_readers_of_the_score_choose_the_same_run(tmp_path: Path) -> None:
    """Dense, every network is better than any pruned one, and the best of these comes of the worst dense one."""
    trained = {"dense.epochs": 7, "dense.max_steps": 20, "finetune.lr": 1e-6}
    planted: dict[str, dict[str, Any]] = {
        "hasty": {**trained, "dense.epochs": 5, "budget.target": "0.6x"},
        "small": {**trained, "budget.target": "0.3x"},
        "smaller": {**trained, "budget.target": "0.2x"},
    }
    content = sweep("dense.baseline=false", "${args}") | {"early_terminate": HYPERBAND}
    assert drive(Server(content, list(planted.items())), tmp_path) == (3, 0)
    rows = {run: sent_rows(tmp_path / RUNS / run) for run in planted}
    scores = {run: [row[SCORE] for row in found if SCORE in row] for run, found in rows.items()}
    last = {run: sent_summary(tmp_path / RUNS / run)[SCORE] for run in planted}
    naive = {run: max(row["eval/top1"] for row in found) for run, found in rows.items()}
    dense = {run: max(row["eval/top1"] for row in found if SCORE not in row) for run, found in rows.items()}
    stopped = to_stop(Sweep(tmp_path, content), [Past(run, {}, "running", found) for run, found in scores.items()])
    assert min(dense.values()) > max(last.values())
    assert max(naive, key=lambda run: naive[run]) != "hasty"
    for reader in ({run: max(found) for run, found in scores.items()}, last):
        assert max(reader, key=lambda run: reader[run]) == "hasty"
    assert planted.keys() - set(stopped) == {"hasty"}
