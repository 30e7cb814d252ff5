"""Fonts out of Debian's packages, fetched by apt and unpacked beside the system, never installed.

A package is what its SHA-256 says, or it is not used. Each is fetched and unpacked whole or not at all, so that whoever
was stopped goes on from there.
"""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from glyph_images.faces import Package
from nas_prune.base.errors import DataError, one_line
from nas_prune.base.files.folders import whole_folder
from nas_prune.base.files.whole import writing
from nas_prune.base.follow import Follow

ELSEWHERE = "run this on Debian 12 (in a container, say) and pass what it fetched with --fonts FOLDER"


def unpacked(packages: Mapping[str, Package], folder: Path, follow: Follow[str]) -> dict[str, Path]:
    """Package -> folder with its files, fetched into ``folder`` where they are not there yet.

    Raises DataError where a package cannot be had, or is not the one of the list.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    there = {name: folder / f"{name}-{package.sha256[:12]}" for name, package in packages.items()}
    missing = [name for name, path in there.items() if not path.is_dir()]
    for name in follow(missing, "fetching fonts"):
        archive = next(iter(sorted(folder.glob(f"{name}_*.deb"))), None) or fetched(name, packages[name], folder)
        check(archive, packages[name])
        with writing(there[name]), whole_folder(there[name]) as empty:
            _run(["dpkg-deb", "-x", str(archive), str(empty)], f"cannot unpack {archive}; delete it to fetch it again")
    return there


def fetched(name: str, package: Package, folder: Path) -> Path:
    """The archive of a package, put into ``folder``."""
    wanted = f"{name}={package.version}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as parent:
        advice = f"apt cannot fetch {wanted}; is there a network, has `apt-get update` run, is this Debian 12? Else "
        _run(["apt-get", "download", "-q", wanted], advice + ELSEWHERE, parent)
        found = sorted(Path(parent).glob("*.deb"))
        if not found:
            raise DataError(f"apt says that it has fetched {wanted}, but there is no file; {ELSEWHERE}")
        check(found[0], package)
        return found[0].rename(folder / found[0].name)


def check(archive: Path, package: Package) -> None:
    """Raise DataError unless the file is the one of the list."""
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise DataError(
            f"{archive} has the SHA-256 {found}, the list wants {package.sha256} (version {package.version}): other "
            "glyphs would be another benchmark; delete the file to fetch it again"
        )


def font(folder: Path, name: str) -> Path:
    """The file of that name in an unpacked package."""
    found = sorted(folder.rglob(name))
    if not found:
        raise DataError(f"{folder} holds no {name}; delete that folder to unpack it again")
    return found[0]


def _run(command: Sequence[str], advice: str, folder: str | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"there is no {command[0]} on this machine, and the fonts are Debian's packages; {ELSEWHERE}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg"))] or [done.stderr]
        raise DataError(f"{advice} ({one_line(said[0], 200)})")
