"""Plots of a report: metrics and outcomes of one evaluation, several evaluations compared, and hidden states."""

# Caption of each plot by file name, in the order of the report.
PLOT_CAPTIONS = {
    "outcomes.png": "Outcomes of the prompts by task",
    "report.png": "All metrics with their 95 % intervals",
    "tradeoff.png": "Attack success against retained behaviour; the evaluations are connected in their order",
    "strength.png": "Attack success against retained behaviour at the adapter's scales; \u2605 is the recommended one",
    "tampering.png": "Tampering: what fine-tuning does to breakers, and to the base model for comparison",
    "cosine_by_layer.png": "How far a breaker moved the hidden states, by layer: mean and middle 80 % of rows",
    "cosine_by_token.png": "The same by token: the completion begins at the line, the tool's name at the dotted line",
    "to_clean_by_token.png": "Cosine of hidden states with and without the attack, before (base) and after training",
    "curves.png": "Training curves",
}
