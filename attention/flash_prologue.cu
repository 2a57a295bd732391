/* attention/flash_prologue.cu - what goes before the flash kernels: Q, K and V as E4M3 codes where
 * they come in BF16 or F16, and V transposed with its keys permuted.
 *
 * Computes   rows      codes[s, h, i, c] = e4m3(x[s, i, h, c] / descale)
 *            columns   codes[s, h, c, 32 g + p] = e4m3(x[s, 32 g + key(p), h, c] / descale), 0
 *                      beyond the sequence; codes that come in are moved as they are
 *                      key(16 h + 4 t + r) = 16 h + 8 (r / 2) + 2 t + r % 2    h < 2, t < 4, r < 4
 *            The second product of an FP8 attention contracts over keys, and Hopper's FP8 products
 *            want both operands contiguous along what they contract. A thread of the first product
 *            ends up with keys 2t, 2t+1, 8+2t, 8+2t+1, .. of each 32 and is asked for positions
 *            4t .. 4t+3 and 16+4t .. 16+4t+3 as a factor of the second: with this order they are
 *            the same registers.
 *            amax      of the finite |x| of each group of heads that shares a descale; descale =
 *                      amax / 448, 1 where amax is 0
 * Shapes     rows [num_seqs, heads, pitch, d], columns [num_seqs, heads, d, pitch]; d up to
 *            256, multiples of 16
 * Bound      memory: 24 heads of 4608 x 128, Q, K and V in BF16: 85 MB in, 42 MB out: 30 us at 4.27
 *            TB/s; the amax of them 19 us at 4.55 TB/s
 * Tiling     a block takes TILE tokens by up to 128 columns of one head. Rows: 8 elements a load.
 *            V: a thread gathers 16 keys x 4 columns (a warp reads whole rows), transposes them in
 *            registers and writes 16 keys of each column to shared memory; then 8 lanes write the
 *            128 bytes of a column. With scales of the data at hand the tiles are walked backwards:
 *            the last ones read for the amax are still in L2. What flash_wide.cu makes itself
 *            (flash_later.cuh) is not among the tiles.
 * Numerics   x * (1 / descale) in F32, nearest even, saturating; NaN stays NaN
 */
#include "attention/flash.h"
#include "attention/flash_launch.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#include "attention/flash_tile.cuh"
#else
#define FLASH_SM90 0
#endif

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    TILE = FLASH_TILE,    /* tokens of a block */
    GROUP = 16,           /* keys of a thread: positions 16 h .. 16 h + 15 are keys of one half */
    GROUPS = TILE / GROUP, /* = 16-byte chunks of a column */
    COLUMNS = 4,          /* of a thread */
    MAX_COLUMNS = 128,    /* of a block */
    MAX_THREADS = MAX_COLUMNS / COLUMNS * GROUPS,
    CHUNK = 8,            /* elements of a 16-byte load */
    CHUNKS = 8,           /* of a thread, ROW_STEP rows apart */
    ROW_STEP = TILE / CHUNKS,
    BEGIN_THREADS = 256,
    WIDE_BLOCKS = 4,      /* an SM, of 16 bits: 64 registers, 128 KB under way */
    CODES_BLOCKS = 8      /* 32 registers, as much */
};
static_assert(MAX_COLUMNS / CHUNK * ROW_STEP == MAX_THREADS, "a block's loads cover its tile");

/* What there is among Q, K and V: V in codes alone, or BF16 or F16 too. */
enum operands { ALL_CODES, WITH_BF16, WITH_F16 };

#if FLASH_SM90

/* ---- device helpers -------------------------------------------------------------------------- */

