"""Laws of the glyphs: no design on both sides, an image is a function of its name, and what is missing is said."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import glyphs as command
import matplotlib
import numpy as np
import pytest
import torch
from glyph_images import faces as face_list
from glyph_images import packages
from glyph_images.characters import ABSENT, chosen, shared
from glyph_images.drawing import Pixels, drawn
from glyph_images.faces import Face, Package, listed
from glyph_images.leaks import compared
from glyph_images.making import Made, MadeParts, Wanted, each_made, made
from glyph_images.scanning import Scan, clean, scanned
from glyph_images.writing import check_place, write_file, write_folder

from nas_prune.base.errors import DataError
from nas_prune.train.data.glyphs import FILE, read
from nas_prune.train.data.loaders import load
from nas_prune.train.data.settings import DataSettings

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LETTERS = tuple("ABCGKQRS")
WANTED = Wanted(LETTERS, size=32, copies=2, scan=Scan())
NO_FOLLOW = lambda steps, _: steps  # noqa: E731


def face(name: str, family: str) -> tuple[Face, Path]:
    """A face of matplotlib's."""
    return Face(family=family, design="text", package="none", file=f"{name}.ttf"), FONTS / f"{name}.ttf"


SANS, SERIF, MONO = face("DejaVuSans", "sans"), face("cmr10", "serif"), face("DejaVuSansMono", "mono")


def parts(wanted: Wanted = WANTED) -> MadeParts:
    """Two faces to train on and one to test on."""
    return {
        "train": [(each[0], made(each, wanted)) for each in (SANS, MONO)],
        "test": [(SERIF[0], made(SERIF, wanted))],
    }


def test_the_classes_are_those_that_three_standards_share() -> None:
    assert len(shared()) == len(set(shared())) == 1583
    assert {"一", "水", "愁"} < set(shared())
    assert not {"駅", "们", "愛"} & set(shared())  # of Japan, of China, of Japan and Taiwan alone
    assert chosen(250) == chosen(1583)[:250]
    assert not set(chosen(1500)) & set(ABSENT)
    for count in (1, 1584):
        with pytest.raises(DataError, match="must be 2 to 1583"):
            chosen(count)


def test_no_package_and_no_family_is_on_both_sides() -> None:
    train, test = listed().part("train"), listed().part("test")
    assert (len(train), len(test)) == (56, 16)
    assert not {face.family for face in train} & {face.family for face in test}
    assert not {face.package for face in train} & {face.package for face in test}
    assert all(family.why for family in listed().families.values())
    assert all(len(package.sha256) == 64 and package.licence for package in listed().packages.values())


def test_a_list_that_contradicts_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = face_list.FILE.read_text()
    (tmp_path / "faces.yaml").write_text(text.replace("family: kiloji", "family: kilogi"))
    monkeypatch.setattr(face_list, "FILE", tmp_path / "faces.yaml")
    with pytest.raises(DataError, match=r"faces.yaml: kilogi, kiloji: named twice, or in one part"):
        listed.__wrapped__()


def test_a_face_draws_what_it_has_cropped_to_its_ink() -> None:
    found = drawn(SANS[1], 0, ["A", "愁", "B", " ", "慰"], 96)
    assert sorted(found) == ["A", "B"]
    assert all(glyph[edge].any() for glyph in found.values() for edge in (0, -1, (..., 0), (..., -1)))
    assert drawn(SANS[1], 0, ["A", "\u0391"], 96) == {}  # Latin and Greek look alike: neither is known to be itself
    with pytest.raises(DataError, match=r"test_glyphs.py is no font"):
        drawn(Path(__file__), 0, ["A"], 96)


