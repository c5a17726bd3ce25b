"""Answers requests to `/v1/responses`: each answer is one object, told whole or in events."""

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from turnline.ops.simulator.config import Profile, ReasoningMode, SimulatorConfig
from turnline.ops.simulator.faults.response_plan import Plan, json_plan
from turnline.ops.simulator.http import headers
from turnline.ops.simulator.model.answer import Answer
from turnline.ops.simulator.model.answer_plans import stream_plan, whole_plan
from turnline.ops.simulator.model.api_errors import UNREADABLE, Refused
from turnline.ops.simulator.model.models import Catalogue
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.speaker import Speaker, Turn
from turnline.ops.simulator.responses import reasoning_blobs as blobs
from turnline.ops.simulator.responses import response_json as wire
from turnline.ops.simulator.responses import spoken_answer as spoken_answers
from turnline.ops.simulator.responses.asked_items import ReadItem
from turnline.ops.simulator.responses.asked_response import Received, ResponseRequests
from turnline.ops.simulator.responses.continuity import Asking, Recall, Slot
from turnline.ops.simulator.responses.response_json import Echo
from turnline.ops.simulator.responses.spoken_answer import Spoken
from turnline.ops.simulator.responses.stored_responses import Stored, StoredResponse

RESPONSES: Final = "/v1/responses"
COMPACT: Final = f"{RESPONSES}/compact"
_with: Final = msgspec.structs.replace


