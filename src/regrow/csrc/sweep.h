// The driver for few channels on large planes, and for 1x1 kernels: a tile sweeps along the columns of the plane.
//
// A tile is a few rows of one column, with as many lanes as fill the accumulators, so that every line read or written
// is a long contiguous run. The packed inputs of a block of channels stand in the second-level cache as a ring of
// columns: each step packs only the columns that are new. A nonzero's offset depends on where in the ring its column
// stands, so there is a table of entries for each rotation. Sums stay in registers over all nonzeros of a row in the
// block, and go straight to the output; a further block adds to what is there.
#pragma once

#include <type_traits>

#include "pack.h"
#include "team.h"

namespace regrow::REGROW_VARIANT {

// One axis: output q of phase p stands at p + q * step and reads, for a tap of that phase, packed line tap_line[tap],
// where line 0 is input q * advance + lowest.
struct SweepAxis {
    int64_t input;
    int64_t output;
    int64_t phases;
    int64_t advance;  // inputs from one output to the next
    int64_t lowest;
    int64_t span;       // inputs that one output reads, over all phases
    int32_t* tap_line;  // [kernel]

    int64_t outputs(int64_t phase) const { return phase < output ? ceil_divide(output - phase, phases) : 0; }
    int64_t target(int64_t phase, int64_t q) const { return phase + q * phases; }
};

static inline SweepAxis sweep_axis(const Axis& axis, bool transposed, int32_t* tap_line) {
    SweepAxis plan{axis.input, axis.output, transposed ? axis.stride : 1, transposed ? 1 : axis.stride, 0, 1, tap_line};
    int64_t highest = 0;
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
        const int64_t at = tap * axis.dilation - axis.padding;
        // Transposed, output p + q * stride reads input q - (at - p) / stride, for the one phase p that divides.
        const int64_t shift = transposed ? -floor_divide(at, axis.stride) : at;
        tap_line[tap] = static_cast<int32_t>(shift);
        plan.lowest = tap == 0 ? shift : smaller(plan.lowest, shift);
        highest = tap == 0 ? shift : larger(highest, shift);
    }
    plan.span = highest - plan.lowest + 1;
    for (int64_t tap = 0; tap < axis.kernel; ++tap) tap_line[tap] -= static_cast<int32_t>(plan.lowest);
    return plan;
}

// Which strips of output rows read the same rows of the input.
//
// Strips of one colour share none: in a scatter they may be computed at the same time, colour after colour.
class Strips {
   public:
    // A strip reads `lines` rows from `lowest` on, the next one from `advance` further on.
    Strips(int64_t count, int64_t advance, int64_t lowest, int64_t lines)
        : count_(count), advance_(advance), lowest_(lowest), lines_(lines), cycle_(ceil_divide(lines, advance)) {}

    int64_t colours() const { return smaller(cycle_, count_); }
    int64_t of_colour(int64_t colour) const { return ceil_divide(count_ - colour, cycle_); }
    int64_t strip(int64_t colour, int64_t number) const { return colour + number * cycle_; }

    // Whether a strip of an earlier colour (or of a later one) reads a row that `strip` reads.
    bool shared(int64_t strip, int64_t row, bool earlier) const {
        const int64_t colour = strip % cycle_;
        for (int64_t other = larger(0, strip - cycle_ + 1); other < smaller(count_, strip + cycle_); ++other) {
            const int64_t first = other * advance_ + lowest_, its = other % cycle_;
            if (row >= first && row < first + lines_ && (earlier ? its < colour : its > colour)) return true;
        }
        return false;
    }

   private:
    int64_t count_;
    int64_t advance_;
    int64_t lowest_;
    int64_t lines_;
    int64_t cycle_;
};

// A tile of kRows rows and kRun vectors along the batch, and the ring that it reads.
template <int kRows, int kRun>
class Sweep {
   public:
    static constexpr int64_t kTileLanes = static_cast<int64_t>(kRun) * kLanes;
    static constexpr int64_t kAheadChannels = 6;

