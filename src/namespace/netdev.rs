//! `linux.netDevices`: network devices of the host that are given to the container's network namespace. They are not taken
//! back: the kernel returns physical ones when the namespace ends (config-linux.md#network-devices).

use super::{Error, Kind, enter};
use nix::errno::Errno;
use nix::net::if_::{if_nameindex, if_nametoindex};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxNetDevice;
use proa_sys::errno::Raw;
use proa_sys::net::rtnl::{Address, Socket};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The kernel's `IFNAMSIZ` less the null byte.
const NAME_MAX: usize = libc::IFNAMSIZ - 1;

const FIELD: &str = "linux.netDevices";

/// A device to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// Its name on the host.
    pub host: String,
    /// Its name in the container; `%d` in it stands for the first number that makes the name unique there.
    pub name: String,
}

impl NetDevice {
    fn is_template(&self) -> bool {
        self.name.contains('%')
    }
}

/// Resolves `linux.netDevices`. Fixed names come before templates, which fill the gaps that those leave. Words are runc's.
pub fn plan(devices: &HashMap<String, LinuxNetDevice>, network: bool, rootless: bool) -> Result<Vec<NetDevice>, Error> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    if !network {
        return Err(super::field(
            FIELD,
            "unable to move network devices without a NET namespace",
        ));
    }
    if rootless {
        return Err(super::field(
            FIELD,
            "network devices are not supported for rootless containers",
        ));
    }
    let invalid = |field: String, name: &str| super::field(field, format!("invalid network device name {name:?}"));
    let mut resolved = Vec::with_capacity(devices.len());
    for (host, device) in devices.iter().collect::<BTreeMap<_, _>>() {
        if !is_valid(host) || host.contains('%') {
            return Err(invalid(FIELD.into(), host));
        }
        let name = device.name().as_deref().filter(|name| !name.is_empty()).unwrap_or(host);
        if !is_valid(name) || !is_template_or_fixed(name) {
            return Err(invalid(format!("{FIELD}.{host}.name"), name));
        }
        resolved.push(NetDevice {
            host: host.clone(),
            name: name.into(),
        });
    }
    resolved.sort_by_key(NetDevice::is_template);
    Ok(resolved)
}

/// What net/core/dev.c, dev_valid_name, takes.
fn is_valid(name: &str) -> bool {
    let forbidden = |byte: u8| matches!(byte, 0 | b'/' | b':' | b' ' | b'\t'..=b'\r' | 0xa0);
    !name.is_empty() && name.len() <= NAME_MAX && name != "." && name != ".." && !name.bytes().any(forbidden)
}

fn is_template_or_fixed(name: &str) -> bool {
    match name.split_once('%') {
        Some((_, rest)) => rest.starts_with('d') && !rest.contains('%'),
        None => true,
    }
}

/// The name a device gets beside those in `taken`. EEXIST if a fixed one is taken, ENFILE if no number fits a template, as
/// the kernel says it. The number is chosen here, not by the kernel, since the kernel doesn't tell which one it took.
fn destination(name: &str, taken: &BTreeSet<String>) -> Result<String, Errno> {
    let Some((before, after)) = name.split_once("%d") else {
        return if taken.contains(name) {
            Err(Errno::EEXIST)
        } else {
            Ok(name.into())
        };
    };
    (0u32..)
        .map(|number| format!("{before}{number}{after}"))
        .find(|name| name.len() > NAME_MAX || !taken.contains(name))
        .filter(|name| name.len() <= NAME_MAX)
        .ok_or(Errno::ENFILE)
}

/// A device that was found, and all that is needed to move it.
struct Found<'a> {
    device: &'a NetDevice,
    index: u32,
    name: String,
    addresses: Vec<Address>,
}

