//! The host's side of the Go-proxy ABI: loading a library, and all calls into it, in the host's order and with its
//! fallbacks. It works with any library.
//!
//! A library gets the structures of the *oldest* host with this layout. Its registration is 32 bytes long, not cleared,
//! and ends at an inaccessible page: a library must not touch later fields (`event_type`, `config_map`), which would
//! overwrite the heap of older hosts. The API ends in the same way, where that of 2.0 ended.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use anyhow::{Context, Result, ensure};
use libloading::os::unix::{Library, RTLD_LAZY};

use super::stack::{self, Guarded};
use crate::config::Instance;

/// OK: the plugin has accepted the chunk.
pub(crate) const FLB_OK: c_int = 1;
/// RETRY: the plugin wants the chunk again later.
pub(crate) const FLB_RETRY: c_int = 2;

pub(crate) const LOG_ERROR: c_int = 1;
pub(crate) const LOG_WARN: c_int = 2;
pub(crate) const LOG_INFO: c_int = 3;
pub(crate) const LOG_DEBUG: c_int = 4;

const PROXY_OUTPUT_PLUGIN: c_int = 2;
const PROXY_GOLANG: c_int = 11;
/// `FLB_IO_TLS`: the plugin declares that the host may handle TLS for it.
const IO_TLS: c_int = 2;

/// `struct flb_plugin_proxy_def`, as far as hosts before 4.2 have it.
#[repr(C)]
struct Def {
    kind: c_int,
    proxy: c_int,
    flags: c_int,
    name: *const c_char,
    description: *const c_char,
}

const _: () = assert!(size_of::<Def>() == 32);

type GetProperty = unsafe extern "C" fn(*const c_char, *const c_void) -> *const c_char;
type GetMetrics = extern "C" fn(*const c_void) -> *mut c_void;
type LogCheck = unsafe extern "C" fn(*const c_void, c_int) -> c_int;
type LogPrint = unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, ...);

/// `struct flb_api`, as far as hosts before 4.0.3 have it.
#[repr(C)]
struct Api {
    output_get_property: GetProperty,
    input_get_property: GetProperty,
    output_get_cmt_instance: GetMetrics,
    input_get_cmt_instance: GetMetrics,
    log_print: LogPrint,
    input_log_check: LogCheck,
    output_log_check: LogCheck,
}

const _: () = assert!(size_of::<Api>() == 56);

const API: Api = Api {
    output_get_property,
    input_get_property: no_property,
    output_get_cmt_instance: no_metrics,
    input_get_cmt_instance: no_metrics,
    log_print: ferry_harness_log_print,
    input_log_check: no_log,
    output_log_check,
};

/// `struct flb_plugin_proxy_context`: one per instance, with the plugin's own pointer.
#[repr(C)]
struct ProxyContext {
    remote_context: *mut c_void,
    proxy: *mut c_void,
}

/// `struct flbgo_output_plugin`: one per *library*, rewritten before every Init. A plugin that keeps the pointer sees
/// the last instance's values.
#[repr(C)]
struct GoOutput {
    name: *const c_char,
    api: *const Api,
    o_ins: *const OutputInstance,
    context: *mut ProxyContext,
}

unsafe extern "C" {
    fn ferry_harness_log_print(
        level: c_int,
        file: *const c_char,
        line: c_int,
        format: *const c_char,
        ...
    );
    safe fn ferry_harness_log_mute();

    safe fn ferry_harness_ends(number: c_int);
}

/// Writes a line to the host's log on stderr.
pub(crate) fn log(level: c_int, text: &str) {
    let text = CString::new(text.replace('\0', "?")).unwrap_or_default();
    // SAFETY: the format takes one string, and one nul-terminated string is given.
    unsafe { ferry_harness_log_print(level, ptr::null(), 0, c"%s".as_ptr(), text.as_ptr()) };
}

/// Disables the log, since a daemon's stderr is closed.
pub(crate) fn mute_log() {
    ferry_harness_log_mute();
}

/// Makes the signal that asked the host to end visible to libraries.
pub(crate) fn ends(signal: c_int) {
    ferry_harness_ends(signal);
}

type Register = unsafe extern "C" fn(*mut Def) -> c_int;
type Unregister = unsafe extern "C" fn(*mut Def);
type WithFlag = unsafe extern "C" fn(c_int) -> c_int;
type Init = unsafe extern "C" fn(*mut GoOutput) -> c_int;
type FlushCtx = unsafe extern "C" fn(*mut c_void, *const c_void, usize, *const c_char) -> c_int;
type Flush = unsafe extern "C" fn(*const c_void, usize, *const c_char) -> c_int;
type ExitCtx = unsafe extern "C" fn(*mut c_void) -> c_int;
type Exit = unsafe extern "C" fn() -> c_int;

