"""What the files of a run folder hold: one kind per file, by which whatever reads it validates it first.

    inputs.json  axes.json  arch.json  seconds.json  certificate.json  stripes.json  timings.json  stages.json
    results.json
    metrics.jsonl  rounds.jsonl  rounds-<number>.jsonl  shapley.jsonl  wandb.json  genotype.json  scores.safetensors
    scores-<criterion>.safetensors  dynamic.json
    calibration/  timings.jsonl  samples.jsonl  calibration.json  staircase.jsonl  operators.jsonl
    pictures/  <axis>.png
    targets.json  targets/<target>/  derived.json  tuned.json  timings.json  stripes.json  rounds.jsonl

Numbers are finite. A null stands where a number was not (NaN), and only where there may have been none.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nas_prune.base.axis import Kind, Role
from nas_prune.base.files.documents import Document, Natural, NotNegative, Number, Positive, Text, Whole
from nas_prune.base.settings import Share

InputsFile = dict[Text, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
Seconds = dict[str, NotNegative]
Stages = dict[Literal["dense", "derived"], dict[str, NotNegative]]
Device = dict[str, str | int]


class PointRow(Document):
    """A line of operators.jsonl and staircase.jsonl: an operator at two widths, timed alone."""

    point: Text
    ms: Positive


class SampleTimed(Document):
    """A line of calibration/timings.jsonl: a sub-network timed in turn with the dense model."""

    sizes: dict[str, Natural]
    share: Positive
    spread: NotNegative
    dense_ms: Positive
    repeat: bool
    here: Text  # the key of what the timing is true of: model, space, device ...
    index: Natural


class SampleRow(Document):
    """A line of calibration/samples.jsonl, which a report shows."""

    sizes: dict[str, Natural]
    share: Positive | None = None
    spread: NotNegative
    ms: Positive
    predicted_ms: Number


class CertificateFile(Document):
    """certificate.json: what ``verify`` has found, which is within its tolerance, or it would not be there."""

    max_abs_error: NotNegative
    max_rel_error: NotNegative
    worst_node: Text
    worst_node_error: NotNegative
    nodes: Natural
    control_error: NotNegative
    tolerance: Annotated[float, Field(gt=0, le=1e-6)]
    dtype: Literal["float64"]

    @model_validator(mode="after")
    def _proves_something(self) -> Self:
        if self.max_rel_error > self.tolerance or self.worst_node_error > self.tolerance:
            raise ValueError("an error is above the tolerance, so nothing was proven")
        return self


class TimingFile(Document):
    """One model in timings.json."""

    median_ms: Positive
    spread_ms: NotNegative
    calls: Whole
    low_ms: Positive | None
    high_ms: Positive | None
    share: Positive

    @model_validator(mode="after")
    def _is_an_interval(self) -> Self:
        if not (self.low_ms or 0) <= self.median_ms <= (self.high_ms or self.median_ms):
            raise ValueError("the median is outside of its interval")
        return self


TimingsFile = dict[str, TimingFile]


class StripeForm(Document):
    """One convolution in stripes.json: the form that it took, and milliseconds of every form."""

    module: Text
    form: Text
    live: Share
    ms: dict[str, Positive]

    @model_validator(mode="after")
    def _was_timed(self) -> Self:
        if self.form not in self.ms:
            raise ValueError("the form that was chosen is none of those that were timed")
        return self


class StripesFile(Document):
    """What stripes.json holds: a form for every convolution that lost stripes."""

    convolutions: list[StripeForm]


class DynamicFile(Document):
    """What dynamic.json holds: a model that skips, image by image, one at a time; means, and deviations over images."""

    top1: Annotated[float, Field(ge=0, le=100)]
    max_rel_error: NotNegative
    dtype: Text
    images: Whole
    macs: Positive
    macs_spread: NotNegative
    dense_macs: Positive
    params: Natural
    ms: dict[str, Positive]
    ms_spread: dict[str, NotNegative]


class MemberFile(Document):
    """One member of an axis."""

    tensor: Text
    dim: Natural
    role: Role


class AxisFile(Document):
    """One axis in axes.json."""

    name: Text
    kind: Kind
    size: Annotated[int, Field(gt=0, le=10**7)]
    frozen: Text | None
    divisor: Whole
    members: list[MemberFile]


class AxesFile(Document):
    """What axes.json holds: every axis of the model, frozen or not."""

    axes: list[AxisFile]


class ErrorFile(Document):
    """How wrong a predictor was; a rank correlation may not exist."""

    mape: NotNegative
    max_ape: NotNegative
    spearman: Annotated[float, Field(ge=-1, le=1)] | None
    kendall: Annotated[float, Field(ge=-1, le=1)] | None
    held_out: Natural


class CalibrationPage(BaseModel):
    """calibration.json: what a report shows of a calibration. The calibration itself is the safetensors file."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    dense_ms: Positive
    calm_ms: Positive | None = None
    noise: NotNegative | None = None
    error: ErrorFile | None = None
    errors: dict[str, ErrorFile] = Field({})
    predictor: Text | None = None
    interval: Annotated[list[NotNegative], Field(min_length=2, max_length=2)] | None = None
    runtime: Text = ""
    batch_size: Whole | None = None
    threads: Whole | None = None
    device: Device = Field({})
