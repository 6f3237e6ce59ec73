//! `proa update`.
//!
//! The request and the stored configuration are merged as JSON documents, so that nothing a newer tool wrote is lost. What
//! the cgroup gets is the merged whole without its device rules: the drivers need quota and period, limit and swap together,
//! and rewriting device rules would undo what a device plugin added.

use super::{Error, Globals, units};
use crate::process::rdt::{Group, Resctrl};
use crate::state::{Action, Locked};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// liboci-cli's struct takes no `512M`, no `-1`, and lacks `--cpu-burst` and `--cpu-idle`.
#[derive(clap::Args, Debug, Default)]
pub struct UpdateArgs {
    /// Path to the file containing the resources to update or '-' to read from the standard input; all other options are
    /// ignored then
    #[arg(short, long)]
    resources: Option<PathBuf>,
    /// Specifies per cgroup weight, range is from 10 to 1000
    #[arg(long)]
    blkio_weight: Option<String>,
    /// CPU CFS period to be used for hardcapping (in usecs). 0 to use system default
    #[arg(long)]
    cpu_period: Option<String>,
    /// CPU CFS hardcap limit (in usecs). Allowed cpu time in a given period
    #[arg(long)]
    cpu_quota: Option<String>,
    /// CPU CFS hardcap burst limit (in usecs). Allowed accumulated cpu time additionally for burst a given period
    #[arg(long)]
    cpu_burst: Option<String>,
    /// CPU shares (relative weight vs. other containers)
    #[arg(long)]
    cpu_share: Option<String>,
    /// CPU realtime period to be used for hardcapping (in usecs). 0 to use system default
    #[arg(long)]
    cpu_rt_period: Option<String>,
    /// CPU realtime hardcap limit (in usecs). Allowed cpu time in a given period
    #[arg(long)]
    cpu_rt_runtime: Option<String>,
    /// CPU(s) to use
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Memory node(s) to use
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Obsolete, ignored
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    /// Obsolete, ignored
    #[arg(long, hide = true)]
    kernel_memory_tcp: Option<String>,
    /// Memory limit (in bytes)
    #[arg(long)]
    memory: Option<String>,
    /// Set cgroup SCHED_IDLE or not, 0: default behavior, 1: SCHED_IDLE
    #[arg(long)]
    cpu_idle: Option<String>,
    /// Memory reservation or soft_limit (in bytes)
    #[arg(long)]
    memory_reservation: Option<String>,
    /// Total memory usage (memory + swap); set '-1' to enable unlimited swap
    #[arg(long)]
    memory_swap: Option<String>,
    /// Maximum number of pids allowed in the container
    #[arg(long)]
    pids_limit: Option<String>,
    /// The string of Intel RDT/CAT L3 cache schema
    #[arg(long)]
    l3_cache_schema: Option<String>,
    /// The string of Intel RDT/MBA memory bandwidth schema
    #[arg(long)]
    mem_bw_schema: Option<String>,
    /// The container
    container_id: String,
}

