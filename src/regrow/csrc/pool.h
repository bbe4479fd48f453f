// Maxima and means of windows of a plane, over activations with the batch innermost.
//
// Gradients are gathered: each input looks at the windows it lies in, so it is written once, by one thread. Windows that
// tile the plane need no such search.
#pragma once

#include "normalise.h"

namespace regrow::REGROW_VARIANT {

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint8_t LooseBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
typedef uint16_t Pairs __attribute__((vector_size(2 * kLanes)));

// GCC takes most of these conversions apart, lane by lane, unless each doubles or halves the width of a lane.
static inline __attribute__((always_inline)) Integers widened(Bytes bytes) {
    if constexpr (kLanes > 4) return __builtin_convertvector(__builtin_convertvector(bytes, Pairs), Integers);
    return __builtin_convertvector(bytes, Integers);
}

static inline __attribute__((always_inline)) Bytes narrowed(Integers integers) {
    if constexpr (kLanes < 16) return __builtin_convertvector(__builtin_convertvector(integers, Pairs), Bytes);
    return __builtin_convertvector(integers, Bytes);
}

template <Access kAccess>
static inline __attribute__((always_inline)) void write_bytes(uint8_t* to, Bytes bytes, int64_t lanes) {
    if (kAccess != Access::kSome) {
        *reinterpret_cast<LooseBytes*>(to) = bytes;
        return;
    }
    for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = bytes[lane];
}

template <Access kAccess>
static inline __attribute__((always_inline)) Integers read_bytes(const uint8_t* from, int64_t lanes) {
    if (kAccess != Access::kSome) return widened(*reinterpret_cast<const LooseBytes*>(from));
    Integers integers = {};
    for (int64_t lane = 0; lane < lanes; ++lane) integers[lane] = from[lane];
    return integers;
}

struct Range {
    int64_t first;
    int64_t last;  // one beyond

    int64_t size() const { return last - first; }
};

// The inputs in the window of an output, those of the padding left out.
static inline Range window_of(const Axis& axis, int64_t output) {
    const int64_t first = output * axis.stride - axis.padding;
    return {larger(0, first), smaller(axis.input, first + axis.kernel)};
}

// The outputs in whose windows an input lies, for one input of an axis after the other.
class WindowsOver {
   public:
    explicit WindowsOver(const Axis& axis, int64_t input) : axis_(axis) {
        const int64_t before = input + axis.padding - axis.kernel;
        range_.last = smaller(axis.output, (input + axis.padding) / axis.stride + 1);
        range_.first = smaller(range_.last, before < 0 ? 0 : before / axis.stride + 1);
    }

    // To an input that lies behind the one before.
    void move_to(int64_t input) {
        while (range_.last < axis_.output && start(range_.last) <= input) ++range_.last;
        while (range_.first < range_.last && start(range_.first) + axis_.kernel <= input) ++range_.first;
    }

    const Range& range() const { return range_; }

   private:
    int64_t start(int64_t output) const { return output * axis_.stride - axis_.padding; }

    const Axis& axis_;
    Range range_;
};

// Calls body(channel, row) for every line of planes, shared out to threads.
template <class Body>
static inline void for_lines(int64_t channels, int64_t rows, int threads, Body&& body) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t line = 0; line < channels * rows; ++line) body(line / rows, line % rows);
        stream_fence();
    }
}

// Calls body(channel, row, column) for every position of `rows` x `columns` planes, rows shared out to threads.
template <class Body>
static inline void for_positions(int64_t channels, int64_t rows, int64_t columns, int threads, Body&& body) {
    for_lines(channels, rows, threads, [&](int64_t channel, int64_t row) {
        for (int64_t column = 0; column < columns; ++column) body(channel, row, column);
    });
}

// Calls body(height, width) for a window of that size, as constants where it is the common one.
template <class Body>
static inline __attribute__((always_inline)) void with_window(int64_t height, int64_t width, Body&& body) {
    if (height == 2 && width == 2) return body(Fixed<2>(), Fixed<2>());
    body(height, width);
}

