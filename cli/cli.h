/* cli/cli.h - private: what the commands share. A command is a row: its name, its manual, its
 * option table, its defaults and one function; parser, help and spelling hints all read that row.
 *
 * Results go to stdout, everything else to stderr; an error is one line. Nothing here knows how
 * anything is computed: that is the library's. */
#ifndef FP8_CLI_CLI_H
#define FP8_CLI_CLI_H
#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "calib/calib.h"
#include "core/core.h"
#include "formats/formats.h"
#include "model/model.h"

typedef enum cli_exit {
    CLI_EXIT_OK = 0,
    CLI_EXIT_SYSTEM = 1,
    CLI_EXIT_USAGE = 2,
    CLI_EXIT_INPUT = 3,
    CLI_EXIT_DATA = 4,
    CLI_EXIT_EXISTS = 5,
    CLI_EXIT_INTERRUPTED = 130
} cli_exit;

/* ---- options (args.c) ------------------------------------------------------------------------ */

typedef struct cli_list {
    const char **items;
    int32_t count;
} cli_list;

typedef enum cli_kind {
    CLI_FLAG,   /* int: 1 when given */
    CLI_TEXT,   /* const char *, at least lo bytes */
    CLI_LIST,   /* cli_list: may be repeated */
    CLI_INT,    /* int64_t in [lo, hi] */
    CLI_REAL,   /* double in [lo, hi], as 99.99 is written */
    CLI_BYTES,  /* size_t: 500000000, 500MB, 5GB, 4GiB */
    CLI_CHOICE  /* const char *, one of `value`'s alternatives */
} cli_kind;

typedef struct cli_option {
    const char *name;  /* "--batch" */
    char letter;       /* 'o' for -o, 0 for none */
    cli_kind kind;
    size_t offset;     /* of its field in the command's options struct */
    const char *value; /* how the help calls the value; CLI_CHOICE: "fp8|none" */
    int64_t lo, hi;
    const char *help;
} cli_option;

/* First member of every command's options struct. */
typedef struct cli_common {
    const char *device;
    int64_t threads;
    int json, quiet, help;
} cli_common;
#define CLI_COMMON_DEFAULTS {"auto", 0, 0, 0, 0}

typedef struct cli_command {
    const char *name, *purpose; /* one line */
    const char *usage;          /* what follows the name */
    const char *about;          /* what it reads, does and writes */
    const char *examples;
    const cli_option *options;
    int32_t num_options;
    int32_t min_operands, max_operands;
    const char *operand;        /* "MODEL": for messages */
    const void *defaults;       /* an options struct */
    size_t options_bytes;
    fp8_status (*run)(const void *options, const cli_list *operands);
} cli_command;

extern const cli_command cli_cmd_run, cli_cmd_convert, cli_cmd_scales, cli_cmd_inspect,
    cli_cmd_eval, cli_cmd_generate, cli_cmd_logits, cli_cmd_tokenize, cli_cmd_explain,
    cli_cmd_bench,
    cli_cmd_lint;

extern const cli_option cli_common_options[];
extern const int32_t cli_num_common_options;

/* Fills `options` (a copy of cmd->defaults) and operands from argv; lists live in the arena.
 * FP8_EINVAL names the option, what was expected, what was found. Operands are counted unless
 * --help is among the options. */
FP8_NODISCARD fp8_status cli_parse(void *options, cli_list *operands, const cli_command *cmd,
                                   int argc, char **argv, fp8_arena *arena);

/* The word of `words` nearest to `word`, or NULL when none is near enough to be meant. */
const char *cli_nearest(const char *word, const char *const *words, int32_t count);

/* ---- manual (manual.c) ----------------------------------------------------------------------- */

void cli_print_manual(const cli_command *cmd);
void cli_print_overview(const cli_command *const *commands, int32_t count);

/* ---- signals and progress (progress.c) ------------------------------------------------------- */

