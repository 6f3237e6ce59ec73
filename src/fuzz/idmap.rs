//! Id maps: checked, and written as the kernel and as newuidmap(1) take them.

use super::Bytes;
use crate::namespace::{self, IdMap, idmap};
use serde_json::{Value, json};

/// Makes maps of the bytes, two lists as a configuration has them.
pub fn idmap(data: &[u8]) {
    let mut bytes = Bytes(data);
    let choice = bytes.byte();
    let list = |bytes: &mut Bytes<'_>| -> Value {
        let count = bytes.byte() % 8;
        let entry = |bytes: &mut Bytes<'_>| json!({"containerID": bytes.number(), "hostID": bytes.number(), "size": bytes.number()});
        (0..count).map(|_| entry(bytes)).collect()
    };
    let mut linux = json!({"uidMappings": list(&mut bytes), "gidMappings": list(&mut bytes), "namespaces": []});
    match choice % 3 {
        0 => linux["namespaces"] = json!([{"type": "user"}]),
        1 => linux["namespaces"] = json!([{"type": "user", "path": "/proc/1/ns/user"}]),
        _ => {}
    }
    let Ok(spec) = serde_json::from_value(json!({"linux": linux.clone()})) else {
        return;
    };
    let plan = match namespace::plan(&spec, choice & 4 != 0) {
        Ok(plan) => plan,
        Err(error) => return assert!(error.to_string().starts_with("linux."), "{error}"),
    };
    assert!(choice % 3 != 2 || plan.uid_maps.is_empty() && plan.gid_maps.is_empty());
    for (maps, given) in [
        (&plan.uid_maps, &linux["uidMappings"]),
        (&plan.gid_maps, &linux["gidMappings"]),
    ] {
        check(maps, given, bytes.number() as u32);
    }
}

fn check(maps: &[IdMap], given: &Value, own: u32) {
    let lines = idmap::lines(maps);
    let numbers = |text: &str| -> Vec<i64> {
        text.split_whitespace()
            .map(|number| number.parse().expect("a number"))
            .collect()
    };
    let given: Vec<i64> = given
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|map| ["containerID", "hostID", "size"].map(|name| map[name].as_i64().expect("made as a number")))
        .collect();
    assert_eq!(numbers(&lines), given, "not one id may change on its way");
    assert_eq!(lines.lines().count(), maps.len());
    let arguments: Vec<String> = idmap::arguments(maps).collect();
    assert_eq!(numbers(&arguments.join(" ")), given);
    // What no helper checks is never more than the caller itself.
    if idmap::is_own(maps, own) {
        assert_eq!((maps.len(), maps[0].host, maps[0].size), (1, own, 1));
    }
}
