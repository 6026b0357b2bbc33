// Attention of one run of tokens, straight from the blocks of the paged pool. What attention.c is made of, for one width
// of vectors: that of vectors.h.
//
// A query meets its slots in spans whose bounds depend on the slots' numbers alone, and sums them in the same order
// whatever is computed beside it. What a token gets has the same bits in any batch: in a prompt, in a chunk of it, or
// decoded by itself.
#ifndef SKIPJOIN_ATTENTION_RUNS_H
#define SKIPJOIN_ATTENTION_RUNS_H

#include "attention.h"
#include "fp16.h"

enum { QUERIES = WIDTH == 16 ? 6 : 3, SLOTS = 4, COLUMNS = 4 };  // 6 * 4 sums fit 32 registers, 3 * 4 fit 16
enum { LINE = 64 };  // bytes that memory sends at once

typedef struct {  // slots of one head that lie beside each other in a block
    int64_t slots;
    const char *keys, *values;  // [slots, head_dim]
} Piece;

typedef struct {  // up to SPAN slots
    int64_t first, slots, pieces;
    Piece of[SPAN];
} Span;

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t EightInts __attribute__((vector_size(32), aligned(4), may_alias));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (EightInts){__VA_ARGS__})
#endif

#ifdef WIDE
#define PLACES {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
INLINE Eight halves_sum(Vec x) {
    return (Eight)_mm512_castps512_ps256(x) + (Eight)_mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)x, 1));
}
// The largest of x, in all places.
INLINE Vec largest(Vec x) { return spread(_mm512_reduce_max_ps(x)); }
#else
#define PLACES {0, 1, 2, 3, 4, 5, 6, 7}
INLINE Eight halves_sum(Vec x) { return x; }
INLINE Vec largest(Vec x) {
    x = larger(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
    x = larger(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
    return larger(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
}
#endif

// The sums of four vectors, in this order; the last four numbers mean nothing.
INLINE Eight totals(Eight a, Eight b, Eight c, Eight d) {
    const Eight ab = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const Eight cd = SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    const Eight all = SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return all + SHUFFLE(all, all, 4, 5, 6, 7, 0, 1, 2, 3);
}

// Numbers of the pool, as fp32. Which type it has is a constant where this is inlined.
INLINE Vec stored(int fp16, const char *numbers, int64_t index) {
    return fp16 ? from_fp16((const uint16_t *)numbers + index) : from_floats((const float *)numbers + index);
}

// The other way: fp16 has no number beyond 65504.
INLINE void keep(int fp16, Vec x, char *numbers, int64_t index) {
    if (!fp16) {
        *(Vec *)((float *)numbers + index) = x;
        return;
    }
    x = chosen(x > 65504.0f, spread(65504.0f), chosen(x < -65504.0f, spread(-65504.0f), x));
    store_fp16(x, (uint16_t *)numbers + index);
}

INLINE int64_t bytes(int fp16, int64_t numbers) { return numbers * (fp16 ? 2 : 4); }

// Asks memory for what is needed soon: SLOTS * WIDTH numbers, `index` of them from `next` on.
INLINE void ask_for(int fp16, const char *next, int64_t index) {
    for (int64_t i = 0; i < bytes(fp16, SLOTS * WIDTH); i += LINE) __builtin_prefetch(next + bytes(fp16, index) + i);
}

// scores[query][slot] = q[query] . keys[slot]. Both counts are constants where this is inlined; so is whether memory
// is asked meanwhile for as many numbers at `next`.
INLINE void score(int fp16, int queries, int slots, const float *q, const char *keys, int64_t dim,
                  float (*scores)[SPAN], int asking, const char *next) {
    Vec sums[QUERIES][SLOTS];
    UNROLLED for (int i = 0; i < queries; i++)
        UNROLLED for (int s = 0; s < SLOTS; s++) sums[i][s] = (Vec){0};
    for (int64_t d = 0; d < dim; d += WIDTH) {
        Vec query[QUERIES];
        if (asking) ask_for(fp16, next, SLOTS * d);
        UNROLLED for (int i = 0; i < queries; i++) query[i] = *(const Vec *)(q + i * dim + d);
        UNROLLED for (int s = 0; s < slots; s++) {
            const Vec key = stored(fp16, keys, s * dim + d);
            UNROLLED for (int i = 0; i < queries; i++) accumulate(&sums[i][s], query[i], key);
        }
    }
    UNROLLED for (int i = 0; i < queries; i++) {
        const Eight sum = totals(halves_sum(sums[i][0]), halves_sum(sums[i][1]), halves_sum(sums[i][2]),
                                 halves_sum(sums[i][3]));
        memcpy(scores[i], &sum, slots * sizeof(float));
    }
}

// out[query] += weights[query] . values, some columns of it. It asks as `score` does.
INLINE void weigh(int fp16, int queries, int columns, int64_t slots, float (*weights)[SPAN], const char *values,
                  int64_t dim, float *out, int asking, const char *next) {
    Vec sums[QUERIES][COLUMNS];
    UNROLLED for (int i = 0; i < queries; i++)
        UNROLLED for (int c = 0; c < columns; c++) sums[i][c] = *(Vec *)(out + i * dim + c * WIDTH);
    for (int64_t s = 0; s < slots; s++) {
        Vec weight[QUERIES];
        if (asking) ask_for(fp16, next, s * COLUMNS * WIDTH);
        UNROLLED for (int i = 0; i < queries; i++) weight[i] = spread(weights[i][s]);
        UNROLLED for (int c = 0; c < columns; c++) {
            const Vec value = stored(fp16, values, s * dim + c * WIDTH);
            UNROLLED for (int i = 0; i < queries; i++) accumulate(&sums[i][c], value, weight[i]);
        }
    }
    UNROLLED for (int i = 0; i < queries; i++)
        UNROLLED for (int c = 0; c < columns; c++) *(Vec *)(out + i * dim + c * WIDTH) = sums[i][c];
}

// x at places that a query sees, low <= first + place < high, else -inf.
INLINE Vec seen(Vec x, int64_t first, int64_t low, int64_t high) {
    const Ints place = (Ints)PLACES + (int32_t)first;
    const Ints after = place >= (int32_t)smaller(low, SPAN), before = place < (int32_t)greater(high, 0);
    return chosen(after & before, x, spread(-INFINITY));
}

// The scores of some slots, rounded up to whole vectors, become weights relative to the highest score so far, and nothing
// where a query does not see the slot; what it got so far is made relative to it, too: `out`, and `sum`, of the weights
// by place.
INLINE void soften(float *scores, int64_t slots, int64_t low, int64_t high, float *highest, Vec *sum, float *out,
                   int64_t dim) {
    const Vec nothing = {0}, unseen = spread(-INFINITY), before = spread(*highest);
    Vec top = unseen, weights = nothing;
    for (int64_t s = 0; s < slots; s += WIDTH) {
        Vec *part = (Vec *)(scores + s);
        if (low > s || high < s + WIDTH) *part = seen(*part, s, low, high);
        top = larger(top, *part);
    }
    top = larger(before, largest(top));
    for (int64_t s = 0; s < slots; s += WIDTH) {
        Vec *part = (Vec *)(scores + s);
        *part = chosen(*part == unseen, nothing, exponential(*part - top));
        weights += *part;
    }
    // Before the first slot that it sees there is nothing to be worth anything.
    const Vec factor = chosen(before == unseen, nothing, exponential(before - top));
    *sum = fused(*sum, factor, weights);
    *highest = top[0];
    for (int64_t d = 0; d < dim; d += WIDTH) *(Vec *)(out + d) = *(Vec *)(out + d) * factor;
}

// Goes on from a span to the next. If `asking`, memory is asked for a piece while the one before it is computed, since the
// processor does not foresee the way from block to block; for little at a time, since a core waits for some 20 lines.
// next: what follows the span's last values.
INLINE void attend_span(int fp16, int queries, int asking, const Span *span, const char *next, const float *q,
                        int64_t dim, const int64_t *lows, const int64_t *highs, float *highest, Vec *sum, float *out) {
    float weights[QUERIES][SPAN];
    int64_t done = 0;
    for (int64_t p = 0; p < span->pieces; p++) {
        const Piece *piece = span->of + p;
        const char *after = p + 1 < span->pieces ? piece[1].keys : span->of[0].values;
        int64_t s = 0;
#define SCORE(slots, asking)                                                                        \
    score(fp16, queries, slots, q, piece->keys + bytes(fp16, s * dim), dim,                          \
          (float (*)[SPAN])(weights[0] + done + s), asking, after + bytes(fp16, s * dim))
        for (; s + SLOTS <= piece->slots; s += SLOTS) SCORE(SLOTS, asking);
        for (; s < piece->slots; s++) SCORE(1, 0);
        done += piece->slots;
    }
    UNROLLED for (int i = 0; i < queries; i++)
        soften(weights[i], done, lows[i] - span->first, smaller(highs[i] - span->first, done), highest + i, sum + i,
               out + i * dim, dim);
    done = 0;
    for (int64_t p = 0; p < span->pieces; p++) {
        const Piece *piece = span->of + p;
        const char *after = p + 1 < span->pieces ? piece[1].values : next;
        int64_t d = 0;
#define WEIGH(columns, asking)                                                                             \
    weigh(fp16, queries, columns, piece->slots, (float (*)[SPAN])(weights[0] + done), piece->values + bytes(fp16, d), \
          dim, out + d, asking, after + bytes(fp16, d * piece->slots))
        for (; d + COLUMNS * WIDTH <= dim; d += COLUMNS * WIDTH) WEIGH(COLUMNS, asking);
        for (; d < dim; d += WIDTH) WEIGH(1, 0);
        done += piece->slots;
    }
}

INLINE char *slot_at(const Batch *batch, const Run *run, int64_t head, char *pool, int64_t slot) {
    const int64_t block = run->blocks[slot / batch->block_tokens], offset = slot % batch->block_tokens;
    return pool + block * batch->block_stride +
           bytes(batch->type == KV_FP16, (head * batch->block_tokens + offset) * batch->head_dim);
}

// Keys lie before values in a block, [2, kv_heads, block_tokens, head_dim].
INLINE int64_t to_values(const Batch *batch) {
    return bytes(batch->type == KV_FP16, batch->kv_heads * batch->block_tokens * batch->head_dim);
}

// The span that begins at `slot`, which is its own first or the first that is seen.
static void find_span(const Batch *batch, const Run *run, int64_t head, char *pool, int64_t slot, Span *span) {
    const int64_t end = smaller(run->start + run->count, slot - slot % SPAN + SPAN);
    span->first = slot;
    span->slots = greater(end - slot, 0);
    span->pieces = 0;
    for (Piece *piece = span->of; slot < end; slot += piece->slots, piece++, span->pieces++) {
        const char *keys = slot_at(batch, run, head, pool, slot);
        *piece = (Piece){smaller(batch->block_tokens - slot % batch->block_tokens, end - slot), keys,
                         keys + to_values(batch)};
    }
}

// pool: the layer, in block 0.
INLINE void attend_share(int fp16, const Batch *batch, Share share, Share after, char *pool, Rows q, float scale,
                         float *out) {
    const Run *run = share.run;
    const int64_t head = share.head;
    const int64_t dim = batch->head_dim, group = batch->group, rows = run->count * group;
    float scaled[rows * dim], sums[rows * dim], highest[rows];
    Vec weights[rows];
    int64_t lows[rows], highs[rows];
    for (int64_t r = 0; r < rows; r++) {
        const float *query = q.numbers + (run->row + r / group) * q.stride + (head * group + r % group) * dim;
        for (int64_t d = 0; d < dim; d++) scaled[r * dim + d] = query[d] * scale;
        highest[r] = -INFINITY;
        weights[r] = (Vec){0};
        highs[r] = run->start + r / group + 1;
        lows[r] = greater(highs[r] - batch->window, 0);
    }
    memset(sums, 0, sizeof(sums));
    Span spans[2], *span = spans, *next = spans + 1;
    find_span(batch, run, head, pool, first_slot(batch, run), span);
    while (span->pieces) {
        const int64_t end = span->first + span->slots;
        find_span(batch, run, head, pool, end, next);
        const char *ahead = next->pieces ? next->of[0].keys
                            : after.run ? slot_at(batch, after.run, after.head, pool, first_slot(batch, after.run))
                                        : span->of[0].keys;
        int asking = 1;
        for (int64_t r = 0; r < rows; r += QUERIES) {
            const int64_t queries = smaller(QUERIES, rows - r);
            if (highs[r + queries - 1] <= span->first || lows[r] >= end) continue;
#define ATTEND(queries, asking)                                                                                       \
    attend_span(fp16, queries, asking, span, ahead, scaled + r * dim, dim, lows + r, highs + r, highest + r, weights + r, \
                sums + r * dim)
            switch (2 * queries + asking) {
                case 2: ATTEND(1, 0); break;
                case 3: ATTEND(1, 1); break;
                case 4: ATTEND(2, 0); break;
                case 5: ATTEND(2, 1); break;
                case 6: ATTEND(3, 0); break;
                case 7: ATTEND(3, 1); break;
#ifdef WIDE
                case 8: ATTEND(4, 0); break;
                case 9: ATTEND(4, 1); break;
                case 10: ATTEND(5, 0); break;
                case 11: ATTEND(5, 1); break;
                case 12: ATTEND(6, 0); break;
                case 13: ATTEND(6, 1); break;
#endif
            }
            asking = 0;
        }
        Span *other = span;
        span = next;
        next = other;
    }
    for (int64_t r = 0; r < rows; r++) {
        float *to = out + ((run->row + r / group) * batch->kv_heads * group + head * group + r % group) * dim;
        const float weight = total(weights[r]);
        for (int64_t d = 0; d < dim; d++) to[d] = sums[r * dim + d] / weight;
    }
}

static void attend_fp32(const Batch *batch, Share share, Share after, char *pool, Rows q, float scale, float *out) {
    attend_share(0, batch, share, after, pool, q, scale, out);
}

static void attend_fp16(const Batch *batch, Share share, Share after, char *pool, Rows q, float scale, float *out) {
    attend_share(1, batch, share, after, pool, q, scale, out);
}

static void write_run(const Batch *batch, const Run *run, char *pool, Rows k, Rows v) {
    const int64_t dim = batch->head_dim;
    for (int64_t t = 0; t < run->count; t++)
        for (int64_t head = 0; head < batch->kv_heads; head++) {
            char *slot = slot_at(batch, run, head, pool, run->start + t);
            const float *key = k.numbers + (run->row + t) * k.stride + head * dim;
            const float *value = v.numbers + (run->row + t) * v.stride + head * dim;
            for (int64_t d = 0; d < dim; d += WIDTH) {
                keep(batch->type == KV_FP16, *(const Vec *)(key + d), slot, d);
                keep(batch->type == KV_FP16, *(const Vec *)(value + d), slot + to_values(batch), d);
            }
        }
}

static void leave_run(void) {}

#define RUN_KERNELS {{write_run, attend_fp32, leave_run}, {write_run, attend_fp16, leave_run}}  // by KvType

#endif
