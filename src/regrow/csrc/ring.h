// The ring of columns that a sweep walks over: what is packed when, and what leaves it.
#pragma once

#include <type_traits>

#include "coming.h"
#include "strips.h"
#include "team.h"

namespace regrow::REGROW_VARIANT {

// What a tile takes in at once, beside vectors along the batch.
struct Extent {
    int64_t rows;            // of a strip, which share packed lines: one tile of kRows, or several of one row
    int64_t columns = 1;     // of one tile
    bool ahead = false;      // the ring has room for the columns of the next tile, packed while a tile is computed
    bool padding = true;     // lines that are padding stand in the ring
    bool sums_only = false;  // a tile adds to sums of the thread's own, not to outputs
};

// A tile of kRows rows and kRun vectors along the batch, and the ring that it reads.
template <int kRows, int kRun>
class Sweep {
   public:
    static constexpr int kVectors = kRun;
    static constexpr int64_t kTileLanes = static_cast<int64_t>(kRun) * kLanes;
    static constexpr int64_t kAheadChannels = 6;

    Sweep(const Geometry& geometry, const Index& index, PlanMemory& memory, const Extent& extent = {kRows})
        : index_(index), batch_(geometry.batch), rows_(extent.rows), columns_(extent.columns),
          sums_only_(extent.sums_only), height_(sweep_axis(geometry.height, geometry.transposed, memory.height())),
          width_(sweep_axis(geometry.width, geometry.transposed, memory.width())), kernel_width_(geometry.width.kernel),
          taps_(static_cast<int64_t>(geometry.height.kernel) * geometry.width.kernel),
          blocks_(ceil_divide(index.channels, index.channels_per_block)), ahead_(extent.ahead && foresees(width_)),
          padding_(extent.padding), lines_(held((rows_ - 1) * height_.advance + height_.span, height_)),
          slots_(held(columns_read(columns_) + (ahead_ ? columns_ * width_.advance : 0), width_)),
          line_pitch_(slots_ * kTileLanes), channel_pitch_(bounded_product(lines_, line_pitch_)),
          strips_(ceil_divide(height_.outputs(0), rows_)), groups_(ceil_divide(batch_, kTileLanes)) {}

    int64_t rows() const { return rows_; }
    int64_t groups() const { return groups_; }  // of lanes
    int64_t lines() const { return lines_; }
    int64_t rotations() const { return slots_; }
    int64_t buffer_size() const { return bounded_product(index_.channels_per_block, channel_pitch_); }
    int64_t input_pitch() const { return height_.input * width_.input * batch_; }
    int64_t output_pitch() const { return height_.output * width_.output * batch_; }
    int64_t channel_pitch() const { return channel_pitch_; }
    int64_t row_step() const { return height_.advance * line_pitch_; }

    // The taps that read inputs in a row, and in a column, of the output.
    Taps taps_down(int64_t row) const { return height_.taps_at(row, taps_ / kernel_width_); }
    Taps taps_across(int64_t column) const { return width_.taps_at(column, kernel_width_); }

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

