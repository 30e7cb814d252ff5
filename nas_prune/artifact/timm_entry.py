"""The entry by which timm knows artefacts: ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

``import nas_prune`` registers it with timm's own ``register_model``: at once if timm is there already, otherwise when
timm has been imported. Neither timm nor torch is imported for it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing says, which would take longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader, MetaPathFinder
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from torch import nn
else:
    Loader = MetaPathFinder = object

__all__ = ["install", "nas_prune_derived"]


def nas_prune_derived(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The model of an artefact, as timm asks for it. Raises ArtifactError if the artefact cannot be trusted."""
    from nas_prune.artifact.timm_build import build

    return build(pretrained, kwargs)


def install() -> None:
    """Register the entry, now or when timm is imported."""
    if sys.modules.get("timm") is not None:
        _register()
    else:
        sys.meta_path.insert(0, _AfterTimm())


def _register() -> None:
    from timm.models import is_model, register_model

    from nas_prune.artifact import cells_entry

    cells_entry.register()
    if not is_model(nas_prune_derived.__name__):
        register_model(nas_prune_derived)


class _AfterTimm(MetaPathFinder):
    """Finds timm as the other finders do, and hands it to a loader that registers the entry afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of timm; None, which is "ask the others", for every other module."""
        if fullname != "timm":
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec


class _RegisteringLoader(Loader):
    """Loads a module with its own loader, which it is left with, and then registers the entry."""

    def __init__(self, loader: Loader, finder: _AfterTimm) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, register, and be gone."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _register()
