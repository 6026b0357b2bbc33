// The attention of attention_runs.h by AMX, over a pool of bf16. Queries, and the weights of slots, are rounded to bf16 as
// well; sums are fp32.
//
// Keys lie in the pool by pairs of dimensions, [head_dim / 2][block_tokens][2], values by pairs of slots,
// [block_tokens / 2][head_dim][2]: tiles want a matrix so. Keys go into them straight from the pool; values of a span
// are copied first, since a tile takes those of 32 slots. A row's sums are made in steps whose bounds depend on the
// numbers of the slots alone, so that it has the same bits in any batch here, too.
#include <stdbool.h>

#include "amx.h"
#include "attention.h"

#ifdef AMX

enum { SLOTS = TALL, TILES = SPAN / SLOTS };  // slots in a tile, tiles in a span
enum { STEP = 32 };                           // dimensions or slots that the unit multiplies at once
enum { LINE = 64 };

typedef struct {  // some slots, the first of which is a multiple of SPAN
    int64_t first, slots, tiles;
    const uint16_t *keys[TILES], *values[TILES];  // of each tile
} Span;

typedef struct {  // what a tile of rows, queries of one head, needs and has so far
    uint16_t *queries;          // [rows][head_dim]
    float *sums, *highest;      // [rows][head_dim] of values; [rows] the highest scores
    Vec *totals;                // [rows] sums of weights, by place
    const int64_t *low, *high;  // [rows] the slots that each one sees: low <= slot < high
    int64_t rows;
} Tile;

// 2^x for x <= 0, within 3e-6, and exactly 1 at 0.
INLINE Vec power_of_two(Vec x) {
    const Vec n = _mm512_roundscale_ps(x, 0), r = x - n;
    Vec y = fused(r, spread(0.00958285201f), spread(0.0559064262f));
    y = fused(y, r, spread(0.240240991f));
    y = fused(y, r, spread(0.693124175f));
    return _mm512_scalef_ps(fused(y, r, spread(1.0f)), n);
}

static uint16_t *keys_at(const Batch *batch, const Run *run, int64_t head, char *pool, int64_t slot) {
    uint16_t *block = (uint16_t *)(pool + run->blocks[slot / batch->block_tokens] * batch->block_stride);
    return block + head * batch->block_tokens * batch->head_dim + slot % batch->block_tokens * 2;
}

static uint16_t *values_at(const Batch *batch, const Run *run, int64_t head, char *pool, int64_t slot) {
    uint16_t *block = (uint16_t *)(pool + run->blocks[slot / batch->block_tokens] * batch->block_stride);
    return block + (batch->kv_heads + head) * batch->block_tokens * batch->head_dim +
           slot % batch->block_tokens / 2 * batch->head_dim * 2;
}

static void find_span(const Batch *batch, const Run *run, int64_t head, char *pool, int64_t first, Span *span) {
    span->first = first;
    span->slots = smaller(greater(run->start + run->count - first, 0), SPAN);
    span->tiles = ratio_up(span->slots, SLOTS);
    for (int64_t i = 0; i < span->tiles; i++) {
        span->keys[i] = keys_at(batch, run, head, pool, first + i * SLOTS);
        span->values[i] = values_at(batch, run, head, pool, first + i * SLOTS);
    }
}

INLINE void ask_for_lines(const uint16_t *first, int64_t count, int64_t stride) {
    for (int64_t i = 0; i < count; i++) __builtin_prefetch(first + i * stride, 0, 2);
}

#define ROWS_TILE TILE_0
#define COLUMNS_0 TILE_1
#define COLUMNS_1 TILE_2
#define COLUMNS_2 TILE_3
#define SUMS_0 TILE_4
#define SUMS_1 TILE_5
#define SUMS_2 TILE_6
#define SUMS_3 TILE_7

// scores[row][slot] = query . key. ahead: the span to ask memory for meanwhile, or none.
static void score(const Batch *batch, const Tile *tile, const Span *span, const Span *ahead, float (*scores)[SPAN]) {
    const int64_t dim = batch->head_dim, pairs = batch->block_tokens * 2, stride = pairs * sizeof(uint16_t);
    finish_stores();
    _tile_zero(SUMS_0);
    _tile_zero(SUMS_1);
    _tile_zero(SUMS_2);
    _tile_zero(SUMS_3);
    for (int64_t d = 0; d < dim; d += STEP) {
        const int64_t at = d / 2 * pairs;
        _tile_loadd(ROWS_TILE, tile->queries + d, dim * sizeof(uint16_t));
#define SCORE(i, columns, sums)                                                             \
    if (span->tiles > i) {                                                                  \
        if (ahead && ahead->tiles > i) ask_for_lines(ahead->keys[i] + at, STEP / 2, pairs); \
        _tile_loadd(columns, span->keys[i] + at, stride);                                   \
        _tile_dpbf16ps(sums, ROWS_TILE, columns);                                           \
    }
        SCORE(0, COLUMNS_0, SUMS_0)
        SCORE(1, COLUMNS_1, SUMS_1)
        SCORE(2, COLUMNS_2, SUMS_2)
        SCORE(3, COLUMNS_0, SUMS_3)
    }
    _tile_stored(SUMS_0, scores[0], SPAN * sizeof(float));
    _tile_stored(SUMS_1, scores[0] + SLOTS, SPAN * sizeof(float));
    _tile_stored(SUMS_2, scores[0] + 2 * SLOTS, SPAN * sizeof(float));
    _tile_stored(SUMS_3, scores[0] + 3 * SLOTS, SPAN * sizeof(float));
}

