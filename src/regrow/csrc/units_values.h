// The gradient of the values of units, by the index and the ring of units.h.
//
// A tile is a few positions of the plane, with some vectors along the batch. The rows of the output's gradient that belong
// to a unit are copied to the first-level cache for all of them. Entries of one tap read inputs that lie the same way to
// these positions: for a few entries at a time the products are summed in registers, over all positions and vectors,
// before lanes are summed. Every load so serves as many multiply-adds as there are entries, or outputs of a unit.
#pragma once

#include "by_tap.h"

namespace regrow::REGROW_VARIANT {

// A position of a tile and what a tap reads there, in floats from the start of the copied rows, and of a packed channel.
struct Meeting {
    int32_t factor;
    int32_t input;
};

// partials[entry][u] = the sum over the meetings of factor[u] * input[entry], lane by lane.
template <int kUnit, int kRun, int kEntries>
static inline void sum_products(const Meeting* meetings, int64_t count, const float* factors, const float* packed,
                                const int32_t* channels, float* partials) {
    // Few sums alone would wait for themselves.
    constexpr int kChains = kRun > 1 && 2 * kEntries * kUnit <= kAccumulators ? 2 : 1;
    const float* lines[kEntries];
    Vector sum[kChains][kEntries][kUnit] = {};
    for (int entry = 0; entry < kEntries; ++entry) lines[entry] = packed + channels[entry];
    for (const Meeting* meeting = meetings; meeting < meetings + count; ++meeting) {
        const float* const factor = factors + meeting->factor;
        for (int v = 0; v < kRun; ++v) {
            Vector row[kUnit];
            for (int u = 0; u < kUnit; ++u) row[u] = load(factor + (u * kRun + v) * kLanes);
            for (int entry = 0; entry < kEntries; ++entry) {
                const Vector input = load(lines[entry] + meeting->input + v * kLanes);
                for (int u = 0; u < kUnit; ++u) sum[v % kChains][entry][u] += row[u] * input;
            }
        }
    }
    for (int entry = 0; entry < kEntries; ++entry)
        for (int u = 0; u < kUnit; ++u)
            store(partials + (entry * kUnit + u) * kLanes,
                  kChains > 1 ? sum[0][entry][u] + sum[kChains - 1][entry][u] : sum[0][entry][u]);
}

// The same for as many of the `left` entries as one call takes, at most kEntries; returns how many those are.
template <int kUnit, int kRun, int kEntries>
static inline int64_t sum_products_of(int64_t left, const Meeting* meetings, int64_t count, const float* factors,
                                      const float* packed, const int32_t* channels, float* partials) {
    if constexpr (kEntries > 1)
        if (left < kEntries)
            return sum_products_of<kUnit, kRun, (kEntries > 4 ? kEntries / 2 : kEntries - 1)>(
                left, meetings, count, factors, packed, channels, partials);
    sum_products<kUnit, kRun, kEntries>(meetings, count, factors, packed, channels, partials);
    return kEntries;
}

// Which positions of a tile meet an input, for each tap by columns of the kernel.
class Meetings {
   public:
    Meetings(int64_t taps, int64_t positions) : positions_(positions), count_(taps), list_(taps * positions) {}

    // Whether there was memory.
    explicit operator bool() const { return count_ && list_; }

    // `position_floats` are those of the copied rows at one position.
    template <class Plan, class Tile>
    void find(const Plan& plan, const Tile& tile, int64_t taps, int64_t position_floats) {
        std::memset(count_.data(), 0, static_cast<size_t>(taps) * sizeof(int32_t));
        plan.visit_inputs(tile, [&](int64_t tap, int64_t position, int64_t packed) {
            list_[tap * positions_ + count_[tap]++] = {static_cast<int32_t>(position * position_floats),
                                                       static_cast<int32_t>(packed)};
        });
    }

    const Meeting* of(int64_t tap) const { return list_.data() + tap * positions_; }
    int64_t count(int64_t tap) const { return count_[tap]; }

   private:
    int64_t positions_;
    Buffer<int32_t> count_;
    Buffer<Meeting> list_;
};

// The rows of the output's gradient that belong to a unit, at the positions of a tile: [position][row of the unit][lanes].
template <int kUnit, int kRun, class Number>
class Factors {
   public:
    static constexpr int64_t kFloats = int64_t{kUnit} * kRun * kLanes;  // of one position

    explicit Factors(int64_t positions) : copy_(positions * kFloats) {}

    // Whether there was memory.
    explicit operator bool() const { return static_cast<bool>(copy_); }
    const float* data() const { return copy_.data(); }

