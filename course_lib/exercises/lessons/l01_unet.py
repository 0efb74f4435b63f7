"""The exercises of lesson 01, U-Net: enlarge, copy and crop, the U itself, and the block of diffusion models."""

import inspect
import textwrap

import torch
from torch import Tensor, nn

from course_lib.exercises.catalogue import Case, Exercise, Hint, Mistake, Property, Variant, randn
from course_lib.models.unet import ResBlock, UNet, crop_concat, transposed_convolution


def _same_without_names(f, **inputs) -> bool:
    """Does a call without argument names do what it does with them? Where that one crashes, others say so."""
    torch.manual_seed(0)
    expected = f(**inputs)
    torch.manual_seed(0)
    try:
        got = f(*inputs.values())
    except Exception:
        return False
    return torch.equal(got, expected) if torch.is_tensor(got) and torch.is_tensor(expected) else got is expected


# ------------------------------------------------------------------------------------------- transposed convolution


def _stamping(g: torch.Generator, b: int, c_in: int, c_out: int, h: int, w: int, k: int, stride: int) -> dict:
    return dict(x=randn(g, b, c_in, h, w), weight=randn(g, c_in, c_out, k, k), stride=stride)


_STAMP = "out[:, :, dy : height - k + dy + 1 : stride, dx : width - k + dx + 1 : stride] += stamped"


def _one_pixel_is_the_kernel(f) -> bool:
    weight = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    x = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    return torch.allclose(f(x=x, weight=weight, stride=3)[0], weight[1])


