"""The result of a run as one sentence and one table, the same for the page and for the terminal.

Every figure says how it was come by: a predicted latency is called predicted, a measured one has its spread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas_prune.run.promise import TIMED, Promise, disturbed

DISTURBED = " on a disturbed machine"


@dataclass(frozen=True)
class TableFigure:
    """One figure of the table, how far it is from the dense model's, and whether it is known at all."""

    text: str
    change: str = ""
    known: bool = True


@dataclass(frozen=True)
class StageRow:
    """Milliseconds of one stage before and after, and what it saved as a share of all that stages saved."""

    name: str
    dense_ms: float
    derived_ms: float
    share: float | None

    @property
    def saved_ms(self) -> float:
        """Below zero where the stage became slower."""
        return self.dense_ms - self.derived_ms


def columns() -> dict[str, str]:
    """The models of a run in the order in which they come to be: key in results.json, and label."""
    return {"dense": "dense", "gated": "gated", "derived": "derived", "finetuned": "fine-tuned"}


def table_rows(results: Mapping[str, Any]) -> dict[str, list[TableFigure]]:
    """Label -> one cell per column."""
    models = {key: results.get(key) or {} for key in columns()}
    dense = models["dense"]
    error = results.get("max_abs_error")
    rows = {
        "Top-1 (%)": [_top1(model, dense) for model in models.values()],
        "MACs": [_count(model, dense, "macs") for model in models.values()],
        "Parameters": [_count(model, dense, "params") for model in models.values()],
        **_live_rows(models, results.get("stripes")),
        "Predicted latency (ms)": [_latency(model, dense, "predicted_ms") for model in models.values()],
        "Measured latency (ms)": [_latency(model, dense, "measured_ms") for model in models.values()],
    }
    exact = TableFigure("—" if error is None else f"{error:.1e}")
    rows["Largest |gated - derived| output"] = [exact if key == "derived" else TableFigure("") for key in models]
    return rows


def _live_rows(
    models: Mapping[str, Mapping[str, Any]], stripes: Mapping[str, Any] | None
) -> dict[str, list[TableFigure]]:
    """What the live stripes of convolutions multiply and hold, beside what is executed and stored."""
    if not stripes:
        return {}
    dense, labels = models["dense"], {"MACs of live stripes": "macs", "Parameters in live stripes": "params"}
    cells = [model if model is dense or not model else stripes for model in models.values()]
    return {label: [_count(cell, dense, key) for cell in cells] for label, key in labels.items()}


def stripe_rows(stripes: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """One row per convolution that lost stripes: live share, the form that it took, milliseconds of every form."""
    convolutions = (stripes or {}).get("convolutions", [])
    return [
        {
            "convolution": row["module"],
            "live": share(row["live"]),
            "form": row["form"],
            **{f"{form}, ms": milliseconds(value) for form, value in row["ms"].items()},
        }
        for row in convolutions
    ]


def stage_rows(stages: Mapping[str, Mapping[str, float]]) -> list[StageRow]:
    """One row per stage, in the order in which they run, from ``{"dense": {stage: ms}, "derived": {stage: ms}}``.

    A stage that became slower has no share of what the others saved.
    """
    dense, derived = stages.get("dense") or {}, stages.get("derived") or {}
    if not dense or not derived:
        return []
    pairs = {name: (dense.get(name, 0.0), derived.get(name, 0.0)) for name in {**dense, **derived}}
    saved = {name: before - after for name, (before, after) in pairs.items() if before > after}
    shares = {name: ms / sum(saved.values()) for name, ms in saved.items()}
    return [StageRow(name, *pair, shares.get(name)) for name, pair in pairs.items()]


def headline(results: Mapping[str, Any]) -> str:
    """The result in one sentence, from the dense model to the last one that there is."""
    if results.get("status") == "infeasible":
        return f"No network of the search space meets the target of {results['target']}."
    dense, derived, tuned = (results.get(key) or {} for key in TIMED)
    after = tuned or derived
    if not dense or not after:
        return "Not yet run to the end: there is no derived model to compare with the dense one."
    parts = [_speed(dense, after, _where(results)), _accuracy(dense, after, tuned=bool(tuned)), _fewer(dense, after)]
    sentence = ", ".join(part for part in parts if part)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def verdict(results: Mapping[str, Any]) -> str:
    """Whether what was asked for was reached: met, missed or infeasible, and why, in the unit of the budget."""
    budget, status, short = (results.get(key) for key in ("budget", "status", "short"))
    if status == "infeasible":
        return f"Target infeasible: {str(results['why']).rstrip('.')}."
    if not budget:
        return f"Target {status or 'not yet measured'}."
    how = "measured" if budget["unit"] == "ms" else "counted"
    reached = f"{in_unit(budget['reached'], budget['unit'])} {how}{_where(results) if how == 'measured' else ''}"
    kept = Promise(budget["limit"], budget["reached"], budget["unit"]).status
    why = f"; {short}" if short and kept == "met" else ""
    closed = results.get("closed_top1")
    then = "" if closed is None else f" Right after closing, before any further training, top-1 was {closed:.2f} %."
    told = f"Target of {in_unit(budget['limit'], budget['unit'])} {kept}: {reached}{why}.{then}"
    return " ".join([told, *map(_limit, results.get("limits") or [])])


def _limit(limit: Mapping[str, Any]) -> str:
    """The same of a further limit."""
    most, reached = (in_unit(limit[key], limit["unit"]) for key in ("limit", "reached"))
    return f"Limit of {most} ({limit['cost']}) {limit['status']}: {reached}."


def cautions(results: Mapping[str, Any]) -> list[str]:
    """What has to be said before any other figure, as sentences."""
    return [f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in results.get("cautions") or []]


def in_unit(value: float, unit: str) -> str:
    """A cost and its unit, for people: 4.03 ms, 1.82 G MACs."""
    return f"{milliseconds(value)} ms" if unit == "ms" else f"{quantity(value)} {unit}"


def milliseconds(value: float | None) -> str:
    """Three significant digits, never in scientific notation."""
    if value is None:
        return "—"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """0.052 as 5.2 %."""
    return "—" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def quantity(value: float | None) -> str:
    """11689512 as 11.69 M."""
    if value is None:
        return "—"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:g}"


