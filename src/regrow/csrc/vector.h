// The one place that knows the width of a vector.
//
// GCC's and Clang's vector extensions turn the same source into SSE2, AVX2, AVX-512 or NEON instructions. CMake
// compiles the kernels once for each instruction set, with REGROW_VARIANT naming the namespace and REGROW_LANES and
// REGROW_REGISTERS saying what that set offers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace regrow::REGROW_VARIANT {

constexpr int kLanes = REGROW_LANES;          // floats in one vector
constexpr int kAccumulators = REGROW_REGISTERS;  // vectors that one tile keeps in registers

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
// The same type at any address: user tensors are aligned to one float only.
typedef float LooseVector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

static inline __attribute__((always_inline)) Vector load(const float* from) {
    return *reinterpret_cast<const LooseVector*>(from);
}

static inline __attribute__((always_inline)) void store(float* to, Vector value) {
    *reinterpret_cast<LooseVector*>(to) = value;
}

static inline __attribute__((always_inline)) Vector broadcast(float value) { return value - Vector{}; }

}  // namespace regrow::REGROW_VARIANT
