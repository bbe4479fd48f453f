// The two inner kernels. All the arithmetic of the library happens here.
//
// A tile is kRows rows of kRun vectors; within a row the vectors lie side by side in the packed inputs, whatever
// mixture of columns and lanes they are. Per nonzero: one offset, one broadcast, kAccumulators multiply-adds
// with a memory operand.
#pragma once

#include "plan.h"

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

constexpr int64_t kTileFloats = static_cast<int64_t>(kAccumulators) * kLanes;

// sums[row] += value * packed[offset], for every entry of every segment.
template <int kRows>
void gather_block(const Segments& segments, const Entry* entries, const float* packed, int64_t line_pitch, float* sums) {
    constexpr int kRun = kAccumulators / kRows;
    for (int64_t segment = segments.first; segment < segments.last; ++segment) {
        float* sum = sums + segments.row[segment] * kTileFloats;
        Vector accumulator[kRows][kRun];
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j) accumulator[i][j] = load(sum + (i * kRun + j) * kLanes);
        const Entry* const end = entries + segments.start[segment + 1];
        for (const Entry* entry = entries + segments.start[segment]; entry < end; ++entry) {
            const float* line = packed + entry->offset;
            const float value = entry->value;
            for (int i = 0; i < kRows; ++i)
                for (int j = 0; j < kRun; ++j)
                    accumulator[i][j] += value * load(line + i * line_pitch + j * kLanes);
        }
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j) store(sum + (i * kRun + j) * kLanes, accumulator[i][j]);
    }
}

// Lane i of the result is the sum of all lanes of partial[i].
//
// Halving: one step joins vectors i and i + half into one whose lanes choose between the two by the lane's bit
// `half`, so after the last step the lane number is the vector number. Three instructions a join, against a full
// horizontal sum for each vector.
static inline Vector sum_lanes(Vector (&partial)[kLanes]) {
    typedef int32_t Mask __attribute__((vector_size(kLanes * sizeof(int32_t))));
    for (int half = kLanes / 2; half > 0; half /= 2) {
        Mask kept, moved;
        for (int lane = 0; lane < kLanes; ++lane) {
            kept[lane] = lane & half ? kLanes + lane : lane;
            moved[lane] = lane & half ? kLanes + lane - half : lane + half;
        }
        for (int i = 0; i < half; ++i)
            partial[i] = __builtin_shuffle(partial[i], partial[i + half], kept) +
                         __builtin_shuffle(partial[i], partial[i + half], moved);
    }
    return partial[0];
}

// The partials of a few nonzeros, a vector each, before their lanes are summed together.
constexpr int64_t kPartials = 4 * kLanes;

static __attribute__((noinline)) void flush_partials(const float* partials, int64_t count, float* gradient) {
    for (int64_t first = 0; first < count; first += kLanes) {
        Vector group[kLanes];
        for (int i = 0; i < kLanes; ++i) group[i] = load(partials + (first + i) * kLanes);
        const Vector sums = sum_lanes(group);
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
                  const float* tiles, float* partials, float* gradient) {
    constexpr int kRun = kAccumulators / kRows;
    int64_t flushed = segments.start[segments.first];
    for (int64_t segment = segments.first; segment < segments.last; ++segment) {
        const float* tile = tiles + segments.row[segment] * kTileFloats;
        Vector factor[kRows][kRun];
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j) factor[i][j] = load(tile + (i * kRun + j) * kLanes);
        const int64_t end = segments.start[segment + 1];
        for (int64_t entry = segments.start[segment]; entry < end; ++entry) {
            const float* line = packed + offsets[entry];
            // Two chains: one alone would wait for itself.
            Vector even{}, odd{};
            for (int i = 0; i < kRows; ++i)
                for (int j = 0; j < kRun; j += 2) {
                    even += factor[i][j] * load(line + i * line_pitch + j * kLanes);
                    odd += factor[i][j + 1] * load(line + i * line_pitch + (j + 1) * kLanes);
                }
            store(partials + (entry - flushed) * kLanes, even + odd);
            if (entry + 1 - flushed == kPartials) {
                flush_partials(partials, kPartials, gradient + flushed);
                flushed += kPartials;
            }
        }
    }
    flush_partials(partials, segments.start[segments.last] - flushed, gradient + flushed);
}

}  // namespace regrow::REGROW_VARIANT
