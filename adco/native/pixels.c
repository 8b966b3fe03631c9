/* One view of a picture: crop, antialiased bilinear resize, colour in the drawn order, greyscale, blur, solarize, flip,
 * normalise, straight into the batch. Three float planes in [0, 1], small enough for the second-level cache, between
 * the resize and the last step; every loop is written so that a compiler vectorises it. Meaning: adco/augment.py. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define INLINE static inline __attribute__((always_inline))
#define R restrict

typedef float float4 __attribute__((vector_size(16), aligned(4)));

enum { BLOCK = 32, MOST_RADIUS = 64 };

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

/* views.crop_box, number for number. */
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

/* Which pixels along one side make each output pixel: Pillow's triangle filter, widened when it shrinks. */
struct taps {
    int most, *first, *count;
    float *weights; /* (px, most) */
};

static size_t taps_size(int from, int px) {
    int most = 2 * (int)ceil(fmax(1.0, (double)from / px)) + 2;
    return (size_t)px * (2 * sizeof(int) + most * sizeof(float));
}

static struct taps make_taps(void *memory, int from, int px, float unit) {
    double step = (double)from / px, reach = fmax(1.0, step);
    struct taps taps = {2 * (int)ceil(reach) + 2, memory, (int *)memory + px, (float *)((int *)memory + 2 * px)};
    for (int x = 0; x < px; x++) {
        double center = (x + 0.5) * step, sum = 0;
        int first = (int)(center - reach + 0.5), last = (int)(center + reach + 0.5);
        if (center - reach + 0.5 < 0) first = 0;
        if (last > from) last = from;
        float *weights = taps.weights + (size_t)x * taps.most;
        for (int i = first; i < last; i++) {
            double weight = 1 - fabs((i - center + 0.5) / reach);
            weights[i - first] = (float)(weight > 0 ? weight : 0);
            sum += weights[i - first];
        }
        for (int i = 0; i < last - first; i++) weights[i] *= (float)(unit / sum);
        taps.first[x] = first;
        taps.count[x] = last - first;
    }
    return taps;
}

/* out[j] = sum over taps of weight * row[j]: several rows of bytes become one of floats. */
INLINE void blend_rows(const uint8_t *R rows, size_t stride, const float *R weights, int count, int size, float *R out) {
    for (int j = 0; j < size; j++) out[j] = weights[0] * rows[j];
    int t = 1;
    for (; t + 1 < count; t += 2) {
        const uint8_t *R one = rows + t * stride, *R two = one + stride;
        float a = weights[t], b = weights[t + 1];
        for (int j = 0; j < size; j++) out[j] += a * one[j] + b * two[j];
    }
    if (t < count)
        for (int j = 0; j < size; j++) out[j] += weights[t] * rows[t * stride + j];
}

INLINE void resize(const uint8_t *R rgb, size_t stride, int width, int px, const struct taps *across,
                   const struct taps *down, float *R line, float *R r, float *R g, float *R b) {
    for (int y = 0; y < px; y++) {
        const float *weights = down->weights + (size_t)y * down->most;
        blend_rows(rgb + stride * down->first[y], stride, weights, down->count[y], 3 * width, line);
        for (int x = 0; x < px; x++) {
            const float *from = line + 3 * across->first[x], *w = across->weights + (size_t)x * across->most;
            float4 sum = *(const float4 *)from * w[0];
            for (int t = 1; t < across->count[x]; t++) sum += *(const float4 *)(from + 3 * t) * w[t];
            r[y * px + x] = sum[0], g[y * px + x] = sum[1], b[y * px + x] = sum[2];
        }
    }
}

INLINE float clamp(float v) { v = v > 0 ? v : 0; return v < 1 ? v : 1; }
INLINE float luma(float r, float g, float b) { return 0.299f * r + 0.587f * g + 0.114f * b; }

INLINE void brightness(float *R r, float *R g, float *R b, int n, float f) {
    for (int i = 0; i < n; i++) r[i] = clamp(r[i] * f), g[i] = clamp(g[i] * f), b[i] = clamp(b[i] * f);
}

INLINE void contrast(float *R r, float *R g, float *R b, int n, float f) {
    float part[16] = {0};
    double sum = 0;
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) part[j] += luma(r[i + j], g[i + j], b[i + j]);
    for (; i < n; i++) sum += luma(r[i], g[i], b[i]);
    for (int j = 0; j < 16; j++) sum += part[j];
    float base = (float)(sum / n) * (1 - f);
    for (i = 0; i < n; i++) r[i] = clamp(base + r[i] * f), g[i] = clamp(base + g[i] * f), b[i] = clamp(base + b[i] * f);
}

