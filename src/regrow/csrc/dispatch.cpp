// Chooses an instruction set for the processor at hand.
#include <cstring>

#include "kernels.h"

namespace regrow {

namespace portable {
extern const Kernels kKernels;
}
#ifdef REGROW_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

namespace {

// Best first; null where this processor cannot run it.
struct Choice {
    const Kernels* kernels[3];
};

Choice available() {
#ifdef REGROW_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    return {{has_avx512 ? &avx512::kKernels : nullptr, has_avx2 ? &avx2::kKernels : nullptr, &portable::kKernels}};
#else
    return {{&portable::kKernels, nullptr, nullptr}};
#endif
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
