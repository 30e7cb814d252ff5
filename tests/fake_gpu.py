"""A graphics card that is not there: torch's fake tensors know their device and their shape, and hold no numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

NUMBERS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default}


class _Answers(TorchDispatchMode):
    """What is asked of a tensor without numbers: no, or one. So nothing counts as open anyway, and all is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in NUMBERS:
            return False if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))


class FakeGpu:
    """Moves modules and tensors to ``cuda``; inside ``computing`` an operation of two devices is an error."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)

    def tensor(self, real: Tensor) -> Tensor:
        """A fake one of the same shape and kind, on the card."""
        fake = self.mode.from_tensor(real.detach())
        with self.mode:
            return fake.to("cuda")

    def module(self, module: nn.Module) -> nn.Module:
        """The module itself, every parameter and buffer of it moved: what ``module.to("cuda")`` moves, and no more."""
        moved: dict[int, Tensor] = {}
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                for name, value in [(name, value) for name, value in held.items() if value is not None]:
                    fresh = moved.get(id(value), self.tensor(value))
                    if isinstance(value, nn.Parameter) and id(value) not in moved:
                        fresh = nn.Parameter(fresh, requires_grad=value.requires_grad)
                    moved[id(value)] = held[name] = fresh
        return module

    def part(self, part: Any) -> Any:
        """Something that is no module: nothing of it moves, so its tensors are fake ones on the CPU."""
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                setattr(part, name, self.mode.from_tensor(value))
        return part

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Everything inside runs on fake tensors."""
        with self.mode, _Answers():
            yield
