"""The best run of a sweep, its model copied with where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_prune.base.errors import ArtifactError, NasPruneError, first_line
from nas_prune.cli.sweep import outcome
from nas_prune.cli.sweep.command_line import WRITTEN
from nas_prune.cli.sweep.file import Goal, Sweep
from nas_prune.cli.sweep.journal import FILE, Journal
from nas_prune.cli.sweep.outcome import Outcome
from nas_prune.cli.sweep.parameters import nested


@dataclass(frozen=True)
class Found:
    """The runs of a sweep, and the folder in which those of this machine are."""

    sweep: str
    folder: Path
    runs: list[Outcome]
    goal: Goal = "maximize"


def find(source: str, runs: Path | None = None) -> Found:
    """The runs of a local sweep, of a folder of run folders, or of a sweep of W&B (entity/project/id).

    ``runs``: where the folders <recipe>/<run> of the runs of W&B are; ``runs`` if left out.
    """
    folder = Path(source)
    if (folder / FILE).is_file():
        journal = Journal.read(folder)
        entries = journal.entries.values()
        found = [(e.run, e.values, e.state or "waiting", e.seconds) for e in entries]
        told = [Outcome(*each, **outcome.figures(folder / each[0], journal.metric)) for each in found]
        return Found(journal.sweep, folder, told, journal.goal)
    if folder.is_dir():
        made = sorted(path.parent for path in folder.glob("*/results.json"))
        if not made:
            one = f"; it is the folder of one run, whose model is in {folder / 'finetuned'}"
            raise NasPruneError(
                f"{folder} is no sweep folder: it has no {FILE}, and no run in it has come to its end"
                + (one if (folder / "recipe.yaml").is_file() else "; name the --out of `nas-prune sweep local`")
            )
        told = [Outcome(each.name, {}, "finished", **outcome.figures(each)) for each in made]
        return Found(folder.name, folder, told)
    if source.count("/") != 2:
        raise NasPruneError(f"{source} is neither a folder nor a sweep of W&B; write FOLDER, or entity/project/id")
    name = source.rsplit("/", 1)[-1]
    sweep, told = of_wandb(source)
    return Found(name, runs or Path("runs"), told, sweep.goal)


def of_wandb(path: str) -> tuple[Sweep, list[Outcome]]:
    """A sweep of W&B, and its runs. Raises NasPruneError where the server cannot be asked."""
    import wandb

    try:
        asked = wandb.Api().sweep(path)
        sweep = Sweep(Path(path), dict(asked.config))
        runs = [
            (f"{run.config['name']}/{run.id}", dict(run.config), run.state, dict(run.summary)) for run in asked.runs
        ]
    except Exception as error:  # of wandb, requests and whatever they stand on
        what = first_line(error) or type(error).__name__
        raise NasPruneError(
            f"the sweep {path} cannot be read from W&B ({what}); go online and `wandb login`, or name the folder of "
            "its runs, such as runs/quickstart"
        ) from error
    return sweep, [_of_summary(*each, metric=sweep.metric) for each in runs]


def copy(found: Found, out: Path) -> Outcome:
    """Save the best model of a sweep in ``out``; what it came from is in its provenance. Returns its run."""
    from nas_prune.artifact import folder as artifact
    from nas_prune.artifact.config import ARCH
    from nas_prune.tracing.arch import Arch

    chosen = outcome.best(found.runs, found.goal)
    if chosen is None:
        ends = ", ".join(f"{each.run}: {each.status or each.state}" for each in found.runs[:10]) or "there are no runs"
        raise NasPruneError(f"no run of sweep {found.sweep} has met its budget ({ends}); ask for less, or run more")
    source = found.folder / chosen.run / "finetuned"
    if not source.is_dir():
        raise ArtifactError(
            f"the best run is {chosen.run}, and its model is not here ({source}); copy its folder from where it ran, "
            "or say --runs FOLDER"
        )
    facts = artifact.describe(source)
    told: dict[str, Any] = {"sweep": found.sweep, "run": chosen.run, "flags": flags(chosen.values)}
    told |= {"score": chosen.score, "top1": chosen.top1, "measured_ms": chosen.measured_ms}
    provenance = {**(facts.get("provenance") or {}), "sweep": told}
    arch = Arch.read(source / ARCH) if (source / ARCH).exists() else None
    remarks: Any = {"certificate": facts.get("certificate"), "provenance": provenance}
    artifact.save(artifact.load(source), out, arch=arch, remarks=remarks)
    return chosen


def flags(values: Mapping[str, Any]) -> list[str]:
    """The overrides that a run was given."""
    return [word for name, value in nested(values).items() for word in WRITTEN["args"](name, value)]


def _of_summary(run: str, config: Mapping[str, Any], state: str, summary: Mapping[str, Any], *, metric: str) -> Outcome:
    """A run as W&B knows it."""
    names = {"score": metric, "top1": "final/top1", "measured_ms": "final/latency_ms", "macs": "final/macs"}
    figures: dict[str, Any] = {name: summary.get(key) for name, key in names.items()}
    return Outcome(run, config, state, status=summary.get("status"), **figures)
