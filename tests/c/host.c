/*
 * A host in C: loads the library the way Fluent Bit does, against the committed header, and does to it
 * what a host may do.
 *
 *   host LIBRARY CHUNKS KEY=VALUE...
 *   host --reloads NUMBER LIBRARY CHUNKS KEY=VALUE...
 *
 * Three times over it starts an instance with the given properties, flushes every CHUNKS/NAME.msgpack
 * under the tag NAME, twice, and one record of its own without a tag, and stops the instance. From the
 * first to the second it goes as in a hot reload, with the library loaded once more beside the running
 * instance; from the second to the third the library is unloaded and loaded anew. What the library must
 * not touch lies behind a page that faults; the build adds the address, undefined-behaviour and leak
 * sanitizers.
 *
 * With --reloads it makes so many hot reloads in one process instead, with a few flushes before each, and
 * after each looks at what the process holds: as many files and threads as before, and, where memory is not
 * the sanitizer's, no more of it. "endpoint=closed" stands for a port of this machine that nobody serves:
 * there flushes must be answered RETRY.
 *
 * Built with OLD_HOST it is a host like Fluent Bit 1.9: its API is one function long, what it logs with is found
 * by its name, and it has neither metrics for outputs nor hot reload.
 * Ends with 0, or with 1 and a message on stderr.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "ferry.h"

enum {
    ROUNDS = 3,
    CHUNKS_MAX = 64,
    WATCHDOG_SECONDS = 120,
    THREADS_GONE_WITHIN_MS = 5000,
    /* Reloads until the allocator's arenas are as large as they get. */
    WARM_UP = 200,
    /* What arenas and page tables wander by, with every thread of every reload a new one. In 800 reloads
     * a leak of 3 KiB a reload shows. */
    RESIDENT_TOLERANCE_KIB = 2048,
    /* A flush that is never taken lasts until its deadline, a second at least: not one a reload. */
    RELOADS_A_REFUSED_FLUSH = 10,
};

/* What the host reads from the calls. */
enum { ANSWER_OK = 1, ANSWER_RETRY = 2 };
enum { TYPE_OUTPUT = 2, PROXY_GO = 11 };
enum { LEVEL_ERROR = 1, LEVEL_INFO = 3, LEVEL_TRACE = 5 };

/* ---- The host's side of the interface, declared apart from the header. ---- */

/* By what a library finds under which name it may tell how old a host is. */
#define host_get_property flb_output_get_property
#define host_log flb_log_print
#ifdef OLD_HOST
enum { OLD = true };
#else
enum { OLD = false };
#define host_get_page flb_output_get_cmt_instance
#define host_log_check flb_output_log_check
#endif

/* All that hosts before 4.2.3 allocate. They do not clear it. */
struct host_def {
    int type;
    int proxy;
    int flags;
    char *name;
    char *description;
};
_Static_assert(sizeof(struct host_def) == 32, "the definition of old hosts has 32 bytes");

/* As it is from 2.0.0 on. */
struct host_api {
    const char *(*output_get_property)(const char *key, void *instance);
    const char *(*input_get_property)(const char *key, void *instance);
    void *(*output_get_cmt_instance)(void *instance);
    void *(*input_get_cmt_instance)(void *instance);
    void (*log_print)(int level, const char *file, int line, const char *format, ...);
    int (*input_log_check)(void *instance, int level);
    int (*output_log_check)(void *instance, int level);
};
_Static_assert(sizeof(struct host_api) == 56, "the API of Fluent Bit 2.0.0 has 56 bytes");
_Static_assert(offsetof(struct host_api, input_get_property) == 8, "the API of Fluent Bit 1.9 has 8 bytes");

struct host_context {
    void *remote_context;
    void *proxy;
};

struct host_plugin {
    char *name;
    struct host_api *api;
    void *instance;
    struct host_context *context;
};