/// What is wrong with the wanted limits. Worded as runc words it.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A flag's value.
    #[error("invalid value for {flag}: {value:?}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// `--resources` can't be read.
    #[error("open {path}: {source}", path = path.display())]
    Read {
        /// As given.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `--resources` is no resources document.
    #[error("{path}: {source}", path = path.display())]
    Parse {
        /// As given.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The container's configuration and the request together make no sense.
    #[error("linux.resources or linux.intelRdt of the stored config.json: {0}")]
    Merged(#[source] serde_json::Error),
    /// `--l3-cache-schema`.
    #[error("Intel RDT/CAT: l3 cache schema is not enabled")]
    L3Cache,
    /// `--mem-bw-schema`.
    #[error("Intel RDT/MBA: memory bandwidth schema is not enabled")]
    MemoryBandwidth,
    /// The container has no `linux.intelRdt`.
    #[error("updating a non-existent Intel RDT configuration is not supported")]
    NoRdt,
    /// The resource group can't be set.
    #[error(transparent)]
    Rdt(crate::process::Error),
}

pub(super) fn run(globals: &Globals, args: UpdateArgs) -> Result<u8, Error> {
    let container = globals.store.open(&args.container_id)?;
    let request = args.request()?;
    let container = container.lock()?;
    container.require(Action::Update)?;
    let mut document: Value = serde_json::from_slice(&container.config()?.raw).map_err(UpdateError::Merged)?;
    let old = limits_of(&document)?;
    let limits = merge_into(&mut document, request)?;
    let rdt = args.rdt(&mut document, container.id())?;
    if let Err(error) = apply(&container, &limits, rdt) {
        // Part of it may be set by now. As in runc, what was limited before is limited so again.
        if let Err(again) = container.cgroup()?.update(&old) {
            tracing::warn!(
                "Setting back cgroup configs failed due to error: {again}, your state.json and actual configs might be \
                 inconsistent."
            );
        }
        return Err(error);
    }
    container.save_config(document.to_string().as_bytes())?;
    Ok(0)
}

fn apply(container: &Locked, limits: &LinuxResources, rdt: Option<(Resctrl, Group)>) -> Result<(), Error> {
    container.cgroup()?.update(limits)?;
    if let Some((resctrl, group)) = rdt {
        resctrl.set_schemata(&group).map_err(UpdateError::Rdt)?;
    }
    Ok(())
}

impl UpdateArgs {
    /// The wanted limits as a resources document.
    fn request(&self) -> Result<Value, UpdateError> {
        match self.resources.as_ref().filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => from_file(path),
            None => self.flags(),
        }
    }

    /// Puts the wanted schemata into the stored configuration; returns the group to be set. What isn't named is kept.
    fn rdt(&self, document: &mut Value, id: &str) -> Result<Option<(Resctrl, Group)>, UpdateError> {
        let given = |flag: &Option<String>| flag.clone().filter(|schema| !schema.is_empty());
        let (l3_cache, mem_bw) = (given(&self.l3_cache_schema), given(&self.mem_bw_schema));
        if l3_cache.is_none() && mem_bw.is_none() {
            return Ok(None);
        }
        let resctrl = Resctrl::find().ok();
        let has = |feature: fn(&Resctrl) -> bool| resctrl.as_ref().is_some_and(feature);
        if l3_cache.is_some() && !has(Resctrl::has_cat) {
            return Err(UpdateError::L3Cache);
        }
        if mem_bw.is_some() && !has(Resctrl::has_mba) {
            return Err(UpdateError::MemoryBandwidth);
        }
        let group = merge_rdt(document, l3_cache, mem_bw, id)?;
        Ok(resctrl.map(|resctrl| (resctrl, group)))
    }

    fn flags(&self) -> Result<Value, UpdateError> {
        let unsigned = |text: &str| text.parse::<u64>().ok().map(Value::from);
        let signed = |text: &str| text.parse::<i64>().ok().map(Value::from);
        let weight = |text: &str| text.parse::<u16>().ok().map(Value::from);
        let bytes = |text: &str| units::bytes(text).map(Value::from);
        let text = |text: &str| Some(Value::from(text));

        let mut cpu = Section::default();
        cpu.put("cpu-share", "shares", &self.cpu_share, unsigned)?;
        cpu.put("cpu-quota", "quota", &self.cpu_quota, signed)?;
        cpu.put("cpu-period", "period", &self.cpu_period, unsigned)?;
        cpu.put("cpu-burst", "burst", &self.cpu_burst, unsigned)?;
        cpu.put("cpu-rt-runtime", "realtimeRuntime", &self.cpu_rt_runtime, signed)?;
        cpu.put("cpu-rt-period", "realtimePeriod", &self.cpu_rt_period, unsigned)?;
        cpu.put("cpu-idle", "idle", &self.cpu_idle, signed)?;
        cpu.put("cpuset-cpus", "cpus", &self.cpuset_cpus, text)?;
        cpu.put("cpuset-mems", "mems", &self.cpuset_mems, text)?;
        let mut memory = Section::default();
        memory.put("memory", "limit", &self.memory, bytes)?;
        memory.put("memory-reservation", "reservation", &self.memory_reservation, bytes)?;
        memory.put("memory-swap", "swap", &self.memory_swap, bytes)?;
        memory.put("kernel-memory", "kernel", &self.kernel_memory, bytes)?;
        memory.put("kernel-memory-tcp", "kernelTCP", &self.kernel_memory_tcp, bytes)?;
        let mut block_io = Section::default();
        block_io.put("blkio-weight", "weight", &self.blkio_weight, weight)?;
        let mut pids = Section::default();
        pids.put("pids-limit", "limit", &self.pids_limit, signed)?;

        let sections = [("cpu", cpu), ("memory", memory), ("blockIO", block_io), ("pids", pids)];
        let given = sections.into_iter().filter(|(_, section)| !section.0.is_empty());
        Ok(given
            .map(|(name, section)| (name.to_owned(), Value::Object(section.0)))
            .collect())
    }
}

/// A member of a resources document in the making.
#[derive(Default)]
struct Section(Map<String, Value>);

impl Section {
    /// An empty value is the same as no flag.
    fn put(
        &mut self,
        flag: &'static str,
        member: &str,
        given: &Option<String>,
        parse: impl Fn(&str) -> Option<Value>,
    ) -> Result<(), UpdateError> {
        if let Some(given) = given.as_ref().filter(|given| !given.is_empty()) {
            let value = parse(given).ok_or_else(|| UpdateError::Value {
                flag,
                value: given.clone(),
            })?;
            self.0.insert(member.into(), value);
        }
        Ok(())
    }
}

fn from_file(path: &Path) -> Result<Value, UpdateError> {
    let mut raw = Vec::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().read_to_end(&mut raw),
        _ => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut raw)),
    };
    read.map_err(|source| UpdateError::Read {
        path: path.into(),
        source,
    })?;
    let parse = |source| UpdateError::Parse {
        path: path.into(),
        source,
    };
    // Typed first, for its judgement; what is merged is the document.
    serde_json::from_slice::<LinuxResources>(&raw).map_err(parse)?;
    serde_json::from_slice(&raw).map_err(parse)
}

