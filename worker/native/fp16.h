// Vectors of fp32 numbers from fp16 ones in memory, and back.
#ifndef SKIPJOIN_FP16_H
#define SKIPJOIN_FP16_H

#include "vectors.h"

#if defined(__F16C__) && !defined(WIDE)
#define WIDENS_FP16 true
INLINE Vec from_fp16(const uint16_t *x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)); }
INLINE void store_fp16(Vec x, uint16_t *to) {
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(WIDE)
#define WIDENS_FP16 true
INLINE Vec from_fp16(const uint16_t *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)); }
INLINE void store_fp16(Vec x, uint16_t *to) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#else
#define WIDENS_FP16 false
// Bit by bit, as a CPU without fp16 needs it: compilers have no type for it everywhere.
INLINE Vec from_fp16(const uint16_t *x) {
    Ints bits;
    for (int i = 0; i < WIDTH; i++) bits[i] = x[i];
    const Ints sign = (bits & 0x8000) << 16, rest = (bits & 0x7fff) << 13;
    // The exponent counts from another zero: times 2^112, which also makes numbers of those below the least normal one.
    const Vec size = (Vec)rest * 0x1p112f;
    const Ints infinite = (bits & 0x7c00) == 0x7c00;
    return (Vec)((Ints)chosen(infinite, (Vec)(rest | 0x7f800000), size) | sign);
}
INLINE void store_fp16(Vec x, uint16_t *to) {
    const Ints sign = (Ints)x & (int32_t)0x80000000;
    const Vec size = (Vec)((Ints)x ^ sign);
    // To 11 bits, the nearest even: by adding, and taking away, what leaves no room for more; below 2^-14 to 2^-24.
    const Vec power = (Vec)((Ints)size & 0x7f800000), least = larger(power, spread(0x1p-14f));
    const Vec magic = least * 0x1.8p13f;
    const Vec rounded = (size + magic - magic) * 0x1p-112f;
    const Ints none = size != size, infinite = size >= 65520.0f;
    Ints bits = (Ints)rounded >> 13;
    bits = (Ints)chosen(infinite, (Vec)((Ints){0} + 0x7c00), (Vec)bits);
    bits = (Ints)chosen(none, (Vec)((Ints){0} + 0x7e00), (Vec)bits) | (sign >> 16 & 0x8000);
    for (int i = 0; i < WIDTH; i++) to[i] = (uint16_t)bits[i];
}
#endif

#endif
