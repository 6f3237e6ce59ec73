//! The CRI as most nodes have it: cgroup v2 with all controllers, and systemd. Where that is the machine's own (`make test-vm`),
//! with the containerd that is installed.

use proa_integration::{Ctx, View, tests};

use super::{Release, kubernetes, pods, wasm};

/// Registers tests of other modules for the system's containerd.
macro_rules! of_system {
    ($($module:ident::$name:ident)*) => {
        $(fn $name(ctx: &Ctx) { $module::$name(ctx, Release::System) })*
        tests! {
            $($name .views(&[View::SystemdV2]).controllers(&["memory", "cpu", "pids"]).seconds(120).only_proa();)*
        }
    };
}

of_system! {
    pods::cri_runs_a_linux_pod
    pods::cri_says_that_memory_ran_out
    pods::cri_finds_its_pods_again
    wasm::cri_runs_wasm_beside_a_linux_sidecar
    kubernetes::cri_has_wasm_pods_beside_runcs
    kubernetes::cri_probes_a_wasm_container
    kubernetes::cri_stops_and_restarts_a_wasm_container
    kubernetes::cri_measures_a_wasm_container
    kubernetes::cri_says_that_a_wasm_container_ran_out_of_memory
    kubernetes::cri_streams_exec_into_a_wasm_container
}
