"""The exercises of lesson 18, the spacetime DiT: video to patches and back, and where a patch lies."""

import torch
from torch import Tensor

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.nn.patches import patchify, unpatchify
from course_lib.nn.positions import rotary_angles, rotate


def _fine(x: Tensor) -> Tensor:
    """In double precision, with digits that a float does not hold."""
    return x.double() / 3


def _bytes(g: torch.Generator, *shape: int) -> Tensor:
    """A video as it comes out of a file."""
    return torch.randint(256, shape, generator=g, dtype=torch.uint8)


def _whole(g: torch.Generator, *shape: int) -> Tensor:
    """Whole numbers that a float does not hold."""
    return 2**24 + torch.randint(256, shape, generator=g)


# ---------------------------------------------------------------------------------------------------------- patchify

_CUT = 'rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", f=f, h=h, w=w)'


def _cut(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_CUT, new=new)


def _order(left: str, right: str, sentence: str) -> Mistake:
    """Other axes before or behind the arrow."""
    return _cut(f'rearrange(video, "{left} -> {right}", f=f, h=h, w=w)', sentence)


def _guarded(condition: str, sentence: str) -> Mistake:
    """Another condition of the refusal, and einops behind it."""
    return Mistake(
        sentence,
        code=f"""
        def patchify(video, patch):
            b, c, frames, height, width = video.shape
            pf, ph, pw = patch
            if min(patch) < 1:
                raise ValueError("no patch")
            if {condition}:
                raise ValueError("does not fit")
            return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
        """,
    )


_AXES = "b c (f pf) (h ph) (w pw)"


def _videos(b: int, c: int, frames: int, height: int, width: int, *patch: int):
    return lambda g: dict(video=randn(g, b, c, frames, height, width), patch=patch)


