use super::*;
use serde_json::{Value, json};

fn host(rootless: bool) -> Host {
    let id = if rootless { 1000 } else { 0 };
    Host {
        euid: id,
        egid: id,
        rootless,
    }
}

fn spec(mounts: Value, linux: Value) -> Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.2.0", "root": {"path": "rootfs"}, "mounts": mounts, "linux": linux,
    }))
    .unwrap()
}

fn namespaces(kinds: &[&str]) -> Value {
    kinds.iter().map(|kind| json!({"type": kind})).collect()
}

fn plan_for(spec: &Spec, rootless: bool, options: Options) -> Result<Plan, Error> {
    let root = PathBuf::from("/b/rootfs");
    build(spec, Path::new("/b"), root, &host(rootless), options, |_| false)
}

fn of(mounts: Value) -> Result<Plan, Error> {
    plan_for(
        &spec(mounts, json!({"namespaces": namespaces(&["mount"])})),
        false,
        Options::default(),
    )
}

fn refusal(mounts: Value) -> String {
    of(mounts).unwrap_err().to_string()
}

#[test]
fn destinations_are_made_absolute_and_clean() {
    for (written, meant) in [
        ("x/./y/", "/x/y"),
        ("/a/../b", "/b"),
        ("../../c", "/c"),
        ("/dev//pts", "/dev/pts"),
    ] {
        let plan = of(json!([{"destination": written, "type": "tmpfs"}])).unwrap();
        assert_eq!(plan.mounts[0].destination, Path::new(meant));
    }
    assert!(refusal(json!([{"destination": "/..", "type": "tmpfs"}])).starts_with("mounts[0].destination: "));
}

#[test]
fn bind_by_option_or_by_type() {
    let plan = of(json!([
        {"destination": "/a", "source": "rel", "options": ["rbind"]},
        {"destination": "/b", "type": "bind", "source": "/abs"},
        {"destination": "/c", "type": "tmpfs", "source": "/abs", "options": ["bind"]},
    ]))
    .unwrap();
    assert!(plan.mounts.iter().all(|mount| mount.kind == Kind::Bind));
    assert_eq!(plan.mounts[0].source, Path::new("/b/rel"));
    assert!(refusal(json!([{"destination": "/a", "options": ["bind"]}])).starts_with("mounts[0].source: "));
    assert!(
        refusal(json!([{"destination": "/a", "type": "x"}, {"destination": "/b"}])).starts_with("mounts[1].type: ")
    );
}

#[test]
fn over_proc() {
    let over = |to: &str| of(json!([{"destination": to, "source": "/x", "options": ["bind"]}]));
    for path in OVER_PROC {
        assert!(over(path).is_ok(), "{path}");
    }
    for path in ["/proc/sys", "/proc/1/attr", "/proc/cpuinfo/x", "/x/../proc/self"] {
        assert!(
            over(path)
                .unwrap_err()
                .to_string()
                .contains("because it is inside /proc"),
            "{path}"
        );
    }
    assert!(over("/proc").is_ok() && over("/process").is_ok());
    let text = refusal(json!([{"destination": "/proc", "type": "tmpfs"}]));
    assert!(
        text.contains("\"/proc\" cannot be mounted because it is not of type proc"),
        "{text}"
    );
}

#[test]
fn id_maps_of_mounts() {
    let map = json!([{"containerID": 0, "hostID": 5, "size": 1}]);
    let one = |extra: Value| {
        let mut mount = json!({"destination": "/a", "source": "/x", "options": ["bind"]});
        mount
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        json!([mount])
    };
    let plan = of(one(json!({"uidMappings": map, "gidMappings": map}))).unwrap();
    let idmap = plan.mounts[0].idmap.as_ref().unwrap();
    assert_eq!(idmap.maps, Some(("0 5 1\n".into(), "0 5 1\n".into())));
    assert!(!idmap.recursive);
    for (extra, words) in [
        (json!({"uidMappings": map}), "must specify both"),
        (
            json!({"options": ["bind", "idmap"]}),
            "need uidMappings and gidMappings or a user namespace",
        ),
        (
            json!({"type": "tmpfs", "options": ["idmap"]}),
            "only supported for bind-mounts",
        ),
    ] {
        assert!(refusal(one(extra)).contains(words), "{words}");
    }
    let linux = json!({"namespaces": namespaces(&["mount", "user"]), "uidMappings": map, "gidMappings": map});
    let spec = spec(one(json!({"options": ["rbind", "ridmap"]})), linux);
    let plan = plan_for(&spec, false, Options::default()).unwrap();
    let idmap = plan.mounts[0].idmap.as_ref().unwrap();
    assert!(idmap.recursive && idmap.maps.is_some());
    assert!(
        plan_for(&spec, true, Options::default())
            .unwrap_err()
            .to_string()
            .contains("rootless")
    );
}

