"""Circuit-breaker training: an adapter that reroutes the hidden states of harmful tool calls and keeps the rest."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .circuit_breaker_config import CircuitBreakerConfig
    from .circuit_breaker_trainer import CircuitBreakerTrainer

__all__ = ["CircuitBreakerConfig", "CircuitBreakerTrainer"]


# Imported on first use: `trainers.train --help` must not wait for the imports of the trainer itself.
def __getattr__(name: str) -> type:
    if name == "CircuitBreakerConfig":
        from .circuit_breaker_config import CircuitBreakerConfig

        return CircuitBreakerConfig
    if name == "CircuitBreakerTrainer":
        from .circuit_breaker_trainer import CircuitBreakerTrainer

        return CircuitBreakerTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
