"""Evaluate: what a model answers to held-out images, and how often that is right."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from nas_prune.tracing.graph.capture import evaluating
from nas_prune.train.data.loaders import Data


def top1(model: nn.Module, data: Data, accelerator: Accelerator) -> float:
    """Share of held-out images whose highest logit is the right class (or the most probable one), in percent."""
    metric = MulticlassAccuracy(data.classes, average="micro", sync_on_compute=False).to(accelerator.device)
    for logits, labels in answers(model, data, accelerator):
        metric.update(logits, labels if labels.ndim == 1 else labels.argmax(1))
    return 100 * float(metric.compute())


def answers(model: nn.Module, data: Data, accelerator: Accelerator) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (b classes), labels (b) or their probabilities (b classes)) of every held-out batch of all processes."""
    loader = accelerator.prepare_data_loader(data.evaluation)
    with torch.inference_mode(), evaluating(model), accelerator.autocast():
        for images, labels in loader:
            logits, expected = accelerator.gather_for_metrics((model(images), labels))
            yield logits.float(), expected
