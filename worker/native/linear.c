// Products of rows with a matrix that is stored as fp32, bf16 or int8. Called by worker/models/native_linear.py, which
// holds the same struct; worker/models/linear.py has the same in torch.
//
// The matrix lies in panels of PANEL columns, [panels][ins][PANEL]: what a tile needs of it follows one another. All
// arithmetic is fp32, and every number is summed from the first input to the last, however many rows, columns and
// threads compute at once: a row's product has the same bits in any batch.
#include <stdbool.h>
#include <stdlib.h>

#include "vectors.h"

enum { PANEL = 2 * WIDTH, ROWS = WIDTH == 16 ? 12 : 6, MOST_PANELS = 4 };  // sums of ROWS * PANEL fit the registers
enum { GROUP = 32 };               // inputs that share an int8 scale
enum { CHUNK_NUMBERS = 1 << 16 };  // of the rows that meet a panel in turn: half of a core's second cache
enum { ONE_THREAD = 1 << 16 };     // multiplications that are not worth waking a thread

enum Type { FP32, BF16, INT8 };

typedef struct {
    int64_t ins, outs, type, gated, threads;
    const void *matrix;   // gated: the first half of a panel are gates, the second what they let through
    const float *scales;  // of int8: [panels][groups][PANEL]
    const float *bias;    // [panels * PANEL], or none
    const float *norm;    // of an RMS norm of the rows before, [ins], or none
    float epsilon;
} Linear;

typedef struct {  // a panel's numbers
    const void *matrix;
    const float *scales;
} Panel;

int64_t linear_width(void) { return WIDTH; }
int64_t linear_group(void) { return GROUP; }

INLINE int64_t panel_bytes(const Linear *l) {
    static const int64_t sizes[] = {sizeof(float), sizeof(uint16_t), sizeof(int8_t)};
    return l->ins * PANEL * sizes[l->type];
}

INLINE Panel panel_at(const Linear *l, int64_t panel) {
    return (Panel){(const char *)l->matrix + panel * panel_bytes(l),
                   l->scales + panel * ratio_up(l->ins, GROUP) * PANEL};
}

// WIDTH weights. An int8's scale is multiplied in here, never into a sum: a product has the bits of that with the fp32
// matrix of the same numbers.
INLINE Vec weights(enum Type type, const void *matrix, int64_t index, Vec scale) {
    if (type == FP32) return from_floats((const float *)matrix + index);
    if (type == BF16) return from_halves((const uint16_t *)matrix + index);
    return from_bytes((const int8_t *)matrix + index) * scale;
}

// out[row][column] = x[row] . column. All but the pointers are constants where it is inlined. ahead: memory to ask for
// meanwhile, `step` bytes with each input, or none.
INLINE void multiply(enum Type type, int rows, int panels, const Linear *l, Panel panel, const float *x, Vec *out,
                     const char *ahead, int64_t step) {
    const int columns = 2 * panels;
    const int64_t ins = l->ins, next = ins * PANEL, next_scales = ratio_up(ins, GROUP) * PANEL;
    Vec sums[ROWS][2 * MOST_PANELS], scales[2 * MOST_PANELS];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < columns; c++) sums[r][c] = (Vec){0};
    for (int64_t first = 0; first < ins; first += type == INT8 ? GROUP : ins) {
        if (type == INT8)
            UNROLLED for (int c = 0; c < columns; c++)
                scales[c] = from_floats(panel.scales + c / 2 * next_scales + first / GROUP * PANEL + c % 2 * WIDTH);
        const int64_t end = type == INT8 ? smaller(first + GROUP, ins) : ins;
        for (int64_t k = first; k < end; k++) {
            if (ahead) __builtin_prefetch(ahead + k * step, 0, 2);
            Vec column[2 * MOST_PANELS];
            UNROLLED for (int c = 0; c < columns; c++)
                column[c] = weights(type, panel.matrix, c / 2 * next + k * PANEL + c % 2 * WIDTH, scales[c]);
            UNROLLED for (int r = 0; r < rows; r++)
                UNROLLED for (int c = 0; c < columns; c++) sums[r][c] = fused(column[c], spread(x[r * ins + k]), sums[r][c]);
        }
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < columns; c++) out[r * columns + c] = sums[r][c];
}

