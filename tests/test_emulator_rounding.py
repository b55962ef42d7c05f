"""Directed rounding, held to exact fractions; and the small functions beside it."""

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import RawKernel, emulated_cuda

F32, I32, U32 = np.float32, np.int32, np.uint32
rng = np.random.default_rng(4)
MODES = ("rn", "rz", "ru", "rd")


def drawn(dtype, n, spread=20):
    """Numbers of many magnitudes, the smallest and largest among them; no zero."""
    x = (1 + rng.random(n)) * 2.0 ** rng.uniform(-spread, spread, n) * rng.choice([-1, 1], n)
    info = np.finfo(dtype)
    special = [1, 3, info.smallest_subnormal, info.tiny, info.max, -info.max, 1 / 3, 0.1]
    return np.concatenate([special, x]).astype(dtype)


def floor_and_ceiling(exact, dtype):
    """The neighbours of an exact number; the same twice if it is one of dtype."""
    largest = Fraction(float(np.finfo(dtype).max))
    near = max(-largest, min(exact, largest))
    low = high = dtype(near.numerator / near.denominator)
    with np.errstate(over="ignore", under="ignore"):
        if Fraction(float(low)) > exact:
            while np.isfinite(low) and Fraction(float(low)) > exact:
                low, high = np.nextafter(low, dtype(-np.inf)), low
        else:
            while np.isfinite(high) and Fraction(float(high)) < exact:
                low, high = high, np.nextafter(high, dtype(np.inf))
        if np.isfinite(low) and Fraction(float(low)) == exact:
            high = low
    return low, high


def directed(exact, dtype, mode):
    low, high = floor_and_ceiling(exact, dtype)
    return {"rd": low, "ru": high, "rz": low if exact > 0 else high}[mode]


def launch(function, mode, dtype, *arrays):
    kind = {F32: "float", np.float64: "double"}[dtype]
    names = "abc"[: len(arrays)]
    parameters = ", ".join(
        f"const {CTYPES[a.dtype.type]}* {n}" for a, n in zip(arrays, names, strict=True)
    )
    call = f"{function}_{mode}({', '.join(f'{n}[i]' for n in names)})"
    code = f"""extern "C" __global__ void f({parameters}, {kind}* r) {{
        int i = threadIdx.x; r[i] = {call}; }}"""
    r = np.zeros(arrays[0].size, dtype)
    with emulated_cuda(check=mode == "ru"):
        RawKernel(code, "f")((1,), (r.size,), (*arrays, r))
    return r


CTYPES = {F32: "float", np.float64: "double", I32: "int", U32: "unsigned"}
CTYPES |= {np.int64: "long long", np.uint64: "unsigned long long"}
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(("letter", "dtype"), [("f", F32), ("d", np.float64)])
def test_binary(letter, dtype, name, mode):
    a, b = drawn(dtype, 56), rng.permutation(drawn(dtype, 56))
    found = launch(f"__{letter}{name}", mode, dtype, a, b)
    for x, y, r in zip(a, b, found, strict=True):
        exact = BINARY[name](Fraction(float(x)), Fraction(float(y)))
        if exact:
            assert r == directed(exact, dtype, mode), (x, y)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(("letter", "dtype"), [("f", F32), ("d", np.float64)])
