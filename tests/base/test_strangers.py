"""Laws of files from anyone: they reach for no other file, their work is bounded, their mistakes are short."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import timm
import torch
from hostile import alias_bomb
from recorded import recorded
from timm.optim import create_optimizer_v2
from torch import nn

from nas_prune.artifact import config as artifact_config
from nas_prune.artifact.bounds import Work, bounded
from nas_prune.artifact.folder import load, save
from nas_prune.base.errors import (
    ArchError,
    ArtifactError,
    CalibrationError,
    CheckpointError,
    NasPruneError,
    RecipeError,
)
from nas_prune.base.files.json_text import parse
from nas_prune.base.files.whole import read_json, read_lines, write_json, write_lines
from nas_prune.base.registry import hint
from nas_prune.cli.timm.recipe import recipe_for
from nas_prune.ops.cells.cell_space import CellSpace, decision
from nas_prune.ops.cells.genotype import genotype_of, read_genotype
from nas_prune.run import build, pipeline
from nas_prune.run.calibration import file as calibration_file
from nas_prune.run.calibration.calibrate import FILE
from nas_prune.run.calibration.check import check
from nas_prune.run.recipe import recipe
from nas_prune.tracing.space import read_file
from nas_prune.train.record.checkpoint import save as save_checkpoint
from nas_prune.train.record.stage_file import Length, Live, restore

RECIPE = "name: tiny\nmodel: {name: resnet18, kwargs: {a: 1}}\n"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration that a run has made."""
    folder = tmp_path_factory.mktemp("calibration")
    asked = recipe.read("smoke/digits_w_gates", ["--latency.samples=12", "--latency.cache=false"])
    with recorded():
        return Path(pipeline.run(asked, folder / "run", until="calibrate")["file"])


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(
    ("read", "text"), [(recipe.read, RECIPE), (read_file, "rules: [{}]\n")], ids=["recipe", "space"]
)
def test_aliases_are_refused_beyond_a_budget(
    read: Callable[[Path], object], text: str, merge: bool, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(alias_bomb(9, merge=merge) + text)
    start = time.process_time()
    with pytest.raises(NasPruneError, match=r"bomb\.yaml.*more than \d+ values") as caught:
        read(path)
    assert len(str(caught.value)) < 300
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "text", ["rules: [{divisor: 8, divisor: 4}]", "rules: [{freeze: !!binary aGk=}]", "rules: [{minimum: .nan}]"]
)
def test_spaces_are_read_as_recipes_are(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(NasPruneError, match=r"own\.yaml is not valid YAML: line 1"):
        read_file(path)
    path.write_text("rules: [{freeze: no}]")  # a word in YAML 1.2
    assert read_file(path).rules[0].freeze == "no"


@pytest.mark.parametrize("value", ["x" * 100_000, "[" + "1, " * 10_000 + "1]", "{a: " + "y" * 70_000 + "}"])
def test_no_message_prints_a_long_value(value: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    for key in ("seed", "data", "device", "latency", "name"):
        path.write_text(f"{RECIPE}{key}: {value[:60_000]}\n")
        with pytest.raises(RecipeError) as caught:
            recipe.read(path)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["resnet81", "qqqqqq", "x" * 100_000, "vit_base_patch16_225"])
def test_an_unknown_model_names_the_nearest_and_the_command_that_lists(name: str) -> None:
    settings = recipe.Recipe.model_validate({"name": "t", "model": {"name": name}}).model
    for asked in (lambda: recipe_for(name, []), lambda: build.model(settings, None)):  # type: ignore[arg-type]
        with pytest.raises(NasPruneError, match="`nas-prune list models` lists all") as caught:
            asked()
        assert len(str(caught.value)) < 400
        assert sum(known in str(caught.value) for known in timm.list_models()) >= 5


def test_a_hint_lists_few_names_and_the_nearest_of_many() -> None:
    few, many = ["taylor", "ablation"], [f"name{number}" for number in range(100)]
    assert hint("xyz", few) == "; there is: ablation, taylor"
    assert hint("tailor", few) == "; did you mean 'taylor'?"
    assert hint("nam77", many).startswith("; did you mean 'name77'? Near it: ")
    assert hint("", many, "list").count("name9") == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "more than 40 levels"),
        ('{"a": ' + "9" * 6000 + "}", "6000 digits"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1e999}', "beyond every floating-point"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('"\\ud800"', "surrogates"),
        ("[" + "1," * 5_000_000 + "1]", "more than 4194304 values"),
        ('"' + '\\"' * 100_000 + "\\", "Unterminated|Invalid"),
        ("", "Expecting value"),
    ],
)
def test_json_is_bounded_and_its_numbers_are_numbers(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse(text.encode())
    assert len(str(caught.value)) < 200
    assert parse(b'{"a": [1, -2.5, "\\u00e9\\ud83d\\ude00", null, true]}') == {"a": [1, -2.5, "é😀", None, True]}


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "absent.json"):
        with pytest.raises(NasPruneError, match=str(path)):
            read_json(path)