INLINE Vec silu(Vec x) {
    const Ints negative = x < 0.0f;
    const Vec small = exponential(chosen(negative, x, -x));  // e^-|x|
    return x * chosen(negative, small, (Vec){0} + 1.0f) / (small + 1.0f);
}

INLINE void store(Vec value, const float *add, float *out, int64_t columns) {
    if (columns >= WIDTH) {
        if (add) value += from_floats(add);
        *(Vec *)out = value;
        return;
    }
    for (int64_t i = 0; i < columns; i++) out[i] = add ? value[i] + add[i] : value[i];
}

static void finish(const Linear *l, int64_t rows, int64_t columns, int64_t index, Vec *sums, const float *add,
                   float *out) {
    for (int64_t r = 0; r < rows; r++, sums += columns) {
        for (int64_t c = 0; c < columns && l->bias; c++) sums[c] += from_floats(l->bias + index * PANEL + c * WIDTH);
        for (int64_t c = 0; c < columns; c += 1 + l->gated) {
            const int64_t column = l->gated ? index * WIDTH + c / 2 * WIDTH : index * PANEL + c * WIDTH;
            const int64_t place = r * l->outs + column;
            if (l->gated) sums[c] = silu(sums[c]) * sums[c + 1];
            store(sums[c], add ? add + place : NULL, out + place, l->outs - column);
        }
    }
}

typedef void Tile(const Linear *, Panel, const float *, Vec *, const char *, int64_t);
typedef struct {
    int64_t rows, panels;
    Tile *of[3];  // by type
} Shape;

#define TILE(type, rows, panels)                                                                          \
    static void tile_##type##_##rows##_##panels(const Linear *l, Panel panel, const float *x, Vec *sums, \
                                                const char *ahead, int64_t step) {                       \
        multiply(type, rows, panels, l, panel, x, sums, ahead, step);                                     \
    }
