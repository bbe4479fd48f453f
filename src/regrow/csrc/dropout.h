// Dropout without a mask in memory: which elements are kept is computed anew wherever it is asked for.
//
// A channel's seed is hashed into two keys; around and between them three rounds of shift and multiplication mix the
// position within the channel. Integers give the same bits whatever the instruction set and the number of threads.
#pragma once

#include "inner.h"

namespace regrow::REGROW_VARIANT {

template <Access kAccess>
using Accessed = std::integral_constant<Access, kAccess>;

// Calls body(at, access, lanes) for each vector of a run, the last with the lanes that are left.
template <Access kAccess, class Body>
static inline __attribute__((always_inline)) void for_vectors(int64_t count, Body&& body) {
    int64_t at = 0;
    for (; at + kLanes <= count; at += kLanes) body(at, Accessed<kAccess>(), int64_t{kLanes});
    if (at < count) body(at, Accessed<Access::kSome>(), count - at);
}

// Calls body(access): around the caches where the tensor is large, see streams_outputs.
template <class Body>
static inline void with_access(bool streams, Body&& body) {
    if (streams) return body(Accessed<Access::kStream>());
    body(Accessed<Access::kAll>());
}

template <class Body>
static inline void with_flag(bool flag, Body&& body) {
    if (flag) return body(std::true_type());
    body(std::false_type());
}

// The output function of the SplitMix64 generator (Steele, Lea & Flood, 2014): every bit depends on every bit.
static inline uint64_t mixed(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
    return word ^ (word >> 31);
}

// What dropout keeps of one channel.
class Kept {
   public:
    Kept(const Dropout& dropout, int64_t channel) {
        const uint64_t keys = mixed(mixed(dropout.seed) + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(channel + 1));
        first_ = Words{} + static_cast<uint32_t>(keys);
        second_ = Words{} + static_cast<uint32_t>(keys >> 32);
        for (int lane = 0; lane < kLanes; ++lane) lane_[lane] = static_cast<uint32_t>(lane);
        // How many of the 2^32 words keep their element: at least one, as the share is less than 1.
        const double words = (1.0 - dropout.share) * 4294967296.0 + 0.5;
        const int64_t keeping = larger(1, smaller(int64_t{1} << 32, static_cast<int64_t>(words)));
        last_ = Integers{} + static_cast<int32_t>(keeping - 1 - (int64_t{1} << 31));
        scale_ = broadcast(static_cast<float>(1.0 / (1.0 - dropout.share)));
    }

    // The values of the elements from `at` on, scaled where they are kept, else zero.
    __attribute__((always_inline)) Vector of(Vector values, int64_t at) const {
        Words word = (lane_ + static_cast<uint32_t>(at)) ^ first_;
        word = (word ^ (word >> 16)) * 0x85ebca6bu;
        word = (word ^ (word >> 15)) * 0xc2b2ae35u;
        word = (word ^ (word >> 16)) + second_;
        word = (word ^ (word >> 15)) * 0x9e3779b1u;
        // Compared as signed integers, which every instruction set can.
        return (Integers)word <= last_ ? values * scale_ : Vector{};
    }

   private:
    Words first_;
    Words second_;
    Words lane_;
    Integers last_;
    Vector scale_;
};

template <class Number>
static void drop(const Dropout& dropout, int64_t channels, int64_t length, const Number* input, Number* output,
                 int threads) {
    const bool streams = streams_outputs(output, channels * length, length);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t channel = 0; channel < channels; ++channel) {
            const Kept kept(dropout, channel);
            const Number* const from = input + channel * length;
            Number* const to = output + channel * length;
            with_access(streams, [&](auto stored) {
                for_vectors<Access::kAll>(length, [&](int64_t at, auto access, int64_t lanes) {
                    constexpr Access kRead = decltype(access)::value;
                    constexpr Access kWrite = kRead == Access::kAll ? decltype(stored)::value : kRead;
                    write<kWrite>(to + at, kept.of(read<kRead>(from + at, lanes), at), lanes);
                });
            });
        }
        stream_fence();
    }
}

}  // namespace regrow::REGROW_VARIANT