/// Merges `request` into `linux.resources` of `document`; returns what the cgroup is to be set to.
fn merge_into(document: &mut Value, mut request: Value) -> Result<LinuxResources, UpdateError> {
    fix_up(&mut request);
    let idle_alone = request["cpu"].get("idle").is_some() && request["cpu"].get("shares").is_none();
    if !document["linux"].is_object() {
        document["linux"] = json!({});
    }
    let resources = &mut document["linux"]["resources"];
    merge(resources, request);
    if idle_alone && let Some(cpu) = resources["cpu"].as_object_mut() {
        // cpu.idle makes the kernel refuse any cpu.weight.
        cpu.remove("shares");
    }
    limits_of(document)
}

/// `linux.resources` of `document` but for the device rules.
fn limits_of(document: &Value) -> Result<LinuxResources, UpdateError> {
    let mut limits = document["linux"]["resources"].clone();
    if limits.is_null() {
        limits = json!({});
    }
    if let Some(limits) = limits.as_object_mut() {
        limits.remove("devices");
        // To oci-spec's types a limit that is not there is 0, which is a limit.
        if limits.get("pids").is_some_and(|pids| pids["limit"].is_null()) {
            limits.remove("pids");
        }
    }
    serde_json::from_value(limits).map_err(UpdateError::Merged)
}

/// The container must have a group already: its processes are in none otherwise.
fn merge_rdt(
    document: &mut Value,
    l3_cache: Option<String>,
    mem_bw: Option<String>,
    id: &str,
) -> Result<Group, UpdateError> {
    let old = document.pointer_mut("/linux/intelRdt").and_then(Value::as_object_mut);
    let rdt = old.ok_or(UpdateError::NoRdt)?;
    for (name, schema) in [("l3CacheSchema", l3_cache), ("memBwSchema", mem_bw)] {
        if let Some(schema) = schema {
            rdt.insert(name.into(), schema.into());
        }
    }
    let config = serde_json::from_value(Value::Object(rdt.clone())).map_err(UpdateError::Merged)?;
    Group::new(&config, id).map_err(UpdateError::Rdt)
}

/// runc's rules for what is only half said.
fn fix_up(request: &mut Value) {
    if let Some(memory) = request.get_mut("memory").and_then(Value::as_object_mut) {
        let kernel = memory.remove("kernel").is_some();
        if memory.remove("kernelTCP").is_some() || kernel {
            tracing::warn!("Kernel memory settings are ignored and will be removed");
        }
        // No limit on memory means none on memory and swap: the kernel would refuse the one below the other.
        if memory.get("limit") == Some(&json!(-1)) && !memory.contains_key("swap") {
            memory.insert("swap".into(), json!(-1));
        }
    }
    if let Some(cpu) = request.get_mut("cpu").and_then(Value::as_object_mut) {
        // 0 asks for the default, and one of the two without the other keeps the other's value.
        for name in ["quota", "period"] {
            if cpu.get(name) == Some(&json!(0)) {
                cpu.remove(name);
            }
        }
    }
}

