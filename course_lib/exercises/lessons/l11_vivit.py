"""The exercises of lesson 11, ViViT: tubelets, attention along one axis, heads that share the work, the encoders."""

import inspect
import textwrap
from collections.abc import Callable

import torch
from torch import Tensor, nn

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.vivit import (
    AxialBlock,
    FactorisedEncoder,
    axial_attention,
    factorised_dot_product,
    inflate,
    tubelet_embed,
)
from course_lib.nn.attention import MultiHeadAttention, attention
from course_lib.nn.blocks import PreNormBlock


def _with_body(cls: type, old: str, new: str) -> str:
    """The source of a class with another body of its ``forward``."""
    source = inspect.getsource(cls)
    assert source.count(old) == 1, f"the body of {cls.__name__}.forward has changed: adapt the exercise"
    return source.replace(old, textwrap.indent(new.strip("\n"), 8 * " ") + "\n")


# ---------------------------------------------------------------------------------------------------------- tubelets

_FIT = """
                (pf, ph, pw), (f, h, w) = weight.shape[2:], video.shape[2:]
                if f % pf or h % ph or w % pw:
                    raise ValueError("does not fit")
"""


def _clips(b: int, c: int, size: tuple, d: int, box: tuple, dtype: torch.dtype = torch.float32):
    return lambda g: dict(
        video=randn(g, b, c, *size).to(dtype), weight=randn(g, d, c, *box).to(dtype), bias=randn(g, d).to(dtype)
    )


def _tube(sentence: str, body: str, fit: str = _FIT) -> Mistake:
    lines = textwrap.indent(textwrap.dedent(fit).strip("\n") + "\n" + textwrap.dedent(body).strip("\n"), 4 * " ")
    return Mistake(sentence, code=f"def tubelet_embed(video, weight, bias):\n{lines}")


def _order(sentence: str, tokens: str, weights: str, end: str = " + bias") -> Mistake:
    """Boxes and weights rearranged by these patterns, then multiplied."""
    return _tube(
        sentence,
        f"""
        boxes = rearrange(video, "b c (f pf) (h ph) (w pw) -> {tokens}", pf=pf, ph=ph, pw=pw)
        return boxes @ rearrange(weight, "d c pf ph pw -> {weights} d"){end}
        """,
    )


_BOX, _GRID = "(pf ph pw c)", "b (f h w) "

