// Blocked transposes, for activations that arrive in another layout.
#pragma once

#include "plan.h"

namespace regrow::REGROW_VARIANT {

// A square of 16 x 16 floats touches 16 lines on either side: both fit the first-level cache whatever the strides.
constexpr int64_t kSquare = 16;

static inline void transpose_square(const float* from, int64_t from_pitch, float* to, int64_t to_pitch, int64_t rows,
                                    int64_t columns) {
    float square[kSquare][kSquare];
    if (rows == kSquare && columns == kSquare) {
        for (int64_t i = 0; i < kSquare; ++i)
            for (int64_t j = 0; j < kSquare; ++j) square[j][i] = from[i * from_pitch + j];
        for (int64_t j = 0; j < kSquare; ++j)
            for (int64_t i = 0; i < kSquare; ++i) to[j * to_pitch + i] = square[j][i];
        return;
    }
    for (int64_t j = 0; j < columns; ++j)
        for (int64_t i = 0; i < rows; ++i) to[j * to_pitch + i] = from[i * from_pitch + j];
}

static void transpose(const float* from, int64_t from_pitch, int64_t from_distance, float* to, int64_t to_pitch,
                      int64_t to_distance, int64_t rows, int64_t columns, int64_t count, int threads) {
    const int64_t bands = ceil_divide(columns, kSquare);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < count * bands; ++item) {
        const int64_t matrix = item / bands, column = item % bands * kSquare;
        for (int64_t row = 0; row < rows; row += kSquare)
            transpose_square(from + matrix * from_distance + row * from_pitch + column, from_pitch,
                             to + matrix * to_distance + column * to_pitch + row, to_pitch,
                             smaller(kSquare, rows - row), smaller(kSquare, columns - column));
    }
}

}  // namespace regrow::REGROW_VARIANT
