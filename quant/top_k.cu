/* quant/top_k.cu - the k highest logits of each row.
 *
 * Computes   ids, values of the k best of a row by (value, then lowest index)
 * Shapes     logits [rows, vocab] F32, BF16, F16
 * Bound      memory, one read: 64 x 128256 F32 33 MB, at the H200's read rate of 4.55 TB/s 7.2 us
 * Tiling     a cluster of up to eight blocks a row (one before Hopper), each with a slice of it.
 *            k = 1: a thread keeps its best and the vector of 16 bytes it lay in, in 40 registers
 *            at most: a third block an SM is what the clusters of 64 rows need to be there at once;
 *            its warps send theirs to the first block, where one looks through the best vector.
 *            Else what is read next is under way beside what is looked at, and a block keeps
 *            candidates in shared memory, those at or above a bound that k of its threads' best of
 *            a first look reach, and of those found after four looks; else no warp waits for
 *            another. Where they are too many, because the logits rise, the row is read again,
 *            and they are sorted wherever there is no room, the k-th being the bound. At the end
 *            a bound that k of the threads' best among them reach leaves few more than k, which
 *            count who is above them. The first block of a cluster joins the others' lists
 * Numerics   keys are integers: value bits in the order of the floats, then the index from the top;
 *            no two are equal, so that every order of work gives one answer
 */
#include "core/posts.cuh"
#include "quant/produce_device.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    THREADS = 512,
    WARPS = THREADS / 32,
    QUAD = 4,              /* elements a thread takes at a time */
    DEPTH = 4,             /* quads under way: 16 bytes each of F32, 32 KiB a block */
    ROUND = THREADS * QUAD, /* elements of a quad of each thread */
    LOOK = DEPTH * ROUND,
    ROOM = 4096,           /* candidates: 32 KiB */
    MANY = 64,             /* candidates that are worth another bound */
    TIGHTER = 4,           /* looks after which the bound is taken anew */
    MAX_CLUSTER = 8,
    MIN_SLICE = 4096 /* elements: a smaller slice is not worth a block */
};

/* ---- device helpers ------------------------------------------------------------------------- */

typedef uint64_t sort_key;

/* Never 0, which is less than every key. NaN is -Inf, -0 is 0. */
static __device__ __forceinline__ uint32_t order_of(float v) {
    const float x = v != v ? -INFINITY : v + 0.0f;
    const uint32_t u = __float_as_uint(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
static __device__ __forceinline__ sort_key key_of(float v, int64_t index) {
    return (sort_key)order_of(v) << 32 | (uint32_t)~(uint32_t)index;
}

static __device__ __forceinline__ int32_t index_of(sort_key key) { return (int32_t)~(uint32_t)key; }

static __device__ __forceinline__ float value_of(sort_key key) {
    const uint32_t order = (uint32_t)(key >> 32);
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

template <typename T> struct slice {
    const T *x;          /* the row */
    uint32_t begin, end; /* of the columns */
    bool quads;         /* loads of four fit */
};

template <typename T> struct alignas(4 * sizeof(T)) quad_of {
    T at[QUAD];
};

/* DEPTH quads from c, ROUND apart; past the end NaN, which is never better than anything. */
template <typename T>
static __device__ __forceinline__ void load_quads(quad_of<T> (&q)[DEPTH], const slice<T> &s,
                                                  uint32_t c) {
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        const uint32_t at = c + i * ROUND;
        if (s.quads && at + QUAD <= s.end) {
            q[i] = *reinterpret_cast<const quad_of<T> *>(s.x + at);
            continue;
        }
#pragma unroll
        for (int k = 0; k < QUAD; k++)
            q[i].at[k] = at + k < s.end ? s.x[at + k] : from_float<T>(__uint_as_float(0x7fffffffu));
    }
}

template <typename T>
static __device__ __forceinline__ void widen_quad(float v[QUAD], const quad_of<T> &q) {
#pragma unroll
    for (int k = 0; k < QUAD; k++) v[k] = to_float(q.at[k]);
}

/* The largest of four; NaN only when all are. */
static __device__ __forceinline__ float most_of(const float v[QUAD]) {
    return fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3]));
}

template <typename T>
static __device__ __forceinline__ slice<T> slice_of(const T *logits, int64_t vocab, int64_t stride,
                                                    unsigned cluster) {
    const int64_t row = blockIdx.x / cluster, rank = blockIdx.x % cluster;
    const int64_t each = (vocab / QUAD / cluster + 1) * QUAD; /* slices begin at whole quads */
    const int64_t begin = rank * each < vocab ? rank * each : vocab;
    const T *x = logits + row * stride;
    return {x, (uint32_t)begin, (uint32_t)(begin + each < vocab ? begin + each : vocab),
            (uintptr_t)x % (QUAD * sizeof(T)) == 0};
}

