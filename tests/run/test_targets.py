"""Laws of many targets from one search: its gates decide for all of them, and one duration of the dense model holds."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from recorded import recorded

from nas_prune.artifact.folder import load
from nas_prune.base.errors import BudgetError
from nas_prune.costs.timing import measure
from nas_prune.costs.timing.measure import Timings
from nas_prune.ops.stripes.conv import StripeConv
from nas_prune.run import pipeline
from nas_prune.run.recipe import recipe
from nas_prune.run.report.summary import milliseconds
from nas_prune.tracing.arch import Arch

TARGETS = ["0.95x", "0.55x"]

pytestmark = pytest.mark.usefixtures("recorded_timings")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("targets") / "run"
    with recorded():
        pipeline.run(recipe.read("smoke/digits_w_gates"), folder)
    return folder


@pytest.fixture(scope="module")
def many(run: Path) -> dict[str, Any]:
    """What is said of two targets, which change nothing of what the run decided."""
    before = (run / "arch.json").read_bytes()
    with recorded():
        content = pipeline.derive_many(run, TARGETS, tune=False)
    assert (run / "arch.json").read_bytes() == before
    return content


def test_all_milliseconds_of_a_run_are_shares_of_one_duration(run: Path, many: dict[str, Any]) -> None:
    found = json.loads((run / "results.json").read_text())
    dense = found["dense"]["measured_ms"]
    assert dense == json.loads((run / "timings.json").read_text())["dense"]["median_ms"]
    for name in ("derived", "finetuned"):
        assert found[name]["measured_ms"] == pytest.approx(found[name]["measured_share"] * dense, rel=1e-12)
    for name in ("dense", "derived"):
        assert sum(found["stages"][name].values()) == pytest.approx(found[name]["measured_ms"], rel=1e-9)
    assert found["target_ms"] == found["budget"]["limit"] == pytest.approx(0.9 * dense)
    assert found["budget"]["reached"] == found["finetuned"]["measured_ms"]
    assert all(each["target"] == pytest.approx(0.9 * dense) for each in found["rounds"])
    assert many["dense"]["measured_ms"] == dense
    assert [row["target_ms"] for row in many["targets"]] == pytest.approx([0.95 * dense, 0.55 * dense])
    for row in many["targets"]:
        assert row["measured_ms"] == pytest.approx(row["measured_share"] * dense)


def slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the machine takes half as long again."""
    known = measure.time_calls

    def timed(calls: Any, seconds: float) -> Timings:
        found = known(calls, seconds)
        return Timings({name: tuple(1.5 * each for each in found.times[name]) for name in found})

    monkeypatch.setattr(measure, "time_calls", timed)


def test_targets_follow_when_the_run_is_timed_again(
    run: Path, many: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "targets" / TARGETS[0])  # nothing of it is needed
    slower(monkeypatch)
    dense = pipeline.evaluate(folder, again=True)["dense"]["measured_ms"]
    found = json.loads((folder / "targets.json").read_text())
    assert dense == pytest.approx(1.5 * many["dense"]["measured_ms"]) == found["dense"]["measured_ms"]
    for before, now in zip(many["targets"], found["targets"], strict=True):
        for name in ("predicted_ms", "measured_ms", "measured_ms_spread", "target_ms"):
            assert now[name] == pytest.approx(1.5 * before[name])
        assert {**now["budget"], "limit": 0, "reached": 0} == {**before["budget"], "limit": 0, "reached": 0}
        for name in ("target", "macs", "params", "measured_share", "status", "top1", "folder"):
            assert now[name] == before[name]
    assert (folder / "pareto.svg").read_bytes() != (run / "pareto.svg").read_bytes()
    shown = (folder / "report.html").read_text()
    assert all(milliseconds(row["measured_ms"]) in shown for row in found["targets"])
    assert pipeline.evaluate(folder)["dense"]["measured_ms"] == dense


def test_targets_that_come_before_the_final_timing_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe.read("smoke/digits_w_gates")
    pipeline.run(asked, tmp_path, until="search")
    pipeline.derive_many(tmp_path, ["0.95x"], tune=False)
    slower(monkeypatch)
    dense = pipeline.run(asked, tmp_path)["dense"]["measured_ms"]
    found = json.loads((tmp_path / "targets.json").read_text())
    assert found["dense"]["measured_ms"] == dense
    assert found["targets"][0]["target_ms"] == pytest.approx(0.95 * dense)


def test_many_targets_from_one_search(run: Path, many: dict[str, Any]) -> None:
    rows = {row["target"]: row for row in many["targets"]}
    assert rows["0.55x"]["macs"] <= rows["0.95x"]["macs"]
    dense = sorted(row["measured_ms"] / row["measured_share"] for row in many["targets"])  # timed in turn with them
    assert dense[0] <= many["dense"]["measured_ms"] <= dense[1]
    for target in TARGETS:
        assert Arch.read(run / "targets" / target / "derived" / "arch.json").kept
    assert pipeline.derive_many(run, TARGETS, tune=False)["targets"] == many["targets"]
    with pytest.raises(BudgetError, match="cannot be met"):
        pipeline.derive_many(run, ["0.01x"], tune=False)


def test_of_one_training_there_are_smaller_targets_and_no_larger_ones(tmp_path: Path) -> None:
    changes = ["budget.cost=macs", "budget.target=0.6x", "dense.baseline=false"]
    pipeline.run(recipe.read("smoke/fashion_mnist_once_w_gates", changes), tmp_path / "run", until="search")
    with pytest.raises(BudgetError, match=r"the search went to 0\.6x, .* --budget\.target=0\.8x"):
        pipeline.derive_many(tmp_path / "run", ["0.5x", "0.8x"], tune=False)
    (row,) = pipeline.derive_many(tmp_path / "run", ["0.5x"], tune=False)["targets"]
    whole, small = (Arch.read(tmp_path / "run" / name / "arch.json").kept for name in (".", f"{row['folder']}/derived"))
    assert all(set(units) <= set(whole[name]) for name, units in small.items())
    assert json.loads((tmp_path / "run" / "targets.json").read_text())["dense"]["top1"] is None


@pytest.mark.zoo
def test_many_targets_of_stripes(tmp_path: Path) -> None:
    pipeline.run(recipe.read("smoke/fashion_mnist_resnet18_filter_skeleton"), tmp_path / "run", until="search")
    pipeline.derive_many(tmp_path / "run", ["0.9x"], tune=False)
    folder = tmp_path / "run" / "targets" / "0.9x"
    rows = json.loads((folder / "stripes.json").read_text())["convolutions"]
    striped = {
        path: module.config["form"]
        for path, module in load(folder / "derived").named_modules()
        if isinstance(module, StripeConv)
    }
    assert {row["module"]: row["form"] for row in rows} == striped
    assert striped


def test_what_was_compensated_for_at_one_target_is_not_derived_for_another(tmp_path: Path) -> None:
    changes = ["budget.cost=macs", "search.compensation=mean", "dense.baseline=false"]
    pipeline.run(recipe.read("smoke/fashion_mnist_resnet18_taylor", changes), tmp_path / "run", until="search")
    with pytest.raises(BudgetError, match=r"made up for what went at 0\.9x already .* --budget\.target=0\.5x"):
        pipeline.derive_many(tmp_path / "run", ["0.5x"], tune=False)
