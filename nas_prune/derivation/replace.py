"""Put choices of candidate operations where the ``replace:`` rules of a search space want them, before tracing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from nas_prune.base.errors import SpaceError, one_line
from nas_prune.base.plain import is_plain
from nas_prune.derivation.trace import trace
from nas_prune.derivation.widening import unwidenable, widen
from nas_prune.ops import Choice
from nas_prune.tracing import Axes
from nas_prune.tracing.space import Replacement, SearchSpace, read_file


def laid_out(model: nn.Module, example_inputs: Tensor, name: str) -> SearchSpace:
    """The search space of that name or file over a model, which gets the choices and units that the space asks for.

    Raises SpaceError where space and model do not fit.
    """
    file = read_file(name)
    axes = traced(model, example_inputs, file.replace, stripes=file.stripes)
    sizes = {axis: size for axis, size in file.wider(axes).items() if unwidenable(axes, axis, size) is None}
    if not sizes and file.wider(axes):
        raise SpaceError(f"search space {name} widens no axis: all that it names are looked at together, or frozen")
    if sizes:
        widen(model, axes, sizes)
        wide = trace(model, example_inputs, stripes=file.stripes)
        given = {axis: replace(wide[axis], given=axes[axis].size) for axis in sizes}
        axes = replace(wide, named={**wide.named, **given})
    return SearchSpace.read(name, axes)


def traced(model: nn.Module, example_inputs: Tensor, rules: Sequence[Replacement], *, stripes: bool) -> Axes:
    """The axes of a model that gets the choices that rules ask for; with those of stripes, or without."""
    substitute(model, rules)
    return trace(model, example_inputs, stripes=stripes)


def substitute(model: nn.Module, rules: Sequence[Replacement]) -> list[str]:
    """Replace modules in place, by the last rule that matches; returns their paths.

    The first candidate is the one that the dense network has. Raises SpaceError where no rule matches a module.
    """
    found: dict[str, Replacement] = {}
    for rule in rules:
        found |= {path: rule for path, module in model.named_modules() if _about(rule, path, module)}
    if rules and not found:
        patterns = ", ".join(f"{rule.type} {rule.match}" for rule in rules)
        raise SpaceError(
            f"`replace` matches no module of {type(model).__name__}: {one_line(patterns)}; see its named_modules()"
        )
    for path, rule in found.items():
        model.set_submodule(path, Choice.like(model.get_submodule(path), candidates=rule.candidates))
    return list(found)


def _about(rule: Replacement, path: str, module: nn.Module) -> bool:
    """Whether a rule is about a module."""
    patterns = [rule.match] if isinstance(rule.match, str) else rule.match
    named = type(module).__name__ == rule.type and any(fnmatchcase(path, pattern) for pattern in patterns)
    own = {key: getattr(module, key, None) for key in rule.only} if named else {}
    return named and all(is_plain(own[key]) and _plain(own[key]) == _plain(value) for key, value in rule.only.items())


def _plain(value: Any) -> Any:
    """Tuples and lists alike."""
    return list(value) if isinstance(value, tuple | list) else dict(value) if isinstance(value, Mapping) else value
