// Vectors of fp32 numbers, and what all kernels do with them.
#ifndef SKIPJOIN_VECTORS_H
#define SKIPJOIN_VECTORS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

// As wide as this CPU has them, or NARROW.
#if defined(__AVX512F__) && !defined(NARROW)
#define WIDE
enum { WIDTH = 16 };
#else
enum { WIDTH = 8 };
#endif
typedef float Vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(2 * WIDTH), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 32")

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ratio_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Into the second cache.
INLINE void ask_for_memory(const void *memory, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)memory + i, 0, 2);
}

INLINE Vec chosen(Ints mask, Vec yes, Vec no) { return (Vec)((mask & (Ints)yes) | (~mask & (Ints)no)); }
#if defined(__AVX__) && !defined(WIDE)
INLINE Vec larger(Vec a, Vec b) { return _mm256_max_ps(b, a); }  // a where one is no number
#else
INLINE Vec larger(Vec a, Vec b) { return chosen(a < b, b, a); }
#endif

INLINE Vec from_floats(const float *x) { return *(const Vec *)x; }

// WIDTH numbers of 8 bits.
typedef int8_t Few __attribute__((vector_size(WIDTH), aligned(1), may_alias));
typedef uint8_t FewUnsigned __attribute__((vector_size(WIDTH), aligned(1), may_alias));

INLINE Ints ints_from_bytes(const int8_t *x) {
#if defined(WIDE)
    return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)x));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)x));
#else
    return __builtin_convertvector(*(const Few *)x, Ints);
#endif
}

INLINE Ints ints_from_unsigned(const uint8_t *x) {
#if defined(WIDE)
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)x));
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)x));
#else
    return __builtin_convertvector(*(const FewUnsigned *)x, Ints);
#endif
}

// Integers of 16 bits, two beside each other for every number of a Vec.
typedef int16_t Pairs __attribute__((vector_size(4 * WIDTH), aligned(2), may_alias));

INLINE Pairs pairs_from_bytes(const int8_t *x) {  // gcc 12 makes ten times as many instructions of convertvector
#if defined(__AVX512BW__) && defined(WIDE)
    return (Pairs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)x));
#elif defined(__AVX2__) && !defined(WIDE)
    return (Pairs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)x));
#else
    return __builtin_convertvector(*(const Bytes *)x, Pairs);
#endif
}

INLINE Pairs spread_pair(const int16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof(pair));
    return (Pairs)((Ints){0} + pair);
}

// Each pair's two products, summed.
INLINE Ints products(Pairs a, Pairs b) {
#if defined(__AVX512BW__) && defined(WIDE)
    return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(WIDE)
    return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const Ints left = (Ints)a, right = (Ints)b;
    return (left << 16 >> 16) * (right << 16 >> 16) + (left >> 16) * (right >> 16);
#endif
}

// Each number's four products of 8 bits, summed, and added to `sum`: a is unsigned, b signed.
#if defined(__AVX512VNNI__) && defined(WIDE)
#define QUADS true
INLINE Ints add_quads(Ints sum, Ints a, Ints b) { return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b); }
#elif defined(__AVXVNNI__) && !defined(WIDE)
#define QUADS true
INLINE Ints add_quads(Ints sum, Ints a, Ints b) {
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}
#else
#define QUADS false
INLINE Ints add_quads(Ints sum, Ints a, Ints b) {
    for (int i = 0; i < 32; i += 8) sum += (Ints)(((Ints)a >> i & 255) * ((Ints)b << (24 - i) >> 24));
    return sum;
}
#endif

INLINE Ints spread_quad(const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof(quad));
    return (Ints){0} + quad;
}

INLINE Vec from_ints(Ints x) { return __builtin_convertvector(x, Vec); }

INLINE float total(Vec x) {
    float sum = 0.0f;
    UNROLLED for (int i = 0; i < WIDTH; i++) sum += x[i];
    return sum;
}

// a * b + c: rounded once where the CPU can do that.
#ifdef WIDE
INLINE Vec fused(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vec spread(float x) { return _mm512_set1_ps(x); }
#elif defined(__FMA__)
INLINE Vec fused(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vec spread(float x) { return _mm256_set1_ps(x); }
#else
INLINE Vec fused(Vec a, Vec b, Vec c) { return a * b + c; }
INLINE Vec spread(float x) { return x - (Vec){0}; }
#endif

// *sum += a * b, all in registers: left alone, gcc moves sums about, or keeps one of twelve in memory, and all wait for
// it; or it reads a column again for every row.
INLINE void accumulate(Vec *sum, Vec a, Vec b) {
#ifdef __FMA__
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(*sum) : "v"(a), "v"(b));
#else
    *sum = fused(a, b, *sum);
#endif
}

// e^x for x <= 0 within 2e-7, and at least e^-87: 2^n * e^r with |r| < 0.35.
INLINE Vec exponential(Vec x) {
    x = larger(x, spread(-87.0f));
    const Vec magic = spread(12582912.0f);  // 1.5 * 2^23: rounds to an integer
    const Vec n = fused(x, spread(1.44269504f), magic) - magic;
    const Vec r = fused(n, spread(2.12194440e-4f), fused(n, spread(-0.693359375f), x));
    Vec y = fused(r, spread(1.9875691500e-4f), spread(1.3981999507e-3f));
    y = fused(y, r, spread(8.3334519073e-3f));
    y = fused(y, r, spread(4.1665795894e-2f));
    y = fused(y, r, spread(1.6666665459e-1f));
    y = fused(y, r, spread(5.0000001201e-1f));
    y = fused(y * r, r, r) + 1.0f;
    return y * (Vec)((__builtin_convertvector(n, Ints) + 127) << 23);
}

#endif
