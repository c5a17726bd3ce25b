"""Describes tools to a model in the shape of OpenAI's chat API."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class NotGiven:
    """Type of `NOT_GIVEN`: the value was not given and is left out of the request."""

    def __bool__(self) -> bool:
        """Be false, so that `value or default` works."""
        return False

    def __repr__(self) -> str:
        """Print as the constant's name."""
        return "NOT_GIVEN"


NOT_GIVEN = NotGiven()


class FunctionSchema(msgspec.Struct, frozen=True):
    """One function that the model may call."""

    name: str
    description: str
    properties: Mapping[str, Any]
    """JSON Schema of each argument, by name."""
    required: Sequence[str] = ()

    def to_default_dict(self) -> dict[str, Any]:
        """Return name, description and parameters, the latter as JSON Schema."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": {
                "type": "object",
                "properties": dict(self.properties),
                "required": list(self.required),
            },
        }


class ToolsSchema(msgspec.Struct, frozen=True):
    """The functions offered to the model."""

    standard_tools: Sequence[FunctionSchema]

    def to_openai(self) -> list[dict[str, Any]]:
        """Return the functions as the request's `tools`."""
        return [
            {"type": "function", "function": tool.to_default_dict()} for tool in self.standard_tools
        ]
