//! Has the Wasm hull export the calls that its engine is to make through it: `executor/src/wasm/calls.rs` and
//! `executor/src/wasm/relative.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_ENGINE").is_some() {
        for call in [
            "socket", "bind", "listen", "connect", "sendto", "sendmsg", "sendmmsg", "getcwd",
        ] {
            println!("cargo:rustc-link-arg-bin=proa-wasmedge=-Wl,--export-dynamic-symbol={call}");
        }
    }
}
