"""``nas-prune compare``: methods side by side, from one dense network, at the same cost, in the same epochs."""

import shlex
import sys
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLE = (
    "Example: nas-prune compare fashion_mnist/resnet18_taylor --methods taylor,w_gates,uniform_from_scratch "
    "--targets 0.5x,0.25x --seeds 3 --out runs/compare"
)


@dataclass(frozen=True)
class CompareOptions:
    """Methods side by side: from one dense network, at the same cost, in the same epochs.

    The recipe says model, data, budget, and how each stage trains; a method
    changes what makes it a method (`nas-prune list methods`). Stopped, the
    same command goes on where it was. A method that recipe or model have
    something against is told before anything is trained: one that is named
    ends the command, of all it fails and the others run. A budget that a
    method misses, or cannot meet, is a result; the exit code is 1 where a
    method failed.
    """

    words: Annotated[
        list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...", help="a recipe's name or file, and overrides")
    ]
    methods: Annotated[str, typer.Option(help="methods, e.g. taylor,w_gates,uniform_from_scratch; or all")]
    out: Annotated[Path, typer.Option("--out", help="folder for all runs, cells.jsonl and comparison.md")]
    targets: Annotated[str, typer.Option(help="targets of the budget, e.g. 0.5x,0.25x")] = "0.5x"
    seeds: Annotated[int, typer.Option(min=1, help="so many seeds: 0, 1, ...")] = 3
    allowance: Annotated[
        int, typer.Option(min=0, help="epochs that controls train longer, for searches that cost as much")
    ] = 0
    more: Annotated[list[Path] | None, typer.Option("--more", help="a YAML file of further methods")] = None
    again: Annotated[bool, typer.Option("--again", help="try cells that have failed once more")] = False


@wraps(CompareOptions)
def command(**options: Any) -> None:
    """Run it, and tell."""
    from rich.console import Console

    from nas_prune.cli.asked import asked
    from nas_prune.run.compare import methods, page
    from nas_prune.run.compare.compare import compare
    from nas_prune.run.compare.plan import Plan
    from nas_prune.run.compare.sections import sections

    given = CompareOptions(**options)
    names, targets = _listed(given.methods), _listed(given.targets)
    chosen, every = methods.chosen(names, methods.methods(given.more or [])), methods.EVERY in names
    plan = Plan(asked(given.words), chosen, targets, range(given.seeds), given.out, given.allowance, every)
    rows = compare(plan, typer.echo, again=given.again)
    found = sections(rows, plan)
    for table in page.tables(found):
        Console().print(table)
    command_line = shlex.join(["nas-prune", *sys.argv[1:]])
    written = page.save(found, plan, command_line)
    typer.echo(f"folder: {given.out}, {', '.join(path.name for path in written)}")
    if any(row.status == "failed" for row in rows):
        raise typer.Exit(1)


def _listed(text: str) -> list[str]:
    """The words of a list, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