PATCHIFY = Exercise(
    target=patchify,
    minutes=15,
    cases=[
        Case("4 channels, 3 x 5 x 1 patches of 2 x 3 x 5", _videos(2, 4, 6, 15, 5, 2, 3, 5)),
        Case("3 channels, 2 x 3 x 5 patches of 3 x 2 x 2", _videos(2, 3, 6, 6, 10, 3, 2, 2)),
        Case("grey, patches of 2 x 2 x 3, more rows than columns", _videos(3, 1, 4, 10, 6, 2, 2, 3)),
        Case("batch, channels, grid and patch are all 2", _videos(2, 2, 4, 4, 4, 2, 2, 2)),
        Case("frame by frame, as an image transformer", _videos(2, 3, 5, 4, 6, 1, 2, 2)),
        Case("only time is cut", _videos(2, 3, 6, 5, 7, 2, 5, 7)),
        Case("patches of a single number per channel", _videos(2, 3, 2, 5, 7, 1, 1, 1)),
        Case("the video is one patch", _videos(2, 3, 2, 5, 7, 2, 5, 7)),
        Case("a picture, one frame", _videos(2, 3, 1, 4, 6, 1, 2, 2)),
        Case("in double precision", lambda g: dict(video=_fine(randn(g, 2, 3, 4, 6, 10)), patch=(2, 3, 2))),
        Case("bytes, uint8", lambda g: dict(video=_bytes(g, 2, 3, 4, 6, 10), patch=(2, 3, 2))),
        Case("large whole numbers, int64", lambda g: dict(video=_whole(g, 2, 3, 4, 6, 10), patch=(2, 3, 2))),
        Case("nothing fits", _videos(2, 3, 5, 7, 9, 2, 3, 4)),
        Case("the frames do not fit", _videos(2, 3, 5, 3, 4, 2, 3, 4)),
        Case("the height does not fit", _videos(2, 3, 2, 7, 4, 2, 3, 4)),
        Case("the width does not fit", _videos(2, 3, 2, 3, 9, 2, 3, 4)),
        Case("the numbers would fill 6 patches, but not the edges", _videos(2, 1, 3, 4, 8, 2, 2, 4)),
        Case("the patch is larger than the video", _videos(2, 1, 2, 4, 6, 4, 4, 6)),
        Case("a patch of no frames", _videos(2, 1, 2, 4, 6, 0, 2, 2)),
        Case("a patch of no columns", _videos(2, 1, 2, 4, 6, 1, 2, 0)),
        Case("a patch of -2 rows", _videos(2, 1, 2, 4, 6, 1, -2, 2)),
    ],
    mistakes=[
        _cut(
            f"{_CUT}.float()",
            "The result is float32 whatever the video was. Cutting moves numbers and changes none: keep the dtype.",
        ),
        _cut(
            f"{_CUT.replace('(video', '(video.float()')}.to(video.dtype)",
            "The numbers go through float32 and come back changed: it holds about seven digits. Cutting moves numbers "
            "and changes none.",
        ),
        _cut(
            f"{_CUT} / (255 if video.dtype == torch.uint8 else 1)",
            "Bytes are scaled to 0 ... 1 on the way, or whole numbers divided into floats. Cutting changes no number.",
        ),
        _cut(
            "video.reshape(len(video), f * h * w, -1)",
            "Your reshape slices runs of pixels, not boxes: memory goes along the rows of one channel. Split frames, "
            "height and width first, then bring the three axes of the grid together.",
        ),
        _cut(
            "video.permute(0, 2, 3, 4, 1).reshape(len(video), f * h * w, -1)",
            "Channels are where they belong, but your reshape slices runs of pixels, not boxes. Split all three of "
            "frames, height and width before you move axes.",
        ),
        _order(
            _AXES,
            "b (f h w) (c pf ph pw)",
            "Your tokens list one channel after the other, (c, pf, ph, pw), as the weights of `nn.Conv3d` do. Here the "
            "channels of a pixel stay together, (pf, ph, pw, c).",
        ),
        _order(
            _AXES,
            "b (f h w) (pf c ph pw)",
            "Within a token you list channel by channel for each frame, (pf, c, ph, pw), as frames stacked from an "
            "image patcher would be. Channel is the fastest: (pf, ph, pw, c).",
        ),
        _order(
            _AXES,
            "b (f h w) (ph pw pf c)",
            "Within a token time runs fastest: all frames of a pixel together. It is the slowest, (pf, ph, pw, c).",
        ),
        _order(
            _AXES,
            "b (f h w) (ph pw c pf)",
            "Within a token frames are the fastest of all, (ph, pw, c, pf). Asked for is (pf, ph, pw, c).",
        ),
        _order(
            _AXES,
            "b (f h w) (pf pw ph c)",
            "The frames of each box are transposed: within a token numbers run along the rows, so width is faster than "
            "height.",
        ),
        _order(
            _AXES,
            "b (h f w) (pf ph pw c)",
            "Rows of the grid come before its frames, (h, f, w). One frame after the other: (f, h, w).",
        ),
        _order(
            _AXES,
            "b (h w f) (pf ph pw c)",
            "The boxes are right, but numbered through time first: all times of one place come together. One frame of "
            "the grid after the other: time is slowest, (f, h, w).",
        ),
        _order(
            _AXES,
            "b (h w f) (ph pw pf c)",
            "Time is the fast axis, of the grid and inside the boxes. It is slow in both: (f h w) (pf ph pw c).",
        ),
        _order(
            _AXES,
            "b (f w h) (pf ph pw c)",
            "The boxes of each frame are numbered down the columns. Number them along the rows, width fastest.",
        ),
        _order(
            _AXES,
            "b (f w h) (pf pw ph c)",
            "Height and width changed places everywhere, of the grid and inside the boxes. Was the video transposed?",
        ),
        _order(
            _AXES,
            "b (w h f) (pf ph pw c)",
            "The boxes are numbered in the opposite order, (w, h, f). Time is slowest and width fastest.",
        ),
        _order(
            "b c (pf f) (ph h) (pw w)",
            "b (f h w) (pf ph pw c)",
            "Your tokens are combs, not boxes: you split an axis into (patch, count), so a token takes pixels that lie "
            "far apart. Neighbours differ in the fast part: split into (count, patch).",
        ),
        _order(
            "b c (pf f) (h ph) (w pw)",
            "b (f h w) (pf ph pw c)",
            "In space your patches are boxes, but in time they are combs: frames that lie far apart share a token. "
            "Split frames into (f, pf), the patch being the fast part.",
        ),
        _order(
            _AXES,
            "b f (h w) (pf ph pw c)",
            "Time is still an axis of its own, (b, f, n, d). The sequence runs through space *and* time: n = f h w.",
        ),
        _order(
            _AXES,
            "(b f) (h w) (pf ph pw c)",
            "Time went into the batch, as if every frame were a picture by itself: then no token could look at another "
            "moment. All patches of a video belong into one sequence, (b, f h w, d).",
        ),
        _order(_AXES, "b (f h w) pf ph pw c", "The boxes are not flattened yet: each token must be one vector."),
        _order(_AXES, "b f h w (pf ph pw c)", "The boxes are still a grid, (b, f, h, w, d). Join it to n = f h w."),
        _order(_AXES, "b (pf ph pw c) (f h w)", "The two axes of the result are swapped: tokens second, numbers last."),
        _order(_AXES, "(b f h w) (pf ph pw c)", "The batch is mixed into the tokens. Keep it as an axis of its own."),
        _order(
            _AXES,
            "b (c f h w) (pf ph pw)",
            "Every channel makes tokens of its own. A token holds one box with all its channels: d = pf ph pw c.",
        ),
        _order(
            _AXES,
            "b (pf ph pw) (f h w c)",
            "Grid and patch changed places behind the arrow: tokens are the places inside a box.",
        ),
        _cut(
            'rearrange(video, "b c frames (h ph) (w pw) -> b (frames h w) (ph pw c)", h=h, w=w)',
            "Only space is cut: every frame makes tokens of its own, whatever pf says. A spacetime patch takes pf "
            "frames together. With patches of one frame it does not show.",
        ),
        _cut(
            'rearrange(video[:, :, :: patch[0]], "b c f (h ph) (w pw) -> b (f h w) (ph pw c)", h=h, w=w)',
            "You keep one frame of each pf and lose the others. A token holds all its pf frames.",
        ),
        _cut(
            'rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (ph pw c) pf", f=f, h=h, w=w).float()'
            ".mean(-1).to(video.dtype)",
            "You average the frames of a patch: motion inside it is lost. A token holds all of them, d = pf ph pw c.",
        ),
        _cut(
            "list(rearrange(video, 'b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)', f=f, h=h, w=w))",
            "The result is a Python list. Stack it into one tensor (b, n, d).",
        ),
        _cut(f"{_CUT}.detach()", "The values are right, but `detach`, `.data` or a no_grad cuts the gradient off."),
        Mistake(
            "`patch` is (frames, height, width); you read it with the frames last.",
            code="""
            def patchify(video, patch):
                ph, pw, pf = patch
                f, h, w = patch_grid(tuple(video.shape[2:]), (pf, ph, pw))
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", f=f, h=h, w=w)
            """,
        ),
        Mistake(
            "You read `patch` as (frames, width, height). Height comes before width.",
            code="""
            def patchify(video, patch):
                pf, pw, ph = patch
                f, h, w = patch_grid(tuple(video.shape[2:]), (pf, ph, pw))
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", f=f, h=h, w=w)
            """,
        ),
        Mistake(
            "Channels and frames are taken for each other: the video is (b, c, frames, height, width), not (b, frames, "
            "c, height, width).",
            code="""
            def patchify(video, patch):
                b, frames, c, height, width = video.shape
                f, h, w = patch_grid((frames, height, width), patch)
                return rearrange(video, "b (f pf) c (h ph) (w pw) -> b (f h w) (pf ph pw c)", f=f, h=h, w=w)
            """,
        ),
        Mistake(
            "Height and width are taken for each other when you count: the video is (b, c, frames, height, width).",
            code="""
            def patchify(video, patch):
                b, c, frames, width, height = video.shape
                pf, ph, pw = patch
                f, h, w = patch_grid((frames, height, width), patch)
                x = video.reshape(b, c, f, pf, h, ph, w, pw)
                return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, f * h * w, -1)
            """,
        ),
        Mistake(
            "Frames and pixels at the edges fall off without a word when they do not fit. Refuse with a ValueError.",
            code="""
            def patchify(video, patch):
                if min(patch) < 1:
                    raise ValueError("no patch")
                (pf, ph, pw), (f, h, w) = patch, (n // p for n, p in zip(video.shape[2:], patch))
                video = video[:, :, : f * pf, : h * ph, : w * pw]
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            """,
        ),
        Mistake(
            "A video that does not fit is padded. The contract asks for a ValueError: who pads changes the video, and "
            "should say so.",
            code="""
            def patchify(video, patch):
                if min(patch) < 1:
                    raise ValueError("no patch")
                pf, ph, pw = patch
                more = [-n % p for n, p in zip(video.shape[2:], patch)]
                video = F.pad(video, (0, more[2], 0, more[1], 0, more[0]))
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            """,
        ),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError, and is skipped under `python -O`. Use `raise "
            "ValueError(...)`.",
            code="""
            def patchify(video, patch):
                assert min(patch) >= 1 and all(n % p == 0 for n, p in zip(video.shape[2:], patch))
                pf, ph, pw = patch
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            """,
        ),
        Mistake(
            "An edge of 0 is refused, a negative one is not. Refuse every edge below 1.",
            code="""
            def patchify(video, patch):
                pf, ph, pw = patch
                if 0 in patch or any(n % p for n, p in zip(video.shape[2:], patch)):
                    raise ValueError("does not fit")
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            """,
        ),
        _guarded(
            "(frames * height * width) % (pf * ph * pw)",
            "You refuse by the number of pixels. As many as a whole number of patches need not split into patches: "
            "frames, height and width must each be a multiple.",
        ),
        _guarded("height % ph or width % pw", "The frames are not checked; they must be a multiple of pf as well."),
        _guarded("frames % pf or width % pw", "The height is not checked; it must be a multiple of ph as well."),
        _guarded("frames % pf or height % ph", "The width is not checked; it must be a multiple of pw as well."),
        _guarded(
            "frames % pf or height % ph or width % pw or height != width",
            "Videos with unequal height and width are refused. Only the multiples matter.",
        ),
        _guarded(
            "(frames - 1) % pf or height % ph or width % pw",
            "You count as the tokenizer does, one frame and then groups. Patches cut all frames alike, from the first.",
        ),
        Mistake(
            "Right but for the refusal: what does not fit gets the error of einops or of reshape, which is no "
            "ValueError and does not say what to do. Check yourself first, or let `patch_grid` do it.",
            code="""
            def patchify(video, patch):
                if min(patch) < 1:
                    raise ValueError("no patch")
                pf, ph, pw = patch
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            """,
        ),
        Mistake(
            "A patch without frames, rows or columns is not refused: 0 ends in a division by zero. Every edge below 1 "
            "asks for a ValueError.",
            code="""
            def patchify(video, patch):
                pf, ph, pw = patch
                if any(n % p for n, p in zip(video.shape[2:], patch)):
                    raise ValueError("does not fit")
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            """,
        ),
        Mistake(
            "The boxes overwrite each other: box (i, j, k) is number (i h + j) w + k. Check the strides of your count.",
            code="""
            def patchify(video, patch):
                f, h, w = patch_grid(tuple(video.shape[2:]), patch)
                pf, ph, pw = patch
                tokens = video.new_zeros(len(video), f * h * w, pf * ph * pw * video.shape[1])
                for i in range(f):
                    for j in range(h):
                        for k in range(w):
                            box = video[:, :, i * pf :, j * ph :, k * pw :][:, :, :pf, :ph, :pw]
                            tokens[:, ((i * w + j) * h + k) % (f * h * w)] = box.movedim(1, -1).flatten(1)
                return tokens
            """,
        ),
    ],
    variants=[
        Variant(
            "reshape and permute",
            """
            def patchify(video, patch):
                b, c, *size = video.shape
                if any(p < 1 for p in patch) or any(n % p for n, p in zip(size, patch)):
                    raise ValueError("no whole number of patches")
                split = [m for n, p in zip(size, patch) for m in (n // p, p)]
                x = video.reshape(b, c, *split).permute(0, 2, 4, 6, 3, 5, 7, 1)
                return x.reshape(b, split[0] * split[2] * split[4], -1)
            """,
        ),
        Variant(
            "loops and slices",
            """
            def patchify(video, patch):
                patch_grid(tuple(video.shape[2:]), patch)
                (pf, ph, pw), tokens = patch, []
                for t in range(0, video.shape[2], pf):
                    for y in range(0, video.shape[3], ph):
                        for x in range(0, video.shape[4], pw):
                            box = video[:, :, t : t + pf, y : y + ph, x : x + pw]
                            tokens.append(box.permute(0, 2, 3, 4, 1).flatten(1))
                return torch.stack(tokens, 1)
            """,
        ),
        Variant(
            "Tensor.unfold three times",
            """
            def patchify(video, patch):
                for axis, step in enumerate(patch):
                    if step < 1 or video.shape[2 + axis] % step != 0:
                        raise ValueError(f"axis {axis} is no multiple of {step}")
                for axis, step in enumerate(patch):
                    video = video.unfold(2 + axis, step, step)
                return video.permute(0, 2, 3, 4, 5, 6, 7, 1).flatten(4).flatten(1, 3)
            """,
        ),
        Variant(
            "einops, given the patch",
            """
            def patchify(video, patch):
                _, _, frames, height, width = video.shape
                pf, ph, pw = patch
                if pf <= 0 or ph <= 0 or pw <= 0 or frames % pf or height % ph or width % pw:
                    raise ValueError(f"{frames} x {height} x {width} is no multiple of {patch}")
                video = rearrange(video, "b c t y x -> b t y x c")
                return rearrange(video, "b (f p) (h q) (w r) c -> b (f h w) (p q r c)", p=pf, q=ph, r=pw)
            """,
        ),
        Variant(
            "one table of indices",
            """
            def patchify(video, patch):
                f, h, w = patch_grid(tuple(video.shape[2:]), patch)
                where = torch.arange(video[0].numel()).view(video.shape[1:])
                where = where.view(-1, f, patch[0], h, patch[1], w, patch[2]).permute(1, 3, 5, 2, 4, 6, 0)
                flat = video.flatten(1)[:, where.flatten()]
                return flat.view(len(video), f * h * w, -1)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Five axes become eight: split frames into (f, pf), height into (h, ph), width into (w, pw). Then it is a "
            "matter of order: (b, f, h, w, pf, ph, pw, c). Then join the three of the grid, and the last four.",
        ),
        Hint(
            "the shape is right, the numbers are not",
            "`reshape` never moves numbers, it only cuts the line of memory at other places. Split with `reshape`, "
            "move with `permute` (or both in one `rearrange`), join last. A video that holds its own indices, "
            "`torch.arange(16.).view(1, 1, 2, 2, 4)`, shows what went where.",
        ),
        Hint(
            "it fails only for some sizes",
            "Use grids with f, h, w all different: where two are equal, an exchange of the two goes unseen.",
        ),
        Hint(
            "show me nearly everything",
            "f, h, w = patch_grid(tuple(video.shape[2:]), patch), which also refuses; then rearrange(video, 'b c (f "
            "pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)', f=f, h=h, w=w).",
        ),
    ],
)


# -------------------------------------------------------------------------------------------------------- unpatchify

_TO = "b c (f pf) (h ph) (w pw)"
_SIZES = "f=f, h=h, w=w, pf=pf, ph=ph, pw=pw"
_PASTE = f'rearrange(tokens, "b (f h w) (pf ph pw c) -> {_TO}", {_SIZES})'
_COUNT = "tokens.shape[1] != f * h * w"
_CELLS = "tokens.shape[2] % (pf * ph * pw)"


def _paste(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_PASTE, new=new)


def _from(left: str, sentence: str, to: str = _TO) -> Mistake:
    return _paste(f'rearrange(tokens, "{left} -> {to}", {_SIZES})', sentence)


def _unguarded(code: str, sentence: str) -> Mistake:
    return Mistake(
        sentence,
        code=f"""
        def unpatchify(tokens, grid, patch):
            (f, h, w), (pf, ph, pw) = grid, patch
            {code}
            return rearrange(tokens, "b (f h w) (pf ph pw c) -> {_TO}", {_SIZES})
        """,
    )


def _tokens(b: int, c: int, grid: tuple, patch: tuple, more: int = 0, wider: int = 0):
    n, d = grid[0] * grid[1] * grid[2] + more, patch[0] * patch[1] * patch[2] * c + wider
    return lambda g: dict(tokens=randn(g, b, n, d), grid=grid, patch=patch)


UNPATCHIFY = Exercise(
    target=unpatchify,
    minutes=10,
    cases=[
        Case("3 channels, 2 x 3 x 5 patches of 3 x 2 x 2", _tokens(2, 3, (2, 3, 5), (3, 2, 2))),
        Case("4 channels, 3 x 5 x 1 patches of 2 x 3 x 5", _tokens(2, 4, (3, 5, 1), (2, 3, 5))),
        Case("grey, more rows than columns", _tokens(3, 1, (2, 5, 2), (2, 2, 3))),
        Case("batch, channels, grid and patch are all 2", _tokens(2, 2, (2, 2, 2), (2, 2, 2))),
        Case("frame by frame, as an image transformer", _tokens(2, 3, (5, 2, 3), (1, 2, 2))),
        Case("only time was cut", _tokens(2, 3, (3, 1, 1), (2, 5, 7))),
        Case("patches of a single number per channel", _tokens(2, 3, (2, 5, 7), (1, 1, 1))),
        Case("one patch", _tokens(2, 3, (1, 1, 1), (2, 5, 7))),
        Case("a picture, one frame", _tokens(2, 3, (1, 2, 3), (1, 2, 2))),
        Case(
            "in double precision",
            lambda g: dict(tokens=_fine(randn(g, 2, 20, 36)), grid=(2, 2, 5), patch=(2, 3, 2)),
        ),
        Case("bytes, uint8", lambda g: dict(tokens=_bytes(g, 2, 20, 36), grid=(2, 2, 5), patch=(2, 3, 2))),
        Case("large whole numbers", lambda g: dict(tokens=_whole(g, 2, 20, 36), grid=(2, 2, 5), patch=(2, 3, 2))),
        Case("neither n nor d fits", _tokens(2, 3, (2, 3, 5), (3, 2, 2), more=1, wider=1)),
        Case("one token too many", _tokens(2, 3, (2, 3, 5), (3, 2, 2), more=1)),
        Case("a token is missing", _tokens(2, 3, (2, 3, 5), (3, 2, 2), more=-1)),
        Case("half as many tokens", _tokens(2, 4, (2, 3, 5), (2, 2, 2), more=-15)),
        Case("twice as many tokens", _tokens(2, 3, (2, 3, 5), (3, 2, 2), more=30)),
        Case("tokens that hold no whole pixels", _tokens(2, 3, (2, 3, 5), (3, 2, 2), wider=1)),
        Case("tokens that hold whole frames, but not three of them", _tokens(2, 3, (2, 3, 5), (3, 2, 2), wider=4)),
        Case("tokens that hold whole frames in time, but not in space", _tokens(2, 3, (2, 3, 5), (3, 2, 2), wider=3)),
        Case("42 numbers, a multiple of 3, 2 and 2, but not of 12", _tokens(2, 3, (2, 3, 5), (3, 2, 2), wider=6)),
    ],
    mistakes=[
        _paste(f"{_PASTE}.float()", "The result is float32 whatever the tokens were. Keep their dtype."),
        _paste(
            f"{_PASTE.replace('(tokens', '(tokens.float()')}.to(tokens.dtype)",
            "The numbers go through float32 and come back changed: it holds about seven digits. Pasting changes none.",
        ),
        _paste(
            "tokens.reshape(len(tokens), -1, f * pf, h * ph, w * pw)",
            "Your reshape lays the tokens down as they lie in memory, one after the other along the rows. A token is a "
            "box: split both axes of the tokens, move, and join last.",
        ),
        _paste(
            "tokens.reshape(len(tokens), f, h, w, pf, ph, pw, -1).permute(0, 7, 1, 2, 3, 4, 5, 6)"
            ".reshape(len(tokens), -1, f * pf, h * ph, w * pw)",
            "You split rightly, but join too early: each axis inside a box must stand directly behind its axis of the "
            "grid, (b, c, f, pf, h, ph, w, pw).",
        ),
        _from(
            "b (f h w) (c pf ph pw)",
            "You read one channel after the other, (c, pf, ph, pw). Here the channels of a pixel stand together.",
        ),
        _from(
            "b (f h w) (pf c ph pw)",
            "Within each frame of a token you read channel by channel. Channel is the fastest, (pf, ph, pw, c).",
        ),
        _from("b (f h w) (ph pw pf c)", "Within a token you read time as a fast axis. It is the slowest there."),
        _from("b (f h w) (ph pw c pf)", "Within a token you read time as the fastest axis of all. It is the slowest."),
        _from(
            "b (f h w) (pf pw ph c)", "Each frame of a box is transposed: numbers run along its rows, width fastest."
        ),
        _from("b (h w f) (pf ph pw c)", "You lay tokens down through time first. Time is the slowest axis, (f, h, w)."),
        _from(
            "b (h w f) (ph pw pf c)",
            "Time is read as a fast axis, of the grid and inside the boxes. It is the slow one in both.",
        ),
        _from("b (f w h) (pf ph pw c)", "In each frame you lay tokens down the columns. They run along the rows."),
        _from("b (f w h) (pf pw ph c)", "Rows and columns changed places, of the grid and inside the boxes."),
        _from("b (w h f) (pf ph pw c)", "You read the grid in the opposite order, (w, h, f). Width is the fastest."),
        _from(
            "b (f h w) (pf ph pw c)",
            "The pixels of a box are spread over the whole video: when you join two axes, the grid is the slow one and "
            "the place inside the box the fast one, (f pf), not (pf f).",
            to="b c (pf f) (ph h) (pw w)",
        ),
        _from(
            "b (f h w) (pf ph pw c)",
            "In space the boxes are right, but their frames are spread over the whole time: join (f pf), not (pf f).",
            to="b c (pf f) (h ph) (w pw)",
        ),
        _from(
            "b (f h w) (pf ph pw c)",
            "Channels come last, as plotting libraries like it. The course's videos are (b, c, frames, height, width).",
            to="b (f pf) (h ph) (w pw) c",
        ),
        _from(
            "b (f h w) (pf ph pw c)",
            "Frames come before channels: (b, frames, c, height, width). The course has channels first.",
            to="b (f pf) c (h ph) (w pw)",
        ),
        _from(
            "b (f h w) (pf ph pw c)",
            "Height and width changed places in the result, which is (b, c, frames, height, width).",
            to="b c (f pf) (w pw) (h ph)",
        ),
        _from(
            "b (f h w) (pf ph pw c)",
            "The frames went into the batch. Keep a video together: (b, c, frames, height, width).",
            to="(b f pf) c (h ph) (w pw)",
        ),
        _paste(
            f"{_PASTE}.detach()",
            "The values are right, but `detach`, `.data` or a no_grad cuts the gradient off: nothing would learn.",
        ),
        Mistake(
            "Grid and patch changed places. `grid` counts patches, `patch` the frames, rows and columns in each.",
            code="""
            def unpatchify(tokens, grid, patch):
                (pf, ph, pw), (f, h, w) = grid, patch
                if tokens.shape[1] != f * h * w or tokens.shape[2] % (pf * ph * pw):
                    raise ValueError("does not fit")
                return rearrange(
                    tokens,
                    "b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)",
                    f=f, h=h, w=w, pf=pf, ph=ph, pw=pw,
                )
            """,
        ),
        Mistake(
            "You read `patch` or `grid` as (height, width, frames). Both have the frames first.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (ph, pw, pf) = grid, patch
                if tokens.shape[1] != f * h * w or tokens.shape[2] % (pf * ph * pw):
                    raise ValueError("does not fit")
                x = tokens.reshape(len(tokens), f, h, w, pf, ph, pw, -1)
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
        ),
        Mistake(
            "You guess the grid as a square with edge √(n / f). It is given, and need not be a square.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                if tokens.shape[1] != f * h * w or tokens.shape[2] % (pf * ph * pw):
                    raise ValueError("does not fit")
                edge = int((h * w) ** 0.5)
                x = tokens.reshape(len(tokens), f, edge, -1, pf, ph, pw, tokens.shape[2] // (pf * ph * pw))
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
        ),
        Mistake(
            "You take three channels for granted. Their number is d / (pf ph pw).",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                if tokens.shape[1] != f * h * w or tokens.shape[2] % (pf * ph * pw):
                    raise ValueError("does not fit")
                x = tokens.reshape(len(tokens), f, h, w, pf, ph, pw, 3)
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
        ),
        Mistake(
            "Only space is pasted: the frames of a patch stay among the channels. A patch has pf frames.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                if tokens.shape[1] != f * h * w or tokens.shape[2] % (pf * ph * pw):
                    raise ValueError("does not fit")
                x = tokens.reshape(len(tokens), f, h, w, ph, pw, -1)
                return rearrange(x, "b f h w ph pw c -> b c f (h ph) (w pw)")
            """,
        ),
        _unguarded(
            f"assert {_COUNT.replace('!=', '==')} and {_CELLS} == 0",
            "Right but for the refusal: `assert` raises AssertionError, and is skipped under `python -O`. Use `raise "
            "ValueError(...)`.",
        ),
        Mistake(
            "You refuse only where n is no multiple of f h w. Twice as many tokens are too many as well.",
            old=_COUNT,
            new="tokens.shape[1] % (f * h * w)",
        ),
        Mistake(
            "You refuse only where n is no multiple of the patches of a frame. It must be f h w exactly.",
            old=_COUNT,
            new="tokens.shape[1] % (h * w)",
        ),
        Mistake(
            "Too many tokens are refused, too few are not. n must be f h w exactly.",
            old=_COUNT,
            new="tokens.shape[1] > f * h * w",
        ),
        Mistake(
            "d is checked against the rows and columns of a patch alone. It has pf frames as well.",
            old=_CELLS,
            new="tokens.shape[2] % (ph * pw)",
        ),
        Mistake(
            "Too many tokens are not refused, or any number is taken: n must be f h w exactly.",
            old=_COUNT,
            new="False",
        ),
        Mistake(
            "d is checked against each edge of the patch. It must be a multiple of their product, pf ph pw.",
            old=_CELLS,
            new="any(tokens.shape[2] % edge for edge in patch)",
        ),
        Mistake(
            "The numbers of a token are not checked: d must be a multiple of pf ph pw.",
            old=_CELLS,
            new="False",
        ),
        _unguarded(
            "pass",
            "Right but for the refusal: what does not fit gets the error of einops, which is no ValueError. Check n "
            "and d yourself first.",
        ),
        Mistake(
            "Tokens too many are cut off without a word. Refuse them with a ValueError.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                if tokens.shape[1] < f * h * w or tokens.shape[2] % (pf * ph * pw):
                    raise ValueError("does not fit")
                x = tokens[:, : f * h * w].reshape(len(tokens), f, h, w, pf, ph, pw, -1)
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
        ),
    ],
    variants=[
        Variant(
            "reshape and permute",
            """
            def unpatchify(tokens, grid, patch):
                b, n, d = tokens.shape
                (f, h, w), (pf, ph, pw) = grid, patch
                if n != f * h * w or d % (pf * ph * pw) != 0:
                    raise ValueError("does not fit")
                x = tokens.reshape(b, f, h, w, pf, ph, pw, d // (pf * ph * pw))
                return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(b, -1, f * pf, h * ph, w * pw)
            """,
        ),
        Variant(
            "one box after the other",
            """
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                c, rest = divmod(tokens.shape[-1], pf * ph * pw)
                if rest or math.prod(grid) != tokens.shape[-2]:
                    raise ValueError("does not fit")
                video = tokens.new_zeros(len(tokens), c, f * pf, h * ph, w * pw)
                for number in range(tokens.shape[1]):
                    i, j, k = number // (h * w), number // w % h, number % w
                    box = tokens[:, number].view(-1, pf, ph, pw, c).permute(0, 4, 1, 2, 3)
                    video[:, :, i * pf : (i + 1) * pf, j * ph : (j + 1) * ph, k * pw : (k + 1) * pw] = box
                return video
            """,
        ),
        Variant(
            "concatenated axis by axis",
            """
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                if tokens.size(1) != f * h * w:
                    raise ValueError("tokens")
                if tokens.size(2) % (pf * ph * pw):
                    raise ValueError("numbers")
                boxes = [t.reshape(len(t), pf, ph, pw, -1).movedim(-1, 1) for t in tokens.unbind(1)]
                rows = [torch.cat(boxes[i : i + w], -1) for i in range(0, len(boxes), w)]
                frames = [torch.cat(rows[i : i + h], -2) for i in range(0, len(rows), h)]
                return torch.cat(frames, dim=2)
            """,
        ),
        Variant(
            "where patchify put each number",
            """
            def unpatchify(tokens, grid, patch):
                n, cells = math.prod(grid), math.prod(patch)
                if tokens.shape[1] != n or tokens.shape[2] % cells:
                    raise ValueError("does not fit")
                size = [a * p for a, p in zip(grid, patch)]
                shape = (tokens.shape[2] // cells, *size)
                numbers = torch.arange(math.prod(shape)).view(1, *shape)
                back = patchify(numbers, patch).flatten().argsort()
                return tokens.flatten(1)[:, back].view(len(tokens), *shape)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Read your `patchify` backwards. Three axes become eight, (b, f, h, w, pf, ph, pw, c); then each axis "
            "inside the box goes behind its axis of the grid, and the two are joined.",
        ),
        Hint(
            "how many channels?",
            "d / (pf ph pw). `reshape(..., pf, ph, pw, -1)` finds it; so does `rearrange` when it is told the rest.",
        ),
        Hint(
            "my video looks like shuffled tiles",
            "Test on `patchify` of a video that holds its own indices, with f, h, w all different: "
            "`torch.equal(unpatchify(patchify(v, p), grid, p), v)`. Does it also hold for (1, 2, 2)?",
        ),
        Hint(
            "show me nearly everything",
            "Refuse n and d; then rearrange(tokens, 'b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)', f=f, h=h, "
            "w=w, pf=pf, ph=ph, pw=pw).",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------ rotary angles

_FREQUENCIES = "longest ** (-torch.arange(count, device=positions.device, dtype=torch.float32) / max(count, 1))"
_TURN = "positions[..., axis, None].float() * frequencies"
_CAT = "torch.cat(turned, dim=-1)"


def _speeds(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_FREQUENCIES, new=new)


def _turn(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_TURN, new=new)


def _angled(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_CAT, new=new)


def _places(pairs: tuple[int, ...], *shape: int, dtype: torch.dtype = torch.float32, **rest):
    """Whole and broken numbers, of both signs, up to some twenty patches."""
    return lambda g: dict(positions=(8 * randn(g, *shape, len(pairs))).to(dtype), pairs=pairs, **rest)


def _grid(g: torch.Generator) -> dict:
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in (2, 3, 4)), indexing="ij")
    return dict(positions=torch.stack(axes, dim=-1).flatten(0, 2), pairs=(6, 5, 5))


def _distance_only(angles) -> bool:
    """Products of turned queries and keys stay when all tokens move together."""
    g = torch.Generator().manual_seed(3)
    q, k, here = torch.randn(1, 1, 6, 24, generator=g), torch.randn(1, 1, 6, 24, generator=g), randn(g, 1, 6, 3)
    scores = []
    for move in (0.0, 5.0):
        turned = [rotate(x, angles(positions=here + move, pairs=(4, 3, 5))) for x in (q, k)]
        scores.append(turned[0] @ turned[1].mT)
    return torch.allclose(*scores, atol=1e-3)


ROTARY_ANGLES = Exercise(
    target=rotary_angles,
    minutes=15,
    gradients=False,
    cases=[
        Case("three axes with 4, 3 and 5 pairs", _places((4, 3, 5), 2, 7)),
        Case("the patches of a grid of 2 x 3 x 4", _grid),
        Case("three axes with 4 pairs each", _places((4, 4, 4), 2, 7)),
        Case("one axis", _places((6,), 2, 7)),
        Case("two axes, five tokens, no axis before them", _places((2, 3), 5)),
        Case("two axes before the tokens", _places((2, 4, 3), 3, 2, 5)),
        Case("a single pair for each axis", _places((1, 1, 1), 2, 5)),
        Case("the second axis has no pairs", _places((3, 0, 2), 2, 5)),
        Case("one token", _places((4, 3), 1, 1)),
        Case("longest = 10000", _places((4, 3, 5), 2, 7, longest=10_000.0)),
        Case("longest = 7", _places((3, 5), 2, 7, longest=7.0)),
        Case("positions in double precision", _places((4, 3, 5), 2, 7, dtype=torch.float64)),
        Case("positions in bfloat16", _places((4, 3, 5), 2, 7, dtype=torch.bfloat16)),
    ],
    properties=[
        Property("When all tokens move together, products of turned queries and keys must not change.", _distance_only),
    ],
    mistakes=[
        _speeds(
            _FREQUENCIES.replace("max(count, 1)", "max(count - 1, 1)"),
            "Your last pair turns by exactly 1 / longest: you divided by m - 1. The exponent is -i / m, so the last "
            "pair is a little faster.",
        ),
        _speeds(
            _FREQUENCIES.replace("-torch", "-2 * torch"),
            "The exponents are twice as large as they should be. 2 i / d is meant for d *channels*; here m counts "
            "pairs: -i / m.",
        ),
        _speeds(
            _FREQUENCIES.replace("max(count, 1)", "max(2 * count, 1)"),
            "The exponents are half of what they should be: you divided by the number of channels. m counts pairs.",
        ),
        _speeds(
            _FREQUENCIES.replace("(-torch", "(torch"),
            "Later pairs turn faster and faster, up to `longest` radians per step. They turn slower: the exponent is "
            "negative.",
        ),
        _speeds(
            _FREQUENCIES.replace("-torch.arange(count", "-torch.arange(1, count + 1"),
            "Pairs are counted from 1, so no pair turns by one radian per step. i runs from 0.",
        ),
        _speeds(
            f"({_FREQUENCIES}).flip(0)",
            "The pairs of each axis stand in reverse: the slowest first. The first one turns by one radian per step.",
        ),
        _speeds(
            _FREQUENCIES.replace("max(count, 1)", "sum(pairs)"),
            "You divide by all pairs of the head, so each axis has only the fast end of the range. m is the number of "
            "pairs of *this* axis.",
        ),
        _speeds(
            "longest ** (-(sum(pairs[:axis]) + torch.arange(count, dtype=torch.float32)) / sum(pairs))",
            "The axes share one range of speeds: time gets the fast pairs, width the slow ones, and exchanging them "
            "would change everything. Every axis begins anew with one radian per step.",
        ),
        _speeds(
            _FREQUENCIES.replace("longest", "10_000.0"),
            "`longest` is ignored for the 10000 of language models. A video has a few dozen patches along an axis.",
        ),
        _speeds(_FREQUENCIES.replace("longest", "100.0"), "`longest` is ignored, and 100 is written in its place."),
        _speeds(
            _FREQUENCIES.replace("max(count, 1)", "max(pairs)"),
            "You divide by the largest number of pairs of any axis. m is the number of pairs of *this* axis.",
        ),
        _speeds(
            _FREQUENCIES.replace("max(count, 1)", "(count + 1)"),
            "You divide by m + 1. The exponent is -i / m.",
        ),
        _speeds(
            "torch.linspace(1, 1 / longest, count)",
            "The speeds are evenly spaced. They form a geometric row: each is the one before times longest^(-1 / m).",
        ),
        _speeds(
            _FREQUENCIES.replace("longest **", "math.e **"),
            "You take powers of e. The base is `longest`: exp(-i / m) lacks the factor ln(longest) in the exponent.",
        ),
        _speeds(
            f"2 * math.pi * {_FREQUENCIES}",
            "A factor of 2 pi: your first pair makes a full turn per step, so all whole positions look alike to it. It "
            "turns by one *radian* per step.",
        ),
        _speeds(
            f"-({_FREQUENCIES})",
            "All angles have the opposite sign. A token at position p turns by +p longest^(-i / m).",
        ),
        _speeds(
            f"({_FREQUENCIES}).bfloat16().float()",
            "The speeds have too few digits: they were computed in half precision. Compute in float32.",
        ),
        _speeds(
            _FREQUENCIES.replace("arange(count,", "arange(max(count, 1),"),
            "An axis with 0 pairs gets a column all the same. It has none, as with the time of pictures.",
        ),
        _speeds(
            _FREQUENCIES.replace("arange(count,", "arange(0, count, 2,"),
            "An axis gets only half of its columns: you read `pairs` as channels. Each pair has an angle of its own.",
        ),
        _speeds(
            _FREQUENCIES.replace("longest", "(longest / 2 / math.pi)"),
            "You read `longest` as a wavelength: longest / 2 pi. The last pair turns by about 1 / longest radians.",
        ),
        _turn(
            "positions[..., 0, None].float() * frequencies",
            "Every axis turns by the position along the first one. Axis a takes positions[..., a].",
        ),
        _turn(
            "positions.flip(-1)[..., axis, None].float() * frequencies",
            "The positions are taken from the last axis to the first: the frame's pairs turn by the column.",
        ),
        _turn(
            "positions[..., axis, None].long().float() * frequencies",
            "Positions are cut to whole numbers. Any real number is a position, such as a share of the canvas.",
        ),
        _turn(
            "positions[..., axis, None].round().float() * frequencies",
            "Positions are rounded to whole numbers. Any real number is a position.",
        ),
        _turn(
            "positions[..., axis, None].abs().float() * frequencies",
            "The sign of a position is lost. Before the beginning, a token turns the other way.",
        ),
        _turn(
            "(positions[..., axis, None] - positions[..., axis, None].amin(dim=-2, keepdim=True)).float()"
            " * frequencies",
            "You count positions from the smallest one. Take them as they are: tokens of one clip may be packed with "
            "others.",
        ),
        _turn(
            "(positions[..., axis, None] / positions[..., axis, None].abs().max()).float() * frequencies",
            "You scale positions to the size of the clip. Then one step means another angle in every clip; they count "
            "patches, as they are.",
        ),
        _turn(
            "torch.arange(positions.shape[-2], dtype=torch.float32)[:, None] * frequencies",
            "You number the tokens, 0, 1, 2, ..., and never look at `positions`: coordinates are what makes sizes "
            "interchangeable.",
        ),
        _turn(
            "positions[:, axis, None].float() * frequencies",
            "positions[:, axis] picks a token where there are axes before n. The axes of the grid are the last ones: "
            "positions[..., axis].",
        ),
        _turn(
            "positions[..., axis, None] * frequencies.to(positions.dtype)",
            "The angles have the dtype of the positions. They are float32 always: in half precision distant tokens "
            "share an angle.",
        ),
        _turn(
            "(positions[..., axis, None] * frequencies.to(positions.dtype)).float()",
            "The angles are float32, but they were computed in the dtype of the positions: in half precision their "
            "digits are lost before. Turn positions into float32 first.",
        ),
        _turn(
            "(positions[..., axis, None].float() * frequencies) % (2 * math.pi)",
            "Angles are wrapped at a full turn. The contract asks for p times the speed, as it is.",
        ),
        _turn(
            "(positions[..., axis, None].float() * frequencies).sin()",
            "You return sines. Asked for are the angles themselves; `rotate` takes sine and cosine of them.",
        ),
        _turn(
            "positions[..., axis, None].float() + frequencies",
            "You add position and speed. The angle is their product.",
        ),
        _turn(
            "(positions[..., axis, None].float() * frequencies).repeat_interleave(2, dim=-1)",
            "Every angle stands there twice, one for each channel of the pair: (..., n, d). Return one per pair.",
        ),
        _angled(
            "torch.cat([torch.cat(turned, dim=-1)] * 2, dim=-1)",
            "The angles of all pairs come twice, as for the two halves of the channels. One angle per pair: "
            "half = sum(pairs).",
        ),
        _angled(
            "torch.cat(turned[::-1], dim=-1)",
            "The axes stand in reverse: the columns of the last axis come first.",
        ),
        _angled(
            "torch.stack(turned, dim=-1).flatten(-2) if len(set(pairs)) == 1 else torch.cat(turned, dim=-1)",
            "The axes take turns: pair 0 of each, then pair 1 of each. All pairs of the first axis come first.",
        ),
        _angled(
            "torch.stack(turned, dim=-1)",
            "You stack the axes, which need not have equally many pairs. Put them side by side: cat along the last.",
        ),
        _angled(
            "torch.cat(turned, dim=-2)",
            "The axes are joined along the tokens. They are joined along the last axis, side by side.",
        ),
        _angled("sum(turned)", "The angles of the axes are added up. Each axis has pairs of its own: cat, not sum."),
        _angled("turned", "You return a list with one tensor per axis. Put them side by side into one."),
        _angled(
            "torch.cat(turned, dim=-1).mT",
            "The last two axes are swapped: one row per token, one column per pair.",
        ),
        _angled(
            "torch.cat(turned, dim=-1).cos()",
            "You return cosines. Asked for are the angles themselves, in radians.",
        ),
        _angled(
            "torch.cat([torch.cat(turned, dim=-1).cos(), torch.cat(turned, dim=-1).sin()], dim=-1)",
            "You return cosines and sines, as an encoding that is added would be. Asked for are the angles.",
        ),
        _angled(
            "torch.rad2deg(torch.cat(turned, dim=-1))",
            "Your angles are in degrees. PyTorch's sine and cosine, and the contract, want radians.",
        ),
        Mistake(
            "All axes get equally many pairs, whatever `pairs` says. Axis a has pairs[a] of them.",
            code="""
            def rotary_angles(positions, pairs, longest=100.0):
                m = sum(pairs) // len(pairs)
                speeds = longest ** (-torch.arange(m).float() / max(m, 1))
                return (positions.float()[..., None] * speeds).flatten(-2)
            """,
        ),
        Mistake(
            "The default of `longest` is 100, and yours is another.",
            code="""
            def rotary_angles(positions, pairs, longest=10_000.0):
                turned = []
                for axis, count in enumerate(pairs):
                    speeds = longest ** (-torch.arange(count).float() / max(count, 1))
                    turned.append(positions[..., axis, None].float() * speeds)
                return torch.cat(turned, dim=-1)
            """,
        ),
        Mistake(
            "An axis without pairs ends in a division by zero. It simply has no columns.",
            code="""
            def rotary_angles(positions, pairs, longest=100.0):
                turned = []
                for axis, count in enumerate(pairs):
                    ratio = longest ** (-1 / count)
                    turned.append(positions[..., axis, None].float() * ratio ** torch.arange(count).float())
                return torch.cat(turned, dim=-1)
            """,
        ),
        Mistake(
            "Right for (n, axes) only: there may be axes before n, such as the batch. Use `...` and broadcasting.",
            code="""
            def rotary_angles(positions, pairs, longest=100.0):
                n, axes = positions.shape
                turned = []
                for axis in range(axes):
                    m = pairs[axis]
                    speeds = longest ** (-torch.arange(m).float() / max(m, 1))
                    turned.append(torch.outer(positions[:, axis].float(), speeds))
                return torch.cat(turned, dim=-1)
            """,
        ),
        Mistake(
            "Right for (b, n, axes) only: there may be more axes before n, or none. Use `...` and broadcasting.",
            code="""
            def rotary_angles(positions, pairs, longest=100.0):
                b, n, axes = positions.shape
                turned = []
                for axis in range(axes):
                    m = pairs[axis]
                    speeds = longest ** (-torch.arange(m).float() / max(m, 1))
                    turned.append(positions[:, :, axis, None].float() * speeds.view(1, 1, -1))
                return torch.cat(turned, dim=-1)
            """,
        ),
    ],
    variants=[
        Variant(
            "all columns at once",
            """
            def rotary_angles(positions, pairs, longest=100.0):
                axis = torch.tensor([a for a, m in enumerate(pairs) for _ in range(m)])
                speeds = torch.tensor([longest ** (-i / m) for m in pairs for i in range(m)])
                return positions.float()[..., axis] * speeds
            """,
        ),
        Variant(
            "exp and log, einsum",
            """
            def rotary_angles(positions, pairs, longest=100.0):
                parts = []
                for p, m in zip(positions.float().unbind(-1), pairs):
                    if m:
                        speeds = torch.exp(-math.log(longest) * torch.arange(m) / m)
                        parts.append(torch.einsum("...,m->...m", p, speeds))
                return torch.cat(parts, -1)
            """,
        ),
        Variant(
            "each speed from the one before",
            """
            def rotary_angles(positions, pairs, longest=100.0):
                columns = []
                for a, m in enumerate(pairs):
                    speed = 1.0
                    for _ in range(m):
                        columns.append(positions[..., a].to(torch.float32) * speed)
                        speed /= longest ** (1 / m)
                return torch.stack(columns, dim=-1)
            """,
        ),
        Variant(
            "divided by wavelengths, filled in, float64 in between",
            """
            def rotary_angles(positions, pairs, longest=100.0):
                out = torch.zeros(*positions.shape[:-1], sum(pairs), dtype=torch.float64)
                start = 0
                for a in range(positions.shape[-1]):
                    m = pairs[a]
                    steps = np.arange(m) / max(m, 1)
                    out[..., start : start + m] = positions[..., a : a + 1].double() / torch.from_numpy(longest**steps)
                    start += m
                return out.float()
            """,
        ),
        Variant(
            "a matrix with one block per axis",
            """
            def rotary_angles(positions, pairs, longest=100.0):
                speeds = [longest ** (-torch.linspace(0, 1, m + 1)[:-1]) for m in pairs]
                return positions.float() @ torch.block_diag(*(s.view(1, -1) for s in speeds))
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "One axis first. m speeds: longest ** (-i / m) for i = 0 ... m - 1. Every position times every speed is a "
            "table (..., n, m): give the positions one more axis at the end and multiply.",
        ),
        Hint(
            "one axis works, three do not",
            "Do the same for each axis, with its own m and its own positions[..., a], and lay the tables side by side "
            "with `torch.cat(..., dim=-1)`.",
        ),
        Hint(
            "which speeds?",
            "With m = 4 and longest = 100: 1, 100^(-1/4) = 0.316, 0.1, 0.0316. The last is a little more than 0.01. "
            "The next axis begins with 1 again.",
        ),
        Hint(
            "show me nearly everything",
            "For axis, m in enumerate(pairs): speeds = longest ** (-torch.arange(m).float() / max(m, 1)); append "
            "positions[..., axis, None].float() * speeds. At the end torch.cat along the last axis.",
        ),
    ],
)

EXERCISES = [PATCHIFY, UNPATCHIFY, ROTARY_ANGLES]
