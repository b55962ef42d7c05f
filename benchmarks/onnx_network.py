"""A network in ONNX Runtime: in float32, and with its static quantisation to int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import quantization

from mulfree_cupy.inference import Network
from mulfree_cupy.inference.onnx import to_onnx

_QUANTISED = ["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool"]


def session(network: Network, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """From raw images to logits."""
    return _session(to_onnx(network).SerializeToString(), threads)


def quantised_session(
    network: Network, calibration: np.ndarray, threads: int
) -> Callable[[np.ndarray], np.ndarray]:
    """The same with weights of 8 bits a filter and activations of 8 bits a tensor."""

    class Images(quantization.CalibrationDataReader):
        left = iter([{"images": calibration.astype(np.float32)}])

        def get_next(self):
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, narrow = (Path(folder) / f"{name}.onnx" for name in "abc")
        plain.write_bytes(to_onnx(network).SerializeToString())
        quantization.shape_inference.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        options = {"per_channel": True, "op_types_to_quantize": _QUANTISED}
        quantization.quantize_static(prepared, narrow, Images(), **options)
        return _session(narrow.read_bytes(), threads)


def _session(model: bytes, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    running = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: running.run(None, {"images": images.astype(np.float32)})[0]
