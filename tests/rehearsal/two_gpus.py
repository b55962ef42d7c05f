"""Arrays on GPU 1 while GPU 0 is current: run in rehearsal, where GPU 0 cannot access GPU 1's
memory."""

import sys

import cupy
import numpy as np

import mulfree_cupy as mf
from mulfree_cupy import models
from mulfree_cupy.autograd import Tensor, apply, no_grad
from mulfree_cupy.ops.adder import adder_conv_sign_backward
from mulfree_cupy.ops.batch_norm import batch_norm, batch_norm_backward
from mulfree_cupy.ops.winograd import precondition, prune_spatial
from mulfree_cupy.optim import SGD

SHIFTS = [(0, 1), (-1, 0), (0, 0), (1, -1)]


def on_gpu_1(*shape, dtype=np.float32):
    with cupy.cuda.Device(1):
        return cupy.asarray(np.ones(shape, dtype))


def transposed(*shape, dtype=np.float32):
    """Strided, so that it is copied."""
    return on_gpu_1(*shape[::-1], dtype=dtype).T


def check(answer):
    for array in answer if isinstance(answer, tuple) else (answer,):
        assert array is None or array.device.id == 1


def operations():
    for make in (on_gpu_1, transposed):
        for dtype in (np.float32, np.float64):
            x, w = make(2, 4, 6, 6, dtype=dtype), make(6, 4, 3, 3)  # of two dtypes, too
            grad, point = make(2, 6, 6, 6), make(6, 4)
            check(mf.conv(x, w, padding=1))
            check(mf.conv_backward(grad, x, w, padding=1))
            check(mf.adder_conv(x, w, make(6), padding=1))
            check(mf.adder_conv_backward(grad, x, w, padding=1))
            check(adder_conv_sign_backward(grad, x, w, padding=1))
            check(mf.adder_matmul(make(5, 3), make(3, 4, dtype=dtype)))
            check(mf.adaptive_rate(w))
            check(mf.im2col(x, (3, 3)))
            check(mf.shift(x, SHIFTS))
            check(mf.shift_backward(x, SHIFTS, x.shape))
            check(mf.shift_conv(x, point, SHIFTS))
            check(mf.shift_conv_backward(grad, x, point, SHIFTS))
            check(mf.shift_adder_conv(x, point, SHIFTS))
            check(mf.shift_adder_conv_backward(grad, x, point, SHIFTS))
            weights = mf.WinogradWeights.from_spatial(w)
            assert weights.nnz >= 0
            check(weights.astype(np.float64).prune(0.5).dense)
            check(mf.winograd_conv(x, weights))
            check(mf.winograd_conv(x, weights, kernel="1_dense"))
            check(mf.winograd_conv_backward(grad, x, weights))
            check(precondition(make(4, 4, 6, 4)))
            check(prune_spatial(w, 0.5))
            mean, variance = make(4), make(4)
            check(batch_norm(x, mean, mean, relu=True))
            check(batch_norm_backward(x, x, x, mean, mean, variance, relu=True))
            check(mf.adder_conv(x, w, padding=1, out=make(2, 6, 6, 6, dtype=dtype)))


def bits():
    """Apart from the others: prune looks at values, which are what the memory held before."""
    for make in (on_gpu_1, transposed):
        for dtype in (np.float32, np.float64):
            x, w, grad = make(2, 4, 6, 6, dtype=dtype), make(6, 4, 3, 3), make(2, 6, 6, 6)
            check(mf.pack_signs(x))
            check(mf.binary_conv(x, w, padding=1))
            check(mf.binary_conv(x, mf.pack(make(6, 4, 3, 3, dtype=dtype), op="binary")))
            check(mf.binary_conv_backward(grad, x, w, padding=1))
        x, w = make(2, 4, 6, 6, dtype=np.uint8), make(6, 4, 3, 3, dtype=np.uint8)
        check(mf.adder_conv(x, w, bits=2, padding=1))
        check(mf.adder_conv(x, mf.pack(w, op="adder", bits=2), bits=2, padding=1))


def train(name, size=32):
    """Two steps, an evaluation, and the network's state taken over by itself."""
    model = models.build(name, classes=10, size=size)
    with cupy.cuda.Device(1):
        model.to(cupy)
    model.load_state_dict(model.state_dict())
    optimiser = SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = Tensor(on_gpu_1(4, 3, size, size))
    for _ in range(2):
        optimiser.zero_grad()
        apply("cross_entropy", model(images), labels=np.arange(4)).backward()
        optimiser.step()
    optimiser.load_state_dict(optimiser.state_dict())
    optimiser.rate = 0.01
    model.eval()
    with no_grad():
        check(model(images).data)
    for parameter in model.parameters():
        check((parameter.data, parameter.grad))


if __name__ == "__main__":
    operations()
    bits()
    for network in sys.argv[1:]:
        train(network)
