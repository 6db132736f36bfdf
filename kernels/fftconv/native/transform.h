/* Transforms of rows that stay in cache: right-angle transforms of n = LEAF R1 R2 ... points, there and back.

   A row of 2n real samples x stands for the polynomial with coefficients x[t] - i x[t + n], t < n, modulo z^n + i, so
   that products of polynomials are negacyclic convolutions of 2n samples. (Nussbaumer, Fast Fourier Transform and
   Convolution Algorithms, 1982, section 8.3.)

   With b^R = a and w = exp(2 pi i / R), z^m - a is the product of z^(m/R) - b w^r over r < R. So a pass of radix R over
   a block of m points, a polynomial modulo z^m - a, multiplies the q-th of R parts of it by the number b^q, takes DFTs
   of R points across the parts, and leaves R blocks. (Bernstein, "Multidigit multiplication for mathematicians", 2001,
   section 3: twists by one number for a whole part, where Cooley and Tukey's differ from point to point.) Blocks of
   LEAF points are finished in registers. Nothing is reordered: a product of spectra does not care.

   Real and imaginary parts lie apart. */

#include "vector.h"

#define LEAF (4 * W)
#define MAX_LEVELS 16
#define MAX_RADIX 8

typedef struct {
  Vector re, im;
} Complex;

