"""Laws of sweeps: a file that would waste the runs is told, and a local sweep that was killed ends the same."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import Ended, here, nas_prune

import nas_prune as npr
from nas_prune.artifact.folder import describe
from nas_prune.base.errors import InterruptedRunError, NasPruneError, RecipeError
from nas_prune.base.files.whole import append_line, read_json, read_lines, write_json
from nas_prune.cli.sweep import best, outcome, page, suggest, trial, worker
from nas_prune.cli.sweep import local as local_sweep
from nas_prune.cli.sweep.command_line import AS_JSON, WRITTEN
from nas_prune.cli.sweep.file import Sweep, read, sweeps
from nas_prune.cli.sweep.journal import Journal
from nas_prune.cli.sweep.lint import findings
from nas_prune.cli.sweep.local import Local
from nas_prune.cli.sweep.parameters import nested
from nas_prune.cli.sweep.worker import How
from nas_prune.costs.timing.turn import MEASURING_LOCK, turn
from nas_prune.run.recipe.recipe import read as read_recipe

__all__ = ["here"]
ROOT = Path(__file__).resolve().parents[2]
GOOD: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "sweep/score", "goal": "maximize"},
    "command": ["${env}", "nas-prune", "run", "quickstart", "${args}"],
    "parameters": {"gate.name": {"values": ["weight", "sigmoid"]}, "budget.target": {"values": ["0.8x", "0.9x"]}},
}
PAGE = (ROOT / "docs" / "sweeps.md").read_text()
PAGE_FILE = PAGE.partition("```yaml\n")[2].partition("```")[0]
BAYES = {"method": "bayes", "parameters": {"search.lr": {"min": 0.01, "max": 0.1}}}


def sweep_of(**changes: Any) -> Sweep:
    """The good sweep with some keys changed; None leaves one out."""
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return Sweep(Path("sweep.yaml"), content)


def command(*words: str) -> dict[str, Any]:
    return {"command": ["${env}", *words]}


def parameter(name: str, **how: Any) -> dict[str, Any]:
    return {"parameters": {**GOOD["parameters"], name: how}}


def commands(name: str) -> list[list[str]]:
    """The commands of that name that the page shows, without ``nas-prune``."""
    lines = [
        line.partition("#")[0].split()
        for block in PAGE.split("```sh\n")[1:]
        for line in block.split("```")[0].splitlines()
    ]
    return [words[1:] for words in lines if words[:1] == ["nas-prune"] and name in words[1:3]]


@pytest.mark.parametrize("macro", [*WRITTEN, *AS_JSON])
def test_a_good_sweep_has_no_findings(macro: str) -> None:
    false = parameter("dense.baseline", values=[True, False])
    assert findings(sweep_of(**command("nas-prune", "run", "quickstart", f"${{{macro}}}"), **false)) == []


@pytest.mark.parametrize("name", [*sweeps(), str(ROOT / "examples" / "sweep_torchrun.yaml")])
def test_shipped_sweeps_have_no_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGENET", "/data/imagenet")
    assert list(map(str, findings(read(name)))) == []


PLANTED = {
    "a key that is nearly one": (parameter("search.jont", values=[1, 2]), "unknown key 'search.jont'; did you mean"),
    "a key of another section": (parameter("gate_lr", values=[0.1, 0.2]), "did you mean 'search.gate_lr'"),
    "a value that does not parse": (parameter("search.joint", values=[1, "many"]), "search.joint"),
    "a fraction of an epoch": ({**BAYES, **parameter("search.joint", min=1.0, max=4.0)}, "search.joint"),
    "no part of that name": (parameter("search.criterion.name", values=["tailor", "taylor"]), "'tailor'; did you mean"),
    "a nested key": ({"parameters": {"search": {"parameters": {"jont": {"values": [1, 2]}}}}}, "jont"),
    "an option that no gate has": (parameter("gate.options", value={"ini": 1}), "ini"),
    "too much of a budget": (parameter("budget.target", values=["0.5x", "1.5x"]), "within budget.target 1.5x already"),
    "a number that is text to W&B": ({**BAYES, **parameter("search.lr", min="1e-4", max=0.1)}, "1.0e-4"),
    "an empty range": ({**BAYES, **parameter("search.lr", min=0.1, max=0.1)}, "is not below"),
    "exponents": (
        {**BAYES, **parameter("search.lr", min=0.1, max=1.0, distribution="log_uniform")},
        "log_uniform_values",
    ),
    "no such distribution": ({**BAYES, **parameter("search.lr", min=0.1, max=1.0, distribution="log")}, "'log'"),
    "a grid of a range": (parameter("search.lr", min=0.1, max=1.0), "a grid has no uniform parameter"),
    "a bare value": ({"parameters": {**GOOD["parameters"], "seed": 3}}, "{value: 3}"),
    "probabilities": ({**BAYES, **parameter("seed", values=[1, 2], probabilities=[0.5, 0.6])}, "add up to 1"),
    "an odd key of a parameter": (parameter("seed", values=[1, 2], step=3), "it has no key step"),
    "nothing varies": ({"parameters": {"seed": {"value": 3}}}, "none varies"),
    "a method": ({"method": "rnadom"}, "did you mean 'random'"),
    "a key of the file": ({"metrics": {}}, "did you mean 'metric'"),
    "no metric": ({**BAYES, "metric": None}, "method: bayes needs one"),
    "nobody logs it": ({"metric": {"name": "sweep/scor", "goal": "maximize"}}, "did you mean 'sweep/score'"),
    "a space in its name": ({"metric": {"name": "sweep/score ", "goal": "maximize"}}, "no run logs 'sweep/score '"),
    "the dense epoch": ({"metric": {"name": "eval/top1", "goal": "maximize"}}, "before anything was removed"),
    "the wrong way": ({"metric": {"name": "sweep/score"}}, "write goal: maximize"),
    "no macro": (command("nas-prune", "run", "quickstart"), "no element is ${args}"),
    "part of an element": (command("nas-prune", "run", "quickstart", "--x=${args}"), "is a whole element"),
    "an unknown macro": (command("nas-prune", "run", "quickstart", "${args}", "${arg}"), "knows no macro ${arg}"),
    "a shell": (command("nas-prune", "run", "quickstart", "${args}", "&&", "true"), "no shell"),
    "one word": ({"command": ["nas-prune run quickstart", "${args}"]}, "[nas-prune, run, quickstart]"),
    "one folder": (command("nas-prune", "run", "quickstart", "--out=runs/one", "${args}"), "share the folder"),
    "no recipe": (command("nas-prune", "run", "${args}"), "no recipe is named"),
    "a recipe that is none": (command("nas-prune", "run", "quikstart", "${args}"), "did you mean 'quickstart'"),
    "no command of ours": (command("nas-prune", "${args}"), "write run and a recipe"),
    "another program": ({"program": "train.py", "command": None}, "'train.py' is not nas-prune"),
    "no program": (command("${interpreter}", "${program}", "${args}"), "it is missing, and the command has ${program}"),
    "an unset variable": (
        command("nas-prune", "run", "quickstart", "name=${envvar:NO_SUCH}", "${args}"),
        "NO_SUCH is not",
    ),
    "hyperband with nothing": ({"early_terminate": {"type": "hyperband"}}, "no band follows"),
    "hyperband too late": ({"early_terminate": {"type": "hyperband", "min_iter": 40}}, "there are 30"),
    "another early end": ({"early_terminate": {"type": "envelope"}}, "one type"),
    "a false that the command contradicts": (
        {
            **command("nas-prune", "run", "quickstart", "--dense.baseline", "${args_no_boolean_flags}"),
            **parameter("dense.baseline", values=[True, False]),
        },
        "the sweep has dense.baseline: False, and the command line says otherwise",
    ),
    "a word behind the macro": (
        command("nas-prune", "run", "quickstart", "${args}", "gate.name=weight"),
        "the sweep has gate.name: 'sigmoid', and the command line says otherwise",
    ),
    "W&B sees nothing": (command("nas-prune", "run", "smoke/digits_w_gates", "${args}"), "W&B sees no score"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_lint_finds_what_is_planted(planted: str) -> None:
    changes, told = PLANTED[planted]
    found = list(map(str, findings(sweep_of(**changes))))
    assert [text for text in found if told in text], found
    assert all("\n" not in text for text in found)


def test_a_budget_below_the_smallest_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from nas_prune.cli.sweep import trial

    monkeypatch.setattr(trial.calibration_file, "read", lambda *_: ({}, {"smallest_ms": 2.0, "dense_ms": 4.0}))
    given = {"budget.target": {"values": ["0.4x", "0.6x"]}, "latency.calibration": {"value": "shared.safetensors"}}
    assert [str(each) for each in findings(sweep_of(parameters=given))] == [
        "parameters.budget.target: 0.4x cannot be met: by the calibration, the smallest network takes 0.5x; ask for at "
        "least 0.53x"
    ]


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in [(*above, key), *places(inner, (*above, key))]]


@pytest.mark.parametrize("odd", [None, 3, "x", [], {}, [None], True, -1.5, {"a": {"b": 1}}])
def test_whatever_a_file_holds_lint_says_lines(odd: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas_prune.cli.sweep import trial

    monkeypatch.setattr(trial, "check", lambda _: None)
    whole = {
        **GOOD,
        "method": "bayes",
        "run_cap": 3,
        "early_terminate": {"type": "hyperband", "min_iter": 3, "max_iter": 9, "s": 2, "eta": 3},
        "parameters": {
            "seed": {"values": [1, 2], "probabilities": [0.5, 0.5]},
            "search": {"parameters": {"lr": {"distribution": "q_uniform", "min": 0.1, "max": 0.4, "q": 0.1}}},
            "finetune.lr": {"distribution": "log_normal", "mu": -3, "sigma": 0.2},
        },
    }
    for path in places(whole):
        spoilt = copy.deepcopy(whole)
        inner: Any = spoilt
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = odd
        assert all("\n" not in str(each) for each in findings(Sweep(Path("sweep.yaml"), spoilt)))


def test_lint_ends_with_2_for_problems_alone(here: Callable[..., Ended], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump({**GOOD, "metric": {"name": "eval/top1", "goal": "maximize"}}))
    bad.write_text(yaml.safe_dump({**GOOD, "method": "gird"}))
    warned, refused = here("sweep", "lint", str(good)), here("sweep", "lint", str(bad))
    assert (warned.returncode, refused.returncode) == (0, 2)
    assert "warning: metric.name" in warned.stdout
    assert f"{bad}: method: it is 'gird'; did you mean 'grid'?" in refused.stdout
    assert here("sweep", "lint", "targts").returncode == 2


@pytest.mark.parametrize("macro", WRITTEN)
def test_what_the_agent_writes_is_what_our_parser_reads(macro: str) -> None:
    given = {
        "method": "random",
        **command("nas-prune", "run", "quickstart", "${" + macro + "}"),
        "parameters": {
            "gate": {
                "parameters": {
                    "name": {"values": ["sigmoid"]},
                    "options": {"parameters": {"init": {"min": 1.0, "max": 4.0}}},
                }
            },
            "search.joint": {"min": 2, "max": 9},
            "search.lr": {"distribution": "log_uniform_values", "min": 0.0001, "max": 0.1},
            "search.criterion.name": {"value": None},
            "dense.baseline": {"value": True},
            "data.hflip": {"value": 0},
        },
    }
    sweep = sweep_of(**given)
    for values in suggest.first_runs(sweep, 3, seed=1):
        verb, recipe, *words = sweep.words(values)
        read_back = read_recipe(recipe, words)
        assert (verb, recipe) == ("run", "quickstart")
        assert read_back.gate.options == {"init": values["gate/options/init"]}
        assert read_back.search.joint == values["search.joint"]
        assert read_back.search.lr == pytest.approx(values["search.lr"])
        assert read_back.dense.baseline is True


def test_the_expansion_is_that_of_wandb() -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    values = {"gate.lr": 0.1, "flag": False, "yes": True, "dims": [1, 2], "name": "a b", "none": None, "nest": {"x": 1}}
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    for macro, write in WRITTEN.items():
        assert [word for name, value in values.items() for word in write(name, value)] == theirs[macro]


def test_plan_says_the_same_for_the_same_seed(here: Callable[..., Ended], tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_of(**BAYES).content))
    first, again, other = (here("sweep", "plan", str(path), "-n", "3", "--seed", seed).stdout for seed in "112")
    assert first == again != other
    assert first.startswith("/usr/bin/env nas-prune run quickstart --search.lr=0.0")


def test_the_page_shows_what_there_is(
    here: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(PAGE_FILE)
    shown = [here(*words) for name in ("sweeps", "lint", "plan") for words in commands(name)]
    assert [each.returncode for each in shown] == [0] * 3
    assert [name for name in sweeps() if name not in shown[0].stdout] == []
    assert shown[2].stdout.splitlines()[0] in PAGE


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_suggestions_go_on_where_they_were(method: str) -> None:
    given = {"search": {"parameters": {"joint": {"values": [1, 2]}}}, "seed": {"values": [0, 1, 2]}}
    sweep = sweep_of(method=method, parameters=given)
    whole = suggest.first_runs(sweep, 6, seed=3)
    past = [suggest.Past(str(number), values) for number, values in enumerate(whole[:4])]
    assert suggest.suggest(sweep, past, seed=3) == whole[4]
    if method == "grid":
        assert len({json.dumps(values) for values in whole}) == 6
        assert suggest.suggest(sweep, [suggest.Past("", values) for values in whole], seed=3) is None


def test_without_the_package_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggest, "find_spec", lambda _: None)
    with pytest.raises(NasPruneError, match=r'pip install "nas_prune\[sweeps\]"'):
        suggest.first_runs(sweep_of(), 1, seed=0)


# a run, as far as a sweep looks at one: some scores, then results or an error
FAKE = """
import json, sys, time
from pathlib import Path
folder, top1, kind = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
(folder / "calibration").mkdir(parents=True, exist_ok=True)
(folder / "calibration" / "calibration.safetensors").write_text("")
if kind == "failed":
    sys.exit("error: the loss is not a number")
