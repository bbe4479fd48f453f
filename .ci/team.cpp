// The few functions of the OpenMP library that the kernels call, on threads that the thread sanitizer understands.
//
// Of GCC's own library the sanitizer sees neither barriers nor the start and end of a team, and reports races where there
// are none. Here threads start anew for each region, which is slow and plain. For `make sanitize-threads` alone.
#include <pthread.h>

#include <vector>

namespace {

struct Team {
    pthread_barrier_t barrier;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    long singles = 0;  // how many `single` regions were begun
    int threads;
    void (*body)(void*);
    void* data;
};

struct Member {
    Team* team;
    int number;
    long singles;  // how many of them this thread has come to
};

Member alone{nullptr, 0, 0};
thread_local Member* self = &alone;

void* run(void* member) {
    self = static_cast<Member*>(member);
    self->team->body(self->team->data);
    return nullptr;
}

}  // namespace

#define OWN extern "C" __attribute__((visibility("hidden")))

OWN int omp_get_thread_num() { return self->number; }
OWN int omp_get_num_threads() { return self->team ? self->team->threads : 1; }

OWN void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
    Team team;
    team.threads = static_cast<int>(threads ? threads : 1);
    team.body = body;
    team.data = data;
    pthread_barrier_init(&team.barrier, nullptr, team.threads);
    std::vector<Member> members;
    for (int number = 0; number < team.threads; ++number) members.push_back({&team, number, 0});
    std::vector<pthread_t> others(team.threads - 1);
    for (int number = 1; number < team.threads; ++number)
        pthread_create(&others[number - 1], nullptr, run, &members[number]);
    Member* before = self;
    run(&members[0]);
    self = before;
    for (pthread_t other : others) pthread_join(other, nullptr);
    pthread_barrier_destroy(&team.barrier);
}

OWN void GOMP_barrier() {
    if (self->team) pthread_barrier_wait(&self->team->barrier);
}

OWN bool GOMP_single_start() {
    if (!self->team) return true;
    pthread_mutex_lock(&self->team->mutex);
    const bool first = self->team->singles == self->singles++;
    if (first) ++self->team->singles;
    pthread_mutex_unlock(&self->team->mutex);
    return first;
}
