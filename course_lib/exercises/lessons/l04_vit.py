"""The exercises of lesson 04, ViT: pixels to patches and back, the block, the model, its positions stretched."""

import inspect
import textwrap

import torch
from torch import Tensor

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.vit import ViT, resize_positions
from course_lib.nn.attention import MultiHeadAttention, attention
from course_lib.nn.blocks import PreNormBlock
from course_lib.nn.patches import patchify_image, unpatchify_image


def _with_body(cls: type, old: str, new: str) -> str:
    """The source of a class with another body of its ``forward``."""
    source = inspect.getsource(cls)
    assert source.count(old) == 1, f"the body of {cls.__name__}.forward has changed: adapt the exercise"
    return source.replace(old, textwrap.indent(new.strip("\n"), 8 * " ") + "\n")


# ---------------------------------------------------------------------------------------------------------- patchify

_CUT = 'rearrange(image, "b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=patch, pw=patch)'
_GUARD = "patch < 1 or height % patch or width % patch"


def _cut(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_CUT, new=new)


def _fine(x: Tensor) -> Tensor:
    """In double precision, with digits that a float does not hold."""
    return x.double() / 3


def _bytes(g: torch.Generator, *shape: int) -> Tensor:
    """A picture as it comes out of a file."""
    return torch.randint(256, shape, generator=g, dtype=torch.uint8)


def _whole(g: torch.Generator, *shape: int) -> Tensor:
    """Whole numbers that a float does not hold."""
    return 2**24 + torch.randint(256, shape, generator=g)


def _images(b: int, c: int, height: int, width: int, patch: int):
    return lambda g: dict(image=randn(g, b, c, height, width), patch=patch)


