"""Networks of cells: the spaces as data, genotypes, the supernet and what it derives to."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from asked import ask
from timm.models import group_parameters
from torch import Tensor, nn
from zoo import few

import nas_prune as npr
from nas_prune.artifact.cells_entry import register
from nas_prune.base.errors import ArchError, SpaceError, UnknownNameError
from nas_prune.base.files.whole import read_json
from nas_prune.costs import Macs, count
from nas_prune.methods.selectors import selectors
from nas_prune.ops import Choice, Zero
from nas_prune.ops.cells.cell_space import CellSpace, edge_name
from nas_prune.ops.cells.genotype import Genotype, arch_of, check, genotype_from, genotype_of
from nas_prune.ops.cells.network import CellNetwork
from nas_prune.run.genotype import write_genotype
from nas_prune.tracing.oracle import perturbed

register()

DARTS_V2 = {  # of the paper's code
    "normal": {
        "2": {"0": "sep_conv_3x3", "1": "sep_conv_3x3"},
        "3": {"0": "sep_conv_3x3", "1": "sep_conv_3x3"},
        "4": {"0": "skip_connect", "1": "sep_conv_3x3"},
        "5": {"0": "skip_connect", "2": "dil_conv_3x3"},
    },
    "reduction": {
        "2": {"0": "max_pool_3x3", "1": "max_pool_3x3"},
        "3": {"1": "max_pool_3x3", "2": "skip_connect"},
        "4": {"0": "max_pool_3x3", "2": "skip_connect"},
        "5": {"1": "max_pool_3x3", "2": "skip_connect"},
    },
}
SMALL = {  # a space of one's own, as plain data
    "inputs": 2,
    "project": True,
    "edges": {"2": [0, 1], "3": [0, 1, 2]},
    "edges_per_node": 2,
    "output": "concat",
    "operations": {
        "conv": {"operation": "cell_convolution", "kernel": 3},
        "pool": {"operation": "cell_pool", "kind": "max"},
        "skip": {"operation": "cell_skip"},
    },
    "kinds": {"normal": {}, "reduction": {"stride": 2, "at": ["1/3", "2/3"]}},
    "stem": 2,
}
SPACES: list[Any] = ["darts", "nas_bench_201", SMALL]


def scores_for(space: CellSpace, seed: int = 0) -> dict[str, Tensor]:
    """A random score per operation axis."""
    generator = torch.Generator().manual_seed(seed)
    edges = [f"{kind}.{edge_name(pair)}" for kind in space.searched for pair in space.pairs]
    return {f"{edge}.{name}": torch.randn(1, generator=generator) for edge in edges for name in space.operations}


def some_genotype(space: CellSpace) -> Genotype:
    """One genotype of a space."""
    return genotype_of(scores_for(space), space)


def create(space: Any, **kwargs: Any) -> CellNetwork:
    """A small network in eval mode, through timm."""
    model = timm.create_model("nas_prune_cells", **{"space": space, "channels": 4, "layers": 3, **kwargs})
    assert isinstance(model, CellNetwork)
    return model.eval()


def choices_of(model: nn.Module) -> dict[str, Choice]:
    """Path -> choice."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Choice)}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_spaces_have_the_edges_and_the_operations_of_the_papers() -> None:
    darts, bench = CellSpace.of("darts"), CellSpace.of("nas_bench_201")
    assert (len(darts.searched), len(darts.pairs), len(darts.operations)) == (2, 14, 7)
    assert darts.architectures == (180 * 7**8) ** 2  # 1 * 3 * 6 * 10 pairs of edges
    assert (len(bench.searched), len(bench.pairs), len(bench.operations)) == (1, 6, 5)
    assert bench.architectures == 15625


def test_cells_stand_where_the_papers_put_them() -> None:
    darts, bench = CellSpace.of("darts"), CellSpace.of("nas_bench_201")
    assert list(darts.layout(8).values()).count("reduction") == 2
    assert [name for name in darts.layout(20) if "reduction" in name] == ["reduction_6", "reduction_13"]
    assert [name for name in darts.layout(6) if "reduction" in name] == ["reduction_2", "reduction_4"]
    assert [name for name in bench.layout(17) if "residual" in name] == ["residual_5", "residual_11"]


