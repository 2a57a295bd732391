/* attention/flash16_any.cu - flash16.cu for what that one leaves out: terms of the scores
 * (arbitrary mask, biases, ALiBi, softcap, sink: flash_terms.cuh), and head sizes beside 64, 128
 * and 256, d_qk apart from d_v. One kernel for a pair of sizes and a type: what a run has of the
 * terms are switches.
 *
 * Computes   as flash16.cu, with scores changed by flash_terms.cuh
 * Shapes     d_qk and d_v multiples of 8 up to the kernel's; columns that are not there come as 0
 *            into shared memory (maps of fewer columns than their boxes) and are not written
 * Numerics   as flash16.cu; scores with terms are exponents in F32
 * Tiling     as flash16.cu, 128 queries always, and 128 keys (96 at 192, 64 at 256): what terms
 *            load needs registers. At 64 and 128 (there 96 keys) a kernel of its own asks for a
 *            bias of 16 bits a tile early
 * Registers  of a consumer's 232: O d_v / 2, S and P 96 (72, 48), and up to 32 of a bias. No
 *            spills (ptxas 13.0, sm_90a)
 * Shared     Q and 2 stages of K and V (64: 4): 64: 144 K;  128: 160 K;  192/128: 208 K;  192:
 *            192 K;  256: 192 K
 */
#include "attention/flash16_kernel.cuh"

static flash16_entry entry_of(flash_sizes d, int f16) {
    const bool early = d.kind == FLASH_ANY_EARLY;
    switch (d.qk) {
    case 64:
        return early ? flash16_entry_of<64, 64, true, true>(f16)
                     : flash16_entry_of<64, 64, true>(f16);
    case 128:
        return early ? flash16_entry_of<128, 128, true, true>(f16)
                     : flash16_entry_of<128, 128, true>(f16);
    case 192:
        return d.v == 128 ? flash16_entry_of<192, 128, true>(f16)
                          : flash16_entry_of<192, 192, true>(f16);
    default: return flash16_entry_of<256, 256, true>(f16);
    }
}

extern "C" fp8_status attention_flash16_any_prepare(flash_sizes d, int f16) {
    const flash16_entry e = entry_of(d, f16);
    return flash_prepare(e.kernel, d.v, e.bytes);
}

extern "C" fp8_status attention_flash16_any_launch(const flash_params *p, flash_sizes d, int f16,
                                                   int32_t blocks, const flash_queue *to) {
    const flash16_entry e = entry_of(d, f16);
    return flash_launch("flash attention in 16 bits, any", e.kernel, blocks, e.threads, e.bytes,
                        to, *p);
}
