"""Rules of a search space: the last one that matches decides, and what is left out is frozen with a reason."""

from pathlib import Path

import pytest
from zoo import traced

from nas_prune.base.errors import SpaceError
from nas_prune.tracing import Axes
from nas_prune.tracing.arch import Arch
from nas_prune.tracing.space import SearchSpace, read_file, spaces


@pytest.fixture
def axes() -> Axes:
    return traced("test_resnet").axes


def written(folder: Path, rules: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(f"rules:\n{rules}")
    return path


def test_the_last_rule_that_matches_decides(tmp_path: Path, axes: Axes) -> None:
    first, second, *_ = axes.free
    rules = f"  - {{divisor: 4, widths: 1}}\n  - {{match: ['{first}', nothing], divisor: 2, widths: 1}}\n"
    space = SearchSpace.read(written(tmp_path, rules), axes)
    assert (space.axes[first].divisor, space.axes[second].divisor) == (2, 4)
    reverse = "\n".join(reversed(rules.strip("\n").split("\n")))
    space = SearchSpace.read(written(tmp_path, reverse), axes)
    assert (space.axes[first].divisor, space.axes[second].divisor) == (4, 4)


def test_a_later_rule_can_thaw_what_an_earlier_one_froze(tmp_path: Path, axes: Axes) -> None:
    first, *others = axes.free
    rules = f"  - {{freeze: stays}}\n  - {{match: '{first}'}}\n"
    space = SearchSpace.read(written(tmp_path, rules), axes)
    assert list(space.free) == [first]
    assert {space.axes[name].frozen for name in others} == {"stays"}


def test_the_divisor_is_halved_until_there_are_enough_widths(tmp_path: Path, axes: Axes) -> None:
    space = SearchSpace.read(written(tmp_path, "  - {kinds: [channel], divisor: 64, widths: 4}\n"), axes)
    for axis in space.free.values():
        assert axis.size // axis.divisor >= 4
        assert axis.size // (2 * axis.divisor) < 4
        assert 64 % axis.divisor == 0


def test_the_minimum_is_a_share_rounded_up_to_an_allowed_width(tmp_path: Path, axes: Axes) -> None:
    space = SearchSpace.read(written(tmp_path, "  - {kinds: [channel], divisor: 8, widths: 4, minimum: 0.3}\n"), axes)
    assert space.minimum.keys() == space.free.keys()
    for name, axis in space.free.items():
        assert space.minimum[name] >= 0.3 * axis.size > space.minimum[name] - axis.divisor
        assert space.minimum[name] % axis.divisor == 0
    whole = SearchSpace.read(written(tmp_path, "  - {minimum: 1.0}\n"), axes)
    assert dict(whole.minimum) == {n: 0 if axis.kind == "depth" else axis.size for n, axis in axes.free.items()}
    least = SearchSpace.read(written(tmp_path, "  - {divisor: 1, minimum: 0.0}\n"), axes)
    assert {least.minimum[name] for name in axes.free if axes[name].kind == "channel"} == {1}


def test_unmatched_axes_are_frozen_and_frozen_axes_keep_their_reason(tmp_path: Path, axes: Axes) -> None:
    first, second, *_ = axes.free
    path = written(tmp_path, f"  - {{match: '{first}'}}\n  - {{match: fc}}\n")
    space = SearchSpace.read(path, axes)
    assert list(space.free) == [first]
    assert space.axes[second].frozen == f"not in search space {path}"
    assert space.axes["fc"].frozen == axes["fc"].frozen == "model output"
    assert list(space.axes) == list(axes)
    assert axes[second].frozen is None, "the axes of the model are left as they were"


def test_kinds_narrow_a_rule(tmp_path: Path) -> None:
    axes = traced("test_vit").axes
    space = SearchSpace.read(written(tmp_path, "  - {kinds: [hidden, head]}\n"), axes)
    assert {axis.kind for axis in space.free.values()} == {"hidden", "head"}


def test_a_space_that_leaves_nothing_is_an_error(tmp_path: Path, axes: Axes) -> None:
    for rules in ("  - {freeze: all of it}\n", "  - {match: nothing}\n", "  - {match: fc}\n"):
        with pytest.raises(SpaceError, match="leaves nothing to change"):
            SearchSpace.read(written(tmp_path, rules), axes)


def test_an_unknown_name_comes_with_a_hint(axes: Axes) -> None:
    with pytest.raises(SpaceError, match=r"no search space 'chanels'.*did you mean 'channels'"):
        SearchSpace.read("chanels", axes)


@pytest.mark.parametrize(
    "text", ["rules: []", "rules: [{divisr: 2}]", "rules: [{divisor: 0}]", "rules: {", "", "- 1", "\x00"]
)
def test_a_file_that_is_no_space_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError, match=r"own\.yaml (is not a search space|is not valid YAML|must hold a mapping)"):
        read_file(path)


def about_choices_alone(name: str) -> bool:
    """Whether a space is about nothing but what it puts into a model first."""
    return all(rule.kinds == ["operation"] for rule in read_file(name).rules)


OF_CONVOLUTIONS = "inside_blocks"  # between two convolutions of a residual block


@pytest.mark.parametrize("name", [n for n in spaces() if not about_choices_alone(n) and n != OF_CONVOLUTIONS])
def test_every_shipped_space_fits_a_transformer(name: str) -> None:
    axes = traced("test_vit").axes
    space = SearchSpace.read(name, axes)
    assert space.name == name
    assert space.free
    assert Arch.random(space.axes, 0.4).check(space.axes) is None


def test_spaces_of_channels_and_of_depth_fit_a_convolutional_net(axes: Axes) -> None:
    free = {name: list(SearchSpace.read(name, axes).free) for name in ("channels", "depth", "everything")}
    assert free["everything"] == list(axes.free)
    assert free["channels"] == [name for name, axis in axes.free.items() if axis.kind == "channel"]
    assert free["depth"] == ["layer1.0.depth"]


def test_all_is_every_free_axis_unit_by_unit(axes: Axes) -> None:
    space = SearchSpace.all(axes)
    assert space.free == axes.free
    assert {axis.divisor for axis in space.free.values()} == {1}
    assert dict(space.minimum) == {name: int(axis.kind != "depth") for name, axis in space.free.items()}


def test_random_architectures_respect_divisors(axes: Axes) -> None:
    space = SearchSpace.read("channels", axes)
    for keep in (0.01, 0.3, 0.77, 1.0):
        for name, units in Arch.random(space.axes, keep).kept.items():
            axis = space.axes[name]
            assert len(units) == axis.size or len(units) % axis.divisor == 0
            assert abs(len(units) - keep * axis.size) <= axis.divisor


@pytest.mark.parametrize(("name", "step"), [("single_units", 1), ("multiples_of_four", 4)])
def test_widths_come_in_the_steps_that_a_space_is_named_after(name: str, step: int) -> None:
    space = SearchSpace.read(name, traced("resnet18").axes)
    widths = [axis for axis, own in space.free.items() if own.kind == "channel"]
    assert {space.free[axis].divisor for axis in widths} == {step}
    tenth = {axis: -(-space.free[axis].size // 10) for axis in widths}
    assert all(space.minimum[axis] == -(-tenth[axis] // step) * step for axis in widths)
