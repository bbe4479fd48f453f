// The kernels of one instruction set; compiled once for each.
#include "kernels.h"

#include "blocked.h"
#include "sweep.h"
#include "transpose.h"

namespace regrow::REGROW_VARIANT {
namespace {

// Rows of a sweep's tile: as few as leave no lane of the batch without work.
int sweep_rows(const Geometry& geometry) {
    if (geometry.batch > kAccumulators * kLanes / 2 && (geometry.height.output == 1 || geometry.height.kernel == 1)) return 1;
    return geometry.batch > kAccumulators * kLanes / 4 ? 2 : 4;
}

bool gather(const Geometry& geometry, const Index& index, const float* values, const float* bias, const float* input,
            float* output, int threads) {
    if (!index.sweep) return blocked_gather(geometry, index, values, bias, input, output, threads);
    bool complete = false;
    with_rows(sweep_rows(geometry), [&](auto rows) {
        complete = sweep_gather<decltype(rows)::value>(geometry, index, values, bias, input, output, threads);
    });
    return complete;
}

bool values_gradient(const Geometry& geometry, const Index& index, const float* output_gradient, const float* input,
                     float* gradient, int threads) {
    if (!index.sweep) return blocked_values_gradient(geometry, index, output_gradient, input, gradient, threads);
    bool complete = false;
    with_rows(sweep_rows(geometry), [&](auto rows) {
        complete = sweep_values_gradient<decltype(rows)::value>(geometry, index, output_gradient, input, gradient, threads);
    });
    return complete;
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {REGROW_NAME, gather, values_gradient, transpose};

}  // namespace regrow::REGROW_VARIANT
