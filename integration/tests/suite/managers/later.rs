//! Managers of a later suite of Debian in the place of the system's: `scripts/setup-managers` unpacks them.

use std::path::{Path, PathBuf};

use proa_integration::Ctx;

/// Whose programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The distribution's.
    System,
    /// The later suite's.
    Newer,
}

impl Release {
    /// Its `/usr`, if that is not the machine's.
    pub fn usr(self) -> Option<PathBuf> {
        let usr = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/managers/current/usr");
        let found = || {
            usr.canonicalize()
                .unwrap_or_else(|e| panic!("{}: {e}: run scripts/setup-managers", usr.display()))
        };
        (self == Release::Newer).then(found)
    }

    /// Makes its programs what the test, and everything that it starts, finds in `/usr`: with their own libraries, their own
    /// configuration, and under their own names, by which some of them call each other and themselves.
    pub fn enter(self, ctx: &Ctx) {
        let Some(usr) = self.usr() else { return };
        let layers = format!("lowerdir={}:/usr", usr.display());
        ctx.host_mount(&["-t", "overlay", "-o", &layers, "overlay"], Path::new("/usr"));
    }
}
