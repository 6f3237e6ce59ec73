//! What lies below `--root`: a container's record, read back, and asked what the verbs ask that change nothing.

use super::{Bytes, scratch};
use crate::state::{Record, Store, check_id, process};
use serde_json::{Value, json};
use std::path::Path;

/// A `state.json` if it looks like one, else one of ours with some places changed.
pub fn state(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        check_ids(text);
        process::Stat::parse(text);
    }
    let raw = match data.first() {
        Some(b'{') => data.to_vec(),
        _ => {
            let mut record = record();
            Bytes(data).edit(&mut record);
            record.to_string().into_bytes()
        }
    };
    let root = scratch().join("state");
    let dir = root.join("c1");
    std::fs::create_dir_all(&dir).expect("a container's directory");
    std::fs::write(dir.join("state.json"), raw).expect("state.json");
    let container = match Store::new(&root).open("c1") {
        Ok(container) => container,
        Err(error) => return assert!(error.to_string().contains("state.json"), "{error}"),
    };
    container.status();
    // What `state` asks of the cgroup of a container that runs.
    drop(container.cgroup().map(|cgroup| cgroup.is_frozen()));
    let text = serde_json::to_vec(&container.record).expect("a record can be written");
    let again: Record = serde_json::from_slice(&text).expect("and be read");
    assert_eq!(json!(again), json!(container.record));
}

/// An id that is accepted is a name in the store's directory and nothing else.
fn check_ids(text: &str) {
    let store = Store::new("/store");
    match store.dir(text) {
        Ok(dir) => {
            assert!(check_id(text).is_ok());
            assert_eq!(dir.parent(), Some(Path::new("/store")));
            assert_eq!(dir.components().count(), 3);
            assert_ne!(dir, store.cache());
        }
        Err(error) => assert!(check_id(text).is_err(), "{error}"),
    }
}

fn record() -> Value {
    json!({
        "ociVersion": "1.2.0", "id": "c1", "pid": 2147483647, "startTime": 1,
        "creator": {"pid": 2147483647, "startTime": 1, "complete": false},
        "bundle": "/b", "rootfs": "/b/rootfs", "created": "2026-01-01T00:00:00Z", "annotations": {"a": "b"}, "owner": 0,
        "cgroup": {"driver": "cgroupfs", "v1": {"cpu,cpuacct": "/nowhere/a", "freezer": "/nowhere/b"}, "unified": "/nowhere/c",
                   "unit": "u", "rootless": false, "explicit": true},
        "hull": "Native", "terminal": false
    })
}
