"""Names in Redis: one hash tag per shard, no two alike, the same for ever."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.contracts.generated import IDS
from turnline.contracts.keys import conversation_keys, conversation_of, shard_keys, shard_of

# Fixed for ever: a conversation that moves to another shard loses its history.
VECTORS = [
    ("c", 1, 0),
    ("c", 16, 15),
    ("c", 64, 47),
    ("conversation-1", 16, 12),
    ("Gespräch-42", 16, 2),
    ("日本語", 7, 5),
    ("x" * 200, 1024, 934),
]


@pytest.mark.parametrize(("conversation_id", "shards", "shard"), VECTORS)
def test_a_conversation_stays_in_its_shard(conversation_id: str, shards: int, shard: int) -> None:
    """The rule is CRC-32 of the UTF-8, modulo; these were computed with gzip."""
    assert shard_of(conversation_id, shards) == shard


@given(IDS, st.integers(1, 4096))
def test_a_shard_is_one_of_those_there_are(conversation_id: str, shards: int) -> None:
    """From 0 to one less than their number."""
    assert 0 <= shard_of(conversation_id, shards) < shards


def test_shards_get_equal_shares() -> None:
    """Ids that count upwards spread as well as any."""
    count = Counter(shard_of(f"conversation-{n}", 16) for n in range(16_000))

    assert len(count) == 16
    assert all(800 < share < 1_200 for share in count.values())


@given(IDS, st.integers(0, 1_000))
def test_every_name_carries_the_tag_of_its_shard(conversation_id: str, shard: int) -> None:
    """One slot of a cluster for all of them: the first braces hold the tag."""
    names = shard_keys(shard)
    keys = conversation_keys(names.tag, conversation_id)

    for name in (*names, *keys):
        assert name.partition("{")[2].partition("}")[0] == f"s{shard}", name


@given(st.sets(IDS, min_size=2, max_size=2), st.text(":abc0", max_size=12))
def test_no_two_conversations_share_a_name(ids: set[str], tail: str) -> None:
    """Also where one id begins with the other and looks like one of its keys."""
    one, other = ids
    for first, second in ((one, other), (one, f"{one}:{tail}"), (one, f"{one}:inbox")):
        both = [conversation_keys("{s0}", conversation_id) for conversation_id in (first, second)]
        names = [name for keys in both for name in (*keys.own, keys.job_id)]
        assert len(set(names)) == len(names)


@given(IDS)
def test_no_conversation_shares_a_name_with_its_shard(conversation_id: str) -> None:
    """Nor can one be called so that it does."""
    shard = shard_keys(0)
    names = {*shard, shard.reply_prefix + conversation_id, shard.worker_prefix + conversation_id}

    keys = conversation_keys(shard.tag, conversation_id)
    assert names.isdisjoint((*keys.own, keys.job_id))
    assert (keys.queue, keys.wake, keys.idle) == (shard.queue, shard.wake, shard.idle)
    assert len(names) == len(shard) + 2


@given(IDS)
def test_a_job_id_names_its_conversation(conversation_id: str) -> None:
    """And a job of something else names none."""
    job_id = conversation_keys("{s3}", conversation_id).job_id

    assert conversation_of(job_id, "{s3}") == conversation_id
    assert conversation_of(job_id, "{s33}") is None
    assert conversation_of("cron:" + job_id, "{s3}") is None


def test_names_are_what_they_were() -> None:
    """Another version of Turnline, and other languages, find the same keys."""
    shard, keys = shard_keys(2), conversation_keys("{s2}", "c")

    assert (shard.queue, shard.wake) == ("turnline:{s2}:queue", "turnline:{s2}:wake")
    assert (shard.idle, shard.wake_prefix) == ("turnline:{s2}:idle", "turnline:{s2}:idle:")
    assert shard.reply_prefix == "turnline:{s2}:replies:"
    assert (keys.inbox, keys.events) == ("turnline:{s2}:c:c:inbox", "turnline:{s2}:c:c:events")
    assert (keys.job, keys.in_progress) == ("arq:job:{s2}:c", "arq:in-progress:{s2}:c")
