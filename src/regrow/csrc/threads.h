// How many threads a kernel may use.
#pragma once

namespace regrow {

// `wanted`, at least 1. In a process forked after kernels ran on several threads it is 1: the OpenMP library would wait
// there for threads that only the parent has.
int usable_threads(int wanted);

}  // namespace regrow