/* The header must say how things lie with the host, and what it calls. */
#define SAME_PLACE(field)                                                                         \
    _Static_assert(offsetof(struct flb_plugin_proxy_def, field) == offsetof(struct host_def, field), \
                   #field " does not lie where the host has it")
_Static_assert(sizeof(struct flb_plugin_proxy_def) == sizeof(struct host_def), "more is written than old hosts have");
SAME_PLACE(type);
SAME_PLACE(proxy);
SAME_PLACE(flags);
SAME_PLACE(name);
SAME_PLACE(description);
#define SAME_TYPE(function, type)                                               \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&function), type),   \
                   #function " is not declared as the host calls it")
SAME_TYPE(FLBPluginPreRegister, int (*)(int));
SAME_TYPE(FLBPluginRegister, int (*)(struct flb_plugin_proxy_def *));
SAME_TYPE(FLBPluginUnregister, void (*)(struct flb_plugin_proxy_def *));
SAME_TYPE(FLBPluginInit, int (*)(struct flbgo_output_plugin *));
SAME_TYPE(FLBPluginFlush, int (*)(const void *, int, const char *));
SAME_TYPE(FLBPluginFlushCtx, int (*)(void *, const void *, int, const char *));
SAME_TYPE(FLBPluginOutputPreExit, void (*)(int));
SAME_TYPE(FLBPluginExitCtx, int (*)(void *));
SAME_TYPE(FLBPluginExit, int (*)(void));

/* ---- Surprises. ---- */

#define CHECK(condition, ...) ((condition) ? (void) 0 : surprise(__LINE__, __VA_ARGS__))

__attribute__((format(printf, 2, 3), noreturn))
static void surprise(int line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "host.c:%d: ", line);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1);
}

/* ---- Memory that ends, to the byte, where a page that faults begins. ---- */

struct fence {
    void *pages;
    size_t length;
    void *bytes;
};

static struct fence fence_around(size_t size)
{
    size_t page = (size_t) sysconf(_SC_PAGESIZE);
    size_t room = (size + page - 1) / page * page;
    struct fence fence = {.length = room + page};

