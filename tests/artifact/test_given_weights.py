"""One's own weights: every file that people have is read or refused in one line, and a head of another size is told."""

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nas_prune.artifact.given_weights import load_given
from nas_prune.base.errors import ArtifactError, NasPruneError
from nas_prune.run import build
from nas_prune.run.recipe import recipe
from nas_prune.train.data import loaders as data

Weights = dict[str, Tensor]


def model(classes: int = 10) -> nn.Module:
    """A small backbone."""
    return timm.create_model("test_resnet", num_classes=classes)


def prefixed(weights: Weights, prefix: str) -> Weights:
    """The weights as a wrapper names them."""
    return {f"{prefix}{name}": value for name, value in weights.items()}


def same(one: Weights, other: Weights) -> bool:
    """Whether two models have the same tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


FORMS: dict[str, tuple[str, Callable[[Weights], Any], list[str]]] = {
    "plain": ("w.pth", lambda w: w, ["tensors from"]),
    "state_dict": ("w.pt", lambda w: {"epoch": 3, "state_dict": w, "args": argparse.Namespace(lr=1)}, ["state_dict"]),
    "model": ("w.pth", lambda w: {"model": w, "optimizer": {"state": {}}}, ["under model"]),
    "ema": ("w.pth", lambda w: {"ema": w, "model": {k: v * 0 for k, v in w.items()}}, ["under ema"]),
    "deep": ("w.pt", lambda w: {"ema": {"state_dict": prefixed(w, "module.")}}, ["ema.state_dict", "prefix module."]),
    "ddp": ("w.pth", lambda w: prefixed(w, "module."), ["without the prefix module."]),
    "compiled": ("w.pth", lambda w: prefixed(w, "module._orig_mod."), ["prefix module._orig_mod."]),
    "lightning": ("w.ckpt", lambda w: {"state_dict": {**prefixed(w, "model."), "loss.x": torch.ones(1)}}, ["model."]),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_where_people_keep_them(form: str, tmp_path: Path) -> None:
    name, wrapped, parts = FORMS[form]
    source, started = model(), model()
    torch.save(wrapped(source.state_dict()), tmp_path / name)
    told = load_given(started, tmp_path / name, head="error")
    assert same(source.state_dict(), started.state_dict())
    assert [part for part in (*parts, name) if part not in told] == [], told
    assert "\n" not in told


def test_safetensors_are_read_as_well(tmp_path: Path) -> None:
    source, started = model(), model()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_given(started, tmp_path / "w.safetensors", head="error")
    assert same(source.state_dict(), started.state_dict())


def test_a_head_of_another_size_stays_fresh_and_that_is_told(tmp_path: Path) -> None:
    source, started = model(1000), model(10)
    fresh = {name: value.clone() for name, value in started.state_dict().items() if name.startswith("fc.")}
    torch.save(source.state_dict(), tmp_path / "w.pth")
    told = load_given(started, tmp_path / "w.pth", head="fresh")
    assert told.endswith("; the head there is of another size, so fc.weight, fc.bias keep their fresh values")
    for name, value in started.state_dict().items():
        assert torch.equal(value, fresh.get(name, source.state_dict()[name]))
    untouched = model(10)
    before = {name: value.clone() for name, value in untouched.state_dict().items()}
    with pytest.raises(ArtifactError, match=r"\(1000, .*model.checkpoint_head: fresh"):
        load_given(untouched, tmp_path / "w.pth", head="error")
    assert same(before, untouched.state_dict())


class Trap:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight": torch.ones(3)}, "it lacks .* and [0-9]+ more"),
        ({"state_dict": {}}, "no weights where they are looked for"),
        ([1, 2], "holds a list, not the state_dict"),
        ({"model": Trap()}, "holds more than tensors .*print.*save its state_dict"),
        (b"not a file of torch", "cannot be read|holds more than tensors"),
        (b"", "cannot be read"),
    ],
)
@pytest.mark.parametrize("head", ["fresh", "error"])
def test_a_file_without_the_weights_is_refused(content: Any, message: str, head: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_given(model(), path, head=head)
    assert "\n" not in str(caught.value)


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    broken = model().state_dict()
    broken["conv1.weight" if "conv1.weight" in broken else next(iter(broken))].fill_(float("nan"))
    torch.save(broken, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match="not finite"):
        load_given(model(), tmp_path / "w.pth", head="fresh")


def test_a_folder_gets_an_answer_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a folder; name a file"):
        load_given(model(), tmp_path, head="fresh")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"derived model.*timm train --model local-dir:"):
        load_given(model(), tmp_path, head="fresh")
    with pytest.raises(ArtifactError, match="there is no file"):
        load_given(model(), tmp_path / "lost.pth", head="fresh")


def test_a_recipe_says_what_it_started_from(tmp_path: Path) -> None:
    source, said = model(100), []
    torch.save({"state_dict": prefixed(source.state_dict(), "module.")}, tmp_path / "w.pth")
    asked = recipe.read("smoke/digits_w_gates", [f"model.checkpoint={tmp_path / 'w.pth'}"])
    images = data.load(asked.data, seed=0)
    started = build.model(asked.model, images, said.append)
    assert torch.equal(started.state_dict()["conv1.0.weight"], source.state_dict()["conv1.0.weight"])
    assert len(said) == 1
    assert "under state_dict, without the prefix module." in said[0]
    strict = recipe.read(
        "smoke/digits_w_gates", [f"model.checkpoint={tmp_path / 'w.pth'}", "model.checkpoint_head=error"]
    )
    with pytest.raises(NasPruneError, match=r"fc\.weight"):
        build.model(strict.model, images)


def refusal(net: nn.Module, path: Path) -> str | None:
    """What is said of a file; None where it is believed."""
    try:
        load_given(net, path, head="fresh")
    except ArtifactError as error:
        return str(error)
    return None


@pytest.mark.parametrize("old", [False, True])
def test_no_damaged_file_is_believed_unread(old: bool, tmp_path: Path) -> None:
    net, draw, path, said = nn.Linear(3, 2), random.Random(0), tmp_path / "w.pth", []
    torch.save({"model": net.state_dict()}, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    for _ in range(150):
        mutant = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for _ in range(draw.randrange(4) if mutant else 0):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
        path.write_bytes(mutant)
        said.append(refusal(net, path))
        assert all(bool(value.isfinite().all()) for value in net.state_dict().values())
    messages = [each for each in said if each is not None]
    assert len(messages) > 50
    assert [each for each in messages if len(each) > 1000 or "\n" in each or "w.pth" not in each] == []
