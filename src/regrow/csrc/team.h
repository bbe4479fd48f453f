// What the threads of every driver do alike: share out the work, look up the nonzeros, and add up their sums.
//
// All of it is called within a parallel region, by every thread of the team.
#pragma once

#ifndef REGROW_ONE_THREAD
#include <omp.h>
#endif

#include <cstring>
#include <type_traits>

#include "inner.h"

#ifdef REGROW_ONE_THREAD
// Without OpenMP its pragmas say nothing: every region is one thread.
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
#endif

namespace regrow::REGROW_VARIANT {

// Calls body(number) for this thread's share of `items`, which is one run of them.
template <class Body>
static inline void for_share(int64_t items, Body&& body) {
    const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
    const int64_t end = items * (thread + 1) / team;
    for (int64_t number = items * thread / team; number < end; ++number) body(number);
}

// entries[n] = value n and where its input stands, for `first` <= n < `last`; offset_of(n) says where.
template <class OffsetOf>
static inline void look_up_entries(const Index& index, const float* values, int64_t first, int64_t last,
                                   OffsetOf&& offset_of, Entry* entries) {
#pragma omp for schedule(static)
    for (int64_t entry = first; entry < last; ++entry) {
        entries[entry] = {values[index.order[entry]], offset_of(entry)};
    }
}

// offsets[n] = where the input of value n stands: `packed_offset` holds that for each tap offset.
static inline void look_up_offsets(const Index& index, const int32_t* packed_offset, int32_t* offsets) {
#pragma omp for schedule(static)
    for (int64_t entry = 0; entry < index.nonzeros; ++entry) offsets[entry] = packed_offset[index.tap_offset[entry]];
}

// Where in the ring each entry's input stands, for each rotation of it.
template <class Plan>
class RotatedOffsets {
   public:
    RotatedOffsets(const Plan& plan, const Index& index)
        : index_(index), rotations_(plan.rotations()), taps_(plan.tap_offsets()), of_taps_(rotations_ * taps_),
          offsets_(rotations_ * index.nonzeros) {
        if (*this) plan.tabulate_offsets(of_taps_.data());
    }

    // Whether there was memory.
    explicit operator bool() const { return of_taps_ && offsets_; }

    // Called by every thread of the team, before any asks for an offset.
    void look_up() {
        for (int64_t rotation = 0; rotation < rotations_; ++rotation)
            look_up_offsets(index_, of_taps_.data() + rotation * taps_, offsets_.data() + rotation * index_.nonzeros);
    }

    // [entries]
    const int32_t* of(int64_t rotation) const { return offsets_.data() + rotation * index_.nonzeros; }

   private:
    const Index& index_;
    int64_t rotations_;
    int64_t taps_;
    Buffer<int32_t> of_taps_;
    Buffer<int32_t> offsets_;
};

// steps[group] = how far apart the values of two rows of a unit stand: as many values as its rows have.
static inline void unit_steps(const Index& index, int32_t* steps) {
    std::memset(steps, 0, static_cast<size_t>(index.groups()) * sizeof(int32_t));
    for (int64_t segment = 0; segment < index.segments(); ++segment)
        steps[index.segment_row[segment]] += index.segment_start[segment + 1] - index.segment_start[segment];
}

// Where sums wait for others that are added to them: in the output, if that is single precision. They lie as the outputs
// do.
template <class Number>
class WaitingSums {
   public:
    static constexpr bool kInPlace = std::is_same_v<Number, float>;

    // Some may wait where `waits`.
    WaitingSums(Number* output, int64_t numbers, bool waits)
        : apart_(waits && !kInPlace), waiting_(apart_ ? Buffer<float>(numbers) : Buffer<float>()) {
        if constexpr (kInPlace)
            sums_ = output;
        else
            sums_ = waiting_.data();
    }

    // Whether there was memory.
    explicit operator bool() const { return !apart_ || waiting_; }

    // Whether none of them is the output.
    bool apart() const { return apart_; }
    float* data() const { return sums_; }

   private:
    bool apart_;
    Buffer<float> waiting_;
    float* sums_;
};

// The outputs of a gather over blocks of channels: a block adds to the sums of those before, the last one writes.
template <class Number>
class BlockSums {
   public:
    BlockSums(Number* output, int64_t pitch, const Index& index, int64_t phases)
        : output_(output), pitch_(pitch), index_(index), sums_(output, index.rows * pitch, index.blocks() > 1),
          first_left_(sums_.apart() ? Buffer<int32_t>(phases + 1) : Buffer<int32_t>()),
          left_(sums_.apart() ? Buffer<int32_t>(phases * index.groups()) : Buffer<int32_t>()) {
        if (sums_.apart() && *this) find_left(phases);
    }

    // Whether there was memory.
    explicit operator bool() const { return !sums_.apart() || (sums_ && first_left_ && left_); }

    // Calls body(target, sums) for a row of a tile in one block: where what it computes goes, and the sums of earlier
    // blocks, null in the first.
    template <class Tile, class Body>
    void block(const Tile& tile, int64_t row, Body&& body) const {
        const int64_t at = tile.position + row * tile.row_pitch;
        const float* const before = tile.first_block ? nullptr : sums_.data() + at;
        if (WaitingSums<Number>::kInPlace || tile.last_block) return body(output_ + at, before);
        body(sums_.data() + at, before);
    }

