//! The systemd driver: a transient scope for each container, asked for over D-Bus.
//!
//! Source: org.freedesktop.systemd1(5), systemd.resource-control(5). The version notes are systemd's.

use super::dbus::{Connection, Error as BusError, Method, Value};
use super::devices::{Emulator, Kind, Rule};
use super::limits::{Limits, blkio_to_io_weight};
use super::paths::Unit;
use super::v2::DEFAULT_PERIOD;
use super::{Error, stats_v1, variant};
use nix::unistd::{Pid, getuid};
use std::collections::HashMap;
use std::path::Path;

const SYSTEM_BUS: &str = "unix:path=/var/run/dbus/system_bus_socket";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// A property of a unit.
type Property = (String, Value);

/// The slice for units that name none.
pub(super) fn default_slice(rootless: bool) -> &'static str {
    if rootless { "user.slice" } else { "system.slice" }
}

/// Whether systemd is the init of this system: sd_booted(3).
pub(super) fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// systemd's manager: the system's, or the caller's own.
#[derive(Debug)]
pub(super) struct Manager {
    bus: Connection,
    version: Option<u32>,
}

impl Manager {
    /// Connects to the system bus, or to the user's for an unprivileged caller.
    pub fn connect(rootless: bool) -> Result<Self, Error> {
        let address = if rootless {
            user_bus().ok_or(BusError::NoAddress)?
        } else {
            SYSTEM_BUS.to_owned()
        };
        let bus = Connection::open(&address, host_uid())?;
        Ok(Self { bus, version: None })
    }

