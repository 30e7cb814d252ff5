"""A model says how its images come: whoever loads it with timm alone sees what the run saw, to the last image."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.datasets import ImageFolder

from nas_prune.run import build, pipeline
from nas_prune.run.recipe import recipe
from nas_prune.train.data import loaders as data
from nas_prune.train.data.preprocessing import data_keys, tell

MEAN, STD = [0.2, 0.5, 0.3], [0.3, 0.1, 0.2]
TOKENS = [
    "data.name=folder",
    "data.image_size=24",
    f"data.mean={MEAN}",
    f"data.std={STD}",
    "data.crop_pct=0.7",
    "data.interpolation=bilinear",
    "budget.cost=macs",
    "dense.epochs=2",
    "dense.baseline=false",
    "track.wandb=disabled",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three colours, of many sizes, hard enough that a network is wrong now and then."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 30)):
        for label, colour in enumerate(("red", "green", "blue")):
            (folder / split / colour).mkdir(parents=True)
            for number in range(count):
                size = draw.integers(26, 60, 2)
                pixels = draw.integers(0, 256, (*size, 3))
                pixels[..., label] = np.minimum(255, pixels[..., label] + draw.integers(0, 60))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / colour / f"{number}.png")
    return folder


@pytest.mark.usefixtures("recorded_timings")
def test_plain_timm_sees_what_the_run_saw(root: Path, tmp_path: Path) -> None:
    asked = recipe.read("smoke/digits_w_gates", [*TOKENS, f"data.root={root}"])
    results = pipeline.run(asked, tmp_path / "run")
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'finetuned'}", pretrained=True).eval()
    config = model.pretrained_cfg
    assert (config["mean"], config["std"], config["crop_pct"]) == (tuple(MEAN), tuple(STD), 0.7)
    assert (config["label_names"], config["num_classes"]) == (("blue", "green", "red"), 3)
    assert "tag" not in config
    images = ImageFolder(str(root / "val"), create_transform(**resolve_data_config(model=model), is_training=False))
    with torch.no_grad():
        right = [int(model(image[None]).argmax()) == label for image, label in images]
    assert 100 * sum(right) / len(right) == pytest.approx(results["finetuned"]["top1"], abs=1e-4)
    assert 34 < results["finetuned"]["top1"] < 100


def test_a_recipe_that_starts_from_trained_weights_takes_their_images() -> None:
    named = ["model.name=vit_tiny_patch16_224", "model.pretrained=true", "data.name=folder", "data.crop_pct=0.5"]
    found = build.resolved(recipe.read("smoke/digits_w_gates", named)).data
    assert (found.image_size, found.crop_pct) == (32, 0.5)  # the recipe says these
    assert (found.mean, found.std, found.interpolation) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    assert build.resolved(build.resolved(recipe.read("smoke/digits_w_gates", named))).data == found
    fresh = recipe.read("smoke/digits_w_gates", ["data.name=folder"])
    assert build.resolved(fresh) == fresh


def test_what_a_model_said_of_other_images_goes() -> None:
    model = timm.create_model("resnet18.a1_in1k", num_classes=10)
    digits = recipe.read("quickstart").data
    tell(model, data.load(digits, seed=0).seen)
    config = model.pretrained_cfg
    assert config["input_size"] == (1, 32, 32)
    assert (config["mean"], config["crop_pct"], config["pool_size"]) == ((0.3053,), 1.0, (1, 1))
    assert {"tag", "test_input_size", "label_offset"}.isdisjoint(config)
    assert data_keys({"input_size": (3, 96, 96), "interpolation": "random"}) == {"image_size": 96}
