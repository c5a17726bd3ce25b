"""Hooks of the documentation site. Pages link to code beside `docs/`; the site has none."""

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?!\w+:)[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: object) -> str:
    """Leave only the text of links to code and folders. Dead links stay, and are errors."""
    here = Path(page.file.abs_src_path).parent
    docs = Path(config.docs_dir).resolve()

    def link(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        is_page = target.is_relative_to(docs) and target.suffix in {".md", ".svg", ".json", ".toml"}
        return found[0] if is_page or not target.exists() else found[1]

    return _LINK.sub(link, markdown)
