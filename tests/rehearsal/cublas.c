// The products that CuPy asks of cuBLAS, in the host's memory, summed in float64; column-major.
// Whatever else its module is linked against succeeds and does nothing: a file of stubs is made.
// So do products by tables of pointers, which a kernel would have written.
#include "cuda.h"

#include <library_types.h>
#include <stdlib.h>

enum { FAILED = 13, COMPUTE_16F = 64, COMPUTE_64F = 70 };
typedef struct {
  void* stream;
} Handle;

int cublasCreate_v2(Handle** handle) { return *handle = calloc(1, sizeof(Handle)), 0; }
int cublasDestroy_v2(Handle* handle) { return free(handle), 0; }
int cublasGetVersion_v2(Handle* handle, int* version) { return *version = 130000, 0; }
int cublasSetStream_v2(Handle* handle, void* stream) { return handle->stream = stream, 0; }
int cublasGetStream_v2(Handle* handle, void** stream) { return *stream = handle->stream, 0; }

// One kernel's worth of log and refusals; false if it may not run.
static int may_run(const Handle* handle, const void* a, const void* b, const void* c) {
  int captured, error = work("cublas", handle->stream, &captured);
  const void* arrays[] = {a, b, c};
  for (int i = 0; i < 3 && !error; i++)
    if (of_another_device(arrays[i])) error = refuse("cublas", FAILED, "memory of another device");
  if (!error) note("launch", ", \"name\": \"cublas\"%s", as_node(captured));
  return !error;
}

static double get(const void* array, long at, int type) {
  if (type == CUDA_R_16F) return ((const _Float16*)array)[at];
  return type == CUDA_R_32F ? ((const float*)array)[at] : ((const double*)array)[at];
}
static void set(void* array, long at, int type, double value) {
  if (type == CUDA_R_16F) ((_Float16*)array)[at] = value;
  else if (type == CUDA_R_32F) ((float*)array)[at] = value;
  else ((double*)array)[at] = value;
}
static void multiply(int ta, int tb, int m, int n, int k, double alpha, const void* a, int a_type,
                    int lda, const void* b, int b_type, int ldb, double beta, void* c, int c_type,
                    int ldc) {
  for (int j = 0; j < n; j++)
    for (int i = 0; i < m; i++) {
      double sum = 0;
      for (int l = 0; l < k; l++)
        sum += get(a, ta ? l + (long)i * lda : i + (long)l * lda, a_type) *
               get(b, tb ? j + (long)l * ldb : l + (long)j * ldb, b_type);
      long at = i + (long)j * ldc;
      set(c, at, c_type, alpha * sum + (beta ? beta * get(c, at, c_type) : 0));
    }
}

#define PRODUCTS(letter, T, type)                                                                 \
  int cublas##letter##gemm_v2(Handle* h, int ta, int tb, int m, int n, int k, const T* alpha,     \
                              const T* a, int lda, const T* b, int ldb, const T* beta, T* c,      \
                              int ldc) {                                                          \
    if (!may_run(h, a, b, c)) return FAILED;                                                      \
    multiply(ta, tb, m, n, k, *alpha, a, type, lda, b, type, ldb, *beta, c, type, ldc);           \
    return 0;                                                                                     \
  }                                                                                               \
  int cublas##letter##gemmStridedBatched(                                                         \
      Handle* h, int ta, int tb, int m, int n, int k, const T* alpha, const T* a, int lda,        \
      long long da, const T* b, int ldb, long long db, const T* beta, T* c, int ldc,              \
      long long dc, int count) {                                                                  \
    if (!may_run(h, a, b, c)) return FAILED;                                                      \
    for (int i = 0; i < count; i++)                                                               \
      multiply(ta, tb, m, n, k, *alpha, a + i * da, type, lda, b + i * db, type, ldb, *beta,      \
               c + i * dc, type, ldc);                                                            \
    return 0;                                                                                     \
  }                                                                                               \
  int cublas##letter##gemv_v2(Handle* h, int ta, int m, int n, const T* alpha, const T* a,        \
                              int lda, const T* x, int dx, const T* beta, T* y, int dy) {         \
    if (!may_run(h, a, x, y)) return FAILED;                                                      \
    multiply(0, !ta, 1, ta ? n : m, ta ? m : n, *alpha, x, type, dx, a, type, lda, *beta, y,      \
             type, dy);                                                                           \
    return 0;                                                                                     \
  }                                                                                               \
  int cublas##letter##dot_v2(Handle* h, int n, const T* x, int dx, const T* y, int dy, T* sum) {  \
    if (!may_run(h, x, y, sum)) return FAILED;                                                    \
    multiply(0, 1, 1, 1, n, 1, x, type, dx, y, type, dy, 0, sum, type, 1);                        \
    return 0;                                                                                     \
  }

PRODUCTS(S, float, CUDA_R_32F)
PRODUCTS(D, double, CUDA_R_64F)

static double number(const void* value, int compute) {
  return get(value, 0, compute == COMPUTE_64F   ? CUDA_R_64F
                       : compute == COMPUTE_16F ? CUDA_R_16F
                                                : CUDA_R_32F);
}
int cublasGemmStridedBatchedEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha,
                               const char* a, int a_type, int lda, long long da, const char* b,
                               int b_type, int ldb, long long db, const void* beta, char* c,
                               int c_type, int ldc, long long dc, int count, int compute,
                               int algorithm) {
  static const int bytes[] = {[CUDA_R_32F] = 4, [CUDA_R_64F] = 8, [CUDA_R_16F] = 2};
  if (a_type > CUDA_R_16F || b_type > CUDA_R_16F || c_type > CUDA_R_16F) return 15;  // unsupported
  if (!may_run(h, a, b, c)) return FAILED;
  for (int i = 0; i < count; i++)
    multiply(ta, tb, m, n, k, number(alpha, compute), a + i * da * bytes[a_type], a_type, lda,
             b + i * db * bytes[b_type], b_type, ldb, number(beta, compute),
             c + i * dc * bytes[c_type], c_type, ldc);
  return 0;
}
int cublasGemmEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a,
                 int a_type, int lda, const void* b, int b_type, int ldb, const void* beta,
                 void* c, int c_type, int ldc, int compute, int algorithm) {
  return cublasGemmStridedBatchedEx(h, ta, tb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb,
                                    0, beta, c, c_type, ldc, 0, 1, compute, algorithm);
}
