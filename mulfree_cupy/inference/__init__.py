"""A trained network as one fast function, with NumPy only.

`load` reads one from a file into a `Predictor`. A `Network` is plain data, a list of layers; these
are fused into steps, which are bound to memory that is planned once.
"""

from mulfree_cupy.inference.file import load, read, save_npz, save_safetensors
from mulfree_cupy.inference.network import Layer, Network
from mulfree_cupy.inference.onnx import save_onnx, to_onnx
from mulfree_cupy.inference.plan import Plan
from mulfree_cupy.inference.predictor import Predictor
from mulfree_cupy.inference.profile import profile

__all__ = [
    "Layer",
    "Network",
    "Plan",
    "Predictor",
    "load",
    "profile",
    "read",
    "save_npz",
    "save_onnx",
    "save_safetensors",
    "to_onnx",
]
