//! The fuzz targets of this crate, library functions so that a test can replay their corpora: `fuzz/` calls them under
//! libFuzzer. Each takes any bytes, and panics if something does not hold.
//!
//! What concerns one room's private parts stands in that room.

mod bytes;
mod config;
mod idmap;
mod protocol;
mod state;

pub use crate::cgroup::fuzz::cgroup;
pub use crate::rootfs::fuzz::{mount_options, resolver};
pub use config::config;
pub use idmap::idmap;
pub use protocol::protocol;
pub use state::state;

pub(crate) use bytes::Bytes;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A directory of this process's, made when it is first asked for: the rooms that work with files do so below it.
pub(crate) fn scratch() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("proa-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory below the temporary one");
        dir.canonicalize().expect("it was just made")
    })
}

#[cfg(test)]
mod tests {
    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 7] = [
        ("config", super::config),
        ("state", super::state),
        ("protocol", super::protocol),
        ("idmap", super::idmap),
        ("resolver", super::resolver),
        ("cgroup", super::cgroup),
        ("mount_options", super::mount_options),
    ];

    #[test]
    fn the_corpora_are_replayed() {
        let corpora = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
        for (name, target) in TARGETS {
            let mut count = 0;
            for entry in std::fs::read_dir(format!("{corpora}/{name}")).unwrap() {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
        std::fs::remove_dir_all(super::scratch()).unwrap();
    }
}
