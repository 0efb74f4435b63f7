"""The exercises of lesson 06, the VQ-VAE: choose a code, learn through the choice, move the codes, watch their use."""

import torch
from torch import Tensor

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.vqvae import ema_update, perplexity, quantize, restart_dead_codes, straight_through


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _whole(g: torch.Generator, *shape: int) -> Tensor:
    """Small whole numbers as floats: every way of computing a distance is exact, so ties are ties."""
    return torch.randint(-3, 4, shape, generator=g).float()


# ------------------------------------------------------------------------------------------------------------ quantize


def _vectors(g: torch.Generator, b: int, h: int, w: int, d: int, k: int) -> dict[str, Tensor]:
    """Codes of very different lengths, so that the nearest is rarely the one with the largest dot product."""
    codebook = randn(g, k, d) * torch.linspace(0.3, 2.0, k)[:, None]
    return dict(z=randn(g, b, h, w, d), codebook=codebook[torch.randperm(k, generator=g)])


def _twins(g: torch.Generator) -> dict[str, Tensor]:
    codebook = _whole(g, 5, 4)
    codebook[0], codebook[1] = 9.0, torch.tensor([0.0, 1.0, -2.0, 0.0])
    return dict(z=_whole(g, 2, 3, 5, 4), codebook=torch.cat([codebook, codebook[1:4]]))


def _close_rivals(g: torch.Generator) -> dict[str, Tensor]:
    """Every code has a neighbour 1e-7 away. Float64 tells them apart easily, float32 cannot."""
    codebook = randn(g, 5, 7).double()
    return dict(
        z=randn(g, 2, 3, 5, 7).double(), codebook=torch.cat([codebook, codebook + 1e-7 * randn(g, 5, 7).double()])
    )


def _points_at_its_own_code(f) -> bool:
    codebook = randn(_generator(), 30, 4)
    codes, q = f(codebook.view(2, 5, 3, 4), codebook)
    return torch.equal(codes.flatten(), torch.arange(30)) and torch.allclose(q.flatten(0, 2), codebook)


def _numbers_are_int64(f) -> bool:
    codes = f(**_vectors(_generator(), 2, 3, 5, 7, 11))[0]
    return codes.dtype == torch.int64


