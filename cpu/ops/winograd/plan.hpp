// Winograd weights packed once for many calls: entries in the order in which the product reads them. Rows of a
// section are sorted by length, so that the ends of their loops are predicted, and two processed together have
// similar lengths.
#pragma once

#include <algorithm>
#include <vector>

#include "../../engine/threads.hpp"

namespace mulfree {

template <class T>
class WinogradPlan {
public:
    const char* form;
    const index tile, filters, channels;

    // visit(position, row, f) calls f(channel, values) for the entries of a row of ROWS filters.
    template <int ROWS, class Visit>
    static WinogradPlan pack(const char* form, index tile, index filters, index channels, Visit visit) {
        WinogradPlan plan(form, tile, filters, channels, ROWS);
        const index positions = tile * tile, rows = (filters + ROWS - 1) / ROWS;
        const index groups = (filters + WINOGRAD_GROUP - 1) / WINOGRAD_GROUP;
        const index chunks = (channels + WINOGRAD_CHUNK - 1) / WINOGRAD_CHUNK;

        // The length of every row in every chunk; a row of the first chunk is a job even when empty.
        std::vector<std::int32_t> counts(rows * chunks * positions);
        const auto count = [&](index row, index chunk, index position) -> std::int32_t& {
            return counts[(row * chunks + chunk) * positions + position];
        };
        const double work = MOVE * double(positions * filters * channels);
        for_each_unit(positions, work, [&](index position) {
            for (index row = 0; row < rows; ++row)
                visit(position, row, [&](index channel, const T*) {
                    ++count(row, channel / WINOGRAD_CHUNK, position);
                });
        });

        // Jobs, and the positions of their entries: entry i follows the previous ones and as many of the alternating
        // job, if any.
        struct Place {
            index start, other, second, used;
            index next() {
                const index i = used++;
                return start + i + std::min(i + second, other);
            }
        };
        std::vector<Place> places(counts.size());
        index entry = 0;
        for (index group = 0; group < groups; ++group)
            for (index chunk = 0; chunk < chunks; ++chunk)
                for (index position = 0; position < positions; ++position) {
                    const index first = group * WINOGRAD_GROUP / ROWS;
                    const index last = std::min(rows, first + WINOGRAD_GROUP / ROWS);
                    const index job = plan.jobs_.size();
                    plan.sections_.push_back({job, entry});
                    for (index row = first; row < last; ++row)
                        if (chunk == 0 || count(row, chunk, position))
                            plan.jobs_.push_back({std::int32_t(row - first) * ROWS,
                                                  count(row, chunk, position)});
                    std::stable_sort(plan.jobs_.begin() + job, plan.jobs_.end(),
                                     [](const auto& a, const auto& b) { return a.count < b.count; });
                    const index end = plan.jobs_.size();
                    for (index j = job; j < end;) {
                        const index together = std::min(index(WINOGRAD_JOBS<ROWS>), end - j);
                        const index start = entry;
                        for (index second = 0; second < together; ++second) {
                            const index row = first + plan.jobs_[j + second].row / ROWS;
                            const index other = together == 2 ? plan.jobs_[j + 1 - second].count : 0;
                            places[(row * chunks + chunk) * positions + position] = {start, other, second, 0};
                            entry += plan.jobs_[j + second].count;
                        }
                        j += together;
                    }
                }
        plan.sections_.push_back({index(plan.jobs_.size()), entry});

        using Entry = WinogradEntry<T, ROWS>;
        plan.entries_.resize(entry * sizeof(Entry));
        Entry* entries = reinterpret_cast<Entry*>(plan.entries_.data());
        for_each_unit(positions, work, [&](index position) {
            for (index row = 0; row < rows; ++row)
                visit(position, row, [&](index channel, const T* values) {
                    const index chunk = channel / WINOGRAD_CHUNK;
                    Entry& to = entries[places[(row * chunks + chunk) * positions + position].next()];
                    std::copy(values, values + ROWS, to.value);
                    to.channel = std::int32_t(channel - chunk * WINOGRAD_CHUNK);
                });
        });
        return plan;
    }

    // Dense: every column, in rows of four filters; weights[position][filter][channel] with these strides of filters
    // and channels.
    static WinogradPlan dense(index tile, index filters, index channels, const T* weights, index filter_stride,
                              index channel_stride) {
        return pack<WINOGRAD_ROWS>("dense", tile, filters, channels, [=](index position, index row, auto f) {
            const T* from = weights + position * filters * channels + row * WINOGRAD_ROWS * filter_stride;
            for (index channel = 0; channel < channels; ++channel) {
                T values[WINOGRAD_ROWS] = {};
                for (index r = 0; r < std::min(index(WINOGRAD_ROWS), filters - row * WINOGRAD_ROWS); ++r)
                    values[r] = from[r * filter_stride + channel * channel_stride];
                f(channel, values);
            }
        });
    }

    // t * t CSR matrices stacked vertically; ROWS values per entry.
    template <int ROWS>
    static WinogradPlan sparse(const char* form, index tile, index filters, index channels,
                               const std::int64_t* indptr, const std::int32_t* indices, const T* values) {
        const index rows = (filters + ROWS - 1) / ROWS;
        return pack<ROWS>(form, tile, filters, channels, [=](index position, index row, auto f) {
            const std::int64_t* bounds = indptr + position * rows + row;
            for (index i = bounds[0]; i < bounds[1]; ++i) f(indices[i], values + i * ROWS);
        });
    }

    WinogradWeights<T> weights() const {
        return {rows_, sections_.data(), jobs_.data(), entries_.data()};
    }
    index bytes() const {
        return sections_.size() * sizeof(WinogradSection) + jobs_.size() * sizeof(WinogradJob) +
               entries_.size();
    }

private:
    WinogradPlan(const char* form_, index tile_, index filters_, index channels_, index rows)
        : form(form_), tile(tile_), filters(filters_), channels(channels_), rows_(rows) {}

    index rows_;
    std::vector<WinogradSection> sections_;
    std::vector<WinogradJob> jobs_;
    std::vector<char> entries_;
};

}  // namespace mulfree
