"""One place that answers for several workers, each of which answers at a socket of its own."""

import asyncio
import json
import re
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.integration.probes.asking import answer_of, free_port, says, value_on
from tests.support.processes import REPOSITORY, worker_process
from tests.support.wait import wait_until
from turnline.contracts import TurnClient
from turnline.ops.simulator import Simulator
from turnline.worker.http_places import Place, listen_at
from turnline.worker.probes.merging import Group
from turnline.worker.probes.small_http import SmallServer


async def test_one_port_answers_for_two_workers(
    redis_url: str, sim: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """Metrics of each with its name; ready while enough are; one that hangs holds nobody up."""
    places = {name: Place(path=str(tmp_path / f"{name}.sock")) for name in ("w1", "w2")}
    enough = [2]
    listening = listen_at(Place("127.0.0.1", 0))
    place = Place(*listening.getsockname())
    group = Group(lambda: places, enough=lambda: enough[0], ask_s=0.5)
    server = SmallServer(listening, group.answers)
    await server.start()
    async with AsyncExitStack() as exits:
        exits.push_async_callback(server.close)
        assert (await says(place, "/readyz", 503, "0 of 2 workers are ready"))["ready"] == 0
        workers = {
            name: exits.enter_context(
                worker_process(redis_url, sim.base_url, http=str(at), worker_name=name)
            )
            for name, at in places.items()
        }
        assert (await says(place, "/readyz", 200))["workers"] == {"w1": True, "w2": True}
        for n in range(6):
            await client.ask(f"c{n}", "Hello", timeout_s=30)

        async def all_are_counted() -> bool:
            page = await answer_of(place, "/metrics")
            assert page is not None
            return value_on(page.body, "turnline_turn_duration_seconds_count") == 6

        await wait_until(all_are_counted, "the turns of both are counted")
        page = (await answer_of(place, "/metrics")).body.decode()
        assert 'turnline_worker_up{worker="w1"} 1' in page
        assert page.count("# TYPE turnline_turns_in_flight ") == 1

        workers["w2"].signal(signal.SIGSTOP)
        found = await says(place, "/readyz", 503, "w2: it does not answer")
        assert found["faults"][0] == "1 of 2 workers are ready, 2 have to be"
        enough[0] = 1
        await says(place, "/readyz", 200)
        page = (await answer_of(place, "/metrics")).body
        assert value_on(page, "turnline_worker_up") == 1
        assert (await says(place, "/livez", 200))["workers"] == {"w1": True, "w2": False}
        workers["w2"].signal(signal.SIGCONT)
        enough[0] = 2
        await says(place, "/readyz", 200)

        workers["w1"].signal(signal.SIGTERM)
        await asyncio.to_thread(workers["w1"].gone_within, 20)
        await says(place, "/readyz", 503, "w1: it does not answer")
        del places["w1"]
        answer = await answer_of(place, "/readyz")
        assert json.loads(answer.body)["faults"] == ["1 of 1 workers are ready, 2 have to be"]


async def test_the_program_of_the_documentation_runs(tmp_path: Path) -> None:
    """It answers for children that are not there yet."""
    page = (REPOSITORY / "docs/probes.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    port = free_port()
    names: dict[str, Any] = {}
    exec(block.replace("9464", str(port)), names)
    server = await names["answer_for"]({"w1": f"unix:{tmp_path}/w1.sock"})
    try:
        found = await says(Place("127.0.0.1", port), "/readyz", 503)
        assert found["workers"] == {"w1": False}
    finally:
        await server.close()
