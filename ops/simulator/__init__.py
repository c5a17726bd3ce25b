"""A faithful local Grok: chat completions on loopback, scriptable, with faults and a ledger."""

from ops.simulator.config import (
    ErrorStyle,
    Pacing,
    Profile,
    ReasoningMode,
    SimulatorConfig,
)
from ops.simulator.ledger import Entry, Ledger, Summary, Totals
from ops.simulator.scenario import BadScenario
from ops.simulator.server import Simulator

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
