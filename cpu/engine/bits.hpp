// Numbers as codes of a few bits, as many as fit a word, so that one instruction processes many terms.
#pragma once

#include "word_convolution.hpp"

namespace mulfree::MULFREE_ISA {

// word | bit in the lanes of a mask, the result of a comparison.
template <class W, class Mask>
inline Vec<W> set_bit(Vec<W> word, Mask mask, Vec<W> bit) {
#if defined(__AVX512F__)
    if constexpr (sizeof(W) == 4) return (Vec<W>)_mm512_mask_or_epi32((__m512i)word, mask, (__m512i)word, (__m512i)bit);
    else return (Vec<W>)_mm512_mask_or_epi64((__m512i)word, mask, (__m512i)word, (__m512i)bit);
#else
    return word | ((Vec<W>)mask & bit);
#endif
}

// The code of a number: WIDTH bits in each of PLANES words that hold NUMBERS numbers. set(word, x, plane, field) sets
// the codes of a vector of numbers in a vector of words, at the bits of `field`.

// The sign of T: one bit, set if it is not negative.
template <class T>
struct IntegersOf {
    using Word = std::uint32_t;
    using Whole = std::int32_t;
};
template <>
struct IntegersOf<double> {
    using Word = std::uint64_t;
    using Whole = std::int64_t;
};
template <class T>
struct Sign : IntegersOf<T> {
    using Element = T;
    using Word = typename IntegersOf<T>::Word;
    static constexpr index PLANES = 1, WIDTH = 1, NUMBERS = 8 * sizeof(Word);

    static Vec<T> read(const T* p) { return load(p); }
    static Vec<T> read_first(const T* p, index lanes) { return load_masked(p, bits(0, lanes)); }
    static Vec<Word> set(Vec<Word> word, Vec<T> x, index, Vec<Word> field) {
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4)
            return set_bit<Word>(word, _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GE_OQ), field);
        else return set_bit<Word>(word, _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_GE_OQ), field);
#else
        return set_bit<Word>(word, x >= Vec<T>{}, field);
#endif
    }
};

// The Gray code x ^ x >> 1 of a byte x, at most 2^BITS - 1: successive numbers differ in one bit.
template <int BITS>
struct GrayCode {
    static_assert(BITS == 1 || BITS == 2, "each plane has its ones in one range");
    using Element = std::uint8_t;
    using Word = std::uint32_t;
    static constexpr index PLANES = BITS, WIDTH = 1, NUMBERS = 8 * sizeof(Word);
    using Numbers = Vec<std::int32_t>;

    static constexpr std::int32_t first(index plane) { return plane + 1; }
    static constexpr std::int32_t last(index plane) { return plane + 1 < BITS ? 2 : 255; }
    static Numbers read(const std::uint8_t* p) { return load_bytes<LANES<std::int32_t>>(p); }
    static Numbers read_first(const std::uint8_t* p, index lanes) {
        std::uint8_t byte[LANES<std::int32_t>] = {};
        for (index l = 0; l < lanes; ++l) byte[l] = p[l];
        return read(byte);
    }
    static Vec<Word> set(Vec<Word> word, Numbers x, index plane, Vec<Word> field) {
        const Numbers from = broadcast(first(plane));
#if defined(__AVX512F__)
        const Numbers reach = broadcast(last(plane) - first(plane));
        return set_bit<Word>(word, _mm512_cmple_epu32_mask((__m512i)(x - from), (__m512i)reach), field);
#else
        return set_bit<Word>(word, (x >= from) & (x <= broadcast(last(plane))), field);
#endif
    }
};

// The codes of a few successive channels of a pixel, in one word plane.
template <class Code, class W = typename Code::Word>
class SomeBits {
    using Element = typename Code::Element;

public:
    static constexpr index MOST = smaller(4, Code::NUMBERS);

    // The first channel, x, is number k of a word.
    SomeBits(const Element* x, index channel_stride, index count, index plane, index k) : plane_(plane) {
        for (index b = 0; b < MOST; ++b) {  // after the last one, `field` is empty
            channel_[b] = x + (b < count ? b * channel_stride : 0);
            constexpr W ONES = (W(1) << Code::WIDTH) - 1;
            field_[b] = broadcast(W(b < count ? ONES << (k + b) * Code::WIDTH : 0));
        }
    }

    // Adds the codes of the pixels read(first of a channel) to the word.
    template <class Read>
    __attribute__((always_inline)) Vec<W> set(Vec<W> word, Read read) const {
#pragma GCC unroll 4
        for (index b = 0; b < MOST; ++b) word = Code::set(word, read(channel_[b]), plane_, field_[b]);
        return word;
    }

private:
    const index plane_;
    const Element* channel_[MOST];
    Vec<W> field_[MOST];
};

