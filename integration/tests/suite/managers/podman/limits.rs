//! Limits, their change, and where cgroups are.

use proa_integration::Ctx;

use super::super::busybox;
use super::*;

of_both! {
    podman_confines_and_limits .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_updates_limits .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_tells_of_a_container_out_of_memory .views(V1).seconds(120).not_for(NO_HYBRID);
    podman_runs_without_a_cgroup .views(PODMAN).seconds(120).only_proa();
    podman_chooses_the_cgroup_namespace .views(V1).seconds(120).not_for(NO_HYBRID);
}

fn podman_confines_and_limits(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let volume = ctx.mkdir("volume");
    fs::write(volume.join("file"), "of the host\n").unwrap();
    let [read, write] = ["ro", "rw"].map(|mode| format!("--volume={}:/{mode}:{mode}", volume.display()));
    let flags = [
        "--name=it",
        "--user=1000:1000",
        "--read-only",
        "--cap-drop=all",
        &read,
        &write,
        "--memory=64m",
        "--pids-limit=50",
        "--cpus=0.5",
        "--workdir=/tmp",
        "--tmpfs=/scratch:size=1m",
        "--security-opt=no-new-privileges",
        "--device=/dev/null:/dev/another",
        "--sysctl=kernel.msgmax=4096",
        "--cpuset-cpus=0",
        "--cpu-shares=512",
        "--memory-reservation=32m",
        "--oom-score-adj=500",
        "--shm-size=1m",
        "--group-add=77",
    ];
    let script = "id -u; pwd; touch /no 2>&1; touch /ro/no 2>&1; touch /tmp/yes /scratch/yes && cat /ro/file; \
        grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/sys/kernel/msgmax; echo x >/dev/another; \
        cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.shares \
        memory/memory.soft_limit_in_bytes; echo cpus $(cat cpuset/cpuset.cpus) adj $(cat /proc/self/oom_score_adj) \
        shm $(df -k /dev/shm | tail -n 1 | awk '{print $2}') groups $(id -G)";
    let text = podman.shell(&flags, script);
    assert!(
        text.starts_with("1000\n/tmp\ntouch: /no: Read-only file system\n"),
        "{text}"
    );
    let expected = "touch: /ro/no: Read-only file system\nof the host\nCapEff:\t0000000000000000\n\
        CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n4096\n67108864\n50\n50000\n512\n33554432\n\
        cpus 0 adj 500 shm 1024 groups 1000 77";
    has_lines(&text, &expected.lines().collect::<Vec<_>>());
}

fn podman_updates_limits(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let flags = ["--detach", "--name=it", "--memory=64m", "--cpus=0.5", "--pids-limit=50"];
    podman.run(&flags, &["sleep", "1000"]).ok();
    let inside = || {
        let script = "cd /sys/fs/cgroup; \
            cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares pids/pids.max cpuset/cpuset.cpus";
        let text = podman.call(&["exec", "it", "sh", "-c", script]).ok();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let update = |flags: &[&str]| podman.call(&[&["update"], flags, &["it"]].concat());
    update(&["--memory=32m", "--cpus=0.25", "--cpu-shares=256", "--cpuset-cpus=0"]).ok();
    assert_eq!(inside(), ["33554432", "25000", "256", "50", "0"]);
    // Beyond the limit on memory and swap that the first had brought.
    update(&["--memory=5g"]).ok();
    assert_eq!(inside()[0], "5368709120");
    // podman 4 has it not yet.
    if release == Release::Newer {
        update(&["--pids-limit=40"]).ok();
        assert_eq!(inside()[3], "40");
        update(&["--pids-limit=-1"]).ok();
        assert_eq!(inside()[3], "max");
    }
    update(&["--cpuset-cpus=99"]).refused(&["cpuset.cpus", "99", "numerical result out of range"]);
    assert_eq!(inside()[4], "0");
    let text = podman.call(&["stats", "--no-stream", "--format", "{{.MemLimit}} {{.PIDs}}", "it"]);
    assert!(text.ok().ends_with(" 1\n"));
}

fn podman_tells_of_a_container_out_of_memory(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let flags = ["--name=it", "--memory=20m", "--memory-swap=20m"];
    let said = podman.run(&flags, &["sh", "-c", "x=a; while :; do x=$x$x; done"]);
    assert_eq!(said.code, 137, "{said:?}");
    let told = podman.inspect("it", ".State.OOMKilled");
    // The older monitor looks for it at a place where v1 has it not, with every runtime.
    if release == Release::Newer {
        assert_eq!(told, "true");
    }
}

fn podman_runs_without_a_cgroup(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let script = "trap 'exit 5' TERM; while :; do sleep 0.1; done";
    let flags = ["--detach", "--name=it", "--cgroups=disabled"];
    podman.run(&flags, &["sh", "-c", script]).ok();
    let pid = podman.inspect("it", ".State.Pid");
    let groups = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(!groups(&pid).contains("libpod"), "{}", groups(&pid));
    assert_eq!(podman.call(&["exec", "it", "echo", "hi"]).ok(), "hi\n");
    podman.call(&["pause", "it"]).refused(&["cgroup"]);
    podman.call(&["stop", "--time", "5", "it"]).ok();
    assert_eq!(podman.ended("it"), "exited 5");
    let said = podman.run(&["--rm", "--cgroups=disabled", "--pids-limit=5"], &["true"]);
    said.refused(&["linux.resources: has limits"]);
}

fn podman_chooses_the_cgroup_namespace(ctx: &Ctx, release: Release) {
    let podman = podman(ctx, release, &busybox(ctx));
    let count = "grep -c libpod /proc/self/cgroup || :";
    assert_eq!(podman.shell(&["--cgroupns=private"], count), "0\n");
    assert_ne!(podman.shell(&["--cgroupns=host"], count), "0\n");
    assert_eq!(
        podman.shell(&["--cgroups=no-conmon", "--cgroupns=private"], count),
        "0\n"
    );
}