template <class Number>
static void max_pool(const Geometry& geometry, int64_t channels, const Number* input, Number* output, uint8_t* winner,
                     int threads) {
    const Axis &height = geometry.height, &width = geometry.width;
    const int64_t batch = geometry.batch;
    const bool streams = streams_outputs(output, channels * height.output * width.output * batch, batch);
    for_positions(channels, height.output, width.output, threads, [&](int64_t channel, int64_t row, int64_t column) {
        const Range rows = window_of(height, row), columns = window_of(width, column);
        const int64_t window = ((channel * height.output + row) * width.output + column) * batch;
        const Number* const plane = input + channel * height.input * width.input * batch;
        const Number* const corner = plane + (rows.first * width.input + columns.first) * batch;
        // Taps are counted from where the window would start, in the padding too.
        const int64_t top = row * height.stride - height.padding, left = column * width.stride - width.padding;
        const auto first_tap = static_cast<int32_t>((rows.first - top) * width.kernel + columns.first - left);
        const auto run = [&](auto stored, auto window_height, auto window_width) {
            for_vectors<Access::kAll>(batch, [&](int64_t at, auto access, int64_t lanes) {
                constexpr Access kAccess = decltype(access)::value;
                constexpr Access kWrite = kAccess == Access::kAll ? decltype(stored)::value : kAccess;
                Vector best = broadcast(-__builtin_inff());
                Integers best_tap = Integers{} + first_tap;
                for (int64_t y = 0; y < window_height; ++y)
                    for (int64_t x = 0; x < window_width; ++x) {
                        const Vector value = read<kAccess>(corner + (y * width.input + x) * batch + at, lanes);
                        const Integers tap = Integers{} + (first_tap + static_cast<int32_t>(y * width.kernel + x));
                        // NaN wins, as in PyTorch.
                        const Integers better = (value > best) | (value != value);
                        best = better ? value : best;
                        best_tap = better ? tap : best_tap;
                    }
                write<kWrite>(output + window + at, best, lanes);
                if (winner) write_bytes<kAccess>(winner + window + at, narrowed(best_tap), lanes);
            });
        };
        with_access(streams, [&](auto stored) {
            with_window(rows.size(), columns.size(),
                        [&](auto window_height, auto window_width) { run(stored, window_height, window_width); });
        });
    });
}

// input_gradient = for each input the sum over its windows of what each gives it: that is `of_window(row, column, y, x)`
// for the input (y, x) of a window, called with where the window's numbers lie, the access and the lanes.
template <class Number, class OfWindow>
static inline void gather_windows(const Geometry& geometry, int64_t channels, Number* input_gradient, int threads,
                                  OfWindow&& of_window) {
    const Axis &height = geometry.height, &width = geometry.width;
    const int64_t batch = geometry.batch;
    const bool streams = streams_outputs(input_gradient, channels * height.input * width.input * batch, batch);
    // One walk over the windows of an input serves several of its vectors.
    constexpr int kRun = 4;
    for_lines(channels, height.input, threads, [&](int64_t channel, int64_t y) {
        const WindowsOver rows(height, y);
        WindowsOver columns(width, 0);
        for (int64_t x = 0; x < width.input; ++x) {
            columns.move_to(x);
            Number* const to = input_gradient + ((channel * height.input + y) * width.input + x) * batch;
            const auto gather = [&](auto vectors, int64_t at, auto access, auto stored, int64_t lanes) {
                constexpr int kVectors = decltype(vectors)::value;
                Vector sum[kVectors] = {};
                for (int64_t row = rows.range().first; row < rows.range().last; ++row)
                    for (int64_t column = columns.range().first; column < columns.range().last; ++column) {
                        const auto term = of_window(row, column, y, x);
                        const int64_t window = ((channel * height.output + row) * width.output + column) * batch + at;
                        for (int j = 0; j < kVectors; ++j)
                            sum[j] += term(window + j * kLanes, access, lanes - j * kLanes);
                    }
                for (int j = 0; j < kVectors; ++j)
                    write<decltype(stored)::value>(to + at + j * kLanes, sum[j], lanes - j * kLanes);
            };
            with_access(streams, [&](auto stored) {
                int64_t begun = 0;
                for (; begun + kRun * kLanes <= batch; begun += kRun * kLanes)
                    gather(Fixed<kRun>(), begun, std::integral_constant<Access, Access::kAll>(), stored, kRun * kLanes);
                for_vectors<Access::kAll>(batch - begun, [&](int64_t at, auto access, int64_t lanes) {
                    constexpr Access kRead = decltype(access)::value;
                    constexpr Access kWrite = kRead == Access::kAll ? decltype(stored)::value : kRead;
                    gather(Fixed<1>(), begun + at, access, std::integral_constant<Access, kWrite>(), lanes);
                });
            });
        }
    });
}

// Whether every input lies in exactly one window.
static inline bool tiles(const Axis& axis) {
    return axis.stride == axis.kernel && axis.padding == 0 && axis.input == axis.output * axis.kernel;
}

