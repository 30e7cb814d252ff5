"""Every name that timm registers, however large: built without numbers, traced, and its costs counted.

What is derived and proven is the table of modules (``coverage``); here it is asked whether any other is refused.
"""

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torch
from torch import nn

from nas_prune.base.errors import one_line
from nas_prune.base.files.documents import Document, Natural, NotNegative, Text, Whole, read_journal
from nas_prune.base.files.whole import append_line, atomic_write
from nas_prune.cli.coverage.command import Examined
from nas_prune.costs import count, counted
from nas_prune.derivation.trace import trace
from nas_prune.run.report.summary import quantity
from nas_prune.train.record.progress import Bars

LIMIT = 1200  # seconds for one name
FRESH = 40  # names after which processes make room for others
USUAL = (3, 224, 224)  # where a model does not say what it takes


class NameRow(Document):
    """A row of the journal: what was found, or the problem."""

    model: Text
    module: Text
    size: list[Whole]
    free: Natural = 0
    depth: Natural = 0
    frozen: Natural = 0
    macs: Natural = 0
    params: Natural = 0
    seconds: NotNegative
    problem: Text = ""


def examine_names(names: Sequence[str], out: Path, *, jobs: int) -> str:
    """Examine these names, those apart that the journal beside ``out`` has; write the table, and return its summary."""
    journal = out.with_suffix(".jsonl")
    done = {row["model"]: row for row in read_journal(journal, NameRow)}
    with Bars() as bars:
        bar = bars.bar("names", len(names), sum(name in done for name in names))
        for row in _examined([name for name in names if name not in done], jobs):
            append_line(journal, row)
            done[row["model"]] = row
            bar.advance(row["model"])
    rows = [done[name] for name in names if name in done]
    atomic_write(out, page(rows))
    return summary(rows)


def examine_name(name: str) -> dict[str, Any]:
    """One row. Its costs are those of one image, and agree with what torch counts, or that is the problem."""
    start = time.monotonic()
    row: dict[str, Any] = {"model": name, "module": timm.models.model_entrypoint(name).__module__.rpartition(".")[2]}
    try:
        row |= _costs(row, name)
    except Exception as error:  # whatever the model's own code raises is a finding
        row["problem"] = one_line(f"{type(error).__name__}: {error}", 300)
    return {"size": [*USUAL], **row, "seconds": round(time.monotonic() - start, 1)}


def _costs(row: dict[str, Any], name: str) -> dict[str, Any]:
    model, device = _without_numbers(name)
    size = tuple(model.pretrained_cfg.get("input_size") or USUAL)  # type: ignore[union-attr, operator]
    row["size"] = [*size]
    images = torch.zeros(2, *size, device=device)
    axes = trace(model, images)
    found, real = counted(axes, {}), count(model, images)
    if (found.macs, found.params) != (real.macs, real.params):
        row["problem"] = f"the graph costs {found.macs} MACs and {found.params} parameters, torch counts {real}"
    depth = sum(axis.kind == "depth" for axis in axes.free.values())
    widths = {"free": len(axes.free), "depth": depth, "frozen": len(axes) - len(axes.free)}
    return widths | {"macs": found.macs // 2, "params": found.params}


def _without_numbers(name: str) -> tuple[nn.Module, str]:
    """The model on the meta device, or on the CPU where its constructor needs numbers."""
    try:
        with torch.device("meta"):
            return timm.create_model(name).eval(), "meta"
    except Exception as error:  # constructors ask for numbers in many ways
        logging.getLogger(__name__).info("%s is built with numbers: %s", name, error)
    return timm.create_model(name).eval(), "cpu"


def _examined(names: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """The row of each name, as it is done, in processes that are replaced now and then.

    By a pool of their own: Python 3.11 halts when a pool is to replace one process (``max_tasks_per_child``).
    """
    for first in range(0, len(names), FRESH * jobs):
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _alone)
        try:
            some = names[first : first + FRESH * jobs]
            for done in as_completed([pool.submit(_within_the_limit, name) for name in some]):
                yield done.result()
        finally:  # nothing is left to do, unless this was stopped
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.kill()


def _alone() -> None:
    torch.set_num_threads(1)


def _within_the_limit(name: str) -> dict[str, Any]:
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(LIMIT)
    try:
        return examine_name(name)
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"not done within {LIMIT} s")


def summary(rows: Sequence[Examined]) -> str:
    """How many there are, and how many were traced, with costs on which the graph and torch agree."""
    traced = [row for row in rows if row.get("params")]
    agreed = [row for row in traced if not row.get("problem")]
    return f"names: {len(rows)}\ntraced: {len(traced)}\ncosts of the graph as torch counts them: {len(agreed)}"


def page(rows: Sequence[Examined]) -> str:
    """The table in Markdown, and what does not hold."""
    head = ["model", "module", "pixels", "free", "depth", "frozen", "MACs", "parameters", "s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        counts = [str(row.get(name, "-")) for name in ("free", "depth", "frozen")]
        costs = [quantity(row[name]) if name in row else "-" for name in ("macs", "params")]
        cells = [row["model"], row["module"], str(row["size"][-1]), *counts, *costs, str(row["seconds"])]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"* {row['model']}: {row['problem']}" for row in rows if row.get("problem")]
    parts = [INTRODUCTION, summary(rows).replace("\n", "  \n"), "## What does not hold", "\n".join(notes) or "Nothing."]
    return "\n\n".join([*parts, "## All names", "\n".join(lines), ""])


INTRODUCTION = """# Every name that timm registers

Written by `nas-prune coverage-names`, which goes on where it was stopped. Each model
is built without numbers at its own image size, and traced. *free* and *frozen* count axes, *depth* the free ones that
are residual branches; MACs are those of one image; *s* is seconds on one core."""