with (folder / "metrics.jsonl").open("a") as rows:
    for epoch in range(4):
        rows.write(json.dumps({"stage": "search", "epoch": epoch, "time": 0.0, "sweep/score": top1}) + "\\n")
if kind == "long":
    time.sleep(60)
row = {"top1": top1, "macs": 10, "params": 1, "predicted_ms": 1.0, "measured_ms": top1 / 10}
models = dict.fromkeys(("dense", "gated", "derived", "finetuned"), row)
(folder / "new.json").write_text(json.dumps({"status": "met", "max_abs_error": 0.0, **models}))
(folder / "new.json").rename(folder / "results.json")  # whole or not at all, as a run writes it
"""


def pretend(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Runs that end at once, one of a kind after the other; their top-1 is 90, 91, ..."""
    asked: list[str] = []

    def argv(_sweep: Sweep, _values: Any, folder: Path, _wandb: str) -> list[str]:
        asked.append(folder.name) if folder.name not in asked else None
        number = asked.index(folder.name)
        return [sys.executable, "-c", FAKE, str(folder), str(90 + number), (*kinds, "met")[min(number, len(kinds))]]

    monkeypatch.setattr(worker, "argv", argv)
    monkeypatch.setattr(local_sweep, "LOOK", 0.05)


def begun(sweep: Sweep, out: Path) -> list[str]:
    """What the first runs of a sweep in this folder are called, begun there."""
    journal = Journal.open(out, trial.identity(sweep, 0), 0, sweep)
    return [journal.suggest(values).run for values in suggest.first_runs(sweep, 2, seed=0)]


