// Attention of decoding jobs and prompts alike, straight from the blocks of the paged pool: nothing is gathered or
// padded. For fp32 on a CPU; worker/attention/paged.py has the same in torch. Called by worker/attention/native.py,
// which holds the same two structs.
//
// A query meets its slots in tiles whose bounds depend on the slots' numbers alone, and sums them in the same order
// whatever is computed beside it. What a token gets has the same bits in any batch: in a prompt, in a chunk of it, or
// decoded by itself.
#include "attention.h"

#include <math.h>
#include <string.h>
#ifdef __FMA__
#include <immintrin.h>
#endif

enum { WIDTH = 8, QUERIES = 3, SLOTS = 4, COLUMNS = 4, TILE = 2 * WIDTH };  // 3 * 4 sums fit 16 registers
enum { LINE = 16 };                                                         // floats that memory sends at once
typedef float Vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

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
#ifdef __AVX2__
INLINE Vec larger(Vec a, Vec b) { return _mm256_max_ps(b, a); }  // a where one is no number
#else
INLINE Vec larger(Vec a, Vec b) { return chosen(a < b, b, a); }
#endif

// The largest of x, in all places.
INLINE Vec largest(Vec x) {
    x = larger(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
    x = larger(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
    return larger(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
}

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

// Asks memory for 32 numbers that are needed soon.
INLINE void ask_for(const float *numbers) {
    __builtin_prefetch(numbers);
    __builtin_prefetch(numbers + LINE);
}

// scores[query][slot] = q[query] . keys[slot]. Both counts are constants where this is inlined; so is whether memory
// is asked meanwhile for as many numbers at `next`.
INLINE void score(int queries, int slots, const float *q, const float *keys, int64_t dim, float (*scores)[TILE],
                  int asking, const float *next) {
    Vec sums[QUERIES][SLOTS] = {0};
    for (int64_t d = 0; d < dim; d += WIDTH) {
        Vec key[SLOTS];
        if (asking) ask_for(next + SLOTS * d);
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

// out[query] = factors[query] * out[query] + weights[query] . values, some columns of it. It asks as `score` does.
INLINE void weigh(int queries, int columns, int64_t slots, float (*weights)[TILE], const Vec *factors,
                  const float *values, int64_t dim, float *out, int asking, const float *next) {
    Vec sums[QUERIES][COLUMNS] = {0};
    for (int64_t s = 0; s < slots; s++) {
        Vec weight[QUERIES];
        if (asking) ask_for(next + s * COLUMNS * WIDTH);
        UNROLLED for (int i = 0; i < queries; i++) weight[i] = spread(weights[i][s]);
        UNROLLED for (int c = 0; c < columns; c++) {
            const Vec value = *(const Vec *)(values + s * dim + c * WIDTH);
            UNROLLED for (int i = 0; i < queries; i++) sums[i][c] = fused(value, weight[i], sums[i][c]);
        }
    }
    UNROLLED for (int i = 0; i < queries; i++)
        UNROLLED for (int c = 0; c < columns; c++) {
            Vec *sum = (Vec *)(out + i * dim + c * WIDTH);
            *sum = fused(*sum, factors[i], sums[i][c]);
        }
}

// x at places that a query sees, low <= first + place < high, else -inf.
INLINE Vec seen(Vec x, int first, int64_t low, int64_t high) {
    const Ints place = (Ints){0, 1, 2, 3, 4, 5, 6, 7} + first;
    const Ints after = place >= (int32_t)smaller(low, TILE), before = place < (int32_t)larger_of(high, 0);
    return chosen(after & before, x, spread(-INFINITY));
}

// Scores become weights relative to the highest score so far, and nothing where a query does not see the slot; returns
// what earlier weights are worth now. sum: of the weights, by place.
INLINE Vec soften(float *scores, int64_t low, int64_t high, float *highest, Vec *sum) {
    Vec left = *(Vec *)scores, right = *(Vec *)(scores + WIDTH);
    if (low > 0 || high < TILE) left = seen(left, 0, low, high), right = seen(right, WIDTH, low, high);
    const Vec nothing = {0}, unseen = spread(-INFINITY), before = spread(*highest);
    const Vec top = larger(before, largest(larger(left, right)));
    left = chosen(left == unseen, nothing, exponential(left - top));
    right = chosen(right == unseen, nothing, exponential(right - top));
    *(Vec *)scores = left;
    *(Vec *)(scores + WIDTH) = right;
    // Before the first slot that it sees there is nothing to be worth anything.
    const Vec factor = chosen(before == unseen, nothing, exponential(before - top));
    *sum = fused(*sum, factor, left + right);
    *highest = top[0];
    return factor;
}

// Goes on from a tile to the next. If `asking`, memory is asked for the next tile while this one is computed, since the
// processor does not foresee the way from block to block; for little at a time, since a core waits for some 20 lines.
INLINE void attend_tile(int queries, int asking, const Tile *tile, const Tile *next, const float *q, int64_t dim,
                        const int64_t *lows, const int64_t *highs, float *highest, Vec *sum, float *out) {
    float weights[QUERIES][TILE];
    Vec factors[QUERIES];
    int64_t s = 0, d = 0;
#define SCORE(slots, asking) \
    score(queries, slots, q, tile->keys + s * dim, dim, (float (*)[TILE])(weights[0] + s), asking, next->keys + s * dim)
    for (; s + SLOTS <= tile->slots; s += SLOTS) SCORE(SLOTS, asking);
    for (; s < tile->slots; s++) SCORE(1, 0);
    UNROLLED for (int i = 0; i < queries; i++)
        factors[i] = soften(weights[i], lows[i] - tile->first, smaller(highs[i] - tile->first, tile->slots),
                            highest + i, sum + i);
#define WEIGH(columns, asking)                                                                     \
    weigh(queries, columns, tile->slots, weights, factors, tile->values + d, dim, out + d, asking, \
          next->values + d * tile->slots)
    for (; d + COLUMNS * WIDTH <= dim; d += COLUMNS * WIDTH) WEIGH(COLUMNS, asking);
    for (; d < dim; d += WIDTH) WEIGH(1, 0);
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
    float scaled[rows * dim], sums[rows * dim], highest[rows];
    Vec total[rows];
    int64_t lows[rows], highs[rows];
    for (int64_t r = 0; r < rows; r++) {
        const float *query = q.numbers + (run->row + r / group) * q.stride + (head * group + r % group) * dim;
        for (int64_t d = 0; d < dim; d++) scaled[r * dim + d] = query[d] * scale;
        highest[r] = -INFINITY;
        total[r] = (Vec){0};
        highs[r] = run->start + r / group + 1;
        lows[r] = larger_of(highs[r] - batch->window, 0);
    }
    memset(sums, 0, sizeof(sums));
    for (Tile tile = tile_at(batch, run, head, pool, lows[0]), next; tile.first < end; tile = next) {
        const int64_t after = tile.first + tile.slots;
        int asking = after < end;
        next = asking ? tile_at(batch, run, head, pool, after) : (Tile){end, 0, tile.keys, tile.values};
        for (int64_t r = 0; r < rows; r += QUERIES) {
            const int64_t queries = smaller(QUERIES, rows - r);
            if (highs[r + queries - 1] <= tile.first || lows[r] >= after) continue;
#define ATTEND(queries, asking)                                                                                    \
    attend_tile(queries, asking, &tile, &next, scaled + r * dim, dim, lows + r, highs + r, highest + r, total + r, \
                sums + r * dim)
            switch (2 * queries + asking) {
                case 2: ATTEND(1, 0); break;
                case 3: ATTEND(1, 1); break;
                case 4: ATTEND(2, 0); break;
                case 5: ATTEND(2, 1); break;
                case 2 * QUERIES: ATTEND(QUERIES, 0); break;
                default: ATTEND(QUERIES, 1);
            }
            asking = 0;
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        float *to = out + ((run->row + r / group) * batch->kv_heads * group + head * group + r % group) * dim;
        float weight = 0.0f;
        UNROLLED for (int i = 0; i < WIDTH; i++) weight += total[r][i];
        for (int64_t d = 0; d < dim; d++) to[d] = sums[r * dim + d] / weight;
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

void attend_rows(const Batch *batch, float *pool, Rows q, Rows k, Rows v, float scale, float *out) {
    const int64_t heads = batch->kv_heads;
#pragma omp for
    for (int64_t i = 0; i < batch->num_runs; i++) write_run(batch, batch->runs + i, pool, k, v);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < batch->num_runs * heads; item++)
        attend_run(batch, batch->runs + item / heads, item % heads, pool, q, scale, out);
}

void attend(const Batch *batch, float *pool, const float *q, int64_t q_stride, const float *k, int64_t k_stride,
            const float *v, int64_t v_stride, float scale, float *out) {
#pragma omp parallel num_threads(batch->threads)
    attend_rows(batch, pool, (Rows){q, q_stride}, (Rows){k, k_stride}, (Rows){v, v_stride}, scale, out);
}

void rotate_row(float *row, int64_t heads, int64_t head_dim, const float *cosines, const float *sines) {
    const int64_t half = head_dim / 2;
    for (int64_t h = 0; h < heads; h++) {
        float *low = row + h * head_dim, *high = low + half;
        for (int64_t i = 0; i < half; i++) {
            const float a = low[i], b = high[i];
            low[i] = a * cosines[i] + b * sines[i];
            high[i] = b * cosines[half + i] + a * sines[half + i];
        }
    }
}

// Rotates rows that lie `stride` numbers apart. cosines, sines: [rows, head_dim].
void rotate(float *x, int64_t stride, int64_t rows, int64_t heads, int64_t head_dim, const float *cosines,
            const float *sines) {
    for (int64_t r = 0; r < rows; r++)
        rotate_row(x + r * stride, heads, head_dim, cosines + r * head_dim, sines + r * head_dim);
}
