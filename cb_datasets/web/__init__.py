"""Style and script shared by the pages, and the server of local ones. Rows are inserted as text, never as markup."""

from pathlib import Path


FOLDER = Path(__file__).parent


def with_shared_parts(page: str) -> str:
    """Replace `/* look.css */` in a page by the shared style, and `/* rows.js */` by the shared script."""
    for name in ("look.css", "rows.js"):
        page = page.replace(f"/* {name} */", (FOLDER / name).read_text(encoding="utf-8"))
    return page
