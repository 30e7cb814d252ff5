"""Laws of the report: one offline page, made of the run folder alone, honest about what is predicted or missing."""

import io
import math
import random
import re
import shutil
import subprocess
from base64 import b64decode
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from nas_prune.base.errors import ArtifactError, RecipeError
from nas_prune.base.files.whole import append_line, read_json, write_json
from nas_prune.cli.show import show
from nas_prune.run.report.curves import MOST_BARS, falls, scatter, waterfall
from nas_prune.run.report.page import report, table, targets_table
from nas_prune.run.report.pictures import write_pictures
from nas_prune.run.report.summary import headline, stage_rows, table_rows, verdict
from nas_prune.run.report.targets import PAPER, pareto_svg, save_pareto, target_rows, targets_headline

DEVICE = {"cpu": "Example CPU @ 2.60GHz", "cores": 2, "torch": "2.15.0", "timm": "1.0.31"}


def results() -> dict[str, Any]:
    """The results.json of a finished run."""
    dense = {"top1": 93.42, "macs": 37_190_000, "params": 11_169_610, "predicted_ms": 41.9}
    small = {"top1": 91.87, "macs": 15_020_000, "params": 4_101_338, "predicted_ms": 20.6}
    return {
        "status": "met",
        "target_ms": 21.0,
        "budget": {"cost": "latency", "limit": 21.0, "reached": 20.4, "unit": "ms"},
        "max_abs_error": 3.1e-6,
        "seconds": {"dense": 412.3, "calibrate": 96.0, "search": 318.9, "derive": 4.2, "finetune": 301.5},
        "device": DEVICE,
        "dense": {**dense, "measured_ms": 42.0, "measured_ms_spread": 0.4},
        "gated": {**small, "measured_ms": None},
        "derived": {**small, "measured_ms": 20.4, "measured_ms_spread": 0.3},
        "finetuned": {**small, "top1": 93.05, "measured_ms": 20.4, "measured_ms_spread": 0.3},
        "rounds": [
            {"predicted": 20.9, "measured": 22.3, "target": 21.0},
            {"predicted": 20.6, "measured": 20.4, "target": 19.8},
        ],
    }


