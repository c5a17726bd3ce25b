"""Looks at Redis, the workers and what happened lately, and says what is wrong."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from redis.exceptions import ResponseError

from turnline.contracts.addresses import read_address
from turnline.contracts.blocking_servers import BlockingServers, run
from turnline.contracts.opening import Blocking
from turnline.contracts.scripts import text
from turnline.ops.cli import output
from turnline.ops.fleet.dead_letters import letter_of
from turnline.ops.fleet.operator_connection import ANSWER_S, Connection
from turnline.ops.fleet.queue_state import QueueState, read_queue, read_workers
from turnline.ops.traces.causes import cause_of
from turnline.ops.traces.kept_traces import TracedTurn, recent
from turnline.worker.telemetry import names as n

LATELY_S: Final = 900
"""What happened before is no matter of a night on call."""
_MOST_TRACES: Final = 500
_MOST_LETTERS: Final = 1_000
_WAITS_LONG_MS: Final = 5_000
_SLOW_S: Final = 10.0
"""Until the first words of a model, at the median."""
_CLOCK_OFF_MS: Final = 2_000
_NEARLY: Final = 0.9
_NEW_S: Final = 900
_NEVER: Final = "0" * 40
"""Id of the server that a primary followed before, if it never did."""
_ORDER: Final = ("error", "warning", "note")


Severity = Literal["error", "warning", "note"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong, or worth knowing."""

    severity: Severity
    """`error`: turns fail or stand still. `warning`: they will, or are slow."""
    about: Literal["redis", "fleet", "turns", "limits"]
    what: str
    advice: str = ""


def examine(connection: Connection) -> list[Finding]:
    """Look at everything; the worst comes first, and of that what strikes most turns.

    Raises:
        redis.exceptions.RedisError, OSError: Redis did not answer.
    """
    state = read_queue(connection.redis, connection.shards)
    found = [
        *_redis(connection),
        *_fleet(connection, state),
        *_limits(state),
        *_lately(connection),
    ]
    return sorted(found, key=lambda it: _ORDER.index(it.severity))


# -- Redis --------------------------------------------------------------------------------------


def _redis(connection: Connection) -> Iterator[Finding]:
    servers = BlockingServers(read_address(connection.url), max_connections=2, timeout_s=ANSWER_S)
    try:
        for server in run(servers.primaries()):
            redis = Blocking(server.redis)
            began_s = time.monotonic()
            seconds, micros = redis.execute_command("TIME")
            took_s = time.monotonic() - began_s
            server_ms = int(seconds) * 1000 + int(micros) // 1000
            yield from _answers(server.address, took_s, server_ms - time.time() * 1000)
            try:
                info = redis.execute_command("INFO", "everything")
            except ResponseError:
                yield _note(
                    "redis", f"Redis at {server.address} may not be asked how it is (INFO)."
                )
            else:
                yield from _server(
                    server.address, {name: str(value) for name, value in info.items()}
                )
    finally:
        run(servers.aclose())


def _answers(where: str, took_s: float, off_ms: float) -> Iterator[Finding]:
    if took_s > 0.1:
        yield _warn(
            "redis",
            f"Redis at {where} took {output.duration(took_s * 1000)} to answer.",
            "Is it far away, or busy? `redis-cli --latency` and `SLOWLOG GET` say more.",
        )
    if abs(off_ms) > _CLOCK_OFF_MS:
        yield _note(
            "redis",
            f"The clock of Redis at {where} differs from this machine's by "
            f"{output.duration(abs(off_ms))}. Turnline goes by that of Redis.",
            "Have both synchronised (NTP), or deadlines of producers are off by as much.",
        )


