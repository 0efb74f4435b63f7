"""The exercises of lesson 19, Sora: frames that are known, in the loss and while sampling."""

import torch
from torch import Tensor

from course_lib.diffusion.known_frames import known_loss, sample_known
from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn


class _Asked:
    """A model of the cases: strict about what it is asked, and it remembers.

    Its velocity depends on the latents and on every frame's time, and is not zero on known frames.
    """

    def __init__(self, weight: Tensor | None = None):
        self.weight = torch.tensor([0.4, 0.3, -0.5]) if weight is None else weight
        self.latents: list[list[Tensor]] = []
        self.times: list[list[Tensor]] = []

    def __call__(self, latents: list[Tensor], times: list[Tensor]) -> list[Tensor]:
        for name, value, shape in (("latents", latents, "(z, f, h, w)"), ("times", times, "(f,)")):
            if not isinstance(value, list | tuple):
                raise TypeError(
                    f"the model was given {_said(value)} as {name}; it wants a list with one {shape} per clip"
                )
        if len(latents) != len(times):
            raise TypeError(f"the model was given {len(latents)} latents, but {len(times)} times")
        for x, t in zip(latents, times, strict=True):
            if not isinstance(x, Tensor) or x.dim() != 4:
                raise TypeError(f"among the latents the model was given {_said(x)}; it wants (z, f, h, w)")
            if not isinstance(t, Tensor) or t.shape != (x.shape[1],) or not t.is_floating_point():
                raise TypeError(f"among the times the model was given {_said(t)}; it wants one float per frame, (f,)")
        self.latents.append([x.detach().clone() for x in latents])
        self.times.append([t.detach().float() for t in times])
        a, b, c = self.weight
        return [
            a * x + b * torch.sin(3 * x) + c * (1 + t.to(x).view(1, -1, 1, 1)).square()
            for x, t in zip(latents, times, strict=True)
        ]


def _said(value) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} in {value.dtype}"
    return f"a plain {type(value).__name__}"


def _lists(parts: dict, *names: str) -> list[list[Tensor] | None]:
    """``noise_0, noise_1, ...`` as a list, for each of the names; None where there is none of that name.

    They share memory with the inputs of the case, so that the engine sees who overwrites them.
    """
    found = [[v.detach() for key, v in sorted(parts.items()) if key.rpartition("_")[0] == name] for name in names]
    return [f or None for f in found]


# --------------------------------------------------------------------------------------------------------- the loss


def _clips(*clips: tuple[str, int, int], z: int = 2, t: tuple[float, ...] = ()):
    """``("KUU", h, w)`` per clip: a letter for each frame, K where it is known; ``t`` is drawn where not given."""

    def inputs(g: torch.Generator) -> dict:
        made = {}
        for i, (frames, h, w) in enumerate(clips):
            made |= {f"{n}_{i}": randn(g, z, len(frames), h, w) for n in ("latents", "eps")}
            made[f"known_{i}"] = torch.tensor([letter == "K" for letter in frames])
        drawn = torch.rand(len(clips), generator=g)
        return made | dict(t=torch.tensor(t) if t else drawn, weight=0.5 * randn(g, 3))

    return inputs


def _row(calls: list[list[Tensor]]) -> Tensor:
    """Everything that a model was given, one after the other: what it was asked for is one thing to read."""
    return torch.cat([x.flatten() for call in calls for x in call] or [torch.zeros(0)])


def _loss_report(f, t: Tensor, weight: Tensor, **parts: Tensor) -> dict:
    """What the model was asked, and the loss; only the model's weight asks for a gradient."""
    model = _Asked(weight)
    latents, eps, known = _lists(parts, "latents", "eps", "known")
    loss = f(model=model, latents=latents, known=known, t=t.detach(), eps=eps)
    return {
        "how often the model was called": len(model.times),
        "the times that it was told, all clips in a row": _row(model.times),
        "the latents that it was given, all clips in a row": _row(model.latents),
        "the loss": loss,
    }


def _double_loss(f, t: Tensor, weight: Tensor, **parts: Tensor) -> dict:
    """The same in double precision, read in single: nothing on the way may insist on float32."""
    parts = {n: v.double() if v.is_floating_point() else v for n, v in parts.items()}
    report = _loss_report(f, t.double(), weight.double(), **parts)
    given = "the latents that it was given, all clips in a row"
    loss = report["the loss"]
    return report | {
        given: report[given].float(),
        "dtype of the loss for float64 latents": str(getattr(loss, "dtype", type(loss))),
        "the loss": loss.float() if isinstance(loss, Tensor) else loss,
    }


def _case(label: str, inputs, call=_loss_report) -> Case:
    return Case(label, inputs, call=call)


def _fixed_loss(f, known: list[Tensor], scale_known: float) -> float:
    g = torch.Generator().manual_seed(4)
    x, eps = ([torch.randn(2, len(k), 3, 2, generator=g) for k in known] for _ in range(2))

    def model(noisy, times):
        guess = [e - c for e, c in zip(eps, x, strict=True)]
        return [torch.where(k.view(-1, 1, 1), scale_known, v) for k, v in zip(known, guess, strict=True)]

    return float(f(model=model, latents=x, known=known, t=torch.tensor([0.3, 0.8]), eps=eps))


def _nonsense_is_free(f) -> bool:
    known = [torch.tensor([True, False, False, True]), torch.tensor([False, True])]
    return abs(_fixed_loss(f, known, 100.0)) < 1e-6


_TIMES = "times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t, strict=True)]"
_NOISY = "noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times, strict=True)]"
_ERROR = "(v - (e - x))[:, ~k].square().mean()"
_MEAN = "torch.stack(errors).mean()"
_MODEL = "model(noisy, times)"


def _times(new: str, sentence: str) -> Mistake:
    """Both the mixture and the model use these times."""
    return Mistake(sentence, old=_TIMES, new=new)


def _told(new: str, sentence: str) -> Mistake:
    """Only the model's times, or what it sees, are wrong."""
    return Mistake(sentence, old=_MODEL, new=new)


def _noisy(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_NOISY, new=new)


def _error(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_ERROR, new=new)


def _averaged(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_MEAN, new=new)


