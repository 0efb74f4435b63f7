"""From a scene to words: captions at four levels, with paraphrases, some of which are never used for training.

* ``alt``: what the web gives; names digits at best, and is sometimes missing, wrong or beside the point.
* ``short``: digit and direction (and colour, unless white): "a red 3 moving left and a 7 moving up".
* ``descriptive``: every attribute of the scene, so that ``parse(describe(scene)) == scene``.
* ``qa``: a question about the scene with its answer: "which way does the 3 move? left."

All text is lower case. The inverse, ``parse``, lives in ``course_lib.data.parser``.
Source of the levels: Betker et al. 2023 (DALL-E 3), section 2; the noise rates of ``alt`` are ours.
"""

import re
from random import Random
from typing import NamedTuple

import torch

from course_lib.data.parser import parse
from course_lib.data.scenes import DIRECTIONS, Mover, Scene
from course_lib.data.stated import Stated, StatedMover, agrees, fill

__all__ = [
    "ALT_RATES",
    "LEVELS",
    "QuestionAnswer",
    "Stated",
    "StatedMover",
    "agrees",
    "describe",
    "fill",
    "parse",
    "questions",
]

LEVELS = ("alt", "short", "descriptive", "qa")
ALT_RATES = {"missing": 0.3, "wrong": 0.1, "irrelevant": 0.1}  # the rest names the right digits
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNT_WORDS = ("no", "one", "two", "three")

# Each tuple of phrases is one slot: its first entry is the plain wording, "train" draws from the first tuple and
# "heldout" from the second, so that a model can be tested on wordings it has never read.
MOVING = (
    (
        "a {size} {colour} {digit} starts {at} and moves {direction} {speed}",
        "a {size} {colour} {digit} begins {at} and slides {direction} {speed}",
        "a {size} {colour} {digit} drifts {direction} {speed} from {place}",
        "there is a {size} {colour} {digit} {at}, moving {direction} {speed}",
        "a {size} {colour} {digit} glides {direction} {speed}, starting {at}",
        "a {digit} that is {size} and {colour} goes {direction} {speed} from {place}",
    ),
    (
        "a {size} {colour} {digit} sets off {at} and travels {direction} {speed}",
        "a {size} {colour} {digit} heads {direction} {speed}, beginning {at}",
    ),
)
STANDING = (
    (
        "a {size} {colour} {digit} stays still {at}",
        "a {size} {colour} {digit} rests {at}",
        "there is a {size} {colour} {digit} {at}, standing still",
        "a {size} {colour} {digit} does not move and stays {at}",
        "a {digit} that is {size} and {colour} waits {at}",
    ),
    ("a {size} {colour} {digit} sits {at} without moving", "a {size} {colour} {digit} remains still {at}"),
)
CANVAS = (
    (
        ". the clip has {frames} and is {height} pixels high and {width} pixels wide.",
        ". it has {frames} and is {height} pixels high and {width} wide.",
        ". {frames}, height {height}, width {width}.",
        ". it lasts {frames}, on a canvas {height} pixels high and {width} pixels wide.",
        ". the video is {height} pixels high, {width} pixels wide and {frames} long.",
    ),
    (". a video of {frames} with height {height} and width {width}.", ". {width} wide, {height} high, {frames}."),
)
SHORT_MOVING = (
    (
        "a {colour} {digit} moving {direction}",
        "a {colour} {digit} moves {direction}",
        "a {colour} {digit} going {direction}",
        "a {colour} {digit} that moves {direction}",
        "the {colour} digit {digit} moving {direction}",
        "a {colour} {digit} sliding {direction}",
    ),
    ("a {colour} {digit} travelling {direction}", "the {colour} number {digit} heads {direction}"),
)
SHORT_STANDING = (
    (
        "a {colour} {digit} standing still",
        "a {colour} {digit} stays still",
        "a {colour} {digit} that does not move",
        "the {colour} digit {digit} standing still",
        "a {colour} {digit} resting",
    ),
    ("a still {colour} {digit}", "the {colour} number {digit} remains still"),
)
SIZE_WORDS = {
    "small": (("small", "little"), ("tiny",)),
    "medium": (("medium-sized",), ("mid-sized",)),
    "large": (("large", "big"), ("huge",)),
}
SPEED_WORDS = {
    "slow": (("slowly", "at low speed"), ("at a slow pace",)),
    "medium": (("steadily", "at medium speed"), ("at a medium pace",)),
    "fast": (("quickly", "fast", "at high speed"), ("rapidly",)),
}
ALT_RIGHT = (
    ("a video of {digits}", "{digits}", "video of {digits}", "a clip with {digits}", "moving digits: {digits}"),
    ("a recording of {digits}", "here is {digits}"),
)
ALT_MISSING = (
    ("a video", "untitled", "a clip of something", "moving digits", "video without title"),
    ("a recording", "here is a clip"),
)
ALT_IRRELEVANT = (
    ("clip {id}", "video {id}", "my new video", "recording {id}", "please watch"),
    ("new recording", "watch clip {id}"),
)


