"""What is tried on a GPU, part by part: each yields (case, figures) as it finds them, or says why it cannot run.

``tiny`` takes small nets and few steps, and runs on a CPU as well.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import latency
import step_overhead
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn

from nas_prune.base.fingerprint import fingerprint
from nas_prune.costs import Budget, Conditions, Macs, Memory
from nas_prune.costs.timing.conditions import Runtime
from nas_prune.costs.timing.runtimes import missing
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.derivation.verify import verify
from nas_prune.methods.criteria import criteria
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.run import pipeline
from nas_prune.run.calibration.calibrate import calibrate
from nas_prune.run.calibration.settings import LatencySettings
from nas_prune.run.recipe import recipe
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace
from nas_prune.train.descent import Pace, descend, ready

Rows = Iterator[tuple[str, dict[str, Any]]]
GIB = 2**30
FAMILIES = (
    *("resnet18:64", "vgg11:64", "densenet121:64", "mobilenetv3_small_100:64", "efficientnet_b0:64", "regnety_002:64"),
    *("convnext_atto:64", "dla34:64", "deit_tiny_patch16_224:224", "mixer_s32_224:224"),
)
SPECS = {"eager": "resnet50:224", "compile": "resnet18:128", "tensorrt": "resnet18:128"}  # compiling takes its time
SMALL = ("test_resnet:32", "test_vit:160")
MIXED = {
    "float32": ("no", Pace()),
    "bf16": ("bf16", Pace()),
    "fp16": ("fp16", Pace()),
    "bf16, channels last": ("bf16", Pace(channels_last=True)),
    "fp16, channels last": ("fp16", Pace(channels_last=True)),
}
COMPILED = {"bf16, channels last, compile": ("bf16", Pace(compile=True, channels_last=True))}


class Skipped(Exception):
    """Why a part does not run here."""


@dataclass(frozen=True)
class Part:
    """What runs, and the most seconds that it may take."""

    run: Callable[[bool], Rows]
    limit: float


def device(tiny: bool) -> str:
    """Where a part runs. Raises Skipped where there is no GPU, unless nets are tiny."""
    if torch.cuda.is_available():
        return "cuda"
    if tiny:
        return "cpu"
    raise Skipped("torch sees no GPU; --tiny runs this on a CPU")


def wait() -> None:
    """Until the device has done all that it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak() -> dict[str, float]:
    """The most memory since the last call that tensors took on the GPU."""
    if not torch.cuda.is_available():
        return {}
    most = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return {"peak GiB": most}


def environment(_tiny: bool) -> Rows:
    """The machine, and what is installed."""
    query = "name,driver_version,memory.total,compute_cap"
    if shutil.which("nvidia-smi"):
        words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        found = subprocess.run(words, capture_output=True, text=True, timeout=20)
        yield "nvidia-smi", {"says": (found.stdout or found.stderr).strip()}
    else:
        yield "nvidia-smi", {"says": "not installed"}
    yield "machine", {**fingerprint(), "CUDA of torch": str(torch.version.cuda), "release": platform.release()}
    yield "runtimes", {name: missing(name) or "yes" for name in ("eager", "compile", "tensorrt")}
    yield "GPUs", {"count": torch.cuda.device_count(), "triton": "yes" if find_spec("triton") else "no"}


def ran(name: str, keys: dict[str, object], folder: Path) -> dict[str, Any]:
    """Figures of a recipe's run."""
    changes = [f"--{key}={value}" for key, value in {"track.wandb": "disabled", **keys}.items()]
    start = time.monotonic()
    results = pipeline.run(recipe.read(name, changes), folder, until="evaluate")
    seconds = time.monotonic() - start
    tuned = results["finetuned"]
    return {
        "top-1 dense": results["dense"]["top1"],
        "top-1 fine-tuned": tuned["top1"],
        "measured share": results["measured_share"],
        "MACs": tuned["macs"] / results["dense"]["macs"],
        "max error, float64": results["max_abs_error"],
        "s": seconds,
        **peak(),
    }


def quickstart(tiny: bool) -> Rows:
    """The quickstart, on the GPU; a larger batch is timed, as a small one keeps a GPU waiting for Python."""
    keys: dict[str, object] = {"device": device(tiny)}
    if not tiny:
        keys |= {"latency.batch_size": 4096, "latency.samples": 24, "latency.seconds": 0.1, "budget.target": "0.7x"}
    with tempfile.TemporaryDirectory() as folder:
        yield "run", ran("smoke/quickstart" if tiny else "quickstart", keys, Path(folder) / "run")