/// Objects are merged by member, lists of devices by device, everything else is replaced. `null` changes nothing.
fn merge(old: &mut Value, new: Value) {
    match (old, new) {
        (_, Value::Null) => {}
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in new {
                merge(old.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(old), Value::Array(new)) if new.iter().all(|item| item.get("major").is_some()) => {
            for item in new {
                let same = |other: &&mut Value| other["major"] == item["major"] && other["minor"] == item["minor"];
                // Of duplicates the last one counts.
                match old.iter_mut().rev().find(same) {
                    Some(found) => merge(found, item),
                    None => old.push(item),
                }
            }
        }
        (old, new) => *old = new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(set: impl FnOnce(&mut UpdateArgs)) -> Result<Value, UpdateError> {
        let mut args = UpdateArgs::default();
        set(&mut args);
        args.request()
    }

    #[test]
    fn flags_become_a_document() {
        let document = request(|args| {
            args.memory = Some("512M".into());
            args.memory_swap = Some("-1".into());
            args.cpu_quota = Some("-1".into());
            args.cpuset_cpus = Some("0-1".into());
            args.pids_limit = Some("-1".into());
            args.cpu_share = Some(String::new());
        });
        let expected = json!({
            "memory": {"limit": 512 << 20, "swap": -1}, "cpu": {"quota": -1, "cpus": "0-1"}, "pids": {"limit": -1}
        });
        assert_eq!(document.unwrap(), expected);
        let error = request(|args| args.cpu_period = Some("x".into()))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "invalid value for cpu-period: \"x\"");
        assert!(request(|args| args.memory = Some("5q".into())).is_err());
        assert!(request(|args| args.blkio_weight = Some("70000".into())).is_err());
    }

    #[test]
    fn what_is_not_named_is_kept() {
        let mut document = json!({"linux": {"resources": {
            "devices": [{"allow": false, "access": "rwm"}],
            "memory": {"limit": 100, "swap": 200},
            "cpu": {"quota": 1000, "period": 5000, "shares": 7},
            "unified": {"memory.high": "1"}
        }}});
        let request = json!({"cpu": {"quota": 2000, "period": 0}, "memory": {"limit": -1}, "pids": null});
        let limits = merge_into(&mut document, request).unwrap();
        assert!(limits.devices().is_none(), "device rules are not rewritten");
        let cpu = limits.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.quota(), cpu.period(), cpu.shares()),
            (Some(2000), Some(5000), Some(7))
        );
        let memory = limits.memory().as_ref().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(-1), Some(-1)));
        assert!(document["linux"]["resources"]["devices"].is_array(), "but kept");
        assert_eq!(document["linux"]["resources"]["unified"]["memory.high"], "1");
    }

    #[test]
    fn devices_are_updated_or_added() {
        let device = |minor: u32, rate: u64| json!({"major": 8, "minor": minor, "rate": rate});
        let io = |list: Value| json!({"blockIO": {"throttleReadBpsDevice": list}});
        let mut old = io(json!([device(0, 1), device(1, 1)]));
        merge(&mut old, io(json!([device(1, 9), device(2, 5)])));
        assert_eq!(old, io(json!([device(0, 1), device(1, 9), device(2, 5)])));
    }

    #[test]
    fn idle_drops_the_shares() {
        let mut document = json!({"linux": {"resources": {"cpu": {"shares": 100}}}});
        let limits = merge_into(&mut document, json!({"cpu": {"idle": 1}})).unwrap();
        assert_eq!(limits.cpu().as_ref().unwrap().shares(), None);
        assert_eq!(limits.cpu().as_ref().unwrap().idle(), Some(1));
    }

    #[test]
    fn schemata_are_changed_one_by_one() {
        let mut document = json!({"linux": {"intelRdt": {"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50"}}});
        let group = merge_rdt(&mut document, None, Some("MB:0=20".into()), "c1").unwrap();
        assert_eq!(group.schemata, ["L3:0=f", "MB:0=20"]);
        assert_eq!(document["linux"]["intelRdt"]["memBwSchema"], "MB:0=20");
        let error = merge_rdt(&mut json!({"linux": {}}), Some("L3:0=f".into()), None, "c1");
        assert_eq!(
            error.unwrap_err().to_string(),
            "updating a non-existent Intel RDT configuration is not supported"
        );
    }

    #[test]
    fn an_absent_pids_limit_is_not_zero() {
        let mut document = json!({"linux": {"resources": {"pids": {}}}});
        assert!(merge_into(&mut document, json!({"pids": {}})).unwrap().pids().is_none());
        let limits = merge_into(&mut document, json!({"pids": {"limit": 0}})).unwrap();
        assert_eq!(limits.pids().as_ref().unwrap().limit(), 0);
    }

    #[test]
    fn a_configuration_without_limits_gets_some() {
        for mut document in [json!({}), json!({"linux": {}}), json!({"linux": {"resources": null}})] {
            let limits = merge_into(&mut document, json!({"pids": {"limit": 5}})).unwrap();
            assert_eq!(limits.pids().as_ref().unwrap().limit(), 5);
        }
    }
}
