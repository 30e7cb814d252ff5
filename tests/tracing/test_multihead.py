"""torch's multi-head attention, and what torch builds of it: opened for pruning, equal, closed where it can be."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from nas_prune.base.axis import BITS
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.graph.multihead import MultiheadAttention, close_up, open_up

X = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": PADDING},
        {"key_padding_mask": PADDING, "need_weights": False},
        {"attn_mask": CAUSAL},
        {"attn_mask": torch.randn(4 * 2, 5, 5, dtype=torch.float64), "need_weights": False},
        {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    ],
)
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 12, "vdim": 10}])
def test_an_opened_attention_computes_what_torchs_does(asked: dict[str, Any], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(16, 4, dtype=torch.float64, **options).eval()
    given = [X, X[..., : options.get("kdim", 16)], X[..., : options.get("vdim", 16)]]
    given = [x if options.get("batch_first") else x.transpose(0, 1) for x in given]
    expected = plain(*given, **asked)
    open_up(opened := copy.deepcopy(plain))
    assert type(opened) is MultiheadAttention
    for got, want in zip(opened(*given, **asked), expected, strict=True):
        assert (got is None) == (want is None)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert list(opened.state_dict()) == list(plain.state_dict())
    close_up(opened)
    assert type(opened) is nn.MultiheadAttention
    assert vars(opened).keys() == vars(plain).keys()


def test_an_unbatched_input_is_one_image() -> None:
    plain = nn.MultiheadAttention(16, 4, dtype=torch.float64).eval()
    open_up(opened := copy.deepcopy(plain))
    for got, want in zip(opened(X[0], X[0], X[0]), plain(X[0], X[0], X[0]), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


class Text(nn.Module):
    """An encoder of torch on what a linear layer gives it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.first, self.encoder, self.head = nn.Linear(16, 16), encoder, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.first(x)).mean(1))


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    """A small layer."""
    return nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, **options)


ENCODERS = {
    "layer": layer,
    "norm first": lambda: layer(norm_first=True, activation="gelu"),
    "two": lambda: nn.TransformerEncoder(layer(), 2),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
@pytest.mark.parametrize("name", ENCODERS)
def test_heads_and_widths_of_an_encoder_of_torch_can_shrink(name: str) -> None:
    torch.manual_seed(0)
    model = Text(ENCODERS[name]()).double().eval()
    axes = trace(model, X)
    kinds = {axis.kind for axis in axes.free.values()}
    assert kinds >= {"head", "head_dim"}
    assert axes["first"].frozen is None
    arch = Arch.random(axes, keep=0.5)
    verify(model, axes, arch, X)
    small = derive(model, axes, arch)
    with torch.no_grad():
        torch.testing.assert_close(small(X), GatedModel(model, axes).eval().fixed(arch)(X), rtol=0, atol=1e-12)
    hidden = {name: range(2) for name, axis in axes.free.items() if "linear1" in name and axis.kind not in BITS}
    kept = derive(model, axes, Arch(hidden))
    assert any(type(module) is nn.MultiheadAttention for module in kept.modules())


def test_heads_and_the_stream_of_torchvisions_vit_can_shrink() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=4).eval()
    nn.init.normal_(model.heads[-1].weight)  # which starts at zero
    images = torch.randn(2, 3, 16, 16)
    axes = trace(model, images)
    assert {axes[name].kind for name in axes.free} == {"channel", "head", "head_dim", "hidden", "depth"}
    assert "conv_proj" in axes.free
    verify(model, axes, Arch.random(axes, keep=0.5), images)