/* What a run starts with. */
static __device__ void begin_run(const flash_prologue &p) {
    for (int32_t i = (int32_t)threadIdx.x; i < p.num_counters; i += (int32_t)blockDim.x)
        p.next_item[i] = 0;
    if (threadIdx.x != 0) return;
    if (p.amax_s) *p.amax_s = 0.0f;
    if (p.amax_o) *p.amax_o = 0.0f;
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* A thread's chunk i is that of row first + i * ROW_STEP of the tile. */
static __device__ __forceinline__ int32_t first_row(int32_t width, int32_t *column) {
    *column = (int32_t)threadIdx.x % (width / CHUNK) * CHUNK;
    return (int32_t)threadIdx.x / (width / CHUNK);
}

static __device__ __forceinline__ void load_rows(uint4 (&got)[CHUNKS], const flash_operand &x,
                                                 const tile &t, int32_t width) {
    int32_t column;
    const int32_t row = t.first + first_row(width, &column);
    const uint16_t *from = static_cast<const uint16_t *>(x.from) + element(x, t, row) + column;
    const int64_t step = ROW_STEP * x.at.token;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
        got[i] = row + i * ROW_STEP < t.s
                     ? __ldg(reinterpret_cast<const uint4 *>(from + i * step))
                     : make_uint4(0, 0, 0, 0);
}

template <bool F16>
static __device__ __forceinline__ void quantize_rows(const flash_prologue &p,
                                                     const flash_operand &x, const tile &t,
                                                     int32_t width) {
    uint4 got[CHUNKS];
    int32_t column;
    const int32_t row = t.first + first_row(width, &column);
    uint8_t *to = x.codes + (((int64_t)t.seq * x.heads + t.head) * x.pitch + row) * x.d +
                  t.column + column;
    float scale;

    load_rows(got, x, t, width);
    scale = scale_of(p, x, t);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
        if (row + i * ROW_STEP < t.s)
            *reinterpret_cast<uint2 *>(to + i * ROW_STEP * x.d) =
                make_uint2(quantize4<F16>(got[i].x, got[i].y, scale),
                           quantize4<F16>(got[i].z, got[i].w, scale));
}

/* Four codes of each of a thread's 16 keys, 0 beyond the sequence. */
template <operands KIND>
static __device__ __forceinline__ void gather_keys(uint32_t (&row)[GROUP], const flash_prologue &p,
                                                   const flash_operand &x, const tile &t,
                                                   int32_t first, int32_t column) {
    const int64_t at = element(x, t, first) + column;
    if (KIND == ALL_CODES || x.is_codes) {
        const uint8_t *from = static_cast<const uint8_t *>(x.from) + at;
#pragma unroll
        for (int k = 0; k < GROUP; k++, from += x.at.token)
            row[k] = first + k < t.s ? __ldg(reinterpret_cast<const uint32_t *>(from)) : 0;
    } else {
        const uint16_t *from = static_cast<const uint16_t *>(x.from) + at;
        uint2 wide[GROUP];
        float scale;
#pragma unroll
        for (int k = 0; k < GROUP; k++, from += x.at.token)
            wide[k] = first + k < t.s ? __ldg(reinterpret_cast<const uint2 *>(from))
                                      : make_uint2(0, 0);
        scale = scale_of(p, x, t);
#pragma unroll
        for (int k = 0; k < GROUP; k++)
            row[k] = first + k < t.s ? quantize4<KIND == WITH_F16>(wide[k].x, wide[k].y, scale)
                                     : 0;
    }
}

/* Chunk g of column c lies at g ^ (c / 4 % 8): neither the writers (one g, 8 neighbouring c / 4)
 * nor the readers (one c, all g) of a phase meet in a bank. */
template <operands KIND>
static __device__ __forceinline__ void transpose_columns(const flash_prologue &p,
                                                         const flash_operand &x, const tile &t,
                                                         int32_t width) {
    __shared__ uint4 columns[MAX_COLUMNS * GROUPS];
    const int32_t lanes = width / COLUMNS; /* threads across a row */
    const int32_t c = (int32_t)threadIdx.x % lanes * COLUMNS;
    const int32_t g = (int32_t)threadIdx.x / lanes;
    uint8_t *to = x.codes + (((int64_t)t.seq * x.heads + t.head) * x.d + t.column) * x.pitch +
                  t.first;
    uint32_t row[GROUP], word[COLUMNS][4];

    gather_keys<KIND>(row, p, x, t, t.first + g * GROUP, c);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t out[4];
        turn_bytes(out, row[2 * k], row[2 * k + 1], row[8 + 2 * k], row[8 + 2 * k + 1]);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) word[i][k] = out[i];
    }
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        columns[(c + i) * GROUPS + (g ^ (c / 4 % GROUPS))] =
            make_uint4(word[i][0], word[i][1], word[i][2], word[i][3]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const int32_t index = (int32_t)threadIdx.x + i * (int32_t)blockDim.x;
        const int32_t column = index / GROUPS, chunk = index % GROUPS;
        *reinterpret_cast<uint4 *>(to + (int64_t)column * x.pitch + chunk * GROUP) =
            columns[column * GROUPS + (chunk ^ (column / 4 % GROUPS))];
    }
}

/* max |x| over the finite elements of a tile, into its group's slot. Floats that are not negative
 * are in the order of their bits. */
