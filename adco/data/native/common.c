/* Shared by jpeg.c and pixels.c: a thread's working memory, and the position of a crop. */

#include <math.h>
#include <stdlib.h>

#include "native.h"

/* Size of `struct view` in this library: adco.data.native compares it with its own, and never calls a stale library. */
int adco_view_size(void) { return (int)sizeof(struct view); }

void *reserve(struct scratch *scratch, int slot, size_t size) {
    if (scratch->size[slot] < size) {
        free(scratch->memory[slot]);
        scratch->memory[slot] = malloc(size);
        scratch->size[slot] = scratch->memory[slot] ? size : 0;
    }
    return scratch->memory[slot];
}

struct scratch *adco_scratch(void) { return calloc(1, sizeof(struct scratch)); }

void adco_scratch_free(struct scratch *scratch) {
    for (int slot = 0; slot < 3; slot++) free(scratch->memory[slot]);
    free(scratch);
}

/* adco.data.transforms.parameters.crop_box, with the same results. */
void crop_box(int width, int height, const double *scale, const double *u, struct box *box) {
    const double narrow = 3.0 / 4.0, wide = 4.0 / 3.0, low = log(narrow), high = log(wide);
    for (int i = 0; i < TRIES; i++) {
        double target = (double)width * height * (scale[0] + (scale[1] - scale[0]) * u[i]);
        double aspect = exp(low + (high - low) * u[TRIES + i]);
        double w = rint(sqrt(target * aspect)), h = rint(sqrt(target / aspect));
        if (0 < w && w <= width && 0 < h && h <= height) {
            int left = (int)(u[DRAWS - 1] * (width - (int)w + 1)), top = (int)(u[DRAWS - 2] * (height - (int)h + 1));
            *box = (struct box){left, top, (int)w, (int)h};
            return;
        }
    }
    int w = (int)fmin(width, rint(height * wide)), h = (int)fmin(height, rint(width / narrow));
    *box = (struct box){(width - w) / 2, (height - h) / 2, w, h};
}
