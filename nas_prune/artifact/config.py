"""The config of an artefact: ``config.json``, which lists every other file with its SHA-256.

Its layout follows timm's own (``architecture``, ``model_args``, ``pretrained_cfg`` ...), so that timm reads it too.
Nothing in it is believed before it was checked: its own sum, its keys and their types, and that every listed file is
there and unchanged.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas_prune.artifact.difference import Difference
from nas_prune.artifact.origin import Origin
from nas_prune.base.errors import ArtifactError, shown
from nas_prune.base.files.folders import previous
from nas_prune.base.files.mistakes import explained
from nas_prune.base.files.whole import finite, read_json, write_json

FileName = Literal["config.json", "model.safetensors", "buffers.safetensors", "arch.json"]
FILES: tuple[FileName, ...] = get_args(FileName)
CONFIG, WEIGHTS, BUFFERS, ARCH = FILES
FORMAT, VERSION = "nas_prune artefact", 2
AGAIN = "restore the folder, or make it again with nas_prune.save"


Place = Annotated[list[int], Field(min_length=2, max_length=2)]


class Rewritten(BaseModel):
    """A method of which some sizes are -1 or attributes: the digest of its source, and [which call, which size]."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    source: str
    places: list[Place]
    attributes: list[Place] = Field(default_factory=list)  # older artefacts have none


class Config(BaseModel):
    """What ``config.json`` holds."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    format: Literal["nas_prune artefact"] = "nas_prune artefact"
    format_version: Literal[2] = 2
    architecture: Literal["nas_prune_derived"] = "nas_prune_derived"  # the entry by which timm knows artefacts
    backbone: str
    num_classes: int | None
    num_features: int | None
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    swaps: dict[str, dict[str, Any]] = Field(default_factory=dict)  # older artefacts have none
    shapes: dict[str, list[int]]
    shared: list[list[str]]
    attributes: dict[str, dict[str, Any]]
    rewritten: dict[str, dict[str, Rewritten]]
    wider: bool = False  # older artefacts have no axis that was widened
    certificate: dict[str, Any] | None
    provenance: dict[str, Any] | None
    versions: dict[str, str]
    sha256: dict[FileName, str] = Field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        """The timm model that the artefact came from."""
        return Origin(self.backbone, self.model_args, self.pretrained_cfg)

    @property
    def difference(self) -> Difference:
        """What turns the origin into the derived model."""
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        rewritten = {kind: {m: r.model_dump() for m, r in methods.items()} for kind, methods in self.rewritten.items()}
        return Difference(self.swaps, shapes, self.shared, self.attributes, rewritten, self.wider)


def write(folder: Path, config: Config) -> None:
    """Write ``config.json`` beside the files that are in the folder already, with the sums of all."""
    plain = finite(config.model_dump())
    assert isinstance(plain, dict)
    plain["sha256"] = {path.name: sum_of(path) for path in sorted(folder.iterdir())}
    plain["sha256"][CONFIG] = sum_of_config(plain)
    write_json(folder / CONFIG, plain)


def read(folder: Path) -> Config:
    """The config of a folder, once all that can be checked without building a model is right."""
    raw = _raw(folder)
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(f"{folder / CONFIG}: {explained(error, Config)}; {AGAIN}") from None
    if not {CONFIG, WEIGHTS} <= config.sha256.keys() or sum_of_config(raw) != config.sha256[CONFIG]:
        raise ArtifactError(f"{folder / CONFIG} was changed after it was saved (its SHA-256 does not match); {AGAIN}")
    for name in FILES[1:]:
        _check_file(folder / name, config.sha256.get(name))
    return config


def sum_of_config(config: Mapping[str, Any]) -> str:
    """The SHA-256 of everything in a config but itself, however it is laid out."""
    others = {name: value for name, value in config["sha256"].items() if name != CONFIG}
    return hashlib.sha256(json.dumps({**config, "sha256": others}, sort_keys=True).encode()).hexdigest()


def _raw(folder: Path) -> dict[str, Any]:
    """The config as JSON, if it is one that this version can read."""
    raw = _parsed(folder)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ArtifactError(
            f"{folder / CONFIG} is not the config of a nas_prune artefact; choose a folder that save wrote"
        )
    version = raw.get("format_version")
    if version != VERSION:
        raise ArtifactError(
            f"{folder} is an artefact of format version {shown(version, 20)}, this nas_prune reads version {VERSION}; "
            "install the nas_prune that wrote it, or a newer one"
        )
    return raw


def _parsed(folder: Path) -> Any:
    path = folder / CONFIG
    if not path.is_file():
        raise ArtifactError(f"there is no artefact in {folder} (no {CONFIG}); {_instead(folder)}")
    return read_json(path, ArtifactError)


def _instead(folder: Path) -> str:
    """What to do about a folder that is no artefact: that of a run holds some, and a save may have been interrupted."""
    rescue = previous(folder.resolve())
    if rescue.exists():
        return f"an interrupted save left the old one in {rescue}, rename it"
    inside = [folder / name for name in ("finetuned", "derived") if (folder / name / CONFIG).is_file()]
    if inside:
        return f"it is the folder of a run, whose model is in {inside[0]}"
    begun = (folder / "recipe.yaml").is_file()
    return "it is the folder of a run that has no model yet" if begun else "nor is a run there; check the path"


def _check_file(path: Path, expected: str | None) -> None:
    """A listed file is there and unchanged, and a file that is not listed is not there."""
    if path.is_file() != (expected is not None):
        raise ArtifactError(f"{path} is {'missing' if expected else 'not part of the artefact'}; {AGAIN}")
    if expected is not None and sum_of(path) != expected:
        raise ArtifactError(f"{path} is damaged or was changed (its SHA-256 does not match); {AGAIN}")


def sum_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
