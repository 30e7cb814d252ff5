"""A decision's edits: made first, then cut; what is derived is what the edited model computes with the rest closed."""

import pytest
import timm
import torch

from nas_prune.base.errors import ArchError
from nas_prune.derivation.derive import derive, edited
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.tracing.arch import Arch


def test_derive_makes_the_edits_and_the_certificate_covers_them() -> None:
    model, x = timm.create_model("test_resnet", num_classes=4).double().eval(), torch.randn(2, 3, 32, 32).double()
    axes = trace(model, x)
    arch = Arch.random(axes, generator=torch.Generator().manual_seed(0))
    name = "layer1.0.conv2.weight"
    before = model.state_dict()[name].clone()
    edits = {name: 1.5 * before, "fc.bias": torch.arange(4.0).double()}
    small = derive(model, axes, arch, edits=edits)
    assert torch.equal(model.state_dict()[name], before)
    assert torch.equal(small.fc.bias, edits["fc.bias"])
    changed = edited(model, edits)
    torch.testing.assert_close(GatedModel(changed, axes, "mask").fixed(arch)(x), small(x), rtol=0, atol=1e-9)
    assert not torch.allclose(small(x), derive(model, axes, arch)(x), atol=1e-3)
    assert verify(changed, axes, arch, x).max_rel_error <= 1e-9


@pytest.mark.parametrize(
    "edit", [{"fc.biass": torch.zeros(4)}, {"fc.bias": torch.zeros(3)}, {"fc.bias": torch.ones(4) / 0}]
)
def test_an_edit_that_does_not_fit_is_refused_and_changes_nothing(edit: dict[str, torch.Tensor]) -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    before = model.fc.bias.clone()
    with pytest.raises(ArchError, match=r"an edit of fc\.bias"):
        derive(model, trace(model, torch.randn(2, 3, 32, 32)), Arch(), edits=edit)
    assert torch.equal(model.fc.bias, before)
