// Sums of products of many rows with a panel of quads, by AMX: a unit of x86 CPUs that multiplies tiles of 8 bits. The
// numbers are those of tiles.h, to the bit.
#ifndef SKIPJOIN_AMX_H
#define SKIPJOIN_AMX_H

#include "tiles.h"

enum { TALL = 16, AMX_ROWS = 8 };  // rows of a tile at most; from which on the unit is faster
enum { SOON = 6 };                 // groups ahead of which memory is asked

#if defined(__AMX_INT8__) && defined(WIDE)
#include <sys/syscall.h>
#include <unistd.h>

// Registers: rows' halves, the panel's left and right columns, and sums of what they are called after.
#define HIGH 0
#define LOW 1
#define LEFT 2
#define RIGHT 3
#define HIGH_LEFT 4
#define HIGH_RIGHT 5
#define LOW_LEFT 6
#define LOW_RIGHT 7

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} Configuration;

typedef struct {  // sums of a group, left and right
    Ints high[2][TALL], low[2][TALL];
} Sums __attribute__((aligned(64)));

static __thread int64_t configured_rows;

static bool has_amx;

// Linux wants a process to ask before its threads use the unit: when this library is loaded.
__attribute__((constructor)) static void ask_for_amx(void) {
    const long arch_req_xcomp_perm = 0x1023, tile_data = 18;
    has_amx = syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
}

static void configure_amx(int64_t rows) {
    if (rows == configured_rows) return;
    Configuration c = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        const bool of_rows = tile == HIGH || tile == LOW, of_panel = tile == LEFT || tile == RIGHT;
        c.rows[tile] = of_panel ? GROUP / 4 : rows;
        c.row_bytes[tile] = of_rows ? GROUP : 4 * WIDTH;
    }
    __asm__ volatile("" ::"r"(&c) : "memory");  // gcc thinks that only its first bytes are read
    _tile_loadconfig(&c);
    configured_rows = rows;
}

// So that there is less to save when the thread is switched.
static void leave_amx(void) {
    if (configured_rows) _tile_release();
    configured_rows = 0;
}

INLINE void sum_group(const int8_t *weights, const Halves *halves, int64_t row_bytes, Sums *sums) {
    _tile_zero(HIGH_LEFT);
    _tile_zero(HIGH_RIGHT);
    _tile_zero(LOW_LEFT);
    _tile_zero(LOW_RIGHT);
    _tile_loadd(LEFT, weights, 4 * PANEL);
    _tile_loadd(HIGH, halves->high, row_bytes);
    _tile_dpbsud(HIGH_LEFT, HIGH, LEFT);
    _tile_loadd(LOW, halves->low, row_bytes);
    _tile_dpbsud(LOW_LEFT, LOW, LEFT);
    _tile_loadd(RIGHT, weights + 4 * WIDTH, 4 * PANEL);
    _tile_dpbsud(HIGH_RIGHT, HIGH, RIGHT);
    _tile_dpbsud(LOW_RIGHT, LOW, RIGHT);
    _tile_stored(HIGH_LEFT, sums->high[0], 4 * WIDTH);
    _tile_stored(LOW_LEFT, sums->low[0], 4 * WIDTH);
    _tile_stored(HIGH_RIGHT, sums->high[1], 4 * WIDTH);
    _tile_stored(LOW_RIGHT, sums->low[1], 4 * WIDTH);
}

// rows: of the tile. next: the panel that is likely to follow.
static void multiply_amx(int64_t rows, const Linear *l, Panel panel, Input x, Vec *out, const int8_t *next) {
    const int64_t groups = groups_of(l), bytes = GROUP * PANEL, row_bytes = groups * sizeof(Halves);
    const int8_t *weights = panel.matrix;
    Sums sums;
    configure_amx(rows);
    memset(out, 0, rows * 2 * sizeof(Vec));
    for (int64_t g = 0; g < groups; g++) {
        const int8_t *soon = g + SOON < groups ? weights + (g + SOON) * bytes : next + (g + SOON - groups) * bytes;
        for (int64_t i = 0; i < bytes; i += 4 * WIDTH) __builtin_prefetch(soon + i);
        sum_group(weights + g * bytes, (const Halves *)x.rounded + g, row_bytes, &sums);
        for (int c = 0; c < 2; c++) {
            const Vec scale = from_floats(panel.scales + g * PANEL + c * WIDTH);
            for (int64_t r = 0; r < rows; r++) {
                const Ints sum = (sums.high[c][r] << 8) + sums.low[c][r] - x.offsets[r * groups + g];
                out[2 * r + c] = fused(from_ints(sum), scale * spread(x.scales[r * groups + g]), out[2 * r + c]);
            }
        }
    }
}

#else

enum { has_amx = false };
static void leave_amx(void) {}
static void multiply_amx(int64_t rows, const Linear *l, Panel panel, Input x, Vec *out, const int8_t *next) {}

#endif

#endif
