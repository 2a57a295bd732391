/* examples/batch_generate.c - several prompts at once through the engine:
 * cc batch_generate.c $(pkg-config --cflags --libs fp8rt)
 * ./a.out MODEL-FP8 auto|cpu|cuda "Once upon a time" "The river" ... */
#include <fp8/engine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NEW = 32, MOST = 16 };

#define TRY(call)                                                                                  \
    if ((call) != FP8_OK) return fprintf(stderr, "%s\n", fp8_last_error()), 1

int main(int argc, char **argv) {
    fp8_device *device = NULL;
    fp8_checkpoint *checkpoint = NULL;
    fp8_tokenizer *tokenizer = NULL;
    fp8_model *model = NULL;
    fp8_engine *engine = NULL;
    int64_t requests[MOST], running = 1;
    char *path = NULL, *text = NULL;
    size_t length = 0;
    const int count = argc - 3;

    if (count < 1 || count > MOST)
        return fprintf(stderr, "usage: %s MODEL-FP8 DEVICE PROMPT...\n", argv[0]), 2;
    TRY(fp8_device_create(&device, argv[2], 0));
    TRY(fp8_checkpoint_open(&checkpoint, argv[1]));
    TRY(fp8_checkpoint_sibling(&path, checkpoint, "tokenizer.json"));
    TRY(fp8_tokenizer_open(&tokenizer, path));
    TRY(fp8_model_load(&model, device, checkpoint, NULL));
    const fp8_engine_options options = {.max_seqs = MOST, .max_context = 256};
    TRY(fp8_engine_create(&engine, model, &options));

    for (int i = 0; i < count; i++) {
        const char *prompt = argv[3 + i];
        fp8_ids ids = {0};
        TRY(fp8_tokenizer_encode(tokenizer, &ids, prompt, strlen(prompt), FP8_SPECIAL_ADD));
        const fp8_request request = {.prompt = ids.data, .num_prompt = ids.count, .max_new = NEW};
        TRY(fp8_engine_submit(engine, &request, &requests[i]));
        fp8_ids_free(&ids);
    }
    while (running) TRY(fp8_engine_step(engine, &running));
    for (int i = 0; i < count; i++) {
        int32_t ids[NEW];
        fp8_request_state state;
        int64_t made;
        TRY(fp8_engine_poll(engine, requests[i], ids, NEW, &made, &state));
        TRY(fp8_tokenizer_decode(tokenizer, &text, &length, ids, made, 1));
        printf("%s ->%s\n", argv[3 + i], text);
        free(text);
    }
    fp8_engine_destroy(engine);
    fp8_model_destroy(model);
    fp8_tokenizer_close(tokenizer);
    fp8_checkpoint_close(checkpoint);
    fp8_device_destroy(device);
    free(path);
    return 0;
}
