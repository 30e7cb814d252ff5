"""Laws of what is said of a run: one duration of the dense model, a closed set of outcomes, and the worst first."""

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

import nas_prune as npr
from nas_prune.base.errors import BudgetError, RecipeError
from nas_prune.derivation.timm_facts import read_by_classifier
from nas_prune.run import pipeline
from nas_prune.run.checks import check, teaches
from nas_prune.run.promise import cautions
from nas_prune.run.recipe import recipe
from nas_prune.run.report.page import table
from nas_prune.run.report.summary import stage_rows
from nas_prune.run.results import trained
from nas_prune.run.steps import train_dense

SMOKE = ["track.wandb=disabled"]
TIMED = ["latency.batch_size=2", "latency.seconds=0.001", "latency.cache=false"]  # by a clock


def results(**changes: Any) -> dict[str, Any]:
    """The results of a run that went well."""
    timed = {"top1": 90.0, "measured_ms": 10.0, "measured_ms_spread": 0.1}
    models = {"dense": timed, "derived": timed | {"top1": 80.0}, "finetuned": timed | {"top1": 89.0}}
    return {**models, "classes": 10, "trained": True, "gates": {"ended": 5.2, "limit": 5.0, "dense": 10.0}, **changes}


def test_of_a_run_that_went_well_nothing_is_said_first() -> None:
    assert cautions(results()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finetuned": {"top1": 80.9}}, "top-1 fell from 90.0 to 80.9 %: 10 % of it is lost"),
        (
            {"finetuned": {"top1": 12.0}},
            "guesses: top-1 is 12.0 %, chance among 10 classes is 10.0 %",
        ),
        ({"finetuned": {"top1": 12.0}, "dense": {"top1": None}}, "guesses: top-1 is 12.0 %"),
        ({"trained": False}, "is chosen by random weights"),
        ({"taught": True, "finetuned": {"top1": 91.0}}, "the teacher knows less than its pupil: .* 90.0 and 91.0 %"),
        ({"gates": {"ended": 7.7, "limit": 5.0, "dense": 10.0}}, "the gates ended at 0.77x .* the target is 0.50x"),
        ({"derived": {"measured_ms_spread": 1.0}}, "calls of the derived model spread by ±10 %"),
    ],
)
def test_what_misleads_is_said_first(change: dict[str, Any], said: str) -> None:
    known = results()
    changed = {key: known[key] | value if isinstance(value, dict) else value for key, value in change.items()}
    found = cautions(known | changed)
    assert len(found) == 1
    assert re.search(said, found[0])


@pytest.mark.usefixtures("recorded_timings")
def test_what_has_learnt_nothing_teaches_nobody(tmp_path: Path) -> None:
    changes = [*SMOKE, "dense.epochs=0", "budget.cost=macs", "latency.samples=12", "finetune.epochs=1"]
    recipes = {
        share: recipe.read("smoke/digits_w_gates", [*changes, f"finetune.distill={share}"]) for share in (0.0, 0.5)
    }
    assert not any(teaches(each) for each in recipes.values())
    for share, each in recipes.items():
        pipeline.run(each, tmp_path / str(share), until="finetune")
    weights = [(tmp_path / str(share) / "finetuned" / "model.safetensors").read_bytes() for share in recipes]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("recorded_timings")
def test_a_run_that_learns_from_features_alone_draws_near_to_its_teacher(tmp_path: Path) -> None:
    """The units that stay are those of the teacher, so what the classifier reads can be put beside each other."""
    words = ["budget.cost=macs", "budget.target=0.5x", "latency.samples=12", "dense.max_steps=8", "finetune.epochs=8"]
    words += ["finetune.max_steps=4", "finetune.lr=0.001", "finetune.distill=0", "dense.baseline=false"]
    far = {}
    for weight in (0.0, 100.0):
        asked = recipe.read("smoke/digits_w_gates", [*words, f"finetune.distill_features={weight}"])
        folder = tmp_path / str(weight)
        with pipeline.opened(asked, folder) as job:
            train_dense(job)
            images, dense = job.images(16), copy.deepcopy(job.model).eval()
        pipeline.run(asked, folder, until="finetune")
        small, arch = npr.load(folder / "finetuned"), npr.Arch.read(folder / "arch.json")
        wanted, read = (each.forward_head(each.forward_features(images), pre_logits=True) for each in (dense, small))
        units = read_by_classifier(dense, job.space.axes, arch)
        assert units is not None
        far[weight] = float((read - wanted[:, units]).detach().square().mean())
    assert far[100.0] < 0.7 * far[0.0]


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        (["dense.epochs=1"], True),
        (["dense.epochs=0", "model.checkpoint=some.safetensors"], True),
        (["dense.epochs=0"], False),
        (["dense.epochs=1", "finetune.epochs=0"], False),
        (["dense.epochs=1", "finetune.distill=0"], False),
        (["dense.epochs=1", "finetune.distill=0", "finetune.distill_features=1"], True),
    ],
)
def test_who_has_a_teacher(changes: list[str], known: bool) -> None:
    assert teaches(recipe.read("smoke/digits_w_gates", ["finetune.epochs=1", *changes])) == known


