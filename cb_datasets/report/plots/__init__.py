"""The pictures of a report: of an evaluation's figures, of several against each other, and of hidden states."""

# What each picture of a report shows, in the order in which they are shown.
PICTURES = {
    "outcomes.png": "What became of the prompts of each task",
    "report.png": "Every figure with its 95 % interval",
    "tradeoff.png": "Attack success against what is kept; several evaluations in their order",
    "cosine_by_layer.png": "How far states of completions moved, by layer: mean over rows, and where 80 % of rows lie",
    "cosine_by_token.png": "The same by token: left of the line is the prompt, dotted is where the tool's name begins",
    "to_clean_by_token.png": "How near states under attack are to those without the attack, before (base) and after",
    "curves.png": "The training",
}
