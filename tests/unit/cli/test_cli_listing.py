"""How turns, workers and recordings are put in order and read."""

from pathlib import Path

import msgspec
import pytest

from turnline.contracts import Rating, TurnCompleted
from turnline.contracts.replies import TurnRecord, encode_event
from turnline.ops.cli import output
from turnline.ops.cli.failures import Failure
from turnline.ops.fleet.queue_state import QueueState, Worker, merged
from turnline.ops.fleet.turn_list import turns_in_order
from turnline.ops.replay.recordings import read_dialogues, recorded_context
from turnline.ops.simulator.model.dialogues import Dialogue, RecordedTurn

GOOD = (
    b'{"dialogue_id":"d1","turns":[{"speaker":"user","text":"Hello"},'
    b'{"speaker":"system","text":"Hi"},{"speaker":"user","text":"Bye"}]}\n'
)


def test_turns_stand_in_the_order_accepted() -> None:
    """A turn that is in no log comes last; one without an end is waiting or running."""
    ending = TurnCompleted(conversation_id="c", turn_id="b", trace_id="abc", finish_reason="stop")
    done = TurnRecord(
        state="completed",
        accepted_at_ms=10,
        finished_at_ms=25,
        attempts=2,
        worker="w",
        event=msgspec.Raw(encode_event(ending)),
    )
    waiting = TurnRecord(state="accepted", accepted_at_ms=30)
    encode = msgspec.json.encode
    records = {b"a": encode(waiting), b"x": encode(waiting), b"b": encode(done)}

    turns = turns_in_order([b"b", b"a"], records)

    assert [turn.turn_id for turn in turns] == ["b", "a", "x"]
    assert (turns[0].state, turns[0].took_ms, turns[0].attempts) == ("completed", 15, 2)
    assert turns[0].trace_id == "abc"
    assert (turns[1].state, turns[1].took_ms, turns[1].outcome) == ("waiting or running", None, "")


def test_ratings_are_shown_with_their_turn() -> None:
    """In a few words, each with what it says; whole in JSON."""
    ratings = (
        Rating(name="user_feedback", score=1.0),
        Rating(name="tone", score=-0.25, label="rude", explanation="It shouts."),
    )
    record = TurnRecord(state="accepted", accepted_at_ms=1, feedback=ratings)

    (turn,) = turns_in_order([], {b"a": msgspec.json.encode(record)})

    assert turn.feedback == ratings
    assert [output.rating(it) for it in turn.feedback] == [
        "rated user_feedback: 1",
        "rated tone: -0.25 rude It shouts.",
    ]


def test_shards_are_added_up() -> None:
    """Counts are sums, the age is the oldest one's, a worker of two shards has its slots once."""
    one = QueueState(
        waiting=1, running=2, deferred=3, oldest_waiting_ms=10, dead=1,
        workers=(Worker(id="a", running=1, slots=5),),
    )  # fmt: skip
    two = QueueState(
        waiting=4, oldest_waiting_ms=30,
        workers=(Worker(id="a", running=2, slots=5), Worker(id="b", slots=7)),
    )  # fmt: skip

    both = merged([one, two, QueueState()])

    assert (both.waiting, both.running, both.deferred, both.dead) == (5, 2, 3, 1)
    assert both.oldest_waiting_ms == 30
    assert both.workers == (Worker(id="a", running=3, slots=5), Worker(id="b", slots=7))
    assert both.slots == 12


def test_no_shard_means_nothing_waits() -> None:
    """An empty queue has no oldest entry."""
    assert merged([QueueState()]).oldest_waiting_ms is None


def test_a_recording_tells_the_context_it_leads_to(tmp_path: Path) -> None:
    """Users and answers alternate; where no answer was recorded, any will do."""
    (tmp_path / "d.jsonl").write_bytes(GOOD)

    (dialogue,) = read_dialogues(tmp_path / "d.jsonl")

    assert list(recorded_context(dialogue)) == [
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Bye"),
        ("assistant", None),
    ]


def test_an_answer_stands_in_the_context_as_the_aggregator_commits_it() -> None:
    """Space around it goes; an answer of nothing else leaves no message. Users keep theirs."""
    said = ["Hello", "", " a ", " \n", "b", "  padded \n"]
    dialogue = Dialogue(
        "d", [RecordedTurn("system" if n % 2 else "user", text) for n, text in enumerate(said)]
    )

    assert list(recorded_context(dialogue, {1: "told"})) == [
        ("user", "Hello"),
        ("assistant", " "),
        ("tool", "told"),
        ("user", " a "),
        ("user", "b"),
        ("assistant", "padded"),
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has no dialogues"),
        (GOOD + b"{oops\n", "line 2"),
        (b'{"dialogue_id": 5, "turns": []}\n', r"line 1.*dialogue_id"),
        (GOOD + GOOD, "dialogue_id d1 stands in several lines"),
        (
            b'{"dialogue_id": "d2", "turns": [{"speaker": "user", "text": ""}]}\n',
            "line 1: a user turn without text",
        ),
    ],
)
def test_a_bad_recording_is_refused_by_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    """The message says where to look."""
    (tmp_path / "d.jsonl").write_bytes(content)

    with pytest.raises(Failure, match=complaint):
        read_dialogues(tmp_path / "d.jsonl")


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    """What comes behind it may be broken."""
    (tmp_path / "d.jsonl").write_bytes(GOOD + b"{oops\n")

    assert len(read_dialogues(tmp_path / "d.jsonl", 1)) == 1