KNOWN_LOSS = Exercise(
    target=known_loss,
    minutes=20,
    cases=[
        _case("two clips and a picture", _clips(("KUUK", 3, 5), ("U", 5, 3), ("UKK", 2, 7))),
        _case("nothing is known", _clips(("UUU", 5, 7), ("UUUUU", 3, 4))),
        _case("one clip, its first frames known", _clips(("KKUUU", 3, 7))),
        _case("as many channels as frames, one clip", _clips(("UKKU", 3, 5), z=4)),
        _case("as many rows and columns as frames", _clips(("KUU", 3, 3), ("UUK", 3, 3))),
        _case("as many clips as frames", _clips(("KUU", 2, 5), ("UKU", 5, 4), ("UUU", 4, 2))),
        _case("channels, clips, frames, rows and columns are all 2", _clips(("KU", 2, 2), ("UK", 2, 2))),
        _case("a long clip and a picture", _clips(("UUKUUUUU", 4, 6), ("U", 2, 1))),
        _case("t is 0, 1 and 0.02", _clips(("UKU", 3, 5), ("KU", 5, 3), ("UU", 2, 4), t=(0.0, 1.0, 0.02))),
        _case("in double precision", _clips(("KUUK", 3, 5), ("UK", 5, 3)), call=_double_loss),
    ],
    properties=[
        Property("Whatever the model answers on known frames, the loss must not change.", _nonsense_is_free),
    ],
    mistakes=[
        _noisy(
            "noisy = [mix(x, e, ti.expand(len(k))) for x, e, k, ti in zip(latents, eps, known, t, strict=True)]",
            "Known frames are noised, and the model is told that they are clean. They enter as they are: mix with each "
            "frame's own time, which is 0 there.",
        ),
        _told(
            "model(noisy, [ti.expand(len(k)) for k, ti in zip(known, t)])",
            "Known frames are clean, but the model is told the clip's t for them. Clean frames must announce t = 0, or "
            "it takes them for noise.",
        ),
        _times(
            "times = [ti.expand(len(k)) for k, ti in zip(known, t, strict=True)]",
            "All frames of a clip share its t, so known ones are noised and told so. Only the loss looks at `known`: "
            "this network never sees a clean frame beside a noisy one.",
        ),
        _times(
            "times = [torch.where(k, ti, 0.0) for k, ti in zip(known, t, strict=True)]",
            "It is the wrong way round: known frames have the clip's t, the unknown ones enter clean.",
        ),
        _times(
            "times = [torch.where(k, 1.0, ti) for k, ti in zip(known, t, strict=True)]",
            "Known frames have t = 1, which is pure noise here. In this course data is at t = 0.",
        ),
        _told(
            "model(noisy, [torch.where(k, 1.0, ti) for k, ti in zip(known, t)])",
            "Known frames enter clean, but the model is told t = 1 for them: you called clean frames pure noise.",
        ),
        _told(
            "model(noisy, [1000 * ts for ts in times])",
            "The model is told 1000 t. It wants t between 0 and 1.",
        ),
        _told(
            "model(noisy, [1 - ts for ts in times])",
            "The model is told 1 - t, while the mixture has t. Clean is 0 in both.",
        ),
        _told(
            "model(noisy, t)",
            "The model is told one time per clip, t as it is. It wants one per frame, a list of (f,).",
        ),
        _told(
            "model(noisy, list(t))",
            "The model is told a single number for each clip. It wants one time per frame, (f,).",
        ),
        _told(
            "model(noisy, [ts.view(1, -1, 1, 1) for ts in times])",
            "The model's times have extra axes. It wants (f,) per clip; only the mixture needs the axes.",
        ),
        _told(
            "[model([x], [ts])[0] for x, ts in zip(noisy, times)]",
            "The model is called clip by clip. It is made for all clips at once, packed: call it once with the lists.",
        ),
        _told("model(latents, times)", "The model sees the clean latents. It must see the mixture."),
        _told("[v.detach() for v in model(noisy, times)]", "No gradient reaches the model: something detaches it."),
        _told(
            "model(torch.stack(noisy), torch.stack(times))",
            "Clips of unequal sizes cannot be stacked. The model takes a list with one tensor per clip.",
        ),
        _noisy(
            "noisy = [ts.view(-1, 1, 1) * x + (1 - ts.view(-1, 1, 1)) * e for x, e, ts in zip(latents, eps, times)]",
            "Data and noise are exchanged in the mixture: t x + (1 - t) eps. At t = 0 there must be data.",
        ),
        _noisy(
            "noisy = [torch.where(k.view(-1, 1, 1), x, ti * x + (1 - ti) * e) "
            "for x, e, k, ti in zip(latents, eps, known, t)]",
            "Unknown frames are t x + (1 - t) eps, as if time ran from noise to data. Here it is (1 - t) x + t eps.",
        ),
        _noisy(
            "noisy = [torch.where(k.view(-1, 1, 1), x, e) for x, e, k in zip(latents, eps, known)]",
            "Unknown frames are pure noise whatever t is. They are the mixture (1 - t) x + t eps.",
        ),
        _noisy(
            "noisy = [mix(x, e, ts) * ~k.view(-1, 1, 1) for x, e, ts, k in zip(latents, eps, times, known)]",
            "Known frames enter as zeros. They enter clean: they are what the model is to go by.",
        ),
        _noisy(
            "noisy = [x + ts.view(-1, 1, 1) * e for x, e, ts in zip(latents, eps, times)]",
            "Noise is added, but the data are not made smaller: (1 - t) x + t eps.",
        ),
        _noisy(
            "noisy = [mix(x, torch.randn_like(x), ts) for x, ts in zip(latents, times)]",
            "You mix in noise of your own, and compare with `eps`. Use the one that is given.",
        ),
        _noisy(
            "eps = [torch.randn_like(e) for e in eps]\n    " + _NOISY,
            "You draw noise of your own, for the mixture and for the target. Use the one that is given, or no run "
            "could be repeated.",
        ),
        _noisy(
            "noisy = [(1 - ts) * x + ts * e for x, e, ts in zip(latents, eps, times)]",
            "Times are aligned with the columns: torch matches (f,) with the *last* axis. Give it the shape (f, 1, 1).",
        ),
        _error(
            "(v - (e - x)).square().mean()",
            "Known frames count in the loss. Their answer is trivial, and dilutes the rest: leave them out.",
        ),
        _error(
            "((v - (e - x)) * ~k.view(-1, 1, 1)).square().mean()",
            "The errors of known frames are set to 0, but still counted: you divide by all frames. A clip of which "
            "much is known would hardly count. Divide by the unknown ones.",
        ),
        _error(
            "(v - (e - x))[:, k].square().mean()",
            "You take the known frames for the loss, and leave out those that matter. (Where none is known, the mean "
            "of nothing is NaN.)",
        ),
        _error(
            "((v - (e - x)) * k.view(-1, 1, 1)).square().sum() / max(1, x[:, k].numel())",
            "The mask is the wrong way round: known frames make the loss, and where nothing is known it is 0. Count "
            "the unknown ones, ~k.",
        ),
        _error(
            "(v - (e - x))[~k].square().mean()",
            "The mask is laid on the channels: frames are axis 1 of (z, f, h, w). Write [:, ~k].",
        ),
        _error(
            "((v - (e - x)) * ~k).square().sum() / (x[:, ~k].numel())",
            "The mask is laid on the columns: torch matches (f,) with the *last* axis. Give it the shape (f, 1, 1).",
        ),
        _error(
            "(v * ~k.view(-1, 1, 1) - (e - x)).square().mean()",
            "The model's answer is set to 0 on known frames, but still compared with eps - x there: a constant that "
            "nothing can lower. Leave known frames out.",
        ),
        _error("(v - (x - e))[:, ~k].square().mean()", "The target points from noise to data. It is eps - x."),
        _error("(v - e)[:, ~k].square().mean()", "The target is the noise. Asked for is the velocity, eps - x."),
        _error("(v - x)[:, ~k].square().mean()", "The target is the data. Asked for is the velocity, eps - x."),
        _error("(v - (e + x))[:, ~k].square().mean()", "The target is eps + x. The velocity is their difference."),
        _error("(v - (e - x))[:, ~k].abs().mean()", "You take absolute errors. They are squared."),
        _error("(v - (e - x))[:, ~k].square().sum()", "Squared errors are summed in each clip. Take their mean."),
        _error("(v - (e - x))[:, ~k].square().mean().sqrt()", "You take the root. It is the mean square itself."),
        _error("(v - (e - x))[:, ~k].square().mean() / 2", "A half stands before the square. It is the mean square."),
        _error(
            "(v - (e - x))[:, ~k].square().sum() / len(x)",
            "Squared errors are averaged over the channels alone, and summed over frames, rows and columns. Take the "
            "mean over all of them.",
        ),
        _error(
            "(v - (e - x))[:, ~k].square().sum(dim=(2, 3)).mean()",
            "Squared errors are summed over rows and columns, and averaged over channels and frames alone: large "
            "frames count more. Take the mean over all of them.",
        ),
        _error(
            "(v - (e * ~k.view(-1, 1, 1) - x)).square().mean()",
            "Without noise the target of known frames becomes -x, and they count. Leave them out of the loss.",
        ),
        _error("(v - (e - x))[:, ~k].mean().square()", "You square the mean. Square first, then take the mean."),
        _error(
            "(v - (e - x))[:, ~k].square().sum() / (~k).sum()",
            "You divide by the number of unknown frames alone. The mean is over all their numbers, so large frames "
            "do not count more.",
        ),
        _error(
            "(v - (e - x))[:, ~known[0]].square().mean() if len(k) == len(known[0]) else "
            "(v - (e - x))[:, ~k].square().mean()",
            "The first clip's `known` is used for all clips of its length. Every clip has its own.",
        ),
        _averaged(
            "sum(e.square().sum() for e in [(v - (n - x))[:, ~k] for v, n, x, k in "
            "zip(model(noisy, times), eps, latents, known)]) / sum(x[:, ~k].numel() for x, k in zip(latents, known))",
            "The model is asked twice, and every number counts alike, so that large clips decide. One call, and one "
            "mean per clip.",
        ),
        Mistake(
            "Every number of the batch counts alike, so that large and long clips decide. First the mean of each clip, "
            "then the mean over clips.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [(v - (e - x))[:, ~k].flatten() for v, e, x, k in zip(answers, eps, latents, known)]
                return torch.cat(errors).square().mean()
            """,
        ),
        Mistake(
            "Every unknown frame counts alike, so that long clips count more. First the mean of each clip.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                frames = []
                for v, e, x, k in zip(model(noisy, times), eps, latents, known):
                    frames.append((v - (e - x)).square().mean(dim=(0, 2, 3))[~k])
                return torch.cat(frames).mean()
            """,
        ),
        Mistake(
            "You compare the data that the velocity implies, x_t - t v, with x. That weighs every clip by t squared. "
            "Compare velocities.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                clean = [n - ts.view(-1, 1, 1) * v for n, ts, v in zip(noisy, times, answers)]
                return torch.stack([(c - x)[:, ~k].square().mean() for c, x, k in zip(clean, latents, known)]).mean()
            """,
        ),
        Mistake(
            "Clips of which nothing is known are left out. They are plain text-to-video, half of all training.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [
                    (v - (e - x))[:, ~k].square().mean()
                    for v, e, x, k in zip(answers, eps, latents, known)
                    if k.any()
                ]
                return torch.stack(errors).mean() if errors else sum(v.sum() for v in answers) * 0
            """,
        ),
        Mistake(
            "Clips of which something is known are left out where others are to be had. All clips count, each with its "
            "unknown frames.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [(v - (e - x))[:, ~k].square().mean() for v, e, x, k in zip(answers, eps, latents, known)]
                return torch.stack([e for e, k in zip(errors, known) if not k.any()] or errors).mean()
            """,
        ),
        Mistake(
            "Clips count by their size. First the mean of each clip, then the plain mean: every clip counts alike.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [(v - (e - x))[:, ~k].square().mean() for v, e, x, k in zip(answers, eps, latents, known)]
                return sum(e * x.numel() for e, x in zip(errors, latents)) / sum(x.numel() for x in latents)
            """,
        ),
        Mistake(
            "Clips count by their t: the loss of each is multiplied by it. Every clip counts alike.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [(v - (e - x))[:, ~k].square().mean() for v, e, x, k in zip(answers, eps, latents, known)]
                return torch.stack([ti * e for ti, e in zip(t, errors)]).mean()
            """,
        ),
        Mistake(
            "You take the first frames for known, as many as are. `known` says which: the last ones, both ends, single "
            "ones.",
            code="""
            def known_loss(model, latents, known, t, eps):
                known = [torch.arange(len(k)) < k.sum() for k in known]
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [(v - (e - x))[:, ~k].square().mean() for v, e, x, k in zip(answers, eps, latents, known)]
                return torch.stack(errors).mean()
            """,
        ),
        Mistake(
            "Where something is known you take the first frame for it, and no other. `known` says which ones are.",
            code="""
            def known_loss(model, latents, known, t, eps):
                known = [(torch.arange(len(k)) == 0) & k.any() for k in known]
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [(v - (e - x))[:, ~k].square().mean() for v, e, x, k in zip(answers, eps, latents, known)]
                return torch.stack(errors).mean()
            """,
        ),
        Mistake(
            "You divide by t to find the velocity. At t = 0 that is 0 / 0; the velocity is eps - x, without a detour.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = []
                for v, n, x, k, ti in zip(answers, noisy, latents, known, t):
                    errors.append((v - (n - x) / ti)[:, ~k].square().mean())
                return torch.stack(errors).mean()
            """,
        ),
        Mistake(
            "You divide by t to find the velocity, and keep t from 0: small times give a wrong target. It is eps - x, "
            "without a detour.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = []
                for v, n, x, k, ti in zip(answers, noisy, latents, known, t):
                    errors.append((v - (n - x) / ti.clamp_min(0.05))[:, ~k].square().mean())
                return torch.stack(errors).mean()
            """,
        ),
        Mistake(
            "t is clamped away from 0 and 1. Use it as it is: whoever draws the times has decided that.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t.clamp(1e-3, 0.999))]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [(v - (e - x))[:, ~k].square().mean() for v, e, x, k in zip(answers, eps, latents, known)]
                return torch.stack(errors).mean()
            """,
        ),
        Mistake(
            "The target is eps - x_t: the way that is left, not the direction, which is eps - x all along the line.",
            code="""
            def known_loss(model, latents, known, t, eps):
                times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t)]
                noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times)]
                answers = model(noisy, times)
                errors = [(v - (e - n))[:, ~k].square().mean() for v, e, n, k in zip(answers, eps, noisy, known)]
                return torch.stack(errors).mean()
            """,
        ),
        Mistake(
            "t is shared: the first clip's t is used for all of them. Each clip has its own.",
            old=_TIMES,
            new="times = [torch.where(k, 0.0, t[0]) for k in known]",
        ),
        Mistake(
            "t is read frame by frame instead of clip by clip: where there are as many clips as frames it goes unseen.",
            old=_TIMES,
            new="times = [torch.where(k, 0.0, t) for k in known]",
        ),
        Mistake(
            "You draw times of your own. Use the given t, or no run could be repeated.",
            old=_TIMES,
            new="times = [torch.where(k, 0.0, torch.rand(())) for k in known]",
        ),
        Mistake(
            "Every unknown frame has a time of its own. All unknown frames of a clip share its t.",
            old=_TIMES,
            new="times = [torch.where(k, 0.0, torch.rand(len(k))) for k in known]",
        ),
        Mistake(
            "The latents are overwritten by the mixture, and then the target is wrong as well: make a new tensor.",
            old=_NOISY,
            new="noisy = [x.copy_(mix(x, e, ts)) for x, e, ts in zip(latents, eps, times, strict=True)]",
        ),
        _averaged(
            "torch.stack(errors).mean().float()",
            "The loss is float32 whatever the latents are. Keep their dtype.",
        ),
        _averaged("torch.stack(errors).sum()", "The clips' losses are summed. Take their mean."),
        _averaged("torch.stack(errors)", "You return one loss per clip. Asked for is their mean, one number."),
        _averaged("torch.stack(errors).max()", "You return the largest loss. Asked for is the mean over the clips."),
        _averaged("torch.stack(errors).median()", "You return the median. Asked for is the mean over the clips."),
        _averaged(
            "torch.stack(errors).mean().item()",
            "`.item()` makes a plain number of the loss: nobody can call backward on it. Return the tensor.",
        ),
    ],
    variants=[
        Variant(
            "a loop, all by hand",
            """
            def known_loss(model, latents, known, t, eps):
                times, noisy = [], []
                for i, x in enumerate(latents):
                    frame_times = t[i].repeat(x.shape[1])
                    frame_times[known[i]] = 0
                    s = frame_times[None, :, None, None]
                    times.append(frame_times)
                    noisy.append((1 - s) * x + s * eps[i])
                answers, total = model(noisy, times), 0.0
                for i, v in enumerate(answers):
                    target = eps[i] - latents[i]
                    total = total + F.mse_loss(v[:, ~known[i]], target[:, ~known[i]])
                return total / len(latents)
            """,
        ),
        Variant(
            "a mask that multiplies, counted rightly",
            """
            def known_loss(model, latents, known, t, eps):
                unknown = [(~k).to(t.dtype) for k in known]
                times = [u * ti for u, ti in zip(unknown, t)]
                with torch.no_grad():
                    noisy = [torch.lerp(x, e, s.view(1, -1, 1, 1)) for x, e, s in zip(latents, eps, times)]
                losses = []
                for v, x, e, u in zip(model(noisy, times), latents, eps, unknown):
                    per_frame = ((v - e + x) ** 2).mean(dim=(0, 2, 3))
                    losses.append((per_frame * u).sum() / u.sum())
                return sum(losses) / len(losses)
            """,
        ),
        Variant(
            "only unknown frames are mixed",
            """
            def known_loss(model, latents, known, t, eps):
                noisy = [x.clone() for x in latents]
                times = [torch.zeros(len(k)) for k in known]
                for n, s, x, e, k, ti in zip(noisy, times, latents, eps, known, t):
                    n[:, ~k] = x[:, ~k] * (1 - ti) + e[:, ~k] * ti
                    s[~k] = ti.to(s)
                answers = model(noisy, times)
                means = torch.stack([
                    torch.mean((answers[i] - (eps[i] - latents[i])).movedim(1, 0)[~known[i]].pow(2))
                    for i in range(len(latents))
                ])
                return means.mean()
            """,
        ),
        Variant(
            "one weight per number, all clips flat",
            """
            def known_loss(model, latents, known, t, eps):
                times = [ti * ~k for k, ti in zip(known, t)]
                noisy = list(map(mix, latents, eps, times))
                squares = [(v - (e - x)) ** 2 for v, e, x in zip(model(noisy, times), eps, latents)]
                weights = []
                for s, k in zip(squares, known):
                    w = (~k).view(-1, 1, 1).expand_as(s).to(s)
                    weights.append(w / w.sum() / len(squares))
                return sum((w * s).sum() for w, s in zip(weights, squares))
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "One clip: times (f,) are 0 where `known`, else its t; mix x and eps with them; the model's answer is "
            "compared with eps - x on the unknown frames. Then all of it for lists, with one call of the model "
            "between.",
        ),
        Hint(
            "how do I give each frame its own time?",
            "`torch.where(k, 0.0, ti)` makes (f,) from a mask (f,) and one number. To multiply (z, f, h, w) by it, "
            "give it the shape (f, 1, 1), as `mix` does.",
        ),
        Hint(
            "the loss is a bit too small",
            "Do known frames count? Multiplying their errors by 0 is not enough, because `.mean()` still counts them. "
            "[:, ~k] leaves them out, of the sum and of the count.",
        ),
        Hint(
            "it is right for one clip only",
            "A mean per clip, then the mean of these. With one call for all: answers = model(noisy, times), both "
            "lists.",
        ),
        Hint(
            "show me nearly everything",
            "times = [torch.where(k, 0.0, ti) ...]; noisy = [mix(x, e, ts) ...]; answers = model(noisy, times); errors "
            "= [(v - (e - x))[:, ~k].square().mean() ...]; torch.stack(errors).mean().",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------- the sampler


def _walks(*clips: tuple[str, int, int], z: int = 2, values: bool = True, known: bool = True, **how):
    """``("KUU", h, w)`` per clip, as in ``_clips``; without ``values`` or ``known`` these arguments are left out."""

    def inputs(g: torch.Generator) -> dict:
        made = {}
        for i, (frames, h, w) in enumerate(clips):
            made[f"noise_{i}"] = randn(g, z, len(frames), h, w)
            if values:
                made[f"values_{i}"] = randn(g, z, len(frames), h, w)
            if known:
                made[f"known_{i}"] = torch.tensor([letter == "K" for letter in frames])
        return made | how

    return inputs


def _walk_report(f, **parts) -> dict | None:
    """Every state, what the model was asked for each, and whether known frames came through bit for bit."""
    how = {n: v for n, v in parts.items() if n in ("steps", "shift", "method", "begin")}
    noise, known, values = _lists({n: v for n, v in parts.items() if n not in how}, "noise", "known", "values")
    how |= {n: v for n, v in (("known", known), ("values", values)) if v is not None}
    model, states, asked = _Asked(), [], []
    made = f(model=model, noise=noise, **how)
    if made is None:
        return None
    for state in made:
        if not isinstance(state, tuple) or len(state) != 4:
            raise TypeError(f"each step must yield State(step, t, xt, x0); one yielded {_said(state)}")
        states.append(state)
        asked.append(len(model.times))
    if not all(isinstance(x, list | tuple) for _, _, xt, x0 in states for x in (xt, x0)):
        raise TypeError("xt and x0 of a State must be lists with one tensor per clip")
    report = {
        "how many states": len(states),
        "how often the model had been asked when each came": str(asked),
        "times that the model was told": model.times,
        "latents that the model was asked about": model.latents,
        "step": [int(s[0]) for s in states],
        "t": [float(s[1]) for s in states],
        "xt": [list(s[2]) for s in states],
        "x0": [list(s[3]) for s in states],
    }
    if known and values and states:
        pairs = zip(states[-1][2], values, known, strict=False)
        same = [torch.equal(x[:, k], v[:, k]) for x, v, k in pairs if x.shape == v.shape]
        report["known frames are in the result bit for bit"] = str(same)
    return report


def _double_walk(f, **parts) -> dict | None:
    """The same in double precision, read in single."""
    parts = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in parts.items()}
    report = _walk_report(f, **parts)
    if report is None:
        return None
    last = report["xt"][-1][0] if report["xt"] else None
    narrow = {
        n: [[x.float() for x in call] for call in report[n]]
        for n in ("xt", "x0", "latents that the model was asked about")
    }
    return report | {"dtype for float64 noise": str(getattr(last, "dtype", None))} | narrow


def _only_when_asked(f) -> bool:
    """A walk that nobody looks at asks the model nothing, and each state costs the questions of one step."""
    g = torch.Generator().manual_seed(4)
    noise = [torch.randn(2, 4, 3, 2, generator=g), torch.randn(2, 1, 2, 2, generator=g)]
    for method, costs in (("euler", 1), ("heun", 2)):
        model = _Asked()
        walk = iter(f(model=model, noise=noise, steps=4, method=method))
        for made in range(3):
            if len(model.times) != made * costs:
                return False
            next(walk)
    return True


def _walk(label: str, inputs, call=_walk_report) -> Case:
    return Case(label, inputs, call=call)


_TWO = (("KUUK", 3, 5), ("UKU", 5, 7))
_START = "xt, times = with_known(noise), time_grid(steps, shift).tolist()"
_KEPT = "kept = [t for t in times if t < begin]"
_PUT = "return [torch.where(k.view(-1, 1, 1), v, x) for k, v, x in zip(known, values, latents, strict=True)]"
_ASK = "return model(latents, [torch.where(k, 0.0, t) for k in known])"
_CLEAN = "x0 = with_known([x - t * s for x, s in zip(xt, v, strict=True)])"
_IF_HEUN = 'if method == "heun" and t_next > 0:'
_AHEAD = "ahead = ask(with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)]), t_next)"
_HALF = "v = [(a + b) / 2 for a, b in zip(v, ahead, strict=True)]"
_STEP = "xt = with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)])"
_YIELD = "yield State(step, t_next, xt, x0)"
_PAIRS = "enumerate(pairwise([begin, *kept]), start=1)"
_WRONG = "if not 0 < begin <= 1:"


def _instead(old: str, new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=old, new=new)


SAMPLE_KNOWN = Exercise(
    target=sample_known,
    minutes=25,
    gradients=False,
    cases=[
        _walk("two clips, three Euler steps", _walks(*_TWO, steps=3)),
        _walk("Euler, said in so many words", _walks(*_TWO, steps=3, method="euler")),
        _walk("nothing is known and no values are given", _walks(*_TWO, steps=3, values=False, known=False)),
        _walk("one step", _walks(*_TWO, steps=1)),
        _walk("a shifted grid", _walks(*_TWO, steps=4, shift=2.5)),
        _walk("Heun, three steps", _walks(*_TWO, steps=3, method="heun")),
        _walk("Heun, one step", _walks(*_TWO, steps=1, method="heun")),
        _walk("Heun on a shifted grid, nothing known", _walks(*_TWO, steps=3, shift=3.0, method="heun", known=False)),
        _walk("begin = 0.6, between two times of the grid", _walks(*_TWO, steps=4, begin=0.6)),
        _walk("begin = 0.5, on the grid", _walks(*_TWO, steps=4, begin=0.5)),
        _walk("begin = 0.1, below the last time but 0", _walks(*_TWO, steps=4, begin=0.1)),
        _walk("begin = 0.6 on a shifted grid, with Heun", _walks(*_TWO, steps=4, begin=0.6, shift=2.0, method="heun")),
        _walk("all settings left out", _walks(("KU", 1, 2))),
        _walk("frames, rows, columns, channels and clips are all 2", _walks(("KU", 2, 2), ("UK", 2, 2), steps=2)),
        _walk("values are given, but nothing is known", _walks(*_TWO, steps=2, known=False)),
        _walk("frames are known, but no values given", _walks(*_TWO, steps=2, values=False)),
        _walk("every frame of one clip is known", _walks(("KKK", 2, 3), ("UKUUU", 3, 2), steps=2)),
        _walk("a picture beside a clip", _walks(("U", 3, 5), ("KUU", 2, 3), steps=2)),
        _walk("in double precision", _walks(*_TWO, steps=2, method="heun"), call=_double_walk),
        _walk("a method that does not exist", _walks(*_TWO, steps=2, method="midpoint")),
        _walk("begin below 0", _walks(*_TWO, steps=2, begin=-0.5)),
        _walk("begin = 0", _walks(*_TWO, steps=2, begin=0.0)),
        _walk("begin above 1", _walks(*_TWO, steps=2, begin=1.5)),
        _walk("no steps", _walks(*_TWO, steps=0)),
    ],
    properties=[
        Property(
            "No step may be made before its state is asked for, not even the first: who looks on may stop.",
            _only_when_asked,
        ),
    ],
    mistakes=[
        _instead(
            _STEP,
            "xt = [x + (t_next - t) * s for x, s in zip(xt, v, strict=True)]",
            "Known frames are put in once, at the start, and drift away with the first step. Put them back after each.",
        ),
        _instead(
            _START,
            "xt, times = list(noise), time_grid(steps, shift).tolist()",
            "At the first step the model sees noise in the known frames, and is told that they are clean. Put them in "
            "before it is asked for the first time.",
        ),
        _instead(
            _ASK,
            "return model(latents, [torch.full((len(k),), t) for k in known])",
            "The model is told the same time for all frames. A known frame is clean: its time is 0.",
        ),
        _instead(
            _ASK,
            "return model(latents, [torch.where(k, t, 0.0) for k in known])",
            "Times are the wrong way round: known frames get t, the others 0.",
        ),
        _instead(
            _ASK,
            "return model(latents, [torch.where(k, 1.0, t) for k in known])",
            "The model is told t = 1 for known frames: that is pure noise. Clean is 0.",
        ),
        _instead(
            _ASK,
            "return model(latents, t)",
            "The model is told one number. It wants a list with the times (f,) of every clip's frames.",
        ),
        _instead(
            _ASK,
            "return model(latents, [torch.tensor(t) for _ in known])",
            "The model is told one number per clip. It wants one time per frame, (f,).",
        ),
        _instead(
            _ASK,
            "return model(latents, [torch.where(k, 0.0, 1 - t) for k in known])",
            "The model is told 1 - t for unknown frames. Noise is at t = 1.",
        ),
        _instead(
            _ASK,
            "return [model([x], [torch.where(k, 0.0, t)])[0] for x, k in zip(latents, known)]",
            "The model is called clip by clip. It takes the lists of all clips at once.",
        ),
        _instead(
            _ASK,
            "return model(latents, [torch.where(known[0], 0.0, t) if len(k) == len(known[0]) else "
            "torch.full((len(k),), t) for k in known])",
            "The model is told the first clip's known frames for all clips. Each has its own.",
        ),
        _instead(
            _ASK,
            "free = [i for i, k in enumerate(known) if not k.all()]\n"
            "        told = dict(zip(free, model([latents[i] for i in free], "
            "[torch.where(known[i], 0.0, t) for i in free])))\n"
            "        return [told.get(i, torch.zeros_like(x)) for i, x in enumerate(latents)]",
            "Clips that are known from end to end are kept from the model. It is asked about all clips: others may "
            "look at them.",
        ),
        _instead(
            _PUT,
            "return [torch.where(k.view(-1, 1, 1), x, v) for k, v, x in zip(known, values, latents, strict=True)]",
            "Known and unknown are exchanged: you put values into the frames that are to be made.",
        ),
        _instead(
            _PUT,
            "return [torch.where(k, v, x) for k, v, x in zip(known, values, latents, strict=True)]",
            "`known` is aligned with the columns: torch matches (f,) with the *last* axis. Give it the shape (f, 1, "
            "1).",
        ),
        _instead(
            _PUT,
            "return [torch.where(k.view(-1, 1, 1, 1), v, x) for k, v, x in zip(known, values, latents, strict=True)]",
            "`known` is aligned with the channels of (z, f, h, w). Give it the shape (f, 1, 1).",
        ),
        _instead(
            _PUT,
            "return [torch.where(k.view(-1, 1, 1), n, x) for k, n, x in zip(known, noise, latents, strict=True)]",
            "Known frames are taken from the noise. They are in `values`.",
        ),
        _instead(
            _PUT,
            "return [torch.where(k.view(-1, 1, 1), torch.zeros_like(x), x) for k, x in zip(known, latents)]",
            "Known frames are set to 0. Take them from `values`.",
        ),
        _instead(
            _PUT,
            "return [x.masked_scatter_(k.view(-1, 1, 1).expand_as(x), v[:, k]) "
            "for k, v, x in zip(known, values, latents)]",
            "The noise is overwritten: known frames are written into it in place. Make a new tensor.",
        ),
        _instead(
            _PUT,
            "return [torch.where(k.view(-1, 1, 1), v + 1e-6, x) for k, v, x in zip(known, values, latents)]",
            "Known frames come back nearly, but not bit for bit. Put `values` in as they are, at the very end too.",
        ),
        _instead(
            _STEP,
            "xt = with_known([x - (t_next - t) * s for x, s in zip(xt, v, strict=True)])",
            "You walk uphill: v points from data to noise, and t' - t is negative, so x + (t' - t) v.",
        ),
        _instead(
            _STEP,
            "xt = with_known([x - s / steps for x, s in zip(xt, v, strict=True)])",
            "Every step is 1 / steps long. Where the grid is shifted, or begins later, steps are t' - t long.",
        ),
        _instead(
            _STEP,
            "xt = with_known([x - t * s for x, s in zip(xt, v, strict=True)])",
            "Each step goes all the way to t = 0. It goes from t to t'.",
        ),
        _instead(
            _STEP,
            "xt = with_known([(1 - t_next) * c + t_next * n for c, n in zip(x0, noise, strict=True)])",
            "After each step you put the first noise back in. The walk follows v: x' = x + (t' - t) v.",
        ),
        _instead(
            _STEP,
            "xt = [x + (t_next - t) * s for x, s in zip(xt, v, strict=True)]\n"
            "        xt = [torch.where(k.view(-1, 1, 1), (1 - t_next) * y + t_next * n, x) "
            "for k, y, n, x in zip(known, values, noise, xt)]",
            "Known frames are noised to the time of the others, as RePaint does for networks with one time. This "
            "network has a time per frame: they stay clean.",
        ),
        Mistake(
            "Known frames are always noised to the time of the others, from the first question on, as RePaint does for "
            "networks with one time. Here they are clean throughout, and told 0.",
            code="""
            def sample_known(model, noise, known=None, values=None, *, steps=20, shift=1.0, method="euler", begin=1.0):
                if method not in ("euler", "heun") or not 0 < begin <= 1:
                    raise ValueError("method or begin")
                known = known or [torch.zeros(x.shape[1], dtype=torch.bool) for x in noise]
                values = values or noise

                def put(xs, t):
                    return [
                        torch.where(k.view(-1, 1, 1), (1 - t) * v + t * n, x)
                        for k, v, n, x in zip(known, values, noise, xs)
                    ]

                def ask(xs, t):
                    return model(xs, [torch.where(k, 0.0, t) for k in known])

                times = [begin, *(t for t in time_grid(steps, shift).tolist() if t < begin)]
                xt = put(noise, begin)
                for i, (t, t_next) in enumerate(zip(times, times[1:]), 1):
                    v = ask(xt, t)
                    x0 = put([x - t * s for x, s in zip(xt, v)], 0.0)
                    if method == "heun" and t_next > 0:
                        ahead = ask(put([x + (t_next - t) * s for x, s in zip(xt, v)], t_next), t_next)
                        v = [(a + b) / 2 for a, b in zip(v, ahead)]
                    xt = put([x + (t_next - t) * s for x, s in zip(xt, v)], t_next)
                    yield State(i, t_next, xt, x0)
            """,
        ),
        _instead(
            _STEP,
            "xt = with_known([x + (t_next - t) * s for x, s in zip(xt, v)]) if t_next == 0 else "
            "[x + (t_next - t) * s for x, s in zip(xt, v)]",
            "Known frames are put back only at the end. In between they drift, and the others follow what has drifted.",
        ),
        _instead(
            "v = ask(xt, t)",
            "v = ask(xt, t_next)",
            "The model is asked at the time where the step ends. Ask where it begins.",
        ),
        _instead(
            "v = ask(xt, t)",
            "v = ask(noise, t)",
            "The model is always asked about the noise. Ask about the latents reached so far.",
        ),
        _instead(
            _STEP,
            "xt = [x + (t_next - t) * s for x, s in zip(xt, v)] if method == 'heun' and t_next > 0 else "
            "with_known([x + (t_next - t) * s for x, s in zip(xt, v)])",
            "After Heun's second question known frames are not put back: by the mean velocity they drift. Put them "
            "back after the whole step, too.",
        ),
        _instead(
            _STEP + "\n        " + _YIELD,
            "free = [x + (t_next - t) * s for x, s in zip(xt, v, strict=True)]\n"
            "        xt = with_known(free)\n"
            "        yield State(step, t_next, free, x0)",
            "The model is asked rightly, but the xt of a State shows known frames that have drifted: put them back "
            "before you yield, not before the next question.",
        ),
        _instead(
            _STEP + "\n        " + _YIELD,
            "free = [x + (t_next - t) * s for x, s in zip(xt, v, strict=True)]\n"
            "        xt = with_known(free)\n"
            "        yield State(step, t_next, free if method == 'heun' and t_next > 0 else xt, x0)",
            "After Heun's second question the xt of a State shows known frames that have drifted. Put them back before "
            "you yield.",
        ),
        _instead(
            _PUT,
            "return [torch.where((k & (torch.arange(len(k)) == 0)).view(-1, 1, 1), v, x) "
            "for k, v, x in zip(known, values, latents)]",
            "Only the first frame of a clip is put in. `known` may be any pattern: the last frames, both ends, single "
            "ones.",
        ),
        _instead(
            _PUT,
            "return [torch.where((k.any() & (torch.arange(len(k)) == 0)).view(-1, 1, 1), v, x) "
            "for k, v, x in zip(known, values, latents)]",
            "Wherever something is known you put in the first frame, and no other. `known` says which frames are.",
        ),
        _instead(
            _CLEAN,
            "x0 = [x - t * s for x, s in zip(xt, v, strict=True)]",
            "In x0 known frames are not put back: what a preview shows there is wrong.",
        ),
        _instead(
            _CLEAN,
            "x0 = with_known([x - t_next * s for x, s in zip(xt, v, strict=True)])",
            "x0 is computed with the time after the step, but the latents before it. It is x - t v.",
        ),
        _instead(
            _CLEAN,
            "x0 = with_known([x - s for x, s in zip(xt, v, strict=True)])",
            "x0 is x - v: the t is missing. It is right in the first step only, where t = 1.",
        ),
        _instead(
            _CLEAN,
            "x0 = with_known([x + t * s for x, s in zip(xt, v, strict=True)])",
            "x0 has the wrong sign: v points from data to noise, so x - t v.",
        ),
        _instead(
            _STEP,
            "moved = with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)])\n"
            "        x0 = with_known([y - (x - c) for y, x, c in zip(moved, xt, x0, strict=True)])\n"
            "        xt = moved",
            "x0 is computed from the latents after the step with the time before it: that overshoots. It is x - t v "
            "with the x that the model was asked about.",
        ),
        _instead(
            _STEP,
            "moved = with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)])\n"
            "        x0 = with_known([y - (x - c) for y, x, c in zip(moved, xt, x0, strict=True)])\n"
            "        xt[:] = moved",
            "The step overwrites the latents in place: x0, computed after it, starts from the wrong ones, and every "
            "State shows the last ones. Make new tensors.",
        ),
        Mistake(
            "x0 is computed from the latents after the step with the time before it, and for Heun with the mean of "
            "both velocities. It is x - t v with the x and the v of the first question.",
            old="        " + _YIELD,
            new="        x0 = with_known([x - t * s for x, s in zip(xt, v, strict=True)])\n        " + _YIELD,
        ),
        _instead(
            _HALF,
            "x0 = with_known([x + (t_next - t) * a - t_next * b for x, a, b in zip(xt, v, ahead, strict=True)])\n"
            "            v = [(a + b) / 2 for a, b in zip(v, ahead, strict=True)]",
            "With Heun, x0 is what the second velocity implies from where Euler's step led. Asked for is the first "
            "one's: x - t v.",
        ),
        _instead(
            _STEP,
            "xt = with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)])\n"
            "        if method == 'heun' and t_next > 0:\n"
            "            x0 = with_known([x - t_next * b for x, b in zip(xt, ahead, strict=True)])",
            "With Heun, x0 is what the second velocity implies from where the whole step led. Asked for is the first "
            "one's, x - t v, before the step.",
        ),
        _instead(
            _YIELD,
            "yield State(step, t_next, xt, with_known([x - t_next * s for x, s in zip(xt, v, strict=True)]))",
            "With Heun, x0 is computed from the mean of both velocities, or after the step. It is what the first "
            "velocity implies: x - t v, before v becomes the mean.",
        ),
        _instead(
            _IF_HEUN,
            'if method == "heun":',
            "Heun asks the model also at t = 0 in the last step, where nothing is noisy. The step to 0 is Euler's.",
        ),
        _instead(
            _IF_HEUN,
            "if False:",
            "`method` changes nothing: Heun must ask a second time and take the mean of both velocities.",
        ),
        _instead(
            _IF_HEUN,
            "if t_next > 0:",
            "`method` changes nothing: Euler asks once a step.",
        ),
        _instead(
            _IF_HEUN,
            'if method == "heun" and t_next > 0 and step > 1:',
            "The first step is Euler's. Heun asks twice in every step but the last.",
        ),
        Mistake(
            "`method` left out means Euler; your default is another.",
            code="""
            def sample_known(model, noise, known=None, values=None, *, steps=20, shift=1.0, method="heun", begin=1.0):
                from course_lib.diffusion.known_frames import sample_known as walk

                yield from walk(model, noise, known, values, steps=steps, shift=shift, method=method, begin=begin)
            """,
        ),
        Mistake(
            "`steps` left out means 20; your default is another.",
            code="""
            def sample_known(model, noise, known=None, values=None, *, steps=50, shift=1.0, method="euler", begin=1.0):
                from course_lib.diffusion.known_frames import sample_known as walk

                yield from walk(model, noise, known, values, steps=steps, shift=shift, method=method, begin=begin)
            """,
        ),
        _instead(
            _AHEAD,
            "ahead = ask([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)], t_next)",
            "Heun's second question is about known frames that have drifted. Put them back before it, too.",
        ),
        _instead(
            _AHEAD,
            "ahead = model(with_known([x + (t_next - t) * s for x, s in zip(xt, v)]), "
            "[torch.full((len(k),), t_next) for k in known])",
            "In Heun's second question known frames are told t'. Their time is 0 there, too.",
        ),
        _instead(
            _AHEAD,
            "ahead = ask(with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)]), t)",
            "Heun's second question is asked at the old time. It is about the place ahead, at t'.",
        ),
        _instead(
            _AHEAD,
            "ahead = ask(xt, t_next)",
            "Heun's second question is about the old latents. It is about where an Euler step would lead.",
        ),
        Mistake(
            "The model is asked once more at the end, at t = 0. There is nothing left to walk: each step asks where it "
            "begins.",
            old="        " + _YIELD,
            new="        " + _YIELD + "\n    ask(xt, 0.0)",
        ),
        _instead(
            _YIELD,
            "yield State(step, t_next, xt, [x - t_next * s for x, s in zip(xt, ask(xt, t_next))])",
            "x0 costs a question more, asked after the step. It follows from the velocity that you have: x - t v.",
        ),
        _instead(
            _AHEAD + "\n            " + _HALF,
            "m = (t + t_next) / 2\n"
            "            v = ask(with_known([x + (m - t) * s for x, s in zip(xt, v, strict=True)]), m)",
            "This is the midpoint method: it asks in the middle of the step. Heun asks at its end, and takes the mean.",
        ),
        _instead(
            _HALF,
            "v = ahead",
            "Heun walks by the second velocity alone. It takes the mean of both.",
        ),
        _instead(
            _HALF,
            "v = [a + b for a, b in zip(v, ahead, strict=True)]",
            "Heun adds both velocities and so goes twice as far. Take their mean.",
        ),
        _instead(
            _HALF,
            "xt = with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)])\n"
            "            v = [(a + b) / 2 for a, b in zip(v, ahead, strict=True)]",
            "Heun goes on from where Euler's step led, so it walks twice. The mean velocity is walked from the old x.",
        ),
        _instead(
            _START,
            "xt, times = with_known(noise), time_grid(steps).tolist()",
            "`shift` is ignored: give it to `time_grid`.",
        ),
        _instead(
            _START,
            "xt, times = with_known(noise), time_grid(steps, shift).tolist()[::-1]",
            "The grid is turned round, from 0 to 1. Sampling walks from noise, t = 1, down to data, t = 0.",
        ),
        _instead(
            _START,
            "xt, times = with_known(noise), time_grid(steps, 1 / shift).tolist()",
            "You divide by `shift` where it multiplies: times move to data instead of noise.",
        ),
        _instead(
            _START,
            "xt, times = with_known(noise), [(1 - i / steps) ** shift for i in range(steps + 1)] "
            "if steps > 0 else time_grid(steps)",
            "You use `shift` as an exponent of evenly spaced times. The grid is that of `time_grid(steps, shift)`.",
        ),
        _instead(
            _START,
            "xt, times = with_known(noise), time_grid(max(steps - 1, 1) if steps > 0 else steps, shift).tolist()",
            "There is a step too few: `steps` counts steps, and the grid has one time more. Give `steps` as it is.",
        ),
        _instead(
            _KEPT,
            "kept, begin = times[1:], 1.0",
            "`begin` is ignored: the walk starts at 1 whatever is asked. An edit would be taken for pure noise.",
        ),
        _instead(
            _KEPT,
            "kept = [t * begin for t in times[1:]]",
            "The whole grid is squeezed below `begin`. Keep the times as they are, and leave out those above.",
        ),
        _instead(
            _KEPT,
            "kept = [t for t in times if t <= begin and t < 1]",
            "Where `begin` lies on the grid, it comes twice: a step of length 0. Keep the times *below* it.",
        ),
        _instead(
            _KEPT,
            "kept = [t for t in times if t <= begin]",
            "`begin` comes twice wherever it lies on the grid, also where it is 1: the first step has length 0. Keep "
            "the times *below* it.",
        ),
        _instead(
            _KEPT,
            "kept = [t for t in times if t < begin][1 if begin < 1 else 0 :] or [0.0]",
            "`begin` takes the place of the first time below it. It comes before that time: no time of the grid below "
            "`begin` is left out.",
        ),
        _instead(
            _KEPT,
            "kept = [begin * t for t in time_grid(max(1, round(steps * begin)), shift).tolist()][1:]",
            "You make a new grid of fewer steps for the way from `begin`. Keep the times of the whole grid that are "
            "below `begin`.",
        ),
        _instead(
            _KEPT,
            "kept = times[len(times) - max(1, round(begin * steps)) :]",
            "You count steps instead of looking at times, begin x steps of them: on a shifted grid, or between two "
            "times, others are left. Keep the times that are below `begin`.",
        ),
        _instead(
            _KEPT,
            "kept = times[len(times) - math.ceil(begin * steps) :]",
            "You count steps, begin x steps of them and rounded up, instead of looking at times. Where the grid is "
            "shifted others are left: keep the times that are below `begin`.",
        ),
        _instead(
            _START,
            "xt, times = with_known([begin * x for x in noise]), time_grid(steps, shift).tolist()",
            "You scale `noise` by `begin`. It is mixed to that time already: take it as it is.",
        ),
        _instead(
            _START,
            "xt = with_known([begin * x + (1 - begin) * v for x, v in zip(noise, values, strict=True)])\n"
            "    times = time_grid(steps, shift).tolist()",
            "You mix `values` into the start. `noise` is mixed to `begin` already; of `values` known frames are taken, "
            "and no others.",
        ),
        _instead(
            _PAIRS,
            "enumerate(pairwise([t for t in times if t <= begin]), start=1)",
            "The walk starts at the first grid time at or below `begin`. It starts at exactly `begin`: that is the "
            "noise in the latents.",
        ),
        _instead(
            _PAIRS,
            "enumerate(pairwise([min([t for t in times if t >= begin]), *kept]), start=1)",
            "The walk starts at the grid time above `begin`, so the model is told more noise than there is.",
        ),
        _instead(
            _PAIRS,
            "enumerate(pairwise([*([1.0] if begin < 1 else []), begin, *kept]), start=1)",
            "The walk begins at 1 and then goes to `begin`: a step too many. It starts at `begin`.",
        ),
        _instead(
            _PAIRS,
            "enumerate(pairwise([begin, *kept][:-1] if len(kept) > 1 else [begin, *kept]), start=1)",
            "The last step, to t = 0, is missing: what comes out is still noisy.",
        ),
        _instead(
            _PAIRS,
            "enumerate(pairwise([begin, *kept]), start=0)",
            "Steps are counted from 0. A State is what there is *after* a step: the first has number 1.",
        ),
        _instead(
            _PAIRS,
            "enumerate(pairwise([begin, *kept]), start=steps - len(kept) + 1)",
            "Steps are counted as if the whole grid had been walked. The first step of this walk has number 1.",
        ),
        _instead(
            _YIELD,
            "yield State(step, t, xt, x0)",
            "A State tells the time before the step. It tells the time that its latents have reached.",
        ),
        _instead(
            _YIELD,
            "yield State(step, t_next, x0, xt)",
            "xt and x0 changed places: State(step, t, xt, x0).",
        ),
        _instead(
            _YIELD,
            "yield xt",
            "You yield the latents alone. Each step yields State(step, t, xt, x0).",
        ),
        _instead(
            "        " + _YIELD,
            "    " + _YIELD,
            "Only the last state is yielded. Yield one after every step, inside the loop.",
        ),
        Mistake(
            "The first state is yielded before any step. A State is what there is after a step.",
            old="    for step, (t, t_next)",
            new="    yield State(0, begin, xt, xt)\n    for step, (t, t_next)",
        ),
        Mistake(
            "All steps are done before the first state comes out: you return a list. `yield` each one when it is "
            "there, so that somebody can watch, or stop.",
            code="""
            def sample_known(model, noise, known=None, values=None, *, steps=20, shift=1.0, method="euler", begin=1.0):
                from course_lib.diffusion.known_frames import sample_known as whole

                return list(whole(model, noise, known, values, steps=steps, shift=shift, method=method, begin=begin))
            """,
        ),
        Mistake(
            "You are a step ahead: each state comes out only after the next step has been made. Yield it at once.",
            code="""
            def sample_known(model, noise, known=None, values=None, *, steps=20, shift=1.0, method="euler", begin=1.0):
                from course_lib.diffusion.known_frames import sample_known as whole

                walk = whole(model, noise, known, values, steps=steps, shift=shift, method=method, begin=begin)
                last = next(walk)
                for state in walk:
                    yield last
                    last = state
                yield last
            """,
        ),
        Mistake(
            "The model is asked as soon as you are called, before anybody wants a state. Until then nothing but checks "
            "may happen: ask inside the loop that yields.",
            code="""
            def sample_known(model, noise, known=None, values=None, *, steps=20, shift=1.0, method="euler", begin=1.0):
                from course_lib.diffusion.known_frames import sample_known as whole

                first = []

                def asked_before(latents, times):
                    return first.pop() if first else model(latents, times)

                walk = whole(asked_before, noise, known, values, steps=steps, shift=shift, method=method, begin=begin)
                if method in ("euler", "heun") and 0 < begin <= 1 and steps > 0:
                    k = known or [torch.zeros(x.shape[1], dtype=torch.bool) for x in noise]
                    start = [torch.where(m.view(-1, 1, 1), v, x) for m, v, x in zip(k, values or noise, noise)]
                    first.append(model(start, [torch.where(m, 0.0, begin) for m in k]))
                return walk
            """,
        ),
        Mistake(
            "Latents are changed in place, so every State shows the last ones. Make new tensors, and a new list, in "
            "each step.",
            old=_STEP,
            new="xt[:] = with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)])",
        ),
        _instead(
            "known = known or [torch.zeros(x.shape[1], dtype=torch.bool) for x in noise]",
            "pass",
            "`known` may be None: then nothing is known. Make masks of False, one per frame.",
        ),
        _instead(
            "known = known or [torch.zeros(x.shape[1], dtype=torch.bool) for x in noise]",
            "known = known or [torch.ones(x.shape[1], dtype=torch.bool) for x in noise]",
            "Without `known` you take everything for known. None knows nothing.",
        ),
        _instead(
            "values = values or noise",
            "pass",
            "`values` may be None: then nothing is put back, or the noise as it is. Do not look into it.",
        ),
        _instead(
            "values = values or noise",
            "values = values or [torch.zeros_like(x) for x in noise]",
            "Without `values` you take zeros. None takes known frames from `noise` as it is.",
        ),
        _instead(
            "values = values or noise",
            "known = known if values else [torch.zeros_like(k) for k in known]\n    values = values or noise",
            "Without `values` you take no frame for known. Known frames are then those of `noise`, as they are, and "
            "the model is told 0 for them.",
        ),
        _instead(
            "known = known or [torch.zeros(x.shape[1], dtype=torch.bool) for x in noise]",
            "known = known or [(torch.arange(x.shape[1]) == 0) & (values is not None) for x in noise]",
            "Where `values` come without `known`, you take the first frames for known. None knows nothing.",
        ),
        _instead(
            'if method not in ("euler", "heun"):',
            "if False:",
            "An unknown method is taken for one of the two. Refuse it with a ValueError.",
        ),
        _instead(
            _WRONG,
            "if not 0 <= begin <= 1:",
            "`begin` = 0 is taken, and there is nothing to walk. Refuse it.",
        ),
        _instead(
            _WRONG,
            "if begin > 1:",
            "A `begin` of 0 or below is taken. Refuse everything outside of (0, 1].",
        ),
        _instead(
            _WRONG,
            "if begin <= 0:",
            "A `begin` above 1 is taken. There is nothing noisier than noise: refuse it.",
        ),
        _instead(
            _WRONG,
            "if not 0 < begin < 1:",
            "`begin` = 1 is refused. It is the usual one, a walk from pure noise.",
        ),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError and is skipped under `python -O`. Use `raise "
            "ValueError(...)`.",
            old='    if method not in ("euler", "heun"):\n        raise ValueError(f"method={method!r} is unknown; '
            'choose euler or heun")\n    if not 0 < begin <= 1:\n        raise ValueError(',
            new='    assert method in ("euler", "heun")\n    if not 0 < begin <= 1:\n        raise AssertionError(',
        ),
        Mistake(
            "Right but for the refusal: fewer than one step ends without a word. `time_grid` refuses it for you, a "
            "grid of your own must do so itself.",
            old=_START,
            new="xt, times = with_known(noise), time_grid(max(steps, 1), shift).tolist()",
        ),
        _instead(
            _YIELD,
            "yield State(step, t_next, [x.float() for x in xt], x0)",
            "Latents become float32, whatever the noise was. Keep its dtype.",
        ),
    ],
    variants=[
        Variant(
            "plain loops and indexing",
            """
            def sample_known(model, noise, known=None, values=None, *, steps=20, shift=1.0, method="euler", begin=1.0):
                if method != "euler" and method != "heun":
                    raise ValueError(method)
                if begin <= 0 or begin > 1:
                    raise ValueError(begin)
                if known is None:
                    known = [torch.zeros(x.shape[1]).bool() for x in noise]
                if values is None:
                    values = noise

                def fix(latents):
                    fixed = []
                    for x, k, v in zip(latents, known, values):
                        x = x.clone()
                        x[:, k] = v[:, k]
                        fixed.append(x)
                    return fixed

                def frame_times(t):
                    return [t * (~k).float() for k in known]

                grid = [begin]
                for t in time_grid(steps, shift):
                    if t < begin:
                        grid.append(float(t))
                x = fix(noise)
                for i in range(len(grid) - 1):
                    now, then = grid[i], grid[i + 1]
                    v = model(x, frame_times(now))
                    moved = fix([a + (then - now) * b for a, b in zip(x, v)])
                    clean = fix([a - now * b for a, b in zip(x, v)])
                    if method == "heun" and i < len(grid) - 2:
                        w = model(moved, frame_times(then))
                        moved = fix([a + (then - now) * (b + c) / 2 for a, b, c in zip(x, v, w)])
                    x = moved
                    yield State(i + 1, then, x, clean)
            """,
        ),
        Variant(
            "a mask that multiplies, tensors for times, tuples",
            """
            def sample_known(model, noise, known=None, values=None, *, steps=20, shift=1.0, method="euler", begin=1.0):
                if method not in {"euler", "heun"} or not (0 < begin <= 1):
                    raise ValueError("method or begin")
                n = range(len(noise))
                if known is None:
                    known = [x.new_zeros(x.shape[1]).bool() for x in noise]
                free = [(~known[i]).to(noise[i]).view(1, -1, 1, 1) for i in n]
                values = noise if values is None else values
                put = lambda xs: tuple(f * x + (1 - f) * v for f, x, v in zip(free, xs, values))
                ask = lambda xs, t: model(list(xs), [f.flatten().float() * t for f in free])
                grid = time_grid(steps, shift)
                grid = torch.cat([torch.tensor([begin]), grid[grid < begin]])
                x, count = put(noise), 0
                while count + 1 < len(grid):
                    t, s = grid[count], grid[count + 1]
                    first = ask(x, t)
                    slope, clean = first, put([x[i] - t * first[i] for i in n])
                    if method == "heun" and s > 0:
                        second = ask(put([x[i] - (t - s) * first[i] for i in n]), s)
                        slope = [0.5 * first[i] + 0.5 * second[i] for i in n]
                    x = put([x[i] - (t - s) * slope[i] for i in n])
                    count += 1
                    yield State(count, s.item(), x, clean)
            """,
        ),
        Variant(
            "checked at once, an inner generator, keywords",
            """
            def sample_known(model, noise, known=None, values=None, *, steps=20, shift=1.0, method="euler", begin=1.0):
                if method not in ("euler", "heun"):
                    raise ValueError("unknown method")
                if not (begin > 0 and begin <= 1):
                    raise ValueError("begin")
                times = [begin, *filter(lambda t: t < begin, time_grid(steps, shift).tolist())]
                masks = known if known is not None else [torch.full((x.shape[1],), False) for x in noise]
                kept = values if values is not None else noise

                def clean(xs):
                    return [x.masked_fill(m[:, None, None], 0).add(v.masked_fill(~m[:, None, None], 0))
                            for x, m, v in zip(xs, masks, kept)]

                def slope(xs, t):
                    frame_times = []
                    for m in masks:
                        ts = torch.full(m.shape, float(t))
                        ts[m] = 0.0
                        frame_times.append(ts)
                    return model(xs, frame_times)

                def walk():
                    xs = clean(noise)
                    for i, (t, after) in enumerate(zip(times, times[1:])):
                        v = slope(xs, t)
                        guess = clean([x - t * s for x, s in zip(xs, v)])
                        new = clean([torch.add(x, s, alpha=after - t) for x, s in zip(xs, v)])
                        if method == "heun" and after != 0:
                            w = slope(new, after)
                            new = clean([x + (after - t) * torch.stack([a, b]).mean(0) for x, a, b in zip(xs, v, w)])
                        xs = new
                        yield State(step=i + 1, t=after, xt=xs, x0=guess)

                return walk()
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Euler first, with begin = 1 and nothing known: for t, t' along the grid, v = model(x, times), then x + "
            "(t' - t) v for every clip. Then a small function that puts known frames back, used everywhere. Heun last.",
        ),
        Hint(
            "how do I put frames back?",
            "torch.where(k.view(-1, 1, 1), v, x): the mask (f,) becomes (f, 1, 1), so that it lies on the frames of "
            "(z, f, h, w). It makes a new tensor, and copies bits.",
        ),
        Hint(
            "known frames drift",
            "The model's velocity on them is not 0, and need not be. Put them back after each step, before each "
            "question to the model (also Heun's second), and in x0.",
        ),
        Hint(
            "which times, when `begin` is below 1?",
            "[begin, *(t for t in time_grid(steps, shift).tolist() if t < begin)]. For 4 steps and begin = 0.6: 0.6, "
            "0.5, 0.25, 0. With begin = 1 it is the whole grid.",
        ),
        Hint(
            "show me nearly everything",
            "x = put(noise); for each (t, t'): v = ask(x, t); x0 = put(x - t v); if Heun and t' > 0: v = (v + "
            "ask(put(x + (t' - t) v), t')) / 2; x = put(x + (t' - t) v); yield State(step, t', x, x0). All of it for "
            "lists.",
        ),
    ],
)

EXERCISES = [KNOWN_LOSS, SAMPLE_KNOWN]
