"""``nas-prune doctor``: what of a model can shrink, what cannot and why, and what there is to gain on this machine."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from yaml import YAMLError

from nas_prune.base.errors import DeriveError, NasPruneError
from nas_prune.base.files.whole import atomic_write, finite, write_json
from nas_prune.base.files.yaml_text import dump, parse
from nas_prune.run.report.summary import milliseconds, quantity
from nas_prune.run.report.terminal import terminal_table, texts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from nas_prune.cli.doctor import diagnosis as doctor
    from nas_prune.cli.doctor.bottlenecks import Report
    from nas_prune.cli.doctor.diagnosis import Cost, Diagnosis
    from nas_prune.tracing.space import SearchSpace

_BLOCK = re.compile(r"(.*\.)?(\d+|\w*\{[\d,-]+\})(?=\.|$)")  # a name up to its last whole number

EXAMPLES = """Examples

nas-prune doctor resnet18

nas-prune doctor vit_tiny_patch16_224 --img-size 64 --space heads_and_hidden

nas-prune doctor fashion_mnist/resnet18_w_gates --set num_classes=5

nas-prune doctor runs/quickstart/finetuned --json facts.json

nas-prune doctor resnet18 --axis layer1.0.conv1

nas-prune doctor runs/resnet18_sosp --bottlenecks --widen wider.yaml
"""


@dataclass(frozen=True)
class DoctorOptions:
    """Show what of a model can shrink, what cannot and why, and how much.

    Lists the axes, like ones of like blocks as one (blocks.{0-11}.mlp.fc1),
    with the sizes that a search space allows; the reasons why others are
    frozen; and what the dense model and the smallest one cost, which is
    derived and timed on this machine. If nothing can be pruned, that is an
    error that says why.

    --bottlenecks looks at the folder of a run instead: which layers its search
    has left almost whole, and so hold the network up.
    """

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a model of timm, the folder of a derived model, or a recipe")
    ]
    img_size: Annotated[
        int | None, typer.Option(min=1, help="side of the images in pixels, in place of the model's own")
    ] = None
    space: Annotated[
        str | None, typer.Option(metavar="NAME", help="search space; that of the recipe, or channels, if left out")
    ] = None
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="an argument of timm.create_model")
    ] = None
    runtime: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="runtime to measure in, eager if left out; may be repeated")
    ] = None
    to_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE|-", help="write all facts as JSON too; - prints them instead")
    ] = None
    axis: Annotated[str | None, typer.Option(metavar="NAME", help="show this axis in full, and nothing else")] = None
    bottlenecks: Annotated[
        bool, typer.Option("--bottlenecks", help="MODEL is the folder of a run: show what share of each layer has gone")
    ] = False
    widen: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="with --bottlenecks: write a search space that gives them twice the units"),
    ] = None


@wraps(DoctorOptions)
def command(**options: Any) -> None:
    """Run ``nas-prune doctor``: print what of a model can shrink, what cannot and why, or one axis of it in full."""
    from nas_prune.cli.doctor import diagnosis as doctor
    from nas_prune.cli.doctor import subject

    asked = DoctorOptions(**options)
    if asked.bottlenecks or asked.widen is not None:
        _show_bottlenecks(asked)
        return
    settings = _settings(asked.settings or ())
    found = subject.find(asked.model, img_size=asked.img_size, space=asked.space, settings=settings)
    space = doctor.lay(found)
    if asked.axis is not None:
        axis = doctor.one(space, asked.axis)
        _tell(asked.to_json, axis, _axis(axis))
        return
    diagnosis = doctor.examine(found, space, runtimes=asked.runtime or ["eager"])
    _tell(asked.to_json, doctor.plain(diagnosis), _page(diagnosis))
    if diagnosis.failure is not None:
        raise DeriveError(diagnosis.failure)


def _show_bottlenecks(asked: DoctorOptions) -> None:
    """Print what share of each layer a run has taken away; write a search space that widens the bottlenecks."""
    from nas_prune.cli.doctor import bottlenecks

    idle = [name for name in ("img_size", "space", "settings", "runtime", "axis") if getattr(asked, name)]
    if idle:
        name = {"img_size": "img-size", "settings": "set"}.get(idle[0], idle[0])
        raise NasPruneError(f"--bottlenecks looks at what a run has left, as it was: leave out --{name}")
    report = bottlenecks.Report.of(Path(asked.model))
    wider = report.widened() if asked.widen is not None else None
    _tell(asked.to_json, bottlenecks.plain(report), _layers(report))
    if asked.widen is not None and wider is not None:
        atomic_write(asked.widen, dump(wider.model_dump(exclude_defaults=True)))


def _layers(report: "Report") -> "Iterable[RenderableType]":
    """A row per layer, those of which least has gone first."""
    from rich.text import Text

    table = terminal_table("layer", "kind", "#units", "#kept", "#gone", "", title="What a search has taken away")
    for layer in report.layers:
        mark = "bottleneck" if layer.axis.name in report.bottlenecks else ""
        table.add_row(*texts(layer.axis.name, layer.axis.kind, layer.axis.size, layer.kept, f"{layer.gone:.0%}", mark))
    yield table
    yield Text("Of a bottleneck, less than half of the median share over all layers has gone.")


def _settings(pairs: Iterable[str]) -> dict[str, Any]:
    """``key=value`` as arguments; values are YAML."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise NasPruneError(f"--set {pair} has no value; write --set {pair}=VALUE")
        try:
            settings[key] = parse(value)
        except YAMLError as error:
            raise NasPruneError(
                f"--set {pair}: cannot read {value!r}; write a YAML value, such as 3 or [1, 2]"
            ) from error
    return settings


