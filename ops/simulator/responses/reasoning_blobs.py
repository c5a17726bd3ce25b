"""Sealed reasoning: text that says nothing to a client and is refused if one character changes."""

import base64
import binascii
import enum
import hashlib
import re
import struct
import uuid
from typing import Final

import msgspec

RESULT: Final = "tco_"
"""What ids of the results of the server's tools begin with."""
_SECRET: Final = b"the simulator's own, the same in every process"
_HEADER: Final = struct.Struct(">16sIHB")
_TAG_BYTES: Final = 16
_CHARACTERS_PER_TOKEN: Final = 6.3
_CHARACTERS_LESS: Final = 54
_FAMILY: Final = re.compile(r"grok-(?:\d+(?:\.\d+)?|[a-z]+)")


class Kind(enum.IntEnum):
    """What is sealed."""

    REASONING = 1
    TOOL_OUTPUT = 2
    """What a tool of the server answered."""
    COMPACTION = 3


class Sealed(msgspec.Struct, frozen=True):
    """What a blob says to the server."""

    kind: Kind
    response_id: str
    """Without the region that some ids have."""
    tokens: int
    """What it counts in a prompt."""
    index: int = 0
    """Tells the blobs of one response apart."""


def family(model: str) -> str:
    """Return the family of a model, whose members read each other's reasoning."""
    match = _FAMILY.match(model)
    return model if match is None else match[0]


def owner(authorization: str | None, model: str) -> bytes:
    """Return who may open a blob: a key, and the models of one family."""
    return hashlib.sha256(f"{authorization}\n{family(model)}".encode()).digest()


def seal(sealed: Sealed, owner: bytes) -> str:
    """Return unpadded base64, 6.3 characters or so for each token."""
    head = _HEADER.pack(
        uuid.UUID(sealed.response_id).bytes, sealed.tokens, sealed.index, sealed.kind
    )
    tail = _tail(head, sealed.tokens, owner)
    return _text(_masked(head, tail) + tail)


def unseal(text: str, owner: bytes) -> Sealed | None:
    """Return what a blob says; None if it was changed or is not the owner's."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(data) < _HEADER.size + _TAG_BYTES or _text(data) != text:
        return None
    tail = data[_HEADER.size :]
    head = _masked(data[: _HEADER.size], tail)
    number, tokens, index, kind = _HEADER.unpack(head)
    if len(tail) != _tail_bytes(tokens) or tail != _tail(head, tokens, owner):
        return None
    return Sealed(Kind(kind), str(uuid.UUID(bytes=number)), tokens, index)


def seal_result(sealed: Sealed, owner: bytes, item_id: str) -> str:
    """Seal what a tool of the server answered; the text begins with the id of the item."""
    return f"{item_id}_{seal(sealed, owner + item_id.encode())}"


def unseal_item(text: str, owner: bytes) -> Sealed | None:
    """Return what the blob of a reasoning item says, be it a thought or a tool's result."""
    if not text.startswith(RESULT):
        return unseal(text, owner)
    item_id, _, blob = text.rpartition("_")
    return unseal(blob, owner + item_id.encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode()


def _tail_bytes(tokens: int) -> int:
    characters = round(_CHARACTERS_PER_TOKEN * tokens) - _CHARACTERS_LESS
    return max(_TAG_BYTES, characters * 3 // 4 - _HEADER.size)


def _tail(head: bytes, tokens: int, owner: bytes) -> bytes:
    """Return what only the server can work out from the head, which makes it the head's seal."""
    return hashlib.shake_256(_SECRET + owner + head).digest(_tail_bytes(tokens))


def _masked(head: bytes, tail: bytes) -> bytes:
    mask = hashlib.shake_256(_SECRET + tail[:_TAG_BYTES]).digest(len(head))
    return bytes(a ^ b for a, b in zip(head, mask, strict=True))
