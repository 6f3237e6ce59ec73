//! What a resource group uses: `intel_rdt` of `events`, in the shape of runc's `types/events.go`.

use super::{Error, Group, Resctrl, read};
use serde::Serialize;
use std::path::Path;

/// A container's share of caches and memory bandwidth. What the hardware lacks is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Stats {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_info: Option<L3Cache>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_info: Option<MemoryBandwidth>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema: String,
    /// The group's whole `schemata`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// By NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbm_stats: Option<Vec<Bandwidth>>,
    /// By NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmt_stats: Option<Vec<Occupancy>>,
}

/// `info/L3`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct L3Cache {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cbm_mask: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub min_cbm_bits: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub num_closids: u64,
}

/// `info/MB`; the figures are percentages or MB/s, as resctrl was mounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct MemoryBandwidth {
    #[serde(skip_serializing_if = "is_zero")]
    pub bandwidth_gran: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub delay_linear: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub min_bandwidth: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub num_closids: u64,
}

/// Bytes that went over a node's memory bus (MBM).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Bandwidth {
    pub mbm_total_bytes: u64,
    pub mbm_local_bytes: u64,
}

/// Bytes of a node's last-level cache in use (CMT).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Occupancy {
    pub llc_occupancy: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Resctrl {
    /// Reads what `group` is allowed and what it uses.
    pub fn stats(&self, group: &Group) -> Result<Stats, Error> {
        let path = self.path(group);
        let (root, own) = (text(&self.root, "schemata")?, text(&path, "schemata")?);
        // The last one that names the resource, as runc takes it.
        let schema = |all: &str, name: &str| {
            let found = all.lines().rfind(|line| line.contains(name));
            found.unwrap_or_default().trim().to_owned()
        };
        let mut stats = Stats {
            schemata: own.lines().map(str::to_owned).collect(),
            ..Stats::default()
        };
        if self.has_cat() {
            let info = self.root.join("info/L3");
            stats.l3_cache_info = Some(L3Cache {
                cbm_mask: text(&info, "cbm_mask")?,
                min_cbm_bits: number(&info, "min_cbm_bits")?,
                num_closids: number(&info, "num_closids")?,
            });
            stats.l3_cache_schema_root = schema(&root, "L3");
            stats.l3_cache_schema = schema(&own, "L3");
        }
        if self.has_mba() {
            let info = self.root.join("info/MB");
            stats.mem_bw_info = Some(MemoryBandwidth {
                bandwidth_gran: number(&info, "bandwidth_gran")?,
                delay_linear: number(&info, "delay_linear")?,
                min_bandwidth: number(&info, "min_bandwidth")?,
                num_closids: number(&info, "num_closids")?,
            });
            stats.mem_bw_schema_root = schema(&root, "MB");
            stats.mem_bw_schema = schema(&own, "MB");
        }
        self.monitoring(group, &mut stats)?;
        Ok(stats)
    }

    /// The counters of the container's monitoring group or, without one, of the whole resource group.
    fn monitoring(&self, group: &Group, stats: &mut Stats) -> Result<(), Error> {
        let info = self.root.join("info/L3_MON");
        if !info.exists() {
            return Ok(());
        }
        let features = text(&info, "mon_features")?;
        let has = |name: &str| features.lines().any(|line| line == name);
        let (total, local, occupancy) = (has("mbm_total_bytes"), has("mbm_local_bytes"), has("llc_occupancy"));
        let path = self
            .monitor_path(group)
            .unwrap_or_else(|| self.path(group))
            .join("mon_data");
        let (mut bandwidths, mut occupancies) = (Vec::new(), Vec::new());
        for node in nodes(&path)? {
            let get = |wanted: bool, file: &str| if wanted { number(&node, file) } else { Ok(0) };
            bandwidths.push(Bandwidth {
                mbm_total_bytes: get(total, "mbm_total_bytes")?,
                mbm_local_bytes: get(local, "mbm_local_bytes")?,
            });
            occupancies.push(Occupancy {
                llc_occupancy: get(occupancy, "llc_occupancy")?,
            });
        }
        stats.mbm_stats = (total || local).then_some(bandwidths);
        stats.cmt_stats = occupancy.then_some(occupancies);
        Ok(())
    }
}

