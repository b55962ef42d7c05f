// Weights in the layout of the micro-kernel, packed once for any number of calls: for every block of the reduction
// and every tile of MR filters, [term][plane][filter], zero-padded.
#pragma once

#include "operation.hpp"
#include "source_im2col.hpp"
#include "workspace.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index BLOCK_ROWS = 160;      // packed rows, at most: 160 rows of three 64-byte vectors are 30 KiB
constexpr index BLOCK_POSITIONS = 32;  // kernel positions per block; bounds the table of spans

// The reduction split into blocks: chunks of kernel positions, and in each, chunks of channels, keeping the planes of
// a term together.
struct Blocking {
    index channels, positions, channel_chunk, position_chunk;

    __attribute__((noinline)) Blocking(index channels_, index positions_, index most_terms = BLOCK_ROWS,
                                       index planes = 1)
        : channels(channels_), positions(positions_) {
        const index most_positions = smaller(BLOCK_POSITIONS, most_terms), sets = channels / planes;
        position_chunk = ceil_div(larger(positions, 1), ceil_div(larger(positions, 1), most_positions));
        const index limit = larger(1, most_terms / position_chunk);
        channel_chunk = ceil_div(sets, ceil_div(sets, limit)) * planes;
    }
    index channel_chunks() const { return ceil_div(channels, channel_chunk); }
    index count() const { return ceil_div(positions, position_chunk) * channel_chunks(); }
    index rows() const { return channel_chunk * position_chunk; }
    Block operator[](index b) const {
        const index c = b % channel_chunks() * channel_chunk;
        const index k = b / channel_chunks() * position_chunk;
        return {c, smaller(channel_chunk, channels - c), k, smaller(position_chunk, positions - k)};
    }
};

// A convolution's weights. Alternatives are functions of the same arguments.
template <class T>
struct Weights {
    const Convolution<T, T>& p;

    T operator()(index group, index filter, index channel, index i, index j) const {
        return p.w[group * p.w_group + filter * p.w_filter + channel * p.w_channel +
                   (p.height.kernel + i * p.height.kernel_step) * p.w_row +
                   (p.width.kernel + j * p.width.kernel_step) * p.w_column];
    }
};

// The weights of one tile of filters and one block.
template <class Op, class Y, class Weight, class X = typename Op::Operand>
inline void pack_block(const Convolution<X, Y>& p, const Weight& weight, index group, index filter,
                       const Block& block, X* packed) {
    constexpr int MR = Op::MR;
    const index real = smaller(MR, p.filters - filter);
    for (index t = 0; t < block.positions; ++t) {
        const index i = (block.position + t) / p.width.taps, j = (block.position + t) % p.width.taps;
        for (index c = 0; c < block.channels; ++c) {
            const index set = c / Op::PLANES, plane = c % Op::PLANES;
            X* to = packed + ((set * block.positions + t) * Op::PLANES + plane) * MR;
            for (index f = 0; f < MR; ++f)
                to[f] = f < real ? Op::packed_weight(weight(group, filter + f, block.channel + c, i, j), f) : X(0);
        }
    }
}

// How an operation's reduction is split.
template <class Op, class X, class Y>
inline Blocking blocking_of(const Convolution<X, Y>& p) {
    static_assert(Op::MOST_TERMS * Op::PLANES <= BLOCK_ROWS, "a block is packed before it is summed");
    return {p.channels, p.height.taps * p.width.taps, Op::MOST_TERMS, Op::PLANES};
}

// Locations of the packed weights and of the operation's constants of all filters. Without room for tiles, threads
// pack them on the fly.
template <class Op>
class PackedWeights {
    using X = typename Op::Operand;
    using Constant = typename Op::Constant;
    static constexpr int MR = Op::MR;

public:
    template <class Y>
    PackedWeights(const Convolution<X, Y>& p, const Blocking& blocking, bool with_tiles, Carver& memory)
        : blocking_(blocking), filters_(p.filters), tiles_(ceil_div(p.filters, MR)) {
        constants_ = Op::HAS_CONSTANT ? memory.take<Constant>(p.groups * p.filters) : nullptr;
        weights_ = with_tiles ? memory.take<X>(at(p.groups, 0, 0)) : nullptr;
    }

    index tiles() const { return tiles_; }
    bool has_tiles() const { return weights_; }
    const X* tile(index group, index block, index tile) const { return weights_ + at(group, block, tile); }
    Constant constant(index group, index filter) const {
        return Op::HAS_CONSTANT ? constants_[group * filters_ + filter] : Constant{};
    }

    template <class Y, class Weight>
    void pack(const Convolution<X, Y>& p, const Weight& weight, index group, index tile) const {
        if (!weights_ && !Op::HAS_CONSTANT) return;
        X own[MR * BLOCK_ROWS];
        Constant constants[MR] = {};
        for (index b = 0; b < blocking_.count(); ++b) {
            const Block block = blocking_[b];
            X* to = weights_ ? weights_ + at(group, b, tile) : own;
            pack_block<Op>(p, weight, group, tile * MR, block, to);
            for (index i = 0; Op::HAS_CONSTANT && i < block.taps() * MR; ++i)
                if (i / MR % Op::PLANES == 0) Op::add_weight(constants[i % MR], to[i]);
        }
        for (index f = tile * MR; Op::HAS_CONSTANT && f < smaller((tile + 1) * MR, filters_); ++f)
            constants_[group * filters_ + f] = constants[f % MR];
    }

private:
    const Blocking blocking_;
    const index filters_, tiles_;
    Constant* constants_;
    X* weights_;

    // In the order in which a packed tile of pixels uses them.
    index at(index group, index block, index tile) const {
        return ((group * blocking_.count() + block) * tiles_ + tile) * blocking_.rows() * MR;
    }
};

}  // namespace mulfree::MULFREE_ISA