def swept(sweep: Sweep, out: Path, seen: Callable[..., None] = lambda *_: None) -> list[outcome.Outcome]:
    """A local sweep of two workers, to its end."""
    with local_sweep.opened(sweep, How(out), 0, count=None, workers=2) as work:
        return work.go(seen)


def test_a_sweep_ends_with_results_a_table_and_a_chart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, "met", "failed")
    lines: list[str] = []
    sweep = sweep_of()
    found = swept(sweep, tmp_path, lambda local, ended: lines.append(page.line(local, ended)) if ended else None)
    assert sorted(each.state for each in found) == ["failed", "finished", "finished", "finished"]
    assert page.failures(found) == [f"{found[1].run} failed: error: the loss is not a number"]
    assert len(lines) == 4
    assert lines[-1].startswith("[4/4]")
    content = read_json(tmp_path / "sweep.json")
    assert content["best"] == max((each for each in found if each.top1), key=lambda each: each.top1 or 0).run
    assert set(content["survivors"]) == {each.run for each in found if each.top1}  # each is dearer and better
    assert page.table(found, sweep.varying).row_count == 4
    chart = page.save_chart(found, sweep.varying, tmp_path / "pareto.svg")
    assert chart is not None
    assert "sigmoid 0.9x" in chart.read_text()
    assert swept(sweep, tmp_path) == found  # nothing is left to do
    pretend(monkeypatch, "met")
    with local_sweep.opened(sweep, How(tmp_path), 0, count=None, workers=1) as work:
        work.forgive()
        assert [each.state for each in work.go(lambda *_: None)] == ["finished"] * 4


