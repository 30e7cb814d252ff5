"""Prints which packages that the project needs are missing here or too old, as arguments for pip.

Weights & Biases can be done without.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:  # pip has a copy
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]

DISPENSABLE = {"wandb"}


def lacking(requirement: Requirement) -> bool:
    """Whether it is not met here."""
    try:
        return not requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return True


def main() -> None:
    """One line."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    needed = [each for each in map(Requirement, project["dependencies"]) if each.name not in DISPENSABLE]
    print(" ".join(str(each).replace(" ", "") for each in needed if lacking(each)))


if __name__ == "__main__":
    main()
