"""Results -> tables, Markdown, plots and a page."""
