"""A network of cells: stem, cells, classifier; the supernet, or the network of one genotype. A timm model.

As in DARTS (arXiv 1806.09055) and NAS-Bench-201 (arXiv 2001.00326). DARTS' auxiliary head is the loss ``auxiliary``, no
part of the network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nas_prune.base.errors import SpaceError
from nas_prune.ops.cells.cell import Cell, ResidualBlock, Stream
from nas_prune.ops.cells.cell_space import CellSpace
from nas_prune.ops.cells.genotype import ChosenOperations, Genotype, check


class CellNetwork(nn.Module):
    """``space``: name of a shipped space of cells, or one as plain data. ``genotype``: None is the supernet.

    ``channels``: width of an edge in the first cell. Raises SpaceError and ArchError where these do not fit.
    """

    def __init__(
        self,
        space: str | Mapping[str, Any] = "darts",
        channels: int = 16,
        layers: int = 8,
        num_classes: int = 10,
        in_chans: int = 3,
        genotype: Genotype | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if channels < 1 or layers < 1:
            raise SpaceError(f"a network needs at least one channel and one cell; got {channels} and {layers}")
        known = CellSpace.of(space)
        self.num_classes, self.in_chans, self.grad_checkpointing = num_classes, in_chans, False
        self.stem, self.stem_end, streams = _stems(in_chans, channels, known)
        self.feature_info: list[dict[str, Any]] = []
        self.cells = nn.ModuleDict()
        chosen = None if genotype is None else check(genotype, known)
        out = self._add_cells(known, layers, channels, streams, chosen)
        self.inputs = known.inputs
        self.final_norm = nn.Sequential(nn.BatchNorm2d(out), nn.ReLU()) if known.final_norm else nn.Identity()
        self.num_features = self.head_hidden_size = out
        self.head = ClassifierHead(out, num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def _add_cells(
        self,
        space: CellSpace,
        layers: int,
        channels: int,
        streams: list[Stream],
        chosen: Mapping[str, ChosenOperations] | None,
    ) -> int:
        """The cells one after the other, and what is known of their outputs; returns the width of the last."""
        for name, kind in space.layout(layers).items():
            *_, nearest = streams
            stride = space.kinds[kind].stride
            if stride == 2 and self.cells:
                self._tell(nearest)
            channels *= stride
            if space.kinds[kind].searched:
                genes = None if chosen is None else chosen[kind]
                self.cells[name] = Cell(space, kind, streams, channels, chosen=genes)
            else:
                self.cells[name] = ResidualBlock(nearest.channels, channels * space.width, stride=stride)
            streams = [*streams[1:], Stream(channels * space.width, nearest.reduction * stride)]
        self._tell(streams[-1])
        return streams[-1].channels

    def _tell(self, stream: Stream) -> None:
        """Note the last cell as the end of a stage, as timm models do."""
        module = f"cells.{list(self.cells)[-1]}"
        self.feature_info.append({"num_chs": stream.channels, "reduction": stream.reduction, "module": module})

    def forward(self, x: Tensor) -> Tensor:
        """Images (b c h w) -> (b classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (b c h w) -> the features (b c' h' w') before pooling."""
        features: Tensor = self.final_norm(self._through_cells(x)[-1])
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features (b c h w) -> (b classes), or what the classifier would see."""
        out: Tensor = self.head(x, pre_logits=pre_logits)
        return out

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """What the stages hand on, as timm asks for it; ``norm``: the last one after the final norm."""
        if output_fmt != "NCHW":
            raise SpaceError(f"a network of cells gives features as NCHW, not as {output_fmt}")
        take, _ = feature_take_indices(len(self.feature_info), indices)
        outputs = dict(zip(self.cells, self._through_cells(x)[self.inputs :], strict=True))
        last = self.final_norm(next(reversed(outputs.values())))
        stages = [outputs[stage["module"].removeprefix("cells.")] for stage in self.feature_info]
        stages[-1] = last if norm else stages[-1]
        taken = [stages[index] for index in take]
        return taken if intermediates_only else (last, taken)

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes: none."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes the cells once more instead of remembering their insides."""
        self.grad_checkpointing = enable

    def set_drop_path(self, rate: float) -> None:
        """In training, drop each edge of an image with this probability, and make up for it (FractalNet's drop-path).

        As where DARTS trains a genotype: not edges that pass on what they read, and none while there is a choice. There
        the rate rises from epoch to epoch, here it stays. Raises SpaceError for what is no rate.
        """
        if not 0 <= rate < 1:
            raise SpaceError(f"drop_path_rate is {rate}; it is a probability below 1, 0 drops nothing")
        for cell in self.cells.values():
            if isinstance(cell, Cell):
                cell.drop_path.drop_prob = rate

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Layers by name, for learning rates that decay from layer to layer; ``coarse`` makes no difference."""
        del coarse
        return {"stem": r"^stem", "blocks": r"^cells\.\w+_(\d+)"}

    def _through_cells(self, x: Tensor) -> list[Tensor]:
        """The stem's and every cell's output, in order."""
        first = self.stem(x)
        outputs = [first, self.stem_end(first)][-self.inputs :]
        for cell in self.cells.values():
            states = outputs[-self.inputs :]
            if self.grad_checkpointing and self.training:
                outputs.append(checkpoint(cell, *states, use_reentrant=False))
            else:
                outputs.append(cell(*states))
        return outputs


def _stems(c_in: int, channels: int, space: CellSpace) -> tuple[nn.Module, nn.Module, list[Stream]]:
    """What makes state 0 of the first cell of images, what makes state 1 of that, and the states.

    Of small images one convolution makes both. Where the stem halves several times, it is as wide as the first cell,
    its first convolution half of that, and state 0 is what the last halving begins with: DARTS' network for ImageNet.
    """
    reduction, halvings = space.stem_reduction, space.stem_reduction.bit_length() - 1
    if halvings < 2 or space.inputs != 2:
        width = channels * space.stem
        widths = [max(1, width >> step) for step in reversed(range(max(1, halvings)))]
        return _stem(c_in, widths, reduction), nn.Identity(), [Stream(width, reduction)] * space.inputs
    widths = [max(1, channels // 2), *[channels] * (halvings - 2)] if halvings > 2 else [channels]
    end = nn.Sequential(nn.ReLU(), *_stem(channels, [channels], 2))
    return _stem(c_in, widths, 2), end, [Stream(channels, reduction // 2), Stream(channels, reduction)]


def _stem(c_in: int, widths: Sequence[int], reduction: int) -> nn.Sequential:
    """3x3 convolutions of these widths and BatchNorms, ReLU between them; each halves, unless there is nothing to."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(c_in, width, 3, min(2, reduction), 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        c_in = width
    return nn.Sequential(*layers[:-1])
