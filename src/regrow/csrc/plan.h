// Where things lie: the tile of outputs that one pass computes, and the packed copy of the inputs that it reads.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "memory.h"
#include "vector.h"

namespace regrow::REGROW_VARIANT {

// A buffer, empty where no memory is left. (No std containers here: their code, compiled for one
// instruction set, could be the copy that the linker keeps for all.)
template <class T>
class Buffer {
   public:
    Buffer() : memory_{nullptr, 0} {}
    explicit Buffer(int64_t size) : memory_(take_memory(bytes_for(size))) {}
    ~Buffer() { give_back_memory(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    explicit operator bool() const { return memory_.data != nullptr; }
    T& operator[](int64_t i) { return data()[i]; }
    const T& operator[](int64_t i) const { return data()[i]; }
    T* data() { return static_cast<T*>(memory_.data); }
    const T* data() const { return static_cast<const T*>(memory_.data); }

   private:
    // Never 0, and more than there is where the size makes no sense.
    static size_t bytes_for(int64_t size) {
        constexpr int64_t most = INT64_MAX / static_cast<int64_t>(sizeof(T)) - 1;
        return size < 0 || size > most ? SIZE_MAX : static_cast<size_t>(size) * sizeof(T) + 1;
    }

    Memory memory_;
};

static inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// a * b, or the largest number where that overflows.
static inline int64_t bounded_product(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

// Whether offsets, which have 32 bits, reach so many packed floats.
static inline bool within_offsets(int64_t floats) { return floats <= INT32_MAX; }

// The outputs of one pass: height x width positions of `vectors` vectors along the batch.
struct Tile {
    int32_t height;
    int32_t width;
    int32_t vectors;
    int64_t lanes() const { return static_cast<int64_t>(vectors) * kLanes; }
    int32_t run() const { return width * vectors; }
};

// Rows of a tile and vectors in each, as the kernels know them: kAccumulators in all, or about as many in shapes that fill
// planes of other sizes, or half as many for planes and batches that fill no more.
struct TileShape {
    int32_t rows;
    int32_t run;
};
constexpr TileShape kTileShapes[] = {
    {4, kAccumulators / 4}, {2, kAccumulators / 2}, {1, kAccumulators},         {2, kAccumulators / 4},
    {1, kAccumulators / 2}, {3, kAccumulators / 3}, {2, kAccumulators / 2 - 1},
};

// One axis for one phase of the output: output q stands at first + q * step, and reads input
// (q + shift) * input_step + residue, where shift and residue depend on the tap. The packed copy keeps the inputs of
// equal residue together, so that neighbouring outputs read neighbouring lines whatever the stride.
struct AxisPlan {
    int64_t input;       // inputs along the axis
    int64_t outputs;     // outputs of this phase
    int64_t first;       // position of output 0
    int64_t step;        // between outputs
    int64_t input_step;  // between inputs of one residue
    int64_t lowest;      // smallest shift
    int64_t span;        // packed lines for one residue
    int64_t lines;       // packed lines in all
    int32_t* tap_line;   // [kernel] line that output 0 of a tile reads
    int32_t* residue;    // [lines / span]

    int64_t tiles(int64_t extent) const { return ceil_divide(outputs, extent); }
    // Where output q stands in the output, or -1 beyond its end.
    int64_t target(int64_t q) const { return q < outputs ? first + q * step : -1; }
    // Which input packed line `line` holds for the tile that starts at output q, or -1 for padding.
    int64_t source(int64_t q, int64_t line) const {
        const int64_t at = (q + lowest + line % span) * input_step + residue[line / span];
        return at >= 0 && at < input ? at : -1;
    }
};

// `integers` takes 2 * axis.kernel of them and must outlive the plan.
static inline AxisPlan plan_axis(const Axis& axis, bool transposed, int64_t phase, int64_t extent, int32_t* integers) {
    AxisPlan plan{};
    plan.input = axis.input;
    plan.first = transposed ? phase : 0;
    plan.step = transposed ? axis.stride : 1;
    plan.input_step = transposed ? 1 : axis.stride;
    plan.outputs = plan.first < axis.output ? ceil_divide(axis.output - plan.first, plan.step) : 0;
    plan.tap_line = integers;
    plan.residue = integers + axis.kernel;

    // Where output 0 reads for a tap; a tap of another phase reads nothing.
    const auto start = [&](int64_t tap, int64_t& at) {
        at = tap * axis.dilation - axis.padding;
        if (!transposed) return true;
        at = phase - at;
        const bool mine = at % axis.stride == 0;
        at = floor_divide(at, axis.stride);
        return mine;
    };
    int64_t highest = 0, at = 0;
    bool any = false;
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
        if (!start(tap, at)) continue;
        const int64_t shift = floor_divide(at, plan.input_step);
        plan.lowest = any ? smaller(plan.lowest, shift) : shift;
        highest = any ? larger(highest, shift) : shift;
        any = true;
    }
    plan.span = extent + highest - plan.lowest;
    int64_t residues = 0;
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
        plan.tap_line[tap] = 0;
        if (!start(tap, at)) continue;
        const int64_t shift = floor_divide(at, plan.input_step);
        const int32_t residue = static_cast<int32_t>(at - shift * plan.input_step);
        int64_t slot = 0;
        while (slot < residues && plan.residue[slot] != residue) ++slot;
        if (slot == residues) plan.residue[residues++] = residue;
        plan.tap_line[tap] = static_cast<int32_t>(slot * plan.span + shift - plan.lowest);
    }
    plan.lines = residues * plan.span;
    return plan;
}

// One phase of the output: its axes, and the strides of the packed copy [channel][height lines][width lines][lanes].
struct PhasePlan {
    AxisPlan height;
    AxisPlan width;
    int64_t line_pitch;     // floats between packed rows
    int64_t channel_pitch;  // floats between packed channels

