"""Where the YAML that comes with the package lies.

A wheel holds ``recipes/`` and ``search_spaces/`` inside the package; a checkout (and so an editable install) holds them
beside it.
"""

from pathlib import Path
from typing import Literal

from nas_prune.base.errors import NasPruneError


def shipped(kind: Literal["recipes", "search_spaces"]) -> Path:
    """The folder of the shipped files of that kind, in the package or beside it. Raises NasPruneError for none."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise NasPruneError(f"the folder {kind}/ is neither in {package} nor beside it; install nas_prune again")
