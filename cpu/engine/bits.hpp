// Numbers as bits, 32 or 64 of them in a word: an exclusive or and a population count sum up as many terms.
#pragma once

#include "word_convolution.hpp"

namespace mulfree::MULFREE_ISA {

// word | bit in the lanes of a mask, which is a comparison's answer.
template <class W, class Mask>
inline Vec<W> set_bit(Vec<W> word, Mask mask, Vec<W> bit) {
#if defined(__AVX512F__)
    if constexpr (sizeof(W) == 4) return (Vec<W>)_mm512_mask_or_epi32((__m512i)word, mask, (__m512i)word, (__m512i)bit);
    else return (Vec<W>)_mm512_mask_or_epi64((__m512i)word, mask, (__m512i)word, (__m512i)bit);
#else
    return word | ((Vec<W>)mask & bit);
#endif
}

// What bits a number becomes: LEVELS of them, bit t being is_set(number, t). A word of so many lanes is filled from
// a vector of as many numbers.

// Its sign: of T, one bit, set where it is not negative.
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
    static constexpr index LEVELS = 1;

    static bool is_set(T x, index) { return x >= 0; }
    static Vec<T> read(const T* p) { return load(p); }
    static Vec<T> read_first(const T* p, index lanes) { return load_masked(p, bits(0, lanes)); }
    static Vec<Word> set(Vec<Word> word, Vec<T> x, index, Vec<Word> bit) {
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4)
            return set_bit<Word>(word, _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GE_OQ), bit);
        else return set_bit<Word>(word, _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_GE_OQ), bit);
#else
        return set_bit<Word>(word, x >= Vec<T>{}, bit);
#endif
    }
};

// Its thermometer code: of a byte as many ones as its value, at most 2^BITS - 1.
template <int BITS>
struct Thermometer {
    using Element = std::uint8_t;
    using Word = std::uint32_t;
    static constexpr index LEVELS = (1 << BITS) - 1;
    using Numbers = Vec<std::int32_t>;

    static bool is_set(std::uint8_t x, index level) { return x > level; }
    static Numbers read(const std::uint8_t* p) { return load_bytes<LANES<std::int32_t>>(p); }
    static Numbers read_first(const std::uint8_t* p, index lanes) {
        std::uint8_t byte[LANES<std::int32_t>] = {};
        for (index l = 0; l < lanes; ++l) byte[l] = p[l];
        return read(byte);
    }
    static Vec<Word> set(Vec<Word> word, Numbers x, index level, Vec<Word> bit) {
        const Numbers limit = broadcast(std::int32_t(level));
#if defined(__AVX512F__)
        return set_bit<Word>(word, _mm512_cmpgt_epi32_mask((__m512i)x, (__m512i)limit), bit);
#else
        return set_bit<Word>(word, x > limit, bit);
#endif
    }
};

// to[i] = bits [first, first + count) of the codes of all channels of pixel i, channel by channel, the first of them
// in the least bit. Pixels lie `stride` apart. A few bits are set in many words, and then the next: so channels are
// read in long pieces.
template <class Code, class W = typename Code::Word>
inline void pack_bits(const typename Code::Element* x, index channel_stride, index stride, index first, index count,
                      index pixels, W* to) {
    constexpr index AT_ONCE = 4, PIECE = 1024;  // bits; words, which stay in the first-level cache
    for (; pixels > 0; pixels -= PIECE, x += PIECE * stride, to += PIECE)
        for (index k = 0; k < count; k += AT_ONCE) {
            const typename Code::Element* channel[AT_ONCE];
            index level[AT_ONCE];
            Vec<W> bit[AT_ONCE];
            for (index b = 0; b < AT_ONCE; ++b) {  // behind the last of them, the first without a bit
                const index code = first + (k + b < count ? k + b : k);
                channel[b] = x + code / Code::LEVELS * channel_stride, level[b] = code % Code::LEVELS;
                bit[b] = broadcast(W(k + b < count ? W(1) << (k + b) : 0));
            }
            const auto add = [&](index i, Vec<W> word, auto read) __attribute__((always_inline)) {
#pragma GCC unroll 4
                for (index b = 0; b < AT_ONCE; ++b) word = Code::set(word, read(channel[b] + i * stride), level[b], bit[b]);
                return word;
            };
            const index end = smaller(pixels, PIECE), whole = stride == 1 ? end / LANES<W> * LANES<W> : 0;
            for (index i = 0; i < whole; i += LANES<W>)
                store(to + i, add(i, k ? load(to + i) : Vec<W>{}, [](const auto* p) { return Code::read(p); }));
            for (index i = whole; i < end; i += LANES<W>) {
                const index lanes = smaller(LANES<W>, end - i);
                const Vec<W> word = add(i, k ? load_masked(to + i, bits(0, lanes)) : Vec<W>{}, [=](const auto* p) {
                    if (stride == 1) return Code::read_first(p, lanes);
                    typename Code::Element lane[LANES<W>] = {};
                    for (index l = 0; l < lanes; ++l) lane[l] = p[l * stride];
                    return Code::read(lane);
                });
                __builtin_memcpy(to + i, &word, std::size_t(lanes) * sizeof(W));
            }
        }
}

// Words of bits: as many successive bits of a pixel's codes as fit a word, or with few channels those of a few columns
// of the kernel beside one another. What lies outside of x, or of the kernel, has no bit set.
template <class Code, class Output_>
struct BitWords {
    using Element = typename Code::Element;
    using Output = Output_;
    using Word = typename Code::Word;
    static constexpr index BITS = 8 * sizeof(Word);

    const WordShape shape;  // whose channels are the bits of all codes of a pixel

