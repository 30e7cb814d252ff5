"""Derive: make an architecture real. The result is an ordinary, smaller copy of the model, and nothing of the search.

Five steps, all read off the record of the trace: keep the attention scale of the dense model; let code that computes a
width from its input ask for -1 instead; slice every parameter and buffer; set the integers that modules keep about
their widths (``num_heads``, ``groups``, ``normalized_shape`` ...) to what the graph says they became; take out the
branches that are closed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.base.errors import ArchError, DeriveError
from nas_prune.derivation.attention_scale import keep_scales
from nas_prune.derivation.closed_branches import remove
from nas_prune.derivation.computed_scales import GivenNumbers, Numbers, keep_dense
from nas_prune.derivation.integers import repair
from nas_prune.derivation.source.edits import edits_of, rewrite
from nas_prune.derivation.timm_facts import run_and_describe
from nas_prune.methods.intercept import plain_copy
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.capture import Captured, each_tensor, evaluating
from nas_prune.tracing.graph.multihead import close_up


def derive(model: nn.Module, axes: Axes, arch: Arch, *, edits: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A smaller copy of ``model`` that keeps the units of ``arch``; ``model`` itself is left untouched.

    ``edits``: name of a parameter or buffer -> values of its dense shape, which take the place of its own first.
    Raises ArchError if the architecture or an edit does not fit, DeriveError if the model's own code cannot express it.

    >>> half = npr.derive(model, axes, npr.Arch({"conv1.6": range(16)}))
    >>> half.conv1[6], model.conv1[6]
    (Conv2d(16, 16, ...), Conv2d(16, 32, ...))
    """
    arch.check(axes)
    small = edited(model, edits or {})
    shrink(small, axes, arch)
    keep_dense(small, axes, arch, _numbers(model, small, axes.walk.captured))
    close_up(small)
    return small


def _numbers(model: nn.Module, small: nn.Module, captured: Captured) -> list[GivenNumbers]:
    """The numbers that a smaller model computes with. Raises DeriveError if it does not run."""
    numbers = Numbers()
    try:
        with numbers:
            run_once(small, captured)
    except Exception as error:
        if not captured.counted:  # tensors without numbers cannot tell that there is no third image of one
            return _numbers(model, small, replace(captured, counted=True))
        _check_runs(model, captured)
        raise DeriveError(
            f"the code of {type(model).__name__} cannot run with these widths: {error}. "
            f"Freeze the axes of the module named there"
        ) from error
    return numbers.found


def _check_runs(model: nn.Module, captured: Captured) -> None:
    """Raise DeriveError if the dense model does not run itself."""
    try:
        run_once(plain_copy(model), captured)
    except Exception as error:
        raise DeriveError(
            f"{type(model).__name__} itself, with all its units, does not run on zeros like its example inputs "
            f"in {next(model.parameters(), torch.empty(0)).dtype}: {error}"
        ) from error


def edited(model: nn.Module, edits: Mapping[str, Tensor]) -> nn.Module:
    """A plain copy of the model with these new values."""
    copied = plain_copy(model)
    edit(copied, edits)
    return copied


def edit(model: nn.Module, edits: Mapping[str, Tensor]) -> None:
    """Put new values into parameters and buffers, in place. Raises ArchError, and changes nothing, where one does not
    fit, and where one is not finite.
    """
    state = model.state_dict(keep_vars=True)
    for name, value in edits.items():
        if name not in state or state[name].shape != value.shape or not bool(value.isfinite().all()):
            own = tuple(state[name].shape) if name in state else "no tensor of that name"
            finite = "finite" if bool(value.isfinite().all()) else "not finite"
            raise ArchError(
                f"an edit of {name} has the shape {tuple(value.shape)} and is {finite}; the model has {own}"
            )
    with torch.no_grad():
        for name, value in edits.items():
            state[name].copy_(value)


def shrink(model: nn.Module, axes: Axes, arch: Arch) -> None:
    """Make a copy of the traced model smaller, in place. Raises DeriveError where an attention scale cannot be kept."""
    keep_scales(model, axes, arch)
    rewrite(model, edits_of(model, axes))
    replaced(model, axes, lambda name, tensor: axes.take(tensor, axes.tensors[name], arch))
    repair(model, axes, arch)
    remove(model, axes, arch)


def run_once(model: nn.Module, captured: Captured, training: Iterable[str] = ()) -> None:
    """Run a model on zeros of the traced shapes: shapes that its code cannot express show here, as any exception.

    On one image, where the code does not say how many there are.
    ``training``: paths of modules that run in training mode.
    """
    inputs = zero_inputs(model, captured, single=not captured.counted)
    with evaluating(model):
        for path in training:
            model.get_submodule(path).training = True
        run_and_describe(model, inputs)


def zero_inputs(model: nn.Module, captured: Captured, *, single: bool) -> tuple[Any, ...]:
    """Zeros of the traced shapes, where and as precise as the model is; ``single``: of one image."""
    like, given = next(model.parameters(), torch.empty(0)), captured.inputs
    batch = len(given[0]) if isinstance(given[0], Tensor) and given[0].ndim else 0  # of other inputs we do not know it

    def zeros(value: Tensor) -> Tensor:
        dtype = like.dtype if value.is_floating_point() else value.dtype
        shape = (1, *value.shape[1:]) if single and value.ndim and len(value) == batch else value.shape
        return torch.zeros(shape, dtype=dtype, device=like.device)

    return each_tensor(zeros, given)


def replaced(model: nn.Module, axes: Axes, of: Callable[[str, Tensor], Tensor]) -> None:
    """Put ``of(name, tensor)`` in the place of every parameter and buffer; tensors that are shared stay shared."""
    known: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            full = f"{path}.{name}" if path else name
            if value is None or full not in axes.tensors:
                continue
            if id(value) not in known:
                with torch.no_grad():
                    known[id(value)] = _of_its_kind(value, of(full, value))
            setattr(module, name, known[id(value)])


def _of_its_kind(old: Tensor, new: Tensor) -> Tensor:
    if new.shape == old.shape:
        return old
    new = new.contiguous()
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
