// What the kernels compute, in plain structures: no torch, no Python.
//
// Every operation is a *gather*: an output row is the sum, over the nonzeros of that row, of the nonzero's value
// times the input channel it names, shifted by its tap. A linear layer is a convolution with one tap on a plane of
// one position; the input gradient is a gather over the transposed weight.
#pragma once

#include <cstdint>

namespace regrow {

// A bfloat16: the upper half of a float. Activations may have it; all else is single precision.
struct Bfloat16 {
    uint16_t bits;
};

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
// block of input channels, then by segment: the nonzeros of one output row within that block. The first block of a
// phase has a segment for every row, if need be an empty one.
//
// An entry is one nonzero, or a unit of nonzeros: `unit` output rows, one after the other, at one input and tap. The
// segments are then of such groups of rows, and there is one phase.
struct Index {
    const int32_t* order;          // [nonzeros] where the entry's (first) value stands among the parameter's values
    const int16_t* tap_offset;     // [nonzeros] channel within the block * taps + tap
    const int32_t* segment_row;    // [segments] output row, or group of rows
    const int32_t* segment_start;  // [segments + 1] first entry
    const int32_t* block_start;    // [phases * blocks + 1] first segment
    int64_t nonzeros;              // entries
    int64_t rows;
    int64_t channels;
    int32_t channels_per_block;
    bool sweep;    // which driver: sweep.h or blocked.h
    int32_t unit;  // output rows of an entry

    int64_t groups() const { return rows / unit; }
    int64_t blocks() const { return (channels + channels_per_block - 1) / channels_per_block; }  // of a phase
    int64_t segments() const { return block_start[blocks()]; }                                   // of the first phase
};

// Which elements are dropped follows from the seed, the channel and the position within it (less than 2^32) alone.
struct Dropout {
    double share;  // at least 0, where all is kept, and less than 1
    uint64_t seed;
};

// Batch normalisation over activations with the batch innermost: a channel is one run of `length` numbers.
struct Normalisation {
    int64_t channels;
    int64_t length;
    double epsilon;
    bool relu;        // after the sum with the residual
    bool training;    // with the statistics of the batch
    Dropout dropout;  // at the end
};

// One number a channel; null weight is one, null bias zero. In training mean and variance (biased) are outputs.
struct NormalisationTensors {
    const float* weight;
    const float* bias;
    float* mean;
    float* variance;
};

// Stands for what `normalise` makes of an input with given mean and variance, without residual and dropout.
struct Normalised {
    Normalisation shape;
    NormalisationTensors tensors;
};

// Statistics over batches that move towards those of this one; all null where there are none, or not in training.
struct RunningStatistics {
    float* mean;
    float* variance;   // unbiased
    int64_t* batches;  // how many there were
    double momentum;   // the share of the newest batch; negative: the mean of all batches
};

// Null where a gradient is not wanted.
template <class Number>
struct NormalisationGradients {
    Number* input;
    Number* residual;
    float* weight;
    float* bias;
};

// The kernels of one instruction set for activations, and gradients of activations, of one type of numbers. Sums are
// single precision, and each output is rounded once.
template <class Number>
struct KernelsOf {
    // output[row] = bias[row] + sum of value * shifted input[channel]; a null bias is zero. False: out of memory.
    bool (*gather)(const Geometry&, const Index&, const float* values, const float* bias, const Number* input,
                   Number* output, int threads);
    // input_gradient[channel] = sum of value * shifted output_gradient[row], by an index of units and the geometry of
    // the gather. (By any other, it is a gather over the transposed weight.)
    bool (*input_gradient)(const Geometry&, const Index&, const float* values, const Number* output_gradient,
                           Number* input_gradient, int threads);
    // gradient[order] = sum over batch and plane of output_gradient[row] * shifted input[channel]. The bias gradient, the
    // sum of output_gradient[row], may be null. Where `normalised` is not, the inputs are what it makes of `input`.
    bool (*values_gradient)(const Geometry&, const Index&, const Number* output_gradient, const Number* input,
                            const Normalised* normalised, float* gradient, float* bias_gradient, int threads);
    // to[column][row] = from[row][column], `count` times, with leading dimensions and distances in numbers.
    void (*transpose)(const Number* from, int64_t from_pitch, int64_t from_distance, Number* to, int64_t to_pitch,
                      int64_t to_distance, int64_t rows, int64_t columns, int64_t count, int threads);
    // output = the normalised input, plus the residual if not null, through ReLU and dropout if asked for.
    void (*normalise)(const Normalisation&, const NormalisationTensors&, const RunningStatistics&, const Number* input,
                      const Number* residual, Number* output, int threads);
    // `output` serves ReLU after a residual; else null.
    void (*normalise_gradient)(const Normalisation&, const NormalisationTensors&, const Number* output_gradient,
                               const Number* input, const Number* output, const NormalisationGradients<Number>&,
                               int threads);
    // output = what dropout keeps of `channels` runs of `length`, scaled, zero elsewhere; output and input may be one.
    void (*drop)(const Dropout&, int64_t channels, int64_t length, const Number* input, Number* output, int threads);
    // Largest of each window, and which tap of it that was (null if nobody asks): windows of at most 256 taps.
    void (*max_pool)(const Geometry&, int64_t channels, const Number* input, Number* output, uint8_t* winner,
                     int threads);
    void (*max_pool_gradient)(const Geometry&, int64_t channels, const Number* output_gradient, const uint8_t* winner,
                              Number* input_gradient, int threads);
    // Sum of each window over the divisor; a divisor of 0 stands for the window's inputs without padding.
    void (*mean_pool)(const Geometry&, int64_t channels, int64_t divisor, const Number* input, Number* output,
                      int threads);
    void (*mean_pool_gradient)(const Geometry&, int64_t channels, int64_t divisor, const Number* output_gradient,
                               Number* input_gradient, int threads);
};

struct Kernels {
    const char* name;
    const KernelsOf<float>& float32;
    const KernelsOf<Bfloat16>& bfloat16;
};

// The kernels of one instruction set ("portable", "avx2", "avx512"), or null where the processor or the build lacks it.
const Kernels* find_kernels(const char* name);

// The best instruction set that this processor has.
const Kernels& best_kernels();

}  // namespace regrow
