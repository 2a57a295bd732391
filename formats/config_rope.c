/* RoPE's part of config.json: v5 has rope_parameters, by layer type where there are two; v4 has
 * rope_theta, rope_local_base_freq and rope_scaling. */
#include <math.h>
#include <string.h>

#include "formats/config_arch.h"

typedef fp8_config_value value;
typedef fp8_config_reader reader;

#define TOP(key) (&r->top[FP8_TOP_##key])        /* r is the reader wherever it is used */
#define KEY(key) (&r->rope[which][FP8_ROPE_##key]) /* ... and `which` the object */

static const struct {
    const char *name;
    fp8_rope_type type;
} types[] = {
    {"default", FP8_ROPE_DEFAULT}, {"linear", FP8_ROPE_LINEAR}, {"llama3", FP8_ROPE_LLAMA3},
    {"dynamic", FP8_ROPE_DYNAMIC}, {"yarn", FP8_ROPE_YARN},     {"longrope", FP8_ROPE_LONGROPE},
};

static fp8_status rope_type(const reader *r, int which, fp8_arch arch, fp8_rope_type *out) {
    const value *v = KEY(rope_type);
    char buf[FP8_FOUND_BYTES];

    *out = FP8_ROPE_DEFAULT;
    if (!fp8_value_has(v)) v = KEY(type); /* its name in old files */
    if (!fp8_value_has(v)) return FP8_OK;
    if (arch == FP8_ARCH_PHI3 && (fp8_value_is(v, "su") || fp8_value_is(v, "yarn"))) {
        *out = FP8_ROPE_LONGROPE; /* what its first files called it */
        return FP8_OK;
    }
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        *out = types[i].type;
        if (fp8_value_is(v, types[i].name)) return FP8_OK;
    }
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: rope_type %s is not supported (supported: default, "
                    "linear, llama3, dynamic, yarn, longrope)", r->name, fp8_value_found(v, buf));
}

static fp8_status read_original(const reader *r, int which, int64_t fallback,
                                fp8_rope_config *rope) {
    const value *length = KEY(original_max_position_embeddings);
    if (!fp8_value_has(length)) length = TOP(original_max_position_embeddings);
    return fp8_value_size(r, length, fallback, &rope->original_max_position);
}

static fp8_status read_llama3(const reader *r, int which, fp8_rope_config *rope) {
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_value_positive(r, KEY(low_freq_factor), 0, &rope->low_freq_factor));
    FP8_TRY(fp8_value_positive(r, KEY(high_freq_factor), 0, &rope->high_freq_factor));
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return fp8_value_mismatch(r, KEY(high_freq_factor), "more than low_freq_factor");
    FP8_TRY(read_original(r, which, 0, rope));
done:
    return st;
}

