/* attention/flash_v.cu - V as flash.cu wants it: transposed, and its keys permuted.
 *
 * Computes   vt[seq, head, c, 32 g + p] = V[begin + 32 g + key(p), head, c], 0 beyond the sequence
 *            key(16 h + 4 t + r) = 16 h + 8 (r / 2) + 2 t + r % 2        h < 2, t < 4, r < 4
 *            The second product of an FP8 attention contracts over keys, and Hopper's FP8 products
 *            want both operands contiguous along what they contract. A thread of the first product
 *            ends up with keys 2t, 2t+1, 8+2t, 8+2t+1, .. of each 32 and is asked for positions
 *            4t .. 4t+3 and 16+4t .. 16+4t+3 as a factor of the second: with this order they are
 *            the same registers.
 * Shapes     v [total_kv, h_kv, d] E4M3, vt [num_seqs, h_kv, d, kv_pitch]; d 64, 128 or 256
 * Bound      memory: one byte in, one out an element; 16 heads of 16384 x 128 are 67 MB: 16 us at
 *            4.3 TB/s
 * Tiling     a block takes 128 keys of one head. A thread gathers 16 keys x 4 columns (a warp reads
 *            128 contiguous bytes a key), transposes them in registers and writes 16 keys of each
 *            column to shared memory; then 8 lanes write the 128 bytes of a column
 */
#include "attention/flash.h"
#include "core/cuda_check.h"

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    KEYS = FLASH_BLOCK_N,
    GROUP = 16,             /* keys of a thread: positions 16 h .. 16 h + 15 are keys of one half */
    GROUPS = KEYS / GROUP,  /* = 16-byte chunks of a column */
    COLUMNS = 4,            /* of a thread: one 4-byte load a key */
    MAX_THREADS = 256 / COLUMNS * GROUPS
};

/* ---- device helpers -------------------------------------------------------------------------- */

/* out[c] = column c of the 4 x 4 bytes whose rows are a, b, c, d. */
static __device__ void transpose_4x4(uint32_t out[4], uint32_t a, uint32_t b, uint32_t c,
                                     uint32_t d) {
    const uint32_t ab_even = __byte_perm(a, b, 0x6240), ab_odd = __byte_perm(a, b, 0x7351);
    const uint32_t cd_even = __byte_perm(c, d, 0x6240), cd_odd = __byte_perm(c, d, 0x7351);
    out[0] = __byte_perm(ab_even, cd_even, 0x5410);
    out[1] = __byte_perm(ab_odd, cd_odd, 0x5410);
    out[2] = __byte_perm(ab_even, cd_even, 0x7632);
    out[3] = __byte_perm(ab_odd, cd_odd, 0x7632);
}

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: tiles of kv_pitch * KV heads * sequences, tiles fastest; block: d / COLUMNS * GROUPS. Chunk
 * g of column c lies at g ^ (c / 4 % 8): neither the writers (one g, 8 neighbouring c / 4) nor the
 * readers (one c, all g) of a phase meet in a bank. */
static __global__ void __launch_bounds__(MAX_THREADS)
transpose_kernel(const __grid_constant__ flash_params p, int32_t d) {
    extern __shared__ uint4 columns[]; /* [d, GROUPS] */
    const int32_t tiles = (int32_t)(p.kv_pitch / KEYS);
    const int32_t first = (int32_t)(blockIdx.x % tiles) * KEYS;
    const int32_t head = (int32_t)(blockIdx.x / tiles % p.num_kv_heads);
    const int32_t seq = (int32_t)(blockIdx.x / tiles / p.num_kv_heads);
    const int32_t lanes = d / COLUMNS; /* threads across a row of V */
    const int32_t c = (int32_t)threadIdx.x % lanes * COLUMNS;
    const int32_t g = (int32_t)threadIdx.x / lanes;
    int64_t begin;
    const int32_t s_kv = (int32_t)attention_sequence(p.kv_starts, p.kv_lengths, seq, p.total_kv,
                                                     p.max_kv, &begin);
    uint32_t row[GROUP], word[COLUMNS][4];

    if (blockIdx.x == 0 && threadIdx.x == 0) *p.next_item = 0;
    if (first >= s_kv) return;
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        const int32_t key = first + g * GROUP + k;
        const int64_t at = (begin + key) * p.v_stride + (int64_t)head * d + c;
        row[k] = key < s_kv ? *reinterpret_cast<const uint32_t *>(p.v + at) : 0;
    }
#pragma unroll
    for (int t = 0; t < 4; t++) {
        uint32_t out[4];
        transpose_4x4(out, row[2 * t], row[2 * t + 1], row[8 + 2 * t], row[8 + 2 * t + 1]);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) word[i][t] = out[i];
    }
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        columns[(c + i) * GROUPS + (g ^ (c / 4 % GROUPS))] =
            make_uint4(word[i][0], word[i][1], word[i][2], word[i][3]);
    __syncthreads();

    uint8_t *out = p.v_transposed + ((int64_t)seq * p.num_kv_heads + head) * d * p.kv_pitch + first;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const int32_t index = (int32_t)threadIdx.x + i * (int32_t)blockDim.x;
        const int32_t column = index / GROUPS, chunk = index % GROUPS;
        *reinterpret_cast<uint4 *>(out + column * p.kv_pitch + chunk * GROUP) =
            columns[column * GROUPS + (chunk ^ (column / 4 % GROUPS))];
    }
}

/* ---- host launcher --------------------------------------------------------------------------- */

extern "C" fp8_status attention_flash_transpose(const flash_params *p, int32_t d,
                                                fp8_stream stream) {
    const int64_t blocks = p->kv_pitch / KEYS * p->num_kv_heads * p->num_seqs;
    const int threads = d / COLUMNS * GROUPS;
    const size_t shared = (size_t)d * KEYS;
    transpose_kernel<<<(unsigned)blocks, (unsigned)threads, shared, stream>>>(*p, d);
    return fp8_cuda_launched("flash attention, V transposed", stream);
}
