"""Fold names that differ only in numbers, such as those of the blocks of a network, into one name.

``blocks.0.attn``, ``blocks.1.attn``, ``blocks.2.attn`` -> ``blocks.{0-2}.attn``.
"""

import re
from collections.abc import Mapping, Sequence
from math import prod as product

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?!\w)|(?<=[A-Za-z_])\d+(?=\.)")


def fold(names: Sequence[str]) -> dict[str, list[str]]:
    """Folded name -> the names that it stands for: every combination of its numbers, and nothing else.

    A number counts if it is a whole part between dots, or ends one that is not the last: the 1 of ``layer1.0.conv3``,
    and the 0, but not the 3.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(pattern(name), []).append(name)
    folded: dict[str, list[str]] = {}
    for shape, members in alike.items():
        folded.update(_folded(shape, {name: tuple(map(int, _NUMBER.findall(name))) for name in members}))
    return folded


def together(texts: Sequence[str]) -> str:
    """One name for all, folded if that says it all, otherwise the first of them."""
    folded = list(fold(list(dict.fromkeys(texts))))
    return folded[0] if len(folded) == 1 else texts[0]


def pattern(name: str) -> str:
    """The name with every number replaced by #."""
    return _NUMBER.sub("#", name)


def _folded(shape: str, numbers: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Names of one shape; those whose numbers are not all combinations are folded apart."""
    columns = [sorted(set(column)) for column in zip(*numbers.values(), strict=True)]
    if len(numbers) == product(map(len, columns)):
        parts = map(_runs, columns)
        return {re.sub("#", lambda _: next(parts), shape): list(numbers)}
    varying = next(position for position, column in enumerate(columns) if len(column) > 1)
    folded: dict[str, list[str]] = {}
    for value in columns[varying]:
        part = {name: each for name, each in numbers.items() if each[varying] == value}
        folded.update(_folded(shape, part))
    return folded


def _runs(numbers: Sequence[int]) -> str:
    """``{0-2,5}`` for 0, 1, 2, 5; one number stands alone."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    spelled = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return spelled[0] if len(numbers) == 1 else "{" + ",".join(spelled) + "}"
