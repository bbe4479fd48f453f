// The driver for many channels or high densities: inputs packed block after block into the first-level cache.
//
// A tile is 4 x 4 positions of one vector, or of another shape that suits the plane and the batch. For each tile, each
// block of channels is packed with its border of zeros and without its power-of-two strides, then used for every output
// row; sums stand in a buffer between blocks.
#pragma once

#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

#include "pack.h"
#include "team.h"

namespace regrow::REGROW_VARIANT {

// The tiles of one phase: for each tile of the plane, each group of lanes. The groups of one position share pages
// and neighbouring cache lines, so they follow one another.
struct Item {
    int64_t top;
    int64_t left;
    int64_t lane;
};

static Item item_at(int64_t number, const PhasePlan& plan, const Tile& tile, int64_t batch) {
    const int64_t columns = plan.width.tiles(tile.width);
    const int64_t groups = ceil_divide(batch, tile.lanes());
    const int64_t position = number / groups;
    return {position / columns * tile.height, position % columns * tile.width, number % groups * tile.lanes()};
}

static int64_t item_count(const PhasePlan& plan, const Tile& tile, int64_t batch) {
    return plan.tiles(tile) * ceil_divide(batch, tile.lanes());
}

static int64_t block_count(const Index& index) { return ceil_divide(index.channels, index.channels_per_block); }

// Where there are fewer tiles than threads, several compute one: each takes some of the blocks of channels.
static int64_t share_count(int64_t items, int64_t blocks, int64_t threads) {
    return items < threads ? smaller(blocks, ceil_divide(threads, larger(items, 1))) : 1;
}

// What every thread needs to walk over the packed blocks of its tiles.
template <class Number, class How>
struct Walk {
    const Geometry& geometry;
    const Index& index;
    const Tile& tile;
    const PhasePlan& plan;
    int64_t phase;
    const Number* input;
    const How& how;  // inputs are packed

    int64_t input_pitch() const { return geometry.height.input * geometry.width.input * geometry.batch; }
    int64_t output_pitch() const { return geometry.height.output * geometry.width.output * geometry.batch; }
    int64_t packed_size() const { return bounded_product(index.channels_per_block, plan.channel_pitch); }
    int64_t positions() const {
        return larger(plan.height.lines * plan.width.lines, static_cast<int64_t>(tile.height) * tile.width);
    }

    int64_t tap_offsets() const {
        return index.channels_per_block * static_cast<int64_t>(geometry.height.kernel) * geometry.width.kernel;
    }

    // Calls body(rows, run, pitch) with the tile's number of rows and of vectors in a row as constants, and the distance of
    // its packed rows as one where it is that of a kernel of 3 x 3.
    template <class Body>
    void with_constants(Body&& body) const {
        with_shape(body, std::make_index_sequence<std::size(kTileShapes)>());
    }

    // Packs block after block of a share for one tile and calls body(segments, first, ahead) on each that has any.
    template <class Body>
    void blocks(const Item& item, int64_t share, int64_t shares, float* packed, Position* positions,
                Body&& body) const {
        const PositionList inputs = list_inputs(plan, geometry, tile, item.top, item.left, positions);
        const int64_t lanes = geometry.batch - item.lane;
        const int64_t blocks = block_count(index);
        // The padding of a tile lies at the same lines in every block: written once.
        std::memset(packed, 0, static_cast<size_t>(packed_size()) * sizeof(float));
        for (int64_t block = blocks * share / shares; block < blocks * (share + 1) / shares; ++block) {
            const int32_t* start = index.block_start + phase * blocks + block;
            if (start[0] == start[1]) continue;
            const int64_t channel = block * index.channels_per_block;
            const int64_t channels = smaller(index.channels_per_block, index.channels - channel);
            const Number* plane = input + channel * input_pitch() + item.lane;
            pack(packed, plan.channel_pitch, plane, input_pitch(), channels, inputs, tile, lanes, how, channel);
            const int64_t next = smaller(index.channels_per_block, index.channels - channel - channels);
            Ahead<Number> ahead(plane + channels * input_pitch(), input_pitch(), next, inputs, tile.vectors,
                                start[1] - start[0]);
            body(Segments{index.segment_row, index.segment_start, start[0], start[1]}, block == 0, ahead);
        }
    }

