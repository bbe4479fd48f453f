// The driver for few channels on large planes, and for 1x1 kernels: a tile sweeps along the columns of the plane.
//
// A tile is a few rows of one column, with as many lanes as fill the accumulators, so that every line read or written
// is a long contiguous run. The packed inputs of a block of channels stand in the second-level cache as a ring of
// columns: each step packs only the columns that are new. A nonzero's offset depends on where in the ring its column
// stands, so there is a table of entries for each rotation. Sums stay in registers over all nonzeros of a row in the
// block, and go straight to the output; a further block adds to what is there.
#pragma once

#include <type_traits>

#include "ring.h"

namespace regrow::REGROW_VARIANT {

// Calls body(rows, access, first row) for the whole tile, or, at the edge of the plane, row by row: rows that do not
// exist are not computed, since zero times a NaN that is none of theirs would be NaN.
template <int kRows, class Tile, class Body>
static inline void visit(const Tile& tile, int64_t tile_lanes, bool stream, Body&& body) {
    using All = std::integral_constant<Access, Access::kAll>;
    using Stream = std::integral_constant<Access, Access::kStream>;
    using Some = std::integral_constant<Access, Access::kSome>;
    using One = std::integral_constant<int, 1>;
    const std::integral_constant<int, kRows> rows;
    if (tile.rows == kRows && tile.lanes == tile_lanes) return stream ? body(rows, Stream(), 0) : body(rows, All(), 0);
    for (int64_t row = 0; row < tile.rows; ++row)
        tile.lanes == tile_lanes ? body(One(), All(), row) : body(One(), Some(), row);
}

// Asks for the outputs' rows of the segments to come: they lie far apart, so the processor does not foresee them.
template <int kRows, int kRun, class Number>
struct RowsAhead {
    const Segments& segments;
    Rows<const Number> rows;

    __attribute__((always_inline)) void step(int64_t segment) const {
        constexpr int64_t kDistance = 3;
        if (segment + kDistance >= segments.last) return;
        const Number* line = rows.first + segments.row[segment + kDistance] * rows.pitch;
        for (int i = 0; i < kRows; ++i, line += rows.line_pitch) ask<false, 2>(line, kRun);
    }
};

template <int kRows, int kRun, class Number>
bool sweep_gather(const Geometry& geometry, const Index& index, const float* values, const float* bias,
                  const Number* input, Number* output, int threads) {
    using Plan = Sweep<kRows, kRun>;
    PlanMemory memory(geometry);
    if (!memory) return false;
    const Plan plan(geometry, index, memory);
    if (!within_offsets(plan.buffer_size())) return false;
    Buffer<Entry> entries(plan.rotations() * index.nonzeros);
    Buffer<int32_t> packed_offset(plan.rotations() * plan.tap_offsets());
    const BlockSums<Number> sums(output, plan.output_pitch(), index, phase_count(geometry));
    if (!entries || !packed_offset || !sums) return false;
    plan.tabulate_offsets(packed_offset.data());
    const bool streams = streams_outputs(output, index.rows * plan.output_pitch(), geometry.batch);

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> ring(plan.buffer_size());
        complete = static_cast<bool>(ring);
        for (int64_t rotation = 0; rotation < plan.rotations(); ++rotation) {
            const int32_t* const rotated = packed_offset.data() + rotation * plan.tap_offsets();
            look_up_entries(
                index, values, 0, index.nonzeros, [&](int64_t entry) { return rotated[index.tap_offset[entry]]; },
                entries.data() + rotation * index.nonzeros);
        }
        const int64_t team = omp_get_num_threads();
        const auto gather_item = [&](int64_t number) {
            plan.tiles(plan.item(number, team), input, AsTheyAre(), ring.data(), [&](const typename Plan::Tile& tile) {
                const Entry* table = entries.data() + tile.rotation * index.nonzeros;
                const auto gather = [&](auto rows, auto access, int64_t row) {
                    sums.block(tile, row, [&](auto* target, const float* before) {
                        const Rows targets{target, plan.output_pitch(), tile.row_pitch, tile.lanes};
                        NothingAhead nothing;
                        gather_segments<decltype(rows)::value, kRun, decltype(access)::value>(
                            tile.segments, table, ring.data() + row * plan.row_step(), plan.row_step(), targets, before,
                            bias, nothing);
                    });
                };
                visit<kRows>(tile, Plan::kTileLanes, streams && tile.last_block, gather);
                sums.finish(tile, kRun);
            });
        };
        if (complete) for_share(plan.items(team), gather_item);
        stream_fence();
    }
    return complete;
}

template <int kRows, int kRun, class Number>
bool sweep_values_gradient(const Geometry& geometry, const Index& index, const Number* output_gradient,
                           const Number* input, const AsNormalised& how, float* gradient, float* bias_gradient,
                           int threads) {
    using Plan = Sweep<kRows, kRun>;
    PlanMemory memory(geometry);
    if (!memory) return false;
    const Plan plan(geometry, index, memory);
    if (!within_offsets(plan.buffer_size())) return false;
    RotatedOffsets offsets(plan, index);
    ThreadSums sums(index, gradient, bias_gradient, threads);
    if (!offsets || !sums) return false;

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> ring(plan.buffer_size());
        Buffer<float> partials(kPartials * kLanes);
        complete = ring && partials;
        offsets.look_up();
        const ThreadSums::Mine mine = sums.start();
        const int64_t team = omp_get_num_threads();
        const auto reduce_item = [&](int64_t number) {
            plan.tiles(plan.item(number, team), input, how, ring.data(), [&](const typename Plan::Tile& tile) {
                const auto reduce = [&](auto rows, auto access, int64_t row) {
                    const Rows<const Number> sources{output_gradient + tile.position + row * tile.row_pitch,
                                                     plan.output_pitch(), tile.row_pitch, tile.lanes};
                    RowsAhead<decltype(rows)::value, kRun, Number> ahead{tile.segments, sources};
                    values_segments<decltype(rows)::value, kRun, decltype(access)::value>(
                        tile.segments, offsets.of(tile.rotation), ring.data() + row * plan.row_step(), plan.row_step(),
                        sources, partials.data(), mine.values, tile.first_block ? mine.rows : nullptr, ahead);
                };
                visit<kRows>(tile, Plan::kTileLanes, false, reduce);
            });
        };
        if (complete) for_share(plan.items(team), reduce_item);
        sums.finish();
    }
    return complete;
}

}  // namespace regrow::REGROW_VARIANT
