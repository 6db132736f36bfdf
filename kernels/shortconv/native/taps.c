/* `short_conv` on a CPU: gates, taps, bias and SiLU in one pass over memory, and so are its gradients.

   native/__init__.py calls this; names are those of `longconv.functional.short_conv`. With v = pre u,

     z[t] = bias + sum over s of weight[s] v[t + shift - s],    y[t] = post[t] act(z[t])

   where v is zero outside the span of its sequence. Work is cut into items, some samples of a sequence each, and groups
   of channels; what an item needs is read into tiles that stay in cache, with as many samples around it as the taps
   reach. */

#include "tiles.h"

#define SUMMED 2048 /* samples that are summed up in float32 before float64 takes over */

typedef struct {
  int64_t low, high;         /* the sequence: v is zero elsewhere */
  int64_t out_low, out_high; /* its results */
  int64_t first, end;        /* samples of the item, of results and of inputs alike */
} Item;

typedef struct {
  int64_t B, D, K, shift, type, silu;
  int64_t count;
  const Item *items;
  int64_t parts, threads; /* shares that the items of all batch rows are cut into; a task is one for a group */
  Array u, pre_gate, post_gate, dy, y, du, dpre_gate, dpost_gate;
  const float *weight, *bias; /* (D, K), (D) */
  double *sums;               /* gradients of each share: (parts, D, K + 1), the bias' behind the taps' */
  float *scratch;             /* for each thread TILES tiles of GROUP rows, 64-byte aligned */
  int64_t width;              /* numbers of a row of a tile, a multiple of 16 */
  int64_t next;
} Job;

#define TILES 4

/* --- Arithmetic on rows. Rows are longer than what is wanted of them, and finite there where samples are. ----------- */

/* z[j] = bias + sum over s of weight[s] v[j - s step], j < count, rounded up to whole vectors; `step` is 1 or -1. */
static void filter_row(const float *v, const float *weight, int64_t K, int64_t step, float bias, float *z, int64_t count) {
  for (int64_t j = 0; j < count; j += 4 * W) {
    Vector a = splat(bias), b = a, c = a, d = a;
    for (int64_t s = 0; s < K; s++) {
      const float *from = v + j - s * step;
      Vector w = splat(weight[s]);
      a += w * load_anywhere(from);
      b += w * load_anywhere(from + W);
      c += w * load_anywhere(from + 2 * W);
      d += w * load_anywhere(from + 3 * W);
    }
    store(z + j, a);
    store(z + j + W, b);
    store(z + j + 2 * W, c);
    store(z + j + 3 * W, d);
  }
}

INLINE double total(Vector v) {
  double sum = 0;
  for (int i = 0; i < W; i++) sum += v[i];
  return sum;
}

/* sums[s + r] += sum over j < count of dz[j] v[j - s - r], r < R. dz is zero behind `count`. */
INLINE void sum_taps(int R, const float *v, const float *dz, int64_t s, int64_t count, double *sums) {
  for (int64_t done = 0; done < count; done += SUMMED) {
    Vector part[8] = {{0}};
    for (int64_t j = done; j < minimum(done + SUMMED, count); j += W) {
      Vector d = load_anywhere(dz + j);
      for (int r = 0; r < R; r++) part[r] += d * load_anywhere(v + j - s - r);
    }
    for (int r = 0; r < R; r++) sums[s + r] += total(part[r]);
  }
}

static void tap_gradients(const float *v, const float *dz, int64_t K, int64_t count, double *sums) {
  int64_t s = 0;
  for (; s + 8 <= K; s += 8) sum_taps(8, v, dz, s, count, sums);
  for (; s + 4 <= K; s += 4) sum_taps(4, v, dz, s, count, sums);
  for (; s < K; s++) sum_taps(1, v, dz, s, count, sums);
  for (int64_t done = 0; done < count; done += SUMMED) {
    Vector part = {0};
    for (int64_t j = done; j < minimum(done + SUMMED, count); j += W) part += load_anywhere(dz + j);
    sums[K] += total(part);
  }
}

INLINE Vector chosen(Lanes where, Vector a, Vector b) { return (Vector)(((Lanes)a & where) | ((Lanes)b & ~where)); }

