"""Laws of the record of a run: every row once, in the journal and in W&B, and W&B can fail without ending the run."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from sent import sent_records, sent_rows

from nas_prune.base.files.whole import read_lines
from nas_prune.train.record.track import Track, open_track
from nas_prune.train.settings import TrackSettings

OFFLINE = TrackSettings(wandb="offline")


@pytest.fixture(autouse=True)
def _quiet_and_logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the shell's W&B settings nor its login reach a test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_X_DISABLE_STATS": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


def opened(folder: Path, settings: TrackSettings = OFFLINE) -> Track:
    """The record of a run in ``folder``."""
    config = {"model.name": "resnet18", "model.kwargs": {}, "seed": 0, "search.penalties": [{"name": "budget"}]}
    return open_track(folder, settings, config=config, name="digits")


def journal(folder: Path) -> list[tuple[object, ...]]:
    """Stage, epoch and loss of each row."""
    return [(row["stage"], row["epoch"], row["train/loss"]) for row in read_lines(folder / "metrics.jsonl")]


def test_a_row_is_in_the_journal_and_in_wandb_and_nan_in_neither(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as track:
        track.log({"train/loss": 0.5, "note": "a"}, stage="dense", epoch=1)
        track.log({"train/loss": math.nan, "eval/top1": 97.0}, stage="dense", epoch=2)
        track.log({"train/loss": 0.25}, stage="search", epoch=0.5)
    assert [
        r.message for r in caplog.records if r.name == "nas_prune.train.record.track"
    ] == []  # what W&B failed at, if it did
    assert journal(tmp_path) == [("dense", 1, 0.5), ("dense", 2, None), ("search", 0.5, 0.25)]
    rows = sent_rows(tmp_path)
    assert [(row["stage"], row["epoch"], row.get("train/loss")) for row in rows] == [
        ("dense", 1, 0.5),
        ("dense", 2, None),
        ("search", 2.5, 0.25),
    ]
    assert "train/loss" not in rows[1]


def test_wandb_gets_the_recipe_under_dotted_names_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as track:
        track.summary({"final/top1": 97.5, "final/latency_ms": math.inf})
    updates = [item for record in sent_records(tmp_path) for item in record.run.config.update]
    assert {item.key: json.loads(item.value_json) for item in updates if item.key != "_wandb"} == {
        "model.name": "resnet18",
        "model.kwargs": {},
        "seed": 0,
        "search.penalties": [{"name": "budget"}],
    }
    summary = {item.key or item.nested_key[0] for r in sent_records(tmp_path) for item in r.summary.update}
    assert "final/top1" in summary
    assert "final/latency_ms" not in summary


def test_a_killed_and_resumed_run_has_every_row_once(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rows = [("dense", 1), ("dense", 2), ("search", 1), ("search", 2), ("search", 3)]

    def work(track: Track, todo: list[tuple[str, int]]) -> None:
        for stage, epoch in todo:
            track.log({"train/loss": 1 / epoch}, stage=stage, epoch=epoch)

    with opened(whole) as track:
        work(track, rows)
    with opened(killed) as track:
        work(track, rows[:4])  # the checkpoint was taken before the fourth row
    with opened(killed) as track:
        track.rewind("search", 1)
        assert journal(killed) == journal(whole)[:3]
        work(track, rows[3:])
    assert journal(killed) == journal(whole)
    times = [row["time"] for row in read_lines(killed / "metrics.jsonl")]
    assert times == sorted(times)
    assert [row["epoch"] for row in sent_rows(killed)] == [row["epoch"] for row in sent_rows(whole)] == [1, 2, 3, 4, 5]
    assert len({record.run.run_id for record in sent_records(killed) if record.HasField("run")}) == 1


def test_a_stage_that_is_repeated_when_later_ones_are_done_keeps_its_place(tmp_path: Path) -> None:
    rows = [("dense", 1), ("dense", 2), ("search", 1), ("finetune", 1)]
    with opened(tmp_path) as track:
        for stage, epoch in rows:
            track.log({"train/loss": 1 / epoch}, stage=stage, epoch=epoch)
    whole = journal(tmp_path)
    for stops_after in (1, 2):  # its checkpoint was deleted; it is stopped once on the way
        with opened(tmp_path) as track:
            track.rewind("dense", 0 if stops_after == 1 else 1)
            track.log({"train/loss": 1 / stops_after}, stage="dense", epoch=stops_after)
            track.rewind("search", 1)
            track.rewind("finetune", 1)
    assert journal(tmp_path) == whole


def test_in_a_sweep_the_agent_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    (tmp_path / "wandb.json").write_text('{"id": "of-an-earlier-run"}')
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setattr(wandb, "init", lambda **arguments: asked.append(arguments) or pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception):
        opened(tmp_path)
    assert (asked[0]["id"], asked[0]["resume"], asked[0]["mode"]) == (None, "allow", "offline")


def test_auto_is_online_only_when_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: modes.append(arguments["mode"]) or pytest.fail("stop here"))

    def attempt() -> object:
        with pytest.raises(pytest.fail.Exception):
            opened(tmp_path, TrackSettings())
        return modes.pop()

    assert attempt() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert attempt() is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert opened(tmp_path, TrackSettings()).client is None


def test_a_failing_wandb_is_reported_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(**_arguments: object) -> None:
        raise wandb.errors.CommError("no server")

    monkeypatch.setattr(wandb, "init", unreachable)
    with caplog.at_level(logging.WARNING), opened(tmp_path) as track:
        track.log({"train/loss": 0.5}, stage="dense", epoch=1)
        track.summary({"final/top1": 97.5})
    assert journal(tmp_path) == [("dense", 1, 0.5)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no server" in caplog.text
    assert "track.wandb=disabled" in caplog.text


def test_disabled_does_not_import_the_client(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nas_prune.train.settings import TrackSettings\n"
        "from nas_prune.train.record.track import open_track\n"
        f"with open_track(Path({str(tmp_path)!r}), TrackSettings(wandb='disabled'), config={{}}, name='n') as track:\n"
        "    track.log({'train/loss': 1.0}, stage='dense', epoch=1)\n"
        "assert 'wandb' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert journal(tmp_path) == [("dense", 1, 1.0)]
