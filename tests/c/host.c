/*
 * A host in C: loads the library like Fluent Bit, against the committed header, and calls it in every way
 * that a host may.
 *
 *   host LIBRARY CHUNKS KEY=VALUE...
 *   host --reloads NUMBER LIBRARY CHUNKS KEY=VALUE...
 *
 * In each of three rounds it starts an instance with the given properties, flushes every CHUNKS/NAME.msgpack
 * under the tag NAME, twice, and one record of its own without a tag, and stops the instance. The second
 * round follows by a hot reload, with the library loaded once more while the instance is running; before
 * the third the library is unloaded and loaded again. Memory that the library must not access is behind a
 * guard page; the build adds the address, undefined-behaviour and leak sanitizers.
 *
 * With --reloads it does NUMBER hot reloads in one process instead, with a few flushes before each, and checks
 * the process's resources after each: no more open files and threads, and, without the sanitizer's allocator,
 * no more memory. "endpoint=closed" stands for a closed local port, for which flushes must be answered RETRY.
 *
 * Built with OLD_HOST it is a host like Fluent Bit 1.9: its API has one function, the log function is found by
 * its name, and it has neither metrics for outputs nor hot reload.
 * Exits with 0, or with 1 and a message on stderr.
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
    /* The number of reloads after which the allocator's arenas have reached their size. */
    WARM_UP = 200,
    /* The variation of arenas and page tables, since each reload has new threads. In 800 reloads a leak of
     * 3 KiB per reload is detected. */
    RESIDENT_TOLERANCE_KIB = 2048,
    /* A refused flush lasts until its deadline, at least a second, so not every reload has one. */
    RELOADS_A_REFUSED_FLUSH = 10,
};

/* The answers of the calls. */
enum { ANSWER_OK = 1, ANSWER_RETRY = 2 };
enum { TYPE_OUTPUT = 2, PROXY_GO = 11 };
enum { LEVEL_ERROR = 1, LEVEL_INFO = 3, LEVEL_TRACE = 5 };

/* ---- The host's side of the interface, declared independently of the header. ---- */

/* A library may detect the host's version by the symbols that it exports. */
#define host_get_property flb_output_get_property
#define host_log flb_log_print
#ifdef OLD_HOST
enum { OLD = true };
#else
enum { OLD = false };
#define host_get_page flb_output_get_cmt_instance
#define host_log_check flb_output_log_check
#endif

/* Hosts before 4.2.3 allocate no more than this, and do not clear it. */
struct host_def {
    int type;
    int proxy;
    int flags;
    char *name;
    char *description;
};
_Static_assert(sizeof(struct host_def) == 32, "the definition of old hosts has 32 bytes");

/* The API from 2.0.0 on. */
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

/* The header must match the host's layout and its calls. */
#define SAME_PLACE(field)                                                                         \
    _Static_assert(offsetof(struct flb_plugin_proxy_def, field) == offsetof(struct host_def, field), \
                   #field " has another offset in the host")
_Static_assert(sizeof(struct flb_plugin_proxy_def) == sizeof(struct host_def), "larger than what old hosts allocate");
SAME_PLACE(type);
SAME_PLACE(proxy);
SAME_PLACE(flags);
SAME_PLACE(name);
SAME_PLACE(description);
#define SAME_TYPE(function, type)                                               \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&function), type),   \
                   #function " is declared with another type than the host's")
SAME_TYPE(FLBPluginPreRegister, int (*)(int));
SAME_TYPE(FLBPluginRegister, int (*)(struct flb_plugin_proxy_def *));
SAME_TYPE(FLBPluginUnregister, void (*)(struct flb_plugin_proxy_def *));
SAME_TYPE(FLBPluginInit, int (*)(struct flbgo_output_plugin *));
SAME_TYPE(FLBPluginFlush, int (*)(const void *, int, const char *));
SAME_TYPE(FLBPluginFlushCtx, int (*)(void *, const void *, int, const char *));
SAME_TYPE(FLBPluginOutputPreExit, void (*)(int));
SAME_TYPE(FLBPluginExitCtx, int (*)(void *));
SAME_TYPE(FLBPluginExit, int (*)(void));

/* ---- Failures. ---- */

#define CHECK(condition, ...) ((condition) ? (void) 0 : fail(__LINE__, __VA_ARGS__))

__attribute__((format(printf, 2, 3), noreturn))
static void fail(int line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "host.c:%d: ", line);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1);
}

