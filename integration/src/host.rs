//! What every level asks of the machine: small programs found on it, control groups, mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The busybox that root file systems are made of; must be static.
pub fn busybox() -> Result<PathBuf, String> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(PathBuf::from)
        .find(|p| p.exists())
        .ok_or_else(|| "no busybox found: apt-get install busybox-static".to_owned())
}

/// Compiles `helpers/NAME.c` into a static program in `dir`, anew only when the source is newer.
pub fn compile_helper(name: &str, dir: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("helpers")
        .join(format!("{name}.c"));
    let target = dir.join(name);
    let changed = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    if let (Some(built), Some(written)) = (changed(&target), changed(&source))
        && built > written
    {
        return Ok(target);
    }
    fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let fresh = dir.join(format!("{name}.{}", std::process::id()));
    let status = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(&fresh)
        .arg(&source)
        .status();
    match status {
        Ok(s) if s.success() => {}
        Ok(s) => return Err(format!("cc {}: {s}", source.display())),
        Err(e) => return Err(format!("cc: {e}: apt-get install gcc libc6-dev")),
    }
    fs::rename(&fresh, &target).map_err(|e| format!("{}: {e}", target.display()))?;
    Ok(target)
}

/// Every directory below `/sys/fs/cgroup` whose name has `tag` in it, the deepest first. Each appears once per hierarchy.
pub fn cgroups_with(tag: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), tag, false, &mut found);
    found.reverse();
    found
}

fn walk(dir: &Path, tag: &str, inside: bool, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let path = entry.path();
        let inside = inside || entry.file_name().to_string_lossy().contains(tag);
        if inside {
            found.push(path.clone());
        }
        walk(&path, tag, inside, found);
    }
}

/// Lets frozen processes of these groups run again: a frozen v1 process does not die of SIGKILL.
pub fn thaw(groups: &[PathBuf]) {
    for group in groups {
        for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            let file = group.join(file);
            // A group that has just vanished is thawed enough.
            if file.exists()
                && let Err(e) = fs::write(&file, value)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("{}: {e}", file.display());
            }
        }
    }
}

/// Kills everything in these groups of cgroup v2, and waits a moment for its end.
pub fn kill(groups: &[PathBuf]) {
    let populated = |group: &PathBuf| {
        let events = fs::read_to_string(group.join("cgroup.events"));
        events.is_ok_and(|text| text.contains("populated 1"))
    };
    for group in groups.iter().filter(|g| populated(g)) {
        let file = group.join("cgroup.kill");
        if let Err(e) = fs::write(&file, "1")
            && e.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("{}: {e}", file.display());
        }
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    while groups.iter().any(populated) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The controllers of the machine's cgroup2 hierarchy, wherever it is mounted.
pub fn v2_controllers() -> Vec<String> {
    let read = |dir: &str| fs::read_to_string(Path::new(dir).join("cgroup.controllers"));
    let text = read("/sys/fs/cgroup").or_else(|_| read("/sys/fs/cgroup/unified"));
    let text = text.unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The mount points of this process's mount namespace, in their order.
pub fn mounts() -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(str::to_owned)
        .collect()
}

/// The cgroup hierarchies mounted below `/sys/fs/cgroup`: where, and for v1 the options that name the hierarchy.
pub fn hierarchies() -> Vec<(PathBuf, Option<String>)> {
    const GENERIC: [&str; 8] = [
        "rw",
        "ro",
        "xattr",
        "noprefix",
        "clone_children",
        "nsdelegate",
        "favordynmods",
        "none",
    ];
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let one = |line: &str| {
        let (own, of_fs) = line.split_once(" - ")?;
        let at = PathBuf::from(own.split(' ').nth(4)?);
        let mut of_fs = of_fs.split(' ');
        let kind = of_fs.next()?;
        let options = of_fs.nth(1)?.split(',');
        let options: Vec<&str> = options
            .filter(|o| !GENERIC.contains(o) && !o.starts_with("release_agent"))
            .collect();
        let hierarchy = match kind {
            "cgroup" => Some(options.join(",")),
            "cgroup2" => None,
            _ => return None,
        };
        at.starts_with("/sys/fs/cgroup").then_some((at, hierarchy))
    };
    text.lines().filter_map(one).collect()
}
