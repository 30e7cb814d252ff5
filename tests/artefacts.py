"""What tests of artefacts share: a derived model to be saved, and ways to spoil what was saved."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from nas_prune.artifact.config import sum_of_config
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.tracing.arch import Arch

Change = Callable[[dict[str, Any]], object]


def derived(name: str, size: int, **kwargs: Any) -> tuple[nn.Module, Tensor, Arch]:
    """A timm model with a random half of every axis gone, inputs (b 3 h w) for it, and which half stayed."""
    generator = torch.Generator().manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    x = torch.randn(2, 3, size, size, generator=generator)
    axes = trace(model, x)
    arch = Arch.random(axes, generator=generator)
    return derive(model, axes, arch).eval(), x, arch


def signed(folder: Path, change: Change) -> None:
    """Change the config as an attacker would, with every SHA-256 made right again."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    if isinstance(config.get("sha256"), dict):
        config["sha256"]["config.json"] = sum_of_config(config)
    (folder / "config.json").write_text(json.dumps(config))


def within(key: str, values: Mapping[str, Any]) -> Change:
    return lambda config: config[key].update(values)
