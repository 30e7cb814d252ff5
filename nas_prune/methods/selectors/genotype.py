"""The rule of DARTS as a selector: on each edge the strongest operation, at each node the strongest edges.

Of DARTS (Liu et al., arXiv 1806.09055); "none" is a closed edge. It looks at scores alone and cannot trade them for
cost, so the limit is for whoever measures what comes of it.
"""

from nas_prune.base.errors import SpaceError
from nas_prune.methods.selectors.selector import Decision, Question, selectors
from nas_prune.ops.cells.cell_space import CellSpace
from nas_prune.ops.cells.genotype import arch_of, genotype_of
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import read_file


@selectors.register("genotype")
def genotype(question: Question) -> Decision:
    """The architecture of the genotype; axes that are no operations keep all their units.

    Raises SpaceError where the space has no cells.
    """
    space = question.space
    cell = read_file(space.name).cell
    if cell is None:
        raise SpaceError(
            f'search space {space.name} has no `cell:`, so the selector "genotype" cannot take it; choose "optimal"'
        )
    cells = CellSpace.of(cell)
    widths = {name: tuple(range(axis.size)) for name, axis in space.free.items() if axis.kind != "operation"}
    return Decision(Arch(widths | arch_of(genotype_of(question.scores, cells), cells)))
