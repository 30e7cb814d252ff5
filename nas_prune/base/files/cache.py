"""Where files are kept for later runs: $NAS_PRUNE_CACHE, or nas_prune/ in the user's cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder, which need not be there yet."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("NAS_PRUNE_CACHE") or Path(home) / "nas_prune")
