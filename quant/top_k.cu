/* quant/top_k.cu - the k highest logits of each row.
 *
 * Computes   ids, values of the k best of a row by (value, then lowest index)
 * Shapes     logits [rows, vocab] F32, BF16, F16
 * Bound      memory, one read: 64 x 128256 F32 33 MB, at the H200's read rate of 4.55 TB/s 7.2 us
 * Tiling     a cluster of up to eight blocks a row (one before Hopper), each with a slice of it.
 *            k = 1: a thread keeps its best. Else a block keeps candidates above the k-th best so
 *            far in shared memory, from a bound that its threads' best of a first look give, and
 *            sorts them: once, unless the logits rise. The first block of a cluster joins the
 *            others' lists
 * Numerics   keys are integers: value bits in the order of the floats, then the index from the top;
 *            no two are equal, so that every order of work gives one answer
 */
#include "quant/produce_device.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    THREADS = 512,
    QUAD = 4,              /* elements a thread takes at a time */
    DEPTH = 4,             /* quads under way: 16 bytes each of F32, 32 KiB a block */
    ROUND = THREADS * QUAD, /* elements between two looks at the candidates */
    ROOM = 2 * ROUND,      /* candidates: 32 KiB */
    MAX_CLUSTER = 8,
    MIN_SLICE = 4096 /* elements: a smaller slice is not worth a block */
};

/* ---- device helpers ------------------------------------------------------------------------- */

typedef uint64_t sort_key;

/* Never 0, which is less than every key. NaN is -Inf, -0 is 0. */
static __device__ __forceinline__ sort_key key_of(float v, int64_t index) {
    const float x = v != v ? -INFINITY : v + 0.0f;
    const uint32_t u = __float_as_uint(x), order = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (sort_key)order << 32 | (uint32_t)~(uint32_t)index;
}

static __device__ __forceinline__ int32_t index_of(sort_key key) { return (int32_t)~(uint32_t)key; }

static __device__ __forceinline__ float value_of(sort_key key) {
    const uint32_t order = (uint32_t)(key >> 32);
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

template <typename T> struct slice {
    const T *x;         /* the row */
    int64_t begin, end; /* of the columns */
    bool quads;         /* loads of four fit */
};

template <typename T> struct alignas(4 * sizeof(T)) quad_of {
    T at[QUAD];
};

/* Elements c .. c + 3; past the end NaN, which is never better than anything. */
template <typename T>
static __device__ __forceinline__ void load_quad(float v[QUAD], const slice<T> &s, int64_t c) {
    if (s.quads && c + QUAD <= s.end) {
        const quad_of<T> q = *reinterpret_cast<const quad_of<T> *>(s.x + c);
#pragma unroll
        for (int k = 0; k < QUAD; k++) v[k] = to_float(q.at[k]);
        return;
    }
#pragma unroll
    for (int k = 0; k < QUAD; k++)
        v[k] = c + k < s.end ? to_float(s.x[c + k]) : __uint_as_float(0x7fffffffu);
}

template <typename T>
static __device__ __forceinline__ slice<T> slice_of(const T *logits, int64_t vocab, int64_t stride,
                                                    unsigned cluster) {
    const int64_t row = blockIdx.x / cluster, rank = blockIdx.x % cluster;
    const int64_t each = (vocab / QUAD / cluster + 1) * QUAD; /* slices begin at whole quads */
    const int64_t begin = rank * each < vocab ? rank * each : vocab;
    const T *x = logits + row * stride;
    return {x, begin, begin + each < vocab ? begin + each : vocab,
            (uintptr_t)x % (QUAD * sizeof(T)) == 0};
}

/* ---- one best ------------------------------------------------------------------------------- */

static __device__ __forceinline__ sort_key block_max(sort_key v, sort_key *scratch) {
    for (int off = 16; off > 0; off /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, off));
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; w++) v = max(v, scratch[w]);
    return v;
}

