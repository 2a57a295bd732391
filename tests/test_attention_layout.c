/* Layouts: strides against what a name spells, and back from strides to a name. */
#include <string.h>

#include "attention/attention.h"
#include "check.h"

typedef struct shape {
    int64_t b, s_q, s_kv;
    int32_t h_q, h_kv, d_qk, d_v;
} shape;

/* ---- what a name spells ---------------------------------------------------------------------- */

/* A group of a name, like "bs2hd", is an array with these dimensions, the last fastest. */
static int64_t stride_in(const char *group, size_t length, char dim, const shape *x, int is_kv,
                         int64_t d) {
    int64_t stride = 1;
    for (size_t i = length; i-- > 0;) {
        const char c = group[i];
        if (c == dim || (dim == 't' && c == 's')) return stride;
        if (c == 'd') stride *= d;
        else if (c == 'h') stride *= is_kv ? x->h_kv : x->h_q;
        else if (c == 's') stride *= is_kv ? x->s_kv : x->s_q;
        else if (c == 'b') stride *= x->b;
        else if (c == '2' || c == '3') stride *= c - '0';
    }
    return 0; /* no such dimension */
}

static void check_tensor(const char *group, size_t length, int index, const shape *x, int is_kv,
                         int64_t d, const fp8_strides *got, int64_t offset) {
    const int64_t apart = stride_in(group, length, '2', x, is_kv, d) +
                          stride_in(group, length, '3', x, is_kv, d);
    CHECK(got->batch == stride_in(group, length, 'b', x, is_kv, d));
    CHECK(got->token == stride_in(group, length, 't', x, is_kv, d));
    CHECK(got->head == stride_in(group, length, 'h', x, is_kv, d));
    CHECK(offset == index * apart);
}

/* Groups of q, k, v: "x3", "x_x2", "x_x_x". */
static void check_name(fp8_attention_layout l, const shape *x) {
    const char *name = fp8_attention_layout_name(l), *second = strchr(name, '_');
    const char *third = second ? strchr(second + 1, '_') : NULL;
    const char *q = name, *k = second ? second + 1 : name, *v = third ? third + 1 : k;
    const size_t q_length = second ? (size_t)(second - name) : strlen(name);
    const size_t k_length = third ? (size_t)(third - k) : strlen(k);
    char alone[8] = "";
    size_t n = 0;
    fp8_layout_strides got;

    CHECK_STATUS(fp8_attention_layout_strides(&got, l, x->b, x->s_q, x->s_kv, x->h_q, x->h_kv,
                                              x->d_qk, x->d_v), FP8_OK);
    check_tensor(q, q_length, 0, x, 0, x->d_qk, &got.q, got.q_offset);
    check_tensor(k, k_length, k == q, x, 1, x->d_qk, &got.k, got.k_offset);
    check_tensor(v, strlen(v), v == q ? 2 : v == k, x, 1, x->d_v, &got.v, got.v_offset);
    for (size_t i = 0; i < q_length; i++)
        if (q[i] != '3') alone[n++] = q[i];
    check_tensor(alone, n, 0, x, 0, x->d_v, &got.o, 0);
}

static const shape shapes[] = {
    {2, 5, 7, 6, 3, 16, 24}, {1, 1, 1, 1, 1, 1, 1},  {3, 7, 7, 3, 3, 5, 5},
    {1, 9, 9, 4, 4, 8, 8},   {4, 1, 1, 2, 2, 64, 64}, {2, 3, 11, 8, 1, 128, 128},
    {5, 6, 6, 1, 1, 7, 7},   {0, 4, 4, 2, 2, 8, 8},
};
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes };

/* x, made to fit what the layout shares. */
static shape fitted(const shape *x, fp8_attention_layout l) {
    const char *name = fp8_attention_layout_name(l);
    shape y = *x;
    if (strchr(name, '3')) {
        y.h_kv = y.h_q;
        y.s_kv = y.s_q;
    }
    if (strchr(name, '3') || strchr(name, '2')) y.d_v = y.d_qk;
    return y;
}

static void test_strides(void) {
    for (int l = 0; l < FP8_NUM_LAYOUTS; l++)
        for (int i = 0; i < NUM_SHAPES; i++) {
            const shape x = fitted(&shapes[i], (fp8_attention_layout)l);
            check_case = fp8_attention_layout_name((fp8_attention_layout)l);
            check_name((fp8_attention_layout)l, &x);
        }
}

