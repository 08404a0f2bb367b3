"""The local page for looking through rows, and the report on one row. Nothing here connects to the Hub."""
