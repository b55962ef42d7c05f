"""A trained network as an ONNX model: `model` writes it, `layers` what each layer becomes."""

from mulfree_cupy.inference.onnx.model import IMAGES, LOGITS, OPSET, save_onnx, to_onnx

__all__ = ["IMAGES", "LOGITS", "OPSET", "save_onnx", "to_onnx"]
