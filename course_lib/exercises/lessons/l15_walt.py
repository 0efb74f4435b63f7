"""The exercises of lesson 15, W.A.L.T: causal convolutions, windows, masks for pictures, low-rank modulation, the
second look."""

import inspect
import textwrap
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.walt import AdaLNLoRA, picture_mask, self_conditioned, unwindow, window
from course_lib.nn.causal import CausalConv3d, causal_up


def _indented(body: str, depth: int) -> str:
    return textwrap.indent(textwrap.dedent(body).strip("\n"), " " * depth)


# ------------------------------------------------------------------------------------------------ causal convolutions

_CONV_HEAD = inspect.getsource(CausalConv3d.__init__)
_CONV_FIT = """
(kf, kh, kw), (sf, sh, sw) = self.kernel, self.stride
left, top = (kw - sw) // 2, (kh - sh) // 2
right, bottom = kw - sw - left, kh - sh - top
"""
_REFUSE = """
if (video.shape[2] - 1) % sf:
    raise ValueError("T is no multiple of the temporal stride")
"""
_PAST = "torch.cat([video[:, :, :1]] * (kf - 1) + [video], dim=2)"


def _conv_code(body: str, refuse: str = _REFUSE) -> str:
    lines = _indented(_CONV_FIT + _indented(refuse, 0) + "\n" + _indented(body, 0), 8)
    return f"class CausalConv3d(nn.Module):\n{_CONV_HEAD}\n    def forward(self, video):\n{lines}\n"


def _conv(
    sentence: str,
    past: str = _PAST,
    space: str = "left, right, top, bottom",
    mode: str = "constant",
    weight: str = "self.weight",
    bias: str = "self.bias",
    stride: str = "self.stride",
    end: str = "",
    refuse: str = _REFUSE,
) -> Mistake:
    """The convolution with one of its pieces exchanged."""
    body = f"""
video = {past}
video = F.pad(video, ({space}, 0, 0), mode="{mode}")
return F.conv3d(video, {weight}, {bias}, stride={stride}){end}
"""
    return Mistake(sentence, code=_conv_code(body, refuse))


def _conv_body(sentence: str, body: str, refuse: str = _REFUSE) -> Mistake:
    return Mistake(sentence, code=_conv_code(body, refuse))


def _filmed(b: int, c: int, frames: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Callable:
    return lambda g: dict(video=randn(g, b, c, frames, h, w).to(dtype))


def _conv_case(label: str, video: Callable, kernel: tuple, stride: tuple = (1, 1, 1), c: tuple = (3, 5)) -> Case:
    return Case(label, video, init=dict(c_in=c[0], c_out=c[1], kernel=kernel, stride=stride))


def _convolved(cls: type) -> tuple[Callable, Tensor]:
    torch.manual_seed(0)
    return cls(2, 3, (3, 3, 3), (2, 1, 1)), torch.randn(2, 2, 7, 4, 5)


def _hides_the_future(cls: type) -> bool:
    conv, video = _convolved(cls)
    other = torch.cat([video[:, :, :3], -video[:, :, 3:]], dim=2)
    return torch.allclose(conv(video)[:, :, :2], conv(other)[:, :, :2], atol=1e-5)


def _stays_still(cls: type) -> bool:
    conv, video = _convolved(cls)
    out = conv(video[:, :, :1].expand(-1, -1, 5, -1, -1))
    return torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-5)


