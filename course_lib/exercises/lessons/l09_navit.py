"""The exercises of lesson 09, NaViT: who shares a row, who looks at whom, places, one vector per image, dropping."""

import contextlib
import inspect
import operator
import textwrap

import torch
from torch import Tensor

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.nn.packing import FactorisedPositions, block_mask, drop_tokens, first_fit, grid_positions, pool

# --------------------------------------------------------------------------------------------------------- first fit

_REFUSE = "not 1 <= length <= capacity"
_HAS_ROOM = "length <= free"
_SEARCH = "next((r for r, free in enumerate(room) if length <= free), None)"


def _lengths(n: int, longest: int, capacity: int):
    return lambda g: dict(lengths=torch.randint(1, longest + 1, (n,), generator=g).tolist(), capacity=capacity)


def _fixed(*lengths: int, capacity: int):
    return lambda g: dict(lengths=list(lengths), capacity=capacity)


def _rows(fit, lengths, capacity):
    """The rows as a text: one thing to compare and to read, whatever kind of lists and whole numbers they are."""
    rows = fit(lengths=lengths, capacity=capacity)
    if rows is None:
        return None
    with contextlib.suppress(TypeError):  # no lists of whole numbers
        rows = [[operator.index(i) for i in row] for row in rows]
    return {"rows": str(rows)}


def _packing(label: str, inputs) -> Case:
    return Case(label, inputs, call=_rows)


