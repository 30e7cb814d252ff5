"""Every kind of file that a run, an artefact or a user brings: a whole one, a mutant of it, how the product reads it,
and what must hold of whatever the product believes, which is said here again in other words."""

import copy
import io
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import hostile
import safetensors.torch
import timm
import torch
from torch import nn

from nas_prune.artifact import config as artifact_config
from nas_prune.artifact import folder as artifact
from nas_prune.base.errors import ArtifactError, CalibrationError, CheckpointError
from nas_prune.base.files.documents import read_document, read_journal
from nas_prune.cli.coverage.command import CoverageRow
from nas_prune.costs import predictors
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.methods.scores_file import read_scores
from nas_prune.ops.cells.cell_space import CellSpace
from nas_prune.ops.cells.genotype import check, read_genotype
from nas_prune.run import files as run_files
from nas_prune.run import result_files
from nas_prune.run.calibration import file as calibration_file
from nas_prune.run.calibration.calibrate import FILE, adopt
from nas_prune.run.calibration.check import model_of
from nas_prune.run.calibration.facts import PREDICTOR
from nas_prune.run.recipe import recipe
from nas_prune.run.report.page import RunFolder
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace, read_file
from nas_prune.train.data import glyphs
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.record import checkpoint, journals
from nas_prune.train.record.stage_file import Length, Live, restore
from nas_prune.train.record.track import Track

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Kind:
    """``write(folder, draw)``: put a mutant there, or without ``draw`` a whole file; returns the path to read."""

    write: Callable[[Path, Random | None], Path]
    read: Callable[[Path], Any]
    holds: Callable[[Any], None]


def plain(value: Any, levels: int = 45) -> None:
    """Nothing in it is without end: numbers are finite and fit 64 bits, levels are few."""
    assert levels > 0
    if isinstance(value, Mapping):
        for key, inside in value.items():
            assert isinstance(key, str)
            plain(inside, levels - 1)
    elif isinstance(value, list | tuple):
        for inside in value:
            plain(inside, levels - 1)
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, int):
        assert abs(value) < 2**64


def number(value: Any, low: float = 0.0, high: float = 1e40, *, whole: bool = False, open_at_low: bool = False) -> None:
    """A finite number, which True and False are not."""
    assert type(value) is int or (type(value) is float and not whole)
    assert math.isfinite(value)
    assert low <= value <= high
    assert not open_at_low or value > low


def positive(*values: Any) -> None:
    """Finite numbers above zero."""
    for value in values:
        number(value, open_at_low=True)


def _document(name: str, kind: object, error: type[Exception], holds: Callable[[Any], None]) -> Kind:
    seed = (CORPUS / name).read_bytes()
    return Kind(_writer(name, seed, hostile.json_mutant), lambda path: read_document(path, kind, error), holds)


def _journal(name: str, kind: object, error: type[Exception], holds: Callable[[Any], None]) -> Kind:
    def all_hold(rows: list[Any]) -> None:
        for row in rows:
            plain(row)
            holds(row)

    seed = (CORPUS / name).read_bytes()
    return Kind(_writer(name, seed, hostile.journal_mutant), lambda path: read_journal(path, kind, error), all_hold)


def _writer(name: str, seed: bytes, mutant: Callable[[bytes, Random], bytes]) -> Callable[[Path, Random | None], Path]:
    def write(folder: Path, draw: Random | None) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seed if draw is None else mutant(seed, draw))
        return path

    return write


def _in_a_report(name: str, part: str, holds: Callable[[Any], None]) -> Kind:
    """A file that ``nas-prune report`` reads; ``part``: what of the run folder holds it."""
    mutant = hostile.journal_mutant if name.endswith(".jsonl") else hostile.json_mutant
    seed = (CORPUS / Path(name).name).read_bytes()
    return Kind(_writer(name, seed, mutant), lambda path: getattr(RunFolder.read(_run_folder(path, name)), part), holds)


def _run_folder(path: Path, name: str) -> Path:
    """The folder of a run in which a file of this name is."""
    folder = path.parents[len(Path(name).parts) - 1]
    (folder / "recipe.yaml").touch()
    return folder


