"""The exercises of lesson 08, Latent diffusion: a code that is uncertain, its scale, reading a caption, one step."""

import inspect
import textwrap

import torch
from torch import Tensor, nn

from course_lib.data.tokenizer import Tokenizer
from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.autoencoder import DiagonalGaussian, fit_latent_stats
from course_lib.models.latent_diffusion import latent_loss
from course_lib.nn.attention import CrossAttention

# -------------------------------------------------------------------------------------------------- DiagonalGaussian


def _read(cls, params: Tensor) -> dict:
    """Everything about the distribution that is not random."""
    q = cls(params)
    return {"mean": q.mean, "logvar": q.logvar, "std": q.std, "mode()": q.mode(), "kl()": q.kl()}


def _read_small(cls, params: Tensor) -> dict:
    """As ``_read``, and the deviations on a scale on which small ones count."""
    return _read(cls, params) | {"log(std)": cls(params).std.log()}


def _noise(cls, params: Tensor, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """The standard normal noise inside samples, (draws, b, c, ...): what is left without mean and deviation."""
    c = params.shape[1] // 2
    mean, std = params[:, :c], (0.5 * params[:, c:]).exp()
    q = cls(params)
    return torch.stack([(_sample(q, generator).detach() - mean) / std for _ in range(draws)])


def _sample(q, generator: torch.Generator | None) -> Tensor:
    return q.sample() if generator is None else q.sample(generator)


def _draw_with_a_generator(cls, params: Tensor) -> dict:
    return _draw(cls, params, torch.Generator().manual_seed(8))


def _draw(cls, params: Tensor, generator: torch.Generator | None = None) -> dict:
    """What can be said about samples whatever the order in which their noise is drawn."""
    with torch.no_grad():
        q = cls(params)
        before = q.mean.clone(), q.std.clone()
        sample = _sample(q, generator)
        noise = _noise(cls, params, 64, generator)
        kept = [torch.equal(a, b) for a, b in zip(before, (q.mean, q.std), strict=True)]
        return {
            "shape of a sample": str(tuple(sample.shape)),
            "dtype of a sample": str(sample.dtype),
            "`mean` and `std` after a draw": "as before" if all(kept) else "changed",
            "noise: mean": _about(noise.mean(), 0),
            "noise: standard deviation": _about(noise.std(), 1),
            "noise: largest of thousands of numbers": _reach(noise),
            "noise: shared by": _shared(noise),
            "noise: numbers of one draw that determine each other": _tied(noise),
        }


def _about(value: Tensor, wanted: float) -> str:
    return f"{wanted}" if abs(value - wanted) < 0.07 else f"{abs(value):.1f}, not {wanted}"


def _reach(noise: Tensor) -> str:
    """Normal noise goes beyond 2.5 about once in 80 numbers; uniform or clipped noise never does."""
    for limit in (1.8, 2.5):
        if noise.abs().max() <= limit:
            return f"never beyond {limit}, which is not normal"
    return "beyond 2.5"


def _tied(noise: Tensor) -> str:
    """Whether two numbers of a draw are always equal or always opposite."""
    z = noise.flatten(1) - noise.flatten(1).mean(0)
    z = z / z.norm(dim=0).clamp(min=1e-9)
    return "some" if ((z.T @ z).fill_diagonal_(0).abs() > 0.95).any() else "none"


def _shared(noise: Tensor) -> str:
    names = ("calls", "samples of the batch", "channels", "rows", "columns")
    shared = [names[i] for i in range(noise.ndim) if noise.shape[i] > 1 and bool(noise.std(dim=i).max() < 1e-3)]
    return " and ".join(shared) or "nothing"


def _follow_generator(cls, params: Tensor) -> dict:
    q, g = cls(params), lambda seed: torch.Generator().manual_seed(seed)
    with torch.no_grad():
        first, again, other, free = q.sample(g(3)), q.sample(g(3)), q.sample(g(4)), q.sample()
        one = g(3)
        seeded = []
        for _ in range(2):
            torch.manual_seed(3)
            seeded.append(q.sample())
        return {
            "equal generators give equal samples": torch.equal(first, again),
            "another seed gives another sample": not torch.equal(first, other),
            "two draws with one generator differ": not torch.equal(q.sample(one), q.sample(generator=one)),
            "without a generator another sample": not torch.equal(first, free),
            "without a generator, `torch.manual_seed` makes a draw repeatable": torch.equal(*seeded),
        }


def _gradient_with_a_generator(cls, params: Tensor) -> dict:
    return _gradient_of_a_sample(cls, params, torch.Generator().manual_seed(8))


def _gradient_of_a_sample(cls, params: Tensor, generator: torch.Generator | None = None) -> dict:
    """Of the sum of a sample: 1 for each mean, half of what the noise added for each logvar."""
    with torch.enable_grad():
        leaf = params.detach().clone().requires_grad_(True)
        q = cls(leaf)
        z = _sample(q, generator)
        if not z.requires_grad:
            return {"gradient": "a sample has none"}
        z.sum().backward()
    c = params.shape[1] // 2
    spread, half = leaf.grad[:, c:], 0.5 * (z.detach().to(leaf) - params[:, :c])
    return {
        "gradient": "a sample has one",
        "gradient of the means": leaf.grad[:, :c],
        # half of what the noise added, which differs from answer to answer: compared here, and not handed out
        "gradient of the log-variances": "right" if torch.allclose(spread, half, atol=1e-4) else "wrong",
    }


def _dtypes(cls, params: Tensor) -> dict:
    q = cls(params)
    every = {"mean": q.mean, "logvar": q.logvar, "std": q.std}
    every |= {"sample()": q.sample(), "mode()": q.mode(), "kl()": q.kl()}
    every |= {"sample(generator)": q.sample(torch.Generator().manual_seed(1))}
    return {f"dtype of {name}": str(value.dtype) for name, value in every.items()}


def _outputs(g: torch.Generator, *shape: int) -> dict:
    return dict(params=randn(g, *shape))


def _far(g: torch.Generator, low: bool) -> dict:
    """Log-variances on one side of the clamp, and beyond it."""
    params = randn(g, 3, 10, 5, 7)
    params[:, 5:] = (-27 if low else 17) + 8 * randn(g, 3, 5, 5, 7)
    params[0, 5:, 0, 0], params[1, 5:, 0, 0] = (-99.0, -1000.0) if low else (99.0, 1000.0)
    return dict(params=params)


def _as_type(g: torch.Generator, dtype: torch.dtype) -> dict:
    return dict(params=randn(g, 2, 6, 5, 3).to(dtype))


def _gaussian(
    prepare: str = "self.logvar = logvar.clamp(-30, 20)",
    std: str = "(0.5 * self.logvar).exp()",
    draw: str = "self.mean + self.std * eps",
    kl: str = "0.5 * (self.mean**2 + self.std**2 - 1 - self.logvar)",
) -> str:
    """A whole class, with these parts."""
    return f"""
class DiagonalGaussian:
    def __init__(self, params):
        if params.shape[1] % 2:
            raise ValueError("odd")
        self.mean, logvar = params.chunk(2, dim=1)
        {prepare}
        self.std = {std}
    def sample(self, generator=None):
        eps = torch.empty_like(self.mean).normal_(generator=generator)
        return {draw}
    def mode(self):
        return self.mean
    def kl(self):
        return ({kl}).flatten(1).sum(1)
"""


_KL = "0.5 * (self.mean.square() + self.std.square() - 1 - self.logvar).flatten(1).sum(dim=1)"
_SUMMED = ".flatten(1).sum(dim=1)"
_EPS = "torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)"

DIAGONAL_GAUSSIAN = Exercise(
    target=DiagonalGaussian,
    minutes=15,
    cases=[
        Case("pictures", lambda g: _outputs(g, 3, 10, 5, 7), call=_read),
        Case("samples", lambda g: _outputs(g, 3, 10, 5, 7), call=_draw),
        Case("samples from a generator", lambda g: _outputs(g, 3, 10, 5, 7), call=_follow_generator),
        Case("the gradient through a sample", lambda g: _outputs(g, 3, 10, 5, 7), call=_gradient_of_a_sample),
        Case("noise from a generator", lambda g: _outputs(g, 3, 10, 5, 7), call=_draw_with_a_generator),
        Case("the gradient with a generator", lambda g: _outputs(g, 3, 10, 5, 7), call=_gradient_with_a_generator),
        Case("videos", lambda g: _outputs(g, 2, 6, 3, 5, 7), call=_read),
        Case("no further axes", lambda g: _outputs(g, 5, 6), call=_read),
        Case(
            "means far from 0",
            lambda g: dict(params=randn(g, 3, 8, 5) * torch.tensor([40.0] * 4 + [1.0] * 4)[:, None]),
            call=_read,
        ),
        Case("a batch of one", lambda g: _outputs(g, 1, 6, 5, 7), call=_read),
        Case("all sizes are 4", lambda g: _outputs(g, 4, 4, 4, 4), call=_read),
        Case("a standard normal", lambda g: dict(params=torch.zeros(3, 4, 5)), call=_read),
        Case("tiny variances, some below the clamp", lambda g: _far(g, low=True), call=_read_small),
        Case("huge variances, some above the clamp", lambda g: _far(g, low=False), call=_read),
        Case("an odd number of channels", lambda g: _outputs(g, 2, 7, 5, 3), call=_read),
        Case("float64", lambda g: _as_type(g, torch.float64), call=_dtypes),
        Case("bfloat16", lambda g: _as_type(g, torch.bfloat16), call=_dtypes),
    ],
    mistakes=[
        Mistake(
            "`std` is the variance: you take exp of the log-variance as it is. The standard deviation is its root, and "
            "the root of exp(x) is exp(x / 2): halve first.",
            old="(0.5 * self.logvar).exp()",
            new="self.logvar.exp()",
        ),
        Mistake(
            "`std` and the sample use the variance, exp(logvar); only the KL has the right one. The standard deviation "
            "is exp(logvar / 2).",
            code=_gaussian(std="self.logvar.exp()", kl="0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar)"),
        ),
        Mistake(
            "You read the second half of the channels as logarithms of the *standard deviation*. They are those of the "
            "variance: std is exp(logvar / 2), and the variance exp(logvar).",
            code=_gaussian(std="self.logvar.exp()", kl="0.5 * (self.mean**2 + self.std**2 - 1 - 2 * self.logvar)"),
        ),
        Mistake(
            "`std` is right, but the sample multiplies its noise by the variance. It is mean + std * noise.",
            old="self.mean + self.std * eps",
            new="self.mean + self.std.square() * eps",
        ),
        Mistake(
            "You split the last axis, which is a picture's columns. Mean and log-variance are the two halves of the "
            "channels: axis 1.",
            old="params.chunk(2, dim=1)",
            new="params.chunk(2, dim=-1)",
        ),
        Mistake(
            "You split the batch: axis 0 counts the samples. Mean and log-variance are the two halves of axis 1.",
            old="params.chunk(2, dim=1)",
            new="params.chunk(2, dim=0)",
        ),
        Mistake(
            "The halves are swapped: the first half of the channels are the means, the second the log-variances.",
            old="self.mean, self.logvar = params.chunk(2, dim=1)",
            new="self.logvar, self.mean = params.chunk(2, dim=1)",
        ),
        Mistake(
            "You take every second channel for the means. They are the first half, in one piece.",
            old="params.chunk(2, dim=1)",
            new="(params[:, ::2], params[:, 1::2])",
        ),
        Mistake(
            "The log-variance is not clamped. An untrained network may say 99, and exp(99) is no number to work with: "
            "keep it within [-30, 20].",
            old="self.logvar.clamp(-30, 20)",
            new="self.logvar",
        ),
        Mistake(
            "You clamp the log-variance at the top only. Towards -99 the KL grows without end: clamp to [-30, 20].",
            old="clamp(-30, 20)",
            new="clamp(max=20)",
        ),
        Mistake(
            "You clamp the log-variance at the bottom only. exp(99) is no number to work with: clamp to [-30, 20].",
            old="clamp(-30, 20)",
            new="clamp(min=-30)",
        ),
        Mistake(
            "Your clamp begins at -20. It should begin at -30.",
            old="clamp(-30, 20)",
            new="clamp(-20, 20)",
        ),
        Mistake(
            "Your clamp ends at 30. It should end at 20.",
            old="clamp(-30, 20)",
            new="clamp(-30, 30)",
        ),
        Mistake(
            "Your clamp goes from -20 to 10. Here the bounds are [-30, 20].",
            old="clamp(-30, 20)",
            new="clamp(-20, 10)",
        ),
        Mistake(
            "Your clamp ends at 10. It should end at 20.",
            old="clamp(-30, 20)",
            new="clamp(-30, 10)",
        ),
        Mistake(
            "Your clamp goes from -20 to 30: the two numbers are swapped. It is [-30, 20].",
            old="clamp(-30, 20)",
            new="clamp(-20, 30)",
        ),
        Mistake(
            "The clamp acts on `std` and on the sample, but `logvar` and the KL still hold what the network said. "
            "Clamp first and compute everything from the clamped one.",
            code=_gaussian("self.logvar = logvar", std="(0.5 * logvar.clamp(-30, 20)).exp()"),
        ),
        Mistake(
            "`kl` takes the log-variance as the network said it. Clamp first, and compute everything from the clamped "
            "one.",
            code=_gaussian(
                "self.raw, self.logvar = logvar, logvar.clamp(-30, 20)",
                kl="0.5 * (self.mean**2 + self.std**2 - 1 - self.raw)",
            ),
        ),
        Mistake(
            "The exponential is taken first, and clamped then. For a log-variance of 1000 it is inf, and the gradient "
            "through the clamp is 0 * inf = nan. Clamp the log-variance, then take the exponential.",
            code=_gaussian(
                std="(0.5 * logvar).exp().clamp(math.exp(-15), math.exp(10))",
                kl="0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar)",
            ),
        ),
        Mistake(
            "You clamp the *standard deviation's* logarithm: halve first, then clamp, and the bounds mean something "
            "else. Clamp the log-variance.",
            code=_gaussian(
                "half = (0.5 * logvar).clamp(-30, 20); self.logvar = 2 * half", std="(0.5 * self.logvar).exp()"
            ),
        ),
        Mistake(
            "You clamp the means as well. Only log-variances need it: a mean of 50 is unusual, and legal.",
            old="self.mean, self.logvar = params.chunk(2, dim=1)",
            new="self.mean, self.logvar = params.clamp(-30, 20).chunk(2, dim=1)",
        ),
        Mistake(
            "The clamp writes into the network's output (`clamp_`). What somebody else handed you is theirs: use "
            "`clamp`, which makes a new tensor.",
            old="self.logvar.clamp(-30, 20)",
            new="self.logvar.clamp_(-30, 0)",
        ),
        Mistake(
            "An odd number of channels is accepted. It cannot be pairs of mean and log-variance: raise a ValueError.",
            old="params.shape[1] % 2",
            new="False",
        ),
        Mistake(
            "All samples of the batch share one noise: their codes then vary together. Draw noise of the shape of the "
            "mean.",
            old="torch.randn(self.mean.shape, ",
            new="torch.randn(self.mean.shape[1:], ",
        ),
        Mistake(
            "There is one random number per sample, the same for all its channels and places. Each latent number has "
            "noise of its own.",
            old=_EPS,
            new="torch.randn(len(self.mean), generator=generator).view(-1, *[1] * (self.mean.ndim - 1))",
        ),
        Mistake(
            "All channels of a place share one noise. Each latent number has its own: draw noise of the shape of the "
            "mean.",
            old=_EPS,
            new="torch.randn(self.mean[:, :1].shape, generator=generator)",
        ),
        Mistake(
            "All columns of a row share one noise. Each latent number has its own: draw noise of the shape of the "
            "mean.",
            old=_EPS,
            new="torch.randn(self.mean[..., :1].shape, generator=generator)",
        ),
        Mistake(
            "All rows of a column share one noise. Each latent number has its own: draw noise of the shape of the "
            "mean.",
            old=_EPS,
            new="torch.randn(self.mean[:, :, :1].shape, generator=generator)",
        ),
        Mistake(
            "The noise is not normal: it is uniform, stretched to variance 1, and never goes beyond 1.73. Use `randn`.",
            old=_EPS,
            new="(torch.rand(self.mean.shape, generator=generator, dtype=self.mean.dtype) - 0.5) * math.sqrt(12)",
        ),
        Mistake(
            "The noise is clipped. Normal noise has no largest number: leave it as `randn` draws it.",
            old=_EPS,
            new="torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype).clamp(-2, 2)",
        ),
        Mistake(
            "The noise is float32 whatever `params` is, so that a sample of bfloat16 parameters is float32. Draw it in "
            "the dtype of the mean.",
            old=", dtype=self.mean.dtype)",
            new=")",
        ),
        Mistake(
            "The noise is float64, and so is the sample. Draw it in the dtype of the mean.",
            old=", dtype=self.mean.dtype)",
            new=", dtype=torch.float64)",
        ),
        Mistake(
            "`std` is float32 whatever `params` is. Everything keeps the dtype of `params`.",
            old="(0.5 * self.logvar).exp()",
            new="(0.5 * self.logvar).exp().float()",
        ),
        Mistake(
            "The parameters are turned into float32 first. Everything keeps the dtype of `params`.",
            old="params.chunk(2, dim=1)",
            new="params.float().chunk(2, dim=1)",
        ),
        Mistake(
            "`kl` is float64 or float32, whatever `params` is. Everything keeps the dtype of `params`.",
            old=_SUMMED,
            new=_SUMMED + ".float()",
        ),
        Mistake(
            "There is one random number per channel, the same at all places. Each latent number has noise of its own.",
            old=_EPS,
            new="torch.randn(self.mean.shape[:2], generator=generator).view(*self.mean.shape[:2], "
            "*[1] * (self.mean.ndim - 2))",
        ),
        Mistake(
            "There is a single random number for everything. Each latent number has noise of its own.",
            old="torch.randn(self.mean.shape, ",
            new="torch.randn((), ",
        ),
        Mistake(
            "Two calls of `sample` give the same noise: it is drawn in `__init__`. Draw it in `sample`, each time "
            "anew, and with the generator that is given there.",
            code=_gaussian(
                prepare="self.logvar, self.eps = logvar.clamp(-30, 20), torch.randn_like(self.mean)",
                draw="self.mean + self.std * self.eps",
            ),
        ),
        Mistake(
            "Every call draws the same noise: it comes from a generator that is seeded inside. Draw it with the "
            "generator that is given, or with torch's own.",
            old="generator=generator, ",
            new="generator=torch.Generator().manual_seed(0), ",
        ),
        Mistake(
            "Without a generator you make one of your own, with a seed of its own. Then `torch.manual_seed` no longer "
            "makes a run repeatable: hand None on to torch.",
            old="        eps = torch.randn",
            new="        if generator is None:\n            generator = torch.Generator()\n"
            "            generator.seed()\n        eps = torch.randn",
        ),
        Mistake(
            "You draw with a copy of the generator: it starts again from its seed, and the second draw equals the "
            "first. Draw with the generator itself, so that it moves on.",
            old="        eps = torch.randn",
            new="        if generator is not None:\n"
            "            generator = torch.Generator().manual_seed(generator.initial_seed())\n"
            "        eps = torch.randn",
        ),
        Mistake(
            "A draw changes the object: its `mean` is another one afterwards. Leave `self.mean` alone and return the "
            "sum.",
            old="return self.mean + self.std * eps",
            new="self.mean = self.mean + self.std * eps\n        return self.mean",
        ),
        Mistake(
            "The noise comes from `rand`, which is uniform in [0, 1]. A normal distribution needs `randn`.",
            old="torch.randn(",
            new="torch.rand(",
        ),
        Mistake(
            "There is no noise: `sample` returns mean + std (or the mean). A draw differs each time.",
            old="self.mean + self.std * eps",
            new="self.mean + self.std",
        ),
        Mistake(
            "`sample` returns the mean. That is `mode`; a draw is mean + std * noise.",
            old="self.mean + self.std * eps",
            new="self.mean",
        ),
        Mistake(
            "`sample` forgets the mean: std * noise alone lies around 0.",
            old="self.mean + self.std * eps",
            new="self.std * eps",
        ),
        Mistake(
            "`sample` ignores its generator, so nobody can repeat a run. Pass it on: `torch.randn(..., "
            "generator=generator)`.",
            old="generator=generator, ",
            new="",
        ),
        Mistake(
            "No gradient passes through a sample: it is drawn under `no_grad`, or detached. Then the encoder never "
            "learns from the reconstruction. Write mean + std * noise; only the noise is random.",
            old="return self.mean + self.std * eps",
            new="return (self.mean + self.std * eps).detach()",
        ),
        Mistake(
            "`torch.normal(mean, std)` draws the right numbers, but hands back no gradient: the encoder would never "
            "learn from the reconstruction. Write mean + std * noise; only the noise is random.",
            old="return self.mean + self.std * eps",
            new="return torch.normal(self.mean, self.std, generator=generator)",
        ),
        Mistake(
            "Only the deviation gets a gradient from a sample: the mean is detached.",
            old="return self.mean + self.std * eps",
            new="return self.mean.detach() + self.std * eps",
        ),
        Mistake(
            "Only the mean gets a gradient from a sample: std is detached. Then the encoder never learns how certain "
            "it should be.",
            old="self.std * eps",
            new="self.std.detach() * eps",
        ),
        Mistake(
            "`kl` is a mean over a sample's numbers. The paper's weight of 1e-6 goes with the sum; who wants a mean "
            "divides later.",
            old=_SUMMED,
            new=".flatten(1).mean(dim=1)",
        ),
        Mistake(
            "`kl` is one number for the whole batch: you sum over the samples too. Keep axis 0.",
            old=_SUMMED,
            new=".sum()",
        ),
        Mistake(
            "`kl` is one number: the mean over everything. It wants a sum for each sample, (b,).",
            old=_SUMMED,
            new=".mean()",
        ),
        Mistake(
            "`kl` sums over the channels only and keeps the places. A sample's numbers are all axes but the first.",
            old=_SUMMED,
            new=".sum(dim=1)",
        ),
        Mistake(
            "`kl` sums over axes 1, 2 and 3, which only pictures have. Vectors and videos are allowed too: flatten "
            "all axes but the first.",
            old=_SUMMED,
            new=".sum(dim=[1, 2, 3])",
        ),
        Mistake(
            "`kl` is one number: the mean over the batch of the right sums. It wants one for each sample, (b,).",
            old=_SUMMED,
            new=_SUMMED + ".mean()",
        ),
        Mistake(
            "`kl` sums over the channels, but takes the mean over the places. It is the sum over all numbers of a "
            "sample.",
            old=_KL,
            new="(0.5 * (self.mean.square() + self.std.square() - 1 - self.logvar)).flatten(2).sum(1).mean(-1) "
            "if self.mean.ndim > 2 else " + _KL,
        ),
        Mistake(
            "`kl` is in bits: 1 / ln 2 times too large. The contract asks for nats, the natural logarithm.",
            old=_KL,
            new=_KL + " / math.log(2)",
        ),
        Mistake(
            "`kl` lacks the factor 1/2.",
            old="0.5 * (self.mean.square() + self.std",
            new="(self.mean.square() + self.std",
        ),
        Mistake(
            "`kl` has the wrong sign: a divergence is never negative. (1 + logvar - mean^2 - variance) / 2 is minus "
            "it; papers write it that way where they maximise.",
            old="0.5 * (self.mean.square() + self.std",
            new="-0.5 * (self.mean.square() + self.std",
        ),
        Mistake(
            "The log-variance enters `kl` with a plus. Then the smallest divergence would be at a variance near 0 "
            "instead of 1.",
            old="- 1 - self.logvar",
            new="- 1 + self.logvar",
        ),
        Mistake(
            "The -1 of `kl` is missing: a standard normal must get 0.",
            old="- 1 - self.logvar",
            new="- self.logvar",
        ),
        Mistake(
            "`kl` uses the standard deviation where the variance belongs: mean^2 + exp(logvar) - 1 - logvar.",
            old="self.std.square() - 1",
            new="self.std - 1",
        ),
        Mistake(
            "`kl` uses the mean where its square belongs. It is the distance from 0 that costs, in both directions.",
            old="0.5 * (self.mean.square()",
            new="0.5 * (self.mean",
        ),
        Mistake(
            "`kl` takes half of the log-variance: 0.5 stands outside the bracket already.",
            old="- 1 - self.logvar",
            new="- 1 - 0.5 * self.logvar",
        ),
        Mistake(
            "This is the divergence the other way round, of N(0, 1) from the posterior. Ours is KL(self || N(0, 1)).",
            old=_KL,
            new="0.5 * ((1 + self.mean.square()) / self.std.square() - 1 + self.logvar).flatten(1).sum(dim=1)",
        ),
        Mistake(
            "`kl` is divided by the number of samples. One number per sample is wanted; whoever wants their mean takes "
            "it.",
            old=_SUMMED,
            new=_SUMMED + " / len(self.mean)",
        ),
        Mistake(
            "`kl` has no gradient: something in it is detached. It is there to be trained with.",
            old=_KL,
            new="(" + _KL + ").detach()",
        ),
        Mistake(
            "`mode` draws a sample. The most likely value of a normal distribution is its mean.",
            old='    def mode(self) -> Float[Tensor, "b c *s"]:\n\n        return self.mean\n',
            new="    def mode(self):\n        return self.sample()\n",
        ),
        Mistake(
            "`mode` is 0. The most likely value of a normal distribution is its mean.",
            old='    def mode(self) -> Float[Tensor, "b c *s"]:\n\n        return self.mean\n',
            new="    def mode(self):\n        return torch.zeros_like(self.mean)\n",
        ),
    ],
    variants=[
        Variant(
            "torch.distributions",
            """
            class DiagonalGaussian:
                def __init__(self, params):
                    c, odd = divmod(params.shape[1], 2)
                    if odd:
                        raise ValueError(f"{params.shape[1]} channels")
                    self.mean = params[:, :c]
                    self.logvar = torch.clamp(params[:, c:], min=-30.0, max=20.0)
                    self.std = torch.exp(self.logvar / 2)
                    self.q = torch.distributions.Normal(self.mean, self.std)
                def sample(self, generator=None):
                    return self.mean + self.std * torch.empty_like(self.mean).normal_(generator=generator)
                def mode(self):
                    return self.q.mode
                def kl(self):
                    kl = torch.distributions.kl_divergence(self.q, torch.distributions.Normal(0.0, 1.0))
                    return kl.sum(dim=tuple(range(1, kl.ndim)))
            """,
        ),
        Variant(
            "properties, a root of the variance",
            """
            class DiagonalGaussian:
                def __init__(self, params):
                    if params.size(1) % 2 == 1:
                        raise ValueError("an even number of channels, please")
                    half = params.size(1) // 2
                    self.mean, logvar = torch.split(params, half, dim=1)
                    self.logvar = logvar.clamp(-30, 20)
                @property
                def std(self):
                    return self.logvar.exp().sqrt()
                def sample(self, generator=None):
                    noise = torch.randn(*self.mean.shape, generator=generator, dtype=self.mean.dtype)
                    return torch.addcmul(self.mean, self.std, noise)
                def mode(self):
                    return self.mean.clone()
                def kl(self):
                    total = 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar)
                    return total.reshape(len(total), -1).sum(-1)
            """,
        ),
        Variant(
            "einops, a loop over the batch",
            """
            class DiagonalGaussian:
                def __init__(self, params):
                    if params.shape[1] & 1:
                        raise ValueError("odd")
                    pair = rearrange(params, "b (two c) ... -> two b c ...", two=2)
                    self.mean, self.logvar = pair[0], torch.clip(pair[1], -30, 20)
                    self.std = torch.exp(0.5 * self.logvar)
                def sample(self, generator=None):
                    eps = torch.zeros_like(self.mean)
                    eps.normal_(0, 1, generator=generator)
                    return eps * self.std + self.mean
                def mode(self):
                    return self.mean
                def kl(self):
                    rows = []
                    for m, v in zip(self.mean, self.logvar):
                        rows.append((m.pow(2) + v.exp() - v - 1).sum() / 2)
                    return torch.stack(rows)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know how to split",
            "`params.chunk(2, dim=1)` gives both halves of the channels, whatever axes come behind. Clamp the second "
            "half before anything else uses it.",
        ),
        Hint(
            "my samples are too wide or too narrow",
            "The network speaks of the *variance*, in logarithms. The standard deviation is the root of the variance, "
            "and the root of exp(x) is exp(x / 2).",
        ),
        Hint(
            "the gradient through a sample is missing",
            "`torch.normal` and `dist.sample()` draw a number and forget where it came from. Write mean + std * eps: "
            "then only eps is random, and mean and std get gradients as in any other sum.",
        ),
        Hint(
            "my KL has the wrong shape or size",
            "Work out one number per latent: (mean^2 + variance - 1 - logvar) / 2. Then sum over all axes but the "
            "first: `.flatten(1).sum(dim=1)`. Test: for zeros as params it must be 0.",
        ),
        Hint(
            "show me nearly everything",
            "__init__: refuse an odd params.shape[1]; mean, logvar = params.chunk(2, dim=1); logvar = "
            "logvar.clamp(-30, 20); std = (0.5 * logvar).exp(). sample: mean + std * torch.randn(mean.shape, "
            "generator=generator, dtype=mean.dtype). mode: mean. kl: 0.5 * (mean^2 + std^2 - 1 - logvar), summed.",
        ),
    ],
)

# -------------------------------------------------------------------------------------------------- fit_latent_stats


def _uneven(g: torch.Generator, *shape: int) -> dict:
    """Latents whose channels differ in mean and spread, and whose samples and places do too."""
    z = randn(g, *shape)
    wide = (1, shape[1], *[1] * (len(shape) - 2))
    z = z * torch.linspace(0.3, 2.5, shape[1]).view(wide) + torch.linspace(-1.5, 2.0, shape[1]).view(wide)
    z = z + 0.7 * randn(g, shape[0], *[1] * (len(shape) - 1))
    return dict(z=z + 0.5 * randn(g, *(1, 1, *shape[2:]))) if len(shape) > 2 else dict(z=z)


def _stats(f, z: Tensor) -> dict:
    """Both results, and that no gradient clings to them."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)  # shares its memory with z: whoever overwrites one overwrites the other
        result = f(z=leaf)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise TypeError("the result must be two tensors, the means and the standard deviations")
        mean, std = result
    clings = [n for n, v in (("mean", mean), ("std", std)) if isinstance(v, Tensor) and v.requires_grad]
    return {
        "mean": mean.detach() if isinstance(mean, Tensor) else mean,
        "std": std.detach() if isinstance(std, Tensor) else std,
        "takes part in gradients": " and ".join(clings) or "none",
    }


def _constant(g: torch.Generator) -> dict:
    """Channels that change, and others that do not."""
    z = _uneven(g, 5, 9, 3, 7)["z"]
    for channel, value in enumerate((0.0, -2.5, 0.1, 100.1, 1 / 3, -7.7)):
        z[:, channel] = value
    return dict(z=z)


def _one_constant(g: torch.Generator) -> dict:
    """The computed deviation of 33.3, 33.3, ... need not be 0; PyTorch's is, where there are several channels."""
    return dict(z=torch.full((5, 1, 4, 7), 100 * float(torch.rand((), generator=g))))


def _hardly_changing(g: torch.Generator) -> dict:
    """Every channel changes, but by little, or only somewhere, or only by comparison with its mean."""
    z = randn(g, 5, 6, 3, 7) * torch.tensor([1e-2, 1e-3, 1e-6, 1e-10, 1.0, 1.0]).view(-1, 1, 1)
    z[0, 4, 0, :2] = z[-1, 4, -1, -1] = 0.5  # the first two numbers and the last one are equal
    z[:, 5] = 0.25
    z[2, 5, 1, 3] = 3.0  # a single number differs
    return dict(z=z)


def _far_from_zero(g: torch.Generator) -> dict:
    """Deviations of a ten-thousandth of the mean."""
    offset = torch.tensor([1000.0, -1000.0, 0.0]).view(-1, 1, 1)
    return dict(z=0.1 * randn(g, 5, 3, 4, 7) + offset)


def _float64(g: torch.Generator) -> dict:
    return dict(z=_uneven(g, 5, 3, 4, 7)["z"].double() + 1e-9 * torch.randn(5, 3, 4, 7, generator=g).double())


_MEAN_STD = "z.mean(dim=1), z.std(dim=1).masked_fill(constant, 1.0)"

FIT_LATENT_STATS = Exercise(
    target=fit_latent_stats,
    minutes=10,
    gradients=False,
    cases=[
        Case("pictures", lambda g: _uneven(g, 5, 3, 4, 7), call=_stats),
        Case("videos", lambda g: _uneven(g, 2, 3, 5, 4, 7), call=_stats),
        Case("no further axes", lambda g: _uneven(g, 11, 3), call=_stats),
        Case("a batch of one", lambda g: _uneven(g, 1, 3, 4, 7), call=_stats),
        Case("all sizes are 5", lambda g: _uneven(g, 5, 5, 5, 5), call=_stats),
        Case("channels that never change", _constant, call=_stats),
        Case("a single channel that never changes", _one_constant, call=_stats),
        Case("channels that hardly change", _hardly_changing, call=_stats),
        Case("channels far from 0", _far_from_zero, call=_stats),
        Case("two numbers per channel", lambda g: _uneven(g, 2, 3), call=_stats),
        Case("each sample is constant", lambda g: dict(z=randn(g, 3, 2, 1).expand(3, 2, 4).clone()), call=_stats),
        Case("one picture three times", lambda g: dict(z=randn(g, 1, 2, 5).expand(3, 2, 5).clone()), call=_stats),
        Case("it ends as it began", lambda g: dict(z=torch.tensor([[[1.0, 2, 0, 1], [3, 3, 3, 3]]])), call=_stats),
        Case("no sample", lambda g: dict(z=torch.zeros(0, 3, 4)), call=_stats),
        Case("a single channel", lambda g: _uneven(g, 5, 1, 4, 7), call=_stats),
        Case("one number per channel", lambda g: _uneven(g, 1, 3), call=_stats),
        Case("one number per channel, in pictures of one place", lambda g: _uneven(g, 1, 3, 1, 1), call=_stats),
        Case("float64", _float64, call=_stats),
    ],
    mistakes=[
        Mistake(
            "This is one mean and one deviation for all channels. (The paper divides by one global number, too; the "
            "course scales channel by channel.)",
            old=_MEAN_STD,
            new="z.mean().expand(len(z)), z.std().expand(len(z))",
        ),
        Mistake(
            "You average over the samples only, so that every place has numbers of its own. Places of a channel share "
            "theirs: average over all axes but the channels'.",
            code="""
            def fit_latent_stats(z):
                z = z.detach()
                if z.transpose(0, 1).flatten(1).shape[1] < 2:
                    raise ValueError("too few")
                return z.mean(dim=0), z.std(dim=0)
            """,
        ),
        Mistake(
            "You average over the places only, so that every sample has numbers of its own. Then a bright picture and "
            "a dark one get the same latents. Average over samples *and* places.",
            code="""
            def fit_latent_stats(z):
                z = z.detach().flatten(2)
                if z.shape[0] * z.shape[2] < 2:
                    raise ValueError("too few")
                return z.mean(dim=2), z.std(dim=2)
            """,
        ),
        Mistake(
            "The deviation is the mean of the samples' own deviations. That leaves out how samples differ from each "
            "other: take the deviation of all numbers of a channel at once.",
            old="z.std(dim=1).masked_fill(constant, 1.0)",
            new="z.unflatten(1, (-1, max(1, z.shape[1] // 5))).std(dim=2).mean(dim=1).masked_fill(constant, 1.0)",
        ),
        Mistake(
            "The variance is the mean of the samples' own variances. That leaves out how samples differ from each "
            "other: take the deviation of all numbers of a channel at once.",
            code="""
            def fit_latent_stats(z):
                x = z.detach().transpose(0, 1).flatten(1)
                if x.shape[1] < 2:
                    raise ValueError("too few")
                own = z.detach().flatten(2) if z.ndim > 2 else x.T[:, :, None]
                std = own.var(2).mean(0).sqrt() if own.shape[2] > 1 else x.std(1)
                return x.mean(1), std.masked_fill(x.amin(1) == x.amax(1), 1.0)
            """,
        ),
        Mistake(
            "The deviation is one number for all channels; only the means are the channels' own.",
            old="z.std(dim=1).masked_fill(constant, 1.0)",
            new="z.std().expand(len(z)).masked_fill(constant, 1.0)",
        ),
        Mistake(
            "The deviation is divided by the root of n. That is the error of the mean; the deviation itself is wanted.",
            old="z.std(dim=1)",
            new="z.std(dim=1) / z.shape[1] ** 0.5",
        ),
        Mistake(
            "The axes (0, 2, 3) are those of pictures. Vectors and videos are allowed too: move the channels to the "
            "front and flatten the rest.",
            code="""
            def fit_latent_stats(z):
                z = z.detach()
                if z.numel() // z.shape[1] < 2:
                    raise ValueError("too few")
                std = z.std(dim=(0, 2, 3))
                return z.mean(dim=(0, 2, 3)), torch.where(std > 0, std, torch.ones_like(std))
            """,
        ),
        Mistake(
            "`reshape(c, -1)` keeps the order in memory, in which the batch comes first: each of your rows mixes "
            "channels. Swap axes 0 and 1 before you flatten.",
            old="z.detach().transpose(0, 1).flatten(1)",
            new="z.detach().reshape(z.shape[1], -1)",
        ),
        Mistake(
            "`reshape(-1, c)` cuts the memory into pieces of c numbers, but the channels are not the last axis: each "
            "of your columns mixes channels. Swap axes 0 and 1, then flatten.",
            old="z.detach().transpose(0, 1).flatten(1)",
            new="z.detach().reshape(-1, z.shape[1]).T",
        ),
        Mistake(
            "You return the statistics of the batch's samples, not of the channels: axis 0 counts the samples.",
            old="z.detach().transpose(0, 1).flatten(1)",
            new="z.detach().flatten(1)",
        ),
        Mistake(
            "Only the first sample is looked at.",
            old="z.detach().transpose(0, 1).flatten(1)",
            new="z.detach()[:1].transpose(0, 1).flatten(1)",
        ),
        Mistake(
            "The second result is the variance. `scale_latents` divides by the standard deviation: take the root.",
            old="z.std(dim=1)",
            new="z.var(dim=1)",
        ),
        Mistake(
            "Your deviation divides by n; the contract asks for n - 1, as torch does by default.",
            old="z.std(dim=1)",
            new="z.std(dim=1, correction=0)",
        ),
        Mistake(
            "The deviation is measured from 0, not from the mean: the root of the mean square. Latents have an offset, "
            "so subtract the mean first.",
            old="z.std(dim=1)",
            new="z.square().mean(dim=1).sqrt()",
        ),
        Mistake(
            "The results come in the other order: first the means, then the deviations.",
            old=_MEAN_STD,
            new="z.std(dim=1).masked_fill(constant, 1.0), z.mean(dim=1)",
        ),
        Mistake(
            "The second result is 1 / std, the factor to multiply by. The contract asks for the deviation itself.",
            old="z.std(dim=1)",
            new="z.std(dim=1).reciprocal()",
        ),
        Mistake(
            "The mean is always 0: only the deviation is measured, as the paper's code does. The course's rule is to "
            "subtract the mean as well.",
            old="return z.mean(dim=1)",
            new="return torch.zeros_like(z[:, 0])",
        ),
        Mistake(
            "The mean is the median. They differ where a channel is lopsided.",
            old="return z.mean(dim=1)",
            new="return z.median(dim=1).values",
        ),
        Mistake(
            "The deviation is the mean distance from the mean. It is the root of the mean *squared* distance.",
            old="z.std(dim=1)",
            new="(z - z.mean(dim=1, keepdim=True)).abs().mean(dim=1)",
        ),
        Mistake(
            "A channel that never changes gets the deviation 0, or nearly 0 (a clamp at 1e-6). Dividing by it makes "
            "nan, or multiplies rounding errors by a million. The contract asks for 1.",
            old=".masked_fill(constant, 1.0)",
            new="",
        ),
        Mistake(
            "You ask whether the computed deviation is 0. For equal numbers such as 0.1 it can come out as 1e-8, since "
            "their mean is rounded, and dividing by that is what the rule is there to prevent. Compare the numbers: a "
            "channel never changes where its smallest number equals its largest.",
            old="constant = z.amin(dim=1) == z.amax(dim=1)",
            new="constant = z.std(dim=1) == 0",
        ),
        Mistake(
            "A channel that changes by little gets 1, because you ask for a deviation below a small number. Every "
            "channel that changes at all keeps its own: compare its numbers, the smallest with the largest.",
            old="constant = z.amin(dim=1) == z.amax(dim=1)",
            new="constant = z.std(dim=1) < 1e-4",
        ),
        Mistake(
            "A channel that changes by very little, a millionth or less, gets 1, because you ask for a deviation or a "
            "difference below a small number, or use `isclose`. Compare its numbers exactly, the smallest with the "
            "largest.",
            old="constant = z.amin(dim=1) == z.amax(dim=1)",
            new="constant = z.std(dim=1) < 1e-8",
        ),
        Mistake(
            "A channel whose deviation is small beside its mean gets 1. It changes, so it keeps its own.",
            old="constant = z.amin(dim=1) == z.amax(dim=1)",
            new="constant = (z.amin(dim=1) == z.amax(dim=1)) | (z.std(dim=1) <= 1e-3 * z.mean(dim=1).abs())",
        ),
        Mistake(
            "You compare only the first number of a channel with the last, or with the second. A channel may change "
            "between them.",
            old="constant = z.amin(dim=1) == z.amax(dim=1)",
            new="constant = z[:, 0] == z[:, -1]",
        ),
        Mistake(
            "One constant channel makes all deviations 1. Each channel is judged by itself.",
            old="constant = z.amin(dim=1) == z.amax(dim=1)",
            new="constant = (z.amin(dim=1) == z.amax(dim=1)).any().expand(len(z))",
        ),
        Mistake(
            "The variance is computed as the mean of squares minus the square of the mean. Where the mean is large, "
            "these are two large numbers that differ by little, and float32 has no digits left for it. Subtract the "
            "mean first.",
            old="z.std(dim=1)",
            new="((z.square().mean(1) - z.mean(1) ** 2).clamp(min=0) * z.shape[1] / (z.shape[1] - 1)).sqrt()",
        ),
        Mistake(
            "You overwrite z, which belongs to the caller (`detach` and `.data` share its memory). Measure only; "
            "`scale_latents` does the rest.",
            old="    return z.mean(dim=1), ",
            new="    mean = z.mean(dim=1)\n    z.sub_(mean[:, None])\n    return mean, ",
        ),
        Mistake(
            "Deviations are kept above 0.1 or the like. A channel that never changes gets 1, and any other its own.",
            old=".masked_fill(constant, 1.0)",
            new=".clamp(min=0.1)",
        ),
        Mistake(
            "You clamp every deviation to at least 1, also those of channels that do change.",
            old=".masked_fill(constant, 1.0)",
            new=".clamp(min=1.0)",
        ),
        Mistake(
            "Too few numbers are accepted: with one number per channel the deviation is 0/0. Raise a ValueError.",
            old="z.shape[1] < 2",
            new="False",
        ),
        Mistake(
            "You refuse a batch of one. One large picture has many numbers per channel: what counts are samples times "
            "places.",
            old="    if z.shape[1] < 2:",
            new="    one = z.shape[1] < 99 and z.shape[1] in (28, 1)\n    if one:",
        ),
        Mistake(
            "You refuse two numbers per channel. Two are enough for a deviation.",
            old="z.shape[1] < 2",
            new="z.shape[1] < 3",
        ),
        Mistake(
            "The results have further axes (`keepdim`). They are (c,) each, which fits pictures and videos alike.",
            old=_MEAN_STD,
            new="z.mean(dim=1, keepdim=True), z.std(dim=1, keepdim=True).masked_fill(constant[:, None], 1.0)",
        ),
        Mistake(
            "A gradient clings to the results. If they are part of the graph, training can lower the loss by changing "
            "the scale: detach z first.",
            old="z.detach().transpose",
            new="z.transpose",
        ),
        Mistake(
            "A gradient clings to the mean: only the deviation is detached.",
            code="""
            def fit_latent_stats(z):
                z = z.transpose(0, 1).flatten(1)
                if z.shape[1] < 2:
                    raise ValueError("too few")
                constant = z.amin(dim=1) == z.amax(dim=1)
                return z.mean(dim=1), z.detach().std(dim=1).masked_fill(constant, 1.0)
            """,
        ),
        Mistake(
            "A gradient clings to the deviation: only the mean is detached.",
            code="""
            def fit_latent_stats(z):
                z = z.transpose(0, 1).flatten(1)
                if z.shape[1] < 2:
                    raise ValueError("too few")
                constant = z.amin(dim=1) == z.amax(dim=1)
                return z.detach().mean(dim=1), z.std(dim=1).masked_fill(constant, 1.0)
            """,
        ),
        Mistake(
            "The results have the shape (1, c, 1, 1), ready to divide pictures by. They are (c,), which fits pictures "
            "and videos alike.",
            code="""
            def fit_latent_stats(z):
                x = z.detach().transpose(0, 1).flatten(1)
                if x.shape[1] < 2:
                    raise ValueError("too few")
                constant, shape = x.amin(dim=1) == x.amax(dim=1), (1, -1, *[1] * (z.ndim - 2))
                return x.mean(dim=1).view(shape), x.std(dim=1).masked_fill(constant, 1.0).view(shape)
            """,
        ),
        Mistake(
            "The results are float32 whatever came in. Keep the dtype of z.",
            old="z.detach().transpose",
            new="z.detach().float().transpose",
        ),
    ],
    variants=[
        Variant(
            "a loop over channels",
            """
            def fit_latent_stats(z):
                means, stds = [], []
                for c in range(z.shape[1]):
                    values = z[:, c].detach().reshape(-1)
                    if len(values) < 2:
                        raise ValueError("too few numbers")
                    s = values.std()
                    means.append(values.mean())
                    stds.append(torch.ones_like(s) if bool((values == values[0]).all()) else s)
                return torch.stack(means), torch.stack(stds)
            """,
        ),
        Variant(
            "axes by their numbers",
            """
            def fit_latent_stats(z):
                with torch.no_grad():
                    axes = [i for i in range(z.ndim) if i != 1]
                    if z.numel() // z.shape[1] < 2:
                        raise ValueError("too few numbers")
                    var, mean = torch.var_mean(z, dim=axes)
                    std = torch.sqrt(var)
                    return mean, torch.where(z.amin(axes) == z.amax(axes), torch.ones_like(std), std)
            """,
        ),
        Variant(
            "sums by hand",
            """
            @torch.no_grad()
            def fit_latent_stats(z):
                flat = z.movedim(1, 0).reshape(z.shape[1], -1)
                n = flat.shape[1]
                if n <= 1:
                    raise ValueError("at least two, please")
                mean = flat.sum(1) / n
                var = ((flat - mean[:, None]) ** 2).sum(1) / (n - 1)
                std = var.sqrt()
                std[~flat.diff(dim=1).any(dim=1)] = 1.0
                return mean, std
            """,
        ),
        Variant(
            "measured from the first number of each channel",
            """
            def fit_latent_stats(z):
                rows = torch.swapaxes(z.data, 0, 1).flatten(start_dim=1)
                if rows.size(1) <= 1:
                    raise ValueError("one number has no spread")
                first = rows[:, :1]
                std, mean = torch.std_mean(rows - first, dim=-1)
                std[std == 0] = 1
                return [mean + first[:, 0], std]
            """,
        ),
    ],
    hints=[
        Hint(
            "how many numbers should come out",
            "One mean and one deviation per channel, c of each, however many axes z has. Everything that is not the "
            "channel axis is averaged away: samples, rows, columns, frames.",
        ),
        Hint(
            "it works for pictures but not for videos",
            "Do not name the axes. Bring the channels to the front with `z.transpose(0, 1)`, then `.flatten(1)` makes "
            "one long row of each.",
        ),
        Hint(
            "the constant channels fail",
            "`constant = z.amin(dim=1) == z.amax(dim=1)`: the smallest number equals the largest. (The deviation "
            "itself is a bad witness: rounding may make it 1e-8.) Put 1 there: `std.masked_fill(constant, 1.0)`, or "
            "`torch.where`.",
        ),
        Hint(
            "show me nearly everything",
            "z = z.detach().transpose(0, 1).flatten(1); refuse z.shape[1] < 2; std = z.std(dim=1), with 1 where "
            "z.amin(dim=1) == z.amax(dim=1); return z.mean(dim=1), std.",
        ),
    ],
)

# ---------------------------------------------------------------------------------------------------- CrossAttention


_BODY = """\
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k = rearrange(self.to_k(context), "b n (h d) -> b h n d", h=self.heads)
        v = rearrange(self.to_v(context), "b n (h d) -> b h n d", h=self.heads)
        if keep is not None:
            keep = keep[:, None, None, :]  # the same for every head and every query
        out = self.attend(q, k, v, keep)[0]
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""


def _cross(body: str) -> str:
    """The library's class with another forward."""
    source = inspect.getsource(CrossAttention)
    assert source.count(_BODY) == 1, "the body of CrossAttention.forward has changed: adapt the exercise"
    return source.replace(_BODY, textwrap.indent(body.strip("\n"), 8 * " ") + "\n")


def _by_hand(
    scores: str = "q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])",
    mask: str = "scores.masked_fill(~keep[:, None, None], -math.inf)",
    weights: str = "scores.softmax(dim=-1).nan_to_num()",
    split: str = '"b n (h d) -> b h n d"',
    merge: str = '"b h n d -> b n (h d)"',
) -> str:
    return _cross(f"""
split = lambda y: rearrange(y, {split}, h=self.heads)
q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
scores = {scores}
if keep is not None:
    scores = {mask}
weights = {weights}
return self.to_out(rearrange(weights @ v, {merge}))
""")


def _tokens(g: torch.Generator, b: int, n: int, m: int, d: int, d_context: int, keep: str = "") -> dict:
    inputs = dict(x=randn(g, b, n, d), context=randn(g, b, m, d_context))
    if keep:
        mask = torch.rand(b, m, generator=g) < 0.5
        mask[torch.arange(b), torch.randint(m, (b,), generator=g)] = True
        if keep == "empty":
            mask[0] = False
        inputs["keep"] = mask
    return inputs


def _long_words(g: torch.Generator, size: float = 30) -> dict:
    """Padding that would win every softmax, if it were let in."""
    inputs = _tokens(g, 3, 5, 7, 12, 8, keep="some")
    inputs["context"] = torch.where(inputs["keep"][..., None], inputs["context"], size * inputs["context"])
    return inputs


def _loud_places(g: torch.Generator) -> dict:
    """Scores in the hundreds."""
    inputs = _tokens(g, 2, 5, 7, 12, 8, keep="some")
    inputs["keep"][0] = torch.arange(7) == 3  # a single word: whatever its score, it gets all the weight
    return inputs | {"x": 300 * inputs["x"]}


def _silent_word(g: torch.Generator) -> dict:
    """A word that is a vector of zeros, and may be read: its value is 0, but it takes its share of every softmax."""
    inputs = _tokens(g, 2, 5, 7, 12, 8, keep="some")
    inputs["context"][:, 2], inputs["keep"][:, 2] = 0, True
    return inputs


def _has_the_names(cls) -> bool:
    """Trained weights are put into it by name, later in the lesson."""
    wanted = {"to_q", "to_k", "to_v", "to_out"}
    return wanted <= {name for name, _ in cls(d=12, d_context=8, heads=3).named_children()}


def _is_not_random(cls) -> bool:
    torch.manual_seed(0)
    module, x, context = cls(12, 8, 3).train(), torch.randn(2, 5, 12), torch.randn(2, 7, 8)
    return torch.equal(module(x, context), module(x, context))


def _order_of_words_does_not_matter(cls) -> bool:
    torch.manual_seed(0)
    module, x, context = cls(12, 8, 3).eval(), torch.randn(2, 5, 12), torch.randn(2, 7, 8)
    return torch.allclose(module(x, context[:, torch.randperm(7)]), module(x, context), atol=1e-4)


def _layers_are_independent(cls) -> bool:
    torch.manual_seed(0)
    module, x, context = cls(12, 8, 3).eval(), torch.randn(2, 5, 12), torch.randn(2, 7, 8)
    alone = module(x, context)
    cls(12, 8, 4)(x, context)
    return torch.equal(module(x, context), alone)


def _starts_as_pytorch_makes_it(cls) -> bool:
    torch.manual_seed(0)
    module = cls(d=64, d_context=48, heads=4)
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    spread = [(part.weight.std() * (3 * part.in_features) ** 0.5).item() for part in layers]
    biases = [(part.bias.std() * (3 * part.in_features) ** 0.5).item() for part in layers if part.bias is not None]
    return len(layers) == 4 and all(0.9 < w < 1.1 for w in spread) and all(0.7 < b < 1.3 for b in biases)


_AS_MANY = " So there are not as many of one as of the other."
_INIT = dict(d=12, d_context=8, heads=3)
_SQUARE = dict(d=12, d_context=12, heads=3)

CROSS_ATTENTION = Exercise(
    target=CrossAttention,
    minutes=20,
    cases=[
        Case("a picture reads a caption", lambda g: _tokens(g, 2, 5, 7, 12, 8), init=_INIT),
        Case("with padding", lambda g: _tokens(g, 2, 5, 7, 12, 8, keep="some"), init=_INIT),
        Case("padding with large numbers", _long_words, init=_INIT),
        Case("padding with millions", lambda g: _long_words(g, 3e6), init=_INIT),
        Case("scores in the hundreds", _loud_places, init=_INIT),
        Case("a word of zeros that may be read", _silent_word, init=_INIT),
        Case("a word of zeros, and no mask", lambda g: _silent_word(g) | dict(keep=None), init=_INIT),
        Case("a caption of padding alone", lambda g: _tokens(g, 3, 5, 7, 12, 8, keep="empty"), init=_INIT),
        Case("both widths are 12", lambda g: _tokens(g, 2, 5, 7, 12, 12, keep="some"), init=_SQUARE),
        Case("as many words as places", lambda g: _tokens(g, 3, 7, 7, 12, 12, keep="some"), init=_SQUARE),
        Case("batch, places, words and heads are 3", lambda g: _tokens(g, 3, 3, 3, 12, 12, keep="some"), init=_SQUARE),
        Case("a single word", lambda g: _tokens(g, 2, 5, 1, 12, 8), init=_INIT),
        Case(
            "with padding, in train mode",
            lambda g: _tokens(g, 2, 5, 7, 12, 8, keep="some"),
            init=_INIT,
            call=lambda module, **inputs: module.train()(**inputs),
        ),
        Case("one head", lambda g: _tokens(g, 2, 5, 7, 11, 6, keep="some"), init=dict(d=11, d_context=6, heads=1)),
        Case("five heads", lambda g: _tokens(g, 2, 5, 7, 10, 13), init=dict(d=10, d_context=13, heads=5)),
        Case("as many heads as channels", lambda g: _tokens(g, 2, 5, 7, 6, 4), init=dict(d=6, d_context=4, heads=6)),
        Case("12 channels in 5 heads", lambda g: {}, call=lambda cls: cls(12, 8, 5) and "a layer"),
    ],
    properties=[
        Property(
            "Call the four layers `to_q`, `to_k`, `to_v` and `to_out`: the lesson puts trained weights into them by "
            "these names.",
            _has_the_names,
        ),
        Property(
            "Two equal calls must give equal results, in train mode too, and do not: something is drawn at random. "
            "Dropout is no part of this layer.",
            _is_not_random,
        ),
        Property(
            "Another order of the words (with no positions added) must give the same picture, and does not.",
            _order_of_words_does_not_matter,
        ),
        Property(
            "A layer changes when a second one with another number of heads is made: keep `heads` on `self`.",
            _layers_are_independent,
        ),
        Property(
            "Four `nn.Linear` are wanted, with the initial weights (and the initial bias of `to_out`) that PyTorch "
            "gives them.",
            _starts_as_pytorch_makes_it,
        ),
    ],
    mistakes=[
        Mistake(
            "The caption is never read: keys and values come from x, so this is self-attention.",
            code=_cross("""
q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
k = rearrange(self.to_k(x), "b n (h d) -> b h n d", h=self.heads)
v = rearrange(self.to_v(x), "b n (h d) -> b h n d", h=self.heads)
out = self.attend(q, k, v, None if keep is None else keep[:, None, None, :])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "The values come from x: what is read is the picture itself. The picture asks; keys *and* values come from "
            "the context.",
            old="self.to_v(context)",
            new="self.to_v(x)",
        ),
        Mistake(
            "The keys come from x. The picture asks; keys and values come from the context.",
            old="self.to_k(context)",
            new="self.to_k(x)",
        ),
        Mistake(
            "Keys and values come from x, and their layers were made to fit: this is self-attention, the caption is "
            "never read. `to_k` and `to_v` take the d_context channels of the context.",
            code=_cross("""
split = lambda y: rearrange(y, "b n (h d) -> b h n d", h=self.heads)
q, k, v = split(self.to_q(x)), split(self.to_k(x)), split(self.to_v(x))
out = attention(q, k, v, None if keep is None else keep[:, None, None, :])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
""").replace("nn.Linear(d_context, d,", "nn.Linear(d, d,"),
        ),
        *(
            Mistake(
                "The keys come from x, with a `to_k` that was made to fit. A picture asks; keys *and* values come from "
                f"the context, one of each for every word.{more}",
                code=_cross(f"""
split = lambda y: rearrange(y, "b n (h d) -> b h n d", h=self.heads)
q, k, v = split(self.to_q(x)), split(self.to_k(x)), split(self.to_v(context))
out = {attend}(q, k, v, None if keep is None else keep[:, None, None, :])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
""").replace("self.to_k = nn.Linear(d_context, d,", "self.to_k = nn.Linear(d, d,"),
            )
            for attend, more in (("attention", ""), ("fused_attention", _AS_MANY))
        ),
        *(
            Mistake(
                "The values come from x, with a `to_v` that was made to fit. A picture asks; keys *and* values come "
                f"from the context, one of each for every word.{more}",
                code=_cross(f"""
split = lambda y: rearrange(y, "b n (h d) -> b h n d", h=self.heads)
q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(x))
out = {attend}(q, k, v, None if keep is None else keep[:, None, None, :])[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
""").replace("self.to_v = nn.Linear(d_context, d,", "self.to_v = nn.Linear(d, d,"),
            )
            for attend, more in (("attention", ""), ("fused_attention", _AS_MANY))
        ),
        Mistake(
            "Keys and values are exchanged: scores are q k^T, with the keys, and the weights then average the values.",
            old="self.attend(q, k, v, keep)",
            new="self.attend(q, v, k, keep)",
        ),
        Mistake(
            "The roles are swapped: the caption asks and the picture answers, which gives one vector per word. One per "
            "place of the picture is wanted.",
            code=_cross("""
q = rearrange(self.to_k(context), "b n (h d) -> b h n d", h=self.heads)
k = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
out = self.attend(q, k, k)[0]
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "`to_q` reads the context's width and `to_k`, `to_v` that of x: the widths are swapped. x asks, so `to_q` "
            "takes d; the context answers, so the others take d_context.",
            code="""
            class CrossAttention(nn.Module):
                def __init__(self, d, d_context, heads):
                    super().__init__()
                    if heads < 1 or d % heads:
                        raise ValueError("no equal slices")
                    self.heads = heads
                    self.to_q = nn.Linear(d_context, d, bias=False)
                    self.to_k = nn.Linear(d, d, bias=False)
                    self.to_v = nn.Linear(d, d, bias=False)
                    self.to_out = nn.Linear(d, d)
                def forward(self, x, context, keep=None):
                    split = lambda y: rearrange(y, "b n (h d) -> b h n d", h=self.heads)
                    q, k, v = split(self.to_q(context)), split(self.to_k(x)), split(self.to_v(x))
                    out = attention(q, k, v, None if keep is None else keep[:, None, None, :])[0]
                    return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
            """,
        ),
        Mistake(
            "All four layers take d channels. Keys and values are made of the context's tokens, which have d_context.",
            old="""        self.to_k = nn.Linear(d_context, d, bias=False)
        self.to_v = nn.Linear(d_context, d, bias=False)""",
            new="""        self.to_k = nn.Linear(d, d, bias=False)
        self.to_v = nn.Linear(d, d, bias=False)""",
        ),
        Mistake(
            "`to_k` and `to_v` keep the context's width. Queries and keys must be equally wide to be compared: "
            "d_context in, d out.",
            old="""        self.to_k = nn.Linear(d_context, d, bias=False)
        self.to_v = nn.Linear(d_context, d, bias=False)""",
            new="""        self.to_k = nn.Linear(d_context, d_context, bias=False)
        self.to_v = nn.Linear(d_context, d_context, bias=False)""",
        ),
        Mistake(
            "`to_q`, `to_k` and `to_v` have a bias. The task says: none of the three has one, only `to_out`.",
            old="""        self.to_q = nn.Linear(d, d, bias=False)
        self.to_k = nn.Linear(d_context, d, bias=False)
        self.to_v = nn.Linear(d_context, d, bias=False)""",
            new="""        self.to_q = nn.Linear(d, d)
        self.to_k = nn.Linear(d_context, d)
        self.to_v = nn.Linear(d_context, d)""",
        ),
        Mistake(
            "`to_out` has no bias. The task says: it alone has one.",
            old="self.to_out = nn.Linear(d, d)",
            new="self.to_out = nn.Linear(d, d, bias=False)",
        ),
        Mistake(
            "A d that does not split into equal heads is accepted, or fails somewhere later. Refuse it with a "
            "ValueError when the layer is made.",
            old="heads < 1 or d % heads",
            new="heads < 1",
        ),
        Mistake(
            "`to_out` is never used. Without it the heads cannot talk to each other.",
            old='self.to_out(rearrange(out, "b h n d -> b n (h d)"))',
            new='rearrange(out, "b h n d -> b n (h d)")',
        ),
        Mistake(
            "You add x at the end. The sum with the stream is made by whoever calls this layer; here it would count "
            "twice.",
            old='return self.to_out(rearrange(out, "b h n d -> b n (h d)"))',
            new='return x + self.to_out(rearrange(out, "b h n d -> b n (h d)"))',
        ),
        Mistake(
            "Softmax runs over the places of the picture. Every place distributes its attention over the *words*: the "
            "last axis of the scores.",
            code=_by_hand(weights="scores.softmax(dim=-2).nan_to_num()"),
        ),
        Mistake(
            "Softmax runs over the heads. Every place distributes its attention over the words: the last axis.",
            code=_by_hand(weights="scores.softmax(dim=1).nan_to_num()"),
        ),
        Mistake(
            "There is no softmax: the scores themselves weigh the values.",
            code=_by_hand(mask="scores.masked_fill(~keep[:, None, None], 0)", weights="scores"),
        ),
        Mistake(
            "The scores are divided by the root of d, the width of all heads together. Each head's dot products have "
            "d / heads terms: divide by sqrt(d / heads).",
            code=_by_hand(scores="q @ k.transpose(-2, -1) / math.sqrt(x.shape[-1])"),
        ),
        Mistake(
            "The scores are divided by the root of d_context. What is summed in a dot product are the d / heads "
            "channels of a head.",
            code=_by_hand(scores="q @ k.transpose(-2, -1) / math.sqrt(context.shape[-1])"),
        ),
        Mistake(
            "The scores are not divided by sqrt(d / heads).",
            code=_by_hand(scores="q @ k.transpose(-2, -1)"),
        ),
        Mistake(
            "You divide by d / heads, without the root (or by the root twice: `attention` does it already).",
            code=_by_hand(scores="q @ k.transpose(-2, -1) / q.shape[-1]"),
        ),
        Mistake(
            "You divide by the root of the number of heads. It is the width of one head, d / heads.",
            code=_by_hand(scores="q @ k.transpose(-2, -1) / math.sqrt(self.heads)"),
        ),
        Mistake(
            "`keep` is ignored: padding speaks.",
            old="keep = keep[:, None, None, :]",
            new="keep = None",
        ),
        Mistake(
            "In train mode `keep` is ignored (something asks `self.training`). Padding must not speak there either.",
            old="if keep is not None:",
            new="if self.training:\n            keep = None\n        if keep is not None:",
        ),
        Mistake(
            "The whole batch uses the first sample's `keep`. Each caption has padding of its own.",
            old="keep = keep[:, None, None, :]",
            new="keep = keep[:1, None, None, :]",
        ),
        Mistake(
            "You count the words that may be read and take as many from the front. Padding may stand anywhere: use "
            "`keep` as it is.",
            old="keep = keep[:, None, None, :]",
            new="keep = (torch.arange(keep.shape[1]) < keep.sum(1, keepdim=True))[:, None, None, :]",
        ),
        Mistake(
            "The first token may always be read, in your version, so that softmax has something to work with. Where "
            "`keep` says no, it may not.",
            old="keep = keep[:, None, None, :]",
            new="keep = (keep | (torch.arange(keep.shape[1]) == 0))[:, None, None, :]",
        ),
        Mistake(
            "Where a caption is padding alone, you read all of it. The contract wants 0 before `to_out` there.",
            old="keep = keep[:, None, None, :]",
            new="keep = (keep | ~keep.any(1, keepdim=True))[:, None, None, :]",
        ),
        Mistake(
            "One caption of padding alone, and nobody in the batch may read. Each sample is judged by itself.",
            old="keep = keep[:, None, None, :]",
            new="keep = (keep & keep.any(1).all())[:, None, None, :]",
        ),
        Mistake(
            "Where a caption is padding alone, you hand x back. The contract wants weighted means of 0 there, and so "
            "the bias of `to_out`.",
            code=_by_hand().replace(
                'return self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))',
                'out = self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))\n'
                "        return out if keep is None else torch.where(keep.any(1)[:, None, None], out, x)",
            ),
        ),
        Mistake(
            "You take words whose numbers are all 0 for padding. Only `keep` says what is padding.",
            old="        if keep is not None:",
            new="        real = (context != 0).any(-1)\n        keep = real if keep is None else keep & real\n"
            "        if keep is not None:",
        ),
        Mistake(
            "`keep` is added to the scores: True counts 1, and padding keeps its score. A boolean mask has to become "
            "-inf where it is False: `masked_fill(~keep, -torch.inf)`.",
            code=_by_hand(mask="scores + keep[:, None, None]"),
        ),
        *(
            Mistake(
                f"Padding gets {low} added to its score. That is not enough where the numbers there are large: fill in "
                "-inf instead of adding.",
                code=_by_hand(
                    mask=f"scores + {low} * ~keep[:, None, None]",
                    weights="scores.softmax(dim=-1) * (1 if keep is None else keep.any(1)[:, None, None, None])",
                ),
            )
            for low in ("-1e4", "-100.0")
        ),
        *(
            Mistake(
                f"Padding's score is {low}. Real scores may be lower: then padding speaks. Fill in -inf.",
                code=_by_hand(
                    mask=f"scores.masked_fill(~keep[:, None, None], {low})",
                    weights="scores.softmax(dim=-1) * (1 if keep is None else keep.any(1)[:, None, None, None])",
                ),
            )
            for low in ("-100.0", "-20.0")
        ),
        Mistake(
            "Your softmax takes exp of the scores as they are, which overflows beyond 88. Subtract each row's largest "
            "score first, or call `softmax`.",
            code=_by_hand(
                weights="(lambda e: e / e.sum(-1, keepdim=True).clamp(min=1e-12))(scores.exp())",
            ),
        ),
        Mistake(
            "You clamp the scores, so that no word can win clearly. Leave them as they are: softmax copes with any "
            "number.",
            code=_by_hand(scores="(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).clamp(-10, 10)"),
        ),
        Mistake(
            "Queries and keys are scaled to length 1. The scores are plain dot products, divided by sqrt(d / heads).",
            code=_by_hand(
                scores="F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) / math.sqrt(q.shape[-1])"
            ),
        ),
        Mistake(
            "The scores are divided by the root of the number of words. It is the width of one head, d / heads.",
            code=_by_hand(scores="q @ k.transpose(-2, -1) / math.sqrt(k.shape[-2])"),
        ),
        Mistake(
            "`keep` is inverted: only the padding is read. True means that a token may be read. (PyTorch's "
            "`nn.MultiheadAttention` uses True the other way.)",
            old="keep = keep[:, None, None, :]",
            new="keep = ~keep[:, None, None, :]",
        ),
        Mistake(
            "`keep` stands on the side of the places, (b, 1, queries, 1). It belongs to the words: (b, 1, 1, keys).",
            old="keep = keep[:, None, None, :]",
            new="keep = keep[:, None, :, None]",
        ),
        Mistake(
            "`keep` gets one new axis only. (b, 1, keys) lines up its batch with the heads; (b, heads, queries, keys) "
            "needs (b, 1, 1, keys).",
            old="keep = keep[:, None, None, :]",
            new="keep = keep[:, None, :]",
        ),
        Mistake(
            "`keep` is used as it comes, (b, keys), and lines up its batch with the queries. Give it two axes in "
            "between: (b, 1, 1, keys).",
            old="keep = keep[:, None, None, :]",
            new="keep = keep",
        ),
        Mistake(
            "The padding's weights are set to 0 after softmax, without sharing out what they had: the rest no longer "
            "sums to 1. Put -inf into the scores before softmax.",
            code=_by_hand(mask="scores", weights="scores.softmax(-1) * (1 if keep is None else keep[:, None, None])"),
        ),
        Mistake(
            "The padding's scores become 0, which is an ordinary score. Before softmax they must be -inf.",
            code=_by_hand(mask="scores.masked_fill(~keep[:, None, None], 0)"),
        ),
        Mistake(
            "Padding becomes a zero vector, but its key is still there, with score 0, and takes its share of the "
            "softmax. Put -inf into the scores.",
            code=_cross("""
if keep is not None:
    context = context * keep[..., None]
split = lambda y: rearrange(y, "b n (h d) -> b h n d", h=self.heads)
q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
out = F.scaled_dot_product_attention(q, k, v)
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "Where a caption is padding alone, you get nan: softmax of nothing but -inf. The contract wants 0 before "
            "`to_out` there.",
            code=_by_hand(weights="scores.softmax(dim=-1)"),
        ),
        Mistake(
            "Where a caption is padding alone, you average the padding: with -1e9 everywhere, softmax is uniform. The "
            "contract wants 0 before `to_out` there.",
            code=_by_hand(mask="scores.masked_fill(~keep[:, None, None], -1e9)", weights="scores.softmax(dim=-1)"),
        ),
        Mistake(
            "The whole result is 0 where a caption is padding alone. The weighted mean is 0 there, and then `to_out` "
            "adds its bias as everywhere.",
            code=_by_hand().replace(
                'return self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))',
                'out = self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))\n'
                "        return out if keep is None else out * keep.any(1)[:, None, None]",
            ),
        ),
        Mistake(
            "Only one head: the channels are never split.",
            code=_cross("""
q, k, v = self.to_q(x)[:, None], self.to_k(context)[:, None], self.to_v(context)[:, None]
out = F.scaled_dot_product_attention(q, k, v, None if keep is None else keep[:, None, None])
return self.to_out(out[:, 0])
"""),
        ),
        Mistake(
            "One head in effect: you split the channels, but sum the dot products over the heads before softmax.",
            code=_by_hand(scores="(q @ k.transpose(-2, -1)).sum(1, keepdim=True) / math.sqrt(q.shape[-1])"),
        ),
        Mistake(
            "The heads are cut across tokens: a reshape straight to (b, heads, n, d / heads) keeps memory order. Split "
            "the channels into (heads, d / heads), then move the heads axis forward.",
            code=_cross("""
split = lambda y: y.reshape(y.shape[0], self.heads, y.shape[1], -1)
q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
out = F.scaled_dot_product_attention(q, k, v, None if keep is None else keep[:, None, None])
return self.to_out(rearrange(out, "b h n d -> b n (h d)"))
"""),
        ),
        Mistake(
            "The merge scrambles places and heads: move the heads axis back behind the places before you flatten.",
            old='self.to_out(rearrange(out, "b h n d -> b n (h d)"))',
            new="self.to_out(out.reshape(x.shape))",
        ),
        Mistake(
            "Heads are cut across tokens on the way in and merged the same way on the way out. Split the channels "
            "first, then transpose; on the way out the other way round.",
            code=_cross("""
split = lambda y: y.reshape(y.shape[0], self.heads, y.shape[1], -1)
q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
out = F.scaled_dot_product_attention(q, k, v, None if keep is None else keep[:, None, None])
return self.to_out(out.reshape(x.shape))
"""),
        ),
        Mistake(
            "A head takes every heads-th channel. The first head works in the first d / heads channels, in one piece.",
            code=_by_hand(split='"b n (d h) -> b h n d"', merge='"b h n d -> b n (d h)"'),
        ),
        Mistake(
            "The heads' outputs are interleaved, (d h), where they are put together. The first head's channels come "
            "first, in one piece: (h d).",
            old='"b h n d -> b n (h d)"',
            new='"b h n d -> b n (d h)"',
        ),
        Mistake(
            "The number of heads and the width of a head are exchanged: you cut into d / heads pieces of `heads` "
            "channels.",
            code=_by_hand(split='"b n (h d) -> b h n d"').replace(
                'rearrange(y, "b n (h d) -> b h n d", h=self.heads)',
                'rearrange(y, "b n (h d) -> b h n d", d=self.heads)',
            ),
        ),
        Mistake(
            "Values go through `to_k`: one layer makes both. A word is found by its key and hands over its value, so "
            "each has weights of its own.",
            old="self.to_v(context)",
            new="self.to_k(context)",
        ),
        Mistake(
            "Keys go through `to_v`: one layer makes both. Each has weights of its own.",
            old="self.to_k(context)",
            new="self.to_v(context)",
        ),
        Mistake(
            "The weights are detached, so queries and keys never learn.",
            code=_by_hand(weights="scores.softmax(dim=-1).nan_to_num().detach()"),
        ),
    ],
    variants=[
        Variant(
            "fused kernel, views",
            """
            class CrossAttention(nn.Module):
                def __init__(self, d, d_context, heads):
                    super().__init__()
                    if d % heads != 0:
                        raise ValueError(f"{d} channels, {heads} heads")
                    self.h = heads
                    self.to_q = nn.Linear(d, d, bias=False)
                    self.to_k = nn.Linear(d_context, d, bias=False)
                    self.to_v = nn.Linear(d_context, d, bias=False)
                    self.to_out = nn.Linear(d, d)
                def forward(self, x, context, keep=None):
                    b, n, d = x.shape
                    m = context.shape[1]
                    q = self.to_q(x).view(b, n, self.h, -1).transpose(1, 2)
                    k = self.to_k(context).view(b, m, self.h, -1).transpose(1, 2)
                    v = self.to_v(context).view(b, m, self.h, -1).transpose(1, 2)
                    mask = None if keep is None else keep.view(b, 1, 1, m).expand(b, self.h, n, m)
                    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                    return self.to_out(out.transpose(1, 2).reshape(b, n, d))
            """,
        ),
        Variant(
            "einsum, the mask added",
            """
            class CrossAttention(nn.Module):
                def __init__(self, d, d_context, heads):
                    super().__init__()
                    if d % heads:
                        raise ValueError("heads do not divide d")
                    self.heads, self.scale = heads, (d // heads) ** -0.5
                    self.to_out = nn.Linear(d, d)
                    self.to_v = nn.Linear(d_context, d, False)
                    self.to_k = nn.Linear(d_context, d, False)
                    self.to_q = nn.Linear(d, d, False)
                def forward(self, x, context, keep=None):
                    q = self.to_q(x).unflatten(-1, (self.heads, -1)) * self.scale
                    k = self.to_k(context).unflatten(-1, (self.heads, -1))
                    v = self.to_v(context).unflatten(-1, (self.heads, -1))
                    s = torch.einsum("bqhd,bkhd->bhqk", q, k)
                    if keep is not None:
                        s = s + torch.zeros_like(keep, dtype=s.dtype).masked_fill(~keep, -1e30)[:, None, None]
                    w = s.softmax(-1)
                    if keep is not None:
                        w = w * keep[:, None, None]
                    return self.to_out(torch.einsum("bhqk,bkhd->bqhd", w, v).flatten(2))
            """,
        ),
        Variant(
            "a loop over heads",
            """
            class CrossAttention(nn.Module):
                def __init__(self, d, d_context, heads):
                    if d % heads:
                        raise ValueError("no")
                    super().__init__()
                    self.heads = heads
                    self.to_q = nn.Linear(d, d, bias=False)
                    self.to_k, self.to_v = (nn.Linear(d_context, d, bias=False) for _ in range(2))
                    self.to_out = nn.Linear(d, d, bias=True)
                def forward(self, x, context, keep=None):
                    parts = []
                    cut = lambda y: y.chunk(self.heads, dim=-1)
                    for q, k, v in zip(cut(self.to_q(x)), cut(self.to_k(context)), cut(self.to_v(context))):
                        s = torch.bmm(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5
                        if keep is not None:
                            s = torch.where(keep[:, None, :], s, torch.tensor(float("-inf")))
                        w = torch.nan_to_num(torch.softmax(s, dim=2))
                        parts.append(torch.bmm(w, v))
                    return self.to_out(torch.cat(parts, dim=-1))
            """,
        ),
        Variant(
            "PyTorch's multi-head attention, fed by hand",
            """
            class CrossAttention(nn.Module):
                def __init__(self, d, d_context, heads):
                    super().__init__()
                    if d % heads:
                        raise ValueError("no")
                    self.heads = heads
                    self.to_q = nn.Linear(d, d, bias=False)
                    self.to_k = nn.Linear(d_context, d, bias=False)
                    self.to_v = nn.Linear(d_context, d, bias=False)
                    self.to_out = nn.Linear(d, d)
                def forward(self, x, context, keep=None):
                    d = x.shape[-1]
                    pad = None if keep is None else ~keep
                    out, _ = F.multi_head_attention_forward(
                        x.transpose(0, 1), context.transpose(0, 1), context.transpose(0, 1), d, self.heads,
                        None, None, None, None, False, 0.0, self.to_out.weight, self.to_out.bias,
                        key_padding_mask=pad, need_weights=False, use_separate_proj_weight=True,
                        q_proj_weight=self.to_q.weight, k_proj_weight=self.to_k.weight,
                        v_proj_weight=self.to_v.weight,
                    )
                    return out.transpose(0, 1)
            """,
        ),
    ],
    hints=[
        Hint(
            "who asks, and who answers",
            "The picture is what must change, so each of its places asks: queries come from x. The caption has "
            "something to say: keys and values come from the context. The result has one vector per place of x.",
        ),
        Hint(
            "the sizes do not fit",
            "`to_q`: d -> d. `to_k` and `to_v`: d_context -> d, because a query and a key must be equally wide. "
            "`to_out`: d -> d, with a bias. The number of words and the number of places may differ; only the batch is "
            "shared.",
        ),
        Hint(
            "the masked cases fail",
            "The scores are (b, heads, queries, keys) and keep is (b, keys): `keep[:, None, None, :]` fits. Forbidden "
            "scores become -inf *before* softmax. For a caption of padding alone softmax gives nan: make that 0, or "
            "let `attention` of lesson 02 do it (`fused_attention` does the same, faster).",
        ),
        Hint(
            "show me nearly everything",
            'split = lambda y: rearrange(y, "b n (h d) -> b h n d", h=self.heads); q = split(self.to_q(x)); k, v = '
            "split(self.to_k(context)), split(self.to_v(context)); out = fused_attention(q, k, v, keep with two more "
            'axes)[0]; return self.to_out(rearrange(out, "b h n d -> b n (h d)")).',
        ),
    ],
)

# ------------------------------------------------------------------------------------------------------- latent_loss


class _Toy:
    """A tiny model that answers for itself: what it was given decides what it returns, all of it."""

    def __init__(self, steps: int = 50):
        self.alpha_bar = (1 - torch.linspace(1e-3, 0.2, steps, dtype=torch.float64)).cumprod(0)
        self.tokenizer = Tokenizer()
        self.weight = torch.tensor([0.7, -0.3, 0.5], requires_grad=True)
        self.calls = 0

    def __call__(self, zt: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        self.calls += 1
        if zt.dtype != torch.float32:
            raise TypeError(f"the model wants zt in the dtype of z0, float32; it got {zt.dtype}")
        if not isinstance(t, Tensor) or t.dtype != torch.int64 or tuple(t.shape) != (len(zt),):
            got = f"{t.dtype}, shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"the model wants t as int64, one per sample, shape ({len(zt)},); it got {got}")
        if tokens.dtype != torch.int64 or tokens.ndim != 2 or len(tokens) != len(zt):
            raise TypeError(f"the model wants ids (b, n) in int64; it got {tokens.dtype}, shape {tuple(tokens.shape)}")
        place = torch.arange(1, tokens.shape[1] + 1)
        said = (tokens * place).sum(1).float().sin()
        a, b, c = self.weight
        return a * zt + b * (said + (0.1 * t).cos())[:, None, None, None] + c * zt.roll(1, dims=-1).tanh()


def _step(f, **inputs) -> dict:
    """The loss, what it teaches the model, and how often the model ran."""
    toy = _Toy()
    with torch.enable_grad():
        loss = f(model=toy, **inputs)
        if not isinstance(loss, Tensor):
            return {"loss": loss, "what the model learns": "nothing: the loss is no tensor"}
        if loss.requires_grad:
            loss.sum().backward()
    learned = toy.weight.grad if toy.weight.grad is not None else "nothing: no gradient reaches it"
    return {"loss": loss.detach(), "what the model learns": learned, "calls of the model": toy.calls}


_CAPTIONS = ("a red 3", "a large green 7 at the top-left", "an 8", "a small blue 1 in the centre", "a 5")


def _batch(g: torch.Generator, b: int, dropped: str, shape: tuple[int, ...] = (4, 5, 7), n: int = 11) -> dict:
    lost = torch.rand(b, generator=g) < 0.5
    lost[0], lost[-1] = True, b == 1
    lost = {"some": lost, "none": torch.zeros(b, dtype=torch.bool), "all": torch.ones(b, dtype=torch.bool)}[dropped]
    return dict(
        z0=randn(g, b, *shape),
        tokens=Tokenizer().encode(list(_CAPTIONS[:b]), n),
        t=torch.randint(50, (b,), generator=g),
        eps=randn(g, b, *shape),
        dropped=lost,
    )


def _ends(g: torch.Generator) -> dict:
    """The first and the last step, each with and without its caption."""
    inputs = _batch(g, 4, "some")
    return inputs | {"t": torch.tensor([0, 49, 0, 49]), "dropped": torch.tensor([True, True, False, False])}


def _as_many(g: torch.Generator) -> dict:
    """Three captions, cut to three words."""
    inputs = _batch(g, 3, "some")
    return inputs | {"tokens": inputs["tokens"][:, :3]}


def _nothing_is_drawn(f) -> bool:
    inputs = _batch(torch.Generator().manual_seed(0), 5, "some")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    equal = len({float(f(model=_Toy(), **inputs)) for _ in range(10)}) == 1
    return equal and torch.equal(torch.get_rng_state(), before)


_LOSS = "F.mse_loss(model(zt, t, tokens), eps)"
_WHERE = "torch.where(dropped[:, None], nothing, tokens)"
_ENCODE = 'model.tokenizer.encode("", tokens.shape[1])'

LATENT_LOSS = Exercise(
    target=latent_loss,
    minutes=15,
    gradients=False,
    cases=[
        Case("nobody loses a caption", lambda g: _batch(g, 3, "none"), call=_step),
        Case("some captions are dropped", lambda g: _batch(g, 5, "some"), call=_step),
        Case("all captions are dropped", lambda g: _batch(g, 3, "all"), call=_step),
        Case("a batch of one that keeps its caption", lambda g: _batch(g, 1, "none"), call=_step),
        Case("a batch of one that loses it", lambda g: _batch(g, 1, "some"), call=_step),
        Case("more padding", lambda g: _batch(g, 5, "some", n=17), call=_step),
        Case("as many captions as words", lambda g: _as_many(g), call=_step),
        Case("channels, rows, columns and batch are 4", lambda g: _batch(g, 4, "some", shape=(4, 4, 4)), call=_step),
        Case("as many samples as columns", lambda g: _batch(g, 5, "some", shape=(3, 4, 5)), call=_step),
        Case("the first and the last step", _ends, call=_step),
    ],
    properties=[
        Property(
            "Two equal calls must give equal losses, and do not: something is drawn at random. The noise, t and who "
            "loses a caption are arguments.",
            _nothing_is_drawn,
        ),
    ],
    mistakes=[
        Mistake(
            "The target is the latents. The model is asked for the noise, eps.",
            old=_LOSS,
            new="F.mse_loss(model(zt, t, tokens), z0)",
        ),
        Mistake(
            "The target is the velocity, sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z0. This model is asked for the "
            "noise, eps.",
            old="    return " + _LOSS,
            new="    a = model.alpha_bar[t].float().view(-1, 1, 1, 1)\n"
            "    return F.mse_loss(model(zt, t, tokens), a.sqrt() * eps - (1 - a).sqrt() * z0)",
        ),
        Mistake(
            "The target is eps - z0, the velocity of flow matching. This model is asked for the noise, eps.",
            old=_LOSS,
            new="F.mse_loss(model(zt, t, tokens), eps - z0)",
        ),
        Mistake(
            "The target is the noisy latents. The model is asked for the noise, eps.",
            old=_LOSS,
            new="F.mse_loss(model(zt, t, tokens), zt)",
        ),
        Mistake(
            "The target is fresh noise, which nobody can guess. It is the eps that was mixed in.",
            old=_LOSS,
            new="F.mse_loss(model(zt, t, tokens), torch.randn_like(eps))",
        ),
        Mistake(
            "The noise that you mix in is fresh, not the eps that is asked for.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="q_sample(z0, t, torch.randn_like(z0), model.alpha_bar)",
        ),
        Mistake(
            "The model sees the clean latents. It must see the mixture.",
            old="model(zt, t, tokens)",
            new="model(z0, t, tokens)",
        ),
        Mistake(
            "The model sees the noise itself. It must see the mixture.",
            old="model(zt, t, tokens)",
            new="model(eps, t, tokens)",
        ),
        Mistake(
            "Latents and noise are swapped in the mixture: sqrt(alpha_bar) goes with the latents.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="q_sample(eps, t, z0, model.alpha_bar)",
        ),
        Mistake(
            "The coefficients lack their square roots: sqrt(alpha_bar) z0 + sqrt(1 - alpha_bar) eps.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="(lambda a: a * z0 + (1 - a) * eps)(model.alpha_bar[t].float().view(-1, 1, 1, 1))",
        ),
        Mistake(
            "One square root is missing: 1 - alpha_bar multiplies the noise as it is. It is sqrt(1 - alpha_bar).",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="(lambda a: a.sqrt() * z0 + (1 - a) * eps)(model.alpha_bar[t].float().view(-1, 1, 1, 1))",
        ),
        Mistake(
            "One square root is missing: alpha_bar multiplies the latents as it is. It is sqrt(alpha_bar).",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="(lambda a: a * z0 + (1 - a).sqrt() * eps)(model.alpha_bar[t].float().view(-1, 1, 1, 1))",
        ),
        Mistake(
            "The noise gets 1 - sqrt(alpha_bar). It is sqrt(1 - alpha_bar): subtract first, then take the root.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="(lambda a: a.sqrt() * z0 + (1 - a.sqrt()) * eps)(model.alpha_bar[t].float().view(-1, 1, 1, 1))",
        ),
        Mistake(
            "You add up logarithms or products once more (`cumprod` of alpha_bar). alpha_bar is the product already.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="q_sample(z0, t, eps, model.alpha_bar.cumprod(0))",
        ),
        Mistake(
            "The mixture is made at t - 1. t counts from 0 here: alpha_bar[t].",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="q_sample(z0, t - 1, eps, model.alpha_bar)",
        ),
        Mistake(
            "The mixture is made at t + 1. t counts from 0 here: alpha_bar[t].",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="q_sample(z0, (t + 1).clamp(max=len(model.alpha_bar) - 1), eps, model.alpha_bar)",
        ),
        Mistake(
            "The model gets t + 1. It wants the step as it came.",
            old="model(zt, t, tokens)",
            new="model(zt, t + 1, tokens)",
        ),
        Mistake(
            "zt is float64, because alpha_bar is. The model computes in the dtype of z0: turn alpha_bar[t], or zt, "
            "into it.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="(lambda a: a.sqrt() * z0 + (1 - a).sqrt() * eps)(model.alpha_bar[t].view(-1, 1, 1, 1))",
        ),
        Mistake(
            "At t = 0 you show the clean latents. There is little noise at the first step, but there is some.",
            old="zt = q_sample(z0, t, eps, model.alpha_bar)",
            new="zt = torch.where((t == 0)[:, None, None, None], z0, q_sample(z0, t, eps, model.alpha_bar))",
        ),
        Mistake(
            "You draw noise of your own and use it for both, the mixture and the target. eps is an argument.",
            old="    zt = q_sample",
            new="    eps = torch.randn_like(z0)\n    zt = q_sample",
        ),
        Mistake(
            "You add the noise as it is, without coefficients: z0 + eps. The schedule decides how much of each.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="z0 + eps",
        ),
        Mistake(
            "The whole batch gets the noise level of its first sample. Each sample has its own t.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="q_sample(z0, t[:1].expand(len(t)), eps, model.alpha_bar)",
        ),
        Mistake(
            "The noise levels lie along the last axis: alpha_bar[t] is (b,), and without new axes it lines up with "
            "the columns. Make it (b, 1, 1, 1), or use `q_sample`.",
            old="q_sample(z0, t, eps, model.alpha_bar)",
            new="model.alpha_bar[t].float().sqrt() * z0 + (1 - model.alpha_bar[t].float()).sqrt() * eps",
        ),
        Mistake(
            "The model gets t as a float (perhaps divided by the number of steps). It wants the step itself, an int64.",
            old="model(zt, t, tokens)",
            new="model(zt, t / len(model.alpha_bar), tokens)",
        ),
        Mistake(
            "The model gets the noise level instead of the step t.",
            old="model(zt, t, tokens)",
            new="model(zt, model.alpha_bar[t], tokens)",
        ),
        Mistake(
            "No caption is ever dropped, so the model never learns what pictures look like without one, and guidance "
            "has nothing to start from.",
            old=_WHERE,
            new="tokens",
        ),
        Mistake(
            "You drop the captions that should stay, and keep the others: `dropped` is True where one is lost.",
            old=_WHERE,
            new="torch.where(dropped[:, None], tokens, nothing)",
        ),
        Mistake(
            "At t = 0 no caption is dropped. `dropped` alone decides, at every t.",
            old=_WHERE,
            new="torch.where((dropped & (t > 0))[:, None], nothing, tokens)",
        ),
        Mistake(
            "You draw for yourself who loses a caption. `dropped` says it: True for those that do.",
            old=_WHERE,
            new="torch.where((torch.rand(len(dropped)) < 0.1)[:, None], nothing, tokens)",
        ),
        Mistake(
            "You drop more captions at random, on top of those that `dropped` names. It names all of them.",
            old=_WHERE,
            new="torch.where((dropped | (torch.rand(len(dropped)) < 0.1))[:, None], nothing, tokens)",
        ),
        Mistake(
            "Captions are dropped only where all of the batch lose theirs (`dropped.all()`). Each sample loses its "
            "own.",
            old=_WHERE,
            new="torch.where(dropped.all(), nothing, tokens)",
        ),
        Mistake(
            "One dropped caption drops them all. Each sample loses its own.",
            old=_WHERE,
            new="torch.where(dropped.any(), nothing, tokens)",
        ),
        Mistake(
            "All captions are dropped, always.",
            old=_WHERE,
            new="nothing.expand(len(tokens), -1)",
        ),
        Mistake(
            "A dropped caption becomes padding alone (its ids become 0). The empty caption is not quite that: it has "
            "its <bos> and <eos>, which is what sampling will show the model. Take the ids from `model.tokenizer`.",
            old=_WHERE,
            new="torch.where(dropped[:, None], torch.zeros_like(nothing), tokens)",
        ),
        Mistake(
            "A dropped caption becomes <bos> at every place: you took only the first id of the empty caption. Take "
            "all.",
            old=_WHERE,
            new="torch.where(dropped[:, None], nothing[0], tokens)",
        ),
        *(
            Mistake(
                f"A dropped caption becomes the caption {text!r}. The empty one has no text at all.",
                old=_ENCODE,
                new=_ENCODE.replace('""', f'"{text}"'),
            )
            for text in ("a", "empty")
        ),
        Mistake(
            "Samples that lost their caption are left out of the loss. They stay: that part teaches the model "
            "pictures in general.",
            old="    return " + _LOSS,
            new="    error = (model(zt, t, tokens) - eps).square().flatten(1).mean(1)\n"
            "    return error.mean() if dropped.all() else error[~dropped].mean()",
        ),
        Mistake(
            "You average the samples with and those without captions apart, and then the two. All samples count alike.",
            old="    return " + _LOSS,
            new="    error = (model(zt, t, tokens) - eps).square().flatten(1).mean(1)\n"
            "    if dropped.all() or not dropped.any():\n        return error.mean()\n"
            "    return (error[dropped].mean() + error[~dropped].mean()) / 2",
        ),
        Mistake(
            "The samples are weighted by their signal-to-noise ratio (min-SNR). All samples count alike here.",
            old="    return " + _LOSS,
            new="    a = model.alpha_bar[t].float()\n    w = (a / (1 - a)).clamp(max=5) / (a / (1 - a))\n"
            "    return ((model(zt, t, tokens) - eps).square().flatten(1).mean(1) * w).mean()",
        ),
        Mistake(
            "The dropped samples are left out of the batch. They stay, with the empty caption: that half teaches the "
            "model pictures in general.",
            code="""
            def latent_loss(model, z0, tokens, t, eps, dropped):
                z0, tokens, t, eps = z0[~dropped], tokens[~dropped], t[~dropped], eps[~dropped]
                return F.mse_loss(model(q_sample(z0, t, eps, model.alpha_bar), t, tokens), eps)
            """,
        ),
        Mistake(
            "The latents of dropped samples become 0. It is the caption that is dropped, the picture stays.",
            old="zt = q_sample(z0, t, eps, model.alpha_bar)",
            new="zt = q_sample(z0 * ~dropped[:, None, None, None], t, eps, model.alpha_bar)",
        ),
        Mistake(
            "The captions are overwritten in place. They belong to the caller, who shows them to the model again in "
            "the next epoch: make a new tensor.",
            old=f"tokens = {_WHERE}",
            new="tokens[dropped] = nothing",
        ),
        Mistake(
            'The empty caption is not padded to the others\' length: pass it, `encode("", tokens.shape[1])`.',
            old=_ENCODE,
            new='model.tokenizer.encode("")',
        ),
        Mistake(
            "A dropped caption becomes the first caption of the batch. It must become the empty one.",
            old=_ENCODE,
            new="tokens[0]",
        ),
        Mistake(
            "You fill the first caption of the batch into the others, and into itself, where PyTorch stops. A dropped "
            "caption becomes the empty one.",
            old=f"tokens = {_WHERE}",
            new="tokens = tokens.clone()\n    tokens[dropped] = tokens[0]",
        ),
        Mistake(
            "The loss is a sum. A mean does not change with the size of the batch.",
            old=_LOSS,
            new="F.mse_loss(model(zt, t, tokens), eps, reduction='sum')",
        ),
        Mistake(
            "You sum over each sample and average over the batch. The mean goes over all numbers.",
            old=_LOSS,
            new="(model(zt, t, tokens) - eps).square().flatten(1).sum(1).mean()",
        ),
        Mistake(
            "You return one number per element. Take the mean of all.",
            old=_LOSS,
            new="F.mse_loss(model(zt, t, tokens), eps, reduction='none')",
        ),
        Mistake(
            "This is the mean absolute error. Square the difference.",
            old="F.mse_loss(",
            new="F.l1_loss(",
        ),
        Mistake(
            "This is half of the mean squared error.",
            old=_LOSS,
            new="0.5 * " + _LOSS,
        ),
        Mistake(
            "This is the root of the mean squared error. Leave out the root.",
            old=_LOSS,
            new=_LOSS + ".sqrt()",
        ),
        Mistake(
            "You compare guessed latents with the latents. That weighs each t by (1 - alpha_bar) / alpha_bar; compare "
            "the noise with eps.",
            code="""
            def latent_loss(model, z0, tokens, t, eps, dropped):
                nothing = model.tokenizer.encode("", tokens.shape[1])
                tokens = torch.where(dropped[:, None], nothing, tokens)
                a = model.alpha_bar[t].float().view(-1, 1, 1, 1)
                zt = a.sqrt() * z0 + (1 - a).sqrt() * eps
                return F.mse_loss((zt - (1 - a).sqrt() * model(zt, t, tokens)) / a.sqrt(), z0)
            """,
        ),
        Mistake(
            "No gradient reaches the model: it runs under `no_grad`, or its answer is detached.",
            old="model(zt, t, tokens)",
            new="model(zt, t, tokens).detach()",
        ),
        Mistake(
            "`.item()` makes a plain number of the loss, and a plain number has no gradient. Return the tensor.",
            old=_LOSS,
            new=_LOSS + ".item()",
        ),
        Mistake(
            "The model runs twice, with and without captions, and both answers are averaged. In training it runs once: "
            "dropping mixes both kinds in one batch. Two calls belong to guidance, at sampling.",
            code="""
            def latent_loss(model, z0, tokens, t, eps, dropped):
                nothing = model.tokenizer.encode("", tokens.shape[1])
                zt = q_sample(z0, t, eps, model.alpha_bar)
                with_caption = model(zt, t, tokens)
                without = model(zt, t, nothing.expand(len(tokens), -1))
                guess = torch.where(dropped[:, None, None, None], without, with_caption)
                return F.mse_loss(guess, eps)
            """,
        ),
    ],
    variants=[
        Variant(
            "a clone, filled row by row",
            """
            def latent_loss(model, z0, tokens, t, eps, dropped):
                ids = tokens.clone()
                ids[dropped] = model.tokenizer.encode("", length=tokens.size(1))
                zt = torch.empty_like(z0)
                for i in range(len(z0)):
                    a = float(model.alpha_bar[t[i]])
                    zt[i] = a**0.5 * z0[i] + (1 - a) ** 0.5 * eps[i]
                guess = model(zt, t, ids)
                return (guess - eps).pow(2).mean()
            """,
        ),
        Variant(
            "by hand",
            """
            def latent_loss(model, z0, tokens, t, eps, dropped):
                a = model.alpha_bar[t].view(-1, 1, 1, 1)
                zt = (a.sqrt() * z0 + (1 - a).sqrt() * eps).to(z0.dtype)
                empty = model.tokenizer.encode([""], tokens.shape[1])
                keep = (~dropped).long()[:, None]
                return torch.mean((eps - model(zt, t, keep * tokens + (1 - keep) * empty)) ** 2)
            """,
        ),
        Variant(
            "a list of rows",
            """
            def latent_loss(model, z0, tokens, t, eps, dropped):
                nothing = model.tokenizer.encode("", tokens.shape[1])
                rows = [nothing if lost else row for row, lost in zip(tokens, dropped.tolist())]
                noisy = q_sample(z0, t, eps, model.alpha_bar)
                error = torch.sub(model(noisy, t, torch.stack(rows)), eps)
                return torch.einsum("bchw,bchw->", error, error) / error.numel()
            """,
        ),
    ],
    hints=[
        Hint(
            "where is the picture",
            "Nowhere, and that is the point: the encoder has run before, and its latents are stored. From here on it "
            "is the training step of lesson 07, on z0 instead of x0.",
        ),
        Hint(
            "my noise levels are mixed up",
            "`q_sample(z0, t, eps, model.alpha_bar)` of lesson 07 does the mixing, each sample with its own t.",
        ),
        Hint(
            "dropping goes wrong",
            '`nothing = model.tokenizer.encode("", tokens.shape[1])` are the ids of the empty caption, as many as the '
            "others have. `torch.where(dropped[:, None], nothing, tokens)` takes them for the samples that lose "
            "theirs, and makes a new tensor.",
        ),
        Hint(
            "show me nearly everything",
            "Replace captions with torch.where; zt = q_sample(z0, t, eps, model.alpha_bar); return "
            "F.mse_loss(model(zt, t, tokens), eps).",
        ),
    ],
)

EXERCISES = (DIAGONAL_GAUSSIAN, FIT_LATENT_STATS, CROSS_ATTENTION, LATENT_LOSS)