/// A loaded and registered library.
pub(crate) struct Proxy {
    /// The name by which outputs refer to it.
    pub(crate) name: String,
    /// Its file.
    pub(crate) path: PathBuf,
    flags: c_int,
    def: Guarded,
    _api: Guarded,
    go_name: CString,
    go: Box<GoOutput>,
    init: Init,
    flush_ctx: Option<FlushCtx>,
    flush: Option<Flush>,
    exit_ctx: Option<ExitCtx>,
    exit: Option<Exit>,
    pre_run: Option<WithFlag>,
    pre_exit: Option<WithFlag>,
    unregister: Option<Unregister>,
    image: Library,
}

// SAFETY: the raw pointers are to memory that the proxy owns or to the library's code; the host moves
// a proxy between its threads in the same way, and uses it from one at a time.
unsafe impl Send for Proxy {}

fn symbol<T: Copy>(image: &Library, name: &str) -> Option<T> {
    // SAFETY: `T` is the ABI's type for `name`; that a library honours it is what loading it means.
    unsafe { image.get::<T>(name.as_bytes()) }
        .ok()
        .map(|found| *found)
}

impl Proxy {
    /// Calls dlopen, `FLBPluginPreRegister(hot_reload)` and `FLBPluginRegister`. Returns `None` if the library
    /// declined; the host then continues without it, and does not find the output.
    pub(crate) fn load(path: &Path, hot_reload: bool) -> Result<Option<Self>> {
        let file = path.display();
        let base = path.file_name().unwrap_or_default().to_string_lossy();
        ensure!(
            !base.starts_with("flb-"),
            "{file}: a name that begins with 'flb-' means a native C plugin, which only Fluent Bit can load"
        );
        // SAFETY: running the library's constructors is what the harness is for.
        let image = unsafe { Library::open(Some(path), RTLD_LAZY) }
            .with_context(|| format!("[proxy] error opening plugin {file}"))?;

        if let Some(pre_register) = symbol::<WithFlag>(&image, "FLBPluginPreRegister") {
            // SAFETY: the symbol has the ABI's signature.
            let answer = unsafe { pre_register(c_int::from(hot_reload)) };
            if answer == -1 {
                log(
                    LOG_WARN,
                    &format!("[proxy] {file}: FLBPluginPreRegister declined"),
                );
                return Ok(None);
            }
        }
        let register: Register = symbol(&image, "FLBPluginRegister")
            .with_context(|| format!("{file}: there is no FLBPluginRegister in it"))?;
        let message = format!(
            "{file}: FLBPluginRegister went past `description`: in hosts before 4.2 \
             struct flb_plugin_proxy_def ends there, after 32 bytes\n"
        );
        let memory = Guarded::before_a_guard(size_of::<Def>(), message)?;
        let def = memory.last_bytes(size_of::<Def>()).cast::<Def>();
        // SAFETY: `def` is writable and has this length.
        unsafe { def.write_bytes(0xa5, 1) };
        // SAFETY: `def` is writable and as long as the library may assume.
        let answer = unsafe { register(def) };
        if answer == -1 {
            log(
                LOG_WARN,
                &format!("[proxy] {file}: FLBPluginRegister declined"),
            );
            return Ok(None);
        }
        // SAFETY: the registration is over; nobody else holds the definition.
        let def = unsafe { &*def };
        ensure!(
            def.proxy == PROXY_GOLANG && def.kind == PROXY_OUTPUT_PLUGIN,
            "{file}: it registered type {} and proxy {}; an output of a Go proxy is type \
             {PROXY_OUTPUT_PLUGIN} and proxy {PROXY_GOLANG}",
            def.kind,
            def.proxy
        );
        ensure!(!def.name.is_null(), "{file}: it registered without a name");
        // SAFETY: not null, and the ABI makes it a nul-terminated string.
        let go_name = unsafe { CStr::from_ptr(def.name) }.to_owned();

        let init: Init = symbol(&image, "FLBPluginInit")
            .with_context(|| format!("{file}: there is no FLBPluginInit in it"))?;
        let flush_ctx = symbol(&image, "FLBPluginFlushCtx");
        let flush = symbol(&image, "FLBPluginFlush");
        ensure!(
            flush_ctx.is_some() || flush.is_some(),
            "{file}: there is neither FLBPluginFlushCtx nor FLBPluginFlush in it"
        );
        let message = format!(
            "{file}: it read past `output_log_check`: in hosts before 4.0.3 struct flb_api ends there, after 56 bytes\n"
        );
        let api_memory = Guarded::before_a_guard(size_of::<Api>(), message)?;
        let api = api_memory.last_bytes(size_of::<Api>()).cast::<Api>();
        // SAFETY: writable and as long as an `Api`; aligned, since a page is and 56 is a multiple of 8.
        unsafe { api.write(API) };
        let go = Box::new(GoOutput {
            name: go_name.as_ptr(),
            api,
            o_ins: ptr::null(),
            context: ptr::null_mut(),
        });
        Ok(Some(Self {
            name: go_name.to_string_lossy().into_owned(),
            path: path.to_owned(),
            flags: def.flags,
            def: memory,
            _api: api_memory,
            go_name,
            go,
            init,
            flush_ctx,
            flush,
            exit_ctx: symbol(&image, "FLBPluginExitCtx"),
            exit: symbol(&image, "FLBPluginExit"),
            pre_run: symbol(&image, "FLBPluginOutputPreRun"),
            pre_exit: symbol(&image, "FLBPluginOutputPreExit"),
            unregister: symbol(&image, "FLBPluginUnregister"),
            image,
        }))
    }