    fence.pages = mmap(NULL, fence.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(fence.pages != MAP_FAILED, "mmap failed");
    CHECK(mprotect((char *) fence.pages + room, page, PROT_NONE) == 0, "mprotect failed");
    fence.bytes = (char *) fence.pages + room - size;
    return fence;
}

/* The library may read what it is lent, not write it. */
static struct fence fence_lent(const void *data, size_t size)
{
    struct fence fence = fence_around(size);
    memcpy(fence.bytes, data, size);
    CHECK(mprotect(fence.pages, fence.length - (size_t) sysconf(_SC_PAGESIZE), PROT_READ) == 0, "mprotect failed");
    return fence;
}

static void fence_gone(struct fence fence)
{
    CHECK(munmap(fence.pages, fence.length) == 0, "munmap failed");
}

struct library {
    void *image;
    struct fence def;
    __typeof__(&FLBPluginPreRegister) pre_register;
    __typeof__(&FLBPluginRegister) registration;
    __typeof__(&FLBPluginUnregister) unregister;
    __typeof__(&FLBPluginInit) init;
    __typeof__(&FLBPluginFlush) flush;
    __typeof__(&FLBPluginFlushCtx) flush_ctx;
    __typeof__(&FLBPluginOutputPreExit) pre_exit;
    __typeof__(&FLBPluginExitCtx) exit_ctx;
    __typeof__(&FLBPluginExit) exit;
};

/* ---- What the library may call. ---- */

static char **properties;
static int property_count;
static void *instance;
static atomic_int errors_logged;
/* Of a thousand reloads only what went wrong unasked is worth a line. */
static atomic_bool quiet;
static atomic_bool refusal_expected;

const char *host_get_property(const char *key, void *asked);
const char *host_get_property(const char *key, void *asked)
{
    CHECK(asked == instance, "a property was asked of another instance");
    for (int i = 0; i < property_count; i++) {
        size_t length = strcspn(properties[i], "=");
        if (strncasecmp(properties[i], key, length) == 0 && key[length] == '\0') {
            return properties[i] + length + 1;
        }
    }
    return NULL;
}

/* ---- The page of figures: the host's cmetrics, as far as a library may need it, found by its names. ---- */

enum { METRICS_MAX = 64, VALUES_MAX = 16, LABELS_MAX = 2, BOUNDS_MAX = 32, WORD_MAX = 64 };
enum kind { COUNTER, GAUGE, HISTOGRAM };

struct bounds {
    size_t count;
    double bounds[BOUNDS_MAX];
};

struct metric {
    enum kind kind;
    char name[WORD_MAX];
    int labels;
    struct bounds *bounds;
    int value_count;
    struct {
        char labels[LABELS_MAX][WORD_MAX];
        double value;
    } values[VALUES_MAX];
};

/* Nothing may be put up but in Init, and nothing set but from then until the end of the exit. */
static atomic_bool page_in_init;
static atomic_bool page_is_there;
static struct metric metrics[METRICS_MAX];
static int metric_count;
static const char output_name[] = "c.host";

void *host_get_page(void *asked);
const char *flb_output_name(void *asked);
void *cmt_counter_create(void *page, char *space, char *subsystem, char *name, char *help, int count, char **keys);
void *cmt_gauge_create(void *page, char *space, char *subsystem, char *name, char *help, int count, char **keys);
void *cmt_histogram_buckets_create_size(double *bounds, size_t count);
void *cmt_histogram_create(void *page, char *space, char *subsystem, char *name, char *help, void *bounds, int count,
                           char **keys);
int cmt_counter_set(void *metric, uint64_t time, double value, int count, char **labels);
int cmt_gauge_set(void *metric, uint64_t time, double value, int count, char **labels);
int cmt_histogram_set_default(void *metric, uint64_t time, uint64_t *up_to, double sum, uint64_t all, int count,
                              char **labels);

void *host_get_page(void *asked)
{
    CHECK(asked == instance, "metrics were asked of another instance");
    return metrics;
}

const char *flb_output_name(void *asked)
{
    CHECK(asked == instance, "the name of another instance was asked");
    return output_name;
}

static void *put_up(enum kind kind, void *page, const char *space, const char *subsystem, const char *name,
                    const char *help, int count, char **keys)
{
    CHECK(atomic_load(&page_in_init), "%s was put up outside of Init", name);
    CHECK(page == metrics, "%s was put up on another page", name);
    CHECK(strcmp(space, "ferry") == 0 && *subsystem == '\0' && *help != '\0', "%s is not put up as it should", name);
    CHECK(metric_count < METRICS_MAX, "too many metrics");
    CHECK(count >= 1 && count <= LABELS_MAX && strcmp(keys[0], "name") == 0, "%s has other labels", name);
    struct metric *metric = &metrics[metric_count++];
    memset(metric, 0, sizeof *metric);
    metric->kind = kind;
    metric->labels = count;
    CHECK(strlen(name) < WORD_MAX, "%s is too long", name);
    strcpy(metric->name, name);
    return metric;
}

void *cmt_counter_create(void *page, char *space, char *subsystem, char *name, char *help, int count, char **keys)
{
    return put_up(COUNTER, page, space, subsystem, name, help, count, keys);
}

void *cmt_gauge_create(void *page, char *space, char *subsystem, char *name, char *help, int count, char **keys)
{
    return put_up(GAUGE, page, space, subsystem, name, help, count, keys);
}

void *cmt_histogram_buckets_create_size(double *bounds, size_t count)
{
    CHECK(count > 0 && count <= BOUNDS_MAX, "a histogram of %zu buckets", count);
    struct bounds *made = malloc(sizeof *made);
    CHECK(made != NULL, "no memory for buckets");
    made->count = count;
    memcpy(made->bounds, bounds, count * sizeof *bounds);
    for (size_t i = 1; i < count; i++) {
        CHECK(made->bounds[i - 1] < made->bounds[i], "buckets are not in order");
    }
    return made;
}

void *cmt_histogram_create(void *page, char *space, char *subsystem, char *name, char *help, void *bounds, int count,
                           char **keys)
{
    struct metric *metric = put_up(HISTOGRAM, page, space, subsystem, name, help, count, keys);
    metric->bounds = bounds;
    return metric;
}

static double *value_of(void *handle, enum kind kind, uint64_t time, int count, char **labels)
{
    struct metric *metric = handle;
    CHECK(metric >= metrics && metric < metrics + metric_count, "a metric that was not put up is set");
    CHECK(atomic_load(&page_is_there), "%s is set after the exit", metric->name);
    CHECK(metric->kind == kind && metric->labels == count, "%s is set as another", metric->name);
    CHECK(time > 1600000000ull * 1000000000ull, "%s is set at another time", metric->name);
    CHECK(strcmp(labels[0], output_name) == 0, "%s is set for %s", metric->name, labels[0]);
    for (int i = 0; i < metric->value_count; i++) {
        if (count == 1 || strcmp(labels[1], metric->values[i].labels[1]) == 0) {
            return &metric->values[i].value;
        }
    }
    CHECK(atomic_load(&page_in_init), "%s gets another value after Init", metric->name);
    CHECK(metric->value_count < VALUES_MAX, "%s has too many values", metric->name);
    int made = metric->value_count++;
    for (int i = 0; i < count; i++) {
        CHECK(strlen(labels[i]) < WORD_MAX, "%s is too long", labels[i]);
        strcpy(metric->values[made].labels[i], labels[i]);
    }
    return &metric->values[made].value;
}

int cmt_counter_set(void *metric, uint64_t time, double value, int count, char **labels)
{
    double *now = value_of(metric, COUNTER, time, count, labels);
    CHECK(value >= *now, "a counter goes from %f to %f", *now, value);
    *now = value;
    return 0;
}

int cmt_gauge_set(void *metric, uint64_t time, double value, int count, char **labels)
{
    *value_of(metric, GAUGE, time, count, labels) = value;
    return 0;
}

int cmt_histogram_set_default(void *metric, uint64_t time, uint64_t *up_to, double sum, uint64_t all, int count,
                              char **labels)
{
    double *now = value_of(metric, HISTOGRAM, time, count, labels);
    size_t last = ((struct metric *) metric)->bounds->count;
    /* As cmetrics does: one more than there are bounds. */
    for (size_t i = 1; i <= last; i++) {
        CHECK(up_to[i - 1] <= up_to[i], "a histogram falls at bucket %zu", i);
    }
    CHECK(up_to[last] == all && sum >= 0, "a histogram of %llu counts %llu", (unsigned long long) up_to[last],
          (unsigned long long) all);
    *now = (double) all;
    return 0;
}

static double figure(const char *name, const char *label)
{
    for (int i = 0; i < metric_count; i++) {
        struct metric *metric = &metrics[i];
        for (int j = 0; strcmp(metric->name, name) == 0 && j < metric->value_count; j++) {
            if (label == NULL || strcmp(metric->values[j].labels[1], label) == 0) {
                return metric->values[j].value;
            }
        }
    }
    surprise(__LINE__, "no figure %s of %s", label != NULL ? label : "all", name);
}

static void page_opens(void)
{
    metric_count = 0;
    atomic_store(&page_in_init, true);
    atomic_store(&page_is_there, true);
}

static void page_closes(int taken, int refused)
{
    atomic_store(&page_is_there, false);
    if (OLD) {
        return;
    }
    CHECK(figure("flushes_total", "ok") == taken, "%d flushes are shown as %f", taken, figure("flushes_total", "ok"));
    CHECK(figure("flushes_total", "retry") == refused, "%d flushes are shown as %f that failed", refused,
          figure("flushes_total", "retry"));
    CHECK(refused > 0 || figure("requests_total", "ok") == figure("request_duration_seconds", NULL),
          "requests are not all timed");
    CHECK(figure("requests_in_flight", NULL) == 0, "requests are shown under way");
    for (int i = 0; i < metric_count; i++) {
        free(metrics[i].bounds);
    }
}

int host_log_check(void *asked, int level);
int host_log_check(void *asked, int level)
{
    CHECK(asked == instance, "the log level was asked of another instance");
    return level <= LEVEL_INFO;
}

__attribute__((format(printf, 4, 5)))
void host_log(int level, const char *file, int line, const char *format, ...);
void host_log(int level, const char *file, int line, const char *format, ...)
{
    (void) file;
    (void) line;
    /* A host that can be asked wants no others, and of one that cannot it is not known. */
    CHECK(level >= LEVEL_ERROR && level <= LEVEL_INFO, "a line of level %d was logged", level);
    CHECK(strcmp(format, "%s") == 0, "log_print was given the format '%s'", format);
    va_list line_alone;
    va_start(line_alone, format);
    for (const char *at = va_arg(line_alone, const char *); *at != '\0'; at++) {
        CHECK((unsigned char) *at >= ' ' && *at != 0x7f, "a line holds the control character %d", *at);
    }
    va_end(line_alone);
    if (level == LEVEL_ERROR) {
        atomic_fetch_add(&errors_logged, 1);
    }
    if (atomic_load(&quiet) && (level != LEVEL_ERROR || atomic_load(&refusal_expected))) {
        return;
    }

    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "  log %d: ", level);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

static const char *not_for_outputs_get(const char *key, void *asked)
{
    (void) asked;
    surprise(__LINE__, "an output asked for the property %s of something else", key);
}

static void *not_for_outputs_cmt(void *asked)
{
    (void) asked;
    surprise(__LINE__, "an output asked for the metrics of something else");
}

static int not_for_outputs_check(void *asked, int level)
{
    (void) asked;
    surprise(__LINE__, "an output asked for the log level (%d) of something else", level);
}

static const struct host_api functions = {
    .output_get_property = host_get_property,
    .input_get_property = not_for_outputs_get,
    .output_get_cmt_instance = host_get_page,
    .input_get_cmt_instance = not_for_outputs_cmt,
    .log_print = host_log,
    .input_log_check = not_for_outputs_check,
    .output_log_check = host_log_check,
};
/* As many of them as the host has. */
static struct fence api;

/* ---- The process. ---- */

static int entries(const char *path)
{
    int count = 0;
    DIR *folder = opendir(path);
    CHECK(folder != NULL, "%s cannot be read", path);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        count += entry->d_name[0] != '.';
    }
    closedir(folder);
    return count;
}