def test_the_networks_are_as_large_as_the_published_ones() -> None:
    darts = create("darts", channels=36, layers=20, genotype=DARTS_V2)
    assert parameters(darts) == pytest.approx(3.3e6, rel=0.02)  # DARTS (second order) on CIFAR-10, no auxiliary head
    everywhere = {"normal": {str(n): {str(s): "nor_conv_3x3" for s in range(n)} for n in (1, 2, 3)}}
    bench = create("nas_bench_201", channels=16, layers=17, genotype=everywhere)
    assert parameters(bench) == pytest.approx(1.53e6, rel=0.01)  # the largest of the benchmark


@pytest.mark.parametrize("space", SPACES, ids=["darts", "nas_bench_201", "own"])
@pytest.mark.parametrize("training", [False, True])
def test_the_supernet_with_all_else_closed_computes_what_the_derived_network_computes(
    space: Any, training: bool
) -> None:
    known = CellSpace.of(space)
    genotype = some_genotype(known)
    supernet = create(space)
    supernet.double().load_state_dict(perturbed(supernet, torch.Generator().manual_seed(0)))
    derived = create(space, genotype=genotype).double()
    arch = arch_of(genotype, known)
    weights = supernet.state_dict()
    for path, choice in choices_of(supernet).items():
        for name, candidate in choice.candidates.items():
            for key in candidate.state_dict():
                tensor = weights.pop(f"{path}.candidates.{name}.{key}")
                if arch[f"{choice.shared}.{name}"]:
                    weights[f"{path}.{key}"] = tensor
            if not arch[f"{choice.shared}.{name}"]:
                candidate.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))  # noqa: ARG005
    assert weights.keys() == derived.state_dict().keys()
    derived.load_state_dict(weights)
    x = torch.randn(2, 3, 17, 17, dtype=torch.float64)
    out, expected = derived.train(training)(x), supernet.train(training)(x)
    assert out.std() > 1e-3
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("space", ["nas_bench_201", SMALL], ids=["nas_bench_201", "own"])
def test_a_closed_edge_is_a_zero_whatever_its_stride(space: Any) -> None:
    known = CellSpace.of(space)
    genotype = some_genotype(known)
    model, network = create(space), create(space, genotype=genotype)
    for cell in model.cells.values():
        edges = getattr(cell, "edges", {})
        for edge in edges:
            edges[edge] = Zero()
    for name, module in network.named_modules():
        if name.count(".") == 3 and ".edges." in name:
            model.set_submodule(name, module)
    model.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x), network(x))


@pytest.mark.parametrize("space", SPACES, ids=["darts", "nas_bench_201", "own"])
def test_every_edge_of_the_supernet_is_a_choice_that_all_cells_of_a_kind_share(space: Any) -> None:
    known = CellSpace.of(space)
    choices = choices_of(create(space, layers=4))
    assert all(list(choice.candidates) == list(known.operations) for choice in choices.values())
    edges = {edge_name(pair) for pair in known.pairs}
    for name, kind in known.layout(4).items():
        own = {
            path.rpartition(".")[2]: each.shared for path, each in choices.items() if path.startswith(f"cells.{name}.")
        }
        assert own == ({edge: f"{kind}.{edge}" for edge in edges} if kind in known.searched else {})


def test_a_genotype_follows_the_rule_of_darts() -> None:
    space = CellSpace.of("darts")
    scores = scores_for(space, seed=3)
    found = genotype_of(scores, space)
    for kind in ("normal", "reduction"):
        for node in (2, 3, 4, 5):
            weights = [
                torch.cat([scores[f"{kind}.{state}_to_{node}.{name}"] for name in space.operations]).softmax(0)
                for state in range(node)
            ]
            strongest = sorted(range(node), key=lambda state: -float(weights[state].max()))[:2]
            expected = {str(state): list(space.operations)[int(weights[state].argmax())] for state in strongest}
            assert found[kind][str(node)] == expected


def test_strength_is_a_share_of_the_edge() -> None:
    space = CellSpace.of(SMALL)
    scores = {name: torch.zeros(1) for name in scores_for(space)}
    scores |= {f"normal.0_to_3.{name}": torch.tensor([9.0]) for name in space.operations}  # large, but undecided
    scores |= {"normal.1_to_3.pool": torch.tensor([2.0]), "normal.2_to_3.skip": torch.tensor([1.0])}
    assert genotype_of(scores, space)["normal"]["3"] == {"1": "pool", "2": "skip"}


