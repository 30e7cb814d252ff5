"""What a recipe can name, as ``nas-prune list`` shows it."""

import inspect
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from nas_prune.base.errors import NasPruneError, SpaceError, UnknownNameError, shown
from nas_prune.base.files.shipped import shipped
from nas_prune.base.files.yaml_text import read_mapping
from nas_prune.base.registry import MODELS, Registry, hint
from nas_prune.cli.sweep.file import sweeps
from nas_prune.run.recipe.recipe import recipes

NamedRows = list[tuple[str, str]]


def listings() -> dict[str, Callable[[], NamedRows]]:
    """Kind -> its names, each with one line about it."""
    return {
        "recipes": lambda: [(name, _first_comment(path)) for name, path in recipes().items()],
        "sweeps": lambda: [(name, _first_comment(path)) for name, path in sweeps().items()],
        "methods": _methods,
        "spaces": _spaces,
        "operations": _operations,
        "gates": lambda: _parts("gates", "methods.gates"),
        "penalties": lambda: _parts("penalties", "methods.penalties"),
        "movers": lambda: _parts("movers", "methods.movers"),
        "schedules": lambda: _parts("schedules", "methods.schedules"),
        "losses": lambda: _parts("losses", "methods.losses"),
        "criteria": lambda: _parts("criteria", "methods.criteria"),
        "selectors": lambda: _parts("selectors", "methods.selectors"),
        "compensations": lambda: _parts("compensations", "methods.compensations"),
        "costs": lambda: _parts("costs", "costs"),
        "predictors": lambda: _parts("predictors", "costs"),
        "datasets": _datasets,
        "models": lambda: _models(""),
    }


def listing(kind: str, pattern: str | None = None) -> NamedRows:
    """The names of one kind; models can be narrowed by a pattern."""
    known = listings()
    if kind not in known:
        raise UnknownNameError(f"cannot list {shown(kind)}{hint(kind, known)}")
    if pattern is None:
        return known[kind]()
    if kind != "models":
        raise NasPruneError(f"a pattern narrows models only; leave out {pattern!r}")
    return _models(pattern)


def _parts(kind: str, package: str) -> NamedRows:
    """The registry of a kind of part: each part with its idea, its options, what it costs, and its paper."""
    found: Registry[Any] = getattr(import_module(f"nas_prune.{package}"), kind)
    told = {name: _told(name, part) for name, part in found.items()}
    options = {name: _options(part) if kind != "costs" else "" for name, part in found.items()}  # a budget has none
    return [(name, f"{_idea(text)}{options[name]}{_cost(text)}{_paper(text)}") for name, text in told.items()]


def _options(part: Callable[..., object]) -> str:
    keyword = [p for p in inspect.signature(part).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    told = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in keyword)
    return f" Options: {', '.join(told)}." if keyword else ""


def _told(name: str, part: object) -> str:
    """What says what a part is: its own docstring, where that begins with its name, or that of its file."""
    own = inspect.getdoc(part) or ""
    if re.match(rf"{re.escape(name)}( \(.*?\))?: ", own, re.IGNORECASE):
        return own
    module = inspect.getmodule(part)
    return (inspect.getdoc(module) or "") if module else ""


def _idea(told: str) -> str:
    """The first line, which states the idea."""
    return told.split("\n")[0]


def _cost(told: str) -> str:
    """What is said of the cost."""
    found = re.search(r"^Cost: .*?\.$", told, re.MULTILINE | re.DOTALL)
    return f" {' '.join(found[0].split())}" if found else ""


def _paper(told: str) -> str:
    """The first paper that is named, unless the first line does."""
    found = re.search(r"arXiv\s*(\d{4}\.\d{4,5})", told)
    return f" arXiv {found[1]}." if found and found[0] not in told.split("\n")[0] else ""


def _first_comment(path: Path) -> str:
    """The first comment of a YAML file that says something; editors' directives do not."""
    lines = [
        line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    return next((line for line in lines if line and not line.startswith("yaml-language-server")), "")


def _methods() -> NamedRows:
    """What `nas-prune compare` puts side by side."""
    from nas_prune.run.compare.methods import methods

    return [(name, f"{'Control: ' * each.control}{each.about}.") for name, each in methods().items()]


def _spaces() -> NamedRows:
    files = sorted(shipped("search_spaces").glob("*.yaml"))
    return [(path.stem, str(read_mapping(path, SpaceError).get("description", ""))) for path in files]


def _operations() -> NamedRows:
    """What `replace:` rules can name: the operations that can be made like a module, and what they can be told."""
    from nas_prune.ops import operations

    can = {name: kind for name, kind in operations.items() if kind.like.__qualname__ != "Operation.like"}
    return [(name, f"{_first(kind)} {_first(kind.like)}") for name, kind in can.items()]


def _first(part: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(part) or "").split("\n")[0]


def _datasets() -> NamedRows:
    from nas_prune.train.data.loaders import datasets

    return list(datasets().items())


def _models(pattern: str) -> NamedRows:
    import timm

    found = timm.list_models(pattern)
    if not found:
        raise UnknownNameError(
            f"no timm model matches {shown(pattern)}{hint(pattern.strip('*'), timm.list_models(), MODELS)}"
        )
    return [(name, "") for name in found]
