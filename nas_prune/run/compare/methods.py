"""Methods: what each changes in a recipe, and how it shares out the epochs that are left after the dense ones.

They are written down in ``recipes/compare/methods.yaml``, and in files of one's own.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nas_prune.base.errors import RecipeError, shown
from nas_prune.base.files.documents import Document, Text, validated
from nas_prune.base.files.shipped import shipped
from nas_prune.base.files.yaml_text import read_mapping
from nas_prune.base.registry import hint
from nas_prune.base.settings import Share
from nas_prune.run.compare.cells import DENSE
from nas_prune.run.recipe.overrides import flags
from nas_prune.run.recipe.recipe import Recipe, changed
from nas_prune.train.settings import OptimSettings

# what all methods begin with, whatever the recipe says: none of another method's parts
BARE: dict[str, Any] = {
    "gate": "mask",
    "gate.kinds": {},
    "search.gate_betas": [0.9, 0.999],
    "search.gate_weight_decay": 0.0,
    "dense.epochs": 0,
    "dense.baseline": False,
    "search.criterion": {"name": None, "options": {}},
    "search.further": [],
    "search.compensation": {"name": None, "options": {}},
    "search.bilevel": False,
    "search.selector": {"name": None, "options": {}},
    "search.mover": {"name": None, "options": {}},
    "search.schedule": "ghfp",
    "search.penalties": ["budget"],
    "search.rounds": 1,
    "search.once": False,
    "search.distill": 0.0,
    "search.warmup": 0,
    "finetune.from_scratch": False,
}
EVERY = "all"
TRAINING = [name for name in OptimSettings.model_fields if name != "max_steps"]


class Shares(Document):
    """Shares of the epochs; what is left goes to fine-tuning, or, where all is one training, to ``freeze``."""

    joint: Share = 0.0
    freeze: Share = 0.0


class Method(Document):
    """A way from a recipe to a small network.

    ``control``: what methods have to beat; what they spend on searching, it may spend on training. ``begins``: with
    the dense network that all share, or with random weights and the epochs of that network as well. ``units_of``: a
    method whose widths it takes.
    """

    about: Text
    control: bool = False
    begins: Literal["dense", "random"] = "dense"
    units_of: Text | None = None
    epochs: Shares = Shares()
    changes: dict[str, Any] = Field({})

    def recipe(self, base: Recipe, epochs: int, told: Mapping[str, Any]) -> Recipe:
        """The recipe of a cell of so many epochs; ``told``: seed, target, and what it begins with."""
        alone = {} if self.begins == "dense" else {**as_dense(base), "finetune.distill": 0.0}
        return changed(base, flags({**BARE, **alone, **self._epochs(epochs), **self.changes, **told}))

    def _epochs(self, epochs: int) -> dict[str, Any]:
        """How it shares them out."""
        joint, freeze = round(self.epochs.joint * epochs), round(self.epochs.freeze * epochs)
        if self.changes.get("search.once"):
            return {"search.joint": joint, "search.freeze": epochs - joint, "finetune.epochs": 0}
        return {"search.joint": joint, "search.freeze": freeze, "finetune.epochs": max(0, epochs - joint - freeze)}


def as_dense(base: Recipe) -> dict[str, Any]:
    """Search and fine-tuning train as the dense network does: what is trained from scratch needs that."""
    own = base.dense.model_dump()
    return {f"{section}.{name}": own[name] for section in ("search", "finetune") for name in TRAINING}


def methods(more: Sequence[Path] = ()) -> dict[str, Method]:
    """All methods by name: those that are shipped, and those of further files, which may replace them.

    Raises RecipeError for a file that holds something else.
    """
    found: dict[str, Method] = {}
    for path in [shipped("recipes") / "compare" / "methods.yaml", *more]:
        for name, value in read_mapping(path, RecipeError).items():
            if name in (DENSE, EVERY) or not re.fullmatch(r"\w[\w-]*", name):
                raise RecipeError(
                    f"{path}: no method can be called {shown(name)}: its runs lie in a folder of this name, "
                    f"{DENSE} is the network that nothing is taken from, and {EVERY} are all methods; use letters, "
                    "digits, _ and -"
                )
            found[name] = validated(value, Method, f"{path}: {name}", RecipeError, "correct it")
    return found


def chosen(names: Sequence[str], known: Mapping[str, Method], before: Sequence[str] = ()) -> dict[str, Method]:
    """The methods of these names, ``all`` for every one, and those whose widths they take, before them.

    ``before``: those that take the widths of these. Raises RecipeError for an unknown one, and for one that takes its
    own.
    """
    found: dict[str, Method] = {}
    for name in known if EVERY in names else names:
        if name not in known:
            raise RecipeError(f"unknown method {shown(name)}{hint(name, known)}; `nas-prune list methods` shows them")
        if name in before:
            raise RecipeError(f"units_of goes round in a circle: {' takes those of '.join([*before, name])}")
        needed = known[name].units_of
        found |= chosen([needed], known, [*before, name]) if needed else {}
        found[name] = known[name]
    return found
