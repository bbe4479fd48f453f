#include "threads.h"

#include <pthread.h>

#include <atomic>

namespace regrow {

namespace {

std::atomic<bool> had_team = false;
std::atomic<bool> lost_team = false;

}  // namespace

int usable_threads(int wanted) {
#ifdef REGROW_ONE_THREAD
    return 1;
#endif
    if (wanted < 2 || lost_team) return 1;
    // Without a handler a forked process may hang, which is no reason to refuse to run here.
    [[maybe_unused]] static const int registered =
        pthread_atfork(nullptr, nullptr, [] { lost_team = had_team.load(); });
    had_team = true;
    return wanted;
}

}  // namespace regrow
