"""An architecture is plain data: tidy, equal where it keeps the same, checked against the axes, and one JSON file."""

import json
from pathlib import Path

import pytest
import torch

from nas_prune.base.axis import Axis
from nas_prune.base.errors import ArchError
from nas_prune.methods.selectors.solver.problem import widths
from nas_prune.tracing.arch import Arch, allowed_width

AXES = {
    "conv1": Axis("conv1", "channel", 8, ()),
    "conv2": Axis("conv2", "channel", 30, (), divisor=8),
    "tiny": Axis("tiny", "channel", 1, ()),
    "fc": Axis("fc", "channel", 10, (), frozen="model output"),
}


def test_units_are_sorted_and_unique() -> None:
    assert Arch({"conv1": [3, 1, 3]}) == Arch({"conv1": (1, 3)})
    assert Arch({"conv1": torch.tensor([3, 1])}).kept == {"conv1": (1, 3)}


def test_dense_spells_out_every_free_axis() -> None:
    dense = Arch.dense(AXES)
    assert list(dense.kept) == ["conv1", "conv2", "tiny"]
    assert dense.sizes(AXES) == Arch().sizes(AXES) == {"conv1": 8, "conv2": 30, "tiny": 1, "fc": 10}


def test_random_keeps_a_share_and_is_a_function_of_the_generator() -> None:
    draws = [Arch.random(AXES, 0.5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0].sizes(AXES) == {"conv1": 4, "conv2": 16, "tiny": 1, "fc": 10}
    draws[0].check(AXES)
    assert Arch.random(AXES, 0.0).sizes(AXES) == {"conv1": 1, "conv2": 8, "tiny": 1, "fc": 10}
    assert Arch.random(AXES, 1.0).sizes(AXES)["conv1"] == 8


@pytest.mark.parametrize(("wanted", "width"), [(0, 8), (11, 8), (13, 16), (24, 24), (30, 30), (99, 30)])
def test_allowed_widths_are_multiples_or_the_whole(wanted: float, width: int) -> None:
    assert allowed_width(AXES["conv2"], wanted) == width


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_of_every_size_the_nearest_width_is_taken_and_the_whole_is_one(divisor: int) -> None:
    for size in range(1, 65):
        axis = Axis("conv", "channel", size, (), divisor=divisor)
        allowed = widths(axis, min(divisor, size))
        assert allowed_width(axis, size) == size
        for wanted in (each / 4 for each in range(4 * size + 1)):
            found = allowed_width(axis, wanted)
            assert found in allowed
            assert abs(found - wanted) == min(abs(each - wanted) for each in allowed)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv3": [0]}, r"names axis 'conv3'.*did you mean 'conv"),
        ({"conv1": []}, "would lose its last unit"),
        ({"conv1": [0, 8]}, r"units 0 to 7.*keeps 0 to 8"),
        ({"conv1": [-1, 2]}, r"keeps -1 to 2"),
        ({"fc": [1, 2]}, r"frozen \(model output\).*2 of 10"),
    ],
)
def test_check_says_what_does_not_fit(kept: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        Arch(kept).check(AXES)


def test_a_frozen_axis_may_be_spelled_out_whole() -> None:
    assert Arch({"fc": range(10), "conv1": [7]}).check(AXES) is None


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arch = Arch({"conv1": [1, 5], "conv2": range(8)})
    arch.write(tmp_path / "arch.json")
    assert Arch.read(tmp_path / "arch.json") == arch
    assert json.loads((tmp_path / "arch.json").read_text())["kept"]["conv1"] == [1, 5]
    arch.write(tmp_path / "arch.json")
    assert [path.name for path in tmp_path.iterdir()] == ["arch.json"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            "{}",
            '{"kept": 3}',
            '{"kept": {"a": 3}}',
            '{"kept": {"a": [[1]]}}',
            '{"kept": {"a": ["x"]}}',
        ),
        *('{"kept": {"a": "12"}}', '{"kept": {"a": [1.5]}}', '{"kept": {"a": [Infinity]}}', '{"kept": {"a": [true]}}'),
    ],
)
def test_a_file_that_is_no_architecture_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "arch.json").write_text(text)
    with pytest.raises(ArchError, match=r"arch\.json"):
        Arch.read(tmp_path / "arch.json")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArchError, match=r"arch\.json"):
        Arch.read(tmp_path / "arch.json")
