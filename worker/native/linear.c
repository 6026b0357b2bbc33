// Products of rows with a matrix that is stored as fp32, bf16, fp16, int8 or codes. Called by
// worker/models/native_linear.py, which holds the same struct; worker/models/linear.py has the same in torch.
//
// The matrix lies in panels of PANEL columns, [panels][ins][PANEL]: what a tile needs of it follows one another. Every
// number is summed from the first input to the last, however many rows, columns and threads compute at once: a row's
// product has the same bits in any batch.
//
// fp32, bf16 and fp16 are multiplied in fp32. Of bf16 a panel's first and second WIDTH columns lie side by side,
// [panels][ins][WIDTH][2].
//
// Codes are what files keep, of 4 or 8 bits: a number is scale * code + offset, rounded once, with those of GROUP4 or
// GROUP8 inputs, which lie as [panels][groups][2][PANEL]. Those of 4 bits lie as [panels][ins][WIDTH] bytes, a column of
// the first WIDTH in the lower half and one of the second in the upper. A tile decodes what it reads, and its products
// are those with fp32; where others of the same chunk of rows follow it leaves them the panel in fp32.
//
// To meet int8 a row is rounded itself, to 16 bits with a scale for every group of inputs; products are summed as
// integers within a group, without any error, and as fp32 from group to group. It takes half of fp32's time; llama.cpp
// does likewise, with 8 bits. There the panels are [panels][ins / 2][PANEL][2], for pairs of 16 bits; or, for CPUs that
// multiply four times 8 bits at once, [panels][ins / 4][PANEL][4], with 128 added to each weight. The numbers are the
// same, to the bit.
//
// Where a CPU has AMX it multiplies what was rounded to bf16, with panels [panels][ins / 2][PANEL][2], and several rows
// of int8.
#include <stdlib.h>

#include "amx_bf16.h"
#include "amx_int8.h"
#include "tiles.h"

static const float LARGEST = 32639.0f;  // of a rounded number: 127 * 256 + 127
enum { CHUNK_NUMBERS = 1 << 16 };  // of the rows that meet a panel in turn: half of a core's second cache
enum { AMX_CHUNK_NUMBERS = 1 << 18 };  // of 16 bits; the CPUs that have AMX have 2 MiB of it

int64_t linear_width(void) { return WIDTH; }
int64_t linear_group(void) { return GROUP; }
int64_t linear_group_of_4_bits(void) { return GROUP4; }
int64_t linear_group_of_8_bits(void) { return GROUP8; }
int64_t linear_slice(void) { return SLICE; }
bool linear_fp16(void) { return WIDENS_FP16; }
bool linear_quads(void) { return QUADS; }
bool linear_amx(void) { return has_amx; }

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

INLINE bool by_amx(const Linear *l, int64_t rows) {
    return l->type == BF16_PAIRS || (l->type == INT8_QUADS && rows >= AMX_ROWS && has_amx);
}

// Rows of one of tiles.h's tiles at most.
INLINE int64_t most_rows(const Linear *l) { return l->type == INT8_QUADS ? MOST_QUAD_ROWS : ROWS; }

// Panels that a tile of one row takes at once; of codes as many as have their scales and offsets in registers.
INLINE int64_t most_panels(const Linear *l) { return l->type == BF16_PAIRS ? 1 : is_coded(l->type) ? 2 : MOST_PANELS; }

