"""What results.json, targets.json and the files of a target hold: what was asked for, and what was reached.

All milliseconds of one file are shares of one duration of the dense model. Numbers are finite.
"""

from typing import Annotated, Literal

from pydantic import Field

from nas_prune.base.files.documents import Document, Natural, NotNegative, Positive, Text, Whole
from nas_prune.run.files import CertificateFile, Device, Seconds, Stages, StripesFile

Percent = Annotated[float, Field(ge=0, le=100)]


class CostFigures(Document):
    """What a model costs."""

    macs: Natural
    params: Natural
    predicted_ms: Positive
    measured_ms: Positive | None
    measured_ms_spread: NotNegative | None = None
    measured_share: Positive | None = None


class ModelFigures(CostFigures):
    """A row of the table of results."""

    top1: Percent


class DenseFigures(CostFigures):
    """The row of the dense model, whose accuracy is not known where it was never trained."""

    top1: Percent | None


class RoundFigures(Document):
    """A round of the search as a report shows it, in the unit of the budget."""

    predicted: Positive
    measured: Positive
    target: Positive


class BudgetFigures(Document):
    """What was asked for and what was reached."""

    cost: Text
    limit: Positive
    reached: Positive
    unit: Text


class LimitFigures(BudgetFigures):
    """A further limit, and whether it was held: milliseconds as timed, all else as counted."""

    status: Literal["met", "missed"]


class GateFigures(Document):
    """Predicted costs in the unit of the budget: of what the gates say at the end of the search, of the limit, of the
    dense model."""

    ended: NotNegative
    limit: Positive
    dense: Positive


class LiveStripes(StripesFile):
    """What the stripes that are left multiply and hold."""

    macs: Natural
    params: Natural


class Predicted(Document):
    """Which latency predictor was used."""

    predictor: Text
    trusted: bool


class ResultsFile(Document):
    """results.json; what an older run did not record is not there."""

    status: Literal["met", "missed"]
    target_ms: Positive | None = None
    target: Text | None = None
    budget: BudgetFigures | None = None
    limits: list[LimitFigures] = Field([])
    closed_top1: Percent | None = None
    gates: GateFigures | None = None
    classes: Whole | None = None
    trained: bool = True
    taught: bool = False
    cautions: list[Text] = Field([])
    measured_share: Positive | None = None
    max_abs_error: NotNegative
    dense: DenseFigures
    gated: ModelFigures
    derived: ModelFigures
    finetuned: ModelFigures
    certificate: CertificateFile | None = None
    calibration: Predicted | None = None
    short: Text | None = None
    stripes: LiveStripes | None = None
    stages: Stages | None = None
    rounds: list[RoundFigures] = Field([])
    seconds: Seconds = Field({})
    device: Device = Field({})


class InfeasibleFile(Document):
    """results.json of a run whose budget nothing can meet."""

    status: Literal["infeasible"]
    target: Text
    why: Text


class TargetFile(Document):
    """One target, derived.json and tuned.json in its folder: what is exact, and shares of the dense model's time."""

    target: Text
    macs: Natural
    params: Natural
    counted: Positive
    predicted_share: Positive
    dense_ms: Positive
    measured_share: Positive
    spread: NotNegative
    short: Text | None
    top1: Percent
    top1_finetuned: Percent | None
    folder: Text


class TargetRow(Document):
    """A row of targets.json."""

    target: Text
    macs: Natural
    params: Natural
    predicted_ms: Positive
    target_ms: Positive | None
    budget: BudgetFigures
    measured_ms: Positive
    measured_ms_spread: NotNegative
    measured_share: Positive
    status: Literal["met", "missed"]
    short: Text | None
    top1: Percent
    top1_finetuned: Percent | None
    folder: Text


class DenseTarget(Document):
    """What the targets are compared with."""

    top1: Percent | None
    measured_ms: Positive
    measured_share: Positive


class TargetsFile(Document):
    """What targets.json holds: a row for every target, and the dense model."""

    targets: list[TargetRow]
    dense: DenseTarget
    cost: Text | None = None
