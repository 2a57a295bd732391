/* attention/unfused.cu - rows of any layout into the padded operands of unfused attention, and its
 * output back.
 *
 * Computes   gather   padded[unit, row, c] = x[token, head, c], 0 beyond the sequence; with
 *                     quantize e4m3(x / descale). V of an FP8 product: transposed
 *            scatter  O[token, head, c] = round(o[unit, row, c] * factor[unit, row] * o_scale)
 * Shapes     attention/unfused.h
 * Bound      memory: gather moves 1 to 4 bytes in and out an element, scatter 4 in, 1 to 4 out
 * Tiling     a thread moves 8 elements; the transpose goes by 64 x 64 codes through shared memory
 * Numerics   F32 between the roundings
 */
#include "attention/operand_rows.cuh"
#include "attention/unfused.h"
#include "core/cuda_check.h"

using namespace attention;

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    THREADS = 256,
    TILE = 64,       /* keys and elements of a transposed tile */
    TILE_PITCH = 80  /* bytes a row of it: 16-byte vectors stay aligned, banks are spread */
};

/* ---- device helpers -------------------------------------------------------------------------- */

/* Source and padded copy. `descale` not NULL: to E4M3 codes, or what rounding to them leaves. */
struct gather_job {
    operand_rows rows;
    int64_t unit0;
    uint32_t num_rows; /* of a unit, padded */
    int64_t pitch;
    void *out;
    fp8_dtype out_dtype;
    const float *descale;
    fp8_attention_options options;
};

/* Eight elements of row r from column c on, 0 outside. */
static __device__ __forceinline__ void fetch(float x[VEC], const gather_job &g,
                                             const operand_unit &u, float scale, uint32_t r,
                                             int64_t c) {
    const bool inside = row_token(g.rows, r) < u.length && c < g.rows.d;
    const int64_t at = inside ? row_offset(g.rows, u, g.rows.strides, r) + c : 0;
    load8(x, g.rows.data, g.rows.dtype, at, inside ? g.rows.d - c : 0, inside && g.rows.whole);
    if (!g.descale) return;
#pragma unroll
    for (int i = 0; i < VEC; i++) x[i] = round_e4m3(x[i] * scale);
}

static __device__ __forceinline__ float quantize_scale(const gather_job &g,
                                                       const operand_unit &u) {
    if (!g.descale || u.length == 0) return 1.0f;
    return 1.0f / g.descale[attention_descale_index(&g.options, u.seq, u.kv_head)];
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* grid: (row groups, units) */
static __global__ void __launch_bounds__(THREADS) gather_kernel(gather_job g) {
    const uint32_t chunks = (uint32_t)(g.pitch / VEC);
    const block_rows mine = share_rows(THREADS, chunks);
    const uint32_t r = blockIdx.x * mine.rows + mine.row;
    const operand_unit u = open_unit(g.rows, g.unit0 + blockIdx.y);
    const float scale = quantize_scale(g, u);

    if (mine.row >= mine.rows || r >= g.num_rows) return;
    for (uint32_t c = mine.chunk; c < chunks; c += mine.step) {
        const int64_t to = ((int64_t)blockIdx.y * g.num_rows + r) * g.pitch + c * VEC;
        float x[VEC];
        fetch(x, g, u, scale, r, c * VEC);
        store8(g.out, g.out_dtype, to, x, VEC, true);
    }
}

/* out: codes [unit, pitch, num_rows]. grid: (tiles of keys, tiles of elements, units) */
static __global__ void __launch_bounds__(THREADS) gather_transposed_kernel(gather_job g) {
    __shared__ alignas(16) uint8_t tile[TILE][TILE_PITCH];
    const operand_unit u = open_unit(g.rows, g.unit0 + blockIdx.z);
    const float scale = quantize_scale(g, u);
    const uint32_t r0 = blockIdx.x * TILE, c0 = blockIdx.y * TILE;
    const uint32_t across = TILE / VEC, vectors = TILE / 16;
    uint8_t *out = static_cast<uint8_t *>(g.out);

    for (uint32_t r = threadIdx.x / across; r < TILE; r += THREADS / across) {
        const uint32_t c = threadIdx.x % across * VEC;
        float x[VEC];
        fetch(x, g, u, scale, r0 + r, c0 + c);
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            __nv_fp8_e4m3 code;
            narrow(&code, x[i]);
            tile[c + i][r] = code.__x;
        }
    }
    __syncthreads();
    for (uint32_t c = threadIdx.x / vectors; c < TILE; c += THREADS / vectors) {
        const uint32_t r = threadIdx.x % vectors * 16;
        const int64_t to = ((int64_t)blockIdx.z * g.pitch + c0 + c) * g.num_rows + r0 + r;
        if (c0 + c < g.pitch && r0 + r < g.num_rows)
            *reinterpret_cast<uint4 *>(out + to) = *reinterpret_cast<const uint4 *>(&tile[c][r]);
    }
}

struct scatter_job {
    operand_rows rows; /* of O */
    int64_t unit0;
    uint32_t num_rows;
    int64_t pitch;
    void *o;
    const float *in, *factor;
    const float *o_scale; /* NULL = 1 */
    float *amax;          /* NULL: not wanted */
};

