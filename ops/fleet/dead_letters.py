"""Dead letters: reads them, and makes the message that tries one again."""

import hashlib
import re
from collections.abc import Mapping, Sequence

import msgspec

from turnline.contracts.connection import SyncRedis
from turnline.contracts.conversation import ID_MAX_CHARS
from turnline.contracts.keys import ShardKeys
from turnline.contracts.messages import Inbound, decode
from turnline.contracts.scripts import text
from turnline.contracts.server_tools import without_secrets
from turnline.ops.cli.failures import Failure

_PAGE = 1_000
_ID = re.compile(r"(\d{1,5}):(\d{1,20})-(\d{1,20})", re.ASCII)
_REPLAYED = re.compile(r"(?P<first>.*)\.r(?P<times>\d+)")


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that could not be answered, with the bytes it came in."""

    id: str
    """`<shard>:<stream entry>`, such as `0:1700000000000-0`."""
    conversation_id: str
    turn_id: str
    code: str
    error: str
    attempts: int
    trace_id: str
    at_ms: int
    message: bytes
    provider_said: str = ""
    """Why the provider refused, in its own words; they may quote the request."""
    reply: str = ""
    """What the model replied, where its form was not what was asked for."""

    @property
    def shown_message(self) -> str:
        """The bytes as text, without secrets; what is not UTF-8 is shown by its escape."""
        return without_secrets(self.message).decode(errors="backslashreplace")


def letter_of(shard: int, entry_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    """Read one entry of a shard's stream."""

    def word(name: str) -> str:
        return fields.get(name.encode(), b"").decode(errors="replace")

    return DeadLetter(
        id=f"{shard}:{text(entry_id)}",
        conversation_id=word("c"),
        turn_id=word("t"),
        code=word("code"),
        error=word("error"),
        attempts=int(word("attempts") or 0),
        trace_id=word("trace"),
        at_ms=int(word("at") or 0),
        message=fields.get(b"m", b""),
        provider_said=word("said"),
        reply=word("reply"),
    )


def read_letters(redis: SyncRedis, shards: Sequence[ShardKeys]) -> list[DeadLetter]:
    """Read all dead letters, oldest first within each shard."""
    letters: list[DeadLetter] = []
    for number, shard in enumerate(shards):
        after = "-"
        while page := redis.execute_command("XRANGE", shard.dead, after, "+", "COUNT", _PAGE):
            letters += [letter_of(number, entry_id, fields) for entry_id, fields in page]
            after = f"({text(page[-1][0])}"
    return letters


def chosen(
    letters: Sequence[DeadLetter],
    *,
    ids: Sequence[str] = (),
    code: str | None = None,
    conversation_id: str | None = None,
) -> list[DeadLetter]:
    """Return those that fit all that is asked; an id may leave out the shard's number."""
    return [
        letter
        for letter in letters
        if (not ids or letter.id in ids or letter.id.partition(":")[2] in ids)
        and (code is None or letter.code == code)
        and (conversation_id is None or letter.conversation_id == conversation_id)
    ]


def in_order(letters: Sequence[DeadLetter], after: str | None = None) -> list[DeadLetter]:
    """Return letters of all shards, the oldest first; those behind the one with this id, if any.

    Raises:
        Failure: That is no id of a letter.
    """
    behind = None if after is None else _place(after)
    if behind is not None and behind[0] < 0:
        raise Failure(f"--after {after}: not an id such as 0:1700000000000-0")
    placed = sorted((_place(it.id), n) for n, it in enumerate(letters))
    return [letters[n] for place, n in placed if behind is None or place > behind]


def _place(letter_id: str) -> tuple[int, int, int]:
    """Return where a letter stands: its time, its number in that, its shard."""
    match = _ID.fullmatch(letter_id)
    shard, at_ms, number = map(int, match.groups()) if match is not None else (0, -1, 0)
    return at_ms, number, shard


def drop_letter(redis: SyncRedis, shards: Sequence[ShardKeys], letter: DeadLetter) -> bool:
    """Remove a dead letter; return whether it was still there."""
    shard, _, entry_id = letter.id.partition(":")
    return bool(redis.execute_command("XDEL", shards[int(shard)].dead, entry_id))


def next_turn_id(turn_id: str) -> str:
    """Return the id under which a turn is tried again.

    It depends on the old one alone (`t`, `t.r1`, `t.r2`), so that trying twice is one turn. An id
    without room for that is replaced by its fingerprint.
    """
    again = _REPLAYED.fullmatch(turn_id)
    following = f"{again['first']}.r{int(again['times']) + 1}" if again else f"{turn_id}.r1"
    if len(following) <= ID_MAX_CHARS:
        return following
    return f"{hashlib.blake2b(turn_id.encode(), digest_size=16).hexdigest()}.r1"


def message_again(letter: DeadLetter) -> Inbound:
    """Return the message of a dead letter under its next turn id.

    A deadline is left out: it was the first attempt's, and whoever tries again wants an answer.

    Raises:
        InvalidMessage: The bytes are no message, which is why they are here.
    """
    message = decode(letter.message)
    return msgspec.structs.replace(
        message,
        conversation_id=letter.conversation_id,
        turn_id=next_turn_id(letter.turn_id),
        deadline_at_ms=None,
    )