template <bool F16>
static __device__ void observe_tile(const flash_prologue &p, const flash_operand &x, const tile &t,
                                    int32_t width) {
    __shared__ uint32_t of_warp[MAX_THREADS / 32];
    uint4 got[CHUNKS];
    uint32_t top = 0;

    load_rows(got, x, t, width);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        const uint32_t word[4] = {got[i].x, got[i].y, got[i].z, got[i].w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t low = word[k] & 0x7fff, high = word[k] >> 16 & 0x7fff;
            const uint32_t end = F16 ? 0x7c00 : 0x7f80; /* Inf */
            top = max(top, low < end ? low : 0);
            top = max(top, high < end ? high : 0);
        }
    }
    top = __reduce_max_sync(0xffffffffu, top);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = top;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned i = 1; i < blockDim.x / 32; i++) top = max(top, of_warp[i]);
    if (top) atomicMax(x.amax + descale_index(p, x, t), __float_as_uint(widen<F16>(top).x));
}

#endif /* FLASH_SM90 */

/* ---- kernels --------------------------------------------------------------------------------- */

/* grid 1: of a run that takes its own scales, or has no codes to make. */
static __global__ void __launch_bounds__(BEGIN_THREADS)
begin_kernel(const __grid_constant__ flash_prologue p) {
#if FLASH_SM90
    dependents_launch();
    dependencies_wait();
    begin_run(p);
    for (int x = 0; x < 3; x++)
        for (int32_t i = (int32_t)threadIdx.x; p.x[x].amax && i < p.num_descales;
             i += BEGIN_THREADS)
            p.x[x].amax[i] = 0;
#endif
}

/* grid: the tiles of Q, K and V that are not codes; block: columns * 2. */
template <bool F16>
static __global__ void __launch_bounds__(MAX_THREADS)
observe_kernel(const __grid_constant__ flash_prologue p) {
#if FLASH_SM90
    int32_t index = (int32_t)blockIdx.x, which = 0;

    dependents_launch();
    dependencies_wait();
    for (; which < 2; which++) {
        if (index < p.x[which].observed) break;
        index -= p.x[which].observed;
    }
    const flash_operand &x = p.x[which];
    const tile t = find_tile(p, x, index);
    if (t.first < t.s) observe_tile<F16>(p, x, t, p.part);
#endif
}

/* grid: the tiles of Q, K and V that are to be made; block: columns * 2. */
template <operands KIND>
static __global__ void
__launch_bounds__(MAX_THREADS, KIND == ALL_CODES ? CODES_BLOCKS : WIDE_BLOCKS)
prologue_kernel(const __grid_constant__ flash_prologue p) {
#if FLASH_SM90
    int32_t index = (int32_t)(p.backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x), which = 0;

    if (!p.beside) dependents_launch();
    dependencies_wait();
    if (p.beside) dependents_launch(); /* flash_rotate.cu counts on what was before this launch */
    if (blockIdx.x == 0 && !p.backwards) begin_run(p);
    for (; which < 2 && index >= p.x[which].blocks; which++) index -= p.x[which].blocks;
    const flash_operand &x = p.x[KIND == ALL_CODES ? 2 : which];
    const int32_t width = p.part;
    const tile t = find_tile(p, x, index);
    if (KIND != ALL_CODES && x.amax && t.first == 0 && t.s == 0) (void)scale_of(p, x, t);
    if (t.first >= t.s) return;
    if (KIND == ALL_CODES || x.transposed) transpose_columns<KIND>(p, x, t, width);
    else quantize_rows<KIND == WITH_F16>(p, x, t, width);
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*prologue_entry)(const flash_prologue);

extern "C" fp8_status attention_flash_prologue(const flash_prologue *p, const flash_queue *to) {
    const prologue_entry observe = p->f16 ? observe_kernel<true> : observe_kernel<false>;
    const int codes = p->x[0].blocks + p->x[1].blocks == 0 && p->x[2].is_codes;
    const prologue_entry make = codes    ? prologue_kernel<ALL_CODES>
                                : p->f16 ? prologue_kernel<WITH_F16>
                                         : prologue_kernel<WITH_BF16>;
    const unsigned threads = (unsigned)p->part / COLUMNS * GROUPS;
    int64_t blocks = 0, observed = 0;
    fp8_status st = FP8_OK;

    for (int i = 0; i < 3; i++) {
        blocks += p->x[i].blocks;
        observed += p->x[i].observed;
    }
    if (observed > 0 || blocks == 0)
        FP8_TRY(flash_launch("flash attention, begin", begin_kernel, 1, BEGIN_THREADS, 0, to,
                             *p));
    if (observed > 0)
        FP8_TRY(flash_launch("flash attention, amax", observe, observed, threads, 0, to, *p));
    if (blocks > 0)
        FP8_TRY(flash_launch("flash attention, prologue", make, blocks, threads, 0, to, *p));
done:
    return st;
}