    /// Whether the host would handle TLS for this plugin (`tls on`).
    pub(crate) fn does_tls(&self) -> bool {
        self.flags & IO_TLS != 0
    }

    /// Calls `FLBPluginOutputPreRun`, once per instance, after all of them are initialised.
    pub(crate) fn pre_run(&self, hot_reload: bool) {
        if let Some(pre_run) = self.pre_run {
            // SAFETY: the symbol has the ABI's signature.
            unsafe { pre_run(c_int::from(hot_reload)) };
        }
    }

    /// Calls `FLBPluginUnregister`, frees the definition, and calls dlclose.
    pub(crate) fn unload(self) {
        if let Some(unregister) = self.unregister {
            let def = self.def.last_bytes(size_of::<Def>()).cast();
            // SAFETY: the same definition that the library registered with.
            unsafe { unregister(def) };
        }
        drop(self.def);
        drop(self.go);
        drop(self.go_name);
        // A thread that runs on may fault before dlclose returns.
        stack::libraries_are_unloaded();
        if let Err(error) = self.image.close() {
            log(
                LOG_ERROR,
                &format!("[proxy] {}: {error}", self.path.display()),
            );
        }
    }
}

/// The target of `o_ins`: the properties that a plugin may read, and its log level.
struct OutputInstance {
    properties: Vec<(String, Option<CString>)>,
    log_level: c_int,
}

/// A configured output of a library.
pub(crate) struct Plugin {
    instance: Box<OutputInstance>,
    context: Box<ProxyContext>,
}

// SAFETY: as for `Proxy`; the context is written by Init before any other thread sees it.
unsafe impl Send for Plugin {}

/// The parameters of flushes, copied to the threads that call them.
#[derive(Clone, Copy)]
pub(crate) struct FlushCall {
    with_context: Option<FlushCtx>,
    plain: Option<Flush>,
    remote_context: *mut c_void,
}

// SAFETY: the ABI lets flush be called from any of the host's threads, several at once.
unsafe impl Send for FlushCall {}

impl Plugin {
    /// Creates an instance without initialising it. `log_level` is the instance's or the service's.
    pub(crate) fn new(output: &Instance, log_level: c_int) -> Self {
        let readable = output.properties.iter();
        let readable = readable.filter(|property| !is_known_to_the_host(&property.key));
        let properties = readable
            .map(|property| {
                let value = property.value.as_deref();
                (
                    property.key.clone(),
                    value.and_then(|text| CString::new(text).ok()),
                )
            })
            .collect();
        Self {
            instance: Box::new(OutputInstance {
                properties,
                log_level,
            }),
            context: Box::new(ProxyContext {
                remote_context: ptr::null_mut(),
                proxy: ptr::null_mut(),
            }),
        }
    }

    /// Calls `FLBPluginInit`. Returns whether the plugin returned more than 0.
    pub(crate) fn init(&mut self, proxy: &mut Proxy) -> bool {
        proxy.go.o_ins = &raw const *self.instance;
        proxy.go.context = &raw mut *self.context;
        self.context.proxy = (&raw mut *proxy.go).cast();
        // SAFETY: all pointers in it live as long as this instance does.
        let answer = unsafe { (proxy.init)(&raw mut *proxy.go) };
        answer > 0
    }