TRANSPOSED_CONVOLUTION = Exercise(
    target=transposed_convolution,
    minutes=12,
    cases=[
        Case("kernel 3, stride 2: stamps overlap", lambda g: _stamping(g, 2, 3, 5, 7, 4, 3, 2)),
        Case("kernel 2, stride 2: stamps touch", lambda g: _stamping(g, 2, 3, 5, 7, 11, 2, 2)),
        Case("kernel 2, stride 3: gaps stay zero", lambda g: _stamping(g, 3, 5, 2, 4, 7, 2, 3)),
        Case("kernel 5, stride 1: a full convolution", lambda g: _stamping(g, 2, 3, 7, 4, 6, 5, 1)),
        Case("kernel 5, stride 2", lambda g: _stamping(g, 2, 3, 2, 7, 3, 5, 2)),
        Case("kernel 1, stride 1: channels are mixed, nothing else", lambda g: _stamping(g, 2, 3, 5, 7, 4, 1, 1)),
        Case("kernel 1, stride 3", lambda g: _stamping(g, 2, 3, 5, 4, 3, 1, 3)),
        Case("one channel comes out", lambda g: _stamping(g, 2, 3, 1, 4, 7, 3, 2)),
        Case("a picture of one pixel", lambda g: _stamping(g, 2, 3, 5, 1, 1, 3, 2)),
        Case(
            "double precision",
            lambda g: {k: v if k == "stride" else v.double() for k, v in _stamping(g, 2, 3, 5, 4, 7, 3, 2).items()},
        ),
        Case("all sizes are 3", lambda g: _stamping(g, 3, 3, 3, 3, 3, 3, 2)),
        Case("stride 0 must be refused", lambda g: _stamping(g, 2, 3, 5, 4, 7, 3, 0)),
        Case("a negative stride must be refused", lambda g: _stamping(g, 2, 3, 5, 4, 7, 3, -1)),
    ],
    properties=[
        Property("A single pixel of value 1 must leave exactly one copy of the kernel.", _one_pixel_is_the_kernel),
        Property(
            "The arguments must stand in the stub's order: others call it without their names.",
            lambda f: _same_without_names(f, x=torch.ones(1, 2, 4, 4), weight=torch.ones(2, 3, 2, 2), stride=2),
        ),
    ],
    mistakes=[
        Mistake(
            "Later stamps overwrite earlier ones. Where two stamps overlap, both count: add with `+=`.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, _, h, w), (_, c_out, k, _) = x.shape, weight.shape
                out = x.new_zeros(b, c_out, (h - 1) * stride + k, (w - 1) * stride + k)
                for i in range(h):
                    for j in range(w):
                        stamp = torch.einsum("bc,coyz->boyz", x[:, :, i, j], weight)
                        out[:, :, i * stride : i * stride + k, j * stride : j * stride + k] = stamp
                return out
            """,
        ),
        Mistake(
            "A bias is added: `nn.ConvTranspose2d` has one unless you say `bias=False`. Here there is none.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                layer = nn.ConvTranspose2d(*weight.shape[:2], weight.shape[-1], stride, dtype=x.dtype)
                return F.conv_transpose2d(x, weight, layer.bias, stride=stride)
            """,
        ),
        Mistake(
            "The middle of each stamp lies at (stride · i, stride · j). Its top-left corner belongs there.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                out, r = F.conv_transpose2d(x, weight, stride=stride), weight.shape[-1] // 2
                return F.pad(out[..., r:, r:], (0, r, 0, r))
            """,
        ),
        Mistake(
            "The weight is reshaped to (c_out, c_in, k, k), which deals its numbers out anew. Its axes can be "
            "exchanged by `transpose`, and need not be: `F.conv_transpose2d` takes (c_in, c_out, k, k).",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                c_in, c_out, k, _ = weight.shape
                return F.conv_transpose2d(x, weight.reshape(c_out, c_in, k, k).transpose(0, 1), stride=stride)
            """,
        ),
        Mistake(
            "Within one stamp pixels are overwritten: `=` where `+=` belongs, so of overlapping stamps only the last "
            "kernel pixel counts.",
            old=_STAMP,
            new=_STAMP.replace("+=", "="),
        ),
        Mistake(
            "The kernel is flipped in both directions. A stamp is put down as it is. (If you put zeros between the "
            "pixels and slide the kernel over them: sliding reads it backwards, so flip it first.)",
            old="weight[:, :, dy, dx]",
            new="weight[:, :, k - 1 - dy, k - 1 - dx]",
        ),
        Mistake(
            "The kernel is flipped from left to right. A stamp is put down as it is.",
            old="weight[:, :, dy, dx]",
            new="weight[:, :, dy, k - 1 - dx]",
        ),
        Mistake(
            "The kernel is flipped from top to bottom. A stamp is put down as it is.",
            old="weight[:, :, dy, dx]",
            new="weight[:, :, k - 1 - dy, dx]",
        ),
        Mistake(
            "The pixels of the last row and the last column leave no stamp: `range(h)` already ends before h.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                x = x.clone()
                x[:, :, -1], x[:, :, :, -1] = 0, 0
                return F.conv_transpose2d(x, weight, stride=stride)
            """,
        ),
        Mistake(
            "The weight is reshaped where it should be transposed: (c_in, c_out · k · k) becomes (c_out · k · k, c_in) "
            "by `.T`, and `reshape` only deals the numbers out anew.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, c, h, w), (_, o, k, _) = x.shape, weight.shape
                columns = weight.reshape(o * k * k, c) @ x.flatten(2)
                return F.fold(columns, ((h - 1) * stride + k, (w - 1) * stride + k), kernel_size=k, stride=stride)
            """,
        ),
        Mistake(
            "The kernel is stamped transposed, its rows as columns. weight[..., y, x] lands y rows down and x columns "
            "to the right.",
            old="weight[:, :, dy, dx]",
            new="weight[:, :, dx, dy]",
        ),
        Mistake(
            "The output has the right size, but the corners of the stamps are one pixel apart: (i, j). They belong "
            "at (stride · i, stride · j).",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, _, h, w), (_, c_out, k, _) = x.shape, weight.shape
                out = x.new_zeros(b, c_out, (h - 1) * stride + k, (w - 1) * stride + k)
                for i in range(h):
                    for j in range(w):
                        stamp = torch.einsum("bc,coyz->boyz", x[:, :, i, j], weight)
                        out[:, :, i : i + k, j : j + k] += stamp
                return out
            """,
        ),
        Mistake(
            "Rows and columns of the corners are exchanged: pixel (i, j) stamps at row stride · i and column stride "
            "· j.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, _, h, w), (_, c_out, k, _) = x.shape, weight.shape
                out = x.new_zeros(b, c_out, (h - 1) * stride + k, (w - 1) * stride + k)
                for i in range(h):
                    for j in range(w):
                        stamp = torch.einsum("bc,coyz->boyz", x[:, :, i, j], weight)
                        out[:, :, j * stride : j * stride + k, i * stride : i * stride + k] += stamp
                return out
            """,
        ),
        Mistake(
            "The output is square: its width is worked out from h. The width comes from w.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, _, h, w), (_, c_out, k, _) = x.shape, weight.shape
                out = x.new_zeros(b, c_out, (h - 1) * stride + k, (h - 1) * stride + k)
                for i in range(h):
                    for j in range(w):
                        stamp = torch.einsum("bc,coyz->boyz", x[:, :, i, j], weight)
                        out[:, :, i * stride : i * stride + k, j * stride : j * stride + k] += stamp
                return out
            """,
        ),
        Mistake(
            "The output is made for a stamp of at least `stride` pixels. After the last stamp nothing follows: (h - "
            "1) · stride + k rows.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, _, h, w), (_, c_out, k, _) = x.shape, weight.shape
                out = x.new_zeros(b, c_out, (h - 1) * stride + max(k, stride), (w - 1) * stride + max(k, stride))
                for i in range(h):
                    for j in range(w):
                        stamp = torch.einsum("bc,coyz->boyz", x[:, :, i, j], weight)
                        out[:, :, i * stride : i * stride + k, j * stride : j * stride + k] += stamp
                return out
            """,
        ),
        Mistake(
            "Where stamps overlap you keep the larger value. Overlaps are summed.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, _, h, w), (_, c_out, k, _) = x.shape, weight.shape
                out = x.new_zeros(b, c_out, (h - 1) * stride + k, (w - 1) * stride + k)
                for i in range(h):
                    for j in range(w):
                        stamp = torch.einsum("bc,coyz->boyz", x[:, :, i, j], weight)
                        top, left = i * stride, j * stride
                        stamp = F.pad(stamp, (left, out.shape[3] - left - k, top, out.shape[2] - top - k))
                        out = torch.maximum(out, stamp)
                return out
            """,
        ),
        Mistake(
            "Half a stamp is cut off at every border, as `padding=(k - 1) // 2` does. Every stamp stays whole here.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight, stride=stride, padding=(weight.shape[-1] - 1) // 2)
            """,
        ),
        Mistake(
            "The output has stride - 1 rows and columns too many (`output_padding`). After the last stamp nothing "
            "follows.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight, stride=stride, output_padding=stride - 1)
            """,
        ),
        Mistake(
            "The *kernel's* pixels are pulled apart (dilation), not the stamps. Each stamp is one solid square; its "
            "neighbours lie `stride` further on.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight, stride=1, dilation=stride)
            """,
        ),
        Mistake(
            "The stride only works along the width. Stamps are `stride` apart in both directions.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight, stride=(1, stride))
            """,
        ),
        Mistake(
            "Only the last input channel is stamped. Input channels are summed: add to what is there.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x[:, -1:], weight[-1:], stride=stride)
            """,
        ),
        Mistake(
            "The result is float32 whatever comes in. Make new tensors in the dtype of x: `x.new_zeros(...)`.",
            old="return out",
            new="return out.float()",
        ),
        Mistake(
            "You compute in float32 whatever comes in. Stay in the dtype of x.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x.float(), weight.float(), stride=stride)
            """,
        ),
        Mistake(
            "Input and output channels of the weight are exchanged. A transposed convolution keeps its weight as "
            "(c_in, c_out, k, k), the other way round than `F.conv2d`.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight.transpose(0, 1), stride=stride)
            """,
        ),
        Mistake(
            "Input and output channels of the weight are exchanged: its axes are (c_in, c_out, k, k).",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, _, h, w), (c_out, _, k, _) = x.shape, weight.shape
                height, width = (h - 1) * stride + k, (w - 1) * stride + k
                out = x.new_zeros(b, c_out, height, width)
                for dy in range(k):
                    for dx in range(k):
                        stamped = torch.einsum("bcij,oc->boij", x, weight[:, :, dy, dx])
                        out[:, :, dy : height - k + dy + 1 : stride, dx : width - k + dx + 1 : stride] += stamped
                return out
            """,
        ),
        Mistake(
            "The output has stride · h rows, cut off or padded at the end. It must hold every stamp whole: "
            "(h - 1) · stride + k.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                out = F.conv_transpose2d(x, weight, stride=stride)
                height, width = x.shape[2] * stride, x.shape[3] * stride
                return F.pad(out, (0, width - out.shape[3], 0, height - out.shape[2]))
            """,
        ),
        Mistake(
            "One stride too many: the output has h · stride + k rows. The last stamp begins at (h - 1) · stride, so "
            "(h - 1) · stride + k are enough.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.pad(F.conv_transpose2d(x, weight, stride=stride), (0, stride, 0, stride))
            """,
        ),
        Mistake(
            "Borders are cut off as with `padding=1`. Every stamp stays whole here, also those at the edge.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight, stride=stride, padding=1)
            """,
        ),
        Mistake(
            "Overlaps are averaged instead of summed. It is true that the sum is uneven; that is the very trouble with "
            "this operation, and the network has to live with it.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                out = F.conv_transpose2d(x, weight, stride=stride)
                ones = torch.ones(1, 1, *x.shape[2:])
                count = F.conv_transpose2d(ones, torch.ones(1, 1, *weight.shape[2:]), stride=stride)
                return out / count.clamp(min=1)
            """,
        ),
        Mistake(
            "Stamps lie side by side, k apart, whatever the stride is. Their corners are `stride` apart.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight, stride=weight.shape[-1])
            """,
        ),
        Mistake(
            "Stamps lie one pixel apart, whatever the stride is. Pixel (i, j) stamps at (stride · i, stride · j).",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight, stride=1)
            """,
        ),
        Mistake(
            "This enlarges by repeating pixels and then convolves. That avoids checkerboards, and the last part of "
            "this lesson uses it, but it is another operation.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                large = x.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
                k = weight.shape[-1]
                out = F.conv2d(F.pad(large, (k - 1,) * 4), weight.transpose(0, 1).flip(-1, -2))
                return out[:, :, : (x.shape[2] - 1) * stride + k, : (x.shape[3] - 1) * stride + k]
            """,
        ),
        Mistake(
            "This is an ordinary convolution with a stride: it makes the picture smaller. Its transpose spreads every "
            "pixel out instead.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv2d(x, weight.transpose(0, 1), stride=stride)
            """,
        ),
        Mistake(
            "Channels are stamped one by one and not mixed: every input channel contributes to every output channel, "
            "summed over input channels.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                c = x.shape[1]
                return F.conv_transpose2d(x, weight[:, :1], stride=stride, groups=c)
            """,
        ),
        Mistake(
            "Only the first input channel is stamped: a loop ends too early, or a `return` stands inside it.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x[:, :1], weight[:1], stride=stride)
            """,
        ),
        Mistake(
            "Only the first picture of the batch is drawn, or all look like it. Keep the batch axis in every step.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x[:1], weight, stride=stride).repeat(len(x), 1, 1, 1)
            """,
        ),
        Mistake(
            "The mean over input channels is taken. Contributions of input channels are summed.",
            old='torch.einsum("bcij,co->boij", x, weight[:, :, dy, dx])',
            new='torch.einsum("bcij,co->boij", x, weight[:, :, dy, dx]) / x.shape[1]',
        ),
        Mistake(
            "Rows and columns of the picture are exchanged: i counts rows and moves a stamp down, j counts columns.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x.transpose(2, 3), weight, stride=stride)
            """,
        ),
        Mistake(
            "Rows and columns of the output are exchanged: height comes before width.",
            code="""
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                return F.conv_transpose2d(x, weight, stride=stride).transpose(2, 3)
            """,
        ),
        Mistake(
            "A negative stride is not refused. Ask `stride < 1` and raise a ValueError.",
            old="if stride < 1:",
            new="if stride == 0:",
        ),
        Mistake(
            "A stride of 1 is refused, which is allowed: neighbouring stamps are one pixel apart then.",
            old="if stride < 1:",
            new="if stride <= 1:",
        ),
        Mistake(
            "No gradient reaches the inputs: they go through `.data`, `.item()`, `.detach()` or a new `torch.tensor`.",
            old='torch.einsum("bcij,co->boij", x, weight[:, :, dy, dx])',
            new='torch.einsum("bcij,co->boij", x, weight[:, :, dy, dx]).detach()',
        ),
        Mistake(
            "No gradient reaches the weight: it is detached on the way.",
            old="weight[:, :, dy, dx]",
            new="weight[:, :, dy, dx].detach()",
        ),
    ],
    variants=[
        Variant(
            "pixel by pixel",
            """
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError(f"stride {stride}")
                b, c_in, h, w = x.shape
                _, c_out, k, _ = weight.shape
                out = torch.zeros(b, c_out, (h - 1) * stride + k, (w - 1) * stride + k).to(x)
                for i in range(h):
                    for j in range(w):
                        stamp = (x[:, :, i, j, None, None, None] * weight[None]).sum(1)
                        out[:, :, i * stride : i * stride + k, j * stride : j * stride + k] += stamp
                return out
            """,
        ),
        Variant(
            "built-in",
            """
            def transposed_convolution(x, weight, stride):
                if not stride >= 1:
                    raise ValueError("stride")
                return nn.functional.conv_transpose2d(x, weight, None, stride)
            """,
        ),
        Variant(
            "F.fold",
            """
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, c, h, w), (_, o, k, _) = x.shape, weight.shape
                columns = weight.reshape(c, o * k * k).T @ x.reshape(b, c, h * w)
                return F.fold(columns, ((h - 1) * stride + k, (w - 1) * stride + k), kernel_size=k, stride=stride)
            """,
        ),
        Variant(
            "zeros between pixels, then a convolution with the flipped kernel",
            """
            def transposed_convolution(x, weight, stride):
                if stride < 1:
                    raise ValueError("stride")
                (b, c, h, w), k = x.shape, weight.shape[-1]
                spread = x.new_zeros(b, c, (h - 1) * stride + 1, (w - 1) * stride + 1)
                spread[:, :, ::stride, ::stride] = x
                return F.conv2d(spread, weight.transpose(0, 1).flip(2, 3), padding=k - 1)
            """,
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Begin with the empty output: zeros of shape (b, c_out, (h - 1) * stride + k, (w - 1) * stride + k). Then "
            "two loops over the pixels (i, j) of x. Where does the square of this pixel lie in the output?",
        ),
        Hint(
            "the channels do not fit",
            "At one pixel, x[:, :, i, j] is (b, c_in) and weight (c_in, c_out, k, k). The stamp is (b, c_out, k, k), "
            'summed over c_in: torch.einsum("bc,coyx->boyx", x[:, :, i, j], weight).',
        ),
        Hint(
            "it is right for stride = k and wrong for overlaps",
            "Add to what is there: `out[...] += stamp`. With `=` a later stamp erases part of its neighbour.",
        ),
        Hint(
            "show me nearly everything",
            "for i in range(h): for j in range(w): out[:, :, i * stride : i * stride + k, j * stride : j * stride + k] "
            "+= the stamp of hint 2. Before that, refuse stride < 1 with a ValueError.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------ crop, concat


def _pair(g: torch.Generator, b: int, c: int, h: int, w: int, c_skip: int, height: int, width: int) -> dict:
    return dict(up=randn(g, b, c, h, w), skip=randn(g, b, c_skip, height, width))


def _crop(body: str, refuse: bool = True) -> str:
    guard = '    if h > height or w > width:\n        raise ValueError("too small")\n' if refuse else ""
    head = "def crop_concat(up, skip):\n    (h, w), (height, width) = up.shape[-2:], skip.shape[-2:]\n"
    return head + guard + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"


_CUT = "skip[:, :, top : top + h, left : left + w]"
_OFFSETS = "(height - h) // 2, (width - w) // 2"
_GUARD = "if h > height or w > width:"

CROP_CONCAT = Exercise(
    target=crop_concat,
    minutes=8,
    cases=[
        Case("even margins", lambda g: _pair(g, 2, 3, 5, 7, 2, 9, 13)),
        Case("odd margins", lambda g: _pair(g, 2, 3, 5, 7, 4, 8, 12)),
        Case("margins of 1 and 7", lambda g: _pair(g, 2, 3, 4, 5, 2, 5, 12)),
        Case("nothing to crop", lambda g: _pair(g, 2, 3, 5, 7, 4, 5, 7)),
        Case("crop rows only", lambda g: _pair(g, 2, 3, 5, 7, 4, 11, 7)),
        Case("crop columns only", lambda g: _pair(g, 2, 3, 5, 7, 4, 5, 10)),
        Case("equally many channels", lambda g: _pair(g, 2, 3, 4, 5, 3, 6, 9)),
        Case("double precision", lambda g: {k: v.double() for k, v in _pair(g, 2, 3, 5, 7, 4, 9, 8).items()}),
        Case("batch, channels and size are all 3", lambda g: _pair(g, 3, 3, 3, 3, 3, 6, 6)),
        Case("one pixel", lambda g: _pair(g, 2, 3, 1, 1, 5, 4, 7)),
        Case("a skip that is smaller in both must be refused", lambda g: _pair(g, 2, 3, 5, 7, 4, 3, 4)),
        Case("a skip that is too low must be refused", lambda g: _pair(g, 2, 3, 5, 7, 4, 4, 9)),
        Case("a skip that is too narrow must be refused", lambda g: _pair(g, 2, 3, 5, 7, 4, 9, 6)),
    ],
    properties=[
        Property(
            "The arguments must stand in the stub's order: others call it without their names.",
            lambda f: _same_without_names(f, up=torch.ones(1, 2, 3, 3), skip=torch.zeros(1, 1, 5, 5)),
        )
    ],
    mistakes=[
        Mistake(
            "Nearly: with an odd margin one column too many is cut at the left (rows are right). Round both margins "
            "down.",
            old=_OFFSETS,
            new="(height - h) // 2, (width - w + 1) // 2",
        ),
        Mistake(
            "Nearly: with an odd margin one row too many is cut at the top (columns are right). Round both margins "
            "down.",
            old=_OFFSETS,
            new="(height - h + 1) // 2, (width - w) // 2",
        ),
        Mistake(
            "The middles are rounded before they are subtracted: height // 2 - h // 2. That is one too many where "
            "the height is even and h odd. Subtract first: (height - h) // 2.",
            old=_OFFSETS,
            new="height // 2 - h // 2, width // 2 - w // 2",
        ),
        Mistake(
            "The crop is square: as wide as it is high. Its width is that of `up`.",
            old=_CUT,
            new="skip[:, :, top : top + h, left : left + h]",
        ),
        Mistake(
            "Channels of the two alternate. All of the skip's channels come first, then all of `up`'s.",
            code=_crop("""
            top, left = (height - h) // 2, (width - w) // 2
            skip = skip[:, :, top : top + h, left : left + w]
            both = torch.cat([skip, up], dim=1)
            if skip.shape[1] == up.shape[1]:
                both = torch.stack([skip, up], dim=2).flatten(1, 2)
            return both
            """),
        ),
        Mistake(
            "The result is float32 whatever comes in. Keep the dtype of the inputs.",
            old=f"[{_CUT}, up]",
            new=f"[{_CUT}.float(), up.float()]",
        ),
        Mistake(
            "You cut out the top-left corner. Unpadded convolutions eat the border on all sides, so `up` lies in the "
            "middle of `skip`; this skip is shifted.",
            old=_OFFSETS,
            new="0, 0",
        ),
        Mistake(
            "You cut out the bottom-right corner. `up` lies in the middle of `skip`, so leave half of the margin at "
            "the bottom and at the right as well.",
            old=_OFFSETS,
            new="height - h, width - w",
        ),
        Mistake(
            "Nearly: with an odd margin you cut one pixel too many at the top and at the left. Round the margin down; "
            "what is left over goes below or at the right.",
            old=_OFFSETS,
            new="(height - h + 1) // 2, (width - w + 1) // 2",
        ),
        Mistake(
            "Nearly: `round` sends halves to the nearest *even* number, so odd margins fall now this way and now that. "
            "Use `//`.",
            old=_OFFSETS,
            new="round((height - h) / 2), round((width - w) / 2)",
        ),
        Mistake(
            "A negative end such as `skip[:, :, m:-m]` fails where there is nothing to crop: with m = 0 it cuts "
            "everything away. Count from the front: `top : top + h`.",
            code=_crop("""
            m, n = (height - h) // 2, (width - w) // 2
            return torch.cat([skip[:, :, m:-m, n:-n], up], dim=1)
            """),
        ),
        Mistake(
            "The same margin is cut at both ends, so with an odd difference one row or column too many is left. The "
            "crop must be exactly as large as `up`: `top : top + h`.",
            code=_crop("""
            m, n = (height - h) // 2, (width - w) // 2
            return torch.cat([skip[:, :, m : height - m, n : width - n], up], dim=1)
            """),
        ),
        Mistake(
            "`up` comes first. The contract asks for the channels of the skip first, then those of `up`.",
            old=f"[{_CUT}, up]",
            new=f"[up, {_CUT}]",
        ),
        Mistake(
            "You add the two. Concatenate them along the channels: how to mix both is for the next convolution to "
            "learn.",
            old=f"torch.cat([{_CUT}, up], dim=1)",
            new=f"{_CUT} + up",
        ),
        Mistake(
            "Concatenated along the batch. Channels are axis 1.",
            old="dim=1",
            new="dim=0",
        ),
        Mistake(
            "Concatenated along the rows: the two pictures stand below each other. Channels are axis 1.",
            old="dim=1",
            new="dim=2",
        ),
        Mistake(
            "Concatenated along the columns: the two pictures stand side by side. Channels are axis 1.",
            old="dim=1",
            new="dim=-1",
        ),
        Mistake(
            "You `stack` instead of `cat`: stacking makes a new axis. The channels of both go into the one that is "
            "there.",
            code=_crop("""
            top, left = (height - h) // 2, (width - w) // 2
            return torch.stack([skip[:, :, top : top + h, left : left + w], up], dim=1)
            """),
        ),
        Mistake(
            "You resize the skip instead of cutting. Resizing moves and blurs every pixel; cutting leaves each where "
            "it belongs.",
            code=_crop("""
            small = F.interpolate(skip, size=(h, w), mode="bilinear", align_corners=False)
            return torch.cat([small, up], dim=1)
            """),
        ),
        Mistake(
            "You resize the skip (nearest pixel) instead of cutting its middle out. Detail has to stay where it is.",
            code=_crop("""
            return torch.cat([F.interpolate(skip, size=(h, w)), up], dim=1)
            """),
        ),
        Mistake(
            "Where there is nothing to cut, `up` comes first. The channels of the skip come first there too.",
            code=_crop("""
            if (h, w) == (height, width):
                return torch.cat([up, skip], dim=1)
            top, left = (height - h) // 2, (width - w) // 2
            return torch.cat([skip[:, :, top : top + h, left : left + w], up], dim=1)
            """),
        ),
        Mistake(
            "You pool the skip down to the size of `up`. Cut its middle out instead; every pixel stays as it is.",
            code=_crop("""
            return torch.cat([F.adaptive_max_pool2d(skip, (h, w)), up], dim=1)
            """),
        ),
        Mistake(
            "You average the skip down to the size of `up`. Cut its middle out instead; every pixel stays as it is.",
            code=_crop("""
            return torch.cat([F.adaptive_avg_pool2d(skip, (h, w)), up], dim=1)
            """),
        ),
        Mistake(
            "You pad `up` to the size of the skip, which many same-size U-Nets do. Here the skip is cut to the size of "
            "`up`.",
            code=_crop("""
            top, left = (height - h) // 2, (width - w) // 2
            up = F.pad(up, (left, width - w - left, top, height - h - top))
            return torch.cat([skip, up], dim=1)
            """),
        ),
        Mistake(
            "You resize `up` to the size of the skip. Here the skip is cut to the size of `up`.",
            code=_crop("""
            return torch.cat([skip, F.interpolate(up, size=(height, width))], dim=1)
            """),
        ),
        Mistake(
            "Rows and columns are exchanged in the margins: height minus h is the margin above and below.",
            code=_crop("""
            top, left = (width - w) // 2, (height - h) // 2
            return torch.cat([skip[:, :, top : top + h, left : left + w], up], dim=1)
            """),
        ),
        Mistake(
            "`F.pad` with negative numbers cuts, but counts from the last axis: (left, right, top, bottom). Yours has "
            "rows first.",
            code=_crop("""
            top, left = (height - h) // 2, (width - w) // 2
            cut = F.pad(skip, (-top, top + h - height, -left, left + w - width))
            return torch.cat([cut, up], dim=1)
            """),
        ),
        Mistake(
            "One margin serves both axes, as if pictures were square. Rows and columns have margins of their own.",
            old=_OFFSETS,
            new="(height - h) // 2, (height - h) // 2",
        ),
        Mistake(
            "One margin serves both axes (that of the columns), as if pictures were square. Rows and columns have "
            "margins of their own.",
            old=_OFFSETS,
            new="(width - w) // 2, (width - w) // 2",
        ),
        Mistake(
            "The whole margin is cut at the top and at the left of a picture that should lose half of it: you divide "
            "by 2 nowhere. (The slice then ends beyond the picture.)",
            old=f"torch.cat([{_CUT}, up], dim=1)",
            new="torch.cat([skip[:, :, h - height :, w - width :], up], dim=1)",
        ),
        Mistake(
            "The crop begins at the right place but runs to the end of the picture. Its size is that of `up`: "
            "`top : top + h`.",
            old=_CUT,
            new="skip[:, :, top:, left:]",
        ),
        Mistake(
            "The crop ends at h, not at top + h: a slice wants its end, not its length.",
            old=_CUT,
            new="skip[:, :, top:h, left:w]",
        ),
        Mistake(
            "The margin is the quotient of the sizes, not half of their difference.",
            old=_OFFSETS,
            new="height // h // 2, width // w // 2",
        ),
        Mistake(
            "Only the crop comes back; `up` is lost.",
            old=f"torch.cat([{_CUT}, up], dim=1)",
            new=_CUT,
        ),
        Mistake(
            "Only a skip that is too low is refused. Ask for the width as well.",
            old=_GUARD,
            new="if h > height:",
        ),
        Mistake(
            "A skip that is too low is not refused, unless it is too narrow as well. Either alone is enough: look at "
            "the height too, and join the two by `or`.",
            old=_GUARD,
            new="if w > width:",
        ),
        Mistake(
            "A skip that is too small is not refused. A negative margin makes a slice of nothing, or of the wrong end: "
            "raise a ValueError first.",
            old=_GUARD,
            new="if False:",
        ),
        Mistake(
            "A skip of equal size is refused, which is allowed: then there is nothing to cut.",
            old=_GUARD,
            new="if h >= height or w >= width:",
        ),
        Mistake(
            "Refusal is upside down: `skip` is usually larger than `up`, and that is right.",
            old=_GUARD,
            new="if h < height or w < width:",
        ),
        Mistake(
            "Odd margins are refused. They are allowed: the pixel that is left over is cut below or at the right.",
            old=_GUARD,
            new="if h > height or w > width or (height - h) % 2 or (width - w) % 2:",
        ),
        Mistake(
            "The right numbers, but no gradient reaches the skip: it is detached. The way down learns through its "
            "skips most of all.",
            old=f"[{_CUT}, up]",
            new=f"[{_CUT}.detach(), up]",
        ),
        Mistake(
            "The right numbers, but no gradient reaches `up`: it is detached.",
            old=f"[{_CUT}, up]",
            new=f"[{_CUT}, up.detach()]",
        ),
        Mistake(
            "Rows of the crop stand upside down or columns mirrored: a crop changes no order.",
            old=_CUT,
            new=_CUT + ".flip(-1)",
        ),
    ],
    variants=[
        Variant(
            "narrow",
            """
            def crop_concat(up, skip):
                for axis in (2, 3):
                    spare = skip.size(axis) - up.size(axis)
                    if spare < 0:
                        raise ValueError("the skip is too small")
                    skip = skip.narrow(axis, spare // 2, up.size(axis))
                return torch.cat((skip, up), 1)
            """,
        ),
        Variant(
            "negative padding",
            _crop("""
            top, left = (height - h) // 2, (width - w) // 2
            return torch.cat([F.pad(skip, (-left, left + w - width, -top, top + h - height)), up], dim=-3)
            """),
        ),
        Variant(
            "into an empty tensor",
            _crop("""
            b, c = up.shape[:2]
            both = up.new_empty(b, skip.shape[1] + c, h, w)
            rows = [(height - h) // 2 + i for i in range(h)]
            columns = [(width - w) // 2 + j for j in range(w)]
            both[:, : skip.shape[1]] = skip[:, :, rows][:, :, :, columns]
            both[:, skip.shape[1] :] = up
            return both
            """),
        ),
        Variant(
            "trim both ends",
            _crop("""
            dy, dx = height - h, width - w
            skip = skip[:, :, dy // 2 : height - (dy + 1) // 2, dx // 2 : width - (dx + 1) // 2]
            return torch.hstack((skip, up))
            """),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Draw `up` as a small square in the middle of a larger one. How many rows of the larger one lie above it? "
            "How many rows does it have? Those two numbers are a slice.",
        ),
        Hint(
            "some cases pass, others do not",
            "Equal sizes have a margin of 0, and `0:-0` is empty; odd margins are not alike on both sides. Both go "
            "away with `top = (height - h) // 2` and the slice `top : top + h`.",
        ),
        Hint(
            "a case expects a ValueError",
            "Python slices never complain: before cutting, compare h with height and w with width, and raise a "
            "ValueError if either is larger.",
        ),
        Hint(
            "show me nearly everything",
            "top, left = (height - h) // 2, (width - w) // 2; then torch.cat([skip[:, :, top : top + h, left : left + "
            "w], up], dim=1), after the check of hint 3.",
        ),
    ],
)


# ------------------------------------------------------------------------------------------------------------- U-Net


def _other_join(below: Tensor, across: Tensor) -> Tensor:
    """Another join, to see that a network uses the one it was given."""
    return crop_concat(0.5 * below, across.flip(1))


_UNET_BODY = """\
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            h, w = x.shape[-2:]
            if h % 2 or w % 2:
                raise ValueError(f"a picture of {h} x {w} pixels cannot be halved at level {len(skips)}; resize it")
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, convs in zip(self.ups, self.convs, strict=True):
            x = convs(self.join(up(x), skips.pop()))
        return self.to_logits(x)
"""
_KEEP = "            skips.append(x)\n"
_POOL = "            x = F.max_pool2d(x, 2)\n"
_ODD = "if h % 2 or w % 2:"
_JOIN = "self.join(up(x), skips.pop())"


def _unet(body: str) -> str:
    source = inspect.getsource(UNet)
    assert source.count(_UNET_BODY) == 1, "the body of UNet.forward has changed: adapt the exercise"
    return source.replace(_UNET_BODY, textwrap.indent(textwrap.dedent(body).strip("\n"), 8 * " ") + "\n")


# The course's own crop in every case, so that a crash inside it reads alike whoever wrote the learner's.
_SAME = dict(c_in=2, c_out=5, base=3, levels=2, join=crop_concat)
_VALID = _SAME | dict(padding=0)


# Cases of one network follow each other on the same instance, so everything that must be refused has its own.

UNET = Exercise(
    target=UNet,
    minutes=25,
    given=("__init__",),
    cases=[
        Case("two levels, same size", lambda g: dict(x=randn(g, 2, 2, 8, 12)), init=_SAME),
        Case(
            "three levels",
            lambda g: dict(x=randn(g, 2, 3, 16, 8)),
            init=dict(join=crop_concat, c_in=3, c_out=2, base=2, levels=3),
        ),
        Case(
            "one class",
            lambda g: dict(x=randn(g, 2, 3, 8, 4)),
            init=dict(join=crop_concat, c_in=3, c_out=1, base=2, levels=2),
        ),
        Case(
            "one level",
            lambda g: dict(x=randn(g, 2, 1, 6, 10)),
            init=dict(join=crop_concat, c_in=1, c_out=3, base=5, levels=1),
        ),
        Case("the paper's: no padding", lambda g: dict(x=randn(g, 2, 2, 44, 52)), init=_VALID),
        Case(
            "no padding, three levels: 92 is no multiple of 8",
            lambda g: dict(x=randn(g, 2, 1, 92, 100)),
            init=dict(join=crop_concat, c_in=1, c_out=2, base=1, levels=3, padding=0),
        ),
        Case("another join", lambda g: dict(x=randn(g, 2, 2, 8, 4)), init=_SAME | dict(join=_other_join)),
        Case(
            "batch and channels are all 4",
            lambda g: dict(x=randn(g, 4, 4, 4, 4)),
            init=dict(join=crop_concat, c_in=4, c_out=4, base=4, levels=2),
        ),
        Case(
            "four levels",
            lambda g: dict(x=randn(g, 2, 1, 16, 48)),
            init=dict(join=crop_concat, c_in=1, c_out=3, base=1, levels=4),
        ),
        Case("logits in the hundreds", lambda g: dict(x=3000 * randn(g, 2, 2, 4, 8)), init=_SAME | dict(c_out=6)),
        Case(
            "odd height and odd width must be refused",
            lambda g: dict(x=randn(g, 2, 2, 7, 11)),
            init=_SAME | dict(c_out=11),
        ),
        Case("an odd height must be refused", lambda g: dict(x=randn(g, 2, 2, 7, 12)), init=_SAME | dict(c_out=12)),
        Case("an odd width must be refused", lambda g: dict(x=randn(g, 2, 2, 8, 11)), init=_SAME | dict(c_out=13)),
        Case(
            "odd now, even after rounding down: must be refused",
            lambda g: dict(x=randn(g, 2, 2, 13, 12)),
            init=_SAME | dict(c_out=14),
        ),
        Case(
            "a height that is odd one level below must be refused",
            lambda g: dict(x=randn(g, 2, 2, 6, 12)),
            init=_SAME | dict(c_out=15),
        ),
        Case(
            "a width that is odd one level below must be refused",
            lambda g: dict(x=randn(g, 2, 2, 8, 10)),
            init=_SAME | dict(c_out=16),
        ),
        Case(
            "no padding, odd one level below: must be refused",
            lambda g: dict(x=randn(g, 2, 2, 46, 52)),
            init=_VALID | dict(c_out=17),
        ),
        Case(
            "a height that is odd three levels below must be refused",
            lambda g: dict(x=randn(g, 2, 1, 24, 16)),
            init=dict(join=crop_concat, c_in=1, c_out=2, base=1, levels=4),
        ),
        Case(
            "one row is left and cannot be halved: must be refused",
            lambda g: dict(x=randn(g, 2, 2, 2, 12)),
            init=_SAME | dict(c_out=21),
        ),
        Case(
            "no level at all",
            lambda g: dict(x=randn(g, 2, 3, 7, 5)),
            init=dict(join=crop_concat, c_in=3, c_out=5, base=6, levels=0),
        ),
    ],
    properties=[
        Property(
            "The constructor's arguments must stand in the stub's order: others call it without their names.",
            lambda cls: _same_without_names(
                lambda *args, **named: cls(*args, **named)(torch.ones(3, 1, 6, 4)), c_in=1, c_out=2, base=4, levels=1
            ),
        )
    ],
    mistakes=[
        Mistake(
            "The skips come back from the wrong end: the first one first. The way up begins at the bottom, so it needs "
            "the last one first: `skips.pop()`.",
            old=_JOIN,
            new="self.join(up(x), skips.pop(0))",
        ),
        Mistake(
            "Every level gets the same skip, the deepest one. Take a skip off the list when it is used: `skips.pop()`.",
            old=_JOIN,
            new="self.join(up(x), skips[-1])",
        ),
        Mistake(
            "The skip is kept after pooling: the detail that it should carry is gone by then. Keep it before.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(_KEEP, "").replace(_POOL, _POOL + _KEEP),
        ),
        Mistake(
            "The skip is what goes *into* a level. Keep what its two convolutions made of it.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace("            x = down(x)\n" + _KEEP, _KEEP + "            x = down(x)\n"),
        ),
        Mistake(
            "The skips are not used: the join gets zeros, and everything has to squeeze through the bottom.",
            old=_JOIN,
            new="self.join(up(x), torch.zeros_like(skips.pop()))",
        ),
        Mistake(
            "The join gets `up` twice, and the skip never crosses the U.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(_JOIN, "self.join(up(x), up(x))"),
        ),
        Mistake(
            "The skip is left out, or added to `up`. The convolutions of the way up expect twice as many channels: "
            "`self.join(up, skip)` puts both on top of each other.",
            old=_JOIN,
            new="up(x)",
        ),
        Mistake(
            "The arguments of the join are exchanged: first what comes up, then the skip.",
            old=_JOIN,
            new="self.join(skips.pop(), up(x))",
        ),
        Mistake(
            "The network calls `crop_concat` itself. It was given a `join`: call `self.join`, so that somebody may put "
            "another one in.",
            old=_JOIN,
            new="crop_concat(up(x), skips.pop())",
        ),
        Mistake(
            "You concatenate by hand, the skip first. That equals the join only where nothing has to be cropped and "
            "nobody gave another one: call `self.join`.",
            old=_JOIN,
            new="torch.cat([skips.pop(), up(x)], dim=1)",
        ),
        Mistake(
            "You concatenate by hand, and `up` first. Call `self.join(up, skip)`: it crops, and puts the skip first.",
            old=_JOIN,
            new="torch.cat([up(x), skips.pop()], dim=1)",
        ),
        Mistake(
            "The join comes before the up-convolution: enlarge first, then both have one size.",
            old=f"convs({_JOIN})",
            new="convs(up(self.join(x, skips.pop())))",
        ),
        Mistake(
            "`self.bottom` is left out: the deepest two convolutions, with the most channels.",
            old="        x = self.bottom(x)\n",
            new="",
        ),
        Mistake(
            "Nothing is pooled, so no level is smaller than the one above, and `up` is larger than its skip.",
            old=_POOL,
            new="",
        ),
        Mistake(
            "Pooling comes once more after the bottom. There are as many halvings as levels; the bottom has none.",
            old="        x = self.bottom(x)\n",
            new="        x = F.max_pool2d(self.bottom(x), 2)\n",
        ),
        Mistake(
            "The last level is not pooled: the bottom works at half the size of the deepest skip.",
            old=_POOL,
            new="            x = F.max_pool2d(x, 2) if down is not self.downs[-1] else x\n",
        ),
        Mistake(
            "Pooling comes before the convolutions of a level. Convolve at full size first, keep that, then pool.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(_POOL, "").replace("x = down(x)\n", "x = down(F.max_pool2d(x, 2))\n"),
        ),
        Mistake(
            "This takes the mean of each 2 x 2 square. The contract asks for the largest value (max-pooling).",
            old="F.max_pool2d(x, 2)",
            new="F.avg_pool2d(x, 2)",
        ),
        Mistake(
            "This keeps the top-left pixel of each 2 x 2 square. The contract asks for the largest of the four.",
            old="F.max_pool2d(x, 2)",
            new="x[:, :, ::2, ::2]",
        ),
        Mistake(
            "The pooling windows are 3 x 3 and overlap. Take the largest value of each 2 x 2 square.",
            old="F.max_pool2d(x, 2)",
            new="F.max_pool2d(x, 3, stride=2, padding=1)",
        ),
        Mistake(
            "The pooling windows move by one pixel, so the picture loses one row instead of half of them.",
            old="F.max_pool2d(x, 2)",
            new="F.max_pool2d(x, 2, stride=1)",
        ),
        Mistake(
            "The way up does not use `self.ups` but resizes. Each up-convolution halves the channels as well.",
            old=_JOIN,
            new="self.join(F.interpolate(x, scale_factor=2), skips.pop())",
        ),
        Mistake(
            "A ReLU follows the up-convolution. Only the convolutions of `downs`, `bottom` and `convs` have one, "
            "inside them.",
            old=_JOIN,
            new="self.join(F.relu(up(x)), skips.pop())",
        ),
        Mistake(
            "`self.convs` is left out on the way up: nothing mixes the skip with what comes from below.",
            old=f"convs({_JOIN})",
            new=_JOIN,
        ),
        Mistake(
            "The lists are walked in the wrong direction: `ups` and `convs` are already listed from the bottom up.",
            old="zip(self.ups, self.convs, strict=True)",
            new="zip(reversed(self.ups), reversed(self.convs), strict=True)",
        ),
        Mistake(
            "The number of levels is fixed in your loop. Walk over `self.downs`, however many there are.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(
                "for down in self.downs:\n", "for i in range(3):\n            down = self.downs[i]\n"
            ),
        ),
        Mistake(
            "The number of levels is fixed: no more than three are walked down. Walk over `self.downs`, however many "
            "there are.",
            old="for down in self.downs:",
            new="for down in self.downs[:3]:",
        ),
        Mistake(
            "The axis of the classes is squeezed away where there is one class. The output is (b, c_out, h, w), "
            "c_out = 1 included.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x).squeeze(1)",
        ),
        Mistake(
            "You return log-probabilities. The contract asks for the logits as they are.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x).log_softmax(1)",
        ),
        Mistake(
            "The logits are clamped. They must be free to be any number.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x).clamp(-100, 100)",
        ),
        Mistake(
            "You return tanh of the logits. Logits must be free to be any number.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x).tanh()",
        ),
        Mistake(
            "A dropout is at work. The paper has one at the bottom; the contract has none.",
            old="x = self.bottom(x)",
            new="x = F.dropout(self.bottom(x), 0.5, self.training)",
        ),
        Mistake(
            "A picture with a single row is let through. One row cannot be halved either: `h % 2` alone decides.",
            old=_ODD,
            new="if (h % 2 and h > 1) or (w % 2 and w > 1):",
        ),
        Mistake(
            "A ReLU follows the logits: no pixel can be less likely than one half. Logits may be negative.",
            old="return self.to_logits(x)",
            new="return F.relu(self.to_logits(x))",
        ),
        Mistake(
            "You return probabilities (sigmoid). The contract asks for the logits; the loss applies it itself.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x).sigmoid()",
        ),
        Mistake(
            "You return probabilities (softmax over the channels). The contract asks for the logits as they are.",
            old="return self.to_logits(x)",
            new="return self.to_logits(x).softmax(1)",
        ),
        Mistake(
            "`self.to_logits` is missing: these are `base` features per pixel, not c_out logits.",
            old="return self.to_logits(x)",
            new="return x",
        ),
        Mistake(
            "No gradient goes through the skips: they are detached. The way down learns through them most of all.",
            old=_JOIN,
            new="self.join(up(x), skips.pop().detach())",
        ),
        Mistake(
            "The way down runs without gradients, so it never learns.",
            old="            x = down(x)\n",
            new="            x = down(x).detach()\n",
        ),
        Mistake(
            "No gradient goes down the U: what is pooled is detached, so everything below the first level learns from "
            "itself alone.",
            old="F.max_pool2d(x, 2)",
            new="F.max_pool2d(x.detach(), 2)",
        ),
        Mistake(
            "Only the first levels are looked at. Ask at every level, before each pooling.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(_ODD, "if len(skips) < 3 and (h % 2 or w % 2):"),
        ),
        Mistake(
            "Only the picture itself is looked at. 6 rows can be halved once and not twice: ask at every level.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(_ODD, "if len(skips) == 1 and (h % 2 or w % 2):"),
        ),
        Mistake(
            "Only the last level is looked at. A size may be odd before: ask at every level, before each pooling.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(_ODD, "if len(skips) == len(self.downs) and (h % 2 or w % 2):"),
        ),
        Mistake(
            "Only an odd height is refused. Look at the width as well.",
            old=_ODD,
            new="if h % 2:",
        ),
        Mistake(
            "An odd height is not refused, unless the width is odd as well. Either alone is enough: look at the height "
            "too, and join the two by `or`.",
            old=_ODD,
            new="if w % 2:",
        ),
        Mistake(
            "Odd sizes are not refused, or not where height and width are both odd (their sum is even then: ask for "
            "each). Pooling drops the last row without a word, and the way up ends smaller than it began: raise a "
            "ValueError.",
            old=_ODD,
            new="if False:",
        ),
        Mistake(
            "You ask whether the picture's size is a multiple of 2**levels. Without padding convolutions eat pixels "
            "between the halvings: 572 is fine for four of them. Ask at each level.",
            old=_UNET_BODY,
            new="        if x.shape[-2] % 2 ** len(self.downs) or x.shape[-1] % 2 ** len(self.downs):\n"
            '            raise ValueError("size")\n' + _UNET_BODY.replace(_ODD, "if False:"),
        ),
        Mistake(
            "A size is refused where nothing will be halved: at the bottom, or in a network without levels. What is "
            "not halved may be odd. Ask right before each pooling and nowhere else.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(
                "        x = self.bottom(x)\n",
                "        if x.shape[-2] % 2 or x.shape[-1] % 2:\n"
                '            raise ValueError("size")\n        x = self.bottom(x)\n',
            ),
        ),
        Mistake(
            "Odd sizes are made even by padding. The contract asks for a ValueError: who calls must decide what to do "
            "about the border.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace(_ODD, "if False:").replace(
                "F.max_pool2d(x, 2)", "F.max_pool2d(x, 2, ceil_mode=True)"
            ),
        ),
        Mistake(
            "The skips are kept on the instance and never cleared: a second call meets those of the first. A local "
            "list will do.",
            old=_UNET_BODY,
            new=_UNET_BODY.replace("skips = []", "self.kept = skips = getattr(self, 'kept', [])").replace(
                "skips.pop()", "skips[len(self.ups) - 1 - list(self.ups).index(up)]"
            ),
        ),
    ],
    variants=[
        Variant(
            "recursion",
            _unet("""
            def level(x, i):
                if i == len(self.downs):
                    return self.bottom(x)
                kept = self.downs[i](x)
                if kept.shape[2] % 2 == 1 or kept.shape[3] % 2 == 1:
                    raise ValueError("odd")
                below = level(nn.functional.max_pool2d(kept, kernel_size=2, stride=2), i + 1)
                place = len(self.downs) - 1 - i
                return self.convs[place](self.join(self.ups[place](below), kept))
            return self.to_logits(level(x, 0))
            """),
        ),
        Variant(
            "indices, pooling by reshape",
            _unet("""
            kept = {}
            n = len(self.downs)
            for i in range(n):
                x = self.downs[i](x)
                kept[i] = x
                b, c, h, w = x.shape
                if h % 2 != 0 or w % 2 != 0:
                    raise ValueError("cannot halve")
                x = x.reshape(b, c, h // 2, 2, w // 2, 2).amax((3, 5))
            x = self.bottom(x)
            for i in range(n):
                x = self.ups[i](x)
                x = self.join(x, kept[n - 1 - i])
                x = self.convs[i](x)
            return self.to_logits(x)
            """),
        ),
        Variant(
            "reversed list, layers taken apart",
            _unet("""
            pool = nn.MaxPool2d(2)
            features, y = [], x
            for down in self.downs:
                for layer in down:
                    y = layer(y)
                if any(size % 2 for size in y.shape[2:]):
                    raise ValueError(f"odd size {tuple(y.shape[2:])}")
                features.append(y)
                y = pool(y)
            y = self.bottom(y)
            for up, convs, skip in zip(self.ups, self.convs, reversed(features)):
                y = F.conv_transpose2d(y, up.weight, up.bias, stride=2)
                y = convs(self.join(y, skip))
            return F.conv2d(y, self.to_logits.weight, self.to_logits.bias)
            """),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "Two loops with one line between them. The first goes down: convolve, keep, pool. The second goes up: "
            "enlarge, join, convolve. Between them stands `self.bottom`, and the logits come last.",
        ),
        Hint(
            "the channels do not fit on the way up",
            "Then a level gets somebody else's skip. Print the shapes: the first `up` makes the size and the channels "
            "of the *last* thing you kept. A list with `append` and `pop` is all you need.",
        ),
        Hint(
            "the join refuses, or the output is smaller than the input",
            "The skip has to be kept before pooling, not after. And where h or w is odd before a pooling, raise a "
            "ValueError: max-pooling would silently drop a row.",
        ),
        Hint(
            "show me nearly everything",
            "for down in self.downs: x = down(x); skips.append(x); (refuse odd sizes); x = F.max_pool2d(x, 2). Then "
            "x = self.bottom(x). for up, convs in zip(self.ups, self.convs): x = convs(self.join(up(x), skips.pop())). "
            "Return self.to_logits(x).",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------------------- ResBlock


def _block_inputs(g: torch.Generator, b: int, c: int, h: int, w: int, time_dim: int) -> dict:
    return dict(x=randn(g, b, c, h, w), t=randn(g, b, time_dim))


def _fresh(cls, c_in: int, c_out: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    block = cls(c_in=c_in, c_out=c_out, time_dim=7, groups=2)
    return block, torch.randn(2, c_in, 5, 3), torch.randn(2, 7)


def _with_a_faint_conv1(block, **inputs) -> Tensor:
    """Where a group is one channel, the time is constant in it, and norm2 sees only what conv1 makes."""
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.shape == (4, 8, 3, 3):
                parameter.mul_(1e-3)
    return block(**inputs)


def _starts_silent(cls) -> bool:
    block, x, t = _fresh(cls, 6, 6)
    return torch.allclose(block(x=x, t=t), x, atol=1e-6)


def _starts_as_its_shortcut(cls) -> bool:
    """Linear in x, not zero, and without any influence of the time."""
    block, x, t = _fresh(cls, 6, 4)
    with torch.no_grad():
        one, two, none = block(x=x, t=t), block(x=2 * x, t=-t), block(x=0 * x, t=t)
    return bool(one.abs().max() > 1e-3) and torch.allclose(two - none, 2 * (one - none), atol=1e-4)


def _nothing_else_is_zero(cls) -> bool:
    """The norms' two biases, conv2's weight and its bias start at zero, and nothing more."""
    zero = {}
    for c_out, numbers in {6: 10, 4: 12}.items():
        parameters = list(_fresh(cls, 6, c_out)[0].parameters())
        if len(parameters) != numbers:
            raise ValueError("weights are missing or too many, which has a sentence of its own")
        zero[c_out] = sum(not p.any() for p in parameters)
    return all(count == 4 for count in zero.values())


def _conv2_learns(cls) -> bool:
    """Whatever starts at zero and is as large as conv2 has a gradient in a new block."""
    block, x, t = _fresh(cls, 6, 4)
    (block(x=x, t=t) * torch.randn(2, 4, 5, 3)).sum().backward()
    silent = [p for p in block.parameters() if not p.any() and p.shape == (4, 4, 3, 3)]
    return all(p.grad is not None and bool(p.grad.any()) for p in silent)


_NORMS = """self.norm1 = nn.GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)"""
_CONV1 = "h = self.conv1(F.silu(self.norm1(x)))"
_TIME = "h = h + self.time(F.silu(t))[:, :, None, None]"
_CONV2 = "h = self.conv2(F.silu(self.norm2(h)))"
_SUM = "return self.shortcut(x) + h"
_BRANCH = f"{_CONV1}\n        {_TIME}\n        {_CONV2}"
_SHORT = "nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)"
_ZERO_W, _ZERO_B = "nn.init.zeros_(self.conv2.weight)", "nn.init.zeros_(self.conv2.bias)"
_ZEROS = f"{_ZERO_W}\n        {_ZERO_B}"


def _block(init: str, forward: str) -> str:
    return (
        "class ResBlock(nn.Module):\n"
        "    def __init__(self, c_in, c_out, time_dim, groups=8):\n        super().__init__()\n"
        + textwrap.indent(textwrap.dedent(init).strip("\n"), 8 * " ")
        + "\n\n    def forward(self, x, t):\n"
        + textwrap.indent(textwrap.dedent(forward).strip("\n"), 8 * " ")
        + "\n"
    )


RES_BLOCK = Exercise(
    target=ResBlock,
    minutes=20,
    cases=[
        Case(
            "other channels",
            lambda g: _block_inputs(g, 2, 6, 5, 7, 11),
            init=dict(c_in=6, c_out=4, time_dim=11, groups=2),
        ),
        Case(
            "equal channels",
            lambda g: _block_inputs(g, 3, 6, 7, 5, 11),
            init=dict(c_in=6, c_out=6, time_dim=11, groups=3),
        ),
        Case(
            "more channels out than in",
            lambda g: _block_inputs(g, 2, 3, 4, 7, 5),
            init=dict(c_in=3, c_out=9, time_dim=5, groups=3),
        ),
        Case(
            "eight groups by default",
            lambda g: _block_inputs(g, 2, 8, 3, 5, 7),
            init=dict(c_in=8, c_out=16, time_dim=7),
        ),
        Case(
            "the picture is as wide as there are channels",
            lambda g: _block_inputs(g, 3, 4, 4, 4, 4),
            init=dict(c_in=4, c_out=4, time_dim=4, groups=2),
        ),
        Case(
            "batch, channels and picture are all 4",
            lambda g: _block_inputs(g, 4, 4, 4, 4, 4),
            init=dict(c_in=4, c_out=4, time_dim=4, groups=2),
        ),
        Case(
            "faint values before norm2, at which its eps shows",
            lambda g: _block_inputs(g, 2, 8, 5, 7, 11),
            init=dict(c_in=8, c_out=4, time_dim=11, groups=4),
            call=_with_a_faint_conv1,
        ),
        Case(
            "faint values, at which the norms' eps shows",
            lambda g: {k: v * (0.01 if k == "x" else 1) for k, v in _block_inputs(g, 2, 6, 5, 7, 11).items()},
            init=dict(c_in=6, c_out=4, time_dim=11, groups=2),
        ),
    ],
    properties=[
        Property(
            "A new block with c_in = c_out must return x itself: conv2 starts at zero (weight, bias) and x is added.",
            _starts_silent,
        ),
        Property(
            "A new block with c_in ≠ c_out must return its shortcut of x, whatever the time: conv2 starts at zero, the "
            "shortcut does not.",
            _starts_as_its_shortcut,
        ),
        Property(
            "In a new block conv2 starts at zero and nothing else does, except the norms' biases. What does in yours: "
            "[name for name, p in block.named_parameters() if not p.any()].",
            _nothing_else_is_zero,
        ),
        Property(
            "The constructor's arguments must stand in the stub's order: `ResBlock(c_in, c_out, time_dim)`.",
            lambda cls: _same_without_names(
                lambda *args, **named: cls(*args, **named)(x=torch.ones(3, 8, 6, 4), t=torch.ones(3, 5)),
                **dict(c_in=8, c_out=16, time_dim=5, groups=4),
            ),
        ),
        Property(
            "The arguments of `forward` must stand in the stub's order: others call `block(x, t)`.",
            lambda cls: _same_without_names(
                cls(c_in=8, c_out=16, time_dim=5, groups=4), x=torch.ones(3, 8, 6, 4), t=torch.ones(3, 5)
            ),
        ),
        Property(
            "A new block must be able to learn: conv2 starts at zero, but a gradient has to reach its weight and bias.",
            _conv2_learns,
        ),
    ],
    mistakes=[
        Mistake(
            "The time is added along the width: one number per column. It needs two axes at the end, `[:, :, None, "
            "None]`: one number per sample and channel.",
            old="[:, :, None, None]",
            new="[:, None, None, :]",
        ),
        Mistake(
            "The time is added along the height: one number per row. It needs two axes at the end, `[:, :, None, "
            "None]`: one number per sample and channel.",
            old="[:, :, None, None]",
            new="[:, None, :, None]",
        ),
        Mistake(
            "The time is added without new axes: broadcasting counts from the end, so (b, c_out) meets height and "
            "width. Add two axes: `[:, :, None, None]`.",
            old="[:, :, None, None]",
            new="",
        ),
        Mistake(
            "All samples get the time of the first one. Every sample of a batch has its own noise level.",
            old="self.time(F.silu(t))[:, :, None, None]",
            new="self.time(F.silu(t))[:1, :, None, None]",
        ),
        Mistake(
            "All samples get the mean of their times. Every sample of a batch has its own noise level.",
            old="self.time(F.silu(t))[:, :, None, None]",
            new="self.time(F.silu(t)).mean(0)[None, :, None, None]",
        ),
        Mistake(
            "The time is never used, so the block cannot know how noisy its input is.",
            old=_TIME,
            new="pass",
        ),
        Mistake(
            "No SiLU on the time embedding before its linear layer.",
            old="self.time(F.silu(t))",
            new="self.time(t)",
        ),
        Mistake(
            "SiLU comes after the time's linear layer. It belongs before: time(silu(t)).",
            old="self.time(F.silu(t))",
            new="F.silu(self.time(t))",
        ),
        Mistake(
            "A SiLU follows the time's linear layer as well. There is one, before it: time(silu(t)).",
            old="self.time(F.silu(t))",
            new="F.silu(self.time(F.silu(t)))",
        ),
        Mistake(
            "Sigmoid instead of SiLU on the time embedding: silu(t) = t · sigmoid(t), the factor t is missing.",
            old="self.time(F.silu(t))",
            new="self.time(torch.sigmoid(t))",
        ),
        Mistake(
            "ReLU instead of SiLU on the time embedding.",
            old="self.time(F.silu(t))",
            new="self.time(F.relu(t))",
        ),
        Mistake(
            "GELU instead of SiLU on the time embedding.",
            old="self.time(F.silu(t))",
            new="self.time(F.gelu(t))",
        ),
        Mistake(
            "The time is added after norm2 and SiLU, right before conv2. Add it right after conv1.",
            old=f"{_TIME}\n        {_CONV2}",
            new="h = F.silu(self.norm2(h)) + self.time(F.silu(t))[:, :, None, None]\n        h = self.conv2(h)",
        ),
        Mistake(
            "The time goes in twice. Add it once, right after conv1.",
            old=_CONV2,
            new=_TIME + "\n        " + _CONV2,
        ),
        Mistake(
            "The time's axes are counted from the wrong end: `[None, :, :, None]` puts batch and channels where "
            "channels and rows are.",
            old="[:, :, None, None]",
            new="[None, :, :, None]",
        ),
        Mistake(
            "The features are multiplied by the time. Here it is added. (Scale and shift together exist too, in later "
            "diffusion models.)",
            old=_TIME,
            new="h = h * self.time(F.silu(t))[:, :, None, None]",
        ),
        Mistake(
            "The features are multiplied by 1 + time. Here the time is added.",
            old=_TIME,
            new="h = h * (1 + self.time(F.silu(t))[:, :, None, None])",
        ),
        Mistake(
            "The time is added after norm2. Add it before: right after conv1.",
            old=f"{_TIME}\n        {_CONV2}",
            new="h = self.norm2(h) + self.time(F.silu(t))[:, :, None, None]\n        h = self.conv2(F.silu(h))",
        ),
        Mistake(
            "The time is added after conv2, to the result. Then the block's convolutions never see it; add it right "
            "after conv1.",
            old=f"{_TIME}\n        {_CONV2}",
            new=f"{_CONV2}\n        {_TIME}",
        ),
        Mistake(
            "The time is added to the block's input. Add it between the two convolutions.",
            old=f"{_CONV1}\n        {_TIME}",
            new=f"x = x + self.time(F.silu(t))[:, :, None, None]\n        {_CONV1}",
        ),
        Mistake(
            "The time is subtracted.",
            old="h = h + self.time",
            new="h = h - self.time",
        ),
        Mistake(
            "The norms are batch norms: samples at other noise levels in the batch change each other's result. Use "
            "nn.GroupNorm, which looks at one sample.",
            old="self.norm1 = nn.GroupNorm(groups, c_in)\n",
            new="self.norm1 = nn.BatchNorm2d(c_in)\n",
        ),
        Mistake(
            "Both norms are batch norms: samples at other noise levels in the batch change each other's result. Use "
            "nn.GroupNorm, which looks at one sample.",
            code=_block(
                """
                self.norm1 = nn.BatchNorm2d(c_in)
                self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
                self.time = nn.Linear(time_dim, c_out)
                self.norm2 = nn.BatchNorm2d(c_out)
                self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
                self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
                nn.init.zeros_(self.conv2.weight)
                nn.init.zeros_(self.conv2.bias)
                """,
                """
                h = self.conv1(F.silu(self.norm1(x)))
                h = h + self.time(F.silu(t))[:, :, None, None]
                h = self.conv2(F.silu(self.norm2(h)))
                return self.shortcut(x) + h
                """,
            ),
        ),
        Mistake(
            "You gave nn.GroupNorm the number of channels in a group. It takes the number of groups: "
            "nn.GroupNorm(groups, c_in).",
            old=_NORMS,
            new=_NORMS.replace("groups, c_in", "c_in // groups, c_in").replace(
                "groups, c_out", "c_out // groups, c_out"
            ),
        ),
        Mistake(
            "The default number of groups is 8; yours is 1.",
            old="groups: int = 8",
            new="groups: int = 1",
        ),
        Mistake(
            "The default number of groups is 8; yours is another.",
            old="groups: int = 8",
            new="groups: int = 4",
        ),
        Mistake(
            "The default number of groups is 8; yours is 32, as in larger networks.",
            old="groups: int = 8",
            new="groups: int = 32",
        ),
        Mistake(
            "The norms have another eps than PyTorch's default, 1e-5. It shows where a group hardly varies.",
            old=_NORMS,
            new=_NORMS.replace("groups, c_in", "groups, c_in, eps=1e-6").replace(
                "groups, c_out", "groups, c_out, eps=1e-6"
            ),
        ),
        Mistake(
            "norm2 has another eps than PyTorch's default, 1e-5. It shows where a group hardly varies.",
            old="nn.GroupNorm(groups, c_out)",
            new="nn.GroupNorm(groups, c_out, eps=1e-6)",
        ),
        Mistake(
            "norm1 has another eps than PyTorch's default, 1e-5. It shows where a group hardly varies.",
            old="nn.GroupNorm(groups, c_in)",
            new="nn.GroupNorm(groups, c_in, eps=1e-6)",
        ),
        Mistake(
            "norm2 has a single group over all channels. It has `groups` groups.",
            old="nn.GroupNorm(groups, c_out)",
            new="nn.GroupNorm(1, c_out)",
        ),
        Mistake(
            "norm1 has a single group over all channels. It has `groups` groups.",
            old="nn.GroupNorm(groups, c_in)",
            new="nn.GroupNorm(1, c_in)",
        ),
        Mistake(
            "norm2 always has 8 groups. Their number is the argument `groups`.",
            old="nn.GroupNorm(groups, c_out)",
            new="nn.GroupNorm(8, c_out)",
        ),
        Mistake(
            "norm1 has no gain and shift (`affine=False`). Group norms here learn both.",
            old="nn.GroupNorm(groups, c_in)",
            new="nn.GroupNorm(groups, c_in, affine=False)",
        ),
        Mistake(
            "The groups have one channel each, or as many channels as there should be groups. nn.GroupNorm takes the "
            "*number* of groups first, then the channels.",
            old="self.norm1 = nn.GroupNorm(groups, c_in)",
            new="self.norm1 = nn.GroupNorm(c_in, c_in)",
        ),
        Mistake(
            "Both norms have one group per channel (instance norm). They have `groups` groups.",
            old=_NORMS,
            new=_NORMS.replace("groups, c_in", "c_in, c_in").replace("groups, c_out", "c_out, c_out"),
        ),
        Mistake(
            "Both norms have a single group over all channels. They have `groups` groups.",
            old=_NORMS,
            new=_NORMS.replace("groups, c_in", "1, c_in").replace("groups, c_out", "1, c_out"),
        ),
        Mistake(
            "norm2 has one group per channel. Then it removes exactly what the time added to each channel: a constant. "
            "With `groups` groups the differences within a group survive.",
            old="self.norm2 = nn.GroupNorm(groups, c_out)",
            new="self.norm2 = nn.GroupNorm(c_out, c_out)",
        ),
        Mistake(
            "The norms always have 8 groups. Their number is the argument `groups`.",
            code=_block(
                """
                self.norm1 = nn.GroupNorm(8, c_in)
                self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
                self.time = nn.Linear(time_dim, c_out)
                self.norm2 = nn.GroupNorm(8, c_out)
                self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
                self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
                nn.init.zeros_(self.conv2.weight)
                nn.init.zeros_(self.conv2.bias)
                """,
                """
                h = self.conv1(F.silu(self.norm1(x)))
                h = h + self.time(F.silu(t))[:, :, None, None]
                h = self.conv2(F.silu(self.norm2(h)))
                return self.shortcut(x) + h
                """,
            ),
        ),
        Mistake(
            "norm1 and norm2 are used the other way round, or one of them twice: norm1 belongs to the input, norm2 to "
            "what conv1 and the time made of it.",
            old="self.norm2(h)",
            new="self.norm1(h)",
        ),
        Mistake(
            "norm2 is left out: the second SiLU must read normalised values, time included.",
            old="F.silu(self.norm2(h))",
            new="F.silu(h)",
        ),
        Mistake(
            "norm1 is left out: the first SiLU must read normalised values, whatever the size of x.",
            old="F.silu(self.norm1(x))",
            new="F.silu(x)",
        ),
        Mistake(
            "SiLU comes before the norms. The order is norm, SiLU, convolution.",
            old=_BRANCH,
            new=_BRANCH.replace("F.silu(self.norm1(x))", "self.norm1(F.silu(x))").replace(
                "F.silu(self.norm2(h))", "self.norm2(F.silu(h))"
            ),
        ),
        Mistake(
            "norm2 serves both places, and the first one comes after conv1. norm1 normalises x before conv1 reads it.",
            old=_CONV1,
            new="h = F.silu(self.norm2(self.conv1(x)))",
        ),
        Mistake(
            "The norms come after the convolutions. Here each convolution reads a normalised input: norm, SiLU, "
            "convolution.",
            old=_BRANCH,
            new=f"h = F.silu(self.norm2(self.conv1(x)))\n        {_TIME}\n"
            "        h = F.silu(self.norm2(self.conv2(h)))",
        ),
        Mistake(
            "ReLU instead of SiLU: silu(x) = x · sigmoid(x), which is smooth and slightly negative below zero.",
            old=_BRANCH,
            new=_BRANCH.replace("silu", "relu"),
        ),
        Mistake(
            "GELU instead of SiLU: silu(x) = x · sigmoid(x).",
            old=_BRANCH,
            new=_BRANCH.replace("silu", "gelu"),
        ),
        Mistake(
            "ReLU instead of SiLU between the convolutions and their norms; the time has its SiLU.",
            old=_BRANCH,
            new=_BRANCH.replace("silu(self", "relu(self"),
        ),
        Mistake(
            "Sigmoid instead of SiLU: silu(x) = x · sigmoid(x), the factor x is missing.",
            old=_BRANCH,
            new=_BRANCH.replace("F.silu", "torch.sigmoid"),
        ),
        Mistake(
            "SiLU comes before norm1. The order is norm, SiLU, convolution.",
            old="F.silu(self.norm1(x))",
            new="self.norm1(F.silu(x))",
        ),
        Mistake(
            "SiLU comes before norm2. The order is norm, SiLU, convolution.",
            old="F.silu(self.norm2(h))",
            new="self.norm2(F.silu(h))",
        ),
        Mistake(
            "Sigmoid instead of SiLU between the convolutions and their norms: silu(x) = x · sigmoid(x).",
            old=_BRANCH,
            new=_BRANCH.replace("F.silu(self", "torch.sigmoid(self"),
        ),
        Mistake(
            "norm1 serves both places where the channels are equal. Each convolution has its own norm.",
            old="self.norm2(h)",
            new="(self.norm1 if self.norm1.num_channels == h.shape[1] else self.norm2)(h)",
        ),
        Mistake(
            "The borders of conv1 are mirrored. A plain 3 x 3 convolution with padding=1 pads with zeros.",
            old="nn.Conv2d(c_in, c_out, 3, padding=1)",
            new="nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode='reflect')",
        ),
        Mistake(
            "The SiLU between norm1 and conv1 is missing.",
            old="F.silu(self.norm1(x))",
            new="self.norm1(x)",
        ),
        Mistake(
            "The SiLU between norm2 and conv2 is missing.",
            old="F.silu(self.norm2(h))",
            new="self.norm2(h)",
        ),
        Mistake(
            "A SiLU follows the sum. The sum leaves the block as it is, or a new block would not be the identity.",
            old=_SUM,
            new="return F.silu(self.shortcut(x) + h)",
        ),
        Mistake(
            "A SiLU follows conv2. The branch ends with the convolution.",
            old=_CONV2,
            new="h = F.silu(self.conv2(F.silu(self.norm2(h))))",
        ),
        Mistake(
            "The input is not added: without its shortcut a new block returns zero, and forty of them cannot be "
            "trained.",
            old=_SUM,
            new="return h",
        ),
        Mistake(
            "x is added without its shortcut, which fails where c_in and c_out differ: `self.shortcut(x) + h`.",
            old=_SUM,
            new="return x + h",
        ),
        Mistake(
            "The shortcut carries the normalised input. It carries x itself.",
            old=_BRANCH,
            new="x = self.norm1(x)\n        " + _BRANCH.replace("self.norm1(x)", "x"),
        ),
        Mistake(
            "The shortcut carries silu(norm1(x)). It carries x itself.",
            old=_BRANCH,
            new="x = F.silu(self.norm1(x))\n        " + _BRANCH.replace("F.silu(self.norm1(x))", "x"),
        ),
        Mistake(
            "The sum is divided by √2. Some diffusion models do so; the contract asks for the plain sum.",
            old=_SUM,
            new="return (self.shortcut(x) + h) / math.sqrt(2)",
        ),
        Mistake(
            "The branch is subtracted from the shortcut. It is added.",
            old=_SUM,
            new="return self.shortcut(x) - h",
        ),
        Mistake(
            "Where c_in = c_out the block's input is not added. The shortcut is x itself there, not nothing.",
            old=_SUM,
            new="return self.shortcut(x) + h if x.shape[1] != h.shape[1] else h",
        ),
        Mistake(
            "A shortcut convolution is made also where c_in = c_out, and never used there. It should be nn.Identity().",
            code=_block(
                """
                self.norm1 = nn.GroupNorm(groups, c_in)
                self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
                self.time = nn.Linear(time_dim, c_out)
                self.norm2 = nn.GroupNorm(groups, c_out)
                self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
                self.shortcut = nn.Conv2d(c_in, c_out, 1)
                nn.init.zeros_(self.conv2.weight)
                nn.init.zeros_(self.conv2.bias)
                """,
                """
                h = self.conv1(F.silu(self.norm1(x)))
                h = h + self.time(F.silu(t))[:, :, None, None]
                h = self.conv2(F.silu(self.norm2(h)))
                return (self.shortcut(x) if x.shape[1] != h.shape[1] else x) + h
                """,
            ),
        ),
        Mistake(
            "There is a shortcut convolution also where c_in = c_out. It should be nn.Identity() there.",
            old=_SHORT,
            new="nn.Conv2d(c_in, c_out, 1)",
        ),
        Mistake(
            "There is no shortcut convolution where c_in and c_out differ, so the two cannot be added.",
            old=_SHORT,
            new="nn.Identity()",
        ),
        Mistake(
            "The condition of the shortcut is upside down: a 1 x 1 convolution where the channels differ, the identity "
            "where they are equal.",
            old="if c_in == c_out else",
            new="if c_in != c_out else",
        ),
        Mistake(
            "The shortcut convolution is 3 x 3. A 1 x 1 convolution only changes the number of channels.",
            old=_SHORT,
            new="nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 3, padding=1)",
        ),
        Mistake(
            "The shortcut convolution has no bias. All convolutions here have one.",
            old=_SHORT,
            new="nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, bias=False)",
        ),
        Mistake(
            "conv1 has no bias. All convolutions here have one.",
            old="nn.Conv2d(c_in, c_out, 3, padding=1)",
            new="nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)",
        ),
        Mistake(
            "The time's linear layer has no bias. It has one here.",
            old="nn.Linear(time_dim, c_out)",
            new="nn.Linear(time_dim, c_out, bias=False)",
        ),
        Mistake(
            "The convolutions have no bias. All convolutions here have one.",
            code=_block(
                """
                self.norm1 = nn.GroupNorm(groups, c_in)
                self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
                self.time = nn.Linear(time_dim, c_out)
                self.norm2 = nn.GroupNorm(groups, c_out)
                self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
                self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
                nn.init.zeros_(self.conv2.weight)
                """,
                """
                h = self.conv1(F.silu(self.norm1(x)))
                h = h + self.time(F.silu(t))[:, :, None, None]
                h = self.conv2(F.silu(self.norm2(h)))
                return self.shortcut(x) + h
                """,
            ),
        ),
        Mistake(
            "The convolutions have no padding, so the branch is smaller than the shortcut: padding=1 keeps the size.",
            code=_block(
                """
                self.norm1 = nn.GroupNorm(groups, c_in)
                self.conv1 = nn.Conv2d(c_in, c_out, 3)
                self.time = nn.Linear(time_dim, c_out)
                self.norm2 = nn.GroupNorm(groups, c_out)
                self.conv2 = nn.Conv2d(c_out, c_out, 3)
                self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
                nn.init.zeros_(self.conv2.weight)
                nn.init.zeros_(self.conv2.bias)
                """,
                """
                h = self.conv1(F.silu(self.norm1(x)))
                h = h + self.time(F.silu(t))[:, :, None, None]
                h = self.conv2(F.silu(self.norm2(h)))
                return self.shortcut(x) + h
                """,
            ),
        ),
        Mistake(
            "The time layer makes c_in numbers. It speaks to what conv1 made: c_out channels.",
            old="nn.Linear(time_dim, c_out)",
            new="nn.Linear(time_dim, c_in)",
        ),
        Mistake(
            "The time layer makes 2 · c_out numbers, a scale and a shift. Here it is a shift alone.",
            old="self.time = nn.Linear(time_dim, c_out)",
            new="self.time = nn.Linear(time_dim, 2 * c_out)",
        ),
        Mistake(
            "conv1 does not change the channels and conv2 does. It is the other way round: conv1 goes from c_in to "
            "c_out.",
            code=_block(
                """
                self.norm1 = nn.GroupNorm(groups, c_in)
                self.conv1 = nn.Conv2d(c_in, c_in, 3, padding=1)
                self.time = nn.Linear(time_dim, c_in)
                self.norm2 = nn.GroupNorm(groups, c_in)
                self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1)
                self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
                nn.init.zeros_(self.conv2.weight)
                nn.init.zeros_(self.conv2.bias)
                """,
                """
                h = self.conv1(F.silu(self.norm1(x)))
                h = h + self.time(F.silu(t))[:, :, None, None]
                h = self.conv2(F.silu(self.norm2(h)))
                return self.shortcut(x) + h
                """,
            ),
        ),
        Mistake(
            "conv2 starts with PyTorch's random weights, so a new block disturbs what passes through it. Set its "
            "weight and bias to zero.",
            old=f"        {_ZERO_W}\n        {_ZERO_B}\n",
            new="",
        ),
        Mistake(
            "conv2's bias is not zero at the start. Its weight is, but the bias is added at every pixel.",
            old=_ZERO_B,
            new="pass",
        ),
        Mistake(
            "conv2's weight is not zero at the start. Only its bias is.",
            old=_ZERO_W,
            new="pass",
        ),
        Mistake(
            "conv1 starts at zero instead of conv2: the branch is not silent, since norm2 and conv2 turn the time into "
            "something.",
            old=_ZEROS,
            new="nn.init.zeros_(self.conv1.weight)\n        nn.init.zeros_(self.conv1.bias)",
        ),
        Mistake(
            "Both convolutions start at zero. Then conv1 cannot learn before conv2 has moved, and conv2 sees the same "
            "number at every pixel: zero conv2 alone.",
            old=_ZEROS,
            new=f"{_ZEROS}\n        " + _ZEROS.replace("conv2", "conv1"),
        ),
        Mistake(
            "The gain of norm2 starts at zero instead of conv2. Its bias and conv2's still speak, and conv2 gets no "
            "gradient.",
            old=_ZEROS,
            new="nn.init.zeros_(self.norm2.weight)",
        ),
        Mistake(
            "The shortcut convolution starts at zero as well, so a new block with other channels returns nothing.",
            old=_ZEROS,
            new=f"{_ZEROS}\n        if c_in != c_out:\n            nn.init.zeros_(self.shortcut.weight)\n"
            "            nn.init.zeros_(self.shortcut.bias)",
        ),
        Mistake(
            "The biases of conv1 and of the time's layer start at zero too. Only conv2 does (and the norms' biases).",
            old=_ZEROS,
            new=f"{_ZEROS}\n        nn.init.zeros_(self.conv1.bias)\n        nn.init.zeros_(self.time.bias)",
        ),
        Mistake(
            "The shortcut's bias starts at zero too. Only conv2 does (and the norms' biases).",
            old=_ZEROS,
            new=f"{_ZEROS}\n        if c_in != c_out:\n            nn.init.zeros_(self.shortcut.bias)",
        ),
        Mistake(
            "conv2 is frozen (`requires_grad_(False)`), or its weights are detached. Zero is only where it starts; it "
            "must learn.",
            old=_ZEROS,
            new=f"{_ZEROS}\n        self.conv2.requires_grad_(False)",
        ),
        Mistake(
            "While conv2 is zero the branch is skipped, so no gradient ever reaches it, and it stays at zero.",
            old=_CONV1,
            new=f"if not self.conv2.weight.any():\n            return self.shortcut(x)\n        {_CONV1}",
        ),
        Mistake(
            "A dropout is at work before conv2. The papers have one; the contract leaves it out.",
            old="self.conv2(F.silu(self.norm2(h)))",
            new="self.conv2(F.dropout(F.silu(self.norm2(h)), 0.1, self.training))",
        ),
        Mistake(
            "conv2 starts at one. Zero is the number that leaves x alone.",
            old=_ZERO_W,
            new="nn.init.ones_(self.conv2.weight)",
        ),
        Mistake(
            "No gradient reaches the time embedding: it is detached on the way.",
            old="self.time(F.silu(t))",
            new="self.time(F.silu(t)).detach()",
        ),
        Mistake(
            "No gradient goes through the shortcut to x: x is detached before it.",
            old=_SUM,
            new="return self.shortcut(x.detach()) + h",
        ),
        Mistake(
            "No gradient goes through the branch to x: x is detached before norm1.",
            old="self.norm1(x)",
            new="self.norm1(x.detach())",
        ),
        Mistake(
            "No gradient goes through the branch: its result is detached, so none of its weights learns.",
            old=_SUM,
            new="return self.shortcut(x) + h.detach()",
        ),
        Mistake(
            "No gradient goes through the shortcut: x is detached there.",
            old=_SUM,
            new="return self.shortcut(x).detach() + h",
        ),
    ],
    variants=[
        Variant(
            "modules for the activations, time expanded",
            _block(
                """
                self.norm1 = nn.GroupNorm(num_groups=groups, num_channels=c_in)
                self.conv1 = nn.Conv2d(c_in, c_out, kernel_size=3, padding="same")
                self.time = nn.Linear(time_dim, c_out)
                self.norm2 = nn.GroupNorm(num_groups=groups, num_channels=c_out)
                self.conv2 = nn.Conv2d(c_out, c_out, kernel_size=3, padding="same")
                with torch.no_grad():
                    self.conv2.weight.fill_(0.0)
                    self.conv2.bias.fill_(0.0)
                if c_in != c_out:
                    self.shortcut = nn.Conv2d(c_in, c_out, kernel_size=1)
                else:
                    self.shortcut = nn.Identity()
                self.act = nn.SiLU()
                """,
                """
                residual = self.shortcut(x)
                x = self.conv1(self.act(self.norm1(x)))
                shift = self.time(self.act(t))
                x = x + shift.unsqueeze(-1).unsqueeze(-1).expand_as(x)
                x = self.conv2(self.act(self.norm2(x)))
                return residual + x
                """,
            ),
        ),
        Variant(
            "sequential branches",
            _block(
                """
                self.before = nn.Sequential(nn.GroupNorm(groups, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, 1, 1))
                self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, c_out))
                self.after = nn.Sequential(nn.GroupNorm(groups, c_out), nn.SiLU(), nn.Conv2d(c_out, c_out, 3, 1, 1))
                self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Sequential()
                for p in self.after[-1].parameters():
                    p.data.zero_()
                """,
                """
                b, c = len(x), self.time[1].out_features
                return self.shortcut(x) + self.after(self.before(x) + self.time(t).view(b, c, 1, 1))
                """,
            ),
        ),
        Variant(
            "no module for the identity, SiLU written out",
            _block(
                """
                self.norm1 = nn.GroupNorm(groups, c_in)
                self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
                self.time = nn.Linear(time_dim, c_out)
                self.norm2 = nn.GroupNorm(groups, c_out)
                self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
                nn.init.constant_(self.conv2.weight, 0)
                nn.init.constant_(self.conv2.bias, 0)
                self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None
                """,
                """
                def silu(y):
                    return y * torch.sigmoid(y)
                h = F.conv2d(silu(self.norm1(x)), self.conv1.weight, self.conv1.bias, padding=1)
                h = h + einops.rearrange(self.time(silu(t)), "b c -> b c 1 1")
                h = F.conv2d(silu(self.norm2(h)), self.conv2.weight, self.conv2.bias, padding=1)
                if self.shortcut is not None:
                    x = self.shortcut(x)
                return h + x
                """,
            ),
        ),
    ],
    hints=[
        Hint(
            "I do not know where to begin",
            "The docstring of the class lists six parts in order, each one line in the constructor. Then `forward` is "
            "one line for the first half of the branch, one for the time, one for the second half, and the sum.",
        ),
        Hint(
            "a shape does not fit, or a case with equal sizes fails",
            "`self.time(F.silu(t))` is (b, c_out) and the features are (b, c_out, h, w). Broadcasting lines axes up "
            "from the *end*; add two axes there: `[:, :, None, None]`.",
        ),
        Hint(
            "values are right, but a property fails",
            "It is about a new block. `nn.init.zeros_(self.conv2.weight)`, and the same for its bias; nothing else "
            "starts at zero. And the shortcut is `nn.Identity()` only where c_in == c_out.",
        ),
        Hint(
            "show me nearly everything",
            "h = self.conv1(F.silu(self.norm1(x))); h = h + self.time(F.silu(t))[:, :, None, None]; h = "
            "self.conv2(F.silu(self.norm2(h))); return self.shortcut(x) + h.",
        ),
    ],
)


EXERCISES = [TRANSPOSED_CONVOLUTION, CROP_CONCAT, UNET, RES_BLOCK]