#[test]
fn unmapped_owner_of_a_rootless_mount() {
    let mounts = json!([{"destination": "/a", "type": "devpts", "options": ["gid=5"]}]);
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let linux = json!({"namespaces": namespaces(&["mount", "user"]), "uidMappings": map, "gidMappings": map});
    let spec = spec(mounts, linux);
    let error = plan_for(&spec, true, Options::default()).unwrap_err().to_string();
    let words = "cannot specify gid=5 mount option for rootless container: user namespaces enabled, but no mapping found for gid 5";
    assert_eq!(error, format!("mounts[0].options: {words}"));
    assert!(plan_for(&spec, false, Options::default()).is_ok());
}

#[test]
fn root_propagation_values() {
    let with = |name: &str, options| {
        let linux = json!({"namespaces": namespaces(&["mount"]), "rootfsPropagation": name});
        plan_for(&spec(json!([]), linux), false, options)
    };
    assert_eq!(with("", Options::default()).unwrap().propagation, 0);
    assert_eq!(
        with("rshared", Options::default()).unwrap().propagation,
        options::SHARED | options::REC
    );
    let error = with("odd", Options::default()).unwrap_err().to_string();
    assert_eq!(error, "linux.rootfsPropagation: rootfsPropagation=odd is not supported");
    assert!(with("private", Options { no_pivot: true }).is_err());
}

#[test]
fn default_devices_give_way_to_the_configured() {
    let linux = json!({"namespaces": namespaces(&["mount"]), "devices": [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
        {"path": "", "type": "a"},
    ]});
    let plan = plan_for(&spec(json!([]), linux), false, Options::default()).unwrap();
    assert_eq!(plan.devices.len(), 6);
    assert_eq!(plan.devices[0].mode, 0o600);
    let bad = json!({"namespaces": namespaces(&["mount"]), "devices": [{"path": "/dev/x", "type": "c", "major": -1}]});
    let error = plan_for(&spec(json!([]), bad), false, Options::default())
        .unwrap_err()
        .to_string();
    assert_eq!(error, "linux.devices[0].major: -1 is not a device number");
    let plan = of(json!([{"destination": "/dev", "source": "/dev", "options": ["rbind"]}])).unwrap();
    assert!(!plan.setup_dev && plan.devices.is_empty());
}

#[test]
fn masks_need_a_mount_namespace() {
    let spec = spec(json!([]), json!({"maskedPaths": ["/x"]}));
    let error = plan_for(&spec, false, Options::default()).unwrap_err().to_string();
    assert!(error.contains("unable to restrict sys entries without a private MNT namespace"));
}

#[test]
fn sysctls_of_the_hosts_network() {
    let linux = |path: Value| {
        json!({"namespaces": [{"type": "mount"}, {"type": "network", "path": path}],
               "sysctl": {"net.ipv4.ip_forward": "1"}})
    };
    let root = || PathBuf::from("/b/rootfs");
    let is_host = |path: &Path| path == Path::new("/host");
    let run = |path: Value| {
        build(
            &spec(json!([]), linux(path)),
            Path::new("/b"),
            root(),
            &host(false),
            Options::default(),
            is_host,
        )
    };
    assert!(
        run(json!("/host"))
            .unwrap_err()
            .to_string()
            .contains("not allowed in host network namespace")
    );
    assert_eq!(
        run(json!("/other")).unwrap().sysctl,
        [("net/ipv4/ip_forward".into(), "1".into())]
    );
    assert!(run(json!("")).is_ok());
}

#[test]
fn what_a_path_shows_is_told_before_it_is_mounted() {
    let plan = of(json!([
        {"destination": "/v", "type": "bind", "source": "/vol"},
        {"destination": "/v/deep", "type": "tmpfs"},
        {"destination": "/f", "type": "bind", "source": "/file"},
        {"destination": "/o/in", "type": "bind", "source": "/covered"},
        {"destination": "/o", "type": "bind", "source": "/over"},
    ]))
    .unwrap();
    for (path, origin) in [
        ("/app", Some(("/b/rootfs", "/app"))),
        ("/v/x/../y", Some(("/vol", "y"))),
        ("/vx", Some(("/b/rootfs", "/vx"))),
        ("/v/deep/x", None),
        ("/f", Some(("/file", ""))),
        ("/o/in/x", Some(("/over", "in/x"))),
    ] {
        let found = plan.origin(Path::new(path));
        let expected = origin.map(|(origin, below)| (Path::new(origin), PathBuf::from(below)));
        assert_eq!(found, expected, "{path}");
    }
    assert!(plan.has_content_mounts());
    let kernel =
        of(json!([{"destination": "/proc", "type": "proc"}, {"destination": "/dev", "type": "tmpfs"}])).unwrap();
    assert!(!kernel.has_content_mounts());
}
