// The two inner kernels. All the arithmetic of the library happens here.
//
// A tile is kRows rows of kRun vectors; within a row the vectors lie side by side in the packed inputs, whatever
// mixture of columns and lanes they are. Per nonzero: one offset, one broadcast, kAccumulators multiply-adds
// with a memory operand.
#pragma once

#include <utility>

#include "pack.h"

namespace regrow::REGROW_VARIANT {

struct Entry {
    float value;
    int32_t offset;  // floats from the start of the packed block
};

struct Segments {
    const int32_t* row;
    const int32_t* start;
    int64_t first;
    int64_t last;
};

// The rows of a tile within the packed inputs. The empty asm keeps each a pointer in a register: left alone, GCC
// computes a register for every vector of the tile, and spills.
template <int kRows>
struct Lines {
    const float* row[kRows];

    __attribute__((always_inline)) Lines(const float* first, int64_t pitch) {
        for (int i = 0; i < kRows; ++i) {
            row[i] = first;
            asm("" : "+r"(row[i]));
            first = row[i] + pitch;
        }
    }
};

// Lines that the next block will copy, asked for a few at a time while this block computes: they lie far apart, so
// the processor does not foresee them, and fetched only when copied they cost more time than the arithmetic.
class Ahead {
   public:
    Ahead() = default;
    Ahead(const float* plane, int64_t pitch, int64_t channels, const PositionList& list, int64_t vectors, int64_t steps)
        : plane_(plane), pitch_(pitch), list_(list), vectors_(vectors), left_(channels * list.size),
          share_(ceil_divide(left_, larger(steps, 1))) {}

    __attribute__((always_inline)) void step() {
        const int64_t count = smaller(share_, left_);
        left_ -= count;
        for (int64_t n = 0; n < count; ++n) {
            const float* line = plane_ + list_.positions[at_].plane;
            for (int64_t v = 0; v < vectors_; ++v) __builtin_prefetch(line + v * kLanes, 0, 2);
            if (++at_ == list_.size) {
                at_ = 0;
                plane_ += pitch_;
            }
        }
    }

   private:
    const float* plane_ = nullptr;
    int64_t pitch_ = 0;
    PositionList list_{};
    int64_t vectors_ = 0;
    int64_t left_ = 0;
    int64_t share_ = 0;
    int64_t at_ = 0;
};

constexpr int64_t kTileFloats = static_cast<int64_t>(kAccumulators) * kLanes;

// sums[row] += value * packed[offset], for every entry of every segment.
template <int kRows>
void gather_block(const Segments& segments, const Entry* entries, const float* packed, int64_t line_pitch, Ahead& ahead,
                  float* sums) {
    constexpr int kRun = kAccumulators / kRows;
    for (int64_t segment = segments.first; segment < segments.last; ++segment) {
        float* sum = sums + segments.row[segment] * kTileFloats;
        ahead.step();
        Vector accumulator[kRows][kRun];
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j) accumulator[i][j] = load(sum + (i * kRun + j) * kLanes);
        const Entry* const end = entries + segments.start[segment + 1];
        for (const Entry* entry = entries + segments.start[segment]; entry < end; ++entry) {
            const Lines<kRows> lines(packed + entry->offset, line_pitch);
            const float value = entry->value;
            for (int i = 0; i < kRows; ++i)
                for (int j = 0; j < kRun; ++j) accumulator[i][j] += value * load(lines.row[i] + j * kLanes);
        }
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j) store(sum + (i * kRun + j) * kLanes, accumulator[i][j]);
    }
}

// Adds the two halves of every run of 2 * kHalf lanes, for two vectors at once: lanes with the bit kHalf hold `b`'s sums.
template <int kHalf, int... kLane>
static inline __attribute__((always_inline)) Vector join(Vector a, Vector b, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + kLane : kLane)...) +
           __builtin_shufflevector(a, b, (kLane & kHalf ? kLanes + kLane - kHalf : kLane + kHalf)...);
}

// Lane i of the result is the sum of all lanes of vector i.
//
// One join makes one vector of two, whose lanes choose between them by the bit kHalf of their number; after the last
// join the lane number is the vector number. Three instructions a join, against a full horizontal sum a vector.
template <int kHalf>
static inline __attribute__((always_inline)) Vector sum_lanes(const float* partials) {
    if constexpr (kHalf == kLanes) {
        return load(partials);
    } else {
        return join<kHalf>(sum_lanes<2 * kHalf>(partials), sum_lanes<2 * kHalf>(partials + kHalf * kLanes),
                           std::make_integer_sequence<int, kLanes>());
    }
}

// The partials of a few nonzeros, a vector each, before their lanes are summed together.
constexpr int64_t kPartials = 64;

static __attribute__((noinline)) void flush_partials(const float* partials, int64_t count, float* gradient) {
    for (int64_t first = 0; first < count; first += kLanes) {
        const Vector sums = sum_lanes<1>(partials + first * kLanes);
        if (count - first >= kLanes) {
            store(gradient + first, load(gradient + first) + sums);
        } else {
            for (int64_t i = 0; i < count - first; ++i) gradient[first + i] += sums[i];
        }
    }
}

// gradient[entry] += the sum over the tile of tiles[row] * packed[offset], for every entry of every segment.
template <int kRows>
void values_block(const Segments& segments, const int32_t* offsets, const float* packed, int64_t line_pitch,
                  Ahead& ahead, const float* tiles, float* partials, float* gradient) {
    constexpr int kRun = kAccumulators / kRows;
    const int32_t* start = segments.start;
    int64_t flushed = start[segments.first];
    float* partial = partials;
    for (int64_t segment = segments.first; segment < segments.last; ++segment) {
        const float* tile = tiles + segments.row[segment] * kTileFloats;
        ahead.step();
        Vector factor[kRows][kRun];
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j) factor[i][j] = load(tile + (i * kRun + j) * kLanes);
        for (int64_t entry = start[segment]; entry < start[segment + 1]; ++entry) {
            const Lines<kRows> lines(packed + offsets[entry], line_pitch);
            // Several chains: one alone would wait for itself.
            constexpr int kChains = 4;
            Vector sum[kChains] = {};
            for (int n = 0; n < kAccumulators; ++n)
                sum[n % kChains] += factor[n / kRun][n % kRun] * load(lines.row[n / kRun] + n % kRun * kLanes);
            store(partial, (sum[0] + sum[1]) + (sum[2] + sum[3]));
            partial += kLanes;
            if (partial == partials + kPartials * kLanes) {
                flush_partials(partials, kPartials, gradient + flushed);
                flushed += kPartials;
                partial = partials;
            }
        }
    }
    flush_partials(partials, start[segments.last] - flushed, gradient + flushed);
}

}  // namespace regrow::REGROW_VARIANT
