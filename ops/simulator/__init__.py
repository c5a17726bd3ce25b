"""A faithful local Grok: chat completions and responses on loopback, with faults and a ledger.

A double for tests of any client of xAI; it knows nothing of Turnline.

Both wires say the same to the same conversation. `POST /v1/responses` also does what no client can
see from one answer alone:

- Reasoning is sealed. A blob that was changed, cut, or given to another key or to a model of
  another family is refused with 400. One that comes back counts its tokens in the prompt; one that
  does not counts nothing.
- From the third tool round of a turn on, the model does not reason if reasoning of that turn is
  missing, changed or moved.
- The cache has a conversation (`prompt_cache_key` or `x-grok-conv-id`) as far as its items are the
  same as before, in steps of 64 tokens or the model's own.
- Each request's `continuity` in the ledger says whether it goes on from the request before it;
  `prefix_breaks`, `reply_breaks`, `lost_reasoning` and `punished` of the summary add these up.
- Tools of the server (`web_search`, `x_search`, `code_interpreter`, `file_search`, `mcp`) are used
  if the request offers them and the user's words ask for it ("search", "on x", "calculate", "my
  files", the label of an MCP server), if `tool_choice` demands it, or by scenario `server-tool`.
"""

from turnline.ops.simulator.config import (
    ErrorStyle,
    Pacing,
    Profile,
    ReasoningMode,
    SimulatorConfig,
)
from turnline.ops.simulator.faults.scenario import BadScenario
from turnline.ops.simulator.request_ledger import Continuity, Entry, Ledger, Summary, Totals
from turnline.ops.simulator.server import Simulator

__all__ = [
    "BadScenario",
    "Continuity",
    "Entry",
    "ErrorStyle",
    "Ledger",
    "Pacing",
    "Profile",
    "ReasoningMode",
    "Simulator",
    "SimulatorConfig",
    "Summary",
    "Totals",
]
