"""What all tests share: one thread, and every backbone of the zoo traced once."""

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from recorded import recorded
from zoo import BACKBONES, Traced, few, traced

from nas_prune.base.parts import OUTSIDE
from nas_prune.base.registry import Registry

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start: there is a test process per core already
os.environ["NAS_PRUNE_CACHE"] = tempfile.mkdtemp(prefix="nas_prune_tests_")  # no calibration of the user's
torch.set_num_threads(1)
torch.set_warn_always(True)  # a warning that comes once per process would fail whichever test is first


@pytest.fixture(scope="module", autouse=True)
def young_heap() -> None:
    """What imports and earlier modules have made stays: no garbage collection of later tests looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", params=few(BACKBONES))
def net(request: pytest.FixtureRequest) -> Traced:
    """A few backbones in turn, all of the zoo with ``-m zoo``."""
    return traced(request.param)


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Every test draws the same random numbers, alone or among others."""
    torch.manual_seed(1234)  # not 0, which made the zoo's weights: gates would be drawn from the same numbers


@pytest.fixture(autouse=True)
def parts_of_files_end_with_their_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a file registers that a test has imported is forgotten: no later test finds a part that we do not have."""
    entered: list[tuple[Registry[Any], str, str]] = []
    register = Registry.register

    def noted(registry: Registry[Any], name: str) -> Callable[[Any], Any]:
        def enter(part: Any) -> Any:
            made = register(registry, name)(part)  # raises, if another part has that name
            entered.append((registry, name, getattr(part, "__module__", "")))
            return made

        return enter

    monkeypatch.setattr(Registry, "register", noted)
    yield
    for registry, name, module in entered:
        if module.startswith(OUTSIDE):
            registry._parts.pop(name, None)
            sys.modules.pop(module, None)


@pytest.fixture
def recorded_timings() -> Iterator[None]:
    """Milliseconds are functions of the model: no test that trains fails because the machine is busy."""
    with recorded():
        yield
