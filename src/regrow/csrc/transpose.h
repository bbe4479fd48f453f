// Blocked transposes, for activations that go from one layout to another.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "plan.h"

namespace regrow::REGROW_VARIANT {

// A tile of 64 x 64 numbers fits the first-level cache. Runs of four lines are read and written at once: rows that lie a
// power of two apart share their cache sets, so that of single lines the neighbours fetched along would be lost.
constexpr int64_t kTile = 64;

// As many numbers, of their own type, as a vector of floats has.
template <class Number>
using Numbers = std::conditional_t<sizeof(Number) == sizeof(float), Vector, Halves>;

// The lanes of two vectors in turn, from kFirst on.
template <int kFirst, class Lanes, int... kLane>
static inline __attribute__((always_inline)) Lanes alternate(Lanes a, Lanes b, std::integer_sequence<int, kLane...>) {
    return pick<(kFirst + kLane / 2 + kLane % 2 * kLanes)...>(a, b);
}

// Transposes a square of kLanes x kLanes numbers: each round deals the rows of the lower half between those of the upper
// one, as cards are shuffled, and as many rounds as the row number has bits bring every number to its place.
template <class Number>
static inline __attribute__((always_inline)) void transpose_square(const Number* from, int64_t from_pitch, Number* to,
                                                                   int64_t to_pitch) {
    using Lanes = Numbers<Number>;
    const std::make_integer_sequence<int, kLanes> lanes;
    Lanes rows[kLanes], dealt[kLanes];
    for (int i = 0; i < kLanes; ++i) std::memcpy(&rows[i], from + i * from_pitch, sizeof(Lanes));
    for (int round = 1; round < kLanes; round *= 2) {
        for (int i = 0; i < kLanes / 2; ++i) {
            dealt[2 * i] = alternate<0>(rows[i], rows[i + kLanes / 2], lanes);
            dealt[2 * i + 1] = alternate<kLanes / 2>(rows[i], rows[i + kLanes / 2], lanes);
        }
        for (int i = 0; i < kLanes; ++i) rows[i] = dealt[i];
    }
    for (int i = 0; i < kLanes; ++i) std::memcpy(to + i * to_pitch, &rows[i], sizeof(Lanes));
}

template <class Number>
static inline __attribute__((always_inline)) void transpose_tile(const Number* from, int64_t from_pitch, Number* to,
                                                                 int64_t to_pitch, int64_t rows, int64_t columns) {
    alignas(64) Number tile[kTile][kTile];
    const int64_t whole_rows = rows / kLanes * kLanes, whole_columns = columns / kLanes * kLanes;
    for (int64_t i = 0; i < whole_rows; i += kLanes)
        for (int64_t j = 0; j < whole_columns; j += kLanes)
            transpose_square(from + i * from_pitch + j, from_pitch, &tile[j][i], kTile);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) tile[j][i] = from[i * from_pitch + j];
    for (int64_t j = 0; j < columns; ++j) std::memcpy(to + j * to_pitch, tile[j], rows * sizeof(Number));
}

template <class Number>
static void transpose(const Number* from, int64_t from_pitch, int64_t from_distance, Number* to, int64_t to_pitch,
                      int64_t to_distance, int64_t rows, int64_t columns, int64_t count, int threads) {
    const int64_t bands = ceil_divide(columns, kTile);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < count * bands; ++item) {
        const int64_t matrix = item / bands, column = item % bands * kTile;
        const Number* const source = from + matrix * from_distance + column;
        Number* const target = to + matrix * to_distance + column * to_pitch;
        const int64_t width = smaller(kTile, columns - column);
        for (int64_t row = 0; row < rows; row += kTile) {
            const int64_t height = smaller(kTile, rows - row);
            // Sizes that the compiler knows give it loops without remainders.
            if (height == kTile && width == kTile)
                transpose_tile(source + row * from_pitch, from_pitch, target + row, to_pitch, kTile, kTile);
            else
                transpose_tile(source + row * from_pitch, from_pitch, target + row, to_pitch, height, width);
        }
    }
}

}  // namespace regrow::REGROW_VARIANT
