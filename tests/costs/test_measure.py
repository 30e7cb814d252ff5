"""Laws of timing, on a machine whose clock and noise are planted: what is sure is told, what is noise is told too."""

import json
import math
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from nas_prune.base.errors import NasPruneError, RunError, RuntimeMissingError, UnknownNameError
from nas_prune.costs import Conditions, Timing, Timings, measure, measure_together
from nas_prune.costs.timing.measure import PAUSES, ROUNDS, SURE, interval, share, time_calls, undisturbed
from nas_prune.costs.timing.runtimes import available, missing, prepare


class Machine:
    """A clock, and calls that take the time they are told: ``milliseconds(now)``."""

    def __init__(self):
        self.now, self.ran = 0.0, []

    def clock(self):
        return self.now

    def call(self, name, milliseconds):
        def run():
            self.now += 1e-3 * milliseconds(self.now)
            self.ran.append(name)

        return run

    def time(self, seconds=1.0, **models):
        """Time models that are given by their milliseconds."""
        calls = {name: self.call(name, milliseconds) for name, milliseconds in models.items()}
        return time_calls(calls, seconds, clock=self.clock)


class Convolutions(nn.Module):
    """What a convolutional network is made of, dropout included."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 5))
        self.body[1].running_mean.normal_()

    def forward(self, x):
        return self.head(self.body(x))


@pytest.fixture
def net():
    return Convolutions().train()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)


def outputs(call):
    """What a call gives: a tensor, or the arrays of another runtime."""
    given = call()
    return given if isinstance(given, torch.Tensor) else torch.from_numpy(np.array(given[0]))


def test_the_interval_of_a_median_is_that_of_the_tables():
    assert interval(range(1, 26)) == (8, 13, 18)  # 25 values: ranks 8 and 18
    assert interval([3, 1, 2, 6, 5, 4]) == (1, 3.5, 6)  # 6 values: the whole range, 97 %
    assert interval([2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("calls", [6, 25, 100])
def test_the_interval_covers_the_true_median_in_95_of_100_cases(calls):
    runs = np.random.default_rng(0).lognormal(mean=1.0, sigma=0.5, size=(2000, calls))  # its median is e
    covered = np.mean([low <= math.e <= high for low, _, high in map(interval, runs)])
    assert 0.94 < covered < 0.985


def test_steady_calls_are_timed_exactly_and_no_longer_than_needed():
    machine = Machine()
    times = machine.time(small=lambda _: 2.0, dense=lambda _: 5.0)
    assert [times[name].median_ms for name in times] == pytest.approx([2.0, 5.0])
    assert times["dense"].calls == SURE
    assert times["dense"].uncertainty == pytest.approx(0.0, abs=1e-9)
    assert times.drift == pytest.approx(0.0, abs=1e-9)
    assert times.noisy is None


def test_noisy_calls_are_timed_until_the_time_is_used():
    machine, noise = Machine(), np.random.default_rng(0)
    times = machine.time(net=lambda _: noise.lognormal(1.0, 1.0))
    assert 1.1 <= machine.now < 1.2  # a tenth to warm up
    assert times["net"].calls > SURE
    assert times["net"].uncertainty > 0.05
    assert times["net"].low_ms < math.e < times["net"].high_ms
    assert times.noisy is not None


def test_slow_calls_are_timed_a_few_times_whatever_the_time():
    machine = Machine()
    assert machine.time(seconds=0.1, net=lambda _: 400.0)["net"].calls == ROUNDS
    assert machine.ran == ["net"] * (2 + ROUNDS)  # no call to fill the caches before a long one


def test_a_ratio_cancels_a_slow_down_that_hits_both():
    noise = np.random.default_rng(0)

    def slower_and_slower(now):
        return (1 + now) * noise.normal(1.0, 0.02)

    times = Machine().time(dense=lambda now: 8 * slower_and_slower(now), small=lambda now: 4 * slower_and_slower(now))
    ratio = times.ratio("small", "dense")
    assert ratio.low < 0.5 < ratio.high
    assert ratio.uncertainty < 0.02
    assert ratio.median == pytest.approx(0.5, rel=0.02)
    assert times["small"].uncertainty > 0.05
    assert times.drift > 0.3


def test_drift_is_found_and_told():
    times = Timings({"dense": (10.0,) * 10 + (13.0,) * 10, "small": (5.0,) * 10 + (4.0,) * 10})
    assert times.drift_of("dense") == pytest.approx(0.3)
    assert times.drift_of("small") == pytest.approx(-0.2)
    assert times.drift == pytest.approx(0.3)
    assert times.noisy.startswith("in the second half of the rounds dense took 30% longer than in the first; stop what")


def test_a_median_that_is_not_known_well_enough_is_told():
    times = Timings({"dense": (10.0,) * 20, "small": (4.0, 6.0) * 10})
    assert times.drift == 0
    assert times.noisy.startswith("the latency of small is only known to ±20%; stop what else runs")
    assert Timings({"dense": (10.0,) * 20, "small": (4.9, 5.0, 5.1, 5.0) * 5}).noisy is None


def test_a_small_model_is_timed_with_its_weights_in_the_caches():
    """After another model's turn its first call takes four times as long, its second twice."""
    machine = Machine()

    def cold_at_first(_):
        last = machine.ran[-2:]
        return 0.8 if last[-1:] != ["small"] else 0.4 if last[:1] != ["small"] else 0.2

    times = machine.time(small=cold_at_first, dense=lambda _: 30.0)
    assert times["small"].median_ms == pytest.approx(0.2)
    assert times.ratio("small", "dense").median == pytest.approx(0.2 / 30)


