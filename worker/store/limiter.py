"""Keeps a fleet within what a provider allows: asks before a call, settles what it used.

One budget for each key and model, in shard 0, whatever shard a conversation is in. While less than
half of it is used, a worker holds a part and takes from it without asking. Nothing is asked where
nothing is limited; a fleet that knows nothing yet lets one call find out.

Source: docs/adr/0043-a-fleet-shares-what-a-provider-allows.md
"""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from turnline.contracts.keys import ShardKeys
from turnline.contracts.refusals import word as word_of
from turnline.contracts.scripts import text
from turnline.worker.batching import ScriptBatcher
from turnline.worker.pipeline.calls import LLMCall
from turnline.worker.provider_limits import (
    Caller,
    Grant,
    ProviderLimits,
    Rules,
    announced,
    reached,
    words_of,
)
from turnline.worker.store import lua

log = logging.getLogger("turnline.queue")
_SETTLE_S: Final = 0.25
"""In which what was used is told."""
_LOOK_S: Final = 1.0
"""Between two looks whether anything is limited meanwhile."""
_HEAR_S: Final = 0.25
"""Between two looks into the headers of responses, once they have been read."""
_SOON_S: Final = 1.5
"""For which a call waits in its slot."""
_LATE_MS: Final = 5.0
"""By which a request may be late and still count as sent when it was granted."""
_WISH: Final = 8
"""Calls that a worker wishes to hold at least."""
_NEWEST: Final = 0.1
"""Weight of the newest call in what is expected of the next ones."""
_FIRST_OUTPUT: Final = 1_000
"""Tokens of a reply, before one was seen."""
_NAMED_MS: Final = 3_600_000
"""For how long a limit counts that a refusal named: it may be raised, and nobody says so."""
_MOST_PAUSE_S: Final = 30.0
"""For which all wait because of one refusal."""
_SHOW_S: Final = 600.0
_SHOWN_MS: Final = 86_400_000
"""How often operators are told of a limit that is kept to, and for how long that stands."""
_NOBODY: Final = Caller("")
_WIDER: Final = 20
"""Thousandths by which windows grow when the provider counts otherwise than we do."""


class _Expected:
    """What calls of a model use, learned from those that were seen."""

    def __init__(self) -> None:
        self._ratio = 1.0
        """Tokens of a prompt to those estimated."""
        self._output = float(_FIRST_OUTPUT)
        self._deviation = 0.0
        self._is_new = True

    def of(self, estimate: int, most_output: int | None) -> tuple[int, int]:
        """Return what a call may use, and what it probably uses, tokens."""
        likely, most = self._output, self._output + 2 * self._deviation
        if most_output is not None:
            likely, most = min(likely, most_output), min(most, most_output)
        prompt = estimate * self._ratio
        return round(prompt + most), round(prompt + likely)

    def learn(self, estimate: int, prompt: int, output: int) -> None:
        if self._is_new:
            self._is_new, self._output, self._deviation = False, output, output / 2
            self._ratio = prompt / max(1, estimate)
        self._ratio += _NEWEST * (prompt / max(1, estimate) - self._ratio)
        self._deviation += _NEWEST * (abs(output - self._output) - self._deviation)
        self._output += _NEWEST * (output - self._output)


