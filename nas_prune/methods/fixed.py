"""A gated model while it computes one architecture, whatever its gates say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from nas_prune.ops import Choice
from nas_prune.tracing.arch import Arch

if TYPE_CHECKING:
    from nas_prune.methods.gated import GatedModel


class Fixed:
    """A gated model while it computes one architecture. Blocks may be nested; the innermost counts."""

    def __init__(self, gated: GatedModel, arch: Arch, *, mixed: bool = False, requires_grad: bool = False) -> None:
        self.gated, self.arch, self.mixed, self.requires_grad = gated, arch, mixed, requires_grad
        self._keep: dict[str, Tensor] = {}

    def __enter__(self) -> GatedModel:
        self.gated._fixed.append(self)
        self.keep()  # now, and in no forward pass: torch.compile would compile the first one apart
        _compute_live(self.gated)
        return self.gated

    def __exit__(self, *error: object) -> None:
        self.gated._fixed.pop()
        _compute_live(self.gated)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output for these inputs."""
        with self:
            return self.gated(*args, **kwargs)

    def keep(self) -> dict[str, Tensor]:
        """Keep vector (c) of 0 and 1 per axis, where and as precise as the model is now."""
        like = next(self.gated.backbone.parameters())
        if not self._keep or next(iter(self._keep.values())).type() != like.type():
            free = self.gated.space.free.items()
            self._keep = {name: self.arch.keep(axis).to(like.device, like.dtype) for name, axis in free}
            if self.mixed:
                said = self.gated.gate_values()
                self._keep = {name: keep * said[name].detach() for name, keep in self._keep.items()}
            for keep in self._keep.values():
                keep.requires_grad_(self.requires_grad)
        return self._keep


def _compute_live(gated: GatedModel) -> None:
    """Choices compute only what the architecture keeps of them, while there is one."""
    closed = gated.axes.closed(gated._fixed[-1].arch) if gated._fixed else []
    without = {branch.modules[0] for branch in closed}
    for path in gated.axes.walk.captured.choices:
        choice = gated.backbone.get_submodule(path)
        assert isinstance(choice, Choice)
        live = [name for name in choice.candidates if f"{path}.candidates.{name}" not in without]
        choice.live = live if live and gated._fixed else None
