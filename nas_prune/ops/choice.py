"""A choice: candidate operations side by side, summed. A gate per candidate decides which of them are worth their time.

As in DARTS (arXiv 1806.09055), but without weights of its own: the gates of the search multiply the candidates, and
``derive`` leaves the candidates that they keep. The sum is a plain ``+`` in the order of the candidates.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from nas_prune.base.errors import SpaceError, shown
from nas_prune.ops.geometry import made
from nas_prune.ops.operation import Operation, name_of, operations

Description = Mapping[str, Any]  # {"operation": registered name, **its keyword arguments}


def described(operation: nn.Module) -> dict[str, Any]:
    """An operation as plain data. Raises SpaceError for a module that is not a registered operation."""
    name = name_of(type(operation))
    if name is None or not isinstance(operation, Operation):
        raise SpaceError(f"a {type(operation).__name__} is not a registered operation; put one of {list(operations)}")
    return {"operation": name, **operation.config}


def build(description: Description) -> Operation:
    """The operation that was described, with new weights. Raises SpaceError where the description is not of one."""
    return made(*_split(description))


@operations.register("choice")
class Choice(Operation):
    """Candidates of one input shape and one output shape: x -> sum_k candidate_k(x).

    ``shared``: choices of one such name are decided together (an edge in all cells of a kind). ``live``: the candidates
    that are computed, while it is known that the others count nothing; None for all.
    """

    live: Collection[str] | None = None

    def __init__(self, *, candidates: Mapping[str, Description], shared: str | None = None) -> None:
        super().__init__(candidates={name: dict(each) for name, each in candidates.items()}, shared=shared)
        _check(candidates)
        self.shared = shared
        self.candidates = nn.ModuleDict({name: build(each) for name, each in candidates.items()})

    @classmethod
    def of(cls, candidates: Mapping[str, nn.Module], shared: str | None = None) -> Self:
        """A choice between these very operations, their weights included."""
        with torch.device("meta"):  # no random numbers are drawn for the modules that are replaced
            choice = cls(candidates={name: described(each) for name, each in candidates.items()}, shared=shared)
        choice.candidates.update(candidates)
        return choice

    @classmethod
    def like(cls, module: nn.Module, **options: Any) -> Self:
        """A choice of candidates that can all stand where ``module`` stands.

        ``candidates``: name -> {"operation": name, **options of that operation's ``like``}.
        """
        candidates = options.get("candidates")
        if not isinstance(candidates, Mapping) or not options.keys() <= {"candidates", "shared"}:
            raise SpaceError(
                f"a choice takes candidates: {{name: {{operation: ...}}}}, and shared; got {shown(options)}"
            )
        _check(candidates)
        split = {name: _split(description) for name, description in candidates.items()}
        like = {name: kind.like(module, **others) for name, (kind, others) in split.items()}
        return cls.of(like, options.get("shared")).train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of what the candidates make of x."""
        first, *others = (
            candidate(x) if self.live is None or name in self.live else x.new_zeros(())
            for name, candidate in self.candidates.items()
        )
        total: Tensor = first
        for part in others:
            total = total + part
        return total


def choices_of(model: nn.Module) -> list[Choice]:
    """The choices in a model."""
    return [module for module in model.modules() if isinstance(module, Choice)]


@contextmanager
def first_alone(model: nn.Module) -> Iterator[None]:
    """The dense network: every choice computes its first candidate only, and the others do not learn."""
    choices = choices_of(model)
    others = [each for choice in choices for each in list(choice.candidates.values())[1:]]
    waiting = [parameter for each in others for parameter in each.parameters() if parameter.requires_grad]
    before = [choice.live for choice in choices]
    try:
        for choice in choices:
            choice.live = list(choice.candidates)[:1]
        for parameter in waiting:
            parameter.requires_grad_(False)
        yield
    finally:
        for choice, live in zip(choices, before, strict=True):
            choice.live = live
        for parameter in waiting:
            parameter.requires_grad_(True)


def inherit(model: nn.Module) -> None:
    """Let the other candidates of every choice start from the weights of the first one, which the dense network has."""
    for choice in choices_of(model):
        first, *others = choice.candidates.values()
        for candidate in others:
            assert isinstance(candidate, Operation)
            assert isinstance(first, Operation)
            candidate.inherit(first)


def _split(description: Description) -> tuple[type[Operation], dict[str, Any]]:
    """The class of a described operation, and its options."""
    if not isinstance(description, Mapping) or not isinstance(description.get("operation"), str):
        raise SpaceError(f"{shown(description)} does not describe an operation; write {{operation: <name>, ...}}")
    return operations[description["operation"]], {k: v for k, v in description.items() if k != "operation"}


def _check(names: Iterable[str]) -> None:
    """Candidates become names of modules and of axes."""
    names = list(names)
    wrong = [
        name for name in names if not (isinstance(name, str) and name.isidentifier()) or hasattr(nn.ModuleDict, name)
    ]
    if not names or wrong:
        raise SpaceError(f"a choice needs candidates, called by plain names such as conv_3x3; got {wrong or 'none'}")
