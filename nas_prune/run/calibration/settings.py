"""The section of a recipe about latency."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from nas_prune.base.settings import Settings


class LatencySettings(Settings):
    """How latency is measured and how the predictor is trained."""

    runtime: Literal["eager", "compile", "onnxruntime", "openvino", "tensorrt"] = Field(
        "eager", description="what runs the model when it is timed"
    )
    batch_size: PositiveInt = Field(32, description="images in a timed call")
    threads: PositiveInt | None = Field(None, description="CPU threads; the default of torch if left out")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="numbers of the timed model")
    channels_last: bool = Field(False, description="time images and weights with their channels last")
    samples: PositiveInt = Field(60, ge=12, description="sub-networks that are derived and timed")
    seconds: PositiveFloat = Field(0.2, description="time spent on timing each of them")
    jitter: float = Field(0.2, ge=0.0, description="mean spread of the axes around a sample's global ratio")
    predictor: Literal["best", "lpnet", "monotone", "additive"] = Field(
        "best", description="what learns from the timings; best: whatever cross-validation says"
    )
    operators: bool = Field(False, description="time every operator alone, too, for the additive predictor")
    staircase: bool = Field(
        False, description="find the width steps of this device and allow these widths, instead of the space's divisors"
    )
    calibration: str | None = Field(None, description="use this file that `nas-prune calibrate` made")
    trust_calibration: bool = Field(False, description="use it even if it is of another device or other versions")
    cache: bool = Field(True, description="keep calibrations for later runs ($NAS_PRUNE_CACHE, or ~/.cache/nas_prune)")
