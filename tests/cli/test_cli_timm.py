"""What ``nas-prune timm`` does with an artefact, and with the mistakes of a user."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from artefacts import derived

from nas_prune.artifact.folder import describe, load, save
from nas_prune.base.files.whole import read_lines
from nas_prune.cli.program import main
from nas_prune.costs import Conditions
from nas_prune.costs.timing import measure
from nas_prune.tracing.arch import Arch

TRAIN = ["train", "--model", "{}", "--dataset", "digits"]
PROVENANCE = {"recipe": {"data.image_size": 32, "data.eval_batch_size": 16, "data.name": "lost", "gone": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A derived model that knows its images."""
    small, _, arch = derived("test_resnet", 32)
    path = tmp_path_factory.mktemp("artefacts") / "small"
    save(small, path, arch=arch, remarks={"provenance": PROVENANCE})
    return path


def nas_prune(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, str], str]:
    """Exit code, figures by name, and what was said on standard error."""
    with pytest.raises(SystemExit) as done:
        main(["timm", *words])
    said = capsys.readouterr()
    figures = dict(line.split(": ", 1) for line in said.out.splitlines() if ": " in line)
    return int(done.value.code or 0), figures, said.err


def test_validate_counts_every_image_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("validate", "--model", f"local-dir:{folder}", "--dataset", "generated", "--device", "cpu")
    code, figures, _ = nas_prune(capsys, *words, "--batch-size", "7")
    assert (code, figures["images"], figures["img_size"]) == (0, "32", "32")
    assert nas_prune(capsys, *words)[1] == figures
    assert 0 <= float(figures["top1"]) <= float(figures["top5"]) <= 100
    assert float(figures["loss"]) == pytest.approx(2.3, abs=0.5)


def test_benchmark_measures_the_model_with_its_own_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--batch-size", "4", "--device", "cpu", "latency.seconds=0.05", "latency.threads=1")
    code, figures, _ = nas_prune(capsys, "benchmark", "--model", f"local-dir:{folder}", *words)
    assert (code, figures["img_size"], figures["infer_batch_size"]) == (0, "32", "4")
    assert int(figures["param_count"]) == sum(p.numel() for p in load(folder).parameters())
    per_second = 4e3 / float(figures["infer_step_time"])
    assert float(figures["infer_samples_per_sec"]) == pytest.approx(per_second, rel=0.01)
    assert float(figures["latency_ms"]) > 0


def test_benchmark_measures_under_the_conditions_that_are_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, known = [], measure.prepare_all

    def watched(models: Any, images: Any, conditions: Conditions) -> Any:
        seen.append(conditions)
        return known(models, images, conditions)

    monkeypatch.setattr(measure, "prepare_all", watched)
    words = ("latency.precision=bfloat16", "latency.channels_last=true", "latency.seconds=0.01", "latency.threads=1")
    code, _, _ = nas_prune(capsys, "benchmark", "--model", f"local-dir:{folder}", "--device", "cpu", *words)
    assert (code, seen) == (0, [Conditions("eager", 1, "bfloat16", channels_last=True)] * 2)


def test_train_does_not_go_on_with_another_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "small", tmp_path / "out"
    words = ("train", "--model", f"local-dir:{model}", "--dataset", "digits", "--device", "cpu", "--output", str(out))
    small = load(folder)
    save(small, model, remarks={"provenance": PROVENANCE})
    assert nas_prune(capsys, *words, "--epochs", "0")[0] == 0
    with torch.no_grad():
        next(small.parameters()).mul_(2)
    save(small, model, remarks={"provenance": PROVENANCE})
    code, _, said = nas_prune(capsys, *words, "--epochs", "0")
    assert code == 2
    assert f"{model}/config.json (model.name) has changed since the run in {out} began; put it back" in said