class QuestionAnswer(NamedTuple):
    """One question about a scene and its answer, for instruction tuning."""

    question: str
    answer: str


def describe(
    scene: Scene, level: str = "descriptive", generator: torch.Generator | None = None, paraphrase: str | None = None
) -> str:
    """Put a scene into words.

    Args:
        level: one of "alt", "short", "descriptive", "qa".
        generator: draws the paraphrase, the noise of "alt" and the question of "qa". Without it: the plain wording,
            no noise, the first question.
        paraphrase: None for the plain wording, "train" or "heldout" for a random one of that set.
    Raises: ValueError for an unknown level or paraphrase, or a paraphrase without a generator.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is unknown; choose one of {', '.join(LEVELS)}")
    if paraphrase not in (None, "train", "heldout"):
        raise ValueError(f"paraphrase {paraphrase!r} is unknown; choose train, heldout or None")
    if paraphrase and generator is None:
        raise ValueError(f"paraphrase={paraphrase!r} draws at random; pass a generator as well")
    random = None if generator is None else Random(int(torch.randint(2**62, (), generator=generator)))
    words = _Wording(random, paraphrase)
    text = {"alt": _alt, "short": _short, "descriptive": _descriptive, "qa": _qa}[level](scene, words)
    text = re.sub(" +", " ", text)
    return re.sub(r"\ba (?=(8|eight|orange)\b)", "an ", text)


class _Wording:
    """Chooses among the phrases of a slot."""

    def __init__(self, random: Random | None, paraphrase: str | None):
        self.random, self.paraphrase = random, paraphrase

    def __call__(self, slot: tuple[tuple[str, ...], tuple[str, ...]]) -> str:
        train, heldout = slot
        return (
            train[0]
            if self.paraphrase is None
            else self.random.choice(heldout if self.paraphrase == "heldout" else train)
        )

    def digit(self, digit: int) -> str:
        return self(((str(digit), DIGIT_WORDS[digit]), (str(digit), DIGIT_WORDS[digit])))


def _descriptive(scene: Scene, words: _Wording) -> str:
    clauses = []
    for mover in scene.movers:
        template = words(STANDING if mover.direction == "still" else MOVING)
        place = f"the {mover.start}"
        slots = {
            "digit": words.digit(mover.digit),
            "size": words(SIZE_WORDS[mover.size]),
            "colour": mover.colour,
            "at": f"in {place}" if mover.start == "centre" else f"at {place}",
            "place": place,
            "speed": words(SPEED_WORDS[mover.speed]),
            "direction": mover.direction,
        }
        clauses.append(template.format(**slots))
    joined = clauses[0] + "".join(
        link + clause for link, clause in zip((", while ", ", and "), clauses[1:], strict=False)
    )
    frames = f"{scene.frames} frame" + "s" * (scene.frames != 1)
    return joined + words(CANVAS).format(frames=frames, height=scene.height, width=scene.width)


def _short(scene: Scene, words: _Wording) -> str:
    parts = []
    for mover in scene.movers:
        template = words(SHORT_STANDING if mover.direction == "still" else SHORT_MOVING)
        colour = "" if mover.colour == "white" else mover.colour
        parts.append(template.format(colour=colour, digit=words.digit(mover.digit), direction=mover.direction))
    return _enumerate(parts)


def _enumerate(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _alt(scene: Scene, words: _Wording) -> str:
    digits = [mover.digit for mover in scene.movers]
    if words.random is not None:
        chance = words.random.random()
        for kind, rate in ALT_RATES.items():
            if chance < rate:
                if kind == "missing":
                    return words(ALT_MISSING)
                if kind == "irrelevant":
                    return words(ALT_IRRELEVANT).format(id=f"{words.random.randrange(10_000):04d}")
                wrong = words.random.randrange(len(digits))
                digits[wrong] = words.random.choice([d for d in range(10) if d not in digits])
                break
            chance -= rate
    return words(ALT_RIGHT).format(digits=_enumerate([f"a {words.digit(digit)}" for digit in digits]))


def questions(scene: Scene) -> list[QuestionAnswer]:
    """Every question that the scene answers, in a fixed order; a digit that occurs twice is not asked about by name."""
    digits = [mover.digit for mover in scene.movers]
    named = _enumerate([f"a {digit}" for digit in digits])
    asked = [
        QuestionAnswer("which digits are there?" if len(digits) > 1 else "which digit is there?", f"{named}."),
        QuestionAnswer("how many digits are there?", f"{COUNT_WORDS[len(digits)]}."),
        QuestionAnswer("how long is the clip?", f"{scene.frames} frame{'s' * (scene.frames != 1)}."),
        QuestionAnswer("how large is the canvas?", f"{scene.height} pixels high and {scene.width} pixels wide."),
    ]
    for mover in scene.movers:
        if digits.count(mover.digit) == 1:
            asked += _questions_about(mover)
    for direction in DIRECTIONS:
        moving = [mover for mover in scene.movers if mover.direction == direction]
        if len(moving) == 1 and direction != "still":
            asked.append(QuestionAnswer(f"which digit moves {direction}?", f"the {moving[0].digit}."))
    return [QuestionAnswer(*(re.sub(r"\ba (?=8\b)", "an ", text) for text in pair)) for pair in asked]


def _questions_about(mover: Mover) -> list[QuestionAnswer]:
    the = f"the {mover.digit}"
    moves = mover.direction != "still"
    place = f"{'in' if mover.start == 'centre' else 'at'} the {mover.start}"
    names = list(DIRECTIONS)[:-1]
    opposite = names[(names.index(mover.direction) + 4) % 8] if moves else "right"
    asked = [
        QuestionAnswer(f"which way does {the} move?", f"{mover.direction}." if moves else "it stays still."),
        QuestionAnswer(f"where does {the} start?", f"{place}."),
        QuestionAnswer(f"what colour is {the}?", f"{mover.colour}."),
        QuestionAnswer(f"how large is {the}?", f"{SIZE_WORDS[mover.size][0][0]}."),
        QuestionAnswer(
            f"does {the} move {opposite}?", f"no, it moves {mover.direction}." if moves else "no, it stays still."
        ),
    ]
    if moves:
        asked.append(QuestionAnswer(f"how fast does {the} move?", f"{SPEED_WORDS[mover.speed][0][0]}."))
        asked.append(QuestionAnswer(f"does {the} move {mover.direction}?", "yes."))
    return asked


def _qa(scene: Scene, words: _Wording) -> str:
    asked = questions(scene)
    return " ".join(asked[0] if words.random is None else words.random.choice(asked))
