"""`turnline check`: each part is told, and the exit code says whether all is well."""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from click.testing import CliRunner

from tests.integration.probes.asking import frozen
from tests.support.processes import worker_process
from tests.support.wait import wait_until
from turnline.contracts import TurnClient
from turnline.ops.cli.app import turnline
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.simulator import Simulator

NOBODY = "http://127.0.0.1:1/v1"


async def checked(environ: Mapping[str, str], *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what is said as JSON."""
    command = ["check", "--json", *words]
    result = await asyncio.to_thread(CliRunner().invoke, turnline, command, env=environ)
    return result.exit_code, json.loads(result.stdout)


def environ_of(redis_url: str, sim: Simulator, **more: str) -> dict[str, str]:
    return {
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": sim.base_url,
        "XAI_API_KEY": "xai-test",
        **more,
    }


async def test_all_is_well_where_a_worker_lives(
    redis_url: str, sim: Simulator, client: TurnClient
) -> None:
    """Without one, that part alone is wrong; others may be asked for without it."""
    environ = environ_of(redis_url, sim)
    code, found = await checked(environ)
    assert code == 1
    wrong = [part for part, it in found.items() if part != "ok" and not it["ok"]]
    assert wrong == ["worker"]
    assert "no worker of this host" in found["worker"]["found"]
    code, found = await checked(environ, "redis", "provider")
    assert (code, list(found)) == (0, ["ok", "redis", "provider"])

    with worker_process(redis_url, sim.base_url, worker_name="w1"):

        async def is_well() -> bool:
            code, found = await checked(environ)
            return code == 0 and found["worker"]["found"] == "1 of this host: w1"

        await wait_until(is_well, "the worker lives")
    command = ["check", "settings", "redis"]
    result = await asyncio.to_thread(CliRunner().invoke, turnline, command, env=environ)
    assert result.exit_code == 0
    assert [it.split()[:2] for it in result.output.splitlines()] == [
        ["settings", "ok"],
        ["redis", "ok"],
    ]


@pytest.mark.parametrize(
    ("more", "part", "says"),
    [
        ({"TURNLINE_SLOT": "1"}, "settings", "did you mean TURNLINE_SLOTS?"),
        ({"XAI_API_KEY": ""}, "settings", "XAI_API_KEY is not set"),
        ({"TURNLINE_BASE_URL": NOBODY}, "provider", f"no connection to {NOBODY}"),
        ({"TURNLINE_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}, "redis", "127.0.0.1:1/0"),
        ({"TURNLINE_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}, "worker", "127.0.0.1:1/0"),
    ],
)
async def test_what_is_wrong_is_told(
    more: Mapping[str, str], part: str, says: str, redis_url: str, sim: Simulator
) -> None:
    """With what to do, and without a password."""
    code, found = await checked(environ_of(redis_url, sim, **more))

    assert code == 1
    assert not found[part]["ok"]
    assert says in found[part]["found"]
    assert "s3cret" not in str(found)


async def test_it_takes_no_longer_than_its_limit(sim: Simulator) -> None:
    """A frozen server is told of; the other parts are looked at meanwhile."""
    with EmbeddedRedis() as server, frozen(server):
        began_s = time.monotonic()
        code, found = await checked(environ_of(server.url, sim))
        assert time.monotonic() - began_s < 9
    assert code == 1
    assert "has not answered within 3 s" in found["redis"]["found"]
    assert found["provider"]["ok"]


async def test_a_proxy_is_in_the_way_of_looking(redis_url: str, sim: Simulator) -> None:
    """A connection past it may be forbidden, and would say nothing."""
    environ = environ_of(redis_url, sim, HTTPS_PROXY="http://proxy:3128")
    code, found = await checked(environ, "provider")

    assert code == 0
    assert found["provider"]["found"] == "not looked at: HTTPS_PROXY is set"
