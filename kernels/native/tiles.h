/* Tiles: a few channels of a tensor (B, D, L) over some samples, float32, a row for each channel. In memory samples may
   lie beside each other (rows), or channels (as a linear layer leaves them), or neither. */

#ifndef LONGCONV_TILES_H
#define LONGCONV_TILES_H

#include "samples.h"
#include "vector.h"

#define GROUP 16 /* channels of a tile, at most */

typedef struct {
  void *data;                     /* NULL: there is none */
  int64_t batch, channel, sample; /* elements from one to the next */
} Array;

/* Transpose W x W numbers. */
INLINE void transpose(Vector *v) {
  for (int a = 0; a < W; a += 4) exchange_lanes(v + a);
#if W == 16
  for (int j = 0; j < 4; j++) {
    Vector x[4] = {v[j], v[4 + j], v[8 + j], v[12 + j]};
    exchange_groups(x);
    for (int a = 0; a < 4; a++) v[4 * a + j] = x[a];
  }
#elif W == 8
  for (int j = 0; j < 4; j += 2) {
    Vector x[4] = {v[j], v[4 + j], v[j + 1], v[5 + j]};
    exchange_groups(x);
    v[j] = x[0], v[4 + j] = x[1], v[j + 1] = x[2], v[5 + j] = x[3];
  }
#endif
}

static char *element(Array a, int64_t b, int64_t d, int64_t i, int64_t type) {
  return (char *)a.data + (b * a.batch + d * a.channel + i * a.sample) * size_of(type);
}

/* Samples first ... first + count - 1 of some channels from d on, to rows that are `width` apart. */
static void read_tile(Array a, int64_t b, int64_t d, int64_t channels, int64_t first, int64_t count, float *tile,
                      int64_t width, int64_t type) {
  if (a.sample == 1) {
    for (int64_t c = 0; c < channels; c++)
      read_samples(tile + c * width, element(a, b, d + c, 0, type), first, count, type);
    return;
  }
  int64_t c = 0;
  if (a.channel == 1)
    for (; c + W <= channels; c += W) {
      int64_t i = 0;
      for (; i + W <= count; i += W) {
        Vector v[W];
        for (int64_t j = 0; j < W; j++) {
          const char *from = element(a, b, d + c, first + i + j, type);
          if (type == FLOAT32) v[j] = load_anywhere((const float *)from);
          else read_samples((float *)&v[j], from, 0, W, type);
        }
        transpose(v);
        for (int64_t j = 0; j < W; j++) *(Unaligned *)(tile + (c + j) * width + i) = v[j];
      }
      for (; i < count; i++)
        for (int64_t j = 0; j < W; j++)
          read_samples(tile + (c + j) * width + i, element(a, b, d + c + j, first + i, type), 0, 1, type);
    }
  for (; c < channels; c++)
    for (int64_t i = 0; i < count; i++)
      read_samples(tile + c * width + i, element(a, b, d + c, first + i, type), 0, 1, type);
}

/* The other way round. */
static void write_tile(Array a, int64_t b, int64_t d, int64_t channels, int64_t first, int64_t count, const float *tile,
                       int64_t width, int64_t type) {
  if (a.sample == 1) {
    for (int64_t c = 0; c < channels; c++)
      write_samples(element(a, b, d + c, 0, type), first, tile + c * width, count, type);
    return;
  }
  int64_t c = 0;
  if (a.channel == 1)
    for (; c + W <= channels; c += W) {
      int64_t i = 0;
      for (; i + W <= count; i += W) {
        Vector v[W];
        for (int64_t j = 0; j < W; j++) v[j] = load_anywhere(tile + (c + j) * width + i);
        transpose(v);
        for (int64_t j = 0; j < W; j++)
          write_samples(element(a, b, d + c, first + i + j, type), 0, (float *)&v[j], W, type);
      }
      for (; i < count; i++)
        for (int64_t j = 0; j < W; j++)
          write_samples(element(a, b, d + c + j, first + i, type), 0, tile + (c + j) * width + i, 1, type);
    }
  for (; c < channels; c++)
    for (int64_t i = 0; i < count; i++)
      write_samples(element(a, b, d + c, first + i, type), 0, tile + c * width + i, 1, type);
}

#endif
