// Copies between activations, [channel][plane][batch], and the packed tiles that the inner kernels read and write.
#pragma once

#include "affine.h"
#include "plan.h"

namespace regrow::REGROW_VARIANT {

// One position of a channel: the same for every channel, so a tile lists its positions once.
struct Position {
    int64_t packed;  // floats from the channel's packed start
    int64_t plane;   // numbers from the channel's start in the activation
};

struct PositionList {
    Position* positions;
    int64_t size;
};

// Lists the positions of a tile of outputs, starting at (top, left), that exist.
static inline PositionList list_outputs(const PhasePlan& plan, const Geometry& geometry, const Tile& tile, int64_t top,
                                        int64_t left, Position* into) {
    int64_t size = 0;
    for (int64_t i = 0; i < tile.height; ++i) {
        const int64_t row = plan.height.target(top + i);
        if (row < 0) continue;
        for (int64_t j = 0; j < tile.width; ++j) {
            const int64_t column = plan.width.target(left + j);
            if (column < 0) continue;
            into[size++] = {(i * tile.width + j) * tile.lanes(),
                            (row * geometry.width.output + column) * geometry.batch};
        }
    }
    return {into, size};
}

// Lists the packed lines that the same tile reads and that are not padding.
static inline PositionList list_inputs(const PhasePlan& plan, const Geometry& geometry, const Tile& tile, int64_t top,
                                       int64_t left, Position* into) {
    int64_t size = 0;
    for (int64_t i = 0; i < plan.height.lines; ++i) {
        const int64_t row = plan.height.source(top, i);
        if (row < 0) continue;
        for (int64_t j = 0; j < plan.width.lines; ++j) {
            const int64_t column = plan.width.source(left, j);
            if (column < 0) continue;
            into[size++] = {i * plan.line_pitch + j * tile.lanes(),
                            (row * geometry.width.input + column) * geometry.batch};
        }
    }
    return {into, size};
}

// Asks for some vectors of a line, to be written or read, at a level of the caches.
template <bool kWrite, int kNear, class Number>
static inline __attribute__((always_inline)) void ask(const Number* line, int64_t vectors) {
    constexpr int64_t kStep = sizeof(float) / sizeof(Number);
    for (int64_t v = 0; v < vectors; v += kStep) __builtin_prefetch(line + v * kLanes, kWrite, kNear);
}

// Copies `lanes` numbers as floats and fills up to `vectors` vectors with zeros.
template <class Number>
static inline void copy_in(float* to, const Number* from, int32_t vectors, int64_t lanes) {
    if (lanes >= static_cast<int64_t>(vectors) * kLanes) {
        for (int32_t v = 0; v < vectors; ++v) store(to + v * kLanes, load(from + v * kLanes));
        return;
    }
    const int64_t whole = lanes / kLanes;
    for (int64_t v = 0; v < whole; ++v) store(to + v * kLanes, load(from + v * kLanes));
    for (int64_t lane = whole * kLanes; lane < static_cast<int64_t>(vectors) * kLanes; ++lane)
        to[lane] = lane < lanes ? widened(from[lane]) : 0;
}

// Inputs that are packed as they are.
struct AsTheyAre {
    AsTheyAre of(int64_t) const { return {}; }
};

// Inputs that are packed as what a norm made of them, or as they are where there is none.
class AsNormalised {
   public:
    // `normalised` may be null.
    AsNormalised(const Normalised* normalised, int64_t channels)
        : tensors_(normalised ? normalised->tensors : NormalisationTensors{}),
          relu_(normalised && normalised->shape.relu), scale_(normalised ? Buffer<float>(channels) : Buffer<float>()),
          any_(normalised) {
        for (int64_t channel = 0; any_ && scale_ && channel < channels; ++channel)
            scale_[channel] = Affine(normalised->shape, tensors_, channel).scale[0];
    }

    // Whether there was memory.
    explicit operator bool() const { return !any_ || scale_; }

    struct Channel {
        bool any;
        bool relu;
        Affine affine;
    };

