//! Link options of the plugin's shared library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A second belt beside joining every thread: the host's dlclose leaves our code mapped, so that a
    // thread that outlived its deadline does not run into nothing.
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
}
