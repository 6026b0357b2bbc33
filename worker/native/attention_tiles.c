// The attention of attention_runs.h by AMX, over a pool of bf16 or int8, which lies as kv_tiles.h says. Queries, and the
// weights of slots, are rounded to bf16; sums are fp32.
//
// Keys of bf16 go into tiles straight from the pool; values of a span are copied first, since a tile takes those of 32
// slots. int8 becomes bf16 span by span, without an error, and scores and weights are multiplied by the scales of their
// slots. A row's sums are made in steps whose bounds depend on the numbers of the slots alone, so that it has the same
// bits in any batch here, too: also where there are so few rows that attention_few.h has them.
#include <stdbool.h>

#include "attention_few.h"

#ifdef AMX

typedef struct {  // what of a span tiles meet
    const char *keys[TILES];  // [head_dim / 2][SLOTS][2] of bf16, whose lines lie key_stride bytes apart
    int64_t key_stride;
    const uint16_t *values;   // [SPAN / 2][head_dim][2]
} Columns;

typedef struct {  // of a span's slots, in int8
    Vec keys[TILES], values[TILES];
} Scales;

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

#define ROWS_TILE TILE_0
#define COLUMNS_0 TILE_1
#define COLUMNS_1 TILE_2
#define COLUMNS_2 TILE_3
#define SUMS_0 TILE_4
#define SUMS_1 TILE_5
#define SUMS_2 TILE_6
#define SUMS_3 TILE_7

