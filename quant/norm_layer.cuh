/* quant/norm_layer.cuh - private: layer norm of BF16 rows, for rows_kernel.
 *
 * A row's sum and its squares come from the tensor cores, which take the elements as they were
 * read: a piece of eight costs five instructions, where widening, summing and squaring them costs
 * 24 and more. Where sum and squares would cancel, or are not plain numbers, the squares about the
 * mean are taken after it, as on the CPU. */
#ifndef FP8_QUANT_NORM_LAYER_CUH
#define FP8_QUANT_NORM_LAYER_CUH
#include "quant/norm_device.cuh"

namespace fp8 {

/* d [16, 8] += a [16, 16] b [16, 8], BF16: of a lane a's piece, two words of b. */
static __device__ __forceinline__ void add_product(float (&d)[4], const uint4 &a, uint32_t b0,
                                                   uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#endif
}

/* d [16, 8] += a [16, 8] b [8, 8]: of a lane half a piece, a word of b. */
static __device__ __forceinline__ void add_product(float (&d)[4], uint32_t a0, uint32_t a1,
                                                   uint32_t b) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
#endif
}

/* The sum of a warp's elements (even lanes) and of their squares (odd lanes). The words of a piece
 * are parts of rows lane / 4 and lane / 4 + 8 of a 16-row matrix: times ones they are the rows'
 * sums, times themselves their squares on the diagonal. */
template <int N>
static __device__ __forceinline__ float warp_moments(const piece<__nv_bfloat16> (&x)[N]) {
    const int lane = (int)threadIdx.x % 32;
    const uint32_t ones = 0x3f803f80u;
    float sum[4] = {}, low[4] = {}, high[4] = {};

#pragma unroll
    for (int i = 0; i < N; i++) {
        const uint4 &a = x[i].part[0];
        add_product(sum, a, ones, ones);
        add_product(low, a.x, a.y, a.x);
        add_product(high, a.x, a.y, a.y);
        add_product(low, a.z, a.w, a.z);
        add_product(high, a.z, a.w, a.w);
    }
    /* row r's square is in column r, which the lane 4 r + r / 2 has */
    const float square = lane & 4 ? low[1] + high[3] : low[0] + high[2];
    const float mine = __shfl_sync(0xffffffffu, square, (lane & 28) | lane >> 3);
    float v = lane & 1 ? mine : sum[0] + sum[2];
#pragma unroll
    for (int off = 4; off < 32; off *= 2) v += __shfl_xor_sync(0xffffffffu, v, off);
    return v;
}

/* Weights and biases are nobody's output: through the path for constants, so that the compiler may
 * ask for them before a barrier. */
static __device__ __forceinline__ piece<__nv_bfloat16> load_constant(const __nv_bfloat16 *p,
                                                                     int64_t i) {
    return {{__ldg(reinterpret_cast<const uint4 *>(p) + i)}};
}

