"""Laws of the data: a batch is a function of the seed and the epoch, and a dataset that cannot be used says why."""

import gzip
import struct
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from nas_prune.base.errors import DataError
from nas_prune.train.data.augment import augment, cut
from nas_prune.train.data.idx import read_idx
from nas_prune.train.data.loaders import (
    Data,
    FirstBatches,
    check_labels,
    datasets,
    from_loaders,
    load,
    mixer,
    parted,
    set_epoch,
    unaugmented,
)
from nas_prune.train.data.order import seeded
from nas_prune.train.data.settings import DataSettings

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
AUGMENTED = {"hflip": 0.5, "shift": 3, "crop_scale": (0.5, 1.0), "random_erasing": 0.5, "cutout": 8}


def everything(loader: DataLoader[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def epoch_of(data: Data, epoch: int) -> Tensor:
    set_epoch(data.train, epoch)
    return everything(data.train)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, grey and colour, of unequal sides."""
    for split, count in (("train", 6), ("val", 2)):
        for shade, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                mode, colour = ("L", 200 * shade) if number % 2 else ("RGB", (200 * shade, number, 0))
                Image.new(mode, (40 + number, 30), colour).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "channels", "train", "evaluation"),
    [
        ("digits", 1, 1437, 360),
        pytest.param(
            "fashion_mnist", 1, 60000, 10000, marks=pytest.mark.skipif(not DEBIAN.is_dir(), reason="not here")
        ),
        ("generated", 3, 64, 32),
    ],
)
def test_sets_in_memory_are_whole_and_normalised(name: str, channels: int, train: int, evaluation: int) -> None:
    data = load(DataSettings(name=name, batch_size=16), seed=0)
    images, labels = everything(data.evaluation)
    inner = images[..., 2:-2, 2:-2]  # without the border of Fashion-MNIST
    assert (data.classes, data.channels, data.name) == (10, channels, name)
    assert (len(data.train.dataset), images.shape) == (train, (evaluation, channels, 32, 32))  # type: ignore[arg-type]
    assert sorted(set(labels.tolist())) == list(range(10))
    assert inner.mean().abs() < 0.2  # standard deviations; the evaluation part is not the part that was measured
    assert 0.75 < inner.std() < 1.1  # below 1 where resizing smooths
    assert data.train.drop_last


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_bordered_to_32_and_resized_to_other_sizes() -> None:
    images, labels = next(iter(load(DataSettings(name="fashion_mnist"), seed=0).evaluation))
    small, same = next(
        iter(load(DataSettings(name="fashion_mnist", image_size=28, root=str(DEBIAN)), seed=0).evaluation)
    )
    large = next(iter(load(DataSettings(name="fashion_mnist", image_size=56), seed=0).evaluation))[0]
    assert labels[:10].tolist() == same[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]  # as published
    assert torch.equal(images[..., 2:-2, 2:-2], small)
    assert images[..., :2, :].unique().tolist() == [small.min().item()]
    assert large.shape == (256, 1, 56, 56)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, of every worker process
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_depends_on_seed_and_epoch_alone(workers: int) -> None:
    settings = DataSettings(name="generated", batch_size=16, workers=workers, **AUGMENTED)
    data, other = load(settings, seed=3), load(settings.model_copy(update={"workers": 0}), seed=3)
    first = epoch_of(data, 5)
    torch.rand(7)
    assert torch.equal(first, epoch_of(other, 5))
    assert not torch.equal(first, epoch_of(data, 6))
    assert not torch.equal(first, epoch_of(load(settings, seed=4), 5))
    assert torch.equal(first, epoch_of(data, 5))


def test_files_are_replayed_too_and_leave_the_global_generator_alone(folder: Path) -> None:
    options = {**AUGMENTED, "auto_augment": "rand-m9-mstd0.5-inc1"}
    data = load(DataSettings(name="folder", root=str(folder), batch_size=4, image_size=24, **options), seed=3)
    first = epoch_of(data, 5)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches = list(data.train.dataset)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)
    assert len(batches) == 12
    assert torch.equal(first, epoch_of(data, 5))
    assert not torch.equal(first, epoch_of(data, 6))


def test_an_epoch_visits_every_image_once() -> None:
    data = load(DataSettings(name="digits", batch_size=1437), seed=0)
    orders = [data.train.sampler, list(data.train.sampler)]
    set_epoch(data.train, 1)
    assert sorted(orders[1]) == list(range(1437))
    assert list(data.train.sampler) != orders[1]


def test_accelerate_sees_the_same_epochs_and_splits_them_between_processes() -> None:
    data = load(DataSettings(name="generated", batch_size=8, **AUGMENTED), seed=0)
    prepared = prepare_data_loader(data.train, put_on_device=False)
    set_epoch(prepared, 4)
    assert torch.equal(everything(prepared)[0], epoch_of(data, 4))
    halves = [list(BatchSamplerShard(data.train.batch_sampler, 2, process)) for process in (0, 1)]
    assert [batch for pair in zip(*halves, strict=True) for batch in pair] == list(data.train.batch_sampler)


def test_fewer_training_images_are_the_same_for_every_seed() -> None:
    sets = [load(DataSettings(name="digits", train_images=50, batch_size=64), seed=seed) for seed in (0, 1)]
    assert [len(data.train.dataset) for data in sets] == [50, 50]  # type: ignore[arg-type]
    brightness = [everything(data.train)[0].sum((1, 2, 3)).sort().values for data in sets]
    assert torch.allclose(*brightness)  # the same images, in another order
    assert [data.train.batch_size for data in sets] == [50, 50]


def test_two_parts_of_the_training_images_have_none_in_common_and_miss_none() -> None:
    settings = DataSettings(name="digits", image_size=8, batch_size=7)
    whole = load(settings, seed=1)
    rest, held = parted(whole, 0.3)
    indices = [set(part.train.sampler.indices) for part in (rest, held)]  # type: ignore[attr-defined]
    assert not indices[0] & indices[1]
    assert indices[0] | indices[1] == set(whole.train.sampler.indices)  # type: ignore[attr-defined]
    assert len(indices[1]) == round(0.3 * len(whole.train.sampler))  # type: ignore[arg-type]
    assert not torch.equal(epoch_of(held, 0), epoch_of(held, 1)), "another order"
    again = parted(load(settings, seed=1), 0.3)[1]
    assert torch.equal(epoch_of(held, 5), epoch_of(again, 5))
    assert parted(whole, 0.0) == (whole, whole)
    with pytest.raises(DataError, match=r"another search\.holdout"):
        parted(whole, 1.0)


def test_augmentation_does_what_it_is_called() -> None:
    images, plain = torch.rand(64, 2, 16, 16), DataSettings()

    def augmented(**changes: object) -> Tensor:
        return augment(images, plain.model_copy(update=changes), seeded(0))

    shifted = augmented(shift=2)
    copies = [torch.roll(images, (y, x), (2, 3))[..., 2:-2, 2:-2] for y in range(-2, 3) for x in range(-2, 3)]
    nearest = torch.stack([(copy - shifted[..., 2:-2, 2:-2]).abs().amax((1, 2, 3)) for copy in copies]).amin(0)
    erased = (augmented(random_erasing=1.0) == 0).float().mean((1, 2, 3))
    assert augmented() is images
    assert torch.allclose(augmented(hflip=1.0), images.flip(3), atol=1e-5)  # interpolation in float32
    assert nearest.max() < 1e-5  # every image is moved by whole pixels
    assert erased.min() > 0.01
    assert erased.max() < 0.5
    assert torch.equal(erased > 0, torch.ones(64, dtype=torch.bool))
    assert augmented(crop_scale=(0.3, 0.6)).shape == images.shape
    assert not torch.equal(augmented(crop_scale=(0.3, 0.6)), images)


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_what_a_criterion_looks_at_is_not_augmented(name: str, folder: Path) -> None:
    settings = DataSettings(name=name, root=str(folder), batch_size=4, image_size=32, **AUGMENTED)
    bare = {key: 0 for key in AUGMENTED if key != "crop_scale"} | {"crop_scale": (1.0, 1.0), "crop_pct": 1.0}
    data, plain = (load(each, seed=3) for each in (settings, settings.model_copy(update=bare)))
    for part in (data, parted(data, 0.25)[1]):
        first = list(FirstBatches(part, 1, torch.device("cpu"), epoch=2))
        assert torch.equal(first[0][0], next(iter(FirstBatches(part, 1, torch.device("cpu"), epoch=2)))[0])
        indices = unaugmented(part.train).sampler.indices
        assert list(indices) == list(part.train.sampler.indices)
    images, labels = next(iter(FirstBatches(data, 1, torch.device("cpu"))))
    set_epoch(plain.train, 0)
    expected, like = next(iter(plain.train))
    assert torch.equal(labels, like)
    assert torch.equal(images, expected)
    assert not torch.equal(images, epoch_of(data, 0)[:4])


def test_batches_of_a_loader_of_ones_own_come_as_they_are() -> None:
    loader = DataLoader([(torch.randn(3, 4, 4), 1) for _ in range(4)], batch_size=2)
    assert unaugmented(loader) is loader


def test_mixing_keeps_labels_a_distribution() -> None:
    settings = DataSettings(mixup=0.2, cutmix=1.0)
    mix = mixer(settings, 10, 0.1)
    assert mix is not None
    images, labels = mix(torch.rand(8, 1, 8, 8), torch.arange(8))
    assert images.shape == (8, 1, 8, 8)
    assert torch.allclose(labels.sum(1), torch.ones(8))
    assert mixer(DataSettings(), 10, 0.1) is None


def test_a_folder_is_read_in_colour_whatever_its_files_are(folder: Path) -> None:
    data = load(DataSettings(name="folder", root=str(folder), batch_size=4, image_size=24), seed=0)
    images, labels = everything(data.evaluation)
    assert (data.classes, data.channels, images.shape) == (2, 3, (4, 3, 24, 24))
    assert labels.tolist() == [0, 0, 1, 1]
    assert everything(data.train)[0].shape == (12, 3, 24, 24)


def test_a_timm_dataset_is_read_by_its_name(folder: Path) -> None:
    data = load(DataSettings(name="torch/image_folder", root=str(folder), batch_size=4, image_size=24), seed=0)
    assert (data.classes, everything(data.train)[0].shape) == (2, (12, 3, 24, 24))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"name": "digitz"}, ["'digitz'", "did you mean 'digits'"]),
        ({"name": "folder"}, ["data.root", "train/"]),
        ({"name": "folder", "root": "/lost"}, ["/lost is no folder", "train/"]),
        ({"name": "folder", "root": "."}, ["no folder train/"]),
        ({"name": "fashion_mnist", "root": "/lost"}, ["/lost", "idx.gz", "dataset-fashion-mnist", "torchvision"]),
        ({"name": "torch/lost"}, ["'torch/lost'", "check the name"]),
        ({"name": "digits", "train_images": 9999}, ["9999", "1437"]),
        ({"name": "digits", "auto_augment": "rand-m9"}, ["auto_augment", "image files"]),
        ({"name": "digits", "mixup": 0.2, "batch_size": 7}, ["odd", "even"]),
    ],
)
def test_a_dataset_that_cannot_be_used_says_why(
    changes: dict[str, object], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load(DataSettings.model_validate(changes), seed=0)
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


def test_folders_that_do_not_fit_are_named(folder: Path) -> None:
    settings = DataSettings(name="folder", root=str(folder))
    (folder / "val" / "extra").mkdir()
    Image.new("L", (8, 8)).save(folder / "val" / "extra" / "0.png")
    with pytest.raises(DataError, match="differ in their classes: extra"):
        load(settings, seed=0)
    (folder / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="train/empty holds no images"):
        load(settings, seed=0)


def test_one_class_is_not_enough(folder: Path) -> None:
    for split in ("train", "val"):
        for file in (folder / split / "light").iterdir():
            file.unlink()
        (folder / split / "light").rmdir()
    with pytest.raises(DataError, match="takes two"):
        load(DataSettings(name="folder", root=str(folder)), seed=0)


WHOLE = struct.pack(">HBB3I", 0, 8, 3, 2, 2, 2) + bytes(range(8))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (gzip.compress(WHOLE, mtime=0)[:-6], "not a whole gzip file"),
        (WHOLE, "not a whole gzip file"),
        (gzip.compress(WHOLE[:-1], mtime=0), "holds 7 values, its shape"),
        (gzip.compress(WHOLE[:9], mtime=0), "truncated"),
        (gzip.compress(b"\0\0\x0d\3" + WHOLE[4:], mtime=0), "magic number 0x00000d03, not 0x00000803"),
    ],
)
def test_a_broken_idx_file_is_named(content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(WHOLE, mtime=0))
    assert read_idx(path, 3).flatten().tolist() == list(range(8))
    path.write_bytes(content)
    with pytest.raises(DataError, match=part) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_every_dataset_has_a_line_about_it() -> None:
    assert {"digits", "fashion_mnist", "generated", "folder"} < set(datasets())
    assert all(datasets().values())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "0 to 3, there are 3 classes"),
        (torch.tensor([-1, 2]), "-1 to 2"),
        (torch.tensor([[1, 0, 1], [0, 1, 0]]), "not several labels per image"),
        (torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), "add up to one"),
        (torch.tensor([[0.5, 0.5]]), r"\(b 3\)"),
        (torch.tensor([0.5, 1.5]), "one class per image"),
    ],
)
def test_labels_that_no_loss_can_learn_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_labels(labels, 3)


@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])])
def test_classes_and_probabilities_are_labels(labels: Tensor) -> None:
    assert check_labels(labels, 3) is None  # and raises nothing


@pytest.mark.parametrize("batch", [{"image": torch.zeros(3), "label": 1}, torch.zeros(3)])
def test_batches_of_a_loader_must_be_pairs(batch: object) -> None:
    loader = DataLoader([batch] * 4, batch_size=2)
    with pytest.raises(DataError, match=r"a batch of the loader is a \w+, not a pair of tensors"):
        from_loaders(loader, loader, classes=2)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_is_a_square_around_a_random_pixel_as_far_as_it_is_inside(side: int) -> None:
    images, (h, w) = torch.ones(200, 2, 8, 6), (8, 6)
    found = cut(images, side, seeded(3)) == 0
    generator = seeded(3)
    rows, columns = (torch.randint(size, (200, 1), generator=generator).flatten().tolist() for size in (h, w))
    for image, (row, column) in enumerate(zip(rows, columns, strict=True)):
        top, left = row - side // 2, column - side // 2
        expected = torch.zeros(2, h, w, dtype=torch.bool)
        expected[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = True
        assert torch.equal(found[image], expected)
        assert found[image, :, row, column].all()
    assert not cut(images, 0, seeded(3)).eq(0).any()


def test_training_images_are_cut_and_no_others() -> None:
    plain, cutting = (load(DataSettings(name="generated", image_size=16, cutout=side), seed=0) for side in (0, 6))
    whole, missing = (everything(data.train)[0] for data in (plain, cutting))
    hit = missing == 0
    assert torch.equal(everything(plain.evaluation)[0], everything(cutting.evaluation)[0])
    assert torch.equal(missing[~hit], whole[~hit])
    sizes = hit.all(1).flatten(1).sum(1)
    assert (int(sizes.min()) >= 9, int(sizes.max())) == (True, 36)
