"""Laws of artefacts: what is loaded is what was saved, bit for bit; whatever else lies in the folder is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from artefacts import Change, derived, signed, within
from torch import nn
from zoo import few

from nas_prune.artifact.folder import describe, load, save
from nas_prune.artifact.origin import Origin
from nas_prune.base.errors import ArtifactError
from nas_prune.tracing.arch import Arch

BACKBONES: dict[str, tuple[int, dict[str, Any]]] = {  # the smallest images that they take, and arguments
    "resnet18": (32, {}),
    "test_vit": (160, {}),
    "test_convnext": (64, {}),
    "test_efficientnet": (64, {}),
    "regnety_002": (64, {}),
    "densenet121": (64, {"growth_rate": 8, "block_config": (2, 2)}),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain_attributes(model: nn.Module) -> dict[tuple[str, str], object]:
    """Every number, text, tuple and list that a module keeps about itself."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name not in ("pretrained_cfg", "default_cfg")
        and isinstance(value, bool | int | float | str | tuple | list)
    }


def without_sources(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a pretrained_cfg says about the model, not where its dense weights come from."""
    sources = {"url", "file", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
    return {name: value for name, value in config.items() if name not in sources}


@pytest.mark.parametrize("name", few(BACKBONES, ("test_vit",)))
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    size, kwargs = BACKBONES[name]
    small, x, arch = derived(name, size, **kwargs)
    save(
        small,
        tmp_path / "derived",
        arch=arch,
        remarks={"certificate": {"max_abs_error": 1e-15}, "provenance": {"recipe": "smoke"}},
    )
    loaded = load(tmp_path / "derived")
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))
    assert plain_attributes(loaded) == plain_attributes(small)
    assert without_sources(loaded.pretrained_cfg) == without_sources(small.pretrained_cfg)
    assert Arch.read(tmp_path / "derived" / "arch.json") == arch
    assert describe(tmp_path / "derived")["certificate"] == {"max_abs_error": 1e-15}
    assert sorted(os.listdir(tmp_path)) == ["derived"]


def test_a_loaded_model_trains_like_the_saved_one(tmp_path: Path) -> None:
    small, x, _ = derived("test_efficientnet", 64)
    save(small, tmp_path / "derived")
    models = [load(tmp_path / "derived").train(), small.train()]
    for model in models:
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().sum().backward()
        optimizer.step()
    after, expected = (model.state_dict() for model in models)
    assert all(torch.equal(after[name], value) for name, value in expected.items())


def test_a_fresh_process_loads_it_without_anything_of_the_search(tmp_path: Path) -> None:
    small, x, _ = derived("test_vit", 160)
    save(small, tmp_path / "derived")
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    code = """if True:
        import sys, torch, nas_prune, nas_prune.artifact.folder, safetensors.torch
        torch.set_num_threads(1)
        model = nas_prune.artifact.folder.load("derived")
        y = model(safetensors.torch.load_file("x.safetensors")["x"])
        safetensors.torch.save_file({"y": y.detach()}, "y.safetensors")
        search = ("methods", "train", "costs", "derivation.derive", "derivation.trace", "run")
        sys.exit(any(f"nas_prune.{part}" in sys.modules for part in search))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.equal(safetensors.torch.load_file(tmp_path / "y.safetensors")["y"], small(x))


def test_input_channels_classes_and_constructor_arguments_are_kept(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10, in_chans=1, img_size=32, class_token=False, global_pool="avg")
    model.reset_classifier(3)
    save(model.half(), tmp_path / "derived")
    loaded, config = load(tmp_path / "derived"), describe(tmp_path / "derived")
    assert (config["num_classes"], config["model_args"]["in_chans"]) == (3, 1)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert loaded.patch_embed.img_size == (32, 32)


def test_input_channels_are_those_of_the_images_not_of_the_first_convolution() -> None:
    with torch.device("meta"):
        model = timm.create_model("tresnet_m")  # folds 4x4 pixels into channels first
    assert Origin.of(model, None, None).arguments["in_chans"] == 3


def test_tensors_that_were_one_are_one_again(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10)
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    save(model, tmp_path / "derived")
    loaded = load(tmp_path / "derived")
    assert loaded.blocks[1].mlp.fc1.weight is loaded.blocks[0].mlp.fc1.weight
    assert loaded.blocks[2].mlp.fc1.weight is not loaded.blocks[0].mlp.fc1.weight


def test_buffers_outside_state_dict_are_kept_where_they_differ(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10).eval()
    origin = timm.create_model(
        "vit_base_patch16_rope_224", depth=1, embed_dim=48, num_heads=2, img_size=32, patch_size=16
    )
    name, buffer = next(
        (n, b) for n, b in origin.named_buffers() if n not in origin.state_dict() and b.is_floating_point()
    )
    path, _, leaf = name.rpartition(".")
    setattr(origin.get_submodule(path), leaf, buffer * 2)
    for folder, saved in (("plain", model), ("rope", origin)):
        save(saved, tmp_path / folder)
    assert torch.equal(load(tmp_path / "rope").get_buffer(name), buffer * 2)
    assert not (tmp_path / "plain" / "buffers.safetensors").exists()


def test_saving_and_loading_leave_the_random_state_alone(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10)
    before = torch.get_rng_state()
    save(model, tmp_path / "derived")
    load(tmp_path / "derived")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_model_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10)
    for folder in ("one", "two"):
        save(model, tmp_path / folder)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_artefact_is_replaced_whole(tmp_path: Path) -> None:
    first, second = (timm.create_model("test_vit", num_classes=classes) for classes in (10, 3))
    save(first, tmp_path / "derived", arch=Arch())
    save(second, tmp_path / "derived")
    assert describe(tmp_path / "derived")["num_classes"] == 3
    assert sorted(os.listdir(tmp_path / "derived")) == ["config.json", "model.safetensors"]


