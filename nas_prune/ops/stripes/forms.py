"""Forms of a stripe convolution: which convolutions compute the live stripes, and how their maps become filters.

A stripe is what a filter n has at one position (i, j) of its kernel, a 1x1 filter. Every form is a list of parts, each
of which turns the input into maps (b l h w), and each map belongs to one filter: its filter is the sum of its maps.

    dense      one convolution, dead stripes are zeros
    cropped    one convolution without the rows and columns that are dead in every filter
    gathered   position by position: a 1x1 convolution of the shifted and strided input
    shifted    one 1x1 convolution of the whole input, then the outputs are shifted (with a stride: one per phase)

"""

from collections.abc import Callable, Mapping

from nas_prune.ops.stripes.parts import Gathered, Shifted, StripeMaps, Window
from nas_prune.ops.stripes.plan import KernelGrid, StripePlan

FormPart = Window | StripeMaps


def dense(plan: StripePlan) -> list[FormPart]:
    """All filters, the whole kernel."""
    crop = (KernelGrid(0, 1, plan.kernel[0]), KernelGrid(0, 1, plan.kernel[1]))
    return [Window(plan, range(plan.filters), crop)]


def cropped(plan: StripePlan) -> list[FormPart]:
    """All filters, without the rows and columns that are dead in all."""
    filters = range(plan.filters)
    return [Window(plan, filters, plan.crop(filters))]


def gathered(plan: StripePlan) -> list[FormPart]:
    """Live stripes alone, shifted before they are convolved."""
    return [Gathered(plan)]


def shifted(plan: StripePlan) -> list[FormPart]:
    """Live stripes alone, convolved before they are shifted."""
    return [Shifted(plan)]


forms: Mapping[str, Callable[[StripePlan], list[FormPart]]] = {
    "dense": dense,
    "cropped": cropped,
    "gathered": gathered,
    "shifted": shifted,
}
