"""Attackers who adapt to the breaker: suffix search, transfer of suffixes, best-of-N sampling."""
