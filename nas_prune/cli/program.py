"""The program ``nas-prune``: what to do is a command, how to do it is a recipe and its overrides.

Nothing heavy is imported before a command needs it, so help and mistakes answer at once. Errors that nas_prune raises
on purpose become one message and an exit code; ``--debug``, anywhere, adds the traceback.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nas_prune.base.errors import CLOSED, FULL, InterruptedRunError, NasPruneError, RecipeError, StorageError
from nas_prune.base.interrupts import Terminated, interrupted, terminate
from nas_prune.base.launched import is_first
from nas_prune.cli import agent
from nas_prune.cli import compare as cli_compare
from nas_prune.cli import export as cli_export
from nas_prune.cli.asked import asked
from nas_prune.cli.coverage import command as cli_coverage
from nas_prune.cli.doctor import command as cli_doctor
from nas_prune.cli.help import ListCommand, RecipeCommand, figures, table
from nas_prune.cli.show import end, show
from nas_prune.cli.sweep import command as cli_sweep
from nas_prune.cli.timm import command as cli_timm

if TYPE_CHECKING:
    from nas_prune.run.pipeline import Until
    from nas_prune.run.recipe.recipe import Recipe


class Interruptible(TyperGroup):
    """Commands of which Ctrl-C and SIGTERM, wherever they strike, are an error that says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        former = signal.signal(signal.SIGTERM, terminate)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Terminated) else signal.SIGINT
            raise InterruptedRunError(interrupted(ctx.obj or ()), number) from None
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)


app = typer.Typer(
    cls=Interruptible,
    help="Prune timm models to a latency budget by learning what to keep.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
FREE_FORM = {"ignore_unknown_options": True}

Words = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE [KEY=VALUE]...", help="a recipe's name or file, and overrides of its keys"),
]
Out = Annotated[Path | None, typer.Option("--out", help="run folder; runs/<name of the recipe> if left out")]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="go on with what the run folder holds, or start anew")
]
Force = Annotated[bool, typer.Option("--force", help="let --no-resume overwrite the run folder")]
RunFolderPath = Annotated[
    Path,
    typer.Argument(metavar="RUN", exists=True, file_okay=False, help="the folder of a run, such as runs/quickstart"),
]
Artefact = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="the folder of a run or of a derived model"),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit; ``arguments`` are those of the command line if left out."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _one_of_several():
            app(args=[word for word in words if word != "--debug"], prog_name="nas-prune", obj=words)
    except NasPruneError as error:
        if "--debug" in words:
            traceback.print_exception(error)
        sys.exit(_told(error))
    except OSError as error:
        if error.errno not in CLOSED | FULL:
            raise
        if "--debug" in words:
            traceback.print_exception(error)
        sys.exit(_told(StorageError(error.filename or "a file", error)))


@app.callback()
def _program(
    _debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error; may stand anywhere")] = False,
    version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"nas_prune {installed('nas_prune')}")
        raise typer.Exit


@app.command(cls=RecipeCommand, context_settings=FREE_FORM)
def run(words: Words, out: Out = None, resume: Resume = True, force: Force = False) -> None:
    """Do everything a recipe says: train, search, derive, fine-tune, evaluate, report."""
    with agent.told():
        _go(asked(words), out, until="report", resume=resume, force=force)


@app.command(cls=RecipeCommand, context_settings=FREE_FORM)
def calibrate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE|MODEL [KEY=VALUE]...", help="a recipe, or a model of timm, and overrides"),
    ] = None,
    out: Out = None,
    resume: Resume = True,
    force: Force = False,
    check: Annotated[
        Path | None, typer.Option(help="time a few sub-networks of this calibration again: does it still fit here?")
    ] = None,
) -> None:
    """Time sub-networks on this device, and let the best latency predictor learn from them; makes one file to share."""
    if check is not None:
        _check_calibration(check, words or [])
        return
    _go(asked(words or [], models=True), out, until="calibrate", resume=resume, force=force)


@app.command(cls=RecipeCommand, context_settings=FREE_FORM)
def search(words: Words, out: Out = None, resume: Resume = True, force: Force = False) -> None:
    """Learn which units to keep; writes arch.json into the run folder."""
    with agent.told():
        _go(asked(words), out, until="search", resume=resume, force=force)


