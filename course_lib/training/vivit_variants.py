"""Which way does the digit move? Tasks that no single frame can answer, and how the variants of ViViT fare on them.

The digits of ``wrapping_clips`` move on a canvas without walls: what leaves on the right comes back on the left. With a
uniform start every frame of every direction is uniform, so a frame by itself says nothing about the direction. Nor does
a heap of frames say which way along its line the digit went: played backwards, a clip shows the same frames, and the
answer is the opposite one.

``python -m course_lib.training.vivit_variants`` trains every variant with several seeds and writes what it measured to
``data/experiments/vivit_variants.json``; lesson 11 shows it.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course_lib import paths
from course_lib.data.digits import Digits, load_digits
from course_lib.data.scenes import DIRECTIONS
from course_lib.models.vivit import ENCODERS, ViViT, start_from_image
from course_lib.training.loop import Step, muon_and_adamw, train

NAMES = tuple(name for name in DIRECTIONS if name != "still")  # 8 directions, each 45 degrees from the last
FRAMES, EDGE, DIGIT, SPEEDS = 8, 24, 14, (1, 2, 3)
SIZES = dict(d=48, heads=4, layers=2, d_ff=96)
FRAME_BOX, TUBELET = (1, 6, 6), (2, 6, 6)
DATES = 0.2


class Moves(NamedTuple):
    """Clips and what is to be known about them; indices into ``NAMES`` for the direction."""

    video: Float[Tensor, "n 1 frames edge edge"]
    direction: Int[Tensor, " n"]
    digit: Int[Tensor, " n"]


def wrapping_clips(digits: Digits, n: int, seed: int, *, turn: bool = False, frames: int = FRAMES) -> Moves:
    """Draw ``n`` clips of one digit each that moves without walls, at 1 to 3 pixels per frame.

    Args:
        digits: handwriting to draw from.
        seed: equal seeds give equal clips.
        turn: the digit moves one way for half of the clip and the same way back; ``direction`` is the first one.
        frames: of each clip. With ``turn`` an even number.
    Returns: videos (n, 1, frames, 24, 24) in [-1, 1], directions and digits. Every start, digit and direction is
        equally likely, whatever the others are.
    """
    g = torch.Generator().manual_seed(seed)
    which = torch.randint(len(digits), (n,), generator=g)
    direction = torch.randint(len(NAMES), (n,), generator=g)
    speed = torch.tensor(SPEEDS)[torch.randint(len(SPEEDS), (n,), generator=g)]
    start = torch.randint(EDGE, (n, 2), generator=g)
    right_down = torch.tensor([DIRECTIONS[name] for name in NAMES])[direction]
    steps = torch.arange(frames)
    if turn:
        steps = torch.minimum(steps, frames - 1 - steps)  # 0 1 2 3 3 2 1 0
    at = start[:, None] + steps[:, None] * (speed[:, None] * right_down.flip(-1))[:, None]  # (n, f, 2), top and left
    canvas = torch.zeros(n, EDGE, EDGE)
    canvas[:, :DIGIT, :DIGIT] = digits.at_size(DIGIT)[which] / 127.5
    rows, columns = ((torch.arange(EDGE) - at[..., axis, None]) % EDGE for axis in (0, 1))  # (n, f, edge)
    clip = torch.arange(n)[:, None, None, None]
    video = canvas[clip, rows[..., :, None], columns[..., None, :]] - 1
    return Moves(video[:, None], direction, digits.labels[which])


def opposite(direction: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The directions turned round: right becomes left."""
    return (direction + len(NAMES) // 2) % len(NAMES)


def with_their_reverse(clips: Moves) -> Moves:
    """The clips of a digit that moves one way, followed by the same played backwards: same frames, opposite answers."""
    video = torch.cat([clips.video, clips.video.flip(2)])
    return Moves(video, torch.cat([clips.direction, opposite(clips.direction)]), clips.digit.repeat(2))


def with_their_other_half(clips: Moves) -> Moves:
    """Clips that turn, followed by the same with their halves exchanged: same pairs of frames, opposite answers."""
    middle = clips.video.shape[2] // 2
    swapped = torch.cat([clips.video[:, :, middle:], clips.video[:, :, :middle]], dim=2)
    direction = torch.cat([clips.direction, opposite(clips.direction)])
    return Moves(torch.cat([clips.video, swapped]), direction, clips.digit.repeat(2))


def build(
    encoder: Callable[..., nn.Module],
    box: tuple[int, int, int],
    *,
    classes: int = len(NAMES),
    frames: int = FRAMES,
    dated: bool = True,
    seed: int = 0,
    **options,
) -> ViViT:
    """A small ViViT for these clips.

    Frames are told apart from the start by vectors of size ``DATES``, added to the positions. The paper's code starts
    with 0.02, which a few hundred steps do not outgrow.
    """
    torch.manual_seed(seed)
    model = ViViT(
        (frames, EDGE, EDGE), box, 1, classes, **SIZES, encoder=encoder, dated=dated and frames > box[0], **options
    )
    with torch.no_grad():
        if len(model.positions) > 1:
            model.positions += DATES * torch.randn(len(model.positions), 1, SIZES["d"])
        if hasattr(model.encoder, "time_positions"):
            model.encoder.time_positions *= DATES / 0.02
    return model


def fit(
    model: ViViT,
    video: Tensor,
    label: Int[Tensor, " n"],
    steps: int,
    *,
    seed: int = 0,
    batch: int = 64,
    lr: float = 0.02,
) -> Iterator[Step]:
    """Train on random batches of these clips: Muon (``lr``) for the blocks' matrices, AdamW for the rest."""

    def loss_of_step(step: int) -> Tensor:
        chosen = torch.randint(len(video), (batch,), generator=torch.Generator().manual_seed(step + 100_000 * seed))
        return F.cross_entropy(model(video[chosen]), label[chosen])

    optimizers = muon_and_adamw(model, [model.encoder], muon_lr=lr, adamw_lr=3e-3)
    return train(loss_of_step, model, optimizers, steps=steps)


@torch.no_grad()
def answers(model: ViViT, video: Tensor) -> Int[Tensor, " n"]:
    """The likeliest class of each clip."""
    return torch.cat([model(part).argmax(-1) for part in video.split(256)])


def scores(model: ViViT, clips: Moves) -> dict[str, float]:
    """Share of directions that are right, and of lines that are (right or the opposite of it)."""
    said = answers(model, clips.video)
    right = said == clips.direction
    return {"direction": _share(right), "line": _share(right | (said == opposite(clips.direction)))}


# ------------------------------------------------------------------------------------------------- the recorded runs

TURN_STEPS, FRAME_STEPS, START_STEPS, IMAGE_STEPS = 200, 700, 100, 600
FEW_CLIPS = 400
STARTS = ("random", "inflation", "central frame")


def turn_runs(source: Digits, unseen: Digits, seed: int, done: Collection[str]) -> Iterator[tuple[str, dict]]:
    """Which way first? Boxes of two frames."""
    clips = wrapping_clips(source, 8000, 2 * seed, turn=True)
    test = with_their_other_half(wrapping_clips(unseen, 500, 2 * seed + 1, turn=True))
    for name, dated in [("frame pooling", False), *((name, True) for name in ENCODERS)]:
        label = name if dated else f"{name}, no dates"
        if label not in done:
            model = build(ENCODERS[name], TUBELET, dated=dated, seed=seed)
            for _ in fit(model, clips.video, clips.direction, TURN_STEPS, seed=seed):
                pass
            yield label, scores(model, test)


def frame_runs(source: Digits, unseen: Digits, seed: int, done: Collection[str]) -> Iterator[tuple[str, list]]:
    """Which way? Boxes of one frame, so that only attention between frames can tell. Scores every 50 steps."""
    clips = wrapping_clips(source, 20_000, 2 * seed)
    test = with_their_reverse(wrapping_clips(unseen, 500, 2 * seed + 1))
    for name in ENCODERS:
        if name not in done:
            model, curve = build(ENCODERS[name], FRAME_BOX, seed=seed), []
            for step in fit(model, clips.video, clips.direction, FRAME_STEPS, seed=seed):
                if step.step % 50 == 0:
                    curve.append({"step": step.step, **scores(model, test)})
            yield name, curve


def start_runs(source: Digits, unseen: Digits, seed: int, done: Collection[str]) -> Iterator[tuple[str, float]]:
    """Which digit? Few clips to learn from, with and without the weights of a model that has read many single "
    "frames."""
    images = wrapping_clips(source, 8000, 2 * seed, frames=1)
    image_model = build(ENCODERS["1 joint"], FRAME_BOX, classes=10, frames=1, seed=seed)
    for _ in fit(image_model, images.video, images.digit, IMAGE_STEPS, seed=seed):
        pass
    clips, test = wrapping_clips(source, FEW_CLIPS, 2 * seed + 100), wrapping_clips(unseen, 1000, 2 * seed + 1)
    frames = wrapping_clips(unseen, 1000, 2 * seed + 1, frames=1)
    yield "image model on single frames", _share(answers(image_model, frames.video) == frames.digit)
    for start in STARTS:
        if start not in done:
            model = build(ENCODERS["1 joint"], TUBELET, classes=10, seed=seed)
            if start != "random":
                start_from_image(model, image_model, start)
            for _ in fit(model, clips.video, clips.digit, START_STEPS, seed=seed, lr=0.01):
                pass
            yield start, _share(answers(model, test.video) == test.digit)


def _share(right: Bool[Tensor, " n"]) -> float:
    return round(right.float().mean().item(), 4)


RUNS = {"starts": start_runs, "turn": turn_runs, "frames": frame_runs}
HOW_MANY = {"starts": 1 + len(STARTS), "turn": 1 + len(ENCODERS), "frames": len(ENCODERS)}


def main() -> None:
    """Train what is not in the file yet and write it after every seed, so that a stopped run can go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, default=3, help="of the variants; the starts, which are quick, get two more"
    )
    parser.add_argument("--only", choices=list(RUNS), help="one of the three experiments")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop about then; the next call goes on")
    asked = parser.parse_args()
    source, unseen = load_digits("embedded"), load_digits("embedded", "heldout")
    file = paths.repo_root() / "data" / "experiments" / "vivit_variants.json"
    plan = {
        "command": "python -m course_lib.training.vivit_variants",
        "steps": {"turn": TURN_STEPS, "frames": FRAME_STEPS, "starts": START_STEPS, "image model": IMAGE_STEPS},
        "few clips": FEW_CLIPS,
    }
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if {name: found.get(name) for name in plan} != plan:  # other steps: nothing of it can be used
        found = {**plan, "device": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"}
        found |= {"minutes": 0.0, **{name: [] for name in RUNS}}
    began = last = time.perf_counter()
    for seed in range(asked.seeds + 2):
        for name, runs in RUNS.items():
            if asked.only not in (None, name) or (name != "starts" and seed >= asked.seeds):
                continue
            if all(one["seed"] != seed for one in found[name]):
                found[name].append({"seed": seed, "runs": {}})
            of_seed = next(one["runs"] for one in found[name] if one["seed"] == seed)
            if len(of_seed) == HOW_MANY[name]:
                continue
            for label, result in runs(source, unseen, seed, of_seed):
                of_seed[label] = result
                now = time.perf_counter()
                found["minutes"], last = round(found["minutes"] + (now - last) / 60, 2), now
                print(name, seed, label, json.dumps(result)[-120:], flush=True)
                paths.write_atomically(file, json.dumps(found, indent=1) + "\n")
                if now - began > 60 * asked.minutes:
                    return


if __name__ == "__main__":
    main()
