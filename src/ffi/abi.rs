//! The host's structs, as far as every version of the host has them.

#![allow(non_camel_case_types, reason = "these are the host's names")]

use std::ffi::{c_char, c_int, c_void};

/// The chunk was not taken, and the host drops it. Ferry never answers a flush so.
pub const FLB_ERROR: c_int = 0;
/// Done.
pub const FLB_OK: c_int = 1;
/// The chunk was not taken; the host hands it over again.
pub const FLB_RETRY: c_int = 2;

/// An output …
const OUTPUT_PLUGIN: c_int = 2;
/// … that speaks the interface made for Go.
const PROXY_GOLANG: c_int = 11;

/// Who a library is. Newer hosts have further fields behind these, older hosts do not: nothing behind
/// `description` may be touched.
#[repr(C)]
pub struct flb_plugin_proxy_def {
    /// 2: an output.
    pub r#type: c_int,
    /// 11: made for Go.
    pub proxy: c_int,
    /// None are known.
    pub flags: c_int,
    /// `Name` in the configuration; older hosts keep the pointer.
    pub name: *const c_char,
    /// For people; the host keeps the pointer.
    pub description: *const c_char,
}

pub(super) fn definition() -> flb_plugin_proxy_def {
    flb_plugin_proxy_def {
        r#type: OUTPUT_PLUGIN,
        proxy: PROXY_GOLANG,
        flags: 0,
        name: c"ferry".as_ptr(),
        description: c"Ferry: logs to Amazon Data Firehose and blob stores, nothing lost".as_ptr(),
    }
}

/// What the host passes to Init. One for all outputs of a library: copy what is needed.
#[repr(C)]
pub struct flbgo_output_plugin {
    /// The library's name.
    pub name: *mut c_char,
    /// The host's functions.
    pub api: *const flb_api,
    /// The host's side of this output.
    pub o_ins: *mut c_void,
    /// Where our side of it goes.
    pub context: *mut flb_plugin_proxy_context,
}

/// Holds our side of an output for the host.
#[repr(C)]
pub struct flb_plugin_proxy_context {
    /// Ours; comes back as the `ctx` of flush and exit.
    pub remote_context: *mut c_void,
}

/// The host's functions, as far as Ferry calls them. Newer hosts have more behind these, and up to 1.9.10 the first is
/// all there is.
#[repr(C)]
pub struct flb_api {
    /// The value of a key of this output, or null; the host's to free.
    pub output_get_property:
        Option<unsafe extern "C" fn(*const c_char, *mut c_void) -> *const c_char>,
    /// Not for outputs.
    pub input_get_property:
        Option<unsafe extern "C" fn(*const c_char, *mut c_void) -> *const c_char>,
    /// This output's metrics.
    pub output_get_cmt_instance: Option<unsafe extern "C" fn(*mut c_void) -> *mut c_void>,
    /// Not for outputs.
    pub input_get_cmt_instance: Option<unsafe extern "C" fn(*mut c_void) -> *mut c_void>,
    /// Logs as printf does.
    pub log_print: Option<unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, ...)>,
    /// Not for outputs.
    pub input_log_check: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
    /// Whether this output's lines of a level are wanted.
    pub output_log_check: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
}

// What the oldest host allocates for a def.
const _: () = assert!(size_of::<flb_plugin_proxy_def>() == 32);
