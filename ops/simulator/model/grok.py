"""The model's side: makes the plan of the response to a request. No input or output here."""

import random
import time
from collections import OrderedDict
from typing import Final

import msgspec

from turnline.ops.simulator.chat import answer_frames as frames
from turnline.ops.simulator.chat.request import ChatRequests
from turnline.ops.simulator.config import ErrorStyle, Profile, SimulatorConfig
from turnline.ops.simulator.faults import catalogue
from turnline.ops.simulator.faults.http_faults import HTTP, error_plan
from turnline.ops.simulator.faults.response_plan import Plan, body_plan, json_plan
from turnline.ops.simulator.faults.rules import RuleBook
from turnline.ops.simulator.faults.scenario import HEADER, BadScenario, Scenario
from turnline.ops.simulator.faults.stream_faults import STREAM
from turnline.ops.simulator.faults.transport_faults import TRANSPORT
from turnline.ops.simulator.http import headers
from turnline.ops.simulator.http.http1 import Request
from turnline.ops.simulator.model.answer import Answer
from turnline.ops.simulator.model.answer_plans import stream_plan, whole_plan
from turnline.ops.simulator.model.api_errors import ApiError, Refused
from turnline.ops.simulator.model.dialogues import Dialogues
from turnline.ops.simulator.model.models import Catalogue
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.prompt import Asked, PromptCache
from turnline.ops.simulator.model.speaker import Speaker, Turn
from turnline.ops.simulator.model.usage import Usage, cached_over_prompt
from turnline.ops.simulator.request_ledger import Entry, Ledger
from turnline.ops.simulator.responses.event_faults import event_run
from turnline.ops.simulator.responses.responder import RESPONSES, Responder
from turnline.ops.simulator.responses.stored_responses import Stored

CHAT: Final = "/v1/chat/completions"
_AZURE_EXTRA_CACHED: Final = 154
_SEED_STRIDE: Final = 1_000_003
_CONVERSATION: Final = "x-grok-conv-id"
_REDIRECTED: Final = "redirected"
_KEPT_DEFERRED: Final = 10_000


class _Peek(msgspec.Struct, frozen=True):
    """What has to be known of a body before it is checked."""

    model: str | None = None
    prompt_cache_key: str | None = None


class _Deferred(msgspec.Struct, frozen=True):
    """An answer that waits to be fetched."""

    ready_at_s: float
    plan: Plan
    asked: Entry


