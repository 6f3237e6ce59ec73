//! Has the Wasm hull export the calls that its engine is to make through it: `executor/src/wasm/calls.rs`, `opens.rs` and
//! `relative.rs` there.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_ENGINE").is_some() {
        for call in [
            "socket",
            "bind",
            "listen",
            "connect",
            "sendto",
            "sendmsg",
            "sendmmsg",
            "getcwd",
            "open",
            "open64",
            "openat",
            "openat64",
            "mkdirat",
            "unlinkat",
            "renameat",
            "linkat",
            "symlinkat",
        ] {
            println!("cargo:rustc-link-arg-bin=proa-wasmedge=-Wl,--export-dynamic-symbol={call}");
        }
    }
}
