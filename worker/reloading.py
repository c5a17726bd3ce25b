"""Reads secrets again from the files that settings name, while turns run."""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from turnline.worker.errors import StartFailed
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.settings import KEY, PREFIX, Settings, SettingsError, from_env
from turnline.worker.starting.provider_check import check_provider
from turnline.worker.starting.stage import SENTENCE_CHARS, plain

log = logging.getLogger("turnline.process")
_RESTARTED: Final = {"redis_url": f"{PREFIX}REDIS_URL", "base_url": f"{PREFIX}BASE_URL"}
"""Fields whose change only a new process takes, by their variables."""


class Reloading:
    """Takes what has changed in the files of secrets, one time after the other."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        take: Callable[[Sequence[Settings]], None],
    ) -> None:
        """Know the settings that are in use.

        Args:
            settings: Of the start.
            environ: Names the files; a process's own does not change.
            take: Uses the keys of these members of the pool from now on.
        """
        self._settings = settings
        self._environ = environ
        self._take = take
        self._one = asyncio.Lock()

    async def again(self) -> None:
        """Read the files again; what cannot be used leaves everything as it was, and is logged."""
        async with self._one:
            try:
                await self._again()
            except (SettingsError, StartFailed) as error:
                secrets = self._settings.api_key.value.split(",")
                reason = plain(str(error), SENTENCE_CHARS, secrets)
                log.error("reload.failed", extra={"reason": reason})  # noqa: TRY400  a sentence

    async def _again(self) -> None:
        """Read and take them.

        Raises:
            SettingsError: A file cannot be used.
            StartFailed: The provider refuses a new key.
        """
        new = await _in_thread(lambda: from_env(self._environ))
        now = self._settings
        changed = [
            name for field, name in _RESTARTED.items() if getattr(new, field) != getattr(now, field)
        ]
        if len(new.members) != len(now.members):
            changed.append(f"{KEY} (the number of keys)")
        if changed:
            log.warning("reload.restart_needed", extra={"changed": changed})
        if len(new.members) != len(now.members) or new.base_url != now.base_url:
            return
        pairs = list(zip(new.members, now.members, strict=True))
        fresh = [it for it, before in pairs if it.api_key != before.api_key]
        await asyncio.gather(*map(_check, fresh))
        if fresh:
            self._take(new.members)
            self._settings = new
        log.info("reload.done", extra={"keys": len(new.members), "new_keys": len(fresh)})


async def _check(member: Settings) -> None:
    """Ask the provider whether it accepts a new key; that it does not answer is no reason.

    Raises:
        StartFailed: It does not.
    """
    client = ProviderClient(member.api_key.value, member.base_url)
    try:
        await check_provider(member, client)
    except StartFailed as error:
        raise StartFailed(plain(str(error), SENTENCE_CHARS, [member.api_key.value])) from None
    finally:
        await client.close()


async def _in_thread(read: Callable[[], Settings]) -> Settings:
    """Read in a thread: a pipe may take its time. Not in one of the loop's pool: tools have those.

    Raises:
        SettingsError: As `read`.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Settings] = loop.create_future()

    def run() -> None:
        try:
            settings = read()
        except SettingsError as error:
            loop.call_soon_threadsafe(found.set_exception, error)
        else:
            loop.call_soon_threadsafe(found.set_result, settings)

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await found
