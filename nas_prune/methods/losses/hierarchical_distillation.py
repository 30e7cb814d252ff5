"""Hierarchical self-distillation: every stage has a classifier, and the deepest one teaches the shallower ones.

Zhou, Dong, Zhi, Wang (arXiv 2312.16902). With logits z_1 .. z_S of the stages, S the deepest, and a = 0.2,

    L = (1 - a) sum_s CE(z_s, y) + a sum_{s < S} KL(softmax(z_S) || softmax(z_s))

The teacher is not detached: it is drawn towards the shallow stages, too, as in the public code.

Ours: z_S are the logits of the model itself, and a shallower head is a mean over places, a BatchNorm and a linear layer
(the paper's, for points, has two hidden layers and dropout). The norm has no scale and keeps no statistics: heads are
asked in training alone, and a unit that is closed then counts as if it were gone. One image has no statistics, so from
a batch of one the model learns by the labels alone. The heads are parts of the loss, so no model, checkpoint of weights
or artefact ever holds them. A temperature T multiplies KL by T^2; ``detach_teacher`` and the warm-up of a are ours as
well.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from nas_prune.base.errors import RecipeError, shown
from nas_prune.base.registry import hint
from nas_prune.base.settings import Share
from nas_prune.methods.losses.cross_entropy import CrossEntropy
from nas_prune.methods.losses.loss import Came, Loss, Said, losses


@losses.register("hierarchical_distillation")
class HierarchicalDistillation(Loss):
    """``a``: share of the teacher, to which it grows from 0 in the first ``warmup`` steps, since a teacher that has
    learnt nothing yet makes all heads say nothing. ``stages``: modules of timm's ``feature_info`` that get a head; if
    left out, the last one of each resolution but the deepest.
    """

    steps: Tensor

    def __init__(
        self,
        smoothing: float,
        *,
        a: Share = 0.2,
        temperature: PositiveFloat = 1.0,
        detach_teacher: bool = False,
        warmup: NonNegativeInt = 0,
        stages: list[str] | None = None,
    ) -> None:
        super().__init__(smoothing)
        self.a, self.temperature, self.detach_teacher, self.warmup = a, temperature, detach_teacher, warmup
        self.stages, self.labels = stages, CrossEntropy(smoothing)
        self.heads = nn.ModuleDict()
        self.last = False  # whether channels are the last dimension of maps
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def begin(self, backbone: nn.Module, look: Callable[[], Said]) -> None:  # noqa: ARG002
        """Make the heads, unless they are there. Raises RecipeError for a backbone without such stages."""
        if self.heads:
            return
        known = {each["module"]: int(each["num_chs"]) for each in getattr(backbone, "feature_info", ())}
        self.features = tuple(_stages(backbone) if self.stages is None else self.stages)
        odd = [path for path in self.features if path not in known]
        if odd or not self.features:
            what = f"no {shown(odd[0])}{hint(odd[0], known)}" if odd else "but one resolution, so nothing to teach"
            raise RecipeError(
                f"the loss hierarchical_distillation finds in the stages of {type(backbone).__name__} {what}; name "
                f"some in its option stages ({', '.join(known) or 'there are none: choose another loss'})"
            )
        self.last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        like = next(backbone.parameters())
        for path in self.features:
            self.heads[_key(path)] = nn.Linear(known[path], int(backbone.num_classes)).to(like)  # type: ignore[arg-type]

    def follow(self, left: Callable[[str], Sequence[Tensor | None]]) -> Came:
        """Heads read what is left of their stages."""
        came: dict[Tensor, tuple[Tensor, Tensor]] = {}
        for path in self.features:
            head = self._head(path)
            kept = (dims := left(path))[self._channels(len(dims))]
            if kept is None:
                continue
            place = torch.arange(head.weight.numel()).reshape(head.weight.shape)[:, kept.cpu()]
            weight = nn.Parameter(head.weight.detach().flatten()[place.to(head.weight.device)])
            came[weight] = (head.weight, place)
            head.weight, head.in_features = weight, len(kept)
        return came

    def forward(self, said: Said, targets: Tensor) -> Tensor:
        """The loss, (), the mean over the batch."""
        a = self.a * min(1.0, float(self.steps) / self.warmup) if self.warmup else self.a
        if self.training:
            self.steps += 1
        logits = [self.said_by(path, said.features[path]) for path in self.features if len(targets) > 1]
        right = sum((self.labels(Said(each), targets) for each in logits), self.labels(said, targets))
        teacher = said.logits.detach() if self.detach_teacher else said.logits
        alike = sum((self._divergence(teacher, each) for each in logits), torch.zeros_like(right))
        loss: Tensor = (1 - a) * right + a * alike
        return loss

    def said_by(self, path: str, features: Tensor) -> Tensor:
        """Logits (b k) of the head of a stage, of what that gave."""
        head = self._head(path)
        features = features.to(head.weight.dtype).movedim(self._channels(features.ndim), 1)
        pooled = features.flatten(2).mean(2) if features.ndim > 2 else features
        out: Tensor = head(F.batch_norm(pooled, None, None, training=True))
        return out

    def _head(self, path: str) -> nn.Linear:
        head = self.heads[_key(path)]
        assert isinstance(head, nn.Linear)
        return head

    def _channels(self, dims: int) -> int:
        """Which dimension of a map (b c h w), or (b h w c), and of tokens (b n c), holds channels."""
        return 1 if dims == 4 and not self.last else -1

    def _divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """T^2 KL of what the deepest stage says and what another one does, the mean over the batch."""
        wanted, given = (F.log_softmax(each / self.temperature, -1) for each in (teacher, student))
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * self.temperature**2


def _stages(backbone: nn.Module) -> list[str]:
    """Of each resolution the last module that computes with weights, but of the deepest one."""
    last = {each["reduction"]: each["module"] for each in getattr(backbone, "feature_info", ())}
    deep = [path for path in last.values() if next(backbone.get_submodule(path).parameters(), None) is not None]
    return deep[:-1]


def _key(path: str) -> str:
    """Paths hold dots, names of modules may not."""
    return path.replace(".", "/")
