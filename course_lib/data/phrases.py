"""From raw text to tagged words: the parser's ears.

Phrases of several words become one tag, ``name=value``, by the rewriting rules below; then every word is looked up, and
one that nobody knows is an error, because a prompt that is half understood shows something that nobody asked for.
"""

import re
from collections.abc import Callable
from difflib import get_close_matches
from itertools import pairwise
from typing import NamedTuple

from course_lib.data.scenes import COLOURS, DIRECTIONS, STARTS

NUMBER_WORDS = {word: i for i, word in enumerate("zero one two three four five six seven eight nine".split())}
WAYS = tuple(name for name in DIRECTIONS if name != "still")
EXAMPLE = '"a 3 moving left".'  # ends every message that sends somebody back to the keyboard


def _tags(name: str, words: dict[str, str]) -> dict[str, str]:
    return {word: f"{name}={value}" for value, synonyms in words.items() for word in synonyms.split()}


ADJECTIVES = {  # may stand in front of their digit
    **_tags("size", {"small": "small little tiny mini", "large": "large big huge giant"}),
    **_tags("size", {"medium": "medium medium-sized mid-sized middle-sized"}),
    **_tags("colour", {colour: colour for colour in COLOURS} | {"purple": "purple violet"}),
    **_tags("speed", {"slow": "slow", "fast": "fast quick"}),
    **_tags("direction", {"still": "still motionless static stationary"}),
}
ADVERBS = {  # follow their digit, unless "moving" comes next: "a left moving 3"
    **_tags("speed", {"slow": "slowly", "medium": "steadily", "fast": "quickly rapidly"}),
    **_tags(
        "direction", {way: way for way in WAYS} | {"still": "rests rest resting waits wait waiting sits sit sitting"}
    ),
    **_tags("start", {cell: cell for cell in STARTS}),
}
ARTICLES = set("a an the another".split())
NOUNS = set("digit number numeral".split())  # a mover, if no figure follows: "a red digit moving up"
SEPARATORS = set(". , ; : ! ? and while then plus but".split())
FILLERS = set(
    """about across all animation are around as at begin beginning begins both bounce bounces bouncing canvas clip
    clips colour create diagonally digits direction do does draw drift drifting drifts each film for frame frames
    from generate glide glides gliding go goes going handwritten has have head heading heads height here high how i
    in is it its lasting lasts like long make me mnist move moves moving my new numbers of off on onwards over
    picture pixels please recording remain remains scene screen set sets setting show showing shows size slide
    slides sliding some something speed stand standing stands start starting starts stay staying stays straight that
    there this title to travel travelling travels untitled video videos walls want watch way what where which who
    wide width with without""".split()
)


class Word(NamedTuple):
    """One word with its role: ``kind`` is digit, noun, tag, separator or filler."""

    text: str
    kind: str
    in_front: bool  # may belong to a noun phrase whose digit comes later


def tagged_words(text: str) -> list[Word]:
    """Read a text. Raises ValueError naming a word that is not understood or a number that fits nowhere."""
    text = text.lower()
    for pattern, replacement in SPELLING:
        text = pattern.sub(replacement, text)
    text = _question_to_statement(text)
    for pattern, replacement in PHRASES:
        text = pattern.sub(replacement, text)
    pieces = re.findall(r"[a-z]+=[a-z0-9-]+|\d+|[a-z]+(?:[-'][a-z]+)*|[^\sa-z\d]", text)
    return [_look_up(piece, following) for piece, following in pairwise([*pieces, ""])]


def _look_up(piece: str, following: str) -> Word:
    if "=" in piece and len(piece) > 1:
        return Word(piece, "tag", False)
    if piece.isdecimal() or piece in NUMBER_WORDS:
        if len(piece) > 1 and piece not in NUMBER_WORDS:
            raise ValueError(
                f"{piece} is not a digit from 0 to 9; a clip can have '{piece} frames' or be '{piece} high'"
            )
        return Word(_figure(piece), "digit", False)
    if piece in ADJECTIVES:
        return Word(ADJECTIVES[piece], "tag", True)
    if piece in ADVERBS:
        return Word(ADVERBS[piece], "tag", following == "moving")
    if piece in NOUNS:
        named = following in NUMBER_WORDS or following.isdecimal()
        return Word(piece, "filler" if named else "noun", named)
    if piece in SEPARATORS:
        return Word(piece, "separator", False)
    if piece in ARTICLES or piece in FILLERS:
        return Word(piece, "filler", piece in ARTICLES or piece == "moving")
    raise ValueError(f"I do not know {_named(piece)} Try: {EXAMPLE}")


def _named(piece: str) -> str:
    """The word that nobody knows, and the one it is probably a slip of: nearly equal, with the same first letter."""
    if not piece[0].isalnum():
        return f'the sign "{piece}".'
    meant = [word for word in (*ADJECTIVES, *ADVERBS, *NOUNS, *NUMBER_WORDS, "moving", "moves") if word[0] == piece[0]]
    close = get_close_matches(piece, meant, n=1, cutoff=0.75)
    return f'the word "{piece}"; did you mean "{close[0]}"?' if close else f'the word "{piece}".'


def _figure(word: str) -> str:
    return str(NUMBER_WORDS.get(word, word))


def _question_to_statement(text: str) -> str:
    """Move an answer to where the question asked for it: "which digit moves up? the 3." says that the 3 moves up."""
    question, mark, answer = text.partition("?")
    answer = answer.strip().rstrip(".")
    if not mark or not answer:
        return text
    if asked := re.match(r"\s*(?:which|what) digits?\b(.*)", question):
        return f"{answer} {asked[1]}"
    if re.search(r"\bhow many (?:digits|numbers)\b", question):
        return f"{answer} digits"
    question = re.sub(r"\bhow (many|large|big|small|fast|slow|long|high|tall|wide)\b", "how", question)
    if refused := re.match(r"no\b(.*)", answer):  # what was asked does not hold, only whom it was asked about
        subject = re.search(rf"\b(?:the|an?) (?:[a-z-]+ )*?{_NUMBER}\b", question)
        return f"{subject[0] if subject else ''} {refused[1]}"
    return f"{question} {re.sub(r'^yes', '', answer)}"