@pytest.mark.parametrize(("layers", "why"), [(9000, r"more than \d+ parts"), (20000, "numbers up to 10000")])
def test_an_artefact_cannot_ask_for_endless_work(layers: int, why: str, tmp_path: Path) -> None:
    save(timm.create_model("test_resnet").eval(), tmp_path / "made")
    config = tmp_path / "made" / "config.json"
    hostile = read_json(config)
    hostile["model_args"] |= {"layers": [layers, 1, 1, 1]}
    hostile["sha256"]["config.json"] = artifact_config.sum_of_config(hostile)
    write_json(config, hostile)
    start = time.process_time()
    with pytest.raises(ArtifactError, match=f"cannot be loaded: .*{why}"):
        load(tmp_path / "made")
    assert time.process_time() - start < 5


def test_bounds_hold_in_one_block_and_one_thread() -> None:
    with bounded(Work(parts=6, numbers=100)):
        nn.Linear(9, 9)
        other = Thread(target=lambda: [nn.Linear(9, 9) for _ in range(9)])
        other.start()
        other.join()
        with pytest.raises(ArtifactError, match="more than 6 parts"):
            nn.Linear(9, 9)
    with bounded(Work(seconds=-1)), pytest.raises(ArtifactError, match="-1 s"):
        nn.Linear(1, 1)
    assert len(nn.Sequential(*[nn.Linear(9, 9) for _ in range(9)])) == 9


@pytest.mark.parametrize(
    "model",
    [
        {"name": "hf-hub:anyone/anything", "kwargs": {}},
        {"name": "local-dir:/tmp", "kwargs": {}},
        {"name": "test_resnet", "kwargs": {"pretrained": True}},
        {"name": "test_resnet", "kwargs": {"checkpoint_path": "/tmp/x.pth"}},
        {"name": "test_resnet", "kwargs": {"pretrained_cfg": {"file": "/tmp/x.pth"}}},
        {"name": "test_resnet", "kwargs": {"pretrained_cfg_overlay": {"hf_hub_id": "anyone/anything"}}},
        {"name": "test_resnet", "kwargs": {"layers": [20000, 1, 1, 1]}},
        {"name": "test_resnet", "kwargs": {"layers": [9000, 1, 1, 1]}},
        {"name": "test_resnet", "kwargs": {"num_classes": 10**9}},
        {"name": "resnet18\nx" * 1000, "kwargs": {}},
    ],
    ids=str,
)
def test_a_check_builds_no_stranger_s_model(model: dict[str, Any], calibration: Path, tmp_path: Path) -> None:
    tensors, facts = calibration_file.read(calibration)
    calibration_file.write(tmp_path / FILE, tensors, facts | {"model": model})
    with pytest.raises(CalibrationError, match=FILE) as caught:
        check(tmp_path / FILE)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    "kwargs",
    [
        {"checkpoint_path": "x.pth"},
        {"pretrained_cfg_overlay": {"file": "x.pth", "url": "http://a"}},
        {"pretrained_cfg": {"file": "x.pth"}},
        {"cache_dir": "/tmp"},
    ],
)
def test_a_recipe_names_weights_by_its_own_keys_only(kwargs: dict[str, Any], tmp_path: Path) -> None:
    document = {"name": "t", "model": {"name": "test_resnet", "kwargs": kwargs}}
    with pytest.raises(RecipeError, match="names weights; use model"):
        pipeline.run(recipe.Recipe.model_validate(document), tmp_path / "run")