// to[i] = the codes of `count` channels of pixel i in a plane, the first in the lowest bits. Pixels are `stride`
// apart. A few codes are set in many words before the next, so that channels are read in long runs.
template <class Code, class W = typename Code::Word>
inline void pack_bits(const typename Code::Element* x, index channel_stride, index stride, index count, index plane,
                      index pixels, W* to) {
    using Bits = SomeBits<Code>;
    constexpr index PIECE = 1024;  // words, which stay in the L1 cache
    const auto some_bits = [&](index k) {
        return Bits(x + k * channel_stride, channel_stride, smaller(Bits::MOST, count - k), plane, k);
    };
    for (; pixels > 0; pixels -= PIECE, x += PIECE * stride, to += PIECE) {
        const index end = smaller(pixels, PIECE), whole = stride == 1 && end >= LANES<W> ? end : 0;
        for (index k = 0; whole && k < count; k += Bits::MOST) {
            const Bits some = some_bits(k);
            const auto pack = [&](index i) __attribute__((always_inline)) {
                store(to + i, some.set(k ? load(to + i) : Vec<W>{}, [=](const auto* c) { return Code::read(c + i); }));
            };
            for (index i = 0; i + LANES<W> <= whole; i += LANES<W>) pack(i);
            if (whole % LANES<W>) pack(whole - LANES<W>);  // overlaps words that have these bits already
        }
        for (index i = whole; i < end; i += LANES<W>) {
            const index lanes = smaller(LANES<W>, end - i);
            Vec<W> word{};
            for (index k = 0; k < count; k += Bits::MOST)
                word = some_bits(k).set(word, [=](const auto* channel) {
                    if (stride == 1) return Code::read_first(channel + i, lanes);
                    typename Code::Element lane[LANES<W>] = {};
                    for (index l = 0; l < lanes; ++l) lane[l] = channel[(i + l) * stride];
                    return Code::read(lane);
                });
            __builtin_memcpy(to + i, &word, std::size_t(lanes) * sizeof(W));
        }
    }
}

// Words of codes: in each plane those of as many successive channels as fit a word, or with few channels those of a
// few adjacent columns of the kernel. Outside x or the kernel no bit is set.
template <class Code, class Output_>
struct BitWords {
    using Element = typename Code::Element;
    using Output = Output_;
    using Word = typename Code::Word;
    static constexpr index PLANES = Code::PLANES;

    const WordShape shape;  // per plane

    explicit BitWords(const Convolution<Element, Output>& p)
        : shape(p.channels, p.width.taps, Code::NUMBERS), filters_(p.groups * p.filters),
          taps_(p.height.taps * p.width.taps), blocks_(shape.word_channels() / shape.starts),
          block_codes_((AT_ONCE ? shape.across : PLANES) * taps_) {}

    index word_channels() const { return shape.word_channels() * PLANES; }
    index taps() const { return shape.taps(); }
    bool meets_padding() const { return shape.along > 1; }

    // The codes of the weights: [filter][block of channels][plane][tap]. A filter's channels, and their taps, are
    // contiguous.
    index prepared_bytes() const { return filters_ * blocks_ * block_codes_ * index(sizeof(Word)); }
    void prepare(const Convolution<Element, Output>& p, void* memory) {
        codes_ = static_cast<Word*>(memory);
        for_each_unit(filters_, MOVE * double(filters_ * p.channels * taps_), [&](index f) {
            const Element* w = p.w + f / p.filters * p.w_group + f % p.filters * p.w_filter;
            const index whole = AT_ONCE ? p.channels / shape.across : 0;
            if (whole)
                pack_bits<Code>(w, p.w_channel, 1, shape.across, 0, (whole - 1) * block_codes_ + taps_, codes_of(f, 0));
            for (index b = whole; b < blocks_; ++b)
                for (index plane = 0; plane < PLANES; ++plane)
                    pack_bits<Code>(w + b * shape.across * p.w_channel, p.w_channel, 1, count_of(b), plane, taps_,
                                    codes_of(f, b, plane));
        });
    }
    // sums[filter][tap] = the number of weights whose bit is set minus those whose is not.
    template <class Sum>
    void add_up(Sum* sums) const {
        static_assert(PLANES * Code::WIDTH == 1);
        for (index f = 0; f < filters_; ++f)
            for (index b = 0; b < blocks_; ++b) {
                const Word* codes = codes_of(f, b);
                for (index t = 0; t < taps_; ++t) {
                    const Sum difference = 2 * __builtin_popcountll(codes[t]) - count_of(b);
                    sums[f * taps_ + t] = (b ? sums[f * taps_ + t] : 0) + difference;
                }
            }
    }
    Word weight(const Convolution<Element, Output>& p, index group, index filter, index word, index i, index tap) const {
        const index f = group * p.filters + filter, plane = word % PLANES, first = word / PLANES;
        const index block = shape.starts == 1 ? first : first / shape.starts;  // usually without a division
        const Word* codes = codes_of(f, block, plane) + i * p.width.taps + shape.column(first) + tap;
        Word bits = 0;
        for (index q = 0; q < columns_of(first); ++q) bits |= codes[q] << q * shape.across * Code::WIDTH;
        return bits;
    }