    /// Returns the parameters of flushes, valid until the instance exits.
    pub(crate) fn flush_call(&self, proxy: &Proxy) -> FlushCall {
        FlushCall {
            with_context: proxy.flush_ctx,
            plain: proxy.flush,
            remote_context: self.context.remote_context,
        }
    }

    /// Calls `FLBPluginOutputPreExit`, then `FLBPluginExitCtx` or `FLBPluginExit`. If an instance failed, the host also
    /// calls them, with a null context, for those that were never initialised.
    pub(crate) fn exit(self, proxy: &Proxy, by_hot_reload: bool) {
        if let Some(pre_exit) = proxy.pre_exit {
            // SAFETY: the symbol has the ABI's signature.
            unsafe { pre_exit(c_int::from(by_hot_reload)) };
        }
        if let Some(exit) = proxy.exit_ctx {
            // SAFETY: the pointer that the plugin stored, or null.
            unsafe { exit(self.context.remote_context) };
        } else if let Some(exit) = proxy.exit {
            // SAFETY: the symbol has the ABI's signature.
            unsafe { exit() };
        }
    }
}

impl FlushCall {
    /// Flushes a chunk. Returns the plugin's answer as it is.
    pub(crate) fn call(&self, data: &[u8], tag: &CStr) -> c_int {
        let bytes = data.as_ptr().cast();
        match (self.with_context, self.plain) {
            (Some(flush), _) => {
                // SAFETY: `data` and `tag` are borrowed until the call returns.
                unsafe { flush(self.remote_context, bytes, data.len(), tag.as_ptr()) }
            }
            (None, Some(flush)) => {
                // SAFETY: `data` and `tag` are borrowed until the call returns.
                unsafe { flush(bytes, data.len(), tag.as_ptr()) }
            }
            (None, None) => unreachable!("loading refuses a library without a flush"),
        }
    }
}

/// The host's own keys, which a plugin reads as null.
fn is_known_to_the_host(key: &str) -> bool {
    const KEYS: &[&str] = &[
        "name",
        "match",
        "match_regex",
        "alias",
        "log_level",
        "log_suppress_interval",
        "host",
        "port",
        "ipv6",
        "retry_limit",
        "workers",
        "storage.total_limit_size",
        "tls",
        "tls.verify",
        "tls.verify_hostname",
        "tls.debug",
        "tls.vhost",
        "tls.ca_path",
        "tls.ca_file",
        "tls.crt_file",
        "tls.key_file",
        "tls.key_passwd",
        "tls.min_version",
        "tls.max_version",
        "tls.ciphers",
        "tls.proxy.verify",
        "tls.proxy.verify_hostname",
        "tls.proxy.ca_path",
        "tls.proxy.ca_file",
    ];
    let key = key.to_lowercase();
    KEYS.contains(&key.as_str()) || key.starts_with("net.") || key.starts_with("oauth2")
}

unsafe extern "C" fn output_get_property(key: *const c_char, ins: *const c_void) -> *const c_char {
    if key.is_null() || ins.is_null() {
        return ptr::null();
    }
    // SAFETY: `ins` is the `o_ins` that Init was given, which lives until after Exit.
    let instance = unsafe { &*ins.cast::<OutputInstance>() };
    // SAFETY: the ABI makes the key a nul-terminated string.
    let key = unsafe { CStr::from_ptr(key) }.to_bytes();
    let mut properties = instance.properties.iter();
    let found = properties.find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(key));
    match found {
        Some((_, Some(value))) => value.as_ptr(),
        _ => ptr::null(),
    }
}

unsafe extern "C" fn output_log_check(ins: *const c_void, level: c_int) -> c_int {
    if ins.is_null() {
        return 0;
    }
    // SAFETY: `ins` is the `o_ins` that Init was given, which lives until after Exit.
    let instance = unsafe { &*ins.cast::<OutputInstance>() };
    c_int::from(instance.log_level >= level)
}

unsafe extern "C" fn no_property(_: *const c_char, _: *const c_void) -> *const c_char {
    ptr::null()
}

extern "C" fn no_metrics(_: *const c_void) -> *mut c_void {
    ptr::null_mut()
}

unsafe extern "C" fn no_log(_: *const c_void, _: c_int) -> c_int {
    0
}