    // `rows` are those of a strip, which share packed lines: one tile of kRows, or several of one row. Where `ahead`, the
    // ring has room for the columns of the next tile, which are packed while a tile is computed.
    Sweep(const Geometry& geometry, const Index& index, PlanMemory& memory, int64_t rows = kRows, bool ahead = false)
        : index_(index), batch_(geometry.batch), rows_(rows),
          height_(sweep_axis(geometry.height, geometry.transposed, memory.height())),
          width_(sweep_axis(geometry.width, geometry.transposed, memory.width())), kernel_width_(geometry.width.kernel),
          taps_(static_cast<int64_t>(geometry.height.kernel) * geometry.width.kernel),
          blocks_(ceil_divide(index.channels, index.channels_per_block)),
          lines_((rows - 1) * height_.advance + height_.span),
          slots_(width_.span + (ahead && foresees(width_) ? width_.advance : 0)), line_pitch_(slots_ * kTileLanes),
          channel_pitch_(bounded_product(lines_, line_pitch_)), strips_(ceil_divide(height_.outputs(0), rows)),
          groups_(ceil_divide(batch_, kTileLanes)) {}

    int64_t rows() const { return rows_; }
    int64_t rotations() const { return slots_; }
    int64_t buffer_size() const { return bounded_product(index_.channels_per_block, channel_pitch_); }
    int64_t input_pitch() const { return height_.input * width_.input * batch_; }
    int64_t output_pitch() const { return height_.output * width_.output * batch_; }
    int64_t row_step() const { return height_.advance * line_pitch_; }

    // Of a block; all stand somewhere in the ring, though the last block may hold fewer channels.
    int64_t tap_offsets() const { return index_.channels_per_block * taps_; }

    // Floats from the start of the ring, for each tap offset, with the first column of the tile in each slot of the ring.
    void tabulate_offsets(int32_t* packed_offset) const {
        for (int64_t rotation = 0; rotation < rotations(); ++rotation)
            for (int64_t channel = 0; channel < index_.channels_per_block; ++channel)
                for (int64_t tap = 0; tap < taps_; ++tap) {
                    const int64_t slot = (rotation + width_.tap_line[tap % kernel_width_]) % slots_;
                    *packed_offset++ =
                        static_cast<int32_t>(channel * channel_pitch_ +
                                             height_.tap_line[tap / kernel_width_] * line_pitch_ + slot * kTileLanes);
                }
    }

    // A stretch of columns of one strip of rows and one group of lanes: what a thread does in one go.
    struct Item {
        int64_t lane;
        int64_t top;
        int64_t first_column;
        int64_t last_column;
        int64_t share;  // of the segments
        int64_t shares;
    };

    // Columns are cut only where there would be too little work for the threads: each cut packs a ring anew.
    int64_t cuts(int64_t threads) const {
        return smaller(larger(1, ceil_divide(width_.outputs(0), 4)), ceil_divide(threads, groups_ * strips_));
    }
    // Where that is not enough, as in a linear layer, segments are shared out too. A further block adds to outputs that
    // another thread may not have written yet, so only where there is none.
    int64_t shares(int64_t threads) const {
        return blocks_ > 1 ? 1 : ceil_divide(threads, groups_ * strips_ * cuts(threads));
    }
    int64_t items(int64_t threads) const { return groups_ * strips_ * cuts(threads) * shares(threads); }
    Item item(int64_t number, int64_t threads) const {
        const int64_t all_shares = shares(threads), share = number % all_shares;
        number /= all_shares;
        const int64_t parts = cuts(threads), part = number % parts, strip = number / parts % strips_;
        const int64_t columns = width_.outputs(0);
        return {number / parts / strips_ * kTileLanes, strip * rows_, columns * part / parts,
                columns * (part + 1) / parts,          share,         all_shares};
    }

    // One tile of one phase: some segments, and where their outputs stand.
    struct Tile {
        Segments segments;
        int64_t rows;      // of the strip that exist
        int64_t lanes;     // of kTileLanes that exist
        int64_t position;  // floats from the start of a channel of the output
        int64_t row_pitch;
        int64_t rotation;
        bool first_block;
        bool last_block;
    };

    // Packs column after column and calls body(tile) for every block and phase.
    template <class Body>
    void tiles(const Item& item, const float* input, float* ring, Body&& body) const {
        const int64_t lanes = lanes_of(item);
        for (int64_t block = 0; block < blocks_; ++block) {
            for (int64_t column = item.first_column; column < item.last_column; ++column) {
                const int64_t left = column * width_.advance + width_.lowest;
                for (int64_t from = first_new(item, column); from < left + width_.span; ++from)
                    pack_column(block, item, from, lanes, input, ring);
                for (int64_t phase = 0; phase < height_.phases * width_.phases; ++phase)
                    phase_tile(item, block, column, phase, lanes, modulo(left, slots_), body);
            }
        }
    }

