"""Provenance of completions that no model wrote, for rows of tests and benchmarks."""


def sampled_provenance(**known: object) -> dict:
    """Provenance as of a sampled completion; joins the provenance of its prompt."""
    return {
        "generator_model": "tiny",
        "generator_revision": "abc",
        "temperature": 0.7,
        "top_p": 0.95,
        "seed": 0,
        "stop_reason": "stop",
        "prompt_format": "llama3_json",
        "template_hash": "0123456789ab",
        "date_string": "26 Jul 2024",
        "completion_source": "sampled",
        **known,
    }