// scores[row][slot] = query . key, before the key's scale. ahead: the span whose keys to ask memory for, or none.
static void score(const Tile *tile, const Span *span, const Columns *columns, const Span *ahead, int64_t dim,
                  float (*scores)[SPAN]) {
    finish_stores();
    _tile_zero(SUMS_0);
    _tile_zero(SUMS_1);
    _tile_zero(SUMS_2);
    _tile_zero(SUMS_3);
    for (int64_t d = 0; d < dim; d += STEP) {
        const int64_t at = d / 2 * columns->key_stride;
        _tile_loadd(ROWS_TILE, tile->queries + d, dim * sizeof(uint16_t));
#define SCORE(i, columns_tile, sums)                                               \
    if (span->tiles > i) {                                                         \
        for (int64_t p = 0; ahead && ahead->tiles > i && p < STEP / 2; p++)        \
            ask_for_memory(ahead->keys[i].numbers + at + p * columns->key_stride, LINE); \
        _tile_loadd(columns_tile, columns->keys[i] + at, columns->key_stride);     \
        _tile_dpbf16ps(sums, ROWS_TILE, columns_tile);                             \
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
// what it got so far is made relative to it, too. low, high: from the span's first slot on. scales: or none.
static void soften(const float *scores, const Scales *scales, int64_t low, int64_t high, float *highest, Vec *total,
                   float *sums, int64_t dim, uint16_t *weights) {
    Vec parts[TILES], top = spread(-INFINITY);
    UNROLLED for (int i = 0; i < TILES; i++) {
        parts[i] = from_floats(scores + i * SLOTS);
        if (scales) parts[i] *= scales->keys[i];
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
        if (scales) parts[i] *= scales->values[i];
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

// Values of a span of bf16 side by side, [SPAN / 2][head_dim][2], zeros behind its end: what lies there may be no number.
static void gather_values(const Span *span, const Span *ahead, int64_t dim, uint16_t *to) {
    const int64_t pairs = span->slots / 2, line = 2 * dim;
    for (int64_t p = 0; p < SPAN / 2; p++, to += line) {
        const int64_t tile = p / (SLOTS / 2), within = p % (SLOTS / 2) * line;
        const uint16_t *from = (const uint16_t *)span->values[tile].numbers + within;
        if (ahead->tiles > tile)
            ask_for_memory(ahead->values[tile].numbers + within * sizeof(uint16_t), line * sizeof(uint16_t));
        const __mmask32 some = p < pairs ? ~0u : p == pairs && span->slots % 2 ? 0x55555555u : 0;
        for (int64_t d = 0; d < line; d += 2 * WIDTH)
            _mm512_storeu_si512(to + d, some ? _mm512_maskz_loadu_epi16(some, from + d) : _mm512_setzero_si512());
    }
}

// 16 numbers of int8 and 16 others by pairs, as bf16, which has all of them.
INLINE __m512i pairs_of_bytes(const char *even, const char *odd) {
    const __m128i first = _mm_loadu_si128((const __m128i *)even), second = _mm_loadu_si128((const __m128i *)odd);
    const __m512i low = _mm512_cvtepi8_epi32(_mm_unpacklo_epi8(first, second));
    const __m512i high = _mm512_cvtepi8_epi32(_mm_unpackhi_epi8(first, second));
    return bf16_of(_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high));
}

// Keys of a span of int8 side by side, [head_dim / 2][SPAN][2].
static void unpack_keys(const Batch *batch, const Span *span, const Span *ahead, uint16_t *to) {
    const int64_t line = batch->block_tokens;
    for (int64_t i = 0; i < span->tiles; i++)
        for (int64_t d = 0; d < batch->head_dim; d += 2) {
            const char *keys = span->keys[i].numbers + d * line;
            if (ahead->tiles > i) ask_for_pair(ahead->keys[i].numbers, d * line, 2 * line);
            _mm512_storeu_si512(to + d * SPAN + i * SLOTS * 2, pairs_of_bytes(keys, keys + line));
        }
}

// Values of a span of int8 side by side, as gather_values does it. What lies behind the end is a number here, and
// counts for nothing.
static void unpack_values(const Span *span, const Span *ahead, int64_t dim, uint16_t *to) {
    memset(to + ratio_up(span->slots, 2) * 2 * dim, 0, (SPAN - ratio_up(span->slots, 2) * 2) * dim * sizeof(uint16_t));
    for (int64_t slot = 0; slot < span->slots; slot += 2, to += 2 * dim) {
        const int64_t tile = slot / SLOTS, at = slot % SLOTS * dim;
        const char *values = span->values[tile].numbers + at;
        if (ahead->tiles > tile) ask_for_memory(ahead->values[tile].numbers + at, 2 * dim);
        for (int64_t d = 0; d < dim; d += WIDTH)
            _mm512_storeu_si512(to + 2 * d, pairs_of_bytes(values + d, values + dim + d));
    }
}

// What tiles are to meet of a span. keys, values: memory for SPAN * head_dim numbers each.
static void prepare_columns(const Batch *batch, const Span *span, const Span *ahead, uint16_t *keys, uint16_t *values,
                            Columns *to) {
    if (is_int8(batch)) {
        unpack_keys(batch, span, ahead, keys);
        unpack_values(span, ahead, batch->head_dim, values);
    } else {
        gather_values(span, ahead, batch->head_dim, values);
    }
    to->values = values;
    to->key_stride = (is_int8(batch) ? SPAN : batch->block_tokens) * 2 * sizeof(uint16_t);
    for (int64_t i = 0; i < span->tiles; i++)
        to->keys[i] = is_int8(batch) ? (const char *)(keys + i * SLOTS * 2) : span->keys[i].numbers;
}

// sums[row] += weights[row] . values. values: as of Columns.
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

static void attend_span(const Batch *batch, const Tile *tile, const Span *span, const Columns *columns,
                        const Scales *scales, const Span *ahead) {
    float scores[TALL][SPAN] __attribute__((aligned(64)));
    uint16_t weights[TALL][SPAN] __attribute__((aligned(64)));
    const int64_t dim = batch->head_dim;
    configure_amx(tile->rows, 1 << COLUMNS_0 | 1 << COLUMNS_1 | 1 << COLUMNS_2);
    score(tile, span, columns, ahead, dim, scores);
    for (int64_t r = 0; r < tile->rows; r++)
        soften(scores[r], scales, tile->low[r] - span->first, tile->high[r] - span->first, tile->highest + r,
               tile->totals + r, tile->sums + r * dim, dim, weights[r]);
    weigh(tile, span, weights, columns->values, dim);
}

// The same for few rows. queries: those of the tile, as fp32.
INLINE void attend_few(bool int8, int rows, const Batch *batch, const Tile *tile, const Span *span, const Scales *scales,
                       const Span *ahead, const float *queries) {
    float scores[FEW][SPAN] __attribute__((aligned(64))) = {0}, weights[FEW][SPAN] __attribute__((aligned(64)));
    const int64_t dim = batch->head_dim;
    score_few(int8, rows, batch, queries, span, ahead, scores);
    for (int r = 0; r < rows; r++) {
        uint16_t rounded[SPAN];
        soften(scores[r], scales, tile->low[r] - span->first, tile->high[r] - span->first, tile->highest + r,
               tile->totals + r, tile->sums + r * dim, dim, rounded);
        UNROLLED for (int i = 0; i < SPAN; i += WIDTH) *(Vec *)(weights[r] + i) = from_bf16(rounded + i);
    }
    weigh_few(int8, rows, batch, weights[0], span, ahead, tile->sums);
}

static void attend_span_few(const Batch *batch, const Tile *tile, const Span *span, const Scales *scales,
                            const Span *ahead, const float *queries) {
#define FEW_ROWS(rows)                                                                   \
    case rows:                                                                           \
        if (scales) attend_few(true, rows, batch, tile, span, scales, ahead, queries);   \
        else attend_few(false, rows, batch, tile, span, NULL, ahead, queries);           \
        break;
    switch (tile->rows) {
        FEW_ROWS(1)
        FEW_ROWS(2)
        FEW_ROWS(3)
        FEW_ROWS(FEW)
    }
}

static void attend(const Batch *batch, Share share, Share after, char *pool, Rows q, float scale, float *out) {
    const Run *run = share.run;
    const int64_t head = share.head;
    const int64_t dim = batch->head_dim, group = batch->group, rows = run->count * group;
    const bool int8 = is_int8(batch), few = rows <= FEW;
    uint16_t queries[rows * dim] __attribute__((aligned(64)));
    uint16_t keys[SPAN * dim] __attribute__((aligned(64))), values[SPAN * dim] __attribute__((aligned(64)));
    float sums[rows * dim] __attribute__((aligned(64))), exact[FEW * dim] __attribute__((aligned(64))), highest[rows];
    Vec totals[rows];
    int64_t lows[rows], highs[rows];
    const unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8040);  // numbers too small for fp32's exponent are zero, as in tiles
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
    for (int64_t i = 0; i < rows * dim && few; i += WIDTH) *(Vec *)(exact + i) = from_bf16(queries + i);
    memset(sums, 0, sizeof(sums));
    Span span, next, ahead;
    Columns columns;
    Scales scales;
    find_span(batch, run, head, pool, first_slot(batch, run), &span);
    for (; span.tiles; span = next) {
        find_span(batch, run, head, pool, span.first + SPAN, &next);
        if (next.tiles || !after.run) ahead = next;
        else find_span(batch, after.run, after.head, pool, first_slot(batch, after.run), &ahead);
        if (int8) {
            gather_scales(&span, span.keys, &ahead, ahead.keys, scales.keys);
            gather_scales(&span, span.values, &ahead, ahead.values, scales.values);
        }
        if (!few) prepare_columns(batch, &span, &ahead, keys, values, &columns);
        for (int64_t r = 0; r < rows; r += TALL) {
            const Tile tile = {queries + r * dim, sums + r * dim, highest + r, totals + r, lows + r, highs + r,
                               smaller(TALL, rows - r)};
            if (few) attend_span_few(batch, &tile, &span, int8 ? &scales : NULL, &ahead, exact);
            else attend_span(batch, &tile, &span, &columns, int8 ? &scales : NULL, r == 0 && !int8 ? &ahead : NULL);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        float *to = out + ((run->row + r / group) * batch->kv_heads * group + head * group + r % group) * dim;
        const Vec weight = spread(1.0f / total(totals[r]));
        for (int64_t d = 0; d < dim; d += WIDTH) *(Vec *)(to + d) = from_floats(sums + r * dim + d) * weight;
    }
    _mm_setcsr(control);
}

const RunKernel tile_runs = {write_run, attend, leave_amx};

bool attends_tiles(int64_t head_dim, int64_t block_tokens) {
    return has_amx && head_dim % STEP == 0 && block_tokens % SLOTS == 0;
}

#else

const RunKernel tile_runs;
bool attends_tiles(int64_t head_dim, int64_t block_tokens) { return false; }

#endif
