"""Verify: the proof that a derived model computes what the gated one computed, and what it is worth.

Three comparisons in float64: the captured graph gated against sliced, node by node, with perturbed parameters; the
eager model gated against derived on the example inputs; and a negative control, one gate left out, which must show.
"""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from nas_prune.base.errors import ExactnessError, first_line
from nas_prune.derivation.derive import derive
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.intercept import plain_copy
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.brought import computed_tensors, untouched
from nas_prune.tracing.graph.capture import Inputs, arguments_of, call, each_tensor, evaluating, output_tensors
from nas_prune.tracing.oracle import DROPOUT, compare, in_float64, perturbed

TOLERANCE = 1e-9  # float64; 1e-6 would already hide an attention scale that is a few percent off
ROUNDED = 1e-6  # where the model's own code rounds to float32 on the way


@dataclass(frozen=True)
class Certificate:
    """What was compared, and the largest differences found.

    ``max_abs_error``: eager gated against eager derived, absolute, on the example inputs with the model's own weights.
    ``max_rel_error``: the same, relative to the output's magnitude. ``worst_node``, ``worst_node_error``: the node of
    the graph that differed most, relative. ``control_error``: what the comparison showed with one gate left out.
    ``tolerance``: what ``max_rel_error`` had to meet, 1e-6 if the model's own code rounds to float32, else 1e-9.

    >>> sorted(npr.verify(model, axes, arch, images).as_dict())[:3]
    ['control_error', 'dtype', 'max_abs_error']
    """

    max_abs_error: float
    max_rel_error: float
    worst_node: str
    worst_node_error: float
    nodes: int
    control_error: float
    tolerance: float = TOLERANCE
    dtype: str = "float64"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def verify(model: nn.Module, axes: Axes, arch: Arch, example_inputs: Inputs, *, seed: int = 0) -> Certificate:
    """Compare gated and derived; raise ExactnessError, naming the worst node, if they differ by more than 1e-9
    (1e-6 where the model's own code rounds to float32).

    ``model`` is left untouched, whatever the outcome. Of a decision that edits weights, give it the ``edited`` model.

    >>> proof = npr.verify(model, axes, npr.Arch.random(axes, keep=0.5), images)
    >>> proof.worst_node_error < proof.tolerance < proof.control_error
    True
    """
    double = plain_copy(model).double().eval().cpu()
    inputs = _doubled(double, axes, example_inputs)
    with _WithoutDropout(), nullcontext() if _runs(double, inputs) else _Precise():
        return _verified(double, axes, arch, inputs, seed)


