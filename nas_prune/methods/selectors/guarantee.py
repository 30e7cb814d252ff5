"""The guarantee of ``sampling`` beside what is measured: how far the sums of a layer are from what they were.

Errors are shares of the magnitudes that are summed, |z' - z| / (|W| |x|), of every layer by itself, its inputs as in
the dense network. For units that are drawn it is eps (arXiv 1911.07412), as each of the sums of one sign is within that
share of itself. For units that are closed and no more it is ours: an entry has no larger share than its sensitivity s
in any sum, so without the closed ones a sum is off by at most their s together, once per tap of the kernel, and never
by more than all of it. That holds for certain, on the images that the sensitivities are of. Where a layer reads several
axes (a concatenation), each is drawn for itself, and may be off by eps of the whole sum: their errors add up (ours, as
the paper's layers read one axis), and so does that of what is closed there.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nas_prune.methods.gated import GatedModel
from nas_prune.methods.reading import Reader, axes_of, mixing, read, weight_of
from nas_prune.methods.scores import Batches, Scores
from nas_prune.methods.selectors.selector import Decision, Question
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.terms import Term

IMAGES = 32  # of the first batch, on which the error is measured


def said(question: Question, gated: GatedModel, decision: Decision, drawn: Mapping[str, float]) -> str:
    """The guarantee of a decision beside the error that is measured, in a line. ``drawn``: axis -> eps."""
    error = measured(gated, question.batches, decision)
    told = "" if error is None else f"; measured on up to {IMAGES} images: {error:.2g}"
    promise = f"{promised(gated, question.scores, decision.arch, drawn):.2g} of the magnitudes in them"
    return f"sums of layers are off by at most {promise}, if scores are sensitivities{told}"


def promised(gated: GatedModel, scores: Scores, arch: Arch, drawn: Mapping[str, float]) -> float:
    """The largest error that the theory allows in any layer; ``drawn``: eps of the axes whose units are drawn."""
    exact = {name: scores[name].detach().double().cpu().clamp(min=0) for name in gated.space.free}
    keep = {name: arch.keep(axis) for name, axis in gated.space.free.items() if name not in drawn}
    worst = 0.0
    for reader in mixing(gated).values():
        names = axes_of(gated, reader.term)
        taps = weight_of(gated, reader)[0, 0].numel()
        closed = min(1.0, taps * _closed(gated, reader.term, exact, keep)) if names else 0.0
        worst = max(worst, closed + sum(drawn[name] for name in names if name in drawn))
    return worst


def _closed(gated: GatedModel, term: Term, exact: Scores, keep: Scores) -> float:
    """The sensitivities of the closed entries of a layer, together: none has more than any unit that it belongs to."""
    of_units = [gated.axes.mask(term, {name: exact[name]}) for name in axes_of(gated, term)]
    return float(torch.stack(of_units).amin(0)[gated.axes.mask(term, keep) == 0].sum())


def measured(gated: GatedModel, batches: Batches, decision: Decision) -> float | None:
    """The largest error of any layer by itself, on some of the first batch; None where there is none."""
    images = next((x[:IMAGES] for x, _ in batches), None)
    if images is None:
        return None
    of = mixing(gated)
    found = read(gated, Arch.dense(gated.axes), of.values(), images)
    return max((_error(gated, of[path], x, decision) for path, x in found.items()), default=0.0)


@torch.no_grad()
def _error(gated: GatedModel, reader: Reader, x: Tensor, decision: Decision) -> float:
    """The largest error of one layer that reads x."""
    weight = weight_of(gated, reader)
    keep = {name: decision.arch.keep(gated.axes[name]) for name in axes_of(gated, reader.term)}
    stays = gated.axes.mask(reader.term, keep).to(weight).reshape(1, -1, *[1] * (weight.ndim - 2))
    edited = decision.edits.get(reader.weight, weight) * stays
    whole, left = (reader.outputs(gated.backbone, each, x) for each in (weight, edited))
    magnitudes = reader.outputs(gated.backbone, weight.abs(), x.abs())
    counted = magnitudes > torch.finfo(torch.float32).eps
    return float(((left - whole).abs() / magnitudes)[counted].max()) if bool(counted.any()) else 0.0
