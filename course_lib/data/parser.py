"""From words back to a scene: the exact inverse of our captions, and a patient reader of what people type.

Every tagged word is given to the digit whose part of the sentence it stands in. A part begins with the noun phrase of
its digit ("a small red 3") and ends where the next one begins.
"""

from itertools import pairwise

from course_lib.data.phrases import EXAMPLE, Word, tagged_words
from course_lib.data.scenes import MAX_MOVERS, Scene
from course_lib.data.stated import Stated, StatedMover, complete

CANVAS = ("frames", "height", "width")
PREDICATES = ("start", "direction", "speed")  # what "a 3 and a 7 moving left" says of both


def parse(text: str) -> Scene | Stated:
    """Everything that a text states about a scene.

    Understands every caption of ``describe``, in all paraphrases, and much of what people type: "3 moves left",
    "digit three going left slowly", "two digits", "a seven and a 2, both drifting to the top right".

    Returns: a ``Scene`` if every attribute is stated, so that ``parse(describe(scene)) == scene``; otherwise
        ``Stated``, with None for whatever the text leaves open.
    Raises: ValueError for a text without words; naming a word that is not understood, a contradiction, or a number
        that fits nowhere.
    """
    words = tagged_words(text)
    if all(word.kind == "separator" for word in words):
        raise ValueError(f"type a sentence, for example {EXAMPLE}")
    canvas, count = _clip(words)
    subjects = [i for i, word in enumerate(words) if word.kind in ("digit", "noun")]
    begins = [_part_begin(words, i, previous) for previous, i in pairwise([-1, *subjects])]
    edges = [0, *begins[1:], len(words)]
    parts = [words[begin:end] for begin, end in pairwise(edges)]
    movers = [_mover(part) for part in parts]
    for k in reversed(range(len(subjects) - 1)):
        if _is_bare(words[subjects[k] + 1 : edges[k + 1]]):
            shared = {name: movers[k + 1][name] for name in PREDICATES if name in movers[k + 1]}
            movers[k] = shared | movers[k]
    if not subjects and count:  # "two digits moving left"
        movers = movers * count
    if not subjects and not any(movers) and not count:
        movers = []
    if count and len(movers) > count:
        raise ValueError(f"the text announces {count} digits but describes {len(movers)}: {text!r}")
    movers += [{}] * ((count or 0) - len(movers))
    if len(movers) > MAX_MOVERS:
        raise ValueError(f"the text names {len(movers)} digits, but a scene holds at most {MAX_MOVERS}: {text!r}")
    return complete(Stated(tuple(StatedMover(**mover) for mover in movers), **canvas))


def _clip(words: list[Word]) -> tuple[dict[str, int], int | None]:
    """What is said of the clip as a whole: frames, height, width, and how many digits there are."""
    known: dict = {}
    for word in words:
        if word.kind == "tag":
            name, value = word.text.split("=")
            if name in (*CANVAS, "count"):
                _state(known, name, int(value), "the clip")
    return {name: known[name] for name in CANVAS if name in known}, known.get("count")


def _part_begin(words: list[Word], subject: int, previous: int) -> int:
    """Where the part of a digit begins: at the articles and adjectives in front of it, back to the digit before."""
    begin = subject
    while begin - 1 > previous and words[begin - 1].in_front:
        begin -= 1
    # "..., at the top-left a 7": a place between a separator and the noun phrase belongs to what follows
    if begin - 2 > previous and words[begin - 1].text.startswith("start=") and words[begin - 2].kind == "separator":
        begin -= 1
    return begin


def _mover(part: list[Word]) -> dict[str, int | str]:
    mover: dict = {}
    for word in part:
        subject = f"the {mover['digit']}" if "digit" in mover else "a digit"
        if word.kind == "digit":
            _state(mover, "digit", int(word.text), subject)
        elif word.kind == "tag":
            name, value = word.text.split("=")
            if name not in (*CANVAS, "count"):
                _state(mover, name, value, subject)
    return mover


def _state(known: dict, name: str, value: int | str, subject: str) -> None:
    if known.setdefault(name, value) != value:
        raise ValueError(
            f"the text gives {subject} two values of {name}, {known[name]} and {value}; say which you mean"
        )


def _is_bare(after: list[Word]) -> bool:
    """Whether a digit is followed by nothing but "and" or a comma, as the 3 in "a 3 and a 7 moving left"."""
    return all(word.kind == "separator" for word in after) and any(word.text in ("and", ",") for word in after)
