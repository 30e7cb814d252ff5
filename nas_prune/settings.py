"""The sections of a recipe, for those who train, search and fine-tune from Python; each stands beside its subject."""

from nas_prune.run.calibration.settings import LatencySettings
from nas_prune.run.recipe.settings import BudgetSettings, GateSettings, ModelSettings
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.settings import (
    DenseSettings,
    FinetuneSettings,
    OptimSettings,
    SearchSettings,
    ShapleySettings,
    TrackSettings,
    TrainSettings,
)

__all__ = [
    "BudgetSettings",
    "DataSettings",
    "DenseSettings",
    "FinetuneSettings",
    "GateSettings",
    "LatencySettings",
    "ModelSettings",
    "OptimSettings",
    "SearchSettings",
    "ShapleySettings",
    "TrackSettings",
    "TrainSettings",
]