   private:
    template <class Body, size_t... kShape>
    void with_shape(Body&& body, std::index_sequence<kShape...>) const {
        // One of the shapes is that of the tile.
        (try_shape<kTileShapes[kShape].rows, kTileShapes[kShape].run>(body) || ...);
    }

    template <int kRows, int kRun, class Body>
    bool try_shape(Body&& body) const {
        if (tile.height != kRows || tile.run() != kRun) return false;
        const std::integral_constant<int, kRows> rows;
        const std::integral_constant<int, kRun> run;
        // A vector to a column: the other shapes have several.
        if constexpr (kRun < 8 && kRows * kRun > kAccumulators / 2)
            with_pitch<(kRun + 2) * kLanes>(plan.line_pitch, [&](auto pitch) { body(rows, run, pitch); });
        else
            body(rows, run, plan.line_pitch);
        return true;
    }
};

// A tile in a buffer: its rows one after the other.
template <int kRun, class Float>
static Rows<Float> tile_rows(Float* tiles) {
    return {tiles, kTileFloats, kRun * kLanes, kRun * kLanes};
}

// Floats from the start of a packed block, for each tap offset.
template <class Number, class How>
static void tabulate_offsets(const Walk<Number, How>& walk, int32_t* packed_offset) {
    const PhasePlan& plan = walk.plan;
    for (int64_t channel = 0; channel < walk.index.channels_per_block; ++channel)
        for (int64_t row = 0; row < walk.geometry.height.kernel; ++row)
            for (int64_t column = 0; column < walk.geometry.width.kernel; ++column)
                *packed_offset++ =
                    static_cast<int32_t>(channel * plan.channel_pitch + plan.height.tap_line[row] * plan.line_pitch +
                                         plan.width.tap_line[column] * walk.tile.lanes());
}

// The tile that should take the least time.
//
// A nonzero takes some cycles, and half of one for each vector of the tile, whether or not that holds outputs; a vector
// that is packed takes several.
static Tile choose_tile(const Geometry& geometry, const Index& index) {
    constexpr double kNonzero = 3.0, kVector = 0.5, kPacked = 8.0;
    // Of one phase of the gradient of a strided input: it has its share of the outputs, of the taps and of the nonzeros.
    const bool transposed = geometry.transposed;
    const auto outputs = [&](const Axis& axis) {
        return transposed ? ceil_divide(axis.output, axis.stride) : axis.output;
    };
    const auto lines = [&](const Axis& axis, int64_t extent) {
        const int64_t reach = (axis.kernel - 1) * int64_t{axis.dilation}, stride = axis.stride;
        return smaller(axis.input, transposed ? extent + reach / stride : (extent - 1) * stride + reach + 1);
    };
    const double nonzeros =
        static_cast<double>(index.nonzeros) / static_cast<double>(index.channels * phase_count(geometry));
    Tile best{1, 1, 1};
    double least = 0.0;
    for (const TileShape& shape : kTileShapes) {
        for (int32_t columns = shape.run; columns >= 1; --columns) {
            if (shape.run % columns != 0) continue;
            const Tile tile{shape.rows, columns, shape.run / columns};
            const int64_t tiles = ceil_divide(outputs(geometry.height), tile.height) *
                                  ceil_divide(outputs(geometry.width), tile.width) *
                                  ceil_divide(geometry.batch, tile.lanes());
            const int64_t packed =
                lines(geometry.height, tile.height) * lines(geometry.width, tile.width) * tile.vectors;
            const double cost = static_cast<double>(tiles) * (nonzeros * (kNonzero + kVector * shape.rows * shape.run) +
                                                              kPacked * static_cast<double>(packed));
            if (least > 0.0 && cost >= least) continue;
            best = tile;
            least = cost;
        }
    }
    return best;
}

template <class Number>
static bool gather_phase(const Walk<Number, AsTheyAre>& walk, const float* values, const float* bias, Number* output,
                         int threads) {
    const Index& index = walk.index;
    const Tile& tile = walk.tile;
    const int64_t blocks = block_count(index);
    if (!within_offsets(walk.packed_size())) return false;
    Buffer<int32_t> packed_offset(walk.tap_offsets());
    Buffer<Entry> entries(index.nonzeros);
    if (!packed_offset || !entries) return false;
    tabulate_offsets(walk, packed_offset.data());
    const bool streams = streams_outputs(output, index.rows * walk.output_pitch(), walk.geometry.batch);
    const int64_t first = index.segment_start[index.block_start[walk.phase * blocks]];
    const int64_t last = index.segment_start[index.block_start[(walk.phase + 1) * blocks]];

    const int64_t items = item_count(walk.plan, tile, walk.geometry.batch),
                  shares = share_count(items, blocks, threads);
    const int64_t sums_size = index.rows * kTileFloats;
    Buffer<float> shared(shares > 1 ? bounded_product(items * shares, sums_size) : 0);
    if (!shared) return false;

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> packed(walk.packed_size());
        Buffer<float> own(shares > 1 ? 0 : sums_size);
        Buffer<Position> inputs(walk.positions()), outputs(walk.positions());
        complete = packed && own && inputs && outputs;
        const auto offset_of = [&](int64_t entry) { return packed_offset[index.tap_offset[entry]]; };
        look_up_entries(index, values, first, last, offset_of, entries.data());
        const auto gather_share = [&](const Item& item, int64_t share, float* sums) {
            // A row has a segment in the first block of all, but may have none in those of a later share.
            if (share) std::memset(sums, 0, static_cast<size_t>(sums_size) * sizeof(float));
            walk.blocks(item, share, shares, packed.data(), inputs.data(),
                        [&](const Segments& segments, bool first, Ahead<Number>& ahead) {
                            walk.with_constants([&](auto rows, auto run, auto pitch) {
                                constexpr int kRun = decltype(run)::value;
                                gather_segments<decltype(rows)::value, kRun, Access::kAll>(
                                    segments, entries.data(), packed.data(), pitch, tile_rows<kRun>(sums),
                                    first ? nullptr : sums, bias, ahead);
                            });
                        });
        };
        const auto write_rows = [&](const Item& item, const float* sums, int64_t row, int64_t count) {
            const PositionList targets =
                list_outputs(walk.plan, walk.geometry, tile, item.top, item.left, outputs.data());
            unpack(output + row * walk.output_pitch() + item.lane, walk.output_pitch(), sums + row * kTileFloats,
                   kTileFloats, count, targets, tile, walk.geometry.batch - item.lane, streams);
        };
        if (complete && shares == 1) {
            for_share(items, [&](int64_t number) {
                const Item item = item_at(number, walk.plan, tile, walk.geometry.batch);
                gather_share(item, 0, own.data());
                write_rows(item, own.data(), 0, index.rows);
            });
        }
        if (shares > 1) {
            const int64_t team = omp_get_num_threads();
            if (complete) {
                for_share(items * shares, [&](int64_t number) {
                    gather_share(item_at(number / shares, walk.plan, tile, walk.geometry.batch), number % shares,
                                 shared.data() + number * sums_size);
                });
            }
#pragma omp barrier
            const auto add_shares = [&](int64_t number) {
                const int64_t from = index.rows * (number % team) / team, to = index.rows * (number % team + 1) / team;
                float* const sums = shared.data() + number / team * shares * sums_size;
                for (int64_t share = 1; share < shares; ++share)
                    for (int64_t i = from * kTileFloats; i < to * kTileFloats; ++i)
                        sums[i] += sums[share * sums_size + i];
                write_rows(item_at(number / team, walk.plan, tile, walk.geometry.batch), sums, from, to - from);
            };
            if (complete) for_share(items * team, add_shares);
        }
        stream_fence();
    }
    return complete;
}

