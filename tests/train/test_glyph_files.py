"""A file of glyphs is read whole, or says what is wrong with it and which command makes it."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from nas_prune.base.errors import DataError
from nas_prune.train.data import glyphs
from nas_prune.train.data.loaders import load
from nas_prune.train.data.settings import DataSettings

CLASSES = ["一", "二", "三"]


def planted(folder: Path, *, changes: dict[str, Any] | None = None, **about: Any) -> Path:
    """A file of six images of each part; ``changes``: of its tensors, None for none."""
    images = torch.arange(6 * 64).reshape(6, 8, 8).byte()
    part = {"images": images, "labels": torch.arange(6) % 3, "faces": torch.arange(6) // 3}
    found: dict[str, Tensor] = {f"{name}.{key}": value.clone() for name in glyphs.PARTS for key, value in part.items()}
    found |= changes or {}
    says = {
        "classes": CLASSES,
        "faces": {"train": ["a", "b"], "test": ["c", "d"]},
        "mean": 0.5,
        "std": 0.25,
        "made": {},
    }
    whole = {name: value for name, value in found.items() if value is not None}
    glyphs.write(folder / glyphs.FILE, glyphs.About(**{"format": glyphs.FORMAT, **says, **about}), whole)
    return folder / glyphs.FILE


def test_images_labels_and_names_come_as_they_were_written(tmp_path: Path) -> None:
    planted(tmp_path)
    settings = DataSettings(name="glyphs", root=str(tmp_path), image_size=8, batch_size=6, train_images=4)
    data = load(settings, seed=0)
    images, labels = next(iter(data.evaluation))
    assert (data.classes, data.seen["label_names"]) == (3, tuple(CLASSES))  # whatever the few training images are of
    assert (data.seen["mean"], data.seen["std"], data.seen["input_size"]) == ((0.5,), (0.25,), (1, 8, 8))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.allclose(images.flatten(), (torch.arange(6 * 64) % 256 / 255 - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("root", "part"),
    [(None, "data.name glyphs needs data.root"), ("/lost", "there is no file /lost/glyphs.safetensors")],
)
def test_who_has_no_file_is_told_how_to_make_it(root: str | None, part: str) -> None:
    with pytest.raises(DataError, match=rf"{part}.*`python benchmarks/glyphs.py FOLDER`"):
        load(DataSettings(name="glyphs", root=root), seed=0)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"test.labels": None}, "it has no test.labels"),
        ({"train.images": torch.zeros(6, 8, 8)}, r"train.images are \(6, 8, 8\) of torch.float32, not square images"),
        ({"train.images": torch.zeros(6, 8, 9).byte()}, "not square images"),
        ({"train.images": torch.zeros(0, 8, 8).byte()}, "not square images"),
        ({"train.images": torch.zeros(6, 64).byte()}, "not square images"),
        ({"test.labels": torch.zeros(5, dtype=torch.int64)}, r"test.labels are \(5,\) of torch.int64, of 6 images"),
        ({"test.labels": torch.zeros(6)}, "of torch.float32, of 6 images"),
        ({"test.labels": torch.arange(6) - 1}, "test.labels are -1 to 4, there are 3"),
        ({"train.faces": torch.arange(6)}, "train.faces are 0 to 5, there are 2"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    path = planted(tmp_path, changes=changes)
    with pytest.raises(DataError, match=part) as caught:
        load(DataSettings(name="glyphs", root=str(tmp_path)), seed=0)
    assert str(path) in str(caught.value)
    assert "benchmarks/glyphs.py" in str(caught.value)


@pytest.mark.parametrize("header", [None, {}, {"glyphs": "{"}, {"glyphs": '{"format": "nas_prune.glyphs/0"}'}])
def test_a_header_of_another_kind_is_refused(header: dict[str, str] | None, tmp_path: Path) -> None:
    path = planted(tmp_path)
    content = safetensors.torch.save({"x": torch.zeros(1)}, header) if header is not None else b"no tensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"glyphs.safetensors"):
        load(DataSettings(name="glyphs", root=str(tmp_path)), seed=0)
