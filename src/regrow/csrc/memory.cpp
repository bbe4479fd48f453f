#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace regrow {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Kept beyond what was once in use at the same time: passes of different layers take turns with what they need.
constexpr size_t kSpare = size_t{256} << 20;
// More than any system has; below it, sums of sizes cannot overflow.
constexpr size_t kMost = SIZE_MAX / 4;

struct Pool {
    std::mutex mutex;
    std::vector<Memory> unused;  // the longest unused first; has room for every block there is
    size_t blocks = 0;           // in use or not
    size_t unused_bytes = 0;
    size_t used_bytes = 0;
    size_t most_used_bytes = 0;
};

Pool& pool() noexcept;

// Never destroyed: tensors may outlive the statics of this module.
Pool* make_pool() noexcept {
    alignas(Pool) static std::byte storage[sizeof(Pool)];
    // A process must not be forked while another thread holds the mutex: nobody would release it there.
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
    return new (storage) Pool;
}

Pool& pool() noexcept {
    static Pool* const instance = make_pool();
    return *instance;
}

// Counts a block more, and makes room for it among the unused, so that giving it back needs no memory. False where
// there is none. The caller holds the mutex.
bool add_block(Pool& pool) noexcept {
    if (pool.unused.capacity() == pool.blocks) {
        try {
            pool.unused.reserve(2 * pool.blocks + 16);
        } catch (const std::bad_alloc&) {
            return false;
        }
    }
    ++pool.blocks;
    return true;
}

// Small buffers share a page table entry with nothing else, so whole large pages would waste most of them.
size_t round_up(size_t bytes) {
    const size_t unit = bytes < kHugePage / 8 ? kHugePage / 32 : kHugePage;
    return (bytes + unit - 1) / unit * unit;
}

// Returns the longest unused until that makes `bytes`. The caller holds the mutex.
size_t release_oldest(Pool& pool, size_t bytes) {
    size_t released = 0, count = 0;
    for (; count < pool.unused.size() && released < bytes; ++count) {
        munmap(pool.unused[count].data, pool.unused[count].bytes);
        released += pool.unused[count].bytes;
    }
    pool.unused.erase(pool.unused.begin(), pool.unused.begin() + static_cast<std::ptrdiff_t>(count));
    pool.unused_bytes -= released;
    pool.blocks -= count;
    return released;
}

// The smallest that fits and is not much too large, of equals the last used. The caller holds the mutex.
Memory take_unused(Pool& pool, size_t bytes) {
    std::vector<Memory>& unused = pool.unused;
    size_t best = unused.size();
    for (size_t i = 0; i < unused.size(); ++i)
        if (unused[i].bytes >= bytes && unused[i].bytes <= bytes + bytes / 4 &&
            (best == unused.size() || unused[i].bytes <= unused[best].bytes))
            best = i;
    if (best == unused.size()) return {nullptr, 0};
    const Memory memory = unused[best];
    unused.erase(unused.begin() + static_cast<std::ptrdiff_t>(best));
    pool.unused_bytes -= memory.bytes;
    return memory;
}

}  // namespace

Memory take_memory(size_t bytes) noexcept {
    if (bytes > kMost) return {nullptr, 0};
#ifdef REGROW_SANITIZE
    // Each block by itself, so that the sanitizer sees what leaves it; full of NaN, so that a test sees what is read
    // before it is written.
    void* block = nullptr;
    if (posix_memalign(&block, 64, bytes) != 0) return {nullptr, 0};
    return {std::memset(block, 0xff, bytes), bytes};
#endif
    bytes = round_up(bytes);
    {
        Pool& all = pool();
        const std::lock_guard<std::mutex> lock(all.mutex);
        const Memory memory = take_unused(all, bytes);
        if (!memory.data && !add_block(all)) return {nullptr, 0};
        all.used_bytes += memory.data ? memory.bytes : bytes;
        if (all.used_bytes > all.most_used_bytes) all.most_used_bytes = all.used_bytes;
        if (memory.data) return memory;
        const size_t held = all.used_bytes + all.unused_bytes, most = all.most_used_bytes + kSpare;
        if (held > most) release_oldest(all, held - most);
    }
    // The system aligns to small pages: a larger block is cut to start and end with a large one.
    const size_t slack = bytes < kHugePage ? 0 : kHugePage;
    void* mapped = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        Pool& all = pool();
        const std::lock_guard<std::mutex> lock(all.mutex);
        all.used_bytes -= bytes;
        --all.blocks;
        return {nullptr, 0};
    }
    char* data = static_cast<char*>(mapped);
    if (slack) {
        const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(data) % kHugePage) % kHugePage;
        if (before) munmap(data, before);
        if (slack > before) munmap(data + before + bytes, slack - before);
        data += before;
    }
#ifdef MADV_HUGEPAGE
    if (slack) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return {data, bytes};
}

void give_back_memory(Memory memory) noexcept {
    if (!memory.data) return;
#ifdef REGROW_SANITIZE
    return std::free(memory.data);
#endif
    Pool& all = pool();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.unused.push_back(memory);
    all.unused_bytes += memory.bytes;
    all.used_bytes -= memory.bytes;
}

size_t release_memory() noexcept {
    Pool& all = pool();
    const std::lock_guard<std::mutex> lock(all.mutex);
    return release_oldest(all, SIZE_MAX);
}

}  // namespace regrow
