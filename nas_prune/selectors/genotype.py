"""The rule of DARTS as a selector: on each edge the strongest operation, at each node the strongest edges.

Of DARTS (Liu et al., arXiv 1806.09055); "none" is a closed edge. It looks at scores alone and cannot trade them for
cost, so a limit is only checked (ours).
"""

from collections.abc import Sequence

from nas_prune.arch import Arch
from nas_prune.cells.genotype import arch_of, genotype_of
from nas_prune.cells.space import CellSpace
from nas_prune.costs import CostModel
from nas_prune.errors import BudgetError, SpaceError
from nas_prune.selectors.selector import Scores, selectors
from nas_prune.space import SearchSpace, read_file


@selectors.register("genotype")
def genotype(scores: Scores, cost: CostModel, limit: float, space: SearchSpace) -> Arch:
    """The architecture of the genotype; axes that are no operations keep all their units.

    Raises BudgetError where it costs more than the limit, SpaceError where the space has no cells.
    """
    cell = read_file(space.name).cell
    if cell is None:
        raise SpaceError(
            f'search space {space.name} has no `cell:`, so the selector "genotype" cannot take it; choose "optimal"'
        )
    cells = CellSpace.of(cell)
    chosen = arch_of(genotype_of(scores, cells), cells)
    widths: dict[str, Sequence[int]] = {
        name: range(axis.size) for name, axis in space.free.items() if axis.kind != "operation"
    }
    arch = Arch({**widths, **chosen})
    spent = float(cost(arch.sizes(space.free)).detach())
    if spent > limit:
        raise BudgetError(
            f"the genotype of search space {space.name} takes {spent:.4g} {cost.unit}, the limit is {limit:.4g}. "
            f'Raise the budget, or choose the selector "optimal", which trades scores for cost'
        )
    return arch