def test_hyperband_ends_the_runs_that_fall_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, "long", "met", "met", "met")
    found = swept(sweep_of(early_terminate={"type": "hyperband", "min_iter": 2}), tmp_path)
    assert [each.state for each in found] == ["stopped", "finished", "finished", "finished"]
    rows = read_lines(tmp_path / "sweep.jsonl")
    assert [row["message"] for row in rows if row.get("state") == "stopped"] == ["hyperband"]


def test_a_sweep_that_is_stopped_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, "met", "long")

    def strike(local: Local, _ended: outcome.Outcome | None) -> None:
        if any((tmp_path / run / "metrics.jsonl").exists() for run in local.active) and len(local.journal.entries) > 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="the same command goes on"):
        swept(sweep_of(), tmp_path, strike)
    left = [row for row in read_lines(tmp_path / "sweep.jsonl") if row["kind"] == "suggested"]
    pretend(monkeypatch, "met")
    found = swept(sweep_of(), tmp_path)
    rows = [row for row in read_lines(tmp_path / "sweep.jsonl") if row["kind"] == "suggested"]
    assert rows[: len(left)] == left
    assert [row["values"] for row in rows] == suggest.first_runs(sweep_of(), 9, seed=0)
    assert [each.state for each in found] == ["finished"] * 4


