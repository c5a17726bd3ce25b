"""Where faults strike, who is hit, and what the ledger says about it."""

import asyncio
import contextlib
from typing import Any

import httpx2
import msgspec
import pytest
from openai import APIConnectionError, AsyncOpenAI

from tests.integration.simulator.asking import ask
from tests.support.wait import wait_until
from turnline.ops.simulator import BadScenario, Profile, Simulator, SimulatorConfig
from turnline.ops.simulator.faults.catalogue import GROUPS

WORDS = "chunks=10"


async def admin(sim: Simulator, method: str, path: str, **given: Any) -> Any:
    async with httpx2.AsyncClient() as http:
        reply = await http.request(method, f"{sim.admin_url}{path}", **given)
    return reply.json() if "json" in reply.headers["content-type"] else reply.text


async def test_a_whole_answer_is_recorded(post, sim: Simulator) -> None:
    """Body, headers without the key, tokens, usage, times."""
    reply = await post("Hi", sim=WORDS, headers={"x-grok-conv-id": "conv"})
    (entry,) = sim.ledger.entries()

    assert msgspec.json.decode(entry.body)["messages"] == [{"role": "user", "content": "Hi"}]
    assert (entry.conversation_id, entry.model, entry.status) == ("conv", "grok-4.3", 200)
    assert (entry.outcome, entry.cut_by, entry.cut_at) == ("whole", None, None)
    assert (entry.tokens_streamed, entry.finished, entry.usage_reported) == (10, True, True)
    assert entry.usage.completion_tokens == 10
    assert entry.headers["authorization"] == "<redacted>"
    assert entry.bytes_sent == len(reply.raw)
    assert 0 < entry.first_byte_ms <= entry.duration_ms
    assert entry.disconnected_at_ms is None
    assert entry.scenarios == ["chunks"]


@pytest.mark.parametrize(
    ("at", "cut_at", "tokens", "finished", "reported"),
    [
        ("before_headers", "before_headers", 0, False, False),
        ("after_headers", "after_headers", 0, False, False),
        ("first_frame", "tokens:1", 1, False, False),
        ("tokens:4", "tokens:4", 4, False, False),
        ("before_finish", "tokens:10", 10, False, False),
        ("before_usage", "before_usage", 10, True, False),
        ("before_done", "before_done", 10, True, True),
    ],
)
@pytest.mark.parametrize("fault", ["fin;mid=0", "eof;", "rst;"])
async def test_faults_strike_where_they_should(
    post,
    sim: Simulator,
    fault: str,
    at: str,
    cut_at: str,
    tokens: int,
    finished: bool,
    reported: bool,
) -> None:
    """At every position, by every way of breaking off; the ledger knows how far it came."""
    fault = f"{fault}at={at}" if fault.endswith(";") else f"{fault},at={at}"
    try:
        reply = await post(sim=f"{WORDS} | {fault}")
    except (ConnectionResetError, ValueError, IndexError):
        reply = None
    (entry,) = sim.ledger.entries()

    assert (entry.outcome, entry.cut_by, entry.cut_at) == ("cut", "server", cut_at)
    assert (entry.tokens_streamed, entry.finished) == (tokens, finished)
    assert entry.usage_reported is reported
    assert entry.usage.completion_tokens == 10
    if reply is not None and fault.startswith("eof"):
        assert len([event for event in reply.events if b'"content"' in event]) == tokens


async def test_a_client_that_goes_is_noticed(client: AsyncOpenAI, sim: Simulator) -> None:
    """The entry is cut by the client, with the time, and nothing is sent any more."""
    stream = await ask(
        client,
        text="Hello",
        stream=True,
        extra_headers={"x-sim": f"{WORDS} | stall;after=3"},
    )
    for _ in range(3):
        await anext(stream)
    (entry,) = sim.ledger.entries()
    before = entry.outcome
    await stream.close()
    await wait_until(lambda: entry.outcome != "open", "the entry to be closed")

    assert before == "open"
    assert (entry.outcome, entry.cut_by, entry.cut_at) == ("cut", "client", "tokens:3")
    assert entry.disconnected_at_ms >= entry.received_at_ms


