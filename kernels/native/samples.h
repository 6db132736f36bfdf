/* Samples in memory: float32, bfloat16 or float16 there, float32 here. */

#ifndef LONGCONV_SAMPLES_H
#define LONGCONV_SAMPLES_H

#include <stdint.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

enum Type { FLOAT32, BFLOAT16, FLOAT16 };

/* float16 needs a compiler that knows it. */
#if defined(__FLT16_MAX__)
#define HAS_FLOAT16 1
#else
#define HAS_FLOAT16 0
#endif

static int64_t size_of(int64_t type) { return type == FLOAT32 ? 4 : 2; }

/* Read samples first ... first + count - 1 of a row. */
static void read_samples(float *restrict to, const void *row, int64_t first, int64_t count, int64_t type) {
  if (type == FLOAT32) memcpy(to, (const float *)row + first, 4 * count);
  else if (type == BFLOAT16) {
    const uint16_t *from = (const uint16_t *)row + first;
    for (int64_t i = 0; i < count; i++) {
      uint32_t bits = (uint32_t)from[i] << 16;
      memcpy(to + i, &bits, 4);
    }
  } else {
#if HAS_FLOAT16
    const _Float16 *from = (const _Float16 *)row + first;
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < count; i++) to[i] = (float)from[i];
#endif
  }
}

/* Write `count` samples from the first-th of a row on, rounded to the nearest. */
static void write_samples(void *row, int64_t first, const float *restrict from, int64_t count, int64_t type) {
  if (type == FLOAT32) memcpy((float *)row + first, from, 4 * count);
  else if (type == BFLOAT16) {
    uint16_t *to = (uint16_t *)row + first;
    for (int64_t i = 0; i < count; i++) {
      uint32_t bits;
      memcpy(&bits, from + i, 4);
      uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
      to[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded; /* not a number: rounding could make it infinity */
    }
  } else {
#if HAS_FLOAT16
    _Float16 *to = (_Float16 *)row + first;
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8)
      _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) to[i] = (_Float16)from[i];
#endif
  }
}

#endif
