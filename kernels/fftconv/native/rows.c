/* The causal and the two-sided convolution of rows, and its gradients: `fft_conv` of PyTorch's float32, bfloat16 and
   float16 tensors on a CPU. native/__init__.py calls this; shapes and names are those of `longconv.functional.fft_conv`.

   A row is cut into frames of 2n samples: one, or several of overlap-save (overlap.py has the same in PyTorch). Frame j
   starts `origin` samples before sample j * step, and gives the results j * step ... (j + 1) * step - 1. A task is a
   channel, or a share of its frames; threads take tasks as they come. Where the channels of a tensor lie beside each
   other in memory, and not the samples, a task is a group of channels, read together. */

#include "tiles.h"
#include "transform.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define LARGE (1 << 22) /* bytes: huge pages are asked for */
#define NEAR (1 << 14) /* bytes: so much of a row is asked for before it is needed */
#define CHUNK 512 /* samples on their way from or to memory */

typedef struct {
  Plan plan;
  int64_t B, D, L, type; /* of u, and what it consists of (enum Type): so do gates, dy, y and their gradients */
  int64_t past, future;  /* reach of the filter */
  int64_t origin, step, frames;
  int64_t real;  /* all samples of a row, and all results, lie in the first n of its frame */
  int64_t group; /* channels of a task: 1, or GROUP if rows are whole */
  int64_t parts; /* shares that the frames of a group are cut into */
  int64_t threads;
  Array u, pre_gate, post_gate, dy;
  const float *k, *skip, *k_reverse;   /* (D, past + 1), (D), (D, future) */
  void *y, *du, *dpre_gate, *dpost_gate; /* (B, D, L) */
  float *dk, *dskip, *dk_reverse;      /* of each part, (parts, D, ...) */
  float *scratch;                      /* for each thread, `per_thread` numbers, 64-byte aligned */
  int64_t per_thread;
  int64_t next; /* the task that nobody has taken yet */
} Job;

/* A row that is read: where its sample 0 is, or would be, and what it consists of. */
typedef struct {
  const void *first; /* NULL: there is none */
  int64_t type;
} Source;

static void *row_out(void *data, const Job *job, int64_t b, int64_t d) {
  return data ? (char *)data + (b * job->D + d) * job->L * size_of(job->type) : 0;
}

/* --- Between rows in memory and frames -----------------------------------------------------------------------------
   Sample i of a frame is real part i if i < n, else minus the imaginary part i - n. */

/* Where sample i of a frame lies, and how many follow it there, at most `count`; `sign` is that of what lies there. */
static float *place(const Job *job, Row frame, int64_t i, int64_t *count, float *sign) {
  int64_t n = job->plan.n;
  *sign = i < n ? 1 : -1;
  *count = minimum(*count, i < n ? n - i : 2 * n - i);
  return i < n ? frame.re + i : frame.im + i - n;
}

/* Fill a frame: its samples first ... first + count - 1 are gate * row from sample `from` on, all others are zero. */
static void fill(const Job *job, Row frame, int64_t first, int64_t count, Source row, Source gate, int64_t from) {
  int64_t n = job->plan.n;
  float weights[CHUNK], sign;
  if (first > 0) memset(frame.re, 0, 4 * minimum(first, n));
  if (first + count < n) memset(frame.re + first + count, 0, 4 * (n - first - count));
  if (!job->real) {
    if (first > n) memset(frame.im, 0, 4 * (first - n));
    int64_t end = maximum(first + count - n, 0);
    memset(frame.im + end, 0, 4 * (n - end));
  }
  for (int64_t done = 0, some; done < count; done += some) {
    some = minimum(count - done, CHUNK);
    float *restrict to = place(job, frame, first + done, &some, &sign);
    read_samples(to, row.first, from + done, some, row.type);
    if (gate.first) {
      read_samples(weights, gate.first, from + done, some, gate.type);
      for (int64_t i = 0; i < some; i++) to[i] *= sign * weights[i];
    } else if (sign < 0)
      for (int64_t i = 0; i < some; i++) to[i] = -to[i];
  }
}