/* grid: rows x cluster. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
best_kernel(int32_t *__restrict__ ids, float *__restrict__ values, const T *__restrict__ logits,
            int64_t vocab, int64_t stride, unsigned cluster) {
    __shared__ sort_key scratch[THREADS / 32], mine;
    const int64_t row = blockIdx.x / cluster;
    float top = -INFINITY;
    int64_t at = -1;

    wait_for_previous();
    let_next_start();
    const slice<T> s = slice_of(logits, vocab, stride, cluster);
    for (int64_t c = s.begin + threadIdx.x * QUAD; c < s.end; c += DEPTH * ROUND) {
        float v[DEPTH][QUAD];
#pragma unroll
        for (int i = 0; i < DEPTH; i++) load_quad(v[i], s, c + i * ROUND);
#pragma unroll
        for (int i = 0; i < DEPTH; i++)
#pragma unroll
            for (int k = 0; k < QUAD; k++)
                if (v[i][k] > top) { /* false for NaN, and for an equal one, which stands later */
                    top = v[i][k];
                    at = c + i * ROUND + k;
                }
    }
    sort_key best = block_max(at < 0 ? 0 : key_of(top, at), scratch);
    if (threadIdx.x == 0) mine = best;
    if (cluster > 1) cluster_sync();
    if (blockIdx.x % cluster == 0 && threadIdx.x == 0) {
        for (unsigned r = 1; r < cluster; r++) best = max(best, cluster_read(&mine, r));
        if (best == 0) best = key_of(-INFINITY, 0); /* nothing above -Inf: the first */
        ids[row] = index_of(best);
        if (values) values[row] = value_of(best);
    }
    if (cluster > 1) cluster_sync(); /* nobody ends before it was read */
}

/* ---- several -------------------------------------------------------------------------------- */

/* Thread t gets the t-th largest of all threads' keys. */
static __device__ sort_key sort_threads(sort_key key, sort_key *scratch) {
    const int t = (int)threadIdx.x;

    for (int run = 2; run <= THREADS; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            const bool largest = ((t & step) == 0) == ((t & run) == 0);
            sort_key other;
            if (step < 32) other = __shfl_xor_sync(0xffffffffu, key, step);
            else {
                scratch[t] = key;
                __syncthreads();
                other = scratch[t ^ step];
                __syncthreads();
            }
            key = largest ? max(key, other) : min(key, other);
        }
    return key;
}

/* key[0 .. count) in falling order; what follows, up to a power of two, becomes 0. */
static __device__ void sort_down(sort_key *key, int count, sort_key *scratch) {
    const int t = (int)threadIdx.x;
    int n = 2;

    if (count <= THREADS) {
        const sort_key mine = sort_threads(t < count ? key[t] : 0, scratch);
        key[t] = mine;
        __syncthreads();
        return;
    }
    while (n < count) n *= 2;
    for (int i = count + t; i < n; i += THREADS) key[i] = 0;
    __syncthreads();
    for (int run = 2; run <= n; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            for (int i = t; i < n / 2; i += THREADS) {
                const int low = i + (i & -step), high = low + step; /* i / step * 2 steps on */
                const sort_key a = key[low], b = key[high];
                if ((a < b) == ((low & run) == 0)) {
                    key[low] = b;
                    key[high] = a;
                }
            }
            __syncthreads();
        }
}

/* A key that at least k of the slice are above: just below the k-th of the threads' best in the
 * first look, so that few candidates come after. 0 when there are not as many. */
template <typename T>
static __device__ sort_key bound_of(const float (&v)[DEPTH][QUAD], const slice<T> &s, int64_t c,
                                    int k, sort_key *scratch) {
    sort_key best = 0;

#pragma unroll
    for (int i = 0; i < DEPTH; i++)
#pragma unroll
        for (int e = 0; e < QUAD; e++)
            if (c + i * ROUND + e < s.end) best = max(best, key_of(v[i][e], c + i * ROUND + e));
    best = sort_threads(best, scratch);
    scratch[threadIdx.x] = best;
    __syncthreads();
    best = scratch[k - 1];
    __syncthreads();
    return best > 0 ? best - 1 : 0;
}

