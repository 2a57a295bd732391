/* attention/flash_tile.cuh - private: a block's share of Q, K or V in flash_prologue.cu and
 * flash_rotate.cu, and what it is divided by. Included inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_TILE_CUH
#define FP8_ATTENTION_FLASH_TILE_CUH
#include <cuda_fp16.h>

#include "attention/flash.h"
#include "core/bytes.cuh"
#include "core/sm90.cuh"

/* Two elements of BF16 or F16. */
template <bool F16>
static __device__ __forceinline__ float2 widen(uint32_t pair) {
    if (F16) return __half22float2(*reinterpret_cast<const __half2 *>(&pair));
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

template <bool F16>
static __device__ __forceinline__ uint32_t quantize4(uint32_t low, uint32_t high, float scale) {
    const float2 a = widen<F16>(low), b = widen<F16>(high);
    return pack_e4m3(a.x * scale, a.y * scale, b.x * scale, b.y * scale);
}

/* A block's share of an operand. */
struct tile {
    int32_t seq, head, first, column, s; /* s: tokens of the sequence */
    int64_t begin;                       /* token 0 of the sequence */
};

static __device__ tile find_tile(const flash_prologue &p, const flash_operand &x, int32_t index) {
    const int32_t parts = x.d / p.part;
    const int32_t tiles = x.pitch / FLASH_TILE;
    tile t;
    t.column = index % parts * p.part;
    index /= parts;
    t.first = index % tiles * FLASH_TILE;
    index /= tiles;
    t.head = index % x.heads;
    t.seq = index / x.heads;
    t.s = (int32_t)attention_sequence(x.starts, x.lengths, t.seq, x.total, x.longest, &t.begin);
    return t;
}

static __device__ int32_t descale_index(const flash_prologue &p, const flash_operand &x,
                                        const tile &t) {
    const int32_t kv_head = t.head / (x.heads / p.num_kv_heads);
    if (p.granularity == FP8_DESCALE_TENSOR) return 0;
    return p.granularity == FP8_DESCALE_HEAD ? kv_head : t.seq * p.num_kv_heads + kv_head;
}

/* Elements (token `row`, column) of the tile's head on. */
static __device__ int64_t element(const flash_operand &x, const tile &t, int32_t row) {
    return attention_offset(x.at, t.seq, t.begin + row, t.head) + t.column;
}

/* 1 / descale of a tile; of current scaling, the first tile of a group writes the descale. */
static __device__ float scale_of(const flash_prologue &p, const flash_operand &x, const tile &t) {
    const int32_t i = descale_index(p, x, t);
    float descale;

    if (!x.amax) return 1.0f / x.descale[i];
    descale = attention_descale_of(__uint_as_float(__ldcg(x.amax + i)));
    if (t.first == 0 && t.column == 0 && threadIdx.x == 0) x.made[i] = descale;
    return 1.0f / descale;
}
#endif