def _tell(target: Path | None, facts: Mapping[str, Any], page: "Iterable[RenderableType]") -> None:
    """The page on the terminal, the facts in a file; or the facts instead of the page."""
    from rich.console import Console

    if target == Path("-"):
        typer.echo(json.dumps(finite(facts), indent=2))
        return
    for part in page:
        Console().print(part)
    if target is not None:
        write_json(target, facts)


def _page(found: "Diagnosis") -> "Iterable[RenderableType]":
    from rich.text import Text

    subject = found.subject
    size = "x".join(map(str, subject.image))
    yield Text(f"{subject.name}, images of {size}, search space {found.space.name}", style="bold")
    if subject.note:
        yield Text(f"Note: {subject.note}")
    yield from _axes(found.space)
    yield _kinds(found.space)
    yield from _costs(found)


def _axes(space: "SearchSpace") -> "Iterable[RenderableType]":
    """The axes that can shrink, and the reasons why others cannot."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from nas_prune.base.folding import fold
    from nas_prune.cli.doctor.diagnosis import frozen, groups

    free = terminal_table(
        "axis, and what it runs through", "#axes", "kind", "#units", "sizes", title="Axes that can shrink"
    )
    for group in groups(space):
        if group.frozen is None:
            name, *figures = texts(group.name, len(group.names), group.kind, group.size, group.sizes)
            through = Text(_through(group), style="dim")
            free.add_row(Group(name, Padding(through, (0, 0, 0, 2))), *figures)
    yield free
    reasons = frozen(space.axes.values())
    if reasons:
        still = terminal_table("reason", "#axes", "which", title="Frozen axes")
        for reason, names in reasons.items():
            still.add_row(*texts(reason, len(names), ", ".join(fold(names))))
        yield still


def _through(group: "doctor.Group") -> str:
    """How many tensor dimensions an axis runs through, and the first tensors, … for the block of the axis."""
    least, most = group.members
    block = _BLOCK.match(group.name)
    tensors = [tensor.replace(f"{block[0]}.", "…", 1) if block else tensor for tensor in group.tensors]
    more = ", ..." if most > len(tensors) else ""
    return f"{least if least == most else f'{least} to {most}'}: {', '.join(tensors)}{more}"


def _kinds(space: "SearchSpace") -> "Table":
    from nas_prune.cli.doctor.diagnosis import kinds

    table = terminal_table("kind", "#can shrink", "#frozen", "#units", title="Axes by kind")
    for kind, row in kinds(space).items():
        table.add_row(*texts(kind, row["free"], row["frozen"], row["units"]))
    return table


def _costs(found: "Diagnosis") -> "Iterable[RenderableType]":
    """The dense model and the smallest one; what is measured says so."""
    from rich.text import Text

    table = terminal_table(
        "model", "#parameters", "#MACs", *(f"#{name}, ms" for name in found.dense.timings), title="Cost"
    )
    table.add_row(*texts("dense", *_cells(found.dense, found.dense)))
    table.add_row(*texts("smallest", *_cells(found.smallest, found.dense)))
    yield table
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    yield Text(
        "… is the block of the axis. The smallest model has every axis at its least size"
        + ("" if found.failure is None else "; it could not be derived, its counts come from the graph")
        + f". Counts are for one image. Milliseconds: median ± half the interquartile range, measured in turn on this "
        f"machine ({threads}, {found.device['processor']})."
    )


def _cells(cost: "Cost", dense: "Cost") -> Iterable[str]:
    """Counts and milliseconds, and which share of the dense model's they are."""
    yield quantity(cost.counted.params) + _share(cost.counted.params, dense.counted.params)
    yield quantity(cost.counted.macs) + _share(cost.counted.macs, dense.counted.macs)
    for runtime, whole in dense.timings.items():
        timing = cost.timings.get(runtime)
        if timing is None:
            yield "not derived"
        else:
            text = milliseconds(timing.median_ms)
            spread = f"{timing.spread_ms:.{len(text.partition('.')[2])}f}"
            yield f"{text} ± {spread}{_share(timing.median_ms, whole.median_ms)}"


def _share(value: float, whole: float) -> str:
    return "" if value == whole else f"\n{value / whole:.2g}x"


def _axis(axis: Mapping[str, Any]) -> "Iterable[RenderableType]":
    """One axis with all its members."""
    from rich.text import Text

    yield Text(f"{axis['name']}: {axis['kind']}, {axis['size']} units", style="bold")
    yield Text(f"frozen: {axis['frozen']}" if axis["frozen"] else f"sizes: {axis['sizes']}")
    table = terminal_table("tensor", "#dimension", "role", title="Members")
    for member in axis["members"]:
        table.add_row(*texts(member["tensor"], member["dim"], member["role"]))
    yield table