/* exp(x): 2^n times a polynomial of the rest, |rest| <= log(2) / 2 (Cephes, expf). Beyond float32's range 0 or infinity. */
INLINE Vector exponential(Vector x) {
  const Vector low = splat(-104.0f), high = splat(89.0f);
  x = chosen(x < low, low, chosen(x > high, high, x)); /* what is no number stays so */
  const float magic = 12582912.0f; /* 1.5 2^23: adding and subtracting it rounds to a whole number */
  Vector n = (x * 1.44269504088896341f + magic) - magic;
  Vector r = x - n * 0.693359375f - n * -2.12194440e-4f;
  Vector p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  /* 2^n in two factors: n may be beyond the exponents there are */
  Lanes whole = __builtin_convertvector(n, Lanes), half = whole >> 1;
  Lanes first = (half + 127) << 23, second = (whole - half + 127) << 23;
  return p * (Vector)first * (Vector)second;
}

INLINE Vector sigmoid(Vector z) { return 1.0f / (1.0f + exponential(-z)); }

/* --- Tiles ---------------------------------------------------------------------------------------------------------- */

typedef struct {
  const Job *job;
  int64_t b, d, channels;
  float *tiles[TILES];
} Place;

static float *row(const Place *p, int tile, int64_t c) { return p->tiles[tile] + c * p->job->width; }

/* Samples first ... end - 1 into a tile; those outside of low ... high - 1 are zero, as is the rest of its rows. */
static void fill(const Place *p, Array a, int tile, int64_t low, int64_t high, int64_t first, int64_t end) {
  const Job *job = p->job;
  int64_t from = maximum(first, low), to = maximum(minimum(end, high), from), width = job->width;
  for (int64_t c = 0; c < p->channels; c++) {
    float *x = row(p, tile, c);
    memset(x, 0, 4 * minimum(from - first, width));
    if (to - first < width) memset(x + (to - first), 0, 4 * (width - (to - first)));
  }
  if (to > from) read_tile(a, p->b, p->d, p->channels, from, to - from, p->tiles[tile] + (from - first), width, job->type);
}

static void multiply(const Place *p, int tile, int other, int64_t count) {
  for (int64_t c = 0; c < p->channels; c++) {
    float *restrict x = row(p, tile, c);
    const float *restrict y = row(p, other, c);
    for (int64_t i = 0; i < count; i++) x[i] *= y[i];
  }
}

static void write(const Place *p, Array a, int tile, int64_t offset, int64_t first, int64_t end) {
  if (end > first)
    write_tile(a, p->b, p->d, p->channels, first, end - first, p->tiles[tile] + offset, p->job->width, p->job->type);
}

static int64_t reach(const Job *job) { return job->K - 1; }

/* v over all that the results first ... end - 1 take, in tile 0; tile 1 is used for the gate. */
static void fill_inputs(const Place *p, const Item *item, int64_t first, int64_t end) {
  const Job *job = p->job;
  int64_t from = first + job->shift - reach(job), to = end + job->shift;
  fill(p, job->u, 0, item->low, item->high, from, to);
  if (job->pre_gate.data) {
    fill(p, job->pre_gate, 1, item->low, item->high, from, to);
    multiply(p, 0, 1, to - from);
  }
}

static void forward_item(const Place *p, const Item *item) {
  const Job *job = p->job;
  int64_t first = maximum(item->first, item->out_low), end = minimum(item->end, item->out_high), count = end - first;
  if (count <= 0) return;
  fill_inputs(p, item, first, end);
  if (job->post_gate.data) fill(p, job->post_gate, 2, item->out_low, item->out_high, first, end);
  for (int64_t c = 0; c < p->channels; c++) {
    float *z = row(p, 1, c);
    const float *post = job->post_gate.data ? row(p, 2, c) : 0;
    float bias = job->bias ? job->bias[p->d + c] : 0;
    filter_row(row(p, 0, c) + reach(job), job->weight + (p->d + c) * job->K, job->K, 1, bias, z, count);
    for (int64_t j = 0; (job->silu || post) && j < count; j += W) {
      Vector x = load(z + j);
      if (job->silu) x *= sigmoid(x);
      if (post) x *= load(post + j);
      store(z + j, x);
    }
  }
  write(p, job->y, 1, 0, first, end);
}

