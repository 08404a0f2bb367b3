"""The local page over rows, and all that is known of one row. Nothing here talks to the Hub."""
