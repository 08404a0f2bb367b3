"""Adaptive attacks on breakers: a ladder from random compositions to free vectors, see `ladder.py`."""
