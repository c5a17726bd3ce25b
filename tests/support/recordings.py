"""Gives tests the recorded conversations and streams that may lie beside the repository."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
ABSENT = object()
"""Stands for the file of a parametrized test when there is none; such a test is not collected."""


def recorded(pattern: str) -> pytest.MarkDecorator:
    """Run a test once for each recorded file, given to it as `path`; never where there are none.

    Args:
        pattern: A glob under the data folder, such as `xai/*.sse`.
    """
    files = sorted(SHARED_DATA.glob(pattern))
    return pytest.mark.parametrize(
        "path", files or [ABSENT], ids=[file.name for file in files] or ["absent"]
    )


def needs_absent_recordings(item: pytest.Item) -> bool:
    """True for a test that wants recorded data where the folder, or the file, does not exist."""
    if not isinstance(item, pytest.Function):
        return False
    if "shared_data" in item.fixturenames and not SHARED_DATA.is_dir():
        return True
    call = getattr(item, "callspec", None)
    return call is not None and any(value is ABSENT for value in call.params.values())
