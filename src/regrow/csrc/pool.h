// Memory of large outputs, kept for the next output of that size.
//
// The C library returns large blocks to the system when they are freed, and every page of the next one is then
// cleared and mapped anew: for the output of a sparse layer that can take as long as computing it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace regrow {

class Pool {
   public:
    struct Block {
        void* data;
        size_t bytes;
    };

    // A block of at least `bytes` bytes, aligned to a page; null data where the system has no memory.
    Block take(size_t bytes);
    void give_back(Block block);
    // Returns to the system what nobody uses, and says how many bytes that was.
    size_t release();

   private:
    size_t release_oldest(size_t bytes);

    std::mutex mutex_;
    std::vector<Block> free_;  // the longest unused first
};

}  // namespace regrow