INLINE void saturation(float *R r, float *R g, float *R b, int n, float f) {
    for (int i = 0; i < n; i++) {
        float base = luma(r[i], g[i], b[i]) * (1 - f);
        r[i] = clamp(base + r[i] * f), g[i] = clamp(base + g[i] * f), b[i] = clamp(base + b[i] * f);
    }
}

/* One channel of HSV -> RGB: k in [0, 12) sixths of a turn. */
INLINE float channel(float value, float chroma, float k) {
    k -= k >= 6 ? 6.0f : 0.0f;
    float up = 4 - k, t = k < up ? k : up;
    return value - chroma * clamp(t);
}

INLINE void hue(float *R r, float *R g, float *R b, int n, float shift) {
    float turn = 6 * shift;
    for (int i = 0; i < n; i++) {
        float x = r[i], y = g[i], z = b[i];
        float most = x > y ? x : y, least = x < y ? x : y;
        most = most > z ? most : z;
        least = least < z ? least : z;
        float chroma = most - least, inverse = 1 / (chroma > 0 ? chroma : 1);
        float sector = x == most ? (y - z) * inverse : (y == most ? 2 + (z - x) * inverse : 4 + (x - y) * inverse);
        sector += turn;
        sector += sector < 0 ? 6.0f : 0.0f;
        sector -= sector >= 6 ? 6.0f : 0.0f;
        r[i] = channel(most, chroma, sector + 5);
        g[i] = channel(most, chroma, sector + 3);
        b[i] = channel(most, chroma, sector + 1);
    }
}

INLINE void greyscale(float *R r, float *R g, float *R b, int n) {
    for (int i = 0; i < n; i++) r[i] = g[i] = b[i] = luma(r[i], g[i], b[i]);
}

INLINE void solarize(float *R v, int n) {
    for (int i = 0; i < n; i++) v[i] = v[i] >= 0.5f ? 1 - v[i] : v[i];
}

/* Gaussian of width sigma cut at three sigma, edges repeated. spare: a plane, then two lines, each with BLOCK to spare. */
INLINE void blur(float *R plane, int px, float sigma, float *R spare, float *R line) {
    float w[MOST_RADIUS + 1], sum = 1;
    int radius = (int)ceilf(3 * sigma);
    if (radius > MOST_RADIUS) radius = MOST_RADIUS;
    w[0] = 1;
    for (int k = 1; k <= radius; k++) sum += 2 * (w[k] = expf(-0.5f * (k / sigma) * (k / sigma)));
    for (int k = 0; k <= radius; k++) w[k] /= sum;
    float *middle = line + radius;
    for (int y = 0; y < px; y++) {
        const float *row = plane + y * px;
        memcpy(middle, row, px * sizeof(float));
        for (int k = 0; k < radius; k++) line[k] = row[0], middle[px + k] = row[px - 1];
        for (int x = 0; x < px; x += BLOCK) {
            float sums[BLOCK];
            const float *at = middle + x;
            for (int j = 0; j < BLOCK; j++) sums[j] = w[0] * at[j];
            for (int k = 1; k <= radius; k++)
                for (int j = 0; j < BLOCK; j++) sums[j] += w[k] * (at[j - k] + at[j + k]);
            memcpy(spare + y * px + x, sums, sizeof sums); /* beyond the row: the next one overwrites it */
        }
    }
    for (int y = 0; y < px; y++)
        for (int x = 0; x < px; x += BLOCK) {
            float sums[BLOCK];
            const float *at = spare + y * px + x;
            for (int j = 0; j < BLOCK; j++) sums[j] = w[0] * at[j];
            for (int k = 1; k <= radius; k++) {
                const float *above = spare + (y >= k ? y - k : 0) * px + x;
                const float *below = spare + (y + k < px ? y + k : px - 1) * px + x;
                for (int j = 0; j < BLOCK; j++) sums[j] += w[k] * (above[j] + below[j]);
            }
            memcpy(plane + y * px + x, sums, (px - x < BLOCK ? px - x : BLOCK) * sizeof(float));
        }
}