/* ---- one best ------------------------------------------------------------------------------- */

/* What the warps of a cluster tell its first block: the highest that each has found. Its barrier
 * counts the bytes, so that one warp waits, and once. */
struct best_posts {
    uint64_t arrived;
    sort_key best[MAX_CLUSTER * WARPS];
};

static __device__ __forceinline__ sort_key warp_best(sort_key v) {
    for (int off = 16; off > 0; off /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, off));
    return v;
}

/* The highest of all threads' v in the first warp of the cluster, of which this is block `rank`; 0
 * in all others, who are done. */
static __device__ __forceinline__ sort_key join_best(sort_key v, best_posts *p, unsigned rank,
                                                     unsigned cluster) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    v = warp_best(v);
    if (cluster == 1) {
        if (lane == 0) p->best[warp] = v;
        __syncthreads();
    }
    if (cluster > 1) posts_ready();
    if (cluster > 1 && lane == 0) post(p->best + rank * WARPS + warp, &p->arrived, 0u, v);
    if (rank > 0 || warp > 0) return 0;
    if (cluster > 1) posts_wait(&p->arrived);
    v = 0;
    for (unsigned i = lane; i < cluster * WARPS; i += 32) v = max(v, p->best[i]);
    return warp_best(v);
}

/* The highest of what a thread has taken in rising order, and the first place where it may be. */
struct highest {
    float top;
    uint32_t at;
    bool any;

    __device__ __forceinline__ void take(float v, uint32_t where) {
        if (!(v > top)) return; /* NaN, and an equal one, which stands later */
        top = v;
        at = where;
        any = true;
    }
};

/* grid: rows x cluster. A thread remembers where its best vector begins; the one that is best of
 * all is looked through at the end. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
best_kernel(int32_t *__restrict__ ids, float *__restrict__ values, const T *__restrict__ logits,
            int64_t vocab, int64_t stride, unsigned cluster) {
    constexpr uint32_t COUNT = vector16<T>::COUNT, STEP = THREADS * COUNT;
    __shared__ best_posts posts;
    const unsigned rank = blockIdx.x % cluster;
    const int64_t row = blockIdx.x / cluster;
    highest h = {-INFINITY, 0, false};

    if (cluster > 1) posts_open(&posts.arrived, cluster * WARPS * (uint32_t)sizeof(sort_key));
    wait_for_previous();
    let_next_start();
    const slice<T> s = slice_of(logits, vocab, stride, cluster);
    const uint32_t off = (uint32_t)(-(uintptr_t)(s.x + s.begin) % VECTOR_BYTES / sizeof(T));
    const uint32_t first = min(s.begin + off, s.end), last = s.end - (s.end - first) % COUNT;
    for (uint32_t c = s.begin + threadIdx.x; c < first; c += THREADS) h.take(to_float(s.x[c]), c);
    for (uint32_t c = first + threadIdx.x * COUNT; c < last; c += DEPTH * STEP) {
        vector16<T> v[DEPTH];
#pragma unroll
        for (int i = 0; i < DEPTH; i++) /* past the end the last one, which adds nothing */
            v[i] = *reinterpret_cast<const vector16<T> *>(s.x + min(c + i * STEP, last - COUNT));
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            float most = to_float(v[i].at[0]);
#pragma unroll
            for (int k = 1; k < (int)COUNT; k++) most = fmaxf(most, to_float(v[i].at[k]));
            h.take(most, min(c + i * STEP, last - COUNT));
        }
    }
    for (uint32_t c = last + threadIdx.x; c < s.end; c += THREADS) h.take(to_float(s.x[c]), c);
    const sort_key best = join_best(h.any ? key_of(h.top, h.at) : 0, &posts, rank, cluster);
    if (rank > 0 || threadIdx.x >= 32) return;
    const float top = best > 0 ? value_of(best) : -INFINITY; /* nothing above -Inf: the first */
    const int64_t begin = best > 0 ? index_of(best) : 0, at = begin + threadIdx.x;
    const bool hit = best > 0 && at < vocab && to_float(s.x[at]) == top;
    const int place = max(__ffs((int)__ballot_sync(0xffffffffu, hit)) - 1, 0);
    if (threadIdx.x == 0) {
        ids[row] = (int32_t)begin + place;
        if (values) values[row] = top;
    }
}

/* ---- several -------------------------------------------------------------------------------- */

