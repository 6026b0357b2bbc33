// Attention of decoding jobs and prompts alike, straight from the blocks of the paged pool: contexts are not gathered
// or padded. For fp32 on a CPU; worker/attention/paged.py has the same in torch. Called by worker/attention/native.py,
// which holds the same two structs.
#include "attention_runs.h"

extern const RunKernel narrow_runs[], tile_runs;
static const RunKernel own_runs[] = RUN_KERNELS;

static const RunKernel *kernel_of(const Batch *batch) {
    if (batch->type == KV_BF16_TILES || batch->type == KV_INT8_TILES) return &tile_runs;
    return (batch->head_dim % WIDTH ? narrow_runs : own_runs) + batch->type;
}

static Share share_at(const Batch *batch, int64_t index) {
    const int64_t run = index / batch->kv_heads;
    return (Share){run < batch->num_runs ? batch->runs + run : NULL, index % batch->kv_heads};
}

void attend_rows(const Batch *batch, char *pool, Rows q, Rows k, Rows v, float scale, float *out, Range *ranges) {
    const RunKernel *kernel = kernel_of(batch);
    divide(ranges, batch->num_runs * batch->kv_heads);
#pragma omp for
    for (int64_t i = 0; i < batch->num_runs; i++) kernel->write(batch, batch->runs + i, pool, k, v);
    for (int64_t i; (i = take_item(ranges)) != NO_ITEM;)
        kernel->attend(batch, share_at(batch, i), share_at(batch, i + 1), pool, q, scale, out);
    kernel->leave();
#pragma omp barrier
}

void attend(const Batch *batch, char *pool, const float *q, int64_t q_stride, const float *k, int64_t k_stride,
            const float *v, int64_t v_stride, float scale, float *out) {
    Range ranges[batch->threads];
#pragma omp parallel num_threads(batch->threads)
    attend_rows(batch, pool, (Rows){q, q_stride}, (Rows){k, k_stride}, (Rows){v, v_stride}, scale, out, ranges);
}