def test_how_long_a_run_took_counts_the_attempts_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch)
    (first, *_) = begun(sweep_of(), tmp_path)
    write_json(tmp_path / first / "seconds.json", {"calibrate": 1000.0, "dense": 234.0})
    found = swept(sweep_of(), tmp_path)
    assert [each.seconds >= 1234 for each in found] == [each.run == first for each in found]


def test_what_outlives_a_killed_sweep_is_ended_before_it_goes_on(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, trial.identity(sweep_of(), 0), 0, sweep_of())
    entry = journal.suggest({"gate.name": "weight"})
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / entry.run)])
    journal.start(entry, orphan.pid)
    reaper = threading.Thread(target=orphan.wait)  # an orphan's parent is the system, which does the same
    reaper.start()
    while not worker._is_run(orphan.pid, tmp_path / entry.run):
        time.sleep(0.01)
    worker.end_orphan(entry, tmp_path)
    reaper.join(10)
    assert orphan.returncode == -signal.SIGTERM


def test_a_folder_is_that_of_one_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch)
    swept(sweep_of(), tmp_path)
    with pytest.raises(RecipeError, match="holds another sweep"):
        swept(sweep_of(parameters={"seed": {"values": [1, 2]}}), tmp_path)
    with pytest.raises(RecipeError, match="never ends by itself"):
        swept(sweep_of(**BAYES), tmp_path / "bayes")


