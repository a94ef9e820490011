//! Puts the compiled eBPF programs where `include_bytes_aligned!` finds them:
//! `$OUT_DIR/flatline-ebpf.o`.
//!
//! They are not compiled here: they need another toolchain than the daemon, which `cargo xtask
//! build-ebpf` chooses. `FLATLINE_EBPF_OBJECT` names an object that was built elsewhere.

use std::path::PathBuf;

const OBJECT: &str = "FLATLINE_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    if let Err(error) = copy_object() {
        println!("cargo::error={error}");
    }
}

fn copy_object() -> Result<(), String> {
    let variable = |name| std::env::var_os(name).ok_or(format!("cargo did not set {name}"));
    let given = std::env::var_os(OBJECT).map(PathBuf::from);
    let built =
        PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../target/ebpf/flatline-ebpf.o");
    let object = given.as_ref().unwrap_or(&built);
    // Cargo comes back also for a file that isn't there yet.
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.exists() {
        return Err(match &given {
            Some(path) => format!("{OBJECT} names {}, which does not exist", path.display()),
            None => "the eBPF object is not built yet: run `cargo xtask build-ebpf`".to_owned(),
        });
    }
    let copy = PathBuf::from(variable("OUT_DIR")?).join("flatline-ebpf.o");
    std::fs::copy(object, &copy)
        .map(|_| ())
        .map_err(|error| format!("could not copy {} into OUT_DIR: {error}", object.display()))
}
