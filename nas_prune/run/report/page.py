"""The page that shows what a run did: made from the files of its folder, and from nothing else.

Every number says how it was come by: a predicted latency is called predicted, a measured one has its spread. A part of
the run that has not happened yet is shown as such.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from nas_prune.base.errors import ArtifactError, one_line
from nas_prune.base.files import yaml_text
from nas_prune.base.files.documents import read_document, read_journal
from nas_prune.base.files.whole import atomic_write, read_bytes
from nas_prune.run import files as run_files
from nas_prune.run import result_files
from nas_prune.run.recipe.recipe import of_run
from nas_prune.run.report import curves
from nas_prune.run.report.pictures import pictures_section
from nas_prune.run.report.summary import (
    cautions,
    columns,
    duration,
    headline,
    in_unit,
    milliseconds,
    share,
    stage_rows,
    stripe_rows,
    table_rows,
    verdict,
)
from nas_prune.run.report.targets import pareto_svg, remarks, target_rows, targets_headline
from nas_prune.run.report.terminal import terminal_table
from nas_prune.tracing.arch import Arch
from nas_prune.train.record import journals


@dataclass(frozen=True)
class RunFolder:
    """What a run has left so far; a part that is missing is empty."""

    name: str
    recipe: str
    metrics: list[dict[str, Any]]
    arch: Mapping[str, Sequence[int]]
    axes: list[dict[str, Any]]
    calibration: Mapping[str, Any]
    samples: list[dict[str, Any]]
    results: Mapping[str, Any]
    targets: Mapping[str, Any]
    shapley: list[dict[str, Any]]

    @staticmethod
    def read(folder: Path) -> "RunFolder":
        """Read the folder of a run, however far it got. Raises RecipeError where no run is."""
        recipe, arch = of_run(folder), folder / "arch.json"
        return RunFolder(
            name=folder.resolve().name,
            recipe=_text(recipe),
            metrics=read_journal(folder / "metrics.jsonl", journals.MetricsRow, ArtifactError),
            arch=Arch.read(arch).kept if arch.exists() else {},
            axes=_document(folder / "axes.json", run_files.AxesFile).get("axes", []),
            calibration=_document(folder / "calibration" / "calibration.json", run_files.CalibrationPage),
            samples=read_journal(folder / "calibration" / "samples.jsonl", run_files.SampleRow, ArtifactError),
            results=_document(folder / "results.json", result_files.ResultsFile | result_files.InfeasibleFile),
            targets=_document(folder / "targets.json", result_files.TargetsFile),
            shapley=read_journal(folder / "shapley.jsonl", journals.ShapleyRow, ArtifactError),
        )


def report(folder: Path) -> Path:
    """Write ``report.html`` into the run folder; the page is one file that opens offline."""
    run = RunFolder.read(folder)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(ms=milliseconds, share=share, duration=duration)
    environment.filters.update(correlation=_correlation, in_unit=in_unit)
    template = resources.files("nas_prune.run.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        run=run,
        title=_title(run),
        headline=(targets_headline(run.targets) if not run.results else "") or headline(run.results),
        verdict=verdict(run.results),
        cautions=cautions(run.results),
        unit=_unit(run.results),
        columns=columns(),
        rows=table_rows(run.results),
        stages=stage_rows(run.results.get("stages") or {}),
        stripes=stripe_rows(run.results.get("stripes")),
        contributions=_contributions(run.shapley),
        pictures=pictures_section(folder / "pictures"),
        targets=target_rows(run.targets) if run.targets.get("targets") else [],
        remarks=remarks(run.targets),
        groups=_axis_groups(run),
        frozen=_frozen(run.axes),
        predictors=_ranked(run.calibration.get("errors") or {}),
        units=_units(run),
        seconds=_shares(run.results.get("seconds", {})),
        device=_flat(run.results.get("device") or run.calibration.get("device") or {}),
        figures={name: drawing and Markup(drawing) for name, drawing in _figures(run).items()},
    )
    target = folder / "report.html"
    atomic_write(target, page)
    return target


def table(results: Mapping[str, Any]) -> Table:
    """The table of the report for a terminal."""
    labels = ("", *(f"#{label}" for label in columns().values()))
    printed = terminal_table(*labels, title=_said_first(results), caption=Text(verdict(results)))
    for label, cells in table_rows(results).items():
        printed.add_row(
            label, *(Text.assemble(cell.text, (cell.change and f"\n{cell.change}", "dim")) for cell in cells)
        )
    return printed


def _said_first(results: Mapping[str, Any]) -> Text:
    """What has to be known before the headline, in red, and the headline."""
    return Text("\n").join([*(Text(text, "bold red") for text in cautions(results)), Text(headline(results))])


def targets_table(content: Mapping[str, Any]) -> Table:
    """The targets of a run for a terminal, from the content of ``targets.json``; the dense model comes first.

    It fits 80 columns, and so leaves to the page what is predicted and what is said twice.
    """
    printed = Table(box=SIMPLE_HEAD, show_edge=False, collapse_padding=True, pad_edge=False)
    printed.title, printed.caption = Text(targets_headline(content)), Text("\n".join(remarks(content)))
    printed.title_justify = printed.caption_justify = "left"
    rows = [_for_terminal(row) for row in target_rows(content)]
    for name in rows[0] if rows else ["target"]:
        word = max(map(len, name.split()))
        printed.add_column(name, justify="left" if name in ("target", "status") else "right", min_width=word)
    for row in rows:
        printed.add_row(*(Text(text, "red" if row["status"] == "missed" else "") for text in row.values()))
    return printed


def _for_terminal(row: Mapping[str, str]) -> dict[str, str]:
    """A row of targets without its prediction, and with "missed" for the sentence that repeats its figures."""
    shown = {name: text for name, text in row.items() if name != "predicted (ms)"}
    return shown | {"status": row["status"].partition(":")[0]}


def _title(run: RunFolder) -> str:
    """``resnet18 on fashion_mnist``, or the folder's name where the recipe does not tell."""
    try:
        recipe = yaml_text.parse(run.recipe) or {}
        return one_line(f"{recipe['model']['name']} on {recipe['data']['name']}")
    except (yaml_text.YamlError, KeyError, TypeError):
        return run.name