/// The directories of `mon_data`, e.g. `mon_L3_00`, in order.
fn nodes(path: &Path) -> Result<Vec<std::path::PathBuf>, Error> {
    let failed = |source| Error::File {
        action: "read".into(),
        path: path.to_owned(),
        source,
    };
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        if entry.is_dir() {
            nodes.push(entry);
        }
    }
    nodes.sort();
    Ok(nodes)
}

fn text(dir: &Path, file: &str) -> Result<String, Error> {
    Ok(read(&dir.join(file))?.trim().to_owned())
}

fn number(dir: &Path, file: &str) -> Result<u64, Error> {
    let value = text(dir, file)?;
    value.parse().map_err(|_| Error::File {
        action: format!("parse {value:?} of"),
        path: dir.join(file),
        source: std::io::ErrorKind::InvalidData.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fake;
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn the_shape_is_runcs() {
        let fake = Fake::new("stats", &["L3", "MB", "L3_MON"]);
        let write = |path: &str, text: &str| {
            let path = fake.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("schemata", "    L3:0=fffff;1=fffff\n    MB:0=100;1=100\n");
        write("c1/schemata", "    L3:0=f;1=f\n    MB:0=20;1=70\n");
        for (file, text) in [("cbm_mask", "fffff"), ("min_cbm_bits", "1"), ("num_closids", "16")] {
            write(&format!("info/L3/{file}"), text);
        }
        for (file, text) in [
            ("bandwidth_gran", "10"),
            ("delay_linear", "1"),
            ("min_bandwidth", "10"),
            ("num_closids", "8"),
        ] {
            write(&format!("info/MB/{file}"), text);
        }
        write(
            "info/L3_MON/mon_features",
            "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n",
        );
        for (node, factor) in [("mon_L3_01", 2), ("mon_L3_00", 1)] {
            for (file, value) in [("mbm_total_bytes", 100), ("mbm_local_bytes", 50), ("llc_occupancy", 7)] {
                let path = format!("c1/mon_groups/c1/mon_data/{node}/{file}");
                write(&path, &format!("{}\n", value * factor));
            }
        }
        let group = Group {
            name: "c1".into(),
            monitor: Some("c1".into()),
            ..Group::default()
        };
        let stats = serde_json::to_value(fake.0.stats(&group).unwrap()).unwrap();
        assert_eq!(
            stats,
            json!({
                "l3_cache_info": {"cbm_mask": "fffff", "min_cbm_bits": 1, "num_closids": 16},
                "l3_cache_schema_root": "L3:0=fffff;1=fffff", "l3_cache_schema": "L3:0=f;1=f",
                "mem_bw_info": {"bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 10, "num_closids": 8},
                "mem_bw_schema_root": "MB:0=100;1=100", "mem_bw_schema": "MB:0=20;1=70",
                "schemata": ["L3:0=f;1=f", "    MB:0=20;1=70"],
                "mbm_stats": [{"mbm_total_bytes": 100, "mbm_local_bytes": 50}, {"mbm_total_bytes": 200, "mbm_local_bytes": 100}],
                "cmt_stats": [{"llc_occupancy": 7}, {"llc_occupancy": 14}]
            })
        );
    }

    #[test]
    fn what_the_hardware_lacks_is_left_out() {
        let fake = Fake::new("few", &[]);
        fs::write(fake.path("gold/schemata"), "    L2:0=3\n").unwrap();
        let group = Group {
            name: "gold".into(),
            ..Group::default()
        };
        let stats = serde_json::to_value(fake.0.stats(&group).unwrap()).unwrap();
        assert_eq!(stats, json!({"schemata": ["L2:0=3"]}));
    }
}
