"""Laws of stage times: known sums with a known clock, the same names for both models, and models left as they were."""

import time

import pytest
import timm
import torch
from torch import Tensor, nn

from nas_prune.run.profile import IDLE, OTHER, stage_times, stages

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "img_size": 32}


class Clock:
    """Seconds that pass only when a module says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: dict[int, object]) -> "Clock":
        return self


class Takes(nn.Module):
    """A stage that takes so many milliseconds of a clock."""

    def __init__(self, clock: Clock, *milliseconds: float) -> None:
        super().__init__()
        self.clock, self.milliseconds, self.calls = clock, milliseconds, 0

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.milliseconds[self.calls % len(self.milliseconds)] / 1e3
        self.calls += 1
        return x


class Staged(nn.Module):
    """A stem, two blocks in a sequence, a head that runs twice, 0.5 ms between them, and a stage that never runs."""

    def __init__(self, clock: Clock, first: float, *second: float) -> None:
        super().__init__()
        self.stem, self.head, self.unused = Takes(clock, 2.0), Takes(clock, 0.25), Takes(clock, 9.0)
        self.blocks = nn.Sequential(Takes(clock, first), Takes(clock, *second))
        self.drop, self.between = nn.Identity(), clock

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        self.between.now += 0.5e-3
        return self.head(x)


def test_known_milliseconds_are_found_and_add_up() -> None:
    clock = Clock()
    models = {"dense": Staged(clock, 3.0, 4.0), "derived": Staged(clock, 1.0, 4.0)}
    times = stage_times(models, torch.zeros(1), seconds=0.2, clock=clock)
    assert list(times["dense"]) == ["stem", "blocks.0", "blocks.1", "head", OTHER]
    assert times["dense"] == pytest.approx({"stem": 2, "blocks.0": 3, "blocks.1": 4, "head": 0.5, OTHER: 0.5})
    assert times["derived"] == pytest.approx({"stem": 2, "blocks.0": 1, "blocks.1": 4, "head": 0.5, OTHER: 0.5})
    assert sum(times["dense"].values()) == pytest.approx(10.0)


def test_a_rare_interruption_does_not_move_a_median() -> None:
    clock = Clock()
    times = stage_times({"dense": Staged(clock, 3.0, *([4.0] * 9), 900.0)}, torch.zeros(1), seconds=2.0, clock=clock)
    assert times["dense"]["blocks.1"] == pytest.approx(4.0)


def test_interruptions_in_most_calls_are_shared_by_the_stages() -> None:
    clock = Clock()
    model = nn.Sequential(
        *(Takes(clock, *(11.0 if call % 3 == stage else 1.0 for call in range(3))) for stage in range(3))
    )
    times = stage_times({"dense": model}, torch.zeros(1), seconds=1.0, clock=clock)["dense"]
    assert times == pytest.approx({"0": 13 / 3, "1": 13 / 3, "2": 13 / 3, OTHER: 0.0})


def test_a_stage_that_one_model_lacks_takes_nothing_there() -> None:
    clock = Clock()
    whole = nn.Sequential(Takes(clock, 1.0), Takes(clock, 2.0))
    less = nn.Sequential(Takes(clock, 1.0), nn.Identity())
    times = stage_times({"dense": whole, "derived": less}, torch.zeros(1), seconds=0.1, clock=clock)
    assert times["derived"] == pytest.approx({"0": 1.0, "1": 0.0, OTHER: 0.0})


def test_a_model_without_stages_is_all_other() -> None:
    clock = Clock()
    assert stage_times({"dense": Takes(clock, 3.0)}, torch.zeros(1), clock=clock)["dense"] == pytest.approx(
        {OTHER: 3.0}
    )


class Sleeps(nn.Module):
    """A stage that takes real time, at least so much of it."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.005)
        return x


def test_a_stage_that_sleeps_takes_at_least_its_sleep() -> None:
    times = stage_times({"dense": nn.Sequential(Sleeps(), nn.ReLU())}, torch.zeros(1), seconds=0.05, threads=1)["dense"]
    assert times["0"] > 4.0
    assert times["0"] > times["1"] > 0


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("resnet18", "conv1 bn1 act1 maxpool layer1 layer2 layer3 layer4 global_pool fc"),
        ("convnext_atto", "stem stages.0 stages.1 stages.2 stages.3 head"),
        ("vit_tiny_patch16_224", "patch_embed blocks.0 blocks.1 blocks.2 norm head"),
        (
            "mobilenetv3_small_050",
            "conv_stem bn1 blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 blocks.5 global_pool conv_head act2 flatten "
            "classifier",
        ),
    ],
)
def test_the_stages_of_timm_models(model: str, names: str) -> None:
    built = timm.create_model(model, **(VIT if model.startswith("vit") else {})).train()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    times = stage_times({"dense": built}, torch.randn(1, 3, 32, 32), seconds=0.01)["dense"]
    assert list(times) == [*names.split(), OTHER]
    assert all(ms > 0 for ms in times.values())
    assert built.training
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in built.modules())


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    stage_times({"dense": nn.ReLU()}, torch.zeros(1), seconds=0.0, threads=before + 1)
    assert torch.get_num_threads() == before


def test_what_computes_nothing_or_only_lists_others_is_no_stage() -> None:
    model = nn.ModuleDict(
        {"levels": nn.ModuleList([nn.ReLU(), nn.Identity()]), "drop": nn.Dropout(), "stem": nn.ReLU()}
    )
    assert list(stages(model)) == ["levels.0", "stem"]
    assert not any(isinstance(stage, IDLE) for stage in stages(model).values())
