// Units taken apart, for drivers that know single weights alone.
#pragma once

#include "team.h"

namespace regrow::REGROW_VARIANT {

// The weights of an index of units one by one.
class SingleWeights {
   public:
    explicit SingleWeights(const Index& index)
        : steps_(index.groups()), order_(index.nonzeros * index.unit), tap_offset_(index.nonzeros * index.unit),
          segment_row_(index.segments() * index.unit), segment_start_(index.segments() * index.unit + 1),
          block_start_(index.blocks() + 1) {
        if (!*this) return;
        unit_steps(index, steps_.data());
        int64_t entries = 0, segments = 0;
        for (int64_t segment = 0; segment < index.segments(); ++segment)
            for (int64_t u = 0; u < index.unit; ++u) {
                const int64_t row = index.segment_row[segment];
                segment_row_[segments] = static_cast<int32_t>(row * index.unit + u);
                segment_start_[segments++] = static_cast<int32_t>(entries);
                for (int64_t n = index.segment_start[segment]; n < index.segment_start[segment + 1]; ++n) {
                    order_[entries] = index.order[n] + static_cast<int32_t>(u) * steps_[row];
                    tap_offset_[entries++] = index.tap_offset[n];
                }
            }
        segment_start_[segments] = static_cast<int32_t>(entries);
        for (int64_t block = 0; block <= index.blocks(); ++block)
            block_start_[block] = index.block_start[block] * static_cast<int32_t>(index.unit);
        index_ = index;
        index_.order = order_.data();
        index_.tap_offset = tap_offset_.data();
        index_.segment_row = segment_row_.data();
        index_.segment_start = segment_start_.data();
        index_.block_start = block_start_.data();
        index_.nonzeros = index.nonzeros * index.unit;
        index_.unit = 1;
    }

    // Whether there was memory.
    explicit operator bool() const {
        return steps_ && order_ && tap_offset_ && segment_row_ && segment_start_ && block_start_;
    }
    const Index& index() const { return index_; }

   private:
    Buffer<int32_t> steps_;
    Buffer<int32_t> order_;
    Buffer<int16_t> tap_offset_;
    Buffer<int32_t> segment_row_;
    Buffer<int32_t> segment_start_;
    Buffer<int32_t> block_start_;
    Index index_{};
};

}  // namespace regrow::REGROW_VARIANT
