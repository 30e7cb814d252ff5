"""Do fewer stripes take less time? Each form of a stripe convolution beside the convolution that it came from.

python benchmarks/stripes.py [--layer 64:64:56:1 ...] [--runtime eager ...] [--pattern random centred] [--cpu-time]

One line per layer, live share and runtime: the share of the multiply-adds that live stripes need, then the time of each
form as a share of that of the ordinary convolution, all timed in turn in one process; the fastest is marked. The live
stripes are drawn at random, which is the hardest case for rows, columns and boxes, or ``centred``: those far from the
centre of the kernel die first. The form ``dense`` is the ordinary convolution with zeros: how far it is from 1.00 is
how far to trust a line.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nas_prune.costs.timing.conditions import Conditions, Runtime
from nas_prune.costs.timing.measure import time_calls
from nas_prune.costs.timing.runtimes import prepare_all, threads
from nas_prune.ops import StripeConv, stripe_macs
from nas_prune.ops.stripes.forms import forms

LAYERS = ("64:64:56:1", "64:128:56:2", "128:128:28:1", "256:256:14:1", "512:512:7:1")  # of ResNet-18 at 224x224
SHARES = (1.0, 0.5, 0.25, 0.12)


def drawn(filters: int, share: float, pattern: str) -> Tensor:
    """Live stripes (n 3 3), exactly this share of them."""
    worth = torch.rand(filters, 3, 3, generator=torch.Generator().manual_seed(0))
    if pattern == "centred":
        worth -= 0.3 * torch.tensor([[2.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 2.0]])
    live = worth.flatten().topk(round(share * worth.numel())).indices
    return torch.zeros(worth.numel(), dtype=torch.bool).index_fill(0, live, value=True).reshape(worth.shape)


def line(layer: str, share: float, pattern: str, runtime: Runtime, clock: Callable[[], float], seconds: float) -> str:
    """The figures of one layer, as text."""
    channels, filters, size, stride = map(int, layer.split(":"))
    conv, x = nn.Conv2d(channels, filters, 3, stride, 1, bias=False), torch.randn(1, channels, size, size)
    alive = drawn(filters, share, pattern)
    models = {"conv": conv, **{form: StripeConv.of(conv, alive, form) for form in forms}}
    times = time_calls(prepare_all(models, x, Conditions(runtime, 1)), seconds, clock=clock)
    macs = stripe_macs(conv, alive, x.shape) / stripe_macs(conv, torch.ones_like(alive), x.shape)
    shares = {form: times[form].median_ms / times["conv"].median_ms for form in forms}
    fastest = min(shares, key=shares.__getitem__)
    cells = "".join(f"{value:>9.2f}{'*' if form == fastest else ' '}" for form, value in shares.items())
    return f"{layer:<14} {pattern:<8} {runtime:<12} {times['conv'].median_ms:7.2f} {macs:6.0%} {cells}"


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", nargs="+", default=LAYERS, help="channels:filters:size:stride")
    parser.add_argument("--runtime", nargs="+", default=["eager", "onnxruntime"])
    parser.add_argument("--pattern", nargs="+", default=["random"], choices=["random", "centred"])
    parser.add_argument("--share", nargs="+", type=float, default=SHARES)
    parser.add_argument("--seconds", type=float, default=0.3, help="at most for each form")
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor alone: for a busy machine")
    options = parser.parse_args()
    torch.manual_seed(0)
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(
        f"{'layer':<14} {'pattern':<8} {'runtime':<12} {'conv ms':>7} {'MACs':>6} " + "".join(f"{f:>9} " for f in forms)
    )
    with threads(1):
        for runtime in options.runtime:
            for layer in options.layer:
                for pattern in options.pattern:
                    for share in options.share:
                        print(line(layer, share, pattern, runtime, clock, options.seconds), flush=True)


if __name__ == "__main__":
    main()
