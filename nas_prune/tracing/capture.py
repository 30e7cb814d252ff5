"""Capture a model as one graph of ATen operators, with the owner and the shape of every node.

``torch.export`` runs the model's own eager code on fake tensors, so nothing is guessed from module types; the empty
decomposition table makes the graph functional but keeps conv, linear, norms and attention whole.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

from nas_prune.errors import TraceError

Inputs = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class Captured:
    """The graph, which tensor of the model each of its placeholders is, and what went in.

    ``shared``: each name of a tensor -> the first of all names that the same tensor has (tied weights).
    ``inputs``: shape and type of each input tensor; ``batch``: images in the example inputs as the caller gave them.
    """

    graph: Graph
    tensors: Mapping[str, str]
    buffers: frozenset[str]
    shared: Mapping[str, str]
    constants: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    batch: int

    def owner(self, node: Node) -> str:
        """Path of the innermost module that executed the node."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        return str(stack[-1][0]) if stack else ""


def as_tuple(inputs: Inputs) -> tuple[Any, ...]:
    """Example inputs as the positional arguments of ``forward``."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def batch_of(inputs: Inputs) -> int:
    """Images in the example inputs: the first dimension of the first tensor."""
    for value in as_tuple(inputs):
        if isinstance(value, Tensor) and value.ndim:
            return int(value.shape[0])
    raise TraceError(
        "the example inputs hold no tensor with a batch dimension; "
        "pass what `forward` takes, e.g. torch.randn(1, 3, 224, 224)"
    )


def at_least_two(inputs: Inputs) -> tuple[Any, ...]:
    """The example inputs with a batch of two or more, so that no rule mistakes the batch for a dimension of one."""
    if batch_of(inputs) > 1:
        return as_tuple(inputs)
    return tuple(torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim else v for v in as_tuple(inputs))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, every module back in its own mode afterwards.

    What modules cached while they ran (timm's attention biases do) is dropped, as ``train()`` does.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        model.train()
        for module, mode in modes.items():
            module.training = mode


def capture(model: nn.Module, inputs: Inputs) -> Captured:
    """Export the model in eval mode. Raises TraceError, naming what stopped the export."""
    arguments = at_least_two(inputs)
    try:
        with evaluating(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, arguments, strict=False).run_decompositions({})
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise TraceError(
            f"{type(model).__name__} cannot be captured as a graph: {type(error).__name__}: {reason}. "
            f"Check that `model(example_inputs)` runs in eval mode and does not branch on the values of tensors"
        ) from error
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    specs = program.graph_signature.input_specs
    return Captured(
        graph=program.graph,
        tensors={spec.arg.name: str(spec.target) for spec in specs if spec.kind in kinds},
        buffers=frozenset(spec.arg.name for spec in specs if spec.kind is InputKind.BUFFER),
        shared=_first_names(model),
        constants={
            spec.arg.name: program.constants[str(spec.target)]
            for spec in specs
            if spec.kind is InputKind.CONSTANT_TENSOR
        },
        values={
            spec.arg.name: program.constants[str(spec.target)]
            for spec in specs
            if spec.kind is InputKind.BUFFER and str(spec.target) in program.constants
        },
        inputs=tuple((tuple(v.shape), v.dtype) for v in arguments if isinstance(v, Tensor)),
        batch=batch_of(inputs),
    )


def _first_names(model: nn.Module) -> dict[str, str]:
    """Name -> the first name of the same parameter or buffer."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}
