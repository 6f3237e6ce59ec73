//! Guests that take all there is: they see errors, as a program would, and nothing else is harmed.

use std::fs::File;

use proa_integration::{Ctx, tests};
use serde_json::json;

use super::module;

tests! {
    sockets_and_files_without_end_run_into_the_limit .once().only_proa();
    a_closed_pipe_is_an_error_for_the_guest .once().only_proa();
}

/// Opens sockets until that fails, then files, then says how it went and waits; given back, there is room again.
const GREEDY: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

__attribute__((import_module("wasi_snapshot_preview1"), import_name("sock_open"))) int sock_open(int family, int type, int *fd);

int main(void)
{
	int fd, first = -1, error, sockets = 0, files = 0;
	while (!(error = sock_open(1, 1 + sockets % 2, &fd)) && sockets < 100000) {
		if (!sockets++)
			first = fd;
	}
	printf("sockets end with %d, %s\n", error, sockets > 20 && sockets < 64 ? "as many as may be" : "how many?");
	while (open("/module.wasm", O_RDONLY) >= 0 && files < 100000)
		files++;
	printf("files end with %s after %d\n", strerror(errno), files);
	close(first);
	printf("given back: %s\n", sock_open(1, 1, &fd) ? "not" : "there is room");
	fflush(stdout);
	for (;;)
		sleep(1);
}
"#;

fn sockets_and_files_without_end_run_into_the_limit(ctx: &Ctx) {
    let bundle = module(ctx, GREEDY, &[]);
    bundle.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "hard": 64, "soft": 64}]),
    );
    let container = ctx.start(&bundle);
    container.says("given back");
    assert_eq!(
        container.stdout(),
        "sockets end with 33, as many as may be\nfiles end with No file descriptors available after 0\ngiven back: there is room\n"
    );
    // The runtime has none of its descriptors in there.
    assert_eq!(container.exec(&["/bin/sh", "-c", "echo beside"]).ok().text(), "beside");
    assert_eq!(container.status(), "running");
    container.kill("TERM").stopped();
    container.delete();
}

/// Writes until that fails; the status tells how.
const WRITER: &str = r#"
#include <errno.h>
#include <unistd.h>

int main(void)
{
	for (int i = 0; i < 1000000; i++)
		if (write(1, "x", 1) != 1)
			return errno == EPIPE ? 7 : 8;
	return 9;
}
"#;

fn a_closed_pipe_is_an_error_for_the_guest(ctx: &Ctx) {
    let bundle = module(ctx, WRITER, &[]);
    let (read, write) = nix::unistd::pipe().unwrap();
    drop(read);
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()]);
    call.stdio(File::from(write)).output().code(7);
    // By exec as well, whose caller is another.
    let container = ctx.start(bundle.sh("sleep 100"));
    let (read, write) = nix::unistd::pipe().unwrap();
    drop(read);
    let call = container.exec_call(&[], &["/module.wasm"]);
    call.stdio(File::from(write)).output().code(7);
}
