"""In which order training images come: a shuffle that depends on the seed and the epoch, and on nothing else.

The augmentation of an image depends on the same two numbers. So an epoch can be replayed from its number alone, in any
process and after any interruption, without a saved random state.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler


class Epochal(Protocol):
    """A dataset whose augmentation depends on the epoch."""

    epoch: int

    def __len__(self) -> int: ...


class EpochSampler(Sampler[int]):
    """Every index once, in an order that is a function of ``(seed, epoch)``."""

    def __init__(self, dataset: Epochal, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and the augmentation, of the next iteration."""
        self._dataset.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = seeded(self._seed, self._dataset.epoch)
        return iter(torch.randperm(len(self._dataset), generator=generator).tolist())

    def __len__(self) -> int:
        return len(self._dataset)


def set_epoch(loader: DataLoader[object], epoch: int) -> None:
    """Choose the epoch of a loader, be it plain or prepared by accelerate; without this every epoch is the same."""
    target = next((part for part in (loader, loader.sampler, loader.dataset) if hasattr(part, "set_epoch")), None)
    if target is not None:
        target.set_epoch(epoch)


def seeded(*numbers: int) -> torch.Generator:
    """A generator for these numbers; hashed, because torch's CPU generator reads only 32 bits of a seed."""
    return torch.Generator().manual_seed(state(*numbers))


def state(*numbers: int) -> int:
    """32 bits that depend on all the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
