"""Laws of the program: it answers at once, names every mistake, and tells its parent process how it ended."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nas_prune.cli import program as cli
from nas_prune.cli.list import listing, listings
from nas_prune.run.recipe.recipe import json_schema, recipe_keys

ROOT = Path(__file__).resolve().parents[2]
OF_A_RUN = (["report", "docs"], ["derive", "docs"], ["finetune", "docs"], ["derive", "docs", "--targets", "0.5x"])
OF_A_RUN += (["doctor", "docs", "--bottlenecks"],)
COMMANDS = ("run", "search", "derive", "finetune", "evaluate", "calibrate", "report", "list", "schema")
COMMANDS += ("doctor", "export", "timm", "coverage", "sweep")


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def nas_prune(*words: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "nas_prune", *words)


@dataclass(frozen=True)
class Ended:
    """How the program ended: its exit code, and what it has said."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The program in this process, which has imported torch already."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def ended(*words: str) -> Ended:
        with pytest.raises(SystemExit) as exit_:
            cli.main(words)
        return Ended(int(exit_.value.code or 0), *capsys.readouterr())

    return ended


def test_help_names_every_command() -> None:
    done = nas_prune("--help")
    assert done.returncode == 0
    assert [command for command in COMMANDS if command not in done.stdout] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(here: Callable[..., Ended], command: str) -> None:
    done = here(command, "--help")
    assert done.returncode == 0
    assert "Usage: nas-prune" in done.stdout


def test_help_of_run_shows_every_key_with_its_description() -> None:
    shown = nas_prune("run", "--help").stdout
    assert [key.name for key in recipe_keys() if key.name not in shown or key.description not in shown] == []
    assert "nas-prune run quickstart" in shown


def test_help_and_recipes_need_no_torch() -> None:
    done = python(
        "-c", "import sys, nas_prune.cli.program, nas_prune.run.recipe.recipe; sys.exit('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["ruun"], ["Did you mean 'run'"]),
        (["run"], ["RECIPE"]),
        (["run", "--search.joint=1"], ["name a recipe", "quickstart"]),
        (["run", "quikstart"], ["error: unknown recipe 'quikstart'; did you mean 'quickstart'?"]),
        (["run", "quickstart", "--oot", "x"], ["unknown option '--oot'; did you mean '--out'?"]),
        (["run", "quickstart", "fast"], ["cannot read 'fast'"]),
        (["run", "quickstart", "--search.jont=1"], ["unknown key 'search.jont'; did you mean 'joint'?"]),
        (["search", "--search.joint", "many", "quickstart"], ["--search.joint=many", "integer", "'many'"]),
        (["calibrate", "--out", "x", "lost.yaml"], ["no recipe file lost.yaml"]),
        (["derive", "no/such/run"], ["no/such/run", "does not exist"]),
        (["report", "--loud", "."], ["No such option", "--loud"]),
        *((words, ["no run in docs (no recipe.yaml)"]) for words in OF_A_RUN),
        (["evaluate", "docs"], ["no artefact in docs (no config.json); nor is a run there"]),
        (["sweep", "best", "docs", "--out", "x"], ["docs is no sweep folder", "no sweep.jsonl", "sweep local"]),
        (["list", "gate"], ["did you mean 'gates'?"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    before = sorted(ROOT.rglob("docs/*"))
    monkeypatch.chdir(ROOT)
    done = here(*words)
    assert done.returncode == 2
    assert sorted(ROOT.rglob("docs/*")) == before
    assert [part for part in parts if part not in done.stderr] == [], done.stderr
    assert "Traceback" not in done.stderr


def test_options_are_understood_in_any_position() -> None:
    done = nas_prune("run", "--search.jont", "1", "--out", "x", "quickstart", "--no-resume", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "\nerror: override --search.jont: unknown key 'search.jont'; did you mean 'joint'?" in done.stderr


def test_a_missing_dataset_is_named(here: Callable[..., Ended], tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    done = here(
        "run", "smoke/digits_w_gates", "--data.name=folder", f"--data.root={lost}", "--out", str(tmp_path / "run")
    )
    assert done.returncode == 2
    assert f"data.root {lost} is no folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("recipes", ["quickstart", "smoke/quickstart"]),
        ("datasets", ["digits", "folder"]),
        ("models", ["resnet18"]),
        ("operations", ["separable_convolution", "max_pool"]),
    ],
)
def test_list_shows_what_a_recipe_can_name(here: Callable[..., Ended], kind: str, names: list[str]) -> None:
    done = here("list", kind, *(["resnet1*"] if kind == "models" else []))
    assert done.returncode == 0, done.stderr
    assert [name for name in names if name not in done.stdout.split()] == []


@pytest.mark.parametrize("kind", [kind for kind in listings() if kind != "models"])
def test_no_two_names_of_a_kind_have_the_same_line(kind: str) -> None:
    lines = [line for _, line in listing(kind)]
    assert all(lines)
    assert len(set(lines)) == len(lines)


def test_the_line_of_a_part_that_shares_its_file_is_about_itself() -> None:
    papers = {"sfp": "1808.06866", "asfp": "1808.07471", "srfp": "2010.09498", "asrfp": "2010.09498"}
    papers |= {"hfp": "2011.03170", "ghfp": "2011.03170"}
    schedules, costs = dict(listing("schedules")), dict(listing("costs"))
    assert {name: re.findall(r"\d{4}\.\d{5}", schedules[name]) for name in papers} == {
        name: [paper] for name, paper in papers.items()
    }
    assert all(costs[name].lower().startswith(f"{name}:") for name in ("params", "macs", "latency"))
    assert "latency.predictor" in costs["latency"]
    assert "Options" not in " ".join(costs.values())


def test_help_of_list_names_every_kind(here: Callable[..., Ended]) -> None:
    shown = here("list", "--help").stdout.split("Kinds: ")[1]
    assert shown.replace("\n", " ").strip().split(", ") == list(listings())


def test_a_message_counts_no_names_that_its_command_does_not_list(here: Callable[..., Ended]) -> None:
    said = here("doctor", "resnet19").stderr
    assert "`nas-prune list models` and `nas-prune list recipes` list all" in said
    assert not re.search(r"\d{4}", said)


def test_schema_is_printed() -> None:
    assert json.loads(nas_prune("schema").stdout) == json_schema()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_stopped_run_ends_as_its_parent_expects(number: int, code: int) -> None:
    told = f"cli._told(InterruptedRunError('stopped at step 3', {int(number)}))"
    done = python(
        "-c",
        f"import sys; from nas_prune.cli import program as cli; from nas_prune.base.errors import *; sys.exit({told})",
    )
    assert done.returncode == code
    assert done.stderr == "error: stopped at step 3\n"


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["budget.target=0.001x"], 2, "smallest network"),
        (["budget.cost=macs", "dense.lr=1e30"], 1, "learning rate"),
    ],
)
def test_a_run_that_cannot_be_says_so_in_one_message(
    here: Callable[..., Ended], overrides: list[str], code: int, message: str, tmp_path: Path
) -> None:
    result = here(
        "run",
        "smoke/digits_w_gates",
        "latency.batch_size=2",
        "latency.seconds=0.01",
        *overrides,
        "--out",
        str(tmp_path / "run"),
    )
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "derived").exists()
