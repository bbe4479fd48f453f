// The driver for units: blocks of kUnit outputs that share their input, of which all weights exist or none.
//
// One load of an input serves the multiply-adds of all outputs of a unit, so the kernel runs at the processor's peak
// with its inputs in the second-level cache, and there is one offset for kUnit weights. It walks as the sweep does
// (sweep.h), with a tile of kUnit outputs times kRun vectors along the batch at one position; the ring holds a strip of
// rows, which are computed one after the other. At the border of the plane, taps that read padding are left out.
//
// The input gradient takes the same index. The ring then holds sums of the input's gradient: the tile of the output's
// gradient stays in registers, and each unit adds to the lines that it names. A column that leaves the ring is written
// to the gradient. Strips that share rows of the input are of different colours, which follow one another.
#pragma once

#include <cstring>
#include <type_traits>

#include "by_tap.h"
#include "sweep.h"

namespace regrow::REGROW_VARIANT {

// Asks for the lines that a segment to come will read: they lie far apart, so the processor does not foresee them. To the
// second-level cache: in the first one, lines whose distance is a power of two would drive each other out.
template <int kUnit, int kRun, class Number>
static inline __attribute__((always_inline)) void ask_ahead(const Segments& segments, int64_t segment,
                                                            const Number* sources, int64_t pitch) {
    if (segment >= segments.last) return;
    const Number* line = sources + segments.row[segment] * (kUnit * pitch);
    for (int u = 0; u < kUnit; ++u, line += pitch) ask<false, 2>(line, kRun);
}

// For every segment: the rows of its unit = the sum of value * packed[offset] over the taps that read inputs, added to the
// bias or, where they are not null, to the sums of earlier blocks. Those lie as the targets do, and may be the targets.
template <int kUnit, int kRun, Access kAccess, class Number, class Coming>
void gather_units(const Segments& segments, const ByTap& by_tap, const Reach& reach, const float* values,
                  const int32_t* offsets, const float* packed, const Rows<Number>& targets, const float* sums,
                  const float* bias, Coming& coming) {
    for (int64_t segment = segments.first; segment < segments.last; ++segment) {
        const int64_t row = static_cast<int64_t>(segments.row[segment]) * kUnit;
        Number* const target = targets.first + row * targets.pitch;
        const float* const sum = sums ? sums + row * targets.pitch : nullptr;
        if (sums) ask_ahead<kUnit, kRun>(segments, segment + 2, sums, targets.pitch);
        coming.step(segment);
        Vector accumulator[kUnit][kRun];
        for (int u = 0; u < kUnit; ++u)
            for (int j = 0; j < kRun; ++j)
                accumulator[u][j] =
                    sum ? read<kAccess>(sum + u * targets.pitch + j * kLanes, targets.lanes - j * kLanes)
                        : broadcast(bias ? bias[row + u] : 0.0f);
        const int32_t* const start = by_tap.starts(segment);
        for (int64_t column = reach.first; column < reach.last; column += reach.step) {
            const int32_t* const run = start + column * by_tap.kernel_height();
            const int64_t end = run[reach.to];
            for (int64_t entry = run[reach.from]; entry < end; ++entry) {
                const float* const line = packed + offsets[entry];
                Vector input[kRun];
                for (int j = 0; j < kRun; ++j) input[j] = load(line + j * kLanes);
                for (int u = 0; u < kUnit; ++u) {
                    const Vector value = broadcast(values[entry * kUnit + u]);
                    for (int j = 0; j < kRun; ++j) accumulator[u][j] += value * input[j];
                }
            }
        }
        for (int u = 0; u < kUnit; ++u)
            for (int j = 0; j < kRun; ++j)
                write<kAccess>(target + u * targets.pitch + j * kLanes, accumulator[u][j], targets.lanes - j * kLanes);
    }
}

// packed[offset] += the sum of value * sources[row] over the rows of the unit, for every entry of every segment whose tap
// reads an input.
template <int kUnit, int kRun, Access kAccess, class Number>
void scatter_units(const Segments& segments, const ByTap& by_tap, const Reach& reach, const float* values,
                   const int32_t* offsets, float* packed, const Rows<const Number>& sources) {
    for (int64_t segment = segments.first; segment < segments.last; ++segment) {
        const Number* const source = sources.first + segments.row[segment] * (kUnit * sources.pitch);
        ask_ahead<kUnit, kRun>(segments, segment + 2, sources.first, sources.pitch);
        Vector factor[kUnit][kRun];
        for (int u = 0; u < kUnit; ++u)
            for (int j = 0; j < kRun; ++j)
                factor[u][j] = read<kAccess>(source + u * sources.pitch + j * kLanes, sources.lanes - j * kLanes);
        const int32_t* const start = by_tap.starts(segment);
        for (int64_t column = reach.first; column < reach.last; column += reach.step) {
            const int32_t* const run = start + column * by_tap.kernel_height();
            const int64_t end = run[reach.to];
            for (int64_t entry = run[reach.from]; entry < end; ++entry) {
                float* const line = packed + offsets[entry];
                Vector sum[kRun];
                for (int j = 0; j < kRun; ++j) sum[j] = load(line + j * kLanes);
                for (int u = 0; u < kUnit; ++u) {
                    const Vector value = broadcast(values[entry * kUnit + u]);
                    for (int j = 0; j < kRun; ++j) sum[j] += value * factor[u][j];
                }
                for (int j = 0; j < kRun; ++j) store(line + j * kLanes, sum[j]);
            }
        }
    }
}

// The values of each entry of an index of units, one after the other.
template <int kUnit>
class UnitValues {
   public:
    explicit UnitValues(const Index& index) : index_(index), steps_(index.groups()), values_(index.nonzeros * kUnit) {
        if (*this) unit_steps(index, steps_.data());
    }

