//! Helpers of the integration tests: the paths of built files, and the emulators.

pub(crate) mod emulators;
pub(crate) mod plugin;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library as Fluent Bit would load it, in the profile of this test and never older than it: cargo builds it as the
/// test's dependency, into the folder of the test's executable.
pub(crate) fn library() -> PathBuf {
    built(executables().join("libferry.so"))
}

/// The bundled harness, in the profile of this test.
///
/// # Panics
/// If it is not built: running this test alone does not build it.
pub(crate) fn harness() -> PathBuf {
    let folder = executables();
    built(
        folder
            .parent()
            .expect("tests are in <profile>/deps")
            .join("ferry-harness"),
    )
}

/// The real host, if one is given: `FLUENT_BIT=/path/to/fluent-bit`.
///
/// # Panics
/// If the variable names no file: a mistyped path must not skip the test.
pub(crate) fn fluent_bit() -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("FLUENT_BIT").filter(|path| !path.is_empty())?);
    assert!(
        path.is_file(),
        "FLUENT_BIT is {}, which is not a file. Remedy: the full path of a fluent-bit executable, or unset it",
        path.display()
    );
    Some(path)
}

/// The `Workers` line of an output in a real host, if it supports workers: before 2.1.8 Fluent Bit frees its chunks
/// before it ends its workers, and so crashes when it is stopped while they flush.
pub(crate) fn workers(fluent_bit: &Path, workers: usize) -> String {
    let output = Command::new(fluent_bit).arg("--version").output();
    let output = String::from_utf8(output.expect("the host starts").stdout).expect("text");
    let version = output
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'));
    let version = version.unwrap_or_else(|| panic!("no version in {output}"));
    let numbers: Vec<u32> = version.split('.').map_while(|n| n.parse().ok()).collect();
    match numbers < vec![2, 1, 8] {
        true => String::new(),
        false => format!("    Workers {workers}\n"),
    }
}

/// Installs the TLS implementation for the tests' HTTP client. Idempotent.
pub(crate) fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Debian's user for no purpose, who has no file to lose.
const NOBODY: u32 = 65_534;

/// Has a command run as somebody to whom a file or folder of mode 000 is closed. To root none is.
pub(crate) fn as_a_user(command: &mut Command) -> &mut Command {
    match rustix::process::geteuid().is_root() {
        true => command.uid(NOBODY).gid(NOBODY),
        false => command,
    }
}

fn executables() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own executable");
    test.parent()
        .expect("an executable is in a folder")
        .to_owned()
}

fn built(path: PathBuf) -> PathBuf {
    assert!(
        path.is_file(),
        "{} is not built. Remedy: make test, or cargo test --workspace",
        path.display()
    );
    path
}
