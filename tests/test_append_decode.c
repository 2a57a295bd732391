/* The append and attention in one call, on the CPU: the bytes of one after the other, and what is
 * refused. */
#include "append_pair.h"

static fp8_device *device;

static void test_drawn(void) {
    for (int n = 0; n < 36; n++) {
        pair_problem x;
        char name[32];
        snprintf(name, sizeof name, "drawn %d", n);
        check_case = name;
        pair_draw(&x, n);
        x.o.quantize_p = n % 2;
        CHECK(!pair_check(device, &x));
        pair_free(&x);
    }
}

static void test_refusals(void) {
    pair_problem x;
    pair_run r;

    pair_usual(&x, 3);
    CHECK_STATUS(pair_open(&r, device, &x), FP8_OK);
#define REFUSE(change, undo)                                                                       \
    do {                                                                                           \
        check_case = #change;                                                                      \
        change;                                                                                    \
        CHECK_STATUS(pair_call(&r, &x, 1), FP8_EINVAL);                                            \
        CHECK(!fp8_decode_append_is_one(r.plan, &r.io, &x.p.a));                                   \
        undo;                                                                                      \
    } while (0)
    const fp8_kv_append good = x.p.a;
    REFUSE(x.p.a.q.x = NULL, x.p.a = good);
    REFUSE(x.p.a.k.x = NULL, x.p.a = good);
    REFUSE(x.p.a.q_out = NULL, x.p.a = good);
    REFUSE(x.p.a.num_heads = 4, x.p.a = good);
    REFUSE(x.p.a.q_dtype = BF16, x.p.a = good);
    REFUSE(x.p.a.rotary_dim = 7, x.p.a = good);
    REFUSE(r.io.o = NULL, r.io.o = r.o);
    REFUSE(r.io.batch.q_starts = NULL, r.io.batch = x.p.batch);
    REFUSE(r.io.batch.max_q = 2, r.io.batch = x.p.batch);
    REFUSE(r.io.pages.page_size = 128, r.io.pages = x.p.pages);
#undef REFUSE
    check_case = "a plan with gaps";
    fp8_decode_plan_destroy(r.plan);
    r.plan = NULL;
    x.o.q_token = 2048;
    CHECK_STATUS(fp8_decode_plan_create(&r.plan, device, &x.o), FP8_OK);
    CHECK_STATUS(pair_call(&r, &x, 1), FP8_EINVAL);
    CHECK_STATUS(fp8_decode_append_run(NULL, &r.io, &x.p.a, NULL, 0), FP8_EINVAL);
    CHECK_STATUS(fp8_decode_append_run(r.plan, NULL, &x.p.a, NULL, 0), FP8_EINVAL);
    CHECK_STATUS(fp8_decode_append_run(r.plan, &r.io, NULL, NULL, 0), FP8_EINVAL);
    pair_close(&r, &x);
    pair_free(&x);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&device, "cpu", 2), FP8_OK);
    if (!device) return CHECK_DONE();
    test_drawn();
    test_refusals();
    fp8_device_destroy(device);
    return CHECK_DONE();
}
