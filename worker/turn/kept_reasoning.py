"""How much of a context the items of replies take, and which of them are dropped.

An item that is dropped costs the cache its prefix from there on. So nothing is dropped little by
little: once there is too much, all that is older than the turn at hand goes in one step.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from turnline.contracts.numbers import number
from turnline.worker.pipeline.context import Message
from turnline.worker.pipeline.reply_items import ITEMS_MARK, REPLY_ITEMS

REASONING_MAX_BYTES: Final = 512 * 1024
"""What all items of a context may take where nothing else is set."""


class _Items(msgspec.Struct):
    reply_items: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Speaker(msgspec.Struct):
    role: str = ""


_items_of = msgspec.json.Decoder(_Items).decode
_speaker_of = msgspec.json.Decoder(_Speaker).decode
_decode = msgspec.json.Decoder(Message, float_hook=number).decode
_encode = msgspec.json.Encoder().encode


def reasoning_bytes(messages: Iterable[bytes]) -> int:
    """Return how many bytes items take in these messages (JSON)."""
    return sum(_size(message) for message in messages if ITEMS_MARK in message)


def bound_reasoning(
    messages: list[bytes], own_from: int, kept_bytes: int, most_bytes: int
) -> tuple[int, int]:
    """Drop the items of earlier turns, all at once, where a context has too many of them.

    Args:
        messages: The whole context, JSON; those that lose items are replaced in place.
        own_from: Index of the first message of the turn at hand; 0 where the context was rewritten,
            then it begins behind the last message of the user.
        kept_bytes: What the items of earlier turns take. While it is far below, nothing of them is
            looked at.
        most_bytes: What all items may take. 0: none stay behind, this turn's neither.

    Returns:
        Index of the first message that has to be written: `own_from`, or 0 if earlier ones changed;
        and how many bytes items take from there on.
    """
    own_bytes = reasoning_bytes(messages[own_from:])
    is_below = own_bytes + (kept_bytes if own_from else 0) <= most_bytes
    if is_below or own_from == len(messages):  # or nothing was added
        return own_from, own_bytes
    sizes = {n: _size(message) for n, message in enumerate(messages) if ITEMS_MARK in message}
    if sum(sizes.values()) <= most_bytes:  # an earlier version replaced the context
        return own_from, own_bytes
    end = (own_from or _behind_last_question(messages)) if most_bytes else len(messages)
    dropped = [n for n, size in sizes.items() if size and n < end]
    for n in dropped:
        message = _decode(messages[n])
        del message[REPLY_ITEMS]
        messages[n] = _encode(message)
    first = 0 if dropped and dropped[0] < own_from else own_from
    return first, sum(size for n, size in sizes.items() if n >= max(first, end))


def _size(message: bytes) -> int:
    try:
        items = _items_of(message).reply_items
    except msgspec.DecodeError:  # another program wrote it
        return 0
    return 0 if items is msgspec.UNSET else len(bytes(items))


def _behind_last_question(messages: list[bytes]) -> int:
    return next((n for n in range(len(messages), 0, -1) if _asks(messages[n - 1])), 0)


def _asks(message: bytes) -> bool:
    try:
        return _speaker_of(message).role == "user"
    except msgspec.DecodeError:
        return False
