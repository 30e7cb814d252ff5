"""Methods side by side: the same epochs for all, cells that are run once, tables that say what is beside what."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nas_prune.base.errors import RecipeError
from nas_prune.base.files.shipped import shipped
from nas_prune.run import pipeline
from nas_prune.run.checks import check
from nas_prune.run.compare import methods, page
from nas_prune.run.compare.cells import DENSE, Cell, Row
from nas_prune.run.compare.chart import chart
from nas_prune.run.compare.compare import compare
from nas_prune.run.compare.plan import Plan
from nas_prune.run.compare.sections import Section, sections
from nas_prune.run.recipe.recipe import Recipe, read
from nas_prune.train.settings import OptimSettings, SearchSettings

TINY = ["dense.epochs=2", "finetune.epochs=3", "budget.cost=macs"]
ALL = methods.methods()
# of a search, what a recipe says for every method: how it trains, how long, and on how much data
OWN = {*OptimSettings.model_fields, "joint", "freeze", "gate_lr", "temperature", "holdout", "criterion_batches"}
OWN |= {"shapley"}


def plan_of(out: Path, *names: str, overrides: tuple[str, ...] = (), seeds: int = 1) -> Plan:
    """A plan on the smallest recipe."""
    base = read("smoke/fashion_mnist_resnet18_taylor", [f"--{each}" for each in (*TINY, *overrides)])
    return Plan(base, methods.chosen(names, ALL), ["0.8x"], range(seeds), out)


def row(method: str, seed: int, top1: float, **more: object) -> Row:
    """A cell that came to a result."""
    target = "" if method == DENSE else "0.5x"
    shares = {"latency": 0.5, "macs": 0.4, "params": 0.4}
    known = {"recipe": "r", "status": "met", "derived": top1 - 1, "top1": top1, "epochs": 5, **shares, **more}
    return Row(method=method, target=target, seed=seed, **known)


@pytest.mark.parametrize("name", ALL)
def test_every_method_trains_for_the_same_epochs(name: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, name)
    recipe = plan.recipe(Cell(name, "0.8x", 0))
    own = plan.base.dense.epochs if ALL[name].begins == "random" else 0
    assert recipe.dense.epochs + recipe.search.epochs + recipe.finetune.epochs == plan.epochs + own
    assert (recipe.model.checkpoint is None) == (ALL[name].begins == "random")
    if recipe.model.checkpoint is None:
        check(recipe)
    assert not recipe.dense.baseline
    assert recipe.seed == 0


def test_a_method_has_no_part_of_the_recipe_that_it_is_compared_on(tmp_path: Path) -> None:
    plain, searches = plan_of(tmp_path, *ALL), SearchSettings.model_fields.keys() - OWN
    cells = [Cell(name, "0.8x", 0) for name in ALL]
    own = [plain.recipe(cell) for cell in cells]
    for path in sorted((shipped("recipes") / "smoke").glob("*.yaml")):
        plan = replace(plain, base=read(path))
        for cell, wanted in zip(cells, own, strict=True):
            found = plan.recipe(cell)
            assert found.gate == wanted.gate, (path.stem, cell)
            strange = [key for key in searches if getattr(found.search, key) != getattr(wanted.search, key)]
            assert not strange, (path.stem, cell)


def test_what_is_trained_from_scratch_trains_as_the_dense_network_does(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "uniform_from_scratch", overrides=("dense.lr=0.3", "finetune.lr=0.01"))
    recipe = plan.recipe(Cell("uniform_from_scratch", "0.8x", 0))
    assert (recipe.finetune.lr, recipe.finetune.distill, recipe.finetune.from_scratch) == (0.3, 0.0, True)


def test_controls_come_last_and_train_longer_for_what_searches_cost(tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path, "magnitude", "taylor", "w_gates"), allowance=2)
    assert [cell.method for cell in plan.cells()] == [DENSE, "taylor", "w_gates", "magnitude"]
    assert {name: plan.allowed(method) for name, method in plan.methods.items()} == {
        "magnitude": 5,
        "taylor": 3,
        "w_gates": 3,
    }


def section_of(rows: list[Row], tmp_path: Path) -> Section:
    """The one section of rows at one target."""
    (section,) = sections(rows, plan_of(tmp_path, *ALL))
    return section


def test_a_table_names_the_methods_whose_choice_took_longer_than_what_controls_were_allowed(tmp_path: Path) -> None:
    rows = [
        row("taylor", 0, 91.0, scored=3.0),
        row("fpgm", 0, 91.0, scored=2.0),
        row("ablation", 0, 92.0, scored=24.0),
        row("random_widths", 0, 9.0),
    ]
    rows = [*rows, row("uniform", 0, 90.0, scored=30.0), row(DENSE, 0, 95.0, seconds=50.0)]
    assert list(section_of(rows, tmp_path).remarks()) == [
        "Choosing with ablation took as long as 2.4 dense epochs; controls had 0 more.",
        "Choosing with taylor took as long as 0.3 dense epochs; controls had 0 more.",
    ]


def test_a_table_names_what_was_timed_on_a_busy_machine(tmp_path: Path) -> None:
    rows = [row("taylor", 0, 91.0, spread=0.02), row("taylor", 1, 91.0, spread=0.3), row("uniform", 0, 90.0)]
    (said,) = section_of(rows, tmp_path).remarks()
    assert said.endswith("whose latencies may be wrong: taylor.")


def test_a_table_names_what_costs_too_little_or_too_much(tmp_path: Path) -> None:
    rows = [row("taylor", 0, 91.0, of_limit=0.72), row("uniform", 0, 90.0, of_limit=0.99)]
    rows += [row("w_gates", 0, 92.0, of_limit=1.07, status="missed")]
    less, missed = section_of(rows, tmp_path).remarks()
    assert less.endswith("to their disadvantage: taylor (0.72x).")
    assert missed == "Above the limit: w_gates, seed 0."


@pytest.mark.parametrize(
    ("target", "cost", "title"),
    [
        ("0.5x", "latency", "0.5x of the dense latency"),
        ("0.5x", "macs", "0.5x of the dense MACs"),
        ("5ms", "latency", "latency of at most 5ms"),
    ],
)
def test_a_table_says_what_is_limited(target: str, cost: str, title: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "taylor", overrides=(f"budget.cost={cost}",))
    (section,) = sections([row("taylor", 0, 91.0).model_copy(update={"target": target})], plan)
    assert section.title == title


def test_units_by_lot_get_the_widths_of_the_method_that_they_are_put_beside(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "random_units")
    assert list(plan.methods) == ["taylor", "random_units"]
    rows = compare(plan, lambda _: None)
    assert [each.status for each in rows] == ["met"] * 3
    taylor, units = (each for each in rows if each.method != DENSE)
    assert taylor.macs == units.macs
    assert taylor.params == units.params


def test_networks_whose_channels_lie_last_begin_with_the_same_weights(tmp_path: Path) -> None:
    layouts = {
        layout: plan_of(tmp_path / layout, "taylor", overrides=(f"channels_last={layout}",))
        for layout in ("true", "false")
    }
    assert {row.status for plan in layouts.values() for row in compare(plan, lambda _: None)} == {"met"}
    starts = [safetensors.torch.load_file(plan.start(0)) for plan in layouts.values()]
    assert all(torch.allclose(value, starts[1][name], atol=1e-3) for name, value in starts[0].items())


def test_a_comparison_goes_on_where_it_was_and_only_there(tmp_path: Path) -> None:
    said: list[str] = []
    first = compare(plan_of(tmp_path, "taylor"), said.append)
    assert len(first) == 2
    assert len(said) == 4
    second = compare(plan_of(tmp_path, "taylor", "uniform"), said.append)
    assert second[:2] == first
    assert "uniform" in said[4]
    assert len(said) == 6  # what was run is not run again
    assert {each.status for each in second} == {"met"}
    assert all(0 < each.macs < 0.8 for each in second[1:])
    with pytest.raises(RecipeError, match="another recipe"):
        compare(plan_of(tmp_path, "taylor", overrides=("finetune.lr=0.2",)), said.append)
    elsewhere = tmp_path.with_name("elsewhere")
    tmp_path.rename(elsewhere)
    assert compare(plan_of(elsewhere, "taylor", "uniform"), said.append) == second
    assert len(said) == 6  # nor where the folder has been moved


@pytest.mark.parametrize(
    ("names", "overrides", "message"),
    [
        (["taylro"], [], "unknown method 'taylro'; did you mean 'taylor'"),
        (["uniform_from_scratch"], ["model.checkpoint=x.safetensors"], "begins with random weights"),
        (["taylor"], ["dense.epochs=0"], "no dense network"),
        (["w_gates"], ["search.optimizer=sdg"], "method w_gates: search.optimizer"),
        ([], [], "--methods names nothing"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(names, overrides, message, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        compare(plan_of(tmp_path / "out", *names, overrides=tuple(overrides)), lambda _: None)
    assert not (tmp_path / "out").exists()


CONVNEXT = ("model.name=test_convnext", "model.kwargs={}")


def test_a_named_method_that_the_model_is_nothing_for_ends_the_comparison_before_it_begins(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "out", "taylor", "uniform_from_scratch", overrides=CONVNEXT)
    with pytest.raises(RecipeError, match=r"method uniform_from_scratch: finetune\.from_scratch: ConvNeXt does not"):
        compare(plan, lambda _: pytest.fail("it began"))
    assert not (tmp_path / "out").exists()


def test_of_all_methods_those_that_cannot_go_fail_and_the_others_are_run(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "odd: {about: of blocks, changes: {search.criterion: fpgm, search.selector: genotype}}\n"
        "like_it: {about: its widths, units_of: odd, changes: {search.selector: fixed_widths}}\n"
    )
    mine, said = methods.methods([tmp_path / "mine.yaml"]), list[str]()
    names = ("uniform_from_scratch", "odd", "like_it", "magnitude")
    plan = replace(plan_of(tmp_path / "out", overrides=CONVNEXT), methods=methods.chosen(names, mine), every=True)
    rows = {each.method: each for each in compare(plan, said.append)}
    assert {name: each.status for name, each in rows.items()} == {
        "dense": "met",
        "magnitude": "met",
        **dict.fromkeys(("uniform_from_scratch", "odd", "like_it"), "failed"),
    }
    assert "does not say how" in rows["uniform_from_scratch"].message
    assert "takes the widths of odd, which cannot go" in rows["like_it"].message
    assert {line.partition(" cannot go: ")[0] for line in said[:3]} == {"uniform_from_scratch", "odd", "like_it"}
    again = list[str]()
    assert {each.method: each for each in compare(plan, again.append)} == rows
    assert again == []  # nothing is left, and so nothing is asked


def test_an_error_of_a_method_at_work_is_its_own_and_a_folder_of_another_recipe_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline.run

    def run(recipe: Recipe, folder: Path) -> dict[str, object]:
        if "taylor" in str(folder):
            raise RecipeError("nothing for this model")
        return real(recipe, folder)

    monkeypatch.setattr(pipeline, "run", run)
    rows = compare(plan_of(tmp_path, "taylor", "random_units", "magnitude"), lambda _: None)
    assert [each.status for each in rows] == ["met", "failed", "failed", "met"]
    assert [each.message for each in rows[1:3]] == [
        "nothing for this model",
        "it takes the widths of taylor, and that has come to none",
    ]
    (tmp_path / "cells.jsonl").write_text("")  # as if the dense network had been stopped
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        compare(plan_of(tmp_path, "magnitude", overrides=("dense.lr=0.2",)), lambda _: pytest.fail("it went on"))
    assert (tmp_path / "cells.jsonl").read_text() == ""


def test_what_a_comparison_is_asked_for_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "out", "taylor")
    for targets, message in (([], "--targets names nothing"), (["0.5x", "5 ms"], "'5 ms'"), (["../x"], "'../x'")):
        with pytest.raises(RecipeError, match=message):
            compare(replace(plan, targets=targets), lambda _: None)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").touch()
    with pytest.raises(RecipeError, match=r"holds something else than a comparison, recipe\.yaml"):
        compare(plan, lambda _: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("'../../evil': {about: x}", r"mine\.yaml: no method can be called '\.\./\.\./evil'"),
        ("dense: {about: x}", "no method can be called 'dense'"),
    ],
)
def test_a_method_is_called_as_its_folder_may_be(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        methods.methods([tmp_path / "mine.yaml"])


def test_all_methods_are_those_that_there_are() -> None:
    assert set(methods.chosen(["all"], ALL)) == set(ALL)


def test_widths_that_are_taken_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: {about: x, units_of: b}\nb: {about: x, units_of: a}\n")
    with pytest.raises(RecipeError, match="circle: a takes those of b takes those of a"):
        methods.chosen(["a"], methods.methods([tmp_path / "mine.yaml"]))


def test_a_method_of_ones_own_is_validated(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine: {about: of mine, changes: {search.criterion: snip}}\n")
    assert methods.methods([mine])["mine"].changes == {"search.criterion": "snip"}
    mine.write_text("mine: {about: of mine, chages: {}}\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml: mine.*chages"):
        methods.methods([mine])


def test_a_table_puts_every_method_beside_the_best_control_seed_by_seed(tmp_path: Path) -> None:
    rows = [row("taylor", 0, 91.0), row("taylor", 1, 93.0), row("uniform", 0, 90.0), row("uniform", 1, 91.0)]
    rows += [row("magnitude", 0, 70.0), row("magnitude", 1, 71.0), row(DENSE, 0, 95.0)]
    rows += [Row(method="snip", target="0.5x", seed=0, recipe="r", status="infeasible", message="too small")]
    section = section_of(rows, tmp_path)
    lines = {line[0]: line for line in section.lines()}
    assert list(lines) == [DENSE, "taylor", "uniform", "magnitude"]
    assert lines["taylor"][1:8] == ("91.00 ± 1.41", "92.00 ± 1.41", "+1.50 ± 0.71", "—", "0.500x", "0.400x", "0")
    assert lines["uniform"][3] == ""
    assert lines[DENSE][-1] == "1 of 2"
    text = page.markdown([section], plan_of(tmp_path, *ALL), "nas-prune compare ...")
    assert "No result of snip, seed 0: too small" in text
    assert "* `uniform` (control)" in text
    assert "* machine: processor " in text
    drawing = chart([section])
    assert drawing is not None
    assert drawing.count("taylor") == 1