def test_train_makes_an_artefact_and_goes_on_where_it_was(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "--model", f"local-dir:{folder}", "--dataset", "generated", "--device", "cpu")
    words = (*words, "--epochs", "2", "--lr", "0.01", "--batch-size", "16", "--output", str(tmp_path / "out"))
    code, figures, _ = nas_prune(capsys, *words)
    assert code == 0
    trained, before = load(tmp_path / "out" / "finetuned"), load(folder)
    assert [p.shape for p in trained.parameters()] == [p.shape for p in before.parameters()]
    assert not torch.equal(next(trained.parameters()), next(before.parameters()))
    assert Arch.read(tmp_path / "out" / "finetuned" / "arch.json") == Arch.read(folder / "arch.json")
    assert describe(tmp_path / "out" / "finetuned")["provenance"]["recipe"]["finetune.epochs"] == 2
    assert nas_prune(capsys, *words)[1] == figures
    code, _, said = nas_prune(capsys, *words, "--seed", "1")
    assert (code, "holds a training with other settings" in said) == (2, True)


def test_train_gives_other_data_another_head(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "--model", f"local-dir:{folder}", "--dataset", "digits", "--device", "cpu", "--epochs", "1")
    small = ("finetune.max_steps=1", "data.train_images=64", "--output", str(tmp_path / "out"))
    assert nas_prune(capsys, *words, *small)[0] == 0
    made = timm.create_model(f"local-dir:{tmp_path / 'out' / 'finetuned'}", pretrained=True)
    assert made.get_submodule(made.pretrained_cfg["first_conv"]).weight.shape[1] == 1


@pytest.mark.zoo
def test_of_two_processes_one_keeps_the_record(folder: Path, tmp_path: Path) -> None:
    words = ["timm", "train", "--model", f"local-dir:{folder}", "--dataset", "generated", "--device", "cpu"]
    words += ["--epochs", "1", "--batch-size", "8", "--output", str(tmp_path / "out"), "track.wandb=offline"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nas_prune"]
    done = subprocess.run([sys.executable, *launcher, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top1") == 1
    assert len(list(tmp_path.glob("out/wandb/offline-run-*"))) == 1
    assert len(read_lines(tmp_path / "out" / "metrics.jsonl")) == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["validate", "--model", "{}"], "which images? Name them: --dataset digits"),
        (["validate", "--model", "{}", "--dataset", "digits"], "the model has in_chans 3, digits has 1"),
        (["validate", "--model", "{}", "--dataset", "generated", "--num-classes", "3"], "num_classes 3, generated has"),
        (["validate", "--model", "{}", "--dataset", "digit"], "unknown dataset 'digit'; did you mean 'digits'?"),
        (["validate", "--model", "{}", "--dataset", "digits", "data.hfilp=1"], "did you mean 'hflip'?"),
        (["benchmark", "--model", "{}", "fast"], "cannot read 'fast'"),
        (["benchmark", "--model", "{}", "--device", "gpu"], "device should be 'auto', 'cpu', 'cuda' or 'mps'"),
        (["benchmark", "--model", "local-dir:/lost"], "there is no artefact in /lost"),
        (["benchmark", "--model", "resnet81"], "timm has no model 'resnet81'; did you mean 'resnet18"),
        (["benchmark", "--model", "."], "write --model local-dir:."),
        (["benchmark", "--model", "test_resnet", "model.kwargs.depth=3"], "cannot create test_resnet"),
        (["train", "--model", "{}", "--epoch", "3"], "No such option: --epoch"),
        ([*TRAIN, "--batch-size", "99999999"], "no room for the images of data.batch_size 99999999"),
        ([*TRAIN, "--img-size", "99999999"], "no room for the images of data.batch_size 64"),
        ([*TRAIN, "data.image_size=1", "data.eval_batch_size=900000000"], "no room for data.eval_batch_size 9000"),
        (
            ["train", "--model", "vgg11", "--dataset", "digits", "--img-size", "8"],
            "vgg11 cannot be trained on 2",
        ),
        (["validate", "--model", "{}", "--dataset", "digits", "--batch-size", "99999999"], "no room for the images of"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], part: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = nas_prune(capsys, *(word.format(f"local-dir:{folder}") for word in words))
    assert (code, part in said) == (2, True), said
