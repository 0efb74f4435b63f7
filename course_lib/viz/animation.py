"""Videos as animated PNG: lossless, small, and alive in JupyterLab, nbconvert and every browser without a script."""

import functools
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from course_lib.viz.picture import Picture

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# One dark card for every theme: around black clips a white page would blind the eye to faint greys. The card itself is
# grey, so that grey clips stay grey pictures, which take a third of the bytes.
CARD, TILE_EDGE, HEADING, WORDS, CLOCK = (33,) * 3, (100,) * 3, (165,) * 3, (234,) * 3, (200,) * 3
GAP = 8  # pixels between tiles
FONT_SIZE = 13
LINE = FONT_SIZE + 4
NOTES_WIDTH = 400
LAST_FRAME_HOLD = 3  # the last frame stays that many times longer, so that one sees where the loop closes


def to_uint8(video: Float[Tensor, "... c f h w"]) -> UInt8[Tensor, "b f h w 3"]:
    """[-1, 1] → 0 … 255 with a batch axis in front and colour last; values outside the range are clipped.

    Raises: ValueError for another number of axes, for channels other than 1 or 3, for NaN, and for no frames at all.
    """
    if video.ndim not in (4, 5):
        raise ValueError(f"a video has shape (c, f, h, w) or (b, c, f, h, w), not {tuple(video.shape)}")
    if video.ndim == 4:
        video = video[None]
    if video.shape[1] not in (1, 3):
        raise ValueError(
            f"a video has 1 or 3 channels, this one has {video.shape[1]}: (b, c, f, h, w) = {tuple(video.shape)}"
        )
    if video.numel() == 0:
        raise ValueError(f"there is nothing to show in shape {tuple(video.shape)}")
    video = video.detach().float().cpu()
    if not bool(torch.isfinite(video).all()):
        raise ValueError("the video contains NaN or infinity; look at the values that led to it")
    video = ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return video.movedim(1, -1).expand(*video.shape[:1], *video.shape[2:], 3)


def _plain_black(clips: UInt8[Tensor, "b f h w 3"]) -> UInt8[Tensor, "b f h w 3"]:
    """What is nearly black becomes black: nobody sees it, and a generated clip takes a third of the space in a file."""
    return torch.where(clips.amax(dim=-1, keepdim=True) < 13, 0, clips)


def show_video(
    video: Float[Tensor, "... c f h w"],
    *,
    alt: str,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
    fps: int | float = 8,
    columns: int | None = None,
    notes: Mapping[str, str] | None = None,
) -> Picture:
    """One clip, or a grid of clips that play together, as a moving picture with words.

    A thin bar under the clips shows where in the loop one is. With ``COURSE_MOTION=still`` in the environment, for
    people whom moving pictures disturb, the frames lie side by side instead.

    Args:
        video: (c, f, h, w) or (b, c, f, h, w) with 1 or 3 channels, values in [-1, 1] (clipped beyond).
        alt: what is to be seen, in words.
        labels: one line of text under each clip.
        scale: screen pixels per video pixel; by default as large as is pleasant.
        fps: frames per second.
        columns: clips per row; by default as many as fit.
        notes: heading → text, set to the right of the clips; they are added to ``alt``.

    Raises: ValueError for shapes that are no video, NaN, or labels that do not match the number of clips.
    """
    if os.environ.get("COURSE_MOTION", "").lower() == "still":
        return sheet(video, alt=alt, labels=labels)
    cards = _cards(_plain_black(to_uint8(video)), labels, scale, columns, clock=True)
    if notes:
        cards = _with_notes(cards, notes)
        alt = f"{alt} {' '.join(f'{heading}: {text}' for heading, text in notes.items())}"
    return Picture(_encode(cards, fps), alt, width=cards[0].width)


def show_images(
    images: Float[Tensor, "... c h w"],
    *,
    alt: str,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
    columns: int | None = None,
) -> Picture:
    """One image (c, h, w), or a grid of images (b, c, h, w), values in [-1, 1], as a picture with words."""
    cards = _cards(to_uint8(images.unsqueeze(-3)), labels, scale, columns, clock=False)
    return Picture(_encode(cards, fps=1), alt, width=cards[0].width)


