// 1_naive: one thread per output, every operand straight from global memory
//
// Fixes: nothing; the formula as written
// Cost: 2 L global loads and 2 L adds per output, L the length of the sum
//
// out[z, m, p] = -sum over l of |a[z % a_batch, m, l] - b[z, l, p]|: one product for each z of the
// grid. a has the filters of a_batch groups, (a_batch, M, L), b the columns of each group of each
// image, (gridDim.z, L, P), and out is (gridDim.z, M, P). A difference and the accumulation
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
