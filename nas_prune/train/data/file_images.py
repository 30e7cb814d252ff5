"""Images in files: a folder for each class, or any dataset that timm can open; decoded and transformed by timm.

timm's transforms draw from the random states of Python, numpy and torch. ``Replayable`` seeds all three for one image
at a time, so that the augmentation of an image depends on the seed, the epoch and the image alone.
"""

import copy
from functools import partial
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_transform
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import DatasetFolder, ImageFolder
from torchvision.transforms import Compose, RandomCrop

from nas_prune.base.errors import DataError, first_line, shown
from nas_prune.train.data import decoding
from nas_prune.train.data.augment import cut
from nas_prune.train.data.order import drawing
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.record.progress import Bars

Sample = tuple[torch.Tensor, int]
TRAINING, EVALUATION = ("train", "training"), ("val", "validation", "test")  # what folders are called


class Replayable(Dataset[Sample]):
    """The images of a dataset with these indices; their augmentation is a function of (seed, epoch, image)."""

    def __init__(self, dataset: Any, indices: list[int], settings: DataSettings, *, seed: int) -> None:
        self._dataset = dataset
        self._indices = indices
        self._settings = settings
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        with drawing(self._seed, self.epoch, self._indices[index]):
            found: Sample = self._dataset[self._indices[index]]
            return found

    def plain(self) -> "Replayable":
        """The same images, transformed as for evaluation."""
        dataset = copy.copy(self._dataset)
        dataset.transform = transform(self._settings, training=False)
        return Replayable(dataset, self._indices, self._settings, seed=self._seed)


def open_files(settings: DataSettings, bars: Bars, *, training: bool, seed: int) -> Any:
    """The training or the evaluation part of ``settings.name``, transformed; of files that are at hand, those that can
    be read. Raises DataError where some cannot be, unless they are to be skipped.
    """
    dataset = _folder(settings, training) if settings.name == "folder" else _timm(settings, training, seed)
    if isinstance(dataset, DatasetFolder):
        _look(dataset, settings, bars)
        dataset.loader = decoding.read
    elif hasattr(dataset, "input_img_mode"):
        dataset.input_img_mode = None  # timm would clip 16 bits
    dataset.transform = transform(settings, training=training)
    return dataset


def _look(dataset: DatasetFolder, settings: DataSettings, bars: Bars) -> None:
    """Leave out the files that cannot be read. Raises DataError for them, or for a class that has no images."""
    paths = [path for path, _ in dataset.samples]
    wrong = decoding.unreadable(paths, bars.follow)
    if wrong and settings.unreadable == "error":
        raise DataError(f"{decoding.told(paths, wrong)}; {decoding.ADVICE}")
    if wrong:
        bars.say(f"data.unreadable: skip; {decoding.told(paths, wrong)}")
    dataset.samples = dataset.imgs = [each for place, each in enumerate(dataset.samples) if place not in wrong]
    dataset.targets = [label for _, label in dataset.samples]
    bare = sorted(set(range(len(dataset.classes))) - set(dataset.targets))
    if bare:
        names = ", ".join(str(Path(dataset.root) / dataset.classes[label]) for label in bare[:3])
        raise DataError(
            f"{names} {'holds' if len(bare) == 1 else 'hold'} no images ({' '.join(decoding.SUFFIXES)}) that can be "
            "read; put some there, or remove the folder of that class from train/ and val/ alike"
        )


def transform(settings: DataSettings, *, training: bool) -> Compose:
    """timm's transform of an image file: an image of any mode and size -> (3 h w), normalised."""
    whole, (mean, std) = settings.crop_scale == (1.0, 1.0), normalised(settings)
    try:
        steps = create_transform(
            settings.image_size,
            is_training=training,
            scale=settings.crop_scale,
            ratio=(1.0, 1.0) if whole else (3 / 4, 4 / 3),
            hflip=settings.hflip,
            color_jitter=0.0,
            auto_augment=settings.auto_augment,
            interpolation=settings.interpolation,
            mean=mean,
            std=std,
            re_prob=settings.random_erasing,
            crop_pct=settings.crop_pct,
        )
    except (AssertionError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"data.auto_augment {shown(settings.auto_augment)} is no policy of timm ({first_line(error)}); write, for "
            "example, rand-m9-mstd0.5-inc1, or leave it out"
        ) from error
    shift = [RandomCrop(settings.image_size, padding=settings.shift)] if training and settings.shift else []
    cutout = [partial(_cut, side=settings.cutout)] if training and settings.cutout else []
    return Compose([decoding.decoded, steps, *shift, *cutout])


def _cut(image: Tensor, side: int) -> Tensor:
    """Cutout of one image (c h w); it draws from torch's global random state, as the rest of a transform does."""
    return cut(image[None], side)[0]


def normalised(settings: DataSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread of R, G, B that images are normalised with."""
    return settings.mean or IMAGENET_DEFAULT_MEAN, settings.std or IMAGENET_DEFAULT_STD


def classes_of(dataset: object) -> int | None:
    """How many classes a dataset says that it has; None if it does not say."""
    names = names_of(dataset)
    return len(names) if names else None


def names_of(dataset: object) -> list[str] | None:
    """What a dataset calls its classes, in their order; None if it does not say."""
    reader = getattr(dataset, "reader", None)
    names = getattr(dataset, "classes", None) or getattr(reader, "class_to_idx", None)
    features = getattr(getattr(reader, "dataset", None), "features", None) or {}
    found = names or getattr(features.get("label"), "names", None)
    ordered = sorted(found, key=lambda name: found[name]) if isinstance(found, dict) else found
    return [str(name) for name in ordered] if ordered else None


def _folder(settings: DataSettings, training: bool) -> Any:
    if settings.root is None:
        raise DataError(
            "data.name folder needs data.root: a folder that holds train/ and val/, with a folder for each class"
        )
    names = TRAINING if training else EVALUATION
    root = Path(settings.root)
    split = next((root / name for name in names if isdir(root / name)), None)
    if split is None:
        problem = f"has no folder {names[0]}/" if isdir(root) else "is no folder"
        raise DataError(f"data.root {root} {problem}; it must hold train/ and val/, with a folder for each class")
    try:
        return ImageFolder(str(split), is_valid_file=decoding.has_suffix, allow_empty=True)
    except (FileNotFoundError, OSError) as cause:
        raise DataError(
            f"{split} is no image folder ({cause}); put the images of each class in a folder of its own"
        ) from cause


def _timm(settings: DataSettings, training: bool, seed: int) -> Any:
    split = "train" if training else "validation"
    options: dict[str, Any] = {"is_training": training, "batch_size": settings.batch_size, "seed": seed}
    try:
        return create_dataset(settings.name, root=settings.root, split=split, download=True, **options)
    except Exception as cause:
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        where = f"data.root {settings.root}" if settings.root else "data.root, which is not set"
        raise DataError(
            f"timm cannot open the {split} part of {settings.name!r} ({reason}); check the name and {where}"
        ) from cause


def is_stream(dataset: object) -> bool:
    """Whether a dataset can only be read from front to back (wds/, tfds/, hfids/)."""
    return isinstance(dataset, IterableDataset)