    // Whether there was memory.
    explicit operator bool() const { return steps_ && values_; }

    // Called by every thread of the team, before any asks for a value.
    void look_up(const float* values) {
#pragma omp for schedule(static)
        for (int64_t segment = 0; segment < index_.segments(); ++segment) {
            const int64_t step = steps_[index_.segment_row[segment]];
            for (int64_t entry = index_.segment_start[segment]; entry < index_.segment_start[segment + 1]; ++entry)
                for (int u = 0; u < kUnit; ++u) values_[entry * kUnit + u] = values[index_.order[entry] + u * step];
        }
    }

    const float* data() const { return values_.data(); }

   private:
    const Index& index_;
    Buffer<int32_t> steps_;
    Buffer<float> values_;
};

// Rows of a strip: the more, the fewer lines are packed twice, as long as the ring stands in the second-level cache.
template <int kRun>
static inline int64_t strip_rows(const Geometry& geometry, const Index& index, int64_t more_columns) {
    constexpr int64_t kBytes = int64_t{800} << 10;
    const Axis &height = geometry.height, &width = geometry.width;
    const int64_t columns = (width.kernel - 1) * int64_t{width.dilation} + 1 + more_columns * width.stride;
    const int64_t column = columns * kRun * kLanes * 4;
    const int64_t most = kBytes / larger(1, column * index.channels_per_block);
    const int64_t span = (height.kernel - 1) * int64_t{height.dilation} + 1;
    int64_t rows = 1;
    while (rows < height.output && (2 * rows - 1) * height.stride + span <= most) rows *= 2;
    return rows;
}

// Rows of a strip of a scatter. High strips share few rows, but one that stands alone in its colour leaves all threads but
// one without work: a strip is taken to cost as much as its rows and the lines that they add to.
template <int kRun>
static inline int64_t scatter_rows(const Geometry& geometry, const Index& index, PlanMemory& memory, int threads) {
    int64_t best = 1, least = INT64_MAX;
    for (int64_t rows = strip_rows<kRun>(geometry, index, 0); rows >= 1; rows /= 2) {
        const Sweep<1, kRun> plan(geometry, index, memory, {rows});
        int64_t turns = 0;
        for (int64_t colour = 0; colour < plan.strips().colours(); ++colour)
            turns += ceil_divide(plan.scatter_items(colour), threads);
        const int64_t cost = bounded_product(turns, rows + plan.lines());
        if (cost >= least) continue;
        best = rows;
        least = cost;
    }
    return best;
}

// Calls body(access, row) for each row of a strip that exists.
template <class Tile, class Body>
static inline void visit_rows(const Tile& tile, int64_t tile_lanes, bool stream, Body&& body) {
    using All = std::integral_constant<Access, Access::kAll>;
    using Stream = std::integral_constant<Access, Access::kStream>;
    using Some = std::integral_constant<Access, Access::kSome>;
    for (int64_t row = 0; row < tile.rows; ++row) {
        if (tile.lanes < tile_lanes)
            body(Some(), row);
        else if (stream)
            body(Stream(), row);
        else
            body(All(), row);
    }
}

template <int kUnit, int kRun, class Number>
bool units_gather(const Geometry& geometry, const Index& index, const float* values, const float* bias,
                  const Number* input, Number* output, int threads) {
    using Plan = Sweep<1, kRun>;
    PlanMemory memory(geometry);
    if (!memory) return false;
    const Extent extent{.rows = strip_rows<kRun>(geometry, index, 1), .ahead = true};
    const Plan plan(geometry, index, memory, extent);
    if (!within_offsets(plan.buffer_size())) return false;
    ByTap by_tap(index, geometry);
    UnitValues<kUnit> table(by_tap.index());
    RotatedOffsets offsets(plan, by_tap.index());
    const BlockSums<Number> sums(output, plan.output_pitch(), index, 1);
    if (!by_tap || !table || !offsets || !sums) return false;
    const bool streams = streams_outputs(output, index.rows * plan.output_pitch(), geometry.batch);

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> ring(plan.buffer_size());
        complete = static_cast<bool>(ring);
        by_tap.sort();
        table.look_up(values);
        offsets.look_up();
        const auto gather_tile = [&](const auto& tile, auto& coming) {
            const Taps across = plan.taps_across(tile.column);
            visit_rows(tile, Plan::kTileLanes, streams && tile.last_block, [&](auto access, int64_t row) {
                sums.block(tile, row, [&](auto* target, const float* before) {
                    const Rows targets{target, plan.output_pitch(), tile.row_pitch, tile.lanes};
                    const Reach reach(plan.taps_down(tile.top + row), across, by_tap.kernel_height());
                    gather_units<kUnit, kRun, decltype(access)::value>(
                        tile.segments, by_tap, reach, table.data(), offsets.of(tile.rotation),
                        ring.data() + row * plan.row_step(), targets, before, bias, coming);
                });
            });
            sums.finish(tile, kRun);
        };
        const int64_t team = omp_get_num_threads();
        const auto gather_item = [&](int64_t number) {
            plan.tiles_ahead(plan.item(number, team), plan.rows(), input, AsTheyAre(), ring.data(), gather_tile);
        };
        if (complete) for_share(plan.items(team), gather_item);
        stream_fence();
    }
    return complete;
}

