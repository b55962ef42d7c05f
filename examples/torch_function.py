"""PyTorch: the adder convolution as a function of tensors, with AdderNet's gradients.

A tensor on the CPU is taken by DLPack, without a copy; so is one on a GPU where CuPy is installed.
What comes back is a NumPy or CuPy array, which `torch.from_dlpack` takes as it is. Run it as

    python examples/torch_function.py
"""

import torch

import mulfree_cupy as mf


class AdderConv(torch.autograd.Function):
    @staticmethod
    def forward(context, x, w, padding):
        context.save_for_backward(x, w)
        context.padding = padding
        return torch.from_dlpack(mf.adder_conv(x.detach(), w.detach(), padding=padding))

    @staticmethod
    def backward(context, grad):
        x, w = context.saved_tensors
        grads = mf.adder_conv_backward(grad, x.detach(), w.detach(), padding=context.padding)
        return *map(torch.from_dlpack, grads), None


def main():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    w = torch.randn(5, 3, 3, 3, requires_grad=True)
    y = AdderConv.apply(x, w, 1)
    windows = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2)
    want = -torch.cdist(windows, w.detach().reshape(5, -1), p=1).transpose(1, 2).reshape(y.shape)
    torch.testing.assert_close(y.detach(), want)
    print("minus torch.cdist of the unfolded images: ok")

    optimiser = torch.optim.Adam([w], lr=0.1)
    target = AdderConv.apply(x, torch.randn(5, 3, 3, 3), 1)
    for step in range(101):
        loss = torch.nn.functional.mse_loss(AdderConv.apply(x, w, 1), target)
        if step % 50 == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


if __name__ == "__main__":
    main()