def _cell(match: re.Match) -> str:
    row, column = ("middle" if part == "centre" else part for part in match.groups())
    return "centre" if row == column == "middle" else f"{row}-{column}"


def _canvas(match: re.Match) -> str:
    if match[1] != match[2]:
        raise ValueError(f"{match[0]!r} does not say which is the height; write '{match[1]} high and {match[2]} wide'")
    return f"height={match[1]} width={match[2]}"


def _relative(match: re.Match) -> str:
    raise ValueError(
        f"{match[0]!r} relates digits to each other, which is not understood; name a start such as top-left"
    )


def _several(match: re.Match) -> str:
    return " and ".join([match[2].removesuffix("e") if match[2] == "sixe" else match[2]] * int(_figure(match[1])))


_NUMBER = "(?:" + "|".join([r"\d+", *NUMBER_WORDS]) + ")"
_ADJECTIVE = "(?:" + "|".join(sorted(ADJECTIVES, key=len, reverse=True)) + ")"
_CELLS = {name: name for name in STARTS} | {
    **{"top": "top-middle", "bottom": "bottom-middle", "left": "middle-left", "right": "middle-right"},
    "middle": "centre",
}
_TOWARDS = {name: name for name in WAYS} | {  # "towards the top-left" names a direction by where it leads
    **{"top": "up", "bottom": "down", "top-middle": "up", "bottom-middle": "down"},
    **{"top-left": "up-left", "top-right": "up-right", "bottom-left": "down-left", "bottom-right": "down-right"},
    **{"middle-left": "left", "middle-right": "right"},
}
_PACES = {"low": "slow", "slow": "slow", "medium": "medium", "moderate": "medium", "high": "fast", "fast": "fast"}


def _any_of(words: dict[str, str]) -> str:
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


def _compile(*rules: tuple[str, str | Callable]) -> list[tuple[re.Pattern, str | Callable]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


_PX = r"(?: ?pixels?| ?px)?"
_WALL = r"(?: corner| edge| side| wall)?\b(?!-)"
SPELLING = _compile(
    ("=", " "),  # keeps tags for us
    ("\u2019", "'"),
    ("\u00d7", "x"),
    (r"\b(it|that|there)'s\b", r"\1 is"),
    (r"\b(?:do|does|is|are)n't\b", "does not"),
    (r"\bcenter\b", "centre"),
    (r"\bcolor\b", "colour"),
    (r"\bupper\b", "top"),
    (r"\blower\b", "bottom"),
    (r"\b(up|down|left|right)wards?\b", r"\1"),
    (r"-moving\b", " moving"),
    (r"\b(digit|number|numeral) ?[:#] ?", r"\1 "),
    (r"\b(?:left|right) of (?=a|the|it)", _relative),
    (r"\b(top|bottom|middle|centre)[ -](left|right|middle|centre)\b", _cell),
    (r"\b(left|right)[ -](top|bottom)\b", r"\2-\1"),
    (r"\b(up|down)(?: and)?(?: to the)?[ -](left|right)\b", r"\1-\2"),
    (r"\b(left|right)(?: and)?[ -](up|down)\b", r"\2-\1"),
    (rf"\b(an?|the) ({_ADJECTIVE})(?:,| and) (?={_ADJECTIVE}\b)", r"\1 \2 "),  # "a small, red 3"
    (rf"\bone (?=(?:(?:{_ADJECTIVE}|digit|number) )*{_NUMBER}\b(?! frames?))", "a "),  # "one red 3"
)
PHRASES = _compile(
    (rf"\b({_NUMBER})[ -]frames?\b", lambda m: f"frames={_figure(m[1])}"),
    (rf"\b(\d+){_PX} (?:high|tall)\b", r"height=\1"),
    (rf"\b(\d+){_PX} (?:wide|broad|across)\b", r"width=\1"),
    (rf"\b(height|width)(?: of| is|:)? ?(\d+){_PX}\b", r"\1=\2"),
    (rf"\b(\d+) ?(?:x|by) ?(\d+){_PX}\b", _canvas),
    (rf"\b({_NUMBER}) (?:digits|numbers|numerals)\b", lambda m: f"count={_figure(m[1])}"),
    (rf"\b(two|three|2|3) (\d|{'|'.join(NUMBER_WORDS)}|sixe)'?s\b", _several),
    (r"\b(clip|video|recording) \d{2,}\b", r"\1"),  # a file name, not a digit
    (rf"\b(?:(?:at|with) )?(?:an? )?{_any_of(_PACES)} (?:speed|pace)\b", lambda m: f"speed={_PACES[m[1]]}"),
    (r"\b(?:(?:does|do|is|are) )?not mov(?:e|ing)\b|\bwithout moving\b", "direction=still"),
    (r"\b(?:stand(?:s|ing)?|stay(?:s|ing)?|sit(?:s|ting)?|remain(?:s|ing)?|keeps?|is|are) still\b", "direction=still"),
    (rf"\b(?:at|in|from|on|near)(?: the)?(?: very)? {_any_of(_CELLS)}{_WALL}", lambda m: f"start={_CELLS[m[1]]}"),
    (rf"\b(?:to|towards?)(?: the)? {_any_of(_TOWARDS)}{_WALL}", lambda m: f"direction={_TOWARDS[m[1]]}"),
)
