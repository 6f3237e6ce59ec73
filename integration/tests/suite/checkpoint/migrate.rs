//! Migration: memory that is saved in steps, or that follows when it is asked for.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use proa_integration::ctx::eventually;
use proa_integration::{Ctx, tests};

use super::{IGNORE, ask, bundle, checkpoint, images, restore, start};

tests! {
    memory_is_saved_in_steps .once();
    parent_images_must_be_beside_the_images .once();
    memory_follows_when_it_is_asked_for .once();
    established_connections_are_restored .once();
}

/// Whether CRIU and the kernel have what `criu check` calls that.
pub fn has_feature(name: &str) -> bool {
    let check = Command::new("criu")
        .args(["check", "--feature", name])
        .output()
        .unwrap();
    check.status.success()
}

fn memory_is_saved_in_steps(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    let parent = ctx.dir.join("parent");
    let mut args = vec!["checkpoint", "--pre-dump", "--image-path", parent.to_str().unwrap()];
    args.extend(IGNORE);
    let said = container.verb(&args);
    if !has_feature("mem_dirty_track") {
        said.refused(&["criu is missing features: [MemTrack]"]);
        assert_eq!(ask(&container, &bundle), word);
        return;
    }
    said.ok();
    assert_eq!(container.status(), "running");
    checkpoint(ctx, &container, &["--parent-path", "../parent"]).ok();
    assert_eq!(
        fs::read_link(images(ctx).join("parent")).unwrap().to_str(),
        Some("../parent")
    );
    super::gone(&container);
    restore(ctx, &container, &bundle, &[]).ok();
    assert_eq!(ask(&container, &bundle), word);
}

fn parent_images_must_be_beside_the_images(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let parent = ctx.mkdir("parent");
    checkpoint(ctx, &container, &["--parent-path", parent.to_str().unwrap()])
        .refused(&["--parent-path must be relative"]);
    checkpoint(ctx, &container, &["--parent-path", "nowhere"]).refused(&["invalid --parent-path"]);
    assert_eq!(container.status(), "running");
}

fn memory_follows_when_it_is_asked_for(ctx: &Ctx) {
    let bundle = bundle(ctx);
    let container = start(ctx, &bundle);
    let word = ask(&container, &bundle);
    let images = images(ctx);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!("127.0.0.1:{port}");
    let mut args = vec![
        "checkpoint",
        "--lazy-pages",
        "--page-server",
        &server,
        "--status-fd",
        "4",
    ];
    args.extend(["--image-path", images.to_str().unwrap(), &container.id]);
    args.extend(IGNORE);
    let status = ctx.dir.join("status");
    let script = format!("exec \"$@\" 4> {}", status.display());
    let dumping = ctx.call(&args).under(&["sh", "-c", &script, "sh"]).spawn();
    eventually("the page server", || {
        fs::read(&status).ok().filter(|bytes| bytes == &[0])
    });
    assert!(images.join("inventory.img").exists());
    if !pipes_can_grow() {
        // CRIU's page server does not get on without; so nobody asks for memory, and the server ends with the connection.
        drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
        dumping.wait().ok();
        super::gone(&container);
        container.forget();
        return;
    }
    let daemon = Command::new("criu")
        .args([
            "lazy-pages",
            "--page-server",
            "--address",
            "127.0.0.1",
            "--port",
            &port.to_string(),
        ])
        .args(["-v4", "-o", "lazy.log", "-D", images.to_str().unwrap()])
        .spawn();
    let mut daemon = daemon.unwrap();
    eventually("the daemon's socket", || {
        images.join("lazy-pages.socket").exists().then_some(())
    });

    // The one that is checkpointed is there until its last page is fetched: another id, another cgroup, another root.
    let other = super::bundle(ctx);
    let again = ctx.container(&other);
    fs::write(other.path("/up"), "").unwrap();
    let said = restore(
        ctx,
        &again,
        &other,
        &["--lazy-pages", "--work-path", images.to_str().unwrap()],
    );
    if said.code != 0 {
        eprintln!("{}", fs::read_to_string(images.join("lazy.log")).unwrap_or_default());
    }
    said.ok();
    assert_eq!(ask(&again, &other), word);
    assert!(daemon.wait().unwrap().success());
    dumping.wait().ok();
    super::gone(&container);
    container.forget();
}

/// Whether a pipe can be made as large as CRIU wants it: beyond `fs.pipe-max-size` that takes CAP_SYS_RESOURCE.
fn pipes_can_grow() -> bool {
    let (_reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4 << 20).is_ok()
}

fn established_connections_are_restored(ctx: &Ctx) {
    // CRIU locks the connection meanwhile, for which it wants one of the two.
    let nft = Command::new("sh")
        .args(["-c", "command -v nft || command -v iptables-restore"])
        .output()
        .unwrap();
    let bundle = ctx.bundle();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("echo up > /up; exec nc 127.0.0.1 {port} -e sh -c 'while read x; do echo heard $x; done'");
    bundle
        .sh(&script)
        .set("/root/readonly", serde_json::json!(false))
        .without_namespaces(&["network"]);
    let container = start(ctx, &bundle);
    let (connection, _) = listener.accept().unwrap();
    talk(&connection, "one");
    checkpoint(ctx, &container, &["--leave-running"]).refused(&["criu failed: type DUMP"]);
    if nft.stdout.is_empty() {
        return;
    }
    checkpoint(ctx, &container, &["--tcp-established"]).ok();
    restore(ctx, &container, &bundle, &["--tcp-established"]).ok();
    talk(&connection, "two");
}

fn talk(mut connection: &TcpStream, word: &str) {
    use std::io::{BufRead, BufReader, Write};
    writeln!(connection, "{word}").unwrap();
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).unwrap();
    assert_eq!(line, format!("heard {word}\n"));
}
