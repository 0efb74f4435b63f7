"""The exercises of lesson 10, DiT: time and place as vectors, the block, how a model must be born, guidance."""

import inspect
import re
import textwrap
from collections.abc import Callable

import torch
from torch import Tensor, nn

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.dit import DiT, DiTBlock, DiTConfig, forward_with_cfg, full_attention, initialise_dit
from course_lib.nn.attention import MultiHeadAttention
from course_lib.nn.modulation import timestep_embedding
from course_lib.nn.positions import sincos_2d

Slips = dict[str, dict[str, str]]  # what stands in the library's source -> what stands there instead -> what to say


def _slips(table: Slips) -> list[Mistake]:
    return [Mistake(sentence, old=old, new=new) for old, news in table.items() for new, sentence in news.items()]


def _yes(truth) -> str:
    return "yes" if truth else "no"


# -------------------------------------------------------------------------------------------------------------- time

_POWERS = "10_000.0 ** (-torch.arange(half, device=t.device, dtype=torch.float32) / half)"
_BOTH = "torch.cat([angle.cos(), angle.sin()], dim=-1)"


def _times(*values: float, dim: int = 14):
    return lambda g: dict(t=torch.tensor(values), dim=dim)


def _is_precise(f) -> bool:
    """Early times, where float32 knows every angle to about 1e-6. What is plainly wrong is left to the cases."""
    t, half = torch.tensor([0.0, 4e-4, 0.3337, 1.7, 3.1]), 12
    angle = t.double()[:, None] * 1e4 ** (-torch.arange(half, dtype=torch.float64) / half)
    error = (f(t=t, dim=2 * half).double() - torch.cat([angle.cos(), angle.sin()], dim=-1)).abs().max()
    return not 2e-5 < error < 5e-3


def _asks_for_no_gradient(f) -> bool:
    return not f(t=torch.tensor([0.5, 3.0]), dim=4).requires_grad


def _coarse(times: str, powers: str, result: str, sentence: str) -> Mistake:
    """Right for times in float32 only."""
    code = f"""
    def timestep_embedding(t, dim):
        if dim < 2 or dim % 2:
            raise ValueError("dim")
        half = dim // 2
        t = {times}
        angle = t[:, None] * {powers}
        return torch.cat([angle.cos(), angle.sin()], dim=-1){result}
    """
    return Mistake(sentence, code=code)


_TIME_SLIPS = {
    "dtype=torch.float32) / half": {
        "dtype=torch.float32) / max(half - 1, 1)": "Your exponents run up to exactly 1: you divide by half - 1. The "
        "paper's code divides by half, so that the slowest frequency stays a little above 1 / 10000. (diffusers has "
        "both, behind `downscale_freq_shift`.)",
        "dtype=torch.float32) / dim": "You divide i by dim, where half = dim / 2 belongs: your frequencies only reach "
        "down to 1 / 100.",
        "dtype=torch.float32) * 2 / half": "Your exponents run up to 2: it is i / half, which is the same as 2 i / "
        "dim, but not 2 i / half.",
    },
    _BOTH: {
        "torch.cat([angle.sin(), angle.cos()], dim=-1)": "Sines come first with you. A network would not mind, but "
        "published weights do: here all cosines come first, so that t = 0 reads 1, 1, ..., 0, 0.",
        "torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1)": "Cosine and sine alternate, as in lesson 02. "
        "Here they stand in two blocks: all cosines, then all sines.",
        "torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)": "This is lesson 02's table: sine, cosine, sine, "
        "cosine. Here all cosines come first, then all sines.",
        "torch.cat([angle.cos(), angle.cos()], dim=-1)": "Both halves are cosines.",
        "torch.cat([angle.sin(), angle.sin()], dim=-1)": "Both halves are sines.",
        "angle.cos()": "Only the cosines come back, dim / 2 of them. The sines follow behind them.",
        "torch.cat([angle.cos(), angle.sin()], dim=-1).T": "Your table stands on its side, (dim, b). One row for each "
        "time: (b, dim).",
        "torch.cat([angle.cos(), angle.sin()], dim=0)": "You put cosines *below* sines, as more rows. Put them side "
        "by side: `dim=-1`.",
        "torch.cat([angle.cos(), -angle.sin()], dim=-1)": "Your sines have the opposite sign: is it sin(-t f)? Column "
        "half + i is sin(t f_i).",
    },
    "t.float()[:, None]": {
        "t.long().float()[:, None]": "Times are cut to whole numbers: t = 0.5 looks like t = 0. Samplers stop between "
        "steps, and flow matching has no whole steps at all.",
        "t.float().round()[:, None]": "Times are rounded to whole numbers. Keep the fraction.",
        "t[:, None]": "With t in float64 the result is float64: t has a say in the dtype of your product. Turn it to "
        "float32 first, with `t.float()`.",
        "1000 * t.float()[:, None]": "You multiply by 1000 inside. The caller does that where times run from 0 to 1; "
        "these here run from 0 to 1000 already.",
        "t.float()[:, None] / 1000": "You divide times by 1000. They are used as they are.",
        "(t / t.max().clamp(min=1e-6)).float()[:, None]": "Times are first scaled to lie between 0 and 1 by the "
        "largest of the batch: then the same time looks different in another batch.",
        "(t * (1000 if t.max() <= 1 else 1)).float()[:, None]": "You multiply by 1000 where all times are at most 1. "
        "That t counts from 0 to 1 is the caller's business; a function that guesses gives the same t = 0.5 two "
        "meanings, depending on the batch.",
        "t.float().clamp(0, 1000)[:, None]": "Times beyond 0 ... 1000 are cut off. Nothing is clamped: the formula "
        "holds for any t.",
        "t.float().clamp(0, 999)[:, None]": "Times are cut off at 999, as if they were rows of a table of 1000. "
        "Nothing is clamped: t = 1000 comes too and any other number.",
        "(t.float() % 1000)[:, None]": "Times are taken modulo 1000, so t = 1000 looks like t = 0. Use them as they "
        "are.",
        "t.float().abs()[:, None]": "The sign of t is lost. A negative t follows the same formula: its sines change "
        "sign.",
    },
    "10_000.0 ** (-torch.arange": {
        "10_000.0 ** (torch.arange": "The exponent has the wrong sign: your frequencies grow up to 10000. At such "
        "speed neighbouring times look unrelated.",
    },
    "torch.arange(half,": {
        "torch.arange(1, half + 1,": "You count i from 1. It runs from 0 to half - 1, so the first frequency is 1.",
    },
    _POWERS: {
        "torch.exp(-torch.arange(half, dtype=torch.float32) / half)": "exp(-i / half) is not 10000^(-i / half): the "
        "factor ln 10000 is missing.",
        "torch.linspace(1, 1e-4, half)": "The frequencies fall evenly, step by step. They fall by a constant "
        "*factor*: 10000^(-i / half).",
        "torch.exp(-4 * torch.arange(half, dtype=torch.float32) / half)": "That is log10 in the exponent of e. "
        "10000^(-i / half) is exp(-ln(10000) i / half): `math.log`.",
    },
    "10_000.0 **": {
        "1_000.0 **": "Your longest period belongs to 1000; the base is 10000.",
    },
    "t.float()[:, None] * frequencies": {
        "2 * torch.pi * t.float()[:, None] * frequencies": "There is a factor of 2 pi too much: the first column "
        "turns by t radians, not by t whole turns.",
        "t.float()[:, None] * frequencies.flip(0)": "The frequencies stand in the opposite order: the first column "
        "must turn fastest, f_0 = 1.",
        "t.float()[:, None] * frequencies.to(t.dtype)": "The frequencies take on the dtype of t: for integer times "
        "all but the first become 0. Turn t to float32, not the frequencies into the type of t.",
    },
    "dim < 2 or dim % 2": {
        "dim % 2": "Right but for one refusal: dim = 0 (and less) is even, and must be refused too.",
        "dim < 2": "Right but for the refusal: an odd dim needs a ValueError of yours, and so does one below 2.",
    },
    "dim < 2 or": {
        "dim <= 2 or": "You refuse dim = 2, which is allowed: one cosine and one sine.",
    },
}

