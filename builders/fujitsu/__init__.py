"""Fujitsu's agentic-rag-redteam-bench: attacks on the components of a retrieval-augmented agent.

    B1  poisoned documents    the attacker wrote the retrieved document; completions of a model     `completions.py`
    B3  direct queries        the user asks for harm; completions of a model                        `completions.py`
    B4  orchestrator          the user's query contains an order to call another tool; prompts      `b4.py`

B2 (images) has no text to train on and is not read. The configurations named `*_augmented_*` are refused: they contain
rows of benchmarks that models are evaluated on (gandalf, injecagent, harmbench, jailbreakbench).
"""

from .b4 import B4_STANDARD, FujitsuB4, b4_trace
from .completions import FujitsuB1, FujitsuB3, b1_trace, b3_trace
from .text import normalize_hyphens, normalize_query


__all__ = [
    "B4_STANDARD",
    "FujitsuB1",
    "FujitsuB3",
    "FujitsuB4",
    "b1_trace",
    "b3_trace",
    "b4_trace",
    "normalize_hyphens",
    "normalize_query",
]
