"""The exercises of lesson 00: the two functions that the whole world of moving digits rests on."""

import torch
from torch import Tensor

from course_lib.data.scenes import reflect, render
from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant


def _integers(g: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    """Whole numbers from ``low`` to ``high``, both included."""
    return torch.randint(low, high + 1, shape, generator=g)


# ---------------------------------------------------------------------------------------------------------- reflect


def _flights(g: torch.Generator, n: int, frames: int, fastest: int, far: int, near: int = 1) -> dict[str, Tensor]:
    """``n`` points in rooms of their own, looked at in ``frames`` frames."""
    limit = _integers(g, near, far, n, 1)
    start = (torch.rand(n, 1, generator=g) * (limit + 1)).long()
    velocity = _integers(g, 1, fastest, n, 1) * (2 * _integers(g, 0, 1, n, 1) - 1)
    return dict(start=start, velocity=velocity, frame=torch.arange(frames), limit=limit)


def _one_flight(g: torch.Generator) -> dict[str, Tensor]:
    start = _integers(g, 1, 3)
    return dict(start=start, velocity=torch.tensor(1), frame=torch.arange(23), limit=torch.tensor(5))


def _rooms_without_width(g: torch.Generator) -> dict[str, Tensor]:
    flights = _flights(g, 5, 7, fastest=3, far=11)
    room = torch.tensor([1, 0, 1, 0, 1])[:, None]
    return flights | dict(limit=flights["limit"] * room, start=flights["start"] * room)


def _one_point_in_no_room(g: torch.Generator) -> dict[str, Tensor]:
    nothing = torch.tensor(0)
    return dict(start=nothing, velocity=torch.tensor(3), frame=torch.arange(7), limit=nothing)


def _very_fast(g: torch.Generator) -> dict[str, Tensor]:
    velocity = 2**24 + 1 + 2 * _integers(g, 0, 50)  # odd: float32 holds only even numbers up there
    frame = torch.tensor([0, 1, 1000])
    return dict(start=_integers(g, 0, 900), velocity=velocity, frame=frame, limit=torch.tensor(9_999_991))


def _two_axes(g: torch.Generator) -> dict[str, Tensor]:
    limit = torch.tensor([13, 7])
    start = torch.minimum(_integers(g, 0, 13, 3, 1, 2), limit)
    return dict(start=start, velocity=_integers(g, -3, 3, 3, 1, 2), frame=torch.arange(17)[:, None], limit=limit)


def _stays_inside(f) -> bool:
    flights = _flights(torch.Generator().manual_seed(0), 31, 41, fastest=5, far=19)
    position = f(**flights)
    return bool(((position >= 0) & (position <= flights["limit"])).all())


def _begins_at_start(f) -> bool:
    flights = _flights(torch.Generator().manual_seed(0), 31, 1, fastest=5, far=19)
    return torch.equal(f(**flights), flights["start"])


def _never_rests(f) -> bool:
    position = f(torch.tensor(2), torch.tensor(1), torch.arange(40), torch.tensor(5))
    return bool((position.diff().abs() == 1).all())


REFLECT = Exercise(
    target=reflect,
    minutes=10,
    gradients=False,
    cases=[
        Case("one point, one pixel per frame", _one_flight),
        Case("seven points, either way", lambda g: _flights(g, 7, 29, fastest=3, far=11, near=2)),
        Case("faster than the room is wide", lambda g: _flights(g, 5, 13, fastest=37, far=5)),
        Case("frames before the first", lambda g: _flights(g, 5, 11, 3, 7) | dict(frame=torch.arange(-11, 0))),
        Case("some rooms without width", _rooms_without_width),
        Case("both axes of three points at once", _two_axes),
        Case("a room without width, many frames", _one_point_in_no_room),
        Case("so fast that float32 and int32 lose count", _very_fast),
        Case("four single numbers", lambda g: _one_flight(g) | dict(frame=torch.tensor(9))),
        Case("one point, with an axis more", lambda g: _flights(g, 1, 7, fastest=3, far=11, near=2)),
        Case("much later", lambda g: _flights(g, 3, 2, 3, 17) | dict(frame=torch.tensor([500, 997]))),
    ],
    properties=[
        Property("At frame 0 the point must be at `start`.", _begins_at_start),
        Property("The point leaves the room: every position must lie between 0 and `limit`.", _stays_inside),
        Property(
            "At one pixel per frame the point must move by exactly one pixel in every frame, also at the walls.",
            _never_rests,
        ),
    ],
    mistakes=[
        Mistake(
            "Your point leaves through one wall and enters through the other. `%` alone repeats the way there; a "
            "bounce goes there and back, so the motion repeats after `2 * limit`.",
            code="""
            def reflect(start, velocity, frame, limit):
                return (start + velocity * frame) % (limit + 1)
            """,
        ),
        Mistake(
            "Your point jumps back to 0 as soon as it reaches the far wall. The remainder by `limit` forgets the way "
            "back: the motion repeats after `2 * limit`.",
            code="""
            def reflect(start, velocity, frame, limit):
                return (start + velocity * frame) % limit.clamp(min=1)
            """,
        ),
        Mistake(
            "The remainder by `limit` alone forgets the way back: your point jumps to 0 at the far wall, but the "
            "motion repeats after `2 * limit` only. And where `limit` is 0, there is no remainder at all.",
            code="""
            def reflect(start, velocity, frame, limit):
                return (start + velocity * frame) % limit
            """,
        ),
        Mistake(
            "Behind the far wall your point flies on. The remainder by `2 * limit` is right, but its second half, "
            "above `limit`, is the way back and still has to be folded.",
            code="""
            def reflect(start, velocity, frame, limit):
                return (start + velocity * frame) % (2 * limit).clamp(min=1)
            """,
        ),
        Mistake(
            "Your point sticks to the wall that it reaches: clamping stops it. A bounce turns it round, without loss.",
            code="""
            def reflect(start, velocity, frame, limit):
                return torch.minimum((start + velocity * frame).clamp(min=0), limit)
            """,
        ),
        Mistake(
            "The point spends two frames at each wall: you count the walls twice. There and back is `2 * limit` steps, "
            "because the last position of the way there is the first of the way back.",
            code="""
            def reflect(start, velocity, frame, limit):
                unfolded = (start + velocity * frame) % (2 * limit + 2)
                return torch.minimum(unfolded, 2 * limit + 1 - unfolded)
            """,
        ),
        Mistake(
            "The period is two too long, so the point steps behind the wall at 0. From 0 to `limit` and back is "
            "`2 * limit` steps, not `2 * (limit + 1)`.",
            old="(2 * limit)",
            new="(2 * limit + 2)",
        ),
        Mistake(
            "The point rests at 0 for one frame too long: the period is one too long. From 0 to `limit` and back is "
            "exactly `2 * limit` steps.",
            old="(2 * limit)",
            new="(2 * limit + 1)",
        ),
        Mistake(
            "The period is one too short: the point turns round before it reaches the wall at 0. From 0 to `limit` and "
            "back is `2 * limit` steps.",
            old="(2 * limit)",
            new="(2 * limit - 1)",
        ),
        Mistake(
            "Only the first bounce off the far wall is right; after that the point flies away. The folding must repeat "
            "for ever: take the remainder by `2 * limit` first.",
            old=" % period",
            new="",
        ),
        Mistake(
            "The wall at 0 reflects, but the far wall does not: the absolute value folds one side only.",
            code="""
            def reflect(start, velocity, frame, limit):
                return (start + velocity * frame).abs()
            """,
        ),
        Mistake(
            "You fold at each wall once. A fast point bounces many times before the frame that is asked for; take the "
            "remainder by `2 * limit` before folding.",
            code="""
            def reflect(start, velocity, frame, limit):
                position = (start + velocity * frame).abs()
                return torch.where(position > limit, 2 * limit - position, position)
            """,
        ),
        Mistake(
            "Points that fly to the left come out wrong: `fmod` keeps the sign of a negative position. `%` (or "
            "`torch.remainder`) takes the sign of the period, so its result is never negative.",
            old="unfolded = (start + velocity * frame) % period",
            new="unfolded = torch.fmod(start + velocity * frame, period)",
        ),
        Mistake(
            "You return the distance from the far wall: everything is mirrored. A point at 0 must come out as 0.",
            old="limit - (limit - unfolded).abs()",
            new="(limit - unfolded).abs()",
        ),
        Mistake(
            "Your point always begins at 0. Where it flies to depends on where it started: begin with "
            "`start + velocity * frame`.",
            old="(start + velocity * frame)",
            new="(velocity * frame)",
        ),
        Mistake(
            "You add `start` after folding, so the point can leave the room. Add it to the straight flight, then fold.",
            code="""
            def reflect(start, velocity, frame, limit):
                period = (2 * limit).clamp(min=1)
                return start + limit - (limit - velocity * frame % period).abs()
            """,
        ),
        Mistake(
            "The direction is lost: a negative velocity must move the point towards 0.",
            old="velocity * frame",
            new="velocity.abs() * frame",
        ),
        Mistake(
            "Your point flies the wrong way at first: a positive velocity moves it away from 0. Add velocity times "
            "frame to the start, do not subtract it.",
            old="start + velocity * frame",
            new="start - velocity * frame",
        ),
        Mistake(
            "A negative frame asks where the point came from; you treat it like the positive one.",
            old="velocity * frame",
            new="velocity * frame.abs()",
        ),
        Mistake(
            "Your far wall stands one pixel too near: `limit` itself is a position that the point reaches.",
            code="""
            def reflect(start, velocity, frame, limit):
                limit = (limit - 1).clamp(min=0)
                period = (2 * limit).clamp(min=1)
                return limit - (limit - (start + velocity * frame) % period).abs()
            """,
        ),
        Mistake(
            "You fold at each wall once, the far one first. A fast point bounces many times before the frame that is "
            "asked for; take the remainder by `2 * limit` before folding.",
            code="""
            def reflect(start, velocity, frame, limit):
                position = start + velocity * frame
                position = torch.where(position > limit, 2 * limit - position, position)
                return torch.where(position < 0, -position, position)
            """,
        ),
        Mistake(
            "You are one frame ahead. At frame 0 the point has not moved yet.",
            old="velocity * frame",
            new="velocity * (frame + 1)",
        ),
        Mistake(
            "A room without width (limit 0) makes the period 0, and there is no remainder by zero. Give such rooms "
            "some other period, for instance with `.clamp(min=1)`; the folding then sends the point to 0.",
            old=".clamp(min=1)",
            new="",
        ),
        Mistake(
            "In a room without width (limit 0) your point still moves: you enlarged the room itself, or gave it the "
            "period 2. Only the period, by which you take the remainder, must not be 0. Make it 1: then the remainder "
            "is always 0.",
            code="""
            def reflect(start, velocity, frame, limit):
                limit = limit.clamp(min=1)
                return limit - (limit - (start + velocity * frame) % (2 * limit)).abs()
            """,
        ),
        Mistake(
            "The way back is one pixel short: counted from the far wall, the position is `limit - rest`, without "
            "another 1.",
            code="""
            def reflect(start, velocity, frame, limit):
                room = limit.clamp(min=1)
                trip, rest = (start + velocity * frame) // room, (start + velocity * frame) % room
                return torch.where(trip % 2 == 0, rest, limit - 1 - rest)
            """,
        ),
        Mistake(
            "At the wall you lose what is left of the step: your point stops there for a moment and then turns. A "
            "point 3 pixels from the wall with velocity 5 must end 2 pixels behind the turn, on its way back.",
            code="""
            def reflect(start, velocity, frame, limit):
                start, velocity, frame, limit = torch.broadcast_tensors(start, velocity, frame, limit)
                position, velocity, result = start, velocity * frame.sign(), start
                for step in range(1, int(frame.abs().max()) + 1):
                    position = position + velocity
                    velocity = torch.where((position < 0) | (position > limit), -velocity, velocity)
                    position = torch.minimum(position.clamp(min=0), limit)
                    result = torch.where(frame.abs() >= step, position, result)
                return result
            """,
        ),
        Mistake(
            "The values are right, but they are no longer integers: a division with `/` turned them into floats. "
            "Positions are pixels, and pixels index an image: use `//`, or stay with `%`.",
            code="""
            def reflect(start, velocity, frame, limit):
                period = (2 * limit).clamp(min=1)
                unfolded = (start + velocity * frame) % period
                return (2 * limit - (2 * limit - 2 * unfolded).abs()) / 2
            """,
        ),
        Mistake(
            "Axes of size 1 get lost: your result is squeezed. It has the broadcast shape of the four arguments, "
            "whatever that is.",
            code="""
            def reflect(start, velocity, frame, limit):
                period = (2 * limit).clamp(min=1)
                return (limit - (limit - (start + velocity * frame) % period).abs()).squeeze()
            """,
        ),
        Mistake(
            "Right but for rooms without width: `.clamp(min=2)` makes their period 2, so the remainder can be 1, and "
            "the point leaves. Make it 1, then the remainder is always 0.",
            old=".clamp(min=1)",
            new=".clamp(min=2)",
        ),
        Mistake(
            "Your detour over arccos and cos comes back a little below whole numbers, and `.long()` cuts the fraction "
            "off. Whole numbers need no detour: `%` and `abs` fold exactly.",
            code="""
            def reflect(start, velocity, frame, limit):
                room = limit.clamp(min=1)
                angle = (start + velocity * frame).double() * math.pi / room
                return torch.where(limit == 0, 0, (torch.arccos(torch.cos(angle)) * room / math.pi).long())
            """,
        ),
        Mistake(
            "You count the trips with a division that rounds towards 0. Left of 0 that counts one too few; round down, "
            'with `//` or `rounding_mode="floor"`.',
            code="""
            def reflect(start, velocity, frame, limit):
                room = limit.clamp(min=1)
                flown = start + velocity * frame
                trip, rest = torch.div(flown, room, rounding_mode="trunc"), flown % room
                return torch.where(trip % 2 == 0, rest, limit - rest)
            """,
        ),
        Mistake(
            "You take the remainder of the velocity by `limit`. A detour of `limit` pixels leads to the other wall; "
            "only one of `2 * limit`, there and back, changes nothing.",
            code="""
            def reflect(start, velocity, frame, limit):
                room = limit.clamp(min=1)
                unfolded = (start + velocity % room * frame) % (2 * room)
                return torch.where(unfolded > limit, 2 * limit - unfolded, unfolded).clamp(min=0)
            """,
        ),
        Mistake(
            "You hold the velocity down to `limit`. It may be any size: a fast point bounces several times in one "
            "frame.",
            old="velocity * frame",
            new="torch.maximum(torch.minimum(velocity, limit), -limit) * frame",
        ),
        Mistake(
            "`+=` writes into the caller's tensor, which has the wrong shape for the result, and nobody expects it to "
            "change. Make a new one: `position = start + velocity * frame`.",
            code="""
            def reflect(start, velocity, frame, limit):
                start += velocity * frame
                period = (2 * limit).clamp(min=1)
                start %= period
                return limit - (limit - start).abs()
            """,
        ),
    ],
    variants=[
        Variant(
            "the smaller of the two distances",
            """
            def reflect(start, velocity, frame, limit):
                period = torch.where(limit == 0, 1, 2 * limit)
                there = torch.remainder(start + velocity * frame, period)
                return torch.minimum(there, 2 * limit - there).clamp(min=0)
            """,
        ),
        Variant(
            "count the trips; every second one runs backwards",
            """
            def reflect(start, velocity, frame, limit):
                flown = start + velocity * frame
                room = limit.clamp(min=1)
                trip = torch.div(flown, room, rounding_mode="floor")
                rest = flown - trip * room
                return torch.where(limit == 0, 0, torch.where(trip % 2 == 0, rest, limit - rest))
            """,
        ),
        Variant(
            "step by step, folding back whatever sticks out",
            """
            def reflect(start, velocity, frame, limit):
                position = start + velocity * frame
                position, limit = torch.broadcast_tensors(position, limit)
                inside = limit > 0
                position = torch.where(inside, position, torch.zeros_like(position))
                while ((position < 0) | (position > limit)).any():
                    position = position.abs()
                    position = torch.where(position > limit, 2 * limit - position, position)
                return position
            """,
        ),
        Variant(
            "NumPy",
            """
            def reflect(start, velocity, frame, limit):
                start, velocity, frame, limit = (np.asarray(x) for x in (start, velocity, frame, limit))
                period = np.maximum(2 * limit, 1)
                folded = np.mod(start + velocity * frame, period)
                return torch.as_tensor(limit - np.abs(limit - folded))
            """,
        ),
        Variant(
            "bounce frame by frame",
            """
            def reflect(start, velocity, frame, limit):
                start, velocity, frame, limit = torch.broadcast_tensors(start, velocity, frame, limit)
                flat = zip(*(a.flatten().tolist() for a in (start, velocity, frame, limit)))
                result = []
                for x, v, f, wall in flat:
                    v = v if f >= 0 else -v
                    for _ in range(abs(f)):
                        x += v
                        while wall > 0 and not 0 <= x <= wall:
                            x, v = (-x if x < 0 else 2 * wall - x), -v
                    result.append(x if wall > 0 else 0)
                return torch.tensor(result).reshape(start.shape)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Take limit = 3, start = 0, velocity = 1 and write the positions down: 0 1 2 3 2 1 0 1 2 3 2 1 0 …\n"
            "After how many frames does the list repeat? Which function gives 0 1 2 3 4 5 0 1 2 3 4 5 … and how do "
            "these numbers differ from the list?",
        ),
        Hint(
            "my point jumps from one wall to the other",
            "Without walls the point would be at `start + velocity * frame`. Take the remainder of that by the time of "
            "a trip there and back, `2 * limit`. The first half of the numbers 0 … `2 * limit` is right already; the "
            "second half is the way back.",
        ),
        Hint(
            "the second half runs the wrong way",
            "You need 0 1 2 3 4 5 → 0 1 2 3 2 1 (limit 3). How far is each number from 3? That is 3 2 1 0 1 2. "
            "Subtract this distance from `limit`.",
        ),
        Hint(
            "ZeroDivisionError, or a wrong answer where limit is 0",
            "A room without width has the period 0, and nothing can be divided by 0. `(2 * limit).clamp(min=1)` gives "
            "it the period 1: then the remainder is 0, and so is the position.",
        ),
        Hint(
            "I would like to see it nearly done",
            "    period = (2 * limit).clamp(min=1)\n"
            "    unfolded = (start + velocity * frame) % period\n"
            "    return limit - …      # minus the distance between unfolded and limit",
        ),
    ],
)


# ----------------------------------------------------------------------------------------------------------- render


def _drawing(g: torch.Generator, k: int, f: int, gh: int, gw: int, height: int, width: int, dtype=torch.float) -> dict:
    """``k`` glyphs with ink and gaps, each on a path of its own."""
    glyphs = (torch.rand(k, gh, gw, generator=g, dtype=torch.float64) - 0.3).clamp(min=0)
    if not dtype.is_floating_point:
        glyphs = (glyphs * (255 if dtype == torch.uint8 else 2**40)).round()  # 2**40: more digits than float32 keeps
    glyphs = glyphs.to(dtype)
    path = torch.stack([_integers(g, 0, height - gh, k, f), _integers(g, 0, width - gw, k, f)], dim=-1)
    return dict(glyphs=glyphs, path=path, height=height, width=width)


def _moved(drawing: dict, glyph: int, frame: int, top: int, left: int) -> dict:
    """The drawing with one corner somewhere else."""
    path = drawing["path"].clone()
    path[glyph, frame] = torch.tensor([top, left])
    return drawing | dict(path=path)


def _refusals(f, **drawing) -> dict[str, str]:
    """What comes of several impossible paths, for glyphs of 3x5 on a canvas of 11x13."""

    def outcome(*corner: int, **other) -> str:
        try:
            video = f(**(_moved(drawing, *corner) | other))
        except ValueError:
            return "a ValueError"
        except (RuntimeError, IndexError):  # torch stumbled over a window that is cut off: an accident, no refusal
            return "an accident"
        except AssertionError:
            return "an AssertionError"
        return "None" if video is None else "a video"

    rimmed = drawing["glyphs"].clone()  # a dark margin all round, which counts as well
    rimmed[..., [0, -1], :], rimmed[..., [0, -1]] = 0, 0

    return {
        "a dark margin above the canvas": outcome(1, 0, -1, 2, glyphs=rimmed),
        "one pixel too far to the right": outcome(1, 0, 2, 9),
        "one pixel too far to the right, later": outcome(1, 3, 2, 9),
        "one pixel too far down": outcome(0, 4, 9, 2),
        "far below the canvas": outcome(0, 1, 17, 2),
        "one pixel above the canvas": outcome(1, 0, -1, 2),
        "far to the left of the canvas": outcome(0, 2, 2, -6),
    }


def _bright_as_before(f) -> bool:
    drawing = _drawing(torch.Generator().manual_seed(0), 3, 5, 7, 5, 11, 9)
    return bool(f(**drawing).max() <= drawing["glyphs"].max())


def _refuses(f) -> bool:
    drawing = _drawing(torch.Generator().manual_seed(0), 2, 5, 3, 5, 11, 13)
    return set(_refusals(f, **drawing).values()) == {"a ValueError"}


SWAPPED = (
    "You read the path as (left, top). It is (top, left): `path[i, f]` gives the row first, then the column, like "
    "indexing an image."
)

RENDER = Exercise(
    target=render,
    minutes=15,
    gradients=False,
    picture=True,
    cases=[
        Case("one glyph", lambda g: _drawing(g, 1, 7, 3, 5, 11, 13)),
        Case("two glyphs on a square canvas", lambda g: _drawing(g, 2, 5, 7, 7, 17, 17)),
        Case("three glyphs that overlap", lambda g: _drawing(g, 3, 5, 7, 5, 11, 8)),
        Case("large whole numbers", lambda g: _drawing(g, 2, 5, 3, 7, 11, 13, torch.int64)),
        Case("double precision", lambda g: _drawing(g, 2, 5, 3, 7, 11, 13, torch.float64)),
        Case("a single frame", lambda g: _drawing(g, 2, 1, 3, 5, 7, 11)),
        Case("bytes from 0 to 255", lambda g: _drawing(g, 2, 5, 7, 3, 11, 13, torch.uint8)),
        Case("touching the far walls", lambda g: _moved(_drawing(g, 2, 3, 5, 3, 11, 7), 1, 2, 6, 4)),
        Case("a glyph as large as the canvas", lambda g: _drawing(g, 1, 2, 7, 5, 7, 5)),
        Case("glyphs that leave the canvas", lambda g: _drawing(g, 2, 5, 3, 5, 11, 13), call=_refusals),
    ],
    properties=[
        Property("No pixel may become brighter than the brightest glyph.", _bright_as_before),
        Property(
            "A glyph that leaves the canvas anywhere on its path must be refused with a ValueError, on all four sides.",
            _refuses,
        ),
    ],
    mistakes=[
        Mistake(
            "Where glyphs overlap you add them, and the sum is brighter than any ink (bytes even start again at 0). "
            "The brighter of the two pixels must win: take the maximum.",
            old="torch.maximum(window, glyph)",
            new="window + glyph",
        ),
        Mistake(
            "The last glyph wipes out what lies under its tile, dark corners included. Keep the brighter pixel of the "
            "two.",
            old="torch.maximum(window, glyph)",
            new="glyph",
        ),
        Mistake(
            "Where two glyphs have ink you keep the later one. The brighter pixel must win, whichever was drawn first.",
            old="torch.maximum(window, glyph)",
            new="torch.where(glyph > 0, glyph, window)",
        ),
        Mistake(
            "You keep the darker pixel of the two, and on a dark canvas that leaves nothing.",
            old="torch.maximum(window, glyph)",
            new="torch.minimum(window, glyph)",
        ),
        Mistake(SWAPPED, old="(top, left) in", new="(left, top) in"),
        Mistake(
            SWAPPED + " Besides, nothing refuses a path that leaves the canvas: that takes a ValueError.",
            code="""
            def render(glyphs, path, height, width):
                gh, gw = glyphs.shape[1:]
                video = glyphs.new_zeros(path.shape[1], height, width)
                for glyph, corners in zip(glyphs, path.tolist()):
                    for frame, (left, top) in zip(video, corners):
                        window = frame[top : top + gh, left : left + gw]
                        window.copy_(torch.maximum(window, glyph))
                return video
            """,
        ),
        Mistake(
            SWAPPED + " Your check reads it the same way.",
            old="    check_path(path, gh, gw, height, width)\n",
            new="    path = path.flip(-1)\n    check_path(path, gh, gw, height, width)\n",
        ),
        Mistake(
            "Your y axis points up. In images it points down: top = 0 is the first row.",
            old="frame[top : top + gh,",
            new="frame[height - gh - top : height - top,",
        ),
        Mistake(
            "You draw every glyph one pixel too low and too far right. Rows and columns count from 0.",
            old="frame[top : top + gh, left : left + gw]",
            new="frame[top + 1 : top + 1 + gh, left + 1 : left + 1 + gw]",
        ),
        Mistake(
            "You take the path for the centre of the glyph. It is the upper left corner.",
            old="frame[top : top + gh, left : left + gw]",
            new="frame[top - gh // 2 : top - gh // 2 + gh, left - gw // 2 : left - gw // 2 + gw]",
        ),
        Mistake(
            "The glyphs stand still: you use their first position in every frame.",
            old="zip(video, corners, strict=True)",
            new="zip(video, [corners[0]] * len(corners), strict=True)",
        ),
        Mistake(
            "The frames run backwards.",
            old="zip(video, corners, strict=True)",
            new="zip(video, corners[::-1], strict=True)",
        ),
        Mistake(
            "Only the last glyph is there: every glyph begins with an empty video. Make the video once, before the "
            "loop.",
            old="for frame, (top, left) in",
            new="video = torch.zeros_like(video)\n        for frame, (top, left) in",
        ),
        Mistake(
            "Only the first glyph is there. All of them belong into the same video; does your loop return too early?",
            old="zip(glyphs, path.tolist(), strict=True)",
            new="[(glyphs[0], path[0].tolist())]",
        ),
        Mistake(
            "The glyphs leave trails: each frame starts from the one before. Every frame needs a canvas of its own.",
            old="return video",
            new="return video.cummax(0).values",
        ),
        Mistake(
            "All frames are the same picture. You drew on one canvas and put it in the list again and again; each "
            "frame needs a canvas of its own (or a `.clone()`).",
            old="return video",
            new="return video.amax(0).expand_as(video).clone()",
        ),
        Mistake(
            "You draw each glyph upside down and mirrored (transposed).",
            old="torch.maximum(window, glyph)",
            new="torch.maximum(window, glyph.T)",
        ),
        Mistake(
            "Height and width are swapped: the video is (f, height, width), rows first.",
            old="height, width)\n    for",
            new="width, height)\n    for",
        ),
        Mistake(
            "You draw in single precision, whatever the glyphs are, and a conversion at the end cannot bring lost "
            "digits back. The result keeps their dtype: start from `glyphs.new_zeros(…)` or pass `dtype=glyphs.dtype`.",
            old="glyphs.new_zeros(",
            new="torch.zeros(",
        ),
        Mistake(
            "A glyph that leaves the canvas must be refused with a ValueError. Yours is not: there is no check, or it "
            "asks `.all()` where a single corner is enough (`.any()`). Then Python reads a negative index as counted "
            "from the other end, and cuts off slices that are too long.",
            old="check_path(path, gh, gw, height, width)",
            new="pass",
        ),
        Mistake(
            "Your code refuses a path that stays inside. A glyph may touch the edge: `top + gh == height` is allowed.",
            old="check_path(path, gh, gw, height, width)",
            new="""if (path < 0).any() or (path >= torch.tensor([height - gh, width - gw])).any():
        raise ValueError("outside")""",
        ),
        Mistake(
            "You check the far walls only. A negative corner must be refused as well: Python counts it from the other "
            "end.",
            old="check_path(path, gh, gw, height, width)",
            new="""if (path > torch.tensor([height - gh, width - gw])).any():
        raise ValueError("outside")""",
        ),
        Mistake(
            "You check the walls at 0 only. A glyph can also leave the canvas on the right or below.",
            old="check_path(path, gh, gw, height, width)",
            new="""if (path < 0).any():
        raise ValueError("outside")""",
        ),
        Mistake(
            "You check the first frame only. The glyph may leave the canvas later on its path.",
            old="check_path(path, gh, gw, height, width)",
            new="check_path(path[:, :1], gh, gw, height, width)",
        ),
        Mistake(
            "You check the corner but not the glyph's size: its corner may be on the canvas while the rest sticks out.",
            old="check_path(path, gh, gw, height, width)",
            new="check_path(path, 1, 1, height, width)",
        ),
        Mistake(
            "You move a glyph that would leave the canvas back inside. The contract asks for a ValueError: a silent "
            "correction would hide an error in the path.",
            code="""
            def render(glyphs, path, height, width):
                gh, gw = glyphs.shape[1:]
                path = torch.minimum(path.clamp(min=0), torch.tensor([height - gh, width - gw]))
                video = glyphs.new_zeros(path.shape[1], height, width)
                for glyph, corners in zip(glyphs, path.tolist()):
                    for frame, (top, left) in zip(video, corners):
                        window = frame[top : top + gh, left : left + gw]
                        window.copy_(torch.maximum(window, glyph))
                return video
            """,
        ),
        Mistake(
            "Your canvas holds bytes, whatever the glyphs are: floats between 0 and 1 become 0 in it, and large "
            "numbers are cut. The result keeps the dtype of the glyphs: `dtype=glyphs.dtype`.",
            old="glyphs.new_zeros(path.shape[1], height, width)",
            new="torch.zeros(path.shape[1], height, width, dtype=torch.uint8)",
        ),
        Mistake(
            "All frames look like the last one: you put one canvas into the list again and again, and it changes "
            "later. Append a `.clone()`, or make a new canvas for each frame.",
            old="return video",
            new="return video[-1].expand_as(video).clone()",
        ),
        Mistake(
            "You take the path for the centre of the glyph and push it back inside where it sticks out. It is the "
            "upper left corner, as it stands.",
            code="""
            def render(glyphs, path, height, width):
                gh, gw = glyphs.shape[1:]
                check_path(path, gh, gw, height, width)
                video = glyphs.new_zeros(path.shape[1], height, width)
                for glyph, corners in zip(glyphs, path.tolist()):
                    for frame, (top, left) in zip(video, corners):
                        top, left = max(top - gh // 2, 0), max(left - gw // 2, 0)
                        window = frame[top : top + gh, left : left + gw]
                        window.copy_(torch.maximum(window, glyph))
                return video
            """,
        ),
        Mistake(
            "You let the brighter *glyph* win, as a whole. It is decided pixel by pixel: `torch.maximum`.",
            code="""
            def render(glyphs, path, height, width):
                gh, gw = glyphs.shape[1:]
                check_path(path, gh, gw, height, width)
                video = glyphs.new_zeros(path.shape[1], height, width)
                for i in glyphs.flatten(1).double().sum(1).argsort().tolist():
                    for frame, (top, left) in zip(video, path[i].tolist()):
                        window = frame[top : top + gh, left : left + gw]
                        window.copy_(torch.where(glyphs[i] > 0, glyphs[i], window))
                return video
            """,
        ),
        Mistake(
            "Where two glyphs have ink you keep the earlier one. The brighter pixel must win, whichever was drawn "
            "first.",
            old="torch.maximum(window, glyph)",
            new="torch.where(window > 0, window, glyph)",
        ),
        Mistake(
            "You add the inks and cut the sum at the brightest. Two greys on top of each other are not brighter than "
            "one: take the larger of the two.",
            old="torch.maximum(window, glyph)",
            new="(window.double() + glyph).clamp(max=glyphs.max().item()).to(glyphs.dtype)",
        ),
        Mistake(
            "You return None for a path that leaves the canvas. The contract asks for a ValueError: None would only "
            "fail later, somewhere else.",
            code="""
            def render(glyphs, path, height, width):
                gh, gw = glyphs.shape[1:]
                if (path < 0).any() or (path > torch.tensor([height - gh, width - gw])).any():
                    return None
                video = glyphs.new_zeros(path.shape[1], height, width)
                for glyph, corners in zip(glyphs, path.tolist()):
                    for frame, (top, left) in zip(video, corners):
                        window = frame[top : top + gh, left : left + gw]
                        window.copy_(torch.maximum(window, glyph))
                return video
            """,
        ),
    ],
    variants=[
        Variant(
            "loops over numbers",
            """
            def render(glyphs, path, height, width):
                k, gh, gw = glyphs.shape
                frames = path.shape[1]
                video = torch.zeros(frames, height, width, dtype=glyphs.dtype)
                for i in range(k):
                    for f in range(frames):
                        top, left = int(path[i, f, 0]), int(path[i, f, 1])
                        if top < 0 or left < 0 or top + gh > height or left + gw > width:
                            raise ValueError(f"glyph {i} leaves the canvas in frame {f}")
                        old = video[f, top : top + gh, left : left + gw]
                        video[f, top : top + gh, left : left + gw] = torch.maximum(old, glyphs[i])
                return video
            """,
        ),
        Variant(
            "pad each glyph to the canvas, then take the maximum over glyphs",
            """
            def render(glyphs, path, height, width):
                k, gh, gw = glyphs.shape
                frames = []
                for f in range(path.shape[1]):
                    layers = []
                    for glyph, (top, left) in zip(glyphs, path[:, f].tolist()):
                        bottom, right = height - gh - top, width - gw - left
                        if min(top, left, bottom, right) < 0:
                            raise ValueError("a glyph leaves the canvas")
                        layers.append(F.pad(glyph, (left, right, top, bottom)))
                    frames.append(torch.stack(layers).amax(0))
                return torch.stack(frames)
            """,
        ),
        Variant(
            "index every pixel at once",
            """
            def render(glyphs, path, height, width):
                k, gh, gw = glyphs.shape
                limit = torch.tensor([height - gh, width - gw])
                if (path < 0).any() or (path > limit).any():
                    raise ValueError("a glyph leaves the canvas")
                row = path[..., 0, None, None] + torch.arange(gh)[:, None]
                column = path[..., 1, None, None] + torch.arange(gw)
                place = (row * width + column).flatten(2)
                layers = glyphs.new_zeros(k, path.shape[1], height * width)
                ink = glyphs.flatten(1)[:, None].expand(-1, path.shape[1], -1)
                return layers.scatter_(2, place, ink).amax(0).view(-1, height, width)
            """,
        ),
        Variant(
            "the fast way of the library: paint all frames of a glyph with one indexed assignment",
            """
            def render(glyphs, path, height, width):
                check_path(path, *glyphs.shape[1:], height, width)
                frames = path.shape[1]
                video = glyphs.new_zeros(frames, height, width)
                for glyph, (top, left) in zip(glyphs, path.transpose(1, 2)):
                    paint(video, torch.arange(frames), glyph.expand(frames, -1, -1), top, left)
                return video
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Draw one glyph into one frame first. `video[frame, top : top + gh, left : left + gw]` is the window that "
            "the glyph covers; it has the glyph's shape, and what you assign to it lands in the video.",
        ),
        Hint(
            "overlapping glyphs look wrong",
            "`torch.maximum(window, glyph)` compares two tensors pixel by pixel and keeps the larger value. Adding "
            "would make pixels brighter than ink; assigning would let the dark corners of one tile erase the other "
            "glyph.",
        ),
        Hint(
            "it says that an input must be refused",
            "A window that sticks out is an error in the path, and the caller should hear about it. Before you draw, "
            "test that top and left are at least 0, top at most `height - gh` and left at most `width - gw`, for every "
            "glyph and frame; otherwise `raise ValueError(…)`.",
        ),
        Hint(
            "the dtype or the shape is wrong",
            "`glyphs.new_zeros(frames, height, width)` makes a dark video with the dtype of the glyphs. The number of "
            "frames is `path.shape[1]`.",
        ),
        Hint(
            "I would like to see it nearly done",
            "    for glyph, corners in zip(glyphs, path.tolist()):\n"
            "        for frame, (top, left) in zip(video, corners):      # frame is a view into video\n"
            "            window = frame[top : top + gh, left : left + gw]\n"
            "            window.copy_(…)                                 # the brighter of window and glyph",
        ),
    ],
)

EXERCISES = [REFLECT, RENDER]
