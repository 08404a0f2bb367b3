"""Results of an evaluation -> tables, Markdown, plots and an HTML page."""
