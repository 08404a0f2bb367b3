"""General ability of breakers against their base model: held-out text, multiple choice, tasks of lm-eval."""
