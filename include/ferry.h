/* The entry points of out_ferry.so, as Fluent Bit looks them up by name.
 * Generated from src/ffi by `make header`; do not edit. */

#ifndef FERRY_H
#define FERRY_H

// The chunk was not taken, and the host drops it. Ferry never answers a flush so.
#define FLB_ERROR 0

// Done.
#define FLB_OK 1

// The chunk was not taken; the host hands it over again.
#define FLB_RETRY 2

// Who a library is. Newer hosts have further fields behind these, older hosts do not: nothing behind
// `description` may be touched.
struct flb_plugin_proxy_def {
    // 2: an output.
    int type;
    // 11: made for Go.
    int proxy;
    // None are known.
    int flags;
    // `Name` in the configuration; older hosts keep the pointer.
    const char *name;
    // For people; the host keeps the pointer.
    const char *description;
};

// The host's functions, as far as Ferry calls them. Newer hosts have more behind these, and up to 1.9.10 the first is
// all there is.
struct flb_api {
    // The value of a key of this output, or null; the host's to free.
    const char *(*output_get_property)(const char*, void*);
    // Not for outputs.
    const char *(*input_get_property)(const char*, void*);
    // This output's metrics.
    void *(*output_get_cmt_instance)(void*);
    // Not for outputs.
    void *(*input_get_cmt_instance)(void*);
    // Logs as printf does.
    void (*log_print)(int, const char*, int, const char*, ...);
    // Not for outputs.
    int (*input_log_check)(void*, int);
    // Whether this output's lines of a level are wanted.
    int (*output_log_check)(void*, int);
};

// Holds our side of an output for the host.
struct flb_plugin_proxy_context {
    // Ours; comes back as the `ctx` of flush and exit.
    void *remote_context;
};

// What the host passes to Init. One for all outputs of a library: copy what is needed.
struct flbgo_output_plugin {
    // The library's name.
    char *name;
    // The host's functions.
    const struct flb_api *api;
    // The host's side of this output.
    void *o_ins;
    // Where our side of it goes.
    struct flb_plugin_proxy_context *context;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Called before everything else, once a load and once a hot reload. Nothing is to be done: what was
// loaded before goes on. Returns 0.
int FLBPluginPreRegister(int _hot_reload);

// Tells the host who we are. Returns 0, or -1 where `def` is null.
//
// # Safety
// `def` is null or points to at least the 32 bytes that every host's plugin def begins with.
int FLBPluginRegister(struct flb_plugin_proxy_def *def);

// Called when the host is done with the library. Nothing is owned by `def`.
void FLBPluginUnregister(struct flb_plugin_proxy_def *_def);

// Starts one output. Returns 1, or 0 when it can't run as configured; the host then does not start.
//
// # Safety
// `plugin` is null or what the host passes: it and what it points to are valid for the call, its API and
// its instance until the output's exit.
int FLBPluginInit(struct flbgo_output_plugin *plugin);

// Takes one chunk for the output of `ctx`. Returns 1 when every record is safe, and 2 when the host
// shall hand the chunk over again; never 0, which drops the chunk.
//
// # Safety
// `data` is null or valid for reads of `len` bytes until this returns; `tag` is null or a C string.
int FLBPluginFlushCtx(void *ctx, const void *data, int len, const char *tag);

// Takes one chunk for the only output. Hosts that know contexts use `FLBPluginFlushCtx`. Returns as it
// does; 2 where there is not exactly one output.
//
// # Safety
// As for `FLBPluginFlushCtx`.
int FLBPluginFlush(const void *data, int len, const char *tag);

// Called once before the outputs exit. Their own exits do what is to be done.
void FLBPluginOutputPreExit(int _by_hot_reload);

// Stops the output of `ctx` and joins its threads. Returns 1, or 0 where there is none.
int FLBPluginExitCtx(void *ctx);

// Stops every output. Hosts that know contexts use `FLBPluginExitCtx`. Returns 1.
int FLBPluginExit(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FERRY_H */