class _Budget:
    """What this process knows of one model's limits, and what it holds of them."""

    def __init__(self, key: str, place: str, given: ProviderLimits) -> None:
        self.keys = lua.LimitKeys(key, f"{key}:held", f"{key}:line", f"{key}:due", f"{key}:shares")
        self.place = place
        self.show_at_s = 0.0
        """When operators are to be told of it again."""
        self.given = self.known = given
        self.told: tuple[str | None, ...] | None = None
        """By the headers of the last response that was looked at, in the provider's words."""
        self.heard_s = -math.inf
        """When that was."""
        self.is_free = False
        """Whether nothing is limited, as far as anybody knows."""
        self.looked_s = 0.0
        self.waited_s = -math.inf
        """When somebody was told to wait."""
        self.clock_ms = time.time() * 1000 - time.monotonic() * 1000
        """Redis' clock less ours, as the last answer had it."""
        self.expected = _Expected()
        self.requests = self.tokens = 0
        """Held, and not used."""
        self.untold: list[Grant] = []
        """Taken from what was held, and not told yet."""
        self.wanted = 0
        """Calls since what is held was changed."""
        self.size = 0
        """Tokens of the last one."""
        self.changes: list[int] = []
        self.is_asking = False
        """Whether what is held is being changed."""
        self.finding_out = asyncio.Lock()
        self.settling: asyncio.TimerHandle | None = None

    def now_ms(self) -> float:
        """Return Redis' clock."""
        return self.clock_ms + time.monotonic() * 1000

    @property
    def is_unknown(self) -> bool:
        """Whether nobody has found out yet whether anything is limited."""
        return not self.is_free and self.known == ProviderLimits()

    def granted(self, grant: Grant, word: str) -> Grant:
        """Return a grant as the server gave it."""
        grant.at_ms, grant.waited = self.now_ms(), word == "in_turn"
        grant.is_counted = word in {"granted", "in_turn"}
        return grant

    def take(self, grant: Grant) -> bool:
        """Take from what is held, if there is enough."""
        if self.requests < 1 or (self.known.of_tokens and self.tokens < grant.tokens):
            return False
        self.requests -= 1
        self.tokens -= grant.tokens
        self.untold.append(grant)
        grant.is_counted = True
        return True

    def take_back(self, grant: Grant) -> bool:
        """Hold again what was taken for a call that is not made, if it was not told yet."""
        kept = [it for it in self.untold if it is not grant]
        if len(kept) == len(self.untold):
            return False
        self.untold = kept
        self.requests += 1
        self.tokens += grant.tokens
        return True

    def hand_in(self) -> tuple[str, str]:
        """Return what to hold from now on and what was used of what was held."""
        wished = max(_WISH, 2 * self.wanted) if self.wanted else 0
        used = f"{len(self.untold)} {sum(it.tokens for it in self.untold)}"
        for grant in self.untold:
            grant.at_ms = self.now_ms()
        self.untold, self.wanted, self.requests, self.tokens = [], 0, 0, 0
        return f"{wished} {wished * self.size}", used