def search_in(precision: str) -> Callable[[bool], Rows]:
    """A whole search of ResNet-50 at 224 pixels, on generated images."""

    def search(tiny: bool) -> Rows:
        where = device(tiny)
        if precision == "fp16" and where == "cpu":
            raise Skipped("only a GPU trains in fp16")
        keys: dict[str, object] = {"device": where, "precision": precision, "channels_last": True}
        if not tiny:
            keys |= {"model.name": "resnet50", "data.image_size": 224, "latency.batch_size": 64}
            keys |= {"budget.target": "0.7x", "latency.seconds": 0.1}
        with tempfile.TemporaryDirectory() as folder:
            yield f"{precision}, channels last", ran("smoke/digits_w_gates", keys, Path(folder) / "run")

    return search


def training(tiny: bool) -> Rows:
    """Milliseconds of a training step of ResNet-50 with W-Gates, in each precision and layout."""
    for case, (precision, pace) in MIXED.items():
        yield f"gated, {case}", _paced(tiny, precision, pace, gate=True)
    yield "plain, bf16, channels last", _paced(tiny, "bf16", Pace(channels_last=True), gate=False)


def compiled(tiny: bool) -> Rows:
    """The same, compiled."""
    lacking = missing("compile")
    if lacking is not None:
        raise Skipped(lacking)
    _quick_compiler(tiny)
    for case, (precision, pace) in COMPILED.items():
        for gate in (True, False):
            yield f"{'gated' if gate else 'plain'}, {case}", _paced(tiny, precision, pace, gate=gate)


def _quick_compiler(tiny: bool) -> None:
    """On tiny nets torch.compile generates no code, which takes minutes on a CPU; all else is as it will be."""
    if tiny:
        torch.compile = partial(torch.compile, backend="aot_eager")  # of this process alone


def _paced(tiny: bool, precision: str, pace: Pace, *, gate: bool) -> dict[str, Any]:
    """Figures of some steps, the first ones apart."""
    where = device(tiny)
    if precision == "fp16" and where == "cpu":
        return {"skipped": "only a GPU trains in fp16"}
    name, size, batch, steps = ("test_resnet", 32, 8, 2) if tiny else ("resnet50", 224, 64, 20)
    accelerator = _accelerator(where, precision)
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=10).to(where)
    images, labels = torch.randn(batch, 3, size, size, device=where), torch.arange(batch, device=where) % 10
    penalty: nn.Module | None = None
    if gate:
        space = SearchSpace.read("channels", trace(model, images[:2]))
        model = GatedModel(model, space, "weight").to(where)
        penalty = BudgetPenalty(Budget("0.5x", Macs(space.axes)))
    trained, optimizer = ready(accelerator, model, pace), torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    times, losses = [], []
    peak()
    for _ in range(3 + steps):
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(trained(images), labels)
        loss = loss if penalty is None else loss + penalty(model)
        descend(accelerator, trained, loss, [optimizer], 1.0)
        wait()
        times.append(time.perf_counter() - start)
        losses.append(float(loss.detach()))
    step = median(times[3:])
    figures = {"ms a step": 1e3 * step, "images a s": batch / step, "first step s": times[0]}
    return figures | {"first loss": losses[0], "last loss": losses[-1]} | peak()


