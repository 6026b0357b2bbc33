// Sums of products of a few rows with a panel or several of a matrix, in registers: what linear.c is made of.
#ifndef SKIPJOIN_TILES_H
#define SKIPJOIN_TILES_H

#include "fp16.h"
#include "linear.h"

enum { PANEL = 2 * WIDTH, ROWS = WIDTH == 16 ? 12 : 6, MOST_PANELS = 4 };  // sums of ROWS * PANEL fit the registers
enum { MOST_QUAD_ROWS = 6 };  // of quads, whose sums come as two halves
enum { GROUP = 256 };  // inputs that share a scale in int8, the last ones perhaps with fewer
enum { GROUP4 = 32, GROUP8 = 16 };  // those that share a scale and an offset in codes of 4 bits, and of 8
enum { SLICE = 64 };   // to whole ones of which inputs are padded for int8 and AMX, which multiplies one at once
enum { STEP = 32 };    // inputs of bf16 that AMX multiplies at once

// A column's sum in a group, of weights with 128 added to them and a row's integers of 16 bits, fits 32 bits.
_Static_assert(255ll * 32639 * GROUP <= INT32_MAX, "so many inputs overflow");

typedef struct {  // a panel's numbers
    const void *matrix;
    const float *scales;
} Panel;

typedef struct {  // rows that follow one another
    const float *exact;      // [rows][ins]
    const uint16_t *bf16;    // to meet pairs of bf16, by AMX: a tile after the other, [steps][TALL][STEP]
    const int16_t *rounded;  // to meet int8: [rows][slices][SLICE], zeros at the end; quads: [rows][slices] of Halves,
                             // or, by AMX, a tile after the other, [slices] of TileHalves
    const float *scales;     // of these: [rows][groups]
    const int32_t *offsets;  // to meet quads: [rows][groups] what a column's sum has too much
    bool in_tiles;           // whether they lie as those of AMX want them
} Input;

typedef struct {  // numbers of 16 bits, 256 * high + low
    int8_t high[SLICE], low[SLICE];
} Halves;

INLINE bool is_coded(enum Type type) { return type == CODES4 || type == CODES8; }
INLINE int64_t group_size(enum Type type) { return type == CODES4 ? GROUP4 : type == CODES8 ? GROUP8 : GROUP; }
INLINE bool multiplies_fp32(const Linear *l) {
    return l->type == FP32 || l->type == BF16 || l->type == FP16 || is_coded(l->type);
}
INLINE bool rounds_rows(const Linear *l) { return l->type == INT8 || l->type == INT8_QUADS; }

INLINE int64_t groups_of(const Linear *l) { return ratio_up(l->ins, group_size(l->type)); }
INLINE int64_t panel_scales(const Linear *l) { return groups_of(l) * (is_coded(l->type) ? 2 : 1) * PANEL; }
INLINE int64_t slices_of(const Linear *l) { return ratio_up(l->ins, SLICE); }
INLINE int64_t steps_of(const Linear *l) { return slices_of(l) * (SLICE / STEP); }

// From a row on: the first of a tile, where rows lie in tiles.
INLINE Input input_from(const Linear *l, Input x, int64_t row) {
    const int64_t slices = row * slices_of(l), groups = row * groups_of(l);
    if (l->type == BF16_PAIRS) return (Input){.bf16 = x.bf16 + row * steps_of(l) * STEP, .in_tiles = true};
    if (!rounds_rows(l)) return (Input){.exact = x.exact + row * l->ins};
    return (Input){NULL, NULL, x.rounded + slices * SLICE, x.scales + groups, x.offsets + groups, x.in_tiles};
}

// How often a tile's loop turns for one panel, and what it reads of it in a turn.
INLINE int64_t turns_of(const Linear *l) {
    if (multiplies_fp32(l)) return l->ins;
    return slices_of(l) * (l->type == BF16_PAIRS ? SLICE : SLICE / 2);
}
INLINE int64_t turn_bytes(const Linear *l) {
    if (is_coded(l->type)) return l->type == CODES4 ? PANEL / 2 : PANEL;
    return PANEL * (l->type == FP32 ? sizeof(float) : sizeof(uint16_t));
}

