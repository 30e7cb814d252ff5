"""How long it takes to trace a model and to derive a smaller one from it; beside Torch-Pruning, where it is installed.

python benchmarks/trace_time.py [MODEL:SIZE ...]

Both cut the same share of the channels of the same model in the same run. Torch-Pruning's time is that of building its
dependency graph and pruning once; its own failures are shown as such. ``pip install torch-pruning`` for the comparison.
"""

import copy
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median

import timm
import torch
from torch import Tensor, nn

from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.tracing.arch import Arch

DEFAULT = (
    *("resnet50:224", "convnext_tiny:224", "mobilenetv3_large_100:224", "densenet121:224", "regnety_008:224"),
    *("efficientnet_b0:224", "vgg16:224", "inception_v3:299", "dla34:224", "deit_tiny_patch16_224:224"),
)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(model: nn.Module, image: Tensor) -> tuple[float, float, int]:
    """Seconds to trace and to derive, and the number of free axes."""
    found = []
    traced = seconds(lambda: found.append(trace(model, image)))
    axes = found[0]
    arch = Arch.random(axes, 0.5, generator=torch.Generator().manual_seed(0))
    return traced, seconds(lambda: derive(model, axes, arch)), len(axes.free)


def theirs(model: nn.Module, image: Tensor) -> float | None:
    """Seconds that Torch-Pruning takes to build and prune; None if it is not installed or fails."""
    if find_spec("torch_pruning") is None:
        return None
    import torch_pruning

    model = copy.deepcopy(model)
    ignored = [model.get_classifier()] if isinstance(model.get_classifier(), nn.Module) else []

    def prune() -> None:
        importance = torch_pruning.importance.MagnitudeImportance()
        torch_pruning.pruner.MetaPruner(
            model, image, importance=importance, pruning_ratio=0.5, ignored_layers=ignored
        ).step()
        with torch.no_grad():
            model(image)

    try:
        return seconds(prune)
    except Exception as error:
        print(f"  Torch-Pruning fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
        return None


def main() -> None:
    """One line per model."""
    print(f"{'model':<26} {'trace s':>8} {'derive s':>9} {'Torch-Pruning s':>16} {'ratio':>6} {'axes':>5}")
    ratios = []
    for spec in sys.argv[1:] or DEFAULT:
        name, _, size = spec.partition(":")
        model = timm.create_model(name).eval()
        image = torch.randn(1, 3, int(size or 224), int(size or 224))
        other = theirs(model, image)
        traced, derived, axes = ours(model, image)
        ratio = None if other is None else (traced + derived) / other
        ratios += [] if ratio is None else [ratio]
        shown = f"{'-':>16} {'-':>6}" if other is None or ratio is None else f"{other:16.2f} {ratio:6.2f}"
        print(f"{name:<26} {traced:8.2f} {derived:9.2f} {shown} {axes:5d}", flush=True)
    if ratios:
        print(f"median ratio of our time to theirs, {len(ratios)} models: {median(ratios):.2f}")


if __name__ == "__main__":
    main()