    // Copies the rows of one group of them, and adds them to its row sums, lane by lane, if those are not null.
    template <class Tile>
    void copy(const Tile& tile, int64_t columns, const Number* sources, int64_t pitch, int64_t batch, int64_t group,
              float* row_sums) {
        for (int64_t row = 0; row < tile.rows; ++row)
            for (int64_t column = 0; column < tile.columns; ++column)
                for (int u = 0; u < kUnit; ++u) {
                    float* const to = copy_.data() + (row * columns + column) * kFloats + u * kRun * kLanes;
                    copy_in(to, sources + (group * kUnit + u) * pitch + row * tile.row_pitch + column * batch, kRun,
                            tile.lanes);
                    if (!row_sums) continue;
                    float* const row_sum = row_sums + (group * kUnit + u) * kLanes;
                    Vector sum = load(row_sum);
                    for (int v = 0; v < kRun; ++v) sum += load(to + v * kLanes);
                    store(row_sum, sum);
                }
    }

    // Asks for the rows of a group at the positions from `first` to before `last`.
    template <class Tile>
    static void ask_for(const Tile& tile, const Number* sources, int64_t pitch, int64_t batch, int64_t group,
                        int64_t first, int64_t last) {
        for (int64_t position = first; position < last; ++position)
            for (int u = 0; u < kUnit; ++u)
                ask<false, 2>(sources + (group * kUnit + u) * pitch + position / tile.columns * tile.row_pitch +
                                  position % tile.columns * batch,
                              kRun);
    }

