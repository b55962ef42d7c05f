"""The CUDA kernels of the Winograd convolution against its formula: emulated, and on a GPU."""

import pytest
import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import run
from test_winograd import assert_close, problems

import mulfree_cupy as mf
from mulfree_cupy.launch import winograd

F2 = [(2, "lavin")]
WAYS = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]


def forward(way, problem, weights=None, **options):
    weights = weights or problem.weights
    if way == "gpu":
        weights = on_gpu(weights)
    return run(
        way,
        lambda x, bias: mf.winograd_conv(x, weights, bias, **problem.options, **options),
        problem.x,
        problem.bias,
    )


def on_gpu(weights):
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no GPU")
    u, mask = cupy.asarray(weights.dense), cupy.asarray(weights.mask)
    return mf.WinogradWeights.from_dense(u, mask, points=weights.points)


def expected(problem):
    return spec.winograd_conv(
        problem.x, problem.u, problem.matrices, problem.bias, **problem.options
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel", ["1_dense", "2_sparse"])
@settings(max_examples=40)
@given(problem=problems(), workspace=st.sampled_from([1, 2**26]))
def test_kernels_in_steps_are_the_formula(way, kernel, problem, workspace):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "WORKSPACE", workspace)
        answer = forward(way, problem, kernel=kernel)
    assert_close(answer, expected(problem), problem.m, problem.x.dtype)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40)
@given(problem=problems(transforms=F2), full=st.sampled_from([1, 10**6]))
def test_the_fused_kernel_is_the_formula(way, problem, full):
    """With the largest and the smallest tiles, and a slab of a few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_FULL", full)
        patch.setattr(winograd, "_SLAB", 1024)
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
    grad, weights = problem.grad(), problem.weights
    if way == "gpu":
        weights = on_gpu(weights)

    def backward(grad, x):
        return mf.winograd_conv_backward(grad, x, weights, **problem.options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "WORKSPACE", workspace)
        grad_x, grad_u = run(way, backward, grad, problem.x)
    expected_x, expected_u = spec.winograd_conv_backward(
        grad, problem.x, problem.u, problem.matrices, **problem.options
    )
    assert_close(grad_x, expected_x, problem.m, problem.x.dtype)
    assert_close(grad_u, expected_u * problem.weights.mask, problem.m, problem.x.dtype)
