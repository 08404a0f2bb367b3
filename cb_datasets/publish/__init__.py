"""What collaborators see: the release folder and its card, the push to the Hub, the local audit page."""