def _top1(model: Mapping[str, Any], dense: Mapping[str, Any]) -> TableFigure:
    value, before = model.get("top1"), dense.get("top1")
    if value is None:
        return _absent(model)
    return TableFigure(f"{value:.2f}", "" if before is None or model is dense else _signed(value - before, "points", 2))


def _count(model: Mapping[str, Any], dense: Mapping[str, Any], key: str) -> TableFigure:
    value = model.get(key)
    return (
        _absent(model)
        if value is None
        else TableFigure(quantity(value), _relative(value, dense.get(key), model is dense))
    )


def _latency(model: Mapping[str, Any], dense: Mapping[str, Any], key: str) -> TableFigure:
    value, spread = model.get(key), model.get(f"{key}_spread")
    if value is None:
        return _absent(model)
    text = milliseconds(value)
    if spread is not None:
        text += f" ± {spread:.{len(text.partition('.')[2])}f}"
    return TableFigure(text, _relative(value, dense.get(key), model is dense))


def _absent(model: Mapping[str, Any]) -> TableFigure:
    return TableFigure("—" if model else "not yet run", known=False)


def _relative(value: float, before: float | None, same: bool) -> str:
    return "" if same or not before else _signed(100 * (value / before - 1), "%", 1)


def _signed(value: float, unit: str, digits: int) -> str:
    return f"{value:+.{digits}f} {unit}"


def _where(results: Mapping[str, Any]) -> str:
    """What qualifies all that was timed; empty where nothing disturbed it."""
    return DISTURBED if disturbed(*(results.get(key) or {} for key in TIMED)) else ""


def _speed(dense: Mapping[str, Any], after: Mapping[str, Any], where: str) -> str:
    """Measured where both were measured, and where; otherwise predicted, and called so."""
    for key, word in (("measured_ms", f"measured{where}"), ("predicted_ms", "predicted")):
        before, now = dense.get(key), after.get(key)
        if before and now:
            ratio = before / now
            pace = f"{ratio:.2g}x faster" if ratio >= 1 else f"{1 / ratio:.2g}x slower"
            return f"{pace} ({word}: {milliseconds(before)} → {milliseconds(now)} ms)"
    return ""


def _accuracy(dense: Mapping[str, Any], after: Mapping[str, Any], *, tuned: bool) -> str:
    before, now = dense.get("top1"), after.get("top1")
    if now is None:
        return ""
    change = f"{now:.1f} %" if before is None else f"{before:.1f} → {now:.1f} %"
    return f"top-1 {change}" + ("" if tuned else " before fine-tuning")


def _fewer(dense: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    words = []
    for key, noun in (("macs", "MACs"), ("params", "parameters")):
        if dense.get(key) and after.get(key) is not None:
            change = 100 * (1 - after[key] / dense[key])
            words.append(f"{abs(change):.0f} % {'fewer' if change >= 0 else 'more'} {noun}")
    return f"with {' and '.join(words)}" if words else ""
