// The kernels of one instruction set for one type of activations; compiled once for each of either.
#include "kernels.h"

#include "blocked.h"
#include "dropout.h"
#include "normalise.h"
#include "pool.h"
#include "rows.h"
#include "single_weights.h"
#include "sweep.h"
#include "transpose.h"
#include "units.h"
#include "units_values.h"

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

int64_t output_numbers(const Geometry& geometry) {
    return geometry.batch * geometry.height.output * geometry.width.output;
}

// Calls body(unit, vectors) with what a driver of units takes as compile-time constants: as many vectors as the batch
// fills.
template <class Body>
bool with_unit(const Geometry& geometry, const Index& index, Body&& body) {
    using std::integral_constant;
    const auto with_vectors = [&](auto unit) {
        constexpr int kRun = kAccumulators / decltype(unit)::value;
        if (kRun > 1 && geometry.batch <= kRun / 2 * kLanes)
            return body(unit, integral_constant<int, (kRun > 1 ? kRun / 2 : 1)>());
        return body(unit, integral_constant<int, kRun>());
    };
    if (index.unit == 2) return with_vectors(integral_constant<int, 2>());
    if (index.unit == 4) return with_vectors(integral_constant<int, 4>());
    return with_vectors(integral_constant<int, 8>());
}

// Without input channels, outputs are the bias.
template <class Number>
bool gather_nothing(const Geometry& geometry, int64_t rows, const float* bias, Number* output) {
    const int64_t numbers = output_numbers(geometry);
    for (int64_t i = 0; i < rows * numbers; ++i) put(output + i, bias ? bias[i / numbers] : 0.0f);
    return true;
}

// Without input channels or without outputs there are no products to sum up.
template <class Number>
bool values_gradient_of_nothing(const Geometry& geometry, const Index& index, const Number* output_gradient,
                                float* gradient, float* bias_gradient) {
    for (int64_t value = 0; value < index.nonzeros * index.unit; ++value) gradient[value] = 0.0f;
    if (!bias_gradient) return true;
    const int64_t numbers = output_numbers(geometry);
    for (int64_t row = 0; row < index.rows; ++row) {
        bias_gradient[row] = 0.0f;
        for (int64_t i = 0; i < numbers; ++i) bias_gradient[row] += widened(output_gradient[row * numbers + i]);
    }
    return true;
}

template <class Number>
bool gather(const Geometry& geometry, const Index& index, const float* values, const float* bias, const Number* input,
            Number* output, int threads) {
    if (output_numbers(geometry) == 0 || index.rows == 0) return true;
    if (index.channels == 0) return gather_nothing(geometry, index.rows, bias, output);
    if (index.unit > 1 && few_samples(geometry)) {
        const SingleWeights single(index);
        return single && gather_rows(geometry, single.index(), values, bias, input, output, threads);
    }
    if (index.unit > 1)
        return with_unit(geometry, index, [&](auto unit, auto vectors) {
            return units_gather<decltype(unit)::value, decltype(vectors)::value>(geometry, index, values, bias, input,
                                                                                 output, threads);
        });
    if (few_samples(geometry)) return gather_rows(geometry, index, values, bias, input, output, threads);
    if (!sweeps(geometry, index)) return blocked_gather(geometry, index, values, bias, input, output, threads);
    bool complete = false;
    with_tile(geometry, [&](auto rows, auto vectors) {
        complete = sweep_gather<decltype(rows)::value, decltype(vectors)::value>(geometry, index, values, bias, input,
                                                                                 output, threads);
    });
    return complete;
}

template <class Number>
bool input_gradient(const Geometry& geometry, const Index& index, const float* values, const Number* output_gradient,
                    Number* input_gradient, int threads) {
    const int64_t numbers = geometry.batch * geometry.height.input * geometry.width.input * index.channels;
    if (output_numbers(geometry) == 0 || index.rows == 0) {
        for (int64_t i = 0; i < numbers; ++i) input_gradient[i] = Number{};
        return true;
    }
    if (numbers == 0) return true;
    return with_unit(geometry, index, [&](auto unit, auto vectors) {
        return units_input_gradient<decltype(unit)::value, decltype(vectors)::value>(
            geometry, index, values, output_gradient, input_gradient, threads);
    });
}

template <class Number>
bool values_gradient(const Geometry& geometry, const Index& index, const Number* output_gradient, const Number* input,
                     const Normalised* normalised, float* gradient, float* bias_gradient, int threads) {
    if (output_numbers(geometry) == 0 || index.rows == 0 || index.channels == 0)
        return values_gradient_of_nothing(geometry, index, output_gradient, gradient, bias_gradient);
    const AsNormalised how(normalised, index.channels);
    if (!how) return false;
    if (index.unit > 1)
        return with_unit(geometry, index, [&](auto unit, auto vectors) {
            constexpr int kUnit = decltype(unit)::value, kRun = decltype(vectors)::value;
            const auto with_run = [&](auto run) {
                return units_values_gradient<kUnit, decltype(run)::value>(geometry, index, output_gradient, input, how,
                                                                          gradient, bias_gradient, threads);
            };
            // Longer runs are read faster from memory, but leave the ring fewer rows.
            if constexpr (kRun * kUnit == kAccumulators && kRun * kLanes <= 64)
                if (geometry.batch > kRun * kLanes && values_want_long_runs<kUnit, 2 * kRun>(geometry, index, threads))
                    return with_run(std::integral_constant<int, 2 * kRun>());
            return with_run(std::integral_constant<int, kRun>());
        });
    if (!sweeps(geometry, index))
        return blocked_values_gradient(geometry, index, output_gradient, input, how, gradient, bias_gradient, threads);
    bool complete = false;
    with_tile(geometry, [&](auto rows, auto vectors) {
        complete = sweep_values_gradient<decltype(rows)::value, decltype(vectors)::value>(
            geometry, index, output_gradient, input, how, gradient, bias_gradient, threads);
    });
    return complete;
}

}  // namespace

extern const KernelsOf<REGROW_NUMBER> REGROW_KERNELS;
const KernelsOf<REGROW_NUMBER> REGROW_KERNELS = {
    .gather = gather<REGROW_NUMBER>,
    .input_gradient = input_gradient<REGROW_NUMBER>,
    .values_gradient = values_gradient<REGROW_NUMBER>,
    .transpose = transpose<REGROW_NUMBER>,
    .normalise = normalise<REGROW_NUMBER>,
    .normalise_gradient = normalise_gradient<REGROW_NUMBER>,
    .drop = drop<REGROW_NUMBER>,
    .max_pool = max_pool<REGROW_NUMBER>,
    .max_pool_gradient = max_pool_gradient<REGROW_NUMBER>,
    .mean_pool = mean_pool<REGROW_NUMBER>,
    .mean_pool_gradient = mean_pool_gradient<REGROW_NUMBER>,
};

}  // namespace regrow::REGROW_VARIANT
