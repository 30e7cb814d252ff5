"""Modules of a user, one per way of reading or moving an axis: what the rules of the tracer are tried on."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from zoo import User


class CrossCovariance(User):
    """Attention among the channels of a head: softmax runs over an axis, and l2 norms over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.project = nn.Conv2d(3, 12, 4, stride=4), nn.Linear(12, 36), nn.Linear(12, 12)
        self.heads, self.temperature, self.head = 2, nn.Parameter(torch.ones(2, 1, 1)), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1) @ v
        return self.head((x + self.project(y.permute(0, 3, 1, 2).flatten(2))).relu().mean(1))


class ChannelAttention(User):
    """Fused attention whose keys are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(3, 10, 3) for _ in range(3))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        return self.head(F.scaled_dot_product_attention(q, k, v, scale=0.1).relu().mean(2))


class Upsampler(User):
    """Transposed convolutions, grouped too, and channels that become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, stride=2), nn.ConvTranspose2d(8, 12, 2, stride=2)
        self.grouped, self.shuffle = nn.ConvTranspose2d(12, 16, 2, stride=2, groups=2), nn.PixelShuffle(2)
        self.mix, self.head = nn.Conv2d(4, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.up(self.down(x).relu()).relu()).relu()
        return self.head(self.mix(self.shuffle(x)).relu().mean((2, 3)))


class Recurrent(User):
    """A bidirectional LSTM that reads an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.lstm = nn.Conv2d(3, 10, 4, stride=4), nn.LSTM(10, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.patch(x).relu().flatten(2).transpose(1, 2))
        return self.head(states.mean(1))


class EqualPieces(User):
    """One layer cut into three equal pieces, which stay equal."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        gate, value, rest = self.first(x).chunk(3, dim=1)
        return self.head(self.second(gate.sigmoid() * value + rest).relu().mean((2, 3)))


class PaddedResidual(User):
    """A narrow branch added to the first channels of a wide one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.head = nn.Conv2d(3, 10, 3), nn.Conv2d(3, 6, 3), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + F.pad(self.narrow(x), (0, 0, 0, 0, 0, 4))
        return self.head(y.relu().mean((2, 3)))


class Interleaved(User):
    """Every second unit gates its neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 16), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x.mean((2, 3)))
        return self.head(self.second(y[:, ::2].sigmoid() * y[:, 1::2]).relu())


class Extremes(User):
    """The largest and the smallest channel, the norm over channels, and their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.normalize(x, dim=1) + x.amax(1, keepdim=True) - x.amin(1, keepdim=True) + x.sum(1, keepdim=True)
        return self.head(self.second(x).relu().mean((2, 3)))


class Repeated(User):
    """Channels repeated in a row and one after the other, then read in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 6, 3), nn.Conv2d(24, 12, 3, groups=2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu().repeat_interleave(2, dim=1).repeat(1, 2, 1, 1)
        return self.head(self.grouped(x).relu().mean((2, 3)))


class Contraction(User):
    """torch.einsum with parameters of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(6, 8))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bchw,oc->bohw", x, self.first).relu()
        return self.head(torch.einsum("bihw,oi->bo", x, self.mix).relu())


class InputWidth(User):
    """Attention that reads its width off its input, as many models do."""

    class Attention(nn.Module):
        """Reshapes to the width of its input what is as wide as its heads."""

        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.qkv, self.proj = 3, nn.Linear(12, 36), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            B, N, C = x.shape
            qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
            x = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(B, N, C)
            return self.proj(x)

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attention, self.head = nn.Conv2d(3, 12, 4, stride=4), self.Attention(), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.patch(x), "b c h w -> b (h w) c")
        return self.head((x + self.attention(x)).relu().mean(1))


class OneNumber(User):
    """A module that knows two widths by one number: they stay equal."""

    class Block(nn.Module):
        """Two convolutions of one width."""

        def __init__(self) -> None:
            super().__init__()
            self.width, self.first, self.second = 6, nn.Conv2d(3, 12, 3), nn.Conv2d(6, 12, 3)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.first(x).split([self.width, self.width], dim=1)
            x = self.second(one.relu()) + torch.cat([other, other], 1)[:, :, 2:, 2:]
            return x[:, : self.width] * x[:, self.width :]

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = self.Block(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).relu().mean((2, 3)))


class Mappings(User):
    """A dict goes in, a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.head = nn.Conv2d(3, 8, 3), nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        x = self.first(batch["image"]).relu().mean((2, 3)) * self.other(batch["facts"])
        return {"logits": self.head(x), "more": (self.head(x.relu()),)}

    def example(self) -> tuple[dict[str, Tensor]]:  # type: ignore[override]
        generator = torch.Generator().manual_seed(5)
        return ({"image": super().example(), "facts": torch.randn(2, 5, generator=generator)},)


READERS = (CrossCovariance, ChannelAttention, Upsampler, Recurrent, EqualPieces, PaddedResidual, Interleaved)
READERS += (Extremes, Repeated, Contraction, InputWidth, OneNumber)