    Channel of(int64_t channel) const {
        if (!any_) return {};
        return {true, relu_, Affine(tensors_, channel, scale_[channel])};
    }

   private:
    NormalisationTensors tensors_;
    bool relu_;
    Buffer<float> scale_;  // of each channel
    bool any_;
};

template <class Number>
static inline void copy_in(float* to, const Number* from, int32_t vectors, int64_t lanes, AsTheyAre) {
    copy_in(to, from, vectors, lanes);
}

template <class Number>
static inline void copy_in(float* to, const Number* from, int32_t vectors, int64_t lanes,
                           const AsNormalised::Channel& channel) {
    if (!channel.any) return copy_in(to, from, vectors, lanes);
    const auto made = [&](Vector x) __attribute__((always_inline)) {
        const Vector value = channel.affine(x);
        return as_stored<Number>(channel.relu ? rectified(value) : value);
    };
    if (lanes >= static_cast<int64_t>(vectors) * kLanes) {
        for (int32_t v = 0; v < vectors; ++v) store(to + v * kLanes, made(load(from + v * kLanes)));
        return;
    }
    copy_in(to, from, vectors, lanes);
    for (int32_t v = 0; v * int64_t{kLanes} < lanes; ++v) {
        const Vector value = made(load(to + v * kLanes));
        for (int64_t lane = v * int64_t{kLanes}; lane < lanes && lane < (v + 1) * int64_t{kLanes}; ++lane)
            to[lane] = value[lane - v * int64_t{kLanes}];
    }
}

// Copies numbers that lie one after the other, as floats.
template <class Number>
static inline void copy_run(float* to, const Number* from, int64_t count) {
    int64_t at = 0;
    for (; at + kLanes <= count; at += kLanes) store(to + at, load(from + at));
    for (; at < count; ++at) to[at] = widened(from[at]);
}

template <class Number>
static inline void copy_out(Number* to, const float* from, int32_t vectors, int64_t lanes) {
    if (lanes >= static_cast<int64_t>(vectors) * kLanes) {
        for (int32_t v = 0; v < vectors; ++v) store(to + v * kLanes, load(from + v * kLanes));
        return;
    }
    for (int64_t lane = 0; lane < lanes; ++lane) put(to + lane, from[lane]);
}

// `plane` is that of `first_channel`.
template <class Number, class How>
static inline void pack(float* packed, int64_t packed_pitch, const Number* plane, int64_t plane_pitch, int64_t channels,
                        const PositionList& list, const Tile& tile, int64_t lanes, const How& how,
                        int64_t first_channel) {
    for (int64_t channel = 0; channel < channels; ++channel) {
        const auto change = how.of(first_channel + channel);
        float* to = packed + channel * packed_pitch;
        const Number* from = plane + channel * plane_pitch;
        for (int64_t i = 0; i < list.size; ++i) {
            copy_in(to + list.positions[i].packed, from + list.positions[i].plane, tile.vectors, lanes, change);
        }
    }
}

// Where `streams`, around the caches: the batch must then be a multiple of a vector.
template <class Number>
static inline void unpack(Number* plane, int64_t plane_pitch, const float* packed, int64_t packed_pitch,
                          int64_t channels, const PositionList& list, const Tile& tile, int64_t lanes, bool streams) {
    const int64_t vectors = smaller(tile.vectors, lanes / kLanes);
    for (int64_t channel = 0; channel < channels; ++channel) {
        Number* to = plane + channel * plane_pitch;
        const float* from = packed + channel * packed_pitch;
        for (int64_t i = 0; i < list.size; ++i) {
            Number* line = to + list.positions[i].plane;
            const float* sums = from + list.positions[i].packed;
            if (streams)
                for (int64_t v = 0; v < vectors; ++v) stream(line + v * kLanes, load(sums + v * kLanes));
            else
                copy_out(line, sums, tile.vectors, lanes);
        }
    }
}

static inline void fill(float* to, int64_t vectors, float value) {
    const Vector vector = broadcast(value);
    for (int64_t v = 0; v < vectors; ++v) store(to + v * kLanes, vector);
}

}  // namespace regrow::REGROW_VARIANT