    int64_t tiles(const Tile& tile) const { return height.tiles(tile.height) * width.tiles(tile.width); }
};

static inline int64_t phase_count(const Geometry& geometry) {
    return geometry.transposed ? static_cast<int64_t>(geometry.height.stride) * geometry.width.stride : 1;
}

// The integers of the plans of both axes: on the stack for kernels of up to 32 taps a side.
class PlanMemory {
   public:
    explicit PlanMemory(const Geometry& geometry)
        : height_size_(2 * static_cast<int64_t>(geometry.height.kernel)),
          width_size_(2 * static_cast<int64_t>(geometry.width.kernel)),
          large_(fits() ? Buffer<int32_t>() : Buffer<int32_t>(height_size_ + width_size_)) {}

    // Whether there was memory.
    explicit operator bool() const { return fits() || large_; }
    int32_t* height() { return fits() ? small_ : large_.data(); }
    int32_t* width() { return height() + height_size_; }

   private:
    static constexpr int64_t kMostTaps = 32;

    bool fits() const { return height_size_ + width_size_ <= 4 * kMostTaps; }

    int64_t height_size_;
    int64_t width_size_;
    int32_t small_[4 * kMostTaps];
    Buffer<int32_t> large_;
};

static inline PhasePlan plan_phase(const Geometry& geometry, const Tile& tile, int64_t phase, PlanMemory& memory) {
    PhasePlan plan;
    const bool transposed = geometry.transposed;
    const int64_t columns = transposed ? geometry.width.stride : 1;
    plan.height = plan_axis(geometry.height, transposed, phase / columns, tile.height, memory.height());
    plan.width = plan_axis(geometry.width, transposed, phase % columns, tile.width, memory.width());
    plan.line_pitch = plan.width.lines * tile.lanes();
    plan.channel_pitch = bounded_product(plan.height.lines, plan.line_pitch);
    return plan;
}

}  // namespace regrow::REGROW_VARIANT
