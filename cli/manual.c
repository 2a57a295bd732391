#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

enum { WIDTH = 80, MARGIN = 28 }; /* help texts begin at MARGIN */

static const char exit_codes[] =
    "Exit codes\n"
    "  0    done\n"
    "  1    the system failed: reading, writing, memory, CUDA\n"
    "  2    bad command line\n"
    "  3    an input file is missing, malformed or not supported\n"
    "  4    unusable data: empty, not finite, or not of the model's vocabulary\n"
    "  5    the output exists already (--force replaces it), or another process is\n"
    "       writing it\n"
    "  130  interrupted\n"
    "A failure prints one line on stderr, 'fp8calib: what, where, expected, found',\n"
    "and leaves no half-written output.\n";

/* Words of text, wrapped, each further line indented by MARGIN; the first begins at `column`. */
static void print_wrapped(const char *text, int column) {
    if (column > MARGIN - 2) {
        printf("\n%*s", MARGIN, "");
        column = MARGIN;
    } else {
        printf("%*s", MARGIN - column, "");
        column = MARGIN;
    }
    while (*text) {
        const int len = (int)strcspn(text, " ");
        if (column > MARGIN && column + 1 + len > WIDTH) {
            printf("\n%*s", MARGIN, "");
            column = MARGIN;
        }
        column += printf("%s%.*s", column > MARGIN ? " " : "", len, text);
        text += len;
        text += *text == ' ';
    }
    printf("\n");
}

/* " (default 512)" from the command's own defaults, unless the help text speaks of it. */
static void default_text(char *buf, size_t bytes, const cli_option *o, const char *defaults) {
    const void *field = defaults + o->offset;
    buf[0] = 0;
    if (strstr(o->help, "default")) return;
    if (o->kind == CLI_INT)
        snprintf(buf, bytes, " (default %lld)", (long long)*(const int64_t *)field);
    else if ((o->kind == CLI_TEXT || o->kind == CLI_CHOICE) && *(const char *const *)field)
        snprintf(buf, bytes, " (default %s)", *(const char *const *)field);
}

static void print_options(const cli_option *options, int32_t count, const void *defaults) {
    for (int32_t i = 0; i < count; i++) {
        const cli_option *o = &options[i];
        char text[1024], by_default[256];
        int column = o->letter ? printf("  -%c, %s", o->letter, o->name) : printf("  %s", o->name);
        if (o->value) column += printf(" %s", o->value);
        default_text(by_default, sizeof by_default, o, defaults);
        snprintf(text, sizeof text, "%s%s%s", o->help, o->kind == CLI_LIST ? "; repeatable" : "",
                 by_default);
        print_wrapped(text, column);
    }
}

void cli_print_manual(const cli_command *cmd) {
    printf("fp8calib %s - %s\n\nUsage\n  fp8calib %s %s\n\n%s\n", cmd->name, cmd->purpose,
           cmd->name, cmd->usage, cmd->about);
    if (cmd->num_options > 0) {
        printf("\nOptions (of one given twice the last counts)\n");
        print_options(cmd->options, cmd->num_options, cmd->defaults);
    }
    printf("\nOptions of every command\n");
    print_options(cli_common_options, cli_num_common_options, cmd->defaults);
    printf("\nExamples\n%s\n%s", cmd->examples, exit_codes);
}

void cli_print_overview(const cli_command *const *commands, int32_t count) {
    printf("fp8calib %s - FP8 calibration of Hugging Face checkpoints\n\nUsage\n"
           "  fp8calib COMMAND [operands and options]\n"
           "  fp8calib help COMMAND         the command's manual, also: fp8calib COMMAND --help\n"
           "  fp8calib --version\n\nCommands\n",
           FP8_VERSION);
    for (int32_t i = 0; i < count; i++)
        printf("  %-10s %s\n", commands[i]->name, commands[i]->purpose);
    printf("\nMODEL is a .safetensors file, a *.safetensors.index.json, or the folder that\n"
           "holds one of them; config.json and tokenizer.json are found beside the weights.\n"
           "Results go to stdout, progress and errors to stderr. Ctrl-C ends a command\n"
           "cleanly, a second one at once. FP8_DEBUG=1 or 2 prints on stderr what was\n"
           "chosen, and why.\n"
           "\nExamples\n"
           "  fp8calib run ./Llama-3-8B\n"
           "  fp8calib generate ./Llama-3-8B-FP8 --prompt 'The moon is'\n\n%s",
           exit_codes);
}
