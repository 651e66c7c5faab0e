/* The entry points of out_ferry.so, as Fluent Bit looks them up by name.
 * Generated from src/ffi by `make header`; do not edit. */

#ifndef FERRY_H
#define FERRY_H

// Failure. As the answer to a flush it drops the chunk, so Ferry never returns it there.
#define FLB_ERROR 0

// Success.
#define FLB_OK 1

// The chunk was not accepted; the host hands it over again.
#define FLB_RETRY 2

// The description of a plugin. Newer hosts have further fields after these, older hosts do not: nothing after
// `description` may be accessed.
struct flb_plugin_proxy_def {
    // The plugin's type; 2: output.
    int type;
    // The proxy interface; 11: Go.
    int proxy;
    // Flags; none are defined.
    int flags;
    // `Name` in the configuration; older hosts keep the pointer.
    const char *name;
    // The description shown to users; the host keeps the pointer.
    const char *description;
};

// The host's functions, up to the last one that Ferry calls. Newer hosts have more after these; up to 1.9.10 there is only
// the first.
struct flb_api {
    // Returns the value of a key of this output, or null; owned by the host.
    const char *(*output_get_property)(const char*, void*);
    // Not for outputs.
    const char *(*input_get_property)(const char*, void*);
    // Returns this output's metrics.
    void *(*output_get_cmt_instance)(void*);
    // Not for outputs.
    void *(*input_get_cmt_instance)(void*);
    // Logs a line, formatted like printf.
    void (*log_print)(int, const char*, int, const char*, ...);
    // Not for outputs.
    int (*input_log_check)(void*, int);
    // Returns whether lines of a level are wanted from this output.
    int (*output_log_check)(void*, int);
};

// The holder of an output's context.
struct flb_plugin_proxy_context {
    // Set by the plugin; passed as the `ctx` of flush and exit.
    void *remote_context;
};

// The argument of Init. Shared by all outputs of a library, so its fields must be copied.
struct flbgo_output_plugin {
    // The library's name.
    char *name;
    // The host's functions.
    const struct flb_api *api;
    // The host's instance of this output.
    void *o_ins;
    // Receives the plugin's context.
    struct flb_plugin_proxy_context *context;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Called first, once for each load and hot reload. Does nothing: running outputs continue. Returns 0.
int FLBPluginPreRegister(int _hot_reload);

// Describes the plugin to the host. Returns 0, or -1 if `def` is null.
//
// # Safety
// `def` is null or points to at least the 32 bytes that every host's plugin def begins with.
int FLBPluginRegister(struct flb_plugin_proxy_def *def);

// Called when the host unloads the library. `def` owns nothing.
void FLBPluginUnregister(struct flb_plugin_proxy_def *_def);

// Starts one output. Returns 1, or 0 if it cannot run as configured; the host then does not start.
//
// # Safety
// `plugin` is null or what the host passes: it and what it points to are valid for the call, its API and
// its instance until the output's exit.
int FLBPluginInit(struct flbgo_output_plugin *plugin);

// Flushes one chunk to the output of `ctx`. Returns 1 if every record is safe, and 2 if the host must hand the chunk over
// again; never 0, which drops the chunk.
//
// # Safety
// `data` is null or valid for reads of `len` bytes until this returns; `tag` is null or a C string.
int FLBPluginFlushCtx(void *ctx, const void *data, int len, const char *tag);

// Flushes one chunk to the only output. Hosts with contexts use `FLBPluginFlushCtx`. Returns the same values, and 2 if there
// is not exactly one output.
//
// # Safety
// As for `FLBPluginFlushCtx`.
int FLBPluginFlush(const void *data, int len, const char *tag);

// Called once before the outputs exit. Does nothing: their own exits do the work.
void FLBPluginOutputPreExit(int _by_hot_reload);

// Stops the output of `ctx` and joins its threads. Returns 1, or 0 if there is no such output.
int FLBPluginExitCtx(void *ctx);

// Stops all outputs. Hosts with contexts use `FLBPluginExitCtx`. Returns 1.
int FLBPluginExit(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FERRY_H */
