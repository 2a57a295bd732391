/* cli/main.c - from argv to a command, and from its status to one line and an exit code. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const cli_command *const commands[] = {
    &cli_cmd_run,      &cli_cmd_convert, &cli_cmd_scales,   &cli_cmd_inspect, &cli_cmd_lint,
    &cli_cmd_eval,
    &cli_cmd_generate, &cli_cmd_logits,  &cli_cmd_tokenize, &cli_cmd_explain, &cli_cmd_bench,
};
enum { NUM_COMMANDS = sizeof commands / sizeof *commands };

static cli_exit exit_code(fp8_status st) {
    switch (st) {
    case FP8_OK: return CLI_EXIT_OK;
    case FP8_ENOMEM:
    case FP8_EIO:
    case FP8_ECUDA: return CLI_EXIT_SYSTEM;
    case FP8_EINVAL: return CLI_EXIT_USAGE;
    case FP8_EFORMAT:
    case FP8_EOVERFLOW: /* sizes come from files */
    case FP8_EUNSUPPORTED:
    case FP8_ENOTFOUND: return CLI_EXIT_INPUT;
    case FP8_EDATA: return CLI_EXIT_DATA;
    case FP8_EEXIST: return CLI_EXIT_EXISTS;
    case FP8_ECANCELED: return CLI_EXIT_INTERRUPTED;
    }
    return CLI_EXIT_SYSTEM;
}

static fp8_status find_command(const cli_command **out, const char *name) {
    const char *names[NUM_COMMANDS + 1], *near;
    for (int32_t i = 0; i < NUM_COMMANDS; i++) {
        names[i] = commands[i]->name;
        if (strcmp(name, names[i]) == 0) {
            *out = commands[i];
            return FP8_OK;
        }
    }
    names[NUM_COMMANDS] = "help";
    near = cli_nearest(name, names, NUM_COMMANDS + 1);
    if (near) return FP8_FAIL(FP8_EINVAL, "unknown command '%s'; did you mean '%s'?", name, near);
    return FP8_FAIL(FP8_EINVAL, "unknown command '%s'; 'fp8calib help' lists them", name);
}

static fp8_status print_help(int argc, char **argv) {
    const cli_command *cmd = NULL;
    fp8_status st = FP8_OK;
    if (argc > 1) return FP8_FAIL(FP8_EINVAL, "help: unexpected operand '%s'", argv[1]);
    if (argc == 0) {
        cli_print_overview(commands, NUM_COMMANDS);
        return FP8_OK;
    }
    FP8_TRY(find_command(&cmd, argv[0]));
    cli_print_manual(cmd);
done:
    return st;
}

static fp8_status run_command(const cli_command *cmd, int argc, char **argv) {
    fp8_status st = FP8_OK;
    fp8_arena arena = {0};
    cli_list operands = {0};
    cli_common *options = fp8_arena_alloc(&arena, cmd->options_bytes);
    if (!options) return FP8_FAIL(FP8_ENOMEM, "%s: out of memory", cmd->name);
    memcpy(options, cmd->defaults, cmd->options_bytes);
    FP8_TRY(cli_parse(options, &operands, cmd, argc, argv, &arena));
    if (options->help) {
        cli_print_manual(cmd);
        goto done;
    }
    cli_progress_start(options);
    st = cmd->run(options, &operands);
done:
    fp8_arena_free(&arena);
    return st;
}

static fp8_status dispatch(int argc, char **argv) {
    const cli_command *cmd = NULL;
    fp8_status st = FP8_OK;
    if (argc < 1) return FP8_FAIL(FP8_EINVAL, "no command; 'fp8calib help' lists them");
    if (strcmp(argv[0], "--version") == 0) {
        printf("fp8calib %s (%s)\n", FP8_VERSION, FP8_CUDA ? "CPU, CUDA" : "CPU");
        return FP8_OK;
    }
    if (strcmp(argv[0], "help") == 0) return print_help(argc - 1, argv + 1);
    if (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0) return print_help(0, NULL);
    FP8_TRY(find_command(&cmd, argv[0]));
    st = run_command(cmd, argc - 1, argv + 1);
done:
    return st;
}

int main(int argc, char **argv) {
    fp8_status st = dispatch(argc - 1, argv + 1), lost = fp8_file_check_lost();
    if (lost != FP8_OK) st = lost; /* whatever came of it: this is the reason */
    errno = 0;
    if ((fflush(stdout) != 0 || ferror(stdout)) && st == FP8_OK)
        st = FP8_FAIL(FP8_EIO, "standard output: %s", errno ? strerror(errno) : "write failed");
    if (st != FP8_OK) cli_print_error(fp8_last_message());
    return (int)exit_code(st);
}
