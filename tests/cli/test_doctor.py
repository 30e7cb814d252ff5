"""Laws of the doctor: every axis is told once, what it counts is what the models cost, and no prospect is an error."""

import json
import re
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas_prune.artifact.folder import save
from nas_prune.base.axis import Axis
from nas_prune.base.errors import DeriveError, NasPruneError, SpaceError, TraceError, UnknownNameError
from nas_prune.base.folding import fold
from nas_prune.cli import program as cli
from nas_prune.cli.doctor import diagnosis
from nas_prune.cli.doctor.diagnosis import Diagnosis, examine, frozen, groups, kinds, lay, plain, sizes_of
from nas_prune.cli.doctor.subject import Subject, find
from nas_prune.costs import Conditions, Macs, Params, Timing, count
from nas_prune.derivation import replace as substitute
from nas_prune.derivation.trace import trace
from nas_prune.tracing import Axes

TRACED: dict[tuple[int, torch.Size], Axes] = {}


def traced_once(model: nn.Module, images: Tensor, *, stripes: bool = False) -> Axes:
    """Axes hold no weights: what was traced for one model is true of the next one like it."""
    key = sum(parameter.numel() for parameter in model.parameters()), images.shape
    if key not in TRACED:
        TRACED[key] = trace(model, images, stripes=stripes)
    return TRACED[key]


