"""The exercises of lesson 07, Diffusion: a schedule, two losses, four samplers, guidance."""

import inspect
import math
from functools import partial

import torch
from torch import Tensor

from course_lib.diffusion.guidance import LabelEmbedding, guided_prediction
from course_lib.diffusion.objectives import ddpm_loss, flow_loss, from_v
from course_lib.diffusion.samplers import ddim_sample, ddim_step, ddpm_step, euler_sample
from course_lib.diffusion.schedules import linear_schedule, q_sample
from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn

T = 100  # steps of the tables in the cases


def _table() -> Tensor:
    """A fresh alpha_bar at each call: it stays out of the inputs, since nobody asks for its gradient."""
    return (1 - torch.linspace(1e-4, 0.2, T, dtype=torch.float64)).cumprod(0)


def _with(table: Tensor, f, **inputs):
    """Call f with a table that it must leave alone."""
    kept = table.clone()
    result = f(**inputs, alpha_bar=table)
    if not torch.equal(table, kept):
        raise RuntimeError("alpha_bar was overwritten; whoever uses the table next finds other numbers: copy it first")
    return result


def _with_table(f, **inputs):
    return _with(_table(), f, **inputs)


def _listed(result) -> list[Tensor]:
    return list(result) if isinstance(result, tuple | list) else [result]


def _digits(got: list[Tensor], exact: list[Tensor]) -> str:
    """float32 has about 7 digits; numbers that agree to 6 but not to 10 have passed through it."""
    pairs = [(g.detach().double(), e.detach().double()) for g, e in zip(got, exact, strict=False) if g.shape == e.shape]
    off = max((((g - e).abs().max() / e.abs().max()).item() for g, e in pairs), default=0.0)
    return "those of float32 only" if 1e-10 < off < 1e-5 else "as many as there are"


def _in_float64(exact, f, **inputs):
    """The same with float64 data: the dtype of the result, and whether its digits are those of float64."""
    inputs = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    result = _listed(_with(_table(), f, **inputs))
    exact = _listed(_with(_table(), exact, **inputs))
    return {
        "dtype for float64 data": " and ".join(str(r.dtype) for r in result),
        "digits for float64 data": _digits(result, exact),
        "values": [r.float() for r in result],
    }