// Some rows times a panel, or several that a tile takes at once. memory: a thread's own, as own_memory says.
// next: the panel that is likely to follow, for which memory is asked meanwhile. Every tile asks for its share: all of it
// in one tile's time is more than memory can send. Not one or two rows, which leave memory no time, but of codes these
// alone: their tiles take longer, and with more rows what follows comes in time unasked.
static int64_t multiply_run(const Linear *l, int64_t index, int64_t next, int64_t panels, int64_t rows, Input x,
                            const float *add, float *out, void *memory) {
    Vec sums[4 * TALL] __attribute__((aligned(64)));
    const Panel panel = panel_at(l, index);
    const int64_t most = most_rows(l), tiles = ratio_up(rows, most);
    const bool asks = (rows > 2) != is_coded(l->type);
    const int64_t step = asks ? ratio_up(turn_bytes(l) * panels, tiles) : 0;
    const char *ahead = panel_at(l, next).matrix;
    if (l->type == BF16_PAIRS) {
        multiply_bf16_by_amx(l, panel, rows, x.bf16, ahead, memory);
        finish(l, rows, 2, index, memory, add, out);
        return 1;
    }
    if (x.in_tiles) {
        for (int64_t r = 0; r < rows; r += 2 * TALL) {
            const int64_t height = smaller(rows - r, 2 * TALL);
            multiply_quads_by_amx(r == 0, height, l, panel, input_from(l, x, r), sums, ahead);
            finish(l, height, 2, index, sums, add ? add + r * l->outs : NULL, out + r * l->outs);
        }
        return 1;
    }
    for (int64_t r = 0, tile = 0, height; r < rows; r += height, tile++) {
        height = height_of(rows - r, most);
        const Shape *shape = next_shape(height, panels);
        height = shape->rows, panels = shape->panels;
        const char *asked = asks ? ahead + tile * panel_bytes(l) / tiles : panel.matrix;
        const bool is_decoded = is_coded(l->type) && r > 0;
        shape->of[is_decoded ? FP32 : l->type](l, is_decoded ? (Panel){memory, NULL} : panel, input_from(l, x, r), sums,
                                               asked, step, memory);
        finish(l, height, 2 * panels, index, sums, add ? add + r * l->outs : NULL, out + r * l->outs);
    }
    return panels;
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

// A slice's integers of 16 bits as halves. Returns what they add to a column's sum because its weights have 128 added to
// them.
static int32_t halve(const float *numbers, int8_t *high, int8_t *low) {
    int32_t sum = 0;
    for (int i = 0; i < SLICE; i++) {
        const int32_t number = (int32_t)numbers[i];
        high[i] = (number + 128) >> 8;
        low[i] = number;  // less 256 where that is 128 or more
        sum += number;
    }
    return 128 * sum;
}

typedef struct {  // where a row's integers go
    int16_t *first;
    int64_t to_low, to_next;  // bytes from high halves to low ones, and from a slice to the next
} Place;

static Place place_of(const Linear *l, bool in_tiles, int64_t row, int16_t *rounded) {
    const int64_t bytes = in_tiles ? TALL * SLICE : SLICE, place = in_tiles ? row % TALL : 0;
    return (Place){rounded + (row - place) * slices_of(l) * SLICE + place * SLICE / 2, bytes, 2 * bytes};
}

// A row as integers of 16 bits that share a scale in every group: its largest number becomes the largest whose halves
// both have a sign. A scale is no number where one in its group is none.
static void round_row(const Linear *l, const float *x, Place to, float *scales, int32_t *offsets) {
    const Vec magic = spread(12582912.0f);  // 1.5 * 2^23: rounds to an integer
    for (int64_t first = 0; first < l->ins; first += GROUP) {
        const int64_t count = smaller(GROUP, l->ins - first);
        float group[GROUP] = {0};
        memcpy(group, x + first, count * sizeof(float));
        Vec largest = {0}, none = {0};
        for (int i = 0; i < count; i += WIDTH) {
            const Vec number = from_floats(group + i);
            largest = larger(largest, chosen(number < 0.0f, -number, number));
            none += number * 0.0f;
        }
        float most = 0.0f;
        UNROLLED for (int i = 0; i < WIDTH; i++) most = largest[i] > most ? largest[i] : most;
        const float inverse = most > 0.0f ? LARGEST / most : 0.0f;
        for (int i = 0; i < count; i += WIDTH)
            *(Vec *)(group + i) = from_floats(group + i) * inverse + magic - magic;
        int32_t offset = 0;
        for (int64_t at = 0; at < count; at += SLICE) {
            int16_t *rounded = to.first + (first + at) / SLICE * to.to_next / 2;
            if (l->type == INT8)
                for (int i = 0; i < SLICE; i++) rounded[i] = (int16_t)group[at + i];
            else offset += halve(group + at, (int8_t *)rounded, (int8_t *)rounded + to.to_low);
        }
        *offsets++ = offset;
        *scales++ = most / LARGEST + total(none);
    }
}

typedef struct {  // where rows are prepared: what tiles of AMX read comes first, and starts a line of the cache
    uint16_t *bf16;
    int16_t *rounded;
    float *scales;
    int32_t *offsets;
    float *normalized;
} Prepared;

// The memory's parts, and its end.
static char *prepared_in(char *memory, const Linear *l, int64_t rows, Prepared *to) {
    const int64_t bf16 = l->type == BF16_PAIRS ? ratio_up(rows, TALL) * TALL * steps_of(l) * STEP : 0;
    const int64_t whole_rows = ratio_up(rows, TALL) * TALL, rounded = rounds_rows(l) ? whole_rows * slices_of(l) : 0;
    const int64_t scales = rounds_rows(l) ? whole_rows * groups_of(l) : 0;
    to->bf16 = (uint16_t *)(memory + (-(uintptr_t)memory & 63));
    to->rounded = (int16_t *)(to->bf16 + bf16);
    to->scales = (float *)(to->rounded + rounded * SLICE);
    to->offsets = (int32_t *)(to->scales + scales);
    to->normalized = (float *)(to->offsets + scales);
    return (char *)(to->normalized + (l->norm ? rows * l->ins : 0));
}

int64_t linear_memory(const Linear *l, int64_t rows) {
    Prepared from_zero;
    return prepared_in(NULL, l, rows, &from_zero) - (char *)NULL + 64;
}

// The rows as the matrix wants to meet them. No thread of the team leaves before all have come.
static Input prepare(const Linear *l, const float *x, int64_t rows, Prepared to) {
    const int64_t ins = l->ins, groups = groups_of(l);
    const bool in_tiles = by_amx(l, rows);
    if (!l->norm && multiplies_fp32(l)) {
#pragma omp barrier
        return (Input){.exact = x};
    }
#pragma omp for
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * ins;
        if (l->norm) {
            normalize(l, row, to.normalized + r * ins);
            row = to.normalized + r * ins;
        }
        if (rounds_rows(l))
            round_row(l, row, place_of(l, in_tiles, r, to.rounded), to.scales + r * groups, to.offsets + r * groups);
        if (l->type == BF16_PAIRS)
            round_to_bf16(l, row, to.bf16 + (r / TALL * TALL * steps_of(l) + r % TALL) * STEP);
    }
    return (Input){l->norm ? to.normalized : x, to.bf16, to.rounded, to.scales, to.offsets, in_tiles};
}

