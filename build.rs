//! What the linker is to be told beyond what cargo knows.

fn main() {
    // The Wasm hull's own getcwd(3) has to be found by the libraries that it loads: executor/src/wasm/relative.rs.
    println!("cargo:rustc-link-arg-bin=proa-wasmedge=-Wl,--export-dynamic-symbol=getcwd");
    println!("cargo:rerun-if-changed=build.rs");
}
