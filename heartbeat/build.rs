//! What glibc wants beside it in a static program: musl wants nothing.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        for word in
            ["-Wl,-Bstatic", "-Wl,--start-group", "-lc", "-lgcc", "-lgcc_eh", "-Wl,--end-group"]
        {
            println!("cargo::rustc-link-arg-bins={word}");
        }
    }
}
