//! What a process that a container may look into has open: nothing leads to the host, and nothing of the host can be written to.

use std::fs;

use proa_integration::{Container, Ctx, tests, wasm};
use serde_json::json;

use super::{arm, gained, marker, withstood};
use crate::wasm::aot::{Room, worked};

tests! {
    what_an_init_has_open_leads_to_nothing_of_the_host .once().only_proa().seconds(120);
    what_an_exec_has_open_leads_to_nothing_of_the_host .once().only_proa().seconds(120);
}

/// A neighbour in whose pid namespace other containers are made: its root may trace whatever it sees, and looks for `seconds`.
fn neighbour<'a>(ctx: &'a Ctx, seconds: &str) -> Container<'a> {
    let bundle = ctx.bundle();
    let marker = marker(ctx);
    arm(ctx, &bundle)
        .caps(&["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"])
        .args(&["attack", "seek", seconds, marker.to_str().unwrap()]);
    let container = ctx.start(&bundle);
    container.says("watching");
    container
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

fn found_nothing(neighbour: &Container) {
    let said = neighbour.stdout();
    let found = said.lines().find(|line| gained(line).is_some() && !line.contains(OWN));
    withstood!(found.is_none(), "{}", found.unwrap_or_default());
}

/// Waits until the neighbour has gone round once more.
fn watched(neighbour: &Container) {
    let looks = |text: &str| text.matches("looked").count();
    let before = looks(&neighbour.stdout());
    proa_integration::ctx::eventually("a look at every process", || {
        (looks(&neighbour.stdout()) > before + 1).then_some(())
    });
}

fn what_an_init_has_open_leads_to_nothing_of_the_host(ctx: &Ctx) {
    let neighbour = neighbour(ctx, "30");
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
        watched(&neighbour);
        found_nothing(&neighbour);
        container.start();
        container.stopped();
        container.delete();
    }
    found_nothing(&neighbour);
}

fn what_an_exec_has_open_leads_to_nothing_of_the_host(ctx: &Ctx) {
    let neighbour = neighbour(ctx, "60");
    let room = room(ctx, &neighbour);
    let bundle = &room.bundle;
    let wait = wasm::compile(&ctx.dir, "wait", "int main(void) { for (;;) ; }", &["-O0"]);
    fs::copy(wait, bundle.path("/wait.wasm")).unwrap();
    bundle.edit(|spec| spec["process"]["args"] = json!(["/wait.wasm"]));
    let container = ctx.container(bundle);
    let made = room.call(&["create", "--bundle", bundle.dir.to_str().unwrap(), &container.id]);
    made.output().ok();
    container.start();
    for _ in 0..10 {
        let out = room.call(&["exec", &container.id, "/module.wasm", "1000"]).output();
        worked(&out);
        assert!(out.log.contains("compiled code is loaded"), "{out:?}");
        room.call(&["exec", &container.id, "true"]).output().ok();
        found_nothing(&neighbour);
    }
    container.verb(&["delete", "--force"]).ok();
    container.forget();
}
