"""A recipe: one YAML file is one run. Reading it here is the only place where YAML becomes settings.

Every mistake in it is reported with the file (or the override), the dotted key, what is wrong and what to do.
"""

from collections.abc import Iterator, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from nas_prune.base.errors import RecipeError, one_line, shown
from nas_prune.base.files import yaml_text
from nas_prune.base.files.mistakes import worded
from nas_prune.base.files.shipped import shipped
from nas_prune.base.files.whole import atomic_write
from nas_prune.base.registry import hint
from nas_prune.base.settings import Settings
from nas_prune.run.calibration.settings import LatencySettings
from nas_prune.run.recipe import overrides
from nas_prune.run.recipe.keys import Key, keys, suggestion
from nas_prune.run.recipe.overrides import Override, plain
from nas_prune.run.recipe.settings import BudgetSettings, GateSettings, ModelSettings
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.settings import DenseSettings, FinetuneSettings, SearchSettings, TrackSettings

MOST_TOLD, LONGEST = 3, 240  # mistakes in one message, and characters of one


class Recipe(Settings):
    """One run: train a dense backbone, search, derive, fine-tune, evaluate."""

    name: str = Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$", description="name of the run; its folder is runs/<name>")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to train; auto: what there is")
    precision: Literal["no", "fp16", "bf16"] = Field("no", description="mixed precision of training")
    compile: bool = Field(False, description="torch.compile what trains: worth its minutes where training takes hours")
    channels_last: bool = Field(False, description="train with images and weights channels last: mostly faster")
    model: ModelSettings = Field(description="the timm backbone")
    data: DataSettings = Field(DataSettings(), description="the dataset, its image size and its augmentation")
    space: str = Field("channels", description="search space: a name in search_spaces/ or the path of a YAML file")
    parts: list[str] = Field([], description="Python files of your own whose parts this recipe names")
    gate: GateSettings = Field(GateSettings(), description="which gate decides")
    budget: BudgetSettings = Field(BudgetSettings(), description="the limit that the derived model must meet")
    latency: LatencySettings = Field(LatencySettings(), description="how latency is measured and predicted")
    dense: DenseSettings = Field(DenseSettings(), description="training of the backbone before the search")
    search: SearchSettings = Field(SearchSettings(), description="joint training of weights and gates")
    finetune: FinetuneSettings = Field(FinetuneSettings(), description="training of the derived model")
    track: TrackSettings = Field(TrackSettings(), description="where progress is recorded")


def recipes() -> dict[str, Path]:
    """Every packaged recipe: name -> file. Sweeps over recipes are not recipes, nor are the methods of a comparison."""
    root = shipped("recipes")
    found = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if not name.startswith(("sweeps/", "compare/"))}


def read(name_or_path: str | Path, tokens: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or in that file, changed by overrides such as ``--search.joint=5``."""
    changes, rest = overrides.parse(tokens, Recipe)
    if rest:
        raise RecipeError(f"cannot read {rest[0]!r}; an override is written --key=value, for example --search.joint=5")
    path = _locate(name_or_path)
    return _validated(overrides.apply(yaml_text.read_mapping(path, RecipeError), changes, Recipe), path, changes)


def of_run(folder: Path) -> Path:
    """The file of the recipe that a run folder holds. Raises RecipeError for any other folder."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(
            f"no run in {folder} (no recipe.yaml); correct the path, or start one with "
            f"`nas-prune run RECIPE --out {folder}`"
        )
    return path


def changed(recipe: Recipe, tokens: Sequence[str]) -> Recipe:
    """A recipe with overrides."""
    changes, _ = overrides.parse(tokens, Recipe)
    return _validated(overrides.apply(plain(recipe.model_dump()), changes, Recipe), Path(recipe.name), changes)


def _validated(document: dict[str, Any], path: Path, changes: Sequence[Override]) -> Recipe:
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        lines = list(_explained(error, path, changes))
        more = [f"and {len(lines) - MOST_TOLD} more"] if len(lines) > MOST_TOLD else []
        raise RecipeError("\n".join(lines[:MOST_TOLD] + more)) from None


def write(recipe: Recipe, path: str | Path) -> None:
    """Write a YAML file, whole or not at all, that ``read`` reads back to an equal recipe."""
    atomic_write(path, yaml_text.dump(plain(recipe.model_dump())))


def flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> plain value, every key of the recipe; free-form mappings and lists are one value each."""
    return dict(_leaves(plain(recipe.model_dump()), [key.name for key in keys(Recipe)]))


def json_schema() -> dict[str, Any]:
    """The JSON schema by which editors check and complete a recipe."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def recipe_keys() -> list[Key]:
    """Every key that a recipe may hold."""
    return list(keys(Recipe))


def _locate(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if isfile(path):
        return path
    if path.suffix in (".yaml", ".yml") or isinstance(name_or_path, Path):
        raise RecipeError(
            f"there is no recipe file {one_line(str(path))}; `nas-prune list recipes` shows those that are shipped"
        )
    known = recipes()
    if str(name_or_path) not in known:
        raise RecipeError(f"unknown recipe {shown(str(name_or_path))}{hint(str(name_or_path), known)}")
    return known[str(name_or_path)]


def _leaves(document: dict[str, Any], names: list[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        value: Any = document
        for part in name.split("."):
            value = value[part]
        yield name, value


def _explained(error: ValidationError, path: Path, changes: Sequence[Override]) -> Iterator[str]:
    """One line for each mistake: where, which key, what is wrong, what to do."""
    for detail in error.errors(include_url=False):
        location = tuple(str(part) for part in detail["loc"])
        blamed = [change.text for change in changes if change.path[: len(location)] == location[: len(change.path)]]
        where = f"override {one_line(blamed[-1])}" if blamed and detail["type"] != "missing" else str(path)
        yield f"{where}: {_mistake(detail, location)}"


def _mistake(detail: ErrorDetails, location: tuple[str, ...]) -> str:
    dotted = ".".join(location)
    described = {key.name: key.description for key in keys(Recipe)}.get(dotted)
    about = f" ({described})" if described else ""
    if detail["type"] == "extra_forbidden":
        return f"unknown key {shown(dotted, 100)}{suggestion(Recipe, location)}"
    if detail["type"] == "missing":
        return f"the key {shown(dotted, 100)} is missing; add it{about}"
    allowed = str(detail.get("ctx", {}).get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")
    near = hint(shown(detail["input"]).strip("'"), allowed) if detail["type"] == "literal_error" else ""
    near = near if "did you mean" in near else ""
    return one_line(f"{one_line(dotted)} {worded(detail)}, not {shown(detail['input'])}{near}{about}", LONGEST)
