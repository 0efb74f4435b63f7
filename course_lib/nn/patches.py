"""Patches: an image or a video as a sequence of tokens, and back. One order of numbers for the whole course."""

from einops import rearrange
from jaxtyping import Shaped
from torch import Tensor

Size3 = tuple[int, int, int]


def patch_grid(size: Size3, patch: Size3) -> Size3:
    """How many patches fit along frames, height and width; ``ValueError`` when they do not fit exactly."""
    if min(patch) < 1:
        raise ValueError(f"a patch needs at least one frame, row and column, but patch={patch}")
    if any(length % step for length, step in zip(size, patch, strict=True)):
        size = tuple(size)  # a torch.Size reads worse
        raise ValueError(f"frames x height x width = {size} is no multiple of the patch {patch}; pad or crop the video")
    f, h, w = (length // step for length, step in zip(size, patch, strict=True))
    return f, h, w


def patchify(video: Shaped[Tensor, "b c frames height width"], patch: Size3) -> Shaped[Tensor, "b n d"]:
    """Cut a video into non-overlapping spacetime patches, one token each.

    Patches are numbered as one reads a book: a frame of the grid is a page, so along the first row of the first frame,
    then its second row, ..., then the next frame. Time is slowest, width fastest. Within a token the numbers are
    ordered likewise: frame by frame of the patch, in each row by row, all channels of a pixel together.

    ``patch_grid(size, patch)`` of ``course_lib.nn.patches`` takes frames, height and width, refuses what does not fit,
    and counts the patches along each. You may use it.

    Args:
        video: (b, c, frames, height, width), at least one video; any values of any dtype, perhaps uint8 from a file, or
            NaN. No value changes.
        patch: frames, height and width of one patch, (pf, ph, pw). ``(1, p, p)`` is that of an image transformer.
    Returns: (b, n, d) with n = (frames / pf) (height / ph) (width / pw) and d = pf ph pw c, of the video's dtype.
    Raises: ValueError if frames, height or width is no multiple of the patch's, or if an edge of the patch is below 1.
    Source: OpenAI 2024, "Video generation models as world simulators", "Spacetime latent patches"; Arnab et al. 2021
    (ViViT), section 3.2, tubelet embedding.
    """
    f, h, w = patch_grid((video.shape[2], video.shape[3], video.shape[4]), patch)
    return rearrange(video, "b c (f pf) (h ph) (w pw) -> b (f h w) (pf ph pw c)", f=f, h=h, w=w)


def unpatchify(tokens: Shaped[Tensor, "b n d"], grid: Size3, patch: Size3) -> Shaped[Tensor, "b c frames height width"]:
    """Put spacetime patches back into a video: the exact inverse of ``patchify``.

    Args:
        tokens: (b, n, d), one patch each, time slowest and width fastest: along the first row of the first frame of the
            grid, then its second row, ..., then the next frame. Within a token likewise: frame by frame of the patch,
            in each row by row, all channels of a pixel together. Any values of any dtype, NaN too; none changes.
        grid: number of patches along frames, height and width, (f, h, w).
        patch: frames, height and width of one patch, (pf, ph, pw).
    Returns: (b, c, f pf, h ph, w pw) with c = d / (pf ph pw), of the tokens' dtype.
    Raises: ValueError if n is not f h w, or if d is no multiple of pf ph pw.
    """
    (f, h, w), (pf, ph, pw) = grid, patch
    if tokens.shape[1] != f * h * w:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {f} x {h} x {w} = {f * h * w} patches")
    if tokens.shape[2] % (pf * ph * pw):
        raise ValueError(f"{tokens.shape[2]} numbers per token are no multiple of the {pf * ph * pw} cells of {patch}")
    return rearrange(tokens, "b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)", f=f, h=h, w=w, pf=pf, ph=ph, pw=pw)


def patchify_image(image: Shaped[Tensor, "b c height width"], patch: int) -> Shaped[Tensor, "b n d"]:
    """Cut an image into non-overlapping squares, one token each.

    Squares are numbered like words on a page: along the first row, then along the second, and so on. Within a token
    the numbers are ordered likewise: pixel by pixel along the rows of the square, all channels of a pixel together.

    Args:
        image: (b, c, height, width), any values of any dtype: a picture from a file is uint8. No value changes.
        patch: edge of a square in pixels.
    Returns: (b, n, d) with n = (height / patch) (width / patch) and d = patch * patch * c, of the image's dtype.
    Raises: ValueError if height or width is no multiple of patch.
    Source: Dosovitskiy et al. 2021 (ViT), section 3.1.
    """
    height, width = image.shape[-2:]
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"an image of {height} x {width} pixels does not split into squares of {patch} x {patch}")
    return rearrange(image, "b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=patch, pw=patch)


def unpatchify_image(
    tokens: Shaped[Tensor, "b n d"], patch: int, height: int, width: int
) -> Shaped[Tensor, "b c height width"]:
    """Put squares back into images of ``height`` x ``width`` pixels: the exact inverse of ``patchify_image``.

    Args:
        tokens: (b, n, d), one square each, numbered like words on a page. Within a token the numbers are ordered
            likewise: pixel by pixel along the rows of the square, all channels of a pixel together. Any values of any
            dtype; none changes.
        patch: edge of a square in pixels.
        height, width: of the images, in pixels.
    Returns: (b, c, height, width) with c = d / patch^2, of the tokens' dtype.
    Raises: ValueError if height or width is no multiple of patch, if n is not (height / patch) (width / patch), or if d
        is no multiple of patch^2.
    """
    if patch < 1:
        raise ValueError(f"patch={patch}: a square needs an edge of at least one pixel")
    h, w = height // patch, width // patch
    if tokens.shape[1] != h * w or (h * patch, w * patch) != (height, width) or tokens.shape[2] % (patch * patch):
        raise ValueError(
            f"{tokens.shape[1]} tokens of {tokens.shape[2]} numbers do not make squares of {patch} x {patch} that fill "
            f"{height} x {width} pixels"
        )
    return rearrange(tokens, "b (h w) (ph pw c) -> b c (h ph) (w pw)", h=h, w=w, ph=patch, pw=patch)