class Grok:
    """Answers chat requests by plans; everything that it remembers is bounded."""

    def __init__(
        self,
        config: SimulatorConfig,
        models: Catalogue,
        dialogues: Dialogues | None,
        rules: RuleBook,
        ledger: Ledger,
    ) -> None:
        self._config = config
        self._rules = rules
        self._ledger = ledger
        self._requests = ChatRequests(models, config.api_keys)
        self._cache = PromptCache()
        self._speaker = Speaker(config, dialogues)
        self._responses = Responder(config, models, self._speaker)
        self._peek = msgspec.json.Decoder(_Peek).decode
        self._deferred: OrderedDict[str, _Deferred] = OrderedDict()

    @property
    def error_style(self) -> ErrorStyle:
        """How error codes are spelled."""
        if self._config.error_style is not None:
            return self._config.error_style
        return ErrorStyle.KEBAB if self._config.profile.is_modern else ErrorStyle.SENTENCE

    def rng(self, entry: Entry) -> random.Random:
        """Return the randomness of one request."""
        return random.Random(self._config.seed * _SEED_STRIDE + entry.seq)

    def refusal(self, error: ApiError, rng: random.Random, path: str = CHAT) -> Plan:
        """Return the response to a request that is refused."""
        plan = error_plan(error, self.error_style)
        if error.has_request_id and not path.startswith(RESPONSES):
            plan.headers.append(("x-request-id", headers.request_id(rng, self._config.profile)))
        plan.headers += headers.edge_headers(rng)
        return plan

    def answer(self, request: Request, entry: Entry) -> Plan:
        """Plan the response to a POST of one of the wires."""
        rng = self.rng(entry)
        try:
            turn = self._begin(request, entry, rng)
            try:
                plan = self._replaced(turn) or self._answered(turn)
            except Refused as refused:
                plan = self.refusal(refused.error, rng, request.path)
            _spoil(turn, plan)
            for scenario in turn.wishes["transport"]:
                TRANSPORT[scenario.name].run(plan, scenario)
            for scenario in turn.wishes["control"]:
                if scenario.name == "refuse":
                    plan.refuses_s = scenario.real("seconds", 1.0)
        except BadScenario as error:
            entry.usage = None
            return self.refusal(ApiError(400, str(error), "simulator:bad-scenario"), rng)
        return plan

    @property
    def stored(self) -> Stored:
        """The responses that can be asked for by their ids."""
        return self._responses.stored

    def fetch(self, request_id: str) -> Plan:
        """Give out a deferred answer, once it is ready and only once.

        Raises:
            Refused: There is none of this id.
        """
        waiting = self._deferred.get(request_id)
        if waiting is None:
            message = f"Deferred completion {request_id} not found."
            raise Refused(ApiError(404, message, "not-found"))
        if waiting.ready_at_s > time.monotonic():
            return body_plan(202, "", b"", is_error=False)
        del self._deferred[request_id]
        waiting.asked.usage_reported = True  # by the response to the request that fetches it
        return waiting.plan

    def _begin(self, request: Request, entry: Entry, rng: random.Random) -> Turn:
        peek, is_json = _Peek(), True
        try:
            peek = self._peek(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            is_json = isinstance(error, msgspec.ValidationError)
        self._ledger.keep_body(entry, request.body, is_json=is_json)
        entry.conversation_id = request.headers.get(_CONVERSATION) or peek.prompt_cache_key
        model, has_suffix, suffix = (peek.model or "").partition("@")
        key = request.headers.get("authorization", "").partition(" ")[2]
        scenarios = self._rules.hit(entry.conversation_id, request.path, model, key)
        scenarios += catalogue.read(request.headers.get(HEADER, ""))
        scenarios += catalogue.read(suffix)
        scenarios = self._expanded(scenarios, entry)
        entry.model = model or None
        entry.scenarios = [scenario.name for scenario in scenarios]
        return Turn(
            request=request,
            entry=entry,
            rng=rng,
            model=model if has_suffix else None,
            wishes=catalogue.sort(scenarios),
        )

    def _expanded(self, scenarios: list[Scenario], entry: Entry) -> list[Scenario]:
        """Replace `fail` by what it fails with, as long as it does."""
        expanded: list[Scenario] = []
        for scenario in scenarios:
            if scenario.name != "fail":
                expanded.append(scenario)
                continue
            key = scenario.text("key", entry.conversation_id or "")
            if self._rules.fails_again(key, scenario.number("n", 1)):
                expanded += catalogue.read(scenario.text("with", "unavailable"))
        return expanded

    def _replaced(self, turn: Turn) -> Plan | None:
        """Return the response of a scenario that lets nothing else happen."""
        for scenario in turn.wishes["http"]:
            if scenario.name == "redirect" and _REDIRECTED in turn.request.query:
                continue
            model = turn.entry.model or "latest"
            plan = HTTP[scenario.name].run(scenario, model, self.error_style)
            plan.headers += headers.edge_headers(turn.rng)
            return plan
        return None

    def _answered(self, turn: Turn) -> Plan:
        """Plan an answer.

        Raises:
            Refused: The request gets an error.
        """
        turn.check_media_type()
        if turn.request.path != CHAT:
            return self._responses.answer(turn)
        asked = self._requests.read(
            turn.request.body, authorization=turn.authorization, model=turn.model, rng=turn.rng
        )
        self._speaker.admit(turn, asked)
        answer = self._speaker.answer(turn, asked, asked.model.shows)
        return self._plan(turn, asked, answer, self._usage(turn, asked, answer))

    def _usage(self, turn: Turn, asked: Asked, answer: Answer) -> Usage:
        cached = self._cache.cached_tokens(turn.entry.conversation_id, asked.model, asked.prompt)
        counted = self._speaker.price(turn, asked, answer, cached)
        if self._config.profile is Profile.AZURE:
            counted = msgspec.structs.replace(counted, cost_in_usd_ticks=0)
            if cached:
                counted = cached_over_prompt(counted, _AZURE_EXTRA_CACHED)
        return self._speaker.spoil(turn, counted)

    def _plan(self, turn: Turn, asked: Asked, answer: Answer, counted: Usage) -> Plan:
        config, rng = self._config, turn.rng
        region = "_us-east-1" if config.profile is Profile.OCT2025 else ""
        completion_id = headers.uuid_text(rng) + region
        usage_in_every_chunk = config.usage_in_every_chunk or any(
            scenario.name == "usage-every-chunk" for scenario in turn.wishes["control"]
        )
        name = asked.model.name
        if name == "grok-3-mini" and asked.effort == "high":
            name = "grok-3-mini-high"
        voice = frames.Voice(
            completion_id=completion_id,
            model=name,
            fingerprint=asked.model.fingerprint,
            profile=config.profile,
            usage_in_every_chunk=usage_in_every_chunk,
        )
        tempo = Tempo(self._speaker.pacing(turn), rng)
        limits = self._speaker.limits_of(asked.model)
        head = headers.answer_headers(rng, config.profile, limits, stream=asked.stream)
        if asked.stream:
            prefix, steps = frames.stream_frames(
                answer, counted, voice, tempo, include_usage=asked.include_usage
            )
            return stream_plan(head, prefix, steps, tempo)
        body = frames.completion(answer, counted, voice, created=int(time.time()))
        plan = whole_plan(head, body, counted, tempo)
        return self._defer(turn, plan) if asked.deferred else plan

    def _defer(self, turn: Turn, plan: Plan) -> Plan:
        """Keep an answer until it is fetched, and plan the response that has its id."""
        number, ready_at_s = headers.uuid_text(turn.rng), time.monotonic() + plan.head_delay_s
        self._deferred[number] = _Deferred(ready_at_s, plan, turn.entry)
        if len(self._deferred) > _KEPT_DEFERRED:
            self._deferred.popitem(last=False)
        plan.head_delay_s = 0.0
        return json_plan({"request_id": number}, headers.edge_headers(turn.rng))


def _spoil(turn: Turn, plan: Plan) -> None:
    """Let scenarios change the events of a plan.

    Raises:
        BadScenario: One of them is of the other wire.
    """
    is_chat, counted = turn.request.path == CHAT, turn.entry.usage
    if is_chat and turn.wishes["events"]:
        raise BadScenario(f"{turn.wishes['events'][0].name} is of {RESPONSES} only")
    if not (plan.is_stream and plan.is_answer and counted is not None):
        return
    for scenario in (*turn.wishes["stream"], *turn.wishes["events"]):
        (STREAM[scenario.name].run if is_chat else event_run(scenario))(plan, scenario, counted)
