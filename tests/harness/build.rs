//! Compiles the C variadic function of the host's log, which Rust cannot define, and exports the symbols that the
//! host's executable exports.

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
