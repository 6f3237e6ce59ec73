//! `proa state`, and what `list` shares with it.

use super::{Error, Globals, print_json};
use crate::state::{Container, Status};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// A container as runc prints it, its fields in runc's order.
#[derive(Debug, Serialize)]
pub(super) struct View<'a> {
    #[serde(rename = "ociVersion")]
    oci_version: &'a str,
    pub id: &'a str,
    pub pid: i32,
    pub status: Status,
    pub bundle: &'a Path,
    rootfs: &'a Path,
    pub created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, Cow<'a, str>>,
    pub owner: String,
}

impl<'a> View<'a> {
    /// `owner` is empty for `state`.
    pub fn new(container: &'a Container, owner: String) -> Self {
        let record = &container.record;
        let status = container.status();
        let annotations = record.annotations.iter();
        let mut annotations: BTreeMap<_, _> = annotations
            .map(|(key, value)| (key.as_str(), Cow::Borrowed(value.as_str())))
            .collect();
        if status == Status::Stopped {
            match container.ending() {
                Ok(Some(ending)) => {
                    let ending = ending.annotations().into_iter();
                    annotations.extend(ending.map(|(key, value)| (key, Cow::Owned(value))));
                }
                Ok(None) => {}
                // The state is asked for all the same.
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Self {
            oci_version: &record.oci_version,
            id: &record.id,
            pid: if status == Status::Stopped { 0 } else { record.pid },
            status,
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations,
            owner,
        }
    }
}

pub(super) fn run(globals: &Globals, args: liboci_cli::State) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?;
    let view = View::new(&container, String::new());
    print_json(&serde_json::to_vec_pretty(&view).map_err(|error| Error::Stdout(error.into()))?)
}
