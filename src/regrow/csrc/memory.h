// Memory of outputs and buffers, kept for those to come.
//
// The C library returns large blocks to the system when they are freed, and every page of the next one is then
// cleared and mapped anew: for the output of a sparse layer that can take as long as computing it. Pages are large
// where the system has such: buffers that are read all over then need few entries of the translation cache.
#pragma once

#include <cstddef>

namespace regrow {

struct Memory {
    void* data;
    size_t bytes;
};

// At least `bytes` bytes, aligned to a page; null data where the system has none left.
Memory take_memory(size_t bytes) noexcept;
void give_back_memory(Memory memory) noexcept;
// Returns to the system what nobody uses, and says how many bytes that was. Has the C library return what was freed, too:
// it keeps blocks of up to 32 MiB for itself.
size_t release_memory() noexcept;

}  // namespace regrow