   private:
    Buffer<float> copy_;
};

// Where a weight has one tap, all positions and samples are alike: they are taken as columns of as many samples as a tile
// has lanes.
static inline Geometry of_columns(const Geometry& geometry, int64_t lanes) {
    const auto plain = [](const Axis& axis) { return axis.kernel == 1 && axis.stride == 1 && axis.padding == 0; };
    const int64_t numbers = geometry.batch * geometry.height.output * geometry.width.output;
    if (!plain(geometry.height) || !plain(geometry.width) || numbers % lanes) return geometry;
    return {lanes, Axis{1, 1, 1, 1, 0, 1}, Axis{numbers / lanes, numbers / lanes, 1, 1, 0, 1}, false};
}

// How many positions a tile of the weight gradient has, and the cycles that all tiles should then take.
struct ValuesTile {
    Extent extent;
    double cycles;
};

// The more positions, the less often lanes are summed and lines packed twice, as long as the copied rows stand in the
// first-level cache and the ring in the second. Negative cycles: none fits, and a tile has one position.
template <int kUnit, int kRun>
static ValuesTile values_tile(const Geometry& given, const Index& index, PlanMemory& memory, int threads) {
    using Plan = Sweep<1, kRun>;
    constexpr int64_t kNear = int64_t{24} << 10, kRing = int64_t{800} << 10, kSmallRing = int64_t{1} << 20;
    // Cycles: of a vector whose lanes are summed, of a turn of entries, of a vector that is packed from runs of half a
    // kilobyte or from shorter ones, beside the arithmetic or not, and of one that is copied.
    constexpr double kSum = 3, kTurn = 20, kPack = kRun * kLanes >= 128 ? 5 : 8, kPackLater = 1.5 * kPack, kCopy = 3;
    constexpr double kVectors = kRun * kUnit, kEntries = kAccumulators / kUnit;
    const Geometry geometry = of_columns(given, Plan::kTileLanes);
    const int64_t height = geometry.height.output, width = geometry.width.output;
    const auto tile_of = [&](int64_t rows, int64_t columns, bool ahead) -> ValuesTile {
        const Extent extent{rows, columns, ahead, false, true};
        const Plan plan(geometry, index, memory, extent);
        const int64_t positions = rows * columns, vectors = positions * kRun * kUnit;
        const int64_t bytes = bounded_product(plan.buffer_size(), sizeof(float));
        if (vectors * kLanes * static_cast<int64_t>(sizeof(float)) > kNear ||
            bytes > (positions == 1 ? kSmallRing : kRing))
            return {extent, -1.0};
        const auto entries = static_cast<double>(index.nonzeros) / static_cast<double>(index.blocks());
        const auto lines =
            static_cast<double>(index.channels_per_block * plan.lines() * columns * geometry.width.stride);
        const auto groups = static_cast<double>(index.groups()), many = static_cast<double>(positions);
        const double cycles = entries * (many * kVectors / 2 + kSum * kUnit + kTurn / kEntries) +
                              lines * kRun * (ahead ? kPack : kPackLater) + groups * many * kVectors * kCopy;
        const int64_t tiles = plan.groups() * ceil_divide(height, rows) * ceil_divide(width, columns) * index.blocks();
        // The threads that have the most to do.
        const int64_t items = plan.items(threads), turns = ceil_divide(items, threads) * threads;
        return {extent, cycles * static_cast<double>(tiles) * static_cast<double>(turns) / static_cast<double>(items)};
    };
    ValuesTile best = tile_of(1, 1, width > 1);
    const auto consider = [&](const ValuesTile& tile) {
        if (tile.cycles >= 0.0 && (best.cycles < 0.0 || tile.cycles < best.cycles)) best = tile;
    };
    for (int64_t rows = 1; rows > 0; rows = rows < height ? smaller(2 * rows, height) : 0)
        for (int64_t columns = 1; columns > 0; columns = columns < width ? smaller(2 * columns, width) : 0) {
            if (columns < width) consider(tile_of(rows, columns, true));
            consider(tile_of(rows, columns, false));
        }
    return best;
}

// Whether runs of kRun vectors along the batch take less time than those of half as many.
template <int kUnit, int kRun>
static bool values_want_long_runs(const Geometry& geometry, const Index& index, int threads) {
    PlanMemory memory(geometry);
    if (!memory) return false;
    const double cycles = values_tile<kUnit, kRun>(geometry, index, memory, threads).cycles;
    return cycles >= 0.0 && cycles < values_tile<kUnit, kRun / 2>(geometry, index, memory, threads).cycles;
}

template <int kUnit, int kRun, class Number>
bool units_values_gradient(const Geometry& given, const Index& index, const Number* output_gradient,
                           const Number* input, const AsNormalised& how, float* gradient, float* bias_gradient,
                           int threads) {
    using Plan = Sweep<1, kRun>;
    constexpr int kEntries = kAccumulators / kUnit;
    const Geometry geometry = of_columns(given, Plan::kTileLanes);
    PlanMemory memory(geometry);
    if (!memory) return false;
    const Extent extent = values_tile<kUnit, kRun>(given, index, memory, threads).extent;
    const Plan plan(geometry, index, memory, extent);
    if (!within_offsets(plan.buffer_size())) return false;
    ByTap by_tap(index, geometry);
    const int64_t taps = by_tap.taps();
    Buffer<int32_t> channels(index.nonzeros);  // where each entry's channel stands in the ring
    ThreadSums sums(by_tap.index(), gradient, bias_gradient, threads);
    if (!by_tap || !channels || !sums) return false;

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> ring(plan.buffer_size());
        Buffer<float> partials(kPartials * kLanes);
        Factors<kUnit, kRun, Number> factors(extent.rows * extent.columns);
        Meetings meetings(taps, extent.rows * extent.columns);
        complete = ring && partials && factors && meetings;
        by_tap.sort();
#pragma omp for schedule(static)
        for (int64_t entry = 0; entry < index.nonzeros; ++entry)
            channels[entry] = static_cast<int32_t>(by_tap.index().tap_offset[entry] / taps * plan.channel_pitch());
        const ThreadSums::Mine mine = sums.start();
        const auto reduce_tile = [&](const auto& tile, auto& coming) {
            const Number* const sources = output_gradient + tile.position;
            const int64_t pitch = plan.output_pitch(), positions = tile.rows * tile.columns;
            meetings.find(plan, tile, taps, factors.kFloats);
            for (int64_t segment = tile.segments.first; segment < tile.segments.last; ++segment) {
                factors.copy(tile, extent.columns, sources, pitch, geometry.batch, tile.segments.row[segment],
                             tile.first_block ? mine.rows : nullptr);
                const int32_t* const start = by_tap.starts(segment);
                int64_t flushed = start[0];
                float* partial = partials.data();
                const auto flush = [&](int64_t next) {
                    flush_partials(partials.data(), (partial - partials.data()) / kLanes,
                                   mine.values + flushed * kUnit);
                    partial = partials.data();
                    flushed = next;
                };
                for (int64_t tap = 0; tap < taps; ++tap) {
                    coming.step(segment);
                    if (segment + 1 < tile.segments.last)
                        factors.ask_for(tile, sources, pitch, geometry.batch, tile.segments.row[segment + 1],
                                        positions * tap / taps, positions * (tap + 1) / taps);
                    const int64_t count = meetings.count(tap), end = start[tap + 1];
                    if (count == 0) {  // these entries read padding alone
                        flush(end);
                        continue;
                    }
                    for (int64_t entry = start[tap]; entry < end;) {
                        const int64_t taken =
                            sum_products_of<kUnit, kRun, kEntries>(end - entry, meetings.of(tap), count, factors.data(),
                                                                   ring.data(), channels.data() + entry, partial);
                        entry += taken;
                        partial += taken * kUnit * kLanes;
                        if (partial + kEntries * kUnit * kLanes > partials.data() + kPartials * kLanes) flush(entry);
                    }
                }
                flush(0);
            }
        };
        const int64_t team = omp_get_num_threads();
        const auto reduce_item = [&](int64_t number) {
            plan.tiles_ahead(plan.item(number, team), taps, input, how, ring.data(), reduce_tile);
        };
        if (complete) for_share(plan.items(team), reduce_item);
        sums.finish();
    }
    return complete;
}

}  // namespace regrow::REGROW_VARIANT