def _runs(double: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether the code of a model runs in float64 as it is."""
    try:
        with torch.no_grad(), in_float64(), untouched(double):
            call(double, inputs)
    except RuntimeError:
        return False
    return True


def _verified(double: nn.Module, axes: Axes, arch: Arch, inputs: tuple[Any, ...], seed: int) -> Certificate:
    """The three comparisons of a model in float64."""
    state = perturbed(double, torch.Generator().manual_seed(seed))
    try:
        report = compare(axes, arch, state, inputs)
    except RuntimeError as error:
        what = f"the graph of {type(double).__name__} does not run in float64, so nothing can be compared"
        raise ExactnessError(f"{what}: {first_line(error)}") from error
    if not report.worst_error <= TOLERANCE:
        if isnan(report.worst_error):
            holding = [name for name, value in state.items() if value.isnan().any()]
            whence = f"{holding[0]} holds NaN" if holding else "weights a little off the model's own; use others"
            raise ExactnessError(
                f"node {report.worst_node} of the graph computes NaN, gated or not: nothing can be compared. It "
                f"comes from these example inputs and {whence}"
            )
        raise ExactnessError(
            f"gated and derived differ by {report.worst_error:.1e} at node {report.worst_node} of the graph; "
            f"nothing was changed. Please report the model; until then, freeze the axes of that module"
        )
    control = control_error(axes, arch, state, inputs)
    absolute, relative = _eager(double, axes, arch, inputs)
    double.load_state_dict(state)
    relative = max(relative, _eager(double, axes, arch, inputs)[1])
    tolerance = allowed(double, inputs, relative)
    if not relative <= tolerance:
        raise ExactnessError(
            f"the derived {type(double).__name__} differs from the gated one by {relative:.1e}, although its graph "
            f"does not: its code has an integer that was not repaired, or makes other calls than when it was traced. "
            f"Nothing was changed; freeze the axes concerned"
        )
    return Certificate(absolute, relative, report.worst_node, report.worst_error, report.nodes, control, tolerance)


def eager_error(model: nn.Module, axes: Axes, arch: Arch, example_inputs: Inputs) -> float:
    """Difference of the eager gated and the eager derived model in float64, relative to the output's magnitude."""
    double = plain_copy(model).double().eval().cpu()
    return _eager(double, axes, arch, _doubled(double, axes, example_inputs))[1]


def allowed(double: nn.Module, inputs: Inputs, error: float) -> float:
    """The tolerance for a model in float64: 1e-9, or 1e-6 if ``error`` is larger and its own code rounds to float32."""
    if error <= TOLERANCE:
        return TOLERANCE
    with torch.no_grad(), in_float64(), evaluating(double), _Rounding() as rounding:
        call(double, each_tensor(_double, inputs))
    return ROUNDED if rounding.seen else TOLERANCE


def _seeded(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """What a model returns; if it draws random numbers, always the same."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return output_tensors(call(model, inputs))


class _WithoutDropout(TorchFunctionMode):
    """Turns off the dropout that a model's own code leaves on in evaluation: two runs could not be compared."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.dropout, torch.dropout):
            return args[0]
        if func is F.scaled_dot_product_attention:
            if len(args) > DROPOUT:
                args = (*args[:DROPOUT], 0.0, *args[DROPOUT + 1 :])
            else:
                kwargs = {**(kwargs or {}), "dropout_p": 0.0}
        return func(*args, **(kwargs or {}))


class _Rounding(TorchFunctionMode):
    """Watches for code that turns float64 into float32."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = args[0].dtype if args and isinstance(args[0], Tensor) else None
        self.seen |= given == torch.float64 and isinstance(result, Tensor) and result.dtype == torch.float32
        return result


class _Precise(TorchFunctionMode):
    """Lets code that asks for float32, or holds tensors of it, have float64, where it could not run otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, named = tree_map_only((Tensor, torch.dtype), _precise, (tuple(args), kwargs or {}))
        precise: Any = Tensor.double if func is Tensor.float else func
        return precise(*given, **named)


def _precise(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype is torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


def _double(value: Tensor) -> Tensor:
    return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()


def _doubled(model: nn.Module, axes: Axes, inputs: Inputs) -> tuple[Any, ...]:
    """Example inputs in float64, as the arguments of ``forward``."""
    return each_tensor(_double, axes.walk.captured.batched(arguments_of(model, inputs)))


def control_error(axes: Axes, arch: Arch, state: Mapping[str, Tensor], inputs: Inputs) -> float:
    """Leave out one gate that closes something: the comparison must turn red, or it would not be a proof."""
    closing = [site for site in axes.walk.sites if axes.indices(site.term, arch) is not None]
    closing = [site for site in closing if len(axes.indices(site.term, arch)) < site.term.size]  # type: ignore[arg-type]
    if not closing:
        return 0.0
    middle = len(closing) // 2
    for missing in (
        *closing[middle:],
        *closing[:middle],
    ):  # behind a softmax over an axis, its next gate closes nothing
        error = compare(axes, arch, state, inputs, without=missing).worst_error
        if error > TOLERANCE:
            return error
    raise ExactnessError(
        f"the check is blind: without the gate of {axes.walk.where(closing[middle].node)}, or any other, it still "
        f"finds no difference. Use other example inputs (zeros cannot show anything)"
    )


def _eager(model: nn.Module, axes: Axes, arch: Arch, inputs: tuple[Any, ...]) -> tuple[float, float]:
    """(absolute, relative) difference of the eager models."""
    with in_float64():
        small = derive(model, axes, arch).eval()
    gated = GatedModel(copy.deepcopy(model, computed_tensors(model)), axes).eval()
    with torch.no_grad(), in_float64(), evaluating(gated), gated.fixed(arch):
        expected, got = (_seeded(each, inputs) for each in (gated, small))
    absolute = max(float((e - g).abs().max()) for e, g in zip(expected, got, strict=True))
    magnitude = max(float(e.abs().max()) for e in expected)
    return absolute, absolute / (1 + magnitude)
