// The driver for few samples: lanes run along the columns of the plane and the samples together.
//
// In a batch-last activation the columns of a row and their samples are one contiguous run, in which a step of a tap
// to the side is a step of `batch` floats. Inputs are packed with their border of zeros, columns of equal remainder
// modulo the stride together, so that neighbouring outputs read neighbouring floats whatever the stride.
#pragma once

#include <cstring>

#include "pack.h"
#include "team.h"

namespace regrow::REGROW_VARIANT {

// A plane of one row and column without padding: the products of a matrix with few vectors, by one thread.
template <class Number, class Read, class Write>
void multiply_few(const Index& index, const float* values, const float* bias, Read&& read, Write&& write,
                  Number* sums) {
    for (int64_t row = 0; row < index.rows; ++row) sums[row] = Number{} + (bias ? bias[row] : 0.0f);
    const int64_t blocks = ceil_divide(index.channels, index.channels_per_block);
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t channel = block * index.channels_per_block;
        for (int64_t segment = index.block_start[block]; segment < index.block_start[block + 1]; ++segment) {
            // Several chains: one alone would wait for itself.
            constexpr int kChains = 4;
            Number sum[kChains] = {};
            const int64_t end = index.segment_start[segment + 1];
            int64_t entry = index.segment_start[segment];
            for (; entry + kChains <= end; entry += kChains)
                for (int n = 0; n < kChains; ++n)
                    sum[n] += values[index.order[entry + n]] * read(channel + index.tap_offset[entry + n]);
            for (; entry < end; ++entry) sum[0] += values[index.order[entry]] * read(channel + index.tap_offset[entry]);
            sums[index.segment_row[segment]] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
    }
    for (int64_t row = 0; row < index.rows; ++row) write(row, sums[row]);
}

template <class Number>
static bool gather_vectors(const Index& index, const float* values, const float* bias, const Number* input,
                           Number* output, int64_t batch) {
    if (batch == 1) {
        const auto multiply = [&](float* sums) {
            multiply_few(
                index, values, bias, [&](int64_t channel) { return widened(input[channel]); },
                [&](int64_t row, float sum) { put(output + row, sum); }, sums);
            return true;
        };
        if constexpr (std::is_same_v<Number, float>) return multiply(output);
        Buffer<float> sums(index.rows);
        return sums && multiply(sums.data());
    }
    Buffer<float> lines(index.channels * kLanes), sums(index.rows * kLanes);
    if (!lines || !sums) return false;
    for (int64_t channel = 0; channel < index.channels; ++channel)
        copy_in(&lines[channel * kLanes], input + channel * batch, 1, batch);
    multiply_few(
        index, values, bias, [&](int64_t channel) { return load(&lines[channel * kLanes]); },
        [&](int64_t row, const Vector& sum) { write<Access::kSome>(output + row * batch, sum, batch); },
        reinterpret_cast<Vector*>(sums.data()));
    return true;
}

// Rows of the plane that a tile takes, and vectors along each.
template <int kRows, int kRun>
class RowTiles {
   public:
    static constexpr int64_t kTileLanes = static_cast<int64_t>(kRun) * kLanes;

    RowTiles(const Geometry& geometry, const Index& index, PlanMemory& memory)
        : index_(index), batch_(geometry.batch), width_input_(geometry.width.input),
          width_output_(geometry.width.output), kernel_width_(geometry.width.kernel),
          taps_(static_cast<int64_t>(geometry.height.kernel) * geometry.width.kernel),
          height_(plan_axis(geometry.height, geometry.transposed, 0, kRows, memory.height())),
          width_(plan_axis(geometry.width, geometry.transposed, 0, width_output_, memory.width())),
          blocks_(ceil_divide(index.channels, index.channels_per_block)),
          // A tile may read as far as a vector beyond its row.
          line_pitch_(ceil_divide(width_.lines * batch_ + kTileLanes, kLanes) * kLanes),
          channel_pitch_(bounded_product(height_.lines, line_pitch_)) {}

