/* attention/flash16.cu - attention on Hopper in BF16 or F16: operands and P in 16 bits, the softmax
 * and every sum in FP32. Shares items, masks and epilogue with flash.cu (flash_items.cuh,
 * flash_epilogue.cuh).
 *
 * Computes   S = Q K^T;  p = 2^(S * c - max), c = scale / ln 2;  O = (sum_j p_j V_j) / sum_j p_j, 0
 *            for a row that sees no key; LSE, amax where wanted
 * Shapes     q, k, v by maps (d, head, token, sequence), V as it lies: Hopper's 16-bit products
 *            take a right-hand operand contiguous along its columns too. d 64, 128, 256
 * Numerics   FP32 accumulation; p is rounded to 16 bits, the sum is of the unrounded p
 * Tiling     a block takes 64 queries of one head a consumer warpgroup, two of them, three at d 64,
 *            and a producer warp that copies (TMA); K and V come in rings of tiles of 128 keys at
 *            d 64, of 176 and of 80. Blocks are persistent and get their next item from a counter.
 * Time       P V of tile i - 1 runs under the softmax of tile i in the same warpgroup, and one
 *            warpgroup's products under the others' exponentials: turns, by named barriers. O is
 *            rescaled only where the maximum of a warp's rows rose: at d 256 10 % of the time
 * Registers  of a consumer: d 64: S 64, O 32, P 32 of 160;  d 128: S 88, O 64, P 44 of 232;
 *            d 256: S 40, O 128, P 20 of 224. No spills (ptxas 13.0, sm_90a)
 * Bound      cycles of one SM for 128 x 128 scores: products 16 d (4096 flop a cycle), exponentials
 *            1024: d 64 is bound by both, d 128 and 256 by products, then by power: a BF16 product
 *            of 8192^3 reaches 781 TFLOP/s. Measured on an H200 (b, h, h_kv, d, s; docs/NOTES.md):
 *              1, 24, 24, 128,  4224 none      0.320 ms    685 TFLOP/s
 *              1, 16, 16, 128, 16384 none      3.544       621
 *              2, 32,  4, 128,  8192 causal    1.808       608
 *              1,  8,  8, 256, 16384 none      3.120       705
 *              4, 32, 32,  64,  4096 none      1.145       480
 */
#include "attention/flash16_kernel.cuh"

static flash16_entry entry_of(int32_t d, int f16) {
    switch (d) {
    case 64: return flash16_entry_of<64, 64, false>(f16);
    case 128: return flash16_entry_of<128, 128, false>(f16);
    case 256: return flash16_entry_of<256, 256, false>(f16);
    default: return {};
    }
}

extern "C" fp8_status attention_flash16_prepare(int32_t d, int f16) {
    const flash16_entry e = entry_of(d, f16);
    return flash_prepare(e.kernel, d, e.bytes);
}

extern "C" fp8_status attention_flash16_launch(const flash_params *p, int32_t d, int f16,
                                               int32_t blocks, const flash_queue *to) {
    const flash16_entry e = entry_of(d, f16);
    return flash_launch("flash attention in 16 bits", e.kernel, blocks, e.threads, e.bytes, to,
                        *p);
}
