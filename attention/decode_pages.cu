/* attention/decode_pages.cu - attention of few queries over pages of E4M3 codes (decode_pages16.cu:
 * of BF16 and F16), on Hopper.
 *
 * Computes   O = softmax(scale Q K^T, shaped and hidden as attention/decode.h has it) V, and LSE
 * Shapes     1 to 8 queries a sequence, any group of heads; pages of 64 or 128 tokens, K
 *            [page][kv_head][token][d_qk], V [page][kv_head][d_v][token]
 * Bound      memory: K and V once, kv_heads (d_qk + d_v) bytes a key (twice that in 16 bits). At
 *            4.56 TB/s, what reading alone reaches on an H200, 64 sequences of 4096 keys, 8 heads,
 *            d 128: 537 MB, 118 us; 1 sequence of 65536, 4 heads, d 128: 67 MB, 14.7 us
 * Tiling     a persistent block: a ring of tiles of keys filled by bulk tensor copies, one warp
 *            issuing them; 4 or 8 warps, each with its own 16 or 32 keys of a tile, its own maximum
 *            and its own O, added up at the end of a segment (decode_pages_walk.cuh). Keys stand as
 *            the rows of a warp's product, queries (8 or 16 rows) as its columns:
 *            S^T = K Q^T, O^T += V^T P^T, so that V is read as it lies and a P that is turned by
 *            one instruction is the next product's operand. No barrier among warps until the end
 * Numerics   codes become F16 exactly, Q too (divided by a power of 2 a row where it is BF16), P is
 *            rounded to F16 (to BF16 over pages of BF16): 16-bit products of warps add in FP32, so
 *            nothing is lost at any length and Q keeps what it has. A warp's maximum rises when a
 *            score exceeds it by 2^8: P stays below 2^8 and most tiles skip the reduction
 * Order      parts of an item are added in an order that follows from their number alone, so that
 *            the same lengths give the same bytes; with a given split the same sequence does
 * Registers  a block's threads x registers fit once or twice a multiprocessor; no spills (ptxas
 *            13.0, sm_90a) */
#include "attention/decode_pages_table.cuh"

#define KERNEL(...) table_entry<tiling<__VA_ARGS__>>()
#define KERNELS(page)                                                                              \
    CODES_KERNELS(page), KERNEL(FP8_DTYPE_E4M3, 192, 128, page, 1, 8, 1, 4, 1)

static const decode_pages_kernel kernels[] = {KERNELS(64), KERNELS(128)};

extern "C" const decode_pages_kernel *decode_pages_kernels(int *count) {
    *count = sizeof kernels / sizeof *kernels;
    return kernels;
}
