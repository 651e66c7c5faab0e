//! The C interface to Fluent Bit: the exports of its Go-proxy interface.
//!
//! Every export has the same structure: guard against panics with a fallback answer, check the host's arguments, call safe
//! code, map the result. Except for `codec/json/simd.rs` and `compress/zlib.rs`, all unsafe code is below this module, so
//! the allocator is here as well.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::{Arc, Mutex};

pub mod abi;
pub(crate) mod allocator;
mod ending;
mod host;
mod lend;
mod metrics_page;
mod symbols;
mod threads;

use abi::{FLB_ERROR, FLB_OK, FLB_RETRY, flb_plugin_proxy_def, flbgo_output_plugin};

use crate::ids::Verdict;
use crate::log::{Level, Output as _};
use crate::output::Instance;
use host::Host;
use metrics_page::HostMetricsPage;

/// The running outputs. A context passed by the host is looked up here and never dereferenced, so that a wrong one leads to
/// an error and not a crash.
static RUNNING: Mutex<Vec<Arc<Running>>> = Mutex::new(Vec::new());

struct Running {
    instance: Instance,
    engine: threads::ThreadId,
}

impl Running {
    fn context(self: &Arc<Self>) -> *mut c_void {
        Arc::as_ptr(self).cast_mut().cast()
    }
}

/// Runs `body`, and returns `fallback` if it panics.
fn guard<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

thread_local! {
    /// The host of the output that this thread is starting, which is not in `RUNNING` yet.
    static STARTING: Cell<Option<Host>> = const { Cell::new(None) };
}

/// Logs panics to the host's log instead of file descriptor 2: a host that runs as a daemon has closed that one and may use
/// its number for a pipe of its own.
fn log_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            if let Some(host) = STARTING.get() {
                let line = format!("[ferry] a bug in Ferry, please report it: {panic}");
                host.write(Level::Error, &line);
            }
            // No blocking: the panicking thread may hold the lock.
            if let Ok(all) = RUNNING.try_lock() {
                for running in all.iter() {
                    running.instance.log_panic(&panic.to_string());
                }
            }
        }));
    });
}

fn running() -> std::sync::MutexGuard<'static, Vec<Arc<Running>>> {
    RUNNING
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Called first, once for each load and hot reload. Does nothing: running outputs continue. Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginPreRegister(_hot_reload: c_int) -> c_int {
    0
}

/// Describes the plugin to the host. Returns 0, or -1 if `def` is null.
///
/// # Safety
/// `def` is null or points to at least the 32 bytes that every host's plugin def begins with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FLBPluginRegister(def: *mut flb_plugin_proxy_def) -> c_int {
    if def.is_null() {
        return -1;
    }
    // SAFETY: the host allocated at least this prefix, and nothing else uses it yet. Older hosts have not cleared it:
    // all of it is written. Newer ones have further fields after it, cleared to zero, which means "logs" and is right.
    unsafe { def.write(abi::definition()) };
    0
}

/// Called when the host unloads the library. `def` owns nothing.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginUnregister(_def: *mut flb_plugin_proxy_def) {}

/// Starts one output. Returns 1, or 0 if it cannot run as configured; the host then does not start.
///
/// # Safety
/// `plugin` is null or what the host passes: it and what it points to are valid for the call, its API and
/// its instance until the output's exit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FLBPluginInit(plugin: *mut flbgo_output_plugin) -> c_int {
    guard(FLB_ERROR, || {
        // SAFETY: null or valid for reads, by this function's contract.
        let Some(plugin) = (unsafe { plugin.as_ref() }) else {
            return FLB_ERROR;
        };
        // SAFETY: the API and the instance are valid until the output's exit, by this function's contract.
        let Some(host) = (unsafe { Host::new(plugin.api, plugin.o_ins) }) else {
            return FLB_ERROR;
        };
        if plugin.context.is_null() {
            return FLB_ERROR;
        }
        // SAFETY: the instance is valid until the output's exit, by this function's contract, and stopping
        // closes the metrics_page; a failed start drops it.
        let metrics_page = unsafe { HostMetricsPage::new(host.get_page(), plugin.o_ins) };
        log_panics();
        STARTING.set(Some(host));
        let started = catch_unwind(AssertUnwindSafe(|| {
            threads::without_signals(|| {
                let ending = Arc::new(ending::asked_at);
                Instance::start(&host, Box::new(host), Some(Arc::new(metrics_page)), ending)
            })
        }));
        STARTING.set(None);
        let Ok(Some(instance)) = started else {
            return FLB_ERROR;
        };
        if host::is_old() {
            host.write(Level::Warn, &format!("[ferry] {}", host::OLD));
        }
        let instance = Arc::new(Running {
            instance,
            engine: threads::current(),
        });
        // SAFETY: the context is the host's own for this instance, not null, and used by nothing else now.
        unsafe { (*plugin.context).remote_context = instance.context() };
        running().push(instance);
        FLB_OK
    })
}

