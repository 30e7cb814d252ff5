"""Every part of ``gpu_parts`` in a process of its own, with a time limit; figures as JSON lines, then a Markdown table.

python benchmarks/gpu.py [FOLDER] [--tiny] [--parts NAME ...] [--seconds 540]     (gpu.sh also sees to the packages)

A part that breaks, hangs or cannot run here takes none of the others with it: its row says why. Exit code 0 always.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAST = 3  # lines of an error that go into the table
LEAST = 10  # seconds that are worth starting a part for


@dataclass(frozen=True)
class Row:
    """One line of the table: what was tried, and the figures that came of it, or why there are none."""

    part: str
    case: str
    figures: dict[str, Any]
    note: str = ""

    def as_line(self) -> str:
        """For the JSON lines."""
        return json.dumps(vars(self))

    def as_markdown(self) -> str:
        """For the table."""
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in self.figures.items())
        cells = (self.part, self.case, shown, self.note)
        return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), '; ') for cell in cells)} |"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(part: str, tiny: bool, limit: float, folder: Path) -> Iterator[Row]:
    """The rows of one part."""
    path, errors = folder / "figures.jsonl", folder / "error.txt"
    errors.unlink(missing_ok=True)
    known, start = len(rows_of(path)), time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(part, tiny, folder))
    process.start()
    process.join(limit)
    hung = process.is_alive()
    if hung and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        process.join()
    took = round(time.monotonic() - start, 1)
    rows = rows_of(path)[known:]
    yield from rows
    if hung:
        yield Row(part, "", {"seconds": took}, f"stopped: its limit is {limit:.0f} s; {len(rows)} rows by then")
    elif process.exitcode:
        why = errors.read_text().splitlines()[-LAST:] if errors.exists() else [f"exit code {process.exitcode}"]
        yield Row(part, "", {"seconds": took}, f"FAILED: {'; '.join(why)}")
    elif errors.exists():
        yield Row(part, "", {}, f"skipped: {errors.read_text()}")
    else:
        yield Row(part, "", {"seconds": took}, "done")


def _child(part: str, tiny: bool, folder: Path) -> None:
    """A part: rows as they come, so that those of a part that is stopped stay; its output goes to the log."""
    os.setsid()
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    print(f"\n== {part}", flush=True)
    import gpu_parts

    try:
        for case, figures in gpu_parts.PARTS[part].run(tiny):
            _append(folder / "figures.jsonl", Row(part, case, figures))
    except gpu_parts.Skipped as why:
        (folder / "error.txt").write_text(str(why))
    except BaseException:
        text = traceback.format_exc()
        (folder / "error.txt").write_text(text)
        print(text, flush=True)
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)  # a compiler's workers and a broken driver may hold up an orderly end


def _append(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(row.as_line() + "\n")


def rows_of(path: Path) -> list[Row]:
    """What has been written; a line that a killed part left half written is no row."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def table(rows: Sequence[Row], command: str) -> str:
    """The Markdown table."""
    head = [f"`{command}`", "", "| part | case | figures | note |", "|---|---|---|---|"]
    return "\n".join([*head, *(row.as_markdown() for row in rows)]) + "\n"


def main() -> None:
    """Run what is asked for, and print the table."""
    import gpu_parts  # what is imported here need not be imported by each part

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(os.environ.get("OUT") or "gpu-figures"))
    parser.add_argument("--tiny", action="store_true", help="small nets: does every part run?")
    parser.add_argument("--parts", nargs="+", choices=gpu_parts.PARTS, default=list(gpu_parts.PARTS))
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("figures.jsonl", "log.txt"):
        (folder / name).unlink(missing_ok=True)
    end, rows = time.monotonic() + options.seconds, list[Row]()
    for name in options.parts:
        left = end - time.monotonic()
        new = [Row(name, "", {}, "skipped: the time for all parts is used")]
        if left >= LEAST:
            limit = gpu_parts.PARTS[name].limit * (3 if options.tiny else 1)  # a CPU, and other work on it
            new = list(run(name, options.tiny, min(left, limit), folder))
        rows += new
        print(*(row.as_markdown() for row in new), sep="\n", flush=True)
    text = table(rows, f"sh benchmarks/gpu.sh{' --tiny' if options.tiny else ''}")
    (folder / "table.md").write_text(text)
    (folder / "figures.jsonl").write_text("".join(row.as_line() + "\n" for row in rows))
    (folder / "error.txt").unlink(missing_ok=True)
    print(f"\n{text}\nfigures: {folder}")


if __name__ == "__main__":
    main()
