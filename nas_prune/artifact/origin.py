"""Origin: the timm model that a derived model came from, as a name and plain arguments, and how to build it again.

Building it runs timm's constructor with arguments that may come from a stranger's file. So names are looked up in
timm's registry, arguments are plain data, and none of them can make timm read a file or open a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from nas_prune.artifact.timm_models import create_model
from nas_prune.base.errors import ArtifactError, shown
from nas_prune.base.plain import LARGEST, is_moderate, is_plain, tuples

SOURCES = frozenset({"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"})  # where weights come from
REFUSED = frozenset({"model_name", "checkpoint_path", "cache_dir", "pruned", "device", "dtype"})
DEEPEST = 10_000  # more than any depth


@dataclass(frozen=True)
class Origin:
    """``timm.create_model(architecture, pretrained=False, pretrained_cfg=pretrained_cfg, **arguments)``."""

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module, architecture: str | None, kwargs: Mapping[str, Any] | None) -> Origin:
        """The origin of a timm model; what is not given is read off the model."""
        config = getattr(model, "pretrained_cfg", None)
        config = config if isinstance(config, Mapping) else {}
        name = architecture or config.get("architecture")
        if not isinstance(name, str):
            raise ArtifactError(
                f"{type(model).__name__} does not say which timm model it is. Only timm models can be saved: "
                "create it with timm.create_model, or pass origin=(name, arguments)"
            )
        recorded = dict(getattr(model, "_model_args", {})) if kwargs is None else {}
        arguments = {**recorded, **_widths(model, config), **(kwargs or {})}
        kept = {key: value for key, value in config.items() if key not in SOURCES and is_plain(value)}
        kept.pop("custom_load", None)  # says how to read the weights of a source that is not kept
        return Origin(name.partition(".")[0], {k: v for k, v in arguments.items() if v is not None}, kept)

    def check(self) -> None:
        """Raise ArtifactError unless timm knows the name and every argument is harmless."""
        if not timm.is_model(self.architecture):
            near = get_close_matches(self.architecture[:100], timm.list_models(), n=1)
            advice = f"did you mean {near[0]!r}?" if near else "a newer timm may know it"
            raise ArtifactError(f"timm {timm.__version__} knows no architecture {shown(self.architecture)}; {advice}")
        for name, value in self.arguments.items():
            if name in REFUSED or name.startswith("pretrained"):
                raise ArtifactError(
                    f"the argument {shown(name)} of {self.architecture} may not be part of an artefact; leave it out"
                )
            largest = DEEPEST if any(word in name for word in ("depth", "layers", "blocks")) else LARGEST
            if not is_plain(value) or not is_moderate(value, largest):
                raise ArtifactError(
                    f"the argument {shown(name)} of {self.architecture} must be plain data with numbers up to "
                    f"{largest}, not {shown(value)}; pass origin= with names in place of objects"
                )
        if not is_plain(self.pretrained_cfg) or not is_moderate(self.pretrained_cfg):
            raise ArtifactError(f"pretrained_cfg must be plain data with numbers up to {LARGEST}")
        for name in SOURCES & set(self.pretrained_cfg):
            raise ArtifactError(f"pretrained_cfg names a source of other weights ({name!r}); leave it out")

    def build(self, device: str = "cpu") -> nn.Module:
        """A freshly built model in eval mode; on ``meta`` it has shapes only. Global random state is left untouched."""
        self.check()
        config = {name: tuples(value) for name, value in self.pretrained_cfg.items()}
        arguments = {**self.arguments, "pretrained_cfg": config or None}
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return create_model(self.architecture, arguments, ArtifactError, "check the arguments of the origin").eval()


def _widths(model: nn.Module, config: Mapping[str, Any]) -> dict[str, int]:
    """Classes and input channels that the model has now, whatever it was created with."""
    widths = {name: getattr(model, name, None) for name in ("num_classes", "in_chans")}
    first = config.get("first_conv")
    for name in [first] if isinstance(first, str) else first or ():
        module = dict(model.named_modules()).get(name, nn.Module())  # a convolution, or what took its place
        conv = next((inside for inside in module.modules() if isinstance(inside, nn.Conv2d)), None)
        if conv is not None:
            widths["in_chans"] = widths["in_chans"] or conv.weight.shape[1] * conv.groups  # an older timm
    return {name: value for name, value in widths.items() if type(value) is int}
