"""Resources of tools that do not open."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from turnline.worker.errors import StartFailed
from turnline.worker.schema_checking import Checker
from turnline.worker.tools import runner
from turnline.worker.tools.loader import LoadedTools
from turnline.worker.tools.runner import Toolbox


@asynccontextmanager
async def never() -> AsyncGenerator[None]:
    await asyncio.Event().wait()
    yield


@asynccontextmanager
async def raising() -> AsyncGenerator[None]:
    raise KeyError("wombat")
    yield


async def test_resources_that_never_open_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of their module; what was opened before is closed."""
    monkeypatch.setattr(runner, "OPENING_S", 0.05)
    open_now: list[str] = []

    @asynccontextmanager
    async def opening() -> AsyncGenerator[None]:
        open_now.append("first")
        try:
            yield
        finally:
            open_now.remove("first")

    toolbox = Toolbox(LoadedTools((), (("shop", opening), ("bank", never)), (), ()), Checker())

    with pytest.raises(StartFailed, match="bank: not open after"):
        await toolbox.start()
    await toolbox.stop()

    assert open_now == []


async def test_what_opening_raises_is_told_without_its_words() -> None:
    """The type and the place; the module, too."""
    toolbox = Toolbox(LoadedTools((), (("bank", raising),), (), ()), Checker())

    with pytest.raises(
        StartFailed, match=r"bank: KeyError \(.*test_resources\.py:\d+ raising"
    ) as it:
        await toolbox.start()
    await toolbox.stop()

    assert "wombat" not in str(it.value)