/* A joined thread leaves /proc a moment after the join. */
static void wait_for_threads(int expected)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (int ms = 0; entries("/proc/self/task") > expected; ms++) {
        CHECK(ms < THREADS_GONE_WITHIN_MS, "threads of the library run after the last exit");
        nanosleep(&pause, NULL);
    }
}

/* ---- Chunks. ---- */

struct chunk {
    char tag[NAME_MAX + 1];
    void *data;
    size_t size;
};

/* [[1970-01-01T00:00:01, {}], {"k": 1}] */
static const unsigned char one_record[] = {
    0x92, 0x92, 0xd7, 0x00, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, 0x81, 0xa1, 'k', 1,
};

static struct chunk chunks[CHUNKS_MAX];
static int chunk_count;

static void load_chunk(const char *folder, const char *name, size_t tag_length)
{
    CHECK(chunk_count < CHUNKS_MAX, "more than %d chunks in %s", (int) CHUNKS_MAX, folder);
    struct chunk *chunk = &chunks[chunk_count++];
    memcpy(chunk->tag, name, tag_length);

    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL, "%s cannot be opened", path);
    CHECK(fseek(file, 0, SEEK_END) == 0, "%s cannot be read", path);
    chunk->size = (size_t) ftell(file);
    rewind(file);
    chunk->data = malloc(chunk->size);
    CHECK(chunk->data != NULL, "no memory for %s", path);
    CHECK(fread(chunk->data, 1, chunk->size, file) == chunk->size, "%s cannot be read", path);
    fclose(file);
}