static void backward_item(const Place *p, const Item *item, double *sums) {
  const Job *job = p->job;
  int of_input = job->du.data || job->dpre_gate.data, K = job->K;
  int64_t first = item->first, end = item->end;
  /* dz wherever an input of the item shows, and on the item itself */
  int64_t start = first, stop = end;
  if (of_input) {
    start = minimum(start, first - job->shift);
    stop = maximum(stop, end - job->shift + reach(job));
  }
  int64_t offset = first - start, own = minimum(end, item->out_high) - first;
  fill_inputs(p, item, start, stop);
  fill(p, job->dy, 2, item->out_low, item->out_high, start, stop);
  if (job->post_gate.data) fill(p, job->post_gate, 3, item->out_low, item->out_high, start, stop);
  if (job->silu || job->dpost_gate.data || job->post_gate.data)
    for (int64_t c = 0; c < p->channels; c++) {
      float *dz = row(p, 2, c), *z = row(p, 1, c);
      const float *post = job->post_gate.data ? row(p, 3, c) : 0;
      float bias = job->bias ? job->bias[p->d + c] : 0;
      if (job->silu || job->dpost_gate.data)
        filter_row(row(p, 0, c) + reach(job), job->weight + (p->d + c) * K, K, 1, bias, z, stop - start);
      for (int64_t j = 0; j < stop - start; j += W) {
        Vector d = load(dz + j), x = load(z + j), slope = splat(1), act = x;
        if (job->silu) {
          Vector e = exponential(-x), s = 1.0f / (1.0f + e);
          act = x * s;
          slope = s * (1 + x * chosen(e < 1.0f, e * s, 1 - s)); /* e s = 1 - s, without cancellation */
        }
        if (job->dpost_gate.data) store(z + j, d * act); /* the gradient of the gate, over z */
        if (post) d *= load(post + j);
        store(dz + j, d * slope);
      }
      /* What is computed beyond the results is not a gradient: 0 times a number that is none would be none. */
      int64_t before = maximum(item->out_low - start, 0), after = maximum(item->out_high - start, 0);
      if (before > 0) memset(dz, 0, 4 * minimum(before, job->width));
      if (after < job->width) memset(dz + after, 0, 4 * (job->width - after));
    }
  if (job->dpost_gate.data) write(p, job->dpost_gate, 1, offset, first, minimum(end, item->out_high));
  if (sums && own > 0)
    for (int64_t c = 0; c < p->channels; c++) {
      /* only results of the item: those of the next one are in its own sums */
      float *dz = row(p, 3, c);
      memcpy(dz, row(p, 2, c) + offset, 4 * own);
      memset(dz + own, 0, 4 * minimum(W, job->width - own));
      tap_gradients(row(p, 0, c) + offset + reach(job), dz, K, own, sums + (p->d + c) * (K + 1));
    }
  if (!of_input) return;
  int64_t from = maximum(first, item->low), to = minimum(end, item->high), count = to - from;
  if (count <= 0) return;
  for (int64_t c = 0; c < p->channels; c++) /* input i shows in results i - shift + s */
    filter_row(row(p, 2, c) + from - job->shift - start, job->weight + (p->d + c) * K, K, -1, 0, row(p, 1, c), count);
  if (job->dpre_gate.data) {
    fill(p, job->u, 0, item->low, item->high, from, to);
    multiply(p, 0, 1, count);
    write(p, job->dpre_gate, 0, 0, from, to);
  }
  if (job->du.data) {
    if (job->pre_gate.data) {
      fill(p, job->pre_gate, 0, item->low, item->high, from, to);
      multiply(p, 1, 0, count);
    }
    write(p, job->du, 1, 0, from, to);
  }
}

/* --- Tasks ---------------------------------------------------------------------------------------------------------- */

typedef struct {
  Job *job;
  int64_t arrived;
  int backward;
} Team;

static void work(void *data) {
  Team *team = data;
  Job *job = team->job;
  int64_t me = __atomic_fetch_add(&team->arrived, 1, __ATOMIC_RELAXED), all = job->B * job->count;
  Place p = {job, 0, 0, 0, {0}};
  for (int i = 0; i < TILES; i++) p.tiles[i] = job->scratch + (me * TILES + i) * GROUP * job->width;
  int64_t groups = (job->D + GROUP - 1) / GROUP;
  for (;;) {
    int64_t task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (task >= groups * job->parts) return;
    int64_t part = task / groups;
    p.d = task % groups * GROUP;
    p.channels = minimum(GROUP, job->D - p.d);
    for (int64_t i = all * part / job->parts; i < all * (part + 1) / job->parts; i++) {
      const Item *item = job->items + i % job->count;
      p.b = i / job->count;
      if (team->backward) backward_item(&p, item, job->sums ? job->sums + part * job->D * (job->K + 1) : 0);
      else forward_item(&p, item);
    }
  }
}

void longconv_taps(Job *job, int backward, Parallel parallel) {
  Team team = {job, 0, backward};
  int64_t tasks = (job->D + GROUP - 1) / GROUP * job->parts, threads = minimum(job->threads, tasks);
  if (threads > 1) parallel(work, &team, (unsigned)threads, 0);
  else work(&team);
}

int64_t longconv_lanes(void) { return W; }
int64_t longconv_has_float16(void) { return HAS_FLOAT16; }
int64_t longconv_size_of_job(void) { return sizeof(Job); }