    // Writes the output rows of a tile that have no nonzeros in the last block.
    template <class Tile>
    void finish(const Tile& tile, int32_t vectors) const {
        if (!sums_.apart() || !tile.last_block) return;
        for (int64_t i = first_left_[tile.phase]; i < first_left_[tile.phase + 1]; ++i)
            for (int64_t output = left_[i] * index_.unit; output < (left_[i] + 1) * index_.unit; ++output)
                for (int64_t row = 0; row < tile.rows; ++row) {
                    const int64_t at = tile.position + row * tile.row_pitch + output * pitch_;
                    copy_out(output_ + at, sums_.data() + at, vectors, tile.lanes);
                }
    }

   private:
    void find_left(int64_t phases) {
        int32_t count = 0;
        for (int64_t phase = 0; phase < phases; ++phase) {
            first_left_[phase] = count;
            int32_t* const rows = left_.data() + count;
            // Counted among all first, then those that have a segment are taken out.
            for (int64_t group = 0; group < index_.groups(); ++group) rows[group] = static_cast<int32_t>(group);
            const int32_t* const start = index_.block_start + (phase + 1) * index_.blocks() - 1;
            for (int64_t segment = start[0]; segment < start[1]; ++segment) rows[index_.segment_row[segment]] = -1;
            for (int64_t group = 0; group < index_.groups(); ++group)
                if (rows[group] >= 0) left_[count++] = rows[group];
        }
        first_left_[phases] = count;
    }

    Number* output_;
    int64_t pitch_;
    const Index& index_;
    WaitingSums<Number> sums_;
    Buffer<int32_t> first_left_;  // [phases + 1]
    Buffer<int32_t> left_;        // output rows, or groups of them
};

// The gradients of the values and, where it is wanted, of the bias: each thread sums its part of the batch and the plane
// for itself. At the end sums are added in the order of the threads, so that equal inputs give equal bits.
class ThreadSums {
   public:
    // `bias_gradient` may be null; `threads` is the most that a team can have.
    ThreadSums(const Index& index, float* gradient, float* bias_gradient, int threads)
        : index_(index), gradient_(gradient), bias_gradient_(bias_gradient), count_(index.nonzeros * index.unit),
          values_(count_ * threads), steps_(index.unit > 1 ? index.groups() : 0),
          rows_(bias_gradient ? index.rows * kLanes * threads : 0) {}

    // Whether there was memory for all.
    explicit operator bool() const { return values_ && steps_ && rows_; }

    // The sums of one thread: a float for each value, those of an entry one after the other, and a vector for each row
    // (null if nobody wants those).
    struct Mine {
        float* values;
        float* rows;
    };

    // This thread's sums, set to zero.
    Mine start() {
        const int64_t thread = omp_get_thread_num(), lanes = index_.rows * kLanes;
        Mine mine{values_.data() + thread * count_, nullptr};
        std::memset(mine.values, 0, static_cast<size_t>(count_) * sizeof(float));
        if (bias_gradient_) {
            mine.rows = rows_.data() + thread * lanes;
            std::memset(mine.rows, 0, static_cast<size_t>(lanes) * sizeof(float));
        }
        return mine;
    }

    // Writes the gradients once every thread is here.
    void finish() {
        const int64_t team = omp_get_num_threads();
#pragma omp single
        if (index_.unit > 1) unit_steps(index_, steps_.data());
        if (index_.unit > 1)
            add_units(team);
        else
            add_values(values_.data(), index_, team, gradient_);
        if (bias_gradient_) add_rows(rows_.data(), index_.rows, team, bias_gradient_);
    }

   private:
    static void add_values(const float* sums, const Index& index, int64_t team, float* gradient) {
#pragma omp for schedule(static)
        for (int64_t entry = 0; entry < index.nonzeros; ++entry) {
            float sum = sums[entry];
            for (int64_t other = 1; other < team; ++other) sum += sums[other * index.nonzeros + entry];
            gradient[index.order[entry]] = sum;
        }
    }

    void add_units(int64_t team) {
#pragma omp for schedule(static)
        for (int64_t segment = 0; segment < index_.segments(); ++segment) {
            const int64_t step = steps_[index_.segment_row[segment]];
            for (int64_t entry = index_.segment_start[segment]; entry < index_.segment_start[segment + 1]; ++entry)
                for (int64_t row = 0; row < index_.unit; ++row) {
                    float sum = 0.0f;
                    for (int64_t thread = 0; thread < team; ++thread)
                        sum += values_[thread * count_ + entry * index_.unit + row];
                    gradient_[index_.order[entry] + row * step] = sum;
                }
        }
    }

    static void add_rows(const float* sums, int64_t rows, int64_t team, float* gradient) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            Vector sum = {};
            for (int64_t thread = 0; thread < team; ++thread) sum += load(sums + (thread * rows + row) * kLanes);
            gradient[row] = 0.0f;
            for (int lane = 0; lane < kLanes; ++lane) gradient[row] += sum[lane];
        }
    }

    const Index& index_;
    float* gradient_;
    float* bias_gradient_;
    int64_t count_;
    Buffer<float> values_;
    Buffer<int32_t> steps_;
    Buffer<float> rows_;
};

}  // namespace regrow::REGROW_VARIANT
