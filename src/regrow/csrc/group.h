// Groups the nonzeros of a weight for the kernels: makes the tensors behind `Index` (kernels.h).
#pragma once

#include <cstdint>
#include <vector>

namespace regrow {

// Where a nonzero at a flat position of a dense weight (outputs, channels, taps) belongs.
struct Grouping {
    int64_t outputs;
    int64_t channels;  // of a group
    int64_t taps;
    int64_t groups;
    bool transposed;  // rows are input channels
    int64_t channels_per_block;
    const int32_t* phase;  // [taps] of the row that a tap belongs to; null where there is one phase
    int64_t phases;
    int64_t unit;  // output rows that have the same nonzeros, and make one entry; not where `transposed`

    int64_t rows() const { return transposed ? channels * groups : outputs / unit; }
    int64_t columns() const { return transposed ? outputs : channels * groups; }
    int64_t blocks() const { return (columns() + channels_per_block - 1) / channels_per_block; }  // of a phase
};

struct Groups {
    std::vector<int32_t> order;          // [entries]
    std::vector<int16_t> tap_offset;     // [entries]
    std::vector<int32_t> segment_row;    // [segments]
    std::vector<int32_t> segment_start;  // [segments + 1]
    std::vector<int32_t> block_start;    // [phases * blocks + 1]
};

// Of sorted positions, in time of nonzeros + phases * blocks * rows.
Groups group(const Grouping& grouping, const int32_t* positions, int64_t nonzeros);
Groups group(const Grouping& grouping, const int64_t* positions, int64_t nonzeros);

}  // namespace regrow