    // The columns that the next tile reads beyond those of this one, packed a few lines at a time while this one computes:
    // reading them is then no time of its own.
    class Coming {
       public:
        Coming(const Sweep& plan, int64_t block, const Item& item, int64_t column, int64_t steps, const float* input,
               float* ring)
            : plan_(plan), item_(item), first_channel_(block * plan.index_.channels_per_block),
              channels_(smaller(plan.index_.channels_per_block, plan.index_.channels - first_channel_)), input_(input),
              ring_(ring) {
            const int64_t left = column * plan.width_.advance + plan.width_.lowest;
            end_ = left + plan.width_.advance + plan.width_.span;
            column_ =
                column + 1 < item.last_column ? larger(left + plan.width_.span, left + plan.width_.advance) : end_;
            // Without room beside what the tile reads, all wait until it is computed.
            if (plan.slots_ > plan.width_.span)
                share_ = ceil_divide((end_ - column_) * channels_ * plan.lines_, larger(steps, 1));
            if (column_ < end_) begin_column();
        }

        __attribute__((always_inline)) void step(int64_t) { pack(share_); }
        void finish() { pack(INT64_MAX); }

       private:
        void begin_column() {
            const int64_t top = item_.top * plan_.height_.advance + plan_.height_.lowest;
            const bool outside = column_ < 0 || column_ >= plan_.width_.input;
            // The lines of a channel that are inputs; the others are padding.
            first_ = outside ? plan_.lines_ : larger(0, -top);
            last_ = outside ? 0 : smaller(plan_.lines_, plan_.height_.input - top);
            to_ = ring_ + modulo(column_, plan_.slots_) * kTileLanes;
            from_ = input_ + first_channel_ * plan_.input_pitch() +
                    (top * plan_.width_.input + column_) * plan_.batch_ + item_.lane;
            channel_ = line_ = 0;
        }

        __attribute__((noinline)) void pack(int64_t count) {
            const int64_t lanes = plan_.lanes_of(item_), pitch = plan_.width_.input * plan_.batch_;
            for (; count > 0 && column_ < end_; --count) {
                float* to = to_ + line_ * plan_.line_pitch_;
                if (line_ < first_ || line_ >= last_) {
                    fill(to, kRun, 0.0f);
                } else {
                    const float* from = from_ + line_ * pitch;
                    if (channel_ + kAhead < channels_)
                        for (int v = 0; v < kRun; ++v)
                            __builtin_prefetch(from + kAhead * plan_.input_pitch() + v * kLanes, 0, 2);
                    copy_in(to, from, kRun, lanes);
                }
                if (++line_ < plan_.lines_) continue;
                line_ = 0;
                to_ += plan_.channel_pitch_;
                from_ += plan_.input_pitch();
                if (++channel_ == channels_ && ++column_ < end_) begin_column();
            }
        }

        static constexpr int64_t kAhead = 3;

        const Sweep& plan_;
        const Item& item_;
        int64_t first_channel_;
        int64_t channels_;
        const float* input_;
        float* ring_;
        int64_t column_;
        int64_t end_;
        int64_t share_ = 0;
        int64_t first_ = 0;
        int64_t last_ = 0;
        int64_t channel_ = 0;
        int64_t line_ = 0;
        float* to_ = nullptr;
        const float* from_ = nullptr;
    };

    // Calls body(tile, coming) for every tile of every block; the body lets the coming columns step, `visits` times for each
    // segment.
    template <class Body>
    void tiles_ahead(const Item& item, int64_t visits, const float* input, float* ring, Body&& body) const {
        const int64_t lanes = lanes_of(item);
        for (int64_t block = 0; block < blocks_; ++block) {
            const int64_t segments = index_.block_start[block + 1] - index_.block_start[block];
            for (int64_t column = item.first_column; column < item.last_column; ++column) {
                const int64_t left = column * width_.advance + width_.lowest;
                if (column == item.first_column)
                    for (int64_t from = left; from < left + width_.span; ++from)
                        pack_column(block, item, from, lanes, input, ring);
                Coming coming(*this, block, item, column, segments * visits / item.shares, input, ring);
                phase_tile(item, block, column, 0, lanes, modulo(left, slots_),
                           [&](const Tile& tile) { body(tile, coming); });
                coming.finish();
            }
        }
    }

    // Which strips may add to the inputs that they read at the same time.
    Strips strips() const { return {strips_, rows_ * height_.advance, height_.lowest, lines_}; }

