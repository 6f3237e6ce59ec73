//! Device rules: what config.json asks for, brought into the model of cgroup v1's devices controller.
//!
//! That model is a default (all or nothing) with a set of exceptions; a rule replaces the default, adds to the
//! exceptions or takes from them. Emulating it gives the shortest way from one state to another without a moment in which
//! a needed device is refused, and gives v2, where a program decides, the very same meaning.

use super::Error;
use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType};
use std::collections::BTreeMap;
use std::fmt;

/// Modes of access, a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Access(u8);

impl Access {
    pub const READ: Self = Self(1);
    pub const WRITE: Self = Self(2);
    pub const MKNOD: Self = Self(4);
    pub const ALL: Self = Self(7);
    const NONE: Self = Self(0);

    /// The modes, if there are any, and the letters that are none.
    fn parse(text: &str) -> Option<(Self, String)> {
        let (mut access, mut unknown) = (Self::NONE, String::new());
        for letter in text.chars() {
            match letter {
                'r' => access.0 |= Self::READ.0,
                'w' => access.0 |= Self::WRITE.0,
                'm' => access.0 |= Self::MKNOD.0,
                other => unknown.push(other),
            }
        }
        (access != Self::NONE).then_some((access, unknown))
    }

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn is_empty(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (mode, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if self.contains(mode) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// Block or character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block,
    Char,
}

/// Which devices; `None` is any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    // The order of the fields is the order in which rules are written.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub kind: Kind,
}

/// A rule; without a device it is about all of them, always with every access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub device: Option<Device>,
    pub access: Access,
    pub allow: bool,
}

impl fmt::Display for Rule {
    /// As `devices.allow` and `devices.deny` take it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(device) = self.device else {
            return f.write_str("a *:* rwm");
        };
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let kind = if device.kind == Kind::Block { 'b' } else { 'c' };
        write!(
            f,
            "{kind} {}:{} {}",
            number(device.major),
            number(device.minor),
            self.access
        )
    }
}

impl Rule {
    /// Takes `linux.resources.devices[index]`.
    pub fn from_spec(index: usize, rule: &LinuxDeviceCgroup) -> Result<Self, Error> {
        let error = |field: &str, problem: String| Error::Field {
            field: format!("linux.resources.devices[{index}].{field}"),
            problem,
        };
        let number = |field: &str, value: Option<i64>| match value {
            None | Some(-1) => Ok(None),
            Some(value) => u32::try_from(value)
                .map(Some)
                .map_err(|_| error(field, format!("{value} is no device number"))),
        };
        let text = rule.access().as_deref().unwrap_or_default();
        if text.is_empty() {
            return Err(error(
                "access",
                format!("device access at {index} field cannot be empty"),
            ));
        }
        let (access, unknown) =
            Access::parse(text).ok_or_else(|| error("access", format!("{text:?} has none of the modes r, w and m")))?;
        if !unknown.is_empty() {
            // runc says nothing at all, and bundles with an `a` there are about.
            let field = format!("linux.resources.devices[{index}].access");
            tracing::warn!("{field}: ignoring {unknown:?} in {text:?}: the modes are r, w and m");
        }
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => {
                return Ok(Self {
                    device: None,
                    access: Access::ALL,
                    allow: rule.allow(),
                });
            }
            LinuxDeviceType::B => Kind::Block,
            LinuxDeviceType::C | LinuxDeviceType::U => Kind::Char,
            LinuxDeviceType::P => return Err(error("type", "invalid cgroup device type 'p'".to_owned())),
        };
        let device = Device {
            major: number("major", rule.major())?,
            minor: number("minor", rule.minor())?,
            kind,
        };
        Ok(Self {
            device: Some(device),
            access,
            allow: rule.allow(),
        })
    }

    const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self {
            device: Some(Device { major, minor, kind }),
            access,
            allow: true,
        }
    }
}

