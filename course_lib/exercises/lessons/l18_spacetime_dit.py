"""The exercises of lesson 18, the spacetime DiT: patches and back, places, who looks at whom, a block."""

import inspect
import itertools
import math
import textwrap

import torch
from torch import Tensor, nn

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.sora import SpacetimeBlock, Where, spacetime_masks
from course_lib.nn.packing import block_mask, grid_positions
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


def _broken(*shape: int) -> Tensor:
    """Numbers of a training that went wrong: NaN and infinities among them."""
    x = torch.arange(1.0, math.prod(shape) + 1)
    x[::7], x[1::11], x[2::13] = math.nan, math.inf, -math.inf
    return x.view(shape)


def _none_lost(before: Tensor, after: Tensor) -> bool:
    """Are there as many NaN and infinities as before, and the same sum of the others?"""
    kinds = [
        [int(x.isnan().sum()), int(x.isposinf().sum()), int(x.isneginf().sum()), float(x[x.isfinite()].double().sum())]
        for x in (before, after)
    ]
    return kinds[0] == kinds[1]


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
    properties=[
        Property(
            "NaN and infinities must come out as they went in.",
            lambda f: _none_lost(x := _broken(2, 3, 4, 6, 10), f(video=x.clone(), patch=(2, 3, 2))),
        ),
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
        _cut(
            f"{_CUT.replace('(video', '(torch.nan_to_num(video)')}",
            "NaN and infinities are replaced by numbers. Cutting changes none, and whoever looks for the fault later "
            "must still see it.",
        ),
        _cut(
            f"{_CUT.replace('(video', '(video.flip(1)')}",
            "The channels come in the opposite order, as from libraries with blue first. Keep the video's own order.",
        ),
        _cut(
            _CUT.replace("w=w)", "w=w, c=3)"),
            "You take three channels for granted. Latents and grey videos have other numbers of them.",
        ),
        _cut(
            'rearrange(video, "b c frames (h ph) (w pw) -> (b frames) (h w) (ph pw c)", h=h, w=w)'
            ".reshape(len(video), f * h * w, -1)",
            "You cut every frame by itself, and a reshape glues neighbours of a frame into one token. A token takes "
            "the same place of pf frames: cut time together with height and width.",
        ),
        _cut(
            'F.unfold(rearrange(video, "b c t y x -> (b t) c y x").float(), patch[1:], stride=patch[1:]).mT'
            ".reshape(len(video), f * h * w, -1).to(video.dtype)",
            "`unfold` of every frame by itself knows no time, and lists channel by channel; the reshape behind it "
            "glues neighbours of a frame into one token. Cut time together with height and width.",
        ),
        _cut(
            f'{_CUT} if patch[0] > 1 else rearrange(video, "{_AXES} -> b (f h w) (pf c ph pw)", f=f, h=h, w=w)',
            "With patches of one frame you list channel by channel, (c, ph, pw). The order is the same for every "
            "patch: the channels of a pixel stay together.",
        ),
        Mistake(
            "You read ph for both edges of a patch: right for square ones only. A patch is ph high and pw wide.",
            code="""
            def patchify(video, patch):
                pf, ph, _ = patch
                f, h, w = patch_grid(tuple(video.shape[2:]), (pf, ph, ph))
                return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", f=f, h=h, w=w)
            """,
        ),
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
    properties=[
        Property(
            "NaN and infinities must come back as they went in.",
            lambda f: _none_lost(x := _broken(2, 20, 36), f(tokens=x.clone(), grid=(2, 2, 5), patch=(2, 3, 2))),
        ),
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
        _paste(
            f"torch.nan_to_num({_PASTE})",
            "NaN and infinities are replaced by numbers. Pasting changes none: the fault must stay visible.",
        ),
        _paste(
            f"{_PASTE}.clamp(-1, 1)",
            "Values are clamped to -1 ... 1. Pasting changes no number; whoever shows a video clamps it.",
        ),
        _paste(
            _PASTE.replace("pw=pw)", "pw=pw, c=3)"),
            "You tell `rearrange` that there are three channels. Leave c out: it is d / (pf ph pw).",
        ),
        _paste(
            f'{_PASTE} if pf > 1 else rearrange(tokens, "b (f h w) (pf c ph pw) -> {_TO}", {_SIZES})',
            "With patches of one frame you read channel by channel, (c, ph, pw). The order is the same for every "
            "patch: the channels of a pixel stay together.",
        ),
        Mistake(
            "You refuse everything but three channels. Latents and grey videos have other numbers of them.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                if tokens.shape[1] != f * h * w:
                    raise ValueError("n")
                if tokens.shape[2] != 3 * pf * ph * pw:
                    raise ValueError("d")
                x = tokens.reshape(len(tokens), f, h, w, pf, ph, pw, 3)
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
        ),
        Mistake(
            "You read `grid` as (frames, width, height). Height comes before width.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, w, h), (pf, ph, pw) = grid, patch
                if tokens.shape[1] != f * h * w or tokens.shape[2] % (pf * ph * pw):
                    raise ValueError("does not fit")
                x = tokens.reshape(len(tokens), f, h, w, pf, ph, pw, tokens.shape[2] // (pf * ph * pw))
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
        ),
        Mistake(
            "You read ph for both edges of a patch: right for square ones only. Boxes are ph high and pw wide.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, _) = grid, patch
                if tokens.shape[1] != f * h * w or tokens.shape[2] % (pf * ph * ph):
                    raise ValueError("does not fit")
                x = tokens.reshape(len(tokens), f, h, w, pf, ph, ph, tokens.shape[2] // (pf * ph * ph))
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
        ),
        Mistake(
            "You refuse by n d, the numbers of a whole video. Fewer and longer tokens can hold as many: n and d must "
            "each fit.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                b, n, d = tokens.shape
                if n * d % (f * h * w * pf * ph * pw):
                    raise ValueError("does not fit")
                x = tokens.reshape(b, f, h, w, pf, ph, pw, n * d // (f * h * w * pf * ph * pw))
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
        ),
        Mistake(
            "n is checked, but of d what holds no whole pixel is cut off without a word. Refuse it with a ValueError.",
            code="""
            def unpatchify(tokens, grid, patch):
                (f, h, w), (pf, ph, pw) = grid, patch
                if tokens.shape[1] != f * h * w:
                    raise ValueError("does not fit")
                c = tokens.shape[2] // (pf * ph * pw)
                x = tokens[..., : c * pf * ph * pw].reshape(len(tokens), f, h, w, pf, ph, pw, c)
                return rearrange(x, "b f h w pf ph pw c -> b c (f pf) (h ph) (w pw)")
            """,
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
        Case("longest = 7.5", _places((3, 5), 2, 7, longest=7.5)),
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
            _FREQUENCIES.replace("longest", "int(longest)"),
            "`longest` is cut to a whole number. It may be any number.",
        ),
        _speeds(
            f"({_FREQUENCIES}).to(positions.dtype).float()",
            "The positions become float32, but the speeds have been rounded to the positions' dtype before: in half "
            "precision they have two or three digits. Compute both in float32.",
        ),
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
            "torch.arange(positions.shape[-2]).float().expand(positions.shape[:-1])[..., None] * frequencies",
            "Every token turns by its number in the sequence, 0, 1, 2, ... What is asked for is its place along each "
            "axis, which is in `positions`.",
        ),
        _turn(
            "(positions.float() - positions.float().mean(dim=-2, keepdim=True))[..., axis, None] * frequencies",
            "You count positions from their mean. Take them as they are; a clip that moves as a whole turns as a "
            "whole.",
        ),
        _turn(
            "(positions.float() - positions[..., :1, :].float())[..., axis, None] * frequencies",
            "You count positions from those of the first token. Take them as they are: it need not stand at 0.",
        ),
        _turn(
            "positions[..., len([m for m in pairs[:axis] if m]), None].float() * frequencies",
            "Where an axis has no pairs, those behind it take the position of the axis before. Axis a takes "
            "positions[..., a], also when others have no columns.",
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
            "Right for three axes only, time, row and column. There are as many as `pairs` has numbers: walk over them "
            "with `enumerate(pairs)`.",
            code="""
            def rotary_angles(positions, pairs, longest=100.0):
                t, y, x = positions.float().unbind(-1)
                turned = []
                for place, count in zip((t, y, x), pairs):
                    speeds = longest ** (-torch.arange(count).float() / max(count, 1))
                    turned.append(place[..., None] * speeds)
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

# ------------------------------------------------------------------------------------------------------ spacetime_masks

_MASKS = """
def spacetime_masks(ids, places, way, window=2):
    if way not in ("joint", "factorised", "windowed"):
        raise ValueError("no such way")
    if way == "windowed" and window < 1:
        raise ValueError("no window")
    same = lambda values: values[:, :, None] == values[:, None, :]
    itself = torch.eye(ids.shape[1], dtype=torch.bool)
    own = same(ids) & (ids >= 0)[:, None, :] | itself
    f, h, w = places.unbind(-1)
    frame, place, box = same(f), same(h) & same(w), same(h // window) & same(w // window)
    masks = {"joint": [own], "factorised": [own & frame, own & place], "windowed": [own & frame, own & box]}
    return masks[way]
"""


def _mask(sentence: str, *changes: tuple[str, str]) -> Mistake:
    """``_MASKS`` with some of its expressions changed."""
    code = _MASKS
    for old, new in changes:
        assert code.count(old) == 1, f"{old!r} occurs {code.count(old)} times"
        code = code.replace(old, new)
    return Mistake(sentence, code=code)


_OWN = "same(ids) & (ids >= 0)[:, None, :] | itself"
_FACTORISED, _WINDOWED = '"factorised": [own & frame, own & place]', '"windowed": [own & frame, own & box]'
_PLACE, _BOX = "same(h) & same(w), same", "same(h // window) & same(w // window)"


def _row_of(g: torch.Generator, grids: dict[int, tuple], n: int, mixed: bool) -> tuple[Tensor, Tensor]:
    """Clips of these grids side by side in a row of n tokens, or all tokens mixed; padding with any places."""
    ids = torch.cat([torch.full((math.prod(grid),), i) for i, grid in grids.items()] + [torch.zeros(0).long()])
    places = torch.cat([grid_positions(grid) for grid in grids.values()] + [torch.zeros(0, 3)])
    more = n - len(ids)
    ids = torch.cat([ids, torch.full((more,), -1)])
    places = torch.cat([places, torch.randint(0, 3, (more, 3), generator=g).float()])
    order = torch.randperm(n, generator=g) if mixed else torch.arange(n)
    return ids[order], places[order]


def _rows_of(g: torch.Generator, rows: list[dict[int, tuple]], n: int, mixed: bool = False) -> dict[str, Tensor]:
    ids, places = zip(*(_row_of(g, row, n, mixed) for row in rows), strict=True)
    return dict(ids=torch.stack(ids), places=torch.stack(places))


_CLIPS = [{0: (2, 3, 2), 1: (1, 2, 3)}, {2: (3, 2, 2)}]
_LARGE = [{0: (2, 5, 3), 3: (1, 4, 3)}, {7: (3, 3, 4)}]


def _who(way: str, rows=_CLIPS, n: int = 23, mixed: bool = False, **window: int):
    return lambda g: _rows_of(g, rows, n, mixed) | dict(way=way) | window


def _by_loops(ids: Tensor, places: Tensor, way: str, window: int = 2) -> list[Tensor]:
    """The contract, word by word."""
    turns = {"joint": ["all"], "factorised": ["frame", "place"], "windowed": ["frame", "window"]}[way]
    masks = [torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool) for _ in turns]
    for mask, turn in zip(masks, turns, strict=True):
        for b, row in enumerate(ids.tolist()):
            for i, j in itertools.product(range(len(row)), repeat=2):
                (f, h, w), (f2, h2, w2) = places[b, i].tolist(), places[b, j].tolist()
                near = {"all": True, "frame": f == f2, "place": (h, w) == (h2, w2)}
                near["window"] = (h // window, w // window) == (h2 // window, w2 // window)
                mask[b, i, j] = i == j or (row[i] == row[j] >= 0 and near[turn])
    return masks


def _like_loops(f) -> bool:
    for way, window in (("joint", 2), ("factorised", 2), ("windowed", 2), ("windowed", 3)):
        inputs = _rows_of(torch.Generator().manual_seed(0), [{0: (2, 3, 4)}, {2: (1, 3, 3), 1: (3, 2, 1)}], 26, True)
        expected = _by_loops(**inputs, way=way, window=window)
        found = f(**inputs, way=way, window=window)
        if len(found) != len(expected) or not all(map(torch.equal, found, expected)):
            return False
    return True


def _two_turns_reach_all(f) -> bool:
    """Within a frame and then along time, or in windows and frames: two blocks connect all patches of a clip."""
    inputs = _rows_of(torch.Generator().manual_seed(0), [{0: (3, 4, 4)}], 48)
    reach = [torch.stack(list(f(**inputs, way=way))).float() for way in ("factorised", "windowed")]
    return all(bool(((first @ second) > 0).all()) for first, second in reach)


SPACETIME_MASKS = Exercise(
    target=spacetime_masks,
    minutes=20,
    gradients=False,
    cases=[
        Case("joint", _who("joint")),
        Case("factorised", _who("factorised")),
        Case("windowed, the default window", _who("windowed")),
        Case("windows of 2 on odd grids", _who("windowed", _LARGE, 47, window=2)),
        Case("windows of 3", _who("windowed", _LARGE, 47, window=3)),
        Case("windows of one patch", _who("windowed", window=1)),
        Case("a window larger than every frame", _who("windowed", window=9)),
        Case("joint, tokens mixed", _who("joint", mixed=True)),
        Case("factorised, tokens mixed", _who("factorised", mixed=True)),
        Case("windowed, tokens mixed", _who("windowed", _LARGE, 47, True, window=2)),
        Case("factorised, no padding", _who("factorised", [{0: (2, 2, 3)}, {1: (3, 4, 1)}], 12)),
        Case("joint, a row of padding alone", _who("joint", [{0: (1, 2, 2)}, {}], 5)),
        Case("factorised, a row of padding alone", _who("factorised", [{}, {0: (2, 2, 1)}], 5)),
        Case("pictures only", _who("factorised", [{0: (1, 2, 2), 1: (1, 2, 1)}, {2: (1, 1, 3)}], 7)),
        Case("windowed, pictures only", _who("windowed", [{0: (1, 3, 3), 1: (1, 2, 1)}], 13)),
        Case("as many rows as tokens", _who("factorised", [{0: (2, 1, 1)}, {1: (1, 2, 1)}, {2: (1, 1, 2)}], 3)),
        Case("a single token", _who("windowed", [{0: (1, 1, 1)}], 1)),
        Case("joint does not ask for a window", _who("joint", window=0)),
        Case("factorised does not ask for a window", _who("factorised", window=0)),
        Case("an unknown way", _who("sideways")),
        Case("the way in capitals", _who("Joint")),
        Case("no way", _who("")),
        Case("a window of nothing", _who("windowed", window=0)),
        Case("a window of less than nothing", _who("windowed", window=-1)),
    ],
    properties=[
        Property(
            "Token by token, with slow loops, other masks come out: clip, frame, row, column and window of both "
            "decide, and nothing else.",
            _like_loops,
        ),
        Property(
            "Two blocks, one with each mask, must connect every patch of a clip with every other: who is not reached?",
            _two_turns_reach_all,
        ),
    ],
    mistakes=[
        _mask(
            "Padding looks at padding: -1 equals -1. A token of padding looks at itself alone.",
            (_OWN, "same(ids)"),
        ),
        _mask(
            "Padding looks at nobody, not even at itself. A row of the mask without a True makes a softmax divide 0 by "
            "0: let it look at itself.",
            (_OWN, "same(ids) & (ids >= 0)[:, None, :]"),
        ),
        _mask(
            "Nobody looks at padding, but padding looks at everybody. It looks at itself alone.",
            (_OWN, "(same(ids) | (ids < 0)[:, :, None]) & (ids >= 0)[:, None, :] | itself"),
        ),
        _mask(
            "Real tokens look at padding. Whatever stands there, it must not make any difference to them.",
            (_OWN, "same(ids) & (ids >= 0)[:, None, :] | (ids < 0)[:, None, :]"),
        ),
        _mask(
            "Clips see each other: only places are compared. Two clips in a row have equal places, but they are "
            "strangers: compare ids as well.",
            (_OWN, "(ids >= 0)[:, :, None] & (ids >= 0)[:, None, :] | itself"),
        ),
        _mask(
            "Within a frame clips see each other: frame 0 of one clip is not frame 0 of another. The second mask is "
            "right.",
            (
                _FACTORISED,
                '"factorised": [frame & ((ids >= 0)[:, None, :] & (ids >= 0)[:, :, None] | itself), own & place]',
            ),
            (_WINDOWED, '"windowed": [frame & ((ids >= 0)[:, None, :] & (ids >= 0)[:, :, None] | itself), own & box]'),
        ),
        _mask(
            "In the second mask clips see each other: row 0, column 0 of one clip is not that of another. The first "
            "mask is right.",
            (
                _FACTORISED,
                '"factorised": [own & frame, place & ((ids >= 0)[:, None, :] & (ids >= 0)[:, :, None] | itself)]',
            ),
            (_WINDOWED, '"windowed": [own & frame, box & ((ids >= 0)[:, None, :] & (ids >= 0)[:, :, None] | itself)]'),
        ),
        _mask(
            "You take for granted that the tokens of a clip stand side by side. They come in any order: compare ids.",
            (
                _OWN,
                "torch.stack([torch.block_diag(*(torch.ones(k, k) if k > 0 else torch.ones(1, 1) for k in "
                "[int((row == i).sum()) for i in sorted(set(row[row >= 0].tolist()), key=row.tolist().index)] "
                "+ [0] * int((row < 0).sum()))) for row in ids]).bool()",
            ),
        ),
        _mask(
            "Every row of the batch gets the mask of the first row. Each row holds other clips.",
            ("    return masks[way]", "    return [m[:1].expand_as(m).clone() for m in masks[way]]"),
        ),
        _mask(
            "In the second mask of the factorised way only rows are compared: a patch looks along its whole row. The "
            "same place is the same row *and* the same column.",
            (_PLACE, "same(h), same"),
        ),
        _mask(
            "In the second mask of the factorised way only columns are compared: a patch looks up and down its whole "
            "column. The same place is the same row *and* the same column.",
            (_PLACE, "same(w), same"),
        ),
        _mask(
            "Same row *or* same column: a patch looks along a cross. The same place needs both.",
            (_PLACE, "same(h) | same(w), same"),
        ),
        _mask(
            "You compare row + column: the places of a diagonal have the same sum. Compare both by themselves.",
            (_PLACE, "same(h + w), same"),
        ),
        _mask(
            "You compare row x column: everything in row 0 and in column 0 has the product 0. Compare both by "
            "themselves.",
            (_PLACE, "same(h * w), same"),
        ),
        _mask(
            "The two masks of the factorised way are in the other order. First within the frame, then along time.",
            (_FACTORISED, '"factorised": [own & place, own & frame]'),
        ),
        _mask(
            "The two masks of the windowed way are in the other order. First within the frame, then within the window.",
            (_WINDOWED, '"windowed": [own & box, own & frame]'),
        ),
        _mask(
            "One mask for both: same frame *or* same place. Blocks take turns, so two masks are asked for.",
            (_FACTORISED, '"factorised": [own & (frame | place)]'),
            (_WINDOWED, '"windowed": [own & (frame | box)]'),
        ),
        _mask(
            "One mask for both: same frame *and* same place, and that is only the patch itself. Blocks take turns, so "
            "two masks are asked for.",
            (_FACTORISED, '"factorised": [own & frame & place]'),
            (_WINDOWED, '"windowed": [own & frame & box]'),
        ),
        _mask(
            "Three masks, one per axis. Rows and columns belong together here: within a frame everybody looks at "
            "everybody.",
            (_FACTORISED, '"factorised": [own & frame, own & same(h), own & same(w)]'),
        ),
        _mask(
            "The factorised way has only its first mask: nothing ever passes from one frame to another.",
            (_FACTORISED, '"factorised": [own & frame]'),
        ),
        _mask(
            "You look into the past only. A video is made whole: earlier frames may look at later ones, too.",
            ("    return masks[way]", "    return [m & (f[:, None, :] <= f[:, :, None]) | itself for m in masks[way]]"),
        ),
        _mask(
            "Along time a patch does not see its own frame. Everybody looks at themselves, too.",
            (_FACTORISED, '"factorised": [own & frame, own & place & ~(frame & (ids >= 0)[:, :, None])]'),
        ),
        _mask(
            "Along time only neighbouring frames are connected. The same place is seen in *all* frames.",
            (
                _FACTORISED,
                '"factorised": [own & frame, own & place & ((f[:, :, None] - f[:, None, :]).abs() <= 1) | itself]',
            ),
        ),
        _mask(
            "Your windows slide: each patch is in the middle of its own. These windows are tiles: row // window and "
            "column // window of both must agree.",
            (
                _BOX,
                "((h[:, :, None] - h[:, None, :]).abs() < window) & ((w[:, :, None] - w[:, None, :]).abs() < window)",
            ),
        ),
        _mask(
            "Your windows are combs: row % window says where a patch lies *in* its window. Which window it is says row "
            "// window.",
            (_BOX, "same(h % max(window, 1)) & same(w % max(window, 1))"),
        ),
        _mask(
            "Your windows are stripes over the whole width: columns are not asked.",
            (_BOX, "same(h // window)"),
        ),
        _mask(
            "Your windows are stripes over the whole height: rows are not asked.",
            (_BOX, "same(w // window)"),
        ),
        _mask(
            "Your windows end at the frame: the second mask asks for the same frame again. It connects the frames; the "
            "first mask looks around within one.",
            (_WINDOWED, '"windowed": [own & frame, own & box & frame]'),
        ),
        _mask(
            "Your windows are short in time, too: frame // window is compared. They hold *all* frames.",
            (_BOX, "same(h // window) & same(w // window) & same(f // window)"),
        ),
        _mask(
            "The first mask of the windowed way is that of the joint one. It looks at its own frame only.",
            (_WINDOWED, '"windowed": [own, own & box]'),
        ),
        _mask(
            "The windowed way has only its second mask: windows never hear of each other.",
            (_WINDOWED, '"windowed": [own & box]'),
        ),
        _mask(
            "Your windows have 2 rows and columns, whatever `window` says.",
            (_BOX, "same(h // 2) & same(w // 2)"),
        ),
        _mask(
            "You round row / window. Then the first window is narrower than the others: they begin at the top-left "
            "patch, so round down.",
            (_BOX, "same((h / window).round()) & same((w / window).round())"),
        ),
        _mask(
            "You divide and keep the fraction: only equal places agree. Round down, `//`.",
            (_BOX, "same(h / window) & same(w / window)"),
        ),
        _mask(
            "You take `window` for the number of windows along a side. It is the number of rows and columns in one.",
            (
                _BOX,
                "same(h * window // (h.max() + 1)) & same(w * window // (w.max() + 1))",
            ),
        ),
        _mask(
            "A comparison with the masks turned round: True stands for forbidden with you. True is where a token may "
            "look.",
            ("    return masks[way]", "    return [~m for m in masks[way]]"),
        ),
        _mask(
            "You return numbers to add to scores, 0 and -inf. Asked for are booleans.",
            (
                "    return masks[way]",
                "    return [torch.zeros(m.shape).masked_fill(~m, -math.inf) for m in masks[way]]",
            ),
        ),
        _mask(
            "You return zeros and ones. Asked for are booleans: fused attention adds other numbers to the scores.",
            ("    return masks[way]", "    return [m.float() for m in masks[way]]"),
        ),
        _mask(
            "The joint way returns its mask bare. A list is asked for in every case, here of one mask.",
            ("    return masks[way]", '    return own if way == "joint" else masks[way]'),
        ),
        _mask(
            "The masks are stacked into one tensor. A list of (b, n, n) is asked for.",
            ("    return masks[way]", "    return torch.stack(masks[way])"),
        ),
        _mask(
            "A way that does not exist is taken for another one. Refuse it with a ValueError.",
            ('        raise ValueError("no such way")', '        way = "joint"'),
        ),
        _mask(
            "A way that does not exist ends in a KeyError, or in no answer. Refuse it with a ValueError that says so.",
            ('        raise ValueError("no such way")', "        return None"),
        ),
        _mask(
            "A window of 0 is refused, a negative one is not. Refuse every `window` below 1.",
            ("window < 1", "window == 0"),
        ),
        _mask(
            "Windows of no rows are not refused. Raise a ValueError where the way is windowed and `window` is below 1.",
            ("window < 1", "False"),
            (
                "box = same(f), same(h) & same(w), same(h // window) & same(w // window)",
                "box = same(f), same(h) & same(w), same(h // (window or 1)) & same(w // (window or 1))",
            ),
        ),
        _mask(
            "You refuse a window below 1 also where nobody asks for windows. Only the windowed way does.",
            ('way == "windowed" and window < 1', "window < 1"),
        ),
        _mask(
            "A window of one patch is refused. 1 is allowed: then it is the factorised way.",
            ("window < 1", "window <= 1"),
        ),
    ],
    variants=[
        Variant(
            "slow loops",
            """
            def spacetime_masks(ids, places, way, window=2):
                if way not in ("joint", "factorised", "windowed") or (way == "windowed" and window < 1):
                    raise ValueError("no such way, or no window")
                b, n = ids.shape
                masks = [torch.zeros(b, n, n, dtype=torch.bool) for _ in range(1 if way == "joint" else 2)]
                for r in range(b):
                    row, at = ids[r].tolist(), places[r].tolist()
                    for i in range(n):
                        for j in range(n):
                            (f, h, w), (f2, h2, w2) = at[i], at[j]
                            near = [True] if way == "joint" else [f == f2, h == h2 and w == w2]
                            if way == "windowed":
                                near[1] = h // window == h2 // window and w // window == w2 // window
                            for mask, yes in zip(masks, near):
                                mask[r, i, j] = i == j or (yes and row[i] == row[j] != -1)
                return masks
            """,
        ),
        Variant(
            "block_mask, and distances of zero",
            """
            def spacetime_masks(ids, places, way, window=2):
                own = block_mask(ids)
                apart = (places[:, :, None] - places[:, None]).abs()
                if way == "joint":
                    return [own]
                if way == "factorised":
                    return [own & (apart[..., 0] == 0), own & (apart[..., 1:] == 0).all(-1)]
                if way == "windowed" and window >= 1:
                    tile = torch.floor(places[..., 1:] / window)
                    return [own & (apart[..., 0] == 0), own & (torch.cdist(tile, tile, p=1) < 0.5)]
                raise ValueError(f"no such way: {way}, {window}")
            """,
        ),
        Variant(
            "one number for every place, padding with numbers of its own",
            """
            def spacetime_masks(ids, places, way, window=2):
                if way not in ("joint", "factorised", "windowed"):
                    raise ValueError(way)
                size = 1
                if way == "windowed":
                    if window <= 0:
                        raise ValueError(window)
                    size = window
                n = ids.shape[-1]
                who = torch.where(ids < 0, -1 - torch.arange(n), ids)
                f, h, w = (x.squeeze(-1).long() for x in places.split(1, dim=-1))
                keys = {"joint": [who * 0], "factorised": [f, 1000 * h + w],
                        "windowed": [f, 1000 * torch.div(h, size, rounding_mode="floor") + w // size]}[way]
                clip = who.unsqueeze(1) == who.unsqueeze(2)
                return [torch.logical_and(clip, k.unsqueeze(1) == k.unsqueeze(2)) for k in keys]
            """,
        ),
        Variant(
            "one-hot and matrix products",
            """
            def spacetime_masks(ids, places, way, window=2):
                if way not in WAYS:
                    raise ValueError("no such way")
                if way == "windowed" and not window > 0:
                    raise ValueError("no window")
                def alike(values):
                    hot = F.one_hot(values.long(), int(values.max()) + 1).double()
                    return hot @ hot.mT > 0.5
                own = alike(ids + 1) & (ids != -1).unsqueeze(1)
                own = own | torch.diag_embed(torch.ones_like(ids, dtype=torch.bool))
                if way == "joint":
                    return [own]
                size = window if way == "windowed" else 1
                frame, row, column = places[..., 0], places[..., 1] // size, places[..., 2] // size
                return [own * alike(frame), own * alike(row) * alike(column)]
            """,
        ),
    ],
    hints=[
        Hint(
            "how do I compare everybody with everybody?",
            "values[:, :, None] == values[:, None, :] is a square for every row of the batch: True where token i and "
            "token j have the same value.",
        ),
        Hint(
            "what about padding?",
            "Begin with `block_mask(ids)`: it keeps clips apart and padding to itself. All other masks are that one & "
            "something.",
        ),
        Hint(
            "which window is a patch in?",
            "Row // window and column // window: patches 0 and 1 are in window 0, patches 2 and 3 in window 1. Two "
            "patches share a window if both numbers agree. Frames are not asked.",
        ),
        Hint(
            "show me nearly everything",
            "f, h, w = places.unbind(-1), same(v) = v[:, :, None] == v[:, None, :]. Factorised: [own & same(f), own & "
            "same(h) & same(w)]. Windowed: the same with h // window and w // window. Refuse first.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------ SpacetimeBlock

_SIX = "shift1, scale1, gate1, shift2, scale2, gate2 ="
_BLOCK_LINES = {
    "rows": f"{_SIX} self.modulation(condition)[where.frame].chunk(6, dim=-1)",
    "attention": "x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, keep, where.angles)",
    "text": "x = x + clip_by_clip(self.read, self.norm_text(x), where.clip, words, words_keep)",
    "mlp": "x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)",
}


def _block(body: str) -> str:
    """The block with another body of its ``forward``."""
    source = inspect.getsource(SpacetimeBlock)
    body_at = source.index(f"        {_SIX}")
    return source[:body_at] + textwrap.indent(textwrap.dedent(body).strip("\n"), 8 * " ") + "\n"


def _block_with(**lines: str) -> str:
    """The block with some of its four lines changed."""
    return _block("\n".join([*(_BLOCK_LINES | lines).values(), "return x"]))


def _wrong(sentence: str, **lines: str) -> Mistake:
    return Mistake(sentence, code=_block_with(**lines))


def _wrong_body(sentence: str, body: str) -> Mistake:
    return Mistake(sentence, code=_block(body))


def _rows_by(expression: str) -> str:
    """Another choice of the condition's row."""
    return f"{_SIX} self.modulation(condition)[{expression}].chunk(6, dim=-1)"


def _reads(
    clip: str = "where.clip", words: str = "words", keep: str = "words_keep", x: str = "self.norm_text(x)"
) -> str:
    return f"x = x + clip_by_clip(self.read, {x}, {clip}, {words}, {keep})"


_SPACETIME = dict(d=12, heads=3, d_ff=19)


def _packed_clips(
    g: torch.Generator, rows=({2: (2, 2, 2), 0: (1, 2, 1)}, {1: (3, 1, 2)}), n: int = 13, mixed: bool = False, **more
) -> dict[str, Tensor]:
    """Inputs of a block: which clip lies where, its frames' conditions, its captions."""
    b, clips = len(rows), max(max(row) for row in rows) + 1
    grids = {i: grid for row in rows for i, grid in row.items()}
    placed = _rows_of(g, list(rows), n, mixed)
    frames = [grids.get(i, (2,))[0] for i in range(clips)]  # a clip without tokens here has conditions all the same
    first = torch.tensor([0, *frames]).cumsum(0)
    ids = placed["ids"]
    frame = torch.where(ids >= 0, first[ids.clamp(min=0)] + placed["places"][..., 0].long(), 0)
    length = torch.randint(1, 6, (clips, 1), generator=g)
    return (
        dict(
            x=randn(g, b, n, 12),
            condition=randn(g, sum(frames), 12),
            frame=frame,
            clip=ids,
            angles=randn(g, b, n, 2),
            keep=spacetime_masks(**placed, way="factorised")[0],
            words=randn(g, clips, 5, 12),
            words_keep=torch.arange(5) < length,
        )
        | more
    )


def _run_block(block, x, condition, frame, clip, angles, keep, words, words_keep) -> Tensor:
    """The block's answer at real tokens. ``where`` holds the masks of other blocks, too."""
    where = Where([block_mask(clip), keep], angles, frame, clip)
    out = block(x=x, condition=condition, where=where, keep=keep, words=words, words_keep=words_keep)
    return torch.where((clip >= 0)[..., None], out, 0 * out)


class _Blunt(nn.Module):
    """In the place of cross-attention: every token gets the sum of the words that are there, and of itself."""

    def __init__(self, d: int, d_context: int, heads: int):
        super().__init__()
        self.mix = nn.Linear(d_context, d)

    def forward(self, x: Tensor, context: Tensor, keep: Tensor) -> Tensor:
        return self.mix((context * keep[..., None]).sum(dim=1, keepdim=True)) + 0.5 * x


def _clips(label: str, call=_run_block, init=_SPACETIME, **options) -> Case:
    return Case(label, lambda g: _packed_clips(g, **options), init=init, call=call)


def _loud_words(g: torch.Generator) -> dict[str, Tensor]:
    inputs = _packed_clips(g)
    return inputs | dict(words=torch.where(inputs["words_keep"][..., None], inputs["words"], 50.0))


def _speechless(g: torch.Generator) -> dict[str, Tensor]:
    inputs = _packed_clips(g)
    return inputs | dict(words_keep=inputs["words_keep"] & (torch.arange(3) != 1)[:, None])


def _sleeping(cls) -> tuple[nn.Module, dict[str, Tensor]]:
    """A block whose gates, shifts and scales are 0 and whose reader says nothing, as all blocks begin."""
    torch.manual_seed(0)
    block = cls(**_SPACETIME)
    for layer in (block.modulation[1], block.read.to_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return block, _packed_clips(torch.Generator().manual_seed(0))


def _changes_nothing_at_first(cls) -> bool:
    block, inputs = _sleeping(cls)
    with torch.no_grad():
        out = _run_block(block, **inputs)
    real = inputs["clip"] >= 0
    return torch.equal(out[real], inputs["x"][real])


def _wakes(cls) -> bool:
    """What is plainly wrong is left to the cases."""
    block, inputs = _sleeping(cls)
    out = _run_block(block, **inputs)
    if not torch.equal(out, inputs["x"] * (inputs["clip"] >= 0)[..., None]):
        return True
    out.square().sum().backward()
    gates = block.modulation[1].bias.grad
    return gates is not None and gates.view(6, -1).any(1).sum() >= 2 and block.read.to_out.bias.grad is not None


SPACETIME_BLOCK = Exercise(
    target=SpacetimeBlock,
    minutes=30,
    given=("__init__",),
    cases=[
        _clips("three clips in two rows"),
        _clips("tokens mixed", mixed=True),
        _clips("one clip of three frames", rows=({0: (3, 2, 1)},), n=6),
        _clips("clips in another order", rows=({1: (2, 1, 2)}, {0: (3, 2, 1), 2: (1, 1, 2)}), n=9),
        _clips("pictures only", rows=({0: (1, 2, 2), 2: (1, 1, 2)}, {1: (1, 1, 3)}), n=7),
        _clips("a clip without tokens here", rows=({3: (2, 2, 1), 0: (1, 2, 1)}, {1: (2, 1, 2)}), n=7),
        _clips("as many rows as tokens, clips and words", rows=tuple({i: (5, 1, 1)} for i in range(5)), n=5),
        Case("words that are not there are loud", _loud_words, init=_SPACETIME, call=_run_block),
        Case("a caption without words", _speechless, init=_SPACETIME, call=_run_block),
        _clips("another reader", init=_SPACETIME | dict(cross_attention=_Blunt), mixed=True),
    ],
    properties=[
        Property(
            "As all blocks begin, with modulation of zero and a reader that answers zero, the tokens must come out "
            "exactly as they went in.",
            _changes_nothing_at_first,
        ),
        Property(
            "With gates of zero nothing reaches the modulation backwards, and so is every block born: it would never "
            "learn. Do not skip a part because its gate is closed; multiply by the gate.",
            _wakes,
        ),
    ],
    mistakes=[
        _wrong(
            "One time per clip: you take row `where.clip` of the conditions, but they have a row per *frame*. "
            "`where.frame` is a token's row.",
            rows=_rows_by("where.clip"),
        ),
        _wrong(
            "One time per clip: all its tokens take the condition of its first frame. Frames have times of their own; "
            "a known one must be told that it is clean.",
            rows=_rows_by(
                "torch.where(where.clip >= 0, torch.stack([where.frame[where.clip == i].min() if (where.clip == "
                "i).any() else where.frame.max() for i in range(len(words))])[where.clip.clamp(min=0)], 0)"
            ),
        ),
        _wrong_body(
            "One time per clip: its tokens take the mean of its frames' conditions. Each takes that of its own frame.",
            f"""
            mean = condition[where.frame]
            for i in range(len(words)):
                mine = where.clip == i
                rows = where.frame[mine].unique()
                mean = torch.where(mine[..., None], condition[rows].mean(0), mean)
            {_SIX} self.modulation(mean).chunk(6, dim=-1)
            {_BLOCK_LINES["attention"]}
            {_BLOCK_LINES["text"]}
            {_BLOCK_LINES["mlp"]}
            return x
            """,
        ),
        _wrong(
            "One condition per packed row: clip B uses clip A's time. A row holds several clips, and each token has "
            "its own frame.",
            rows=_rows_by("where.frame[:, :1]"),
        ),
        _wrong(
            "You take row 0, 1, ... of the conditions for the packed rows. They are rows of another kind: "
            "`where.frame` says which one belongs to a token.",
            rows=_rows_by("torch.arange(len(x))[:, None] % len(condition)"),
        ),
        _wrong(
            "Every token takes the first frame's condition, whatever its clip and its frame.",
            rows=_rows_by("torch.zeros_like(where.frame)"),
        ),
        _wrong(
            "All tokens take the mean of all conditions, over frames and clips.",
            rows=f"{_SIX} self.modulation(condition.mean(0)).chunk(6, dim=-1)",
        ),
        _wrong(
            "All captions are that of clip 0. Each clip reads its own.",
            text=_reads(words="words[:1].expand_as(words)", keep="words_keep[:1].expand_as(words_keep)"),
        ),
        _wrong_body(
            "The caption of the wrong clip: all tokens of a packed row read the caption of its first clip.",
            f"""
            {_BLOCK_LINES["rows"]}
            {_BLOCK_LINES["attention"]}
            first = torch.stack([row[row >= 0][0] for row in where.clip])
            x = x + self.read(self.norm_text(x), words[first], words_keep[first])
            {_BLOCK_LINES["mlp"]}
            return x
            """,
        ),
        _wrong_body(
            "The caption of the wrong clip: packed row 0 reads caption 0, row 1 caption 1. Rows hold several clips, "
            "and clips come in any order.",
            f"""
            {_BLOCK_LINES["rows"]}
            {_BLOCK_LINES["attention"]}
            at = torch.arange(len(x)) % len(words)
            x = x + self.read(self.norm_text(x), words[at], words_keep[at])
            {_BLOCK_LINES["mlp"]}
            return x
            """,
        ),
        _wrong_body(
            "The captions are dealt out in the order in which clips appear in the rows. Caption i belongs to the clip "
            "whose number in `where.clip` is i.",
            f"""
            {_BLOCK_LINES["rows"]}
            {_BLOCK_LINES["attention"]}
            met = list(dict.fromkeys(i for i in where.clip.flatten().tolist() if i >= 0))
            renamed = torch.full_like(where.clip, -1)
            for k, i in enumerate(met):
                renamed[where.clip == i] = k
            {_reads(clip="renamed")}
            {_BLOCK_LINES["mlp"]}
            return x
            """,
        ),
        _wrong(
            "Every clip reads the caption of the next one (the last reads the first): is your count off by one?",
            text=_reads(words="words.roll(-1, 0)", keep="words_keep.roll(-1, 0)"),
        ),
        _wrong_body(
            "Every token reads the captions of all clips. A clip's tokens read the words of that clip only.",
            f"""
            {_BLOCK_LINES["rows"]}
            {_BLOCK_LINES["attention"]}
            every = words.flatten(0, 1).expand(len(x), -1, -1)
            x = x + self.read(self.norm_text(x), every, words_keep.flatten().expand(len(x), -1))
            {_BLOCK_LINES["mlp"]}
            return x
            """,
        ),
        _wrong(
            "Words that are not there are read, too: `words_keep` is forgotten.",
            text=_reads(keep="torch.ones_like(words_keep)"),
        ),
        _wrong(
            "The words that are *not* there are read: hand `words_keep` over as it is, True where a word is there.",
            text=_reads(keep="~words_keep"),
        ),
        _wrong_body(
            "The answers come back to the wrong tokens: sorted by clip, as they were read. Put each back where its "
            "token stood.",
            f"""
            {_BLOCK_LINES["rows"]}
            {_BLOCK_LINES["attention"]}
            y, told = self.norm_text(x), []
            for i in range(len(words)):
                if (where.clip == i).any():
                    told.append(self.read(y[where.clip == i][None], words[i : i + 1], words_keep[i : i + 1])[0])
            x = x + torch.zeros_like(x).masked_scatter((where.clip >= 0)[..., None], torch.cat(told))
            {_BLOCK_LINES["mlp"]}
            return x
            """,
        ),
        _wrong(
            "The last clip reads nothing: a loop up to the highest number in `where.clip` must include it. There is "
            "one caption per clip, so count those.",
            text="loud = torch.where(where.clip < len(words) - 1, where.clip, -1)\n" + _reads(clip="loud"),
        ),
        _wrong(
            "Only as many clips read as there are packed rows. A row holds several clips: count the captions.",
            text="loud = torch.where(where.clip < len(x), where.clip, -1)\n" + _reads(clip="loud"),
        ),
        _wrong(
            "Clip 0 reads nothing: clips are counted from 0, and padding is -1.",
            text="loud = torch.where(where.clip > 0, where.clip, -1)\n" + _reads(clip="loud"),
        ),
        _wrong(
            "The caption is not read at all.",
            text="",
        ),
        _wrong(
            "What the caption says replaces the tokens. It is added to them.",
            text=_reads().replace("x = x + ", "x = "),
        ),
        _wrong(
            "The caption is read by tokens that are not normalised: `norm_text` is forgotten.",
            text=_reads(x="x"),
        ),
        _wrong(
            "The tokens that read the caption are shifted and scaled. Only attention and MLP have that; the caption is "
            "read by `norm_text` of the tokens.",
            text=_reads(x="self.norm_text(x) * (1 + scale1) + shift1"),
        ),
        _wrong(
            "The caption's answer goes through the attention's gate. It has none.",
            text=_reads().replace("x + ", "x + gate1 * "),
        ),
        _wrong(
            "The caption's answer goes through the MLP's gate. It has none.",
            text=_reads().replace("x + ", "x + gate2 * "),
        ),
        _wrong_body(
            "The caption is read first, before attention. The order is attention, caption, MLP.",
            "\n".join([_BLOCK_LINES[k] for k in ("rows", "text", "attention", "mlp")] + ["return x"]),
        ),
        _wrong_body(
            "The caption is read last, after the MLP. The order is attention, caption, MLP.",
            "\n".join([_BLOCK_LINES[k] for k in ("rows", "attention", "mlp", "text")] + ["return x"]),
        ),
        _wrong_body(
            "The MLP comes first. The order is attention, caption, MLP.",
            "\n".join([_BLOCK_LINES[k] for k in ("rows", "mlp", "text", "attention")] + ["return x"]),
        ),
        _wrong_body(
            "Attention, caption and MLP all read the tokens as they came in. Each reads what the last one left.",
            f"""
            {_BLOCK_LINES["rows"]}
            a = gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, keep, where.angles)
            c = clip_by_clip(self.read, self.norm_text(x), where.clip, words, words_keep)
            return x + a + c + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
            """,
        ),
        _wrong(
            "Both gates are forgotten: a new block would not leave its tokens alone.",
            attention=_BLOCK_LINES["attention"].replace("gate1 * ", ""),
            mlp=_BLOCK_LINES["mlp"].replace("gate2 * ", ""),
        ),
        _wrong("The attention's gate is forgotten.", attention=_BLOCK_LINES["attention"].replace("gate1 * ", "")),
        _wrong("The MLP's gate is forgotten.", mlp=_BLOCK_LINES["mlp"].replace("gate2 * ", "")),
        _wrong(
            "Your gates are 1 + gate. Only scales are counted from 1; a gate of 0 is closed.",
            attention=_BLOCK_LINES["attention"].replace("gate1 *", "(1 + gate1) *"),
            mlp=_BLOCK_LINES["mlp"].replace("gate2 *", "(1 + gate2) *"),
        ),
        _wrong(
            "You multiply by the scale instead of 1 + scale: a scale of 0 would silence the tokens.",
            attention=_BLOCK_LINES["attention"].replace("(1 + scale1)", "scale1"),
            mlp=_BLOCK_LINES["mlp"].replace("(1 + scale2)", "scale2"),
        ),
        _wrong(
            "The gate closes what goes into attention and MLP, not what comes out of them.",
            attention="x = x + self.attention(gate1 * (self.norm1(x) * (1 + scale1) + shift1), keep, where.angles)",
            mlp="x = x + self.mlp(gate2 * (self.norm2(x) * (1 + scale2) + shift2))",
        ),
        _wrong(
            "The gate multiplies the tokens as well: only the answer of the part goes through it.",
            attention=_BLOCK_LINES["attention"].replace("x + gate1 * ", "gate1 * (x + ") + ")",
            mlp=_BLOCK_LINES["mlp"].replace("x + gate2 * ", "gate2 * (x + ") + ")",
        ),
        _wrong(
            "Shift and scale changed places. The order is shift, scale, gate.",
            rows=_BLOCK_LINES["rows"].replace(_SIX, "scale1, shift1, gate1, scale2, shift2, gate2 ="),
        ),
        _wrong(
            "Gates come first with you. The order is shift, scale, gate, for the attention and then for the MLP.",
            rows=_BLOCK_LINES["rows"].replace(_SIX, "gate1, shift1, scale1, gate2, shift2, scale2 ="),
        ),
        _wrong(
            "The six are taken as both shifts, both scales, both gates. First all three of the attention, then all "
            "three of the MLP.",
            rows=_BLOCK_LINES["rows"].replace(_SIX, "shift1, shift2, scale1, scale2, gate1, gate2 ="),
        ),
        _wrong(
            "Attention and MLP use each other's shift, scale and gate.",
            rows=_BLOCK_LINES["rows"].replace(_SIX, "shift2, scale2, gate2, shift1, scale1, gate1 ="),
        ),
        _wrong(
            "The MLP uses the attention's shift, scale and gate. It has three of its own.",
            mlp="x = x + gate1 * self.mlp(self.norm2(x) * (1 + scale1) + shift1)",
        ),
        _wrong(
            "Channels are dealt out in turns: the six numbers of channel 0, then those of channel 1. Asked for are d "
            "shifts, then d scales, and so on: `chunk(6, dim=-1)`.",
            rows=f"{_SIX} self.modulation(condition)[where.frame].unflatten(-1, (-1, 6)).unbind(-1)",
        ),
        _wrong(
            "The condition skips the SiLU in front: call `self.modulation` whole, not its linear layer.",
            rows=f"{_SIX} self.modulation[1](condition)[where.frame].chunk(6, dim=-1)",
        ),
        _wrong(
            "Attention and MLP read tokens that are not normalised: `norm1` and `norm2` come before scale and shift.",
            attention=_BLOCK_LINES["attention"].replace("self.norm1(x)", "x"),
            mlp=_BLOCK_LINES["mlp"].replace("self.norm2(x)", "x"),
        ),
        _wrong(
            "You normalise after scale and shift: that takes most of them away again. Normalise first.",
            attention="x = x + gate1 * self.attention(self.norm1(x * (1 + scale1) + shift1), keep, where.angles)",
            mlp="x = x + gate2 * self.mlp(self.norm2(x * (1 + scale2) + shift2))",
        ),
        _wrong(
            "You shift first and scale afterwards, the shift with it. It is norm times 1 + scale, plus shift.",
            attention="x = x + gate1 * self.attention((self.norm1(x) + shift1) * (1 + scale1), keep, where.angles)",
            mlp="x = x + gate2 * self.mlp((self.norm2(x) + shift2) * (1 + scale2))",
        ),
        _wrong(
            "The attention's answer replaces the tokens. It is added to them.",
            attention=_BLOCK_LINES["attention"].replace("x = x + ", "x = "),
        ),
        _wrong(
            "The MLP's answer replaces the tokens. It is added to them.",
            mlp=_BLOCK_LINES["mlp"].replace("x = x + ", "x = "),
        ),
        _wrong(
            "Everybody looks at everybody: `keep` is forgotten, and clips see each other and padding.",
            attention=_BLOCK_LINES["attention"].replace("keep,", "torch.ones_like(keep),"),
        ),
        _wrong(
            "You take a mask out of `where.keep`, which lists those of all blocks. This block's is `keep`.",
            attention=_BLOCK_LINES["attention"].replace("keep,", "where.keep[0],"),
        ),
        _wrong(
            "The attention gets no places: hand it `where.angles`.",
            attention=_BLOCK_LINES["attention"].replace("where.angles", "torch.zeros_like(where.angles)"),
        ),
        _wrong(
            "The condition is added to the tokens instead of shifting, scaling and gating them.",
            rows=f"{_BLOCK_LINES['rows']}\nx = x + condition[where.frame]",
        ),
        _wrong(
            "The values are right, but `detach` or a no_grad cuts the condition's gradient off: times and captions "
            "would never be learned.",
            rows=f"{_SIX} self.modulation(condition).detach()[where.frame].chunk(6, dim=-1)",
        ),
    ],
    variants=[
        Variant(
            "one clip after the other",
            _block(f"""
            {_BLOCK_LINES["rows"]}
            {_BLOCK_LINES["attention"]}
            y, told = self.norm_text(x), torch.zeros_like(x)
            for i in range(len(words)):
                mine = where.clip == i
                if mine.any():
                    told[mine] = self.read(y[mine].unsqueeze(0), words[i].unsqueeze(0), words_keep[i].unsqueeze(0))[0]
            x = x + told
            return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
            """),
        ),
        Variant(
            "every token is a sample of its own; padding reads the last caption",
            _block("""
            b, n, d = x.shape
            parts = self.modulation(condition[where.frame]).reshape(b, n, 6, d)
            x = x + parts[:, :, 2] * self.attention(
                torch.addcmul(parts[:, :, 0], self.norm1(x), 1 + parts[:, :, 1]), keep, where.angles
            )
            clip = where.clip.reshape(-1)
            x = x + self.read(self.norm_text(x).reshape(b * n, 1, d), words[clip], words_keep[clip]).reshape(b, n, d)
            return torch.addcmul(
                x, parts[:, :, 5], self.mlp(torch.addcmul(parts[:, :, 3], self.norm2(x), 1 + parts[:, :, 4]))
            )
            """),
        ),
        Variant(
            "every row is read once for each clip, and the right answer chosen",
            _block("""
            table = self.modulation(condition)
            rows = F.embedding(where.frame, table).split(x.shape[-1], dim=-1)
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6)
            x = x + rows[2] * self.attention(y + y * rows[1] + rows[0], keep, where.angles)
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6)
            for i in range(words.shape[0]):
                answer = self.read(y, words[i].expand(len(x), -1, -1), words_keep[i].expand(len(x), -1))
                x = torch.where((where.clip == i).unsqueeze(-1), x + answer, x)
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6)
            return x + rows[5] * self.mlp(y + y * rows[4] + rows[3])
            """),
        ),
        Variant(
            "frame by frame, with one-hot rows, and padded clips",
            _block("""
            hot = F.one_hot(where.frame, len(condition)).to(condition)
            shift1, scale1, gate1, shift2, scale2, gate2 = torch.chunk(hot @ self.modulation(condition), 6, dim=2)
            x = x + self.attention(self.norm1(x).mul(scale1 + 1).add(shift1), keep, where.angles).mul(gate1)
            y = self.norm_text(x)
            tokens = [y[where.clip == i] for i in range(len(words))]
            padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
            told = self.read(padded, words, words_keep)
            out = x.clone()
            for i in range(len(words)):
                out[where.clip == i] = x[where.clip == i] + told[i, : len(tokens[i])]
            return out + self.mlp(self.norm2(out).mul(scale2 + 1).add(shift2)).mul(gate2)
            """),
        ),
    ],
    hints=[
        Hint(
            "how does every token get its own frame's condition?",
            "self.modulation(condition) has one row per frame. An index of shape (b, n), `where.frame`, picks a row "
            "for every token: table[where.frame] is (b, n, 6 d). Then chunk(6, dim=-1).",
        ),
        Hint(
            "how does every clip read its own caption?",
            "One clip after the other: mine = where.clip == i is (b, n). x[mine] are its tokens, (m, d); give them a "
            "sample's axis with [None], and the caption with words[i : i + 1]. Write the answer into told[mine], where "
            "told = torch.zeros_like(x).",
        ),
        Hint(
            "a clip has no token in these rows",
            "Then x[where.clip == i] is empty: leave it out.",
        ),
        Hint(
            "show me nearly everything",
            "x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, keep, where.angles); x = x + told, "
            "read by self.norm_text(x); return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2).",
        ),
    ],
)

EXERCISES = [PATCHIFY, UNPATCHIFY, ROTARY_ANGLES, SPACETIME_MASKS, SPACETIME_BLOCK]
