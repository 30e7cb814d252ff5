"""Parts from outside: one file, named in a recipe or declared by a package, is as good as a part of ours."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from nas_prune.base.errors import NasPruneError, RecipeError
from nas_prune.base.registry import Registry
from nas_prune.methods.criteria import criteria
from nas_prune.run import pipeline
from nas_prune.run.checks import check
from nas_prune.run.parts import import_parts
from nas_prune.run.recipe.recipe import Recipe, read

CRITERION = """
\"\"\"Spread: a unit matters as much as the weights that make it differ.\"\"\"

from nas_prune.methods.criteria import criteria


@criteria.register("{name}")
def spread(gated, batches, *, power: float = 1.0):
    return {{name: gated.weights(name)[0].detach().std(1) ** power for name in gated.space.free}}
"""
PENALTY_AND_LOSS = """
\"\"\"A penalty that remembers, and a loss that looks inside.\"\"\"

import torch
from torch import nn

from nas_prune.methods.losses import losses
from nas_prune.methods.losses.cross_entropy import CrossEntropy
from nas_prune.methods.penalties import penalties


@penalties.register("test_counting")
class Counting(nn.Module):
    def __init__(self, budget, *, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, gated):
        self.steps += 1
        return self.alpha * sum(size.mean() for size in gated.sizes().values())


@losses.register("test_calm")
class Calm(CrossEntropy):
    features = ("layer1",)

    def __init__(self, smoothing: float, *, weight: float = 0.1) -> None:
        super().__init__(smoothing)
        self.weight = weight
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, said, targets):
        off = said.features["layer1"].square().mean() - self.level
        return super().forward(said, targets) + self.weight * off.square()
"""


def written(folder: Path, stem: str, text: str, **names: str) -> Path:
    """A Python file."""
    path = folder / f"{stem}.py"
    path.write_text(dedent(text).format(**names) if names else dedent(text))
    return path


def test_a_criterion_in_a_file_is_used_with_its_options(tmp_path: Path) -> None:
    file = written(tmp_path, "spread", CRITERION, name="test_spread")
    changes = [f"parts=[{file}]", "search.criterion=test_spread", "--search.criterion.options.power=2.0"]
    asked = read("smoke/fashion_mnist_resnet18_taylor", [*changes, "budget.cost=macs", "budget.target=0.5x"])
    assert asked.search.criterion.options == {"power": 2.0}
    found = pipeline.run(asked, tmp_path / "run", until="search")
    assert found["arch"]
    assert read(tmp_path / "run" / "recipe.yaml") == asked


def test_a_penalty_and_a_loss_in_a_file_are_used(tmp_path: Path) -> None:
    file = written(tmp_path, "calm", PENALTY_AND_LOSS)
    changes = [f"parts=[{file}]", "search.penalties=[budget, {name: test_counting, options: {alpha: 1e-4}}]"]
    changes += [
        "--search.loss=test_calm",
        "--search.loss.options.weight=0.2",
        "budget.cost=macs",
        "finetune.loss=test_calm",
    ]
    asked = read("smoke/quickstart", [*changes, "budget.target=0.8x", "latency.samples=12", "latency.seconds=0.01"])
    results = pipeline.run(asked, tmp_path / "run")
    assert results["status"] == "met"
    assert (tmp_path / "run" / "finetuned" / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["search.criterion=tailor"], r"search.criterion.name: no criterion 'tailor'.*'taylor'"),
        (["search.criterion={name: taylor, options: {power: 3}}"], r"search.criterion.options.power"),
        (["search.criterion={name: taylor, options: {pover: 1}}"], r"search.criterion.options do not fit.*pover"),
        (["search.selector={name: milp, options: {seconds: soon}}"], r"search.selector.options.seconds"),
        (["dense.loss=crossentropy"], r"dense.loss.name: no loss 'crossentropy'.*'cross_entropy'"),
        (["finetune.loss={name: binary_cross_entropy, options: {threshold: x}}"], r"finetune.loss.options.threshold"),
        (["parts=[nowhere.py]"], r"parts.0: there is no Python file 'nowhere.py'"),
    ],
)
def test_what_does_not_fit_is_told_with_its_key(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(read("smoke/quickstart", changes))


def test_a_name_alone_stands_for_a_part() -> None:
    short = read("smoke/quickstart", ["gate=sigmoid", "search.criterion=taylor"])
    long = read("smoke/quickstart", ["gate={name: sigmoid}", "search.criterion.name=taylor"])
    assert short == long
    assert Recipe.model_validate({"name": "x", "model": {"name": "resnet18"}, "gate": "mask"}).gate.name == "mask"


def test_a_file_that_cannot_be_imported_is_told(tmp_path: Path) -> None:
    file = written(tmp_path, "broken", "import nothing_of_that_name")
    with pytest.raises(RecipeError, match=r"parts.0: .*broken.py cannot be imported: No module named"):
        import_parts([str(file)])
    twice = written(tmp_path, "twice", CRITERION, name="taylor")
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


@pytest.mark.parametrize("sound", [True, False], ids=["sound", "broken"])
def test_a_package_declares_its_parts(tmp_path: Path, sound: bool) -> None:
    written(tmp_path, "their_parts", CRITERION if sound else "import nothing_of_that_name", name="theirs")
    facts = tmp_path / "their_package-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[nas_prune.parts]\ntheirs = their_parts\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from nas_prune.cli.program import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "list", "criteria"], capture_output=True, text=True, check=False)
    if sound:
        assert "Spread: a unit matters as much" in done.stdout
    else:
        assert done.returncode == 2, done.stderr
        assert "the parts of the package their-package (their_parts) cannot be imported" in json.dumps(done.stderr)