def _accelerator(where: str, precision: str) -> Accelerator:
    """One of this precision; there is one state of all accelerators of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    return Accelerator(cpu=where == "cpu", mixed_precision=precision)


def gates(tiny: bool) -> Rows:
    """What gates cost in a step, relative to a plain one."""
    sizes = ("test_resnet", 32, 4, 2) if tiny else ("resnet50", 224, 32, 10)
    seconds = step_overhead.compared(*sizes, device(tiny))
    for name, value in seconds.items():
        yield name, {"ms a step": 1e3 * value, "x of plain": value / seconds["plain"]}


def latencies(runtime: Runtime) -> Callable[[bool], Rows]:
    """Calibrate, then meet twenty targets as measured, in this runtime."""

    def run(tiny: bool) -> Rows:
        where, lacking = device(tiny), missing(runtime)
        if lacking is not None:
            raise Skipped(lacking)
        _quick_compiler(tiny)
        spec, batch = (
            ("test_resnet:32", 8) if tiny else ("resnet50:224", 64) if runtime == "eager" else ("resnet18:128", 64)
        )
        asked = {"runtime": runtime, "samples": 12, "seconds": 0.02 if tiny else 0.1, "batch_size": batch}
        settings = LatencySettings.model_validate({**asked, "predictor": "additive" if tiny else "best"})
        model, space, images = latency.prepared(spec, batch, where)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            calibration = calibrate(model, space, images, settings, Path(folder), about={"name": spec, "kwargs": {}})
        least = calibration.smallest_ms / calibration.dense_ms
        figures: dict[str, Any] = {"MAPE": calibration.error.mape, "Kendall": calibration.error.kendall}
        figures |= {"noise": calibration.noise, "dense ms": calibration.dense_ms, "smallest": least}
        yield f"{spec}, calibration", figures | {"s": time.monotonic() - start}
        low = max(0.2, 1.05 * least)
        if low >= 0.95:
            raise Skipped(f"the smallest network takes {least:.2f}x of the dense one's time: there is nothing to meet")
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(2 if tiny else 20, generator=generator).tolist()
        how, kept = Conditions(runtime), 0
        for tried, part in enumerate(drawn, 1):
            wanted = low + (0.95 - low) * part
            arch = latency.met(model, space, images, calibration, how, wanted)
            small = derive(model, space.axes, arch or Arch())
            share = latency.share(model, small, images, how, calibration.calm_ms)
            kept += share <= wanted * (1 + max(0.03, calibration.noise))
            yield f"{spec}, target {wanted:.3f}x", {"measured": share, "met": f"{kept} of {tried}"}

    return run


def families(tiny: bool) -> Rows:
    """Trace, derive and verify on the device; gated against derived there, in float32 without TF32."""
    where = device(tiny)
    torch.backends.cudnn.allow_tf32 = False
    for spec in SMALL if tiny else FAMILIES:
        name, _, size = spec.partition(":")
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10).eval().to(where)
        images = torch.randn(2, 3, int(size), int(size), device=where)
        start = time.monotonic()
        axes = trace(model, images)
        traced = time.monotonic() - start
        arch = Arch.random(axes, 0.5, generator=torch.Generator().manual_seed(0))
        start = time.monotonic()
        small = derive(model, axes, arch)
        wait()
        derived = time.monotonic() - start
        proof = verify(model, axes, arch, images)
        with torch.no_grad():
            expected, got = small(images), GatedModel(model, axes).to(where).eval().fixed(arch)(images)
        off = float((got - expected).abs().max() / expected.abs().max())
        where_is = {str(each.device.type) for each in small.state_dict().values()}
        figures = {"trace s": traced, "derive s": derived, "verify s": time.monotonic() - start - derived}
        figures |= {"float32 on the device": off, "float64": proof.max_rel_error, "device": ", ".join(where_is)}
        yield name, figures


def scores(tiny: bool) -> Rows:
    """Every criterion on the device and on the CPU: seconds, and whether they agree."""
    name, size, batch = ("test_resnet", 32, 4) if tiny else ("resnet18", 64, 64)
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=10).eval()
    images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % 10
    space = SearchSpace.read("channels", trace(plain, images[:2]))
    torch.backends.cudnn.allow_tf32 = False
    for criterion, score in criteria.items():
        found: list[Tensor] = []
        seconds = {}
        for where in (device(tiny), "cpu"):
            gated = GatedModel(plain.to(where), space).to(where)
            start = time.monotonic()
            values = score(gated, [(images.to(where), labels.to(where))])
            wait()
            seconds[f"s on {where}"] = time.monotonic() - start
            found.append(torch.cat([each.double().cpu() for each in values.values()]))
            plain = gated.plain()
        yield criterion, {**seconds, "Spearman with the CPU's": float(spearmanr(*found).statistic)}


def resume(tiny: bool) -> Rows:
    """A run that is killed and goes on, against one that is not, and that against its own repetition."""
    keys = ["--budget.cost=macs", f"--device={device(tiny)}", "--track.wandb=disabled", "--search.joint=4"]
    words = [sys.executable, "-m", "nas_prune", "run", "smoke/digits_w_gates", *keys, "--out"]
    with tempfile.TemporaryDirectory() as parent:
        folders = {name: Path(parent) / name for name in ("whole", "repeated", "killed and resumed")}
        begun = {name: subprocess.Popen([*words, str(folder)]) for name, folder in folders.items()}
        killed, process = list(begun.items())[-1]
        while process.poll() is None and not list(folders[killed].glob("checkpoints/search-joint*")):
            time.sleep(0.05)
        process.kill()
        died = process.wait()
        begun[killed] = subprocess.Popen([*words, str(folders[killed])])
        codes = {name: each.wait() for name, each in begun.items()}
        if any(codes.values()):
            raise RuntimeError(f"exit codes {codes}; the log says why")
        yield "repeated", _compared(folders["whole"], folders["repeated"])
        yield killed, {"killed by signal": -died} | _compared(folders["whole"], folders[killed])


def _compared(one: Path, other: Path) -> dict[str, Any]:
    """How far two runs' fine-tuned artefacts are apart."""
    paths = [next((folder / "finetuned").glob("*.safetensors")) for folder in (one, other)]
    same = paths[0].read_bytes() == paths[1].read_bytes()
    tensors = [load_file(path) for path in paths]
    if {name: each.shape for name, each in tensors[0].items()} != {n: each.shape for n, each in tensors[1].items()}:
        return {"same bytes": "no", "architecture": "another"}
    off = max(float((tensors[0][name].double() - each.double()).abs().max()) for name, each in tensors[1].items())
    return {"same bytes": "yes" if same else "no", "largest difference": off}


