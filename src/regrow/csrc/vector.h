// The one place that knows the width of a vector.
//
// GCC's and Clang's vector extensions turn the same source into SSE2, AVX2, AVX-512 or NEON instructions. CMake
// compiles the kernels once for each instruction set and type of activations: REGROW_VARIANT names the namespace,
// REGROW_LANES and REGROW_REGISTERS say what that set offers, REGROW_NUMBER is the type and REGROW_KERNELS what its
// kernels are called.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace regrow::REGROW_VARIANT {

constexpr int kLanes = REGROW_LANES;             // floats in one vector
constexpr int kAccumulators = REGROW_REGISTERS;  // vectors that one tile keeps in registers

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
// The same types at any address: user tensors are aligned to one number only.
typedef float LooseVector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef uint16_t LooseHalves
    __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(sizeof(uint16_t)), may_alias));

static inline __attribute__((always_inline)) Vector load(const float* from) {
    return *reinterpret_cast<const LooseVector*>(from);
}

static inline __attribute__((always_inline)) Vector load(const Bfloat16* from) {
    const Halves halves = *reinterpret_cast<const LooseHalves*>(from);
    return (Vector)(__builtin_convertvector(halves, Words) << 16);
}

static inline __attribute__((always_inline)) void store(float* to, Vector value) {
    *reinterpret_cast<LooseVector*>(to) = value;
}

// The nearest bfloat16, of two as near the even one; NaN stays NaN. By integers, so that every instruction set gives
// the same bits.
static inline __attribute__((always_inline)) Halves rounded(Vector value) {
    const Words words = (Words)value, nearest = (words + 0x7fff + (words >> 16 & 1)) >> 16;
    return __builtin_convertvector(value != value ? Words{} + 0x7fc0 : nearest, Halves);
}

static inline __attribute__((always_inline)) void store(Bfloat16* to, Vector value) {
    *reinterpret_cast<LooseHalves*>(to) = rounded(value);
}

// What is left of a value once it was stored as such a number.
template <class Number>
static inline __attribute__((always_inline)) Vector as_stored(Vector value) {
    if constexpr (sizeof(Number) == sizeof(float))
        return value;
    else
        return (Vector)(__builtin_convertvector(rounded(value), Words) << 16);
}

// Single numbers.
static inline float widened(float number) { return number; }
static inline float widened(Bfloat16 number) { return __builtin_bit_cast(float, uint32_t{number.bits} << 16); }
static inline void put(float* to, float number) { *to = number; }
static inline void put(Bfloat16* to, float number) {
    const auto word = __builtin_bit_cast(uint32_t, number);
    to->bits = static_cast<uint16_t>(number != number ? 0x7fc0 : (word + 0x7fff + (word >> 16 & 1)) >> 16);
}

// Stores around the caches, to an address aligned to as many numbers as a vector has; stream_fence() before others may read it.
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

static inline __attribute__((always_inline)) void stream(Bfloat16* to, Vector value) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)rounded(value));
#elif defined(__AVX__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)rounded(value));
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
template <int... kPicked, class Lanes>
static inline __attribute__((always_inline)) Lanes pick(Lanes a, Lanes b) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, kPicked...);
#else
    if constexpr (sizeof(Lanes) == sizeof(Integers))
        return __builtin_shuffle(a, b, Integers{kPicked...});
    else
        return __builtin_shuffle(a, b, Halves{kPicked...});
#endif
}

static inline __attribute__((always_inline)) Vector broadcast(float value) { return value - Vector{}; }

}  // namespace regrow::REGROW_VARIANT
