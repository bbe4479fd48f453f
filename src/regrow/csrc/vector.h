// The one place that knows the width of a vector.
//
// GCC's and Clang's vector extensions turn the same source into SSE2, AVX2, AVX-512 or NEON instructions. CMake
// compiles the kernels once for each instruction set, with REGROW_VARIANT naming the namespace and REGROW_LANES and
// REGROW_REGISTERS saying what that set offers.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace regrow::REGROW_VARIANT {

constexpr int kLanes = REGROW_LANES;             // floats in one vector
constexpr int kAccumulators = REGROW_REGISTERS;  // vectors that one tile keeps in registers

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));
// The same type at any address: user tensors are aligned to one float only.
typedef float LooseVector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

static inline __attribute__((always_inline)) Vector load(const float* from) {
    return *reinterpret_cast<const LooseVector*>(from);
}

static inline __attribute__((always_inline)) void store(float* to, Vector value) {
    *reinterpret_cast<LooseVector*>(to) = value;
}

// Stores around the caches, to an address aligned to the vector; stream_fence() before others may read it.
static inline __attribute__((always_inline)) void stream(float* to, Vector value) {
#if defined(__SANITIZE_THREAD__)
    store(to, value);  // the sanitizer does not see what goes around the caches
#elif defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)value);
#elif defined(__AVX__)
    _mm256_stream_ps(to, (__m256)value);
#else
    store(to, value);
#endif
}

static inline void stream_fence() {
#if defined(__AVX__)
    _mm_sfence();
#endif
}

// The lanes of two vectors, numbered through, that stand in the list. GCC has Clang's builtin from version 12 on.
template <int... kPicked>
static inline __attribute__((always_inline)) Vector pick(Vector a, Vector b) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, kPicked...);
#else
    return __builtin_shuffle(a, b, Integers{kPicked...});
#endif
}

static inline __attribute__((always_inline)) Vector broadcast(float value) { return value - Vector{}; }

}  // namespace regrow::REGROW_VARIANT
