"""`mulfree_cupy.compat.jax`: under jit, grad and vmap the answers of the functions themselves."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mulfree_cupy as mf
from mulfree_cupy.ops import adder

jax = pytest.importorskip("jax")
jnp = jax.numpy
compat = pytest.importorskip("mulfree_cupy.compat.jax")

RNG = np.random.default_rng(18)


def numbers(*shape):
    return RNG.normal(size=shape).astype("f")


X, SHIFTS = numbers(4, 4, 9, 8), np.array([[0, 1], [1, 0], [-1, 2], [0, 0]])
CONVOLUTION = dict(stride=2, padding=1, groups=2)
# (x, w), their options.
CALLS = {
    "adder_conv": ((X, numbers(6, 2, 3, 3)), CONVOLUTION),
    "binary_conv": ((X, numbers(6, 2, 3, 3)), CONVOLUTION),
    "conv": ((X, numbers(6, 2, 3, 3)), CONVOLUTION),
    "shift": ((X,), dict(shifts=SHIFTS, stride=2)),
    "shift_adder_conv": ((X, numbers(6, 4)), dict(shifts=SHIFTS)),
    "shift_conv": ((X, numbers(6, 4)), dict(shifts=SHIFTS, stride=[1, 2])),
    "winograd_conv": ((X, numbers(4, 4, 6, 4)), dict(relu=True)),
}
BIASED = sorted(CALLS.keys() - {"binary_conv", "shift"})


def direct(name, x, *weights, **options):
    if name == "winograd_conv":
        weights = (mf.WinogradWeights.from_dense(weights[0]), *weights[1:])
    if name == "shift" or len(weights) == 1:
        return getattr(mf, name)(x, *weights, **options)
    return getattr(mf, name)(x, weights[0], bias=weights[1], **options)


def direct_gradients(name, grad, x, *weights, shifts=None, **options):
    if name == "shift":
        return (mf.shift_backward(grad, shifts, x.shape, **options),)
    if name == "winograd_conv":
        weights = (mf.WinogradWeights.from_dense(weights[0]),)
    options |= {} if shifts is None else {"shifts": shifts}
    return getattr(mf, f"{name}_backward")(grad, x, *weights, **options)


def test_every_operation_is_there():
    assert set(compat.__all__) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_eager_and_compiled_answers_are_the_functions_own(name):
    arrays, options = CALLS[name]
    want = direct(name, *arrays, **options)
    given = list(map(jnp.asarray, arrays))

    def call(*arrays):
        return getattr(compat, name)(*arrays, **options)

    for got in (call(*given), call(*arrays), jax.jit(call)(*given)):
        assert isinstance(got, jax.Array)
        assert_array_equal(got, want, strict=True)
    form = jax.eval_shape(call, *given)
    assert (form.shape, form.dtype) == (want.shape, want.dtype)


@pytest.mark.parametrize("name", BIASED)
def test_a_bias_is_added_and_has_a_gradient(name):
    arrays, options = CALLS[name]
    bias = numbers(6)
    want = direct(name, *arrays, bias, **options)

    def call(bias):
        return getattr(compat, name)(*arrays, bias=bias, **options)

    assert_array_equal(jax.jit(call)(bias), want)
    got = jax.grad(lambda b: (call(b) * want).sum())(jnp.asarray(bias))
    assert_allclose(got, want.sum(axis=(0, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_the_functions_own(name):
    arrays, options = CALLS[name]
    grad = RNG.normal(size=direct(name, *arrays, **options).shape).astype("f")

    def loss(*arrays):
        return (getattr(compat, name)(*arrays, **options) * grad).sum()

    places = tuple(range(len(arrays)))
    for differentiate in (jax.grad, lambda *a, **k: jax.jit(jax.grad(*a, **k))):
        got = differentiate(loss, argnums=places)(*map(jnp.asarray, arrays))
        for a, b in zip(got, direct_gradients(name, grad, *arrays, **options), strict=True):
            assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("name", CALLS)
def test_vmap_over_images_weights_and_both(name):
    (x, *weights), options = CALLS[name]
    call = getattr(compat, name)
    want = direct(name, x, *weights, **options)

    def one(image, *weights):
        return call(image[None], *weights, **options)[0]

    fixed = (None,) * len(weights)
    assert_array_equal(jax.vmap(one, (0, *fixed))(x, *weights), want)
    if not weights:
        return
    many = jnp.stack([weights[0], 2 * weights[0], -weights[0]])
    each = np.stack([direct(name, x, np.asarray(w), **options) for w in many])
    assert_array_equal(jax.vmap(lambda w: call(x, w, **options))(many), each)
    nested = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))
    assert_array_equal(nested(x, many), each)
    pairs = jax.vmap(one)(x[:3], many)
    assert_array_equal(pairs, each[[0, 1, 2], [0, 1, 2]])


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_each_example(name):
    (x, *weights), options = CALLS[name]
    place = len(weights)  # the last of the arrays

    def loss(image, *weights):
        return (getattr(compat, name)(image[None], *weights, **options) ** 2).sum()

    got = jax.vmap(jax.grad(loss, place), (0, *(None,) * place))(x, *weights)
    for i in range(len(x)):
        image = x[i : i + 1]
        y = direct(name, image, *weights, **options)
        want = direct_gradients(name, 2 * y, image, *weights, **options)[place]
        assert_allclose(got[i], want if weights else want[0], rtol=1e-5, atol=1e-5)


def test_lines_volumes_and_complex_numbers():
    options = dict(padding="same", groups=2)
    for shape in ((2, 4, 9), (2, 4, 5, 6, 7)):
        x, w = numbers(*shape), numbers(6, 2, *(3,) * (len(shape) - 2))
        want = mf.conv(x, w, **options)
        got = jax.jit(lambda x, w: compat.conv(x, w, **options))(x, w)
        assert_array_equal(got, want, strict=True)
        gradients = jax.grad(lambda x, w: compat.conv(x, w, **options).sum(), (0, 1))(x, w)
        backward = mf.conv_backward(np.ones_like(want), x, w, **options)
        for a, b in zip(gradients, backward, strict=True):
            assert_array_equal(a, b, strict=True)


def test_complex_numbers_as_in_jax_s_own_convolution():
    def complex_numbers(*shape):
        return numbers(*shape) + 1j * numbers(*shape)

    def own(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2)

    def ours(x, w):
        return compat.conv(x, w, padding="same", groups=2)

    x, w, grad = (complex_numbers(*s) for s in ((2, 4, 5, 5), (6, 2, 3, 3), (2, 6, 5, 5)))
    (y, pullback), (want, own_pullback) = jax.vjp(ours, x, w), jax.vjp(own, x, w)
    assert y.dtype == np.complex64
    for a, b in zip((y, *pullback(grad)), (want, *own_pullback(grad)), strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_real_operand_beside_a_complex_one():
    x, w = numbers(2, 4, 5, 5), numbers(6, 4, 3, 3) + 1j * numbers(6, 4, 3, 3)

    def own(x):
        return jax.lax.conv_general_dilated(x.astype(w.dtype), w, (1, 1), "VALID")

    def loss(convolution):
        return lambda x: (abs(convolution(x)) ** 2).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = jax.grad(loss(lambda x: compat.conv(x, w)))(x)
    assert got.dtype == np.float32
    assert_allclose(got, jax.grad(loss(own))(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", CALLS)
def test_a_second_derivative_is_refused(name):
    (x, *weights), options = CALLS[name]

    def loss(x):
        return (getattr(compat, name)(x, *weights, **options) ** 2).sum()

    gradient = jax.grad(loss)
    for second in (
        jax.grad(lambda x: gradient(x).sum()),
        jax.jit(jax.grad(lambda x: gradient(x).sum())),
        jax.jacrev(gradient),
    ):
        with pytest.raises(TypeError, match=f"^{name}: there is no second derivative"):
            second(jnp.asarray(x))


def test_images_that_meet_the_same_weights_are_one_call(monkeypatch):
    calls = []
    forward = adder.forward
    monkeypatch.setattr(adder, "forward", lambda *a: calls.append(a[3].x_shape) or forward(*a))
    x, w = jnp.asarray(numbers(2, 3, 5, 4, 7, 7)), numbers(6, 4, 3, 3)
    calls_of = jax.vmap(jax.vmap(lambda images: compat.adder_conv(images, w)))
    assert calls_of(x).shape == (2, 3, 5, 6, 5, 5)
    assert calls[-1][0] == 30 and len([c for c in calls if c[0]]) == 1  # one more was for the form


def test_dtypes_are_jax_s_own():
    assert compat.conv(np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1))).dtype == np.float32
    x, w = jnp.ones((1, 1, 3, 3), jnp.uint8), jnp.full((1, 1, 2, 2), 3, jnp.uint8)
    got = jax.jit(lambda x, w: compat.adder_conv(x, w, bits=2))(x, w)
    assert got.dtype == np.int32 and (got == -8).all()
    gradient = jax.grad(lambda w: compat.adder_conv(x, w).sum())(w.astype(np.float32))
    assert_array_equal(gradient, np.full((1, 1, 2, 2), 4 * (1 - 3) * 1.0))
    assert jax.jit(lambda x: compat.shift(x, [(0, 1)]))(x > 0).dtype == bool
    with jax.enable_x64(True):
        mixed = compat.conv(np.ones((1, 1, 2, 2), "f"), np.ones((1, 1, 1, 1)))
        assert mixed.dtype == np.float64
        grads = jax.grad(lambda x, w: compat.conv(x, w).sum(), (0, 1))(
            jnp.ones((1, 1, 2, 2), "f"), jnp.ones((1, 1, 1, 1))
        )
        assert [g.dtype for g in grads] == [np.float32, np.float64]


W = numbers(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: compat.conv(x, W[:, 1:]), ValueError, r"conv: w must have .* \(4, 4, 9, 8\)"),
        (lambda x: compat.conv(x[0], W), ValueError, r"conv: (x|w) must .*\(4, 9, 8\)"),
        (lambda x: compat.conv(x, W, stride=0), ValueError, "conv: stride must be at least 1"),
        (lambda x: compat.conv(x, W, W), ValueError, r"conv: bias must have shape \(6,\)"),
        (lambda x: compat.conv(x, W, out=x), TypeError, r"conv\(\) .*unexpected keyword .*out"),
        (lambda x: compat.conv(x), TypeError, r"conv\(\) missing a required argument: 'w'"),
        (lambda x: compat.conv(x, None), TypeError, "conv: w is no array, got a NoneType"),
        (lambda x: compat.conv(x, W, stride=x), TypeError, "conv: stride is a traced JAX array"),
        (
            lambda x: compat.shift_conv(x, W[..., 0, 0], x),
            TypeError,
            "shift_conv: shifts is a traced JAX array, and only x, w may be; pass a NumPy array",
        ),
        (lambda x: compat.shift(x, SHIFTS[1:]), ValueError, "shift: shifts must have shape"),
        (lambda x: compat.winograd_conv(x, W), ValueError, "WinogradWeights.from_dense: u must"),
        (
            lambda x: compat.conv(x.astype(jnp.bfloat16), W),
            TypeError,
            r"conv: x .* bfloat16 .*; convert with \.astype\(np\.float32\)",
        ),
    ],
)
def test_errors_name_the_function_while_it_is_traced(call, error, message):
    with pytest.raises(error, match=message):
        jax.jit(call)(X)


@pytest.mark.parametrize("trace", [jax.jit, jax.vmap, lambda f: jax.grad(lambda x: f(x).sum())])
def test_the_functions_themselves_say_what_takes_a_traced_array(trace):
    with pytest.raises(TypeError, match="conv: x is a traced JAX array.*mulfree_cupy.compat.jax"):
        trace(lambda x: mf.conv(x, W))(jnp.asarray(X))
    with pytest.raises(TypeError, match="a is a traced JAX array"):
        jax.jit(lambda a: mf.adder_matmul([[a]], [[1.0]]))(1.0)


def test_eager_arrays_are_taken_without_a_copy_and_written_to_never():
    x = jnp.asarray(X)
    assert_array_equal(mf.conv(x, W), mf.conv(X, W))
    with pytest.raises(ValueError, match="shift: out is read-only"):
        mf.shift(X, SHIFTS, out=x)


def test_array_api_extra_defers_the_functions_themselves():
    extra = pytest.importorskip("array_api_extra")
    want = mf.conv(X, W)

    def call(x, w):
        form = dict(shape=want.shape, dtype=want.dtype)
        return extra.lazy_apply(mf.conv, x, w, **form, as_numpy=True)

    assert_array_equal(jax.jit(call)(X, W), want)
    assert_array_equal(call(X, W), want)


def test_a_gpu_of_jax_is_not_served():
    class Buffer:
        def __dlpack_device__(self):
            return (2, 0)

    with pytest.raises(TypeError, match="conv: JAX arrays on a GPU .*jax.device_put"):
        compat._in_memory(mf.conv, Buffer())


ONE_PROCESSOR = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp
from mulfree_cupy.compat import jax as compat

x, w = jnp.ones((8, 8, 64, 64)), jnp.ones((8, 8, 3, 3))  # JAX copies small arrays at once

@jax.jit
def several(x, w):
    y = [compat.adder_conv(i * x, w, padding=1) for i in range(4)]
    y, _ = jax.lax.scan(lambda c, _: (compat.conv(c, w, padding=1), None), sum(y), length=3)
    return (y / jnp.abs(y).max()).sum()

for _ in range(3):
    jax.block_until_ready(jax.grad(several, (0, 1))(x, w))
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_nothing_hangs_where_jax_has_a_single_thread():
    """As `jax.pure_callback` would: its arrays are copied by the thread that waits for them."""
    command = [sys.executable, "-c", ONE_PROCESSOR]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
