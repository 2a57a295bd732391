/* examples/fp8_forward.c - load an FP8 checkpoint, run one of its Linears and a whole forward:
 * cc fp8_forward.c $(pkg-config --cflags --libs fp8rt)
 * ./a.out MODEL-FP8 model.layers.0.mlp.up_proj.weight */
#include <fp8/model.h>
#include <fp8/quant.h>
#include <stdio.h>
#define TRY(call)                                                                                  \
    if ((call) != FP8_OK) return fprintf(stderr, "%s\n", fp8_last_error()), 1

int main(int argc, char **argv) {
    static float x[1 << 16] = {1}, y[1 << 16]; /* one token's input and output */
    fp8_device *cpu = NULL, *device = NULL;
    fp8_checkpoint *checkpoint = NULL;
    fp8_linear *linear = NULL;
    fp8_model *model = NULL;
    fp8_tensor logits;
    char name[300];
    if (argc != 3) return fprintf(stderr, "usage: %s MODEL-FP8 WEIGHT\n", argv[0]), 2;
    TRY(fp8_device_create(&cpu, "cpu", 0));
    TRY(fp8_checkpoint_open(&checkpoint, argv[1]));
    snprintf(name, sizeof name, "%s_scale", argv[2]);
    const fp8_st_entry *weight = fp8_checkpoint_find(checkpoint, argv[2]);
    const fp8_st_entry *descale = fp8_checkpoint_find(checkpoint, name);
    if (!weight || !descale) return fprintf(stderr, "%s: no FP8 weight\n", argv[2]), 1;
    fp8_linear_spec spec = {.name = argv[2], .out = weight->tensor.shape[0],
        .in = weight->tensor.shape[1], .weight = weight->tensor, .compute = FP8_DTYPE_F32,
        .weight_descale = descale->tensor.data, .num_weight_descales = 1};
    TRY(fp8_linear_create(&linear, cpu, &spec));
    fp8_tensor in = fp8_tensor_view(x, FP8_DTYPE_F32, FP8_PLACE_CPU, 1, spec.in);
    fp8_tensor out = fp8_tensor_view(y, FP8_DTYPE_F32, FP8_PLACE_CPU, 1, spec.out);
    TRY(fp8_linear_forward(linear, &out, &in, NULL, FP8_ACCUMULATE_EXACT, NULL, 0));
    printf("%s[0, 0] = %g\n", argv[2], y[0]);

    TRY(fp8_device_create(&device, "auto", 0));
    TRY(fp8_model_load(&model, device, checkpoint, NULL));
    const int32_t ids[] = {0, 1, 2}, starts[] = {0, 3};
    const fp8_batch batch = {.ids = ids, .num_tokens = 3, .starts = starts, .num_seqs = 1};
    TRY(fp8_model_forward(model, &batch, NULL, NULL, FP8_LOGITS_LAST, &logits));
    TRY(fp8_device_download(device, y, logits.data, sizeof *y));
    printf("%s: logit of token 0 = %g\n", fp8_device_name(device), y[0]);
    return 0;
}
