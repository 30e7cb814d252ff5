"""One call of ``torch.export``: the model eager and unchanged, torch silent, and a refusal in one message.

Operators that torch composes of others and that no rule is about (``hstack``, ``multiply``, ``swapaxes`` ...) come as
what they are composed of.
"""

import gc
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._export.utils import _collect_all_valid_cia_ops, _get_decomp_for_cia
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._pytree import tree_leaves

from nas_prune.base.errors import TraceError, first_line
from nas_prune.tracing.ruled import RULES

VALUES = "what it does depends on the values of tensors, which no graph can say"


def exported(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> ExportedProgram:
    """The program of the model as it is now. Raises TraceError, naming the line that stopped the export."""
    try:
        with ExitStack() as contexts:
            for context in (_eager(model), _uncollected(), _silent(), warnings.catch_warnings()):
                contexts.enter_context(context)
            warnings.simplefilter("ignore")
            program = torch.export.export(model, arguments, keywords, strict=False)
            result: ExportedProgram = program.run_decompositions(dict(_compositions()))
    except TraceError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, GuardOnDataDependentSymNode):
            what = VALUES
        raise _refused(model, *_line(model, error), what) from error
    for node in result.graph.nodes:
        sizes = [size for each in tree_leaves(node.meta.get("val")) for size in getattr(each, "shape", ())]
        if any(isinstance(size, torch.SymInt) for size in sizes):
            path, kind = next(reversed(node.meta.get("nn_module_stack", {"": ("", "")}).values()))
            raise _refused(model, f" at {str(kind).rpartition('.')[2]}" if path else "", path, VALUES)
    return result


def _refused(model: nn.Module, where: str, path: str, what: str) -> TraceError:
    return TraceError(
        f"{type(model).__name__} cannot be captured as a graph{where}: {what}. "
        f"Check that `model(example_inputs)` runs in eval mode and does not branch on the values of tensors; "
        f"a part that does is left as it is, if it is a small module of its own (or named in `leaves`)",
        path=path,
    )


def _compositions() -> dict[OpOverload, Callable[..., Any]]:
    """What torch composes of other operators, as far as no rule is about it."""
    composed = [op for op in _collect_all_valid_cia_ops() if isinstance(op, OpOverload) and op.namespace == "aten"]
    return {op: _get_decomp_for_cia(op) for op in composed if op.__name__ not in RULES}


def _line(model: nn.Module, error: Exception) -> tuple[str, str]:
    """The line of a module's own code that raised, not one of torch, and the path of this module."""
    where, path = "", ""
    paths = {module: path for path, module in model.named_modules()}
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get((*frame.f_code.co_varnames, "")[0])
        if isinstance(module, nn.Module) and not type(module).__module__.startswith("torch."):
            where = f" at {type(module).__name__} ({Path(frame.f_code.co_filename).name}:{line})"
            path = paths.get(module, "")
    return where, path


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """No module runs compiled, and none overwrites its input: export would move views of that to where they are used.

    Inside of ``untouched``, which puts back what is changed here.
    """
    for module in model.modules():
        module._compiled_call_impl = None
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    yield


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: looking again and again at a growing graph takes a third of the time of an export."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _silent() -> Iterator[None]:
    """Torch prints and logs the graph so far when it gives up, pages of it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
