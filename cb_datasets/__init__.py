"""From traces to checked, merged and published circuit-breaker data, and how a model does on it."""