INLINE int64_t panel_bytes(const Linear *l) { return turns_of(l) * turn_bytes(l); }

INLINE Panel panel_at(const Linear *l, int64_t panel) {
    return (Panel){(const char *)l->matrix + panel * panel_bytes(l), l->scales + panel * panel_scales(l)};
}

typedef struct {  // what makes numbers of the codes of a group in a panel, of the first and the second WIDTH columns
    Vec scales[2], offsets[2];
} Group;

// That of input k.
INLINE Group group_at(enum Type type, Panel panel, int64_t k) {
    Group group = {{{0}}};
    if (is_coded(type)) {
        const float *scales = panel.scales + k / group_size(type) * 2 * PANEL, *offsets = scales + PANEL;
        group.scales[0] = from_floats(scales), group.scales[1] = from_floats(scales + WIDTH);
        group.offsets[0] = from_floats(offsets), group.offsets[1] = from_floats(offsets + WIDTH);
    }
    return group;
}

INLINE Vec decoded(Ints codes, const Group *group, int half) {
    return fused(from_ints(codes), group->scales[half], group->offsets[half]);
}

// The weights of input k in a panel, those of the first and of the second WIDTH columns. Of bf16 those of two columns are
// halves of an integer, the first the lower one, so one instruction widens a vector; so are codes of 4 bits halves of a
// byte.
INLINE void weights(enum Type type, const void *matrix, const Group *group, int64_t k, Vec *first, Vec *second) {
    const int64_t index = k * PANEL;
    if (type == CODES4) {
        const Ints both = ints_from_unsigned((const uint8_t *)matrix + k * WIDTH);
        *first = decoded(both & 15, group, 0), *second = decoded(both >> 4, group, 1);
    } else if (type == CODES8) {
        const int8_t *codes = (const int8_t *)matrix + index;
        *first = decoded(ints_from_bytes(codes), group, 0), *second = decoded(ints_from_bytes(codes + WIDTH), group, 1);
    } else if (type == FP32) {
        *first = from_floats((const float *)matrix + index), *second = from_floats((const float *)matrix + index + WIDTH);
    } else if (type == FP16) {
        *first = from_fp16((const uint16_t *)matrix + index), *second = from_fp16((const uint16_t *)matrix + index + WIDTH);
    } else {
        const Ints both = *(const Ints *)((const uint16_t *)matrix + index);
        *first = (Vec)(both << 16), *second = (Vec)(both & ~0xFFFF);
    }
}

// out[row][column] = x[row] . column. All but the pointers are constants where it is inlined. ahead: memory to ask for
// meanwhile, `step` bytes in each turn. to: where to write the numbers of a single panel of codes, or none.
INLINE void multiply(enum Type type, int rows, int panels, const Linear *l, Panel panel, Input x, Vec *out,
                     const char *ahead, int64_t step, float *to) {
    const int columns = 2 * panels;
    const int64_t ins = l->ins, bytes = panel_bytes(l), scales = panel_scales(l);
    Vec sums[ROWS][2 * MOST_PANELS];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < columns; c++) sums[r][c] = (Vec){0};
    for (int64_t k = 0; k < ins;) {
        Group groups[MOST_PANELS];
        UNROLLED for (int p = 0; p < panels; p++)
            groups[p] = group_at(type, (Panel){NULL, panel.scales + p * scales}, k);
        for (const int64_t end = is_coded(type) ? k + group_size(type) : ins; k < end; k++) {
            if (!is_coded(type) || rows <= 2) __builtin_prefetch(ahead + k * step, 0, 2);
            UNROLLED for (int c = 0; c < columns; c += 2) {
                Vec first, second;
                weights(type, (const char *)panel.matrix + c / 2 * bytes, &groups[c / 2], k, &first, &second);
                if (is_coded(type) && panels == 1 && to)
                    *(Vec *)(to + k * PANEL) = first, *(Vec *)(to + k * PANEL + WIDTH) = second;
                UNROLLED for (int r = 0; r < rows; r++) {
                    const Vec number = spread(x.exact[r * ins + k]);
                    accumulate(&sums[r][c], first, number);
                    accumulate(&sums[r][c + 1], second, number);
                }
            }
        }
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < columns; c++) out[r * columns + c] = sums[r][c];
}

