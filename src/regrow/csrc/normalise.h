// Batch normalisation, the sum with a residual, ReLU and dropout in one go, over activations with the batch innermost.
//
// A channel is one contiguous run. A thread takes it whole: sums first, then, while as much of it as fits is still in
// the cache, what is written. Nothing depends on the number of threads.
#pragma once

#include "affine.h"
#include "dropout.h"

namespace regrow::REGROW_VARIANT {

// Numbers whose sums are single precision: half of a first-level cache. Beyond, sums are double.
constexpr int64_t kSummed = 4096;

struct Sums {
    double first = 0;
    double second = 0;
};

// The sums over a run of the two terms that term(at, access, lanes, terms) gives for each vector.
template <class Term>
static inline __attribute__((always_inline)) Sums sum_run(int64_t count, Term&& term) {
    constexpr int kChains = 4;
    Vector sums[kChains][2] = {};
    int64_t at = 0;
    for (; at + kChains * kLanes <= count; at += kChains * kLanes)
        for (int chain = 0; chain < kChains; ++chain) {
            Vector terms[2];
            term(at + chain * kLanes, Accessed<Access::kAll>(), int64_t{kLanes}, terms);
            for (int i = 0; i < 2; ++i) sums[chain][i] += terms[i];
        }
    for (; at < count; at += kLanes) {
        Vector terms[2];
        const int64_t lanes = smaller(kLanes, count - at);
        term(at, Accessed<Access::kSome>(), lanes, terms);
        for (int i = 0; i < 2; ++i)
            for (int64_t lane = 0; lane < lanes; ++lane) sums[0][i][lane] += terms[i][lane];
    }
    Sums result;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
        result.first += (sums[0][0][lane] + sums[1][0][lane]) + (sums[2][0][lane] + sums[3][0][lane]);
        result.second += (sums[0][1][lane] + sums[1][1][lane]) + (sums[2][1][lane] + sums[3][1][lane]);
    }
    return result;
}

struct Moments {
    double mean;
    double variance;  // biased
};

// A block's moments about its own mean, read twice from the first-level cache; blocks are joined in double precision.
template <class Number>
static inline Moments moments_of(const Number* run, int64_t length) {
    double mean = 0, squares = 0;
    for (int64_t first = 0; first < length; first += kSummed) {
        const int64_t count = smaller(kSummed, length - first);
        const Number* const block = run + first;
        const Sums sums = sum_run(count, [&](int64_t at, auto access, int64_t lanes, Vector* terms) {
            terms[0] = read<decltype(access)::value>(block + at, lanes);
            terms[1] = Vector{};
        });
        const float near = static_cast<float>(sums.first / static_cast<double>(count));
        const Vector about = broadcast(near);
        const Sums deviations = sum_run(count, [&](int64_t at, auto access, int64_t lanes, Vector* terms) {
            terms[0] = read<decltype(access)::value>(block + at, lanes) - about;
            terms[1] = terms[0] * terms[0];
        });
        const double here = static_cast<double>(count), before = static_cast<double>(first), all = here + before;
        const double offset = deviations.first / here, distance = near + offset - mean;
        squares += deviations.second - deviations.first * offset + distance * distance * (before / all) * here;
        mean += distance * (here / all);
    }
    return {mean, squares > 0 || squares != squares ? squares / static_cast<double>(length) : 0.0};
}

static inline __attribute__((always_inline)) Vector where_positive(Vector value, Vector gradient) {
    return value <= Vector{} ? Vector{} : gradient;
}

// The running statistics of one channel, after this batch; `share` is what this batch counts.
static inline void follow(const RunningStatistics& running, int64_t channel, const Moments& moments, int64_t length,
                          double share) {
    const auto moved = [&](float& statistic, double towards) {
        statistic = static_cast<float>((1.0 - share) * static_cast<double>(statistic) + share * towards);
    };
    const auto count = static_cast<double>(length);
    moved(running.mean[channel], moments.mean);
    moved(running.variance[channel], moments.variance * (count / (count - 1.0)));
}

template <class Number>
static void normalise(const Normalisation& shape, const NormalisationTensors& tensors, const RunningStatistics& running,
                      const Number* input, const Number* residual, Number* output, int threads) {
    double share = running.momentum;
    if (running.batches) {
        *running.batches += 1;
        if (share < 0) share = 1.0 / static_cast<double>(*running.batches);
    }
    const bool streams = streams_outputs(output, shape.channels * shape.length, shape.length);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t channel = 0; channel < shape.channels; ++channel) {
            const Number* const from = input + channel * shape.length;
            const Number* const more = residual ? residual + channel * shape.length : nullptr;
            Number* const to = output + channel * shape.length;
            if (shape.training) {
                const Moments moments = moments_of(from, shape.length);
                tensors.mean[channel] = static_cast<float>(moments.mean);
                tensors.variance[channel] = static_cast<float>(moments.variance);
                if (running.mean) follow(running, channel, moments, shape.length, share);
            }
            const Affine affine(shape, tensors, channel);
            const auto run = [&](auto stored, auto adds, auto rectifies, auto drops) {
                const Kept kept(shape.dropout, channel);
                for_vectors<Access::kAll>(shape.length, [&](int64_t at, auto access, int64_t lanes) {
                    constexpr Access kRead = decltype(access)::value;
                    constexpr Access kWrite = kRead == Access::kAll ? decltype(stored)::value : kRead;
                    Vector value = affine(read<kRead>(from + at, lanes));
                    if (adds) value += read<kRead>(more + at, lanes);
                    if (rectifies) value = rectified(value);
                    if (drops) value = kept.of(value, at);
                    write<kWrite>(to + at, value, lanes);
                });
            };
            with_access(streams, [&](auto stored) {
                with_flag(more != nullptr, [&](auto adds) {
                    with_flag(shape.relu, [&](auto rectifies) {
                        with_flag(shape.dropout.share > 0, [&](auto drops) { run(stored, adds, rectifies, drops); });
                    });
                });
            });
        }
        stream_fence();
    }
}

