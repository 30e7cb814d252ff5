"""Laws of a calibration: one file that says what it is true of, is refused elsewhere, and is made only once."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

from nas_prune.base.errors import BudgetError, CalibrationError, RecipeError
from nas_prune.base.files.whole import read_lines
from nas_prune.cli.program import app
from nas_prune.costs import Bench
from nas_prune.costs.operators.staircase import sweeps
from nas_prune.costs.operators.table import plan
from nas_prune.costs.operators.timing import Point
from nas_prune.costs.timing import measure
from nas_prune.costs.timing.measure import Timings
from nas_prune.derivation.replace import laid_out
from nas_prune.derivation.trace import trace
from nas_prune.run import pipeline
from nas_prune.run.calibration import bench
from nas_prune.run.calibration import calibrate as calibrate_module
from nas_prune.run.calibration import file as calibration_file
from nas_prune.run.calibration.calibrate import FILE, Calibration, adopt, calibrate, here
from nas_prune.run.calibration.check import check
from nas_prune.run.calibration.sampling import meeting, sample
from nas_prune.run.calibration.settings import LatencySettings
from nas_prune.run.recipe import recipe
from nas_prune.tracing.space import SearchSpace

SETTINGS = LatencySettings(batch_size=2, threads=1, samples=14, seconds=0.01, predictor="additive")
SMALL = "--latency.batch_size=2"  # for runs that no millisecond decides about
ABOUT = {"name": "test_resnet", "kwargs": {"num_classes": 10}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A small calibration: its model's space, its images and its folder."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    space = SearchSpace.read("channels", trace(model, images))
    folder = tmp_path_factory.mktemp("calibration")
    return calibrate(model, space, images, SETTINGS, folder, about=ABOUT), space, images, folder


def test_one_file_holds_all_of_it(made, tmp_path: Path) -> None:
    result, space, _images, folder = made
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    again = adopt(tmp_path / FILE, space, tmp_path)
    sizes = sample(space, 5, seed=1, jitter=0.3).sizes(space.free)
    assert float(again.predictor(sizes)) == float(result.predictor(sizes))
    assert replace(again, predictor=None) == replace(result, predictor=None)
    assert json.loads((tmp_path / "calibration.json").read_text())["device"]["processor"]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert 12 <= len(rows) <= SETTINGS.samples, "all, but for those that were timed on a crowded machine"
    timed = read_lines(folder / "timings.jsonl")
    smallest = [row["share"] * result.dense_ms for row in timed if row["index"] == 0]
    assert len(smallest) == 2
    assert result.smallest_ms in [pytest.approx(each) for each in smallest]


@pytest.mark.usefixtures("recorded_timings")
def test_networks_that_were_timed_on_a_crowded_machine_teach_nothing(made, tmp_path: Path) -> None:
    """While another process has the core, long calls are interrupted and short ones are not: ratios are far off."""
    _, space, images, _ = made
    model, timed = timm.create_model("test_resnet", num_classes=10).eval(), measure.time_calls
    crowded = {0: (), 1: (6, 9), 2: range(5, 16), 3: (0, 6, 9)}

    def calibrated(which: int) -> tuple[Calibration, list[float]]:
        folder = tmp_path / str(which)
        journal = folder / "timings.jsonl"

        def take(*arguments: Any) -> Timings:
            timings = timed(*arguments)
            if not journal.exists() or len(read_lines(journal)) not in crowded[which]:
                return timings
            return Timings({**timings.times, "dense": tuple(13 * each for each in timings.times["dense"])})

        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measure, "time_calls", take)
            patch.setattr(measure, "PAUSES", (0.0,) * 3)
            result = calibrate(model, space, images, SETTINGS, folder, about=ABOUT)
        return result, calibration_file.read(folder / FILE)[0]["share"].tolist()

    (calm, shares), (some, left) = calibrated(0), calibrated(1)
    assert left == [share for number, share in enumerate(shares) if number not in crowded[1]]
    assert (some.dense_ms, some.smallest_ms) == (calm.dense_ms, calm.smallest_ms)
    assert len(calibrated(2)[1]) == SETTINGS.samples, "where it was like that most of the time, there is nothing better"
    first, enough = calibrated(3)
    assert len(enough) >= 12, "a predictor learns from so many at least"
    assert first.smallest_ms == pytest.approx(calm.smallest_ms), "the smallest was timed twice"


def test_a_calibration_of_elsewhere_is_refused_with_the_difference(made) -> None:
    _, space, images, folder = made
    there = calibration_file.read(folder / FILE)[1]
    wanted = here(space, images, SETTINGS, ABOUT)
    calibration_file.require_fit(folder / FILE, there, wanted)
    lower = replace(space, minimum=dict.fromkeys(space.minimum, 1))
    foreign = {
        r"widths: conv1.0 is \[8, 8\] there": here(lower, images, SETTINGS, ABOUT),
        "processor": {**wanted, "device": {**wanted["device"], "processor": "Abacus 9"}},
        "torch": {**wanted, "device": {**wanted["device"], "torch": "1.2.3"}},
        "runtime is eager there, openvino here": here(
            space, images, SETTINGS.model_copy(update={"runtime": "openvino"}), ABOUT
        ),
        "name is test_resnet there, resnet18 here": here(space, images, SETTINGS, {**ABOUT, "name": "resnet18"}),
        "batch_size: 2 there, 4 here": here(space, images, SETTINGS.model_copy(update={"batch_size": 4}), ABOUT),
    }
    for difference, facts in foreign.items():
        with pytest.raises(CalibrationError, match=difference):
            calibration_file.require_fit(folder / FILE, there, facts)


@pytest.mark.usefixtures("recorded_timings")
def test_a_run_that_goes_on_elsewhere_refuses_what_was_timed_there(tmp_path: Path, monkeypatch) -> None:
    """Whole or half, a calibration in the folder of the run is that of another processor then."""
    monkeypatch.setenv("NAS_PRUNE_CACHE", str(tmp_path / "cache"))
    tokens = ["--latency.samples=12", SMALL]
    asked = recipe.read("smoke/digits_w_gates", tokens)
    pipeline.run(asked, tmp_path / "run", until="calibrate")
    here_now = calibrate_module.fingerprint
    monkeypatch.setattr(calibrate_module, "fingerprint", lambda *of: {**here_now(*of), "processor": "Abacus 9"})
    with pytest.raises(CalibrationError, match=r"processor: .* there, Abacus 9 here"):
        pipeline.run(asked, tmp_path / "run", until="calibrate")
    (tmp_path / "run/calibration" / FILE).unlink()
    with pytest.raises(CalibrationError, match="timed elsewhere"):
        pipeline.run(asked, tmp_path / "run", until="calibrate")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing"])
def test_a_broken_file_is_told(made, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.safetensors"
    content = (made[3] / FILE).read_bytes()
    if damage != "missing":
        path.write_bytes(
            content[:200] if damage == "truncated" else content.replace(b"nas_prune.cal", b"nas_prune.art")
        )
    with pytest.raises(CalibrationError, match=r"broken\.safetensors"):
        calibration_file.read(path)


@pytest.mark.zoo
def test_a_check_times_it_again(made, tmp_path: Path) -> None:
    folder = made[3]
    tensors, facts = calibration_file.read(folder / FILE)
    generous, impossible = tmp_path / "generous.safetensors", tmp_path / "impossible.safetensors"
    calibration_file.write(generous, tensors, {**facts, "noise": 100.0})
    assert check(generous, seconds=0.01)["fits"] is True
    calibration_file.write(impossible, {**tensors, "share": 50 * tensors["share"]}, {**facts, "noise": 0.0})
    with pytest.raises(CalibrationError, match="does not fit this machine"):
        check(impossible, seconds=0.01)


@pytest.mark.zoo
@pytest.mark.usefixtures("recorded_timings")
def test_a_check_knows_choices_and_stripes(tmp_path: Path) -> None:
    candidates = {"same": {"operation": "convolution"}, "small": {"operation": "convolution", "kernel": 1}}
    rules = [{"kinds": ["channel", "operation", "stripe"]}]
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps({"replace": [{"match": "layer4.0.conv2", "candidates": candidates}], "rules": rules}))
    model, images = timm.create_model("test_resnet", num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    plain = SearchSpace.read("channels", trace(model, images))
    calibrate(model, laid_out(model, images, str(path)), images, SETTINGS, tmp_path, about=ABOUT)
    tensors, facts = calibration_file.read(tmp_path / FILE)
    calibration_file.write(tmp_path / FILE, tensors, {**facts, "noise": 100.0})
    assert check(tmp_path / FILE, seconds=0.01)["fits"] is True
    with pytest.raises(CalibrationError, match="replaced"):
        calibration_file.require_fit(tmp_path / FILE, facts, here(plain, images, SETTINGS, ABOUT))


@pytest.mark.usefixtures("recorded_timings")
def test_a_check_knows_axes_that_were_widened(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps({"rules": [{"kinds": ["channel"], "widen": 1.5}]}))
    model, images = timm.create_model("test_resnet", num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    space = laid_out(model, images, str(path))
    assert any(axis.given for axis in space.free.values())
    calibrate(model, space, images, SETTINGS, tmp_path, about=ABOUT)
    tensors, facts = calibration_file.read(tmp_path / FILE)
    calibration_file.write(tmp_path / FILE, tensors, {**facts, "noise": 100.0})
    assert check(tmp_path / FILE, seconds=0.01)["fits"] is True
    name = next(name for name, axis in space.free.items() if axis.given)
    for size, why in ((10**6, "more than 16 times its"), (2, "it has")):
        sizes = tensors["sizes"].clamp(max=2)
        told = {**facts, "axes": {**facts["axes"], name: size}}
        calibration_file.write(tmp_path / FILE, {**tensors, "sizes": sizes}, told)
        with pytest.raises(CalibrationError, match=f"is of {size} units of axis {name}: {why}.*make it again"):
            check(tmp_path / FILE, seconds=0.01)


def test_columns_of_sizes_keep_their_names(made, tmp_path: Path) -> None:
    tensors, facts = calibration_file.read(made[3] / FILE)
    backwards = {**facts, "axes": dict(reversed(facts["axes"].items()))}
    calibration_file.write(tmp_path / FILE, {**tensors, "sizes": tensors["sizes"].flip(1)}, backwards)
    adopt(tmp_path / FILE, made[1], tmp_path)
    before, after = (read_lines(folder / "samples.jsonl") for folder in (made[3], tmp_path))
    assert before == after


@pytest.mark.usefixtures("recorded_timings")
def test_the_same_calibration_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_PRUNE_CACHE", str(tmp_path / "cache"))
    asked = recipe.read("smoke/digits_w_gates", ["--latency.samples=12", SMALL])
    first = pipeline.run(asked, tmp_path / "first", until="calibrate")
    second = pipeline.run(asked, tmp_path / "second", until="calibrate")
    assert first["error"] == second["error"]
    assert (tmp_path / "first/calibration/timings.jsonl").exists()
    assert not (tmp_path / "second/calibration/timings.jsonl").exists()
    named = recipe.read(
        "smoke/digits_w_gates", [f"--latency.calibration={first['file']}", "--latency.cache=false", SMALL]
    )
    assert pipeline.run(named, tmp_path / "third", until="calibrate")["error"] == first["error"]
    other = named.model_copy(update={"latency": named.latency.model_copy(update={"batch_size": 3})})
    with pytest.raises(CalibrationError, match="batch_size"):
        pipeline.run(other, tmp_path / "fourth", until="calibrate")
    trusting = other.model_copy(update={"latency": other.latency.model_copy(update={"trust_calibration": True})})
    assert pipeline.run(trusting, tmp_path / "fifth", until="calibrate")["error"] == first["error"]


def test_samples_reach_corners_and_pairs(made) -> None:
    space = made[1]
    smallest = sample(space, 0, seed=0, jitter=0.2)
    assert {name: len(units) for name, units in smallest.kept.items()} == dict(space.minimum)
    pairs = meeting(space.axes)
    assert pairs
    assert all(one in space.free and other in space.free for one, other in pairs)
    one, other = pairs[0]
    widths = Counter()
    for index in range(3, 800, 4):
        sizes = sample(space, index, seed=0, jitter=0.0).sizes(space.free)
        widths[sizes[one], sizes[other]] += 1
    assert len(widths) > len({w for w, _ in widths})  # not only the diagonal of one ratio


def test_samples_reach_the_whole_axis_where_it_is_no_multiple() -> None:
    convs = nn.Conv2d(3, 58, 3), nn.ReLU(), nn.Conv2d(58, 58, 3)
    model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(58, 10))
    space = SearchSpace.read("channels", trace(model, torch.randn(2, 3, 8, 8)))
    assert all(axis.size % axis.divisor for axis in space.free.values())
    found = [sample(space, index, seed=0, jitter=0.0).sizes(space.free) for index in range(3, 100, 4)]
    assert all(any(sizes[name] == axis.size for sizes in found) for name, axis in space.free.items())


@pytest.mark.usefixtures("recorded_timings")
def test_a_limit_that_nothing_meets_is_named_before_training(tmp_path: Path) -> None:
    tokens = ["--budget.limits={params: 0.9x, macs: 10k}", "--latency.samples=12", SMALL]
    with pytest.raises(BudgetError, match=r"MACs is .*x the limit of 1e[+]04 MACs"):
        pipeline.run(recipe.read("smoke/digits_w_gates", tokens), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.usefixtures("recorded_timings")
@pytest.mark.parametrize(
    ("changes", "key", "unit"),
    [
        (["search.selector=milp", "budget.target=0.7x"], "search.selector", "ms"),
        (["search.selector=milp", "budget.cost=memory", "budget.target=0.9x"], "search.selector", "bytes"),
        (
            ["search.selector=milp", "budget.cost=macs", "budget.target=0.5x", "budget.limits.params=0.5x"],
            "search.selector",
            "x of the tightest limit",
        ),
        (
            ["search.penalties=[{name: growing, options: {selector: milp}}]", "budget.target=0.7x"],
            "search.penalties.0.options.selector",
            "ms",
        ),
    ],
)
def test_a_cost_that_the_exact_program_cannot_take_is_named_before_training(
    tmp_path: Path, changes: list[str], key: str, unit: str
) -> None:
    tokens = [f"--{each}" for each in (*changes, "latency.samples=12", "search.optimizer=momentum")]
    with pytest.raises(RecipeError, match=rf'^{key}: the cost in {unit} is not a sum over .* "optimal"'):
        pipeline.run(recipe.read("smoke/digits_w_gates", [*tokens, SMALL]), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.usefixtures("recorded_timings")
def test_a_cost_that_is_a_sum_is_not_refused_to_the_exact_program(tmp_path: Path) -> None:
    tokens = ["--search.selector=milp", "--budget.cost=macs", "--budget.target=0.5x", "--latency.samples=12", SMALL]
    assert pipeline.run(recipe.read("smoke/digits_w_gates", tokens), tmp_path / "run", until="search")["arch"]


@pytest.mark.zoo
def test_calibrate_takes_a_model_of_timm(tmp_path: Path) -> None:
    words = ["calibrate", "test_vit", "--data.image_size=64", "--latency.samples=12", "--latency.seconds=0.01"]
    words += ["--latency.batch_size=1", "--latency.predictor=additive", "--model.kwargs={img_size: 64}"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    facts = calibration_file.read(tmp_path / "run/calibration" / FILE)[1]
    assert facts["model"]["name"] == "test_vit"
    assert facts["image"] == [3, 64, 64]


@pytest.mark.usefixtures("recorded_timings")
def test_operators_and_stairs_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe.read(
        "smoke/digits_w_gates", ["--latency.operators=true", "--latency.staircase=true", "--latency.cache=false", SMALL]
    )
    planted = Counter[str]()

    def stairs_of_four(point: Point, _: Bench) -> float:
        planted[point.key] += 1
        return 1e-3 * point.first * math.ceil(point.second / 4)

    for name, own in {"time_point": stairs_of_four, "plan": plan, "sweeps": sweeps}.items():
        monkeypatch.setattr(bench, name, own)
    first = pipeline.run(asked, tmp_path / "run", until="calibrate")
    assert max(planted.values()) <= 2  # once in the table, once in a sweep
    before = dict(planted)
    assert pipeline.run(asked, tmp_path / "run", until="calibrate") == first
    assert planted == before
    timed = [json.loads(line) for line in (tmp_path / "run/calibration/timings.jsonl").read_text().splitlines()]
    assert all(width % 4 == 0 for row in timed for width in row["sizes"].values())


def test_measured_steps_take_the_place_of_divisors(made) -> None:
    space = made[1]
    stepped = space.stepped(dict.fromkeys(space.free, 16))
    for name, axis in stepped.free.items():
        assert axis.divisor == max(d for d in (16, 8, 4, 2, 1) if axis.size // d >= 2 or d == 1)
        assert stepped.minimum[name] % axis.divisor == 0 or stepped.minimum[name] == axis.size
        assert stepped.minimum[name] >= space.minimum[name]