@pytest.mark.parametrize("space", SPACES, ids=["darts", "nas_bench_201", "own"])
def test_a_genotype_survives_json_and_the_architecture(space: Any) -> None:
    known = CellSpace.of(space)
    genotype = some_genotype(known)
    again = json.loads(json.dumps(genotype))
    assert again == genotype
    arch = arch_of(again, known)
    assert set(arch.values()) <= {(0,), ()}
    assert sum(map(len, arch.values())) == len(known.searched) * sum(known.kept(node) for node in known.edges)
    assert genotype_from(npr.Arch(arch).kept, known) == genotype


@pytest.mark.parametrize("space", few(SPACES, SPACES[1:2]), ids=["darts", "nas_bench_201", "own"])
def test_a_genotype_is_derived_exactly_and_is_an_ordinary_artefact(space: Any, tmp_path: Path) -> None:
    layers = 1 if space == "darts" else 3  # one cell, of reductions: tracing three takes a quarter of a minute
    torch.manual_seed(0)
    supernet, x = create(space, layers=layers), torch.randn(2, 3, 11, 11)
    axes = npr.trace(supernet, x)
    genotype = some_genotype(CellSpace.of(space))
    arch = npr.Arch({name: kept for name, kept in arch_of(genotype, CellSpace.of(space)).items() if name in axes})
    certificate = npr.verify(supernet, axes, arch, x)
    assert max(certificate.max_rel_error, certificate.worst_node_error) <= 1e-9 < certificate.control_error
    derived = npr.derive(supernet, axes, arch).eval()
    assert parameters(derived) == parameters(create(space, layers=layers, genotype=json.loads(json.dumps(genotype))))
    npr.save(derived, tmp_path / "artefact")
    expected = derived(x)
    assert expected.std() > 0
    assert torch.equal(npr.load(tmp_path / "artefact")(x), expected)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path / 'artefact'}", pretrained=True).eval()(x), expected)


@pytest.fixture(scope="module")
def traced() -> npr.Axes:
    """The axes of a supernet of three cells of one's own."""
    return npr.trace(create(SMALL), torch.randn(2, 3, 11, 11))


@pytest.fixture(scope="module")
def small(traced: npr.Axes, tmp_path_factory: pytest.TempPathFactory) -> npr.SearchSpace:
    """The space of one's own as a file, over that supernet."""
    return space_file(tmp_path_factory.mktemp("spaces") / "small.yaml", traced, {"kinds": ["operation"]})


def space_file(path: Path, axes: npr.Axes, rule: dict[str, Any]) -> npr.SearchSpace:
    """The space of one's own with one rule."""
    path.write_text(json.dumps({"cell": SMALL, "rules": [rule]}))
    return npr.SearchSpace.read(path, axes)


@pytest.mark.zoo
def test_the_tracer_finds_the_operations_and_the_widths(traced: npr.Axes) -> None:
    operations = {name for name, axis in traced.items() if axis.kind == "operation"}
    assert operations == set(arch_of(some_genotype(CellSpace.of(SMALL)), CellSpace.of(SMALL)))
    bench = npr.trace(create("nas_bench_201"), torch.randn(2, 3, 8, 8))
    for axes in (traced, bench):
        widths = [axis.frozen for axis in axes.values() if axis.kind == "channel"]
        assert widths.count(None) > 2
        assert set(widths) == {None, "model output"}  # a zero among the candidates freezes nothing


def test_the_selector_takes_the_genotype_whatever_it_costs(small: npr.SearchSpace) -> None:
    known, cost = CellSpace.of(SMALL), Macs(small.axes)
    scores = scores_for(known)
    arch = ask(selectors["genotype"], scores, cost, float(cost({})), small)
    assert arch.kept == arch_of(some_genotype(known), known)
    spent = float(cost(arch.sizes(small.free)))
    assert spent == npr.count(npr.derive(create(SMALL), small.axes, arch), torch.randn(2, 3, 11, 11)).macs
    assert ask(selectors["genotype"], scores, cost, spent, small) == arch
    assert ask(selectors["genotype"], scores, cost, 0.5 * spent, small) == arch
    everything = npr.SearchSpace.read("everything", small.axes)
    with pytest.raises(SpaceError, match=r'no `cell:`.*choose "optimal"'):
        ask(selectors["genotype"], scores, cost, spent, everything)


