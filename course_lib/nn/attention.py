"""Attention: the one operation that every model of this course after the U-Net is built around.

``attention`` is the readable version and hands back its weights, so that they can be looked at. ``fused_attention`` is
the same function through PyTorch's fused kernel: several times faster, no weights. Both have the same signature, and
``MultiHeadAttention(d, heads, attend=...)`` takes either.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


def attention(
    q: Float[Tensor, "b heads queries d"],
    k: Float[Tensor, "b heads keys d"],
    v: Float[Tensor, "b heads keys d_v"],
    keep: Bool[Tensor, "#b #heads #queries #keys"] | None = None,
) -> tuple[Float[Tensor, "b heads queries d_v"], Float[Tensor, "b heads queries keys"]]:
    r"""Scaled dot-product attention: every query takes a weighted mean of the values.

    The weights of one query are a softmax, over the keys, of its dot products with the keys divided by sqrt(d):
    softmax(q k^T / sqrt(d)) v, separately for each batch element and head.

    Args:
        q: (b, heads, queries, d), what each position asks for.
        k: (b, heads, keys, d), what each position offers to be found by.
        v: (b, heads, keys, d_v), what each position hands over.
        keep: boolean (b, heads, queries, keys), or with ones in place of some sizes; True where a query may look. A
            forbidden key gets weight exactly 0 and takes no part in the softmax. A query that may look nowhere gets
            weights 0 and output 0, not nan. None allows everything.
    Returns: the output (b, heads, queries, d_v) and the weights (b, heads, queries, keys). Every row of weights sums
        to 1, also where scores are in the thousands; a row with no allowed key is 0.
    Source: Vaswani et al. 2017, section 3.2.1, equation 1.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if keep is not None:
        scores = scores.masked_fill(~keep, -math.inf)
    weights = scores.softmax(dim=-1)
    if keep is not None:
        # Forbidden weights are 0 already, except in a row with no allowed key: there softmax divides 0 by 0.
        weights = weights.masked_fill(~keep, 0.0)
    return weights @ v, weights


def fused_attention(
    q: Float[Tensor, "b heads queries d"],
    k: Float[Tensor, "b heads keys d"],
    v: Float[Tensor, "b heads keys d_v"],
    keep: Bool[Tensor, "#b #heads #queries #keys"] | None = None,
) -> tuple[Float[Tensor, "b heads queries d_v"], None]:
    """``attention`` through PyTorch's fused kernel, which never stores the weights; None is returned in their place.

    Raises: ValueError if there are not as many values as keys. (The kernel itself does not look, and reads past the
        end of the shorter one.)
    """
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"{k.shape[-2]} keys and {v.shape[-2]} values: every key needs a value of its own")
    # Under autocast on a CPU: in float32, since the kernel's backward in bfloat16 takes ten times as long there.
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=keep), None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep), None


