import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.data import captions
from course_lib.data.captions import ALT_RATES, LEVELS, describe, questions
from course_lib.data.parser import parse
from course_lib.data.scenes import COLOURS, DIRECTIONS, SIZES, SPEEDS, STARTS, Mover, Scene
from course_lib.data.stated import Stated, StatedMover, agrees
from course_lib.data.tokenizer import Tokenizer

# beartype looks at a random element of a sequence, also while hypothesis builds one: nothing that we could change.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
tokenizer = Tokenizer()
movers = st.builds(
    Mover,
    digit=st.integers(0, 9),
    size=st.sampled_from(sorted(SIZES)),
    colour=st.sampled_from(sorted(COLOURS)),
    start=st.sampled_from(STARTS),
    direction=st.sampled_from(sorted(DIRECTIONS)),
    speed=st.sampled_from(sorted(SPEEDS)),
)
scenes = st.builds(
    Scene,
    movers=st.lists(movers, min_size=1, max_size=3).map(tuple),
    frames=st.integers(1, 128),
    height=st.integers(36, 1024),
    width=st.integers(36, 1024),
)
wordings = st.tuples(st.sampled_from((None, "train", "heldout")), st.integers(0, 2**31))
thorough = settings(deadline=None, derandomize=True, max_examples=150)
brief = settings(thorough, max_examples=60)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(scenes, wordings)
@thorough
def test_the_descriptive_caption_says_everything_and_the_parser_reads_it_back(scene, wording):
    paraphrase, seed = wording
    assert parse(describe(scene)) == scene
    assert parse(describe(scene, "descriptive", generator(seed), paraphrase)) == scene


@given(scenes, wordings)
@thorough
def test_the_short_caption_states_digit_direction_and_colour_and_nothing_else(scene, wording):
    paraphrase, seed = wording
    stated = tuple(
        StatedMover(m.digit, colour=None if m.colour == "white" else m.colour, direction=m.direction)
        for m in scene.movers
    )
    assert parse(describe(scene, "short", generator(seed), paraphrase)) == Stated(stated)


class Chosen(captions._Wording):
    """Stands in for the random choice of wordings: one given phrase, and the i-th of every other slot."""

    def __init__(self, phrase: str, i: int):
        self.phrase, self.i = phrase, i

    def __call__(self, slot):
        phrases = slot[0] + slot[1]
        return self.phrase if self.phrase in phrases else phrases[self.i % len(phrases)]

    def digit(self, digit: int) -> str:
        return (str(digit), captions.DIGIT_WORDS[digit])[self.i % 2]


