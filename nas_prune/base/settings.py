"""What every section of a recipe is; the sections themselves stand beside what they are handed to.

Field descriptions are the help text: ``nas-prune run --help`` and the JSON schema for editors are made from them.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, PositiveFloat, model_validator
from pydantic_core import CoreSchema

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]  # YAML has lists
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
Spread = Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)]


class Settings(BaseModel):
    """One section of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class PartSettings(Settings):
    """A part by its name, with options of its own. The name alone stands for the part as it is: ``gate: sigmoid``."""

    name: str | None
    options: dict[str, Any] = Field({}, description="keyword options of the part; `nas-prune list` shows them")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if given is None or isinstance(given, str) else given

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}