def test_ratios_are_paired_round_by_round():
    assert share([1.0, 2.0, 30.0], [2.0, 4.0, 60.0]) == share([0.5], [1.0])
    with pytest.raises(ValueError, match="shorter"):
        share([1.0, 2.0], [1.0])


def test_a_timing_is_read_from_json_also_from_an_older_one():
    old = Timing(**json.loads('{"median_ms": 2.0, "spread_ms": 0.1, "calls": 9}'))
    assert old.uncertainty == math.inf
    assert old.spread == pytest.approx(0.05)
    new = Machine().time(net=lambda _: 2.0)["net"]
    assert Timing(**json.loads(json.dumps(asdict(new), allow_nan=False))) == new


def test_timings_show_their_figures_and_not_every_call():
    times = Timings({"net": (1.0, 2.0, 4.0) * 9})
    assert list(times) == ["net"]
    assert len(times) == 1
    assert "median_ms=2.0" in repr(times)
    assert "4.0, 1.0" not in repr(times)


@pytest.mark.parametrize(
    "runtime", [*("eager", "onnxruntime", "openvino"), pytest.param("compile", marks=pytest.mark.slow)]
)
def test_every_runtime_computes_what_eager_does(net, images, runtime):
    if runtime not in available():
        pytest.skip(missing(runtime))
    call = prepare(net, images, Conditions(runtime, threads=1))
    assert net.training
    torch.testing.assert_close(outputs(call), net.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditions", [Conditions(precision="bfloat16"), Conditions("openvino", None, "bfloat16")])
def test_a_lower_precision_is_really_used(net, images, conditions):
    if conditions.runtime not in available():
        pytest.skip(missing(conditions.runtime))
    exact = net.eval()(images)
    try:
        difference = (outputs(prepare(net, images, conditions)).float() - exact).abs().max()
    except NasPruneError as error:
        pytest.skip(str(error))  # OpenVINO has bfloat16 on some processors only
    assert 1e-5 < difference < 0.05


def test_channels_last_is_really_used(net, images):
    net.body[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous(memory_format=last)))
    last, seen = torch.channels_last, []
    output = outputs(prepare(net, images, Conditions(channels_last=True)))
    assert seen == [True, True]
    torch.testing.assert_close(output, net.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conditions", [Conditions(), Conditions("eager", 1, "bfloat16", True)])
def test_timing_leaves_model_inputs_and_threads_as_they_were(net, images, conditions):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image, strides = images.clone(), net.body[0].weight.stride()
    threads = torch.get_num_threads()
    times = measure_together({"one": net, "two": net}, images, conditions=conditions, seconds=0.01)
    assert times["one"].calls >= ROUNDS
    assert net.training
    assert net.body[0].weight.stride() == strides
    assert all(value.dtype == before[name].dtype for name, value in net.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(images, image)
    assert torch.get_num_threads() == threads


def test_a_model_that_ran_with_gradients_can_be_timed(images):
    """timm's attention biases are kept between calls in eval mode; such a tensor cannot be copied."""

    class Remembering(Convolutions):
        kept = None

        def train(self, mode=True):
            self.kept = None if mode else self.kept
            return super().train(mode)

        def forward(self, x):
            self.kept = 2 * self.head[2].weight
            return super().forward(x)

    model = Remembering().eval()
    model(images)
    assert measure(model, images, seconds=0.01).median_ms > 0


@pytest.mark.parametrize(
    ("runtime", "package", "line"),
    [
        ("onnxruntime", "onnxruntime", 'pip install "nas_prune[onnx]"'),
        ("openvino", "openvino", 'pip install "nas_prune[openvino]"'),
        ("tensorrt", "torch_tensorrt", "pip install torch-tensorrt"),
    ],
)
def test_a_runtime_that_is_not_installed_says_how_to_install_it(monkeypatch, net, images, runtime, package, line):
    monkeypatch.setitem(sys.modules, package, None)
    assert runtime not in available()
    with pytest.raises(RuntimeMissingError) as raised:
        measure(net, images, runtime=runtime)
    assert str(raised.value).endswith(f"needs the package {package}, which is not installed; run: {line}")


def test_torch_compile_without_a_compiler_says_so(monkeypatch, net, images):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(RuntimeMissingError, match="needs a C\\+\\+ compiler"):
        measure(net, images, runtime="compile")


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        (Conditions("onnxruntime", precision="bfloat16"), "onnxruntime cannot be timed in bfloat16"),
        (Conditions("onnxruntime", channels_last=True), "onnxruntime chooses its memory layout itself"),
        (Conditions("openvino", channels_last=True), "openvino chooses its memory layout itself"),
    ],
)
def test_what_a_runtime_cannot_do_is_refused(net, images, conditions, reason):
    if conditions.runtime not in available():
        pytest.skip(missing(conditions.runtime))
    with pytest.raises(NasPruneError, match=reason):
        prepare(net, images, conditions)


