/* model/advance.cu - from one decoding step's inputs to the next one's, where nothing changes but
 * that every sequence has one token more.
 *
 * Computes   ids[s] = chosen[s]; positions[s], kv_lengths[s], rows[s].position each one more
 * Shapes     [count] each
 * Bound      a launch: some kilobytes
 */
#include "core/launch.cuh"
#include "model/inputs_cuda.h"

using namespace fp8;

enum { THREADS = 128 };

static __global__ void __launch_bounds__(THREADS)
advance_kernel(int32_t *__restrict__ ids, int32_t *__restrict__ positions,
               int32_t *__restrict__ kv_lengths, fp8_sample_row *__restrict__ rows,
               const int32_t *__restrict__ chosen, int64_t count) {
    const int64_t s = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (s >= count) return;
    ids[s] = chosen[s];
    positions[s]++;
    kv_lengths[s]++;
    rows[s].position++;
}

extern "C" fp8_status fp8_inputs_advance_cuda(fp8_device *d, int32_t *ids, int32_t *positions,
                                              int32_t *kv_lengths, fp8_sample_row *rows,
                                              const int32_t *chosen, int64_t count) {
    return launch("advance", advance_kernel, dim3((unsigned)((count + THREADS - 1) / THREADS)),
                  dim3(THREADS), 0, d, FP8_LAUNCH_ORDERED, ids, positions, kv_lengths, rows,
                  chosen, count);
}
