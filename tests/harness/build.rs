//! Compiles what Rust cannot define, a C variadic for the host's log, and exports what the host's executable does.

fn main() {
    println!("cargo::rerun-if-changed=src/shim.c");
    cc::Build::new()
        .file("src/shim.c")
        .warnings_into_errors(true)
        .compile("ferry_harness_shim");
    println!("cargo::rerun-if-changed=src/exports.list");
    let exports = std::path::absolute("src/exports.list").expect("the package has a folder");
    println!(
        "cargo::rustc-link-arg-bins=-Wl,--dynamic-list={}",
        exports.display()
    );
}
