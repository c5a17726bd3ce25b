"""What `turnline chaos` puts down to a failover, and what not; how long producers waited."""

import pytest

from turnline.contracts.keys import shard_of
from turnline.contracts.layout import Layout
from turnline.contracts.replies import TurnRecord
from turnline.ops.chaos.checker import Violation
from turnline.ops.chaos.disturbances import Disturbance
from turnline.ops.chaos.evidence import Evidence, Left
from turnline.ops.chaos.failover_losses import attributed
from turnline.ops.chaos.journal import Chat, ClientError, Journal, Sent, Shown
from turnline.ops.chaos.outages import longest_outages_s

SHARDS = 6
LAYOUT = Layout(SHARDS)
OWN = shard_of("c", SHARDS)
LOST = Violation(column="lost", conversation="c", turn="c.1", what="accepted, and not in the log")


def failover(*, at_ms: float = 10_000, shard: int = OWN, failed_over: bool = True) -> Disturbance:
    return Disturbance(
        kind="primary-kill",
        from_ms=at_ms,
        to_ms=at_ms + 3_000,
        node="node-1",
        shards=frozenset({shard}),
        failed_over=failed_over,
    )


def chat() -> Chat:
    sent = [
        Sent(
            turn=f"c.{n}",
            kind="user",
            outcome="accepted",
            accepts=1,
            begun_ms=at_ms,
            answered_ms=at_ms,
        )
        for n, at_ms in enumerate((1_000.0, 9_900.0))
    ]
    return Chat(conversation="c", sent=sent)


def columns(
    violation: Violation, struck: Disturbance, *, log: tuple[str, ...] = ("c.0",)
) -> set[str]:
    records = {"c.0": TurnRecord(state="completed", accepted_at_ms=1_000, finished_at_ms=1_500)}
    left = {"c": Left(log=log, records=records)}
    evidence = Evidence(left=left, replies={}, dead=[], lives={}, requests={}, layout=LAYOUT)
    return {it.column for it in attributed([violation], [chat()], evidence, [struck])}


def test_an_acknowledged_message_that_is_gone_after_a_failover_is_lost_by_it() -> None:
    """The column says so, and the violation names the failover and what it was."""
    evidence = Evidence(
        left={"c": Left(log=("c.0",))}, replies={}, dead=[], lives={}, requests={}, layout=LAYOUT
    )

    (found,) = attributed([LOST], [chat()], evidence, [failover()])

    assert found.column == "lost by failover"
    assert found.by == "primary-kill"
    assert found.what == "lost: accepted, and not in the log"


@pytest.mark.parametrize(
    "struck",
    [
        failover(failed_over=False),
        failover(shard=OWN + 1),
        failover(at_ms=20_000),
        failover(at_ms=5_000),
    ],
    ids=["no failover", "another shard", "later", "earlier"],
)
def test_without_a_failover_there_and_then_a_loss_stays_a_loss(struck: Disturbance) -> None:
    """Nothing is put down to a failover that cannot have done it."""
    assert columns(LOST, struck) == {"lost"}


def test_what_is_wrong_with_a_turn_that_was_over_is_not_put_down_to_a_failover() -> None:
    """Also where the conversation lost another message then."""
    wrong = Violation(column="duplicated", conversation="c", turn="c.0", what="2 terminal events")

    assert columns(wrong, failover()) == {"duplicated"}


def test_what_is_wrong_where_nothing_is_gone_is_not_put_down_to_a_failover() -> None:
    """A turn that a failover met, all of which is there, has no excuse."""
    wrong = Violation(column="duplicated", conversation="c", turn="c.1", what="2 terminal events")

    assert columns(wrong, failover(), log=("c.0", "c.1")) == {"duplicated"}
    assert columns(wrong, failover()) == {"lost by failover"}


MISSED = Violation(column="misled", conversation="c", turn="c.1", what="a reader missed an event")


@pytest.mark.parametrize(
    ("gone", "ended", "column"),
    [
        (["9800-0"], "", "shown, then lost"),
        (["9800-0"], "TurnCompleted", "lost by failover"),
        (["100-0"], "", "misled"),
    ],
)
def test_pieces_that_were_shown_are_told_from_an_end(
    gone: list[str], ended: str, column: str
) -> None:
    """A reply that was made again has lost nothing that anybody was promised."""
    talked = chat()
    talked.shown = [Shown(turn="c.1", by="events", ids=gone, ended=ended)]
    left = {"c": Left(log=("c.0", "c.1"))}
    evidence = Evidence(left=left, replies={}, dead=[], lives={}, requests={}, layout=LAYOUT)

    (found,) = attributed([MISSED], [talked], evidence, [failover()])

    assert found.column == column


def test_a_message_that_too_few_replicas_have_is_not_acknowledged() -> None:
    """Its producer was told so, and may submit it again."""
    talked = chat()
    talked.sent[1].is_unsafe = True
    evidence = Evidence(
        left={"c": Left(log=("c.0",))}, replies={}, dead=[], lives={}, requests={}, layout=LAYOUT
    )

    (found,) = attributed([LOST], [talked], evidence, [failover()])

    assert found.column == "shown, then lost"


def test_a_producers_longest_call_counts_where_and_when_a_server_was_struck() -> None:
    """Calls in other shards and at other times do not; calls that failed do."""
    talked = chat()
    talked.sent[0].slowest_from_ms, talked.sent[0].slowest_ms = 1_000, 9_000
    talked.sent[1].slowest_from_ms, talked.sent[1].slowest_ms = 10_100, 2_500
    early = ClientError(conversation="c", verb="submit", at_ms=9_000, took_ms=8_000, what="")
    given_up = ClientError(conversation="c", verb="submit", at_ms=20_500, took_ms=10_000, what="")

    def longest(struck: Disturbance, *errors: ClientError) -> dict[str, float]:
        return longest_outages_s(Journal(chats=[talked], errors=[*errors]), [struck], LAYOUT)

    talked.sent[0].slowest_ms = 2_000
    assert longest(failover(), early) == {"primary-kill, taken over": 2.5}
    assert longest(failover(failed_over=False)) == {"primary-kill": 2.5}
    assert longest_outages_s(Journal(chats=[talked]), [failover()], Layout(1)) == {}
    resharded = Layout(1, 0, (SHARDS,))
    assert longest_outages_s(Journal(chats=[talked]), [failover()], resharded) != {}
    assert longest(failover(), given_up) == {"primary-kill, taken over": 10.0}
    assert longest(failover(shard=OWN + 1)) == {}
