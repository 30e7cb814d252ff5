"""Not only timm: the families of torchvision, by the same rules."""

import pytest
import torch
import torchvision
from torch import nn
from zoo import few

from nas_prune.costs import Macs
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.tracing.arch import Arch

CLASSIFIERS = {  # smallest of each family -> side of its images
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 64,
    "vit_b_16": 224,
    "wide_resnet50_2": 64,
}
SEGMENTERS = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
FAST = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CLASSIFIERS if name not in FAST]
REACH = {  # where attention is a function of torch or torchvision that computes head_dim from the embedding
    "vit_b_16": 0.75,
    "swin_t": 0.9,
    "swin_v2_t": 0.9,
}


def proven(model: nn.Module, side: int) -> float:
    """Share of the MACs that is left at keep 0.5, once gated is proven to equal derived."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    axes = trace(model.eval(), images)
    arch = Arch.random(axes, 0.5)
    proof = verify(model, axes, arch, images)
    assert max(proof.max_rel_error, proof.worst_node_error) <= 1e-9 < proof.control_error
    assert derive(model, axes, arch)
    return float(Macs(axes)(arch.sizes(axes)) / Macs(axes)({}))


@pytest.mark.parametrize("name", [*few(FAST, ()), *SLOW])
def test_a_classifier_is_exact(name: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    assert proven(model, CLASSIFIERS[name]) <= REACH.get(name, 0.45)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_segmenter_is_exact(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    assert proven(model, 64) <= 0.45
