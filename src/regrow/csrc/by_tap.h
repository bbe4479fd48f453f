// The entries of units sorted by tap, so that a position at the border of the plane leaves out those that read padding.
#pragma once

#include "ring.h"

namespace regrow::REGROW_VARIANT {

// The entries of every segment by the column of their tap, then by its row; those of one tap stay in their order.
class ByTap {
   public:
    ByTap(const Index& index, const Geometry& geometry)
        : given_(index), kernel_height_(geometry.height.kernel), kernel_width_(geometry.width.kernel),
          taps_(int64_t{kernel_height_} * kernel_width_),
          order_(taps_ > 1 ? Buffer<int32_t>(index.nonzeros) : Buffer<int32_t>()),
          tap_offset_(taps_ > 1 ? Buffer<int16_t>(index.nonzeros) : Buffer<int16_t>()),
          start_(taps_ > 1 ? Buffer<int32_t>(index.segments() * (taps_ + 1)) : Buffer<int32_t>()), index_(index) {
        if (taps_ == 1 || !*this) return;
        index_.order = order_.data();
        index_.tap_offset = tap_offset_.data();
    }

    // Whether there was memory.
    explicit operator bool() const { return taps_ == 1 || (order_ && tap_offset_ && start_); }

    // Called by every thread of the team, before any asks for an entry.
    void sort() {
        if (taps_ == 1) return;
#pragma omp for schedule(static)
        for (int64_t segment = 0; segment < given_.segments(); ++segment) sort_segment(segment);
    }

    // The index with its entries in that order.
    const Index& index() const { return index_; }

    // Where the entries of each tap start in a segment, by columns: that of row y and column x is x * height + y; and
    // where the last ones end.
    const int32_t* starts(int64_t segment) const {
        return taps_ == 1 ? given_.segment_start + segment : start_.data() + segment * (taps_ + 1);
    }
    int64_t kernel_height() const { return kernel_height_; }
    int64_t taps() const { return taps_; }

   private:
    void sort_segment(int64_t segment) {
        int32_t* const start = start_.data() + segment * (taps_ + 1);
        const int64_t first = given_.segment_start[segment], last = given_.segment_start[segment + 1];
        std::memset(start, 0, static_cast<size_t>(taps_ + 1) * sizeof(int32_t));
        for (int64_t entry = first; entry < last; ++entry) ++start[place_of(given_.tap_offset[entry]) + 1];
        start[0] = static_cast<int32_t>(first);
        for (int64_t tap = 0; tap < taps_; ++tap) start[tap + 1] += start[tap];
        for (int64_t entry = first; entry < last; ++entry) {
            const int64_t at = start[place_of(given_.tap_offset[entry])]++;
            order_[at] = given_.order[entry];
            tap_offset_[at] = given_.tap_offset[entry];
        }
        // Each start has moved on to that of the next tap.
        for (int64_t tap = taps_; tap > 0; --tap) start[tap] = start[tap - 1];
        start[0] = static_cast<int32_t>(first);
    }

    int64_t place_of(int32_t tap_offset) const {
        const int32_t tap = tap_offset % static_cast<int32_t>(taps_);
        return int64_t{tap % kernel_width_} * kernel_height_ + tap / kernel_width_;
    }

    const Index& given_;
    int32_t kernel_height_;
    int32_t kernel_width_;
    int64_t taps_;
    Buffer<int32_t> order_;
    Buffer<int16_t> tap_offset_;
    Buffer<int32_t> start_;  // [segments][taps + 1]
    Index index_;
};

// The taps that read inputs at one position: runs of entries of a segment, one for every `step` columns of the kernel.
struct Reach {
    int64_t first;
    int64_t last;
    int64_t step;
    int64_t from;  // in the first column of a run
    int64_t to;    // behind the last tap of a run

    // Columns of the kernel whose taps all read inputs follow one another: they are one run.
    Reach(const Taps& down, const Taps& across, int64_t kernel_height)
        : first(across.first), last(across.last),
          step(down.first == 0 && down.last == kernel_height ? larger(1, across.last - across.first) : 1),
          from(down.first), to((step - 1) * kernel_height + down.last) {}
};

}  // namespace regrow::REGROW_VARIANT
