"""The release of a dataset or an adapter: its folder, its card, the push to the Hub, and the download."""
