"""Workers whose clocks are off by half an hour and more: no promise hangs on one."""

import time

import pytest

from turnline.contracts import SyncTurnClient, TurnCompleted, TurnFailed, UserMessage
from turnline.contracts.keys import shard_keys
from turnline.contracts.opening import open_sync
from turnline.ops.chaos import clocks, sabotage
from turnline.ops.fleet.dead_letters import read_letters
from turnline.ops.fleet.stack import Stack

WORKERS = 3
"""Two of them behind, one before the others."""


@pytest.mark.timeout(120)
def test_no_promise_hangs_on_a_workers_clock() -> None:
    """Deadlines, recovery and what is noted of times follow Redis, whoever does the work."""
    environ = {**sabotage.environment(""), **clocks.environment(3600)}
    with (
        Stack(1, worker_env=environ) as stack,
        SyncTurnClient.connect(stack.redis_url) as client,
    ):
        began_ms = time.time() * 1000
        for alone in range(WORKERS):
            if alone:
                stack.kill(alone - 1)
                stack.start()
                stack.wait_ready()
            name, now_ms = stack.worker_names[alone], int(time.time() * 1000)
            in_time = client.submit(
                UserMessage(conversation_id=name, text="Hello", deadline_at_ms=now_ms + 60_000)
            )
            late = client.submit(
                UserMessage(conversation_id=name, text="Hello", deadline_at_ms=now_ms - 1)
            )

            assert isinstance(client.result(in_time, timeout_s=30), TurnCompleted), name
            ending = client.result(late, timeout_s=30)
            assert isinstance(ending, TurnFailed), name
            assert ending.code == "deadline_exceeded"
            record = client.record(in_time)
            assert record.worker == name
            assert record.accepted_at_ms <= record.finished_at_ms <= time.time() * 1000 + 100
        redis = open_sync(stack.redis_url, patience_s=3)
        try:
            letters = read_letters(redis, [shard_keys(0)])
        finally:
            redis.close()

        assert len(letters) == WORKERS
        assert all(began_ms <= letter.at_ms <= time.time() * 1000 for letter in letters)
        stack.check()
