"""After derive: every convolution of stripes takes the form that is fastest when measured in its runtime.

Few multiply-adds do not mean few milliseconds, so both are told: what the live stripes multiply and add, and what each
form takes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas_prune.base.errors import CheckpointError, shown
from nas_prune.base.follow import Follow
from nas_prune.costs import Conditions, measure_together
from nas_prune.costs.timing.conditions import USUAL
from nas_prune.ops.stripes.conv import StripeConv
from nas_prune.ops.stripes.forms import forms
from nas_prune.tracing.graph.capture import evaluating
from nas_prune.tracing.graph.hooks import inputs_of

FormRow = dict[str, Any]


def reform(
    model: nn.Module,
    images: Tensor,
    conditions: Conditions = USUAL,
    *,
    seconds: float = 0.5,
    follow: Follow[str] = lambda steps, _: steps,
) -> list[FormRow]:
    """Choose the form of each dense StripeConv of a model, in place; a row per convolution says why.

    ``images`` (b c h w): the batch that is timed; ``seconds``: at most about so many per form.
    """
    given = _inputs(model, images)
    return [_chosen(model, path, given[path], conditions, seconds) for path in follow(list(given), "timing stripes")]


def take_forms(model: nn.Module, rows: Iterable[FormRow]) -> None:
    """Give the convolutions of a model the forms that were chosen before; raises CheckpointError for any other."""
    for row in rows:
        conv = dict(model.named_modules()).get(row["module"])
        if not isinstance(conv, StripeConv) or row["form"] not in forms:
            raise CheckpointError(
                f"stripes.json gives {shown(row['module'])} the form {shown(row['form'])}, which this model does not "
                "have; delete it to have the stripes timed again"
            )
        model.set_submodule(row["module"], conv.reformed(row["form"]))


def _chosen(model: nn.Module, path: str, x: Tensor, conditions: Conditions, seconds: float) -> FormRow:
    """Time one convolution in every form, and put in the fastest."""
    conv = model.get_submodule(path)
    assert isinstance(conv, StripeConv)
    candidates = {form: conv.reformed(form) for form in forms}
    times = measure_together(candidates, x, conditions=conditions, seconds=seconds)
    milliseconds = {form: timing.median_ms for form, timing in times.items()}
    form = min(milliseconds, key=milliseconds.__getitem__)
    model.set_submodule(path, candidates[form])
    return {"module": path, "form": form, "live": float(conv.alive.float().mean()), "ms": milliseconds}


def _inputs(model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    """What goes into each dense StripeConv of a model."""
    found: dict[str, Tensor] = {}
    stripes = {path: module for path, module in model.named_modules() if isinstance(module, StripeConv)}
    dense = {path: module for path, module in stripes.items() if module.config["form"] == "dense"}

    def keep(path: str, given: tuple[Tensor, ...]) -> None:
        found[path] = given[0].detach()

    with torch.no_grad(), evaluating(model), inputs_of(dense, keep):
        model(images)
    return found
