"""The papers' networks, each from one definition for the adder form and its ordinary twin."""

from mulfree_cupy.models.lenet import LeNet
from mulfree_cupy.models.registry import MODELS, build, default_shape
from mulfree_cupy.models.resnet import CifarResNet, ImageNetResNet
from mulfree_cupy.models.vgg import VGGSmall

__all__ = ["MODELS", "CifarResNet", "ImageNetResNet", "LeNet", "VGGSmall", "build", "default_shape"]
