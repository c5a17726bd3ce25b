"""A faithful local Grok: chat completions on loopback, scriptable, with faults and a ledger.

A double for tests of any client of xAI; it knows nothing of Turnline.
"""

from turnline.ops.simulator.config import (
    ErrorStyle,
    Pacing,
    Profile,
    ReasoningMode,
    SimulatorConfig,
)
from turnline.ops.simulator.faults.scenario import BadScenario
from turnline.ops.simulator.request_ledger import Entry, Ledger, Summary, Totals
from turnline.ops.simulator.server import Simulator

__all__ = [
    "BadScenario",
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