/* Write gate * a frame's samples first ... first + count - 1 to samples `from` ... of a row. */
static void drain(const Job *job, Row frame, int64_t first, int64_t count, void *row, Source gate, int64_t from) {
  float weights[CHUNK], values[CHUNK], sign;
  for (int64_t done = 0, some; done < count; done += some) {
    some = minimum(count - done, CHUNK);
    const float *restrict source = place(job, frame, first + done, &some, &sign);
    if (gate.first) {
      read_samples(weights, gate.first, from + done, some, gate.type);
      for (int64_t i = 0; i < some; i++) values[i] = sign * weights[i] * source[i];
      source = values;
    } else if (sign < 0) {
      for (int64_t i = 0; i < some; i++) values[i] = -source[i];
      source = values;
    }
    write_samples(row, from + done, source, some, job->type);
  }
}

/* --- Filters -------------------------------------------------------------------------------------------------------- */

/* A tap that acts s samples earlier is one that acts 2n - s samples later, with the other sign. The skip weight is a
   tap at lag 0. An inverse transform lacks a factor 1 / n: filters have it. */
static void filter_spectrum(const Job *job, int64_t d, Row k) {
  int64_t n = job->plan.n, past = job->past, future = job->future;
  float scale = 1.0f / n;
  const float *taps = job->k + d * (past + 1);
  memset(k.re, 0, 4 * n);
  memset(k.im, 0, 4 * n);
  for (int64_t s = 0; s < minimum(past + 1, n); s++) k.re[s] = scale * taps[s];
  for (int64_t s = n; s <= past; s++) k.im[s - n] = -scale * taps[s];
  if (job->skip) k.re[0] += scale * job->skip[d];
  if (future) {
    const float *ahead = job->k_reverse + d * future;
    for (int64_t s = 1; s <= minimum(future, n); s++) k.im[n - s] += scale * ahead[s - 1];
    for (int64_t s = n + 1; s <= future; s++) k.re[2 * n - s] -= scale * ahead[s - 1];
  }
  Walk walk = {&job->plan, k, {0}, {0}, {0}};
  walk_spectrum(&walk, 0, 0, n, !job->future && job->past < n && job->plan.levels > 0);
}

/* The adjoint: from the spectrum of the correlation, gradients of the taps of one channel. */
static void filter_gradients(const Job *job, int64_t part, int64_t d, Row sum) {
  int64_t n = job->plan.n, past = job->past, future = job->future;
  float scale = 1.0f / n;
  Walk walk = {&job->plan, sum, {0}, {0}, {0}};
  walk_signal(&walk, 0, 0, n, 0);
  if (job->dk) {
    float *dk = job->dk + (part * job->D + d) * (past + 1);
    for (int64_t s = 0; s < minimum(past + 1, n); s++) dk[s] = scale * sum.re[s];
    for (int64_t s = n; s <= past; s++) dk[s] = -scale * sum.im[s - n];
  }
  if (job->dk_reverse) {
    float *ahead = job->dk_reverse + (part * job->D + d) * future;
    for (int64_t s = 1; s <= minimum(future, n); s++) ahead[s - 1] = scale * sum.im[n - s];
    for (int64_t s = n + 1; s <= future; s++) ahead[s - 1] = -scale * sum.re[2 * n - s];
  }
}

/* --- Tasks ---------------------------------------------------------------------------------------------------------- */

/* Row `index` of a thread's scratch memory. The gap keeps parts out of each other's way in a cache of few ways. */
static Row scratch_row(const Job *job, float *scratch, int64_t index) {
  int64_t n = job->plan.n, gap = 16;
  float *first = scratch + index * 2 * (n + gap);
  return (Row){first, first + n + gap};
}

/* Behind the spectra of a thread: a tile for each tensor whose samples do not lie beside each other. */
enum Tensor { U, PRE, POST, DY, TENSORS };

static int64_t tile_width(const Job *job) { return (job->L / 16 + 2) * 16; }

static Array tensor(const Job *job, enum Tensor which) {
  return which == U ? job->u : which == PRE ? job->pre_gate : which == POST ? job->post_gate : job->dy;
}