    // Whether every input lies between those that some output reads.
    bool covers_input() const { return covers(height_) && covers(width_); }

    // In a scatter the strips of one colour, groups of lanes and blocks of channels have nothing in common.
    int64_t scatter_items(int64_t colour) const { return strips().of_colour(colour) * groups_ * blocks_; }

    // Clears column after column of one block, calls body(tile), which adds to the ring, and adds what leaves the ring to
    // `output`, an activation in the shape of the input. Where `adds`, `output` holds numbers, else what earlier colours
    // have left there.
    template <class Body>
    void scatter(int64_t colour, int64_t number, bool adds, bool streams, float* output, float* ring,
                 Body&& body) const {
        const int64_t block = number % blocks_, group = number / blocks_ % groups_;
        const int64_t strip = strips().strip(colour, number / blocks_ / groups_);
        const Item item{group * kTileLanes, strip * rows_, 0, width_.outputs(0), 0, 1};
        for (int64_t column = 0; column < item.last_column; ++column) {
            const int64_t left = column * width_.advance + width_.lowest, right = left + width_.span;
            for (int64_t from = first_new(item, column); from < right; ++from) clear_column(from, ring);
            phase_tile(item, block, column, 0, lanes_of(item), modulo(left, slots_), body);
            const int64_t end = column + 1 < item.last_column ? smaller(right, left + width_.advance) : right;
            for (int64_t gone = left; gone < end; ++gone)
                add_column(block, item, strip, gone, adds, streams, ring, output);
        }
    }

    // Calls body(rows, access, first row) for the whole tile, or, at the edge of the plane, row by row: rows that do not
    // exist are not computed, since zero times a NaN that is none of theirs would be NaN.
    template <class Body>
    static void visit(const Tile& tile, bool stream, Body&& body) {
        using All = std::integral_constant<Access, Access::kAll>;
        using Stream = std::integral_constant<Access, Access::kStream>;
        using Some = std::integral_constant<Access, Access::kSome>;
        using One = std::integral_constant<int, 1>;
        const std::integral_constant<int, kRows> rows;
        if (tile.rows == kRows && tile.lanes == kTileLanes)
            return stream ? body(rows, Stream(), 0) : body(rows, All(), 0);
        for (int64_t row = 0; row < tile.rows; ++row)
            tile.lanes == kTileLanes ? body(One(), All(), row) : body(One(), Some(), row);
    }

   private:
    static int64_t modulo(int64_t a, int64_t b) { return a - floor_divide(a, b) * b; }

    // Whether the ring holds the columns of two tiles: there is a table of offsets for each of its columns, so not where
    // columns that nothing reads lie between them in number.
    static bool foresees(const SweepAxis& axis) { return axis.advance <= 4 * axis.span; }

    static bool covers(const SweepAxis& axis) {
        const int64_t end = (axis.outputs(0) - 1) * axis.advance + axis.lowest + axis.span;
        return axis.advance <= axis.span && axis.lowest <= 0 && end >= axis.input;
    }

    int64_t lanes_of(const Item& item) const { return smaller(kTileLanes, batch_ - item.lane); }

    // The first column that is not in the ring when a tile comes to an output's column.
    int64_t first_new(const Item& item, int64_t column) const {
        const int64_t left = column * width_.advance + width_.lowest;
        return column == item.first_column ? left : left + larger(0, width_.span - width_.advance);
    }

    template <class Body>
    void phase_tile(const Item& item, int64_t block, int64_t column, int64_t phase, int64_t lanes, int64_t rotation,
                    Body&& body) const {
        const int64_t down = phase / width_.phases, across = phase % width_.phases;
        const int64_t rows = smaller(rows_, height_.outputs(down) - item.top);
        if (rows <= 0 || column >= width_.outputs(across)) return;
        const int32_t* start = index_.block_start + phase * blocks_ + block;
        const int64_t row_pitch = height_.phases * width_.output * batch_;
        const int64_t position =
            (height_.target(down, item.top) * width_.output + width_.target(across, column)) * batch_ + item.lane;
        const int64_t first = share_start(start[0], start[1], item.share, item.shares);
        const int64_t last = share_start(start[0], start[1], item.share + 1, item.shares);
        body(Tile{{index_.segment_row, index_.segment_start, first, last},
                  rows,
                  lanes,
                  position,
                  row_pitch,
                  rotation,
                  block == 0,
                  block == blocks_ - 1});
    }