TIMESTEP_EMBEDDING = Exercise(
    target=timestep_embedding,
    minutes=8,
    gradients=False,
    tolerance=5e-3,  # at t = 1000 float32 knows the angle to about 1e-4
    # Most cases have small t: there, an answer with a factor too much is exact enough to be recognised.
    cases=[
        Case("times between 0 and 1", _times(0.0, 0.5, 0.25, 0.625, 0.875)),
        Case("early and late times", _times(0.0, 3.0, 100.0, 500.0, 999.0, 1000.0, dim=10)),
        Case("random times", lambda g: dict(t=1000 * torch.rand(7, generator=g), dim=22)),
        Case("integer steps", lambda g: dict(t=torch.randint(1000, (5,), generator=g), dim=6)),
        Case("as many times as columns", lambda g: dict(t=torch.rand(8, generator=g), dim=8)),
        Case("a single pair, times far beyond 1000", _times(0.5, 90.0, 20_000.0, 300_000.0, dim=2)),
        Case("256 columns", lambda g: dict(t=2 * torch.rand(3, generator=g), dim=256)),
        Case("times in float64", lambda g: dict(t=2 * torch.rand(5, generator=g, dtype=torch.float64), dim=12)),
        Case("times in bfloat16", lambda g: dict(t=torch.tensor([0.0, 0.5, 3.0, 700.0], dtype=torch.bfloat16), dim=10)),
        Case("late times in float16", lambda g: dict(t=torch.tensor([7.5, 700.5], dtype=torch.float16), dim=10)),
        Case("integer steps in int32", lambda g: dict(t=torch.tensor([0, 4, 700, 999], dtype=torch.int32), dim=6)),
        Case("integer steps in uint8", lambda g: dict(t=torch.tensor([0, 3, 100, 200], dtype=torch.uint8), dim=6)),
        Case("integers beyond 0 to 1000", lambda g: dict(t=torch.tensor([-3, 1000, 1500]), dim=8)),
        Case("half as many times as columns", lambda g: dict(t=torch.rand(5, generator=g), dim=10)),
        Case("times below 0", _times(-0.25, -1.5, 2.0, dim=8)),
        Case("times beyond 1000", _times(1000.0, 1001.5, 4000.0, dim=8)),
        Case("an odd number of columns", _times(1.0, 2.0, dim=7)),
        Case("one column", _times(1.0, 2.0, dim=1)),
        Case("no column", _times(1.0, 2.0, dim=0)),
        Case("less than nothing", _times(1.0, 2.0, dim=-2)),
    ],
    properties=[
        Property(
            "Early times come out right to a few digits only, and late ones may be worse. Is something rounded on the "
            "way (t, the frequencies, the result), cut off near 1, or is a constant not quite right? Compute in "
            "float32, all the way.",
            _is_precise,
        ),
        Property(
            "The numbers are right, but the result asks for gradients, though t does not: is it an `nn.Parameter`? "
            "Nothing here is trained.",
            _asks_for_no_gradient,
        ),
    ],
    mistakes=[
        *_slips(_TIME_SLIPS),
        _coarse(
            "t if t.is_floating_point() else t.float()",
            "1e4 ** (-torch.arange(half, dtype=t.dtype) / half)",
            "",
            "The result has the dtype of t. It is float32 whatever t is: the network's weights are.",
        ),
        _coarse(
            "t if t.is_floating_point() else t.float()",
            "(1e4 ** (-torch.arange(half) / half)).to(t.dtype)",
            ".float()",
            "Angles are computed in the dtype of t, which is too coarse in float16 and bfloat16. Use `t.float()` "
            "before all else.",
        ),
        _coarse(
            "t.float() if t.dtype == torch.int64 else t",
            "(1e4 ** (-torch.arange(half) / half)).to(t.dtype)",
            ".float()",
            "Only int64 times are turned into float32. With int32 your frequencies become whole numbers, and with "
            "float16 and bfloat16 they are rounded: use `t.float()` whatever t is.",
        ),
        Mistake(
            "For an odd dim you append a column of zeros, as the paper's code does. Here an odd dim is refused with a "
            "ValueError.",
            code="""
            def timestep_embedding(t, dim):
                if dim < 2:
                    raise ValueError("dim")
                half = dim // 2
                angle = t.float()[:, None] * 10_000.0 ** (-torch.arange(half) / half)
                return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, dim % 2))
            """,
        ),
    ],
    variants=[
        Variant(
            "exp and log",
            """
            def timestep_embedding(t, dim):
                if dim % 2 == 1 or dim <= 0:
                    raise ValueError(f"dim={dim}")
                freqs = torch.exp(-math.log(10000) * torch.arange(0, dim, 2) / dim)
                args = torch.outer(t.to(torch.float32), freqs)
                return torch.hstack((torch.cos(args), torch.sin(args)))
            """,
        ),
        Variant(
            "a loop",
            """
            def timestep_embedding(t, dim):
                if dim < 2 or dim % 2:
                    raise ValueError
                out = torch.zeros(len(t), dim)
                for b, time in enumerate(t.tolist()):
                    for i in range(dim // 2):
                        angle = time / 10000 ** (2 * i / dim)
                        out[b, i] = math.cos(angle)
                        out[b, dim // 2 + i] = math.sin(angle)
                return out
            """,
        ),
        Variant(
            "complex numbers",
            """
            def timestep_embedding(t, dim):
                if dim not in range(2, 10**6, 2):
                    raise ValueError(dim)
                f = torch.logspace(0, -4, dim // 2 + 1, dtype=torch.float64)[:-1]
                z = torch.exp(1j * t.double()[:, None] * f)
                return torch.cat([z.real, z.imag], 1).float()
            """,
        ),
        Variant(
            "the course's sincos, halves exchanged",
            """
            def timestep_embedding(t, dim):
                table = sincos(t, dim)
                return table.roll(dim // 2, dims=1)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Frequencies first, a vector of half = dim // 2 numbers. Then every time times every frequency: `t[:, "
            "None] * frequencies` has shape (b, half).",
        ),
        Hint(
            "how do I get the frequencies",
            "`torch.arange(half) / half` makes the exponents 0, 1/half, ...; then `10000.0 ** -exponents`.",
        ),
        Hint(
            "show me nearly everything",
            "angle = t.float()[:, None] * 10000.0 ** (-torch.arange(half) / half); return the cosines and sines of it, "
            "`torch.cat([...], dim=-1)`. Before all that: `raise ValueError` if dim is odd or below 2.",
        ),
    ],
)


# --------------------------------------------------------------------------------------------------------- positions

_COLUMN, _ROW = "sincos(columns.flatten(), dim // 2)", "sincos(rows.flatten(), dim // 2)"
_TABLE = f"torch.cat([{_COLUMN}, {_ROW}], dim=-1)"


def _by_hand(exponents: str) -> str:
    """The table with other frequencies, all powers of 10000."""
    angle = f"p.flatten()[:, None] * 10000.0 ** ({exponents})"
    return f"torch.cat([g({angle}) for p in (columns, rows) for g in (torch.sin, torch.cos)], dim=-1)"


def _numbers(column: str, row: str, sentence: str) -> Mistake:
    """Column and row computed from the number p of the patch."""
    code = f"""
    def sincos_2d(grid, dim):
        if dim < 4 or dim % 4:
            raise ValueError("dim")
        h, w = grid
        p = torch.arange(h * w).float()
        return torch.cat([sincos({column}, dim // 2), sincos({row}, dim // 2)], dim=-1)
    """
    return Mistake(sentence, code=code)


def _is_a_constant(f) -> bool:
    return not f((2, 3), 8).requires_grad


def _is_new_each_time(f) -> bool:
    with torch.no_grad():
        f((2, 3), 8).zero_()
    return bool(f((2, 3), 8).any())


_PLACE_SLIPS = {
    _TABLE: {
        f"torch.cat([{_ROW}, {_COLUMN}], dim=-1)": "Row before column. It looks natural, and trains as well, but in "
        "the published weights the first half of the numbers encodes the *column*. (There the variable is called "
        "`emb_h`, which has misled many.)",
        f'rearrange({_TABLE}, "(h w) d -> (w h) d", h=grid[0])': "Each vector is right, but the patches are numbered "
        "down the columns. Number them like words on a page: the column changes fastest.",
        f'rearrange(torch.cat([{_ROW}, {_COLUMN}], dim=-1), "(h w) d -> (w h) d", h=grid[0])': "Rows and columns "
        "changed places everywhere: in the order of the patches and in the two halves. Is your grid (w, h)? It is (h, "
        "w).",
        "sincos(columns.flatten(), dim) + sincos(rows.flatten(), dim)": "You add the two encodings, both at full "
        "width. They stand side by side, dim / 2 numbers each.",
        "sincos(torch.arange(grid[0] * grid[1]).float(), dim)": "You number the patches 0 ... n - 1 and encode that "
        "number, as for a sentence. Neighbours above each other are then far apart. Encode column and row, each by "
        "itself.",
        f"torch.stack([{_COLUMN}, {_ROW}], dim=-1).flatten(1)": "Column and row alternate number by number. They form "
        "two blocks: first all of the column's, then the row's.",
        f"torch.cat([p.roll(dim // 4, dims=1) for p in ({_COLUMN}, {_ROW})], dim=-1)": "Within each half cosines come "
        "before sines. For positions it is sine first, and for time cosine first: two conventions in one paper.",
        f'rearrange({_TABLE}, "n (place wave f) -> n (wave place f)", place=2, wave=2)': "The order "
        "is sin(column), sin(row), cos(column), cos(row) with you. Sine and cosine of the same number belong "
        "together: column first, both; then row, both.",
        f'rearrange({_TABLE}, "n (place wave f) -> n (place f wave)", place=2, wave=2)': "Within each "
        "half sine and cosine alternate, as in lesson 02. Here all sines come first, then all cosines.",
        "torch.cat([sincos(p.flatten(), dim)[:, : dim // 2] for p in (columns, rows)], dim=-1)": "You encode "
        "at full width and keep the first half: those are sines alone, and too many frequencies. Encode with dim / 2 "
        "numbers.",
        _by_hand("-torch.arange(dim // 4) / max(dim // 4 - 1, 1)"): "The exponents run up to exactly 1: divide i by "
        "dim / 4, not by dim / 4 - 1.",
        _by_hand("-torch.arange(dim // 4) / (dim // 2)"): "Your frequencies reach down to 1 / 100 only. Either the "
        "base is 100 instead of 10000, or you divide i by dim / 2: each axis has dim / 4 frequencies, and the "
        "exponent is i over *that* number.",
        _by_hand("-torch.arange(dim // 4) / dim"): "You divide i by dim. Each axis has dim / 4 frequencies, and the "
        "exponent is i over *that* number.",
        _by_hand("torch.arange(dim // 4) / (dim // 4)"): "The exponent has the wrong sign: your frequencies grow up "
        "to 10000.",
        f"torch.cat([{_COLUMN}, {_COLUMN}], dim=-1)": "Both halves encode the column. Patches above each other cannot "
        "be told apart.",
        f"torch.cat([{_ROW}, {_ROW}], dim=-1)": "Both halves encode the row. Patches side by side cannot be told "
        "apart.",
        f"{_TABLE}[None]": "There is an axis of one in front, for the batch. Return (h w, dim): it broadcasts by "
        "itself.",
        f"{_TABLE}.view(*grid, dim)": "The grid is still a grid, (h, w, dim). A Transformer reads a sequence: join "
        "the two axes.",
        f"{_TABLE}.double()": "The table is float64, as numpy makes it. Convert it to float32.",
        f"nn.Parameter({_TABLE})": "The table asks for gradients (`requires_grad_()`, or an `nn.Parameter`, which "
        "does so unless told otherwise), and an optimizer could move it. DiT's positions are frozen: return a plain "
        "tensor.",
        _by_hand("-torch.arange(1, dim // 4 + 1) / (dim // 4)"): "You count i from 1. It runs from 0 to quarter - 1, "
        "so the first frequency is 1.",
        f"torch.cat([{_COLUMN}, sincos(rows.flatten() + 1, dim // 2)], dim=-1)": "You count rows from 1. They begin "
        "with 0, as columns do.",
        f"torch.cat([sincos(columns.flatten() + 1, dim // 2), {_ROW}], dim=-1)": "You count columns from 1. They "
        "begin with 0, as rows do.",
        f"torch.cat([{_COLUMN}, sincos(rows.flatten().flip(0), dim // 2)], dim=-1)": "You count rows from below. Row "
        "0 is the first one, at the top.",
        f"{_TABLE}.to(torch.float16).float()": "Right to three digits only: something is rounded to float16 on the "
        "way. Compute in float32.",
    },
    "torch.arange(length, dtype=torch.float32)": {
        "torch.arange(length, dtype=torch.float32) / length": "Positions are divided by the length of the axis. They "
        "are whole numbers; the frequencies are for these.",
        "torch.arange(length, dtype=torch.float32) + 0.5": "Positions are the middles of patches, 0.5, 1.5, ... They "
        "are whole numbers from 0.",
        "torch.linspace(0, 1, length)": "Positions are scaled to run from 0 to 1. They are whole numbers: the "
        "frequencies are made for these.",
        "torch.arange(length, dtype=torch.float32) - (length - 1) / 2": "Positions are centred: they are negative "
        "left and above. They begin with 0.",
    },
    "torch.arange(length, dtype": {
        "torch.arange(1, length + 1, dtype": "You count rows and columns from 1. They begin with 0.",
    },
    "for length in grid)": {
        "for length in (grid[0], grid[0]))": "You take the grid for a square, with as many columns as rows. It has "
        "grid[0] rows and grid[1] columns.",
        "for length in (grid[1], grid[1]))": "You take the grid for a square, with as many rows as columns. It has "
        "grid[0] rows and grid[1] columns.",
    },
    "dim < 4 or": {
        "dim <= 4 or": "You refuse dim = 4, which is allowed: one frequency for each axis.",
    },
    "dim % 4:": {
        "dim % 8:": "You demand a multiple of 8. A multiple of 4 is enough.",
    },
}

SINCOS_2D = Exercise(
    target=sincos_2d,
    minutes=15,
    gradients=False,
    cases=[
        Case("3 rows, 7 columns", lambda g: dict(grid=(3, 7), dim=20)),
        Case("more rows than columns", lambda g: dict(grid=(7, 2), dim=12)),
        Case("a square", lambda g: dict(grid=(5, 5), dim=28)),
        Case("one row", lambda g: dict(grid=(1, 6), dim=16)),
        Case("one column", lambda g: dict(grid=(6, 1), dim=16)),
        Case("one patch", lambda g: dict(grid=(1, 1), dim=8)),
        Case("a single frequency", lambda g: dict(grid=(2, 3), dim=4)),
        Case("as many columns of the grid as of the table", lambda g: dict(grid=(3, 8), dim=8)),
        Case("a wide grid", lambda g: dict(grid=(2, 300), dim=12)),
        Case("a large grid", lambda g: dict(grid=(50, 61), dim=8)),
        Case("6 is no multiple of 4", lambda g: dict(grid=(2, 3), dim=6)),
        Case("9 is no multiple of 4", lambda g: dict(grid=(2, 3), dim=9)),
        Case("2 is no multiple of 4", lambda g: dict(grid=(2, 3), dim=2)),
        Case("nothing", lambda g: dict(grid=(2, 3), dim=0)),
        Case("less than nothing", lambda g: dict(grid=(2, 3), dim=-4)),
    ],
    properties=[
        Property(
            "The numbers are right, but the table asks for gradients, and could be trained. DiT's positions are "
            "frozen: return a plain tensor.",
            _is_a_constant,
        ),
        Property(
            "The table is right, but two calls share their memory: whoever writes into one table spoils the other. "
            "Make it anew, or hand out a `.clone()`.",
            _is_new_each_time,
        ),
    ],
    mistakes=[
        *_slips(_PLACE_SLIPS),
        _numbers(
            "p % w", "p // h", "The row is p // w. You divide by the number of rows; a row is full after w patches."
        ),
        _numbers(
            "p % w",
            "p / w",
            "Rows creep up from patch to patch: you divide with `/`. The row is p // w, a whole number.",
        ),
        _numbers("p % h", "p // w", "The column is p % w. You take the remainder by h, the number of rows."),
        _numbers(
            "p % int((h * w) ** 0.5)",
            "p // int((h * w) ** 0.5)",
            "You take the number of columns to be the square root of the number of patches. Grids may be oblong: it is "
            "grid[1].",
        ),
        _numbers(
            "p",
            "p",
            "Both halves encode the number of the patch, 0 ... n - 1. The first half encodes its column, the second "
            "its row.",
        ),
        Mistake(
            "Right but for the refusal: two axes with a sine and a cosine each need a multiple of 4, at least 4. All "
            "else gets a ValueError of yours, a dim that is merely even too.",
            code="""
            def sincos_2d(grid, dim):
                if dim < 2 or dim % 2:
                    raise ValueError("dim")
                rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
                quarter = max(dim // 4, 1)
                f = 10000.0 ** (-torch.arange(quarter) / quarter)
                parts = [g(p.reshape(-1, 1) * f) for p in (columns, rows) for g in (torch.sin, torch.cos)]
                return torch.cat(parts, dim=1)
            """,
        ),
        Mistake(
            "Right but for one refusal: dim = 0 is a multiple of 4, yet there would be no table.",
            code="""
            def sincos_2d(grid, dim):
                if dim % 4 or dim < 0:
                    raise ValueError("dim")
                rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
                f = 10000.0 ** (-torch.arange(dim // 4) / max(dim // 4, 1))
                parts = [g(p.reshape(-1, 1) * f) for p in (columns, rows) for g in (torch.sin, torch.cos)]
                return torch.cat(parts, dim=1)
            """,
        ),
        Mistake(
            "You keep the table and hand out the same tensor at every call: whoever writes into it spoils it for the "
            "next one. Make it anew, or hand out a `.clone()`.",
            code="""
            import functools


            @functools.cache
            def sincos_2d(grid, dim):
                if dim < 4 or dim % 4:
                    raise ValueError("dim")
                p = torch.arange(grid[0] * grid[1])
                return torch.cat([sincos(n.float(), dim // 2) for n in (p % grid[1], p // grid[1])], dim=1)
            """,
        ),
        Mistake(
            "Right but for the refusals: `assert` raises AssertionError, and is skipped under `python -O`. Use `raise "
            "ValueError(...)`.",
            code="""
            def sincos_2d(grid, dim):
                assert dim >= 4 and dim % 4 == 0
                rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
                return torch.cat([sincos(columns.flatten(), dim // 2), sincos(rows.flatten(), dim // 2)], dim=-1)
            """,
        ),
    ],
    variants=[
        Variant(
            "loops",
            """
            def sincos_2d(grid, dim):
                if dim % 4 != 0 or dim <= 0:
                    raise ValueError("a multiple of 4, please")
                h, w = grid
                q, rows = dim // 4, []
                for r in range(h):
                    for c in range(w):
                        row = []
                        for p in (c, r):
                            row += [math.sin(p / 10000 ** (i / q)) for i in range(q)]
                            row += [math.cos(p / 10000 ** (i / q)) for i in range(q)]
                        rows.append(row)
                return torch.tensor(rows)
            """,
        ),
        Variant(
            "numpy, as in the paper's code",
            """
            def sincos_2d(grid, dim):
                if dim % 4 or dim < 1:
                    raise ValueError(dim)
                omega = 1 / 10000 ** (np.arange(dim // 4) / (dim / 4))
                xy = np.meshgrid(np.arange(grid[1]), np.arange(grid[0]))
                parts = []
                for axis in xy:
                    out = np.outer(axis.reshape(-1), omega)
                    parts += [np.sin(out), np.cos(out)]
                return torch.from_numpy(np.concatenate(parts, axis=1)).float()
            """,
        ),
        Variant(
            "one table for each axis, then broadcast",
            """
            def sincos_2d(grid, dim):
                if dim < 4 or dim % 4 > 0:
                    raise ValueError
                h, w = grid
                down, across = sincos(torch.arange(h).float(), dim // 2), sincos(torch.arange(w).float(), dim // 2)
                table = torch.empty(h, w, dim)
                table[:, :, : dim // 2] = across[None]
                table[:, :, dim // 2 :] = down[:, None]
                return table.reshape(h * w, dim)
            """,
        ),
        Variant(
            "a frozen parameter",
            """
            def sincos_2d(grid, dim):
                if dim < 4 or dim % 4:
                    raise ValueError("dim")
                p = torch.arange(grid[0] * grid[1])
                halves = [sincos(place.float(), dim // 2) for place in (p % grid[1], p // grid[1])]
                return nn.Parameter(torch.cat(halves, dim=1), requires_grad=False)
            """,
        ),
        Variant(
            "divmod",
            """
            def sincos_2d(grid, dim):
                if dim % 4 or not dim > 0:
                    raise ValueError("dim")
                n = torch.arange(grid[0] * grid[1])
                place = torch.stack([n % grid[1], n // grid[1]], dim=1).double()
                angle = place[:, :, None] / 10000 ** (torch.arange(dim // 4) / (dim // 4))
                return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).float()
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            'Row and column of each patch first: `torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")` '
            "gives two (h, w) tables, the rows and the columns. `.flatten()` puts both in the order of the patches.",
        ),
        Hint(
            "my halves are exchanged",
            "The *column* comes first. Test with a grid of one row: then only the first half of the numbers changes "
            "from patch to patch.",
        ),
        Hint(
            "which refusals?",
            "One `if` before all else: `dim < 4 or dim % 4`. (`sincos` itself only knows that its own number must be "
            "even.)",
        ),
        Hint(
            "show me nearly everything",
            "torch.cat([sincos(columns.flatten(), dim // 2), sincos(rows.flatten(), dim // 2)], dim=-1), with rows and "
            "columns as float tensors from meshgrid.",
        ),
    ],
)


# --------------------------------------------------------------------------------------------------------- the block

_BLOCK_BODY = """\
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))
"""
_SIX = "shift1, scale1, gate1, shift2, scale2, gate2 ="


def _block(body: str) -> str:
    """The block with another body of its ``forward``, and its docstring left out."""
    source = inspect.getsource(DiTBlock)
    assert source.count(_BLOCK_BODY) == 1, "the body of DiTBlock.forward has changed: adapt the exercise"
    return source.replace(_BLOCK_BODY, textwrap.indent(textwrap.dedent(body).strip("\n"), 8 * " ") + "\n")


_SHORT = {  # abbreviations for the tables of mistakes; the six vectors have an axis for the tokens there
    "A": "self.attention(self.norm1(x) * (1 + scale1) + shift1)",
    "M": "self.mlp(self.norm2(x) * (1 + scale2) + shift2)",
    **{name: f"self.{name}" for name in ("attention", "norm1", "mlp", "norm2")},
}
_MIRROR = {"A": "M", "attention": "mlp"} | {f"{name}1": f"{name}2" for name in ("norm", "shift", "scale", "gate")}


def _words(text: str, table: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda word: table.get(word[0], word[0]), text)


def _wrong_block(body: str, sentence: str) -> Mistake:
    six = f"{_SIX} self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)\n"
    return Mistake(sentence, code=_block(six + _words(textwrap.dedent(body).strip("\n"), _SHORT)))


_STEPS = {  # what becomes of x: first the attention, then the MLP in the same way
    "x + gate1 * attention(norm1(x) * scale1 + shift1)": "The 1 + is missing: you multiply by scale, not by 1 + scale. "
    "At birth scale, shift and gate are all 0, so each part reads zeros and says zeros, and *nothing* can start "
    "learning. No test of the identity sees it.",
    "gate1 * (x + A)": "The gate covers the tokens too: gate (x + f(x)). It may only touch what the part says, or "
    "closed gates erase the picture.",
    "gate1 * x + A": "The gate multiplies the tokens, and not what the part says: gate x + f(x). It is x + gate f(x).",
    "gate1 * A": "The tokens themselves are lost: what comes back is only what the parts say. Add it to x.",
    "norm1(x) + gate1 * A": "You add to the *normalised* tokens. Only what the part reads is normalised; what it says "
    "is added to x itself.",
    "(1 - gate1) * x + gate1 * A": "You mix: (1 - gate) x + gate f(x). The tokens stay whole: x + gate f(x).",
    "x + A": "Both gates are missing: this is adaLN, without the Zero. What each part says is multiplied by its gate "
    "before it is added.",
    "x + (1 + gate1) * A": "You multiply by 1 + gate. Scale has a 1 +, the gate has none: it must be able to close.",
    "x + gate1.sigmoid() * A": "The gates go through a sigmoid, as in an LSTM. Here they are used as they are: a "
    "sigmoid of 0 would be half open.",
    "x + gate1.tanh() * A": "The gates go through a tanh. Here they are used as they are.",
    "x + gate1 * attention(gate1 * (norm1(x) * (1 + scale1) + shift1))": "The gate stands before the part and again "
    "behind it. It belongs behind it only.",
    "x + attention(gate1 * (norm1(x) * (1 + scale1) + shift1))": "The gate stands before the part, on what it reads. "
    "It belongs behind it, on what it says: biases would slip past a closed gate.",
    "x + gate1 * (attention(norm1(x)) * (1 + scale1) + shift1)": "You shift and scale what each part *says*. Shift and "
    "scale belong to what it *reads*, behind the norm; only the gate stands behind the part.",
    "x + gate1 * (attention(norm1(x) * (1 + scale1)) + shift1)": "The shift is added to what the part says. It belongs "
    "to what the part reads, next to 1 + scale.",
    "x + gate1 * attention(norm1(x * (1 + scale1) + shift1))": "You shift and scale before the norm, which then takes "
    "much of it out again. First the norm, then 1 + scale and shift.",
    "x + gate1 * attention(x * (1 + scale1) + shift1)": "The norms are missing: each part reads the normalised tokens, "
    "`norm1(x)` or `norm2(x)`.",
    "norm1(x + gate1 * attention(x * (1 + scale1) + shift1))": "The norm stands outside the sum (post-norm, lesson "
    "02). Here each part reads a normalised copy.",
    "x + gate1 * attention((norm1(x) + shift1) * (1 + scale1))": "The shift is scaled along with the rest. First "
    "multiply by 1 + scale, then add the shift.",
    "x + gate1 * attention(norm1(x) * (2 + scale1) + shift1)": "You multiply by 2 + scale: `modulate` adds the 1 "
    "itself, so hand it the bare scale.",
    "x + gate1 * attention(norm1(x) * scale1.exp() + shift1)": "You multiply by exp(scale). It is 1 + scale.",
    "x + gate1 * attention(norm1(x))": "Shift and scale are not used at all. What each part reads is multiplied by 1 + "
    "scale, plus shift.",
}
_OWN_NORM = """
x = x + gate1 * attention(norm(x) * (1 + scale1) + shift1)
return x + gate2 * mlp(norm(x) * (1 + scale2) + shift2)
"""
_NORMS = {  # both parts read the tokens y through another norm
    "F.layer_norm(y, y.shape[-1:])": "Your norm has PyTorch's default eps, 1e-5. Here eps is 1e-6, as `norm1` and "
    "`norm2` have it.",
    "(y - y.mean(-1, keepdim=True)) / y.std(-1, correction=0, keepdim=True)": "Your norm has no eps: a token whose "
    "numbers are all equal becomes 0 / 0. It is 1e-6, inside the root.",
    "F.layer_norm(y, y.shape[-1:], eps=1e-12)": "Faint tokens grow too much: the eps of your norm is below 1e-6, the "
    "one that `norm1` and `norm2` have, or tokens go through the norm twice.",
    "(y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True).sqrt() + 1e-6)": "Your norm adds eps "
    "behind the root. It stands inside: the root of variance + 1e-6.",
    "(y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 1e-6).sqrt()": "Your norm's variance divides by d - 1 "
    "(`correction=1`, the default of `var` and `std`). It divides by d.",
    "y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()": "Your norm does not take off the mean (that is RMSNorm). "
    "Here it is LayerNorm.",
}
_BODIES = {
    "x = x + gate1 * A\nreturn x + gate2 * mlp(norm2(x) * scale2 + shift2)": "The 1 + is missing in what the MLP "
    "reads: it is 1 + scale there too.",
    "x = x + gate1 * attention(norm1(x) * scale1 + shift1)\nreturn x + gate2 * M": "The 1 + is missing in what the "
    "attention reads: it is 1 + scale there too.",
    "x = x + gate1 * A\nreturn x + gate2 * mlp(norm2(x))": "What the MLP reads is not modulated: multiply by 1 + scale "
    "and add the shift, the fourth and fifth of the six are for that.",
    "x = x + gate1 * attention(norm1(x))\nreturn x + gate2 * M": "What the attention reads is not modulated: multiply "
    "by 1 + scale and add the shift, the first two of the six are for that.",
    "x = x + gate1 * A\nreturn x + gate1 * mlp(norm2(x) * (1 + scale1) + shift1)": "Attention and MLP share the first "
    "three vectors. The MLP has its own: the last three.",
    "return x + gate1 * A + gate2 * M": "The MLP reads the tokens as they came in, side by side with the attention. It "
    "comes after it, and reads the tokens with the attention added.",
    "y, x = x, x + gate1 * A\nreturn y + gate2 * M": "What the attention said is lost: at the end you add the MLP's "
    "part to the tokens as they came in.",
    "y, x = x, gate1 * A\nreturn y + x + gate2 * M": "The MLP reads only what the attention said. It reads the tokens "
    "with that added.",
    "x = x + gate2 * M\nreturn x + gate1 * A": "MLP before attention: the attention comes first.",
    "x = norm1(x) * (1 + scale1) + shift1\nx = x + gate1 * attention(x)\nx = norm2(x) * (1 + scale2) + shift2\n"
    "return x + gate2 * mlp(x)": "You add to the *modulated* tokens. The stream itself is neither normalised nor "
    "modulated; only the copy that each part reads is.",
    "x += gate1 * A\nx += gate2 * M\nreturn x": "The values are right, but x is overwritten: `+=` writes into the "
    "caller's tokens. Write `x = x + ...`.",
    "if gate1.any():\n    x = x + gate1 * A\nreturn x + gate2 * M if gate2.any() else x": "You skip a part whose gate "
    "is closed. The values are the same, but then no gradient reaches the gate, and every block is born with closed "
    "gates: it would stay asleep for ever. Multiply by the gate.",
    "gate1, gate2 = gate1.squeeze(1), gate2.squeeze(1)\nx = x + gate1 * A\nreturn x + gate2 * M": "The gate has shape "
    "(b, d) and the tokens (b, n, d): without an axis for the tokens it is spread over the wrong one. "
    "`gate.unsqueeze(1)` makes (b, 1, d).",
    "gate1, gate2 = gate1.squeeze(1), gate2.squeeze(1)\nx = x + A * gate1\nreturn x + M * gate2": "What the part says "
    "has the shape (b, n, d), your gate (b, d): it lacks the axis of the tokens, `gate.unsqueeze(1)`.",
    "six = shift1, scale1, gate1, shift2, scale2, gate2\nshift1, scale1, gate1, shift2, scale2, gate2 = (v.squeeze(1) "
    "for v in six)\nx = x + gate1 * A\nreturn x + gate2 * M": "The vectors have shape (b, d) and the tokens (b, n, d): "
    "without an axis for the tokens they are spread over the wrong one. `.unsqueeze(1)` makes (b, 1, d).",
    "x = x + gate1 * attention(modulate(norm1(x), shift1, scale1))\nreturn x + gate2 * mlp(modulate(norm2(x), shift2, "
    "scale2))": "There is one axis too many: `modulate` takes shift and scale as (b, d) and puts in the axis for the "
    "tokens itself. Only the gate needs your `unsqueeze(1)`.",
}
_BLOCK_SLIPS = {
    _SIX: {
        "scale1, shift1, gate1, scale2, shift2, gate2 =": "Scale and shift are exchanged with you, in the six or in "
        "what you hand to `modulate`. A network that is trained from scratch would not mind; published weights do. The "
        "order is shift, scale, gate.",
        "gate1, shift1, scale1, gate2, shift2, scale2 =": "The gate comes first in your six. The order is shift, "
        "scale, gate.",
        "scale1, gate1, shift1, scale2, gate2, shift2 =": "The shift comes last in your six. The order is shift, "
        "scale, gate.",
        "shift1, gate1, scale1, shift2, gate2, scale2 =": "The gate stands before the scale in your six. The order is "
        "shift, scale, gate.",
        "shift1, shift2, scale1, scale2, gate1, gate2 =": "Your six are sorted by kind: both shifts, both scales, both "
        "gates. They are sorted by part: shift, scale and gate of the attention, then of the MLP.",
        "shift2, scale2, gate2, shift1, scale1, gate1 =": "The MLP gets the first three and the attention the last "
        "three. Attention comes first.",
        "shift1, scale1, gate2, shift2, scale2, gate1 =": "The two gates are exchanged: the third of the six belongs "
        "to the attention, the last to the MLP.",
        "shift1, scale1, gate1, scale2, shift2, gate2 =": "For the MLP you read scale before shift. Its three stand in "
        "the same order: shift, scale, gate.",
    },
    "self.modulation(condition).chunk(6, dim=-1)": {
        "self.modulation(condition).unflatten(-1, (-1, 6)).unbind(-1)": "You take every sixth number (a reshape to (d, "
        "6)). The six vectors lie one behind the other: `chunk(6, dim=-1)`, or a reshape to (6, d).",
        "self.modulation(condition).reshape(6, len(condition), -1)": "Samples and vectors are mixed up: `reshape(6, b, "
        "d)` cuts the numbers in their order in memory, where the six of one sample lie together. Take `reshape(b, 6, "
        "d)`, or `chunk(6, dim=-1)`.",
    },
    "self.modulation(condition)": {
        "self.modulation[1](condition)": "The SiLU is skipped: you use only the linear layer of `modulation`. Call the "
        "whole of it.",
        "self.modulation(nn.functional.silu(condition))": "A second SiLU: `modulation` begins with one already.",
        "self.modulation(condition[:1])": "All samples get the condition of the first one. Each has its own.",
        "self.modulation(condition.detach())": "The values are right, but no gradient reaches the condition: time and "
        "label would never learn.",
    },
    "gate1.unsqueeze(1) * ": {"": "The attention's gate is missing."},
    "gate2.unsqueeze(1) * ": {"": "The MLP's gate is missing."},
    "gate2.unsqueeze(1)": {
        "gate1.unsqueeze(1)": "The attention's gate works on the MLP too; its own gate is the last of the six.",
        "(1 + gate2).unsqueeze(1)": "You multiply what the MLP says by 1 + gate. Its gate too must be able to close.",
    },
    "return x + gate2": {
        "return gate2": "The MLP's part is not added to the tokens but takes their place. `x + ...` is missing.",
        "return x  #": "The MLP is skipped: what comes back is the stream after the attention.",
    },
    "        x = x + gate1": {
        "        x = x + condition.unsqueeze(1)\n        x = x + gate1": "The condition is added to the tokens as "
        "well. It works through `modulation` only.",
    },
    "shift1, scale1))": {
        "shift1, scale1)).detach()": "The values are right, but no gradient reaches the tokens through the attention.",
        "shift1, scale1), condition)": "The attention gets the condition as a second input. It reads the tokens only, "
        "as `attention(x)`: the condition works through `modulation`.",
    },
    "self.attention(modulate(": {
        "self.attention(x=modulate(": "You call the attention with a keyword. Another attention has another name for "
        "its input: `attention(x)`.",
    },
    "shift2, scale2)": {
        "shift1, scale1)": "The MLP reads with the attention's shift and scale; its own are the fourth and fifth of "
        "the six.",
        "shift1, scale2)": "The MLP reads with the attention's shift; its own is the fourth of the six.",
        "shift2, scale1)": "The MLP reads with the attention's scale; its own is the fifth of the six.",
    },
    "self.norm1(x)": {
        "x": "The attention reads tokens that went through no norm: `norm1` is missing.",
        "self.norm1(x.float()).to(x.dtype)": "Right in float32, but a block in float64 stops, or loses digits: "
        "something on the way is turned into float32 (`.float()`, for example). Leave every dtype as it comes.",
    },
    "self.norm2(x)": {"x": "The MLP reads tokens that went through no norm: `norm2` is missing."},
    "self.mlp(modulate(self.norm2(x), shift2, scale2))": {
        "self.mlp[2](nn.functional.gelu(self.mlp[0](modulate(self.norm2(x), shift2, scale2))))": "Your MLP has the "
        "exact GELU. The block's own, `self.mlp`, has the one with tanh: call it as a whole.",
    },
    "gate2.unsqueeze(1) * self.mlp(": {
        "self.mlp(gate2.unsqueeze(1) * ": "The MLP's gate stands before the MLP, on what it reads. It belongs behind "
        "it: biases would slip past a closed gate.",
    },
    "        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))": {
        "        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))\n"
        "        nn.init.zeros_(self.modulation[1].weight)\n        nn.init.zeros_(self.modulation[1].bias)": "You set "
        "the modulation to zero in `__init__`. It is given as it is: initial weights are not set here, but by "
        "`initialise_dit`.",
    },
}


_BLOCK = dict(d=12, heads=3, d_ff=19)


def _tokens(g: torch.Generator, b: int = 2, n: int = 5) -> dict:
    return dict(x=randn(g, b, n, 12), condition=randn(g, b, 12))


def _faint(g: torch.Generator) -> dict:
    """Tokens whose spread is that of eps or less, so that it matters where and how large eps is."""
    inputs = _tokens(g, 2, 6)
    return inputs | dict(x=inputs["x"] * torch.tensor([1, 0, 1e-3, 3e-3, 1, 1e-2])[:, None])


class _Doubles(nn.Module):
    """In the place of attention: to see that a block uses what it was given, and calls it without keywords."""

    def __init__(self, d: int, heads: int, /):
        super().__init__()
        self.mix = nn.Linear(d, d)

    def forward(self, x: Tensor, /) -> Tensor:
        return 2 * self.mix(x).cumsum(dim=1)


class _Silent(nn.Module):
    """In the place of attention: it says nothing, so that faint tokens reach the MLP as they are."""

    def __init__(self, d: int, heads: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


def _newborn(cls) -> tuple[nn.Module, Tensor, Tensor]:
    """A block whose modulation is zero, with tokens and a condition for it."""
    torch.manual_seed(0)
    block = cls(**_BLOCK)
    nn.init.zeros_(block.modulation[1].weight)
    nn.init.zeros_(block.modulation[1].bias)
    return block, torch.randn(2, 5, 12), torch.randn(2, 12)


def _can_wake(cls) -> bool:
    """At birth both gates are 0, and they must get a gradient. What is plainly wrong is left to the cases."""
    block, x, condition = _newborn(cls)
    for training in (True, False):
        block.train(training).zero_grad()
        out = block(x=x, condition=condition)
        if not torch.equal(out, x):
            return True
        if out.requires_grad:
            out.square().sum().backward()
        gradient = block.modulation[1].bias.grad
        if gradient is None or gradient.view(6, -1).any(1).sum() < 2:
            return False
    return True


def _rests_with_closed_gates(cls) -> bool:
    block, x, condition = _newborn(cls)
    with torch.no_grad():
        return torch.equal(block(x=x, condition=condition), x)


def _draws_nothing(cls) -> bool:
    """In train mode forty times the same as in eval mode: a coin that falls rarely falls once."""
    torch.manual_seed(0)
    block, x, condition = cls(**_BLOCK), torch.randn(2, 5, 12), torch.randn(2, 12)
    with torch.no_grad():
        want = block.eval()(x=x, condition=condition)
        block.train()
        return all(torch.allclose(block(x=x, condition=condition), want, atol=1e-5) for _ in range(40))


def _starts_as_given(cls) -> bool:
    """PyTorch's own initial weights: uniform, up to 1 / sqrt(inputs)."""
    torch.manual_seed(0)
    block = cls(d=48, heads=3, d_ff=64)
    layers = block.mlp[0], block.mlp[2], block.modulation[1]
    return all(0.8 < p.abs().max() * layer.in_features**0.5 < 1.001 for layer in layers for p in layer.parameters())


def _keeps_float64(cls) -> bool:
    """What is plainly wrong is left to the cases; on faint tokens even a slightly wrong norm is."""
    worst = 0.0
    for attention, inputs in ((full_attention, _tokens), (full_attention, _faint), (_Silent, _faint)):
        torch.manual_seed(0)
        init = _BLOCK | dict(attention=attention)
        block, theirs = cls(**init).double(), DiTBlock(**init).double()
        with torch.no_grad():
            for p in block.parameters():
                p.add_(torch.randn_like(p), alpha=0.2)
            theirs.load_state_dict(block.state_dict())
            given = {name: value.double() for name, value in inputs(torch.Generator().manual_seed(0)).items()}
            try:
                out = block(**given)
            except Exception:  # two dtypes that do not go together, an assertion, ...
                return False
            if out.dtype != torch.float64:
                return False
            worst = max(worst, float((out - theirs(**given)).abs().max()))
    return not 1e-9 < worst < 2e-5


DIT_BLOCK = Exercise(
    target=DiTBlock,
    minutes=20,
    given=("__init__",),
    cases=[
        Case("2 samples of 5 tokens", _tokens, init=_BLOCK),
        Case("as many samples as tokens", lambda g: _tokens(g, 3, 3), init=_BLOCK),
        Case("six samples of six tokens", lambda g: _tokens(g, 6, 6), init=_BLOCK),
        Case("one token", lambda g: _tokens(g, 3, 1), init=_BLOCK),
        Case(
            "tokens far from zero", lambda g: dict(x=3 + 5 * randn(g, 2, 7, 12), condition=randn(g, 2, 12)), init=_BLOCK
        ),
        Case("a token of zeros and faint ones", _faint, init=_BLOCK),
        Case("faint tokens, and an attention that is silent", _faint, init=_BLOCK | dict(attention=_Silent)),
        Case("a condition of zeros", lambda g: dict(x=randn(g, 2, 5, 12), condition=torch.zeros(2, 12)), init=_BLOCK),
        Case(
            "a strong condition, another attention",
            lambda g: dict(x=randn(g, 2, 5, 12), condition=20 * randn(g, 2, 12)),
            init=_BLOCK | dict(attention=_Doubles),
        ),
        Case("no bias in the MLP", _tokens, init=_BLOCK | dict(bias=False)),
        Case("another attention", _tokens, init=_BLOCK | dict(attention=_Doubles)),
        Case("attention of lesson 02", _tokens, init=_BLOCK | dict(attention=MultiHeadAttention)),
    ],
    properties=[
        Property(
            "With all modulation at zero, gates included, the block must return its input exactly.",
            _rests_with_closed_gates,
        ),
        Property(
            "Right in float32, but in float64 it stops, or loses digits: the result has the dtype of x, and nothing on "
            "the way becomes float32.",
            _keeps_float64,
        ),
        Property(
            "With gates of zero nothing reaches the modulation backwards, and so is every block born: it would "
            "never learn. Do not skip a part because its gate is closed; multiply by the gate.",
            _can_wake,
        ),
        Property(
            "Right in eval mode, but in train mode it does not always answer alike: does something draw at random, "
            "such as drop-path? Nothing here does.",
            _draws_nothing,
        ),
        Property(
            "The block is right, but its initial weights are not those that the given `__init__` makes. They are not "
            "set here: `initialise_dit` does that.",
            _starts_as_given,
        ),
    ],
    mistakes=[
        *_slips(_BLOCK_SLIPS),
        *(_wrong_block(f"x = {step}\nreturn {_words(step, _MIRROR)}", said) for step, said in _STEPS.items()),
        *(_wrong_block(body, said) for body, said in _BODIES.items()),
        *(_wrong_block(f"norm = lambda y: {norm}\n{_OWN_NORM}", said) for norm, said in _NORMS.items()),
    ],
    variants=[
        Variant(
            "an axis for the tokens, once",
            _block(
                """
                m = self.modulation(condition)[:, None].chunk(6, dim=2)
                a = self.norm1(x) * (m[1] + 1) + m[0]
                x = x + m[2] * self.attention(a)
                b = self.norm2(x) * (m[4] + 1) + m[3]
                return x + m[5] * self.mlp(b)
                """
            ),
        ),
        Variant(
            "addcmul",
            _block(
                """
                v = self.modulation(condition).view(len(x), 6, 1, -1)
                h = torch.addcmul(v[:, 0], self.norm1(x), 1 + v[:, 1])
                x = torch.addcmul(x, self.attention(h), v[:, 2])
                h = torch.addcmul(v[:, 3], self.norm2(x), 1 + v[:, 4])
                return torch.addcmul(x, self.mlp(h), v[:, 5])
                """
            ),
        ),
        Variant(
            "sample by sample",
            _block(
                """
                out = []
                for tokens, c in zip(x, condition):
                    six = torch.split(self.modulation(c), x.shape[-1])
                    for part, norm, (shift, scale, gate) in (
                        (self.attention, self.norm1, six[:3]),
                        (self.mlp, self.norm2, six[3:]),
                    ):
                        tokens = tokens + gate * part((norm(tokens) + scale * norm(tokens) + shift)[None])[0]
                    out.append(tokens)
                return torch.stack(out)
                """
            ),
        ),
        Variant(
            "norms and linear layers by hand",
            _block(
                """
                weight, bias = self.modulation[1].weight, self.modulation[1].bias
                six = F.linear(F.silu(condition), weight, bias)
                six = rearrange(six, "b (k d) -> k b 1 d", k=6)

                def norm(y):
                    return F.layer_norm(y, y.shape[-1:], eps=1e-6)

                x = x + self.attention(norm(x) * (1 + six[1]) + six[0]) * six[2]
                y = F.gelu(self.mlp[0](norm(x) * (1 + six[4]) + six[3]), approximate="tanh")
                return x + self.mlp[2](y) * six[5]
                """
            ),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "`self.modulation(condition)` has shape (b, 6 d). `.chunk(6, dim=-1)` makes six vectors (b, d) of it. "
            "`.unsqueeze(1)` gives each an axis for the tokens: (b, 1, d).",
        ),
        Hint(
            "my shapes fit only when b = n",
            "(b, d) times (b, n, d) is lined up from the right: b meets n. Make it (b, 1, d) first.",
        ),
        Hint(
            "what is modulate?",
            "`course_lib.nn.modulation.modulate(x, shift, scale)` is x (1 + scale) + shift, with an axis for the "
            "tokens put in. You may use it or write it.",
        ),
        Hint(
            "show me nearly everything",
            "Twice the same line: x = x + gate * part(norm(x) * (1 + scale) + shift), first with `attention` and "
            "`norm1` and the first three vectors, then with `mlp`, `norm2` and the last three.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------------- birth


class _Projection(nn.Linear):
    """A linear layer by another name, as `nn.MultiheadAttention` has one."""


class _Normed(MultiHeadAttention):
    """An attention with a norm that has weights, linear layers deep inside, and what is no linear layer."""

    def __init__(self, d: int, heads: int):
        super().__init__(d, heads, bias=True)
        self.q_norm = nn.LayerNorm(d // heads)
        self.extra = nn.Sequential(nn.Sequential(nn.Linear(d, d), _Projection(d, d)))
        self.no_linear = _NoLinear(d)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.extra(x)


class _NoLinear(nn.Module):
    """Parameters with two axes and more that are none of a linear layer."""

    def __init__(self, d: int):
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, d, 3), nn.Conv1d(3, d, 3)
        self.table = nn.Embedding(7, d)
        self.registers = nn.Parameter(torch.zeros(4, d))


def _model(depth: int, bias: bool, attention=None, crowded: bool = False, seed: int = 3) -> DiT:
    """A DiT whose every number is somewhere it should not stay."""
    torch.manual_seed(seed)
    options = dict(attention=attention) if attention else {}
    config = DiTConfig(size=(6, 4), channels=3, classes=10, patch=2, d=48, depth=depth, heads=4)
    block = lambda d, heads, d_ff: DiTBlock(d, heads, d_ff, bias=bias, **options)  # noqa: E731
    model = DiT(config, block, initialise=lambda model: None)
    if crowded:  # parts in places that no list of names knows, and layers of step 3 without a bias
        model.more = nn.ModuleDict(dict(a=nn.ModuleList([_Projection(48, 60)]), no_linear=_NoLinear(48)))
        model.label.more, model.label.no_linear = nn.Linear(48, 52), _NoLinear(48)
        model.no_linear = nn.Parameter(torch.zeros(4, 48))
        for layer in (model.out, model.modulation[1], model.blocks[0].modulation[1]):
            layer.bias = None
        to_v, closed = model.blocks[0].attention.to_v, model.blocks[1].modulation[1]
        for frozen in (to_v.weight, model.embed.bias, model.label.table.weight, closed.weight):
            frozen.requires_grad_(False)
    _disturb(model)
    return model


def _disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.7, 0.3)


def _looks(weight: Tensor, before: Tensor | None = None, linear: bool = True) -> str:
    """How a tensor was set, in words that do not depend on what was drawn."""
    w = weight.detach().double()
    if before is not None and torch.equal(weight, before):
        return "as it was"
    if not w.any():
        return "zero"
    if bool((w == w.flatten()[0]).all()):
        return f"{w.flatten()[0].item():g} everywhere"
    if w.ndim != 2 or (w == 0).float().mean() > 0.01:
        return "partly zero" if (w == 0).float().mean() > 0.01 else "drawn at random"
    out, into = w.shape
    square = w @ w.T if out <= into else w.T @ w
    if torch.allclose(square / square[0, 0], torch.eye(len(square), dtype=square.dtype), atol=1e-4):
        return "orthogonal"
    mean, std, largest = w.mean().item(), w.std().item(), w.abs().max().item()
    tails = ((w - mean) ** 4).mean().item() / std**4  # 1.8 for a uniform, 3 for a normal distribution
    if abs(mean) < 0.15 * std and tails < 2.1:
        for name, limit in {
            "Xavier uniform": (6 / (into + out)) ** 0.5,
            "PyTorch's default": into**-0.5,
            "Kaiming uniform": (6 / into) ** 0.5,
        }.items():
            if 0.95 * limit < largest <= 1.0001 * limit:
                return name
        return f"uniform, up to {largest / (6 / (into + out)) ** 0.5:.1f} times Xavier's limit" if linear else "uniform"
    if abs(mean) < 0.15 * std and tails > 2.5:
        if w.numel() > 9999 and largest < 3.1 * std:
            return f"normal, but cut off at {largest / std:.1f} standard deviations"
        if abs(std / 0.02 - 1) < 0.12:
            return "normal, std 0.02"
        if linear and abs(std / (2 / (into + out)) ** 0.5 - 1) < 0.05:
            return "normal, std as Xavier's"
        return f"normal, std about {std:.1g}"
    return "something else"


_GROUPS = {
    "embed.weight": "the weight of model.embed",
    "time.0.weight": "the weight of model.time[0]",
    "time.2.weight": "the weight of model.time[2]",
    "label.table.weight": "the weight of model.label.table",
    "modulation.1.weight": "the weight of model.modulation[1]",
    "out.weight": "the weight of model.out",
}


def _group(name: str, parameter: Tensor) -> str:
    if name in _GROUPS:
        return _GROUPS[name]
    if "no_linear" in name:
        loose = name.endswith(("registers", "no_linear"))
        return "loose parameters" if loose else "weights of a convolution, of another embedding"
    if "norm" in name:
        return "weights of norms"
    if name.endswith("bias"):
        last = "modulation" in name or name.startswith("out")
        return "biases of the modulation and of out" if last else "biases of all other linear layers"
    if "more" in name:
        return "weights of linear layers elsewhere"
    if "modulation" in name:
        return "the weights of the blocks' modulation[1]"
    return "weights of attention and mlp"


def _wake_up(model: DiT) -> str:
    """How many tensors get a gradient in the first three steps of training.

    The biases of keys are left out: softmax does not see them, so their gradient is rounding noise.
    """
    counted = [p for name, p in model.named_parameters() if not name.endswith("to_k.bias")]
    g = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(5, 3, 6, 4, generator=g), torch.rand(5, generator=g), torch.arange(5)
    counts = []
    with torch.enable_grad():
        for _ in range(3):
            model.zero_grad()
            loss = (model(x, t, y) - x).square().mean()
            if loss.requires_grad:
                loss.backward()
            learns = [p for p in counted if p.grad is not None and bool(p.grad.any())]
            counts.append(len(learns))
            with torch.no_grad():
                for p in learns:
                    p.sub_(0.5 * p.grad)
    return f"{counts[0]}, {counts[1]}, {counts[2]} of {len(counted)}"


def _look_over(model: DiT, before: dict[str, Tensor]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for name, p in model.named_parameters():
        found.setdefault(_group(name, p), set()).add(_looks(p, before.get(name), linear="table" not in name))
    weights_first = sorted(found.items(), key=lambda item: (item[0].startswith("biases"), item[0]))
    return {group: " or ".join(sorted(kinds)) for group, kinds in weights_first}


def _drawn(model: DiT, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first numbers of each tensor that was drawn at random, scaled to length 1."""
    starts = {}
    for name, p in model.named_parameters():
        start = p.detach().flatten()[:24]
        if len(start) == 24 and start.std() > 0 and not torch.equal(p, before[name]):
            starts[name] = (start - start.mean()) / (start - start.mean()).norm()
    return starts


def _shared(a: dict[str, Tensor], b: dict[str, Tensor] | None = None) -> str:
    """Names of the tensors whose random numbers are those of another one, perhaps of the model ``b``."""
    if not a or b == {}:
        return "none"
    same = torch.stack(list(a.values())) @ torch.stack(list((b or a).values())).T > 0.999
    twice = same.any(1) if b else same.sum(1) > 1
    groups = {_group(name, same) for name, again in zip(a, twice.tolist(), strict=True) if again}
    return ", ".join(sorted(groups)) or "none"


def _modes(model: nn.Module, before: list[bool]) -> str:
    now = [m.training for m in model.modules()]
    return "as before" if now == before else "all in train" if all(now) else "changed" if any(now) else "all in eval"


def _born(depth: int, bias: bool = True, attention=None, crowded: bool = False):
    """The protocol: initialise a model in disorder, and tell what became of it."""

    def protocol(f) -> dict[str, str]:
        twin = _model(depth, bias, attention, crowded, seed=4)
        theirs = {name: p.detach().clone() for name, p in twin.named_parameters()}
        model = _model(depth, bias, attention, crowded)
        model.blocks[0].eval()  # a mode for each part, to see that both stay
        own = dict(model.named_parameters())
        before = {name: p.detach().clone() for name, p in own.items()}
        positions, modes = model.positions.clone(), [m.training for m in model.modules()]
        frozen = [n for n, p in own.items() if not p.requires_grad]
        with torch.enable_grad():  # as everywhere in a notebook
            returned = f(model=model)
            recording = torch.is_grad_enabled()
        with torch.no_grad():
            f(model=twin)
            recording_still = torch.is_grad_enabled()
        now = dict(model.named_parameters())
        report: dict[str, str] = {}
        if any(n not in now or now[n].shape != before[n].shape for n in before) or len(now) != len(before):
            return {"the parameters": "other names or shapes than before"}
        report |= _look_over(model, before)
        report["positions"] = "as they were" if torch.equal(positions, model.positions) else "changed"
        report["parameters are still the same objects, for an optimizer that holds them"] = _yes(
            all(now[n] is own[n] for n in own)
        )
        is_frozen = [n for n, p in now.items() if not p.requires_grad]
        report["frozen parameters"] = "as before" if is_frozen == frozen else f"{len(is_frozen)}, before {len(frozen)}"
        report["train or eval"] = _modes(model, modes)
        report["gradients are on afterwards"] = _yes(recording)
        report["gradients are on afterwards, having been off"] = _yes(recording_still)
        model.eval()
        g = torch.Generator().manual_seed(0)
        x, t = torch.randn(2, 3, 6, 4, generator=g), torch.rand(2, generator=g)
        with torch.no_grad():
            tokens, condition = torch.randn(2, 6, 48, generator=g), torch.randn(2, 48, generator=g)
            same = [torch.equal(block(tokens, condition), tokens) for block in model.blocks]
            report["blocks that return their input"] = f"{sum(same)} of {len(same)}"
            report["the first prediction is 0"] = _yes(not model(x, t, torch.tensor([3, 10])).any())
        mine = _drawn(model, before)
        report["tensors that share their random numbers"] = _shared(mine)
        report["a second model gets the same random numbers in"] = _shared(mine, _drawn(twin, theirs))
        report["tensors with a gradient at steps 0, 1, 2"] = _wake_up(model)
        report["returns"] = type(returned).__name__
        first = _look_over(twin, theirs)
        _disturb(twin)
        theirs = {name: p.detach().clone() for name, p in twin.named_parameters()}
        with torch.enable_grad():
            f(model=twin)
        report["a model that is initialised once more"] = "new" if _look_over(twin, theirs) == first else "not new"
        return report

    return protocol


def _birth(label: str, depth: int, **options) -> Case:
    return Case(label, lambda g: {}, call=_born(depth, **options))


_GENERIC = """\
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
"""
_SMALL = """\
    for weight in (model.label.table.weight, model.time[0].weight, model.time[2].weight):
        nn.init.normal_(weight, std=0.02)
"""
_ZERO = """\
    for zero in (model.out, model.modulation[1], *(block.modulation[1] for block in model.blocks)):
        nn.init.zeros_(zero.weight)
        if zero.bias is not None:
            nn.init.zeros_(zero.bias)
"""
_END = "    return None\n"


def _birth_code(*parts: str) -> str:
    return "def initialise_dit(model):\n" + "".join(parts)


def _bad_birth(sentence: str, *parts: str) -> Mistake:
    return Mistake(sentence, code=_birth_code(*parts))


def _bad_births(table: Slips) -> list[Mistake]:
    """Like ``_slips``, in the recipe as a learner would write it."""
    recipe = _birth_code(_GENERIC, _SMALL, _ZERO, _END)
    assert all(recipe.count(old) == 1 for old in table)
    return [Mistake(said, code=recipe.replace(old, new)) for old, news in table.items() for new, said in news.items()]


_ALL_ZERO = "(model.out, model.modulation[1], *(block.modulation[1] for block in model.blocks))"
_IS_LINEAR = "isinstance(module, nn.Linear)"
_BIRTH_SLIPS = {
    _ALL_ZERO: {
        "(model.modulation[1], *(block.modulation[1] for block in model.blocks))": "`model.out` is not zero: the first "
        "prediction is noise of its own, and the first steps are spent on unlearning it.",
        "(model.out, model.modulation[1])": "The blocks' `modulation[1]` is not zero: their gates are open at birth, "
        "no block is the identity.",
        "(model.out, *(block.modulation[1] for block in model.blocks))": "The last `model.modulation[1]` is not zero; "
        "only those of the blocks are.",
        "(model.out,)": "Only `model.out` is zero. The modulations, of the model and of each block, start at zero too.",
        "(model.out, model.modulation[1], *(block.modulation[1] for block in model.blocks[:-1]))": "All but the last "
        "block start as the identity: the last one's modulation is not zero.",
        "(model.out, model.modulation[1], model.blocks[0].modulation[1])": "Only the first block's modulation is zero. "
        "All blocks start as the identity.",
        "(model.out, model.modulation[1], *(m for b in model.blocks for m in (b.attention.to_out, b.mlp[2])))": "You "
        "zero the last layer inside each part (the attention's `to_out`, the MLP's second layer), as others do without "
        "gates. Here the gates do it, through `block.modulation[1]`.",
    },
    "        nn.init.zeros_(zero.weight)\n": {
        "        if zero.weight.requires_grad:\n            nn.init.zeros_(zero.weight)\n": "A frozen layer of step 3 "
        "keeps its weight. Whether a layer is frozen does not matter: set it like the others.",
        "        nn.init.normal_(zero.weight, std=0.02)\n": "Small but not zero: the modulations and `out` are drawn "
        "with 0.02. They start at exactly zero.",
        "        nn.init.zeros_(zero.weight)\n        zero.requires_grad_(False)\n": "What starts at zero is frozen "
        "(`requires_grad_(False)`), and stays zero for ever. Zero is where it starts, not where it stays.",
        "        zero.weight = nn.Parameter(torch.zeros_like(zero.weight))\n": "You put new `nn.Parameter`s in the "
        "place of the old ones. An optimizer that was made before still holds the old ones and trains nothing. Write "
        "into them: `nn.init.zeros_`.",
        "        zero.weight[1:] = 0\n": "You write into a part of a parameter that requires gradients, and PyTorch "
        "forbids it. Do it under `with torch.no_grad():`.",
        "        rows = torch.arange(len(zero.weight)) // zero.in_features % 3 == 2\n        with torch.no_grad():\n"
        "            zero.weight[rows if len(zero.weight) == 6 * zero.in_features else slice(None)] = 0\n": "Only the "
        "rows of the gates are zero. The block is the identity then, but the recipe zeroes all six: shift, scale and "
        "gate.",
    },
    "        if zero.bias is not None:\n            nn.init.zeros_(zero.bias)\n": {
        "        nn.init.zeros_(zero.bias)\n": "A layer of step 3 without a bias makes you stop. Ask `if layer.bias is "
        "not None` there too.",
        "        if zero.bias is not None and zero is not model.out:\n            nn.init.ones_(zero.bias)\n": "The "
        "modulations' biases are 1, so that scale starts at 1. But the block multiplies by 1 + scale: scale starts at "
        "0, and the gates must too.",
    },
    _IS_LINEAR: {
        "type(module) is nn.Linear": "A subclass of `nn.Linear` is forgotten: you compare types exactly. "
        "`isinstance(module, nn.Linear)` is true for subclasses too.",
        "'Linear' in type(module).__name__": "You ask for the *name* of a module's class. What has Linear in its name "
        "need not be a linear layer, and a linear layer may have another name: `isinstance(module, nn.Linear)`.",
        "isinstance(module, (nn.Linear, nn.Conv2d))": "Convolutions are set too. Only linear layers are meant.",
        "isinstance(module, nn.Linear) and module.bias is not None": "Linear layers without a bias keep their old "
        "weights. Only the line about the bias depends on it.",
        "isinstance(module, nn.Linear) and module.weight.requires_grad": "Frozen linear layers keep what they were. "
        "They are set like the others.",
        "isinstance(module, nn.Linear) and module is not model.embed": "`model.embed` is left out of the general rule. "
        "It is a linear layer like the others.",
    },
    "model.modules()": {
        "[*model.blocks.modules(), *model.time, model.embed, model.out, model.modulation[1]]": "Linear layers in a "
        "place that you did not think of keep what they were. Do not list the places: `model.modules()` walks through "
        "everything.",
        "model.blocks.modules()": "The general rule reaches only the blocks: `embed` and the rest keep what they were. "
        "`model.modules()` walks through everything.",
        "model.children()": "The general rule does not go deep: `children()` are only the parts at the top. "
        "`model.modules()` walks through everything.",
    },
    "nn.init.xavier_uniform_(module.weight)": {
        "nn.init.xavier_normal_(module.weight)": "This is Xavier *normal*. The recipe says uniform: `xavier_uniform_`.",
        "nn.init.kaiming_uniform_(module.weight)": "This is Kaiming's rule. The recipe says Xavier uniform: "
        "`xavier_uniform_`.",
        "nn.init.normal_(module.weight, std=0.02)": "All linear layers get normal weights with 0.02, as in GPT and "
        "ViT. DiT's are Xavier uniform; 0.02 is for label and time.",
        "nn.init.xavier_uniform_(module.weight, generator=torch.Generator().manual_seed(0))": "All linear layers hold "
        "the same random numbers: each begins with the same seed. Draw each anew.",
    },
    "            if module.bias is not None:\n                nn.init.zeros_(module.bias)\n": {
        "": "Biases of linear layers keep what they were; all of them start at zero.",
        "            nn.init.zeros_(module.bias)\n": "A linear layer without a bias makes you stop. Ask `if "
        "module.bias is not None` first.",
        "            if module.bias is not None:\n                module.bias.zero_()\n": "You write into a parameter "
        "that requires gradients, and PyTorch forbids it. Do it under `with torch.no_grad():`, or with the functions "
        "of `nn.init`, which see to that themselves.",
    },
    "model.label.table.weight, ": {
        "": "The label's table is left as it was; it starts normal with standard deviation 0.02.",
        "*(e.weight for e in model.modules() if isinstance(e, nn.Embedding)), ": "Every embedding is set to 0.02. Only "
        "the label's is meant, `model.label.table`; there may be others.",
        "*(e.weight for e in model.label.modules() if isinstance(e, nn.Embedding)), ": "Every embedding in "
        "`model.label` is set to 0.02. Only its `table` is meant.",
        "model.label.table.weight, model.embed.weight, ": "`model.embed` is drawn with 0.02. It embeds patches and is "
        "a linear layer like the others, Xavier uniform; 0.02 is for label and time.",
    },
    "model.time[0].weight, ": {
        "": "`model.time[0]` keeps Xavier's weights; both layers of time start normal with standard deviation 0.02.",
    },
    ", model.time[2].weight": {
        "": "`model.time[2]` keeps Xavier's weights; both layers of time start normal with standard deviation 0.02.",
        ", model.time[2].weight, model.time[0].bias, model.time[2].bias": "The biases of `model.time` are drawn too. "
        "Only its weights are normal; the biases are zero, like those of every linear layer.",
    },
    "        nn.init.normal_(weight, std=0.02)\n": {
        "        nn.init.normal_(weight)\n": "Label and time get a standard deviation of 1, the default of "
        "`nn.init.normal_`, or 0.02 stands where the mean belongs, its second argument. Write std=0.02.",
        "        nn.init.normal_(weight, std=0.2)\n": "Label and time are drawn with a standard deviation of 0.2, ten "
        "times the 0.02 that is asked.",
        "        nn.init.normal_(weight, std=0.02**2)\n": "You square 0.02: it is the standard deviation already, as "
        "`nn.init.normal_` wants it.",
        "        nn.init.normal_(weight, std=0.02**0.5)\n": "0.02 is the standard deviation, not the variance: yours "
        "is the square root of 0.02.",
        "        nn.init.uniform_(weight, -0.02, 0.02)\n": "Label and time are uniform with you. They are normal, with "
        "standard deviation 0.02.",
        "        if weight.requires_grad:\n            nn.init.normal_(weight, std=0.02)\n": "A frozen tensor of step "
        "2 keeps what it was. Whether it is frozen does not matter: it is set like the others.",
        "        nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(0))\n": "The three tensors "
        "of step 2 hold the same random numbers: each begins with the same seed. Draw each anew.",
    },
    _SMALL: {
        "": "Step 2 is missing: label and time. They start small, normal with standard deviation 0.02.",
        "    g = torch.Generator().manual_seed(3)\n" + _SMALL.replace("=0.02", "=0.02, generator=g"): "Step 2 draws "
        "from a generator that you seed: every model gets the same numbers there. Leave `generator` out.",
    },
    _GENERIC: {
        "": "The general rule is missing altogether: Xavier for the weight of every linear layer, zero for its bias.",
        "    for p in model.parameters():\n        if p.ndim > 1:\n            nn.init.xavier_uniform_(p)\n"
        + _GENERIC: "Every parameter with two axes or more gets Xavier's weights, whatever it belongs to. Only linear "
        "layers are meant: ask `isinstance(module, nn.Linear)`.",
        "    for p in model.parameters():\n        (nn.init.xavier_uniform_ if p.ndim > 1 else nn.init.zeros_)(p)\n": ""
        "You set every parameter, by the number of its axes, so norms become zero. Only linear layers are meant; norms "
        "and all else stay as they are.",
        _GENERIC + "        if isinstance(module, nn.LayerNorm):\n            module.reset_parameters()\n": "Norms are "
        "reset too. They stay as they are.",
        "    for module in model.modules():\n        if isinstance(module, nn.Linear):\n"
        "            module.reset_parameters()\n": "You leave it to PyTorch's default (`reset_parameters`). It is "
        "smaller than Xavier's, and draws biases at random.",
        "    torch.manual_seed(0)\n" + _GENERIC: "Two models in a row get the same random numbers: you seed inside, or "
        "put the random state back at the end (`fork_rng`). Whoever wants equal models seeds outside.",
        "    import copy\n    model = copy.deepcopy(model)\n" + _GENERIC: "You work on a copy: the caller's model is "
        "as it was.",
        "    torch.set_grad_enabled(False)\n" + _GENERIC: "Gradients are off for good after your function. `with "
        "torch.no_grad():` puts them back at its end.",
    },
    _END: {
        "    torch.set_grad_enabled(True)\n": "You switch gradients on at the end. The caller may have had them off: "
        "`with torch.no_grad():` puts back what was before.",
        "    model.requires_grad_(True)\n": "What was frozen is thawed. Whether a parameter requires gradients is not "
        "your business here.",
        "    for name, p in model.named_parameters():\n        if 'out' in name:\n            nn.init.zeros_(p)\n": ""
        "The attention's `to_out` is zero too: does your rule look for `out` in the names? Only `model.out` is meant.",
        "    model.eval()\n": "The model is switched to eval mode. Leave its mode as it was.",
        "    model.train()\n": "The model is switched to train mode. Leave its mode as it was.",
        "    nn.init.normal_(model.positions, std=0.02)\n": "The frozen positions are overwritten. `model.positions` "
        "is no weight: leave it.",
        "    with torch.no_grad():\n        for block in model.blocks[1:]:\n"
        "            for p, q in zip(block.parameters(), model.blocks[0].parameters()):\n"
        "                if p.ndim == 2 and p.shape == q.shape:\n                    p.copy_(q)\n": "All blocks hold "
        "the weights of the first one. Each is drawn for itself.",
        "    return model\n": "The model itself comes back. The contract says None: what works in place returns "
        "nothing, so that nobody takes it for a copy.",
    },
}


INITIALISE_DIT = Exercise(
    target=initialise_dit,
    minutes=15,
    gradients=False,
    cases=[
        _birth("two blocks", 2),
        _birth("three blocks, no bias in their MLPs", 3, bias=False),
        _birth("an attention with a norm of its own and linear layers deep inside", 2, attention=_Normed),
        _birth(
            "more parts than a DiT has, some frozen, some without a bias",
            2,
            bias=False,
            attention=_Normed,
            crowded=True,
        ),
    ],
    mistakes=[
        _bad_birth(
            "The general rule runs last and overwrites your zeros: each block disturbs its input from the first step. "
            "What must be zero comes last. (More than one published code has this bug.)",
            _SMALL,
            _ZERO,
            _GENERIC,
        ),
        _bad_birth(
            "The two layers of `model.time` end with Xavier's weights: they are not in your step 2, or the general "
            "rule ran after it. Both are normal with standard deviation 0.02.",
            _SMALL,
            _GENERIC,
            _ZERO,
        ),
        _bad_birth(
            "Step 3 left no trace: modulations and `out` end with Xavier's weights. Is it missing, or did the general "
            "rule run after it? What must be zero comes last.",
            _GENERIC,
            _SMALL,
        ),
        _bad_birth(
            "Everything is zero. Then nothing can tell anything apart, and only the very last layer ever learns "
            "something.",
            "    for p in model.parameters():\n        nn.init.zeros_(p)\n",
        ),
        _bad_birth(
            "Every module whose weight has two axes is taken for a linear layer, and other embeddings are too. Ask "
            "`isinstance(module, nn.Linear)`.",
            _GENERIC.replace(_IS_LINEAR, "getattr(getattr(module, 'weight', None), 'ndim', 0) == 2").replace(
                "module.bias is not None", "getattr(module, 'bias', None) is not None"
            ),
            _SMALL,
            _ZERO,
        ),
        *_bad_births(_BIRTH_SLIPS),
    ],
    variants=[
        Variant("as the recipe says", _birth_code(_GENERIC, _SMALL, _ZERO)),
        Variant(
            "with apply",
            """
            def initialise_dit(model):
                def general(m):
                    if isinstance(m, nn.Linear):
                        torch.nn.init.xavier_uniform_(m.weight)
                        if m.bias is not None:
                            nn.init.constant_(m.bias, 0)

                model.apply(general)
                with torch.no_grad():
                    model.label.table.weight.normal_(0, 0.02)
                    for layer in model.time:
                        if hasattr(layer, "weight"):
                            layer.weight.normal_(0, 0.02)
                    for p in model.out.parameters():
                        p.zero_()
                    for owner in [model] + list(model.blocks):
                        for p in owner.modulation.parameters():
                            p.zero_()
            """,
        ),
        Variant(
            "by hand, without nn.init",
            """
            @torch.no_grad()
            def initialise_dit(model):
                small = [model.label.table, model.time[0], model.time[2]]
                zero = [model.out] + [owner.modulation[1] for owner in (model, *model.blocks)]
                for m in model.modules():
                    if isinstance(m, nn.Linear):
                        a = math.sqrt(6 / (m.in_features + m.out_features))
                        m.weight.uniform_(-a, a)
                        if m.bias is not None:
                            m.bias.zero_()
                for m in small:
                    m.weight.normal_(0, 0.02)
                for m in zero:
                    m.weight.mul_(0)
            """,
        ),
        Variant(
            "by name",
            """
            def initialise_dit(model):
                linear = {f"{n}." for n, m in model.named_modules() if isinstance(m, nn.Linear)}
                for name, p in model.named_parameters():
                    owner = name.rsplit(".", 1)[0] + "."
                    if "modulation.1." in name or name.startswith("out."):
                        p.data.zero_()
                    elif name in ("label.table.weight", "time.0.weight", "time.2.weight"):
                        p.data.copy_(0.02 * torch.randn(p.shape))
                    elif owner in linear:
                        if p.ndim == 2:
                            limit = math.sqrt(6 / sum(p.shape))
                            p.data.uniform_(-limit, limit)
                        else:
                            p.data.fill_(0.0)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "`for module in model.modules(): if isinstance(module, nn.Linear): ...` reaches every linear layer. "
            "`nn.init.xavier_uniform_(module.weight)` writes into the weight.",
        ),
        Hint(
            "my zeros are gone",
            "The general rule reaches `out` and the modulations too: they are linear layers. So it must run first.",
        ),
        Hint(
            "which tensors must be zero?",
            "`model.out`, `model.modulation[1]`, and `block.modulation[1]` of each block in `model.blocks`. In each of "
            "them the weight (the bias, where there is one, is zero already).",
        ),
        Hint(
            "show me nearly everything",
            "Three loops: over `model.modules()` with Xavier and zero biases (`if module.bias is not None`); over the "
            "three weights of step 2 with `nn.init.normal_(weight, std=0.02)`; over the layers of step 3 with "
            "`nn.init.zeros_(layer.weight)`.",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------- guidance


class _Model:
    """A model whose answer depends on everything that it is given; it remembers what that was."""

    def __init__(self, sigma: bool):
        self.sigma, self.calls = sigma, []

    def __call__(self, *given: Tensor, **keywords) -> Tensor:
        if keywords or len(given) != 3:
            raise TypeError("call model(xt, t, labels), without keywords: other models have other names for them")
        xt, t, labels = given
        if not len(xt) == len(t) == len(labels):
            sizes = f"{len(xt)}, {len(t)} and {len(labels)}"
            raise TypeError(f"the model wants as many xt as t and labels; it was given {sizes} of them")
        if labels.is_floating_point() or labels.ndim != 1 or t.ndim != 1:
            raise TypeError("the model wants t (b,) and labels (b,) in int64, in this order: model(xt, t, labels)")
        kind = str(labels.dtype).removeprefix("torch.")
        self.calls.append(f"{len(xt)} samples in {xt.dtype}, t in {t.dtype}, labels {labels.tolist()} in {kind}")
        label, time = labels.view(-1, 1, 1, 1).to(xt.dtype), t.view(-1, 1, 1, 1).to(xt.dtype)
        out = torch.tanh(xt * (1 + 0.3 * label)) + 0.1 * label**2 + torch.sin(0.7 * time) * (1 + xt * label)
        return torch.cat([out, (0.5 * out + 0.2 * label).cos()], dim=1) if self.sigma else out

    def __getattr__(self, name: str):
        raise AttributeError(f"call model(xt, t, labels): it may be any callable, and has no `{name}`")

    def __repr__(self) -> str:
        return "a model"


class _Module(nn.Module):
    """The same as a network, with a mode."""

    def __init__(self, sigma: bool):
        super().__init__()
        self.model, self.calls = _Model(sigma), []

    def forward(self, *given: Tensor, **keywords) -> Tensor:
        self.calls = self.model.calls
        out = self.model(*given, **keywords)
        self.calls[-1] += f", in {'train' if self.training else 'eval'} mode"
        return out


class _Doubling(_Model):
    """A model that answers in float64, whatever it is asked in."""

    def __call__(self, *given: Tensor, **keywords) -> Tensor:
        return super().__call__(*given, **keywords).double()


def _evaluating(sigma: bool) -> _Module:
    return _Module(sigma).eval()


def _with_spy(sigma: bool, kind: Callable[[bool], Callable[..., Tensor]] = _Model):
    def protocol(f, **inputs) -> dict:
        spy = kind(sigma)
        result = f(model=spy, **inputs)
        report = {"what the model was asked": " and ".join(spy.calls), "the result": result}
        return report | ({"train mode afterwards": _yes(spy.training)} if isinstance(spy, nn.Module) else {})

    return protocol


def _halves(b: int, c: int, w: float, h: int = 5, width: int = 7, null: int = 10, highest: int = 9):
    def inputs(g: torch.Generator) -> dict:
        x, t = randn(g, b, c, h, width), torch.rand(b, generator=g) * 3
        labels = torch.randint(1, highest, (b,), generator=g)
        labels = labels + (labels >= null)  # no class is the null label
        labels[0] = highest
        return dict(xt=torch.cat([x, x]), t=torch.cat([t, t]), labels=torch.cat([labels, labels * 0 + null]), w=w)

    return inputs


def _drifted(g: torch.Generator) -> dict:
    inputs = _halves(3, 4, 2.5)(g)
    return inputs | dict(xt=randn(g, *inputs["xt"].shape))


def _drifted_at_one(g: torch.Generator) -> dict:
    return _drifted(g) | dict(w=1.0)


def _double(g: torch.Generator) -> dict:
    inputs = _halves(2, 4, 2.5)(g)
    return inputs | dict(xt=inputs["xt"].double(), t=inputs["t"].double())


_ASK = "out = model(torch.cat([half, half]), t, labels)"
_SPLIT = "prediction, rest = out[:, : xt.shape[1]], out[:, xt.shape[1] :]"
_GUIDE = "guided = guide(cond, uncond, w)"
_RESULT = "return torch.cat([torch.cat([guided, guided]), rest], dim=1)"

_GUIDE_SLIPS = {
    _ASK: {
        "out = model(xt, t, labels)": "The two halves ask about different noise: you hand xt on as it is. Both must "
        "see the *first* half, or the difference of the two answers is not that of the label.",
        "b = len(half)\n    out = torch.cat([model(half, t[:b], labels[:b]), model(half, t[b:], labels[b:])])": ""
        "The model is called twice. Right, but slower: both halves go through it as one batch.",
        "labels = torch.cat([labels[: len(half)], torch.full((len(half),), 10)])\n    " + _ASK: "You write your own "
        "null label, 10. It stands in `labels` already: hand them on.",
        "labels = torch.cat([labels[: len(half)], torch.zeros(len(half), dtype=torch.long)])\n    "
        + _ASK: "The second "
        "half gets label 0, which is a class. The null label stands in `labels` already: hand them on.",
        "labels = torch.cat([labels[: len(half)], labels[: len(half)]])\n    " + _ASK: "The second half of `labels` "
        "is not used: both halves ask with the labels, and there is nothing to guide.",
        "out = model(torch.cat([half, half]), t.float(), labels)": "Integer times reach the model as floats. Hand t "
        "on as it came.",
        "out = model(torch.cat([half, half]), t[: len(half)].repeat(2), labels)": "The times of the second half are "
        "replaced by those of the first. Hand t on as it is.",
        "out = model(torch.cat([half, half]), t[: len(half)], labels[: len(half)])": "Only b times and labels reach "
        "the model, for 2b samples. They come for both halves: hand them on whole.",
        "labels = torch.cat([labels[: len(half)], labels.max().expand(len(half))])\n    " + _ASK: "You take the "
        "largest label for the null label. It may be any number, and stands in the second half of `labels` already: "
        "hand them on.",
        "out = model(xt=torch.cat([half, half]), t=t, labels=labels)": "You call the model with keywords. Other "
        "models have other names for their inputs: model(xt, t, labels).",
        "out = model.forward(torch.cat([half, half]), t, labels)": "You call `model.forward`. The model may be any "
        "callable, a function too: model(xt, t, labels).",
        "if isinstance(model, nn.Module):\n        model.eval()\n    " + _ASK: "The model is switched to eval mode "
        "and stays there. Its mode is the caller's business.",
        "out = model(torch.cat([half, half]), t, labels).float()": "The result is turned into float32. It has the "
        "dtype of what the model returned.",
        "out = model(torch.cat([half, half]), t, labels).to(xt.dtype)": "The result is turned into the dtype of xt. "
        "It has the dtype of what the model returned.",
        "out = model(torch.cat([half, half]).float(), t, labels)": "xt reaches the model in float32. Hand it on in "
        "its own dtype.",
        "if isinstance(model, nn.Module):\n        model.train()\n    " + _ASK: "The model is switched to train mode. "
        "Its mode is the caller's business.",
        "was = isinstance(model, nn.Module) and model.training\n    if was:\n        model.eval()\n    "
        + _ASK
        + "\n    if was:\n        model.train()": "The model answers in eval mode, though it was in train mode: to "
        "switch it back afterwards comes too late. Its mode is the caller's business.",
        "xt[len(half) :] = half\n    out = model(xt, t, labels)": "xt is overwritten: you copied its first half over "
        "the second. Make a new tensor: `torch.cat`.",
        "out = model(torch.cat([xt, xt]), torch.cat([t, t]), torch.cat([labels, labels]))[: len(xt)]": "xt is doubled "
        "once more: it has both halves already. Take the first b of it, then double those.",
    },
    "half = xt[: len(xt) // 2]": {
        "half = xt[len(xt) // 2 :]": "Both halves see the second half of xt. The first one counts.",
    },
    _SPLIT: {
        "prediction, rest = out[:, :3], out[:, 3:]": "Only the first 3 channels are guided, as in the paper's code. "
        "All c channels of the prediction are: the fourth latent channel obeys the label too.",
        "prediction, rest = out[:, :4], out[:, 4:]": "The number of channels is fixed at 4. It is that of xt: "
        "`xt.shape[1]`.",
        "prediction, rest = out[:, : out.shape[1] // 2], out[:, out.shape[1] // 2 :]": "You take half of the model's "
        "channels for the prediction. A model without a variance returns c channels, and all of them are the "
        "prediction: count those of xt.",
        "prediction, rest = out, out[:, :0]": "The variance is guided too. Guidance is about the prediction: further "
        "channels come back as the model returned them.",
    },
    _RESULT: {
        "return torch.cat([torch.cat([guided, uncond]), rest], dim=1)": "The second half of the batch keeps its "
        "unguided prediction, so the halves drift apart. Both hold the guided one.",
        "return torch.cat([guided, rest[: len(guided)]], dim=1)": "Only b samples come back. The sampler steps the "
        "whole batch: return both halves, 2b.",
        "return torch.cat([guided, guided])": "The variance is lost: only the prediction comes back. Return all "
        "channels that the model returned.",
        "return torch.cat([guided, rest.chunk(2)[0]], dim=1).repeat(2, 1, 1, 1)": "Both halves get the variance of "
        "the first. Further channels come back as the model returned them.",
        "return torch.cat([rest, torch.cat([guided, guided])], dim=1)": "Variance before prediction: the order of the "
        "channels has changed.",
        "return torch.cat([guided, rest.chunk(2)[1]], dim=1).repeat(2, 1, 1, 1)": "Both halves get the variance of "
        "the second. Further channels come back as the model returned them.",
    },
    "cond, uncond = prediction": {
        "uncond, cond = prediction": "cond and uncond are exchanged, so guidance points away from the label. The "
        "first half has the labels.",
    },
    _GUIDE: {
        "guided = cond + w * (cond - uncond)": "Your w is that of Ho and Salimans, which counts from 0: cond + w "
        "(cond - uncond). Here w = 1 is off.",
        "guided = uncond + w * (uncond - cond)": "The difference has the wrong sign: uncond + w (cond - uncond).",
        "guided = w * (cond - uncond)": "You return w (cond - uncond) alone. It is added to uncond.",
        "guided = uncond + w * cond": "uncond + w cond: the difference is missing.",
        "guided = cond": "w is not used: what comes back is the prediction with the label.",
        "guided = guide(cond, uncond, w or 1.0)": "w = 0 counts as `not given` with you (`if not w`, `w or 1`). It is "
        "a number like others: no label at all.",
        "guided = guide(cond, uncond, max(w, 0.0))": "w is cut off at 0. Below 0 guidance points away from the label, "
        "which somebody may want.",
        "guided = guide(cond, uncond, max(w, 1.0))": "w is raised to 1 at least. Between 0 and 1 it mixes the two "
        "predictions, as the formula says.",
        "guided = guide(cond, uncond, min(w, 10.0))": "A large w is cut off. It is used as it is.",
        "guided = guide(cond, uncond, int(w))": "w becomes a whole number. It may have a fraction.",
        "guided = w * cond - uncond": "w cond - uncond: the guided prediction is uncond + w (cond - uncond).",
        "guided = guide(cond, uncond, w).clamp(-1, 1)": "The result is cut off to [-1, 1]. Nothing is clamped here: "
        "latents have no such range.",
    },
    "prediction.chunk(2)": {
        "prediction.repeat(1, 2, 1, 1).chunk(2, dim=1)": "You split along the channels. The halves lie one behind the "
        "other in the *batch*: `chunk(2)` without a dim.",
        "(prediction[::2], prediction[1::2])": "You take every other sample for the halves. They lie one behind the "
        "other: first b, then b.",
    },
    "torch.cat([half, half])": {
        "half.repeat_interleave(2, dim=0)": "`repeat_interleave` puts the two copies of a sample side by side, but "
        "labels and times stand in two halves: `torch.cat([half, half])`.",
    },
    "    " + _SPLIT: {
        "    if w == 1:\n        return out\n    " + _SPLIT: "For w = 1 you return what the model says as it is. Then "
        "the second half holds the prediction without a label; both must hold the guided one.",
        "    if w == 0:\n        return out\n    " + _SPLIT: "At w = 0 you return what the model says as it is. Then "
        "the first half holds the prediction with the label; both must hold the one without.",
    },
    "    " + _ASK: {
        "    if w == 1:\n        return model(xt, t, labels)\n    " + _ASK: "At w = 1 you ask the model about xt as "
        "it came. Its second half must not be looked at, and both halves of the result hold the guided prediction.",
    },
    "len(xt) % 2": {
        "False": "Right but for the refusal: an odd batch has no two halves, and needs a ValueError of yours.",
    },
}

FORWARD_WITH_CFG = Exercise(
    target=forward_with_cfg,
    minutes=12,
    gradients=False,
    cases=[
        Case("4 channels and a variance, w = 3", _halves(3, 4, 3.0), call=_with_spy(True)),
        Case("4 channels, no variance", _halves(3, 4, 1.5), call=_with_spy(False)),
        Case("3 channels and a variance", _halves(2, 3, 4.0), call=_with_spy(True)),
        Case("5 channels and a variance", _halves(2, 5, 4.0), call=_with_spy(True)),
        Case("1 channel, no variance", _halves(5, 1, 2.0), call=_with_spy(False)),
        Case("one sample in each half", _halves(1, 4, 2.0), call=_with_spy(True)),
        Case("as many samples as channels", _halves(2, 4, 2.0, 4, 4), call=_with_spy(True)),
        Case("w = 1 is the label alone", _halves(3, 4, 1.0), call=_with_spy(True)),
        Case("w = 0 is no label at all", _halves(3, 4, 0.0), call=_with_spy(True)),
        Case("the halves of xt have drifted apart", _drifted, call=_with_spy(True)),
        Case("the halves of xt have drifted apart, w = 1", _drifted_at_one, call=_with_spy(True)),
        Case(
            "integer times, another null label",
            lambda g: _halves(3, 2, 2.0, null=4, highest=3)(g) | dict(t=torch.tensor([0, 4, 9, 0, 4, 9])),
            call=_with_spy(True),
        ),
        Case("a null label among the classes", _halves(4, 3, 2.0, null=5), call=_with_spy(True)),
        Case("null label 0", _halves(3, 3, 2.0, null=0, highest=7), call=_with_spy(False)),
        Case("w below 0, away from the label", _halves(3, 4, -0.5), call=_with_spy(True)),
        Case("w between 0 and 1", _halves(3, 4, 0.5), call=_with_spy(True)),
        Case("in float64", _double, call=_with_spy(True)),
        Case("a network in train mode", _halves(2, 4, 2.0), call=_with_spy(True, _Module)),
        Case("a network in eval mode", _halves(2, 4, 2.0), call=_with_spy(True, _evaluating)),
        Case("a model that answers in float64", _halves(2, 3, 0.3), call=_with_spy(True, _Doubling)),
        Case("a large negative w, an answer in float64", _halves(2, 3, -2.25), call=_with_spy(False, _Doubling)),
        Case("a large w", _halves(2, 3, 37.125), call=_with_spy(True)),
        Case(
            "times that differ between the halves",
            lambda g: _halves(2, 2, 2.0)(g) | dict(t=torch.tensor([0.1, 0.2, 0.5, 0.9])),
            call=_with_spy(False),
        ),
        Case(
            "an odd batch",
            lambda g: dict(xt=randn(g, 3, 4, 5, 7), t=torch.rand(3), labels=torch.tensor([1, 2, 10]), w=2.0),
            call=_with_spy(True),
        ),
    ],
    mistakes=[
        *_slips(_GUIDE_SLIPS),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError, and is skipped under `python -O`. Use `raise "
            "ValueError(...)`.",
            code="""
            def forward_with_cfg(model, xt, t, labels, w):
                assert len(xt) % 2 == 0
                half = xt[: len(xt) // 2]
                out = model(torch.cat([half, half]), t, labels)
                prediction, rest = out[:, : xt.shape[1]], out[:, xt.shape[1] :]
                cond, uncond = prediction.chunk(2)
                guided = uncond + w * (cond - uncond)
                return torch.cat([torch.cat([guided, guided]), rest], dim=1)
            """,
        ),
    ],
    variants=[
        Variant(
            "write into the model's answer",
            """
            def forward_with_cfg(model, xt, t, labels, w):
                n, c = xt.shape[:2]
                if n % 2 != 0:
                    raise ValueError("an even batch, please")
                b = n // 2
                out = model(xt[:b].repeat(2, 1, 1, 1), t, labels).clone()
                guided = w * out[:b, :c] + (1 - w) * out[b:, :c]
                out[:b, :c] = guided
                out[b:, :c] = guided
                return out
            """,
        ),
        Variant(
            "an axis for the halves",
            """
            def forward_with_cfg(model, xt, t, labels, w):
                if len(xt) & 1:
                    raise ValueError(len(xt))
                first = xt.unflatten(0, (2, -1))[0]
                out = model(torch.stack([first, first]).flatten(0, 1), t, labels)
                parts = out.unflatten(0, (2, -1))
                cond, uncond = parts[:, :, : xt.size(1)]
                mixed = torch.lerp(uncond, cond, float(w)).expand(2, *cond.shape)
                return torch.cat([mixed, parts[:, :, xt.size(1) :]], dim=2).flatten(0, 1)
            """,
        ),
        Variant(
            "split",
            """
            def forward_with_cfg(model, xt, t, labels, w):
                b, odd = divmod(xt.shape[0], 2)
                if odd:
                    raise ValueError("odd")
                out = model(torch.cat((xt[:b], xt[:b]), dim=0), t, labels)
                c = xt.shape[1]
                if out.shape[1] == c:
                    eps, rest = out, None
                else:
                    eps, rest = torch.split(out, [c, out.shape[1] - c], dim=1)
                cond, uncond = torch.split(eps, b, dim=0)
                eps = (cond + (w - 1) * (cond - uncond)).repeat(2, 1, 1, 1)
                return eps if rest is None else torch.cat([eps, rest], dim=1)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "b = len(xt) // 2. What the model sees is `torch.cat([xt[:b], xt[:b]])`, with t and labels as they came. "
            "One call.",
        ),
        Hint(
            "which channels are guided?",
            "The first `xt.shape[1]` of what comes back. If the model returns no more than that, the rest is empty, "
            "and `torch.cat` does not mind.",
        ),
        Hint(
            "my result has half the batch",
            "The guided prediction has b samples. Both halves of the result hold it: `torch.cat([guided, guided])`.",
        ),
        Hint(
            "show me nearly everything",
            "cond, uncond = out[:, :c].chunk(2); guided = uncond + w * (cond - uncond); return "
            "torch.cat([torch.cat([guided, guided]), out[:, c:]], dim=1). Before all that: refuse an odd batch.",
        ),
    ],
)


EXERCISES = (TIMESTEP_EMBEDDING, SINCOS_2D, DIT_BLOCK, INITIALISE_DIT, FORWARD_WITH_CFG)
