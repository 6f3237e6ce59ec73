//! What a process that a container may look into has open: nothing leads to the host, and nothing of the host can be written to.

use std::fs;

use proa_integration::ctx::{Running, eventually};
use proa_integration::{Container, Ctx, tests, wasm};
use serde_json::json;

use super::{arm, gained, marker, withstood};
use crate::wasm::aot::{Room, worked};

tests! {
    what_an_init_has_open_leads_to_nothing_of_the_host .once().only_proa().seconds(120);
    what_an_exec_has_open_leads_to_nothing_of_the_host .once().only_proa().seconds(120);
    a_lock_that_anybody_can_take_keeps_no_code_out .once().only_proa().seconds(120);
}

/// A container in whose pid namespace another one is made: its root may trace whatever it sees.
fn neighbour(ctx: &Ctx) -> Container<'_> {
    let bundle = ctx.bundle();
    arm(ctx, &bundle)
        .caps(&["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"])
        .args(&["sleep", "1000"]);
    ctx.start(&bundle)
}

/// It looks into all that it sees for `seconds`.
fn seeking(ctx: &Ctx, neighbour: &Container, seconds: &str) -> Running {
    let marker = marker(ctx);
    let seek = ["attack", "seek", seconds, marker.to_str().unwrap()];
    let running = neighbour.exec_call(&[], &seek).spawn();
    eventually("the attacker's first word", || {
        running.stdout().contains("watching").then_some(())
    });
    running
}

/// A container of the neighbour's pid namespace whose entrypoint is a module with code in the cache. Its root is read-only.
fn room<'a>(ctx: &'a Ctx, neighbour: &Container) -> Room<'a> {
    let room = Room::new(ctx);
    let pids = format!("/proc/{}/ns/pid", neighbour.pid());
    room.bundle.namespace("pid", Some(&pids));
    room.compile();
    room.policy("use");
    room
}

/// The page on which a Wasm container's init tells of its guest is that container's to write; who reads it does not trust it.
const OWN: &str = "/guest.page for writing";

fn found_nothing(said: &str) {
    let found = said.lines().find(|line| gained(line).is_some() && !line.contains(OWN));
    withstood!(found.is_none(), "{}", found.unwrap_or_default());
}

/// While a container is being made its init has the host in sight, as with runc: what counts is what it waits with.
fn what_an_init_has_open_leads_to_nothing_of_the_host(ctx: &Ctx) {
    let neighbour = neighbour(ctx);
    let room = room(ctx, &neighbour);
    for module in [true, false] {
        if !module {
            room.bundle.args(&["sh", "-c", "exit 3"]);
        }
        let container = ctx.container(&room.bundle);
        let made = room.call(&["create", "--bundle", room.bundle.dir.to_str().unwrap(), &container.id]);
        let made = made.output();
        made.ok();
        assert_eq!(made.log.contains("found"), module, "{made:?}");
        let out = seeking(ctx, &neighbour, "2").wait();
        assert!(out.ok().stdout.contains("looked"), "{out:?}");
        found_nothing(&out.stdout);
        let attacker = seeking(ctx, &neighbour, "2");
        container.start();
        container.stopped();
        found_nothing(&attacker.wait().stdout);
        container.delete();
    }
}

fn what_an_exec_has_open_leads_to_nothing_of_the_host(ctx: &Ctx) {
    let neighbour = neighbour(ctx);
    let room = room(ctx, &neighbour);
    let bundle = &room.bundle;
    let wait = wasm::compile(&ctx.dir, "wait", "int main(void) { for (;;) ; }", &["-O0"]);
    fs::copy(wait, bundle.path("/wait.wasm")).unwrap();
    bundle.edit(|spec| spec["process"]["args"] = json!(["/wait.wasm"]));
    let container = ctx.container(bundle);
    let made = room.call(&["create", "--bundle", bundle.dir.to_str().unwrap(), &container.id]);
    made.output().ok();
    container.start();
    for _ in 0..5 {
        let attacker = seeking(ctx, &neighbour, "3");
        let out = room.call(&["exec", &container.id, "/module.wasm", "1000"]).output();
        worked(&out);
        assert!(out.log.contains("compiled code is loaded"), "{out:?}");
        room.call(&["exec", &container.id, "true"]).output().ok();
        found_nothing(&attacker.wait().stdout);
    }
    container.verb(&["delete", "--force"]).ok();
    container.forget();
}

/// flock(2) asks for no right but that to open a file, and everybody may open the cache's directory.
fn a_lock_that_anybody_can_take_keeps_no_code_out(ctx: &Ctx) {
    let room = Room::new(ctx);
    let cache = ctx.mkdir("cache");
    let directory = fs::File::open(cache).unwrap();
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive).unwrap();
    room.policy("before-start");
    room.run();
    withstood!(room.run().0, "another user's lock kept code out of the cache");
}
