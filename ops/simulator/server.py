"""The simulator as one object: listens on loopback, routes requests, can be asked and provoked."""

import asyncio
import re
import time
from pathlib import Path
from typing import Final, Self

from msgspec import Raw

from turnline.ops.simulator.config import Profile, SimulatorConfig
from turnline.ops.simulator.faults.response_plan import Plan, body_plan, json_plan
from turnline.ops.simulator.faults.rules import Rule, RuleBook
from turnline.ops.simulator.http.admin import PREFIX, Admin
from turnline.ops.simulator.http.client_connection import Connection
from turnline.ops.simulator.http.http1 import Request
from turnline.ops.simulator.http.player import Player
from turnline.ops.simulator.model import models, resources
from turnline.ops.simulator.model.api_errors import PLAIN, Refused, check_key, no_route
from turnline.ops.simulator.model.dialogues import Dialogues, load_dialogues
from turnline.ops.simulator.model.grok import CHAT, Grok
from turnline.ops.simulator.request_ledger import Entry, Ledger
from turnline.ops.simulator.responses.responder import COMPACT, RESPONSES

HOST: Final = "127.0.0.1"
_BACKLOG: Final = 4096
_POSTS: Final = {CHAT, RESPONSES, COMPACT}
_STORED: Final = re.compile(r"/v1/responses/([^/]+)")
_DEFERRED: Final = re.compile(r"/v1/chat/deferred-completion/([^/]+)")


class Simulator:
    """A local Grok. Use it as an async context manager.

    Example:
        ```python
        async with Simulator(SimulatorConfig()) as sim:
            client = AsyncOpenAI(base_url=sim.base_url, api_key="xai-test")
        ```
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        """Prepare a simulator.

        Raises:
            OSError: The file of dialogues cannot be read.
            msgspec.DecodeError: It is not one.
        """
        self.config = SimulatorConfig() if config is None else config
        path = self.config.dialogues
        self._models = models.catalogue(self.config.profile, self.config.extra_models)
        self.ledger = Ledger(
            self.config.ledger_entries, self.config.ledger_bytes, self.config.ledger_body_bytes
        )
        """Every request that was served."""
        self.rules = RuleBook()
        """Scenarios that wait for requests."""
        self._grok = Grok(
            self.config,
            self._models,
            None if path is None else Dialogues(load_dialogues(Path(path))),
            self.rules,
            self.ledger,
        )
        self._admin = Admin(self.rules, self.ledger)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._port = self.config.port
        self._refusal: asyncio.Task[None] | None = None

    # --- life ---

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: The port is taken.
        """
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._handle, self._connections),
            HOST,
            self._port,
            backlog=_BACKLOG,
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and break off everything that runs."""
        if self._refusal is not None:
            self._refusal.cancel()
            await asyncio.gather(self._refusal, return_exceptions=True)
        await self._close_listener()
        await asyncio.gather(*(connection.stop() for connection in list(self._connections)))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        """The port that it listens on, known from the start on."""
        return self._port

    @property
    def base_url(self) -> str:
        """What a client takes as its base URL."""
        return f"http://{HOST}:{self._port}/v1"

    @property
    def admin_url(self) -> str:
        """Prefix of the simulator's own routes."""
        return f"http://{HOST}:{self._port}/sim"

    # --- provocation ---

    def inject(
        self,
        scenario: str,
        *,
        nth: int = 1,
        times: int | None = 1,
        probability: float = 1.0,
        seed: int = 0,
        conversation: str = "*",
        model: str = "*",
        key: str = "*",
    ) -> int:
        """Let a scenario hit requests to come, as `POST /sim/faults` does; returns the rule's id.

        Args:
            scenario: As in the header, e.g. `rst;at=tokens:5`.
            nth: The first matching request that is meant, counted from now.
            times: How many requests are hit; None: all from then on.
            probability: Chance of each matching request to be hit.
            seed: Seed of these chances.
            conversation: Pattern of conversation ids, with `*` and `?`.
            model: Pattern of the models that are asked for, likewise.
            key: Pattern of the API keys that are used, likewise.

        Raises:
            BadScenario: The scenario is unknown.
        """
        return self.rules.add(
            Rule(
                scenario=scenario,
                nth=nth,
                times=times,
                probability=probability,
                seed=seed,
                conversation=conversation,
                model=model,
                key=key,
            )
        )

    async def refuse(self, seconds: float) -> None:
        """Refuse new connections for a while; those that are open go on."""
        await self._close_listener()
        await asyncio.sleep(seconds)
        await self.start()

    async def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    # --- requests ---

    async def _handle(self, request: Request, connection: Connection) -> None:
        received_s = time.monotonic()
        if request.path.startswith(PREFIX):
            plan, entry = self._admin.respond(request), _unlisted(request)
        else:
            entry = self.ledger.open(
                received_at_ms=time.time() * 1000,
                method=request.method,
                path=request.path,
                headers=request.headers,
            )
            plan = self._respond(request, entry)
        if plan.refuses_s is not None:
            self._refusal = asyncio.get_running_loop().create_task(self.refuse(plan.refuses_s))
            entry.outcome, entry.cut_by, entry.cut_at = "cut", "server", "before_headers"
            connection.reset()
            return
        player = Player(plan, entry, connection, received_s=received_s)
        await player.play(keeps_alive=request.keeps_alive)

    def _respond(self, request: Request, entry: Entry) -> Plan:
        if not self._serves(request.path):
            return self._grok.refusal(no_route(request.path), self._grok.rng(entry))
        is_posted = request.path in _POSTS
        if is_posted and request.method == "POST":
            return self._grok.answer(request, entry)
        if not request.path.startswith("/v1/"):
            return body_plan(404, PLAIN, b"")
        kept = None if is_posted else _STORED.fullmatch(request.path)
        takes = {"GET"} if kept is None else {"GET", "DELETE"}
        if is_posted or request.method not in takes:
            return body_plan(405, PLAIN, b"")
        try:
            check_key(request.headers.get("authorization"), self.config.api_keys)
            return self._read(request, kept)
        except Refused as refused:
            return self._grok.refusal(refused.error, self._grok.rng(entry), request.path)

    def _read(self, request: Request, kept: re.Match[str] | None) -> Plan:
        """Answer a request for something that is there already.

        Raises:
            Refused: It is not there.
        """
        fetched = _DEFERRED.fullmatch(request.path)
        if fetched is not None:
            return self._grok.fetch(fetched[1])
        if kept is not None:
            stored, deletes = self._grok.stored, request.method == "DELETE"
            return json_plan(stored.delete(kept[1]) if deletes else Raw(stored.find(kept[1]).body))
        payload = resources.payload(request.path, self._models)
        return body_plan(404, PLAIN, b"") if payload is None else json_plan(payload)

    def _serves(self, path: str) -> bool:
        """Whether there was such a route at the time."""
        return not path.startswith(RESPONSES) or self.config.profile is not Profile.LEGACY2024


def _unlisted(request: Request) -> Entry:
    """Make an entry that is written to but not kept."""
    return Entry(seq=0, received_at_ms=0.0, method=request.method, path=request.path, headers={})