static void load_chunks(const char *path)
{
    static const char ending[] = ".msgpack";
    DIR *folder = opendir(path);
    CHECK(folder != NULL, "%s cannot be read", path);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        size_t length = strlen(entry->d_name);
        if (length >= sizeof ending && strcmp(entry->d_name + length - (sizeof ending - 1), ending) == 0) {
            load_chunk(path, entry->d_name, length - (sizeof ending - 1));
        }
    }
    closedir(folder);
    CHECK(chunk_count > 0, "no chunks in %s", path);
}

/* ---- The story. ---- */

static void *symbol(void *image, const char *name)
{
    void *address = dlsym(image, name);
    CHECK(address != NULL, "%s is not exported", name);
    return address;
}

static struct library load(const char *path, bool hot_reload)
{
    struct library library = {.image = dlopen(path, RTLD_LAZY)};
    CHECK(library.image != NULL, "dlopen: %s", dlerror());
    /* ISO C has no cast from an object's pointer to a function's. */
    *(void **) &library.pre_register = symbol(library.image, "FLBPluginPreRegister");
    *(void **) &library.registration = symbol(library.image, "FLBPluginRegister");
    *(void **) &library.unregister = symbol(library.image, "FLBPluginUnregister");
    *(void **) &library.init = symbol(library.image, "FLBPluginInit");
    *(void **) &library.flush = symbol(library.image, "FLBPluginFlush");
    *(void **) &library.flush_ctx = symbol(library.image, "FLBPluginFlushCtx");
    *(void **) &library.pre_exit = symbol(library.image, "FLBPluginOutputPreExit");
    *(void **) &library.exit_ctx = symbol(library.image, "FLBPluginExitCtx");
    *(void **) &library.exit = symbol(library.image, "FLBPluginExit");

