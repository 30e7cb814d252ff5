"""Parts: the one place where what a recipe names, ``{name, options}``, becomes something that can be called."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from pathlib import Path
from typing import Any
from zlib import crc32

from pydantic import ConfigDict, TypeAdapter, ValidationError

from nas_prune.base.errors import RecipeError, first_line, shown
from nas_prune.base.files.mistakes import worded
from nas_prune.base.registry import Registry, hint
from nas_prune.base.settings import PartSettings

VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
OUTSIDE = "nas_prune_parts_"  # how the names of modules begin that are files which a recipe names


def bound(key: str, registry: Registry[Any], settings: PartSettings, given: int) -> Callable[..., Any]:
    """The part that a recipe names under ``key``, with its options in place; it is still given so many arguments.

    Raises RecipeError, naming the key, for a name that nothing has, and for options that the part does not take.
    """
    name = str(settings.name)
    if name not in registry:
        raise RecipeError(f"{key}.name: no {registry.kind} {shown(name)}{hint(name, registry)}")
    return partial(registry[name], **typed(f"{key}.options", registry, name, given, settings.options))


def typed(key: str, registry: Registry[Any], name: str, given: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a part as it types them (YAML's 3 is a number, too), after so many arguments.

    Raises RecipeError for those that it does not take, and for one that it cannot do without.
    """
    takes = signature(registry[name], eval_str=True)
    known = [each.name for each in list(takes.parameters.values())[given:] if each.kind not in VARIABLE]
    whose, listed = f"{key}: {registry.kind} {name}", f"`{registry.listed_by}` shows all options"
    for option in options:
        if option not in known:
            raise RecipeError(f"{whose} has no option {shown(option)}{hint(option, known)}; {listed}")
    try:
        takes.bind(*(None,) * given, **options)
    except TypeError as error:
        raise RecipeError(f"{whose}: {first_line(error)}; {listed}") from error
    found: dict[str, Any] = {}
    for option, value in options.items():
        kind = TypeAdapter(takes.parameters[option].annotation, config=ConfigDict(strict=True))
        try:
            found[option] = kind.validate_python(value)
        except ValidationError as error:
            what = worded(error.errors(include_url=False)[0])
            raise RecipeError(f"{key}.{option} {what}, not {shown(value)}") from error
    return found


def import_parts(files: Sequence[str]) -> None:
    """Import Python files whose parts a recipe names, each once. Raises RecipeError, naming the file that cannot be."""
    for number, file in enumerate(files):
        path = Path(file).resolve()
        name = f"{OUTSIDE}{path.stem}_{crc32(str(path).encode()):x}"  # the same one in every process
        if name in sys.modules:
            continue
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise RecipeError(f"parts.{number}: there is no Python file {shown(file)}; correct the path")
        module = sys.modules[name] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            told = first_line(error) or type(error).__name__
            raise RecipeError(f"parts.{number}: {file} cannot be imported: {told}") from error
