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


def _noise(cls, params: Tensor, draws: int = 1) -> Tensor:
    """The standard normal noise inside samples, (draws, b, c, ...): what is left without mean and deviation."""
    c = params.shape[1] // 2
    mean, std = params[:, :c], (0.5 * params[:, c:]).exp()
    q = cls(params)
    return torch.stack([(q.sample().detach() - mean) / std for _ in range(draws)])


def _draw(cls, params: Tensor) -> dict:
    """What can be said about samples whatever the order in which their noise is drawn."""
    with torch.no_grad():
        noise = _noise(cls, params, 64)
        return {
            "shape of a sample": str(tuple(cls(params).sample().shape)),
            "noise: mean": _about(noise.mean(), 0),
            "noise: standard deviation": _about(noise.std(), 1),
            "noise: beyond 1.8": bool(noise.abs().max() > 1.8),
            "noise: shared by": _shared(noise),
        }


def _about(value: Tensor, wanted: float) -> str:
    return f"{wanted}" if abs(value - wanted) < 0.07 else f"{abs(value):.1f}, not {wanted}"


def _shared(noise: Tensor) -> str:
    names = ("calls", "samples of the batch", "channels", "rows", "columns")
    shared = [names[i] for i in range(noise.ndim) if noise.shape[i] > 1 and bool(noise.std(dim=i).max() < 1e-3)]
    return " and ".join(shared) or "nothing"


def _follow_generator(cls, params: Tensor) -> dict:
    q, g = cls(params), lambda seed: torch.Generator().manual_seed(seed)
    with torch.no_grad():
        first, again, other, free = q.sample(g(3)), q.sample(g(3)), q.sample(g(4)), q.sample()
        one = g(3)
        return {
            "equal generators give equal samples": torch.equal(first, again),
            "another seed gives another sample": not torch.equal(first, other),
            "the same generator goes on": not torch.equal(q.sample(one), q.sample(generator=one)),
            "without a generator another sample": not torch.equal(first, free),
        }


def _gradient_of_a_sample(cls, params: Tensor) -> dict:
    """Of the sum of a sample: 1 for each mean, half of what the noise added for each logvar."""
    with torch.enable_grad():
        leaf = params.detach().clone().requires_grad_(True)
        q = cls(leaf)
        z = q.sample()
        if not z.requires_grad:
            return {"gradient": "a sample has none"}
        z.sum().backward()
    c = params.shape[1] // 2
    spread, half = leaf.grad[:, c:], 0.5 * (z.detach() - params[:, :c])
    return {
        "gradient": "a sample has one",
        "gradient of the means": leaf.grad[:, :c],
        # half of what the noise added, which differs from answer to answer: compared here, and not handed out
        "gradient of the log-variances": "right" if torch.allclose(spread, half, atol=1e-4) else "wrong",
    }


def _in_float64(cls, params: Tensor) -> dict:
    q = cls(params.double())
    return {"mean": str(q.mean.dtype), "sample": str(q.sample().dtype), "kl()": str(q.kl().dtype)}


def _outputs(g: torch.Generator, *shape: int) -> dict:
    return dict(params=randn(g, *shape))