async def test_a_server_may_go_on_without_its_client(client: AsyncOpenAI, sim: Simulator) -> None:
    """It generates to the end, and the usage was spent."""
    stream = await ask(
        client,
        text="Hello",
        stream=True,
        extra_headers={"x-sim": f"{WORDS} | ignore-disconnect | pace;ttft_ms=0,itl_ms=40"},
    )
    await anext(stream)
    await stream.close()
    (entry,) = sim.ledger.entries()
    await wait_until(lambda: entry.outcome != "open", "the end of the answer")

    assert entry.tokens_streamed == 10
    assert entry.disconnected_at_ms is not None


@pytest.mark.parametrize("scenario", ["stall", "stall | ignore-disconnect"])
async def test_stopping_breaks_off_what_runs(scenario: str) -> None:
    """A stream that would never end is cut by the server, and no task is left."""
    before = asyncio.all_tasks()
    async with Simulator() as sim, AsyncOpenAI(base_url=sim.base_url, api_key="k") as client:
        stream = await ask(
            client,
            f"grok-4.3@chunks=5 | {scenario}",
            "Hello",
            stream=True,
        )
        await anext(stream)
        if "ignore" in scenario:
            await stream.close()
        await sim.stop()
        (entry,) = sim.ledger.entries()
        with contextlib.suppress(APIConnectionError):
            seen = [chunk async for chunk in stream]
            assert len(seen) < 5

    assert (entry.outcome, entry.cut_by) == ("cut", "client" if "ignore" in scenario else "server")
    assert asyncio.all_tasks() == before


async def test_refused_requests_are_errors(post, sim: Simulator) -> None:
    """No answer was meant to be given: no usage, no cut."""
    await post(sim="unavailable")
    await post(messages=[])
    await post(sim="ok-json")
    entries = sim.ledger.entries()

    assert [entry.outcome for entry in entries] == ["error"] * 3
    assert [entry.status for entry in entries] == [503, 400, 200]
    assert sim.ledger.summary().overall.unreported == 0


async def test_the_ledger_is_read_over_http(post, sim: Simulator) -> None:
    """With filters, as sums, without bodies, and it can be emptied."""
    for conversation in ("a", "b", "a"):
        await post(sim=WORDS, headers={"x-grok-conv-id": conversation})
    everything = await admin(sim, "GET", "/ledger")
    some = await admin(sim, "GET", "/ledger?conversation=a&since=1&bodies=0")
    limited = await admin(sim, "GET", "/ledger?limit=2")
    sums = await admin(sim, "GET", "/ledger?summary=1")
    one = await admin(sim, "GET", "/ledger?summary=1&conversation=b")
    cleared = await admin(sim, "DELETE", "/ledger")

    assert [entry["seq"] for entry in everything["entries"]] == [1, 2, 3]
    assert everything["entries"][0]["body"]["model"] == "grok-4.3"
    assert [(entry["seq"], entry["body"]) for entry in some["entries"]] == [(3, None)]
    assert (limited["last_seq"], len(limited["entries"])) == (2, 2)
    assert sums["overall"]["completion_tokens"] == 30
    assert sums["conversations"]["a"]["requests"] == 2
    assert one["overall"]["requests"] == 1
    assert cleared == {"cleared": True}
    assert len(sim.ledger) == 0
    assert await admin(sim, "GET", "/ledger?since=x") == "since and limit take numbers\n"


async def test_a_body_that_is_not_json_is_kept_as_text(send, sim: Simulator) -> None:
    """And the ledger can still be read."""
    await send("POST", "/v1/chat/completions", b"{\xff", content_type="application/json")
    listing = await admin(sim, "GET", "/ledger")

    assert listing["entries"][0]["body"] == "{\ufffd"


async def test_faults_are_injected_over_http(post, sim: Simulator) -> None:
    """The second request of one conversation fails, once; the rest is served."""
    rule = {"scenario": "unavailable", "nth": 2, "conversation": "a*"}
    added = await admin(sim, "POST", "/faults", json=rule)
    listed = await admin(sim, "GET", "/faults")
    conversations = ["a1", "b", "a2", "a3"]
    statuses = [
        (await post(headers={"x-grok-conv-id": conversation})).status
        for conversation in conversations
    ]

    assert added == {"ids": [1]}
    assert listed["faults"][0]["rule"]["scenario"] == "unavailable"
    assert statuses == [200, 200, 503, 200]
    assert await admin(sim, "GET", "/faults") == {"faults": []}


