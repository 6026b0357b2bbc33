// The layers of a stage of the Llama family, one after the other, by threads that stay together: what would else be
// hundreds of short calls. Called by worker/models/native_layers.py, which holds the same structs; worker/models/llama.py
// has the same as single calls: to the bit, but for norms of heads, which torch sums in another order.
#include <omp.h>

#include "attention.h"
#include "linear.h"
#include "rotation.h"
#include "vectors.h"

typedef struct {
    Linear qkv, out, gated, down;
    const float *qk_norm;  // of an RMS norm of every head of q and k, [heads + kv_heads][head_dim], or none
} Layer;

typedef struct {  // an iteration
    int64_t layers, rows;
    const Batch *const *batches;    // of every layer, as its window sees the iteration
    char *pool;                     // of the first layer, in block 0
    int64_t layer_stride;           // bytes from a layer to the next
    const float *cosines, *sines;   // [rows][head_dim], as in rotation.h
    float scale, epsilon;           // of scores; of the norm of heads
    double *seconds;                // spent by the parts below, added up over all layers
} Iteration;

enum { QKV, ATTENTION, OUT, GATED, DOWN };

typedef struct {  // what a layer hands from one part to the next
    float *qkv, *attended, *gated;
    void *prepared;
} Memory;

int64_t layers_memory(const Layer *layers, int64_t count, int64_t rows) {
    int64_t most = 0;
    for (const Layer *layer = layers; layer < layers + count; layer++) {
        const Linear *all[] = {&layer->qkv, &layer->out, &layer->gated, &layer->down};
        for (int i = 0; i < 4; i++) most = greater(most, linear_memory(all[i], rows));
    }
    return most + rows * (layers->qkv.outs + layers->out.ins + layers->gated.outs) * sizeof(float);
}

static Memory memory_parts(const Layer *layer, int64_t rows, float *memory) {
    float *attended = memory + rows * layer->qkv.outs, *gated = attended + rows * layer->out.ins;
    return (Memory){memory, attended, gated, gated + rows * layer->gated.outs};
}

static void normalize_head(float *head, int64_t head_dim, const float *weights, float epsilon) {
    float squares = 0.0f;
    for (int64_t d = 0; d < head_dim; d++) squares += head[d] * head[d];
    const float scale = 1.0f / sqrtf(squares / head_dim + epsilon);
    for (int64_t d = 0; d < head_dim; d++) head[d] = head[d] * scale * weights[d];
}

static void place_heads(const Iteration *it, const Layer *layer, const Batch *batch, float *qkv) {
    const int64_t dim = batch->head_dim, heads = batch->kv_heads * (batch->group + 1);  // of q and k
#pragma omp for
    for (int64_t r = 0; r < it->rows; r++) {
        float *row = qkv + r * layer->qkv.outs;
        for (int64_t h = 0; h < heads && layer->qk_norm; h++)
            normalize_head(row + h * dim, dim, layer->qk_norm + h * dim, it->epsilon);
        rotate_row(row, heads, dim, it->cosines + r * dim, it->sines + r * dim);
    }
}

static void run_layer(const Iteration *it, const Layer *layer, const Batch *batch, char *pool, float *x, Memory m,
                      Range *ranges) {
    const int64_t rows = it->rows, stride = layer->qkv.outs, dim = batch->head_dim;
    const float *k = m.qkv + batch->kv_heads * batch->group * dim, *v = k + batch->kv_heads * dim;
    double since = omp_get_wtime();
#define CHARGE(part)                                                 \
    if (omp_get_thread_num() == 0) {                                 \
        const double now = omp_get_wtime();                          \
        it->seconds[part] += now - since;                            \
        since = now;                                                 \
    }
    multiply_rows(&layer->qkv, x, rows, NULL, m.qkv, m.prepared, ranges);
    CHARGE(QKV)
    place_heads(it, layer, batch, m.qkv);
    attend_rows(batch, pool, (Rows){m.qkv, stride}, (Rows){k, stride}, (Rows){v, stride}, it->scale, m.attended,
                ranges);
    CHARGE(ATTENTION)
    multiply_rows(&layer->out, m.attended, rows, x, x, m.prepared, ranges);
    CHARGE(OUT)
    multiply_rows(&layer->gated, x, rows, NULL, m.gated, m.prepared, ranges);
    CHARGE(GATED)
    multiply_rows(&layer->down, m.gated, rows, x, x, m.prepared, ranges);
    CHARGE(DOWN)
}

// x: [rows][hidden], in and out. memory: `layers_memory` bytes.
void run_layers(const Iteration *it, const Layer *layers, float *x, void *memory) {
    int64_t multiplications = 0, threads = 1;
    for (int64_t i = 0; i < it->layers; i++) {
        const Linear *gated = &layers[i].gated;
        multiplications = greater(multiplications, it->rows * gated->ins * gated->outs * 2);
        threads = greater(threads, it->batches[i]->threads);
    }
    if (worth_threads(multiplications)) threads = layers->gated.threads;
    Range ranges[threads];
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < it->layers; i++)
        run_layer(it, layers + i, it->batches[i], it->pool + i * it->layer_stride, x,
                  memory_parts(layers + i, it->rows, memory), ranges);
}