/* Installs the handlers of SIGINT, SIGTERM and SIGBUS and the sink of the library's warnings. */
void cli_progress_start(const cli_common *common);
fp8_progress cli_progress(void); /* a bar on a terminal, lines elsewhere; stops on a signal */
int cli_interrupted(void);
FP8_NODISCARD fp8_status cli_check_interrupt(void); /* FP8_ECANCELED after a signal */
double cli_seconds(void); /* of a clock that only goes forward */
void cli_note(const char *fmt, ...) FP8_PRINTF(1, 2);   /* a line on stderr unless --quiet */
void cli_print_error(const char *message);              /* "fp8calib: message", always one line */

/* ---- output (output.c) ----------------------------------------------------------------------- */

const char *cli_bytes_text(char *buf, size_t bytes, size_t n); /* "2.10 MB" */
/* Text as a JSON string with its quotes (NUL and controls escaped, bad UTF-8 as U+FFFD); free(). */
char *cli_json_quote(const char *text, size_t len);
FP8_NODISCARD fp8_status cli_json_add_text(cJSON *object, const char *key, const char *text,
                                           size_t len);
/* Prints the document and a newline on stdout. */
FP8_NODISCARD fp8_status cli_json_print(const cJSON *document);
/* Text on one line: controls as \n, \t, \xNN. */
void cli_print_escaped(const char *text, size_t len);

/* Before any work: FP8_EEXIST without force; FP8_EIO when its folder is not there or not writable;
 * FP8_EINVAL when replacing it would take away `source` (may be NULL) or a folder that is no
 * checkpoint. */
FP8_NODISCARD fp8_status cli_check_output_folder(const char *path, int force, const char *source);
FP8_NODISCARD fp8_status cli_check_output_file(const char *path, int force);
/* "models/llama" -> "models/llama-FP8", as the manual of `run` says; free(). */
FP8_NODISCARD fp8_status cli_default_output(char **out, const char *model);

/* ---- a model and its data (source.c) --------------------------------------------------------- */

enum { CLI_EVAL_TOKENS = 2048 }; /* of one forward that wants logits: 2 GB at 256k ids of F32 */

typedef struct cli_source {
    fp8_checkpoint *checkpoint;
    fp8_model_config config;
    fp8_tokenizer *tokenizer; /* NULL until cli_source_tokenizer */
} cli_source;

FP8_NODISCARD fp8_status cli_device_open(fp8_device **out, const cli_common *common);
FP8_NODISCARD fp8_status cli_source_open(cli_source *s, const char *path);
/* Opens tokenizer.json beside the model and checks that its ids fit the model. */
FP8_NODISCARD fp8_status cli_source_tokenizer(cli_source *s);
void cli_source_close(cli_source *s);
/* asked, or the default for 0: 512, less where the model has fewer positions. FP8_EINVAL names
 * `flag` when more is asked than the model has. */
FP8_NODISCARD fp8_status cli_length(int64_t *out, const char *flag, int64_t asked,
                                    const fp8_model_config *config);

/* One stream of ids: a text file encoded whole with its special tokens, JSONL samples one after the
 * other, or the sequences of an id file. data NULL and tokens NULL: the built-in text. Samples past
 * `enough` ids are not read; 0: all are. FP8_EDATA: fewer than 2 ids. */
FP8_NODISCARD fp8_status cli_load_stream(fp8_ids *ids, cli_source *s, const char *data,
                                         const char *field, const char *tokens, int64_t enough);

/* Puts "culprit: " before the message of a data error (FP8_EDATA) that does not name it; st. */
fp8_status cli_name_culprit(fp8_status st, const char *culprit);

/* Text that ids[num_prompt ..] add to the text of the prompt before them; free(). */
FP8_NODISCARD fp8_status cli_continuation(char **out, size_t *len, const fp8_tokenizer *t,
                                          const fp8_ids *ids, int64_t num_prompt);

fp8_compute cli_compute(const char *text); /* of "bf16" or "fp32" */

#endif
