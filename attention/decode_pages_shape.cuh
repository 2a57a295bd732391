/* attention/decode_pages_shape.cuh - private: the tiles of a kernel over pages and what its shared
 * memory holds, for kernels and for the host's table of them. */
#ifndef FP8_ATTENTION_DECODE_PAGES_SHAPE_CUH
#define FP8_ATTENTION_DECODE_PAGES_SHAPE_CUH
#include "attention/decode_pages.h"

static constexpr float NONE = -1e30f,     /* maximum before the first key */
    SLACK = 8.0f,                         /* log2 of what P may grow to */
    LOG2_E = 1.4426950408889634f;

enum {
    SEGMENTS = 2, /* of a block, ahead */
    PENDING = 4   /* parts that wait to be counted, or for the others of their item */
};

/* Columns of O that a block's warps add at a time: as many as there is room for. */
static constexpr int round_columns(int d, int rows, int room) {
    return rows * (d + 4) * 4 <= room ? d : round_columns(d / 2, rows, room);
}

/* KV: of the pages. NT: row blocks of 8. WARPS warps take 16 KT keys each of a tile. */
template <fp8_dtype KV_, int D_QK_, int D_V_, int PAGE_, int NT_, int WARPS_, int KT_, int STAGES_,
          int PER_SM_>
struct tiling {
    static constexpr fp8_dtype KV = KV_;
    static constexpr bool FP8 = KV_ == FP8_DTYPE_E4M3, BF16 = KV_ == FP8_DTYPE_BF16;
    static constexpr int D_QK = D_QK_, D_V = D_V_, PAGE = PAGE_, NT = NT_, WARPS = WARPS_,
                         KT = KT_, STAGES = STAGES_, PER_SM = PER_SM_;
    static constexpr int ROWS = 8 * NT, TILE = 16 * KT * WARPS, BYTES = FP8 ? 1 : 2;
    static constexpr int SPAN = TILE < PAGE ? TILE : PAGE; /* keys of one page in a tile */
    static constexpr int SPANS = TILE / SPAN;
    static constexpr int K_ROW = D_QK * BYTES, K_PITCH = K_ROW < 128 ? 64 : 128;
    static constexpr int K_PANELS = (K_ROW + K_PITCH - 1) / K_PITCH;
    static constexpr int V_ROW = SPAN * BYTES, V_PITCH = V_ROW < 128 ? 64 : 128;
    static constexpr int V_PANELS = V_ROW / V_PITCH;
    static constexpr int K_PART = SPAN * K_PITCH, V_PART = D_V * V_ROW; /* bytes of a page's */
    static constexpr int K_BYTES = TILE * K_PITCH * K_PANELS, V_BYTES = D_V * TILE * BYTES;
    static constexpr int STAGE_BYTES = K_BYTES + V_BYTES;
    static constexpr int CONSUMERS = 32 * WARPS, THREADS = CONSUMERS + 32;
    static constexpr int MAKERS = PER_SM > 1 ? 1 : 3; /* warps that append: registers' room */
    static constexpr int APPEND_THREADS = THREADS + 32 * MAKERS;
    static constexpr int K_STEPS = D_QK / 16; /* products of 16 of d */
    static constexpr int LOAD_D = FP8 ? 32 : 16, V_LOADS = D_V / LOAD_D; /* of 16 keys of V */
    static constexpr int EARLY = D_V > 128 || V_LOADS < 4 ? 2 : 4; /* before the softmax */
    static constexpr int Q_PITCH = D_QK * 2 + 16; /* bytes; rows in other banks */
    static constexpr int STRIP = D_V < 128 ? D_V : 128; /* columns that a warp adds of parts */
    static constexpr int AREA = STAGES * STAGE_BYTES; /* the ring, and parts after it */
    static constexpr int LIMIT = 233472 / PER_SM - 1024; /* shared memory a block may have */
    static constexpr int ROUND_D =
        round_columns(D_V, WARPS * ROWS, LIMIT - AREA - SEGMENTS * ROWS * Q_PITCH - 4096);
    static constexpr int SLAB_PITCH = ROUND_D + 4;
};

/* What a block takes of one item at a time, as the copying warp tells the others. */
struct segment_info {
    int32_t q_begin, q_len, kv_len; /* of the sequence, clamped */
    int32_t row0, head_kv, first, tiles; /* tiles 0: there is no more */
    int32_t parts, slot, first_slot, item; /* parts of the item: 1, or where they are kept */
    float score_scale, value_scale;        /* with descales; of O with its scale */
};

template <class T> struct finish_memory {
    alignas(16) float slab[T::WARPS][T::ROWS][T::SLAB_PITCH];
    float2 stats[T::WARPS][T::ROWS]; /* a warp's maximum and sum */
    segment_info pending[PENDING];
    int32_t last[PENDING];
};

template <class T> struct decode_control {
    uint8_t q[SEGMENTS][T::ROWS][T::Q_PITCH];
    uint64_t full[T::STAGES], empty[T::STAGES], told[SEGMENTS], read[SEGMENTS];
    segment_info info[SEGMENTS];
    finish_memory<T> finish;
};

/* A new token's rows of K and V as they are to lie in the last tile of a segment. */
template <class T> struct fresh_token {
    alignas(16) uint8_t k[T::D_QK * T::BYTES], v[T::D_V * T::BYTES];
    int32_t key;  /* of the tile; -1: it is not there */
    int32_t keeps; /* 1: V goes to its page from there */
    int64_t v_at; /* element of the pages' V */
};

/* Where the kernel appends. */
template <class T> struct append_control {
    decode_control<T> rest;
    fresh_token<T> fresh[SEGMENTS];
};

template <class T, class CONTROL> static constexpr int shared_bytes() {
    constexpr int bytes = T::AREA + (int)sizeof(CONTROL) + 1024;
    static_assert(bytes <= T::LIMIT, "a block's shared memory");
    return bytes;
}
#endif
