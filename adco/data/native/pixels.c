/* One view of an image: crop, antialiased bilinear resize, colour in the sampled order, greyscale, blur, solarize,
 * flip, normalise, written directly into the batch; adco/data/transforms/functional.py defines each operation. Between
 * the resize and the last step a view is three float planes in [0, 1], small enough for the second-level cache. Every
 * loop is written so that a compiler vectorises it. */

#include <math.h>
#include <string.h>

#include "native.h"

#define INLINE static inline __attribute__((always_inline))
#define R restrict

typedef float float4 __attribute__((vector_size(16), aligned(4)));
typedef float float8 __attribute__((vector_size(32), aligned(4)));

enum { BLOCK = 32, MOST_RADIUS = 64 };

/* The input pixels of each output pixel along one side, and their weights: Pillow's triangle filter, wider when the
 * image is made smaller. Every output pixel has `count` taps, some of weight 0, because a loop of known length is twice
 * as fast. */
struct taps {
    int count, *first;
    float *weights; /* (px, count) */
};

static int tap_count(int from, int px) {
    int count = (int)ceil(2 * fmax(1.0, (double)from / px)); /* the filter is open at both ends */
    return count < from ? count : from;
}

static size_t taps_size(int from, int px) { return (size_t)px * (sizeof(int) + tap_count(from, px) * sizeof(float)); }

static struct taps make_taps(void *memory, int from, int px, float unit) {
    double step = (double)from / px, reach = fmax(1.0, step);
    struct taps taps = {tap_count(from, px), memory, (float *)((int *)memory + px)};
    for (int x = 0; x < px; x++) {
        double center = (x + 0.5) * step, sum = 0;
        int first = (int)fmax(0, center - reach + 0.5), last = (int)fmin(from, center + reach + 0.5);
        float *weights = taps.weights + (size_t)x * taps.count;
        taps.first[x] = first < from - taps.count ? first : from - taps.count;
        for (int t = 0; t < taps.count; t++) {
            int i = taps.first[x] + t;
            double weight = i < first || i >= last ? 0 : 1 - fabs((i - center + 0.5) / reach);
            sum += weights[t] = (float)(weight > 0 ? weight : 0);
        }
        for (int t = 0; t < taps.count; t++) weights[t] *= (float)(unit / sum);
    }
    return taps;
}

/* out[j] = sum over taps of weight * row[j]: one row of floats from several rows of bytes. */
INLINE void blend_rows(const uint8_t *R rows, size_t stride, const float *R w, int count, int size, float *R out) {
    for (int j = 0; j < size; j++) {
        float sum = w[0] * rows[j];
        for (int t = 1; t < count; t++) sum += w[t] * rows[t * stride + j];
        out[j] = sum;
    }
}

/* The same for many taps, one tap at a time. */
INLINE void blend_many(const uint8_t *R rows, size_t stride, const float *R w, int count, int size, float *R out) {
    for (int j = 0; j < size; j++) out[j] = 0;
    for (int t = 0; t < count; t++)
        for (int j = 0; j < size; j++) out[j] += w[t] * rows[t * stride + j];
}

/* A line of pixels -> px pixels of four floats; the fourth is unused. */
INLINE void blend_columns(const float *R line, const struct taps *across, int count, int px, float *R out) {
    for (int x = 0; x < px; x++) {
        const float *from = line + 3 * across->first[x], *w = across->weights + (size_t)x * count;
        float4 sum = *(const float4 *)from * w[0];
        for (int t = 1; t < count; t++) sum += *(const float4 *)(from + 3 * t) * w[t];
        *(float4 *)(out + 4 * x) = sum;
    }
}

#define UNROLLED(work, count, otherwise) \
    switch (count) { \
        case 1: work(1); break; \
        case 2: work(2); break; \
        case 3: work(3); break; \
        case 4: work(4); break; \
        case 5: work(5); break; \
        case 6: work(6); break; \
        default: otherwise(count); \
    }

