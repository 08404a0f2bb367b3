"""Train the weights that tell text from random tokens, for `cb_datasets/answers/gibberish.py`.

    pip download --no-deps django==5.2.17 && unzip django-*.whl -d django-source
    python tools/real_tokenizers.py .tokenizers llama-3.1
    python tools/smollm2.py .models/smollm2
    python tools/train_gibberish.py django-source .tokenizers/llama-3.1 .models/smollm2 demo/tiny_agent

Text is English and code of Python's standard library, and what Django says in thirty languages (BSD licence). Random
tokens are drawn evenly from the vocabularies of the tokenizers. Of both, pieces of 40 to 400 characters are classified
by logistic regression on the features of `cb_datasets/answers/gibberish.py`. Only weights are stored; no text can be
read out of them. On one core that takes five minutes.
"""

import argparse
import ast
import os
import pydoc_data.topics
import random
import re
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from cb_datasets.answers.gibberish import HASH_BITS, WEIGHTS, gram_hashes, num_scripts


LANGUAGES = [
    *(
        "ar",
        "cs",
        "da",
        "de",
        "el",
        "es",
        "fa",
        "fi",
        "fr",
        "he",
        "hi",
        "hu",
        "id",
        "it",
        "ja",
        "ko",
        "nl",
        "pl",
        "pt",
    ),
    *("pt_BR", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh_Hans", "zh_Hant"),
]
SIZES = (40, 60, 80, 120, 200, 400)  # of a piece, in characters
PIECES, EPOCHS, BATCH = 60_000, 4, 256
# Shares of English and of code; the rest is of the other languages.
ENGLISH, CODE = 0.35, 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the weights that tell text from random tokens.")
    parser.add_argument("django", type=Path, help="folder of Django's unpacked wheel")
    parser.add_argument("tokenizers", nargs="+", help="folders of tokenizers")
    args = parser.parse_args()
    rng = random.Random(0)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in args.tokenizers]
    languages = [said_by_django(args.django, language) for language in LANGUAGES]
    english, code = standard_library()

    def text() -> str:
        draw = rng.random()
        return piece(rng, english if draw < ENGLISH else code if draw < ENGLISH + CODE else rng.choice(languages))

    rows = [(text(), 0.0) if index % 2 else (salad(rng, rng.choice(tokenizers)), 1.0) for index in range(PIECES)]
    weights, per_script, bias = fit(rng, rows)
    scale = float(weights.abs().max()) / 127
    np.savez_compressed(
        WEIGHTS,
        grams=(weights / scale).round().to(torch.int8).numpy(),
        scale=np.float32(scale),
        per_script=np.float32(per_script),
        bias=np.float32(bias),
    )
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1e3:.0f} kB")


def said_by_django(folder: Path, language: str) -> str:
    """All translated strings of one language, without placeholders."""
    files = sorted(folder.glob(f"django/**/locale/{language}/LC_MESSAGES/*.po"))
    strings = [string for file in files for string in translations(file.read_text(encoding="utf-8"))]
    return " ".join(re.sub(r"%\(\w+\)[sd]|%[sd]|\{\w*\}", "", string) for string in strings)


def translations(po: str) -> list[str]:
    """The `msgstr` strings of a gettext file, without its header."""
    blocks = re.findall(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\n?)+)', po, re.MULTILINE)
    return ["".join(ast.literal_eval(line) for line in block.splitlines()) for block in blocks[1:]]


def standard_library() -> tuple[str, str]:
    """English and code: topics of the help and docstrings, and source files."""
    sources = [
        path.read_text(encoding="utf-8", errors="ignore") for path in sorted(Path(os.__file__).parent.glob("*.py"))
    ]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    return " ".join(
        [*pydoc_data.topics.topics.values(), *(ast.get_docstring(node) or "" for node in nodes)]
    ), " ".join(sources)


def piece(rng: random.Random, text: str) -> str:
    size = min(len(text), rng.choice(SIZES))
    start = rng.randrange(len(text) - size + 1)
    return text[start : start + size]


def salad(rng: random.Random, tokenizer) -> str:
    size = rng.choice(SIZES)
    ids = [rng.randrange(len(tokenizer)) for _ in range(size)]
    return tokenizer.decode(ids, skip_special_tokens=True)[:size]


def fit(rng: random.Random, rows: list[tuple[str, float]]) -> tuple[torch.Tensor, float, float]:
    """Weights of hashed n-grams, of the logarithm of the number of scripts, and the bias."""
    torch.manual_seed(0)
    hashes = [torch.from_numpy(gram_hashes(text).astype(np.int64)) for text, _ in tqdm(rows, "hashing")]
    scripts = torch.tensor([num_scripts(text) for text, _ in rows], dtype=torch.float32).log1p()
    labels = torch.tensor([label for _, label in rows])
    grams = torch.nn.EmbeddingBag(2**HASH_BITS, 1, mode="mean")
    torch.nn.init.zeros_(grams.weight)
    dense = torch.zeros(2, requires_grad=True)  # weight of the scripts, and bias
    optimizer = torch.optim.Adam([grams.weight, dense], lr=0.5)
    for epoch in range(EPOCHS):
        order = list(range(len(rows)))
        rng.shuffle(order)
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * (1 - epoch / EPOCHS)
        for start in tqdm(range(0, len(rows), BATCH), f"epoch {epoch + 1}"):
            chosen = order[start : start + BATCH]
            offsets = torch.tensor([0, *(len(hashes[index]) for index in chosen[:-1])]).cumsum(0)
            logits = grams(torch.cat([hashes[index] for index in chosen]), offsets)[:, 0]
            logits = logits + dense[0] * scripts[chosen] + dense[1]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[chosen])
            loss = loss + 1e-7 * grams.weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return grams.weight[:, 0].detach(), float(dense[0]), float(dense[1])


if __name__ == "__main__":
    main()
