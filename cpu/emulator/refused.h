// Unsupported features, declared so that sources compile. Nothing here is defined: the linker reports whether the
// kernel uses it, and on which line (compiler.py).
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

namespace cooperative_groups {
struct cluster_group {
    void sync() const;
    unsigned thread_rank() const, num_threads() const, size() const, block_rank() const, num_blocks() const;
    template <class T>
    T *map_shared_rank(T *, unsigned) const;
};
cluster_group this_cluster();
}  // namespace cooperative_groups