def test_reciprocal_root_and_fused(letter, dtype, mode):
    a, b, c = drawn(dtype, 56), drawn(dtype, 56), drawn(dtype, 56)
    reciprocal, root = (
        launch(f"__{letter}{f}", mode, dtype, v) for f, v in (("rcp", a), ("sqrt", abs(a)))
    )
    fused = launch({"f": "__fmaf", "d": "__fma"}[letter], mode, dtype, a, b, c)
    for x, y, z, *results in zip(a, b, c, reciprocal, root, fused, strict=True):
        p, q, r = (Fraction(float(v)) for v in (x, y, z))
        assert results[0] == directed(1 / p, dtype, mode)
        assert results[2] == directed(p * q + r, dtype, mode)
        # Enough places of the root for it to lie between the same neighbours.
        scale = 2**2400
        whole = isqrt(abs(p.numerator) * scale // p.denominator)
        exact_root = whole * whole * p.denominator == abs(p.numerator) * scale
        exact = Fraction(2 * whole + (not exact_root), 2**1201)
        assert results[1] == directed(exact, dtype, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("function", "source", "to"),
    [
        ("double2float", np.float64, F32), ("int2float", I32, F32), ("uint2float", U32, F32),
        ("ll2float", np.int64, F32), ("ull2float", np.uint64, F32),
        ("ll2double", np.int64, np.float64), ("ull2double", np.uint64, np.float64),
    ],
)  # fmt: skip
def test_conversions(function, source, to, mode):
    if source is np.float64:
        x = np.append(drawn(source, 50, spread=140), [1e39, -1e39])
    else:
        info = np.iinfo(source)
        x = rng.integers(info.min, info.max, 60, dtype=source)
        x[:4] = info.max, info.min, 1, 2**24 + 1
    found = launch(f"__{function}", mode, to, x)
    for value, r in zip(x, found, strict=True):
        exact = Fraction(value.item())
        with np.errstate(over="ignore"):
            expected = to(value) if mode == "rn" else directed(exact, to, mode) if exact else 0
        assert r == expected, value


def test_smallest_and_largest():
    code = """
extern "C" __global__ void f(long long* r) {
    unsigned a = 0x80000000u;
    r[0] = umin(a, 1u); r[1] = umax(a, 1u);
    r[2] = llmin(-1ll << 40, 3); r[3] = llmax(-1ll << 40, 3);
    r[4] = ullmax(~0ull, 3) == ~0ull; r[5] = ullmin(~0ull, 3);
}"""
    r = np.zeros(6, np.int64)
    RawKernel(code, "f")((1,), (1,), (r,))
    assert r.tolist() == [1, 2**31, -(2**40), 3, 1, 3]


def test_half_turns_and_norms():
    code = """
extern "C" __global__ void f(const double* x, double* r, float* s) {
    int i = threadIdx.x, n = blockDim.x;
    sincospi(x[i], &r[i], &r[n + i]);
    sincospif(x[i], &s[i], &s[n + i]);
    r[2 * n + i] = norm3d(x[i], 2.0, 3.0) * rnorm4d(x[i], 1.0, 1.0, 1.0) * rhypot(x[i], 1.0);
    s[2 * n + i] = norm4df(x[i], 2, 3, 4) * rnorm3df(x[i], 2, 2) * rhypotf(x[i], 3);
}"""
    x = np.append(np.arange(-20, 20) / 4, [1e15, 1e30, 0.3, -7.2])
    r, s = np.zeros((3, x.size)), np.zeros((3, x.size), F32)
    RawKernel(code, "f")((1,), (x.size,), (x, r, s))
    with np.errstate(over="ignore"):
        angle = np.pi * np.fmod(x, 2)
        quarters = x * 4 % 2 == 0
        assert set(abs(r[:2, quarters]).ravel()) == set(abs(s[:2, quarters]).ravel()) == {0, 1}
        np.testing.assert_allclose(r[0], np.sin(angle), atol=1e-14)
        np.testing.assert_allclose(r[1], np.cos(angle), atol=1e-14)
    np.testing.assert_allclose(s[:2, :40], r[:2, :40], atol=1e-7)
    x = x[:40]
    norms = np.sqrt(x**2 + 13) / np.sqrt((x**2 + 3) * (x**2 + 1))
    np.testing.assert_allclose(r[2, :40], norms, rtol=1e-14)
    norms = np.sqrt(x**2 + 29) / np.sqrt((x**2 + 8) * (x**2 + 9))
    np.testing.assert_allclose(s[2, :40], norms, rtol=1e-6)


@pytest.mark.parametrize("scope", ["", "_block", "_system"])
def test_atomics_by_scope(scope):
    code = """
extern "C" __global__ void f(int* x, unsigned long long* y) {
    for (int old = -1; old != 0;) old = CAS(&x[0], 0, 1);   // a lock
    ++x[1];
    __threadfence();
    EXCH(&x[0], 0);
    ADD(&x[2], 2); SUB(&x[3], 1); MAX(&x[4], (int)threadIdx.x); OR(&y[0], 1ull << threadIdx.x);
}"""
    names = {"CAS": "CAS", "EXCH": "Exch", "ADD": "Add", "SUB": "Sub", "MAX": "Max", "OR": "Or"}
    options = tuple(f"-D{macro}=atomic{name}{scope}" for macro, name in names.items())
    x, y = np.zeros(5, I32), np.zeros(1, np.uint64)
    RawKernel(code, "f", options)((1,), (40,), (x, y))
    assert (x.tolist(), int(y[0])) == ([0, 40, 80, -40, 39], 2**40 - 1)


def test_shuffles_of_sixteen_bytes():
    code = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void f(const float4* x, float4* y, double2* z) {
    int t = threadIdx.x;
    y[t] = __shfl_xor_sync(~0u, x[t], 3);
    y[32 + t] = __shfl_down_sync(0xffffffff, x[t], 1, 8);
    auto tile = cg::tiled_partition<4>(cg::this_thread_block());
    z[t] = tile.shfl(make_double2(t, -t), 2);
}"""
    x, y, z = rng.random((32, 4)).astype(F32), np.zeros((64, 4), F32), np.zeros((32, 2))
    RawKernel(code, "f")((1,), (32,), (x, y, z))
    lane = np.arange(32)
    np.testing.assert_array_equal(y[:32], x[lane ^ 3])
    np.testing.assert_array_equal(y[32:], x[np.where(lane % 8 == 7, lane, lane + 1) % 32])
    np.testing.assert_array_equal(z, np.stack([lane // 4 * 4 + 2, -(lane // 4 * 4 + 2)], 1))