// Where windows tile the plane each writes its inputs: winner and gradient are read once.
template <class Number>
static void max_pool_gradient_tiled(const Geometry& geometry, int64_t channels, const Number* output_gradient,
                                    const uint8_t* winner, Number* input_gradient, int threads) {
    const Axis &height = geometry.height, &width = geometry.width;
    const int64_t batch = geometry.batch;
    const bool streams = streams_outputs(input_gradient, channels * height.input * width.input * batch, batch);
    for_positions(channels, height.output, width.output, threads, [&](int64_t channel, int64_t row, int64_t column) {
        const int64_t window = ((channel * height.output + row) * width.output + column) * batch;
        Number* const corner =
            input_gradient +
            ((channel * height.input + row * height.kernel) * width.input + column * width.kernel) * batch;
        const auto run = [&](auto stored, auto window_height, auto window_width) {
            for_vectors<Access::kAll>(batch, [&](int64_t at, auto access, int64_t lanes) {
                constexpr Access kRead = decltype(access)::value;
                constexpr Access kWrite = kRead == Access::kAll ? decltype(stored)::value : kRead;
                const Vector gradient = read<kRead>(output_gradient + window + at, lanes);
                const Integers won = read_bytes<kRead>(winner + window + at, lanes);
                for (int64_t y = 0; y < window_height; ++y)
                    for (int64_t x = 0; x < window_width; ++x) {
                        const Integers here = won == Integers{} + static_cast<int32_t>(y * window_width + x);
                        write<kWrite>(corner + (y * width.input + x) * batch + at, here ? gradient : Vector{}, lanes);
                    }
            });
        };
        with_access(streams, [&](auto stored) {
            with_window(height.kernel, width.kernel,
                        [&](auto window_height, auto window_width) { run(stored, window_height, window_width); });
        });
    });
}

template <class Number>
static void max_pool_gradient(const Geometry& geometry, int64_t channels, const Number* output_gradient,
                              const uint8_t* winner, Number* input_gradient, int threads) {
    const Axis &height = geometry.height, &width = geometry.width;
    if (tiles(height) && tiles(width))
        return max_pool_gradient_tiled(geometry, channels, output_gradient, winner, input_gradient, threads);
    gather_windows(geometry, channels, input_gradient, threads, [&](int64_t row, int64_t column, int64_t y, int64_t x) {
        const int64_t tap =
            (y + height.padding - row * height.stride) * width.kernel + x + width.padding - column * width.stride;
        const Integers mine = Integers{} + static_cast<int32_t>(tap);
        return [=](int64_t window, auto access, int64_t lanes) {
            constexpr Access kAccess = decltype(access)::value;
            const Vector gradient = read<kAccess>(output_gradient + window, lanes);
            return read_bytes<kAccess>(winner + window, lanes) == mine ? gradient : Vector{};
        };
    });
}

// What a window's sum is multiplied by. A divisor of 0 stands for the number of inputs in the window.
static inline float share_of(const Geometry& geometry, int64_t divisor, int64_t row, int64_t column) {
    if (divisor) return 1.0f / static_cast<float>(divisor);
    return 1.0f / static_cast<float>(window_of(geometry.height, row).size() * window_of(geometry.width, column).size());
}

template <class Number>
static void mean_pool(const Geometry& geometry, int64_t channels, int64_t divisor, const Number* input, Number* output,
                      int threads) {
    const Axis &height = geometry.height, &width = geometry.width;
    const int64_t batch = geometry.batch;
    for_positions(channels, height.output, width.output, threads, [&](int64_t channel, int64_t row, int64_t column) {
        const Range rows = window_of(height, row), columns = window_of(width, column);
        const Vector share = broadcast(share_of(geometry, divisor, row, column));
        Number* const to = output + ((channel * height.output + row) * width.output + column) * batch;
        const Number* const plane = input + channel * height.input * width.input * batch;
        for_vectors<Access::kAll>(batch, [&](int64_t at, auto access, int64_t lanes) {
            constexpr Access kAccess = decltype(access)::value;
            Vector sum = {};
            for (int64_t y = rows.first; y < rows.last; ++y)
                for (int64_t x = columns.first; x < columns.last; ++x)
                    sum += read<kAccess>(plane + (y * width.input + x) * batch + at, lanes);
            write<kAccess>(to + at, sum * share, lanes);
        });
    });
}

template <class Number>
static void mean_pool_gradient(const Geometry& geometry, int64_t channels, int64_t divisor,
                               const Number* output_gradient, Number* input_gradient, int threads) {
    gather_windows(geometry, channels, input_gradient, threads, [&](int64_t row, int64_t column, int64_t, int64_t) {
        const Vector share = broadcast(share_of(geometry, divisor, row, column));
        return [=](int64_t window, auto access, int64_t lanes) {
            return read<decltype(access)::value>(output_gradient + window, lanes) * share;
        };
    });
}

}  // namespace regrow::REGROW_VARIANT
