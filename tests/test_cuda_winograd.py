"""The CUDA kernels of the Winograd convolution against its formula: emulated, and on a GPU."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import images_of, run
from test_winograd import Problem, assert_close, problems

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy.launch import emulator, limits, select, tiling, winograd

F2 = [(2, "lavin")]
WAYS = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]


def forward(way, problem, weights=None, **options):
    arrays = problem.x, weights or problem.weights, problem.bias
    return run(way, mf.winograd_conv, *arrays, **problem.options, **options)


def expected(problem):
    return spec.winograd_conv(
        problem.x, problem.u, problem.matrices, problem.bias, **problem.options
    )


@pytest.mark.parametrize("kernel", select.names("winograd_conv"))
def test_no_bias_is_no_array(kernel):
    passed = []
    device = emulator.Device()
    device.launch = lambda path, entry, *_: passed.append(_[-1])
    x, w = np.ones((1, 3, 6, 6), "f"), np.ones((5, 3, 3, 3), "f")
    g, out = images_of(1, 3, 6, 6, 5, (3, 3), padding=(1, 1)), np.empty((1, 5, 6, 6), "f")
    weights, matrices = mf.WinogradWeights.from_spatial(w, 2), mf.winograd_matrices(2)
    winograd.winograd_conv(device, x, weights, matrices, None, out, g, False, kernel)
    grad_x, grad_u = np.empty_like(x), np.empty((4, 4, 5, 3), "f")
    assert sum(argument is None for argument in passed[-1]) == 1
    winograd.winograd_conv_backward(device, out, x, weights, matrices, grad_x, grad_u, g, False)
    assert sum(argument is None for argument in passed[-1]) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel", ["1_dense", "2_sparse"])
@settings(max_examples=40)
@given(problem=problems(), workspace=st.sampled_from([1, 2**26]))
def test_kernels_in_steps_are_the_formula(way, kernel, problem, workspace):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "WORKSPACE", workspace)
        answer = forward(way, problem, kernel=kernel)
    assert_close(answer, expected(problem), problem.m, problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40)
@given(problem=problems(transforms=F2), full=st.sampled_from([1, 10**6]))
def test_the_fused_kernel_is_the_formula(way, problem, full):
    """With the largest and the smallest tiles, and a slab of a few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "FULL", full)
        patch.setattr(tiling, "_SLAB", 1024)
        answer = forward(way, problem, kernel="3_fused")
    assert_close(answer, expected(problem), problem.m, problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8)
@given(problem=problems(transforms=F2))
def test_the_frozen_kernel_is_the_formula(way, problem):
    answer = forward(way, problem, kernel="4_frozen")
    assert_close(answer, expected(problem), problem.m, problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40)
@given(problem=problems(), workspace=st.sampled_from([1, 2**26]))
def test_backward_is_its_formula(way, problem, workspace):
    grad = problem.grad()
    arrays = grad, problem.x, problem.weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "WORKSPACE", workspace)
        grad_x, grad_u = run(way, mf.winograd_conv_backward, *arrays, **problem.options)
    expected_x, expected_u = spec.winograd_conv_backward(
        grad, problem.x, problem.u, problem.matrices, **problem.options
    )
    assert_close(grad_x, expected_x, problem.m, problem.x.dtype)
    assert_close(grad_u, expected_u * problem.weights.mask, problem.m, problem.x.dtype)


@pytest.mark.parametrize("kernel", ["3_fused", "4_frozen"])
@pytest.mark.parametrize("way", WAYS)
def test_many_channels_and_filters_are_several_chunks_and_blocks(way, kernel):
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(1, 70, 5, 4)), rng.normal(size=(4, 4, 37, 70))
    weights = mf.WinogradWeights.from_dense(u).prune(0.02)
    problem = Problem(x, None, weights.dense, None, 2, "lavin", dict(padding=1, relu=True))
    assert_close(forward(way, problem, weights, kernel=kernel), expected(problem), 2, x.dtype)


def test_weights_that_keep_their_mask_keep_the_frozen_kernel():
    u = np.random.default_rng(0).normal(size=(4, 4, 9, 5))
    weights = mf.WinogradWeights.from_dense(u).prune(0.3)
    updated = mf.WinogradWeights.from_dense(3 * u, weights.mask)
    (text, values), (same, thrice) = (winograd.generate(w, 8) for w in (weights, updated))
    assert same == text
    np.testing.assert_allclose(thrice, 3 * values)
    assert len(re.findall(r"P\(", text)) == weights.nnz


@pytest.mark.parametrize(
    "weights, kernel",
    [
        (mf.WinogradWeights.from_dense(np.ones((4, 4, 2, 2))), "1_dense"),
        (mf.WinogradWeights.from_dense(np.ones((4, 4, 2, 2))).freeze(), "4_frozen"),
        (mf.WinogradWeights.from_dense(np.ones((4, 4, 4, 2))).prune(0.5), "1_dense"),
        (mf.WinogradWeights.from_dense(np.ones((4, 4, 4, 4))).prune(0.08), "2_sparse"),
        (mf.WinogradWeights.from_dense(np.ones((4, 4, 32, 32))).prune(0.4).freeze(), "4_frozen"),
        (mf.WinogradWeights.from_dense(np.ones((4, 4, 64, 32))).prune(0.4).freeze(), "1_dense"),
        (mf.WinogradWeights.from_dense(np.ones((6, 6, 4, 4))).prune(0.05), "2_sparse"),
        (mf.WinogradWeights.from_dense(np.ones((6, 6, 4, 4))).freeze(), "1_dense"),
    ],
    ids=repr,
)
def test_the_kernel_that_is_taken(weights, kernel):
    for dtype in (np.float64, np.float32):
        call = select.Call("winograd_conv", np.dtype(dtype), weights=weights.astype(dtype))
        assert select.choose(call) == kernel


def test_kernels_refuse_what_they_cannot_do():
    x, large = np.ones((1, 2, 4, 4)), mf.WinogradWeights.from_dense(np.ones((6, 6, 1, 2)))
    many = mf.WinogradWeights.from_dense(np.ones((4, 4, 300, 2)))
    with mf.emulated_cuda():
        with pytest.raises(ValueError, match=r"kernel '3_fused' takes m=2, got .*4x4"):
            mf.winograd_conv(x, large, kernel="3_fused")
        with pytest.raises(ValueError, match=r"takes at most 8192 weights .*, got 9600 in"):
            mf.winograd_conv(x, many, kernel="4_frozen")
        with pytest.raises(ValueError, match="no kernel named 'blocks'; there are 1_dense, 2_sp"):
            mf.winograd_conv(x, many, kernel="blocks")
    with pytest.raises(ValueError, match=r"kernel='3_fused' is a CUDA kernel and x a NumPy array"):
        mf.winograd_conv(x, many, kernel="3_fused")
