"""What training writes into the journals of a run folder: metrics.jsonl, rounds.jsonl, shapley.jsonl, wandb.json."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nas_prune.base.files.documents import Document, Natural, NotNegative, Number, Positive, Text


class MetricsRow(BaseModel):
    """A line of metrics.jsonl: where in the run, and any figures."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Number | Text | None]

    stage: Annotated[str, Field(min_length=1, max_length=200)]
    epoch: NotNegative
    time: NotNegative

    @model_validator(mode="after")
    def _curves_are_numbers(self) -> Self:
        for name, value in self.__pydantic_extra__.items():
            if "/" in name and isinstance(value, str):
                raise ValueError("a figure is a number")
        return self


class RoundRow(Document):
    """A line of rounds.jsonl: the widths of an architecture, and one measurement of its cost."""

    key: list[Natural]
    measured: Positive


class ShapleyRow(Document):
    """A line of shapley.jsonl: an estimate of what every candidate contributes; its half width may not be known."""

    epoch: Natural
    values: dict[str, Number]
    half_width: dict[str, Number | None] = Field({})
    settled: bool = False
    evaluations: Natural
    paper_mode: bool = False


class WandbFile(Document):
    """wandb.json: the run of Weights & Biases that this folder was recorded in."""

    id: Annotated[str, Field(pattern=r"^[\w-]{1,128}$")]
