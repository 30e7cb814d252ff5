"""Laws of what W&B gets of a run at its end: its pages, its models and what they were made from, all of it optional."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from recorded import recorded
from sent import sent_records

from nas_prune.base.errors import RecipeError
from nas_prune.base.files.whole import read_json
from nas_prune.run import pipeline
from nas_prune.run.publish import publish, publish_chart
from nas_prune.run.recipe import recipe
from nas_prune.train.record.track import Track

INPUTS = ["smoke-digits_w_gates-calibration", "smoke-digits_w_gates-dense"]
OUTPUTS = ["smoke-digits_w_gates-derived", "smoke-digits_w_gates-finetuned"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that an offline W&B has followed."""
    folder = tmp_path_factory.mktemp("published") / "run"
    with recorded(), pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_SILENT", "true")
        pipeline.run(recipe.read("smoke/digits_w_gates", ["track.wandb=offline"]), folder)
        yield folder


class Online:
    """A W&B run that has a server, and remembers what it was given."""

    offline = False

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.logged: dict[str, Any] = {}
        self.used: list[str] = []
        self.made: dict[str, list[str]] = {}

    def log(self, row: dict[str, Any]) -> None:
        self.logged.update(row)

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        self.used.append(artifact.name)

    def log_artifact(self, artifact: wandb.Artifact, aliases: list[str]) -> None:
        self.made[artifact.name] = aliases

    def finish(self, exit_code: int) -> None:
        pass


def job(folder: Path) -> Any:
    """The job of a run that is over."""
    with pipeline.opened(recipe.read(str(folder / "recipe.yaml"), ["track.wandb=disabled"]), folder) as found:
        return found


def test_offline_the_client_holds_pages_and_artifacts_for_a_later_sync(finished: Path) -> None:
    records = sent_records(finished)
    artifacts = {record.artifact.name: record.artifact for record in records if record.HasField("artifact")}
    assert {*INPUTS, *OUTPUTS} <= artifacts.keys()
    assert set(artifacts[OUTPUTS[1]].aliases) == {"latest", read_json(finished / "results.json")["status"]}
    weights = artifacts[INPUTS[1]].manifest.contents[0]
    assert weights.ref == (finished / "checkpoints" / "dense.ckpt").as_uri()
    assert not weights.local_path
    pages = [path.name for path in finished.glob("wandb/offline-run-*/files/media/*/*")]
    assert sorted(name.split("_")[0] for name in pages) == ["axes", "report"]


def test_where_progress_is_recorded_may_change_when_a_run_goes_on(finished: Path) -> None:
    asked = recipe.read(str(finished / "recipe.yaml"), ["track.wandb=disabled"])
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert pipeline.run(asked, finished) == read_json(finished / "results.json")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    with pytest.raises(RecipeError, match=r"another recipe \(finetune.lr"):
        pipeline.run(recipe.read(str(finished / "recipe.yaml"), ["finetune.lr=0.5"]), finished)


def test_online_models_have_what_they_were_made_from_as_inputs(finished: Path) -> None:
    client, results = Online(), read_json(finished / "results.json")
    publish(job(finished), Track(finished, client), results)
    assert client.used == INPUTS
    assert client.made == {OUTPUTS[0]: ["latest", "derived"], OUTPUTS[1]: ["latest", results["status"]]}
    assert client.summary["final/top1"] == results["finetuned"]["top1"]
    arch, axes = read_json(finished / "arch.json"), read_json(finished / "axes.json")["axes"]
    sizes = {axis["name"]: axis["size"] for axis in axes}
    for name, _, units, kept, share in client.logged["axes"].data:
        assert (units, kept) == (sizes[name], len(arch["kept"].get(name, range(units))))
        assert share == kept / units


def test_where_wandb_fails_the_run_has_its_folder_all_the_same(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = SimpleNamespace(summary={}, log=lambda _: 1 / 0, offline=False)
    track = Track(tmp_path, failing)
    publish(job(finished), track, read_json(finished / "results.json"))
    assert track.client is None
    assert caplog.text.count("W&B failed to take the pages (ZeroDivisionError") == 1
    publish_chart(track, tmp_path / "no chart")


def test_the_chart_of_several_targets_is_shown(tmp_path: Path) -> None:
    client = Online()
    (tmp_path / "pareto.svg").write_text("<svg/>")
    publish_chart(Track(tmp_path, client), tmp_path / "pareto.svg")
    assert client.logged["pareto"].html == "<svg/>"