/* Channel c of the group from d on: where it is, or in its tile, which `read_group` has filled. */
static Source source(const Job *job, const float *tiles, enum Tensor which, int64_t b, int64_t d, int64_t c) {
  Array a = tensor(job, which);
  if (!a.data) return (Source){0, FLOAT32};
  if (a.sample == 1) return (Source){element(a, b, d + c, 0, job->type), job->type};
  return (Source){tiles + (which * job->group + c) * tile_width(job), FLOAT32};
}

static void read_group(const Job *job, float *tiles, int64_t b, int64_t d, int64_t channels) {
  for (int which = 0; which < TENSORS; which++) {
    Array a = tensor(job, which);
    if (a.data && a.sample != 1)
      read_tile(a, b, d, channels, 0, job->L, tiles + which * job->group * tile_width(job), tile_width(job), job->type);
  }
}

/* The samples of the row that frame j holds, all of its 2n or only the `step` that its results are of. */
static void frame_of(const Job *job, Row frame, int64_t j, int whole, Source row, Source gate) {
  int64_t start = j * job->step - job->origin;
  int64_t from = maximum(whole ? start : j * job->step, 0);
  int64_t to = minimum(whole ? start + 2 * job->plan.n : (j + 1) * job->step, job->L);
  fill(job, frame, from - start, to - from, row, gate, from);
}

static void results(const Job *job, Row frame, int64_t j, void *row, Source gate) {
  int64_t from = j * job->step;
  drain(job, frame, job->origin, minimum(job->step, job->L - from), row, gate, from);
}

/* Have the memory of a frame's samples come near while something else is computed. `written` is a constant. */
INLINE void ask_for(const Job *job, const void *row, int64_t j, int written) {
  int64_t start = j * job->step, size = size_of(job->type);
  int64_t bytes = minimum(minimum(job->step, job->L - start) * size, NEAR);
  for (int64_t i = 0; i < bytes; i += 64) {
    if (written) __builtin_prefetch((const char *)row + start * size + i, 1, 3);
    else __builtin_prefetch((const char *)row + start * size + i, 0, 3);
  }
}

/* The same for what is read for frame i of all those of channel d. */
static void ask_for_input(const Job *job, enum Tensor which, int64_t i, int64_t d) {
  Array a = tensor(job, which);
  if (a.data && a.sample == 1) ask_for(job, element(a, i / job->frames, d, 0, job->type), i % job->frames, 0);
}

static void forward_task(const Job *job, int64_t task, float *scratch) {
  int64_t first = task / job->parts * job->group, part = task % job->parts, count = job->B * job->frames;
  int64_t channels = minimum(job->group, job->D - first), n = job->plan.n;
  Row x = scratch_row(job, scratch, 0);
  float *tiles = scratch_row(job, scratch, 1 + job->group).re;
  for (int64_t c = 0; c < channels; c++) filter_spectrum(job, first + c, scratch_row(job, scratch, 1 + c));
  int64_t end = count * (part + 1) / job->parts;
  for (int64_t i = count * part / job->parts; i < end; i++) {
    int64_t b = i / job->frames, j = i % job->frames;
    read_group(job, tiles, b, first, channels);
    for (int64_t c = 0; c < channels; c++) {
      void *y = row_out(job->y, job, b, first + c);
      frame_of(job, x, j, 1, source(job, tiles, U, b, first, c), source(job, tiles, PRE, b, first, c));
      ask_for(job, y, j, 1);
      if (i + 1 < end) ask_for_input(job, U, i + 1, first + c);
      Walk walk = {&job->plan, x, scratch_row(job, scratch, 1 + c), {0}, {0}};
      walk_product(&walk, 0, 0, n, job->real);
      results(job, x, j, y, source(job, tiles, POST, b, first, c));
    }
  }
}

/* Add what earlier frames left for the samples of this one, and keep what it leaves for later ones: overlap-add. */
static void carry_over(const Job *job, Row frame, float *carry) {
  int64_t n = job->plan.n, length = job->past + job->future;
  float sign;
  for (int64_t i = 0, some; i < length; i += some) {
    some = length - i;
    float *restrict x = place(job, frame, i, &some, &sign);
    for (int64_t m = 0; m < some; m++) x[m] += sign * carry[i + m];
  }
  for (int64_t i = job->step, some; i < 2 * n; i += some) {
    some = 2 * n - i;
    const float *restrict x = place(job, frame, i, &some, &sign);
    for (int64_t m = 0; m < some; m++) carry[i - job->step + m] = sign * x[m];
  }
}