@app.command()
def derive(
    folder: RunFolderPath,
    targets: Annotated[
        str | None, typer.Option(help="derive a model for each of these from the one search, e.g. 0.8x,0.5x,0.25x")
    ] = None,
    finetune: Annotated[bool, typer.Option("--finetune", help="fine-tune each of them, too")] = False,
) -> None:
    """Go on with a run until the small model is derived, measured and saved; or derive one for each of many targets."""
    if targets is None:
        _go_on(folder, until="derive")
        return
    from rich.console import Console

    from nas_prune.run import pipeline
    from nas_prune.run.report.page import targets_table

    asked = [target.strip() for target in targets.split(",") if target.strip()]
    content = pipeline.derive_many(folder, asked, tune=finetune)
    Console().print(targets_table(content))
    typer.echo(f"run folder: {folder}, report: report.html")
    end(content["targets"])


@app.command()
def finetune(folder: RunFolderPath) -> None:
    """Go on with a run until the derived model is fine-tuned."""
    _go_on(folder, until="finetune")


@app.command()
def evaluate(
    folder: Artefact,
    again: Annotated[bool, typer.Option("--again", help="time the models of a run anew, and report that")] = False,
) -> None:
    """Accuracy, size and measured latency of a run's derived model, or of any derived model."""
    from nas_prune.run import pipeline

    results = pipeline.evaluate(folder, again=again)
    show(results)
    end([results])


@app.command()
def report(folder: RunFolderPath) -> None:
    """Write report.html of a run again."""
    from nas_prune.run import pipeline

    typer.echo(pipeline.report(folder))


@app.command("list", cls=ListCommand)
def list_what(
    what: Annotated[str | None, typer.Argument(metavar="[KIND]", help="one of the kinds below")] = None,
    pattern: Annotated[str | None, typer.Argument(help="only models that match, e.g. 'resnet*'")] = None,
) -> None:
    """List what a recipe can name."""
    from nas_prune.cli.list import listing, listings

    for kind in [what] if what else [kind for kind in listings() if kind != "models"]:
        if not what:
            typer.secho(f"{kind}:", bold=True)
        table(listing(kind, pattern))


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, by which editors check and complete it."""
    from nas_prune.run.recipe.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


app.command("export", epilog=cli_export.EXAMPLES)(cli_export.command)
app.command("compare", context_settings=FREE_FORM, epilog=cli_compare.EXAMPLE)(cli_compare.command)
app.command("doctor", epilog=cli_doctor.EXAMPLES)(cli_doctor.command)
app.command("coverage", epilog=cli_coverage.EXAMPLES)(cli_coverage.command)
app.command("coverage-names")(cli_coverage.names)
app.add_typer(cli_timm.app, name="timm")
app.add_typer(cli_sweep.app, name="sweep")


@contextmanager
def _one_of_several() -> Iterator[None]:
    """Of processes that torchrun or accelerate has launched, the first one speaks for all."""
    if is_first():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def _go(recipe: "Recipe", out: Path | None, *, until: "Until", resume: bool, force: bool) -> None:
    from nas_prune.run import pipeline

    folder = out or agent.default_folder(recipe.name)
    agent.check_folder(folder)
    results = pipeline.run(recipe, folder, until=until, resume=resume, force=force)
    show(results)
    typer.echo(f"run folder: {folder}" + (", report: report.html" if until == "report" else ""))
    end([results])


def _go_on(folder: Path, *, until: "Until") -> None:
    from nas_prune.run import pipeline

    results = pipeline.run(pipeline.open_run(folder), folder, until=until)
    show(results)
    end([results])


def _check_calibration(path: Path, words: Sequence[str]) -> None:
    """Say whether a calibration still fits; if not, that is an error."""
    if words:
        raise RecipeError(f"--check knows the model from the file; leave out {words[0]!r}")
    from nas_prune.run.calibration.check import check

    figures(check(path))


def _told(error: NasPruneError) -> int:
    """Tell the user; die by the signal that stopped the run, as the parent process expects, or return the exit code."""
    typer.echo(f"error: {error}", err=True)
    if isinstance(error, InterruptedRunError) and error.signal_number != signal.SIGINT:
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(error.signal_number, signal.SIG_DFL)
        os.kill(os.getpid(), error.signal_number)
    return error.exit_code
