//! What an image, a plugin, or a guest does that is to get past the bounds of a guest.

use proa_integration::{Ctx, tests};

use super::withstood;
use crate::wasm::policy::plugins::with_plugin_as;
use crate::wasm::policy::run_under;

tests! {
    a_thread_that_a_plugin_starts_is_not_left_unconfined .once().only_proa();
}

/// Credentials, filters and Landlock's rules are each thread's own: one that was there before has none of them. It reads for
/// the guest what the guest is not given.
fn a_thread_that_a_plugin_starts_is_not_left_unconfined(ctx: &Ctx) {
    for (flag, when) in [
        ("-DTHREAD_AT_LOAD", "when it is loaded"),
        ("-DTHREAD_AT_CREATE", "when the engine makes its module"),
    ] {
        let (bundle, file, plugin) = with_plugin_as(ctx, &[flag], "load", &[("preopens", "nothing")]);
        bundle
            .file("/etc/secret", "REACHED what is not given")
            .args(&["/module.wasm", "read", "/etc/secret"]);
        let out = run_under(ctx, &file, &bundle);
        withstood!(!out.stdout.contains("REACHED"), "{}", out.stdout);
        let words = [&format!("plugin {}: it starts a thread {when}", plugin.display())[..]];
        out.refused(&words);

        // Where a copy of the process is made after the plugin is loaded, there was no end to it.
        bundle.sh("sleep 100");
        let container = ctx.start(&bundle);
        let config = file.to_str().unwrap();
        let exec = [
            "--config",
            config,
            "exec",
            &container.id,
            "/module.wasm",
            "read",
            "/etc/secret",
        ];
        let out = ctx.call(&exec).output();
        withstood!(!out.stdout.contains("REACHED"), "{}", out.stdout);
        out.refused(&words);
    }
}
