"""The exercises of lesson 02, Attention Is All You Need: from one attention to a decoder."""

import inspect
import textwrap

import torch
from torch import Tensor, nn

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.transformer import Decoder, DecoderLayer, sinusoidal_positions
from course_lib.nn.attention import MultiHeadAttention, attention


def _mask(g: torch.Generator, *shape: int) -> Tensor:
    """Random permissions; everyone may look at the first key."""
    keep = torch.rand(*shape, generator=g) < 0.5
    keep[..., 0] = True
    return keep


def _causal(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def _shut_one_out(keep: Tensor, *query: int) -> Tensor:
    """Forbid everything to one query."""
    keep = keep.clone()
    keep[query] = False
    return keep


def _with_body(cls: type, old: str, new: str) -> str:
    """The source of a class with another body of its ``forward``."""
    source = inspect.getsource(cls)
    assert source.count(old) == 1, f"the body of {cls.__name__}.forward has changed: adapt the exercise"
    return source.replace(old, textwrap.indent(new.strip("\n"), 8 * " ") + "\n")


def _tokens(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(0, 17, shape, generator=g)


def _low_allowed_scores(g: torch.Generator) -> dict[str, Tensor]:
    """Key 0 is forbidden and fits every query; the allowed keys, all alike, have scores below -10,000."""
    inputs = _qkv(g, 2, 3, 5, 7, 11, 13)
    inputs["q"] = inputs["q"].abs() + 1
    # One channel alone, so that the allowed scores are equal to the last bit in whatever order they are summed.
    inputs["k"] = torch.zeros_like(inputs["k"])
    inputs["k"][..., 0] = -40_000.0
    inputs["k"][:, :, 0, 0] = 40_000.0
    keep = torch.ones(1, 1, 1, 7, dtype=torch.bool)
    keep[..., 0] = False
    return inputs | dict(keep=keep)


def _without_gradients(f, **inputs):
    """At such scores a gradient is the difference of huge numbers: rounding noise, not a property of the answer."""
    with torch.no_grad():
        return f(**inputs)


def _flatter(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> tuple[Tensor, None]:
    """Another attention, to see that a module uses the one it was given."""
    return attention(q * 0.25, k, v, keep)[0], None


class _Flatter(MultiHeadAttention):
    def __init__(self, d: int, heads: int):
        super().__init__(d, heads, attend=_flatter)


# -------------------------------------------------------------------------------------------------------- attention


def _qkv(g: torch.Generator, b: int, heads: int, queries: int, keys: int, d: int, d_v: int, size: float = 1.0) -> dict:
    q, k = size * randn(g, b, heads, queries, d), size * randn(g, b, heads, keys, d)
    return dict(q=q, k=k, v=randn(g, b, heads, keys, d_v))


def _rows_sum_to_one(f) -> bool:
    g = torch.Generator().manual_seed(0)
    weights = f(**_qkv(g, 2, 3, 5, 11, 7, 13))[1]
    return torch.allclose(weights.sum(-1), torch.ones(2, 3, 5), atol=1e-4)


ATTENTION = Exercise(
    target=attention,
    minutes=15,
    cases=[
        Case("no mask", lambda g: _qkv(g, 2, 3, 5, 11, 7, 13)),
        Case(
            "a mask of its own for every query",
            lambda g: _qkv(g, 2, 3, 5, 11, 7, 13) | dict(keep=_mask(g, 2, 3, 5, 11)),
        ),
        Case("a causal mask for all", lambda g: _qkv(g, 2, 3, 5, 5, 7, 11) | dict(keep=_causal(5)[None, None])),
        Case(
            "padding: some keys are closed to all",
            lambda g: _qkv(g, 2, 3, 5, 7, 11, 13) | dict(keep=_mask(g, 2, 1, 1, 7)),
        ),
        Case(
            "one query may look nowhere",
            lambda g: _qkv(g, 2, 3, 5, 7, 11, 13) | dict(keep=_shut_one_out(_mask(g, 2, 3, 5, 7), 1, 2, 3)),
        ),
        Case("all sizes are 3", lambda g: _qkv(g, 3, 3, 3, 3, 3, 3) | dict(keep=_mask(g, 3, 3, 3, 3))),
        Case("scores in the thousands", lambda g: _qkv(g, 1, 2, 3, 5, 7, 11, size=30.0)),
        Case(
            "scores in the thousands, and a mask",
            lambda g: _qkv(g, 2, 3, 5, 7, 11, 13, size=30.0) | dict(keep=_mask(g, 2, 3, 5, 7)),
            call=_without_gradients,
        ),
        Case("allowed scores far below the forbidden ones", _low_allowed_scores, call=_without_gradients),
    ],
    properties=[Property("The weights of each query must sum to one: softmax runs over the keys.", _rows_sum_to_one)],
    mistakes=[
        Mistake(
            "You normalise over the queries. Each query's weights must sum to one over the keys it looks at, and the "
            "keys are the last axis of the scores.",
            old="softmax(dim=-1)",
            new="softmax(dim=-2)",
        ),
        Mistake(
            "You normalise over the heads (axis 1). Heads do not compete; the keys do, so softmax runs over the last "
            "axis.",
            old="softmax(dim=-1)",
            new="softmax(dim=1)",
        ),
        Mistake(
            "You normalise over the batch (axis 0). Examples must never influence each other; softmax runs over the "
            "keys, the last axis.",
            old="softmax(dim=-1)",
            new="softmax(dim=0)",
        ),
        Mistake(
            "You normalise over all query-key pairs at once. Every query has its own softmax over the keys, so every "
            "row of weights sums to one.",
            old="scores.softmax(dim=-1)",
            new="scores.flatten(2).softmax(dim=-1).view_as(scores)",
        ),
        Mistake(
            "This is attention without the 1/√d. Dot products of d numbers grow like √d, so softmax saturates and its "
            "gradient dies; divide the scores by √d first.",
            old=" / math.sqrt(q.shape[-1])",
            new="",
        ),
        Mistake(
            "You multiply the scores by √d where the equation divides by it. Large d makes scores large; the scale "
            "must shrink them.",
            old="/ math.sqrt(q.shape[-1])",
            new="* math.sqrt(q.shape[-1])",
        ),
        Mistake(
            "You divide by d, or by √d twice. The standard deviation of a dot product of d terms is √d, so divide by "
            "√d once; dividing by d leaves the weights nearly uniform.",
            old="math.sqrt(q.shape[-1])",
            new="q.shape[-1]",
        ),
        Mistake(
            "You scale by the width of all heads together, √(heads · d). Each dot product sums over one head's d "
            "channels only: use the last axis of q.",
            old="math.sqrt(q.shape[-1])",
            new="math.sqrt(q.shape[-1] * q.shape[1])",
        ),
        Mistake(
            "You scale by the number of keys. The scale undoes the growth of a dot product with its length d, the "
            "last axis of q; the number of keys has no part in it.",
            old="math.sqrt(q.shape[-1])",
            new="math.sqrt(k.shape[-2])",
        ),
        Mistake(
            "You scale by the width of the values. The scores are dot products of q and k, so the scale comes from "
            "the last axis of q.",
            old="math.sqrt(q.shape[-1])",
            new="math.sqrt(v.shape[-1])",
        ),
        Mistake(
            "You scale after the softmax. The weights no longer sum to one, and softmax still sees the large scores: "
            "divide the scores, before softmax.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1)
                if keep is not None:
                    scores = scores.masked_fill(~keep, -math.inf)
                weights = scores.softmax(dim=-1) / math.sqrt(q.shape[-1])
                if keep is not None:
                    weights = weights.masked_fill(~keep, 0.0)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "You mask after the softmax. The forbidden keys still sit in the denominator, so the allowed weights are "
            "too small and depend on keys nobody may see. Put -inf into the scores before softmax.",
            code="""
            def attention(q, k, v, keep=None):
                weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
                if keep is not None:
                    weights = weights * keep
                return weights @ v, weights
            """,
        ),
        Mistake(
            "You add the mask to the scores as zeros and ones. That raises an allowed score by 1 and forbids nothing; "
            "a forbidden score must become -inf.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
                if keep is not None:
                    scores = scores + keep.float()
                weights = scores.softmax(dim=-1)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "You set forbidden scores to 0. A score of 0 still gets weight e⁰ = 1 before normalising, so forbidden "
            "keys take part; use -inf, whose exponential is 0.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
                if keep is not None:
                    scores = scores.masked_fill(~keep, 0.0)
                weights = scores.softmax(dim=-1)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "You set forbidden scores to 0 and cleared their weights after softmax. While softmax ran, each of them "
            "still counted as e⁰ = 1 in the denominator; use -inf in the scores.",
            old="scores.masked_fill(~keep, -math.inf)",
            new="scores.masked_fill(~keep, 0.0)",
        ),
        Mistake(
            "Your mask is upside down. In this course True means the query *may* look, as in PyTorch's SDPA; you hide "
            "exactly what should be seen. Fill where `~keep`.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
                if keep is not None:
                    scores = scores.masked_fill(keep, -math.inf)
                weights = scores.softmax(dim=-1)
                if keep is not None:
                    weights = weights.masked_fill(keep, 0.0)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "Your mask is upside down, and rows with nothing left come out as nan. True means the query *may* look: "
            "fill where `~keep`.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
                if keep is not None:
                    scores = scores.masked_fill(keep, -math.inf)
                weights = scores.softmax(dim=-1)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "`keep` is never used: every query looks everywhere. Where keep is False the score must become -inf "
            "before softmax.",
            code="""
            def attention(q, k, v, keep=None):
                weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "Right everywhere but one place: a query that may look nowhere gets nan, because softmax of -inf alone is "
            "0/0. The contract asks for zeros there; clear the forbidden weights after softmax.",
            old="weights = weights.masked_fill(~keep, 0.0)",
            new="pass",
        ),
        Mistake(
            "Right everywhere but one place: you fill with a large negative number, so a query that may look nowhere "
            "spreads its weight evenly over *forbidden* keys. Its weights must be 0.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
                if keep is not None:
                    scores = scores.masked_fill(~keep, -1e9)
                weights = scores.softmax(dim=-1)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "The values are right, but the gradient is nan. In a row with no allowed key something becomes nan or inf "
            "on the way (-inf *added* to the scores, or a division by nearly 0) and flows back, though you clear it "
            "later. Fill with `masked_fill` or `torch.where`, which cut that path, and clear the weights after "
            "softmax.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
                if keep is not None:
                    scores = scores + torch.zeros(keep.shape).masked_fill(~keep, -math.inf)
                weights = scores.softmax(dim=-1).nan_to_num(0.0)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "You take exp() of raw scores, which overflows to inf once a score passes 88 and gives nan. Subtract each "
            "row's maximum first, or use softmax, which does.",
            code="""
            def attention(q, k, v, keep=None):
                e = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).exp()
                if keep is not None:
                    e = e.masked_fill(~keep, 0.0)
                weights = e / e.sum(-1, keepdim=True).clamp(min=1e-30)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "The exponentials are never divided by their sum, so the weights of a query do not sum to one and the "
            "output grows with the number of keys.",
            code="""
            def attention(q, k, v, keep=None):
                weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).exp()
                if keep is not None:
                    weights = weights.masked_fill(~keep, 0.0)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "The output is right, but the second result holds the scores. Return the weights, which are the scores "
            "after softmax.",
            old="return weights @ v, weights",
            new="return weights @ v, scores",
        ),
        Mistake(
            "The two results stand in the wrong order: the output comes first, the weights second.",
            old="return weights @ v, weights",
            new="return weights, weights @ v",
        ),
        Mistake(
            "Only the output comes back. The contract asks for the pair (output, weights).",
            old="return weights @ v, weights",
            new="return weights @ v",
        ),
        Mistake(
            "You divide the weighted sum by the number of keys as well. The weights already sum to one, so their sum "
            "is the mean.",
            old="return weights @ v, weights",
            new="return weights @ v / k.shape[-2], weights",
        ),
        Mistake(
            "You mix the keys instead of the values. Keys say where to look; what is handed over is v.",
            old="return weights @ v, weights",
            new="return weights @ k, weights",
        ),
        Mistake(
            "You always forbid the future. Whether anything is hidden, and what, is up to `keep`; without it every "
            "query looks everywhere.",
            old="    if keep is not None:\n        scores =",
            new="    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()\n"
            "    scores = scores.masked_fill(~causal, -math.inf)\n    if keep is not None:\n        scores =",
        ),
        Mistake(
            "You compare directions only: q and k were normalised to length 1. The paper's score is the plain dot "
            "product, where length says how strongly a token asks or offers.",
            old="q @ k.transpose(-2, -1)",
            new="F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)",
        ),
        Mistake(
            "The gradient is cut: the weights were detached (or computed under no_grad), so queries and keys never "
            "learn where to look.",
            old="return weights @ v, weights",
            new="return weights.detach() @ v, weights.detach()",
        ),
        Mistake(
            "The forbidden keys take part in the softmax (or in the maximum that you subtract), and you clear and "
            "renormalise afterwards. Where a forbidden score is far above the allowed ones, nothing is left: those "
            "have already come out as 0. Put -inf into the scores first.",
            code="""
            def attention(q, k, v, keep=None):
                weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
                if keep is not None:
                    weights = weights * keep
                    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "You clear forbidden weights after the softmax and divide by what is left, and where nothing is left that "
            "is 0/0, nan: for a query that may look nowhere, and where the forbidden scores are far above the allowed "
            "ones. Put -inf into the scores before softmax, and clear the weights after it.",
            code="""
            def attention(q, k, v, keep=None):
                weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
                if keep is not None:
                    weights = weights * keep
                    weights = weights / weights.sum(-1, keepdim=True)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "-10,000 is not low enough: an allowed score may lie below it, and then the forbidden keys win. Fill with "
            "-inf, or with the lowest number there is, `torch.finfo(scores.dtype).min`.",
            old="scores.masked_fill(~keep, -math.inf)",
            new="scores.masked_fill(~keep, -1e4)",
        ),
        Mistake(
            "-10,000 is not low enough: an allowed score may lie below it, and then forbidden keys get the weight. "
            "Fill with -inf or `torch.finfo(scores.dtype).min`; clearing the rows with no allowed key is right.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
                if keep is not None:
                    scores = scores.masked_fill(~keep, -1e4)
                weights = scores.softmax(dim=-1)
                if keep is not None:
                    weights = weights.masked_fill(~keep.any(-1, keepdim=True), 0.0)
                return weights @ v, weights
            """,
        ),
        Mistake(
            "`k.reshape` to (…, d, keys) is no transpose: it keeps the order in memory and mixes the channels of "
            "different keys. Swap the axes with `k.transpose(-2, -1)`.",
            old="k.transpose(-2, -1)",
            new="k.reshape(*k.shape[:2], k.shape[3], k.shape[2])",
        ),
        Mistake(
            "You divide the output by √d. The scale belongs to the scores, before softmax, where it decides how sharp "
            "the weights are.",
            code="""
            def attention(q, k, v, keep=None):
                scores = q @ k.transpose(-2, -1)
                if keep is not None:
                    scores = scores.masked_fill(~keep, -math.inf)
                weights = scores.softmax(dim=-1)
                if keep is not None:
                    weights = weights.masked_fill(~keep, 0.0)
                return weights @ v / math.sqrt(q.shape[-1]), weights
            """,
        ),
        Mistake(
            "You add the mask to the scores as zeros and ones, and clear the forbidden weights after softmax. While "
            "softmax ran, the forbidden keys still counted in the denominator; a forbidden score must become -inf.",
            old="scores.masked_fill(~keep, -math.inf)",
            new="scores + keep.to(scores.dtype)",
        ),
        Mistake(
            "√d was rounded to a whole number. `math.sqrt` gives a fraction, and that is right: leave out the `int` or "
            "the `//`.",
            old="math.sqrt(q.shape[-1])",
            new="int(math.sqrt(q.shape[-1]))",
        ),
        Mistake(
            "Your einsum sums the keys over all heads: a letter stands in one input only and not in the result. Heads "
            'keep to themselves: `"bhqd,bhkd->bhqk"`.',
            old="q @ k.transpose(-2, -1)",
            new='torch.einsum("bhqd,bgkd->bhqk", q, k)',
        ),
    ],
    variants=[
        Variant(
            "keys scaled first",
            """
            def attention(q, k, v, keep=None):
                scores = torch.einsum("bhqd,bhkd->bhqk", q, k * q.shape[-1] ** -0.5)
                if keep is not None:
                    scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
                weights = scores.softmax(-1)
                if keep is not None:
                    weights = weights.masked_fill(~keep, 0.0)
                return weights @ v, weights
            """,
        ),
        Variant(
            "einsum",
            """
            def attention(q, k, v, keep=None):
                scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.size(-1) ** -0.5
                if keep is not None:
                    scores = torch.where(keep, scores, torch.tensor(float("-inf")))
                weights = torch.nan_to_num(torch.softmax(scores, dim=3))
                return torch.einsum("bhqk,bhkv->bhqv", weights, v), weights
            """,
        ),
        Variant(
            "a loop over heads and queries",
            """
            def attention(q, k, v, keep=None):
                b, h, n, d = q.shape
                m = k.shape[2]
                allowed = torch.ones(b, h, n, m, dtype=torch.bool) if keep is None else keep.expand(b, h, n, m)
                out, weights = torch.zeros(b, h, n, v.shape[-1]), torch.zeros(b, h, n, m)
                for i in range(b):
                    for j in range(h):
                        for query in range(n):
                            places = allowed[i, j, query].nonzero()[:, 0]
                            if len(places) == 0:
                                continue
                            s = (k[i, j, places] @ q[i, j, query]) / d**0.5
                            w = torch.softmax(s, 0)
                            weights[i, j, query, places] = w
                            out[i, j, query] = w @ v[i, j, places]
                return out, weights
            """,
        ),
        Variant(
            "exponentials by hand, the maximum subtracted",
            """
            def attention(q, k, v, keep=None):
                scores = (q / q.shape[-1] ** 0.5).matmul(k.mT)
                if keep is not None:
                    scores = scores.masked_fill(keep.logical_not(), -1e30)
                e = (scores - scores.max(-1, keepdim=True).values).exp()
                if keep is not None:
                    e = e * keep
                weights = e / e.sum(-1, keepdim=True).clamp(min=1e-9)
                return weights @ v, weights
            """,
        ),
        Variant(
            "PyTorch's kernel for the output",
            """
            def attention(q, k, v, keep=None):
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
                eye = torch.eye(k.shape[2]).expand(*k.shape[:3], k.shape[2])
                return out, F.scaled_dot_product_attention(q, k, eye, attn_mask=keep)
            """,
        ),
        Variant(
            "a large negative number, cleared after softmax",
            """
            def attention(q, k, v, keep=None):
                w = torch.matmul(q, torch.swapaxes(k, 2, 3)).div(math.sqrt(k.size(3)))
                if keep is None:
                    w = F.softmax(w, -1)
                else:
                    w = F.softmax(w.masked_fill(keep == False, torch.finfo(w.dtype).min), -1) * keep
                return torch.matmul(w, v), w
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Work out the shapes first. Every query meets every key, so the scores are (b, heads, queries, keys). A "
            "matrix product gives that: `q @ something`, where the something is k with its last two axes swapped.",
        ),
        Hint(
            "my rows do not sum to one",
            "`scores.softmax(dim=?)`: the axis over which it sums to one is the axis of the keys, the last. Divide by "
            "`math.sqrt(q.shape[-1])` *before* softmax.",
        ),
        Hint(
            "the masked cases fail",
            "A forbidden key must vanish from the denominator too, so it has to be gone before softmax: "
            "`scores.masked_fill(~keep, -math.inf)`. Then look at a query that may look nowhere: what is softmax of a "
            "row of -inf? Clear it after softmax with another masked_fill.",
        ),
        Hint(
            "show me nearly everything",
            "scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]); where keep is False, -inf; softmax over the "
            "last axis; where keep is False, 0; return (weights @ v, weights). The two masking lines run only if keep "
            "is given.",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------- multi-head attention


_MHA_BODY = """\
        context = x if context is None else context
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k = rearrange(self.to_k(context), "b n (h d) -> b h n d", h=self.heads)
        v = rearrange(self.to_v(context), "b n (h d) -> b h n d", h=self.heads)
        if keep is not None:
            keep = keep[:, None]  # the same mask for every head
        out = self.attend(q, k, v, keep)[0]
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""


def _mha(body: str) -> str:
    return _with_body(MultiHeadAttention, _MHA_BODY, body)


_SPLIT, _MERGE = '"b n (h d) -> b h n d"', '"b h n d -> b n (h d)"'


def _mha_forward(split: str = _SPLIT, merge: str = _MERGE) -> str:
    return _mha(f"""
context = x if context is None else context
q, k, v = (rearrange(y, {split}, h=self.heads) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
if keep is not None:
    keep = keep[:, None]
out = self.attend(q, k, v, keep)[0]
return self.to_out(rearrange(out, {merge}))
""")


def _x(g: torch.Generator, b: int, n: int, m: int | None = None, d: int = 12) -> dict:
    return dict(x=randn(g, b, n, d)) | ({} if m is None else dict(context=randn(g, b, m, d)))


def _order_of_tokens_does_not_matter(cls) -> bool:
    torch.manual_seed(0)
    module, x, order = cls(d=12, heads=3), torch.randn(2, 5, 12), torch.tensor([3, 0, 4, 1, 2])
    return torch.allclose(module(x[:, order]), module(x)[:, order], atol=1e-4)


_SMALL = dict(d=12, heads=3)

MULTI_HEAD_ATTENTION = Exercise(
    target=MultiHeadAttention,
    minutes=20,
    given=("__init__",),
    cases=[
        Case("self-attention", lambda g: _x(g, 2, 5), init=_SMALL),
        Case("cross-attention, 5 queries and 7 keys", lambda g: _x(g, 2, 5, 7), init=_SMALL),
        Case("a mask of its own for every query", lambda g: _x(g, 2, 5, 7) | dict(keep=_mask(g, 2, 5, 7)), init=_SMALL),
        Case("a causal mask for all", lambda g: _x(g, 2, 5) | dict(keep=_causal(5)[None]), init=_SMALL),
        Case("padding in the context", lambda g: _x(g, 2, 5, 7) | dict(keep=_mask(g, 2, 1, 7)), init=_SMALL),
        Case("context as long as x", lambda g: _x(g, 2, 5, 5), init=_SMALL),
        Case(
            "batch, length and heads are all 3",
            lambda g: _x(g, 3, 3, 3, d=9) | dict(keep=_mask(g, 3, 3, 3)),
            init=dict(d=9, heads=3),
        ),
        Case("one head", lambda g: _x(g, 2, 5, 7, d=11), init=dict(d=11, heads=1)),
        Case("another attention inside", lambda g: _x(g, 2, 5, 7), init=_SMALL | dict(attend=_flatter)),
        Case("projections with biases", lambda g: _x(g, 2, 5, 7), init=_SMALL | dict(bias=True)),
        Case("five heads", lambda g: _x(g, 2, 3, 7, d=10), init=dict(d=10, heads=5)),
    ],
    properties=[
        Property(
            "Reordering the tokens must reorder the output in the same way, and does not: tokens and heads get mixed.",
            _order_of_tokens_does_not_matter,
        )
    ],
    mistakes=[
        Mistake(
            "The heads are cut across tokens. A reshape straight to (b, heads, n, d / heads) keeps memory order, so "
            "one head gets pieces of different tokens; split the channels into (heads, d / heads), then move the "
            "heads axis forward.",
            code=_mha("""
context = x if context is None else context
def split(y):
    return y.reshape(y.shape[0], self.heads, y.shape[1], -1)
q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
out = self.attend(q, k, v, None if keep is None else keep[:, None])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "The merge scrambles the tokens. The output is (b, heads, n, d / heads): move the heads axis back behind "
            "the tokens *before* you flatten heads and channels.",
            old='self.to_out(rearrange(out, "b h n d -> b n (h d)"))',
            new="self.to_out(out.reshape(x.shape))",
        ),
        Mistake(
            "Heads are cut across tokens on the way in and merged the same way on the way out. Shapes fit, but each "
            "head sees pieces of different tokens; split channels first, then transpose.",
            code=_mha("""
context = x if context is None else context
def split(y):
    return y.reshape(y.shape[0], self.heads, y.shape[1], -1)
q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
out = self.attend(q, k, v, None if keep is None else keep[:, None])[0]
return self.to_out(out.reshape(x.shape))
"""),
        ),
        Mistake(
            "The heads attend to each other instead of the tokens: the axes are (b, n, heads, d / heads) when "
            "attention runs. It works over the last two axes, so tokens must stand there: transpose heads and tokens.",
            code=_mha_forward('"b n (h d) -> b n h d"', '"b n h d -> b n (h d)"'),
        ),
        Mistake(
            "Only one head: the channels were never split, so all of them make one attention pattern. Give each head "
            "its slice of d / heads channels.",
            code=_mha("""
context = x if context is None else context
q, k, v = self.to_q(x)[:, None], self.to_k(context)[:, None], self.to_v(context)[:, None]
out = self.attend(q, k, v, None if keep is None else keep[:, None])[0]
return self.to_out(out[:, 0])
"""),
        ),
        Mistake(
            "`to_out` is never used. Without it the heads cannot talk: each output channel comes from a single head.",
            old='self.to_out(rearrange(out, "b h n d -> b n (h d)"))',
            new='rearrange(out, "b h n d -> b n (h d)")',
        ),
        Mistake(
            "The values come from x. In cross-attention x only asks; both keys and values come from the context.",
            old="self.to_v(context)",
            new="self.to_v(x)",
        ),
        Mistake(
            "The keys come from x. In cross-attention x only asks; both keys and values come from the context.",
            old="self.to_k(context)",
            new="self.to_k(x)",
        ),
        Mistake(
            "The context is never read: keys and values come from x, so this is always self-attention. Use x only "
            "when context is None.",
            old="context = x if context is None else context",
            new="context = x",
        ),
        Mistake(
            "Queries and context changed places: the tokens of x ask, the context answers. Your output has one row "
            "per context token (or its values).",
            code=_mha("""
context = x if context is None else context
q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=self.heads)
           for y in (self.to_q(context), self.to_k(x), self.to_v(x)))
out = self.attend(q, k, v, None if keep is None else keep[:, None])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "The queries come from the context, so x is never read in cross-attention. Queries are `to_q(x)`.",
            old="self.to_q(x)",
            new="self.to_q(context)",
        ),
        Mistake(
            "`to_q` and `to_k` changed places: queries are `to_q(x)`, keys are `to_k(context)`.",
            code=_mha("""
context = x if context is None else context
q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=self.heads)
           for y in (self.to_k(x), self.to_q(context), self.to_v(context)))
out = self.attend(q, k, v, None if keep is None else keep[:, None])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "`to_v` is never used: the values are the keys again. What a token offers to be found by and what it "
            "hands over are two different projections.",
            old="self.to_v(context)",
            new="self.to_k(context)",
        ),
        Mistake(
            "`to_k` is never used: the keys are made by `to_q`. Then every score is symmetric and tokens like "
            "themselves best.",
            old="self.to_k(context)",
            new="self.to_q(context)",
        ),
        Mistake(
            "The inputs are not projected: x and the context go into attention as they are, and `to_q`, `to_k`, "
            "`to_v` never learn.",
            code=_mha("""
context = x if context is None else context
q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=self.heads) for y in (x, context, context))
out = self.attend(q, k, v, None if keep is None else keep[:, None])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "The values are not projected: the context goes in as it is. Each head mixes its own slice of "
            "`to_v(context)`.",
            old="self.to_v(context)",
            new="context",
        ),
        Mistake(
            "Your heads take every heads-th channel instead of neighbouring ones, both on the way in and out. It "
            "would train just as well, but the contract (and saved weights) give the first head the first d / heads "
            "channels: (h d), not (d h).",
            code=_mha_forward('"b n (d h) -> b h n d"', '"b h n d -> b n (d h)"'),
        ),
        Mistake(
            "The heads' outputs are interleaved on the merge: channel 0 of every head, then channel 1. Put the heads "
            "side by side, (h d), in the order in which they were cut.",
            old='"b h n d -> b n (h d)"',
            new='"b h n d -> b n (d h)"',
        ),
        Mistake(
            "The channels are split as (d h), every heads-th one to a head, but merged as (h d). Both must be (h d): "
            "neighbouring channels belong to one head.",
            code=_mha_forward('"b n (d h) -> b h n d"', _MERGE),
        ),
        Mistake(
            "`keep` never reaches the attention: forbidden tokens are still read. Pass it on.",
            old="self.attend(q, k, v, keep)",
            new="self.attend(q, k, v)",
        ),
        Mistake(
            "The mask lacks an axis for the heads. (b, queries, keys) meets (b, heads, queries, keys), and "
            "broadcasting lines the batch up with the heads, or fails. Insert the axis: `keep[:, None]`.",
            old="keep = keep[:, None]",
            new="pass",
        ),
        Mistake(
            "The mask lies on its side: its rows are the queries and its columns the keys. Add the heads axis and "
            "leave the last two alone.",
            old="keep = keep[:, None]",
            new="keep = keep[:, None].transpose(-2, -1)",
        ),
        Mistake(
            "The mask is turned round: you pass `~keep`. True means the query may look, here and in `attend` alike.",
            old="keep = keep[:, None]",
            new="keep = ~keep[:, None]",
        ),
        Mistake(
            "The scores are scaled twice: `attend` already divides by √(d / heads). Do not scale q as well.",
            old="self.attend(q, k, v, keep)",
            new="self.attend(q / math.sqrt(q.shape[-1]), k, v, keep)",
        ),
        Mistake(
            "The scores are scaled by the full width d instead of one head's d / heads. `attend` scales by itself: "
            "hand it q, k, v of one head's width each.",
            old="self.attend(q, k, v, keep)",
            new="self.attend(q / math.sqrt(self.heads), k, v, keep)",
        ),
        Mistake(
            "The input is added to the result. The residual belongs to the layer around this module; here only the "
            "attention is returned.",
            old="return self.to_out(",
            new="return x + self.to_out(",
        ),
        Mistake(
            "`attend` returns a pair (output, weights), and you went on with the pair or with the weights. Take its "
            "first element.",
            old="self.attend(q, k, v, keep)[0]",
            new="self.attend(q, k, v, keep)",
        ),
        Mistake(
            "The heads are summed, each through the same channels, instead of being put side by side. Head i fills "
            "channels i · d / heads onwards.",
            old='rearrange(out, "b h n d -> b n (h d)")',
            new="out.mean(1).repeat(1, 1, self.heads)",
        ),
        Mistake(
            "You call `attention` by name. The module was handed its attention: use `self.attend`, or nobody can "
            "exchange it for a faster one.",
            old="self.attend(q, k, v, keep)",
            new="attention(q, k, v, keep)",
        ),
        Mistake(
            "`to_q` is never used: the queries are made by `to_k`. Then every score is symmetric and tokens like "
            "themselves best; queries are `to_q(x)`.",
            old="self.to_q(x)",
            new="self.to_k(x)",
        ),
        Mistake(
            "The queries are made by `to_v`. Queries are `to_q(x)`.",
            old="self.to_q(x)",
            new="self.to_v(x)",
        ),
        Mistake(
            "Keys and values changed places in the call: it is `self.attend(q, k, v, keep)`.",
            old="self.attend(q, k, v, keep)",
            new="self.attend(q, v, k, keep)",
        ),
        Mistake(
            'Your heads have the wrong number: you gave their *width* the value of `self.heads`. In "b n (h d)" the '
            "number of heads is h, and the width d follows by itself.",
            code=_mha_forward().replace("h=self.heads", "d=self.heads"),
        ),
        Mistake(
            "You multiply with the weights as they lie. `nn.Linear` computes x Wᵀ + b: call the layer, `self.to_q(x)`.",
            code=_mha("""
context = x if context is None else context
q, k, v = (rearrange(y, "b n (h d) -> b h n d", h=self.heads)
           for y in (x @ self.to_q.weight, context @ self.to_k.weight, context @ self.to_v.weight))
out = self.attend(q, k, v, None if keep is None else keep[:, None])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "Heads folded into the batch stand as (b h): all heads of the first sequence, then those of the second. "
            "`repeat` lines the masks up as (h b), so sequences get each other's; `repeat_interleave` repeats each in "
            "its place.",
            code=_mha("""
context = x if context is None else context
fold = lambda y: rearrange(y, "b n (h d) -> (b h) 1 n d", h=self.heads)
if keep is not None:
    keep = keep.expand(len(x), -1, -1).repeat(self.heads, 1, 1)[:, None]
out = self.attend(fold(self.to_q(x)), fold(self.to_k(context)), fold(self.to_v(context)), keep)[0]
return self.to_out(rearrange(out, "(b h) 1 n d -> b n (h d)", h=self.heads))
"""),
        ),
        Mistake(
            "`keep` gets lost where there is a context. Cross-attention can have a mask too: padding, for instance.",
            old="        context = x if context is None else context",
            new="        keep = keep if context is None else None\n        context = x if context is None else context",
        ),
        Mistake(
            "`keep` gets lost where there is no context. Self-attention can have a mask too: the causal one, for "
            "instance.",
            old="        context = x if context is None else context",
            new="        keep = None if context is None else keep\n        context = x if context is None else context",
        ),
        Mistake(
            "You always forbid the future. Whether anything is hidden, and what, is up to `keep`; without it every "
            "token looks everywhere.",
            old="        if keep is not None:\n            keep = keep[:, None]  # the same mask for every head",
            new="        causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()\n"
            "        keep = causal[None, None] if keep is None else keep[:, None] & causal",
        ),
        Mistake(
            "There is dropout in it. The contract has none: `DecoderLayer` drops, around this module.",
            old="self.attend(q, k, v, keep)[0]",
            new="F.dropout(self.attend(q, k, v, keep)[0], 0.1, self.training)",
        ),
    ],
    variants=[
        Variant(
            "view and transpose",
            _mha("""
source = x if context is None else context
b, n, d = x.shape
m, h = source.shape[1], self.heads
q = self.to_q(x).view(b, n, h, d // h).transpose(1, 2)
k = self.to_k(source).view(b, m, h, d // h).transpose(1, 2)
v = self.to_v(source).view(b, m, h, d // h).transpose(1, 2)
y, _ = self.attend(q, k, v, keep.unsqueeze(1) if keep is not None else None)
return self.to_out(y.transpose(1, 2).contiguous().view(b, n, d))
"""),
        ),
        Variant(
            "a loop over the heads",
            _mha("""
if context is None:
    context = x
q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
size = x.shape[-1] // self.heads
outs = []
for i in range(self.heads):
    part = slice(i * size, (i + 1) * size)
    one = (y[:, None, :, part] for y in (q, k, v))
    outs.append(self.attend(*one, None if keep is None else keep[:, None])[0][:, 0])
return self.to_out(torch.cat(outs, dim=-1))
"""),
        ),
        Variant(
            "chunk and stack",
            _mha("""
context = x if context is None else context
q, k, v = (torch.stack(y.chunk(self.heads, dim=-1), dim=1)
           for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
mask = None if keep is None else keep[:, None, :, :]
y = self.attend(q, k, v, keep=mask)[0]
return self.to_out(torch.cat(y.unbind(1), dim=-1))
"""),
        ),
        Variant(
            "heads folded into the batch",
            _mha("""
c = context if context is not None else x
h = self.heads
fold = lambda y: einops.rearrange(y, "b n (h d) -> (b h) 1 n d", h=h)
mask = None if keep is None else keep.repeat_interleave(h if keep.shape[0] > 1 else 1, dim=0).unsqueeze(1)
y = self.attend(fold(self.to_q(x)), fold(self.to_k(c)), fold(self.to_v(c)), mask)[0]
return self.to_out(einops.rearrange(y, "(b h) 1 n d -> b n (h d)", h=h))
"""),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Four steps: project (three linear layers), split the channels into heads, `self.attend`, merge and "
            "`to_out`. `attend` wants (b, heads, n, d / heads) and works on every head by itself.",
        ),
        Hint(
            "shapes fit but the values are wrong",
            "Reshaping (b, n, d) straight to (b, heads, n, d / heads) cuts across tokens. Go through (b, n, heads, d "
            '/ heads) and transpose, or let einops do both: `rearrange(y, "b n (h d) -> b h n d", h=self.heads)`. '
            "The merge is the same line read backwards.",
        ),
        Hint(
            "the cross-attention or the masked case fails",
            "Only the queries come from x; keys and values come from the context, which is x when none is given. The "
            "mask is the same for all heads, so it needs an axis of size 1 in their place: `keep[:, None]`.",
        ),
        Hint(
            "show me nearly everything",
            "context = x if context is None else context; q, k, v = to_q(x), to_k(context), to_v(context), each split "
            'with rearrange; out = self.attend(q, k, v, keep)[0]; merge with "b h n d -> b n (h d)"; return '
            "self.to_out(...).",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------------------- positions


POSITIONS = Exercise(
    target=sinusoidal_positions,
    minutes=10,
    gradients=False,
    picture=True,
    cases=[
        Case("11 positions, 26 channels", lambda g: dict(length=11, d=26)),
        Case("53 positions, 14 channels", lambda g: dict(length=53, d=14)),
        Case("7 positions, 2 channels", lambda g: dict(length=7, d=2)),
        Case("3 positions, 4 channels", lambda g: dict(length=3, d=4)),
        Case("one position", lambda g: dict(length=1, d=6)),
        Case("as many positions as channels", lambda g: dict(length=10, d=10)),
        Case("longer than before, same width", lambda g: dict(length=29, d=10)),
        Case("more positions than anybody planned for", lambda g: dict(length=5_303, d=2)),
        Case("an odd width", lambda g: dict(length=5, d=7)),
    ],
    properties=[
        Property(
            "Position 0 must read 0, 1, 0, 1, …: all sines of 0 and all cosines of 0.",
            lambda f: torch.allclose(f(5, 6)[0].float(), torch.tensor([0.0, 1, 0, 1, 0, 1]), atol=1e-5),
        )
    ],
    mistakes=[
        Mistake(
            "The exponent is i/d instead of 2i/d, with i counting the pairs. Then the slowest wave is 100 times "
            "longer than the fastest, not nearly 10000 times.",
            old="torch.arange(0, d, 2) / d",
            new="torch.arange(d // 2) / d",
        ),
        Mistake(
            "Every channel has a frequency of its own. Channels 2i and 2i + 1 are a pair, the sine and the cosine of "
            "the *same* angle p / 10000^(2i/d).",
            code="""
            def sinusoidal_positions(length, d):
                angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(d) / d)
                return torch.where(torch.arange(d) % 2 == 0, angle.sin(), angle.cos())
            """,
        ),
        Mistake(
            "Every channel has a frequency of its own, with exponent 2·channel/d, so the last ones hardly move at "
            "all. Channels 2i and 2i + 1 share the angle p / 10000^(2i/d).",
            code="""
            def sinusoidal_positions(length, d):
                angle = torch.arange(length)[:, None] * 10000.0 ** (-2 * torch.arange(d) / d)
                return torch.where(torch.arange(d) % 2 == 0, angle.sin(), angle.cos())
            """,
        ),
        Mistake(
            "A difference of convention: you put all sines first and all cosines behind. A model would learn the same "
            "from it (DiT does this), but the paper alternates them, and weights trained with one do not fit the "
            "other.",
            old="torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)",
            new="torch.cat([angle.sin(), angle.cos()], dim=-1)",
        ),
        Mistake(
            "A difference of convention: all cosines first, then all sines. The paper alternates them and starts with "
            "the sine.",
            old="torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)",
            new="torch.cat([angle.cos(), angle.sin()], dim=-1)",
        ),
        Mistake(
            "Sine and cosine changed places: channel 2i holds the sine, channel 2i + 1 the cosine.",
            old="[angle.sin(), angle.cos()]",
            new="[angle.cos(), angle.sin()]",
        ),
        Mistake(
            "Positions start at 1. The first position is p = 0, where all sines are 0 and all cosines are 1.",
            old="torch.arange(length)[:, None]",
            new="torch.arange(1, length + 1)[:, None]",
        ),
        Mistake(
            "The frequencies grow instead of falling: the position is divided by 10000^(2i/d), and you multiply.",
            old="10000.0 ** (-torch.arange(0, d, 2) / d)",
            new="10000.0 ** (torch.arange(0, d, 2) / d)",
        ),
        Mistake(
            "A difference of convention: your last pair reaches exactly 1/10000 (you divide by d - 2, as the paper's "
            "own code does). The formula in the paper divides by d.",
            old="torch.arange(0, d, 2) / d)",
            new="torch.arange(0, d, 2) / max(d - 2, 1))",
        ),
        Mistake(
            "10000^(2i/d) = exp(2i/d · ln 10000): you took log10, which makes the waves far too short. `math.log` is "
            "the natural logarithm.",
            old="10000.0 ** (-torch.arange(0, d, 2) / d)",
            new="torch.exp(-math.log10(10000.0) * torch.arange(0, d, 2) / d)",
        ),
        Mistake(
            "The base is 1000 instead of 10000.",
            old="10000.0 **",
            new="1000.0 **",
        ),
        Mistake(
            "Both channels of each pair hold the sine. The second must hold the cosine of the same angle: only both "
            "together let a shift be written as a rotation.",
            old="[angle.sin(), angle.cos()]",
            new="[angle.sin(), angle.sin()]",
        ),
        Mistake(
            "The position is divided by the length, so the same place gets another vector in a longer sequence. Use "
            "the bare index p.",
            old="angle = position * frequency",
            new="angle = position / length * frequency",
        ),
        Mistake(
            "The angle is multiplied by 2π. The paper's wavelengths run from 2π, not from 1.",
            old="angle = position * frequency",
            new="angle = 2 * math.pi * position * frequency",
        ),
        Mistake(
            "The exponent was rounded to a whole number by integer division, so all pairs share one frequency. Divide "
            "with `/`, not `//`.",
            old="-torch.arange(0, d, 2) / d",
            new="-(torch.arange(0, d, 2) // d)",
        ),
        Mistake(
            "The table lies on its side: rows are positions, columns are channels, (length, d).",
            old="dim=-1).flatten(1)",
            new="dim=-1).flatten(1).T",
        ),
        Mistake(
            "Only one channel per pair is there, d/2 columns. Each of the d/2 angles gives two channels, a sine and a "
            "cosine.",
            old="torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)",
            new="angle.sin()",
        ),
        Mistake(
            "These are the angles; their sines and cosines are missing.",
            old="[angle.sin(), angle.cos()]",
            new="[angle, angle]",
        ),
        Mistake(
            "Sines and cosines take turns along the positions instead of along the channels. Even *channels* are "
            "sines, odd ones cosines, at every position.",
            code="""
            def sinusoidal_positions(length, d):
                angle = torch.arange(length)[:, None] * 10000.0 ** (-(torch.arange(d) // 2 * 2) / d)
                return torch.where(torch.arange(length)[:, None] % 2 == 0, angle.sin(), angle.cos())
            """,
        ),
        Mistake(
            "An axis for the batch was added. The table is the same for every sequence: return (length, d).",
            old="dim=-1).flatten(1)",
            new="dim=-1).flatten(1)[None]",
        ),
        Mistake(
            "The factor 2 is in your exponent twice: `torch.arange(0, d, 2)` is 2i already. The exponent is 2i/d with "
            "i = 0, 1, 2, …, so divide it by d alone.",
            old="torch.arange(0, d, 2) / d",
            new="2 * torch.arange(0, d, 2) / d",
        ),
        Mistake(
            "10000^(-2i/d) = exp(-2i/d · ln 10000): the logarithm is missing, you took exp(-2i/d · 10000).",
            old="10000.0 ** (-torch.arange(0, d, 2) / d)",
            new="torch.exp(-10000.0 * torch.arange(0, d, 2) / d)",
        ),
        Mistake(
            "The pairs are counted from 1. The first pair is i = 0: its angle is p itself.",
            old="torch.arange(0, d, 2)",
            new="torch.arange(2, d + 2, 2)",
        ),
    ],
    variants=[
        Variant(
            "fill every second column",
            """
            def sinusoidal_positions(length, d):
                if d % 2:
                    raise ValueError(f"d={d} is odd")
                table = torch.zeros(length, d)
                position = torch.arange(length).unsqueeze(1)
                factor = torch.exp(torch.arange(0, d, 2) * (-math.log(10000.0) / d))
                table[:, 0::2] = torch.sin(position * factor)
                table[:, 1::2] = torch.cos(position * factor)
                return table
            """,
        ),
        Variant(
            "two plain loops",
            """
            def sinusoidal_positions(length, d):
                if d % 2:
                    raise ValueError(f"d={d} is odd")
                rows = []
                for p in range(length):
                    row = []
                    for i in range(d // 2):
                        angle = p / 10000 ** (2 * i / d)
                        row += [math.sin(angle), math.cos(angle)]
                    rows.append(row)
                return torch.tensor(rows)
            """,
        ),
        Variant(
            "a cosine is a sine a quarter turn ahead",
            """
            def sinusoidal_positions(length, d):
                if d % 2:
                    raise ValueError(f"d={d} is odd")
                channel = torch.arange(d)
                rate = torch.pow(10000, -(channel - channel % 2) / d)
                return torch.sin(torch.outer(torch.arange(length).float(), rate) + channel % 2 * math.pi / 2)
            """,
        ),
        Variant(
            "real and imaginary part of a complex wave",
            """
            def sinusoidal_positions(length, d):
                if d % 2:
                    raise ValueError(f"d={d} is odd")
                frequency = 1 / 10000 ** (torch.arange(d // 2) * 2 / d)
                wave = torch.exp(1j * torch.arange(length)[:, None] * frequency)
                return torch.stack((wave.imag, wave.real), -1).reshape(length, d)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Make two vectors: the positions 0 … length - 1 as a column, and the d/2 frequencies 10000^(-2i/d) as a "
            "row. Their product by broadcasting is the table of angles, (length, d/2).",
        ),
        Hint(
            "the picture looks right but is shuffled",
            "Sine and cosine of one angle are neighbours: sin, cos, sin, cos. `torch.stack([sin, cos], dim=-1)` puts "
            "them beside each other and `.flatten(1)` joins the pairs; or fill `table[:, 0::2]` and `table[:, 1::2]`.",
        ),
        Hint(
            "my waves are too short or too long",
            "`torch.arange(0, d, 2)` counts 0, 2, 4, …: that is 2i already. The angle is p times 10000^(-2i/d); the "
            "first pair turns one radian per position, the last one about 1/10000.",
        ),
        Hint(
            "show me nearly everything",
            "angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d); then stack angle.sin() "
            "and angle.cos() along a new last axis and flatten the last two.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------- one decoder layer


_LAYER_BODY = """\
        x = self.norms[0](x + self.dropout(self.self_attention(x, keep=keep)))
        if memory is not None:
            x = self.norms[1](x + self.dropout(self.cross_attention(x, memory, memory_keep)))
        return self.norms[-1](x + self.dropout(self.feed_forward(x)))
"""
_FIRST, _, _SECOND, _THIRD = _LAYER_BODY.splitlines(keepends=True)
_SELF = "self.self_attention(x, keep=keep)"
_CROSS = "self.cross_attention(x, memory, memory_keep)"


def _layer(body: str) -> str:
    return _with_body(DecoderLayer, _LAYER_BODY, body)


def _layer_inputs(g: torch.Generator, b: int = 2, n: int = 5, m: int = 7, d: int = 12) -> dict:
    return dict(x=randn(g, b, n, d), memory=randn(g, b, m, d))


_LAYER = dict(d=12, heads=3, d_ff=19)


class _Ones(nn.Module):
    """In the place of a sublayer: ones, or what the memory holds."""

    def __init__(self, *_sizes, **_options):
        super().__init__()

    def forward(self, x: Tensor, context: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        looks_at_itself = context is None or torch.equal(context, x)
        return torch.ones_like(x) if looks_at_itself else context.mean(1, keepdim=True).expand_as(x)


def _drops_each_sublayer_once(cls) -> bool:
    """Sublayers that give ones, no norms, p = 0.5: each number is 0 + three independent draws from {0, 2}."""
    torch.manual_seed(0)
    layer = cls(d=48, heads=3, d_ff=8, dropout=0.5, attention=_Ones).train()
    layer.norms = nn.ModuleList(nn.Identity() for _ in range(3))
    layer.feed_forward = nn.Sequential(_Ones(), nn.Identity(), nn.Identity())
    out = layer(x=torch.zeros(4, 64, 48), memory=torch.ones(4, 64, 48))
    shares = [(out == value).float().mean().item() for value in (0, 2, 4, 6)]
    binomial = all(abs(share - fair) < 0.02 for share, fair in zip(shares, (1 / 8, 3 / 8, 3 / 8, 1 / 8), strict=True))
    return binomial and bool(out.mean(-1).std() < 0.5) and bool(out.mean((1, 2)).std() < 0.2)  # whole tokens: 1.7


DECODER_LAYER = Exercise(
    target=DecoderLayer,
    minutes=15,
    given=("__init__",),
    cases=[
        Case("no masks", lambda g: _layer_inputs(g), init=_LAYER),
        Case("a causal mask", lambda g: _layer_inputs(g) | dict(keep=_causal(5)[None]), init=_LAYER),
        Case("padding in the memory", lambda g: _layer_inputs(g) | dict(memory_keep=_mask(g, 2, 1, 7)), init=_LAYER),
        Case(
            "both masks, one for every query",
            lambda g: _layer_inputs(g) | dict(keep=_mask(g, 2, 5, 5), memory_keep=_mask(g, 2, 5, 7)),
            init=_LAYER,
        ),
        Case(
            "memory as long as x",
            lambda g: _layer_inputs(g, m=5) | dict(keep=_causal(5)[None], memory_keep=_mask(g, 2, 5, 5)),
            init=_LAYER,
        ),
        Case(
            "memory as long as x, a mask among x only",
            lambda g: _layer_inputs(g, m=5) | dict(keep=_causal(5)[None]),
            init=_LAYER,
        ),
        Case("dropout at rest, in eval mode", lambda g: _layer_inputs(g), init=_LAYER | dict(dropout=0.5)),
        Case("another attention inside", lambda g: _layer_inputs(g), init=_LAYER | dict(attention=_Flatter)),
        Case("no memory", lambda g: dict(x=randn(g, 2, 5, 12), keep=_causal(5)[None]), init=_LAYER | dict(cross=False)),
        Case(
            "dropout of everything",
            lambda g: _layer_inputs(g),
            init=_LAYER | dict(dropout=1.0),
            call=lambda layer, **inputs: layer.train()(**inputs),
        ),
    ],
    properties=[
        Property(
            "Dropout is right at rest and at p = 1, but not in between. In train mode the output of each of the three "
            "sublayers goes through `self.dropout` once, as a whole: every number by itself becomes 0 with probability "
            "p, or is divided by 1 - p. Nothing else is dropped, neither inside a sublayer nor in memory.",
            _drops_each_sublayer_once,
        ),
    ],
    mistakes=[
        Mistake(
            "You normalise before each sublayer (pre-LN, as GPT does). The paper normalises after the residual sum: "
            "norm(x + sublayer(x)).",
            old=_LAYER_BODY,
            new="""\
        x = x + self.dropout(self.self_attention(self.norms[0](x), keep=keep))
        if memory is not None:
            x = x + self.dropout(self.cross_attention(self.norms[1](x), memory, memory_keep))
        return x + self.dropout(self.feed_forward(self.norms[-1](x)))
""",
        ),
        Mistake(
            "The norm is inside the sum: x + norm(sublayer(x)). The paper adds first and normalises the sum: norm(x + "
            "sublayer(x)).",
            old=_LAYER_BODY,
            new="""\
        x = x + self.norms[0](self.dropout(self.self_attention(x, keep=keep)))
        if memory is not None:
            x = x + self.norms[1](self.dropout(self.cross_attention(x, memory, memory_keep)))
        return x + self.norms[-1](self.dropout(self.feed_forward(x)))
""",
        ),
        Mistake(
            "No residual connections: each sublayer replaces x instead of being added to it, so what a token was is "
            "lost.",
            old=_LAYER_BODY,
            new="""\
        x = self.norms[0](self.dropout(self.self_attention(x, keep=keep)))
        if memory is not None:
            x = self.norms[1](self.dropout(self.cross_attention(x, memory, memory_keep)))
        return self.norms[-1](self.dropout(self.feed_forward(x)))
""",
        ),
        Mistake(
            "No norms: the sums are passed on as they are and grow from layer to layer. Normalise after each sum.",
            old=_LAYER_BODY,
            new="""\
        x = x + self.dropout(self.self_attention(x, keep=keep))
        if memory is not None:
            x = x + self.dropout(self.cross_attention(x, memory, memory_keep))
        return x + self.dropout(self.feed_forward(x))
""",
        ),
        Mistake(
            "The residual of the self-attention is missing: add x before you normalise.",
            old=f"x + self.dropout({_SELF})",
            new=f"self.dropout({_SELF})",
        ),
        Mistake(
            "The residual of the cross-attention is missing: add x before you normalise.",
            old=f"x + self.dropout({_CROSS})",
            new=f"self.dropout({_CROSS})",
        ),
        Mistake(
            "The residual of the feed-forward network is missing: add x before you normalise.",
            old="x + self.dropout(self.feed_forward(x))",
            new="self.dropout(self.feed_forward(x))",
        ),
        Mistake(
            "Every residual adds the layer's first input. Each sublayer adds to what the one before it returned.",
            old=_LAYER_BODY,
            new="""\
        start = x
        x = self.norms[0](start + self.dropout(self.self_attention(x, keep=keep)))
        if memory is not None:
            x = self.norms[1](start + self.dropout(self.cross_attention(x, memory, memory_keep)))
        return self.norms[-1](start + self.dropout(self.feed_forward(x)))
""",
        ),
        Mistake(
            "The sublayers run side by side on the same x and are summed. In the paper each one works on the result "
            "of the one before.",
            old=_LAYER_BODY,
            new="""\
        total = x + self.dropout(self.self_attention(x, keep=keep)) + self.dropout(self.feed_forward(x))
        if memory is not None:
            total = total + self.dropout(self.cross_attention(x, memory, memory_keep))
        return self.norms[-1](total)
""",
        ),
        Mistake(
            "The last norm is missing: the feed-forward sum is returned as it is. Every sublayer is followed by its "
            "norm.",
            old="return self.norms[-1](x + self.dropout(self.feed_forward(x)))",
            new="return x + self.dropout(self.feed_forward(x))",
        ),
        Mistake(
            "The memory is never read: the cross-attention looks at x again. Keys and values come from the memory.",
            old=_CROSS,
            new="self.cross_attention(x)",
        ),
        Mistake(
            "The cross-attention is left out, so the decoder cannot see the source sentence.",
            old=_FIRST + "        if memory is not None:\n" + _SECOND,
            new=_FIRST,
        ),
        Mistake(
            "x and the memory changed places in the cross-attention: x asks (first argument), the memory answers "
            "(context).",
            old=_CROSS,
            new="self.cross_attention(memory, x, memory_keep)",
        ),
        Mistake(
            "The self-attention reads the memory. It is the tokens of x that look at each other here: no context.",
            old=_SELF,
            new="self.self_attention(x, memory, keep)",
        ),
        Mistake(
            "`keep` does not reach the self-attention, so every token sees the future. If you passed it, look at its "
            "place: the attention's second argument is the context, so name it: keep=keep.",
            old=_SELF,
            new="self.self_attention(x)",
        ),
        Mistake(
            "`keep` went in as the second argument of the self-attention, which is its context. Name it: keep=keep.",
            old=_SELF,
            new="self.self_attention(x, keep)",
        ),
        Mistake(
            "`memory_keep` does not reach the cross-attention, so padding in the memory is read.",
            old=_CROSS,
            new="self.cross_attention(x, memory)",
        ),
        Mistake(
            "The cross-attention is masked with `keep`, which is about tokens of x. What may be seen of the memory is "
            "`memory_keep`.",
            old=_CROSS,
            new="self.cross_attention(x, memory, keep)",
        ),
        Mistake(
            "The two masks changed places: `keep` belongs to the self-attention, `memory_keep` to the cross-attention.",
            old=_LAYER_BODY,
            new=_LAYER_BODY.replace("keep=keep", "keep=memory_keep").replace("memory, memory_keep", "memory, keep"),
        ),
        Mistake(
            "The cross-attention runs before the self-attention. The paper's order: self, cross, feed-forward.",
            old=_FIRST + "        if memory is not None:\n" + _SECOND,
            new="        if memory is not None:\n"
            + _SECOND.replace("norms[1]", "norms[0]")
            + "            x = self.norms[1](x + self.dropout(self.self_attention(x, keep=keep)))\n"
            + "        else:\n"
            + "            x = self.norms[0](x + self.dropout(self.self_attention(x, keep=keep)))\n",
        ),
        Mistake(
            "The cross-attention runs before the self-attention, each with its own norm. The paper's order: self, "
            "cross, feed-forward.",
            old=_FIRST + "        if memory is not None:\n" + _SECOND,
            new="        if memory is not None:\n" + _SECOND + _FIRST,
        ),
        Mistake(
            "The feed-forward network runs before the cross-attention. The paper's order: self, cross, feed-forward.",
            old=_LAYER_BODY,
            new="""\
        x = self.norms[0](x + self.dropout(self.self_attention(x, keep=keep)))
        if memory is None:
            return self.norms[-1](x + self.dropout(self.feed_forward(x)))
        x = self.norms[1](x + self.dropout(self.feed_forward(x)))
        return self.norms[-1](x + self.dropout(self.cross_attention(x, memory, memory_keep)))
""",
        ),
        Mistake(
            "One norm serves all sublayers. Each sublayer has its own norm, with its own gain and bias.",
            old=_LAYER_BODY,
            new=_LAYER_BODY.replace("norms[1]", "norms[0]").replace("norms[-1]", "norms[0]"),
        ),
        Mistake(
            "The norms are in the wrong order: the first belongs to self-attention, the second to cross-attention, "
            "the third to the feed-forward network.",
            old=_LAYER_BODY,
            new=_LAYER_BODY.replace("norms[1]", "norms[2]").replace("norms[-1]", "norms[1]"),
        ),
        Mistake(
            "The feed-forward network always takes the third norm. Without memory there are only two, and it takes "
            "the second.",
            old="self.norms[-1]",
            new="self.norms[2]",
        ),
        Mistake(
            "At p = 1 nothing is dropped: dropout is missing, or it drops with probability 1 - p. The contract asks "
            "for norm(x + dropout(sublayer(x))); it does nothing at rate 0, so only training with a rate shows it.",
            old=_LAYER_BODY,
            new=_LAYER_BODY.replace("self.dropout(self.", "(self."),
        ),
        Mistake(
            "Dropout hits the whole sum, the residual included. Only the sublayer's output is dropped: x + "
            "dropout(...).",
            old=_LAYER_BODY,
            new=_LAYER_BODY.replace("(x + self.dropout(self.", "(self.dropout(x + self."),
        ),
        Mistake(
            "Dropout comes after the norm. Drop the sublayer's output, then add x, then normalise.",
            old=_LAYER_BODY,
            new="""\
        x = self.dropout(self.norms[0](x + self.self_attention(x, keep=keep)))
        if memory is not None:
            x = self.dropout(self.norms[1](x + self.cross_attention(x, memory, memory_keep)))
        return self.dropout(self.norms[-1](x + self.feed_forward(x)))
""",
        ),
        Mistake(
            "The feed-forward network always takes the second norm. With memory there are three, and it takes the "
            "last.",
            old="self.norms[-1]",
            new="self.norms[1]",
        ),
        Mistake(
            "The norms run backwards: self-attention takes the first, `self.norms[0]`, the feed-forward network the "
            "last.",
            old=_LAYER_BODY,
            new=_LAYER_BODY.replace("norms[0]", "norms[9]").replace("norms[-1]", "norms[0]").replace("[9]", "[-1]"),
        ),
        Mistake(
            "Your dropout never rests: `F.dropout` drops also after `eval()`, unless you pass its `training` flag. "
            "`self.dropout` knows by itself when to rest.",
            old=_LAYER_BODY,
            new=_LAYER_BODY.replace("self.dropout(", "F.dropout(p=self.dropout.p, input="),
        ),
        Mistake(
            "`self.cross_attention` is never used: `self.self_attention` reads the memory too. Each has weights of its "
            "own.",
            old="self.cross_attention(x, memory",
            new="self.self_attention(x, memory",
        ),
        Mistake(
            "The norm after the self-attention is missing. Every sum is followed by its norm.",
            old=f"self.norms[0](x + self.dropout({_SELF}))",
            new=f"x + self.dropout({_SELF})",
        ),
        Mistake(
            "The norm after the cross-attention is missing. Every sum is followed by its norm.",
            old=f"self.norms[1](x + self.dropout({_CROSS}))",
            new=f"x + self.dropout({_CROSS})",
        ),
    ],
    variants=[
        Variant(
            "one line per operation",
            _layer("""
y = self.self_attention(x, x, keep)
x = x + self.dropout(y)
x = self.norms[0](x)
index = 1
if self.cross_attention is not None:
    y = self.cross_attention(x, context=memory, keep=memory_keep)
    x = x + self.dropout(y)
    x = self.norms[index](x)
    index += 1
y = self.feed_forward(x)
return self.norms[index](self.dropout(y) + x)
"""),
        ),
        Variant(
            "a list of sublayers",
            _layer("""
sublayers = [lambda y: self.self_attention(y, keep=keep)]
if memory is not None:
    sublayers.append(lambda y: self.cross_attention(y, memory, memory_keep))
sublayers.append(self.feed_forward)
for norm, sublayer in zip(self.norms, sublayers):
    x = norm(x + self.dropout(sublayer(x)))
return x
"""),
        ),
        Variant(
            "layer norm as a function",
            _layer("""
def add_and_norm(norm, a, b):
    return F.layer_norm(torch.add(a, self.dropout(b)), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
x = add_and_norm(self.norms[0], x, self.self_attention(x, None, keep))
if memory is not None:
    x = add_and_norm(self.norms[1], x, self.cross_attention(x, memory, memory_keep))
inner, relu, outer = self.feed_forward
return add_and_norm(self.norms[len(self.norms) - 1], x, outer(relu(inner(x))))
"""),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Look at the right half of figure 1 in the paper, from below. Every yellow box is 'Add & Norm': x = "
            "norm(x + sublayer(x)). Write that line for the self-attention first.",
        ),
        Hint(
            "it fails with a mask",
            "`self.self_attention(x, keep=keep)`: name the mask, because the second argument of an attention is its "
            "context. The cross-attention gets all three: x, the memory, and `memory_keep`.",
        ),
        Hint(
            "it fails without memory, or with dropout",
            "When memory is None the middle sublayer is left out and there are only two norms: the feed-forward "
            "network always takes the last one, `self.norms[-1]`. Dropout goes around the sublayer's output alone, "
            "inside the sum.",
        ),
        Hint(
            "show me nearly everything",
            "Three times x = self.norms[i](x + self.dropout(...)), with self.self_attention(x, keep=keep), then (if "
            "there is memory) self.cross_attention(x, memory, memory_keep), then self.feed_forward(x).",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------------------- decoder


_DECODER_BODY = """\
        n = tokens.shape[1]
        x = self.embed(tokens) * math.sqrt(self.d)
        x = self.dropout(x + self.positions(n, self.d).to(x))
        keep = torch.ones(1, n, n, dtype=torch.bool, device=x.device).tril()
        if memory_keep is not None:
            memory_keep = memory_keep[:, None, :]
        for layer in self.layers:
            x = layer(x, memory, keep, memory_keep)
        return self.to_logits(x)
"""
_POSITIONS = "self.positions(n, self.d).to(x)"


def _decoder(body: str) -> str:
    return _with_body(Decoder, _DECODER_BODY, body)


def _decoder_inputs(g: torch.Generator, b: int = 2, n: int = 5, m: int = 7) -> dict:
    return dict(tokens=_tokens(g, b, n), memory=randn(g, b, m, 12))


def _with_a_silent_place(g: torch.Generator) -> dict:
    """Zeros in the memory are no padding: only ``memory_keep`` says what is."""
    inputs = _decoder_inputs(g)
    inputs["memory"][:, 2] = 0
    return inputs


def _other_positions(length: int, d: int) -> Tensor:
    """Not the paper's, to see that the decoder adds the positions it was given."""
    return torch.arange(length * d).reshape(length, d) / 10.0


_DECODER = dict(vocabulary=17, d=12, heads=3, layers=2, d_ff=19)


class _AddsMemory(nn.Module):
    """In the place of a layer: x plus the mean of memory."""

    def __init__(self, *_sizes, **_options):
        super().__init__()

    def forward(self, x: Tensor, memory: Tensor, *_masks, **_named) -> Tensor:
        return x + memory.mean(1, keepdim=True)


def _drops_the_sum_once(cls) -> bool:
    """Embeddings of one, no positions, a memory of ones, p = 0.5: each logit is 1 plus a draw from {0, 2}."""
    torch.manual_seed(0)
    no_positions = lambda length, d: torch.zeros(length, d)  # noqa: E731
    sizes = dict(vocabulary=48, d=48, heads=3, layers=1, d_ff=8)
    decoder = cls(**sizes, dropout=0.5, layer=_AddsMemory, positions=no_positions, tie=False).train()
    with torch.no_grad():
        decoder.embed.weight.fill_(48**-0.5)
        decoder.to_logits.weight.copy_(torch.eye(48))
        out = decoder(tokens=torch.zeros(4, 64, dtype=torch.long), memory=torch.ones(4, 64, 48))
    kept, dropped = ((out - value).abs() < 1e-4 for value in (3, 1))
    return bool((kept | dropped).all()) and abs(kept.float().mean().item() - 0.5) < 0.02


DECODER = Exercise(
    target=Decoder,
    minutes=20,
    given=("__init__",),
    cases=[
        Case("with a memory", lambda g: _decoder_inputs(g), init=_DECODER),
        Case(
            "padding in the memory",
            lambda g: _decoder_inputs(g) | dict(memory_keep=_mask(g, 2, 7)),
            init=_DECODER,
        ),
        Case("a language model, no memory", lambda g: dict(tokens=_tokens(g, 2, 7)), init=_DECODER | dict(cross=False)),
        Case(
            "memory as long as the tokens",
            lambda g: _decoder_inputs(g, m=5) | dict(memory_keep=_mask(g, 2, 5)),
            init=_DECODER,
        ),
        Case(
            "batch, length and heads are all 3",
            lambda g: _decoder_inputs(g, 3, 3, 3) | dict(memory_keep=_mask(g, 3, 3)),
            init=_DECODER,
        ),
        Case("more tokens than before", lambda g: _decoder_inputs(g, 2, 11, 7), init=_DECODER),
        Case("dropout at rest, in eval mode", lambda g: _decoder_inputs(g), init=_DECODER | dict(dropout=0.5)),
        Case("a last layer of its own", lambda g: _decoder_inputs(g), init=_DECODER | dict(tie=False)),
        Case("other positions", lambda g: _decoder_inputs(g), init=_DECODER | dict(positions=_other_positions)),
        Case(
            "dropout of everything",
            lambda g: _decoder_inputs(g),
            init=_DECODER | dict(dropout=1.0),
            call=lambda decoder, **inputs: decoder.train()(**inputs),
        ),
        Case("a memory with a vector of zeros, all allowed", _with_a_silent_place, init=_DECODER),
    ],
    properties=[
        Property(
            "Dropout is right at rest and at p = 1, but not in between. In train mode the sum of embeddings and "
            "positions goes through `self.dropout` once; nothing else is dropped here, neither the embeddings before "
            "nor the memory.",
            _drops_the_sum_once,
        ),
    ],
    mistakes=[
        Mistake(
            "Your causal mask has two axes, (n, n). Layers want (b, n, n), or a 1 for the batch: `keep[None]`.",
            old="torch.ones(1, n, n, dtype=torch.bool",
            new="torch.ones(n, n, dtype=torch.bool",
        ),
        Mistake(
            "Your causal mask holds numbers, and a mask is boolean here: add `.bool()`, or begin with "
            "`torch.ones(1, n, n, dtype=torch.bool)`.",
            old="torch.ones(1, n, n, dtype=torch.bool, device=x.device)",
            new="torch.ones(1, n, n, device=x.device)",
        ),
        Mistake(
            "The mask is strictly causal: a token may not see itself. Then the first token sees nothing at all. Keep "
            "the diagonal.",
            old=".tril()",
            new=".tril(-1)",
        ),
        Mistake(
            "The mask is upside down: token i sees itself and the future. Rows are queries, columns are keys, so the "
            "allowed part is the lower triangle.",
            old=".tril()",
            new=".triu()",
        ),
        Mistake(
            "The mask lets every token see one token too many: the next one, which it is asked to predict. The "
            "diagonal is the last allowed place.",
            old=".tril()",
            new=".tril(1)",
        ),
        Mistake(
            "The mask marks what is forbidden. In this course True means a query *may* look: the lower triangle, with "
            "the diagonal.",
            old=".tril()",
            new=".triu(1)",
        ),
        Mistake(
            "No causal mask reaches the layers: every token sees the whole sequence, the answer included. The loss "
            "falls to nothing in training, and generation fails.",
            old=".tril()",
            new="",
        ),
        Mistake(
            "The embeddings are not multiplied by √d. Their entries start near 1/√d while positions are near 1, so "
            "position drowns meaning.",
            old=" * math.sqrt(self.d)",
            new="",
        ),
        Mistake(
            "The embeddings are divided by √d; the paper multiplies, so that meaning is as loud as position.",
            old="* math.sqrt(self.d)",
            new="/ math.sqrt(self.d)",
        ),
        Mistake(
            "The embeddings are multiplied by d instead of √d.",
            old="math.sqrt(self.d)",
            new="self.d",
        ),
        Mistake(
            "The positions are multiplied by √d too. Scale the embeddings first, then add the positions as they are.",
            old=_DECODER_BODY,
            new=_DECODER_BODY.replace("self.embed(tokens) * math.sqrt(self.d)", "self.embed(tokens)").replace(
                f"x + {_POSITIONS}", f"(x + {_POSITIONS}) * math.sqrt(self.d)"
            ),
        ),
        Mistake(
            "No positions are added, so the decoder knows order only through its mask.",
            old=f"x + {_POSITIONS}",
            new="x",
        ),
        Mistake(
            "Position leaked into the batch index: every token of the first sequence gets position 0, of the second "
            "position 1. The table is (n, d); broadcasting adds it to each sequence as it is.",
            old=_POSITIONS,
            new="self.positions(len(x), self.d).to(x)[:, None]",
        ),
        Mistake(
            "The embeddings are multiplied with the positions. They are added.",
            old=f"x + {_POSITIONS}",
            new=f"x * {_POSITIONS}",
        ),
        Mistake(
            "You call sinusoidal_positions by name. The decoder was handed its positions: use `self.positions`, or "
            "nobody can exchange them.",
            old="self.positions(n",
            new="sinusoidal_positions(n",
        ),
        Mistake(
            "The positions are counted backwards, from the last token. The first token is position 0.",
            old=_POSITIONS,
            new="self.positions(n, self.d).to(x).flip(0)",
        ),
        Mistake(
            "The positions are added again before every layer. The paper adds them once, at the bottom.",
            old="x = layer(x, memory, keep, memory_keep)",
            new="x = layer(x + self.positions(n, self.d).to(x), memory, keep, memory_keep)",
        ),
        Mistake(
            "The padding mask is turned round: `memory_keep` is True where the memory may be read, and layers want it "
            "that way too.",
            old="memory_keep[:, None, :]",
            new="~memory_keep[:, None, :]",
        ),
        Mistake(
            "The padding mask is never passed on, so padding in the memory is read.",
            old="x = layer(x, memory, keep, memory_keep)",
            new="x = layer(x, memory, keep)",
        ),
        Mistake(
            "The padding mask lies along the queries. It is the *keys*, the tokens of the memory, that are closed: "
            "insert the new axis before them, (b, 1, source).",
            old="memory_keep[:, None, :]",
            new="memory_keep[:, :, None]",
        ),
        Mistake(
            "The padding mask lacks an axis: layers want (b, queries, source), with a 1 for all queries. (b, source) "
            "alone meets the wrong axes, or fails. Use `memory_keep[:, None, :]`.",
            old="memory_keep = memory_keep[:, None, :]",
            new="pass",
        ),
        Mistake(
            "The padding of the memory also shuts tokens of the decoder out of its own self-attention. It is about "
            "the memory only.",
            old="            memory_keep = memory_keep[:, None, :]\n",
            new="            memory_keep = memory_keep[:, None, :]\n            keep = keep & memory_keep\n",
        ),
        Mistake(
            "The two masks changed places: `layer(x, memory, keep, memory_keep)` takes the causal one first.",
            old="x = layer(x, memory, keep, memory_keep)",
            new="x = layer(x, memory, memory_keep, keep)",
        ),
        Mistake(
            "The memory never reaches the layers: the decoder writes without having read the source.",
            old="x = layer(x, memory, keep, memory_keep)",
            new="x = layer(x, None, keep)",
        ),
        Mistake(
            "Every layer starts from the embeddings again, so only the last one counts. Feed each layer the result of "
            "the one before.",
            old="            x = layer(x, memory, keep, memory_keep)\n        return self.to_logits(x)",
            new="            y = layer(x, memory, keep, memory_keep)\n        return self.to_logits(y)",
        ),
        Mistake(
            "Only the first layer runs: the return stands inside the loop.",
            old="            x = layer(x, memory, keep, memory_keep)\n        return self.to_logits(x)",
            new="            x = layer(x, memory, keep, memory_keep)\n            return self.to_logits(x)",
        ),
        Mistake(
            "The first layer is used every time. Each layer has its own weights: call `layer`, the loop's variable.",
            old="x = layer(x, memory, keep, memory_keep)",
            new="x = self.layers[0](x, memory, keep, memory_keep)",
        ),
        Mistake(
            "A residual around whole layers: x + layer(x). The layer adds its residuals by itself.",
            old="x = layer(x, memory, keep, memory_keep)",
            new="x = x + layer(x, memory, keep, memory_keep)",
        ),
        Mistake(
            "You return probabilities. The contract asks for logits: cross-entropy applies log-softmax itself, and "
            "softmax twice trains badly.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x).softmax(-1)",
        ),
        Mistake(
            "You return log-probabilities. The contract asks for the logits as they come from `to_logits`.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x).log_softmax(-1)",
        ),
        Mistake(
            "Only the last place comes back. Training wants the logits of every place; who generates picks the last "
            "one.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x)[:, -1]",
        ),
        Mistake(
            "`to_logits` is missing: these are vectors of width d, not one number per word of the vocabulary.",
            old="return self.to_logits(x)",
            new="return x",
        ),
        Mistake(
            "You multiply with the embedding matrix by hand. That equals `to_logits` only while the two are tied; "
            "with tie=False the last layer has weights of its own.",
            old="return self.to_logits(x)",
            new="return x @ self.embed.weight.T",
        ),
        Mistake(
            "No dropout after embeddings and positions; section 5.4 of the paper applies it to their sum.",
            old="self.dropout(x + self.positions(n, self.d).to(x))",
            new="x + self.positions(n, self.d).to(x)",
        ),
        Mistake(
            "Dropout hits the embeddings before the positions are added. The paper drops from the sum of both.",
            old="self.dropout(x + self.positions(n, self.d).to(x))",
            new="self.dropout(x) + self.positions(n, self.d).to(x)",
        ),
        Mistake(
            "Your dropout never rests: `F.dropout` drops also after `eval()`, unless you pass its `training` flag. "
            "`self.dropout` knows by itself when to rest.",
            old="self.dropout(x + self.positions(n, self.d).to(x))",
            new="F.dropout(x + self.positions(n, self.d).to(x), self.dropout.p)",
        ),
        Mistake(
            "Your causal mask has four axes. Layers want three, (b, n, n), with a 1 for the batch; the axis for the "
            "heads is added inside the attention.",
            old="torch.ones(1, n, n, dtype=torch.bool",
            new="torch.ones(1, 1, n, n, dtype=torch.bool",
        ),
    ],
    variants=[
        Variant(
            "positions compared",
            _decoder("""
length = tokens.size(1)
where = torch.arange(length, device=tokens.device)
causal = (where[None, :] <= where[:, None]).unsqueeze(0)
h = self.embed(tokens) * self.d**0.5 + self.positions(length, self.d).to(tokens.device).unsqueeze(0)
h = self.dropout(h)
mask = memory_keep.unsqueeze(1) if memory_keep is not None else None
for layer in self.layers:
    h = layer(h, memory=memory, keep=causal, memory_keep=mask)
return self.to_logits(h)
"""),
        ),
        Variant(
            "full masks for every batch element",
            _decoder("""
b, n = tokens.shape
causal = ~torch.triu(torch.ones(b, n, n), diagonal=1).bool()
if memory_keep is not None:
    memory_keep = memory_keep[:, None, :].expand(b, n, memory.shape[1])
x = F.embedding(tokens, self.embed.weight) * torch.tensor(float(self.d)).sqrt()
x = x + torch.stack([self.positions(n, self.d)] * b)
x = self.dropout(x)
for i in range(len(self.layers)):
    x = self.layers[i](x, memory, causal, memory_keep)
return F.linear(x, self.to_logits.weight)
"""),
        ),
        Variant(
            "functools.reduce",
            _decoder("""
import functools
n = tokens.shape[1]
keep = torch.tensor([[[j <= i for j in range(n)] for i in range(n)]])
start = self.dropout(math.sqrt(self.d) * self.embed(tokens) + self.positions(n, self.d))
source = None if memory_keep is None else rearrange(memory_keep, "b s -> b 1 s")
return self.to_logits(functools.reduce(lambda x, layer: layer(x, memory, keep, source), self.layers, start))
""").replace("rearrange(memory_keep", "einops.rearrange(memory_keep"),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Five steps, bottom to top: embed and scale by √d, add positions, build the two masks, run the layers, "
            "`to_logits`. Print shapes on the way: x stays (b, n, d) up to the last line.",
        ),
        Hint(
            "my loss falls to zero far too soon",
            "Then tokens see the answer. The mask is (1, n, n), rows are queries: `torch.ones(1, n, n, "
            "dtype=torch.bool).tril()` is True on and below the diagonal. Pass it as the third argument of every "
            "layer.",
        ),
        Hint(
            "the case with padding fails",
            "`memory_keep` is (b, source), one answer per token of the memory. A layer wants (b, queries, source), or "
            "a 1 for the queries: `memory_keep[:, None, :]`, if it is given at all.",
        ),
        Hint(
            "show me nearly everything",
            "x = self.embed(tokens) * math.sqrt(self.d); x = self.dropout(x + self.positions(n, self.d).to(x)); keep "
            "as in hint 2; for layer in self.layers: x = layer(x, memory, keep, memory_keep); return "
            "self.to_logits(x).",
        ),
    ],
)


EXERCISES = [ATTENTION, MULTI_HEAD_ATTENTION, POSITIONS, DECODER_LAYER, DECODER]
