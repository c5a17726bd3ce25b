"""How many processes there are, and when those that died begin again."""

import random
from pathlib import Path

import pytest

from turnline.worker.process_count import read_count, usable_cores
from turnline.worker.settings import SettingsError, from_env
from turnline.worker.supervising.backoff import GOOD_LIFE_S, MOST_S, Backoff


def test_a_process_begins_again_at_once_then_ever_later() -> None:
    """Anywhere up to a bound that doubles, so that those of many hosts do not come together."""
    waits = [Backoff(random.Random(seed)) for seed in range(200)]

    longest = [max(it.after(0) for it in waits) for _ in range(9)]

    assert longest[0] == 0
    for wait_s, bound_s in zip(longest[1:], [1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert 0.9 * bound_s < wait_s <= bound_s
    assert {it.after(GOOD_LIFE_S) for it in waits} == {0.0}
    assert max(it.after(1) for it in waits) <= 1


def test_pauses_are_bounded_however_often_it_dies() -> None:
    """A number that only grows would be too large some day."""
    backoff = Backoff(random.Random(1))

    assert all(backoff.after(0) <= MOST_S for _ in range(5_000))


@pytest.mark.parametrize(
    ("files", "group", "cores"),
    [
        ({}, "/", 64),
        ({"cpu.max": "max 100000"}, "/", 64),
        ({"cpu.max": "250000 100000"}, "/", 2),
        ({"cpu.max": "50000 100000"}, "/", 1),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "/a/b", 3),
        ({"a/b/cpu.max": "200000 100000"}, "/a/b", 2),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, "/", 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "/", 64),
        ({"cpu.max": "nonsense"}, "/", 64),
    ],
)
def test_cores_are_those_that_a_container_may_use(
    files: dict[str, str],
    group: str,
    cores: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quota of any group around the process counts, rounded down."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, words in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words + "\n")
    own = tmp_path / "own"
    own.write_text(f"0::{group}\n")

    assert usable_cores(tmp_path / "groups", own) == cores


@pytest.mark.parametrize("value", ["0", "-1", "1025", "4.0", "many", "AUTO", "٤", "1e3"])
def test_what_is_no_number_of_processes_is_refused(value: str) -> None:
    """With what belongs there."""
    with pytest.raises(ValueError, match="number from 1 to 1024"):
        read_count(value)
    with pytest.raises(SettingsError, match=r"TURNLINE_PROCESSES: `auto`"):
        from_env({"TURNLINE_PROCESSES": value})


def test_a_number_and_all_cores_can_be_asked_for() -> None:
    """With at least one."""
    assert read_count("1024") == 1024
    assert read_count("auto") >= 1
