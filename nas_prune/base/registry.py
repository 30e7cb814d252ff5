"""A registry turns a name of a recipe into a part, and a wrong name into an error with a hint.

There is one per kind of part (gates, criteria, selectors, penalties, losses, costs). A part is found because its file
lies in the folder of its kind, or in a package that declares it (entry points of the group ``nas_prune.parts``). A
registry is also the test list: the contract tests run every entry of every registry through the laws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import getmodule
from pkgutil import walk_packages
from typing import TypeVar

from nas_prune.base.errors import NasPruneError, UnknownNameError, first_line, shown

Part = TypeVar("Part")
MODELS = "nas-prune list models"  # the command that lists what timm has
MOST_LISTED = 30  # names that a message may list
GROUP = "nas_prune.parts"  # entry points: modules that register parts as they are imported


def hint(name: str, known: Mapping[str, object] | Sequence[str], *listed_by: str) -> str:
    """``; did you mean 'magnitude'?`` for a near miss, otherwise the list of what there is.

    Of many names, only the nearest five, and ``listed_by``, the commands that together list them all.
    """
    names, asked = sorted(known), name[:100]
    near = get_close_matches(asked, names, n=1)
    if len(names) <= MOST_LISTED:
        return f"; did you mean '{near[0]}'?" if near else f"; there is: {', '.join(names) or 'nothing'}"
    nearest = get_close_matches(asked, names, n=5, cutoff=0.0)
    commands = " and ".join(f"`{each}`" for each in listed_by)
    command = f"; {commands} list{'s' * (len(listed_by) == 1)} all" if listed_by else f" (of {len(names)})"
    if near:
        return f"; did you mean '{near[0]}'? Near it: {', '.join(nearest[1:])}{command}"
    return f"; the nearest names are {', '.join(nearest)}{command}"


class Registry(Mapping[str, Part]):
    """Name -> part, filled by a decorator beside each part: ``@gates.register("weight")``.

    ``package``: where the files of the parts lie; they are imported when the registry is first looked into.
    """

    def __init__(self, kind: str, package: str | None) -> None:
        self.kind = kind
        self.listed_by = f"nas-prune list {(package or kind).rpartition('.')[2]}"
        self._parts: dict[str, Part] = {}
        self._package = package

    def register(self, name: str) -> Callable[[Part], Part]:
        """Enter the decorated part under ``name``. Raises NasPruneError where another part has that name."""

        def enter(part: Part) -> Part:
            if name in self._parts:
                files = [getattr(getmodule(each), "__file__", "?") for each in (self._parts[name], part)]
                raise NasPruneError(f"two parts, each a {self.kind}, are called {shown(name)}: {' and '.join(files)}")
            self._parts[name] = part
            return part

        return enter

    def _filled(self) -> dict[str, Part]:
        """All parts that there are."""
        package, self._package = self._package, None  # first, since a part may look as it is imported
        if package is not None:
            for module in walk_packages(import_module(package).__path__, f"{package}."):
                import_module(module.name)
            import_declared()
        return self._parts

    def __getitem__(self, name: str) -> Part:
        if name not in self:
            raise UnknownNameError(f"unknown {self.kind} {shown(name)}{hint(name, self)}")
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._filled()

    def __iter__(self) -> Iterator[str]:
        return iter(self._filled())

    def __len__(self) -> int:
        return len(self._filled())


@cache
def import_declared() -> None:
    """Import what other packages declare as parts, once. Raises NasPruneError, naming the package that cannot be."""
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            package, told = point.dist.name if point.dist else point.name, first_line(error) or type(error).__name__
            raise NasPruneError(
                f"the parts of the package {package} ({point.value}) cannot be imported: {told}; mend or uninstall it"
            ) from error
