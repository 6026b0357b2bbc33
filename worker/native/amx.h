// AMX, a unit of x86 CPUs that multiplies tiles of numbers: to use it and to leave it.
#ifndef SKIPJOIN_AMX_H
#define SKIPJOIN_AMX_H

#include "vectors.h"

enum { TALL = 16, TILE_BYTES = 64 };  // a tile's rows at most, and the bytes in a row of it

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(WIDE)
#define AMX
#include <sys/syscall.h>
#include <unistd.h>

// Its registers. Instructions hold their numbers.
#define TILE_0 0
#define TILE_1 1
#define TILE_2 2
#define TILE_3 3
#define TILE_4 4
#define TILE_5 5
#define TILE_6 6
#define TILE_7 7

static __thread int64_t configured;  // as configure_amx got it, or 0

static bool has_amx;

// Linux wants a process to ask before its threads use the unit: when this library is loaded.
__attribute__((constructor)) static void ask_for_amx(void) {
    const long arch_req_xcomp_perm = 0x1023, tile_data = 18;
    has_amx = syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
}

// Two vectors of fp32 as one of bf16.
INLINE __m512i bf16_of(Vec first, Vec second) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

INLINE Vec from_bf16(const uint16_t *x) {  // bf16 is the upper half of fp32
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
}

// rows: of the tiles of rows, and of sums. matrices: a bit for every tile of a matrix, which has as many as there are.
static void configure_amx(int64_t rows, int matrices) {
    const int64_t wanted = rows << 8 | matrices;
    if (wanted == configured) return;
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        c.rows[tile] = matrices >> tile & 1 ? TALL : rows;
        c.row_bytes[tile] = TILE_BYTES;
    }
    __asm__ volatile("" ::"r"(&c) : "memory");  // gcc thinks that only its first bytes are read
    _tile_loadconfig(&c);
    configured = wanted;
}

// So that there is less to save when the thread is switched.
static void leave_amx(void) {
    if (configured) _tile_release();
    configured = 0;
}

enum { PAIR_BYTES = 2 * TALL * TILE_BYTES };  // of a panel's tiles for the same inputs, the left and the right one

typedef struct {  // of a panel, those that rows meet next
    const char *matrix, *next;  // all of the panel's, and those of the one that is likely to follow
    int64_t first, count, all;
} TilePairs;

// For the memory of the pair that comes so many later.
INLINE void ask_ahead(TilePairs b, int64_t pair, int64_t ahead) {
    const int64_t soon = pair + ahead, beyond = soon - b.all;
    ask_for_memory(beyond < 0 ? b.matrix + soon * PAIR_BYTES : b.next + beyond * PAIR_BYTES, PAIR_BYTES);
}

// Before tiles read what this function has written: gcc does not know that they read memory.
INLINE void finish_stores(void) { __asm__ volatile("" ::: "memory"); }

#else

enum { has_amx = false };
static void leave_amx(void) {}

#endif

#endif
