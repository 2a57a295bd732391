/* The append of new tokens and attention over what they are appended to, in one call: in one launch
 * where the backend over pages can make it so, otherwise one after the other. */
#include "attention/append_impl.h"
#include "attention/decode_impl.h"

/* Q as attention reads it: what the append is to leave is what the plan was made for. */
static fp8_status check_pair(const fp8_decode_options *o, const fp8_kv_append *a) {
    if (!a->q.x) return FP8_FAIL(FP8_EINVAL, "decode: an append without Q");
    if (a->num_heads != o->num_heads || a->q_dtype != o->q_dtype)
        return FP8_FAIL(FP8_EINVAL, "decode: the append leaves %d heads of Q in %s, the plan has "
                                    "%d in %s", a->num_heads, fp8_dtype_name(a->q_dtype),
                        o->num_heads, fp8_dtype_name(o->q_dtype));
    if (o->q_token != (int64_t)o->num_heads * o->d_qk)
        return FP8_FAIL(FP8_EINVAL, "decode: tokens of q are %lld elements apart, an append leaves "
                                    "them packed", (long long)o->q_token);
    return FP8_OK;
}

/* Operands with every default filled in. */
static fp8_status resolve(fp8_decode_io *x, fp8_kv_append *a, const fp8_decode_plan *p,
                          const fp8_decode_io *io, const fp8_kv_append *append) {
    fp8_decode_io given = *io;
    fp8_status st;

    given.q = append->q_out;
    FP8_TRY(decode_resolve_io(x, &p->options, &given));
    FP8_TRY(append_resolve(a, &x->pages, append));
    FP8_TRY(check_pair(&p->options, a));
done:
    return st;
}

static int is_one(const fp8_decode_plan *p, const fp8_decode_io *x, const fp8_kv_append *a) {
    const decode_part *part = &p->parts[0];
    return !p->parts[1].backend && part->backend->appends && part->backend->appends(part, x, a);
}

int fp8_decode_append_is_one(const fp8_decode_plan *p, const fp8_decode_io *io,
                             const fp8_kv_append *append) {
    fp8_decode_io x;
    fp8_kv_append a;

    if (!p || !io || !append) return 0;
    return resolve(&x, &a, p, io, append) == FP8_OK && is_one(p, &x, &a);
}

fp8_status fp8_decode_append_run(fp8_decode_plan *p, const fp8_decode_io *io,
                                 const fp8_kv_append *append, void *workspace,
                                 size_t workspace_bytes) {
    fp8_decode_io x;
    fp8_kv_append a;
    fp8_status st;

    if (!p || !io || !append)
        return FP8_FAIL(FP8_EINVAL, "decode: plan=%p io=%p append=%p", (void *)p, (const void *)io,
                        (const void *)append);
    FP8_TRY(resolve(&x, &a, p, io, append));
    if (!is_one(p, &x, &a)) {
        FP8_TRY(fp8_kv_append_run(p->device, &x.pages, &x.batch, &a, FP8_LAUNCH_OVERLAP));
        FP8_TRY(fp8_decode_run(p, &x, workspace, workspace_bytes));
        goto done;
    }
    FP8_TRY(decode_check_workspace(p, workspace, workspace_bytes));
    if (x.batch.num_seqs == 0 || x.batch.total_q == 0) goto done;
    FP8_TRY(p->parts[0].backend->append_run(&p->parts[0], &x, &a, workspace));
    if (p->checked) FP8_TRY(kv_batch_report(p->device, &x.pages, &x.batch));
done:
    return st;
}
