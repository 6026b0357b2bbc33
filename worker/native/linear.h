// What linear.c offers to other kernels.
#ifndef SKIPJOIN_LINEAR_H
#define SKIPJOIN_LINEAR_H

#include <stdbool.h>
#include <stdint.h>

#include "sharing.h"

enum Type { FP32, BF16, FP16, INT8, INT8_QUADS, BF16_PAIRS, CODES4, CODES8 };

typedef struct {
    int64_t ins, outs, type, gated, threads;
    const void *matrix;   // as linear.c says; gated: the first half of a panel are gates, the second what they let through
    const float *scales;  // of int8, either way: [panels][groups][PANEL]; of codes as linear.c says
    const float *bias;    // [panels * PANEL], or none
    const float *norm;    // of an RMS norm of the rows before, [ins], or none
    float epsilon;
} Linear;

// Bytes that `multiply_rows` needs to prepare its rows.
int64_t linear_memory(const Linear *l, int64_t rows);

// Whether that many multiplications are worth waking other threads.
bool worth_threads(int64_t multiplications);

// out[row] = x[row] . matrix + bias + add[row]; gated: silu(x[row] . gates) * (x[row] . others). To be called by all
// threads of a team with the same arguments; they leave it together. `add` may be `out`. ranges: of the team.
void multiply_rows(const Linear *l, const float *x, int64_t rows, const float *add, float *out, void *memory,
                   Range *ranges);

#endif
