"""A run knows the files that its recipe names by what is in them: it does not go on with others, and says which."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

import nas_prune.cli.sweep.file as sweep_file
from nas_prune.base.errors import InterruptedRunError, RecipeError
from nas_prune.base.files.whole import read_json
from nas_prune.cli.sweep import trial
from nas_prune.run import job, pipeline
from nas_prune.run.compare import methods
from nas_prune.run.compare.cells import DENSE, Cell
from nas_prune.run.compare.plan import Plan
from nas_prune.run.recipe import inputs
from nas_prune.run.recipe.recipe import Recipe, read, recipe_keys, recipes
from nas_prune.tracing.space import spaces
from nas_prune.train.data.glyphs import FILE as GLYPHS

SMOKE = "smoke/fashion_mnist_resnet18_taylor"
CHEAP = ["budget.cost=macs", "budget.target=0.6x", "latency.samples=12", "latency.seconds=0.01", "latency.cache=false"]
NAMES = {  # what is said of a file or a folder, and no path: of images in general, of where the run goes
    "name",
    "data.name",
    "data.mean",
    "data.std",
    "data.crop_pct",
    "data.interpolation",
    "data.unreadable",
}

pytestmark = pytest.mark.usefixtures("recorded_timings")


def naming(key: str, folder: Path) -> tuple[list[str], Path]:
    """Overrides by which a recipe names a file, which is written, under a key; and the file."""
    file = folder / {"parts": "part.py", "space": "space.yaml", "data.root": GLYPHS}.get(key, "config.json")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"one")
    overlay = f"{{'pretrained_cfg_overlay': {{'file': '{file}'}}}}"
    words = {
        "parts": [f"--parts=[{file}]"],
        "data.root": ["--data.name=glyphs", f"--data.root={folder}"],
        "model.name": [f"--model.name=local-dir:{folder}"],
        "model.kwargs": [f"--model.kwargs={overlay}"],
    }
    return words.get(key, [f"--{key}={file}"]), file


KEYS = ("parts", "space", "data.root", "model.name", "model.kwargs", "model.checkpoint", "latency.calibration")


@pytest.mark.parametrize("key", KEYS)
def test_what_a_recipe_names_is_known_by_its_content_alone(key: str, tmp_path: Path) -> None:
    words, file = naming(key, tmp_path / "here")
    asked = read(SMOKE, words)
    before, (sum_before,) = job.identity(asked), inputs.sums(asked).values()
    assert job.identity(asked) == before
    elsewhere, other = naming(key, tmp_path / "there")
    assert list(inputs.sums(read(SMOKE, elsewhere)).values()) == [sum_before]
    file.write_bytes(b"two")
    assert job.identity(asked) != before
    other.unlink()
    assert inputs.sums(read(SMOKE, elsewhere)) == {}


def test_no_key_that_names_a_file_was_forgotten() -> None:
    named = {key.name for key in recipe_keys() if re.search(r"\b(files?|folder|path)\b", key.description)}
    assert named - NAMES == set(KEYS) - {"model.name", "model.kwargs"}
    assert all(inputs.named(read(name)).keys() <= {"data.root"} for name in recipes())


def test_of_folders_of_images_the_names_count(tmp_path: Path) -> None:
    asked = read(SMOKE, ["--data.name=folder", f"--data.root={tmp_path}"])
    for part in ("train/cat", "val/cat"):
        (tmp_path / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / "0.png")
    before = job.identity(asked)
    (tmp_path / "train" / "notes.txt").touch()
    (tmp_path / "runs").mkdir()
    assert job.identity(asked) == before
    (tmp_path / "train" / "cat" / "0.png").rename(tmp_path / "train" / "cat" / "1.png")
    assert job.identity(asked) != before


def test_a_sum_is_taken_once_as_long_as_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, images = read(SMOKE, ["--data.name=folder", f"--data.root={tmp_path}"]), tmp_path / "train" / "cat"
    images.mkdir(parents=True)
    (images / "one.png").write_bytes(b"")
    old = time.time() - 60
    for folder in (images, images.parent, tmp_path):
        os.utime(folder, (old, old))
    walks, walk = list[str](), os.walk
    monkeypatch.setattr(os, "walk", lambda path: walks.append(path) or walk(path))
    before = inputs.sums(asked)
    taken = len(walks)
    assert inputs.sums(asked) == before
    assert len(walks) == taken
    (images / "two.png").write_bytes(b"")
    assert inputs.sums(asked) != before
    (images / "two.png").unlink()
    assert inputs.sums(asked) == before, "what is young is looked at again"


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, file = naming("parts", tmp_path)

    def refused(_path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inputs, "sum_of", refused)
    with pytest.raises(RecipeError, match=rf"parts.0: {file} cannot be read \(Permission denied\); correct the path"):
        job.identity(read(SMOKE, words))


def spaced(folder: Path) -> tuple[Recipe, Path]:
    """A recipe with a search space and a part of its own, and the file of the space."""
    space, part = folder / "space.yaml", folder / f"part_{folder.name}.py"
    shutil.copy(spaces()["channels"], space)
    part.write_text("A = 1\n")
    return read(SMOKE, [*CHEAP, f"--space={space}", f"--parts=[{part}]"]), space


@pytest.mark.parametrize("until", ["calibrate", "search", "report"])
def test_a_run_does_not_go_on_with_another_file(until: pipeline.Until, tmp_path: Path) -> None:
    asked, space = spaced(tmp_path)
    out = tmp_path / "run"
    done = pipeline.run(asked, out, until=until)
    kept = read_json(out / "inputs.json")
    assert kept.keys() == {"space", "parts.0"}
    before = space.read_text()
    space.write_text(f"{before}\n# another minimum\n")
    with pytest.raises(RecipeError, match=rf"{space} \(space\) has changed since the run in {out} began; put it back"):
        pipeline.run(asked, out, until=until)
    with pytest.raises(RecipeError, match="has changed since"):
        pipeline.run(pipeline.open_run(out), out)
    assert read_json(out / "inputs.json") == kept
    if until == "report":
        assert pipeline.evaluate(out) == done  # of what the run was, whatever has become of its files
        space.unlink()
        assert pipeline.evaluate(out) == pipeline.run(asked, out) == done
    space.write_text(before)
    assert pipeline.run(asked, out, until=until).keys() == done.keys()
    space.write_text(f"{before}\n# another minimum\n")
    pipeline.run(asked, out, until=until, resume=False, force=True)
    assert read_json(out / "inputs.json")["space"] != kept["space"]


def test_a_run_that_did_not_write_down_its_files_does_not_go_on(tmp_path: Path) -> None:
    asked, space = spaced(tmp_path)
    pipeline.run(asked, tmp_path / "run", until="calibrate")
    (tmp_path / "run" / "inputs.json").unlink()
    with pytest.raises(RecipeError, match=r"nobody wrote down what .* \(parts.0\) was"):
        pipeline.run(asked, tmp_path / "run", until="calibrate")
    assert space.exists()


def test_a_comparison_knows_the_files_that_are_given_and_not_the_one_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, space = spaced(tmp_path)
    plan = Plan(asked, {"taylor": methods.methods()["taylor"]}, ["0.5x"], range(1), tmp_path / "out")
    cells = [Cell(DENSE, "", 0), Cell("taylor", "0.5x", 0)]
    before = [plan.identity(cell) for cell in cells]
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path, tmp_path / "out"):
        start = plan.start(0, out)
        start.parent.mkdir(parents=True)
        start.write_bytes(b"the dense network")
    assert [plan.identity(cell) for cell in cells] == before
    space.write_text(f"{space.read_text()}\n# another minimum\n")
    assert all(plan.identity(cell) != known for cell, known in zip(cells, before, strict=True))


def test_a_sweep_knows_its_recipe_and_the_files_that_are_given(tmp_path: Path) -> None:
    asked, space = spaced(tmp_path)
    own, file = tmp_path / "recipe.yaml", tmp_path / "sweep.yaml"
    file.write_text(
        "method: grid\nparameters: {seed: {values: [0, 1]}}\n"
        f'command: ["${{env}}", nas-prune, run, {own}, "--space={space}", "${{args}}"]\n'
    )

    def identity() -> str:
        return trial.identity(sweep_file.read(str(file)), 0)

    own.write_text("name: a\nmodel: {name: test_resnet}\nfinetune: {epochs: 1}\n")
    first = identity()
    assert identity() == first
    own.write_text("name: a\nmodel: {name: test_resnet}\nfinetune: {epochs: 9}\n")
    second = identity()
    space.write_text(f"{space.read_text()}\n# another minimum\n")
    assert len({first, second, identity()}) == 3
    assert asked.space == str(space)


def test_scores_of_a_round_are_of_the_recipe_that_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas_prune.train import search

    def stopped(*_: object, **__: object) -> None:
        raise InterruptedRunError("stopped", 2)

    asked = "smoke/fashion_mnist_resnet18_before_training"
    with monkeypatch.context() as patch:
        patch.setattr(search, "_closed", stopped)
        with pytest.raises(InterruptedRunError):
            pipeline.run(read(asked, CHEAP), tmp_path, until="search")
    assert [path.name for path in tmp_path.glob("scores*")] == ["scores-1.safetensors"]
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(RecipeError, match=r"a run of another recipe \(search.criterion.name: .* there, magnitude here"):
        pipeline.run(read(asked, [*CHEAP, "--search.criterion=magnitude"]), tmp_path, until="search")
