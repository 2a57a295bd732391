/* model/advance.cu - the end of a step: its ids to the host, and from its inputs the next one's
 * where nothing changes but that every sequence has one token more.
 *
 * Computes   out[turn][s] = chosen[s]; turn = 1 - turn; and where it advances ids[s] = chosen[s],
 *            positions[s], kv_lengths[s], rows[s].position each one more
 * Shapes     [count] each; out is pinned host memory
 * Bound      a launch: some kilobytes
 */
#include "core/launch.cuh"
#include "model/inputs_cuda.h"

using namespace fp8;

enum { THREADS = 256 };

/* One block: nobody reads the turn after it has changed. */
static __global__ void __launch_bounds__(THREADS)
advance_kernel(const __grid_constant__ fp8_step_end e) {
    wait_for_previous();
    let_next_start();
    int32_t *const out = e.out[*e.turn & 1];
    for (int64_t s = threadIdx.x; s < e.count; s += THREADS) {
        const int32_t id = e.chosen[s];
        out[s] = id;
        if (!e.advances || e.kv_lengths[s] == 0) continue; /* 0: of no sequence */
        e.ids[s] = id;
        e.positions[s]++;
        e.kv_lengths[s]++;
        e.rows[s].position++;
    }
    __syncthreads();
    if (threadIdx.x == 0) *e.turn ^= 1;
}

extern "C" fp8_status fp8_step_end_cuda(fp8_device *d, const fp8_step_end *e) {
    return launch("advance", advance_kernel, dim3(1), dim3(THREADS), 0, d, FP8_LAUNCH_OVERLAP, *e);
}
