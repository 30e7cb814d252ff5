"""Hostile files: what a seed becomes when bytes flip, or when someone writes what a reader does not expect.

Every mutation is drawn from a generator, so that a number names a file.
"""

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import torch

MARK = "\u0001mark\u0001"
TOKENS = (  # of JSON, or not even that
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 6000, "-" + "9" * 6000, "1e308", "-1", "-0.5", "0"),
    *("true", "null", '""', '"x"', "[]", "{}", "[[]]", "[null]", str(2**63), str(10**18), "1.5", "1e-320", "-0.0"),
    *("[" * 100 + "]" * 100, "[" * 100_000, '{"a":' * 60 + "1" + "}" * 60, r'"\ud800"', r'"\u0000"', '{"a":1,"a":2}'),
    *('"' + "x" * 20_000 + '"', "[" + "1," * 3000 + "1]", '"../../../etc/passwd"', "1e", "-", "01", "+1", ""),
)
SCALARS = (  # of YAML, or not even that
    *(".nan", "-.inf", "1e999", "9" * 6000, "0x" + "f" * 6000, "-1", "0", "true", "no", "~", "[]", "{}", "''", "*a"),
    *("&a [*a]", "*nobody", "!!python/object/apply:os.system [echo]", "!!binary x", "!!int ''", "!!bool maybe", "1.5"),
    *(
        "'" + "x" * 20_000 + "'",
        "[" * 200,
        "{a: " * 200,
        "[" * 30 + "]" * 30,
        "2001-99-99",
        "{a: 1, a: 2}",
        "? [a] : b",
    ),
    *('"\\ud800"', '"\\x00"', "|", ">-", "<<: 1", "{<<: [1]}", "- a", "a: b: c", "1/3", "1e99999999", "@", "%", "\t"),
)


def alias_bomb(levels: int = 9, *, merge: bool = False) -> str:
    """Nine levels of nine aliases each: four hundred million values in a thousand bytes."""
    lines = ["bomb0: &b0 {x: 1}" if merge else "bomb0: &b0 [x]"]
    for level in range(1, levels + 1):
        names = ", ".join([f"*b{level - 1}"] * 9)
        lines.append(f"bomb{level}: &b{level} " + (f"{{<<: [{names}]}}" if merge else f"[{names}]"))
    return "\n".join(lines) + "\n"


def bytes_mutant(content: bytes, draw: Random) -> bytes:
    """The same file after an accident."""
    spot = draw.randrange(len(content) + 1)
    end = min(len(content), spot + draw.randint(1, 40))
    accidents: tuple[Callable[[], bytes], ...] = (
        lambda: _flipped(content, draw),
        lambda: _flipped(content, draw),
        lambda: content[:spot],
        lambda: b"",
        lambda: content + content,
        lambda: content[:spot] + draw.randbytes(draw.randint(1, 20)) + content[spot:],
        lambda: content[:spot] + content[end:],
        lambda: content[:spot] + b"\xff\xfe\xed\xa0\x80" + content[spot:],
        lambda: content[:spot] + bytes(8) + content[end:],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.decode("latin-1").encode("utf-16"),
        lambda: content[:spot] + content[spot:end] * 3 + content[end:],
        lambda: content[:spot] + draw.choice([b"[", b"{", b'"', b"\\", b"\n", b"-", b","]) * 5000 + content[spot:],
        lambda: draw.randbytes(draw.randint(1, 300)),
    )
    return draw.choice(accidents)()


def json_mutant(content: bytes, draw: Random) -> bytes:
    """The same JSON with one place in it changed, and now and then an accident."""
    if draw.random() < 0.25:
        return bytes_mutant(content, draw)
    root = [json.loads(content)]
    owner, key = draw.choice(list(_places(root)))
    old, raw = owner[key], draw.choice(TOKENS)
    change = draw.choice(["replace"] * 6 + ["delete", "add", "twice", "rename", "negate"])
    named = isinstance(owner, dict)
    if change == "delete" and named:
        del owner[key]
    elif change == "add" and isinstance(old, dict):
        old[draw.choice(["unknown", "", "a" * 5000, "__class__", "\ud800"])] = MARK
    elif change == "twice" and named:
        owner[key], raw = MARK, f"{json.dumps(old)}, {json.dumps(key)}: {json.dumps(old)}"
    elif change == "rename" and named:
        owner[draw.choice(["other", key + "x", key.upper(), ""])] = owner.pop(key)
    elif change == "negate" and isinstance(old, int | float):
        owner[key] = draw.choice([-old, -1 - old, 1e30 * old, str(old), [old], old + 0.5])
    else:
        owner[key] = MARK
    return json.dumps(root[0]).replace(json.dumps(MARK), raw).encode()


