"""What precision and memory layout make of a training step on a CPU: the median of paired ratios, interleaved.

python benchmarks/pace.py [--model NAME] [--channels 32 64 128 256] [--batch 128] [--size 32] [--rounds 15]

A step is forward, loss, backward and SGD as recipes do it with ``precision`` and ``channels_last``. Steps go plain, one
way, plain, the next way, ...; each is divided by the mean of the plain ones before and after it. On a busy machine look
at the CPU time: it is of this process alone. It takes about half a minute.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial

import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from step_overhead import compared
from torch import Tensor, nn

from nas_prune.train.descent import Pace, descend, ready

WAYS = {
    "plain": ("no", Pace()),
    "channels last": ("no", Pace(channels_last=True)),
    "bf16": ("bf16", Pace()),
    "bf16, channels last": ("bf16", Pace(channels_last=True)),
}


def stepper(model: nn.Module, images: Tensor, labels: Tensor, way: str) -> Callable[[], None]:
    """One training step, as a recipe asks for it."""
    precision, pace = WAYS[way]
    AcceleratorState._reset_state(True)  # one process has one precision
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trained = ready(accelerator, model.train(), pace)
    return partial(_step, accelerator, trained, optimizer, images, labels)


def _step(
    accelerator: Accelerator, trained: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    descend(accelerator, trained, nn.functional.cross_entropy(trained(images), labels), [optimizer], None)


def main() -> None:
    """Measure, and print one line per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--channels", type=int, nargs="+", help="of the stages of a ResNet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plain = timm.create_model(options.model, **({"channels": options.channels} if options.channels else {}))
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.randint(plain.num_classes, (options.batch,))
    steps = {way: stepper(copy.deepcopy(plain), images, labels, way) for way in WAYS}
    seconds, ratios = compared(steps, options.rounds)
    print(f"{options.model}, {options.batch} images of {options.size} px: {1e3 * seconds:.0f} ms a plain step")
    for way, clocks in ratios.items():
        wall, processor = map(statistics.median, clocks)
        low, _, high = statistics.quantiles(clocks[1], n=4)
        print(f"{way:>20}: {wall:.2f}x on the wall, {processor:.2f}x CPU time ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
