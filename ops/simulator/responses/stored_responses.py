"""Responses that the server keeps, since `store` is true unless the client says otherwise."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from turnline.ops.simulator.model.api_errors import ApiError, Refused
from turnline.ops.simulator.responses.asked_items import ReadItem

_KEPT_BYTES: Final = 64 * 1024 * 1024


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One response with all that led to it."""

    id: str
    body: bytes
    items: Sequence[ReadItem]
    """The input and the answer."""
    reasoning_tokens: int


class Stored:
    """Keeps the newest responses within a number of bytes."""

    def __init__(self) -> None:
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._bytes = 0

    def keep(self, response: StoredResponse) -> None:
        """Keep a response; the oldest go first."""
        self._responses[response.id] = response
        self._bytes += len(response.body)
        while self._bytes > _KEPT_BYTES and len(self._responses) > 1:
            self._drop(next(iter(self._responses)))

    def find(self, id_: str) -> StoredResponse:
        """Return a response.

        Raises:
            Refused: There is none of this id, or not any more.
        """
        found = self._responses.get(id_)
        if found is None:
            raise Refused(ApiError(404, f"Response with id={id_} not found", "not-found"))
        return found

    def delete(self, id_: str) -> dict[str, object]:
        """Forget a response and say so.

        Raises:
            Refused: As `find`.
        """
        self.find(id_)
        self._drop(id_)
        return {"id": id_, "object": "response", "deleted": True}

    def reasoning_tokens(self, item_id: str | None) -> int:
        """Return what the reasoning of a stored response counts; 0 if it is not kept."""
        found = self._responses.get((item_id or "").removeprefix("rs_"))
        return 0 if found is None else found.reasoning_tokens

    def _drop(self, id_: str) -> None:
        self._bytes -= len(self._responses.pop(id_).body)