class Responder:
    """Answers by plans; everything that it remembers is bounded."""

    def __init__(self, config: SimulatorConfig, models: Catalogue, speaker: Speaker) -> None:
        self._config = config
        self._speaker = speaker
        self.stored = Stored()
        """Responses that can be asked for by their ids."""
        self._requests = ResponseRequests(config, models, self.stored)
        self._recall = Recall()

    def answer(self, turn: Turn) -> Plan:
        """Plan the answer to a request.

        Raises:
            Refused: The request gets an error.
        """
        received = self._received(turn)
        self._speaker.admit(turn, received.asked)
        if turn.request.path == COMPACT:
            return self._compacted(turn, received)
        slot, asking = _remembered(turn, received)
        found = self._recall.compare(slot, asking)
        cached = self._recall.cached_tokens(slot, asking, received.asked.model)
        found.unreadable_reasoning = received.unreadable
        found.cached_share = round(cached / received.asked.prompt.tokens, 4)
        turn.entry.continuity = found
        answer = self._said(turn, received, punished=found.punished)
        spoken = self._spoken(turn, received, answer, cached)
        read = self._requests.reader.read_one
        items = [read(msgspec.json.encode(item.done())) for item in spoken.items]
        reply = [item for item in items if not item.is_empty]
        self._recall.remember(slot, _with(asking, reply=reply))
        self._keep(spoken, [*received.items, *reply])
        return self._plan(turn, spoken)

    def _received(self, turn: Turn) -> Received:
        ids = turn.wish("control", "reasoning-ids")
        received = self._requests.read(
            turn.request.body,
            authorization=turn.authorization,
            model=turn.model,
            rng=turn.rng,
            finds_ids=ids is None or ids.flag("found", default=True),
        )
        decrypt = turn.wish("control", "decrypt")
        if decrypt is not None and any(item.blob for item in received.items):
            text = decrypt.text("text", UNREADABLE.message)
            raise Refused(_with(UNREADABLE, message=text))
        return received

    def _said(self, turn: Turn, received: Received, *, punished: bool) -> Answer:
        """Return what is said, as it is on this wire."""
        blocks = self._config.profile is Profile.OCT2026
        shown = ReasoningMode.BLOCK if blocks else ReasoningMode.SUMMARY
        answer = self._speaker.answer(turn, received.asked, shown)
        if punished:
            answer = _with(answer, reasoning_tokens=0, reasoning_text="")
        number = headers.uuid_text(turn.rng)
        calls = tuple(
            _with(call, id=f"call-{number}-{index}") for index, call in enumerate(answer.calls)
        )
        answer = spoken_answers.cited(_with(answer, calls=calls))
        return spoken_answers.limited(answer, received)

    def _spoken(self, turn: Turn, received: Received, answer: Answer, cached: int) -> Spoken:
        asked, profile = received.asked, self._config.profile
        id_ = headers.uuid_text(turn.rng)
        if profile is Profile.OCT2025:
            id_ += "_us-east-1"
        counted = self._speaker.price(turn, asked, answer, cached)
        context = counted.prompt_tokens, counted.total_tokens - counted.prompt_tokens
        if answer.hosted:
            context = context[0] + spoken_answers.results_tokens(answer), context[1]
            counted = spoken_answers.with_rounds(counted, answer, received)
        if profile is Profile.OCT2026:
            context = context[0], context[1] + turn.rng.randint(3, 8)
        counted = self._speaker.spoil(turn, counted)
        entry = turn.entry
        entry.response_id = id_
        entry.server_tool_calls = sum(not call.failed for call in answer.hosted)
        return Spoken(
            echo=self._echo(received, answer, id_),
            model=asked.model,
            answer=answer,
            items=spoken_answers.items_of(turn, received, answer, id_),
            usage=wire.usage_json(counted, answer.hosted, profile, context=context),
            counted=counted,
        )

    def _echo(self, received: Received, answer: Answer, id_: str) -> Echo:
        body, asked, profile = received.body, received.asked, self._config.profile
        given = body.reasoning
        tells = not asked.stream and profile is not Profile.OCT2025
        effort = asked.effort if tells or (given is not None and given.effort) else None
        return Echo(
            id=id_,
            created_at=int(time.time()),
            model=answer.echo_model or asked.model.name,
            fingerprint=asked.model.fingerprint,
            profile=profile,
            stream=asked.stream,
            effort=effort,
            summary="detailed" if tells or given is not None else None,
            max_output_tokens=body.max_output_tokens,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            temperature=body.temperature,
            top_p=body.top_p,
            format=received.format,
            tool_choice="auto" if body.tool_choice is None else body.tool_choice,
            tools=received.tools.echoed,
            user=body.user,
            store=body.store is not False,
            service_tier="priority" if asked.priority else "default",
            top_logprobs=body.top_logprobs or 0,
            prompt_cache_key=body.prompt_cache_key,
            safety_identifier=body.safety_identifier,
            instructions=body.instructions,
        )

    def _keep(self, spoken: Spoken, items: Sequence[ReadItem]) -> None:
        if not spoken.echo.store:
            return
        self.stored.keep(
            StoredResponse(
                id=spoken.echo.id,
                body=msgspec.json.encode(spoken.whole(spoken.echo.created_at)),
                items=items,
                reasoning_tokens=spoken.answer.reasoning_tokens,
            )
        )

    def _plan(self, turn: Turn, spoken: Spoken) -> Plan:
        tempo = Tempo(self._speaker.pacing(turn), turn.rng)
        head = headers.answer_headers(
            turn.rng,
            self._config.profile,
            self._speaker.limits_of(spoken.model),
            stream=spoken.echo.stream,
            response_id=spoken.echo.id,
        )
        if spoken.echo.stream:
            plan = stream_plan(head, b"", spoken.frames(tempo), tempo)
            spoken.finish(plan.frames())
            return plan
        plan = whole_plan(head, b"", spoken.counted, tempo)
        body = spoken.whole(spoken.echo.created_at + round(plan.head_delay_s))
        (frame,) = plan.frames()
        frame.data, frame.finishes = msgspec.json.encode(body), not spoken.failed
        return plan

    def _compacted(self, turn: Turn, received: Received) -> Plan:
        """Plan the answer to a request for one item that stands for all of an input."""
        id_ = headers.uuid_text(turn.rng)
        item, written = spoken_answers.compaction(received, id_)
        answer = Answer(pieces=("",) * written)
        counted = self._speaker.spoil(
            turn, self._speaker.price(turn, received.asked, answer, cached_tokens=0)
        )
        context = counted.prompt_tokens, written
        used = wire.usage_json(counted, (), self._config.profile, context=context)
        turn.entry.response_id = f"cmp_{id_}"
        turn.entry.usage_reported = True
        return json_plan(
            {
                "id": f"cmp_{id_}",
                "object": "response.compaction",
                "created_at": int(time.time()),
                "model": received.asked.model.name,
                "output": [item],
                "usage": {**used, "dropped_message_count": len(received.items)},
            },
            headers.answer_headers(
                turn.rng,
                self._config.profile,
                self._speaker.limits_of(received.asked.model),
                stream=False,
            )[1:],
        )


def _remembered(turn: Turn, received: Received) -> tuple[Slot | None, Asking]:
    """Return where a request is remembered, and as what."""
    key, model = turn.entry.conversation_id, received.asked.model.name
    asking = Asking(
        entry=turn.entry,
        head=msgspec.json.encode(received.body.tools or ()),
        head_tokens=received.asked.prompt.tool_tokens,
        items=received.items,
        tokens=received.tokens,
        is_told_as_it_is=not (turn.wishes["stream"] or turn.wishes["events"]),
    )
    return None if key is None else (key, blobs.family(model)), asking
