"""Plain Python functions as tools: `@tool`, and what such a function may ask for."""

from worker.tools.declaring import Tool, ToolContext, ToolFailed, tool

__all__ = ["Tool", "ToolContext", "ToolFailed", "tool"]