CAUSAL_CONV = Exercise(
    target=CausalConv3d,
    minutes=20,
    given=("__init__",),
    cases=[
        _conv_case("kernel 3 everywhere", _filmed(2, 3, 7, 4, 6), (3, 3, 3)),
        _conv_case("every second frame", _filmed(2, 3, 7, 5, 4), (3, 3, 3), (2, 1, 1)),
        _conv_case("half as long, half as wide", _filmed(2, 3, 5, 8, 6), (3, 3, 3), (2, 2, 2)),
        _conv_case("kernel and stride 4 in time", _filmed(2, 3, 9, 4, 6), (4, 3, 3), (4, 1, 1)),
        _conv_case("even kernels", _filmed(2, 3, 5, 4, 7), (2, 4, 2)),
        _conv_case("a stride of its own for each axis", _filmed(2, 3, 7, 8, 9), (4, 4, 5), (3, 2, 3)),
        _conv_case("rows and columns that the stride does not divide", _filmed(2, 3, 3, 7, 11), (1, 4, 4), (1, 2, 3)),
        _conv_case("more columns than rows under the kernel", _filmed(2, 3, 4, 5, 8), (2, 1, 5)),
        _conv_case("one frame under the kernel, every third taken", _filmed(2, 3, 7, 4, 3), (1, 3, 3), (3, 1, 1)),
        _conv_case("a clip shorter than the kernel", _filmed(2, 3, 3, 4, 5), (5, 3, 3)),
        _conv_case("a picture", _filmed(2, 3, 1, 4, 5), (3, 3, 3)),
        _conv_case("a picture, and a stride in time", _filmed(2, 3, 1, 4, 6), (4, 3, 3), (2, 2, 2)),
        _conv_case("all sizes are 3", _filmed(3, 3, 3, 3, 3), (3, 3, 3), c=(3, 3)),
        Case(
            "double precision",
            lambda g: dict(video=randn(g, 2, 3, 5, 4, 5).double() * 1.1),
            init=dict(c_in=3, c_out=4, kernel=(2, 3, 3), stride=(2, 1, 1)),
            call=lambda conv, video: conv.double()(video),
        ),
        _conv_case(
            "4 behind the first frame, steps of 2 in time and of 3 in rows",
            _filmed(2, 3, 5, 6, 4),
            (2, 3, 3),
            (2, 3, 1),
        ),
        _conv_case("6 frames are not 1 + a multiple of 2", _filmed(1, 3, 6, 4, 4), (3, 3, 3), (2, 1, 1)),
        _conv_case("4 frames fill two groups of 2, but not 1 + 2 + 2", _filmed(1, 3, 4, 4, 4), (2, 3, 3), (2, 1, 1)),
        _conv_case("9 frames are not 1 + a multiple of 3", _filmed(1, 3, 9, 4, 4), (3, 3, 3), (3, 1, 1)),
    ],
    properties=[
        Property("Frame i of the result must not change when frames behind i * stride do.", _hides_the_future),
        Property("A clip that stands still must stay still: all frames of its result are equal.", _stays_still),
    ],
    mistakes=[
        _conv_body(
            "`F.pad` lists the last axis first: its first pair of numbers pads the *width*. Time is the third pair.",
            """
            video = F.pad(video, (kf - 1, 0, top, bottom, left, right))
            return F.conv3d(video, self.weight, self.bias, stride=self.stride)
            """,
        ),
        _conv_body(
            "`F.pad` lists the last axis first: with (time, height, width) you padded width by the kernel's frames and "
            "time by its columns. The order is width, height, time.",
            """
            past = torch.cat([video[:, :, :1]] * (kf - 1) + [video], dim=2)
            video = F.pad(past, (0, 0, top, bottom, left, right))
            return F.conv3d(video, self.weight, self.bias, stride=self.stride)
            """,
        ),
        _conv(
            "Time is padded with zeros, with black-ish frames that never were. The contract asks for copies of the "
            "first frame, so that a still clip stays still.",
            past="F.pad(video, (0, 0, 0, 0, kf - 1, 0))",
        ),
        _conv(
            "Time is padded by half a kernel on both sides, so every frame sees the next one. All of it goes in "
            "front: kernel - 1 copies of frame 0.",
            past="F.pad(video, (0, 0, 0, 0, (kf - 1) // 2, kf - 1 - (kf - 1) // 2))",
        ),
        _conv(
            "Copies stand on both ends of time, half a kernel each: every frame sees the next one. All of them go in "
            "front.",
            past="torch.cat([video[:, :, :1]] * ((kf - 1) // 2) + [video] + [video[:, :, -1:]] * "
            "(kf - 1 - (kf - 1) // 2), dim=2)",
        ),
        _conv(
            "The copies stand behind the clip, and are of its last frame: each frame sees the future and nothing of "
            "the past. Put copies of the first frame in front.",
            past="torch.cat([video] + [video[:, :, -1:]] * (kf - 1), dim=2)",
        ),
        _conv(
            "Zeros stand behind the clip: each frame sees the future and nothing of the past. Copies of the first "
            "frame go in front.",
            past="F.pad(video, (0, 0, 0, 0, 0, kf - 1))",
        ),
        _conv(
            "Copies of the *last* frame stand in front: the very first frame of the result sees the end of the clip. "
            "Before it began, the world stood still: copy frame 0.",
            past="torch.cat([video[:, :, -1:]] * (kf - 1) + [video], dim=2)",
        ),
        _conv(
            "The clip is bent round to a ring: its last frames stand before its first, so the future comes in through "
            "the front door. Copy frame 0.",
            past='F.pad(video, (0, 0, 0, 0, kf - 1, 0), mode="circular") if video.shape[2] >= kf - 1 else '
            "torch.cat([video] * kf, dim=2)[:, :, -(kf - 1 + video.shape[2]) :]",
        ),
        _conv(
            "The past is a mirror image of the beginning: frame 0 sees frames 1, 2, ..., which lie in its future. Copy "
            "frame 0 instead.",
            past="torch.cat([video[:, :, 1:kf].flip(2), video], dim=2)",
        ),
        _conv(
            "The first kernel - 1 frames are repeated, in front of themselves: frame 0 sees frame 1. All copies are of "
            "frame 0.",
            past="torch.cat([video[:, :, : kf - 1], video], dim=2)",
        ),
        _conv(
            "You put kernel - stride frames in front, as one pads space. Time is different: 1 + T must become "
            "1 + T / stride, and that takes kernel - 1 of them, whatever the stride.",
            past="torch.cat([video[:, :, :1]] * (kf - sf) + [video], dim=2)",
        ),
        _conv(
            "One copy too many: kernel of them in front. With kernel - 1 the last frame under the kernel is the "
            "present.",
            past="torch.cat([video[:, :, :1]] * kf + [video], dim=2)",
        ),
        _conv(
            "The clip is delayed by one: the kernel's last frame meets frame i - 1. It should meet the present, frame "
            "i: kernel - 1 copies in front, and no frame is dropped.",
            past="torch.cat([video[:, :, :1]] * kf + [video[:, :, :-1]], dim=2)",
        ),
        _conv(
            "Nothing is put in front of the clip, so it gets shorter, and a picture is too short for the kernel. "
            "Kernel - 1 copies of frame 0 go in front.",
            past="video",
        ),
        _conv(
            "Two copies stand in front, whatever the kernel. It is kernel - 1 of them; 2 is right for a kernel of 3 "
            "alone.",
            past="torch.cat([video[:, :, :1]] * 2 + [video], dim=2)",
        ),
        _conv(
            "Right but for the refusal: where T is no multiple of the temporal stride, raise a ValueError. Otherwise "
            "the end of the clip silently has no latent.",
            refuse="",
        ),
        _conv(
            "You refuse clips whose number of *frames* is no multiple of the stride. It is 1 + T frames, and T that "
            "must be a multiple: a picture, T = 0, is allowed.",
            refuse="if video.shape[2] % sf:\n    raise ValueError('frames')",
        ),
        _conv(
            "You ask whether frames % stride is 1. With a stride of 1 that remainder is always 0, so every clip is "
            "refused. Ask for (frames - 1) % stride.",
            refuse="if video.shape[2] % sf != 1:\n    raise ValueError('frames')",
        ),
        _conv(
            "You refuse pictures. A picture is a video of one frame, and must go through.",
            refuse=_REFUSE + "if video.shape[2] == 1:\n    raise ValueError('a picture')",
        ),
        _conv(
            "You refuse clips shorter than the kernel. The copies in front fill it; even one frame is enough.",
            refuse=_REFUSE + "if video.shape[2] < kf:\n    raise ValueError('too short')",
        ),
        _conv_body(
            "A picture meets only the last frame of the kernel. It is a clip whose past are copies of itself, so it "
            "meets all of them; else the first frame of a clip and the same picture by itself would differ.",
            """
            if video.shape[2] > 1:
                video = torch.cat([video[:, :, :1]] * (kf - 1) + [video], dim=2)
                weight = self.weight
            else:
                weight = self.weight[:, :, -1:]
            video = F.pad(video, (left, right, top, bottom))
            return F.conv3d(video, weight, self.bias, stride=self.stride)
            """,
        ),
        _conv(
            "Right but for the odd column and row of padding: where k - s is odd, it stands on the right and below, "
            "not on the left and on top.",
            space="right, left, bottom, top",
        ),
        _conv(
            "Padding for rows and columns changed places. `F.pad` wants left, right, top, bottom: columns first.",
            space="top, bottom, left, right",
        ),
        _conv(
            "Space is padded by k // 2 on all sides, whatever the stride and however even the kernel. It is k - s in "
            "all: (k - s) // 2 on the left and on top, the rest on the right and below.",
            space="kw // 2, kw // 2, kh // 2, kh // 2",
        ),
        _conv(
            "Space is padded by (k - 1) // 2 on all sides: right for odd kernels with stride 1 alone. It is k - s in "
            "all: (k - s) // 2 on the left and on top, the rest on the right and below.",
            space="(kw - 1) // 2, (kw - 1) // 2, (kh - 1) // 2, (kh - 1) // 2",
        ),
        _conv(
            "(k - 1) // 2 zeros stand on the left and on top, as for stride 1. With a stride s it is (k - s) // 2 of "
            "them, and k - s in all.",
            space="(kw - 1) // 2, kw - 1 - (kw - 1) // 2, (kh - 1) // 2, kh - 1 - (kh - 1) // 2",
        ),
        _conv(
            "Space is padded by (k - s) // 2 on every side; where k - s is odd, one more stands on the right and "
            "below.",
            space="left, left, top, top",
        ),
        _conv(
            "Space is not padded, so rows and columns get lost at every layer. It takes k - s zeros along each axis.",
            space="0, 0, 0, 0",
        ),
        _conv_body(
            "Space is padded like time, in front alone: everything moves to the right and down. Space has no "
            "direction: half of the zeros on either side.",
            f"""
            video = F.pad({_PAST}, (kw - sw, 0, kh - sh, 0))
            return F.conv3d(video, self.weight, self.bias, stride=self.stride)
            """,
        ),
        _conv(
            "Space is padded with copies of the border. Copies are for time; in space it is zeros.",
            mode="replicate",
        ),
        _conv(
            "The kernel is reversed in time: the last frame of the weights belongs to the present.",
            weight="self.weight.flip(2)",
        ),
        _conv("The bias is missing: `self.bias` is added to each output channel.", bias="None"),
        _conv(
            "Each axis moves on by one: the stride is not used.",
            stride="1",
        ),
        _conv(
            "The stride in time is used for all three axes. Each has its own.",
            stride="sf",
        ),
        _conv(
            "The stride in time is not used; 1 + T frames must become 1 + T / stride.",
            stride="(1, sh, sw)",
        ),
        _conv(
            "The stride is used in time alone. Rows and columns have strides of their own.",
            stride="(sf, 1, 1)",
        ),
        _conv(
            "The strides are read as (width, height, time). The order of the class is time, rows, columns.",
            stride="(sw, sh, sf)",
        ),
        _conv(
            "Frames are dropped before the convolution instead of after: the kernel then sees frames that lie stride "
            "apart. Its frames are neighbours; the stride only says where it stops.",
            past="(lambda v: torch.cat([v[:, :, :1]] * (kf - 1) + [v], dim=2))(video[:, :, ::sf])",
            stride="(1, sh, sw)",
        ),
        _conv(
            "You keep the last of every group of strides, and with it you begin at frame stride - 1. Begin at frame 0, "
            "and take every stride-th.",
            stride="(1, sh, sw)",
            end="[:, :, sf - 1 :: sf]",
        ),
        _conv(
            "The copies are detached: no gradient reaches frame 0 through them.",
            past="torch.cat([video[:, :, :1].detach()] * (kf - 1) + [video], dim=2)",
        ),
        _conv_body(
            "The bias is added twice: once inside the convolution and once behind it. Once is enough.",
            f"""
            video = F.pad({_PAST}, (left, right, top, bottom))
            return F.conv3d(video, self.weight, self.bias, stride=self.stride) + self.bias.view(-1, 1, 1, 1)
            """,
        ),
        _conv(
            "Before the beginning time runs backwards: frames 2 and 1 of the clip stand in front of frame 0, as in a "
            "mirror. They are its future. In front stand copies of frame 0.",
            past="video[:, :, torch.arange(1 - kf, video.shape[2]).abs().clamp(max=video.shape[2] - 1)]",
        ),
        _conv(
            "The clip's first kernel - 1 frames stand in front of it, filled up with frame 0 where there are not so "
            "many. All of what stands in front is frame 0.",
            past="torch.cat([video[:, :, : kf - 1]] + [video[:, :, :1]] * max(kf - 1 - video.shape[2], 0) + [video], "
            "dim=2)",
        ),
        _conv(
            "In front of the clip stands the mean of its first frames. They lie in the future of frame 0: copy frame 0 "
            "itself.",
            past="torch.cat([video[:, :, :kf].mean(2, keepdim=True)] * (kf - 1) + [video], dim=2)",
        ),
        _conv(
            "In front of every clip stand copies of the first sample's first frame. Each clip has a past of its own.",
            past="torch.cat([video[:1, :, :1].expand(len(video), -1, -1, -1, -1)] * (kf - 1) + [video], dim=2)",
        ),
        _conv(
            "Of the columns the larger half of the zeros stands on the left. Where k - s is odd, one more stands on "
            "the right.",
            space="right, left, top, bottom",
        ),
        _conv(
            "Of the rows the larger half of the zeros stands on top. Where k - s is odd, one more stands below.",
            space="left, right, bottom, top",
        ),
        _conv(
            "All zeros of space stand on the right and below: everything moves to the left and up. Half of them stand "
            "on either side.",
            space="0, kw - sw, 0, kh - sh",
        ),
        _conv(
            "Rows and columns that the stride does not divide are cut off before the convolution. They lie under the "
            "last kernel.",
            past="(lambda v: torch.cat([v[:, :, :1]] * (kf - 1) + [v], dim=2))"
            "(video[..., : video.shape[3] // sh * sh, : video.shape[4] // sw * sw])",
        ),
        _conv(
            "The kernel is reversed along all three axes. PyTorch's convolution lays it down as it is.",
            weight="self.weight.flip(2, 3, 4)",
        ),
        _conv(
            "A ReLU stands behind the convolution. The layer is the sum alone; what follows is for the network to say.",
            end=".relu()",
        ),
        _conv_body(
            "Behind frame 0 you count anew: frames 1, 1 + stride, ... are taken. It is 0, stride, 2 stride, ...",
            f"""
            video = F.pad({_PAST}, (left, right, top, bottom))
            out = F.conv3d(video, self.weight, self.bias, stride=(1, sh, sw))
            return torch.cat([out[:, :, :1], out[:, :, 1::sf]], dim=2)
            """,
        ),
        _conv(
            "The first frame of the result is dropped, so T / stride are left. It stands for frame 0, the picture.",
            end="[:, :, 1 if video.shape[2] > kf else 0 :]",
        ),
        _conv(
            "Your refusal asks the stride of the *rows*. T goes with the stride in time, the first of the three.",
            refuse="if (video.shape[2] - 1) % sh:\n    raise ValueError('T')",
        ),
    ],
    variants=[
        Variant(
            "pad with replicate, then conv3d",
            _conv_code("""
            video = F.pad(video, (0, 0, 0, 0, kf - 1, 0), mode="replicate")
            video = F.pad(video, (left, right, top, bottom))
            return F.conv3d(video, self.weight, self.bias, stride=self.stride)
            """),
        ),
        Variant(
            "frame by frame, one 2-D convolution for each frame of the kernel",
            _conv_code("""
            frames = []
            for i in range(0, video.shape[2], sf):
                total = self.bias.view(1, -1, 1, 1)
                for k in range(kf):
                    past = video[:, :, max(0, i - (kf - 1) + k)]
                    past = F.pad(past, (left, right, top, bottom))
                    total = total + F.conv2d(past, self.weight[:, :, k], stride=(sh, sw))
                frames.append(total)
            return torch.stack(frames, dim=2)
            """),
        ),
        Variant(
            "unfold and einsum",
            _conv_code("""
            first = video[:, :, 0:1].repeat(1, 1, kf - 1, 1, 1)
            padded = F.pad(torch.cat((first, video), 2), (left, right, top, bottom, 0, 0))
            boxes = padded.unfold(2, kf, sf).unfold(3, kh, sh).unfold(4, kw, sw)
            out = torch.einsum("bcfhwijk,dcijk->bdfhw", boxes, self.weight)
            return out + self.bias[:, None, None, None]
            """),
        ),
        Variant(
            "an index that stops at zero",
            _conv_code(
                """
            when = torch.arange(1 - kf, video.shape[2]).clamp(min=0)
            padded = torch.nn.ZeroPad2d((left, right, top, bottom))(video[:, :, when].flatten(1, 2))
            padded = padded.unflatten(1, (video.shape[1], len(when)))
            return torch.conv3d(padded, self.weight, self.bias, self.stride)
            """,
                refuse="""
            if (video.size(2) - 1) / sf != (video.size(2) - 1) // sf:
                raise ValueError(f"{video.size(2)} frames")
            """,
            ),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Three steps: put the past in front (time), pad with zeros (space), then `F.conv3d` with `self.weight`, "
            "`self.bias` and `self.stride`. Check T before all that.",
        ),
        Hint(
            "how do I repeat the first frame",
            "`video[:, :, :1]` keeps the axis of frames. `.expand(-1, -1, n, -1, -1)` repeats it n times without "
            "copying, and `torch.cat([...], dim=2)` puts it in front. n may be 0.",
        ),
        Hint(
            "F.pad pads the wrong axis",
            "Its numbers go from the last axis backwards, two for each: (left, right, top, bottom, front, behind). "
            "Four numbers pad columns and rows and leave time alone.",
        ),
        Hint(
            "sizes are off by one in space",
            "For each axis k - s zeros: `before = (k - s) // 2`, `after = k - s - before`, each with its own k and s.",
        ),
        Hint(
            "show me nearly everything",
            "(kf, kh, kw), (sf, sh, sw) = self.kernel, self.stride; ValueError if (frames - 1) % sf; video = "
            "torch.cat([video[:, :, :1].expand(-1, -1, kf - 1, -1, -1), video], dim=2); F.pad as above; return "
            "F.conv3d(video, self.weight, self.bias, stride=self.stride).",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------- frames from channels

_UP_REFUSE = """
if r < 1 or groups.shape[1] % r:
    raise ValueError("r")
"""


_UNFOLDED = 'rearrange(groups, "b (c r) f h w -> b c (f r) h w", r=r)'
_CROPPED = f"return {_UNFOLDED}[:, :, r - 1 :]"


def _up_code(body: str, refuse: str = _UP_REFUSE) -> str:
    return f"def causal_up(groups, r):\n{_indented(_indented(refuse, 0) + chr(10) + _indented(body, 0), 4)}\n"


def _up(sentence: str, body: str = _CROPPED, refuse: str = _UP_REFUSE) -> Mistake:
    return Mistake(sentence, code=_up_code(body, refuse))


def _grouped(b: int, d: int, f: int, h: int, w: int, r: int, dtype: torch.dtype = torch.float32) -> Callable:
    return lambda g: dict(groups=randn(g, b, d, f, h, w).to(dtype), r=r)


def _each_group_makes_its_own(f: Callable) -> bool:
    groups = torch.zeros(1, 6, 3, 2, 2)
    groups[:, :, 1] = 1
    return f(groups, 3).flatten(3).amax((0, 1, 3)).tolist() == [0, 1, 1, 1, 0, 0, 0]


CAUSAL_UP = Exercise(
    target=causal_up,
    minutes=15,
    cases=[
        Case("groups of 3 frames", _grouped(2, 15, 4, 3, 7, 3)),
        Case("groups of 2", _grouped(3, 10, 7, 4, 3, 2)),
        Case("groups of 4, as in our tokenizer", _grouped(2, 12, 3, 5, 2, 4)),
        Case("one channel is left", _grouped(2, 5, 3, 4, 3, 5)),
        Case("as many channels as frames in a group", _grouped(2, 9, 4, 5, 7, 3)),
        Case("a picture", _grouped(2, 6, 1, 5, 4, 3)),
        Case("a picture, groups of 2", _grouped(3, 10, 1, 2, 5, 2)),
        Case("r = 1 changes nothing", _grouped(2, 5, 3, 4, 7, 1)),
        Case("many sizes are 4", _grouped(4, 4, 4, 4, 4, 2)),
        Case("double precision", _grouped(2, 6, 3, 5, 4, 2, torch.float64)),
        Case("7 channels do not make groups of 3", _grouped(2, 7, 4, 5, 3, 3)),
        Case("a picture of 7 channels, and groups of 3", _grouped(2, 7, 1, 5, 3, 3)),
        Case("fewer channels than r", _grouped(2, 3, 4, 5, 3, 6)),
        Case("r = 0", _grouped(2, 6, 4, 5, 3, 0)),
        Case("r = -2", _grouped(2, 6, 4, 5, 3, -2)),
    ],
    properties=[
        Property(
            "Groups 0, 1 and 2 of three frames each must give frame 0, frames 1 to 3 and frames 4 to 6: no other "
            "frame may change with a group.",
            _each_group_makes_its_own,
        ),
    ],
    mistakes=[
        _up(
            "All r (1 + t) frames are returned. Of the first group only the last is a frame: drop the first r - 1.",
            f"return {_UNFOLDED}",
        ),
        _up(
            "You drop the *last* r - 1 frames, the end of the clip, and keep what lies before its beginning. Drop the "
            "first r - 1.",
            f"return {_UNFOLDED}[:, :, : 1 + r * (groups.shape[2] - 1)]",
        ),
        _up(
            "You drop the whole first group. A picture is then nothing at all. Keep its last frame: drop r - 1.",
            f"return {_UNFOLDED}[:, :, r:]",
        ),
        _up(
            "You drop one frame, whatever r is. It is r - 1 of them.",
            f"return {_UNFOLDED}[:, :, 1:]",
        ),
        _up(
            "Nothing is dropped where the input is a picture: one latent frame gives one frame, not r.",
            f"return {_UNFOLDED}[:, :, r - 1 :] if groups.shape[2] > 1 else {_UNFOLDED}",
        ),
        _up(
            "A picture comes back as it was, with all its channels. It is one frame of c channels like the first frame "
            "of any clip.",
            f"return {_UNFOLDED}[:, :, r - 1 :] if groups.shape[2] > 1 else groups",
        ),
        _up(
            "Of the first group you keep the first frame, j = 0. It is the last, j = r - 1, that lies next to the "
            "second group.",
            f"up = {_UNFOLDED}\nreturn torch.cat([up[:, :, :1], up[:, :, r:]], dim=2)",
        ),
        _up(
            "The first frame is the mean of the first group. Only its last member is a frame; nothing taught the "
            "others to mean anything.",
            f"up = {_UNFOLDED}\nreturn torch.cat([up[:, :, :r].mean(2, keepdim=True), up[:, :, r:]], dim=2)",
        ),
        _up(
            "The channels are split into (r, c), but channel r k + j is channel k of frame j: r is the fast part, "
            "(c, r).",
            'return rearrange(groups, "b (r c) f h w -> b c (f r) h w", r=r)[:, :, r - 1 :]',
        ),
        _up(
            "The frames are joined as (r, f), which is all that a reshape can do: first the beginning of all groups, "
            "then their second frames. A group's r frames are neighbours: move r behind f, then join.",
            'return rearrange(groups, "b (c r) f h w -> b c (r f) h w", r=r)[:, :, r - 1 :]',
        ),
        _up(
            "Both splits are turned round: channels as (r, c) and frames as (r, f). r is the fast part of both.",
            'return rearrange(groups, "b (r c) f h w -> b c (r f) h w", r=r)[:, :, r - 1 :]',
        ),
        _up(
            "Within each group time runs backwards: j = 0 is the earliest.",
            'return rearrange(groups, "b (c r) f h w -> b c f r h w", r=r).flip(3).flatten(2, 3)[:, :, r - 1 :]',
        ),
        _up(
            "Each frame is repeated r times, and the channels stay folded. The r frames of a group are different; "
            "they lie in the channels.",
            "return groups.repeat_interleave(r, dim=2)[:, :, r - 1 :]",
        ),
        _up(
            "You repeat the mean of each group: its frames are different ones. Unfold them.",
            "return groups.unflatten(1, (-1, r)).mean(2).repeat_interleave(r, dim=2)[:, :, r - 1 :]",
        ),
        _up(
            "Each group gives its last frame alone, so the clip gets no longer. The first group gives one, the others "
            "give all r.",
            f"return {_UNFOLDED}[:, :, r - 1 :: r]",
        ),
        _up(
            "Frames are interpolated between neighbours: half-way frames see the group to come, and the channels stay "
            "folded. Unfold the channels instead.",
            """
            size = (1 + r * (groups.shape[2] - 1), *groups.shape[3:])
            return F.interpolate(groups, size=size, mode="trilinear", align_corners=True)
            """,
        ),
        _up(
            "Right but for one refusal: negative r pass, because 6 % -2 is 0. Everything below 1 needs a ValueError.",
            refuse="if r == 0 or groups.shape[1] % r:\n    raise ValueError('r')",
        ),
        _up(
            "Right but for one refusal: r = 0 reaches `%`, which stops with an error of its own. Ask for r < 1 first, "
            "which catches negative r as well: in Python 6 % -2 is 0.",
            refuse="if groups.shape[1] % r:\n    raise ValueError('r')",
        ),
        _up(
            "For r below 1 you return the input as it is. That is right for r = 1 alone; below it, raise a ValueError.",
            f"return {_UNFOLDED}[:, :, r - 1 :] if r > 1 else groups",
            refuse="if r > 1 and groups.shape[1] % r:\n    raise ValueError('r')",
        ),
        _up(
            "Right but for one refusal: channels that r does not divide. Those that are over are silently lost.",
            "groups = groups[:, : groups.shape[1] // r * r]\nreturn " + _UNFOLDED + "[:, :, r - 1 :]",
            refuse="if r < 1:\n    raise ValueError('r')",
        ),
        _up(
            "Right but for the refusals: channels that r does not divide, and r below 1, need a ValueError of yours.",
            refuse="",
        ),
        _up(
            "You refuse r = 1, which is allowed and changes nothing.",
            refuse="if r < 2 or groups.shape[1] % r:\n    raise ValueError('r')",
        ),
        _up(
            "You refuse pictures. One frame comes in, one goes out.",
            refuse="if r < 1 or groups.shape[1] % r or groups.shape[2] < 2:\n    raise ValueError('r')",
        ),
        _up(
            "You ask the number of frames to be 1 + a multiple of r. It is the *result* that has 1 + r t of them; "
            "groups may be as many as you like.",
            refuse="if r < 1 or groups.shape[1] % r or (groups.shape[2] - 1) % r:\n    raise ValueError('r')",
        ),
        _up(
            "The result is float32 whatever came in. Keep the dtype.",
            f"return {_UNFOLDED}[:, :, r - 1 :].float()",
        ),
        _up(
            "A picture is cut to its first d / r channels. They hold several frames of the first few channels; its "
            "frame is every r-th channel, from r - 1 on.",
            f"return {_UNFOLDED}[:, :, r - 1 :] if groups.shape[2] > 1 else groups[:, : groups.shape[1] // r]",
        ),
        _up(
            "The first frame is cut out of the channels as a block, the last d / r of them. Its channels lie r apart: "
            "r - 1, 2 r - 1, ...",
            f"up = {_UNFOLDED}\nreturn torch.cat([groups[:, -up.shape[1] :, :1], up[:, :, r:]], dim=2)",
        ),
        _up(
            "The first frame is cut out of the channels as a block, the first d / r of them. Its channels lie r apart: "
            "r - 1, 2 r - 1, ...",
            f"up = {_UNFOLDED}\nreturn torch.cat([groups[:, : up.shape[1], :1], up[:, :, r:]], dim=2)",
        ),
    ],
    variants=[
        Variant(
            "frame by frame",
            _up_code("""
            frames = [groups[:, r - 1 :: r, 0]]
            for i in range(1, groups.shape[2]):
                for j in range(r):
                    frames.append(groups[:, j::r, i])
            return torch.stack(frames, dim=2)
            """),
        ),
        Variant(
            "view and permute",
            _up_code(
                """
            b, d, f, h, w = groups.shape
            x = groups.reshape(b, d // r, r, f, h, w).permute(0, 1, 3, 2, 4, 5)
            return x.reshape(b, d // r, f * r, h, w)[:, :, -(1 + r * (f - 1)) :]
            """,
                refuse="""
            if not (r >= 1 and groups.size(1) % r == 0):
                raise ValueError(f"{groups.size(1)} channels, r={r}")
            """,
            ),
        ),
        Variant(
            "the first frame and the rest apart",
            _up_code("""
            last = groups[:, r - 1 :: r, :1]
            rest = torch.stack([groups[:, j::r, 1:] for j in range(r)], dim=3).flatten(2, 3)
            return torch.cat([last, rest], dim=2)
            """),
        ),
        Variant(
            "pixel_shuffle along time",
            _up_code("""
            b, d, f, h, w = groups.shape
            x = einops.rearrange(groups, "b d f h w -> (b h w) d 1 f").unflatten(1, (d // r, r))
            x = x.transpose(2, 4).reshape(b * h * w, d // r, f * r)
            return einops.rearrange(x[..., r - 1 :], "(b h w) c f -> b c f h w", h=h, w=w)
            """),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "First forget the beginning: turn (b, c r, f, h, w) into (b, c, f r, h, w). Then ask which of the frames "
            "should not be there.",
        ),
        Hint(
            "it holds the right numbers in the wrong places",
            "Split the channels as (c, r): channel r k + j is channel k of frame j. r then goes *behind* f, because "
            "the r frames of a group are neighbours.",
        ),
        Hint(
            "my clip has too many frames",
            "r (1 + t) are r - 1 more than 1 + r t. Those of the first group, all but its last, lie before the "
            "beginning: `[:, :, r - 1 :]`.",
        ),
        Hint(
            "show me nearly everything",
            '`rearrange(groups, "b (c r) f h w -> b c (f r) h w", r=r)[:, :, r - 1 :]`, after a ValueError for r < 1 '
            "and for channels that r does not divide.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------------ windows

_FITS = """
(f, h, w), (wf, wh, ww) = x.shape[1:4], size
if min(size) < 1 or f % wf or h % wh or w % ww:
    raise ValueError("no whole number of boxes")
"""


def _fit(refused: str) -> str:
    """The sizes, and a refusal of something else than what the contract asks for."""
    return f"""
(f, h, w), (wf, wh, ww) = x.shape[1:4], size
if {refused}:
    raise ValueError("size")
"""


def _window_code(body: str, fits: str = _FITS) -> str:
    return f"def window(x, size):\n{_indented(_indented(fits, 0) + chr(10) + _indented(body, 0), 4)}\n"


_SOLID, _BOXES, _INSIDE = "b (f wf) (h wh) (w ww) d", "(b f h w)", "(wf wh ww)"
_TILED = f'return rearrange(x, "{_SOLID} -> {_BOXES} {_INSIDE} d", wf=wf, wh=wh, ww=ww)'


def _cut(sentence: str, body: str = _TILED, fits: str = _FITS) -> Mistake:
    return Mistake(sentence, code=_window_code(body, fits))


def _pattern(sentence: str, left: str, right: str) -> Mistake:
    return _cut(sentence, f'return rearrange(x, "{left} -> {right}", wf=wf, wh=wh, ww=ww)')


def _grid(b: int, f: int, h: int, w: int, d: int, size: tuple, dtype: torch.dtype = torch.float32) -> Callable:
    return lambda g: dict(x=(10 * randn(g, b, f, h, w, d)).to(dtype), size=size)


def _numbered(f: Callable, size: tuple) -> Tensor:
    return f(torch.arange(2 * 4 * 6 * 6).view(2, 4, 6, 6, 1), size)


def _exact(*shape: int) -> list[Tensor]:
    """Numbers that no detour through float32 or float64 survives."""
    count = torch.arange(torch.Size(shape).numel())
    return [count.double().add(0.1).cos().view(shape), (2**53 + 1 + count).view(shape)]


def _same_numbers(call: Callable, x: Tensor) -> bool:
    try:
        return torch.equal(call(x).flatten().sort().values, x.flatten().sort().values)
    except RuntimeError:  # a view of what does not lie in memory like that
        return False


def _leaves_numbers_alone(f: Callable) -> bool:
    """Also where the grid's axes are exchanged in memory."""
    exchanged = [y.transpose(1, 3).contiguous().transpose(1, 3) for y in _exact(2, 4, 6, 4, 3)]
    return all(_same_numbers(lambda y: f(y, (2, 3, 2)), y) for y in [*_exact(2, 4, 6, 4, 3), *exchanged])


def _puts_numbers_back(f: Callable) -> bool:
    return all(_same_numbers(lambda y: f(y, (2, 3, 2), (4, 6, 4)), y) for y in _exact(16, 12, 3))


def _has_each_once(f: Callable) -> bool:
    return _numbered(f, (2, 3, 2)).flatten().sort().values.tolist() == list(range(288))


def _is_solid(f: Callable) -> bool:
    boxes = _numbered(f, (2, 3, 2)).squeeze(-1)
    axes = [boxes // 144, boxes // 36 % 4, boxes // 6 % 6, boxes % 6]
    edges = [set((axis.amax(1) - axis.amin(1) + 1).tolist()) for axis in axes]
    return edges == [{1}, {2}, {3}, {2}]


WINDOW = Exercise(
    target=window,
    minutes=15,
    cases=[
        Case("boxes of 2 x 3 x 5", _grid(2, 4, 9, 10, 7, (2, 3, 5))),
        Case("one frame, all of it", _grid(2, 3, 4, 5, 7, (1, 4, 5))),
        Case("all frames, a part of each", _grid(2, 5, 4, 6, 3, (5, 2, 3))),
        Case("more boxes down than across", _grid(3, 2, 8, 6, 5, (2, 2, 3))),
        Case("flat boxes in some frames", _grid(2, 6, 4, 4, 3, (3, 1, 2))),
        Case("one box is everything", _grid(2, 3, 4, 5, 7, (3, 4, 5))),
        Case("one token in each box", _grid(2, 3, 2, 5, 7, (1, 1, 1))),
        Case("all sizes are 4", _grid(4, 4, 4, 4, 4, (2, 2, 2))),
        Case("whole numbers", _grid(2, 2, 6, 4, 3, (1, 3, 2), torch.int64)),
        Case("double precision", _grid(2, 2, 6, 4, 3, (2, 3, 2), torch.float64)),
        Case("rows do not fit", _grid(2, 4, 5, 6, 3, (2, 2, 3))),
        Case("frames do not fit", _grid(2, 5, 4, 6, 3, (2, 2, 3))),
        Case("columns do not fit", _grid(2, 4, 4, 7, 3, (2, 2, 3))),
        Case("the numbers would fill boxes, but not the edges", _grid(1, 1, 2, 9, 3, (1, 3, 3))),
        Case("a box larger than the grid", _grid(2, 2, 4, 6, 3, (4, 2, 3))),
        Case("a box without frames", _grid(2, 4, 4, 6, 3, (0, 2, 3))),
        Case("a box without columns", _grid(2, 4, 4, 6, 3, (2, 2, 0))),
        Case("a box of -2 rows", _grid(2, 4, 4, 6, 3, (2, -2, 3))),
        Case("a box of -2 rows and -3 columns", _grid(2, 4, 4, 6, 3, (2, -2, -3))),
    ],
    properties=[
        Property("Every token must lie in exactly one box.", _has_each_once),
        Property("A box must be solid: tokens of one sample, neighbours along all three axes.", _is_solid),
        Property(
            "Only the order may change, no number: nothing is rounded through another dtype, and a grid may lie in "
            "memory in any order of its axes (so `reshape` or `rearrange`, not `view`).",
            _leaves_numbers_alone,
        ),
    ],
    mistakes=[
        _cut(
            "A reshape alone cuts memory into pieces, not the grid into boxes: a piece is a run of one row. Split each "
            "axis into (count, edge), then move the axes, then join.",
            "return x.reshape(-1, wf * wh * ww, x.shape[-1])",
        ),
        _pattern(
            "Boxes are numbered down the columns: w slower than h. The column changes fastest, as for words on a page.",
            _SOLID,
            "(b f w h) (wf wh ww) d",
        ),
        _pattern(
            "Inside a box the tokens run down the columns. They run along the rows: frames slowest, columns fastest.",
            _SOLID,
            "(b f h w) (wf ww wh) d",
        ),
        _pattern(
            "Both orders run down the columns, that of the boxes and that inside. Columns change fastest in both.",
            _SOLID,
            "(b f w h) (wf ww wh) d",
        ),
        _pattern(
            "Inside a box the frames change fastest. They change slowest.",
            _SOLID,
            "(b f h w) (wh ww wf) d",
        ),
        _pattern(
            "Boxes of one place follow each other through time. Frames come slowest: first all boxes of the first "
            "frames.",
            _SOLID,
            "(b h w f) (wf wh ww) d",
        ),
        _pattern(
            "Frames change fastest, both among the boxes and inside them. They change slowest in both.",
            _SOLID,
            "(b h w f) (wh ww wf) d",
        ),
        _pattern(
            "Your boxes are combs: each axis is split into (edge, count), so a box takes tokens that lie far apart. "
            "Neighbours differ in the fast part: (count, edge).",
            "b (wf f) (wh h) (ww w) d",
            "(b f h w) (wf wh ww) d",
        ),
        _pattern(
            "Frames are combed: time is split into (edge, count), so a box takes frames that lie far apart.",
            "b (wf f) (h wh) (w ww) d",
            "(b f h w) (wf wh ww) d",
        ),
        _pattern(
            "Rows and columns are combed: split into (edge, count), a box takes tokens that lie far apart.",
            "b (f wf) (wh h) (ww w) d",
            "(b f h w) (wf wh ww) d",
        ),
        _pattern(
            "The batch lies inside the sequences: clips would attend to each other. It belongs to the windows.",
            _SOLID,
            "(f h w) (b wf wh ww) d",
        ),
        _pattern(
            "The windows of all samples are interleaved: the batch changes fastest. All of the first sample come "
            "first, then those of the second.",
            _SOLID,
            "(f h w b) (wf wh ww) d",
        ),
        _pattern(
            "The batch is still an axis of its own, (b, windows, n, d). Attention wants one long list of sequences.",
            _SOLID,
            "b (f h w) (wf wh ww) d",
        ),
        _pattern(
            "The boxes are still boxes, (windows, wf, wh, ww, d). Attention wants sequences: join the three to n.",
            _SOLID,
            "(b f h w) wf wh ww d",
        ),
        _pattern(
            "Tokens and channels changed places: (windows, n, d) has the channels last.",
            _SOLID,
            "(b f h w) d (wf wh ww)",
        ),
        _cut(
            "Every box holds all frames, whatever size[0] says: right for spacetime windows alone.",
            'return rearrange(x, "b f (h wh) (w ww) d -> (b h w) (f wh ww) d", wh=wh, ww=ww)',
        ),
        _cut(
            "Every box holds one frame, whatever size[0] says: the windows are cut along time, and nothing would ever "
            "see another frame.",
            'return rearrange(x, "b f (h wh) (w ww) d -> (b f h w) (wh ww) d", wh=wh, ww=ww)',
        ),
        _cut(
            "The size is read as (rows, columns, frames). Frames come first, as in the grid.",
            'return rearrange(x, "b (f wf) (h wh) (w ww) d -> (b f h w) (wf wh ww) d", wf=ww, wh=wf, ww=wh)',
            fits=_fit("min(size) < 1 or f % ww or h % wf or w % wh"),
        ),
        _cut(
            "The size is read as (frames, columns, rows). The grid is (frames, rows, columns), and so is the box.",
            'return rearrange(x, "b (f wf) (h wh) (w ww) d -> (b f h w) (wf wh ww) d", wf=wf, wh=ww, ww=wh)',
            fits=_fit("min(size) < 1 or f % wf or h % ww or w % wh"),
        ),
        _cut(
            "You take `size` for the number of boxes along each axis. It is the edges of one box.",
            'return rearrange(x, "b (f wf) (h wh) (w ww) d -> (b f h w) (wf wh ww) d", f=wf, h=wh, w=ww)',
        ),
        _cut(
            "The boxes overlap: each begins one token after the last. They must tile the grid.",
            """
            boxes = x.unfold(1, wf, 1).unfold(2, wh, 1).unfold(3, ww, 1)  # (b, ., ., ., d, wf, wh, ww)
            return boxes.permute(0, 1, 2, 3, 5, 6, 7, 4).flatten(4, 6).flatten(0, 3)
            """,
        ),
        _cut(
            "The grid is rolled by half a box first, as in a Swin Transformer. W.A.L.T does not shift its windows: two "
            "kinds of them take turns.",
            "x = x.roll((-(wh // 2), -(ww // 2)), dims=(2, 3))\nreturn rearrange(x, "
            '"b (f wf) (h wh) (w ww) d -> (b f h w) (wf wh ww) d", wf=wf, wh=wh, ww=ww)',
        ),
        _cut(
            "You ask whether the product of the edges is below 1, and that of two negative ones is not. Ask each edge.",
            fits=_fit("wf * wh * ww < 1 or f % wf or h % wh or w % ww"),
        ),
        _cut(
            "Right but for one refusal: negative edges pass, because `4 % -2` is 0. An edge below 1 needs a "
            "ValueError.",
            fits=_fit("0 in size or f % wf or h % wh or w % ww"),
        ),
        _cut(
            "Right but for one refusal: an edge of 0 reaches `%`, which stops with an error of its own. Ask first "
            "whether an edge is below 1, which catches negative ones as well: `4 % -2` is 0.",
            fits=_fit("f % wf or h % wh or w % ww"),
        ),
        _cut(
            "Right but for one refusal: the frames, too, must be a whole number of boxes.",
            "x = x[:, : f // wf * wf]\n" + _TILED,
            fits=_fit("min(size) < 1 or h % wh or w % ww"),
        ),
        _cut(
            "Right but for the refusals: a grid that is no whole number of boxes needs a ValueError of yours.",
            fits="(f, h, w), (wf, wh, ww) = x.shape[1:4], size",
        ),
        _cut(
            "What does not fill a box is cut off without a word. Refuse such a grid with a ValueError.",
            "x = x[:, : f // wf * wf, : h // wh * wh, : w // ww * ww]\n" + _TILED,
            fits=_fit("min(size) < 1"),
        ),
        _cut(
            "What does not fill a box is filled up with zeros, tokens that never were. Refuse it with a ValueError.",
            "x = F.pad(x, (0, 0, 0, -w % ww, 0, -h % wh, 0, -f % wf))\n" + _TILED,
            fits=_fit("min(size) < 1"),
        ),
        _cut(
            "You check the number of tokens in all. Each edge must be a whole number of boxes: 18 tokens are two boxes "
            "of 9, but a grid of 2 x 9 holds none of 3 x 3.",
            f"""
            if f % wf or h % wh or w % ww:
                return x.reshape(-1, wf * wh * ww, x.shape[-1])
            return rearrange(x, "{_SOLID} -> {_BOXES} {_INSIDE} d", wf=wf, wh=wh, ww=ww)
            """,
            fits=_fit("min(size) < 1 or (f * h * w) % (wf * wh * ww)"),
        ),
        _cut(
            "You refuse a box that is as large as the grid. One box is a whole number of boxes.",
            fits=_FITS + 'if (wf, wh, ww) == (f, h, w):\n    raise ValueError("one box")',
        ),
        _cut(
            "The result is float32 whatever came in. Nothing is computed here: keep the dtype.",
            f'return rearrange(x.float(), "{_SOLID} -> {_BOXES} {_INSIDE} d", wf=wf, wh=wh, ww=ww)',
        ),
    ],
    variants=[
        Variant(
            "a loop over boxes",
            _window_code("""
            boxes = []
            for sample in x:
                for i in range(0, f, wf):
                    for j in range(0, h, wh):
                        for k in range(0, w, ww):
                            boxes.append(sample[i : i + wf, j : j + wh, k : k + ww].reshape(-1, x.shape[-1]))
            return torch.stack(boxes)
            """),
        ),
        Variant(
            "reshape and permute",
            _window_code(
                """
            b, f, h, w, d = x.shape
            x = x.reshape(b, f // wf, wf, h // wh, wh, w // ww, ww, d).permute(0, 1, 3, 5, 2, 4, 6, 7)
            return x.reshape(-1, wf * wh * ww, d)
            """,
                fits="""
            wf, wh, ww = size
            for whole, edge in zip(x.shape[1:4], size):
                if edge < 1 or whole % edge != 0:
                    raise ValueError(f"{whole} tokens in boxes of {edge}")
            """,
            ),
        ),
        Variant(
            "unfold with a stride",
            _window_code("""
            boxes = x.unfold(1, wf, wf).unfold(2, wh, wh).unfold(3, ww, ww)
            return boxes.movedim(4, -1).flatten(4, 6).flatten(0, 3)
            """),
        ),
        Variant(
            "an index of every token",
            _window_code("""
            where = torch.arange(f * h * w).view(f // wf, wf, h // wh, wh, w // ww, ww)
            where = where.permute(0, 2, 4, 1, 3, 5).reshape(-1)
            return x.flatten(1, 3)[:, where].reshape(-1, wf * wh * ww, x.shape[-1])
            """),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Split each of the three axes into (how many boxes, edge of a box): the grid becomes (b, f, wf, h, wh, w, "
            "ww, d). The counts go to the front, the edges behind them.",
        ),
        Hint(
            "it holds the right numbers in the wrong places",
            "Two orders matter: batch, frames, rows, columns for the boxes, and frames, rows, columns inside. In "
            "`rearrange`, the fast part of `(h wh)` is the last: wh.",
        ),
        Hint(
            "which inputs must I refuse",
            "Ask each axis by itself: `whole % edge`, after edge < 1 (nothing can be divided by 0). Raise a ValueError "
            "before you rearrange.",
        ),
        Hint(
            "show me nearly everything",
            f'`rearrange(x, "{_SOLID} -> {_BOXES} {_INSIDE} d", wf=wf, wh=wh, ww=ww)`, where wf, wh, ww = size.',
        ),
    ],
)


_GRIDS = "(f, h, w), (wf, wh, ww) = grid, size"
_SHAPE = "f=f // wf, h=h // wh, w=w // ww, wf=wf, wh=wh, ww=ww"


def _unwindow_code(body: str) -> str:
    return f"def unwindow(boxes, size, grid):\n{_indented(_GRIDS + chr(10) + _indented(body, 0), 4)}\n"


def _join(sentence: str, left: str, right: str = "b (f wf) (h wh) (w ww) d", shape: str = _SHAPE) -> Mistake:
    return Mistake(sentence, code=_unwindow_code(f'return rearrange(boxes, "{left} -> {right}", {shape})'))


def _joined(sentence: str, body: str) -> Mistake:
    return Mistake(sentence, code=_unwindow_code(body))


def _cut_up(b: int, grid: tuple, d: int, size: tuple, dtype: torch.dtype = torch.float32) -> Callable:
    n = size[0] * size[1] * size[2]
    windows = b * grid[0] * grid[1] * grid[2] // n
    return lambda g: dict(boxes=(10 * randn(g, windows, n, d)).to(dtype), size=size, grid=grid)


def _is_inverse(f: Callable) -> bool:
    x = torch.randn(2, 4, 6, 10, 3, generator=torch.Generator().manual_seed(0))
    return all(torch.equal(f(window(x, size), size, (4, 6, 10)), x) for size in ((1, 6, 10), (4, 3, 2), (2, 2, 5)))


UNWINDOW = Exercise(
    target=unwindow,
    minutes=10,
    cases=[
        Case("boxes of 2 x 3 x 5", _cut_up(2, (4, 9, 10), 7, (2, 3, 5))),
        Case("whole frames", _cut_up(2, (3, 4, 5), 7, (1, 4, 5))),
        Case("all frames, a part of each", _cut_up(2, (5, 4, 6), 3, (5, 2, 3))),
        Case("more boxes down than across", _cut_up(3, (2, 8, 6), 5, (2, 2, 3))),
        Case("flat boxes in some frames", _cut_up(2, (6, 4, 4), 3, (3, 1, 2))),
        Case("one box is everything", _cut_up(2, (3, 4, 5), 7, (3, 4, 5))),
        Case("one token in each box", _cut_up(2, (3, 2, 5), 7, (1, 1, 1))),
        Case("one sample, one box", _cut_up(1, (3, 4, 5), 7, (3, 4, 5))),
        Case("one sample, many boxes", _cut_up(1, (4, 6, 4), 5, (2, 3, 2))),
        Case("all sizes are 4", _cut_up(4, (4, 4, 4), 4, (2, 2, 2))),
        Case("whole numbers", _cut_up(2, (2, 6, 4), 3, (1, 3, 2), torch.int64)),
        Case("double precision", _cut_up(2, (2, 6, 4), 3, (2, 3, 2), torch.float64)),
    ],
    properties=[
        Property("unwindow(window(x, size), size, grid) must be x, exactly.", _is_inverse),
        Property("Only the order may change, no number: nothing is rounded through another dtype.", _puts_numbers_back),
    ],
    mistakes=[
        _joined(
            "A reshape alone puts the boxes one behind the other, as if each were a run of one row. Split both axes, "
            "bring count and edge of each axis together, then join.",
            "return boxes.reshape(-1, f, h, w, boxes.shape[-1])",
        ),
        _join(
            "The boxes are read as if they were numbered down the columns. The column changes fastest.",
            "(b f w h) (wf wh ww) d",
        ),
        _join(
            "The tokens of a box are read as if they ran down the columns. They run along the rows.",
            "(b f h w) (wf ww wh) d",
        ),
        _join(
            "Boxes and tokens are both read down the columns. Columns change fastest in both.",
            "(b f w h) (wf ww wh) d",
        ),
        _join(
            "The tokens of a box are read as if frames changed fastest. They change slowest.",
            "(b f h w) (wh ww wf) d",
        ),
        _join(
            "The boxes are read as if frames changed fastest: first all times of one place, as if each box spanned all "
            "frames. Frames change slowest.",
            "(b h w f) (wf wh ww) d",
        ),
        _join(
            "The boxes are read as if the samples were interleaved. All boxes of the first sample come first.",
            "(f h w b) (wf wh ww) d",
        ),
        _join(
            "The tokens of each box are strewn over the whole grid: edge and count changed places. Join (count, edge).",
            "(b f h w) (wf wh ww) d",
            "b (wf f) (wh h) (ww w) d",
        ),
        _join(
            "The frames of each box are strewn over the clip: join time as (count, edge), like rows and columns.",
            "(b f h w) (wf wh ww) d",
            "b (wf f) (h wh) (w ww) d",
        ),
        _join(
            "Rows and columns of each box are strewn over the picture: join them as (count, edge), like the frames.",
            "(b f h w) (wf wh ww) d",
            "b (f wf) (wh h) (ww w) d",
        ),
        _join(
            "The tokens are still one sequence, (b, f h w, d). They go back on their grid: (b, f, h, w, d).",
            "(b f h w) (wf wh ww) d",
            "b (f wf h wh w ww) d",
        ),
        _join(
            "The channels stand second, as in a video. Tokens keep them last: (b, f, h, w, d).",
            "(b f h w) (wf wh ww) d",
            "b d (f wf) (h wh) (w ww)",
        ),
        _join(
            "Rows and columns of the result changed places: the grid is (frames, rows, columns).",
            "(b f h w) (wf wh ww) d",
            "b (f wf) (w ww) (h wh) d",
        ),
        _joined(
            "You take the windows for one sample, so the batch is lost or lands among the frames. How many samples "
            "there are follows from the number of windows.",
            """
            out = rearrange(boxes, "(b f h w) (wf wh ww) d -> (b f wf) (h wh) (w ww) d", f=f // wf, h=h // wh,
                            w=w // ww, wf=wf, wh=wh, ww=ww)
            return out[None]
            """,
        ),
        _joined(
            "Only the first sample comes back. The number of windows tells how many there are.",
            f'return rearrange(boxes, "(b f h w) (wf wh ww) d -> b (f wf) (h wh) (w ww) d", {_SHAPE})[:1]',
        ),
        _joined(
            "You call `window` once more. It is its own inverse in rare cases only; here the split must be undone.",
            "return window(boxes.reshape(-1, f, h, w, boxes.shape[-1]), size).reshape(-1, f, h, w, boxes.shape[-1])",
        ),
        _joined(
            "The tokens come back as float32 whatever they were in their boxes. They are only moved: keep the dtype.",
            f'return rearrange(boxes, "(b f h w) (wf wh ww) d -> b (f wf) (h wh) (w ww) d", {_SHAPE}).float()',
        ),
        _join(
            "You take the grid for the number of boxes along each axis. It counts tokens: grid // size boxes.",
            "(b f h w) (wf wh ww) d",
            shape="f=f, h=h, w=w, wf=wf, wh=wh, ww=ww",
        ),
        _join(
            "You take `size` for the number of boxes, and grid // size for the edges of one. It is the other way "
            "round: `size` are the edges.",
            "(b f h w) (wf wh ww) d",
            shape="f=wf, h=wh, w=ww, wf=f // wf, wh=h // wh, ww=w // ww",
        ),
        _join(
            "`size` and `grid` changed places: the boxes are the small ones.",
            "(b f h w) (wf wh ww) d",
            shape="f=max(1, wf // f), h=max(1, wh // h), w=max(1, ww // w), wf=f, wh=h, ww=w",
        ),
        _join(
            "The columns of each box are strewn over the picture: join them as (count, edge), like frames and rows.",
            "(b f h w) (wf wh ww) d",
            "b (f wf) (h wh) (ww w) d",
        ),
        _join(
            "The rows of each box are strewn over the picture: join them as (count, edge), like frames and columns.",
            "(b f h w) (wf wh ww) d",
            "b (f wf) (wh h) (w ww) d",
        ),
        _joined(
            "The counts of boxes down and across changed places: it is rows // edge, then columns // edge.",
            """
            x = boxes.reshape(-1, f // wf, w // ww, h // wh, wf, wh, ww, boxes.shape[-1])
            return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, f, h, w, boxes.shape[-1])
            """,
        ),
        _joined(
            "This is the permutation of `window` once more. Undone it is another one: each count goes next to its "
            "edge.",
            """
            x = boxes.reshape(-1, f // wf, h // wh, w // ww, wf, wh, ww, boxes.shape[-1])
            return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, f, h, w, boxes.shape[-1])
            """,
        ),
        _joined(
            "Samples and frames are joined, and then taken apart as (frames, samples). Samples are the slow part.",
            """
            out = rearrange(boxes, "(b f h w) (wf wh ww) d -> (b f wf) (h wh) (w ww) d", f=f // wf, h=h // wh,
                            w=w // ww, wf=wf, wh=wh, ww=ww)
            return rearrange(out, "(f b) h w d -> b f h w d", f=f)
            """,
        ),
    ],
    variants=[
        Variant(
            "a loop over boxes",
            _unwindow_code("""
            d = boxes.shape[-1]
            b = boxes.shape[0] * boxes.shape[1] // (f * h * w)
            out = boxes.new_zeros(b, f, h, w, d)
            number = 0
            for sample in range(b):
                for i in range(0, f, wf):
                    for j in range(0, h, wh):
                        for k in range(0, w, ww):
                            out[sample, i : i + wf, j : j + wh, k : k + ww] = boxes[number].reshape(wf, wh, ww, d)
                            number += 1
            return out
            """),
        ),
        Variant(
            "reshape and permute",
            _unwindow_code("""
            d = boxes.size(-1)
            x = boxes.reshape(-1, f // wf, h // wh, w // ww, wf, wh, ww, d)
            return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, f, h, w, d)
            """),
        ),
        Variant(
            "an index of every token, inverted",
            _unwindow_code("""
            number = torch.arange(f * h * w).view(1, f, h, w, 1)
            order = window(number, size).flatten()
            flat = boxes.reshape(-1, f * h * w, boxes.shape[-1])
            return flat[:, order.argsort()].reshape(-1, f, h, w, boxes.shape[-1])
            """),
        ),
        Variant(
            "space first, then time",
            _unwindow_code("""
            sizes = dict(h=h // wh, w=w // ww, wh=wh, ww=ww)
            pieces = rearrange(boxes, "(b h w) (f wh ww) d -> b f (h wh) (w ww) d", **sizes)
            return pieces.reshape(-1, f, h, w, boxes.shape[-1])
            """),
        ),
        Variant(
            "one axis after the other",
            _unwindow_code("""
            x = boxes.unflatten(1, (wf, wh, ww)).unflatten(0, (-1, f // wf, h // wh, w // ww))
            x = x.movedim(4, 2).flatten(1, 2)  # b f h w wh ww d
            x = x.movedim(4, 3).flatten(2, 3)  # b f h w ww d
            return x.flatten(3, 4)
            """),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Write your `window` from right to left: the pattern behind the arrow goes before it, and the other way "
            "round.",
        ),
        Hint(
            "einops does not know the sizes",
            "Of (b f h w) it must be told three, of (wf wh ww) all but one: f = grid's frames // box's frames, and so "
            "on; b follows.",
        ),
        Hint(
            "show me nearly everything",
            '`rearrange(boxes, "(b f h w) (wf wh ww) d -> b (f wf) (h wh) (w ww) d", f=f // wf, h=h // wh, w=w // ww, '
            "wf=wf, wh=wh, ww=ww)`.",
        ),
    ],
)


# -------------------------------------------------------------------------------------------------- pictures and clips


def _mask_code(body: str) -> str:
    return f"def picture_mask(is_image, windows, n):\n{_indented(body, 4)}\n"


def _mask(sentence: str, body: str) -> Mistake:
    return Mistake(sentence, code=_mask_code(body))


_EYE = "eye = torch.eye(n, dtype=torch.bool)\n"


def _flags(*flags: bool, windows: int, n: int) -> Callable:
    return lambda g: dict(is_image=torch.tensor(flags), windows=windows, n=n)


def _some_flags(b: int, windows: int, n: int) -> Callable:
    def draw(g):
        flags = torch.rand(b, generator=g) < 0.5
        flags[0], flags[-1] = True, False
        return dict(is_image=flags, windows=windows, n=n)

    return draw


PICTURE_MASK = Exercise(
    target=picture_mask,
    minutes=10,
    gradients=False,
    cases=[
        Case("a picture, a clip, a picture", _flags(True, False, True, windows=2, n=5)),
        Case("a clip first", _flags(False, True, windows=3, n=7)),
        Case("clips alone", _flags(False, False, False, windows=2, n=5)),
        Case("pictures alone", _flags(True, True, windows=3, n=4)),
        Case("one window", _flags(True, False, False, windows=1, n=6)),
        Case("one token", _flags(True, False, windows=3, n=1)),
        Case("one clip", _flags(False, windows=2, n=3)),
        Case("one stack of pictures", _flags(True, windows=2, n=3)),
        Case("any flags", _some_flags(7, 3, 5)),
        Case("as many samples as windows and tokens", _flags(True, False, False, windows=3, n=3)),
    ],
    mistakes=[
        _mask(
            "Pictures look at their whole window, as clips do: frames of a stack would mix. Their mask is the "
            "identity: each token at itself alone.",
            "return torch.ones(len(is_image) * windows, n, n, dtype=torch.bool)",
        ),
        _mask(
            "Clips are masked as well: no frame ever hears of another, and nothing can learn motion. The flag decides.",
            _EYE + "return eye.repeat(len(is_image) * windows, 1, 1)",
        ),
        _mask(
            "Flags are upside down: here clips see only themselves, and the frames of a stack of pictures mix.",
            _EYE + "return (eye | is_image[:, None, None]).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "One flag for the whole batch: a single stack of pictures masks every clip. The flag is per sample.",
            _EYE + "return (eye | ~is_image.any()).repeat(len(is_image) * windows, 1, 1)",
        ),
        _mask(
            "One flag for the whole batch: pictures are masked only if nothing else is there. The flag is per sample.",
            _EYE + "return (eye | ~is_image.all()).repeat(len(is_image) * windows, 1, 1)",
        ),
        _mask(
            "You ask the first sample and apply the answer to all. The flag is per sample.",
            _EYE + "return (eye | ~is_image[0]).repeat(len(is_image) * windows, 1, 1)",
        ),
        _mask(
            "The windows of the samples are interleaved: `repeat` lists sample after sample, again and again. All "
            "windows of the first sample come first: `repeat_interleave`.",
            _EYE + "return (eye | ~is_image[:, None, None]).repeat(windows, 1, 1)",
        ),
        _mask(
            "True marks what is forbidden. In this course True means that a token *may* look.",
            _EYE + "return ~(eye | ~is_image[:, None, None]).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "A picture's token sees nobody, not even itself, so attention gives it nothing: that skips the layer. With "
            "the identity it still goes through values and output, which learn from it.",
            "return (~is_image)[:, None, None].expand(-1, n, n).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "A picture's token sees all others but not itself: the identity is inverted. It sees itself alone.",
            _EYE + "return (~eye | ~is_image[:, None, None]).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "In a picture each token sees itself and those before it. The mask of a picture is the identity.",
            "seen = torch.ones(n, n, dtype=torch.bool).tril()\n"
            "return (seen | ~is_image[:, None, None]).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "In a clip each token sees itself and those before it. W.A.L.T generates all frames at once: in a clip "
            "everybody sees everybody. It is the tokenizer that is causal.",
            _EYE + "causal = torch.ones(n, n, dtype=torch.bool).tril()\n"
            "return torch.where(is_image[:, None, None], eye, causal).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "A picture's tokens see themselves and the first token of the window, which lies in another picture of "
            "the stack.",
            _EYE + "eye[:, 0] = True\nreturn (eye | ~is_image[:, None, None]).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "You join the two conditions with `and`: clips see only themselves and pictures see nobody. A token may "
            "look if it looks at itself *or* the sample is a clip.",
            _EYE + "return (eye & ~is_image[:, None, None]).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "One square per sample, (b, n, n). Attention runs over windows: repeat each square for all windows of its "
            "sample.",
            _EYE + "return eye | ~is_image[:, None, None]",
        ),
        _mask(
            "Samples and windows are two axes, (b, windows, n, n). Attention gets one long list of windows: join them.",
            _EYE + "return (eye | ~is_image[:, None, None, None]).expand(-1, windows, -1, -1)",
        ),
        _mask(
            "There is an axis too many, (b windows, 1, n, n). The one for the heads is added inside the attention.",
            _EYE + "return (eye | ~is_image[:, None, None]).repeat_interleave(windows, dim=0)[:, None]",
        ),
        _mask(
            "windows and n changed places: the squares have an edge of n tokens, and there are b windows of them.",
            "eye = torch.eye(windows, dtype=torch.bool)\n"
            "return (eye | ~is_image[:, None, None]).repeat_interleave(n, dim=0)",
        ),
        _mask(
            "This is a mask to be added: 0 and -inf. In this course a mask is boolean, True where a token may look.",
            _EYE + "keep = (eye | ~is_image[:, None, None]).repeat_interleave(windows, dim=0)\n"
            "return torch.zeros(keep.shape).masked_fill(~keep, -math.inf)",
        ),
        _mask(
            "The mask is of numbers, 0 and 1. It must be boolean: `.bool()`.",
            _EYE + "return (eye | ~is_image[:, None, None]).repeat_interleave(windows, dim=0).float()",
        ),
        _mask(
            "Stacks of pictures are left out, so there are fewer squares than windows. Each sample has its squares.",
            "return torch.ones(int((~is_image).sum()) * windows, n, n, dtype=torch.bool)",
        ),
        _mask(
            "You join the two conditions with `xor`: in a clip everybody sees all but itself. A token may look if it "
            "looks at itself *or* the sample is a clip, and both may be true.",
            _EYE + "return (eye ^ ~is_image[:, None, None]).repeat_interleave(windows, dim=0)",
        ),
        _mask(
            "Only the first window of a stack is masked. All of its windows are.",
            _EYE + "keep = torch.ones(len(is_image), windows, n, n, dtype=torch.bool)\n"
            "keep[is_image, 0] = eye\nreturn keep.flatten(0, 1)",
        ),
        _mask(
            "In a picture all tokens look at the first one: you took one row of the identity for all. It has n rows.",
            _EYE + "keep = eye[:1] | ~is_image[:, None, None]\n"
            "return keep.repeat_interleave(windows, dim=0).expand(-1, n, n)",
        ),
    ],
    variants=[
        Variant(
            "a loop over samples",
            _mask_code("""
            squares = []
            for image in is_image.tolist():
                for _ in range(windows):
                    squares.append(torch.eye(n) > 0 if image else torch.full((n, n), True))
            return torch.stack(squares)
            """),
        ),
        Variant(
            "torch.where",
            _mask_code("""
            flags = is_image.repeat_interleave(windows)[:, None, None]
            return torch.where(flags, torch.eye(n).bool(), torch.ones(n, n).bool())
            """),
        ),
        Variant(
            "places compared",
            _mask_code("""
            place = torch.arange(n)
            keep = einops.repeat(~is_image, "b -> (b k) n m", k=windows, n=n, m=n).clone()
            keep |= place[:, None] == place[None, :]
            return keep
            """),
        ),
        Variant(
            "assigned",
            _mask_code("""
            keep = torch.ones(len(is_image), windows, n, n, dtype=torch.bool)
            keep[is_image] = torch.eye(n, dtype=torch.bool)
            return keep.flatten(0, 1)
            """),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Two squares of n x n: all True for a clip, the identity for a stack of pictures. Choose one per sample, "
            "then repeat it for each of its windows.",
        ),
        Hint(
            "how do I choose per sample without a loop",
            "A token may look if it looks at itself *or* its sample is a clip: `eye | ~is_image[:, None, None]` is "
            "(b, n, n) by broadcasting.",
        ),
        Hint(
            "the windows come in the wrong order",
            "[a, b] for two windows must become [a, a, b, b], as `window` lists them: `repeat_interleave(windows, "
            "dim=0)`; `repeat` gives [a, b, a, b].",
        ),
        Hint(
            "show me nearly everything",
            "eye = torch.eye(n, dtype=torch.bool); return (eye | ~is_image[:, None, None]).repeat_interleave(windows, "
            "dim=0).",
        ),
    ],
)


# -------------------------------------------------------------------------------------------------- low-rank modulation

_LORA_INIT = """
super().__init__()
self.shared = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
self.down = nn.ModuleList(nn.Linear(d, rank, bias=False) for _ in range(depth - 1))
self.up = nn.ModuleList(nn.Linear(rank, 6 * d, bias=False) for _ in range(depth - 1))
nn.init.zeros_(self.shared[1].weight)
nn.init.zeros_(self.shared[1].bias)
for up in self.up:
    nn.init.zeros_(up.weight)
"""
_LORA_FORWARD = """
shared = self.shared(condition)
return [shared] + [shared + up(down(condition)) for down, up in zip(self.down, self.up)]
"""


def _lora_code(init: str = _LORA_INIT, forward: str = _LORA_FORWARD) -> str:
    head = "class AdaLNLoRA(nn.Module):\n    def __init__(self, d, depth, rank=2):\n"
    return f"{head}{_indented(init, 8)}\n\n    def forward(self, condition):\n{_indented(forward, 8)}\n"


def _lora(sentence: str, init: str = _LORA_INIT, forward: str = _LORA_FORWARD) -> Mistake:
    return Mistake(sentence, code=_lora_code(init, forward))


def _later(told: str) -> str:
    """A first, and behind it what later blocks are told."""
    return f"shared = self.shared(condition)\nreturn [shared] + [{told} for down, up in zip(self.down, self.up)]"


def _init(old: str, new: str) -> str:
    assert _LORA_INIT.count(old) == 1, old
    return _LORA_INIT.replace(old, new)


def _told(b: int, d: int, depth: int, rank: int, size: float = 1.0) -> Case:
    return Case(
        f"{depth} blocks of width {d}, rank {rank}",
        lambda g: dict(condition=size * randn(g, b, d)),
        init=dict(d=d, depth=depth, rank=rank),
    )


def _starts_as_identity(cls: type) -> bool:
    torch.manual_seed(0)
    vectors = cls(10, 4, 3)(torch.randn(5, 10))
    return len(vectors) == 4 and not any(v.any() for v in vectors)


def _is_list(cls: type) -> bool:
    return isinstance(cls(10, 4, 3)(torch.zeros(5, 10)), list | tuple)


def _down_is_alive(cls: type) -> bool:
    torch.manual_seed(0)
    return all(bool(layer.weight.any()) for layer in cls(10, 4, 3).down)


def _down_is_linear_as_usual(cls: type) -> bool:
    torch.manual_seed(0)
    bound = 64**-0.5
    weights = torch.cat([layer.weight.flatten() for layer in cls(64, 9, 8).down])
    alike = len(weights.unique()) < 0.9 * len(weights)  # copies of each other
    return bool(weights.abs().max() <= bound * 1.001 and weights.abs().mean() > 0.4 * bound) and not alike


def _has_its_names(cls: type) -> bool:
    numbers = [f"{part}.{i}.weight" for part in ("down", "up") for i in range(3)]
    return set(cls(10, 4, 3).state_dict()) == {"shared.1.weight", "shared.1.bias", *numbers}


def _price(cls: type) -> bool:
    count = sum(p.numel() for p in cls(16, 5, 2).parameters())
    return count == 16 * 96 + 96 + 4 * 2 * (16 + 96)


ADALN_LORA = Exercise(
    target=AdaLNLoRA,
    minutes=20,
    cases=[
        _told(3, 7, 4, 2),
        _told(2, 5, 3, 3),
        _told(4, 6, 1, 2),
        _told(2, 8, 2, 1),
        _told(5, 5, 5, 5),
        _told(2, 11, 6, 4, size=3.0),
        Case("the usual rank", lambda g: dict(condition=randn(g, 3, 13)), init=dict(d=13, depth=4)),
    ],
    properties=[
        Property("The result must be a list, with one tensor for each block.", _is_list),
        Property(
            "A fresh module must return zeros for every block, so that every block begins as the identity: `up` and "
            "both parts of `shared` start at zero.",
            _starts_as_identity,
        ),
        Property(
            "`down` must not start at zero: then neither it nor `up` would ever get a gradient.",
            _down_is_alive,
        ),
        Property(
            "`down` keeps the start that PyTorch gives a linear layer, each layer its own.",
            _down_is_linear_as_usual,
        ),
        Property(
            "The weights are too many or too few: one matrix d -> 6 d with bias for all, and rank (d + 6 d) numbers "
            "for each block but the first.",
            _price,
        ),
        Property(
            "Stored weights are found by their names: `shared.1.weight` and `shared.1.bias` (of an `nn.Sequential`), "
            "`down.0.weight`, ..., `up.0.weight`, ...",
            _has_its_names,
        ),
    ],
    mistakes=[
        _lora(
            "Each block is corrected by all corrections before it as well: you add to the vectors of the last block. "
            "Each correction is added to A.",
            forward="""
            told = [self.shared(condition)]
            for down, up in zip(self.down, self.up):
                told.append(told[-1] + up(down(condition)))
            return told
            """,
        ),
        _lora(
            "`+=` writes into A itself, so all blocks share one tensor that holds every correction. Write `shared + "
            "...`, which makes a new one.",
            forward="""
            shared = self.shared(condition)
            told = [shared]
            for down, up in zip(self.down, self.up):
                shared += up(down(condition))
                told.append(shared)
            return told
            """,
        ),
        _lora(
            "Later blocks get their correction alone, without A. The correction is small change on top of what all "
            "share.",
            forward="return [self.shared(condition)] + [up(down(condition)) for down, up in zip(self.down, self.up)]",
        ),
        _lora(
            "Every block gets A, and no correction: the low-rank parts are never used.",
            forward="shared = self.shared(condition)\nreturn [shared] * (1 + len(self.up))",
        ),
        _lora(
            "A is multiplied by the correction. It is added.",
            forward=_later("shared * up(down(condition))"),
        ),
        _lora(
            "A is multiplied by 1 + correction, as a scale would be. The correction is added.",
            forward=_later("shared * (1 + up(down(condition)))"),
        ),
        _lora(
            "The correction is subtracted. It is added.",
            forward=_later("shared - up(down(condition))"),
        ),
        _lora(
            "The corrections read SiLU of the condition. That belongs to `shared`; `down` reads the condition as it "
            "is.",
            forward="""
            shared, active = self.shared(condition), F.silu(condition)
            return [shared] + [shared + up(down(active)) for down, up in zip(self.down, self.up)]
            """,
        ),
        _lora(
            "SiLU is applied to the condition before all else, and once more inside `shared`.",
            forward="""
            condition = F.silu(condition)
            shared = self.shared(condition)
            return [shared] + [shared + up(down(condition)) for down, up in zip(self.down, self.up)]
            """,
        ),
        _lora(
            "There is a nonlinearity between `down` and `up`. The correction is one matrix of low rank, written as a "
            "product of two.",
            forward=_later("shared + up(F.silu(down(condition)))"),
        ),
        _lora(
            "The corrections are divided by the rank, as LoRA's alpha / r does with alpha = 1. W.A.L.T has no such "
            "factor.",
            forward="""
            shared, rank = self.shared(condition), self.down[0].out_features if len(self.down) else 1
            return [shared] + [shared + up(down(condition)) / rank for down, up in zip(self.down, self.up)]
            """,
        ),
        _lora(
            "A comes last: block i gets the correction of block i + 1. The *first* block takes A as it is.",
            forward="""
            shared = self.shared(condition)
            return [shared + up(down(condition)) for down, up in zip(self.down, self.up)] + [shared]
            """,
        ),
        _lora(
            "The corrections are handed out in reverse.",
            forward="""
            shared = self.shared(condition)
            pairs = list(zip(self.down, self.up))[::-1]
            return [shared] + [shared + up(down(condition)) for down, up in pairs]
            """,
        ),
        _lora(
            "All later blocks get the first correction. Each has its own pair.",
            forward="""
            shared = self.shared(condition)
            return [shared] + [shared + self.up[0](self.down[0](condition)) for _ in self.up]
            """,
        ),
        _lora(
            "Each block gets the sum of all corrections. It gets its own.",
            forward="""
            shared = self.shared(condition)
            total = sum(up(down(condition)) for down, up in zip(self.down, self.up))
            return [shared] + [shared + total for _ in self.up]
            """,
        ),
        _lora(
            "The first block is missing: depth tensors come back, and the first of them is A.",
            forward="""
            shared = self.shared(condition)
            return [shared + up(down(condition)) for down, up in zip(self.down, self.up)]
            """,
        ),
        _lora(
            "One tensor comes back, (depth, b, 6 d). It must be a list with one tensor for each block.",
            forward="""
            shared = self.shared(condition)
            told = [shared] + [shared + up(down(condition)) for down, up in zip(self.down, self.up)]
            return torch.stack(told)
            """,
        ),
        _lora(
            "The six vectors are taken apart already. A block gets them in one tensor, (b, 6 d), and cuts it itself.",
            forward="""
            shared = self.shared(condition)
            told = [shared] + [shared + up(down(condition)) for down, up in zip(self.down, self.up)]
            return [v.chunk(6, dim=-1) for v in told]
            """,
        ),
        _lora(
            "The correction is added to the condition, before A is made. It corrects the six vectors, behind `shared`: "
            "`up` leads to 6 d, not to d.",
            init=_init("nn.Linear(rank, 6 * d, bias=False)", "nn.Linear(rank, d, bias=False)"),
            forward="""
            told = [self.shared(condition)]
            return told + [self.shared(condition + up(down(condition))) for down, up in zip(self.down, self.up)]
            """,
        ),
        _lora(
            "The corrections read A instead of the condition: `down` leads from d to rank, not from 6 d.",
            init=_init("nn.Linear(d, rank, bias=False)", "nn.Linear(6 * d, rank, bias=False)"),
            forward=_later("shared + up(down(shared))"),
        ),
        _lora(
            "The first block gets a correction too: depth pairs instead of depth - 1. It takes A as it is.",
            init=_LORA_INIT.replace("range(depth - 1)", "range(depth)"),
            forward="""
            shared = self.shared(condition)
            return [shared + up(down(condition)) for down, up in zip(self.down, self.up)]
            """,
        ),
        _lora(
            "There are depth pairs of which the last is never used. One for each block but the first: depth - 1.",
            init=_LORA_INIT.replace("range(depth - 1)", "range(depth)"),
            forward="""
            shared = self.shared(condition)
            return [shared] + [shared + up(down(condition)) for down, up in zip(self.down[:-1], self.up[:-1])]
            """,
        ),
        _lora(
            "The parts are kept in plain Python lists, which PyTorch does not see: they are neither trained nor saved. "
            "Use nn.ModuleList.",
            init=_LORA_INIT.replace("nn.ModuleList(", "list("),
        ),
        _lora(
            "`up` has a bias. A correction of low rank is the product of two matrices; biases would make it a full "
            "set of vectors.",
            init=_init("nn.Linear(rank, 6 * d, bias=False)", "nn.Linear(rank, 6 * d)"),
        ),
        _lora(
            "`down` has a bias. A correction of low rank is the product of two matrices.",
            init=_init("nn.Linear(d, rank, bias=False)", "nn.Linear(d, rank)"),
        ),
        _lora(
            "`down` and `up` both have biases. A correction of low rank is the product of two matrices.",
            init=_LORA_INIT.replace(", bias=False", ""),
        ),
        _lora(
            "`shared` has no bias. It is the one part that has.",
            init=_init("nn.Linear(d, 6 * d))", "nn.Linear(d, 6 * d, bias=False))").replace(
                "nn.init.zeros_(self.shared[1].bias)", "pass"
            ),
        ),
        _lora(
            "The SiLU in front of the shared matrix is missing.",
            init=_init(
                "nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))", "nn.Sequential(nn.Identity(), nn.Linear(d, 6 * d))"
            ),
        ),
        _lora(
            "SiLU comes behind the shared matrix instead of in front: shifts and scales below -0.28 could not be said.",
            init=_init(
                "nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))", "nn.Sequential(nn.Linear(d, 6 * d), nn.SiLU())"
            ).replace("self.shared[1]", "self.shared[0]"),
        ),
        _lora(
            "GELU is not SiLU: `nn.SiLU()` stands in front of the shared matrix.",
            init=_init("nn.SiLU()", "nn.GELU()"),
        ),
        _lora(
            "Every block has a full matrix d -> 6 d of its own: that is the expense that AdaLN-LoRA does away with.",
            init="""
            super().__init__()
            self.shared = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
            self.up = nn.ModuleList(nn.Linear(d, 6 * d, bias=False) for _ in range(depth - 1))
            """,
            forward="shared = self.shared(condition)\nreturn [shared] + [shared + up(condition) for up in self.up]",
        ),
        _lora(
            "The rank is 2 whatever was asked for.",
            init=_LORA_INIT.replace("rank", "2"),
        ),
        _lora(
            "All blocks share one `down`. Each has its own.",
            init="""
            super().__init__()
            self.shared = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
            self.down = nn.Linear(d, rank, bias=False)
            self.up = nn.ModuleList(nn.Linear(rank, 6 * d, bias=False) for _ in range(depth - 1))
            """,
            forward="""
            shared, low = self.shared(condition), self.down(condition)
            return [shared] + [shared + up(low) for up in self.up]
            """,
        ),
        _lora(
            "All blocks share one pair `down`, `up`: the list holds the same layer again and again.",
            init="""
            super().__init__()
            self.shared = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
            self.down = nn.ModuleList([nn.Linear(d, rank, bias=False)] * (depth - 1))
            self.up = nn.ModuleList([nn.Linear(rank, 6 * d, bias=False)] * (depth - 1))
            """,
        ),
        _lora(
            "Right but for the start: the weights of `up` are random, so blocks do not begin as the identity. Set them "
            "to zero.",
            init=_init("nn.init.zeros_(up.weight)", "pass"),
        ),
        _lora(
            "Right but for the start: the weight and bias of `shared` are random, so blocks do not begin as the "
            "identity. Set both to zero.",
            init=_init("nn.init.zeros_(self.shared[1].weight)", "pass").replace(
                "nn.init.zeros_(self.shared[1].bias)", "pass"
            ),
        ),
        _lora(
            "Right but for the start: the bias of `shared` is random. Set it to zero, as its weight.",
            init=_init("nn.init.zeros_(self.shared[1].bias)", "pass"),
        ),
        _lora(
            "Right but for the start: the weight of `shared` is random. Set it to zero, as its bias.",
            init=_init("nn.init.zeros_(self.shared[1].weight)", "pass"),
        ),
        _lora(
            "Right but for the start: everything is left as PyTorch made it. `shared` and `up` begin at zero.",
            init=_LORA_INIT[: _LORA_INIT.index("nn.init")],
        ),
        _lora(
            "Right but for the start: `down` and `up` are both zero. Each waits for the other then, and neither ever "
            "gets a gradient. Only `up` begins at zero.",
            init=_LORA_INIT + "for down in self.down:\n    nn.init.zeros_(down.weight)\n",
        ),
        _lora(
            "Right but for the start: `down` is zero and `up` random. The product is zero as well, but it is `up` that "
            "should be.",
            init=_init("nn.init.zeros_(up.weight)", "pass")
            + "for down in self.down:\n    nn.init.zeros_(down.weight)\n",
        ),
        _lora(
            "A is detached in later blocks: they could not teach the part that all share.",
            forward=_later("shared.detach() + up(down(condition))"),
        ),
        _lora(
            "Right but for `shared`: the SiLU stands in `forward`, and `shared` is a linear layer alone. It is an "
            "`nn.Sequential` of both, so that stored weights find their places.",
            init=_LORA_INIT.replace("nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))", "nn.Linear(d, 6 * d)").replace(
                "self.shared[1]", "self.shared"
            ),
            forward=_LORA_FORWARD.replace("self.shared(condition)", "self.shared(F.silu(condition))"),
        ),
        _lora(
            "The list `down` holds one and the same layer again and again: `[layer] * n` copies nothing. Make a layer "
            "for each block.",
            init=_init(
                "nn.ModuleList(nn.Linear(d, rank, bias=False) for _ in range(depth - 1))",
                "nn.ModuleList([nn.Linear(d, rank, bias=False)] * (depth - 1))",
            ),
        ),
        _lora(
            "The list `up` holds one and the same layer again and again: `[layer] * n` copies nothing. Make a layer "
            "for each block.",
            init=_init(
                "nn.ModuleList(nn.Linear(rank, 6 * d, bias=False) for _ in range(depth - 1))",
                "nn.ModuleList([nn.Linear(rank, 6 * d, bias=False)] * (depth - 1))",
            ),
        ),
        _lora(
            "All later blocks go through `down[0]`. Each has a `down` of its own, like its `up`.",
            forward=_later("shared + up(self.down[0](condition))"),
        ),
        _lora(
            "All later blocks go through `up[0]`. Each has an `up` of its own, like its `down`.",
            forward=_later("shared + self.up[0](down(condition))"),
        ),
        Mistake(
            "The rank is 4 for those who do not name one. The signature says 2.",
            code=_lora_code().replace("rank=2", "rank=4"),
        ),
    ],
    variants=[
        Variant(
            "an index",
            _lora_code(
                forward="""
            base = self.shared(condition)
            out = []
            for i in range(len(self.down) + 1):
                out.append(base if i == 0 else base + self.up[i - 1](self.down[i - 1](condition)))
            return out
            """
            ),
        ),
        Variant(
            "the product of matrices",
            _lora_code(
                init="""
            super().__init__()
            self.shared = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
            self.down, self.up = nn.ModuleList(), nn.ModuleList()
            for _ in range(1, depth):
                self.down.append(nn.Linear(d, rank, bias=False))
                self.up.append(nn.Linear(rank, 6 * d, bias=False))
            for name, p in self.named_parameters():
                if not name.startswith("down"):
                    p.data.zero_()
            """,
                forward="""
            a = F.linear(F.silu(condition), self.shared[1].weight, self.shared[1].bias)
            return [a, *[a + condition @ (u.weight @ d.weight).T for d, u in zip(self.down, self.up)]]
            """,
            ),
        ),
        Variant(
            "subclassed, with its own zeros",
            """
            class AdaLNLoRA(nn.Module):
                def __init__(self, d: int, depth: int, rank: int = 2):
                    nn.Module.__init__(self)
                    linear = nn.Linear(d, d * 6)
                    torch.nn.init.constant_(linear.weight, 0.0)
                    torch.nn.init.constant_(linear.bias, 0.0)
                    self.shared = torch.nn.Sequential(torch.nn.SiLU(), linear)
                    self.down = torch.nn.ModuleList([torch.nn.Linear(d, rank, bias=False) for i in range(depth - 1)])
                    ups = [torch.nn.Linear(rank, 6 * d, bias=False) for i in range(depth - 1)]
                    for layer in ups:
                        with torch.no_grad():
                            layer.weight.fill_(0.0)
                    self.up = torch.nn.ModuleList(ups)

                def forward(self, condition):
                    first = self.shared(condition)
                    others = [torch.add(first, up(down(condition))) for up, down in zip(self.up, self.down)]
                    return [first, *others]
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "The constructor first: one `nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))`, and two `nn.ModuleList` of "
            "depth - 1 layers without bias. Then the zeros: `nn.init.zeros_(layer.weight)`.",
        ),
        Hint(
            "what do I return",
            "A list of depth tensors (b, 6 d): A for the first block, and A + up(down(condition)) for each of the "
            "others, in order, each with its own pair.",
        ),
        Hint(
            "a fresh module does not return zeros",
            "Three kinds of zeros: the weight and the bias of `shared[1]`, and the weight of every layer of `up`. "
            "`down` stays as it is, or nothing could ever learn.",
        ),
        Hint(
            "show me nearly everything",
            "shared = self.shared(condition); return [shared] + [shared + up(down(condition)) for down, up in "
            "zip(self.down, self.up)].",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------ the second look

_TIME = "t.view(-1, *[1] * (xt.ndim - 1)).to(xt.dtype)"
_FIRST = f"""
with torch.no_grad():
    v = model(xt, t, estimate=torch.zeros_like(xt), **rest)
    estimate = xt - {_TIME} * v
"""
_CHOSEN = "estimate = estimate * asked.view(-1, *[1] * (xt.ndim - 1))\n"
_SECOND = "return model(xt, t, estimate=estimate, **rest)"


def _look_code(body: str) -> str:
    return f"def self_conditioned(model, xt, t, asked, **rest):\n{_indented(body, 4)}\n"


def _look(sentence: str, first: str = _FIRST, chosen: str = _CHOSEN, second: str = _SECOND) -> Mistake:
    """The two looks with one piece exchanged."""
    parts = (textwrap.dedent(part).strip("\n") for part in (first, chosen, second))
    return Mistake(sentence, code=_look_code("\n".join(parts)))


def _first(old: str, new: str) -> str:
    assert _FIRST.count(old) == 1, old
    return _FIRST.replace(old, new)


def _ask(f: Callable, xt: Tensor, t: Tensor, asked: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    """A model with one weight, which hears of everything, and answers in a way that shows each."""
    return f(_model(weight), xt, t.detach(), asked, words=words)


def _model(weight: Tensor) -> Callable:
    def model(xt, t, *, estimate, words=None):
        wanted, got = ((tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in (xt, estimate))
        if got != wanted:
            raise TypeError(f"the model wants an estimate like xt, {wanted}; it got {got}")
        t, words = (v.to(xt.dtype).view(-1, *[1] * (xt.ndim - 1)) for v in (t, 0 * t if words is None else words))
        seen = weight * xt + (0.7 * estimate + 0.3).tanh() * weight + words + 0.2 * xt.mean(0, keepdim=True)
        seen = seen + 0.3 * weight * estimate + 0.4 * (estimate + 0.2).sin().mean(0, keepdim=True)  # of all samples
        return seen + t * (0.5 + 0.3 * xt + estimate + 0.1 * estimate * estimate)

    return model


def _looks(
    *shape: int, asked: tuple, dtype: torch.dtype = torch.float32, size: float = 1.0, t: tuple | None = None
) -> Callable:
    def draw(g):
        b = shape[0]
        return dict(
            xt=size * randn(g, *shape).to(dtype), t=torch.rand(b, generator=g) if t is None else torch.tensor(t),
            asked=torch.tensor(asked), weight=randn(g, 1).to(dtype), words=torch.arange(1, b + 1),
        )  # fmt: skip

    return draw


def _spied(f: Callable, dtype: torch.dtype = torch.float32, time: torch.dtype = torch.float32) -> tuple:
    """What three samples, of which the second is not asked, must see as estimate; what they see as t; and each look."""
    g, calls = torch.Generator().manual_seed(0), []
    xt, t, weight = (
        randn(g, 3, 2, 5).to(dtype),
        torch.tensor([0.2371, 0.5613, 0.9127], dtype=time),
        randn(g, 1).to(dtype),
    )

    def spy(xt, t, *, estimate, **rest):
        calls.append(dict(xt=xt.clone(), t=t.clone(), estimate=estimate.clone()))
        return _model(weight)(xt, t, estimate=estimate)

    f(spy, xt, t, torch.tensor([True, False, True]))
    right = xt - t.view(-1, 1, 1) * _model(weight)(xt, t, estimate=torch.zeros_like(xt))
    right[1] = 0
    return right, t, calls


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _two_calls(f: Callable) -> bool:
    return len(_spied(f)[-1]) == 2


def _first_sees_zeros(f: Callable) -> bool:
    return not _spied(f)[-1][0]["estimate"].any()


def _both_see_the_same(f: Callable) -> bool:
    both = (_spied(f)[-1], _spied(f, torch.bfloat16)[-1])
    return all(_equal(calls[0][k], call[k]) for calls in both for call in calls for k in ("xt", "t"))


def _second_sees_the_estimate(f: Callable) -> bool:
    right, _, calls = _spied(f)
    return torch.allclose(calls[-1]["estimate"], right, atol=1e-5)


def _single_times_stay(f: Callable) -> bool:
    _, t, calls = _spied(f, torch.bfloat16)
    return all(_equal(call["t"], t) for call in calls)


def _double_times_stay(f: Callable) -> bool:
    _, t, calls = _spied(f, torch.float64, torch.float64)
    return all(_equal(call["t"], t) for call in calls)


def _leaves_the_mode_alone(f: Callable) -> bool:
    weight, xt, kept = torch.ones(1, requires_grad=True), torch.ones(2, 3), []
    for on in (False, True):
        with torch.set_grad_enabled(on):
            v = f(_model(weight), xt, torch.tensor([0.2, 0.6]), torch.tensor([True, False]))
            kept.append(torch.is_grad_enabled() == on and (on or not v.requires_grad))
    return all(kept)


SELF_CONDITIONED = Exercise(
    target=self_conditioned,
    minutes=20,
    cases=[
        Case("clips, some asked", _looks(4, 3, 2, 5, 7, asked=(True, False, True, False)), call=_ask),
        Case("nobody is asked", _looks(2, 3, 5, 4, 7, asked=(False, False)), call=_ask),
        Case("everybody is asked", _looks(3, 2, 5, 4, 7, asked=(True, True, True)), call=_ask),
        Case("a batch of one", _looks(1, 2, 3, 4, 5, asked=(True,)), call=_ask),
        Case("vectors", _looks(3, 7, asked=(False, False, True)), call=_ask),
        Case("pictures", _looks(2, 3, 5, 7, asked=(False, True)), call=_ask),
        Case("all sizes are 3", _looks(3, 3, 3, 3, 3, asked=(True, False, True)), call=_ask),
        Case("times 0 and 1", _looks(3, 2, 5, asked=(True, True, False), t=(0.0, 1.0, 1.0)), call=_ask),
        Case("large latents", _looks(3, 2, 5, asked=(True, False, True), size=4.0), call=_ask),
        Case("double precision", _looks(3, 2, 5, asked=(True, False, True), dtype=torch.float64, size=1.1), call=_ask),
        Case(
            "half precision, times in float32",
            _looks(3, 2, 5, asked=(True, False, True), dtype=torch.bfloat16, t=(0.5, 0.25, 1.0)),
            call=_ask,
        ),
    ],
    properties=[
        Property("The model must be called twice: the first look, and the second.", _two_calls),
        Property("Both looks must see the same xt and the same t.", _both_see_the_same),
        Property("The first look must see an estimate of zeros.", _first_sees_zeros),
        Property(
            "The second look must see xt - t v as its estimate where `asked` is True, v being the answer of the first "
            "look, and zeros elsewhere.",
            _second_sees_the_estimate,
        ),
        Property(
            "Both looks must get `t` as it came: float32 times stay float32 where xt is of half precision.",
            _single_times_stay,
        ),
        Property("Both looks must get `t` as it came: times of double precision are not rounded.", _double_times_stay),
        Property(
            "Whether gradients are on is up to the caller: under `torch.no_grad()` the result needs none, and "
            "afterwards everything is switched as it was.",
            _leaves_the_mode_alone,
        ),
    ],
    mistakes=[
        _look(
            "A gradient passes through the first look. The estimate is a constant: compute it under `torch.no_grad()`, "
            "or detach it.",
            first=f"""
            v = model(xt, t, estimate=torch.zeros_like(xt), **rest)
            estimate = xt - {_TIME} * v
            """,
        ),
        _look(
            "You detach the velocity of the first look, but the estimate xt - t v still depends on xt. No gradient "
            "reaches xt through the estimate either: detach all of it.",
            first=f"""
            v = model(xt, t, estimate=torch.zeros_like(xt), **rest).detach()
            estimate = xt - {_TIME} * v
            """,
        ),
        _look(
            "The velocity of the first look is not a constant with you: only xt is detached in the estimate. A "
            "gradient still reaches the model through the first look.",
            first=f"""
            v = model(xt.detach(), t, estimate=torch.zeros_like(xt), **rest)
            estimate = xt.detach() - {_TIME} * v
            """,
        ),
        _look(
            "Both looks are without gradient: nothing can be learned. Only the first one is.",
            second="with torch.no_grad():\n    return model(xt, t, estimate=estimate, **rest)",
        ),
        _look(
            "`asked` is never used: everybody gets an estimate. The model must also be able to work without, as in the "
            "first step of sampling.",
            chosen="",
        ),
        _look(
            "Those who are *not* asked get the estimate.",
            chosen="estimate = estimate * (~asked).view(-1, *[1] * (xt.ndim - 1))",
        ),
        _look(
            "One coin for the whole batch: as soon as one sample is asked, all get an estimate. `asked` is per sample.",
            chosen="estimate = estimate * asked.any()",
        ),
        _look(
            "One coin for the whole batch: unless all are asked, nobody gets an estimate. `asked` is per sample.",
            chosen="estimate = estimate * asked.all()",
        ),
        _look(
            "You ask the first sample and apply its answer to all. `asked` is per sample.",
            chosen="estimate = estimate * asked[0]",
        ),
        _look(
            "You toss a coin of your own. Who gets an estimate is said by `asked`.",
            chosen="estimate = estimate * (torch.rand(len(xt)) < 0.5).view(-1, *[1] * (xt.ndim - 1))",
        ),
        _look(
            "`asked` multiplies the last axis, as broadcasting has it. It belongs to the batch: (b, 1, 1, ...).",
            chosen="estimate = estimate * asked",
        ),
        _look(
            "Where nobody asked, the noisy latents stand in for the estimate. It must be zero there.",
            chosen="estimate = torch.where(asked.view(-1, *[1] * (xt.ndim - 1)), estimate, xt)",
        ),
        _look(
            "Where nobody asked, noise stands in for the estimate. It must be zero there.",
            chosen="estimate = torch.where(asked.view(-1, *[1] * (xt.ndim - 1)), estimate, torch.randn_like(xt))",
        ),
        _look(
            "The estimate is the velocity itself. It should be the clean latents that the velocity implies, xt - t v.",
            first="with torch.no_grad():\n    estimate = model(xt, t, estimate=torch.zeros_like(xt), **rest)",
        ),
        _look(
            "Your estimate is xt + t v: that walks on towards the noise. The clean latents are xt - t v.",
            first=_first("xt - ", "xt + "),
        ),
        _look(
            "Your estimate is xt - v, as if all were noise. At time t it is xt - t v.",
            first=_first(f"xt - {_TIME} * v", "xt - v"),
        ),
        _look(
            "Your estimate is xt - (1 - t) v, for a time that runs the other way. Here t = 1 is noise: xt - t v.",
            first=_first(f"xt - {_TIME} * v", f"xt - (1 - {_TIME}) * v"),
        ),
        _look(
            "Your estimate is xt + (1 - t) v: that is the noise, not the data. The clean latents are xt - t v.",
            first=_first(f"xt - {_TIME} * v", f"xt + (1 - {_TIME}) * v"),
        ),
        _look(
            "You read the answer as noise: (xt - t eps) / (1 - t). The model returns a velocity: xt - t v.",
            first=_first(f"xt - {_TIME} * v", f"(xt - {_TIME} * v) / (1 - {_TIME}).clamp(min=1e-3)"),
        ),
        _look(
            "The times of the first sample are used for all.",
            first=_first(_TIME, "t[0]"),
        ),
        _look(
            "`t` multiplies the last axis, as broadcasting has it. It belongs to the batch: (b, 1, 1, ...).",
            first=_first(_TIME, "t.to(xt.dtype)"),
        ),
        _look(
            "The estimate is clamped to [-1, 1]. That holds for pixels; latents have no such walls.",
            first=_first(f"xt - {_TIME} * v", f"(xt - {_TIME} * v).clamp(-1, 1)"),
        ),
        _look(
            "The first look sees other noise. It must see the same xt at the same time.",
            first=_first("model(xt, t,", "model(torch.randn_like(xt), t,"),
        ),
        _look(
            "The first look is taken at time 1. Both looks are at the same t.",
            first=_first("model(xt, t,", "model(xt, torch.ones_like(t),"),
        ),
        _look(
            "The second look is taken at time 0, as if the estimate had moved the sample. Both looks are at the same "
            "t.",
            second="return model(xt, torch.zeros_like(t), estimate=estimate, **rest)",
        ),
        _look(
            "The second look sees the estimate in place of the noisy latents. It sees both: xt as before, and the "
            "estimate beside it.",
            second="return model(estimate, t, estimate=estimate, **rest)",
        ),
        _look(
            "The first look gets xt as its estimate. There is none yet: zeros.",
            first=_first("estimate=torch.zeros_like(xt)", "estimate=xt"),
        ),
        _look(
            "The first look gets `estimate=None`. The contract says zeros: the model need not know what None means.",
            first=_first("estimate=torch.zeros_like(xt)", "estimate=None"),
        ),
        _look(
            "The first look returns, and the second never happens.",
            second="return v",
        ),
        _look(
            "The estimate comes back. It is the velocity of the second look that is asked for.",
            second="return estimate",
        ),
        _look(
            "Both are returned, velocity and estimate. It is the velocity of the second look alone.",
            second="return model(xt, t, estimate=estimate, **rest), estimate",
        ),
        _look(
            "The velocity of the second look is turned into clean latents once more. Return it as it is.",
            second=f"return xt - {_TIME} * model(xt, t, estimate=estimate, **rest)",
        ),
        _look(
            "The two looks are averaged. The answer is the second.",
            second="return (v + model(xt, t, estimate=estimate, **rest)) / 2",
        ),
        _look(
            "Where nobody asked you return the first look, which has no gradient: these samples teach nothing. Nor is "
            "it the same: in the second look the others have estimates, and samples influence each other.",
            second="""
            second = model(xt, t, estimate=estimate, **rest)
            return torch.where(asked.view(-1, *[1] * (xt.ndim - 1)), second, v)
            """,
        ),
        _look(
            "There are three looks, each with the estimate of the last. Two are enough: the estimate of the first goes "
            "into the second.",
            second=f"""
            with torch.no_grad():
                v = model(xt, t, estimate=estimate, **rest)
            estimate = (xt - {_TIME} * v).detach() * asked.view(-1, *[1] * (xt.ndim - 1))
            return model(xt, t, estimate=estimate, **rest)
            """,
        ),
        _look(
            "`asked` also hides the answer: where nobody asked, the velocity is zero. It only decides about the "
            "estimate.",
            second="return model(xt, t, estimate=estimate, **rest) * asked.view(-1, *[1] * (xt.ndim - 1))",
        ),
        _look(
            "`rest`, such as the caption, is not handed on in the first look.",
            first=_first(", **rest", ""),
        ),
        _look(
            "`rest`, such as the caption, is not handed on in the second look.",
            second="return model(xt, t, estimate=estimate)",
        ),
        _look(
            "`rest`, such as the caption, is handed on in neither look.",
            first=_first(", **rest", ""),
            second="return model(xt, t, estimate=estimate)",
        ),
        _look(
            "The estimate has become float32 on the way: t or `asked` was of that dtype, and xt is not. Give the "
            "estimate the dtype of xt.",
            chosen="estimate = estimate * asked.float().view(-1, *[1] * (xt.ndim - 1))",
        ),
        _look(
            "xt itself is overwritten by the estimate. Make a new tensor: the second look needs the noisy latents.",
            first=f"""
            with torch.no_grad():
                v = model(xt, t, estimate=torch.zeros_like(xt), **rest)
                estimate = xt.sub_({_TIME} * v)
            """,
        ),
        _look(
            "Only those who are asked take part in the first look, while `rest` is that of the whole batch. All "
            "samples look first.",
            first=f"""
            with torch.no_grad():
                v = torch.zeros_like(xt)
                v[asked] = model(xt[asked], t[asked], estimate=torch.zeros_like(xt[asked]), **rest)
                estimate = xt - {_TIME} * v
            """,
        ),
        _look(
            "You switch the model to eval mode for the first look. It may be any function; call it, and nothing else.",
            first="model.eval()\n" + _FIRST + "model.train()\n",
        ),
        _look(
            "The estimate is handed over by position. The model takes it by name: `estimate=...`.",
            first=_first("estimate=torch", "torch"),
            second="return model(xt, t, estimate, **rest)",
        ),
        _look(
            "The estimate of the first look is a single zero, which broadcasts. The model wants one like xt.",
            first=_first("torch.zeros_like(xt)", "torch.zeros(1)"),
        ),
        _look(
            "You look three times, the first time for nothing. Keep what the first look says, and use it.",
            first=_FIRST.replace("    v =", "    model(xt, t, estimate=torch.zeros_like(xt), **rest)\n    v ="),
        ),
        _look(
            "The estimate is forgotten: the second look sees zeros again.",
            second="return model(xt, t, estimate=torch.zeros_like(xt), **rest)",
        ),
        _look(
            "Where nobody asked you keep the first look. The answer is the second for all of them: there the others "
            "have estimates, and samples of a batch influence each other.",
            first=f"""
            v = model(xt, t, estimate=torch.zeros_like(xt), **rest)
            estimate = (xt - {_TIME} * v).detach()
            """,
            second="""
            second = model(xt, t, estimate=estimate, **rest)
            return torch.where(asked.view(-1, *[1] * (xt.ndim - 1)), second, v)
            """,
        ),
        _look(
            "You put two looks together, sample by sample: one in which all have an estimate, and one in which nobody "
            "has. It is one look at the whole batch, in which some estimates are zeros.",
            chosen="",
            second="""
            second = model(xt, t, estimate=estimate, **rest)
            without = model(xt, t, estimate=torch.zeros_like(xt), **rest)
            return torch.where(asked.view(-1, *[1] * (xt.ndim - 1)), second, without)
            """,
        ),
        _look(
            "All get an estimate in the second look, and where nobody asked you return the first, without gradient. "
            "Give them zeros as their estimate, and return the second look for all.",
            chosen="",
            second="""
            second = model(xt, t, estimate=estimate, **rest)
            return torch.where(asked.view(-1, *[1] * (xt.ndim - 1)), second, v)
            """,
        ),
        _look(
            "You hand on `t` in the dtype of xt. Half precision cannot tell 0.2371 from 0.2373: the model gets `t` as "
            "it came; only your own xt - t v needs it in the dtype of xt.",
            first="t = t.to(xt.dtype)\n" + _FIRST,
        ),
        _look(
            "In the first look `t` is in the dtype of xt, in the second as it came. Both get it as it came.",
            first=_first("model(xt, t,", "model(xt, t.to(xt.dtype),"),
        ),
        _look(
            "You make `t` float32 for all. Where it came in double precision, the model gets rounded times.",
            first="t = t.float()\n" + _FIRST,
        ),
        _look(
            "You work in float32 whatever xt is. The model gets xt as it came, and answers in its dtype.",
            first="xt = xt.float()\n" + _FIRST,
        ),
        _look(
            "The first look is taken in `torch.inference_mode()`. What comes out of it cannot take part in training: "
            "the second look multiplies weights by it. Use `torch.no_grad()`.",
            first=f"""
            with torch.inference_mode():
                v = model(xt, t, estimate=torch.zeros_like(xt), **rest)
                estimate = (xt - {_TIME} * v) * asked.view(-1, *[1] * (xt.ndim - 1))
            """,
            chosen="",
        ),
        _look(
            "You switch gradients on again behind the first look, also for a caller who had switched them off. `with "
            "torch.no_grad():` leaves things as they were.",
            first=f"""
            torch.set_grad_enabled(False)
            v = model(xt, t, estimate=torch.zeros_like(xt), **rest)
            estimate = xt - {_TIME} * v
            torch.set_grad_enabled(True)
            """,
        ),
        _look(
            "Your times have five axes, whatever xt has. It may be a batch of pictures or of vectors: as many axes as "
            "xt, `[1] * (xt.ndim - 1)` of them behind the first.",
            first=_first(_TIME, "t[:, None, None, None, None].to(xt.dtype)"),
            chosen="estimate = estimate * asked[:, None, None, None, None]",
        ),
        _look(
            "Those who are not asked are left out of the first look, with their part of `rest`. The whole batch looks: "
            "its samples influence each other.",
            first=f"""
            estimate = torch.zeros_like(xt)
            if asked.any():
                part = {{k: w[asked] if isinstance(w, Tensor) else w for k, w in rest.items()}}
                with torch.no_grad():
                    v = model(xt[asked], t[asked], estimate=estimate[asked], **part)
                    estimate[asked] = xt[asked] - {_TIME.replace("t.", "t[asked].", 1)} * v
            """,
            chosen="",
        ),
        _look(
            "Where somebody is asked, only they look first, with `rest` for the whole batch. Everybody looks first.",
            first=f"""
            estimate = torch.zeros_like(xt)
            if asked.any():
                with torch.no_grad():
                    v = model(xt[asked], t[asked], estimate=estimate[asked], **rest)
                    estimate[asked] = xt[asked] - {_TIME.replace("t.", "t[asked].", 1)} * v
            """,
            chosen="",
        ),
    ],
    variants=[
        Variant(
            "detach",
            _look_code("""
            shape = (len(xt),) + (1,) * (xt.dim() - 1)
            first = model(xt, t, estimate=xt * 0, **rest).detach()
            guess = xt.detach() - t.reshape(shape).type_as(xt) * first
            guess[~asked] = 0
            return model(xt, t, estimate=guess, **rest)
            """),
        ),
        Variant(
            "torch.where",
            _look_code("""
            nothing = torch.zeros_like(xt)
            with torch.no_grad():
                x0 = denoised(xt, t, model(xt, t, estimate=nothing, **rest))
            who = asked[(...,) + (None,) * (xt.ndim - 1)]
            return model(xt, t, estimate=torch.where(who, x0, nothing), **rest)
            """),
        ),
        Variant(
            "sample by sample",
            _look_code("""
            with torch.no_grad():
                v = model(xt, t, estimate=torch.zeros_like(xt), **rest)
                rows = []
                for i in range(len(xt)):
                    rows.append(xt[i] - t[i].to(xt.dtype) * v[i] if asked[i] else torch.zeros_like(xt[i]))
            return model(xt, t, estimate=torch.stack(rows), **rest)
            """),
        ),
        Variant(
            "nobody asked, no first look",
            _look_code("""
            estimate = torch.zeros_like(xt)
            if asked.any():
                with torch.no_grad():
                    v = model(xt, t, estimate=estimate, **rest)
                    mask = torch.einsum("b,b...->b...", asked.to(xt.dtype), torch.ones_like(xt))
                    estimate = mask * (xt - torch.einsum("b,b...->b...", t.to(xt.dtype), v))
            return model(xt, t, estimate=estimate.detach(), **rest)
            """),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Four lines: ask the model with `estimate=torch.zeros_like(xt)`; turn the answer into clean latents; clear "
            "the rows that nobody asked for; ask again with them.",
        ),
        Hint(
            "shapes do not broadcast",
            "t and asked are (b,), xt is (b, ...) with any number of axes. `t.view(-1, *[1] * (xt.ndim - 1))` has as "
            "many axes as xt.",
        ),
        Hint(
            "the values are right, but a gradient is not",
            "Everything up to the estimate belongs under `with torch.no_grad():`, also xt - t v. The second look stays "
            "outside of it.",
        ),
        Hint(
            "show me nearly everything",
            "with torch.no_grad(): v = model(xt, t, estimate=torch.zeros_like(xt), **rest); estimate = xt - t v; then "
            "multiply by `asked`; return model(xt, t, estimate=estimate, **rest).",
        ),
    ],
)


EXERCISES = [CAUSAL_CONV, CAUSAL_UP, WINDOW, UNWINDOW, PICTURE_MASK, ADALN_LORA, SELF_CONDITIONED]