@pytest.mark.parametrize(
    ("criterion", "known"), [("snip", True), ("grasp", True), ("synflow", True), ("taylor", False)]
)
def test_random_weights_are_no_reproach_where_a_criterion_is_made_for_them(criterion: str, known: bool) -> None:
    asked = recipe.read("smoke/fashion_mnist_resnet18_cops", [f"search.criterion={criterion}"])
    assert trained(asked) is known
    assert trained(recipe.read("smoke/fashion_mnist_resnet18_taylor"))


def test_a_further_criterion_is_known_and_named_once() -> None:
    for further, said in (
        ("[snip, snip]", r"search\.further\.1: snip is named twice"),
        ("[snipe]", "search.further.0.*snip"),
    ):
        with pytest.raises(RecipeError, match=said):
            check(recipe.read("smoke/fashion_mnist_resnet18_cops", [f"search.further={further}"]))


def test_a_stage_that_became_slower_saves_nothing() -> None:
    rows = stage_rows({"dense": {"a": 5.0, "b": 3.0, "c": 2.0}, "derived": {"a": 3.0, "b": 4.0, "c": 0.0}})
    assert [(row.saved_ms, row.share) for row in rows] == [(2.0, 0.5), (-1.0, None), (2.0, 0.5)]


@pytest.mark.usefixtures("recorded_timings")
def test_a_run_with_a_budget_of_macs_does_not_speak_of_latency_targets(tmp_path) -> None:
    asked = recipe.read("smoke/digits_w_gates", [*SMOKE, *TIMED, "budget.cost=macs", "budget.target=0.6x"])
    found = pipeline.run(asked, tmp_path / "run")
    assert (found["status"], found["target_ms"], found["budget"]["unit"]) == ("met", None, "MACs")
    assert found["budget"]["reached"] == found["finetuned"]["macs"] <= found["budget"]["limit"]
    many = pipeline.derive_many(tmp_path / "run", ["0.5x"], tune=False)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 of 1 MACs target met" in table_text(many)
    assert "latency target" not in page.lower()
    assert "Predicted MACs" in page
    assert "Select and count" in page


def table_text(content: dict[str, Any]) -> str:
    """The table of targets as a terminal shows it."""
    from rich.console import Console

    from nas_prune.run.report.page import targets_table

    console = Console(width=120, file=io.StringIO())
    with console.capture() as shown:
        console.print(targets_table(content))
    return shown.get()


@pytest.mark.usefixtures("recorded_timings")
@pytest.mark.parametrize("cost", ["latency", "macs"])
def test_a_budget_that_nothing_meets_is_infeasible_for_scripts_too(tmp_path: Path, cost: str) -> None:
    asked = recipe.read("smoke/digits_w_gates", [*SMOKE, "budget.target=0.001x", f"budget.cost={cost}"])
    with pytest.raises(BudgetError, match=r"smallest network of search space .* Ask for at least 0\.\d+x") as told:
        pipeline.run(asked, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    known = json.loads((tmp_path / "run" / "results.json").read_text())
    assert known == {"status": "infeasible", "target": "0.001x", "why": str(told.value)}
    assert "infeasible" in pipeline.report(tmp_path / "run").read_text()
    pipeline.run(
        recipe.read("smoke/digits_w_gates", [*SMOKE, "budget.target=0.9x"]), tmp_path / "run", until="calibrate"
    )
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.usefixtures("recorded_timings")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["budget.target=100G", "budget.cost=macs"], "nothing to prune"),
        (["search.criterion=magnitude", "search.selector=milp", "budget.limits={params: 0.9x}"], 'choose .* "optimal"'),
    ],
)
def test_what_ends_a_run_for_another_reason_does_not_say_that_nothing_meets_the_budget(
    tmp_path: Path, changes: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        pipeline.run(recipe.read("smoke/digits_w_gates", [*SMOKE, *changes]), tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_the_terminal_says_in_red_what_misleads() -> None:
    cells = {"macs": 1, "params": 1, "predicted_ms": 1.0, "measured_share": 1.0}
    models = {name: results()[name] | cells for name in ("dense", "derived", "finetuned")}
    shown = table({**results(), **models, "cautions": ["the derived model guesses"], "status": "met"}).title
    assert [span.style for span in shown.spans][:1] == ["bold red"]
    assert shown.plain.startswith("The derived model guesses.\n")
