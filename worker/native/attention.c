// Attention from one token per job, straight from the blocks of the paged pool: nothing is gathered or padded.
// For fp32 on a CPU; worker/attention/paged.py has the same in torch. Called by worker/attention/native.py, which holds
// the same two structs. Only slots that a job sees are read, so what lies in others is of no consequence, and what
// a job gets does not depend on the other jobs of the batch.
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { WIDTH = 8, QUERIES = 3, SLOTS = 4, COLUMNS = 4, TILE = 2 * WIDTH };  // 3 * 4 sums fit 16 registers
enum { LINE = 16 };                                                       // floats that memory sends at once
typedef float Vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));

typedef struct {
    int64_t row, start, end;  // of q and out; the slots that it sees, counted from its first token
    const int64_t *blocks;
} Job;

typedef struct {
    int64_t num_jobs, kv_heads, head_dim, block_tokens, block_stride, threads;  // head_dim: times WIDTH
    const Job *jobs;
} Batch;

typedef struct {  // up to TILE slots that follow one another in a block, of one head
    int64_t slots;
    const float *keys, *values;  // [slots, head_dim]
} Tile;

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Ints){__VA_ARGS__})
#endif

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE Vec larger(Vec a, Vec b) {  // a where it is no number
    const Ints second = a < b;
    return (Vec)((second & (Ints)b) | (~second & (Ints)a));
}

// The sums of a, b, c and d, in this order; the last four numbers mean nothing.
INLINE Vec totals(Vec a, Vec b, Vec c, Vec d) {
    const Vec ab = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const Vec cd = SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    const Vec all = SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return all + SHUFFLE(all, all, 4, 5, 6, 7, 0, 1, 2, 3);
}

// e^x for x <= 0 within 2e-7, and at least e^-87: 2^n * e^r with |r| < 0.35.
INLINE Vec exponential(Vec x) {
    x = larger(x, (Vec){0} - 87.0f);
    const Vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: rounds to an integer
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * (Vec)((__builtin_convertvector(n, Ints) + 127) << 23);
}