@pytest.fixture(autouse=True)
def trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests look at the same model."""
    monkeypatch.setattr(substitute, "trace", traced_once)


@pytest.fixture(scope="module")
def vit() -> Diagnosis:
    """A small transformer, whose six blocks are alike."""
    subject = find("test_vit", img_size=32, space=None, settings={"num_classes": 10})
    return examine(subject, lay(subject), runtimes=["eager"], seconds=0.02)


def unfold(name: str) -> set[str]:
    """All names that a folded name stands for."""
    parts = re.split(r"\{(.*?)\}", name)
    choices = [[part] if i % 2 == 0 else list(numbers(part)) for i, part in enumerate(parts)]
    return {"".join(choice) for choice in product(*choices)}


def numbers(runs: str) -> list[str]:
    """0-2,5 as 0, 1, 2, 5."""
    bounds = [[int(bound) for bound in run.split("-")] for run in runs.split(",")]
    return [str(number) for run in bounds for number in range(run[0], run[-1] + 1)]


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([f"blocks.{i}.mlp.fc1" for i in range(12)], ["blocks.{0-11}.mlp.fc1"]),
        (["layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2"], ["layer{1-2}.0.conv1", "layer2.0.conv2"]),
        (["s.0.b.0", "s.0.b.1", "s.1.b.0", "s.1.b.1"], ["s.{0-1}.b.{0-1}"]),
        (["s.0.b.0", "s.0.b.1", "s.1.b.0"], ["s.0.b.{0-1}", "s.1.b.0"]),
        (["0.weight", "1.weight", "2.weight", "5.weight"], ["{0-2,5}.weight"]),
        (["conv1", "conv1:2"], ["conv1", "conv1:2"]),
        (["add in blocks.3", "add in blocks.4"], ["add in blocks.{3-4}"]),
    ],
)
def test_names_of_like_blocks_are_one(names: list[str], folded: list[str]) -> None:
    assert list(fold(names)) == folded


def test_a_folded_name_stands_for_its_names_and_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        triples = torch.randint(0, 4, (20, 3), generator=generator).tolist()
        names = sorted({f"s{a}.b.{b}.conv{c}" for a, b, c in triples})
        folded = fold(names)
        assert sorted(name for members in folded.values() for name in members) == names
        assert all(unfold(name) == set(members) for name, members in folded.items())


@pytest.mark.parametrize(
    ("size", "divisor", "least", "text"),
    [
        (64, 8, 8, "8..64 step 8"),
        (12, 1, 2, "2..12"),
        (60, 8, 8, "8..56 step 8, 60"),
        (10, 8, 8, "8, 10"),
        (16, 8, 16, "16"),
        (10, 1, None, "10"),
    ],
)
def test_allowed_sizes_are_told(size: int, divisor: int, least: int | None, text: str) -> None:
    assert sizes_of(Axis("a", "channel", size, (), divisor=divisor), least) == text


def test_every_axis_is_in_one_group_and_like_its_group(vit: Diagnosis) -> None:
    axes = vit.space.axes
    assert sorted(name for group in groups(vit.space) for name in group.names) == sorted(axes)
    for group in groups(vit.space):
        assert unfold(group.name) == set(group.names)
        for axis in map(axes.__getitem__, group.names):
            assert (axis.kind, axis.size) == (group.kind, group.size)
            assert group.members[0] <= len(axis.members) <= group.members[1]
            assert (axis.frozen is None) == (group.frozen is None)
    hidden = next(group for group in groups(vit.space) if group.kind == "hidden")
    assert hidden.name == "blocks.{0-5}.mlp.fc1"
    assert hidden.tensors[0] == "blocks.{0-5}.mlp.fc1.weight"


def test_reasons_and_kinds_count_every_axis(vit: Diagnosis) -> None:
    axes = vit.space.axes
    reasons = frozen(axes.values())
    assert "model output" in reasons
    assert sorted(name for names in reasons.values() for name in names) == sorted(set(axes) - set(vit.space.free))
    assert sum(row["free"] for row in kinds(vit.space).values()) == len(vit.space.free)
    assert sum(row["frozen"] for row in kinds(vit.space).values()) == len(axes) - len(vit.space.free)


def test_costs_are_those_of_the_dense_and_of_the_smallest_model(vit: Diagnosis) -> None:
    model, images = vit.subject.model, vit.subject.images
    least = {name: float(size) for name, size in vit.space.minimum.items()}
    assert vit.failure is None
    assert vit.dense.counted == count(model, images)
    assert vit.smallest.counted.macs == round(float(Macs(vit.space.axes)(least)))
    assert vit.smallest.counted.params == round(float(Params(vit.space.axes)(least)))
    assert all(cost.timings["eager"].median_ms > 0 for cost in (vit.dense, vit.smallest))


def test_the_model_that_was_derived_is_the_one_that_is_timed(vit: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    def parameters_as_time(models: Mapping[str, nn.Module], *_: object, **how: object) -> dict[str, Timing]:
        assert isinstance(how["conditions"], Conditions)
        return {name: Timing(count(model, vit.subject.images).params, 0.0, 5) for name, model in models.items()}

    monkeypatch.setattr(diagnosis, "measure_together", parameters_as_time)
    found = examine(vit.subject, vit.space, runtimes=["eager", "onnxruntime", "eager"])
    for cost in (found.dense, found.smallest):
        assert {name: timing.median_ms for name, timing in cost.timings.items()} == {
            "eager": cost.counted.params,
            "onnxruntime": cost.counted.params,
        }
    with pytest.raises(UnknownNameError, match="cannot measure in 'onnxruntim'; did you mean 'onnxruntime'"):
        examine(vit.subject, vit.space, runtimes=["onnxruntim"])


def test_the_facts_are_plain_data(vit: Diagnosis) -> None:
    facts = json.loads(json.dumps(plain(vit)))
    assert {axis["name"] for axis in facts["axes"]} == set(vit.space.axes)
    assert facts["image"] == [3, 32, 32]
    assert facts["dense"]["params"] == vit.dense.counted.params
    assert facts["smallest"]["ms"]["eager"]["calls"] >= 5


class Scan(nn.Module):
    """A sum that runs over the channels, for which no rule can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b 3 h w) -> (b 8 h w)."""
        return self.conv(x).cumsum(1)


def test_nothing_to_prune_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nothing of scan can be pruned.*cumsum|nothing of scan.*model output"):
        lay(Subject("scan", Scan().eval(), (3, 8, 8), "channels"))
    with pytest.raises(SpaceError, match=r"leaves nothing to change.*these could change: .* channel axes"):
        lay(find("test_resnet", img_size=32, space="heads_and_hidden", settings={}))
    (tmp_path / "tight.yaml").write_text("rules:\n  - {kinds: [channel], minimum: 1.0}\n")
    with pytest.raises(SpaceError, match=r"the least size that search space .*tight\.yaml allows"):
        lay(find("test_resnet", img_size=32, space=str(tmp_path / "tight.yaml"), settings={}))


def test_a_word_names_a_model_an_artefact_or_a_recipe(tmp_path: Path) -> None:
    model = find("test_vit", img_size=64, space=None, settings={"num_classes": 3})
    assert model.model(torch.zeros(2, *model.image)).shape == (2, 3)
    save(model.model, tmp_path / "small")
    artefact = find(str(tmp_path / "small"), img_size=None, space="all", settings={})
    assert (artefact.image, artefact.space) == ((3, 64, 64), "all")
    recipe = find("smoke/digits_w_gates", img_size=None, space=None, settings={})
    assert recipe.model(torch.zeros(1, *recipe.image)).ndim == 2
    assert recipe.note is None
    with pytest.raises(NasPruneError, match="leave out --set"):
        find(str(tmp_path / "small"), img_size=None, space=None, settings={"num_classes": 3})
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        find("resnet_18", img_size=None, space=None, settings={})
    with pytest.raises(NasPruneError, match=r"cannot create test_vit.*depht"):
        find("test_vit", img_size=None, space=None, settings={"depht": 1})


def run(*words: str) -> int:
    """Exit code of the program."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["doctor", "test_resnet", "--img-size", "32", *words])
    return int(exit_.value.code or 0)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_page_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(diagnosis, "examine", partial(examine, seconds=0.02))
    assert run() == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    for part in ("layer3.0.conv3", "24..192 step 8", "model output", "smallest", "eager, ms", "±"):
        assert part in shown


def test_json_goes_to_a_file_or_takes_the_place_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diagnosis, "examine", partial(examine, seconds=0.02))
    assert run("--json", str(tmp_path / "facts.json")) == 0
    assert "Axes that can shrink" in capsys.readouterr().out
    written = json.loads((tmp_path / "facts.json").read_text())
    assert run("--json", "-") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["groups"] == written["groups"] != []


def test_one_axis_is_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--axis", "layer1.0.conv1") == 0
    shown = capsys.readouterr().out
    for part in ("layer1.0.conv1.weight", "layer1.0.bn1.running_var", "layer1.0.conv2.weight", "read", "write"):
        assert part in shown
    assert run("--axis", "layer1.0.conv") == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_smallest_model_that_cannot_be_derived_is_told_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def derive(*_: object) -> nn.Module:
        raise DeriveError("the code cannot say it")

    monkeypatch.setattr(diagnosis, "derive", derive)
    monkeypatch.setattr(diagnosis, "examine", partial(examine, seconds=0.02))
    assert run() == 1
    told = capsys.readouterr()
    assert "not derived" in told.out
    assert "the code cannot say it" in told.err
