/* cli/generate_many.h - several prompts at once, or drawn ids, through an engine. */
#ifndef FP8_CLI_GENERATE_MANY_H
#define FP8_CLI_GENERATE_MANY_H
#include "cli/cli.h"

/* Prompts in order: texts of the command line, then the lines of a file. */
typedef struct prompt_list {
    char **texts; /* own copies */
    int64_t count;
} prompt_list;

/* Adds the lines of `path` ("-": standard input) that are not empty. FP8_EIO, FP8_ENOTFOUND. */
FP8_NODISCARD fp8_status prompt_list_read(prompt_list *l, const char *path);
FP8_NODISCARD fp8_status prompt_list_add(prompt_list *l, const char *text, size_t length);
void prompt_list_free(prompt_list *l);

/* doc += "prompt", "text", "prompt_ids", "ids" of ids, the first num_prompt of which are the
 * prompt's. */
FP8_NODISCARD fp8_status generation_to_json(cJSON *doc, const fp8_tokenizer *t, const char *prompt,
                                            const fp8_ids *ids, int64_t num_prompt);

/* Makes max_tokens ids for each, as many prompts at once as `batch`, and prints them in order: each
 * as soon as those before it are done, or all as one JSON document. */
FP8_NODISCARD fp8_status generate_many(fp8_device *d, const cli_source *source,
                                       const prompt_list *prompts, int64_t max_tokens,
                                       int64_t batch, const fp8_sampling *how, int json);

#endif
