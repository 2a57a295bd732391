/* attention/append_values.cuh - private: V of a run of tokens, turned: 64 rows of x by 128 of the
 * columns [kv_head * d_v], which are the rows of a page's V.
 *
 * A token stands in the tile at column key % 64, so that 16 bytes of a row of the tile are 16 bytes
 * of one page wherever all their tokens are of one run; the others go byte by byte, lanes along the
 * tokens. Rows of several sequences stand in the order of the rows, and all go byte by byte. */
#ifndef FP8_ATTENTION_APPEND_VALUES_CUH
#define FP8_ATTENTION_APPEND_VALUES_CUH
#include "attention/append_unit.cuh"
#include "core/bytes.cuh"

namespace attention {

enum {
    TILE_TOKENS = 64, /* of every page size a divisor */
    TILE_COLUMNS = 128,
    TILE_THREADS = 256,
    TILE_QUADS = TILE_TOKENS / 4,  /* a thread turns 4 tokens by 8 columns */
    TILE_PIECES = TILE_COLUMNS / 8
};

/* The threads that make a tile, TILE_THREADS or half of them: which one this is, and the barrier
 * that is theirs. */
struct tile_team {
    int tid, threads, barrier;
    __device__ __forceinline__ void sync() const {
        asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
    }
};

/* Q: what four tokens of a column are: 4 codes, or 4 16-bit reals. */
template <typename Q> struct value_tile {
    enum { CHUNK = 16 / sizeof(Q) * 4, CHUNKS = TILE_TOKENS / CHUNK }; /* tokens of 16 bytes */
    uint4 word[TILE_COLUMNS][TILE_QUADS * sizeof(Q) / 16];
    int key[TILE_TOKENS], page[TILE_TOKENS];
    bool whole[CHUNKS];
    /* NOTE: quads are stirred by the piece of their row, or all rows would meet in one bank. */
    __device__ __forceinline__ Q *quad(int row, int q) {
        return reinterpret_cast<Q *>(word[row]) + (q ^ row / 8);
    }
};

/* The four quads (two of them, twice, of 16-bit reals) of a chunk, in order again. */
static __device__ __forceinline__ uint4 unstir(uint4 w, int piece, uint32_t) {
    if (piece & 1) w = make_uint4(w.y, w.x, w.w, w.z);
    if (piece & 2) w = make_uint4(w.z, w.w, w.x, w.y);
    return w;
}
static __device__ __forceinline__ uint4 unstir(uint4 w, int piece, uint2) {
    return piece & 1 ? make_uint4(w.z, w.w, w.x, w.y) : w;
}

/* Which tokens the tile's columns are. Returns whether they are of one sequence; *first: the row of
 * column 0 is (0 - *first) mod 64. */
static __device__ __forceinline__ bool tile_rows(const append_args &g, int row0, int seq,
                                                 int *first) {
    const fp8_kv_batch &b = g.batch;
    int64_t begin, n;
    *first = 0;
    if (seq >= b.num_seqs) return false;
    if (b.q_starts[seq + 1] < row0 + TILE_TOKENS && seq + 1 < b.num_seqs) return false;
    n = kv_tokens(&b, seq, &begin);
    *first = (int)(b.kv_lengths[seq] - n + (row0 - begin)) & (TILE_TOKENS - 1);
    return true;
}

/* Four tokens by eight columns, turned into the tile: codes. */
template <typename T>
static __device__ __forceinline__ void turn(value_tile<uint32_t> *t, const uint4 raw[4], int piece,
                                            int quad, float scale) {
    uint32_t code[4][2];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        float v[8];
        widen8<T>(v, raw[r]);
        code[r][0] = encode4(v, scale);
        code[r][1] = encode4(v + 4, scale);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = piece * 8 + h * 4;
        uint32_t turned[4];
        turn_bytes(turned, code[0][h], code[1][h], code[2][h], code[3][h]);
#pragma unroll
        for (int k = 0; k < 4; k++) *t->quad(row + k, quad) = turned[k];
    }
}

/* 16-bit reals as they are. */
template <typename T>
static __device__ __forceinline__ void turn(value_tile<uint2> *t, const uint4 raw[4], int piece,
                                            int quad, float) {
    const uint32_t *a = &raw[0].x, *b = &raw[1].x, *c = &raw[2].x, *d = &raw[3].x;
#pragma unroll
    for (int w = 0; w < 4; w++) {
        const int row = piece * 8 + w * 2;
        *t->quad(row, quad) = make_uint2(__byte_perm(a[w], b[w], 0x5410),
                                         __byte_perm(c[w], d[w], 0x5410));
        *t->quad(row + 1, quad) = make_uint2(__byte_perm(a[w], b[w], 0x7632),
                                             __byte_perm(c[w], d[w], 0x7632));
    }
}

