//! What the integration tests share: where the built things are, and the emulators.

pub(crate) mod emulators;
pub(crate) mod plugin;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library as Fluent Bit would load it, of the same profile as this test and never older than it:
/// cargo builds it for the test's own sake, into the folder of the test's executable.
pub(crate) fn library() -> PathBuf {
    built(executables().join("libferry.so"))
}

/// The bundled harness, of the same profile as this test.
///
/// # Panics
/// When it is not built: a run of this test alone does not build it.
pub(crate) fn harness() -> PathBuf {
    let folder = executables();
    built(
        folder
            .parent()
            .expect("tests lie in <profile>/deps")
            .join("ferry-harness"),
    )
}

/// The real host, where the person who runs the tests has one: `FLUENT_BIT=/path/to/fluent-bit`.
///
/// # Panics
/// When the variable names no file. A mistyped path must not pass as a skipped test.
pub(crate) fn fluent_bit() -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("FLUENT_BIT").filter(|path| !path.is_empty())?);
    assert!(
        path.is_file(),
        "FLUENT_BIT is {}, which is not a file. Remedy: the full path of a fluent-bit executable, or unset it",
        path.display()
    );
    Some(path)
}

/// `Workers` for an output in a real host, where it can have them: before 2.1.8 Fluent Bit frees its chunks and ends
/// its workers after that, and so crashes when it is stopped while they flush.
pub(crate) fn workers(fluent_bit: &Path, workers: usize) -> String {
    let said = Command::new(fluent_bit).arg("--version").output();
    let said = String::from_utf8(said.expect("the host starts").stdout).expect("text");
    let version = said
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'));
    let version = version.unwrap_or_else(|| panic!("no version in {said}"));
    let numbers: Vec<u32> = version.split('.').map_while(|n| n.parse().ok()).collect();
    match numbers < vec![2, 1, 8] {
        true => String::new(),
        false => format!("    Workers {workers}\n"),
    }
}

/// Sets the TLS implementation that the tests' own HTTP client looks for. Calling it again does nothing.
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
        .expect("an executable lies in a folder")
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