def axes() -> list[dict[str, Any]]:
    """The axes of a small residual network, one of them frozen."""
    widths = {f"layer{1 + i // 2}.{i % 2}.conv1": 64 * 2 ** (i // 2) for i in range(8)}
    free = [{"name": name, "kind": "channel", "size": size, "frozen": None} for name, size in widths.items()]
    heads = [{"name": "attention_pool.heads", "kind": "head", "size": 8, "frozen": None}]
    return [
        *free,
        *heads,
        {"name": "<script>alert(1)</script>", "kind": "channel", "size": 3, "frozen": "the input image"},
    ]


def metrics(draw: random.Random) -> list[dict[str, Any]]:
    """The journal of three stages."""
    rows: list[dict[str, Any]] = []
    for stage, epochs, first, top in (("dense", 20, 2.2, 93.4), ("search", 10, 0.5, 91.9), ("finetune", 12, 0.6, 93.0)):
        for step in range(1, 4 * epochs + 1):
            loss = 0.15 + first * math.exp(-4 * step / (4 * epochs)) + draw.gauss(0, 0.02)
            rows.append({"stage": stage, "epoch": step / 4, "train/loss": loss})
            if step % 4 == 0:
                rows.append(
                    {"stage": stage, "epoch": step / 4, "eval/top1": top - 30 * math.exp(-7 * step / (4 * epochs))}
                )
            if stage == "search":
                gates = {
                    f"gate/{axis['name']}": 1 - 0.5 * step / 40 * (1 + 0.4 * math.sin(i))
                    for i, axis in enumerate(axes()[:9])
                }
                rows[-1] |= {
                    **gates,
                    "search/open": 1 - 0.5 * step / 40,
                    "search/predicted_ms": 42 - 21.4 * (step / 40) ** 0.6,
                }
    return [row | {"time": float(i)} for i, row in enumerate(rows)]


def finished_run(folder: Path) -> Path:
    """A run folder with everything in it."""
    draw = random.Random(0)
    folder.mkdir()
    (folder / "recipe.yaml").write_text("model:\n  name: resnet18\ndata:\n  name: fashion_mnist\nnote: <b>&</b>\n")
    for row in metrics(draw):
        append_line(folder / "metrics.jsonl", row)
    write_json(folder / "axes.json", {"axes": [{**axis, "divisor": 1, "members": []} for axis in axes()]})
    kept = {
        axis["name"]: sorted(draw.sample(range(axis["size"]), draw.randint(3, axis["size"]))) for axis in axes()[:9]
    }
    write_json(folder / "arch.json", {"kept": kept})
    error = {"mape": 0.021, "max_ape": 0.064, "spearman": 0.991, "kendall": 0.934, "held_out": 12}
    facts = {"runtime": "eager", "batch_size": 32, "threads": 2, "device": DEVICE, "dense_ms": 42.0, "error": error}
    write_json(folder / "calibration" / "calibration.json", {**facts, "noise": 0.008})
    for _ in range(60):
        ms = draw.uniform(9, 42)
        row = {
            "sizes": {},
            "ms": ms,
            "spread": 0.01,
            "predicted_ms": ms * draw.gauss(1, 0.025),
        }
        append_line(folder / "calibration" / "samples.jsonl", row)
    write_json(folder / "results.json", results())
    return folder


def browse(page: Path, *options: str) -> str:
    """What a real browser prints when it opens ``page``."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [
        chromium,
        *flags.split(),
        "--disable-component-update",
        "--disable-sync",
        profile,
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def words(page: str, section: str) -> str:
    """The text of one section of the page."""
    inside = page.partition(f'<section id="{section}">')[2].partition("</section>")[0]
    return " ".join(re.sub(r"<[^>]+>", " ", inside).split())


@pytest.mark.zoo
def test_the_page_shows_the_run_in_a_real_browser(tmp_path: Path) -> None:
    page = report(finished_run(tmp_path / "run"))
    seen = browse(page, "--dump-dom")
    assert "2.1x faster (measured: 42.0 → 20.4 ms), top-1 93.4 → 93.0 %, with 60 % fewer MACs" in seen
    assert "Target of 21.0 ms met: 20.4 ms measured." in seen
    assert "Measured latency (ms) 42.0 ± 0.4 — 20.4 ± 0.3 -51.4 %" in words(seen, "result")
    assert "layer1.0.conv1 64 →" in words(seen, "architecture")
    assert "the input image" in words(seen, "architecture")
    assert "2.1 % on the held-out ones, at worst 6.4 %" in words(seen, "latency")
    assert "search 5 min 19 s" in words(seen, "time")
    assert "Example CPU" in words(seen, "device")
    assert seen.count("<figure") == seen.count('<svg viewBox="0 0 460') == 5
    assert seen.count("<polyline") == 9
    assert "Not yet run" not in seen
    assert "not yet run" not in seen


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = report(finished_run(tmp_path / "run")).read_text()
    assert re.findall(r"""(?:src|href|url|@import)\s*[=(]?\s*["']?\s*(?:https?:)?//""", page) == []
    assert re.findall(r"<(?:script|link|iframe|img|object|embed)\b", page) == []
    assert "default-src 'none'" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "note: &lt;b&gt;&amp;&lt;/b&gt;" in page


@pytest.mark.parametrize(("threads", "said"), [(1, "1 thread"), (2, "2 threads")])
def test_one_thread_is_one_thread(tmp_path: Path, threads: int, said: str) -> None:
    folder = finished_run(tmp_path / "run")
    calibration = folder / "calibration" / "calibration.json"
    write_json(calibration, read_json(calibration, ArtifactError) | {"threads": threads})
    assert f"batch size 32, {said}</dd>" in report(folder).read_text()


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    assert report(folder).read_bytes() == report(folder).read_bytes()


@pytest.mark.parametrize("missing", ["results.json", "metrics.jsonl", "arch.json", "axes.json", "calibration"])
def test_a_run_that_has_not_gone_that_far_says_so(tmp_path: Path, missing: str) -> None:
    folder = finished_run(tmp_path / "run")
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert re.search(r"not (yet|chosen|been)|has no", report(folder).read_text(), re.IGNORECASE)


def test_a_run_that_has_just_begun_is_a_page_of_what_is_to_come(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    page = report(tmp_path).read_text()
    assert page.count("Not yet run") == 12
    assert page.count('<td class="absent">not yet run</td>') == 20


def test_a_broken_file_and_a_missing_folder_are_errors_that_name_it(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(RecipeError, match=r"no run in .* \(no recipe\.yaml\)"):
        report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(ArtifactError, match=r"results\.json"):
        report(tmp_path)
    with pytest.raises(RecipeError, match="nowhere"):
        report(tmp_path / "nowhere")


def test_the_terminal_has_the_rows_of_the_page() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(results()))
    text = console.export_text()
    for label, cells in table_rows(results()).items():
        assert label in text
        assert all(cell.text in text and cell.change in text for cell in cells)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, r"^2\.1x faster \(measured: "),
        ({"finetuned": {}}, r"^2\.1x faster \(measured: .*top-1 93\.4 → 91\.9 % before fine-tuning"),
        ({"finetuned": {"measured_ms": 84.0}}, r"^2x slower \(measured: 42\.0 → 84\.0 ms\)"),
        ({"finetuned": {"predicted_ms": 20.9}}, r"^2x faster \(predicted: 41\.9 → 20\.9 ms\)"),
        ({"derived": {}, "finetuned": {}}, r"^Not yet run to the end"),
    ],
)
def test_the_headline_says_what_was_measured(change: dict[str, Any], sentence: str) -> None:
    assert re.search(sentence, headline(results() | change))


def test_what_was_timed_on_a_disturbed_machine_is_said_to_be() -> None:
    disturbed = results()
    disturbed["derived"] |= {"measured_ms_spread": 5.0}
    assert headline(disturbed).startswith("2.1x faster (measured on a disturbed machine: 42.0 → 20.4 ms)")
    assert verdict(disturbed) == "Target of 21.0 ms met: 20.4 ms measured on a disturbed machine."
    counted = {"cost": "macs", "limit": 18_600_000, "reached": 18_200_000, "unit": "MACs"}
    assert verdict(disturbed | {"budget": counted}).endswith("18.20 M MACs counted.")
    many = targets()
    many["targets"][0]["measured_ms_spread"] = 5.0
    assert "(measured on a disturbed machine)" in targets_headline(many)
    assert "disturbed" not in headline(results()) + verdict(results()) + targets_headline(targets())


def test_a_run_ends_with_its_result_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    show(results())
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("x faster (measured") == shown.count("Target of") == 1


def test_nothing_is_said_of_the_accuracy_of_a_dense_model_that_was_never_trained() -> None:
    known = results() | {"dense": results()["dense"] | {"top1": None}}
    assert re.search(r"ms\), top-1 93\.0 %, with", headline(known))
    dense, *others = table_rows(known)["Top-1 (%)"]
    assert (dense.text, dense.known) == ("—", False)
    assert all(cell.change == "" for cell in others)


def test_a_missed_budget_is_said_with_its_reason() -> None:
    missed = results() | {"status": "missed", "budget": results()["budget"] | {"reached": 23.0}}
    assert verdict(missed) == "Target of 21.0 ms missed: 23.0 ms measured."
    assert verdict({}) == "Target not yet measured."
    limit = {"cost": "params", "limit": 2.0e6, "reached": 2.4e6, "unit": "parameters", "status": "missed"}
    told = verdict(results() | {"status": "missed", "limits": [limit]})
    assert told.startswith("Target of 21.0 ms met: 20.4 ms measured.")
    assert told.endswith(" Limit of 2.00 M parameters (params) missed: 2.40 M parameters.")
    counted = {"cost": "macs", "limit": 18_600_000, "reached": 18_200_000, "unit": "MACs"}
    assert verdict(results() | {"budget": counted}) == "Target of 18.60 M MACs met: 18.20 M MACs counted."
    none = {"status": "infeasible", "target": "0.01x", "why": "the smallest network takes 0.2x"}
    assert verdict(none) == "Target infeasible: the smallest network takes 0.2x."
    assert headline(none) == "No network of the search space meets the target of 0.01x."


def test_a_target_that_is_met_from_far_below_is_said_with_its_reason() -> None:
    short = "of 9 measured architectures the closest within it is 33 % below"
    said = f"Target of 21.0 ms met: 20.4 ms measured; {short}."
    assert verdict(results() | {"status": "met", "short": short}) == said


STAGES = {
    "dense": {"conv1": 3.0, "layer1": 20.0, "layer2": 18.0, "fc": 0.25, "other": 0.75},
    "derived": {"conv1": 3.0, "layer1": 9.0, "layer2": 7.5, "fc": 0.5, "other": 0.5},
}


def targets() -> dict[str, Any]:
    """The targets.json of a run with one target met, one met but not fine-tuned, and one missed."""
    rows = [
        ("0.5x", 20.4, 91.9, 93.05, "met"),
        ("0.35x", 14.5, 88.2, None, "met"),
        ("8ms", 9.3, 78.0, 90.7, "missed"),
    ]
    return {
        "targets": [
            {
                **{
                    "target": name,
                    "target_ms": ms,
                    "budget": {"cost": "latency", "limit": ms, "reached": ms, "unit": "ms"},
                    "measured_ms": ms,
                    "measured_ms_spread": 0.4,
                    "measured_share": ms / 42.0,
                    "predicted_ms": 1.02 * ms,
                },
                **{"top1": top1, "top1_finetuned": tuned, "macs": 15_000_000, "params": 4_000_000, "status": status},
                "short": "the next one 5 % above" if name == "0.5x" else None,
                "folder": f"targets/{name}",
            }
            for name, ms, top1, tuned, status in rows
        ],
        "dense": {"top1": 93.42, "measured_ms": 42.0, "measured_share": 1.0},
    }


def predictors() -> dict[str, Any]:
    """What calibration.json says of several predictors."""
    shares = {"lpnet": 0.031, "additive": 0.021}
    ranks = {"spearman": 0.99, "kendall": 0.93, "held_out": 60}
    errors = {name: {"mape": share, "max_ape": 3 * share, **ranks} for name, share in shares.items()}
    return {"errors": errors, "predictor": "additive", "interval": [0.017, 0.026], "noise": 0.008}


def test_new_sections_appear_with_their_data_only(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    old = report(folder).read_text()
    assert "Predictors" not in words(old, "latency")
    assert not any(f'id="{section}"' in old for section in ("stages", "targets"))
    write_json(folder / "results.json", results() | {"stages": STAGES})
    write_json(folder / "targets.json", targets())
    calibration = folder / "calibration" / "calibration.json"
    write_json(calibration, read_json(calibration, ArtifactError) | predictors())
    page = report(folder).read_text()
    assert "layer1 20.00 9.00 11.00 50.6 %" in words(page, "stages")
    assert "all 42.00 20.50 21.50" in words(page, "stages")
    assert "8ms 9.30 9.49 9.30 ± 0.40 4.52x 78.00 90.70" in words(page, "targets")
    assert words(page, "targets").count("the next one") == 1
    assert "0.5x: the next one 5 % above" in words(page, "targets")
    assert '<tr class="chosen"><th scope="row">additive</th>' in page
    assert "95 % of the mean: 1.7 % to 2.6 %" in words(page, "latency")
    assert re.search(r"additive 2\.1 % .* lpnet 3\.1 % .* noise floor 0\.8 %", words(page, "latency"))
    assert page.count("<figure") == page.count("</figure>") == 7
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", page) == []


def test_targets_alone_are_a_page_that_leads_with_them(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    write_json(tmp_path / "targets.json", targets())
    page = report(tmp_path).read_text()
    assert f"<h1>{targets_headline(targets())}</h1>" in page
    assert 'id="result"' not in page


def test_the_bars_of_a_waterfall_add_up() -> None:
    bars = falls(stage_rows(STAGES))
    assert bars[0] == ("dense", 0.0, 42.0)
    assert bars[-1] == ("derived", 0.0, 20.5)
    assert [start for _, start, _ in bars[1:-1]] == [end for _, _, end in bars[:-2]]
    assert bars[-2][2] == bars[-1][2]
    assert sum(row.share or 0.0 for row in stage_rows(STAGES)) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [5, MOST_BARS, 60])
def test_a_waterfall_shows_so_many_stages_as_can_be_read(count: int) -> None:
    dense = {f"blocks.{index}": 1.0 + index for index in range(count)}
    drawing = waterfall(stage_rows({"dense": dense, "derived": {name: ms / 2 for name, ms in dense.items()}}))
    assert drawing is not None
    assert len(set(re.findall(r"blocks\.\d+", drawing))) == (count if count <= MOST_BARS else MOST_BARS - 1)
    assert ("37 smaller steps" in drawing) == (count == 60)
    assert "var(--good)" in drawing


def test_there_is_no_waterfall_without_both_models() -> None:
    assert waterfall(stage_rows({"dense": {"fc": 1.0}})) is None
    assert stage_rows({}) == []


def test_a_scatter_says_how_well_it_can_be_known() -> None:
    rows = [{"ms": 4.0, "predicted_ms": 4.1}, {"ms": 8.0, "predicted_ms": 8.3}]
    known, unknown = scatter(rows, [], None, 0.008), scatter(rows, [], None)
    assert known is not None
    assert "noise floor of a timing: 0.8 %" in known
    assert "±5 %" in known
    assert unknown is not None
    assert "noise floor" not in unknown


def test_the_pareto_chart_names_every_target_and_marks_the_missed() -> None:
    drawing = pareto_svg(targets())
    assert drawing is not None
    assert all(
        f">{name}</text>" in drawing for name in ("0.5x", "0.35x", "8ms", "dense", "fine-tuned", "target missed")
    )
    content = targets()
    content["targets"] = content["targets"][1:2]
    alone = pareto_svg(content)
    assert alone is not None
    assert "fine-tuned" not in alone
    assert "target missed" not in alone
    assert pareto_svg({}) is None


def test_a_saved_chart_stands_alone(tmp_path: Path) -> None:
    path = save_pareto(targets(), tmp_path / "pareto.svg")
    assert path is not None
    saved = path.read_text()
    assert "var(--" not in saved
    assert 'xmlns="http://www.w3.org/2000/svg"' in saved
    ElementTree.fromstring(saved)
    assert save_pareto({}, tmp_path / "nothing.svg") is None
    assert not (tmp_path / "nothing.svg").exists()


def test_a_saved_chart_has_the_colours_of_the_page() -> None:
    page = resources.files("nas_prune.run.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    light = page.partition("@media")[0]
    assert all(f"--{name}: {colour};" in light for name, colour in PAPER.items())


def test_the_terminal_has_every_target() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(targets_table(targets()))
    text = " ".join(console.export_text().split())
    assert "2 of 3 latency targets met, the fastest 2.9x faster than the dense model (measured)." in text
    hidden = ("predicted (ms)", "status")
    shown = [cell for row in target_rows(targets()) for name, cell in row.items() if name not in hidden]
    assert all(word in text.split() for cell in shown for word in cell.split())
    assert [text.split().count(status) for status in ("met", "missed")] == [2, 1]
    console.print(targets_table({}))
    assert targets_headline({}) == ""


def test_the_page_shows_the_pictures_that_a_selector_looked_at(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    assert 'id="pictures"' not in report(folder).read_text()
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    write_pictures(folder / "pictures", {"layer1.0.conv1": image, "<b>": image})
    page = report(folder).read_text()
    sent = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(sent) == 2
    read = np.asarray(Image.open(io.BytesIO(b64decode(sent[1]))))
    assert np.array_equal(read, image.movedim(0, -1).numpy())
    assert "&lt;b&gt;" in page
    assert "<summary>layer1.0.conv1</summary>" in page