def broken(content: bytes) -> dict[str, bytes]:
    """What may become of a file in a cache."""
    middle = len(content) // 2
    return {
        "cut": content[:middle],
        "empty": b"",
        "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "text": b"calibration",
    }


def test_a_broken_calibration_in_the_cache_is_made_again_and_said_to_be(
    calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NAS_PRUNE_CACHE", str(tmp_path / "cache"))
    asked = recipe.read("smoke/digits_w_gates", ["--latency.samples=12"])
    timings = (calibration.parent / "timings.jsonl").read_bytes()
    for number, how in enumerate(["cut", "flipped", "last"]):
        folder = tmp_path / str(number)
        (folder / "calibration").mkdir(parents=True)
        (folder / "calibration" / "timings.jsonl").write_bytes(timings)  # nothing is timed anew
        pipeline.run(asked, folder, until="calibrate")
        (kept,) = (tmp_path / "cache" / "calibrations").iterdir()
        said = " ".join(capsys.readouterr().err.split())
        assert ("is not used, and made again" in said) == (number > 0)
        assert calibration_file.read(kept)
        kept.write_bytes(broken(kept.read_bytes()).get(how, b""))


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "text"])
def test_a_broken_calibration_that_a_recipe_names_is_an_error_that_says_what_to_do(
    how: str, calibration: Path, tmp_path: Path
) -> None:
    path = tmp_path / "shared.safetensors"
    path.write_bytes(broken(calibration.read_bytes())[how])
    asked = recipe.read("smoke/digits_w_gates", [f"--latency.calibration={path}", "--latency.trust_calibration=true"])
    with pytest.raises(CalibrationError, match=r"shared\.safetensors.*get that file again, .* leave that key out"):
        pipeline.run(asked, tmp_path / "run", until="calibrate")


