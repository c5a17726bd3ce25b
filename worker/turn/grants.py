"""The rights of one attempt to its model calls, within what the provider allows."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

from turnline.worker.errors import RateLimited
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.pool import Member
from turnline.worker.provider_limits import Caller, Grant

_ALONE: Final = Member()
_LOOK_S: Final = 60.0
"""For which a turn waits at most until it asks for its tenant's rate again."""
_IN_SLOT_S: Final = 10.0
"""For which a later call of an attempt waits; beyond that, another attempt follows."""


_WHOSE: Final = {"provider_limit": "the provider allows", "tenant_limit": "the tenant may use"}


class Limiter(Protocol):
    """What a turn asks of the provider's limits; see `turnline.worker.store.limiter`."""

    async def reserve(  # noqa: D102
        self, model: str, who: Caller, prompt: Callable[[], int], most_output: int | None
    ) -> Grant | float: ...
    def sent(self, grant: Grant) -> None: ...  # noqa: D102
    def heard(self, grant: Grant, headers: Mapping[str, str]) -> None: ...  # noqa: D102
    def refused(  # noqa: D102
        self, grant: Grant, words: str, retry_after_s: float | None
    ) -> None: ...
    def settle(self, grant: Grant, call: LLMCall | None) -> None: ...  # noqa: D102
    def leave(self, model: str, who: Caller, *, within_s: float = ...) -> None: ...  # noqa: D102


class TenantWait(float):
    """Seconds to wait for what the tenant may use, whatever the provider allows."""


class Unlimited:
    """Nothing is limited. A `Limiter`."""

    async def reserve(
        self,
        model: str,
        who: Caller,  # noqa: ARG002  the port's
        prompt: Callable[[], int],  # noqa: ARG002  the port's
        most_output: int | None,  # noqa: ARG002  the port's
    ) -> Grant | float:
        """Grant it."""
        return Grant(model)

    def sent(self, grant: Grant) -> None:
        """Do nothing."""

    def heard(self, grant: Grant, headers: Mapping[str, str]) -> None:
        """Do nothing."""

    def refused(self, grant: Grant, words: str, retry_after_s: float | None) -> None:
        """Do nothing."""

    def settle(self, grant: Grant, call: LLMCall | None) -> None:
        """Do nothing."""

    def leave(self, model: str, who: Caller, *, within_s: float = 0.0) -> None:
        """Do nothing."""


class Grants:
    """A grant for each model call of an attempt, one after the other."""

    def __init__(
        self,
        limiter: Limiter,
        model: str,
        who: Caller,
        prompt: Callable[[], int],
        most_output: int | None,
        *,
        member: Member = _ALONE,
    ) -> None:
        """Hold none; for the arguments see `Limiter`. `member` is whose they are."""
        self._member = member
        self._limiter = limiter
        self._ask = partial(limiter.reserve, model, who, prompt, most_output)
        self.leave = partial(limiter.leave, model, who)
        """Give up the place in line: the turn ends without a call."""
        self.waits_for = "provider_limit"
        """What the call had to wait for, if it had: `tenant_limit` where it is its tenant's."""
        self._spare: Grant | None = None
        self._used: Grant | None = None

    @property
    def has_spare(self) -> bool:
        """Whether there is one for the next call."""
        return self._spare is not None

    @property
    def waited(self) -> bool:
        """Whether the call that follows had to wait for others."""
        spare = self._spare
        return spare is not None and (spare.waited or (spare.own is not None and spare.own.waited))

    async def ask(self) -> float:
        """Get one for the next call; return the seconds to wait before asking again, else 0."""
        granted = await self._ask()
        if isinstance(granted, Grant):
            self._spare = granted
            is_tenants = granted.own is not None and granted.own.waited
        else:
            is_tenants = isinstance(granted, TenantWait)
        self.waits_for = "tenant_limit" if is_tenants else "provider_limit"
        return 0.0 if isinstance(granted, Grant) else granted

    def looks_s(self, wait_s: float) -> float:
        """Return after how long a turn that is to wait so long asks again.

        A tenant's rate stands in a file: it may be another one, or none, long before.
        """
        return min(wait_s, _LOOK_S) if self.waits_for == "tenant_limit" else wait_s

    async def wait(self) -> None:
        """Get one for the next call, in the slot.

        Raises:
            RateLimited: That would take long.
        """
        while wait_s := await self.ask():
            if wait_s > _IN_SLOT_S:
                whose = _WHOSE[self.waits_for]
                raise RateLimited(
                    f"what {whose} is used up for now", code=self.waits_for, retry_after_s=wait_s
                )
            await asyncio.sleep(wait_s)

    def begin(self, call: LLMCall) -> None:
        """Use it for this call."""
        grant, self._spare = self._spare, None
        assert grant is not None
        self._used = grant
        if self._member.name:
            call.member, call.server = self._member.name, self._member.server
        call.on_headers = partial(self._limiter.heard, grant)

    def sent(self) -> None:
        """The request is being sent."""
        if self._used is not None:
            self._limiter.sent(self._used)

    def settle(self, call: LLMCall) -> None:
        """The call is over."""
        if self._used is not None:
            self._limiter.settle(self._used, call)

    def refused(self, error: RateLimited) -> None:
        """The provider has refused the last call for its limits."""
        if self._used is not None and error.status is not None:
            words = error.said.text if error.said is not None else ""
            self._limiter.refused(self._used, words, error.retry_after_s)

    def close(self) -> None:
        """Give back what no call was made with."""
        if self._spare is not None:
            self._limiter.settle(self._spare, None)
            self._spare = None
