"""The papers' networks, each defined once for all kinds of convolution."""

from mulfree_cupy.models.lenet import LeNet
from mulfree_cupy.models.registry import MODELS, MOST, RESNET20, build, default_shape
from mulfree_cupy.models.resnet import CifarResNet, ImageNetResNet
from mulfree_cupy.models.shift_tables import convert, permutation
from mulfree_cupy.models.shiftnet import ShiftNet
from mulfree_cupy.models.shiftresnet import ShiftResNet
from mulfree_cupy.models.vgg import VGGSmall
from mulfree_cupy.models.winograd import (
    FORMS,
    ConvPoolCNN,
    VGGNagadomi,
    WinogradCifarResNet,
    WinogradResNet,
)

__all__ = [
    "FORMS",
    "MODELS",
    "MOST",
    "RESNET20",
    "CifarResNet",
    "ConvPoolCNN",
    "ImageNetResNet",
    "LeNet",
    "ShiftNet",
    "ShiftResNet",
    "VGGNagadomi",
    "VGGSmall",
    "WinogradCifarResNet",
    "WinogradResNet",
    "build",
    "convert",
    "default_shape",
    "permutation",
]
