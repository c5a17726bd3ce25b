"""What nodes of a cluster say of each other is read as it is meant."""

from turnline.ops.deployments.cluster_view import owner_of, read_view

BEFORE = """\
aa 127.0.0.1:7001@17001 myself,master - 0 1732870000000 2 connected 0-99 200 [7->-bb] [8-<-bb]
bb 127.0.0.1:7002@17002,host master,fail? - 1 1732870000001 3 disconnected 100-199
cc 127.0.0.1:7003@17003 slave bb 0 1732870000002 3 connected
"""
AFTER = """\
bb 127.0.0.1:7002@17002 master,fail - 1 1732870000001 3 disconnected
cc 127.0.0.1:7003@17003 myself,master - 0 1732870000002 4 connected 100-199
"""


def test_a_view_has_roles_slots_and_troubles() -> None:
    """Single slots, ranges and slots on the move stand in one line."""
    view = read_view(BEFORE)

    assert view["aa"].slots == (range(100), range(200, 201))
    assert view["aa"].open_slots == (7, 8)
    assert view["aa"].primary_id is None
    assert view["bb"].flags == {"master", "fail?"}
    assert view["cc"].primary_id == "bb"
    assert view["cc"].slots == ()


def test_the_later_claim_to_a_slot_wins() -> None:
    """Whatever a node that slept still says of itself."""
    views = [read_view(BEFORE), read_view(AFTER)]

    assert owner_of(150, views) == "cc"
    assert owner_of(150, views[:1]) == "bb"
    assert owner_of(200, views) == "aa"
    assert owner_of(201, views) is None
