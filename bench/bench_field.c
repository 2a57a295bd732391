/* Who takes part in a race of backends, and the rows that come of it. */
#include <stdio.h>
#include <string.h>

#include "bench/bench_impl.h"

enum { EXP_PER_CLOCK = 16 }; /* of an SM's special function units */

void bench_keep_reason(char out[256], const char *message, fp8_attention_backend backend) {
    const char *name = fp8_attention_backend_name(backend), *at = strstr(message, name);
    const char *reason;

    while (at && at > message && at[-1] != '\n') /* others' reasons name it, too */
        at = strstr(at + 1, name);
    if (!at) at = strstr(message, name);
    reason = at ? at + strlen(name) : message;
    reason += strspn(reason, ": ");
    snprintf(out, 256, "%.*s", (int)strcspn(reason, "\n;"), reason);
}

fp8_status bench_field_enter(bench_field *f, int32_t i, fp8_status opened, const bench_entry *e) {
    f->place[i] = -1;
    if (opened == FP8_EUNSUPPORTED) {
        bench_keep_reason(f->why[i], fp8_last_message(), e->backend);
        return FP8_OK;
    }
    if (opened != FP8_OK) return opened;
    if (e->wrong) {
        snprintf(f->why[i], sizeof f->why[i], "wrong: relative L2 %.2g", e->relative_l2);
        return FP8_OK;
    }
    f->place[i] = f->count;
    f->contenders[f->count++] = (bench_contender){.call = e->call, .ctx = e->ctx};
    return FP8_OK;
}

double bench_field_ms(const bench_field *f, int32_t i) {
    return f->place[i] >= 0 ? f->contenders[f->place[i]].ms : 0;
}

fp8_status bench_field_row(fp8_bench_table *t, fp8_bench_row **row, const bench_field *f, int32_t i,
                           const char *name, int32_t reference, const bench_shape *x) {
    const double reference_ms = bench_field_ms(f, reference);
    fp8_bench_row *made = NULL;
    fp8_status st;

    *row = NULL;
    FP8_TRY(fp8_bench_add_row(t, &made, x->name, name));
    if (f->place[i] < 0) {
        snprintf(made->note, sizeof made->note, "%s", f->why[i]);
    } else {
        const bench_contender *c = &f->contenders[f->place[i]];
        made->value[BENCH_MS] = c->ms;
        made->value[BENCH_LOW] = c->ms_low;
        made->value[BENCH_HIGH] = c->ms_high;
        made->value[BENCH_TFLOPS] = bench_flops(x) / c->ms * 1e-9;
        if (reference_ms > 0) made->value[BENCH_RATIO] = c->ms / reference_ms;
        *row = made;
    }
done:
    return st;
}

fp8_status bench_add_limit(fp8_bench_table *t, const bench_shape *x, const bench_rates *r,
                           double mhz, double reference_ms) {
    fp8_bench_row *row;
    double products, exps, ms;
    fp8_status st = FP8_OK;

    if (r->fp8_flops == 0 || mhz == 0) return FP8_OK;
    products = bench_flops(x) / r->fp8_flops * 1e3;
    exps = bench_scores(x) / ((double)r->sms * EXP_PER_CLOCK * mhz * 1e6) * 1e3;
    ms = products > exps ? products : exps;
    FP8_TRY(fp8_bench_add_row(t, &row, x->name, "limit"));
    row->value[BENCH_MS] = ms;
    row->value[BENCH_TFLOPS] = bench_flops(x) / ms * 1e-9;
    if (reference_ms > 0) row->value[BENCH_RATIO] = ms / reference_ms;
    snprintf(row->note, sizeof row->note, "products %.4g ms, exponentials %.4g ms", products, exps);
done:
    return st;
}