/// What every container may do, as runc has it: the runtime-spec's default devices, pseudo-terminals, making any node
/// (without opening it) and tun.
pub(super) fn default_rules(linux: Option<&Linux>) -> Vec<Rule> {
    let named = [
        ("/dev/null", 1, 3),
        ("/dev/random", 1, 8),
        ("/dev/full", 1, 7),
        ("/dev/tty", 5, 0),
        ("/dev/zero", 1, 5),
        ("/dev/urandom", 1, 9),
    ];
    let mut rules = vec![
        Rule::allow(Kind::Char, None, None, Access::MKNOD),
        Rule::allow(Kind::Block, None, None, Access::MKNOD),
    ];
    // Who puts a device of his own at one of these paths has to write its rule himself.
    let own = |path: &str| {
        let devices = linux.and_then(|linux| linux.devices().as_ref());
        devices
            .into_iter()
            .flatten()
            .any(|device| device.path().as_os_str() == path)
    };
    for (path, major, minor) in named {
        if !own(path) {
            rules.push(Rule::allow(Kind::Char, Some(major), Some(minor), Access::ALL));
        }
    }
    rules.push(Rule::allow(Kind::Char, Some(136), None, Access::ALL));
    rules.push(Rule::allow(Kind::Char, Some(5), Some(2), Access::ALL));
    rules.push(Rule::allow(Kind::Char, Some(10), Some(200), Access::ALL));
    rules
}

/// A state of the devices controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Emulator {
    /// Whether what no exception names is allowed.
    pub default_allow: bool,
    /// What is not as the default says.
    pub exceptions: BTreeMap<Device, Access>,
}

impl Emulator {
    /// The state after `rules`, starting from "nothing is allowed".
    pub fn new(rules: &[Rule]) -> Result<Self, Error> {
        let mut emulator = Self::default();
        for rule in rules {
            emulator.apply(rule)?;
        }
        Ok(emulator)
    }

    /// The state that `devices.list` shows. Where the default is to allow, it does not show the exceptions.
    pub fn parse(list: &str) -> Option<Self> {
        let mut emulator = Self::default();
        for line in list.lines() {
            let mut fields = line.split([' ', ':']);
            let kind = match fields.next()? {
                "a" => {
                    return Some(Self {
                        default_allow: true,
                        exceptions: BTreeMap::new(),
                    });
                }
                "b" => Kind::Block,
                "c" => Kind::Char,
                _ => return None,
            };
            let mut number = || match fields.next()? {
                "*" => Some(None),
                number => number.parse().ok().map(Some),
            };
            let device = Device {
                major: number()?,
                minor: number()?,
                kind,
            };
            emulator.add(device, Access::parse(fields.next()?)?.0);
        }
        Some(emulator)
    }

    /// Whether everything is allowed.
    pub fn allows_all(&self) -> bool {
        self.default_allow && self.exceptions.is_empty()
    }

    pub fn apply(&mut self, rule: &Rule) -> Result<(), Error> {
        match rule.device {
            None => {
                *self = Self {
                    default_allow: rule.allow,
                    exceptions: BTreeMap::new(),
                }
            }
            Some(device) if rule.allow == self.default_allow => self.remove(device, rule.access)?,
            Some(device) => self.add(device, rule.access),
        }
        Ok(())
    }

    fn add(&mut self, device: Device, access: Access) {
        let entry = self.exceptions.entry(device).or_insert(Access::NONE);
        entry.0 |= access.0;
    }

    /// Takes an exception back. The kernel silently ignores what would make a hole in a wildcard; that would leave open
    /// what the user thinks closed, so it is refused.
    fn remove(&mut self, device: Device, access: Access) -> Result<(), Error> {
        for wildcard in [
            Device { major: None, ..device },
            Device { minor: None, ..device },
            Device {
                major: None,
                minor: None,
                ..device
            },
        ] {
            let held = self.exceptions.get(&wildcard).copied().unwrap_or(Access::NONE);
            if wildcard != device && !held.without(held.without(access)).is_empty() {
                let show = |device, access| {
                    Rule {
                        device: Some(device),
                        access,
                        allow: true,
                    }
                    .to_string()
                };
                return Err(Error::PunchedHole {
                    rule: show(device, access),
                    wildcard: show(wildcard, held),
                });
            }
        }
        if let Some(held) = self.exceptions.get_mut(&device) {
            *held = held.without(access);
            if held.is_empty() {
                self.exceptions.remove(&device);
            }
        }
        Ok(())
    }