def test_widths_that_may_change_stay_whole(traced: npr.Axes, tmp_path: Path) -> None:
    space = space_file(tmp_path / "wide.yaml", traced, {})
    arch = ask(selectors["genotype"], scores_for(CellSpace.of(SMALL)), Macs(space.axes), float("inf"), space)
    assert {axis.kind for axis in space.free.values()} == {"operation", "channel"}
    assert arch.kept.keys() == space.free.keys()
    assert all(len(arch.kept[name]) == axis.size for name, axis in space.free.items() if axis.kind == "channel")


def test_a_node_without_edges_is_nothing_whatever_its_stride(small: npr.SearchSpace) -> None:
    model = create(SMALL)
    arch = npr.Arch({name: () if "_to_2" in name else (0,) for name in small.free})
    certificate = npr.verify(model, small.axes, arch, torch.randn(2, 3, 11, 11))
    assert max(certificate.max_rel_error, certificate.worst_node_error) <= 1e-9


def test_a_genotype_is_written_where_there_is_one(small: npr.SearchSpace, tmp_path: Path) -> None:
    known, path = CellSpace.of(SMALL), tmp_path / "genotype.json"
    genotype = some_genotype(known)
    assert not write_genotype(path, {}, "channels")
    assert not write_genotype(path, dict.fromkeys(small.free, (0,)), small.name)
    assert not path.exists()
    assert write_genotype(path, arch_of(genotype, known), small.name)
    derived = npr.derive(create(SMALL), small.axes, npr.Arch(arch_of(genotype, known)))
    assert parameters(create(SMALL, genotype=read_json(path))) == parameters(derived)


def changed(*keys: str, to: object) -> dict[str, Any]:
    """DARTS_V2 with one thing changed."""
    genotype: dict[str, Any] = json.loads(json.dumps(DARTS_V2))
    inner = genotype
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    return genotype


@pytest.mark.parametrize(
    ("genotype", "match"),
    [
        (
            changed("normal", "2", "0", to="sep_conv_3x2"),
            "node 2 of normal has no operation.*did you mean 'sep_conv_3x",
        ),
        (changed("normal", "3", to={"0": "skip_connect"}), "node 3 of normal has 1 edges; it needs 2"),
        (changed("normal", "3", to={"0": "skip_connect", "3": "skip_connect"}), r"node 3 of normal reads.*\[0, 1, 2\]"),
        (changed("normal", "3", to="skip_connect"), "node 3 of normal reads"),
        (changed("normal", "9", to={}), "normal should be a mapping with the keys"),
        (changed("normal", "2", "0", to=["conv"]), "node 2 of normal has no operation"),
        ({"normal": DARTS_V2["normal"]}, r"the genotype should be a mapping with the keys \['normal', 'reduction'\]"),
        ("DARTS_V2", "got 'DARTS_V2'"),
    ],
)
def test_a_genotype_that_does_not_fit_is_an_error_that_says_where(genotype: Any, match: str) -> None:
    with pytest.raises(ArchError, match=match):
        check(genotype, CellSpace.of("darts"))
    with pytest.raises(ArchError, match=match):
        create("darts", genotype=genotype)


def test_scores_and_architectures_that_are_no_genotype_are_errors() -> None:
    space = CellSpace.of(SMALL)
    scores, name = scores_for(space), "normal.0_to_2.pool"
    for wrong in ({}, {name: torch.zeros(2)}, {name: torch.tensor([float("nan")])}):
        others = {each: score for each, score in scores.items() if each != name}
        with pytest.raises(ArchError, match=r"one finite score for each of \['normal.0_to_2.pool'\]"):
            genotype_of(others | wrong, space)
    arch = arch_of(some_genotype(space), space)
    with pytest.raises(ArchError, match=r"normal.0_to_2 keeps \['conv', 'pool', 'skip'\]; .* one operation per edge"):
        genotype_from(arch | {f"normal.0_to_2.{each}": (0,) for each in space.operations}, space)
    with pytest.raises(ArchError, match="node 3 of normal has 3 edges; it needs 2"):
        genotype_from({}, space)  # the first operation everywhere


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"edges": {"2": [0, 1], "4": [0]}}, "numbered from 2"),
        ({"edges": {"2": [0, 2]}}, "earlier states"),
        ({"edges_per_node": 3}, "has 2 edges and should keep 3"),
        ({"kinds": {"normal": {}, "other": {}}}, "one kind without"),
        ({"kinds": {"normal": {}, "reduction": {"at": ["4/3"]}}}, "shares of the depth"),
        ({"project": False}, "project: false needs"),
        ({"nodes": 4}, "nodes"),
    ],
)
def test_a_space_that_makes_no_sense_is_an_error(change: dict[str, Any], match: str) -> None:
    with pytest.raises(SpaceError, match=match):
        CellSpace.of(SMALL | change)


