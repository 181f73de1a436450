"""From text to tokens and back.

Bytes need no training and no package and can write any text. A `tokenizer.json` of Hugging Face's `tokenizers` makes
texts about four times shorter, at the price of a larger vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """What the data and the task need of a tokenizer.

    Attributes:
        vocabulary_size: tokens are below this number.
        end_of_text: the token that separates texts.
    """

    vocabulary_size: int
    end_of_text: int

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""


class ByteTokenizer:
    """A token is a byte of UTF-8."""

    end_of_text = 256
    vocabulary_size = 257

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text; bytes that are no UTF-8 become a replacement character."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class FileTokenizer:
    """A tokenizer that `tokenizers` saved as JSON.

    Raises:
        ImportError: the package is missing.
        ValueError: it has no token that ends a text.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from tokenizers import Tokenizer as Saved
        except ImportError as missing:
            raise ImportError(f"{path} needs the package tokenizers. Fix: pip install '.[tokenizers]'") from missing
        self._saved = Saved.from_file(str(path))
        self.vocabulary_size: int = self._saved.get_vocab_size()
        ends = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
        found = next((token for token in map(self._saved.token_to_id, ends) if token is not None), None)
        if found is None:
            raise ValueError(f"{path} has none of the tokens {', '.join(ends)}.")
        self.end_of_text: int = found

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones."""
        return self._saved.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return self._saved.decode(list(tokens))


def load_tokenizer(path: str | None) -> Tokenizer:
    """Return the tokenizer of a file, or the one of bytes."""
    return ByteTokenizer() if path is None else FileTokenizer(path)
