"""Hooks of the documentation site: its menu, its examples, and links to code beside `docs/`."""

import os
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
    """Show the examples on their page, and leave only the text of links to other code and folders.

    Dead links stay, and are errors.
    """
    here = Path(page.file.abs_src_path).parent
    docs = Path(config.docs_dir).resolve()
    examples = docs / "examples"

    def link(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        if target.parent == examples and target.suffix == ".py" and target.exists():
            listed = os.path.relpath(examples / "README.md", here)
            return f"[{found[1]}]({listed}#{target.name.replace('.', '')})"
        is_page = target.is_relative_to(docs) and target.suffix in {".md", ".svg", ".json", ".toml"}
        return found[0] if is_page or not target.exists() else found[1]

    markdown = _LINK.sub(link, markdown)
    if page.file.src_uri == "examples/README.md":
        for program in sorted(examples.glob("*.py")):
            markdown += f"\n\n## {program.name}\n\n```python\n{program.read_text()}```\n"
    return markdown
