"""Laws of swaps: an operation in the place of a timm module is saved, loaded and built by timm like everything else."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from artefacts import signed, within
from timm.models import group_parameters
from torch import Tensor, nn
from zoo import few

import nas_prune as npr
from nas_prune.artifact.export import TOLERANCE, export
from nas_prune.artifact.folder import describe, load, save
from nas_prune.artifact.origin import Origin
from nas_prune.artifact.swaps import swap, swapped
from nas_prune.base.errors import ArtifactError
from nas_prune.ops import Choice, Convolution, Operation, Skip, StripeConv

SKIP, ZERO = {"operation": "skip"}, {"operation": "zero"}
PLACE = "layer2.0.conv2"  # of test_resnet
Swaps = dict[str, dict[str, Any]]
BACKBONES: dict[str, tuple[int, dict[str, Any], Swaps]] = {  # images, arguments, what is taken out
    "resnet18": (32, {"layers": (2, 1, 1, 1)}, {"layer1.1": SKIP}),
    "vit_tiny_patch16_224": (
        32,
        {"img_size": 32, "depth": 4},
        {"blocks.3": SKIP, "blocks.2.attn": ZERO, "blocks.2.norm1": SKIP},
    ),
    "convnext_atto": (64, {"depths": (1, 1, 2, 1)}, {"stages.2.blocks.1": SKIP}),
    "mobilenetv3_small_050": (64, {}, {"blocks.3.1": SKIP, "blocks.4.1": SKIP}),
}


def halved(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with a random half of every width gone."""
    axes = npr.trace(model, x)
    return npr.derive(model, axes, npr.Arch.random(axes, generator=torch.Generator().manual_seed(0))).eval()


@pytest.fixture(scope="module", params=few(BACKBONES, ("resnet18", "vit_tiny_patch16_224")))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Tensor, Path]:
    """A narrow model of each family from which blocks were taken, images for it, and the folder it was saved in."""
    size, kwargs, swaps = BACKBONES[request.param]
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    model = halved(timm.create_model(request.param, num_classes=10, **kwargs).eval(), x)
    swap(model, swaps)
    folder = tmp_path_factory.mktemp("artefacts") / request.param
    save(model, folder)
    assert describe(folder)["swaps"] == swaps
    return model, x, folder


def create(folder: Path, pretrained: bool = True, **arguments: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=pretrained, **arguments).eval()


def states_agree(one: nn.Module, other: nn.Module) -> bool:
    old, new = one.state_dict(), other.state_dict()
    return list(old) == list(new) and all(torch.equal(value, new[name]) for name, value in old.items())


def test_what_is_loaded_is_what_was_saved(small: tuple[nn.Module, Tensor, Path]) -> None:
    model, x, folder = small
    for loaded in (load(folder), create(folder)):
        assert states_agree(loaded, model)
        assert {path: type(m).__name__ for path, m in loaded.named_modules()} == {
            path: type(m).__name__ for path, m in model.named_modules()
        }
        with torch.no_grad():
            assert torch.equal(loaded(x), model(x))


