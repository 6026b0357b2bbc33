// Draws a token from every row of logits whose whole vocabulary is open to it. Called by worker/native_draws.py, which
// holds the same struct; worker/sampler.py has the same in torch.
//
// A row is one thread's, and is summed in the same order everywhere: what is drawn has nothing to do with the batch.
#include "vectors.h"

enum { CHUNK = 256 };  // tokens of which a draw sees the sum before it sees each: about the root of a vocabulary

typedef struct {
    float temperature;  // 0: the likeliest token, the first of equal ones
    int32_t barred;     // whether a logit of -inf is a token that must not come, and no failure
    double draw;        // in [0, 1)
} Draw;

typedef struct {
    const float *logits;
    int64_t vocab;
    float highest, coldness;  // 1 / temperature
} Row;

// Some tokens' logits, and -inf behind the last one.
static void take_chunk(const Row *row, int64_t chunk, float *logits) {
    const int64_t first = chunk * CHUNK, count = smaller(CHUNK, row->vocab - first);
    memcpy(logits, row->logits + first, count * sizeof(float));
    for (int64_t i = count; i < CHUNK; i++) logits[i] = -INFINITY;
}

// The highest logit. finite: whether all are.
static float highest_of(const float *logits, int64_t vocab, bool *finite) {
    Vec most = spread(-INFINITY), nothing = {0};
    int64_t i = 0;
    for (; i + WIDTH <= vocab; i += WIDTH) {
        most = larger(most, from_floats(logits + i));
        nothing += from_floats(logits + i) * 0.0f;
    }
    float highest = -INFINITY, none = total(nothing);
    for (int w = 0; w < WIDTH; w++) highest = most[w] > highest ? most[w] : highest;
    for (; i < vocab; i++) {
        highest = logits[i] > highest ? logits[i] : highest;
        none += logits[i] * 0.0f;
    }
    *finite = none == 0.0f;
    return highest;
}

static int64_t likeliest(const Row *row) {
    float logits[CHUNK];
    for (int64_t chunk = 0;; chunk++) {
        Ints found = {0};
        take_chunk(row, chunk, logits);
        for (int64_t i = 0; i < CHUNK; i += WIDTH) found |= from_floats(logits + i) == row->highest;
        for (int w = 0; w < WIDTH; w++)
            if (found[w])
                for (int64_t i = 0;; i++)
                    if (logits[i] == row->highest) return chunk * CHUNK + i;
    }
}

// What a chunk's tokens weigh beside the likeliest one; nothing below e^-87, where fp32 ends. Returns the sum.
static double weigh(const Row *row, int64_t chunk, float *weights) {
    enum { HALF = WIDTH / 2 };  // of a Vec: the doubles that fill a register, since gcc keeps longer sums in memory
    typedef float Half __attribute__((vector_size(4 * HALF), aligned(4), may_alias));
    typedef double Doubles __attribute__((vector_size(8 * HALF)));
    const Vec highest = spread(row->highest), coldness = spread(row->coldness);
    Doubles low = {0}, high = {0};
    double sum = 0.0;
    take_chunk(row, chunk, weights);
    for (int64_t i = 0; i < CHUNK; i += WIDTH) {
        // Less the highest first: a tiny temperature must not overflow.
        const Vec x = (from_floats(weights + i) - highest) * coldness;
        const Vec weight = chosen(x > -87.0f, exponential(x), (Vec){0});
        *(Vec *)(weights + i) = weight;
        low += __builtin_convertvector(*(const Half *)(weights + i), Doubles);
        high += __builtin_convertvector(*(const Half *)(weights + i + HALF), Doubles);
    }
    for (int w = 0; w < HALF; w++) sum += low[w];
    for (int w = 0; w < HALF; w++) sum += high[w];
    return sum;
}

// Where the cumulative weight exceeds that share of the whole, in order of tokens; never one that weighs nothing.
static int64_t token_at(const Row *row, double share) {
    const int64_t chunks = ratio_up(row->vocab, CHUNK);
    double sums[chunks], whole = 0.0, before = 0.0;
    float weights[CHUNK];
    for (int64_t c = 0; c < chunks; c++) whole += sums[c] = weigh(row, c, weights);
    const double target = share * whole;  // less than the whole, also when rounded: a share is at most 1 - 2^-53
    int64_t chunk = 0, place = 0;
    while (before + sums[chunk] <= target) before += sums[chunk++];
    weigh(row, chunk, weights);
    for (int64_t i = 0; i < CHUNK && before <= target; i++) {
        before += weights[i];
        if (weights[i] > 0.0f) place = i;  // the last one where these sums are less, by rounding, than the chunk's
    }
    return chunk * CHUNK + place;
}

// A token per row, or -1 where logits are not finite or all tokens are barred. logits: [rows][vocab].
void draw_tokens(const float *logits, int64_t rows, int64_t vocab, const Draw *draws, int64_t threads,
                 int64_t *tokens) {
#pragma omp parallel for num_threads(rows > 1 ? threads : 1)
    for (int64_t r = 0; r < rows; r++) {
        bool finite;
        const float highest = highest_of(logits + r * vocab, vocab, &finite);
        const float temperature = draws[r].temperature;
        const Row row = {logits + r * vocab, vocab, highest, 1.0f / fmaxf(temperature, 1e-38f)};
        if (draws[r].barred ? !isfinite(highest) : !finite) tokens[r] = -1;
        else tokens[r] = temperature == 0.0f ? likeliest(&row) : token_at(&row, draws[r].draw);
    }
}
