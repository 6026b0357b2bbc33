// Rotary positions. Called by worker/models/rope.py, which has the same in torch, and by layers.c.
#include "rotation.h"

void rotate_row(float *row, int64_t heads, int64_t head_dim, const float *cosines, const float *sines) {
    const int64_t half = head_dim / 2;
    for (int64_t h = 0; h < heads; h++) {
        float *low = row + h * head_dim, *high = low + half;
        for (int64_t i = 0; i < half; i++) {
            const float a = low[i], b = high[i];
            low[i] = a * cosines[i] + b * sines[i];
            high[i] = b * cosines[half + i] + a * sines[half + i];
        }
    }
}

// Rotates rows that lie `stride` numbers apart. cosines, sines: [rows, head_dim].
void rotate(float *x, int64_t stride, int64_t rows, int64_t heads, int64_t head_dim, const float *cosines,
            const float *sines) {
    for (int64_t r = 0; r < rows; r++)
        rotate_row(x + r * stride, heads, head_dim, cosines + r * head_dim, sines + r * head_dim);
}
