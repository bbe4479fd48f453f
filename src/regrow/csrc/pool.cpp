#include "pool.h"

#include <sys/mman.h>

namespace regrow {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

}  // namespace

Pool::Block Pool::take(size_t bytes) {
    bytes = round_up(bytes);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        size_t best = free_.size();
        for (size_t i = 0; i < free_.size(); ++i)
            if (free_[i].bytes >= bytes && free_[i].bytes <= bytes + bytes / 4 &&
                (best == free_.size() || free_[i].bytes < free_[best].bytes))
                best = i;
        if (best < free_.size()) {
            const Block block = free_[best];
            free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(best));
            return block;
        }
        // What is kept never exceeds what was once in use at the same time.
        release_oldest(bytes);
    }
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return {nullptr, 0};
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return {data, bytes};
}

void Pool::give_back(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block);
}

size_t Pool::release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return release_oldest(SIZE_MAX);
}

size_t Pool::release_oldest(size_t bytes) {
    size_t released = 0, count = 0;
    for (; count < free_.size() && released < bytes; ++count) {
        munmap(free_[count].data, free_[count].bytes);
        released += free_[count].bytes;
    }
    free_.erase(free_.begin(), free_.begin() + static_cast<std::ptrdiff_t>(count));
    return released;
}

}  // namespace regrow
