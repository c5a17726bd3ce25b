"""The end of a worker whose Redis does not answer any more."""

import socket
import time

from tests.support.wait import wait_until
from turnline.contracts.keys import shard_keys
from turnline.contracts.opening import open_servers
from turnline.worker.batching import Pipelines
from turnline.worker.store.traces import Traces
from turnline.worker.telemetry.spans import Span, TurnSpans

SPANS = [
    Span(name=name, span_id="01" * 8, start_ns=1, end_ns=2, attributes={}) for name in ("a", "b")
]


async def test_traces_that_cannot_be_written_are_given_up_in_time() -> None:
    """Ending takes as long as it may, and what still waits counts as dropped."""
    written: list[tuple[int, int]] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        servers = open_servers(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        pipelines = Pipelines(servers)
        traces = Traces(
            pipelines.of("{s0}"), shard_keys(0), on_written=lambda *counts: written.append(counts)
        )
        for number in range(200):
            turn = TurnSpans(
                conversation_id="c",
                turn_id=str(number),
                trace_id="ab" * 16,
                attempt=1,
                spans=SPANS,
            )
            traces.keep(turn, b"x" * 10_000)
        silent.setblocking(False)
        with await wait_until(lambda: _accepted(silent), "the writer has connected"):
            began_s = time.monotonic()
            await traces.close(within_s=0.2)
            took_s = time.monotonic() - began_s
            await pipelines.close()
            await servers.aclose()

    assert took_s < 1
    assert written == [(0, 2 * (200 - 64))]


def _accepted(silent: socket.socket) -> socket.socket | None:
    try:
        return silent.accept()[0]
    except BlockingIOError:
        return None