/* The sum over the results of frame j of dy and input, both gated: through spectra it would lose digits. */
static double dot(const Job *job, Row dy, Row v, int64_t j) {
  double sum = 0;
  float sign;
  int64_t end = job->origin + minimum(job->step, job->L - j * job->step);
  for (int64_t i = job->origin, some; i < end; i += some) {
    some = minimum(end - i, CHUNK);
    const float *a = place(job, dy, i, &some, &sign), *b = place(job, v, i, &some, &sign);
    double part[8] = {0};
    for (int64_t m = 0; m < some; m++) part[m % 8] += (double)a[m] * b[m];
    for (int64_t m = 0; m < 8; m++) sum += part[m];
  }
  return sum;
}

static void backward_task(const Job *job, int64_t task, float *scratch) {
  int64_t group = task / job->parts * job->group, part = task % job->parts, count = job->B * job->frames;
  int64_t channels = minimum(job->group, job->D - group), n = job->plan.n, reach = job->past + job->future;
  int64_t begin = count * part / job->parts, end = count * (part + 1) / job->parts;
  int of_taps = job->dk || job->dk_reverse, of_input = job->du || job->dpre_gate;
  double dskip[GROUP] = {0};
  Row x = scratch_row(job, scratch, 0), v = scratch_row(job, scratch, 1), none = {0, 0};
  float *beyond = scratch_row(job, scratch, 2 + 2 * job->group).re; /* of whole rows the tiles, of frames: */
  if (job->frames > 1) memset(beyond, 0, 4 * reach);
  for (int64_t c = 0; c < channels; c++) {
    Row sum = scratch_row(job, scratch, 3 + 2 * c);
    if (of_input || job->dpost_gate) filter_spectrum(job, group + c, scratch_row(job, scratch, 2 + 2 * c));
    if (of_taps) {
      memset(sum.re, 0, 4 * n);
      memset(sum.im, 0, 4 * n);
    }
  }
  /* Frames before the first one of this part reach into its samples: they are gone through again. */
  int64_t again = of_input ? minimum((reach + job->step - 1) / job->step, begin % job->frames) : 0;
  for (int64_t i = begin - again; i < end; i++) {
    int64_t b = i / job->frames, j = i % job->frames;
    int own = i >= begin, last = j + 1 == job->frames, needs_v = own && (of_taps || job->dskip || job->dpost_gate);
    read_group(job, beyond, b, group, channels);
    for (int64_t c = 0; c < channels; c++) {
      int64_t d = group + c;
      Row k = scratch_row(job, scratch, 2 + 2 * c), sum = scratch_row(job, scratch, 3 + 2 * c);
      Source u = source(job, beyond, U, b, group, c), dy = source(job, beyond, DY, b, group, c);
      Source pre = source(job, beyond, PRE, b, group, c), post = source(job, beyond, POST, b, group, c);
      if (needs_v) frame_of(job, v, j, 1, u, pre);
      frame_of(job, x, j, 0, dy, post);
      if (own && job->dskip) dskip[c] += dot(job, x, v, j);
      if (own && job->du) ask_for(job, row_out(job->du, job, b, d), j, 1);
      if (i + 1 < end) {
        ask_for_input(job, DY, i + 1, d);
        if (needs_v) ask_for_input(job, U, i + 1, d);
      }
      if (own && (of_taps || job->dpost_gate)) {
        Walk walk = {&job->plan, v, none, none, none};
        walk_spectrum(&walk, 0, 0, n, job->real);
      }
      if (of_input || (own && of_taps)) {
        Walk walk = {&job->plan, x, of_input ? k : none, v, own && of_taps ? sum : none};
        walk_gradient(&walk, 0, 0, n, job->real);
      }
      if (of_input && job->frames > 1) {
        carry_over(job, x, beyond);
        if (last) memset(beyond, 0, 4 * reach);
      }
      if (!own) continue;
      if (of_input) {
        int64_t start = j * job->step - job->origin, from = maximum(start, 0);
        int64_t some = (last ? job->L : start + job->step) - from;
        if (job->dpre_gate) drain(job, x, from - start, some, row_out(job->dpre_gate, job, b, d), u, from);
        if (job->du) drain(job, x, from - start, some, row_out(job->du, job, b, d), pre, from);
      }
      if (job->dpost_gate) {
        for (int64_t p = 0; p < n; p += W) put(x, p, times(at(v, p), at(k, p)));
        Walk walk = {&job->plan, x, none, none, none};
        walk_signal(&walk, 0, 0, n, job->real);
        results(job, x, j, row_out(job->dpost_gate, job, b, d), dy);
      }
    }
  }
  for (int64_t c = 0; c < channels; c++) {
    if (of_taps) filter_gradients(job, part, group + c, scratch_row(job, scratch, 3 + 2 * c));
    if (job->dskip) job->dskip[part * job->D + group + c] = (float)dskip[c];
  }
}