/* Thread t gets the t-th largest of all threads' keys. */
template <typename K> static __device__ K sort_threads(K key, K *scratch) {
    const int t = (int)threadIdx.x;

    for (int run = 2; run <= THREADS; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            const bool largest = ((t & step) == 0) == ((t & run) == 0);
            K other;
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

/* A bound that at least k of the threads' values reach, and few more than k where values differ,
 * found by halves. All threads come here. */
static __device__ uint32_t bound_of(uint32_t order, int k) {
    uint32_t low = 0, high = 0xffffffffu; /* all reach 0 */

    for (int reached = THREADS; reached > k + k / 4 && high - low > 1;) {
        const uint32_t mid = low + (high - low) / 2;
        const int count = __syncthreads_count(order >= mid);
        if (count < k) high = mid;
        else {
            low = mid;
            reached = count;
        }
    }
    return low;
}

/* The candidates of a block; a new one is above `least` and at or above `floor`. */
struct candidates {
    sort_key *key, *scratch;
    int *count;
    sort_key least;
    float floor;

    /* To values whose order is at least this. */
    __device__ __forceinline__ void raise_to(uint32_t bound) {
        if (bound == 0) return;
        least = ((sort_key)bound << 32) - 1;
        floor = value_of((sort_key)bound << 32);
    }

    __device__ __forceinline__ void raise(sort_key to) {
        least = to;
        floor = to > 0 ? value_of(to) : -INFINITY;
    }

    /* Key[0 .. count) to those at or above a bound that k of the threads' best reach, which it
     * returns. */
    __device__ __forceinline__ uint32_t thin(int k) {
        enum { EACH = ROOM / THREADS };
        const int n = *count;
        sort_key mine[EACH], best = 0;
        uint32_t bound;

#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int at = i * THREADS + (int)threadIdx.x;
            mine[i] = at < n ? key[at] : 0;
            best = max(best, mine[i]);
        }
        bound = bound_of((uint32_t)(best >> 32), k);
        __syncthreads();
        if (threadIdx.x == 0) *count = 0;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (mine[i] > 0 && (uint32_t)(mine[i] >> 32) >= bound)
                key[atomicAdd(count, 1)] = mine[i];
        __syncthreads();
        return bound;
    }

    /* The k best to key[0 .. k), falling; 0 where there are fewer. */
    __device__ void finish(int k) {
        enum { RANKED = 128, EACH = RANKED / 32 };
        uint32_t *rank = reinterpret_cast<uint32_t *>(scratch);
        if (*count > MANY) thin(k);
        const int n = *count, lane = (int)threadIdx.x % 32;
        if (n > RANKED || n < k) {
            sort_down(key, n, scratch);
            return;
        }
        sort_key mine[EACH];
        uint32_t above[EACH] = {};
#pragma unroll
        for (int j = 0; j < EACH; j++) mine[j] = j * 32 + lane < n ? key[j * 32 + lane] : 0;
        if (threadIdx.x < RANKED) rank[threadIdx.x] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x / 32; i < n; i += THREADS / 32) { /* a warp counts for some */
            const sort_key one = key[i];
#pragma unroll
            for (int j = 0; j < EACH; j++) above[j] += one > mine[j];
        }
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (above[j] > 0) atomicAdd(rank + j * 32 + lane, above[j]);
        __syncthreads();
        if (threadIdx.x < 32) {
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const int at = (int)rank[j * 32 + lane];
                if (j * 32 + lane < n && at < k) key[at] = mine[j];
            }
        }
        __syncthreads();
    }

    /* False when there was no room. */
    __device__ __forceinline__ bool put(float v, uint32_t index) {
        const sort_key one = key_of(v, index);
        if (one <= least) return true;
        const int at = atomicAdd(count, 1);
        if (at < ROOM) key[at] = one;
        return at < ROOM;
    }

    /* A thread's keys of one look, those of `pending`; all threads come here. */
    template <typename T>
    __device__ __forceinline__ void add(const slice<T> &s, uint32_t c, uint32_t pending, int k) {
        for (;;) {
            for (; pending; pending &= pending - 1) {
                const int bit = __ffs((int)pending) - 1;
                const uint32_t i = c + (uint32_t)(bit / QUAD * ROUND + bit % QUAD);
                if (i < s.end && !put(to_float(s.x[i]), i)) break;
            }
            if (!__syncthreads_or(pending != 0)) return;
            sort_down(key, ROOM, scratch);
            raise(key[k - 1]);
            if (threadIdx.x == 0) *count = k;
            __syncthreads();
        }
    }

    /* Once more from the start, when there were more than there is room for: the k-th of those that
     * are there is the bound. All threads come here. */
    template <typename T> __device__ __forceinline__ void add_again(const slice<T> &s, int k) {
        sort_down(key, ROOM, scratch);
        raise(key[k - 1] - 1);
        __syncthreads();
        if (threadIdx.x == 0) *count = 0;
        __syncthreads();
        for (uint32_t begin = s.begin; begin < s.end; begin += LOOK) {
            const uint32_t c = begin + threadIdx.x * QUAD;
            quad_of<T> q[DEPTH];
            uint32_t pending = 0;
            load_quads(q, s, c);
#pragma unroll
            for (int i = 0; i < DEPTH * QUAD; i++)
                if (!(to_float(q[i / QUAD].at[i % QUAD]) < floor)) pending |= 1u << i;
            add(s, c, pending, k);
        }
    }
};

