// Sums of products of many rows with a panel of quads, by AMX. The numbers are those of tiles.h, to the bit.
#ifndef SKIPJOIN_AMX_INT8_H
#define SKIPJOIN_AMX_INT8_H

#include "amx.h"
#include "tiles.h"

enum { AMX_ROWS = 4 };      // from which on the unit is faster
enum { SLICES_AHEAD = 6 };  // for which memory is asked

typedef struct {  // a tile's rows' numbers of a slice, as those of Halves
    int8_t high[TALL][SLICE], low[TALL][SLICE];
} TileHalves;

#ifdef AMX

_Static_assert(SLICE == TILE_BYTES && 2 * TALL == PANEL, "a pair of tiles takes a slice");

// Registers: the halves of rows, the left and right columns of a panel, and sums.
#define HIGH TILE_0
#define LOW TILE_1
#define LEFT TILE_2
#define RIGHT TILE_3
#define HIGH_LEFT TILE_4
#define HIGH_RIGHT TILE_5
#define LOW_LEFT TILE_6
#define LOW_RIGHT TILE_7

typedef struct {  // sums of a group, left and right
    Ints high[2][TALL], low[2][TALL];
} Sums __attribute__((aligned(64)));

// Of a tile of rows with the slices of a group. asks: for the memory of what comes later.
INLINE void sum_group(bool asks, TilePairs b, const TileHalves *halves, Sums *sums) {
    _tile_zero(HIGH_LEFT);
    _tile_zero(HIGH_RIGHT);
    _tile_zero(LOW_LEFT);
    _tile_zero(LOW_RIGHT);
    for (int64_t s = b.first; s < b.first + b.count; s++) {
        if (asks) ask_ahead(b, s, SLICES_AHEAD);
        _tile_loadd(LEFT, b.matrix + s * PAIR_BYTES, 2 * TILE_BYTES);
        _tile_loadd(RIGHT, b.matrix + s * PAIR_BYTES + TILE_BYTES, 2 * TILE_BYTES);
        _tile_loadd(HIGH, halves[s].high, TILE_BYTES);
        _tile_dpbsud(HIGH_LEFT, HIGH, LEFT);
        _tile_dpbsud(HIGH_RIGHT, HIGH, RIGHT);
        _tile_loadd(LOW, halves[s].low, TILE_BYTES);
        _tile_dpbsud(LOW_LEFT, LOW, LEFT);
        _tile_dpbsud(LOW_RIGHT, LOW, RIGHT);
    }
    _tile_stored(HIGH_LEFT, sums->high[0], TILE_BYTES);
    _tile_stored(HIGH_RIGHT, sums->high[1], TILE_BYTES);
    _tile_stored(LOW_LEFT, sums->low[0], TILE_BYTES);
    _tile_stored(LOW_RIGHT, sums->low[1], TILE_BYTES);
}

// out[rows][2] = the rows times a panel. rows: of two tiles at most. asks: for memory that is needed soon; next: the
// panel that is likely to follow.
static void multiply_quads_by_amx(bool asks, int64_t rows, const Linear *l, Panel panel, Input x, Vec *out,
                                  const char *next) {
    const int64_t groups = groups_of(l);
    TilePairs b = {panel.matrix, next, 0, 0, slices_of(l)};
    const TileHalves *halves = (const TileHalves *)x.rounded;
    Sums sums;
    configure_amx(smaller(rows, TALL), 1 << LEFT | 1 << RIGHT);
    memset(out, 0, rows * 2 * sizeof(Vec));
    for (int64_t g = 0; g < groups; g++) {
        b.first = g * (GROUP / SLICE), b.count = smaller(GROUP / SLICE, b.all - b.first);
        const float *scales = panel.scales + g * PANEL;
        for (int64_t first = 0; first < rows; first += TALL) {
            const int64_t height = smaller(rows - first, TALL), at = first * groups + g;
            sum_group(asks && !first, b, halves + first / TALL * b.all, &sums);
            for (int c = 0; c < 2; c++) {
                const Vec scale = from_floats(scales + c * WIDTH);
                Vec *to = out + 2 * first + c;
                for (int64_t r = 0; r < height; r++) {
                    const Ints sum = (sums.high[c][r] << 8) + sums.low[c][r] - x.offsets[at + r * groups];
                    to[2 * r] = fused(from_ints(sum), scale * spread(x.scales[at + r * groups]), to[2 * r]);
                }
            }
        }
    }
}

#else

static void multiply_quads_by_amx(bool asks, int64_t rows, const Linear *l, Panel panel, Input x, Vec *out,
                                  const char *next) {}

#endif

#endif