def test_the_process_is_ours_and_is_told_what_an_agent_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    values = {"gate.name": "sigmoid"}
    words = worker.argv(sweep_of(), values, tmp_path / "run", "offline")
    assert words[:5] == [sys.executable, "-m", "nas_prune", "run", "quickstart"]
    assert words[5:] == ["--gate.name=sigmoid", "--out", str(tmp_path / "run"), "--track.wandb=offline"]
    launched = sweep_of(**command("torchrun", "--nproc-per-node=2", "-m", "nas_prune", "run", "quickstart", "${args}"))
    assert worker.argv(launched, values, tmp_path, "disabled")[:4] == [
        "torchrun",
        "--nproc-per-node=2",
        "-m",
        "nas_prune",
    ]
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "values of another sweep")
    told = worker.environment("abc", "xyz", How(tmp_path, wandb="offline"))
    assert told["WANDB_SWEEP_PARAM_PATH"] == str((tmp_path / "xyz.yaml").resolve())
    assert (told["WANDB_SWEEP_ID"], told["WANDB_RUN_ID"], told["WANDB_MODE"]) == ("abc", "xyz", "offline")
    assert told["OMP_NUM_THREADS"] == "1"
    assert Path(told[MEASURING_LOCK]).parent == tmp_path.resolve()


def test_the_score_is_the_last_one_and_missed_budgets_are_not_the_best(tmp_path: Path) -> None:
    figures = {"top1": 90.0, "macs": 10, "params": 1, "predicted_ms": 1.0, "measured_ms": 2.0}
    for run, status in [("one", "met"), ("two", "missed"), ("three", "met")]:
        models = dict.fromkeys(("dense", "gated", "derived", "finetuned"), figures)
        write_json(tmp_path / run / "results.json", {"status": status, "max_abs_error": 0.0, **models})
    write_json(tmp_path / "four" / "results.json", {"status": "infeasible", "target": "0.1x", "why": "too small"})
    for score in (99.0, None, 91.0):
        append_line(
            tmp_path / "three" / "metrics.jsonl", {"stage": "search", "epoch": 1, "time": 0.0, "sweep/score": score}
        )
    found = best.find(str(tmp_path)).runs
    assert {each.run: each.score for each in found} == {"one": 90.0, "two": None, "three": 91.0, "four": None}
    chosen = outcome.best(found)
    assert chosen is not None
    assert chosen.run == "three"
    (tmp_path / "one" / "recipe.yaml").touch()
    with pytest.raises(NasPruneError, match=r"one is no sweep folder: .* one run, whose model is in .*finetuned"):
        best.find(str(tmp_path / "one"))


