#include "group.h"

#include <algorithm>

namespace regrow {

namespace {

// What is known of each nonzero, or of the first of each unit, in the order of the positions.
struct Nonzeros {
    std::vector<int32_t> source;  // which position
    std::vector<int32_t> row;
    std::vector<int32_t> block;  // of all phases
    std::vector<int16_t> tap_offset;
};

template <class Position>
Nonzeros locate(const Grouping& g, const Position* positions, int64_t nonzeros) {
    const int64_t blocks = g.blocks(), per_output = g.channels * g.taps, outputs_of_group = g.outputs / g.groups;
    Nonzeros result;
    result.source.reserve(nonzeros / g.unit);
    result.row.reserve(nonzeros / g.unit);
    result.block.reserve(nonzeros / g.unit);
    result.tap_offset.reserve(nonzeros / g.unit);
    // Positions ascend, so that most divisions by the sides of the weight are steps.
    int64_t output = 0, channel = 0, origin = 0;  // origin: the first position of that output and channel
    for (int64_t i = 0; i < nonzeros; ++i) {
        const int64_t position = positions[i];
        if (position >= (output + 1) * per_output) {
            output = position / per_output;
            channel = 0;
            origin = output * per_output;
        }
        if (position >= origin + g.taps) {
            const int64_t more = (position - origin) / g.taps;
            channel += more;
            origin += more * g.taps;
        }
        if (g.unit > 1 && output % g.unit != 0) continue;  // the first of the unit stands for it
        const int64_t tap = position - origin;
        const int64_t input = g.groups > 1 ? output / outputs_of_group * g.channels + channel : channel;
        const int64_t column = g.transposed ? output : input, block = column / g.channels_per_block;
        result.source.push_back(static_cast<int32_t>(i));
        result.row.push_back(static_cast<int32_t>(g.transposed ? input : output / g.unit));
        result.block.push_back(static_cast<int32_t>((g.phase ? g.phase[tap] * blocks : 0) + block));
        result.tap_offset.push_back(static_cast<int16_t>((column - block * g.channels_per_block) * g.taps + tap));
    }
    return result;
}

// The nonzeros of each block one after the other, numbered in the order of the positions; and where each block starts.
std::vector<int32_t> by_block(const Nonzeros& nonzeros, std::vector<int64_t>& start) {
    for (const int32_t block : nonzeros.block) ++start[block + 1];
    for (size_t block = 1; block < start.size(); ++block) start[block] += start[block - 1];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    std::vector<int32_t> result(nonzeros.block.size());
    for (size_t i = 0; i < result.size(); ++i) result[next[nonzeros.block[i]]++] = static_cast<int32_t>(i);
    return result;
}

// Adds the segments of one block, from the longest to the shortest, those of equal length by row, and sets `first` of
// each row to the number of its first entry. A segment of no entry is added where `with_empty`.
void add_segments(std::vector<int32_t>& first, bool with_empty, Groups& groups) {
    std::vector<int32_t>&segment_row = groups.segment_row, &segment_start = groups.segment_start;
    const size_t begin = segment_row.size();
    const int32_t longest = first.empty() ? 0 : *std::max_element(first.begin(), first.end());
    std::vector<int64_t> next(longest + 1);  // where the next segment of each length goes
    for (const int32_t length : first) ++next[length];
    int64_t end = static_cast<int64_t>(begin);
    for (int32_t length = longest; length >= (with_empty ? 0 : 1); --length) {
        const int64_t many = next[length];
        next[length] = end;
        end += many;
    }
    segment_row.resize(end);
    segment_start.resize(end);
    for (size_t row = 0; row < first.size(); ++row)
        if (first[row] || with_empty) segment_row[next[first[row]]++] = static_cast<int32_t>(row);
    int32_t entry = static_cast<int32_t>(groups.order.size());
    for (int64_t segment = static_cast<int64_t>(begin); segment < end; ++segment) {
        int32_t& of_row = first[segment_row[segment]];
        segment_start[segment] = entry;
        entry += of_row;
        of_row = segment_start[segment];
    }
}

template <class Position>
Groups grouped(const Grouping& grouping, const Position* positions, int64_t count) {
    const Nonzeros nonzeros = locate(grouping, positions, count);
    const int64_t entries = static_cast<int64_t>(nonzeros.source.size());
    const int64_t blocks = grouping.phases * grouping.blocks();
    std::vector<int64_t> start(blocks + 1);
    const std::vector<int32_t> source = by_block(nonzeros, start);
    Groups result;
    result.order.reserve(entries);
    result.tap_offset.resize(entries);
    std::vector<int32_t> of_row(grouping.rows());  // number of entries, then where the next one goes
    for (int64_t block = 0; block < blocks; ++block) {
        result.block_start.push_back(static_cast<int32_t>(result.segment_row.size()));
        std::fill(of_row.begin(), of_row.end(), 0);
        for (int64_t i = start[block]; i < start[block + 1]; ++i) ++of_row[nonzeros.row[source[i]]];
        add_segments(of_row, block % grouping.blocks() == 0, result);
        result.order.resize(start[block + 1]);
        for (int64_t i = start[block]; i < start[block + 1]; ++i) {
            const int32_t at = of_row[nonzeros.row[source[i]]]++;
            result.order[at] = nonzeros.source[source[i]];
            result.tap_offset[at] = nonzeros.tap_offset[source[i]];
        }
    }
    result.block_start.push_back(static_cast<int32_t>(result.segment_row.size()));
    result.segment_start.push_back(static_cast<int32_t>(entries));
    return result;
}

}  // namespace

Groups group(const Grouping& grouping, const int32_t* positions, int64_t nonzeros) {
    return grouped(grouping, positions, nonzeros);
}

Groups group(const Grouping& grouping, const int64_t* positions, int64_t nonzeros) {
    return grouped(grouping, positions, nonzeros);
}

}  // namespace regrow
