// AMX, a unit of x86 CPUs that multiplies tiles of numbers: to use it and to leave it.
#ifndef SKIPJOIN_AMX_H
#define SKIPJOIN_AMX_H

#include "vectors.h"

enum { TALL = 16, TILE_BYTES = 64 };  // a tile's rows at most, and the bytes in a row of it

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(WIDE)
#define AMX
#include <sys/syscall.h>
#include <unistd.h>

// Registers: the high and low parts of rows, the left and right columns of a panel, and sums.
#define HIGH 0
#define LOW 1
#define LEFT 2
#define RIGHT 3
#define SUMS_0 4
#define SUMS_1 5
#define SUMS_2 6
#define SUMS_3 7

static __thread int64_t configured_rows;

static bool has_amx;

// Linux wants a process to ask before its threads use the unit: when this library is loaded.
__attribute__((constructor)) static void ask_for_amx(void) {
    const long arch_req_xcomp_perm = 0x1023, tile_data = 18;
    has_amx = syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
}

// rows: of the tiles of rows, and of sums.
static void configure_amx(int64_t rows) {
    if (rows == configured_rows) return;
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        c.rows[tile] = tile == LEFT || tile == RIGHT ? TALL : rows;
        c.row_bytes[tile] = TILE_BYTES;
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

#else

enum { has_amx = false };
static void leave_amx(void) {}

#endif

#endif
