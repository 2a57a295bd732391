/* core/bytes.cuh - private: bytes of words in registers, for every architecture. */
#ifndef FP8_CORE_BYTES_CUH
#define FP8_CORE_BYTES_CUH
#include <stdint.h>

/* 4 x 4 bytes turned: out[k] = byte k of a, b, c, d. */
static __device__ __forceinline__ void turn_bytes(uint32_t out[4], uint32_t a, uint32_t b,
                                                  uint32_t c, uint32_t d) {
    const uint32_t ab_low = __byte_perm(a, b, 0x5140), cd_low = __byte_perm(c, d, 0x5140);
    const uint32_t ab_high = __byte_perm(a, b, 0x7362), cd_high = __byte_perm(c, d, 0x7362);
    out[0] = __byte_perm(ab_low, cd_low, 0x5410);
    out[1] = __byte_perm(ab_low, cd_low, 0x7632);
    out[2] = __byte_perm(ab_high, cd_high, 0x5410);
    out[3] = __byte_perm(ab_high, cd_high, 0x7632);
}
#endif
