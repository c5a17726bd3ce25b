"""The frames of `/v1/responses` as typed structs, and what stands in those of any shape."""

from typing import Any, cast

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.shapes import Fields, Unreadable, as_object, short


class PieceFrame(msgspec.Struct, gc=False):
    """A usual piece of text or thought."""

    type: str
    delta: str
    output_index: int


class Opening(msgspec.Struct, gc=False):
    """A response of which nothing but its name is of interest yet."""

    id: str | None = None
    model: str | None = None


class FinalResponse(msgspec.Struct, gc=False):
    """A response that is over; what it echoes of the request is not decoded."""

    id: str | None = None
    model: str | None = None
    status: str | None = None
    output: list[dict[str, Any]] | None = None
    usage: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None
    error: Any = None


class OpeningFrame(msgspec.Struct, gc=False):
    """The first frames."""

    type: str
    response: Opening | None = None


class FinalFrame(msgspec.Struct, gc=False):
    """The last frame."""

    type: str
    response: FinalResponse


decode_delta = msgspec.json.Decoder(PieceFrame).decode
decode_opening = msgspec.json.Decoder(OpeningFrame, float_hook=number).decode
decode_final = msgspec.json.Decoder(FinalFrame, float_hook=number).decode


def is_cut(final: FinalResponse) -> bool:
    """Tell whether a response ended before it was complete."""
    return final.status == "incomplete" or bool((final.incomplete_details or {}).get("reason"))


def final_of(fields: Fields) -> FinalResponse:
    """Return what a response of any shape says.

    Raises:
        Unreadable: Its output is no list of objects.
    """
    output: Any = fields.get("output") or []
    if not isinstance(output, list) or not all(
        as_object(it) for it in cast("list[object]", output)
    ):
        raise Unreadable
    return FinalResponse(
        short(fields.get("id")),
        short(fields.get("model")),
        short(fields.get("status")),
        cast("list[dict[str, Any]]", output),
        as_object(fields.get("usage")),
        as_object(fields.get("incomplete_details")),
        fields.get("error"),
    )


def is_server_tool(item: Fields) -> bool:
    """Tell whether an item is the call of a tool that the provider runs."""
    kind = item.get("type")
    return isinstance(kind, str) and kind.endswith("_call") and kind != "function_call"


def parts_of(item: Fields, key: str) -> list[dict[str, Any]]:
    """Return the objects of a list; a text in its place is one part.

    Raises:
        Unreadable: There is something else.
    """
    value = item.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return [{"text": value}]
    if not isinstance(value, list):
        raise Unreadable
    parts = map(as_object, cast("list[object]", value))
    return [part for part in parts if part is not None]


def string_of(value: Any) -> str:
    """Return a text; what is absent is empty.

    Raises:
        Unreadable: It is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unreadable
    return value


def more_of(so_far: str, whole: str) -> str:
    """Return what a whole text adds to what came of it.

    Raises:
        Unreadable: It begins otherwise.
    """
    if whole.startswith(so_far):
        return whole[len(so_far) :]
    if so_far.startswith(whole):
        return ""
    raise Unreadable


def word_of(value: Any) -> str | None:
    """Return an id or a name as it stands; None if it is absent.

    Raises:
        Unreadable: It is no text.
    """
    return string_of(value) or None
