/* JPEG decoding by the libjpeg-turbo that Pillow contains; its functions are passed as pointers. Only the part of the
 * image that some crop needs is decoded; the rows below it are not read.
 *
 * The two structures are libjpeg's public interface of ABI version 6.2, up to the last field used here. The library
 * checks version and size when a decompressor is created, and raises an error on a mismatch. */

#include <setjmp.h>
#include <string.h>

#include "native.h"

enum { JPEG_ABI = 62, JPEG_GRAY = 1, JPEG_RGB = 2, JPEG_YCC = 3, MARGIN = 2 };
enum { MOST_PIXELS = 89478485 }; /* Pillow's limit against decompression bombs; Pillow refuses larger images */

struct jpeg_error {
    void (*error_exit)(void *);
    void (*emit_message)(void *, int);
    void (*output_message)(void *);
    void (*format_message)(void *, char *);
    void (*reset)(void *);
    int code;
    union { int i[8]; char s[80]; } parameters;
    int trace_level;
    long warnings;
    const char *const *messages;
    int last_message;
    const char *const *more_messages;
    int first_more, last_more;
};

struct jpeg_decoder {
    struct jpeg_error *error;
    void *memory, *progress, *client_data;
    int is_decompressor, state;
    void *source;
    unsigned image_width, image_height;
    int components, color_space, out_color_space;
    unsigned scale_num, scale_denom;
    double gamma;
    int buffered, raw, dct_method, fancy_upsampling, block_smoothing, quantize, dither, two_pass, colors, passes[3];
    unsigned output_width, output_height;
    int out_color_components, output_components, rec_outbuf_height, actual_colors;
    void *colormap;
    unsigned output_scanline;
    char rest[632 - 172]; /* internal to the library; the structure has 632 bytes on 64-bit machines */
};

/* libjpeg's functions, in the order in which adco.data.native looks them up. */
struct jpeg_calls {
    struct jpeg_error *(*std_error)(struct jpeg_error *);
    void (*create)(struct jpeg_decoder *, int version, size_t size);
    void (*memory_source)(struct jpeg_decoder *, const unsigned char *, unsigned long);
    int (*read_header)(struct jpeg_decoder *, int require_image);
    int (*start)(struct jpeg_decoder *);
    void (*crop)(struct jpeg_decoder *, unsigned *left, unsigned *width);
    unsigned (*skip)(struct jpeg_decoder *, unsigned lines);
    unsigned (*read)(struct jpeg_decoder *, unsigned char **rows, unsigned lines);
    void (*destroy)(struct jpeg_decoder *);
};

struct attempt {
    struct jpeg_error error; /* first member: libjpeg's pointer to it is also a pointer to the attempt */
    jmp_buf escape;
};

static void leave(void *decoder) { longjmp(((struct attempt *)((struct jpeg_decoder *)decoder)->error)->escape, 1); }
static void stay_silent(void *decoder, int level) { if (level < 0) leave(decoder); } /* level < 0: corrupt data */

/* Whether the file has its end marker: a truncated file must be noticed even if its lower rows are not read. */
static int has_end(const uint8_t *file, size_t size) {
    size_t first = size > 64 ? size - 64 : 0;
    for (size_t i = size; i-- > first + 1;)
        if (file[i] == 0xD9 && file[i - 1] == 0xFF) return 1;
    return 0;
}

/* The smallest rectangle that contains every view's crop. */
static struct box union_of_crops(int width, int height, const struct view *views, int count, int row) {
    int left = width, top = height, right = 0, bottom = 0;
    for (int v = 0; v < count; v++) {
        struct box box;
        crop_box(width, height, views[v].scale, views[v].crops + (size_t)row * DRAWS, &box);
        if (box.left < left) left = box.left;
        if (box.top < top) top = box.top;
        if (box.left + box.width > right) right = box.left + box.width;
        if (box.top + box.height > bottom) bottom = box.top + box.height;
    }
    return (struct box){left, top, right - left, bottom - top};
}

/* Decode the rows of `need` and its columns, in whole blocks. The pixels are in `scratch`. */
static int decode_part(const struct jpeg_calls *jpeg, struct jpeg_decoder *decoder, struct scratch *scratch,
                       struct box need, struct image *image) {
    unsigned left = need.left > MARGIN ? need.left - MARGIN : 0; /* fancy upsampling reads the neighbouring column */
    unsigned right = need.left + need.width + MARGIN;
    unsigned width = (right < decoder->image_width ? right : decoder->image_width) - left;
    jpeg->start(decoder);
    jpeg->crop(decoder, &left, &width);
    size_t stride = (size_t)width * 3;
    uint8_t *rgb = reserve(scratch, 0, stride * need.height + 64);
    if (!rgb) return NO_MEMORY;
    if (need.top && jpeg->skip(decoder, need.top) != (unsigned)need.top) return UNUSUAL;
    for (int y = 0; y < need.height;) {
        unsigned char *rows[4];
        int most = need.height - y < 4 ? need.height - y : 4;
        for (int i = 0; i < most; i++) rows[i] = rgb + stride * (y + i);
        int got = (int)jpeg->read(decoder, rows, most);
        if (!got) return UNUSUAL;
        y += got;
    }
    *image = (struct image){rgb, stride, decoder->image_width, decoder->image_height, (int)left, need.top};
    return OK;
}

/* Decode a JPEG file in memory and render `count` views of it into row `row` of the batch. The result is UNUSUAL for
 * what is not an ordinary, intact JPEG; the row's content is then undefined. */
int adco_render_jpeg(const struct jpeg_calls *jpeg, struct scratch *scratch, const uint8_t *file, size_t size,
                     const struct view *views, int count, int row) {
    struct jpeg_decoder decoder;
    struct attempt attempt;
    struct image image;
    volatile int result = UNUSUAL;
    if (size < 4 || file[0] != 0xFF || file[1] != 0xD8 || !has_end(file, size)) return UNUSUAL;
    memset(&decoder, 0, sizeof decoder);
    decoder.error = jpeg->std_error(&attempt.error);
    attempt.error.error_exit = leave;
    attempt.error.emit_message = stay_silent;
    if (!setjmp(attempt.escape)) {
        jpeg->create(&decoder, JPEG_ABI, sizeof decoder);
        jpeg->memory_source(&decoder, file, (unsigned long)size);
        jpeg->read_header(&decoder, 1);
        int space = decoder.color_space, known = space == JPEG_GRAY || space == JPEG_YCC || space == JPEG_RGB;
        if (known && (uint64_t)decoder.image_width * decoder.image_height <= MOST_PIXELS) {
            decoder.out_color_space = JPEG_RGB;
            struct box need = union_of_crops(decoder.image_width, decoder.image_height, views, count, row);
            result = decode_part(jpeg, &decoder, scratch, need, &image);
        }
    } else
        result = UNUSUAL;
    if (decoder.memory) jpeg->destroy(&decoder);
    for (int v = 0; v < count && result == OK; v++) result = render_view(scratch, &image, &views[v], row);
    return result;
}

/* Whether the given library has this ABI. */
int adco_jpeg_fits(const struct jpeg_calls *jpeg) {
    struct jpeg_decoder decoder;
    struct attempt attempt;
    memset(&decoder, 0, sizeof decoder);
    decoder.error = jpeg->std_error(&attempt.error);
    attempt.error.error_exit = leave;
    attempt.error.emit_message = stay_silent;
    if (setjmp(attempt.escape)) return 0;
    jpeg->create(&decoder, JPEG_ABI, sizeof decoder);
    jpeg->destroy(&decoder);
    return 1;
}
