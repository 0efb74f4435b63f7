"""The exercises of lesson 05, CLIP: a loss, a tower, a classifier made of words, and a loss for repeated captions."""

import inspect
import math
import textwrap

import torch
from torch import Tensor, nn

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.clip import TextTower, clip_block, clip_loss, multi_positive_loss, zero_shot
from course_lib.nn.attention import MultiHeadAttention

# ---------------------------------------------------------------------------------------------------------- clip_loss


def _pair(g: torch.Generator, b: int, d: int, log_scale: float) -> dict[str, Tensor]:
    """Embeddings of very different lengths, so that a forgotten normalisation shows."""
    image, text = (randn(g, b, d) * (0.3 + 3 * torch.rand(b, 1, generator=g)) for _ in range(2))
    return dict(image=image, text=text, log_scale=torch.tensor(log_scale))


def _short(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with embeddings a thousand times shorter: their length must not matter."""
    return {name: x / 1000 if x.dim() else x for name, x in inputs.items()}


def _opposite(g: torch.Generator, log_scale: float) -> dict[str, Tensor]:
    """Every partner looks the other way and somebody else fits perfectly, so right pairs get hardly any probability."""
    direction = randn(g, 3, 5)
    image = torch.cat([direction, -direction])
    return dict(image=image, text=-image + 0.1 * randn(g, 6, 5), log_scale=torch.tensor(log_scale))


_EPSILONS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)  # what people add to a probability before its logarithm


def _loss(body: str) -> str:
    return "def clip_loss(image, text, log_scale):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")


_UNIT = """
i, t = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
b = len(image)
"""

CLIP_LOSS = Exercise(
    target=clip_loss,
    minutes=12,
    cases=[
        Case("7 pairs of width 5", lambda g: _pair(g, 7, 5, 1.3)),
        Case("5 pairs of width 11", lambda g: _pair(g, 5, 11, 2.66)),
        Case("as many pairs as channels", lambda g: _pair(g, 5, 5, 0.7)),
        Case("a scale below 1", lambda g: _pair(g, 7, 3, -0.9)),
        Case("logits in the hundreds", lambda g: _pair(g, 7, 5, 6.0)),
        Case("logits in the thousands", lambda g: _pair(g, 7, 5, 7.6)),
        Case("partners that look the other way", lambda g: _opposite(g, 4.1)),
        Case("embeddings of tiny length", lambda g: _short(_pair(g, 7, 5, 1.3))),
    ],
    properties=[
        Property(
            "Pictures and captions play the same part: exchanging the two inputs must not change the loss.",
            lambda f: torch.allclose(
                f(*_pair(torch.Generator().manual_seed(3), 7, 5, 1.0).values()),
                f(
                    *(lambda p: (p["text"], p["image"], p["log_scale"]))(
                        _pair(torch.Generator().manual_seed(3), 7, 5, 1.0)
                    )
                ),
                atol=1e-4,
            ),
        ),
    ],
    mistakes=[
        Mistake(
            "Only pictures choose here: texts never choose images. The loss has a second half, a softmax along the "
            "*columns*: the cross-entropy of the transposed logits. (Transposing after the softmax changes nothing.)",
            old="(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new="F.cross_entropy(logits, target)",
        ),
        Mistake(
            "Only captions choose here: pictures never choose a caption. The other half of the loss is the "
            "cross-entropy along the rows.",
            old="(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new="F.cross_entropy(logits.T, target)",
        ),
        Mistake(
            "Rows and columns are both there, but one of them counts twice: the same direction is added to itself. "
            "Transpose the logits for the second half.",
            old="F.cross_entropy(logits.T, target)) / 2",
            new="F.cross_entropy(logits, target))",
        ),
        Mistake(
            "Embeddings go in as they are, so their length leaks into the similarity and a tower can win by shouting. "
            "Scale both to length 1.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="image @ text.T",
        ),
        Mistake(
            "Only the pictures are scaled to length 1; long captions still shout. Normalise both.",
            old="F.normalize(text, dim=-1)",
            new="text",
        ),
        Mistake(
            "Only the captions are scaled to length 1. Normalise both, so that the product is a cosine.",
            old="F.normalize(image, dim=-1)",
            new="image",
        ),
        Mistake(
            "You normalise along the batch (dim=0): examples rescale each other. Each embedding gets length 1 along "
            "its own channels, the last axis.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="F.normalize(image, dim=0) @ F.normalize(text, dim=0).T",
        ),
        Mistake(
            "The embeddings are divided by the square of their length. Length 1 means dividing by the norm, the root "
            "of the sum of squares.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="(image / image.square().sum(-1, keepdim=True)) @ (text / text.square().sum(-1, keepdim=True)).T",
        ),
        Mistake(
            "The embeddings are divided by the sum of their absolute values (or p=1). A cosine needs the Euclidean "
            "length.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="F.normalize(image, p=1, dim=-1) @ F.normalize(text, p=1, dim=-1).T",
        ),
        Mistake(
            "You turn embeddings into probabilities (softmax over the channels) instead of scaling them to length 1.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="image.softmax(-1) @ text.softmax(-1).T",
        ),
        Mistake(
            "The norm lacks `keepdim=True`: dividing (b, d) by (b,) lines the lengths up with the channels.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="(image / image.norm(dim=-1)) @ (text / text.norm(dim=-1)).T",
        ),
        Mistake(
            "log_scale is a logarithm; multiply by its exp. As it is, a scale of 14 enters as 2.7, and one below 1 as "
            "a negative number.",
            old="log_scale.exp()",
            new="log_scale",
        ),
        Mistake(
            "You divide by exp(log_scale). It is the logarithm of the *inverse* temperature, so the cosines are "
            "multiplied.",
            old="log_scale.exp() * F.normalize(image, dim=-1)",
            new="(-log_scale).exp() * F.normalize(image, dim=-1)",
        ),
        Mistake(
            "You divide by log_scale. Multiply the cosines by exp(log_scale).",
            old="log_scale.exp() * F.normalize(image, dim=-1)",
            new="(1 / log_scale) * F.normalize(image, dim=-1)",
        ),
        Mistake(
            "The temperature is never used: cosines lie in [-1, 1], and softmax of so small numbers is nearly "
            "uniform. Multiply by exp(log_scale).",
            old="log_scale.exp() * F.normalize(image, dim=-1)",
            new="F.normalize(image, dim=-1)",
        ),
        Mistake(
            "The scale is fixed at 1/0.07. That is only where it starts; it is learned, so use log_scale.",
            old="log_scale.exp()",
            new="(1 / 0.07)",
        ),
        Mistake(
            "The scale is applied twice, once to each embedding. Multiply the cosine by exp(log_scale) once.",
            old="log_scale.exp()",
            new="(2 * log_scale).exp()",
        ),
        Mistake(
            "You clamp the scale to 100 inside the loss. The contract asks for it as it is: clamping belongs after the "
            "optimizer's step, because a clamped value gets no gradient and could never come back.",
            old="log_scale.exp()",
            new="log_scale.exp().clamp(max=100)",
        ),
        Mistake(
            "You clamp log_scale from below too: a scale under 1 is allowed. The contract asks for it as it is, with "
            "no clamp at either end.",
            old="log_scale.exp()",
            new="log_scale.clamp(0, math.log(100)).exp()",
        ),
        Mistake(
            "You divide by √d, as attention does. These are cosines of unit vectors, which do not grow with d; the "
            "learned scale is all they need.",
            old="F.normalize(text, dim=-1).T\n",
            new="F.normalize(text, dim=-1).T / math.sqrt(image.shape[-1])\n",
        ),
        Mistake(
            "You take exp of the cosines' scale too late: logits are exponentiated before they reach cross_entropy, "
            "which applies its own exp.",
            old="    target =",
            new="    logits = logits.exp()\n    target =",
        ),
        Mistake(
            "The values are right, but log_scale gets no gradient, so the temperature is never learned. Drop the "
            "`.detach()`, `.item()` or `math.exp` on the way.",
            old="log_scale.exp()",
            new="log_scale.detach().exp()",
        ),
        Mistake(
            "The captions are detached, so the text tower never learns from this loss.",
            old="F.normalize(text, dim=-1).T",
            new="F.normalize(text.detach(), dim=-1).T",
        ),
        Mistake(
            "The lengths are cut out of the gradient (`.detach()` or `.data` on the norm). The values are right, but "
            "the gradient then pulls along the embedding too, where it should have no effect.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="(image / image.norm(dim=-1, keepdim=True).detach()) @ "
            "(text / text.norm(dim=-1, keepdim=True).detach()).T",
        ),
        Mistake(
            "A double softmax: probabilities go into cross_entropy, which wants logits and applies log-softmax itself.",
            old="(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new="(F.cross_entropy(logits.softmax(-1), target) + F.cross_entropy(logits.T.softmax(-1), target)) / 2",
        ),
        Mistake(
            "A double softmax: the rows are turned into probabilities, and those go into both cross_entropies. It "
            "wants the logits.",
            old="    target =",
            new="    logits = logits.softmax(dim=-1)\n    target =",
        ),
        Mistake(
            "The rows are right, the columns are not: you normalised the rows (log_softmax) first and then used the "
            "transpose of *that* for the captions. Start both halves from the raw logits.",
            code=_loss(
                _UNIT
                + """
log_p = (log_scale.exp() * i @ t.T).log_softmax(dim=-1)
target = torch.arange(b)
return (F.cross_entropy(log_p, target) + F.cross_entropy(log_p.T, target)) / 2
"""
            ),
        ),
        Mistake(
            "The two directions are summed. The loss is their mean: divide by 2.",
            old="F.cross_entropy(logits.T, target)) / 2",
            new="F.cross_entropy(logits.T, target))",
        ),
        Mistake(
            "Summed over the batch: the loss grows with b. Take the mean over pictures, and over captions.",
            old="(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new='(F.cross_entropy(logits, target, reduction="sum") + '
            'F.cross_entropy(logits.T, target, reduction="sum")) / 2',
        ),
        Mistake(
            "The loss has the wrong sign: training would drive pairs apart. It is *minus* the log-probability of the "
            "right partner.",
            old="return (F",
            new="return -(F",
        ),
        Mistake(
            "All targets are 0: everybody is told to choose the first caption. Picture i belongs to caption i, so the "
            "targets count 0, 1, 2 and so on.",
            old="torch.arange(len(logits), device=logits.device)",
            new="torch.zeros(len(logits), dtype=torch.long)",
        ),
        Mistake(
            "All targets are 1. A target of cross_entropy is the *index* of the right answer, which is i for pair i, "
            "not a yes.",
            old="torch.arange(len(logits), device=logits.device)",
            new="torch.ones(len(logits), dtype=torch.long)",
        ),
        Mistake(
            "The targets count backwards. Picture i belongs to caption i.",
            old="torch.arange(len(logits), device=logits.device)",
            new="torch.arange(len(logits) - 1, -1, -1)",
        ),
        Mistake(
            "Pictures are compared with pictures. The logits are picture times caption.",
            old="F.normalize(text, dim=-1).T",
            new="F.normalize(image, dim=-1).T",
        ),
        Mistake(
            "You only pull pairs together (1 - cosine of each pair). Without the other captions of the batch to push "
            "away, mapping everything to one point is perfect.",
            code=_loss(_UNIT + "return (1 - (i * t).sum(-1)).mean() + 0 * log_scale"),
        ),
        Mistake(
            "One softmax runs over all b·b pairs at once. Every picture has its own choice among b captions, and every "
            "caption among b pictures.",
            code=_loss(
                _UNIT
                + """
logits = log_scale.exp() * i @ t.T
return -logits.flatten().log_softmax(0).view(b, b).diagonal().mean()
"""
            ),
        ),
        Mistake(
            "The right partner is missing from the denominator: softmax runs over *all* b candidates, the right one "
            "among them.",
            code=_loss(
                _UNIT
                + """
logits = log_scale.exp() * i @ t.T
others = logits.masked_fill(torch.eye(b, dtype=torch.bool), -1e9)
rows = others.logsumexp(1) - logits.diagonal()
columns = others.logsumexp(0) - logits.diagonal()
return (rows.mean() + columns.mean()) / 2
"""
            ),
        ),
        Mistake(
            "Each pair is judged alone, yes or no, by a sigmoid: that is SigLIP's loss. Here the captions of a batch "
            "compete in a softmax.",
            code=_loss(
                _UNIT
                + """
logits = log_scale.exp() * i @ t.T
return F.binary_cross_entropy_with_logits(logits, torch.eye(b))
"""
            ),
        ),
        Mistake(
            "You add up probabilities of the right pairs and take the log last. Take the log of each, then the mean: "
            "log of a mean is not the mean of logs.",
            code=_loss(
                _UNIT
                + """
logits = log_scale.exp() * i @ t.T
rows, columns = logits.softmax(1).diagonal().mean(), logits.softmax(0).diagonal().mean()
return -(rows.log() + columns.log()) / 2
"""
            ),
        ),
        Mistake(
            "You take the logarithm of a softmax. A probability below 1e-45 is rounded to 0, and log(0) is -inf: once "
            "the right partner is far behind, the loss is inf. `log_softmax` and `cross_entropy` never compute the "
            "probability.",
            old="(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new="-(logits.softmax(1).diagonal().log() + logits.softmax(0).diagonal().log()).mean() / 2",
        ),
        *[
            Mistake(
                f"You add {eps:g} to a probability before its logarithm (or clamp it there). That keeps inf away but "
                f"caps the loss of a pair at {-math.log(eps):.3g}, and beyond that nobody learns. `log_softmax` and "
                "`cross_entropy` need no such help.",
                old="(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
                new=f"-((logits.softmax(1).diagonal() + {eps!r}).log() + "
                f"(logits.softmax(0).diagonal() + {eps!r}).log()).mean() / 2",
            )
            for eps in _EPSILONS
        ],
        Mistake(
            "You write log(sum(exp(logits))) out. Its exp() overflows to inf once a logit passes 88, and so does the "
            "loss. `torch.logsumexp` subtracts the maximum first.",
            old="(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new="((logits.exp().sum(0).log() + logits.exp().sum(1).log()) / 2 - logits.diagonal()).mean()",
        ),
        Mistake(
            "Short embeddings do not get length 1: the eps in your norm (or cosine) is as large as they are. Any "
            "length above 0 is allowed; the default of `F.normalize`, 1e-12, is small enough.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="F.normalize(image, dim=-1, eps=1e-2) @ F.normalize(text, dim=-1, eps=1e-2).T",
        ),
        *[
            Mistake(
                f"You divide by norm + {eps:g}, which makes short embeddings shorter than 1. Any length above 0 is "
                "allowed: divide by the norm itself, or add 1e-12 as `F.normalize` does.",
                old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
                new=f"(image / (image.norm(dim=-1, keepdim=True) + {eps!r})) @ "
                f"(text / (text.norm(dim=-1, keepdim=True) + {eps!r})).T",
            )
            for eps in (1e-6, 1e-5, 1e-4)
        ],
        Mistake(
            "You take exp() of raw logits, which overflows once one passes 88 and gives nan. log_softmax, logsumexp "
            "and cross_entropy subtract the maximum first.",
            code=_loss(
                _UNIT
                + """
e = (log_scale.exp() * i @ t.T).exp()
rows = e.diagonal() / e.sum(1)
columns = e.diagonal() / e.sum(0)
return -(rows.log().mean() + columns.log().mean()) / 2
"""
            ),
        ),
        Mistake(
            "You average the table with its transpose and choose once. Picture i with caption j and picture j with "
            "caption i are different pairs; average the two *losses*.",
            old="    target =",
            new="    logits = (logits + logits.T) / 2\n    target =",
        ),
        Mistake(
            "The norm runs over the whole batch at once: `image.norm()` without `dim` is one number for all. Each "
            "embedding has its own length.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="(image / image.norm()) @ (text / text.norm()).T",
        ),
        Mistake(
            "The scale reaches only the rows. Both directions choose by the same logits, scaled once.",
            old="    logits = log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T\n"
            "    target = torch.arange(len(logits), device=logits.device)\n"
            "    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new="    cosine = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T\n"
            "    target = torch.arange(len(cosine))\n"
            "    rows = F.cross_entropy(log_scale.exp() * cosine, target)\n"
            "    return (rows + F.cross_entropy(cosine.T, target)) / 2",
        ),
        Mistake(
            "You divide by b although cross_entropy has taken the mean already.",
            old="F.cross_entropy(logits.T, target)) / 2",
            new="F.cross_entropy(logits.T, target)) / 2 / len(logits)",
        ),
        Mistake(
            "The embeddings are standardised (a layer norm: mean 0, spread 1) instead of scaled to length 1.",
            old="F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T",
            new="F.layer_norm(image, image.shape[-1:]) @ F.layer_norm(text, text.shape[-1:]).T",
        ),
        Mistake(
            "The loss comes back once per pair. The contract asks for one number, the mean.",
            old="(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new='(F.cross_entropy(logits, target, reduction="none") + '
            'F.cross_entropy(logits.T, target, reduction="none")) / 2',
        ),
        Mistake(
            "The logits come back instead of the loss: one cross-entropy along the rows and one along the columns are "
            "still to do.",
            old="return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2",
            new="return logits",
        ),
    ],
    variants=[
        Variant(
            "two loops",
            _loss("""
b = image.shape[0]
scale = log_scale.exp()
logits = torch.stack([
    torch.stack([scale * (image[i] @ text[j]) / (image[i].norm() * text[j].norm()) for j in range(b)])
    for i in range(b)
])
total = 0.0
for i in range(b):
    total = total - logits[i].log_softmax(0)[i] - logits[:, i].log_softmax(0)[i]
return total / (2 * b)
"""),
        ),
        Variant(
            "einsum and logsumexp",
            _loss("""
image = image / image.norm(dim=-1, keepdim=True)
text = text / text.norm(dim=-1, keepdim=True)
s = torch.einsum("id,jd->ij", image, text) * torch.exp(log_scale)
right = torch.diagonal(s)
return 0.5 * ((s.logsumexp(1) - right).mean() + (s.logsumexp(0) - right).mean())
"""),
        ),
        Variant(
            "cosine_similarity, soft targets",
            _loss("""
cosine = F.cosine_similarity(image[:, None], text[None, :], dim=-1)
logits = torch.exp(log_scale) * cosine
eye = torch.eye(len(image))
return 0.5 * F.cross_entropy(logits, eye) + 0.5 * F.cross_entropy(logits.t(), eye)
"""),
        ),
        Variant(
            "nll of two log_softmaxes, captions first",
            _loss("""
logits = F.normalize(text) @ F.normalize(image).mT * log_scale.exp()
labels = torch.arange(logits.size(0))
losses = [F.nll_loss(F.log_softmax(x, dim=1), labels) for x in (logits, logits.mT)]
return torch.stack(losses).mean()
"""),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Make the (b, b) table first: row i, column j is how well picture i fits caption j. Then it is "
            "classification: row i should choose column i.",
        ),
        Hint(
            "what are the targets?",
            "In row 0 the right column is 0, in row 1 it is 1: `torch.arange(b)`. Reading the table by columns "
            "(`logits.T`) the targets are the same.",
        ),
        Hint(
            "my loss is near ln b and does not move",
            "Cosines lie between -1 and 1. Without the scale, softmax over them is nearly uniform, and uniform costs "
            "ln b. Multiply by `log_scale.exp()`.",
        ),
        Hint(
            "show me nearly everything",
            "logits = log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T; then the mean of "
            "F.cross_entropy(logits, arange) and F.cross_entropy(logits.T, arange).",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------- text tower

_SIZES = dict(vocabulary=23, length=13, d=12, heads=3, layers=2, d_out=7)


def _captions(g: torch.Generator, b: int, n: int, behind: str = "zeros", vocabulary: int = 23) -> Tensor:
    """Rows of random ids (0 too) with <eos> at places of their own; behind it zeros, or anything."""
    tokens = torch.randint(0, vocabulary - 1, (b, n), generator=g)
    if behind == "anything":
        tokens = torch.randint(0, vocabulary, (b, n), generator=g)
        tokens[:, -2:] = torch.tensor([vocabulary - 1, 3])  # a second <eos>, and then not even zeros
    end = torch.randint(1, n - 2, (b,), generator=g)
    end[: min(b, n - 3)] = torch.randperm(n - 3, generator=g)[: min(b, n - 3)] + 1
    for row, at in zip(tokens, end.tolist(), strict=True):
        row[:at] = torch.randint(0, vocabulary - 1, (at,), generator=g)
        row[at // 2] = 0  # id 0 is a word like any other inside a caption
        row[at] = vocabulary - 1
        if behind == "zeros":
            row[at + 1 :] = 0
    return tokens


def _full(g: torch.Generator, b: int, n: int) -> Tensor:
    tokens = torch.randint(0, 22, (b, n), generator=g)
    tokens[:, -1] = 22
    return tokens


class _Mean(nn.Module):
    """Another block: each token takes the mean of what it may see. Wants a boolean mask of three axes."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.mix = nn.Linear(d, d)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        b, n, _ = x.shape
        if keep.dtype != torch.bool or keep.shape not in ((1, n, n), (b, n, n)):
            raise TypeError(f"a block wants keep as booleans of shape (1, n, n), got {keep.dtype} {tuple(keep.shape)}")
        return x + self.mix((keep.float() / keep.sum(-1, keepdim=True)) @ x)


def _readable_block(d: int, heads: int) -> nn.Module:
    """A block with the readable attention, which inverts its mask and so wants booleans."""
    return clip_block(d, heads, MultiHeadAttention)


def _features(tower: nn.Module, tokens: Tensor) -> Tensor:
    return tower.features(tokens)


_FEATURES_BODY = """\
        n = tokens.shape[1]
        if n > self.length:
            raise ValueError(f"a caption of {n} tokens is too long for a text tower of length={self.length}")
        x = self.embed(tokens) + self.positions[:n]
        keep = torch.ones(1, n, n, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, keep=keep)
        return self.norm(x)
"""
_FORWARD_BODY = """\
        x = self.features(tokens)
        end = tokens.argmax(dim=-1)  # <eos> is the largest id; among equals argmax takes the first
        return self.project(x[torch.arange(len(x), device=x.device), end])
"""
_END = "tokens.argmax(dim=-1)"
_POOL = "self.project(x[torch.arange(len(x), device=x.device), end])"


def _tower(features: str, forward: str) -> str:
    source = inspect.getsource(TextTower)
    for old, new in ((_FEATURES_BODY, features), (_FORWARD_BODY, forward)):
        assert source.count(old) == 1, "the body of TextTower has changed: adapt the exercise"
        source = source.replace(old, textwrap.indent(textwrap.dedent(new).strip("\n"), 8 * " ") + "\n")
    return source


TEXT_TOWER = Exercise(
    target=TextTower,
    minutes=20,
    given=("__init__",),
    cases=[
        Case("captions of several lengths", lambda g: dict(tokens=_captions(g, 5, 11)), init=_SIZES),
        Case("anything behind <eos>", lambda g: dict(tokens=_captions(g, 5, 11, "anything")), init=_SIZES),
        Case("<eos> at the end of every row", lambda g: dict(tokens=_full(g, 3, 7)), init=_SIZES),
        Case("as long as the tower allows", lambda g: dict(tokens=_captions(g, 5, 13)), init=_SIZES),
        Case("as many captions as tokens", lambda g: dict(tokens=_captions(g, 7, 7)), init=_SIZES),
        Case(
            "another vocabulary",
            lambda g: dict(tokens=_captions(g, 3, 7, vocabulary=11)),
            init=_SIZES | dict(vocabulary=11, layers=3),
        ),
        Case("the features of every token", lambda g: dict(tokens=_captions(g, 5, 11)), init=_SIZES, call=_features),
        Case(
            "features: as many captions as tokens",
            lambda g: dict(tokens=_captions(g, 7, 7, "anything")),
            init=_SIZES,
            call=_features,
        ),
        Case(
            "the readable attention",
            lambda g: dict(tokens=_captions(g, 5, 11)),
            init=_SIZES | dict(block=_readable_block),
        ),
        Case("other blocks", lambda g: dict(tokens=_captions(g, 5, 11)), init=_SIZES | dict(block=_Mean)),
        Case("a caption that is too long", lambda g: dict(tokens=_captions(g, 3, 14)), init=_SIZES),
        Case("features of one that is too long", lambda g: dict(tokens=_full(g, 3, 17)), init=_SIZES, call=_features),
    ],
    mistakes=[
        Mistake(
            "You pooled padding: the last position holds `<eos>` only in the longest caption. Look for `<eos>` in "
            "each row.",
            old=_END,
            new="torch.full((len(x),), -1)",
        ),
        Mistake(
            "The feature of the first token comes out. In a causal tower it has read nothing but itself. (Did you look "
            "for a fixed id, such as the Tokenizer's? `<eos>` is vocabulary - 1 of *this* tower.)",
            old=_END,
            new="torch.zeros(len(x), dtype=torch.long)",
        ),
        Mistake(
            "You average over all positions, padding included. Only the feature at `<eos>` is asked for.",
            old=_POOL,
            new="self.project(x.mean(dim=1))",
        ),
        Mistake(
            "You average over the tokens up to `<eos>`. CLIP takes the one feature at `<eos>`, which has read all the "
            "others.",
            old=_POOL,
            new="self.project(torch.stack([row[: e + 1].mean(0) for row, e in zip(x, end.tolist())]))",
        ),
        Mistake(
            "You take the maximum over positions. Only the feature at `<eos>` is asked for.",
            old=_POOL,
            new="self.project(x.amax(dim=1))",
        ),
        Mistake(
            "You take the token before `<eos>`. The tower is causal, so `<eos>` itself has read the whole caption.",
            old=_END,
            new="tokens.argmax(dim=-1) - 1",
        ),
        Mistake(
            "You take the token behind `<eos>`, which is padding.",
            old=_END,
            new="(tokens.argmax(dim=-1) + 1).clamp(max=tokens.shape[1] - 1)",
        ),
        Mistake(
            "You take the *last* `<eos>` of a row. What follows the first one is padding, whatever it is.",
            old=_END,
            new="tokens.shape[1] - 1 - tokens.flip(-1).argmax(dim=-1)",
        ),
        Mistake(
            "You count the ids that are not 0. Inside a caption 0 is an id like any other here, and behind `<eos>` may "
            "stand anything: look for `<eos>` itself.",
            old=_END,
            new="(tokens != 0).sum(dim=-1) - 1",
        ),
        Mistake(
            "You look for the last id that is not 0. Behind `<eos>` may stand anything: look for `<eos>` itself.",
            old=_END,
            new="tokens.shape[1] - 1 - (tokens != 0).int().flip(-1).argmax(dim=-1)",
        ),
        Mistake(
            "You look for the first 0 and take the token before it. A caption may have no padding, and an id 0 may "
            "stand inside: look for `<eos>` itself.",
            old=_END,
            new="(tokens == 0).int().argmax(dim=-1) - 1",
        ),
        Mistake(
            "You search along the batch (dim=0): each *column* is asked where its `<eos>` is. Search along each row.",
            old=_END,
            new="tokens.argmax(dim=0)",
        ),
        Mistake(
            "You search the whole batch at once: `argmax()` without `dim` counts through all rows.",
            old=_END,
            new="tokens.argmax().expand(len(x))",
        ),
        Mistake(
            "You look for the smallest id. `<eos>` is the largest.",
            old=_END,
            new="tokens.argmin(dim=-1)",
        ),
        Mistake(
            "`x[:, end]` takes the positions of *all* rows out of every row. Pair row i with its own position: "
            "`x[torch.arange(b), end]`.",
            old="x[torch.arange(len(x), device=x.device), end]",
            new="x[:, end]",
        ),
        Mistake(
            "No causal mask reaches the blocks: tokens behind `<eos>` influence the embedding, so padding changes what "
            "a caption means.",
            old=".tril()",
            new="",
        ),
        Mistake(
            "The blocks are called without a mask. They take `keep=`, and None lets every token see everything, the "
            "padding too.",
            old="x = block(x, keep=keep)",
            new="x = block(x)",
        ),
        Mistake(
            "The mask is upside down: a token sees itself and what comes later. Rows are the tokens that look, so the "
            "allowed part is the lower triangle.",
            old=".tril()",
            new=".triu()",
        ),
        Mistake(
            "The mask marks what is forbidden. In this course True means a token *may* look: the lower triangle with "
            "the diagonal.",
            old=".tril()",
            new=".triu(1)",
        ),
        Mistake(
            "The mask is strictly causal: a token may not see itself, and the first one sees nothing. Keep the "
            "diagonal.",
            old=".tril()",
            new=".tril(-1)",
        ),
        Mistake(
            "The mask lets every token see one place too many, the next one.",
            old=".tril()",
            new=".tril(1)",
        ),
        Mistake(
            "The mask has two axes, (n, n). Blocks want three, (1, n, n): add `[None]`.",
            old="torch.ones(1, n, n, dtype",
            new="torch.ones(n, n, dtype",
        ),
        Mistake(
            "The mask holds ones and zeros as numbers. A float mask is *added* to the scores, which forbids nothing. "
            "Make it boolean: `.bool()`.",
            old="torch.ones(1, n, n, dtype=torch.bool, device=x.device)",
            new="torch.ones(1, n, n, device=x.device)",
        ),
        Mistake(
            "The mask holds 0 and -inf, as `nn.Transformer` wants it. Blocks of this course take booleans, True where "
            "a token may look.",
            old="torch.ones(1, n, n, dtype=torch.bool, device=x.device).tril()",
            new='torch.full((1, n, n), float("-inf")).triu(1)',
        ),
        Mistake(
            "You hide id 0 as padding. The contract says no other mask: padding stands behind `<eos>`, where the "
            "causal mask hides it already, and inside a caption 0 is an id like any other.",
            old="dtype=torch.bool, device=x.device).tril()",
            new="dtype=torch.bool, device=x.device).tril() & (tokens != 0)[:, None, :]",
        ),
        Mistake(
            "No positions are added. The causal mask tells a little about order, but where a word stands is lost.",
            old=" + self.positions[:n]",
            new="",
        ),
        Mistake(
            "The positions are multiplied with the embeddings; they are added.",
            old="self.embed(tokens) + self.positions[:n]",
            new="self.embed(tokens) * self.positions[:n]",
        ),
        Mistake(
            "All rows of `self.positions` are added, also those beyond the caption. Take the first n: "
            "`self.positions[:n]`.",
            old="self.positions[:n]",
            new="self.positions",
        ),
        Mistake(
            "The *last* n positions are taken. The first token is position 0, however short the caption.",
            old="self.positions[:n]",
            new="self.positions[-n:]",
        ),
        Mistake(
            "The positions run along the batch: all tokens of the first caption get position 0. Positions belong to "
            "tokens; (n, d) broadcasts by itself.",
            old="self.positions[:n]",
            new="self.positions[torch.arange(len(tokens)) % self.length][:, None]",
        ),
        Mistake(
            "The embeddings are multiplied by √d, as in lesson 02. CLIP adds positions to them as they are.",
            old="self.embed(tokens) +",
            new="self.embed(tokens) * self.embed.embedding_dim**0.5 +",
        ),
        Mistake(
            "The final norm is missing: a pre-norm stream must be normalised by whoever reads it.",
            old="return self.norm(x)",
            new="return x",
        ),
        Mistake(
            "The norm stands before the blocks. Text towers have it after the last block; only the image tower of CLIP "
            "has one before.",
            old=_FEATURES_BODY,
            new=_FEATURES_BODY.replace(
                "x = self.embed(tokens) + self.positions[:n]",
                "x = self.norm(self.embed(tokens) + self.positions[:n])",
            ).replace("return self.norm(x)", "return x"),
        ),
        Mistake(
            "Pooling is right, but `features` itself returns the stream before the norm. The norm belongs to the "
            "features: others read them too.",
            code=_tower(
                _FEATURES_BODY.replace("return self.norm(x)", "return x"),
                _FORWARD_BODY.replace("self.features(tokens)", "self.norm(self.features(tokens))"),
            ),
        ),
        Mistake(
            "The norm is applied twice, in `features` and again in `forward`.",
            old="x = self.features(tokens)",
            new="x = self.norm(self.features(tokens))",
        ),
        Mistake(
            "The projection is missing: the result has the width of the tower, not that of the shared space.",
            old="return self.project(x[torch.arange(len(x), device=x.device), end])",
            new="return x[torch.arange(len(x), device=x.device), end]",
        ),
        Mistake(
            "The result is scaled to length 1. That is the loss's business; the contract asks for the projection as it "
            "is.",
            old="return self.project(x[torch.arange(len(x), device=x.device), end])",
            new="return nn.functional.normalize(self.project(x[torch.arange(len(x), device=x.device), end]), dim=-1)",
        ),
        Mistake(
            "`features` is projected already. The contract asks for the normalised stream of width d; `forward` "
            "projects.",
            code=_tower(
                _FEATURES_BODY.replace("return self.norm(x)", "return self.project(self.norm(x))"),
                "x = self.features(tokens)\nreturn x[torch.arange(len(x)), tokens.argmax(-1)]",
            ),
        ),
        Mistake(
            "All positions come back. One vector per caption is asked for: the one at `<eos>`.",
            old="return self.project(x[torch.arange(len(x), device=x.device), end])",
            new="return self.project(x)",
        ),
        Mistake(
            "Only the first block runs: the return stands inside the loop.",
            old="            x = block(x, keep=keep)\n        return self.norm(x)",
            new="            x = block(x, keep=keep)\n            return self.norm(x)",
        ),
        Mistake(
            "Every block starts from the embeddings again, so only the last one counts. Feed each the result of the "
            "one before.",
            old="            x = block(x, keep=keep)\n        return self.norm(x)",
            new="            y = block(x, keep=keep)\n        return self.norm(y)",
        ),
        Mistake(
            "The first block is used every time. Call the loop's variable.",
            old="x = block(x, keep=keep)",
            new="x = self.blocks[0](x, keep=keep)",
        ),
        Mistake(
            "The blocks run from the last to the first.",
            old="in self.blocks",
            new="in reversed(self.blocks)",
        ),
        Mistake(
            "A residual around whole blocks: x + block(x). The blocks add their residuals themselves.",
            old="x = block(x, keep=keep)",
            new="x = x + block(x, keep=keep)",
        ),
        Mistake(
            "The norm stands inside the loop. It is the final norm: once, after the last block; the stream between "
            "blocks stays as it is.",
            old=_FEATURES_BODY,
            new=_FEATURES_BODY.replace("x = block(x, keep=keep)", "x = self.norm(block(x, keep=keep))").replace(
                "return self.norm(x)", "return x"
            ),
        ),
        Mistake(
            "You set the embedding of id 0 to zero (its position stays). Inside a caption 0 is an id like any other, "
            "and padding behind `<eos>` harms nobody.",
            old="self.embed(tokens) + self.positions[:n]",
            new="self.embed(tokens) * (tokens != 0)[..., None] + self.positions[:n]",
        ),
        Mistake(
            "`padding_idx=0` in the embedding: id 0 never learns, since its row gets no gradient. Inside a caption 0 "
            "is an id like any other.",
            old="nn.Embedding(vocabulary, d)",
            new="nn.Embedding(vocabulary, d, padding_idx=0)",
        ),
        Mistake(
            "`self.positions` is a plain tensor: it is no weight, nobody trains it, and `state_dict` does not hold it. "
            "Wrap it in `nn.Parameter`.",
            old="nn.Parameter(torch.randn(length, d) * 0.01)",
            new="torch.randn(length, d) * 0.01",
        ),
        Mistake(
            "The argument `block` is ignored: every tower gets `clip_block`. Make the blocks with `block(d, heads)`.",
            old="block(d, heads) for",
            new="clip_block(d, heads) for",
        ),
        Mistake(
            "The mask is as large as the tower allows, whatever the caption's length. Cut it to the n tokens that are "
            "there: (1, n, n).",
            old="torch.ones(1, n, n, dtype",
            new="torch.ones(1, self.length, self.length, dtype",
        ),
        Mistake(
            "You add up the features of *all* `<eos>` of a row. What follows the first one is padding, even where it "
            "is another `<eos>`.",
            old=_POOL,
            new="self.project((x * (tokens == self.embed.num_embeddings - 1)[..., None]).sum(dim=1))",
        ),
        Mistake(
            "`x[tokens == eos]` picks every `<eos>` of the batch, and a row may hold several: the result then has more "
            "rows than captions. Take the first one of each row.",
            old=_POOL,
            new="self.project(x[tokens == self.embed.num_embeddings - 1])",
        ),
        Mistake(
            "You set embedding and position of id 0 to zero. Inside a caption 0 is an id like any other, and padding "
            "behind `<eos>` harms nobody.",
            old="self.embed(tokens) + self.positions[:n]",
            new="(self.embed(tokens) + self.positions[:n]) * (tokens != 0)[..., None]",
        ),
        Mistake(
            "Nothing refuses a caption that is too long: adding the positions breaks with a message about sizes. Raise "
            "a ValueError that says what is wrong.",
            old=_FEATURES_BODY,
            new=_FEATURES_BODY.replace(
                "        if n > self.length:\n"
                '            raise ValueError(f"a caption of {n} tokens is too long for a text tower of '
                'length={self.length}")\n',
                "",
            ),
        ),
        Mistake(
            "`x[:, end].diagonal(...)` leaves the axes as (d, b): diagonal puts the new axis last. "
            "`x[torch.arange(b), end]` needs no detour.",
            old=_POOL,
            new="self.project(x[:, end].diagonal(dim1=0, dim2=1))",
        ),
        Mistake(
            "The norm is applied after every block. It is the final norm: once, after the last block.",
            old="x = block(x, keep=keep)",
            new="x = self.norm(block(x, keep=keep))",
        ),
        Mistake(
            "`tokens.max(...)` hands out the id of `<eos>`, not its place. `argmax` counts places.",
            old=_END,
            new="tokens.max(dim=-1).values",
        ),
        Mistake(
            "The positions are looked up by token id. Position i belongs to the i-th token, whatever it is.",
            old="self.positions[:n]",
            new="self.positions[tokens]",
        ),
        Mistake(
            "The positions are added again before every block. They are added once, at the bottom.",
            old="x = block(x, keep=keep)",
            new="x = block(x + self.positions[:n], keep=keep)",
        ),
        Mistake(
            "The mask has four axes. A block wants three, (1, n, n); its attention adds the one for the heads.",
            old="torch.ones(1, n, n, dtype",
            new="torch.ones(1, 1, n, n, dtype",
        ),
        Mistake(
            "You also close what stands behind `<eos>`. The caption cannot see it anyway, and the contract says no "
            "other mask: `features` of the places behind look at themselves too.",
            old="dtype=torch.bool, device=x.device).tril()",
            new="dtype=torch.bool, device=x.device).tril() & "
            "(torch.arange(n) <= tokens.argmax(-1)[:, None])[:, None, :]",
        ),
        Mistake(
            "You hide what stands behind `<eos>`, except from itself. The caption cannot see it anyway, and the "
            "contract says no other mask: in `features`, places behind `<eos>` look at all earlier ones, too.",
            old="dtype=torch.bool, device=x.device).tril()",
            new="dtype=torch.bool, device=x.device).tril() & ((torch.arange(n) <= tokens.argmax(-1)[:, None])[:, None]"
            " | torch.eye(n, dtype=torch.bool))",
        ),
        Mistake(
            "Captions that are too long are cut silently, `<eos>` and all. The contract asks for a ValueError.",
            old=_FEATURES_BODY,
            new=_FEATURES_BODY.replace(
                '            raise ValueError(f"a caption of {n} tokens is too long for a text tower of '
                'length={self.length}")\n',
                "            n, tokens = self.length, tokens[:, : self.length]\n",
            ),
        ),
        Mistake(
            "A caption as long as the tower is refused too. n = self.length still fits; refuse n > self.length.",
            old="if n > self.length:",
            new="if n >= self.length:",
        ),
    ],
    variants=[
        Variant(
            "<eos> compared, gather",
            _tower(
                """
n = tokens.size(1)
if n > self.positions.shape[0]:
    raise ValueError(f"n={n} is longer than {self.positions.shape[0]}")
where = torch.arange(n, device=tokens.device)
causal = (where[None, :] <= where[:, None])[None]
h = self.embed(tokens) + self.positions[where]
for block in self.blocks:
    h = block(h, causal)
return self.norm(h)
""",
                """
h = self.features(tokens)
end = (tokens == self.embed.num_embeddings - 1).int().argmax(dim=1)
index = end[:, None, None].expand(-1, 1, h.shape[-1])
return self.project(h.gather(1, index).squeeze(1))
""",
            ),
        ),
        Variant(
            "project everything, pick by a loop",
            _tower(
                """
b, n = tokens.shape
if self.length < n:
    raise ValueError("too long")
x = F.embedding(tokens, self.embed.weight)
x = x + self.positions[None, :n].expand(b, -1, -1)
mask = ~torch.triu(torch.ones(b, n, n), diagonal=1).bool()
for i in range(len(self.blocks)):
    x = self.blocks[i](x, keep=mask)
return F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
""",
                """
x = self.features(tokens) @ self.project.weight.T
rows = []
for row, ids in zip(x, tokens.tolist()):
    rows.append(row[ids.index(max(ids))])
return torch.stack(rows)
""",
            ),
        ),
        Variant(
            "a one-hot of the place",
            _tower(
                """
n = tokens.shape[1]
if n > self.length:
    raise ValueError(f"{n} > {self.length}")
x = self.embed(tokens) + self.positions.narrow(0, 0, n)
keep = torch.tensor([[[j <= i for j in range(n)] for i in range(n)]])
import functools
return self.norm(functools.reduce(lambda h, block: block(h, keep=keep), self.blocks, x))
""",
                """
is_end = tokens == tokens.max()
first = is_end & (is_end.cumsum(1) == 1)
return self.project(torch.einsum("bn,bnd->bd", first.float(), self.features(tokens)))
""",
            ),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "`features` is the decoder of lesson 02 without cross-attention and without a last layer: embeddings, "
            "positions, a causal mask of shape (1, n, n), the blocks, the norm. `forward` picks one position per row "
            "and projects it.",
        ),
        Hint(
            "why <eos>, and not the last position?",
            "In a causal tower a token has read what stands before it. The last *word* has not read `<eos>`, the first "
            "has read nothing; positions behind `<eos>` are padding. `<eos>` stands at another place in every row.",
        ),
        Hint(
            "how do I find <eos>?",
            "It is the largest id, so `tokens.argmax(dim=-1)` is its place, one number per row. Of several equal ones "
            "argmax takes the first.",
        ),
        Hint(
            "my result has three axes",
            "`x[:, end]` takes every place from every row. Index both axes at once: `x[torch.arange(b), end]`.",
        ),
        Hint(
            "show me nearly everything",
            "features: refuse n > self.length; x = self.embed(tokens) + self.positions[:n]; keep = torch.ones(1, n, n, "
            "dtype=torch.bool).tril(); x = block(x, keep=keep) for each block; self.norm(x). forward: "
            "self.project(self.features(tokens)[torch.arange(b), tokens.argmax(-1)]).",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------------------- zero-shot


def _prompts(g: torch.Generator, b: int, classes: int, templates: int, d: int, log_scale: float) -> dict[str, Tensor]:
    """Embeddings of very different lengths; the templates of a class resemble each other."""
    image = randn(g, b, d) * (0.3 + 3 * torch.rand(b, 1, generator=g))
    centre = randn(g, classes, 1, d) + randn(g, classes, templates, d)
    prompts = centre * (0.3 + 3 * torch.rand(classes, templates, 1, generator=g))
    return dict(image=image, prompts=prompts, log_scale=torch.tensor(log_scale))


def _without_gradients(f, **inputs):
    """Where softmax is nearly certain its gradient is a difference of equal numbers: rounding noise."""
    with torch.no_grad():
        return f(**inputs)


def _classify(body: str) -> str:
    return "def zero_shot(image, prompts, log_scale):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")


ZERO_SHOT = Exercise(
    target=zero_shot,
    minutes=10,
    cases=[
        Case("3 classes, 2 templates", lambda g: _prompts(g, 5, 3, 2, 7, 1.3)),
        Case("2 classes, 5 templates", lambda g: _prompts(g, 7, 2, 5, 11, 0.9)),
        Case("one template", lambda g: _prompts(g, 5, 3, 1, 7, 1.7)),
        Case("a single class", lambda g: _prompts(g, 5, 1, 3, 7, 1.3)),
        Case("all sizes are 5", lambda g: _prompts(g, 5, 5, 5, 5, 1.3)),
        Case("embeddings of tiny length", lambda g: _short(_prompts(g, 5, 3, 2, 7, 1.3))),
        Case("a scale below 1", lambda g: _prompts(g, 7, 3, 2, 5, -0.8)),
        Case("logits in the hundreds", lambda g: _prompts(g, 5, 3, 2, 7, 6.0), call=_without_gradients),
    ],
    mistakes=[
        Mistake(
            "The ensemble shrank: a mean of unit vectors is shorter than 1, and shorter the less its templates agree. "
            "Scale the mean to length 1 again. (Averaging cosines, logits or log-probabilities of the templates is the "
            "same thing.)",
            old="F.normalize(F.normalize(prompts, dim=-1).mean(dim=1), dim=-1)",
            new="F.normalize(prompts, dim=-1).mean(dim=1)",
        ),
        Mistake(
            "A long prompt outvotes the others: you average embeddings as they are, or scaled by one number for all "
            "templates of a class. Scale each prompt to length 1 before the mean.",
            old="F.normalize(F.normalize(prompts, dim=-1).mean(dim=1), dim=-1)",
            new="F.normalize(prompts.mean(dim=1), dim=-1)",
        ),
        Mistake(
            "The prompts are never scaled to length 1, neither before nor after the mean. Long classes win.",
            old="F.normalize(F.normalize(prompts, dim=-1).mean(dim=1), dim=-1)",
            new="prompts.mean(dim=1)",
        ),
        Mistake(
            "`F.normalize` without `dim` works along axis 1, and that is the templates here. Each embedding gets "
            "length 1 along its channels: `dim=-1`.",
            old="F.normalize(prompts, dim=-1)",
            new="F.normalize(prompts)",
        ),
        Mistake(
            "The pictures are not scaled to length 1, so the length of an embedding sharpens or flattens its answer.",
            old="F.normalize(image, dim=-1)",
            new="image",
        ),
        Mistake(
            "The pictures are normalised along the batch (dim=0): they rescale each other.",
            old="F.normalize(image, dim=-1)",
            new="F.normalize(image, dim=0)",
        ),
        Mistake(
            "You averaged over the classes, not over the templates: axis 0 counts classes. Take the mean over axis 1.",
            old=".mean(dim=1)",
            new=".mean(dim=0)",
        ),
        Mistake(
            "The class vectors are divided by one number for all: `norm()` without `dim`. Each class gets length 1 "
            "along its own channels.",
            code=_classify("""
c = F.normalize(prompts, dim=-1).mean(dim=1)
return (log_scale.exp() * F.normalize(image, dim=-1) @ (c / c.norm()).T).softmax(-1)
"""),
        ),
        Mistake(
            "With a single class, `squeeze` drops its axis, and the pictures compete with each other. The result is "
            "(b, classes), also (b, 1).",
            code=_classify("""
c = F.normalize(F.normalize(prompts, dim=-1).mean(dim=1), dim=-1).squeeze(0)
return (log_scale.exp() * F.normalize(image, dim=-1) @ c.T).softmax(-1)
"""),
        ),
        Mistake(
            "Short embeddings do not get length 1: the eps in your norm (or cosine) is as large as they are. Any "
            "length above 0 is allowed; the default of `F.normalize`, 1e-12, is small enough.",
            code=_classify("""
c = F.normalize(F.normalize(prompts, dim=-1, eps=1e-2).mean(dim=1), dim=-1)
return (log_scale.exp() * F.normalize(image, dim=-1, eps=1e-2) @ c.T).softmax(-1)
"""),
        ),
        *[
            Mistake(
                f"You divide by norm + {eps:g}, which makes short embeddings shorter than 1. Any length above 0 is "
                "allowed: divide by the norm itself, or add 1e-12 as `F.normalize` does.",
                code=_classify(f"""
unit = lambda x: x / (x.norm(dim=-1, keepdim=True) + {eps!r})
return (log_scale.exp() * unit(image) @ unit(unit(prompts).mean(dim=1)).T).softmax(-1)
"""),
            )
            for eps in (1e-6, 1e-5, 1e-4)
        ],
        Mistake(
            "The class vectors are normalised along the classes (dim=0). Each gets length 1 along its channels.",
            old="F.normalize(F.normalize(prompts, dim=-1).mean(dim=1), dim=-1)",
            new="F.normalize(F.normalize(prompts, dim=-1).mean(dim=1), dim=0)",
        ),
        Mistake(
            "Only the first template of each class is used. The class is the mean of all its prompts.",
            old=".mean(dim=1)",
            new="[:, 0]",
        ),
        Mistake(
            "You classify with each template and average the *probabilities*. The paper averages the embeddings, which "
            "gives one vector per class and costs nothing at test time.",
            code=_classify("""
i, p = F.normalize(image, dim=-1), F.normalize(prompts, dim=-1)
logits = log_scale.exp() * torch.einsum("bd,ktd->btk", i, p)
return logits.softmax(-1).mean(1)
"""),
        ),
        Mistake(
            "You take the median over the templates, number by number. The class vector is their mean.",
            old=".mean(dim=1)",
            new=".median(dim=1).values",
        ),
        Mistake(
            "You divide by √d, as attention does. Cosines do not grow with d; the learned scale is all they need.",
            old="@ classes.T",
            new="@ classes.T / math.sqrt(image.shape[-1])",
        ),
        Mistake(
            "The best template decides for its class (a maximum). The class vector is the *mean* of its prompts.",
            code=_classify("""
i, p = F.normalize(image, dim=-1), F.normalize(prompts, dim=-1)
return (log_scale.exp() * torch.einsum("bd,ktd->bkt", i, p).amax(-1)).softmax(-1)
"""),
        ),
        Mistake(
            "Every prompt competes on its own, and the probabilities of a class are added up. Average the prompts "
            "first; the classes compete.",
            code=_classify("""
i, p = F.normalize(image, dim=-1), F.normalize(prompts, dim=-1)
logits = log_scale.exp() * i @ p.flatten(0, 1).T
return logits.softmax(-1).view(len(i), *p.shape[:2]).sum(-1)
"""),
        ),
        Mistake(
            "Mixed classes, not templates: the reshape takes (classes, templates) for (templates, classes). The "
            "templates of one class lie next to each other.",
            code=_classify("""
k, t, d = prompts.shape
p = F.normalize(prompts, dim=-1).reshape(t, k, d).mean(dim=0)
return (log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(p, dim=-1).T).softmax(-1)
"""),
        ),
        Mistake(
            "Softmax runs over the pictures: they compete for each class, and what a picture is depends on the others. "
            "Let the classes compete, along the last axis.",
            old="softmax(dim=-1)",
            new="softmax(dim=0)",
        ),
        Mistake(
            "Softmax runs over pictures and classes together. Each picture has probabilities of its own that sum to 1.",
            old="logits.softmax(dim=-1)",
            new="logits.flatten().softmax(0).view_as(logits)",
        ),
        Mistake(
            "You return the logits. The contract asks for probabilities: a softmax over the classes.",
            old="logits.softmax(dim=-1)",
            new="logits",
        ),
        Mistake(
            "You return log-probabilities; the contract asks for probabilities.",
            old="logits.softmax(dim=-1)",
            new="logits.log_softmax(dim=-1)",
        ),
        Mistake(
            "You return the winner. The contract asks for the probability of every class.",
            old="logits.softmax(dim=-1)",
            new="logits.argmax(dim=-1)",
        ),
        Mistake(
            "A yes or no for every class (sigmoid). Here the classes compete in a softmax.",
            old="logits.softmax(dim=-1)",
            new="logits.sigmoid()",
        ),
        Mistake(
            "The logits are divided by their sum. That is no softmax: negative ones make nonsense. Use exp, or "
            "`softmax`.",
            old="logits.softmax(dim=-1)",
            new="logits / logits.sum(-1, keepdim=True)",
        ),
        Mistake(
            "Softmax twice: probabilities went through it again and came out nearly uniform.",
            old="logits.softmax(dim=-1)",
            new="logits.softmax(dim=-1).softmax(dim=-1)",
        ),
        Mistake(
            "The scale is missing: cosines lie in [-1, 1], so their softmax is nearly uniform. Multiply by "
            "exp(log_scale).",
            old="log_scale.exp() * ",
            new="",
        ),
        Mistake(
            "log_scale is a logarithm; multiply by its exp.",
            old="log_scale.exp()",
            new="log_scale",
        ),
        Mistake(
            "You divide by exp(log_scale). It is the logarithm of the *inverse* temperature: multiply.",
            old="log_scale.exp() * F.normalize(image, dim=-1)",
            new="(-log_scale).exp() * F.normalize(image, dim=-1)",
        ),
        Mistake(
            "You clamp the scale at 100. The contract says: as it is.",
            old="log_scale.exp()",
            new="log_scale.exp().clamp(max=100)",
        ),
        Mistake(
            "The scale is fixed at 1/0.07, where training starts. Use log_scale.",
            old="log_scale.exp()",
            new="(1 / 0.07)",
        ),
        Mistake(
            "The cosines of all templates are summed: with five templates the logits are five times too large. Average "
            "the embeddings, then scale to length 1.",
            code=_classify("""
i, p = F.normalize(image, dim=-1), F.normalize(prompts, dim=-1)
return (log_scale.exp() * torch.einsum("bd,ktd->bk", i, p)).softmax(-1)
"""),
        ),
        Mistake(
            "The norm runs over the whole batch at once: `norm()` without `dim` is one number for all pictures. Each "
            "has its own length.",
            old="F.normalize(image, dim=-1)",
            new="(image / image.norm())",
        ),
        Mistake(
            "The scale comes after the softmax, so rows sum to exp(log_scale). It belongs on the cosines.",
            old="logits.softmax(dim=-1)",
            new="log_scale.exp() * (logits / log_scale.exp()).softmax(dim=-1)",
        ),
        Mistake(
            "The scale is applied twice. Multiply the cosine by exp(log_scale) once.",
            old="log_scale.exp()",
            new="(2 * log_scale).exp()",
        ),
        Mistake(
            "You take exp() of raw logits, which overflows to inf and gives nan. softmax subtracts the maximum first.",
            old="logits.softmax(dim=-1)",
            new="logits.exp() / logits.exp().sum(-1, keepdim=True)",
        ),
        Mistake(
            "The result is transposed: one row per picture, one column per class.",
            old="logits.softmax(dim=-1)",
            new="logits.softmax(dim=-1).T",
        ),
    ],
    variants=[
        Variant(
            "loops",
            _classify("""
rows = []
for picture in image:
    cosines = []
    for templates in prompts:
        mean = sum(p / p.norm() for p in templates) / len(templates)
        cosines.append(picture @ mean / (picture.norm() * mean.norm()))
    rows.append(torch.softmax(log_scale.exp() * torch.stack(cosines), dim=0))
return torch.stack(rows)
"""),
        ),
        Variant(
            "a sum instead of the mean, einsum",
            _classify("""
unit = prompts / prompts.norm(dim=2, keepdim=True)
weights = unit.sum(1)
weights = weights / weights.norm(dim=1, keepdim=True)
cosine = torch.einsum("bd,kd->bk", image / image.norm(dim=1, keepdim=True), weights)
scaled = cosine * torch.exp(log_scale)
e = torch.exp(scaled - scaled.max(1, keepdim=True).values)
return e / e.sum(1, keepdim=True)
"""),
        ),
        Variant(
            "cosine_similarity",
            _classify("""
means = F.normalize(prompts, dim=2).mean(1)
cosine = F.cosine_similarity(image.unsqueeze(1), means.unsqueeze(0), dim=2)
return F.softmax(log_scale.exp() * cosine, dim=1)
"""),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "First make a classifier: one vector per class, shape (classes, d). Then it is `image @ classes.T`, a "
            "linear layer whose weights were written in English.",
        ),
        Hint(
            "how often do I normalise?",
            "Three times: every prompt before the mean, the mean of each class afterwards, and every picture. Always "
            "along the last axis: `F.normalize(x, dim=-1)`.",
        ),
        Hint(
            "my probabilities are all alike",
            "Cosines lie between -1 and 1. Multiply by `log_scale.exp()` before the softmax.",
        ),
        Hint(
            "show me nearly everything",
            "classes = F.normalize(F.normalize(prompts, dim=-1).mean(dim=1), dim=-1); logits = log_scale.exp() * "
            "F.normalize(image, dim=-1) @ classes.T; softmax over the last axis.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------- several positives


def _repeated(g: torch.Generator, ids: list[int], size: float = 3.0) -> dict[str, Tensor]:
    order = torch.randperm(len(ids), generator=g)
    return dict(logits=size * randn(g, len(ids), len(ids)), ids=torch.tensor(ids)[order])


def _several(body: str) -> str:
    return "def multi_positive_loss(logits, ids):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")


_SAME = "same = (ids[:, None] == ids[None, :]).float()\n"
_BOTH = "(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2"

MULTI_POSITIVE = Exercise(
    target=multi_positive_loss,
    minutes=15,
    cases=[
        Case("some captions repeat", lambda g: _repeated(g, [0, 0, 1, 1, 1, 2, 3])),
        Case("ids of any size and sign", lambda g: _repeated(g, [10**12, -5, -5, -5, 10**12, 70, 8, 8, 8, 8, 0])),
        Case(
            "ids that floats or 32 bits cannot tell apart",
            lambda g: _repeated(g, [2**24, 2**24, 2**24 + 1, 2**53, 2**53 + 1, 10**6, 10**6 + 1, 7, 7, 2**32 + 7, -1]),
        ),
        Case("ids that differ by their sign", lambda g: _repeated(g, [5, 5, -5, 3, -3, -3, 0])),
        Case("no caption repeats", lambda g: _repeated(g, [4, 9, 2, 7, 5])),
        Case("all captions are the same", lambda g: _repeated(g, [3, 3, 3, 3, 3])),
        Case("one pair", lambda g: _repeated(g, [6])),
        Case("logits in the hundreds", lambda g: _repeated(g, [0, 0, 0, 1, 2, 2, 4], size=120.0)),
        Case(
            "logits near 200, all of them",
            lambda g: (lambda x: x | dict(logits=x["logits"] + 200))(_repeated(g, [0, 0, 1, 1, 1, 2, 3])),
        ),
    ],
    properties=[
        Property(
            "The order of the pairs must not matter: shuffling rows, columns and ids together keeps the loss.",
            lambda f: (lambda logits, ids, p: torch.allclose(f(logits, ids), f(logits[p][:, p], ids[p]), atol=1e-4))(
                randn(torch.Generator().manual_seed(1), 5, 5),
                torch.tensor([0, 1, 1, 2, 0]),
                torch.tensor([3, 0, 4, 2, 1]),
            ),
        ),
    ],
    mistakes=[
        Mistake(
            "The targets are not normalised: a picture with three right captions counts three times. Split its "
            "probability over the positives, so that every row sums to 1.",
            old="same / same.sum(dim=-1, keepdim=True)",
            new="same",
        ),
        Mistake(
            "Only pictures choose. Columns need targets too: add the cross-entropy of the transposed logits, with a "
            "softmax over *their* axis. (Transposing log-probabilities changes nothing.)",
            old=_BOTH,
            new="F.cross_entropy(logits, target)",
        ),
        Mistake(
            "Only captions choose. Rows need their cross-entropy too.",
            old=_BOTH,
            new="F.cross_entropy(logits.T, target)",
        ),
        Mistake(
            "You use the ids as targets. A target is a *place in the batch*, and an id says nothing about where its "
            "captions stand.",
            code=_several("return (F.cross_entropy(logits, ids) + F.cross_entropy(logits.T, ids)) / 2"),
        ),
        Mistake(
            "Only the diagonal counts as right: this is the plain loss of CLIP, and equal captions are still treated "
            "as mistakes. `ids` must enter the targets.",
            code=_several("""
target = torch.arange(len(logits))
return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
"""),
        ),
        Mistake(
            "Only the first caption with the same id counts as right (argmax of the comparison). All of them share the "
            "target.",
            code=_several(
                _SAME
                + """
target = same.argmax(dim=1)
return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
"""
            ),
        ),
        Mistake(
            "A picture's own caption is left out of its targets. All captions with its id are right, its own among "
            "them.",
            code=_several(
                _SAME
                + """
same = same - torch.eye(len(ids))
target = same / same.sum(-1, keepdim=True).clamp(min=1)
return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
"""
            ),
        ),
        Mistake(
            "You take the log of the *summed* probability of all right captions: then any one of them is enough, and "
            "the others may be pushed away. The targets share evenly: the mean of the log-probabilities.",
            code=_several(
                _SAME
                + """
closed = same == 0
rows = logits.logsumexp(1) - logits.masked_fill(closed, float("-inf")).logsumexp(1)
columns = logits.logsumexp(0) - logits.masked_fill(closed, float("-inf")).logsumexp(0)
return (rows.mean() + columns.mean()) / 2
"""
            ),
        ),
        Mistake(
            "You average over all right pairs of the batch at once, so captions that repeat often weigh more. First "
            "the mean within each row, then over the rows.",
            code=_several(
                _SAME
                + """
rows = -(same * logits.log_softmax(1)).sum() / same.sum()
columns = -(same * logits.log_softmax(0)).sum() / same.sum()
return (rows + columns) / 2
"""
            ),
        ),
        Mistake(
            "You divide by the size of the batch, not by the number of right captions of each row: targets must sum to "
            "1.",
            old="same.sum(dim=-1, keepdim=True)",
            new="len(ids)",
        ),
        Mistake(
            "All targets together sum to 1. Each row is a choice of its own: its targets sum to 1.",
            old="same.sum(dim=-1, keepdim=True)",
            new="same.sum()",
        ),
        Mistake(
            "The targets went through a softmax, which leaves wrong captions with a share (e⁰ = 1). Divide by the "
            "row's sum instead.",
            old="same / same.sum(dim=-1, keepdim=True)",
            new="same.softmax(dim=-1)",
        ),
        Mistake(
            "The row sums lack `keepdim=True`: they are lined up with the columns. Divide each row by its own sum.",
            old="same.sum(dim=-1, keepdim=True)",
            new="same.sum(dim=-1)[torch.arange(len(ids)).flip(0)]",
        ),
        Mistake(
            "The two directions are summed. The loss is their mean: divide by 2.",
            old="F.cross_entropy(logits.T, target)) / 2",
            new="F.cross_entropy(logits.T, target))",
        ),
        Mistake(
            "Summed over the batch. Take the mean over pictures, and over captions.",
            old=_BOTH,
            new='(F.cross_entropy(logits, target, reduction="sum") + '
            'F.cross_entropy(logits.T, target, reduction="sum")) / 2',
        ),
        Mistake(
            "You subtract the entropy of the targets (a KL divergence, `F.kl_div`). The contract asks for the "
            "cross-entropy, floor included.",
            old=_BOTH,
            new=_BOTH + " - torch.special.entr(target).sum(-1).mean()",
        ),
        Mistake(
            "`F.kl_div` averages over all n·n entries by default and subtracts the targets' entropy. The contract asks "
            "for a cross-entropy, a mean over rows.",
            old=_BOTH,
            new="(F.kl_div(logits.log_softmax(-1), target) + F.kl_div(logits.T.log_softmax(-1), target)) / 2",
        ),
        Mistake(
            "The mean runs over all n·n entries. Sum over the captions of a row first; the mean is over the n rows.",
            old=_BOTH,
            new="-((target * logits.log_softmax(-1)).mean() + (target * logits.T.log_softmax(-1)).mean()) / 2",
        ),
        Mistake(
            "A double softmax: cross_entropy wants logits and applies log-softmax itself.",
            old=_BOTH,
            new="(F.cross_entropy(logits.softmax(-1), target) + F.cross_entropy(logits.T.softmax(-1), target)) / 2",
        ),
        Mistake(
            "Each pair is judged alone by a sigmoid. Here the captions of a batch compete in a softmax.",
            old=_BOTH,
            new="F.binary_cross_entropy_with_logits(logits, same)",
        ),
        Mistake(
            "Each pair is judged alone by a sigmoid, with soft targets. Here the captions of a batch compete in a "
            "softmax.",
            old=_BOTH,
            new="F.binary_cross_entropy_with_logits(logits, target)",
        ),
        Mistake(
            "You mask the other captions with the same id out of the softmax, and keep the diagonal as the only right "
            "answer. That is a remedy too, but the contract asks to share the target.",
            code=_several(
                _SAME
                + """
n = len(ids)
others = (same > 0) & ~torch.eye(n, dtype=torch.bool)
logits = logits.masked_fill(others, float("-inf"))
target = torch.arange(n)
return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
"""
            ),
        ),
        Mistake(
            "Repeated captions are thrown out of the batch. All pairs count; those of equal id share their target.",
            code=_several("""
seen, first = set(), []
for i, x in enumerate(ids.tolist()):
    if x not in seen:
        seen.add(x)
        first.append(i)
logits = logits[first][:, first]
target = torch.arange(len(first))
return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
"""),
        ),
        Mistake(
            "`F.one_hot(ids)` wants small ids from 0 up. Here they are any integers: compare `ids[:, None] == ids`.",
            code=_several("""
hot = F.one_hot(ids).float()
target = hot @ hot.T
target = target / target.sum(-1, keepdim=True)
return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
"""),
        ),
        Mistake(
            "Comparing `ids == ids` (or with `ids.T`, which is the same for one axis) gives n times yes. You "
            "need a table: `ids[:, None] == ids[None, :]`.",
            old="(ids[:, None] == ids[None, :])",
            new="(ids == ids).expand(len(ids), -1)",
        ),
        Mistake(
            "The table compares ids with *places* in the batch. Compare ids with ids.",
            old="ids[None, :])",
            new="torch.arange(len(ids))[None, :])",
        ),
        Mistake(
            "The comparison is turned round: different ids count as right.",
            old="(ids[:, None] == ids[None, :])",
            new="(ids[:, None] != ids[None, :])",
        ),
        Mistake(
            "For each right caption only the wrong ones stay in the denominator; the other right ones are left out. "
            "Softmax runs over all captions.",
            code=_several(
                _SAME
                + """
def one(table):
    rest = table.masked_fill(same > 0, float("-inf")).logsumexp(1, keepdim=True)
    loss = torch.logaddexp(rest, table) - table
    return ((loss * same).sum(1) / same.sum(1)).mean()
return (one(logits) + one(logits.T)) / 2
"""
            ),
        ),
        Mistake(
            "Repeated captions are divided by their number twice, so their targets sum to less than 1.",
            old="same / same.sum(dim=-1, keepdim=True)",
            new="same / same.sum(dim=-1, keepdim=True) ** 2",
        ),
        Mistake(
            "You average the table with its transpose and choose once. Average the two *losses*.",
            old="    return (F",
            new="    logits = (logits + logits.T) / 2\n    return (F",
        ),
        Mistake(
            "You number the ids (`unique`, `return_inverse`) and use the numbers as targets. A target is a *place in "
            "the batch*, or a row of probabilities over places.",
            code=_several("""
_, target = torch.unique(ids, return_inverse=True)
return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
"""),
        ),
        Mistake(
            "Rows have shared targets, columns only the diagonal. Captions have several right pictures, too.",
            old="F.cross_entropy(logits.T, target)) / 2",
            new="F.cross_entropy(logits.T, torch.arange(len(ids)))) / 2",
        ),
        Mistake(
            "The loss has the wrong sign: it is *minus* the log-probability.",
            old="return (F",
            new="return -(F",
        ),
        Mistake(
            "You take the mean *probability* of all right captions, and its logarithm last. The targets share evenly: "
            "the mean of the log-probabilities.",
            code=_several(
                _SAME
                + """
closed = same == 0
rows = logits.logsumexp(1) - logits.masked_fill(closed, float("-inf")).logsumexp(1) + same.sum(1).log()
columns = logits.logsumexp(0) - logits.masked_fill(closed, float("-inf")).logsumexp(0) + same.sum(0).log()
return (rows.mean() + columns.mean()) / 2
"""
            ),
        ),
        Mistake(
            "A picture's own caption gets one half, the others with its id share the rest. The contract shares evenly "
            "among *all* of them, its own included.",
            code=_several(
                _SAME
                + """
own = torch.eye(len(ids))
rest = same - own
count = rest.sum(1, keepdim=True)
target = torch.where(count > 0, (own + rest / count.clamp(min=1)) / 2, own)
return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
"""
            ),
        ),
        Mistake(
            "The ids go through float32, which cannot tell 2**24 from 2**24 + 1. Compare them as the integers they "
            "are.",
            old="(ids[:, None] == ids[None, :])",
            new="(ids[:, None].float() == ids[None, :].float())",
        ),
        Mistake(
            "The ids go through float64, which cannot tell 2**53 from 2**53 + 1. Compare them as the integers they "
            "are.",
            old="(ids[:, None] == ids[None, :])",
            new="(ids[:, None].double() == ids[None, :].double())",
        ),
        Mistake(
            "The ids are cut to 32 bits, so that 2**32 + 7 becomes 7. Compare them as they are.",
            old="(ids[:, None] == ids[None, :])",
            new="(ids[:, None].int() == ids[None, :].int())",
        ),
        Mistake(
            "`isclose` compares up to a hundred-thousandth: large ids that are neighbours count as equal. Ids are "
            "names: compare with `==`.",
            old="(ids[:, None] == ids[None, :])",
            new="torch.isclose(ids[:, None].float(), ids[None, :].float())",
        ),
        Mistake(
            "The sign of the ids is lost (`abs`, or a square): 5 and -5 are different ids.",
            old="(ids[:, None] == ids[None, :])",
            new="(ids[:, None].abs() == ids[None, :].abs())",
        ),
        Mistake(
            "You take the logarithm of a softmax. A probability below 1e-45 is rounded to 0, its log is -inf, and 0 "
            "times -inf is nan. `log_softmax` and `cross_entropy` never compute the probability.",
            old=_BOTH,
            new="-(target * logits.softmax(1).log() + target * logits.softmax(0).log()).sum() / 2 / len(ids)",
        ),
        *[
            Mistake(
                f"You add {eps:g} to a probability before its logarithm (or clamp it there). That keeps nan away but "
                f"caps the loss of a pair at {-math.log(eps):.3g}, and beyond that nobody learns. `log_softmax` and "
                "`cross_entropy` need no such help.",
                old=_BOTH,
                new=f"-(target * (logits.softmax(1) + {eps!r}).log() + "
                f"target * (logits.softmax(0) + {eps!r}).log()).sum() / 2 / len(ids)",
            )
            for eps in _EPSILONS
        ],
        Mistake(
            "You write log(sum(exp(logits))) out. Its exp() overflows to inf once a logit passes 88, and so does the "
            "loss. `torch.logsumexp` subtracts the maximum first.",
            old=_BOTH,
            new="((logits.exp().sum(1).log() + logits.exp().sum(0).log()).mean() - "
            "(target * logits + target * logits.T).sum(1).mean()) / 2",
        ),
        Mistake(
            "You take exp() of raw logits, which overflows and gives nan. log_softmax and cross_entropy subtract the "
            "maximum first.",
            old=_BOTH,
            new="-((target * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean() + "
            "(target * (logits.exp() / logits.exp().sum(0, keepdim=True)).log()).sum(0).mean()) / 2",
        ),
    ],
    variants=[
        Variant(
            "loops",
            _several("""
n = len(ids)
total = 0.0
for table in (logits, logits.T):
    for i in range(n):
        log_p = table[i].log_softmax(0)
        partners = [j for j in range(n) if int(ids[j]) == int(ids[i])]
        total = total - sum(log_p[j] for j in partners) / len(partners)
return total / (2 * n)
"""),
        ),
        Variant(
            "a mean of log-probabilities, columns by dim 0",
            _several("""
same = torch.eq(ids.unsqueeze(1), ids.unsqueeze(0))
count = same.sum(1)
rows = (logits.log_softmax(dim=1) * same).sum(1) / count
columns = (logits.log_softmax(dim=0) * same).sum(0) / count
return -(rows + columns).mean() / 2
"""),
        ),
        Variant(
            "unique and one-hot, logsumexp",
            _several("""
_, index = torch.unique(ids, return_inverse=True)
hot = F.one_hot(index).to(logits.dtype)
target = hot @ (hot / hot.sum(0)).T
rows = logits.logsumexp(1) - (target * logits).sum(1)
columns = logits.logsumexp(0) - (target * logits).sum(0)
return 0.5 * rows.mean() + 0.5 * columns.mean()
"""),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Make the table of who belongs to whom: `ids[:, None] == ids[None, :]` is True at (i, j) when picture i "
            "fits caption j.",
        ),
        Hint(
            "how do I hand several right answers to cross_entropy?",
            "It also takes probabilities as targets, one row of them per row of logits. A row with three right "
            "captions holds 1/3 three times.",
        ),
        Hint(
            "my loss is too large when captions repeat",
            "Look at the rows of your targets: each must sum to 1. Divide the table by its row sums, with "
            "`keepdim=True`.",
        ),
        Hint(
            "show me nearly everything",
            "same = (ids[:, None] == ids[None, :]).float(); target = same / same.sum(-1, keepdim=True); the mean of "
            "F.cross_entropy(logits, target) and F.cross_entropy(logits.T, target).",
        ),
    ],
)


EXERCISES = [CLIP_LOSS, TEXT_TOWER, ZERO_SHOT, MULTI_POSITIVE]
