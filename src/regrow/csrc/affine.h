// What normalisation makes of a channel's numbers: in a pass of its own, and where a convolution's inputs are packed.
#pragma once

#include "vector.h"

namespace regrow::REGROW_VARIANT {

// What one channel's numbers become: (x - mean) * scale + bias.
struct Affine {
    Vector mean;
    Vector scale;
    Vector bias;
    double inverse;  // of the standard deviation

    Affine() = default;
    Affine(const Normalisation& shape, const NormalisationTensors& tensors, int64_t channel)
        : mean(broadcast(tensors.mean[channel])),
          inverse(1.0 / __builtin_sqrt(static_cast<double>(tensors.variance[channel]) + shape.epsilon)) {
        const double weight = tensors.weight ? tensors.weight[channel] : 1.0;
        scale = broadcast(static_cast<float>(weight * inverse));
        bias = broadcast(tensors.bias ? tensors.bias[channel] : 0.0f);
    }

    // With the scale that the above found.
    Affine(const NormalisationTensors& tensors, int64_t channel, float its_scale)
        : mean(broadcast(tensors.mean[channel])), scale(broadcast(its_scale)),
          bias(broadcast(tensors.bias ? tensors.bias[channel] : 0.0f)), inverse(0) {}

    __attribute__((always_inline)) Vector operator()(Vector x) const { return (x - mean) * scale + bias; }
};

// NaN stays NaN in both, as in PyTorch.
static inline __attribute__((always_inline)) Vector rectified(Vector value) {
    return value < Vector{} ? Vector{} : value;
}

}  // namespace regrow::REGROW_VARIANT
