"""Stripes, operations and depth: exact alone and mixed with widths, counted, chosen, saved; what moves their gates."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from asked import ask, learnt
from processes import free_port, joined
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import Traced, apart, build, few, traced

import nas_prune as npr
from nas_prune.base.errors import ArchError, BudgetError, SpaceError
from nas_prune.costs import Budget, Macs, Params, count
from nas_prune.derivation.replace import laid_out, substitute
from nas_prune.derivation.verify import verify
from nas_prune.methods.gated import GatedModel
from nas_prune.methods.gates.skeleton import Skeleton, SkeletonFilters
from nas_prune.methods.selectors import selectors
from nas_prune.methods.selectors.ranked import best_units
from nas_prune.ops import Choice, Skip, Zero
from nas_prune.ops.stripes.conv import StripeConv
from nas_prune.run.calibration.sampling import sample, smallest
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.oracle import perturbed
from nas_prune.tracing.space import Replacement, SearchSpace
from nas_prune.train import search as searching
from nas_prune.train.data.loaders import Data, from_loaders, load
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.held_out.shapley_ascent import ascend
from nas_prune.train.loop import Run
from nas_prune.train.search import search
from nas_prune.train.settings import SearchSettings, ShapleySettings
from nas_prune.train.stage import Stage

EXACT = 1e-9
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
FAMILIES = ("test_resnet", "mobilenetv3_small_050", "test_convnext", "test_vit", "swin")
KERNELS = {
    "as_it_is": {"operation": "convolution"},
    "kernel_1": {"operation": "convolution", "kernel": 1},
    "pooled": {"operation": "average_pool", "kernel": 3},
    "structured": {"operation": "structured_convolution", "kernel": 1},
}
PATCHES = {
    "as_it_is": {"operation": "structured_convolution"},
    "structured": {"operation": "structured_convolution", "kernel": 1},
    "sparse": {"operation": "structured_sparse_convolution", "supports": ["row_0", "checkerboard"]},
}
OPERATIONS = {
    "test_resnet": {"match": "layer*.conv?", "only": {"kernel_size": [3, 3]}, "candidates": KERNELS},
    "mobilenetv3_small_050": {"match": "blocks.*.conv_dw", "candidates": KERNELS},
    "test_convnext": {"match": "stages.*.conv_dw", "candidates": KERNELS},
    "test_vit": {"match": "patch_embed.proj", "candidates": PATCHES},
    "swin": {"match": "patch_embed.proj", "candidates": PATCHES},
}


def mixed(names: Iterable[str]) -> list[tuple[str, float, float]]:
    """Each alone, with widths, with widths and depth: the shares that are kept of these."""
    return [(name, *kept) for name in names for kept in ((1.0, 1.0), (0.5, 1.0), (0.5, 0.5))]


MIXED = [("test_resnet", 0.5, 0.5)]


def backbone(name: str) -> nn.Module:
    """A small member of a family."""
    if name != "swin":
        return build(name)
    torch.manual_seed(0)
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, **SWIN).eval()


@cache
def striped(name: str) -> Traced:
    """A family with stripes among its axes, every number of the model moved."""
    model, images = backbone(name).double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model.load_state_dict(perturbed(model, torch.Generator().manual_seed(1)))
    return Traced(model, npr.trace(model, images, stripes=True), images)


@cache
def chosen(name: str) -> Traced:
    """A family with choices where convolutions stood, every number of the model moved."""
    model, images = backbone(name), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert substitute(model, [Replacement.model_validate(OPERATIONS[name])])
    model = model.double().eval()
    model.load_state_dict(perturbed(model, torch.Generator().manual_seed(1)))
    return Traced(model, npr.trace(model, images), images)


def one_each(net: Traced, seed: int, keep: float, bits: float) -> Arch:
    """A random architecture with one candidate of every choice."""
    generator = torch.Generator().manual_seed(seed)
    kept = dict(Arch.random(net.axes, keep, bits=bits, generator=generator).kept)
    for names in net.axes.choices.values():
        one = names[int(torch.randint(len(names), (), generator=generator))]
        kept |= {name: (0,) if name == one else () for name in names}
    return Arch(kept)


@pytest.mark.parametrize(("name", "keep", "bits"), few(mixed(FAMILIES), MIXED))
def test_stripes_are_exact_alone_with_widths_and_with_depth(name: str, keep: float, bits: float) -> None:
    net = striped(name)
    assert net.axes.stripes
    generator = torch.Generator().manual_seed(3)
    arch = Arch.random(net.axes, keep, bits=bits, stripes=0.4, generator=generator)
    proof = verify(net.model, net.axes, arch, net.images)
    assert max(proof.max_rel_error, proof.worst_node_error) <= EXACT
    small = npr.derive(net.model, net.axes, arch)
    alive = [float(m.alive.double().mean()) for m in small.modules() if isinstance(m, StripeConv)]
    assert alive
    assert all(0.1 < share < 0.8 for share in alive)


def test_work_of_stripes_is_that_of_the_live_ones() -> None:
    net = striped("test_resnet")
    each = next(s for s in net.axes.stripes if s.module == "layer1.0.conv1")
    filters = net.axes["layer1.0.conv1"].size
    kept = range(filters // 2)
    live = [9 * n + position for n in kept for position in (0, 4, 8)]
    arch = Arch({each.name: live, "layer1.0.conv1": kept})
    whole = count(npr.derive(net.model, net.axes, Arch({"layer1.0.conv1": kept})), net.images)
    conv = net.model.get_submodule(each.module)
    saved = len(kept) * (9 - 3) * conv.in_channels
    height, width = net.axes.walk.shape(each.node)[2:]
    sizes = arch.sizes(net.axes.free)
    assert float(Params(net.axes)(sizes)) == whole.params - saved
    assert float(Macs(net.axes)(sizes)) == whole.macs - 2 * saved * height * width


@pytest.mark.parametrize(("name", "keep", "bits"), few(mixed(OPERATIONS), MIXED))
def test_operations_are_exact_and_counted(name: str, keep: float, bits: float) -> None:
    net = chosen(name)
    assert net.axes.choices
    for seed, several in ((0, False), (1, True)):
        generator = torch.Generator().manual_seed(seed)
        arch = one_each(net, seed, keep, bits)
        if several:  # two candidates may stay; a smaller sum
            ends = [name for names in net.axes.choices.values() for name in (names[0], names[-1])]
            arch = Arch({**arch.kept, **dict.fromkeys(ends, (0,))})
        proof = verify(net.model, net.axes, arch, net.images, seed=int(torch.randint(9, (), generator=generator)))
        assert max(proof.max_rel_error, proof.worst_node_error) <= EXACT
        small = npr.derive(net.model, net.axes, arch)
        assert any(isinstance(module, Choice) for module in small.modules()) == several
        counted, sizes = count(small, net.images), arch.sizes(net.axes.free)
        assert float(Macs(net.axes)(sizes)) == counted.macs
        assert float(Params(net.axes)(sizes)) == counted.params


def test_without_a_word_a_choice_is_its_first_candidate() -> None:
    net = chosen("test_resnet")
    small = npr.derive(net.model, net.axes, Arch())
    assert not any(isinstance(module, Choice) for module in small.modules())
    counted = count(small, net.images)
    assert (float(Macs(net.axes)({})), float(Params(net.axes)({}))) == (counted.macs, counted.params)
    gated = GatedModel(net.double(), net.axes).eval()
    with torch.no_grad():
        assert apart(gated.fixed(Arch())(net.images), npr.derive(gated.backbone, net.axes, Arch())(net.images)) <= EXACT


def test_closed_candidates_are_not_computed() -> None:
    net = chosen("test_resnet")
    gated = GatedModel(net.double(), net.axes).eval()
    choices = [module for module in gated.backbone.modules() if isinstance(module, Choice)]
    with gated.fixed(one_each(net, 0, 1.0, 1.0)):
        assert {len(choice.live or ()) for choice in choices} == {1}
    assert {choice.live for choice in choices} == {None}


LOOKING = {"clusters", "greedy_residual", "sampling", "segments"}  # at the model: see their own tests
NOT_ASKED = {"genotype", "milp", "fixed_widths"} | LOOKING


@pytest.mark.parametrize("name", [name for name in selectors if name not in NOT_ASKED])
def test_selectors_keep_one_candidate_and_meet_the_limit(name: str) -> None:
    net = chosen("test_resnet")
    space, cost = SearchSpace.all(net.axes), Macs(net.axes)
    generator = torch.Generator().manual_seed(0)
    scores = {key: torch.rand(axis.size, generator=generator) for key, axis in space.free.items()}
    limit = 0.6 * float(cost({}))
    arch = ask(selectors[name], scores, cost, limit, space)
    assert float(cost(arch.sizes(space.free))) <= limit
    for names in space.choices.values():
        assert sum(len(arch.kept[each]) for each in names) == 1
    with pytest.raises(BudgetError) as refused:
        ask(selectors[name], scores, cost, 1.0, space)
    smallest = refused.value.smallest
    assert smallest is not None
    arch = best_units(scores, smallest)
    assert all(space.minimum[key] <= size <= space.free[key].size for key, size in arch.sizes(space.free).items())
    assert float(cost(arch.sizes(space.free))) == float(cost(smallest)) > 1


def test_samples_keep_one_candidate_and_the_first_is_the_smallest() -> None:
    net = chosen("test_resnet")
    space, cost = SearchSpace.all(net.axes), Macs(net.axes)
    drawn = [sample(space, index, seed=0, jitter=0.2) for index in range(12)]
    assert drawn[0] == smallest(space)
    assert min(float(cost(arch.sizes(space.free))) for arch in drawn) == float(cost(drawn[0].sizes(space.free)))
    for names in space.choices.values():
        assert {sum(len(arch.kept[each]) for each in names) for arch in drawn} == {1}
        assert len({each for arch in drawn for each in names if arch.kept[each]}) > 1


def test_a_derived_model_of_operations_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = timm.create_model("test_resnet", num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    space = laid_out(model, images[:1], "operations")
    kept = dict(Arch.random(space.axes, 0.5, bits=0.5, generator=torch.Generator().manual_seed(0)).kept)
    for number, names in enumerate(space.choices.values()):
        kept |= {name: (0,) if name == names[number % len(names)] else () for name in names}
    small = npr.derive(model, space.axes, Arch(kept)).eval()
    npr.save(small, tmp_path / "small", origin=("test_resnet", {"num_classes": 10}))
    with torch.no_grad():
        assert torch.equal(npr.load(tmp_path / "small")(images), small(images))
        there = timm.create_model(f"local-dir:{tmp_path / 'small'}", pretrained=True).eval()
        assert torch.equal(there(images), small(images))
    assert any(isinstance(module, Skip | Zero) for module in small.modules())


def test_a_space_that_replaces_nothing_says_so() -> None:
    with pytest.raises(SpaceError, match="matches no module of VisionTransformer"):
        laid_out(build("test_vit"), torch.randn(1, 3, 32, 32), "operations")


def test_only_bits_and_stripes_may_be_empty() -> None:
    axes = traced("test_resnet").axes
    Arch({"layer1.0.depth": ()}).check(axes)
    with pytest.raises(ArchError, match="would lose its last unit"):
        Arch({"layer1.0.conv1": ()}).check(axes)


def test_folded_skeletons_compute_what_the_gates_did() -> None:
    torch.manual_seed(0)
    model, images = timm.create_model("test_resnet", num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    space = SearchSpace.read("stripes", npr.trace(model, images, stripes=True))
    gated = GatedModel(model, space, "skeleton", options={"threshold": 0.1}).eval()
    filters = {name for name in gated.deciders if isinstance(gated.gate(name), SkeletonFilters)}
    assert filters
    assert all(space.axes[name].kind == "channel" for name in filters)
    with torch.no_grad():
        for gate in (gate for gate in gated.gates.values() if isinstance(gate, Skeleton)):
            gate.skeleton.copy_(torch.rand(gate.size) * (torch.rand(gate.size) < 0.5))
        inner = gated.gate("layer1.0.conv1.stripes")
        inner.skeleton.view(-1, 9)[:3] = 0.0  # three filters without a stripe
        expected, arch = gated(images), gated.arch()
        assert not {0, 1, 2} & set(arch.kept["layer1.0.conv1"])
        gated.fold()
        assert apart(gated(images), expected) <= 1e-5
        assert apart(gated.fixed(arch)(images), expected) <= 1e-5
        assert apart(npr.derive(gated.backbone, space.axes, arch)(images), expected) <= 1e-5


def two_classes(images: int = 96) -> DataLoader[tuple[Tensor, ...]]:
    """Images whose class is the sign of their mean."""
    labels = torch.arange(images) % 2
    x = torch.randn(images, 3, 32, 32) + 2.0 * (labels[:, None, None, None] - 0.5)
    return DataLoader(TensorDataset(x, labels), batch_size=48)


def weighed_by_contribution() -> tuple[GatedModel, SearchSpace, Data]:
    """A small net whose operations Shapley values decide about, the same one every time."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    space = laid_out(model, torch.randn(1, 3, 32, 32), "operations")
    gated = GatedModel(model, space, "mask", kinds={"operation": ("shapley", {})})
    return gated, space, from_loaders(two_classes(), two_classes(), classes=2)


