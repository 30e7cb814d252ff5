"""Several processes: one decides and writes, all train one model, and a stop stops them together."""

import json
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
from processes import joined
from torch import nn

from nas_prune.artifact import folder as artifact
from nas_prune.run.recipe import recipe
from nas_prune.train.data import loaders as data
from nas_prune.train.evaluate import top1
from nas_prune.train.finetune import recalibrate
from nas_prune.train.loop import Run

PROGRAM = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nas_prune"]
LONGER = ["--search.joint=6", "--search.max_steps=25"]  # so that a signal comes before the search has ended
BRIEF = ["--latency.batch_size=2", "--latency.seconds=0.001"]
FIXED = ["--budget.cost=macs", "--budget.target=0.6x"]  # no timing changes what is decided


def launched(folder: Path, *more: str) -> subprocess.Popen[str]:
    """A run by two processes."""
    words = [*PROGRAM, "run", "smoke/quickstart", *FIXED, *BRIEF, *more, "--out", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    """What a run that came to its end has said."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def images() -> data.Data:
    """The data of the run."""
    asked = recipe.read("smoke/quickstart", [])
    return data.load(asked.data, seed=asked.seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that two processes have made."""
    folder = tmp_path_factory.mktemp("processes") / "run"
    assert finished(launched(folder)).count("run folder:") == 1
    return folder


def test_one_process_writes_what_all_have_trained(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set(Counter((row["stage"], row["epoch"]) for row in rows).values()) == {1}
    results = json.loads((run / "results.json").read_text())
    for name in ("derived", "finetuned"):
        assert top1(artifact.load(run / name), images(), Accelerator(cpu=True)) == results[name]["top1"]


@pytest.mark.crash
def test_a_stopped_run_ends_in_the_same_bytes(tmp_path: Path) -> None:
    finished(launched(tmp_path / "whole", *LONGER))
    process, journal = launched(tmp_path / "run", *LONGER), tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (journal.exists() and "search-joint" in journal.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert "stopped in search-joint; the same command resumes it" in errors
    assert not (tmp_path / "run" / "arch.json").exists()
    finished(launched(tmp_path / "run", *LONGER))
    for name in ("derived", "finetuned"):
        weights = (folder / name / "model.safetensors" for folder in (tmp_path / "whole", tmp_path / "run"))
        assert len({path.read_bytes() for path in weights}) == 1


def _recalibrated(rank: int, folder: str) -> None:
    """BatchNorm statistics of two batches, as one of two processes."""
    accelerator = joined(rank, 2, port=29512)
    norm, known = nn.BatchNorm2d(3), images()
    recalibrate(norm, known, Run(accelerator), batches=2)
    torch.save(norm.running_mean, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_statistics_are_of_the_images_of_all_processes(tmp_path: Path) -> None:
    mp.spawn(_recalibrated, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    batches = torch.cat([batch for batch, _ in data.first_batches(images(), 4, torch.device("cpu"))])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, batches.mean((0, 2, 3)))
