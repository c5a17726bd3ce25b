"""How loud the end of an attempt is logged: what failed is a warning, with its code and its ids."""

import json
import logging

import pytest
from redis.asyncio import Redis

from tests.integration.telemetry.watching import WatchedHand
from tests.support.driving import SHARD
from turnline.contracts import TurnClient, UserMessage
from turnline.contracts.keys import conversation_keys
from turnline.ops.simulator import Simulator
from turnline.worker.logs import JsonFormatter, WithIds

KEYS = conversation_keys(SHARD.tag, "c")


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(WithIds())


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, object]]:
    """The lines with this event, as they are written."""
    made = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    return [line for line in made if line["event"] == event]


async def ask(client: TurnClient, text: str = "Hello") -> str:
    return (await client.submit(UserMessage(conversation_id="c", text=text))).turn_id


async def test_a_failed_turn_is_a_warning_with_code_and_ids(
    hand: WatchedHand, client: TurnClient, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """It is committed, which is not how it went."""
    sim.inject("status=400")
    turn_id = await ask(client)
    await hand.run_one()

    (line,) = lines(caplog, "turn.attempt_ended")
    assert (line["level"], line["outcome"], line["code"]) == ("warning", "failed", "bad_request")
    assert (line["conversation_id"], line["turn_id"], line["attempt"]) == ("c", turn_id, 1)


@pytest.mark.parametrize(
    ("scenario", "level", "outcome"),
    [("text;value=Hi", "info", "completed"), ("status=503", "warning", "retry")],
)
async def test_an_attempt_is_called_what_it_was(
    hand: WatchedHand, caplog: pytest.LogCaptureFixture, scenario: str, level: str, outcome: str
) -> None:
    """A completed turn is no news; one that has to be tried again is."""
    hand.sim.inject(scenario)
    await ask(hand.client)
    await hand.run_one()

    (line,) = lines(caplog, "turn.attempt_ended")
    assert (line["level"], line["outcome"]) == (level, outcome)


async def test_a_message_that_becomes_a_dead_letter_is_named(
    hand: WatchedHand, client: TurnClient, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """By its own id; the turn behind it went well."""
    await redis.xadd(KEYS.inbox, {"t": "odd", "m": b"no message"})
    turn_id = await ask(client)
    await hand.run_one()

    odd, good = lines(caplog, "turn.attempt_ended")
    assert (odd["level"], odd["turn_id"], odd["code"]) == ("warning", "odd", "invalid_message")
    assert (good["level"], good["turn_id"], good["outcome"]) == ("info", turn_id, "completed")


async def test_a_turn_that_is_given_up_unread_is_named(
    hand: WatchedHand, client: TurnClient, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing but its dead letter told of it."""
    turn_id = await ask(client)
    head = (await redis.xrange(KEYS.inbox))[0][0]
    await redis.hset(KEYS.state, mapping={"head": head, "attempt": 4, "crashes": 4})
    await hand.run_one()

    (line,) = lines(caplog, "turn.failed")
    assert (line["level"], line["turn_id"], line["code"]) == ("warning", turn_id, "crashed")