    // The first segment of a share: all have about as many nonzeros.
    int64_t share_start(int64_t first, int64_t last, int64_t share, int64_t shares) const {
        if (share == 0) return first;
        if (share == shares) return last;
        const int64_t before = index_.segment_start[first], all = index_.segment_start[last] - before;
        const int64_t wanted = before + all * share / shares;
        while (first < last) {
            const int64_t middle = first + (last - first) / 2;
            if (index_.segment_start[middle] < wanted)
                first = middle + 1;
            else
                last = middle;
        }
        return first;
    }

    void pack_column(int64_t block, const Item& item, int64_t column, int64_t lanes, const float* input,
                     float* ring) const {
        const int64_t channel = block * index_.channels_per_block;
        const int64_t channels = smaller(index_.channels_per_block, index_.channels - channel);
        const int64_t top = item.top * height_.advance + height_.lowest;
        const bool outside = column < 0 || column >= width_.input;
        // A few channels ahead: the lines of more would drive each other out of the cache, since they lie a power of two
        // apart.
        const int64_t ahead = kAheadChannels * input_pitch();
        float* slot = ring + modulo(column, slots_) * kTileLanes;
        for (int64_t c = 0; c < channels; ++c, slot += channel_pitch_) {
            for (int64_t line = 0; line < lines_; ++line) {
                float* to = slot + line * line_pitch_;
                const int64_t row = top + line;
                if (outside || row < 0 || row >= height_.input) {
                    fill(to, kRun, 0.0f);
                    continue;
                }
                const float* from =
                    input + (channel + c) * input_pitch() + (row * width_.input + column) * batch_ + item.lane;
                copy_in(to, from, kRun, lanes);
                if (c + kAheadChannels < channels)
                    for (int v = 0; v < kRun; ++v) __builtin_prefetch(from + ahead + v * kLanes, 0, 2);
            }
        }
    }

    void clear_column(int64_t column, float* ring) const {
        float* slot = ring + modulo(column, slots_) * kTileLanes;
        for (int64_t line = 0; line < index_.channels_per_block * lines_; ++line, slot += line_pitch_)
            fill(slot, kRun, 0.0f);
    }

    void add_column(int64_t block, const Item& item, int64_t strip, int64_t column, bool adds, bool streams,
                    const float* ring, float* output) const {
        if (column < 0 || column >= width_.input) return;
        const int64_t channel = block * index_.channels_per_block;
        const int64_t channels = smaller(index_.channels_per_block, index_.channels - channel);
        const int64_t lanes = lanes_of(item);
        const Strips all = strips();
        for (int64_t line = 0; line < lines_; ++line) {
            const int64_t row = item.top * height_.advance + height_.lowest + line;
            if (row < 0 || row >= height_.input) continue;
            const bool add = adds || all.shared(strip, row, true);
            const bool stream_line = streams && lanes == kTileLanes && !add && !all.shared(strip, row, false);
            const float* from = ring + modulo(column, slots_) * kTileLanes + line * line_pitch_;
            float* to = output + channel * input_pitch() + (row * width_.input + column) * batch_ + item.lane;
            const int64_t ahead = add ? kAheadChannels * input_pitch() : 0;
            for (int64_t c = 0; c < channels; ++c, from += channel_pitch_, to += input_pitch()) {
                if (ahead && c + kAheadChannels < channels)
                    for (int v = 0; v < kRun; ++v) __builtin_prefetch(to + ahead + v * kLanes, 1, 2);
                add_line(from, lanes, add, stream_line, to);
            }
        }
    }

    static void add_line(const float* from, int64_t lanes, bool add, bool streams, float* to) {
        if (streams) {
            for (int v = 0; v < kRun; ++v) stream(to + v * kLanes, load(from + v * kLanes));
        } else if (lanes == kTileLanes && add) {
            for (int v = 0; v < kRun; ++v) store(to + v * kLanes, load(to + v * kLanes) + load(from + v * kLanes));
        } else if (add) {
            for (int64_t lane = 0; lane < lanes; ++lane) to[lane] += from[lane];
        } else {
            copy_out(to, from, kRun, lanes);
        }
    }

    const Index& index_;
    int64_t batch_;
    int64_t rows_;
    SweepAxis height_;
    SweepAxis width_;
    int64_t kernel_width_;
    int64_t taps_;
    int64_t blocks_;
    int64_t lines_;  // packed rows
    int64_t slots_;  // packed columns
    int64_t line_pitch_;
    int64_t channel_pitch_;
    int64_t strips_;
    int64_t groups_;
};