/* grid: rows x cluster. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, 1)
top_kernel(int32_t *__restrict__ ids, float *__restrict__ values, const T *__restrict__ logits,
           int64_t vocab, int64_t stride, int k, unsigned cluster) {
    __shared__ sort_key key[ROOM], scratch[THREADS];
    __shared__ int count;
    const int64_t row = blockIdx.x / cluster;
    sort_key least = 0; /* a candidate is above it */

    if (threadIdx.x == 0) count = 0;
    wait_for_previous();
    let_next_start();
    const slice<T> s = slice_of(logits, vocab, stride, cluster);
    __syncthreads();
    for (int64_t begin = s.begin; begin < s.end; begin += DEPTH * ROUND) {
        const int64_t c = begin + threadIdx.x * QUAD;
        float v[DEPTH][QUAD];
#pragma unroll
        for (int i = 0; i < DEPTH; i++) load_quad(v[i], s, c + i * ROUND);
        if (begin == s.begin) least = bound_of(v, s, c, k, scratch);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            bool full = false;
#pragma unroll
            for (int e = 0; e < QUAD; e++) {
                const sort_key one = key_of(v[i][e], c + i * ROUND + e);
                if (c + i * ROUND + e >= s.end || one <= least) continue;
                const int at = atomicAdd(&count, 1);
                key[at] = one;
                full |= at >= ROOM - ROUND;
            }
            if (!__syncthreads_or(full)) continue;
            sort_down(key, count, scratch);
            least = key[k - 1];
            if (threadIdx.x == 0) count = k;
            __syncthreads();
        }
    }
    sort_down(key, count, scratch);
    if (cluster > 1) cluster_sync();
    if (cluster > 1 && blockIdx.x % cluster == 0) {
        for (int i = k + (int)threadIdx.x; i < (int)cluster * k; i += THREADS)
            key[i] = cluster_read(key + i % k, i / k);
        __syncthreads();
        sort_down(key, cluster * k, scratch);
    }
    for (int i = (int)threadIdx.x; i < k && blockIdx.x % cluster == 0; i += THREADS) {
        ids[row * k + i] = index_of(key[i]);
        if (values) values[row * k + i] = value_of(key[i]);
    }
    if (cluster > 1) cluster_sync(); /* nobody ends before it was read */
}

/* ---- launcher ------------------------------------------------------------------------------- */

/* Blocks a row: as many as keep the GPU busy once over. */
static fp8_status choose_cluster(const fp8_device *d, int64_t rows, int64_t vocab,
                                 unsigned *cluster) {
    fp8_status st = FP8_OK;
    int sms = 0;

    *cluster = 1;
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    while (fp8_device_capability(d) >= 90 && *cluster < MAX_CLUSTER &&
           rows * *cluster * 2 <= 2 * (int64_t)sms && vocab / (*cluster * 2) >= MIN_SLICE)
        *cluster *= 2;
done:
    return st;
}

template <typename T>
static fp8_status launch_top(fp8_device *d, int32_t *ids, float *values, const void *logits,
                             int64_t rows, int64_t vocab, int64_t stride, int32_t k,
                             fp8_launch how) {
    const T *x = static_cast<const T *>(logits);
    unsigned cluster = 1;
    fp8_status st = FP8_OK;

    FP8_TRY(choose_cluster(d, rows, vocab, &cluster));
    if (k == 1)
        st = launch_clusters("top_k", best_kernel<T>, cluster, dim3((unsigned)rows * cluster),
                             dim3(THREADS), 0, d, how, ids, values, x, vocab, stride, cluster);
    else
        st = launch_clusters("top_k", top_kernel<T>, cluster, dim3((unsigned)rows * cluster),
                             dim3(THREADS), 0, d, how, ids, values, x, vocab, stride, k, cluster);
done:
    return st;
}

extern "C" fp8_status fp8_cuda_top_k(fp8_device *d, int32_t *ids, float *values,
                                     const void *logits, fp8_dtype dtype, int64_t rows,
                                     int64_t vocab, int64_t stride, int32_t k,
                                     fp8_launch launch) {
    FP8_FOR_REAL(dtype, return launch_top<T>(d, ids, values, logits, rows, vocab, stride, k,
                                             launch));
}
