// Checks the tensors behind `Index` (kernels.h), where they come from elsewhere: the kernels believe what they are given.
#pragma once

#include <cstdint>
#include <string>

namespace regrow {

template <class T>
struct Span {
    const T* data;
    int64_t size;

    const T& operator[](int64_t i) const { return data[i]; }
};

struct IndexTensors {
    Span<int32_t> order;
    Span<int16_t> tap_offset;
    Span<int32_t> segment_row;
    Span<int32_t> segment_start;
    Span<int32_t> block_start;
};

// The weight that an index has to fit, in the direction of the gather.
struct Expected {
    int64_t values;
    int64_t rows;
    int64_t channels;
    int64_t channels_per_block;
    int64_t taps;
    const int32_t* phase;  // [taps] of the output that a tap belongs to; null where taps are not looked at
    int64_t phases;
    int64_t unit;  // output rows of an entry
};

// What is wrong with an index, in words; empty where a kernel may have it. In time linear in its size.
std::string fault_of(const IndexTensors& index, const Expected& expected);

}  // namespace regrow