def _far(g: torch.Generator, low: bool) -> dict:
    """Log-variances on one side of the clamp, and beyond it."""
    params = randn(g, 3, 10, 5, 7)
    params[:, 5:] = (-27 if low else 17) + 8 * randn(g, 3, 5, 5, 7)
    params[0, 5:, 0, 0] = -99.0 if low else 99.0
    return dict(params=params)


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
        Case("videos", lambda g: _outputs(g, 2, 6, 3, 5, 7), call=_read),
        Case("no further axes", lambda g: _outputs(g, 5, 6), call=_read),
        Case("a batch of one", lambda g: _outputs(g, 1, 6, 5, 7), call=_read),
        Case("all sizes are 4", lambda g: _outputs(g, 4, 4, 4, 4), call=_read),
        Case("a standard normal", lambda g: dict(params=torch.zeros(3, 4, 5)), call=_read),
        Case("tiny variances, some below the clamp", lambda g: _far(g, low=True), call=_read),
        Case("huge variances, some above the clamp", lambda g: _far(g, low=False), call=_read),
        Case("an odd number of channels", lambda g: _outputs(g, 2, 7, 5, 3), call=_read),
        Case("float64", lambda g: _outputs(g, 2, 6, 5, 3), call=_in_float64),
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
            code="""
            class DiagonalGaussian:
                def __init__(self, params):
                    if params.shape[1] % 2:
                        raise ValueError("odd")
                    self.mean, self.logvar = params.chunk(2, dim=1)
                    self.logvar = self.logvar.clamp(-30, 20)
                    self.std = self.logvar.exp()
                def sample(self, generator=None):
                    return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)
                def mode(self):
                    return self.mean
                def kl(self):
                    return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)
            """,
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
            "The clamp has the bounds of another code, [-20, 10] (or swapped ones). Here they are [-30, 20].",
            old="clamp(-30, 20)",
            new="clamp(-20, 10)",
        ),
        Mistake(
            "You clamp to [-20, 30]: the minus belongs to the 30.",
            old="clamp(-30, 20)",
            new="clamp(-20, 30)",
        ),
        Mistake(
            "The clamp acts on `std` and on the sample, but `logvar` and the KL still hold what the network said. "
            "Clamp first and compute everything from the clamped one.",
            code="""
            class DiagonalGaussian:
                def __init__(self, params):
                    if params.shape[1] % 2:
                        raise ValueError("odd")
                    self.mean, self.logvar = params.chunk(2, dim=1)
                    self.std = (0.5 * self.logvar.clamp(-30, 20)).exp()
                def sample(self, generator=None):
                    return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)
                def mode(self):
                    return self.mean
                def kl(self):
                    return 0.5 * (self.mean**2 + self.std**2 - 1 - self.logvar).flatten(1).sum(1)
            """,
        ),
        Mistake(
            "You clamp the *standard deviation's* logarithm: halve first, then clamp, and the bounds mean something "
            "else. Clamp the log-variance.",
            code="""
            class DiagonalGaussian:
                def __init__(self, params):
                    if params.shape[1] % 2:
                        raise ValueError("odd")
                    self.mean, self.logvar = params.chunk(2, dim=1)
                    half = (0.5 * self.logvar).clamp(-30, 20)
                    self.std, self.logvar = half.exp(), 2 * half
                def sample(self, generator=None):
                    return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)
                def mode(self):
                    return self.mean
                def kl(self):
                    return 0.5 * (self.mean**2 + self.std**2 - 1 - self.logvar).flatten(1).sum(1)
            """,
        ),
        Mistake(
            "You clamp the means as well, because you clamp before you split. Only log-variances need it: a mean of 25 "
            "is unusual, and legal.",
            old="self.mean, self.logvar = params.chunk(2, dim=1)",
            new="self.mean, self.logvar = params.clamp(-0.5, 20).chunk(2, dim=1)",
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
            "Every call draws the same noise: it comes from a generator that is seeded inside, or it was drawn once, "
            "when the object was made. Draw anew in `sample`.",
            old="generator=generator, ",
            new="generator=torch.Generator().manual_seed(0), ",
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
            "No gradient passes through a sample: it is drawn with `torch.normal`, under `no_grad`, or detached. Then "
            "the encoder never learns from the reconstruction. Write mean + std * noise; only the noise is random.",
            old="return self.mean + self.std * eps",
            new="return (self.mean + self.std * eps).detach()",
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
        leaf = z.detach().clone().requires_grad_(True)
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


def _stats_in_float64(f, z: Tensor) -> dict:
    mean, std = f(z=z.double())
    return {"mean": str(mean.dtype), "std": str(std.dtype)}


def _constant(g: torch.Generator) -> dict:
    z = _uneven(g, 5, 4, 3, 7)["z"]
    z[:, 1], z[:, 3] = 0.0, -2.5
    return dict(z=z)


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
        Case("two numbers per channel", lambda g: _uneven(g, 2, 3), call=_stats),
        Case("a single channel", lambda g: _uneven(g, 5, 1, 4, 7), call=_stats),
        Case("one number per channel", lambda g: _uneven(g, 1, 3), call=_stats),
        Case("one number per channel, in pictures of one place", lambda g: _uneven(g, 1, 3, 1, 1), call=_stats),
        Case("float64", lambda g: _uneven(g, 5, 3, 4, 7), call=_stats_in_float64),
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
                    stds.append(s if s > 0 else torch.ones_like(s))
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
                    return mean, torch.where(std == 0, torch.ones_like(std), std)
            """,
        ),
        Variant(
            "einops and sums by hand",
            """
            @torch.no_grad()
            def fit_latent_stats(z):
                flat = rearrange(z, "b c ... -> c (b ...)") if z.ndim == 2 else z.movedim(1, 0).reshape(z.shape[1], -1)
                n = flat.shape[1]
                if n <= 1:
                    raise ValueError("at least two, please")
                mean = flat.sum(1) / n
                var = ((flat - mean[:, None]) ** 2).sum(1) / (n - 1)
                std = var.sqrt()
                std[std < 1e-12] = 1.0
                return mean, std
            """.replace(
                'rearrange(z, "b c ... -> c (b ...)") if z.ndim == 2 else z.movedim(1, 0)',
                "z.movedim(1, 0)",
            ),
        ),
        Variant(
            "the square of the mean",
            """
            def fit_latent_stats(z):
                rows = torch.swapaxes(z.data, 0, 1).flatten(start_dim=1)
                if rows.size(1) == 1:
                    raise ValueError("one number has no spread")
                std, mean = torch.std_mean(rows, dim=-1)
                std[std == 0] = 1
                return [mean, std]
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
            "A channel whose smallest number equals its largest has deviation 0. Replace that by 1: "
            "`std.masked_fill(constant, 1.0)`, or `torch.where`.",
        ),
        Hint(
            "show me nearly everything",
            "z = z.detach().transpose(0, 1).flatten(1); refuse z.shape[1] < 2; std = z.std(dim=1), with 1 where it is "
            "0; return z.mean(dim=1), std.",
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


def _long_words(g: torch.Generator) -> dict:
    """Padding that would win every softmax, if it were let in."""
    inputs = _tokens(g, 3, 5, 7, 12, 8, keep="some")
    inputs["context"] = torch.where(inputs["keep"][..., None], inputs["context"], 30 * inputs["context"])
    return inputs


def _order_of_words_does_not_matter(cls) -> bool:
    torch.manual_seed(0)
    module, x, context = cls(12, 8, 3), torch.randn(2, 5, 12), torch.randn(2, 7, 8)
    return torch.allclose(module(x, context[:, torch.randperm(7)]), module(x, context), atol=1e-4)


def _starts_as_pytorch_makes_it(cls) -> bool:
    torch.manual_seed(0)
    module = cls(d=64, d_context=48, heads=4)
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    spread = [(part.weight.std() * (3 * part.in_features) ** 0.5).item() for part in layers]
    return len(layers) == 4 and all(0.9 < s < 1.1 for s in spread)


_INIT = dict(d=12, d_context=8, heads=3)
_SQUARE = dict(d=12, d_context=12, heads=3)

CROSS_ATTENTION = Exercise(
    target=CrossAttention,
    minutes=20,
    cases=[
        Case("a picture reads a caption", lambda g: _tokens(g, 2, 5, 7, 12, 8), init=_INIT),
        Case("with padding", lambda g: _tokens(g, 2, 5, 7, 12, 8, keep="some"), init=_INIT),
        Case("padding with large numbers", _long_words, init=_INIT),
        Case("a caption of padding alone", lambda g: _tokens(g, 3, 5, 7, 12, 8, keep="empty"), init=_INIT),
        Case("both widths are 12", lambda g: _tokens(g, 2, 5, 7, 12, 12, keep="some"), init=_SQUARE),
        Case("as many words as places", lambda g: _tokens(g, 3, 7, 7, 12, 12, keep="some"), init=_SQUARE),
        Case("batch, places, words and heads are 3", lambda g: _tokens(g, 3, 3, 3, 12, 12, keep="some"), init=_SQUARE),
        Case("a single word", lambda g: _tokens(g, 2, 5, 1, 12, 8), init=_INIT),
        Case("one head", lambda g: _tokens(g, 2, 5, 7, 11, 6, keep="some"), init=dict(d=11, d_context=6, heads=1)),
        Case("five heads", lambda g: _tokens(g, 2, 5, 7, 10, 13), init=dict(d=10, d_context=13, heads=5)),
        Case("as many heads as channels", lambda g: _tokens(g, 2, 5, 7, 6, 4), init=dict(d=6, d_context=4, heads=6)),
        Case("12 channels in 5 heads", lambda g: {}, call=lambda cls: cls(12, 8, 5) and "a layer"),
    ],
    properties=[
        Property(
            "Another order of the words (with no positions added) must give the same picture, and does not.",
            _order_of_words_does_not_matter,
        ),
        Property(
            "Four `nn.Linear` are wanted, with the initial weights that PyTorch gives them.",
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
                    return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))
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
            "You divide by d / heads, without the root.",
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
                    self.q = nn.Linear(d, d, False)
                    self.k = nn.Linear(d_context, d, False)
                    self.v = nn.Linear(d_context, d, False)
                    self.out = nn.Linear(d, d)
                def forward(self, x, context, keep=None):
                    q = self.q(x).unflatten(-1, (self.heads, -1)) * self.scale
                    k = self.k(context).unflatten(-1, (self.heads, -1))
                    v = self.v(context).unflatten(-1, (self.heads, -1))
                    s = torch.einsum("bqhd,bkhd->bhqk", q, k)
                    if keep is not None:
                        s = s + torch.zeros_like(keep, dtype=s.dtype).masked_fill(~keep, -1e30)[:, None, None]
                    w = s.softmax(-1)
                    if keep is not None:
                        w = w * keep[:, None, None]
                    return self.out(torch.einsum("bhqk,bkhd->bqhd", w, v).flatten(2))
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
        Case("channels, rows, columns and batch are 4", lambda g: _batch(g, 4, "some", shape=(4, 4, 4)), call=_step),
        Case("as many samples as columns", lambda g: _batch(g, 5, "some", shape=(3, 4, 5)), call=_step),
    ],
    mistakes=[
        Mistake(
            "The target is the latents. The model is asked for the noise, eps.",
            old=_LOSS,
            new="F.mse_loss(model(zt, t, tokens), z0)",
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
            "The model gets t divided by the number of steps. It wants the step itself, an int64.",
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
