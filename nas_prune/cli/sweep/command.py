"""``nas-prune sweep``: a sweep file of Weights & Biases checked before it wastes a night, and run without a server."""

import shlex
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    help="Sweep files of Weights & Biases: checked, shown, and run here without a server.", no_args_is_help=True
)
WRONG = 2
File = Annotated[str, typer.Argument(metavar="FILE", help="a sweep file, or a shipped one: `nas-prune list sweeps`")]


@app.command(epilog="Example: nas-prune sweep lint gates")
def lint(file: File) -> None:
    """Check a sweep file: parameters and values, metric, command, early termination. Exit code 2 for any problem."""
    from nas_prune.cli.sweep.file import read
    from nas_prune.cli.sweep.lint import findings

    sweep = read(file)
    found = findings(sweep)
    for each in found:
        typer.echo(f"{sweep.path}: {each}")
    problems = sum(not each.warning for each in found)
    if problems:
        typer.echo(f"{problems} problem{'s' * (problems > 1)}")
        raise typer.Exit(WRONG)
    runs = f"{sweep.size} runs" if sweep.size else "runs until it is stopped"
    typer.echo(f"no problem; {sweep.method}, {runs} over {', '.join(sweep.varying).replace('/', '.')}")


@app.command(epilog="Example: nas-prune sweep plan targets -n 3")
def plan(
    file: File,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="at most so many runs")] = 5,
    seed: Annotated[int, typer.Option(help="seed of random choices")] = 0,
) -> None:
    """Show the command line of the first runs, as W&B's agent would execute them."""
    from nas_prune.cli.sweep.file import read
    from nas_prune.cli.sweep.lint import refuse
    from nas_prune.cli.sweep.suggest import first_runs

    sweep = read(file)
    refuse(sweep)
    for values in first_runs(sweep, count, seed):
        typer.echo(shlex.join(sweep.argv(values)))


@dataclass(frozen=True)
class LocalOptions:
    """Run a sweep here, without a server: the same file, the same rules.

    Stopped, or killed, the same command goes on: runs that had begun are
    resumed. One run at a time measures, however many train.
    """

    file: File
    out: Annotated[Path, typer.Option("--out", help="folder for all runs, sweep.json and pareto.svg")]
    workers: Annotated[int, typer.Option(min=1, help="runs at once")] = 1
    count: Annotated[int | None, typer.Option(min=1, help="runs in all; of a grid: at most so many")] = None
    seed: Annotated[int, typer.Option(help="seed of the suggestions")] = 0
    threads: Annotated[int | None, typer.Option(min=1, help="threads of each run; 1, or $OMP_NUM_THREADS")] = None
    wandb: Annotated[
        Literal["disabled", "offline"], typer.Option(help="whether runs are recorded for `wandb sync`, too")
    ] = "disabled"
    again: Annotated[bool, typer.Option("--again", help="try runs that have failed once more")] = False


@app.command("local", epilog="Example: nas-prune sweep local targets --workers 2 --out runs/targets")
@wraps(LocalOptions)
def local(**options: Any) -> None:
    """Run all of it, and tell."""
    from rich.console import Console

    from nas_prune.cli.sweep import local as local_sweep
    from nas_prune.cli.sweep import page
    from nas_prune.cli.sweep.file import read
    from nas_prune.cli.sweep.worker import How

    asked = LocalOptions(**options)
    sweep, how = read(asked.file), How(asked.out, asked.threads, asked.wandb)
    opened = local_sweep.opened(sweep, how, asked.seed, count=asked.count, workers=asked.workers)
    with opened as work:
        if asked.again:
            work.forgive()
        with page.Screen(Console()) as screen:
            found = work.go(screen)
    Console().print(page.table(found, sweep.varying))
    for text in page.failures(found):
        typer.echo(text)
    chart = page.save_chart(found, sweep.varying, asked.out / "pareto.svg")
    typer.echo(f"folder: {asked.out}, runs: sweep.json" + (f", chart: {chart.name}" if chart else ""))
    if any(each.state == "failed" for each in found):
        raise typer.Exit(1)


@app.command(epilog="Example: nas-prune sweep best runs/targets --out best")
def best(
    source: Annotated[str, typer.Argument(metavar="FOLDER|SWEEP", help="a local sweep, or entity/project/id of W&B")],
    out: Annotated[Path, typer.Option("--out", help="folder for the model")],
    runs: Annotated[
        Path | None, typer.Option(help="where the run folders <recipe>/<run> of a W&B sweep are; runs")
    ] = None,
) -> None:
    """Copy the model of the best run that met its budget; where it came from is in its provenance."""
    from nas_prune.cli.sweep import best as best_run
    from nas_prune.cli.sweep.page import said

    chosen = best_run.copy(best_run.find(source, runs), out)
    typer.echo(f"run {chosen.run}: {said(chosen)}; saved in {out}")
