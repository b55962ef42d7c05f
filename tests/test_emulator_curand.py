"""curand_kernel.h: the generators' words bit for bit, and what distributions make of them."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import RawKernel, emulated_cuda

F32, U32, U64 = np.float32, np.uint32, np.uint64
M32 = 2**32 - 1
CODE = """
#include <curand_kernel.h>
template <class S> __global__ void words(U seed, U subsequence, U offset, unsigned* out, int n) {
    S state;
    curand_init(seed, subsequence + threadIdx.x, offset, &state);
    for (int i = 0; i < n; ++i) out[threadIdx.x * n + i] = curand(&state);
}
template <class S> __global__ void distributions(S* states, float* f, double* d) {
    int t = threadIdx.x;
    curand_init(7, t, 0, &states[t]);
    S state = states[t];
    for (int i = 0; i < 4; ++i) f[8 * t + i] = curand_uniform(&state);
    for (int i = 4; i < 8; ++i) f[8 * t + i] = curand_normal(&state);
    for (int i = 0; i < 2; ++i) d[4 * t + i] = curand_uniform_double(&state);
    for (int i = 2; i < 4; ++i) d[4 * t + i] = curand_normal_double(&state);
    states[t] = state;
}
extern "C" __global__ void fours(
    U offset, uint4* a, float4* u, float4* n, double2* d, unsigned* after
) {
    curandStatePhilox4_32_10_t state;
    curand_init(7, 0, offset, &state);
    a[0] = curand4(&state);
    u[0] = curand_uniform4(&state);
    n[0] = curand_normal4(&state);
    d[0] = curand_uniform2_double(&state);
    skipahead(5, &state);
    after[0] = curand(&state);
}
template <class S> __global__ void log_normals(float* f, double* d) {
    S state, same;
    curand_init(7, 0, 0, &state);
    same = state;
    f[0] = curand_log_normal(&state, 1.0f, 0.5f);
    f[1] = expf(1.0f + 0.5f * curand_normal(&same));
    d[0] = curand_log_normal_double(&state, 1.0, 0.5);
    d[1] = exp(1.0 + 0.5 * curand_normal_double(&same));
}
template <class S> __global__ void size(int* out) { out[0] = sizeof(S); }
"""
OPTIONS = ("-DU=unsigned long long",)
XORWOW, PHILOX = "curandState", "curandStatePhilox4_32_10_t"


def words(state, seed, subsequence, offset, n, threads=1):
    out = np.zeros((threads, n), U32)
    kernel = RawKernel(CODE, f"words<{state}>", OPTIONS)
    kernel((1,), (threads,), (U64(seed), U64(subsequence), U64(offset), out, np.int32(n)))
    return out


def philox(counter, key):
    """Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011), figure 4."""
    c, k = [counter >> 32 * i & M32 for i in range(4)], [key & M32, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & M32, a >> 32 ^ c[3] ^ k[1], a & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def xorwow(d, v, n):
    """Marsaglia, Xorshift RNGs (2003), page 5."""
    v, out = list(v), []
    for _ in range(n):
        t = v[0] ^ v[0] >> 2
        v = [*v[1:], (v[4] ^ v[4] << 4 ^ t ^ t << 1) & M32]
        d = (d + 362437) & M32
        out.append((v[4] + d) & M32)
    return out


# Of Random123: counter and key from the least word on, and the output.
KNOWN = """
00000000 00000000 00000000 00000000   00000000 00000000   6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff   ffffffff ffffffff   408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344   a4093822 299f31d0   d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.mark.parametrize("row", KNOWN.strip().splitlines())
def test_philox_known_answers(row):
    numbers = [int(word, 16) for word in row.split()]
    c, k, expected = numbers[:4], numbers[4:6], numbers[6:]
    number, seed = sum(w << 32 * i for i, w in enumerate(c)), k[0] | k[1] << 32
    assert philox(number, seed) == expected
    # An offset counts words: the counter's upper two bits are out of its reach.
    low = number % 2**62
    offset, subsequence = 4 * low, number >> 64
    found = words(PHILOX, seed, subsequence, offset, 6)[0].tolist()
    at = low | subsequence << 64
    assert found == (philox(at, seed) + philox((at + 1) % 2**128, seed))[:6]


@pytest.mark.parametrize("offset", [0, 1, 3, 6, 2**40 + 2])
def test_philox_subsequences_and_offsets(offset):
    found = words(PHILOX, 2**50 + 3, 5, offset, 9, threads=3)
    for thread in range(3):
        first = (5 + thread) << 64 | offset // 4
        stream = [word for i in range(4) for word in philox(first + i, 2**50 + 3)]
        assert found[thread].tolist() == stream[offset % 4 :][:9]


