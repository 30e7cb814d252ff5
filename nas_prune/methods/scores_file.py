"""The scores of a search as a file: one finite number for every unit of every axis that may change."""

from pathlib import Path

import torch

from nas_prune.base.errors import CheckpointError
from nas_prune.base.files import tensors as tensor_file
from nas_prune.methods.scores import Scores
from nas_prune.tracing.space import SearchSpace

AGAIN = "delete it to have it made again"


def read_scores(path: Path, space: SearchSpace) -> Scores:
    """Scores (c) per axis. Raises CheckpointError where they are not of the axes of this space."""
    try:
        scores = tensor_file.read(path, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {AGAIN}") from error
    expected = {
        name: torch.zeros(axis.size, dtype=scores[name].dtype if name in scores else torch.float32)
        for name, axis in space.free.items()
    }
    problem = tensor_file.misfit(expected, scores)
    floating = all(score.is_floating_point() for score in scores.values())
    if problem or not floating:
        raise CheckpointError(
            f"{path} does not hold the scores of this model's axes ({problem or 'scores are real numbers'}); {AGAIN}"
        )
    return scores