    // Calls body(tap, output, packed) for every tap and every position of a tile that reads an input with it: the number of
    // the tap by columns of the kernel, that of the position, and floats from the start of a channel in the ring.
    template <class Tile, class Body>
    void visit_inputs(const Tile& tile, Body&& body) const {
        const int64_t kernel_height = taps_ / kernel_width_;
        for (int64_t x = 0; x < kernel_width_; ++x)
            for (int64_t column = 0; column < tile.columns; ++column) {
                const int64_t from = (tile.column + column) * width_.advance + width_.lowest + width_.tap_line[x];
                if (from < 0 || from >= width_.input) continue;
                const int64_t slot = modulo(from, slots_) * kTileLanes;
                for (int64_t y = 0; y < kernel_height; ++y)
                    for (int64_t row = 0; row < tile.rows; ++row) {
                        const int64_t line = (tile.top + row) * height_.advance + height_.lowest + height_.tap_line[y];
                        if (line < 0 || line >= height_.input) continue;
                        body(x * kernel_height + y, row * columns_ + column,
                             (line - first_line(tile.top)) * line_pitch_ + slot);
                    }
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
        return blocks_ > 1 && !sums_only_ ? 1 : ceil_divide(threads, groups_ * strips_ * cuts(threads));
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
        int64_t position;  // numbers from the start of a channel of the output
        int64_t top;       // its first row
        int64_t column;    // its first one
        int64_t columns;   // that exist
        int64_t row_pitch;
        int64_t rotation;
        int64_t phase;
        bool first_block;
        bool last_block;
    };

    // Packs column after column and calls body(tile) for every block and phase.
    template <class Number, class How, class Body>
    void tiles(const Item& item, const Number* input, const How& how, float* ring, Body&& body) const {
        const int64_t lanes = lanes_of(item);
        for (int64_t block = 0; block < blocks_; ++block) {
            for (int64_t column = item.first_column; column < item.last_column; ++column) {
                const int64_t left = column * width_.advance + width_.lowest;
                for (int64_t from = first_new(item, column); from < left + width_.span; ++from)
                    pack_column(block, item, from, lanes, input, how, ring);
                for (int64_t phase = 0; phase < height_.phases * width_.phases; ++phase)
                    phase_tile(item, block, column, phase, lanes, modulo(left, slots_), body);
            }
        }
    }

    // Calls body(tile, coming) for every tile of every block; the body lets the coming columns step, `visits` times for each
    // segment.
    template <class Number, class How, class Body>
    void tiles_ahead(const Item& item, int64_t visits, const Number* input, const How& how, float* ring,
                     Body&& body) const {
        const int64_t lanes = lanes_of(item);
        for (int64_t block = 0; block < blocks_; ++block) {
            const int64_t segments = index_.block_start[block + 1] - index_.block_start[block];
            for (int64_t column = item.first_column; column < item.last_column; column += columns_) {
                const int64_t left = column * width_.advance + width_.lowest;
                if (column == item.first_column)
                    for (int64_t from = left; from < left + columns_read(smaller(columns_, item.last_column - column));
                         ++from)
                        pack_column(block, item, from, lanes, input, how, ring);
                Coming<Sweep, Number, How> coming(*this, block, item, column, segments * visits / item.shares, input,
                                                  how, ring);
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
    // the output, an activation in the shape of the input. What a strip of a later colour adds to waits in `sums`, which
    // lie as the outputs do, and may be the outputs.
    template <class Number, class Body>
    void scatter(int64_t colour, int64_t number, bool streams, float* sums, Number* output, float* ring,
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
                add_column(block, item, strip, gone, streams, ring, sums, output);
        }
    }

   private:
    template <class Plan, class Number, class How>
    friend class Coming;

    static int64_t modulo(int64_t a, int64_t b) { return a - floor_divide(a, b) * b; }

    // Whether the ring holds the columns of two tiles: there is a table of offsets for each of its columns, so not where
    // columns that nothing reads lie between them in number.
    static bool foresees(const SweepAxis& axis) { return axis.advance <= 4 * axis.span; }

    static bool covers(const SweepAxis& axis) {
        const int64_t end = (axis.outputs(0) - 1) * axis.advance + axis.lowest + axis.span;
        return axis.advance <= axis.span && axis.lowest <= 0 && end >= axis.input;
    }

    int64_t lanes_of(const Item& item) const { return smaller(kTileLanes, batch_ - item.lane); }

    // Of `count` lines that a tile reads along an axis, those that the ring holds.
    int64_t held(int64_t count, const SweepAxis& axis) const { return padding_ ? count : smaller(count, axis.input); }

    // Inputs that so many columns of outputs read.
    int64_t columns_read(int64_t columns) const { return (columns - 1) * width_.advance + width_.span; }

    // Behind the last input that a tile reads.
    int64_t end_of(int64_t column) const { return column * width_.advance + width_.lowest + columns_read(columns_); }

    // The input that the first line of the ring holds.
    int64_t first_line(const Item& item) const { return first_line(item.top); }
    int64_t first_line(int64_t top) const {
        const int64_t line = top * height_.advance + height_.lowest;
        return padding_ ? line : larger(line, 0);
    }

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
                  item.top,
                  column,
                  smaller(columns_, item.last_column - column),
                  row_pitch,
                  rotation,
                  phase,
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

    template <class Number, class How>
    void pack_column(int64_t block, const Item& item, int64_t column, int64_t lanes, const Number* input,
                     const How& how, float* ring) const {
        const int64_t channel = block * index_.channels_per_block;
        const int64_t channels = smaller(index_.channels_per_block, index_.channels - channel);
        const int64_t top = first_line(item);
        const bool outside = column < 0 || column >= width_.input;
        // A few channels ahead: the lines of more would drive each other out of the cache, since they lie a power of two
        // apart.
        const int64_t ahead = kAheadChannels * input_pitch();
        if (outside && !padding_) return;
        float* slot = ring + modulo(column, slots_) * kTileLanes;
        for (int64_t c = 0; c < channels; ++c, slot += channel_pitch_) {
            const auto change = how.of(channel + c);
            for (int64_t line = 0; line < lines_; ++line) {
                float* to = slot + line * line_pitch_;
                const int64_t row = top + line;
                if (outside || row < 0 || row >= height_.input) {
                    if (padding_) fill(to, kRun, 0.0f);
                    continue;
                }
                const Number* from =
                    input + (channel + c) * input_pitch() + (row * width_.input + column) * batch_ + item.lane;
                copy_in(to, from, kRun, lanes, change);
                if (c + kAheadChannels < channels) ask<false, 2>(from + ahead, kRun);
            }
        }
    }

    void clear_column(int64_t column, float* ring) const {
        float* slot = ring + modulo(column, slots_) * kTileLanes;
        for (int64_t line = 0; line < index_.channels_per_block * lines_; ++line, slot += line_pitch_)
            fill(slot, kRun, 0.0f);
    }

    template <class Number>
    void add_column(int64_t block, const Item& item, int64_t strip, int64_t column, bool streams, const float* ring,
                    float* sums, Number* output) const {
        if (column < 0 || column >= width_.input) return;
        const int64_t channel = block * index_.channels_per_block;
        const int64_t channels = smaller(index_.channels_per_block, index_.channels - channel);
        const int64_t lanes = lanes_of(item);
        const Strips all = strips();
        for (int64_t line = 0; line < lines_; ++line) {
            const int64_t row = item.top * height_.advance + height_.lowest + line;
            if (row < 0 || row >= height_.input) continue;
            const bool earlier = all.shared(strip, row, true), later = all.shared(strip, row, false);
            const bool stream_line = streams && lanes == kTileLanes && !earlier && !later;
            const float* from = ring + modulo(column, slots_) * kTileLanes + line * line_pitch_;
            int64_t at = channel * input_pitch() + (row * width_.input + column) * batch_ + item.lane;
            const int64_t ahead = earlier ? kAheadChannels * input_pitch() : 0;
            for (int64_t c = 0; c < channels; ++c, from += channel_pitch_, at += input_pitch()) {
                if (ahead && c + kAheadChannels < channels) ask<true, 2>(sums + at + ahead, kRun);
                const float* const before = earlier ? sums + at : nullptr;
                if (later && !std::is_same_v<Number, float>)
                    add_line(from, before, lanes, false, sums + at);
                else
                    add_line(from, before, lanes, stream_line, output + at);
            }
        }
    }

    template <class Number>
    static void add_line(const float* from, const float* before, int64_t lanes, bool streams, Number* to) {
        if (streams) {
            for (int v = 0; v < kRun; ++v) stream(to + v * kLanes, load(from + v * kLanes));
        } else if (lanes == kTileLanes && before) {
            for (int v = 0; v < kRun; ++v) store(to + v * kLanes, load(before + v * kLanes) + load(from + v * kLanes));
        } else if (before) {
            for (int64_t lane = 0; lane < lanes; ++lane) put(to + lane, before[lane] + from[lane]);
        } else {
            copy_out(to, from, kRun, lanes);
        }
    }

    const Index& index_;
    int64_t batch_;
    int64_t rows_;
    int64_t columns_;
    bool sums_only_;
    SweepAxis height_;
    SweepAxis width_;
    int64_t kernel_width_;
    int64_t taps_;
    int64_t blocks_;
    bool ahead_;
    bool padding_;
    int64_t lines_;  // packed rows
    int64_t slots_;  // packed columns
    int64_t line_pitch_;
    int64_t channel_pitch_;
    int64_t strips_;
    int64_t groups_;
};

}  // namespace regrow::REGROW_VARIANT
