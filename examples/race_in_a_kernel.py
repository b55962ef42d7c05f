"""The emulator as a checker of CUDA: a sum over a block, with a barrier forgotten and with it.

Without a GPU, the text of a kernel runs on NumPy arrays behind CuPy's own call. Every access is
checked: the missing barrier is found whether or not the answer comes out right. Run it as

    python examples/race_in_a_kernel.py
"""

import numpy as np

from mulfree_cupy import emulated_cuda, emulator

KERNEL = r"""
extern "C" __global__ void sum(const float* x, float* y) {
  __shared__ float s[256];
  const int t = threadIdx.x;
  s[t] = x[t];
  for (int half = 128; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) s[t] += s[t + half];
  }
  if (t == 0) *y = s[0];
}
"""


def main():
    x = np.arange(256, dtype=np.float32)
    for title, code in {
        "without the barrier": KERNEL.replace("    __syncthreads();\n", ""),
        "with it": KERNEL,
    }.items():
        y = np.zeros(1, np.float32)
        with emulated_cuda(check="collect", trace=True) as report:
            emulator.RawKernel(code, "sum")((1,), (256,), (x, y))
        print(f"{title}: {y[0]:g}, where the sum is {x.sum():g}")
        for finding in report.findings:
            print(f"  {finding}")
        counts = report.counts["sum"]
        print(
            f"  {counts.global_loads} global loads, {counts.shared_loads} shared loads, "
            f"{counts.bank_conflicts} bank conflicts, {counts.barriers} barriers\n"
        )


if __name__ == "__main__":
    main()