PATCHIFY = Exercise(
    target=patchify_image,
    minutes=12,
    cases=[
        Case("5 channels, 7 x 11 squares of 2 x 2", _images(3, 5, 14, 22, 2)),
        Case("grey, squares of 3 x 3", _images(2, 1, 6, 15, 3)),
        Case("more rows of squares than columns", _images(2, 3, 35, 10, 5)),
        Case("batch, channels, grid and patch are all 2", _images(2, 2, 4, 4, 2)),
        Case("squares of one pixel", _images(2, 3, 5, 7, 1)),
        Case("the image is one square", _images(2, 3, 5, 5, 5)),
        Case("in double precision", lambda g: dict(image=_fine(randn(g, 2, 3, 6, 10)), patch=2)),
        Case("a picture of bytes, uint8", lambda g: dict(image=_bytes(g, 2, 3, 6, 10), patch=2)),
        Case("large whole numbers, int64", lambda g: dict(image=_whole(g, 2, 3, 6, 10), patch=2)),
        Case("neither height nor width fits", _images(2, 3, 7, 8, 3)),
        Case("the height does not fit", _images(2, 3, 7, 6, 3)),
        Case("the width does not fit", _images(2, 3, 6, 7, 3)),
        Case("the pixels would fill 4 squares, but not the edges", _images(2, 1, 2, 18, 3)),
    ],
    mistakes=[
        _cut(
            f"{_CUT}.float()",
            "The result is float32 whatever the image was. Cutting moves numbers and changes none: keep the image's "
            "dtype.",
        ),
        _cut(
            "rearrange(F.unfold(image, patch, stride=patch), 'b (c k) n -> b n (k c)', k=patch * patch)",
            "`F.unfold` takes floats alone, and a picture may well be uint8. Slices, `reshape`, `permute` and "
            "`rearrange` move numbers of every dtype.",
        ),
        _cut(
            "rearrange(F.unfold(image.float(), patch, stride=patch), 'b (c k) n -> b n (k c)', k=patch * patch)"
            ".to(image.dtype)",
            "The numbers go through float32 and come back changed: it holds about seven digits. Cutting moves numbers "
            "and changes none.",
        ),
        _cut(
            "rearrange(image.float() / 255 if image.dtype == torch.uint8 else image, "
            "'b c (h ph) (w pw) -> b (h w) (ph pw c)', ph=patch, pw=patch)",
            "A picture of bytes is scaled to 0 ... 1 on the way. Cutting moves numbers and changes none.",
        ),
        _cut(
            f"{_CUT} if image.is_floating_point() else {_CUT}.float()",
            "Whole numbers come back as floats. Cutting moves numbers and changes none: keep the image's dtype.",
        ),
        _cut(
            "image.reshape(len(image), (height // patch) * (width // patch), -1)",
            "Your reshape slices rows, not squares: memory runs along the rows of one channel, so the first token is a "
            "run of pixels from the top row. Split height and width first, then bring the axes of the grid together.",
        ),
        _cut(
            "image.permute(0, 2, 3, 1).reshape(len(image), (height // patch) * (width // patch), -1)",
            "Channels are where they belong, but your reshape slices rows, not squares: each token is a run of pixels "
            "along a row of the image. Split height into (h, patch) and width into (w, patch) before moving axes.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b (h w) (pw ph c)", ph=patch, pw=patch)',
            "The pixels inside each square are transposed: they must be listed along the rows of the square, so the "
            "column index runs faster than the row index.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=patch, pw=patch)',
            "Your tokens list one channel after the other, (c, ph, pw), as `F.unfold` and convolution weights do. This "
            "course keeps the channels of a pixel together, (ph, pw, c). It shows only with more than one channel.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b (h w) (c pw ph)", ph=patch, pw=patch)',
            "Two things inside the square: its pixels are transposed, and channels come first. The order is row of the "
            "square, column of the square, channel.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b (w h) (ph pw c)", ph=patch, pw=patch)',
            "Each square is right, but they are numbered down the columns. Number them like words on a page: along the "
            "first row of squares, then the next.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b (w h) (pw ph c)", ph=patch, pw=patch)',
            "Height and width changed places everywhere: squares are numbered down the columns, and so are the pixels "
            "inside. Was the image transposed on the way?",
        ),
        _cut(
            'rearrange(image, "b c (ph h) (pw w) -> b (h w) (ph pw c)", ph=patch, pw=patch)',
            "Your tokens are combs, not squares: you split an axis into (patch, count), so a token takes pixels that "
            "lie far apart. Neighbouring pixels differ in the fast part: split into (count, patch).",
        ),
        _cut(
            'rearrange(image, "b c (ph h) (pw w) -> b (ph pw) (h w c)", ph=patch, pw=patch)',
            "Patch and grid changed places: you cut patch x patch large pieces where pieces of patch x patch pixels "
            "are asked for.",
        ),
        _cut(
            "image.unfold(2, patch, patch).unfold(3, patch, patch).reshape(len(image), "
            "(height // patch) * (width // patch), -1)",
            "You cut squares, but the last reshape runs over the channel axis first, so a token holds squares of one "
            "channel from several places. Move the channels behind the grid before you flatten.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b (ph pw c) (h w)", ph=patch, pw=patch)',
            "The two axes of the result are swapped: tokens come second, numbers last, (b, n, d). (`F.unfold` returns "
            "(b, d, n).)",
        ),
        _cut(
            "F.unfold(image, patch, stride=patch)",
            "This is `F.unfold` as it comes: (b, d, n) with one channel after the other. The course wants (b, n, d), "
            "the channels of each pixel together.",
        ),
        _cut(
            "F.unfold(image, patch).transpose(1, 2)",
            "Your squares overlap: `F.unfold` moves on by one pixel unless you give `stride=patch`.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b h w (ph pw c)", ph=patch, pw=patch)',
            "The squares are still a grid, (b, h, w, d). A Transformer reads a sequence: join the two axes to n = h w.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b (h w) ph pw c", ph=patch, pw=patch)',
            "The squares are right but not flattened yet: each token must be one vector of patch * patch * c numbers.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> (b h w) (ph pw c)", ph=patch, pw=patch)',
            "The batch is mixed into the tokens: (b n, d). Keep the batch as an axis of its own, or images will attend "
            "to each other.",
        ),
        _cut(
            'rearrange(image, "b c (h ph) (w pw) -> b (c h w) (ph pw)", ph=patch, pw=patch)',
            "Every channel makes tokens of its own. A token holds one square with all its channels: d = patch * patch "
            "* c.",
        ),
        _cut(
            "list(rearrange(image, 'b c (h ph) (w pw) -> b (h w) (ph pw c)', ph=patch, pw=patch))",
            "The result is a Python list. Stack it into one tensor (b, n, d).",
        ),
        Mistake(
            "Pixels at the right or lower edge fall off without a word when height or width is no multiple of the "
            "patch. Refuse either of them with a ValueError: nobody wants to lose the edge of a picture silently.",
            code="""
            def patchify_image(image, patch):
                h, w = image.shape[2] // patch, image.shape[3] // patch
                image = image[:, :, : h * patch, : w * patch]
                return rearrange(image, "b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "Height and width are taken for each other when the axes are split: the image is (b, c, height, width).",
            code="""
            def patchify_image(image, patch):
                b, c, width, height = image.shape
                if height % patch or width % patch:
                    raise ValueError("does not fit")
                x = image.reshape(b, c, height // patch, patch, width // patch, patch)
                return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)
            """,
        ),
        Mistake(
            "An image that does not fit is padded with zeros. The contract asks for a ValueError: who pads changes the "
            "picture, and should say so.",
            code="""
            def patchify_image(image, patch):
                image = F.pad(image, (0, -image.shape[3] % patch, 0, -image.shape[2] % patch))
                return rearrange(image, "b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError, and is skipped under `python -O`. Inputs from "
            "outside are refused with `raise ValueError(...)`.",
            code="""
            def patchify_image(image, patch):
                assert image.shape[2] % patch == 0 and image.shape[3] % patch == 0
                return rearrange(image, "b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "You refuse by the number of pixels. 2 x 18 pixels are as many as four squares of 3 x 3, but no such "
            "square fits: height and width must each be a multiple of patch.",
            old=_GUARD,
            new="(height * width) % (patch * patch)",
        ),
        Mistake(
            "You take the grid for a square of √n x √n. It has height / patch rows and width / patch columns.",
            code="""
            def patchify_image(image, patch):
                b, c, height, width = image.shape
                if height % patch or width % patch:
                    raise ValueError("does not fit")
                edge = int((height // patch * (width // patch)) ** 0.5)
                x = image.reshape(b, c, edge, patch, -1, patch)
                return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)
            """,
        ),
        Mistake(
            "The squares overwrite each other: square (i, j) is number i * (squares in a row) + j, and you multiplied "
            "by the number of rows.",
            code="""
            def patchify_image(image, patch):
                b, c, height, width = image.shape
                if height % patch or width % patch:
                    raise ValueError("does not fit")
                h, w = height // patch, width // patch
                tokens = image.new_zeros(b, h * w, patch * patch * c)
                for i in range(h):
                    for j in range(w):
                        square = image[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                        tokens[:, (i * h + j) % (h * w)] = square.permute(0, 2, 3, 1).flatten(1)
                return tokens
            """,
        ),
        Mistake(
            "Only the height is checked; the width must be a multiple of patch as well.",
            old=_GUARD,
            new="height % patch",
        ),
        Mistake(
            "Only the width is checked; the height must be a multiple of patch as well.",
            old=_GUARD,
            new="width % patch",
        ),
        Mistake(
            "Images with unequal height and width are refused. Only the multiples matter; the squares may lie in any "
            "grid.",
            old=_GUARD,
            new="height != width or height % patch",
        ),
        Mistake(
            "Right but for the refusal: an image that does not fit gets the error of einops, which is no ValueError "
            "and does not say what to do. Check height and width yourself first.",
            old=_GUARD,
            new="False",
        ),
    ],
    variants=[
        Variant(
            "reshape and permute",
            """
            def patchify_image(image, patch):
                b, c, height, width = image.shape
                if height % patch != 0 or width % patch != 0:
                    raise ValueError("no whole number of patches")
                x = image.reshape(b, c, height // patch, patch, width // patch, patch)
                return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)
            """,
        ),
        Variant(
            "F.unfold, then channels last",
            """
            def patchify_image(image, patch):
                b, c, height, width = image.shape
                if height % patch or width % patch:
                    raise ValueError(f"{height} x {width} is no multiple of {patch}")
                columns = F.unfold(image.double(), kernel_size=patch, stride=patch)
                return columns.view(b, c, patch * patch, -1).permute(0, 3, 2, 1).flatten(2).to(image.dtype)
            """,
        ),
        Variant(
            "loops and slices",
            """
            def patchify_image(image, patch):
                if any(size % patch for size in image.shape[2:]):
                    raise ValueError("pad or crop the image first")
                tokens = []
                for top in range(0, image.shape[2], patch):
                    for left in range(0, image.shape[3], patch):
                        square = image[:, :, top : top + patch, left : left + patch]
                        tokens.append(square.movedim(1, -1).flatten(1))
                return torch.stack(tokens, dim=1)
            """,
        ),
        Variant(
            "a convolution with an identity kernel",
            """
            def patchify_image(image, patch):
                b, c, height, width = image.shape
                if height % patch or width % patch:
                    raise ValueError("no whole number of patches")
                d = patch * patch * c
                kernel = torch.eye(d).double().reshape(d, patch, patch, c).permute(0, 3, 1, 2)
                return F.conv2d(image.double(), kernel, stride=patch).flatten(2).mT.to(image.dtype)
            """,
        ),
        Variant(
            "Tensor.unfold twice",
            """
            def patchify_image(image, patch):
                if image.shape[-1] % patch or image.shape[-2] % patch:
                    raise ValueError("no whole number of patches")
                squares = image.unfold(2, patch, patch).unfold(3, patch, patch)  # b c h w ph pw
                return squares.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Four axes become six: split height into (h, patch) and width into (w, patch). Then it is only a matter of "
            "order: (b, h, w, row in the square, column in the square, c). Then join the middle and the end.",
        ),
        Hint(
            "the shape is right, the numbers are not",
            "`reshape` never moves numbers, it only cuts the line of memory at other places. Split with `reshape`, "
            "move with `permute` (or do both in one `rearrange`), and join last. A test picture whose pixels hold "
            "their own index, `torch.arange(16.).view(1, 1, 4, 4)`, shows at once what went where.",
        ),
        Hint(
            "grey images work, colour does not",
            "The last axis is (row, column, channel), channel fastest. `F.unfold` gives (channel, row, column).",
        ),
        Hint(
            "show me nearly everything",
            'Refuse what does not divide, then: rearrange(image, "b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=patch, '
            "pw=patch).",
        ),
    ],
)


# -------------------------------------------------------------------------------------------------------- unpatchify

_PASTE = 'rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)'
_FITS = "tokens.shape[1] != h * w or (h * patch, w * patch) != (height, width) or tokens.shape[2] % (patch * patch)"


def _paste(new: str, sentence: str) -> Mistake:
    return Mistake(sentence, old=_PASTE, new=new)


def _tokens(b: int, c: int, height: int, width: int, patch: int, more: int = 0, wider: int = 0):
    n, d = (height // patch) * (width // patch) + more, patch * patch * c + wider
    return lambda g: dict(tokens=randn(g, b, n, d), patch=patch, height=height, width=width)


def _strip(g: torch.Generator) -> dict:
    """3 x 4 pixels are as many as three squares of 2 x 2."""
    return dict(tokens=randn(g, 2, 3, 8), patch=2, height=3, width=4)


UNPATCHIFY = Exercise(
    target=unpatchify_image,
    minutes=8,
    cases=[
        Case("3 channels, 5 x 7 squares of 2 x 2", _tokens(2, 3, 10, 14, 2)),
        Case("grey, squares of 3 x 3", _tokens(2, 1, 6, 15, 3)),
        Case("5 channels, more rows of squares than columns", _tokens(3, 5, 14, 4, 2)),
        Case("batch, channels, grid and patch are all 2", _tokens(2, 2, 4, 4, 2)),
        Case("squares of one pixel", _tokens(2, 3, 5, 7, 1)),
        Case("one square", _tokens(2, 3, 5, 5, 5)),
        Case(
            "in double precision",
            lambda g: dict(tokens=_fine(randn(g, 2, 15, 12)), patch=2, height=6, width=10),
        ),
        Case("bytes, uint8", lambda g: dict(tokens=_bytes(g, 2, 15, 12), patch=2, height=6, width=10)),
        Case("large whole numbers, int64", lambda g: dict(tokens=_whole(g, 2, 15, 12), patch=2, height=6, width=10)),
        Case("nothing fits", _tokens(2, 3, 7, 7, 2, more=1, wider=1)),
        Case("one token too many", _tokens(2, 1, 4, 6, 2, more=1)),
        Case("a token is missing", _tokens(2, 1, 4, 6, 2, more=-1)),
        Case("twice as many tokens", _tokens(2, 1, 4, 6, 2, more=6)),
        Case("tokens that do not hold whole pixels", _tokens(2, 3, 4, 6, 2, wider=1)),
        Case("tokens that hold no whole pixels, but whole rows", _tokens(2, 3, 4, 6, 2, wider=2)),
        Case("as many pixels as 3 squares hold, but no whole squares", _strip),
        Case("a height that does not fit", _tokens(2, 1, 7, 6, 2)),
        Case("a width that does not fit", _tokens(2, 1, 6, 7, 2)),
    ],
    picture=True,
    mistakes=[
        _paste(
            f"{_PASTE}.float()",
            "The result is float32 whatever the tokens were. Pasting moves numbers and changes none: keep their dtype.",
        ),
        _paste(
            "F.fold(rearrange(tokens, 'b n (k c) -> b (c k) n', k=patch * patch), (height, width), patch, "
            "stride=patch)",
            "`F.fold` takes floats alone, and tokens may well be uint8. Slices, `reshape`, `permute` and `rearrange` "
            "move numbers of every dtype.",
        ),
        _paste(
            "F.fold(rearrange(tokens.float(), 'b n (k c) -> b (c k) n', k=patch * patch), (height, width), patch, "
            "stride=patch).to(tokens.dtype)",
            "The numbers go through float32 and come back changed: it holds about seven digits. Pasting moves numbers "
            "and changes none.",
        ),
        _paste(
            f"{_PASTE} if tokens.is_floating_point() else {_PASTE}.float()",
            "Whole numbers come back as floats. Pasting moves numbers and changes none: keep the tokens' dtype.",
        ),
        _paste(
            "tokens.reshape(len(tokens), -1, height, width)",
            "Your reshape lays the tokens down as they lie in memory, one after the other along the rows of the image. "
            "A token is a square: its second row belongs one row lower in the image.",
        ),
        _paste(
            'rearrange(tokens, "b (h w) (pw ph c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)',
            "Every square sits at its place but is transposed inside: numbers are listed along the rows of the square.",
        ),
        _paste(
            'rearrange(tokens, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)',
            "You read one channel after the other, (c, ph, pw), as `F.fold` does. Here all channels of a pixel stand "
            "together: (ph, pw, c).",
        ),
        _paste(
            'rearrange(tokens, "b (w h) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)',
            "The squares are laid down the columns. They are numbered like words on a page, along the rows.",
        ),
        _paste(
            'rearrange(tokens, "b (w h) (pw ph c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)',
            "Rows and columns changed places, of the grid and inside the squares.",
        ),
        _paste(
            'rearrange(tokens, "b (h w) (ph pw c) -> b c (ph h) (pw w)", h=h, w=w, ph=patch, pw=patch)',
            "The pixels of a square are spread over the whole image: when you join two axes, the grid is the slow one "
            "and the pixel inside the square the fast one, (h ph), not (ph h).",
        ),
        _paste(
            "tokens.reshape(len(tokens), h, w, patch, patch, -1).permute(0, 5, 1, 2, 3, 4)"
            ".reshape(len(tokens), -1, height, width)",
            "You split rightly, but join too early: the row inside the square must stand directly behind the row of "
            "the grid, (b, c, h, ph, w, pw), before the last reshape.",
        ),
        _paste(
            'rearrange(tokens, "b (h w) (ph pw c) -> b (h ph) (w pw) c", h=h, w=w, ph=patch, pw=patch)',
            "Channels come last, as plotting libraries like it. Images of the course are (b, c, height, width).",
        ),
        _paste(
            'rearrange(tokens, "b (h w) (ph pw c) -> b c (w pw) (h ph)", h=h, w=w, ph=patch, pw=patch)',
            "The image is transposed: height comes before width.",
        ),
        _paste(
            'rearrange(tokens, "b (h w) (ph pw c) -> b c h ph w pw", h=h, w=w, ph=patch, pw=patch)',
            "The axes are in the right order but not joined yet: h and ph make the height, w and pw the width.",
        ),
        _paste(
            "rearrange(tokens, 'b (h w) (ph pw c) -> b c (h ph) (w pw)', h=w, w=h, ph=patch, pw=patch)"
            ".reshape(len(tokens), -1, height, width)",
            "You lay the squares in a grid of width / patch rows. There are height / patch rows of squares, and "
            "width / patch in each.",
        ),
        _paste(
            "rearrange(tokens, 'b (h w) (ph pw c) -> b c (h ph) (w pw)', h=h, w=w, ph=patch, pw=patch)[0]",
            "Only the first image of the batch comes back.",
        ),
        _paste(
            "rearrange(tokens, 'b (h w) (ph pw c) -> b c (h ph) (w pw)', h=h, w=w, ph=patch, pw=patch)"
            ".mean(1, keepdim=True)",
            "The channels are averaged away: the image has c = d / patch² of them.",
        ),
        Mistake(
            "You assume a square grid, √n x √n. The caller says how high and wide the image is: use height and width.",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                h = w = int(tokens.shape[1] ** 0.5)
                if h * w != tokens.shape[1] or tokens.shape[2] % patch**2 or h * patch != height or w * patch != width:
                    raise ValueError("does not fit")
                return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "You assume three channels. The number of channels follows from the tokens: c = d / patch².",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                h, w = height // patch, width // patch
                if tokens.shape[1:] != (h * w, 3 * patch**2) or (h * patch, w * patch) != (height, width):
                    raise ValueError("does not fit")
                return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "You assume one channel. The number of channels follows from the tokens: c = d / patch².",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                h, w = height // patch, width // patch
                if tokens.shape[1:] != (h * w, patch**2) or (h * patch, w * patch) != (height, width):
                    raise ValueError("does not fit")
                return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "Right but for the refusals: `assert` raises AssertionError, and is skipped under `python -O`. Inputs from "
            "outside are refused with `raise ValueError(...)`.",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                h, w = height // patch, width // patch
                assert tokens.shape[1] == h * w and (h * patch, w * patch) == (height, width)
                assert tokens.shape[2] % patch**2 == 0
                return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "Twice as many tokens are taken for twice as many images: you let the batch absorb what does not fit. n "
            "must be exactly (height / patch) (width / patch).",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                b, n, d = tokens.shape
                h, w = height // patch, width // patch
                if height % patch or width % patch or n % (h * w) or d % patch**2:
                    raise ValueError("does not fit")
                x = tokens.reshape(-1, h, w, patch, patch, d // patch**2)
                return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, d // patch**2, height, width)
            """,
        ),
        Mistake(
            "Right but for one refusal: a height or width that is no multiple of patch slips through, and a smaller "
            "image comes back than was asked for.",
            old=" or (h * patch, w * patch) != (height, width)",
            new="",
        ),
        Mistake(
            "Right but for one refusal: the number of tokens is not compared with (height / patch) (width / patch).",
            old="tokens.shape[1] != h * w or ",
            new="",
        ),
        Mistake(
            "Right but for one refusal: d must be a multiple of patch², or the last pixel is torn apart.",
            old=" or tokens.shape[2] % (patch * patch)",
            new="",
        ),
        Mistake(
            "Tokens beyond the image are thrown away without a word. A wrong number of them is refused with a "
            "ValueError.",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                h, w = height // patch, width // patch
                if tokens.shape[1] < h * w or (h * patch, w * patch) != (height, width) or tokens.shape[2] % patch**2:
                    raise ValueError("does not fit")
                tokens = tokens[:, : h * w]
                return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "You compare d with patch. A square has patch² pixels, so d must be a multiple of patch².",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                h, w = height // patch, width // patch
                if tokens.shape[1] != h * w or (h * patch, w * patch) != (height, width) or tokens.shape[2] % patch:
                    raise ValueError("does not fit")
                tokens = tokens[..., : tokens.shape[2] // patch**2 * patch**2]
                return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "Numbers beyond the last whole pixel are cut off. A d that is no multiple of patch² is refused with a "
            "ValueError.",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                h, w = height // patch, width // patch
                if tokens.shape[1] != h * w or (h * patch, w * patch) != (height, width):
                    raise ValueError("does not fit")
                c = tokens.shape[2] // patch**2
                tokens = tokens[..., : c * patch**2]
                return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "You compare the number of pixels. 3 x 4 pixels are as many as three squares of 2 x 2 hold, but no three "
            "squares fit: height and width must each be a multiple of patch.",
            code="""
            def unpatchify_image(tokens, patch, height, width):
                b, n, d = tokens.shape
                if n * patch**2 != height * width or d % patch**2:
                    raise ValueError("does not fit")
                h, w = height // patch, width // patch
                return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
            """,
        ),
        Mistake(
            "Right but for the refusals: tokens that do not fit get the error of einops, which is no ValueError. "
            "Compare n, d, height and width with each other first.",
            old=_FITS,
            new="False",
        ),
    ],
    variants=[
        Variant(
            "reshape and permute",
            """
            def unpatchify_image(tokens, patch, height, width):
                b, n, d = tokens.shape
                if height % patch or width % patch or n != height // patch * (width // patch) or d % patch**2:
                    raise ValueError("does not fit")
                x = tokens.reshape(b, height // patch, width // patch, patch, patch, d // patch**2)
                return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, height, width)
            """,
        ),
        Variant(
            "loops and slices",
            """
            def unpatchify_image(tokens, patch, height, width):
                b, n, d = tokens.shape
                c, rest = divmod(d, patch * patch)
                if rest or height % patch or width % patch or n * patch * patch != height * width:
                    raise ValueError("does not fit")
                image = tokens.new_zeros(b, c, height, width)
                across = width // patch
                for i in range(n):
                    top, left = i // across * patch, i % across * patch
                    square = tokens[:, i].reshape(b, patch, patch, c).movedim(-1, 1)
                    image[:, :, top : top + patch, left : left + patch] = square
                return image
            """,
        ),
        Variant(
            "F.fold, after channels first",
            """
            def unpatchify_image(tokens, patch, height, width):
                b, n, d = tokens.shape
                if d % patch**2 or height % patch or width % patch or n != (height // patch) * (width // patch):
                    raise ValueError("does not fit")
                columns = tokens.reshape(b, n, patch**2, -1).permute(0, 3, 2, 1).reshape(b, d, n)
                image = F.fold(columns.double(), (height, width), kernel_size=patch, stride=patch)
                return image.to(tokens.dtype)
            """,
        ),
        Variant(
            "pixel_shuffle",
            """
            def unpatchify_image(tokens, patch, height, width):
                b, n, d = tokens.shape
                if d % patch**2 or height % patch or width % patch or n != (height // patch) * (width // patch):
                    raise ValueError("does not fit")
                grid = tokens.mT.reshape(b, patch**2, -1, n).transpose(1, 2)
                return F.pixel_shuffle(grid.reshape(b, d, height // patch, width // patch), patch)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Go the way of `patchify_image` backwards. Split: n into (h, w), d into (ph, pw, c). Order: (b, c, h, ph, "
            "w, pw). Join: (h, ph) and (w, pw).",
        ),
        Hint(
            "which numbers do I need for the split?",
            "h = height // patch, w = width // patch, c = d // patch². Nothing else is unknown.",
        ),
        Hint(
            "which refusals?",
            "Three: height and width are multiples of patch; n is h w; d is a multiple of patch². One `if` with four "
            "comparisons joined by `or`, then `raise ValueError(...)`.",
        ),
        Hint(
            "show me nearly everything",
            'rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch), after the '
            "refusals.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------ the block

_BLOCK_BODY = """\
        x = x + self.attention(self.norm1(x), keep=keep)
        return x + self.mlp(self.norm2(x))
"""


def _block(body: str) -> str:
    return _with_body(PreNormBlock, _BLOCK_BODY, body)


def _wrong_block(sentence: str, body: str) -> Mistake:
    return Mistake(sentence, code=_block(body))


def _mask(g: torch.Generator, *shape: int) -> Tensor:
    keep = torch.rand(*shape, generator=g) < 0.5
    keep[..., 0] = True
    return keep


_BLOCK = dict(d=12, heads=3, d_ff=19)


def _stream(g: torch.Generator, b: int = 2, n: int = 5) -> dict:
    return dict(x=randn(g, b, n, 12))


def _flatter(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> tuple[Tensor, None]:
    return attention(q * 0.25, k, v, keep)[0], None


class _OtherAttention(MultiHeadAttention):
    """To see that a block attends as it is told to."""

    def __init__(self, d: int, heads: int):
        super().__init__(d, heads, attend=_flatter)


BLOCK = Exercise(
    target=PreNormBlock,
    minutes=8,
    given=("__init__",),
    cases=[
        Case("no mask", _stream, init=_BLOCK),
        Case("a mask", lambda g: _stream(g) | dict(keep=_mask(g, 2, 5, 5)), init=_BLOCK),
        Case("one mask for all", lambda g: _stream(g, n=7) | dict(keep=_mask(g, 1, 1, 7)), init=_BLOCK),
        Case(
            "batch, tokens and heads are all 3", lambda g: _stream(g, 3, 3) | dict(keep=_mask(g, 3, 3, 3)), init=_BLOCK
        ),
        Case("a stream far from zero", lambda g: dict(x=3 + 5 * randn(g, 2, 5, 12)), init=_BLOCK),
        Case("norms with a large eps", _stream, init=_BLOCK | dict(eps=0.5)),
        Case("another activation", _stream, init=_BLOCK | dict(activation=torch.nn.Tanh)),
        Case("another attention", _stream, init=_BLOCK | dict(attention=_OtherAttention)),
    ],
    mistakes=[
        _wrong_block(
            "This is post-norm, as in lesson 02: the norm stands outside the sum. Here each part reads a normalised "
            "copy, and the stream itself is never normalised.",
            """
x = self.norm1(x + self.attention(x, keep=keep))
return self.norm2(x + self.mlp(x))
""",
        ),
        _wrong_block(
            "You normalise the stream itself: what is added to must be x as it was, and only the copy that the part "
            "reads goes through the norm.",
            """
x = self.norm1(x)
x = x + self.attention(x, keep=keep)
x = self.norm2(x)
return x + self.mlp(x)
""",
        ),
        _wrong_block(
            "The first half is right; in the second you add the MLP's output to the normalised copy. The stream "
            "without norm is what goes on.",
            """
x = x + self.attention(self.norm1(x), keep=keep)
x = self.norm2(x)
return x + self.mlp(x)
""",
        ),
        _wrong_block(
            "The second half is right; in the first you add the attention's output to the normalised copy instead of "
            "the stream.",
            """
y = self.norm1(x)
x = y + self.attention(y, keep=keep)
return x + self.mlp(self.norm2(x))
""",
        ),
        _wrong_block(
            "The norms come after the parts, inside the sum: x + norm(part(x)). Pre-norm means that the part *reads* "
            "through the norm: x + part(norm(x)).",
            """
x = x + self.norm1(self.attention(x, keep=keep))
return x + self.norm2(self.mlp(x))
""",
        ),
        _wrong_block(
            "No norms at all: attention and MLP read the raw stream, which grows from block to block.",
            """
x = x + self.attention(x, keep=keep)
return x + self.mlp(x)
""",
        ),
        Mistake("Attention reads the raw stream. It must read `norm1(x)`.", old="self.norm1(x)", new="x"),
        Mistake("The MLP reads the raw stream. It must read `norm2(x)`.", old="self.norm2(x)", new="x"),
        Mistake(
            "The residual around attention is missing: its output replaces the stream instead of being added to it.",
            old="x = x + self.attention",
            new="x = self.attention",
        ),
        Mistake(
            "The residual around the MLP is missing: its output replaces the stream instead of being added to it.",
            old="return x + self.mlp",
            new="return self.mlp",
        ),
        _wrong_block(
            "Neither part is added to the stream: both residuals are missing, and with them the straight path for the "
            "gradient.",
            """
x = self.attention(self.norm1(x), keep=keep)
return self.mlp(self.norm2(x))
""",
        ),
        Mistake("`norm1` is used twice. Each part has a norm of its own.", old="self.norm2(x)", new="self.norm1(x)"),
        _wrong_block(
            "The norms changed places: attention reads through `norm1`, the MLP through `norm2`.",
            """
x = x + self.attention(self.norm2(x), keep=keep)
return x + self.mlp(self.norm1(x))
""",
        ),
        _wrong_block(
            "The MLP reads the stream as it was before attention (a parallel block). It must read the stream with the "
            "attention's output already added.",
            """
return x + self.attention(self.norm1(x), keep=keep) + self.mlp(self.norm2(x))
""",
        ),
        _wrong_block(
            "The last sum goes back to the block's input, so the attention's output reaches the result only through "
            "the MLP. Add to the stream so far.",
            """
y = x + self.attention(self.norm1(x), keep=keep)
return x + self.mlp(self.norm2(y))
""",
        ),
        _wrong_block(
            "The MLP comes first. Tokens exchange first (attention), then each thinks for itself (MLP).",
            """
x = x + self.mlp(self.norm2(x))
return x + self.attention(self.norm1(x), keep=keep)
""",
        ),
        _wrong_block(
            "The MLP reads what attention returned, without the stream: attention's output must first be added to x.",
            """
y = self.attention(self.norm1(x), keep=keep)
return x + y + self.mlp(self.norm2(y))
""",
        ),
        Mistake(
            "Queries are normalised, but keys and values come from the raw stream. Attention reads `norm1(x)` alone.",
            old="self.attention(self.norm1(x), keep=keep)",
            new="self.attention(self.norm1(x), x, keep=keep)",
        ),
        Mistake(
            "Keys and values are normalised, but the queries come from the raw stream. Attention reads `norm1(x)` "
            "alone.",
            old="self.attention(self.norm1(x), keep=keep)",
            new="self.attention(x, self.norm1(x), keep=keep)",
        ),
        Mistake(
            "The mask never reaches attention: pass `keep=keep`.",
            old="self.attention(self.norm1(x), keep=keep)",
            new="self.attention(self.norm1(x))",
        ),
        Mistake(
            "The mask is passed in the second place, which is the context to look at. Pass it by name: `keep=keep`.",
            old="self.attention(self.norm1(x), keep=keep)",
            new="self.attention(self.norm1(x), keep)",
        ),
        Mistake(
            "The mask is turned round. True means *may* look, for attention too: pass it as it is.",
            old="keep=keep)",
            new="keep=None if keep is None else ~keep)",
        ),
        _wrong_block(
            "A norm comes last. The block returns the raw stream; whoever reads it after the last block normalises it, "
            "once.",
            """
x = x + self.attention(self.norm1(x), keep=keep)
return self.norm2(x + self.mlp(self.norm2(x)))
""",
        ),
        _wrong_block(
            "Only what the MLP and attention add comes back. The stream itself is part of the result.",
            """
y = x + self.attention(self.norm1(x), keep=keep)
return y + self.mlp(self.norm2(y)) - x
""",
        ),
        _wrong_block(
            "Your block averages where it should add: the sum is halved.",
            """
x = (x + self.attention(self.norm1(x), keep=keep)) / 2
return (x + self.mlp(self.norm2(x))) / 2
""",
        ),
        _wrong_block(
            "The norms are worked out without their learned gain and shift. Call the modules: `self.norm1(x)`.",
            """
x = x + self.attention(nn.functional.layer_norm(x, x.shape[-1:], eps=self.norm1.eps), keep=keep)
return x + self.mlp(nn.functional.layer_norm(x, x.shape[-1:], eps=self.norm2.eps))
""",
        ),
        _wrong_block(
            "The second half is missing: after attention comes the MLP.",
            """
return x + self.attention(self.norm1(x), keep=keep)
""",
        ),
        Mistake(
            "Without a mask your tokens see only the past. None allows everything; who wants a causal mask passes one.",
            code=_block("""
if keep is None:
    keep = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril()
x = x + self.attention(self.norm1(x), keep=keep)
return x + self.mlp(self.norm2(x))
""")
            .replace("torch.ones", "__import__('torch').ones")
            .replace("dtype=torch.bool", "dtype=bool"),
        ),
        Mistake(
            "The mask of the first image is used for the whole batch. Pass `keep` as it is.",
            old="keep=keep)",
            new="keep=None if keep is None else keep[:1])",
        ),
        Mistake(
            "The mask is transposed: rows are the tokens that look, columns those that are looked at. Pass `keep` as "
            "it is.",
            old="keep=keep)",
            new="keep=None if keep is None else keep.transpose(1, 2))",
        ),
        _wrong_block(
            "The norms are worked out with PyTorch's default eps of 1e-5. Call the modules, which know their own: "
            "`self.norm1(x)`.",
            """
f, (a, b) = nn.functional.layer_norm, (self.norm1, self.norm2)
x = x + self.attention(f(x, x.shape[-1:], a.weight, a.bias), keep=keep)
return x + self.mlp(f(x, x.shape[-1:], b.weight, b.bias))
""",
        ),
        _wrong_block(
            "`norm1` is worked out without its learned gain and shift. Call the module: `self.norm1(x)`.",
            """
x = x + self.attention(nn.functional.layer_norm(x, x.shape[-1:], eps=self.norm1.eps), keep=keep)
return x + self.mlp(self.norm2(x))
""",
        ),
        _wrong_block(
            "The block's input is added twice: the first sum holds it already.",
            """
y = x + self.attention(self.norm1(x), keep=keep)
return x + y + self.mlp(self.norm2(y))
""",
        ),
        _wrong_block(
            "The MLP comes twice. Once after attention is enough.",
            """
x = x + self.attention(self.norm1(x), keep=keep)
x = x + self.mlp(self.norm2(x))
return x + self.mlp(self.norm2(x))
""",
        ),
        _wrong_block(
            "The stream is detached: the straight path for the gradient, which no norm touches, is cut. Add to x "
            "itself.",
            """
x = x.detach() + self.attention(self.norm1(x), keep=keep)
return x + self.mlp(self.norm2(x))
""",
        ),
        _wrong_block(
            "No gradient goes through attention: its output is detached, so its weights never learn.",
            """
x = x + self.attention(self.norm1(x), keep=keep).detach()
return x + self.mlp(self.norm2(x))
""",
        ),
        _wrong_block(
            "No gradient leaves the MLP at its input: what `norm2` reads is detached.",
            """
x = x + self.attention(self.norm1(x), keep=keep)
return x + self.mlp(self.norm2(x.detach()))
""",
        ),
        _wrong_block(
            "No gradient leaves attention at its input: what `norm1` reads is detached.",
            """
x = x + self.attention(self.norm1(x.detach()), keep=keep)
return x + self.mlp(self.norm2(x))
""",
        ),
        _wrong_block(
            "You drop a tenth of the attention's output while training. This block has no dropout.",
            """
x = x + nn.functional.dropout(self.attention(self.norm1(x), keep=keep), 0.1, self.training)
return x + self.mlp(self.norm2(x))
""",
        ),
        _wrong_block(
            "You drop a tenth of what is added while training. This block has no dropout.",
            """
drop = lambda y: nn.functional.dropout(y, 0.1, self.training)
x = x + drop(self.attention(self.norm1(x), keep=keep))
return x + drop(self.mlp(self.norm2(x)))
""",
        ),
        _wrong_block(
            "The MLP's activation is written out as GELU. The block was handed its activation: call `self.mlp`.",
            """
x = x + self.attention(self.norm1(x), keep=keep)
return x + self.mlp[2](nn.functional.gelu(self.mlp[0](self.norm2(x))))
""",
        ),
    ],
    variants=[
        Variant(
            "step by step",
            _block("""
normalised = self.norm1(x)
update = self.attention(normalised, keep=keep)
stream = torch.add(x, update)
update = self.mlp(self.norm2(stream))
return torch.add(stream, update)
"""),
        ),
        Variant(
            "the same as its own context",
            _block("""
y = self.norm1(x)
x = x + self.attention(y, y, keep)
for part in (lambda z: self.mlp(self.norm2(z)),):
    x = x + part(x)
return x
"""),
        ),
        Variant(
            "the MLP by hand",
            _block("""
def normalise(z, norm):
    centred = z - z.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias

stream = self.attention(normalise(x, self.norm1), keep=keep) + x
hidden = self.mlp[1](self.mlp[0](normalise(stream, self.norm2)))
return self.mlp[2](hidden) + stream
"""),
        ),
    ],
    hints=[
        Hint(
            "where does the norm go?",
            "Into the argument. Post-norm is `norm(x + part(x))`, pre-norm is `x + part(norm(x))`. Equations 2 and 3 "
            "of the paper.",
        ),
        Hint(
            "my values are near but not right",
            "Follow the stream: `x` is overwritten once, by `x + ...`, and the MLP reads the new one. Nothing else "
            "may be assigned to `x`.",
        ),
        Hint(
            "show me nearly everything",
            "Two lines. First: x = x + self.attention(self.norm1(x), keep=keep). The second is the same with `mlp` and "
            "`norm2`, and it is returned.",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------------- ViT

_VIT_BODY = """\
        if tuple(image.shape[-2:]) != self.image_size:
            raise ValueError(f"this model reads images of {self.image_size}, not of {tuple(image.shape[-2:])} pixels")
        patches = self.to_token(patchify_image(image, self.patch))
        first = self.class_token.expand(len(image), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
"""
_CHECK = "tuple(image.shape[-2:]) != self.image_size"
_JOIN = "torch.cat([first, patches], dim=1) + self.positions"
_STACK = """\
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))"""
_READ = "self.head(self.norm(x[:, 0]))"


def _vit(body: str) -> str:
    return _with_body(ViT, _VIT_BODY, body)


def _pictures(b: int, c: int, height: int, width: int):
    return lambda g: dict(image=randn(g, b, c, height, width))


class _OtherBlock(PreNormBlock):
    """To see that the model is built of the blocks it is given."""

    def __init__(self, d: int, heads: int, d_ff: int):
        super().__init__(d, heads, d_ff, attention=_OtherAttention)


_VIT = dict(image_size=(6, 10), patch=2, channels=3, classes=7, d=12, heads=3, layers=2, d_ff=17)


def _fresh(cls: type) -> torch.nn.Module:
    torch.manual_seed(0)
    return cls(image_size=(30, 40), patch=2, channels=1, classes=7, d=64, heads=4, layers=1, d_ff=17)


def _nothing_is_drawn(cls: type) -> bool:
    torch.manual_seed(0)
    model = cls(**_VIT).train()
    torch.nn.init.normal_(model.head.weight)
    image = torch.randn(1, 3, 6, 10)
    with torch.no_grad():
        first = model(image)
        return all(torch.allclose(model(image), first, atol=1e-5) for _ in range(30))


VIT = Exercise(
    target=ViT,
    minutes=25,
    given=("__init__",),
    tolerance=5e-4,  # a bias of the keys has no gradient in theory, and rounding noise in practice
    cases=[
        Case("colour, 3 x 5 patches", _pictures(2, 3, 6, 10), init=_VIT),
        Case("more images", _pictures(5, 3, 6, 10), init=_VIT),
        Case("grey, one layer", _pictures(3, 1, 6, 4), init=_VIT | dict(image_size=(6, 4), channels=1, layers=1)),
        Case(
            "as many images as tokens, 3 layers", _pictures(7, 3, 6, 4), init=_VIT | dict(image_size=(6, 4), layers=3)
        ),
        Case("the image is one patch", _pictures(2, 3, 4, 4), init=_VIT | dict(image_size=(4, 4), patch=4)),
        Case("other blocks", _pictures(2, 3, 6, 10), init=_VIT | dict(block=_OtherBlock)),
        Case(
            "many sizes are 4",
            _pictures(4, 4, 4, 4),
            init=_VIT | dict(image_size=(4, 4), channels=4, classes=4, d=4, heads=2, layers=1, d_ff=4),
        ),
        Case("a larger image", _pictures(2, 3, 8, 12), init=_VIT),
        Case("a wider image", _pictures(2, 3, 6, 12), init=_VIT),
        Case("a higher image", _pictures(2, 3, 8, 10), init=_VIT),
        Case("a smaller image", _pictures(2, 3, 4, 10), init=_VIT),
        Case("an image on its side", _pictures(2, 3, 10, 6), init=_VIT),
        Case("as many patches, another shape", _pictures(2, 3, 2, 30), init=_VIT),
        Case("a height that is no multiple", _pictures(2, 3, 7, 10), init=_VIT),
    ],
    properties=[
        Property(
            "A fresh model must prefer no class: the head starts at zero, as the constructor was given to you.",
            lambda cls: not _fresh(cls)(torch.randn(2, 1, 30, 40)).any(),
        ),
        Property(
            "Positions start at random with a standard deviation of 0.02, as the constructor was given to you.",
            lambda cls: 0.018 < _fresh(cls).positions.std().item() < 0.022,
        ),
        Property(
            "In train mode the same image must get the same scores every time: nothing is left out at random, neither "
            "blocks nor numbers.",
            _nothing_is_drawn,
        ),
    ],
    mistakes=[
        Mistake(
            "Right but for the refusal: you count patches or pixels. An image on its side has as many, at other "
            "places: compare height and width themselves.",
            old=_CHECK,
            new="(image.shape[2] // self.patch) * (image.shape[3] // self.patch) + 1 != len(self.positions)",
        ),
        Mistake(
            "Right but for the refusal: width and height are compared in the wrong order. `image_size` is (height, "
            "width), and so are the last axes of an image.",
            old=_CHECK,
            new="(image.shape[3], image.shape[2]) != self.image_size",
        ),
        Mistake(
            "Right but for the refusal: `assert` raises AssertionError. Inputs are refused with `raise "
            "ValueError(...)`.",
            code=_vit("""
assert tuple(image.shape[-2:]) == self.image_size
patches = self.to_token(patchify_image(image, self.patch))
x = torch.cat([self.class_token.expand(len(image), 1, -1), patches], dim=1) + self.positions
for block in self.blocks:
    x = block(x)
return self.head(self.norm(x[:, 0]))
"""),
        ),
        Mistake(
            "Right but for the refusal: a list or torch.Size is compared with a tuple in a way that refuses images "
            "that fit. Compare `tuple(image.shape[-2:])` with `self.image_size`.",
            old=_CHECK,
            new="list(image.shape[-2:]) != self.image_size",
        ),
        Mistake(
            "You compare all four axes, or the first two, with `image_size`. Height and width are the last two.",
            old=_CHECK,
            new="tuple(image.shape[:2]) != self.image_size",
        ),
        Mistake(
            "The class token stands behind the patches, or the positions are shifted by one, which is the same to a "
            "Transformer: the class token got the last row, patch i row i. Row 0 is the class token's.",
            code=_vit("""
if tuple(image.shape[-2:]) != self.image_size:
    raise ValueError("another size")
patches = self.to_token(patchify_image(image, self.patch))
x = torch.cat([patches, self.class_token.expand(len(image), 1, -1)], dim=1) + self.positions
for block in self.blocks:
    x = block(x)
return self.head(self.norm(x[:, -1]))
"""),
        ),
        Mistake(
            "The class token stands behind the patches, and the scores are read from the first patch.",
            old="torch.cat([first, patches], dim=1)",
            new="torch.cat([patches, first], dim=1)",
        ),
        Mistake(
            "The scores are read from the last token, which is a patch. The class token is token 0.",
            old="x[:, 0]",
            new="x[:, -1]",
        ),
        Mistake(
            "The scores are read from the first patch. Token 0 is the class token, token 1 the first patch.",
            old="x[:, 0]",
            new="x[:, 1]",
        ),
        Mistake(
            "You average all tokens. That works too, and later models do it, but this one reads the class token alone "
            "(equation 4).",
            old="self.norm(x[:, 0])",
            new="self.norm(x).mean(1)",
        ),
        Mistake(
            "You average all tokens and normalise after. This model reads the class token alone (equation 4).",
            old="self.norm(x[:, 0])",
            new="self.norm(x.mean(1))",
        ),
        Mistake(
            "You average the patches and leave the class token out (global average pooling). This model reads the "
            "class token alone (equation 4).",
            old="self.norm(x[:, 0])",
            new="self.norm(x)[:, 1:].mean(1)",
        ),
        Mistake(
            "The last norm is missing. Pre-norm blocks leave the stream as large as it has grown; it is normalised "
            "once before anybody reads it.",
            old="self.norm(x[:, 0])",
            new="x[:, 0]",
        ),
        Mistake(
            "The scores of every token come back. Read the class token alone: x[:, 0].",
            old=_READ,
            new="self.head(self.norm(x))",
        ),
        Mistake(
            "You index the batch, not the tokens: x[0] is the first image with all its tokens. The class tokens of all "
            "images are x[:, 0].",
            old="x[:, 0]",
            new="x[0]",
        ),
        Mistake(
            "The head is missing: these are vectors of width d, not one score per class.",
            old=_READ,
            new="self.norm(x[:, 0])",
        ),
        Mistake(
            "The norm comes after the head. It belongs before: the head reads a normalised token.",
            old=_READ,
            new="F.layer_norm(self.head(x[:, 0]), (self.head.out_features,))",
        ),
        Mistake(
            "You return probabilities. The contract asks for logits: cross-entropy applies log-softmax itself, and "
            "after a softmax the loss cannot fall below ln(1 + 9/e) = 1.46 for ten classes.",
            old=_READ,
            new=f"{_READ}.softmax(-1)",
        ),
        Mistake(
            "You return sigmoids of the scores. The contract asks for the logits as they come from `head`.",
            old=_READ,
            new=f"{_READ}.sigmoid()",
        ),
        Mistake(
            "You return log-probabilities. The contract asks for the logits as they come from `head`.",
            old=_READ,
            new=f"{_READ}.log_softmax(-1)",
        ),
        Mistake(
            "You return the number of the best class. Training needs the scores of all classes.",
            old=_READ,
            new=f"{_READ}.argmax(-1)",
        ),
        Mistake(
            "No positions are added: this model would read any shuffled picture like the picture itself.",
            old=_JOIN,
            new="torch.cat([first, patches], dim=1)",
        ),
        Mistake(
            "The class token gets no position: positions were added to the patches alone. Row 0 of the table is the "
            "class token's.",
            old=_JOIN,
            new="torch.cat([first, patches + self.positions[1:]], dim=1)",
        ),
        Mistake(
            "Off by one: the patches got rows 0 to n - 1 of the positions, and the class token none. Row 0 belongs to "
            "the class token, row 1 + i to patch i.",
            old=_JOIN,
            new="torch.cat([first, patches + self.positions[:-1]], dim=1)",
        ),
        Mistake(
            "Tokens are multiplied with the positions. They are added.",
            old=_JOIN,
            new="torch.cat([first, patches], dim=1) * self.positions",
        ),
        Mistake(
            "The positions are concatenated to the tokens as more tokens. They are added: token i + position i.",
            old=_JOIN,
            new="torch.cat([first, patches, self.positions.expand(len(image), -1, -1)], dim=1)",
        ),
        Mistake(
            "The positions are added again before every block. The paper adds them once, at the bottom.",
            old="x = block(x)",
            new="x = block(x + self.positions)",
        ),
        Mistake(
            "The positions are added before every block, and so once for each. The paper adds them once, at the "
            "bottom.",
            old=_VIT_BODY.rstrip(),
            new=_VIT_BODY.rstrip()
            .replace(_JOIN, _JOIN.removesuffix(" + self.positions"))
            .replace("x = block(x)", "x = block(x + self.positions)"),
        ),
        Mistake(
            "You average the patches, normalise after, and leave the class token out. This model reads the class token "
            "alone (equation 4).",
            old="self.norm(x[:, 0])",
            new="self.norm(x[:, 1:].mean(1))",
        ),
        Mistake(
            "The first block is left out.",
            old="for block in self.blocks:",
            new="for block in self.blocks[1:]:",
        ),
        Mistake(
            "A block is left out at random while training (stochastic depth). This model runs all of them.",
            old="x = block(x)",
            new="x = block(x) if not self.training or torch.rand(()) > 0.1 else x",
        ),
        Mistake(
            "The last block is left out.",
            old="for block in self.blocks:",
            new="for block in self.blocks[:-1]:",
        ),
        Mistake(
            "You drop a tenth of the tokens' numbers while training. This model has no dropout.",
            old=_JOIN,
            new=f"F.dropout({_JOIN}, 0.1, self.training)",
        ),
        Mistake(
            "The tokens are multiplied by √d, as in lesson 02. ViT does not: its tokens come from a linear layer, not "
            "from a tied embedding.",
            old=_JOIN,
            new="torch.cat([first, patches * self.norm.weight.shape[0] ** 0.5], dim=1) + self.positions",
        ),
        Mistake(
            "All tokens are multiplied by √d, as in lesson 02. ViT does not: its tokens come from a linear layer, not "
            "from a tied embedding.",
            old=_JOIN,
            new="torch.cat([first, patches], dim=1) * self.norm.weight.shape[0] ** 0.5 + self.positions",
        ),
        Mistake(
            "A tanh stands between the last norm and the head, as in BERT's pooler. Here the head follows the norm.",
            old=_READ,
            new="self.head(self.norm(x[:, 0]).tanh())",
        ),
        Mistake(
            "The last norm is worked out without its learned gain and shift. Call the module: `self.norm`.",
            old=_READ,
            new="self.head(F.layer_norm(x[:, 0], x.shape[-1:], eps=self.norm.eps))",
        ),
        Mistake(
            "The class token is added to every token, once more. It is a token of its own, before the first patch, and "
            "no part of the others.",
            old=_JOIN,
            new="torch.cat([first, patches], dim=1) + self.positions + self.class_token",
        ),
        Mistake(
            "The class token takes the place of a patch, and the last patch is lost: there are 1 + n tokens.",
            old=_JOIN,
            new="torch.cat([first, patches[:, :-1]], dim=1) + self.positions[:-1]",
        ),
        Mistake(
            "The positions are added in reverse. Row 0 belongs to the class token, row 1 + i to patch i.",
            old=_JOIN,
            new="torch.cat([first, patches], dim=1) + self.positions.flip(0)",
        ),
        Mistake(
            "The class token and the mean of the patches are read together. This model reads the class token alone "
            "(equation 4).",
            old="self.norm(x[:, 0])",
            new="self.norm(x[:, 0] + x[:, 1:].mean(1))",
        ),
        Mistake(
            "The largest value over all tokens is read. This model reads the class token alone (equation 4).",
            old="self.norm(x[:, 0])",
            new="self.norm(x.amax(1))",
        ),
        Mistake(
            "The class token is put in as zeros. It starts at zero, but it is learned: use `self.class_token`.",
            old="self.class_token.expand(len(image), 1, -1)",
            new="torch.zeros(len(image), 1, len(self.class_token))",
        ),
        Mistake(
            "There is no class token: the first patch is read in its place.",
            old=_JOIN,
            new="patches + self.positions[1:]",
        ),
        Mistake(
            "The class token is added to every patch. It is a token of its own, before the first patch.",
            old=_JOIN,
            new="first + patches + self.positions[1:]",
        ),
        Mistake(
            "There is one class token for the whole batch: `torch.cat` needs (b, 1, d) beside "
            "(b, n, d). `self.class_token.expand(b, 1, -1)` makes one for each image.",
            old="self.class_token.expand(len(image), 1, -1)",
            new="self.class_token[None, None]",
        ),
        Mistake(
            "Patches are cut with channels first, (c, ph, pw), so each weight of `to_token` meets the wrong number. "
            "Use `patchify_image`.",
            old="patchify_image(image, self.patch)",
            new="F.unfold(image, self.patch, stride=self.patch).mT",
        ),
        Mistake(
            "The pixels are reshaped to tokens, so each token is a run of rows, not a square. Use `patchify_image`.",
            old="patchify_image(image, self.patch)",
            new="image.reshape(len(image), len(self.positions) - 1, -1)",
        ),
        Mistake(
            "The patches are numbered down the columns. Use `patchify_image`, which numbers them along the rows.",
            old="patchify_image(image, self.patch)",
            new='rearrange(image, "b c (h p) (w q) -> b (w h) (p q c)", p=self.patch, q=self.patch)',
        ),
        Mistake(
            "The patches are normalised before `to_token`. The paper embeds the pixels as they are.",
            old="patchify_image(image, self.patch)",
            new="F.layer_norm(patchify_image(image, self.patch), (self.to_token.in_features,))",
        ),
        Mistake(
            "The tokens are normalised before the first block. Each block normalises what it reads; `norm` comes once, "
            "at the end.",
            old=_JOIN,
            new=f"self.norm({_JOIN})",
        ),
        Mistake(
            "The norm comes before the blocks instead of after them.",
            old=_VIT_BODY.rstrip(),
            new=_VIT_BODY.rstrip().replace(_JOIN, f"self.norm({_JOIN})").replace(_READ, "self.head(x[:, 0])"),
        ),
        Mistake(
            "The last norm is applied after every block. It comes once, after all of them.",
            old="x = block(x)",
            new="x = self.norm(block(x))",
        ),
        Mistake(
            "A residual around whole blocks: x + block(x). A block adds its residuals by itself.",
            old="x = block(x)",
            new="x = x + block(x)",
        ),
        Mistake(
            "Every block starts from the embedded patches again, so only the last one counts.",
            old=_STACK,
            new=_STACK.replace("x = block(x)", "y = block(x)").replace("x[:, 0]", "y[:, 0]"),
        ),
        Mistake(
            "Only the first block runs: the return stands inside the loop.",
            old=_STACK,
            new=_STACK.replace("        return", "            return"),
        ),
        Mistake(
            "The first block is used every time. Each block has its own weights.",
            old="x = block(x)",
            new="x = self.blocks[0](x)",
        ),
        Mistake(
            "The blocks run from the last to the first.",
            old="for block in self.blocks:",
            new="for block in reversed(self.blocks):",
        ),
        Mistake(
            "The blocks never run: the class token has not seen the picture.",
            old="x = block(x)",
            new="pass",
        ),
        Mistake(
            "A causal mask reaches the blocks. In a picture every patch may look at every other, and the class token, "
            "which is first, must see them all.",
            old="x = block(x)",
            new="x = block(x, torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril())",
        ),
        Mistake(
            "A nonlinearity follows `to_token`. The paper's patch embedding is linear.",
            old="self.to_token(patchify_image(image, self.patch))",
            new="F.gelu(self.to_token(patchify_image(image, self.patch)))",
        ),
        Mistake(
            "The scores go through a nonlinearity. They are the head's outputs as they are, negative ones too.",
            old=_READ,
            new=f"F.relu({_READ})",
        ),
        Mistake(
            "A smaller image is read with the first rows of the positions, which belong to other places. Only images "
            "of exactly `self.image_size` are read; everything else is refused.",
            code=_vit("""
if image.shape[2] > self.image_size[0] or image.shape[3] > self.image_size[1]:
    raise ValueError("too large")
patches = self.to_token(patchify_image(image, self.patch))
x = torch.cat([self.class_token.expand(len(image), 1, -1), patches], dim=1)
x = x + self.positions[: x.shape[1]]
for block in self.blocks:
    x = block(x)
return self.head(self.norm(x[:, 0]))
"""),
        ),
        Mistake(
            "Right but for the refusal: you refuse larger images only. Smaller ones do not fit the positions either.",
            old=_CHECK,
            new="image.shape[2] > self.image_size[0] or image.shape[3] > self.image_size[1]",
        ),
        Mistake(
            "The last norm is worked out with PyTorch's default eps of 1e-5. Call the module, which knows its own: "
            "`self.norm`.",
            old=_READ,
            new="self.head(F.layer_norm(x[:, 0], x.shape[-1:], self.norm.weight, self.norm.bias))",
        ),
        Mistake(
            "Right but for the refusal: height and width must both be compared, and either of them alone must refuse "
            "(`or`, not `and`). A wider image stops somewhere inside, with an error that says nothing of images.",
            old=_CHECK,
            new="image.shape[-2] != self.image_size[0]",
        ),
        Mistake(
            "Right but for the refusal: the width is compared, the height is not. A higher image stops somewhere "
            "inside, with an error that says nothing of images.",
            old=_CHECK,
            new="image.shape[-1] != self.image_size[1]",
        ),
        Mistake(
            "Right but for the refusal: nobody looks whether the image has the size that the model was built for. Most "
            "others stop somewhere inside, and one with equally many patches slips through, every patch with the "
            "position of another place. Compare height and width with `self.image_size`.",
            old=_CHECK,
            new="False",
        ),
    ],
    variants=[
        Variant(
            "class token repeated, norm on all tokens",
            _vit("""
b, _, height, width = image.shape
if (height, width) != self.image_size:
    raise ValueError(f"got {height} x {width} pixels, expected {self.image_size}")
tokens = self.to_token(patchify_image(image, self.patch))
cls = self.class_token.reshape(1, 1, -1).repeat(b, 1, 1)
z = torch.cat((cls, tokens), 1)
z = z + self.positions.unsqueeze(0)
for i in range(len(self.blocks)):
    z = self.blocks[i](z)
z = self.norm(z)
return self.head(z)[:, 0, :]
"""),
        ),
        Variant(
            "positions added apart, functools.reduce",
            _vit("""
import functools
if list(image.shape[2:]) != list(self.image_size):
    raise ValueError("another size")
tokens = F.linear(patchify_image(image, self.patch), self.to_token.weight, self.to_token.bias) + self.positions[1:]
first = (self.class_token + self.positions[0]).expand(image.shape[0], -1)[:, None]
x = functools.reduce(lambda z, block: block(z), self.blocks, torch.cat([first, tokens], dim=-2))
return self.head(self.norm(x).select(1, 0))
"""),
        ),
        Variant(
            "a convolution made of to_token",
            _vit("""
if image.shape[2] != self.image_size[0] or image.shape[3] != self.image_size[1]:
    raise ValueError("another size")
kernel = self.to_token.weight.unflatten(1, (self.patch, self.patch, -1)).permute(0, 3, 1, 2)
grid = F.conv2d(image, kernel, self.to_token.bias, stride=self.patch)
x = torch.stack([self.class_token] * len(image))[:, None]
x = torch.cat([x, grid.flatten(2).transpose(1, 2)], dim=1).add(self.positions)
x = nn.Sequential(*self.blocks)(x)
return nn.Sequential(self.norm, self.head)(x[:, :1]).squeeze(1)
"""),
        ),
        Variant(
            "written into an empty tensor",
            _vit("""
if tuple(image.shape[-2:]) != tuple(self.image_size):
    raise ValueError("another size")
patches = self.to_token(patchify_image(image, self.patch))
x = torch.empty(len(image), 1 + patches.shape[1], patches.shape[2])
x[:, 0] = self.class_token
x[:, 1:] = patches
x = x + self.positions
for block in self.blocks:
    x = block(x)
return (self.norm(x[:, 0]) @ self.head.weight.T) + self.head.bias
"""),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "The five steps of the docstring are five lines. Print shapes on the way: patches (b, n, patch² c), tokens "
            "(b, n, d), with the class token (b, 1 + n, d), and so on up to the last line, which is (b, classes).",
        ),
        Hint(
            "torch.cat complains about my class token",
            "`class_token` has one axis, (d,). Every image needs one: `self.class_token.expand(len(image), 1, -1)` is "
            "(b, 1, d) and copies nothing.",
        ),
        Hint(
            "my scores are near but not right",
            "Positions are added to all 1 + n tokens, after the class token was put in front. The last norm comes "
            "before the head.",
        ),
        Hint(
            "show me nearly everything",
            "patches = self.to_token(patchify_image(image, self.patch)); x = torch.cat([first, patches], dim=1) + "
            "self.positions; for block in self.blocks: x = block(x); return self.head(self.norm(x[:, 0])). And the "
            "refusal first.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------- positions

_STRETCH = 'F.interpolate(on_grid, size=tuple(new_grid), mode="bilinear", align_corners=True)'
_ENOUGH = "count != 1 + h * w"
_ON_GRID = 'rearrange(positions[1:], "(h w) d -> 1 d h w", h=h)'
_RESULT = 'torch.cat([positions[:1], rearrange(stretched, "1 d h w -> (h w) d")])'


def _table(grid: tuple[int, int], new_grid: tuple[int, int], d: int = 13, rows: int | None = None):
    rows = 1 + grid[0] * grid[1] if rows is None else rows
    return lambda g: dict(positions=randn(g, rows, d), grid=grid, new_grid=new_grid)


RESIZE = Exercise(
    target=resize_positions,
    minutes=15,
    cases=[
        Case("more patches", _table((3, 5), (7, 11))),
        Case("fewer patches", _table((7, 5), (3, 2))),
        Case("11 rows become 15", _table((11, 2), (15, 3), d=5)),
        Case("twice as many each way", _table((2, 3), (4, 6))),
        Case("as many patches, in another grid", _table((2, 6), (4, 3))),
        Case("the same grid", _table((3, 5), (3, 5))),
        Case("a new grid with a single row", _table((3, 5), (1, 7))),
        Case("a new grid with a single column", _table((3, 5), (7, 1))),
        Case("an old grid with a single row", _table((1, 5), (3, 7))),
        Case("square, and as wide as high as deep", _table((3, 3), (5, 5), d=3)),
        Case("positions without a class token", _table((3, 5), (7, 11), rows=15)),
        Case(
            "in double precision",
            lambda g: dict(positions=_fine(randn(g, 16, 7)), grid=(3, 5), new_grid=(6, 8)),
        ),
        Case("more columns, as many rows", _table((3, 5), (3, 8))),
        Case("more rows, as many columns", _table((3, 5), (7, 5))),
        Case("rows and columns change places", _table((3, 5), (5, 3))),
        Case("a new grid of one square", _table((3, 5), (1, 1))),
        Case("the same grid, but too many positions", _table((3, 5), (3, 5), rows=17)),
        Case("too many positions", _table((3, 5), (7, 11), rows=17)),
        Case("twice as many positions", _table((3, 5), (7, 11), rows=31)),
    ],
    mistakes=[
        Mistake(
            "The result is float32 whatever the table was: keep its dtype.",
            old="return torch.cat([positions[:1]",
            new="positions, stretched = positions.float(), stretched.float()\n    return torch.cat([positions[:1]",
        ),
        Mistake(
            "The class token was interpolated with the rest: you stretched all rows as one line. It has no place in "
            "the picture; copy row 0, and stretch the others on their grid.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                n = 1 + new_grid[0] * new_grid[1]
                return F.interpolate(positions.T[None], size=n, mode="linear", align_corners=True)[0].T
            """,
        ),
        Mistake(
            "The patches were stretched as one line of n rows. They lie on a grid: the square below is w rows further "
            "on, and just as near as the one to the right. Make the grid first, then interpolate in two directions.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                n = new_grid[0] * new_grid[1]
                rest = F.interpolate(positions[1:].T[None], size=n, mode="linear", align_corners=True)[0].T
                return torch.cat([positions[:1], rest])
            """,
        ),
        Mistake(
            "`F.interpolate` stretches the last two axes, and yours are (w, d): you interpolate between channels. "
            "Move d in front of the grid first: (1, d, h, w).",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                x = positions[1:].reshape(1, grid[0], grid[1], -1)
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([positions[:1], x.reshape(new_grid[0] * new_grid[1], -1)])
            """,
        ),
        Mistake(
            "Your reshape to (1, d, h, w) does not move d, it cuts memory at other places, so channels and places are "
            "mixed. Make it (h, w, d) first, then permute.",
            old=_ON_GRID,
            new="positions[1:].reshape(1, -1, h, w)",
        ),
        Mistake(
            "On the way back, the reshape mixes channels and places: (1, d, h, w) must become (h, w, d) by permuting "
            "before the last reshape.",
            old='rearrange(stretched, "1 d h w -> (h w) d")',
            new="stretched.reshape(-1, positions.shape[1])",
        ),
        Mistake(
            "Both reshapes mix channels and places: `reshape` never moves an axis. Permute (h, w, d) to (d, h, w) "
            "before stretching, and back after.",
            old='rearrange(positions[1:], "(h w) d -> 1 d h w", h=h)\n    stretched = '
            'F.interpolate(on_grid, size=tuple(new_grid), mode="bilinear", align_corners=True)\n    return '
            'torch.cat([positions[:1], rearrange(stretched, "1 d h w -> (h w) d")])',
            new="positions[1:].reshape(1, -1, h, w)\n    stretched = F.interpolate(on_grid, size=tuple(new_grid), "
            'mode="bilinear", align_corners=True)\n    return torch.cat([positions[:1], '
            "stretched.reshape(-1, positions.shape[1])])",
        ),
        Mistake(
            "The corners moved: this is `align_corners=False`, PyTorch's default, which takes a position for the "
            "middle of a square of its own. The contract keeps the four corners where they are.",
            old=", align_corners=True",
            new=", align_corners=False",
        ),
        Mistake(
            "This is the nearest old position, not a mixture of its neighbours: `F.interpolate` does that unless you "
            "say "
            'mode="bilinear".',
            old=_STRETCH,
            new="F.interpolate(on_grid, size=tuple(new_grid))",
        ),
        Mistake(
            "This is bicubic interpolation (as torchvision's helper does). The contract, and the paper's code, "
            "interpolate linearly.",
            old='"bilinear"',
            new='"bicubic"',
        ),
        Mistake(
            "This is bicubic interpolation with moving corners (as timm does). The contract interpolates linearly and "
            "keeps the corners.",
            old='mode="bilinear", align_corners=True',
            new='mode="bicubic"',
        ),
        Mistake(
            "This is bicubic interpolation with antialiasing. The contract interpolates linearly and keeps the "
            "corners.",
            old='mode="bilinear", align_corners=True',
            new='mode="bicubic", antialias=True',
        ),
        Mistake(
            "Antialiasing smooths over more neighbours when the grid shrinks, and moves the corners. The contract "
            "asks for plain linear interpolation between fixed corners.",
            old='mode="bilinear", align_corners=True',
            new='mode="bilinear", antialias=True',
        ),
        Mistake(
            "The old positions are averaged over areas. The contract interpolates linearly between neighbours.",
            old=_STRETCH,
            new="F.adaptive_avg_pool2d(on_grid, tuple(new_grid))",
        ),
        Mistake(
            "The old grid is read down the columns: there are h rows of w squares, and w runs faster.",
            old='"(h w) d -> 1 d h w", h=h',
            new='"(w h) d -> 1 d h w", h=h',
        ),
        Mistake(
            "The new grid is written down the columns: number it like words on a page.",
            old='"1 d h w -> (h w) d"',
            new='"1 d h w -> (w h) d"',
        ),
        Mistake(
            "Old and new grid are both read down the columns.",
            old='rearrange(positions[1:], "(h w) d -> 1 d h w", h=h)\n    stretched = '
            'F.interpolate(on_grid, size=tuple(new_grid), mode="bilinear", align_corners=True)\n    return '
            'torch.cat([positions[:1], rearrange(stretched, "1 d h w -> (h w) d")])',
            new='rearrange(positions[1:], "(w h) d -> 1 d h w", h=h)\n    stretched = F.interpolate(on_grid, '
            'size=tuple(new_grid), mode="bilinear", align_corners=True)\n    return torch.cat([positions[:1], '
            'rearrange(stretched, "1 d h w -> (w h) d")])',
        ),
        Mistake(
            "Height and width of the new grid changed places: it is (rows, columns).",
            old="size=tuple(new_grid)",
            new="size=tuple(new_grid)[::-1]",
        ),
        Mistake(
            "The old grid's height and width changed places: grid is (rows, columns), (h, w).",
            old='"(h w) d -> 1 d h w", h=h',
            new='"(h w) d -> 1 d h w", h=w',
        ),
        Mistake(
            "The class token is lost: the result needs 1 + new h * new w rows, row 0 copied.",
            old=_RESULT,
            new='rearrange(stretched, "1 d h w -> (h w) d")',
        ),
        Mistake(
            "The class token comes back as the last row. It is row 0, as it was.",
            old=_RESULT,
            new='torch.cat([rearrange(stretched, "1 d h w -> (h w) d"), positions[:1]])',
        ),
        Mistake(
            "Row 0 of the result is zero. The class token keeps its position: copy it.",
            old=_RESULT,
            new='torch.cat([torch.zeros_like(positions[:1]), rearrange(stretched, "1 d h w -> (h w) d")])',
        ),
        Mistake(
            "The last row was taken for the class token's, and comes back last. It is row 0, and the patches are rows "
            "1 and on.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                x = rearrange(positions[:-1], "(h w) d -> 1 d h w", h=grid[0])
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([rearrange(x, "1 d h w -> (h w) d"), positions[-1:]])
            """,
        ),
        Mistake(
            "An axis for the batch is left over: the result is (rows, d).",
            old=_RESULT,
            new='torch.cat([positions[:1], rearrange(stretched, "1 d h w -> (h w) d")])[None]',
        ),
        Mistake(
            "The result is still a grid, or its axes are swapped: rows are places, columns are the d channels.",
            old=_RESULT,
            new='torch.cat([positions[:1], rearrange(stretched, "1 d h w -> (h w) d")]).T',
        ),
        Mistake(
            "Where old and new grid have equally many squares, you return the table as it is. 2 x 6 and 4 x 3 squares "
            "are equally many, at other places.",
            code="""
            def resize_positions(positions, grid, new_grid):
                (h, w), count = grid, len(positions)
                if count != 1 + h * w:
                    raise ValueError("does not fit")
                if h * w == new_grid[0] * new_grid[1]:
                    return positions
                x = rearrange(positions[1:], "(h w) d -> 1 d h w", h=h)
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([positions[:1], rearrange(x, "1 d h w -> (h w) d")])
            """,
        ),
        Mistake(
            "You take the old grid for a square, √n x √n. The caller says what it is: use `grid`.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                edge = int((len(positions) - 1) ** 0.5)
                x = positions[1 : 1 + edge * edge].reshape(edge, edge, -1).permute(2, 0, 1)[None]
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([positions[:1], x[0].flatten(1).T])
            """,
        ),
        Mistake(
            "You repeat the old rows in order until there are enough. Neighbouring places should have neighbouring "
            "vectors: interpolate on the grid.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                n = new_grid[0] * new_grid[1]
                rest = positions[1:].repeat(n // (grid[0] * grid[1]) + 1, 1)[:n]
                return torch.cat([positions[:1], rest])
            """,
        ),
        Mistake(
            "Right but for the refusal: a table that does not fit the grid gets einops' error, which is no ValueError. "
            "Compare the number of rows with 1 + h w first.",
            old=_ENOUGH,
            new="False",
        ),
        Mistake(
            "You compare the rows with h w and forget the class token: there are 1 + h w of them.",
            old=_ENOUGH,
            new="count != h * w",
        ),
        Mistake(
            "Right but for the refusal: surplus rows are cut off without a word. The table must have exactly 1 + h w "
            "rows.",
            code="""
            def resize_positions(positions, grid, new_grid):
                h, w = grid
                if len(positions) < 1 + h * w:
                    raise ValueError("does not fit")
                x = rearrange(positions[1 : 1 + h * w], "(h w) d -> 1 d h w", h=h)
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([positions[:1], rearrange(x, "1 d h w -> (h w) d")])
            """,
        ),
        Mistake(
            "A table without a class token is accepted. The contract wants 1 + h w rows; anything else is refused "
            "with a ValueError.",
            code="""
            def resize_positions(positions, grid, new_grid):
                h, w = grid
                first = positions[: len(positions) - h * w]
                if len(first) > 1:
                    raise ValueError("does not fit")
                x = rearrange(positions[len(first) :], "(h w) d -> 1 d h w", h=h)
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([first, rearrange(x, "1 d h w -> (h w) d")])
            """,
        ),
        Mistake(
            "The result is cut off from the table that came in: `.detach()`, `.data`, `torch.no_grad()` or a new "
            "`nn.Parameter` stops the gradient. Who wants a parameter can make one of the result.",
            old="return torch.cat([positions[:1]",
            new="positions, stretched = positions.detach(), stretched.detach()\n    return torch.cat([positions[:1]",
        ),
        Mistake(
            "The places between are worked out in float32 (`torch.linspace` and `torch.arange` make that, unless they "
            "are told otherwise): for a table in float64 give them `dtype=positions.dtype`.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")

                def weights(old, new):
                    places = torch.linspace(0, old - 1, new)[:, None]
                    return (1 - (places - torch.arange(old)).abs()).clamp(min=0)

                down, across = (weights(o, n).to(positions) for o, n in zip(grid, new_grid))
                table = torch.einsum("yh,xw,hwd->yxd", down, across, positions[1:].reshape(*grid, -1))
                return torch.cat([positions[:1], table.flatten(0, 1)])
            """,
        ),
        Mistake(
            "Where the number of rows stays, columns are taken from the nearest place. They are interpolated "
            "all the same.",
            old=_STRETCH,
            new="F.interpolate(on_grid, size=tuple(new_grid)) if h == new_grid[0] else " + _STRETCH,
        ),
        Mistake(
            "Where the number of columns stays, rows are taken from the nearest place. They are interpolated "
            "all the same.",
            old=_STRETCH,
            new="F.interpolate(on_grid, size=tuple(new_grid)) if w == new_grid[1] else " + _STRETCH,
        ),
        Mistake(
            "Where height and width only change places, you return the table as it is. A grid of 5 x 3 is another "
            "one than 3 x 5.",
            old="    on_grid = ",
            new="    if set(grid) == set(new_grid):\n        return positions\n    on_grid = ",
        ),
        Mistake(
            "A new grid of one square gets the mean of the table. The contract says: the first row, and the first "
            "column.",
            old=_STRETCH,
            new="on_grid.mean((2, 3), keepdim=True) if tuple(new_grid) == (1, 1) else " + _STRETCH,
        ),
        Mistake(
            "Twice as many rows as squares slip through: the table must have exactly 1 + h w rows, not a multiple.",
            code="""
            def resize_positions(positions, grid, new_grid):
                h, w = grid
                if (len(positions) - 1) % (h * w):
                    raise ValueError("does not fit")
                x = positions[1:].reshape(1, h, w, -1).permute(0, 3, 1, 2)
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([positions[:1], x[0].flatten(1).T])
            """,
        ),
        Mistake(
            "One scale, that of the height, stretches both directions. Each has its own; give `size=`, the number of "
            "rows and columns itself.",
            old="size=tuple(new_grid)",
            new="scale_factor=new_grid[0] / h",
        ),
        Mistake(
            'This is the nearest old position (`mode="nearest-exact"`), not a mixture of its neighbours: "bilinear".',
            old=_STRETCH,
            new='F.interpolate(on_grid, size=tuple(new_grid), mode="nearest-exact")',
        ),
        Mistake(
            "Right but for one place: a new grid with a single column takes the last of the old ones. The contract "
            "says the first.",
            old=_STRETCH,
            new=_STRETCH.replace("on_grid", "on_grid[..., -1:] if new_grid[1] == 1 else on_grid"),
        ),
        Mistake(
            "`F.grid_sample` wants (x, y), the column first, for each new place; yours are (y, x).",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                y, x = (torch.linspace(-1, 1, n, dtype=positions.dtype) for n in new_grid)
                y, x = torch.meshgrid(y, x, indexing="ij")
                old = rearrange(positions[1:], "(h w) d -> 1 d h w", h=grid[0])
                new = F.grid_sample(old, torch.stack([y, x], -1)[None], padding_mode="border", align_corners=True)
                return torch.cat([positions[:1], rearrange(new, "1 d h w -> (h w) d")])
            """,
        ),
        Mistake(
            "`scale_factor` rounds: 11 rows times 15/11 come out as 14. Give `size=`, the number of rows and columns "
            "itself.",
            old="size=tuple(new_grid)",
            new="scale_factor=(new_grid[0] / h, new_grid[1] / w)",
        ),
        Mistake(
            "The distance between new rows is used for the columns too. Each direction has its own: (old - 1) / (new "
            "- 1).",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                step = (grid[0] - 1) / max(new_grid[0] - 1, 1)

                def weights(old, new):
                    places = (torch.arange(new).double() * step).clamp(max=old - 1)
                    return (1 - (places[:, None] - torch.arange(old)).abs()).clamp(min=0).to(positions)

                down, across = (weights(o, n) for o, n in zip(grid, new_grid))
                table = torch.einsum("yh,xw,hwd->yxd", down, across, positions[1:].reshape(*grid, -1))
                return torch.cat([positions[:1], table.flatten(0, 1)])
            """,
        ),
        Mistake(
            "A new grid with a single row divides by zero: (old - 1) / (new - 1) has no meaning there. The contract "
            "says what to do: take the first row.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")

                def weights(old, new):
                    places = torch.tensor([i * (old - 1) / (new - 1) for i in range(new)]).double()
                    return (1 - (places[:, None] - torch.arange(old)).abs()).clamp(min=0).to(positions)

                down, across = (weights(o, n) for o, n in zip(grid, new_grid))
                table = torch.einsum("yh,xw,hwd->yxd", down, across, positions[1:].reshape(*grid, -1))
                return torch.cat([positions[:1], table.flatten(0, 1)])
            """,
        ),
        Mistake(
            "Antialiasing smooths over more neighbours than two, so this is not plain linear interpolation.",
            old="align_corners=True)",
            new="align_corners=True, antialias=True)",
        ),
        Mistake(
            "The last row was taken for the class token's. It is row 0, and the patches are rows 1 and on.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                x = rearrange(positions[:-1], "(h w) d -> 1 d h w", h=grid[0])
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([positions[-1:], rearrange(x, "1 d h w -> (h w) d")])
            """,
        ),
        Mistake(
            "The new squares begin at the old corner but stop short of the other one: place i lies at i (old - 1) / "
            "(new - 1), not at i old / new.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                table = positions[1:].reshape(*grid, -1)
                for axis in (0, 1):
                    old, new = grid[axis], new_grid[axis]
                    place = torch.arange(new).to(positions) * old / new
                    low = place.long().clamp(max=old - 1)
                    part = (place - low).view(-1, 1, 1).transpose(0, axis)
                    table = (1 - part) * table.index_select(axis, low) + part * table.index_select(
                        axis, (low + 1).clamp(max=old - 1)
                    )
                return torch.cat([positions[:1], table.flatten(0, 1)])
            """,
        ),
        Mistake(
            "Right but for one place: a new grid with a single row or column takes the mean of the old ones. The "
            "contract says the first.",
            code="""
            def resize_positions(positions, grid, new_grid):
                (h, w), count = grid, len(positions)
                if count != 1 + h * w:
                    raise ValueError("does not fit")
                x = rearrange(positions[1:], "(h w) d -> 1 d h w", h=h)
                x = x.mean(2, keepdim=True) if new_grid[0] == 1 else x
                x = x.mean(3, keepdim=True) if new_grid[1] == 1 else x
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([positions[:1], rearrange(x, "1 d h w -> (h w) d")])
            """,
        ),
        Mistake(
            "Right but for one place: a new grid with a single row or column takes the middle of the old one. The "
            "contract says the first.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")

                def weights(old, new):
                    places = torch.arange(new).double()
                    places = places * (old - 1) / (new - 1) if new > 1 else places + (old - 1) / 2
                    return (1 - (places[:, None] - torch.arange(old)).abs()).clamp(min=0).to(positions)

                down, across = (weights(o, n) for o, n in zip(grid, new_grid))
                table = torch.einsum("yh,xw,hwd->yxd", down, across, positions[1:].reshape(*grid, -1))
                return torch.cat([positions[:1], table.flatten(0, 1)])
            """,
        ),
        Mistake(
            "Right but for the refusal: where nothing changes you return before you have looked. A table that does "
            "not fit is refused then too.",
            code="""
            def resize_positions(positions, grid, new_grid):
                if tuple(grid) == tuple(new_grid):
                    return positions
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                x = rearrange(positions[1:], "(h w) d -> 1 d h w", h=grid[0])
                x = F.interpolate(x, size=tuple(new_grid), mode="bilinear", align_corners=True)
                return torch.cat([positions[:1], rearrange(x, "1 d h w -> (h w) d")])
            """,
        ),
    ],
    variants=[
        Variant(
            "reshape and permute",
            """
            def resize_positions(positions, grid, new_grid):
                if positions.shape[0] - 1 != grid[0] * grid[1]:
                    raise ValueError("does not fit")
                first, rest = positions[0], positions[1:]
                rest = rest.reshape(*grid, -1).permute(2, 0, 1).unsqueeze(0)
                rest = F.interpolate(rest, size=list(new_grid), mode="bilinear", align_corners=True)
                return torch.vstack([first, rest.squeeze(0).flatten(1).T])
            """,
        ),
        Variant(
            "two matrices of weights, einsum",
            """
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")

                def weights(old, new):
                    places = torch.linspace(0, old - 1, new, dtype=torch.float64)[:, None]
                    return (1 - (places - torch.arange(old)).abs()).clamp(min=0)

                down, across = (weights(o, n).to(positions) for o, n in zip(grid, new_grid))
                table = positions[1:].reshape(grid[0], grid[1], -1)
                table = torch.einsum("yh,xw,hwd->yxd", down, across, table)
                return torch.cat([positions[:1], table.flatten(0, 1)])
            """,
        ),
        Variant(
            "F.grid_sample",
            """
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                y, x = (torch.linspace(-1, 1, n, dtype=positions.dtype) for n in new_grid)
                y, x = torch.meshgrid(y, x, indexing="ij")
                old = rearrange(positions[1:], "(h w) d -> 1 d h w", h=grid[0])
                new = F.grid_sample(old, torch.stack([x, y], -1)[None], padding_mode="border", align_corners=True)
                return torch.cat([positions[:1], rearrange(new, "1 d h w -> (h w) d")])
            """,
        ),
        Variant(
            "loops",
            """
            def resize_positions(positions, grid, new_grid):
                (h, w), (new_h, new_w) = grid, new_grid
                if len(positions) != 1 + h * w:
                    raise ValueError("does not fit")
                rows = [positions[0]]
                for i in range(new_h):
                    y = i * (h - 1) / (new_h - 1) if new_h > 1 else 0.0
                    for j in range(new_w):
                        x = j * (w - 1) / (new_w - 1) if new_w > 1 else 0.0
                        top, left = min(int(y), max(h - 2, 0)), min(int(x), max(w - 2, 0))
                        fy, fx = y - top, x - left
                        at = lambda a, b: positions[1 + min(a, h - 1) * w + min(b, w - 1)]
                        upper = (1 - fx) * at(top, left) + fx * at(top, left + 1)
                        lower = (1 - fx) * at(top + 1, left) + fx * at(top + 1, left + 1)
                        rows.append((1 - fy) * upper + fy * lower)
                return torch.stack(rows)
            """,
        ),
        Variant(
            "one direction after the other",
            """
            def resize_positions(positions, grid, new_grid):
                if len(positions) != 1 + grid[0] * grid[1]:
                    raise ValueError("does not fit")
                table = positions[1:].unflatten(0, tuple(grid))  # h w d
                table = F.interpolate(table.permute(0, 2, 1), size=new_grid[1], mode="linear", align_corners=True)
                table = F.interpolate(table.permute(2, 1, 0), size=new_grid[0], mode="linear", align_corners=True)
                return torch.cat([positions[:1], table.permute(2, 0, 1).flatten(0, 1)])
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Take row 0 aside. Make a grid of the rest, (h, w, d). Stretch it like a picture with d channels. Flatten "
            "it again and put row 0 back in front.",
        ),
        Hint(
            "F.interpolate does not take my tensor",
            "It wants pictures: (batch, channels, height, width), here (1, d, h, w). `reshape` to (h, w, d) first, "
            "then `permute(2, 0, 1)[None]`; a direct reshape to (1, d, h, w) would mix channels and places.",
        ),
        Hint(
            "my numbers are near but not right",
            'mode="bilinear", and `align_corners=True` keeps the corners. The defaults for both are something else.',
        ),
        Hint(
            "show me nearly everything",
            'on_grid = rearrange(positions[1:], "(h w) d -> 1 d h w", h=h); F.interpolate(on_grid, size=new_grid, '
            'mode="bilinear", align_corners=True); rearrange back; torch.cat with positions[:1] in front.',
        ),
    ],
)


EXERCISES = [PATCHIFY, UNPATCHIFY, BLOCK, VIT, RESIZE]