    // The source of a slice as words: [image][group][word channel][row][column].
    void fill(const Convolution<Element, Output>& p, index image, index images, const SourceAxis& h,
              const SourceAxis& w, Word* words) const {
        const index starts = shape.starts, units = images * p.groups * blocks_, area = h.size * w.size;
        // The codes needed by windows are packed in the layout of x, several rows at a time if contiguous; if these
        // are not the words already, words are assembled from them row by row.
        const index met = (w.size - 1) * w.every + 1 + (shape.along == 1 ? 0 : (shape.columns - 1) * p.width.tap_step);
        const index from = larger(0, w.from), end = smaller(p.width.size, w.from + met);
        const index inside = w.size ? larger(0, end - from) : 0;
        const bool dense = h.every == 1 && p.x.row == p.width.size * p.x.column && 2 * inside > p.width.size;
        const index first = dense ? 0 : from;
        const index vectors = smaller(round_up(inside, LANES<Word>), p.width.size - first);  // whole if x is long enough
        const index width = dense ? p.width.size : larger(inside, vectors);
        const bool direct = shape.along == 1 && w.every == 1 && width == w.size;
        const index at_once = !dense ? 1 : direct ? h.size : larger(1, smaller(h.size, 2048 / width));
        const index scratch = direct ? 0 : round_up(at_once * width * index(sizeof(Word)), 64);
        Team team(threads_for(units, MOVE * double(units * h.size * width) * double(shape.across * PLANES), scratch));
        Workspace workspace;
        workspace.allocate(team.size() * scratch);
        Units every_unit(units, ceil_div(units, 8 * team.size()));
        team.run([&](index thread) {
            auto* codes = reinterpret_cast<Word*>(workspace.data() + thread * scratch);
            every_unit.each([&](index unit) {
                const index block = unit % blocks_, group = unit / blocks_ % p.groups;
                const Element* x = p.x.data + (image + unit / (blocks_ * p.groups)) * p.x.batch +
                                   (group * p.channels + block * shape.across) * p.x.channel + h.from * p.x.row +
                                   first * p.x.column;
                Word* to = words + unit * starts * PLANES * area;
                for (index r = 0; r < h.size; r += at_once, x += at_once * h.every * p.x.row) {
                    const index some = smaller(at_once, h.size - r);
                    for (index plane = 0; plane < PLANES; ++plane) {
                        Word* row = to + plane * area + r * w.size;
                        pack_bits<Code>(x, p.x.channel, p.x.column, count_of(block), plane, some * width,
                                        direct ? row : codes);
                        for (index k = 0; !direct && k < some; ++k, row += w.size)
                            for (index s = 0; s < starts; ++s)
                                join(p.width, w, codes + k * width - first, s, row + s * PLANES * area);
                    }
                }
            });
        });
    }

private:
    // With few numbers per word, making words that begin at every channel is faster than making only the needed ones.
    static constexpr bool AT_ONCE = Code::NUMBERS <= 4;
    static_assert(!AT_ONCE || PLANES == 1);
    const index filters_, taps_, blocks_, block_codes_;  // codes per block
    Word* codes_ = nullptr;

    Word* codes_of(index filter, index block, index plane = 0) const {
        return codes_ + (filter * blocks_ + block) * block_codes_ + plane * taps_;
    }

    // The channels of a block,
    index count_of(index block) const { return smaller(shape.across, shape.channels - block * shape.across); }
    // and the columns of the kernel that a word stands for.
    index columns_of(index word) const {
        return shape.along == 1 ? 1 : smaller(shape.along, shape.columns - shape.column(word));
    }

    // The words s of a row, of the codes of all its places.
    void join(const Axis& a, const SourceAxis& w, const Word* codes, index s, Word* __restrict to) const {
        for (index q = 0; q < columns_of(s); ++q) {
            const index place = w.from + (shape.column(s) + q) * a.tap_step, shift = q * shape.across * Code::WIDTH;
            const index from = smaller(w.size, ceil_div(larger(0, -place), w.every));
            const index end = larger(from, smaller(w.size, ceil_div(larger(0, a.size - place), w.every)));
            for (index i = 0; q == 0 && i < from; ++i) to[i] = 0;
            for (index i = end; q == 0 && i < w.size; ++i) to[i] = 0;
            const auto add = [&](index every) __attribute__((always_inline)) {
                const Word* __restrict code = codes + place;
                if (q == 0) for (index i = from; i < end; ++i) to[i] = code[i * every];
                else for (index i = from; i < end; ++i) to[i] |= code[i * every] << shift;
            };
            if (w.every == 1) add(1);
            else if (w.every == 2) add(2);
            else add(w.every);
        }
    }
};

}  // namespace mulfree::MULFREE_ISA
