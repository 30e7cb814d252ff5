"""Laws of exports: the file computes what the model computes, or it is not there."""

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from zoo import few

from nas_prune.artifact import export as exporting
from nas_prune.artifact import export_forms
from nas_prune.artifact.export import TOLERANCE, export, image_shape
from nas_prune.artifact.folder import save
from nas_prune.base.errors import (
    ArtifactError,
    ExactnessError,
    NasPruneError,
    RunError,
    RuntimeMissingError,
    UnknownNameError,
)
from nas_prune.cli import export as cli_export
from nas_prune.cli import program as cli
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.tracing.arch import Arch


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Tensor]:
    """A timm model with a random half of every axis gone, and images for it."""
    torch.manual_seed(0)
    model, images = timm.create_model("test_resnet", num_classes=10).eval(), torch.zeros(1, 3, 32, 32)
    axes = trace(model, images)
    return derive(model, axes, Arch.random(axes, generator=torch.Generator().manual_seed(0))).eval(), images


@pytest.fixture
def tiny() -> tuple[nn.Module, Tensor]:
    """The least that has weights and buffers, and images for it."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def folder(small: tuple[nn.Module, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as an artefact that was trained on images of 32x32."""
    made = tmp_path_factory.mktemp("artefacts") / "small"
    save(small[0], made, remarks={"provenance": {"recipe": {"data.image_size": 32}}})
    return made


def opened(path: Path, images: Tensor) -> Tensor:
    """What a file computes, opened as its users would."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images)
    if path.suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
        return torch.from_numpy(session.run(["output0"], {"images": images.numpy()})[0])
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # left to itself, it takes bfloat16 where the processor can
    compiled = pytest.importorskip("openvino").Core().compile_model(str(path), "CPU", exact)
    return torch.from_numpy(compiled({"images": images.numpy()})["output0"].copy())


FORMS = (("torch", ".pt2"), ("onnxruntime", ".onnx"), ("openvino", ".xml"))


@pytest.mark.parametrize(("package", "suffix"), few(FORMS, [("onnxruntime", ".onnx")]))
def test_a_file_takes_any_batch_and_computes_what_the_model_computes(
    package: str, suffix: str, small: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    pytest.importorskip(package)
    model, images = small
    made = export(model, images, tmp_path / f"small{suffix}")
    assert made.max_difference <= TOLERANCE
    assert made.batches == (1, 3)
    assert sorted(made.files) == sorted(tmp_path.iterdir())
    assert 0 < made.megabytes < 1
    several = torch.randn(5, *images.shape[1:])
    with torch.no_grad():
        expected = model(several)
    assert (opened(tmp_path / f"small{suffix}", several) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_transformer_is_exported_for_one_batch_only(tmp_path: Path) -> None:
    model, images = timm.create_model("test_vit", num_classes=10, img_size=32).eval(), torch.zeros(1, 3, 32, 32)
    made = export(model, images, tmp_path / "vit.pt2", batch=2)
    assert made.max_difference <= TOLERANCE
    assert made.batches == (2, 2)
    assert opened(tmp_path / "vit.pt2", images.expand(2, -1, -1, -1)).shape == (2, 10)
    with pytest.raises(RuntimeError, match="to be equal to 2, but got 1"):
        opened(tmp_path / "vit.pt2", images)


def test_no_pickle_is_in_the_file(tiny: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    export(*tiny, tmp_path / "tiny.pt2")
    with zipfile.ZipFile(tmp_path / "tiny.pt2") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert [name for name, content in contents.items() if content.startswith((b"\x80", b"PK"))] == []
    configs = [content for name, content in contents.items() if name.endswith("_config.json")]
    assert configs
    assert not any(b'"use_pickle": true' in content for content in configs)


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_file_that_differs_does_not_stay(
    before: bytes | None, tiny: tuple[nn.Module, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "tiny.pt2"
    if before is not None:
        target.write_bytes(before)

    right = export_forms._open_torch
    monkeypatch.setattr(export_forms, "_open_torch", lambda path: lambda images: [2 * y for y in right(path)(images)])
    with pytest.raises(ExactnessError, match=r"torch\.export computes something else.*1\.0e\+00"):
        export(*tiny, target)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"tiny.pt2": before} if before else {})


def test_two_files_come_whole_or_not_at_all(tmp_path: Path) -> None:
    old = {"a.xml": "old", "a.bin": "old"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)

    def write(*, fail: bool) -> list[Path]:
        with exporting._together(tmp_path / "a.xml") as (target, files):
            target.write_text("new")
            target.with_suffix(".bin").write_text("new")
            if fail:
                raise ExactnessError("it differs")
        return files

    with pytest.raises(ExactnessError, match="it differs"):
        write(fail=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == old
    assert write(fail=False) == [tmp_path / "a.bin", tmp_path / "a.xml"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(old, "new")


class Branching(nn.Module):
    """A model whose graph depends on the values that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """(b 3 h w) -> (b 3 h w)."""
        return x if x.sum() > 0 else self.scale * x


