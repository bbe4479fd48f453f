// The geometry of a sweep: its axes, and which of its strips share rows of the input.
#pragma once

#include "plan.h"

namespace regrow::REGROW_VARIANT {

// The taps of one axis that read inputs, not padding: from `first` to before `last`.
struct Taps {
    int64_t first;
    int64_t last;
};

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
    // Those that read inputs at output q; of an axis with one phase, whose taps ascend.
    Taps taps_at(int64_t q, int64_t kernel) const {
        const int64_t start = q * advance + lowest;
        Taps taps{0, kernel};
        while (taps.first < kernel && start + tap_line[taps.first] < 0) ++taps.first;
        while (taps.last > taps.first && start + tap_line[taps.last - 1] >= input) --taps.last;
        return taps;
    }
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

}  // namespace regrow::REGROW_VARIANT
