//! The host's functions for one output, made safe.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use super::abi::flb_api;
use super::metrics_page::GetPage;
use super::symbols::{function, symbol};
use crate::config::Properties;
use crate::log::{Level, Output};

/// `flb_log_print`: level, file, line, format.
type LogPrint = unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, ...);

/// The warning at the start in a host older than 2.0. Both crashes were observed in 1.9.10, and occur with any plugin.
pub(super) const OLD: &str = "this Fluent Bit is older than 2.0: remove Workers from [OUTPUT], since with them it crashes \
     when stopped while a flush waits, and use one ferry output, since with several it crashes at its end; find the \
     metrics in the log, or set metrics_listen";

/// Whether the host is older than 2.0, where `flb_api` has only one function. The struct does not show it, but the
/// executable's exports do: every version exports that function, and `flb_output_log_check` since 2.0.0. A process that
/// exports neither embeds the host, which is assumed to be current.
pub(super) fn is_old() -> bool {
    !symbol(c"flb_output_get_property").is_null() && symbol(c"flb_output_log_check").is_null()
}

/// The host's functions for one output. Used from its Init until its Exit.
#[derive(Clone, Copy)]
pub(super) struct Host {
    get_property: unsafe extern "C" fn(*const c_char, *mut c_void) -> *const c_char,
    log_print: LogPrint,
    log_check: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
    get_page: Option<GetPage>,
    output: *mut c_void,
}

// SAFETY: the host's log_print and output_log_check may be called from any thread, and `output` is only
// passed back to them; properties are read from Init, on the host's own thread.
unsafe impl Send for Host {}
// SAFETY: as above; it is immutable.
unsafe impl Sync for Host {}

impl Host {
    /// Returns `None` if the host lacks a function that every host has.
    ///
    /// # Safety
    /// `api` is null or valid for reads up to its length in this process's host; its functions and `output` are valid as
    /// long as this is used.
    pub(super) unsafe fn new(api: *const flb_api, output: *mut c_void) -> Option<Host> {
        if api.is_null() {
            return None;
        }
        if is_old() {
            // SAFETY: not null, and the first field is there in every host; no reference to the rest is made.
            let get_property = unsafe { (*api).output_get_property };
            return Some(Host {
                get_property: get_property?,
                // SAFETY: Fluent Bit declares it so (flb_log.h), in every version.
                log_print: unsafe { function::<LogPrint>(c"flb_log_print") }?,
                log_check: None,
                get_page: None,
                output,
            });
        }
        // SAFETY: not null, and of full length in this host, valid for reads by this function's contract.
        let api = unsafe { api.as_ref() }?;
        Some(Host {
            get_property: api.output_get_property?,
            log_print: api.log_print?,
            log_check: api.output_log_check,
            get_page: api.output_get_cmt_instance,
            output,
        })
    }

    /// The host's function for this output's metrics page; not valid in a host without metrics.
    pub(super) fn get_page(&self) -> Option<GetPage> {
        self.get_page
    }
}

impl Host {
    /// The host's C string for a key, or null if it is not set.
    fn property(&self, key: &str) -> *const c_char {
        let Ok(key) = CString::new(key) else {
            return ptr::null();
        };
        // SAFETY: a C string and the host's own pointer, as the function requires.
        unsafe { (self.get_property)(key.as_ptr(), self.output) }
    }
}

impl Properties for Host {
    fn get(&self, key: &str) -> Option<String> {
        let value = self.property(key);
        if value.is_null() {
            return None;
        }
        // SAFETY: a C string of the host's that lives as long as the output; copied at once.
        let value = unsafe { CStr::from_ptr(value) };
        Some(value.to_string_lossy().into_owned())
    }

    fn is_set(&self, key: &str) -> bool {
        !self.property(key).is_null()
    }
}

impl Output for Host {
    fn enabled(&self, level: Level) -> bool {
        let Some(check) = self.log_check else {
            return level <= Level::Info;
        };
        // SAFETY: the host's own pointer, and a level it knows.
        unsafe { check(self.output, level as c_int) != 0 }
    }

    fn write(&self, level: Level, line: &str) {
        // Lines quote external text (tags, responses), which must not start a line of its own.
        let line: Vec<u8> = line
            .bytes()
            .map(|byte| if byte.is_ascii_control() { b' ' } else { byte })
            .collect();
        let Ok(line) = CString::new(line) else { return };
        // SAFETY: the format takes one C string, which lives through the call; so does the file's name.
        unsafe {
            (self.log_print)(
                level as c_int,
                c"ferry".as_ptr(),
                0,
                c"%s".as_ptr(),
                line.as_ptr(),
            )
        };
    }
}
