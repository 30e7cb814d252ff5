"""Laws of a start: what a recipe says is checked before a second is spent, and a start that fails leaves no trace."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from nas_prune.artifact import folder as artifact
from nas_prune.base.errors import DataError, NasPruneError, RecipeError, StorageError
from nas_prune.run import build, pipeline
from nas_prune.run.checks import check
from nas_prune.run.recipe import recipe
from nas_prune.train.data import decoding, room
from nas_prune.train.data import loaders as data
from nas_prune.train.data.file_images import transform
from nas_prune.train.data.settings import DataSettings

SMOKE = "smoke/digits_w_gates"

NEEDS_NO_MODEL = {
    "dense.scheduler=cosin": "dense.scheduler: no 'cosin'; did you mean 'cosine'",
    "search.scheduler=plateau": "search.scheduler: no 'plateau'; there is: constant, cosine",
    "finetune.scheduler=none": "finetune.scheduler: no 'none'",
    "dense.warmup_epochs=50": "dense.warmup_epochs 50 is longer than the stage, 1 epochs",
    "dense.optimizer=adahessian": "dense.optimizer adahessian, or its lr",
    "gate.options={leak: x}": "gate.options.leak should be a valid number, not 'x'",
    "gate.options={detach_weights: 1}": "gate.options.detach_weights should be a valid boolean",
    "gate.options={init: -9}": "every unit is closed before the first step",
    "gate={name: sigmoid, options: {temperature: 0}}": "not finite",
    "gate={name: sigmoid, options: {temperature: -1}}": "a unit of a higher score is less open",
    "gate={name: hard_concrete, options: {pace: 0}}": "division by zero",
    "gate.kinds={operation: {name: softmax, options: {temperature: 0}}}": "gate.kinds.operation.options of gate",
    "search.penalties.0.options={form: hing}": "search.penalties.0.options.form should be 'hinge' or 'log'",
    "search.penalties.0.options={alpha: much}": "search.penalties.0.options.alpha should be a valid number",
    "search.penalties=[{name: structural, options: {layers: {a: {kernel: x}}}}]": "layers",
    "budget.target=0x": "budget.target '0x' must be above zero",
    "budget.target=-1": "budget.target '-1' must be above zero",
    "budget.target=fast": "budget.target: cannot read 'fast'; write 0.5x (of the dense model), or 4.0ms",
    "budget.limits={params: abc}": "budget.limits.params: cannot read 'abc'; write 0.5x (of the dense model), or 2G",
    "budget.target=1e999x": "above zero and finite",
    "budget.target=1x": "within budget.target 1x already",
    "budget.target=2G": "budget.target '2G' is no figure of latency",
    "budget.limits={params: 0x}": "budget.limits.params '0x' must be above zero",
    "budget.limits={macs: 4ms}": "budget.limits.macs '4ms' is no figure of macs",
    "space=/lost/space.yaml": "no search space '/lost/space.yaml'",
    "model.name=resnet19": "timm has no model 'resnet19'; did you mean",
    "data.name=digit": "unknown dataset 'digit'; did you mean 'digits'?",
    "latency.calibration=/lost/file": "there is no calibration /lost/file",
    "latency.runtime=tensorrt": "tensorrt needs",
    "data.image_size=100000": "no room for the images of data.batch_size 16 at data.image_size 100000",
    "data.image_size=12000": "no room for the 96 images of data.name generated at data.image_size 12000",
    "data.eval_batch_size=1000000000": "no room for the images of data.eval_batch_size",
    "latency.batch_size=1000000000": "no room for the images of latency.batch_size",
    "data.crop_scale=[0.0, 1.0]": "data.crop_scale",
    "data.crop_scale=[0.9, 0.1]": "the smaller share first",
    "model.kwargs={num_classes: 5}": "model.kwargs.num_classes is 5, but generated has 10",
    "model.kwargs={in_chans: 1}": "model.kwargs.in_chans is 1, but generated has 3",
    "model.kwargs={drop_rate: 1e9}": "numbers up to 1000000",
    "model.kwargs={drop_path_rate: 7}": "cannot be trained on 2 images of 3 x 32 x 32",
    "model.kwargs={global_pool: ''}": "check data.image_size, data.batch_size and model.kwargs",
    "model.kwargs={features_only: true}": "it answers with list, where (2, 10) are the classes",
    "model.kwargs={output_stride: 3}": "AssertionError; check model.kwargs",
    "model.name=vit_tiny_patch16_224": "Input height (32) doesn't match model (224)",
    "data.batch_size=1": "cannot be trained on 1 image of 3 x 32 x 32: Expected more than 1 value per channel",
    "model.kwargs={device: cpu}": "'device' of test_resnet may not be part",
    "model.kwargs={pretrained_cfg_overlay: {url: http://a}}": "pretrained_cfg_overlay names weights",
    "model.kwargs={pretrained_cfg_overlay: {file: /lost}}": "there is no file '/lost'",
    "model.checkpoint=/lost.pth": "there is no file /lost.pth",
}
NEEDS_THE_MODEL = {
    "search.penalties.0.options={alpha: -1}": "search.penalties.0.options make the penalty of the dense model -0.6",
    "search.penalties.0.options={margin: 0}": "dense model inf",
    "search.penalties.0.name=skeleton": "`skeleton` needs gates of that name",
    "search.penalties=[{name: structural, options: {layers: {lost: {kernel: 2}}}}]": "'lost' is no convolution",
    "search.selector=genotype": "has no `cell:`",
    "search.selector={name: fixed_widths, options: {widths: {lost: 8}}}": "fixed_widths: no axis 'lost'",
    "search.selector={name: fixed_widths, options: {widths: {conv1.0: 9999}}}": "units in this space, not 9999",
    "search.selector={name: combined, options: {keep: {snip: 0.5}}}": "nothing has given scores called snip",
    "search.mover=saliency": "the mover `saliency` moves thresholds of gates that look",
    "search.mover=soft_filter": "soft_filter zeroes the weights of units: set gate.name: mask",
}


def refused(token: str, folder: Path) -> str:
    """What a start says, which comes to nothing."""
    with pytest.raises(NasPruneError) as told, pipeline.opened(recipe.read(SMOKE, [token]), folder):
        pytest.fail("it began")
    assert told.value.exit_code == 2
    return str(told.value)


@pytest.mark.parametrize("token", NEEDS_NO_MODEL | NEEDS_THE_MODEL)
def test_what_cannot_be_used_is_named_and_the_folder_is_not_claimed(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token in NEEDS_NO_MODEL:
        monkeypatch.setattr(pipeline, "laid_out", lambda *_: pytest.fail("the model was traced first"))
    told = refused(token, tmp_path / "runs" / "a")
    assert (NEEDS_NO_MODEL | NEEDS_THE_MODEL)[token] in told
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_start_from_scratch_is_told_before_it_is_searched(tmp_path: Path) -> None:
    asked = recipe.read(SMOKE, ["model.name=test_convnext", "finetune.from_scratch=true"])
    with pytest.raises(RecipeError, match="does not say how"), pipeline.opened(asked, tmp_path / "run"):
        pytest.fail("it began")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_cannot_be_is_told_before_the_folder_is_found_to_hold_another_recipe(tmp_path: Path) -> None:
    recipe.write(recipe.read(SMOKE), tmp_path / "recipe.yaml")
    (tmp_path / "checkpoints").mkdir()
    assert "a run of another recipe" in refused("search.joint=7", tmp_path)
    assert "no search space 'nope'" in refused("space=nope", tmp_path)


def test_a_start_that_fails_leaves_a_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a run of another")
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(NasPruneError),
        pipeline.opened(recipe.read(SMOKE, ["search.penalties.0.name=skeleton"]), tmp_path, resume=False, force=True),
    ):
        pytest.fail("it began")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "recipe.yaml"]
    assert (tmp_path / "recipe.yaml").read_text() == "a run of another"


@pytest.mark.parametrize("name", recipe.recipes())
def test_every_recipe_passes_the_checks(name: str) -> None:
    assert check(recipe.read(name)) is None  # and raises nothing


def test_a_whole_number_is_a_number_for_a_gate_too(tmp_path: Path) -> None:
    asked = recipe.read(SMOKE, ["gate={name: sigmoid, options: {init: 3}}"])
    with pipeline.opened(asked, tmp_path / "run") as job:
        gated = build.gated(asked, job.model, job.space)
    assert {float(score) for scores in gated.scores().values() for score in scores} == {3.0}


def test_a_place_that_cannot_be_written_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("the data was loaded first"))
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError, match=r"cannot write .*is no folder; choose a place") as told:
            pipeline.run(recipe.read(SMOKE), folder)
        assert told.value.exit_code == 2
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for a user who is not root
    with pytest.raises(StorageError, match="is not writable"):
        pipeline.run(recipe.read(SMOKE), tmp_path / "run")


def test_the_memory_of_a_step_is_what_torch_takes() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, padding=1))
    images = torch.empty(2, 3, 32, 32, device="meta")
    one = 2 * 32 * 32 * 4  # bytes of a channel
    forward, step = (room.peak(net.to("meta"), images, training=training) for training in (False, True))
    assert forward == 16 * one  # what goes into ReLU, and what comes out
    assert 20 * one < step <= 32 * one  # both are kept for the gradient, which is as large
    with pytest.raises(RecipeError, match=r"no room for data.batch_size \d+ at .* 224: that takes [\d.]+ GiB"):
        room.check_room(timm.create_model("resnet18"), (3, 224, 224), {"data.batch_size": 10**6}, torch.device("cpu"))


def test_a_model_that_needs_numbers_is_let_through() -> None:
    class Asks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) else -x

    assert room.peak(Asks(), torch.empty(1, 1, device="meta"), training=True) == 0


def test_a_local_file_of_timms_own_way_is_loaded_and_not_recorded(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=10)
    torch.save(source.state_dict(), file := tmp_path / "w.pth")
    overlay = f"model.kwargs={{pretrained_cfg_overlay: {{file: '{file}', num_classes: 10}}}}"
    with pytest.raises(RecipeError, match=r"model.pretrained: true"):
        check(recipe.read(SMOKE, [overlay]))
    asked = build.resolved(recipe.read(SMOKE, [overlay, "model.pretrained=true"]))
    check(asked)
    images = data.load(asked.data, seed=0)
    started = build.model(asked.model, images)
    assert all(torch.equal(value, started.state_dict()[name]) for name, value in source.state_dict().items())
    artifact.save(started, tmp_path / "saved", origin=build.origin(asked.model, images))
    assert str(file) not in (tmp_path / "saved" / "config.json").read_text()
    assert "w.pth" not in (tmp_path / "saved" / "config.json").read_text()
    loaded = artifact.load(tmp_path / "saved").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in source.state_dict().items())


@pytest.fixture
def photos(tmp_path: Path) -> DataSettings:
    """Two classes of photos, three each to train and to evaluate on."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.{'jpg' if number else 'png'}")
    return DataSettings(name="folder", root=str(tmp_path), image_size=16, batch_size=2)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _float(path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(path, format="TIFF")


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("not an image"), "no image of a known format"),
    "cut": (_cut, "truncated"),
    "float": (_float, "floating-point"),
    "folder link": (lambda path: (path.unlink(), path.symlink_to("/lost")), "No such file"),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("place", ["train/cat/1.jpg", "val/dog/0.png"])
