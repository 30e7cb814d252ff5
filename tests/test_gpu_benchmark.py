"""The script for a first minute on a GPU ends with a table wherever it runs, whatever its parts do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = """
import time
from collections import namedtuple

Part = namedtuple("Part", "run limit")

class Skipped(Exception): ...

def good(tiny):
    yield "a case", {"figure": 1.5}

def broken(tiny):
    yield "first", {}
    raise ValueError("a reason")

def hanging(tiny):
    yield "first", {}
    time.sleep(60)

def skipped(tiny):
    raise Skipped("no such thing")
    yield

PARTS = {"hanging": Part(hanging, 2), "broken": Part(broken, 60), "skipped": Part(skipped, 60), "good": Part(good, 60)}
"""


def test_a_part_that_hangs_or_breaks_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "gpu_parts.py").write_text(PARTS)
    (tmp_path / "gpu.py").write_text((BENCHMARKS / "gpu.py").read_text())
    done = subprocess.run(
        [sys.executable, tmp_path / "gpu.py", tmp_path / "out"], capture_output=True, text=True, timeout=60, check=True
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "figures.jsonl").read_text().splitlines()]
    assert [(row["part"], row["note"].partition(":")[0]) for row in rows if row["note"]] == [
        *(("hanging", "stopped"), ("broken", "FAILED"), ("skipped", "skipped"), ("good", "done"))
    ]
    assert [row["part"] for row in rows if row["case"]] == ["hanging", "broken", "good"]
    assert next(row["note"] for row in rows if row["part"] == "broken" and row["note"]).endswith("a reason")
    assert (tmp_path / "out" / "table.md").read_text() in done.stdout
    assert "| good | a case | figure 1.5 |  |" in done.stdout


@pytest.mark.zoo
@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_without_a_gpu_it_says_what_it_skips(tmp_path: Path) -> None:
    words = ["sh", BENCHMARKS / "gpu.sh", tmp_path, "--parts", "environment", "training", "resume"]
    plain = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True, env=plain)
    assert "| training |  |  | skipped: torch sees no GPU; --tiny runs this on a CPU |" in done.stdout
    assert "| resume |  |  | skipped" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"figures.jsonl", "table.md", "log.txt"}
