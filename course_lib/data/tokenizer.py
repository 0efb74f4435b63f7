"""A word tokenizer whose vocabulary is written down here, so that token ids mean the same in every checkpoint.

A number is spelled digit by digit: ``16`` is ``1 ##6``, where ``##`` marks a digit that continues a number, as
WordPiece marks the rest of a word. Twenty tokens thus name every digit class, every clip length and every canvas.
"""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from course_lib.data.scenes import COLOURS, DIRECTIONS, STARTS

SPECIALS = ("<pad>", "<bos>", "<unk>")  # ids 0, 1, 2; <eos> is the highest id, where CLIP's argmax finds it
NUMERALS = (*"0123456789", *(f"##{digit}" for digit in "0123456789"))
PUNCTUATION = (".", ",", "?", ":")
WORDS = (
    *"zero one two three four five six seven eight nine".split(),
    *COLOURS,
    *STARTS,
    *DIRECTIONS,
    *"a an the and of at in from on with without that is are it its there here no not yes".split(),
    *"small little tiny medium medium-sized mid-sized large big huge".split(),
    *"slow low high slowly steadily quickly fast rapidly speed pace".split(),
    *"move moves moving slide slides sliding go goes going glides drifts heads travels travelling".split(),
    *"start starts starting begins beginning sets off".split(),
    *"stays standing rests resting waits sits remains".split(),
    *"digit digits number clip video canvas frame frames pixels wide long height width has lasts while".split(),
    *"does how many what where which way colour".split(),
    *"untitled title something recording new my please watch".split(),
)
VOCABULARY = (*SPECIALS, *NUMERALS, *PUNCTUATION, *dict.fromkeys(WORDS), "<eos>")

_PIECES = re.compile(r"\d+|[a-z]+(?:-[a-z]+)*|[^\sa-z\d]")


class Tokenizer:
    """Turns captions into token ids and back: ``decode(encode(text)) == text`` for every caption of the course."""

    pad, bos, unk = 0, 1, 2
    eos = len(VOCABULARY) - 1

    def __init__(self):
        self._id = {token: i for i, token in enumerate(VOCABULARY)}

    def __len__(self) -> int:
        return len(VOCABULARY)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, as strings; words outside the vocabulary become ``<unk>``."""
        pieces = []
        for piece in _PIECES.findall(text.lower()):
            if piece.isdecimal() and piece.isascii():
                pieces += [piece[0], *(f"##{digit}" for digit in piece[1:])]
            else:
                pieces.append(piece if piece in self._id else "<unk>")
        return pieces

    def encode(self, text: str | Sequence[str], length: int | None = None) -> Int[Tensor, "*b n"]:
        """``<bos>`` tokens ``<eos>`` ``<pad>`` ... as int64.

        Args:
            text: one caption, or a list of them.
            length: how many ids per caption, padding included; by default as many as the longest needs.
        Returns: ``(n,)`` for one caption, ``(b, n)`` for a list.
        Raises: ValueError if a caption needs more than ``length`` ids, or the list is empty.
        """
        captions = [text] if isinstance(text, str) else list(text)
        if not captions:
            raise ValueError("there is nothing to encode: the list of captions is empty")
        rows = [[self.bos, *(self._id[token] for token in self.tokens(caption)), self.eos] for caption in captions]
        longest = max(range(len(rows)), key=lambda i: len(rows[i]))
        if length is None:
            length = len(rows[longest])
        if len(rows[longest]) > length:
            raise ValueError(
                f"{captions[longest]!r} needs {len(rows[longest])} tokens, but length is {length}; raise length"
            )
        ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])
        return ids[0] if isinstance(text, str) else ids

    def decode(self, ids: Int[Tensor, "*b n"]) -> str | list[str]:
        """The text up to ``<eos>``, without ``<bos>`` and ``<pad>``: a string for (n,), a list of strings for (b, n).

        Raises: ValueError for an id outside the vocabulary.
        """
        if ids.ndim > 1:
            return [self.decode(row) for row in ids]
        text = ""
        for i in ids.tolist():
            if not 0 <= i < len(self):
                raise ValueError(f"token id {i} is outside the vocabulary of {len(self)} tokens (0 to {len(self) - 1})")
            if i == self.eos:
                break
            token = VOCABULARY[i]
            if i in (self.pad, self.bos):
                continue
            if token.startswith("##"):
                text += token[2:]
            else:
                text += token if not text or token in PUNCTUATION else " " + token
        return text
