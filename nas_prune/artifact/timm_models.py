"""Models of timm: created here, so that a wrong name and a wrong argument are told in the same words everywhere."""

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from nas_prune.base.errors import ArtifactError, NasPruneError, UnknownNameError, first_line, shown
from nas_prune.base.registry import MODELS, hint


def check_name(name: str) -> None:
    """Raise UnknownNameError, with the names near it, for a model that timm does not know."""
    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no model {shown(name)}{hint(name, timm.list_models(), MODELS)}")


def create_model(
    name: str, arguments: Mapping[str, Any], kind: type[NasPruneError], advice: str, *, pretrained: bool = False
) -> nn.Module:
    """The model that timm creates. Raises an error of this kind that says what timm said, and the advice."""
    try:
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    except ArtifactError:  # says what to do already
        raise
    except Exception as error:  # a constructor may raise anything when its arguments do not fit
        said, given = first_line(error) or type(error).__name__, shown(dict(arguments), 200)
        raise kind(f"timm {timm.__version__} cannot create {name} with {given}: {said}; {advice}") from error
    assert isinstance(model, nn.Module)
    return model