    /// The rules that lead from this state to `target`, in the order in which they have to be written.
    pub fn transition(&self, target: &Self) -> Vec<Rule> {
        let mut rules = Vec::new();
        let nothing = BTreeMap::new();
        let mut old = &self.exceptions;
        // Where all is allowed, devices.list hides the exceptions, so only starting over leads to a known state.
        if self.default_allow || self.default_allow != target.default_allow {
            rules.push(Rule {
                device: None,
                access: Access::ALL,
                allow: target.default_allow,
            });
            old = &nothing;
        }
        let get = |map: &BTreeMap<Device, Access>, device| map.get(device).copied().unwrap_or(Access::NONE);
        for (device, access) in old {
            let access = access.without(get(&target.exceptions, device));
            if !access.is_empty() {
                rules.push(Rule {
                    device: Some(*device),
                    access,
                    allow: target.default_allow,
                });
            }
        }
        for (device, access) in &target.exceptions {
            let access = access.without(get(old, device));
            if !access.is_empty() {
                rules.push(Rule {
                    device: Some(*device),
                    access,
                    allow: !target.default_allow,
                });
            }
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str, allow: bool) -> Rule {
        let emulator = Emulator::parse(text).unwrap();
        let exception = emulator.exceptions.first_key_value();
        match exception {
            None => Rule {
                device: None,
                access: Access::ALL,
                allow,
            },
            Some((device, access)) => Rule {
                device: Some(*device),
                access: *access,
                allow,
            },
        }
    }

    fn show(rules: &[Rule]) -> Vec<String> {
        rules
            .iter()
            .map(|rule| format!("{} {rule}", if rule.allow { '+' } else { '-' }))
            .collect()
    }

    #[test]
    fn a_fresh_cgroup_is_closed_first() {
        let all = Emulator::parse("a *:* rwm\n").unwrap();
        let target = Emulator::new(&[rule("c 1:3 rwm", true), rule("b *:* m", true)]).unwrap();
        assert_eq!(
            show(&all.transition(&target)),
            ["- a *:* rwm", "+ b *:* m", "+ c 1:3 rwm"]
        );
    }

    #[test]
    fn only_differences_are_written() {
        let old = Emulator::parse("c 1:3 rw\nc 1:5 rwm\n").unwrap();
        let target = Emulator::new(&[rule("c 1:3 rm", true), rule("c 1:7 r", true)]).unwrap();
        assert_eq!(
            show(&old.transition(&target)),
            ["- c 1:3 w", "- c 1:5 rwm", "+ c 1:3 m", "+ c 1:7 r"]
        );
    }

    #[test]
    fn deny_lists() {
        let target = Emulator::new(&[rule("a", true), rule("b 8:0 w", false)]).unwrap();
        assert!(target.default_allow && !target.allows_all());
        assert_eq!(
            show(&Emulator::default().transition(&target)),
            ["+ a *:* rwm", "- b 8:0 w"]
        );
    }

    #[test]
    fn holes_in_wildcards_are_refused() {
        let rules = [rule("c *:* rwm", true), rule("c 1:3 w", false)];
        let error = Emulator::new(&rules).unwrap_err().to_string();
        assert!(error.contains("c 1:3 w") && error.contains("c *:* rwm"), "{error}");
        // No overlap, no hole; and the very same wildcard may go.
        assert!(Emulator::new(&[rule("c *:* m", true), rule("c 1:3 w", false)]).is_ok());
        assert!(
            Emulator::new(&[rule("c *:* m", true), rule("c *:* m", false)])
                .unwrap()
                .exceptions
                .is_empty()
        );
    }

    #[test]
    fn bad_rules_are_named() {
        let device: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow": true, "access": "x"}"#).unwrap();
        let error = Rule::from_spec(3, &device).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.devices[3].access"), "{error}");
        let device: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow": true}"#).unwrap();
        assert!(
            Rule::from_spec(0, &device)
                .unwrap_err()
                .to_string()
                .contains("cannot be empty")
        );
    }

    #[test]
    fn a_users_own_device_replaces_the_default_rule() {
        let linux: Linux =
            serde_json::from_str(r#"{"devices": [{"path": "/dev/zero", "type": "c", "major": 9, "minor": 9}]}"#)
                .unwrap();
        let rules = default_rules(Some(&linux));
        assert_eq!(rules.len(), default_rules(None).len() - 1);
        assert!(!show(&rules).contains(&"+ c 1:5 rwm".to_owned()));
    }
}