/* YaRN's temperature by one multiplier. */
static double yarn_multiplier(double factor, double mscale) {
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static fp8_status read_yarn(const reader *r, int which, const fp8_model_config *c,
                            fp8_rope_config *rope) {
    fp8_status st = FP8_OK;
    double usual = yarn_multiplier(rope->factor, 1.0), mscale = 1.0, all = 1.0;

    FP8_TRY(read_original(r, which, c->max_position, rope));
    FP8_TRY(fp8_value_positive(r, KEY(mscale), 1.0, &mscale));
    FP8_TRY(fp8_value_positive(r, KEY(mscale_all_dim), 1.0, &all));
    if (fp8_value_has(KEY(mscale)) && fp8_value_has(KEY(mscale_all_dim)))
        usual = yarn_multiplier(rope->factor, mscale) / yarn_multiplier(rope->factor, all);
    FP8_TRY(fp8_value_positive(r, KEY(attention_factor), usual, &rope->attention_factor));
    FP8_TRY(fp8_value_positive(r, KEY(beta_fast), 32.0, &rope->beta_fast));
    FP8_TRY(fp8_value_positive(r, KEY(beta_slow), 1.0, &rope->beta_slow));
    if (rope->beta_fast < rope->beta_slow)
        return fp8_value_mismatch(r, KEY(beta_fast), "at least beta_slow");
    FP8_TRY(fp8_value_bool(r, KEY(truncate), 1, &rope->truncate));
done:
    return st;
}

static fp8_status read_longrope(const reader *r, int which, const fp8_model_config *c,
                                fp8_rope_config *rope) {
    const value *lists[2] = {KEY(short_factor), KEY(long_factor)};
    float *to[2] = {rope->short_factor, rope->long_factor};
    fp8_status st = FP8_OK;
    double usual = 1.0;

    FP8_TRY(read_original(r, which, c->max_position, rope));
    FP8_TRY(fp8_value_positive(r, KEY(factor),
                               (double)c->max_position / (double)rope->original_max_position,
                               &rope->factor));
    if (rope->factor > 1.0 && rope->original_max_position > 1)
        usual = sqrt(1.0 + log(rope->factor) / log((double)rope->original_max_position));
    FP8_TRY(fp8_value_positive(r, KEY(attention_factor), usual, &rope->attention_factor));
    for (int k = 0; k < 2; k++) {
        const int64_t count = r->num_factors[which][k];
        if (lists[k]->type != FP8_JSON_ARRAY) return fp8_value_mismatch(r, lists[k], "an array");
        if (count != c->rotary_dim / 2)
            return fp8_json_fail(r->json, lists[k]->at, "%s: expected %lld factors, one a pair "
                                 "that turns, found %lld", lists[k]->key,
                                 (long long)(c->rotary_dim / 2), (long long)count);
        memcpy(to[k], r->factors[which][k], (size_t)count * sizeof *to[k]);
    }
done:
    return st;
}

/* One object of RoPE's keys (absent: all its keys are); theta: what stands in for rope_theta. */
static fp8_status read_object(const reader *r, int which, double theta, const fp8_model_config *c,
                              fp8_rope_config *rope) {
    fp8_status st = FP8_OK;

    FP8_TRY(rope_type(r, which, c->arch, &rope->type));
    FP8_TRY(fp8_value_positive(r, KEY(rope_theta), theta, &rope->theta));
    if (rope->type == FP8_ROPE_DEFAULT) return FP8_OK;
    if (rope->type == FP8_ROPE_LONGROPE) return read_longrope(r, which, c, rope);

    FP8_TRY(fp8_value_positive(r, KEY(factor), 0, &rope->factor));
    if (rope->factor < 1.0) return fp8_value_mismatch(r, KEY(factor), "a number of at least 1");
    if (rope->type == FP8_ROPE_LLAMA3) return read_llama3(r, which, rope);
    if (rope->type == FP8_ROPE_YARN) return read_yarn(r, which, c, rope);
    if (rope->type == FP8_ROPE_DYNAMIC) rope->original_max_position = c->max_position;
done:
    return st;
}

/* How much of a head turns: said at the top, in an object, or in both alike. */
static fp8_status read_rotary_dim(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const value *found = NULL;
    fp8_status st = FP8_OK;
    double part = 1;

    for (int which = -1; which < FP8_NUM_ROPES; which++) {
        const value *v = which < 0 ? TOP(partial_rotary_factor) : KEY(partial_rotary_factor);
        double this_part = 1;
        if (!fp8_value_has(v)) continue;
        FP8_TRY(fp8_value_positive(r, v, 1.0, &this_part));
        if (this_part > 1.0 || (this_part < 1.0 && !row->partial_rotary))
            return fp8_value_refuse(r, v);
        if (found && fabs(this_part - part) > 0)
            return fp8_json_fail(r->json, v->at, "partial_rotary_factor is said twice, "
                                 "differently");
        found = v;
        part = this_part;
    }
    c->rotary_dim = (int64_t)((double)c->head_dim * part);
    if (c->head_dim % 2 && c->rotary_dim == c->head_dim)
        return FP8_FAIL(FP8_EFORMAT, "%s: head_dim %lld is odd: RoPE turns pairs", r->name,
                        (long long)c->head_dim);
    if (c->rotary_dim < 2 || c->rotary_dim % 2)
        return FP8_FAIL(FP8_EFORMAT, "%s: %g of head_dim %lld turn: RoPE turns pairs", r->name,
                        part, (long long)c->head_dim);
    if (c->rotary_dim / 2 > FP8_MAX_ROPE_FACTORS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: head_dim %lld: RoPE of at most %d is supported",
                        r->name, (long long)c->head_dim, 2 * FP8_MAX_ROPE_FACTORS);
done:
    return st;
}

static fp8_status check_objects(const reader *r, const fp8_arch_row *row) {
    const value *objects[2] = {TOP(rope_parameters), TOP(rope_scaling)};

    for (int which = 0; which < 2; which++) {
        if (fp8_value_has(objects[which]) && objects[which]->type != FP8_JSON_OBJECT)
            return fp8_value_mismatch(r, objects[which], "an object");
        for (int k = FP8_ROPE_full_attention; k <= FP8_ROPE_sliding_attention; k++) {
            const value *v = &r->rope[which][k];
            if (!fp8_value_has(v)) continue;
            if (which == 1 || row->local_theta <= 0)
                return FP8_FAIL(FP8_EUNSUPPORTED, "%s: RoPE by layer type ('%s') is not supported "
                                "for %s", r->name, v->key, row->name);
            if (v->type != FP8_JSON_OBJECT) return fp8_value_mismatch(r, v, "an object");
        }
    }
    return FP8_OK;
}

fp8_status fp8_config_resolve_rope(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const int by_type = fp8_value_has(&r->rope[0][FP8_ROPE_full_attention]) ||
                        fp8_value_has(&r->rope[0][FP8_ROPE_sliding_attention]);
    const int first = by_type ? FP8_ROPE_OF_FULL : FP8_ROPE_OF_V5;
    const int has_v5 = fp8_value_has(TOP(rope_parameters));
    const int has_v4 = fp8_value_has(TOP(rope_scaling));
    fp8_rope_config scaling = {0};
    fp8_status st = FP8_OK;
    double theta = 0, local = 0;

    if (fp8_arch_is_classic(row->arch)) return FP8_OK;
    FP8_TRY(check_objects(r, row));
    FP8_TRY(read_rotary_dim(r, row, c));
    FP8_TRY(fp8_value_positive(r, TOP(rope_theta), row->theta > 0 ? row->theta : 1e4, &theta));
    FP8_TRY(read_object(r, has_v4 && !has_v5 ? FP8_ROPE_OF_V4 : first, theta, c, &c->rope));
    if (has_v4 && has_v5) {
        FP8_TRY(read_object(r, FP8_ROPE_OF_V4, theta, c, &scaling));
        if (memcmp(&c->rope, &scaling, sizeof scaling) != 0)
            return fp8_json_fail(r->json, TOP(rope_scaling)->at,
                                 "rope_scaling contradicts rope_parameters");
    }
    if (row->local_theta <= 0) return FP8_OK;
    FP8_TRY(fp8_value_positive(r, TOP(rope_local_base_freq), row->local_theta, &local));
    FP8_TRY(read_object(r, FP8_ROPE_OF_SLIDING, local, c, &c->rope_local));
done:
    return st;
}