def test_a_failed_save_leaves_the_old_artefact_and_nothing_else(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10)
    save(model, tmp_path / "derived")
    before = {path: path.read_bytes() for path in (tmp_path / "derived").iterdir()}
    with pytest.raises(ArtifactError, match="provenance must be plain data"):
        save(model, tmp_path / "derived", remarks={"provenance": {"when": object()}})
    model.blocks[0].attn.num_heads = None
    with pytest.raises(ArtifactError, match=r"blocks\.0\.attn\.num_heads"):
        save(model, tmp_path / "derived")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ArtifactError, match=r"also holds thesis\.tex"):
        save(timm.create_model("test_vit"), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "ten years of work"


def test_only_timm_models_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Only timm models can be saved.*pass origin="):
        save(nn.Linear(2, 2), tmp_path / "derived")
    with pytest.raises(ArtifactError, match="Linear at '' where its origin has VisionTransformer"):
        save(nn.Linear(2, 2), tmp_path / "derived", origin=("test_vit", {}))
    with pytest.raises(ArtifactError, match=r"'act_layer'.*must be plain data"):
        save(timm.create_model("test_vit", act_layer=nn.ReLU), tmp_path / "derived")
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefacts") / "derived"
    save(timm.create_model("test_vit", num_classes=10), folder, arch=Arch({"norm": [0]}))
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A sound artefact to be spoiled."""
    return Path(shutil.copytree(sound, tmp_path / "derived"))


def of(key: str, value: object) -> Change:
    return lambda config: config.update({key: value})


HOSTILE: dict[str, tuple[Change, str]] = {
    "version": (of("format_version", 3), "format version 3"),
    "format": (of("format", "something"), "not the config of a nas_prune artefact"),
    "unknown key": (of("__reduce__", "os.system"), "unknown key '__reduce__'"),
    "wrong type": (of("shapes", 3), "shapes should be a mapping"),
    "no sums": (lambda config: config.pop("sha256"), "SHA-256 does not match"),
    "traversal": (within("sha256", {"../../secret": "0"}), r"sha256\.\.\./\.\./secret"),
    "absolute path": (within("sha256", {"/etc/passwd": "0"}), "sha256./etc/passwd"),
    "near miss": (of("backbone", "test_vitt"), "did you mean 'test_vit'"),
    "remote": (of("backbone", "hf-hub:timm/resnet18"), "knows no architecture"),
    "local": (of("backbone", "local-dir:/tmp"), "knows no architecture"),
    "itself": (of("backbone", "nas_prune_derived"), "no folder is named"),
    "other architecture": (of("architecture", "test_vit"), "architecture should be 'nas_prune_derived'"),
    "other model": (of("backbone", "test_resnet"), "cannot create test_resnet|not those of the origin"),
    "reads a file": (within("model_args", {"checkpoint_path": "x.pth"}), "'checkpoint_path'.*may not be part"),
    "downloads": (within("model_args", {"pretrained": True}), "'pretrained'.*may not be part"),
    "source": (within("pretrained_cfg", {"file": "x.pth"}), "source of other weights"),
    "unknown config": (within("pretrained_cfg", {"eval": "1"}), "cannot create test_vit"),
    "unknown argument": (within("model_args", {"depht": 3}), "cannot create test_vit"),
    "huge argument": (within("model_args", {"embed_dim": 10**12}), "numbers up to"),
    "huge model": (within("model_args", {"embed_dim": 640_000}), "that is absurd"),
    "bigger origin": (within("model_args", {"num_classes": 500_000}), "the config says"),
    "smaller origin": (within("model_args", {"num_classes": 9}), "larger, or empty"),
    "shape": (within("shapes", {"norm.weight": [32]}), "the config says"),
    "unknown tensor": (within("shapes", {"os.weight": [1]}), "the config says"),
    "shared": (of("shared", [["norm.weight", "head.weight"]]), "cannot be one and the same"),
    "unknown module": (within("attributes", {"blocks.99": {"scale": 1.0}}), "no module 'blocks.99'"),
    "new attribute": (within("attributes", {"norm": {"forward": "x"}}), "no plain attribute 'forward'"),
    "private": (within("attributes", {"norm": {"__class__": "x"}}), "no plain attribute '__class__'"),
    "type of attribute": (within("attributes", {"blocks.0.attn": {"num_heads": "2"}}), "num_heads would be str"),
    "length of attribute": (
        within("attributes", {"norm": {"normalized_shape": [64] * 9}}),
        "normalized_shape would be",
    ),
    "deep": (of("provenance", {"a": json.loads("[" * 300 + "]" * 300)}), "nested more than 40 levels"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_config_is_refused(kind: str, folder: Path) -> None:
    change, message = HOSTILE[kind]
    signed(folder, change)
    with pytest.raises(ArtifactError, match=message):
        load(folder)
    if kind in ("other architecture", "downloads"):
        return  # timm sees to these itself, before it asks for an artefact
    with pytest.raises(ArtifactError, match=message):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "arch.json"])
@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink])
def test_a_damaged_or_missing_file_is_refused(damage: Callable[[Path], None], name: str, folder: Path) -> None:
    damage(folder / name)
    for read in (load, describe):
        with pytest.raises(ArtifactError, match=f"{folder}|not valid JSON"):
            read(folder)


def test_a_file_that_was_smuggled_in_is_refused(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "buffers.safetensors")
    with pytest.raises(ArtifactError, match=r"buffers\.safetensors is not part of the artefact"):
        load(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"format": NaN}', "\x00\xff"])
def test_a_config_that_is_none_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        load(folder)


def other_weights(folder: Path, content: bytes) -> None:
    """Put other weights in the folder, as an attacker would, and sign them."""
    path = folder / "model.safetensors"
    path.write_bytes(content)
    hashed = hashlib.sha256(content).hexdigest()
    signed(folder, within("sha256", {path.name: hashed}))


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    right = safetensors.torch.load_file(folder / "model.safetensors")
    extra = {**right, "extra": torch.zeros(1)}
    wider = {**right, "norm.weight": torch.zeros(65)}
    whole = {**right, "norm.weight": torch.zeros(64, dtype=torch.int64)}
    for tensors, message in ((extra, "unknown: .*extra"), (wider, "larger, or empty"), (whole, "of type torch.int64")):
        other_weights(folder, safetensors.torch.save(tensors))
        with pytest.raises(ArtifactError, match=message):
            load(folder)


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    for content in (b"", b"\x80\x04cos\nsystem\n", len(header).to_bytes(8, "little") + header, b"\xff" * 100):
        other_weights(folder, content)
        with pytest.raises(ArtifactError, match="not a safetensors file"):
            load(folder)


def test_no_artefact_and_an_interrupted_save_are_told_apart(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no artefact in .*check the path"):
        load(folder / "elsewhere")
    with pytest.raises(ArtifactError, match=r"it is the folder of a run, whose model is in .*derived"):
        load(folder.parent)
    folder.rename(folder.with_name(".derived.previous"))
    with pytest.raises(ArtifactError, match=r"left the old one in .*\.derived\.previous"):
        load(folder)