/* --- Threads -------------------------------------------------------------------------------------------------------- */

typedef struct {
  Job *job;
  int64_t arrived; /* threads that have taken their part of the scratch memory */
  int backward;
} Team;

static int64_t tasks_of(const Job *job) { return (job->D + job->group - 1) / job->group * job->parts; }

static void work(void *data) {
  Team *team = data;
  Job *job = team->job;
  int64_t me = __atomic_fetch_add(&team->arrived, 1, __ATOMIC_RELAXED);
  float *scratch = job->scratch + me * job->per_thread;
  for (;;) {
    int64_t task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (task >= tasks_of(job)) return;
    if (team->backward) backward_task(job, task, scratch);
    else forward_task(job, task, scratch);
  }
}

void longconv_rows(Job *job, int backward, Parallel parallel) {
  Team team = {job, 0, backward};
  int64_t threads = minimum(job->threads, tasks_of(job));
#if defined(MADV_HUGEPAGE)
  /* Long rows span more small pages than a processor remembers: backward at a million samples takes half the time. */
  int64_t page = 4096, bytes = 4 * threads * job->per_thread, start = ((intptr_t)job->scratch + page - 1) / page * page;
  int64_t inside = ((intptr_t)job->scratch + bytes - start) / page * page;
  if (bytes >= LARGE) madvise((void *)(intptr_t)start, inside, MADV_HUGEPAGE);
#endif
  if (threads > 1) parallel(work, &team, (unsigned)threads, 0);
  else work(&team);
}

/* For measurements: each thread does a stage of the forward pass `repeats` times on the first row of a channel, which
   stays in cache. Whole rows only (one frame). */
enum Stage { FILTER, FILL, TRANSFORM, DRAIN };

typedef struct {
  Job *job;
  int64_t arrived, stage, repeats;
} Drill;

static void repeat_stage(void *data) {
  Drill *drill = data;
  const Job *job = drill->job;
  int64_t me = __atomic_fetch_add(&drill->arrived, 1, __ATOMIC_RELAXED), d = me % job->D;
  float *scratch = job->scratch + me * job->per_thread;
  Row x = scratch_row(job, scratch, 0), k = scratch_row(job, scratch, 1);
  Source u = source(job, 0, U, 0, d, 0), none = {0, FLOAT32};
  Walk walk = {&job->plan, x, k, {0}, {0}};
  filter_spectrum(job, d, k);
  frame_of(job, x, 0, 1, u, none);
  for (int64_t i = 0; i < drill->repeats; i++) {
    if (drill->stage == FILTER) filter_spectrum(job, d, k);
    else if (drill->stage == FILL) frame_of(job, x, 0, 1, u, none);
    else if (drill->stage == TRANSFORM) walk_product(&walk, 0, 0, job->plan.n, job->real);
    else results(job, x, 0, row_out(job->y, job, 0, d), none);
  }
}

void longconv_stage(Job *job, int64_t stage, int64_t repeats, Parallel parallel) {
  Drill drill = {job, 0, stage, repeats};
  if (job->threads > 1) parallel(repeat_stage, &drill, (unsigned)job->threads, 0);
  else repeat_stage(&drill);
}

/* What the caller has to know of this build. */
int64_t longconv_lanes(void) { return W; }
int64_t longconv_has_float16(void) { return HAS_FLOAT16; }
int64_t longconv_size_of_job(void) { return sizeof(Job); }
