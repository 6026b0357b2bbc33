// How keys and values lie in a pool that attention_tiles.c reads, and how they get there.
//
// bf16: keys by pairs of dimensions, [head_dim / 2][block_tokens][2], values by pairs of slots,
// [block_tokens / 2][head_dim][2]; tiles of AMX want a matrix so. int8: keys as [head_dim][block_tokens], values as
// [block_tokens][head_dim], and behind those of each head in a block the scales of its slots, [block_tokens] of fp32.
#ifndef SKIPJOIN_KV_TILES_H
#define SKIPJOIN_KV_TILES_H

#include "amx.h"
#include "attention.h"

#ifdef AMX

enum { SLOTS = TALL, TILES = SPAN / SLOTS };  // slots in a tile, tiles in a span
enum { STEP = 32 };                           // dimensions or slots that the unit multiplies at once
enum { LINE = 64 };

typedef struct {  // of 16 slots of a head
    const char *numbers;
    const float *scales;  // of int8
} Part;

typedef struct {  // some slots, the first of which is a multiple of SPAN
    int64_t first, slots, tiles;
    Part keys[TILES], values[TILES];  // of each tile
} Span;

INLINE bool is_int8(const Batch *batch) { return batch->type == KV_INT8_TILES; }

// Bytes from a dimension of keys to the next, or from a slot's value to the next; of bf16 the mean within a pair.
INLINE int64_t line_bytes(const Batch *batch, int64_t numbers) {
    return is_int8(batch) ? numbers : numbers * (int64_t)sizeof(uint16_t);
}

// All keys of a head in the block of a slot, or, after those of all heads, all values.
static char *head_at(const Batch *batch, const Run *run, int64_t head, char *pool, int64_t slot) {
    const int64_t bytes = line_bytes(batch, batch->head_dim) + (is_int8(batch) ? (int64_t)sizeof(float) : 0);
    char *block = pool + run->blocks[slot / batch->block_tokens] * batch->block_stride;
    return block + head * batch->block_tokens * bytes;
}

static float *scales_of(const Batch *batch, char *head) {
    return (float *)(head + batch->block_tokens * batch->head_dim);
}

static void find_span(const Batch *batch, const Run *run, int64_t head, char *pool, int64_t first, Span *span) {
    const int64_t key = is_int8(batch) ? 1 : 2 * sizeof(uint16_t);
    span->first = first;
    span->slots = smaller(greater(run->start + run->count - first, 0), SPAN);
    span->tiles = ratio_up(span->slots, SLOTS);
    for (int64_t i = 0; i < span->tiles; i++) {
        const int64_t slot = first + i * SLOTS, within = slot % batch->block_tokens;
        char *keys = head_at(batch, run, head, pool, slot);
        char *values = head_at(batch, run, batch->kv_heads + head, pool, slot);
        span->keys[i] = (Part){keys + within * key, scales_of(batch, keys) + within};
        span->values[i] = (Part){values + within * line_bytes(batch, batch->head_dim), scales_of(batch, values) + within};
    }
}

// The line of the cache in which a pair of lines of the pool, `bytes` long, begins, if it is the first that does.
INLINE void ask_for_pair(const char *numbers, int64_t at, int64_t bytes) {
    if (at % LINE < bytes) ask_for_memory(numbers + at, LINE);
}

// Scales of a span's slots, and zeros behind its end: what lies there may be no number. ahead: asked for.
INLINE void gather_scales(const Span *span, const Part *parts, const Span *ahead, const Part *ahead_parts, Vec *to) {
    for (int64_t i = 0; i < TILES; i++) {
        const __mmask16 some = (__mmask16)((1u << smaller(greater(span->slots - i * SLOTS, 0), SLOTS)) - 1);
        to[i] = some ? (Vec)_mm512_maskz_loadu_ps(some, parts[i].scales) : (Vec){0};
        if (ahead->tiles > i) ask_for_memory(ahead_parts[i].scales, SLOTS * sizeof(float));
    }
}

// Within what bf16 has, and not infinite: that times nothing would be no number.
INLINE Vec bounded(Vec x) {
    const Vec most = spread(3.3895314e38f), least = -most;
    return chosen(x > most, most, chosen(x < least, least, x));
}

static void write_bf16(const Batch *batch, const float *key, const float *value, int64_t slot, char *keys, char *values) {
    const int64_t dim = batch->head_dim;
    uint16_t *to_keys = (uint16_t *)keys + slot * 2, *to_values = (uint16_t *)values + slot / 2 * dim * 2;
    const __mmask32 places = slot % 2 ? 0xaaaaaaaau : 0x55555555u;
    for (int64_t d = 0; d < dim; d += STEP) {
        uint32_t pairs[WIDTH];
        _mm512_storeu_si512(pairs, bf16_of(bounded(from_floats(key + d)), bounded(from_floats(key + d + WIDTH))));
        for (int64_t i = 0; i < WIDTH; i++)
            memcpy(to_keys + (d / 2 + i) * batch->block_tokens * 2, pairs + i, sizeof(uint32_t));
        for (int64_t i = 0; i < STEP; i += WIDTH) {
            // As bf16 in both halves of every number, of which one is kept.
            const Vec x = bounded(from_floats(value + d + i));
            const __m512i once = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(bf16_of(x, x)));
            _mm512_mask_storeu_epi16(to_values + 2 * (d + i), places, once | _mm512_slli_epi32(once, 16));
        }
    }
}

// Numbers as int8: the largest one becomes 127 or -127, or all are 0 where it is next to nothing. Returns the scale,
// which is no number where one of them is none.
static float round_to_int8(const float *x, int64_t dim, int8_t *to) {
    Vec largest = {0}, none = {0};
    for (int64_t d = 0; d < dim; d += WIDTH) {
        const Vec number = bounded(from_floats(x + d));
        largest = larger(largest, chosen(number < 0.0f, -number, number));
        none += number * 0.0f;
    }
    const float most = _mm512_reduce_max_ps(largest), inverse = most > 1e-35f ? 127.0f / most : 0.0f;
    for (int64_t d = 0; d < dim; d += WIDTH) {
        const __m512i rounded = _mm512_cvtps_epi32(bounded(from_floats(x + d)) * inverse);
        _mm_storeu_si128((__m128i *)(to + d), _mm512_cvtsepi32_epi8(rounded));
    }
    return most / 127.0f + total(none);
}

static void write_int8(const Batch *batch, const float *key, const float *value, int64_t slot, char *keys, char *values) {
    const int64_t dim = batch->head_dim;
    int8_t rounded[dim];
    scales_of(batch, keys)[slot] = round_to_int8(key, dim, rounded);
    for (int64_t d = 0; d < dim; d++) keys[d * batch->block_tokens + slot] = rounded[d];
    scales_of(batch, values)[slot] = round_to_int8(value, dim, (int8_t *)values + slot * dim);
}

static void write_run(const Batch *batch, const Run *run, char *pool, Rows k, Rows v) {
    for (int64_t t = 0; t < run->count; t++)
        for (int64_t head = 0; head < batch->kv_heads; head++) {
            const int64_t slot = run->start + t, within = slot % batch->block_tokens;
            const float *key = k.numbers + (run->row + t) * k.stride + head * batch->head_dim;
            const float *value = v.numbers + (run->row + t) * v.stride + head * batch->head_dim;
            char *keys = head_at(batch, run, head, pool, slot);
            char *values = head_at(batch, run, batch->kv_heads + head, pool, slot);
            if (is_int8(batch)) write_int8(batch, key, value, within, keys, values);
            else write_bf16(batch, key, value, within, keys, values);
        }
}

#endif

#endif
