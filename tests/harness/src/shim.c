/*
 * The host's log: one line on stderr, in one write, such as
 *
 *     [2026/11/21 13:00:00] [ info] [out_x] message
 *
 * A plugin calls it on the stack of a flush, so the room it takes there matters: the message is
 * put together in 4 KiB of stack, as in hosts whose coroutine stacks are 24 KiB.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int muted;

/* A daemon has closed stderr; the descriptor may since belong to a file of the plugin. */
void ferry_harness_log_mute(void)
{
    muted = 1;
}

void ferry_harness_log_print(int level, const char *file, int line, const char *format, ...)
{
    static const char *const names[] = {"help", "error", "warn", "info", "debug", "trace"};
    char text[4096];
    struct tm when;
    time_t now = time(NULL);
    va_list arguments;
    size_t used;
    int wanted;
    int saved = errno;

    (void) file;
    (void) line;
    if (muted) {
        return;
    }

    localtime_r(&now, &when);
    used = strftime(text, sizeof(text), "[%Y/%m/%d %H:%M:%S] ", &when);
    used += (size_t) snprintf(text + used, sizeof(text) - used, "[%5s] ",
                              level >= 1 && level <= 5 ? names[level] : names[0]);

    va_start(arguments, format);
    wanted = vsnprintf(text + used, sizeof(text) - used - 1, format, arguments);
    va_end(arguments);
    if (wanted > 0) {
        used += (size_t) wanted < sizeof(text) - used - 1 ? (size_t) wanted : sizeof(text) - used - 2;
    }
    text[used++] = '\n';

    while (write(STDERR_FILENO, text, used) < 0 && errno == EINTR) {
    }
    errno = saved;
}

/*
 * As in the host's main: the signal that asked it to end. A plugin may look there, since the host's executable
 * exports it, as it does all of its functions (exports.list).
 */
volatile sig_atomic_t exit_signal;

void ferry_harness_ends(int number)
{
    exit_signal = number;
}

/* One of those functions, by which the host is known. */
int flb_stop(void *context)
{
    (void) context;
    return 0;
}
