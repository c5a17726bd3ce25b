"""A tool module: what a worker loads with TURNLINE_TOOLS=order_tools.

`turnline tools --tools order_tools` shows what the model is told of it.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from turnline.worker.tools import ToolContext, ToolFailed, tool

Orders = dict[int, str]


@asynccontextmanager
async def resources() -> AsyncGenerator[Orders]:
    """Open what the tools need, once for each worker; here a table in place of a database."""
    yield {7: "shipped", 8: "packed"}


@tool(retry_safe=True, timeout_s=5)
async def order_status(context: ToolContext[Orders], number: int) -> str:
    """Tell the status of an order.

    Args:
        context: Given by the worker; the model does not see it.
        number: The order's number, as printed on the invoice.
    """
    if number not in context.resources:
        raise ToolFailed(f"There is no order {number}.")
    return context.resources[number]
