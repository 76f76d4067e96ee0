"""What everything that is stored is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: A whole number of things, 0 or more.
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of everything stored in a file: no unknown fields, no silent conversions, no changes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