    fn call(&mut self, name: &str, arguments: &[Value]) -> Result<Vec<String>, BusError> {
        let (destination, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
        self.bus.call(
            Method {
                destination,
                path,
                interface: MANAGER,
                name,
            },
            arguments,
        )
    }

    fn property(&mut self, name: &str) -> Result<String, Error> {
        let (destination, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
        let method = Method {
            destination,
            path,
            interface: "org.freedesktop.DBus.Properties",
            name: "Get",
        };
        let values = self.bus.call(method, &[Value::str(MANAGER), Value::str(name)])?;
        values.into_iter().next().ok_or_else(|| {
            BusError::Malformed {
                call: format!("Get({name})"),
            }
            .into()
        })
    }

    /// systemd's version, in its words.
    pub fn version_text(&mut self) -> Result<String, Error> {
        self.property("Version")
    }

    /// The cgroup of the manager itself, under which a user's slices are.
    pub fn control_group(&mut self) -> Result<String, Error> {
        self.property("ControlGroup")
    }

    /// systemd's version.
    fn version(&mut self) -> Result<u32, Error> {
        if let Some(version) = self.version {
            return Ok(version);
        }
        let text = self.property("Version")?;
        let version = version(&text).ok_or(BusError::Malformed {
            call: "Get(Version)".into(),
        })?;
        self.version = Some(version);
        Ok(version)
    }

    /// Starts a transient unit and waits until systemd has done so.
    pub fn start(&mut self, unit: &str, properties: &[Property]) -> Result<(), Error> {
        self.subscribe()?;
        let none = Value::Array("(sa(sv))".into(), Vec::new());
        let arguments = [Value::str(unit), Value::str("replace"), marshal(properties), none];
        let job = match self.call("StartTransientUnit", &arguments) {
            // What a container of that name left behind when it failed. Forgotten, the name is free.
            Err(BusError::Remote { name, .. }) if name == "org.freedesktop.systemd1.UnitExists" => {
                self.reset(unit);
                self.call("StartTransientUnit", &arguments)?
            }
            result => result?,
        };
        match self.finish(&job)?.as_str() {
            "done" => Ok(()),
            result => {
                self.reset(unit);
                Err(Error::Unit {
                    unit: unit.to_owned(),
                    result: result.to_owned(),
                })
            }
        }
    }

    /// Stops a unit and waits until systemd has done so; a unit that is gone is stopped.
    pub fn stop(&mut self, unit: &str) -> Result<(), Error> {
        self.subscribe()?;
        match self.call("StopUnit", &[Value::str(unit), Value::str("replace")]) {
            Ok(job) => {
                let result = self.finish(&job)?;
                if result != "done" {
                    tracing::warn!("error removing unit `{unit}`: got `{result}`. Continuing...");
                }
            }
            Err(BusError::Remote { name, .. }) if name == "org.freedesktop.systemd1.NoSuchUnit" => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.reset(unit);
        Ok(())
    }

    /// Moves `pid` into a unit's cgroup, or one `below` it (`/` is its own).
    pub fn attach(&mut self, unit: &str, below: &str, pid: Pid) -> Result<(), Error> {
        let pids = Value::Array("u".into(), vec![Value::U32(pid.as_raw().cast_unsigned())]);
        self.call("AttachProcessesToUnit", &[Value::str(unit), Value::str(below), pids])?;
        Ok(())
    }

    /// Tells systemd of changed limits, lest it put its own back. Rounds `limits` to what systemd can express.
    pub fn set(&mut self, unit: &str, legacy: bool, limits: &mut Limits) -> Result<(), Error> {
        let properties = self.limits(legacy, limits)?;
        if properties.is_empty() {
            return Ok(());
        }
        self.call(
            "SetUnitProperties",
            &[Value::str(unit), Value::Bool(true), marshal(&properties)],
        )?;
        Ok(())
    }

    /// Signals are sent only to who asked: the bus's match, then systemd's own switch.
    fn subscribe(&mut self) -> Result<(), Error> {
        let bus = "org.freedesktop.DBus";
        let method = Method {
            destination: bus,
            path: "/org/freedesktop/DBus",
            interface: bus,
            name: "AddMatch",
        };
        let rule = format!("type='signal',sender='org.freedesktop.systemd1',interface='{MANAGER}',member='JobRemoved'");
        self.bus.call(method, &[Value::Str(rule)])?;
        match self.call("Subscribe", &[]) {
            Err(BusError::Remote { name, .. }) if name == "org.freedesktop.systemd1.AlreadySubscribed" => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    /// Waits for the end of the job that a call returned: `JobRemoved(id, job, unit, result)`.
    fn finish(&mut self, job: &[String]) -> Result<String, Error> {
        let job = job.first().ok_or_else(|| BusError::Malformed { call: "job".into() })?;
        let mut removed = self.bus.wait("JobRemoved", |arguments| arguments.get(1) == Some(job))?;
        removed.pop().ok_or_else(|| {
            BusError::Malformed {
                call: "JobRemoved".into(),
            }
            .into()
        })
    }

    /// Lets systemd forget a failed unit. One that did not fail is unknown to it already.
    fn reset(&mut self, unit: &str) {
        if let Err(error) = self.call("ResetFailedUnit", &[Value::str(unit)]) {
            tracing::debug!("{error}");
        }
    }

    /// The limits as properties. systemd knows whole percents of a processor only: the quota is rounded up to that here,
    /// so that what is written to the cgroup later agrees.
    pub fn limits(&mut self, legacy: bool, limits: &mut Limits) -> Result<Vec<Property>, Error> {
        let needs_version =
            limits.period != 0 || !limits.cpus.is_empty() || !limits.mems.is_empty() || limits.idle == Some(1);
        let needs_version = needs_version || !limits.unified.is_empty();
        let version = if needs_version { self.version()? } else { 0 };
        properties(version, legacy, limits)
    }

    /// The device rules as properties.
    pub fn devices(&mut self, rules: &[Rule]) -> Result<Vec<Property>, Error> {
        Ok(device_properties(self.version()?, &Emulator::new(rules)?))
    }
}

/// The user's bus.
fn user_bus() -> Option<String> {
    if let Some(address) = std::env::var("DBUS_SESSION_BUS_ADDRESS")
        .ok()
        .filter(|address| !address.is_empty())
    {
        return Some(address);
    }
    let path = Path::new(&std::env::var_os("XDG_RUNTIME_DIR")?).join("bus");
    path.exists().then(|| format!("unix:path={}", path.display()))
}

/// Our uid as the bus sees it: in a user namespace it is the mapped one.
fn host_uid() -> u32 {
    let uid = getuid().as_raw();
    let map = super::file::read(Path::new("/proc/self/uid_map")).unwrap_or_default();
    map_uid(&map, uid).unwrap_or(uid)
}

fn map_uid(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        let offset = uid.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

fn version(text: &str) -> Option<u32> {
    let digits = text.trim_start_matches(['"', 'v']);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

fn marshal(properties: &[Property]) -> Value {
    let one = |(name, value): &Property| Value::Struct(vec![Value::str(name), Value::Variant(Box::new(value.clone()))]);
    Value::Array("(sv)".into(), properties.iter().map(one).collect())
}

fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

/// The properties that make a unit, limits aside.
pub(super) fn scope(unit: &Unit, id: &str, rootless: bool, legacy: bool, pid: Pid) -> Vec<Property> {
    let slice = unit.slice.as_deref().unwrap_or(default_slice(rootless)).to_owned();
    let pids = vec![Value::U32(pid.as_raw().cast_unsigned())];
    let mut properties = vec![
        property("Description", Value::Str(format!("proa container {id}"))),
        property("Slice", Value::Str(slice)),
        property("Delegate", Value::Bool(true)),
        property("PIDs", Value::Array("u".into(), pids)),
    ];
    // Accounting is what makes systemd put the unit into a controller's hierarchy at all.
    let io = if legacy { "BlockIOAccounting" } else { "IOAccounting" };
    for name in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
        properties.push(property(name, Value::Bool(true)));
    }
    properties.push(property("DefaultDependencies", Value::Bool(false)));
    properties
}

/// The limits as properties for a systemd of this version.
fn properties(version: u32, legacy: bool, limits: &mut Limits) -> Result<Vec<Property>, Error> {
    let mut list = Vec::new();
    let mut number = |name: &str, value: u64| list.push(property(name, Value::U64(value)));
    if limits.memory != 0 {
        // -1 is "infinity" to both.
        number(
            if legacy { "MemoryLimit" } else { "MemoryMax" },
            limits.memory.cast_unsigned(),
        );
    }
    if legacy {
        if limits.shares != 0 {
            number("CPUShares", limits.shares);
        }
        if limits.blkio.weight != 0 {
            number("BlockIOWeight", limits.blkio.weight.into());
        }
    } else {
        if limits.reservation != 0 {
            number("MemoryLow", limits.reservation.cast_unsigned());
        }
        if let Some(swap) = limits.swap_max()? {
            number("MemorySwapMax", swap.cast_unsigned());
        }
        if limits.idle == Some(1) && version >= 252 {
            // systemd's way to say cpu.idle; there is none to say 0.
            number("CPUWeight", 0);
        } else if limits.weight() != 0 {
            number("CPUWeight", limits.weight());
        }
        if limits.blkio.weight != 0 {
            // What systemd was not told of it sets to its default at the next `daemon-reload`.
            number("IOWeight", blkio_to_io_weight(limits.blkio.weight));
        }
    }
    if let Some(pids) = limits.pids {
        number(
            "TasksMax",
            if pids < 0 {
                u64::MAX
            } else {
                pids.max(1).cast_unsigned()
            },
        );
    }
    cpu_quota(version, &mut limits.quota, limits.period, &mut list);
    let sets = [
        ("AllowedCPUs", "linux.resources.cpu.cpus", &limits.cpus),
        ("AllowedMemoryNodes", "linux.resources.cpu.mems", &limits.mems),
    ];
    for (name, field, text) in sets {
        if !text.is_empty() && version >= 244 {
            list.push(property(name, cpu_mask(field, text)?));
        }
    }
    for (key, value) in &limits.unified {
        unified(version, key, value.trim(), &mut list)?;
    }
    Ok(list)
}

/// `CPUQuotaPeriodUSec` (242) and `CPUQuotaPerSecUSec`, of which systemd keeps whole percents.
fn cpu_quota(version: u32, quota: &mut i64, period: u64, list: &mut Vec<Property>) {
    if period != 0 && version >= 242 {
        list.push(property("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    if *quota == 0 && period == 0 {
        return;
    }
    let mut per_second = u64::MAX;
    if *quota > 0 {
        let period = if period == 0 { DEFAULT_PERIOD } else { period };
        let asked = quota.cast_unsigned().saturating_mul(1_000_000) / period;
        per_second = asked.next_multiple_of(10_000);
        if per_second != asked {
            *quota = (per_second.saturating_mul(period) / 1_000_000).cast_signed();
        }
    }
    list.push(property("CPUQuotaPerSecUSec", Value::U64(per_second)));
}

/// A list of CPUs as a bit mask, lowest byte first.
fn cpu_mask(field: &str, text: &str) -> Result<Value, Error> {
    let numbers = stats_v1::ranges(text.trim()).filter(|numbers| !numbers.is_empty());
    let numbers = numbers.ok_or_else(|| Error::Field {
        field: field.to_owned(),
        problem: format!("{text:?} is no list of numbers"),
    })?;
    let mut bytes = vec![0u8; usize::from(numbers.iter().max().copied().unwrap_or(0)) / 8 + 1];
    for number in numbers {
        bytes[usize::from(number / 8)] |= 1 << (number % 8);
    }
    Ok(Value::Array("y".into(), bytes.into_iter().map(Value::Byte).collect()))
}

/// The property for a file of v2 that systemd knows; the others are only written to the cgroup.
fn unified(version: u32, key: &str, value: &str, list: &mut Vec<Property>) -> Result<(), Error> {
    let bad = || Error::Field {
        field: format!("linux.resources.unified[{key:?}]"),
        problem: format!("unified resource {key:?} value invalid: {value:?}"),
    };
    let number = || {
        if value == "max" {
            Ok(u64::MAX)
        } else {
            value.parse::<u64>().map_err(|_| bad())
        }
    };
    let name = match key {
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "cpu.weight" => "CPUWeight",
        // Also `default N`; the weights of single disks are not systemd's to remember.
        "io.weight" => {
            let weight = value.strip_prefix("default ").unwrap_or(value).trim();
            if let Ok(weight) = weight.parse() {
                list.push(property("IOWeight", Value::U64(weight)));
            }
            return Ok(());
        }
        "cpu.idle" if value == "1" && version >= 252 => {
            list.push(property("CPUWeight", Value::U64(0)));
            return Ok(());
        }
        "pids.max" => {
            list.push(property("TasksMax", Value::U64(number()?.max(1))));
            return Ok(());
        }
        "cpuset.cpus" | "cpuset.mems" if version >= 244 => {
            let name = if key == "cpuset.cpus" {
                "AllowedCPUs"
            } else {
                "AllowedMemoryNodes"
            };
            list.push(property(
                name,
                cpu_mask(&format!("linux.resources.unified[{key:?}]"), value)?,
            ));
            return Ok(());
        }
        "cpu.max" => {
            let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
            let mut quota = if quota == "max" {
                0
            } else {
                quota.parse().map_err(|_| bad())?
            };
            cpu_quota(version, &mut quota, period.trim().parse().map_err(|_| bad())?, list);
            return Ok(());
        }
        _ => return Ok(()),
    };
    list.push(property(name, Value::U64(number()?)));
    Ok(())
}

/// `DevicePolicy` and `DeviceAllow`. Rules systemd can't express are left to the program or the files that we write
/// ourselves afterwards.
fn device_properties(version: u32, emulator: &Emulator) -> Vec<Property> {
    let allow = |entries| property("DeviceAllow", Value::Array("(ss)".into(), entries));
    // An empty list first takes back what an existing unit has.
    let mut list = vec![allow(Vec::new())];
    if emulator.allows_all() {
        list.push(property("DevicePolicy", Value::str("auto")));
        return list;
    }
    list.push(property("DevicePolicy", Value::str("strict")));
    if emulator.default_allow {
        return list;
    }
    let mut entries = Vec::new();
    for (device, access) in &emulator.exceptions {
        let kind = if device.kind == Kind::Block { "block" } else { "char" };
        let path = match (device.major, device.minor) {
            (None, None) => format!("{kind}-*"),
            (Some(major), None) if version >= 240 => format!("{kind}-{major}"),
            (Some(major), Some(minor)) => {
                let path = format!("/dev/{kind}/{major}:{minor}");
                // Before 240 systemd looks at the node and is the worse for its absence.
                if version < 240 && !Path::new(&path).exists() {
                    continue;
                }
                path
            }
            _ => continue,
        };
        entries.push(Value::Struct(vec![Value::Str(path), Value::Str(access.to_string())]));
    }
    list.push(allow(entries));
    list
}

/// The annotations `org.systemd.property.NAME` as properties.
pub(super) fn annotated(annotations: Option<&HashMap<String, String>>) -> Result<Vec<Property>, Error> {
    let mut list = Vec::new();
    for (key, text) in annotations.into_iter().flatten() {
        let Some(name) = key.strip_prefix("org.systemd.property.") else {
            continue;
        };
        let error = |problem: String| Error::Field {
            field: format!("annotations[{key:?}]"),
            problem,
        };
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(error(
                "annotation name incorrect: not the name of a property".to_owned(),
            ));
        }
        let value = variant::parse(text).ok_or_else(|| error(format!("value parse error: {text:?}")))?;
        // systemd's files say seconds, its bus microseconds.
        let seconds = name
            .strip_suffix("Sec")
            .filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()));
        list.push(match seconds {
            Some(stem) => {
                let value = microseconds(&value).ok_or_else(|| error(format!("value parse error: {text:?}")))?;
                (format!("{stem}USec"), value)
            }
            None => (name.to_owned(), value),
        });
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(list)
}

fn microseconds(seconds: &Value) -> Option<Value> {
    let whole: u64 = match seconds {
        Value::Byte(n) => (*n).into(),
        Value::I16(n) => (*n).try_into().ok()?,
        Value::U16(n) => (*n).into(),
        Value::I32(n) => (*n).try_into().ok()?,
        Value::U32(n) => (*n).into(),
        Value::I64(n) => (*n).try_into().ok()?,
        Value::U64(n) => *n,
        Value::Double(n) if *n >= 0.0 => return Some(Value::U64((n * 1e6) as u64)),
        _ => return None,
    };
    whole.checked_mul(1_000_000).map(Value::U64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'a>(list: &'a [Property], name: &str) -> Option<&'a Value> {
        list.iter()
            .rev()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value)
    }

    #[test]
    fn versions() {
        assert_eq!(
            ["252.39-1~deb12u1", "v245.4-1.fc32", "\"v256~rc1\""].map(version),
            [Some(252), Some(245), Some(256)]
        );
        assert_eq!(version("x"), None);
    }

    #[test]
    fn limits_on_v2() {
        let mut limits = Limits {
            memory: 100,
            swap: 300,
            shares: 1024,
            quota: 33_333,
            pids: Some(0),
            ..Limits::default()
        };
        limits.cpus = "0-1,9".into();
        let list = properties(252, false, &mut limits).unwrap();
        assert_eq!(named(&list, "MemoryMax"), Some(&Value::U64(100)));
        assert_eq!(named(&list, "MemorySwapMax"), Some(&Value::U64(200)));
        assert_eq!(named(&list, "CPUWeight"), Some(&Value::U64(100)));
        assert_eq!(named(&list, "TasksMax"), Some(&Value::U64(1)));
        // Rounded up to 34 %, for the cgroup file too.
        assert_eq!(named(&list, "CPUQuotaPerSecUSec"), Some(&Value::U64(340_000)));
        assert_eq!(limits.quota, 34_000);
        let mask = vec![Value::Byte(3), Value::Byte(2)];
        assert_eq!(named(&list, "AllowedCPUs"), Some(&Value::Array("y".into(), mask)));
    }

    #[test]
    fn limits_on_v1() {
        let mut limits = Limits {
            memory: -1,
            shares: 7,
            ..Limits::default()
        };
        let list = properties(252, true, &mut limits).unwrap();
        assert_eq!(named(&list, "MemoryLimit"), Some(&Value::U64(u64::MAX)));
        assert_eq!(named(&list, "CPUShares"), Some(&Value::U64(7)));
        assert_eq!(named(&list, "CPUWeight"), None);
    }

    #[test]
    fn unified_keys() {
        let mut list = Vec::new();
        unified(252, "memory.high", "max", &mut list).unwrap();
        unified(252, "cpu.max", "50000 100000", &mut list).unwrap();
        unified(252, "hugetlb.2MB.max", "5", &mut list).unwrap();
        assert_eq!(named(&list, "MemoryHigh"), Some(&Value::U64(u64::MAX)));
        assert_eq!(named(&list, "CPUQuotaPerSecUSec"), Some(&Value::U64(500_000)));
        assert_eq!(list.len(), 3);
        assert!(unified(252, "memory.high", "x", &mut list).is_err());
    }

    #[test]
    fn devices() {
        let emulator = Emulator::parse("c 1:3 rwm\nc 136:* rw\nb *:* m\nc *:7 r\n").unwrap();
        let list = device_properties(252, &emulator);
        let Some(Value::Array(_, entries)) = named(&list, "DeviceAllow") else {
            panic!()
        };
        let entry = |path: &str, access: &str| Value::Struct(vec![Value::str(path), Value::str(access)]);
        let mut expected = vec![
            entry("/dev/char/1:3", "rwm"),
            entry("char-136", "rw"),
            entry("block-*", "m"),
        ];
        expected.sort_by_key(|value| format!("{value:?}"));
        let mut entries = entries.clone();
        entries.sort_by_key(|value| format!("{value:?}"));
        assert_eq!(entries, expected);
        assert_eq!(
            list[0],
            property("DeviceAllow", Value::Array("(ss)".into(), Vec::new()))
        );
    }

    #[test]
    fn annotations_become_properties() {
        let map: HashMap<String, String> = [
            ("org.systemd.property.TimeoutStopSec", "7"),
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("other", "x"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
        let list = annotated(Some(&map)).unwrap();
        assert_eq!(list[0], property("CollectMode", Value::str("inactive-or-failed")));
        assert_eq!(list[1], property("TimeoutStopUSec", Value::U64(7_000_000)));
        for (key, value) in [("org.systemd.property.A-B", "1"), ("org.systemd.property.After", "[")] {
            let map = HashMap::from([(key.to_owned(), value.to_owned())]);
            assert!(annotated(Some(&map)).is_err(), "{key}");
        }
    }

    #[test]
    fn the_bus_sees_mapped_uids() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(
            (map_uid(map, 0), map_uid(map, 5), map_uid(map, 99_999)),
            (Some(1000), Some(100_004), None)
        );
    }
}
