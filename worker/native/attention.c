// Attention of decoding jobs and prompts alike, straight from the blocks of the paged pool: nothing is gathered or
// padded. For fp32 on a CPU; worker/attention/paged.py has the same in torch. Called by worker/attention/native.py,
// which holds the same two structs.
//
// A query meets its slots in tiles whose bounds depend on the slots' numbers alone, and sums them in the same order
// whatever is computed beside it. What a token gets has the same bits in any batch: in a prompt, in a chunk of it, or
// decoded by itself.
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __FMA__
#include <immintrin.h>
#endif

enum { WIDTH = 8, QUERIES = 3, SLOTS = 4, COLUMNS = 4, TILE = 2 * WIDTH };  // 3 * 4 sums fit 16 registers
enum { LINE = 16 };                                                         // floats that memory sends at once
typedef float Vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

typedef struct {                // tokens of a job that follow one another
    int64_t row, start, count;  // the first one's row in q, k, v and out; its position in the job
    const int64_t *blocks;      // of the whole job
} Run;

typedef struct {
    int64_t num_runs, kv_heads, group, head_dim, block_tokens, block_stride, window, threads;  // head_dim: times WIDTH
    const Run *runs;
} Batch;

typedef struct {  // [rows, heads, head_dim], whose rows lie `stride` numbers apart
    const float *numbers;
    int64_t stride;
} Rows;