def test_a_scan_is_dark_on_light_and_as_bad_as_it_is_told() -> None:
    glyph = np.full((80, 20), 255, np.uint8)
    flat = clean(glyph, 32)
    spotless = Scan(0, 0, 0, (1, 1), 0, 1e-9, 0, (1, 1), 0)
    upright = scanned(glyph, 32, spotless, np.random.default_rng(0))
    assert (flat[16, 16], flat[0, 0]) == (0, 255)
    assert np.flatnonzero((flat < 100).any(1)).tolist() == list(range(2, 30))  # nine tenths of the height
    assert np.argwhere(upright < 100).tolist() == [[row, column] for row in range(32) for column in range(12, 20)]
    for worse in ({"turn": 30}, {"shear": 0.5}, {"struck": 1.0}, {"blur": 0.1}, {"ground": 0.8}, {"noise": 0.1}):
        bad = scanned(glyph, 32, replace(spotless, **worse), np.random.default_rng(2))
        assert not np.array_equal(bad, upright), worse


def images(found: Mapping[str, Made] | list[Made]) -> list[Pixels]:
    """Of each face."""
    return [each.images for each in (found.values() if isinstance(found, Mapping) else found)]


def test_an_image_depends_on_its_character_face_and_copy_alone() -> None:
    whole = made(SANS, WANTED)
    with each_made([SERIF, SANS], WANTED, 2) as each:
        elsewhere = list(each)[1]
    fewer = made(SANS, replace(WANTED, characters=("G", "B"), copies=1))
    assert whole.labels.tolist() == [label for label in range(8) for _ in range(2)]
    assert np.array_equal(elsewhere.images, whole.images)
    assert np.array_equal(fewer.images, whole.images[[2 * 3, 2 * 1]])
    assert not np.array_equal(whole.images[0], whole.images[1])
    assert not np.array_equal(made(MONO, WANTED).images[0], whole.images[0])


def test_the_file_is_what_a_recipe_reads(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_file(tmp_path / name, WANTED, parts())
    data = load(DataSettings(name="glyphs", root=str(tmp_path / "one"), batch_size=8, shift=2), seed=0)
    pixels, labels = next(iter(data.evaluation))
    about, found = read(tmp_path / "one" / FILE)
    training = torch.cat([batch for batch, _ in data.train])
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "other" / FILE).read_bytes()
    assert (data.classes, data.channels, data.seen["label_names"]) == (8, 1, LETTERS)
    assert (tuple(pixels.shape), labels.tolist()) == ((16, 1, 32, 32), [label for label in range(8) for _ in "ab"])
    assert (len(training), about.faces["train"]) == (32, ["DejaVuSans", "DejaVuSansMono"])
    assert found["train.faces"].bincount().tolist() == [16, 16]
    assert training.mean().abs() < 0.1
    assert (training.std() - 1).abs() < 0.1
    assert data.seen["mean"] == (about.mean,)


