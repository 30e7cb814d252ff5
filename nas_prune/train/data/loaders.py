"""A dataset by name becomes two loaders: shuffled and augmented batches to train on, plain ones to evaluate on.

Which images, in which order, under which augmentation: all of it is a function of the seed and the epoch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor
from torch.utils.data import DataLoader

from nas_prune.base.errors import DataError, shown
from nas_prune.base.registry import hint
from nas_prune.train.data import file_images, glyphs, memory_images
from nas_prune.train.data.file_images import Replayable
from nas_prune.train.data.memory_images import ImageSet, MemoryImages, as_is
from nas_prune.train.data.order import EpochSampler, seeded, set_epoch
from nas_prune.train.data.preprocessing import in_timms_words
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.record.progress import Bars

__all__ = ["Data", "FirstBatches", "datasets", "from_loaders", "load", "mixer", "set_epoch"]

Loader = DataLoader[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Data:
    """Batches ``(images (b c h w), labels (b))`` to train on and to evaluate on.

    ``seen``: how its images come, in timm's words (see ``preprocessing``); empty where that is not known.
    """

    train: Loader
    evaluation: Loader
    classes: int
    channels: int
    name: str
    seen: Mapping[str, Any] = field(default_factory=dict)


def from_loaders(train: Loader, evaluation: Loader, *, classes: int) -> Data:
    """Loaders of one's own, of (images, labels). Raises DataError for labels that no loss here can learn."""
    batch = next(iter(evaluation))
    pair = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (None, None)
    images, labels = pair
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise DataError(
            f"a batch of the loader is a {type(batch).__name__}, not a pair of tensors (images, labels); "
            "pass collate_fn= to the DataLoader to make it one"
        )
    check_labels(labels, classes)
    return Data(train, evaluation, classes, images.shape[1], "loaders")


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise DataError unless each image of a batch has one class, or probabilities (b classes) that add up to one."""
    if labels.ndim == 1 and not labels.is_floating_point():
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise DataError(f"the labels of a batch are {found}, there are {classes} classes: 0 to {classes - 1}")
    elif labels.shape[1:] != (classes,) or not _are_probabilities(labels):
        raise DataError(
            f"the labels of a batch are {tuple(labels.shape)} of {labels.dtype}; what can be learnt is one class per "
            f"image (b), as integers, or probabilities (b {classes}) that add up to one, not several labels per image"
        )


def _are_probabilities(rows: Tensor) -> bool:
    return rows.is_floating_point() and bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all())


def parted(data: Data, share: float) -> tuple[Data, Data]:
    """The data with two parts of its training images to train on: those that are left, and a ``share`` of them.

    The same ones for the same seed, whatever the epoch. A share of 0, a loader of one's own, or a stream: both are all.
    """
    sampler = data.train.sampler
    if not share or not isinstance(sampler, EpochSampler):
        return data, data
    order = torch.randperm(len(sampler), generator=seeded(sampler.seed, "parts")).tolist()
    indices, few = [sampler.indices[place] for place in order], round(share * len(order))
    return replace(data, train=_part(data.train, indices[few:])), replace(data, train=_part(data.train, indices[:few]))


def _part(loader: Loader, indices: Sequence[int]) -> Loader:
    """A loader like another one, of some of its images. Raises DataError for none."""
    if not indices:
        raise DataError("a part of the training images is empty; use more of them, or another search.holdout")
    return _like(loader, loader.dataset, indices)


def unaugmented(loader: Loader) -> Loader:
    """The same images in the same order, as they are evaluated; of a stream, or a loader of one's own, as they come."""
    if not isinstance(loader.sampler, EpochSampler):
        return loader
    return _like(loader, loader.dataset.plain(), loader.sampler.indices)  # type: ignore[attr-defined]


def _like(loader: Loader, dataset: Any, indices: Sequence[int]) -> Loader:
    """A loader like one of ours, of these images of a dataset."""
    assert isinstance(loader.sampler, EpochSampler)
    return DataLoader(
        dataset,
        batch_size=min(_batch_size(loader), len(indices)),
        sampler=EpochSampler(dataset, loader.sampler.seed, indices),
        drop_last=loader.drop_last,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )


@dataclass(frozen=True)
class FirstBatches:
    """The first batches of an epoch, by default the first one, on ``device``, loaded as they are asked for; the same
    ones every time, and in every process. Their images are not augmented: what is learnt from them is how the network
    answers to images as it will be given.
    """

    data: Data
    count: int
    device: torch.device
    epoch: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        loader = unaugmented(self.data.train)
        set_epoch(loader, self.epoch)
        for images, labels in islice(loader, self.count):
            yield images.to(self.device), labels.to(self.device)


def datasets() -> dict[str, str]:
    """What ``data.name`` may be, each with one line about it."""
    return {
        "digits": "1797 handwritten digits, 8x8, grey, 10 classes; comes with scikit-learn",
        "fashion_mnist": "70000 clothes, 28x28, grey, 10 classes; data.root, Debian's package, or a download",
        "glyphs": "28000 bad scans of 250 characters in 56 faces, 32x32, grey; python benchmarks/glyphs.py FOLDER",
        "generated": "96 random images, 3 channels, 10 classes; for smoke runs, no file needed",
        "folder": "image files in data.root/train/<class>/ and data.root/val/<class>/",
        "torch/...": "a dataset of torchvision, e.g. torch/cifar10",
        "hfds/...": "a dataset of the Hugging Face hub, e.g. hfds/timm/mini-imagenet",
        "wds/...": "webdataset shards; tfds/... and hfids/... are streams as well",
    }