/* Three planes -> the batch's interleaved row, normalised or as levels. */
INLINE void deliver(const float *R r, const float *R g, const float *R b, int px, const struct view *view, int row) {
    const float *gain = view->gain, *offset = view->offset;
    int flip = view->factors && view->flip[row], step = flip ? -1 : 1;
    for (int y = 0; y < px; y++) {
        size_t at = ((size_t)row * px + y) * px * 3;
        int from = y * px + (flip ? px - 1 : 0);
        if (view->as_float) {
            float *R out = (float *)view->out + at;
            for (int x = 0, i = from; x < px; x++, i += step) {
                out[3 * x] = r[i] * gain[0] + offset[0];
                out[3 * x + 1] = g[i] * gain[1] + offset[1];
                out[3 * x + 2] = b[i] * gain[2] + offset[2];
            }
        } else {
            uint8_t *R out = (uint8_t *)view->out + at;
            for (int x = 0, i = from; x < px; x++, i += step) {
                out[3 * x] = (uint8_t)(r[i] * 255 + 0.5f);
                out[3 * x + 1] = (uint8_t)(g[i] * 255 + 0.5f);
                out[3 * x + 2] = (uint8_t)(b[i] * 255 + 0.5f);
            }
        }
    }
}

/* Colour to solarize, in MoCo's and BYOL's order. planes: r, g, b; n floats each, `plane` apart. */
INLINE void recolor(float *planes, size_t plane, int px, const struct view *view, int row, float *spare, float *line) {
    float *r = planes, *g = planes + plane, *b = planes + 2 * plane;
    const float *factors = view->factors + 4 * (size_t)row;
    int n = px * px;
    for (int place = 0; place < 4; place++) {
        int operation = (int)view->order[4 * (size_t)row + place];
        float f = factors[operation];
        if (operation == 3 && f != 0) hue(r, g, b, n, f);
        if (operation == 2 && f != 1) saturation(r, g, b, n, f);
        if (operation == 1 && f != 1) contrast(r, g, b, n, f);
        if (operation == 0 && f != 1) brightness(r, g, b, n, f);
    }
    if (view->gray[row]) greyscale(r, g, b, n);
    for (int c = 0; c < 3; c++) {
        if (view->sigma_px[row] > 0) blur(planes + c * plane, px, view->sigma_px[row], spare, line);
        if (view->solarize[row]) solarize(planes + c * plane, n);
    }
}

INLINE int render(struct scratch *scratch, const struct picture *picture, const struct view *view, int row) {
    struct box box;
    int px = view->px;
    crop_box(picture->width, picture->height, view->scale, view->crops + (size_t)row * DRAWS, &box);
    size_t plane = (size_t)px * px + BLOCK, line = (size_t)px + 2 * MOST_RADIUS + 2 * BLOCK, wide = 3 * (size_t)box.width + 4;
    float *planes = reserve(scratch, 1, (4 * plane + line + wide) * sizeof(float));
    size_t across_size = taps_size(box.width, px);
    char *memory = reserve(scratch, 2, across_size + taps_size(box.height, px));
    if (!planes || !memory) return NO_MEMORY;
    float *spare = planes + 3 * plane, *lines = spare + plane;
    struct taps across = make_taps(memory, box.width, px, 1);
    struct taps down = make_taps(memory + across_size, box.height, px, 1.0f / 255);
    const uint8_t *corner = picture->rgb + picture->stride * (box.top - picture->top) + 3 * (size_t)(box.left - picture->left);
    lines[line + wide - 1] = 0; /* the last pixel is read four floats wide */
    resize(corner, picture->stride, box.width, px, &across, &down, lines + line, planes, planes + plane, planes + 2 * plane);
    if (view->factors) recolor(planes, plane, px, view, row, spare, lines);
    deliver(planes, planes + plane, planes + 2 * plane, px, view, row);
    return OK;
}

/* The same code compiled twice: for any machine, and for those with AVX2, chosen when it runs. */
static int render_anywhere(struct scratch *scratch, const struct picture *picture, const struct view *view, int row) {
    return render(scratch, picture, view, row);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma")))
static int render_avx2(struct scratch *scratch, const struct picture *picture, const struct view *view, int row) {
    return render(scratch, picture, view, row);
}

int render_view(struct scratch *scratch, const struct picture *picture, const struct view *view, int row) {
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return render_avx2(scratch, picture, view, row);
    return render_anywhere(scratch, picture, view, row);
}
#else
int render_view(struct scratch *scratch, const struct picture *picture, const struct view *view, int row) {
    return render_anywhere(scratch, picture, view, row);
}
#endif

/* Render `count` views of a decoded (height, width, 3) picture into row `row` of the batch. */
int adco_render_pixels(struct scratch *scratch, const uint8_t *rgb, int width, int height, const struct view *views,
                       int count, int row) {
    struct picture picture = {rgb, (size_t)width * 3, width, height, 0, 0};
    int result = OK;
    for (int v = 0; v < count && result == OK; v++) result = render_view(scratch, &picture, &views[v], row);
    return result;
}
