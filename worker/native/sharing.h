// How the threads of a team share a loop. Each begins with a range of its own, whose items lie one after the other in
// memory, so that what a core fetches ahead by itself is what it needs next; who is done takes from the end of another's
// range, because a thread may be interrupted. OpenMP's dynamic schedule deals neighbours to different cores.
#ifndef SKIPJOIN_SHARING_H
#define SKIPJOIN_SHARING_H

#include <omp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

// Of a thread: the items that nobody has taken, as first << 32 | end; alone in its line of the cache.
typedef struct {
    _Alignas(64) _Atomic uint64_t items;
} Range;

enum { NO_ITEM = -1 };

// Called by every thread of a team, which has a range for each. No thread may still take from a loop before, and none may
// take from this one until all have called: a barrier on either side.
static inline void divide(Range *ranges, int64_t items) {
    const uint64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const uint64_t first = items * thread / threads, end = items * (thread + 1) / threads;
    atomic_store_explicit(&ranges[thread].items, first << 32 | end, memory_order_relaxed);
}

static inline int64_t take_from(Range *range, bool own) {
    uint64_t items = atomic_load_explicit(&range->items, memory_order_relaxed);
    for (;;) {
        const uint64_t first = items >> 32, end = items & UINT32_MAX;
        if (first >= end) return NO_ITEM;
        const uint64_t rest = own ? items + (1ull << 32) : items - 1;
        if (atomic_compare_exchange_weak_explicit(&range->items, &items, rest, memory_order_relaxed,
                                                  memory_order_relaxed))
            return own ? first : end - 1;
    }
}

// An item that no other thread gets, or NO_ITEM when none is left.
static inline int64_t take_item(Range *ranges) {
    const int threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int64_t item = take_from(ranges + thread, true);
    for (int i = 1; i < threads && item == NO_ITEM; i++) item = take_from(ranges + (thread + i) % threads, false);
    return item;
}

#endif
