"""Adaptive attacks on breakers: suffix search, suffix transfer, best-of-N sampling."""
