#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace regrow {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// What blocks are multiples of.
constexpr size_t kGrain = size_t{64} << 10;
// Asked of the system at a time, or as much as there is; what is never written takes no memory.
constexpr size_t kLeast = size_t{256} << 20;
// Unused, before more is taken: gaps among blocks in use, beyond what was once in use at the same time.
constexpr size_t kLeastSpare = size_t{64} << 20;
// More than any system has; below it, sums of sizes cannot overflow.
constexpr size_t kMost = SIZE_MAX / 4;

char* end_of(const Memory& memory) { return static_cast<char*>(memory.data) + memory.bytes; }

// Takes the first bytes off.
Memory cut(Memory& memory, size_t bytes) {
    const Memory first{memory.data, bytes};
    memory = {static_cast<char*>(memory.data) + bytes, memory.bytes - bytes};
    return first;
}

void unmap(const Memory& memory) {
    if (memory.bytes) munmap(memory.data, memory.bytes);
}

struct Pool {
    std::mutex mutex;
    std::vector<Memory> unused;  // by address, no two of which touch; has room for every block in use
    Memory fresh{nullptr, 0};    // the rest of the newest mapping, never used
    size_t blocks = 0;           // in use
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

// Makes room among the unused for a block more, so that giving it back needs no memory. False where there is none. The
// caller holds the mutex, as for all that follows.
bool make_room(Pool& pool) noexcept {
    const size_t wanted = pool.unused.size() + pool.blocks + 1;
    if (pool.unused.capacity() >= wanted) return true;
    try {
        pool.unused.reserve(2 * wanted + 16);
    } catch (const std::bad_alloc&) {
        return false;
    }
    return true;
}

size_t release_unused(Pool& pool) noexcept {
    const size_t released = pool.unused_bytes;
    for (const Memory& memory : pool.unused) unmap(memory);
    pool.unused.clear();
    pool.unused_bytes = 0;
    return released;
}

// From the smallest that is large enough, of equals the first in memory; null data where there is none.
Memory take_unused(Pool& pool, size_t bytes) noexcept {
    std::vector<Memory>& unused = pool.unused;
    auto best = unused.end();
    for (auto each = unused.begin(); each != unused.end(); ++each)
        if (each->bytes >= bytes && (best == unused.end() || each->bytes < best->bytes)) best = each;
    if (best == unused.end()) return {nullptr, 0};
    const Memory taken = cut(*best, bytes);
    if (!best->bytes) unused.erase(best);
    pool.unused_bytes -= bytes;
    return taken;
}

// A mapping that starts and ends with a large page, for the system aligns to small ones alone.
Memory map(size_t bytes) noexcept {
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* mapped =
        mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return {nullptr, 0};
    Memory all{mapped, bytes + kHugePage};
    unmap(cut(all, (kHugePage - reinterpret_cast<uintptr_t>(mapped) % kHugePage) % kHugePage));
    const Memory result = cut(all, bytes);
    unmap(all);
#ifdef MADV_HUGEPAGE
    madvise(result.data, result.bytes, MADV_HUGEPAGE);
#endif
    return result;
}

// Lets `fresh` have so many bytes, by a new mapping if need be.
bool refresh(Pool& pool, size_t bytes) noexcept {
    if (pool.fresh.bytes >= bytes) return true;
    Memory mapping = map(std::max({bytes, kLeast, pool.used_bytes + pool.unused_bytes}));
    if (!mapping.data) mapping = map(bytes);
    if (!mapping.data) return false;
    unmap(pool.fresh);
    pool.fresh = mapping;
    return true;
}

Memory take_fresh(Pool& pool, size_t bytes) noexcept {
    const size_t used = pool.used_bytes + bytes, most = std::max(pool.most_used_bytes, used);
    if (used + pool.unused_bytes > most + std::max(kLeastSpare, most / 4)) release_unused(pool);
    // What lies unused right before is a part of it.
    size_t before = 0;
    if (!pool.unused.empty() && end_of(pool.unused.back()) == pool.fresh.data) before = pool.unused.back().bytes;
    if (before + pool.fresh.bytes < bytes) before = 0;
    if (!refresh(pool, bytes - before)) return {nullptr, 0};
    if (!before) return cut(pool.fresh, bytes);
    const Memory first = pool.unused.back();
    pool.unused.pop_back();
    pool.unused_bytes -= before;
    cut(pool.fresh, bytes - before);
    return {first.data, bytes};
}

// Puts a block among the unused, as one with those that it touches.
void add_unused(Pool& pool, Memory memory) noexcept {
    std::vector<Memory>& unused = pool.unused;
    pool.unused_bytes += memory.bytes;
    auto after = std::lower_bound(unused.begin(), unused.end(), memory,
                                  [](const Memory& a, const Memory& b) { return a.data < b.data; });
    if (after != unused.end() && end_of(memory) == after->data) {
        *after = {memory.data, memory.bytes + after->bytes};
    } else {
        after = unused.insert(after, memory);
    }
    if (after == unused.begin() || end_of(after[-1]) != after->data) return;
    after[-1].bytes += after->bytes;
    unused.erase(after);
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
    bytes = (std::max(bytes, size_t{1}) + kGrain - 1) / kGrain * kGrain;
    Pool& all = pool();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (!make_room(all)) return {nullptr, 0};
    Memory memory = take_unused(all, bytes);
    if (!memory.data) memory = take_fresh(all, bytes);
    if (!memory.data) return memory;
    ++all.blocks;
    all.used_bytes += bytes;
    all.most_used_bytes = std::max(all.most_used_bytes, all.used_bytes);
    return memory;
}

void give_back_memory(Memory memory) noexcept {
    if (!memory.data) return;
#ifdef REGROW_SANITIZE
    return std::free(memory.data);
#endif
    Pool& all = pool();
    const std::lock_guard<std::mutex> lock(all.mutex);
    add_unused(all, memory);
    --all.blocks;
    all.used_bytes -= memory.bytes;
}

size_t release_memory() noexcept {
    Pool& all = pool();
    size_t released = 0;
    {
        const std::lock_guard<std::mutex> lock(all.mutex);
        released = release_unused(all);
    }
#if defined(__GLIBC__) && !defined(REGROW_SANITIZE)
    malloc_trim(0);
#endif
    return released;
}

}  // namespace regrow
