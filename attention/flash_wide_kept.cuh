/* attention/flash_wide_kept.cuh - private: what of O has left the tensor cores' accumulators, T,
 * for shared memory, and when: why is told in flash_wide.cu. Included once, inside the sm_90a
 * guard. */
#ifndef FP8_ATTENTION_FLASH_WIDE_KEPT_CUH
#define FP8_ATTENTION_FLASH_WIDE_KEPT_CUH
#include "attention/flash_wide_softmax.cuh"

/* Volatile, so that it is found anew where it is used, not kept in a register. */
static __device__ __forceinline__ int32_t thread_index() {
    int32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

template <int N>
static __device__ __forceinline__ void shrink(float (&x)[N], const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] *= alpha[i / 2 % 2];
}

/* The thread's first row in a tile of queries. */
static __device__ __forceinline__ int32_t row_of_thread() {
    const int32_t thread = thread_index();
    return thread / 32 * 16 + thread % 32 / 4;
}

/* When an item of num_tiles is promoted: after half a gap, then after every gap, of which the last
 * ends with it, all as long as each other and no longer than `keys`. In 1/256 of a tile. */
struct wide_plan {
    int32_t due;  /* tiles that are left then; below 0: never */
    int32_t half; /* of a gap */

    __device__ __forceinline__ wide_plan(int32_t num_tiles, int32_t keys) {
        const int32_t num = (2 * BLOCK_N * num_tiles + keys - 1) / (2 * keys);
        half = 256 * num_tiles / (2 * num + 1);
        due = num > 0 ? 256 * num_tiles - half : -1;
    }
    __device__ __forceinline__ bool is_due(int32_t tiles_left) const {
        return tiles_left <= due >> 8;
    }
};

/* What of a warpgroup's O has been promoted lies in shared memory, each thread's own: O = T + kept
 * times its row's share. */
template <int D>
struct wide_kept {
    float4 *all;  /* in BF16 [D / 16, threads of the consumers]; d 64: in F32 [D / 8, threads] */
    float *share; /* [rows]; d 64: 1, none */
    bool any;     /* of this item */

    __device__ __forceinline__ float4 *own(int i) const {
        return all + i * wide_shape<D>::CONSUMERS * WARPGROUP + thread_index();
    }
    __device__ __forceinline__ void get(float (&x)[2]) const {
        const float *at = share + row_of_thread();
        x[0] = at[0];
        x[1] = at[8];
    }
    /* Of a quad of lanes, which have the same rows, one writes. */
    __device__ __forceinline__ void put(const float (&x)[2]) const {
        float *at = share + row_of_thread();
        __syncwarp();
        if (thread_index() % 4 == 0) {
            at[0] = x[0];
            at[8] = x[1];
        }
        __syncwarp();
    }
};

/* Between loads, or ptxas has more of them at a time than there are registers for. */
template <int D>
static __device__ __forceinline__ void load_fence(int i) {
    if (D == 64 && i % 2 == 0) __syncwarp();
}

template <int D>
static __device__ __forceinline__ void clear_kept(const wide_kept<D> &kept) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) *kept.own(i) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

/* Two kept values of a word, in BF16; the second one has the first one's bits below its own. */
static __device__ __forceinline__ void unpack_kept(float (&x)[2], float word) {
    x[0] = __uint_as_float(__float_as_uint(word) << 16);
    x[1] = word;
}

/* Eight of T += what is kept * share. */
static __device__ __forceinline__ void add_kept_words(float *t, const float4 from,
                                                      const float (&share)[2]) {
    const float word[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float x[2];
        unpack_kept(x, word[k]);
        t[2 * k] = fmaf(x[0], share[k % 2], t[2 * k]);
        t[2 * k + 1] = fmaf(x[1], share[k % 2], t[2 * k + 1]);
    }
}

/* T = O. */
template <int D>
static __device__ __forceinline__ void join_kept(float (&t)[D / 2], const wide_kept<D> &kept) {
    float share[2];
    kept.get(share);
#pragma unroll
    for (int i = 0; i < D / 16; i++) add_kept_words(t + 8 * i, *kept.own(i), share);
}