async def test_injected_faults_can_be_withdrawn(post, sim: Simulator) -> None:
    """One by its id, or all."""
    rules = [{"scenario": "unavailable", "times": None}, {"scenario": "capacity", "times": None}]
    await admin(sim, "POST", "/faults", json=rules)
    first = (await post()).status
    removed = await admin(sim, "DELETE", "/faults?id=1")
    second = (await post()).status
    await admin(sim, "DELETE", "/faults")
    third = (await post()).status

    assert removed == {"removed": True}
    assert [first, second, third] == [503, 429, 200]


@pytest.mark.parametrize(
    "body", [b"{", b'{"scenario":"rts"}', b'{"scenario":"rst","when":1}', b'{"nth":1}']
)
async def test_nonsense_is_not_injected(sim: Simulator, body: bytes) -> None:
    """Whoever sends it is told."""
    async with httpx2.AsyncClient() as http:
        reply = await http.post(f"{sim.admin_url}/faults", content=body)

    assert reply.status_code == 400
    assert len(reply.text) > 10


async def test_unknown_scenarios_fail_their_request(post, sim: Simulator) -> None:
    """By a status that cannot be taken for an answer, in header, model name and argument."""
    replies = [
        await post(sim="rts"),
        await post(model="grok-4.3@rts"),
        await post(sim="rst;at=soon"),
        await post(sim="tool"),
        await post(sim="chunks=many"),
        await post(sim="pace;coalesce=0"),
        await post(sim="error-frame;shape=round"),
    ]

    assert [reply.status for reply in replies] == [400] * 7
    assert all(b'"code":"simulator:bad-scenario"' in reply.body for reply in replies)
    with pytest.raises(BadScenario):
        sim.inject("rts")


async def test_the_first_requests_fail_and_later_ones_succeed(post) -> None:
    """`fail` counts by conversation and fails with whatever scenario is named."""
    header = {"x-grok-conv-id": "c"}
    scenario = f"{WORDS} | fail;n=2,with=capacity%3Bretry_after=1"
    replies = [await post(sim=scenario, headers=header) for _ in range(3)]
    other = await post(sim=scenario, headers={"x-grok-conv-id": "d"})

    assert [reply.status for reply in replies] == [429, 429, 200]
    assert replies[0].headers["retry-after"] == "1"
    assert other.status == 429


@pytest.mark.parametrize(
    ("wish", "name", "value"),
    [
        ("none", "retry-after", None),
        ("3", "retry-after", "3"),
        ("1500ms", "retry-after-ms", "1500"),
        ("huge", "retry-after", "86400"),
        ("negative", "retry-after", "-1"),
    ],
)
async def test_retry_after_comes_in_all_forms(
    post, wish: str, name: str, value: str | None
) -> None:
    """As wished; a date ends in GMT."""
    reply = await post(sim=f"rate-limit;retry_after={wish}")
    dated = await post(sim="rate-limit;retry_after=date")

    assert reply.headers.get(name) == value
    assert dated.headers["retry-after"].endswith(" GMT")


async def test_connections_are_refused_for_a_while(post, sim: Simulator) -> None:
    """The request is reset, new connections are refused, then all is well on the same port."""
    port = sim.port
    with pytest.raises((ConnectionResetError, IndexError)):
        await post(sim="refuse;seconds=0.2")
    with pytest.raises(ConnectionRefusedError):
        await post()

    async def served() -> bool:
        try:
            return (await post()).status == 200
        except ConnectionRefusedError:
            return False

    await wait_until(served, "the simulator to listen again")
    assert sim.port == port
    assert sim.ledger.entries()[0].cut_at == "before_headers"


async def test_scenarios_and_routes_are_listed(sim: Simulator) -> None:
    """Every scenario with its help; unknown routes name the known ones."""
    listing = await admin(sim, "GET", "/scenarios")
    missing = await admin(sim, "GET", "/nothing")

    assert {group: set(names) for group, names in listing.items()} == {
        group: set(names) for group, names in GROUPS.items()
    }
    assert "GET /sim/ledger" in missing
    assert (await admin(sim, "GET", "/health"))["ok"]