def _in_half(f, **inputs) -> str:
    """The dtype of what data in bfloat16 become."""
    inputs = {n: v.bfloat16() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    return f"dtype for bfloat16 data: {_with(_table(), f, **inputs).dtype}"


def _times_seen(xt: Tensor, t: Tensor, floats: bool) -> None:
    """A model of the cases is strict about its t, and says so."""
    if not isinstance(t, Tensor) or tuple(t.shape) != (len(xt),):
        got = f"a tensor of shape {tuple(t.shape)}" if isinstance(t, Tensor) else f"a plain {type(t).__name__}"
        raise TypeError(f"the model was given {got} as t; it wants one time per sample, shape ({len(xt)},)")
    if not (t.is_floating_point() if floats else t.dtype == torch.int64):
        raise TypeError(f"the model was given t in {t.dtype}; it wants {'floats' if floats else 'int64'}")


def _wide(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


# ---------------------------------------------------------------------------------------------------------- schedule

LINEAR_SCHEDULE = Exercise(
    target=linear_schedule,
    minutes=8,
    gradients=False,
    cases=[
        Case("a thousand steps", lambda g: dict(steps=1000)),
        Case("a hundred steps", lambda g: dict(steps=100)),
        Case("more than a thousand steps", lambda g: dict(steps=1500)),
        Case("1000 / steps is no whole number", lambda g: dict(steps=137)),
        Case("so few steps that betas must be capped", lambda g: dict(steps=7)),
        Case("the last beta would be exactly 1", lambda g: dict(steps=20)),
        Case("two steps", lambda g: dict(steps=2)),
        Case("one step", lambda g: dict(steps=1)),
        Case("no step", lambda g: dict(steps=0)),
        Case("less than nothing", lambda g: dict(steps=-3)),
    ],
    mistakes=[
        Mistake(
            "The factor never falls below 1 with you. With more than 1000 steps each must do *less*: 1000 / steps, "
            "whatever it is.",
            old="USUAL_STEPS / steps",
            new="max(1.0, USUAL_STEPS / steps)",
        ),
        Mistake(
            "The betas are those of 1000 steps, whatever `steps` is. A hundred of them leave 36 % of the data's "
            "variance at the last step, so training never sees the pure noise that sampling starts from. Multiply by "
            "1000 / steps.",
            old="longer = USUAL_STEPS / steps",
            new="longer = 1.0",
        ),
        Mistake(
            "The factor is upside down: steps / 1000. Fewer steps must each add more noise, so it is 1000 / steps.",
            old="USUAL_STEPS / steps",
            new="steps / USUAL_STEPS",
        ),
        Mistake(
            "`//` rounds 1000 / steps down to a whole number, which is wrong for most `steps`. Use `/`.",
            old="USUAL_STEPS / steps",
            new="USUAL_STEPS // steps",
        ),
        Mistake(
            "Only the last beta is multiplied by 1000 / steps; the first one needs the factor too.",
            old="1e-4 * longer",
            new="1e-4",
        ),
        Mistake(
            "Only the first beta is multiplied by 1000 / steps; the last one needs the factor too.",
            old="0.02 * longer",
            new="0.02",
        ),
        Mistake(
            "alpha_bar is shifted by one step: it begins with 1. Even index 0 has been noised once: alpha_bar[0] = 1 "
            "- "
            "beta[0].",
            old="(1 - beta).cumprod(dim=0)",
            new="torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(dim=0)[:-1]])",
        ),
        Mistake(
            "alpha_bar is the product of the betas. It is the product of what each step *leaves*, 1 - beta.",
            old="(1 - beta).cumprod(dim=0)",
            new="beta.cumprod(dim=0)",
        ),
        Mistake(
            "alpha_bar is 1 - the product of the betas. It is the product of all (1 - beta).",
            old="(1 - beta).cumprod(dim=0)",
            new="1 - beta.cumprod(dim=0)",
        ),
        Mistake(
            "You add the betas up. What is left after two steps is (1 - b0)(1 - b1), a product: `cumprod`, not "
            "`cumsum`.",
            old="(1 - beta).cumprod(dim=0)",
            new="1 - beta.cumsum(dim=0)",
        ),
        Mistake(
            "You sum up (1 - beta) where you should multiply: `cumprod`.",
            old="(1 - beta).cumprod(dim=0)",
            new="(1 - beta).cumsum(dim=0)",
        ),
        Mistake(
            "This is alpha, what a single step leaves. alpha_bar is the product of all alphas so far.",
            old="(1 - beta).cumprod(dim=0)",
            new="1 - beta",
        ),
        Mistake(
            "You return the square root of alpha_bar. The root comes later, when data and noise are mixed.",
            old="(1 - beta).cumprod(dim=0)",
            new="(1 - beta).cumprod(dim=0).sqrt()",
        ),
        Mistake(
            "The second result is 1 - alpha_bar, the noise. Return what is left of the data.",
            old="(1 - beta).cumprod(dim=0)",
            new="1 - (1 - beta).cumprod(dim=0)",
        ),
        Mistake(
            "The second result is a single number, the product of all. alpha_bar has one entry per step: `cumprod`.",
            old="(1 - beta).cumprod(dim=0)",
            new="(1 - beta).prod()",
        ),
        Mistake(
            "You compute in float32, and perhaps convert the result, when the digits are lost already. The first "
            "steps of a picture need them: pass dtype=torch.float64 to linspace.",
            code="""
            def linear_schedule(steps):
                if steps < 2:
                    raise ValueError("at least 2 steps")
                f = 1000 / steps
                beta = torch.linspace(1e-4 * f, 0.02 * f, steps).clamp(max=0.999)
                return beta, (1 - beta).cumprod(0)
            """,
        ),
        Mistake(
            "The last beta never reaches 0.02 * (1000 / steps): your steps are 1 / steps apart. Both ends are "
            "included, so they are 1 / (steps - 1) apart, as `linspace` makes them.",
            code="""
            def linear_schedule(steps):
                if steps < 2:
                    raise ValueError("at least 2 steps")
                f = 1000 / steps
                beta = (1e-4 + (0.02 - 1e-4) * torch.arange(steps, dtype=torch.float64) / steps) * f
                beta = beta.clamp(max=0.999)
                return beta, (1 - beta).cumprod(0)
            """,
        ),
        Mistake(
            "The first beta is one step too large: the ramp begins at index 0 with 0.0001 * (1000 / steps).",
            code="""
            def linear_schedule(steps):
                if steps < 2:
                    raise ValueError("at least 2 steps")
                f = 1000 / steps
                beta = (1e-4 + (0.02 - 1e-4) * torch.arange(1, steps + 1, dtype=torch.float64) / steps) * f
                beta = beta.clamp(max=0.999)
                return beta, (1 - beta).cumprod(0)
            """,
        ),
        Mistake(
            "The *square root* of your beta is linear: latent diffusion does that. DDPM's beta itself is linear.",
            code="""
            def linear_schedule(steps):
                if steps < 2:
                    raise ValueError("at least 2 steps")
                f = 1000 / steps
                beta = torch.linspace((1e-4 * f) ** 0.5, (0.02 * f) ** 0.5, steps, dtype=torch.float64) ** 2
                beta = beta.clamp(max=0.999)
                return beta, (1 - beta).cumprod(0)
            """,
        ),
        Mistake(
            "Your beta grows geometrically (logspace). It grows linearly.",
            code="""
            def linear_schedule(steps):
                if steps < 2:
                    raise ValueError("at least 2 steps")
                f = 1000 / steps
                beta = torch.logspace(math.log10(1e-4 * f), math.log10(0.02 * f), steps, dtype=torch.float64)
                beta = beta.clamp(max=0.999)
                return beta, (1 - beta).cumprod(0)
            """,
        ),
        Mistake(
            "Your beta falls: the most noise comes first. It grows from index 0 to the end.",
            old="beta, (1 - beta)",
            new="beta.flip(0), (1 - beta.flip(0))",
        ),
        Mistake(
            "No cap, or one that comes before the factor 1000 / steps: with few steps beta passes 1 and alpha_bar "
            "turns negative. Clamp beta at 0.999, after the factor.",
            old=".clamp(max=LARGEST_BETA)",
            new="",
        ),
        Mistake(
            "You cap beta at 1. A step with beta = 1 leaves exactly nothing, and alpha_bar becomes 0; the cap is "
            "0.999.",
            old="max=LARGEST_BETA",
            new="max=1.0",
        ),
        Mistake(
            "Only the returned beta is capped; alpha_bar comes from the uncapped one. Cap first, then multiply.",
            old="return beta, (1 - beta)",
            new="return beta, (1 - torch.linspace(1e-4 * longer, 0.02 * longer, steps, dtype=torch.float64))",
        ),
        Mistake(
            "The ends are capped before the ramp is drawn, so all betas between them change. Draw the ramp, then cap.",
            old="torch.linspace(1e-4 * longer, 0.02 * longer, steps, dtype=torch.float64).clamp(max=LARGEST_BETA)",
            new="torch.linspace(min(1e-4 * longer, 0.999), min(0.02 * longer, 0.999), steps, dtype=torch.float64)",
        ),
        Mistake(
            "The two results stand in the wrong order: beta first, then alpha_bar.",
            old="return beta, (1 - beta).cumprod(dim=0)",
            new="return (1 - beta).cumprod(dim=0), beta",
        ),
        Mistake(
            "Only alpha_bar comes back; return the pair (beta, alpha_bar).",
            old="return beta, (1 - beta)",
            new="return (1 - beta)",
        ),
        Mistake(
            "One more thing: fewer than 2 steps must be refused with a ValueError.",
            old="steps < 2",
            new="steps < 1",
        ),
        Mistake(
            "You refuse 2 steps, which are allowed. Only fewer than 2 are refused.",
            old="steps < 2",
            new="steps <= 2",
        ),
        Mistake(
            "alpha_bar has a floor: it is clamped from below. With few steps it becomes tiny, and must.",
            old="(1 - beta).cumprod(dim=0)",
            new="(1 - beta).cumprod(dim=0).clamp(min=1e-6)",
        ),
        Mistake(
            "beta is clamped from below as well. With more than 1000 steps the first ones are less than 0.0001.",
            old=".clamp(max=LARGEST_BETA)",
            new=".clamp(1e-4, LARGEST_BETA)",
        ),
    ],
    variants=[
        Variant(
            "a loop",
            """
            def linear_schedule(steps):
                if steps <= 1:
                    raise ValueError("a schedule needs two steps")
                first, last = 1e-4 * 1000 / steps, 0.02 * 1000 / steps
                beta, alpha_bar, left = [], [], 1.0
                for s in range(steps):
                    b = min(first + (last - first) * s / (steps - 1), 0.999)
                    left *= 1 - b
                    beta.append(b)
                    alpha_bar.append(left)
                return torch.tensor(beta, dtype=torch.float64), torch.tensor(alpha_bar, dtype=torch.float64)
            """,
        ),
        Variant(
            "numpy",
            """
            def linear_schedule(steps):
                if not steps >= 2:
                    raise ValueError(steps)
                beta = np.minimum(np.linspace(0.0001, 0.02, steps) * 1000 / steps, 0.999)
                return torch.from_numpy(beta), torch.from_numpy(np.cumprod(1 - beta))
            """,
        ),
        Variant(
            "logarithms",
            """
            def linear_schedule(steps):
                if steps < 2:
                    raise ValueError
                ramp = torch.arange(steps).double() / (steps - 1)
                beta = (0.1 * (1 - ramp) + 20 * ramp) / steps
                beta = torch.where(beta > 0.999, torch.full_like(beta, 0.999), beta)
                return beta, torch.log1p(-beta).cumsum(0).exp()
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "`torch.linspace(first, last, steps, dtype=torch.float64)` makes the ramp, `.clamp(max=0.999)` caps it.",
        ),
        Hint(
            "alpha_bar is off by a little",
            "It is a running product, `cumprod`, of 1 - beta; the first entry is already 1 - beta[0]. In float32 the "
            "running product is off too.",
        ),
        Hint(
            "show me nearly everything",
            "Refuse steps < 2. f = 1000 / steps; beta = linspace(0.0001 f, 0.02 f, steps) in float64, capped; return "
            "beta and (1 - beta).cumprod(0).",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------- q_sample


def _mixture(g: torch.Generator, *shape: int) -> dict[str, Tensor]:
    t = torch.randint(T, shape[:1], generator=g)
    t[0] = 0
    t[-1] = T - 1
    return dict(x0=randn(g, *shape), t=t, eps=randn(g, *shape))


Q_SAMPLE = Exercise(
    target=q_sample,
    minutes=7,
    cases=[
        Case("images", lambda g: _mixture(g, 5, 3, 7, 11), call=_with_table),
        Case("as many samples as columns", lambda g: _mixture(g, 7, 3, 5, 7), call=_with_table),
        Case("as many samples as rows and channels", lambda g: _mixture(g, 3, 3, 3, 5), call=_with_table),
        Case("points in the plane", lambda g: _mixture(g, 5, 2), call=_with_table),
        Case("numbers", lambda g: _mixture(g, 5), call=_with_table),
        Case("video", lambda g: _mixture(g, 3, 2, 5, 7, 11), call=_with_table),
        Case("one sample", lambda g: _mixture(g, 1, 2, 3, 5), call=_with_table),
        Case(
            "data far outside [-1, 1]",
            lambda g: (i := _mixture(g, 5, 3, 7)) | dict(x0=30 * i["x0"]),
            call=_with_table,
        ),
        Case("data in float64", lambda g: _mixture(g, 5, 3, 7), call=partial(_in_float64, q_sample)),
        Case("data in bfloat16", lambda g: _mixture(g, 5, 3), call=_in_half),
    ],
    mistakes=[
        Mistake(
            "The noise level runs along the columns of a picture, or nothing fits: `alpha_bar[t]` has shape (b,), "
            "which torch aligns with the *last* axis. Give it the shape (b, 1, 1, ...) first.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].to(x0.dtype)
                return left.sqrt() * x0 + (1 - left).sqrt() * eps
            """,
        ),
        Mistake(
            "Right for pictures (b, c, h, w) only. The data may have any number of axes after b: build the shape (b, "
            "1, ..., 1) from x0.ndim.",
            old="*[1] * (x0.ndim - 1)",
            new="1, 1, 1",
        ),
        Mistake(
            "Every sample gets the t of the first one. Each has its own.",
            old="left = alpha_bar[t]",
            new="left = alpha_bar[t[:1].expand(len(t))]",
        ),
        Mistake(
            "No square roots. The two coefficients are standard deviations; their *squares* add up to 1.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
                return left * x0 + (1 - left) * eps
            """,
        ),
        Mistake(
            "The data's coefficient lacks its square root.",
            old="left.sqrt().to(x0.dtype) * x0",
            new="left.to(x0.dtype) * x0",
        ),
        Mistake(
            "The noise's coefficient lacks its square root.",
            old="(1 - left).sqrt()",
            new="(1 - left)",
        ),
        Mistake(
            "The noise's coefficient is sqrt(1 - alpha_bar), not 1 - sqrt(alpha_bar).",
            old="(1 - left).sqrt()",
            new="(1 - left.sqrt())",
        ),
        Mistake(
            "Data and noise have each other's coefficient: your t = 0 is noise.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))
                return (1 - left).sqrt().to(x0.dtype) * x0 + left.sqrt().to(x0.dtype) * eps
            """,
        ),
        Mistake(
            "You read alpha_bar at t - 1, and t = 0 wraps around to the last entry. Index t is step t here, counted "
            "from 0.",
            old="alpha_bar[t]",
            new="alpha_bar[t - 1]",
        ),
        Mistake(
            "You read alpha_bar at t - 1. Our t counts from 0, and index 0 has been noised once.",
            old="alpha_bar[t]",
            new="torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])[t]",
        ),
        Mistake(
            "You multiply alpha_bar up once more. It is the running product already: read it at t.",
            old="alpha_bar[t]",
            new="alpha_bar.cumprod(0)[t]",
        ),
        Mistake(
            "You draw your own noise. Use `eps`: the training loss must know what was added.",
            old="(1 - left).sqrt().to(x0.dtype) * eps",
            new="(1 - left).sqrt().to(x0.dtype) * torch.randn_like(x0)",
        ),
        Mistake(
            "The noise is subtracted. For a random eps it makes no difference, for training it does: the target is "
            "+eps.",
            old="x0 + (1 - left)",
            new="x0 - (1 - left)",
        ),
        Mistake(
            "The result is float64, because alpha_bar is. Convert the coefficients to x0.dtype: a network in float32 "
            "would refuse it.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))
                return left.sqrt() * x0 + (1 - left).sqrt() * eps
            """,
        ),
        Mistake(
            "The result is float32 whatever the data are. It must have x0's dtype.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))
                return (left.sqrt() * x0 + (1 - left).sqrt() * eps).float()
            """,
        ),
        Mistake(
            "The result is clamped to [-1, 1]. A noisy picture leaves that range, and must.",
            old="return left.sqrt().to(x0.dtype) * x0 + (1 - left).sqrt().to(x0.dtype) * eps",
            new="return (left.sqrt().to(x0.dtype) * x0 + (1 - left).sqrt().to(x0.dtype) * eps).clamp(-1, 1)",
        ),
        Mistake(
            "The values are right, but x0 is overwritten. Training data would decay with every step: no `mul_` or "
            "`*=` "
            "on an input.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
                x0 *= left.sqrt()
                x0 += (1 - left).sqrt() * eps
                return x0
            """,
        ),
        Mistake(
            "The values are right, but no gradient gets through. Leave out `no_grad` and `detach`: guidance and "
            "distillation differentiate through this.",
            code="""
            @torch.no_grad()
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
                return left.sqrt() * x0 + (1 - left).sqrt() * eps
            """,
        ),
        Mistake(
            "This is the straight line of flow matching, (1 - t/T) x0 + t/T eps. DDPM's coefficients are roots of "
            "alpha_bar.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                s = (t / len(alpha_bar)).view(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
                return (1 - s) * x0 + s * eps
            """,
        ),
        Mistake(
            "This is a single noising step, with the alpha of step t alone. One jump from the data needs alpha_bar.",
            old="alpha_bar[t]",
            new="(alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]]))[t]",
        ),
        Mistake(
            "All data keep their full size and noise is added on top. x0 must be multiplied by sqrt(alpha_bar[t]).",
            old="left.sqrt().to(x0.dtype) * x0",
            new="x0",
        ),
        Mistake(
            "Coefficients in float32, because alpha_bar is converted too early: float64 data then keep half of their "
            "digits only. Convert to the dtype of the data, x.dtype, not to float32.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].float().view(-1, *[1] * (x0.ndim - 1))
                return left.sqrt() * x0 + (1 - left).sqrt() * eps
            """,
        ),
        Mistake(
            "Data in half precision (bfloat16) come back as float32. The result has x0's dtype, whichever that is.",
            code="""
            def q_sample(x0, t, eps, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))
                mixed = left.sqrt() * x0 + (1 - left).sqrt() * eps
                return mixed if x0.dtype == torch.float64 else mixed.float()
            """,
        ),
        Mistake(
            "The noise has a floor: 1 - alpha_bar is clamped, so the first times get more noise than the table says.",
            old="(1 - left).sqrt()",
            new="(1 - left).clamp(min=1e-3).sqrt()",
        ),
        Mistake(
            "You build at least one extra axis. Plain numbers, x0 of shape (b,), have none.",
            old="*[1] * (x0.ndim - 1)",
            new="*[1] * max(1, x0.ndim - 1)",
        ),
    ],
    variants=[
        Variant(
            "one sample at a time",
            """
            def q_sample(x0, t, eps, alpha_bar):
                out = []
                for i in range(len(x0)):
                    a = float(alpha_bar[int(t[i])])
                    out.append(math.sqrt(a) * x0[i] + math.sqrt(1 - a) * eps[i])
                return torch.stack(out)
            """,
        ),
        Variant(
            "einsum",
            """
            def q_sample(x0, t, eps, alpha_bar):
                a = alpha_bar.index_select(0, t)
                keep, add = a.sqrt().type_as(x0), (1 - a).sqrt().type_as(x0)
                return torch.einsum("b,b...->b...", keep, x0) + torch.einsum("b,b...->b...", add, eps)
            """,
        ),
        Variant(
            "transposed",
            """
            def q_sample(x0, t, eps, alpha_bar):
                a = alpha_bar.gather(0, t)
                mixed = x0.movedim(0, -1) * a**0.5 + eps.movedim(0, -1) * (1 - a) ** 0.5
                return mixed.movedim(-1, 0).to(x0.dtype)
            """,
        ),
    ],
    hints=[
        Hint(
            "shapes do not fit",
            "`alpha_bar[t]` looks up one number per sample: shape (b,). To multiply a (b, c, h, w) picture it must be "
            "(b, 1, 1, 1): `.view(-1, 1, 1, 1)`, or for any number of axes `.view(-1, *[1] * (x0.ndim - 1))`.",
        ),
        Hint(
            "the dtype is wrong",
            "A float64 tensor with axes turns float32 data into float64. Compute the two coefficients in float64, "
            "then "
            "`.to(x0.dtype)`.",
        ),
        Hint(
            "show me nearly everything",
            "a = alpha_bar[t], reshaped to (b, 1, ..., 1); return sqrt(a) x0 + sqrt(1 - a) eps, both coefficients "
            "converted to x0.dtype.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------------ losses


class _Knowing:
    """A model that knows the data, and so the noise; it returns what ``say`` makes of both, and remembers its "
    "times."""

    def __init__(self, x0: Tensor, say, unmix, floats: bool):
        self.x0, self.say, self.unmix, self.floats = x0, say, unmix, floats
        self.times, self.mixtures = [], []

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        if xt.shape != self.x0.shape:
            wanted = tuple(self.x0.shape)
            raise TypeError(f"the model was given xt of shape {tuple(xt.shape)}; it wants that of x0, {wanted}")
        _times_seen(xt, t, self.floats)
        self.times.append(t)
        self.mixtures.append(xt)
        return self.say(xt, self.x0, self.unmix(xt, t, self.x0), _wide(t, xt))

    def __repr__(self) -> str:
        return "a model"


def _ddpm_noise(xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    a = _wide(_table()[t].double(), xt.double())
    return ((xt - a.sqrt() * x0) / (1 - a).sqrt()).to(xt.dtype)


def _ddpm_noise_without_roots(xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    a = _wide(_table()[t].double(), xt.double())
    return ((xt - a * x0) / (1 - a)).to(xt.dtype)


def _ddpm_noise_as_added(xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    return (xt - _wide(_table()[t].double(), xt.double()).sqrt() * x0).to(xt.dtype)


def _flow_noise(xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    s = _wide(t, xt.double())
    return ((xt - (1 - s) * x0) / torch.where(s.abs() < 1e-6, 1e-6, s)).to(xt.dtype)


def _flow_noise_with_roots(xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    s = _wide(t, xt.double())
    return ((xt - (1 - s).sqrt() * x0) / s.sqrt().clamp(min=1e-6)).to(xt.dtype)


def _flow_noise_sigma_min(xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    s = _wide(t, xt.double())
    return ((xt - (1 - 0.99 * s) * x0) / s.clamp(min=1e-6)).to(xt.dtype)


def _flow_noise_on_circle(xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    angle = _wide(t, xt.double()) * math.pi / 2
    return ((xt - angle.cos() * x0) / angle.sin().clamp(min=1e-6)).to(xt.dtype)


def _flow_noise_reversed(xt: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    return _flow_noise(xt, 1 - t, x0)


def _loss_report(loss, x0: Tensor, unmix, floats: bool, candidates: dict) -> dict[str, str]:
    """What a loss can be seen to do, in words that do not depend on what it drew."""

    def run(say, unmix=unmix, data=x0):
        model = _Knowing(data, say, unmix, floats)
        with torch.enable_grad():
            return loss(model, data), model

    shift = torch.tensor(2.0, requires_grad=True)
    best = candidates[next(iter(candidates))][0]
    value, model = run(lambda xt, x0, eps, t: best(xt, x0, eps) + shift)
    off = {"calls of the model": str(len(model.times))}
    off["type of the loss"] = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    zero = [
        name for name, (say, how) in candidates.items()
        if _number(run(lambda xt, x0, eps, t, say=say: say(xt, x0, eps), how)[0]) < 1e-5
    ]  # fmt: skip
    off["the loss is 0 for a model that predicts"] = zero[0] if zero else "nothing that we know of"
    if zero[:1] == list(candidates)[:1]:  # otherwise these depend on the draws
        off["the loss of a model that is off by 2 everywhere"] = f"{_number(value):.3f}"
        steps = torch.arange(len(x0), dtype=x0.dtype)
        off["the loss of a model that is off by 0, 1, 2, ... for the samples of the batch"] = (
            f"{_number(run(lambda xt, x0, eps, t: best(xt, x0, eps) + _wide(steps, xt))[0]):.3f}"
        )
        slope = None
        if isinstance(value, Tensor) and value.requires_grad and value.dim() == 0:
            (slope,) = torch.autograd.grad(value, shift, allow_unused=True)
        off["gradient of the loss with respect to those 2"] = "none" if slope is None else f"{slope.item():.3f}"
    return off


def _number(value) -> float:
    return float(value.detach().mean()) if isinstance(value, Tensor) else float(value)


def _noise_report(loss, unmix, floats: bool) -> dict[str, str]:
    """The distribution of what a loss drew, over many samples."""
    x0 = torch.randn(3000, 2, 3, generator=torch.Generator().manual_seed(11))
    model = _Knowing(x0, lambda xt, x0, eps, t: eps, unmix, floats)
    loss(model, x0)
    loss(model, x0)
    (first, again), (t, later) = model.mixtures[:2], model.times[:2]
    eps, eps_later = unmix(first, t, x0).double(), unmix(again, later, x0).double()
    if floats:
        legible = (t > 0.05) & (later > 0.05)  # where there is hardly any noise it cannot be read off
        eps, eps_later = eps[legible], eps_later[legible]
    report, both = {}, torch.cat([t, later]).double()
    if floats:
        share = [((t >= k / 5) & (t < (k + 1) / 5)).float().mean().item() for k in range(5)]
        report["t lies in [0, 1)"] = _yes(bool((t >= 0).all() and (t < 1).all()))
        even = max(share) < 0.25 and min(share) > 0.15 and abs(both.mean() - 0.5) < 0.017
        report["t is uniform"] = _yes(even)
        report["t comes close to 0 and to 1"] = _yes(t.min() < 0.006 and t.max() > 0.994)
        report["t takes any value, not a few fixed ones"] = _yes(len(t.unique()) > 2500)
    else:
        report["t runs"] = f"from {int(t.min())} to {int(t.max())}, of 0 to {T - 1}"
        peak = torch.bincount(t.clamp(0, T - 1), minlength=T)[2:-2].max()
        report["t is uniform"] = _yes(bool(peak < 70 and abs(both.mean() - (T - 1) / 2) < 1.7))
    report["every sample has its own t"] = _yes(len(t.unique()) > 20)
    normal = abs(eps.mean()) < 0.1 and abs(eps.std() - 1) < 0.1 and 2.3 < (eps**4).mean() < 3.7 and eps.abs().max() > 3
    report["the noise is standard normal"] = _yes(normal)
    report["every sample has its own noise"] = _yes(eps.std(0).min() > 0.5)
    report["every number of a sample has its own noise"] = _yes(eps.std((1, 2)).mean() > 0.5)
    repeated = [name for name, axis in (("channels", 1), ("columns", 2)) if eps.std(axis).mean() < 0.1]
    report["axes along which the noise repeats"] = " and ".join(repeated) or "none"
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(_number(loss(lambda xt, t: torch.zeros_like(xt) + _wide(t, xt), x0)))
    report["torch.manual_seed decides what is drawn"] = _yes(values[0] == values[1])
    report["a second call draws new times"] = _yes(not torch.equal(t, later))
    report["a second call draws new noise"] = _yes((eps - eps_later).abs().mean() > 0.1)
    report["a second call draws anew"] = _yes(not torch.equal(first, again))
    return report


def _apart(draws: Tensor) -> bool:
    """Are the columns of (many, few) draws alike on average, and uncorrelated?"""
    draws = draws.double()
    offset = (draws.mean(0) - draws.mean()).abs().max() / draws.std()
    r = torch.corrcoef(draws.T)[*torch.triu_indices(draws.shape[1], draws.shape[1], offset=1)]
    return bool(offset < 0.25 and r.abs().max() < 0.25 and r.mean().abs() < 0.1)


def _independent_draws(loss, floats: bool) -> tuple[Tensor, Tensor]:
    """Times and noise of 400 batches of four samples, each (400, 4)."""
    times, mixtures, nothing = [], [], torch.zeros(4, 1)

    def model(xt, t):
        times.append(t.detach().clone())
        mixtures.append(xt.detach().clone())
        return torch.zeros_like(xt)

    torch.manual_seed(5)
    for _ in range(400):
        loss(model, nothing)
    t, xt = torch.stack(times), torch.stack(mixtures)[..., 0]
    size = t.double() if floats else (1 - _table()[t]).sqrt()  # of the noise: the data are 0
    return t, xt.double() / size.clamp(min=1e-3)


def _ddpm_given(f):
    return lambda model, x0: f(model=model, x0=x0, alpha_bar=_table())


def _times_apart(f) -> bool:
    """DDPM's loss and flow's."""
    floats = "alpha_bar" not in inspect.signature(f).parameters
    return _apart(_independent_draws(f if floats else _ddpm_given(f), floats)[0])


def _noise_apart(f) -> bool:
    floats = "alpha_bar" not in inspect.signature(f).parameters
    return _apart(_independent_draws(f if floats else _ddpm_given(f), floats)[1])


_APART = (
    Property("Each sample draws its own t: the times of a batch must not depend on each other.", _times_apart),
    Property("Each sample draws its own noise: it must not depend on the noise of another.", _noise_apart),
)


def _yes(truth) -> str:
    return "yes" if truth else "no"


def _ddpm_candidates() -> dict:
    return {
        "the noise": (lambda xt, x0, eps: eps, _ddpm_noise),
        "minus the noise": (lambda xt, x0, eps: -eps, _ddpm_noise),
        "the data": (lambda xt, x0, eps: x0, _ddpm_noise),
        "x_t itself": (lambda xt, x0, eps: xt, _ddpm_noise),
        "x_t - x0": (lambda xt, x0, eps: xt - x0, _ddpm_noise),
        "eps - x0": (lambda xt, x0, eps: eps - x0, _ddpm_noise),
        "zero": (lambda xt, x0, eps: torch.zeros_like(xt), _ddpm_noise),
        "the noise, if the mixture had no square roots": (lambda xt, x0, eps: eps, _ddpm_noise_without_roots),
        "the noise times its coefficient": (lambda xt, x0, eps: eps, _ddpm_noise_as_added),
    }


def _ddpm_protocol(loss, x0: Tensor) -> dict[str, str]:
    given = lambda model, x0: _with(_table(), loss, model=model, x0=x0)  # noqa: E731
    report = _loss_report(given, x0, _ddpm_noise, False, _ddpm_candidates())
    report |= _noise_report(given, _ddpm_noise, False)
    few = []
    short = _table()[:5]
    loss(model=lambda xt, t: few.append(t) or xt, x0=torch.zeros(6000, 1), alpha_bar=short)
    counts = torch.bincount(few[0].flatten().clamp(0, 4), minlength=5)
    report["with T = 5, each t comes equally often"] = _yes(counts.min() > 1000 and counts.max() < 1400)
    return report


_DDPM = "t = torch.randint(len(alpha_bar), (len(x0),), device=x0.device)"

DDPM_LOSS = Exercise(
    target=ddpm_loss,
    minutes=10,
    gradients=False,
    cases=[
        Case("pictures", lambda g: dict(x0=randn(g, 5, 3, 7, 11)), call=_ddpm_protocol),
        Case("points in the plane", lambda g: dict(x0=randn(g, 7, 2)), call=_ddpm_protocol),
        Case("numbers", lambda g: dict(x0=randn(g, 5)), call=_ddpm_protocol),
    ],
    properties=list(_APART),
    mistakes=[
        Mistake(
            "The target is not the noise that you added: you draw a second one for the loss. No model can predict "
            "that. Keep eps in a variable and use it twice.",
            old="alpha_bar), t), eps)",
            new="alpha_bar), t), torch.randn_like(x0))",
        ),
        Mistake(
            "t = 0 never occurs, so the last step of sampling, which makes the picture clean, is never trained. Our t "
            "counts from 0: `torch.randint(0, T, ...)`.",
            old="torch.randint(len(alpha_bar), ",
            new="torch.randint(1, len(alpha_bar), ",
        ),
        Mistake(
            "t = T - 1 never occurs, which is where sampling begins. `randint` leaves out its upper end already: pass "
            "T.",
            old="torch.randint(len(alpha_bar), ",
            new="torch.randint(len(alpha_bar) - 1, ",
        ),
        Mistake(
            "t runs from 1 to T, as in the paper, and T is beyond the table. Ours runs from 0 to T - 1.",
            old="torch.randint(len(alpha_bar), ",
            new="torch.randint(1, len(alpha_bar) + 1, ",
        ),
        Mistake(
            "The whole batch shares one t. It works on average, but the loss of a batch then jumps with its t, and "
            "gradients are noisy: draw one per sample.",
            old=_DDPM,
            new="t = torch.randint(len(alpha_bar), (1,)).expand(len(x0))",
        ),
        Mistake(
            "t has shape (1,): one time for the whole batch. Draw (len(x0),) of them.",
            old="(len(x0),)",
            new="(1,)",
        ),
        Mistake(
            "Your t counts the samples of the batch: its upper limit is T = len(alpha_bar).",
            old="torch.randint(len(alpha_bar), ",
            new="torch.randint(len(x0), ",
        ),
        Mistake(
            "The target is the data. DDPM asks for the noise, eps.",
            old="t), eps)",
            new="t), x0)",
        ),
        Mistake(
            "The target is x_t - x0, the noise with its coefficient and a bit of data. DDPM asks for eps itself.",
            code="""
            def ddpm_loss(model, x0, alpha_bar):
                t = torch.randint(len(alpha_bar), (len(x0),))
                xt = q_sample(x0, t, torch.randn_like(x0), alpha_bar)
                return F.mse_loss(model(xt, t), xt - x0)
            """,
        ),
        Mistake(
            "The target is the direction eps - x0 of flow matching. DDPM asks for eps.",
            old="t), eps)",
            new="t), eps - x0)",
        ),
        Mistake(
            "The target is the noisy x_t, so a model that copies its input is perfect. Compare with eps.",
            code="""
            def ddpm_loss(model, x0, alpha_bar):
                t = torch.randint(len(alpha_bar), (len(x0),))
                xt = q_sample(x0, t, torch.randn_like(x0), alpha_bar)
                return F.mse_loss(model(xt, t), xt)
            """,
        ),
        Mistake(
            "The model sees the clean data. It must see x_t, the mixture.",
            old="model(q_sample(x0, t, eps, alpha_bar), t)",
            new="model(x0, t)",
        ),
        Mistake(
            "The model is told another t than the data were noised with: you draw t twice. Keep it in a variable.",
            old="alpha_bar), t), eps)",
            new="alpha_bar), torch.randint(len(alpha_bar), (len(x0),))), eps)",
        ),
        Mistake(
            "The loss is a sum. A mean does not change with the size of the batch and the picture, and your learning "
            "rate need not either.",
            old="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps)",
            new="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps, reduction='sum')",
        ),
        Mistake(
            "You sum over each sample and average over the batch. The mean goes over all numbers.",
            old="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps)",
            new="(model(q_sample(x0, t, eps, alpha_bar), t) - eps).square().flatten(1).sum(1).mean()",
        ),
        Mistake(
            "You return one number per element or sample. Take the mean of all.",
            old="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps)",
            new="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps, reduction='none')",
        ),
        Mistake(
            "This is the mean absolute error. Its best answer is the median of the possible noises, and sampling "
            "needs the mean: square the difference.",
            old="F.mse_loss(",
            new="F.l1_loss(",
        ),
        Mistake(
            "This is half of the mean squared error. The contract asks for the mean itself.",
            old="return F.mse_loss(",
            new="return 0.5 * F.mse_loss(",
        ),
        Mistake(
            "You take the root of the mean. Leave it out: the root makes the gradient large where the loss is small.",
            old="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps)",
            new="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps).sqrt()",
        ),
        Mistake(
            "No gradient reaches the model: it runs under `no_grad`, or its output is detached.",
            old="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps)",
            new="F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t).detach(), eps)",
        ),
        Mistake(
            "`.item()` makes a plain number of the loss, and a plain number has no gradient. Return the tensor.",
            old="alpha_bar), t), eps)",
            new="alpha_bar), t), eps).item()",
        ),
        Mistake(
            "The noise comes from `rand`, which is uniform in [0, 1]. Gaussian noise comes from `randn`.",
            old="torch.randn_like(x0)",
            new="torch.rand_like(x0)",
        ),
        Mistake(
            "All samples share one noise picture. Draw noise of the shape of the whole batch.",
            old="torch.randn_like(x0)",
            new="torch.randn_like(x0[:1]).expand_as(x0)",
        ),
        Mistake(
            "Every sample is a grey sheet of noise: one random number for all its pixels. Draw one for each: "
            "randn_like.",
            old="torch.randn_like(x0)",
            new="torch.randn(len(x0), *[1] * (x0.ndim - 1)).expand_as(x0)",
        ),
        Mistake(
            "The random numbers do not come from torch's global generator (a generator of your own, Python's random, "
            "NumPy), so `torch.manual_seed` cannot repeat a training run.",
            old="    eps = torch.randn_like(x0)",
            new="    own = torch.Generator()\n    own.seed()\n    eps = torch.randn(x0.shape, generator=own)",
        ),
        Mistake(
            "The random numbers are the same at every call, because you seed inside. Training would know one noise "
            "only.",
            old="    t = torch.randint(",
            new="    torch.manual_seed(0)\n    t = torch.randint(",
        ),
        Mistake(
            "The model is given t as floats, perhaps divided by T. It wants the integers, int64; what it makes of "
            "them is its own affair.",
            old="alpha_bar), t), eps)",
            new="alpha_bar), t.float()), eps)",
        ),
        Mistake(
            "The model is given t with extra axes, (b, 1, 1, 1). It wants (b,); `q_sample` does its own reshaping.",
            old="alpha_bar), t), eps)",
            new="alpha_bar), t.view(-1, *[1] * (x0.ndim - 1))), eps)",
        ),
        Mistake(
            "The first and the last t come half as often as the others: `round` gives the ends only half an interval. "
            "`torch.randint(T, ...)` is fair.",
            old=_DDPM,
            new="t = (torch.rand(len(x0)) * (len(alpha_bar) - 1)).round().long()",
        ),
        Mistake(
            "t is the same at every call: counted in order, spread evenly, or from a generator that is seeded "
            "inside. Draw "
            "it anew, uniformly from all T.",
            old=_DDPM,
            new="t = torch.arange(len(x0)) % len(alpha_bar)",
        ),
        Mistake(
            "Times up to 1000 are drawn, whatever the length of the table: T is len(alpha_bar).",
            old="torch.randint(len(alpha_bar), ",
            new="torch.randint(1000, ",
        ),
        Mistake(
            "You compare guesses of the data. That is another weighting of the same error, and a very uneven one: it "
            "is multiplied by (1 - alpha_bar) / alpha_bar, up to 25,000. Compare the noise with eps.",
            code="""
            def ddpm_loss(model, x0, alpha_bar):
                t = torch.randint(len(alpha_bar), (len(x0),))
                eps = torch.randn_like(x0)
                xt = q_sample(x0, t, eps, alpha_bar)
                a = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
                return F.mse_loss((xt - (1 - a).sqrt() * model(xt, t)) / a.sqrt(), x0)
            """,
        ),
        Mistake(
            "This is the Huber loss (smooth_l1). Square the difference everywhere: only then the best answer is the "
            "mean.",
            old="F.mse_loss(",
            new="F.smooth_l1_loss(",
        ),
        Mistake(
            "The model's arguments are swapped: model(xt, t).",
            old="model(q_sample(x0, t, eps, alpha_bar), t)",
            new="model(t, q_sample(x0, t, eps, alpha_bar))",
        ),
        Mistake(
            "The loss is weighted by the step. DDPM's simple loss (eq. 14) leaves all weights away.",
            code="""
            def ddpm_loss(model, x0, alpha_bar):
                t = torch.randint(len(alpha_bar), (len(x0),))
                eps = torch.randn_like(x0)
                error = (model(q_sample(x0, t, eps, alpha_bar), t) - eps).square().flatten(1).mean(1)
                return ((1 - alpha_bar[t]).float() * error).mean()
            """,
        ),
        Mistake(
            "The coefficients of the mixture lack their square roots. `q_sample` has them.",
            code="""
            def ddpm_loss(model, x0, alpha_bar):
                t = torch.randint(len(alpha_bar), (len(x0),))
                eps = torch.randn_like(x0)
                a = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1)).float()
                return F.mse_loss(model(a * x0 + (1 - a) * eps, t), eps)
            """,
        ),
        Mistake(
            "The model runs twice. That costs twice the time, and with dropout the two answers differ.",
            old="    return F.mse_loss(",
            new="    model(q_sample(x0, t, eps, alpha_bar), t)\n    return F.mse_loss(",
        ),
        Mistake(
            "The noise is the same at every call, because its generator is made and seeded inside. Training would "
            "know "
            "one noise only: leave the generator away.",
            old="eps = torch.randn_like(x0)",
            new="eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))",
        ),
        Mistake(
            "All channels share one noise picture. Each number gets its own: randn_like(x0).",
            old="torch.randn_like(x0)",
            new="(torch.randn_like(x0[:, :1]).expand_as(x0) if x0.ndim > 2 else torch.randn_like(x0))",
        ),
        Mistake(
            "The noise repeats along the last axis: one number for a whole row. Each number gets its own: "
            "randn_like(x0).",
            old="torch.randn_like(x0)",
            new="(torch.randn_like(x0[..., :1]).expand_as(x0) if x0.ndim > 1 else torch.randn_like(x0))",
        ),
        Mistake(
            "The times of a batch depend on each other: sorted, mirrored, one in each stretch of time (stratified), "
            "or at "
            "fixed distances. Some of that is a good trick; here each sample draws its t for itself.",
            old="t = torch.randint(len(alpha_bar), (len(x0),), device=x0.device)",
            new="t = torch.randint(len(alpha_bar), (len(x0),)).sort().values",
        ),
        Mistake(
            "Half of the samples get the noise of the other half, with the sign turned. Here each draws its own.",
            old="eps = torch.randn_like(x0)",
            new="eps = torch.randn_like(x0[: len(x0) // 2 + 1])\n    eps = torch.cat([eps, -eps])[: len(x0)]",
        ),
        Mistake(
            "t is not uniform: a power or another function bends it towards one end.",
            old="t = torch.randint(len(alpha_bar), (len(x0),), device=x0.device)",
            new="t = (torch.rand(len(x0)) ** 1.3 * len(alpha_bar)).long()",
        ),
        Mistake(
            "The noise is clamped. Gaussian noise has tails, and sampling starts from such noise.",
            old="eps = torch.randn_like(x0)",
            new="eps = torch.randn_like(x0).clamp(-2.5, 2.5)",
        ),
        Mistake(
            "The target is the noise times its coefficient, sqrt(1 - alpha_bar) eps: what was added. DDPM asks for "
            "eps "
            "itself, of size 1 at every t.",
            code="""
            def ddpm_loss(model, x0, alpha_bar):
                t = torch.randint(len(alpha_bar), (len(x0),))
                a = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
                added = torch.randn_like(x0) * (1 - a).sqrt()
                return F.mse_loss(model(a.sqrt() * x0 + added, t), added)
            """,
        ),
        Mistake(
            "You build at least one extra axis. Plain numbers, x0 of shape (b,), have none: `q_sample` knows.",
            code="""
            def ddpm_loss(model, x0, alpha_bar):
                t = torch.randint(len(alpha_bar), (len(x0),))
                eps = torch.randn_like(x0)
                a = alpha_bar[t].view(-1, *[1] * max(1, x0.ndim - 1)).to(x0.dtype)
                return F.mse_loss(model(a.sqrt() * x0 + (1 - a).sqrt() * eps, t), eps)
            """,
        ),
    ],
    variants=[
        Variant(
            "noise first",
            """
            def ddpm_loss(model, x0, alpha_bar):
                noise = torch.randn(x0.shape)
                steps = (torch.rand(x0.shape[0]) * alpha_bar.shape[0]).long()
                guess = model(q_sample(x0, steps, noise, alpha_bar), steps)
                return ((guess - noise) ** 2).mean()
            """,
        ),
        Variant(
            "own mixing",
            """
            def ddpm_loss(model, x0, alpha_bar):
                b = x0.size(0)
                t = torch.randint(low=0, high=alpha_bar.numel(), size=(b,)).long()
                keep = alpha_bar[t].sqrt().reshape([b] + [1] * (x0.dim() - 1)).type_as(x0)
                target = torch.empty_like(x0).normal_()
                mixed = keep * x0 + torch.sqrt(1 - alpha_bar[t]).reshape(keep.shape).type_as(x0) * target
                difference = target - model(mixed, t)
                return difference.flatten().pow(2).sum() / difference.numel()
            """,
        ),
        Variant(
            "mean of means",
            """
            def ddpm_loss(model, x0, alpha_bar):
                t = torch.multinomial(torch.ones(len(alpha_bar)), len(x0), replacement=True)
                eps = torch.normal(0.0, 1.0, x0.shape)
                guess = model(q_sample(x0=x0, t=t, eps=eps, alpha_bar=alpha_bar), t)
                return torch.stack([F.mse_loss(a, b) for a, b in zip(guess, eps)]).mean()
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Four lines: draw t, draw eps, mix, compare. `torch.randint(T, (b,))` draws 0 ... T - 1.",
        ),
        Hint(
            "my loss stays near 2, or near 1",
            "Two independent noises differ by 2 on average: you compare with another eps than the one you mixed in. A "
            "model that always says 0 has loss 1; anything below that is knowledge.",
        ),
        Hint(
            "show me nearly everything",
            "t = randint(len(alpha_bar), (len(x0),)); eps = randn_like(x0); xt = q_sample(x0, t, eps, alpha_bar); "
            "return F.mse_loss(model(xt, t), eps).",
        ),
    ],
)


def _flow_candidates() -> dict:
    return {
        "eps - x0": (lambda xt, x0, eps: eps - x0, _flow_noise),
        "x0 - eps": (lambda xt, x0, eps: x0 - eps, _flow_noise),
        "eps": (lambda xt, x0, eps: eps, _flow_noise),
        "x0": (lambda xt, x0, eps: x0, _flow_noise),
        "x_t itself": (lambda xt, x0, eps: xt, _flow_noise),
        "x_t - x0": (lambda xt, x0, eps: xt - x0, _flow_noise),
        "eps - x_t": (lambda xt, x0, eps: eps - xt, _flow_noise),
        "eps - x0, if t ran from noise to data": (lambda xt, x0, eps: eps - x0, _flow_noise_reversed),
        "x0 - eps, if t ran from noise to data": (lambda xt, x0, eps: x0 - eps, _flow_noise_reversed),
        "zero": (lambda xt, x0, eps: torch.zeros_like(xt), _flow_noise),
        "eps - x0, if the mixture had square roots": (lambda xt, x0, eps: eps - x0, _flow_noise_with_roots),
        "eps - x0, if the mixture kept a bit of data": (lambda xt, x0, eps: eps - x0, _flow_noise_sigma_min),
        "eps - x0, if the mixture ran on a circle": (lambda xt, x0, eps: eps - x0, _flow_noise_on_circle),
    }


def _flow_protocol(loss, x0: Tensor) -> dict[str, str]:
    given = lambda model, x0: loss(model=model, x0=x0)  # noqa: E731
    report = _loss_report(given, x0, _flow_noise, True, _flow_candidates())
    return report | _noise_report(given, _flow_noise, True)


_FLOW = "F.mse_loss(model(add_noise(x0, t, eps), t), velocity(x0, eps))"

FLOW_LOSS = Exercise(
    target=flow_loss,
    minutes=10,
    gradients=False,
    cases=[
        Case("pictures", lambda g: dict(x0=randn(g, 5, 3, 7, 11)), call=_flow_protocol),
        Case("as many samples as columns", lambda g: dict(x0=randn(g, 7, 3, 5, 7)), call=_flow_protocol),
        Case("points in the plane", lambda g: dict(x0=randn(g, 7, 2)), call=_flow_protocol),
        Case("numbers", lambda g: dict(x0=randn(g, 5)), call=_flow_protocol),
    ],
    properties=list(_APART),
    mistakes=[
        Mistake(
            "The target points from noise to data, x0 - eps. Time runs from data to noise here, so dx/dt is eps - x0.",
            old="velocity(x0, eps))",
            new="x0 - eps)",
        ),
        Mistake(
            "The model's t and the mixture run in opposite directions: you mix t x0 + (1 - t) eps, or you tell the "
            "model 1 - t. In this course t = 0 is data: (1 - t) x0 + t eps, and the model is told that t.",
            old="add_noise(x0, t, eps)",
            new="add_noise(x0, 1 - t, eps)",
        ),
        Mistake(
            "Time runs from noise to data, in the mixture and in the target. That is how SiT and Meta's library do "
            "it, and it is consistent; but in this course t = 0 is data, and v = eps - x0.",
            old=_FLOW,
            new="F.mse_loss(model(add_noise(x0, 1 - t, eps), t), x0 - eps)",
        ),
        Mistake(
            "The target is the noise. Flow matching asks for the direction eps - x0.",
            old="velocity(x0, eps))",
            new="eps)",
        ),
        Mistake(
            "The target is the data. Flow matching asks for the direction eps - x0.",
            old="velocity(x0, eps))",
            new="x0)",
        ),
        Mistake(
            "The target is x_t - x0 = t (eps - x0): the way already gone, not the direction. Divide by t, or use eps "
            "- x0.",
            old=_FLOW,
            new="F.mse_loss(model(add_noise(x0, t, eps), t), add_noise(x0, t, eps) - x0)",
        ),
        Mistake(
            "The target is eps - x_t: the way that is left, not the direction, which is eps - x0 all along the line.",
            old=_FLOW,
            new="F.mse_loss(model(add_noise(x0, t, eps), t), eps - add_noise(x0, t, eps))",
        ),
        Mistake(
            "The target uses another noise than the mixture. Draw eps once and use it twice.",
            old="velocity(x0, eps))",
            new="velocity(x0, torch.randn_like(x0)))",
        ),
        Mistake(
            "The model is told another t than you mixed with. Draw it once and use it twice.",
            old="eps), t), velocity",
            new="eps), torch.rand(len(x0)), ), velocity",
        ),
        Mistake(
            "The model sees the clean data. It must see x_t.",
            old="model(add_noise(x0, t, eps), t)",
            new="model(x0, t)",
        ),
        Mistake(
            "The model sees pure noise. It must see x_t.",
            old="model(add_noise(x0, t, eps), t)",
            new="model(eps, t)",
        ),
        Mistake(
            "t multiplies the columns of a picture, or nothing fits: it has shape (b,), which torch aligns with the "
            "*last* axis. For the mixture give it the shape (b, 1, ..., 1).",
            old="add_noise(x0, t, eps)",
            new="(1 - t) * x0 + t * eps",
        ),
        Mistake(
            "Right for pictures (b, c, h, w) only. The data may have any number of axes after b.",
            old="add_noise(x0, t, eps)",
            new="(1 - t.view(-1, 1, 1, 1)) * x0 + t.view(-1, 1, 1, 1) * eps",
        ),
        Mistake(
            "The whole batch shares one t. Draw one per sample.",
            old="torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="torch.rand(1).expand(len(x0))",
        ),
        Mistake(
            "t has shape (1,). Draw len(x0) of them.",
            old="torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="torch.rand(1)",
        ),
        Mistake(
            "Every pixel has a time of its own. Draw one t per *sample*: torch.rand(len(x0)).",
            old="t = torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="t = torch.rand_like(x0)",
        ),
        Mistake(
            "The model is given t with extra axes, (b, 1, 1, 1). It wants (b,); only the mixture needs the extra axes.",
            old="eps), t), velocity",
            new="eps), t.view(-1, *[1] * (x0.ndim - 1))), velocity",
        ),
        Mistake(
            "The model is given 1000 t. It wants t in [0, 1); what it makes of it is its own affair.",
            old="eps), t), velocity",
            new="eps), 1000 * t), velocity",
        ),
        Mistake(
            "t comes from `randn`, which is not even between 0 and 1. It is uniform: `rand`.",
            old="torch.rand(len(x0), device",
            new="torch.randn(len(x0), device",
        ),
        Mistake(
            "t takes a thousand fixed values only. Here time is continuous: torch.rand.",
            old="torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="torch.randint(1000, (len(x0),)) / 1000",
        ),
        Mistake(
            "t stays away from 0 and 1. Both ends must be trained: sampling starts at 1 exactly.",
            old="torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="torch.rand(len(x0)) * 0.98 + 0.01",
        ),
        Mistake(
            "The random numbers do not come from torch's global generator (a generator of your own, Python's random, "
            "NumPy), so `torch.manual_seed` cannot repeat a training run.",
            old="    eps = torch.randn_like(x0)",
            new="    own = torch.Generator()\n    own.seed()\n    eps = torch.randn(x0.shape, generator=own)",
        ),
        Mistake(
            "t is logit-normal, as in Stable Diffusion 3. That is a good idea, and comes later; this loss asks for "
            "uniform.",
            old="torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="torch.randn(len(x0)).sigmoid()",
        ),
        Mistake(
            "The noise comes from `rand`, which is uniform in [0, 1]. Gaussian noise comes from `randn`.",
            old="torch.randn_like(x0)",
            new="torch.rand_like(x0)",
        ),
        Mistake(
            "All samples share one noise. Draw noise of the shape of the whole batch.",
            old="torch.randn_like(x0)",
            new="torch.randn_like(x0[:1]).expand_as(x0)",
        ),
        Mistake(
            "This is DDPM's mixture: sqrt(1 - t) x0 + sqrt(t) eps. On a straight line there are no roots.",
            code="""
            def flow_loss(model, x0):
                t, eps = torch.rand(len(x0)), torch.randn_like(x0)
                s = t.view(-1, *[1] * (x0.ndim - 1))
                return F.mse_loss(model((1 - s).sqrt() * x0 + s.sqrt() * eps, t), eps - x0)
            """,
        ),
        Mistake(
            "You compare guesses of the data, x_t - t v with x0: that is the same error, multiplied by t squared. "
            "Compare the velocities themselves.",
            code="""
            def flow_loss(model, x0):
                t, eps = torch.rand(len(x0)), torch.randn_like(x0)
                s = t.view(-1, *[1] * (x0.ndim - 1))
                xt = (1 - s) * x0 + s * eps
                return F.mse_loss(xt - s * model(xt, t), x0)
            """,
        ),
        Mistake(
            "This is the Huber loss (smooth_l1). Square the difference everywhere: only then the best answer is the "
            "mean.",
            old="F.mse_loss(",
            new="F.smooth_l1_loss(",
        ),
        Mistake(
            "The loss is a sum. Take the mean over all numbers.",
            old=_FLOW,
            new="F.mse_loss(model(add_noise(x0, t, eps), t), velocity(x0, eps), reduction='sum')",
        ),
        Mistake(
            "You sum over each sample and average over the batch. The mean goes over all numbers.",
            old=_FLOW,
            new="(model(add_noise(x0, t, eps), t) - velocity(x0, eps)).square().flatten(1).sum(1).mean()",
        ),
        Mistake(
            "This is the mean absolute error. Square the difference: the best answer must be the mean direction.",
            old="F.mse_loss(",
            new="F.l1_loss(",
        ),
        Mistake(
            "No gradient reaches the model: it runs under `no_grad`, or its output is detached.",
            old="model(add_noise(x0, t, eps), t)",
            new="model(add_noise(x0, t, eps), t).detach()",
        ),
        Mistake(
            "The random numbers are the same at every call, because you seed inside.",
            old="    t = torch.rand(",
            new="    torch.manual_seed(0)\n    t = torch.rand(",
        ),
        Mistake(
            "The noise is the same at every call, because its generator is made and seeded inside. Training would "
            "know "
            "one noise only: leave the generator away.",
            old="eps = torch.randn_like(x0)",
            new="eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))",
        ),
        Mistake(
            "All channels share one noise picture. Each number gets its own: randn_like(x0).",
            old="torch.randn_like(x0)",
            new="(torch.randn_like(x0[:, :1]).expand_as(x0) if x0.ndim > 2 else torch.randn_like(x0))",
        ),
        Mistake(
            "The noise repeats along the last axis: one number for a whole row. Each number gets its own: "
            "randn_like(x0).",
            old="torch.randn_like(x0)",
            new="(torch.randn_like(x0[..., :1]).expand_as(x0) if x0.ndim > 1 else torch.randn_like(x0))",
        ),
        Mistake(
            "The times of a batch depend on each other: sorted, mirrored, one in each stretch of time (stratified), "
            "or at "
            "fixed distances. Some of that is a good trick; here each sample draws its t for itself.",
            old="t = torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="t = torch.rand(len(x0)).sort().values",
        ),
        Mistake(
            "Half of the samples get the noise of the other half, with the sign turned. Here each draws its own.",
            old="eps = torch.randn_like(x0)",
            new="eps = torch.randn_like(x0[: len(x0) // 2 + 1])\n    eps = torch.cat([eps, -eps])[: len(x0)]",
        ),
        Mistake(
            "t is not uniform: a power or another function bends it towards one end.",
            old="t = torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="t = torch.rand(len(x0)) ** 1.3",
        ),
        Mistake(
            "The noise is clamped. Gaussian noise has tails, and sampling starts from such noise.",
            old="eps = torch.randn_like(x0)",
            new="eps = torch.randn_like(x0).clamp(-2.5, 2.5)",
        ),
        Mistake(
            "You build at least one extra axis. Plain numbers, x0 of shape (b,), have none.",
            old="add_noise(x0, t, eps)",
            new="(1 - t.view(-1, *[1] * max(1, x0.ndim - 1))) * x0 + t.view(-1, *[1] * max(1, x0.ndim - 1)) * eps",
        ),
        Mistake(
            "A bit of data is left at t = 1 (sigma_min, as in the paper's eq. 20). Here the line ends at pure noise: "
            "(1 - t) "
            "x0 + t eps.",
            code="""
            def flow_loss(model, x0):
                t, eps = torch.rand(len(x0)), torch.randn_like(x0)
                s = t.view(-1, *[1] * (x0.ndim - 1))
                return F.mse_loss(model((1 - 0.99 * s) * x0 + s * eps, t), eps - x0)
            """,
        ),
        Mistake(
            "The mixture runs on a circle, cos(t pi / 2) x0 + sin(t pi / 2) eps. Flow matching takes the straight "
            "line.",
            code="""
            def flow_loss(model, x0):
                t, eps = torch.rand(len(x0)), torch.randn_like(x0)
                angle = t.view(-1, *[1] * (x0.ndim - 1)) * 3.141592653589793 / 2
                return F.mse_loss(model(angle.cos() * x0 + angle.sin() * eps, t), eps - x0)
            """,
        ),
        Mistake(
            "t is not drawn: every batch has the same evenly spaced times, in order. Draw them: torch.rand.",
            old="t = torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="t = torch.linspace(0, 1, len(x0))",
        ),
        Mistake(
            "The times are the same at every call, because their generator is made and seeded inside. Leave it away.",
            old="t = torch.rand(len(x0), device=x0.device, dtype=x0.dtype)",
            new="t = torch.rand(len(x0), generator=torch.Generator().manual_seed(0))",
        ),
    ],
    variants=[
        Variant(
            "own mixing",
            """
            def flow_loss(model, x0):
                eps = torch.randn(x0.shape)
                t = torch.rand(x0.size(0))
                s = t.reshape([-1] + [1] * (x0.dim() - 1))
                return (model(torch.lerp(x0, eps, s), t) - (eps - x0)).pow(2).mean()
            """,
        ),
        Variant(
            "along the line from the data",
            """
            def flow_loss(model, x0):
                t = torch.empty(len(x0)).uniform_(0, 1)
                way = torch.empty_like(x0).normal_() - x0
                xt = x0 + torch.einsum("b,b...->b...", t, way)
                return torch.nn.MSELoss()(model(xt, t), way)
            """,
        ),
        Variant(
            "the last axes first",
            """
            def flow_loss(model, x0):
                t, eps = torch.rand(x0.shape[0]), torch.randn_like(x0)
                xt = (x0.movedim(0, -1) * (1 - t) + eps.movedim(0, -1) * t).movedim(-1, 0)
                error = model(xt, t) - eps + x0
                return (error * error).reshape(len(x0), -1).mean(1).mean(0)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "It is `ddpm_loss` with another mixture and another target. t = torch.rand(len(x0)) is a float now.",
        ),
        Hint(
            "nothing fits, or only square things do",
            "t has shape (b,). To mix a (b, c, h, w) picture use t.view(-1, 1, 1, 1), or for any number of axes "
            "t.view(-1, *[1] * (x0.ndim - 1)). The model gets t itself.",
        ),
        Hint(
            "show me nearly everything",
            "t = rand(b); eps = randn_like(x0); s = t with extra axes; xt = (1 - s) x0 + s eps; return "
            "F.mse_loss(model(xt, t), eps - x0).",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------------- steps


def _step(g: torch.Generator, t: int, t_next: int, *shape: int, size: float = 1.0, **more) -> dict:
    return dict(xt=size * randn(g, *shape), eps=randn(g, *shape), t=t, t_next=t_next, z=randn(g, *shape)) | more


_A = "alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)"

DDPM_STEP = Exercise(
    target=ddpm_step,
    minutes=15,
    cases=[
        Case("one step", lambda g: _step(g, 40, 39, 5, 3, 7, 11), call=_with_table),
        Case("the first step of all", lambda g: _step(g, 99, 98, 5, 2), call=_with_table),
        Case("a long step", lambda g: _step(g, 70, 31, 5, 3, 7), call=_with_table),
        Case("a step to time 0", lambda g: _step(g, 1, 0, 5, 3, 7), call=_with_table),
        Case("a long step to time 0", lambda g: _step(g, 7, 0, 5, 3, 7), call=_with_table),
        Case("the last step, from time 0 to the data", lambda g: _step(g, 0, -1, 5, 3, 7), call=_with_table),
        Case("a long last step", lambda g: _step(g, 23, -1, 5), call=_with_table),
        Case("data far outside [-1, 1]", lambda g: _step(g, 30, 29, 5, 3, size=20.0), call=_with_table),
        Case("data in float64", lambda g: _step(g, 40, 39, 5, 3), call=partial(_in_float64, ddpm_step)),
    ],
    mistakes=[
        Mistake(
            "You multiply z by the variance. Noise is scaled by its standard deviation: take the square root.",
            old="(beta * (1 - a_next) / (1 - a)).sqrt() * z",
            new="(beta * (1 - a_next) / (1 - a)) * z",
        ),
        Mistake(
            "No fresh noise: you return the mean. Such a chain shrinks towards the average of the data and loses its "
            "variety.",
            old="return mean + (beta * (1 - a_next) / (1 - a)).sqrt() * z",
            new="return mean",
        ),
        Mistake(
            "The variance is beta, the larger of the paper's two choices, also at the last step, where the picture "
            "should come out clean. The contract asks for beta (1 - a') / (1 - a).",
            old="(beta * (1 - a_next) / (1 - a)).sqrt()",
            new="beta.sqrt()",
        ),
        Mistake(
            "The variance is beta, the larger of the paper's two choices. The contract asks for the smaller, beta (1 "
            "- a') / (1 - a), which becomes 0 at the last step by itself.",
            old="(beta * (1 - a_next) / (1 - a)).sqrt()",
            new="(beta.sqrt() if t_next >= 0 else 0.0)",
        ),
        Mistake(
            "t_next = -1 wraps around to the last entry of alpha_bar, where all is noise. -1 stands for the data: a' "
            "= 1.",
            old=_A,
            new="alpha_bar[t_next]",
        ),
        Mistake(
            "At the end you stay at alpha_bar[0]. t_next = -1 is the data itself, a' = 1, and no noise may be left.",
            old=_A,
            new="alpha_bar[max(t_next, 0)]",
        ),
        Mistake(
            "You multiply alpha_bar up once more. It is the running product already.",
            old="    a = alpha_bar[t]",
            new="    alpha_bar = alpha_bar.cumprod(0)\n    a = alpha_bar[t]",
        ),
        Mistake(
            "The fresh noise is subtracted. For a random z it makes no difference, but the contract says mean + "
            "sqrt(variance) z.",
            old="return mean + (beta",
            new="return mean - (beta",
        ),
        Mistake(
            "You go to t - 1, whatever t_next says. When steps are skipped, a' belongs to t_next.",
            old=_A,
            new="alpha_bar[t - 1] if t >= 1 else torch.ones_like(a)",
        ),
        Mistake(
            "beta is that of the single step t, 1 - alpha_bar[t] / alpha_bar[t - 1]. From t to t_next all steps "
            "between add up: alpha = a / a'.",
            old="alpha = a / a_next",
            new="alpha = a / (alpha_bar[t - 1] if t >= 1 else torch.ones_like(a))",
        ),
        Mistake(
            "Time 0 counts as data with you. It has been noised once, and a' = alpha_bar[0]; only -1 is the data.",
            old="t_next >= 0",
            new="t_next > 0",
        ),
        Mistake(
            "No noise is added on arrival at time 0. The paper's last step without noise is the one to the data, "
            "t_next = -1, and there the variance is 0 by itself.",
            old=").sqrt() * z",
            new=").sqrt() * z * (t_next > 0)",
        ),
        Mistake(
            "In the mean, eps is multiplied by beta / (1 - a). The root is missing: beta / sqrt(1 - a).",
            old="beta / (1 - a).sqrt() * eps",
            new="beta / (1 - a) * eps",
        ),
        Mistake(
            "In the mean, eps is multiplied by sqrt(beta). It is beta / sqrt(1 - a), with alpha_bar under the root.",
            old="beta / (1 - a).sqrt() * eps",
            new="beta / (1 - alpha).sqrt() * eps",
        ),
        Mistake(
            "You subtract all the noise at once, sqrt(1 - a) eps, and not only this step's share beta / sqrt(1 - a) "
            "eps.",
            old="beta / (1 - a).sqrt() * eps",
            new="(1 - a).sqrt() * eps",
        ),
        Mistake(
            "You subtract the whole eps. This step's share of it is beta / sqrt(1 - a).",
            old="beta / (1 - a).sqrt() * eps",
            new="eps",
        ),
        Mistake(
            "You subtract beta * eps. Divide by sqrt(1 - a): eps has variance 1, the noise in xt has variance 1 - a.",
            old="beta / (1 - a).sqrt() * eps",
            new="beta * eps",
        ),
        Mistake(
            "The root covers the whole fraction beta / (1 - a); it belongs to 1 - a alone.",
            old="beta / (1 - a).sqrt() * eps",
            new="(beta / (1 - a)).sqrt() * eps",
        ),
        Mistake(
            "The mean is not divided by sqrt(alpha). The forward step shrank the data by sqrt(alpha); going back "
            "undoes it.",
            old=" / alpha.sqrt()",
            new="",
        ),
        Mistake(
            "The mean is divided by alpha. It is sqrt(alpha).",
            old=" / alpha.sqrt()",
            new=" / alpha",
        ),
        Mistake(
            "The mean is multiplied by sqrt(alpha), as in the forward direction. Going back divides by it.",
            old=" / alpha.sqrt()",
            new=" * alpha.sqrt()",
        ),
        Mistake(
            "The mean is divided by sqrt(a), the root of alpha_bar. That undoes all steps at once; this step's factor "
            "is sqrt(alpha), alpha = a / a'.",
            old=" / alpha.sqrt()",
            new=" / a.sqrt()",
        ),
        Mistake(
            "Only xt is divided by sqrt(alpha): the bracket is missing. The whole difference is divided.",
            old="(xt - beta / (1 - a).sqrt() * eps) / alpha.sqrt()",
            new="xt / alpha.sqrt() - beta / (1 - a).sqrt() * eps",
        ),
        Mistake(
            "The noise is added, not subtracted. This step goes towards the data.",
            old="(xt - beta",
            new="(xt + beta",
        ),
        Mistake(
            "In the variance a and a' are swapped: it is beta (1 - a') / (1 - a), never more than beta.",
            old="(beta * (1 - a_next) / (1 - a))",
            new="(beta * (1 - a) / (1 - a_next).clamp(min=1e-12))",
        ),
        Mistake(
            "In the variance a and a' are swapped, which divides by 0 at the data. It is beta (1 - a') / (1 - a).",
            old="(beta * (1 - a_next) / (1 - a))",
            new="(beta * (1 - a) / (1 - a_next))",
        ),
        Mistake(
            "The variance is (1 - a') / (1 - a), without its beta.",
            old="(beta * (1 - a_next) / (1 - a))",
            new="((1 - a_next) / (1 - a))",
        ),
        Mistake(
            "The variance is beta (1 - a'), without / (1 - a).",
            old="(beta * (1 - a_next) / (1 - a))",
            new="(beta * (1 - a_next))",
        ),
        Mistake(
            "The fresh noise has the full level of t_next, sqrt(1 - a'). Most of that noise is still in xt; only beta "
            "(1 - a') / (1 - a) is new.",
            old="(beta * (1 - a_next) / (1 - a)).sqrt()",
            new="(1 - a_next).sqrt()",
        ),
        Mistake(
            "The fraction is upside down: alpha = a / a', the share of data that is left on the way from t_next to t. "
            "It is below 1.",
            old="alpha = a / a_next",
            new="alpha = a_next / a",
        ),
        Mistake(
            "You use alpha_bar as if it were alpha. The step's own alpha is a / a'.",
            old="alpha = a / a_next",
            new="alpha = a",
        ),
        Mistake(
            "The guess of the data is clipped to [-1, 1] on the way. That helps pictures, but the contract says that "
            "nothing is clipped, and data outside that range are ruined.",
            code="""
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                a = alpha_bar[t]
                b = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
                alpha = a / b
                x0 = ((xt - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
                mean = b.sqrt() * (1 - alpha) / (1 - a) * x0 + alpha.sqrt() * (1 - b) / (1 - a) * xt
                return mean + ((1 - alpha) * (1 - b) / (1 - a)).sqrt() * z
            """,
        ),
        Mistake(
            "You draw your own noise. Use z.",
            old=").sqrt() * z",
            new=").sqrt() * torch.randn_like(xt)",
        ),
        Mistake(
            "This is DDIM's step without noise. DDPM takes its mean and adds fresh noise.",
            code="""
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                a = alpha_bar[t]
                b = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
                return b.sqrt() * (xt - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
            """,
        ),
        Mistake(
            "The result is the guess of the data itself. One step goes a bit of the way only.",
            code="""
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                a = alpha_bar[t]
                return (xt - (1 - a).sqrt() * eps) / a.sqrt()
            """,
        ),
        Mistake(
            "You guess the data and noise it anew with z: sqrt(a') x0 + sqrt(1 - a') z (beta = 1 - a has the same "
            "effect; it is "
            "1 - a / a'). That forgets where xt was; "
            "DDPM's mean keeps a part of it.",
            code="""
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                a = alpha_bar[t]
                b = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
                return b.sqrt() * (xt - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * z
            """,
        ),
        Mistake(
            "The values are right, but xt is overwritten. Whoever wants to plot the chain still needs it.",
            code="""
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                a = alpha_bar[t]
                b = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
                xt -= (1 - a / b) / (1 - a).sqrt() * eps
                xt /= (a / b).sqrt()
                xt += ((1 - a / b) * (1 - b) / (1 - a)).sqrt() * z
                return xt
            """,
        ),
        Mistake(
            "Coefficients in float32, because alpha_bar is converted too early: float64 data then keep half of their "
            "digits only. Convert to the dtype of the data, x.dtype, not to float32.",
            code="""
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                table = alpha_bar.float()
                a = table[t]
                b = table[t_next] if t_next >= 0 else torch.ones_like(a)
                mean = (xt - (1 - a / b) / (1 - a).sqrt() * eps) / (a / b).sqrt()
                return mean + ((1 - a / b) * (1 - b) / (1 - a)).sqrt() * z
            """,
        ),
        Mistake(
            "The result is float64 for float32 data: something was converted to double and not back. Give it xt's "
            "dtype.",
            old="return mean + (beta * (1 - a_next) / (1 - a)).sqrt() * z",
            new="return (mean + (beta * (1 - a_next) / (1 - a)).sqrt() * z).double()",
        ),
    ],
    variants=[
        Variant(
            "the posterior of x0",
            """
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                a = alpha_bar[t].item()
                b = 1.0 if t_next == -1 else alpha_bar[t_next].item()
                alpha = a / b
                x0 = (xt - math.sqrt(1 - a) * eps) / math.sqrt(a)
                mean = math.sqrt(b) * (1 - alpha) / (1 - a) * x0 + math.sqrt(alpha) * (1 - b) / (1 - a) * xt
                return mean + math.sqrt((1 - alpha) * (1 - b) / (1 - a)) * z
            """,
        ),
        Variant(
            "a table with the data in front",
            """
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                table = F.pad(alpha_bar, (1, 0), value=1.0)
                a, a_next = table[t + 1], table[t_next + 1]
                beta = (a_next - a) / a_next
                sigma = torch.sqrt(beta * (1 - a_next) / (1 - a))
                mean = torch.rsqrt(1 - beta) * (xt - beta * torch.rsqrt(1 - a) * eps)
                return mean + sigma.to(z.dtype) * z
            """,
        ),
        Variant(
            "noise only where there is some",
            """
            def ddpm_step(xt, eps, t, t_next, alpha_bar, z):
                a, last = alpha_bar[t], t_next < 0
                alpha = a if last else a / alpha_bar[t_next]
                out = xt / alpha**0.5 - eps * ((1 - alpha) / ((1 - a) * alpha) ** 0.5)
                if not last:
                    out = torch.addcmul(out, z, (((1 - alpha) * (1 - alpha_bar[t_next]) / (1 - a)) ** 0.5).to(z.dtype))
                return out
            """,
        ),
    ],
    hints=[
        Hint(
            "the last step is wrong",
            "alpha_bar[-1] is not an error in Python: it is the *last* entry. Ask for t_next < 0 first, and take 1.",
        ),
        Hint(
            "a long step is wrong",
            "From t down to t_next several steps are undone at once. What they left of the data, all together, is "
            "alpha = a / a'. Everything else follows from it.",
        ),
        Hint(
            "show me nearly everything",
            "a = alpha_bar[t]; a' = alpha_bar[t_next], or 1; alpha = a / a'; beta = 1 - alpha; mean = (xt - beta / (1 "
            "- a).sqrt() * eps) / alpha.sqrt(); return mean + (beta * (1 - a') / (1 - a)).sqrt() * z.",
        ),
    ],
)

DDIM_STEP = Exercise(
    target=ddim_step,
    minutes=12,
    cases=[
        Case("one step", lambda g: _step(g, 40, 39, 5, 3, 7, 11), call=_with_table),
        Case("a long step", lambda g: _step(g, 70, 31, 5, 3, 7), call=_with_table),
        Case("the last step, to the data", lambda g: _step(g, 0, -1, 5, 3, 7), call=_with_table),
        Case("from all noise to the data at once", lambda g: _step(g, 99, -1, 5, 2), call=_with_table),
        Case("a step to time 0", lambda g: _step(g, 11, 0, 5), call=_with_table),
        Case("half of the fresh noise", lambda g: _step(g, 70, 31, 5, 3, 7, eta=0.5), call=_with_table),
        Case("all of the fresh noise", lambda g: _step(g, 40, 39, 5, 3, 7, eta=1.0), call=_with_table),
        Case("all of the fresh noise, to time 0", lambda g: _step(g, 9, 0, 5, 3, eta=1.0), call=_with_table),
        Case("all of the fresh noise, to the data", lambda g: _step(g, 23, -1, 5, 3, eta=1.0), call=_with_table),
        Case("data far outside [-1, 1]", lambda g: _step(g, 30, 19, 5, 3, size=20.0), call=_with_table),
        Case("data in float64", lambda g: _step(g, 40, 29, 5, 3, eta=0.3), call=partial(_in_float64, ddim_step)),
    ],
    mistakes=[
        Mistake(
            "You go to t - 1, whatever t_next says. Invisible when no step is skipped, and far off when 50 steps "
            "stand for 1000: a' belongs to the next *visited* time.",
            old=_A,
            new="alpha_bar[t - 1] if t >= 1 else torch.ones_like(a)",
        ),
        Mistake(
            "t_next = -1 wraps around to the last entry of alpha_bar, where all is noise. -1 stands for the data: a' "
            "= 1.",
            old=_A,
            new="alpha_bar[t_next]",
        ),
        Mistake(
            "Time 0 counts as data with you. It has been noised once, and a' = alpha_bar[0]; only -1 is the data.",
            old="t_next >= 0",
            new="t_next > 0",
        ),
        Mistake(
            "At the end you stay at alpha_bar[0]. t_next = -1 is the data itself, a' = 1, and no noise may be left.",
            old=_A,
            new="alpha_bar[max(t_next, 0)]",
        ),
        Mistake(
            "You read alpha_bar at t - 1 for the present time too. xt stands at time t: a = alpha_bar[t].",
            old="    a = alpha_bar[t]",
            new="    a = alpha_bar[max(t - 1, 0)]",
        ),
        Mistake(
            "eps is put back at the level of t, sqrt(1 - a): the noise is never removed. On arrival it must have the "
            "level of t_next.",
            old="(1 - a_next - variance).sqrt()",
            new="(1 - a - variance).sqrt()",
        ),
        Mistake(
            "With eta > 0 there is too much noise: eps still gets all of 1 - a', and z comes on top. Both share it: "
            "sqrt(1 - a' - sigma^2).",
            old="(1 - a_next - variance).sqrt()",
            new="(1 - a_next).sqrt()",
        ),
        Mistake(
            "Under the root stands 1 - a' - sigma, with sigma not squared.",
            old="(1 - a_next - variance).sqrt()",
            new="(1 - a_next - variance.sqrt()).clamp(min=0).sqrt()",
        ),
        Mistake(
            "eps gets sqrt(1 - a') - sigma. Variances add up, not standard deviations: sqrt(1 - a' - sigma^2).",
            old="(1 - a_next - variance).sqrt() * eps",
            new="((1 - a_next).sqrt() - variance.sqrt()) * eps",
        ),
        Mistake(
            "You multiply z by the variance. Noise is scaled by its standard deviation, sigma.",
            old="variance.sqrt() * z",
            new="variance * z",
        ),
        Mistake(
            "eta is not squared: sigma grows like eta, so sigma^2 like eta^2.",
            old="eta**2",
            new="eta",
        ),
        Mistake(
            "eta is ignored, and no fresh noise is ever added.",
            old="eta**2 *",
            new="0 *",
        ),
        Mistake(
            "eta is ignored: the fresh noise of eta = 1 always comes, so this is DDPM's step.",
            old="eta**2 *",
            new="1 *",
        ),
        Mistake(
            "The fresh noise z is left out, though eta made room for it: sigma z is missing.",
            old=" + variance.sqrt() * z",
            new="",
        ),
        Mistake(
            "No fresh noise is added on arrival at time 0. That is not the data yet, which is -1; and there sigma is "
            "0 by itself.",
            old="variance.sqrt() * z",
            new="variance.sqrt() * z * (t_next > 0)",
        ),
        Mistake(
            "sigma is eta sqrt(1 - a') with you: eta = 1 would throw away all that eps knows. The share is sigma^2 = "
            "eta^2 (1 - a') / (1 - a) (1 - a / a').",
            old="(1 - a_next) / (1 - a) * (1 - a / a_next)",
            new="(1 - a_next)",
        ),
        Mistake(
            "In sigma a and a' are swapped in (1 - a') / (1 - a).",
            old="(1 - a_next) / (1 - a) * (1 - a / a_next)",
            new="(1 - a) / (1 - a_next).clamp(min=1e-12) * (1 - a / a_next) * (a_next < 1)",
        ),
        Mistake(
            "In sigma the factor (1 - a / a') is missing.",
            old=" * (1 - a / a_next)",
            new="",
        ),
        Mistake(
            "In sigma the factor (1 - a') / (1 - a) is missing, so that noise is added even on arrival at the data.",
            old="(1 - a_next) / (1 - a) * (1 - a / a_next)",
            new="(1 - a / a_next)",
        ),
        Mistake(
            "1 - a'/a is negative: the fraction is a / a'.",
            old="(1 - a / a_next)",
            new="(1 - a_next / a)",
        ),
        Mistake(
            "x0 is not divided by sqrt(a): it is as small as the data in xt are. The data were shrunk by sqrt(a).",
            old=" / a.sqrt()",
            new="",
        ),
        Mistake(
            "x0 is divided by a. It is sqrt(a).",
            old=" / a.sqrt()",
            new=" / a",
        ),
        Mistake(
            "Only eps is divided by sqrt(a): the bracket is missing. x0 = (xt - sqrt(1 - a) eps) / sqrt(a).",
            old="(xt - (1 - a).sqrt() * eps) / a.sqrt()",
            new="xt - (1 - a).sqrt() * eps / a.sqrt()",
        ),
        Mistake(
            "For x0 you subtract the whole eps. In xt it has the size sqrt(1 - a).",
            old="(1 - a).sqrt() * eps) / a",
            new="eps) / a",
        ),
        Mistake(
            "For x0 you subtract (1 - a) eps, without the root.",
            old="(xt - (1 - a).sqrt() * eps)",
            new="(xt - (1 - a) * eps)",
        ),
        Mistake(
            "For x0 the noise is added. Subtract it.",
            old="(xt - (1 - a).sqrt()",
            new="(xt + (1 - a).sqrt()",
        ),
        Mistake(
            "x0 is multiplied by a', without the root.",
            old="a_next.sqrt() * x0",
            new="a_next * x0",
        ),
        Mistake(
            "x0 keeps its full size on arrival. At t_next the data have the size sqrt(a').",
            old="a_next.sqrt() * x0",
            new="x0",
        ),
        Mistake(
            "You return the guess of the data. It has to be noised again, to the level of t_next.",
            old="return a_next.sqrt() * x0 + (1 - a_next - variance).sqrt() * eps + variance.sqrt() * z",
            new="return x0",
        ),
        Mistake(
            "x0 is clipped to [-1, 1]. That often helps pictures, and a sampler may do it; this step leaves it out.",
            old="(xt - (1 - a).sqrt() * eps) / a.sqrt()",
            new="((xt - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)",
        ),
        Mistake(
            "The guess is noised with fresh noise only. DDIM puts back the *same* eps (but for eta): that is what "
            "makes it deterministic.",
            old="(1 - a_next - variance).sqrt() * eps + variance.sqrt() * z",
            new="(1 - a_next).sqrt() * z",
        ),
        Mistake(
            "You draw your own noise. Use z.",
            old="variance.sqrt() * z",
            new="variance.sqrt() * torch.randn_like(xt)",
        ),
        Mistake(
            "a and a' lack their square roots: alpha_bar counts variance. Data are scaled by sqrt(a), noise by sqrt(1 "
            "- a).",
            code="""
            def ddim_step(xt, eps, t, t_next, alpha_bar, z, eta=0.0):
                a = alpha_bar[t]
                b = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
                s2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
                return b * (xt - (1 - a) * eps) / a + (1 - b - s2) * eps + s2 * z
            """,
        ),
        Mistake(
            "xt is overwritten. Whoever wants to plot the chain still needs it.",
            code="""
            def ddim_step(xt, eps, t, t_next, alpha_bar, z, eta=0.0):
                a = alpha_bar[t]
                b = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
                s2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
                xt -= (1 - a).sqrt() * eps
                xt *= (b / a).sqrt()
                return xt + (1 - b - s2).sqrt() * eps + s2.sqrt() * z
            """,
        ),
        Mistake(
            "The default of eta is 1. It is 0: no fresh noise unless somebody asks for it.",
            code="""
            def ddim_step(xt, eps, t, t_next, alpha_bar, z, eta=1.0):
                a = alpha_bar[t]
                b = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
                s2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
                return b.sqrt() * (xt - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b - s2).sqrt() * eps + s2.sqrt() * z
            """,
        ),
        Mistake(
            "Coefficients in float32, because alpha_bar is converted too early: float64 data then keep half of their "
            "digits only. Convert to the dtype of the data, x.dtype, not to float32.",
            code="""
            def ddim_step(xt, eps, t, t_next, alpha_bar, z, eta=0.0):
                table = alpha_bar.float()
                a = table[t]
                b = table[t_next] if t_next >= 0 else torch.ones_like(a)
                x0 = (xt - (1 - a).sqrt() * eps) / a.sqrt()
                variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
                return b.sqrt() * x0 + (1 - b - variance).clamp(min=0).sqrt() * eps + variance.sqrt() * z
            """,
        ),
        Mistake(
            "The result is float64 for float32 data: something was converted to double and not back. Give it xt's "
            "dtype.",
            old="return a_next.sqrt() * x0 + (1 - a_next - variance).sqrt() * eps + variance.sqrt() * z",
            new="return (a_next.sqrt() * x0 + (1 - a_next - variance).sqrt() * eps + variance.sqrt() * z).double()",
        ),
        Mistake(
            "eta acts as a switch: any eta above 0 gives all of the fresh noise. It is a share; sigma is "
            "proportional to it.",
            old="variance = eta**2 * (1 - a_next) / (1 - a) * (1 - a / a_next)",
            new="variance = float(eta > 0) * (1 - a_next) / (1 - a) * (1 - a / a_next)",
        ),
        Mistake(
            "eta acts as a switch: fresh noise comes for eta = 1 only. It is a share; sigma is proportional to it.",
            old="variance = eta**2 * (1 - a_next) / (1 - a) * (1 - a / a_next)",
            new="variance = float(eta == 1) * (1 - a_next) / (1 - a) * (1 - a / a_next)",
        ),
    ],
    variants=[
        Variant(
            "plain numbers",
            """
            def ddim_step(xt, eps, t, t_next, alpha_bar, z, eta=0.0):
                a = float(alpha_bar[t])
                b = float(alpha_bar[t_next]) if t_next != -1 else 1.0
                sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
                x0 = (xt - math.sqrt(1 - a) * eps) / math.sqrt(a)
                return math.sqrt(b) * x0 + math.sqrt(1 - b - sigma**2) * eps + sigma * z
            """,
        ),
        Variant(
            "one coefficient for each tensor",
            """
            def ddim_step(xt, eps, t, t_next, alpha_bar, z, eta=0.0):
                table = torch.cat([torch.ones(1).to(alpha_bar), alpha_bar])
                a, b = table[t + 1], table[t_next + 1]
                s2 = eta * eta * (1 - b) * (b - a) / ((1 - a) * b)
                of_x = (b / a) ** 0.5
                of_eps = (1 - b - s2) ** 0.5 - of_x * (1 - a) ** 0.5
                return of_x * xt + of_eps * eps + s2**0.5 * z
            """,
        ),
        Variant(
            "two branches",
            """
            def ddim_step(xt, eps, t, t_next, alpha_bar, z, eta=0.0):
                a = alpha_bar[t]
                x0 = (xt - torch.sqrt(1 - a) * eps) * torch.rsqrt(a)
                if t_next < 0:
                    return x0
                b = alpha_bar[t_next]
                if eta == 0:
                    return b.sqrt() * x0 + (1 - b).sqrt() * eps
                sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
                return b.sqrt() * x0 + (1 - b - sigma.square()).sqrt() * eps + sigma * z
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Two numbers first: a at t, and a' at t_next. Then x0, then sigma^2, then the mixture, one line each.",
        ),
        Hint(
            "the last step is wrong",
            "alpha_bar[-1] is not an error in Python: it is the *last* entry. Ask for t_next < 0 first, and take 1.",
        ),
        Hint(
            "it is right for eta = 0 only",
            "The noise on arrival has the variance 1 - a' in all. sigma^2 of it comes from z, the rest from eps: "
            "sqrt(1 - a' - sigma^2).",
        ),
        Hint(
            "show me nearly everything",
            "x0 = (xt - sqrt(1 - a) eps) / sqrt(a); s2 = eta^2 (1 - a') / (1 - a) (1 - a / a'); return sqrt(a') x0 + "
            "sqrt(1 - a' - s2) eps + sqrt(s2) z.",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------------------- samplers


class _Asked:
    """A fixed smooth model that remembers at which times it was asked."""

    def __init__(self, floats: bool):
        self.floats, self.times = floats, []

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        _times_seen(xt, t, self.floats)
        if len(self.times) > 200:
            raise TypeError("the model has been asked more than 200 times; how many steps were wanted?")
        self.times.append([round(x, 4) for x in t.tolist()])
        return 0.7 * torch.tanh(xt) + 0.3 * torch.sin(_wide(t, xt) * (5.0 if self.floats else 0.1)) * xt

    def __repr__(self) -> str:
        return "a model"

    def report(self) -> str:
        if not all(len(set(times)) == 1 for times in self.times):
            return "the samples of the batch had different times"
        return ", ".join(f"{times[0]:g}" for times in self.times)


def _ddim_protocol(f, noise: Tensor, times: list[int]) -> dict:
    model = _Asked(floats=False)
    sample = _with(_table(), f, model=model, noise=noise, times=times)
    return {"the times at which the model was asked": model.report(), "the sample": sample}


def _ddim_double(f, noise: Tensor, times: list[int]) -> dict:
    report = _ddim_protocol(f, noise.double(), times)
    sample = report["the sample"]
    return report | {"dtype for float64 noise": str(sample.dtype), "the sample": sample.float()}


_LOOP = "pairwise([*times, -1])"
_MODEL_CALL = "model(xt, torch.full((len(xt),), t, device=xt.device))"

DDIM_SAMPLE = Exercise(
    target=ddim_sample,
    minutes=12,
    gradients=False,
    tolerance=1e-3,
    cases=[
        Case("evenly spaced", lambda g: dict(noise=randn(g, 5, 3, 7), times=[80, 60, 40, 20]), call=_ddim_protocol),
        Case("unevenly spaced", lambda g: dict(noise=randn(g, 5, 3), times=[97, 61, 60, 3]), call=_ddim_protocol),
        Case("down to time 0", lambda g: dict(noise=randn(g, 3, 2, 5, 7), times=[99, 50, 0]), call=_ddim_protocol),
        Case("a single time", lambda g: dict(noise=randn(g, 5, 2), times=[90]), call=_ddim_protocol),
        Case(
            "no step is skipped", lambda g: dict(noise=randn(g, 5), times=[7, 6, 5, 4, 3, 2, 1, 0]), call=_ddim_protocol
        ),
        Case("one sample", lambda g: dict(noise=randn(g, 1, 3), times=[60, 20]), call=_ddim_protocol),
        Case("times in a tuple", lambda g: dict(noise=randn(g, 3, 5), times=(90, 40, 10)), call=_ddim_protocol),
        Case("noise in float64", lambda g: dict(noise=randn(g, 5, 3), times=[80, 30]), call=_ddim_double),
    ],
    mistakes=[
        Mistake(
            "Each step goes to t - 1, and the next one begins elsewhere: the noise level that the model is told is "
            "not the one of xt. Go to the next time *of the list*.",
            old="ddim_step(xt, eps, t, t_next,",
            new="ddim_step(xt, eps, t, t - 1,",
        ),
        Mistake(
            "You take the distance of the first two times for all steps. The list need not be evenly spaced, and from "
            "the last time you go to the data.",
            code="""
            def ddim_sample(model, noise, alpha_bar, times):
                gap = times[0] - times[1] if len(times) > 1 else times[0] + 1
                x = noise
                for t in times:
                    eps = model(x, torch.full((len(x),), t))
                    x = ddim_step(x, eps, t, max(t - gap, -1), alpha_bar, torch.zeros_like(x))
                return x
            """,
        ),
        Mistake(
            "The walk ends at the last time of the list, with some noise left. One more step, to time -1, makes it "
            "data.",
            old=_LOOP,
            new="pairwise(times)",
        ),
        Mistake(
            "The last step goes to time 0, which has still been noised once, and the data are at -1.",
            old=_LOOP,
            new="pairwise([*times, 0])",
        ),
        Mistake(
            "The model is asked at time -1 as well. From the last time of the list it is one step to the data, "
            "without a further question.",
            old=_LOOP,
            new="zip([*times, -1], [*times[1:], -1, -1])",
        ),
        Mistake(
            "You walk through the list backwards, from little noise to much. It is decreasing already.",
            old=_LOOP,
            new="pairwise([*reversed(times), -1])",
        ),
        Mistake(
            "The last time of the list is skipped, and the model is asked at time 0 instead. Visit exactly the times "
            "of the list; the step after the last one goes to -1.",
            old=_LOOP,
            new="pairwise([*times[:-1], 0, -1])",
        ),
        Mistake(
            "Half of the noise is fresh (eta = 0.5). This walk is deterministic: eta = 0.",
            old="torch.zeros_like(xt))",
            new="torch.randn_like(xt), 0.5)",
        ),
        Mistake(
            "The model is asked about the noise at the *next* time. xt stands at t when you ask.",
            old="(len(xt),), t, device",
            new="(len(xt),), max(t_next, 0), device",
        ),
        Mistake(
            "The model is asked about `noise` at every step. Ask it about xt, where the walk stands now.",
            old="model(xt, torch",
            new="model(noise, torch",
        ),
        Mistake(
            "Every step starts from `noise` again, so only the last one counts. Keep the result in xt.",
            old="xt = ddim_step(xt, eps",
            new="xt = ddim_step(noise, eps",
        ),
        Mistake(
            "The model gets a plain number for t. It wants one per sample: torch.full((b,), t).",
            old=_MODEL_CALL,
            new="model(xt, t)",
        ),
        Mistake(
            "t has no axis. The model wants one time per sample: torch.full((b,), t).",
            old=_MODEL_CALL,
            new="model(xt, torch.tensor(t))",
        ),
        Mistake(
            "t has shape (1,). The model wants one time per sample: torch.full((b,), t).",
            old=_MODEL_CALL,
            new="model(xt, torch.tensor([t]))",
        ),
        Mistake(
            "The model gets t as floats, perhaps divided by T. It wants the integers of the list, int64.",
            old=_MODEL_CALL,
            new="model(xt, torch.full((len(xt),), float(t)))",
        ),
        Mistake(
            "You add fresh noise (eta = 1). This walk is deterministic: eta = 0.",
            old="torch.zeros_like(xt))",
            new="torch.randn_like(xt), 1.0)",
        ),
        Mistake(
            "You start from noise of your own. Start from the noise that was given: the same noise must give the same "
            "sample.",
            old="xt = noise",
            new="xt = torch.randn_like(noise)",
        ),
        Mistake(
            "All T steps are taken, whatever the list says.",
            old=_LOOP,
            new="pairwise([*range(len(alpha_bar) - 1, -1, -1), -1])",
        ),
        Mistake(
            "You begin at T - 1, though the list begins elsewhere. The noise stands at times[0].",
            old=_LOOP,
            new="pairwise([len(alpha_bar) - 1, *times[1:], -1])",
        ),
        Mistake(
            "The first time of the list is left out.",
            old=_LOOP,
            new="pairwise([*times[1:], -1])",
        ),
        Mistake(
            "The sample is clamped to [-1, 1]. Data need not stay there.",
            old="    return xt",
            new="    return xt.clamp(-1, 1)",
        ),
        Mistake(
            "Only the first step runs: the return stands inside the loop.",
            old="        xt = ddim_step(xt, eps, t, t_next, alpha_bar, torch.zeros_like(xt))\n    return xt",
            new="        xt = ddim_step(xt, eps, t, t_next, alpha_bar, torch.zeros_like(xt))\n        return xt",
        ),
        Mistake(
            "You change the caller's list (append, pop, reverse). It was to be left as it is: make a new one, such as "
            "[*times, -1].",
            code="""
            def ddim_sample(model, noise, alpha_bar, times):
                times.append(-1)
                x = noise
                for t, s in zip(times, times[1:]):
                    x = ddim_step(x, model(x, torch.full((len(x),), t)), t, s, alpha_bar, torch.zeros_like(x))
                return x
            """,
        ),
        Mistake(
            "You return all states. Only the last one is asked for.",
            code="""
            def ddim_sample(model, noise, alpha_bar, times):
                x, states = noise, []
                for t, s in zip(times, [*times[1:], -1]):
                    x = ddim_step(x, model(x, torch.full((len(x),), t)), t, s, alpha_bar, torch.zeros_like(x))
                    states.append(x)
                return states
            """,
        ),
        Mistake(
            "The model is asked once, at the first time, and its answer is used for all steps. Ask anew at every time.",
            code="""
            def ddim_sample(model, noise, alpha_bar, times):
                x = noise
                eps = model(x, torch.full((len(x),), times[0]))
                for t, s in zip(times, [*times[1:], -1]):
                    x = ddim_step(x, eps, t, s, alpha_bar, torch.zeros_like(x))
                return x
            """,
        ),
        Mistake(
            "The model is asked twice at every time. Once is enough, and the model is what costs.",
            old="        xt = ddim_step(xt, eps",
            new="        model(xt, torch.full((len(xt),), t))\n        xt = ddim_step(xt, eps",
        ),
        Mistake(
            "The sample is float32 whatever the noise is. Like noise: keep its dtype.",
            old="    xt = noise\n",
            new="    xt = noise.float()\n",
        ),
        Mistake(
            "The sample is float64 for float32 noise. Like noise: keep its dtype.",
            old="    return xt",
            new="    return xt.double()",
        ),
    ],
    variants=[
        Variant(
            "by index, with the formula",
            """
            @torch.no_grad()
            def ddim_sample(model, noise, alpha_bar, times):
                x = noise.clone()
                for i in range(len(times)):
                    a = alpha_bar[times[i]]
                    b = alpha_bar[times[i + 1]] if i + 1 < len(times) else torch.tensor(1.0, dtype=torch.float64)
                    eps = model(x, torch.full((x.shape[0],), times[i]))
                    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
                    x = b.sqrt() * x0 + (1 - b).sqrt() * eps
                return x
            """,
        ),
        Variant(
            "recursion",
            """
            def ddim_sample(model, noise, alpha_bar, times):
                t, *rest = times
                eps = model(noise, torch.tensor([t] * len(noise)))
                x = ddim_step(noise, eps, t, rest[0] if rest else -1, alpha_bar, torch.zeros_like(noise))
                return ddim_sample(model, x, alpha_bar, rest) if rest else x
            """,
        ),
        Variant(
            "reduce",
            """
            def ddim_sample(model, noise, alpha_bar, times):
                import functools

                def walk(x, way):
                    t, s = way
                    at = torch.ones(len(x), dtype=torch.int64) * t
                    return ddim_step(x, model(x, at), t, s, alpha_bar, noise)

                return functools.reduce(walk, zip(times, list(times[1:]) + [-1]), noise)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "zip(times, [*times[1:], -1]) gives the pairs (t, t_next). For each: ask the model, then one `ddim_step`.",
        ),
        Hint(
            "the model complains about t",
            "It wants a tensor with one entry per sample, all equal to t: torch.full((len(xt),), t).",
        ),
        Hint(
            "show me nearly everything",
            "xt = noise; for t, t_next in zip(times, [*times[1:], -1]): eps = model(xt, torch.full((len(xt),), t)); "
            "xt = ddim_step(xt, eps, t, t_next, alpha_bar, torch.zeros_like(xt)); return xt after the loop.",
        ),
    ],
)


def _euler_protocol(f, noise: Tensor, steps: int) -> dict:
    model = _Asked(floats=True)
    sample = f(model=model, noise=noise, steps=steps)
    return {"the times at which the model was asked": model.report(), "the sample": sample}


def _euler_double(f, noise: Tensor, steps: int) -> dict:
    report = _euler_protocol(f, noise.double(), steps)
    sample = report["the sample"]
    return report | {"dtype for float64 noise": str(sample.dtype), "the sample": sample.float()}


def _gaussian_velocity(xt: Tensor, t: Tensor) -> Tensor:
    """The exact velocity for data N(1.5, 0.4^2)."""
    t = _wide(t, xt)
    variance = (1 - t) ** 2 * 0.16 + t**2
    return (t - (1 - t) * 0.16) / variance * (xt - (1 - t) * 1.5) - 1.5


def _euler_error(f, steps: int) -> float:
    z = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    return (f(model=_gaussian_velocity, noise=z.clone(), steps=steps) - (1.5 + 0.4 * z)).abs().max().item()


def _one_step_finds_the_mean(f) -> bool:
    z = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    return (f(model=_gaussian_velocity, noise=z, steps=1) - 1.5).abs().max().item() < 1e-4


def _error_halves(f) -> bool:
    return 1.6 < _euler_error(f, 20) / max(_euler_error(f, 40), 1e-9) < 2.5


_TIME = "t = torch.full((len(xt),), 1 - i / steps, dtype=xt.dtype, device=xt.device)"

EULER_SAMPLE = Exercise(
    target=euler_sample,
    minutes=8,
    gradients=False,
    cases=[
        Case("five steps", lambda g: dict(noise=randn(g, 5, 3, 7), steps=5), call=_euler_protocol),
        Case("two steps", lambda g: dict(noise=randn(g, 3, 2, 5, 7), steps=2), call=_euler_protocol),
        Case("one step", lambda g: dict(noise=randn(g, 5, 2), steps=1), call=_euler_protocol),
        Case("many steps", lambda g: dict(noise=randn(g, 5), steps=37), call=_euler_protocol),
        Case("49 steps", lambda g: dict(noise=randn(g, 5), steps=49), call=_euler_protocol),
        Case("one sample", lambda g: dict(noise=randn(g, 1, 3), steps=3), call=_euler_protocol),
        Case("noise in float64", lambda g: dict(noise=randn(g, 5, 3), steps=3), call=_euler_double),
        Case("no step", lambda g: dict(noise=randn(g, 2, 3), steps=0), call=_euler_protocol),
        Case("less than nothing", lambda g: dict(noise=randn(g, 2, 3), steps=-2), call=_euler_protocol),
    ],
    properties=[
        Property(
            "With a perfect model, a single step from noise must land on the mean of the data.",
            _one_step_finds_the_mean,
        ),
        Property("Twice as many steps must halve the error: Euler's method has order 1.", _error_halves),
    ],
    mistakes=[
        Mistake(
            "You walk uphill: x + v dt. v points from data to noise and time runs down, so subtract.",
            old="xt - model",
            new="xt + model",
        ),
        Mistake(
            "Time runs from 0 to 1: the model is asked for the direction at the data end while xt is noise.",
            old="1 - i / steps",
            new="i / steps",
        ),
        Mistake(
            "Time runs from 0 to 1 and you add v: this walks from data to noise. Our noise is at t = 1.",
            code="""
            def euler_sample(model, noise, steps):
                if steps < 1:
                    raise ValueError("steps")
                x = noise
                for i in range(steps):
                    x = x + model(x, torch.full((len(x),), i / steps)) / steps
                return x
            """,
        ),
        Mistake(
            "The model is asked at the time where the step *ends*. Invisible with a hundred steps; with one it is "
            "asked at t = 0 about pure noise. Ask where the step begins.",
            old="1 - i / steps",
            new="1 - (i + 1) / steps",
        ),
        Mistake(
            "The model is asked in the middle of the step, but about the state at its beginning. Euler asks at the "
            "beginning.",
            old="1 - i / steps",
            new="1 - (i + 0.5) / steps",
        ),
        Mistake(
            "dt is missing: every step goes the whole way. Divide the velocity by `steps`.",
            old=" / steps\n    return",
            new="\n    return",
        ),
        Mistake(
            "The velocity is multiplied by t: x - t v is the guess of the data at the end of the line. A step is dt = "
            "1 / steps long, everywhere.",
            old="xt - model(xt, t) / steps",
            new="xt - model(xt, t) * (1 - i / steps)",
        ),
        Mistake(
            "The times are linspace(1, 0, steps): the last one is 0 and the steps between them are longer than dt. N "
            "steps have N + 1 ends; the model is asked at the first N of them.",
            old="1 - i / steps",
            new="1 - i / max(steps - 1, 1)",
        ),
        Mistake(
            "linspace(1, 0, steps) has only steps - 1 intervals, so you walk one step too few, and with steps = 1 not "
            "at all. N steps need N + 1 points.",
            code="""
            def euler_sample(model, noise, steps):
                if steps < 1:
                    raise ValueError("steps")
                x, grid = noise, torch.linspace(1, 0, steps)
                for t, s in zip(grid[:-1], grid[1:]):
                    x = x + (s - t) * model(x, t.expand(len(x)))
                return x
            """,
        ),
        Mistake(
            "The last step is missing, so the walk ends at t = dt.",
            old="range(steps)",
            new="range(steps - 1)",
        ),
        Mistake(
            "One step too many: the model is asked at t = 0 too.",
            old="range(steps)",
            new="range(steps + 1)",
        ),
        Mistake(
            "The first step is missing: you begin at 1 - dt.",
            old="range(steps)",
            new="range(1, steps)",
        ),
        Mistake(
            "The model is asked about `noise` at every step. Ask it about xt, where the walk stands now.",
            old="model(xt, t)",
            new="model(noise, t)",
        ),
        Mistake(
            "Every step starts from `noise` again, so only the last one counts.",
            old="xt = xt - model",
            new="xt = noise - model",
        ),
        Mistake(
            "The model is asked once only. The direction changes along the way: ask at every step.",
            code="""
            def euler_sample(model, noise, steps):
                if steps < 1:
                    raise ValueError("steps")
                v, x = model(noise, torch.ones(len(noise))), noise
                for i in range(steps):
                    x = x - v / steps
                return x
            """,
        ),
        Mistake(
            "Your list of times is too long for some numbers of steps: `arange` with a step like -1/49 does not know "
            "exactly where to stop, and asks once more at about 0. Count the steps with whole numbers.",
            code="""
            def euler_sample(model, noise, steps):
                if steps < 1:
                    raise ValueError("steps")
                x = noise
                for t in torch.arange(1, 0, -1 / steps):
                    x = x - model(x, t.expand(len(x))) / steps
                return x
            """,
        ),
        Mistake(
            "The model gets a plain number for t. It wants one per sample: torch.full((b,), t).",
            old=_TIME,
            new="t = 1 - i / steps",
        ),
        Mistake(
            "t has no axis. The model wants one time per sample: torch.full((b,), t).",
            old=_TIME,
            new="t = torch.tensor(1 - i / steps)",
        ),
        Mistake(
            "t has shape (1,). The model wants one time per sample: torch.full((b,), t).",
            old="(len(xt),)",
            new="(1,)",
        ),
        Mistake(
            "The model gets 1000 t. It wants t in [0, 1].",
            old="1 - i / steps",
            new="1000 * (1 - i / steps)",
        ),
        Mistake(
            "The model gets the number of the step. It wants a time from 1 down to dt.",
            old="1 - i / steps",
            new="float(steps - i)",
        ),
        Mistake(
            "You start from noise of your own. The same noise must give the same sample.",
            old="xt = noise",
            new="xt = torch.randn_like(noise)",
        ),
        Mistake(
            "This is Heun's method: two questions per step. A fine sampler, but Euler asks once.",
            code="""
            def euler_sample(model, noise, steps):
                if steps < 1:
                    raise ValueError("steps")
                x = noise
                for i in range(steps):
                    t, s = (torch.full((len(x),), 1 - (i + k) / steps) for k in (0, 1))
                    v = model(x, t)
                    x = x - (v + model(x - v / steps, s)) / 2 / steps
                return x
            """,
        ),
        Mistake(
            "The sample is clamped to [-1, 1]. Data need not stay there.",
            old="    return xt",
            new="    return xt.clamp(-1, 1)",
        ),
        Mistake(
            "`noise` is overwritten. The same noise could not be used a second time: no `-=` on an input.",
            code="""
            def euler_sample(model, noise, steps):
                if steps < 1:
                    raise ValueError("steps")
                x = noise
                for i in range(steps):
                    x -= model(x, torch.full((len(x),), 1 - i / steps)) / steps
                return x
            """,
        ),
        Mistake(
            "Only the first step runs: the return stands inside the loop.",
            old=" / steps\n    return xt",
            new=" / steps\n        return xt",
        ),
        Mistake(
            "One more thing: fewer than 1 step must be refused with a ValueError.",
            old="steps < 1",
            new="False",
        ),
        Mistake(
            "You refuse a single step, which is allowed. Only fewer than 1 are refused.",
            old="steps < 1",
            new="steps <= 1",
        ),
        Mistake(
            "Fresh noise is added at every step. Following a velocity is deterministic.",
            old=" / steps\n    return",
            new=" / steps + torch.randn_like(xt) / steps\n    return",
        ),
        Mistake(
            "The sample is float32 whatever the noise is. Like noise: keep its dtype.",
            old="    xt = noise\n",
            new="    xt = noise.float()\n",
        ),
        Mistake(
            "The sample is float64 for float32 noise. Like noise: keep its dtype.",
            old="    return xt",
            new="    return xt.double()",
        ),
        Mistake(
            "The first time is a bit below 1, to be safe. Sampling starts at t = 1 exactly.",
            old="1 - i / steps, dtype",
            new="min(1 - i / steps, 0.999), dtype",
        ),
        Mistake(
            "The last step is missing, or its time is lost to rounding: you stop at t = dt, with noise left. Count "
            "the steps.",
            old="for i in range(steps):",
            new="for i in range(steps - 1 if steps > 1 else 1):",
        ),
    ],
    variants=[
        Variant(
            "a grid",
            """
            @torch.no_grad()
            def euler_sample(model, noise, steps):
                if steps < 1:
                    raise ValueError(f"steps={steps}")
                grid = torch.linspace(1, 0, steps + 1)
                x = noise.clone()
                for t, s in zip(grid[:-1], grid[1:]):
                    x = x + (s - t) * model(x, t.expand(len(x)))
                return x
            """,
        ),
        Variant(
            "recursion",
            """
            def euler_sample(model, noise, steps):
                if steps <= 0:
                    raise ValueError(steps)

                def walk(x, left):
                    v = model(x, torch.ones(len(x)) * left / steps)
                    x = x - v * (1 / steps)
                    return x if left == 1 else walk(x, left - 1)

                return walk(noise, steps)
            """,
        ),
        Variant(
            "guesses of the data",
            """
            def euler_sample(model, noise, steps):
                if steps < 1:
                    raise ValueError(steps)
                x = noise
                for i in range(steps, 0, -1):
                    t, s = i / steps, (i - 1) / steps
                    x0 = x - t * model(x, torch.full((x.size(0),), t))
                    x = x0 + (x - x0) * (s / t)
                return x
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "A loop of `steps` rounds. In round i the walk stands at t = 1 - i / steps; ask the model there, move by "
            "dt.",
        ),
        Hint(
            "my samples explode",
            "dx = v dt, and dt is -1 / steps because time runs down. So x becomes x - v / steps.",
        ),
        Hint(
            "show me nearly everything",
            "Refuse steps < 1. xt = noise; for i in range(steps): t = torch.full((len(xt),), 1 - i / steps); xt = xt "
            "- "
            "model(xt, t) / steps; return xt after the loop.",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------------------------- v


def _table_with_ends() -> Tensor:
    return torch.cat([torch.ones(1), torch.linspace(0.95, 0.05, T - 2), torch.zeros(1)]).double()


def _with_ends(f, **inputs):
    return _with(_table_with_ends(), f, **inputs)


def _v_pair(g: torch.Generator, *shape: int, ends: bool = False) -> dict[str, Tensor]:
    t = torch.randint(1, T - 1, shape[:1], generator=g)
    if ends:
        t[0], t[-1] = 0, T - 1
    return dict(xt=randn(g, *shape), v=randn(g, *shape), t=t)


FROM_V = Exercise(
    target=from_v,
    minutes=8,
    cases=[
        Case("images", lambda g: _v_pair(g, 5, 3, 7, 11), call=_with_table),
        Case("as many samples as columns", lambda g: _v_pair(g, 7, 3, 5, 7), call=_with_table),
        Case("points in the plane", lambda g: _v_pair(g, 5, 2), call=_with_table),
        Case("numbers", lambda g: _v_pair(g, 5), call=_with_table),
        Case("video", lambda g: _v_pair(g, 3, 2, 5, 7, 11), call=_with_table),
        Case("one sample", lambda g: _v_pair(g, 1, 2, 3), call=_with_table),
        Case("pure data and pure noise among them", lambda g: _v_pair(g, 5, 3, 7, ends=True), call=_with_ends),
        Case("in float64", lambda g: _v_pair(g, 5, 3, 7), call=partial(_in_float64, from_v)),
    ],
    mistakes=[
        Mistake(
            "The sign of v is turned round: x0 = alpha x_t - sigma v, and eps = sigma x_t + alpha v.",
            old="alpha * xt - sigma * v, sigma * xt + alpha * v",
            new="alpha * xt + sigma * v, sigma * xt - alpha * v",
        ),
        Mistake(
            "x0 has the wrong sign in front of sigma v. Put x_t and v from the docstring into alpha x_t - sigma v: "
            "the "
            "noise cancels.",
            old="alpha * xt - sigma * v, sigma",
            new="alpha * xt + sigma * v, sigma",
        ),
        Mistake(
            "eps has the wrong sign in front of alpha v. Put x_t and v into sigma x_t + alpha v: the data cancel.",
            old="sigma * xt + alpha * v",
            new="sigma * xt - alpha * v",
        ),
        Mistake(
            "eps has the wrong sign in front of sigma x_t: it is sigma x_t + alpha v.",
            old="sigma * xt + alpha * v",
            new="alpha * v - sigma * xt",
        ),
        Mistake(
            "The two results stand in the wrong order: x0 first, then eps.",
            old="return alpha * xt - sigma * v, sigma * xt + alpha * v",
            new="return sigma * xt + alpha * v, alpha * xt - sigma * v",
        ),
        Mistake(
            "Only x0 comes back. Return the pair (x0, eps).",
            old=", sigma * xt + alpha * v",
            new="",
        ),
        Mistake(
            "alpha and sigma are swapped: alpha = sqrt(alpha_bar[t]) is the size of the data.",
            old="alpha, sigma = left.sqrt().to(xt.dtype), (1 - left).sqrt().to(xt.dtype)",
            new="sigma, alpha = left.sqrt().to(xt.dtype), (1 - left).sqrt().to(xt.dtype)",
        ),
        Mistake(
            "alpha and sigma lack their square roots.",
            old="alpha, sigma = left.sqrt().to(xt.dtype), (1 - left).sqrt().to(xt.dtype)",
            new="alpha, sigma = left.to(xt.dtype), (1 - left).to(xt.dtype)",
        ),
        Mistake(
            "sigma is 1 - alpha with you. It is sqrt(1 - alpha_bar): the squares add up to 1.",
            old="(1 - left).sqrt().to(xt.dtype)",
            new="(1 - left.sqrt()).to(xt.dtype)",
        ),
        Mistake(
            "You divide by sigma to get eps. Where there is no noise sigma is 0, and the result nan. eps = sigma x_t "
            "+ alpha v works everywhere.",
            old="return alpha * xt - sigma * v, sigma * xt + alpha * v",
            new="x0 = alpha * xt - sigma * v\n    return x0, (xt - alpha * x0) / sigma",
        ),
        Mistake(
            "You divide by sigma to get eps, and guard against 0. No nan any more, but where there is no noise eps "
            "comes out as 0, though v still knows it: eps = sigma x_t + alpha v.",
            old="return alpha * xt - sigma * v, sigma * xt + alpha * v",
            new="x0 = alpha * xt - sigma * v\n    return x0, (xt - alpha * x0) / sigma.clamp(min=1e-8)",
        ),
        Mistake(
            "You divide by alpha to get eps. Where there is only noise alpha is 0, and the result nan. eps = sigma "
            "x_t + alpha v works everywhere.",
            old="return alpha * xt - sigma * v, sigma * xt + alpha * v",
            new="x0 = alpha * xt - sigma * v\n    return x0, (v + sigma * x0) / alpha",
        ),
        Mistake(
            "You divide by alpha to get x0. Where there is only noise alpha is 0, and the result nan. x0 = alpha x_t "
            "- sigma v works everywhere.",
            old="return alpha * xt - sigma * v, sigma * xt + alpha * v",
            new="eps = sigma * xt + alpha * v\n    return (xt - sigma * eps) / alpha, eps",
        ),
        Mistake(
            "x_t itself has lost its factor alpha: x0 = alpha x_t - sigma v, and eps = sigma x_t + alpha v. (x_t - t "
            "v is flow matching's way back.)",
            old="alpha * xt - sigma * v, sigma",
            new="xt - sigma * v, sigma",
        ),
        Mistake(
            "alpha_bar is clamped away from 0 and 1, which changes the answer at both ends. Nothing needs to be "
            "guarded if nothing is divided.",
            old="    left = alpha_bar[t]",
            new="    left = alpha_bar.clamp(1e-4, 1 - 1e-4)[t]",
        ),
        Mistake(
            "You treat v as if it were the noise: that would be the way back from eps.",
            code="""
            def from_v(xt, v, t, alpha_bar):
                a = alpha_bar[t].view(-1, *[1] * (xt.ndim - 1)).to(xt.dtype)
                return (xt - (1 - a).sqrt() * v) / a.sqrt(), v
            """,
        ),
        Mistake(
            "You treat v as the velocity eps - x0 of flow matching. Here v = alpha eps - sigma x0.",
            code="""
            def from_v(xt, v, t, alpha_bar):
                a = alpha_bar[t].view(-1, *[1] * (xt.ndim - 1)).to(xt.dtype)
                alpha, sigma = a.sqrt(), (1 - a).sqrt()
                return (xt - sigma * v) / (alpha + sigma), (xt + alpha * v) / (alpha + sigma)
            """,
        ),
        Mistake(
            "The coefficients run along the columns, or nothing fits: `alpha_bar[t]` has shape (b,), which torch "
            "aligns with the *last* axis. Give it the shape (b, 1, ..., 1).",
            old=".view(-1, *[1] * (xt.ndim - 1))",
            new="",
        ),
        Mistake(
            "Right for pictures (b, c, h, w) only. The data may have any number of axes after b.",
            old="*[1] * (xt.ndim - 1)",
            new="1, 1, 1",
        ),
        Mistake(
            "Every sample gets the t of the first one.",
            old="alpha_bar[t]",
            new="alpha_bar[t[:1].expand(len(t))]",
        ),
        Mistake(
            "You read alpha_bar at t - 1. Our t counts from 0.",
            old="alpha_bar[t]",
            new="alpha_bar[t - 1]",
        ),
        Mistake(
            "The results are float64, because alpha_bar is. Convert the coefficients to xt.dtype.",
            old="left.sqrt().to(xt.dtype), (1 - left).sqrt().to(xt.dtype)",
            new="left.sqrt(), (1 - left).sqrt()",
        ),
        Mistake(
            "The second result is v itself. Return eps.",
            old="sigma * xt + alpha * v",
            new="v",
        ),
        Mistake(
            "The values are right, but no gradient gets through: leave out `no_grad` and `detach`.",
            code="""
            @torch.no_grad()
            def from_v(xt, v, t, alpha_bar):
                a = alpha_bar[t].view(-1, *[1] * (xt.ndim - 1)).to(xt.dtype)
                return a.sqrt() * xt - (1 - a).sqrt() * v, (1 - a).sqrt() * xt + a.sqrt() * v
            """,
        ),
        Mistake(
            "Coefficients in float32, because alpha_bar is converted too early: float64 data then keep half of their "
            "digits only. Convert to the dtype of the data, xt.dtype, not to float32.",
            code="""
            def from_v(xt, v, t, alpha_bar):
                left = alpha_bar[t].float().view(-1, *[1] * (xt.ndim - 1))
                alpha, sigma = left.sqrt(), (1 - left).sqrt()
                return alpha * xt - sigma * v, sigma * xt + alpha * v
            """,
        ),
        Mistake(
            "You divide by alpha or sigma and mend the ends with `torch.where`. The values are right, but the "
            "gradient of the "
            "branch not taken is 0 times infinity, NaN. There is a solution without any division.",
            code="""
            def from_v(xt, v, t, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (xt.ndim - 1))
                alpha, sigma = left.sqrt().to(xt.dtype), (1 - left).sqrt().to(xt.dtype)
                x0 = alpha * xt - sigma * v
                return x0, torch.where(sigma == 0, v, (xt - alpha * x0) / sigma)
            """,
        ),
        Mistake(
            "You divide by alpha or sigma and mend the ends with `torch.where`: right values, but a gradient of NaN, "
            "since the "
            "branch not taken is 0 times infinity. There is a solution without any division.",
            code="""
            def from_v(xt, v, t, alpha_bar):
                left = alpha_bar[t].view(-1, *[1] * (xt.ndim - 1))
                alpha, sigma = left.sqrt().to(xt.dtype), (1 - left).sqrt().to(xt.dtype)
                x0 = alpha * xt - sigma * v
                return x0, torch.where(alpha == 0, xt, (v + sigma * x0) / alpha)
            """,
        ),
    ],
    variants=[
        Variant(
            "an angle",
            """
            def from_v(xt, v, t, alpha_bar):
                angle = torch.acos(alpha_bar[t].sqrt()).reshape([len(xt)] + [1] * (xt.dim() - 1))
                cos, sin = angle.cos().to(xt.dtype), angle.sin().to(xt.dtype)
                return cos * xt - sin * v, sin * xt + cos * v
            """,
        ),
        Variant(
            "a rotation matrix for each sample",
            """
            def from_v(xt, v, t, alpha_bar):
                a, s = alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()
                turn = torch.stack([torch.stack([a, -s], -1), torch.stack([s, a], -1)], -2).to(xt.dtype)
                both = torch.einsum("bij,bj...->bi...", turn, torch.stack([xt, v], dim=1))
                return both[:, 0], both[:, 1]
            """,
        ),
        Variant(
            "one sample at a time",
            """
            def from_v(xt, v, t, alpha_bar):
                x0, eps = [], []
                for x, u, i in zip(xt, v, t.tolist()):
                    left = alpha_bar[i].item()
                    x0.append(left**0.5 * x - (1 - left) ** 0.5 * u)
                    eps.append((1 - left) ** 0.5 * x + left**0.5 * u)
                return torch.stack(x0), torch.stack(eps)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Multiply the first equation by alpha, the second by sigma, and subtract: eps cancels, and alpha^2 + "
            "sigma^2 = 1 does the rest.",
        ),
        Hint(
            "I get nan",
            "You divide by alpha or sigma somewhere, and one of them is 0 at each end. Solve so that nothing is "
            "divided.",
        ),
        Hint(
            "show me nearly everything",
            "alpha = sqrt(alpha_bar[t]), sigma = sqrt(1 - alpha_bar[t]), both as (b, 1, ..., 1) in xt.dtype; return "
            "alpha xt - sigma v, sigma xt + alpha v.",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------------------- guidance


def _labels(g: torch.Generator, n: int, classes: int = 5) -> Tensor:
    return torch.randint(classes, (n,), generator=g)


def _while_training(module, labels: Tensor) -> Tensor:
    return module.train()(labels)


def _drop_set_later(module, labels: Tensor) -> Tensor:
    """drop is 0 at first, and then 1."""
    module.drop = 1.0
    return module.train()(labels)


def _share_dropped(cls, drop: float, n: int = 4000, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    module = cls(classes=5, dim=3, drop=drop).train()
    rows = module(torch.arange(n) % 5).detach()
    null = module(torch.full((1,), 5)).detach()
    return (rows == null).all(1)


def _share_is_right(cls) -> bool:
    """In one large batch, and in many small ones."""
    large = {p: _share_dropped(cls, p).float().mean().item() for p in (0.2, 0.7)}
    small = {p: sum(_share_dropped(cls, p, 10, seed).float().mean().item() for seed in range(200)) / 200 for p in large}
    return all(abs(share - p) < 0.05 for shares in (large, small) for p, share in shares.items())


def _independent(cls) -> bool:
    dropped = _share_dropped(cls, 0.5, n=1000).float()
    return all(0.3 < part.mean().item() < 0.7 for part in dropped.chunk(2))


def _coins_apart(cls) -> bool:
    """400 small batches: does the chance of a label depend on that of another?"""
    torch.manual_seed(1)
    module = cls(classes=5, dim=3, drop=0.5).train()
    null = module(torch.full((1,), 5)).detach()
    return _apart(torch.stack([(module(torch.arange(4)) == null).all(1) for _ in range(400)]))


def _anew_each_time(cls) -> bool:
    module = cls(classes=5, dim=3, drop=0.5).train()
    labels = torch.arange(500) % 5
    return not torch.equal(module(labels), module(labels))


def _number_varies(cls) -> bool:
    return len({int(_share_dropped(cls, 0.5, 10, seed).sum()) for seed in range(30)}) > 2


LABEL_EMBEDDING = Exercise(
    target=LabelEmbedding,
    minutes=8,
    given=("__init__",),
    cases=[
        Case(
            "never dropped in evaluation", lambda g: dict(labels=_labels(g, 7)), init=dict(classes=5, dim=3, drop=1.0)
        ),
        Case("all at once", lambda g: dict(labels=torch.arange(6)), init=dict(classes=5, dim=3, drop=0.5)),
        Case(
            "some labels are null already",
            lambda g: dict(labels=torch.tensor([5, 0, 5, 4, 2])),
            init=dict(classes=5, dim=3, drop=1.0),
        ),
        Case(
            "training, all are dropped",
            lambda g: dict(labels=_labels(g, 7)),
            init=dict(classes=5, dim=3, drop=1.0),
            call=_while_training,
        ),
        Case(
            "training, none is dropped",
            lambda g: dict(labels=_labels(g, 11)),
            init=dict(classes=5, dim=3, drop=0.0),
            call=_while_training,
        ),
        Case(
            "self.drop is set after the start",
            lambda g: dict(labels=_labels(g, 7)),
            init=dict(classes=5, dim=3, drop=0.0),
            call=_drop_set_later,
        ),
    ],
    properties=[
        Property(
            "In training each label is dropped with probability `drop`, independently: of many labels that share is "
            "dropped.",
            _share_is_right,
        ),
        Property("The labels of a batch are dropped one by one, not all together.", _independent),
        Property("Each call draws anew which labels are dropped.", _anew_each_time),
        Property("Whether a label is dropped does not depend on the labels beside it.", _coins_apart),
        Property(
            "How many labels of a batch are dropped varies from call to call: each has its own chance.", _number_varies
        ),
    ],
    mistakes=[
        Mistake(
            "Labels are dropped in evaluation mode too. Then a sampler asks for a 3 and sometimes gets anything: ask "
            "`self.training`.",
            old="if self.training:",
            new="if True:",
        ),
        Mistake(
            "No label is ever dropped, so the null label is never trained, and guidance has nothing to compare with.",
            old="if self.training:",
            new="if False:",
        ),
        Mistake(
            "It is the wrong way round: labels are dropped in evaluation and kept in training.",
            old="if self.training:",
            new="if not self.training:",
        ),
        Mistake(
            "One coin is tossed for the whole batch. Toss one for each label.",
            old="torch.rand(labels.shape, device=labels.device) < self.drop",
            new="torch.rand(1).expand(labels.shape) < self.drop",
        ),
        Mistake(
            "`drop` is the probability of being *kept* with you.",
            old="< self.drop",
            new="> self.drop",
        ),
        Mistake(
            "Labels are dropped with probability 0.1, whatever `drop` says.",
            old="< self.drop",
            new="< 0.1",
        ),
        Mistake(
            "The coin is normal, not uniform: `randn` is negative half of the time. Use `rand`.",
            old="torch.rand(labels",
            new="torch.randn(labels",
        ),
        Mistake(
            "A dropped label becomes 0, which is a class of its own. The label that says nothing is `self.null`.",
            old="labels.masked_fill(dropped, self.null)",
            new="labels.masked_fill(dropped, 0)",
        ),
        Mistake(
            "A dropped label becomes another one at random. It must become the label that says nothing, `self.null`; "
            "a wrong label teaches something wrong.",
            old="labels.masked_fill(dropped, self.null)",
            new="torch.where(dropped, torch.randint_like(labels, self.null + 1), labels)",
        ),
        Mistake(
            "A dropped label becomes the last class. The null label is one further: `self.null` = classes.",
            old="labels.masked_fill(dropped, self.null)",
            new="labels.masked_fill(dropped, self.null - 1)",
        ),
        Mistake(
            "A dropped label becomes a vector of zeros (a mask, or dropout). Replace the *label*: `self.null` has a "
            "row of its own in the table, which is trained.",
            old="            labels = labels.masked_fill(dropped, self.null)\n        return self.table(labels)",
            new="            return self.table(labels) * (~dropped)[:, None]\n        return self.table(labels)",
        ),
        Mistake(
            "The caller's labels are overwritten: whoever looks at them afterwards finds null labels. Make new ones "
            "(`masked_fill` without the underscore, `torch.where`).",
            code="""
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)

                def forward(self, labels):
                    if self.training:
                        labels[torch.rand(labels.shape) < self.drop] = self.null
                    return self.table(labels)
            """,
        ),
        Mistake(
            "A fixed share of the batch is dropped, always the first ones. Each label has its own chance.",
            old="torch.rand(labels.shape, device=labels.device) < self.drop",
            new="torch.arange(len(labels)) < self.drop * len(labels)",
        ),
        Mistake(
            "Always the same number of labels is dropped, in random places. Each label has its own chance, "
            "independently of the others; in a batch of one the number would be 0 for ever.",
            old="torch.rand(labels.shape, device=labels.device) < self.drop",
            new="torch.rand(labels.shape).argsort() < round(self.drop * len(labels))",
        ),
        Mistake(
            "The same places are dropped at every call, because you seed inside.",
            old="            dropped =",
            new="            torch.manual_seed(0)\n            dropped =",
        ),
        Mistake(
            "Dropped labels vanish from the batch. They stay, as `self.null`: the result has b rows.",
            old="labels.masked_fill(dropped, self.null)",
            new="labels[~dropped]",
        ),
        Mistake(
            "The chance to drop is kept under another name when the module is made. It is `self.drop`, which may be "
            "set "
            "later.",
            code="""
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)
                    self.chance = drop

                def forward(self, labels):
                    if self.training:
                        labels = labels.masked_fill(torch.rand(labels.shape) < self.chance, self.null)
                    return self.table(labels)
            """,
        ),
        Mistake(
            "Some labels share a coin (neighbours, or both halves of the batch) and are dropped together. Draw one "
            "number for each.",
            old="torch.rand(labels.shape, device=labels.device) < self.drop",
            new="(torch.rand(len(labels) // 2 + 1) < self.drop).repeat_interleave(2)[: len(labels)]",
        ),
        Mistake(
            "A label that is null already is changed to the last class (clamped). `self.null` is a label like the "
            "others.",
            code="""
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)

                def forward(self, labels):
                    labels = labels.clamp(max=self.null - 1)
                    if self.training:
                        labels = labels.masked_fill(torch.rand(labels.shape) < self.drop, self.null)
                    return self.table(labels)
            """,
        ),
        Mistake(
            "`labels + dropped * null` is not null, except for label 0. Replace the label: masked_fill or where.",
            code="""
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)

                def forward(self, labels):
                    if self.training:
                        labels = labels + (torch.rand(labels.shape) < self.drop) * self.null
                    return self.table(labels % (self.null + 1))
            """,
        ),
        Mistake(
            "The labels that stay are divided by 1 - drop, as dropout does. Here nothing is scaled: a label is "
            "replaced, not "
            "thinned.",
            code="""
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)

                def forward(self, labels):
                    rows = self.table(labels)
                    if self.training:
                        dropped = (torch.rand(labels.shape) < self.drop)[:, None]
                        rows = torch.where(dropped, self.table.weight[self.null], rows / (1 - self.drop))
                    return rows
            """,
        ),
        Mistake(
            "Single numbers of a vector are dropped. Draw one number per *label*, and replace its whole vector.",
            code="""
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)

                def forward(self, labels):
                    rows = self.table(labels)
                    if self.training:
                        dropped = torch.rand(rows.shape) < self.drop
                        rows = torch.where(dropped, self.table.weight[self.null], rows)
                    return rows
            """,
        ),
        Mistake(
            '"No label" has a vector of its own beside the table. It is the table\'s last row, `self.null`.',
            code="""
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)
                    self.nothing = nn.Parameter(torch.zeros(dim))

                def forward(self, labels):
                    rows = self.table(labels)
                    if self.training:
                        rows = torch.where((torch.rand(labels.shape) < self.drop)[:, None], self.nothing, rows)
                    return rows
            """,
        ),
    ],
    variants=[
        Variant(
            "where",
            """
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)

                def forward(self, labels):
                    chance = self.drop if self.training else 0.0
                    coins = torch.bernoulli(torch.full(labels.shape, chance)).bool()
                    return self.table(torch.where(coins, torch.full_like(labels, self.null), labels))
            """,
        ),
        Variant(
            "a copy",
            """
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)

                def forward(self, labels):
                    if not self.training:
                        return F.embedding(labels, self.table.weight)
                    own = labels.clone()
                    for i in range(len(own)):
                        if torch.rand(()).item() < self.drop:
                            own[i] = self.null
                    return self.table.weight[own]
            """,
        ),
        Variant(
            "rows",
            """
            class LabelEmbedding(nn.Module):
                def __init__(self, classes, dim, drop=0.1):
                    super().__init__()
                    self.null, self.drop = classes, drop
                    self.table = nn.Embedding(classes + 1, dim)

                def forward(self, labels):
                    rows = self.table(labels)
                    if self.training and self.drop > 0:
                        keep = torch.rand(len(labels)) >= self.drop
                        rows = torch.where(keep[:, None], rows, self.table.weight[self.null])
                    return rows
            """,
        ),
    ],
    hints=[
        Hint(
            "how do I toss a coin per label",
            "`torch.rand(labels.shape) < self.drop` is True with probability `drop`, for each label by itself.",
        ),
        Hint(
            "my check says that labels were overwritten",
            "`labels[mask] = ...` and `masked_fill_` write into the caller's tensor. `labels.masked_fill(mask, "
            "self.null)` makes a new one.",
        ),
        Hint(
            "show me nearly everything",
            "if self.training: dropped = torch.rand(labels.shape) < self.drop; labels = labels.masked_fill(dropped, "
            "self.null). Then return self.table(labels).",
        ),
    ],
)


class _Labelled:
    """A model whose answer depends on everything that it is given, and differently on each; it counts its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, xt: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        if not len(xt) == len(t) == len(labels):
            sizes = f"{len(xt)}, {len(t)} and {len(labels)}"
            raise TypeError(f"the model wants as many xt as t and labels; it was given {sizes} of them")
        if labels.is_floating_point() or tuple(labels.shape) != (len(xt),) or tuple(t.shape) != (len(xt),):
            raise TypeError("the model wants t (b,) and labels (b,) in int64, in this order: model(xt, t, labels)")
        self.batches.append(f"{len(xt)} samples, t in {t.dtype}")
        label, time = _wide(labels, xt), _wide(t, xt)
        return torch.tanh(xt * (1 + 0.3 * label)) + 0.1 * label**2 + torch.sin(0.7 * time) * (1 + xt * label)

    def __repr__(self) -> str:
        return "a model"


def _guided_protocol(f, **inputs) -> dict:
    model = _Labelled()
    result = f(model=model, **inputs)
    return {"calls of the model": " and ".join(model.batches), "the prediction": result}


def _guided_double(f, **inputs) -> dict:
    return _guided_protocol(f, **inputs | dict(xt=inputs["xt"].double()))


def _guided(g: torch.Generator, w: float, *shape: int, null: int = 5) -> dict:
    b = shape[0]
    return dict(
        xt=randn(g, *shape), t=torch.rand(b, generator=g) * 3, labels=_labels(g, b).clamp(min=1), null=null, w=w
    )


_CALL = "both = model(torch.cat([xt, xt]), torch.cat([t, t]), torch.cat([labels, nothing]))"

GUIDED_PREDICTION = Exercise(
    target=guided_prediction,
    minutes=10,
    cases=[
        Case("images, w = 3", lambda g: _guided(g, 3.0, 5, 3, 7, 11), call=_guided_protocol),
        Case("w = 1 is the label alone", lambda g: _guided(g, 1.0, 5, 3, 7), call=_guided_protocol),
        Case("w = 0 is no label at all", lambda g: _guided(g, 0.0, 5, 3, 7), call=_guided_protocol),
        Case("w = 7.5, points in the plane", lambda g: _guided(g, 7.5, 7, 2, null=9), call=_guided_protocol),
        Case("numbers", lambda g: _guided(g, 2.0, 5), call=_guided_protocol),
        Case("one sample", lambda g: _guided(g, 2.0, 1, 3), call=_guided_protocol),
        Case("xt in float64", lambda g: _guided(g, 2.0, 5, 3), call=_guided_double),
        Case(
            "integer times, null is 0",
            lambda g: _guided(g, 2.0, 3, 5, null=0) | dict(t=torch.tensor([0, 4, 9])),
            call=_guided_protocol,
        ),
    ],
    mistakes=[
        Mistake(
            "Your w is the paper's, which counts from 0: cond + w (cond - uncond), or (1 + w) cond - w uncond. Ours "
            "is one more: w = 1 is off, w = 0 is uncond.",
            old="return guide(cond, uncond, w)",
            new="return cond + w * (cond - uncond)",
        ),
        Mistake(
            "Guidance points away from the label: cond and uncond are swapped, in the formula or after the call "
            "(`chunk` gives back the halves in the order of your `cat`). It is uncond + w (cond - uncond).",
            old="return guide(cond, uncond, w)",
            new="return cond + w * (uncond - cond)",
        ),
        Mistake(
            "The difference has the wrong sign: uncond + w (cond - uncond).",
            old="return guide(cond, uncond, w)",
            new="return uncond + w * (uncond - cond)",
        ),
        Mistake(
            "uncond + w cond: the difference is missing.",
            old="return guide(cond, uncond, w)",
            new="return uncond + w * cond",
        ),
        Mistake(
            "You return w (cond - uncond), the difference alone. It is added to uncond.",
            old="return guide(cond, uncond, w)",
            new="return w * (cond - uncond)",
        ),
        Mistake(
            "w cond - uncond: it is w cond + (1 - w) uncond, whose weights sum to 1.",
            old="return guide(cond, uncond, w)",
            new="return w * cond - uncond",
        ),
        Mistake(
            "What comes back is the prediction with the label, whatever w is: either w is not used, or both halves "
            "have the labels and the second lacks its `null`.",
            old="return guide(cond, uncond, w)",
            new="return cond",
        ),
        Mistake(
            "Both halves are returned. Only the b guided predictions are asked for.",
            old="return guide(cond, uncond, w)",
            new="return torch.cat([guide(cond, uncond, w), uncond])",
        ),
        Mistake(
            "The model is called twice. Right, but slower on a GPU than one call with both halves in the batch: "
            "`torch.cat`.",
            old=_CALL,
            new="both = torch.cat([model(xt, t, labels), model(xt, t, nothing)])",
        ),
        Mistake(
            "Both halves have the null label; the first keeps its labels.",
            old="torch.cat([labels, nothing])",
            new="torch.cat([nothing, nothing])",
        ),
        Mistake(
            "The second half has label 0, which is a class. The label that says nothing is `null`.",
            old="torch.full_like(labels, null)",
            new="torch.zeros_like(labels)",
        ),
        Mistake(
            "Only the first sample of the second half has the null label.",
            old="nothing = torch.full_like(labels, null)",
            new="nothing = labels.clone()\n    nothing[0] = null",
        ),
        Mistake(
            "xt is doubled in another order than the labels: `repeat_interleave` gives 0, 0, 1, 1, ..., `cat` gives "
            "0, 1, ..., 0, 1, ...",
            old="torch.cat([xt, xt])",
            new="xt.repeat_interleave(2, dim=0)",
        ),
        Mistake(
            "t is doubled in another order than xt: `repeat_interleave` gives 0, 0, 1, 1, ..., `cat` gives 0, 1, ..., "
            "0, 1, ...",
            old="torch.cat([t, t])",
            new="t.repeat_interleave(2)",
        ),
        Mistake(
            "Integer times reach the model as floats. Hand t on as it came.",
            old="torch.cat([t, t])",
            new="torch.cat([t, t]).float()",
        ),
        Mistake(
            "Every sample gets the time of the first one. Each has its own.",
            old="torch.cat([t, t])",
            new="t[:1].expand(2 * len(t))",
        ),
        Mistake(
            "The second half sees other data than the first. Both ask about the same xt; only the labels differ.",
            old="torch.cat([xt, xt])",
            new="torch.cat([xt, torch.zeros_like(xt)])",
        ),
        Mistake(
            "t is not doubled: the batch has 2b samples and b times.",
            old="torch.cat([t, t])",
            new="t",
        ),
        Mistake(
            "The batch is doubled along another axis: `torch.cat(..., dim=1)` makes wider samples, not more of them.",
            old="torch.cat([xt, xt])",
            new="torch.cat([xt, xt], dim=-1)",
        ),
        Mistake(
            "After the call you take every other sample. The halves lie one behind the other: `chunk(2)`.",
            old="cond, uncond = both.chunk(2)",
            new="cond, uncond = both[0::2], both[1::2]",
        ),
        Mistake(
            "For w = 1 you call with b samples only. It would save time, but the contract asks for one call of 2b, "
            "always.",
            old="    nothing = torch",
            new="    if w == 1:\n        return model(xt, t, labels)\n    nothing = torch",
        ),
        Mistake(
            "Negative or large results are cut off: nothing is clamped here.",
            old="return guide(cond, uncond, w)",
            new="return guide(cond, uncond, w).clamp(-1, 1)",
        ),
        Mistake(
            "The caller's labels are overwritten with null. Make new ones: torch.full_like(labels, null).",
            old="nothing = torch.full_like(labels, null)",
            new="kept = labels.clone()\n    nothing = labels.fill_(null)\n    labels = kept",
        ),
        Mistake(
            "The values are right, but no gradient reaches xt through the second half: something is detached.",
            old="return guide(cond, uncond, w)",
            new="return guide(cond, uncond.detach(), w)",
        ),
        Mistake(
            "The values are right, but no gradient gets through: leave out `no_grad`.",
            old="def guided_prediction(",
            new="@torch.no_grad()\ndef guided_prediction(",
        ),
        Mistake(
            "The result is float32 whatever xt is. Like xt: keep its dtype.",
            old="return guide(cond, uncond, w)",
            new="return guide(cond, uncond, w).float()",
        ),
        Mistake(
            "The result is float64 for a float32 xt. Like xt: keep its dtype.",
            old="return guide(cond, uncond, w)",
            new="return guide(cond, uncond, w).double()",
        ),
        Mistake(
            "The labels alternate, with and without, but xt stands twice in a row: each half gets a mixture of both. "
            "Use the "
            "same order everywhere: torch.cat.",
            old="torch.cat([labels, nothing])",
            new="torch.stack([labels, nothing], dim=1).flatten()",
        ),
        Mistake(
            "You cut along the last axis. Both halves lie along the *batch*: chunk(2), axis 0.",
            old="both.chunk(2)",
            new="both.chunk(2, dim=-1)",
        ),
        Mistake(
            "The guided result is rescaled, to the size of cond or by a mean. The contract has no such step.",
            old="return guide(cond, uncond, w)",
            new="return guide(cond, uncond, w) * (cond.std() / guide(cond, uncond, w).std())",
        ),
        Mistake(
            "Both halves come back. Put them together: the result is like xt.",
            old="return guide(cond, uncond, w)",
            new="return torch.cat([guide(cond, uncond, w)] * 2)",
        ),
    ],
    variants=[
        Variant(
            "null first",
            """
            def guided_prediction(model, xt, t, labels, null, w):
                y = torch.cat((torch.full((len(labels),), null), labels))
                out = model(xt.repeat([2] + [1] * (xt.dim() - 1)), t.repeat(2), y)
                without, with_label = out[: len(xt)], out[len(xt) :]
                return torch.lerp(without, with_label, float(w))
            """,
        ),
        Variant(
            "interleaved",
            """
            def guided_prediction(model, xt, t, labels, null, w):
                y = torch.stack([labels, torch.ones_like(labels) * null], dim=1).flatten()
                out = model(xt.repeat_interleave(2, 0), t.repeat_interleave(2), y)
                return w * out[::2] + (1 - w) * out[1::2]
            """,
        ),
        Variant(
            "a new axis",
            """
            def guided_prediction(model, xt, t, labels, null, w):
                double = lambda a, b: torch.stack([a, b]).flatten(0, 1)
                out = model(double(xt, xt), double(t, t), double(labels, labels * 0 + null))
                cond, uncond = out.unflatten(0, (2, len(xt)))
                return uncond + w * cond - w * uncond
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Double all three inputs with `torch.cat`, but with `null` in the second half of the labels; call; "
            "`chunk(2)`.",
        ),
        Hint(
            "w = 1 should change nothing, but does",
            "uncond + 1 (cond - uncond) is cond. If yours is more, you count w as the paper does, from 0.",
        ),
        Hint(
            "show me nearly everything",
            "nothing = torch.full_like(labels, null); both = model(cat([xt, xt]), cat([t, t]), cat([labels, "
            "nothing])); cond, uncond = both.chunk(2); return uncond + w * (cond - uncond).",
        ),
    ],
)


EXERCISES = [
    LINEAR_SCHEDULE,
    Q_SAMPLE,
    DDPM_LOSS,
    DDIM_STEP,
    DDIM_SAMPLE,
    DDPM_STEP,
    FLOW_LOSS,
    EULER_SAMPLE,
    FROM_V,
    LABEL_EMBEDDING,
    GUIDED_PREDICTION,
]