def test_an_image_that_cannot_be_read_is_named_or_skipped(
    how: str, place: str, photos: DataSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, why = SPOILT[how]
    path = Path(str(photos.root)) / place
    spoil(path)
    with pytest.raises(DataError, match=r"data\.unreadable: skip") as told:
        data.load(photos, seed=0)
    assert f"1 of 6 images cannot be read: {path} (" in str(told.value)
    assert why in str(told.value)
    found = data.load(photos.model_copy(update={"unreadable": "skip"}), seed=0)
    assert len(found.train.dataset) + len(found.evaluation.dataset) == 11  # type: ignore[arg-type]
    assert sum(len(labels) for _, labels in found.evaluation) == (6 if place.startswith("train") else 5)
    assert f"data.unreadable: skip; 1 of 6 images cannot be read: {path}" in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_spoils_later_is_named_in_one_line(workers: int, photos: DataSettings) -> None:
    found = data.load(photos.model_copy(update={"workers": workers}), seed=0)
    path = Path(str(photos.root)) / "val" / "cat" / "0.png"
    path.write_bytes(b"")
    with pytest.raises(DataError) as told:
        list(found.evaluation)
    assert str(told.value) == f"the image {path} cannot be read (it is empty); {decoding.ADVICE}"


def test_an_image_of_another_dataset_is_named_by_its_transform(photos: DataSettings) -> None:
    path = Path(str(photos.root)) / "val" / "cat" / "1.jpg"
    _cut(path)
    cannot = pytest.raises(DataError, match=rf"the image {path} cannot be read \(image file is truncated")
    with Image.open(path) as image, cannot:
        transform(photos, training=False)(image)


def test_a_class_without_images_gets_the_right_advice(photos: DataSettings) -> None:
    bare = Path(str(photos.root)) / "train" / "bird"
    bare.mkdir()
    (bare / "bird.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no images .*remove the folder of that class") as told:
        data.load(photos, seed=0)
    assert str(told.value).startswith(str(bare))
    (bare / "bird.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="bird holds no images"):
        data.load(photos.model_copy(update={"unreadable": "skip"}), seed=0)


def test_sixteen_bits_of_grey_are_scaled_and_gifs_are_read(photos: DataSettings) -> None:
    path = Path(str(photos.root)) / "val" / "cat" / "0.png"
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(path)
    assert np.abs(np.asarray(decoding.read(str(path)))[..., 0] - ramp / 257).max() <= 0.51
    Image.fromarray((ramp / 257).astype(np.uint8)).save(path.with_suffix(".gif"))
    assert np.asarray(decoding.read(str(path.with_suffix(".gif")))).shape == (64, 64, 3)
    found = data.load(photos, seed=0)
    assert sum(len(labels) for _, labels in found.evaluation) == 7
    images = next(iter(found.evaluation))[0]
    assert images[0].std() > 0.5  # not white


def test_a_policy_that_timm_does_not_know_is_named(photos: DataSettings) -> None:
    with pytest.raises(DataError, match=r"data.auto_augment 'randd-m9' is no policy"):
        data.load(photos.model_copy(update={"auto_augment": "randd-m9"}), seed=0)
