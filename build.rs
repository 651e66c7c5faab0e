//! Link options of the plugin's shared library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A safeguard in addition to joining every thread: dlclose leaves the code mapped, so that a thread that outlives
    // its deadline does not run unmapped code.
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
}