/* O is kept, rounded, and T = O - what is kept * next. FIRST: T is O; apart, or ptxas makes zeros
 * for what is not loaded then. */
template <int D, bool FIRST>
static __device__ __forceinline__ void keep(float (&t)[D / 2], const wide_kept<D> &kept,
                                            const float (&share)[2], const float (&next)[2]) {
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        float *x = t + 8 * i, word[4];
        if (!FIRST) add_kept_words(x, *kept.own(i), share);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float y[2];
            word[k] = __uint_as_float(pack_bf16(x[2 * k], x[2 * k + 1]));
            unpack_kept(y, word[k]);
            x[2 * k] = fmaf(y[0], -next[k % 2], x[2 * k]);
            x[2 * k + 1] = fmaf(y[1], -next[k % 2], x[2 * k + 1]);
        }
        *kept.own(i) = make_float4(word[0], word[1], word[2], word[3]);
    }
}

/* A promotion: O is kept, and T starts anew below 0 by as much as the next half gap will add if its
 * keys weigh as much as those of the last step, whose sums are in part. */
template <int D>
static __device__ __forceinline__ void centre(float (&t)[D / 2], const float (&part)[4],
                                              const wide_rows &rows, wide_kept<D> &kept,
                                              const wide_plan &plan) {
    const float steps = (float)plan.half * (2.0f / 256.0f);
    float share[2] = {0.0f, 0.0f}, next[2];

#pragma unroll
    for (int h = 0; h < 2; h++)
        next[h] = 1.0f + fminf(1.0f, __fdividef(steps * part[2 * h], fmaxf(rows.sum[h], 1e-30f)));
    if (kept.any) {
        kept.get(share);
        keep<D, false>(t, kept, share, next);
    } else keep<D, true>(t, kept, share, next);
    kept.put(next);
    kept.any = true;
}

/* T += what is kept. */
template <int D>
static __device__ __forceinline__ void add_kept(float (&t)[D / 2], const wide_kept<D> &kept) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        load_fence<D>(i);
        const float4 x = *kept.own(i);
        t[4 * i] += x.x;
        t[4 * i + 1] += x.y;
        t[4 * i + 2] += x.z;
        t[4 * i + 3] += x.w;
    }
}

/* What is kept += T, and T = 0. */
template <int D>
static __device__ __forceinline__ void promote(float (&t)[D / 2], wide_kept<D> &kept) {
    if (kept.any) add_kept(t, kept);
    kept.any = true;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        *kept.own(i) = make_float4(t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
#pragma unroll
        for (int k = 0; k < 4; k++) t[4 * i + k] = 0.0f;
    }
}

template <int D>
static __device__ __forceinline__ void shrink_kept(const wide_kept<D> &kept,
                                                   const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        load_fence<D>(i);
        float4 *at = kept.own(i), x = *at;
        *at = make_float4(x.x * alpha[0], x.y * alpha[0], x.z * alpha[1], x.w * alpha[1]);
    }
}

/* T of a step has come: its sums, and what the step after it asks for. */
template <int D, bool PROMOTES>
static __device__ __forceinline__ void settle(float (&t)[D / 2], const float (&part)[4],
                                              wide_rows &rows, const wide_kept<D> &kept, bool grows,
                                              const float (&alpha)[2]) {
    rows.sum[0] += part[0];
    rows.sum[1] += part[2];
    if (!grows) return;
    shrink(t, alpha);
    rows.sum[0] *= alpha[0];
    rows.sum[1] *= alpha[1];
    if constexpr (PROMOTES && D == 64) {
        if (kept.any) shrink_kept(kept, alpha);
    } else if constexpr (PROMOTES) {
        if (kept.any) {
            float share[2];
            kept.get(share);
            share[0] *= alpha[0];
            share[1] *= alpha[1];
            kept.put(share);
        }
    }
}
#endif
