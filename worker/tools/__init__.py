"""Plain Python functions as tools: `@tool`, and what such a function may ask for.

What a tool's author imports, and how tools are described, loaded and run. When a turn calls them is
decided in `worker.turn.tool_calls`.
"""

from turnline.worker.tools.declaration import Tool, ToolContext, ToolFailed, tool

__all__ = ["Tool", "ToolContext", "ToolFailed", "tool"]
