/* quant/delayed.cu - delayed scaling on the device.
 *
 * Computes   history[step] = amax; amax over the newest steps; scale = max / amax, descale
 * Shapes     count points, a ring of `length` F32 each
 * Bound      latency: 1000 points of 1024 steps are 4 MB, read by all SMs
 * Tiling     a warp a point
 * Numerics   fp8_recipe_amax and fp8_recipe_scale to the bit
 */
#include <math.h>

#include "quant/produce_device.cuh"

using namespace fp8;

enum { THREADS = 128 };

static __device__ __forceinline__ uint32_t warp_min(uint32_t v) {
    for (int off = 16; off > 0; off >>= 1) v = min(v, __shfl_xor_sync(0xffffffffu, v, off));
    return v;
}

static __device__ __forceinline__ bool counts(float amax) {
    return amax > 0.0f && is_finite_bits(__float_as_uint(amax));
}

/* keep: most steps that count. */
static __global__ void __launch_bounds__(THREADS)
delayed_kernel(fp8_delayed s, int64_t keep, bool most_recent, float q_max) {
    const int64_t point = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    float *ring = s.history + point * s.length;
    uint32_t best = 0, youngest = UINT32_MAX;
    float scale, descale;

    wait_for_previous();
    let_next_start();
    if (point >= s.count) return; /* a whole warp */
    const int64_t step = s.steps[point], known = step + 1 < keep ? step + 1 : keep;
    const float now = s.slots[point].amax;
    for (int64_t age = lane; age < known; age += 32) {
        const float amax = age == 0 ? now : ring[(step - age) % s.length];
        if (!counts(amax)) continue;
        best = max(best, __float_as_uint(amax));
        youngest = min(youngest, (uint32_t)age);
    }
    best = warp_max(best);
    youngest = warp_min(youngest);
    if (lane != 0) return;
    if (most_recent && youngest != UINT32_MAX)
        best = __float_as_uint(youngest == 0 ? now : ring[(step - youngest) % s.length]);
    ring[step % s.length] = now;
    s.steps[point] = step + 1;
    s.slots[point].amax = s.slots[point].amax_without_first = 0.0f;
    if (best == 0) return;
    fp8_scale_pair(q_max, __uint_as_float(best), &scale, &descale);
    s.scale[point] = scale;
    s.descale[point] = descale;
}

extern "C" fp8_status fp8_cuda_delayed_update(fp8_device *d, const fp8_delayed *state,
                                              const fp8_recipe *recipe, fp8_dtype to,
                                              fp8_launch how) {
    const int64_t points = THREADS / 32, blocks = (state->count + points - 1) / points;
    const int64_t keep =
        recipe->history_len < state->length ? recipe->history_len : state->length;
    const float q_max = ldexpf(fp8_max_of(to), -recipe->margin);

    return launch("delayed_update", delayed_kernel, dim3((unsigned)blocks), dim3(THREADS), 0, d,
                  how, *state, keep, recipe->algo == FP8_AMAX_MOST_RECENT, q_max);
}