/// Moves the devices of `plan` from this process's network namespace to the container's, which is the one in `joined`, or
/// else the one `init` was cloned into; renames them, and brings them up there with their permanent global addresses.
/// Everything that can be looked up is, before the first one moves.
pub fn move_all(plan: &super::Plan, joined: &[(Kind, OwnedFd)], init: Pid) -> Result<(), Error> {
    if plan.net_devices.is_empty() {
        return Ok(());
    }
    let by_init = PathBuf::from(format!("/proc/{init}/ns/net"));
    let named = plan.join.iter().find(|join| join.kind == Kind::Network);
    let path = named.map_or(&by_init, |join| &join.path);
    let opened;
    let target = match joined.iter().find(|(kind, _)| *kind == Kind::Network) {
        Some((_, fd)) => fd.as_fd(),
        None => {
            opened = open(path)?;
            opened.as_fd()
        }
    };
    let own = open(Path::new("/proc/self/ns/net"))?;
    let namespaces = Namespaces {
        own: own.as_fd(),
        target,
    };
    if namespaces.are_one()? {
        return Err(super::field(
            FIELD,
            "unable to move network devices without a NET namespace",
        ));
    }
    let taken = namespaces.within(|| names().map_err(|errno| call("if_nameindex()", errno)))?;
    let host = Socket::open().map_err(|errno| call("socket(AF_NETLINK, NETLINK_ROUTE)", errno))?;
    let found = find(&plan.net_devices, taken, &host, path)?;
    for one in &found {
        // The kernel takes the device down itself, after its own checks: one that can't be moved stays as it was.
        host.move_link(one.index, &one.name, namespaces.target)
            .map_err(|errno| {
                let step = format!(
                    "fail to move network device {} to network namespace {}",
                    one.device.host,
                    path.display()
                );
                failed(one.device, path, step, errno)
            })?;
    }
    namespaces.within(|| {
        let inside = Socket::open().map_err(|errno| call("socket(AF_NETLINK, NETLINK_ROUTE)", errno))?;
        found.iter().try_for_each(|one| one.configure(&inside, path))
    })
}

fn find<'a>(
    devices: &'a [NetDevice],
    mut taken: BTreeSet<String>,
    host: &Socket,
    path: &Path,
) -> Result<Vec<Found<'a>>, Error> {
    let mut found = Vec::with_capacity(devices.len());
    for device in devices {
        let index = if_nametoindex(device.host.as_str()).map_err(|errno| {
            let step = format!("link not found for interface {} on runtime namespace", device.host);
            failed(device, path, step, errno)
        })?;
        let name = destination(&device.name, &taken).map_err(|errno| {
            let step = format!(
                "fail to move network device {} to network namespace {} as {}",
                device.host,
                path.display(),
                device.name
            );
            failed(device, path, step, errno)
        })?;
        taken.insert(name.clone());
        // Now: those of IPv6 are gone once the device is down.
        let addresses = host
            .addresses(index)
            .map_err(|errno| failed(device, path, "fail to get ip addresses".into(), errno))?;
        found.push(Found {
            device,
            index,
            name,
            addresses,
        });
    }
    Ok(found)
}

impl Found<'_> {
    /// In the target namespace, where the index may be another one.
    fn configure(&self, inside: &Socket, path: &Path) -> Result<(), Error> {
        let on = |what: String| {
            let step = format!("{what} on namespace {}", path.display());
            move |errno| failed(self.device, path, step, errno)
        };
        let index =
            if_nametoindex(self.name.as_str()).map_err(on(format!("link not found for interface {}", self.name)))?;
        for address in &self.addresses {
            inside
                .add_address(index, address)
                .map_err(on(format!("fail to set up address {address}")))?;
        }
        inside
            .set_up(index)
            .map_err(on(format!("fail to set up interface {}", self.name)))
    }
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    File::open(path).map(OwnedFd::from).map_err(|error| Error::Open {
        kind: Kind::Network,
        path: path.into(),
        errno: error.raw(),
    })
}

/// This process's network namespace and the container's.
struct Namespaces<'a> {
    own: BorrowedFd<'a>,
    target: BorrowedFd<'a>,
}

impl Namespaces<'_> {
    /// Runs `inside` in the target namespace. proa has one thread, so nothing else happens there.
    fn within<T>(&self, inside: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        enter::join(Kind::Network, self.target)?;
        let result = inside();
        enter::join(Kind::Network, self.own)?;
        result
    }

    /// Whether the container shares the host's.
    fn are_one(&self) -> Result<bool, Error> {
        let identity = |fd: BorrowedFd<'_>| {
            rustix::fs::fstat(fd)
                .map(|data| (data.st_dev, data.st_ino))
                .map_err(|errno| call("fstat(network namespace)", errno.raw()))
        };
        Ok(identity(self.own)? == identity(self.target)?)
    }
}