    int64_t strips() const { return height_.tiles(kRows); }
    int64_t buffer_size() const { return bounded_product(index_.channels_per_block, channel_pitch_); }
    int64_t output_pitch() const { return height_.outputs * width_output_ * batch_; }

    int32_t offset(int64_t number) const {
        const int64_t tap_offset = index_.tap_offset[number], tap = tap_offset % taps_;
        return static_cast<int32_t>(tap_offset / taps_ * channel_pitch_ +
                                    height_.tap_line[tap / kernel_width_] * line_pitch_ +
                                    width_.tap_line[tap % kernel_width_] * batch_);
    }

    // Sums of the tile at the right edge, whose lanes are more than the outputs.
    int64_t edge_size() const { return index_.rows * kRows * kTileLanes; }

    // One strip of rows: packs block after block, and adds what each contributes to the outputs.
    template <class Number>
    void strip(int64_t number, const Entry* entries, const float* bias, const Number* input, float* packed, float* edge,
               const BlockSums<Number>& sums, Number* output) const {
        const int64_t top = number * kRows, rows = smaller(kRows, height_.outputs - top);
        const int64_t run = width_output_ * batch_, whole = run - run % kTileLanes;
        Number* const target = output + top * run;
        for (int64_t block = 0; block < blocks_; ++block) {
            pack_block(block, top, input, packed);
            for (int64_t lane = 0; lane < whole; lane += kTileLanes) {
                const Place place{rows, kTileLanes, top * run + lane, run, 0, block == 0, block == blocks_ - 1};
                sums.block(place, 0, [&](auto* first, const float* before) {
                    const Rows targets{first, output_pitch(), run, kTileLanes};
                    tile(block, rows, packed + lane, entries, bias, before, targets);
                });
                sums.finish(place, kRun);
            }
            if (whole < run)
                tile(block, rows, packed + whole, entries, bias, block ? edge : nullptr,
                     Rows<float>{edge, kRows * kTileLanes, kTileLanes, kTileLanes});
        }
        if (whole == run) return;
        for (int64_t row = 0; row < index_.rows; ++row)
            for (int64_t i = 0; i < rows; ++i)
                copy_out(target + row * output_pitch() + i * run + whole, edge + (row * kRows + i) * kTileLanes, kRun,
                         run - whole);
    }

   private:
    // Where a tile stands in the output, and in which of the blocks.
    struct Place {
        int64_t rows;
        int64_t lanes;
        int64_t position;
        int64_t row_pitch;
        int64_t phase;
        bool first_block;
        bool last_block;
    };

    template <class Number>
    void tile(int64_t block, int64_t rows, const float* packed, const Entry* entries, const float* bias,
              const float* sums, const Rows<Number>& targets) const {
        const Segments segments{index_.segment_row, index_.segment_start, index_.block_start[block],
                                index_.block_start[block + 1]};
        NothingAhead nothing;
        if (rows == kRows)
            return gather_segments<kRows, kRun, Access::kAll>(segments, entries, packed, line_pitch_, targets, sums,
                                                              bias, nothing);
        for (int64_t row = 0; row < rows; ++row) {
            Rows<Number> one = targets;
            one.first += row * targets.line_pitch;
            gather_segments<1, kRun, Access::kAll>(segments, entries, packed + row * line_pitch_, line_pitch_, one,
                                                   sums ? sums + row * targets.line_pitch : nullptr, bias, nothing);
        }
    }

    template <class Number>
    void pack_block(int64_t block, int64_t top, const Number* input, float* packed) const {
        const int64_t channel = block * index_.channels_per_block;
        const int64_t channels = smaller(index_.channels_per_block, index_.channels - channel);
        const int64_t row_floats = width_input_ * batch_;
        for (int64_t c = 0; c < channels; ++c) {
            const Number* plane = input + (channel + c) * height_.input * row_floats;
            for (int64_t line = 0; line < height_.lines; ++line) {
                float* to = packed + c * channel_pitch_ + line * line_pitch_;
                const int64_t row = height_.source(top, line);
                if (row < 0) {
                    fill(to, line_pitch_ / kLanes, 0.0f);
                    continue;
                }
                pack_line(to, plane + row * row_floats);
            }
        }
    }

