"""What the facts and the tensors of a calibration are: their types, and that the one agrees with the other."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from nas_prune.base.files.documents import Document, Natural, NotNegative, Positive, Text, Whole
from nas_prune.base.plain import is_moderate, is_plain
from nas_prune.costs import predictors
from nas_prune.costs.timing.conditions import Precision, Runtime
from nas_prune.run.files import ErrorFile
from nas_prune.tracing.space import Replacement

MOST_NUMBERS = 2**30  # in a batch of images
MEASURED = ("sizes", "share", "spread", "predicted_ms")  # a row for each timed sub-network
PREDICTOR = "predictor."  # before the names of the predictor's state


class ModelFacts(Document):
    """The timm model that was timed, and how it was created."""

    name: Text
    kwargs: dict[str, Any]

    @field_validator("kwargs")
    @classmethod
    def _are_harmless(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not is_plain(kwargs) or not is_moderate(kwargs):
            raise ValueError("arguments of a model are plain data with moderate numbers")
        return kwargs


class ConditionFacts(Document):
    """The conditions under which the model was timed."""

    runtime: Runtime
    threads: Annotated[int, Field(ge=1, le=4096)] | None
    precision: Precision
    channels_last: bool


class Facts(Document):
    """What a calibration is true of, and how good its predictor is."""

    model: ModelFacts
    axes: dict[str, Annotated[int, Field(ge=1, le=10**7)]]
    widths: dict[str, Annotated[list[Natural], Field(min_length=2, max_length=2)]]
    stripes: bool
    replaced: list[Replacement]
    image: Annotated[list[Whole], Field(min_length=3, max_length=3)]
    batch_size: Whole
    conditions: ConditionFacts
    device: dict[str, Text]
    seed: Natural
    predictor: Text
    errors: dict[str, ErrorFile]
    interval: Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
    noise: NotNegative
    dense_ms: Positive
    calm_ms: Positive
    smallest_ms: Positive

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.predictor not in predictors or self.predictor not in self.errors:
            raise ValueError("no such predictor was fitted")
        if self.interval[0] > self.interval[1]:
            raise ValueError("the interval is empty")
        if self.model.kwargs.get("in_chans", self.image[0]) != self.image[0]:
            raise ValueError("the model takes images of other channels")
        if self.batch_size * self.image[0] * self.image[1] * self.image[2] > MOST_NUMBERS:
            raise ValueError("a batch of images would not fit any memory")
        options = [option for rule in self.replaced for option in (rule.only, rule.candidates)]
        if not all(is_plain(option) and is_moderate(option) for option in options):
            raise ValueError("options of operations are plain data with moderate numbers")
        return self


def disagreement(tensors: Mapping[str, Tensor], axes: Mapping[str, int]) -> str:
    """What is wrong with the tensors of a calibration of these axes, in a few words; empty where nothing is."""
    state = {name for name in tensors if name.startswith(PREDICTOR)}
    if tensors.keys() - state != set(MEASURED) or not state:
        return "it does not hold the timings and the state of a predictor"
    rows = len(tensors["share"]) if tensors["share"].ndim == 1 else 0
    shapes = {name: (rows, len(axes)) if name == "sizes" else (rows,) for name in MEASURED}
    wrong = [name for name, shape in shapes.items() if tuple(tensors[name].shape) != shape]
    if not rows or wrong:
        return f"the shape of {wrong[0] if wrong else 'share'} is not that of timed sub-networks"
    if tensors["sizes"].dtype != torch.int64 or not all(tensors[name].is_floating_point() for name in MEASURED[1:]):
        return "its numbers are of other types"
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        return "it holds numbers that are not finite"
    full = torch.tensor(list(axes.values()))
    if bool(((tensors["sizes"] < 0) | (tensors["sizes"] > full)).any()):
        return "its sizes are not widths of its axes"
    if bool((tensors["share"] <= 0).any()) or bool((tensors["spread"] < 0).any()):
        return "a network took no time"
    return ""
