//! `config.json`: parsed, judged, and made a plan of.

use super::{Bytes, scratch};
use crate::cgroup::Driver;
use crate::config::{Config, check_process};
use crate::host::Host;
use crate::namespace::Kind;
use crate::plan::{Plan, Request, resolve};
use crate::{process, rootfs};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let bundle = scratch().join("bundle");
        std::fs::create_dir_all(bundle.join("rootfs")).expect("a root directory");
        std::os::unix::fs::symlink("rootfs", bundle.join("link")).expect("a link to it");
        bundle
    })
}

/// A document if it looks like one, else one of ours with some places changed.
pub fn config(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (raw, choice) = match data.first() {
        Some(b'{' | b'[' | b'n' | b' ') => (data.to_vec(), 0),
        _ => {
            let choice = bytes.byte();
            let mut document: Value = serde_json::from_str(DOCUMENT).expect("valid");
            bytes.edit(&mut document);
            (document.to_string().into_bytes(), choice)
        }
    };
    let config = match Config::parse(raw, Path::new("config.json")) {
        Ok(config) => config,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let again = Config::parse(config.raw.clone(), Path::new("config.json")).expect("later verbs read what is kept");
    assert_eq!(again.raw, config.raw, "and keep it as it is");
    assert_eq!(again.spec, config.spec);

    let rootless = choice & 1 != 0;
    let host = Host {
        euid: if rootless { 1000 } else { 0 },
        egid: if rootless { 1000 } else { 0 },
        rootless,
    };
    let request = Request {
        id: "fuzzed",
        bundle: bundle(),
        program: if choice & 2 != 0 { "proa-wasm" } else { "proa" },
        no_pivot: choice & 4 != 0,
        no_new_keyring: choice & 8 != 0,
        settings: &crate::wasm::Settings::default(),
        driver: if choice & 16 != 0 {
            Driver::Systemd
        } else {
            Driver::Cgroupfs
        },
        listen_fds: u32::from(choice >> 6),
    };
    if config.process().is_err() {
        // `create` goes no further.
        return;
    }
    match resolve(&config, &host, request) {
        Ok(plan) => check(&plan, &config),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check(plan: &Plan, config: &Config) {
    check_process(config.spec.process().as_ref().expect("there is a plan")).expect("it was judged before");
    assert!(!plan.process.guest.args.is_empty() && plan.process.guest.cwd.starts_with('/'));
    let namespaces = &plan.namespaces;
    for kind in Kind::ALL {
        let times = namespaces.new.iter().filter(|other| **other == kind).count()
            + namespaces.join.iter().filter(|join| join.kind == kind).count();
        assert!(times < 2, "{kind:?}");
    }
    assert!(namespaces.join.iter().all(|join| join.path.is_absolute()));
    assert!(!namespaces.makes(Kind::User) || !(namespaces.uid_maps.is_empty() || namespaces.gid_maps.is_empty()));
    assert!(plan.rootfs.root().is_absolute());
    rootfs::fuzz::check(&plan.rootfs);
    // As init gets them.
    assert_eq!(over::<process::Plan>(&plan.process), json!(&plan.process));
    assert_eq!(over::<rootfs::Plan>(&plan.rootfs), json!(&plan.rootfs));
}

/// A part of the plan after it was handed over.
fn over<T: serde::Serialize + serde::de::DeserializeOwned>(part: &T) -> Value {
    let text = serde_json::to_vec(part).expect("it can be written");
    json!(serde_json::from_slice::<T>(&text).expect("and be read"))
}

/// Something of nearly everything, keys in the order of the specification.
const DOCUMENT: &str = include_str!("document.json");