def _metrics(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        plain(row)
        assert isinstance(row["stage"], str)
        number(row["epoch"])
        number(row["time"])
        assert all(value is None or type(value) in (int, float) for name, value in row.items() if "/" in name)


def _read_metrics(path: Path) -> Any:
    with Track(path.parent) as track:
        track.rewind("search-warmup", 0)
    return read_journal(path, journals.MetricsRow, ArtifactError)


def _certificate(found: dict[str, Any]) -> None:
    number(found["max_rel_error"], 0, found["tolerance"])
    number(found["worst_node_error"], 0, 1e-6)
    number(found["tolerance"], 0, 1e-6)
    number(found["nodes"], whole=True)
    assert found["dtype"] == "float64"


def _timings(found: dict[str, Any]) -> None:
    for timing in found.values():
        positive(timing["median_ms"], timing["share"], timing["calls"])
        number(timing["spread_ms"])


def _stages(found: dict[str, Any]) -> None:
    assert found.keys() <= {"dense", "derived"}
    for stages in found.values():
        for value in stages.values():
            number(value)


def _stripes(found: dict[str, Any]) -> None:
    for row in found["convolutions"]:
        number(row["live"], 0, 1)
        positive(*row["ms"].values())
        assert row["form"] in row["ms"]


def _results(found: dict[str, Any]) -> None:
    plain(found)
    for name in ("dense", "gated", "derived", "finetuned"):
        if found[name]["top1"] is not None or name != "dense":  # it may never have been trained
            number(found[name]["top1"], 0, 100)
        number(found[name]["macs"], whole=True)
        positive(found[name]["predicted_ms"])
    assert found["status"] in ("met", "missed")
    for value in found.get("seconds", {}).values():
        number(value)


def _targets(found: dict[str, Any]) -> None:
    for row in found["targets"]:
        plain(row)
        positive(row["measured_ms"], row["measured_share"], row["predicted_ms"])
        assert row["status"] in ("met", "missed")
    positive(found["dense"]["measured_ms"])


def _target(row: dict[str, Any]) -> None:
    plain(row)
    positive(row["measured_share"], row["predicted_share"], row["dense_ms"], row["counted"])
    number(row["top1"], 0, 100)
    number(row["macs"], whole=True)


def _axes(found: list[dict[str, Any]]) -> None:
    for axis in found:
        number(axis["size"], 1, whole=True)
        number(axis["divisor"], 1, whole=True)
        assert isinstance(axis["name"], str)
        assert axis["frozen"] is None or isinstance(axis["frozen"], str)


def _sample(row: dict[str, Any]) -> None:
    positive(row["ms"])
    assert all(type(size) is int and size >= 0 for size in row["sizes"].values())


def _samples(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        _sample(row)


def _timed(row: dict[str, Any]) -> None:
    positive(row["share"], row["dense_ms"])
    number(row["spread"])
    number(row["index"], whole=True)
    assert type(row["repeat"]) is bool
    assert all(type(size) is int and size >= 0 for size in row["sizes"].values())


def _shapley(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        number(row["evaluations"], whole=True)
        assert all(type(value) in (int, float) for value in row["values"].values())


def _point(row: dict[str, Any]) -> None:
    positive(row["ms"])
    assert isinstance(row["point"], str)


def _round(row: dict[str, Any]) -> None:
    positive(row["measured"])
    assert all(type(size) is int and size >= 0 for size in row["key"])


def _inputs(found: dict[str, Any]) -> None:
    plain(found)
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in found.values())


def _seconds(found: dict[str, Any]) -> None:
    for value in found.values():
        number(value)


def _arch(arch: Arch) -> None:
    for units in arch.kept.values():
        assert list(units) == sorted(set(units))
        assert all(type(unit) is int and 0 <= unit < 10**9 for unit in units)


def _recipe(found: recipe.Recipe) -> None:
    number(found.seed, 0, 2**32 - 1, whole=True)
    positive(found.dense.lr, found.search.gate_lr or 1.0, found.finetune.temperature, found.data.batch_size)
    number(found.search.joint, whole=True)
    number(found.finetune.distill, 0, 1)
    assert recipe.Recipe.model_validate(found.model_dump()) == found
    assert recipe.flat(found)


def _space(found: Any) -> None:
    assert found.rules
    for rule in found.rules:
        number(rule.minimum, 0, 1)
        number(rule.divisor, 1, whole=True)
    if found.cell is not None:
        plain(found.cell.get("operations"))


@cache
def _cells() -> CellSpace:
    return CellSpace.of("darts_small")


def _genotype(found: Any) -> None:
    assert check(found, _cells())
    assert all(isinstance(name, str) for nodes in found.values() for reads in nodes.values() for name in reads.values())


@cache
def traced() -> tuple[nn.Module, SearchSpace]:
    """A small model of timm, and the space over it."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    return model, SearchSpace.read("channels", trace(model, torch.randn(1, 3, 32, 32)))


@cache
def _scores() -> bytes:
    scores = {name: torch.randn(axis.size) for name, axis in traced()[1].free.items()}
    return safetensors.torch.save(scores)


def _scores_hold(scores: Mapping[str, torch.Tensor]) -> None:
    sizes = {name: (axis.size,) for name, axis in traced()[1].free.items()}
    assert {name: tuple(score.shape) for name, score in scores.items()} == sizes
    assert all(bool(score.isfinite().all()) and score.is_floating_point() for score in scores.values())


def _write_scores(folder: Path, draw: Random | None) -> Path:
    return _writer("scores.safetensors", _scores(), hostile.safetensors_mutant)(folder, draw)


@cache
def _calibration() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts, as a calibration has them."""
    space = traced()[1]
    facts = json.loads((CORPUS / "calibration.json").read_bytes())
    facts = {name: facts[name] for name in facts if name not in (*facts["conditions"], "error")}
    facts["axes"] = {name: axis.size for name, axis in space.free.items()}
    facts["widths"] = {name: [space.minimum[name], axis.divisor] for name, axis in space.free.items()}
    state = predictors[facts["predictor"]](space.axes, facts["dense_ms"], None).state_dict()
    sizes = torch.tensor([[size // share for size in facts["axes"].values()] for share in (8, 4, 2, 1)])
    share = torch.tensor([0.2, 0.4, 0.6, 0.9])
    tensors = {"sizes": sizes, "share": share, "spread": 0.1 * share, "predicted_ms": 10 * share}
    return {f"{PREDICTOR}{name}": value for name, value in state.items()} | tensors, facts


def _write_calibration(folder: Path, draw: Random | None) -> Path:
    path = folder / FILE
    calibration_file.write(path, *_calibration())
    if draw is not None:
        path.write_bytes(hostile.safetensors_mutant(path.read_bytes(), draw))
    return path


def _write_facts(folder: Path, draw: Random | None) -> Path:
    """Facts, or now and then tensors, that are wrong, under a sum that is right."""
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    tensors, facts = _calibration()
    if draw is not None and draw.random() < 0.4:
        name = draw.choice([*tensors])
        value = hostile.tensor_mutant(tensors[name], draw)
        tensors = {other: tensor for other, tensor in tensors.items() if other != name}
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.numel() < 10**6:
            tensors |= {name: value}
        calibration_file.write(path, tensors, facts)
        return path
    text = json.dumps(facts).encode()
    text = text if draw is None else hostile.json_mutant(text, draw)
    readable = text.decode(errors="replace")
    path.write_bytes(calibration_file.sealed(tensors, readable))
    return path


def _write_check(folder: Path, draw: Random | None) -> Path:
    """Facts whose model is a stranger's, under a sum that is right."""
    tensors, facts = _calibration()
    if draw is not None:
        facts = copy.deepcopy(facts)
        kwargs = facts["model"]["kwargs"]
        kwargs[draw.choice([*kwargs, *hostile.ARGUMENTS])] = draw.choice(hostile.VALUES)
        if draw.random() < 0.3:
            facts["model"]["name"] = draw.choice(hostile.NAMES)
        if draw.random() < 0.3:
            facts["replaced"] = [copy.deepcopy(draw.choice(hostile.RULES))]
    calibration_file.write(folder / FILE, tensors, facts)
    return folder / FILE


def _read_check(path: Path) -> nn.Module:
    return model_of(path, calibration_file.read(path)[1])


def _check_holds(model: nn.Module) -> None:
    assert not any(value.is_meta for value in model.state_dict().values())
    assert sum(value.numel() for value in model.state_dict().values()) < 2**31


def _read_calibration(path: Path) -> Any:
    return adopt(path, traced()[1], path.parent)


def _calibration_holds(found: Any) -> None:
    positive(found.dense_ms, found.calm_ms, found.smallest_ms)
    number(found.noise)
    assert 0 <= found.interval[0] <= found.interval[1]
    dense = float(found.predictor({}))
    assert 0 < dense < math.inf


@cache
def _artefact() -> dict[str, bytes]:
    """The files of a derived model."""
    model, space = traced()
    arch = Arch.random(space.axes, 0.5, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "derived"
        artifact.save(derive(model, space.axes, arch), folder, origin=("test_resnet", {"num_classes": 10}), arch=arch)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _write_config(folder: Path, draw: Random | None) -> Path:
    """A config whose sum is right, wherever it has one."""
    target = folder / "derived"
    target.mkdir(parents=True, exist_ok=True)
    for name, content in _artefact().items():
        (target / name).write_bytes(content)
    if draw is not None:
        path = target / "config.json"
        content = hostile.json_mutant(path.read_bytes(), draw)
        path.write_bytes(_signed(content))
    return target


def _signed(content: bytes) -> bytes:
    try:
        config = json.loads(content)
        config["sha256"]["config.json"] = artifact_config.sum_of_config(config)
        return json.dumps(config).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return content


def _write_weights(folder: Path, draw: Random | None) -> Path:
    """Weights, or an architecture, that are wrong, under a sum that is right."""
    target = _write_config(folder, None)
    if draw is not None:
        name = draw.choice(["model.safetensors", "model.safetensors", "arch.json"])
        mutant = hostile.json_mutant if name == "arch.json" else hostile.safetensors_mutant
        (target / name).write_bytes(mutant((target / name).read_bytes(), draw))
        config = json.loads((target / "config.json").read_bytes())
        config["sha256"] = {path.name: artifact_config.sum_of(path) for path in target.iterdir()}
        config["sha256"]["config.json"] = artifact_config.sum_of_config(config)
        (target / "config.json").write_text(json.dumps(config))
    return target


def _artefact_holds(model: nn.Module) -> None:
    stored = safetensors.torch.load(_artefact()["model.safetensors"])
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in stored.items()
    }
    assert not any(value.is_meta for value in model.state_dict().values())


def _training() -> Live:
    """A model with its optimizers and its average after two steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    optimizers = [
        torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9),
        torch.optim.AdamW([*model[1].parameters(), *model[3].parameters()], 0.1),
    ]
    live = Live(model, nn.Identity(), optimizers, copy.deepcopy(model))
    for _ in range(2):
        _step(live)
    return live


def _step(live: Live) -> None:
    live.model(torch.randn(4, 3, 4, 4)).square().sum().backward()
    for optimizer in live.optimizers:
        optimizer.step()


def _state(live: Live) -> dict[str, Any]:
    assert live.average is not None
    return {
        "epoch": 1,
        "step": 3,
        "loss": torch.tensor(0.5),
        "identity": "this run",
        "model": dict(live.model.state_dict()),
        "beside": {},
        "optimizers": [optimizer.state_dict() for optimizer in live.optimizers],
        "scaler": None,
        "average": dict(live.average.state_dict()),
    }


@cache
def _saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(_state(_training()), buffer)
    return buffer.getvalue()


def _write_checkpoint(folder: Path, draw: Random | None) -> Path:
    """Now and then after an accident, mostly with wrong content under a right sum."""
    path = folder / "stage.ckpt"
    folder.mkdir(parents=True, exist_ok=True)
    state = torch.load(io.BytesIO(_saved()), weights_only=True)
    if draw is None or draw.random() < 0.2:
        checkpoint.save(path, state)
        if draw is not None:
            path.write_bytes(hostile.bytes_mutant(path.read_bytes(), draw))
        return path
    if draw.random() < 0.15:
        payload = hostile.bytes_mutant(_saved(), draw)
    else:
        buffer = io.BytesIO()
        torch.save(hostile.state_mutant(state, draw), buffer)
        payload = buffer.getvalue()
    path.write_bytes(checkpoint.sealed(payload))
    return path


def _read_checkpoint(path: Path) -> Any:
    """The model that goes on, from a fresh one; a refusal leaves the fresh one as it was."""
    live = _training()
    before = copy.deepcopy(live.model.state_dict())
    try:
        return restore(path, live, Length(3, 10), "this run"), live
    except CheckpointError:
        after = live.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        raise


def _checkpoint_holds(found: Any) -> None:
    state, live = found
    assert 0 <= state.epoch <= 3
    assert 0 <= state.step <= 10
    assert all(bool(value.isfinite().all()) for value in live.model.state_dict().values())
    _step(live)


@cache
def _glyphs() -> bytes:
    """Two classes in three faces."""
    numbers = {"images": torch.arange(4 * 64).reshape(4, 8, 8).byte(), "labels": torch.tensor([0, 1, 0, 1])}
    part = numbers | {"faces": torch.tensor([0, 0, 1, 1])}
    found = {f"{name}.{key}": value.clone() for name in glyphs.PARTS for key, value in part.items()}
    faces = {"train": ["a", "b"], "test": ["c", "d"]}
    about = glyphs.About(format=glyphs.FORMAT, classes=["一", "二"], faces=faces, mean=0.5, std=0.2, made={})
    with tempfile.TemporaryDirectory() as parent:
        glyphs.write(Path(parent) / glyphs.FILE, about, found)
        return (Path(parent) / glyphs.FILE).read_bytes()


def _glyphs_hold(found: Any) -> None:
    for part in found:
        number(part.mean, -1e40)
        number(part.std, open_at_low=True)
        assert part.images.dtype == torch.uint8
        assert part.images.shape == (len(part.labels), 1, part.images.shape[2], part.images.shape[2])
        assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(part.names)


KINDS = {
    "glyphs": Kind(
        lambda folder, draw: _writer(glyphs.FILE, _glyphs(), hostile.safetensors_mutant)(folder, draw),
        lambda path: glyphs.glyphs(DataSettings(name="glyphs", root=str(path.parent))),
        _glyphs_hold,
    ),
    "recipe": Kind(
        _writer("recipe.yaml", (CORPUS / "recipe.yaml").read_bytes(), hostile.yaml_mutant), recipe.read, _recipe
    ),
    "space": Kind(_writer("space.yaml", (CORPUS / "space.yaml").read_bytes(), hostile.yaml_mutant), read_file, _space),
    "arch": Kind(_writer("arch.json", (CORPUS / "arch.json").read_bytes(), hostile.json_mutant), Arch.read, _arch),
    "artefact config": Kind(_write_config, artifact.load, _artefact_holds),
    "artefact tensors": Kind(_write_weights, artifact.load, _artefact_holds),
    "calibration": Kind(_write_calibration, _read_calibration, _calibration_holds),
    "calibration facts": Kind(_write_facts, _read_calibration, _calibration_holds),
    "calibrate --check": Kind(_write_check, _read_check, _check_holds),
    "checkpoint": Kind(_write_checkpoint, _read_checkpoint, _checkpoint_holds),
    "scores": Kind(_write_scores, lambda path: read_scores(path, traced()[1]), _scores_hold),
    "genotype": Kind(
        _writer("genotype.json", (CORPUS / "genotype.json").read_bytes(), hostile.json_mutant),
        lambda path: read_genotype(path, _cells()),
        _genotype,
    ),
    "metrics": Kind(
        _writer("metrics.jsonl", (CORPUS / "metrics.jsonl").read_bytes(), hostile.journal_mutant),
        _read_metrics,
        _metrics,
    ),
    "rounds": _journal("rounds.jsonl", journals.RoundRow, CheckpointError, _round),
    "timed sub-networks": _journal("calibration_timings.jsonl", run_files.SampleTimed, CalibrationError, _timed),
    "staircase": _journal("staircase.jsonl", run_files.PointRow, CheckpointError, _point),
    "coverage": _journal("coverage.jsonl", CoverageRow, ArtifactError, lambda row: plain(dict(row))),
    "inputs": _document("inputs.json", run_files.InputsFile, CheckpointError, _inputs),
    "seconds": _document("seconds.json", run_files.Seconds, CheckpointError, _seconds),
    "certificate": _document("certificate.json", run_files.CertificateFile, CheckpointError, _certificate),
    "stripes": _document("stripes.json", run_files.StripesFile, CheckpointError, _stripes),
    "timings": _document("timings.json", run_files.TimingsFile, CheckpointError, _timings),
    "stages": _document("stages.json", run_files.Stages, CheckpointError, _stages),
    "target": _document("tuned.json", result_files.TargetFile, CheckpointError, _target),
    "wandb": _document("wandb.json", journals.WandbFile, ArtifactError, plain),
    "results": _in_a_report("results.json", "results", _results),
    "targets": _in_a_report("targets.json", "targets", _targets),
    "axes": _in_a_report("axes.json", "axes", _axes),
    "calibration page": _in_a_report("calibration/calibration.json", "calibration", plain),
    "samples": _in_a_report("calibration/samples.jsonl", "samples", _samples),
    "shapley": _in_a_report("shapley.jsonl", "shapley", _shapley),
}
IN_A_REPORT = ("metrics", "results", "targets", "axes", "calibration page", "samples", "shapley", "arch")
