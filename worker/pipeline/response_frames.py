"""The frames of `/v1/responses` as typed structs, and what stands in those of any shape."""

from typing import Annotated, Any, Final, cast

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.call_parts import whole_characters
from turnline.worker.pipeline.reply_text import ReplyText
from turnline.worker.pipeline.shapes import Fields, Unreadable, as_object, short, whole_number

_SPACE_MAX_CHARS: Final = 100
_Index = Annotated[int, msgspec.Meta(ge=0)]


class PieceFrame(msgspec.Struct, gc=False):
    """A usual piece of text or thought."""

    type: str
    delta: str
    output_index: _Index
    content_index: _Index = 0


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
    """Tell whether a response says that it ended before it was complete."""
    return final.status == "incomplete" or bool((final.incomplete_details or {}).get("reason"))


def index_of(fields: Fields, key: str = "output_index") -> int:
    """Return a place in a list; the first one where none is named."""
    return max(0, whole_number(fields.get(key)) or 0)


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
    """Return the objects of a list; a text is a part, also in place of a list.

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
    found = [
        {"text": part} if isinstance(part, str) else as_object(part)
        for part in cast("list[object]", value)
        if part is not None
    ]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        raise Unreadable
    return parts


def words_of_part(part: Fields) -> str:
    """Return what a part of a message says.

    Raises:
        Unreadable: It is no text.
    """
    return string_of(part.get("text") or part.get("refusal"))


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


def more_of(
    so_far: ReplyText, whole: str, start: int = 0, end: int | None = None, *, is_cut: bool = False
) -> str:
    """Return what a whole text adds to what came of it; a little space at the end may be missing.

    Args:
        so_far: Holds what came of it.
        whole: The whole text.
        start: Where in `so_far` it begins.
        end: Where in `so_far` it ends; None: at the end.
        is_cut: Whether the response was cut, so that less may stand here than came.

    Raises:
        Unreadable: It says something else, or less.
    """
    whole = whole_characters(whole)
    end = len(so_far) if end is None else end
    came = so_far.between(start, min(end, start + len(whole)))
    if not whole.startswith(came):
        raise Unreadable
    too_many = end - start - len(came)
    if too_many and not is_cut:
        rest = so_far.between(end - min(too_many, _SPACE_MAX_CHARS + 1), end)
        if too_many > _SPACE_MAX_CHARS or rest.strip():
            raise Unreadable
    return whole[len(came) :]


def word_of(value: Any) -> str | None:
    """Return an id or a name as it stands; None if it is absent.

    Raises:
        Unreadable: It is no text.
    """
    return string_of(value) or None
