//! What this process gives up just before its guest's first instruction, whatever the bundle says: an engine whose code a guest
//! has taken over is to have nothing that an engine does not use.
//!
//! ```text
//! opens      the engine's own calls open nothing of the kernel's for the guest       (for a guest of a sound engine)
//! MDWE       memory does not become executable any more            Linux 6.3         (from here: for one taken over)
//! filter     the system calls that are left                        proa_seccomp::engine
//! ```
//!
//! Code that was compiled ahead of time is mapped by then, and the C library has loaded what it loads ([`super::names`]). With
//! plugins of the administrator's nobody knows what the process needs: a compiler of their own makes executable memory.

use super::opens;
use crate::{Error, Guest};
use proa_seccomp::engine::{Scope, filter};
use proa_sys::security::{self, SECCOMP_SPEC_ALLOW, SECCOMP_TSYNC};

fn failed(problem: String) -> Error {
    Error::Unenforceable {
        policy: "what an engine may do at most",
        problem,
    }
}

/// For this thread and all that are there or come, for good.
pub fn enforce(guest: &Guest) -> Result<(), Error> {
    opens::check().map_err(failed)?;
    let plugins = guest.policy.as_ref().is_some_and(|policy| !policy.plugins.is_empty());
    let scope = match plugins {
        true => Scope::Plugins,
        false => {
            // The filter refuses the same calls; the kernel also knows what a mapping was before.
            if let Err(errno) = security::refuse_executable_memory() {
                tracing::debug!("prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN): {errno}");
            }
            Scope::Engine
        }
    };
    let program = filter(scope).ok_or_else(|| failed("no filter of system calls for this machine".to_owned()))?;
    let call = |call: &'static str| move |errno| failed(format!("{call}: {errno}"));
    // Without it a filter takes CAP_SYS_ADMIN; nothing is executed by this process, but a plugin's programs.
    nix::sys::prctl::set_no_new_privs().map_err(call("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    match plugins || !security::is_filtered() {
        true => security::seccomp_install(SECCOMP_TSYNC | SECCOMP_SPEC_ALLOW, program)
            .map(drop)
            .map_err(call("seccomp(SECCOMP_SET_MODE_FILTER, TSYNC)")),
        // A profile need not allow seccomp(2), and may kill who calls it. Without plugins there is one thread.
        false => security::seccomp_install_by_prctl(program).map_err(call("prctl(PR_SET_SECCOMP)")),
    }
}
