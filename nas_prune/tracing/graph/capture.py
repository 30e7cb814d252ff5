"""Capture a model as one graph of ATen operators, with the owner and the shape of every node.

``torch.export`` runs the model's own eager code on fake tensors, so nothing is guessed from module types; the empty
decomposition table makes the graph functional but keeps conv, linear, norms and attention whole.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map_only

from nas_prune.base.errors import TraceError
from nas_prune.ops.choice import Choice
from nas_prune.tracing.graph.brought import untouched
from nas_prune.tracing.graph.exported import exported
from nas_prune.tracing.graph.leaves import DoesNotRunError, Leaf, stand_in

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class Keywords(dict[str, Any]):
    """Arguments of ``forward`` that are given by name, in the order of its parameters: the last of the inputs."""


register_pytree_node(
    Keywords,
    lambda given: (list(given.values()), list(given)),
    lambda values, names: Keywords(zip(names, values, strict=True)),
)


@dataclass(frozen=True)
class Captured:
    """The graph, which tensor of the model each of its placeholders is, and what went in.

    ``shared``: each name of a tensor -> the first of all names that the same tensor has (tied weights).
    ``modules``: the same for paths of modules. ``choices``: path of each choice -> the name under which it is decided,
    and its candidates in the order of the sum.
    ``inputs``: what was captured, its tensors without numbers; ``batch``: images in the inputs that the caller gave;
    ``single``: whether one image was captured, since the code says that there is one. ``leaves``: calls of modules that
    no graph can say. ``counted``: whether the code says how many images there are.
    """

    graph: Graph
    tensors: Mapping[str, str]
    buffers: frozenset[str]
    shared: Mapping[str, str]
    modules: Mapping[str, str]
    choices: Mapping[str, tuple[str, tuple[str, ...]]]
    constants: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    inputs: tuple[Any, ...]
    batch: int
    single: bool
    leaves: tuple[Leaf, ...] = ()
    counted: bool = False

    def batched(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Example inputs with as many images as the graph can take: two or more, if it can."""
        return inputs if self.single else at_least_two(inputs)

    def opaque(self, node: Node) -> bool:
        """Whether the node was made inside torch's own attention, which computes head_dim from the embedding."""
        kinds = [str(kind) for _, kind in node.meta.get("nn_module_stack", {}).values()]
        return any(kind.endswith("activation.MultiheadAttention") for kind in kinds)

    @property
    def outputs(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors that the model returns."""
        (last,) = self.graph.find_nodes(op="output")
        return [tuple(int(size) for size in each.meta["val"].shape) for each in last.all_input_nodes]

    @property
    def buffer_names(self) -> set[str]:
        """Names of the buffers, which are never learnt."""
        return {self.tensors[name] for name in self.buffers}

    def running(self, node: Node) -> dict[str, str]:
        """The modules that were running when the node was made, outermost first: key of the call -> path."""
        stack = node.meta.get("nn_module_stack", {})
        return {key: self.modules.get(path, path) for key, (path, _) in stack.items()}

    def owner(self, node: Node) -> str:
        """Path of the innermost module that executed the node."""
        return next(reversed(self.running(node).values()), "")


def arguments_of(model: nn.Module, inputs: Inputs) -> tuple[Any, ...]:
    """Example inputs as the arguments of ``forward``: a mapping of its parameters gives them by name."""
    if isinstance(inputs, tuple):
        return inputs
    if isinstance(inputs, Mapping):
        known = list(signature(model.forward).parameters)
        if set(inputs) <= set(known):
            return (Keywords({name: inputs[name] for name in known if name in inputs}),)
    return (inputs,)


def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What a model or a method gives for these arguments, of which it gets copies: some write into theirs."""
    positional, named = split_arguments(each_tensor(torch.clone, arguments))
    return function(*positional, **named)


def split_arguments(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by position, and by name."""
    if arguments and isinstance(arguments[-1], Keywords):
        return arguments[:-1], dict(arguments[-1])
    return arguments, {}


def as_tuple(inputs: Inputs) -> tuple[Any, ...]:
    """Example inputs as the positional arguments of ``forward``."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def each_tensor(function: Callable[[Tensor], Tensor], inputs: Inputs) -> tuple[Any, ...]:
    """The arguments of ``forward`` with every tensor replaced, also those inside lists, tuples and dicts."""
    return tuple(tree_map_only(Tensor, function, as_tuple(inputs)))


def output_tensors(output: Any) -> list[Tensor]:
    """The tensors of what a model returns, in order, also those inside sequences, mappings and dataclasses."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    elif is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, each.name) for each in fields(output)]
    values = output if isinstance(output, tuple | list) else []
    return [tensor for value in values for tensor in output_tensors(value)]


def batch_of(inputs: Inputs) -> int:
    """Images in the example inputs: the first dimension of the first tensor."""
    for value in tree_leaves(as_tuple(inputs)):
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
    return each_tensor(lambda value: torch.cat([value, value]) if value.ndim else value, inputs)


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


def capture(
    model: nn.Module, inputs: Inputs, *, training: Collection[nn.Module] = (), leaves: Mapping[str, str] | None = None
) -> Captured:
    """Export the model in eval mode, ``training`` in theirs. Raises TraceError, naming what stopped the export.

    ``leaves``: paths of modules that are left as they are, and why; so are those of the class that stops the export, as
    long as they hold but a part of the parameters.
    """
    leaves = dict(leaves or {})
    given = each_tensor(lambda value: value.to(device_of(model)), arguments_of(model, inputs))
    stopped: TraceError | None = None
    while True:
        try:
            return _captured_once(model, given, training, leaves)
        except DoesNotRunError as error:
            raise stopped or error from None
        except TraceError as error:
            stopped = error
            said = str(error).partition(". Check")[0].removeprefix(type(model).__name__)
            alike = {path: path + said for path in _alike(model, error.path)}
            if not alike or alike.keys() <= leaves.keys():
                raise
            leaves = alike | leaves


def _alike(model: nn.Module, path: str) -> list[str]:
    """The paths of a module and those of its class, unless all parameters of the model are in them."""
    kind = type(model.get_submodule(path))
    alike = [each for each, module in model.named_modules() if type(module) is kind]
    outside = [name for name, _ in model.named_parameters() if not any(f"{name}.".startswith(f"{a}.") for a in alike)]
    return alike if path and "" not in alike and outside else []


def _captured_once(
    model: nn.Module, given: tuple[Any, ...], training: Collection[nn.Module], leaves: Mapping[str, str]
) -> Captured:
    """Export two images, or one where the code says that there is one."""
    arguments = at_least_two(given)
    try:
        (program, calls), single = _exported(model, arguments, training, leaves), False
    except TraceError:
        if batch_of(given) > 1:
            raise
        try:
            (program, calls), single, arguments = _exported(model, given, training, leaves), True, given
        except TraceError:
            single = False
        if not single:
            raise
    return replace(_captured(model, program, arguments, batch_of(given), single), leaves=tuple(calls))


def _exported(
    model: nn.Module, arguments: tuple[Any, ...], training: Collection[nn.Module], leaves: Mapping[str, str]
) -> tuple[ExportedProgram, list[Leaf]]:
    """The program of a model, whose outputs are the tensors of what it returns, and the calls of its leaves."""
    listed = model.register_forward_hook(lambda _, __, output: tuple(_returned(model, output)))
    try:
        with untouched(model), evaluating(model):
            for module in training:
                module.training = True
            calls = stand_in(model, leaves, lambda copied: call(copied, arguments))
            return exported(model, *split_arguments(arguments)), calls
    finally:
        listed.remove()


def _returned(model: nn.Module, output: Any) -> list[Tensor]:
    tensors = output_tensors(output)
    if not tensors:
        raise TraceError(f"{type(model).__name__} returns no tensor in evaluation, but {type(output).__name__}")
    return tensors


def _captured(
    model: nn.Module, program: ExportedProgram, arguments: tuple[Any, ...], batch: int, single: bool
) -> Captured:
    specs = program.graph_signature.input_specs
    buffers = [spec for spec in specs if spec.kind is InputKind.BUFFER]
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    constants = [spec for spec in specs if spec.kind is InputKind.CONSTANT_TENSOR]
    return Captured(
        graph=program.graph,
        tensors={spec.arg.name: str(spec.target) for spec in specs if spec.kind in kinds},
        buffers=frozenset(spec.arg.name for spec in buffers),
        shared=_first_names(_tensors(model)),
        modules=_first_names(model.named_modules(remove_duplicate=False)),
        choices={
            path: (module.shared or path, tuple(module.candidates))
            for path, module in model.named_modules()
            if isinstance(module, Choice)
        },
        constants={spec.arg.name: _kept(program.constants[str(spec.target)]) for spec in constants},
        values={
            spec.arg.name: _kept(program.constants[str(spec.target)])
            for spec in buffers
            if str(spec.target) in program.constants
        },
        inputs=each_tensor(lambda value: value.to("meta"), arguments),
        batch=batch,
        single=single,
    )


def _kept(value: Any) -> Any:
    """A tensor of the graph that no checkpoint holds, on the CPU if it has numbers, wherever the model is."""
    return value.cpu() if isinstance(value, Tensor) and not value.is_meta else value


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: the device of its first tensor, the CPU if it has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _first_names(named: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Name -> the first name of the same object."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(thing), name) for name, thing in named}