/* ---- Memory that ends exactly at a guard page. ---- */

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

/* Read-only memory, for data that the library may read but not write. */
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

/* ---- The functions that the library may call. ---- */

static char **properties;
static int property_count;
static void *instance;
static atomic_int errors_logged;
/* With many reloads only unexpected errors are printed. */
static atomic_bool quiet;
static atomic_bool refusal_expected;

const char *host_get_property(const char *key, void *asked);
const char *host_get_property(const char *key, void *asked)
{
    CHECK(asked == instance, "a property of another instance was requested");
    for (int i = 0; i < property_count; i++) {
        size_t length = strcspn(properties[i], "=");
        if (strncasecmp(properties[i], key, length) == 0 && key[length] == '\0') {
            return properties[i] + length + 1;
        }
    }
    return NULL;
}

/* ---- The metrics page: the functions of cmetrics that the library looks up by name. ---- */

enum { METRICS_MAX = 64, VALUES_MAX = 32, LABELS_MAX = 2, BOUNDS_MAX = 32, WORD_MAX = 64 };
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

/* Metrics may be created in Init only, and set from then until the end of the exit. */
static atomic_bool page_in_init;
static atomic_bool page_is_open;
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
    CHECK(asked == instance, "metrics of another instance were requested");
    return metrics;
}

const char *flb_output_name(void *asked)
{
    CHECK(asked == instance, "the name of another instance was requested");
    return output_name;
}

static void *create(enum kind kind, void *page, const char *space, const char *subsystem, const char *name,
                    const char *help, int count, char **keys)
{
    CHECK(atomic_load(&page_in_init), "%s was created outside of Init", name);
    CHECK(page == metrics, "%s was created on another page", name);
    CHECK(strcmp(space, "ferry") == 0 && *subsystem == '\0' && *help != '\0', "%s has a wrong namespace or no help", name);
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
    return create(COUNTER, page, space, subsystem, name, help, count, keys);
}

void *cmt_gauge_create(void *page, char *space, char *subsystem, char *name, char *help, int count, char **keys)
{
    return create(GAUGE, page, space, subsystem, name, help, count, keys);
}

void *cmt_histogram_buckets_create_size(double *bounds, size_t count)
{
    CHECK(count > 0 && count <= BOUNDS_MAX, "a histogram of %zu buckets", count);
    struct bounds *made = malloc(sizeof *made);
    CHECK(made != NULL, "no memory for buckets");
    made->count = count;
    memcpy(made->bounds, bounds, count * sizeof *bounds);
    for (size_t i = 1; i < count; i++) {
        CHECK(made->bounds[i - 1] < made->bounds[i], "buckets are not sorted");
    }
    return made;
}

void *cmt_histogram_create(void *page, char *space, char *subsystem, char *name, char *help, void *bounds, int count,
                           char **keys)
{
    struct metric *metric = create(HISTOGRAM, page, space, subsystem, name, help, count, keys);
    metric->bounds = bounds;
    return metric;
}

static double *value_of(void *handle, enum kind kind, uint64_t time, int count, char **labels)
{
    struct metric *metric = handle;
    CHECK(metric >= metrics && metric < metrics + metric_count, "a metric that was not created is set");
    CHECK(atomic_load(&page_is_open), "%s is set after the exit", metric->name);
    CHECK(metric->kind == kind && metric->labels == count, "%s is set as another type", metric->name);
    CHECK(time > 1600000000ull * 1000000000ull, "%s is set with a wrong time", metric->name);
    CHECK(strcmp(labels[0], output_name) == 0, "%s is set for %s", metric->name, labels[0]);
    for (int i = 0; i < metric->value_count; i++) {
        if (count == 1 || strcmp(labels[1], metric->values[i].labels[1]) == 0) {
            return &metric->values[i].value;
        }
    }
    CHECK(atomic_load(&page_in_init), "%s gets another label value after Init", metric->name);
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
    CHECK(value >= *now, "a counter decreases from %f to %f", *now, value);
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
    /* Like cmetrics: one count more than there are bounds. */
    for (size_t i = 1; i <= last; i++) {
        CHECK(up_to[i - 1] <= up_to[i], "a histogram decreases at bucket %zu", i);
    }
    CHECK(up_to[last] == all && sum >= 0, "a histogram of %llu counts %llu", (unsigned long long) up_to[last],
          (unsigned long long) all);
    *now = (double) all;
    return 0;
}

