//! Which sysctls a container may set: those of a namespace that is its own.

use super::Error;

/// The namespaces that decide over sysctls.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owned {
    pub ipc: bool,
    pub uts: bool,
    pub user: bool,
    /// The network namespace exists and is not the host's.
    pub net: bool,
}

const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// The file of the sysctl `key` below `/proc/sys`, if the container may set it.
pub(super) fn file(key: &str, owned: Owned) -> Result<String, Error> {
    let dotted = dotted(key);
    let refuse = |problem: String| {
        Err(Error::Field {
            field: "linux.sysctl".into(),
            problem,
        })
    };
    let path: String = dotted.chars().map(swap).collect();
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse(format!("sysctl {key:?} is not a valid name"));
    }
    if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        return if owned.ipc {
            Ok(path)
        } else {
            refuse(format!("sysctl {dotted:?} is not allowed in the hosts ipc namespace"))
        };
    }
    if dotted.starts_with("net.") {
        return if owned.net {
            Ok(path)
        } else {
            refuse(format!("sysctl {dotted:?} not allowed in host network namespace"))
        };
    }
    if dotted.starts_with("user.") && owned.user {
        return Ok(path);
    }
    match dotted.as_str() {
        "kernel.domainname" if owned.uts => Ok(path),
        "kernel.hostname" if owned.uts => refuse(format!(
            "sysctl {dotted:?} is not allowed as it conflicts with the OCI \"hostname\" field"
        )),
        _ => refuse(format!("sysctl {dotted:?} is not in a separate kernel namespace")),
    }
}

/// sysctl.d(5): whichever of `.` and `/` comes first is the separator; with `/` a dot is part of a name (`eth0.1`).
fn dotted(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key.as_bytes()[first] == b'/' => key.chars().map(swap).collect(),
        _ => key.into(),
    }
}

pub(super) fn swap(c: char) -> char {
    match c {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Owned = Owned {
        ipc: true,
        uts: true,
        user: true,
        net: true,
    };

    #[test]
    fn both_separators_name_the_same_file() {
        assert_eq!(file("net.ipv4.ip_forward", ALL).unwrap(), "net/ipv4/ip_forward");
        assert_eq!(
            file("net/ipv4/conf/eth0.1/rp_filter", ALL).unwrap(),
            "net/ipv4/conf/eth0.1/rp_filter"
        );
        assert_eq!(
            file("net.ipv4.conf.eth0/1.rp_filter", ALL).unwrap(),
            "net/ipv4/conf/eth0.1/rp_filter"
        );
    }

    #[test]
    fn only_own_namespaces() {
        let none = Owned::default();
        for (key, words) in [
            ("kernel.shmmax", "is not allowed in the hosts ipc namespace"),
            ("fs.mqueue.msg_max", "is not allowed in the hosts ipc namespace"),
            ("net.ipv4.ip_forward", "not allowed in host network namespace"),
            ("kernel.domainname", "is not in a separate kernel namespace"),
            ("vm.swappiness", "is not in a separate kernel namespace"),
            ("user.max_user_namespaces", "is not in a separate kernel namespace"),
        ] {
            assert!(file(key, none).unwrap_err().to_string().contains(words), "{key}");
        }
        for key in [
            "kernel.shmmax",
            "fs.mqueue.msg_max",
            "kernel.domainname",
            "user.max_user_namespaces",
        ] {
            assert!(file(key, ALL).is_ok(), "{key}");
        }
        assert!(
            file("kernel.hostname", ALL)
                .unwrap_err()
                .to_string()
                .contains("conflicts with the OCI")
        );
        assert!(file("vm.swappiness", ALL).is_err());
    }

    #[test]
    fn no_way_out_of_proc_sys() {
        for key in [
            "net.//.//.kernel.x",
            "net/../kernel/core_pattern",
            "net..x",
            "net.ipv4.",
            ".",
        ] {
            assert!(file(key, ALL).is_err(), "{key}");
        }
    }
}
