"""What the settings are, for people: each with its default and its meaning."""

import ast
import inspect
from itertools import pairwise

import msgspec

from turnline.worker.settings import FROM_FILES, KEY, PREFIX, Settings


def settings_help() -> str:
    """Return the list of all settings with their defaults, for `--help`."""
    lines = ["\b", "Settings, from the environment:"]
    for variable, default, meaning in described():
        shown = f" [{default}]" if default else ""
        lines += [f"  {variable}{shown}", f"      {meaning}"]
    return "\n".join(lines)


def described() -> list[tuple[str, str, str]]:
    """Return (variable, default, what it means) for every setting, in order."""
    texts = _field_texts()
    rows: list[tuple[str, str, str]] = []
    for field in msgspec.structs.fields(Settings):
        if field.name == "api_key":
            rows.append(
                (KEY, "", "Key for the provider; or several, separated by commas. Never logged.")
            )
            continue
        default = "<host>-<pid>" if field.name == "worker_name" else _shown(field.default)
        rows.append((PREFIX + field.name.upper(), default, texts.get(field.name, "")))
    rows += [(f"{it}_FILE", "", f"File that holds {it} instead.") for it in FROM_FILES]
    return rows


def _shown(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _field_texts() -> dict[str, str]:
    """Read the docstrings below the fields."""
    (body,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, text in pairwise(body.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(words))
            ):
                texts[name] = inspect.cleandoc(words)
            case _:
                pass
    return texts