// x at places that a query sees, low <= first + place < high, else -inf.
INLINE Vec seen(Vec x, int64_t first, int64_t low, int64_t high) {
    const __mmask16 before = (__mmask16)((1u << smaller(greater(high - first, 0), SLOTS)) - 1);
    const __mmask16 after = (__mmask16)(~0u << smaller(greater(low - first, 0), SLOTS));
    return _mm512_mask_mov_ps(spread(-INFINITY), before & after, x);
}

// A query's scores become weights relative to the highest score so far, and nothing where it does not see the slot;
// what it got so far is made relative to it, too. low, high: from the span's first slot on.
static void soften(const float *scores, int64_t low, int64_t high, float *highest, Vec *total, float *sums, int64_t dim,
                   uint16_t *weights) {
    Vec parts[TILES], top = spread(-INFINITY);
    UNROLLED for (int i = 0; i < TILES; i++) {
        parts[i] = from_floats(scores + i * SLOTS);
        if (low > i * SLOTS || high < (i + 1) * SLOTS) parts[i] = seen(parts[i], i * SLOTS, low, high);
        top = larger(top, parts[i]);
    }
    const float before = *highest, now = fmaxf(before, _mm512_reduce_max_ps(top));
    top = spread(now == -INFINITY ? 0.0f : now);
    Vec all = {0};
    UNROLLED for (int i = 0; i < TILES; i++) {
        parts[i] = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(parts[i], spread(-INFINITY), _CMP_NEQ_UQ),
                                       power_of_two(parts[i] - top));
        all += parts[i];
    }
    UNROLLED for (int i = 0; i < TILES; i += 2)
        _mm512_storeu_si512(weights + i * SLOTS, bf16_of(parts[i], parts[i + 1]));
    if (now != before) {
        const Vec factor = before == -INFINITY ? (Vec){0} : power_of_two(spread(before) - top);
        *highest = now;
        *total *= factor;
        for (int64_t d = 0; d < dim; d += WIDTH) *(Vec *)(sums + d) *= factor;
    }
    *total += all;
}

// Values of a span side by side, [SPAN / 2][head_dim][2], zeros behind its end: what lies there may be no number.
static void gather_values(const Span *span, const Span *ahead, int64_t dim, uint16_t *to) {
    const int64_t pairs = span->slots / 2, line = 2 * dim;
    for (int64_t p = 0; p < SPAN / 2; p++, to += line) {
        const int64_t tile = p / (SLOTS / 2), within = p % (SLOTS / 2) * line;
        if (ahead->tiles > tile)
            for (int64_t d = 0; d < line; d += LINE / 2) __builtin_prefetch(ahead->values[tile] + within + d, 0, 2);
        const __mmask32 some = p < pairs ? ~0u : p == pairs && span->slots % 2 ? 0x55555555u : 0;
        for (int64_t d = 0; d < line; d += 2 * WIDTH)
            _mm512_storeu_si512(to + d, some ? _mm512_maskz_loadu_epi16(some, span->values[tile] + within + d)
                                             : _mm512_setzero_si512());
    }
}

// sums[row] += weights[row] . values. values: as gather_values makes them.
static void weigh(const Tile *tile, const Span *span, uint16_t (*weights)[SPAN], const uint16_t *values, int64_t dim) {
    const int64_t steps = ratio_up(span->slots, STEP), stride = dim * sizeof(float), numbers = STEP * dim;
    finish_stores();
    for (int64_t d = 0; d < dim; d += 2 * WIDTH) {
        _tile_loadd(SUMS_0, tile->sums + d, stride);
        _tile_loadd(SUMS_1, tile->sums + d + WIDTH, stride);
        for (int64_t s = 0; s < steps; s++) {
            _tile_loadd(ROWS_TILE, weights[0] + s * STEP, SPAN * sizeof(uint16_t));
            _tile_loadd(COLUMNS_0, values + s * numbers + 2 * d, stride);
            _tile_dpbf16ps(SUMS_0, ROWS_TILE, COLUMNS_0);
            _tile_loadd(COLUMNS_1, values + s * numbers + 2 * (d + WIDTH), stride);
            _tile_dpbf16ps(SUMS_1, ROWS_TILE, COLUMNS_1);
        }
        _tile_stored(SUMS_0, tile->sums + d, stride);
        _tile_stored(SUMS_1, tile->sums + d + WIDTH, stride);
    }
}

