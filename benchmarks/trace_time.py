"""How long it takes to trace a model and to derive a smaller one from it, beside one forward pass of the model.

python benchmarks/trace_time.py [MODEL:SIZE ...]
"""

import sys
import time

import timm
import torch

from nas_prune.arch import Arch
from nas_prune.derivation import derive
from nas_prune.expressible import trace

DEFAULT = ("resnet50:224", "convnext_tiny:224", "deit_tiny_patch16_224:224", "mobilenetv3_large_100:224")


def main() -> None:
    """One line per model."""
    print(f"{'model':<26} {'trace s':>8} {'derive s':>9} {'forward s':>10} {'axes':>5} {'units':>6}")
    for spec in sys.argv[1:] or DEFAULT:
        name, _, size = spec.partition(":")
        model = timm.create_model(name).eval()
        image = torch.randn(1, 3, int(size or 224), int(size or 224))
        start = time.perf_counter()
        axes = trace(model, image)
        traced = time.perf_counter()
        derive(model, axes, Arch.random(axes, 0.5, generator=torch.Generator().manual_seed(0)))
        derived = time.perf_counter()
        with torch.inference_mode():
            model(image)
        end = time.perf_counter()
        units = sum(axis.size for axis in axes.free.values())
        times = f"{traced - start:8.2f} {derived - traced:9.2f} {end - derived:10.2f}"
        print(f"{name:<26} {times} {len(axes.free):5d} {units:6d}")


if __name__ == "__main__":
    main()