#define TILES(rows, panels) TILE(FP32, rows, panels) TILE(BF16, rows, panels) TILE(INT8, rows, panels)
#define SHAPE(rows, panels) \
    {rows, panels, {tile_FP32_##rows##_##panels, tile_BF16_##rows##_##panels, tile_INT8_##rows##_##panels}}

// At least eight sums hide how long an addition takes: the fewer rows, the more panels at once.
TILES(1, 1) TILES(1, 4) TILES(2, 1) TILES(2, 2) TILES(3, 1) TILES(4, 1) TILES(5, 1) TILES(6, 1)
#ifdef __AVX512F__
TILES(7, 1) TILES(8, 1) TILES(9, 1) TILES(10, 1) TILES(11, 1) TILES(12, 1)
#endif
static const Shape shapes[] = {
#ifdef __AVX512F__
    SHAPE(12, 1), SHAPE(11, 1), SHAPE(10, 1), SHAPE(9, 1), SHAPE(8, 1), SHAPE(7, 1),
#endif
    SHAPE(6, 1), SHAPE(5, 1), SHAPE(4, 1), SHAPE(3, 1), SHAPE(2, 2), SHAPE(2, 1), SHAPE(1, 4), SHAPE(1, 1),
};

// Tiles of about the same height, as high as they get.
static const Shape *next_shape(int64_t rows, int64_t panels) {
    const int64_t height = ratio_up(rows, ratio_up(rows, ROWS));
    const Shape *shape = shapes;
    while (shape->rows > height || shape->panels > panels) shape++;
    return shape;
}

// A panel as fp32, for many rows to meet.
static void unpack(const Linear *l, Panel panel, float *memory) {
    for (int64_t k = 0; k < l->ins; k++)
        UNROLLED for (int h = 0; h < PANEL; h += WIDTH) {
            const int64_t at = k * PANEL + h;
            *(Vec *)(memory + at) = l->type == BF16 ? weights(BF16, panel.matrix, at, (Vec){0})
                : weights(INT8, panel.matrix, at, from_floats(panel.scales + k / GROUP * PANEL + h));
        }
}

// Some rows times a panel, or several that a tile takes at once. memory: to unpack it where that is worth it, or none.
// next: the panel that is likely to follow. The first tile still waits for memory; those after it ask for that panel, so
// that its own first tile need not. A line with each input is more than memory can send: fp32 is spread over two tiles.
static int64_t multiply_run(const Linear *l, int64_t index, int64_t next, int64_t panels, int64_t rows, const float *x,
                            const float *add, float *out, float *memory) {
    Vec sums[2 * ROWS + 2 * MOST_PANELS];
    Panel panel = panel_at(l, index);
    const Shape *shape = next_shape(rows, panels);
    const int64_t parts = smaller(ratio_up(rows, ROWS) - 1, l->type == FP32 ? 2 : 1);
    const char *ahead = panel_at(l, next).matrix;
    if (memory) {
        unpack(l, panel, memory);
        panel.matrix = memory;
    }
    for (int64_t r = 0, tile = 0; r < rows; r += shape->rows, tile++) {
        const bool asks = 0 < tile && tile <= parts;
        shape = next_shape(rows - r, shape->panels);
        shape->of[memory ? FP32 : l->type](l, panel, x + r * l->ins, sums,
                                           asks ? ahead + (tile - 1) * panel_bytes(l) / parts : NULL,
                                           asks ? panel_bytes(l) / l->ins / parts : 0);
        finish(l, shape->rows, 2 * shape->panels, index, sums, add ? add + r * l->outs : NULL, out + r * l->outs);
    }
    return shape->panels;
}

// Rows scaled to a mean square of one, then by the norm's weights.
static void normalize(const Linear *l, const float *x, float *out) {
    Vec squares = {0};
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + WIDTH <= l->ins; i += WIDTH) squares = fused(from_floats(x + i), from_floats(x + i), squares);
    for (; i < l->ins; i++) rest += x[i] * x[i];
    const float scale = 1.0f / sqrtf((total(squares) + rest) / l->ins + l->epsilon);
    for (i = 0; i < l->ins; i++) out[i] = x[i] * scale * l->norm[i];
}

// out[row] = x[row] . matrix + bias + add[row]; gated: silu(x[row] . gates) * (x[row] . others).
void linear(const Linear *l, const float *x, int64_t rows, const float *add, float *out) {
    const int64_t ins = l->ins, outs = l->outs, panels = ratio_up(outs, l->gated ? WIDTH : PANEL);
    const int64_t chunk = rows <= ROWS ? rows : smaller(rows, ratio_up(CHUNK_NUMBERS, ins * ROWS) * ROWS);
    const int64_t chunks = ratio_up(rows, chunk), together = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    const int64_t runs = ratio_up(panels, together);
    const int64_t threads = rows * ins * panels * PANEL > ONE_THREAD ? l->threads : 1;
    float *normalized = l->norm ? malloc(rows * ins * sizeof(float)) : NULL;
#pragma omp parallel num_threads(threads)
    {
        float *memory = l->type != FP32 && chunk > ROWS ? malloc(ins * PANEL * sizeof(float)) : NULL;
        if (l->norm) {
#pragma omp for
            for (int64_t r = 0; r < rows; r++) normalize(l, x + r * ins, normalized + r * ins);
        }
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < chunks * runs; item++) {
            const int64_t r = item / runs * chunk;
            int64_t p = item % runs * together;
            const int64_t end = smaller(p + together, panels), next = (item + threads) % runs * together;
            while (p < end)
                p += multiply_run(l, p, next, end - p, smaller(chunk, rows - r), (l->norm ? normalized : x) + r * ins,
                                  add ? add + r * outs : NULL, out + r * outs, memory);
        }
        free(memory);
    }
    free(normalized);
}

INLINE float number(enum Type type, const void *matrix, int64_t index) {
    if (type == FP32) return ((const float *)matrix)[index];
    if (type == INT8) return ((const int8_t *)matrix)[index];
    const uint32_t bits = (uint32_t)((const uint16_t *)matrix)[index] << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

// out[i] = column ids[i] of the matrix: the rows of an embedding that is the head's matrix, too.
void linear_columns(const Linear *l, const int64_t *ids, int64_t count, float *out) {
#pragma omp parallel for num_threads(count > 1 ? l->threads : 1)
    for (int64_t i = 0; i < count; i++) {
        const Panel panel = panel_at(l, ids[i] / PANEL);
        const int64_t column = ids[i] % PANEL;
        for (int64_t k = 0; k < l->ins; k++) {
            const int64_t at = k * PANEL + column;
            const float scale = l->type == INT8 ? panel.scales[k / GROUP * PANEL + column] : 1.0f;
            out[i * l->ins + k] = number(l->type, panel.matrix, at) * scale;
        }
    }
}
