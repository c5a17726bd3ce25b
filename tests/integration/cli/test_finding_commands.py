"""`turnline conversations`, `turnline turns` and `turnline show TURN_ID`, end to end."""

import json

from tests.integration.cli.test_commands import Run, fault, out, run, stack
from turnline.contracts import SyncTurnClient, UserMessage
from turnline.ops.fleet.stack import Stack

__all__ = ["run", "stack"]  # the fixtures


def test_what_was_sent_is_found(run: Run, stack: Stack) -> None:
    """By what it was, a page at a time, in JSON and in words."""
    with SyncTurnClient.connect(stack.redis_url) as client:
        for n in range(3):
            name = f"find-{n}"
            message = UserMessage(
                conversation_id=name, text="Hello", turn_id=f"f{n}", tenant="acme"
            )
            client.result(client.submit(message), timeout_s=10)
    fault(stack, "status=400")
    run("send", "find-bad", "Hello", "--turn-id", "bad", "--wait")

    first = out(run("conversations", "--tenant", "acme", "--limit", "2", "--json"))
    assert [it["conversation_id"] for it in first["conversations"]] == ["find-2", "find-1"]
    assert first["conversations"][0]["usage"]["total_tokens"] > 0
    rest = out(run("conversations", "--tenant", "acme", "--after", first["after"], "--json"))
    assert [it["conversation_id"] for it in rest["conversations"]] == ["find-0"]
    assert rest["after"] is None

    shown = run("conversations", "--limit", "1")
    assert "find-bad" in shown.stdout
    assert "there is more: --after " in shown.stderr
    failed = out(run("turns", "--failed", "--since", "1h", "--json"))["turns"]
    assert ("bad", "bad_request") in [(it["turn_id"], it["code"]) for it in failed]
    assert "bad_request" in run("turns", "--failed").stdout
    assert "no such turns" in run("turns", "--slow", "--tenant", "acme").stderr
    assert len(out(run("turns", "--slow", "0", "--tenant", "acme", "--json"))["turns"]) == 3

    nonsense = run("conversations", "--after", "nonsense")
    assert nonsense.exit_code == 2
    assert "cursor" in nonsense.stderr


def test_a_turn_is_shown_by_its_id(run: Run) -> None:
    """With its messages and its conversation, whatever that is called."""
    for n in range(2):
        run("send", "both", f"Hello {n}", "--turn-id", f"both-{n}", "--wait")

    shown = out(run("show", "both-1", "--json"))
    assert [it["turn_id"] for it in shown["turns"]] == ["both-1"]
    assert shown["conversation_id"] == "both"
    words = run("show", "both-1").stdout
    assert "conversation both" in words
    assert "Hello 1" in words
    assert "Hello 0" not in words
    whole = run("show", "both").stdout
    assert "both-0" in whole.split("Hello 0")[0]

    nothing = run("show", "no-such-turn")
    assert nothing.exit_code == 1
    assert "100,000 conversations" in nothing.stderr
    run("send", "other", "Hello", "--turn-id", "both-0", "--wait")
    several = run("show", "both-0")
    assert several.exit_code == 1
    assert "2 conversations have a turn both-0" in several.stderr


def test_dead_letters_are_listed_in_pages(run: Run, stack: Stack) -> None:
    """Each page says how to go on."""
    for n in range(2):
        fault(stack, "status=400")
        run("send", f"dead-{n}", "Hello", "--wait")
    letters = json.loads(run("dead", "list", "--json").stdout)
    assert len(letters) >= 2

    page = run("dead", "list", "--limit", "1")
    assert letters[0]["id"] in page.stdout
    assert f"--after {letters[0]['id']}" in page.stderr
    rest = json.loads(run("dead", "list", "--after", letters[0]["id"], "--json").stdout)
    assert [it["id"] for it in rest] == [it["id"] for it in letters[1:]]
