// What rotation.c offers to other kernels.
#ifndef SKIPJOIN_ROTATION_H
#define SKIPJOIN_ROTATION_H

#include <stdint.h>

// Rotates one row's heads, [heads, head_dim], in place: dimension i together with dimension i + head_dim / 2. cosines,
// sines: [head_dim], the first half of the sines negated.
void rotate_row(float *row, int64_t heads, int64_t head_dim, const float *cosines, const float *sines);

#endif
