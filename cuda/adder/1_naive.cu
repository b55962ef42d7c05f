// 1_naive: one thread per output, every operand straight from global memory
//
// Fixes: nothing; the formula as written
// Cost: 2 L global loads and 2 L adds per output, L the length of the sum
//
// out[m, p] = -sum over l of |a[m, l] - b[l, p]|, for a batch of b: image z of the batch reads a[z
// % a_batch], so a group of channels meets its group of filters. A difference and the accumulation
// of its absolute value are two FADD: the absolute value is a free operand modifier. Everything
// else in the loop is overhead, and here that is most of it.
#ifndef T
#define T float
#endif

extern "C" __global__ void adder_matmul(const T* a, const T* b, T* out, int M, int L, int P,
                                        int a_batch) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  const int m = blockIdx.y * blockDim.y + threadIdx.y;
  if (m >= M || p >= P) return;
  a += ((long long)(blockIdx.z % a_batch) * M + m) * L;
  b += (long long)blockIdx.z * L * P + p;

  T sum = 0;
  for (int l = 0; l < L; ++l) sum += fabs(a[l] - b[(long long)l * P]);
  out[((long long)blockIdx.z * M + m) * P + p] = -sum;
}