def sheet(
    videos: Float[Tensor, "... c f h w"],
    *,
    alt: str,
    labels: Sequence[str] | None = None,
    frames: int = 8,
    scale: int | None = None,
) -> Picture:
    """A film strip for each clip: ``frames`` of its frames, evenly spread from the first to the last, side by side.

    Args:
        videos: (c, f, h, w) or (b, c, f, h, w), values in [-1, 1].
        alt: what is to be seen, in words.
        labels: a line of text above each strip.
        frames: how many frames of each clip to show (at most all).
        scale: screen pixels per video pixel.
    """
    clips = to_uint8(videos)
    if frames < 1:
        raise ValueError(f"frames={frames}; show at least one")
    picks = np.unique(np.linspace(0, clips.shape[1] - 1, min(frames, clips.shape[1])).round().astype(int))
    height, width = clips.shape[2:4]
    scale = scale or _pleasant_scale(width, across=len(picks))
    page_width = GAP + len(picks) * (width * scale + GAP)
    texts, words_height = _label_block(labels, len(clips), page_width - 2 * GAP)
    head = LINE + GAP
    row_height = words_height + height * scale + GAP
    page = Image.new("RGB", (page_width, head + len(clips) * row_height), CARD)
    draw = ImageDraw.Draw(page)
    for column, frame in enumerate(picks):
        left = GAP + column * (width * scale + GAP)
        draw.text((left, GAP // 2), f"frame {frame}" if column == 0 else str(frame), WORDS, _font())
        for row, clip in enumerate(clips):
            top = head + row * row_height
            if column == 0:
                draw.text((left, top), texts[row], WORDS, _font(), spacing=LINE - FONT_SIZE)
            _paste(page, draw, clip[frame].numpy(), (left, top + words_height), scale)
    return Picture(_encode([page], fps=1), alt, width=page_width)


def save_apng(
    video: Float[Tensor, "... c f h w"], path: str | Path, *, fps: int | float = 8, scale: int | None = None
) -> Path:
    """Writes a clip, or a grid of clips, as an animated PNG: lossless."""
    cards = _cards(to_uint8(video), None, scale, None, clock=False)
    return _write(path, _encode(cards, fps))


def save_gif(
    video: Float[Tensor, "... c f h w"],
    path: str | Path,
    *,
    fps: int | float = 8,
    scale: int | None = None,
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    comment: str = "",
) -> Path:
    """Writes a clip, or a grid of clips, as a GIF: at most 256 colours, but every program shows it.

    ``comment`` goes into the file, where programs can read it.
    """
    cards = _cards(to_uint8(video), labels, scale, columns, clock=False)
    # One palette for all frames: a palette per frame makes greys flicker.
    strip = np.concatenate([np.asarray(card) for card in cards])
    palette = Image.fromarray(strip).quantize(256, dither=Image.Dither.NONE)
    frames = [card.quantize(palette=palette, dither=Image.Dither.NONE) for card in cards]
    buffer = io.BytesIO()
    durations = _durations(len(frames), fps)
    options = {"duration": durations, "loop": 0, "optimize": True} | ({"comment": comment.encode()} if comment else {})
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], **options)
    return _write(path, buffer.getvalue())


