// What attention.c offers to other kernels, and what it is made of.
#ifndef SKIPJOIN_ATTENTION_H
#define SKIPJOIN_ATTENTION_H

#include <stdint.h>

#include "sharing.h"

enum KvType { KV_FP32, KV_FP16, KV_BF16_TILES, KV_INT8_TILES };  // of the pool; tiles as kv_tiles.h says

typedef struct {                // tokens of a job that follow one another
    int64_t row, start, count;  // the first one's row in q, k, v and out; its position in the job
    const int64_t *blocks;      // of the whole job
} Run;

typedef struct {
    // head_dim: a multiple of 8; for tiles see attends_tiles.
    int64_t num_runs, kv_heads, group, head_dim, block_tokens, window, threads;
    int64_t block_stride;  // bytes
    int64_t type;          // enum KvType
    const Run *runs;
} Batch;

typedef struct {  // [rows, heads, head_dim], whose rows lie `stride` numbers apart
    const float *numbers;
    int64_t stride;
} Rows;

enum { SPAN = 64 };  // slots whose scores become weights together

// The first slot of a run's first span, which may lie before all that the run sees.
static inline int64_t first_slot(const Batch *batch, const Run *run) {
    const int64_t low = run->start + 1 > batch->window ? run->start + 1 - batch->window : 0;
    return low - low % SPAN;
}

typedef struct {  // one KV head of a run: what a thread takes at once
    const Run *run;  // or none
    int64_t head;
} Share;

typedef struct {  // how a run's keys and values are stored, and how a share attends; what a thread does after
    void (*write)(const Batch *, const Run *, char *pool, Rows k, Rows v);
    // next: the share that is likely to follow, for which memory is asked meanwhile.
    void (*attend)(const Batch *, Share, Share next, char *pool, Rows q, float scale, float *out);
    void (*leave)(void);
} RunKernel;

// Stores k and v, then attends. pool: the layer, in block 0. out: [rows, heads, head_dim], contiguous. To be called by
// all threads of a team with the same arguments; they leave it together. ranges: of the team.
void attend_rows(const Batch *batch, char *pool, Rows q, Rows k, Rows v, float scale, float *out, Range *ranges);

#endif
