/* The interface of common.c, jpeg.c and pixels.c: images in, views of a batch out. Needs nothing but the C library. */
#ifndef ADCO_NATIVE_H
#define ADCO_NATIVE_H

#include <stddef.h>
#include <stdint.h>

enum { TRIES = 10, DRAWS = 2 * TRIES + 2 };        /* as in parameters.py: tries of a crop, random numbers of a crop */
enum { OK = 0, UNUSUAL = 1, NO_MEMORY = 2 };       /* UNUSUAL: not decoded here, Pillow decodes or refuses it */

/* One view of a batch of B images. Arrays have one row an image; factors == NULL: crop and resize only. */
struct view {
    int32_t px, as_float;      /* as_float: normalised float32, else uint8 levels */
    double scale[2];           /* RandomResizedCrop's area range */
    float gain[3], offset[3];  /* normalisation: v in [0, 1] -> v * gain + offset */
    const double *crops;       /* (B, DRAWS) uniforms */
    const float *factors;      /* (B, 4) brightness, contrast, saturation, hue */
    const int64_t *order;      /* (B, 4) */
    const uint8_t *gray;       /* (B,) */
    const float *sigma_px;     /* (B,) */
    const uint8_t *solarize;   /* (B,) */
    const uint8_t *flip;       /* (B,) */
    void *out;                 /* (B, px, px, 3) */
};

struct box { int left, top, width, height; };

/* An RGB image of `width` x `height`, or the part of it that starts at (left, top). */
struct image {
    const uint8_t *rgb;
    size_t stride;
    int width, height, left, top;
};

/* Working memory of one thread, reused for the next image. Slots: 0 decoded pixels, 1 planes, 2 resampling weights. */
struct scratch {
    void *memory[3];
    size_t size[3];
};

void *reserve(struct scratch *scratch, int slot, size_t size);
void crop_box(int width, int height, const double *scale, const double *u, struct box *box);
int render_view(struct scratch *scratch, const struct image *image, const struct view *view, int row);

#endif
