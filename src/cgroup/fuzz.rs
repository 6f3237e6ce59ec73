//! The fuzz target of this room; see [`crate::fuzz`].

use super::devices::{Access, Device, Emulator, Kind, Rule};
use super::filter;
use super::mounts::Hierarchy;
use super::paths::{Place, Unit, below, expand_slice};
use super::stats::Stats;
use super::{file, stats_v1, stats_v2, variant};
use crate::fuzz::Bytes;
use std::path::Path;

/// Text as the files of a cgroup and as what configurations say of one; bytes as device rules.
pub fn cgroup(data: &[u8]) {
    match data.split_first() {
        Some((b'D', rest)) => devices(rest),
        _ => {
            let text = String::from_utf8_lossy(data);
            files(&text);
            paths(&text);
            if let Some(value) = variant::parse(&text) {
                assert!(value.signature().len() <= 255, "D-Bus has no room for it");
            }
        }
    }
}

fn files(text: &str) {
    if let Some(entries) = stats_v1::blkio_entries(text) {
        assert!(entries.len() <= text.lines().count());
    }
    if let Some(all) = stats_v1::ranges(text.trim()) {
        assert!(all.len() <= 65536 * text.split(',').count());
    }
    stats_v2::parse_pressure(text);
    let mut stats = Stats::default();
    for line in text.lines() {
        stats_v2::io_line(line, &mut stats);
        file::number(line);
    }
    file::keyed(text, text.split(' ').next().unwrap_or_default());
    serde_json::to_string(&stats).expect("events prints it");
    if let Some(list) = Emulator::parse(text) {
        // What devices.list shows is reached from nothing by its own rules.
        let rules = Emulator::default().transition(&list);
        assert_eq!(Emulator::new(&rules).expect("no rule takes from another"), list);
    }
}

/// Whatever a path says, the cgroup is below the hierarchy's top.
fn paths(text: &str) {
    let hierarchy = Hierarchy {
        controllers: Vec::new(),
        mount: "/cg".into(),
        root: "/".into(),
        own: "/user/session".into(),
    };
    let inside = |path: &Path| {
        assert!(path.starts_with("/cg"), "{path:?}");
        assert!(path.components().all(|part| part.as_os_str() != ".."), "{path:?}");
    };
    let place = Place::new(Some(text), "id");
    inside(&place.in_v1(&hierarchy));
    inside(&place.in_v2(&hierarchy));
    if let Ok(path) = below(Path::new("/cg/c"), text) {
        assert!(path.starts_with("/cg/c"), "{path:?}");
        inside(&path);
    }
    if let Ok(path) = expand_slice(text) {
        assert!(
            path == "/" || path.split('/').skip(1).all(|part| part.ends_with(".slice")),
            "{path}"
        );
    }
    if let Ok(unit) = Unit::new(Some(text), "id") {
        assert!(
            unit.name.ends_with(".scope") && !unit.name.contains('/'),
            "{}",
            unit.name
        );
    }
}

/// Rules in order give a state; the shortest way to it leads to it; and the program of cgroup v2 decides as it says.
fn devices(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (from, to) = (rules(&mut bytes), rules(&mut bytes));
    let (Ok(from), Ok(to)) = (Emulator::new(&from), Emulator::new(&to)) else {
        return;
    };
    let steps = from.transition(&to);
    // devices.list hides the exceptions of a default to allow, so nothing of those may be built upon.
    let mut now = if from.default_allow {
        Emulator {
            default_allow: true,
            ..Emulator::default()
        }
    } else {
        from
    };
    for rule in &steps {
        now.apply(rule).expect("each step can be done");
    }
    assert_eq!(now, to, "{steps:?}");

    let program = filter::program(&to);
    for _ in 0..8 {
        let kind = bytes.one(&[Kind::Block, Kind::Char]);
        let access = bytes.one(&[Access::READ, Access::WRITE, Access::MKNOD, Access::ALL]);
        let (major, minor) = (number(&mut bytes).unwrap_or(7), number(&mut bytes).unwrap_or(7));
        let matches = |device: &Device| {
            device.kind == kind
                && device.major.is_none_or(|number| number == major)
                && device.minor.is_none_or(|number| number == minor)
        };
        let mut about = to.exceptions.iter().filter(|(device, _)| matches(device));
        let allowed = if to.default_allow {
            !about.any(|(_, denied)| {
                [Access::READ, Access::WRITE, Access::MKNOD]
                    .into_iter()
                    .any(|mode| access.contains(mode) && denied.contains(mode))
            })
        } else {
            about.any(|(_, granted)| granted.contains(access))
        };
        // `BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR`.
        let code = if kind == Kind::Block { 1 } else { 2 };
        let decided = filter::run(&program, code, filter::access_bits(access), major, minor);
        assert_eq!(decided, allowed, "{kind:?} {major}:{minor} {access} under {to:?}");
    }
}

fn rules(bytes: &mut Bytes<'_>) -> Vec<Rule> {
    let count = bytes.byte() % 12;
    let rule = |bytes: &mut Bytes<'_>| {
        let device = (!bytes.byte().is_multiple_of(8)).then(|| Device {
            major: number(bytes),
            minor: number(bytes),
            kind: bytes.one(&[Kind::Block, Kind::Char]),
        });
        Rule {
            device,
            access: match device {
                Some(_) => bytes.one(&[Access::READ, Access::WRITE, Access::MKNOD, Access::ALL]),
                None => Access::ALL,
            },
            allow: bytes.byte() & 1 == 0,
        }
    };
    (0..count).map(|_| rule(bytes)).collect()
}

/// Few, so that rules meet.
fn number(bytes: &mut Bytes<'_>) -> Option<u32> {
    bytes.one(&[None, Some(0), Some(1), Some(u32::MAX), Some(0x8000_0000)])
}