    explicit BitWords(const Convolution<Element, Output>& p)
        : shape(p.channels * Code::LEVELS, p.width.taps, BITS), filters_(p.groups * p.filters),
          taps_(p.height.taps * p.width.taps), blocks_(shape.word_channels() / shape.starts) {}

    index word_channels() const { return shape.word_channels(); }
    index taps() const { return shape.taps(); }
    bool meets_padding() const { return shape.along > 1; }

    // The codes of the weights: [filter][block of channels][tap]. The taps of a channel follow one another.
    index prepared_bytes() const { return filters_ * blocks_ * taps_ * index(sizeof(Word)); }
    void prepare(const Convolution<Element, Output>& p, void* memory) {
        codes_ = static_cast<Word*>(memory);
        for_each_unit(filters_, MOVE * double(filters_ * p.channels * taps_), [&](index f) {
            const Element* w = p.w + f / p.filters * p.w_group + f % p.filters * p.w_filter;
            for (index b = 0; b < blocks_; ++b)
                pack_bits<Code>(w, p.w_channel, 1, b * shape.across, count_of(b), taps_, codes_ + (f * blocks_ + b) * taps_);
        });
    }
    Word weight(const Convolution<Element, Output>& p, index group, index filter, index word, index i, index tap) const {
        const index f = group * p.filters + filter, column = shape.column(word) + tap;
        const Word* codes = codes_ + (f * blocks_ + word / shape.starts) * taps_ + i * p.width.taps + column;
        Word bits = 0;
        for (index q = 0; q < columns_of(word); ++q) bits |= codes[q] << q * shape.across;
        return bits;
    }

    // The source of a slice as words: [image][group][word channel][row][column].
    void fill(const Convolution<Element, Output>& p, index image, index images, const SourceAxis& h,
              const SourceAxis& w, Word* words) const {
        const index starts = shape.starts, units = images * p.groups * blocks_, plane = h.size * w.size;
        // Codes are packed as x lies, rows without gaps several at a time; where they are not the words already, from
        // `from` to where the windows end, words are made of them row by row.
        const bool direct = shape.along == 1 && w.every == 1;
        const index met = (w.size - 1) * w.every + (shape.along == 1 ? 0 : (shape.columns - 1) * p.width.tap_step) + 1;
        const index reach = w.size ? met : 0, before = smaller(reach, larger(0, -w.from));
        const index from = larger(0, w.from), inside = larger(0, smaller(reach - before, p.width.size - from));
        // In whole vectors where x has the pixels.
        const index padded = larger(inside, smaller(round_up(inside, LANES<Word>), p.width.size - from));
        const bool dense = h.every == 1 && p.x.row == p.width.size * p.x.column && 2 * inside > p.width.size;
        const index width = dense ? p.width.size : direct ? inside : padded, first_column = dense ? 0 : from;
        const bool whole = direct && width == w.size;
        const index at_once = !dense ? 1 : whole ? h.size : larger(1, smaller(h.size, 2048 / width));
        const index row_bytes = round_up(reach * index(sizeof(Word)), 64);
        const index scratch = whole ? 0 : row_bytes + round_up(at_once * width * index(sizeof(Word)), 64);
        Team team(threads_for(units, MOVE * double(units * h.size * width) * double(shape.across) / Code::LEVELS, scratch));
        Workspace workspace;
        workspace.allocate(team.size() * scratch);
        Units every_unit(units, ceil_div(units, 8 * team.size()));
        team.run([&](index thread) {
            auto* row = reinterpret_cast<Word*>(workspace.data() + thread * scratch);
            auto* rows = reinterpret_cast<Word*>(workspace.data() + thread * scratch + row_bytes);
            for (index i = 0; !whole && i < reach; ++i) row[i] = 0;
            every_unit.each([&](index unit) {
                const index block = unit % blocks_, group = unit / blocks_ % p.groups;
                const Element* x = p.x.data + (image + unit / (blocks_ * p.groups)) * p.x.batch +
                                   group * p.channels * p.x.channel + h.from * p.x.row + first_column * p.x.column;
                Word* to = words + unit * starts * plane;
                for (index r = 0; r < h.size; r += at_once, x += at_once * h.every * p.x.row) {
                    const index some = smaller(at_once, h.size - r);
                    pack_bits<Code>(x, p.x.channel, p.x.column, block * shape.across, count_of(block), some * width,
                                    whole ? to : rows);
                    for (index k = 0; k < some; ++k, to += w.size) {
                        if (whole) continue;
                        const Word* codes = rows + k * width + from - first_column;
                        for (index i = 0; i < inside; ++i) row[before + i] = codes[i];
                        for (index s = 0; s < starts; ++s) join(row, w.every, p.width.tap_step, s, w.size, to + s * plane);
                    }
                }
            });
        });
    }

private:
    const index filters_, taps_, blocks_;
    Word* codes_ = nullptr;

    // The bits of a block of channels,
    index count_of(index block) const { return smaller(shape.across, shape.channels - block * shape.across); }
    // and the columns of the kernel that a word stands for.
    index columns_of(index word) const {
        return shape.along == 1 ? 1 : smaller(shape.along, shape.columns - shape.column(word));
    }

    // to[i] = the codes that word s of pixel i holds, which are `every` apart, and so far those of its columns.
    void join(const Word* codes, index every, index apart, index s, index pixels, Word* to) const {
        codes += shape.column(s) * apart;
        for (index q = 0; q < columns_of(s); ++q, codes += apart) {
            const index shift = q * shape.across;
            const auto add = [&](index step) __attribute__((always_inline)) {
                for (index i = 0; i < pixels; ++i) to[i] = (q ? to[i] : 0) | codes[i * step] << shift;
            };
            if (every == 1) add(1);
            else if (every == 2) add(2);
            else add(every);
        }
    }
};

}  // namespace mulfree::MULFREE_ISA