def test_a_model_that_cannot_be_converted_is_one_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Branching cannot be converted for torch\.export: .*"):
        export(Branching(), torch.zeros(1, 3, 8, 8), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_training_and_in_double_is_left_as_it_was(tiny: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model = tiny[0].double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tiny[1], tmp_path / "model.pt2")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [(".onnx", "onnxscript", "onnx"), (".onnx", "onnxruntime", "onnx"), (".xml", "openvino", "openvino")],
)
def test_a_missing_package_is_named(
    suffix: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, each, sys)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeMissingError, match=rf'needs the package {package}; .*"nas_prune\[{extra}\]"'):
        export(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8), tmp_path / f"model{suffix}")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "model.tflite"}, UnknownNameError, r"suffix '\.tflite'.*\.onnx, \.pt2, \.xml"),
        ({"batch": 0}, NasPruneError, "a batch of 0"),
        ({"opset": 18}, NasPruneError, "leave out --opset"),
        ({"example_images": torch.zeros(1, 1, 8, 8)}, ArtifactError, "does not take images .*--img-size N"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    given = {"example_images": torch.zeros(1, 3, 8, 8), "path": "model.pt2", **options}
    with pytest.raises(error, match=message):
        export(nn.Conv2d(3, 4, 1), **{**given, "path": tmp_path / given["path"]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("facts", "asked", "shape"),
    [
        ({"pretrained_cfg": {"input_size": [3, 224, 192]}}, None, (3, 224, 192)),
        ({"pretrained_cfg": {"input_size": (3, 224, 224)}, "model_args": {"in_chans": 1}}, None, (1, 224, 224)),
        ({"model_args": {"img_size": 64}}, None, (3, 64, 64)),
        ({"model_args": {"img_size": [64, 32]}}, None, (3, 64, 32)),
        (
            {"pretrained_cfg": {"input_size": [3, 9, 9]}, "provenance": {"recipe": {"data.image_size": 32}}},
            None,
            (3, 32, 32),
        ),
        ({"pretrained_cfg": {"input_size": [3, 9, 9]}, "provenance": {"recipe": "lost"}}, 16, (3, 16, 16)),
    ],
)
def test_images_are_those_that_the_model_was_made_for(
    facts: Mapping[str, Any], asked: int | None, shape: tuple[int, int, int]
) -> None:
    assert image_shape({"model_args": {}, "pretrained_cfg": {}, **facts}, asked) == shape


@pytest.mark.parametrize("size", [None, [3], "abc", [3, 0, 8], [3, 8.5, 8]])
def test_images_that_cannot_be_guessed_are_asked_for(size: object) -> None:
    with pytest.raises(ArtifactError, match=r"does not say what size of images.*--img-size N"):
        image_shape({"model_args": {}, "pretrained_cfg": {"input_size": size}, "backbone": "resnet18"})


def run(*words: str) -> int:
    """Exit code of the program."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["export", *words])
    return int(exit_.value.code or 0)


def test_the_program_exports_and_shows_the_difference(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = tmp_path / "new" / "small.pt2"
    assert run(str(folder), "--to", "torch-export", "--out", str(out), "--batch", "2") == 0
    assert out.is_file()
    shown = capsys.readouterr().out
    for part in ("torch.export", "largest difference", "0.0e+00", "batch 2"):
        assert part in shown


@pytest.mark.parametrize(("form", "name"), [("onnx", "small.onnx"), ("openvino", "small.xml")])
def test_a_file_is_beside_its_model_if_nothing_is_said(form: str, name: str) -> None:
    assert cli_export._target(cli_export.ExportOptions(Path("runs/small"), form)) == Path("runs") / name
    assert cli_export._target(cli_export.ExportOptions(Path("."), form)).parent == Path.cwd().parent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onx"], "did you mean 'onnx'?"),
        (["--to", "torch-export", "--out", "small.onnx"], "name ends in .pt2"),
        (["--to", "torch-export", "--batch", "many"], "write --batch dynamic"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(folder), *words) == 2
    assert message in capsys.readouterr().err


def test_the_folder_of_a_run_is_told_from_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "finetuned").mkdir()
    (tmp_path / "finetuned" / "config.json").touch()
    assert run(str(tmp_path), "--to", "torch-export") == 2
    assert str(tmp_path / "finetuned") in capsys.readouterr().err
