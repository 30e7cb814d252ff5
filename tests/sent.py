"""What the W&B client has written for the server, read back from the files of offline runs."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def sent_records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """What the W&B client wrote for the server, in order, from the files of its offline runs."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [record for path in files for record in written(path)]


def written(path: Path) -> list[wandb_internal_pb2.Record]:
    """The records of one run; W&B's own process may still be writing them for a while after the run has ended."""
    deadline = time.monotonic() + 30
    while True:
        records = [wandb_internal_pb2.Record.FromString(data) for data in chunks(path.read_bytes())]
        if (records and records[-1].HasField("exit")) or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def chunks(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB; checksum, length and kind (whole, first, middle, last) first."""
    position, record = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + length > len(content):
            return  # not all of it is there yet
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def sent_rows(folder: Path) -> list[dict[str, Any]]:
    """Every row of a stage that W&B was given; pages and signs of life are rows of their own."""
    histories = [record.history.item for record in sent_records(folder) if record.HasField("history")]
    rows = [{".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items} for items in histories]
    return [row for row in rows if "stage" in row]


def sent_config(folder: Path) -> dict[str, Any]:
    """The config of a run, as the server has it after all updates."""
    updates = [item for record in sent_records(folder) for item in record.run.config.update]
    return {item.key: json.loads(item.value_json) for item in updates}


def sent_summary(folder: Path) -> dict[str, Any]:
    """The last value of everything in the summary of a run."""
    updates = [item for record in sent_records(folder) for item in record.summary.update]
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates}


def exit_codes(folder: Path) -> list[int]:
    """How each start of a run was closed."""
    return [record.exit.exit_code for record in sent_records(folder) if record.HasField("exit")]