    library.def = fence_around(sizeof(struct host_def));
    const struct host_def *def = library.def.bytes;
    memset(library.def.bytes, 0xa5, sizeof *def);
    CHECK(OLD || library.pre_register(hot_reload) != -1, "FLBPluginPreRegister refused");
    CHECK(library.registration(NULL) == -1, "FLBPluginRegister accepted no definition");
    CHECK(library.registration(library.def.bytes) != -1, "FLBPluginRegister refused");
    CHECK(def->type == TYPE_OUTPUT, "registered as type %d", def->type);
    CHECK(def->proxy == PROXY_GO, "registered for proxy %d", def->proxy);
    CHECK(def->flags == 0, "registered with the flags %#x", (unsigned) def->flags);
    CHECK(def->name != NULL && strcmp(def->name, "ferry") == 0, "registered under another name");
    CHECK(def->description != NULL && *def->description != '\0', "registered without a description");
    return library;
}

static void unload(const struct library *library)
{
    /* Once for each output, in old hosts. */
    library->unregister(library->def.bytes);
    library->unregister(library->def.bytes);
    fence_gone(library->def);
    CHECK(dlclose(library->image) == 0, "dlclose: %s", dlerror());
}

/* With a context as hosts do today, without as they did before there was one. */
static void flush_lent(const struct library *library, void *context, const struct chunk *chunk)
{
    struct fence data = fence_lent(chunk->data, chunk->size);
    struct fence tag = fence_lent(chunk->tag, strlen(chunk->tag) + 1);
    int answer = context != NULL ? library->flush_ctx(context, data.bytes, (int) chunk->size, tag.bytes)
                                 : library->flush(data.bytes, (int) chunk->size, tag.bytes);
    CHECK(answer == ANSWER_OK, "chunk %s was answered %d", chunk->tag, answer);
    /* Both are the host's again: whoever still reads them now faults. */
    fence_gone(data);
    fence_gone(tag);
}

/* A host would not do this; a library that crashes takes every other pipeline with it. */
static void flush_nonsense(const struct library *library, void *context)
{
    int size = (int) sizeof one_record;
    const struct {
        const char *name;
        void *context;
        const void *data;
        int size;
        int answer;
    } cases[] = {
        {"no context", NULL, one_record, size, ANSWER_RETRY},
        {"another's context", instance, one_record, size, ANSWER_RETRY},
        {"no data", context, NULL, size, ANSWER_RETRY},
        {"a negative length", context, one_record, -1, ANSWER_RETRY},
        {"the least length", context, one_record, INT_MIN, ANSWER_RETRY},
        {"no bytes", context, one_record, 0, ANSWER_OK},
        {"neither data nor bytes", context, NULL, 0, ANSWER_OK},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int answer = library->flush_ctx(cases[i].context, cases[i].data, cases[i].size, "nonsense");
        CHECK(answer == cases[i].answer, "a flush with %s was answered %d", cases[i].name, answer);
    }
    library->flush_ctx(NULL, NULL, 0, NULL);
    library->flush(NULL, -1, NULL);
}

static void start_must_fail(const struct library *library, struct host_plugin *plugin)
{
    static char *nonsense[] = {"destination=no\nwhere"};
    char **given = properties;
    int given_count = property_count;
    int errors = atomic_load(&errors_logged);

    atomic_store(&refusal_expected, true);
    properties = nonsense;
    property_count = 1;
    CHECK(library->init((void *) plugin) <= 0, "an instance started with a destination that there is none of");
    CHECK(atomic_load(&errors_logged) > errors, "an instance did not say why it does not start");
    CHECK(library->init(NULL) <= 0, "an instance started from nothing");
    properties = given;
    property_count = given_count;
    atomic_store(&errors_logged, 0);
    atomic_store(&refusal_expected, false);
}

static void *start(const struct library *library)
{
    static char name[] = "ferry";
    struct host_context context = {0};
    struct host_plugin plugin = {.name = name, .api = api.bytes, .instance = instance, .context = &context};

    int threads = entries("/proc/self/task");
    start_must_fail(library, &plugin);
    wait_for_threads(threads);
    page_opens();
    CHECK(library->init((void *) &plugin) == 1, "the instance did not start");
    atomic_store(&page_in_init, false);
    CHECK(OLD == (metric_count == 0), "the instance shows %d figures", metric_count);
    CHECK(context.remote_context != NULL, "the instance left no context");
    return context.remote_context;
}

