"""Several processes of one run: an error that one of them meets ends all, each with a message that says which it was.

Where the others wait for the first one, they are told by what they wait for. Anywhere else they find its connection
closed, and what it has left in the store by which they met.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from nas_prune.base.errors import BudgetError, InterruptedRunError, NasPruneError, RunError, first_line

KEY = "nas_prune/error"
PATIENCE = timedelta(seconds=5)  # for the store, which may have ended with the process that kept it
ALONE = "and this one cannot go on alone"


@contextmanager
def in_company(accelerator: Accelerator) -> Iterator[None]:
    """Inside, an error of one of several processes is one of all; what they all meet stays what it is."""
    if accelerator.num_processes == 1:
        yield
        return
    try:
        yield
    except InterruptedRunError:
        raise  # they have agreed to stop
    except NasPruneError as error:
        _leave(_plain(error, accelerator))
        raise
    except Exception as error:
        if not _is_of_the_group(error):
            _leave(_plain(error, accelerator))
            raise
        known = _left()
        if known is None:
            text = f"another process of this run has ended, {ALONE}: see what it said ({first_line(error)})"
            raise RunError(f"{text}; the same command resumes the run from its last checkpoint") from error
        raise _again(known) from error


@contextmanager
def before_others(accelerator: Accelerator) -> Iterator[None]:
    """A block that the first process runs before the others; an error of nas_prune in it is one of all."""
    if not accelerator.is_main_process:
        told: list[Any] = broadcast_object_list([None])
        if told[0] is not None:
            raise _again(told[0])
        yield
        return
    try:
        yield
    except NasPruneError as error:
        broadcast_object_list([_plain(error, accelerator)])
        raise
    broadcast_object_list([None])


def _plain(error: Exception, accelerator: Accelerator) -> dict[str, Any]:
    """An error as plain data."""
    text = str(error) if isinstance(error, NasPruneError) else f"{type(error).__name__}: {first_line(error)}"
    return {"process": accelerator.process_index, "text": text, "infeasible": isinstance(error, BudgetError)}


def _again(known: dict[str, Any]) -> NasPruneError:
    """The error of another process, as this one raises it."""
    if known["infeasible"]:  # a budget is that of all
        return BudgetError(known["text"])
    return RunError(f"process {known['process']} of this run has ended, {ALONE}: {known['text']}")


def _is_of_the_group(error: Exception) -> bool:
    """Whether this is what a process meets when another one has ended."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _leave(known: dict[str, Any]) -> bool:
    """Put an error where the other processes find it; whether that was possible."""
    try:
        _store().compare_set(KEY, "", json.dumps(known))  # the first error is the reason of all others
    except (RuntimeError, KeyError, ValueError):
        return False  # they say that they know none
    return True


def _left() -> dict[str, Any] | None:
    """What another process has left."""
    try:
        store = _store()
        known: dict[str, Any] | None = json.loads(store.get(KEY)) if store.check([KEY]) else None
    except (RuntimeError, KeyError, ValueError):
        return None
    return known


def _store() -> Any:
    """The store by which processes meet that torchrun or accelerate has launched."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]
