// The two inner kernels. All the arithmetic of the library happens here.
//
// A tile is kRows rows of kRun vectors; within a row the vectors lie side by side in the packed inputs, whatever
// mixture of columns and lanes they are. Per nonzero: one offset, one broadcast, kAccumulators multiply-adds
// with a memory operand.
#pragma once

#include <type_traits>
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

// The rows of a tile within the packed inputs, each a pointer in a register. The empty asm keeps it there: left alone,
// GCC computes a register for every vector of the tile, and spills.
template <int kRows, class Pitch>
struct Lines {
    const float* first;
    const float* second;
    const float* third;
    const float* fourth;

    __attribute__((always_inline)) Lines(const float* line, Pitch pitch) {
        first = line;
        second = kRows > 1 ? next(first, pitch) : line;
        third = kRows > 2 ? next(second, pitch) : line;
        fourth = kRows > 3 ? next(third, pitch) : line;
    }

    // Vector `column` of row `row`; both are constants once the loops around are unrolled.
    __attribute__((always_inline)) Vector at(int row, int column) const {
        const float* line = row == 0 ? first : row == 1 ? second : row == 2 ? third : fourth;
        return load(line + column * kLanes);
    }

   private:
    static __attribute__((always_inline)) const float* next(const float* line, int64_t pitch) {
        line += pitch;
        asm("" : "+r"(line));
        return line;
    }
};

// With a pitch known to the compiler one pointer serves all rows: 4 to 7 % faster from 10 % density on.
template <int64_t kFloats>
using Fixed = std::integral_constant<int64_t, kFloats>;

template <int kRows, int64_t kFloats>
struct Lines<kRows, Fixed<kFloats>> {
    const float* first;

    __attribute__((always_inline)) Lines(const float* line, Fixed<kFloats>) : first(line) { asm("" : "+r"(first)); }
    __attribute__((always_inline)) Vector at(int row, int column) const {
        return load(first + row * kFloats + column * kLanes);
    }
};

// Calls body(pitch), as a constant where it is the common one.
template <int64_t kCommon, class Body>
static inline void with_pitch(int64_t pitch, Body&& body) {
    if (pitch == kCommon) return body(Fixed<kCommon>());
    body(pitch);
}

// Lines that the next block will copy, asked for a few at a time while this block computes: they lie far apart, so
// the processor does not foresee them, and fetched only when copied they cost more time than the arithmetic.
template <class Number>
class Ahead {
   public:
    Ahead() = default;
    Ahead(const Number* plane, int64_t pitch, int64_t channels, const PositionList& list, int64_t vectors,
          int64_t steps)
        : plane_(plane), pitch_(pitch), list_(list), vectors_(vectors), left_(channels * list.size),
          share_(ceil_divide(left_, larger(steps, 1))) {}

    __attribute__((always_inline)) void step(int64_t) {
        const int64_t count = smaller(share_, left_);
        left_ -= count;
        for (int64_t n = 0; n < count; ++n) {
            ask<false, 2>(plane_ + list_.positions[at_].plane, vectors_);
            if (++at_ == list_.size) {
                at_ = 0;
                plane_ += pitch_;
            }
        }
    }

   private:
    const Number* plane_ = nullptr;
    int64_t pitch_ = 0;
    PositionList list_{};
    int64_t vectors_ = 0;
    int64_t left_ = 0;
    int64_t share_ = 0;
    int64_t at_ = 0;
};

// Outputs of this size go around the caches: read before they are written they would take twice the time, and the next
// layer would find little of them there.
template <class Number>
static bool streams_outputs(const Number* output, int64_t numbers, int64_t batch) {
    constexpr int64_t kBytes = int64_t{8} << 20;
    return numbers * static_cast<int64_t>(sizeof(Number)) >= kBytes && batch % kLanes == 0 &&
           reinterpret_cast<uintptr_t>(output) % (kLanes * sizeof(Number)) == 0;
}

struct NothingAhead {
    void step(int64_t) const {}
};

constexpr int64_t kTileFloats = static_cast<int64_t>(kAccumulators) * kLanes;

// Where the tile of each output row stands: in a buffer, or in the activation itself.
template <class Number>
struct Rows {
    Number* first;
    int64_t pitch;       // between output rows (channels)
    int64_t line_pitch;  // between rows of the tile
    int64_t lanes;       // that exist, for Access::kSome
};
// Clang before 17 deduces nothing for an aggregate by itself.
template <class Number>
Rows(Number*, int64_t, int64_t, int64_t) -> Rows<Number>;

// How a tile meets memory: with all its lanes, with all around the caches, or with only some.
enum class Access { kAll, kStream, kSome };