// The same of int8.
INLINE void multiply_rounded(int rows, int panels, const Linear *l, Panel panel, Input x, Vec *out, const char *ahead,
                             int64_t step) {
    const int columns = 2 * panels;
    const int64_t groups = groups_of(l), ins = slices_of(l) * SLICE, next = ins * PANEL, next_scales = groups * PANEL;
    Vec sums[ROWS][2 * MOST_PANELS];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < columns; c++) sums[r][c] = (Vec){0};
    for (int64_t g = 0; g < groups; g++) {
        Ints parts[ROWS][2 * MOST_PANELS];
        UNROLLED for (int r = 0; r < rows; r++)
            UNROLLED for (int c = 0; c < columns; c++) parts[r][c] = (Ints){0};
        for (int64_t k = g * GROUP; k < smaller((g + 1) * GROUP, ins); k += 2) {
            __builtin_prefetch(ahead + k / 2 * step, 0, 2);
            Pairs column[2 * MOST_PANELS];
            UNROLLED for (int c = 0; c < columns; c++)
                column[c] = pairs_from_bytes((const int8_t *)panel.matrix + c / 2 * next + k * PANEL + c % 2 * PANEL);
            UNROLLED for (int r = 0; r < rows; r++)
                UNROLLED for (int c = 0; c < columns; c++)
                    parts[r][c] += products(column[c], spread_pair(x.rounded + r * ins + k));
        }
        UNROLLED for (int c = 0; c < columns; c++) {
            const Vec scale = from_floats(panel.scales + c / 2 * next_scales + g * PANEL + c % 2 * WIDTH);
            UNROLLED for (int r = 0; r < rows; r++)
                sums[r][c] = fused(from_ints(parts[r][c]), scale * spread(x.scales[r * groups + g]), sums[r][c]);
        }
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < columns; c++) out[r * columns + c] = sums[r][c];
}

// The same of quads: the CPU multiplies 8 bits without a sign, so weights have 128 added to them, by 8 bits with one, so
// a row's numbers come as halves.
INLINE void multiply_quads(int rows, int panels, const Linear *l, Panel panel, Input x, Vec *out, const char *ahead,
                           int64_t step) {
    const int columns = 2 * panels;
    const int64_t groups = groups_of(l), slices = slices_of(l), ins = slices * SLICE;
    const int64_t next = ins * PANEL, next_scales = groups * PANEL;
    Vec sums[MOST_QUAD_ROWS][2 * MOST_PANELS];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < columns; c++) sums[r][c] = (Vec){0};
    for (int64_t g = 0; g < groups; g++) {
        Ints high[MOST_QUAD_ROWS][2 * MOST_PANELS], low[MOST_QUAD_ROWS][2 * MOST_PANELS];
        UNROLLED for (int r = 0; r < rows; r++)
            UNROLLED for (int c = 0; c < columns; c++)
                high[r][c] = (Ints){0}, low[r][c] = (Ints){0} - x.offsets[r * groups + g];
        for (int64_t k = g * GROUP; k < smaller((g + 1) * GROUP, ins); k += 4) {
            const Halves *halves = (const Halves *)x.rounded + k / SLICE;
            __builtin_prefetch(ahead + k / 2 * step, 0, 2);
            __builtin_prefetch(ahead + (k / 2 + 1) * step, 0, 2);
            Ints column[2 * MOST_PANELS];
            UNROLLED for (int c = 0; c < columns; c++)
                column[c] = *(const Ints *)((const uint8_t *)panel.matrix + c / 2 * next + k * PANEL + c % 2 * 2 * PANEL);
            UNROLLED for (int r = 0; r < rows; r++)
                UNROLLED for (int c = 0; c < columns; c++) {
                    high[r][c] = add_quads(high[r][c], column[c], spread_quad(halves[r * slices].high + k % SLICE));
                    low[r][c] = add_quads(low[r][c], column[c], spread_quad(halves[r * slices].low + k % SLICE));
                }
        }
        UNROLLED for (int c = 0; c < columns; c++) {
            const Vec scale = from_floats(panel.scales + c / 2 * next_scales + g * PANEL + c % 2 * WIDTH);
            UNROLLED for (int r = 0; r < rows; r++)
                sums[r][c] = fused(from_ints((high[r][c] << 8) + low[r][c]), scale * spread(x.scales[r * groups + g]),
                                   sums[r][c]);
        }
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < columns; c++) out[r * columns + c] = sums[r][c];
}

