"""Modules that no graph can say: each is one opaque operator of the graph, a leaf (ours).

Whatever the code of a leaf does, its inputs, its outputs and its own widths stay what they are, and the rest of the
model can shrink. The model runs once, which tells what a leaf returns; while it is exported, a leaf only calls the
operator, which is given its tensors and its inputs. Where the graph runs, the operator runs a copy of the module.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from nas_prune.base.errors import TraceError, first_line
from nas_prune.base.registry import hint
from nas_prune.tracing.graph.brought import computed_tensors
from nas_prune.tracing.graph.hooks import inputs_of, outputs_of
from nas_prune.tracing.graph.single_operations import single_operations

PLAIN = (Tensor, int, float, str, bool, type(None))


class DoesNotRunError(TraceError):
    """What a leaf returns cannot be learnt."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """One call of a module: its tensors by name, how it is called and what it returns, ``why`` it is a leaf.

    ``given``: the arguments and their structure, those that are tensors left out; ``returned``: the tensors among what
    it returns, without numbers; ``macs``: its multiply-adds.
    """

    path: str
    why: str
    module: nn.Module
    names: tuple[str, ...]
    given: tuple[list[Any], TreeSpec]
    returned: list[Tensor]
    macs: int

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """What the module returns for its own tensors, and then those that it is called with."""
        state, inputs = dict(zip(self.names, tensors, strict=False)), iter(tensors[len(self.names) :])
        values = [next(inputs) if isinstance(value, Tensor) else value for value in self.given[0]]
        args, kwargs = tree_unflatten(values, self.given[1])
        with torch.no_grad():
            output = functional_call(self.module, state, args, kwargs)
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        found = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
        return [value.clone() if value.untyped_storage().data_ptr() in given else value for value in found]


KNOWN: WeakValueDictionary[str, Leaf] = WeakValueDictionary()
KEYS = count()


@torch.library.custom_op("nas_prune::leaf", mutates_args=())
def leaf(tensors: list[Tensor], key: str) -> list[Tensor]:
    """The operator that a leaf is in a graph."""
    return KNOWN[key](tensors)


@leaf.register_fake
def _without_numbers(tensors: list[Tensor], key: str) -> list[Tensor]:
    place = tensors[0].device if tensors else torch.device("cpu")
    return [torch.empty_like(value, device=place) for value in KNOWN[key].returned]


def leaf_of(node: Node) -> Leaf | None:
    """The leaf that a node is a call of, if it is one."""
    return KNOWN[str(node.args[1])] if node.target is torch.ops.nas_prune.leaf.default else None


def asked_for(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """The modules that a user wants to be leaves, and why they are."""
    known = [path for path, _ in model.named_modules() if path]
    for path in paths:
        if path not in known:
            raise TraceError(f"{path!r} cannot be a leaf: the model has no such module{hint(path, known)}")
    return {path: f"{path} is left as it is, as asked" for path in paths}


def stand_in(model: nn.Module, leaves: Mapping[str, str], run: Callable[[nn.Module], Any]) -> list[Leaf]:
    """Let these modules call the operator instead; path -> why. Their calls, which must outlive the graph.

    ``run``: runs a copy of the model. Only for a block that puts back what modules keep. Raises TraceError.
    """
    found: list[Leaf] = []
    calls = _learnt(model, leaves, run) if leaves else {}
    for path in leaves:
        module = model.get_submodule(path)
        module.forward = _StandIn(path, leaves[path], module, iter(calls[path]), found)
    return found


Call = tuple[nn.Module, Any, int]  # a copy of the module, what it returned, its multiply-adds


@dataclass
class _StandIn:
    """What takes the place of a leaf's forward."""

    path: str
    why: str
    module: nn.Module
    calls: Iterator[Call]
    found: list[Leaf]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        copied, output, macs = next(self.calls)
        own = [*self.module.named_parameters(), *self.module.named_buffers()]
        values, structure = tree_flatten((args, kwargs))
        inputs = [value for value in values if isinstance(value, Tensor)]
        held = [value.to("meta") if isinstance(value, Tensor) else value for value in values]
        outputs, returned = tree_flatten(output)
        if not all(isinstance(value, PLAIN) for value in outputs):
            what = "it returns more than tensors, alone or in tuples, lists and dicts"
            raise TraceError(f"{self.path} cannot be a leaf: {what}")
        tensors = [value for value in outputs if isinstance(value, Tensor)]
        names = tuple(name for name, _ in own)
        call = Leaf(self.path, self.why, copied, names, (held, structure), tensors, macs)
        key = f"{self.path} {next(KEYS)}"
        KNOWN[key] = call
        self.found.append(call)
        results = iter(leaf([*(tensor for _, tensor in own), *inputs], key))
        return tree_unflatten([next(results) if isinstance(value, Tensor) else value for value in outputs], returned)


def _learnt(model: nn.Module, leaves: Mapping[str, str], run: Callable[[nn.Module], Any]) -> dict[str, list[Call]]:
    """Every call of these modules, in order, seen in one run of a copy of the model."""
    calls: dict[str, list[Call]] = {path: [] for path in leaves}
    copied = copy.deepcopy(model, computed_tensors(model)).requires_grad_(False)
    counter, before = FlopCounterMode(display=False), list[int]()
    modules = {path: copied.get_submodule(path) for path in leaves}

    def enter(*_: object) -> None:
        before.append(counter.get_total_flops())

    def leave(path: str, output: Any) -> None:
        macs = (counter.get_total_flops() - before.pop()) // 2
        calls[path].append((modules[path], tree_map_only(Tensor, lambda value: value.to("meta"), output), macs))

    try:
        with (
            inputs_of(modules, enter),
            outputs_of(modules, leave),
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            single_operations(),
            counter,
        ):
            run(copied)
    except Exception as error:
        raise DoesNotRunError(
            f"{', '.join(leaves)} cannot be a leaf, since the model does not run with the example inputs: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    return calls
