"""What our pages have in common: how they look, and the script that shows rows, always as text."""

from pathlib import Path


FOLDER = Path(__file__).parent


def with_shared_parts(page: str) -> str:
    """A page with the shared style in the place of `/* look.css */`, and the script in that of `/* rows.js */`."""
    for name in ("look.css", "rows.js"):
        page = page.replace(f"/* {name} */", (FOLDER / name).read_text(encoding="utf-8"))
    return page
