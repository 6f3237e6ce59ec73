//! `proa features`: runtime-spec features.md and features-linux.md, its members in runc's order.

use super::{Error, Globals, SPEC_VERSION, help, print_json};
use crate::rootfs;
use proa_sys::security;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: &'static [&'static str],
    mount_options: Vec<&'static str>,
    linux: Linux,
    annotations: BTreeMap<&'static str, String>,
    potentially_unsafe_config_annotations: &'static [&'static str],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: &'static [&'static str],
    capabilities: Vec<String>,
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Enabled,
    selinux: Enabled,
    intel_rdt: IntelRdt,
    memory_policy: MemoryPolicy,
    mount_extensions: MountExtensions,
    net_devices: Enabled,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: &'static [&'static str],
    operators: &'static [&'static str],
    archs: Vec<&'static str>,
    known_flags: [&'static str; 4],
    supported_flags: Vec<&'static str>,
}

#[derive(Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Serialize)]
struct IntelRdt {
    enabled: bool,
    schemata: bool,
    monitoring: bool,
}

#[derive(Serialize)]
struct MemoryPolicy {
    modes: &'static [&'static str],
    flags: &'static [&'static str],
}

#[derive(Serialize)]
struct MountExtensions {
    idmap: Enabled,
}

const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

const NAMESPACES: &[&str] = &["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];

const SECCOMP_ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const SECCOMP_OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

const SECCOMP_ARCHS: &[&str] = &[
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// Each with what to ask the kernel for it.
const SECCOMP_FLAGS: [(&str, u64); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", security::SECCOMP_TSYNC),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", security::SECCOMP_SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_LOG", security::SECCOMP_LOG),
    (
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        security::SECCOMP_WAIT_KILLABLE_RECV | security::SECCOMP_NEW_LISTENER,
    ),
];

const MEMORY_POLICY_MODES: &[&str] = &[
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

const MEMORY_POLICY_FLAGS: &[&str] = &["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

/// Annotations that make the runtime do something, so that an engine must not pass them on from an untrusted image.
const UNSAFE_ANNOTATIONS: &[&str] = &[
    "module.wasm.image/",
    "org.criu.config",
    "org.systemd.property.",
    "proa.wasm/",
    "run.oci.handler",
];

/// The architectures that the libseccomp in this build has, too.
fn seccomp_archs() -> Vec<&'static str> {
    let known = |name: &&&str| serde_json::from_value((**name).into()).is_ok_and(proa_seccomp::knows_architecture);
    SECCOMP_ARCHS.iter().filter(known).copied().collect()
}

/// The flags that this kernel has as well.
fn supported_flags() -> Vec<&'static str> {
    let known = SECCOMP_FLAGS.into_iter();
    known
        .filter(|(_, bits)| security::seccomp_knows(*bits))
        .map(|(name, _)| name)
        .collect()
}

/// What this build implements, whether or not the kernel of this host has it (features.md: "recognized"); only
/// `supportedFlags` asks the kernel.
fn features() -> Features {
    let mut capabilities: Vec<caps::Capability> = caps::all().into_iter().collect();
    capabilities.sort_unstable_by_key(caps::Capability::index);
    Features {
        oci_version_min: "1.0.0",
        oci_version_max: SPEC_VERSION,
        hooks: HOOKS,
        mount_options: rootfs::known_options(),
        linux: Linux {
            namespaces: NAMESPACES,
            capabilities: capabilities.iter().map(ToString::to_string).collect(),
            cgroup: Cgroup {
                v1: true,
                v2: true,
                systemd: true,
                systemd_user: true,
                rdma: true,
            },
            seccomp: Seccomp {
                enabled: true,
                actions: SECCOMP_ACTIONS,
                operators: SECCOMP_OPERATORS,
                archs: seccomp_archs(),
                known_flags: SECCOMP_FLAGS.map(|(name, _)| name),
                supported_flags: supported_flags(),
            },
            apparmor: Enabled { enabled: true },
            selinux: Enabled { enabled: true },
            intel_rdt: IntelRdt {
                enabled: true,
                schemata: true,
                monitoring: true,
            },
            memory_policy: MemoryPolicy {
                modes: MEMORY_POLICY_MODES,
                flags: MEMORY_POLICY_FLAGS,
            },
            mount_extensions: MountExtensions {
                idmap: Enabled { enabled: true },
            },
            net_devices: Enabled { enabled: true },
        },
        annotations: BTreeMap::from([
            (
                "io.github.seccomp.libseccomp.version",
                proa_seccomp::library_version().replace("libseccomp ", ""),
            ),
            ("io.github.proa.commit", help::COMMIT.unwrap_or_default().to_owned()),
            ("io.github.proa.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("org.opencontainers.runc.checkpoint.enabled", "true".to_owned()),
        ]),
        potentially_unsafe_config_annotations: UNSAFE_ANNOTATIONS,
    }
}

pub(super) fn run(_: &Globals, _: liboci_cli::Features) -> Result<u8, Error> {
    let mut json = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, indent);
    features()
        .serialize(&mut serializer)
        .map_err(|error| Error::Stdout(error.into()))?;
    json.push(b'\n');
    print_json(&json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_a_features_document() {
        let json = serde_json::to_string(&features()).unwrap();
        let parsed: oci_spec::runtime::Features = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed.oci_version_max(), SPEC_VERSION);
        let linux = parsed.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 8);
        assert_eq!(linux.capabilities().as_ref().unwrap()[0], "CAP_CHOWN");
        assert_eq!(linux.seccomp().as_ref().unwrap().actions().as_ref().unwrap().len(), 9);
    }

    #[test]
    fn every_seccomp_name_compiles() {
        let compile = |profile: serde_json::Value| {
            let typed = serde_json::from_value(profile.clone()).unwrap_or_else(|error| panic!("{error}: {profile}"));
            proa_seccomp::compile(&typed).unwrap_or_else(|error| panic!("{error}: {profile}"))
        };
        let rule = |action: &str| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": action}]});
        for action in SECCOMP_ACTIONS {
            compile(rule(action));
        }
        for operator in SECCOMP_OPERATORS {
            let mut profile = rule("SCMP_ACT_ERRNO");
            profile["syscalls"][0]["args"] = json!([{"index": 1, "value": 1, "valueTwo": 1, "op": operator}]);
            compile(profile);
        }
        // A filter can't be for machines of both byte orders.
        let big = [
            "M68K",
            "MIPS",
            "MIPS64",
            "MIPS64N32",
            "PARISC",
            "PARISC64",
            "PPC",
            "PPC64",
            "S390",
            "S390X",
            "SHEB",
        ];
        for arch in seccomp_archs() {
            let mut profile = rule("SCMP_ACT_ERRNO");
            profile["architectures"] = json!([arch]);
            if big.contains(&arch.trim_start_matches("SCMP_ARCH_")) == cfg!(target_endian = "big") {
                compile(profile);
            }
        }
        assert!(seccomp_archs().len() > 15 && seccomp_archs().contains(&"SCMP_ARCH_X86_64"));
        for (flag, bits) in SECCOMP_FLAGS {
            let mut profile = rule("SCMP_ACT_NOTIFY");
            profile["flags"] = json!([flag]);
            // TSYNC is for the engine's threads, and chosen where they are.
            let bits = bits & !security::SECCOMP_TSYNC;
            assert_eq!(compile(profile).program.flags & bits, bits, "{flag}");
        }
    }

    #[test]
    fn every_memory_policy_name_is_known() {
        for mode in MEMORY_POLICY_MODES {
            serde_json::from_value::<oci_spec::runtime::LinuxMemoryPolicy>(
                json!({"mode": mode, "flags": MEMORY_POLICY_FLAGS}),
            )
            .unwrap();
        }
    }

    #[test]
    fn lists_are_sorted_as_runcs() {
        for list in [
            &rootfs::known_options(),
            NAMESPACES,
            SECCOMP_ACTIONS,
            SECCOMP_OPERATORS,
            SECCOMP_ARCHS,
            MEMORY_POLICY_MODES,
        ] {
            assert!(list.is_sorted(), "{list:?}");
        }
    }
}