@pytest.mark.zoo
def test_shapley_gates_are_moved_by_contribution_alone(tmp_path: Path) -> None:
    gated, space, data = weighed_by_contribution()
    run = Run(Accelerator(cpu=True), folder=tmp_path)
    before = {name: gated.gate(name).alpha.clone() for name in space.choices}
    state = {name: value.clone() for name, value in gated.backbone.state_dict().items()}
    assert not list(gated.gates.parameters())
    ascend(gated, data, ShapleySettings(evaluations=40), run, epoch=0)
    moved = [float((gated.gate(name).alpha - before[name]).abs().max()) for name in space.choices]
    assert min(moved) > 0
    assert all(torch.equal(value, state[name]) for name, value in gated.backbone.state_dict().items())
    again = GatedModel(gated.plain(), space, "mask", kinds={"operation": ("shapley", {})})
    again.load_state_dict(gated.state_dict())
    assert torch.equal(again.gate(next(iter(space.choices))).alpha, gated.gate(next(iter(space.choices))).alpha)
    ascend(gated, data, ShapleySettings(paper_mode=True, permutations=2), run, epoch=1)
    assert (tmp_path / "shapley.jsonl").read_text().count("evaluations") == 2
    settings = SearchSettings(warmup=1, joint=0)
    learnt(gated, data, [], settings, run)  # no gate learns by gradient
    assert not (tmp_path / "checkpoints").exists()


