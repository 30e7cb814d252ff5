"""Sections of a recipe about the model, its gates and its budget."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from nas_prune.base.axis import Kind
from nas_prune.base.settings import PartSettings, Settings


class ModelSettings(Settings):
    """The timm backbone."""

    name: str = Field(description="timm model name, e.g. resnet18; `timm.list_models()` lists them")
    pretrained: bool = Field(False, description="start from timm's published weights (needs a network or a cache)")
    checkpoint: str | None = Field(
        None, description="start from this file of weights instead: .safetensors, or .pth and .pt of torch.save"
    )
    checkpoint_head: Literal["fresh", "error"] = Field(
        "fresh", description="a classifier of another size in the checkpoint: leave its fresh values, or refuse"
    )
    kwargs: dict[str, Any] = Field({}, description="further arguments of timm.create_model")


class KindSettings(PartSettings):
    """Which gate decides about one kind of axis."""

    name: str = Field(description="a gate, as `nas-prune list gates` shows them")


class GateSettings(PartSettings):
    """Which gate decides."""

    name: str = Field("weight", description="a gate, as `nas-prune list gates` shows them; weight is W-Gates")
    kinds: dict[Kind, KindSettings] = Field(
        {}, description="other gates for some kinds of axis, e.g. {operation: {name: softmax}}"
    )


class BudgetSettings(Settings):
    """The limits that the derived model is measured against."""

    target: str = Field("0.5x", description="0.5x of the dense latency, or an absolute figure such as 4.0ms")
    share: float | None = Field(
        None, gt=0.0, lt=1.0, description="the target as a number, 0.5 for 0.5x: for sweeps that draw it"
    )
    cost: Literal["latency", "macs", "params", "memory"] = Field("latency", description="what is limited")
    limits: dict[Literal["latency", "macs", "params", "memory"], str] = Field(
        {}, description="further limits that must hold as well, e.g. {params: 0.5x, memory: 40M}"
    )

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, given: Any) -> Any:
        """A share is another way to write a target, and only that is kept."""
        share = given.get("share") if isinstance(given, dict) else None
        valid = isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < 1
        return {**given, "target": f"{share!r}x", "share": None} if valid else given

    rounds: PositiveInt = Field(
        12, description="at most so many derive-and-measure rounds until the measurement meets the target"
    )