/// Flushes one chunk to the output of `ctx`. Returns 1 if every record is safe, and 2 if the host must hand the chunk over
/// again; never 0, which drops the chunk.
///
/// # Safety
/// `data` is null or valid for reads of `len` bytes until this returns; `tag` is null or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FLBPluginFlushCtx(
    ctx: *mut c_void,
    data: *const c_void,
    len: c_int,
    tag: *const c_char,
) -> c_int {
    guard(FLB_RETRY, || {
        let found = running()
            .iter()
            .find(|running| running.context() == ctx)
            .cloned();
        // SAFETY: this function's contract is `flush`'s.
        unsafe { flush(found, data, len, tag) }
    })
}

/// Flushes one chunk to the only output. Hosts with contexts use `FLBPluginFlushCtx`. Returns the same values, and 2 if there
/// is not exactly one output.
///
/// # Safety
/// As for `FLBPluginFlushCtx`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn FLBPluginFlush(
    data: *const c_void,
    len: c_int,
    tag: *const c_char,
) -> c_int {
    guard(FLB_RETRY, || {
        let only = match running().as_slice() {
            [only] => Some(Arc::clone(only)),
            _ => None,
        };
        // SAFETY: this function's contract is `flush`'s.
        unsafe { flush(only, data, len, tag) }
    })
}

/// # Safety
/// As for `FLBPluginFlushCtx`.
unsafe fn flush(
    running: Option<Arc<Running>>,
    data: *const c_void,
    len: c_int,
    tag: *const c_char,
) -> c_int {
    let (Some(running), Ok(len)) = (running, usize::try_from(len)) else {
        return FLB_RETRY;
    };
    if len == 0 {
        return FLB_OK;
    }
    if data.is_null() {
        return FLB_RETRY;
    }
    let tag = if tag.is_null() {
        &[]
    } else {
        // SAFETY: a C string that lives until we return, by this function's contract.
        unsafe { CStr::from_ptr(tag) }.to_bytes()
    };
    // SAFETY: valid for reads of `len` bytes until we return, by this function's contract.
    let data: &[u8] = unsafe { slice::from_raw_parts(data.cast(), len) };
    let on_engine_thread = threads::current() == running.engine;
    let verdict = lend::lend(data, |data| {
        running.instance.flush(tag, data, on_engine_thread)
    });
    match verdict {
        Verdict::Ok => FLB_OK,
        Verdict::Retry => FLB_RETRY,
    }
}

/// Called once before the outputs exit. Does nothing: their own exits do the work.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginOutputPreExit(_by_hot_reload: c_int) {}

/// Stops the output of `ctx` and joins its threads. Returns 1, or 0 if there is no such output.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginExitCtx(ctx: *mut c_void) -> c_int {
    guard(FLB_ERROR, || {
        let mut stopping: Vec<Arc<Running>> = running().clone();
        if !stopping.iter().any(|running| running.context() == ctx) {
            return FLB_ERROR;
        }
        // A host older than 2.0 passes only the output that it started last, and never exits the others: all stop here.
        if !host::is_old() {
            stopping.retain(|running| running.context() == ctx);
        }
        // Removed in any case, but only afterwards: a panic is logged by the outputs in the list.
        let mut answer = FLB_OK;
        for one in &stopping {
            if catch_unwind(AssertUnwindSafe(|| one.instance.stop())).is_err() {
                answer = FLB_ERROR;
            }
        }
        running().retain(|running| !stopping.iter().any(|one| Arc::ptr_eq(one, running)));
        answer
    })
}

/// Stops all outputs. Hosts with contexts use `FLBPluginExitCtx`. Returns 1.
#[unsafe(no_mangle)]
pub extern "C" fn FLBPluginExit() -> c_int {
    guard(FLB_ERROR, || {
        let all = std::mem::take(&mut *running());
        for running in all {
            running.instance.stop();
        }
        FLB_OK
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_the_answer_that_loses_nothing() {
        assert_eq!(guard(FLB_RETRY, || panic!("on purpose")), FLB_RETRY);
    }
}
