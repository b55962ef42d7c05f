"""Launchers of cuda/shift: none yet."""

SHIFT_KERNELS: tuple[str, ...] = ()
SHIFT_CONV_KERNELS: tuple[str, ...] = ()


def shift(device, *arguments, **options) -> None:
    raise NotImplementedError("the shift operations have no CUDA kernels yet")


shift_backward = shift_conv = shift_conv_backward = shift
shift_adder_conv = shift_adder_conv_backward = shift