static void test_names(void) {
    fp8_attention_layout got = FP8_NUM_LAYOUTS;
    for (int l = 0; l < FP8_NUM_LAYOUTS; l++) {
        const char *name = fp8_attention_layout_name((fp8_attention_layout)l);
        check_case = name;
        CHECK_STATUS(fp8_attention_layout_parse(&got, name), FP8_OK);
        CHECK(got == (fp8_attention_layout)l);
        CHECK(fp8_attention_layout_is_packed(got) == (name[0] == 't'));
    }
    check_case = "no layouts";
    CHECK_STATUS(fp8_attention_layout_parse(&got, "bshd"), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_layout_parse(&got, ""), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_layout_parse(&got, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_layout_parse(NULL, "bs3hd"), FP8_EINVAL);
    CHECK(strcmp(fp8_attention_layout_name(FP8_NUM_LAYOUTS), "?") == 0);
    CHECK(strcmp(fp8_attention_layout_name((fp8_attention_layout)-1), "?") == 0);
    CHECK(!fp8_attention_layout_is_packed(FP8_NUM_LAYOUTS));
}

static void test_refused(void) {
    static const struct {
        const char *name;
        fp8_attention_layout l;
        shape x;
        fp8_status want;
    } cases[] = {
        {"3: grouped heads", FP8_LAYOUT_BS3HD, {2, 4, 4, 4, 2, 8, 8}, FP8_EINVAL},
        {"3: other keys", FP8_LAYOUT_SBH3D, {2, 4, 5, 4, 4, 8, 8}, FP8_EINVAL},
        {"3, packed: lengths are not looked at", FP8_LAYOUT_T3HD, {2, 4, 5, 4, 4, 8, 8}, FP8_OK},
        {"3: d", FP8_LAYOUT_TH3D, {2, 4, 4, 4, 4, 8, 16}, FP8_EINVAL},
        {"2: d", FP8_LAYOUT_BSHD_BS2HD, {2, 4, 5, 4, 2, 8, 16}, FP8_EINVAL},
        {"2: heads and keys", FP8_LAYOUT_BSHD_BS2HD, {2, 4, 5, 4, 2, 8, 8}, FP8_OK},
        {"no heads", FP8_LAYOUT_BSHD_BSHD_BSHD, {2, 4, 5, 0, 1, 8, 8}, FP8_EINVAL},
        {"no d", FP8_LAYOUT_BSHD_BSHD_BSHD, {2, 4, 5, 1, 1, 8, 0}, FP8_EINVAL},
        {"negative", FP8_LAYOUT_BSHD_BSHD_BSHD, {2, -4, 5, 1, 1, 8, 8}, FP8_EINVAL},
        {"unknown", FP8_NUM_LAYOUTS, {2, 4, 5, 1, 1, 8, 8}, FP8_EINVAL},
        {"beyond 2^63", FP8_LAYOUT_BS3HD,
         {INT64_MAX / 4096, 64, 64, 4, 4, 16, 16}, FP8_EOVERFLOW},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const shape *x = &cases[i].x;
        fp8_layout_strides got;
        check_case = cases[i].name;
        CHECK_STATUS(fp8_attention_layout_strides(&got, cases[i].l, x->b, x->s_q, x->s_kv, x->h_q,
                                                  x->h_kv, x->d_qk, x->d_v), cases[i].want);
    }
}

/* ---- detection ------------------------------------------------------------------------------- */

typedef struct placed {
    fp8_layout_strides x;
    uintptr_t q, k, v;
} placed;

/* Three tensors of a layout somewhere in memory; own memories far apart. */
static placed place(fp8_attention_layout l, const shape *x, size_t bytes) {
    const char *name = fp8_attention_layout_name(l);
    placed p = {.q = 0x100000};
    CHECK_STATUS(fp8_attention_layout_strides(&p.x, l, x->b, x->s_q, x->s_kv, x->h_q, x->h_kv,
                                              x->d_qk, x->d_v), FP8_OK);
    p.k = strchr(name, '3') ? p.q + (uintptr_t)p.x.k_offset * bytes : 0x7000000;
    p.v = strchr(name, '3')   ? p.q + (uintptr_t)p.x.v_offset * bytes
          : strchr(name, '2') ? p.k + (uintptr_t)p.x.v_offset * bytes : 0x3000;
    return p;
}

static fp8_status detect(fp8_attention_layout *out, const placed *p, const shape *x, int packed,
                         size_t bytes) {
    return fp8_attention_layout_detect(out, (const void *)p->q, (const void *)p->k,
                                       (const void *)p->v, &p->x.q, &p->x.k, &p->x.v, packed,
                                       bytes, x->b, x->s_q, x->s_kv, x->h_q, x->h_kv, x->d_qk,
                                       x->d_v);
}

/* Every element of the tensor lies where it lay. */
static int same_places(const fp8_strides *a, const fp8_strides *b, int64_t batch, int64_t tokens,
                       int64_t heads) {
    return (batch <= 1 || a->batch == b->batch) && (tokens <= 1 || a->token == b->token) &&
           (heads <= 1 || a->head == b->head);
}

static void test_detect(void) {
    static const size_t sizes[] = {1, 2, 4};
    for (int n = 0; n < FP8_NUM_LAYOUTS * NUM_SHAPES * 3; n++) {
        const fp8_attention_layout l = (fp8_attention_layout)(n % FP8_NUM_LAYOUTS);
        const shape x = fitted(&shapes[n / FP8_NUM_LAYOUTS % NUM_SHAPES], l);
        const size_t bytes = sizes[n / FP8_NUM_LAYOUTS / NUM_SHAPES];
        const int packed = fp8_attention_layout_is_packed(l);
        const placed p = place(l, &x, bytes);
        fp8_attention_layout got = FP8_NUM_LAYOUTS;
        placed back;

        check_case = fp8_attention_layout_name(l);
        CHECK_STATUS(detect(&got, &p, &x, packed, bytes), FP8_OK);
        if (x.b > 1 && x.s_q > 1 && x.s_kv > 1 && x.h_q > 1 && x.h_kv > 1) CHECK(got == l);
        if (got == FP8_NUM_LAYOUTS) continue;
        back = place(got, &x, bytes);
        CHECK(fp8_attention_layout_is_packed(got) == packed);
        CHECK(same_places(&p.x.q, &back.x.q, x.b, packed ? 9 : x.s_q, x.h_q));
        CHECK(same_places(&p.x.k, &back.x.k, x.b, packed ? 9 : x.s_kv, x.h_kv));
        CHECK(same_places(&p.x.v, &back.x.v, x.b, packed ? 9 : x.s_kv, x.h_kv));
    }
}

/* Almost a layout: another offset, a gap, dimensions swapped. */
static void test_undetected(void) {
    const shape x = {2, 5, 5, 3, 3, 8, 8};
    fp8_attention_layout got;
    placed p;

    check_case = "K elsewhere";
    p = place(FP8_LAYOUT_BS3HD, &x, 2);
    p.k += 2;
    CHECK_STATUS(detect(&got, &p, &x, 0, 2), FP8_EUNSUPPORTED);
    check_case = "K and V swapped";
    p = place(FP8_LAYOUT_BSHD_BS2HD, &x, 2);
    p.k = p.v;
    p.v = 0x7000000;
    CHECK_STATUS(detect(&got, &p, &x, 0, 2), FP8_EUNSUPPORTED);
    check_case = "element size";
    p = place(FP8_LAYOUT_BS3HD, &x, 2);
    CHECK_STATUS(detect(&got, &p, &x, 0, 4), FP8_EUNSUPPORTED);
    check_case = "a gap";
    p = place(FP8_LAYOUT_BSHD_BSHD_BSHD, &x, 2);
    p.x.v.token += 8;
    CHECK_STATUS(detect(&got, &p, &x, 0, 2), FP8_EUNSUPPORTED);
    check_case = "d before h";
    p = place(FP8_LAYOUT_THD_THD_THD, &x, 2);
    p.x.q.head = 1;
    CHECK_STATUS(detect(&got, &p, &x, 1, 2), FP8_EUNSUPPORTED);
    check_case = "packed or not";
    p = place(FP8_LAYOUT_BSHD_BSHD_BSHD, &x, 2);
    CHECK_STATUS(detect(&got, &p, &x, 1, 2), FP8_OK);
    CHECK(got == FP8_LAYOUT_THD_THD_THD);
    CHECK_STATUS(fp8_attention_layout_detect(NULL, NULL, NULL, NULL, &p.x.q, &p.x.k, &p.x.v, 0, 2,
                                             2, 5, 5, 3, 3, 8, 8), FP8_EINVAL);
    CHECK_STATUS(detect(&got, &p, &x, 0, 0), FP8_EINVAL);
}

int main(void) {
    test_strides();
    test_names();
    test_refused();
    test_detect();
    test_undetected();
    return CHECK_DONE();
}