/// The names of all devices of the current namespace.
fn names() -> Result<BTreeSet<String>, Errno> {
    let list = if_nameindex()?;
    Ok(list
        .iter()
        .map(|one| one.name().to_string_lossy().into_owned())
        .collect())
}

fn call(call: &str, errno: Errno) -> Error {
    Error::Call {
        call: call.into(),
        errno,
    }
}

fn failed(device: &NetDevice, namespace: &Path, step: String, errno: Errno) -> Error {
    Error::NetDevice {
        device: device.host.clone(),
        namespace: namespace.into(),
        step,
        errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(devices: serde_json::Value) -> Result<Vec<NetDevice>, Error> {
        plan(&serde_json::from_value(devices).unwrap(), true, false)
    }

    fn names_of(devices: &[NetDevice]) -> Vec<(&str, &str)> {
        devices
            .iter()
            .map(|one| (one.host.as_str(), one.name.as_str()))
            .collect()
    }

    #[test]
    fn a_device_keeps_its_name_unless_it_gets_one() {
        let devices = plan_of(serde_json::json!({"b": {"name": "c"}, "a": {}, "d": {"name": ""}})).unwrap();
        assert_eq!(names_of(&devices), [("a", "a"), ("b", "c"), ("d", "d")]);
    }

    #[test]
    fn templates_come_after_fixed_names() {
        let devices = plan_of(serde_json::json!({"a": {"name": "eth%d"}, "b": {"name": "eth0"}})).unwrap();
        assert_eq!(names_of(&devices), [("b", "eth0"), ("a", "eth%d")]);
    }

    #[test]
    fn names_that_the_kernel_does_not_take_are_refused() {
        let longest = "a".repeat(15);
        for name in [&longest, "é", "e%d", "%dx", "a-b_c.d@e"] {
            let devices = serde_json::json!({"e": {"name": name}});
            assert_eq!(plan_of(devices).unwrap()[0].name, name);
        }
        let long = "a".repeat(16);
        let bad = [
            &long, ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{b}b", "a\0b", "a%", "a%s", "%d%d", "a%d%",
        ];
        for name in bad {
            for (devices, field) in [
                (serde_json::json!({"e": {"name": name}}), "linux.netDevices.e.name: "),
                (serde_json::json!({name: {}}), "linux.netDevices: "),
            ] {
                let message = plan_of(devices).unwrap_err().to_string();
                assert_eq!(message, format!("{field}invalid network device name {name:?}"));
            }
        }
        assert!(plan_of(serde_json::json!({"": {}})).is_err());
        // A template is no device.
        assert!(plan_of(serde_json::json!({"e%d": {}})).is_err());
    }

    #[test]
    fn a_network_namespace_and_root_are_needed() {
        let devices = serde_json::from_value(serde_json::json!({"a": {}})).unwrap();
        for (network, rootless, words) in [
            (false, false, "unable to move network devices without a NET namespace"),
            (true, true, "network devices are not supported for rootless containers"),
        ] {
            let message = plan(&devices, network, rootless).unwrap_err().to_string();
            assert_eq!(message, format!("linux.netDevices: {words}"));
        }
        assert_eq!(plan(&HashMap::new(), false, true).unwrap(), []);
    }

    #[test]
    fn a_template_takes_the_first_free_number() {
        let taken = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(destination("eth%d", &taken(&["lo"])).as_deref(), Ok("eth0"));
        assert_eq!(
            destination("eth%d", &taken(&["eth0", "eth1", "eth3"])).as_deref(),
            Ok("eth2")
        );
        assert_eq!(destination("a%db", &taken(&["a0b"])).as_deref(), Ok("a1b"));
    }

    #[test]
    fn a_taken_name_is_refused_and_so_is_a_template_that_is_used_up() {
        let taken: BTreeSet<String> = (0..10).map(|number| format!("abcdefghijklmn{number}")).collect();
        assert_eq!(destination("abcdefghijklmn3", &taken), Err(Errno::EEXIST));
        assert_eq!(destination("abcdefghijklmn%d", &taken), Err(Errno::ENFILE));
    }
}