TUBELETS = Exercise(
    target=tubelet_embed,
    minutes=15,
    cases=[
        Case("3 channels, boxes of 2 x 3 x 5", _clips(2, 3, (8, 9, 35), 11, (2, 3, 5))),
        Case("grey, boxes of 3 x 2 x 2", _clips(3, 1, (6, 8, 10), 7, (3, 2, 2))),
        Case("more rows of boxes than columns", _clips(2, 2, (4, 15, 6), 5, (2, 3, 3))),
        Case("many sizes are 2", _clips(2, 2, (4, 4, 4), 2, (2, 2, 2))),
        Case("boxes of one frame", _clips(2, 3, (5, 6, 4), 7, (1, 3, 2))),
        Case("boxes of one number", _clips(2, 3, (2, 5, 3), 7, (1, 1, 1))),
        Case("the clip is one box", _clips(2, 3, (4, 5, 3), 7, (4, 5, 3))),
        Case("a clip of one frame", _clips(2, 1, (1, 6, 9), 5, (1, 2, 3))),
        Case("in double precision", _clips(2, 3, (4, 6, 10), 7, (2, 3, 5), torch.float64)),
        Case("the frames do not fit", _clips(2, 3, (7, 3, 5), 5, (2, 3, 5))),
        Case("the height does not fit", _clips(2, 3, (2, 7, 5), 5, (2, 3, 5))),
        Case("the width does not fit", _clips(2, 3, (2, 3, 11), 5, (2, 3, 5))),
        Case("the numbers would fill 6 boxes, but not the frames", _clips(1, 2, (3, 6, 10), 5, (2, 3, 5))),
        Case("the numbers would fill 12 boxes, but not the edges", _clips(1, 1, (2, 2, 27), 5, (1, 3, 3))),
        Case("fewer frames than a box has", _clips(2, 3, (2, 6, 10), 5, (4, 3, 5))),
        Case("height and width would fit if they were exchanged", _clips(2, 3, (4, 10, 6), 5, (2, 3, 5))),
    ],
    mistakes=[
        _order(
            "The weights are flattened as they lie in memory, (c, pf, ph, pw), but `patchify` lists the numbers of a "
            "box as (pf, ph, pw, c): each weight meets the wrong number. Bring both into one order.",
            _GRID + _BOX,
            "(c pf ph pw)",
        ),
        _order(
            "Rows and columns of the box are exchanged in the weights: they must be listed in the order in which the "
            "numbers of a box are.",
            _GRID + _BOX,
            "(pf pw ph c)",
        ),
        _order(
            "The frames of a box come last among the weights and first among its numbers: one order for both.",
            _GRID + _BOX,
            "(ph pw pf c)",
        ),
        _tube(
            "The numbers of a box are listed as (pf, c, ph, pw), the weights as (c, pf, ph, pw): each weight meets the "
            "wrong number. One order for both.",
            """
            boxes = rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf c ph pw)", pf=pf, ph=ph, pw=pw)
            return boxes @ weight.flatten(1).T + bias
            """,
        ),
        _order(
            "The tokens run through time first: token 1 should be the next box of the first row, not the next time. "
            "All boxes of the first frames come first.",
            "b (h w f) " + _BOX,
            _BOX,
        ),
        _order(
            "The boxes of each page are numbered down the columns. Number them along the rows, like words.",
            "b (f w h) " + _BOX,
            _BOX,
        ),
        _order(
            "Time and rows changed places in the numbering: first all boxes of the first frames, then the next frames.",
            "b (h f w) " + _BOX,
            _BOX,
        ),
        _tube(
            "The two axes of the result are swapped: (b, d, n), as a convolution leaves them. Tokens come second.",
            "return F.conv3d(video, weight, bias, stride=(pf, ph, pw)).flatten(2)",
        ),
        _order(
            "The tokens are still a grid of frames and places, (b, f, s, d). Join the two: n = f s.",
            "b f (h w) " + _BOX,
            _BOX,
        ),
        _order(
            "The tokens are still a grid (b, f, h, w, d). Join the three axes of boxes to n = f h w.",
            "b f h w " + _BOX,
            _BOX,
        ),
        _order(
            "The batch is mixed into the tokens. Keep it as an axis of its own, or clips will attend to each other.",
            "(b f h w) " + _BOX,
            _BOX,
        ),
        _order("The bias is missing: `bias[k]` is added to channel k of every token.", _GRID + _BOX, _BOX, ""),
        _order("The bias is added once for each frame of a box. It is added once.", _GRID + _BOX, _BOX, " + pf * bias"),
        _order("The bias is subtracted. It is added.", _GRID + _BOX, _BOX, " - bias"),
        _order(
            "The products are averaged over the box. A convolution sums them; a mean makes large boxes faint.",
            _GRID + _BOX,
            _BOX,
            " / (pf * ph * pw) + bias",
        ),
        _tube(
            "The products are averaged over all numbers of a box, channels included. A convolution sums them.",
            "return F.conv3d(video, weight / weight[0].numel(), bias, stride=(pf, ph, pw)).flatten(2).mT",
        ),
        _order(
            "The products are averaged over the frames of the box. A convolution sums them.",
            _GRID + _BOX,
            _BOX,
            " / pf + bias",
        ),
        _order(
            "A nonlinearity follows the product. The embedding is linear: products, a sum, the bias.",
            _GRID + _BOX,
            _BOX,
            ".relu() + bias",
        ),
        _tube(
            "A nonlinearity comes last. The embedding is linear: negative numbers stay.",
            "return F.conv3d(video, weight, bias, stride=(pf, ph, pw)).flatten(2).mT.relu()",
        ),
        _tube(
            "Boxes overlap in time: you move on by one frame instead of by pf. 8 frames in boxes of 2 make 4 steps in "
            "time, not 7.",
            "return F.conv3d(video, weight, bias, stride=(1, ph, pw)).flatten(2).mT",
        ),
        _tube(
            "Boxes overlap everywhere: a convolution moves on by one unless you give it a stride.",
            "return F.conv3d(video, weight, bias).flatten(2).mT",
        ),
        _tube(
            "One stride for all three axes, the number of frames. Each axis moves on by its own edge of the box.",
            "return F.conv3d(video, weight, bias, stride=pf).flatten(2).mT",
        ),
        _tube(
            "The stride along a row is the *height* of a box. Each axis moves on by its own edge: (pf, ph, pw).",
            "return F.conv3d(video, weight, bias, stride=(pf, ph, ph)).flatten(2).mT",
        ),
        _tube(
            "This is the convolution as it comes, (b, d, f, h, w). A Transformer reads a sequence, (b, n, d): flatten "
            "the grid, then move the channels last.",
            "return F.conv3d(video, weight, bias, stride=(pf, ph, pw))",
        ),
        _tube(
            "Grid and channels are flattened by a reshape that moves nothing, so channels land among the tokens. "
            "Flatten the grid, then transpose.",
            "return F.conv3d(video, weight, bias, stride=(pf, ph, pw)).reshape(len(video), -1, len(weight))",
        ),
        _tube(
            "Your reshape slices memory, not boxes: a token mixes pixels of different places. Split each axis into "
            "(count, edge), then move the axes, then join.",
            "return video.reshape(len(video), -1, weight[0].numel()) @ weight.flatten(1).T + bias",
        ),
        _tube(
            "Your reshape slices memory, not boxes, and the weights are in another order. Split each axis into "
            "(count, edge), then move the axes, then join.",
            """
            flat = video.movedim(1, -1).reshape(len(video), -1, weight[0].numel())
            return flat @ rearrange(weight, "d c pf ph pw -> (pf ph pw c) d") + bias
            """,
        ),
        _tube(
            "Only the first frame of every box is read: the others never reach a token. All pf frames have weights.",
            "return F.conv3d(video[:, :, ::pf], weight[:, :, :1], bias, stride=(1, ph, pw)).flatten(2).mT",
        ),
        _tube(
            "Only the middle frame of every box is read. That is how training may *start* (exercise 6), not what the "
            "layer does.",
            """
            middle = video[:, :, pf // 2 :: pf]
            return F.conv3d(middle, weight[:, :, pf // 2][:, :, None], bias, stride=(1, ph, pw)).flatten(2).mT
            """,
        ),
        _tube(
            "The frames of a box are averaged before the weights see them, so no motion inside a box is left. Every "
            "frame has weights of its own.",
            """
            still = video.unflatten(2, (-1, pf)).mean(3)
            return F.conv3d(still, weight.sum(2, keepdim=True), bias, stride=(1, ph, pw)).flatten(2).mT
            """,
        ),
        _tube(
            "The channels are summed before the weights see them. Every channel has weights of its own.",
            """
            grey = video.sum(1, keepdim=True)
            return F.conv3d(grey, weight.mean(1, keepdim=True), bias, stride=(pf, ph, pw)).flatten(2).mT
            """,
        ),
        _tube(
            "The weights are reversed in time: the first frame of a box belongs to the first weights.",
            "return F.conv3d(video, weight.flip(2), bias, stride=(pf, ph, pw)).flatten(2).mT",
        ),
        _tube(
            "The kernel is flipped along all three axes, as a convolution in the sense of mathematics does. Here, as "
            "in PyTorch, every number meets the weight at its own place.",
            "return F.conv3d(video, weight.flip(2, 3, 4), bias, stride=(pf, ph, pw)).flatten(2).mT",
        ),
        _tube(
            "Your boxes are combs: you split an axis into (edge, count), so a box takes numbers that lie far apart. "
            "Neighbours differ in the fast part: split into (count, edge).",
            """
            boxes = rearrange(video, "b c (pf f) (ph h) (pw w) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            return boxes @ rearrange(weight, "d c pf ph pw -> (pf ph pw c) d") + bias
            """,
        ),
        _tube(
            "Only the frames are combed: you split time into (edge, count), so a box takes frames that lie far apart.",
            """
            boxes = rearrange(video, "b c (pf f) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            return boxes @ rearrange(weight, "d c pf ph pw -> (pf ph pw c) d") + bias
            """,
        ),
        _tube(
            "The result is float32 whatever the inputs were. Keep their dtype.",
            "return F.conv3d(video.float(), weight.float(), bias.float(), stride=(pf, ph, pw)).flatten(2).mT",
        ),
        _tube(
            "The weights are cut off from the gradient by `.detach()`, `.data` or `no_grad`: this layer would never "
            "learn.",
            "return F.conv3d(video, weight.detach(), bias, stride=(pf, ph, pw)).flatten(2).mT",
        ),
        _tube(
            "No gradient comes through: everything is cut off by `.detach()`, `.data` or `no_grad`.",
            "return F.conv3d(video, weight, bias, stride=(pf, ph, pw)).flatten(2).mT.detach()",
        ),
        _tube(
            "The bias is cut off from the gradient: it would never learn.",
            "return F.conv3d(video, weight, bias.detach(), stride=(pf, ph, pw)).flatten(2).mT",
        ),
        _tube(
            "The result is a Python list. Stack it into one tensor (b, n, d).",
            "return list(F.conv3d(video, weight, bias, stride=(pf, ph, pw)).flatten(2).mT)",
        ),
        _tube(
            "A clip that does not fit is padded with zeros. The contract asks for a ValueError.",
            "video = F.pad(video, (0, -w % pw, 0, -h % ph, 0, -f % pf))\n"
            "return F.conv3d(video, weight, bias, stride=(pf, ph, pw)).flatten(2).mT",
            "(pf, ph, pw), (f, h, w) = weight.shape[2:], video.shape[2:]",
        ),
        *(
            _tube(
                sentence,
                "return F.conv3d(video, weight, bias, stride=(pf, ph, pw)).flatten(2).mT",
                f"(pf, ph, pw), (f, h, w) = weight.shape[2:], video.shape[2:]\n{refusal}",
            )
            for sentence, refusal in (
                (
                    "Right but for the refusal: `assert` raises AssertionError, and is skipped under `python -O`. Use "
                    "`raise ValueError(...)`.",
                    "assert f % pf == 0 and h % ph == 0 and w % pw == 0",
                ),
                (
                    "The frames are right, but height and width are refused by their product: 2 x 27 pixels are as "
                    "many as six squares of 3 x 3, and yet no such square fits.",
                    "if f % pf or (h * w) % (ph * pw): raise ValueError",
                ),
                (
                    "You refuse by the count of numbers. 2 x 27 pixels are as many as six squares of 3 x 3, and yet no "
                    "such square fits: each edge must be a multiple by itself.",
                    "if (f * h * w) % (pf * ph * pw): raise ValueError",
                ),
                (
                    "Right but for the refusal: frames beyond the last whole box fall off without a word. A clip that "
                    "does not fit must be refused with a ValueError, and so for height and width.",
                    "if h % ph or w % pw: raise ValueError",
                ),
                (
                    "Right but for the refusal: the height is not checked, and rows beyond the last box are lost.",
                    "if f % pf or w % pw: raise ValueError",
                ),
                (
                    "Right but for the refusal: the width is not checked, and columns beyond the last box are lost.",
                    "if f % pf or h % ph: raise ValueError",
                ),
                (
                    "Height and width are compared with each other's edge of the box.",
                    "if f % pf or h % pw or w % ph: raise ValueError",
                ),
                (
                    "Clips whose height and width differ are refused. Only the multiples matter.",
                    "if f % pf or h != w or h % ph: raise ValueError",
                ),
            )
        ),
        _tube(
            "Right but for the refusal: a clip that does not fit gets the error of einops, which is no ValueError. "
            "`patchify` refuses it by itself, or ask the three remainders first.",
            """
            boxes = rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", pf=pf, ph=ph, pw=pw)
            return boxes @ rearrange(weight, "d c pf ph pw -> (pf ph pw c) d") + bias
            """,
            "(pf, ph, pw) = weight.shape[2:]",
        ),
    ],
    variants=[
        Variant(
            "a convolution",
            """
            def tubelet_embed(video, weight, bias):
                size = weight.shape[2:]
                if any(n % p for n, p in zip(video.shape[2:], size)):
                    raise ValueError("no whole number of boxes")
                return F.conv3d(video, weight, bias, stride=tuple(size)).flatten(2).transpose(1, 2)
            """,
        ),
        Variant(
            "reshape, permute, einsum",
            """
            def tubelet_embed(video, weight, bias):
                b, c, f, h, w = video.shape
                d, _, pf, ph, pw = weight.shape
                if f % pf != 0 or h % ph != 0 or w % pw != 0:
                    raise ValueError("no whole number of boxes")
                x = video.reshape(b, c, f // pf, pf, h // ph, ph, w // pw, pw)
                return torch.einsum("bcfphqwr,dcpqr->bfhwd", x, weight).reshape(b, -1, d) + bias
            """,
        ),
        Variant(
            "a loop over boxes",
            """
            def tubelet_embed(video, weight, bias):
                pf, ph, pw = weight.shape[-3:]
                b, _, frames, height, width = video.shape
                if frames % pf or height % ph or width % pw:
                    raise ValueError("no whole number of boxes")
                tokens = []
                for f in range(0, frames, pf):
                    for y in range(0, height, ph):
                        for x in range(0, width, pw):
                            box = video[:, :, f : f + pf, y : y + ph, x : x + pw]
                            tokens.append(F.linear(box.flatten(1), weight.flatten(1), bias))
                return torch.stack(tokens, 1)
            """,
        ),
        Variant(
            "one image convolution for each frame of the box",
            """
            def tubelet_embed(video, weight, bias):
                pf, ph, pw = weight.shape[2:]
                b, c, frames, height, width = video.shape
                if frames % pf or height % ph or width % pw:
                    raise ValueError("no whole number of boxes")
                total = 0
                for i in range(pf):
                    pictures = video[:, :, i::pf].transpose(1, 2).flatten(0, 1)
                    total = total + F.conv2d(pictures, weight[:, :, i], stride=(ph, pw))
                total = total + bias[:, None, None]
                return total.unflatten(0, (b, -1)).movedim(2, -1).flatten(1, 3)
            """,
        ),
        Variant(
            "Tensor.unfold three times",
            """
            def tubelet_embed(video, weight, bias):
                for axis in (2, 3, 4):
                    if video.shape[axis] % weight.shape[axis]:
                        raise ValueError(f"axis {axis} does not fit")
                x = video
                for axis in (2, 3, 4):
                    x = x.unfold(axis, weight.shape[axis], weight.shape[axis])
                x = x.movedim(1, 4).flatten(4).flatten(1, 3)  # b n (c pf ph pw)
                return torch.addmm(bias, x.flatten(0, 1), weight.flatten(1).T).unflatten(0, x.shape[:2])
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Two steps. Cut: every box becomes a row of numbers, as in lesson 04 (`patchify` from "
            "`course_lib.nn.patches` cuts videos, too). Multiply: a matrix with one column per channel k holds the "
            "weights of a box, in the same order as the numbers.",
        ),
        Hint(
            "the shape is right, the values are not",
            "Does each number meet its own weight? `patchify` lists the numbers of a box as (pf, ph, pw, c); the "
            "weight has (d, c, pf, ph, pw). Move its axes before you flatten them.",
        ),
        Hint(
            "which clips must be refused?",
            "`patchify(video, (pf, ph, pw))` refuses them for you. By hand: one remainder per axis, joined by `or`.",
        ),
        Hint(
            "show me nearly everything",
            "boxes = patchify(video, tuple(weight.shape[2:])), which is (b, n, numbers of a box); then boxes @ "
            'rearrange(weight, "d c pf ph pw -> (pf ph pw c) d"), and the bias.',
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------- inflate


def _patch_weights(frames: int, mode: str, shape: tuple = (7, 3, 5, 2), dtype: torch.dtype = torch.float32):
    return lambda g: dict(weight=randn(g, *shape).to(dtype), frames=frames, mode=mode)


def _grown(function: Callable, frames: int):
    for mode in ("inflation", "central frame"):
        weight = torch.randn(5, 2, 3, 4)
        yield weight, function(weight, frames, mode).detach()


def _frames_are_apart(function: Callable) -> bool:
    for _, grown in _grown(function, 3):
        others = grown[:, :, 1:].clone()
        grown[:, :, 0].add_(1.0)
        if not torch.equal(grown[:, :, 1:], others):
            return False
    return True


def _weight_is_apart(function: Callable) -> bool:
    for frames in (1, 3):
        for weight, grown in _grown(function, frames):
            before = weight.clone()
            grown.mul_(2.0)
            if not torch.equal(weight, before):
                return False
    return True


_INFLATED = 'repeat(weight / frames, "d c ph pw -> d c frames ph pw", frames=frames).clone()'
_CENTRE = "taps[frames // 2] = weight"
_TAPS = "taps = [torch.zeros_like(weight)] * frames"
_STACKED = "torch.stack(taps, dim=2)"
_FEW = "frames < 1"

INFLATE = Exercise(
    target=inflate,
    minutes=10,
    cases=[
        *(
            Case(f"{mode}, {n} frames", _patch_weights(n, mode))
            for mode in ("inflation", "central frame")
            for n in (4, 2, 3)
        ),
        Case("inflation, 1 frame", _patch_weights(1, "inflation")),
        Case("central frame, 1 frame", _patch_weights(1, "central frame")),
        Case("central frame, 5 frames", _patch_weights(5, "central frame")),
        Case("inflation, all sizes 2", _patch_weights(2, "inflation", (2, 2, 2, 2))),
        Case("central frame, all sizes 3", _patch_weights(3, "central frame", (3, 3, 3, 3))),
        Case("inflation in double precision", _patch_weights(3, "inflation", dtype=torch.float64)),
        Case("central frame in double precision", _patch_weights(2, "central frame", dtype=torch.float64)),
        Case("an unknown mode", _patch_weights(3, "mean")),
        Case("an unknown mode, where both known ones agree", _patch_weights(1, "average")),
        *(
            Case(f"nearly a known mode: {mode!r}", _patch_weights(3, mode))
            for mode in ("", "inflate", "Central Frame", "central", "central_frame")
        ),
        Case("no frame, inflation", _patch_weights(0, "inflation")),
        Case("no frame, central frame", _patch_weights(0, "central frame")),
        Case("fewer than no frame", _patch_weights(-2, "inflation")),
        Case("fewer than no frame, central", _patch_weights(-1, "central frame")),
    ],
    properties=[
        Property(
            "The frames must not share memory: written into one, the result may not change in another. `expand` "
            "shows one piece of memory several times; add `.clone()`, or build the result otherwise.",
            _frames_are_apart,
        ),
        Property(
            "The result must not share memory with the image's weights: whoever writes into it would change the image "
            "model. Add `.clone()`.",
            _weight_is_apart,
        ),
    ],
    mistakes=[
        Mistake(
            "The frames share one memory: `expand` makes no copies, and an optimizer that updates the weights in place "
            "could not. Add `.clone()`, or use `repeat`.",
            old=_INFLATED,
            new="(weight / frames)[:, :, None].expand(-1, -1, frames, -1, -1)",
        ),
        Mistake(
            "With a single frame you hand back the image's own weights, only seen through another shape. The result "
            "needs memory of its own here, too: `.clone()`.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                if frames == 1:
                    return weight.unsqueeze(2)
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 2)
            """,
        ),
        Mistake(
            "You forgot to divide by the number of frames: on a still clip the response is that many times too large.",
            old=_INFLATED,
            new=_INFLATED.replace("weight / frames", "weight"),
        ),
        Mistake(
            "You divide by the square root of the number of frames. Weights add up over the frames, so it is the "
            "number itself.",
            old=_INFLATED,
            new=_INFLATED.replace("weight / frames", "weight / frames**0.5"),
        ),
        Mistake(
            "You multiply by the number of frames instead of dividing.",
            old=_INFLATED,
            new=_INFLATED.replace("weight / frames", "weight * frames"),
        ),
        Mistake(
            "You divide by the number of channels, not of frames: `weight.shape[1]` belongs to the image.",
            old=_INFLATED,
            new=_INFLATED.replace("weight / frames", "weight / weight.shape[1]"),
        ),
        Mistake(
            "Integer division: `//` rounds every weight down. Use `/`.",
            old=_INFLATED,
            new=_INFLATED.replace("weight / frames", "(weight // frames)"),
        ),
        Mistake(
            "With an even number of frames you take the one before the middle, (frames - 1) // 2. The contract says "
            "frames // 2: of 2 frames the one with index 1.",
            old=_CENTRE,
            new="taps[(frames - 1) // 2] = weight",
        ),
        Mistake(
            "With an even number of frames you use both frames in the middle. It is one frame, frames // 2.",
            old=_CENTRE,
            new=f"{_CENTRE} / (2 - frames % 2)\n        taps[(frames - 1) // 2] = weight / (2 - frames % 2)",
        ),
        Mistake(
            "The first frame gets the weights. The central one is frames // 2.",
            old=_CENTRE,
            new="taps[0] = weight",
        ),
        Mistake(
            "The last frame gets the weights. The central one is frames // 2.",
            old=_CENTRE,
            new="taps[-1] = weight",
        ),
        Mistake(
            "You round frames / 2, and 1.5 becomes 2: of 3 frames the last one gets the weights. Whole-number "
            "division, frames // 2, gives 1.",
            old=_CENTRE,
            new="taps[min(frames - 1, round(frames / 2))] = weight",
        ),
        Mistake(
            "One frame too far: (frames + 1) // 2. Counted from 0, the central one of 3 frames is number 1.",
            old=_CENTRE,
            new="taps[(frames + 1) // 2] = weight",
        ),
        Mistake(
            "The central frame gets its share, weight / frames. It stands alone here and gets the weights as they are.",
            old=_CENTRE,
            new="taps[frames // 2] = weight / frames",
        ),
        Mistake(
            "Every frame gets the image's weights in the mode `central frame`. Only frame frames // 2 does, and the "
            "others get zeros.",
            old=_TAPS,
            new="taps = [weight] * frames",
        ),
        Mistake(
            "The other frames get small random numbers. The contract says zeros: the video model should begin as the "
            "image model.",
            old=_TAPS,
            new="taps = [0.02 * torch.randn_like(weight) for _ in range(frames)]",
        ),
        Mistake(
            "The two modes are exchanged.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                if mode == "central frame":
                    return (weight / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
                out = torch.zeros_like(weight)[:, :, None].repeat(1, 1, frames, 1, 1)
                out[:, :, frames // 2] = weight
                return out
            """,
        ),
        Mistake(
            "The mode is ignored, and the result is always inflated.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                return (weight / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
            """,
        ),
        Mistake(
            "The mode is ignored, and the result always has the central frame alone.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                return torch.stack([weight if f == frames // 2 else 0 * weight for f in range(frames)], 2)
            """,
        ),
        Mistake(
            "The new axis stands first. The order is (d, c, frames, ph, pw).",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps)
            """,
        ),
        Mistake(
            "The new axis stands last. The order is (d, c, frames, ph, pw): time before rows and columns.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, -1)
            """,
        ),
        Mistake(
            "The new axis stands between output and input channels. The order is (d, c, frames, ph, pw).",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 1)
            """,
        ),
        Mistake(
            "The new axis stands behind the rows. The order is (d, c, frames, ph, pw): time before rows and columns.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 3)
            """,
        ),
        Mistake(
            "The frames are repeated along the output channels and then reshaped, so frames and channels are mixed. "
            "The new axis stands behind the channels: `unsqueeze(2)` first, then repeat it.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                if mode == "inflation":
                    d, c, ph, pw = weight.shape
                    return (weight / frames).repeat(frames, 1, 1, 1).reshape(d, c, frames, ph, pw)
                return torch.stack([weight if f == frames // 2 else 0 * weight for f in range(frames)], 2)
            """,
        ),
        Mistake(
            "The frames are joined to the input channels and then reshaped, so frames and channels change places. "
            "Stack them along an axis of their own.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                d, c, ph, pw = weight.shape
                if mode == "inflation":
                    return torch.cat([weight / frames] * frames, 1).reshape(d, c, frames, ph, pw)
                return torch.stack([weight if f == frames // 2 else 0 * weight for f in range(frames)], 2)
            """,
        ),
        Mistake(
            "The frames are joined to the channels. They get an axis of their own, after the channels: stack, don't "
            "concatenate.",
            old=_STACKED,
            new="torch.cat(taps, dim=1)",
        ),
        Mistake(
            "You zero along another axis than time: this keeps the central *column* of every patch. (The paper's own "
            "code has a function that does so; it was meant for time.)",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                if mode == "inflation":
                    return (weight / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
                keep = torch.zeros(weight.shape[-1])
                keep[weight.shape[-1] // 2] = 1
                return (weight * keep)[:, :, None].repeat(1, 1, frames, 1, 1)
            """,
        ),
        Mistake(
            "The result is cut off from the gradient: `.detach()`, `.data` or `no_grad` stands in the way.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 2).detach()
            """,
        ),
        Mistake(
            "The central frame's weights are written by `.data`, by `.detach()` or under `no_grad`, so no gradient "
            "flows back to them.",
            old=_CENTRE,
            new="taps[frames // 2] = weight.detach()",
        ),
        Mistake(
            "The result is float32 whatever the weights were: `torch.zeros` without a dtype, or `.float()`.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1 or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                out = torch.zeros(*weight.shape[:2], frames, *weight.shape[2:])
                if mode == "inflation":
                    out[:] = weight[:, :, None] / frames
                else:
                    out[:, :, frames // 2] = weight
                return out
            """,
        ),
        Mistake(
            "The image's weights are divided in place. Leave the input as it is: `weight / frames` makes a copy, "
            "`weight /= frames` does not.",
            old=_INFLATED,
            new='repeat(weight.data.div_(frames), "d c ph pw -> d c frames ph pw", frames=frames).clone()',
        ),
        Mistake(
            "Right but for one refusal: one frame returns before the mode is looked at. An unknown mode is refused "
            "always.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1:
                    raise ValueError("no")
                if frames == 1:
                    return weight[:, :, None].clone()
                if mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 2)
            """,
        ),
        *(
            Mistake(
                sentence,
                code=f"""
            def inflate(weight, frames, mode):
                {first}
                if frames < 1 or not ({known}):
                    raise ValueError("no")
                every = {every}
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 2)
            """,
            )
            for sentence, first, known, every in (
                (
                    "Right but for the refusal: `central_frame` is let through as well. The name has a space.",
                    "pass",
                    'mode in ("inflation", "central frame", "central_frame")',
                    'mode == "inflation"',
                ),
                (
                    "Right but for the refusal: every mode that holds the word central counts as the central frame. "
                    "Compare the whole name.",
                    "pass",
                    'mode == "inflation" or "central" in mode',
                    'mode == "inflation"',
                ),
                (
                    "Right but for the refusal: you look for a part of the name. A mode that only begins like a known "
                    "one is another mode.",
                    "pass",
                    'mode.startswith(("infl", "central"))',
                    'mode.startswith("infl")',
                ),
                (
                    "Right but for the refusal: `in` on one long string asks for a piece of it, and a piece of a name, "
                    "or none at all, is no mode. Put the names in a tuple, or compare with ==.",
                    "pass",
                    'mode in "inflation, central frame"',
                    'mode == "inflation"',
                ),
                (
                    "Right but for the refusal: you mend the name first (lower case, no underscores). The contract "
                    "knows two names, letter by letter.",
                    'mode = mode.lower().replace("_", " ").strip()',
                    'mode in ("inflation", "central frame")',
                    'mode == "inflation"',
                ),
            )
        ),
        Mistake(
            "Right but for the refusal: an unknown mode ends in a KeyError. Raise a ValueError: the *value* is wrong.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1:
                    raise ValueError("no")
                every = {"inflation": True, "central frame": False}[mode]
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 2)
            """,
        ),
        Mistake(
            "Right but for the refusal: too few frames are refused for inflation, not for the central frame.",
            code="""
            def inflate(weight, frames, mode):
                if mode not in ("inflation", "central frame") or (mode == "inflation" and frames < 1):
                    raise ValueError("no")
                out = weight.new_zeros(*weight.shape[:2], max(frames, 0), *weight.shape[2:])
                if mode == "inflation":
                    return out + weight[:, :, None] / frames
                out[:, :, frames // 2] = weight
                return out
            """,
        ),
        Mistake(
            "Right but for the refusal: any other mode counts as inflation (or as the central frame). It must be "
            "refused with a ValueError.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1:
                    raise ValueError("no")
                every = mode != "central frame"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 2)
            """,
        ),
        Mistake(
            "Right but for the refusal: every other mode than inflation counts as the central frame. It must be "
            "refused with a ValueError.",
            code="""
            def inflate(weight, frames, mode):
                if frames < 1:
                    raise ValueError("no")
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 2)
            """,
        ),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError. Use `raise ValueError(...)`.",
            code="""
            def inflate(weight, frames, mode):
                assert frames >= 1 and mode in ("inflation", "central frame")
                every = mode == "inflation"
                taps = [weight / frames if every else weight * (f == frames // 2) for f in range(frames)]
                return torch.stack(taps, 2)
            """,
        ),
        Mistake(
            "Right but for the refusal: 0 frames are refused and fewer are not. Ask `frames < 1`.",
            code="""
            def inflate(weight, frames, mode):
                if not frames or mode not in ("inflation", "central frame"):
                    raise ValueError("no")
                out = weight.new_zeros(*weight.shape[:2], max(frames, 0), *weight.shape[2:])
                if mode == "inflation":
                    return out + weight[:, :, None] / frames
                return torch.stack([weight if f == frames // 2 else 0 * weight for f in range(frames)] or [weight], 2)
            """,
        ),
        Mistake(
            "Right but for the refusal: fewer than 1 frame is not refused with a ValueError of your own. What it gets "
            "is an empty result or an error from inside.",
            code="""
            def inflate(weight, frames, mode):
                if mode == "inflation":
                    return (weight / frames)[:, :, None].repeat(1, 1, max(frames, 0), 1, 1)
                if mode == "central frame":
                    return torch.stack([weight if f == frames // 2 else 0 * weight for f in range(frames)], 2)
                raise ValueError("no")
            """,
        ),
        Mistake(
            "A single frame is refused. One is enough: then both modes give the image's weights.",
            old=_FEW,
            new="frames < 2",
        ),
        Mistake(
            "An even number of frames is refused. It has a central frame too: frames // 2.",
            old=_FEW,
            new="frames < 1 or (mode == 'central frame' and frames > 1 and frames % 2 == 0)",
        ),
    ],
    variants=[
        Variant(
            "stack",
            """
            def inflate(weight, frames, mode):
                if mode not in ("inflation", "central frame") or frames < 1:
                    raise ValueError("give a known mode and at least one frame")
                if mode == "inflation":
                    return torch.stack([weight / frames] * frames, dim=2)
                zero = torch.zeros_like(weight)
                before = frames // 2
                return torch.stack([zero] * before + [weight] + [zero] * (frames - before - 1), dim=2)
            """,
        ),
        Variant(
            "shares of each frame, broadcast",
            """
            def inflate(weight, frames, mode):
                if frames <= 0:
                    raise ValueError("at least one frame")
                match mode:
                    case "inflation":
                        shares = torch.full((frames,), 1 / frames, dtype=weight.dtype)
                    case "central frame":
                        shares = F.one_hot(torch.tensor(frames // 2), frames)
                    case _:
                        raise ValueError(mode)
                return weight.unsqueeze(2) * shares.to(weight).view(-1, 1, 1)
            """,
        ),
        Variant(
            "written into zeros",
            """
            def inflate(weight, frames, mode):
                if frames < 1:
                    raise ValueError("at least one frame")
                d, c, ph, pw = weight.shape
                out = weight.new_zeros(d, c, frames, ph, pw)
                if mode == "inflation":
                    out[:] = weight.unsqueeze(2) / frames
                elif mode == "central frame":
                    out[:, :, frames // 2] = weight
                else:
                    raise ValueError(mode)
                return out
            """,
        ),
        Variant(
            "padding",
            """
            def inflate(weight, frames, mode):
                if frames < 1:
                    raise ValueError("at least one frame")
                if mode == "central frame":
                    middle = frames // 2
                    return F.pad(weight[:, :, None], (0, 0, 0, 0, middle, frames - 1 - middle)).clone()
                if mode == "inflation":
                    return einops.repeat(weight, "d c h w -> d c f h w", f=frames) / frames
                raise ValueError(mode)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Think of a still clip: every frame of a box shows the same picture. What must the weights of the frames "
            "add up to, so that the clip gives the image's token?",
        ),
        Hint(
            "where does the new axis go?",
            "Behind the channels: (d, c, frames, ph, pw). `weight[:, :, None]` makes room for it, `torch.stack(list, "
            "dim=2)` makes it.",
        ),
        Hint(
            "it says that memory is shared",
            "`expand` shows one piece of memory several times. `.repeat(...)`, `torch.stack` and `.clone()` make "
            "copies.",
        ),
        Hint(
            "show me nearly everything",
            "Make a list of `frames` tensors: for inflation each is weight / frames; for the central frame all are "
            "torch.zeros_like(weight) except number frames // 2. Stack them along dim=2.",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------- axial attention


def _attends(seed: int = 0, d: int = 12, heads: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An attention with weights of its own, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiHeadAttention(d, heads, bias=True).to(dtype).requires_grad_(False)


class _Causal(nn.Module):
    """An attention that minds the order: every token sees itself and those before it."""

    def __init__(self, d: int = 12):
        super().__init__()
        self.inner = _attends(1, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, keep=torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril())


def _running_sum(sequences: Tensor) -> Tensor:
    return sequences.cumsum(1)


def _runs_once(function: Callable, *sizes: int) -> bool:
    for axis in ("space", "time"):
        calls, inner = [], _attends(2)

        def counted(sequences, calls=calls, inner=inner):
            calls.append(sequences.shape)
            return inner(sequences)

        function(torch.randn(*sizes, 12), counted, axis)
        if len(calls) != 1:
            return False
    return True


def _grid(
    b: int, f: int, s: int, axis: str, attend: Callable = _attends, d: int = 12, dtype: torch.dtype = torch.float32
):
    return lambda g: dict(x=randn(g, b, f, s, d).to(dtype), attend=attend(), axis=axis)


def _axes(label: str, *sizes: int, **options) -> list[Case]:
    return [Case(f"{label}, along {axis}", _grid(*sizes, axis, **options)) for axis in ("time", "space")]


_SPACE = 'rearrange(attend(rearrange(x, "b f s d -> (b f) s d")), "(b f) s d -> b f s d", b=b)'
_TIME = 'rearrange(attend(rearrange(x, "b f s d -> (b s) f d")), "(b s) f d -> b f s d", b=b)'
_UNKNOWN = "raise ValueError(f\"axis={axis!r} is unknown; tokens look along 'space' or along 'time'\")"


def _axial(sentence: str, body: str, guard: bool = True) -> Mistake:
    refuse = 'if axis not in ("space", "time"):\n    raise ValueError(axis)\n' if guard else ""
    lines = textwrap.indent(
        "b, f, s, d = x.shape\n" + refuse + textwrap.dedent(body).strip("\n"),
        4 * " ",
    )
    return Mistake(sentence, code=f"def axial_attention(x, attend, axis):\n{lines}")


_PLAIN_SPACE = "attend(x.reshape(b * f, s, d)).reshape(b, f, s, d)"
_PLAIN_TIME = "attend(x.transpose(1, 2).reshape(b * s, f, d)).reshape(b, s, f, d).transpose(1, 2)"

AXIAL = Exercise(
    target=axial_attention,
    minutes=20,
    cases=[
        *_axes("5 frames of 7 places", 2, 5, 7),
        *_axes("more frames than places", 3, 7, 2),
        *_axes("as many clips as frames and places", 3, 3, 3),
        *_axes("as many clips as frames", 3, 3, 5),
        *_axes("attention that minds the order", 2, 5, 7, attend=_Causal),
        *_axes("a running sum in place of attention", 3, 5, 2, attend=lambda: _running_sum),
        *_axes("one frame", 2, 1, 5),
        *_axes("one place", 2, 5, 1),
        *_axes("in double precision", 2, 3, 5, attend=lambda: _attends(dtype=torch.float64), dtype=torch.float64),
        Case("an unknown axis", _grid(2, 3, 5, "height")),
        *(
            Case(f"nearly a known axis: {axis!r}", _grid(2, 3, 5, axis))
            for axis in ("", "Time", "s", "temporal", "space ")
        ),
    ],
    properties=[
        Property(
            "`attend` must run once for all frames, or all places, of a clip: fold them into the batch, which "
            "attention never mixes.",
            lambda function: _runs_once(function, 1, 3, 5),
        ),
        Property(
            "`attend` must run once for all clips: fold them into the batch, too.",
            lambda function: _runs_once(function, 3, 1, 1),
        ),
    ],
    mistakes=[
        _axial(
            "After attention in time the values are right but sit at the wrong positions: what comes back is (b s) f "
            "d. Reshape it to (b, s, f, d) first, then swap the two axes.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            return attend(x.transpose(1, 2).reshape(b * s, f, d)).reshape(b, f, s, d)
            """,
        ),
        _axial(
            "For time you reshape without moving axes, so a sequence holds neighbours in memory instead of one place "
            "in all frames. Swap frames and places first, then join.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            return attend(x.reshape(b * s, f, d)).reshape(b, f, s, d)
            """,
        ),
        _axial(
            "For time you reshape without moving axes going in, and swap axes coming out. Swap frames and places "
            "first, then join them; undo both afterwards.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            return attend(x.reshape(b * s, f, d)).reshape(b, s, f, d).transpose(1, 2)
            """,
        ),
        Mistake(
            "The axes are exchanged: along space means that the tokens of one frame see each other; along time, that "
            "the tokens of one place do.",
            code="""
            def axial_attention(x, attend, axis):
                other = {"space": "(b s) f d", "time": "(b f) s d"}.get(axis)
                if other is None:
                    raise ValueError(axis)
                return rearrange(attend(rearrange(x, f"b f s d -> {other}")), f"{other} -> b f s d", b=len(x))
            """,
        ),
        Mistake(
            "Both axes are treated as space: a token never sees its own place in another frame.",
            old=_TIME,
            new=_SPACE,
        ),
        Mistake(
            "Both axes are treated as time: a token never sees another place of its own frame.",
            old=_SPACE,
            new=_TIME,
        ),
        _axial(
            "Every token sees every other: this is joint attention. Only tokens of one frame (space) or one place "
            "(time) belong into a sequence.",
            "return attend(x.reshape(b, f * s, d)).reshape(b, f, s, d)",
        ),
        _axial(
            "Along time, clips see each other: the batch has joined the sequence. It belongs with the places.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            y = attend(rearrange(x, "b f s d -> s (b f) d"))
            return rearrange(y, "s (b f) d -> b f s d", b=b)
            """,
        ),
        _axial(
            "Along space, clips see each other: the batch has joined the sequence. It belongs with the frames.",
            f"""
            if axis == "time":
                return {_PLAIN_TIME}
            y = attend(rearrange(x, "b f s d -> f (b s) d"))
            return rearrange(y, "f (b s) d -> b f s d", b=b)
            """,
        ),
        _axial(
            "Clips see each other along both axes: the batch has joined the sequence. It belongs with the axis that "
            "does not look.",
            """
            if axis == "space":
                return rearrange(attend(rearrange(x, "b f s d -> f (b s) d")), "f (b s) d -> b f s d", b=b)
            return rearrange(attend(rearrange(x, "b f s d -> s (b f) d")), "s (b f) d -> b f s d", b=b)
            """,
        ),
        _axial(
            "The sequences go in as (f b) or (s b) and come out as (b f) or (b s): frames and clips change places. "
            "Fold and unfold in one order.",
            """
            if axis == "space":
                return rearrange(attend(rearrange(x, "b f s d -> (f b) s d")), "(b f) s d -> b f s d", b=b)
            return rearrange(attend(rearrange(x, "b f s d -> (s b) f d")), "(b s) f d -> b f s d", b=b)
            """,
        ),
        _axial(
            "The input is added. What comes back is attention's answer alone; who wants a residual adds it outside.",
            f"""
            if axis == "space":
                return x + {_PLAIN_SPACE}
            return x + {_PLAIN_TIME}
            """,
        ),
        _axial(
            "You attend along both axes, one after the other, whatever `axis` says. One call looks along one axis.",
            f"""
            x = {_PLAIN_SPACE}
            return {_PLAIN_TIME}
            """,
        ),
        _axial(
            "You attend twice along the same axis. Once.",
            f"""
            if axis == "space":
                x = {_PLAIN_SPACE}
                return {_PLAIN_SPACE}
            x = {_PLAIN_TIME}
            return {_PLAIN_TIME}
            """,
        ),
        _axial(
            "Right values, but `attend` runs once for every frame or place. The trick is to fold them into the batch, "
            "so that one call does all of them: attention never mixes its batch.",
            """
            if axis == "space":
                return torch.stack([attend(x[:, i]) for i in range(f)], dim=1)
            return torch.stack([attend(x[:, :, i]) for i in range(s)], dim=2)
            """,
        ),
        _axial(
            "Right values, but `attend` runs once for every clip. Fold the clips into the batch, too: one call does "
            "all.",
            """
            if axis == "space":
                return torch.stack([attend(clip) for clip in x])
            return torch.stack([attend(clip.transpose(0, 1)).transpose(0, 1) for clip in x])
            """,
        ),
        _axial(
            "Right values, but `attend` runs more than once: one call is thrown away, or loops run over clips *and* "
            "frames. One call does all, and its answer is the result.",
            f"""
            attend(x[:, 0])
            return {_PLAIN_SPACE} if axis == "space" else {_PLAIN_TIME}
            """,
        ),
        _axial(
            "Along time `attend` is never called: x comes back as it was.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            return x.transpose(1, 2).transpose(1, 2).clone()
            """,
        ),
        _axial(
            "Along time the sequences go in as (b s) and come out as (s b): places and clips change places. Fold and "
            "unfold in one order.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            return rearrange(attend(rearrange(x, "b f s d -> (b s) f d")), "(s b) f d -> b f s d", b=b)
            """,
        ),
        _axial(
            "Along time the sequences go in as (s b) and come out as (b s): clips and places change places. Undo on "
            "the way back what you did on the way in.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            return rearrange(attend(rearrange(x, "b f s d -> (s b) f d")), "(b s) f d -> b f s d", b=b)
            """,
        ),
        _axial(
            "The places are rolled on their way to `attend`, and back after it: an attention that minds the order "
            "begins at the wrong one.",
            f"""
            if axis == "time":
                return {_PLAIN_TIME}
            x = x.roll(1, 2)
            return {_PLAIN_SPACE}.roll(-1, 2)
            """,
        ),
        _axial(
            "The axis that does not look is averaged away before attention: all frames (or places) get the same "
            "answer.",
            """
            if axis == "space":
                return attend(x.mean(1))[:, None].expand(b, f, s, d)
            return attend(x.mean(2))[:, :, None].expand(b, f, s, d)
            """,
        ),
        _axial(
            "Only the first frame (or place) is attended to and its answer copied to the others. Every one has a "
            "sequence of its own.",
            """
            if axis == "space":
                return attend(x[:, 0])[:, None].expand(b, f, s, d)
            return attend(x[:, :, 0])[:, :, None].expand(b, f, s, d)
            """,
        ),
        _axial(
            "The sequences come back as they are, (n, tokens, d). Bring them back to the grid (b, f, s, d).",
            """
            if axis == "space":
                return attend(x.reshape(b * f, s, d))
            return attend(x.transpose(1, 2).reshape(b * s, f, d))
            """,
        ),
        _axial(
            "After attention in time places and frames stay swapped, (b, s, f, d). Swap them back.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            return attend(x.transpose(1, 2).reshape(b * s, f, d)).reshape(b, s, f, d)
            """,
        ),
        _axial(
            "The result is flattened to (b, f s, d). The grid keeps its two axes.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}.flatten(1, 2)
            return {_PLAIN_TIME}.flatten(1, 2)
            """,
        ),
        _axial(
            "Places go in backwards, or come out so: an attention that minds the order reads them from the end.",
            f"""
            x = x.flip(2)
            y = {_PLAIN_SPACE} if axis == "space" else {_PLAIN_TIME}
            return y.flip(2)
            """,
        ),
        _axial(
            "Frames go in backwards, or come out so: an attention that minds the order reads time from the end.",
            f"""
            x = x.flip(1)
            y = {_PLAIN_SPACE} if axis == "space" else {_PLAIN_TIME}
            return y.flip(1)
            """,
        ),
        _axial(
            "The grid itself is handed to `attend`, with four axes. It knows sequences only: (n, tokens, d).",
            """
            if axis == "space":
                return attend(x)
            return attend(x.transpose(1, 2)).transpose(1, 2)
            """,
        ),
        _axial(
            "The channels look instead of the tokens: you handed over (n, d, tokens). Channels come last.",
            """
            if axis == "space":
                return attend(x.reshape(b * f, s, d).mT).mT.reshape(b, f, s, d)
            y = x.transpose(1, 2).reshape(b * s, f, d)
            return attend(y.mT).mT.reshape(b, s, f, d).transpose(1, 2)
            """,
        ),
        _axial(
            "No gradient comes back to x: `.detach()`, `.data` or `no_grad` stands in the way.",
            f"""
            x = x.detach()
            return {_PLAIN_SPACE} if axis == "space" else {_PLAIN_TIME}
            """,
        ),
        _axial(
            "The answer is written into x. Leave the input as it is.",
            f"""
            x.data.copy_({_PLAIN_SPACE} if axis == "space" else {_PLAIN_TIME})
            return x
            """,
        ),
        _axial(
            "Axes of size 1 vanish: `squeeze` (or an index) drops them. A clip of one frame keeps its axis.",
            f"""
            y = {_PLAIN_SPACE} if axis == "space" else {_PLAIN_TIME}
            return y.squeeze(1).squeeze(1)
            """,
        ),
        _axial(
            "Right but for the refusal: you mend the name first (lower case, no blanks). The contract knows two names, "
            "letter by letter.",
            f"""
            axis = axis.lower().strip()
            if axis not in ("space", "time"):
                raise ValueError(axis)
            return {_PLAIN_TIME} if axis == "time" else {_PLAIN_SPACE}
            """,
            guard=False,
        ),
        _axial(
            "Right but for the refusal: other words for time, such as temporal, are let through.",
            f"""
            if axis == "space":
                return {_PLAIN_SPACE}
            if axis in ("time", "temporal", "t"):
                return {_PLAIN_TIME}
            raise ValueError(axis)
            """,
            guard=False,
        ),
        _axial(
            "Right but for the refusal: you look for a part of the name, such as its first letters. Compare all of it.",
            f"""
            if axis[:1] == "s":
                return {_PLAIN_SPACE}
            if axis[:1] == "t":
                return {_PLAIN_TIME}
            raise ValueError(axis)
            """,
            guard=False,
        ),
        _axial(
            "Right but for the refusal: `in` on one long string asks for a piece of it, and a piece of a name, or none "
            "at all, is no axis. Compare with ==, or put the names in a tuple.",
            f"""
            if axis not in "space or time":
                raise ValueError(axis)
            return {_PLAIN_TIME} if axis == "time" else {_PLAIN_SPACE}
            """,
            guard=False,
        ),
        _axial(
            "Right but for the refusal: whatever is not space counts as time. Another axis must be refused with a "
            "ValueError.",
            f'return {_PLAIN_SPACE} if axis == "space" else {_PLAIN_TIME}',
            guard=False,
        ),
        _axial(
            "Right but for the refusal: whatever is not time counts as space. Another axis must be refused with a "
            "ValueError.",
            f'return {_PLAIN_TIME} if axis == "time" else {_PLAIN_SPACE}',
            guard=False,
        ),
        Mistake(
            "Right but for the refusal: another axis falls through, and the result is None. Raise a ValueError.",
            old=_UNKNOWN,
            new="return None",
        ),
        Mistake(
            "Right but for the refusal: another axis gives x back unchanged. Raise a ValueError.",
            old=_UNKNOWN,
            new="return x",
        ),
        Mistake(
            "Right but for the refusal: another axis ends in a KeyError. Raise a ValueError, which says what is wrong "
            "with the *value*.",
            old=_UNKNOWN,
            new="raise KeyError(axis)",
        ),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError. Use `raise ValueError(...)`.",
            old=_UNKNOWN,
            new="raise AssertionError",
        ),
    ],
    variants=[
        Variant(
            "reshape and transpose",
            """
            def axial_attention(x, attend, axis):
                if axis not in {"space", "time"}:
                    raise ValueError(f"no such axis: {axis}")
                if axis == "time":
                    x = x.transpose(1, 2)
                rows = x.reshape(-1, *x.shape[2:])
                out = attend(rows).reshape(x.shape)
                return out.transpose(1, 2) if axis == "time" else out
            """,
        ),
        Variant(
            "movedim and flatten",
            """
            def axial_attention(x, attend, axis):
                looking = {"time": 1, "space": 2}.get(axis, 0)
                if not looking:
                    raise ValueError(axis)
                rows = x.movedim(looking, 2)
                y = attend(rows.flatten(0, 1).contiguous())
                return y.unflatten(0, rows.shape[:2]).movedim(2, looking)
            """,
        ),
        Variant(
            "places before clips",
            """
            def axial_attention(x, attend, axis):
                fold = {"space": "(f b) s d", "time": "(s b) f d"}
                if axis not in fold:
                    raise ValueError("'space' or 'time'")
                y = attend(rearrange(x, f"b f s d -> {fold[axis]}"))
                return rearrange(y, f"{fold[axis]} -> b f s d", b=x.shape[0])
            """,
        ),
        Variant(
            "a stack of sequences",
            """
            def axial_attention(x, attend, axis):
                b, f, s, _ = x.shape
                if axis == "space":
                    rows = torch.cat([x[:, i] for i in range(f)])
                    return torch.stack(attend(rows).chunk(f), dim=1)
                if axis == "time":
                    rows = torch.cat([x[:, :, i] for i in range(s)])
                    return torch.stack(attend(rows).chunk(s), dim=2)
                raise ValueError(axis)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Attention never mixes the elements of its batch. So whatever should *not* meet goes into the batch: for "
            "space the frames, for time the places. The axis that looks becomes the sequence.",
        ),
        Hint(
            "space is right, time is not",
            "For time the axis of frames must stand just before the channels: (b, f, s, d) -> (b, s, f, d), then join "
            "the first two. On the way back split the first axis into (b, s) and swap again.",
        ),
        Hint(
            "the values are right but at the wrong positions",
            "The way back must undo the way in, step by step and in reverse: split what you joined, swap what you "
            "swapped. `rearrange` with the two patterns exchanged does exactly that.",
        ),
        Hint(
            "show me nearly everything",
            'For time: rearrange(attend(rearrange(x, "b f s d -> (b s) f d")), "(b s) f d -> b f s d", b=len(x)). '
            "Space is the same with f and s exchanged. Then the refusal.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------ heads that share


def _heads(b: int, heads: int, f: int, s: int, d: int, dtype: torch.dtype = torch.float32):
    return lambda g: {name: randn(g, b, heads, f, s, d).to(dtype) for name in ("q", "k", "v")}


def _steep(g: torch.Generator) -> dict:
    """Scores near 2000 that differ little among the keys of a query, so that exp overflows and softmax does not."""
    inputs = _heads(2, 2, 3, 5, 7, torch.float64)(g)
    inputs["q"][..., 0] += 10
    inputs["k"][..., 0] += 500
    return inputs


def _steep_both_ways(g: torch.Generator) -> dict:
    """Scores near -2000 for some queries on all of their keys, and near 2000 on tokens that they must not see."""
    inputs = _heads(2, 2, 3, 5, 7, torch.float64)(g)
    inputs["q"][..., 0] += 10
    shift = torch.full((3, 5), 500.0)
    shift[0] = shift[:, 0] = -500.0
    inputs["k"][..., 0] += shift
    return inputs


_CHUNK = "zip(*(x.chunk(2, dim=1) for x in (q, k, v)), strict=True)"
_ALONG = 'fused_attention(*(rearrange(x, "b h f s d -> (b s) h f d") for x in of_time))[0]'
_INSIDE = 'fused_attention(*(rearrange(x, "b h f s d -> (b f) h s d") for x in of_space))[0]'
_BACK_TIME = 'rearrange(along_time, "(b s) h f d -> b h f s d", b=len(q))'
_BACK_SPACE = 'rearrange(in_frames, "(b f) h s d -> b h f s d", b=len(q))'
_JOIN_HEADS = "torch.cat([along_time, in_frames], dim=1)"
_ODD = "q.shape[1] % 2"

_EINSUM = """
def factorised_dot_product(q, k, v):
    b, h, f, s, d = q.shape
    if h % 2:
        raise ValueError("odd")
    n = h // 2
    time = torch.einsum("bhfsd,bhgsd->bhsfg", q[:, :n], k[:, :n]) / d**0.5
    space = torch.einsum("bhfsd,bhfrd->bhfsr", q[:, n:], k[:, n:]) / d**0.5
    time = torch.einsum("bhsfg,bhgsd->bhfsd", time.softmax(-1), v[:, :n])
    space = torch.einsum("bhfsr,bhfrd->bhfsd", space.softmax(-1), v[:, n:])
    return torch.cat([time, space], dim=1)
"""


def _dot(sentence: str, *changes: tuple[str, str]) -> Mistake:
    code = _EINSUM
    for old, new in changes:
        assert code.count(old) >= 1, old
        code = code.replace(old, new)
    return Mistake(sentence, code=code)


def _soft(weights: str, more: str = "") -> list[tuple[str, str]]:
    """A softmax by hand in place of the built-in one: ``weights`` made of the scores a, then divided by their sum."""
    by_hand = lambda a: f"(lambda a: {weights} / ({weights}.sum(-1, keepdim=True){more}))({a})"  # noqa: E731
    return [(f"{name}.softmax(-1)", by_hand(name)) for name in ("time", "space")]


_MASKED = """
def factorised_dot_product(q, k, v):
    b, h, f, s, d = q.shape
    if h % 2:
        raise ValueError("odd")
    frame, place = torch.arange(f * s) // s, torch.arange(f * s) % s
    same_frame, same_place = frame[:, None] == frame, place[:, None] == place
    keep = torch.stack([MASK] * h)[None]
    weights = (q.flatten(2, 3) @ k.flatten(2, 3).mT / d**0.5).masked_fill(~keep, -math.inf).softmax(-1)
    return (weights @ v.flatten(2, 3)).unflatten(2, (f, s))
"""

DOT = Exercise(
    target=factorised_dot_product,
    minutes=20,
    cases=[
        Case("4 heads, 5 frames of 7 places", _heads(2, 4, 5, 7, 3)),
        Case("2 heads, more frames than places", _heads(3, 2, 7, 5, 11)),
        Case("6 heads", _heads(2, 6, 3, 5, 7)),
        Case("heads, frames, places and channels are all 4", _heads(4, 4, 4, 4, 4)),
        Case("as many frames as places", _heads(2, 2, 3, 3, 5)),
        Case("one frame", _heads(2, 4, 1, 5, 3)),
        Case("one place", _heads(2, 4, 5, 1, 3)),
        Case("scores in the thousands", _steep),
        Case("scores of both signs in the thousands", _steep_both_ways),
        Case("in double precision", _heads(2, 4, 3, 5, 7, dtype=torch.float64)),
        Case("a single head", _heads(2, 1, 5, 7, 4)),
        Case("3 heads", _heads(2, 3, 5, 7, 4)),
        Case("5 heads of 6 channels", _heads(2, 5, 2, 3, 6)),
    ],
    mistakes=[
        _dot(
            "The halves are exchanged: the *first* half of the heads looks along time, the second within the frame.",
            ("q[:, :n]", "q[:, A]"),
            ("k[:, :n]", "k[:, A]"),
            ("v[:, :n]", "v[:, A]"),
            ("q[:, n:]", "q[:, :n]"),
            ("k[:, n:]", "k[:, :n]"),
            ("v[:, n:]", "v[:, :n]"),
            ("[:, A]", "[:, n:]"),
            ("cat([time, space]", "cat([space, time]"),
        ),
        _dot(
            "The halves are joined in the wrong order: the heads that looked along time come first, as they did in q.",
            ("cat([time, space]", "cat([space, time]"),
        ),
        _dot(
            "Even heads look along time and odd ones within the frame. The contract has the first half and the second "
            "half.",
            ("[:, :n]", "[:, 0::2]"),
            ("[:, n:]", "[:, 1::2]"),
            ("return torch.cat([time, space], dim=1)", "return torch.stack([time, space], dim=2).flatten(1, 2)"),
        ),
        _dot(
            "Even heads look along time and odd ones within the frame, and the result lists time first. The contract "
            "has the first half and the second half, each head in its old place.",
            ("[:, :n]", "[:, 0::2]"),
            ("[:, n:]", "[:, 1::2]"),
        ),
        _dot(
            "The heads are right, but come back interleaved. Put the second half behind the first.",
            ("return torch.cat([time, space], dim=1)", "return torch.stack([time, space], dim=2).flatten(1, 2)"),
        ),
        Mistake(
            "You split the channels of every head, not the heads. Each head keeps its full width; half of the *heads* "
            "look along time.",
            code="""
            def factorised_dot_product(q, k, v):
                if q.shape[1] % 2:
                    raise ValueError("odd")
                n = (q.shape[-1] + 1) // 2

                def attend(a, b, c, fold):
                    y = fused_attention(*(rearrange(x, f"b h f s d -> {fold}") for x in (a, b, c)))[0]
                    return rearrange(y, f"{fold} -> b h f s d", b=len(q))

                time = attend(q[..., :n], k[..., :n], v[..., :n], "(b s) h f d")
                space = attend(q[..., n:], k[..., n:], v[..., n:], "(b f) h s d")
                return torch.cat([time, space], dim=-1)
            """,
        ),
        _dot(
            "Every head looks along both axes and the two answers are added. The work is shared: each half of the "
            "heads looks along one axis.",
            ("[:, :n]", ""),
            ("[:, n:]", ""),
            ("torch.cat([time, space], dim=1)", "time + space"),
        ),
        _dot(
            "Every head looks along both axes and the two answers are averaged. The work is shared: each half of the "
            "heads looks along one axis.",
            ("[:, :n]", ""),
            ("[:, n:]", ""),
            ("torch.cat([time, space], dim=1)", "(time + space) / 2"),
        ),
        _dot(
            "Every head looks along both axes, and the result has twice as many heads. Half of the heads look along "
            "time, the others within the frame.",
            ("[:, :n]", ""),
            ("[:, n:]", ""),
        ),
        _dot(
            "The answers of the two halves are added. Each half owns half of the heads: put them behind each other.",
            ("torch.cat([time, space], dim=1)", "time + space"),
        ),
        _dot(
            "The halves are joined along the channels. They are heads: join along the axis of heads.",
            ("cat([time, space], dim=1)", "cat([time, space], dim=-1)"),
        ),
        Mistake(
            "Both halves look along time. The second looks within its frame.",
            old=_INSIDE,
            new=_INSIDE.replace("(b f) h s d", "(b s) h f d")
            + ".unflatten(0, (len(q), -1)).permute(0, 3, 2, 1, 4).flatten(0, 1)",
        ),
        Mistake(
            "Both halves look within their frame. The first looks along time.",
            old=_ALONG,
            new=_ALONG.replace("(b s) h f d", "(b f) h s d")
            + ".unflatten(0, (len(q), -1)).permute(0, 3, 2, 1, 4).flatten(0, 1)",
        ),
        _dot("No scale: the scores are not divided by √d.", (" / d**0.5", "")),
        _dot(
            "You divide by √(2d). Halving the heads does not change the width of a head.", ("d**0.5", "(2 * d) ** 0.5")
        ),
        _dot(
            "You divide by the square root of the whole width, heads times d. Each head is scaled by its own width.",
            ("d**0.5", "(h * d) ** 0.5"),
        ),
        _dot("You divide by d instead of √d.", ("d**0.5", "d")),
        _dot("You multiply by √d. The scores are divided by it.", ("/ d**0.5", "* d**0.5")),
        _dot("You divide by √(d / 2). Each head keeps its full width d.", ("d**0.5", "(d / 2) ** 0.5")),
        _dot(
            "The scores are divided by the square root of the number of keys. It is the width of a head, d.",
            ("k[:, :n]) / d**0.5", "k[:, :n]) / f**0.5"),
            ("k[:, n:]) / d**0.5", "k[:, n:]) / s**0.5"),
        ),
        _dot(
            "The softmax runs over the queries. Each query's weights over its keys sum to one: the last axis of the "
            "scores.",
            ("softmax(-1)", "softmax(-2)"),
        ),
        _dot("There is no softmax: scores are no weights.", (".softmax(-1)", "")),
        _dot(
            "The softmax overflows: exp of a score in the thousands is inf. `softmax` subtracts the largest score "
            "first.",
            ("time.softmax(-1)", "(time.exp() / time.exp().sum(-1, keepdim=True))"),
            ("space.softmax(-1)", "(space.exp() / space.exp().sum(-1, keepdim=True))"),
        ),
        _dot(
            "The largest score of *all* queries is subtracted before exp, so where one query's scores are far below it "
            "its weights are 0 / 0. Subtract the largest of each query: `amax(-1, keepdim=True)`.",
            *_soft("(a - a.max()).exp()"),
        ),
        _dot(
            "The scores are clamped before exp, so keys with large scores all look alike. Subtract each query's "
            "largest score instead: that changes nothing.",
            *_soft("a.clamp(-50, 50).exp()"),
        ),
        _dot(
            "A small number is added to the sum of the weights, so they do not quite sum to one. After subtracting the "
            "largest score the sum is at least 1: nothing is needed.",
            *_soft("(a - a.amax(-1, keepdim=True)).exp()", " + 1e-3"),
        ),
        _dot(
            "A tenth of the weights is dropped. There is no dropout here.",
            (".softmax(-1)", ".softmax(-1).bernoulli(0.9)"),
        ),
        Mistake(
            "Your mask puts a finite number, such as -1000, in the place of forbidden scores. Allowed ones can lie "
            "below it; put -inf there.",
            code=_MASKED.replace("[MASK] * h", "[same_place] * (h // 2) + [same_frame] * (h // 2)").replace(
                "-math.inf", "-1e3"
            ),
        ),
        Mistake(
            "Your mask is added as -1000, which large scores outweigh: add -inf, or use `masked_fill`.",
            code=_MASKED.replace("[MASK] * h", "[same_place] * (h // 2) + [same_frame] * (h // 2)").replace(
                ".masked_fill(~keep, -math.inf)", ".add(~keep * -1e3)"
            ),
        ),
        Mistake(
            "Scores are multiplied by the mask: forbidden ones become 0, which exp makes a 1. They must become -inf.",
            code=_MASKED.replace("[MASK] * h", "[same_place] * (h // 2) + [same_frame] * (h // 2)").replace(
                ".masked_fill(~keep, -math.inf)", ".mul(keep)"
            ),
        ),
        Mistake(
            "The mask is the wrong way round: what must be seen is hidden, and everything else is seen.",
            code=_MASKED.replace("[MASK] * h", "[same_place] * (h // 2) + [same_frame] * (h // 2)").replace(
                "~keep", "keep"
            ),
        ),
        Mistake(
            "All heads look within the frame and then, at what came back, along time. Each head looks along one axis.",
            code="""
            def factorised_dot_product(q, k, v):
                if q.shape[1] % 2:
                    raise ValueError("odd")
                inside = F.scaled_dot_product_attention(q, k, v)
                along = (x.transpose(2, 3) for x in (q, k, inside))
                return F.scaled_dot_product_attention(*along).transpose(2, 3)
            """,
        ),
        Mistake(
            "Along time clips see each other: the batch has joined the keys. It stays an axis that never meets.",
            code="""
            def factorised_dot_product(q, k, v):
                if q.shape[1] % 2:
                    raise ValueError("odd")
                n = q.shape[1] // 2
                time = F.scaled_dot_product_attention(
                    *(rearrange(x[:, :n], "b h f s d -> h s (b f) d") for x in (q, k, v))
                )
                space = F.scaled_dot_product_attention(*(x[:, n:] for x in (q, k, v)))
                return torch.cat([rearrange(time, "h s (b f) d -> b h f s d", b=len(q)), space], dim=1)
            """,
        ),
        Mistake(
            "Heads that look along time see each other: the axis of heads has joined the keys. Each head attends by "
            "itself.",
            code="""
            def factorised_dot_product(q, k, v):
                if q.shape[1] % 2:
                    raise ValueError("odd")
                n = q.shape[1] // 2
                time = F.scaled_dot_product_attention(
                    *(rearrange(x[:, :n], "b h f s d -> b s (h f) d") for x in (q, k, v))
                )
                space = F.scaled_dot_product_attention(*(x[:, n:] for x in (q, k, v)))
                return torch.cat([rearrange(time, "b s (h f) d -> b h f s d", h=n), space], dim=1)
            """,
        ),
        Mistake(
            "Along time the answers come back with places before frames, (b, heads, s, f, d), and `reshape` only "
            "renames the axes. Swap the two: `.transpose(2, 3)`.",
            code="""
            def factorised_dot_product(q, k, v):
                if q.shape[1] % 2:
                    raise ValueError("odd")
                n = q.shape[1] // 2
                time = F.scaled_dot_product_attention(*(x[:, :n].transpose(2, 3) for x in (q, k, v)))
                space = F.scaled_dot_product_attention(*(x[:, n:] for x in (q, k, v)))
                return torch.cat([time.reshape(space.shape), space], dim=1)
            """,
        ),
        Mistake(
            "All heads see all tokens: this is joint attention (Model 1).",
            code=_MASKED.replace("MASK", "same_frame | True"),
        ),
        Mistake(
            "Every head sees a cross, its own frame and its own place together in one softmax. Here each head sees one "
            "of the two.",
            code=_MASKED.replace("MASK", "same_frame | same_place"),
        ),
        Mistake(
            "No head sees more than its own token: frame *and* place must agree in your mask.",
            code=_MASKED.replace("MASK", "same_frame & same_place"),
        ),
        _dot(
            "A token does not see itself. Its own place in its own frame is among the keys of both halves.",
            (
                '    time = torch.einsum("bhsfg',
                "    if f > 1:\n        time = time.masked_fill(torch.eye(f, dtype=torch.bool), -1e9)\n"
                "    if s > 1:\n        space = space.masked_fill(torch.eye(s, dtype=torch.bool), -1e9)\n"
                '    time = torch.einsum("bhsfg',
            ),
        ),
        _dot(
            "Time is causal: a query does not see later frames. It sees its own place in *all* frames.",
            (
                '    time = torch.einsum("bhsfg',
                "    time = time.masked_fill(torch.ones(f, f, dtype=torch.bool).triu(1), -math.inf)\n"
                '    time = torch.einsum("bhsfg',
            ),
        ),
        _dot(
            "Queries of one half meet the keys of the other. q, k and v of a head stay together.",
            ("k[:, :n]", "k[:, A]"),
            ("k[:, n:]", "k[:, :n]"),
            ("k[:, A]", "k[:, n:]"),
        ),
        _dot(
            "The values of the two halves are exchanged. q, k and v of a head stay together.",
            ("v[:, :n]", "v[:, A]"),
            ("v[:, n:]", "v[:, :n]"),
            ("v[:, A]", "v[:, n:]"),
        ),
        _dot("Keys are used as values. What is handed over is v.", ("v[:, :n]", "k[:, :n]"), ("v[:, n:]", "k[:, n:]")),
        _dot(
            "Queries and keys are exchanged.",
            ("q[:, :n], k[:, :n]", "k[:, :n], q[:, :n]"),
            ("q[:, n:], k[:, n:]", "k[:, n:], q[:, n:]"),
        ),
        Mistake(
            "The answers along time are right but at the wrong positions: they come back as (b s) h f d. Move the "
            "axes, do not just reshape.",
            old=_BACK_TIME,
            new="along_time.reshape(len(q), -1, *q.shape[2:])",
        ),
        Mistake(
            "The answers within the frames are right but at the wrong positions: they come back as (b f) h s d. Move "
            "the axes, do not just reshape.",
            old=_BACK_SPACE,
            new="in_frames.reshape(len(q), -1, *q.shape[2:])",
        ),
        Mistake(
            "Both answers are right but at the wrong positions: the batch comes back with places or frames in it. Move "
            "the axes, do not just reshape.",
            code="""
            def factorised_dot_product(q, k, v):
                if q.shape[1] % 2:
                    raise ValueError("odd")
                n = q.shape[1] // 2
                time = fused_attention(*(x[:, :n].permute(0, 3, 1, 2, 4).flatten(0, 1) for x in (q, k, v)))[0]
                space = fused_attention(*(x[:, n:].permute(0, 2, 1, 3, 4).flatten(0, 1) for x in (q, k, v)))[0]
                half = q[:, :n].shape
                return torch.cat([time.reshape(half), space.reshape(half)], dim=1)
            """,
        ),
        Mistake(
            "You reshape q, k and v without moving axes, so along time a sequence holds neighbours in memory. Bring "
            "the axis of frames before the channels first.",
            old=_ALONG,
            new="fused_attention(*(x.reshape(len(q) * q.shape[3], -1, q.shape[2], q.shape[4]) for x in of_time))[0]",
        ),
        Mistake(
            "You reshape q, k and v without moving axes, so within the frames heads and frames are mixed. Bring the "
            "axis of frames to the batch first.",
            old=_INSIDE,
            new="fused_attention(*(x.reshape(len(q) * q.shape[2], -1, q.shape[3], q.shape[4]) for x in of_space))[0]",
        ),
        Mistake(
            "Heads of one half see each other: the axis of heads has joined the keys. Each head attends by itself.",
            code="""
            def factorised_dot_product(q, k, v):
                b, h, f, s, d = q.shape
                if h % 2:
                    raise ValueError("odd")
                n = h // 2
                time = [rearrange(x[:, :n], "b h f s d -> (b s) (h f) d") for x in (q, k, v)]
                space = [rearrange(x[:, n:], "b h f s d -> (b f) (h s) d") for x in (q, k, v)]
                time, space = F.scaled_dot_product_attention(*time), F.scaled_dot_product_attention(*space)
                time = rearrange(time, "(b s) (h f) d -> b h f s d", b=b, h=n)
                return torch.cat([time, rearrange(space, "(b f) (h s) d -> b h f s d", b=b, h=n)], dim=1)
            """,
        ),
        Mistake(
            "You split off two heads, however many there are. It is half of them.",
            old=_CHUNK,
            new="zip(*(x.tensor_split([2], dim=1) for x in (q, k, v)), strict=True)",
        ),
        Mistake(
            "You split off one head, however many there are. It is half of them.",
            old=_CHUNK,
            new="zip(*(x.tensor_split([1], dim=1) for x in (q, k, v)), strict=True)",
        ),
        Mistake(
            "The result has its heads behind the frames and places. Keep the order of the axes, (b, heads, f, s, d).",
            old=_JOIN_HEADS,
            new=f"{_JOIN_HEADS}.permute(0, 2, 3, 1, 4)",
        ),
        Mistake(
            "The heads are merged into one axis of channels. That comes later, before W_O; keep (b, heads, f, s, d).",
            old=_JOIN_HEADS,
            new=f'rearrange({_JOIN_HEADS}, "b h f s d -> b (f s) (h d)")',
        ),
        Mistake(
            "The grid is flattened. Keep frames and places as two axes, (b, heads, f, s, d).",
            old=_JOIN_HEADS,
            new=f"{_JOIN_HEADS}.flatten(2, 3)",
        ),
        _dot(
            "The weights are cut off from the gradient: q and k would never learn.",
            (".softmax(-1)", ".softmax(-1).detach()"),
        ),
        _dot(
            "No gradient comes back: the result is detached.",
            ("return torch.cat([time, space], dim=1)", "return torch.cat([time, space], dim=1).detach()"),
        ),
        _dot(
            "The result is float32 whatever the inputs were. Keep their dtype.",
            ("    n = h // 2", "    n = h // 2\n    q, k, v = q.float(), k.float(), v.float()"),
        ),
        Mistake(
            "Right but for the refusal: an odd number of heads must be refused with a ValueError. Yours gives one half "
            "a head more.",
            old=_ODD,
            new="False",
        ),
        _dot("A single head is refused, 3 are not. Every odd number is refused.", ("if h % 2", "if h < 2")),
        _dot(
            "Right but for the refusal: `h // 2` rounds an odd number of heads down, and the rest looks within the "
            "frame. Refuse it with a ValueError.",
            ('    if h % 2:\n        raise ValueError("odd")\n', ""),
        ),
        _dot(
            "Right but for the refusal: `assert` raises AssertionError. Use `raise ValueError(...)`.",
            ('    if h % 2:\n        raise ValueError("odd")\n', "    assert h % 2 == 0\n"),
        ),
        _dot("You ask whether the *width* is even. It is the number of heads, axis 1.", ("if h % 2", "if d % 2")),
        _dot("Numbers of heads that are no multiple of 4 are refused. Two heads split well.", ("if h % 2", "if h % 4")),
    ],
    variants=[
        Variant("einsum", _EINSUM),
        Variant(
            "joint attention with two masks",
            """
            def factorised_dot_product(q, k, v):
                b, h, f, s, d = q.shape
                if h % 2 == 1:
                    raise ValueError(f"{h} heads")
                frame = torch.arange(f).repeat_interleave(s)
                place = torch.arange(s).repeat(f)
                see_time, see_space = place[:, None] == place[None], frame[:, None] == frame[None]
                keep = torch.cat([see_time.expand(h // 2, -1, -1), see_space.expand(h // 2, -1, -1)])
                flat = [x.reshape(b, h, f * s, d) for x in (q, k, v)]
                return F.scaled_dot_product_attention(*flat, attn_mask=keep[None]).reshape(b, h, f, s, d)
            """,
        ),
        Variant(
            "transposes only: attention takes any number of leading axes",
            """
            def factorised_dot_product(q, k, v):
                heads = q.size(1)
                if heads % 2:
                    raise ValueError("an even number of heads, please")
                half = heads // 2

                def attend(a, b, c):
                    scores = a @ b.transpose(-1, -2) * a.size(-1) ** -0.5
                    return torch.softmax(scores, dim=-1) @ c

                time = attend(*(x[:, :half].transpose(2, 3) for x in (q, k, v))).transpose(2, 3)
                space = attend(*(x[:, half:] for x in (q, k, v)))
                return torch.cat((time, space), 1)
            """,
        ),
        Variant(
            "a loop over heads",
            """
            def factorised_dot_product(q, k, v):
                if q.shape[1] % 2 != 0:
                    raise ValueError("odd number of heads")
                out = []
                for i in range(q.shape[1]):
                    one = [x[:, i] for x in (q, k, v)]  # b f s d
                    if i < q.shape[1] // 2:
                        one = [x.transpose(1, 2) for x in one]
                        out.append(F.scaled_dot_product_attention(*one).transpose(1, 2))
                    else:
                        out.append(F.scaled_dot_product_attention(*one))
                return torch.stack(out, dim=1)
            """,
        ),
        Variant(
            "written into an empty tensor, place by place and frame by frame",
            """
            def factorised_dot_product(q, k, v):
                b, h, f, s, d = q.shape
                n, rest = divmod(h, 2)
                if rest:
                    raise ValueError("odd number of heads")
                out = torch.zeros_like(v)
                for i in range(s):
                    out[:, :n, :, i] = attention_of(q[:, :n, :, i], k[:, :n, :, i], v[:, :n, :, i])
                for i in range(f):
                    out[:, n:, i] = attention_of(q[:, n:, i], k[:, n:, i], v[:, n:, i])
                return out

            def attention_of(q, k, v):
                weights = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
                return torch.einsum("bhqk,bhkd->bhqd", weights.softmax(-1), v)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "First split the heads in two halves. For each half it is exercise 2 again: what should not meet goes into "
            "the batch. Any number of axes may stand before the last two of `F.scaled_dot_product_attention`.",
        ),
        Hint(
            "the half in space is right, the half in time is not",
            "Attention runs over the last axis but one. (b, heads, f, s, d) is ready for space; for time, swap f and s "
            "before and after.",
        ),
        Hint(
            "everything is nearly right",
            "Each head keeps its own q, k and v, its full width d in the scale, and its place among the heads.",
        ),
        Hint(
            "show me nearly everything",
            "half = heads // 2. Along time: F.scaled_dot_product_attention of q, k, v [:, :half].transpose(2, 3), then "
            "transpose back. Within frames: of [:, half:] as they are. torch.cat both along dim=1. First of all refuse "
            "an odd number of heads.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------- the block of Model 3

_AXIAL_BODY = """\
        x = x + self.along(self.norm_space(x), self.space, "space")
        x = x + self.along(self.norm_time(x), self.time, "time")
        return x + self.mlp(self.norm_mlp(x))
"""


def _block(body: str) -> str:
    return _with_body(AxialBlock, _AXIAL_BODY, body)


def _wrong_block(sentence: str, body: str) -> Mistake:
    return Mistake(sentence, code=_block(body))


def _stream(b: int, f: int, s: int, d: int = 12, scale: float = 1.0, shift: float = 0.0):
    return lambda g: dict(x=shift + scale * randn(g, b, f, s, d))


def _half_along(x: Tensor, attend: Callable, axis: str) -> Tensor:
    """To see that a block attends through what it was given."""
    return 0.5 * axial_attention(x, attend, axis) + 0.25 * x


_BLOCK = dict(d=12, heads=3, d_ff=19)

BLOCK = Exercise(
    target=AxialBlock,
    minutes=10,
    given=("__init__",),
    tolerance=5e-4,  # a bias of the keys has no gradient in theory, and rounding noise in practice
    cases=[
        Case("5 frames of 7 places", _stream(2, 5, 7), init=_BLOCK),
        Case("more frames than places", _stream(3, 7, 2), init=_BLOCK),
        Case("clips, frames and places are all 3", _stream(3, 3, 3), init=_BLOCK),
        Case("one frame", _stream(2, 1, 5), init=_BLOCK),
        Case("one place", _stream(2, 5, 1), init=_BLOCK),
        Case("a stream far from zero", _stream(2, 3, 5, scale=5.0, shift=3.0), init=_BLOCK),
        Case("another way along the axes", _stream(2, 3, 5), init=_BLOCK | dict(along=_half_along)),
        Case("many sizes are 4", _stream(4, 4, 4, d=4), init=dict(d=4, heads=2, d_ff=4)),
    ],
    mistakes=[
        _wrong_block(
            "Time comes first. Equations 4 to 6 have space, time, MLP in this order. (The paper's code has the other "
            "one, and the paper reports no difference.)",
            """
x = x + self.along(self.norm_time(x), self.time, "time")
x = x + self.along(self.norm_space(x), self.space, "space")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "The MLP runs twice, after each attention. Model 3 has one, at the end.",
            """
x = x + self.along(self.norm_space(x), self.space, "space")
x = x + self.mlp(self.norm_mlp(x))
x = x + self.along(self.norm_time(x), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "The MLP stands between the two attentions. It comes last.",
            """
x = x + self.along(self.norm_space(x), self.space, "space")
x = x + self.mlp(self.norm_mlp(x))
return x + self.along(self.norm_time(x), self.time, "time")
""",
        ),
        _wrong_block(
            "The MLP comes first. It comes last, after both attentions.",
            """
x = x + self.mlp(self.norm_mlp(x))
x = x + self.along(self.norm_space(x), self.space, "space")
return x + self.along(self.norm_time(x), self.time, "time")
""",
        ),
        _wrong_block(
            "The two attentions run side by side: time reads the stream as it was before space. It must read the "
            "stream with space's output already added.",
            """
x = x + self.along(self.norm_space(x), self.space, "space") + self.along(self.norm_time(x), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "All three run side by side on the block's input. Each reads the stream so far.",
            """
out = x + self.along(self.norm_space(x), self.space, "space") + self.along(self.norm_time(x), self.time, "time")
return out + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "Time reads what space returned, without the stream: space's output must first be added to x.",
            """
y = self.along(self.norm_space(x), self.space, "space")
x = x + self.along(self.norm_time(y), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "One residual around both attentions: time reads what space returned, and the stream is added only after. "
            "Each attention has a residual of its own.",
            """
y = self.along(self.norm_space(x), self.space, "space")
y = y + self.along(self.norm_time(y), self.time, "time")
x = x + y
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "The last sum goes back to the block's input, so the attentions reach the result only through the MLP.",
            """
y = x + self.along(self.norm_space(x), self.space, "space")
y = y + self.along(self.norm_time(y), self.time, "time")
return x + self.mlp(self.norm_mlp(y))
""",
        ),
        _wrong_block(
            "Time's output is added to the block's input, so what space found is lost.",
            """
y = x + self.along(self.norm_space(x), self.space, "space")
x = x + self.along(self.norm_time(y), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "This is post-norm: the norm stands outside the sum. Here each part reads a normalised copy, and the "
            "stream itself is never normalised.",
            """
x = self.norm_space(x + self.along(x, self.space, "space"))
x = self.norm_time(x + self.along(x, self.time, "time"))
return self.norm_mlp(x + self.mlp(x))
""",
        ),
        _wrong_block(
            "You normalise the stream itself. Only the copy that a part reads goes through its norm.",
            """
x = self.norm_space(x)
x = x + self.along(x, self.space, "space")
x = self.norm_time(x)
x = x + self.along(x, self.time, "time")
x = self.norm_mlp(x)
return x + self.mlp(x)
""",
        ),
        _wrong_block(
            "The norms come after the parts, inside the sum: x + norm(part(x)). It is x + part(norm(x)).",
            """
x = x + self.norm_space(self.along(x, self.space, "space"))
x = x + self.norm_time(self.along(x, self.time, "time"))
return x + self.norm_mlp(self.mlp(x))
""",
        ),
        _wrong_block(
            "There are no norms: each part must read the stream through its own.",
            """
x = x + self.along(x, self.space, "space")
x = x + self.along(x, self.time, "time")
return x + self.mlp(x)
""",
        ),
        _wrong_block(
            "The MLP reads the stream as it was before time. It must read the stream with time's output already added.",
            """
y = x + self.along(self.norm_space(x), self.space, "space")
x = y + self.along(self.norm_time(y), self.time, "time")
return x + self.mlp(self.norm_mlp(y))
""",
        ),
        _wrong_block(
            "The stream is added twice around space: once by you and once more. x + space's output is all.",
            """
x = x + (x + self.along(self.norm_space(x), self.space, "space"))
x = x + self.along(self.norm_time(x), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "The stream is added twice around each attention: x + (x + attention). Once.",
            """
x = x + (x + self.along(self.norm_space(x), self.space, "space"))
x = x + (x + self.along(self.norm_time(x), self.time, "time"))
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "`along` gets the raw stream, and the norm hides in the attention you hand over. It gets the normalised "
            "copy and the module itself: another `along` may do more than attend.",
            """
x = x + self.along(x, lambda y: self.space(self.norm_space(y)), "space")
x = x + self.along(x, lambda y: self.time(self.norm_time(y)), "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        Mistake("Space reads the raw stream. It must read `norm_space(x)`.", old="self.norm_space(x)", new="x"),
        Mistake("Time reads the raw stream. It must read `norm_time(x)`.", old="self.norm_time(x)", new="x"),
        Mistake("The MLP reads the raw stream. It must read `norm_mlp(x)`.", old="self.norm_mlp(x)", new="x"),
        Mistake(
            "`norm_space` is used for time as well. Each of the three has a norm of its own.",
            old="self.norm_time(x)",
            new="self.norm_space(x)",
        ),
        Mistake(
            "`norm_time` is used for the MLP as well. Each of the three has a norm of its own.",
            old="self.norm_mlp(x)",
            new="self.norm_time(x)",
        ),
        Mistake(
            "`norm_space` is used for the MLP as well. Each of the three has a norm of its own.",
            old="self.norm_mlp(x)",
            new="self.norm_space(x)",
        ),
        _wrong_block(
            "One norm does for all three. Each has its own, with weights of its own.",
            """
x = x + self.along(self.norm_space(x), self.space, "space")
x = x + self.along(self.norm_space(x), self.time, "time")
return x + self.mlp(self.norm_space(x))
""",
        ),
        _wrong_block(
            "The norms of space and time are exchanged.",
            """
x = x + self.along(self.norm_time(x), self.space, "space")
x = x + self.along(self.norm_space(x), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        Mistake(
            "One attention serves both axes. Model 3 has two, `space` and `time`, with weights of their own.",
            old="self.time, ",
            new="self.space, ",
        ),
        _wrong_block(
            "The attentions are exchanged: `space` looks along space and `time` along time.",
            """
x = x + self.along(self.norm_space(x), self.time, "space")
x = x + self.along(self.norm_time(x), self.space, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "The axes are exchanged: `space` looks along space and `time` along time.",
            """
x = x + self.along(self.norm_space(x), self.space, "time")
x = x + self.along(self.norm_time(x), self.time, "space")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        Mistake(
            "Both attentions look along space: a token never sees another frame.",
            old='self.time, "time"',
            new='self.time, "space"',
        ),
        Mistake(
            "Both attentions look along time: a token never sees another place.",
            old='self.space, "space"',
            new='self.space, "time"',
        ),
        _wrong_block(
            "Attention in time is missing.",
            """
x = x + self.along(self.norm_space(x), self.space, "space")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "Attention in space is missing.",
            """
x = x + self.along(self.norm_time(x), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "The MLP is missing: after the two attentions comes one small network on each token.",
            """
x = x + self.along(self.norm_space(x), self.space, "space")
return x + self.along(self.norm_time(x), self.time, "time")
""",
        ),
        Mistake(
            "The residual around space is missing: its output replaces the stream.",
            old="x = x + self.along(self.norm_space",
            new="x = self.along(self.norm_space",
        ),
        Mistake(
            "The residual around time is missing: its output replaces the stream.",
            old="x = x + self.along(self.norm_time",
            new="x = self.along(self.norm_time",
        ),
        Mistake(
            "The residual around the MLP is missing: its output replaces the stream.",
            old="return x + self.mlp",
            new="return self.mlp",
        ),
        _wrong_block(
            "No part is added to the stream: all three residuals are missing.",
            """
x = self.along(self.norm_space(x), self.space, "space")
x = self.along(self.norm_time(x), self.time, "time")
return self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "Only what the parts add comes back. The stream itself is part of the result.",
            """
y = x + self.along(self.norm_space(x), self.space, "space")
y = y + self.along(self.norm_time(y), self.time, "time")
return y + self.mlp(self.norm_mlp(y)) - x
""",
        ),
        _wrong_block(
            "The two attentions are averaged. They are added.",
            """
a = self.along(self.norm_space(x), self.space, "space")
y = x + a
b = self.along(self.norm_time(y), self.time, "time")
y = x + (a + b) / 2
return y + self.mlp(self.norm_mlp(y))
""",
        ),
        _wrong_block(
            "A norm comes last. The block returns the raw stream; whoever reads it normalises it.",
            """
x = x + self.along(self.norm_space(x), self.space, "space")
x = x + self.along(self.norm_time(x), self.time, "time")
return self.norm_mlp(x + self.mlp(self.norm_mlp(x)))
""",
        ),
        _wrong_block(
            "`along` is not used: the library's `axial_attention` is called instead. The block was handed its way "
            "along the axes: `self.along`.",
            """
x = x + axial_attention(self.norm_space(x), self.space, "space")
x = x + axial_attention(self.norm_time(x), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        *(
            _wrong_block(
                f"For {axis} `along` is not used: the library's `axial_attention` is called instead. Both attentions "
                "run through `self.along`.",
                f"""
x = x + {one}(self.norm_space(x), self.space, "space")
x = x + {two}(self.norm_time(x), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
            )
            for axis, one, two in (
                ("space", "axial_attention", "self.along"),
                ("time", "self.along", "axial_attention"),
            )
        ),
        _wrong_block(
            "All tokens see each other in both attentions: the grid was flattened. Go through `self.along`.",
            """
flat = lambda attend, y: attend(y.flatten(1, 2)).unflatten(1, y.shape[1:3])
x = x + flat(self.space, self.norm_space(x))
x = x + flat(self.time, self.norm_time(x))
return x + self.mlp(self.norm_mlp(x))
""",
        ),
        _wrong_block(
            "You drop a tenth of what is added while training. This block has no dropout.",
            """
drop = lambda y: nn.functional.dropout(y, 0.1, self.training)
x = x + drop(self.along(self.norm_space(x), self.space, "space"))
x = x + drop(self.along(self.norm_time(x), self.time, "time"))
return x + drop(self.mlp(self.norm_mlp(x)))
""",
        ),
        _wrong_block(
            "The result is flattened to (b, f s, d). The grid keeps its axes, so that the next block can go along "
            "them.",
            """
x = x + self.along(self.norm_space(x), self.space, "space")
x = x + self.along(self.norm_time(x), self.time, "time")
return (x + self.mlp(self.norm_mlp(x))).flatten(1, 2)
""",
        ),
        _wrong_block(
            "Space is added in place (`+=` on the input), so the caller's x changes. Make a new tensor: x = x + ...",
            """
x.data += self.along(self.norm_space(x), self.space, "space").detach()
x = x + self.along(self.norm_time(x), self.time, "time")
return x + self.mlp(self.norm_mlp(x))
""",
        ),
    ],
    variants=[
        Variant(
            "step by step",
            _block("""
found = self.along(self.norm_space(x), self.space, "space")
stream = torch.add(x, found)
found = self.along(self.norm_time(stream), self.time, "time")
stream = torch.add(stream, found)
hidden = self.norm_mlp(stream)
for layer in self.mlp:
    hidden = layer(hidden)
return stream + hidden
"""),
        ),
        Variant(
            "a loop over the axes",
            _block("""
for axis in ("space", "time"):
    norm, attend = getattr(self, "norm_" + axis), getattr(self, axis)
    x = self.along(norm(x), attend, axis) + x
return self.mlp(self.norm_mlp(x)) + x
"""),
        ),
        Variant(
            "the residual as a function",
            _block("""
def add(stream, part):
    return stream + part(stream)

y = add(x, lambda z: self.along(self.norm_space(z), self.space, "space"))
y = add(y, lambda z: self.along(self.norm_time(z), self.time, axis="time"))
return add(y, lambda z: self.mlp(self.norm_mlp(z)))
"""),
        ),
    ],
    hints=[
        Hint(
            "how does the pre-norm block of lesson 04 change?",
            "It has one line more. x + attention(norm(x)) becomes two such lines, one along each axis, each with an "
            "attention and a norm of its own. The line with the MLP stays as it was.",
        ),
        Hint(
            "how do I call `along`?",
            'Like your exercise 2: self.along(normalised stream, self.space, "space").',
        ),
        Hint(
            "show me nearly everything",
            'First line: x = x + self.along(self.norm_space(x), self.space, "space"). The second is the same for time, '
            "and the third is the MLP's, which is returned.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------ Model 2

_FE_BODY = """\
        b, f = x.shape[:2]
        if f != len(self.time_positions):
            raise ValueError(f"this encoder knows {len(self.time_positions)} places in time, not {f}")
        frames = self.encoder(rearrange(x, "b f s d -> (b f) s d"))
        return self.time_encoder(rearrange(frames, "(b f) d -> b f d", b=b) + self.time_positions)
"""
_WRONG_F = "f != len(self.time_positions)"
_SUMMARY = 'self.encoder(rearrange(x, "b f s d -> (b f) s d"))'
_DATED = 'rearrange(frames, "(b f) d -> b f d", b=b) + self.time_positions'
_READ = f"self.time_encoder({_DATED})"


def _fe(body: str) -> str:
    return _with_body(FactorisedEncoder, _FE_BODY, body)


class _OtherBlock(PreNormBlock):
    """To see that both encoders are built of the blocks they are given."""

    def __init__(self, d: int, heads: int, d_ff: int):
        flatter = lambda q, k, v, keep=None: (attention(q * 0.25, k, v, keep)[0], None)  # noqa: E731
        super().__init__(d, heads, d_ff, attention=lambda d, heads: MultiHeadAttention(d, heads, attend=flatter))


class _CausalBlock(PreNormBlock):
    """To see that places and frames are read in their order: a token sees itself and those before it."""

    def __init__(self, d: int, heads: int, d_ff: int):
        def causal(q, k, v, keep=None):
            return attention(q, k, v, torch.ones(1, 1, q.shape[-2], q.shape[-2], dtype=torch.bool).tril())[0], None

        super().__init__(d, heads, d_ff, attention=lambda d, heads: MultiHeadAttention(d, heads, attend=causal))


_FE = dict(grid=(5, 7), d=12, heads=3, layers=2, d_ff=17)

FACTORISED = Exercise(
    target=FactorisedEncoder,
    minutes=12,
    given=("__init__",),
    tolerance=5e-4,
    cases=[
        Case("5 frames of 7 places", _stream(2, 5, 7), init=_FE),
        Case("more clips", _stream(3, 5, 7), init=_FE),
        Case("clips, frames and places are all 3", _stream(3, 3, 3), init=_FE | dict(grid=(3, 3))),
        Case("as many clips as frames", _stream(5, 5, 2), init=_FE | dict(grid=(5, 2))),
        Case("class tokens, 3 blocks in time", _stream(2, 5, 7), init=_FE | dict(class_token=True, time_layers=3)),
        Case("one frame", _stream(2, 1, 7), init=_FE | dict(grid=(1, 7))),
        Case("one place", _stream(2, 5, 1), init=_FE | dict(grid=(5, 1))),
        Case("other blocks", _stream(2, 5, 7), init=_FE | dict(block=_OtherBlock)),
        Case("blocks that mind the order", _stream(2, 5, 7), init=_FE | dict(block=_CausalBlock)),
        Case("more places than the grid has", _stream(2, 5, 11), init=_FE),
        Case("fewer frames", _stream(2, 3, 7), init=_FE),
        Case("more frames", _stream(2, 6, 7), init=_FE),
        Case("one frame where five are known", _stream(2, 1, 7), init=_FE),
        Case("frames and places exchanged", _stream(2, 7, 5), init=_FE),
    ],
    mistakes=[
        Mistake(
            "Clips and frames are mixed: they go in as (f b) and come out as (b f). Fold and unfold in one order.",
            old=_SUMMARY,
            new='self.encoder(rearrange(x, "b f s d -> (f b) s d"))',
        ),
        Mistake(
            "Clips and frames are mixed: they go in as (b f) and come out as (f b). Fold and unfold in one order.",
            old='rearrange(frames, "(b f) d -> b f d", b=b)',
            new='rearrange(frames, "(f b) d -> b f d", b=b)',
        ),
        Mistake(
            "`time_positions` are missing: without them the order of the frames is lost.",
            old=" + self.time_positions)",
            new=")",
        ),
        Mistake(
            "The positions are multiplied. They are added.",
            old=" + self.time_positions)",
            new=" * self.time_positions)",
        ),
        Mistake(
            "The positions are added to the tokens before the first encoder. They are added to the summaries of the "
            "frames, after it.",
            code=_fe("""
b, f = x.shape[:2]
if f != len(self.time_positions):
    raise ValueError("another number of frames")
x = x + self.time_positions[:, None]
frames = self.encoder(rearrange(x, "b f s d -> (b f) s d"))
return self.time_encoder(rearrange(frames, "(b f) d -> b f d", b=b))
"""),
        ),
        Mistake(
            "The positions are added twice, to the tokens and to the summaries. Only to the summaries.",
            old=_SUMMARY,
            new='self.encoder(rearrange(x + self.time_positions[:, None], "b f s d -> (b f) s d"))',
        ),
        Mistake(
            "The positions (or the frames) run backwards: row 0 belongs to frame 0.",
            old=" + self.time_positions)",
            new=" + self.time_positions.flip(0))",
        ),
        Mistake(
            "Frames and their positions run backwards into the second encoder: one that minds the order reads time "
            "from the end.",
            old=_READ,
            new=f"self.time_encoder(({_DATED}).flip(1))",
        ),
        Mistake(
            "The places of a frame run backwards into the first encoder: one that minds the order reads them from the "
            "end.",
            old=_SUMMARY,
            new='self.encoder(rearrange(x.flip(2), "b f s d -> (b f) s d"))',
        ),
        Mistake(
            "The summaries are scaled by √d before the positions are added. They are added as they are.",
            old=_DATED,
            new='rearrange(frames, "(b f) d -> b f d", b=b) * x.shape[-1] ** 0.5 + self.time_positions',
        ),
        Mistake(
            "The positions are cut off from the gradient: they would never learn.",
            old=" + self.time_positions)",
            new=" + self.time_positions.detach())",
        ),
        Mistake(
            "Each row of the positions is repeated before the next one comes (`repeat_interleave`), so frames get rows "
            "of others. Frame i of every clip gets row i.",
            old=_DATED,
            new='rearrange(frames + self.time_positions.repeat_interleave(b, 0), "(b f) d -> b f d", b=b)',
        ),
        Mistake(
            "Clips see each other in time: `time_encoder` got (f, b, d), the clips as the sequence. The frames of one "
            "clip are the sequence, (b, f, d).",
            old=_READ,
            new=f"self.time_encoder(({_DATED}).transpose(0, 1)).mean(0).expand(b, -1)",
        ),
        Mistake(
            "The largest number of each channel stands in for the first encoder: `encoder` makes the summaries.",
            old=_SUMMARY,
            new='rearrange(x, "b f s d -> (b f) s d").amax(1)',
        ),
        Mistake(
            "All frames get the first row of the positions. Frame i gets row i.",
            old=" + self.time_positions)",
            new=" + self.time_positions[0])",
        ),
        Mistake(
            "The positions are added after the second encoder, where they come too late to tell frames apart.",
            old=_READ,
            new='self.time_encoder(rearrange(frames, "(b f) d -> b f d", b=b)) + self.time_positions.mean(0)',
        ),
        Mistake(
            "The second encoder is missing: the frames are averaged, and their order is lost. (That is the control, "
            "`FramePooling`.)",
            old=_READ,
            new='rearrange(frames, "(b f) d -> b f d", b=b).mean(1)',
        ),
        Mistake(
            "The second encoder is missing: summaries with positions are averaged. `time_encoder` reads them.",
            old=_READ,
            new=f"({_DATED}).mean(1)",
        ),
        Mistake(
            "The first encoder reads all tokens of a clip at once. It reads one frame at a time: fold the frames into "
            "the batch.",
            old=_SUMMARY,
            new='self.encoder(rearrange(x, "b f s d -> b (f s) d")).repeat_interleave(f, 0)',
        ),
        Mistake(
            "The first encoder reads each place over time. It reads each frame: the frames belong into the batch, the "
            "places are the sequence.",
            code=_fe("""
b, f = x.shape[:2]
if f != len(self.time_positions):
    raise ValueError("another number of frames")
places = self.encoder(rearrange(x, "b f s d -> (b s) f d"))
frames = rearrange(places, "(b s) d -> b s d", b=b).mean(1, keepdim=True)
return self.time_encoder(frames + self.time_positions)
"""),
        ),
        Mistake(
            "The two encoders are exchanged: `encoder` reads the frames, `time_encoder` their summaries.",
            code=_fe("""
b, f = x.shape[:2]
if f != len(self.time_positions):
    raise ValueError("another number of frames")
frames = self.time_encoder(rearrange(x, "b f s d -> (b f) s d"))
return self.encoder(rearrange(frames, "(b f) d -> b f d", b=b) + self.time_positions)
"""),
        ),
        Mistake(
            "`encoder` is used both times. The second one, `time_encoder`, has weights of its own.",
            old=_READ,
            new=f"self.encoder({_DATED})",
        ),
        Mistake(
            "`time_encoder` is used both times. Frames are read by `encoder`.",
            old=_SUMMARY,
            new=_SUMMARY.replace("self.encoder", "self.time_encoder"),
        ),
        Mistake(
            "The frames are averaged over their places without being read: `encoder` makes the summaries.",
            old=_SUMMARY,
            new='rearrange(x, "b f s d -> (b f) s d").mean(1)',
        ),
        Mistake(
            "The summaries are not split into clips again: all frames of the batch were read as one clip.",
            code=_fe("""
b, f = x.shape[:2]
if f != len(self.time_positions):
    raise ValueError("another number of frames")
frames = self.encoder(rearrange(x, "b f s d -> (b f) s d"))
return self.time_encoder((frames + self.time_positions.repeat(b, 1))[None]).expand(b, -1)
"""),
        ),
        Mistake(
            "The summaries of the frames come back. The second encoder makes one vector of them.",
            old=_READ,
            new=f"({_DATED})",
        ),
        Mistake(
            "Only the first clip's frames are read and used for all clips.",
            old=_SUMMARY,
            new="self.encoder(x[0]).repeat(b, 1)",
        ),
        Mistake(
            "The summaries are averaged first and handed to the second encoder as one: nothing is left to look at.",
            old=_READ,
            new=f"self.time_encoder(({_DATED}).mean(1, keepdim=True))",
        ),
        Mistake(
            "A residual: the mean of the dated frames is added to the second encoder's answer. It hands back its "
            "answer alone.",
            old=_READ,
            new=f"{_READ} + ({_DATED}).mean(1)",
        ),
        Mistake(
            "A residual: the mean of the frames is added to the second encoder's answer. It hands back its answer "
            "alone.",
            old=_READ,
            new=f"{_READ} + frames.unflatten(0, (b, f)).mean(1)",
        ),
        Mistake(
            "The first encoder is cut off from the gradient: it would never learn.",
            old=_SUMMARY,
            new=f"{_SUMMARY}.detach()",
        ),
        Mistake(
            "A tenth of the summaries is dropped while training. There is no dropout here.",
            old=_READ,
            new=f"self.time_encoder(nn.functional.dropout({_DATED}, 0.1, self.training))",
        ),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError. Use `raise ValueError(...)`.",
            code=_fe("""
b, f = x.shape[:2]
assert f == len(self.time_positions)
frames = self.encoder(rearrange(x, "b f s d -> (b f) s d"))
return self.time_encoder(rearrange(frames, "(b f) d -> b f d", b=b) + self.time_positions)
"""),
        ),
        Mistake(
            "A single frame is let through: it broadcasts over all positions, and the clip seems to have them all.",
            old=_WRONG_F,
            new="f not in (1, len(self.time_positions))",
        ),
        Mistake(
            "Right but for the refusal: a wrong number of frames stops inside with PyTorch's error, or broadcasts a "
            "single frame over all positions. Ask for it first.",
            old=_WRONG_F,
            new="False",
        ),
        Mistake(
            "Shorter clips are read with the first rows of the positions. The contract refuses every other number of "
            "frames.",
            code=_fe("""
b, f = x.shape[:2]
if f > len(self.time_positions):
    raise ValueError("too many frames")
frames = self.encoder(rearrange(x, "b f s d -> (b f) s d"))
return self.time_encoder(rearrange(frames, "(b f) d -> b f d", b=b) + self.time_positions[:f])
"""),
        ),
        Mistake(
            "Longer clips are cut off without a word. The contract refuses every other number of frames.",
            code=_fe("""
x = x[:, : len(self.time_positions)]
b, f = x.shape[:2]
if f != len(self.time_positions):
    raise ValueError("another number of frames")
frames = self.encoder(rearrange(x, "b f s d -> (b f) s d"))
return self.time_encoder(rearrange(frames, "(b f) d -> b f d", b=b) + self.time_positions)
"""),
        ),
        Mistake(
            "You compare the number of *places* with the positions in time. Frames are axis 1.",
            old=_WRONG_F,
            new="x.shape[2] != len(self.time_positions)",
        ),
        Mistake(
            "Another number of frames is refused, but not with a ValueError.",
            old="raise ValueError(",
            new="raise IndexError(",
        ),
        Mistake(
            "You compare the *batch* with the positions in time. Frames are axis 1.",
            old=_WRONG_F,
            new="b != len(self.time_positions)",
        ),
    ],
    variants=[
        Variant(
            "flatten and unflatten",
            _fe("""
if x.size(1) != self.time_positions.size(0):
    raise ValueError("another number of frames")
summaries = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
return self.time_encoder(summaries + self.time_positions[None])
"""),
        ),
        Variant(
            "a loop over frames",
            _fe("""
known = self.time_positions.shape[0]
if x.shape[1] != known:
    raise ValueError("another number of frames")
rows = [self.encoder(x[:, i]) + self.time_positions[i] for i in range(known)]
return self.time_encoder(torch.stack(rows, dim=1))
"""),
        ),
        Variant(
            "a loop over clips",
            _fe("""
if x.shape[1] != len(self.time_positions):
    raise ValueError("another number of frames")
return torch.cat([self.time_encoder((self.encoder(clip) + self.time_positions).unsqueeze(0)) for clip in x])
"""),
        ),
        Variant(
            "frames before clips",
            _fe("""
b, f, s, d = x.shape
if f != self.time_positions.shape[0]:
    raise ValueError("another number of frames")
y = self.encoder(x.transpose(0, 1).reshape(f * b, s, d)).reshape(f, b, d)
return self.time_encoder((y + self.time_positions[:, None]).transpose(0, 1))
"""),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "`encoder` takes sequences and hands back one vector for each. Which sequences should it read? The frames: "
            "(b f) of them, each of s tokens. It returns (b f, d).",
        ),
        Hint(
            "the shape is right, the values are not",
            "Fold clips and frames as (b f) and unfold them as (b f). And the positions in time belong to the "
            "summaries: one row for each frame, added before `time_encoder`.",
        ),
        Hint(
            "show me nearly everything",
            'frames = self.encoder(rearrange(x, "b f s d -> (b f) s d")); rearrange back to (b, f, d); add '
            "self.time_positions; return what self.time_encoder makes of it. First of all refuse another f.",
        ),
    ],
)


EXERCISES = [TUBELETS, INFLATE, AXIAL, DOT, BLOCK, FACTORISED]
