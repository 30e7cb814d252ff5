"""From gates that look at images to a model that skips what an image does not call for, and needs no gates for that.

Where a gate called ``dynamic`` stands between two convolutions with nothing but a BatchNorm and an activation there,
the first becomes a ``skipping`` operation that holds the whole row, and the others let pass what they get. So one
module knows which channels are on, no code of the model changes, and an artefact can name it. Ours.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from nas_prune.base.errors import ExactnessError, SpaceError
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.dynamic import Dynamic
from nas_prune.ops import Saliency, Skip, Skipping
from nas_prune.ops.skipping import ACTIVATIONS
from nas_prune.tracing.graph.capture import evaluating

TOLERANCE = 1e-9  # in float64


@dataclass(frozen=True)
class _Link:
    """Two convolutions, what lies between them (no activation: None), and the branch that says what is kept there."""

    first: str
    norm: str
    activation: str | None
    second: str
    branch: Saliency

    @property
    def idle(self) -> list[str]:
        """Modules that are not needed any more."""
        alone = self.activation if self.activation and not self.activation.startswith(f"{self.norm}.") else None
        return [self.norm, *filter(None, [alone]), self.second]


def skipping(gated: GatedModel) -> nn.Module:
    """A copy of the backbone, in eval mode, that computes for each image what the gates keep of it.

    Raises SpaceError where a gate that looks at images stands elsewhere than between two convolutions.
    """
    names = [name for name in gated.space.alone if isinstance(gated.gate(name), Dynamic)]
    if not names:
        raise SpaceError("no gate looks at images, so nothing can be skipped: set `gate.name: dynamic`")
    model, links = gated.plain().eval(), {link.first: link for link in (_link(gated, name) for name in names)}
    for start in links.keys() - {link.second for link in links.values()}:
        row = [links[start]]
        while row[-1].second in links:
            row.append(links[row[-1].second])
        made = _row(model, row)
        for path in (path for link in row for path in link.idle):
            model.set_submodule(path, Skip())
        model.set_submodule(start, made)
    return model.eval()


@torch.no_grad()
def skipping_error(gated: GatedModel, model: nn.Module, images: Tensor) -> float:
    """Largest relative difference in float64 of a model that skips, image by image, from the gated one.

    Raises ExactnessError if it is over 1e-9.
    """
    double, skips = (copy.deepcopy(each).double().cpu() for each in (gated, model))
    with evaluating(double), evaluating(skips):
        given = images.detach().cpu().double()
        expected, got = double(given), torch.cat([skips(image[None]) for image in given])
    error = float((expected - got).abs().max() / (1 + expected.abs().max()))
    if not error <= TOLERANCE:
        raise ExactnessError(
            f"the model that skips differs from the gated one by {error:.1e}: the code of the model does more between "
            "two convolutions than its graph shows; freeze the axes concerned"
        )
    return error


def _link(gated: GatedModel, name: str) -> _Link:
    """The link that a gate stands in. Raises SpaceError where it stands in none."""
    modules, gate = dict(gated.backbone.named_modules()), gated.gate(name)
    assert isinstance(gate, Dynamic)
    first, *between, second = _owners(gated, name)
    norm, activation = between if len(between) == 2 else [*between[:1], None]
    kind = type(modules[activation] if activation else nn.Identity())
    plain = _plain(modules[first]) and _plain(modules[second])
    if len(between) not in (1, 2) or not plain or not isinstance(modules[str(norm)], nn.BatchNorm2d):
        raise _apart(name)
    if kind not in ACTIVATIONS.values() or gate.branch is None:
        raise _apart(name)
    return _Link(first, str(norm), activation, second, gate.branch)


def _owners(gated: GatedModel, name: str) -> list[str]:
    """Paths of the modules from the convolution that writes an axis to the one that alone reads it."""
    captured, written = gated.axes.walk.captured, gated.writers[name][0][0]
    weight = next(node for node in captured.graph.nodes if captured.tensors.get(node.name) == written)
    node = next(iter(weight.users))
    owners = dict.fromkeys([captured.owner(node)])
    while len(owners) == 1 or not _convolves(node):
        node, *others = node.users
        if others or node.op != "call_function":
            raise _apart(name)
        owners[captured.owner(node)] = None
    return list(owners)


def _convolves(node: Node) -> bool:
    return str(node.target).startswith("aten.conv2d")


def _plain(module: nn.Module) -> bool:
    """Whether this is a convolution that a ``skipping`` operation can hold."""
    if not isinstance(module, nn.Conv2d) or type(module).forward is not nn.Conv2d.forward:
        return False
    return module.groups == 1 and module.padding_mode == "zeros"


def _apart(name: str) -> SpaceError:
    return SpaceError(
        f"axis {name} does not lie between two plain convolutions with a BatchNorm, and an activation at most, between "
        "them, so that what a gate closes for one image could be skipped; freeze it, or choose another gate"
    )


def _row(model: nn.Module, links: Sequence[_Link]) -> Skipping:
    """The operation that computes a row of links, with their weights."""
    convolutions = [model.get_submodule(path) for path in [links[0].first, *(link.second for link in links)]]
    norms = [model.get_submodule(link.norm) for link in links]
    made = Skipping(
        convolutions=[_described(each) for each in convolutions],
        between=[
            {
                "activation": type(model.get_submodule(link.activation)).__name__ if link.activation else "Identity",
                "eps": norm.eps,
                "hidden": link.branch.first.out_features,
            }
            for link, norm in zip(links, norms, strict=True)
        ],
    ).to(next(convolutions[0].parameters()))
    parts = [*made.convolutions, *made.norms, *made.branches]
    for part, known in zip(parts, [*convolutions, *norms, *(link.branch for link in links)], strict=True):
        state = known.state_dict()
        part.load_state_dict({name: state[name] for name in part.state_dict()})
    return made


def _described(convolution: nn.Module) -> Mapping[str, object]:
    """A convolution as plain data."""
    assert isinstance(convolution, nn.Conv2d)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    plain = {name: getattr(convolution, name) for name in names}
    shown = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
    return {**shown, "bias": convolution.bias is not None}
