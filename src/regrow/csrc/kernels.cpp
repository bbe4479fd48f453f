// The kernels of one instruction set; compiled once for each.
#include "kernels.h"

#include "blocked.h"
#include "dropout.h"
#include "normalise.h"
#include "pool.h"
#include "rows.h"
#include "sweep.h"
#include "transpose.h"

namespace regrow::REGROW_VARIANT {
namespace {

// The sweep has nothing to offer where most lanes of its tiles would be empty.
bool sweeps(const Geometry& geometry, const Index& index) {
    return index.sweep && (geometry.height.output == 1 || geometry.batch > 2 * kLanes);
}

// Calls body(rows, vectors) with the tile of a sweep as compile-time constants: as many lanes as the batch fills. On a
// plane of one row fewer lanes let more channels stand in the second-level cache, and more threads share the work.
template <class Body>
void with_tile(const Geometry& geometry, Body&& body) {
    const int64_t lanes = static_cast<int64_t>(kAccumulators) * kLanes;
    using std::integral_constant;
    if (geometry.height.output == 1) return body(integral_constant<int, 1>(), integral_constant<int, 4>());
    if (geometry.batch > lanes / 4)
        return body(integral_constant<int, 2>(), integral_constant<int, kAccumulators / 2>());
    body(integral_constant<int, 4>(), integral_constant<int, kAccumulators / 4>());
}

// With so few samples most lanes along the batch would be empty. The gradient of a strided input is left to others.
bool few_samples(const Geometry& geometry) {
    const bool strided = geometry.height.stride > 1 || geometry.width.stride > 1;
    return geometry.batch < kLanes && !(geometry.transposed && strided);
}

bool gather(const Geometry& geometry, const Index& index, const float* values, const float* bias, const float* input,
            float* output, int threads) {
    if (few_samples(geometry)) return gather_rows(geometry, index, values, bias, input, output, threads);
    if (!sweeps(geometry, index)) return blocked_gather(geometry, index, values, bias, input, output, threads);
    bool complete = false;
    with_tile(geometry, [&](auto rows, auto vectors) {
        complete = sweep_gather<decltype(rows)::value, decltype(vectors)::value>(geometry, index, values, bias, input,
                                                                                 output, threads);
    });
    return complete;
}

bool values_gradient(const Geometry& geometry, const Index& index, const float* output_gradient, const float* input,
                     float* gradient, float* bias_gradient, int threads) {
    if (!sweeps(geometry, index))
        return blocked_values_gradient(geometry, index, output_gradient, input, gradient, bias_gradient, threads);
    bool complete = false;
    with_tile(geometry, [&](auto rows, auto vectors) {
        complete = sweep_values_gradient<decltype(rows)::value, decltype(vectors)::value>(
            geometry, index, output_gradient, input, gradient, bias_gradient, threads);
    });
    return complete;
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {REGROW_NAME, gather,   values_gradient,   transpose, normalise,         normalise_gradient,
                          drop,        max_pool, max_pool_gradient, mean_pool, mean_pool_gradient};

}  // namespace regrow::REGROW_VARIANT