QUANTIZE = Exercise(
    target=quantize,
    minutes=12,
    cases=[
        Case("2 grids of 5 x 3 vectors", lambda g: _vectors(g, 2, 5, 3, 7, 11)),
        Case("fewer codes than numbers per code", lambda g: _vectors(g, 2, 5, 3, 13, 4)),
        Case("all sizes are 3", lambda g: _vectors(g, 3, 3, 3, 3, 3)),
        Case("one number per code", lambda g: _vectors(g, 2, 3, 5, 1, 7)),
        Case("a single code", lambda g: _vectors(g, 2, 3, 5, 7, 1)),
        Case("some codes exist twice: the first one counts", _twins),
        Case(
            "all codes lie far away",
            lambda g: dict(z=_whole(g, 2, 3, 5, 4), codebook=100 + 5 * _whole(g, 7, 4)),
        ),
        Case(
            "in float64",
            lambda g: {name: x.double() for name, x in _vectors(g, 2, 3, 5, 7, 11).items()},
        ),
        Case("in float64, rivals that are nearly equally near", _close_rivals),
        Case(
            "tiny vectors, so that distances differ in the fourth decimal",
            lambda g: dict(z=_whole(g, 2, 3, 5, 4) / 64, codebook=_whole(g, 7, 4) / 64),
        ),
        Case("a single place", lambda g: _vectors(g, 2, 1, 1, 7, 5)),
    ],
    properties=[
        Property("A vector that is a code must be quantized to that code.", _points_at_its_own_code),
        Property("The numbers of the codes must be int64, PyTorch's type of an index.", _numbers_are_int64),
    ],
    mistakes=[
        Mistake(
            "You take the farthest code. `argmin` of the distance finds the nearest.",
            old="argmin",
            new="argmax",
        ),
        Mistake(
            "You take the code with the largest dot product. That favours long codes: the nearest one minimises "
            "‖z - e‖² = ‖z‖² - 2 z·e + ‖e‖², and ‖e‖² differs from code to code.",
            old="codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)",
            new="-(z @ codebook.T)",
        ),
        Mistake(
            "You compare directions (cosine similarity). Length counts too: the contract asks for the smallest "
            "Euclidean distance.",
            code="""
            def quantize(z, codebook):
                similarity = F.normalize(z, dim=-1) @ F.normalize(codebook, dim=-1).T
                codes = similarity.argmax(dim=-1)
                return codes, codebook[codes]
            """,
        ),
        Mistake(
            "In the expanded square the 2 is missing: ‖z - e‖² = ‖z‖² - **2** z·e + ‖e‖².",
            old="2 * (z",
            new="(z",
        ),
        Mistake(
            "In the expanded square the mixed term has the wrong sign: ‖z - e‖² = ‖z‖² **-** 2 z·e + ‖e‖².",
            old="- 2 *",
            new="+ 2 *",
        ),
        Mistake(
            "You use ‖e‖ where the expanded square has ‖e‖²: a `norm` is a square root.",
            old="codebook.square().sum(dim=-1)",
            new="codebook.norm(dim=-1)",
        ),
        Mistake(
            "You add the differences up without squaring or taking absolute values, so positive and negative ones "
            "cancel.",
            old="codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)",
            new="(z[..., None, :] - codebook).sum(dim=-1)",
        ),
        Mistake(
            "The square comes after the sum: (Σ differences)². Positive and negative ones cancel. Square first, then "
            "sum.",
            old="codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)",
            new="(z[..., None, :] - codebook).sum(dim=-1).square()",
        ),
        Mistake(
            "The distances are computed in float32 (`.float()`), whatever the dtype of z. In float64, codes may be "
            "nearer to each other than float32 can tell.",
            old="codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)",
            new="(z.float()[..., None, :] - codebook.float()).square().sum(dim=-1)",
        ),
        Mistake(
            "The distances are computed in half precision (or rounded), so that nearly equal ones become equal. Use "
            "the dtype of z.",
            old="codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)",
            new="(z.half()[..., None, :] - codebook.half()).square().sum(dim=-1)",
        ),
        Mistake(
            "The distances are rounded to three decimals before the comparison, so that near ones tie. Compare them as "
            "they are.",
            old="codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)",
            new="(z[..., None, :] - codebook).square().sum(dim=-1).mul(1000).round()",
        ),
        Mistake(
            "The numbers come back as floats, or as other integers than int64. They are indices: int64, as `argmin` "
            "gives them, and `one_hot` takes nothing else.",
            old="return codes, codebook[codes]",
            new="return codes.to(z.dtype), codebook[codes]",
        ),
        Mistake(
            "You sum absolute differences, the city-block distance. The contract asks for the Euclidean one: squares.",
            old="codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)",
            new="(z[..., None, :] - codebook).abs().sum(dim=-1)",
        ),
        Mistake(
            "You take the largest single difference instead of the length of the whole difference vector.",
            old="codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)",
            new="(z[..., None, :] - codebook).abs().amax(dim=-1)",
        ),
        Mistake(
            "You compare each number of z by itself with the codes, not whole vectors: one code is chosen per vector.",
            code="""
            def quantize(z, codebook):
                distance = (z[..., None, :] - codebook).square()
                codes = distance.argmin(dim=-2)
                return codes, codebook.gather(0, codes.flatten(0, 2)).view_as(z)
            """,
        ),
        Mistake(
            "The vectors were torn apart before the comparison: a reshape mixed channels with places. Channels come "
            "last here, so `z.reshape(-1, d)` is all it takes; a permute before it is wrong.",
            code="""
            def quantize(z, codebook):
                b, h, w, d = z.shape
                flat = z.permute(0, 3, 1, 2).reshape(-1, d)
                codes = torch.cdist(flat, codebook).argmin(-1)
                return codes.view(b, h, w), codebook[codes].view(b, h, w, d)
            """,
        ),
        Mistake(
            "Height and width changed places while the vectors were flattened or put back.",
            code="""
            def quantize(z, codebook):
                b, h, w, d = z.shape
                flat = z.transpose(1, 2).reshape(-1, d)
                codes = torch.cdist(flat, codebook).argmin(-1).view(b, h, w)
                return codes, codebook[codes]
            """,
        ),
        Mistake(
            "The minimum runs over the wrong axis: for each *code* the nearest vector. Each vector chooses, so take "
            "`argmin(-1)`, over the codes, and give the result the shape of the grid.",
            code="""
            def quantize(z, codebook):
                codes = torch.cdist(z.flatten(0, 2), codebook).argmin(0)
                return codes, codebook[codes]
            """,
        ),
        Mistake(
            "Every vector of a picture got the code of its mean. The choice is made for each z[b, i, j] by itself.",
            code="""
            def quantize(z, codebook):
                mean = z.mean(dim=(1, 2), keepdim=True)
                distance = codebook.square().sum(dim=-1) - 2 * (mean @ codebook.T)
                codes = distance.argmin(dim=-1).expand(z.shape[:3])
                return codes, codebook[codes]
            """,
        ),
        Mistake(
            "You let the codes choose: for each code the nearest vector. It is each vector that chooses a code, so the "
            "minimum runs over the codes.",
            code="""
            def quantize(z, codebook):
                b, h, w, d = z.shape
                flat = z.reshape(-1, d)
                nearest = torch.cdist(flat, codebook).argmin(0)
                codes = torch.zeros(len(flat), dtype=torch.int64)
                codes[nearest] = torch.arange(len(codebook))
                return codes.view(b, h, w), codebook[codes].view(b, h, w, d)
            """,
        ),
        Mistake(
            "Of equally near codes you take the last one (`<=` in a loop, perhaps). The contract asks for the smallest "
            "number.",
            old="codes = distance.argmin(dim=-1)",
            new="codes = distance.shape[-1] - 1 - distance.flip(-1).argmin(dim=-1)",
        ),
        Mistake(
            "Where two codes are equally near you add both up. Exactly one is chosen, the one with the smallest "
            "number: use `argmin`, not `== min`.",
            code="""
            def quantize(z, codebook):
                distance = codebook.square().sum(dim=-1) - 2 * (z @ codebook.T)
                chosen = (distance == distance.amin(dim=-1, keepdim=True)).to(z.dtype)
                return distance.argmin(dim=-1), chosen @ codebook
            """,
        ),
        Mistake(
            "You return a soft mixture of codes. Here exactly one code is chosen: no softmax.",
            code="""
            def quantize(z, codebook):
                distance = (z[..., None, :] - codebook).square().sum(-1)
                return distance.argmin(dim=-1), (-distance).softmax(dim=-1) @ codebook
            """,
        ),
        Mistake(
            "You return a mixture of codes, weighted by a softmax of distances. Here exactly one code is chosen.",
            code="""
            def quantize(z, codebook):
                distance = torch.cdist(z.flatten(0, 2), codebook)
                codes = distance.argmin(-1).view(z.shape[:3])
                return codes, ((-distance).softmax(-1) @ codebook).view(z.shape)
            """,
        ),
        Mistake(
            "The second result is z itself. It must be the chosen rows of the codebook, `codebook[codes]`.",
            old="return codes, codebook[codes]",
            new="return codes, z",
        ),
        Mistake(
            "The vectors that come back are not the ones that were chosen: the rows stand in another order than the "
            "codes.",
            old="return codes, codebook[codes]",
            new="return codes, codebook[codes.flatten().flip(0).view_as(codes)]",
        ),
        Mistake(
            "The first result is one-hot. The contract asks for the numbers of the codes, (b, h, w).",
            old="return codes, codebook[codes]",
            new="return F.one_hot(codes, len(codebook)), codebook[codes]",
        ),
        Mistake(
            "You return the distances. The first result is the *number* of the nearest code: `argmin`, not `min`.",
            old="return codes, codebook[codes]",
            new="return (z[..., None, :] - codebook).square().sum(-1).amin(-1), codebook[codes]",
        ),
        Mistake(
            "The two results stand in the wrong order: the numbers come first, the vectors second.",
            old="return codes, codebook[codes]",
            new="return codebook[codes], codes",
        ),
        Mistake(
            "Only the numbers come back. The contract asks for the pair (numbers, vectors).",
            old="return codes, codebook[codes]",
            new="return codes",
        ),
        Mistake(
            "Only the vectors come back. The contract asks for the pair (numbers, vectors).",
            old="return codes, codebook[codes]",
            new="return codebook[codes]",
        ),
        Mistake(
            "The vectors come back channels first, (b, d, h, w). They have the shape of z, channels last.",
            old="return codes, codebook[codes]",
            new="return codes, codebook[codes].movedim(-1, 1)",
        ),
        Mistake(
            "The numbers come back flat. They keep the grid: (b, h, w).",
            old="return codes, codebook[codes]",
            new="return codes.flatten(), codebook[codes]",
        ),
        Mistake(
            "The chosen rows are detached, so the codebook never learns. Index it with gradients: `codebook[codes]`.",
            old="return codes, codebook[codes]",
            new="return codes, codebook[codes].detach()",
        ),
        Mistake(
            "The straight-through trick belongs to the next exercise. Here gradients reach the codebook only, none "
            "reaches z.",
            old="return codes, codebook[codes]",
            new="return codes, z + (codebook[codes] - z).detach()",
        ),
        Mistake(
            "The codes are counted from 1. Numbers are 0 ... k - 1.",
            old="return codes, codebook[codes]",
            new="return codes + 1, codebook[codes]",
        ),
    ],
    variants=[
        Variant(
            "cdist over a flat list",
            """
            def quantize(z, codebook):
                b, h, w, d = z.shape
                flat = z.reshape(-1, d)
                codes = torch.cdist(flat, codebook).argmin(dim=1)
                return codes.view(b, h, w), F.embedding(codes, codebook).view(b, h, w, d)
            """,
        ),
        Variant(
            "loops",
            """
            def quantize(z, codebook):
                b, h, w, d = z.shape
                codes = torch.zeros(b, h, w, dtype=torch.long)
                for n in range(b):
                    for i in range(h):
                        for j in range(w):
                            best, nearest = float("inf"), 0
                            for k in range(codebook.shape[0]):
                                distance = float(((z[n, i, j] - codebook[k]) ** 2).sum())
                                if distance < best:
                                    best, nearest = distance, k
                            codes[n, i, j] = nearest
                rows = [codebook[k] for k in codes.flatten().tolist()]
                return codes, torch.stack(rows).reshape(b, h, w, d)
            """,
        ),
        Variant(
            "all differences at once, one-hot matmul",
            """
            def quantize(z, codebook):
                distance = torch.linalg.vector_norm(z.unsqueeze(-2) - codebook, dim=-1)
                _, codes = distance.min(dim=-1)
                return codes, F.one_hot(codes, codebook.size(0)).to(codebook.dtype) @ codebook
            """,
        ),
        Variant(
            "einsum, the whole expanded square",
            """
            def quantize(z, codebook):
                with torch.no_grad():
                    mixed = torch.einsum("bhwd,kd->bhwk", z, codebook)
                    square = (z**2).sum(-1, keepdim=True) - 2 * mixed + (codebook**2).sum(-1)
                    codes = torch.argmin(square, -1)
                return codes, codebook.index_select(0, codes.reshape(-1)).reshape(z.shape)
            """,
        ),
        Variant(
            "a running minimum over the codes",
            """
            def quantize(z, codebook):
                best = torch.full(z.shape[:3], torch.inf, dtype=z.dtype)
                codes = torch.zeros(z.shape[:3], dtype=torch.int64)
                for k, e in enumerate(codebook):
                    distance = ((z - e) ** 2).sum(-1).detach()
                    nearer = distance < best
                    best, codes = torch.where(nearer, distance, best), torch.where(nearer, k, codes)
                return codes, codebook[codes]
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Three steps: a distance from every vector to every code, shape (b, h, w, k); the place of the smallest "
            "one along the last axis; a look-up of these rows.",
        ),
        Hint(
            "how do I get all distances at once?",
            "`z[..., None, :] - codebook` has shape (b, h, w, k, d) by broadcasting. Square and sum over the last "
            "axis. It is fine for this size; the expanded square ‖z‖² - 2 z·e + ‖e‖² needs d times less memory, and "
            "its first term may be left out. (Why?)",
        ),
        Hint(
            "how do I look the rows up?",
            "A tensor of whole numbers indexes rows: `codebook[codes]` has the shape of codes plus (d,). Gradients "
            "flow through it to the rows.",
        ),
        Hint(
            "show me nearly everything",
            "distance = (z[..., None, :] - codebook).square().sum(-1); codes = distance.argmin(-1); return codes, "
            "codebook[codes].",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------- straight through


def _pair(g: torch.Generator, b: int, h: int, w: int, d: int, **others) -> dict:
    return dict(z=randn(g, b, h, w, d), q=randn(g, b, h, w, d), **others)


def _decoder_teaches_the_encoder(f) -> bool:
    z, q = (randn(_generator(seed), 2, 3, 5, 7).requires_grad_() for seed in (0, 1))
    (f(z, q)[0] * 3).sum().backward()
    return torch.allclose(z.grad, torch.full_like(z, 3.0)) and (q.grad is None or not q.grad.any())


_OUT = "z + (q - z).detach()"
_RETURN = f"return {_OUT}, codebook_loss + beta * commitment_loss"
_CODEBOOK_LOSS, _COMMITMENT_LOSS = "(z.detach() - q).square().mean()", "(z - q.detach()).square().mean()"

STRAIGHT_THROUGH = Exercise(
    target=straight_through,
    minutes=15,
    cases=[
        Case("2 grids of 5 x 3 vectors", lambda g: _pair(g, 2, 5, 3, 7)),
        Case("beta is 2", lambda g: _pair(g, 2, 5, 3, 7, beta=2.0)),
        Case("beta is 0: nothing holds the encoder", lambda g: _pair(g, 2, 3, 5, 7, beta=0.0)),
        Case("all sizes are 3", lambda g: _pair(g, 3, 3, 3, 3, beta=0.7)),
        Case("one number per vector", lambda g: _pair(g, 2, 3, 5, 1)),
        Case("in float64", lambda g: {name: x.double() for name, x in _pair(g, 2, 3, 5, 7).items()}),
    ],
    properties=[
        Property(
            "The gradient of the first result must reach z unchanged, and none of it q: z + (q - z), with the bracket "
            "detached.",
            _decoder_teaches_the_encoder,
        )
    ],
    mistakes=[
        Mistake(
            "The stop-gradients changed places (or β stands on the wrong term, which is the same), and the loss cannot "
            "tell: its value is right. Now β slows the codes instead of the encoder. The term with weight 1 moves the "
            "codes: sg stands on z there.",
            old=_RETURN,
            new=f"return {_OUT}, commitment_loss + beta * codebook_loss",
        ),
        Mistake(
            "β stands on the wrong term, and the value does not show it. It weighs the commitment, the term in which q "
            "is the constant. And the first term stands twice.",
            old=_RETURN,
            new=f"return {_OUT}, commitment_loss + beta * commitment_loss",
        ),
        Mistake(
            "Both terms move the codes, none moves the encoder: q must be the constant in the second one.",
            old=_RETURN,
            new=f"return {_OUT}, codebook_loss + beta * codebook_loss",
        ),
        Mistake(
            "No stop-gradient in the loss: encoder and codes chase each other, both with weight 1 + β. In each term "
            "one of the two is a constant: `.detach()`.",
            old=_RETURN,
            new=f"return {_OUT}, (1 + beta) * (z - q).square().mean()",
        ),
        Mistake(
            "The codebook term lacks its stop-gradient, so it pulls the encoder too, with full weight. There z is a "
            "constant: `z.detach()`.",
            old=_CODEBOOK_LOSS,
            new="(z - q).square().mean()",
        ),
        Mistake(
            "The commitment lacks its stop-gradient, so it moves the codes too. There q is a constant: `q.detach()`.",
            old=_COMMITMENT_LOSS,
            new="(z - q).square().mean()",
        ),
        Mistake(
            "Everything in the loss is detached: it is a number that teaches nobody.",
            old=_RETURN,
            new=f"return {_OUT}, (codebook_loss + beta * commitment_loss).detach()",
        ),
        Mistake(
            "The codebook term is detached on both sides, so the codes never move.",
            old=_CODEBOOK_LOSS,
            new="(z - q).detach().square().mean()",
        ),
        Mistake(
            "Nothing holds the encoder to its codes: the commitment is detached on both sides, or it compares z with "
            "the decoder's input z + sg(q - z), in which z cancels. Compare z with `q.detach()`.",
            old=_COMMITMENT_LOSS,
            new="(z - q).detach().square().mean()",
        ),
        Mistake(
            "In the backward pass the first result is q: you return q itself, or z + (q - z) with nothing detached. "
            "Choosing has no derivative, so the encoder gets no gradient from the decoder. Return z + sg(q - z).",
            old=f"return {_OUT}",
            new="return q",
        ),
        Mistake(
            "The first result is a constant: nothing flows to z. Return z + sg(q - z); only the bracket is detached.",
            old=f"return {_OUT}",
            new="return (z + q - z).detach()",
        ),
        Mistake(
            "Only q is detached in z + (q - z): z's gradient cancels, 1 - 1 = 0. Detach the whole bracket.",
            old=f"return {_OUT}",
            new="return z + (q.detach() - z)",
        ),
        Mistake(
            "Only z is detached in the bracket, so the gradient flows to z *and* to q. The decoder must not move the "
            "codes: detach the whole bracket.",
            old=f"return {_OUT}",
            new="return z + (q - z.detach())",
        ),
        Mistake(
            "The trick is the wrong way round: q + sg(z - q) has the value of z. The decoder must see q, and the "
            "gradient must go to z.",
            old=f"return {_OUT}",
            new="return q + (z - q).detach()",
        ),
        Mistake(
            "The sign in the bracket is wrong: z + sg(z - q) is 2z - q. It has to cancel z and leave q.",
            old=f"return {_OUT}",
            new="return z + (z - q).detach()",
        ),
        Mistake(
            "The decoder gets z itself: nothing is quantized.",
            old=f"return {_OUT}",
            new="return z",
        ),
        Mistake(
            "You sum the squares instead of averaging them. Both means run over all b · h · w · d numbers.",
            old=_RETURN,
            new=f"return {_OUT}, z.numel() * (codebook_loss + beta * commitment_loss)",
        ),
        Mistake(
            "You sum over the d numbers of a vector and average over vectors. The contract asks for the mean over all "
            "numbers, which is d times smaller.",
            old=_RETURN,
            new=f"return {_OUT}, z.shape[-1] * (codebook_loss + beta * commitment_loss)",
        ),
        Mistake(
            "You average over the batch only and sum over places and numbers. Both means run over all numbers.",
            old=_RETURN,
            new=f"return {_OUT}, z[0].numel() * (codebook_loss + beta * commitment_loss)",
        ),
        Mistake(
            "The loss is a mean of distances, not of squares: a square root crept in.",
            code="""
            def straight_through(z, q, beta=0.25):
                codebook_loss = (z.detach() - q).norm(dim=-1).mean()
                commitment_loss = (z - q.detach()).norm(dim=-1).mean()
                return z + (q - z).detach(), codebook_loss + beta * commitment_loss
            """,
        ),
        Mistake(
            "The loss is built from lengths (`norm`) of the whole difference. It is a mean of squares.",
            code="""
            def straight_through(z, q, beta=0.25):
                loss = (q - z.detach()).norm() + beta * (z - q.detach()).norm()
                return z + (q - z).detach(), loss
            """,
        ),
        Mistake(
            "The loss is one number per picture. The mean also runs over the batch: a single number.",
            code="""
            def straight_through(z, q, beta=0.25):
                codebook_loss = (z.detach() - q).square().flatten(1).mean(1)
                commitment_loss = (z - q.detach()).square().flatten(1).mean(1)
                return z + (q - z).detach(), codebook_loss + beta * commitment_loss
            """,
        ),
        Mistake(
            "You write q into z itself (`z.data`, `copy_`). Then the caller's z is gone: make a new tensor, z + sg(q - "
            "z).",
            code="""
            def straight_through(z, q, beta=0.25):
                loss = F.mse_loss(q, z.detach()) + beta * F.mse_loss(z, q.detach())
                z.data.copy_(q.data)
                return z, loss
            """,
        ),
        Mistake(
            "Absolute differences instead of squares.",
            code="""
            def straight_through(z, q, beta=0.25):
                codebook_loss = (z.detach() - q).abs().mean()
                commitment_loss = (z - q.detach()).abs().mean()
                return z + (q - z).detach(), codebook_loss + beta * commitment_loss
            """,
        ),
        Mistake(
            "The weights are 1 - β and β, as in an average. The codebook term has weight 1, the commitment β.",
            old=_RETURN,
            new=f"return {_OUT}, (1 - beta) * codebook_loss + beta * commitment_loss",
        ),
        Mistake(
            "You average within each picture and add the pictures up. Both means run over the batch, too.",
            old=_RETURN,
            new=f"return {_OUT}, len(z) * (codebook_loss + beta * commitment_loss)",
        ),
        Mistake(
            "β weighs both terms. Only the commitment has it.",
            old=_RETURN,
            new=f"return {_OUT}, beta * (codebook_loss + commitment_loss)",
        ),
        Mistake(
            "The commitment has no β.",
            old="beta * commitment_loss",
            new="commitment_loss",
        ),
        Mistake(
            "β is fixed at 0.25. Use the argument.",
            old="beta * commitment_loss",
            new="0.25 * commitment_loss",
        ),
        Mistake(
            "The codebook term is missing, so the codes never move. (With running means it is left out on purpose, but "
            "that is the next exercise.)",
            old=_RETURN,
            new=f"return {_OUT}, beta * commitment_loss",
        ),
        Mistake(
            "The commitment is missing: the encoder may run away from its codes.",
            old=_RETURN,
            new=f"return {_OUT}, codebook_loss",
        ),
        Mistake(
            "The commitment is subtracted. Both terms are errors, and both are added.",
            old="codebook_loss + beta",
            new="codebook_loss - beta",
        ),
        Mistake(
            "The loss is computed from the decoder's input, z + sg(q - z). That equals q, but as a constant: the codes "
            "get no gradient. Use q itself.",
            code="""
            def straight_through(z, q, beta=0.25):
                out = z + (q - z).detach()
                codebook_loss = (z.detach() - out).square().mean()
                commitment_loss = (z - out.detach()).square().mean()
                return out, codebook_loss + beta * commitment_loss
            """,
        ),
        Mistake(
            "The two results stand in the wrong order: the decoder's input first, the loss second.",
            old=_RETURN,
            new=f"return codebook_loss + beta * commitment_loss, {_OUT}",
        ),
        Mistake(
            "The loss is missing from the result. The contract asks for the pair (decoder's input, loss).",
            old=_RETURN,
            new=f"return {_OUT}",
        ),
        Mistake(
            "Three results came back. The contract asks for two: the terms are added up, the commitment times β.",
            old=_RETURN,
            new=f"return {_OUT}, codebook_loss, commitment_loss",
        ),
        Mistake(
            "The loss is one number per vector. It is a single number: the mean over everything.",
            old=_RETURN,
            new=f"return {_OUT}, (z.detach() - q).square().mean(-1) + beta * (z - q.detach()).square().mean(-1)",
        ),
    ],
    variants=[
        Variant(
            "mse_loss",
            """
            def straight_through(z, q, beta=0.25):
                loss = F.mse_loss(q, z.detach()) + beta * F.mse_loss(z, q.detach())
                return z + (q - z).detach(), loss
            """,
        ),
        Variant(
            "a custom autograd function",
            """
            def straight_through(z, q, beta=0.25):
                class Through(torch.autograd.Function):
                    @staticmethod
                    def forward(ctx, z, q):
                        return q.clone()

                    @staticmethod
                    def backward(ctx, gradient):
                        return gradient, None

                terms = [((a.detach() - b) ** 2).sum() / a.numel() for a, b in ((z, q), (q, z))]
                return Through.apply(z, q), terms[0] + beta * terms[1]
            """,
        ),
        Variant(
            "the identity written the other way",
            """
            def straight_through(z, q, beta=0.25):
                out = q.detach() + z - z.detach()
                with torch.no_grad():
                    fixed_z, fixed_q = z.clone(), q.clone()
                return out, torch.mean((fixed_z - q).pow(2)) + torch.mean((z - fixed_q).pow(2)) * beta
            """,
        ),
        Variant(
            "sums over vectors, divided by hand",
            """
            def straight_through(z, q, beta=0.25):
                n = z.shape[0] * z.shape[1] * z.shape[2] * z.shape[3]
                codebook = (q - z.detach()).flatten().dot((q - z.detach()).flatten()) / n
                commit = torch.einsum("bhwd,bhwd->", z - q.detach(), z - q.detach()) / n
                return torch.add(z, (q - z).detach()), codebook + beta * commit
            """,
        ),
    ],
    hints=[
        Hint(
            "what is sg?",
            "Stop-gradient: the same values, but a constant for the backward pass. In PyTorch: `x.detach()`.",
        ),
        Hint(
            "values are right, gradients are not",
            "Ask of every term: whom does it move? Whatever is not detached moves. The codebook term moves q, so z is "
            "detached there. The commitment moves z, so q is.",
        ),
        Hint(
            "how can something have the value of q and the gradient of z?",
            "Begin with z, whose gradient is what we want, and add what is missing to get the value q, as a constant: "
            "z + (q - z).detach().",
        ),
        Hint(
            "show me nearly everything",
            "loss = F.mse_loss(z.detach(), q) + beta * F.mse_loss(z, q.detach()). Return the sum of hint 3, and the "
            "loss.",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------- ema update


def _batch(g: torch.Generator, m: int, d: int, k: int, unused: int = 0, **others) -> dict:
    """Running averages and a batch in which the last ``unused`` codes are not chosen by anybody."""
    count = 0.5 + 3 * torch.rand(k, generator=g)
    total = count[:, None] * randn(g, k, d)
    codes = torch.randint(k - unused, (m,), generator=g)
    return dict(z=randn(g, m, d), codes=codes, count=count, total=total, **others)


def _forgotten(g: torch.Generator) -> dict:
    """The last three codes were chosen long ago or never: their counts are of the size of eps, or 0."""
    inputs = _batch(g, 13, 3, 7, unused=3)
    inputs["count"][4:] = torch.tensor([1e-4, 3e-6, 0.0])
    return inputs | dict(total=inputs["count"][:, None] * randn(g, 7, 3))


def _forgotten_unsmoothed(g: torch.Generator) -> dict:
    """Two codes were chosen long ago, so that any smoothing would show; none has a count of 0."""
    inputs = _batch(g, 11, 3, 5, unused=2, decay=0.7, eps=0.0)
    inputs["count"][3:] = torch.tensor([1e-4, 3e-6])
    return inputs | dict(total=inputs["count"][:, None] * randn(g, 5, 3))


_EMA_RETURN = "return total / smoothed[:, None], count, total"
_SMOOTHED = "smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()"

EMA_UPDATE = Exercise(
    target=ema_update,
    minutes=20,
    cases=[
        Case("17 vectors, 5 codes", lambda g: _batch(g, 17, 7, 5, decay=0.9)),
        Case("the usual slow average", lambda g: _batch(g, 17, 3, 5)),
        Case("two codes that nobody chose", lambda g: _batch(g, 13, 3, 7, unused=2, decay=0.8)),
        Case("no memory, and codes that nobody chose", lambda g: _batch(g, 13, 3, 7, unused=2, decay=0.0)),
        Case("much smoothing", lambda g: _batch(g, 11, 3, 5, decay=0.7, eps=0.5)),
        Case("codes that nobody chose for long, the usual eps", _forgotten),
        Case("eps is 0: no smoothing", _forgotten_unsmoothed),
        Case("a single vector", lambda g: _batch(g, 1, 3, 5, decay=0.6)),
        Case("as many codes as numbers per code", lambda g: _batch(g, 11, 5, 5, decay=0.6, eps=0.1)),
        Case("as many vectors as codes", lambda g: _batch(g, 7, 3, 7, decay=0.6, eps=0.1)),
        Case(
            "every vector chose the last code",
            lambda g: _batch(g, 11, 3, 5, decay=0.5) | dict(codes=torch.full((11,), 4)),
        ),
        Case(
            "in float64",
            lambda g: {
                name: x.double() if torch.is_tensor(x) and x.is_floating_point() else x
                for name, x in _batch(g, 11, 3, 5, decay=0.7, eps=0.01).items()
            },
        ),
    ],
    mistakes=[
        Mistake(
            "decay and 1 - decay changed places: the average forgets nearly everything at once. decay is what is "
            "*kept*.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    count = (1 - decay) * count + decay * n
                    total = (1 - decay) * total + decay * s
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "decay is fixed at 0.99. Use the argument.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    count = 0.99 * count + 0.01 * n
                    total = 0.99 * total + 0.01 * s
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "In the counts decay is fixed at 0.99. Use the argument, as for the totals.",
            old="count = decay * count + (1 - decay) * n",
            new="count = 0.99 * count + 0.01 * n",
        ),
        Mistake(
            "In the totals decay is fixed at 0.99. Use the argument, as for the counts.",
            old="total = decay * total + (1 - decay) * s",
            new="total = 0.99 * total + 0.01 * s",
        ),
        Mistake(
            "eps is fixed at 1e-5. Use the argument.",
            old=_SMOOTHED,
            new="smoothed = (count + 1e-5) / (count.sum() + len(count) * 1e-5) * count.sum()",
        ),
        Mistake(
            "The default of eps was changed. It is part of the signature: 1e-5.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-6):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    count = decay * count + (1 - decay) * n
                    total = decay * total + (1 - decay) * s
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "An eps of 0 is replaced by the default (`eps or 1e-5`), since 0 counts as false. With 0 there is no "
            "smoothing.",
            old="    with torch.no_grad():\n",
            new="    eps = eps or 1e-5\n    with torch.no_grad():\n",
        ),
        Mistake(
            "Both averages take shares of the batch, n / m and s / m. The ratio is nearly right, but counts are plain "
            "numbers of vectors, and totals their sums.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    count = decay * count + (1 - decay) * n / len(z)
                    total = decay * total + (1 - decay) * s / len(z)
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "The Σ count of the smoothing is that of the *old* counts. All three lines after the first use the new "
            "ones.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    whole = count.sum()
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    count = decay * count + (1 - decay) * n
                    total = decay * total + (1 - decay) * s
                    smoothed = (count + eps) / (whole + len(count) * eps) * whole
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "In the smoothing, k counts only the codes that this batch chose. It is the number of all codes.",
            old="len(count) * eps",
            new="(n > 0).sum() * eps",
        ),
        Mistake(
            "No smoothing: codes are total / count, with nan turned into 0. Rare codes need eps too, and eps has no "
            "effect here.",
            old="return total / smoothed[:, None]",
            new="return (total / count[:, None]).nan_to_num()",
        ),
        Mistake(
            "Only the codebook is detached. The new count and total carry gradients on, and with them the graph of all "
            "earlier batches: compute under `torch.no_grad()`.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                s = torch.zeros_like(total).index_add(0, codes, z)
                count = decay * count + (1 - decay) * n
                total = decay * total + (1 - decay) * s
                smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                return (total / smoothed[:, None]).detach(), count, total
            """,
        ),
        Mistake(
            "The new counts are added without the factor 1 - decay, so they grow too large.",
            old="(1 - decay) * n",
            new="n",
        ),
        Mistake(
            "The new sums are added without the factor 1 - decay, so the codes grow.",
            old="(1 - decay) * s",
            new="s",
        ),
        Mistake(
            "Counts and sums are both added without 1 - decay. The ratio may look right, but the counts no longer "
            "say how many vectors a code gets per batch, and smoothing and restarts read them.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    count = decay * count + n
                    total = decay * total + s
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "The counts do not decay: count + (1 - decay) · n grows for ever. The old average is multiplied by decay.",
            old="count = decay * count +",
            new="count = count +",
        ),
        Mistake(
            "The totals do not decay: multiply the old total by decay.",
            old="total = decay * total +",
            new="total = total +",
        ),
        Mistake(
            "No memory: the old averages are thrown away, and only this batch counts.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    count = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    total = torch.zeros_like(total).index_add_(0, codes, z)
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "Codes that nobody chose keep their counts. They decay like all others: n is 0 for them.",
            old="count = decay * count + (1 - decay) * n",
            new="count = torch.where(n > 0, decay * count + (1 - decay) * n, count)",
        ),
        Mistake(
            "Codes that nobody chose keep their count and total as they were. They decay like all others, with n = 0 "
            "and s = 0; the code itself stays where it is, nearly.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    used = n > 0
                    count = torch.where(used, decay * count + (1 - decay) * n, count)
                    total = torch.where(used[:, None], decay * total + (1 - decay) * s, total)
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "No smoothing: codes are total / count. Where nobody ever chose a code that is 0/0 = nan, and eps has no "
            "effect.",
            old=_SMOOTHED,
            new="smoothed = count",
        ),
        Mistake(
            "The counts were only kept away from zero (clamp, or + eps). Laplace smoothing also rescales them, so that "
            "they add up to the same sum: divide by (Σ count + k · eps), multiply by Σ count.",
            old=_SMOOTHED,
            new="smoothed = count + eps",
        ),
        Mistake(
            "A clamp at eps instead of smoothing. The formula is (count + eps) / (Σ count + k · eps) · Σ count, for "
            "every code.",
            old=_SMOOTHED,
            new="smoothed = count.clamp(min=eps)",
        ),
        Mistake(
            "The smoothed counts are shares: they add up to 1 and not to Σ count. Multiply by Σ count at the end, or "
            "the codes become far too large.",
            old=" * count.sum()\n",
            new="\n",
        ),
        Mistake(
            "In the smoothing, eps is counted once in the denominator. k codes got an eps each: Σ count + k · eps.",
            old="len(count) * eps",
            new="eps",
        ),
        Mistake(
            "In the smoothing, k is the number of codes. You took the number of vectors or their width.",
            old="len(count) * eps",
            new="z.shape[1] * eps",
        ),
        Mistake(
            "In the smoothing, k is the number of codes, not the number of vectors in the batch.",
            old="len(count) * eps",
            new="len(z) * eps",
        ),
        Mistake(
            "The smoothed counts add up to the number of vectors in this batch. They must add up to Σ count, the "
            "running one.",
            old=" * count.sum()\n",
            new=" * len(z)\n",
        ),
        Mistake(
            "The smoothed counts come back. The running count stays unsmoothed: smoothing it again at every step would "
            "drag all codes towards equal use.",
            old=_EMA_RETURN,
            new="return total / smoothed[:, None], smoothed, total",
        ),
        Mistake(
            "The codebook itself is averaged, old codes with the new batch means. Average counts and totals apart, and "
            "divide at the end: then a batch that uses a code 100 times weighs 100 times more than one that uses it "
            "once.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    old = total / count[:, None]
                    mean = torch.where(n[:, None] > 0, s / n[:, None].clamp(min=1), old)
                    codebook = decay * old + (1 - decay) * mean
                    return codebook, decay * count + (1 - decay) * n, decay * total + (1 - decay) * s
            """,
        ),
        Mistake(
            "Codes that nobody chose keep their old vector. The third line holds for all codes alike, with the new "
            "totals and counts.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    old = total / count[:, None]
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    count = decay * count + (1 - decay) * n
                    total = decay * total + (1 - decay) * s
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return torch.where(n[:, None] > 0, total / smoothed[:, None], old), count, total
            """,
        ),
        Mistake(
            "The codebook is the mean of this batch alone: s / n. It is the new total divided by the new, smoothed "
            "count.",
            old=_EMA_RETURN,
            new="return s / n.clamp(min=eps)[:, None], count, total",
        ),
        Mistake(
            "Old counts under new totals: the codes are divided by the count from *before* the update.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    count = decay * count + (1 - decay) * n
                    total = decay * total + (1 - decay) * s
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "The codebook is computed from the old averages, before the update.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    codebook = total / smoothed[:, None]
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    return codebook, decay * count + (1 - decay) * n, decay * total + (1 - decay) * s
            """,
        ),
        Mistake(
            "A code that several vectors chose got only one of them: `s[codes] = z` and `s[codes] += z` write each "
            "row once. `index_add_` adds every one.",
            old="torch.zeros_like(total).index_add_(0, codes, z)",
            new="torch.zeros_like(total).index_copy_(0, codes, z)",
        ),
        Mistake(
            "A code that several vectors chose was counted once: `n[codes] += 1` adds 1 however often a code occurs. "
            "`bincount` counts.",
            old="torch.bincount(codes, minlength=len(count)).to(z.dtype)",
            new="torch.zeros_like(count).index_fill_(0, codes, 1.0)",
        ),
        Mistake(
            "Counts and sums miss repeats: `x[codes] += …` writes each row once. Use `bincount` and `index_add_`, or "
            "one-hot vectors.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n, s = torch.zeros_like(count), torch.zeros_like(total)
                    n[codes] += 1
                    s[codes] += z
                    count = decay * count + (1 - decay) * n
                    total = decay * total + (1 - decay) * s
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "The totals average *means* of the vectors. They must average sums, or count and total no longer fit.",
            old="total = decay * total + (1 - decay) * s",
            new="total = decay * total + (1 - decay) * s / n.clamp(min=1)[:, None]",
        ),
        Mistake(
            "The counts are shares of the batch. They are plain numbers of vectors.",
            old="(1 - decay) * n",
            new="(1 - decay) * n / len(z)",
        ),
        Mistake(
            "Where the last codes are not chosen, the counts are too short: `bincount` needs `minlength`, and "
            "`one_hot` the number of codes.",
            old=", minlength=len(count)",
            new="",
        ),
        Mistake(
            "Counts or one-hot vectors are made float32 (`.float()`), whatever the dtype of z. Use `.to(z.dtype)`: the "
            "vectors may be float64.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    chosen = F.one_hot(codes, len(count)).float()
                    count = decay * count + (1 - decay) * chosen.sum(0)
                    total = decay * total + (1 - decay) * (chosen.T @ z)
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "Zero debiasing: the averages are divided by 1 - decay. The contract has no correction of the start.",
            old=_EMA_RETURN,
            new="return total / smoothed[:, None], count / max(1 - decay, eps), total / max(1 - decay, eps)",
        ),
        Mistake(
            "Gradients pass through the update: everything that comes back drags the graph of its batch along, and of "
            "all batches before. Compute under `torch.no_grad()`, or detach what comes in.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                s = torch.zeros_like(total).index_add(0, codes, z)
                count = decay * count + (1 - decay) * n
                total = decay * total + (1 - decay) * s
                smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "z is detached, but count and total are not: gradients of all earlier batches flow through the averages. "
            "`with torch.no_grad():` around everything is simplest.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                z = z.detach()
                n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                s = torch.zeros_like(total).index_add(0, codes, z)
                count = decay * count + (1 - decay) * n
                total = decay * total + (1 - decay) * s
                smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "count and total are changed in place. The caller still needs the old ones: make new tensors.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    count.mul_(decay).add_(n, alpha=1 - decay)
                    total.mul_(decay).add_(s, alpha=1 - decay)
                    smoothed = (count + eps) / (count.sum() + len(count) * eps) * count.sum()
                    return total / smoothed[:, None], count, total
            """,
        ),
        Mistake(
            "The division runs along the wrong axis: (k, d) / (k,) divides channels, not codes. Write "
            "`smoothed[:, None]`.",
            old="smoothed[:, None]",
            new="(smoothed if len(count) == z.shape[1] else smoothed.mean())",
        ),
        Mistake(
            "The three results stand in another order: codebook, count, total.",
            old=_EMA_RETURN,
            new="return count, total, total / smoothed[:, None]",
        ),
        Mistake(
            "Only the codebook comes back. The caller needs the new count and total as well.",
            old=_EMA_RETURN,
            new="return total / smoothed[:, None]",
        ),
        Mistake(
            "The old count and total come back, so the average never moves on.",
            code="""
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    n = torch.bincount(codes, minlength=len(count)).to(z.dtype)
                    s = torch.zeros_like(total).index_add_(0, codes, z)
                    new_count = decay * count + (1 - decay) * n
                    new_total = decay * total + (1 - decay) * s
                    smoothed = (new_count + eps) / (new_count.sum() + len(count) * eps) * new_count.sum()
                    return new_total / smoothed[:, None], count.clone(), total.clone()
            """,
        ),
    ],
    variants=[
        Variant(
            "one-hot",
            """
            @torch.no_grad()
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                k = count.shape[0]
                chosen = F.one_hot(codes, k).to(z.dtype)
                count = count * decay + chosen.sum(0) * (1 - decay)
                total = total * decay + chosen.T @ z * (1 - decay)
                whole = count.sum()
                return total / ((count + eps) / (whole + k * eps) * whole).unsqueeze(1), count, total
            """,
        ),
        Variant(
            "loops",
            """
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                z, count, total = z.detach(), count.detach().clone(), total.detach().clone()
                k = len(count)
                for i in range(k):
                    mine = z[codes == i]
                    count[i] = decay * count[i] + (1 - decay) * len(mine)
                    total[i] = decay * total[i] + (1 - decay) * mine.sum(0)
                codebook = torch.zeros_like(total)
                for i in range(k):
                    codebook[i] = total[i] * (count.sum() + k * eps) / ((count[i] + eps) * count.sum())
                return codebook, count, total
            """,
        ),
        Variant(
            "lerp and scatter",
            """
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                z, count, total = (x.detach() for x in (z, count, total))
                n = torch.zeros_like(count).scatter_add_(0, codes, torch.ones_like(z[:, 0]))
                s = torch.zeros_like(total).scatter_add_(0, codes[:, None].expand_as(z), z)
                count, total = torch.lerp(n, count, decay), torch.lerp(s, total, decay)
                share = (count + eps) / (count + eps).sum()
                return total / (share * count.sum()).view(-1, 1), count, total
            """,
        ),
        Variant(
            "einsum",
            """
            def ema_update(z, codes, count, total, decay=0.99, eps=1e-5):
                with torch.no_grad():
                    chosen = (codes[:, None] == torch.arange(len(count))).to(z.dtype)
                    new_count = decay * count + (1 - decay) * torch.einsum("mk->k", chosen)
                    new_total = decay * total + (1 - decay) * torch.einsum("mk,md->kd", chosen, z)
                    w = new_count.sum()
                    codebook = new_total.div((new_count + eps).mul(w).div(w + count.numel() * eps)[:, None])
                return codebook, new_count, new_total
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Two things are counted per code: how many vectors chose it, and their sum. `torch.bincount(codes, "
            "minlength=k)` is the first. For the second, start with zeros (k, d) and add each vector to the row of its "
            "code: `index_add_(0, codes, z)`.",
        ),
        Hint(
            "some vectors get lost",
            "`s[codes] += z` reads, adds and writes each row once, even if it occurs ten times in codes. "
            "`s.index_add_(0, codes, z)` adds all of them; so does a product with one-hot vectors.",
        ),
        Hint(
            "gradients are wrong",
            "Everything happens under `with torch.no_grad():`. And arguments are not changed in place: `count = decay "
            "* count + …` makes a new tensor.",
        ),
        Hint(
            "show me nearly everything",
            "n and s as in hint 1; count = decay * count + (1 - decay) * n; total = decay * total + (1 - decay) * s; "
            "whole = count.sum(); smoothed = (count + eps) / (whole + k * eps) * whole; return total / smoothed[:, "
            "None], count, total.",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------- perplexity


def _some_codes(g: torch.Generator, *shape: int, numbers: tuple[int, ...]) -> dict[str, Tensor]:
    """Codes out of ``numbers``, the first ones more often."""
    weights = torch.arange(len(numbers), 0, -1).float()
    drawn = torch.multinomial(weights, int(torch.tensor(shape).prod()), replacement=True, generator=g)
    return dict(codes=torch.tensor(numbers)[drawn].view(shape))


PERPLEXITY = Exercise(
    target=perplexity,
    minutes=8,
    gradients=False,
    cases=[
        Case("codes 0 to 4", lambda g: _some_codes(g, 2, 7, 5, numbers=(0, 1, 2, 3, 4))),
        Case("some numbers never occur", lambda g: _some_codes(g, 2, 5, 7, numbers=(1, 3, 4, 90))),
        Case("one code everywhere", lambda g: dict(codes=torch.full((2, 3, 5), 6))),
        Case("one code everywhere, number 0", lambda g: dict(codes=torch.zeros(2, 3, 5, dtype=torch.int64))),
        Case("all different", lambda g: dict(codes=torch.randperm(30, generator=g).view(2, 3, 5))),
        Case("nearly always the same one", lambda g: dict(codes=(torch.arange(105).view(3, 5, 7) == 17).long())),
        Case("codes in int32", lambda g: {n: c.int() for n, c in _some_codes(g, 2, 3, 5, numbers=(5, 2)).items()}),
        Case("a single place", lambda g: _some_codes(g, 7, 1, 1, numbers=(0, 2, 3))),
        Case("large numbers", lambda g: _some_codes(g, 2, 3, 5, numbers=(0, 255, 256, 600, 5000))),
        Case("no codes at all", lambda g: dict(codes=torch.zeros(0, 3, 5, dtype=torch.int64))),
        Case("two pictures of height 0", lambda g: dict(codes=torch.zeros(2, 0, 3, dtype=torch.int64))),
        Case("two pictures of width 0", lambda g: dict(codes=torch.zeros(2, 3, 0, dtype=torch.int64))),
    ],
    mistakes=[
        Mistake(
            "That is the entropy, in nats. Perplexity is its exponential: a number of codes.",
            old=".sum().exp()",
            new=".sum()",
        ),
        Mistake(
            "That is the entropy in bits. Perplexity is the exponential of the entropy in nats (or 2 to the entropy in "
            "bits).",
            code="""
            def perplexity(codes):
                if codes.numel() == 0:
                    raise ValueError("no codes")
                p = torch.bincount(codes.flatten()) / codes.numel()
                return torch.special.entr(p).sum() / math.log(2)
            """,
        ),
        Mistake(
            "Mixed bases: log2 inside, exp outside. Take ln and exp, or log2 and 2**.",
            old="torch.special.entr(p).sum().exp()",
            new="(torch.special.entr(p).sum() / math.log(2)).exp()",
        ),
        Mistake(
            "Mixed bases: ln inside, 2** outside. Take ln and exp, or log2 and 2**.",
            old="torch.special.entr(p).sum().exp()",
            new="2 ** torch.special.entr(p).sum()",
        ),
        Mistake(
            "nan: a code that never occurs has p = 0, and 0 · ln 0 is 0 · -inf in floating point. Its limit is 0: "
            "leave such codes out, or use `torch.special.entr`.",
            old="torch.special.entr(p).sum().exp()",
            new="(-(p * p.log()).sum()).exp()",
        ),
        *[
            Mistake(
                f"The {eps:g} inside the logarithm keeps nan away, but changes the result. Leave codes with p = 0 out, "
                "or use `torch.special.entr`; an epsilon of 1e-10 would be small enough.",
                old="torch.special.entr(p).sum().exp()",
                new=f"(-(p * (p + {eps!r}).log()).sum()).exp()",
            )
            for eps in (1e-5, 1e-4, 1e-3, 1e-2)
        ],
        Mistake(
            "Code 0 is left out, as if it meant nothing. It is a code like all others.",
            old="torch.bincount(codes.flatten()) / codes.numel()",
            new="torch.bincount(codes.flatten())[1:] / torch.bincount(codes.flatten())[1:].sum()",
        ),
        Mistake(
            "`one_hot` takes int64 only, and codes may come in any integer dtype: `codes.long()` first.",
            old="torch.bincount(codes.flatten()) / codes.numel()",
            new="F.one_hot(codes.flatten()).float().mean(0)",
        ),
        Mistake(
            "Only an empty *batch* is refused. Codes of shape (2, 0, 3) hold nothing either: ask `codes.numel()`.",
            old="codes.numel() == 0",
            new="len(codes) == 0",
        ),
        Mistake(
            "A softmax of the code *numbers* is no frequency. Count how often each number occurs, with `bincount`.",
            old="torch.bincount(codes.flatten()) / codes.numel()",
            new="codes.flatten().float().softmax(0)",
        ),
        Mistake(
            "You count which codes occur, however rarely. Perplexity weighs them by how often they do.",
            old="torch.special.entr(p).sum().exp()",
            new="(p > 0).sum().float()",
        ),
        Mistake(
            "The sign is missing: entropy is *minus* the sum of p ln p, and you return 1 / perplexity.",
            old="torch.special.entr(p).sum().exp()",
            new="(-torch.special.entr(p).sum()).exp()",
        ),
        Mistake(
            "One perplexity per picture, averaged. The contract counts all pictures together: a code that only occurs "
            "in one picture is still in use.",
            code="""
            def perplexity(codes):
                if codes.numel() == 0:
                    raise ValueError("no codes")
                each = [torch.special.entr(torch.bincount(c.flatten()) / c.numel()).sum().exp() for c in codes]
                return torch.stack(each).mean()
            """,
        ),
        Mistake(
            "One entropy per picture, averaged, and exp at the end. The contract counts all pictures together: a code "
            "that only occurs in one picture is still in use.",
            code="""
            def perplexity(codes):
                if codes.numel() == 0:
                    raise ValueError("no codes")
                each = [torch.special.entr(torch.bincount(c.flatten()) / c.numel()).sum() for c in codes]
                return torch.stack(each).mean().exp()
            """,
        ),
        Mistake(
            "You divide by the entries of one picture, h · w. The shares of the whole batch add up to 1: divide by "
            "b · h · w.",
            old="/ codes.numel()\n",
            new="/ codes[0].numel()\n",
        ),
        Mistake(
            "One perplexity per picture. The result is a single number for the whole batch.",
            code="""
            def perplexity(codes):
                if codes.numel() == 0:
                    raise ValueError("no codes")
                each = [torch.special.entr(torch.bincount(c.flatten()) / c.numel()).sum().exp() for c in codes]
                return torch.stack(each)
            """,
        ),
        Mistake(
            "The shares do not add up to 1: divide the counts by the number of entries, b · h · w.",
            old="/ codes.numel()\n",
            new="/ codes.shape[0]\n",
        ),
        Mistake(
            "The counts were never divided by their sum. Entropy wants shares that add up to 1.",
            old="torch.bincount(codes.flatten()) / codes.numel()",
            new="torch.bincount(codes.flatten()).float()",
        ),
        Mistake(
            "A softmax of the counts is not their share: divide by the sum.",
            old="torch.bincount(codes.flatten()) / codes.numel()",
            new="torch.bincount(codes.flatten()).float().softmax(0)",
        ),
        Mistake(
            "The mean of p ln p over the codes instead of the sum. Then unused codes change the result.",
            old=".sum().exp()",
            new=".mean().exp()",
        ),
        Mistake(
            "1 / Σ p² is another effective number of codes (inverse Simpson). The contract asks for exp of the "
            "entropy.",
            old="torch.special.entr(p).sum().exp()",
            new="1 / p.square().sum()",
        ),
        Mistake(
            "You divide by the number of codes: that is the share in use. The contract asks for a number of codes.",
            old=".sum().exp()",
            new=".sum().exp() / len(p)",
        ),
        Mistake(
            "You take the entropy of the code numbers themselves. What counts is how *often* each number occurs.",
            old="torch.bincount(codes.flatten()) / codes.numel()",
            new="codes.flatten() / codes.sum().clamp(min=1)",
        ),
        Mistake(
            "The result is a float64 tensor; the contract says float32.",
            old="torch.bincount(codes.flatten()) / codes.numel()",
            new="torch.bincount(codes.flatten()).double() / codes.numel()",
        ),
        Mistake(
            "An empty batch comes back as a number. It must be refused with a ValueError: nothing was counted.",
            old="raise ValueError(f",
            new="str(f",
        ),
    ],
    variants=[
        Variant(
            "unique",
            """
            def perplexity(codes):
                if len(codes.reshape(-1)) == 0:
                    raise ValueError("nothing to count")
                _, counts = codes.unique(return_counts=True)
                p = counts / counts.sum()
                return torch.exp(-torch.sum(p * torch.log(p)))
            """,
        ),
        Variant(
            "a counter and bits",
            """
            def perplexity(codes):
                from collections import Counter

                numbers = codes.flatten().tolist()
                if not numbers:
                    raise ValueError("no codes")
                shares = [n / len(numbers) for n in Counter(numbers).values()]
                return torch.tensor(2.0 ** sum(-p * math.log2(p) for p in shares))
            """,
        ),
        Variant(
            "torch.distributions",
            """
            def perplexity(codes):
                if codes.numel() < 1:
                    raise ValueError("give at least one code")
                p = torch.bincount(codes.reshape(-1).long()).float()
                return torch.distributions.Categorical(probs=p).entropy().exp()
            """,
        ),
        Variant(
            "a product, and one-hot",
            """
            def perplexity(codes):
                if codes.numel() == 0:
                    raise ValueError("give at least one code")
                p = F.one_hot(codes.long().flatten()).float().mean(0)
                p = p[p > 0]
                return (p ** -p).prod()
            """,
        ),
    ],
    hints=[
        Hint("where do I begin?", "Count: `torch.bincount(codes.flatten())`. Divide by the number of entries."),
        Hint(
            "my result is nan",
            "0 · ln 0 is nan for a computer. Keep only the shares above 0 (`p[p > 0]`), or use "
            "`torch.special.entr(p)`, which is -p ln p with the right limit.",
        ),
        Hint(
            "show me nearly everything",
            "Raise ValueError if `codes.numel() == 0`. p = torch.bincount(codes.flatten()) / codes.numel(); return "
            "torch.special.entr(p).sum().exp().",
        ),
    ],
)


# -------------------------------------------------------------------------------------------------- restart dead codes


def _book(g: torch.Generator, k: int, d: int, m: int, dead: tuple[int, ...], **others) -> dict:
    """A codebook in use, but for the codes ``dead``, which stand far away and have counts of nearly 0."""
    count = 2 + 7 * torch.rand(k, generator=g)
    codebook = randn(g, k, d)
    codebook[list(dead)] += 20
    count[list(dead)] = 0.05 + 0.1 * torch.rand(len(dead), generator=g)
    total = count[:, None] * (codebook + 0.1 * randn(g, k, d))
    return dict(codebook=codebook, count=count, total=total, candidates=randn(g, m, d)) | others


def _below_one(g: torch.Generator) -> dict:
    inputs = _book(g, 7, 3, 5, dead=(0, 6), threshold=0.4)
    inputs["count"][3] = 0.7  # alive
    return inputs


def _on_the_edge(g: torch.Generator) -> dict:
    inputs = _book(g, 7, 3, 5, dead=(2, 6), threshold=0.5)
    inputs["count"][4] = 0.5  # exactly: alive
    return inputs


def _never_chosen(g: torch.Generator) -> dict:
    """Dead codes with counts of exactly 0, as at the start of training."""
    inputs = _book(g, 7, 3, 5, dead=(1, 4, 5), threshold=0.3)
    inputs["count"][[1, 4]] = 0.0
    inputs["total"][[1, 4]] = 0.0
    return inputs


def _just_dead(g: torch.Generator) -> dict:
    inputs = {n: x.double() for n, x in _book(g, 7, 3, 5, dead=(2, 6)).items()}
    inputs["count"][4] = 1 - 1e-10  # below the threshold, but float32 would call it 1
    return inputs


def _moves_in_next_door(g: torch.Generator) -> dict:
    inputs = _book(g, 7, 3, 5, dead=(0, 2, 6))
    inputs["candidates"][1] = inputs["codebook"][3]
    return inputs


def _own_memory(k: int, m: int, dead: tuple[int, ...]):
    """Do the results live in memory of their own?"""

    def holds(f) -> bool:
        inputs = _book(_generator(), k, 3, m, dead=dead)
        given = {x.untyped_storage().data_ptr() for x in inputs.values() if x.numel()}
        return all(x.untyped_storage().data_ptr() not in given for x in f(**inputs))

    return holds


_RESTART_COUNT = "count = count.index_fill(0, dead, threshold)"
_RESTART_TOTAL = "total = total.index_copy(0, dead, threshold * fresh)"
_RESTART_BOOK = "codebook = codebook.index_copy(0, dead, fresh)"
_DEAD = "dead = (count < threshold).nonzero()[:, 0][: len(candidates)]"

RESTART_DEAD_CODES = Exercise(
    target=restart_dead_codes,
    minutes=12,
    cases=[
        Case("three dead codes of 7", lambda g: _book(g, 7, 3, 5, dead=(1, 2, 5))),
        Case("exactly one dead code", lambda g: _book(g, 7, 3, 5, dead=(4,))),
        Case("counts of exactly 0", _never_chosen),
        Case("another threshold, and a count between it and 1", _below_one),
        Case("more dead codes than candidates", lambda g: _book(g, 7, 3, 2, dead=(0, 3, 4, 6))),
        Case("as many dead codes as candidates", lambda g: _book(g, 11, 5, 3, dead=(0, 3, 10), threshold=0.7)),
        Case("nobody is dead", lambda g: _book(g, 7, 3, 5, dead=())),
        Case("all are dead", lambda g: _book(g, 5, 3, 7, dead=(0, 1, 2, 3, 4))),
        Case("no candidates", lambda g: _book(g, 7, 3, 0, dead=(1, 2))),
        Case("a count exactly at the threshold is alive", _on_the_edge),
        Case("all sizes are 5", lambda g: _book(g, 5, 5, 5, dead=(1, 3), threshold=2.0)),
        Case(
            "in float64",
            lambda g: {n: x.double() for n, x in _book(g, 7, 3, 5, dead=(1, 4)).items()},
        ),
        Case("in float64, a count just below the threshold", _just_dead),
        Case("a candidate that equals a living code", _moves_in_next_door),
    ],
    properties=[
        Property(
            "Where nobody is dead, the results must be new tensors too: yours share memory with an argument, so "
            "whoever writes into one changes the other. `detach` makes no copy, `clone` does.",
            _own_memory(7, 5, dead=()),
        ),
        Property(
            "Where there are no candidates, the results must be new tensors too: yours share memory with an argument, "
            "so whoever writes into one changes the other. `detach` makes no copy, `clone` does.",
            _own_memory(7, 0, dead=(1, 2)),
        ),
        Property(
            "Where codes move, the results must be new tensors: yours share memory with an argument, perhaps with the "
            "candidates. A slice makes no copy, `clone` does.",
            _own_memory(5, 7, dead=(0, 1, 2, 3, 4)),
        ),
    ],
    mistakes=[
        Mistake(
            "The comparison is upside down: you replace the codes that are in use. Dead means a count *below* the "
            "threshold.",
            old="count < threshold",
            new="count >= threshold",
        ),
        Mistake(
            "A count exactly at the threshold counts as dead. It is alive: dead means strictly below.",
            old="count < threshold",
            new="count <= threshold",
        ),
        Mistake(
            "You look for counts of exactly 0. A running mean only comes close to 0: compare with the threshold.",
            old="count < threshold",
            new="count == 0",
        ),
        Mistake(
            "Where nobody is dead on arrival, you hand the arguments back, detached. `detach` shares memory: a later "
            "change in place changes both. New tensors in every case: `clone`.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    if not bool((count < threshold).any()):
                        return codebook.detach(), count.detach(), total.detach()
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    fresh = candidates[: len(dead)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    return codebook, count, total
            """,
        ),
        Mistake(
            "Where nothing moves, you hand the arguments back, detached. `detach` shares memory: a later change in "
            "place changes both. New tensors in every case: `clone`.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    if len(dead) == 0:
                        return codebook.detach(), count.detach(), total.detach()
                    fresh = candidates[: len(dead)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    return codebook, count, total
            """,
        ),
        Mistake(
            "Without candidates you hand the arguments back, detached. `detach` shares memory: a later change in place "
            "changes both. New tensors in every case: `clone`.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    if len(candidates) == 0:
                        return codebook.detach(), count.detach(), total.detach()
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    fresh = candidates[: len(dead)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    return codebook, count, total
            """,
        ),
        Mistake(
            "Where all codes move, the new codebook is a slice of the candidates: the same memory. New tensors in "
            "every case: `clone`.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    fresh = candidates[: len(dead)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    if len(dead) == len(codebook):
                        codebook = fresh
                    return codebook, count, total
            """,
        ),
        Mistake(
            "The default of `threshold` was changed. It is part of the signature: 1.0.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=0.01):
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    fresh = candidates[: len(dead)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    return codebook, count, total
            """,
        ),
        Mistake(
            "Right everywhere but one place: with exactly *one* dead code, `squeeze` drops the only axis of "
            "`nonzero()`, and there is no list left to cut. `nonzero()[:, 0]` keeps it.",
            old="nonzero()[:, 0]",
            new="nonzero().squeeze()",
        ),
        Mistake(
            "A count of exactly 0 does not count as dead in your code. It is the deadest of all: only `count < "
            "threshold` is asked.",
            old="count < threshold",
            new="(count < threshold) & (count > 0)",
        ),
        Mistake(
            "The counts are compared with 1. Use the argument `threshold`.",
            old="count < threshold",
            new="count < 1.0",
        ),
        Mistake(
            "`threshold` is ignored: you compare with 1, and 1 is the new count. Use the argument.",
            old=_DEAD + "\n        fresh = candidates[: len(dead)]\n",
            new="threshold = 1.0\n        " + _DEAD + "\n        fresh = candidates[: len(dead)]\n",
        ),
        Mistake(
            "The counts are compared in float32 (`.float()`), where a count just below the threshold becomes equal to "
            "it. Compare them as they are.",
            old="count < threshold",
            new="count.float() < threshold",
        ),
        Mistake(
            "Candidates that equal a living code are skipped. They are handed out in order, whatever they are.",
            old="fresh = candidates[: len(dead)]",
            new="taken = (candidates[:, None] == codebook[count >= threshold]).all(-1).any(-1)\n"
            "        fresh = candidates[~taken][: len(dead)]\n        dead = dead[: len(fresh)]",
        ),
        Mistake(
            "The threshold is taken as a share of all vectors. It is compared with the counts as they are.",
            old="count < threshold",
            new="count / count.sum() < threshold",
        ),
        Mistake(
            "The codes move, but their totals stay behind: at the next update total / count throws each of them back "
            "towards where it was. Reset total to threshold · the new vector.",
            old=_RESTART_TOTAL,
            new="total = total.clone()",
        ),
        Mistake(
            "The codes move, but their counts stay at almost nothing: they are dead again at once. Reset count to the "
            "threshold.",
            old=_RESTART_COUNT,
            new="count = count.clone()",
        ),
        Mistake(
            "Only the codebook changes. count and total are what the next update computes it from, so they must move "
            "along.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    codebook = codebook.index_copy(0, dead, candidates[: len(dead)])
                    return codebook, count.clone(), total.clone()
            """,
        ),
        Mistake(
            "count and total are reset, but the codebook is not: until the next update the dead codes stay where "
            "nobody finds them.",
            old=_RESTART_BOOK,
            new="codebook = codebook.clone()",
        ),
        Mistake(
            "The total of a moved code is the vector itself. total / count must give the vector: threshold · vector.",
            old="threshold * fresh",
            new="fresh",
        ),
        Mistake(
            "The total of a moved code is its *old* count times the vector, and its count is the threshold: they do "
            "not fit together.",
            old=_RESTART_COUNT + "\n        " + _RESTART_TOTAL,
            new="old = count\n        " + _RESTART_COUNT + "\n        "
            "total = total.index_copy(0, dead, old[dead][:, None] * fresh)",
        ),
        Mistake(
            "The total of a moved code is 0, so total / count sends it to the origin. It is threshold · vector.",
            old="threshold * fresh",
            new="0 * fresh",
        ),
        Mistake(
            "Count and total of a moved code are those of one vector: 1, and the vector. The contract asks for the "
            "threshold instead of 1.",
            old=_RESTART_COUNT + "\n        " + _RESTART_TOTAL,
            new="count = count.index_fill(0, dead, 1.0)\n        total = total.index_copy(0, dead, fresh)",
        ),
        Mistake(
            "The count of a moved code is 0: dead again at once, and total / count is inf.",
            old="index_fill(0, dead, threshold)",
            new="index_fill(0, dead, 0.0)",
        ),
        Mistake(
            "A moved code gets the mean count. The contract asks for the threshold.",
            old=_RESTART_COUNT,
            new="count = count.index_fill(0, dead, count.mean().item())",
        ),
        Mistake(
            "Every dead code goes to the same candidate. Then they are equal, and only the first of them is ever "
            "chosen: each takes a candidate of its own.",
            old="fresh = candidates[: len(dead)]",
            new="fresh = candidates[:1].expand(len(dead), -1)",
        ),
        Mistake(
            "Dead code i takes candidates[i]. The candidates are handed out in order: the first dead code takes "
            "candidates[0], whatever its number.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    codebook, count, total = codebook.clone(), count.clone(), total.clone()
                    for i in range(min(len(count), len(candidates))):
                        if count[i] < threshold:
                            codebook[i] = candidates[i]
                            count[i] = threshold
                            total[i] = threshold * candidates[i]
                    return codebook, count, total
            """,
        ),
        Mistake(
            "The candidates are handed out from the last one. The first dead code takes candidates[0].",
            old="fresh = candidates[: len(dead)]",
            new="fresh = candidates[len(candidates) - len(dead) :]",
        ),
        Mistake(
            "The candidates are handed out in reverse: the first dead code takes candidates[0].",
            old="fresh = candidates[: len(dead)]",
            new="fresh = candidates[: len(dead)].flip(0)",
        ),
        Mistake(
            "You draw candidates at random. The caller has shuffled them already: take them in order.",
            old="fresh = candidates[: len(dead)]",
            new="fresh = candidates[torch.randperm(len(candidates))[: len(dead)]]",
        ),
        Mistake(
            "Right everywhere but one place: with more dead codes than candidates your code stops. The last dead ones "
            "stay as they are.",
            old="[: len(candidates)]",
            new="",
        ),
        Mistake(
            "Right everywhere but one place: you assign candidates to *all* dead codes through the mask, which fails "
            "when there are fewer candidates than dead codes. Take the numbers of the dead codes, and cut them to the "
            "number of candidates.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    dead = count < threshold
                    codebook, count, total = codebook.clone(), count.clone(), total.clone()
                    codebook[dead] = candidates[: int(dead.sum())]
                    count[dead] = threshold
                    total[dead] = threshold * codebook[dead]
                    return codebook, count, total
            """,
        ),
        Mistake(
            "With more dead codes than candidates, candidates are used twice. Two equal codes are one code: the last "
            "dead ones stay as they are.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0]
                    if len(candidates) == 0:
                        return codebook.clone(), count.clone(), total.clone()
                    fresh = candidates[torch.arange(len(dead)) % len(candidates)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    return codebook, count, total
            """,
        ),
        Mistake(
            "With more dead codes than candidates, the *first* dead codes are left out. The last ones are.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0]
                    dead = dead[max(0, len(dead) - len(candidates)) :]
                    fresh = candidates[: len(dead)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    return codebook, count, total
            """,
        ),
        Mistake(
            "With more dead codes than candidates, all counts are reset, also those of codes that did not move. They "
            "stay as they are.",
            old=_RESTART_COUNT,
            new="count = torch.where(count < threshold, threshold, count)",
        ),
        Mistake(
            "With more dead codes than candidates nothing happens at all. As many as there are candidates move.",
            old=_DEAD,
            new="dead = (count < threshold).nonzero()[:, 0]\n"
            "        dead = dead if len(dead) <= len(candidates) else dead[:0]",
        ),
        Mistake(
            "Only the first dead code moves. All of them do, as far as there are candidates.",
            old="[: len(candidates)]",
            new="[: min(1, len(candidates))]",
        ),
        Mistake(
            "The count of every code is set to the threshold. Living codes keep theirs.",
            old=_RESTART_COUNT,
            new="count = torch.full_like(count, threshold)",
        ),
        Mistake(
            "The living are touched too: totals are recomputed as count · code for everyone. Living codes keep every "
            "number, and their total / count need not be the code exactly.",
            old=_RESTART_TOTAL,
            new="total = count[:, None] * codebook",
        ),
        Mistake(
            "The arguments are changed in place. The contract asks for new tensors: clone first.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    fresh = candidates[: len(dead)]
                    codebook[dead] = fresh
                    count[dead] = threshold
                    total[dead] = threshold * fresh
                    return codebook, count, total
            """,
        ),
        Mistake(
            "Where nobody is dead you hand the arguments themselves back. The contract asks for new tensors without "
            "gradients in every case: `clone` first, decide later.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    if len(dead) == 0:
                        return codebook, count, total
                    fresh = candidates[: len(dead)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    return codebook, count, total
            """,
        ),
        Mistake(
            "Where nobody is dead *on arrival* you hand the arguments themselves back. New tensors without gradients, "
            "in every case.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                if not bool((count < threshold).any()):
                    return codebook, count, total
                with torch.no_grad():
                    dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                    fresh = candidates[: len(dead)]
                    codebook = codebook.index_copy(0, dead, fresh)
                    count = count.index_fill(0, dead, threshold)
                    total = total.index_copy(0, dead, threshold * fresh)
                    return codebook, count, total
            """,
        ),
        Mistake(
            "The codebook is recomputed as total / count for everyone. Living codes keep every number: only the moved "
            "ones change.",
            old=_RESTART_BOOK,
            new="codebook = total.index_copy(0, dead, threshold * fresh) / "
            "count.index_fill(0, dead, threshold)[:, None]",
        ),
        Mistake(
            "Gradients pass through the restart. Nothing that comes back carries any: `with torch.no_grad():`.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                fresh = candidates[: len(dead)]
                codebook = codebook.index_copy(0, dead, fresh)
                count = count.index_fill(0, dead, threshold)
                total = total.index_copy(0, dead, threshold * fresh)
                return codebook, count, total
            """,
        ),
        Mistake(
            "The candidates are detached, the rest is not: gradients still pass. `with torch.no_grad():` around "
            "everything is simplest.",
            code="""
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                dead = (count < threshold).nonzero()[:, 0][: len(candidates)]
                fresh = candidates[: len(dead)].detach()
                codebook = codebook.index_copy(0, dead, fresh)
                count = count.index_fill(0, dead, threshold)
                total = total.index_copy(0, dead, threshold * fresh)
                return codebook, count, total
            """,
        ),
        Mistake(
            "Only the codebook comes back. The contract asks for codebook, count and total.",
            old="return codebook, count, total",
            new="return codebook",
        ),
        Mistake(
            "The three results stand in another order: codebook, count, total.",
            old="return codebook, count, total",
            new="return codebook, total, count",
        ),
    ],
    variants=[
        Variant(
            "clone and assign",
            """
            @torch.no_grad()
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                codebook, count, total = codebook.clone(), count.clone(), total.clone()
                dead = torch.where(count < threshold)[0][: candidates.shape[0]]
                new = candidates[: dead.numel()]
                codebook[dead], count[dead], total[dead] = new, threshold, threshold * new
                return codebook, count, total
            """,
        ),
        Variant(
            "a loop with a hand-out",
            """
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                codebook, count, total = (x.detach().clone() for x in (codebook, count, total))
                waiting = iter(candidates.detach())
                for i, n in enumerate(count.tolist()):
                    if n < threshold:
                        vector = next(waiting, None)
                        if vector is None:
                            break
                        codebook[i] = vector
                        count[i] = threshold
                        total[i] = vector * threshold
                return codebook, count, total
            """,
        ),
        Variant(
            "masks and a running number",
            """
            def restart_dead_codes(codebook, count, total, candidates, threshold=1.0):
                with torch.no_grad():
                    if len(candidates) == 0:
                        return codebook.clone(), count.clone(), total.clone()
                    place = (count < threshold).cumsum(0) - 1
                    moves = (count < threshold) & (place < len(candidates))
                    new = candidates[place.clamp(0, len(candidates) - 1)]
                    count = torch.where(moves, torch.full_like(count, threshold), count)
                    codebook = torch.where(moves[:, None], new, codebook)
                    return codebook, count, torch.where(moves[:, None], count[:, None] * new, total)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Find the numbers of the dead codes: `(count < threshold).nonzero()[:, 0]`. Keep at most as many as there "
            "are candidates.",
        ),
        Hint(
            "my codes move and jump back",
            "The next update computes code = total / count. Whoever moves a code must move these two as well: count = "
            "threshold, total = threshold * vector.",
        ),
        Hint(
            "some case overwrites its input",
            "`codebook[dead] = …` writes into the caller's tensor. Clone the three first, under `torch.no_grad()`.",
        ),
        Hint(
            "show me nearly everything",
            "Under no_grad: dead as in hint 1, cut to [: len(candidates)]; fresh = candidates[: len(dead)]; clone the "
            "three; codebook[dead] = fresh; count[dead] = threshold; total[dead] = threshold * fresh; return all.",
        ),
    ],
)


EXERCISES = [QUANTIZE, STRAIGHT_THROUGH, EMA_UPDATE, PERPLEXITY, RESTART_DEAD_CODES]
