// What attention_tiles.c does with a span, by vectors: for the few rows of a decoding job, for which tiles are nearly
// empty. The numbers are those of the tiles, to the bit: of 32 products a tile sums the even ones and the odd ones apart,
// each from the first to the last, and adds both to what it had.
#ifndef SKIPJOIN_ATTENTION_FEW_H
#define SKIPJOIN_ATTENTION_FEW_H

#include "kv_tiles.h"

#ifdef AMX

enum { FEW = 4 };  // rows at most

typedef struct {  // two dimensions of 16 keys, or two slots of 16 numbers, or sums of products with them
    Vec even, odd;
} Pair;

INLINE Vec from_bytes(const char *x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)x)));
}

// odd: bytes to the second line of int8. In bf16 both lie side by side.
INLINE Pair load_pair(bool int8, const char *x, int64_t odd) {
    if (int8) return (Pair){from_bytes(x), from_bytes(x + odd)};
    const Ints both = *(const Ints *)x;
    return (Pair){(Vec)(both << 16), (Vec)(both & (int32_t)0xffff0000)};
}

// sums[row][side] += numbers[row * stride], [row * stride + 1] times the pairs of a side.
INLINE void add_products(int rows, const float *numbers, int64_t stride, Pair left, Pair right, Pair (*sums)[2]) {
    UNROLLED for (int r = 0; r < rows; r++) {
        const Vec even = spread(numbers[r * stride]), odd = spread(numbers[r * stride + 1]);
        sums[r][0].even = fused(left.even, even, sums[r][0].even);
        sums[r][0].odd = fused(left.odd, odd, sums[r][0].odd);
        sums[r][1].even = fused(right.even, even, sums[r][1].even);
        sums[r][1].odd = fused(right.odd, odd, sums[r][1].odd);
    }
}

// scores[row][slot] = query . key, before the key's scale. queries: [rows][head_dim]. ahead: the span to ask memory for.
INLINE void score_few(bool int8, int rows, const Batch *batch, const float *queries, const Span *span, const Span *ahead,
                      float (*scores)[SPAN]) {
    const int64_t dim = batch->head_dim, line = line_bytes(batch, batch->block_tokens);
    for (int64_t i = 0; i < span->tiles; i += 2) {
        const char *left = span->keys[i].numbers, *right = span->keys[i + 1 < span->tiles ? i + 1 : i].numbers;
        Vec sums[FEW][2] = {0};
        for (int64_t d = 0; d < dim; d += STEP) {
            Pair halves[FEW][2] = {0};
            for (int64_t k = d; k < d + STEP; k += 2) {
                if (ahead->tiles > i) ask_for_pair(ahead->keys[i].numbers, k * line, 2 * line);
                if (ahead->tiles > i + 1) ask_for_pair(ahead->keys[i + 1].numbers, k * line, 2 * line);
                add_products(rows, queries + k, dim, load_pair(int8, left + k * line, line),
                             load_pair(int8, right + k * line, line), halves);
            }
            UNROLLED for (int r = 0; r < rows; r++)
                UNROLLED for (int side = 0; side < 2; side++) sums[r][side] += halves[r][side].even + halves[r][side].odd;
        }
        UNROLLED for (int r = 0; r < rows; r++)
            UNROLLED for (int side = 0; side < 2; side++) *(Vec *)(scores[r] + (i + side) * SLOTS) = sums[r][side];
    }
}

// sums[row] += weights[row] . values. weights: [rows][SPAN].
INLINE void weigh_few(bool int8, int rows, const Batch *batch, const float *weights, const Span *span, const Span *ahead,
                      float *sums) {
    const int64_t dim = batch->head_dim, line = line_bytes(batch, dim), side = int8 ? WIDTH : 2 * WIDTH * sizeof(uint16_t);
    for (int64_t d = 0; d < dim; d += 2 * WIDTH)
        for (int64_t first = 0; first < span->slots; first += STEP) {
            Pair halves[FEW][2] = {0};
            const int64_t end = smaller(first + STEP, span->slots);
            for (int64_t slot = first; slot < end; slot += 2) {
                const int64_t tile = slot / SLOTS, at = slot % SLOTS * line + d / WIDTH * side;
                const char *numbers = span->values[tile].numbers + at;
                Pair left = load_pair(int8, numbers, line), right = load_pair(int8, numbers + side, line);
                if (ahead->tiles > tile) {
                    const char *soon = ahead->values[tile].numbers + at;
                    if (!int8 || d % LINE == 0) ask_for_memory(soon, LINE), ask_for_memory(soon + (int8 ? line : side), LINE);
                }
                if (slot + 1 == end) left.odd = right.odd = (Vec){0};  // what lies there may be no number
                add_products(rows, weights + slot, SPAN, left, right, halves);
            }
            UNROLLED for (int r = 0; r < rows; r++) {
                *(Vec *)(sums + r * dim + d) += halves[r][0].even + halves[r][0].odd;
                *(Vec *)(sums + r * dim + d + WIDTH) += halves[r][1].even + halves[r][1].odd;
            }
        }
}

#endif

#endif
