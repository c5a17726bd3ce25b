"""Every name that leaves in a span or a metric, in one place: the conventions still move.

The GenAI and messaging conventions are in development; the names are those of the package
`opentelemetry-semantic-conventions` of version `SEMCONV_VERSION`, or proposed there, or our own
under `turnline.`. A test compares them with the installed package.
"""

from typing import Final

SEMCONV_VERSION: Final = "0.66b1"
SCOPE: Final = "turnline"
"""Instrumentation scope of spans and metrics; also the default `service.name`."""

# -- spans ------------------------------------------------------------------------------------
TURN: Final = "turn"
WAIT: Final = "wait"
PROCESS: Final = "process turnline"
REBUILD: Final = "rebuild_context"
AGGREGATE: Final = "aggregate"
COMMIT: Final = "commit"
CHAT: Final = "chat"
"""Followed by the model."""
EXECUTE_TOOL: Final = "execute_tool"
"""Followed by the function's name."""
INVOKE_AGENT: Final = "invoke_agent"
"""Followed by the agent's name."""
RETRY_EVENT: Final = "turnline.retry"
EVALUATION_EVENT: Final = "gen_ai.evaluation.result"
"""Of the conventions: somebody has rated a turn."""

# -- GenAI conventions --------------------------------------------------------------------------
CONVERSATION_ID: Final = "gen_ai.conversation.id"
OPERATION_NAME: Final = "gen_ai.operation.name"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"
AGENT_NAME: Final = "gen_ai.agent.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
PROVIDER_XAI: Final = "x_ai"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_REASONING_LEVEL: Final = "gen_ai.request.reasoning.level"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
USAGE_COST_AMOUNT: Final = "gen_ai.usage.cost.amount"
USAGE_COST_CURRENCY: Final = "gen_ai.usage.cost.currency"
USAGE_COST_SOURCE: Final = "gen_ai.usage.cost.source"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105  not a secret
EVALUATION_NAME: Final = "gen_ai.evaluation.name"
EVALUATION_SCORE: Final = "gen_ai.evaluation.score.value"
EVALUATION_LABEL: Final = "gen_ai.evaluation.score.label"
# Content: only where it is captured.
EVALUATION_EXPLANATION: Final = "gen_ai.evaluation.explanation"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
CONTENT: Final = frozenset(
    {
        EVALUATION_EXPLANATION,
        INPUT_MESSAGES,
        OUTPUT_MESSAGES,
        SYSTEM_INSTRUCTIONS,
        TOOL_ARGUMENTS,
        TOOL_RESULT,
    }
)

# -- other conventions --------------------------------------------------------------------------
ERROR_TYPE: Final = "error.type"
SESSION_ID: Final = "session.id"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
HTTP_STATUS_CODE: Final = "http.response.status_code"
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_CONVERSATION_ID: Final = "messaging.message.conversation_id"
MESSAGING_BODY_SIZE: Final = "messaging.message.body.size"

# Shown as question and answer by viewers that know no convention; only where content is captured.
INPUT_VALUE: Final = "input.value"
OUTPUT_VALUE: Final = "output.value"

# -- our own ------------------------------------------------------------------------------------
TURN_ID: Final = "turnline.turn.id"
TURN_OUTCOME: Final = "turnline.turn.outcome"
TURN_ATTEMPTS: Final = "turnline.turn.attempts"
TURN_MESSAGES: Final = "turnline.turn.messages"
"""Inbox entries that the turn used up."""
TURN_CALLS: Final = "turnline.turn.calls"
TURN_INPUT_TOKENS: Final = "turnline.turn.input_tokens"
TURN_OUTPUT_TOKENS: Final = "turnline.turn.output_tokens"
TURN_COST: Final = "turnline.turn.cost_usd"
TURN_UNPRICED_CALLS: Final = "turnline.turn.unpriced_calls"
TURN_ABANDONED_COST: Final = "turnline.turn.abandoned_cost_usd"
TURN_INTO: Final = "turnline.turn.absorbed_into"
ATTEMPT: Final = "turnline.attempt"
ATTEMPT_OUTCOME: Final = "turnline.attempt.outcome"
WORKER: Final = "turnline.worker"
WAIT_S: Final = "turnline.queue.wait_s"
WAIT_FOR: Final = "turnline.queue.wait_for"
"""What the first attempt had to wait for, if known: `provider_limit` or `tenant_limit`."""
RETRY_IN_S: Final = "turnline.retry.in_s"
CONTEXT_MESSAGES: Final = "turnline.context.messages"
CONTEXT_BYTES: Final = "turnline.context.bytes"
TOOL_STATE: Final = "turnline.tool.state"
"""Of a function without a result in this attempt: `sent_out` to run elsewhere, `cancelled`, or
`unknown`, where the worker is lost."""
COMMIT_OUTCOME: Final = "turnline.commit.outcome"
CALL_MEMBER: Final = "turnline.llm.member"
CALL_OUTCOME: Final = "turnline.call.outcome"
USAGE_STATE: Final = "turnline.usage.state"
USAGE_COST_STATE: Final = "turnline.usage.cost_state"
"""`unknown` where a call may have cost something that nobody reported."""
REQUEST_BYTES: Final = "turnline.request.bytes"
REQUEST_ID: Final = "turnline.request.id"
TIME_TO_FIRST_TEXT: Final = "turnline.response.time_to_first_text"

# -- metrics ------------------------------------------------------------------------------------
M_CALL_DURATION: Final = "gen_ai.client.operation.duration"
M_CALL_FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
M_TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105  not a secret
M_TOKENS: Final = "turnline.llm.tokens"
M_COST: Final = "turnline.llm.cost_usd"
M_CALLS: Final = "turnline.llm.calls"
M_TURN_DURATION: Final = "turnline.turn.duration"
M_FIRST_DELTA: Final = "turnline.turn.time_to_first_delta"
M_QUEUE_WAIT: Final = "turnline.queue.wait"
M_QUEUE_DEPTH: Final = "turnline.queue.depth"
M_QUEUE_RUNNING: Final = "turnline.queue.running"
M_QUEUE_OLDEST: Final = "turnline.queue.oldest"
M_DEAD: Final = "turnline.dead_letters"
M_DEAD_KEPT: Final = "turnline.dead_letters.kept"
M_RETRIES: Final = "turnline.retries"
M_LEASES_LOST: Final = "turnline.leases.lost"
M_IN_FLIGHT: Final = "turnline.turns.in_flight"
M_BREAKERS_OPEN: Final = "turnline.breakers.open"
M_QUEUE_HELD: Final = "turnline.queue.held"
M_BUDGETS_USED_UP: Final = "turnline.budgets.used_up"
M_LOOP_LAG: Final = "turnline.loop.lag"
M_TOOL_DURATION: Final = "gen_ai.execute_tool.duration"
M_AGENT_DURATION: Final = "gen_ai.invoke_agent.duration"
M_SPANS_SENT: Final = "turnline.spans.exported"
M_SPANS_DROPPED: Final = "turnline.spans.dropped"