static double value(const char *name, const char *label)
{
    for (int i = 0; i < metric_count; i++) {
        struct metric *metric = &metrics[i];
        for (int j = 0; strcmp(metric->name, name) == 0 && j < metric->value_count; j++) {
            if (label == NULL || strcmp(metric->values[j].labels[1], label) == 0) {
                return metric->values[j].value;
            }
        }
    }
    fail(__LINE__, "no value %s of %s", label != NULL ? label : "at all", name);
}

static void page_opens(void)
{
    metric_count = 0;
    atomic_store(&page_in_init, true);
    atomic_store(&page_is_open, true);
}

static void page_closes(int accepted, int refused)
{
    atomic_store(&page_is_open, false);
    if (OLD) {
        return;
    }
    CHECK(value("flushes_total", "ok") == accepted, "%d accepted flushes are counted as %f", accepted,
          value("flushes_total", "ok"));
    CHECK(value("flushes_total", "retry") == refused, "%d refused flushes are counted as %f", refused,
          value("flushes_total", "retry"));
    CHECK(refused > 0 || value("requests_total", "ok") == value("request_duration_seconds", NULL),
          "not all requests are timed");
    CHECK(value("requests_in_flight", NULL) == 0, "requests are in flight after the exit");
    for (int i = 0; i < metric_count; i++) {
        free(metrics[i].bounds);
    }
}

int host_log_check(void *asked, int level);
int host_log_check(void *asked, int level)
{
    CHECK(asked == instance, "the log level of another instance was requested");
    return level <= LEVEL_INFO;
}