class MultiHeadAttention(nn.Module):
    """Attention with several heads side by side, each in its own slice of d / heads channels.

    Args:
        d: width of the tokens, a multiple of ``heads``.
        heads: how many attentions run in parallel.
        attend: the attention inside, ``attention`` or ``fused_attention``.
        bias: whether the four projections have a bias; the paper's have none.
    Raises: ValueError if d is not a multiple of heads.
    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(self, d: int, heads: int, attend: Callable = attention, bias: bool = False):
        super().__init__()
        if heads < 1 or d % heads:
            raise ValueError(f"d={d} does not split into heads={heads} equal slices; make d a multiple of heads")
        self.heads = heads
        self.attend = attend
        self.to_q = nn.Linear(d, d, bias=bias)
        self.to_k = nn.Linear(d, d, bias=bias)
        self.to_v = nn.Linear(d, d, bias=bias)
        self.to_out = nn.Linear(d, d, bias=bias)
        for part in (self.to_q, self.to_k, self.to_v, self.to_out):
            nn.init.xavier_uniform_(part.weight)  # PyTorch's default for a linear layer is smaller and learns later

    def forward(
        self,
        x: Float[Tensor, "b queries d"],
        context: Float[Tensor, "b keys d"] | None = None,
        keep: Bool[Tensor, "#b #queries #keys"] | None = None,
    ) -> Float[Tensor, "b queries d"]:
        """Let every token of ``x`` look at the tokens of ``context``.

        Queries are ``to_q(x)``; keys and values are ``to_k`` and ``to_v`` of the context. The first head works in the
        first d / heads channels of all three, the second head in the next d / heads, and so on; each of them attends as
        ``self.attend(q, k, v, keep)[0]`` does, on (b, heads, n, d / heads). The outputs of the heads are put side by
        side again, in the same order, and go through ``to_out``.

        Args:
            x: (b, queries, d).
            context: (b, keys, d); None means self-attention, where the tokens of x look at each other.
            keep: boolean (b, queries, keys), or with ones in place of some sizes; True where a query may look. The
                same for all heads.
        Returns: (b, queries, d).
        """
        context = x if context is None else context
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k = rearrange(self.to_k(context), "b n (h d) -> b h n d", h=self.heads)
        v = rearrange(self.to_v(context), "b n (h d) -> b h n d", h=self.heads)
        if keep is not None:
            keep = keep[:, None]  # the same mask for every head
        out = self.attend(q, k, v, keep)[0]
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Attention in which one sequence asks and another one answers: the tokens of a picture read those of a caption.

    Args:
        d: width of the tokens that ask, a multiple of ``heads``; also of the result.
        d_context: width of the tokens that answer; it may be any other number.
        heads: how many attentions run in parallel, each on d / heads channels.

    Its parts, in any order, but with these names, since the lesson puts trained weights into them: linear layers
    ``to_q``, ``to_k`` and ``to_v``, all without a bias, and ``to_out``, with one. Each of them returns d channels; what
    goes in is for you to work out. They start as PyTorch makes them, weights and bias. There is no dropout, and nothing
    else that differs between training and evaluation.

    Raises: ValueError if d is not a multiple of heads.
    Source: Rombach et al. 2022 (latent diffusion), section 3.3; Vaswani et al. 2017, section 3.2.3.
    """

    def __init__(self, d: int, d_context: int, heads: int):
        super().__init__()
        if heads < 1 or d % heads:
            raise ValueError(f"d={d} does not split into heads={heads} equal slices; make d a multiple of heads")
        self.heads = heads
        self.attend = fused_attention
        self.to_q = nn.Linear(d, d, bias=False)
        self.to_k = nn.Linear(d_context, d, bias=False)
        self.to_v = nn.Linear(d_context, d, bias=False)
        self.to_out = nn.Linear(d, d)

    def forward(
        self,
        x: Float[Tensor, "b queries d"],
        context: Float[Tensor, "b keys d_context"],
        keep: Bool[Tensor, "b keys"] | None = None,
    ) -> Float[Tensor, "b queries d"]:
        """Every token of ``x`` takes, in each head, a weighted mean of the values of the context's tokens.

        Queries are ``to_q`` of x, keys and values are ``to_k`` and ``to_v`` of the context. The first head works in the
        first d / heads channels of all three, the second head in the next d / heads, and so on. In each of them it is
        softmax(q k^T / sqrt(d / heads)) v. The heads are put side by side again, in the same order, and go through
        ``to_out``.

        Args:
            x: (b, queries, d).
            context: (b, keys, d_context).
            keep: boolean (b, keys), True where the context may be read, even if all numbers there are 0; False at
                padding, anywhere in the caption, which must not make any difference, whatever numbers stand there,
                also in the millions (but no nan and no inf). The same for all queries and heads. Where a sample has no
                key that may be read, its weighted means are 0, and the result is the bias of ``to_out``. None allows
                all.
        Returns: (b, queries, d), right also where scores are in the hundreds.
        """
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k = rearrange(self.to_k(context), "b n (h d) -> b h n d", h=self.heads)
        v = rearrange(self.to_v(context), "b n (h d) -> b h n d", h=self.heads)
        if keep is not None:
            keep = keep[:, None, None, :]  # the same for every head and every query
        out = self.attend(q, k, v, keep)[0]
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


_PARTS = ("heads", "attend", "to_q", "to_k")


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Float[Tensor, "b heads queries keys"]]]:
    """Collect the weights of every multi-head attention that runs inside the ``with`` block, by module name.

    The weights are worked out again from what went into each module, so the model may attend with a fused kernel, as
    long as its parts are called ``heads``, ``attend``, ``to_q`` and ``to_k``. A module that runs twice keeps its last
    weights. They are detached.
    """
    maps: dict[str, Tensor] = {}

    def recorder(name):
        @torch.no_grad()
        def record(module, args, kwargs, _output):
            call = inspect.signature(MultiHeadAttention.forward).bind(module, *args, **kwargs).arguments
            context, keep = call.get("context"), call.get("keep")
            q = rearrange(module.to_q(call["x"]), "b n (h d) -> b h n d", h=module.heads)
            k = module.to_k(call["x"] if context is None else context)
            k = rearrange(k, "b n (h d) -> b h n d", h=module.heads)
            if keep is not None:  # (b, keys) in CrossAttention, (b, queries, keys) elsewhere
                keep = keep[:, None, None] if keep.ndim == 2 else keep[:, None]
            weights = module.attend(q, k, k, keep)[1]  # None from a fused kernel
            maps[name] = attention(q, k, k, keep)[1] if weights is None else weights

        return record

    found = [(n, m) for n, m in model.named_modules() if all(hasattr(m, part) for part in _PARTS)]
    hooks = [module.register_forward_hook(recorder(name), with_kwargs=True) for name, module in found]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