/* grid: rows x cluster. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, std::is_same<T, __half>::value ? 1 : 2)
top_kernel(int32_t *__restrict__ ids, float *__restrict__ values, const T *__restrict__ logits,
           int64_t vocab, int64_t stride, int k, unsigned cluster) {
    __shared__ sort_key key[ROOM], scratch[THREADS];
    __shared__ int count;
    const int64_t row = blockIdx.x / cluster;
    candidates found = {key, scratch, &count, 0, -INFINITY};
    quad_of<T> next[DEPTH];
    bool full = false; /* no room for a candidate of this thread */
    int looks = 0;

    if (threadIdx.x == 0) count = 0;
    wait_for_previous();
    let_next_start();
    const slice<T> s = slice_of(logits, vocab, stride, cluster);
    load_quads(next, s, s.begin + threadIdx.x * QUAD);
    __syncthreads();
    for (uint32_t begin = s.begin; begin < s.end; begin += LOOK) {
        const uint32_t c = begin + threadIdx.x * QUAD;
        quad_of<T> q[DEPTH];
        float most[DEPTH];
#pragma unroll
        for (int i = 0; i < DEPTH; i++) q[i] = next[i];
        load_quads(next, s, c + LOOK);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            float v[QUAD];
            widen_quad(v, q[i]);
            most[i] = most_of(v);
        }
        if (begin == s.begin) { /* at least k are at or above the k-th of the threads' best */
            const float mine = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
            const uint32_t order = c < s.end ? order_of(mine) : 0;
            const uint32_t bound = bound_of(order, k);
            found.raise_to(bound);
        }
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            if (full || most[i] < found.floor) continue;
#pragma unroll
            for (int e = 0; e < QUAD; e++) {
                const float v = to_float(q[i].at[e]);
                const uint32_t at = c + i * ROUND + e;
                if (!(v < found.floor) && at < s.end) full |= !found.put(v, at);
            }
        }
        if (++looks == TIGHTER && begin + LOOK < s.end) { /* fewer are worth a look from here on */
            __syncthreads();
            const bool worth = count > MANY && count <= ROOM;
            __syncthreads(); /* who is ahead counts on */
            if (worth) found.raise_to(found.thin(k));
        }
    }
    if (__syncthreads_or(full)) found.add_again(s, k);
    found.finish(k);
    if (cluster > 1) cluster_sync();
    if (cluster > 1 && blockIdx.x % cluster == 0) {
        for (int i = k + (int)threadIdx.x; i < (int)cluster * k; i += THREADS)
            key[i] = cluster_read(key + i % k, i / k);
        if (threadIdx.x == 0) count = (int)cluster * k;
        __syncthreads();
        found.finish(k);
    }
    for (int i = (int)threadIdx.x; i < k && blockIdx.x % cluster == 0; i += THREADS) {
        ids[row * k + i] = index_of(key[i]);
        if (values) values[row * k + i] = value_of(key[i]);
    }
    if (cluster > 1) cluster_sync(); /* nobody ends before it was read */
}

/* ---- launcher ------------------------------------------------------------------------------- */

/* Blocks a row: as many as keep the GPU busy once over; of several values one a multiprocessor,
 * for clusters of larger blocks are not all there at once (64 rows: 34 us by four, 22 by two). */
static fp8_status choose_cluster(const fp8_device *d, int64_t rows, int64_t vocab, int32_t k,
                                 unsigned *cluster) {
    fp8_status st = FP8_OK;
    int sms = 0;

    *cluster = 1;
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    while (fp8_device_capability(d) >= 90 && *cluster < MAX_CLUSTER &&
           rows * *cluster * 2 <= (k > 1 ? 1 : 2) * (int64_t)sms &&
           vocab / (*cluster * 2) >= MIN_SLICE)
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

    FP8_TRY(choose_cluster(d, rows, vocab, k, &cluster));
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
