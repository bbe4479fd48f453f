#include "check.h"

#include <type_traits>
#include <vector>

namespace regrow {

namespace {

// Puts a sentence together from words and numbers.
template <class... Parts>
std::string say(Parts... parts) {
    std::string sentence;
    const auto add = [&](auto part) {
        if constexpr (std::is_integral_v<decltype(part)>)
            sentence += std::to_string(part);
        else
            sentence += part;
    };
    (add(parts), ...);
    return sentence;
}

std::string fault_of_shape(const Expected& e) {
    constexpr int64_t kMost = int64_t{1} << 31;
    if (e.values < 0 || e.values >= kMost) return say("an index cannot have ", e.values, " values");
    if (e.rows < 0 || e.rows >= kMost) return say("an index cannot have ", e.rows, " rows");
    if (e.channels < 0 || e.channels >= kMost) return say("an index cannot have ", e.channels, " channels");
    if (e.taps < 1 || e.taps > kMost) return say("a kernel cannot have ", e.taps, " taps");
    if (e.phases < 1 || e.phases >= kMost) return say("an index cannot have ", e.phases, " phases");
    if (e.unit != 1 && e.unit != 2 && e.unit != 4 && e.unit != 8)
        return say("there are no units of ", e.unit, " outputs");
    if (e.rows % e.unit || e.values % e.unit || (e.unit > 1 && e.phases > 1))
        return say("units of ", e.unit, " outputs do not fit ", e.rows, " rows, ", e.values, " values and ", e.phases,
                   " phases");
    if (e.channels_per_block < 1 || (e.channels_per_block > 1 && e.channels_per_block > e.channels))
        return say("blocks of ", e.channels_per_block, " channels do not fit ", e.channels, " channels");
    return {};
}

std::string fault_of_sizes(const IndexTensors& index, const Expected& e, int64_t blocks) {
    if (index.order.size != e.values / e.unit)
        return say("it orders ", index.order.size, " values, but there are ", e.values / e.unit);
    if (index.tap_offset.size != e.values / e.unit)
        return say("it has ", index.tap_offset.size, " offsets for ", e.values / e.unit, " values");
    if (blocks > 0 && index.segment_row.size < e.rows / e.unit)
        return say("it has ", index.segment_row.size, " segments; the first block alone must have one for each of ",
                   e.rows / e.unit, " rows");
    if (index.segment_start.size != index.segment_row.size + 1)
        return say("it has ", index.segment_start.size, " segment starts for ", index.segment_row.size,
                   " segments; there must be one more");
    if (blocks > 0 && e.phases > index.block_start.size / blocks)
        return say("it has ", index.block_start.size, " block starts for ", e.phases, " phases of ", blocks,
                   " blocks; there must be one more");
    if (index.block_start.size != e.phases * blocks + 1)
        return say("it has ", index.block_start.size, " block starts for ", e.phases * blocks,
                   " blocks; there must be one more");
    return {};
}

// Starts must begin at 0, never fall, and end at the number of what they cut.
std::string fault_of_starts(const Span<int32_t>& start, int64_t end, const char* what) {
    if (start[0] != 0) return say("the first ", what, " starts at ", start[0], " instead of 0");
    for (int64_t i = 1; i < start.size; ++i)
        if (start[i] < start[i - 1])
            return say(what, " ", i - 1, " starts at ", start[i - 1], " and ends before, at ", start[i]);
    if (start[start.size - 1] != end)
        return say("the last ", what, " ends at ", start[start.size - 1], " instead of ", end);
    return {};
}

// Each value must be that of one entry: of its row, or of one of the rows of its unit, which stand as far apart as the
// rows of the unit have values.
std::string fault_of_order(const IndexTensors& index, const Expected& e) {
    std::vector<int64_t> step(e.rows / e.unit);
    for (int64_t segment = 0; segment < index.segment_row.size; ++segment)
        step[index.segment_row[segment]] += index.segment_start[segment + 1] - index.segment_start[segment];
    std::vector<bool> seen(e.values);
    for (int64_t segment = 0; segment < index.segment_row.size; ++segment)
        for (int64_t entry = index.segment_start[segment]; entry < index.segment_start[segment + 1]; ++entry)
            for (int64_t row = 0; row < e.unit; ++row) {
                const int64_t value = index.order[entry] + row * step[index.segment_row[segment]];
                if (value < 0 || value >= e.values)
                    return say("entry ", entry, " is value ", value, ", but there are ", e.values, " values");
                if (seen[value]) return say("value ", value, " is used more than once");
                seen[value] = true;
            }
    return {};
}

// Offsets of one segment must rise, so that no weight is there twice, and stay within the channels of the block.
std::string fault_of_offsets(const IndexTensors& index, const Expected& e, int64_t segment, int64_t phase,
                             int64_t channels) {
    int64_t before = -1;
    for (int64_t entry = index.segment_start[segment]; entry < index.segment_start[segment + 1]; ++entry) {
        const int64_t offset = index.tap_offset[entry];
        if (offset < 0 || offset >= channels * e.taps)
            return say("entry ", entry, " has offset ", offset, " in a block of ", channels, " channels of ", e.taps,
                       " taps");
        if (offset <= before)
            return say("entry ", entry, " has offset ", offset, " after offset ", before, " of the same segment");
        if (e.phase && e.phase[offset % e.taps] != phase)
            return say("entry ", entry, " has tap ", offset % e.taps, ", which is not of phase ", phase);
        before = offset;
    }
    return {};
}

// The first block of a phase must have every row, and no block may have a row twice.
std::string fault_of_segments(const IndexTensors& index, const Expected& e, int64_t blocks) {
    const int64_t rows = e.rows / e.unit;
    std::vector<int32_t> last_block(rows, -1);  // where each row was seen last
    for (int64_t number = 0; number < e.phases * blocks; ++number) {
        const int64_t phase = number / blocks, block = number % blocks;
        const int64_t first = index.block_start[number], end = index.block_start[number + 1];
        if (block == 0 && end - first != rows)
            return say("the first block of phase ", phase, " has ", end - first, " segments for ", rows, " rows");
        const int64_t left = e.channels - block * e.channels_per_block;
        const int64_t channels = left < e.channels_per_block ? left : e.channels_per_block;
        for (int64_t segment = first; segment < end; ++segment) {
            const int64_t row = index.segment_row[segment];
            if (row < 0 || row >= rows)
                return say("segment ", segment, " is of row ", row, ", but there are ", rows, " rows");
            if (last_block[row] == number) return say("row ", row, " has two segments in block ", number);
            last_block[row] = static_cast<int32_t>(number);
            std::string fault = fault_of_offsets(index, e, segment, phase, channels);
            if (!fault.empty()) return fault;
        }
    }
    return {};
}

}  // namespace

std::string fault_of(const IndexTensors& index, const Expected& expected) {
    std::string fault = fault_of_shape(expected);
    if (!fault.empty()) return fault;
    const int64_t blocks = (expected.channels + expected.channels_per_block - 1) / expected.channels_per_block;
    fault = fault_of_sizes(index, expected, blocks);
    if (fault.empty()) fault = fault_of_starts(index.block_start, index.segment_row.size, "block");
    if (fault.empty()) fault = fault_of_starts(index.segment_start, index.order.size, "segment");
    if (fault.empty()) fault = fault_of_segments(index, expected, blocks);
    if (fault.empty()) fault = fault_of_order(index, expected);
    return fault;
}

}  // namespace regrow
