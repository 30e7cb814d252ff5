"""Laws of a training step: faster paces and fewer bits change no more than rounding, and leave the model as it was."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn
from zoo import BACKBONES, User, build, few, traced

from nas_prune.base.errors import RecipeError
from nas_prune.costs import Budget, Conditions, Macs
from nas_prune.costs.timing.runtimes import _copied, missing
from nas_prune.derivation.derive import derive
from nas_prune.derivation.trace import trace
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates import gates
from nas_prune.methods.penalties.budget import BudgetPenalty
from nas_prune.run import build as parts
from nas_prune.run import pipeline
from nas_prune.run.recipe import recipe
from nas_prune.tracing.arch import Arch
from nas_prune.train.descent import Pace, descend, ready


class Small(User):
    """A convolution, a norm over an axis, a sum: what a gate can meet, and quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(self.norm(x + self.second(x)).mean((2, 3)))


@pytest.fixture
def bfloat16():
    """An accelerator of mixed precision; there is one state of all accelerators."""
    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(True)


def stepped(gated: GatedModel, call: object, images: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss with a penalty, and the gradients of all parameters."""
    penalty = BudgetPenalty(Budget("0.5x", Macs(gated.axes)))
    gated.zero_grad()
    torch.manual_seed(0)
    loss = nn.functional.cross_entropy(call(images), torch.arange(len(images)) % 4) + penalty(gated)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in gated.named_parameters() if p.grad is not None}


def same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]], tolerance: float) -> bool:
    """Equal to rounding, relative to the largest gradient."""
    largest = max(float(gradient.abs().max()) for gradient in one[1].values())
    apart = max(float((one[1][name] - other[1][name]).abs().max()) for name in one[1] | other[1])
    return abs(one[0] - other[0]) <= tolerance * abs(one[0]) and apart <= tolerance * largest


def compiled(gated: GatedModel) -> tuple[object, list[object]]:
    """The model compiled, as one graph or not at all, and its graphs as they come about."""
    torch.compiler.reset()
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    return torch.compile(gated, backend=backend, fullgraph=True), graphs


@pytest.mark.parametrize("gate", few(gates, ("weight",)))
def test_gates_are_compiled_whole_and_once(gate: str) -> None:
    model = Small()
    images = model.example()
    gated = GatedModel(model, trace(model, images), gate).train()
    call, graphs = compiled(gated)
    for _ in range(2):
        assert same(stepped(gated, gated, images), stepped(gated, call, images), 1e-5)
    assert len(graphs) == 1, "the second pass is the first one again"


def test_a_fixed_architecture_is_compiled_whole_and_once() -> None:
    model = Small()
    images = model.example()
    gated = GatedModel(model, trace(model, images), "weight").train()
    call, graphs = compiled(gated)
    with gated.fixed(Arch.random(gated.axes, generator=torch.Generator().manual_seed(0))):
        for _ in range(2):
            assert same(stepped(gated, gated, images), stepped(gated, call, images), 1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_inductor_computes_the_same_gradients() -> None:
    torch.compiler.reset()
    assert missing("compile") is None
    model = Small()
    images = model.example()
    gated = GatedModel(model, trace(model, images), "weight", options={"init": 0.0}).train()
    assert all(0 < float(keep.detach().mean()) < 1 for keep in gated.gate_values().values() if len(keep) > 1)
    assert same(stepped(gated, gated, images), stepped(gated, torch.compile(gated), images), 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_a_compiled_run_ends_like_one_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # generates no code: seconds
    found = []
    for key in ("compile=false", "compile=true"):
        tokens = [f"--{key}", "--budget.cost=macs", "--search.max_steps=1", "--dense.max_steps=1"]
        found.append((pipeline.run(recipe.read("smoke/digits_w_gates", tokens), tmp_path / key), tmp_path / key))
    (plain, one), (fast, other) = found
    assert json.loads((one / "arch.json").read_text()) == json.loads((other / "arch.json").read_text())
    assert plain["finetuned"]["macs"] == fast["finetuned"]["macs"]
    tensors = [load_file(next((folder / "derived").glob("*.safetensors"))) for folder in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    assert max(float((tensors[0][key] - tensors[1][key]).abs().max()) for key in tensors[0]) < 1e-3


def test_a_model_that_trained_in_mixed_precision_computes_as_before(bfloat16: Accelerator) -> None:
    model, images = build("test_resnet"), torch.randn(2, 3, 32, 32)
    axes = trace(model, images)
    expected = model(images).detach()
    trained = ready(bfloat16, model, Pace())
    assert trained(images).dtype == torch.float32
    assert float((trained(images).detach() - expected).abs().max()) > 1e-6, "it trains in bfloat16"
    assert torch.equal(model(images), expected)
    assert torch.equal(derive(model, axes, Arch())(images), expected)


def test_gates_decide_in_full_precision(bfloat16: Accelerator) -> None:
    model, images = Small(), Small().example()
    gated = GatedModel(model, trace(model, images), "weight")
    ready(bfloat16, gated, Pace())(images)
    assert all(torch.equal(keep, gated._board.keep[name]) for name, keep in gated.gate_values().items())
    assert all(keep.dtype == torch.float32 for keep in gated._board.keep.values())


@pytest.mark.parametrize("name", few(BACKBONES))
def test_every_gated_backbone_trains_in_mixed_precision_as_in_full(bfloat16: Accelerator, name: str) -> None:
    net, images = traced(name), traced(name).images
    losses = []
    for mixed in (False, True):
        gated = GatedModel(net.fresh(), net.axes, "sigmoid").eval()  # norms of two images would make much of rounding
        trained = ready(bfloat16, gated, Pace()) if mixed else gated
        loss = trained(images).float().square().mean()
        bfloat16.backward(loss)
        assert all(bool(p.grad.isfinite().all()) for p in gated.gates.parameters() if p.grad is not None)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_optimizers_share_one_scale_of_the_loss(clip: float | None) -> None:
    accelerator, ends = Accelerator(cpu=True), []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
        accelerator.scaler = scaler
        trained = ready(accelerator, model, Pace())
        for step in range(4):
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            descend(accelerator, trained, trained(inputs).square().sum(), optimizers, clip)
        ends.append([p.detach().clone() for p in model.parameters()])
        assert scaler is None or scaler.get_scale() == 4.0 * 2**4
    accelerator.scaler = None
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True)), "a power of two leaves no trace"


def test_a_step_that_overflows_is_left_out_by_all_that_overflowed() -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model, idle = nn.Linear(4, 2), nn.Linear(1, 1)
    before, optimizers = (
        copy.deepcopy(model.state_dict()),
        [torch.optim.SGD(m.parameters(), 0.1) for m in (model, idle)],
    )
    descend(accelerator, model, (model(torch.ones(1, 4)) * torch.inf).sum(), optimizers, 1.0)
    assert accelerator.scaler.get_scale() == 2.0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    accelerator.scaler = None


def test_channels_last_trains_alike_and_is_not_timed_by_accident() -> None:
    model, images = build("test_resnet"), torch.randn(2, 3, 32, 32)
    expected = copy.deepcopy(model)(images)
    trained = ready(Accelerator(cpu=True), model, Pace(channels_last=True))
    assert torch.allclose(trained(images), expected, atol=1e-5)
    weight = next(p for p in model.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    copied, _ = _copied(model, images, Conditions())
    assert all(p.is_contiguous() for p in copied.parameters())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["--precision=fp16"], "precision: no processor trains in fp16"),
        (["--device=cuda"], "device: torch sees no cuda here, only cpu"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_what_the_machine_cannot_do_is_refused(keys: list[str], text: str) -> None:
    AcceleratorState._reset_state(True)
    with pytest.raises(RecipeError, match=text):
        parts.accelerator(recipe.read("smoke/digits_w_gates", keys))
    AcceleratorState._reset_state(True)


def test_one_process_trains_in_one_precision_after_another() -> None:
    for precision in ("no", "bf16", "no"):
        asked = recipe.read("smoke/digits_w_gates", [f"--precision={precision}"])
        assert parts.accelerator(asked).mixed_precision == precision


def test_the_keys_reach_the_training() -> None:
    asked = recipe.read("smoke/digits_w_gates", ["--compile=true", "--channels_last=true"])
    assert parts.pace(asked) == Pace(compile=True, channels_last=True)
    assert parts.pace(recipe.read("smoke/digits_w_gates")) == Pace()
