// What a ring packs for the tile to come, while a tile is computed.
#pragma once

#include <utility>

#include "pack.h"

namespace regrow::REGROW_VARIANT {

// The columns that the next tile reads beyond those of this one, packed a few lines at a time while this one computes:
// reading them is then no time of its own.
template <class Plan, class Number, class How>
class Coming {
   public:
    Coming(const Plan& plan, int64_t block, const typename Plan::Item& item, int64_t column, int64_t steps,
           const Number* input, const How& how, float* ring)
        : plan_(plan), item_(item), first_channel_(block * plan.index_.channels_per_block),
          channels_(smaller(plan.index_.channels_per_block, plan.index_.channels - first_channel_)), input_(input),
          how_(how), ring_(ring) {
        const int64_t next = column + plan.columns_, left = next * plan.width_.advance + plan.width_.lowest;
        end_ = left + plan.columns_read(smaller(plan.columns_, item.last_column - next));
        column_ = next < item.last_column ? larger(left, plan.end_of(column)) : end_;
        // Without room beside what the tile reads, all wait until it is computed.
        if (plan.ahead_) share_ = ceil_divide((end_ - column_) * channels_ * plan.lines_, larger(steps, 1));
        if (column_ < end_) begin_column();
    }

    __attribute__((always_inline)) void step(int64_t) { pack(share_); }
    void finish() { pack(INT64_MAX); }

   private:
    void begin_column() {
        const int64_t top = plan_.first_line(item_);
        const bool outside = column_ < 0 || column_ >= plan_.width_.input;
        // The lines of a channel that are inputs; the others are padding.
        first_ = outside ? plan_.lines_ : larger(0, -top);
        last_ = outside ? 0 : smaller(plan_.lines_, plan_.height_.input - top);
        to_ = ring_ + Plan::modulo(column_, plan_.slots_) * Plan::kTileLanes;
        from_ = input_ + first_channel_ * plan_.input_pitch() + (top * plan_.width_.input + column_) * plan_.batch_ +
                item_.lane;
        channel_ = line_ = 0;
        change_ = how_.of(first_channel_);
    }

    __attribute__((noinline)) void pack(int64_t count) {
        const int64_t lanes = plan_.lanes_of(item_), pitch = plan_.width_.input * plan_.batch_;
        for (; count > 0 && column_ < end_; --count) {
            float* to = to_ + line_ * plan_.line_pitch_;
            if (line_ < first_ || line_ >= last_) {
                if (plan_.padding_) fill(to, Plan::kVectors, 0.0f);
            } else {
                const Number* from = from_ + line_ * pitch;
                if (channel_ + kAhead < channels_) ask<false, 2>(from + kAhead * plan_.input_pitch(), Plan::kVectors);
                copy_in(to, from, Plan::kVectors, lanes, change_);
            }
            if (++line_ < plan_.lines_) continue;
            line_ = 0;
            to_ += plan_.channel_pitch_;
            from_ += plan_.input_pitch();
            if (++channel_ < channels_)
                change_ = how_.of(first_channel_ + channel_);
            else if (++column_ < end_)
                begin_column();
        }
    }

    static constexpr int64_t kAhead = 3;

    const Plan& plan_;
    const typename Plan::Item& item_;
    int64_t first_channel_;
    int64_t channels_;
    const Number* input_;
    const How& how_;
    float* ring_;
    int64_t column_;
    int64_t end_;
    int64_t share_ = 0;
    int64_t first_ = 0;
    int64_t last_ = 0;
    int64_t channel_ = 0;
    int64_t line_ = 0;
    float* to_ = nullptr;
    const Number* from_ = nullptr;
    decltype(std::declval<const How&>().of(0)) change_{};
};

}  // namespace regrow::REGROW_VARIANT
