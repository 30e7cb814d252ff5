"""What Weights & Biases gets of a run besides its curves: final figures, report, axes, chart of targets, and models.

A model there has a lineage: the calibration that its search went by and the dense weights that it comes from are inputs
of the run that made it. Dense weights are a reference, path and checksum, so that nobody uploads them with every run.
All of it is in the run folder as well; where W&B fails, the run goes on and says so.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_prune.run.calibration.calibrate import FILE
from nas_prune.run.job import Job
from nas_prune.run.promise import TIMED, disturbed
from nas_prune.tracing.arch import Arch
from nas_prune.train.record.track import Track, present
from nas_prune.train.score import SCORE, score

FINAL = {"top1": "top1", "latency_ms": "measured_ms", "latency_pred_ms": "predicted_ms", "macs": "macs"}
FINAL |= {"params": "params"}  # name in W&B -> name in results.json


def publish(job: Job, track: Track, results: Mapping[str, Any]) -> None:
    """A run that has come to its end: its figures, its pages, and the model with what it was made from."""
    figures = final(results)
    track.summary(figures)
    track.tell("take the pages", lambda client: client.log(_pages(job)))
    track.tell("take the artifacts", lambda client: _log_models(client, job, figures))


def publish_chart(track: Track, path: Path) -> None:
    """The chart of several targets of one search."""
    track.tell("take the chart", lambda client: client.log({"pareto": _html(path)}))


def final(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the derived, fine-tuned, measured model, by the names that a sweep reads."""
    tuned, budget = results["finetuned"], results["budget"]
    return {
        **{f"final/{name}": tuned[key] for name, key in FINAL.items()},
        "final/speedup": 1 / results["measured_share"],
        "status": results["status"],
        "disturbed": disturbed(*(results[name] for name in TIMED)),
        SCORE: score(tuned["top1"], budget["reached"], budget["limit"]),
    }


def _pages(job: Job) -> dict[str, Any]:
    """The report, and what is left of every axis."""
    import wandb  # here, because a run without W&B must not pay for it

    sizes, page = Arch.read(job.folder / "arch.json").sizes(job.space.free), job.folder / "report.html"
    rows = [[name, axis.kind, axis.size, sizes[name], sizes[name] / axis.size] for name, axis in job.space.free.items()]
    axes = {"axes": wandb.Table(["axis", "kind", "units", "kept", "share"], rows)}
    return axes | ({"report": _html(page)} if page.exists() else {})


def _log_models(client: Any, job: Job, figures: Mapping[str, Any]) -> None:
    """The calibration and the dense weights as inputs, the derived and the fine-tuned model as outputs."""
    import wandb

    name = re.sub(r"[^\w.-]", "-", job.recipe.name)
    calibration = wandb.Artifact(f"{name}-calibration", type="calibration")
    calibration.add_file(str(job.folder / "calibration" / FILE), policy="immutable", skip_cache=True)
    inputs, weights = [calibration], _dense_weights(job)
    if weights is not None:
        dense = wandb.Artifact(f"{name}-dense", type="model")
        dense.add_reference(weights.resolve().as_uri())
        inputs.append(dense)
    for each in inputs:  # W&B can only be told of an input when it is there to answer
        client.log_artifact(each) if client.offline else client.use_artifact(each)
    for kind, alias in {"derived": "derived", "finetuned": str(figures["status"])}.items():
        model = wandb.Artifact(f"{name}-{kind}", type="model", metadata=present(figures) if kind == "finetuned" else {})
        model.add_dir(str(job.folder / kind), policy="immutable", skip_cache=True)
        client.log_artifact(model, aliases=["latest", alias])


def _dense_weights(job: Job) -> Path | None:
    """The file of the weights that the search began with; None where timm has them, or nobody."""
    trained, given = job.folder / "checkpoints" / "dense.ckpt", job.recipe.model.checkpoint
    if trained.exists():
        return trained
    return None if given is None else Path(given)


def _html(path: Path) -> Any:
    """A page as W&B shows it."""
    import wandb

    return wandb.Html(path.read_text(encoding="utf-8"), inject=False)