@pytest.mark.parametrize("metric", [{"name": "train/loss", "goal": "minimize"}, {"name": "train/loss"}, None])
def test_the_best_run_is_the_one_that_the_goal_asks_for(
    metric: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch)
    sweep = sweep_of(**{} if metric is None else {"metric": metric})
    runs = [each.run for each in swept(sweep, tmp_path)]  # the later, the higher is top-1
    for number, run in enumerate(runs):
        row = {"stage": "search", "epoch": 1, "time": 0.0, "train/loss": 1.0 + number, "sweep/score": 90.0 + number}
        append_line(tmp_path / run / "metrics.jsonl", row)
    with local_sweep.opened(sweep, How(tmp_path), 0, count=None, workers=2) as work:
        work.write()
    wanted = runs[0] if metric else runs[-1]
    assert read_json(tmp_path / "sweep.json")["best"] == wanted
    found = best.find(str(tmp_path))
    chosen = outcome.best(found.runs, found.goal)
    assert chosen is not None
    assert chosen.run == wanted


def test_a_sweep_of_wandb_that_cannot_be_read_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wandb

    def offline() -> None:
        raise OSError("no network")

    monkeypatch.setattr(wandb, "Api", offline)
    with pytest.raises(NasPruneError, match=r"cannot be read from W&B \(no network\); go online and `wandb login`"):
        best.find("entity/project/abc")
    with pytest.raises(NasPruneError, match="neither a folder nor a sweep"):
        best.find(str(tmp_path / "lost"))


@pytest.mark.sweep
def test_who_measures_measures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEASURING_LOCK, str(tmp_path / "lock"))
    script = "import time, torch, nas_prune as npr\n"
    script += "npr.measure(torch.nn.Linear(2, 2), torch.zeros(1, 2), seconds=0.01)\nprint(time.time())"
    with turn():
        with turn():  # what measures may measure inside
            other = subprocess.Popen(
                [sys.executable, "-c", script],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert other.stderr is not None
        waits = next(line for line in other.stderr if "waits" in line)  # of whatever libraries say as well
        released = time.time()
    ended, more = other.communicate(timeout=60)
    assert "waits for its turn" in waits
    assert float(ended) >= released
    assert "waits" not in more


@pytest.mark.sweep
def test_the_tutorial_survives_a_kill_and_its_best_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep.yaml").write_text(PAGE_FILE)
    sweep, out = read(str(tmp_path / "sweep.yaml")), tmp_path / "runs" / "sweep"
    start, fetch = commands("local")[0], commands("best")[0]
    words = [sys.executable, "-m", "nas_prune", *start]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    first = subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(list(out.glob("*/checkpoints"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    first.kill()
    first.wait()
    before = read_lines(out / "sweep.jsonl")
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in read_lines(out / "sweep.jsonl") if row["kind"] == "suggested"]
    known = [row for row in before if row["kind"] == "suggested"]
    assert len(known) >= 2
    assert known == rows[: len(known)]
    assert [row["values"] for row in rows] == suggest.first_runs(sweep, 9, seed=0)
    runs = read_json(out / "sweep.json")["runs"]
    assert [each["state"] for each in runs] == ["finished"] * 4
    for each in runs:
        recipe = read_recipe(out / each["run"] / "recipe.yaml")
        assert (recipe.gate.name, recipe.budget.target) == (
            each["values"]["gate.name"],
            each["values"]["budget.target"],
        )
    assert "[4/4]" in done.stdout
    assert "pareto.svg" in done.stdout
    assert (out / "pareto.svg").read_text().startswith("<svg")
    monkeypatch.chdir(tmp_path)
    assert nas_prune(*fetch).returncode == 0
    assert npr.load(tmp_path / "best") is not None
    told = describe(tmp_path / "best")["provenance"]["sweep"]
    assert told["run"] == read_json(out / "sweep.json")["best"]
    assert told["flags"] == [f"--{name}={value}" for name, value in nested(rows_values(rows, told["run"])).items()]


def rows_values(rows: list[dict[str, Any]], run: str) -> dict[str, Any]:
    """The values of a run in the journal."""
    found: dict[str, Any] = next(row["values"] for row in rows if row["run"] == run)
    return found