/* For rows_kernel; T is BF16 and MODE a known one. */
template <int N, int KNOWN> struct layer_op {
    typedef __nv_bfloat16 real;
    enum {
        MODE = KNOWN,
        PIECES = N,
        KEEP_NAN_SIGN = 0,
        BY_AMAX = MODE % NUM_SINK_MODES != MODE_ONE_SCALE && MODE % NUM_SINK_MODES != MODE_VALUES,
        THREADS = N == 1 ? 1024 : 512,
        BLOCKS = N == 1 || BY_AMAX ? 1 : 2,
        WARPS = THREADS / 32,
        AT_ONCE = N == 1 ? 1 : 2,
        ADDS = (MODE & ADD_MODE) != 0
    };
    norm_args<real> a;

    struct held {
        piece<real> x[N], weight, bias; /* the last two where there is one piece */
        float rstd, offset;             /* - mean rstd */
    };

    __device__ __forceinline__ piece<real> bias_of(const share &mine, int i) const {
        const uint32_t none = 0x80008000u; /* -0, which changes no sum */
        piece<real> bias = {{{none, none, none, none}}};
        if (a.bias && mine.has(i)) bias = load_constant(a.bias, mine.at(i));
        return bias;
    }

    __device__ __forceinline__ void ask(held &k, const share &mine) const {
        if (N > 1) return;
        k.weight = {};
        if (mine.has(0)) k.weight = load_constant(a.weight, mine.at(0));
        k.bias = bias_of(mine, 0);
    }

    /* h = x, or the rounded sum, which is stored. */
    __device__ __forceinline__ void read(held &k, const share &mine) const {
        const real *x = a.x + mine.row * a.x_stride, *y = a.residual + mine.row * a.residual_stride;
        piece<real> q[N] = {};

#pragma unroll
        for (int i = 0; i < N; i++) {
            k.x[i] = {};
            if (mine.has(i)) k.x[i] = load_piece(x, mine.at(i));
            if (ADDS && mine.has(i)) q[i] = load_piece(y, mine.at(i));
        }
#pragma unroll
        for (int i = 0; ADDS && i < N; i++) {
            float v[PIECE], w[PIECE];
            widen_piece(v, k.x[i]);
            widen_piece(w, q[i]);
#pragma unroll
            for (int e = 0; e < PIECE; e++) v[e] = __fadd_rn(v[e], w[e]);
            k.x[i] = narrow_piece<real>(v);
            if (mine.has(i)) put_piece(a.h + mine.row * a.h_stride, mine.at(i), k.x[i]);
        }
    }

    /* Sum of squares about the mean, which is found first. Rare: the row is read again, so that it
     * takes no registers from the others. */
    __device__ __forceinline__ float squares_about(const share &mine, float *mean,
                                                   team_scratch *scratch) const {
        const real *h = ADDS ? a.h + mine.row * a.h_stride : a.x + mine.row * a.x_stride;
        float part = 0.0f, v[PIECE];

#pragma unroll 1
        for (int i = 0; i < N; i++) {
            if (!mine.has(i)) continue;
            widen_piece(v, load_piece(h, mine.at(i)));
#pragma unroll
            for (int e = 0; e < PIECE; e++) part += v[e];
        }
        *mean = team_sum<true>(part, mine.team, scratch->first) * a.per_col;
        part = 0.0f;
#pragma unroll 1
        for (int i = 0; i < N; i++) {
            if (!mine.has(i)) continue;
            widen_piece(v, load_piece(h, mine.at(i)));
#pragma unroll
            for (int e = 0; e < PIECE; e++) {
                const float apart = __fsub_rn(v[e], *mean);
                part = fmaf(apart, apart, part);
            }
        }
        return team_sum<true>(part, mine.team, scratch->second);
    }

    __device__ __forceinline__ void load(held &k, const share &mine, team_scratch *scratch) const {
        __shared__ float figures[2 * WARPS];
        const int lane = (int)threadIdx.x % 32, count = (int)blockDim.x / 16;
        float sum, mean, squares;

        read(k, mine);
        float v = warp_moments(k.x);
        if (mine.team > 32) { /* even lanes join sums, odd ones squares */
            if (lane < 2) figures[threadIdx.x / 32 * 2 + lane] = v;
            __syncthreads();
            v = lane < count ? figures[lane] : 0.0f;
            if (N == 1 && lane + 32 < count) v += figures[lane + 32];
#pragma unroll
            for (int off = 2; off < 32; off *= 2) v += __shfl_xor_sync(0xffffffffu, v, off);
        }
        sum = __shfl_sync(0xffffffffu, v, 0);
        mean = sum * a.per_col;
        squares = __shfl_sync(0xffffffffu, v, 1);
        const float about = fmaf(-sum, mean, squares);
        /* an error of the sums grows by 1 + 3 mean^2 / variance, here less than twice */
        if (mean * sum <= 0.25f * about && is_plain(__float_as_uint(about))) squares = about;
        else squares = squares_about(mine, &mean, scratch);
        k.rstd = rsqrtf(fmaf(squares, a.per_col, a.eps));
        k.offset = -mean * k.rstd;
    }

    /* Values made before are made again: there are no registers for them. */
    __device__ __forceinline__ void forget(held &k) const {
#pragma unroll
        for (int i = 0; i < N; i++)
            asm volatile("" : "+r"(k.x[i].part[0].x), "+r"(k.x[i].part[0].y),
                         "+r"(k.x[i].part[0].z), "+r"(k.x[i].part[0].w));
        asm volatile("" ::: "memory");
    }

    /* Of what is not there 0, where a maximum is taken, else anything. */
    template <int COUNT>
    __device__ __forceinline__ void values(float (&v)[COUNT][PIECE], const held &k,
                                           const share &mine, int first) const {
        piece<real> weight[COUNT] = {}, bias[COUNT];

#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (N > 1 && mine.has(first + i))
                weight[i] = load_constant(a.weight, mine.at(first + i));
            bias[i] = N > 1 ? bias_of(mine, first + i) : k.bias;
            if (N == 1) weight[i] = k.weight;
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float w[PIECE], b[PIECE];
            widen_piece(v[i], k.x[first + i]);
            widen_piece(w, weight[i]);
            widen_piece(b, bias[i]);
#pragma unroll
            for (int e = 0; e < PIECE; e++) {
                v[i][e] = fmaf(fmaf(v[i][e], k.rstd, k.offset), w[e], b[e]);
                if (BY_AMAX && !mine.has(first + i)) v[i][e] = 0.0f;
            }
        }
    }
};

} /* namespace fp8 */
#endif