def processes(tiny: bool) -> Rows:
    """As many processes as there are GPUs, two at most, by NCCL; on a CPU two by Gloo."""
    where = device(tiny)
    number = min(2, torch.cuda.device_count()) if where == "cuda" else 2
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}", "-m", "nas_prune", "run"]
    keys = ["smoke/digits_w_gates", f"--device={where}", "--track.wandb=disabled", "--budget.cost=macs"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        plain = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if where == "cpu" else {})}
        done = subprocess.run([*words, *keys, "--out", f"{folder}/run"], env=plain, capture_output=True, text=True)
        print(done.stdout, done.stderr, flush=True)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {' '.join(done.stderr.split()[-40:])}")
        backend = "NCCL" if where == "cuda" and number > 1 else "Gloo" if number > 1 else "none, one GPU"
        yield f"{number} processes", {"s": time.monotonic() - start, "backend": backend}


def memory(tiny: bool) -> Rows:
    """Peak memory of a forward pass: predicted from the graph, and measured."""
    where = device(tiny)
    name, size, batch = ("test_resnet", 32, 2) if tiny else ("resnet50", 224, 64)
    model = timm.create_model(name).eval().to(where)
    images = torch.randn(batch, 3, size, size, device=where)
    axes = trace(model, images)
    cost = Memory(axes)
    for keep in (1.0, 0.5):
        arch = Arch.random(axes, keep, generator=torch.Generator().manual_seed(0))
        small = derive(model, axes, arch)
        others = torch.cuda.memory_allocated() if where == "cuda" else 0
        others -= sum(each.numel() * each.element_size() for each in (*small.state_dict().values(), images))
        peak()
        with torch.no_grad():
            small(images)
        wait()
        measured = {key: value - others / GIB for key, value in peak().items()}
        yield (
            f"{name}, batch {batch}, keep {keep}",
            {"predicted GiB": float(cost(arch.sizes(axes.free))) / GIB, **measured},
        )


PARTS = {
    "environment": Part(environment, 40),
    "training": Part(training, 100),
    "gates": Part(gates, 60),
    "families": Part(families, 100),
    "scores": Part(scores, 60),
    "search-bf16": Part(search_in("bf16"), 90),
    "search-fp16": Part(search_in("fp16"), 90),
    "quickstart": Part(quickstart, 100),
    "resume": Part(resume, 120),
    "processes": Part(processes, 60),
    "memory": Part(memory, 40),
    "latency-eager": Part(latencies("eager"), 100),
    "compiled": Part(compiled, 120),
    "latency-compile": Part(latencies("compile"), 120),
    "latency-tensorrt": Part(latencies("tensorrt"), 90),
}