class RateLimiter:
    """The limits of one provider, as one process keeps them. Redis being away limits nothing."""

    def __init__(
        self,
        batcher: ScriptBatcher,
        shard: ShardKeys,
        *,
        provider: str,
        key: str,
        rules: Rules,
        worker_id: str,
        name: str = "",
        weight_of: Callable[[str], float] = lambda _: 1.0,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            batcher: Of shard 0.
            shard: Shard 0.
            provider: Its base URL.
            key: The API key: limits are a key's. Only a digest of it is kept.
            rules: What the operator has set; it may be set anew.
            worker_id: Unique name of the process.
            name: For operators, where there are several keys; else the base URL.
            weight_of: Of a tenant, while several wait.
        """
        self._batcher = batcher
        self._shard = shard
        self._provider = provider
        self._name = name or provider
        self._key = key
        self._rules = rules
        self._worker_id = worker_id
        self._weight_of = weight_of
        self._budgets: dict[str, _Budget] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def use_key(self, key: str) -> None:
        """Heed the limits of another key from now on; calls under way are the former one's."""
        if key != self._key:
            self._key = key
            self._budgets.clear()

    # -- before a call ----------------------------------------------------------------------------

    async def reserve(
        self, model: str, who: Caller, prompt: Callable[[], int], most_output: int | None
    ) -> Grant | float:
        """Return what a call may use, or after how many seconds to ask again.

        Args:
            model: That is called.
            who: Waits, if it has to: the same name when it comes again.
            prompt: Estimates the tokens of the prompt; called only where tokens are limited.
            most_output: Tokens that the reply has at most, where that is bounded.
        """
        grant, likely, budget = Grant(model), 0, self._budget(model)
        if budget is None:
            return grant
        if budget.is_unknown and (found := await self._find_out(budget, grant, who)):
            return found
        if budget.is_free:
            if time.monotonic() - budget.looked_s > _LOOK_S:
                budget.looked_s = time.monotonic()
                self._spawn(self._ask(budget))
            return grant
        budget.wanted += 1
        if budget.known.of_tokens:
            grant.estimate = prompt()
            grant.tokens, likely = budget.expected.of(grant.estimate, most_output)
            budget.size = grant.tokens
        if budget.take(grant):
            self._settle_soon(budget)
            return grant
        until_s = time.monotonic() + _SOON_S
        while True:
            word, wait_s = await self._ask(budget, who, grant.tokens, likely)
            if word == "soon" and time.monotonic() + wait_s < until_s:
                await asyncio.sleep(wait_s)
            elif word in {"soon", "wait"}:  # not in its slot
                return wait_s
            else:
                return budget.granted(grant, word)

    async def _find_out(self, budget: _Budget, grant: Grant, who: Caller) -> Grant | None:
        """Be the call that finds out whether anything is limited, or wait until that is known."""
        async with budget.finding_out:  # one of the process asks
            while budget.is_unknown:
                word, wait_s = await self._ask(budget, who)
                if not wait_s:
                    return budget.granted(grant, word)
                if word == "soon":
                    await asyncio.sleep(wait_s)
        return None

    def sent(self, grant: Grant) -> None:
        """The request is being sent: if that is late, it counts from now on."""
        budget = self._budgets.get(grant.model)
        if budget is None or not grant.at_ms:
            return
        late_ms = budget.now_ms() - grant.at_ms
        if grant.is_counted and late_ms > _LATE_MS:
            budget.changes += (round(grant.at_ms), -1, 0, round(grant.at_ms + late_ms), 1, 0)
            self._spawn(self._ask(budget))
        elif not grant.is_counted:
            grant.at_ms += late_ms

    # -- what the provider says -------------------------------------------------------------------

    def heard(self, grant: Grant, headers: Mapping[str, str]) -> None:
        """The provider answers; its headers may say what it allows."""
        budget, now_s = self._budgets.get(grant.model), time.monotonic()
        if budget is None or (budget.told is not None and now_s - budget.heard_s < _HEAR_S):
            return
        budget.heard_s = now_s
        if (words := words_of(headers)) == budget.told:
            return
        budget.told = words
        uncounted = () if grant.is_counted else (round(grant.at_ms or budget.now_ms()), 1, 0)
        args = lua.LearnArgs(str(announced(*words)), 0, 0, 0)
        self._spawn(self._learn(budget, args, uncounted))

    def refused(self, grant: Grant, words: str, retry_after_s: float | None) -> None:
        """The provider refuses a call for its limits: heed what it names, and wait a moment.

        Args:
            grant: Of the call.
            words: The provider's.
            retry_after_s: How long it wants to be left alone, if it says so.
        """
        budget, named = self._budgets.get(grant.model), reached(words)
        if budget is not None and (named is not None or retry_after_s):
            limits = named or ProviderLimits()
            pause_s = min(_MOST_PAUSE_S, retry_after_s or limits.pace_s)
            wider = _WIDER if named is not None and grant.is_counted else 0
            args = lua.LearnArgs(str(limits), _NAMED_MS, round(pause_s * 1000), wider)
            self._spawn(self._learn(budget, args))

    async def _learn(
        self, budget: _Budget, args: lua.LearnArgs, uncounted: Sequence[int] = ()
    ) -> None:
        """Tell the fleet what the provider allows, and then what was used before it was known."""
        try:
            learning = self._batcher.run(lua.learn(budget.keys, args))
            budget.changes += uncounted
            await asyncio.gather(learning, self._ask(budget))
        except (RedisError, OSError):
            budget.told = None  # the next response tells it again

    def leave(self, model: str, who: Caller, *, within_s: float = math.inf) -> None:
        """Whoever waited does not call any more, and pays for nothing.

        Args:
            model: That was to be called.
            who: Waited.
            within_s: Nothing is done unless somebody of this process was told to wait so recently.
        """
        budget = self._budgets.get(model)
        if budget is None or budget.known == ProviderLimits():
            return
        if time.monotonic() - budget.waited_s <= within_s:
            self._spawn(self._leave(budget, who))

    async def _leave(self, budget: _Budget, who: Caller) -> None:
        args = lua.LeaveArgs(who.name, who.lane, str(self._weight_of(who.tenant)))
        with suppress(RedisError, OSError):  # its place is given up a while after its time
            await self._batcher.run(lua.leave(budget.keys, args))

    # -- what was used ----------------------------------------------------------------------------

    def settle(self, grant: Grant, call: LLMCall | None) -> None:
        """Count what a call used in place of what was granted; None: it was not made."""
        budget = self._budgets.get(grant.model)
        if budget is None:
            return
        if call is None:
            self._give_back(budget, grant)
            return
        if budget.told is None:
            self.heard(grant, {})  # no response came: the others wait for it no longer
        if not budget.known.of_tokens:
            return
        usage = call.counted_usage
        output = max(usage.completion_tokens, usage.total_tokens - usage.prompt_tokens)
        if call.usage is not None and grant.estimate:
            budget.expected.learn(grant.estimate, usage.prompt_tokens, output)
        total = usage.prompt_tokens + output
        if grant.at_ms or not grant.is_counted:
            budget.changes += (round(grant.at_ms or budget.now_ms()), 0, total - grant.tokens)
            self._settle_soon(budget)
        grant.tokens = total  # of one that was not told yet, this is told

    def _give_back(self, budget: _Budget, grant: Grant) -> None:
        if budget.take_back(grant):
            return
        if grant.is_counted:
            budget.changes += (round(grant.at_ms), -1, -grant.tokens)
            self._settle_soon(budget)

    async def aclose(self) -> None:
        """Tell what was used, and give back what is held."""
        for task in self._tasks:
            task.cancel()
        for budget in filter(None, self._budgets.values()):
            if budget.settling is not None:
                budget.settling.cancel()
            budget.wanted = 0
            if budget.changes or budget.untold or budget.requests:
                await self._ask(budget)

    # -- asking -----------------------------------------------------------------------------------

    def _budget(self, model: str) -> _Budget | None:
        """Return what is known of a model; None if its limits are not heeded."""
        given, budget = self._rules.of(model), self._budgets.get(model)
        if given is None:
            return None
        if budget is None:
            place = f"{self._provider} {model}"
            digest = hashlib.blake2b(f"{place} {self._key}".encode(), digest_size=8).hexdigest()
            key = self._shard.limit_prefix + digest
            budget = self._budgets[model] = _Budget(key, f"{self._name} {model}", given)
        elif budget.given != given:
            budget.given = budget.known = given
        return budget

    async def _ask(
        self, budget: _Budget, who: Caller = _NOBODY, tokens: int = 0, likely: int = 0
    ) -> tuple[str, float]:
        """Ask for a call, if somebody waits for one; return the word, and seconds to wait."""
        changes, budget.changes = budget.changes, []
        holds, budget.is_asking = not budget.is_asking, True
        wish, used = budget.hand_in() if holds else ("", "")
        args = lua.ReserveArgs(
            who.name,
            tokens,
            likely,
            self._worker_id,
            *(wish, used),
            str(budget.given),
            lane=who.lane,
            weight=str(self._weight_of(who.tenant)),
            changes=changes,
        )
        try:
            answer = await self._batcher.run(lua.reserve(budget.keys, args))
        except (RedisError, OSError) as error:
            if isinstance(error, ResponseError):  # else whoever needs Redis says so
                log.warning("limits.unusable", extra={"error": word_of(error)})
            return "free", 0.0  # nothing can be sent without Redis anyway
        finally:
            if holds:
                budget.is_asking = False
        word, wait_ms, now_ms, limits, requests, tokens_held = answer
        budget.clock_ms = now_ms - time.monotonic() * 1000
        known = ProviderLimits.read(text(limits))
        if known != budget.known:
            budget.told = None  # it may have been lost: the next response tells it again
        budget.known = known
        if word in {b"wait", b"soon"}:
            budget.waited_s = time.monotonic()
        budget.is_free = not limits and (budget.is_free or word == b"free")
        if holds:
            budget.requests, budget.tokens = requests, tokens_held
            if requests:
                self._settle_soon(budget)
        await self._show(budget)
        return text(word), wait_ms / 1000

    async def _show(self, budget: _Budget) -> None:
        """Have operators see the limits of this model, once they are known, while it is used."""
        now_s = time.monotonic()
        if now_s > budget.show_at_s and budget.known != ProviderLimits():
            budget.show_at_s = now_s + _SHOW_S
            budget_id = budget.keys.budget.removeprefix(self._shard.limit_prefix)
            shown = self._batcher.send("HSET", self._shard.limits, budget_id, budget.place)
            expiry = self._batcher.send("PEXPIRE", self._shard.limits, _SHOWN_MS)
            with suppress(RedisError, OSError):
                await asyncio.gather(shown, expiry)

    def _settle_soon(self, budget: _Budget) -> None:
        if budget.settling is None:
            settle = partial(self._settle, budget)
            budget.settling = asyncio.get_running_loop().call_later(_SETTLE_S, settle)

    def _settle(self, budget: _Budget) -> None:
        budget.settling = None
        self._spawn(self._ask(budget))

    def _spawn(self, asking: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(asking)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