static void attend_span(const Batch *batch, const Tile *tile, const Span *span, const Span *ahead,
                        const uint16_t *values) {
    float scores[TALL][SPAN] __attribute__((aligned(64)));
    uint16_t weights[TALL][SPAN] __attribute__((aligned(64)));
    const int64_t dim = batch->head_dim;
    configure_amx(tile->rows, 1 << COLUMNS_0 | 1 << COLUMNS_1 | 1 << COLUMNS_2);
    score(batch, tile, span, ahead, scores);
    for (int64_t r = 0; r < tile->rows; r++)
        soften(scores[r], tile->low[r] - span->first, tile->high[r] - span->first, tile->highest + r,
               tile->totals + r, tile->sums + r * dim, dim, weights[r]);
    weigh(tile, span, weights, values, dim);
}

static void attend(const Batch *batch, Share share, Share after, char *pool, Rows q, float scale, float *out) {
    const Run *run = share.run;
    const int64_t head = share.head;
    const int64_t dim = batch->head_dim, group = batch->group, rows = run->count * group;
    uint16_t queries[rows * dim] __attribute__((aligned(64))), values[SPAN * dim] __attribute__((aligned(64)));
    float sums[rows * dim] __attribute__((aligned(64))), highest[rows];
    Vec totals[rows];
    int64_t lows[rows], highs[rows];
    const Vec factor = spread(scale * 1.44269504f);  // log2(e): for powers of two
    for (int64_t r = 0; r < rows; r++) {
        const float *query = q.numbers + (run->row + r / group) * q.stride + (head * group + r % group) * dim;
        for (int64_t d = 0; d < dim; d += STEP)
            _mm512_storeu_si512(queries + r * dim + d,
                                bf16_of(from_floats(query + d) * factor, from_floats(query + d + WIDTH) * factor));
        highest[r] = -INFINITY;
        totals[r] = (Vec){0};
        highs[r] = run->start + r / group + 1;
        lows[r] = greater(highs[r] - batch->window, 0);
    }
    memset(sums, 0, sizeof(sums));
    Span span, next, ahead;
    find_span(batch, run, head, pool, first_slot(batch, run), &span);
    for (; span.tiles; span = next) {
        find_span(batch, run, head, pool, span.first + SPAN, &next);
        if (next.tiles || !after.run) ahead = next;
        else find_span(batch, after.run, after.head, pool, first_slot(batch, after.run), &ahead);
        gather_values(&span, &ahead, dim, values);
        for (int64_t r = 0; r < rows; r += TALL) {
            const Tile tile = {queries + r * dim, sums + r * dim, highest + r, totals + r, lows + r, highs + r,
                               smaller(TALL, rows - r)};
            attend_span(batch, &tile, &span, r == 0 ? &ahead : NULL, values);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        float *to = out + ((run->row + r / group) * batch->kv_heads * group + head * group + r % group) * dim;
        const Vec weight = spread(1.0f / total(totals[r]));
        for (int64_t d = 0; d < dim; d += WIDTH) *(Vec *)(to + d) = from_floats(sums + r * dim + d) * weight;
    }
}

// Two vectors of fp32 as bf16, which has no infinity here: that times nothing would be no number.
INLINE __m512i bounded(Vec first, Vec second) {
    const Vec most = spread(3.3895314e38f), least = -most;
    first = chosen(first > most, most, chosen(first < least, least, first));
    second = chosen(second > most, most, chosen(second < least, least, second));
    return bf16_of(first, second);
}

static void write_run(const Batch *batch, const Run *run, char *pool, Rows k, Rows v) {
    const int64_t dim = batch->head_dim;
    for (int64_t t = 0; t < run->count; t++)
        for (int64_t head = 0; head < batch->kv_heads; head++) {
            const int64_t slot = run->start + t;
            const float *key = k.numbers + (run->row + t) * k.stride + head * dim;
            const float *value = v.numbers + (run->row + t) * v.stride + head * dim;
            uint16_t *keys = keys_at(batch, run, head, pool, slot);
            uint16_t *values = values_at(batch, run, head, pool, slot);
            const __mmask32 places = slot % 2 ? 0xaaaaaaaau : 0x55555555u;
            for (int64_t d = 0; d < dim; d += STEP) {
                uint32_t pairs[WIDTH];
                _mm512_storeu_si512(pairs, bounded(from_floats(key + d), from_floats(key + d + WIDTH)));
                for (int64_t i = 0; i < WIDTH; i++)
                    memcpy(keys + (d / 2 + i) * batch->block_tokens * 2, pairs + i, sizeof(uint32_t));
                for (int64_t i = 0; i < STEP; i += WIDTH) {
                    // As bf16 in both halves of every number, of which one is kept.
                    const Vec x = from_floats(value + d + i);
                    const __m512i once = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(bounded(x, x)));
                    _mm512_mask_storeu_epi16(values + 2 * (d + i), places, once | _mm512_slli_epi32(once, 16));
                }
            }
        }
}

const RunKernel tile_runs = {write_run, attend, leave_amx};

bool attends_tiles(int64_t head_dim, int64_t block_tokens) {
    return has_amx && head_dim % STEP == 0 && block_tokens % SLOTS == 0;
}

#else

const RunKernel tile_runs;
bool attends_tiles(int64_t head_dim, int64_t block_tokens) { return false; }

#endif
