"""The probes of one worker: a thread that answers over HTTP, and what the service manager hears.

The thread has an event loop of its own, so that a loop of turns that is busy, or stands still, is
told of and does not look like a process that has gone.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from turnline.worker.errors import StartFailed
from turnline.worker.http_places import Place, listen_at
from turnline.worker.probes.pulse import Pulse
from turnline.worker.probes.service_manager import ServiceManager
from turnline.worker.probes.small_http import Answer, SmallServer, verdict

METRICS_KIND: Final = "text/plain; version=0.0.4; charset=utf-8"
_CLOSE_S: Final = 0.3
_LOOK_S: Final = 0.01


class Probes:
    """What a worker tells of itself."""

    def __init__(
        self,
        pulse: Pulse,
        *,
        worker_id: str,
        place: Place | None,
        metrics: Callable[[], bytes] | None,
        manager: ServiceManager,
    ) -> None:
        """Prepare; nobody is answered before `open`.

        Args:
            pulse: What is told.
            worker_id: Whose.
            place: Where HTTP is answered; None: nowhere.
            metrics: Returns them as Prometheus reads them; called in the thread.
            manager: Hears of each stage.
        """
        self._pulse = pulse
        self._worker_id = worker_id
        self._place = place
        self._metrics = metrics
        self._manager = manager
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = asyncio.Event()  # of the thread's loop
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin to answer: that the worker starts.

        Raises:
            StartFailed: The address is taken, or is not this host's.
        """
        if self._place is None:
            return
        try:
            listening = listen_at(self._place)
        except OSError as error:
            raise StartFailed(
                f"TURNLINE_HTTP: {self._place} cannot be listened at ({error.strerror or error}); "
                "name another port, or unset it"
            ) from None
        server = SmallServer(
            listening,
            {"/livez": self.livez, "/readyz": self.readyz, "/metrics": self._exposition},
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(self._loop, server), name="probes", daemon=True
        )
        self._thread.start()

    def serving(self) -> None:
        """The worker takes turns from now on."""
        self._pulse.stage = "serving"
        self.say_ready()
        self._manager.keep_telling(lambda: not self._pulse.standing())

    def say_ready(self) -> None:
        """Tell the manager that the worker serves."""
        if self._pulse.stage == "serving":
            self._manager.ready("serving")

    def say_reloading(self) -> None:
        """Tell the manager that the worker reads its files again."""
        if self._pulse.stage == "serving":
            self._manager.reloading()

    def draining(self) -> None:
        """The worker was told to end: it is not ready from now on, whatever it still takes."""
        if self._pulse.stage != "draining":
            self._pulse.stage = "draining"
            self._manager.stopping()

    async def close(self) -> None:
        """Answer no more."""
        self._manager.close()
        if self._thread is None or self._loop is None:
            return
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._over.set)
        until_s = asyncio.get_running_loop().time() + _CLOSE_S
        while self._thread.is_alive() and asyncio.get_running_loop().time() < until_s:  # noqa: ASYNC110  a thread
            await asyncio.sleep(_LOOK_S)

    # -- what is answered, in the thread ----------------------------------------------------------

    async def livez(self) -> Answer:
        """Tell whether the process has to be ended, and why."""
        return verdict(self._pulse.standing(), worker=self._worker_id, stage=self._pulse.stage)

    async def readyz(self) -> Answer:
        """Tell whether turns may be expected to begin here, and why not."""
        return verdict(self._pulse.unready(), worker=self._worker_id, stage=self._pulse.stage)

    async def _exposition(self) -> Answer:
        if self._metrics is None:
            return Answer(404, b"the program's provider of metrics does not show them here\n")
        return Answer(200, self._metrics(), METRICS_KIND)

    def _run(self, loop: asyncio.AbstractEventLoop, server: SmallServer) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._answer_until_closed(server))

    async def _answer_until_closed(self, server: SmallServer) -> None:
        await server.start()
        await self._over.wait()
        await server.close()
