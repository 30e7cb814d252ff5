"""One's own weights: a file of them, as people have them, becomes the start of a model.

Read are safetensors, and what ``torch.save`` writes, of which nothing but tensors and plain data is believed
(``weights_only``). A training checkpoint holds more than weights: they are found under the keys that timm, DINO, YOLO
and their kin use, averaged ones first. Wrappers leave prefixes on names (DataParallel, torch.compile, Lightning).
"""

import argparse
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nas_prune.base.errors import ArtifactError, first_line, one_line, shown
from nas_prune.base.files import tensors as tensor_file

KEYS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "module", "network")
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel and DDP, torch.compile, Lightning and EMA
SUFFIXES = (".safetensors", ".pth", ".pt")
DEPTH = 3  # of weights in a checkpoint: checkpoint["ema"]["state_dict"]


def load_given(model: nn.Module, path: Path, *, head: Literal["fresh", "error"]) -> str:
    """Load a file of weights in place; returns in one line what was found and what was left as it was.

    ``head``: what to do about a classifier of another size: leave its ``fresh`` values, or raise. Raises ArtifactError
    for a file that does not hold this model's weights; the model is as it was then.
    """
    found, where = _tensors(_read(path), path)
    expected = model.state_dict()
    weights, cut = _unwrapped(found, expected)
    left = _other_head(model, weights, expected) if head == "fresh" else []
    used = {name: value for name, value in weights.items() if name not in left}
    wanted = {name: value for name, value in expected.items() if name not in left}
    problem = _misfit(wanted, used)
    if problem:
        advice = "name a file of this model, or set model.name and model.kwargs to what it was trained with"
        strict = "; model.checkpoint_head: fresh leaves a head of another size as it is" if head == "error" else ""
        raise ArtifactError(f"model.checkpoint {path} does not hold this model's weights: {problem}; {advice}{strict}")
    model.load_state_dict(used, strict=False)
    under = "".join([f", under {'.'.join(where)}" if where else "", f", without the prefix {cut}" if cut else ""])
    how = "of another size" if any(name in weights for name in left) else "missing"
    fresh = f"; the head there is {how}, so {', '.join(left)} keep their fresh values" if left else ""
    return f"model.checkpoint: {len(used)} tensors from {path}{under}{fresh}"


def _read(path: Path) -> Mapping[str, Any]:
    """What is in the file, plain data and tensors."""
    if path.is_dir():
        derived = (path / "config.json").is_file()
        what = "the folder of a derived model, which no search begins with" if derived else "a folder"
        advice = f"; to train it on: nas-prune timm train --model local-dir:{path}" if derived else ""
        raise ArtifactError(f"model.checkpoint {path} is {what}; name a file, {' or '.join(SUFFIXES)}{advice}")
    if not path.is_file():
        raise ArtifactError(f"model.checkpoint: there is no file {one_line(str(path))}; correct the path")
    if path.suffix == ".safetensors":
        return tensor_file.read(path, ArtifactError)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a training script
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"model.checkpoint {path} holds more than tensors and plain data, and loading that would run it "
            f"({_refused(path) or first_line(error)}); save its state_dict() alone, best with safetensors"
        ) from error
    except Exception as error:  # of a file that is damaged, torch raises whatever comes of it
        raise ArtifactError(
            f"model.checkpoint {path} cannot be read ({first_line(error) or type(error).__name__}); "
            f"name a file of weights, {' or '.join(SUFFIXES)}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ArtifactError(f"model.checkpoint {path} holds a {type(loaded).__name__}, not the state_dict of a model")
    return loaded


def _refused(path: Path) -> str:
    """The classes in a file for which torch refuses it."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # of the older format, or of a damaged file
        return first_line(error)
    return ", ".join(sorted(found)[:3])


def _tensors(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name -> tensor, and the keys under which they were found."""
    where: tuple[str, ...] = ()
    while len(where) <= DEPTH:
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        key = next((key for key in KEYS if isinstance(content.get(key), Mapping) and content[key]), None)
        if key is None and tensors:
            return tensors, where
        if key is None:
            break
        content, where = content[key], (*where, key)
    names = ", ".join(shown(name, 30) for name in list(content)[:5]) or "nothing"
    raise ArtifactError(
        f"model.checkpoint {path} has no weights where they are looked for ({', '.join(KEYS)}), but {names}; "
        "save the state_dict() of the model alone"
    )


def _unwrapped(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the names of the model, and the prefix that was cut off their names."""
    names, cut = dict(found), ""
    while names and not names.keys() & expected.keys():
        prefix = next((each for each in PREFIXES if all(name.startswith(each) for name in names)), None)
        inside = [each for each in PREFIXES if any(name.startswith(each) for name in names)]
        if prefix is None and inside:  # beside the model there is more: a loss, a metric
            prefix = inside[0]
        if prefix is None:
            return dict(found), ""
        names = {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
        cut += prefix
    return (names, cut) if names else (dict(found), "")


def _other_head(model: Any, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """The tensors of the classifier, if the file has it in another size or not at all."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = [names] if isinstance(names, str) else list(names)
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    heads += [name for name, module in model.named_modules() if module is classifier and name]
    mine = [name for name in expected if any(name.startswith(f"{head}.") for head in dict.fromkeys(heads))]
    same = all(name in weights and weights[name].shape == expected[name].shape for name in mine)
    return [] if same else mine


def _misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps tensors from being the model's, in a few words; empty where nothing does."""
    lost, odd = _named(expected.keys() - found.keys()), _named(found.keys() - expected.keys())
    if lost or odd:
        return " and ".join([*([f"it lacks {lost}"] if lost else []), *([f"the model has no {odd}"] if odd else [])])
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized:
            return f"{shown(name)} is no ordinary tensor"
        if value.shape != expected[name].shape:
            return f"{name} is {tuple(value.shape)} there, {tuple(expected[name].shape)} in the model"
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"{name} holds numbers that are not finite"
    return ""


def _named(names: Sequence[str] | set[str]) -> str:
    first = ", ".join(one_line(name) for name in sorted(names)[:3])
    return f"{first} and {len(names) - 3} more" if len(names) > 3 else first
