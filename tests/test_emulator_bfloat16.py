"""cuda_bf16.h: every conversion and operation is right to the bit, and what half has beside it."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import RawKernel

F16, F32, U16, U32 = np.float16, np.float32, np.uint16, np.uint32
EVERY = np.arange(1 << 16).astype(U16)
rng = np.random.default_rng(0)


def value(bits):
    """bfloat16 is the upper half of a float32."""
    return (bits.astype(U32) << U32(16)).view(F32)


def nearest(x):
    """To bfloat16, nearest even, from float32."""
    bits = np.asarray(x, F32).view(U32)
    rounded = (bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))) >> U32(16)
    return np.where(np.isnan(x), U16(0x7FFF), rounded.astype(U16))


def assert_same(found, expected):
    """Equal bits; a NaN's sign and payload are not compared."""
    a, b = np.isnan(value(found)), np.isnan(value(expected))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found[~a], expected[~a])


def launch(
    body, *arrays, parameters="const __nv_bfloat16* a, const __nv_bfloat16* b, __nv_bfloat16* r"
):
    code = f"""
#include <cuda_bf16.h>
extern "C" __global__ void f({parameters}, int n) {{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {{ {body} }}
}}"""
    n = arrays[0].size
    RawKernel(code, "f")((-(-n // 256),), (256,), (*arrays, np.int32(n)))
    return arrays[-1]


def test_every_bfloat16_to_float_and_back():
    wide, back = np.empty(1 << 16, F32), np.empty(1 << 16, U16)
    body = "y[i] = __bfloat162float(x[i]); z[i] = __float2bfloat16(y[i]);"
    parameters = "const nv_bfloat16* x, float* y, nv_bfloat16* z"
    launch(body, EVERY, wide, back, parameters=parameters)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(value(EVERY)))
    number = ~np.isnan(wide)
    np.testing.assert_array_equal(wide[number].view(U32), value(EVERY)[number].view(U32))
    assert_same(back, EVERY)


def test_from_float_in_every_rounding():
    finite = value(EVERY[np.isfinite(value(EVERY))])
    beside = (
        finite.view(U32)[:, None] + np.array([1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], U32)
    ).ravel()
    x = np.concatenate([beside.view(F32), rng.integers(0, 1 << 32, 20_000, dtype=U32).view(F32)])
    found = np.empty((5, x.size), U16)
    modes = ("", "_rn", "_rz", "_ru", "_rd")
    body = "".join(
        f"r[{k} * n + i] = __float2bfloat16{mode}(x[i]);" for k, mode in enumerate(modes)
    )
    launch(body, x, found, parameters="const float* x, nv_bfloat16* r")
    cut = (x.view(U32) >> U32(16)).astype(U16)  # towards zero
    beyond = (x.view(U32) & U32(0xFFFF) != 0).astype(U16)
    cut[np.isnan(x)], beyond[np.isnan(x)] = 0x7FFF, 0
    negative = np.signbit(x)
    up, down = cut + np.where(negative, U16(0), beyond), cut + np.where(negative, beyond, U16(0))
    for row, right in zip(found, (nearest(x), nearest(x), cut, up, down), strict=True):
        assert_same(row, right)


def test_from_double_rounds_once():
    # One and a half steps, and a bit that a float does not hold: by way of float it would be a tie.
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1e308, 2.0**-134], np.float64)
    x = np.concatenate([x * (1 + 2**-40), x * (1 - 2**-40), x])
    found = launch(
        "r[i] = __double2bfloat16(x[i]);",
        x,
        np.empty(12, U16),
        parameters="const double* x, nv_bfloat16* r",
    )
    expected = [
        0x3F81,
        0x3F82,
        0x7F80,
        0x0001,
        0x3F80,
        0x3F81,
        0x7F80,
        0,
        0x3F80,
        0x3F82,
        0x7F80,
        0,
    ]
    assert found.tolist() == expected


SPECIAL = np.array(
    [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2.0**-133, 2.0**-126, 3e38, 0.25], F32
)


def pairs(n):
    special = np.array([(p, q) for p in nearest(SPECIAL) for q in nearest(SPECIAL)], U16)
    drawn = rng.integers(0, 1 << 16, (n - len(special), 2), dtype=U16)
    return np.ascontiguousarray(np.concatenate([special, drawn]).T)


def test_arithmetic():
    a, b = pairs(1 << 13)
    x, y = value(a), value(b)
    with np.errstate(all="ignore"):
        operations = {
            "a[i] + b[i]": x + y, "__hsub(a[i], b[i])": x - y, "a[i] * b[i]": x * y,
            "__hdiv(a[i], b[i])": x / y, "-a[i]": -x, "__habs(a[i])": abs(x),
            "hsqrt(__habs(a[i]))": np.sqrt(abs(x)), "__hmax_nan(a[i], b[i])": np.maximum(x, y),
            "__hmin_nan(a[i], b[i])": np.minimum(x, y),
            "__hadd_sat(a[i], b[i])": np.where(np.isnan(x + y), 0, np.clip(x + y, 0, 1)),
        }  # fmt: skip
    for operation, expected in operations.items():
        found = launch(f"r[i] = {operation};", a, b, np.empty_like(a))
        zero = expected == 0  # max and min are free to take either zero
        assert_same(found[~zero], nearest(expected)[~zero])
        np.testing.assert_array_equal(value(found[zero]), 0)


