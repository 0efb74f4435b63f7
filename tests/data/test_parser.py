import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.data.parser import parse
from course_lib.data.phrases import ADJECTIVES, ADVERBS, FILLERS, NOUNS, SEPARATORS
from course_lib.data.scenes import Mover, Scene
from course_lib.data.stated import Stated, StatedMover
from course_lib.data.tokenizer import WORDS


def said(text: str) -> list[dict]:
    return [{k: v for k, v in vars(mover).items() if v is not None} for mover in parse(text).movers]


LEFT = {"digit": 3, "direction": "left"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 moves left", [LEFT]),
        ("three moving left", [LEFT]),
        ("Show me a 3 that moves LEFT, please!", [LEFT]),
        ("digit three going left slowly", [LEFT | {"speed": "slow"}]),
        ("digit: 3 direction=left", [LEFT]),
        ("a 3 sliding leftwards", [LEFT]),
        ("a 3 moving to the left", [LEFT]),
        ("a left-moving 3", [LEFT]),
        ("one 3 moving left", [LEFT]),
        ("a 3 moving left at a fast pace", [LEFT | {"speed": "fast"}]),
        ("a slow 3 moving left", [LEFT | {"speed": "slow"}]),
        ("a 3 drifting up and to the right", [{"digit": 3, "direction": "up-right"}]),
        ("a 3 going right and down", [{"digit": 3, "direction": "down-right"}]),
        ("a 3 towards the lower left corner", [{"digit": 3, "direction": "down-left"}]),
        ("a 3 doesn't move", [{"digit": 3, "direction": "still"}]),
        ("the 3 isn\u2019t moving", [{"digit": 3, "direction": "still"}]),
        ("a motionless 3", [{"digit": 3, "direction": "still"}]),
        ("a 3 from left to right", [{"digit": 3, "start": "middle-left", "direction": "right"}]),
        ("a 3 in the upper right corner", [{"digit": 3, "start": "top-right"}]),
        ("a 3 in the center", [{"digit": 3, "start": "centre"}]),
        ("a 3 at the bottom", [{"digit": 3, "start": "bottom-middle"}]),
        ("a tiny, violet 3", [{"digit": 3, "size": "small", "colour": "purple"}]),
        ("a medium 3 at medium speed", [{"digit": 3, "size": "medium", "speed": "medium"}]),
        ("a 3 that's red", [{"digit": 3, "colour": "red"}]),
        ("a red digit moving up", [{"colour": "red", "direction": "up"}]),
        ("moving left", [{"direction": "left"}]),
        ("two digits moving left", [{"direction": "left"}] * 2),
        ("two digits: a 3 and a 4", [{"digit": 3}, {"digit": 4}]),
        ("two 3s moving left", [LEFT, LEFT]),
        ("two sixes", [{"digit": 6}] * 2),
        ("a seven and a 2 moving up", [{"digit": 7, "direction": "up"}, {"digit": 2, "direction": "up"}]),
        ("a red 7, a 2 and an 8 moving up", [
            {"digit": 7, "colour": "red", "direction": "up"},
            {"digit": 2, "direction": "up"},
            {"digit": 8, "direction": "up"},
        ]),
        ("a 7 standing still and a 2 moving up", [{"digit": 7, "direction": "still"}, {"digit": 2, "direction": "up"}]),
        ("3 left 7 up", [LEFT, {"digit": 7, "direction": "up"}]),
        ("a 3 moving left small 7 moving up", [LEFT, {"digit": 7, "size": "small", "direction": "up"}]),
        ("the 3 is red and the 7 is blue", [{"digit": 3, "colour": "red"}, {"digit": 7, "colour": "blue"}]),
        ("3 moves fast, a 7 moves slow", [{"digit": 3, "speed": "fast"}, {"digit": 7, "speed": "slow"}]),
        (
            "at the top-left a 3 moves right, at the bottom-right a 7 moves left",
            [
                {"digit": 3, "start": "top-left", "direction": "right"},
                {"digit": 7, "start": "bottom-right", "direction": "left"},
            ],
        ),
        ("clip 0412", []),
        ("untitled", []),
    ],
)  # fmt: skip
def test_what_people_type(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(
    ("text", "frames", "height", "width"),
    [
        ("a 3, 16 frames", 16, None, None),
        ("a 3 for nine frames", 9, None, None),
        ("1 frame of a 3", 1, None, None),
        ("a 16-frame clip of a 3", 16, None, None),
        ("a 3, 64x64", None, 64, 64),
        ("a 3 on 48 by 48 pixels", None, 48, 48),
        ("a 3, 48 high and 64 px wide", None, 48, 64),
        ("height: 48, width of 64, a 3", None, 48, 64),
        ("width=64 height=48 3", None, 48, 64),
    ],
)
def test_numbers_that_belong_to_the_clip(text, frames, height, width):
    assert parse(text) == Stated((StatedMover(3),), frames, height, width)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("which digit moves up? the 3.", [{"digit": 3, "direction": "up"}]),
        ("does the red 3 move up? no, it moves left.", [{"digit": 3, "colour": "red"} | LEFT]),
        ("does the 3 move left? yes.", [LEFT]),
        ("does the 3 move left? no.", [{"digit": 3}]),
        ("how large is the 3? small.", [{"digit": 3, "size": "small"}]),
        ("how fast does the 3 move? quickly.", [{"digit": 3, "speed": "fast"}]),
        ("how many digits are there? two.", [{}, {}]),
        ("which way does the 3 move?", [{"digit": 3}]),
    ],
)
def test_questions_state_what_their_answers_say(text, expected):
    assert said(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat moving left", '^I do not know the word "cat". Try: "a 3 moving left".$'),
        ("a 3 moving lefft", '^I do not know the word "lefft"; did you mean "left"[?] Try: "a 3 moving left".$'),
        ("a 3 movign left", 'did you mean "moving"'),
        ("a dog moving left", 'the word "dog". Try'),  # nearly "do", but nobody means that
        ("a hall", 'the word "hall". Try'),  # nearly "small", but for the first letter
        ("a 3 @ 7", 'I do not know the sign "@". Try'),
        ("a pink 3", 'the word "pink"'),
        ("a 3 not red", 'the word "not"'),
        ("", '^type a sentence, for example "a 3 moving left".$'),
        (" ... ", "^type a sentence"),
        ("17 moving left", "17 is not a digit from 0 to 9.*'17 frames'"),
        ("a 3 moving left then right", "the 3 two values of direction, left and right"),
        ("a red blue 3", "two values of colour, red and blue"),
        ("3 for 8 frames, 9 frames", "the clip two values of frames, 8 and 9"),
        ("a 3, 64x48", "'64x48' does not say which is the height; write '64 high and 48 wide'"),
        ("a 3 to the right of a 7", "relates digits to each other"),
        ("3, 4, 5 and 6", "names 4 digits, but a scene holds at most 3"),
        ("two digits: a 3, a 4 and a 5", "announces 2 digits but describes 3"),
        ("4 digits", "names 4 digits, but"),
        ("size=3x", 'the word "x"'),
    ],
)
def test_what_is_not_understood_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@given(st.text(max_size=60))
@settings(derandomize=True, max_examples=400)
def test_any_text_gives_an_answer_or_a_value_error(text):
    _parse_or_refuse(text)


@given(
    st.lists(
        st.sampled_from([*sorted(WORDS), *sorted(ADJECTIVES), *sorted(ADVERBS), *"0123456789,.?=x", "64"]), max_size=14
    )
)
@settings(derandomize=True, max_examples=600, deadline=None)
def test_any_jumble_of_known_words_gives_an_answer_or_a_value_error(words):
    _parse_or_refuse(" ".join(words))


def _parse_or_refuse(text):
    try:
        stated = parse(text)
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(stated, Scene | Stated)
        for mover in stated.movers:
            Mover(**{k: v for k, v in vars(mover).items() if v is not None} | {"digit": mover.digit or 0})


def test_a_word_has_one_role():
    roles = [set(ADJECTIVES), set(ADVERBS), NOUNS, SEPARATORS, FILLERS]
    for i, role in enumerate(roles):
        for other in roles[i + 1 :]:
            assert not role & other
