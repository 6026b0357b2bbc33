// Sums of products of many rows with a panel of quads, by AMX. The numbers are those of tiles.h, to the bit.
#ifndef SKIPJOIN_AMX_INT8_H
#define SKIPJOIN_AMX_INT8_H

#include "amx.h"
#include "tiles.h"

enum { AMX_ROWS = 8 };      // from which on the unit is faster
enum { GROUPS_AHEAD = 3 };  // for which memory is asked

typedef struct {  // a tile's rows' numbers of a group, as those of Halves
    int8_t high[TALL][GROUP], low[TALL][GROUP];
} TileHalves;

#ifdef AMX

_Static_assert(GROUP == TILE_BYTES, "a tile takes a group");

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

// Of rows with the group that LEFT and RIGHT hold.
INLINE void sum_group(const TileHalves *halves, Sums *sums) {
    _tile_zero(HIGH_LEFT);
    _tile_zero(HIGH_RIGHT);
    _tile_zero(LOW_LEFT);
    _tile_zero(LOW_RIGHT);
    _tile_loadd(HIGH, halves->high, TILE_BYTES);
    _tile_dpbsud(HIGH_LEFT, HIGH, LEFT);
    _tile_dpbsud(HIGH_RIGHT, HIGH, RIGHT);
    _tile_loadd(LOW, halves->low, TILE_BYTES);
    _tile_dpbsud(LOW_LEFT, LOW, LEFT);
    _tile_dpbsud(LOW_RIGHT, LOW, RIGHT);
    _tile_stored(HIGH_LEFT, sums->high[0], TILE_BYTES);
    _tile_stored(HIGH_RIGHT, sums->high[1], TILE_BYTES);
    _tile_stored(LOW_LEFT, sums->low[0], TILE_BYTES);
    _tile_stored(LOW_RIGHT, sums->low[1], TILE_BYTES);
}

// out[rows][2] = the rows times a panel. rows: of two tiles at most. asks: for memory that is needed soon; next: the
// panel that is likely to follow.
static void multiply_quads_by_amx(bool asks, int64_t rows, const Linear *l, Panel panel, Input x, Vec *out,
                                  const char *next) {
    const int64_t groups = groups_of(l), bytes = GROUP * PANEL;
    const int8_t *weights = panel.matrix;
    const TileHalves *halves = (const TileHalves *)x.rounded;
    Sums sums;
    configure_amx(smaller(rows, TALL), 1 << LEFT | 1 << RIGHT);
    memset(out, 0, rows * 2 * sizeof(Vec));
    for (int64_t g = 0; g < groups; g++) {
        const int64_t soon = g + GROUPS_AHEAD;
        if (asks)
            ask_for_memory(soon < groups ? (const char *)weights + soon * bytes : next + (soon - groups) * bytes, bytes);
        _tile_loadd(LEFT, weights + g * bytes, 2 * TILE_BYTES);
        _tile_loadd(RIGHT, weights + g * bytes + TILE_BYTES, 2 * TILE_BYTES);
        const float *scales = panel.scales + g * PANEL;
        for (int64_t first = 0; first < rows; first += TALL) {
            const int64_t count = smaller(rows - first, TALL), at = first * groups + g;
            sum_group(halves + first / TALL * groups + g, &sums);
            for (int c = 0; c < 2; c++) {
                const Vec scale = from_floats(scales + c * WIDTH);
                Vec *to = out + 2 * first + c;
                for (int64_t r = 0; r < count; r++) {
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
