// What attention.c offers to other kernels.
#ifndef SKIPJOIN_ATTENTION_H
#define SKIPJOIN_ATTENTION_H

#include <stdint.h>

typedef struct {                // tokens of a job that follow one another
    int64_t row, start, count;  // the first one's row in q, k, v and out; its position in the job
    const int64_t *blocks;      // of the whole job
} Run;

typedef struct {
    int64_t num_runs, kv_heads, group, head_dim, block_tokens, window, threads;  // head_dim: a multiple of 8
    int64_t block_stride;  // bytes
    int64_t fp16;          // whether the pool is fp16, not fp32
    const Run *runs;
} Batch;

typedef struct {  // [rows, heads, head_dim], whose rows lie `stride` numbers apart
    const float *numbers;
    int64_t stride;
} Rows;

// Stores k and v, then attends. pool: the layer, in block 0. out: [rows, heads, head_dim], contiguous. To be called by
// all threads of a team with the same arguments; they leave it together.
void attend_rows(const Batch *batch, char *pool, Rows q, Rows k, Rows v, float scale, float *out);

#endif
