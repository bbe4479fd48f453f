// Chooses an instruction set for the processor at hand.
#include <cstring>

#include "kernels.h"

namespace regrow {

// Declares what kernels.cpp defines for an instruction set.
#define REGROW_DECLARE(variant)                            \
    namespace variant {                                    \
    extern const KernelsOf<float> kFloat32;                \
    extern const KernelsOf<Bfloat16> kBfloat16;            \
    const Kernels kKernels{#variant, kFloat32, kBfloat16}; \
    }
REGROW_DECLARE(portable)
#ifdef REGROW_AVX2
REGROW_DECLARE(avx2)
#endif
#ifdef REGROW_AVX512
REGROW_DECLARE(avx512)
#endif

namespace {

// Best first; null where this processor cannot run it, or the build lacks it.
struct Choice {
    const Kernels* kernels[3];
};

Choice available() {
    Choice choice{{nullptr, nullptr, &portable::kKernels}};
#if defined(REGROW_AVX2) || defined(REGROW_AVX512)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef REGROW_AVX512
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (has_avx512) choice.kernels[0] = &avx512::kKernels;
#endif
#ifdef REGROW_AVX2
    if (has_avx2) choice.kernels[1] = &avx2::kKernels;
#endif
    return choice;
}

}  // namespace

const Kernels* find_kernels(const char* name) {
    for (const Kernels* kernels : available().kernels)
        if (kernels && std::strcmp(kernels->name, name) == 0) return kernels;
    return nullptr;
}

const Kernels& best_kernels() {
    for (const Kernels* kernels : available().kernels)
        if (kernels) return *kernels;
    return portable::kKernels;
}

}  // namespace regrow