typedef void Tile(const Linear *, Panel, Input, Vec *, const char *, int64_t, float *);
typedef struct {
    int64_t rows, panels;
    Tile *of[8];  // by type; quads need more registers, and have no tiles that are higher
} Shape;

#define TILE(type, rows, panels)                                                                     \
    static void tile_##type##_##rows##_##panels(const Linear *l, Panel panel, Input x, Vec *sums, \
                                                const char *ahead, int64_t step, float *to) {     \
        if (type == INT8) multiply_rounded(rows, panels, l, panel, x, sums, ahead, step);           \
        else if (type == INT8_QUADS) multiply_quads(rows, panels, l, panel, x, sums, ahead, step);  \
        else multiply(type, rows, panels, l, panel, x, sums, ahead, step, to);                      \
    }
#define TILES(rows, panels)                                                                             \
    TILE(FP32, rows, panels) TILE(BF16, rows, panels) TILE(FP16, rows, panels) TILE(INT8, rows, panels) \
    TILE(CODES4, rows, panels) TILE(CODES8, rows, panels)
#define OF(type, rows, panels) [type] = tile_##type##_##rows##_##panels
#define ALL(rows, panels)                                                                                  \
    OF(FP32, rows, panels), OF(BF16, rows, panels), OF(FP16, rows, panels), OF(INT8, rows, panels),        \
        OF(CODES4, rows, panels), OF(CODES8, rows, panels)
#define SHAPE(rows, panels) {rows, panels, {ALL(rows, panels)}}
#define LOW_SHAPE(rows, panels) {rows, panels, {ALL(rows, panels), OF(INT8_QUADS, rows, panels)}}

// At least eight sums hide how long an addition takes: the fewer rows, the more panels at once. Codes need no more than
// four, as so much is done between additions.
TILES(1, 1) TILES(1, 2) TILES(1, 4) TILES(2, 1) TILES(2, 2) TILES(3, 1) TILES(4, 1) TILES(5, 1) TILES(6, 1)
#define QUAD_TILE(rows, panels) TILE(INT8_QUADS, rows, panels)
QUAD_TILE(1, 1) QUAD_TILE(1, 2) QUAD_TILE(1, 4) QUAD_TILE(2, 1) QUAD_TILE(2, 2) QUAD_TILE(3, 1) QUAD_TILE(4, 1)
QUAD_TILE(5, 1) QUAD_TILE(6, 1)
#ifdef WIDE
TILES(7, 1) TILES(8, 1) TILES(9, 1) TILES(10, 1) TILES(11, 1) TILES(12, 1)
#endif
static const Shape shapes[] = {
#ifdef WIDE
    SHAPE(12, 1), SHAPE(11, 1), SHAPE(10, 1), SHAPE(9, 1), SHAPE(8, 1), SHAPE(7, 1),
#endif
    LOW_SHAPE(6, 1), LOW_SHAPE(5, 1), LOW_SHAPE(4, 1), LOW_SHAPE(3, 1),
    LOW_SHAPE(2, 2), LOW_SHAPE(2, 1), LOW_SHAPE(1, 4), LOW_SHAPE(1, 2), LOW_SHAPE(1, 1),
};

// Of tiles of about the same height, as high as they get.
INLINE int64_t height_of(int64_t rows, int64_t most) { return ratio_up(rows, ratio_up(rows, most)); }

static const Shape *next_shape(int64_t height, int64_t panels) {
    const Shape *shape = shapes;
    while (shape->rows > height || shape->panels > panels) shape++;
    return shape;
}

#endif
