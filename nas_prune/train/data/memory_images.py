"""Small image sets that fit into memory: digits, Fashion-MNIST, and generated images for smoke runs.

They are held as bytes; a whole batch is taken, normalised, brought to size and augmented at once.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from nas_prune.base.errors import DataError
from nas_prune.base.files.cache import cache_folder
from nas_prune.train.data.augment import augment
from nas_prune.train.data.idx import read_idx
from nas_prune.train.data.order import seeded
from nas_prune.train.data.room import memory_of, refuse
from nas_prune.train.data.settings import DataSettings

Batch = tuple[Tensor, Tensor]

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class ImageSet:
    """Images as bytes (n c h w), labels (n), how to normalise them, and what the classes are called, if they are."""

    images: Tensor
    labels: Tensor
    mean: float
    std: float
    names: tuple[str, ...] | None = None

    def take(self, index: Tensor) -> "ImageSet":
        """The part with these indices."""
        return replace(self, images=self.images[index], labels=self.labels[index])


class MemoryImages(Dataset[Batch]):
    """Batches of an image set at ``settings.image_size``; augmented if a seed is given.

    The augmentation of a batch is a function of the seed, the epoch and the first index in the batch.
    """

    def __init__(self, images: ImageSet, settings: DataSettings, *, seed: int | None = None) -> None:
        self._set = images
        self._settings = settings
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._set.labels)

    def plain(self) -> "MemoryImages":
        """The same images, not augmented."""
        return MemoryImages(self._set, self._settings)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """(b c h w) and (b): what a DataLoader asks for, in place of one image at a time."""
        part = self._set.take(torch.as_tensor(indices))
        images = (_sized(part.images / 255, self._settings.image_size) - part.mean) / part.std
        if self._seed is not None:
            images = augment(images, self._settings, seeded(self._seed, self.epoch, indices[0]))
        return images, part.labels


def as_is(batch: Any) -> Any:
    """The collate function of ``MemoryImages``: a batch is a batch already."""
    return batch


def digits(_settings: DataSettings) -> tuple[ImageSet, ImageSet]:
    """Scikit-learn's 1797 handwritten digits, 8 x 8; a fixed stratified split in 1437 and 360."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    images = rearrange(torch.tensor(pixels * (255 / 16)).round().byte(), "n (h w) -> n 1 h w", h=8)
    everything = ImageSet(images, torch.tensor(classes), mean=0.3053, std=0.3760)
    train, evaluation = train_test_split(range(len(classes)), test_size=360, random_state=0, stratify=classes)
    return everything.take(torch.tensor(train)), everything.take(torch.tensor(evaluation))


def fashion_mnist(settings: DataSettings) -> tuple[ImageSet, ImageSet]:
    """Fashion-MNIST, 60000 and 10000 images of 28 x 28 (arXiv 1708.07747); mean and spread are its well-known ones."""
    files = _fashion_files(settings)
    images = [rearrange(read_idx(files[kind], 3), "n h w -> n 1 h w") for kind in (0, 2)]
    labels = [read_idx(files[kind], 1).long() for kind in (1, 3)]
    for part, (pixels, classes) in enumerate(zip(images, labels, strict=True)):
        if len(pixels) != len(classes):
            raise DataError(f"{files[2 * part]} has {len(pixels)} images, {files[2 * part + 1]} {len(classes)} labels")
    train, evaluation = (ImageSet(*pair, mean=0.2860, std=0.3530) for pair in zip(images, labels, strict=True))
    return train, evaluation


def generated(settings: DataSettings) -> tuple[ImageSet, ImageSet]:
    """64 and 32 random images in 10 classes that a network can tell apart; always the same ones."""
    generator, size = seeded(0), settings.image_size
    room = memory_of(torch.device("cpu"))
    refuse(96 * 3 * size**2 * 4, room, f"the 96 images of data.name generated at data.image_size {size}")
    coarse = torch.rand(10, 3, 4, 4, generator=generator)
    patterns = F.interpolate(coarse, size=(size, size), mode="nearest")
    labels = torch.arange(96) % 10
    noisy = 0.7 * patterns[labels] + 0.3 * torch.rand(96, 3, size, size, generator=generator)
    everything = ImageSet((noisy * 255).byte(), labels, mean=0.5, std=0.25)
    return everything.take(torch.arange(64)), everything.take(torch.arange(64, 96))


def _sized(images: Tensor, size: int) -> Tensor:
    """Resized to ``size``; 28 x 28 becomes 32 x 32 by a black border instead, as is usual."""
    have = images.shape[-1]
    if (have, size) == (28, 32):
        return F.pad(images, (2, 2, 2, 2))
    return images if have == size else F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _fashion_files(settings: DataSettings) -> list[Path]:
    """The four files: from data.root, from Debian's package, or downloaded by torchvision."""
    root = Path(settings.root) if settings.root else None
    if root and not isdir(root):
        raise DataError(f"data.root {root} is no folder; {_ways()}")
    cache = root or cache_folder()
    folders = [*([root] if root else [_DEBIAN]), cache / "FashionMNIST" / "raw"]
    return next(filter(None, map(_complete, folders)), None) or _downloaded(cache)


def _complete(folder: Path) -> list[Path] | None:
    """The four files of a folder, packed or not; None if one is missing."""
    found = [next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None) for name in _FASHION_FILES]
    return [path for path in found if path] if all(found) else None


def _downloaded(root: Path) -> list[Path]:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError, EOFError, gzip.BadGzipFile) as cause:
        raise DataError(
            f"fashion_mnist is not on this machine and its download to {root} failed ({cause}); {_ways()}"
        ) from cause
    return _complete(root / "FashionMNIST" / "raw") or []


def _ways() -> str:
    return (
        f"set data.root to a folder with {_FASHION_FILES[0]}.gz and the other three idx.gz files, "
        "or install Debian's package dataset-fashion-mnist, or connect to a network so that torchvision can download it"
    )
