"""The keys and addresses of a provider that are pooled: which one a conversation's calls go to.

Source: docs/adr/0046-keys-and-addresses-are-pooled.md
"""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

log = logging.getLogger("turnline.turns")
OF_THE_KEY: Final = frozenset({"auth", "credits"})
"""Codes of failures that every call with this key has, for a while."""
_LEFT_OUT_S: Final = 60.0
"""For which a member is left out; then one turn may find out that it still fails."""


class Member(NamedTuple):
    """A key at an address."""

    base_url: str = ""
    number: int = 0
    """Its place in the settings, from 0."""
    name: str = ""
    """For people and logs; empty where there is no other."""
    ident: str = ""
    """Tells members apart where keys are not to be seen: the same in all processes."""
    server: tuple[str, int] = ("", 0)
    """Host and port of the address."""

    @property
    def owner(self) -> str:
        """By whom reasoning was made that this key can read; the first one needs no name."""
        return self.ident if self.number else ""


def ident_of(base_url: str, key: str) -> str:
    """Return what tells a key at an address from others, and does not show it."""
    return hashlib.blake2b(f"{base_url} {key}".encode(), digest_size=8).hexdigest()


class Pool:
    """The members of one provider, as one process knows them."""

    def __init__(
        self, members: Sequence[Member], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Use these, in this order; `clock` tells seconds."""
        self.members = tuple(members)
        self._clock = clock
        self._left_out: dict[Member, float] = {}
        """Members that failed, until when they are left out."""

    def replace(self, members: Sequence[Member]) -> None:
        """Use these in their places: those with a new key are not left out."""
        self.members = tuple(members)
        self._left_out = {it: until_s for it, until_s in self._left_out.items() if it in members}

    def __len__(self) -> int:
        return len(self.members)

    def order(
        self,
        conversation_id: str,
        *,
        failed: Sequence[str] = (),
        out: Collection[str] = (),
        first: str | None = None,
    ) -> Sequence[Member]:
        """Return the members in the order in which a conversation's calls go to them.

        It is always the same for a conversation, so that the prompt cache of its first member is
        warm; who comes or goes changes it for few. Those that failed are returned once nobody else
        is left, the one whose failure is the longest ago first.

        Args:
            conversation_id: Whose calls.
            failed: Members, by their `ident`, that failed in this turn, the last one last.
            out: Those of them that would fail again: returned only where there is nobody else.
            first: The `owner` of the member that goes before others that have not failed.
        """
        if len(self.members) == 1:
            return self.members
        since = {ident: n for n, ident in enumerate(failed)}
        fresh = [it for it in self.members if it.ident not in since]
        again = [it for it in self.members if it.ident not in out]
        works = [it for it in self.members if not self.is_left_out(it)]
        choices = ([it for it in some if it in works] for some in (fresh, again))
        usable = next(filter(None, (*choices, fresh, again)), self.members)
        return sorted(
            usable,
            key=lambda it: (
                since.get(it.ident, -1),
                it.owner != first,
                _weight(it.ident, conversation_id),
            ),
        )

    def is_left_out(self, member: Member) -> bool:
        """Whether a member is left out at the moment."""
        return self._clock() < self._left_out.get(member, 0.0)

    def leave_out(self, member: Member, code: str) -> None:
        """Leave a member out for a while: its key is refused, or has no credits."""
        if len(self.members) == 1:
            return
        if not self.is_left_out(member):
            log.warning("provider.left_out", extra={"provider": member.name, "code": code})
        self._left_out[member] = self._clock() + _LEFT_OUT_S

    def works(self, member: Member) -> None:
        """Take note that a member has answered."""
        if self._left_out and self._left_out.pop(member, None) is not None:
            log.info("provider.back", extra={"provider": member.name})


def _weight(ident: str, conversation_id: str) -> bytes:
    """Source: https://doi.org/10.1109/90.663936 (rendezvous hashing)."""
    return hashlib.blake2b(f"{ident} {conversation_id}".encode(), digest_size=8).digest()
