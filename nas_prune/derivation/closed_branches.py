"""Take out of an eager model what is closed: a convolution keeps its live stripes, a block of which nothing is left is
skipped, a choice becomes what was chosen.

A residual branch inside a block that goes on has no module of its own: its last module gives zeros, those before it
nothing but their input. Names stay, so whoever indexes blocks finds them.
"""

from torch import nn

from nas_prune.ops import Choice, Skip, Zero
from nas_prune.ops.stripes.conv import StripeConv
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.branches import Branch, passes
from nas_prune.tracing.stripes import alive


def remove(model: nn.Module, axes: Axes, arch: Arch) -> None:
    """Put what is left of striped convolutions, closed branches and choices in their places in a copy of the traced
    model, in place. Stripes first: a striped block may be skipped.
    """
    for each in axes.stripes:
        if len(arch.kept.get(each.name, range(each.var.size))) < each.var.size:
            filters = axes.indices(axes.tensors[f"{each.module}.weight"][0], arch)
            conv = model.get_submodule(each.module)
            assert isinstance(conv, nn.Conv2d)
            model.set_submodule(each.module, StripeConv.of(conv, alive(each, arch, filters)))
    closed = axes.closed(arch)
    depth = [branch for branch in closed if branch.kind == "depth"]
    for path, module in _skipped(axes, depth).items():
        model.set_submodule(path, module.train(model.get_submodule(path).training))
    without = {branch.modules[0] for branch in closed}
    left = [(path, module) for path, module in model.named_modules() if isinstance(module, Choice)]
    for path, choice in reversed(left):  # inner ones first; those in closed branches are gone
        model.set_submodule(path, _decided(choice, path, without))


def _skipped(axes: Axes, closed: list[Branch]) -> dict[str, nn.Module]:
    """Path -> what takes the place of the module there."""
    captured = axes.walk.captured
    found: dict[str, nn.Module] = {}
    for branch in closed:
        owner = captured.owner(branch.add)
        if owner and passes(captured, owner, closed):
            found[owner] = Skip()
        else:
            found |= {path: Skip() for path in branch.modules}
            found[branch.modules[-1]] = Zero()
    return {path: module for path, module in found.items() if not _under(path, found)}


def _under(path: str, paths: dict[str, nn.Module]) -> bool:
    """Whether a module is inside another one of these."""
    return any(path.startswith(f"{other}.") for other in paths)


def _decided(choice: Choice, path: str, closed: set[str]) -> nn.Module:
    """What is left of a choice: the candidates that are kept, or the one, or nothing."""
    kept = {name: each for name, each in choice.candidates.items() if f"{path}.candidates.{name}" not in closed}
    if len(kept) == len(choice.candidates):
        return choice
    return Choice.of(kept, choice.shared) if len(kept) > 1 else next(iter(kept.values()), Zero())