@pytest.mark.parametrize("name", ["MOVING", "STANDING", "SHORT_MOVING", "SHORT_STANDING"])
def test_every_single_phrase_is_read_back(name):
    still = "still" if "STANDING" in name else None
    for phrase in (*getattr(captions, name)[0], *getattr(captions, name)[1]):
        for i in range(9):  # as many as the longest of the other slots
            size, speed = sorted(SIZES)[i % 3], sorted(SPEEDS)[i // 3]
            first = Mover(i, size, "blue", STARTS[i], still or "up-left", speed)
            second = Mover(9 - i, "small", "red", STARTS[8 - i], still or "down", "fast")
            scene = Scene((first, second), i + 1, 36 + i, 97 - i)
            if "SHORT" in name:
                stated = [StatedMover(m.digit, colour=m.colour, direction=m.direction) for m in scene.movers]
                assert parse(captions._short(scene, Chosen(phrase, i))) == Stated(tuple(stated)), phrase
            else:
                assert parse(captions._descriptive(scene, Chosen(phrase, i))) == scene, phrase


@given(scenes, wordings)
@brief
def test_every_question_and_answer_agrees_with_its_scene_and_states_something(scene, wording):
    for pair in questions(scene):
        stated = parse(" ".join(pair))
        assert agrees(stated, scene), pair
        assert stated != Stated(), pair
    paraphrase, seed = wording
    question, answer = describe(scene, "qa", generator(seed), paraphrase).split("? ")
    assert (question + "?", answer) in questions(scene)


@given(scenes, st.sampled_from(LEVELS), wordings)
@thorough
def test_every_caption_survives_the_tokenizer(scene, level, wording):
    paraphrase, seed = wording
    text = describe(scene, level, generator(seed), paraphrase)
    ids = tokenizer.encode(text)
    assert tokenizer.unk not in ids.tolist()
    assert tokenizer.decode(ids) == text
    assert len(ids) <= 96


def test_every_phrase_of_every_slot_is_in_the_vocabulary():
    names = "MOVING STANDING CANVAS SHORT_MOVING SHORT_STANDING ALT_RIGHT ALT_MISSING ALT_IRRELEVANT".split()
    slots = [getattr(captions, name) for name in names]
    slots += [
        *captions.SIZE_WORDS.values(),
        *captions.SPEED_WORDS.values(),
        (captions.DIGIT_WORDS, captions.COUNT_WORDS),
    ]
    for train, heldout in slots:
        for phrase in (*train, *heldout):
            assert "<unk>" not in tokenizer.tokens(re.sub(r"\{.*?\}", "", phrase)), phrase


def test_captions_read_like_english():
    scene = Scene((Mover(8, "small", "orange", "top-left", "up-right", "fast"), Mover(3, direction="still")), 1, 48, 64)
    assert describe(scene) == (
        "a small orange 8 starts at the top-left and moves up-right quickly, while a medium-sized white 3 stays still "
        "in the centre. the clip has 1 frame and is 48 pixels high and 64 pixels wide."
    )
    assert describe(scene, "short") == "an orange 8 moving up-right and a 3 standing still"
    assert describe(scene, "alt") == "a video of an 8 and a 3"
    assert describe(scene, "qa") == "which digits are there? an 8 and a 3."
    three = Scene((Mover(1), Mover(2), Mover(3)))
    assert describe(three, "short") == "a 1 moving right, a 2 moving right and a 3 moving right"
    for level in LEVELS:
        for seed in range(300):
            text = describe(scene, level, generator(seed), "train" if seed % 2 else "heldout")
            assert "  " not in text and text == text.strip() == text.lower()
            assert not re.search(r"\ba (8|eight|orange)\b|\ban (?!(8|eight|orange)\b)|\{|\}", text), text


@pytest.mark.parametrize("level", ["short", "descriptive"])
def test_training_and_held_out_wordings_are_many_and_disjoint(level):
    scene = Scene((Mover(3, "small", "red", "centre", "left", "slow"),))
    digit = re.compile(r"\bthree\b")
    seen = {
        kind: Counter(digit.sub("3", describe(scene, level, generator(seed), kind)) for seed in range(600))
        for kind in ("train", "heldout")
    }
    assert len(seen["train"]) >= 5 and len(seen["heldout"]) >= 2
    assert not set(seen["train"]) & set(seen["heldout"])
    assert describe(scene, level) in seen["train"]  # the plain wording is one of the training wordings
    assert describe(scene, level, generator(5)) == describe(scene, level)


def test_every_slot_has_enough_wordings_and_no_wording_is_in_both_sets():
    for name in ("MOVING", "STANDING", "CANVAS", "SHORT_MOVING", "SHORT_STANDING", "ALT_RIGHT", "ALT_MISSING"):
        train, heldout = getattr(captions, name)
        assert len(set(train)) >= 5 and len(set(heldout)) >= 2 and not set(train) & set(heldout), name
    for slot in (*captions.SIZE_WORDS.values(), *captions.SPEED_WORDS.values()):
        assert slot[0] and slot[1] and not set(slot[0]) & set(slot[1])


def test_alt_text_is_missing_wrong_and_irrelevant_at_the_stated_rates():
    scene = Scene((Mover(3),))
    g, n, kinds = generator(0), 4000, Counter()
    for _ in range(n):
        text = describe(scene, "alt", g, "train")
        digits = [mover.digit for mover in parse(text).movers]
        irrelevant = re.fullmatch(r"(clip|video|recording) \d{4}|my new video|please watch", text)
        kinds["irrelevant" if irrelevant else "missing" if not digits else "right" if digits == [3] else "wrong"] += 1
    for kind, rate in {**ALT_RATES, "right": 1 - sum(ALT_RATES.values())}.items():
        assert abs(kinds[kind] / n - rate) < 0.03, kinds


def test_a_wrong_alt_text_still_names_as_many_digits():
    scene = Scene((Mover(3), Mover(5)))
    g = generator(1)
    named = [[m.digit for m in parse(describe(scene, "alt", g)).movers] for _ in range(500)]
    wrong = [digits for digits in named if digits and digits != [3, 5]]
    assert wrong and all(len(digits) == 2 and (digits[0] == 3) != (digits[1] == 5) for digits in wrong)


def test_describe_depends_on_nothing_but_its_arguments():
    scene = Scene((Mover(3), Mover(7)))
    for level in LEVELS:
        texts = [describe(scene, level, generator(9), "train") for _ in range(2)]
        assert texts[0] == texts[1]
        assert describe(scene, level) == describe(scene, level)
        many = {describe(scene, level, generator(seed), "train") for seed in range(40)}
        assert len(many) > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("long",), "level 'long' is unknown; choose one of alt, short"),
        (("short", None, "other"), "paraphrase 'other' is unknown"),
        (("short", None, "train"), "pass a generator"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        describe(Scene((Mover(1),)), *arguments)


def test_a_digit_that_occurs_twice_is_not_asked_about_by_name():
    asked = [pair.question for pair in questions(Scene((Mover(3), Mover(3, direction="up"), Mover(7))))]
    assert not any("the 3" in question for question in asked)
    assert any("the 7" in question for question in asked)
    assert len(asked) == len(set(asked))