/* grid: (row groups, units). Rows of a padded layout beyond the sequence become 0. */
static __global__ void __launch_bounds__(THREADS) scatter_kernel(scatter_job g) {
    const uint32_t chunks = (uint32_t)((g.rows.d + VEC - 1) / VEC);
    const block_rows mine = share_rows(THREADS, chunks);
    const uint32_t r = blockIdx.x * mine.rows + mine.row;
    const int64_t unit = g.unit0 + blockIdx.y, row = (int64_t)blockIdx.y * g.num_rows + r;
    const operand_unit u = open_unit(g.rows, unit);
    const float scale = g.o_scale ? *g.o_scale : 1.0f;
    float factor = 0.0f;
    float amax = 0.0f;
    bool inside;

    if (mine.row >= mine.rows || r >= g.num_rows || unit >= g.rows.num_units) return;
    inside = row_token(g.rows, r) < u.length;
    if (!inside && (g.rows.starts || row_token(g.rows, r) >= g.rows.longest)) return;
    if (inside) factor = g.factor[row];
    for (uint32_t c = mine.chunk; c < chunks; c += mine.step) {
        const int64_t at = c * VEC;
        float x[VEC] = {};
        if (factor != 0.0f) load8(x, g.in, FP8_DTYPE_F32, row * g.pitch + at, VEC, true);
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            x[i] *= factor;
            if (at + i < g.rows.d) amax = fmaxf(amax, fabsf(x[i]));
            x[i] *= scale;
        }
        store8(g.o, g.rows.dtype, row_offset(g.rows, u, g.rows.strides, r) + at, x, g.rows.d - at,
               g.rows.whole);
    }
    if (g.amax) raise_amax(g.amax, amax);
}

/* ---- launchers ------------------------------------------------------------------------------- */

static unsigned row_blocks(int64_t rows, int64_t pitch) {
    const int64_t a_block = rows_a_block(THREADS, (uint32_t)((pitch + VEC - 1) / VEC));
    return (unsigned)((rows + a_block - 1) / a_block);
}

/* descale: that of a tensor to be quantized here, else NULL. */
static gather_job job_of(const attention_slice *a, const void *x, fp8_dtype dtype,
                         fp8_strides strides, int64_t d, bool is_query, const float *descale) {
    gather_job g = {};
    g.rows = operand_of(&a->options, &a->io, x, dtype, strides, d, is_query);
    g.rows.token0 = is_query ? a->token0 : 0;
    g.unit0 = a->unit0;
    g.num_rows = (uint32_t)(is_query ? a->tokens * a->group : a->kv_pitch);
    g.descale = dtype == FP8_DTYPE_E4M3 || a->options.quantize == FP8_QUANTIZE_NOT ? NULL : descale;
    g.options = a->options;
    return g;
}

static fp8_status gather(const char *name, gather_job g, void *out, fp8_dtype dtype, int64_t pitch,
                         int64_t units, fp8_stream stream) {
    g.out = out;
    g.out_dtype = dtype;
    g.pitch = pitch;
    gather_kernel<<<dim3(row_blocks(g.num_rows, pitch), (unsigned)units), THREADS, 0, stream>>>(g);
    return fp8_cuda_launched(name, stream);
}

extern "C" fp8_status attention_gather_q(const attention_slice *a, fp8_stream stream) {
    const fp8_attention_options &o = a->options;
    const gather_job q = job_of(a, a->io.q, o.q_dtype, o.q, o.d_qk, true, a->q_descale);
    return gather("attention gather Q", q, a->q, a->qk_dtype, a->d_qk_pitch, a->units, stream);
}

static fp8_status gather_v(const attention_slice *a, gather_job v, fp8_stream stream) {
    const dim3 tiles((unsigned)((a->kv_pitch + TILE - 1) / TILE),
                     (unsigned)((a->d_v_pitch + TILE - 1) / TILE), (unsigned)a->units);
    if (a->pv_dtype != FP8_DTYPE_E4M3)
        return gather("attention gather V", v, a->v, a->pv_dtype, a->d_v_pitch, a->units, stream);
    v.out = a->v;
    v.pitch = a->d_v_pitch;
    gather_transposed_kernel<<<tiles, THREADS, 0, stream>>>(v);
    return fp8_cuda_launched("attention gather V transposed", stream);
}

extern "C" fp8_status attention_gather_kv(const attention_slice *a, fp8_stream stream) {
    const fp8_attention_options &o = a->options;
    const gather_job k = job_of(a, a->io.k, o.kv_dtype, o.k, o.d_qk, false, a->k_descale);
    const gather_job v = job_of(a, a->io.v, o.kv_dtype, o.v, o.d_v, false, a->v_descale);
    const fp8_status st =
        gather("attention gather K", k, a->k, a->qk_dtype, a->d_qk_pitch, a->units, stream);
    return st == FP8_OK ? gather_v(a, v, stream) : st;
}

extern "C" fp8_status attention_scatter_o(const attention_slice *a, fp8_stream stream) {
    const fp8_attention_options &o = a->options;
    scatter_job g = {};
    g.rows = operand_of(&o, &a->io, a->io.o, o.o_dtype, o.o, o.d_v, true);
    g.rows.token0 = a->token0;
    g.unit0 = a->unit0;
    g.num_rows = (uint32_t)(a->tokens * a->group);
    g.pitch = a->d_v_pitch;
    g.o = a->io.o;
    g.in = a->o;
    g.factor = a->factor;
    g.o_scale = o.o_dtype == FP8_DTYPE_E4M3 ? a->io.o_scale : NULL;
    g.amax = o.want_amax ? a->io.amax_o : NULL;
    scatter_kernel<<<dim3(row_blocks(g.num_rows, o.d_v), (unsigned)a->units), THREADS, 0, stream>>>(
        g);
    return fp8_cuda_launched("attention scatter O", stream);
}