@pytest.mark.parametrize(
    ("name", "compare"),
    [("eq", np.equal), ("ne", np.not_equal), ("lt", np.less), ("le", np.less_equal),
     ("gt", np.greater), ("ge", np.greater_equal)],
)  # fmt: skip
def test_comparisons(name, compare):
    a, b = pairs(1 << 11)
    b[::3] = a[::3]
    x, y = value(a), value(b)
    nan = np.isnan(x) | np.isnan(y)
    operator = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}[name]
    body = f"""__nv_bfloat162 p = __halves2bfloat162(a[i], b[i]), q = __lowhigh2highlow(p);
        r[i] = (a[i] {operator} b[i]) + 2 * __h{name}(a[i], b[i]) + 4 * __h{name}u(a[i], b[i])
             + 8 * (__low2float(__h{name}2(p, q)) == 1.0f) + 16 * __hb{name}2(p, q)
             + 32 * __hb{name}u2(p, q);"""
    found = value(launch(body, a, b, np.empty_like(a))).astype(int)
    with np.errstate(invalid="ignore"):
        plain, swapped = compare(x, y), compare(y, x)
    ordered, both = plain & ~nan, plain & swapped
    expected = plain + 2 * ordered + 4 * (plain | nan) + 8 * ordered
    expected += 16 * (both & ~nan) + 32 * (both | nan)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("kind", "fraction"), [("__nv_bfloat16", 7), ("__half", 10)])
def test_fused_multiply_add_rounds_once(kind, fraction):
    # 1.5 and one and a half steps, which a c decides, however small.
    tiny = 2.0**-24 if kind == "__half" else 2.0**-133
    cases = [(1 + 2.0**-fraction, 1.5, c * tiny) for c in (0, 1, -1)]
    a, b, c = np.array(cases, F32).T
    to_bits = nearest if kind == "__nv_bfloat16" else lambda v: v.astype(F16).view(U16)
    from_bits = value if kind == "__nv_bfloat16" else lambda v: v.view(F16).astype(F32)
    parameters = f"const {kind}* a, const {kind}* b, const {kind}* c, {kind}* r"
    parts = [np.ascontiguousarray(to_bits(v)) for v in (a, b, c)]
    if kind == "__half":
        parts = [p.view(F16) for p in parts]
    found = launch(
        "r[i] = __hfma(a[i], b[i], c[i]);", *parts, np.empty_like(parts[0]), parameters=parameters
    )
    steps = (from_bits(found).astype(float) - 1.5) / 2.0**-fraction
    assert steps.tolist() == [2, 2, 1]


def test_two_elements_and_conversions():
    body = """
    __nv_bfloat162 p = x[i], q = __floats2bfloat162_rn(2.0f, 0.5f);
    p = __hfma2(p, q, __float2bfloat162_rn(1.0f));
    p += __bfloat162bfloat162(__int2bfloat16_rn(3));
    float2 wide = __bfloat1622float2(p);
    y[i] = __float22bfloat162_rn(make_float2(wide.y, wide.x));
    z[i] = __bfloat162int_rz(__high2bfloat16(p))
         + 100 * __bfloat16_as_ushort(__ushort_as_bfloat16(7))
         + 1000 * (int)(float)__nv_bfloat16(__half(2.0f)) + 10000 * __hisinf(__nv_bfloat16(-1e39f));
    s[i] = __shfl_xor_sync(~0u, x[i].x, 1);
    atomicAdd(t, __nv_bfloat16(1.0f));"""
    x = nearest(rng.integers(-20, 20, (32, 2)).astype(F32))
    y, z, s, t = np.zeros_like(x), np.zeros(32, np.int32), np.zeros(32, U16), np.zeros(1, U16)
    code = f"""
#include <cuda_bf16.h>
extern "C" __global__ void f(const __nv_bfloat162* x, __nv_bfloat162* y, int* z, nv_bfloat16* s, nv_bfloat16* t) {{
    int i = threadIdx.x; {body}
}}"""  # noqa: E501
    RawKernel(code, "f")((1,), (32,), (x, y, z, s, t))
    low, high = value(x).T
    np.testing.assert_array_equal(value(y).T, [high * 0.5 + 4, low * 2 + 4])
    np.testing.assert_array_equal(z, np.trunc(high * 0.5 + 4) + 700 + 2000 - 10000)
    np.testing.assert_array_equal(s, x[np.arange(32) ^ 1, 0])
    assert value(t)[0] == 32