def _figures(run: RunFolder) -> dict[str, str | None]:
    target, unit = run.results.get("target_ms"), _unit(run.results)
    rounds = run.results.get("rounds", []) if unit == "ms" else []
    limit = (run.results.get("budget") or {}).get("limit")
    return {
        "loss": curves.curve(run.metrics, "train/loss", "training loss"),
        "top1": curves.curve(run.metrics, "eval/top1", "top-1", percent=True),
        "predicted": curves.curve(run.metrics, f"search/predicted_{unit}", f"predicted {unit}", target=limit),
        "gates": curves.gate_curves(run.metrics),
        "scatter": curves.scatter(_now(run), rounds, target, run.calibration.get("noise")),
        "stages": curves.waterfall(stage_rows(run.results.get("stages") or {})),
        "targets": pareto_svg(run.targets),
    }


def _unit(results: Mapping[str, Any]) -> str:
    """Of the budget."""
    return str((results.get("budget") or {}).get("unit", "ms"))


def _now(run: RunFolder) -> list[dict[str, Any]]:
    """The samples of the calibration in milliseconds of the run's one timing of the dense model."""
    before, now = run.calibration.get("dense_ms"), (run.results.get("dense") or {}).get("measured_ms")
    scale = now / before if now and before else 1.0
    return [{**row, "ms": scale * row["ms"], "predicted_ms": scale * row["predicted_ms"]} for row in run.samples]


def _contributions(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The last estimate of every candidate's contribution, the best of each choice first."""
    if not rows:
        return []
    values, half = rows[-1]["values"], rows[-1].get("half_width", {})
    ranked = sorted(values, key=lambda name: (name.rpartition(".")[0], -values[name]))
    return [
        {
            "choice": name.rpartition(".")[0],
            "candidate": name.rpartition(".")[2],
            "Shapley value": f"{values[name]:+.4f}" + (f" ± {half[name]:.4f}" if half.get(name) is not None else ""),
        }
        for name in ranked
    ]


def _axis_groups(run: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """The axes that may change by kind, each with its width before and after (None while nothing is chosen)."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for axis in run.axes:
        if axis.get("frozen") is None:
            kept = len(run.arch.get(axis["name"], range(axis["size"]))) if run.arch else None
            trace = curves.sparkline(run.metrics, f"gate/{axis['name']}")
            groups.setdefault(axis["kind"], []).append({**axis, "kept": kept, "trace": trace})
    for bars in groups.values():
        widest = max(bar["size"] for bar in bars)
        for bar in bars:
            bar["before"] = 100 * bar["size"] / widest
            bar["after"] = 100 * (bar["size"] if bar["kept"] is None else bar["kept"]) / widest
    return groups


def _units(run: RunFolder) -> tuple[int, int]:
    """Units kept and units that there were, over the axes that may change."""
    free = {axis["name"]: axis["size"] for axis in run.axes if axis.get("frozen") is None}
    return sum(len(run.arch.get(name, range(size))) for name, size in free.items()), sum(free.values())


def _frozen(axes: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Reason -> the axes that are frozen for it."""
    reasons: dict[str, list[str]] = {}
    for axis in axes:
        if axis.get("frozen") is not None:
            reasons.setdefault(axis["frozen"], []).append(f"{axis['name']} ({axis['size']})")
    return reasons


def _ranked(errors: Mapping[str, Any]) -> dict[str, Any]:
    """The predictors that were tried, the most accurate first."""
    return dict(sorted(errors.items(), key=lambda named: float(named[1]["mape"])))


def _correlation(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _shares(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Stage, seconds, and the share of the longest in percent."""
    longest = max(seconds.values(), default=0) or 1
    return [(stage, value, 100 * value / longest) for stage, value in seconds.items()]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat.update(_flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _text(path: Path) -> str:
    return read_bytes(path, ArtifactError, yaml_text.LONGEST).decode(errors="replace")


def _document(path: Path, kind: object) -> Any:
    return read_document(path, kind, ArtifactError) if path.exists() else {}
