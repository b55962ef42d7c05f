"""Convolutions without a standard operator, as ONNX functions of standard operators."""

from __future__ import annotations

OPSET = 17  # of the standard operators
DOMAIN = "mulfree"  # of the functions

# The terms of all images and filters would fill memory, so one image is computed in steps of a few
# filters, C * kh*kw * OH*OW numbers per filter. x is (N, C, H, W) of any dtype; w is (steps,
# groups, filters per step and group, C/groups * kh*kw, 1), of the dtype of the sums; taps are
# one-hot kernels, (kh*kw, 1, kh, kw), which extract a channel's windows; planes are K, OH and OW.
_ADDER = """
<domain: "mulfree", opset_import: ["" : 17]>
NAME <strides, pads, dilations, planes> (x, w, taps) => (y) {
  one = Constant <value_ints = [1]> ()
  rest = Constant <value_ints = [-1]> ()
  answers = Constant <value_ints: ints = @planes> ()
  groups = Shape <start = 1, end = 2> (w)
  terms = Shape <start = 3, end = 4> (w)
  windows = Concat <axis = 0> (groups, one, terms, rest)
  row = Concat <axis = 0> (one, terms)
  minus = ConstantOfShape <value = TYPE[1] {-1}> (row)
  numbers = Cast <to = 1> (x)
  y = Scan <num_scan_inputs = 1, body = image (float[C, H, W] pixels) => (TYPE[K, OH, OW] sums) {
    channels = Unsqueeze (pixels, one)
    cut = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations>
      (channels, taps)
    stacked = Reshape (cut, windows)
    seen = CastLike (stacked, w)
    by_step = Scan <num_scan_inputs = 1, body = step (TYPE[G, F, T, 1] weight)
      => (TYPE[G, F, 1, P] sum) {
      difference = Sub (seen, weight)
      distance = Abs (difference)
      sum = MatMul (minus, distance)
    }> (w)
    by_group = Transpose <perm = [1, 0, 2, 3, 4]> (by_step)
    sums = Reshape (by_group, answers)
  }> (numbers)
}
"""

# x is (N, C, H, W); u, (t*t, K, C); bt and at, (t*t, 1, t, t) and (m*m, t*t), hold the transforms
# of a whole tile; pads are those of the image and what the last tiles need; `rows` are -1, C, t*t
# and the tiles, `planes` 0, m*m * K, tiles down and across; `crop` is OH and OW.
_WINOGRAD = """
<domain: "mulfree", opset_import: ["" : 17]>
NAME <m, pads, strides, rows, planes, crop> (x, u, bt, at) => (y) {
  one_channel = Constant <value_ints = [-1, 1]> ()
  size = Shape <start = 2> (x)
  alone = Concat <axis = 0> (one_channel, size)
  channels = Reshape (x, alone)
  tiles = Conv <strides: ints = @strides, pads: ints = @pads> (channels, bt)
  seen = RELU (tiles)
  rows = Constant <value_ints: ints = @rows> ()
  by_channel = Reshape (seen, rows)
  by_position = Transpose <perm = [0, 2, 1, 3]> (by_channel)
  products = MatMul (u, by_position)
  flat = Constant <value_ints = [0, 0, -1]> ()
  positions = Reshape (products, flat)
  pixels = MatMul (at, positions)
  planes = Constant <value_ints: ints = @planes> ()
  deep = Reshape (pixels, planes)
  whole = DepthToSpace <blocksize: int = @m, mode = "DCR"> (deep)
  from = Constant <value_ints = [0, 0]> ()
  to = Constant <value_ints: ints = @crop> ()
  axes = Constant <value_ints = [2, 3]> ()
  y = Slice (whole, from, to, axes)
}
"""


def _filled(text: str, **blanks: str) -> str:
    for blank, filling in blanks.items():
        text = text.replace(blank, filling)
    return text.strip()


FUNCTIONS = {
    "AdderConv": _filled(_ADDER, NAME="AdderConv", TYPE="float"),
    "IntegerAdderConv": _filled(_ADDER, NAME="IntegerAdderConv", TYPE="int32"),
    "WinogradConv": _filled(_WINOGRAD, NAME="WinogradConv", RELU="Identity"),
    "WinogradReluConv": _filled(_WINOGRAD, NAME="WinogradReluConv", RELU="Relu"),
}