// Asks for the outputs' rows of the segments to come: they lie far apart, so the processor does not foresee them.
template <int kRows, int kRun>
struct RowsAhead {
    const Segments& segments;
    Rows<const float> rows;

    __attribute__((always_inline)) void step(int64_t segment) const {
        constexpr int64_t kDistance = 3;
        if (segment + kDistance >= segments.last) return;
        const float* line = rows.first + segments.row[segment + kDistance] * rows.pitch;
        for (int i = 0; i < kRows; ++i, line += rows.line_pitch)
            for (int j = 0; j < kRun; ++j) __builtin_prefetch(line + j * kLanes);
    }
};

template <int kRows, int kRun>
bool sweep_gather(const Geometry& geometry, const Index& index, const float* values, const float* bias,
                  const float* input, float* output, int threads) {
    using Plan = Sweep<kRows, kRun>;
    PlanMemory memory(geometry);
    if (!memory) return false;
    const Plan plan(geometry, index, memory);
    if (!within_offsets(plan.buffer_size())) return false;
    Buffer<Entry> entries(plan.rotations() * index.nonzeros);
    Buffer<int32_t> packed_offset(plan.rotations() * plan.tap_offsets());
    if (!entries || !packed_offset) return false;
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
            plan.tiles(plan.item(number, team), input, ring.data(), [&](const typename Plan::Tile& tile) {
                const Entry* table = entries.data() + tile.rotation * index.nonzeros;
                const auto gather = [&](auto rows, auto access, int64_t row) {
                    const Rows<float> targets{output + tile.position + row * tile.row_pitch, plan.output_pitch(),
                                              tile.row_pitch, tile.lanes};
                    NothingAhead nothing;
                    gather_segments<decltype(rows)::value, kRun, decltype(access)::value>(
                        tile.segments, table, ring.data() + row * plan.row_step(), plan.row_step(), targets, bias,
                        !tile.first_block, nothing);
                };
                plan.visit(tile, streams && tile.last_block, gather);
            });
        };
        if (complete) for_share(plan.items(team), gather_item);
        stream_fence();
    }
    return complete;
}

template <int kRows, int kRun>
bool sweep_values_gradient(const Geometry& geometry, const Index& index, const float* output_gradient,
                           const float* input, float* gradient, float* bias_gradient, int threads) {
    using Plan = Sweep<kRows, kRun>;
    PlanMemory memory(geometry);
    if (!memory) return false;
    const Plan plan(geometry, index, memory);
    if (!within_offsets(plan.buffer_size())) return false;
    Buffer<int32_t> offsets(plan.rotations() * index.nonzeros);
    Buffer<int32_t> packed_offset(plan.rotations() * plan.tap_offsets());
    ThreadSums sums(index, gradient, bias_gradient, threads);
    if (!offsets || !packed_offset || !sums) return false;
    plan.tabulate_offsets(packed_offset.data());

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> ring(plan.buffer_size());
        Buffer<float> partials(kPartials * kLanes);
        complete = ring && partials;
        for (int64_t rotation = 0; rotation < plan.rotations(); ++rotation)
            look_up_offsets(index, packed_offset.data() + rotation * plan.tap_offsets(),
                            offsets.data() + rotation * index.nonzeros);
        const ThreadSums::Mine mine = sums.start();
        const int64_t team = omp_get_num_threads();
        const auto reduce_item = [&](int64_t number) {
            plan.tiles(plan.item(number, team), input, ring.data(), [&](const typename Plan::Tile& tile) {
                const int32_t* table = offsets.data() + tile.rotation * index.nonzeros;
                const auto reduce = [&](auto rows, auto access, int64_t row) {
                    const Rows<const float> sources{output_gradient + tile.position + row * tile.row_pitch,
                                                    plan.output_pitch(), tile.row_pitch, tile.lanes};
                    RowsAhead<decltype(rows)::value, kRun> ahead{tile.segments, sources};
                    values_segments<decltype(rows)::value, kRun, decltype(access)::value>(
                        tile.segments, table, ring.data() + row * plan.row_step(), plan.row_step(), sources,
                        partials.data(), mine.values, tile.first_block ? mine.rows : nullptr, ahead);
                };
                plan.visit(tile, false, reduce);
            });
        };
        if (complete) for_share(plan.items(team), reduce_item);
        sums.finish();
    }
    return complete;
}

}  // namespace regrow::REGROW_VARIANT
