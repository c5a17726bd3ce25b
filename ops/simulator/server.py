"""The simulator as one object: listens on loopback, routes requests, can be asked and provoked."""

import asyncio
import re
import time
from pathlib import Path
from typing import Final, Self

import msgspec

from turnline.ops.simulator.config import SimulatorConfig
from turnline.ops.simulator.faults.http_faults import body_plan
from turnline.ops.simulator.faults.response_plan import Plan
from turnline.ops.simulator.faults.rules import Rule, RuleBook
from turnline.ops.simulator.http.admin import PREFIX, Admin
from turnline.ops.simulator.http.client_connection import Connection
from turnline.ops.simulator.http.http1 import Request
from turnline.ops.simulator.http.player import Player
from turnline.ops.simulator.ledger import Entry, Ledger
from turnline.ops.simulator.model import api, models
from turnline.ops.simulator.model.dialogues import Dialogues
from turnline.ops.simulator.model.error_bodies import JSON, PLAIN, ApiError
from turnline.ops.simulator.model.grok import Grok
from turnline.ops.simulator.model.validation import Refused

HOST: Final = "127.0.0.1"
_BACKLOG: Final = 4096
_CHAT: Final = "/v1/chat/completions"
_MODEL: Final = re.compile(r"/v1/models/([^/]+)")
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
            None if path is None else Dialogues.load(Path(path)),
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
    ) -> int:
        """Let a scenario hit requests to come, as `POST /sim/faults` does; returns the rule's id.

        Args:
            scenario: As in the header, e.g. `rst;at=tokens:5`.
            nth: The first matching request that is meant, counted from now.
            times: How many requests are hit; None: all from then on.
            probability: Chance of each matching request to be hit.
            seed: Seed of these chances.
            conversation: Pattern of conversation ids, with `*` and `?`.

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
        if request.path == _CHAT:
            return self._grok.chat(request, entry) if request.method == "POST" else _not_allowed()
        try:
            payload = self._resource(request)
        except Refused as refused:
            return self._grok.refusal(refused.error, self._grok.rng(entry))
        return payload

    def _resource(self, request: Request) -> Plan:
        """Answer a GET.

        Raises:
            Refused: The key is not let in.
        """
        if not request.path.startswith("/v1/"):
            return _missing()
        if request.method != "GET":
            return _not_allowed()
        self._grok.check_key(request)
        fetched = _DEFERRED.fullmatch(request.path)
        if fetched is not None:
            return self._deferred(fetched[1])
        payload = self._payload(request.path)
        return _missing() if payload is None else _json(payload)

    def _payload(self, path: str) -> object:
        found = _MODEL.fullmatch(path)
        if found is not None:
            model = self._models.resolve(found[1])
            return None if model is None else api.model(model)
        match path:
            case "/v1/models":
                return api.model_list(self._models)
            case "/v1/language-models":
                return api.language_model_list(self._models)
            case "/v1/api-key":
                return api.api_key()
            case _:
                return None

    def _deferred(self, request_id: str) -> Plan:
        is_ready = self._grok.deferred.is_ready(request_id, time.monotonic())
        if is_ready is None:
            raise Refused(
                ApiError(
                    status=404,
                    code="not-found",
                    message=f"Deferred completion {request_id} not found.",
                )
            )
        if not is_ready:
            plan = body_plan(202, "", b"")
            plan.is_error = False
            return plan
        return self._grok.deferred.take(request_id)


def _json(payload: object) -> Plan:
    plan = body_plan(200, JSON, msgspec.json.encode(payload))
    plan.is_error = False
    return plan


def _missing() -> Plan:
    return body_plan(404, PLAIN, b"")


def _not_allowed() -> Plan:
    return body_plan(405, PLAIN, b"")


def _unlisted(request: Request) -> Entry:
    """An entry that is written to but not kept."""
    return Entry(seq=0, received_at_ms=0.0, method=request.method, path=request.path, headers={})
