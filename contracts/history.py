"""Reads a conversation's committed context, with marks at the replies in it that were cut short.

Marks come from the turns' records, newest first, no further back than the context itself goes. A
record says where its turn's messages stood when it was committed; whether they still stand there is
seen from the text, since the context may have been replaced meanwhile.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from turnline.contracts.connection import AsyncRedis, Command, pipelined
from turnline.contracts.conversation import (
    AssistantEntry,
    ContextEntry,
    decode_context_entry,
)
from turnline.contracts.keys import ConversationKeys
from turnline.contracts.protocol import decode_settings
from turnline.contracts.replies import History, TurnInterrupted, TurnRecord, decode_record

PAGE = 256
"""Records read at once."""


class HistoryReading:
    """Where a reader of one conversation's context stands."""

    def __init__(self, conversation_id: str, keys: ConversationKeys) -> None:
        """Begin with the context itself."""
        self._conversation_id = conversation_id
        self._keys = keys
        self._settings: bytes | None = None
        self._context: tuple[ContextEntry, ...] | None = None
        self._pages = 0
        self.is_there = True
        """Whether there was such a conversation to the end."""
        self._page: Sequence[bytes] = ()
        self._visited: set[bytes] = set()
        self._marks: set[int] = set()
        self._first = 0
        """Index of the first message whose turn was not looked at yet."""

    def commands(self) -> list[Command]:
        """Fetch what `parse` reads next: the context at first, then records page by page."""
        keys, end = self._keys, -1 - self._pages * PAGE
        following: Command = ("LRANGE", keys.log, end - PAGE + 1, end)
        asked: list[Command] = [("HMGET", keys.turns, *self._page)]
        if self._context is None:
            asked = [("HGET", keys.state, "settings"), ("LRANGE", keys.context, 0, -1)]
        return [following, *asked, ("LRANGE", keys.log, 0, 0)]

    def parse(self, replies: Sequence[Any]) -> History | None:
        """Read the replies to `commands`; return the history once it is whole."""
        self.is_there = self.is_there and bool(replies[-1])
        if self._context is None:
            _, self._settings, messages, _ = replies
            self._context = tuple(map(_readable, messages))
            self._first = len(self._context)
        else:
            self._mark(replies[1])
        # More turns may have come in since, so that a page shows again what the one before it had.
        self._page = [turn_id for turn_id in replies[0] if turn_id not in self._visited]
        self._visited.update(self._page)
        self._pages += 1
        return None if self._page and self._first > 0 else self._history(self._context)

    def _mark(self, records: Sequence[bytes | None]) -> None:
        for data in reversed(records):
            record = decode_record(data) if data is not None else None
            if record is None or not record.messages_to:  # it added nothing of its own
                continue
            if self._pages == 1 and record.messages_from >= len(self._context or ()):
                continue  # committed since the context was read
            if record.messages_to > self._first:  # the context was replaced after this turn
                self._first = 0
            if self._first == 0:
                return
            self._first = record.messages_from
            if record.state == "interrupted":
                self._marks.update(self._cut_short(record))

    def _cut_short(self, record: TurnRecord) -> Iterator[int]:
        """Yield the index of the last thing that the assistant said in an interrupted turn."""
        assert self._context is not None
        end = record.terminal()
        for index in range(record.messages_to - 1, record.messages_from - 1, -1):
            text = _assistant_text(self._context[index])
            if text:
                if isinstance(end, TurnInterrupted) and end.text.endswith(text):
                    yield index
                return

    def _history(self, context: tuple[ContextEntry, ...]) -> History:
        settings = self._settings
        return History(
            conversation_id=self._conversation_id,
            system_prompt=decode_settings(settings).system_prompt if settings else None,
            messages=context,
            interrupted=tuple(sorted(self._marks)),
        )


async def read_history(
    redis: AsyncRedis, conversation_id: str, keys: ConversationKeys
) -> tuple[History, bool]:
    """Return the history by these names, and whether there was such a conversation to the end."""
    reading, history = HistoryReading(conversation_id, keys), None
    while history is None:
        replies = await pipelined(redis, reading.commands(), raise_on_error=True)
        history = reading.parse(replies)
    return history, reading.is_there


def _readable(message: bytes) -> ContextEntry:
    """Return a message without what only the provider can read, and without looking into that."""
    entry: ContextEntry = decode_context_entry(message)
    if isinstance(entry, AssistantEntry) and entry.reply_items is not None:
        return msgspec.structs.replace(entry, reply_items=None)
    return entry


def _assistant_text(entry: ContextEntry) -> str:
    """Return what a message says, if the assistant says it."""
    if isinstance(entry, AssistantEntry) and isinstance(entry.content, str):
        return entry.content.strip()
    return ""
