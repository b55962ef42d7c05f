"""ONNX export of a trained network: `model` writes the file, `layers` converts each layer."""

from mulfree_cupy.inference.onnx.model import IMAGES, LOGITS, OPSET, save_onnx, to_onnx

__all__ = ["IMAGES", "LOGITS", "OPSET", "save_onnx", "to_onnx"]