typedef struct {  // up to TILE slots that follow one another in a block, of one head
    int64_t first, slots;
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

INLINE int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE Vec chosen(Ints mask, Vec yes, Vec no) { return (Vec)((mask & (Ints)yes) | (~mask & (Ints)no)); }
INLINE Vec larger(Vec a, Vec b) { return chosen(a < b, b, a); }  // a where it is no number

// The sums of a, b, c and d, in this order; the last four numbers mean nothing.
INLINE Vec totals(Vec a, Vec b, Vec c, Vec d) {
    const Vec ab = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const Vec cd = SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    const Vec all = SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return all + SHUFFLE(all, all, 4, 5, 6, 7, 0, 1, 2, 3);
}

#ifdef __FMA__
INLINE Vec fused(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vec spread(float x) { return _mm256_set1_ps(x); }
#else
INLINE Vec fused(Vec a, Vec b, Vec c) { return a * b + c; }
INLINE Vec spread(float x) { return x - (Vec){0}; }
#endif

// e^x for x <= 0 within 2e-7, and at least e^-87: 2^n * e^r with |r| < 0.35.
INLINE Vec exponential(Vec x) {
    x = larger(x, spread(-87.0f));
    const Vec magic = spread(12582912.0f);  // 1.5 * 2^23: rounds to an integer
    const Vec n = fused(x, spread(1.44269504f), magic) - magic;
    const Vec r = fused(n, spread(2.12194440e-4f), fused(n, spread(-0.693359375f), x));
    Vec y = fused(r, spread(1.9875691500e-4f), spread(1.3981999507e-3f));
    y = fused(y, r, spread(8.3334519073e-3f));
    y = fused(y, r, spread(4.1665795894e-2f));
    y = fused(y, r, spread(1.6666665459e-1f));
    y = fused(y, r, spread(5.0000001201e-1f));
    y = fused(y * r, r, r) + 1.0f;
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
            UNROLLED for (int s = 0; s < slots; s++) sums[i][s] = fused(query, key[s], sums[i][s]);
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
    Vec sums[QUERIES][COLUMNS] = {0};
    for (int64_t s = 0; s < slots; s++) {
        Vec value[COLUMNS];
        UNROLLED for (int c = 0; c < columns; c++) value[c] = *(const Vec *)(values + s * dim + c * WIDTH);
        UNROLLED for (int i = 0; i < queries; i++)
            UNROLLED for (int c = 0; c < columns; c++) sums[i][c] = fused(value[c], spread(weights[i][s]), sums[i][c]);
    }
    UNROLLED for (int i = 0; i < queries; i++)
        UNROLLED for (int c = 0; c < columns; c++) {
            Vec *sum = (Vec *)(out + i * dim + c * WIDTH);
            *sum = fused(*sum, spread(factors[i]), sums[i][c]);
        }
}

// Scores become weights relative to the highest score so far, and nothing where a query does not see the slot; returns
// what earlier weights are worth now.
INLINE float soften(float *scores, int64_t low, int64_t high, float *highest, float *sum) {
    for (int64_t s = 0; s < smaller(low, TILE); s++) scores[s] = -INFINITY;
    for (int64_t s = larger_of(high, 0); s < TILE; s++) scores[s] = -INFINITY;
    const Vec left = *(Vec *)scores, right = *(Vec *)(scores + WIDTH), tops = larger(left, right);
    float top = *highest, added = 0.0f;
    UNROLLED for (int i = 0; i < WIDTH; i++) top = tops[i] > top ? tops[i] : top;
    const Vec least = {0}, seen_left = exponential(left - top), seen_right = exponential(right - top);
    *(Vec *)scores = chosen(left == spread(-INFINITY), least, seen_left);
    *(Vec *)(scores + WIDTH) = chosen(right == spread(-INFINITY), least, seen_right);
    const Vec both = *(Vec *)scores + *(Vec *)(scores + WIDTH);
    UNROLLED for (int i = 0; i < WIDTH; i++) added += both[i];
    // Before the first slot that it sees there is nothing to be worth anything.
    const float factor = *highest == -INFINITY ? 0.0f : exponential(spread(*highest - top))[0];
    *sum = *sum * factor + added;
    *highest = top;
    return factor;
}

// Goes on from a tile to the next. Memory is asked for the next tile's parts while this one's are computed: the
// processor does not foresee the way from block to block. next: none if it was asked already.
INLINE void attend_tile(int queries, const Tile *tile, const Tile *next, const float *q, int64_t dim,
                        const int64_t *lows, const int64_t *highs, float *highest, float *sum, float *out) {
    float weights[QUERIES][TILE], factors[QUERIES];
    int64_t s = 0, d = 0;
    for (; s + SLOTS <= tile->slots; s += SLOTS) {
        for (int64_t i = s * dim; next && i < (s + SLOTS) * dim; i += LINE) __builtin_prefetch(next->keys + i);
        score(queries, SLOTS, q, tile->keys + s * dim, dim, (float (*)[TILE])(weights[0] + s));
    }
    for (; s < tile->slots; s++) score(queries, 1, q, tile->keys + s * dim, dim, (float (*)[TILE])(weights[0] + s));
    UNROLLED for (int i = 0; i < queries; i++)
        factors[i] = soften(weights[i], lows[i] - tile->first, smaller(highs[i] - tile->first, tile->slots),
                            highest + i, sum + i);
    for (; d + COLUMNS * WIDTH <= dim; d += COLUMNS * WIDTH) {
        for (s = 0; next && s < tile->slots; s++)
            for (int i = 0; i < COLUMNS * WIDTH; i += LINE) __builtin_prefetch(next->values + s * dim + d + i);
        weigh(queries, COLUMNS, tile->slots, weights, factors, tile->values + d, dim, out + d);
    }
    for (; d < dim; d += WIDTH) weigh(queries, 1, tile->slots, weights, factors, tile->values + d, dim, out + d);
}

INLINE const float *slot_at(const Batch *batch, const Run *run, int64_t head, const float *pool, int64_t slot) {
    const int64_t block = run->blocks[slot / batch->block_tokens], offset = slot % batch->block_tokens;
    return pool + block * batch->block_stride + (head * batch->block_tokens + offset) * batch->head_dim;
}

// Keys lie before values in a block, [2, kv_heads, block_tokens, head_dim].
INLINE int64_t to_values(const Batch *batch) { return batch->kv_heads * batch->block_tokens * batch->head_dim; }

// The tile in which `slot` is.
INLINE Tile tile_at(const Batch *batch, const Run *run, int64_t head, const float *pool, int64_t slot) {
    const int64_t first = slot - slot % batch->block_tokens % TILE;
    const int64_t left = batch->block_tokens - first % batch->block_tokens;
    const float *keys = slot_at(batch, run, head, pool, first);
    return (Tile){first, smaller(smaller(TILE, left), run->start + run->count - first), keys, keys + to_values(batch)};
}

// One KV head of one run. pool: the layer, in block 0.
static void attend_run(const Batch *batch, const Run *run, int64_t head, const float *pool, Rows q, float scale,
                       float *out) {
    const int64_t dim = batch->head_dim, group = batch->group, rows = run->count * group;
    const int64_t end = run->start + run->count;
    float scaled[rows * dim], sums[rows * dim], highest[rows], total[rows];
    int64_t lows[rows], highs[rows];
    for (int64_t r = 0; r < rows; r++) {
        const float *query = q.numbers + (run->row + r / group) * q.stride + (head * group + r % group) * dim;
        for (int64_t d = 0; d < dim; d++) scaled[r * dim + d] = query[d] * scale;
        highest[r] = -INFINITY;
        total[r] = 0.0f;
        highs[r] = run->start + r / group + 1;
        lows[r] = larger_of(highs[r] - batch->window, 0);
    }
    memset(sums, 0, sizeof(sums));
    Tile tile = tile_at(batch, run, head, pool, lows[0]);
    while (tile.first < end) {
        const int64_t after = tile.first + tile.slots;
        const Tile next = after < end ? tile_at(batch, run, head, pool, after) : (Tile){.first = end};
        const Tile *ask = after < end ? &next : NULL;
        for (int64_t r = 0; r < rows; r += QUERIES) {
            const int64_t queries = smaller(QUERIES, rows - r);
            if (highs[r + queries - 1] <= tile.first || lows[r] >= after) continue;
#define ATTEND(queries)                                                                                    \
    attend_tile(queries, &tile, ask, scaled + r * dim, dim, lows + r, highs + r, highest + r, total + r, \
                sums + r * dim)
            switch (queries) {
                case 1: ATTEND(1); break;
                case 2: ATTEND(2); break;
                default: ATTEND(QUERIES);
            }
            ask = NULL;
        }
        tile = next;
    }
    for (int64_t r = 0; r < rows; r++) {
        float *to = out + ((run->row + r / group) * batch->kv_heads * group + head * group + r % group) * dim;
        for (int64_t d = 0; d < dim; d++) to[d] = sums[r * dim + d] / total[r];
    }
}

static void write_run(const Batch *batch, const Run *run, float *pool, Rows k, Rows v) {
    const int64_t dim = batch->head_dim;
    for (int64_t t = 0; t < run->count; t++)
        for (int64_t head = 0; head < batch->kv_heads; head++) {
            float *slot = (float *)slot_at(batch, run, head, pool, run->start + t);
            memcpy(slot, k.numbers + (run->row + t) * k.stride + head * dim, dim * sizeof(float));
            memcpy(slot + to_values(batch), v.numbers + (run->row + t) * v.stride + head * dim, dim * sizeof(float));
        }
}

// Stores k and v, then attends. out: [rows, heads, head_dim], contiguous.
void attend(const Batch *batch, float *pool, const float *q, int64_t q_stride, const float *k, int64_t k_stride,
            const float *v, int64_t v_stride, float scale, float *out) {
    const int64_t heads = batch->kv_heads;
#pragma omp parallel num_threads(batch->threads)
    {
#pragma omp for
        for (int64_t i = 0; i < batch->num_runs; i++)
            write_run(batch, batch->runs + i, pool, (Rows){k, k_stride}, (Rows){v, v_stride});
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < batch->num_runs * heads; item++)
            attend_run(batch, batch->runs + item / heads, item % heads, pool, (Rows){q, q_stride}, scale, out);
    }
}

// Rotates, in place, dimension i of every head together with dimension i + head_dim / 2. cosines, sines: [rows,
// head_dim], the first half of the sines negated.
void rotate(float *x, int64_t stride, int64_t rows, int64_t heads, int64_t head_dim, const float *cosines,
            const float *sines) {
    const int64_t half = head_dim / 2;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            float *low = x + r * stride + h * head_dim, *high = low + half;
            const float *c = cosines + r * head_dim, *s = sines + r * head_dim;
            for (int64_t i = 0; i < half; i++) {
                const float a = low[i], b = high[i];
                low[i] = a * c[i] + b * s[i];
                high[i] = b * c[half + i] + a * s[half + i];
            }
        }
}
