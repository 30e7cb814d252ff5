"""A calibration as one file that can be shared: safetensors, with what it is true of as JSON in its header.

The tensors are the predictor's state, the measured operators, and the timed sub-networks (sizes, share of the dense
model's time). The facts say of which model, runtime, device and versions they are true; a file that is not of here is
refused, with the difference named, unless its user insists.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from os.path import isfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nas_prune.base.errors import CalibrationError, one_line
from nas_prune.base.files import json_text
from nas_prune.base.files import tensors as tensor_file
from nas_prune.base.files.cache import cache_folder
from nas_prune.base.files.documents import Document, validated
from nas_prune.base.files.whole import atomic_write, finite
from nas_prune.run.calibration.facts import Facts, disagreement

FORMAT = "nas_prune.calibration/7"
ENTRY = "calibration"  # what the header has beside the tensors
DECISIVE = ("processor", "cores", "accelerator", "system")  # the rest of a fingerprint may differ a little


class Entry(Document):
    """What the header says: the format, the facts as text, and the sum of all."""

    format: Literal["nas_prune.calibration/7"]
    facts: str
    sha256: str


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all. The order of ``facts["axes"]`` is that of the columns of ``sizes``."""
    tidy = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, sealed(tidy, json.dumps(finite(facts), allow_nan=False)))


def sealed(tensors: Mapping[str, Tensor], facts: str) -> bytes:
    """The file that holds these tensors and facts. Of several entries in a header, safetensors would choose the order
    anew in every process, and the same calibration would not be the same bytes."""
    entry = json.dumps({"format": FORMAT, "facts": facts, "sha256": sum_of(tensors, facts)})
    return tensor_file.content(tensors, {ENTRY: entry})


def read(
    path: Path, advice: str = "make it again with `nas-prune calibrate`"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file. Raises CalibrationError, with the advice, if it is not a whole calibration."""
    try:
        text, expected = _described(path)
        tensors = tensor_file.read(path, CalibrationError)
        if sum_of(tensors, text) != expected:
            raise CalibrationError(f"the calibration {path} is damaged or was changed (its SHA-256 does not match)")
        facts = _facts(path, text)
        validated(facts, Facts, f"the facts of {path}", CalibrationError, "it is not a calibration")
        problem = disagreement(tensors, facts["axes"])
        if problem:
            raise CalibrationError(f"{path} is not a calibration: {problem}")
    except CalibrationError as error:
        raise CalibrationError(f"{one_line(str(error), 500)}; {advice}") from error
    return tensors, facts


def _facts(path: Path, text: str) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json_text.parse(text.encode())
    except ValueError as error:
        raise CalibrationError(f"the facts of {path} are not valid JSON ({one_line(str(error))})") from error
    return facts


def _described(path: Path) -> tuple[str, str]:
    """The facts of a file as text, and its sum."""
    if not isfile(path):
        raise CalibrationError(f"there is no calibration {one_line(str(path))}")
    metadata = tensor_file.metadata(path, CalibrationError)
    if ENTRY not in metadata:
        found = one_line(metadata.get("format", "safetensors file"), 40)
        raise CalibrationError(f"{path} is a {found}, not a {FORMAT}")
    try:
        entry = validated(
            json_text.parse(metadata[ENTRY].encode()), Entry, str(path), CalibrationError, "it is no calibration"
        )
    except ValueError as error:
        raise CalibrationError(f"the header of {path} is not valid JSON ({one_line(str(error))})") from error
    return entry.facts, entry.sha256


def sum_of(tensors: Mapping[str, Tensor], facts: str) -> str:
    """The SHA-256 of everything that a calibration says, however its file is laid out."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def decisive(facts: Mapping[str, Any], runtime: str | None = None) -> dict[str, Any]:
    """Those of the facts that a latency depends on, by name: of the device what computes, and the version of what runs
    the model (``runtime``, by default that of the facts) without its last part."""
    engine = runtime or facts["conditions"]["runtime"]
    package = engine if engine in ("onnxruntime", "openvino") else "torch"
    known = {key: facts[key] for key in ("model", "replaced", "axes", "widths", "image", "batch_size", "conditions")}
    device = {key: facts["device"].get(key) for key in DECISIVE}
    return {**known, **device, package: _minor(facts["device"].get(package))}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """One text for each fact that a latency depends on and that is another in a calibration than here."""
    before = decisive(there, here["conditions"]["runtime"])
    for key, now in decisive(here).items():
        if before[key] != now:
            yield f"{key}: {_short(before[key], now)}"


def require_fit(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise CalibrationError, naming the differences, if a calibration is not of this model, runtime and device."""
    found = list(differences(there, here))
    if found:
        raise CalibrationError(
            f"the calibration {path} is not of here ({one_line('; '.join(found), 500)}); make one here with "
            f"`nas-prune calibrate`, or set latency.trust_calibration=true to use it all the same"
        )


def key_of(here: Mapping[str, Any]) -> str:
    """What tells these facts from others."""
    return hashlib.sha256(json.dumps([FORMAT, here], sort_keys=True).encode()).hexdigest()[:20]


def cached(here: Mapping[str, Any]) -> Path:
    """Where a calibration with these facts is kept for the next run; $NAS_PRUNE_CACHE, or the user's cache folder."""
    return cache_folder() / "calibrations" / f"{key_of(here)}.safetensors"


def _short(before: Any, now: Any) -> str:
    """Two facts; of two mappings only where they differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        shown = [f"{key} is {before.get(key, 'absent')} there, {now.get(key, 'absent')} here" for key in keys[:3]]
        return ", ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return f"{before} there, {now} here"


def _minor(version: str | None) -> str | None:
    """The version without its last part: patch releases keep their kernels."""
    return None if version is None else ".".join(version.split("+")[0].split(".")[:2])