FIRST_FIT = Exercise(
    target=first_fit,
    minutes=12,
    gradients=False,
    cases=[
        _packing("lengths 4, 8, 1, 4, 2, 1 in rows of 10", _fixed(4, 8, 1, 4, 2, 1, capacity=10)),
        _packing("forty lengths in rows of 37", _lengths(40, 37, 37)),
        _packing("many short ones", _lengths(60, 9, 31)),
        _packing("two of them fill a row exactly", _fixed(5, 5, 7, 3, 5, capacity=10)),
        _packing("every one fills a row alone", _fixed(10, 10, 10, capacity=10)),
        _packing("one token each", _fixed(1, 1, 1, 1, 1, capacity=2)),
        _packing("an early row has room at the very end", _fixed(8, 6, 9, 7, 1, 3, 2, 1, capacity=10)),
        _packing("a single sequence", _fixed(3, capacity=7)),
        _packing("no sequences at all", _fixed(capacity=7)),
        _packing("lengths in a tuple", lambda g: dict(lengths=(4, 8, 1, 4, 2, 1), capacity=10)),
        _packing("the second is longer than a row", _fixed(3, 11, 2, capacity=10)),
        _packing("the last is longer than a row", _fixed(3, 2, 25, capacity=10)),
        _packing("a sequence without tokens", _fixed(3, 0, 2, capacity=10)),
        _packing("a negative length", _fixed(3, -1, 2, capacity=10)),
    ],
    mistakes=[
        Mistake(
            "This is next-fit: only the newest row is looked at, and the room left in earlier rows stays padding. "
            "Search all rows, from the first.",
            old=_SEARCH,
            new="len(rows) - 1 if rows and length <= room[-1] else None",
        ),
        Mistake(
            "The last row is missing: a row is saved when the next one begins, and after the last no next one begins. "
            "Images vanish without a word.",
            code="""
            def first_fit(lengths, capacity):
                rows, row, used = [], [], 0
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    if used + length > capacity:
                        rows.append(row)
                        row, used = [], 0
                    row.append(i)
                    used += length
                return rows
            """,
        ),
        Mistake(
            "This is best-fit: you choose the row where least room would be left. Often it packs as well, but the "
            "contract asks for the *first* row with room.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    fits = [r for r in range(len(rows)) if room[r] >= length]
                    if fits:
                        r = min(fits, key=lambda r: room[r])
                    else:
                        rows.append([])
                        room.append(capacity)
                        r = len(rows) - 1
                    rows[r].append(i)
                    room[r] -= length
                return rows
            """,
        ),
        Mistake(
            "This is worst-fit: you choose the emptiest row. The contract asks for the first with room, so that early "
            "rows are closed early.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    fits = [r for r in range(len(rows)) if room[r] >= length]
                    if fits:
                        r = max(fits, key=lambda r: room[r])
                    else:
                        rows.append([])
                        room.append(capacity)
                        r = len(rows) - 1
                    rows[r].append(i)
                    room[r] -= length
                return rows
            """,
        ),
        Mistake(
            "You search from the newest row backwards. The first row with room is asked for, counted from the oldest.",
            old=_SEARCH,
            new="next((r for r in reversed(range(len(room))) if length <= room[r]), None)",
        ),
        Mistake(
            "You sort by length first. That packs tighter (first-fit-decreasing), but it must know all lengths before "
            "it begins; here they are taken in the given order.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
                    if not 1 <= lengths[i] <= capacity:
                        raise ValueError("does not fit")
                    for r in range(len(rows)):
                        if lengths[i] <= room[r]:
                            break
                    else:
                        r = len(rows)
                        rows.append([])
                        room.append(capacity)
                    rows[r].append(i)
                    room[r] -= lengths[i]
                return rows
            """,
        ),
        Mistake(
            "You sort the lengths and number them afterwards, so the numbers belong to other images: the labels would "
            "no longer match.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(sorted(lengths, reverse=True)):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for r in range(len(rows)):
                        if length <= room[r]:
                            break
                    else:
                        r = len(rows)
                        rows.append([])
                        room.append(capacity)
                    rows[r].append(i)
                    room[r] -= length
                return rows
            """,
        ),
        Mistake(
            "A sequence is cut where a row ends and goes on in the next one. Its two parts could not look at each "
            "other: a sequence must fit whole.",
            code="""
            def first_fit(lengths, capacity):
                rows, free = [], 0
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    while length > 0:
                        if free == 0:
                            rows.append([])
                            free = capacity
                        rows[-1].append(i)
                        part = min(free, length)
                        free -= part
                        length -= part
                return rows
            """,
        ),
        Mistake(
            "A row is never filled to the brim: you ask for more room than the sequence needs. It fits where its "
            "length is at most what is free (<=, not <).",
            old=_HAS_ROOM,
            new="length < free",
        ),
        Mistake(
            "Your rows hold lengths. They must hold the numbers of the sequences, or nobody knows which ones they are.",
            old="rows[row].append(i)",
            new="rows[row].append(length)",
        ),
        Mistake(
            "You return the row of each sequence. Asked for is the other direction: for each row, its sequences.",
            code="""
            def first_fit(lengths, capacity):
                room, where = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for r, free in enumerate(room):
                        if length <= free:
                            break
                    else:
                        r = len(room)
                        room.append(capacity)
                    room[r] -= length
                    where.append(r)
                return where
            """,
        ),
        Mistake(
            "Sequences are counted from 1; the first one has number 0.",
            old="rows[row].append(i)",
            new="rows[row].append(i + 1)",
        ),
        Mistake(
            "A sequence longer than a row is taken: it gets a row of its own, too long or silently cut. Refuse it "
            "with a ValueError.",
            old=_REFUSE,
            new="length < 1",
        ),
        Mistake(
            "A sequence that fits nowhere is left out silently. The image would be gone, and every label after it "
            "would belong to the wrong one: raise a ValueError.",
            old='raise ValueError(f"sequence {i} has {length} tokens; a row holds between 1 and {capacity}")',
            new="continue",
        ),
        Mistake(
            "A length of 0 is refused but a negative one is taken, and makes room where there is none. Refuse every "
            "length below 1.",
            old=_REFUSE,
            new="length == 0 or length > capacity",
        ),
        Mistake(
            "A length of 0 is taken. An image without tokens has no mean and no answer: raise a ValueError for every "
            "length below 1.",
            old=_REFUSE,
            new="length > capacity",
        ),
        Mistake(
            "A sequence that fills a row alone is refused. It may have as many tokens as a row holds.",
            old=_REFUSE,
            new="not 1 <= length < capacity",
        ),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError, and is skipped under `python -O`. Use "
            "`raise ValueError(...)`.",
            old='raise ValueError(f"sequence {i} has {length} tokens; a row holds between 1 and {capacity}")',
            new="raise AssertionError(i)",
        ),
        Mistake(
            "A sequence is added to every row that has room, not only to the first. A `break` is missing.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    placed = False
                    for r in range(len(rows)):
                        if length <= room[r]:
                            rows[r].append(i)
                            room[r] -= length
                            placed = True
                    if not placed:
                        rows.append([i])
                        room.append(capacity - length)
                return rows
            """,
        ),
        Mistake(
            "A `break` is missing: the search goes on behind a row that had room, so a sequence joins every such row, "
            "and the `else` of the loop opens a new one for it besides.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for r in range(len(rows)):
                        if length <= room[r]:
                            rows[r].append(i)
                            room[r] -= length
                    else:
                        rows.append([i])
                        room.append(capacity - length)
                return rows
            """,
        ),
        Mistake(
            "The sequence that opens a row is not counted, so the row takes more than `capacity`. A new row has "
            "capacity - length left.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for r in range(len(rows)):
                        if length <= room[r]:
                            rows[r].append(i)
                            room[r] -= length
                            break
                    else:
                        rows.append([i])
                        room.append(capacity)
                return rows
            """,
        ),
        Mistake(
            "The room of a row is never made smaller, so everything goes into the first row.",
            old="room[row] -= length",
            new="pass",
        ),
        Mistake(
            "A row is full after `capacity` sequences. It holds `capacity` *tokens*: add up the lengths.",
            code="""
            def first_fit(lengths, capacity):
                rows = []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    if not rows or len(rows[-1]) == capacity:
                        rows.append([])
                    rows[-1].append(i)
                return rows
            """,
        ),
        Mistake(
            "You begin with an empty row, which stays in the result where there is nothing to put into it. No "
            "sequences, no rows.",
            old="rows, room = [], []",
            new="rows, room = [[]], [capacity]",
        ),
        Mistake(
            "The order in a row is turned round: the newest stands first. Sequences stand in the order in which they "
            "joined.",
            old="rows[row].append(i)",
            new="rows[row].insert(0, i)",
        ),
        Mistake(
            "New rows are put in front. They are opened at the end, so that the search begins with the oldest.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for r in range(len(rows)):
                        if length <= room[r]:
                            rows[r].append(i)
                            room[r] -= length
                            break
                    else:
                        rows.insert(0, [i])
                        room.insert(0, capacity - length)
                return rows
            """,
        ),
        Mistake(
            "The room of a row is what the newest sequence leaves of an empty one: earlier ones in it are forgotten. "
            "Subtract from what was left.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for r in range(len(rows)):
                        if length <= room[r]:
                            rows[r].append(i)
                            room[r] = capacity - length
                            break
                    else:
                        rows.append([i])
                        room.append(capacity - length)
                return rows
            """,
        ),
        Mistake(
            "You find a sequence's number by its length (`lengths.index`), so of two equally long ones the first is "
            "named twice. `enumerate` counts them.",
            old="rows[row].append(i)",
            new="rows[row].append(list(lengths).index(length))",
        ),
        Mistake(
            "You add up the *numbers* of the sequences in a row instead of their lengths: `sum(row)`. Add up "
            "lengths[j] for j in row.",
            code="""
            def first_fit(lengths, capacity):
                rows = []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for row in rows:
                        if sum(row) + length <= capacity:
                            row.append(i)
                            break
                    else:
                        rows.append([i])
                return rows
            """,
        ),
        Mistake(
            "Only the last two rows are searched. All of them may still have room.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [], []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for r in range(max(len(rows) - 2, 0), len(rows)):
                        if length <= room[r]:
                            break
                    else:
                        r = len(rows)
                        rows.append([])
                        room.append(capacity)
                    rows[r].append(i)
                    room[r] -= length
                return rows
            """,
        ),
        Mistake(
            "All rows are one and the same list: `[[]] * n` repeats a list without copying it. Append a new `[]` for "
            "each row.",
            code="""
            def first_fit(lengths, capacity):
                rows, room = [[]] * len(lengths), []
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    for r, free in enumerate(room):
                        if length <= free:
                            break
                    else:
                        r = len(room)
                        room.append(capacity)
                    rows[r].append(i)
                    room[r] -= length
                return rows[: len(room)]
            """,
        ),
        Mistake(
            "The sequences in a row are sorted by length. They stand in the order in which they joined.",
            old="return rows",
            new="return [sorted(row, key=lambda i: -lengths[i]) for row in rows]",
        ),
        Mistake(
            "The rows are sorted in the end, fullest first. Leave them in the order in which they were opened.",
            old="return rows",
            new="return [rows[r] for r in sorted(range(len(rows)), key=lambda r: room[r])]",
        ),
    ],
    variants=[
        Variant(
            "for ... else",
            """
            def first_fit(lengths, capacity):
                rows, used = [], []
                for i, length in enumerate(lengths):
                    if length < 1 or length > capacity:
                        raise ValueError("does not fit")
                    for r, so_far in enumerate(used):
                        if so_far + length <= capacity:
                            rows[r].append(i)
                            used[r] += length
                            break
                    else:
                        rows.append([i])
                        used.append(length)
                return rows
            """,
        ),
        Variant(
            "adds up the lengths again each time",
            """
            def first_fit(lengths, capacity):
                if any(n <= 0 or n > capacity for n in lengths):
                    raise ValueError("does not fit")
                rows = []
                for i in range(len(lengths)):
                    for row in rows:
                        if sum(lengths[j] for j in row) + lengths[i] <= capacity:
                            row.append(i)
                            break
                    else:
                        rows.append([i])
                return rows
            """,
        ),
        Variant(
            "one row after the other",
            """
            def first_fit(lengths, capacity):
                left = list(enumerate(lengths))
                if any(not 0 < n <= capacity for _, n in left):
                    raise ValueError("does not fit")
                rows = []
                while left:
                    row, later, free = [], [], capacity
                    for i, n in left:
                        if n <= free:
                            row.append(i)
                            free -= n
                        else:
                            later.append((i, n))
                    rows.append(row)
                    left = later
                return rows
            """,
        ),
        Variant(
            "recursion",
            """
            def first_fit(lengths, capacity):
                def place(i, rows):
                    if i == len(lengths):
                        return rows
                    if lengths[i] < 1 or lengths[i] > capacity:
                        raise ValueError("does not fit")
                    for r, (row, free) in enumerate(rows):
                        if lengths[i] <= free:
                            return place(i + 1, rows[:r] + [(row + [i], free - lengths[i])] + rows[r + 1:])
                    return place(i + 1, rows + [([i], capacity - lengths[i])])

                return [row for row, _ in place(0, [])]
            """,
        ),
        Variant(
            "numpy",
            """
            def first_fit(lengths, capacity):
                rows, room = [], np.zeros(0, dtype=int)
                for i, length in enumerate(lengths):
                    if not 1 <= length <= capacity:
                        raise ValueError("does not fit")
                    fits = np.flatnonzero(room >= length)
                    if fits.size == 0:
                        rows.append([])
                        room = np.append(room, capacity)
                        fits = [len(rows) - 1]
                    rows[fits[0]].append(i)
                    room[fits[0]] -= length
                return rows
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Keep two lists side by side: `rows`, the numbers in each row, and `room`, how much is free in each. For "
            "every sequence: look through `room` from the start.",
        ),
        Hint(
            "my rows stay half empty",
            "Do you look at the newest row only, or at all of them? And a sequence of 4 does fit where exactly 4 are "
            "free.",
        ),
        Hint(
            "how do I say: no row had room?",
            "Python's `for ... else`: the `else` block runs when the loop was not left by `break`. Or "
            "`next((r for r, free in enumerate(room) if length <= free), None)`.",
        ),
        Hint(
            "show me nearly everything",
            "for i, length in enumerate(lengths): refuse unless 1 <= length <= capacity; find the first r with "
            "room[r] >= length; if there is none, append [] to rows and capacity to room and take the last r; then "
            "rows[r].append(i) and room[r] -= length.",
        ),
    ],
)


# -------------------------------------------------------------------------------------------------------- block mask

_SAME = "ids[:, :, None] == ids[:, None, :]"
_MASK = "(same & (ids >= 0)[:, None, :]) | itself"


def _mask(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_MASK, new=new)


def _ids(*rows: list[int]):
    return lambda g: dict(ids=torch.tensor(rows))


def _random_ids(b: int, n: int, images: int):
    return lambda g: dict(ids=torch.randint(-1, images, (b, n), generator=g))


BLOCK_MASK = Exercise(
    target=block_mask,
    minutes=10,
    gradients=False,
    cases=[
        Case("two rows, ragged and padded", _ids([0, 0, 0, 1, 1, 3, -1], [2, 2, 4, 4, 4, -1, -1])),
        Case("tokens in any order, 3 rows", _random_ids(3, 11, 4)),
        Case("no padding", _ids([0, 0, 1, 1, 1], [2, 3, 3, 3, 3])),
        Case("a row of padding alone", _ids([0, 0, 0, 0], [-1, -1, -1, -1], [1, 1, 1, -1])),
        Case("one image per row", _ids([0, 0, 0, 0, 0], [1, 1, 1, -1, -1])),
        Case("as many rows as tokens", _ids([0, 0, -1], [1, 2, 2], [3, -1, -1])),
        Case("an image's tokens are not side by side", _ids([0, 1, 0, 2, 1, -1, 0], [5, 4, -1, 4, 5, 4, -1])),
        Case("one token", _ids([7], [-1])),
        Case("large ids", _ids([9, 6, -1, 7, 9, -1, 12], [4096, 4097, 4352, -1, 1003, 103, 13])),
    ],
    mistakes=[
        _mask(
            "same",
            "Padding looks at padding, as if -1 were one more image. Nobody but itself may look at a token of padding.",
        ),
        _mask(
            "same & (ids >= 0)[:, None, :]",
            "A token of padding looks at nobody, so its softmax divides 0 by 0 in many attentions. Let it look at "
            "itself.",
        ),
        _mask(
            "same | (ids < 0)[:, None, :] | itself",
            "Everybody looks at padding. Padding must be hidden as a *key*: what stands there would leak into every "
            "image.",
        ),
        _mask(
            "(same & (ids >= 0)[:, None, :]) | (ids < 0)[:, :, None]",
            "Padding looks at the whole row. Its own output is thrown away, but the contract says: at itself alone.",
        ),
        _mask(
            "(ids >= 0)[:, None, :] & (ids >= 0)[:, :, None] | itself",
            "You hide the padding, but every image of a row still sees every other. Compare the ids of the two tokens.",
        ),
        _mask(
            "~((same & (ids >= 0)[:, None, :]) | itself)",
            "The polarity is wrong: True means *may look*, in this course. (`nn.MultiheadAttention` wants it the other "
            "way round.)",
        ),
        _mask(
            "((same & (ids >= 0)[:, None, :]) | itself).float()",
            "These are zeros and ones, but no booleans. Attention would *add* such floats to the scores, and a 0 "
            "forbids nothing.",
        ),
        _mask(
            "torch.zeros(same.shape).masked_fill(~((same & (ids >= 0)[:, None, :]) | itself), -math.inf)",
            "This is a mask to be added, 0 and -inf. The course's masks are boolean, True where a token may look.",
        ),
        _mask(
            "((same & (ids >= 0)[:, None, :]) | itself).tril()",
            "A token cannot look at later ones of its own image. That mask belongs to text: patches have no past and "
            "no future.",
        ),
        _mask(
            "((same & (ids >= 0)[:, None, :]) | itself).triu()",
            "A token cannot look at earlier ones of its own image: only one triangle is filled. Both directions are "
            "allowed.",
        ),
        _mask(
            "((same & (ids >= 0)[:, None, :]) | itself)[:, None]",
            "There is an axis for the heads, (b, 1, n, n). `MultiHeadAttention` takes (b, n, n) and adds that axis "
            "itself.",
        ),
        _mask(
            "(same & (ids > 0)[:, None, :]) | itself",
            "Image 0 is taken for padding: its tokens see only themselves. Padding is -1, and 0 is the first image.",
        ),
        _mask(
            "((ids[:, :, None].clamp(min=0) == ids[:, None, :].clamp(min=0)) & True) | itself",
            "Padding is taken for image 0, so it is mixed into that image wherever they share a row. -1 belongs to no "
            "image.",
        ),
        _mask(
            "same & (ids >= 0)[:, None, :] & ~itself | (itself & (ids < 0)[:, :, None])",
            "A patch cannot look at itself. It belongs to its own image like all others.",
        ),
        _mask(
            "torch.ones_like(same)",
            "Everybody looks at everybody: nothing is hidden. Compare the ids.",
        ),
        _mask(
            "((same & (ids >= 0)[:, None, :]) | itself).any(0, keepdim=True).expand_as(same)",
            "You join the masks of all rows: where two tokens may look at each other in one row, they may in all. "
            "Keep the batch axis apart.",
        ),
        Mistake(
            "You build the mask of the first row for all of them. Every row of the batch holds other images: (b, n, "
            "n).",
            code="""
            def block_mask(ids):
                row = ids[0]
                keep = (row[:, None] == row[None, :]) & (row >= 0)[None, :]
                keep = keep | torch.eye(len(row), dtype=torch.bool)
                return keep.expand(len(ids), -1, -1)
            """,
        ),
        Mistake(
            "The batch is gone: one (n, n) mask comes out, the one of the first row. Every row holds other images.",
            code="""
            def block_mask(ids):
                row = ids[0]
                keep = (row[:, None] == row[None, :]) & (row >= 0)[None, :]
                return keep | torch.eye(len(row), dtype=torch.bool)
            """,
        ),
        Mistake(
            "You compare each id with itself, so everything is equal. One copy needs the new axis behind, (b, n, 1), "
            "the other in front, (b, 1, n).",
            old=_SAME,
            new="ids[:, :, None] == ids[:, :, None].expand(-1, -1, ids.shape[1])",
        ),
        Mistake(
            "You find where the id changes along the row, so an image whose tokens are not side by side falls into "
            "pieces. Compare the ids themselves.",
            code="""
            def block_mask(ids):
                run = torch.cat([torch.zeros_like(ids[:, :1]), (ids[:, 1:] != ids[:, :-1]).long()], dim=1).cumsum(1)
                same = (run[:, :, None] == run[:, None, :]) & (ids >= 0)[:, None, :]
                return same | torch.eye(ids.shape[1], dtype=torch.bool)
            """,
        ),
        Mistake(
            "You hide padding only as a query. What must be hidden is padding as a key: images would still look at it.",
            code="""
            def block_mask(ids):
                real = ids >= 0
                keep = ((ids[:, :, None] == ids[:, None, :]) | ~real[:, None, :]) & real[:, :, None]
                return keep | torch.eye(ids.shape[1], dtype=torch.bool)
            """,
        ),
        Mistake(
            "Each token sees itself and its neighbours of the same image only. All patches of an image may look at "
            "each other, near or far.",
            code="""
            def block_mask(ids):
                place = torch.arange(ids.shape[1])
                near = (place[:, None] - place[None, :]).abs() <= 1
                keep = (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, None, :] & near
                return keep | torch.eye(ids.shape[1], dtype=torch.bool)
            """,
        ),
        Mistake(
            "Only the first image of each row may look around. The others are blocks on the diagonal as well.",
            code="""
            def block_mask(ids):
                first = ids[:, :1]
                keep = (ids == first)[:, :, None] & (ids == first)[:, None, :] & (ids >= 0)[:, None, :]
                return keep | torch.eye(ids.shape[1], dtype=torch.bool)
            """,
        ),
        _mask(
            "same & (ids >= 0)[:, None, :] & ~itself",
            "Nobody may look at itself, neither a patch nor padding. A patch belongs to its own image, and padding "
            "needs one key to look at.",
        ),
        _mask(
            "(same | (ids < 0)[:, :, None]) & (ids >= 0)[:, None, :]",
            "Padding looks at all images and not at itself. It should be the other way round: at itself alone.",
        ),
        Mistake(
            "A token looks at its own image and at all with smaller numbers: you compared with >= where == is asked "
            "for.",
            old=_SAME,
            new="ids[:, :, None] >= ids[:, None, :]",
        ),
        Mistake(
            "Padding gets numbers of its own that are also images' numbers, so it mixes with them. Negative numbers "
            "below -1 are free, or compare and then forbid.",
            code="""
            def block_mask(ids):
                ids = torch.where(ids < 0, torch.arange(ids.shape[1]), ids)
                return ids[:, :, None] == ids[:, None, :]
            """,
        ),
        Mistake(
            "Padding gets numbers of its own, n and up. A large batch has images with these numbers too, and they "
            "would mix.",
            code="""
            def block_mask(ids):
                n = ids.shape[1]
                ids = torch.where(ids < 0, n + torch.arange(n), ids)
                return ids[:, :, None] == ids[:, None, :]
            """,
        ),
        Mistake(
            "Padding is looked for at the end of the row only, by counting real tokens. It may stand anywhere: ask the "
            "ids.",
            code="""
            def block_mask(ids):
                n = ids.shape[1]
                real = torch.arange(n) < (ids >= 0).sum(1, keepdim=True)
                keep = (ids[:, :, None] == ids[:, None, :]) & real[:, None, :] & real[:, :, None]
                return keep | torch.eye(n, dtype=torch.bool)
            """,
        ),
        Mistake(
            "You test whether the product of two ids is positive. That hides image 0 and joins all the others.",
            code="""
            def block_mask(ids):
                keep = (ids[:, :, None] * ids[:, None, :] > 0) & (ids >= 0)[:, None, :]
                return keep | torch.eye(ids.shape[1], dtype=torch.bool)
            """,
        ),
    ],
    variants=[
        Variant(
            "torch.where on the query",
            """
            def block_mask(ids):
                b, n = ids.shape
                same = ids.unsqueeze(2).eq(ids.unsqueeze(1))
                itself = torch.eye(n, dtype=torch.bool).expand(b, n, n)
                return torch.where((ids == -1).unsqueeze(2), itself, same)
            """,
        ),
        Variant(
            "loops",
            """
            def block_mask(ids):
                b, n = ids.shape
                keep = torch.zeros(b, n, n, dtype=torch.bool)
                for row in range(b):
                    for i in range(n):
                        for j in range(n):
                            keep[row, i, j] = i == j or bool(ids[row, i] == ids[row, j] and ids[row, i] >= 0)
                return keep
            """,
        ),
        Variant(
            "padding gets ids of its own",
            """
            def block_mask(ids):
                alone = -1 - torch.arange(ids.shape[1])
                ids = torch.where(ids < 0, alone, ids)
                return ids[:, :, None] == ids[:, None, :]
            """,
        ),
        Variant(
            "one image after the other",
            """
            def block_mask(ids):
                keep = torch.eye(ids.shape[1], dtype=torch.bool).repeat(len(ids), 1, 1)
                for image in ids[ids >= 0].unique():
                    mine = (ids == image).float()
                    keep |= torch.einsum("bi,bj->bij", mine, mine).bool()
                return keep
            """,
        ),
        Variant(
            "diagonal set at the end",
            """
            def block_mask(ids):
                real = ids != -1
                keep = (ids[..., None] == ids[:, None]) & real[..., None] & real[:, None]
                keep.diagonal(dim1=1, dim2=2).fill_(True)
                return keep
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Two tokens may look at each other when their ids are equal. `ids[:, :, None]` is (b, n, 1), "
            "`ids[:, None, :]` is (b, 1, n); `==` between them compares every pair.",
        ),
        Hint(
            "what about padding?",
            "Its id is -1, and -1 == -1. So forbid keys with a negative id, and allow the diagonal again: "
            "`torch.eye(n, dtype=torch.bool)`.",
        ),
        Hint(
            "show me nearly everything",
            "same = ids[:, :, None] == ids[:, None, :]; (same & (ids >= 0)[:, None, :]) | torch.eye(n, dtype=bool).",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------- positions

_EMPTY = "min(grid) < 1"
_SIDES = "torch.arange(side, dtype=torch.float32) / (side if fractional else 1)"
_MESH = 'torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, -2)'


def _sides(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_SIDES, new=new)


def _grid(*grid: int, fractional: bool = False):
    return lambda g: dict(grid=grid, fractional=fractional)


GRID_POSITIONS = Exercise(
    target=grid_positions,
    minutes=8,
    gradients=False,
    cases=[
        Case("3 x 5 patches", _grid(3, 5)),
        Case("3 x 5 patches, fractions", _grid(3, 5, fractional=True)),
        Case("7 x 2 patches", _grid(7, 2)),
        Case("7 x 2 patches, fractions", _grid(7, 2, fractional=True)),
        Case("one row", _grid(1, 6)),
        Case("one column, fractions", _grid(5, 1, fractional=True)),
        Case("a single patch, fractions", _grid(1, 1, fractional=True)),
        Case("4 x 4 patches, fractions", _grid(4, 4, fractional=True)),
        Case("a video, 2 x 3 x 5", _grid(2, 3, 5)),
        Case("a video, 3 x 2 x 4, fractions", _grid(3, 2, 4, fractional=True)),
        Case("one axis", _grid(6)),
        Case("four axes", _grid(2, 3, 1, 2)),
        Case("four axes, fractions", _grid(2, 3, 1, 2, fractional=True)),
        Case("the grid is a list", lambda g: dict(grid=[2, 3], fractional=True)),
        Case("`fractional` is left out", lambda g: dict(grid=(2, 3))),
        Case("no rows, fractions", _grid(0, 3, fractional=True)),
        Case("no rows", _grid(0, 3)),
        Case("no columns", _grid(3, 0)),
        Case("a negative side", _grid(-2, 3)),
        Case("two negative sides", _grid(-2, -3)),
    ],
    mistakes=[
        Mistake(
            "Each token's place is (column, row). Column 0 of the result belongs to axis 0, the rows of the picture: "
            "(row, column).",
            old=_MESH,
            new=f"{_MESH}.flip(-1)",
        ),
        Mistake(
            "Tokens are numbered down the columns: the *first* axis runs fastest. Patches are numbered like words on a "
            "page.",
            old=_MESH,
            new='torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).transpose(0, -2).flatten(0, -2)',
        ),
        Mistake(
            'You left `meshgrid` at "xy", which swaps the first two axes. With `indexing="ij"` they keep their order.',
            old=_MESH,
            new='torch.stack(torch.meshgrid(*sides, indexing="xy"), dim=-1).flatten(0, -2)',
        ),
        Mistake(
            "Rows and columns changed places everywhere: the grid was read as (w, h).",
            old="for side in grid]",
            new="for side in reversed(grid)]",
        ),
        Mistake(
            "The result holds whole numbers of an integer type. Positions are float32 in both modes, so that packed "
            "rows can hold either.",
            old=_MESH,
            new=f"{_MESH}.long() if not fractional else {_MESH}",
        ),
        _sides(
            "torch.arange(side) / (max(side - 1, 1) if fractional else 1)",
            "Your fractions reach 1: you divided by side - 1. The contract's fraction is p / side, which begins at 0 "
            "and stays below 1.",
        ),
        _sides(
            "(torch.arange(side) + 0.5) / side if fractional else torch.arange(side).float()",
            "You take the middle of each patch, (p + 0.5) / side. That is sensible too, but the paper's fraction is "
            "p / side.",
        ),
        _sides(
            "torch.arange(side) / (max(grid) if fractional else 1)",
            "All axes are divided by the longest side. Each has its own: p / side. (The paper tries this under another "
            "name: it keeps the aspect ratio.)",
        ),
        _sides(
            "torch.arange(side) / (grid[0] if fractional else 1)",
            "All axes are divided by the first side. Each axis has its own.",
        ),
        _sides(
            "torch.arange(side) / (grid[-1] if fractional else 1)",
            "All axes are divided by the last side. Each axis has its own.",
        ),
        _sides(
            "torch.arange(side) / (math.prod(grid) if fractional else 1)",
            "You divide by the number of all patches. A fraction is along one axis: divide by that axis' side.",
        ),
        _sides(
            "(torch.arange(side) // (side if fractional else 1)).float()",
            "Whole-number division: p // side is 0 for every patch, so all of them stand in the same corner. Use /.",
        ),
        _sides(
            "(torch.arange(side) + 1.0) / (side if fractional else 1)",
            "You count from 1. The first patch of every axis is 0, as a number and as a fraction.",
        ),
        _sides(
            "torch.arange(side, dtype=torch.float32)",
            "`fractional` changes nothing. With it, every place is divided by the side of its axis.",
        ),
        _sides(
            "torch.arange(side) / side",
            "Fractions come out in both modes. Without `fractional` the places are plain patch numbers.",
        ),
        _sides(
            "torch.arange(side) / (1 if fractional else side)",
            "`fractional` works the wrong way round.",
        ),
        _sides(
            "2 * torch.arange(side) / side - 1 if fractional else torch.arange(side).float()",
            "Your fractions run from -1 to 1, as `grid_sample` wants them. Here they begin at 0.",
        ),
        _sides(
            "torch.arange(side - 1, -1, -1) / (side if fractional else 1)",
            "You count backwards: the first patch should be at 0. Row 0 is at the top.",
        ),
        _sides(
            "(torch.arange(side) + 0.5) / (side if fractional else 1)",
            "You take the middle of each patch in both modes. Places are counted from 0: p, and p / side.",
        ),
        _sides(
            "1 - torch.arange(side) / side if fractional else torch.arange(side).float()",
            "Your fractions count down from 1. The first patch is at 0.",
        ),
        Mistake(
            "The first axis counts backwards, from the bottom up. Row 0 is the upper one.",
            old=_MESH,
            new='torch.stack(torch.meshgrid(sides[0].flip(0), *sides[1:], indexing="ij"), dim=-1).flatten(0, -2)',
        ),
        Mistake(
            "Only the last two axes become fractions. A video's frames, and every other axis, do so too.",
            code="""
            def grid_positions(grid, fractional=False):
                if min(grid) < 1:
                    raise ValueError("empty")
                sides = [torch.arange(side).float() for side in grid]
                if fractional:
                    sides = sides[:-2] + [side / len(side) for side in sides[-2:]]
                return torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, -2)
            """,
        ),
        Mistake(
            "Only up to three axes are possible. The contract says: any number.",
            code="""
            def grid_positions(grid, fractional=False):
                if min(grid) < 1:
                    raise ValueError("empty")
                f, h, w = (1,) * (3 - len(grid)) + tuple(grid[-3:])
                places = torch.cartesian_prod(torch.arange(f), torch.arange(h), torch.arange(w)).float()
                places = places / torch.tensor([f, h, w]) if fractional else places
                return places[:, -len(grid) :]
            """,
        ),
        Mistake(
            "`fractional` must be False by default.",
            code="""
            def grid_positions(grid, fractional=True):
                if min(grid) < 1:
                    raise ValueError("empty")
                sides = [torch.arange(side, dtype=torch.float32) / (side if fractional else 1) for side in grid]
                return torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, -2)
            """,
        ),
        Mistake(
            "The axes of the result are swapped: (axes, n). Tokens come first, (n, axes).",
            old=_MESH,
            new=f"{_MESH}.T",
        ),
        Mistake(
            "The places still form a grid, (h, w, axes). Flatten it to a list of tokens, (n, axes).",
            old=_MESH,
            new='torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)',
        ),
        Mistake(
            "You stack first and cut afterwards, so that one token's two numbers come from different places. Stack "
            "along the *last* axis, then flatten the others.",
            old=_MESH,
            new='torch.stack(torch.meshgrid(*sides, indexing="ij")).reshape(-1, len(grid))',
        ),
        Mistake(
            "Only two axes are possible: a video's grid has three, (f, h, w). Write it for any number.",
            code="""
            def grid_positions(grid, fractional=False):
                if min(grid) < 1:
                    raise ValueError("empty")
                h, w = grid[-2], grid[-1]
                rows = torch.arange(h).float().repeat_interleave(w)
                columns = torch.arange(w).float().repeat(h)
                if fractional:
                    rows, columns = rows / h, columns / w
                return torch.stack([rows, columns], dim=-1)
            """,
        ),
        Mistake(
            "Every token gets the number of its place in the list. The table is to be asked once per axis: give the "
            "row and the column.",
            code="""
            def grid_positions(grid, fractional=False):
                if min(grid) < 1:
                    raise ValueError("empty")
                n = math.prod(grid)
                return torch.arange(n).float()[:, None].expand(n, len(grid)) / (n if fractional else 1)
            """,
        ),
        Mistake(
            "You refuse by the product of the sides. Two negative sides have a positive one: look at each side.",
            old=_EMPTY,
            new="math.prod(grid) < 1",
        ),
        Mistake(
            "Only the first side is checked. Every side needs at least one patch.",
            old=_EMPTY,
            new="grid[0] < 1",
        ),
        Mistake(
            "An empty side is refused only where fractions are asked for. It is as empty without.",
            old=_EMPTY,
            new="fractional and min(grid) < 1",
        ),
        Mistake(
            "An empty grid is taken, and gives no tokens. Refuse sides below 1 with a ValueError.",
            old=_EMPTY,
            new="min(grid) < 0",
        ),
        Mistake(
            "Right but for the refusal: an empty side must raise a ValueError, not an AssertionError.",
            old="if min(grid) < 1:",
            new="assert min(grid) >= 1\n    if False:",
        ),
    ],
    variants=[
        Variant(
            "cartesian product",
            """
            def grid_positions(grid, fractional=False):
                if any(side <= 0 for side in grid):
                    raise ValueError("empty")
                places = torch.cartesian_prod(*[torch.arange(side) for side in grid]).reshape(-1, len(grid)).float()
                return places / torch.tensor(grid) if fractional else places
            """,
        ),
        Variant(
            "unravel_index",
            """
            def grid_positions(grid, fractional=False):
                if min(grid) <= 0:
                    raise ValueError("empty")
                index = torch.arange(math.prod(grid))
                places = torch.stack(torch.unravel_index(index, grid), 1).to(torch.float32)
                if fractional:
                    places = places / torch.tensor(grid, dtype=torch.float32)
                return places
            """,
        ),
        Variant(
            "division and remainder",
            """
            def grid_positions(grid, fractional=False):
                if min(grid) < 1:
                    raise ValueError("empty")
                index, columns = torch.arange(int(np.prod(grid))), []
                for side in reversed(grid):
                    place = (index % side).float()
                    columns.insert(0, place / side if fractional else place)
                    index = index // side
                return torch.stack(columns, dim=1)
            """,
        ),
        Variant(
            "numpy's ndindex",
            """
            def grid_positions(grid, fractional=False):
                if min(grid) < 1:
                    raise ValueError("empty")
                divide = grid if fractional else [1.0] * len(grid)
                return torch.tensor([[p / by for p, by in zip(at, divide)] for at in np.ndindex(*grid)])
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "First each axis alone: `torch.arange(side)`, divided by `side` if fractions are wanted. Then every "
            'combination: `torch.meshgrid(..., indexing="ij")`.',
        ),
        Hint(
            "my rows and columns are swapped",
            'Without `indexing="ij"` meshgrid swaps the first two axes. And the numbers of one token belong side by '
            "side: `torch.stack(grids, dim=-1)`.",
        ),
        Hint(
            "it works for pictures, not for videos",
            "`torch.meshgrid(*sides)` takes any number of axes; `.flatten(0, -2)` joins all but the last.",
        ),
        Hint(
            "show me nearly everything",
            "sides = [torch.arange(s, dtype=torch.float32) / (s if fractional else 1) for s in grid]; "
            'torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, -2).',
        ),
    ],
)


# --------------------------------------------------------------------------------------------- factorised positions


def _places(*shape: int, rows: tuple[int, ...], fractional: bool = False, whole: bool = False):
    """Random places inside tables of that many rows."""

    def inputs(g):
        top = torch.tensor([1.0 if fractional else r - 1.0 for r in rows])
        places = torch.rand(*shape, len(rows), generator=g) * top
        return dict(places=places.round() if whole else places)

    return inputs


def _on_grid(*grid: int, fractional: bool = False):
    return lambda g: dict(places=grid_positions(grid, fractional)[None])


def _read(module, places: Tensor):
    # The derivative by the place jumps at every row, so right answers may differ in it; the tables' is what counts.
    return module(places.detach())


def _look(module, places: Tensor):
    """Without gradients: a table of one row makes some right-looking answers divide by 0, which PyTorch survives
    forwards only."""
    return module(places.detach()).detach()


_AT = "at = place * last if self.fractional else place"
_LOW = "low = at.long().clamp(max=last)"
_HIGH = "high = (low + 1).clamp(max=last)"
_SUM = "total = total + table[low] * (1 - part) + table[high] * part"


def _reading(label, inputs, rows=(5, 7), d=11, fractional=False):
    return Case(label, inputs, init=dict(rows=rows, d=d, fractional=fractional), call=_read)


def _forward(body: str) -> str:
    """The class with another body of ``forward``."""
    source = inspect.getsource(FactorisedPositions)
    head, old = source.split("        total = 0.0\n")
    assert old.rstrip().endswith("return total"), "the body of forward has changed: adapt the exercise"
    return head + textwrap.indent(textwrap.dedent(body).strip("\n"), 8 * " ") + "\n"


def _floor_ceil(at: str, mix: str = "table[low] * (1 - part) + table[high] * part", places: str = "places") -> str:
    """The class with a ``forward`` that reads at floor and ceil and clamps nothing, as many write it."""
    return _forward(
        f"""
        total = 0
        for axis, table in enumerate(self.tables):
            place = {places}[..., axis]
            at = {at}
            low, high = at.floor().long(), at.ceil().long()
            part = (at - low)[..., None]
            total = total + {mix}
        return total
        """
    )


POSITIONS = Exercise(
    target=FactorisedPositions,
    minutes=12,
    given=("__init__",),
    properties=[
        Property(
            "A new table holds random numbers of size 0.02, as the given constructor makes them.",
            lambda cls: all(0.01 < t.std() < 0.03 for t in cls((40, 50), 30).tables),
        ),
        Property(
            "`fractional` is False by default, as in the given constructor.",
            lambda cls: not cls((2, 3), 1).fractional,
        ),
    ],
    cases=[
        _reading("patch numbers in packed rows", _places(2, 13, rows=(5, 7), whole=True)),
        _reading("places between patches", _places(3, 13, rows=(5, 7))),
        _reading("fractions", _places(2, 13, rows=(5, 7), fractional=True), fractional=True),
        _reading("fractions of a grid of 3 x 4", _on_grid(3, 4, fractional=True), fractional=True),
        _reading("every place of a full grid", _on_grid(5, 7)),
        _reading(
            "the last fraction is 1", lambda g: dict(places=torch.tensor([[1.0, 0.0], [0.5, 1.0]])), fractional=True
        ),
        _reading("a list of tokens, no batch", _places(13, rows=(5, 7))),
        _reading("one place", _places(rows=(5, 7))),
        _reading("a video: three axes", _places(2, 13, rows=(5, 3, 7)), rows=(5, 3, 7)),
        _reading("a video, fractions", _places(2, 13, rows=(5, 3, 7), fractional=True), (5, 3, 7), fractional=True),
        _reading(
            "patch numbers that are all 0 or 1", lambda g: dict(places=torch.randint(2, (3, 5, 2), generator=g) * 1.0)
        ),
        Case("`fractional` is left out", _places(13, rows=(5, 7)), init=dict(rows=(5, 7), d=3), call=_read),
        Case("a table of one row", _places(2, 13, rows=(1, 7)), init=dict(rows=(1, 7), d=3), call=_look),
        Case(
            "a table of one row, fractions",
            _places(13, rows=(6, 1), fractional=True),
            init=dict(rows=(6, 1), d=3, fractional=True),
            call=_look,
        ),
        _reading("tables as wide as they are long", _places(2, 13, rows=(7, 7)), rows=(7, 7), d=7),
    ],
    mistakes=[
        Mistake(
            "The tables changed places: `places[..., 0]` is the row of the picture and belongs to `tables[0]`.",
            old="zip(places.unbind(-1), self.tables, strict=True)",
            new="zip(places.flip(-1).unbind(-1), self.tables, strict=True)",
        ),
        Mistake(
            "You multiply what the tables say. The paper compared: the sum works best, and is what is asked for.",
            code=_forward(
                """
                total = 1.0
                for place, table in zip(places.unbind(-1), self.tables):
                    last = len(table) - 1
                    at = place * last if self.fractional else place
                    low = at.long().clamp(max=last)
                    high = (low + 1).clamp(max=last)
                    part = (at - low)[..., None]
                    total = total * (table[low] * (1 - part) + table[high] * part)
                return total
                """
            ),
        ),
        Mistake(
            "You take the mean over the axes. The vectors are added: dividing by the number of axes makes them smaller "
            "for videos than for pictures.",
            old="return total",
            new="return total / len(self.tables)",
        ),
        Mistake(
            "You put the tables' vectors side by side, so the result is too wide. They are added: (..., d).",
            code=_forward(
                """
                found = []
                for place, table in zip(places.unbind(-1), self.tables):
                    last = len(table) - 1
                    at = place * last if self.fractional else place
                    low = at.long().clamp(max=last)
                    high = (low + 1).clamp(max=last)
                    part = (at - low)[..., None]
                    found.append(table[low] * (1 - part) + table[high] * part)
                return torch.cat(found, dim=-1)
                """
            ),
        ),
        Mistake(
            "You return one vector per axis, unsummed. Add them up.",
            code=_forward(
                """
                found = []
                for place, table in zip(places.unbind(-1), self.tables):
                    last = len(table) - 1
                    at = place * last if self.fractional else place
                    low = at.long().clamp(max=last)
                    high = (low + 1).clamp(max=last)
                    part = (at - low)[..., None]
                    found.append(table[low] * (1 - part) + table[high] * part)
                return torch.stack(found, dim=-2)
                """
            ),
        ),
        Mistake(
            "A place between two rows takes the lower row alone. It should take both in proportion to its nearness: "
            "otherwise many fractions share one vector.",
            old=_SUM,
            new="total = total + table[low]",
        ),
        Mistake(
            "A place between two rows takes the nearest row alone. It should take both, in proportion.",
            old=_SUM,
            new="total = total + table[at.round().long()]",
        ),
        Mistake(
            "A place between two rows takes the upper row alone. It should take both, in proportion.",
            old=_SUM,
            new="total = total + table[at.ceil().long()]",
        ),
        Mistake(
            "A place between two rows takes both by halves, however near it is to one of them.",
            old=_SUM,
            new="part = (part > 0).to(part) / 2\n            " + _SUM,
        ),
        Mistake(
            "The weights are exchanged: at 2.25, row 2 is nearer and must get 0.75.",
            old=_SUM,
            new="total = total + table[low] * part + table[high] * (1 - part)",
        ),
        Mistake(
            "Fractions are multiplied by the number of rows. Then 1 lies beyond the last row: multiply by rows - 1.",
            old=_AT,
            new="at = place * (last + 1) if self.fractional else place",
        ),
        Mistake(
            "Fractions read the table as if they were patch numbers, so all of them lie between the first two rows. "
            "Multiply by rows - 1.",
            old=_AT,
            new="at = place",
        ),
        Mistake(
            "Patch numbers are multiplied by rows - 1 too. They name the row already; only fractions are scaled.",
            old=_AT,
            new="at = (place * last).clamp(max=last)",
        ),
        Mistake(
            "`fractional` works the wrong way round.",
            old=_AT,
            new="at = place if self.fractional else (place * last).clamp(max=last)",
        ),
        Mistake(
            "A fraction is made a whole number before it is scaled, so it is 0 for everybody. Scale first.",
            old=_AT,
            new="at = place.long() * last if self.fractional else place",
        ),
        Mistake(
            "You divide by the largest place in the batch. Then a token's vector depends on its neighbours in the row, "
            "and changes when they are packed otherwise.",
            old=_AT,
            new="at = place / place.max().clamp(min=1e-6) * last if self.fractional else place",
        ),
        Mistake(
            "All axes use the length of the first table. Each fraction is scaled by its own table: rows - 1.",
            old=_AT,
            new="at = place * (len(self.tables[0]) - 1) if self.fractional else place",
        ),
        Mistake(
            "At the last row there is no next one: row + 1 lies outside of the table, and PyTorch stops. Clamp it.",
            old=_HIGH,
            new="high = low + 1",
        ),
        Mistake(
            "Places below the last row are pulled to it: you clamp to rows - 2 and lose the last row.",
            old=_AT,
            new="at = (place * last if self.fractional else place).clamp(max=max(last - 1, 0))",
        ),
        Mistake(
            "Only the first axis is read. A sum over all axes is asked for.",
            old="zip(places.unbind(-1), self.tables, strict=True)",
            new="zip(places.unbind(-1)[:1], list(self.tables)[:1], strict=True)",
        ),
        Mistake(
            "Only two axes are read; a video has three. Loop over `self.tables`.",
            old="zip(places.unbind(-1), self.tables, strict=True)",
            new="zip(places.unbind(-1)[:2], list(self.tables)[:2], strict=True)",
        ),
        Mistake(
            "Between two rows the weights are exchanged: floor gets `part` and ceil gets 1 - part. The nearer row must "
            "get more.",
            code=_floor_ceil(
                "place * (len(table) - 1) if self.fractional else place",
                "torch.where(part > 0, table[low] * part + table[high] * (1 - part), table[low])",
            ),
        ),
        Mistake(
            "The axes are read in reverse order: places[..., 0] with the last table. The first number belongs to the "
            "first table.",
            code=_floor_ceil("place * (len(table) - 1) if self.fractional else place", places="places.flip(-1)"),
        ),
        Mistake(
            "Fractions are multiplied by the number of rows, so that r = 1 asks for a row behind the last one, and "
            "PyTorch stops. Multiply by rows - 1.",
            code=_floor_ceil("place * len(table) if self.fractional else place"),
        ),
        Mistake(
            "You put rows at the middle of equal pieces, r * rows - 0.5 (`align_corners=False`). Here 0 is the first "
            "row and 1 the last: r * (rows - 1).",
            code=_floor_ceil("(place * len(table) - 0.5).clamp(0, len(table) - 1) if self.fractional else place"),
        ),
        Mistake(
            "Patch numbers are scaled as if they were fractions, and fall out of the table. Ask `self.fractional`.",
            code=_floor_ceil("place * (len(table) - 1)"),
        ),
        Mistake(
            "`self.fractional` is asked the wrong way round: patch numbers are scaled and fall out of the table.",
            code=_floor_ceil("place if self.fractional else place * (len(table) - 1)"),
        ),
        Mistake(
            "You guess from the numbers whether they are fractions. Patch numbers may all be 0 or 1 too: ask "
            "`self.fractional`.",
            code=_floor_ceil("place * (len(table) - 1) if places.max() <= 1 else place"),
        ),
        Mistake(
            "All axes use the length of the longest table. Each fraction is scaled by its own table.",
            code=_floor_ceil(
                "(place * (max(len(t) for t in self.tables) - 1) if self.fractional else place).clamp(max=len(table) "
                "- 1)"
            ),
        ),
        Mistake(
            "All axes use the length of the shortest table. Each fraction is scaled by its own table.",
            old=_AT,
            new="at = place * (min(len(t) for t in self.tables) - 1) if self.fractional else place",
        ),
        Mistake(
            "Only fractions are interpolated; patch numbers are cut to whole ones. The contract interpolates in either "
            "mode.",
            old=_AT,
            new="at = place * last if self.fractional else place.floor()",
        ),
        Mistake(
            "The share has one number per token, (...), and the rows of a table are (..., d): they do not line up. "
            "Give the share a last axis of one, `part[..., None]`.",
            old="part = (at - low)[..., None]",
            new="part = at - low",
        ),
        Mistake(
            "The tables cannot learn: `.data`, `.detach()` or `torch.no_grad()` cuts them off from the loss.",
            old=_SUM,
            new="table = table.detach()\n            " + _SUM,
        ),
        Mistake(
            "The axes before the last are flattened. Keep them: (b, n, axes) gives (b, n, d).",
            old="return total",
            new="return total.reshape(-1, total.shape[-1])",
        ),
    ],
    variants=[
        Variant(
            "hats: every row gets a weight",
            _forward(
                """
                total = 0
                for axis, table in enumerate(self.tables):
                    rows = torch.arange(len(table))
                    at = places[..., axis] * (len(table) - 1) if self.fractional else places[..., axis]
                    weights = (1 - (at[..., None] - rows).abs()).clamp(min=0)
                    total = total + weights @ table
                return total
                """
            ),
        ),
        Variant(
            "torch.lerp",
            _forward(
                """
                vectors = []
                for axis in range(places.shape[-1]):
                    table, at = self.tables[axis], places[..., axis]
                    if self.fractional:
                        at = at * (table.shape[0] - 1)
                    below, above = at.floor(), at.ceil()
                    vectors.append(torch.lerp(table[below.long()], table[above.long()], (at - below).unsqueeze(-1)))
                return sum(vectors)
                """
            ),
        ),
        Variant(
            "loops over tokens",
            _forward(
                """
                flat = places.reshape(-1, len(self.tables))
                out = []
                for place in flat.tolist():
                    vector = 0
                    for p, table in zip(place, self.tables):
                        p = p * (len(table) - 1) if self.fractional else p
                        low = min(int(p), len(table) - 1)
                        vector = vector + (1 - (p - low)) * table[low]
                        if p > low:
                            vector = vector + (p - low) * table[low + 1]
                    out.append(vector)
                return torch.stack(out).reshape(*places.shape[:-1], -1)
                """
            ),
        ),
        Variant(
            "the lower row is the last but one at most",
            _forward(
                """
                total = 0.0
                for place, table in zip(places.unbind(-1), self.tables):
                    last = len(table) - 1
                    at = place * last if self.fractional else place
                    low = at.long().clamp(max=last - 1)
                    part = (at - low)[..., None]
                    total = total + table[low] * (1 - part) + table[low + 1] * part
                return total
                """
            ),
        ),
        Variant(
            "wraps round at the end, where the weight is 0",
            _forward(
                """
                total = torch.zeros(*places.shape[:-1], self.tables[0].shape[1])
                for place, table in zip(places.split(1, dim=-1), self.tables):
                    if self.fractional:
                        place = place * (len(table) - 1)
                    low = place.long()
                    rest = place - low
                    one, two = table[low[..., 0]], table[(low[..., 0] + 1) % len(table)]
                    total = total + one + rest * (two - one)
                return total
                """
            ),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "First patch numbers alone: `self.tables[0][places[..., 0].long()] + self.tables[1][places[..., "
            "1].long()]`. Then make it a loop over the tables.",
        ),
        Hint(
            "how do I read between two rows?",
            "low = at.long(), part = at - low; (1 - part) of row low and part of row low + 1. `part[..., None]` lines "
            "up with the d channels.",
        ),
        Hint(
            "index out of range",
            "At the last row there is no row + 1. Its weight is 0 there, so any row will do: `.clamp(max=last)`.",
        ),
        Hint(
            "show me nearly everything",
            "For each axis: last = len(table) - 1; at = place * last if self.fractional else place; low = at.long(); "
            "high = (low + 1).clamp(max=last); part = (at - low)[..., None]; add table[low] * (1 - part) + "
            "table[high] * part.",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------------------- pooling

_TOTAL = "tokens.new_zeros(count, tokens.shape[-1]).index_add(0, owner, tokens[real])"
_DIVIDE = "total / torch.bincount(owner, minlength=count).clamp(min=1)[:, None]"


def _packed_tokens(ids: list[list[int]], d: int, count: int):
    return lambda g: dict(tokens=randn(g, len(ids), len(ids[0]), d) + 0.5, ids=torch.tensor(ids), count=count)


def _loud_padding(g):
    ids = torch.tensor([[1, 1, -1, 0, 0, 0, -1], [2, -1, 2, 2, 3, -1, -1]])
    return dict(tokens=torch.where(ids[..., None] < 0, 1e4, randn(g, 2, 7, 5)), ids=ids, count=4)


def _many(g):
    return dict(tokens=randn(g, 3, 17, 5), ids=torch.randint(-1, 8, (3, 17), generator=g), count=8)


def _with_zeros(g):
    ids = torch.tensor([[0, 0, 0, 1, 1, -1], [2, 2, 1, -1, -1, -1]])
    return dict(tokens=randn(g, 2, 6, 5).index_fill(1, torch.tensor([1, 3]), 0.0), ids=ids, count=3)


POOL = Exercise(
    target=pool,
    minutes=10,
    cases=[
        Case("two rows, ragged and padded", _packed_tokens([[0, 0, 0, 1, 1, 3, -1], [2, 2, 4, 4, 4, -1, -1]], 3, 5)),
        Case("large numbers at padding", _loud_padding),
        Case("ids in any order, images in several rows", _many),
        Case("two images have no tokens", _packed_tokens([[3, 3, 1, 1, 1], [3, -1, -1, -1, -1]], 7, 6)),
        Case("no padding", _packed_tokens([[0, 1, 1], [2, 2, 2]], 5, 3)),
        Case(
            "the rows hold later images first",
            _packed_tokens([[5, 5, 3, 3, 3], [0, 1, 1, 2, -1], [4, 4, 4, -1, -1]], 7, 6),
        ),
        Case("one image", _packed_tokens([[0, 0, 0, -1, -1]], 7, 1)),
        Case("nothing but padding", _packed_tokens([[-1, -1, -1]], 5, 2)),
        Case("rows, tokens, channels and images are all 3", _packed_tokens([[0, 0, 1], [2, -1, -1], [0, 1, 1]], 3, 3)),
        Case("a token of zeros is a token", _with_zeros),
        Case("in double precision", lambda g: {**_many(g), "tokens": randn(g, 3, 17, 5).double()}),
        Case("one token each", _packed_tokens([[2, 0, 1, 3, -1]], 7, 4)),
    ],
    mistakes=[
        Mistake(
            "All images of a row share one vector: you average over the row. Average over each image's own tokens.",
            code="""
            def pool(tokens, ids, count):
                out = tokens.new_zeros(count, tokens.shape[-1])
                for row, numbers in zip(tokens, ids):
                    for i in numbers[numbers >= 0].unique():
                        out[i] = row[numbers >= 0].mean(0)
                return out
            """,
        ),
        Mistake(
            "You add up but do not divide: a picture with four times the tokens gets a vector four times as long. Take "
            "the mean.",
            old=_DIVIDE,
            new="total",
        ),
        Mistake(
            "You divide by the length of the row. Divide each sum by the number of that image's own tokens.",
            old=_DIVIDE,
            new="total / tokens.shape[1]",
        ),
        Mistake(
            "You divide by the number of all real tokens. Divide each sum by the number of that image's own tokens.",
            old=_DIVIDE,
            new="total / max(len(owner), 1)",
        ),
        Mistake(
            "You divide by the number of all places, padding included. Divide each sum by the number of that image's "
            "own tokens.",
            old=_DIVIDE,
            new="total / ids.numel()",
        ),
        Mistake(
            "A token of zeros is taken for padding. Whether a token counts says its id, not its value.",
            old="real = ids >= 0",
            new="real = (ids >= 0) & (tokens != 0).any(-1)",
        ),
        Mistake(
            "The result is float32 whatever the tokens are. Keep their dtype, as `tokens.new_zeros` does.",
            old=_DIVIDE,
            new="(total / torch.bincount(owner, minlength=count).clamp(min=1)[:, None]).float()",
        ),
        Mistake(
            "Where an image lies in several rows only the last of them counts. Its tokens may be anywhere.",
            code="""
            def pool(tokens, ids, count):
                out = [tokens.new_zeros(tokens.shape[-1]) for _ in range(count)]
                for row, numbers in zip(tokens, ids):
                    for i in numbers[numbers >= 0].unique().tolist():
                        out[i] = row[numbers == i].mean(0)
                return torch.stack(out)
            """,
        ),
        Mistake(
            "Images without tokens are moved to the end. They get their zeros where their number is.",
            code="""
            def pool(tokens, ids, count):
                rows = [tokens[ids == i].mean(0) for i in ids[ids >= 0].unique()]
                rows += [tokens.new_zeros(tokens.shape[-1])] * (count - len(rows))
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "You divide by the square root of the number of tokens. A mean divides by the number itself.",
            old=_DIVIDE,
            new="total / torch.bincount(owner, minlength=count).clamp(min=1).sqrt()[:, None]",
        ),
        Mistake(
            "One too many is counted: you divide by n + 1, perhaps against a division by zero. `.clamp(min=1)` changes "
            "only the images without tokens.",
            old=_DIVIDE,
            new="total / (torch.bincount(owner, minlength=count) + 1)[:, None]",
        ),
        Mistake(
            "An image without tokens gets nan, 0 / 0. The contract asks for zeros.",
            old=_DIVIDE,
            new="total / torch.bincount(owner, minlength=count)[:, None]",
        ),
        Mistake(
            "You add a small number to the count, against a division by zero, and every mean comes out a little too "
            "small. `.clamp(min=1)` changes nothing but the 0.",
            old=_DIVIDE,
            new="total / (torch.bincount(owner, minlength=count)[:, None] + 1e-6)",
        ),
        Mistake(
            "Padding is added to the last image: -1 as an index means the last one. Leave padding out first.",
            code="""
            def pool(tokens, ids, count):
                flat, owner = tokens.flatten(0, 1), ids.flatten() % count
                total = tokens.new_zeros(count, tokens.shape[-1]).index_add(0, owner, flat)
                return total / torch.bincount(owner, minlength=count).clamp(min=1)[:, None]
            """,
        ),
        Mistake(
            "Padding is added to image 0. Its id is -1, and it belongs to nobody.",
            code="""
            def pool(tokens, ids, count):
                flat, owner = tokens.flatten(0, 1), ids.flatten().clamp(min=0)
                total = tokens.new_zeros(count, tokens.shape[-1]).index_add(0, owner, flat)
                return total / torch.bincount(owner, minlength=count).clamp(min=1)[:, None]
            """,
        ),
        Mistake(
            "Image 0 is taken for padding and gets zeros. Padding is -1.",
            old="real = ids >= 0",
            new="real = ids > 0",
        ),
        Mistake(
            "Padding is left out of the sums but counted for image 0 all the same.",
            old=_DIVIDE,
            new="total / torch.bincount(ids.flatten().clamp(min=0), minlength=count).clamp(min=1)[:, None]",
        ),
        Mistake(
            "Of tokens with the same id only one counts: `out[ids] += tokens` does not add repeatedly. `index_add` "
            "does.",
            code="""
            def pool(tokens, ids, count):
                real = ids >= 0
                owner = ids[real]
                total = tokens.new_zeros(count, tokens.shape[-1])
                total = total.clone()
                last = {int(o): t for o, t in zip(owner, tokens[real])}
                rows = [last.get(i, total[i]) for i in range(count)]
                return torch.stack(rows) / torch.bincount(owner, minlength=count).clamp(min=1)[:, None]
            """,
        ),
        Mistake(
            "You take the first token of each image. That is a class token's job, and there is none: take the mean.",
            code="""
            def pool(tokens, ids, count):
                rows = []
                for i in range(count):
                    mine = tokens[ids == i]
                    rows.append(mine[0] if len(mine) else tokens.new_zeros(tokens.shape[-1]))
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "Only the last token of each image is left. Take the mean over all of them. (`out[ids] += tokens` counts "
            "each index once; `index_add` adds them all.)",
            code="""
            def pool(tokens, ids, count):
                rows = []
                for i in range(count):
                    mine = tokens[ids == i]
                    rows.append(mine[-1] if len(mine) else tokens.new_zeros(tokens.shape[-1]))
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "You take the largest value of each channel. Asked for is the mean.",
            code="""
            def pool(tokens, ids, count):
                rows = []
                for i in range(count):
                    mine = tokens[ids == i]
                    rows.append(mine.amax(0) if len(mine) else tokens.new_zeros(tokens.shape[-1]))
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "You take the median of each channel. Asked for is the mean.",
            code="""
            def pool(tokens, ids, count):
                rows = []
                for i in range(count):
                    mine = tokens[ids == i]
                    rows.append(mine.median(0).values if len(mine) else tokens.new_zeros(tokens.shape[-1]))
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "The mean goes over the channels too, so one number per image is left. Average over tokens only: (count, "
            "d).",
            code="""
            def pool(tokens, ids, count):
                rows = [tokens[ids == i].mean() if (ids == i).any() else tokens.new_zeros(()) for i in range(count)]
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "The result has one vector per row and image, (b, count, d). Ids count over all rows, so the rows can be "
            "joined first.",
            code="""
            def pool(tokens, ids, count):
                member = (ids[:, None, :] == torch.arange(count)[:, None]).to(tokens)
                return member @ tokens / member.sum(-1, keepdim=True).clamp(min=1)
            """,
        ),
        Mistake(
            "Where an image lies in several rows you average the rows' means. Its tokens count equally, wherever they "
            "lie: one sum, one count.",
            code="""
            def pool(tokens, ids, count):
                member = (ids[:, None, :] == torch.arange(count)[:, None]).to(tokens)
                number = member.sum(-1, keepdim=True)
                means = member @ tokens / number.clamp(min=1)
                return means.sum(0) / (number > 0).sum(0).clamp(min=1)
            """,
        ),
        Mistake(
            "Only the first row is read. The images lie in all rows.",
            code="""
            def pool(tokens, ids, count):
                tokens, ids = tokens[0], ids[0]
                rows = [tokens[ids == i].mean(0) if (ids == i).any() else tokens.new_zeros(tokens.shape[-1])
                        for i in range(count)]
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "Vectors come out in the order in which the images lie in the rows. Row i of the result is image i, or the "
            "labels no longer match.",
            code="""
            def pool(tokens, ids, count):
                order = list(dict.fromkeys(i for i in ids.flatten().tolist() if i >= 0))
                order += [i for i in range(count) if i not in order]
                rows = [tokens[ids == i].mean(0) if (ids == i).any() else tokens.new_zeros(tokens.shape[-1])
                        for i in order]
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "The result ends with the last image that has tokens. It has `count` rows, always.",
            code="""
            def pool(tokens, ids, count):
                real = ids >= 0
                owner = ids[real]
                number = torch.bincount(owner)
                total = tokens.new_zeros(len(number), tokens.shape[-1]).index_add(0, owner, tokens[real])
                return total / number.clamp(min=1)[:, None]
            """,
        ),
        Mistake(
            "Images without tokens are left out, so those behind them move up. They get a row of zeros.",
            code="""
            def pool(tokens, ids, count):
                return torch.stack([tokens[ids == i].mean(0) for i in ids[ids >= 0].unique()] or
                                   [tokens.new_zeros(tokens.shape[-1])])
            """,
        ),
        Mistake(
            "Runs of equal ids are averaged one by one, so an image whose tokens are not side by side keeps only its "
            "last run.",
            code="""
            def pool(tokens, ids, count):
                rows = [tokens.new_zeros(tokens.shape[-1]) for _ in range(count)]
                flat, numbers = tokens.flatten(0, 1), ids.flatten().tolist()
                start = 0
                for end in range(1, len(numbers) + 1):
                    if end == len(numbers) or numbers[end] != numbers[start]:
                        if numbers[start] >= 0:
                            rows[numbers[start]] = flat[start:end].mean(0)
                        start = end
                return torch.stack(rows)
            """,
        ),
        Mistake(
            "The values are right, but nothing can learn: `.detach()`, `.data` or `torch.no_grad()` cuts the gradient.",
            old=_DIVIDE,
            new="total.detach() / torch.bincount(owner, minlength=count).clamp(min=1)[:, None]",
        ),
    ],
    variants=[
        Variant(
            "a matrix of memberships",
            """
            def pool(tokens, ids, count):
                member = (ids.flatten() == torch.arange(count)[:, None]).to(tokens)
                total = member @ tokens.flatten(0, 1)
                return total / member.sum(1, keepdim=True).clamp(min=1)
            """,
        ),
        Variant(
            "one image after the other",
            """
            def pool(tokens, ids, count):
                rows = []
                for i in range(count):
                    mine = tokens[ids == i]
                    rows.append(mine.mean(dim=0) if len(mine) > 0 else torch.zeros(tokens.shape[-1]))
                return torch.stack(rows)
            """,
        ),
        Variant(
            "padding has a bin of its own",
            """
            def pool(tokens, ids, count):
                where = ids.reshape(-1) + 1
                where = where[:, None].expand(-1, tokens.shape[-1])
                flat = tokens.reshape(-1, tokens.shape[-1])
                out = tokens.new_zeros(count + 1, tokens.shape[-1])
                return out.scatter_reduce(0, where, flat, "mean", include_self=False)[1:]
            """,
        ),
        Variant(
            "one-hot and einsum",
            """
            def pool(tokens, ids, count):
                member = F.one_hot(ids + 1, count + 1)[..., 1:].to(tokens.dtype)
                number = member.sum((0, 1))
                total = torch.einsum("bnc,bnd->cd", member, tokens)
                return total / number.clamp(min=1.0)[:, None]
            """,
        ),
        Variant(
            "token by token",
            """
            def pool(tokens, ids, count):
                total, number = [0] * count, [0] * count
                for row, numbers in zip(tokens, ids.tolist()):
                    for token, i in zip(row, numbers):
                        if i >= 0:
                            total[i], number[i] = total[i] + token, number[i] + 1
                empty = torch.zeros(tokens.shape[-1])
                return torch.stack([t / n if n else empty for t, n in zip(total, number)])
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "`tokens[ids == i]` are all tokens of image i, (m, d), from whatever row. A loop over the images is a fine "
            "first answer.",
        ),
        Hint(
            "I get nan",
            "The mean of nothing is 0 / 0. Divide the sum by the count, and let the count be at least 1.",
        ),
        Hint(
            "can it be done without a loop?",
            "`index_add(0, owner, tokens)` adds every token to the row of its image, `torch.bincount` counts them. "
            "Or a matrix product: (count, b n) memberships @ (b n, d) tokens.",
        ),
        Hint(
            "show me nearly everything",
            "real = ids >= 0; owner = ids[real]; total = zeros(count, d).index_add(0, owner, tokens[real]); divide by "
            "torch.bincount(owner, minlength=count).clamp(min=1)[:, None].",
        ),
    ],
)


# --------------------------------------------------------------------------------------------------- dropping tokens

_RATE = "not 0 <= rate <= 1"
_EVAL = "if not training:"
_CHANCE = "chance = torch.rand(n, generator=generator)"
_DROPPED = "dropped = min(int(rate * n), n - 1)"
_STAY = "stay = chance.argsort()[dropped:].sort().values.to(tokens.device)"
_BOTH = "return tokens[stay], positions[stay]"


def _one_image(n: int, d: int, rate: float, axes: int = 2, training: bool = True, dtype=torch.float32):
    def inputs(g):
        tokens, positions = (9 * randn(g, n, d)).to(dtype), torch.rand(n, axes, generator=g)
        return dict(tokens=tokens, positions=positions, rate=rate, training=training, seed=n)

    return inputs


def _seeded(drop, seed: int, **inputs):
    return drop(**inputs, generator=torch.Generator().manual_seed(seed))


def _by_default(drop, seed: int, **inputs):
    torch.manual_seed(seed)
    return drop(**inputs)


def _left_out(drop, seed: int, training: bool, **inputs):
    return drop(**inputs, generator=torch.Generator().manual_seed(seed))


def _then_draw(drop, seed: int, **inputs):
    """What was kept, and the number that the generator gives next."""
    generator = torch.Generator().manual_seed(seed)
    return drop(**inputs, generator=generator), torch.rand(1, generator=generator)


def _dropping(label: str, inputs, call=_seeded) -> Case:
    return Case(label, inputs, call=call)


DROP = Exercise(
    target=drop_tokens,
    minutes=12,
    cases=[
        _dropping("11 tokens, rate 0.4", _one_image(11, 7, 0.4)),
        _dropping("23 tokens of a video, rate 0.7", _one_image(23, 5, 0.7, axes=3)),
        _dropping("7 tokens, half of them", _one_image(7, 13, 0.5)),
        _dropping("8 tokens, rate 0.25", _one_image(8, 3, 0.25)),
        _dropping("rate 0", _one_image(5, 3, 0.0)),
        _dropping("rate 1", _one_image(7, 3, 1.0)),
        _dropping("one token", _one_image(1, 3, 0.9)),
        _dropping("one token, rate 1", _one_image(1, 3, 1.0)),
        _dropping("10 tokens, rate 0.7", _one_image(10, 3, 0.7)),
        _dropping("bytes", _one_image(11, 4, 0.4, dtype=torch.uint8)),
        _dropping("tokens in double precision", _one_image(11, 4, 0.4, dtype=torch.float64)),
        _dropping("`training` is left out", _one_image(11, 7, 0.4), _left_out),
        _dropping("what the generator gives next", _one_image(11, 7, 0.4), _then_draw),
        _dropping("two tokens, rate 0.9", _one_image(2, 3, 0.9)),
        _dropping("3 tokens of 3 channels on 3 axes", _one_image(3, 3, 0.5, axes=3)),
        _dropping("the global generator", _one_image(13, 7, 0.3), _by_default),
        _dropping("in evaluation", _one_image(11, 7, 0.6, training=False)),
        _dropping("what the generator gives after evaluation", _one_image(11, 7, 0.6, training=False), _then_draw),
        _dropping("a rate above 1", _one_image(5, 3, 1.5)),
        _dropping("a negative rate", _one_image(5, 3, -0.2)),
        _dropping("a rate above 1 in evaluation", _one_image(5, 3, 2.0, training=False)),
    ],
    mistakes=[
        Mistake(
            "The tokens that stay get the positions of the first ones: the patches have moved. Index both with the "
            "same numbers.",
            old=_BOTH,
            new="return tokens[stay], positions[: len(stay)]",
        ),
        Mistake(
            "Tokens are dropped, positions are not. Index both with the same numbers.",
            old=_BOTH,
            new="return tokens[stay], positions",
        ),
        Mistake(
            "Positions are dropped, tokens are not. Index both with the same numbers.",
            old=_BOTH,
            new="return tokens, positions[stay]",
        ),
        Mistake(
            "Tokens and positions are drawn separately, so they no longer belong to each other. Draw once.",
            old=_BOTH,
            new="other = torch.rand(n, generator=generator).argsort()[dropped:].sort().values\n"
            "    return tokens[stay], positions[other]",
        ),
        Mistake(
            "The two results are exchanged: tokens first, then positions.",
            old=_BOTH,
            new="return positions[stay], tokens[stay]",
        ),
        Mistake(
            "A picture can lose all its tokens: it has no mean then. At least one stays.",
            old=_DROPPED,
            new="dropped = int(rate * n)",
        ),
        Mistake(
            "At least one token is *dropped*, also at rate 0. At least one must *stay*.",
            old=_DROPPED,
            new="dropped = min(max(int(rate * n), 1), n - 1)",
        ),
        Mistake(
            "Tokens are dropped in evaluation too: the answer for a picture would depend on chance.",
            old=_EVAL,
            new="if False:",
        ),
        Mistake(
            "`training` works the wrong way round: you drop in evaluation only.",
            old=_EVAL,
            new="if training:",
        ),
        Mistake(
            "In evaluation a number is drawn for each token and not used. Then a run with evaluations in between is "
            "another run: return before you draw.",
            old=_EVAL,
            new="torch.rand(len(tokens), generator=generator)\n    if not training:",
        ),
        Mistake(
            "You keep the tokens with the smallest numbers. Those are the ones to drop.",
            old=_STAY,
            new="stay = chance.argsort()[: n - dropped].sort().values",
        ),
        Mistake(
            "`rate` is the share to drop, and you keep that share.",
            old=_DROPPED,
            new="dropped = min(n - int(rate * n), n - 1)",
        ),
        Mistake(
            "Each token is dropped by its own coin, so the number of those that stay varies. Drop exactly rate * n, "
            "rounded down.",
            old=_STAY,
            new="stay = (chance >= rate).nonzero()[:, 0]\n    stay = stay if len(stay) else chance.argmax()[None]",
        ),
        Mistake(
            "The tokens come in the order of their random numbers. They keep the order they had: sort the indices.",
            old=_STAY,
            new="stay = chance.argsort()[dropped:]",
        ),
        Mistake(
            "Always the first tokens are dropped: there is no chance in it. The top of every picture would be gone.",
            old=_STAY,
            new="stay = torch.arange(n)[dropped:]",
        ),
        Mistake(
            "Always the last tokens are dropped: there is no chance in it. The bottom of every picture would be gone.",
            old=_STAY,
            new="stay = torch.arange(n)[: n - dropped]",
        ),
        Mistake(
            "You drop a block of neighbours. Each token is drawn for itself.",
            old=_STAY,
            new="first = int(chance[0] * (n - dropped + 1))\n"
            "    stay = torch.cat([torch.arange(first), torch.arange(first + dropped, n)])",
        ),
        Mistake(
            "You round to the nearest number. rate * n is rounded *down*: 3.5 tokens are 3, 6.9 are 6.",
            old=_DROPPED,
            new="dropped = min(int(rate * n + 0.5), n - 1)",
        ),
        Mistake(
            "You round the tokens that stay down, so one more is dropped. Round down what is dropped.",
            old=_DROPPED,
            new="dropped = min(n - int(n * (1 - rate)), n - 1)",
        ),
        Mistake(
            "Dropped tokens become zeros and stay in the row. They should be gone: that is where the speed comes from.",
            old=_BOTH,
            new="mask = torch.zeros(n, 1).index_fill(0, stay, 1.0)\n    return tokens * mask, positions",
        ),
        Mistake(
            "Tokens and positions become zeros, but stay. They should be gone: that is where the speed comes from.",
            old=_BOTH,
            new="mask = torch.zeros(n, 1).index_fill(0, stay, 1.0)\n    return tokens * mask, positions * mask",
        ),
        Mistake(
            "The tokens that stay are made larger, as dropout does with single numbers. Here the mean over the tokens "
            "balances it already.",
            old=_BOTH,
            new="return tokens[stay] * (n / len(stay)), positions[stay]",
        ),
        Mistake(
            "The generator is not used, so the run cannot be repeated: pass it to `torch.rand`.",
            old=_CHANCE,
            new="chance = torch.rand(n)",
        ),
        Mistake(
            "You draw with `randperm` and drop the first of it. That is as random, but other tokens stay than with "
            "the contract's `torch.rand(n)`.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                stay = torch.randperm(n, generator=generator)[n - keep :].sort().values
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "You draw with `randperm` and keep the first of it. That is as random, but other tokens stay than with "
            "the contract's `torch.rand(n)`.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                stay = torch.randperm(n, generator=generator)[:keep].sort().values
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "You draw with `randperm`, and the tokens come in its order. The contract draws with `torch.rand(n)`, "
            "and the tokens keep their order.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                stay = torch.randperm(n, generator=generator)[:keep]
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "`topk` gives the tokens in the order of their random numbers, the largest first. They keep the order "
            "they had: sort the indices.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                stay = torch.rand(n, generator=generator).topk(keep).indices
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "You drop what lies below the `rate`-quantile of the random numbers. It lies between two of them and "
            "counts otherwise: int(rate * n) are dropped.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                chance = torch.rand(n, generator=generator)
                stay = (chance >= chance.quantile(rate)).nonzero()[:, 0]
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "You seed the generator anew at each call, so every picture loses the same patches. Use it as it comes.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                generator = (generator or torch.Generator()).manual_seed(0)
                stay = torch.rand(n, generator=generator).argsort()[n - keep :].sort().values
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "Without a generator you make one of your own, which begins the same each time. None takes PyTorch's "
            "global one: `torch.rand(n, generator=None)` does so.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                generator = torch.Generator() if generator is None else generator
                stay = torch.rand(n, generator=generator).argsort()[n - keep :].sort().values
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "You work with a copy of the generator, so the caller's never moves on, and the next picture loses the "
            "same patches.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                copy = torch.Generator()
                copy.set_state((generator or torch.default_generator).get_state())
                stay = torch.rand(n, generator=copy).argsort()[n - keep :].sort().values
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "Where only one token may stay you keep the first. It is the one with the largest number.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                stay = torch.rand(n, generator=generator).argsort()[n - keep :].sort().values
                stay = stay if rate * n < n else torch.zeros(1, dtype=torch.long)
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "Where only one token may stay you keep the last. It is the one with the largest number.",
            code="""
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                stay = torch.rand(n, generator=generator).argsort()[n - keep :].sort().values
                stay = stay if rate * n < n else torch.full((1,), n - 1)
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "The tokens are in their old order, their positions in that of the random numbers: they no longer belong "
            "to each other. Sort the indices once and use them for both.",
            old=_BOTH,
            new="return tokens[stay], positions[chance.argsort()[dropped:]]",
        ),
        Mistake(
            "`training` must be True by default: who leaves it out wants tokens dropped.",
            code="""
            def drop_tokens(tokens, positions, rate, training=False, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = len(tokens)
                keep = max(1, n - int(rate * n))
                stay = torch.rand(n, generator=generator).argsort()[n - keep :].sort().values
                return tokens[stay], positions[stay]
            """,
        ),
        Mistake(
            "A picture of one token loses it at rate 1. At least one stays, also of one.",
            old=_DROPPED,
            new="dropped = min(int(rate * n), max(n - 1, 1))",
        ),
        Mistake(
            "The tokens come out as float32, whatever they were. Dropping changes no dtype.",
            old=_BOTH,
            new="return tokens[stay].float(), positions[stay]",
        ),
        Mistake(
            "Positions take on the tokens' dtype; bytes have no fractions. Leave both as they are.",
            old=_BOTH,
            new="return tokens[stay], positions[stay].to(tokens.dtype)",
        ),
        Mistake(
            "n - ceil((1 - rate) * n) is not int(rate * n): 10 tokens at 0.7 lose 6 in floating point, and 7 are asked "
            "for.",
            old=_DROPPED,
            new="dropped = n - max(1, math.ceil(n * (1 - rate)))",
        ),
        Mistake(
            "You draw with `randn`. The contract's numbers are those of `torch.rand`.",
            old=_CHANCE,
            new="chance = torch.randn(n, generator=generator)",
        ),
        Mistake(
            "You return the indices of the tokens that stay, not the tokens.",
            old=_BOTH,
            new="return stay, positions[stay]",
        ),
        Mistake(
            "You return the dropped ones. Asked for are those that stay.",
            old=_STAY,
            new="stay = chance.argsort()[: max(dropped, 1)].sort().values",
        ),
        Mistake(
            "In evaluation a wrong rate goes unseen, because you return before you look at it. Refuse it first.",
            old=_RATE,
            new="training and not 0 <= rate <= 1",
        ),
        Mistake(
            "A negative rate is taken; only rates above 1 are refused.",
            old=_RATE,
            new="rate > 1",
        ),
        Mistake(
            "A rate above 1 is taken. Refuse every rate outside of 0 to 1 with a ValueError: somebody wrote 40 for "
            "40%.",
            old=_RATE,
            new="False",
        ),
        Mistake(
            "A rate of 1 is refused. It is allowed, and leaves one token.",
            old=_RATE,
            new="not 0 <= rate < 1",
        ),
        Mistake(
            "A rate of 0 is refused. It is allowed, and drops nothing.",
            old=_RATE,
            new="not 0 < rate <= 1",
        ),
        Mistake(
            "Right but for the refusal: use `raise ValueError(...)`; `assert` raises AssertionError and is skipped "
            "under `python -O`.",
            old='raise ValueError(f"rate={rate} is no share of the tokens; give 0 to 1")',
            new="raise AssertionError(rate)",
        ),
        Mistake(
            "The tokens that stay are cut off from the gradient, so nothing before them can learn.",
            old=_BOTH,
            new="return tokens[stay].detach(), positions[stay]",
        ),
    ],
    variants=[
        Variant(
            "topk",
            """
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if rate < 0 or rate > 1:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                n = tokens.shape[0]
                keep = max(1, n - math.floor(rate * n))
                stay, _ = torch.rand(n, generator=generator).topk(keep).indices.sort()
                return tokens.index_select(0, stay), positions.index_select(0, stay)
            """,
        ),
        Variant(
            "a boolean mask",
            """
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                if training:
                    n = len(tokens)
                    chance = torch.rand(n, generator=generator)
                    rank = chance.argsort().argsort()
                    stay = rank >= min(math.floor(n * rate), n - 1)
                    tokens, positions = tokens[stay], positions[stay]
                return tokens, positions
            """,
        ),
        Variant(
            "sorted in Python",
            """
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0.0 <= rate <= 1.0:
                    raise ValueError("no share")
                if not training:
                    return tokens, positions
                chance = torch.rand(len(tokens), generator=generator).tolist()
                order = sorted(range(len(chance)), key=chance.__getitem__)
                gone = set(order[: min(int(len(tokens) * rate), len(tokens) - 1)])
                stay = [i for i in range(len(tokens)) if i not in gone]
                return tokens[stay], positions[stay]
            """,
        ),
        Variant(
            "a threshold",
            """
            def drop_tokens(tokens, positions, rate, training=True, generator=None):
                if not 0 <= rate <= 1:
                    raise ValueError("no share")
                n = len(tokens)
                if not training:
                    return tokens, positions
                chance, keep = torch.rand(n, generator=generator), max(n - int(n * rate), 1)
                least = chance.sort(descending=True).values[keep - 1]
                return tokens[chance >= least], positions[chance >= least]
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "How many are dropped? int(rate * n), but at most n - 1. Then one random number per token; sort them, and "
            "the first ones of that order are dropped.",
        ),
        Hint(
            "which tokens stay?",
            "`chance.argsort()` lists token numbers from the smallest random number to the largest. Cut off the first "
            "`dropped` of them and `.sort()` the rest, so that the tokens keep their order.",
        ),
        Hint(
            "my patches have moved",
            "Use the same indices for both: `tokens[stay], positions[stay]`.",
        ),
        Hint(
            "show me nearly everything",
            "Refuse the rate; return both if not training; chance = torch.rand(n, generator=generator); dropped = "
            "min(int(rate * n), n - 1); stay = chance.argsort()[dropped:].sort().values.",
        ),
    ],
)


EXERCISES = [FIRST_FIT, BLOCK_MASK, GRID_POSITIONS, POSITIONS, POOL, DROP]
