// For heads whose size is no multiple of this CPU's vectors: vectors of 8.
#define NARROW
#include "attention_runs.h"

const RunKernel narrow_runs[] = RUN_KERNELS;