NEEDS_TOOLS = {name for name in GROUPS["content"] if name.startswith("tool")}
NEVER_ENDS = {"stall", "stall-keepalive"}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", sorted(n for g in GROUPS.values() for n in g))
async def test_no_scenario_breaks_the_simulator(post, name: str, stream: bool) -> None:
    """Each by its name alone, streamed or not: afterwards the simulator still answers."""
    tool = {"type": "function", "function": {"name": "add"}}
    text = f"{name};seconds=0.01" if name in NEVER_ENDS | {"refuse"} else name
    text = {"tiny-chunks": f"{name};n=100", "slow-close": f"{name};ms=5"}.get(name, text)
    given = {"tools": [tool]} if name in NEEDS_TOOLS else {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        await post(sim=text, stream=stream, **given)

    async def answered() -> bool:
        try:
            return b"stop" in (await post("Still there?", stream=stream)).body
        except OSError:
            return False

    await wait_until(answered, "a faultless answer")


async def test_many_faults_at_once_leave_a_consistent_ledger(post, sim: Simulator) -> None:
    """Under a seeded mix of faults, every request has exactly one entry with one outcome."""
    for seed, scenario in enumerate(("rst", "fin", "eof", "unavailable", "error-frame")):
        sim.inject(scenario, times=None, probability=0.2, seed=seed)

    async def one(number: int) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            await post(sim=WORDS, headers={"x-grok-conv-id": str(number)})

    await asyncio.gather(*(one(number) for number in range(60)))
    totals = sim.ledger.summary().overall

    assert totals.requests == 60
    assert totals.whole + totals.cut + totals.errors == 60
    assert min(totals.whole, totals.cut, totals.errors) > 0
    assert totals.completion_tokens == 10 * (totals.whole)


async def test_the_profile_of_2024_reports_usage_in_every_chunk() -> None:
    """Role and running usage everywhere, the finish reason on the last content, no cost."""
    chunks = await streamed(Profile.LEGACY2024, "grok-beta")

    assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in chunks)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]
    assert [chunk["choices"][0].get("finish_reason") for chunk in chunks] == [None, None, "stop"]
    assert "cost_in_usd_ticks" not in chunks[-1]["usage"]


async def test_the_profile_of_october_2025_has_empty_deltas() -> None:
    """A role-only delta, empty ones, a region in the id."""
    chunks = await streamed(Profile.OCT2025, "grok-4")

    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert chunks[1]["choices"][0]["delta"] == {}
    assert chunks[0]["id"].endswith("_us-east-1")
    assert chunks[0]["model"] == "grok-4-0709"


async def test_the_azure_profile_has_a_tier_and_odd_counts() -> None:
    """A service tier in every chunk, cost 0, more cached than prompted on the second turn."""
    chunks = await streamed(Profile.AZURE, "grok-4.3", turns=2)
    used = chunks[-1]["usage"]

    assert {chunk["service_tier"] for chunk in chunks} == {"default"}
    assert used["cost_in_usd_ticks"] == 0
    assert used["prompt_tokens_details"]["cached_tokens"] > used["prompt_tokens"]


async def streamed(profile: Profile, model: str, turns: int = 1) -> list[dict]:
    """Chunks of the last of some equal answers of three tokens."""
    async with (
        Simulator(SimulatorConfig(profile=profile)) as sim,
        httpx2.AsyncClient(headers={"authorization": "Bearer k", "x-sim": "chunks=3"}) as http,
    ):
        scenario = "text;say=one%20two%20three"
        for _ in range(turns):
            reply = await http.post(
                f"{sim.base_url}/chat/completions",
                headers={"x-grok-conv-id": "c", "x-sim": scenario},
                json={
                    "model": model,
                    "messages": [{"role": "user", "content": "hi"}],
                    "stream": True,
                    "stream_options": {"include_usage": True},
                },
            )
    events = reply.text.removesuffix("data: [DONE]\n\n").strip().split("\n\n")
    return [msgspec.json.decode(event.removeprefix("data: ")) for event in events]
