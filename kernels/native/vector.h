/* Vectors of as many numbers as the processor takes at once, in the words that GCC and Clang share. */

#ifndef LONGCONV_VECTOR_H
#define LONGCONV_VECTOR_H

#include <stdint.h>

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX__)
#define W 8
#else
#define W 4
#endif

typedef float Vector __attribute__((vector_size(4 * W), may_alias));
typedef float Unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t Lanes __attribute__((vector_size(4 * W)));

#define INLINE static inline __attribute__((always_inline))

INLINE Vector load(const float *p) { return *(const Vector *)p; }
INLINE Vector load_anywhere(const float *p) { return *(const Unaligned *)p; }
INLINE void store(float *p, Vector v) { *(Vector *)p = v; }
INLINE Vector splat(float x) { return x - (Vector){0}; }

static inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

/* --- Exchanges among four vectors --------------------------------------------------------------------------------- */

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Lanes){__VA_ARGS__})
#endif

/* EACH(i, j, k, l): these lanes of each group of four; numbers from 4 on mean the other vector's group. */
#if W == 16
#define LANE(i, g) ((i) < 4 ? (i) + 4 * (g) : (i) - 4 + W + 4 * (g))
#define EACH(i, j, k, l)                                                                                        \
  LANE(i, 0), LANE(j, 0), LANE(k, 0), LANE(l, 0), LANE(i, 1), LANE(j, 1), LANE(k, 1), LANE(l, 1), LANE(i, 2),   \
      LANE(j, 2), LANE(k, 2), LANE(l, 2), LANE(i, 3), LANE(j, 3), LANE(k, 3), LANE(l, 3)
#elif W == 8
#define LANE(i, g) ((i) < 4 ? (i) + 4 * (g) : (i) - 4 + W + 4 * (g))
#define EACH(i, j, k, l) LANE(i, 0), LANE(j, 0), LANE(k, 0), LANE(l, 0), LANE(i, 1), LANE(j, 1), LANE(k, 1), LANE(l, 1)
#else
#define EACH(i, j, k, l) i, j, k, l
#endif

/* Lane i of vector j becomes lane j of vector i, in every group of four. Its own inverse, as the next one. */
INLINE void exchange_lanes(Vector *v) {
  Vector a = SHUFFLE(v[0], v[1], EACH(0, 4, 1, 5)), b = SHUFFLE(v[0], v[1], EACH(2, 6, 3, 7));
  Vector c = SHUFFLE(v[2], v[3], EACH(0, 4, 1, 5)), d = SHUFFLE(v[2], v[3], EACH(2, 6, 3, 7));
  v[0] = SHUFFLE(a, c, EACH(0, 1, 4, 5));
  v[1] = SHUFFLE(a, c, EACH(2, 3, 6, 7));
  v[2] = SHUFFLE(b, d, EACH(0, 1, 4, 5));
  v[3] = SHUFFLE(b, d, EACH(2, 3, 6, 7));
}

/* Four groups: group i of vector j becomes group j of vector i. Two: so in each pair of vectors. */
INLINE void exchange_groups(Vector *v) {
#if W == 16
#define EVEN 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define ODD 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
  Vector a = SHUFFLE(v[0], v[1], EVEN), b = SHUFFLE(v[0], v[1], ODD);
  Vector c = SHUFFLE(v[2], v[3], EVEN), d = SHUFFLE(v[2], v[3], ODD);
  v[0] = SHUFFLE(a, c, EVEN);
  v[1] = SHUFFLE(b, d, EVEN);
  v[2] = SHUFFLE(a, c, ODD);
  v[3] = SHUFFLE(b, d, ODD);
#elif W == 8
  for (int i = 0; i < 4; i += 2) {
    Vector a = v[i], b = v[i + 1];
    v[i] = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    v[i + 1] = SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
#else
  (void)v;
#endif
}

/* `parallel` is GOMP_parallel of the OpenMP library that PyTorch has loaded: its threads are used, not others beside
   them. */
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

#endif
