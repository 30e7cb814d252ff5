"""What every section of a recipe is; the sections themselves stand beside what they are handed to.

Field descriptions are the help text: ``nas-prune run --help`` and the JSON schema for editors are made from them.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]  # YAML has lists
Spread = Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)]


class Settings(BaseModel):
    """One section of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
