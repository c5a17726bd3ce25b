"""Plain Python functions as tools: `@tool`, and what such a function may ask for.

The side of a tool's author; a turn's calls to tools are made in `turn.tool_calls`.
"""

from turnline.worker.tools.declaration import Tool, ToolContext, ToolFailed, tool

__all__ = ["Tool", "ToolContext", "ToolFailed", "tool"]
