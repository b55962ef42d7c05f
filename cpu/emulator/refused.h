// What the emulator does not run, declared so that a text with it compiles. Nothing here is defined:
// the linker says whether the kernel uses it, and on which line (compiler.py).
#pragma once

extern "C" {
void mulfree_refused_ptx();      // in the place of an asm statement that ptx.py does not know
int mulfree_refused_launch(...);  // of a <<<grid, block>>>
}

using cudaTextureObject_t = unsigned long long;
using cudaSurfaceObject_t = unsigned long long;
#define MULFREE_TEXTURES(name)                       \
    template <class T>                               \
    T name(cudaTextureObject_t, ...);                \
    template <class T>                               \
    void name(T *, cudaTextureObject_t, ...);
MULFREE_TEXTURES(tex1D)
MULFREE_TEXTURES(tex2D)
MULFREE_TEXTURES(tex3D)
MULFREE_TEXTURES(tex1Dfetch)
MULFREE_TEXTURES(tex2DLod)
MULFREE_TEXTURES(surf1Dread)
MULFREE_TEXTURES(surf2Dread)
MULFREE_TEXTURES(surf3Dread)
#undef MULFREE_TEXTURES

namespace nvcuda {
namespace wmma {
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
    fragment();
    static constexpr int num_elements = 16;
    T x[num_elements];
};
template <class Fragment, class T>
void load_matrix_sync(Fragment &, const T *, unsigned, layout_t = mem_row_major);
template <class T, class Fragment>
void store_matrix_sync(T *, const Fragment &, unsigned, layout_t);
template <class Fragment, class T>
void fill_fragment(Fragment &, T);
template <class D, class A, class B, class C>
void mma_sync(D &, const A &, const B &, const C &, bool = false);
float __float_to_tf32(float);
}  // namespace wmma
}  // namespace nvcuda

namespace cooperative_groups {
struct cluster_group {
    void sync() const;
    unsigned thread_rank() const, num_threads() const, size() const, block_rank() const, num_blocks() const;
    template <class T>
    T *map_shared_rank(T *, unsigned) const;
};
cluster_group this_cluster();
}  // namespace cooperative_groups
