// Blocked transposes, for activations that go from one layout to another.
#pragma once

#include <cstring>

#include "plan.h"

namespace regrow::REGROW_VARIANT {

// A tile of 64 x 64 numbers fits the first-level cache. Runs of four lines are read and written at once: rows that lie a
// power of two apart share their cache sets, so that of single lines the neighbours fetched along would be lost.
constexpr int64_t kTile = 64;

template <class Number>
static inline __attribute__((always_inline)) void transpose_tile(const Number* from, int64_t from_pitch, Number* to,
                                                                 int64_t to_pitch, int64_t rows, int64_t columns) {
    alignas(64) Number tile[kTile][kTile];
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) tile[j][i] = from[i * from_pitch + j];
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
