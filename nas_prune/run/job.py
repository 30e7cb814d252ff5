"""A run folder and the job at work in it: what its steps share, and which recipe may go on where."""

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from nas_prune.base.company import before_others
from nas_prune.base.errors import RecipeError
from nas_prune.base.files.folders import check_writable, tidy
from nas_prune.base.files.lock import FILE as LOCK
from nas_prune.base.files.lock import locked
from nas_prune.base.files.whole import write_json, writing
from nas_prune.costs import Budget, Predictor, Timings, measure_together
from nas_prune.run import build
from nas_prune.run.calibration.bench import conditions
from nas_prune.run.recipe import inputs
from nas_prune.run.recipe import recipe as recipes
from nas_prune.run.recipe.recipe import Recipe
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.data.loaders import Data
from nas_prune.train.loop import Run

# what a calibration depends on
MEASURED = {"seed", "device", "precision", "model", "data", "space", "parts", "latency"}
LEARNT = ("checkpoints", "scores*.safetensors")  # what has come of a recipe, once there is one of these


@dataclass
class Job:
    """One run at work: what the steps share."""

    recipe: Recipe
    folder: Path
    run: Run
    data: Data
    model: nn.Module
    space: SearchSpace
    seconds: dict[str, float]
    calm: dict[str, float] = field(default_factory=dict)  # milliseconds of the dense model while nothing disturbs
    anew: bool = False  # what was timed at the end is timed once more

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Take the time of the block, and keep how long the step took over all attempts; a skipped one takes none."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.seconds[step] = self.seconds.get(step, 0.0) + spent
            self.write("seconds.json", self.seconds)

    def first(self) -> AbstractContextManager[None]:
        """A block that one process runs before the others: it measures and writes, they find that in the run folder."""
        return before_others(self.run.accelerator)

    def write(self, name: str, value: object) -> None:
        """Write a JSON file into the run folder, in one of the processes."""
        if self.run.accelerator.is_main_process:
            write_json(self.folder / name, value)

    def images(self, batch: int) -> Tensor:
        """Example images on the device of the run."""
        return build.example(self.recipe, self.data, batch=batch, device=self.run.accelerator.device)

    def budget(self, predictor: Predictor) -> Budget:
        """The limit of the recipe."""
        return build.budget(self.recipe, self.space.axes, predictor)

    def limits(self, predictor: Predictor) -> list[Budget]:
        """The further limits of the recipe."""
        return build.limits(self.recipe, self.space.axes, predictor)

    def measure(self, models: dict[str, nn.Module], *, seconds: float) -> Timings:
        """Latency of several models, of which one is ``dense``, in turn, as the recipe wants it measured."""
        how, images = self.recipe.latency, self.images(self.recipe.latency.batch_size)
        return measure_together(models, images, conditions=conditions(how), seconds=seconds, calm=self.calm)


@contextmanager
def held(folder: Path, *, first: bool = True) -> Iterator[None]:
    """Hold the folder in the block, made if need be and tidied, for this process alone; of several that were launched
    together, for the ``first``. Raises InUseError where another one works in it.
    """
    with ExitStack() as stack:
        if first:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
            with writing(folder):
                tidy(folder)
        yield


def check_folder(recipe: Recipe, folder: Path, *, resume: bool, force: bool) -> None:
    """Raise, and change nothing, where a run of this recipe may not begin or go on, or nothing can be written.

    As long as nothing is trained yet, a calibration serves every recipe that it is true of (another budget, say).
    """
    path = folder / "recipe.yaml"
    with writing(folder):
        check_writable(folder)
        begun_before = path.exists()
    if begun_before and not resume and not force:
        raise RecipeError(f"{folder} holds a run; resume it, choose another --out, or add --force to delete it")
    if not begun_before or not resume:
        return
    different, changed = difference(open_run(folder), recipe), inputs.changed(recipe, folder)
    begun = any(next(folder.glob(made), None) for made in LEARNT)
    if not begun and not any(key.split(".")[0] in MEASURED for key in (*different, *changed)):
        return
    if different:
        shown = ", ".join(f"{key}: {old} there, {new} here" for key, (old, new) in list(different.items())[:3])
        raise RecipeError(
            f"{folder} holds a run of another recipe ({shown}); choose another --out, or --no-resume --force"
        )
    if changed:
        said = inputs.said(changed, folder)
        raise RecipeError(f"{said}; put it back, choose another --out, or --no-resume --force")


def open_folder(recipe: Recipe, folder: Path, *, resume: bool, force: bool) -> None:
    """Begin a run in the folder, or go on with the one of this very recipe that it holds."""
    check_folder(recipe, folder, resume=resume, force=force)
    path = folder / "recipe.yaml"
    if path.exists() and not resume:
        _empty(folder)
    inputs.keep(recipe, folder)
    recipes.write(recipe, path)


def _empty(folder: Path) -> None:
    """Remove a run; what says whose it is goes last, so that what is left is never taken for another's."""
    with writing(folder):
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "recipe.yaml"):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def open_run(folder: Path) -> Recipe:
    """The recipe of a run folder. Raises RecipeError where no run is."""
    return build.resolved(recipes.read(recipes.of_run(folder)))


def identity(recipe: Recipe, *, but: Collection[str] = ()) -> str:
    """The SHA-256 of a recipe and of the files that it names, by which its checkpoints know each other.

    ``but``: keys whose files do not count.
    """
    files = {f"file of {key}": found for key, found in inputs.sums(recipe).items() if key not in but}
    return hashlib.sha256(json.dumps({**decisive(recipe), **files}, sort_keys=True, default=str).encode()).hexdigest()


def difference(old: Recipe, new: Recipe) -> dict[str, tuple[object, object]]:
    """The keys in which two recipes ask for different runs, with both values."""
    before, after = decisive(old), decisive(new)
    keys = {**before, **after}
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def decisive(recipe: Recipe) -> dict[str, object]:
    """What a run depends on: not where its progress is recorded besides, which may change when it goes on."""
    return {key: value for key, value in recipes.flat(recipe).items() if not key.startswith("track.")}