def _server(where: str, info: Mapping[str, str]) -> Iterator[Finding]:
    def number(name: str) -> float:
        return float(info.get(name, 0) or 0)

    at = f"Redis at {where}"
    most, used = number("maxmemory"), number("used_memory")
    if most and used > _NEARLY * most:
        severity: Severity = "error" if used >= most else "warning"
        what = f"{at} has used {used / most:.0%} of its memory; producers are refused at 100 %."
        advice = "Give it more (maxmemory), or keep conversations for a shorter time."
        yield Finding(severity=severity, about="redis", what=what, advice=advice)
    if most and info.get("maxmemory_policy", "noeviction") != "noeviction":
        what = f"{at} evicts what it accepted when its memory is full: turns would be lost."
        yield Finding(
            severity="error", about="redis", what=what, advice="Set maxmemory-policy noeviction."
        )
    clients, places = number("connected_clients"), number("maxclients")
    if places and clients > _NEARLY * places:
        what = f"{at} has {clients:.0f} of {places:.0f} connections in use."
        yield _warn("redis", what, "Raise maxclients, or see who opens so many: CLIENT LIST.")
    for name, what in (
        ("aof_last_write_status", "could not write its append-only file"),
        ("rdb_last_bgsave_status", "could not write its snapshot"),
    ):
        if info.get(name, "ok") == "err":
            advice = "Is the disk full? It refuses writes until it can save."
            yield Finding(severity="error", about="redis", what=f"{at} {what}.", advice=advice)
    if info.get("aof_enabled") == "0":
        what = f"{at} keeps no append-only file: a crash loses the turns since its last snapshot."
        yield _note("redis", what, "Set appendonly yes.")
    yield from _past(at, info, number("uptime_in_seconds"))


def _past(at: str, info: Mapping[str, str], up_s: float) -> Iterator[Finding]:
    """Say what happened to a server lately, as far as it knows."""
    if info.get("master_replid2", _NEVER).strip("0"):
        replicas = info.get("connected_slaves", "0")
        what = f"{at} was a replica and took over (a failover); it has {replicas} replicas now."
        advice = (
            "Turns that only the former primary had are lost (docs/reliability.md); "
            "TURNLINE_WAIT_REPLICAS and `wait_replicas` wait for replicas."
        )
        yield _warn("redis", what, advice)
    elif up_s < _NEW_S:
        what = f"{at} was started {output.duration(up_s * 1000)} ago."
        yield _note("redis", what, "If nobody did that: its log and the host's say why.")


# -- the fleet ----------------------------------------------------------------------------------


def _fleet(connection: Connection, state: QueueState) -> Iterator[Finding]:
    waits_ms = state.oldest_waiting_ms or 0
    waiting = f"{_many(state.waiting, 'conversation')} waiting, the first one for "
    waiting += output.duration(waits_ms)
    if not state.workers:
        severity: Severity = "error" if state.waiting or state.deferred else "warning"
        what = "No worker is alive" + (f", with {waiting}." if state.waiting else ".")
        advice = "Start some: `turnline worker`. Their last words say why they ended."
        yield Finding(severity=severity, about="fleet", what=what, advice=advice)
        return
    for shard in connection.shards:
        if not read_workers(connection.redis, shard) and len(connection.shards) > 1:
            what = f"No worker serves the shard {shard.tag}."
            advice = "Is one started with another TURNLINE_SERVE_SHARDS or TURNLINE_SHARDS?"
            yield Finding(severity="error", about="fleet", what=what, advice=advice)
    if waits_ms > _WAITS_LONG_MS:
        if state.running >= _NEARLY * state.slots:
            what = f"All {state.slots} slots are busy, with {waiting}."
            yield _warn("fleet", what, "Start more workers, or raise TURNLINE_SLOTS.")
        else:
            what = f"Slots are free, and yet there are {waiting}."
            advice = "Do the workers' logs say `redis.unreachable`, or that they are draining?"
            yield Finding(severity="error", about="fleet", what=what, advice=advice)
    models = sorted({it.model for it in state.workers})
    if len(models) > 1:
        what = f"Workers ask different models: {', '.join(map(output.word, models))}."
        yield _note("fleet", what, "Is a change of settings half done?")


def _limits(state: QueueState) -> Iterator[Finding]:
    for limit in state.limits:
        if limit.waiting and limit.used >= _NEARLY * limit.allowed:
            yield _warn(
                "limits",
                f"{_many(limit.waiting, 'turn')} waiting for what the provider allows of "
                f"{output.word(limit.model)}: {limit.used:,} of {limit.allowed:,} {limit.what}.",
                cause_of("provider_limit").advice,
            )
    for tenant in state.tenants:
        yield _warn(
            "limits",
            f"The tenant {output.word(tenant.tenant) or '(none)'} floods: {tenant.held:,} of its "
            f"conversations wait for the {tenant.running:,} of its own that run.",
            "Others are not held up. More at once: `concurrency` in the budgets file.",
        )
    for it in state.used_up:
        spent = f"${it.spent:,.2f}" if it.unit == "usd" else f"{it.spent:,.0f} tokens"
        whose = f"the {it.budget} {output.word(it.name)}".strip()
        yield Finding(
            severity="error",
            about="limits",
            what=f"The budget of {whose} is used up: {spent}. Its producers are refused.",
            advice="The budgets file sets it (docs/spending.md).",
        )


