"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017): its figure 1, from the bottom to the top.

Every box takes the boxes inside it as arguments, so that a lesson can swap one part (a learner's own attention, no
positions, no scaling) without touching the rest. Dropout is off by default because our toy tasks have endless data; the
paper's base model uses 0.1.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course_lib.nn.attention import MultiHeadAttention


def sinusoidal_positions(length: int, d: int) -> Float[Tensor, "length d"]:
    r"""One vector per position: sines and cosines whose wavelengths grow from 2 pi to nearly 10000 * 2 pi.

    For position p and pair i = 0, 1, ..., d/2 - 1, with angle = p / 10000^(2i/d):
    channel 2i holds sin(angle) and channel 2i + 1 holds cos(angle). Sines and cosines alternate.

    Args:
        length: number of positions; the first is p = 0.
        d: number of channels, even.
    Returns: (length, d), float32, values in [-1, 1].
    Raises: ValueError if d is odd.
    Source: Vaswani et al. 2017, section 3.5. The paper's pos is our p, its d_model our d.
    """
    if d % 2:
        raise ValueError(f"d={d} is odd; sines and cosines come in pairs, so d must be even")
    position = torch.arange(length)[:, None]
    frequency = 10000.0 ** (-torch.arange(0, d, 2) / d)
    angle = position * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class EncoderLayer(nn.Module):
    """Self-attention, then a small network on each token; each added to its input and normalised after (post-LN).

    Args:
        d: width of the tokens.
        heads: number of attention heads.
        d_ff: hidden width of the feed-forward network.
        dropout: share of each sublayer's output that is dropped in training.
        attention: makes the attention, called as ``attention(d, heads)``.
    Source: Vaswani et al. 2017, sections 3.1, 3.3 and 5.4.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        d_ff: int,
        dropout: float = 0.0,
        attention: Callable[..., nn.Module] = MultiHeadAttention,
    ):
        super().__init__()
        self.self_attention = attention(d, heads)
        self.feed_forward = nn.Sequential(nn.Linear(d, d_ff), nn.ReLU(), nn.Linear(d_ff, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "#b #n n"] | None = None) -> Float[Tensor, "b n d"]:
        """``keep[b, i, j]`` is True where token i may look at token j."""
        x = self.norms[0](x + self.dropout(self.self_attention(x, keep=keep)))
        return self.norms[1](x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output, and a small network on each token; post-LN.

    Args:
        d: width of the tokens.
        heads: number of attention heads.
        d_ff: hidden width of the feed-forward network.
        dropout: share of each sublayer's output that is dropped in training.
        attention: makes an attention, called as ``attention(d, heads)``.
        cross: False leaves the second sublayer out: a decoder without an encoder, which is a language model.
    Source: Vaswani et al. 2017, sections 3.1, 3.2.3, 3.3 and 5.4.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        d_ff: int,
        dropout: float = 0.0,
        attention: Callable[..., nn.Module] = MultiHeadAttention,
        cross: bool = True,
    ):
        super().__init__()
        self.self_attention = attention(d, heads)
        self.cross_attention = attention(d, heads) if cross else None
        self.feed_forward = nn.Sequential(nn.Linear(d, d_ff), nn.ReLU(), nn.Linear(d_ff, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3 if cross else 2))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        memory: Float[Tensor, "b source d"] | None = None,
        keep: Bool[Tensor, "#b #n n"] | None = None,
        memory_keep: Bool[Tensor, "#b #n source"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Apply the sublayers in order; each output is ``norm(x + dropout(sublayer(x)))``, the norm outside the sum.

        1. ``self_attention`` among the tokens of x, masked by ``keep``.
        2. ``cross_attention`` from x to ``memory``, masked by ``memory_keep``. Left out when ``memory`` is None.
        3. ``feed_forward``.

        Each sublayer has its own norm: the first, second and third of ``self.norms`` (the first two where the second
        sublayer is left out).

        Args:
            x: (b, n, d), the tokens.
            memory: (b, source, d), the encoder's output; None exactly when the layer was built with ``cross=False``.
            keep: boolean (b, n, n), or with ones in place of some sizes; True where a token of x may look at one of x.
            memory_keep: boolean (b, n, source), likewise; True where a token of x may look at one of memory.
        Returns: (b, n, d).
        """
        x = self.norms[0](x + self.dropout(self.self_attention(x, keep=keep)))
        if memory is not None:
            x = self.norms[1](x + self.dropout(self.cross_attention(x, memory, memory_keep)))
        return self.norms[-1](x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
    """Tokens to vectors that know their context; every token may look at every other.

    Args:
        vocabulary: number of different tokens.
        d, heads, d_ff, dropout: as in ``EncoderLayer``.
        layers: how many layers are stacked.
        layer: makes a layer, called as ``layer(d, heads, d_ff, dropout)``.
        positions: ``positions(length, d)`` is added to the embeddings.
    Source: Vaswani et al. 2017, sections 3.1, 3.4 and 3.5.
    """

    def __init__(
        self,
        vocabulary: int,
        d: int,
        heads: int,
        layers: int,
        d_ff: int,
        dropout: float = 0.0,
        layer: Callable[..., nn.Module] = EncoderLayer,
        positions: Callable[[int, int], Tensor] = sinusoidal_positions,
    ):
        super().__init__()
        self.d, self.positions = d, positions
        self.embed = nn.Embedding(vocabulary, d)
        nn.init.normal_(self.embed.weight, std=d**-0.5)  # times sqrt(d) they are as large as the positions
        self.layers = nn.ModuleList(layer(d, heads, d_ff, dropout) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Int[Tensor, "b n"], tokens_keep: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """``tokens_keep`` is False at padding, which nobody may look at."""
        x = self.embed(tokens) * math.sqrt(self.d)
        x = self.dropout(x + self.positions(tokens.shape[1], self.d).to(x))
        keep = None if tokens_keep is None else tokens_keep[:, None, :]
        for layer in self.layers:
            x = layer(x, keep)
        return x


class Decoder(nn.Module):
    """Predicts each next token from the tokens so far and from the encoder's output.

    Args:
        vocabulary: number of different tokens.
        d, heads, d_ff, dropout: as in ``DecoderLayer``.
        layers: how many layers are stacked.
        layer: makes a layer, called as ``layer(d, heads, d_ff, dropout, cross=cross)``.
        positions: ``positions(length, d)`` is added to the embeddings.
        cross: False for a language model, which has no encoder to look at.
        tie: use the embedding matrix also as the last linear layer, as the paper does.
    Source: Vaswani et al. 2017, sections 3.1, 3.2.3, 3.4 and 3.5.
    """

    def __init__(
        self,
        vocabulary: int,
        d: int,
        heads: int,
        layers: int,
        d_ff: int,
        dropout: float = 0.0,
        layer: Callable[..., nn.Module] = DecoderLayer,
        positions: Callable[[int, int], Tensor] = sinusoidal_positions,
        cross: bool = True,
        tie: bool = True,
    ):
        super().__init__()
        self.d, self.positions = d, positions
        self.embed = nn.Embedding(vocabulary, d)
        nn.init.normal_(self.embed.weight, std=d**-0.5)  # times sqrt(d) they are as large as the positions
        self.layers = nn.ModuleList(layer(d, heads, d_ff, dropout, cross=cross) for _ in range(layers))
        self.to_logits = nn.Linear(d, vocabulary, bias=False)
        if tie:
            self.to_logits.weight = self.embed.weight
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Int[Tensor, "b n"],
        memory: Float[Tensor, "b source d"] | None = None,
        memory_keep: Bool[Tensor, "b source"] | None = None,
    ) -> Float[Tensor, "b n vocabulary"]:
        """The logits at place i say which token comes at place i + 1, and depend on tokens 0 to i only.

        Embeddings are multiplied by sqrt(d), ``self.positions(n, d)`` is added to each sequence, and dropout follows.
        Every layer is called as ``layer(x, memory, keep, memory_keep)`` with boolean masks of three axes, (1, n, n) and
        (b, 1, source). No token may look at a later one; every token may look at itself. No token may look at memory
        where ``memory_keep`` is False. ``to_logits`` comes last.

        Args:
            tokens: (b, n), indices below ``vocabulary``.
            memory: (b, source, d), the encoder's output; None for a decoder built with ``cross=False``.
            memory_keep: boolean (b, source), False at padding; None allows everything.
        Returns: (b, n, vocabulary), logits: no softmax.
        """
        n = tokens.shape[1]
        x = self.embed(tokens) * math.sqrt(self.d)
        x = self.dropout(x + self.positions(n, self.d).to(x))
        keep = torch.ones(1, n, n, dtype=torch.bool, device=x.device).tril()
        if memory_keep is not None:
            memory_keep = memory_keep[:, None, :]
        for layer in self.layers:
            x = layer(x, memory, keep, memory_keep)
        return self.to_logits(x)


class Transformer(nn.Module):
    """Encoder and decoder: reads one sequence, writes another.

    Args:
        encoder, decoder: as above, of equal width and with ``cross=True``.
        share: one embedding matrix for both, as in the paper, which translates within one joint vocabulary.
    Source: Vaswani et al. 2017, figure 1 and section 3.4.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, share: bool = True):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        if share:
            if encoder.embed.weight.shape != decoder.embed.weight.shape:
                sizes = f"{tuple(encoder.embed.weight.shape)} and {tuple(decoder.embed.weight.shape)}"
                raise ValueError(f"cannot share embeddings of sizes {sizes}; give both the same, or share=False")
            # Copied from the decoder, whose matrix may also be its last layer.
            encoder.embed.weight = decoder.embed.weight

    def forward(
        self,
        source: Int[Tensor, "b source"],
        target: Int[Tensor, "b n"],
        source_keep: Bool[Tensor, "b source"] | None = None,
    ) -> Float[Tensor, "b n vocabulary"]:
        """Logits of each next target token; ``source_keep`` is False at padding."""
        return self.decoder(target, self.encoder(source, source_keep), source_keep)

    @torch.no_grad()
    def translate(
        self,
        source: Int[Tensor, "b source"],
        start: int,
        end: int,
        longest: int,
        source_keep: Bool[Tensor, "b source"] | None = None,
    ) -> Int[Tensor, "b n"]:
        """Write the likeliest target token by token; see ``continue_tokens``."""
        memory = self.encoder(source, source_keep)
        prompt = torch.full_like(source[:, :1], start)
        return continue_tokens(lambda tokens: self.decoder(tokens, memory, source_keep), prompt, end, longest)


@torch.no_grad()
def continue_tokens(
    model: Callable[[Int[Tensor, "b n"]], Float[Tensor, "b n vocabulary"]],
    prompt: Int[Tensor, "b n"],
    end: int,
    longest: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b m"]:
    """Let a model continue a prompt token by token until every row has said ``end`` or has ``longest`` tokens.

    Args:
        model: maps (b, n) tokens to (b, n, vocabulary) logits; a ``Decoder`` is one.
        prompt: (b, n), at least one token.
        end: the token that closes a row; it is repeated up to the end of the longest row.
        longest: most tokens in a row, the prompt included.
        temperature: 0 takes the likeliest token (greedy); 1 draws from the model; in between is bolder or safer.
        generator: the source of randomness where temperature > 0.
    Returns: (b, m), m <= longest, the prompt included.
    Raises: ValueError if the prompt is empty or the temperature negative.
    """
    if prompt.shape[1] == 0:
        raise ValueError("the prompt is empty; give at least one token, such as <bos>")
    if temperature < 0:
        raise ValueError(f"temperature={temperature} is negative; 0 is greedy, 1 draws from the model")
    tokens, done = prompt, (prompt[:, -1] == end)
    while tokens.shape[1] < longest and not done.all():
        logits = model(tokens)[:, -1]
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        token = torch.where(done, end, token)
        tokens = torch.cat([tokens, token[:, None]], dim=1)
        done = done | (token == end)
    return tokens


def next_token_loss(
    logits: Float[Tensor, "b n vocabulary"],
    targets: Int[Tensor, "b n"],
    pad: int | None = None,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over all targets that are not ``pad``.

    Args:
        logits: (b, n, vocabulary).
        targets: (b, n), the token that each place should predict.
        pad: targets of this value do not count.
        smoothing: share of the target probability spread evenly over the vocabulary; the paper uses 0.1.
    Source: Vaswani et al. 2017, section 5.4.
    """
    ignore = -100 if pad is None else pad
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore, label_smoothing=smoothing)


def paper_learning_rate(step: int, d: int, warmup: int = 4000) -> float:
    """The paper's schedule: up in a straight line for ``warmup`` steps, then down like 1 / sqrt(step).

    Args:
        step: counted from 1.
        d: width of the model; wider ones learn with smaller steps.
    Raises: ValueError if step < 1.
    Source: Vaswani et al. 2017, section 5.3, equation 3. Often called "noam".
    """
    if step < 1:
        raise ValueError(f"step={step}: steps are counted from 1")
    return d**-0.5 * min(step**-0.5, step * warmup**-1.5)
