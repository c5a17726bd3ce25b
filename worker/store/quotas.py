"""Holds the calls of a tenant to what it may use, before the provider's limits are asked."""

from collections.abc import Callable

from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.provider_limits import Caller, Grant
from turnline.worker.store.limiter import RateLimiter
from turnline.worker.turn.grants import TenantWait


class WithinQuota:
    """A `Limiter` behind that of tenants: a call needs a grant of both."""

    def __init__(self, limiter: RateLimiter, quotas: RateLimiter) -> None:
        """Ask `quotas` first, by the tenant in place of the model; then `limiter`."""
        self._limiter = limiter
        self._quotas = quotas
        self.use_key = limiter.use_key
        self.heard = limiter.heard
        self.refused = limiter.refused

    async def reserve(
        self, model: str, who: Caller, prompt: Callable[[], int], most_output: int | None
    ) -> Grant | float:
        """Return what a call may use, or after how many seconds to ask again.

        Nothing of the tenant's is kept while the provider has no room.
        """
        own = await self._quotas.reserve(who.tenant, who, prompt, most_output)
        if not isinstance(own, Grant):
            return TenantWait(own)
        granted: Grant | float = 0.0
        try:
            granted = await self._limiter.reserve(model, who, prompt, most_output)
        finally:  # also where the wait is cancelled
            if isinstance(granted, Grant):
                granted.own = own
            else:
                self._quotas.settle(own, None)
        return granted

    def sent(self, grant: Grant) -> None:
        """The request is being sent."""
        self._limiter.sent(grant)
        if grant.own is not None:
            self._quotas.sent(grant.own)

    def settle(self, grant: Grant, call: LLMCall | None) -> None:
        """Count what a call used in place of what was granted; None: it was not made."""
        self._limiter.settle(grant, call)
        if grant.own is not None:
            self._quotas.settle(grant.own, call)

    def leave(self, model: str, who: Caller, *, within_s: float = float("inf")) -> None:
        """Whoever waited does not call any more, and pays for nothing."""
        self._limiter.leave(model, who, within_s=within_s)
        self._quotas.leave(who.tenant, who, within_s=within_s)

    async def aclose(self) -> None:
        """Close both; `quotas` may be that of others, too."""
        await self._limiter.aclose()
        await self._quotas.aclose()