def test_shapley_gates_look_at_images_that_weights_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gated, space, _ = weighed_by_contribution()
    data, used = load(DataSettings(name="digits", batch_size=16), seed=0), dict[str, set[int]]()

    def trained(_run: Run, stage: Stage, _model: object, seen: Data, *_: object, **__: object) -> None:
        used[stage.name] = set(seen.train.sampler.indices)  # type: ignore[attr-defined]

    def moved(_gated: object, _aim: object, *, data: Data, **_: object) -> None:
        used["estimates"] = set(data.train.sampler.indices)  # type: ignore[attr-defined]

    monkeypatch.setattr(searching, "fit", trained)
    monkeypatch.setattr(searching, "ShapleyAscent", moved)
    how = SearchSettings(warmup=0, joint=2, freeze=1)
    monkeypatch.setattr(searching, "top1", lambda *_: 0.0)
    search(gated, data, budget=Budget("0.9x", Macs(space.axes)), settings=how, run=Run(Accelerator(cpu=True)))
    assert not used["search-joint"] & used["estimates"]
    assert used["search-freeze"] == used["search-joint"] | used["estimates"]


def _ascended(rank: int, folder: str, processes: int, port: int) -> None:
    """One step, as one of several processes; writes the architecture weights."""
    accelerator = joined(rank, processes, port=port)
    gated, space, data = weighed_by_contribution()
    ascend(gated, data, ShapleySettings(evaluations=40), Run(accelerator, folder=Path(folder)), epoch=0)
    torch.save({name: gated.gate(name).alpha for name in space.choices}, f"{folder}/{processes}-{rank}.pt")
    if processes > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_step_that_one_takes(tmp_path: Path) -> None:
    for processes in (1, 2):
        mp.spawn(_ascended, (str(tmp_path), processes, free_port()), nprocs=processes)
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for name, alpha in alone.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], alpha, atol=1e-6)
    assert (tmp_path / "shapley.jsonl").read_text().count("\n") == 2  # one row per step, whatever its processes


def test_widths_depth_and_operations_in_one_search() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    space = laid_out(model, torch.randn(1, 3, 32, 32), "operations")
    kinds = {"operation": ("softmax", {}), "depth": ("hard_concrete", {})}
    gated = GatedModel(model, space, "weight", kinds=kinds)
    settings = SearchSettings(warmup=0, joint=1, freeze=1, lr=0.01, selector="optimal")
    budget = npr.Budget("0.5x", cost=Macs(space.axes))
    arch = search(gated, two_classes(), budget=budget, settings=settings)
    counted = count(npr.derive(gated.plain(), space.axes, arch), torch.randn(1, 3, 32, 32))
    assert counted.macs <= budget.limit
    assert {len(arch.kept[name]) for name in space.free if space.axes[name].kind == "operation"} == {0, 1}
