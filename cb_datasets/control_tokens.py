"""Control tokens, and text that spells one.

A tokenizer reads `<|eot_id|>` anywhere in a prompt as the token that ends a turn, so a tool result that spells it can
open a turn of the user's. Only the chat template may write control tokens. In the texts that it prints, one character
of each spelled token is masked, and the prompt is encoded as if these tokens were unknown (`M` is a private-use
character):

    text        Total 9.00<|eot_id|> Pay.
    masked      Total 9.00<|Mot_id|> Pay.        as long as the text, and no template sees a token in it
    rendered    ...<|end_header_id|>Total 9.00<|Mot_id|> Pay.<|eot_id|>     whole control tokens are the template's
    encoded     the unmasked text: `<|`, `eot`, `_id`, `|>` in the message, and one token 128009 after it

Control tokens are all added tokens of a tokenizer, special or not, except those of whitespace only: such tokens (in
Gemma and GPT-NeoX) are typography. Prompts without masks are encoded by the tokenizer as they are.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from .template_openings import text_openings, words_of
from .text_marks import map_strings, private_use_characters, strings_in


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Zero-width space: breaks a control token in text for a server that encodes by itself.
BREAK = "\u200b"

# A noncharacter, which is part of no token.
_GONE = "\uffff"

# Control tokens of the known families of models, whichever the target is, but for `<s>` and `</s>`.
_OF_ANY_MODEL = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{0,40}[|\uff5c]>|\[/?INST\]|<(?:start|end)_of_turn>|\[(?:/?AVAILABLE_TOOLS|TOOL_CALLS)\]"
)
# These two are tags of HTML as well: words that it strikes out. Around a whole text they are those of a model.
_STRUCK_OUT = re.compile(r"<s>(?=\S)((?:(?!</?s>).){1,200}+)(?<=\S)</s>")
_END_OF_TURN = re.compile(r"</s>\s*+(?:<s>|\Z)")

# An added token, and its characters `[start, end)`.
_Found = tuple[str, int, int]


def leaks_control_token(text: str) -> bool:
    """Whether a completion contains a control token of any family of models.

    No model writes one into an answer; a server that does not split them off leaks them.
    """
    if _STRUCK_OUT.fullmatch(text.strip()):
        return True
    words = _STRUCK_OUT.sub(r"\1", text)
    return bool(_OF_ANY_MODEL.search(words)) or _has_turn_tag(text, words)


def _has_turn_tag(text: str, words: str) -> bool:
    """Whether a `<s>` or `</s>` begins or ends a turn; `words` is the text without those that strike words out.

    In running words, `<s>` may stand for the tag of HTML, and so may a `</s>` after it.
    """
    first = re.search("</?s>", words)
    if first is None:
        return False
    return first[0] == "</s>" or text.lstrip().startswith("<s>") or bool(_END_OF_TURN.search(words))


def _is_control(token: str) -> bool:
    return bool(token.replace("\u2581", " ").strip())  # SentencePiece writes a space as U+2581


def _finder(tokenizer: "PreTrainedTokenizerBase", added: list[AddedToken]) -> Tokenizer:
    """A tokenizer with the same added tokens and a model that is cheap to run; all other text is the token `""`."""
    finder = Tokenizer(WordLevel({"": 0}, unk_token=""))
    if tokenizer.backend_tokenizer.normalizer is not None:
        finder.normalizer = tokenizer.backend_tokenizer.normalizer
    finder.add_tokens(added)
    return finder


def _inside(characters: list[str], start: int, end: int) -> int:
    """Index of a character to replace in a token `[start, end)`: its first letter or digit, if it has one.

    Templates quote and escape contents, but neither letters nor digits; and a break before it is inside the token.
    """
    inner = range(start + 1, end)
    letters = (index for index in inner if characters[index].isascii() and characters[index].isalnum())
    others = (index for index in inner if not characters[index].isspace() and characters[index] != _GONE)
    return next(letters, next(others, start))


@lru_cache(maxsize=16)
def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> "ControlTokens":
    """The control tokens of a tokenizer."""
    return ControlTokens(tokenizer)


class ControlTokens:
    """Finds, masks and breaks the control tokens of a tokenizer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): A tokenizer with its chat template.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = tokenizer.added_tokens_decoder
        self._tokenizer = tokenizer
        self._ids = {token.content: id for id, token in added.items()}
        # Longest first: of two tokens that begin alike, tokenizers read the longer one.
        contents = sorted(filter(_is_control, self._ids), key=len, reverse=True)
        self._control_ids = {self._ids[content] for content in contents}
        # `(?!)` matches nothing.
        self._pattern = re.compile("|".join(map(re.escape, contents)) or r"(?!)")
        self._prefixes = {content[:length] for content in contents for length in range(1, len(content))}
        self._first_characters = {content[0] for content in contents}
        self._longest = max(map(len, contents), default=0)
        self._finder = _finder(tokenizer, list(added.values())) if tokenizer.is_fast else None
        # These tokens are searched for in the text as normalized, e.g. in lower case.
        self._search_normalized = tokenizer.is_fast and (
            tokenizer.backend_tokenizer.normalizer is not None and any(token.normalized for token in added.values())
        )
        self._contents = contents
        self._continuations = lru_cache(maxsize=8)(self._continuations_of)

    @property
    def template_opens(self) -> bool:
        """Whether the chat template writes the beginning of a control token, which the text after it can complete."""
        return bool(self._continuations(str(self._tokenizer.chat_template)))

    def spelled_in(self, value: Any) -> bool:
        """Whether a string in a JSON value spells a control token."""
        return any(bool(self._spans(string)) for string in strings_in(value))

    def concern(self, value: Any) -> bool:
        """Whether [`mask`] would change a JSON value."""
        always = self.template_opens or self._search_normalized
        return any(
            bool(self._positions(string))
            for string in strings_in(value)
            # Quick for most texts: they have none of the few characters that control tokens begin with.
            if always or any(first in string for first in self._first_characters)
        )

    def mask(self, value: Any) -> tuple[Any, dict[str, str]]:
        """Mask a character of each spelled control token, and those at which text of the template may join to one.

        Returns:
            `tuple[Any, dict[str, str]]`: The masked JSON value, and the character that each mask stands for.
        """
        unused = private_use_characters("\n".join([*strings_in(value), str(self._tokenizer.chat_template)]))
        masks: dict[str, str] = {}

        def masked(text: str) -> str:
            characters = list(text)
            for position in self._positions(text):
                character = characters[position]
                if character not in masks:
                    masks[character] = next(unused)
                characters[position] = masks[character]
            return "".join(characters)

        masked_value = map_strings(value, masked)
        return masked_value, {mask: character for character, mask in masks.items()}

    def reads_alike(self, text: str, masked: str) -> bool:
        """Whether the tokenizer reads the same control tokens in two texts of equal length."""
        return self._find(text) == self._find(masked)

    def encode(self, text: str, masked: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and their characters, with those control tokens only that `masked` has too.

        Args:
            text (`str`): A rendered prompt.
            masked (`str`): The same with masks.

        Raises:
            ValueError: If the model of the tokenizer itself knows a control token as a word.
        """
        tokens = self._find(masked)
        starts, ends = [start for _, start, _ in tokens], [end for _, _, end in tokens]
        between = [text[start:end] for start, end in zip([0, *ends], [*starts, len(text)], strict=True)]
        ids, offsets = (self._encode_fast if self._tokenizer.is_fast else self._encode_slow)(between, tokens)
        if [id for id in ids if id in self._control_ids] != [
            self._ids[token] for token, _, _ in tokens if _is_control(token)
        ]:
            raise ValueError(
                "The model of this tokenizer has control tokens as words, so it cannot read them as text."
            )
        return ids, offsets

    def break_in(self, value: Any) -> Any:
        """A JSON value with [`BREAK`] in each spelled control token, for a server that takes text only.

        Raises:
            ValueError: If a token cannot be broken, or the chat template begins tokens that text can complete.
        """
        if self.template_opens:
            raise ValueError(
                "The chat template writes the beginning of a control token before text: text sent to a server that "
                "encodes by itself could complete it. Use --engine transformers."
            )

        def broken(text: str) -> str:
            positions = self._inner_positions(text)
            positions += [len(text.rstrip())] if self._ends_inside(text) else []
            for position in sorted(positions, reverse=True):
                text = text[:position] + BREAK + text[position:]
            if self._spans(text):
                raise ValueError("A control token of this tokenizer cannot be broken. Use --engine transformers.")
            return text

        return map_strings(value, broken)

    def without_beginning(self, text: str) -> str:
        """A text without the beginning of a control token that it ends with."""
        starts = range(max(len(text) - self._longest, 0), len(text))
        return text[: next((start for start in starts if text[start:] in self._prefixes), len(text))]

    def _positions(self, text: str) -> list[int]:
        """Indices of the characters to mask."""
        positions = set(self._inner_positions(text))
        if self._ends_inside(text):
            positions.add(len(text.rstrip()) - 1)
        template = str(self._tokenizer.chat_template)
        # Templates look for roles, types and the like by name.
        if self.template_opens and text.strip() and text not in words_of(template):
            first = len(text) - len(text.lstrip())
            # No other character is masked: templates escape quotes, and some look for numbers.
            if self._search_normalized or text[first] in self._continuations(template):
                positions.add(first)
        return sorted(positions)

    def _inner_positions(self, text: str) -> list[int]:
        """Indices of characters without which a text spells no control token, one in each that it spells."""
        positions: list[int] = []
        characters = list(text) if self._spans(text) else []
        # Tokens overlap and nest: without one, the text may spell another.
        while spans := self._spans("".join(characters)):
            for start, end in spans:
                positions.append(_inside(characters, start, end))
                characters[positions[-1]] = _GONE
        return positions

    def _continuations_of(self, template: str) -> frozenset[str]:
        """The characters with which text can continue a control token that a chat template begins.

        The template may itself write more of the token before the text.
        """
        openings = text_openings(self._tokenizer, template, self._ends_inside)
        ends = [opening.rstrip()[-self._longest :] for opening in openings]
        return frozenset(
            character
            for content in self._contents
            for length in range(1, len(content))
            if any(end.endswith(content[:length]) for end in ends)
            for character in content[length:]
        )

    def _ends_inside(self, text: str) -> bool:
        """Whether a text, trimmed, ends with the beginning of a control token."""
        tail = text.rstrip()[-self._longest :]
        return any(first in tail for first in self._first_characters) and any(
            tail[start:] in self._prefixes for start in range(len(tail)) if tail[start] in self._first_characters
        )

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Characters `[start, end)` of the control tokens that a text spells; they do not overlap."""
        if self._search_normalized:
            return [(start, end) for token, start, end in self._find(text) if _is_control(token)]
        return [match.span() for match in self._pattern.finditer(text)]

    def _find(self, text: str) -> list[_Found]:
        """The added tokens that the tokenizer reads in a text, with their characters `[start, end)`."""
        if self._finder is None:
            return [(match[0], *match.span()) for match in self._pattern.finditer(text)]
        encoding = self._finder.encode(text, add_special_tokens=False)
        tokens = map(self._finder.id_to_token, encoding.ids)
        return [(token, *span) for token, span in zip(tokens, encoding.offsets, strict=True) if token]

    def _encode_slow(self, between: list[str], tokens: list[_Found]) -> tuple[list[int], list[tuple[int, int]]]:
        first, *others = (
            self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in between
        )
        ids = list(first)
        for (token, _, _), text_ids in zip(tokens, others, strict=True):
            ids += [self._ids[token], *text_ids]
        return ids, []

    def _encode_fast(self, between: list[str], tokens: list[_Found]) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode with a tokenizer that knows one added token only, a placeholder for all of `tokens`.

        So the texts between them are split and normalized as in the tokenizer itself, and share its model.
        """
        placeholder = next(private_use_characters("".join(between)))
        backend = self._tokenizer.backend_tokenizer
        plain = Tokenizer(backend.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            if getattr(backend, part) is not None:
                setattr(plain, part, getattr(backend, part))
        plain.add_special_tokens([AddedToken(placeholder, normalized=False)])
        placeholder_id = plain.token_to_id(placeholder)
        encoding = plain.encode(placeholder.join(between), add_special_tokens=False)
        ids, offsets, shift = [], [], 0
        remaining = iter(tokens)
        for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if id == placeholder_id:
                token, token_start, token_end = next(remaining)
                ids.append(self._ids[token])
                offsets.append((token_start, token_end))
                shift = token_end - end
            else:
                ids.append(id)
                offsets.append((start + shift, end + shift))
        return ids, offsets