def test_a_folder_of_images_is_one_that_a_recipe_reads(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", WANTED, parts())
    data = load(DataSettings(name="folder", root=str(tmp_path / "out"), batch_size=8), seed=0)
    assert (data.classes, len(data.train.dataset), len(data.evaluation.dataset)) == (8, 32, 16)  # type: ignore[arg-type]
    assert data.seen["label_names"][0] == "U+0041"
    assert check_place(tmp_path / "out", folder=False) is None
    with pytest.raises(DataError, match="is not empty"):
        check_place(tmp_path / "out", folder=True)


def test_a_copy_of_a_training_design_is_found_out() -> None:
    plain = replace(WANTED, copies=1, scan=None)
    training = [(SANS[0], made(SANS, plain)), (MONO[0], made(MONO, plain))]
    renamed = SANS[0].model_copy(update={"family": "another"})
    copy, own = compared([(renamed, training[0][1]), (SERIF[0], made(SERIF, plain))], training)
    family = compared(training[:1], training)[0]
    assert (copy.leaks, copy.top1, copy.same, copy.nearest) == (True, 1.0, 1.0, "DejaVuSans")
    assert (own.leaks, family.nearest) == (False, "DejaVuSansMono")  # a family is not compared with itself
    assert own.alike < 0.9


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A package with one file, in tmp_path/fonts."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb on this machine")
    content = tmp_path / "content"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "DEBIAN" / "control").write_text(
        "Package: fonts-x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    (content / "x.ttf").write_text("a font")
    (tmp_path / "fonts").mkdir()
    archive = tmp_path / "fonts" / "fonts-x_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(content), str(archive)], check=True, capture_output=True)
    return Package(version="1", licence="MIT", sha256=hashlib.sha256(archive.read_bytes()).hexdigest())


def test_a_package_is_unpacked_once_and_only_if_it_is_the_one(tmp_path: Path, package: Package) -> None:
    fonts = tmp_path / "fonts"
    folder = packages.unpacked({"fonts-x": package}, fonts, NO_FOLLOW)["fonts-x"]
    assert packages.font(folder, "x.ttf").read_text() == "a font"
    (fonts / "fonts-x_1_all.deb").unlink()
    assert packages.unpacked({"fonts-x": package}, fonts, NO_FOLLOW)["fonts-x"] == folder
    (fonts / "fonts-x_1_all.deb").write_bytes(b"another")
    other = package.model_copy(update={"sha256": "0" * 64})
    before = sorted(fonts.iterdir())
    with pytest.raises(DataError, match=r"fonts-x_1_all.deb has the SHA-256 .* the list wants 0000.*delete the file"):
        packages.unpacked({"fonts-x": other}, fonts, NO_FOLLOW)
    assert sorted(fonts.iterdir()) == before
    with pytest.raises(DataError, match=r"holds no y.ttf; delete that folder"):
        packages.font(folder, "y.ttf")


def test_what_apt_cannot_fetch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "apt-get").write_text("#!/bin/sh\necho 'E: Version 1 was not found' >&2\nexit 100\n")
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin")
    wanted = {"fonts-x": Package(version="1", licence="MIT", sha256="0" * 64)}
    with pytest.raises(DataError, match=r"apt cannot fetch fonts-x=1; is there a network.*Version 1 was not found"):
        packages.unpacked(wanted, tmp_path / "fonts", NO_FOLLOW)
    assert list((tmp_path / "fonts").iterdir()) == []


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the command where there is no apt."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "argv", ["glyphs.py", *words, "--fonts", str(folder / "fonts")])
    return command.main()


def test_without_apt_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, str(tmp_path / "out")) == 2
    assert "there is no apt-get on this machine" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, monkeypatch, str(tmp_path / "out"), "--classes", "5000") == 2
    assert "--classes 5000 must be 2 to 1583" in capsys.readouterr().err
    for words in ([], ["out", "--check"], ["out", "--size", "4"]):
        with pytest.raises(SystemExit):
            run(tmp_path, monkeypatch, *words)


def test_the_command_draws_checks_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a list of two faces that are here: fonts are unpacked already, as if by an earlier run."""
    (tmp_path / "none").symlink_to(FONTS)
    monkeypatch.setattr(command, "unpacked", lambda *_: {"none": tmp_path / "none"})
    monkeypatch.setattr(command, "chosen", lambda _: LETTERS)
    families = {name: face_list.Family(part=part, why="x") for name, part in (("sans", "train"), ("serif", "test"))}
    small = face_list.Faces(families, (SANS[0], SERIF[0]), {})
    monkeypatch.setattr(command, "listed", lambda: small)
    assert run(tmp_path, monkeypatch, str(tmp_path / "out"), "--processes", "1") == 0
    assert "16 images to train on and 16 to test on" in capsys.readouterr().err
    assert len(read(tmp_path / "out" / FILE)[1]["test.images"]) == 16
    monkeypatch.setattr(command, "listed", lambda: replace(small, faces=(SANS[0], SERIF[0], MONO[0])))
    families["mono"] = face_list.Family(part="train", why="x")
    assert run(tmp_path, monkeypatch, "--check", "--processes", "1") == 0
    assert "cmr10" in capsys.readouterr().out
