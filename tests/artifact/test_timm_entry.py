"""timm finds artefacts: what ``timm.create_model`` makes of a folder is what ``nas_prune.load`` makes of it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from artefacts import derived, signed, within
from timm.data import resolve_model_data_config
from timm.models import _builder
from torch import Tensor, nn
from zoo import few

from nas_prune.artifact import timm_build
from nas_prune.artifact.folder import load, save
from nas_prune.artifact.timm_build import PLACE
from nas_prune.base.errors import ArtifactError

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"test_resnet": 32, "test_vit": 160, "test_efficientnet": 64}


@pytest.fixture(scope="module", params=few(SIZES, ("test_resnet", "test_vit")))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A derived model of each family, saved."""
    small, _, arch = derived(request.param, SIZES[request.param])
    path = tmp_path_factory.mktemp("artefacts") / str(request.param)
    save(small, path, arch=arch)
    return path


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One derived model, saved."""
    small, _, _ = derived("test_resnet", 32)
    path = tmp_path_factory.mktemp("artefacts") / "resnet"
    save(small, path)
    return path


def create(folder: Path, pretrained: bool = True, **arguments: Any) -> nn.Module:
    model = timm.create_model(f"local-dir:{folder}", pretrained=pretrained, **arguments)
    assert isinstance(model, nn.Module)
    return model


def images(folder: Path, channels: int = 3) -> Tensor:
    size = SIZES[folder.name]
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def widths(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_timm_gives_the_model_that_load_gives(folder: Path) -> None:
    made, loaded = create(folder), load(folder)
    assert made.training
    assert type(made) is type(loaded)
    assert list(made.state_dict()) == list(loaded.state_dict())
    assert all(torch.equal(made.state_dict()[name], value) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(made.eval()(images(folder)), loaded(images(folder)))
    assert [made.num_features, made.feature_info] == [loaded.num_features, loaded.feature_info]


def test_fresh_weights_in_the_derived_shapes(folder: Path) -> None:
    made, loaded = create(folder, pretrained=False), load(folder)
    assert widths(made) == widths(loaded)
    assert not torch.equal(next(made.parameters()), next(loaded.parameters()))
    made(images(folder)).sum().backward()


@pytest.mark.parametrize("classes", [3, 0])
def test_another_classifier_on_the_same_trunk(classes: int, folder: Path) -> None:
    made, loaded = create(folder, num_classes=classes).eval(), load(folder)
    with torch.no_grad():
        assert torch.equal(made.forward_features(images(folder)), loaded.forward_features(images(folder)))
        assert made(images(folder)).shape == (2, classes or loaded.head_hidden_size)
    assert made.num_classes == classes


def test_a_classifier_for_an_artefact_that_has_none(folder: Path, tmp_path: Path) -> None:
    headless = load(folder)
    headless.reset_classifier(0)
    save(headless, tmp_path / "headless")
    made = create(tmp_path / "headless", num_classes=7).eval()
    with torch.no_grad():
        assert made(images(folder)).shape == (2, 7)
        assert torch.equal(made.forward_features(images(folder)), load(folder).forward_features(images(folder)))


def test_grey_images_see_the_sum_of_the_first_filters(folder: Path) -> None:
    grey = images(folder, channels=1)
    with torch.no_grad():
        torch.testing.assert_close(create(folder, in_chans=1).eval()(grey), load(folder)(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("arguments", [{}, {"out_indices": (0, 2)}, {"feature_cls": "getter"}, {"pretrained": False}])
def test_features_only(arguments: dict[str, Any], folder: Path) -> None:
    made = create(folder, features_only=True, **arguments).eval()
    with torch.no_grad():
        features = made(images(folder))
    assert made.feature_info.channels() == [feature.shape[1] for feature in features]
    assert len(features) == len(arguments.get("out_indices", made.feature_info.out_indices))


def test_features_are_those_of_the_derived_model(folder: Path) -> None:
    made, loaded = create(folder, features_only=True).eval(), load(folder)
    with torch.no_grad():
        features = made(images(folder))
        expected = loaded.forward_intermediates(images(folder), intermediates_only=True)
    for index, feature in zip(made.feature_info.out_indices, features, strict=True):
        assert torch.equal(feature, expected[index])


@pytest.mark.zoo
def test_features_where_stages_hand_on_more_than_one_tensor(tmp_path: Path) -> None:
    small, x, _ = derived("pit_ti_224", 32, depth=(1, 1, 1), img_size=32)
    save(small, tmp_path / "pit")
    made = create(tmp_path / "pit", features_only=True).eval()
    with torch.no_grad():
        assert made.feature_info.channels() == [feature.shape[1] for feature in made(x)]


def test_it_is_a_citizen_of_timm(folder: Path) -> None:
    made = create(folder, drop_rate=0.25, drop_path_rate=0.1).eval()
    assert 0.25 in {getattr(made, "drop_rate", None), *(getattr(module, "p", None) for module in made.modules())}
    before = made(images(folder))
    made.set_grad_checkpointing()
    after = made(images(folder))
    torch.testing.assert_close(after, before)
    after.sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    final, intermediates = made.forward_intermediates(images(folder))
    assert final.shape[1] == made.num_features or final.shape[-1] == made.num_features
    assert [f.shape[1] for f in intermediates] == [f["num_chs"] for f in made.feature_info][-len(intermediates) :]
    made.reset_classifier(5)
    assert made(images(folder)).shape == (2, 5)
    assert made.get_classifier().out_features == 5


def test_what_timm_made_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    made = create(folder, num_classes=4).eval()
    save(made, tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(create(tmp_path / "again").eval()(images(folder)), made(images(folder)))


def test_rewritten_classes_are_rewritten_again(tmp_path: Path) -> None:
    small, x, _ = derived("convit_tiny", 32, depth=2, local_up_to_layer=1, img_size=32)
    save(small, tmp_path / "convit")
    made = create(tmp_path / "convit", num_classes=3).eval()
    with torch.no_grad():
        assert torch.equal(made.forward_features(x), small.forward_features(x))
    assert [type(module) for module in made.blocks.modules()] == [type(module) for module in small.blocks.modules()]


def test_precision_is_that_of_the_artefact_unless_timm_is_told(resnet: Path, tmp_path: Path) -> None:
    save(load(resnet).half(), tmp_path / "half")
    assert next(create(tmp_path / "half").parameters()).dtype is torch.float16
    assert next(create(tmp_path / "half", dtype=torch.float32).parameters()).dtype is torch.float32


def test_an_argument_that_changes_what_was_pruned_is_refused(resnet: Path) -> None:
    with pytest.raises(ArtifactError, match=r"fc\.weight: .* was pruned to .*leave out the argument"):
        create(resnet, global_pool="catavgmax")


def test_a_hostile_artefact_is_refused_before_the_backbone_is_built(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(resnet, tmp_path / "spoiled"))
    signed(folder, within("model_args", {"block_args": {"reduce_first": 9}}))
    monkeypatch.setattr(timm_build, "model_entrypoint", None)
    with pytest.raises(ArtifactError, match="cannot create test_resnet"):
        create(folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ArtifactError, match="SHA-256 does not match"):
        create(folder, pretrained=False)


def test_timm_knows_the_size_of_image_that_it_was_trained_with(resnet: Path, tmp_path: Path) -> None:
    save(load(resnet), tmp_path / "small", remarks={"provenance": {"recipe": {"data.image_size": 48}}})
    assert resolve_model_data_config(create(tmp_path / "small"))["input_size"] == (3, 48, 48)


def test_the_entry_alone_names_no_model() -> None:
    with pytest.raises(ArtifactError, match="use local-dir:FOLDER"):
        timm.create_model("nas_prune_derived")


def test_timm_is_left_as_it_was(resnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = getattr(_builder, PLACE)
    create(resnet)
    with pytest.raises(TypeError, match="nonsense"):
        create(resnet, nonsense=1)
    assert getattr(_builder, PLACE) is before
    monkeypatch.delattr(_builder, PLACE)
    with pytest.raises(ArtifactError, match=r"use nas_prune\.load"):
        create(resnet)


@pytest.mark.slow
def test_a_backbone_that_timm_has_pruned_already(tmp_path: Path) -> None:
    save(timm.create_model("efficientnet_b1_pruned", num_classes=3), tmp_path / "b1")
    made, loaded = create(tmp_path / "b1"), load(tmp_path / "b1")
    assert all(torch.equal(made.state_dict()[name], value) for name, value in loaded.state_dict().items())


def test_timm_may_be_imported_after_nas_prune(resnet: Path) -> None:
    check = f"""import nas_prune, sys
assert not [name for name in ("timm", "torch", "pydantic") if name in sys.modules]
import timm
assert timm.__spec__.loader is timm.__loader__ and type(timm.__loader__).__name__ == "SourceFileLoader"
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("nas_prune")]
sys.exit(timm.create_model("local-dir:{resnet}", pretrained=True).num_classes)"""
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 10, done.stderr


def test_to_look_for_timm_is_not_to_import_it() -> None:
    check = """import importlib.util, sys, nas_prune
assert importlib.util.find_spec("timm").origin.endswith("__init__.py")
assert importlib.util.find_spec("timmm") is None
sys.exit("timm" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