def journal_mutant(content: bytes, draw: Random) -> bytes:
    """The same journal with one line of it changed, and now and then an accident."""
    if draw.random() < 0.2:
        return bytes_mutant(content, draw)
    lines = content.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = json_mutant(lines[number], draw)
    return b"\n".join(lines) + draw.choice([b"\n", b"\n", b"\n", b"", b"\n\n", b"\n{"])


def yaml_mutant(content: bytes, draw: Random) -> bytes:
    """The same YAML with a line of it changed, and now and then an accident."""
    if draw.random() < 0.2:
        return bytes_mutant(content, draw)
    lines = content.decode().splitlines()
    number = draw.choice([n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")])
    line = lines[number]
    head, colon, _ = line.partition(":")
    change = draw.choice(["value"] * 6 + ["twice", "delete", "indent", "inside", "add", "bomb"])
    if change == "value":
        lines[number] = f"{head}{colon} {draw.choice(SCALARS)}"
    elif change == "twice":
        lines.insert(number, line)
    elif change == "delete":
        del lines[number]
    elif change == "indent":
        lines[number] = draw.choice([" ", "\t", "   "]) + line
    elif change == "inside":
        lines[number] = line[: draw.randrange(len(line) + 1)] + draw.choice(SCALARS)
    elif change == "add":
        lines.insert(number, f"{draw.choice(['unknown', 'a' * 3000, '? x', '-', '<<'])}: {draw.choice(SCALARS)}")
    else:
        bomb = alias_bomb(draw.randint(2, 9), merge=draw.random() < 0.5).splitlines()
        lines = [*bomb, *lines[:number], f"{head}{colon} *{bomb[-1].split()[1][1:]}", *lines[number + 1 :]]
    return ("\n".join(lines) + "\n").encode()


def safetensors_mutant(content: bytes, draw: Random) -> bytes:
    """The same file of tensors with its header changed, or after an accident."""
    if draw.random() < 0.4:
        return bytes_mutant(content, draw)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    changed = json_mutant(header, draw)
    told = (
        len(changed) if draw.random() < 0.85 else draw.choice([0, 1, 2**63, 2**40, len(changed) + 1, len(changed) - 1])
    )
    return struct.pack("<Q", told) + changed + data


def tensor_mutant(value: torch.Tensor, draw: Random) -> Any:
    """A tensor of another shape, type or content, or none."""
    changes: tuple[Callable[[], Any], ...] = (
        lambda: torch.full(value.shape, float("nan")),
        lambda: torch.full(value.shape, float("inf")),
        lambda: -torch.ones(value.shape, dtype=value.dtype) - value,
        lambda: torch.zeros((*value.shape, 2), dtype=value.dtype),
        lambda: value.flatten()[:-1].clone(),
        lambda: torch.zeros(0),
        lambda: torch.zeros(()),
        lambda: value.double(),
        lambda: value.to(torch.complex64),
        lambda: value.to(torch.int8),
        lambda: torch.zeros(()).expand(10**6, 10**6),
        lambda: torch.sparse_coo_tensor(size=tuple(value.shape), check_invariants=False),
        lambda: None,
        lambda: "tensor",
        lambda: value.tolist(),
        lambda: {},
    )
    return draw.choice(changes)()


def state_mutant(state: Any, draw: Random) -> Any:
    """A nested state with one place in it changed; ``state`` is changed itself."""
    owner, key = draw.choice(list(_places(state)))
    old = owner[key]
    change = draw.choice(["replace"] * 5 + ["delete", "add", "rename"])
    if change == "delete":
        del owner[key]
    elif change == "add" and isinstance(old, dict):
        old[draw.choice(["unknown", 7, ""])] = draw.choice([1, "x", torch.ones(2)])
    elif change == "rename" and isinstance(owner, dict):
        owner[f"{key}x"] = owner.pop(key)
    elif isinstance(old, torch.Tensor):
        owner[key] = tensor_mutant(old, draw)
    else:
        hostile = [None, -1, -(10**9), 10**30, float("nan"), float("-inf"), True, "x", "x" * 9000, [], {}, [[]], 1.5]
        owner[key] = draw.choice([*hostile, torch.ones(3), {"a": 1}])
    return state


def _flipped(content: bytes, draw: Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _places(value: Any) -> Any:
    """(owner, key) of everything inside, outer things first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield value, key
        yield from _places(inside)
