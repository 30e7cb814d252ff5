"""Evaluate: top-1 accuracy on held-out images."""

import torch
from accelerate import Accelerator
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from nas_prune.tracing.graph.capture import evaluating
from nas_prune.train.data.loaders import Data


def top1(model: nn.Module, data: Data, accelerator: Accelerator) -> float:
    """Share of held-out images whose highest logit is the right class (or the most probable one), in percent."""
    metric = MulticlassAccuracy(data.classes, average="micro", sync_on_compute=False).to(accelerator.device)
    loader = accelerator.prepare_data_loader(data.evaluation)
    with torch.inference_mode(), evaluating(model), accelerator.autocast():
        for images, labels in loader:
            logits, expected = accelerator.gather_for_metrics((model(images), labels))
            metric.update(logits.float(), expected if expected.ndim == 1 else expected.argmax(1))
    return 100 * float(metric.compute())