def test_unknown_names_come_with_a_hint() -> None:
    with pytest.raises(SpaceError, match="called 'dart'; did you mean 'darts'"):
        create("dart")
    with pytest.raises(SpaceError, match="no space of cells is called 'channels'; there is: darts"):
        create({"like": "channels"})
    with pytest.raises(SpaceError, match="no space of cells is called"):
        create(["darts"])
    with pytest.raises(UnknownNameError, match="did you mean 'cell_skip'"):
        create(SMALL | {"operations": {"skip": {"operation": "cell_skipp"}}})
    with pytest.raises(SpaceError, match="at least one channel and one cell; got 4 and 0"):
        create(SMALL, layers=0)


@pytest.mark.parametrize("space", SPACES, ids=["darts", "nas_bench_201", "own"])
def test_it_is_a_timm_model(space: Any) -> None:
    model = create(space, num_classes=7, in_chans=1, genotype=some_genotype(CellSpace.of(space)))
    x = torch.randn(2, 1, 16, 16)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 4, 4)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(x))
    final, stages = model.forward_intermediates(x, norm=True)
    assert torch.equal(final, features)
    assert torch.equal(stages[-1], features)
    assert [s.shape[1] for s in stages] == [info["num_chs"] for info in model.feature_info]
    assert [16 // s.shape[2] for s in stages] == [info["reduction"] for info in model.feature_info]
    for info in model.feature_info:
        assert model.get_submodule(info["module"]) is not None
    assert model.pretrained_cfg["architecture"] == "nas_prune_cells"
    for name in ("first_conv", "classifier"):
        assert f"{model.pretrained_cfg[name]}.weight" in dict(model.named_parameters())
    groups = group_parameters(model, model.group_matcher())
    assert sorted(name for names in groups.values() for name in names) == sorted(dict(model.named_parameters()))
    model.reset_classifier(5)
    assert (model(x).shape, model.num_classes) == ((2, 5), 5)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    pyramid = timm.create_model("nas_prune_cells", space=space, channels=4, layers=3, features_only=True)
    assert [f.shape[1] for f in pyramid(torch.randn(1, 3, 16, 16))] == pyramid.feature_info.channels()


@pytest.mark.parametrize(
    ("reduction", "first", "second"),
    [(1, (12, 32), (12, 32)), (2, (12, 16), (12, 16)), (4, (4, 16), (4, 8)), (8, (4, 8), (4, 4))],
)
def test_a_stem_may_reduce_the_image_as_for_imagenet(
    reduction: int, first: tuple[int, int], second: tuple[int, int]
) -> None:
    model, images = (
        create({"like": "darts", "stem_reduction": reduction}, layers=1, channels=4),
        torch.randn(2, 3, 32, 32),
    )
    state = model.stem(images)
    assert tuple(state.shape[1:3]) == first
    assert tuple(model.stem_end(state).shape[1:3]) == second
    assert tuple(model.forward_features(images).shape) == (2, 32, 16 // reduction, 16 // reduction)
    assert model.feature_info[-1]["reduction"] == 2 * reduction


SEPARABLE, DILATED, POOL, SKIP = "sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3", "skip_connect"
SECOND_ORDER = {  # DARTS_V2 of the authors' genotypes.py
    "normal": {
        "2": {"0": SEPARABLE, "1": SEPARABLE},
        "3": {"0": SEPARABLE, "1": SEPARABLE},
        "4": {"1": SEPARABLE, "0": SKIP},
        "5": {"0": SKIP, "2": DILATED},
    },
    "reduction": {
        "2": {"0": POOL, "1": POOL},
        "3": {"2": SKIP, "1": POOL},
        "4": {"0": POOL, "2": SKIP},
        "5": {"2": SKIP, "1": POOL},
    },
}


@pytest.mark.parametrize(
    ("options", "size", "parameters", "macs"),
    [
        ({"space": "darts", "channels": 36, "layers": 20, "num_classes": 10}, 32, 3_349_342, 528_359_040),
        (
            {"space": {"like": "darts", "stem_reduction": 8}, "channels": 48, "layers": 14, "num_classes": 1000},
            224,
            4_718_752,
            529_911_552,
        ),
    ],
)
def test_the_networks_of_darts_are_as_large_as_the_authors(
    options: dict[str, Any], size: int, parameters: int, macs: int
) -> None:
    model = timm.create_model("nas_prune_cells", genotype=SECOND_ORDER, **options).eval()
    counted = count(model, torch.randn(1, 3, size, size))
    assert (counted.params, counted.macs) == (parameters, macs)


def test_checkpointed_training_computes_the_same() -> None:
    model = create(SMALL).train()
    x = torch.randn(2, 3, 8, 8)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(each is not None for each in gradients[0])
    torch.testing.assert_close(*gradients)


def test_the_network_of_a_genotype_is_an_ordinary_artefact(tmp_path: Path) -> None:
    model = create(SMALL, genotype=some_genotype(CellSpace.of(SMALL)), num_classes=3)
    npr.save(model, tmp_path / "artefact")
    x = torch.randn(2, 3, 16, 16)
    loaded = npr.load(tmp_path / "artefact")
    assert torch.equal(loaded(x), model(x))
    assert loaded.num_classes == 3


def test_registering_imports_neither_torch_nor_timm_and_happens_once() -> None:
    code = (
        "import sys, nas_prune.artifact.cells_entry as e; e.default_cfgs; print({'torch', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr
    register()  # once more, and timm does not warn
    assert timm.is_model("nas_prune_cells")


@pytest.mark.parametrize("space", ["darts", "nas_bench_201"])
def test_while_there_is_a_choice_norms_may_be_without_scale_and_shift_and_a_genotype_has_them(space: str) -> None:
    searched = CellNetwork({"like": space, "affine": False}, 4, 3)
    chosen = CellNetwork({"like": space, "affine": False}, 4, 3, genotype=some_genotype(CellSpace.of(space)))
    inside = [m for name, m in searched.named_modules() if ".edges." in name and isinstance(m, nn.BatchNorm2d)]
    assert inside
    assert not any(norm.affine for norm in inside)
    kept = [m for name, m in chosen.named_modules() if ".edges." in name and isinstance(m, nn.BatchNorm2d)]
    assert any(norm.affine for norm in kept)
    assert (
        CellNetwork(space, 4, 3, genotype=some_genotype(CellSpace.of(space))).state_dict().keys()
        == chosen.state_dict().keys()
    )


STRAIGHT = {
    kind: {"2": {"0": "conv", "1": "skip"}, "3": {"1": "pool", "2": "skip"}} for kind in ("normal", "reduction")
}


def test_drop_path_drops_edges_that_do_something_and_makes_up_for_it() -> None:
    model = create(SMALL, genotype=STRAIGHT, drop_path_rate=0.4)
    cell = next(iter(model.cells.values())).train()
    streams = torch.randn(2, 6, 8, 5, 5)
    out = seeded_run(cell, *streams)
    torch.manual_seed(3)
    states = [read(stream) for read, stream in zip(cell.inputs, streams, strict=True)]
    dropped = []
    for state, skipped in ((0, 1), (1, 2)):
        keep = torch.empty(6, 1, 1, 1).bernoulli_(0.6)
        dropped.append(int((keep == 0).sum()))
        edge = cell.edges[f"{state}_to_{len(states)}"]
        states.append(edge(states[state]) * keep / 0.6 + states[skipped])
    assert 0 < sum(dropped) < 12
    torch.testing.assert_close(out, torch.cat(states[2:], 1))


def seeded_run(module: nn.Module, *inputs: Tensor) -> Tensor:
    torch.manual_seed(3)
    out: Tensor = module(*inputs)
    return out


@pytest.mark.parametrize("genotype", [STRAIGHT, None], ids=["derived", "supernet"])
def test_drop_path_is_no_part_of_the_network(genotype: Genotype | None) -> None:
    plain, dropping = (create(SMALL, genotype=genotype, drop_path_rate=rate) for rate in (0.0, 0.5))
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(plain(x), dropping(x))
    same = torch.equal(seeded_run(plain.train(), x), seeded_run(dropping.train(), x))
    assert same == (genotype is None)  # while there is a choice, nothing is dropped
    with pytest.raises(SpaceError, match="drop_path_rate is 1"):
        create(SMALL, drop_path_rate=1.0)