bool worth_threads(int64_t multiplications) { return multiplications > 1 << 16; }

// A thread's own: for sums of pairs of bf16, for a panel that is decoded, or none.
static void *own_memory(const Linear *l, int64_t rows) {
    if (l->type == BF16_PAIRS) return aligned_alloc(64, ratio_up(rows, TALL) * TALL * 2 * sizeof(Vec));
    return is_coded(l->type) && rows > ROWS ? aligned_alloc(64, l->ins * PANEL * sizeof(float)) : NULL;
}

void multiply_rows(const Linear *l, const float *x, int64_t rows, const float *add, float *out, void *memory,
                   Range *ranges) {
    const int64_t ins = l->ins, outs = l->outs, panels = ratio_up(outs, l->gated ? WIDTH : PANEL);
    const bool in_tiles = by_amx(l, rows);
    const int64_t most = in_tiles ? 2 * TALL : most_rows(l), numbers = in_tiles ? AMX_CHUNK_NUMBERS : CHUNK_NUMBERS;
    const int64_t chunk = rows <= most ? rows : smaller(rows, ratio_up(numbers, ins * most) * most);
    const int64_t chunks = ratio_up(rows, chunk), few = most_panels(l);
    const int64_t together = rows == 1 ? few : rows == 2 ? ratio_up(few, 2) : 1;
    const int64_t runs = ratio_up(panels, together);
    divide(ranges, chunks * runs);
    void *own = own_memory(l, chunk);
    Prepared prepared;
    prepared_in(memory, l, rows, &prepared);
    const Input input = prepare(l, x, rows, prepared);
    for (int64_t item; (item = take_item(ranges)) != NO_ITEM;) {
        const int64_t r = item / runs * chunk;
        int64_t p = item % runs * together;
        const int64_t end = smaller(p + together, panels), next = (item + 1) % runs * together;
        while (p < end)
            p += multiply_run(l, p, next, end - p, smaller(chunk, rows - r), input_from(l, input, r),
                              add ? add + r * outs : NULL, out + r * outs, own);
    }
    leave_amx();
    free(own);
#pragma omp barrier
}

void linear(const Linear *l, const float *x, int64_t rows, const float *add, float *out) {
    void *memory = malloc(linear_memory(l, rows));
    const bool many = worth_threads(rows * l->ins * l->outs * (1 + l->gated));
    const int64_t threads = many ? l->threads : 1;
    Range ranges[threads];
#pragma omp parallel num_threads(threads)
    multiply_rows(l, x, rows, add, out, memory, ranges);
    free(memory);
}

INLINE float from_one_bf16(uint16_t number) {
    const uint32_t bits = (uint32_t)number << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

// Input k of a panel's column.
INLINE float number(const Linear *l, Panel panel, int64_t k, int64_t column) {
    const int64_t at = k * PANEL + column, in_pairs = (k / 2 * PANEL + column) * 2 + k % 2;
    const int64_t in_columns = k * PANEL + column % WIDTH * 2 + column / WIDTH;
    const float *scales = panel.scales + k / GROUP * PANEL + column;  // of int8
    switch (l->type) {
        case FP32: return ((const float *)panel.matrix)[at];
        case BF16: return from_one_bf16(((const uint16_t *)panel.matrix)[in_columns]);
        case FP16: return from_fp16((const uint16_t *)panel.matrix + at - column % WIDTH)[column % WIDTH];
        case BF16_PAIRS: return from_one_bf16(((const uint16_t *)panel.matrix)[in_pairs]);
        case CODES4:
        case CODES8: {
            const float *scale = panel.scales + k / group_size(l->type) * 2 * PANEL + column;
            const uint8_t *bytes = panel.matrix, both = bytes[k * WIDTH + column % WIDTH];
            const int code = l->type == CODES8 ? (int8_t)bytes[at] : column < WIDTH ? both & 15 : both >> 4;
            return *scale * code + scale[PANEL];
        }
        case INT8_QUADS: return (((const uint8_t *)panel.matrix)[(k / 4 * PANEL + column) * 4 + k % 4] - 128) * *scales;
        default: return ((const int8_t *)panel.matrix)[in_pairs] * *scales;
    }
}

// out[i] = column ids[i] of the matrix: the rows of an embedding that is the head's matrix, too.
void linear_columns(const Linear *l, const int64_t *ids, int64_t count, float *out) {
#pragma omp parallel for num_threads(count > 1 ? l->threads : 1)
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < l->ins; k++)
            out[i * l->ins + k] = number(l, panel_at(l, ids[i] / PANEL), k, ids[i] % PANEL);
}
