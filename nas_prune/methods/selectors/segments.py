"""Segments: of blocks that see alike, those of the least scores go, and of every such segment one stays.

Li, Lu et al., "SGLP: A Similarity Guided Fast Layer Partition Pruning" (arXiv 2410.14720), as far as its code tells:
the features of what goes into the first block and of what comes out of each are compared by linear CKA; a layer's
profile A_i = sum_j CKA_ij is cut into segments by Fisher's optimal partition, into as many as still take away 5 % of
the cost; what goes is decided inside each segment. Meant for the criterion ``gradient_norm``.

Ours: how many blocks of a segment stay is not set by hand. A block of rank r among the n of its segment, the lowest
first, has its turn at (r + 1) / n; blocks go in that order, the lower score first among equals, until the limit is met.
So all segments lose about the same share, and none its last block; and a block of a larger segment may go before one
that does nothing in a smaller one: scores compare the blocks of a segment, not segments. A block with several branches
goes as a whole and scores their sum; one that changes shape always stays. The 5 % are of the cost of one segment, as of
the cost before it any last drop is all. Where a limit is out of reach otherwise, there are fewer segments. Widths, if
they may change, are narrowed to one share for what the blocks leave above the limit.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated

from pydantic import Field, PositiveInt

from nas_prune.methods.criteria.criterion import at_least_one
from nas_prune.methods.depth.blocks import Block, blocks, likeness
from nas_prune.methods.depth.partition import enough, partitions
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.scores import Batches, Scores, finite
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.methods.selectors.uniform import uniform_widths

GAIN = 0.05  # of the cost of one segment: what a further one must take away

Share = Annotated[float, Field(ge=0, le=1)]


@selectors.register("segments")
def segments(question: Question, *, number: PositiveInt | None = None, share: Share = 1.0) -> Decision:
    """The deepest architecture within the limit, and of it the widest of one share for all widths.

    ``number`` of segments, if it is not to be found; ``share``: of the blocks that could go, no more do.
    Raises BudgetError where nothing is within the limit, DataError without images by which blocks can be compared.
    """
    dense = {name: float(axis.size) for name, axis in question.space.alone.items()}
    dense |= {name: float(each) for name, each in question.space.chosen(question.scores).items()}
    sizes = dense
    for order in _orders(question, number):
        going = [block.branches for block in order[: round(share * len(order))]]
        for gone in range(len(going) + 1):
            closed = dict.fromkeys(chain(*going[:gone]), 0.0)
            sizes = dense | closed
            if question.spent(sizes) <= question.limit:
                return Decision(best_units(question.scores, sizes))
        held = {name: size for name, size in sizes.items() if name in closed or name not in question.space.alone}
        sizes = uniform_widths(question.space, question.cost, question.limit, held)
        if question.spent(sizes) <= question.limit:
            return Decision(best_units(question.scores, sizes))
    raise question.out_of_reach(sizes)


def _orders(question: Question, number: int | None) -> Iterator[list[Block]]:
    """In which order blocks go: with as many segments as there should be, with one less, down to a single one."""
    depth = [name for name, axis in question.space.alone.items() if axis.kind == "depth"]
    if not depth:
        yield []
        return
    gated = question.model("segments")
    found = blocks(gated)
    profile = question.once("profile of blocks", lambda: _profile(gated, found, question.batches))
    cut = partitions(profile)
    for partition in reversed(cut[: number or enough(cut, GAIN)]):
        inside = [[found[layer - 1] for layer in each if layer > 0] for each in partition.segments(len(profile))]
        yield order_of(inside, finite(question.scores))


def _profile(gated: GatedModel, found: Sequence[Block], batches: Batches) -> list[float]:
    """How alike each layer is to all, A (m + 1): what goes into the first block, and what comes out of each."""
    images = at_least_one(batches, "the comparison of blocks")
    profile: list[float] = likeness(gated, found, images).sum(1).tolist()
    return profile


def order_of(inside: Sequence[Sequence[Block]], scores: Scores) -> list[Block]:
    """The blocks that may go of these segments, in the order in which they do."""
    turns: list[tuple[float, float, int, Block]] = []
    for segment in inside:
        movable = [(sum(float(scores[name]) for name in block.branches), block) for block in segment if block.branches]
        movable.sort(key=lambda pair: pair[0])
        for rank, (score, block) in enumerate(movable[: len(segment) - 1]):
            turns.append(((rank + 1) / len(segment), score, len(turns), block))
    return [block for *_, block in sorted(turns)]
