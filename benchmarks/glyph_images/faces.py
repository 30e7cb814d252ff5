"""The list of faces: which are trained on, which are tested on, and in which packages they are.

A family, which is whatever shares an author, a source or a look, is on one side only; ``faces.yaml`` says why.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from nas_prune.base.errors import DataError
from nas_prune.base.files.documents import Document, Natural, Text, validated
from nas_prune.base.files.yaml_text import read_mapping

FILE = Path(__file__).with_name("faces.yaml")
Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")


class Family(Document):
    """Faces that must not be parted, and why they are one family."""

    part: Part
    why: Text


class Package(Document):
    """A package of Debian: its version, the licence of its fonts, and the SHA-256 of its file."""

    version: Text
    licence: Text
    sha256: Text


class Face(Document):
    """A face in a file of a package; ``index`` where the file is a collection."""

    family: Text
    design: Text
    package: Text
    file: Text
    index: Natural = 0

    @property
    def name(self) -> str:
        """The name of its file, without the suffix."""
        return Path(self.file).stem


class _List(Document):
    families: dict[Text, Family]
    faces: list[Face]
    packages: dict[Text, Package]


@dataclass(frozen=True)
class Faces:
    """The whole list."""

    families: dict[str, Family]
    faces: tuple[Face, ...]
    packages: dict[str, Package]

    def part(self, part: Part) -> tuple[Face, ...]:
        """The faces of one side, in the order of the list."""
        return tuple(face for face in self.faces if self.families[face.family].part == part)


@cache
def listed() -> Faces:
    """What ``faces.yaml`` says. Raises DataError where a face is of no known family or package, or is named twice."""
    found = validated(read_mapping(FILE, DataError), _List, str(FILE), DataError)
    names = [face.name for face in found.faces]
    twice = {name for name in names if names.count(name) > 1}
    strays = {face.family for face in found.faces} ^ set(found.families)
    strays |= {face.package for face in found.faces} ^ set(found.packages)
    if twice or strays:
        raise DataError(f"{FILE}: {', '.join(sorted(twice | strays))}: named twice, or in one part of the list only")
    return Faces(found.families, tuple(found.faces), found.packages)