/* Resize to three planes of px x px. line: working memory of 3 * width + 4 floats, then 4 * px. */
INLINE void resize(const uint8_t *R rgb, size_t stride, int width, int px, const struct taps *across,
                   const struct taps *down, float *R line, float *R r, float *R g, float *R b) {
    float *R quads = line + 3 * (size_t)width + 4;
    for (int y = 0; y < px; y++) {
        const float *weights = down->weights + (size_t)y * down->count;
        const uint8_t *rows = rgb + stride * down->first[y];
#define ROWS(n) blend_rows(rows, stride, weights, n, 3 * width, line)
#define MANY(n) blend_many(rows, stride, weights, n, 3 * width, line)
        UNROLLED(ROWS, down->count, MANY)
#define COLUMNS(n) blend_columns(line, across, n, px, quads)
        UNROLLED(COLUMNS, across->count, COLUMNS)
        for (int x = 0, i = y * px; x < px; x++, i++)
            r[i] = quads[4 * x], g[i] = quads[4 * x + 1], b[i] = quads[4 * x + 2];
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

/* out[x] = w[0] * up[0][x] + sum over k of w[k] * (up[k][x] + down[k][x]), for px rounded up to whole blocks. */
INLINE void weigh(const float *const *up, const float *const *down, const float *w, int radius, int px, float *R out) {
    for (int x = 0; x < px; x += BLOCK) {
        float8 sums[BLOCK / 8];
        for (int j = 0; j < BLOCK / 8; j++) sums[j] = w[0] * *(const float8 *)(up[0] + x + 8 * j);
        for (int k = 1; k <= radius; k++)
            for (int j = 0; j < BLOCK / 8; j++)
                sums[j] += w[k] * (*(const float8 *)(up[k] + x + 8 * j) + *(const float8 *)(down[k] + x + 8 * j));
        for (int j = 0; j < BLOCK / 8; j++) *(float8 *)(out + x + 8 * j) = sums[j];
    }
}

/* Gaussian blur; the kernel ends at three sigma, and edges are repeated. Working memory, each with BLOCK more floats:
 * spare, a plane; line, a row with both repeated edges, then a row. */
INLINE void blur(float *R plane, int px, float sigma, float *R spare, float *R line) {
    const float *up[MOST_RADIUS + 1], *down[MOST_RADIUS + 1];
    float w[MOST_RADIUS + 1], sum = 1;
    int radius = (int)ceilf(3 * sigma);
    if (radius > MOST_RADIUS) radius = MOST_RADIUS;
    w[0] = 1;
    for (int k = 1; k <= radius; k++) sum += 2 * (w[k] = expf(-0.5f * (k / sigma) * (k / sigma)));
    for (int k = 0; k <= radius; k++) w[k] /= sum;
    float *middle = line + MOST_RADIUS, *done = middle + px + MOST_RADIUS + BLOCK;
    for (int k = 0; k <= radius; k++) up[k] = middle - k, down[k] = middle + k;
    for (int y = 0; y < px; y++) {
        const float *row = plane + y * px;
        memcpy(middle, row, px * sizeof(float));
        for (int k = 1; k <= radius; k++) middle[-k] = row[0], middle[px - 1 + k] = row[px - 1];
        weigh(up, down, w, radius, px, spare + y * px); /* the next row overwrites what is written beyond this one */
    }
    for (int y = 0; y < px; y++) {
        for (int k = 0; k <= radius; k++) {
            up[k] = spare + (y >= k ? y - k : 0) * px;
            down[k] = spare + (y + k < px ? y + k : px - 1) * px;
        }
        weigh(up, down, w, radius, px, done);
        memcpy(plane + y * px, done, px * sizeof(float));
    }
}

/* Three planes -> the batch's row with interleaved channels, normalised or as levels. */
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

/* Colour, greyscale, blur and solarize, in MoCo's and BYOL's order. planes: r, g, b, `plane` floats apart. */
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

INLINE int render(struct scratch *scratch, const struct image *image, const struct view *view, int row) {
    struct box box;
    int px = view->px;
    crop_box(image->width, image->height, view->scale, view->crops + (size_t)row * DRAWS, &box);
    size_t plane = (size_t)px * px + BLOCK, line = 2 * ((size_t)px + MOST_RADIUS + BLOCK);
    size_t wide = 3 * (size_t)box.width + 4 + 4 * (size_t)px;
    float *planes = reserve(scratch, 1, (4 * plane + line + wide) * sizeof(float));
    size_t across_size = taps_size(box.width, px);
    char *memory = reserve(scratch, 2, across_size + taps_size(box.height, px));
    if (!planes || !memory) return NO_MEMORY;
    float *spare = planes + 3 * plane, *lines = spare + plane;
    struct taps across = make_taps(memory, box.width, px, 1);
    struct taps down = make_taps(memory + across_size, box.height, px, 1.0f / 255);
    const uint8_t *corner = image->rgb + image->stride * (box.top - image->top) + 3 * (size_t)(box.left - image->left);
    memset(lines + line, 0, wide * sizeof(float)); /* the last pixel is read as four floats */
    resize(corner, image->stride, box.width, px, &across, &down, lines + line, planes, planes + plane,
           planes + 2 * plane);
    if (view->factors) recolor(planes, plane, px, view, row, spare, lines);
    deliver(planes, planes + plane, planes + 2 * plane, px, view, row);
    return OK;
}

/* The same code compiled twice: for any machine, and for machines with AVX2; chosen when it runs. */
static int render_anywhere(struct scratch *scratch, const struct image *image, const struct view *view, int row) {
    return render(scratch, image, view, row);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma")))
static int render_avx2(struct scratch *scratch, const struct image *image, const struct view *view, int row) {
    return render(scratch, image, view, row);
}

int render_view(struct scratch *scratch, const struct image *image, const struct view *view, int row) {
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return render_avx2(scratch, image, view, row);
    return render_anywhere(scratch, image, view, row);
}
#else
int render_view(struct scratch *scratch, const struct image *image, const struct view *view, int row) {
    return render_anywhere(scratch, image, view, row);
}
#endif

/* Render `count` views of a decoded (height, width, 3) image into row `row` of the batch. */
int adco_render_pixels(struct scratch *scratch, const uint8_t *rgb, int width, int height, const struct view *views,
                       int count, int row) {
    struct image image = {rgb, (size_t)width * 3, width, height, 0, 0};
    int result = OK;
    for (int v = 0; v < count && result == OK; v++) result = render_view(scratch, &image, &views[v], row);
    return result;
}
