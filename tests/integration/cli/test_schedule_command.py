"""`turnline schedule` against a real server: what is kept, shown, changed and refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_sync
from click.testing import CliRunner, Result

from turnline.contracts.keys import shard_keys
from turnline.ops.cli.app import turnline

SHARD = shard_keys(0)
Run = Callable[..., Result]
STANDUP = ("standup", "0 9 * * mon-fri", "--conversation", "team", "--text", "What is due?")


@pytest.fixture
def run(redis_url: str) -> Run:
    """Call `turnline schedule` with these words."""

    def call(*words: str, input_: str | None = None) -> Result:
        environ = {"TURNLINE_REDIS_URL": redis_url, "COLUMNS": "160"}
        return CliRunner().invoke(turnline, ["schedule", *words], input=input_, env=environ)

    return call


def out(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_schedule_is_added_listed_paused_resumed_and_removed(run: Run, redis_url: str) -> None:
    """Its whole life, by JSON and as people see it."""
    added = out(run("add", *STANDUP, "--timezone", "Europe/Berlin", "--json"))
    assert added["next_at_ms"] % 3_600_000 == 0
    assert (added["name"], added["state"], added["last_at_ms"]) == ("standup", "active", None)
    assert out(run("list", "--json")) == [added]

    with redis_sync.Redis.from_url(redis_url) as redis:
        redis.hset(SHARD.ticks, "standup", 1_700_000_000_000)
        assert redis.zscore(SHARD.queue, SHARD.schedules_id) is not None
        redis.hset(SHARD.schedules, "broken", "{")
    shown = run("list").stdout
    assert "standup" in shown
    assert " 09:00 CE" in shown
    assert "2023-11-14 23:13 CET" in shown
    assert "What is due?" in shown
    assert "unusable" in shown

    paused = out(run("pause", "standup", "--json"))
    assert (paused["state"], paused["next_at_ms"]) == ("paused", None)
    assert run("pause", "standup").stdout == "standup: paused\n"
    assert run("resume", "standup").stdout.startswith("standup: next 20")
    assert run("pause", "broken").exit_code == 1
    for name in ("standup", "broken"):
        assert run("remove", name).stdout == f"removed: {name}\n"
    assert out(run("list", "--json")) == []
    assert "no schedules" in run("list").stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("add", "a", "0 9 * *", *STANDUP[2:]), 2, "cron line: it has 4 fields; expected minute,"),
        (("add", "a b", *STANDUP[1:]), 2, "name: expected up to 64 letters"),
        (("add", *STANDUP, "--timezone", "Mars"), 2, "time zone: 'Mars' is not known here"),
        (("add", *STANDUP, "--agent", ""), 2, "agent: "),
        (("remove", "b"), 1, "there is no schedule b; `turnline schedule list` names them"),
        (("resume", "b"), 1, "there is no schedule b"),
    ],
)
def test_what_cannot_be_done_is_said(
    run: Run, words: tuple[str, ...], code: int, said: str
) -> None:
    """In one line, and nothing is kept."""
    result = run(*words)

    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert out(run("list", "--json")) == []


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e300", "-1", "31622401"])
def test_a_delay_is_a_number_of_seconds(redis_url: str, seconds: str) -> None:
    """At most 366 days."""
    words = ["send", "way", "Later", "--in-s", seconds, "--redis", redis_url]
    result = CliRunner().invoke(turnline, words)

    assert result.exit_code == 2
    assert "Invalid value for '--in-s'" in result.stderr


def test_a_name_is_given_once(run: Run) -> None:
    """What there is stays as it is."""
    assert "No worker is running" in run("add", *STANDUP).stderr
    again = run("add", *STANDUP)

    assert again.exit_code == 1
    assert "`turnline schedule remove standup` first" in again.stderr


def test_its_agent_and_tenant_are_kept(run: Run, redis_url: str) -> None:
    """They are those of each turn."""
    run("add", *STANDUP, "--agent", "clerk", "--tenant", "acme")

    with redis_sync.Redis.from_url(redis_url) as redis:
        kept = json.loads(redis.hget(SHARD.schedules, "standup"))
    assert (kept["message"]["agent"], kept["message"]["tenant"]) == ("clerk", "acme")


def test_the_text_may_come_from_stdin(run: Run) -> None:
    """Without its last line end."""
    words = [*STANDUP[:-1], "-"]
    assert out(run("add", *words, "--json", input_="Hello\n"))["text"] == "Hello"
