"""A sweep file as W&B reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from nas_prune.base.errors import RecipeError, one_line
from nas_prune.base.files.shipped import shipped
from nas_prune.base.files.yaml_text import read_mapping
from nas_prune.base.registry import hint
from nas_prune.cli.sweep import command_line
from nas_prune.cli.sweep.command_line import OurCommand
from nas_prune.cli.sweep.parameters import distribution, flat, grid_size, nested

SCORE = "sweep/score"  # what a sweep is to maximise
Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Sweep:
    """A sweep: what the file says, in W&B's words, and where it was read."""

    path: Path
    content: Mapping[str, Any]

    @property
    def method(self) -> str:
        """grid, random or bayes."""
        return str(self.content.get("method"))

    @property
    def metric(self) -> str:
        """The name of what is optimised."""
        metric = self.content.get("metric")
        return str(metric.get("name", SCORE)) if isinstance(metric, Mapping) else SCORE

    @property
    def goal(self) -> Goal:
        """Which way it is optimised; W&B minimises where the metric does not say."""
        metric = self.content.get("metric")
        given = metric.get("goal", "minimize") if isinstance(metric, Mapping) else "maximize"
        return "maximize" if given == "maximize" else "minimize"

    @property
    def parameters(self) -> dict[str, Any]:
        """Flat name -> parameter."""
        found = self.content.get("parameters")
        return flat(found) if isinstance(found, Mapping) else {}

    @property
    def command(self) -> Sequence[Any]:
        """The command, or the one that W&B has where none is given."""
        found = self.content.get("command")
        return found if isinstance(found, list) and found else command_line.DEFAULT

    @property
    def program(self) -> str | None:
        """The program that ``${program}`` stands for."""
        found = self.content.get("program")
        return None if found is None else str(found)

    @property
    def ours(self) -> OurCommand | None:
        """What the command does with nas-prune; None where it starts something else."""
        return command_line.ours(self.command, self.program)

    @property
    def size(self) -> int | None:
        """How many runs the sweep has by itself; None where it never ends."""
        cap = self.content.get("run_cap")
        grid = grid_size(self.parameters) if self.method == "grid" else None
        return min((each for each in (cap, grid) if isinstance(each, int)), default=None)

    @property
    def varying(self) -> list[str]:
        """The flat names of what differs between runs."""
        return [name for name, each in self.parameters.items() if distribution(each) != "constant"]

    def argv(self, values: Mapping[str, Any]) -> list[str]:
        """The words that the agent would execute for a run with these values, by flat names."""
        return command_line.expanded(self.command, self.program, nested(values))

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Our own words among them, from the command (``run``) on; none where the command is not ours."""
        words = self.argv(values)
        known = command_line.ours(words, self.program)
        return words[len(known.launcher) :] if known else []


def read(name_or_path: str) -> Sweep:
    """The sweep in that file, or the shipped one of that name."""
    path = Path(name_or_path)
    known = sweeps()
    if not path.is_file() and name_or_path.removeprefix("sweeps/") in known:
        path = known[name_or_path.removeprefix("sweeps/")]
    if not path.is_file():
        raise RecipeError(f"there is no sweep file {one_line(name_or_path)}{hint(name_or_path, known)}")
    read_mapping(path, RecipeError)  # small, and no key is given twice
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # W&B's YAML, in which 1e-3 is text
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path} is not valid YAML as W&B reads it: {one_line(str(error), 200)}") from error
    return Sweep(path, content)


def sweeps() -> dict[str, Path]:
    """Every packaged sweep: name -> file."""
    return {path.stem: path for path in sorted((shipped("recipes") / "sweeps").glob("*.yaml"))}