def check_name(name: str) -> None:
    """Raise DataError, with the names near it, for a dataset that there is not."""
    known = datasets()
    if name not in known and "/" not in name:
        raise DataError(f"unknown dataset {shown(name)}{hint(name, known)}")


def load(settings: DataSettings, *, seed: int, bars: Bars | None = None) -> Data:
    """Open the dataset that ``settings`` name; DataError says what is missing and what to do.

    ``bars``: show how far the look at every file is, and say what was left out.
    """
    least, most = settings.crop_scale
    if not 0 < least <= most:
        raise DataError(f"data.crop_scale [{least}, {most}] must be above zero, the smaller share first")
    in_memory = _in_memory().get(settings.name)
    data = _from_memory(settings, in_memory, seed) if in_memory else _from_files(settings, seed, bars or Bars())
    if data.classes < 2:
        raise DataError(f"{settings.name} has {data.classes} class; it takes two to classify")
    if (settings.mixup or settings.cutmix) and _batch_size(data.train) % 2:
        raise DataError(f"mixup and cutmix pair images, data.batch_size {_batch_size(data.train)} is odd; make it even")
    return data


def mixer(settings: DataSettings, classes: int, label_smoothing: float) -> Mixup | None:
    """timm's mixup and cutmix of a batch, which also smooths the labels; None if both are off.

    It draws from numpy's global random state.
    """
    if not settings.mixup and not settings.cutmix:
        return None
    alphas = {"mixup_alpha": settings.mixup, "cutmix_alpha": settings.cutmix}
    return Mixup(**alphas, label_smoothing=label_smoothing, num_classes=classes)


def _in_memory() -> dict[str, Callable[[DataSettings], tuple[ImageSet, ImageSet]]]:
    return {
        "digits": memory_images.digits,
        "fashion_mnist": memory_images.fashion_mnist,
        "generated": memory_images.generated,
        "glyphs": glyphs.glyphs,
    }


def _from_memory(settings: DataSettings, read: Callable[[DataSettings], tuple[ImageSet, ImageSet]], seed: int) -> Data:
    if settings.auto_augment:
        raise DataError(
            f"data.auto_augment works on image files; {settings.name} has hflip, shift, crop_scale, random_erasing and "
            "cutout"
        )
    train, evaluation = read(settings)
    train = train.take(torch.tensor(_chosen(len(train.labels), settings)))
    channels, classes = train.images.shape[1], len(train.names or ()) or int(train.labels.max()) + 1
    whole = settings.model_copy(update={"interpolation": "bilinear", "crop_pct": 1.0})
    return Data(
        train=_train_loader(MemoryImages(train, settings, seed=seed), settings, seed),
        evaluation=_loader(MemoryImages(evaluation, settings), settings, settings.eval_batch_size),
        classes=classes,
        channels=channels,
        name=settings.name,
        seen=in_timms_words(whole, ([train.mean] * channels, [train.std] * channels), train.names, classes),
    )


def _from_files(settings: DataSettings, seed: int, bars: Bars) -> Data:
    check_name(settings.name)
    train = file_images.open_files(settings, bars, training=True, seed=seed)
    evaluation = file_images.open_files(settings, bars, training=False, seed=seed)
    told = file_images.classes_of(train)
    classes = settings.classes or told
    if classes is None:
        raise DataError(f"{settings.name} does not tell how many classes it has; set data.classes")
    if told is not None and classes < told:
        raise DataError(f"data.classes is {classes}, {settings.name} has {told}; leave it out")
    _check_same_classes(train, evaluation, settings)
    if file_images.is_stream(train):
        loader = _loader(train, settings, settings.batch_size, drop_last=True)
    else:
        loader = _train_loader(Replayable(train, _chosen(len(train), settings), settings, seed=seed), settings, seed)
    seen = in_timms_words(settings, file_images.normalised(settings), file_images.names_of(evaluation), classes)
    return Data(loader, _loader(evaluation, settings, settings.eval_batch_size), classes, 3, settings.name, seen)


def _check_same_classes(train: object, evaluation: object, settings: DataSettings) -> None:
    names = [getattr(part, "classes", None) for part in (train, evaluation)]
    if names[0] is not None and names[1] is not None and list(names[0]) != list(names[1]):
        odd = sorted({*names[0]} ^ {*names[1]})[:5]
        raise DataError(f"train and val of {settings.root or settings.name} differ in their classes: {', '.join(odd)}")


def _chosen(available: int, settings: DataSettings) -> list[int]:
    """The training images to use: all, or ``train_images`` of them, the same ones whatever the seed of the run is."""
    wanted = settings.train_images or available
    if wanted > available:
        raise DataError(f"data.train_images is {wanted}, {settings.name} has {available}; leave it out to use all")
    return (
        list(range(available))
        if wanted == available
        else torch.randperm(available, generator=seeded(0))[:wanted].tolist()
    )


def _train_loader(dataset: MemoryImages | Replayable, settings: DataSettings, seed: int) -> Loader:
    batch_size = min(settings.batch_size, len(dataset))
    return _loader(dataset, settings, batch_size, sampler=EpochSampler(dataset, seed), drop_last=True)


def _loader(
    dataset: Any,
    settings: DataSettings,
    batch_size: int,
    *,
    sampler: EpochSampler | None = None,
    drop_last: bool = False,
) -> Loader:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=settings.workers,
        collate_fn=as_is if isinstance(dataset, MemoryImages) else None,
        pin_memory=settings.workers > 0 and torch.cuda.is_available(),
    )


def _batch_size(loader: Loader) -> int:
    assert loader.batch_size is not None, "every loader here has a batch size"
    return loader.batch_size
