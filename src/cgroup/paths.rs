//! `linux.cgroupsPath`: which cgroup is meant.

use super::Error;
use super::mounts::{Hierarchy, join};
use std::path::{Path, PathBuf};

/// A cgroup's name before it is looked up in the mounted hierarchies (driver `cgroupfs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// From the top of each hierarchy.
    Absolute(String),
    /// From the caller's own cgroup: on v1 below it, on v2 beside it, for it has processes in it and could not enable
    /// controllers for children (the "no internal processes" rule of cgroups(7)).
    Relative(String),
}

impl Place {
    /// Resolves `cgroupsPath` as runc does; without one it is the container's id, relative.
    pub fn new(cgroups_path: Option<&str>, id: &str) -> Self {
        match cgroups_path.filter(|path| !path.is_empty()) {
            Some(path) if path.starts_with('/') => Self::Absolute(clean(path)),
            Some(path) => Self::Relative(clean(path)),
            None => Self::Relative(clean(id)),
        }
    }

    /// Its directory in a v1 hierarchy.
    pub fn in_v1(&self, hierarchy: &Hierarchy) -> PathBuf {
        match self {
            Self::Absolute(path) => join(&hierarchy.mount, path),
            Self::Relative(path) => join(&hierarchy.own_dir(), path),
        }
    }

    /// Its directory in the v2 hierarchy of a host without v1.
    pub fn in_v2(&self, hierarchy: &Hierarchy) -> PathBuf {
        match self {
            Self::Absolute(path) => join(&hierarchy.mount, path),
            Self::Relative(path) => {
                let own = hierarchy.own_dir();
                let beside = own.parent().filter(|parent| parent.starts_with(&hierarchy.mount));
                join(beside.unwrap_or(&hierarchy.mount), path)
            }
        }
    }
}

/// Removes `.`, `..` and empty components as if from `/`: nothing leads above the top. No leading slash.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// `sub` below `base`; `..` may not lead out of it.
pub(super) fn below(base: &Path, sub: &str) -> Result<PathBuf, Error> {
    let mut depth = 0usize;
    for part in sub.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.checked_sub(1).ok_or_else(|| Error::SubCgroup(sub.to_owned()))?,
            _ => depth += 1,
        }
    }
    Ok(join(base, &clean(sub)))
}

/// A systemd unit for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Its full name: `PREFIX-NAME.scope`.
    pub name: String,
    /// The slice it goes into, if config.json names one.
    pub slice: Option<String>,
}

impl Unit {
    /// Parses `slice:prefix:name`; without a path it is `proa-ID.scope` in the default slice.
    pub fn new(cgroups_path: Option<&str>, id: &str) -> Result<Self, Error> {
        let Some(path) = cgroups_path.filter(|path| !path.is_empty()) else {
            return Ok(Self {
                name: unit_name("proa", id),
                slice: None,
            });
        };
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            let problem = format!(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
            );
            return Err(Error::Field {
                field: "linux.cgroupsPath".into(),
                problem,
            });
        };
        let unit = Self {
            name: unit_name(prefix, name),
            slice: (!slice.is_empty()).then(|| slice.to_owned()),
        };
        let refused = |problem: &str| {
            Err(Error::Field {
                field: "linux.cgroupsPath".into(),
                problem: format!("{path:?} {problem}"),
            })
        };
        // systemd puts no process into a slice: the container would stay where its caller is.
        if name.ends_with(".slice") {
            return refused("names a slice, which has no processes of its own");
        }
        if unit.name.contains('/') {
            return refused("does not give a unit name");
        }
        unit.slice.as_deref().map(expand_slice).transpose()?;
        Ok(unit)
    }
}

fn unit_name(prefix: &str, name: &str) -> String {
    format!("{prefix}-{name}.scope")
}

/// The path of a slice's cgroup: `a-b.slice` is `/a.slice/a-b.slice` (systemd.slice(5)).
pub(super) fn expand_slice(slice: &str) -> Result<String, Error> {
    let invalid = || Error::Field {
        field: "linux.cgroupsPath".into(),
        problem: format!("invalid slice name: {slice}"),
    };
    let name = slice
        .strip_suffix(".slice")
        .filter(|name| !name.is_empty() && !name.contains('/'));
    let name = name.ok_or_else(invalid)?;
    if name == "-" {
        return Ok("/".to_owned());
    }
    let (mut path, mut prefix) = (String::new(), String::new());
    for part in name.split('-') {
        if part.is_empty() {
            return Err(invalid());
        }
        path += &format!("/{prefix}{part}.slice");
        prefix += &format!("{part}-");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(own: &str) -> Hierarchy {
        Hierarchy {
            controllers: Vec::new(),
            mount: "/cg".into(),
            root: "/".into(),
            own: own.into(),
        }
    }

    #[test]
    fn places_as_runc() {
        let own = hierarchy("/user/session");
        assert_eq!(Place::new(Some("/a/../b"), "id").in_v1(&own), Path::new("/cg/b"));
        assert_eq!(Place::new(Some("/../../b"), "id").in_v2(&own), Path::new("/cg/b"));
        assert_eq!(
            Place::new(Some("../../b"), "id").in_v1(&own),
            Path::new("/cg/user/session/b")
        );
        assert_eq!(Place::new(None, "id").in_v1(&own), Path::new("/cg/user/session/id"));
        assert_eq!(Place::new(None, "id").in_v2(&own), Path::new("/cg/user/id"));
        assert_eq!(Place::new(Some(""), "id").in_v2(&hierarchy("/")), Path::new("/cg/id"));
    }

    #[test]
    fn sub_cgroups_stay_below() {
        assert_eq!(below(Path::new("/cg/c"), "/a/./b").unwrap(), Path::new("/cg/c/a/b"));
        assert_eq!(below(Path::new("/cg/c"), "/").unwrap(), Path::new("/cg/c"));
        assert!(below(Path::new("/cg/c"), "../d").is_err());
        assert!(below(Path::new("/cg/c"), "a/../../c2").is_err());
    }

    #[test]
    fn units() {
        let unit = Unit::new(Some("system.slice:docker:1234"), "id").unwrap();
        assert_eq!(
            (unit.name.as_str(), unit.slice.as_deref()),
            ("docker-1234.scope", Some("system.slice"))
        );
        assert!(Unit::new(Some(":p:x.slice"), "id").is_err());
        assert_eq!(Unit::new(None, "id").unwrap().name, "proa-id.scope");
        let error = Unit::new(Some("/a/b"), "id").unwrap_err().to_string();
        assert!(error.contains("slice:prefix:name"), "{error}");
        assert!(Unit::new(Some("a/b.slice:p:n"), "id").is_err());
        assert!(Unit::new(Some("a.slice:../p:n"), "id").is_err());
    }

    #[test]
    fn slices() {
        assert_eq!(expand_slice("a-b-c.slice").unwrap(), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(expand_slice("-.slice").unwrap(), "/");
        for bad in [".slice", "a", "a--b.slice", "-a.slice", "x/y.slice"] {
            assert!(expand_slice(bad).is_err(), "{bad}");
        }
    }
}