    template <class Number>
    void pack_line(float* to, const Number* from) const {
        if (width_.input_step == 1) {
            const int64_t first = larger(0, -width_.lowest), last = smaller(width_.lines, width_input_ - width_.lowest);
            const int64_t count = last > first ? (last - first) * batch_ : 0;
            std::memset(to, 0, static_cast<size_t>(first * batch_) * sizeof(float));
            copy_run(to + first * batch_, from + (first + width_.lowest) * batch_, count);
            float* const end = to + first * batch_ + count;
            std::memset(end, 0, static_cast<size_t>(to + line_pitch_ - end) * sizeof(float));
            return;
        }
        fill(to, line_pitch_ / kLanes, 0.0f);
        for (int64_t slot = 0; slot * width_.span < width_.lines; ++slot) {
            int64_t source = width_.lowest * width_.input_step + width_.residue[slot];
            float* at = to + slot * width_.span * batch_;
            for (int64_t column = 0; column < width_.span; ++column, source += width_.input_step, at += batch_)
                if (source >= 0 && source < width_input_)
                    for (int64_t n = 0; n < batch_; ++n) at[n] = widened(from[source * batch_ + n]);
        }
    }

    const Index& index_;
    int64_t batch_;
    int64_t width_input_;
    int64_t width_output_;
    int64_t kernel_width_;
    int64_t taps_;
    AxisPlan height_;
    AxisPlan width_;
    int64_t blocks_;
    int64_t line_pitch_;
    int64_t channel_pitch_;
};

template <int kRows, int kRun, class Number>
bool gather_row_tiles(const Geometry& geometry, const Index& index, const float* values, const float* bias,
                      const Number* input, Number* output, int threads) {
    PlanMemory memory(geometry);
    if (!memory) return false;
    const RowTiles<kRows, kRun> tiles(geometry, index, memory);
    if (!within_offsets(tiles.buffer_size())) return false;
    Buffer<Entry> entries(index.nonzeros);
    const BlockSums<Number> sums(output, tiles.output_pitch(), index, 1);
    if (!entries || !sums) return false;

    bool complete = true;
#pragma omp parallel num_threads(threads) reduction(&& : complete)
    {
        Buffer<float> packed(tiles.buffer_size()), edge(tiles.edge_size());
        complete = packed && edge;
        look_up_entries(
            index, values, 0, index.nonzeros, [&](int64_t entry) { return tiles.offset(entry); }, entries.data());
#pragma omp for schedule(static)
        for (int64_t strip = 0; strip < tiles.strips(); ++strip)
            if (complete) tiles.strip(strip, entries.data(), bias, input, packed.data(), edge.data(), sums, output);
    }
    return complete;
}

template <class Number>
static bool gather_rows(const Geometry& geometry, const Index& index, const float* values, const float* bias,
                        const Number* input, Number* output, int threads) {
    const int64_t run = geometry.width.output * geometry.batch;
    const bool point = geometry.height.input == 1 && geometry.width.input == 1 && geometry.height.output == 1 &&
                       geometry.width.output == 1 && geometry.height.kernel == 1 && geometry.width.kernel == 1 &&
                       geometry.height.padding == 0 && geometry.width.padding == 0;
    if (point) return gather_vectors(index, values, bias, input, output, geometry.batch);
    // Strips of one row where there would be too few for the threads.
    const bool flat = geometry.height.output < 4 * threads;
    if (run > kLanes) {
        return flat ? gather_row_tiles<1, 4>(geometry, index, values, bias, input, output, threads)
                    : gather_row_tiles<4, kAccumulators / 4>(geometry, index, values, bias, input, output, threads);
    }
    return flat ? gather_row_tiles<1, 1>(geometry, index, values, bias, input, output, threads)
                : gather_row_tiles<4, 1>(geometry, index, values, bias, input, output, threads);
}

}  // namespace regrow::REGROW_VARIANT
