"""Base against breaker on the same prompts: outcomes, paired figures with intervals, and the report."""
