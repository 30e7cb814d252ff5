"""Several processes: one decides and writes, all train one model, and a stop stops them together."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from processes import free_port, joined
from recorded import recorded
from sent import exit_codes, sent_summary
from torch import nn

from nas_prune.artifact import folder as artifact
from nas_prune.base.errors import DivergedError
from nas_prune.base.files.whole import read_lines
from nas_prune.cli import program as cli
from nas_prune.run.recipe import recipe
from nas_prune.train import loop
from nas_prune.train.data import loaders as data
from nas_prune.train.evaluate import top1
from nas_prune.train.finetune import recalibrate
from nas_prune.train.loop import Run

# No timing changes what is decided.
WORDS = ["run", "smoke/digits_w_gates", "--budget.cost=macs", "--budget.target=0.6x"]
LONGER = ["--search.joint=6", "--search.max_steps=25", "--latency.batch_size=2", "--latency.seconds=0.001"]


def program(processes: int) -> list[str]:
    """What starts nas-prune in so many processes; for one, without any launcher."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [sys.executable, "-m", *(launcher if processes > 1 else []), "nas_prune"]


def images() -> data.Data:
    """The data of the run."""
    asked = recipe.read("smoke/digits_w_gates", [])
    return data.load(asked.data, seed=asked.seed)


def _together(rank: int, port: int, folder: str) -> None:
    """As one of two processes: a run, and BatchNorm statistics of two batches."""
    accelerator = joined(rank, 2, port=port)
    norm, known = nn.BatchNorm2d(3), images()
    recalibrate(norm, known, Run(accelerator), batches=2)
    torch.save(norm.running_mean, f"{folder}/{rank}.pt")
    with recorded(), Path(folder, f"{rank}.log").open("w") as said, contextlib.redirect_stdout(said):
        cli.main([*WORDS, "--out", f"{folder}/run"])


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have made."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_together, (free_port(), str(folder)), nprocs=2)
    return folder


@pytest.mark.zoo
def test_one_process_writes_what_all_have_trained(together: Path) -> None:
    run = together / "run"
    assert sum((together / f"{rank}.log").read_text().count("run folder:") for rank in range(2)) == 1
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set(Counter((row["stage"], row["epoch"]) for row in rows).values()) == {1}
    results = json.loads((run / "results.json").read_text())
    for name in ("derived", "finetuned"):
        assert top1(artifact.load(run / name), images(), Accelerator(cpu=True)) == results[name]["top1"]


@pytest.mark.zoo
def test_statistics_are_of_the_images_of_all_processes(together: Path) -> None:
    first, second = (torch.load(together / f"{rank}.pt") for rank in (0, 1))
    batches = torch.cat([batch for batch, _ in data.FirstBatches(images(), 4, torch.device("cpu"))])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, batches.mean((0, 2, 3)))


def _to_the_end(rank: int, port: int, folder: str, case: str) -> None:
    """As one of two processes of a sweep: a run that nothing meets, or in which one process alone meets an error."""
    joined(rank, 2, port=port)
    os.environ |= {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "run1", "WANDB_SILENT": "true"}
    words = [*WORDS, "--track.wandb=offline", "--out", f"{folder}/run"]
    words += ["--budget.target=0.001x"] if case == "infeasible" else []
    if case == "alone" and rank == 1:
        loop._look = _diverged  # in a process of its own
    with recorded(), pytest.raises(SystemExit) as left:
        cli.main(words)
    Path(folder, f"{rank}.code").write_text(str(left.value.code or 0))


def _diverged(*_: object) -> str:
    raise DivergedError("the loss is nan")


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("case", "code", "told"),
    [
        ("alone", 1, "process 1 of this run has ended, and this one cannot go on alone: the loss is nan"),
        ("infeasible", 0, "the budget of 4.10 k MACs cannot be met"),
    ],
)
def test_what_ends_one_process_ends_all_and_wandb_is_told_once(case: str, code: int, told: str, tmp_path: Path) -> None:
    mp.spawn(_to_the_end, (free_port(), str(tmp_path), case), nprocs=2)
    assert [(tmp_path / f"{rank}.code").read_text() for rank in range(2)] == [str(code)] * 2
    summary = sent_summary(tmp_path / "run")
    assert summary["status"] == ("failed" if code else "infeasible")
    assert summary["error"].startswith(told)
    assert exit_codes(tmp_path / "run") == [code]


def launched(folder: Path, processes: int = 2) -> subprocess.Popen[str]:
    """A longer run by so many processes."""
    words = [*program(processes), *WORDS, *LONGER, "--out", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stopped(folder: Path, processes: int = 2) -> None:
    """Launch a run, and end it in the midst of its search."""
    process, journal = launched(folder, processes), folder / "metrics.jsonl"
    while process.poll() is None and not (journal.exists() and "search-joint" in journal.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert "stopped in search-joint; the same command resumes it" in errors
    assert not (folder / "arch.json").exists()


def finished(process: subprocess.Popen[str]) -> str:
    """Wait for a run that comes to its end, and says so once; returns what else it said."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert out.count("run folder:") == 1
    return errors


@pytest.mark.crash
def test_a_stopped_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    folders = tmp_path / "whole", tmp_path / "run"
    finished(launched(folders[0]))
    stopped(folders[1])
    finished(launched(folders[1]))
    for name in ("derived", "finetuned"):
        assert len({(folder / name / "model.safetensors").read_bytes() for folder in folders}) == 1


@pytest.mark.crash
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_stopped_run_goes_on_with_another_number_of_processes(before: int, after: int, tmp_path: Path) -> None:
    stopped(tmp_path, before)
    rows = (tmp_path / "metrics.jsonl").read_text()
    errors = finished(launched(tmp_path, after))
    assert f"processes: {before} before, {after} now" in errors
    assert (tmp_path / "metrics.jsonl").read_text().startswith(rows)
    found = [(row["stage"], row["epoch"]) for row in read_lines(tmp_path / "metrics.jsonl")]
    assert found.count(("search-joint", 6)) == found.count(("finetune", 1)) == 1
    assert len(set(found)) == len(found)
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "met"
