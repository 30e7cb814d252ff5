"""Room: whether a step, an evaluation and a timed call fit into the memory of the device, before the first of them.

The model runs on the meta device, where tensors have shapes and no memory, while all that is alive at once is counted:
outputs, what autograd keeps, gradients. Beside it stand the weights and the optimizer's momentum. What else a run needs
(a teacher, a workspace, an average of the weights) is left out, so what is refused can never fit.
"""

import copy
import logging
import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas_prune.base.errors import RecipeError

GIB = 2**30
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container
PER_BYTE = 2000  # bytes alive per byte of the images: 40 (ResNet-18) to 180 (Swin-T) seen; below this, all is well


def memory_of(device: torch.device) -> int:
    """Bytes that a device has in all; of the processor, those of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if not hasattr(os, "sysconf"):  # Windows does not tell
        return sys.maxsize
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [path.read_text().strip() for path in LIMITS if path.is_file()]
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def check_images(side: int, batches: Mapping[str, int], device: torch.device) -> None:
    """Raise RecipeError if not even one channel of a batch of images has room; ``batches``: key -> images."""
    for key, batch in batches.items():
        refuse(4 * batch * side**2, memory_of(device), f"the images of {key} {batch} at data.image_size {side}")


def check_room(
    model: nn.Module, image: Sequence[int], batches: Mapping[str, int], device: torch.device, *, share: float = 1.0
) -> None:
    """Raise RecipeError, with the figures, for what has no room on the device.

    ``batches``: key -> images, of which ``data.batch_size`` are trained on. ``share``: of float32's bytes, that
    activations take in the precision of the run. A model that cannot run without numbers is let through.
    """
    fixed, there = sum(each.nbytes for each in model.parameters()), memory_of(device)
    close = {key: batch for key, batch in batches.items() if 2 * fixed + PER_BYTE * 4 * batch * prod(image) > there}
    unreal = copy.deepcopy(model).to("meta") if close else model
    for key, batch in close.items():
        training = key == "data.batch_size"
        alive = peak(unreal, torch.empty(batch, *image, device="meta"), training=training)
        held = (2 if training else 1) * fixed  # weights; of training, momentum, too
        refuse(int(held + share * alive), there, f"{key} {batch} at data.image_size {image[-1]}")


def peak(model: nn.Module, images: Tensor, *, training: bool) -> int:
    """Bytes that are alive at once while a model on the meta device runs; 0 for one that needs numbers to run."""
    alive = _Alive()
    with torch.set_grad_enabled(training), alive:
        try:
            output = model.train(training)(images)
            if training:
                answers = [each.sum() for each in tree_leaves(output) if isinstance(each, Tensor)]
                torch.stack(answers).sum().backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever the code of a model does with a number that is not there
            logging.getLogger(__name__).debug("the memory of the model is not known: %s", error)
            return 0
        finally:
            model.zero_grad()
    return alive.most


def refuse(needed: int, there: int, what: str) -> None:
    """Raise RecipeError if more bytes are needed than there are."""
    if needed > there:
        raise RecipeError(
            f"no room for {what}: that takes {min(needed, 2**90) / GIB:.1f} GiB of memory at least, the device has "
            f"{there / GIB:.1f} GiB; lower one of the two"
        )


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes of the storages that operators make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and look at what it has made."""
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        output = function(*args, **(kwargs or {}))
        for each in tree_leaves(output):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage(), given)
        return output

    def _count(self, storage: Any, given: set[int]) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name in self._known or name in given:
            return
        self._known.add(name)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, name, size)

    def _forget(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.now -= size
