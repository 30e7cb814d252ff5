"""The whole job: every smoke recipe runs, derives and reloads; killed runs end in the same bytes; bad input is told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recorded import MEASURED, recorded
from zoo import few

from nas_prune.artifact import folder as artifact
from nas_prune.base.errors import BudgetError, CheckpointError, DivergedError, NasPruneError, RecipeError
from nas_prune.base.files.whole import read_json, write_json
from nas_prune.costs import count
from nas_prune.costs.predictors.additive import AdditivePredictor
from nas_prune.costs.timing import measure
from nas_prune.run import build, pipeline
from nas_prune.run import results as results_of
from nas_prune.run.publish import final
from nas_prune.run.recipe import recipe
from nas_prune.train.data import loaders as data
from nas_prune.train.record import checkpoint

ROOT = Path(__file__).resolve().parents[2]
SMOKE = sorted(name for name in recipe.recipes() if name.startswith("smoke/"))


# gates that learn from weights; the other methods with -m zoo
FIRST = ("smoke/fashion_mnist_resnet18_w_gates",)
FRESH = "--latency.cache=false"
FIGURES = {"top1", "macs", "params", "predicted_ms", "measured_ms", "measured_ms_spread"}


pytestmark = pytest.mark.usefixtures("recorded_timings")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with recorded():
        pipeline.run(recipe.read("smoke/digits_w_gates"), folder)
    return folder


@pytest.mark.parametrize("name", few(SMOKE, FIRST))
def test_a_smoke_recipe_runs_to_the_end_and_its_artefact_reloads(name, tmp_path):
    asked = recipe.read(name)
    results = pipeline.run(asked, tmp_path / "run")
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["max_abs_error"] <= 1e-9
    assert all(set(results[column]) >= FIGURES for column in ("dense", "derived", "finetuned"))
    images = build.example(asked, data.load(asked.data, seed=0), batch=1)
    model = artifact.load(tmp_path / "run" / "finetuned")
    counted = count(model, images)
    assert (counted.macs, counted.params) == (results["finetuned"]["macs"], results["finetuned"]["params"])
    assert counted.macs < results["dense"]["macs"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_a_finished_run_is_not_repeated(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    results = pipeline.run(recipe.read("smoke/digits_w_gates"), finished)
    assert results == json.loads((finished / "results.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_models_of_a_run_are_timed_again_when_that_is_asked(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    timings = read_json(folder / "timings.json")
    timings["derived"]["spread_ms"] = timings["derived"]["median_ms"]
    write_json(folder / "timings.json", timings)
    (folder / "results.json").unlink()
    disturbed = pipeline.run(recipe.read("smoke/digits_w_gates"), folder)
    assert "`nas-prune evaluate RUN --again`" in disturbed["cautions"][-1]
    assert final(disturbed)["disturbed"]
    assert "on a disturbed machine" in (folder / "report.html").read_text()
    again = pipeline.evaluate(folder, again=True)
    assert again == read_json(folder / "results.json")
    assert not final(again)["disturbed"]
    assert "disturbed" not in (folder / "report.html").read_text()
    for path in finished.glob("finetuned/*"):
        assert (folder / path.relative_to(finished)).read_bytes() == path.read_bytes()


def contents(folder):
    """What is in the files of a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unmeasurable(*_, **__):
    raise NasPruneError("it cannot be measured here")