@pytest.mark.parametrize("change", [{"index": 7}, {"repeat": True}, {"sizes": {"conv1.0": 3}}])
def test_timings_of_another_plan_are_refused(change: dict[str, Any], calibration: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "calibration"
    rows = read_lines(calibration.parent / "timings.jsonl")
    write_lines(folder / "timings.jsonl", [*rows[:2], rows[2] | change, *rows[3:]])
    asked = recipe.read("smoke/digits_w_gates", ["--latency.samples=12", "--latency.cache=false"])
    with pytest.raises(CalibrationError, match=r"line 3 of .*timings\.jsonl is not of this calibration, .*; delete it"):
        pipeline.run(asked, tmp_path / "run", until="calibrate")


def live(name: str) -> Live:
    """A model whose optimizer has taken a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    optimizer = create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=1e-4, momentum=0.9)
    model(torch.randn(4, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    return Live(model, nn.Identity(), [optimizer])  # type: ignore[list-item]


def state_of(trained: Live, **changed: Any) -> dict[str, Any]:
    """What a stage saves of it."""
    optimizers = [optimizer.state_dict() for optimizer in trained.optimizers]
    state = {"epoch": 1, "step": 2, "identity": "it", "model": trained.model.state_dict()}
    state |= {"beside": {}, "optimizers": optimizers}
    return state | changed


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "adafactor", "rmsproptf", "adamp", "adagrad", "muon"])
@pytest.mark.filterwarnings("ignore")  # timm's optimizers warn of torch's old signatures
def test_every_optimizer_goes_on_and_one_of_another_shape_is_refused(name: str, tmp_path: Path) -> None:
    trained, path = live(name), tmp_path / "stage.ckpt"
    save_checkpoint(path, state_of(trained))
    assert restore(path, live(name), Length(3, 5), "it").step == 2
    state = state_of(trained)
    tensors = [
        (inner, key)
        for inner in state["optimizers"][0]["state"].values()
        for key in inner
        if torch.is_tensor(inner[key])
    ]
    inner, key = max(tensors, key=lambda pair: pair[0][pair[1]].numel())
    for wrong in (torch.zeros(7, 7, 7), torch.full_like(inner[key], float("nan")), "x"):
        inner[key] = wrong
        save_checkpoint(path, state)
        fresh = live(name)
        before = {name: value.clone() for name, value in fresh.model.state_dict().items()}
        with pytest.raises(
            CheckpointError, match=r"stage\.ckpt does not fit.*delete that file to start the stage again"
        ):
            restore(path, fresh, Length(3, 5), "it")
        assert all(torch.equal(before[name], value) for name, value in fresh.model.state_dict().items())


@pytest.mark.parametrize(
    "changed",
    [
        *({"epoch": value} for value in (-1, 4, 1.0, True, None, "1", 10**30)),
        *({"step": value} for value in (-1, 6, 1.5)),
        *({"identity": value} for value in ("other", 3)),
        *({"optimizers": value} for value in (None, [], [{}], [{"state": {}, "param_groups": []}], {})),
        *({"model": value} for value in ({}, None, {"0.weight": 1})),
        {"loss": torch.zeros(2)},
        {"average": {}},
        {"scaler": {"scale": 1.0}},
    ],
    ids=str,
)
def test_a_checkpoint_of_wrong_content_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "stage.ckpt"
    save_checkpoint(path, state_of(live("sgd"), **changed))
    with pytest.raises(CheckpointError, match=r"stage\.ckpt.*delete that file to start the stage again") as caught:
        restore(path, live("sgd"), Length(3, 5), "it")
    assert len(str(caught.value)) < 500


def test_a_finished_stage_needs_its_model_only(tmp_path: Path) -> None:
    trained, path = live("adamw"), tmp_path / "stage.ckpt"
    state = {"epoch": 3, "step": 0, "identity": "it", "model": trained.model.state_dict(), "beside": {}}
    save_checkpoint(path, state)
    fresh = live("adamw")
    nn.init.zeros_(fresh.model[3].weight)  # type: ignore[index]
    assert restore(path, fresh, Length(3, 5), "it").epoch == 3
    assert all(map(torch.equal, fresh.model.state_dict().values(), trained.model.state_dict().values()))


def test_a_genotype_is_read_back_and_checked(tmp_path: Path) -> None:
    space = CellSpace.of("darts_small")
    axes = [
        f"{decision(kind, pair)}.{each}" for kind in space.searched for pair in space.pairs for each in space.operations
    ]
    genotype = genotype_of({name: torch.randn(1) for name in axes}, space)
    write_json(tmp_path / "genotype.json", genotype)
    assert read_genotype(tmp_path / "genotype.json", space) == genotype
    (tmp_path / "genotype.json").write_text(json.dumps(genotype).replace('"2"', '"9"'))
    with pytest.raises(ArchError, match=r"genotype\.json"):
        read_genotype(tmp_path / "genotype.json", space)


@pytest.mark.parametrize("share", ["1e999999999", "9" * 10_000 + "/1", "1/0", "x", "-1/3", [1]])
def test_a_share_of_the_depth_is_a_small_number(share: object) -> None:
    kinds = {"normal": {}, "reduction": {"stride": 2, "at": [share]}}
    start = time.process_time()
    with pytest.raises(NasPruneError, match="not a space of cells"):
        CellSpace.of({"like": "darts_small", "kinds": kinds})
    assert time.process_time() - start < 1