# -- what happened lately -----------------------------------------------------------------------


def _lately(connection: Connection) -> Iterator[Finding]:
    now_ms = int(connection.redis.execute_command("TIME")[0]) * 1000
    turns = recent(connection, now_ms - LATELY_S * 1000, _MOST_TRACES)
    yield from _failures(connection, now_ms)
    yield from _attempts(turns)
    yield from _tools(turns)
    yield from _speed(turns)


def _failures(connection: Connection, now_ms: int) -> Iterator[Finding]:
    """Say why turns failed, by their dead letters."""
    codes = Counter[str]()
    since = now_ms - LATELY_S * 1000
    for number, shard in enumerate(connection.shards):
        letters = connection.redis.execute_command(
            *("XREVRANGE", shard.dead, "+", since, "COUNT", _MOST_LETTERS)
        )
        codes.update(letter_of(number, text(id_).encode(), it).code for id_, it in letters)
    for code, times in codes.most_common():
        cause = cause_of(code)
        what = f"{_many(times, 'turn')} failed {_WHEN}: {cause.what} ({output.word(code)})."
        yield Finding(severity="error", about="turns", what=what, advice=cause.advice)


def _attempts(turns: Sequence[TracedTurn]) -> Iterator[Finding]:
    spans = [span for turn in turns for span in turn.spans if span.name == n.PROCESS]
    lost = sum(it.attributes.get(n.ATTEMPT_OUTCOME) == "crashed" for it in spans)
    if lost:
        cause = cause_of("worker_lost")
        what = f"{_many(lost, 'attempt')} lost {_WHEN} with their workers: {cause.what}."
        yield _warn("turns", what.replace("its worker was lost: ", ""), cause.advice)
    codes = Counter(
        str(event.attributes.get(n.ERROR_TYPE))
        for it in spans
        for event in it.events
        if event.name == n.RETRY_EVENT
    )
    for code, times in codes.most_common():
        cause = cause_of(code)
        what = f"{_many(times, 'attempt')} failed {_WHEN}: {cause.what} ({output.word(code)})."
        yield _warn("turns", what, cause.advice)


def _tools(turns: Sequence[TracedTurn]) -> Iterator[Finding]:
    called, failed, codes = Counter[str](), Counter[str](), dict[str, str]()
    for span in (span for turn in turns for span in turn.spans):
        kind, _, name = span.name.partition(" ")
        if kind == n.EXECUTE_TOOL:
            called[name] += 1
            if span.error and span.error != "worker_lost":
                failed[name] += 1
                codes[name] = span.error
    for name, times in failed.most_common():
        of = f"{times} of {_many(called[name], 'call')} {_WHEN}"
        yield _warn(
            "turns",
            f"The tool {output.word(name)} failed in {of} ({output.word(codes[name])}).",
            "The model is told, and goes on without. The workers' logs have the tool's error.",
        )


def _speed(turns: Sequence[TracedTurn]) -> Iterator[Finding]:
    firsts: dict[str, list[float]] = {}
    for span in (span for turn in turns for span in turn.spans):
        first_s = span.attributes.get(n.RESPONSE_TIME_TO_FIRST_CHUNK)
        if span.kind == "client" and isinstance(first_s, (int, float)):
            firsts.setdefault(span.name.partition(" ")[2], []).append(first_s)
    for model, seconds in sorted(firsts.items()):
        median_s = statistics.median(seconds)
        if median_s > _SLOW_S:
            yield _warn(
                "turns",
                f"The provider is slow: {output.word(model)} took "
                f"{output.duration(median_s * 1000)} until its first words, at the median of "
                f"{_many(len(seconds), 'call')} {_WHEN}.",
                cause_of("server_error").advice.removeprefix("Turnline tries again by itself. "),
            )


_WHEN: Final = f"in the last {LATELY_S // 60} minutes"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _warn(about: Any, what: str, advice: str) -> Finding:
    return Finding(severity="warning", about=about, what=what, advice=advice)


def _note(about: Any, what: str, advice: str = "") -> Finding:
    return Finding(severity="note", about=about, what=what, advice=advice)