def test_a_wrong_name_has_a_hint(net, images):
    with pytest.raises(UnknownNameError, match="did you mean 'onnxruntime'"):
        measure(net, images, runtime="onnxruntim")


def test_a_model_that_does_not_run_says_under_which_conditions(net):
    with pytest.raises(RunError, match="Convolutions does not run under these conditions: eager, 1 thread, bfloat16"):
        prepare(net, torch.randn(2, 4, 16, 16), Conditions("eager", 1, "bfloat16"))


def test_what_the_older_exporter_cannot_export_the_newer_one_does(monkeypatch, net, images):
    if "onnxruntime" not in available():
        pytest.skip(missing("onnxruntime"))
    export = torch.onnx.export

    def newer_only(*arguments, dynamo, **options):
        if not dynamo:
            raise RuntimeError("unsupported operator")
        return export(*arguments, dynamo=True, **options)

    monkeypatch.setattr(torch.onnx, "export", newer_only)
    call = prepare(net, images, Conditions("onnxruntime"))
    torch.testing.assert_close(outputs(call), net.eval()(images), rtol=1e-4, atol=1e-4)


def test_conditions_are_plain_data():
    conditions = Conditions("openvino", 2, "bfloat16")
    assert Conditions(**json.loads(json.dumps(conditions.as_dict()))) == conditions
    assert str(conditions) == "openvino, 2 threads, bfloat16"
    assert str(Conditions(channels_last=True)) == "eager, channels last"


@pytest.mark.parametrize(("dense", "chosen"), [([10, 7, 9], 0), ([13, 10.5, 9], 1), ([13, 12, 11, 14, 9], 2)])
def test_disturbed_timings_are_taken_again(dense: list[float], chosen: int) -> None:
    moments = [Timings({"dense": (ms,) * 6, "small": (number,) * 6}) for number, ms in enumerate(dense)]
    coming = iter(moments)
    assert undisturbed(lambda: next(coming), {"dense": 10.0}) is moments[chosen]
    left = len(list(coming))
    assert left == {0: 2, 1: 1, 2: 1}[chosen]  # four timings at most
    assert undisturbed(lambda: moments[0], {}) is moments[0]


def test_a_crowded_machine_is_given_time() -> None:
    crowded, calm = (Timings({"dense": (ms,) * 6}) for ms in (30.0, 10.0))
    coming, waited = iter([crowded, crowded, calm]), list[float]()
    assert undisturbed(lambda: next(coming), {"dense": 10.0}, pause=waited.append) is calm
    assert waited == [*PAUSES[:2]]
    assert undisturbed(lambda: crowded, {"dense": 10.0}, pause=waited.append) is crowded
    assert waited[2:] == [*PAUSES]
