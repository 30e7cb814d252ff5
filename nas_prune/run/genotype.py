"""The genotype that a run of a space of cells has found, as a file of its folder."""

import os
from collections.abc import Mapping, Sequence

from nas_prune.base.errors import ArchError
from nas_prune.base.files.whole import write_json
from nas_prune.ops.cells.cell_space import CellSpace
from nas_prune.ops.cells.genotype import genotype_from
from nas_prune.tracing.space import read_file


def write_genotype(path: str | os.PathLike[str], kept: Mapping[str, Sequence[int]], space: str) -> bool:
    """Write the genotype of an architecture of the search space of that name or file, as JSON.

    False, and no file, if it is no space of cells, or no genotype: a node keeps more edges than a genotype has.
    """
    cell = read_file(space).cell
    if cell is None:
        return False
    try:
        genotype = genotype_from(kept, CellSpace.of(cell))
    except ArchError:
        return False
    write_json(path, genotype)
    return True
