//! The host's structs, limited to the fields that every version has.

#![allow(non_camel_case_types, reason = "these are the host's names")]

use std::ffi::{c_char, c_int, c_void};

/// Failure. As the answer to a flush it drops the chunk, so Ferry never returns it there.
pub const FLB_ERROR: c_int = 0;
/// Success.
pub const FLB_OK: c_int = 1;
/// The chunk was not accepted; the host hands it over again.
pub const FLB_RETRY: c_int = 2;

/// `FLB_PROXY_OUTPUT_PLUGIN`.
const OUTPUT_PLUGIN: c_int = 2;
/// `FLB_PROXY_GOLANG`.
const PROXY_GOLANG: c_int = 11;

/// The description of a plugin. Newer hosts have further fields after these, older hosts do not: nothing after
/// `description` may be accessed.
#[repr(C)]
pub struct flb_plugin_proxy_def {
    /// The plugin's type; 2: output.
    pub r#type: c_int,
    /// The proxy interface; 11: Go.
    pub proxy: c_int,
    /// Flags; none are defined.
    pub flags: c_int,
    /// `Name` in the configuration; older hosts keep the pointer.
    pub name: *const c_char,
    /// The description shown to users; the host keeps the pointer.
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

/// The argument of Init. Shared by all outputs of a library, so its fields must be copied.
#[repr(C)]
pub struct flbgo_output_plugin {
    /// The library's name.
    pub name: *mut c_char,
    /// The host's functions.
    pub api: *const flb_api,
    /// The host's instance of this output.
    pub o_ins: *mut c_void,
    /// Receives the plugin's context.
    pub context: *mut flb_plugin_proxy_context,
}

/// The holder of an output's context.
#[repr(C)]
pub struct flb_plugin_proxy_context {
    /// Set by the plugin; passed as the `ctx` of flush and exit.
    pub remote_context: *mut c_void,
}

/// The host's functions, up to the last one that Ferry calls. Newer hosts have more after these; up to 1.9.10 there is only
/// the first.
#[repr(C)]
pub struct flb_api {
    /// Returns the value of a key of this output, or null; owned by the host.
    pub output_get_property:
        Option<unsafe extern "C" fn(*const c_char, *mut c_void) -> *const c_char>,
    /// Not for outputs.
    pub input_get_property:
        Option<unsafe extern "C" fn(*const c_char, *mut c_void) -> *const c_char>,
    /// Returns this output's metrics.
    pub output_get_cmt_instance: Option<unsafe extern "C" fn(*mut c_void) -> *mut c_void>,
    /// Not for outputs.
    pub input_get_cmt_instance: Option<unsafe extern "C" fn(*mut c_void) -> *mut c_void>,
    /// Logs a line, formatted like printf.
    pub log_print: Option<unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, ...)>,
    /// Not for outputs.
    pub input_log_check: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
    /// Returns whether lines of a level are wanted from this output.
    pub output_log_check: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
}

// The oldest host allocates 32 bytes for a def.
const _: () = assert!(size_of::<flb_plugin_proxy_def>() == 32);