template <int kUnit, int kRun, class Number>
bool units_input_gradient(const Geometry& geometry, const Index& index, const float* values,
                          const Number* output_gradient, Number* input_gradient, int threads) {
    using Plan = Sweep<1, kRun>;
    PlanMemory memory(geometry);
    if (!memory) return false;
    const Plan plan(geometry, index, memory, {scatter_rows<kRun>(geometry, index, memory, threads)});
    if (!within_offsets(plan.buffer_size())) return false;
    const int64_t numbers = index.channels * plan.input_pitch();
    ByTap by_tap(index, geometry);
    UnitValues<kUnit> table(by_tap.index());
    RotatedOffsets offsets(plan, by_tap.index());
    // Strips of several colours add to the same rows.
    const WaitingSums<Number> sums(input_gradient, numbers, plan.strips().colours() > 1);
    if (!by_tap || !table || !offsets || !sums) return false;
    // Inputs that no output reads have a gradient of zero.
    const bool covers = plan.covers_input();
    const bool streams = covers && streams_outputs(input_gradient, numbers, geometry.batch);

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> ring(plan.buffer_size());
        complete = static_cast<bool>(ring);
        by_tap.sort();
        table.look_up(values);
        offsets.look_up();
        if (!covers) {
#pragma omp for schedule(static)
            for (int64_t channel = 0; channel < index.channels; ++channel)
                std::memset(input_gradient + channel * plan.input_pitch(), 0,
                            static_cast<size_t>(plan.input_pitch()) * sizeof(Number));
        }
        const auto scatter_tile = [&](const auto& tile) {
            const Taps across = plan.taps_across(tile.column);
            visit_rows(tile, Plan::kTileLanes, false, [&](auto access, int64_t row) {
                const Rows<const Number> sources{output_gradient + tile.position + row * tile.row_pitch,
                                                 plan.output_pitch(), tile.row_pitch, tile.lanes};
                const Reach reach(plan.taps_down(tile.top + row), across, by_tap.kernel_height());
                scatter_units<kUnit, kRun, decltype(access)::value>(tile.segments, by_tap, reach, table.data(),
                                                                    offsets.of(tile.rotation),
                                                                    ring.data() + row * plan.row_step(), sources);
            });
        };
        for (int64_t colour = 0; colour < plan.strips().colours(); ++colour) {
            const auto scatter_item = [&](int64_t number) {
                plan.scatter(colour, number, streams, sums.data(), input_gradient, ring.data(), scatter_tile);
            };
            if (complete) for_share(plan.scatter_items(colour), scatter_item);
            stream_fence();
#pragma omp barrier
        }
    }
    return complete;
}

}  // namespace regrow::REGROW_VARIANT
