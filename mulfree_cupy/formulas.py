"""Reference implementation of each operation: float64 NumPy, a loop over taps, from the formulas.

Kernels are tested against these, so they are as simple as possible, not fast.
"""

import numpy as np


def _each(value, axes):
    return value if isinstance(value, tuple) else (value,) * axes


def _sides(padding, kernel, dilation):
    """(before, after) of each axis, however `padding` is spelled."""
    if padding == "same":
        added = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(size // 2, size - size // 2) for size in added]
    each = _each(0 if padding == "valid" else padding, len(kernel))
    return [_each(sides, 2) for sides in each]


def _wide(a):
    a = np.asarray(a)
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)


def _windows(x, kernel, stride, padding, dilation):
    """Yield (tap, view) where view[n, c, *p] is the input of the tap at output p."""
    axes = x.ndim - 2
    kernel, stride, dilation = (_each(value, axes) for value in (kernel, stride, dilation))
    padded = np.pad(_wide(x), ((0, 0), (0, 0), *_sides(padding, kernel, dilation)))
    steps = [
        step * np.arange((size - d * (k - 1) - 1) // step + 1)
        for size, k, step, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    for tap in np.ndindex(*kernel):
        seen = [d * t + step for d, t, step in zip(dilation, tap, steps, strict=True)]
        yield tap, padded[(slice(None), slice(None), *np.ix_(*seen))]


def _at(w, tap):
    """The weights of a tap, broadcast against its inputs: (1, K, C, 1, ...)."""
    chosen = w[(slice(None), slice(None), *tap)]
    return chosen.reshape(1, *chosen.shape, *(1,) * len(tap))


def im2col(x, kernel_size, *, stride=1, padding=0, dilation=1):
    views = np.stack([v for _, v in _windows(x, kernel_size, stride, padding, dilation)], axis=2)
    n, c, taps, oh, ow = views.shape
    return views.reshape(n, c * taps, oh * ow)


def col2im(cols, x_shape, kernel_size, *, stride=1, padding=0, dilation=1):
    """The transpose of im2col as a 0/1 matrix, applied entry by entry."""
    index = np.arange(1, np.prod(x_shape) + 1).reshape(x_shape)
    source = im2col(index, kernel_size, stride=stride, padding=padding, dilation=dilation).astype(
        int
    )
    image = np.zeros(np.prod(x_shape) + 1)
    np.add.at(image, source.ravel(), np.asarray(cols, np.float64).ravel())
    return image[1:].reshape(x_shape)


def _pooled(x, kernel, stride, padding):
    """(Input of each position of the window, and whether it is inside the image), stacked."""
    x, stride = np.asarray(x, np.float64), kernel if stride is None else stride
    given = kernel, stride, padding, 1
    views = np.stack([v for _, v in _windows(x, *given)])
    return views, np.stack([v for _, v in _windows(np.ones(x.shape), *given)]) == 1


def max_pool(x, kernel, *, stride=None, padding=0):
    views, inside = _pooled(x, _each(kernel, 2), stride, padding)
    return np.where(inside, views, -np.inf).max(axis=0)


def avg_pool(x, kernel, *, stride=None, padding=0):
    return _pooled(x, _each(kernel, 2), stride, padding)[0].mean(axis=0)


def global_average_pool(x):
    return np.asarray(x, np.float64).mean(axis=(2, 3))


def _forward(term, x, w, bias, stride, padding, dilation, groups):
    x, w = _wide(x), _wide(w)
    parts = []
    for xg, wg in zip(np.split(x, groups, axis=1), np.split(w, groups), strict=True):
        parts.append(
            sum(
                term(view[:, None], _at(wg, tap)).sum(axis=2)
                for tap, view in _windows(xg, w.shape[2:], stride, padding, dilation)
            )
        )
    y = np.concatenate(parts, axis=1)
    return y if bias is None else y + _along(y, bias)


def conv(x, w, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    return _forward(np.multiply, x, w, bias, stride, padding, dilation, groups)


def adder_conv(x, w, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    return _forward(lambda a, b: -np.abs(a - b), x, w, bias, stride, padding, dilation, groups)


def adder_matmul(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return -np.abs(a[:, :, None] - b[None]).sum(axis=1)


def _backward(slope_x, slope_w, grad, x, w, stride, padding, dilation, groups):
    """grad_x and grad_w from the slopes d y / d x and d y / d w of one term at (x, w)."""
    grad, x, w = map(_wide, (grad, x, w))
    parts_x, parts_w = [], []
    for g, xg, wg in zip(
        np.split(grad, groups, axis=1),
        np.split(x, groups, axis=1),
        np.split(w, groups),
        strict=True,
    ):
        window = w.shape[2:], stride, padding, dilation
        grad_x, grad_w = np.zeros(xg.size + 1, x.dtype), np.zeros_like(wg)  # [0] is the padding
        places = np.arange(1, xg.size + 1).reshape(xg.shape)
        for (tap, view), (_, place) in zip(
            _windows(xg, *window), _windows(places, *window), strict=True
        ):
            flow, weights = g[:, :, None], _at(wg, tap)
            np.add.at(grad_x, place.astype(int), (slope_x(view[:, None], weights) * flow).sum(1))
            terms = slope_w(view[:, None], weights) * flow
            grad_w[(slice(None), slice(None), *tap)] = terms.sum((0, *range(3, terms.ndim)))
        parts_x.append(grad_x[1:].reshape(xg.shape))
        parts_w.append(grad_w)
    return np.concatenate(parts_x, axis=1), np.concatenate(parts_w)


def pairwise_l1(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a[:, None] - b).sum(axis=2)


def nearest_l1(queries, points, k):
    distances = pairwise_l1(queries, points)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, axis=1), indices


def match_template_l1(image, template):
    windows = np.lib.stride_tricks.sliding_window_view(
        np.asarray(image, np.float64), np.shape(template)
    )
    return np.abs(windows - template).sum(axis=tuple(range(-np.ndim(template), 0)))


def conv_backward(grad, x, w, *, stride=1, padding=0, dilation=1, groups=1):
    """Of complex numbers: d (re(y) re(grad) + im(y) im(grad)) / d re + i * that by im."""
    return _backward(
        lambda a, b: np.conj(b) + np.zeros_like(a),
        lambda a, b: np.conj(a) + np.zeros_like(b),
        *(grad, x, w, stride, padding, dilation, groups),
    )


def adder_conv_backward(grad, x, w, *, stride=1, padding=0, dilation=1, groups=1):
    return _backward(
        lambda a, b: np.clip(b - a, -1, 1),
        lambda a, b: a - b,
        *(grad, x, w, stride, padding, dilation, groups),
    )


def adder_conv_sign_backward(grad, x, w, *, stride=1, padding=0, dilation=1, groups=1):
    return _backward(
        lambda a, b: np.clip(b - a, -1, 1),
        lambda a, b: np.sign(a - b),
        *(grad, x, w, stride, padding, dilation, groups),
    )


def shift(x, shifts, *, stride=1):
    (sh, sw), (height, width) = _each(stride, 2), x.shape[2:]
    rows, columns = sh * np.arange(-(-height // sh)), sw * np.arange(-(-width // sw))
    y = np.zeros((*x.shape[:2], len(rows), len(columns)), x.dtype)
    for c, (dh, dw) in enumerate(shifts):
        for p in np.flatnonzero((rows + dh >= 0) & (rows + dh < height)):
            for q in np.flatnonzero((columns + dw >= 0) & (columns + dw < width)):
                y[:, c, p, q] = x[:, c, rows[p] + dh, columns[q] + dw]
    return y


def shift_backward(grad, shifts, x_shape, *, stride=1):
    """Every entry of grad goes back to the position that shift read."""
    index = np.arange(1, np.prod(x_shape) + 1).reshape(x_shape)
    image = np.zeros(np.prod(x_shape) + 1, grad.dtype)
    image[shift(index, shifts, stride=stride).ravel()] = grad.ravel()
    return image[1:].reshape(x_shape)


def shift_conv(x, w, shifts, bias=None, *, stride=1):
    return conv(shift(x, shifts, stride=stride), w[:, :, None, None], bias)


def shift_adder_conv(x, w, shifts, bias=None, *, stride=1):
    return adder_conv(shift(x, shifts, stride=stride), w[:, :, None, None], bias)


def _shifted_backward(point, grad, x, w, shifts, stride):
    grad_moved, grad_w = point(grad, shift(x, shifts, stride=stride), w[:, :, None, None])
    return shift_backward(grad_moved, shifts, x.shape, stride=stride), grad_w[:, :, 0, 0]


def shift_conv_backward(grad, x, w, shifts, *, stride=1):
    return _shifted_backward(conv_backward, grad, x, w, shifts, stride)


def shift_adder_conv_backward(grad, x, w, shifts, *, stride=1):
    return _shifted_backward(adder_conv_backward, grad, x, w, shifts, stride)


def _along(x, channels):
    """Per-channel numbers, broadcast along the channels of x."""
    return _wide(channels).reshape(-1, *(1,) * (x.ndim - 2))


def _all_but_channels(x):
    return (0, *range(2, x.ndim))


def moments(x):
    x = np.asarray(x, np.float64)
    return x.mean(axis=_all_but_channels(x)), x.var(axis=_all_but_channels(x))


def batch_norm(x, weight, bias, residual=0, *, relu=False, eps=1e-5, mean=None, variance=None):
    if mean is None:
        mean, variance = moments(x)
    mean, variance, weight, bias = (_along(x, a) for a in (mean, variance, weight, bias))
    y = (x - mean) / np.sqrt(variance + eps) * weight + bias + residual
    return np.where(y < 0, 0, y) if relu else y


def gathered(batches):
    """Mean and unbiased variance of the batches, weighted by their numbers of images."""
    sizes = [len(x) for x in batches]
    means, variances = zip(*(moments(x) for x in batches), strict=True)
    counts = [x.size // x.shape[1] for x in batches]
    unbiased = [v * n / (n - 1) for v, n in zip(variances, counts, strict=True)]
    return np.average(means, 0, sizes), np.average(unbiased, 0, sizes)


def batch_norm_backward(grad, x, y, weight, mean, variance, *, relu=False, eps=1e-5, fixed=False):
    """Gradients of x, weight, bias and residual, including those through mean and variance."""
    axes, inverse = _all_but_channels(x), 1 / np.sqrt(_along(x, variance) + eps)
    flow = np.where(y <= 0, 0.0, grad) if relu else np.asarray(grad, np.float64)
    hat = (x - _along(x, mean)) * inverse
    grad_weight, grad_bias = (flow * hat).sum(axis=axes), flow.sum(axis=axes)
    grad_hat = flow * _along(x, weight)
    grad_x = grad_hat * inverse
    if not fixed:
        average = grad_hat.mean(axis=axes, keepdims=True)
        grad_x = grad_x - inverse * (average + hat * (grad_hat * hat).mean(axes, keepdims=True))
    return grad_x, grad_weight, grad_bias, flow


def adaptive_rate(grad_w, eta=0.2):
    grad_w = np.asarray(grad_w, np.float64)
    return grad_w * eta * np.sqrt(grad_w.size) / np.linalg.norm(grad_w)


# Lavin's matrices BT, G, AT of F(2x2, 3x3), and those of F(4x4, 3x3) from the points 0, +-1, +-2.
WINOGRAD = {
    2: (
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    ),
    4: (
        np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ]
        ),
        np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
        np.array(
            [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
        ),
    ),
}


def _tiles(x, m, out_shape, padding):
    """x with zeros all around, and (first row, first column) of each tile of t x t pixels on it."""
    rows, columns = (-(-size // m) for size in out_shape)
    (top, _), (left, _) = padding
    low = rows * m + 2 - x.shape[2] - top, columns * m + 2 - x.shape[3] - left
    ends = [(p, max(0, extra)) for p, extra in zip((top, left), low, strict=True)]
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), *ends))
    return padded, [(m * i, m * j) for i in range(rows) for j in range(columns)]


def winograd_conv(x, u, matrices, bias=None, *, padding=1, relu=False):
    """A^T [ sum_c U . V ] A of each tile; the first begins at -padding, and the last is cropped."""
    BT, _, AT = matrices
    m, t = AT.shape
    padding = _sides(padding, (3, 3), (1, 1))
    height, width = (size + sum(p) - 2 for size, p in zip(x.shape[2:], padding, strict=True))
    padded, places = _tiles(x, m, (height, width), padding)
    y = np.zeros((x.shape[0], u.shape[2], height + m, width + m))
    for i, j in places:
        v = BT @ padded[:, :, i : i + t, j : j + t] @ BT.T
        if relu:
            v = np.maximum(v, 0)
        products = np.einsum("ijkc,ncij->nkij", np.asarray(u, np.float64), v)
        y[:, :, i : i + m, j : j + m] = AT @ products @ AT.T
    y = y[:, :, :height, :width]
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None, None]


def winograd_conv_backward(grad, x, u, matrices, *, padding=1, relu=False):
    """grad_x and grad_u, the latter at every entry: what autograd would give, tile by tile."""
    BT, _, AT = matrices
    m, t = AT.shape
    padding = _sides(padding, (3, 3), (1, 1))
    padded, places = _tiles(x, m, grad.shape[2:], padding)
    grad_padded, grad_u = np.zeros_like(padded), np.zeros(u.shape)
    grad = np.pad(np.asarray(grad, np.float64), ((0, 0), (0, 0), (0, m), (0, m)))
    for i, j in places:
        v = BT @ padded[:, :, i : i + t, j : j + t] @ BT.T
        dm = AT.T @ grad[:, :, i : i + m, j : j + m] @ AT
        dv = np.einsum("ijkc,nkij->ncij", np.asarray(u, np.float64), dm)
        grad_u += np.einsum("nkij,ncij->ijkc", dm, np.maximum(v, 0) if relu else v)
        if relu:
            dv = dv * (v > 0)
        grad_padded[:, :, i : i + t, j : j + t] += BT.T @ dv @ BT
    ((top, _), (left, _)), (height, width) = padding, x.shape[2:]
    return grad_padded[:, :, top : top + height, left : left + width], grad_u


def sgd(w, g, v, *, rate, momentum=0, nesterov=False, decay=0, adaptive=False, eta=0.2, scale=1):
    """(w, v) after a step; with `adaptive` the gradient has root mean square eta."""
    w, g, v = (np.asarray(a, np.float64) for a in (w, g, v))
    if adaptive:
        norm = np.linalg.norm(g)
        g = g if norm == 0 else g * eta * np.sqrt(g.size) / norm
    else:
        g = g * scale
    g = g + decay * w
    v = momentum * v + g
    return w - rate * (g + momentum * v if nesterov else v), v


def cross_entropy(logits, labels):
    """(mean loss, number of correct predictions, gradient of the loss)."""
    logits = np.asarray(logits, np.float64)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    chosen = np.arange(len(labels)), labels
    wanted = np.zeros_like(logits)
    wanted[chosen] = 1
    right = np.sum(logits.argmax(axis=1) == labels)
    return -np.log(softmax[chosen]).mean(), right, (softmax - wanted) / len(labels)


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def distillation(z, t, labels, temperature, share):
    """The mean distillation loss of logits z with a teacher's logits t."""
    soft, taught = softmax(np.divide(z, temperature)), softmax(np.divide(t, temperature))
    divergence = (taught * np.log(taught / soft)).sum(axis=1).mean()
    hard = -np.log(softmax(z)[np.arange(len(labels)), labels]).mean()
    return (1 - share) * hard + share * temperature**2 * divergence


def kernel_distance(adder, convolution):
    """Of a Laplacian of the one and a Gaussian of the other."""
    return ((np.exp(-np.abs(adder)) - np.exp(-(convolution**2) / 2)) ** 2).mean()


def move(images, dy, dx, flip):
    """Pixels shifted by (dy, dx) and then mirrored, image by image; 0 outside."""
    out = np.zeros_like(images)
    _, _, height, width = images.shape
    for n, h, w in np.ndindex(len(images), height, width):
        row, column = h + dy[n], (width - 1 - w if flip[n] else w) + dx[n]
        if 0 <= row < height and 0 <= column < width:
            out[n, :, h, w] = images[n, :, row, column]
    return out


def batch(images, plan, mean, std):
    """The images of the rows (image, dy, dx, flip) of a plan, normalised."""
    moved = move(images[plan[:, 0]], *plan[:, 1:].T)
    return (moved - np.float64(mean)) / np.float64(std)


def sign(a):
    """1 where a >= 0, -1 elsewhere, for NaN too."""
    return np.where(np.asarray(a, np.float64) >= 0, 1.0, -1.0)


def filter_scale(w):
    return np.abs(np.asarray(w, np.float64)).reshape(len(w), -1).mean(axis=1)


def pack_signs(x):
    """Python's own integers: 2 ** (c % 64) for every channel c that is not negative."""
    x = np.asarray(x)
    words = np.zeros((x.shape[0], -(-x.shape[1] // 64), *x.shape[2:]), object)
    for c in range(x.shape[1]):
        words[:, c // 64] += (x[:, c] >= 0).astype(object) * 2 ** (c % 64)
    return words.astype(np.uint64)


def binary_conv(x, w, *, scale=True, **options):
    y = conv(sign(x), sign(w), **options)  # zero padding
    return y * _along(y, filter_scale(w)) if scale else y


def binary_conv_backward(grad, x, w, *, scale=True, **options):
    """y = conv(b(x), a * b(w)): the chain rule, where b' = (abs <= 1) and a = mean(abs(w))."""
    beside = len(w), *(1,) * (w.ndim - 1)
    a = (filter_scale(w) if scale else np.ones(len(w))).reshape(beside)
    grad_b, grad_product = conv_backward(grad, sign(x), a * sign(w), **options)
    grad_a = (grad_product * sign(w)).reshape(len(w), -1).sum(axis=1).reshape(beside)
    grad_w = grad_product * a * (np.abs(w) <= 1)
    if scale:
        grad_w += grad_a * sign(w) / w[0].size  # d mean(abs(w)) / d w
    return grad_b * (np.abs(x) <= 1), grad_w


def low_bit_adder_conv(x, w, bias=None, *, bits, **options):
    return adder_conv(*(np.minimum(a, 2**bits - 1) for a in (x, w)), bias, **options)