def test_timm_changes_the_rest_of_it(small: tuple[nn.Module, Tensor, Path]) -> None:
    model, x, folder = small
    made = create(folder, num_classes=3, drop_path_rate=0.1)
    grey = create(folder, in_chans=1)
    with torch.no_grad():
        assert torch.equal(made.forward_features(x), model.forward_features(x))
        assert made(x).shape == (2, 3)
        assert grey(x[:, :1]).shape == (2, 10)
        torch.testing.assert_close(grey(x[:, :1]), model(x[:, :1].expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)
    fresh = create(folder, pretrained=False)
    assert {n: v.shape for n, v in fresh.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}
    assert swapped(model, fresh) == {}


def test_features_are_those_of_the_model_itself(small: tuple[nn.Module, Tensor, Path]) -> None:
    model, x, folder = small
    made = create(folder, features_only=True)
    with torch.no_grad():
        features, expected = made(x), model.forward_intermediates(x, intermediates_only=True)
    assert len(features) >= 3
    assert made.feature_info.channels() == [feature.shape[1] for feature in features]
    for index, feature in zip(made.feature_info.out_indices, features, strict=True):
        assert torch.equal(feature, expected[index])


def test_it_is_a_citizen_of_timm(small: tuple[nn.Module, Tensor, Path]) -> None:
    made, x = load(small[2]), small[1]
    before = made(x)
    groups = group_parameters(made, made.group_matcher(coarse=False), reverse=True)
    assert groups.keys() == {name for name, _ in made.named_parameters()}
    assert sorted(set(groups.values())) == list(range(max(groups.values()) + 1))
    final, intermediates = made.forward_intermediates(x)
    torch.testing.assert_close(made.forward_head(final), before)
    assert [f.shape[1] for f in intermediates] == [f["num_chs"] for f in made.feature_info][-len(intermediates) :]
    made.set_grad_checkpointing()
    made.train().requires_grad_()
    made(x).square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []
    made.reset_classifier(5)
    assert made.eval()(x).shape == (2, 5)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_it_is_exported(suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = resnet()
    swap(model, {"layer1.0.bn2": ZERO, "layer3.0.act1": SKIP})
    model.set_submodule(PLACE, chosen(model.get_submodule(PLACE)).eval())
    save(model, tmp_path / "model")
    made = export(load(tmp_path / "model"), torch.zeros(1, 3, 32, 32), tmp_path / f"model{suffix}")
    assert made.max_difference <= TOLERANCE
    assert made.batches == (1, 3)


def chosen(conv: nn.Module) -> Choice:
    """A choice between two candidates in the place of a convolution."""
    return Choice.of({"same": Convolution.like(conv), "point": Convolution.like(conv, kernel=1)})


def resnet(**kwargs: Any) -> Any:
    return timm.create_model("test_resnet", num_classes=10, **kwargs).eval()


def test_widths_may_be_pruned_afterwards_also_inside_the_operation(tmp_path: Path) -> None:
    model, x = resnet(), torch.randn(2, 3, 32, 32)
    model.set_submodule(PLACE, chosen(model.get_submodule(PLACE)).eval())
    swap(model, {"layer4.0.act1": SKIP})
    narrow = halved(model, x)
    wide, left = (each.get_submodule(PLACE).candidates["same"].convolution.weight.shape for each in (model, narrow))
    assert left[0] < wide[0]
    assert left[1] < wide[1]
    save(narrow, tmp_path / "narrow")
    loaded, made = load(tmp_path / "narrow"), create(tmp_path / "narrow")
    with torch.no_grad():
        assert torch.equal(loaded(x), narrow(x))
        assert torch.equal(made(x), narrow(x))
    assert list(describe(tmp_path / "narrow")["swaps"]) == [PLACE, "layer4.0.act1"]
    assert isinstance(loaded.get_submodule("layer4.0.act1"), Skip)


def test_what_is_inside_an_operation_may_be_swapped_too(tmp_path: Path) -> None:
    model, x = resnet(), torch.randn(2, 3, 32, 32)
    inner = f"{PLACE}.candidates.same.convolution"
    model.set_submodule(PLACE, chosen(model.get_submodule(PLACE)).eval())
    outer = {"operation": "choice", **model.get_submodule(PLACE).config}
    conv = model.get_submodule(inner)
    alive = torch.rand(conv.out_channels, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    stripes = StripeConv.of(conv, alive, "gathered").eval()
    model.set_submodule(inner, stripes)
    assert swapped(resnet(), model) == {PLACE: outer, inner: {"operation": "stripe_conv", **stripes.config}}
    save(model, tmp_path / "nested")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "nested")(x), model(x))
        assert torch.equal(create(tmp_path / "nested")(x), model(x))


def test_an_operation_of_other_arguments_takes_the_place_of_one() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    origin = nn.ModuleDict({"edge": chosen(conv), "list": nn.ModuleList([nn.ReLU(), nn.ReLU()])})
    model = copy.deepcopy(origin)
    assert swapped(origin, model) == {}
    kept = Choice.of({"point": model["edge"].candidates["point"]})
    model["edge"] = kept
    swap(model, {"list.1": ZERO})
    record = {"edge": {"operation": "choice", **kept.config}, "list.1": ZERO}
    assert swapped(origin, model) == json.loads(json.dumps(record)) == record
    swap(origin, record)
    assert [type(m) for m in origin.modules()] == [type(m) for m in model.modules()]


def test_mode_precision_and_random_state_are_kept(tmp_path: Path) -> None:
    model = resnet().double()
    model.layer3.train()
    conv = {"operation": "convolution", "in_channels": 3, "out_channels": 3}
    swap(model, {"layer3.0.conv2": conv, PLACE: conv})
    trained, still = model.get_submodule("layer3.0.conv2"), model.get_submodule(PLACE)
    assert [m.training for m in (*trained.modules(), *still.modules())].count(True) == len(list(trained.modules()))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model = resnet()
    model.set_submodule(PLACE, chosen(nn.Conv2d(3, 3, 3, padding=1)))
    before = torch.get_rng_state()
    save(model, tmp_path / "kept")
    load(tmp_path / "kept")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stem_that_was_replaced_tells_its_input_channels(tmp_path: Path) -> None:
    model = resnet(in_chans=1)
    del model.in_chans  # as of an older timm
    model.set_submodule("conv1.0", Convolution.like(model.get_submodule("conv1.0")).eval())
    model.pretrained_cfg["first_conv"] = "conv1.0"
    assert Origin.of(model, None, None).arguments["in_chans"] == 1
    model.in_chans = 1
    save(model, tmp_path / "grey")
    assert load(tmp_path / "grey")(torch.randn(1, 1, 32, 32)).shape == (1, 10)
    with pytest.raises(ArtifactError, match=r"conv1\.0: the arguments make another size.*leave out the argument"):
        create(tmp_path / "grey", in_chans=3)


def test_a_closed_branch_stays_closed_where_timm_drops_paths(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    swap(model, {"blocks.1.drop_path1": ZERO, "blocks.1.drop_path2": ZERO})
    save(model, tmp_path / "closed")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(create(tmp_path / "closed", drop_path_rate=0.5)(x), model(x))


def test_what_cannot_be_built_again_is_not_saved(tmp_path: Path) -> None:
    model = resnet()
    model.set_submodule(PLACE, Operation())
    with pytest.raises(ArtifactError, match=r"the Operation at 'layer2\.0\.conv2' is not a registered operation"):
        save(model, tmp_path / "model")
    model = resnet()
    model.get_submodule("layer2.0").add_module("extra", Skip())
    with pytest.raises(ArtifactError, match=r"Skip at 'layer2\.0\.extra' where its origin has no module"):
        save(model, tmp_path / "model")
    skip = Skip()
    skip._config = {"size": torch.Size([3]), "kind": nn.ReLU}
    model = resnet()
    model.set_submodule(PLACE, skip)
    with pytest.raises(ArtifactError, match=r"of the operation 'skip' at 'layer2\.0\.conv2' must be plain data"):
        save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = resnet()
    model.set_submodule(PLACE, Convolution.like(model.get_submodule(PLACE)).eval())
    swap(model, {"layer2.0.act1": SKIP})
    folder = tmp_path_factory.mktemp("artefacts") / "sound"
    save(model, folder)
    return folder


WIDE = {"operation": "convolution", "in_channels": 900_000, "out_channels": 900_000}
HOSTILE: dict[str, tuple[Mapping[str, Any], str]] = {
    "near miss": ({"layer2.0.act1": {"operation": "skipp"}}, "unknown operation 'skipp'; did you mean 'skip'"),
    "no name": ({"layer2.0.act1": {}}, "unknown operation 'None'"),
    "no text": ({"layer2.0.act1": {"operation": ["skip"]}}, "unknown operation"),
    "code": ({"layer2.0.act1": {"operation": "os.system"}}, "unknown operation 'os.system'"),
    "inside": ({PLACE: {"operation": "choice", "candidates": {"a": {"operation": "skipp"}}}}, "did you mean 'skip'"),
    "argument": ({PLACE: {"operation": "convolution", "channels": 3}}, "'convolution' at .* cannot be built with"),
    "huge": ({PLACE: {**WIDE, "in_channels": 10**12}}, "plain data with numbers up to"),
    "absurd": ({PLACE: WIDE}, "that is absurd"),
    "smaller": ({PLACE: {**WIDE, "in_channels": 3, "out_channels": 3}}, "larger, or empty"),
    "other weights": ({PLACE: {**WIDE, "in_channels": 3, "norm": False}}, "not those of the origin"),
    "place": ({"layer2.0.act9": SKIP}, r"no module 'layer2\.0\.act9' .*did you mean 'layer2\.0\.act\d'"),
    "method": ({"layer2.0.forward": SKIP}, r"no module 'layer2\.0\.forward'"),
    "everything": ({"": SKIP}, "no module '' that an operation could replace"),
    "type": ({PLACE: "skip"}, r"swaps\.layer2\.0\.conv2 should be a mapping"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_swap_is_refused(kind: str, sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for file in sound.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    changes, message = HOSTILE[kind]
    signed(folder, within("swaps", changes))
    for read in (load, create):
        with pytest.raises(ArtifactError, match=message):
            read(folder)


def test_an_artefact_from_before_there_were_swaps_is_loaded(tmp_path: Path) -> None:
    model = resnet()
    save(model, tmp_path / "old")
    signed(tmp_path / "old", lambda config: config.pop("swaps"))
    assert states_agree(load(tmp_path / "old"), model)
    assert describe(tmp_path / "old")["swaps"] == {}
