// The kernel table of one instruction set. Each kernels_<isa>.cpp defines MULFREE_ISA and includes this; it is
// compiled with the flags of its instruction set.
#pragma once

#include "ops/adder.hpp"
#include "ops/adder_i8_i16.hpp"
#include "ops/adder_grad_x.hpp"
#include "ops/batch_norm.hpp"
#include "ops/conv.hpp"
#include "ops/move_planes.hpp"
#include "ops/peak.hpp"
#include "ops/pool.hpp"
#if !defined(__AVX512F__)  // in kernels_avx512_popcount.cpp, for processors with VPOPCNTDQ; others use AVX2's
#include "ops/low_bits.hpp"
#define MULFREE_POPCOUNT_KERNELS MULFREE_ISA::popcount_kernels()
#else
#define MULFREE_POPCOUNT_KERNELS {}
#endif
#include "ops/winograd/cost.hpp"
#include "ops/winograd/gradients.hpp"

#define MULFREE_TEXT_(x) #x
#define MULFREE_TEXT(x) MULFREE_TEXT_(x)
#define MULFREE_JOIN_(a, b) a##b
#define MULFREE_JOIN(a, b) MULFREE_JOIN_(a, b)

namespace mulfree {

extern const Kernels MULFREE_JOIN(MULFREE_ISA, _kernels) = {
    MULFREE_TEXT(MULFREE_ISA),
    {MULFREE_ISA::kernel_row<float, MULFREE_ISA::Conv<float>>(), MULFREE_ISA::kernel_row<float, MULFREE_ISA::Adder<float>>(),
     MULFREE_ISA::adder_grad_x<float>,
     MULFREE_ISA::grad_w<float>, MULFREE_ISA::batch_norm_moments<float>, MULFREE_ISA::batch_norm<float>,
     MULFREE_ISA::batch_norm_sums<float>, MULFREE_ISA::batch_norm_grad<float>,
     MULFREE_ISA::max_pool<float>, MULFREE_ISA::avg_pool<float>, MULFREE_ISA::plane_means<float, float>,
     MULFREE_ISA::magnitude_means<float>,
     MULFREE_ISA::winograd_conv<float>, MULFREE_ISA::winograd_grad_x<float>, MULFREE_ISA::winograd_grad_u<float>,
     MULFREE_ISA::winograd_seconds<float>},
    {MULFREE_ISA::kernel_row<double, MULFREE_ISA::Conv<double>>(), MULFREE_ISA::kernel_row<double, MULFREE_ISA::Adder<double>>(),
     MULFREE_ISA::adder_grad_x<double>,
     MULFREE_ISA::grad_w<double>, MULFREE_ISA::batch_norm_moments<double>, MULFREE_ISA::batch_norm<double>,
     MULFREE_ISA::batch_norm_sums<double>, MULFREE_ISA::batch_norm_grad<double>,
     MULFREE_ISA::max_pool<double>, MULFREE_ISA::avg_pool<double>, MULFREE_ISA::plane_means<double, double>,
     MULFREE_ISA::magnitude_means<double>,
     MULFREE_ISA::winograd_conv<double>, MULFREE_ISA::winograd_grad_x<double>, MULFREE_ISA::winograd_grad_u<double>,
     MULFREE_ISA::winograd_seconds<double>},
    MULFREE_ISA::AdderBytes::row(), MULFREE_ISA::AdderSignedBytes::row(), MULFREE_ISA::AdderShorts::row(),
    MULFREE_ISA::move_planes,
    MULFREE_ISA::max_pool<std::uint8_t>, MULFREE_ISA::plane_means<std::uint8_t, float>,
    MULFREE_ISA::peak,
    MULFREE_POPCOUNT_KERNELS,
    &MULFREE_JOIN(MULFREE_ISA, _distances),
};

}  // namespace mulfree
