"""A registry turns a name of a recipe into a part, and a wrong name into an error with a hint.

There is one per kind of part (gates, criteria, selectors, schedules, penalties, costs). It is also the test list:
the contract tests run every entry of every registry through the laws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

from nas_prune.base.errors import UnknownNameError, shown

Part = TypeVar("Part")
MODELS = "nas-prune list models"  # the command that lists what timm has
MOST_LISTED = 30  # names that a message may list


def hint(name: str, known: Mapping[str, object] | Sequence[str], listed_by: str = "") -> str:
    """``; did you mean 'magnitude'?`` for a near miss, otherwise the list of what there is.

    Of many names, only the nearest five, and ``listed_by``, the command that lists them all.
    """
    names, asked = sorted(known), name[:100]
    near = get_close_matches(asked, names, n=1)
    if len(names) <= MOST_LISTED:
        return f"; did you mean '{near[0]}'?" if near else f"; there is: {', '.join(names) or 'nothing'}"
    nearest = get_close_matches(asked, names, n=5, cutoff=0.0)
    command = f"; `{listed_by}` lists all {len(names)}" if listed_by else f" (of {len(names)})"
    if near:
        return f"; did you mean '{near[0]}'? Near it: {', '.join(nearest[1:])}{command}"
    return f"; the nearest names are {', '.join(nearest)}{command}"


class Registry(Mapping[str, Part]):
    """Name -> part, filled by a decorator beside each part: ``@gates.register("weight")``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Enter the decorated part under ``name``; two parts of one name are a mistake of ours."""

        def enter(part: Part) -> Part:
            assert name not in self._parts, f"two {self.kind}s are called {name!r}"
            self._parts[name] = part
            return part

        return enter

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            raise UnknownNameError(f"unknown {self.kind} {shown(name)}{hint(name, self._parts)}")
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
