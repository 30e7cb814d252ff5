"""Where randomness comes from: each draw from the run's seed and the name of what is drawn, and from nothing else.

The order of training images depends on the seed and the epoch, their augmentation on the same and the image, dropout
and mixup on the seed, the stage and the step. So any part of a run can be replayed from its name alone, in any process
and after any interruption, without a saved random state.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler


class Epochal(Protocol):
    """A dataset whose augmentation depends on the epoch."""

    epoch: int

    def __len__(self) -> int: ...


class EpochSampler(Sampler[int]):
    """Every index once, or every one of ``indices``, in an order that is a function of ``(seed, epoch)``."""

    def __init__(self, dataset: Epochal, seed: int, indices: Sequence[int] | None = None) -> None:
        self._dataset, self.seed = dataset, seed
        self.indices = range(len(dataset)) if indices is None else indices

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and the augmentation, of the next iteration."""
        self._dataset.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = seeded(self.seed, self._dataset.epoch)
        return iter([self.indices[place] for place in torch.randperm(len(self), generator=generator).tolist()])

    def __len__(self) -> int:
        return len(self.indices)


def set_epoch(loader: DataLoader[object], epoch: int) -> None:
    """Choose the epoch of a loader, be it plain or prepared by accelerate; without this every epoch is the same."""
    target = next((part for part in (loader, loader.sampler, loader.dataset) if hasattr(part, "set_epoch")), None)
    if target is not None:
        target.set_epoch(epoch)


def seeded(*parts: int | str) -> torch.Generator:
    """A generator for these parts; hashed, because torch's CPU generator reads only 32 bits of a seed."""
    return torch.Generator().manual_seed(state(*parts))


def state(*parts: int | str) -> int:
    """32 bits that depend on all the parts."""
    numbers = [number for part in parts for number in (part.encode() if isinstance(part, str) else (part,))]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def drawing(*parts: int | str) -> Iterator[None]:
    """In the block, all that draws from a global generator (Python, numpy, torch on every device) starts from these.

    Afterwards each generator goes on where it was. So nothing depends on what was drawn before, or was skipped.
    """
    former = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    seed = state(*parts)
    try:
        with torch.random.fork_rng(devices=gpus):
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 0.15 ms where no GPU is in use
            if gpus:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(former[0])
        np.random.set_state(former[1])