/* 16 bytes at a time. C: element of the pages. */
template <typename C, typename Q>
static __device__ __forceinline__ void store_chunks(const append_args &g, value_tile<Q> *t,
                                                    tile_team team, int column0, int columns) {
    enum { CHUNKS = value_tile<Q>::CHUNKS, CHUNK = value_tile<Q>::CHUNK, QUADS = CHUNK / 4 };
    const int page_size = g.pages.page_size;

    for (int i = team.tid; i < columns * CHUNKS; i += team.threads) {
        const int row = i / CHUNKS, chunk = i % CHUNKS, piece = row / 8, c = chunk * CHUNK;
        if (!t->whole[chunk]) continue;
        const uint4 w = unstir(t->word[row][chunk ^ piece / QUADS], piece, Q());
        C *to = static_cast<C *>(g.pages.v) + t->page[c] * g.pages.v_page +
                (int64_t)(column0 + row) * page_size + (t->key[c] & (page_size - 1));
        *reinterpret_cast<uint4 *>(to) = w;
    }
}

/* What is left, an element at a time. */
template <typename C, typename Q>
static __device__ __forceinline__ void store_rest(const append_args &g, value_tile<Q> *t,
                                                  tile_team team, int column0, int columns) {
    enum { CHUNK = value_tile<Q>::CHUNK };
    const int page_size = g.pages.page_size, token = team.tid % TILE_TOKENS;

    if (t->page[token] < 0 || t->whole[token / CHUNK]) return;
    C *to = static_cast<C *>(g.pages.v) + t->page[token] * g.pages.v_page +
            (t->key[token] & (page_size - 1));
    for (int row = team.tid / TILE_TOKENS; row < columns; row += team.threads / TILE_TOKENS)
        to[(int64_t)(column0 + row) * page_size] =
            reinterpret_cast<const C *>(t->quad(row, token / 4))[token % 4];
}

/* Key and page of the tile's tokens. */
template <typename Q>
static __device__ __forceinline__ void find_places(const append_args &g, value_tile<Q> *t,
                                                   tile_team team, int row0, int seq, bool one,
                                                   int first) {
    const int row = row0 + ((team.tid - first) & (TILE_TOKENS - 1));
    if (team.tid >= TILE_TOKENS) return;
    while (!one && seq < g.batch.num_seqs && g.batch.q_starts[seq + 1] <= row) seq++;
    const append_place p = place_of(g, row, seq);
    t->key[team.tid] = p.key;
    t->page[team.tid] = p.page;
}

/* Which of its chunks are 16 bytes of one page, when the places are there. */
template <typename Q>
static __device__ __forceinline__ void find_whole(value_tile<Q> *t, tile_team team, bool one) {
    enum { CHUNK = value_tile<Q>::CHUNK };
    const int c = team.tid * CHUNK, last = c + CHUNK - 1;
    if (team.tid >= value_tile<Q>::CHUNKS) return;
    t->whole[team.tid] = one && t->page[c] >= 0 && t->page[c] == t->page[last] &&
                         t->key[last] - t->key[c] == CHUNK - 1;
}

/* Tile `index`: columns fastest. */
template <typename T, typename C, typename Q>
static __device__ void append_values(const append_args &g, value_tile<Q> *t, tile_team team,
                                     int index, int slabs) {
    const int tid = team.tid, row0 = index / slabs * TILE_TOKENS;
    const int column0 = index % slabs * TILE_COLUMNS, d = g.pages.d_v;
    const int columns = min(TILE_COLUMNS, g.pages.num_kv_heads * d - column0);
    const int piece = tid % TILE_PIECES, quad = tid / TILE_PIECES;
    const int seq = sequence_of(g, row0);
    const int head = (column0 + piece * 8) / d, element = (column0 + piece * 8) % d;
    const T *x = static_cast<const T *>(g.a.v.x) + head * g.a.v.head_stride + element;
    uint4 raw[4];
    int first;
    const bool one = tile_rows(g, row0, seq, &first);

#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int row = row0 + ((quad * 4 + k - first) & (TILE_TOKENS - 1));
        raw[k] = make_uint4(0, 0, 0, 0);
        if (row < g.batch.total_q && piece * 8 < columns)
            raw[k] = *reinterpret_cast<const uint4 *>(x + row * g.a.v.token_stride);
    }
    find_places(g, t, team, row0, seq, one, first);
    team.sync();
    find_whole(t, team, one);
    if (piece * 8 < columns)
        turn<T>(t, raw, piece, quad, scale_of(g.pages, g.pages.dtype, g.pages.v_descale, head));
    if (g.a.v.amax) {
        uint32_t others = 0;
        float most = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float v[8];
            widen8<T>(v, raw[k]);
            if (t->page[quad * 4 + k] != APPEND_NOBODY)
                most = fmaxf(most, finite_amax<8>(v, &others));
        }
        join_amax(g.a.v.amax, most, others);
    }
    team.sync();
    store_chunks<C>(g, t, team, column0, columns);
    store_rest<C>(g, t, team, column0, columns);
}

} /* namespace attention */
#endif
