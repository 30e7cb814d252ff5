"""``nas-prune coverage``: every model module of timm, each in a process of its own, as a table with its proofs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict

from nas_prune.base.files.documents import Text, Whole, read_journal
from nas_prune.base.files.whole import append_line, atomic_write

if TYPE_CHECKING:
    from nas_prune.cli.coverage.examine import Case

Examined = Mapping[str, Any]  # a row, as plain data
Process = subprocess.Popen[str]
LIMIT = 1200  # seconds for one model
REACH = 0.45
EXAMPLES = "Example: nas-prune coverage --only resnet --only swin_transformer --out /tmp/coverage.md"


class CoverageRow(BaseModel):
    """A row of the journal of ``nas-prune coverage``."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    module: Text
    model: Text
    size: list[Whole]
    problems: dict[str, Text]


def command(
    out: Annotated[Path, typer.Option(help="the table; its rows as data stand beside it")] = Path("docs/coverage.md"),
    only: Annotated[
        list[str] | None, typer.Option(help="timm modules to try (may be repeated); all if left out")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="models tried at a time, one core each")] = os.cpu_count() or 1,
    resume: Annotated[bool, typer.Option("--resume", help="keep the rows that are there already")] = False,
    row: Annotated[str | None, typer.Option(hidden=True, help="print the row of one module as JSON")] = None,
) -> None:
    """Trace, derive, save, load and export the smallest model of every timm module; write the table of what holds."""
    from nas_prune.cli.coverage.examine import cases, examine

    known = cases()
    if row is not None:
        typer.echo(json.dumps(examine(known[row])))
        return
    unknown = sorted(set(only or ()) - known.keys())
    if unknown:
        raise typer.BadParameter(f"timm has no model module {unknown[0]!r} in the table", param_hint="--only")
    journal = out.with_suffix(".jsonl")
    if not resume:
        journal.unlink(missing_ok=True)
    done: dict[str, Examined] = {each["module"]: each for each in read_journal(journal, CoverageRow)}
    wanted = [case for name, case in known.items() if name in (only or known) and name not in done]
    for found in _examined(wanted, jobs):
        append_line(journal, found)
        done[found["module"]] = found
    rows = [done[name] for name in known if name in done]
    atomic_write(out, page(rows).encode())
    typer.echo(summary(rows))


def names(
    pattern: Annotated[str, typer.Argument(help="which names, e.g. 'resnet*'")] = "*",
    out: Annotated[Path, typer.Option(help="the table; its rows as data stand beside it, and are not repeated")] = Path(
        "docs/coverage_names.md"
    ),
    jobs: Annotated[int, typer.Option(min=1, help="names tried at a time, one core each")] = os.cpu_count() or 1,
) -> None:
    """Trace every name that timm registers, without numbers, and count its costs; goes on where it was stopped."""
    import timm

    from nas_prune.cli.coverage.names import examine_names

    found = timm.list_models(pattern, exclude_filters=["nas_prune*"])
    if not found:
        raise typer.BadParameter(f"timm has no model that matches {pattern!r}", param_hint="PATTERN")
    typer.echo(examine_names(found, out, jobs=jobs))


def _examined(wanted: "list[Case]", jobs: int) -> Iterator[Examined]:
    """The row of each model, as it is done."""
    from nas_prune.train.record.progress import Bars

    pool, running = ThreadPoolExecutor(jobs), set[Process]()
    try:
        with Bars() as bars:
            bar = bars.bar("models", len(wanted))
            for done in as_completed([pool.submit(_in_a_process, case, running) for case in wanted]):
                bar.advance(done.result()["module"])
                yield done.result()
    finally:  # nothing is left to do, unless this was stopped
        pool.shutdown(wait=False, cancel_futures=True)
        for process in tuple(running):
            process.kill()