template <Access kAccess, class Number>
static inline __attribute__((always_inline)) Vector read(const Number* from, int64_t lanes) {
    if (kAccess != Access::kSome || lanes >= kLanes) return load(from);
    Vector vector = {};
    for (int64_t lane = 0; lane < lanes; ++lane) vector[lane] = widened(from[lane]);
    return vector;
}

template <Access kAccess, class Number>
static inline __attribute__((always_inline)) void write(Number* to, Vector vector, int64_t lanes) {
    if (kAccess == Access::kStream) return stream(to, vector);
    if (kAccess != Access::kSome || lanes >= kLanes) return store(to, vector);
    for (int64_t lane = 0; lane < lanes; ++lane) put(to + lane, vector[lane]);
}

// For every segment: target[row] = the sum of value * packed[offset], added to the bias or, where they are not null, to
// the sums of earlier blocks. Those lie as the targets do, and may be the targets.
template <int kRows, int kRun, Access kAccess, class Number, class Pitch, class Ahead>
void gather_segments(const Segments& segments, const Entry* entries, const float* packed, Pitch line_pitch,
                     const Rows<Number> targets, const float* sums, const float* bias, Ahead& ahead) {
    for (int64_t segment = segments.first; segment < segments.last; ++segment) {
        const int64_t row = segments.row[segment];
        const float* const sum = sums ? sums + row * targets.pitch : nullptr;
        Number* const target = targets.first + row * targets.pitch;
        ahead.step(segment);
        Vector accumulator[kRows][kRun];
        const Vector initial = broadcast(bias ? bias[row] : 0.0f);
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j)
                accumulator[i][j] =
                    sum ? read<kAccess>(sum + i * targets.line_pitch + j * kLanes, targets.lanes - j * kLanes)
                        : initial;
        const Entry* const end = entries + segments.start[segment + 1];
        for (const Entry* entry = entries + segments.start[segment]; entry < end; ++entry) {
            const Lines<kRows, Pitch> lines(packed + entry->offset, line_pitch);
            const float value = entry->value;
            for (int i = 0; i < kRows; ++i)
                for (int j = 0; j < kRun; ++j) accumulator[i][j] += value * lines.at(i, j);
        }
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j)
                write<kAccess>(target + i * targets.line_pitch + j * kLanes, accumulator[i][j],
                               targets.lanes - j * kLanes);
    }
}

// Adds the two halves of every run of 2 * kHalf lanes, for two vectors at once: lanes with the bit kHalf hold `b`'s sums.
template <int kHalf, int... kLane>
static inline __attribute__((always_inline)) Vector join(Vector a, Vector b, std::integer_sequence<int, kLane...>) {
    return pick<(kLane & kHalf ? kLanes + kLane : kLane)...>(a, b) +
           pick<(kLane & kHalf ? kLanes + kLane - kHalf : kLane + kHalf)...>(a, b);
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

// gradient[entry] += the sum over the tile of sources[row] * packed[offset], for every entry of every segment; and, if
// not null, row_sums[row] += the tile of sources[row], lane by lane, for every segment.
template <int kRows, int kRun, Access kAccess, class Number, class Pitch, class Ahead>
void values_segments(const Segments& segments, const int32_t* offsets, const float* packed, Pitch line_pitch,
                     const Rows<const Number> sources, float* partials, float* gradient, float* row_sums,
                     Ahead& ahead) {
    const int32_t* start = segments.start;
    int64_t flushed = start[segments.first];
    float* partial = partials;
    for (int64_t segment = segments.first; segment < segments.last; ++segment) {
        const Number* const source = sources.first + segments.row[segment] * sources.pitch;
        ahead.step(segment);
        Vector factor[kRows][kRun];
        for (int i = 0; i < kRows; ++i)
            for (int j = 0; j < kRun; ++j)
                factor[i][j] = read<kAccess>(source + i * sources.line_pitch + j * kLanes, sources.lanes - j * kLanes);
        if (row_sums) {
            float* const row_sum = row_sums + segments.row[segment] * kLanes;
            Vector sum = load(row_sum);
            for (int n = 0; n < kRows * kRun; ++n) sum += factor[n / kRun][n % kRun];
            store(row_sum, sum);
        }
        for (int64_t entry = start[segment]; entry < start[segment + 1]; ++entry) {
            const Lines<kRows, Pitch> lines(packed + offsets[entry], line_pitch);
            // Two chains: one alone would wait for itself, and each more is an addition more.
            constexpr int kChains = 2;
            Vector sum[kChains] = {};
            for (int n = 0; n < kRows * kRun; ++n)
                sum[n % kChains] += factor[n / kRun][n % kRun] * lines.at(n / kRun, n % kRun);
            store(partial, sum[0] + sum[1]);
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
