// Sums of products of rows with a panel of bf16, by AMX, which adds them up in fp32 within its tiles. It multiplies bf16
// with bf16: that is what rows are rounded to. A row's sums do not depend on the rows beside it, but they are not those
// of tiles.h to the bit: a matrix is multiplied in this way for any number of rows, or for none.
#ifndef SKIPJOIN_AMX_BF16_H
#define SKIPJOIN_AMX_BF16_H

#include "amx.h"
#include "tiles.h"

enum { BLOCK = 12 };       // steps that many rows meet in turn: their 24 KiB of a panel stay in a core's first cache
enum { STEPS_AHEAD = 8 };  // for which memory is asked

#ifdef AMX

_Static_assert(STEP * sizeof(uint16_t) == TILE_BYTES && 2 * TALL == PANEL, "a pair of tiles takes a step");

// Registers: two tiles of rows, the left and right columns of a panel, and sums.
#define UPPER TILE_0
#define LOWER TILE_1
#define LEFT TILE_2
#define RIGHT TILE_3
#define UPPER_LEFT TILE_4
#define UPPER_RIGHT TILE_5
#define LOWER_LEFT TILE_6
#define LOWER_RIGHT TILE_7

// A row's fp32 numbers as bf16, zeros at the end.
static void round_to_bf16(const Linear *l, const float *x, uint16_t *to) {
    for (int64_t i = 0; i < steps_of(l); i++, to += TALL * STEP) {
        float step[STEP] = {0};
        memcpy(step, x + i * STEP, greater(0, smaller(STEP, l->ins - i * STEP)) * sizeof(float));
        _mm512_storeu_si512(to, bf16_of(from_floats(step), from_floats(step + WIDTH)));
    }
}

// Add the products of a step to the sums of a tile of rows.
#define ADD_STEP(x, rows, sums_left, sums_right) \
    _tile_loadd(rows, x, TILE_BYTES);            \
    _tile_dpbf16ps(sums_left, rows, LEFT);       \
    _tile_dpbf16ps(sums_right, rows, RIGHT);

// Add the products of a block to the sums of one or two tiles of rows; the first block begins them. asks: for the memory
// of what comes later.
INLINE void add_block(bool asks, int tiles, TilePairs b, const uint16_t *x, Vec *sums) {
    const int64_t tile = TALL * STEP;
    if (b.first == 0) {
        _tile_zero(UPPER_LEFT);
        _tile_zero(UPPER_RIGHT);
        _tile_zero(LOWER_LEFT);
        _tile_zero(LOWER_RIGHT);
    } else {
        _tile_loadd(UPPER_LEFT, sums, 2 * TILE_BYTES);
        _tile_loadd(UPPER_RIGHT, sums + 1, 2 * TILE_BYTES);
        if (tiles == 2) {
            _tile_loadd(LOWER_LEFT, sums + 2 * TALL, 2 * TILE_BYTES);
            _tile_loadd(LOWER_RIGHT, sums + 2 * TALL + 1, 2 * TILE_BYTES);
        }
    }
    for (int64_t s = b.first; s < b.first + b.count; s++) {
        if (asks) ask_ahead(b, s, STEPS_AHEAD);
        _tile_loadd(LEFT, b.matrix + s * PAIR_BYTES, 2 * TILE_BYTES);
        _tile_loadd(RIGHT, b.matrix + s * PAIR_BYTES + TILE_BYTES, 2 * TILE_BYTES);
        ADD_STEP(x + s * tile, UPPER, UPPER_LEFT, UPPER_RIGHT)
        if (tiles == 2) {
            ADD_STEP(x + (b.all + s) * tile, LOWER, LOWER_LEFT, LOWER_RIGHT)
        }
    }
    _tile_stored(UPPER_LEFT, sums, 2 * TILE_BYTES);
    _tile_stored(UPPER_RIGHT, sums + 1, 2 * TILE_BYTES);
    if (tiles == 2) {
        _tile_stored(LOWER_LEFT, sums + 2 * TALL, 2 * TILE_BYTES);
        _tile_stored(LOWER_RIGHT, sums + 2 * TALL + 1, 2 * TILE_BYTES);
    }
}

// sums[rows][2] = the rows times a panel. x: as Input says. Memory of both is there for whole tiles. next: the panel
// that is likely to follow, for which memory is asked meanwhile.
static void multiply_bf16_by_amx(const Linear *l, Panel panel, int64_t rows, const uint16_t *x, const void *next,
                                 Vec *sums) {
    TilePairs b = {panel.matrix, next, 0, 0, steps_of(l)};
    configure_amx(smaller(rows, TALL), 1 << LEFT | 1 << RIGHT);
    for (; b.first < b.all; b.first += b.count) {
        b.count = smaller(BLOCK, b.all - b.first);
        if (rows <= TALL) add_block(true, 1, b, x, sums);
        else add_block(true, 2, b, x, sums);
        int64_t r = 2 * TALL;
        for (; r + TALL < rows; r += 2 * TALL) add_block(false, 2, b, x + r * b.all * STEP, sums + 2 * r);
        if (r < rows) add_block(false, 1, b, x + r * b.all * STEP, sums + 2 * r);
    }
}

#else

static void round_to_bf16(const Linear *l, const float *x, uint16_t *to) {}
static void multiply_bf16_by_amx(const Linear *l, Panel panel, int64_t rows, const uint16_t *x, const void *next,
                                 Vec *sums) {}

#endif

#endif
