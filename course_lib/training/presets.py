"""Sizes and lengths of a whole training run, one line of data each."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from course_lib.data.scenes import DIRECTIONS

MOVING = tuple(name for name in DIRECTIONS if name != "still")


@dataclass(frozen=True)
class Preset:
    """Everything that decides what a run computes, except its seed and its digits."""

    # the world
    frames: int = 16
    height: int = 48
    width: int = 48
    directions: tuple[str, ...] = MOVING
    speeds: tuple[str, ...] = ("slow", "medium")
    # the autoencoder
    ae_width: int = 48
    ae_width_low: int = 96
    ae_blocks: int = 1
    ae_steps: int = 800
    ae_batch: int = 16  # pairs of frames
    ae_lr: float = 2e-3
    ae_ink: float = 5.0
    ae_kl: float = 1e-3
    ae_slow: float = 0.02
    # the cache of latents
    clips: int = 4096
    captions: int = 4  # per clip
    short: float = 0.2  # share of short captions; the rest are descriptive
    paraphrases: bool = False  # random wordings: a bag of words needs many more steps to learn what they share
    # the transformer
    patch: tuple[int, int, int] = (2, 2, 2)
    dim: int = 192
    depth: int = 6
    heads: int = 6
    steps: int = 1200
    image_share: float = 0.5  # of the steps, at the beginning, on single temporal patches
    image_batch: int = 128
    batch: int = 32
    shift: float = 2.5  # of the training times towards noise: the largest single gain after Muon
    drop: float = 0.1  # share of captions replaced by nothing, for guidance
    muon_lr: float = 0.01
    adamw_lr: float = 1.5e-3
    ema: float = 0.999
    # looking at the result
    guidance: float = 3.0
    sample_steps: int = 12
    evaluated: int = 128  # clips
    previews: int = 8  # rows of the sample sheet


_64 = {"height": 64, "width": 64, "speeds": ("slow", "medium", "fast")}

PRESETS = {
    # embedded digits, seed 0, 128 clips: digit as asked 92 % (real clips 98 %), direction 99 %, residual 1.2 px;
    # 7.2 minutes on two nearly quiet cores
    "tiny": Preset(),
    # not measured yet: a larger canvas, three speeds, more of everything
    "laptop": Preset(**_64, ae_steps=6000, clips=16_384, dim=240, steps=6000),
    "gpu": Preset(**_64, ae_steps=20_000, ae_batch=128, clips=65_536, dim=384, depth=12, steps=20_000, batch=128),
    # for tests: every stage in seconds, nothing worth looking at
    "mini": Preset(
        *(4, 32, 32),
        **{"ae_width": 8, "ae_width_low": 12, "ae_steps": 12, "ae_batch": 4, "clips": 16, "dim": 24, "depth": 2},
        **{"heads": 2, "steps": 16, "image_batch": 6, "batch": 3, "sample_steps": 2, "evaluated": 4, "previews": 2},
    ),
}


def choose(name: str, changes: dict[str, str] | None = None) -> Preset:
    """A preset by name, with single values changed, given as text: ``{"steps": "100"}``.

    Raises: ValueError for an unknown preset or field, or a value of the wrong kind.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    kinds = {field.name: field.type for field in fields(Preset)}
    values: dict[str, Any] = {}
    for key, text in (changes or {}).items():
        if key not in kinds:
            raise ValueError(f"a preset has no field {key!r}; it has {', '.join(kinds)}")
        kind = kinds[key]
        try:
            if kind is bool:
                values[key] = {"true": True, "false": False}[text.lower()]
            elif kind in (int, float):
                values[key] = kind(text)
            else:
                parts = tuple(text.split(","))
                values[key] = tuple(map(int, parts)) if key == "patch" else parts
        except (ValueError, KeyError) as error:
            raise ValueError(f"{key}={text!r} is not of type {kind}") from error
    return replace(PRESETS[name], **values)


def settings(preset: Preset) -> dict[str, Any]:
    """The preset as plain data that JSON keeps unchanged."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(preset).items()}