static void flush(const struct library *library, void *context)
{
    for (int i = 0; i < chunk_count; i++) {
        flush_lent(library, context, &chunks[i]);
        flush_lent(library, NULL, &chunks[i]);
    }
    int answer = library->flush_ctx(context, one_record, (int) sizeof one_record, NULL);
    CHECK(answer == ANSWER_OK, "a chunk without a tag was answered %d", answer);
    CHECK(atomic_load(&errors_logged) == 0, "errors were logged");
    flush_nonsense(library, context);
}

static void stop(const struct library *library, void *context, bool hot_reload, int taken, int refused)
{
    if (!OLD) {
        library->pre_exit(hot_reload);
    }
    CHECK(library->exit_ctx(context) == 1, "FLBPluginExitCtx failed");
    page_closes(taken, refused);
    CHECK(library->exit_ctx(context) != 1, "an instance was stopped twice");
    CHECK(library->exit_ctx(NULL) != 1, "no instance was stopped");
    CHECK(library->exit() == 1, "FLBPluginExit failed");
    int answer = library->flush_ctx(context, one_record, (int) sizeof one_record, "late");
    CHECK(answer == ANSWER_RETRY, "a flush after the exit was answered %d", answer);
}

static void three_rounds(const char *path)
{
    int threads = entries("/proc/self/task");
    int open_after_first = 0;
    struct library library = load(path, false);
    for (int round = 0; round < ROUNDS; round++) {
        bool hot_reload = round == 0 && !OLD;
        struct library next = {0};

        void *context = start(&library);
        flush(&library, context);
        if (hot_reload) {
            next = load(path, true);
        }
        stop(&library, context, hot_reload, 2 * chunk_count + 1, 0);
        wait_for_threads(threads);
        unload(&library);
        int open = entries("/proc/self/fd");
        if (round == 0) {
            open_after_first = open;
        }
        CHECK(open <= open_after_first, "%d files are open after round %d, %d were after the first", open, round + 1,
              open_after_first);
        if (!hot_reload && round + 1 < ROUNDS) {
            next = load(path, false);
        }
        library = next;
    }
    printf("host: %d rounds of %d chunks, no surprise\n", (int) ROUNDS, chunk_count);
}

/* ---- The same, over and over. ---- */

static long resident_kib(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL, "/proc/self/statm cannot be opened");
    CHECK(fscanf(file, "%*d %ld", &pages) == 1, "/proc/self/statm cannot be read");
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Makes "endpoint=closed" the address of a port that is bound, so that nobody else takes it, and not served. */
static bool close_endpoint(void)
{
    static char endpoint[64];
    for (int i = 0; i < property_count; i++) {
        if (strcmp(properties[i], "endpoint=closed") == 0) {
            struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
            socklen_t length = sizeof address;
            int port = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            CHECK(port != -1, "no socket");
            CHECK(bind(port, (struct sockaddr *) &address, sizeof address) == 0, "no port");
            CHECK(getsockname(port, (struct sockaddr *) &address, &length) == 0, "the port has no number");
            snprintf(endpoint, sizeof endpoint, "endpoint=http://127.0.0.1:%d", ntohs(address.sin_port));
            properties[i] = endpoint;
            return true;
        }
    }
    return false;
}

/* A record that no reload before has sent: [[1970-01-01T00:00:01, {}], {"reload": number}]. */
static void flush_number(const struct library *library, void *context, uint32_t number, int expected)
{
    unsigned char record[] = {
        0x92, 0x92, 0xd7, 0x00, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, 0x81, 0xa6, 'r', 'e', 'l', 'o', 'a', 'd', 0xce, 0, 0, 0, 0,
    };
    uint32_t big_endian = htonl(number);
    memcpy(record + sizeof record - sizeof big_endian, &big_endian, sizeof big_endian);
    int answer = library->flush_ctx(context, record, (int) sizeof record, "reload");
    CHECK(answer == expected, "the flush of reload %u was answered %d", number, answer);
}

/* The same output once more, with a spool of its own. */
static void *start_beside(const struct library *library)
{
    static char folder[4096];
    for (int i = 0; i < property_count; i++) {
        if (strncmp(properties[i], "spool_dir=", strlen("spool_dir=")) == 0) {
            char *given = properties[i];
            snprintf(folder, sizeof folder, "%s-beside", given);
            properties[i] = folder;
            void *context = start(library);
            properties[i] = given;
            return context;
        }
    }
    return start(library);
}

