"""Help that teaches: examples, and every key that a recipe may hold, made from the settings themselves."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

_EXAMPLES = """
Examples
  nas-prune {name} quickstart
  nas-prune {name} quickstart --out runs/small --budget.target=0.3x --search.joint 5
  nas-prune {name} fashion_mnist/resnet18_w_gates seed=1 model.name=resnet34
  nas-prune {name} my_recipe.yaml --gate.options="{{'threshold': 0.5}}" --no-model.pretrained

An override is written --key=value, --key value or key=value. `nas-prune list` shows which names there are.
A switch is also --key and --no-key. A recipe is a YAML file with these keys:
"""


class RecipeCommand(TyperCommand):
    """A command that takes a recipe: its help shows the keys too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual help, then examples and keys."""
        from nas_prune.run.recipe.recipe import recipe_keys

        super().format_help(ctx, formatter)
        _console().print(_EXAMPLES.format(name=self.name), markup=False, highlight=False)
        table((key.name, f"{key.description} ({key.kind}; {key.default})") for key in recipe_keys())


class ListCommand(TyperCommand):
    """The command that lists what there is: its help shows the kinds, too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual help, then the kinds."""
        from nas_prune.cli.list import listings

        super().format_help(ctx, formatter)
        _console().print(f"Kinds: {', '.join(listings())}", markup=False, highlight=False)


def table(rows: Iterable[tuple[str, str]]) -> None:
    """Two columns on standard output; the second one wraps at the width of a terminal, and never in a pipe."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column(overflow="fold")
    for name, about in rows:
        grid.add_row(Text(name), Text(about))
    _console().print(grid)


def figures(results: Mapping[str, Any], prefix: str = "") -> None:
    """Results, one line each; those inside others by dotted names."""
    for name, value in results.items():
        if isinstance(value, Mapping):
            figures(value, f"{prefix}{name}.")
        else:
            typer.echo(f"{prefix}{name}: {f'{value:.4g}' if isinstance(value, float) else value}")


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=1000, soft_wrap=True)
