"""What others write into the keys of limits neither stops calls nor frees them."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import pytest
from redis.asyncio import Redis

from tests.support.driving import batcher_on, limiter_on
from tests.support.wait import wait_until
from turnline.worker.provider_limits import Caller, Grant
from turnline.worker.store.limiter import RateLimiter

Words = tuple[str | int, ...]
"""Of a command."""

NO_NUMBERS: Final = ("", "x", "nan", "-nan", "1 2", "\x00", "1,5", "--1")
NUMBERS: Final = ("inf", "-inf", "-1", "1e300", "-1e300", "1e15", "-1e15", "1099511627777")
LONG: Final = ("9" * 400, "-" + "9" * 400, "99999999999999999999", "0x7fffffffffff", "1.5")
ANY: Final = (*NO_NUMBERS, *NUMBERS, *LONG)
PER_SECOND: Final = 5
RULES: Final = {"r": f"*={PER_SECOND}rps", "t": f"*={PER_SECOND}_10tps"}
"""Limits of requests and of tokens, for calls that may use 101 tokens."""
LASTS_S: Final = 4.0


def bucket(number: int) -> Callable[[str], str]:
    """Name the bucket of so many before now."""
    return lambda window: f"{window}s:{int(time.time() * 200) - number}"


FIELDS: Final[Sequence[str | Callable[[str], str]]] = (
    *("seen", "scout", "until", "margin", "limits", "mean", "l:rm", "n:rm"),
    *(lambda window, it=it: f"{window}s:{it}" for it in ("sum", "from", "last")),
    *map(bucket, (0, 7, -1)),
)
SHAPES: Final = ("{} 0 {soon}", "0 {} {soon}", "{} {} {soon}", "5 5 {}", "1 2000 {}")
"""Of what a worker holds."""


class Life(NamedTuple):
    """Calls of one model, by tenants `a` and `b`."""

    granted_at_s: list[tuple[float, str]]
    """When, since others wrote; by whom."""
    what: Sequence[Words]
    """That they wrote."""


def of_fields(key: str, window: str, dice: random.Random) -> list[Words]:
    """Something into every field of the budget, one at a time."""
    names = [it if isinstance(it, str) else it(window) for it in FIELDS]
    return [("HSET", key, name, dice.choice(ANY)) for name in names]


def of_held(key: str, dice: random.Random) -> list[Words]:
    """Something into what a worker holds that is gone."""
    soon = int(time.time() * 1000) + 1500
    words = [it.format(*[dice.choice(ANY)] * 2, soon=soon) for it in SHAPES]
    return [("HSET", f"{key}:held", "gone", it) for it in (*words, dice.choice(ANY))]


def of_places(key: str, dice: random.Random) -> list[Words]:
    """Something into the places of who waits, and of tenants."""
    members = {
        ":line": ("c0", "c1", "ghost"),
        ":due": ("c0", "c1", "ghost"),
        ":shares": ("i", "b", "i:a", "i:b", "i:c", "x"),
    }
    return [
        ("ZADD", key + tail, dice.choice(NUMBERS), member)
        for tail, names in members.items()
        for member in names
    ]


def of_ghosts(key: str, dice: random.Random) -> list[Words]:
    """Many that will never come."""
    place, due = dice.choice(NUMBERS), dice.choice(NUMBERS)
    many = [word for n in range(60) for word in (place, f"g{n}")]
    more = [word for n in range(60) for word in (due, f"g{n}")]
    return [("ZADD", f"{key}:line", *many), ("ZADD", f"{key}:due", *more)]


def of_limits(key: str, dice: random.Random) -> list[Words]:
    """Something in place of what the provider told, and named."""
    soon = int(time.time() * 1000) + 600_000
    named = [it.format(dice.choice(ANY), soon=soon) for it in ("{} {soon}", "5 {}", "9{soon} {}")]
    more = [("HSET", key, "n:rs", it) for it in (*named, f"99999999999 {soon}")]
    return [*(("HSET", key, it, dice.choice(ANY)) for it in ("l:rs", "l:rm", "n:rs")), *more]


async def live(
    redis: Redis,
    limiter: RateLimiter,
    model: str,
    what: Sequence[Words],
    headers: Mapping[str, str] | None = None,
) -> Life:
    """Have six call as often as they may; others write as soon as some wait."""
    granted: list[tuple[float, str]] = []
    until_s = time.monotonic() + 60

    async def call(who: Caller) -> None:
        while time.monotonic() < until_s:
            answer = await limiter.reserve(model, who, lambda: 100, 1)
            if isinstance(answer, Grant):
                granted.append((answer.at_ms / 1000, who.tenant))
                if headers is not None:
                    limiter.heard(answer, headers)
            else:
                await asyncio.sleep(min(answer, 0.5))

    names = [Caller(f"c{n}", "ab"[n % 2]) for n in range(6)]
    async with asyncio.TaskGroup() as group:
        for it in names:
            group.create_task(call(it))
        await wait_until(lambda: len(granted) >= PER_SECOND, "some have called")
        for words in what:
            await redis.execute_command(*words)
        wrote_s = (await redis.time())[0] + (await redis.time())[1] / 1e6
        until_s = time.monotonic() + LASTS_S
    return Life([(at_s - wrote_s, who) for at_s, who in granted], what)


def most_in_a_second(times_s: Sequence[float]) -> int:
    """The most that lie within one."""
    return max((sum(t - 0.99 < it <= t for it in times_s) for t in times_s), default=0)


def all_of(key: str, window: str, dice: random.Random) -> list[list[Words]]:
    """What others may write, each for a budget of its own."""
    alone = (*of_fields(key, window, dice), *of_held(key, dice), *of_places(key, dice))
    tails = ("", ":held", ":line", ":due", ":shares")
    found: list[list[Words]] = [[it] for it in alone]
    found += [[("DEL", key + it), ("SET", key + it, dice.choice(ANY))] for it in tails]
    far: list[Words] = [("HSET", key, f"{window}s:{it}", 10**12) for it in ("from", "last")]
    return [*found, of_ghosts(key, dice), far, [("DEL", f"{key}:due")]]


@pytest.mark.parametrize("seed", range(3))
async def test_what_others_write_neither_stops_nor_frees_calls(
    redis_url: str, redis: Redis, seed: int
) -> None:
    """Of no tenant; after a second the limit is kept to again, and before that at most twice."""
    async with batcher_on(redis_url) as batcher:
        limiters = [limiter_on(batcher, rules) for rules in RULES.values()]

        async def one(limiter: RateLimiter, window: str, number: int) -> Life:
            budget = limiter._budget(f"{window}{number}")
            assert budget is not None
            dice = random.Random(f"{seed} {window}")
            what = all_of(budget.keys.budget, window, dice)[number]
            return await live(redis, limiter, f"{window}{number}", what)

        numbers = range(len(all_of("", "r", random.Random(0))))
        pairs = zip(limiters, RULES, strict=True)
        lives = await asyncio.gather(*(one(*it, n) for it in pairs for n in numbers))
        for it in limiters:
            await it.aclose()

    wrong = [(faults, it.what) for it in lives if (faults := list(faults_of(it)))]
    assert not wrong


@pytest.mark.parametrize("seed", range(2))
async def test_limits_that_others_write_are_told_again(
    redis_url: str, redis: Redis, seed: int
) -> None:
    """By the next response; until then, no number that cannot be one counts."""
    headers = {"x-ratelimit-limit-requests": str(60 * PER_SECOND)}
    async with batcher_on(redis_url) as batcher:
        limiter = limiter_on(batcher)

        async def one(number: int) -> Life:
            budget = limiter._budget(f"m{number}")
            assert budget is not None
            what = of_limits(budget.keys.budget, random.Random(seed))[number]
            return await live(redis, limiter, f"m{number}", [what], headers)

        numbers = range(len(of_limits("", random.Random(0))))
        lives = await asyncio.gather(*map(one, numbers))
        await limiter.aclose()

    wrong = [(faults, it.what) for it in lives if (faults := list(faults_of(it, first=4)))]
    assert not wrong


async def test_a_first_call_that_others_note_holds_up_nobody(redis_url: str, redis: Redis) -> None:
    """Whenever it was: what is limited is found out within seconds."""
    async with batcher_on(redis_url) as batcher:
        limiter = limiter_on(batcher)
        now_ms = int(time.time() * 1000)
        names = {f"m{n}": it for n, it in enumerate((*ANY, now_ms + 10**7, now_ms))}
        for model, value in names.items():
            budget = limiter._budget(model)
            assert budget is not None
            await redis.hset(budget.keys.budget, "scout", value)

        async with asyncio.timeout(3):
            found = await asyncio.gather(
                *(limiter.reserve(it, Caller("c"), lambda: 1, 1) for it in names)
            )
        await limiter.aclose()

    assert all(isinstance(it, Grant) for it in found)


def faults_of(life: Life, first: int = 2) -> Iterator[str]:
    """Yield what is wrong with it; in the first second, so many times the limit may be used."""
    since = [(at_s, who) for at_s, who in life.granted_at_s if at_s > 0]
    by = Counter(who for _, who in since)
    if (most := most_in_a_second([at_s for at_s, _ in since if at_s > 1])) > PER_SECOND:
        yield f"{most} in a second"
    if (most := most_in_a_second([at_s for at_s, _ in since])) > first * PER_SECOND:
        yield f"{most} in the first second"
    if min(by[who] for who in "ab") < 3:
        yield f"only {by}"