INLINE Complex add(Complex a, Complex b) { return (Complex){a.re + b.re, a.im + b.im}; }
INLINE Complex subtract(Complex a, Complex b) { return (Complex){a.re - b.re, a.im - b.im}; }
INLINE Complex scale(float s, Complex a) { return (Complex){s * a.re, s * a.im}; }
INLINE Complex times(Complex a, Complex b) {
  return (Complex){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
/* a times the conjugate of b */
INLINE Complex times_conj(Complex a, Complex b) {
  return (Complex){a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}

/* `sign`, here and below, is +1 on the way to the spectrum and -1 on the way back, and known to the compiler. */
INLINE Complex twisted(Complex a, Complex twist, int sign) {
  return sign > 0 ? times(a, twist) : times_conj(a, twist);
}
/* times i, or -i */
INLINE Complex turned(Complex a, int sign) {
  return sign > 0 ? (Complex){-a.im, a.re} : (Complex){a.im, -a.re};
}

/* --- DFTs of few points: x[r] becomes the sum over q of x[q] exp(sign 2 pi i q r / R) --------------------------- */

INLINE void dft2(Complex *x) {
  Complex a = x[0];
  x[0] = add(a, x[1]);
  x[1] = subtract(a, x[1]);
}

INLINE void dft3(Complex *x, int sign) {
  const float half_root = 0.86602540378443864676f; /* sin(2 pi / 3) */
  Complex s = add(x[1], x[2]), m = add(x[0], scale(-0.5f, s));
  Complex d = turned(scale(half_root, subtract(x[1], x[2])), sign);
  x[0] = add(x[0], s);
  x[1] = add(m, d);
  x[2] = subtract(m, d);
}

INLINE void dft4(Complex *x, int sign) {
  Complex a = add(x[0], x[2]), b = subtract(x[0], x[2]);
  Complex c = add(x[1], x[3]), d = turned(subtract(x[1], x[3]), sign);
  x[0] = add(a, c);
  x[1] = add(b, d);
  x[2] = subtract(a, c);
  x[3] = subtract(b, d);
}

INLINE void dft5(Complex *x, int sign) {
  const float c1 = 0.30901699437494742410f, c2 = -0.80901699437494742410f; /* cos(2 pi / 5), cos(4 pi / 5) */
  const float s1 = 0.95105651629515357212f, s2 = 0.58778525229247312917f;  /* sines of the same */
  Complex a = add(x[1], x[4]), b = add(x[2], x[3]), c = subtract(x[1], x[4]), d = subtract(x[2], x[3]);
  Complex p = add(x[0], add(scale(c1, a), scale(c2, b))), u = turned(add(scale(s1, c), scale(s2, d)), sign);
  Complex q = add(x[0], add(scale(c2, a), scale(c1, b))), v = turned(subtract(scale(s2, c), scale(s1, d)), sign);
  x[0] = add(x[0], add(a, b));
  x[1] = add(p, u);
  x[4] = subtract(p, u);
  x[2] = add(q, v);
  x[3] = subtract(q, v);
}

INLINE void dft8(Complex *x, int sign) {
  const float root = 0.70710678118654752440f; /* cos(2 pi / 8) */
  Complex even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
  dft4(even, sign);
  dft4(odd, sign);
  odd[1] = scale(root, add(odd[1], turned(odd[1], sign)));
  odd[2] = turned(odd[2], sign);
  odd[3] = scale(root, subtract(turned(odd[3], sign), odd[3]));
  for (int r = 0; r < 4; r++) {
    x[r] = add(even[r], odd[r]);
    x[r + 4] = subtract(even[r], odd[r]);
  }
}

INLINE void dft(int R, Complex *x, int sign) {
  if (R == 2) dft2(x);
  else if (R == 3) dft3(x, sign);
  else if (R == 4) dft4(x, sign);
  else if (R == 5) dft5(x, sign);
  else dft8(x, sign);
}

/* --- Passes over a block of R parts, with the powers b, b^2 ... b^(R-1) of its twist ------------------------------ */

INLINE void twists(int R, const float *powers, Complex *t) {
  for (int q = 1; q < R; q++) t[q] = (Complex){splat(powers[2 * q - 2]), splat(powers[2 * q - 1])};
}

/* real: imaginary parts are all zero on the way to the spectrum, and not wanted on the way back; nobody touches them. */
INLINE void forward(int R, float *re, float *im, int64_t part, const float *powers, int real) {
  Complex t[MAX_RADIX], x[MAX_RADIX];
  twists(R, powers, t);
  for (int64_t j = 0; j < part; j += W) {
    for (int q = 0; q < R; q++) {
      Vector a = load(re + q * part + j);
      if (real) x[q] = q ? (Complex){a * t[q].re, a * t[q].im} : (Complex){a, splat(0)};
      else {
        x[q] = (Complex){a, load(im + q * part + j)};
        if (q) x[q] = times(x[q], t[q]);
      }
    }
    dft(R, x, 1);
    for (int r = 0; r < R; r++) {
      store(re + r * part + j, x[r].re);
      store(im + r * part + j, x[r].im);
    }
  }
}

INLINE void inverse(int R, float *re, float *im, int64_t part, const float *powers, int real) {
  Complex t[MAX_RADIX], x[MAX_RADIX];
  twists(R, powers, t);
  for (int64_t j = 0; j < part; j += W) {
    for (int r = 0; r < R; r++) x[r] = (Complex){load(re + r * part + j), load(im + r * part + j)};
    dft(R, x, -1);
    for (int q = 0; q < R; q++) {
      if (q) x[q] = times_conj(x[q], t[q]);
      store(re + q * part + j, x[q].re);
      if (!real) store(im + q * part + j, x[q].im);
    }
  }
}

typedef void (*Pass)(float *, float *, int64_t, const float *, int);
#define PASSES(R)                                                                                \
  static void forward_##R(float *re, float *im, int64_t part, const float *powers, int real) {   \
    if (real) forward(R, re, im, part, powers, 1);                                               \
    else forward(R, re, im, part, powers, 0);                                                    \
  }                                                                                              \
  static void inverse_##R(float *re, float *im, int64_t part, const float *powers, int real) {   \
    if (real) inverse(R, re, im, part, powers, 1);                                               \
    else inverse(R, re, im, part, powers, 0);                                                    \
  }
PASSES(2)
PASSES(3)
PASSES(4)
PASSES(5)
PASSES(8)
static const Pass FORWARD[] = {0, 0, forward_2, forward_3, forward_4, forward_5, 0, 0, forward_8};
static const Pass INVERSE[] = {0, 0, inverse_2, inverse_3, inverse_4, inverse_5, 0, 0, inverse_8};

/* --- Leaves: four vectors, transformed in registers ---------------------------------------------------------------

   Radix 4 across the four vectors leaves a block in each. Where a vector is more than one group of four lanes, groups
   are exchanged among the vectors, and radix 4 (four groups) or 2 (two groups) leaves a block in each group. The last
   exchange is that of lanes among vectors, and radix 4 finishes. */

INLINE void exchange(void (*how)(Vector *), Complex *x) {
  Vector re[4] = {x[0].re, x[1].re, x[2].re, x[3].re}, im[4] = {x[0].im, x[1].im, x[2].im, x[3].im};
  how(re);
  how(im);
  for (int i = 0; i < 4; i++) x[i] = (Complex){re[i], im[i]};
}

INLINE void twist(Complex *x, const Complex *t, int sign) {
  for (int q = 1; q < 4; q++) x[q] = twisted(x[q], t[q], sign);
}

/* Twists that differ from lane to lane: their squares and cubes are cheaper to compute than to read. */
INLINE void powers_of(const float *table, Complex *t) {
  t[1] = (Complex){load(table), load(table + W)};
  t[2] = times(t[1], t[1]);
  t[3] = times(t[2], t[1]);
}

/* The second step: within the vectors' groups. `table` holds the blocks' twists. */
INLINE void groups_forward(Complex *x, const float *table) {
  exchange(exchange_groups, x);
#if W == 16
  Complex t[4];
  powers_of(table, t);
  twist(x, t, 1);
  dft4(x, 1);
#elif W == 8
  for (int i = 0; i < 4; i += 2) {
    x[i + 1] = times(x[i + 1], (Complex){load(table + i * W), load(table + i * W + W)});
    dft2(x + i);
  }
#else
  (void)table;
#endif
}

INLINE void groups_inverse(Complex *x, const float *table) {
#if W == 16
  Complex t[4];
  powers_of(table, t);
  dft4(x, -1);
  twist(x, t, -1);
#elif W == 8
  for (int i = 0; i < 4; i += 2) {
    dft2(x + i);
    x[i + 1] = times_conj(x[i + 1], (Complex){load(table + i * W), load(table + i * W + W)});
  }
#else
  (void)table;
#endif
  exchange(exchange_groups, x);
}

/* What a leaf has in Plan.leaves: twists of the second step (W = 16: one vector; 8: two; 4: none), then of the last. */
#define LAST (W == 16 ? 2 * W : W == 8 ? 4 * W : 0)
#define LEAF_TABLE (LAST + 2 * W)

INLINE void leaf_forward(Complex *x, const float *powers, const float *table) {
  Complex t[4];
  twists(4, powers, t);
  twist(x, t, 1);
  dft4(x, 1);
  groups_forward(x, table);
  exchange(exchange_lanes, x);
  powers_of(table + LAST, t);
  twist(x, t, 1);
  dft4(x, 1);
}

INLINE void leaf_inverse(Complex *x, const float *powers, const float *table) {
  Complex t[4];
  dft4(x, -1);
  powers_of(table + LAST, t);
  twist(x, t, -1);
  exchange(exchange_lanes, x);
  groups_inverse(x, table);
  dft4(x, -1);
  twists(4, powers, t);
  twist(x, t, -1);
}

/* --- Whole rows ---------------------------------------------------------------------------------------------------- */

typedef struct {
  int64_t n, levels;                   /* points; passes before the leaves */
  int64_t radix[MAX_LEVELS];           /* of each pass */
  const float *twists[MAX_LEVELS + 1]; /* for each block of a level, R - 1 complex numbers; last, for the leaves, 3 */
  const float *leaves;                 /* for each leaf, LEAF_TABLE numbers */
} Plan;

typedef struct {
  float *re, *im;
} Row;

INLINE Complex at(Row row, int64_t i) { return (Complex){load(row.re + i), load(row.im + i)}; }
INLINE void put(Row row, int64_t i, Complex x) {
  store(row.re + i, x.re);
  store(row.im + i, x.im);
}

/* What is done with the spectrum of x, leaf by leaf:
   SPECTRUM  nothing; it stays.
   PRODUCT   x k, and back.
   GRADIENT  conj(v) x is added to `sum`, then x conj(k), and back. Either may be left out (no `sum`, no `k`).
   SIGNAL    x holds a spectrum already; back. */
enum Aim { SPECTRUM, PRODUCT, GRADIENT, SIGNAL };

typedef struct {
  const Plan *plan;
  Row x, k, v, sum;
} Walk;

INLINE void leaf(const Walk *walk, enum Aim aim, int64_t first) {
  const float *powers = walk->plan->twists[walk->plan->levels] + first / LEAF * 6;
  const float *table = walk->plan->leaves + first / LEAF * LEAF_TABLE;
  Complex x[4];
  for (int i = 0; i < 4; i++) x[i] = at(walk->x, first + i * W);
  if (aim != SIGNAL) leaf_forward(x, powers, table);
  for (int i = 0; i < 4; i++) {
    int64_t here = first + i * W;
    if (aim == PRODUCT) x[i] = times(x[i], at(walk->k, here));
    if (aim == GRADIENT) {
      if (walk->sum.re) put(walk->sum, here, add(at(walk->sum, here), times_conj(x[i], at(walk->v, here))));
      if (walk->k.re) x[i] = times_conj(x[i], at(walk->k, here));
    }
  }
  if (aim != SPECTRUM && (aim != GRADIENT || walk->k.re)) leaf_inverse(x, powers, table);
  for (int i = 0; i < 4; i++) put(walk->x, first + i * W, x[i]);
}

typedef void (*Step)(const Walk *, int64_t level, int64_t block, int64_t points, int real);

/* Depth first: a block goes there and back while it is in cache. */
INLINE void walk_block(const Walk *walk, enum Aim aim, int64_t level, int64_t block, int64_t points, int real, Step self) {
  const Plan *plan = walk->plan;
  if (level == plan->levels) {
    leaf(walk, aim, block * points);
    return;
  }
  int64_t R = plan->radix[level], part = points / R;
  float *re = walk->x.re + block * points, *im = walk->x.im + block * points;
  const float *powers = plan->twists[level] + block * 2 * (R - 1);
  if (aim != SIGNAL) FORWARD[R](re, im, part, powers, real);
  for (int64_t r = 0; r < R; r++) {
    if (level + 1 == plan->levels) leaf(walk, aim, block * points + r * part);
    else self(walk, level + 1, block * R + r, part, 0);
  }
  if (aim != SPECTRUM && (aim != GRADIENT || walk->k.re)) INVERSE[R](re, im, part, powers, real);
}

#define WALK(name, aim)                                                                              \
  static void name(const Walk *walk, int64_t level, int64_t block, int64_t points, int real) {       \
    walk_block(walk, aim, level, block, points, real, name);                                         \
  }
WALK(walk_spectrum, SPECTRUM)
WALK(walk_product, PRODUCT)
WALK(walk_gradient, GRADIENT)
WALK(walk_signal, SIGNAL)
