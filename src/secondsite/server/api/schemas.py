"""What all bodies share: camelCase fields, nothing unknown accepted, texts without control characters."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

# PostgreSQL keeps no NUL in a text, and a terminal obeys control characters: neither gets in.
_CLEAN = r"^[^\u0000-\u001f\u007f]*$"

Text = Annotated[str, Field(max_length=200, pattern=_CLEAN)]
Label = Annotated[str, Field(min_length=1, max_length=100, pattern=_CLEAN)]
UserName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9._@-]{0,63}$",
        examples=["maria"],
        description="In lower case; never changes.",
    ),
]
Password = Annotated[str, Field(min_length=12, max_length=256)]

UserPath = Annotated[
    str, Path(alias="user", pattern=r"^[a-z0-9][a-z0-9._@-]{0,63}$", description="A user's name.")
]
TokenPath = Annotated[str, Path(alias="token", pattern=r"^[0-9a-f]{16}$", description="A token's id.")]
# ids, names of vaults, and * for everywhere
VaultPath = Annotated[str, Path(alias="vault", min_length=1, max_length=100, pattern=_CLEAN)]


class Model(BaseModel):
    """Base of requests: strict types, unknown fields refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class View(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        from_attributes=True,
    )