def _in_a_process(case: "Case", running: set[Process]) -> Examined:
    words = [sys.executable, "-m", "nas_prune", "coverage", "--row", case.module]
    missing = {"module": case.module, "model": case.model, "size": case.size}
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone) as process:
        running.add(process)
        try:
            said, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            return {**missing, "problems": {"trace": f"not done within {LIMIT} s"}}
        finally:
            running.discard(process)
    if process.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        return {**missing, "problems": {"trace": f"exit code {process.returncode}: {last[:300]}"}}
    return dict(json.loads(said.splitlines()[-1]))


def summary(rows: Sequence[Examined]) -> str:
    """One paragraph with the figures of the whole table: of how many models what holds."""

    def good(*checks: str) -> int:
        return sum(all(check not in row["problems"] for check in ("trace", *checks)) for row in rows)

    shares = [row["macs"] for row in rows if "macs" in row]
    within = sum(share <= REACH for share in shares)
    middle = f"{median(shares):.2f}" if shares else "-"
    return "\n".join(
        [
            f"models: {len(rows)}",
            f"gated equals derived in the captured graph: {good('graph')}",
            f"gated equals derived as eager timm models: {good('graph', 'eager')}",
            f"MACs at keep 0.5 within {REACH}x: {within}, median {middle}x",
            f"MACs and parameters as predicted: {good('eager', 'counted')}",
            f"saved and loaded bit-equal, by nas_prune and by timm: {good('eager', 'reload')}",
            f"timm's own methods: {good('eager', 'timm')}",
            f"exported for any batch: {good('eager', 'export')}",
        ]
    )


def page(rows: Sequence[Examined]) -> str:
    """The table in Markdown."""
    head = ["module", "model", "pixels", "free", "depth", "frozen", "MACs"]
    head += ["graph", "eager", "reload", "timm", "export", "s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    notes = [f"* {row['module']}, {check}: {text}" for row in rows for check, text in row["problems"].items()]
    beyond = [row for row in rows if row.get("macs", 0.0) > REACH]
    notes += [f"* {row['module']}, MACs: {row['macs']:.2f}x, as so much is frozen: {_reasons(row)}" for row in beyond]
    reasons = [f"* {row['module']}: {_reasons(row)}" for row in rows if row.get("reasons")]
    parts = [INTRODUCTION, summary(rows).replace("\n", "  \n"), "\n".join(lines), "## What does not hold"]
    return "\n\n".join([*parts, "\n".join(notes) or "Nothing.", "## Why axes are frozen", "\n".join(reasons), ""])


INTRODUCTION = """# Coverage: the smallest model of every timm model module

Written by `nas-prune coverage`. Each model has random weights. *free* and *frozen* count axes, *depth* the free ones
that are residual branches; *MACs* is what is left at keep 0.5 on every free axis; *graph* is the largest relative
difference between gated and derived in float64, node by node in the captured graph, at keep 0.5; *eager* the same of
the eager models, over keep 0.25, 0.5 and 0.75, and 0.5 with half of the branches gone; *reload* means saved and loaded
by `nas_prune.load` and `timm.create_model("local-dir:...")` to the same bits; *timm* that forward_intermediates,
feature_info, reset_classifier, get_classifier and group_matcher hold; *export* that `torch.export` works for any batch;
*s* is seconds for all of it on one core."""


def _cells(row: Examined) -> list[str]:
    def mark(check: str) -> str:
        return "no" if {check, "eager", "trace"} & row["problems"].keys() else "yes"

    def error(check: str) -> str:
        return "no" if check in row["problems"] else f"{row[f'{check}_error']:.0e}" if f"{check}_error" in row else "-"

    counts = [str(row.get(name, "-")) for name in ("free", "depth", "frozen")]
    share = f"{row['macs']:.2f}x" if "macs" in row else "-"
    return [
        *(row["module"], row["model"], str(row["size"][-1]), *counts, share, error("graph"), error("eager")),
        *(mark("reload"), mark("timm"), mark("export"), str(row.get("seconds", "-"))),
    ]


def _reasons(row: Examined) -> str:
    return "; ".join(f"{reason} ({count})" for reason, count in row["reasons"].items())
