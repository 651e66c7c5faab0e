//! Compiles the one function that Rust cannot define: a C variadic for the host's log.

fn main() {
    println!("cargo::rerun-if-changed=src/shim.c");
    cc::Build::new()
        .file("src/shim.c")
        .warnings_into_errors(true)
        .compile("ferry_harness_shim");
}
