"""What the result of a function call says to the model."""

import json
from typing import Any

import msgspec

from turnline.worker.pipeline.context import (
    COMPLETED,
)
from turnline.worker.pipeline.frames import (
    FunctionCallResultFrame,
)


def content_of(frame: FunctionCallResultFrame) -> str:
    """Return what a result says to the model."""
    properties = frame.properties
    if properties is not None and properties.content is not None:
        return properties.content
    return to_json(frame.result) if frame.result else COMPLETED


def wants_run(frame: FunctionCallResultFrame) -> bool:
    """Tell whether the model is to run on a result."""
    properties = frame.properties
    wanted = properties.run_llm if properties else None
    if wanted is None:
        wanted = frame.run_llm
    says = bool(frame.result) or (properties is not None and properties.content is not None)
    return says and wanted is not False


def to_json(value: Any) -> str:
    """Return a tool's value as JSON text, non-ASCII characters as they are.

    Raises:
        TypeError: The value has no JSON form.
        ValueError: A number in it has none.
        RecursionError: It contains itself, or nests too deep.
    """
    plain = msgspec.to_builtins(value, str_keys=True)
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)
