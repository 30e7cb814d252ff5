"""The examples of the public face run: those of the package, and those of its names, which go on from there."""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nas_prune

README = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text().split("## From Python")[1], re.DOTALL
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SHOWN_AS = {"Axes": "axes.free", "Gate": "gated.gate("}  # what nobody makes by hand: what an example does with it


def run(doc: str | None, name: str, names: dict[str, Any]) -> tuple[int, str]:
    """How many examples there are, and what those said that failed; ``names`` gets what they define."""
    test = doctest.DocTestParser().get_doctest(doc or "", names, name, None, None)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append, clear_globs=False)
    names.update(test.globs)
    return len(test.examples), "".join(said)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str]]:
    """The names that the examples of the package define, and what failed; in a folder of their own."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        yield names, run(nas_prune.__doc__, "nas_prune", names)[1]


def test_the_examples_of_the_package_run(package: tuple[dict[str, Any], str]) -> None:
    assert package[1] == ""
    assert {"axes", "arch", "small"} <= package[0].keys()


@pytest.mark.usefixtures("recorded_timings")
@pytest.mark.parametrize("example", README)
def test_the_examples_of_the_readme_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace('"resnet50", pretrained=True', '"test_resnet"').replace("224, 224", "32, 32"), names)
    assert nas_prune.load("small").state_dict().keys() == names["model"].state_dict().keys()
    budget = names.get("budget")
    assert budget is None or names["milliseconds"](names["arch"]) <= 1.03 * budget.limit


@pytest.mark.parametrize("name", nas_prune.__all__)
def test_the_examples_of_every_public_name_run(name: str, package: tuple[dict[str, Any], str]) -> None:
    count, failed = run(getattr(nas_prune, name).__doc__, name, dict(package[0]))
    assert failed == ""
    shown = SHOWN_AS.get(name, f"npr.{name}")
    assert count or f"{shown}" in (nas_prune.__doc__ or ""), "a public name has an example, its own or the package's"
