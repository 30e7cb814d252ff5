"""Hooks: to be told what goes into modules, and what comes out of them, for as long as one listens."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def inputs_of(modules: Mapping[str, nn.Module], look: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """In the block, ``look`` is called before each module runs, with its name and what it is given by position."""

    def before(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:  # noqa: ARG001
        look(name, given)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(before, name)).remove)
        yield


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module], look: Callable[[str, Any], Any]) -> Iterator[None]:
    """In the block, ``look`` is called after each module has run, with its name and what it returns.

    What ``look`` returns, unless it is None, takes its place.
    """

    def after(name: str, module: nn.Module, given: Any, output: Any) -> Any:  # noqa: ARG001
        return look(name, output)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(after, name)).remove)
        yield
