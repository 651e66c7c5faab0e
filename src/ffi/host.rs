//! The host's functions for one output, made safe.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use super::abi::flb_api;
use super::board::GetPage;
use crate::config::Properties;
use crate::log::{Level, Output};

/// One output as the host sees it. Used from its Init until its Exit.
#[derive(Clone, Copy)]
pub(super) struct Host {
    get_property: unsafe extern "C" fn(*const c_char, *mut c_void) -> *const c_char,
    log_print: unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, ...),
    log_check: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
    get_page: Option<GetPage>,
    output: *mut c_void,
}

// SAFETY: the host's log_print and output_log_check may be called from any thread, and `output` is only
// passed back to them; properties are read from Init, on the host's own thread.
unsafe impl Send for Host {}
// SAFETY: as above; there is nothing in it that changes.
unsafe impl Sync for Host {}

impl Host {
    /// `None` where the host lacks a function that every host has.
    ///
    /// # Safety
    /// `api` is null or valid for reads; its functions and `output` are valid as long as this is used.
    pub(super) unsafe fn new(api: *const flb_api, output: *mut c_void) -> Option<Host> {
        // SAFETY: null or valid for reads, by this function's contract.
        let api = unsafe { api.as_ref() }?;
        Some(Host {
            get_property: api.output_get_property?,
            log_print: api.log_print?,
            log_check: api.output_log_check,
            get_page: api.output_get_cmt_instance,
            output,
        })
    }

    /// What the host has for the page of this output's figures; not valid in a host without metrics.
    pub(super) fn get_page(&self) -> Option<GetPage> {
        self.get_page
    }
}

impl Properties for Host {
    fn get(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        // SAFETY: a C string and the host's own pointer, as the function wants them.
        let value = unsafe { (self.get_property)(key.as_ptr(), self.output) };
        if value.is_null() {
            return None;
        }
        // SAFETY: a C string of the host's that lives as long as the output; copied at once.
        let value = unsafe { CStr::from_ptr(value) };
        Some(value.to_string_lossy().into_owned())
    }
}

impl Output for Host {
    fn enabled(&self, level: Level) -> bool {
        let Some(check) = self.log_check else {
            return true;
        };
        // SAFETY: the host's own pointer, and a level it knows.
        unsafe { check(self.output, level as c_int) != 0 }
    }

    fn write(&self, level: Level, line: &str) {
        // What others wrote (tags, answers) stands in lines, too: it must not begin one of its own.
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
