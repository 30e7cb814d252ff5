"""Parts from outside: one file, named in a recipe or declared by a package, is as good as a part of ours."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import nas_prune
from nas_prune.artifact.folder import describe
from nas_prune.base.errors import ArtifactError, NasPruneError, RecipeError
from nas_prune.base.parts import import_parts
from nas_prune.base.registry import Registry, import_declared
from nas_prune.cli.list import listings
from nas_prune.methods.criteria import criteria
from nas_prune.ops import operations
from nas_prune.run import pipeline
from nas_prune.run.checks import check
from nas_prune.run.recipe.recipe import Recipe, read, recipe_keys
from nas_prune.tracing.arch import Arch
from nas_prune.train.record.checkpoint import load

PAGE = (Path(__file__).parents[2] / "docs" / "adding_a_method.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\w+\.(?:py|yaml))\n(.*?)```", PAGE, re.DOTALL))
TOUCHES = re.findall(
    r"^\| (\w+) \| `([\w/]+)` \| `([\w.]+)`.* \| `([\w/.]+)` \|$", PAGE, re.MULTILINE
)  # of its last table
CHEAP = ["budget.cost=macs", "budget.target=0.6x", "latency.samples=12", "latency.seconds=0.01"]


pytestmark = pytest.mark.usefixtures("recorded_timings")  # nothing here is about milliseconds


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The files of the page, by name."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return {name: str(tmp_path / name) for name in FILES}


def written(folder: Path, stem: str, text: str) -> Path:
    """A Python file."""
    path = folder / f"{stem}.py"
    path.write_text(text)
    return path


def test_a_criterion_a_selector_and_a_compensation_in_files_are_used_with_their_options(
    files: dict[str, str], tmp_path: Path
) -> None:
    own = ", ".join(files[name] for name in ("spread.py", "alternating.py", "louder.py"))
    changes = [f"parts=[{own}]", "search.criterion=spread", "search.compensation={name: louder, options: {power: 0.5}}"]
    changes += ["--search.criterion.options.power=2.0", "search.selector={name: alternating, options: {steps: 32}}"]
    asked = read("smoke/fashion_mnist_resnet18_taylor", [*changes, *CHEAP])
    results = pipeline.run(asked, tmp_path / "run")
    assert asked.search.criterion.options == {"power": 2.0}
    assert asked.search.compensation.options == {"power": 0.5}
    assert results["status"] == "met"
    assert read(tmp_path / "run" / "recipe.yaml") == asked
    arch, axes = Arch.read(tmp_path / "run" / "arch.json"), criteria["spread"]
    assert len({len(kept) for kept in arch.kept.values()}) < len(arch.kept)
    assert axes.__module__.startswith("nas_prune_parts_spread")


def test_a_gate_a_penalty_and_a_loss_in_files_are_used(files: dict[str, str], tmp_path: Path) -> None:
    changes = [f"parts=[{files['ramp.py']}, {files['calm.py']}]", "gate={name: ramp, options: {start: 0.8}}"]
    changes += ["search.penalties=[budget, {name: growing_width, options: {alpha: 1e-4}}]"]
    changes += ["search.loss=calm", "--search.loss.options.weight=0.2", "finetune.loss=binary_cross_entropy"]
    results = pipeline.run(read("smoke/digits_w_gates", [*changes, *CHEAP]), tmp_path / "run")
    assert results["status"] == "met"
    saved = load(tmp_path / "run" / "checkpoints" / "search-joint.ckpt")["beside"]
    assert float(saved["objective.penalties.1.steps"]) > 0
    assert float(saved["objective.loss.level"]) != 0


def test_a_mover_and_a_schedule_in_a_file_are_used(files: dict[str, str], tmp_path: Path) -> None:
    changes = [f"parts=[{files['shrinking.py']}]", "gate=mask", "search.schedule=at_the_end", "search.selector=uniform"]
    changes += ["search.mover={name: shrinking, options: {rate: 0.1}}", "search.criterion=magnitude"]
    results = pipeline.run(read("smoke/digits_w_gates", [*changes, *CHEAP]), tmp_path / "run")
    assert results["status"] == "met"
    saved = load(tmp_path / "run" / "checkpoints" / "search-joint.ckpt")["beside"]
    arch = Arch.read(tmp_path / "run" / "arch.json")
    chosen = {name: saved[f"mover.{name.replace('.', '/')}"] for name in arch.kept}
    assert all(sorted(kept) == (chosen[name] == 1).nonzero().flatten().tolist() for name, kept in arch.kept.items())


def test_an_operation_in_a_file_is_searched_and_derived(files: dict[str, str], tmp_path: Path) -> None:
    changes = [f"parts=[{files['blurred.py']}]", f"space={files['blurs.yaml']}", "budget.target=0.4x"]
    changes += ["gate={name: weight, kinds: {operation: softmax}}", "dense.baseline=false", "finetune.epochs=0"]
    results = pipeline.run(read("smoke/digits_w_gates", [*CHEAP, *changes]), tmp_path / "run")
    assert results["status"] == "met"
    swaps = describe(tmp_path / "run" / "derived")["swaps"]
    kept = Arch.read(tmp_path / "run" / "arch.json").kept
    blurred = [name.removesuffix(".blurred_3x3") for name in kept if name.endswith(".blurred_3x3") and kept[name]]
    assert blurred
    assert {swaps[place]["operation"] for place in blurred} == {"blurred_convolution"}
    del operations._parts["blurred_convolution"]  # as where nobody has imported the file
    with pytest.raises(ArtifactError, match=r"blurred_convolution.*import the file that registers it"):
        nas_prune.load(tmp_path / "run" / "derived")


def test_the_page_has_a_file_for_every_kind_of_part() -> None:
    shown = {kind for text in FILES.values() for kind in re.findall(r"^@(\w+)\.register", text, re.MULTILINE)}
    assert shown == listings().keys() - {
        "recipes",
        "sweeps",
        "spaces",
        "datasets",
        "models",
        "costs",
        "predictors",
        "methods",
    }


def test_what_the_page_says_that_a_part_touches_is_there() -> None:
    kinds = re.findall(r"^\| (\w+) \| `(?:methods|ops)/", PAGE, re.MULTILINE)  # of both tables
    assert sorted(kinds) == sorted(2 * [kind for kind, *_ in TOUCHES])
    keys = recipe_keys()
    for _, folder, key, test in TOUCHES:
        assert (Path(nas_prune.__path__[0]) / folder / "__init__.py").is_file()
        assert any(each.name == key or each.name.startswith(f"{key}.") for each in keys), key
        assert (Path(__file__).parents[2] / test).exists()


def test_the_page_names_every_kind_of_part() -> None:
    kinds = {"gates", "criteria", "selectors", "compensations", "movers", "schedules", "penalties", "losses"}
    assert kinds == {path.parent.name for path in Path(nas_prune.__path__[0]).glob("methods/*/__init__.py")} - {
        "shapley",
        "depth",
        "pictures",
    }
    assert all(f"`methods/{kind}/`" in PAGE for kind in kinds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["search.criterion=tailor"], r"search.criterion.name: no criterion 'tailor'.*'taylor'"),
        (["search.criterion={name: taylor, options: {power: 3}}"], r"search.criterion.options.power"),
        (["search.criterion={name: taylor, options: {pover: 1}}"], r"criterion taylor has no option 'pover'.*'power'"),
        (
            ["gate.options={'bogus': 1}"],
            r"gate.options: gate weight has no option 'bogus'; there is: detach_weights, init, leak; .*list gates`",
        ),
        (
            ["search.penalties=[{name: structural}]"],
            r"penalty structural: missing a required .*layers.*list penalties`",
        ),
        (["search.compensation=rigde"], r"search.compensation.name: no compensation 'rigde'.*'ridge'"),
        (["search.selector={name: milp, options: {seconds: soon}}"], r"search.selector.options.seconds"),
        (["dense.loss=crossentropy"], r"dense.loss.name: no loss 'crossentropy'.*'cross_entropy'"),
        (["finetune.loss={name: binary_cross_entropy, options: {threshold: x}}"], r"finetune.loss.options.threshold"),
        (["parts=[nowhere.py]"], r"parts.0: there is no Python file 'nowhere.py'"),
    ],
)
def test_what_does_not_fit_is_told_with_its_key(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(read("smoke/digits_w_gates", changes))


def test_a_name_alone_stands_for_a_part() -> None:
    short = read("smoke/digits_w_gates", ["gate=sigmoid", "search.criterion=taylor"])
    long = read("smoke/digits_w_gates", ["gate={name: sigmoid}", "search.criterion.name=taylor"])
    assert short == long
    assert Recipe.model_validate({"name": "x", "model": {"name": "resnet18"}, "gate": "mask"}).gate.name == "mask"


def test_a_file_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    file = written(tmp_path, "broken", "import nothing_of_that_name")
    with pytest.raises(RecipeError, match=r"parts.0: .*broken.py cannot be imported: No module named"):
        import_parts([str(file)])
    twice = written(tmp_path, "twice", FILES["spread.py"].replace('"spread"', '"taylor"'))
    assert "taylor" in criteria
    with pytest.raises(
        RecipeError, match=r"two parts, each a criterion, are called 'taylor': .*taylor.py and .*twice.py"
    ):
        import_parts([str(twice)])


def test_two_parts_of_one_name_are_refused() -> None:
    registry: Registry[object] = Registry("thing", None)
    registry.register("one")(object())
    with pytest.raises(NasPruneError, match="two parts, each a thing, are called 'one'"):
        registry.register("one")(object())


def declared(folder: Path, text: str) -> Path:
    """A package that declares its parts."""
    written(folder, "their_parts", text)
    facts = folder / "their_package-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[nas_prune.parts]\ntheirs = their_parts\n")
    return folder


def test_a_package_declares_its_parts(tmp_path: Path) -> None:
    declared(tmp_path, FILES["spread.py"])
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from nas_prune.cli.program import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "list", "criteria"], capture_output=True, text=True, check=True)
    assert "Spread: a unit matters as much" in done.stdout


def test_a_package_whose_parts_are_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(declared(tmp_path, "import nothing_of_that_name"))
    with pytest.raises(
        NasPruneError, match=r"the parts of the package their-package \(their_parts\) cannot be imported"
    ):
        import_declared.__wrapped__()


def test_a_run_that_learns_moves_and_scores(tmp_path: Path) -> None:
    changes = ["gate=mask", "search.mover=soft_filter", "search.schedule=ghfp", "search.criterion=magnitude"]
    changes += ["search.selector=uniform", "search.warmup=0", "search.joint=3", "search.penalties=[]"]
    results = pipeline.run(read("smoke/digits_w_gates", [*changes, *CHEAP]), tmp_path / "run")
    assert results["status"] == "met"
    arch, weights = (
        Arch.read(tmp_path / "run" / "arch.json"),
        load(tmp_path / "run" / "checkpoints" / "search-joint.ckpt"),
    )
    closed = {name: value for name, value in weights["model"].items() if name.startswith("gates.")}
    assert closed
    assert all(
        sorted(kept) == value.nonzero().flatten().tolist()
        for kept, value in zip(arch.kept.values(), closed.values(), strict=True)
    )