@pytest.mark.parametrize("what", ["data", "refuse_conditions", "time_calls", "stage_times", "file"])
def test_where_it_cannot_be_timed_again_nothing_is_lost(what, finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = contents(folder)
    where = {"data": (data, "load"), "refuse_conditions": (pipeline, what), "time_calls": (measure, what)}
    where |= {"stage_times": (results_of, what), "file": (results_of, "release")}
    with monkeypatch.context() as patch:
        patch.setattr(*where[what], unmeasurable)
        with pytest.raises(NasPruneError, match="cannot be measured here"):
            pipeline.evaluate(folder, again=True)
    seconds = {Path("seconds.json"): (folder / "seconds.json").read_bytes()}  # an attempt takes some
    assert contents(folder) == before | seconds
    assert pipeline.evaluate(folder) == json.loads((finished / "results.json").read_text())


def test_a_run_that_is_killed_between_two_new_timings_tells_of_those(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with monkeypatch.context() as patch:
        patch.setattr(results_of, "_rows", unmeasurable)
        with pytest.raises(NasPruneError, match="cannot be measured here"):
            pipeline.evaluate(folder, again=True)
    assert not (folder / "results.json").exists()
    timings = read_json(folder / "timings.json")
    assert (
        pipeline.run(recipe.read("smoke/digits_w_gates"), folder)["dense"]["measured_ms"]
        == timings["dense"]["median_ms"]
    )


@pytest.mark.zoo
def test_a_model_that_skips_is_timed_again_with_the_others(tmp_path):
    pipeline.run(recipe.read("smoke/fashion_mnist_resnet18_manidp"), tmp_path / "run")
    before = read_json(tmp_path / "run" / "dynamic.json")
    write_json(tmp_path / "run" / "dynamic.json", before | {"ms": dict.fromkeys(before["ms"], 123.0)})
    pipeline.evaluate(tmp_path / "run", again=True)
    assert read_json(tmp_path / "run" / "dynamic.json") == before


def test_the_readme_names_everything_that_a_run_leaves(finished):
    told = (ROOT / "README.md").read_text().split("A run folder holds")[1].split("Exit codes")[0]
    hidden = {"wandb", "wandb.json"}  # W&B's own
    assert [path.name for path in finished.iterdir() if path.name not in hidden and path.name not in told] == []


@pytest.mark.parametrize("lost", ["derived", "derived/model.safetensors", "finetuned/config.json"])
def test_an_artefact_that_was_deleted_or_changed_is_made_again(finished, lost, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (shutil.rmtree if lost == "derived" else Path.unlink)(folder / lost)
    pipeline.run(recipe.read("smoke/digits_w_gates"), folder)
    for path in (*finished.glob("derived/*"), *finished.glob("finetuned/*")):
        assert (folder / path.relative_to(finished)).read_bytes() == path.read_bytes(), path.name
    assert ("is made again" in capfd.readouterr().err) == (lost == "derived/model.safetensors")


@pytest.mark.crash
def test_a_run_that_is_killed_twice_ends_in_the_same_bytes(finished, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for given in ("calibration", "rounds.jsonl", "timings.json", "stages.json", "recipe.yaml"):  # timings are inputs
        source = finished / given
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / given)
    stopped = [_killed(folder, "search-joint", signal.SIGTERM), _killed(folder, "baseline", signal.SIGKILL)]
    assert all(code != 0 for code in stopped)
    pipeline.run(recipe.read("smoke/digits_w_gates"), folder)
    for product in ("arch.json", "derived/model.safetensors", "finetuned/model.safetensors"):
        assert (folder / product).read_bytes() == (finished / product).read_bytes(), product


def _killed(folder: Path, stage: str, number: signal.Signals) -> int:
    """Exit status of a run that gets a signal as soon as it has written something in a stage."""
    command = [sys.executable, "-m", "nas_prune", "run", "smoke/digits_w_gates", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        journal = folder / "metrics.jsonl"
        while process.poll() is None and (not journal.exists() or f'"{stage}"' not in journal.read_text()):
            time.sleep(0.005)
        process.send_signal(number)
        return process.wait(60)


def test_a_stage_that_is_stopped_between_two_steps_goes_on_there(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for product in ("checkpoints/finetune.ckpt", "checkpoints/baseline.ckpt"):
        (folder / product).unlink()
    shutil.rmtree(folder / "finetuned")
    from nas_prune.train import loop as train

    class Impatient:
        """A stop request that comes in the first step of the second epoch."""

        looks = 0

        @property
        def requested(self):
            Impatient.looks += 1
            return signal.SIGTERM if Impatient.looks >= 4 else None

    import contextlib

    with monkeypatch.context() as patch:
        patch.setattr(train, "stop_signals", lambda: contextlib.nullcontext(Impatient()))
        with pytest.raises(train.InterruptedRunError):
            pipeline.run(recipe.read("smoke/digits_w_gates"), folder)
    state = checkpoint.load(folder / "checkpoints" / "baseline.ckpt")
    assert (state["epoch"], state["step"]) == (1, 1)
    pipeline.run(recipe.read("smoke/digits_w_gates"), folder)
    product = "finetuned/model.safetensors"
    assert (folder / product).read_bytes() == (finished / product).read_bytes()


def test_an_unreachable_budget_is_refused_before_training(tmp_path):
    with pytest.raises(BudgetError, match="smallest network"):
        pipeline.run(
            recipe.read("smoke/digits_w_gates", ["--budget.target=0.001x", "--latency.cache=false"]), tmp_path / "run"
        )
    assert not (tmp_path / "run" / "checkpoints").exists()
    timings, taken = (tmp_path / "run" / "calibration" / "timings.jsonl").read_bytes(), len(MEASURED)
    pipeline.run(
        recipe.read("smoke/digits_w_gates", ["--budget.target=0.95x", FRESH]),
        tmp_path / "run",
        until="calibrate",
    )
    assert (tmp_path / "run" / "calibration" / "timings.jsonl").read_bytes() == timings
    assert len(MEASURED) == taken


def test_a_further_limit_in_milliseconds_is_met_as_measured(tmp_path, monkeypatch):
    """The predictor is told to be too fast by half; the network is within the limit all the same."""
    tokens = ["--budget.cost=macs", "--budget.target=0.95x", "--budget.limits={latency: 0.9x}"]
    predict = AdditivePredictor.predict
    monkeypatch.setattr(AdditivePredictor, "predict", lambda self, shares: predict(self, shares) ** 2 / self.dense_ms)
    tokens += ["--latency.predictor=additive", FRESH]
    found = pipeline.run(recipe.read("smoke/digits_w_gates", tokens), tmp_path / "run")
    (limit,) = found["limits"]
    assert found["status"] == limit["status"] == "met"
    assert 0.8 * limit["limit"] < limit["reached"] <= limit["limit"]


def test_every_limit_is_judged_in_the_end(tmp_path, monkeypatch):
    counted = results_of.promised
    asked = recipe.read("smoke/digits_w_gates", ["--budget.limits={params: 0.9x, macs: 0.9x}", "--budget.target=0.8x"])
    met = pipeline.run(asked, tmp_path / "run")
    assert [(each["cost"], each["status"]) for each in met["limits"]] == [("params", "met"), ("macs", "met")]
    assert [each["reached"] for each in met["limits"]] == [met["derived"]["params"], met["derived"]["macs"]]
    assert met["status"] == "met"
    monkeypatch.setattr(
        results_of,
        "promised",
        lambda budget, cost, *of: counted(budget, 2 * cost if budget.cost.unit == "MACs" else cost, *of),
    )
    missed = pipeline.evaluate(tmp_path / "run", again=True)
    assert [each["status"] for each in missed["limits"]] == ["met", "missed"]
    assert missed["status"] == "missed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=resnet1", "did you mean"),
        ("model.kwargs={dpeth: 3}", "model.kwargs"),
        ("gate.name=weigth", "did you mean 'weight'"),
        ("gate.options={inti: 1}", "inti"),
        ("search.optimizer=sdg", "did you mean 'sgd'"),
        ("search.selector=rankd", "did you mean 'ranked'"),
        ("search.penalties.0.options.alfa=1", "alfa"),
        ("space=chanels", "did you mean 'channels'"),
        ("budget.target=fast", "0.5x"),
    ],
)
def test_a_wrong_name_or_option_is_told_before_anything_is_trained(override, message, tmp_path):
    with pytest.raises(NasPruneError, match=message) as told:
        pipeline.run(recipe.read("smoke/digits_w_gates", [override]), tmp_path / "run", until="calibrate")
    assert told.value.exit_code == 2
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    with pytest.raises(DivergedError, match="dense"):
        pipeline.run(recipe.read("smoke/digits_w_gates", ["dense.lr=1e30"]), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "dense.ckpt").exists()


def test_a_truncated_checkpoint_is_told_and_left(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "results.json").unlink()
    path = folder / "checkpoints" / "dense.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"dense\.ckpt"):
        pipeline.run(recipe.read("smoke/digits_w_gates"), folder)
    assert path.stat().st_size == 1000


def test_a_checkpoint_of_another_recipe_is_not_believed(finished, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(finished / "checkpoints" / "dense.ckpt", folder / "checkpoints")
    shutil.copytree(finished / "calibration", folder / "calibration")
    with pytest.raises(CheckpointError, match="another recipe"):
        pipeline.run(recipe.read("smoke/digits_w_gates", ["dense.lr=0.02"]), folder)


def test_a_folder_of_another_recipe_is_not_touched(finished):
    before = (finished / "recipe.yaml").read_bytes()
    with pytest.raises(RecipeError, match="seed"):
        pipeline.run(recipe.read("smoke/digits_w_gates", ["seed=1"]), finished)
    with pytest.raises(RecipeError, match="--force"):
        pipeline.run(recipe.read("smoke/digits_w_gates"), finished, resume=False)
    assert (finished / "recipe.yaml").read_bytes() == before


def test_the_gated_the_derived_and_the_reloaded_model_agree(finished):
    asked = recipe.read("smoke/digits_w_gates")
    images = build.example(asked, data.load(asked.data, seed=0), batch=4)
    derived = artifact.load(finished / "derived")
    with torch.no_grad():
        assert torch.equal(derived(images), artifact.load(finished / "derived")(images))
    results = json.loads((finished / "results.json").read_text())
    assert results["gated"]["top1"] == results["derived"]["top1"]
