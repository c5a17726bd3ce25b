"""The record of a model call stands in `worker.pipeline.calls`."""

from worker.pipeline.calls import CallObserver, LLMCall, UsageState

__all__ = ["CallObserver", "LLMCall", "UsageState"]
