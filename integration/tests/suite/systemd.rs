//! `--systemd-cgroup`, under a systemd of the test's own.

use proa_integration::{Ctx, View, tests};

const BOTH: &[View] = &[View::Systemd, View::SystemdV2];

tests! {
    a_container_runs .views(BOTH);
}

fn a_container_runs(ctx: &Ctx) {
    assert_eq!(ctx.shell("echo hello", |b| b), "hello\n");
}
