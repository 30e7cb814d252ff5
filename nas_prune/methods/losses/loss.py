"""What a loss is: what a model said of some images, and what was right -> one number. A module, since it may learn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from nas_prune.base.registry import Registry

Came = Mapping[Tensor, tuple[Tensor, Tensor]]  # parameter -> the one before, and where its numbers were, flattened


@dataclass(frozen=True)
class Said:
    """What a model said of a batch.

    ``logits`` (b k); ``features``: path of a module -> its output as one sees it who reads it, closed units as zeros,
    for the modules that the loss names; ``teacher``: what the dense parent says, where there is one; ``read``: what the
    classifier reads, (b c) or (b c h w), where somebody asks for it.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: Said | None = None
    read: Tensor | None = None


class Loss(nn.Module, ABC):
    """``smoothing``: label smoothing of the recipe. A loss's options are keyword-only parameters.

    ``features``: paths of modules of the backbone whose outputs it looks at. What it registers as parameters is trained
    by the optimizer of the stage; that and its buffers are part of every checkpoint.
    """

    features: tuple[str, ...] = ()

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def begin(self, backbone: nn.Module, look: Callable[[], Said]) -> None:
        """Before a stage that trains ``backbone``, and before the optimizer asks what it learns: what it needs to know.

        ``look``: what the backbone says of two images, in eval mode, with the features that the loss looks at.
        """

    def follow(self, left: Callable[[str], Sequence[Tensor | None]]) -> Came:  # noqa: ARG002
        """Go on with what is left of the backbone: indices per dimension of a module's output, None where all is.

        Returns those of its parameters that are new.
        """
        return {}

    @abstractmethod
    def forward(self, said: Said, targets: Tensor) -> Tensor:
        """The loss, (), the mean over a batch; ``targets`` are classes (b), or probabilities (b k) after mixup."""


losses: Registry[type[Loss]] = Registry("loss", __package__)
