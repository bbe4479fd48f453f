// What the kernels compute, in plain structures: no torch, no Python.
//
// Every operation is a *gather*: an output row is the sum, over the nonzeros of that row, of the nonzero's value
// times the input channel it names, shifted by its tap. A linear layer is a convolution with one tap on a plane of
// one position; the input gradient is a gather over the transposed weight.
#pragma once

#include <cstdint>

namespace regrow {

// One axis of a convolution in the direction of the gather. Forward, output q reads input q * stride - padding +
// tap * dilation. Transposed (the input gradient), input and output have changed places.
struct Axis {
    int64_t input;
    int64_t output;
    int32_t kernel;
    int32_t stride;
    int32_t padding;
    int32_t dilation;
};

// Both activations have the batch innermost: [channel][height][width][batch].
struct Geometry {
    int64_t batch;
    Axis height;
    Axis width;
    bool transposed;
};

// The nonzeros of a weight, grouped for the cache: by phase of the output (transposed and strided only), then by
// block of input channels, then by segment: the nonzeros of one output row within that block.
struct Index {
    const int32_t* order;          // [nonzeros] where the entry's value stands among the parameter's values
    const int16_t* place;          // [nonzeros] channel within the block * taps + tap
    const int32_t* segment_row;    // [segments] output row
    const int32_t* segment_start;  // [segments + 1] first entry
    const int32_t* block_start;    // [phases * blocks + 1] first segment
    int64_t nonzeros;
    int64_t rows;
    int64_t channels;
    int32_t channels_per_block;
};

struct Kernels {
    const char* name;
    // output[row] = bias[row] + sum of value * shifted input[channel]; a null bias is zero. False: out of memory.
    bool (*gather)(const Geometry&, const Index&, const float* values, const float* bias, const float* input,
                   float* output, int threads);
    // gradient[order] = sum over batch and plane of output_gradient[row] * shifted input[channel].
    bool (*values_gradient)(const Geometry&, const Index&, const float* output_gradient, const float* input,
                            float* gradient, int threads);
    // to[column][row] = from[row][column], `count` times, with leading dimensions and distances in floats.
    void (*transpose)(const float* from, int64_t from_pitch, int64_t from_distance, float* to, int64_t to_pitch,
                      int64_t to_distance, int64_t rows, int64_t columns, int64_t count, int threads);
};

// The kernels of one instruction set ("portable", "avx2", "avx512"), or null where the processor or the build lacks it.
const Kernels* find_kernels(const char* name);

// The best instruction set that this processor has.
const Kernels& best_kernels();

}  // namespace regrow
