// Sums of products of rows with a panel of bf16, by AMX, which adds them up in fp32 within its tiles. To meet bf16 a
// row's numbers come as two of bf16, a high and a low part: 16 bits of them. A row's sums do not depend on the rows
// beside it, but they are not those of tiles.h to the bit: a matrix is multiplied in this way for any number of rows,
// or for none.
#ifndef SKIPJOIN_AMX_BF16_H
#define SKIPJOIN_AMX_BF16_H

#include "amx.h"
#include "tiles.h"

enum { BLOCK = 12 };       // steps that many rows meet in turn: their 24 KiB of a panel stay in a core's first cache
enum { STEPS_AHEAD = 4 };  // for which memory is asked

#ifdef AMX

_Static_assert(STEP * sizeof(uint16_t) == TILE_BYTES, "a tile takes a step");

#define UPPER_LEFT SUMS_0
#define UPPER_RIGHT SUMS_1
#define LOWER_LEFT SUMS_2
#define LOWER_RIGHT SUMS_3

INLINE __m512i bf16_of(Vec left, Vec right) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left); }

// A row's fp32 numbers as parts, zeros at the end.
static void split_row(const Linear *l, const float *x, Parts *parts) {
    for (int64_t i = 0; i < steps_of(l); i++, parts++) {
        float step[STEP] = {0};
        memcpy(step, x + i * STEP, greater(0, smaller(STEP, l->ins - i * STEP)) * sizeof(float));
        const Vec left = from_floats(step), right = from_floats(step + WIDTH);
        _mm512_storeu_si512(parts->high, bf16_of(left, right));
        const Vec low_left = left - from_bf16(parts->high), low_right = right - from_bf16(parts->high + WIDTH);
        _mm512_storeu_si512(parts->low, bf16_of(low_left, low_right));
    }
}

typedef struct {  // steps of a panel
    const uint16_t *matrix, *next;  // the panel's, and that of the one that is likely to follow
    int64_t first, steps, all;
} Block;

// Add the products of a step to the sums of some rows, `stride` bytes apart.
#define ADD_STEP(x, stride, sums_left, sums_right) \
    _tile_loadd(HIGH, (x)->high, stride);          \
    _tile_dpbf16ps(sums_left, HIGH, LEFT);         \
    _tile_dpbf16ps(sums_right, HIGH, RIGHT);       \
    _tile_loadd(LOW, (x)->low, stride);            \
    _tile_dpbf16ps(sums_left, LOW, LEFT);          \
    _tile_dpbf16ps(sums_right, LOW, RIGHT);

// Add the products of a block to the sums of one or two tiles of rows. asks: for the memory of what comes later.
INLINE void add_block(bool asks, int tiles, Block b, const Parts *x, Vec *sums) {
    const int64_t stride = b.all * sizeof(Parts), numbers = STEP * PANEL;
    _tile_loadd(UPPER_LEFT, sums, 2 * TILE_BYTES);
    _tile_loadd(UPPER_RIGHT, sums + 1, 2 * TILE_BYTES);
    if (tiles == 2) {
        _tile_loadd(LOWER_LEFT, sums + 2 * TALL, 2 * TILE_BYTES);
        _tile_loadd(LOWER_RIGHT, sums + 2 * TALL + 1, 2 * TILE_BYTES);
    }
    for (int64_t s = b.first; s < b.first + b.steps; s++) {
        const int64_t soon = s + STEPS_AHEAD;
        const uint16_t *ahead = soon < b.all ? b.matrix + soon * numbers : b.next + (soon - b.all) * numbers;
        if (asks) ask_for_memory(ahead, numbers * sizeof(uint16_t));
        _tile_loadd(LEFT, b.matrix + s * numbers, 2 * TILE_BYTES);
        _tile_loadd(RIGHT, b.matrix + s * numbers + PANEL, 2 * TILE_BYTES);
        ADD_STEP(x + s, stride, UPPER_LEFT, UPPER_RIGHT)
        if (tiles == 2) {
            const Parts *lower = x + TALL * b.all + s;
            ADD_STEP(lower, stride, LOWER_LEFT, LOWER_RIGHT)
        }
    }
    _tile_stored(UPPER_LEFT, sums, 2 * TILE_BYTES);
    _tile_stored(UPPER_RIGHT, sums + 1, 2 * TILE_BYTES);
    if (tiles == 2) {
        _tile_stored(LOWER_LEFT, sums + 2 * TALL, 2 * TILE_BYTES);
        _tile_stored(LOWER_RIGHT, sums + 2 * TALL + 1, 2 * TILE_BYTES);
    }
}

// sums[rows][2] = the rows times a panel. x: [rows][steps]. Memory of both is there for whole tiles. next: the panel
// that is likely to follow, for which memory is asked meanwhile.
static void multiply_bf16_by_amx(const Linear *l, Panel panel, int64_t rows, const Parts *x, const void *next,
                                 Vec *sums) {
    Block b = {panel.matrix, next, 0, 0, steps_of(l)};
    configure_amx(smaller(rows, TALL));
    memset(sums, 0, rows * 2 * sizeof(Vec));
    for (; b.first < b.all; b.first += b.steps) {
        b.steps = smaller(BLOCK, b.all - b.first);
        if (rows <= TALL) add_block(true, 1, b, x, sums);
        else add_block(true, 2, b, x, sums);
        int64_t r = 2 * TALL;
        for (; r + TALL < rows; r += 2 * TALL) add_block(false, 2, b, x + r * b.all, sums + 2 * r);
        if (r < rows) add_block(false, 1, b, x + r * b.all, sums + 2 * r);
    }
}

#else

static void split_row(const Linear *l, const float *x, Parts *parts) {}
static void multiply_bf16_by_amx(const Linear *l, Panel panel, int64_t rows, const Parts *x, const void *next,
                                 Vec *sums) {}

#endif

#endif
