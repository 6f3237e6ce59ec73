//! Plugins of the engine: native code that a Wasm container's first process loads, with the host's files in sight and every
//! privilege that init has by then. So a plugin has to be the administrator's, and nobody else may be able to put something
//! else in its place: neither the file nor a directory on the way to it.
//!
//! Looked at by the caller's own process, before the container is made: seen from a user namespace, the host's root is
//! nobody.

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, lstat};
use nix::unistd::Uid;
use proa_executor::policy::Policy;
use proa_sys::errno::words;
use std::path::{Path, PathBuf};

/// Why a plugin is not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plugin {plugin}: {problem}", plugin = plugin.display())]
pub struct Error {
    /// The plugin, as the configuration file names it.
    pub plugin: PathBuf,
    /// What is wrong with it or with a directory that it is in.
    pub problem: String,
}

/// Refuses the plugins of `policy` that somebody else than root (or than the caller, who has no more rights than its own)
/// could have written or could exchange, and replaces the others by where they really are.
pub fn resolve(policy: &mut Policy) -> Result<(), Error> {
    for plugin in &mut policy.plugins {
        *plugin = real(plugin).map_err(|problem| Error {
            plugin: plugin.clone(),
            problem,
        })?;
    }
    Ok(())
}

fn real(plugin: &Path) -> Result<PathBuf, String> {
    let real = plugin.canonicalize().map_err(|error| match error.raw_os_error() {
        Some(code) => words(Errno::from_raw(code)),
        None => error.to_string(),
    })?;
    if real.extension().is_none_or(|extension| extension != "so") {
        return Err(format!(
            "{}: the engine loads only files whose names end in .so",
            real.display()
        ));
    }
    for path in real.ancestors() {
        let facts = lstat(path).map_err(|errno| format!("{}: {}", path.display(), words(errno)))?;
        trusted(&facts, path == real).map_err(|problem| format!("{} {problem}", path.display()))?;
    }
    Ok(real)
}

/// Whether nobody but root and the caller can change the plugin (`last`), or what a directory on the way to it has.
fn trusted(facts: &FileStat, last: bool) -> Result<(), &'static str> {
    let kind = SFlag::from_bits_truncate(facts.st_mode & SFlag::S_IFMT.bits());
    let others_write = facts.st_mode & 0o022 != 0;
    // In a directory with the sticky bit nobody removes or renames what is somebody else's.
    let sticky = !last && facts.st_mode & 0o1000 != 0;
    if facts.st_uid != 0 && facts.st_uid != Uid::effective().as_raw() {
        Err("is not owned by root")
    } else if others_write && !sticky {
        Err("can be written to by others than its owner")
    } else if last && kind != SFlag::S_IFREG {
        Err("is not a regular file")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_others_could_have_changed_is_refused() {
        let dir = std::env::temp_dir().join(format!("proa-plugins-{}", std::process::id()));
        let (inner, plugin) = (dir.join("inner"), dir.join("inner/plugin.so"));
        fs::create_dir_all(&inner).unwrap();
        fs::write(&plugin, "").unwrap();
        symlink("inner/plugin.so", dir.join("link.so")).unwrap();
        let mode = |path: &Path, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
        mode(&dir, 0o755);
        mode(&inner, 0o755);
        mode(&plugin, 0o644);
        let asked = |path: &Path| {
            let mut policy = Policy {
                plugins: vec![path.to_owned()],
                ..Policy::default()
            };
            resolve(&mut policy)
                .map(|()| policy.plugins.remove(0))
                .map_err(|error| error.to_string())
        };
        let found = plugin.canonicalize().unwrap();
        assert_eq!(asked(&plugin), Ok(found.clone()));
        assert_eq!(asked(&dir.join("link.so")), Ok(found));
        for (path, bits, words) in [
            (&plugin, 0o664, "can be written to by others"),
            (&inner, 0o777, "can be written to by others"),
        ] {
            mode(path, bits);
            let error = asked(&plugin).unwrap_err();
            assert!(
                error.contains(words) && error.starts_with(&format!("plugin {}: ", plugin.display())),
                "{error}"
            );
            mode(path, if path == &plugin { 0o644 } else { 0o755 });
        }
        // Nobody renames in it, as in /tmp.
        mode(&inner, 0o1777);
        assert!(asked(&plugin).is_ok());
        assert!(
            asked(&dir.join("absent.so"))
                .unwrap_err()
                .contains("no such file or directory")
        );
        fs::create_dir(dir.join("directory.so")).unwrap();
        assert!(
            asked(&dir.join("directory.so"))
                .unwrap_err()
                .contains("is not a regular file")
        );
        assert!(asked(&inner).unwrap_err().contains(".so"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