def _cards(
    clips: UInt8[Tensor, "b f h w 3"], labels: Sequence[str] | None, scale: int | None, columns: int | None, clock: bool
) -> list[Image.Image]:
    """The grid of clips at each frame."""
    count, frames, height, width = clips.shape[:4]
    columns = min(count, columns or (5 if count > 4 else 4))
    if columns < 1:
        raise ValueError(f"columns={columns}; at least one clip stands in a row")
    scale = scale or _pleasant_scale(width, across=columns)
    tile_width, tile_height = width * scale, height * scale
    texts, words_height = _label_block(labels, count, tile_width - GAP // 2)
    below = words_height + GAP
    page_width = GAP + columns * (tile_width + GAP)
    page_height = GAP + math.ceil(count / columns) * (tile_height + below)
    clock = clock and frames > 1
    base = Image.new("RGB", (page_width, page_height + (GAP if clock else 0)), CARD)
    cards = []
    for frame in range(frames):
        page = base.copy()
        draw = ImageDraw.Draw(page)
        for index in range(count):
            left = GAP + index % columns * (tile_width + GAP)
            top = GAP + index // columns * (tile_height + below)
            _paste(page, draw, clips[index, frame].numpy(), (left, top), scale)
            draw.text((left, top + tile_height + 3), texts[index], WORDS, _font(), spacing=LINE - FONT_SIZE)
        if clock:
            right = GAP + (page_width - 2 * GAP) * frame / (frames - 1)
            draw.rectangle((GAP, page_height, page_width - GAP - 1, page_height + 2), fill=TILE_EDGE)
            draw.rectangle((GAP, page_height, max(GAP, right - 1), page_height + 2), fill=CLOCK)
        cards.append(page)
    return cards


def _with_notes(cards: Sequence[Image.Image], notes: Mapping[str, str]) -> list[Image.Image]:
    """Each card with the notes to its right."""
    texts = {heading: _wrap(text, NOTES_WIDTH - 2 * GAP, _font()) for heading, text in notes.items()}
    block = LINE // 2
    needed = sum(LINE * (text.count("\n") + 2) + block for text in texts.values()) + GAP
    left, height = cards[0].width, max(cards[0].height, needed)
    base = Image.new("RGB", (left + NOTES_WIDTH, height), CARD)
    draw, top = ImageDraw.Draw(base), GAP // 2
    for heading, text in texts.items():
        draw.text((left + GAP, top), heading, HEADING, _font())
        draw.text((left + GAP, top + LINE), text, WORDS, _font(), spacing=LINE - FONT_SIZE)
        top += LINE * (text.count("\n") + 2) + block
    pages = []
    for card in cards:
        page = base.copy()
        page.paste(card, (0, 0))
        pages.append(page)
    return pages


def _paste(page: Image.Image, draw: ImageDraw.ImageDraw, frame: np.ndarray, corner: tuple[int, int], scale: int):
    height, width = frame.shape[:2]
    left, top = corner
    # The edge belongs to the card: without it a black clip has no visible walls to bounce off.
    draw.rectangle((left - 1, top - 1, left + width * scale, top + height * scale), outline=TILE_EDGE)
    page.paste(Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.NEAREST), corner)


def _pleasant_scale(width: int, across: int) -> int:
    """About 240 pixels for one clip, and a row that fits the 800 pixels or so of a notebook's column."""
    target = min(240, 780 // across)
    return max(1, target // width)


def _label_block(labels: Sequence[str] | None, count: int, width: int) -> tuple[list[str], int]:
    """The labels broken into lines of ``width`` pixels, and the height that the longest of them takes."""
    if labels is None:
        return [""] * count, 0
    if len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} clips; give one for each")
    texts = [_wrap(label, width, _font()) for label in labels]
    return texts, max(text.count("\n") + 1 for text in texts) * LINE + 4


@functools.cache
def _font() -> Font:
    return ImageFont.load_default(FONT_SIZE)


def _wrap(text: str, width: int, font: Font) -> str:
    """The text with line breaks, so that it fits ``width`` pixels; a single word may stick out."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _durations(count: int, fps: int | float) -> list[int] | int:
    """Milliseconds for each frame."""
    if not fps > 0:
        raise ValueError(f"fps={fps} must be above zero")
    each = round(1000 / fps)
    return each if count == 1 else [each] * (count - 1) + [each * LAST_FRAME_HOLD]


def _encode(cards: Sequence[Image.Image], fps: int | float) -> bytes:
    buffer = io.BytesIO()
    if all(_is_grey(card) for card in cards):
        cards = [card.convert("L") for card in cards]
    if len(cards) == 1:
        cards[0].save(buffer, "PNG", optimize=True)
    else:
        durations = _durations(len(cards), fps)
        cards[0].save(buffer, "PNG", save_all=True, append_images=cards[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _is_grey(card: Image.Image) -> bool:
    red, green, blue = (np.asarray(band) for band in card.split())
    return np.array_equal(red, green) and np.array_equal(green, blue)


def _write(path: str | Path, content: bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