template <class Number>
static bool blocked_gather(const Geometry& geometry, const Index& index, const float* values, const float* bias,
                           const Number* input, Number* output, int threads) {
    PlanMemory memory(geometry);
    if (!memory) return false;
    for (int64_t phase = 0; phase < phase_count(geometry); ++phase) {
        const Tile tile = choose_tile(geometry, index);
        const PhasePlan plan = plan_phase(geometry, tile, phase, memory);
        const AsTheyAre how;
        const Walk<Number, AsTheyAre> walk{geometry, index, tile, plan, phase, input, how};
        if (!gather_phase(walk, values, bias, output, threads)) return false;
    }
    return true;
}

template <class Number>
static bool values_gradient_by_tile(const Geometry& geometry, const Index& index, const Number* output_gradient,
                                    const Number* input, const AsNormalised& how, float* gradient, float* bias_gradient,
                                    int threads, const Tile& tile) {
    PlanMemory memory(geometry);
    if (!memory) return false;
    const PhasePlan plan = plan_phase(geometry, tile, 0, memory);
    const Walk<Number, AsNormalised> walk{geometry, index, tile, plan, 0, input, how};
    if (!within_offsets(walk.packed_size())) return false;
    Buffer<int32_t> packed_offset(walk.tap_offsets());
    Buffer<int32_t> offsets(index.nonzeros);
    ThreadSums sums(index, gradient, bias_gradient, threads);
    if (!packed_offset || !offsets || !sums) return false;
    tabulate_offsets(walk, packed_offset.data());
    const int64_t items = item_count(plan, tile, geometry.batch);
    const int64_t shares = share_count(items, block_count(index), threads);

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> packed(walk.packed_size());
        Buffer<float> tiles(index.rows * kTileFloats);
        Buffer<float> partials(kPartials * kLanes);
        Buffer<Position> inputs(walk.positions()), outputs(walk.positions());
        complete = packed && tiles && partials && inputs && outputs;
        look_up_offsets(index, packed_offset.data(), offsets.data());
        const ThreadSums::Mine mine = sums.start();
        const auto reduce = [&](int64_t number) {
            const Item item = item_at(number / shares, plan, tile, geometry.batch);
            const PositionList targets = list_outputs(plan, geometry, tile, item.top, item.left, outputs.data());
            if (targets.size < static_cast<int64_t>(tile.height) * tile.width)
                std::memset(tiles.data(), 0, static_cast<size_t>(index.rows * kTileFloats) * sizeof(float));
            pack(tiles.data(), kTileFloats, output_gradient + item.lane, walk.output_pitch(), index.rows, targets, tile,
                 geometry.batch - item.lane, AsTheyAre(), 0);
            walk.blocks(item, number % shares, shares, packed.data(), inputs.data(),
                        [&](const Segments& segments, bool first, Ahead<Number>& ahead) {
                            walk.with_constants([&](auto rows, auto run, auto pitch) {
                                constexpr int kRun = decltype(run)::value;
                                values_segments<decltype(rows)::value, kRun, Access::kAll>(
                                    segments, offsets.data(), packed.data(), pitch,
                                    tile_rows<kRun, const float>(tiles.data()), partials.data(), mine.values,
                                    first ? mine.rows : nullptr, ahead);
                            });
                        });
        };
        if (complete) for_share(items * shares, reduce);
        sums.finish();
    }
    return complete;
}

static bool all_finite(const float* numbers, int64_t count) {
    // Finite numbers times zero are zero; anything else makes the sum NaN.
    float sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) sum += numbers[i] * 0.0f;
    return sum == 0.0f;
}

template <class Number>
static bool blocked_values_gradient(const Geometry& geometry, const Index& index, const Number* output_gradient,
                                    const Number* input, const AsNormalised& how, float* gradient, float* bias_gradient,
                                    int threads) {
    const Axis &height = geometry.height, &width = geometry.width;
    const Tile tile = choose_tile(geometry, index);
    const auto by_tile = [&](const Tile& shape) {
        return values_gradient_by_tile(geometry, index, output_gradient, input, how, gradient, bias_gradient, threads,
                                       shape);
    };
    if (!by_tile(tile)) return false;
    // Beyond the plane a tile has gradients of zero, which a NaN or an infinity among its inputs would turn into NaN.
    // That must show in the result, which is then computed anew, one position at a time.
    const bool whole = height.output % tile.height == 0 && width.output % tile.width == 0;
    if (whole || all_finite(gradient, index.nonzeros)) return true;
    return by_tile(Tile{1, 1, kAccumulators});
}

}  // namespace regrow::REGROW_VARIANT