__attribute__((format(printf, 4, 5)))
void host_log(int level, const char *file, int line, const char *format, ...);
void host_log(int level, const char *file, int line, const char *format, ...)
{
    (void) file;
    (void) line;
    /* host_log_check enables these levels only; an old host cannot be asked. */
    CHECK(level >= LEVEL_ERROR && level <= LEVEL_INFO, "a line of level %d was logged", level);
    CHECK(strcmp(format, "%s") == 0, "log_print was given the format '%s'", format);
    va_list line_alone;
    va_start(line_alone, format);
    for (const char *at = va_arg(line_alone, const char *); *at != '\0'; at++) {
        CHECK((unsigned char) *at >= ' ' && *at != 0x7f, "a line contains the control character %d", *at);
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
    fail(__LINE__, "an output requested the property %s of an input", key);
}

static void *not_for_outputs_cmt(void *asked)
{
    (void) asked;
    fail(__LINE__, "an output requested the metrics of an input");
}

static int not_for_outputs_check(void *asked, int level)
{
    (void) asked;
    fail(__LINE__, "an output requested the log level (%d) of an input", level);
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
/* The functions that this host has, before a guard page. */
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

/* A joined thread disappears from /proc a moment after the join. */
static void wait_for_threads(int expected)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (int ms = 0; entries("/proc/self/task") > expected; ms++) {
        CHECK(ms < THREADS_GONE_WITHIN_MS, "threads of the library are running after the last exit");
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

/* ---- The rounds. ---- */

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
    /* ISO C has no cast from an object pointer to a function pointer. */
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
    /* Old hosts call this once for each output. */
    library->unregister(library->def.bytes);
    library->unregister(library->def.bytes);
    fence_gone(library->def);
    CHECK(dlclose(library->image) == 0, "dlclose: %s", dlerror());
}

/* With a context like current hosts, or without like older ones. */
static void flush_lent(const struct library *library, void *context, const struct chunk *chunk)
{
    struct fence data = fence_lent(chunk->data, chunk->size);
    struct fence tag = fence_lent(chunk->tag, strlen(chunk->tag) + 1);
    int answer = context != NULL ? library->flush_ctx(context, data.bytes, (int) chunk->size, tag.bytes)
                                 : library->flush(data.bytes, (int) chunk->size, tag.bytes);
    CHECK(answer == ANSWER_OK, "chunk %s was answered %d", chunk->tag, answer);
    /* Unmapped: a thread that still reads them faults. */
    fence_gone(data);
    fence_gone(tag);
}

/* Invalid arguments, which a host does not pass: a crash would end every other pipeline too. */
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
    CHECK(library->init((void *) plugin) <= 0, "an instance started with an unknown destination");
    CHECK(atomic_load(&errors_logged) > errors, "an instance did not log why it does not start");
    CHECK(library->init(NULL) <= 0, "an instance started without a plugin");
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
    CHECK(OLD == (metric_count == 0), "the instance has %d metrics", metric_count);
    CHECK(context.remote_context != NULL, "the instance set no context");
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

static void stop(const struct library *library, void *context, bool hot_reload, int accepted, int refused)
{
    if (!OLD) {
        library->pre_exit(hot_reload);
    }
    CHECK(library->exit_ctx(context) == 1, "FLBPluginExitCtx failed");
    page_closes(accepted, refused);
    CHECK(library->exit_ctx(context) != 1, "an instance was stopped twice");
    CHECK(library->exit_ctx(NULL) != 1, "a null context was stopped");
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
    printf("host: %d rounds of %d chunks passed\n", (int) ROUNDS, chunk_count);
}

/* ---- Repeated reloads. ---- */

static long resident_kib(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL, "/proc/self/statm cannot be opened");
    CHECK(fscanf(file, "%*d %ld", &pages) == 1, "/proc/self/statm cannot be read");
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Replaces "endpoint=closed" by the address of a port that is bound, so that no other program uses it, and closed. */
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

/* A record unique to this reload: [[1970-01-01T00:00:01, {}], {"reload": number}]. */
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

/* A second output, with a spool of its own. */
static void *start_second(const struct library *library)
{
    static char folder[4096];
    for (int i = 0; i < property_count; i++) {
        if (strncmp(properties[i], "spool_dir=", strlen("spool_dir=")) == 0) {
            char *given = properties[i];
            snprintf(folder, sizeof folder, "%s-second", given);
            properties[i] = folder;
            void *context = start(library);
            properties[i] = given;
            return context;
        }
    }
    return start(library);
}

/* Two outputs in a host like Fluent Bit 1.9, which keeps only the context of the output that it started last, and stops
 * no other. The chunks of the first one must be delivered all the same. */
static void two_outputs(const char *path)
{
    int threads = entries("/proc/self/task");
    struct library library = load(path, false);
    void *first = start(&library);
    flush_number(&library, first, 1, ANSWER_OK);
    void *second = start_second(&library);
    CHECK(library.exit_ctx(second) == 1, "FLBPluginExitCtx failed");
    wait_for_threads(threads);
    CHECK(library.exit_ctx(first) != 1, "an instance was stopped twice");
    unload(&library);
    printf("host: two outputs passed\n");
}

static void reload_repeatedly(const char *path, int reloads)
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
        int accepted = 0;
        int refused = 0;
        if (!closed) {
            flush_lent(&library, context, &chunks[round % chunk_count]);
            flush_number(&library, context, (uint32_t) round, ANSWER_OK);
            accepted = 2;
        } else if (round % RELOADS_A_REFUSED_FLUSH == 1) {
            flush_number(&library, context, (uint32_t) round, ANSWER_RETRY);
            refused = 1;
        }
        struct library next = load(path, true);
        stop(&library, context, true, accepted, refused);
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
        CHECK(reloads >= 10, "--reloads %s is not a number of at least 10", given[1]);
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
    /* The library may pass this pointer on, not dereference it. */
    struct fence opaque = fence_around(0);
    instance = opaque.bytes;
    size_t api_size = OLD ? sizeof functions.output_get_property : sizeof functions;
    api = fence_lent(&functions, api_size);
    alarm((unsigned) (WATCHDOG_SECONDS + 3 * reloads));

    if (reloads > 0) {
        reload_repeatedly(given[0], reloads);
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