/* Two outputs in a host like Fluent Bit 1.9: it keeps one context for both, of the one that it started last, comes
 * with that at its end, and never for the other. What that one was given must be delivered all the same. */
static void two_outputs(const char *path)
{
    int threads = entries("/proc/self/task");
    struct library library = load(path, false);
    void *first = start(&library);
    flush_number(&library, first, 1, ANSWER_OK);
    void *second = start_beside(&library);
    CHECK(library.exit_ctx(second) == 1, "FLBPluginExitCtx failed");
    wait_for_threads(threads);
    CHECK(library.exit_ctx(first) != 1, "an instance was stopped twice");
    unload(&library);
    printf("host: two outputs, no surprise\n");
}

static void reload_again_and_again(const char *path, int reloads)
{
    bool closed = close_endpoint();
    int warm_up = reloads < 2 * WARM_UP ? reloads / 2 : WARM_UP;
    int window = warm_up / 2;
    int threads = entries("/proc/self/task");
    int open_after_first = 0;
    long highest_early = 0;
    long lowest_late = LONG_MAX;

    atomic_store(&quiet, true);
    struct library library = load(path, false);
    for (int round = 1; round <= reloads; round++) {
        void *context = start(&library);
        int taken = 0;
        int refused = 0;
        if (!closed) {
            flush_lent(&library, context, &chunks[round % chunk_count]);
            flush_number(&library, context, (uint32_t) round, ANSWER_OK);
            taken = 2;
        } else if (round % RELOADS_A_REFUSED_FLUSH == 1) {
            flush_number(&library, context, (uint32_t) round, ANSWER_RETRY);
            refused = 1;
        }
        struct library next = load(path, true);
        stop(&library, context, true, taken, refused);
        wait_for_threads(threads);
        unload(&library);
        library = next;

        int open = entries("/proc/self/fd");
        if (round == 1) {
            open_after_first = open;
        }
        CHECK(open <= open_after_first, "%d files are open after reload %d, %d were after the first", open, round,
              open_after_first);
        long resident = resident_kib();
        if (round > warm_up - window && round <= warm_up && resident > highest_early) {
            highest_early = resident;
        }
        if (round > reloads - window && resident < lowest_late) {
            lowest_late = resident;
        }
    }
    unload(&library);

    printf("host: %d hot reloads: %d files open, %d threads, %ld KiB resident after %d, %ld at the end\n", reloads,
           open_after_first, threads, highest_early, warm_up, lowest_late);
#ifndef __SANITIZE_ADDRESS__
    CHECK(lowest_late <= highest_early + RESIDENT_TOLERANCE_KIB,
          "memory grows: %ld KiB were resident after %d reloads, %ld are after %d", highest_early, warm_up, lowest_late,
          reloads);
#endif
}

int main(int count, char **arguments)
{
    int reloads = 0;
    char **given = arguments + 1;
    if (count > 2 && strcmp(given[0], "--reloads") == 0) {
        reloads = atoi(given[1]);
        CHECK(reloads >= 10, "--reloads %s is not a number from 10", given[1]);
        given += 2;
        count -= 2;
    }
    if (count < 3) {
        fprintf(stderr, "usage: %s [--reloads NUMBER] LIBRARY CHUNKS KEY=VALUE...\n", arguments[0]);
        return 2;
    }
    properties = given + 2;
    property_count = count - 3;
    for (int i = 0; i < property_count; i++) {
        CHECK(strchr(properties[i], '=') != NULL, "%s is not KEY=VALUE", properties[i]);
    }
    load_chunks(given[1]);
    /* The library may hand this pointer around, not look behind it. */
    struct fence opaque = fence_around(0);
    instance = opaque.bytes;
    size_t api_size = OLD ? sizeof functions.output_get_property : sizeof functions;
    api = fence_lent(&functions, api_size);
    alarm((unsigned) (WATCHDOG_SECONDS + 3 * reloads));

    if (reloads > 0) {
        reload_again_and_again(given[0], reloads);
    } else {
        three_rounds(given[0]);
        if (OLD) {
            two_outputs(given[0]);
        }
    }

    for (int i = 0; i < chunk_count; i++) {
        free(chunks[i].data);
    }
    fence_gone(opaque);
    fence_gone(api);
    return 0;
}