def test_xorwow_of_a_known_seed():
    # The first ten numbers of cuRAND's own example: seed 1234, one from each of ten subsequences.
    published = [0.1455, 0.8202, 0.5504, 0.2948, 0.9147, 0.8690, 0.3219, 0.7829, 0.0113, 0.2855]
    found = words(XORWOW, 1234, 0, 0, 1, threads=10)[:, 0] / 2.0**32
    np.testing.assert_allclose(found, published, atol=5.1e-5)


@pytest.mark.parametrize("seed", [0, 1234, 2**63 + 5])
def test_xorwow_offsets(seed):
    a = 1099087573 * ((seed & M32) ^ 0xAAD26B49) & M32
    b = 2591861531 * ((seed >> 32) ^ 0xF7DCEFDD) & M32
    v = [123456789 + a, 362436069 ^ a, 521288629 + b, 88675123 ^ b, 5783321 + a]
    expected = xorwow(6615241 + a + b, [w & M32 for w in v], 1500)
    assert words(XORWOW, seed, 0, 0, 100)[0].tolist() == expected[:100]
    assert words(XORWOW, seed, 0, 1234, 100)[0].tolist() == expected[1234:1334]


@pytest.mark.parametrize(("state", "size"), [(XORWOW, 48), (PHILOX, 64)])
@pytest.mark.parametrize("check", [True, False])
def test_distributions(state, size, check):
    found = np.zeros(1, np.int32)
    RawKernel(CODE, f"size<{state}>", OPTIONS)((1,), (1,), (found,))
    assert found[0] == size
    n = 64
    states, f, d = np.zeros((n, size), np.uint8), np.zeros((n, 8), F32), np.zeros((n, 4))
    with emulated_cuda(check=check):
        RawKernel(CODE, f"distributions<{state}>", OPTIONS)((1,), (n,), (states, f, d))
    w = words(state, 7, 0, 0, 16, threads=n)
    np.testing.assert_array_equal(f[:, :4], w[:, :4].astype(F32) * F32(2**-32) + F32(2**-33))
    np.testing.assert_allclose(f[:, 4:6], normals(w[:, 4], w[:, 5]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(f[:, 6:8], normals(w[:, 6], w[:, 7]), rtol=1e-4, atol=1e-6)
    doubles = [wide(w[:, 8], w[:, 9]), wide(w[:, 10], w[:, 11])]
    rest = w[:, 12:]
    if state == PHILOX:  # one word is all it takes
        doubles, rest = [(w[:, 8] + 1.0) / 2**32, (w[:, 9] + 1.0) / 2**32], w[:, 10:]
    np.testing.assert_array_equal(d[:, :2], np.transpose(doubles))
    r = np.sqrt(-2 * np.log(wide(rest[:, 0], rest[:, 1])))
    angle = 2 * np.pi * wide(rest[:, 2], rest[:, 3])
    np.testing.assert_allclose(d[:, 2:], np.transpose([r * np.sin(angle), r * np.cos(angle)]), 1e-9)


def normals(x, y):
    r, angle = np.sqrt(-2 * np.log((x + 0.5) / 2**32)), 2 * np.pi * (y + 0.5) / 2**32
    return np.transpose([r * np.sin(angle), r * np.cos(angle)])


def wide(x, y):
    return (x.astype(U64) ^ y.astype(U64) << U64(21)) * 2.0**-53 + 2.0**-54


@pytest.mark.parametrize("state", [XORWOW, PHILOX])
def test_log_normal(state):
    f, d = np.zeros(2, F32), np.zeros(2)
    RawKernel(CODE, f"log_normals<{state}>", OPTIONS)((1,), (1,), (f, d))
    assert f[0] == f[1] > 0 and d[0] == d[1] > 0


@pytest.mark.parametrize("offset", [0, 3])
def test_four_at_once(offset):
    a, u, n = np.zeros(4, U32), np.zeros(4, F32), np.zeros(4, F32)
    d, after = np.zeros(2), np.zeros(1, U32)
    RawKernel(CODE, "fours", OPTIONS)((1,), (1,), (U64(offset), a, u, n, d, after))
    w = words(PHILOX, 7, 0, offset, 22)[0]
    np.testing.assert_array_equal(a, w[:4])
    np.testing.assert_array_equal(u, w[4:8].astype(F32) * F32(2**-32) + F32(2**-33))
    np.testing.assert_allclose(n, normals(w[8:12:2], w[9:12:2]).ravel(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(d, [wide(w[12], w[13]), wide(w[14], w[15])])
    assert after[0] == w[21]