// scores[query][slot] = q[query] . keys[slot]; both counts are constants where this is inlined.
INLINE void score(int queries, int slots, const float *q, const float *keys, int64_t dim, float (*scores)[TILE]) {
    Vec sums[QUERIES][SLOTS] = {0};
    for (int64_t d = 0; d < dim; d += WIDTH) {
        Vec key[SLOTS];
        UNROLLED for (int s = 0; s < slots; s++) key[s] = *(const Vec *)(keys + s * dim + d);
        UNROLLED for (int i = 0; i < queries; i++) {
            const Vec query = *(const Vec *)(q + i * dim + d);
            UNROLLED for (int s = 0; s < slots; s++) sums[i][s] += query * key[s];
        }
    }
    UNROLLED for (int i = 0; i < queries; i++) {
        const Vec sum = totals(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
        memcpy(scores[i], &sum, slots * sizeof(float));
    }
}

// out[query] = factors[query] * out[query] + weights[query] . values, some columns of it.
INLINE void weigh(int queries, int columns, int64_t slots, float (*weights)[TILE], const float *factors,
                  const float *values, int64_t dim, float *out) {
    Vec sums[QUERIES][COLUMNS];
    UNROLLED for (int i = 0; i < queries; i++)
        UNROLLED for (int c = 0; c < columns; c++)
            sums[i][c] = *(const Vec *)(out + i * dim + c * WIDTH) * factors[i];
    for (int64_t s = 0; s < slots; s++) {
        Vec value[COLUMNS];
        UNROLLED for (int c = 0; c < columns; c++) value[c] = *(const Vec *)(values + s * dim + c * WIDTH);
        UNROLLED for (int i = 0; i < queries; i++)
            UNROLLED for (int c = 0; c < columns; c++) sums[i][c] += value[c] * weights[i][s];
    }
    UNROLLED for (int i = 0; i < queries; i++)
        UNROLLED for (int c = 0; c < columns; c++) *(Vec *)(out + i * dim + c * WIDTH) = sums[i][c];
}

// Scores become weights relative to the highest score so far; returns what earlier weights are worth now.
INLINE float soften(float *scores, float *highest, float *sum) {
    Vec low = *(Vec *)scores, high = *(Vec *)(scores + WIDTH);
    const Vec tops = larger(low, high);
    float top = *highest, added = 0.0f;
    UNROLLED for (int i = 0; i < WIDTH; i++) top = tops[i] > top ? tops[i] : top;
    *(Vec *)scores = low = exponential(low - top);
    *(Vec *)(scores + WIDTH) = high = exponential(high - top);
    const Vec both = low + high;
    UNROLLED for (int i = 0; i < WIDTH; i++) added += both[i];
    const float factor = exponential((Vec){0} + (*highest - top))[0];
    *sum = *sum * factor + added;
    *highest = top;
    return factor;
}

// Goes on from a tile to the next. Memory is asked for the next tile's parts while this one's are computed: the
// processor does not foresee the way from block to block.
INLINE void attend_tile(int queries, const Tile *tile, const Tile *next, const float *q, int64_t dim, float *highest,
                        float *sum, float *out) {
    float weights[QUERIES][TILE], factors[QUERIES];
    int64_t s = 0, d = 0;
    for (; s + SLOTS <= tile->slots; s += SLOTS) {
        for (int64_t i = s * dim; i < (s + SLOTS) * dim; i += LINE) __builtin_prefetch(next->keys + i);
        score(queries, SLOTS, q, tile->keys + s * dim, dim, (float (*)[TILE])(weights[0] + s));
    }
    for (; s < tile->slots; s++) score(queries, 1, q, tile->keys + s * dim, dim, (float (*)[TILE])(weights[0] + s));
    for (; s < TILE; s++)
        for (int i = 0; i < queries; i++) weights[i][s] = -INFINITY;
    UNROLLED for (int i = 0; i < queries; i++) factors[i] = soften(weights[i], highest + i, sum + i);
    for (; d + COLUMNS * WIDTH <= dim; d += COLUMNS * WIDTH) {
        for (s = 0; s < tile->slots; s++)
            for (int i = 0; i < COLUMNS * WIDTH; i += LINE) __builtin_prefetch(next->values + s * dim + d + i);
        weigh(queries, COLUMNS, tile->slots, weights, factors, tile->values + d, dim, out + d);
    }
    for (; d < dim; d += WIDTH) weigh(queries, 1, tile->slots, weights, factors, tile->values + d, dim, out + d);
}

INLINE Tile tile_at(const Batch *batch, const Job *job, int64_t head, const float *pool, int64_t slot) {
    const int64_t offset = slot % batch->block_tokens, matrix = batch->block_tokens * batch->head_dim;
    const float *block = pool + job->blocks[slot / batch->block_tokens] * batch->block_stride;
    const float *keys = block + head * matrix + offset * batch->head_dim;
    const int64_t slots = smaller(smaller(TILE, batch->block_tokens - offset), job->end - slot);
    return (Tile){slots, keys, keys + batch->kv_heads * matrix};
}

// One KV head of one job. pool: the layer, in block 0. q: [group] heads; out: [group, head_dim].
static void attend(const Batch *batch, const Job *job, int64_t head, const float *pool, const float *q,
                   int64_t head_stride, int64_t group, float scale, float *out) {
    const int64_t dim = batch->head_dim;
    float scaled[group * dim], highest[group], sum[group];
    for (int64_t g = 0; g < group; g++) {
        for (int64_t d = 0; d < dim; d++) scaled[g * dim + d] = q[g * head_stride + d] * scale;
        highest[g] = -INFINITY;
        sum[g] = 0.0f;
    }
    memset(out, 0, group * dim * sizeof(float));
    Tile tile = tile_at(batch, job, head, pool, job->start);
    for (int64_t slot = job->start; slot < job->end;) {
        slot += tile.slots;
        const Tile next = slot < job->end ? tile_at(batch, job, head, pool, slot) : tile;
        for (int64_t g = 0; g < group; g += QUERIES) {
#define ATTEND(queries) attend_tile(queries, &tile, &next, scaled + g * dim, dim, highest + g, sum + g, out + g * dim)
            switch (smaller(QUERIES, group - g)) {
                case 1: ATTEND(1); break;
                case 2: ATTEND(2); break;
                default: ATTEND(QUERIES);
            }
        }
        tile = next;
    }
    for (int64_t g = 0; g < group; g++)
        for (int64_t d = 0; d < dim; d++) out[g * dim + d] /= sum[g];
}

// q: rows of kv_heads * group heads, whose strides are counts of numbers; out: as many rows, contiguous.
void decode(const Batch *batch, const float *pool, const float *q, int64_t row_stride, int64_t head_stride,
            int64_t group, float scale, float *out) {
    const int64_t heads = batch->kv_heads;
#pragma omp parallel for schedule(dynamic) num_threads(batch->threads)
    for (int64_t item = 0; item < batch->num_jobs * heads; item++) {
        const Job *job = batch->jobs + item / heads;
        const int64_t first = job->row * row_stride + item % heads * group * head_stride;
        attend(batch, job, item % heads, pool, q + first, head_stride, group, scale,
               out + (job->row * heads + item % heads) * group * batch->head_dim);
    }
}
