//! How a Wasm entrypoint is recognised, from annotations and the name proa was called by.
