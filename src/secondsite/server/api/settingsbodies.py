"""Settings of recovered machines as the API takes and shows them: the model itself, with its own schema.

The model is checked by msgspec, here as at gateways; pydantic and the API's description are told how.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from secondsite.base.errors import InvalidInput
from secondsite.model.recovered import RecoveredSettings, from_object, to_object
from secondsite.server.api.schemas import View


def _checked(value: object) -> RecoveredSettings:
    if isinstance(value, RecoveredSettings):
        return value
    try:
        return from_object(value)
    except InvalidInput as error:
        raise ValueError(str(error)) from None


def _schema() -> dict[str, Any]:
    """Without references: they would lead to nothing in the API's description."""
    (schema,), parts = msgspec.json.schema_components([RecoveredSettings], ref_template="{name}")

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return whole(parts[node["$ref"]])
        # what is left out is not null
        return {key: whole(one) for key, one in node.items() if key != "default"}

    found: dict[str, Any] = whole(schema)
    return found


Settings = Annotated[
    RecoveredSettings,
    PlainValidator(_checked),
    PlainSerializer(to_object, return_type=dict[str, Any]),
    WithJsonSchema(_schema()),
]


class DirectionView(View):
    """What is set in one direction."""

    settings: Settings
    changed_at: str
    changed_by: str = Field(description="Who set it last.")


class SettingsView(View):
    """Both directions; null: nothing is set, the machine stays as its point has it."""

    forward: DirectionView | None = Field(description="From where the machine was protected first.")
    reverse: DirectionView | None = Field(description="Back.")
    left_behind: str = Field(
        description="Why the guest would come back with the other site's addresses; empty when it does not."
    )
