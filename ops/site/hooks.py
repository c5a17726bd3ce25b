"""Hooks of the documentation site: its menu, and links to code, which the site does not have."""

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?!\w+:)[^)#\s]+)(?:#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Put the decisions into the menu, newest last."""
    decisions = sorted(path.name for path in Path(config.docs_dir, "adr").glob("*.md"))
    config.nav.append({"Decisions": [f"adr/{name}" for name in decisions]})
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: object) -> str:
    """Leave only the text of links to code and folders. Dead links stay, and are errors."""
    here = Path(page.file.abs_src_path).parent
    docs = Path(config.docs_dir).resolve()

    def link(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        is_page = target.is_relative_to(docs) and target.suffix in {".md", ".svg", ".json", ".toml"}
        return found[0] if is_page or not target.exists() else found[1]

    return _LINK.sub(link, markdown)