// One channel of the gradients. `gradient_at(at, access, lanes, x)` is the gradient before the activation.
template <class Number, class GradientAt>
static inline __attribute__((always_inline)) void normalise_gradient_run(
    const Normalisation& shape, const NormalisationTensors& tensors, const NormalisationGradients<Number>& gradients,
    int64_t channel, const Number* from, bool streams, GradientAt&& gradient_at) {
    const Affine affine(shape, tensors, channel);
    Sums sums;
    if (shape.training || gradients.weight || gradients.bias)
        for (int64_t first = 0; first < shape.length; first += kSummed) {
            const Sums block = sum_run(smaller(kSummed, shape.length - first),
                                       [&](int64_t at, auto access, int64_t lanes, Vector* terms) {
                                           const Vector x = read<decltype(access)::value>(from + first + at, lanes);
                                           terms[0] = gradient_at(first + at, access, lanes, x);
                                           terms[1] = terms[0] * (x - affine.mean);
                                       });
            sums.first += block.first;
            sums.second += block.second;
        }
    if (gradients.weight) gradients.weight[channel] = static_cast<float>(sums.second * affine.inverse);
    if (gradients.bias) gradients.bias[channel] = static_cast<float>(sums.first);
    Number* const to = gradients.input ? gradients.input + channel * shape.length : nullptr;
    Number* const also = gradients.residual ? gradients.residual + channel * shape.length : nullptr;
    if (!to && !also) return;
    // Batch statistics move with every input: their part is taken off.
    const double share = shape.training ? affine.scale[0] / static_cast<double>(shape.length) : 0.0;
    const Vector offset = broadcast(static_cast<float>(-share * sums.first));
    const Vector slope = broadcast(static_cast<float>(-share * sums.second * affine.inverse * affine.inverse));
    with_access(streams, [&](auto stored) {
        for_vectors<Access::kAll>(shape.length, [&](int64_t at, auto access, int64_t lanes) {
            constexpr Access kRead = decltype(access)::value;
            constexpr Access kWrite = kRead == Access::kAll ? decltype(stored)::value : kRead;
            const Vector x = read<kRead>(from + at, lanes);
            const Vector gradient = gradient_at(at, access, lanes, x);
            if (to) write<kWrite>(to + at, gradient * affine.scale + (slope * (x - affine.mean) + offset), lanes);
            if (also) write<kWrite>(also + at, gradient, lanes);
        });
    });
}

template <class Number>
static void normalise_gradient(const Normalisation& shape, const NormalisationTensors& tensors,
                               const Number* output_gradient, const Number* input, const Number* output,
                               const NormalisationGradients<Number>& gradients, int threads) {
    const int64_t numbers = shape.channels * shape.length;
    const bool streams = (!gradients.input || streams_outputs(gradients.input, numbers, shape.length)) &&
                         (!gradients.residual || streams_outputs(gradients.residual, numbers, shape.length));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t channel = 0; channel < shape.channels; ++channel) {
            const Number* const arriving = output_gradient + channel * shape.length;
            const Number* const from = input + channel * shape.length;
            const Number* const left = output ? output + channel * shape.length : nullptr;
            const auto run = [&](auto&& gradient_at) __attribute__((always_inline)) {
                normalise_gradient_run(shape, tensors, gradients, channel, from, streams, gradient_at);
            };
            const Kept kept(shape.dropout, channel);
            with_flag(shape.dropout.share > 0, [&](auto drops) {
                const auto passed = [&](int64_t at, auto access, int64_t lanes) __attribute__((always_inline)) {
                    const Vector gradient = read<decltype(access)::value>(arriving + at, lanes);
                    return drops ? kept.of(gradient, at) : gradient;
                };
                if (!shape.relu) {
                    run([&](int64_t at, auto access, int64_t lanes, Vector) { return passed(at, access, lanes); });
                } else if (left) {
                    run([&](int64_t at, auto access, int64_t lanes, Vector) {
                        return where_positive(read<decltype(access)::value>(left + at, lanes),
                                              passed(at, access, lanes));
                    });
                } else {
                    // What was positive follows from the input: one tensor less to read.
                    const Affine affine(shape, tensors, channel);
                    run([&](int64_t at, auto access, int64_t lanes, Vector x) {
                        return where_positive(affine(x), passed(at, access, lanes));
                    });
                }
            });
        }
        stream_fence();
    }
}

}  // namespace regrow::REGROW_VARIANT
