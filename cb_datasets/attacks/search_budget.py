"""Budgets of the attacks that use gradients. They import no torch: a report reads them too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchBudget:
    """Limits of a search, per prompt and model.

    Args:
        steps (`int`, *optional*, defaults to `50`): Maximum number of gradient steps.
        width (`int`, *optional*, defaults to `64`): Candidates per step.
        prefix_tokens (`int`, *optional*, defaults to `0`): Tokens to find before the injection.
        suffix_tokens (`int`, *optional*, defaults to `10`): Tokens to find behind it.
        top_k (`int`, *optional*, defaults to `64`): Replacement tokens considered per slot and step.
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum length of a completion.
        seed (`int`, *optional*, defaults to `0`): Seed of the searches.
        prompts (`int`, *optional*, defaults to `100`): Prompts to attack.
    """

    steps: int = 50
    width: int = 64
    prefix_tokens: int = 0
    suffix_tokens: int = 10
    top_k: int = 64
    max_new_tokens: int = 256
    seed: int = 0
    prompts: int = 100

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens before and behind the injection."""
        return self.prefix_tokens, self.suffix_tokens


@dataclass(frozen=True)
class UniversalBudget(SearchBudget):
    """Limits of the attacker; `prompts` is the number of prompts that the suffix is judged on.

    Args:
        seen_prompts (`int`, *optional*, defaults to `5`): Prompts that the search sees.
    """

    seen_prompts: int = 5


@dataclass(frozen=True)
class EmbeddingBudget:
    """Limits of the attack, per prompt and model.

    Args:
        steps (`int`, *optional*, defaults to `100`): Maximum number of gradient steps, for each of the two targets.
        prefix_vectors (`int`, *optional*, defaults to `0`): Free vectors before the injection.
        suffix_vectors (`int`, *optional*, defaults to `10`): Free vectors behind it.
        restarts (`int`, *optional*, defaults to `2`): Initial values, for each step size.
        step_sizes (`tuple[float, ...]`, *optional*, defaults to `(0.1, 0.3)`): Learning rates of Adam, in standard
            deviations of the embedding table.
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum length of a completion.
        seed (`int`, *optional*, defaults to `0`): Seed of the initial values.
        prompts (`int`, *optional*, defaults to `100`): Prompts to attack.
    """

    steps: int = 100
    prefix_vectors: int = 0
    suffix_vectors: int = 10
    restarts: int = 2
    step_sizes: tuple[float, ...] = (0.1, 0.3)
    max_new_tokens: int = 256
    seed: int = 0
    prompts: int = 100

    @property
    def lengths(self) -> tuple[int, int]:
        """Vectors before and behind the injection."""
        return self.prefix_vectors, self.suffix_vectors


@dataclass(frozen=True)
class TamperBudget:
    """Limits of someone who fine-tunes a breaker, for each of its variants.

    Args:
        steps (`int`, *optional*, defaults to `128`): Optimizer steps.
        rows (`int`, *optional*, defaults to `512`): Rows to train on.
        batch_size (`int`, *optional*, defaults to `16`): Rows per step.
        learning_rate (`float`, *optional*, defaults to `2e-4`): Learning rate of AdamW, constant.
        lora_rank (`int`, *optional*, defaults to `16`): Rank of a new adapter, which all linear layers get.
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum length of a completion.
        seed (`int`, *optional*, defaults to `0`): Seed of the choice of rows, of their order and of a new adapter.
        prompts (`int`, *optional*, defaults to `100`): Evaluation prompts of each task.
    """

    steps: int = 128
    rows: int = 512
    batch_size: int = 16
    learning_rate: float = 2e-4
    lora_rank: int = 16
    max_new_tokens: int = 256
    seed: int = 0
    prompts: int = 100

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Steps after which the model is measured: 0, 8, 16, 32, ... and the last."""
        doubled = [8 << power for power in range(self.steps.bit_length())]
        return 0, *(step for step in doubled if step < self.steps), self.steps
