"""A tenant's calls stay within its rate, whatever is allowed; others do not wait for it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.integration.worker.test_fair_order import message
from tests.support.driving import SHARD, Hand, ended, fleet, limiter_on, requests
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed
from turnline.ops.cli.app import turnline
from turnline.ops.simulator import Simulator
from turnline.worker.outcome import Parked
from turnline.worker.provider_limits import Caller, Grant
from turnline.worker.store.limiter import RateLimiter
from turnline.worker.store.quotas import WithinQuota


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A budgets file: one tenant has two requests a minute, another one 1,000 tokens."""
    path = tmp_path / "budgets.toml"
    path.write_text('[tenants.a]\nrate = "2rpm"\n[tenants.t]\nrate = "1_000tpm"\n')
    return path


@pytest.fixture
async def limited(hand: Hand, path: Path) -> AsyncIterator[Hand]:
    """A worker that keeps to the file; the provider allows three requests a minute."""
    hand.hold_to(path)
    assert hand.purse is not None
    quotas = RateLimiter(
        hand.batcher, SHARD, provider="tenant", key="", rules=hand.purse, worker_id="w"
    )
    limiter = hand.limiter = WithinQuota(limiter_on(hand.batcher, "*=3rpm"), quotas)
    yield hand
    await limiter.aclose()


async def ask(hand: Hand, who: str, tenant: str = "") -> Grant | float:
    return await hand.limiter.reserve("grok-4.3", Caller(who, tenant), lambda: 400, 100)


async def test_a_tenant_waits_for_its_own_rate(limited: Hand, client: TurnClient) -> None:
    """Without a slot and without an attempt; others go on."""
    first = [await client.submit(message(f"a{n}", "a")) for n in range(3)]
    second = await client.submit(message("b0", "b"))

    outcomes = await limited.run_due()

    (parked,) = [it for it in outcomes if isinstance(it, Parked)]
    assert parked.why == "limit"
    assert 50_000 < parked.defer_ms < 62_000
    for receipt in (*first[:2], second):
        await ended(client, receipt, TurnCompleted)
    assert len(requests(limited.sim)) == 3


async def test_a_deadline_before_the_rate_allows_fails_at_once(
    limited: Hand, client: TurnClient
) -> None:
    """By name."""
    for n in range(2):
        assert isinstance(await ask(limited, f"x{n}", "a"), Grant)
    deadline_at_ms = int(time.time() * 1000) + 30_000
    receipt = await client.submit(message("late", "a", deadline_at_ms=deadline_at_ms))

    await limited.run_due()

    await ended(client, receipt, TurnFailed, "deadline_exceeded")


async def test_tokens_are_limited_as_well(limited: Hand) -> None:
    """By what calls may use."""
    assert isinstance(await ask(limited, "x", "t"), Grant)

    assert isinstance(await ask(limited, "y", "t"), Grant)
    assert not isinstance(await ask(limited, "z", "t"), Grant)
    assert isinstance(await ask(limited, "z", "other"), Grant)


async def test_waiting_for_the_provider_uses_up_nothing(limited: Hand) -> None:
    """However often it is asked."""
    for n in range(3):
        assert isinstance(await ask(limited, f"x{n}"), Grant)
    for _ in range(5):
        assert not isinstance(await ask(limited, "y", "a"), Grant)

    limited.limiter._limiter = limiter_on(limited.batcher, "*=100rps", key="another")  # type: ignore[attr-defined]
    assert isinstance(await ask(limited, "y", "a"), Grant)
    assert isinstance(await ask(limited, "z", "a"), Grant)


async def test_a_wait_that_is_cancelled_uses_up_nothing(limited: Hand) -> None:
    """As by an interrupt, while the provider has no room."""
    limits: Any = limited.limiter
    limits._limiter = limiter_on(limited.batcher, "*=1rps", key="slow")
    for who in ("x", "y"):
        await ask(limited, who, "t" if who == "x" else "a")
    budget = limits._limiter._budgets["grok-4.3"]
    before_s = budget.waited_s
    waiting = asyncio.create_task(ask(limited, "y", "a"))
    await wait_until(lambda: budget.waited_s > before_s, "it waits for the provider")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    limits._limiter = limiter_on(limited.batcher, "*=100rps", key="another")
    for who in ("y", "z"):
        assert isinstance(await ask(limited, who, "a"), Grant)


async def test_a_call_that_is_not_made_uses_up_nothing(limited: Hand) -> None:
    """As when a turn ends before it asks the model."""
    for n in range(5):
        grant = await ask(limited, f"x{n}", "a")
        assert isinstance(grant, Grant)
        limited.limiter.settle(grant, None)


async def test_another_rate_holds_at_once(limited: Hand, path: Path) -> None:
    """The file is read again when it changes."""
    for n in range(2):
        assert isinstance(await ask(limited, f"x{n}", "a"), Grant)
    assert not isinstance(await ask(limited, "y", "a"), Grant)
    await asyncio.to_thread(path.write_text, '[tenant]\nrate = "3rpm"\n')
    os.utime(path, (1, 1))
    assert limited.purse is not None
    await limited.purse.budgets()

    assert isinstance(await ask(limited, "y", "a"), Grant)


async def test_another_rate_holds_for_who_waits(
    limited: Hand, client: TurnClient, path: Path
) -> None:
    """Within a minute, however long the line of before was."""
    for n in range(2):
        assert isinstance(await ask(limited, f"x{n}", "a"), Grant)
    receipts = [await client.submit(message(f"a{n}", "a")) for n in range(6)]
    outcomes = await limited.run_due()
    assert len(outcomes) == 6
    assert all(isinstance(it, Parked) and it.defer_ms <= 60_000 for it in outcomes)
    await asyncio.to_thread(path.write_text, '[tenants.t]\nrate = "3rpm"\n')
    os.utime(path, (1, 1))
    limited.limiter._limiter = limiter_on(limited.batcher, "*=100rps", key="another")  # type: ignore[attr-defined]
    assert limited.purse is not None
    await limited.purse.tenants()  # as a claim does
    for n in range(6):
        await limited.make_due(f"a{n}")

    assert not any(isinstance(it, Parked) for it in await limited.run_due())
    for receipt in receipts:
        await ended(client, receipt, TurnCompleted)


async def test_workers_keep_to_the_rates_of_their_file(
    redis_url: str, sim: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """All of them together; a tenant without a rate waits for nobody."""
    path = tmp_path / "budgets.toml"
    path.write_text('[tenants.a]\nrate = "5rps"\n')
    async with fleet(redis_url, sim, 2, budgets=str(path)):
        began_s = time.monotonic()
        mine = [await client.submit(message(f"a{n}", "a")) for n in range(15)]
        other = await client.submit(message("b", "b"))
        await ended(client, other, TurnCompleted)
        assert len(requests(sim)) <= 6 + 5 * (time.monotonic() - began_s)
        await asyncio.gather(*(client.result(it, timeout_s=30) for it in mine))
        took_s = time.monotonic() - began_s
    assert 2 <= took_s < 8
    shown = await asyncio.to_thread(CliRunner().invoke, turnline, ["queue", "--redis", redis_url])
    assert "requests per second" in shown.stdout
    assert "tenant" in shown.stdout
