"""Laws of a run that an agent starts: what W&B records is what runs, in a folder of its own, with an honest end."""

import json
from pathlib import Path

import pytest
import typer
import yaml

from nas_prune.base.errors import BudgetError, RecipeError
from nas_prune.base.files.whole import write_json
from nas_prune.cli import agent
from nas_prune.cli.asked import asked
from nas_prune.cli.show import MISSED, end
from nas_prune.run.recipe.recipe import flat, read
from nas_prune.train.record import track
from nas_prune.train.score import score

VALUES = {"search.lr": 0.02, "search.joint": 2, "gate": {"name": "sigmoid", "options": {"init": 2.0}}, "compile": False}


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of values that an agent has written for the run ``run1``."""
    path = tmp_path / "config-run1.yaml"
    rows = {key: {"value": value} for key, value in VALUES.items()}
    path.write_text(yaml.safe_dump({"wandb_version": 1, **rows}))
    for name, value in {"SWEEP_ID": "s", "RUN_ID": "run1", "SWEEP_PARAM_PATH": str(path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    return path


def test_every_form_of_the_words_is_one_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(VALUES))
    nested = {"search": {"lr": 0.02, "joint": 2}, "gate": VALUES["gate"], "compile": False}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(nested))
    recipe = asked(["smoke/digits_w_gates", *(f"--{key}={value}" for key, value in VALUES.items())])
    forms = [
        ["smoke/digits_w_gates", "--args-json", str(tmp_path / "a.json")],
        ["smoke/digits_w_gates", f"--args_json={tmp_path / 'a.json'}"],
        ["smoke/digits_w_gates", str(tmp_path / "a.json")],
        ["smoke/digits_w_gates", json.dumps(VALUES)],
        ["smoke/digits_w_gates", *(word for key, value in VALUES.items() for word in (f"--{key}", str(value)))],
        ["smoke/digits_w_gates", "--config", str(tmp_path / "a.yaml")],
        ["--recipe", "smoke/digits_w_gates", json.dumps(VALUES)],
        [json.dumps({**VALUES, "recipe": "smoke/digits_w_gates", "_wandb": {"x": 1}})],
    ]
    assert [asked(words) for words in forms] == [recipe] * len(forms)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smoke/digits_w_gates", "${args}"], r"'\$\{args\}' was left as it stands"),
        (["smoke/digits_w_gates", "pre-${args_json}"], "was left as it stands"),
        (["smoke/digits_w_gates", "--args-json"], "wants a value"),
        (["smoke/digits_w_gates", "--config=nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["smoke/digits_w_gates", "{not json"], "is not JSON"),
        (["smoke/digits_w_gates", "[1].json"], "there is no file"),
    ],
)
def test_what_cannot_be_read_is_told(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        asked(words)


def test_the_config_of_a_resumed_run_reads_back_to_itself() -> None:
    recipe = read("smoke/digits_w_gates")
    words = [f"--{key}={value}" for key, value in flat(recipe).items()]
    assert asked(["smoke/digits_w_gates", *words, "--_wandb={'desc': None}"]) == recipe


@pytest.mark.usefixtures("swept")
def test_the_values_of_the_agent_run_even_where_the_command_forgets_them() -> None:
    recipe = asked(["smoke/digits_w_gates"])
    assert (recipe.search.lr, recipe.search.joint, recipe.gate.name, recipe.compile) == (0.02, 2, "sigmoid", False)
    assert agent.chosen() == VALUES


@pytest.mark.usefixtures("swept")
def test_a_command_line_that_says_otherwise_does_not_run() -> None:
    for word in ("--search.lr=0.5", "--compile", "gate=weight"):
        with pytest.raises(RecipeError, match="W&B would record what did not run"):
            asked(["smoke/digits_w_gates", word])
    assert asked(["smoke/digits_w_gates", "--search.lr=0.02", "seed=3"]).seed == 3


@pytest.mark.usefixtures("swept")
def test_every_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert agent.default_folder("x/y") == Path("runs/x/y/run1")
    write_json(tmp_path / "wandb.json", {"id": "run1"})
    agent.check_folder(tmp_path)
    write_json(tmp_path / "wandb.json", {"id": "run0"})
    with pytest.raises(RecipeError, match="holds the W&B run run0, and this one is run1"):
        agent.check_folder(tmp_path)


def test_a_missed_target_is_a_result_to_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(typer.Exit) as left:
        end([{"status": "missed"}])
    assert left.value.exit_code == MISSED
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert end([{"status": "missed"}]) is None


def test_a_budget_that_a_run_cannot_meet_is_a_result_and_one_that_cannot_be_read_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(track, "tell_end", lambda _: None)
    found, mistaken = BudgetError("nothing is within"), RecipeError("budget.target 1.5x")
    with pytest.raises(BudgetError), agent.told():
        raise found
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    with agent.told():
        raise found
    assert capsys.readouterr().err == "infeasible: nothing is within\n"
    with pytest.raises(RecipeError), agent.told():
        raise mistaken


def test_readers_of_the_score_choose_the_same_run() -> None:
    """Run b keeps most after pruning; a has the better dense network, and c never meets the budget."""
    searches = {
        "a": [(95, 2.0), (60, 1.0), (70, 1.0)],
        "b": [(90, 1.8), (80, 1.0), (85, 1.0)],
        "c": [(99, 1.5), (99, 1.2)],
    }
    rows = {run: [score(top1, cost, 1.0) for top1, cost in found] for run, found in searches.items()}
    extremum = {run: max(found) for run, found in rows.items()}
    last = {run: found[-1] for run, found in rows.items()}
    band = {run: max(found[:2]) for run, found in rows.items()}
    for figures in (extremum, last, band):
        assert max(figures, key=lambda run: figures[run]) == "b"
    assert score(0.0, 1.0, 1.0) > score(100.0, 2.01, 1.0)


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["budget.share=0.3"], "0.3x"),
        (["budget={'share': 0.25}"], "0.25x"),
        (["budget.share=0.3", "budget.target=0.6x"], "0.6x"),
        (["budget.target=0.6x", "budget.share=0.3"], "0.3x"),
    ],
)
def test_a_share_is_a_target_that_a_sweep_can_draw(words: list[str], target: str) -> None:
    recipe = asked(["smoke/digits_w_gates", *words])
    assert (recipe.budget.target, recipe.budget.share) == (target, None)
    with pytest.raises(RecipeError, match=r"budget\.share"):
        asked(["smoke/digits_w_gates", "budget.share=1.5"])
