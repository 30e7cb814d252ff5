"""The parameters of a sweep file: flat names, values to try each with, and how many combinations a grid has."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

JOINT = "/"  # between the names of nested parameters; W&B allows no such character in a name
REQUIRED: dict[str, tuple[str, ...]] = {  # distribution -> the keys that it needs
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    **dict.fromkeys(("int_uniform", "uniform", "q_uniform", "log_uniform", "q_log_uniform"), ("min", "max")),
    **dict.fromkeys(("log_uniform_values", "q_log_uniform_values"), ("min", "max")),
    **dict.fromkeys(("inv_log_uniform", "inv_log_uniform_values"), ("min", "max")),
    **dict.fromkeys(("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"), ()),
}
NUMBERS = ("min", "max", "mu", "sigma", "q", "a", "b")
KEYS = ("value", "values", "probabilities", "distribution", "parameters", *NUMBERS)
EXPONENTS = ("log_uniform", "q_log_uniform", "inv_log_uniform")  # their min and max are natural logarithms
FINITE = ("constant", "categorical", "int_uniform", "q_uniform")  # what a grid can be made of

Parameter = Mapping[str, Any]


def flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flat name -> parameter; what is nested is joined by a stroke: ``search/joint``."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        inner = parameter.get("parameters") if isinstance(parameter, Mapping) else None
        if isinstance(inner, Mapping) and inner:
            found |= flat(inner, f"{prefix}{name}{JOINT}")
        else:
            found[f"{prefix}{name}"] = parameter
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by flat names as the agent is given them: nested ones are a mapping under their first name."""
    given: dict[str, Any] = {}
    for name, value in values.items():
        here, (*above, last) = given, name.split(JOINT)
        for part in above:
            here = here.setdefault(part, {})
        here[last] = value
    return given


def dotted(name: str) -> str:
    """The key of a recipe that a flat name sets."""
    return name.replace(JOINT, ".")


def distribution(parameter: Parameter) -> str:
    """What W&B takes a parameter for."""
    if "distribution" in parameter:
        return str(parameter["distribution"])
    if "value" in parameter:
        return "constant"
    if "values" in parameter:
        return "categorical_w_probabilities" if "probabilities" in parameter else "categorical"
    whole = all(type(parameter.get(end)) is int for end in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def problems(parameter: Any) -> Iterator[str]:
    """What is wrong with the form of one parameter, and what to write."""
    if not isinstance(parameter, Mapping):
        yield f"it is {parameter!r}; write a mapping, such as {{value: {parameter!r}}} or {{values: [...]}}"
        return
    unknown = [str(key) for key in parameter if key not in KEYS]
    if unknown:
        yield f"it has no key {', '.join(unknown)}; there is: {', '.join(KEYS)}"
    texts = [key for key in NUMBERS if isinstance(parameter.get(key), str)]
    for key in texts:
        yield f"{key} {parameter[key]} is text to W&B, whose YAML wants a point there: {_pointed(parameter[key])}"
    odd = [key for key in NUMBERS if key in parameter and key not in texts and not _is_number(parameter[key])]
    for key in odd:
        yield f"{key} is {parameter[key]!r}; write a number"
    kind = distribution(parameter)
    if kind not in REQUIRED:
        yield f"W&B has no distribution {kind!r}; there is: {', '.join(REQUIRED)}"
        return
    missing = [key for key in REQUIRED[kind] if key not in parameter]
    if missing:
        yield f"{', '.join(missing)} is missing; write value, values, or min and max"
    elif not texts and not odd:
        yield from _wrong_numbers(kind, parameter)


def _wrong_numbers(kind: str, parameter: Parameter) -> Iterator[str]:
    """Values that are none, an empty range, weights that do not add up, and exponents that are taken for values."""
    if "values" in REQUIRED[kind] and not (isinstance(parameter["values"], list) and parameter["values"]):
        yield "values is no list of values; write values: [...]"
    elif kind == "categorical_w_probabilities":
        weights = parameter["probabilities"]
        numbers = isinstance(weights, list) and all(map(_is_number, weights))
        if not numbers or len(weights) != len(parameter["values"]) or not math.isclose(sum(weights), 1, abs_tol=1e-8):
            yield "probabilities must be as many as values, and add up to 1"
    if parameter.get("q", 1) <= 0 or parameter.get("sigma", 1) < 0:
        yield "q must be above 0, and sigma not below it"
    if "min" not in REQUIRED[kind]:
        return
    low, high = parameter["min"], parameter["max"]
    if low >= high:
        yield f"min {low} is not below max {high}"
    elif kind.endswith("_values") and low <= 0:
        yield f"min {low} has no logarithm; it must be above 0"
    elif kind in EXPONENTS and low > 0:
        least, most = _exponential(low), _exponential(high)
        yield (
            f"min and max of {kind} are natural logarithms: this is {least:.4g} to {most:.4g}; write distribution: "
            f"{kind}_values for {low} to {high}"
        )


def trials(parameter: Parameter) -> list[Any]:
    """Values to try a well-formed parameter with: all of a list, the ends and the middle of a range."""
    kind = distribution(parameter)
    if kind == "constant":
        return [parameter["value"]]
    if "values" in parameter:
        return list(parameter["values"])
    if "normal" in kind:
        middle, width = parameter.get("mu", 0.0), parameter.get("sigma", 1.0)
        ends = [middle - 2 * width, middle, middle + 2 * width]
        return [_stepped(_exponential(end) if "log" in kind else end, parameter) for end in ends]
    if "beta" in kind:
        return [_stepped(value, parameter) for value in (0.02, 0.5, 0.98)]
    low, high = parameter["min"], parameter["max"]
    if kind in EXPONENTS:
        low, high = _exponential(low), _exponential(high)
    if kind == "int_uniform":
        return [low, (low + high) // 2, high]
    if kind == "q_uniform" or kind.startswith("q_"):
        return [_stepped(low, parameter), _stepped(high, parameter)]
    return [float(low), low + 0.37 * (high - low), float(high)]


def grid_size(parameters: Mapping[str, Parameter]) -> int:
    """How many combinations a grid of well-formed parameters has."""
    return math.prod(len(grid_values(parameter)) for parameter in parameters.values())


def grid_values(parameter: Parameter) -> list[Any] | range:
    """What a grid takes of a parameter."""
    kind = distribution(parameter)
    if kind == "int_uniform":
        return range(parameter["min"], parameter["max"] + 1)
    if kind == "q_uniform":
        return range(max(1, math.ceil((parameter["max"] - parameter["min"]) / parameter.get("q", 1))))
    values = trials(parameter)
    return [value for place, value in enumerate(values) if repr(value) not in map(repr, values[:place])]


def _stepped(value: float, parameter: Parameter) -> float | int:
    """A value in steps of q, whole where q is."""
    if not str(parameter.get("distribution", "")).startswith("q_"):
        return value
    step: float | int = parameter.get("q", 1.0)
    return round(value / step) * step


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _exponential(value: float) -> float:
    return math.exp(min(value, 700.0))


def _pointed(text: str) -> str:
    """1e-3 as YAML 1.1 reads it as a number: 1.0e-3."""
    mantissa, letter, exponent = text.lower().partition("e")
    sign = "" if exponent[:1] in ("-", "+") else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{letter}{sign if letter else ''}{exponent}"
