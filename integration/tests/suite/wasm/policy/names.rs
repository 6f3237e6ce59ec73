//! Names are resolved as in a Linux container: by `/etc/hosts`, `/etc/resolv.conf` and its search domains.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::mpsc;

use nix::sched::{CloneFlags, setns};
use proa_integration::{Bundle, Container, Ctx, tests};

use super::{annotate, net};

tests! {
    names_of_etc_hosts_are_resolved .once().only_proa();
    a_nameserver_is_asked_with_the_search_domains .once().only_proa();
    a_name_that_nobody_knows_is_an_error .once().only_proa();
}

/// A bundle whose guest resolves these names. Whatever of this the managers mount, the image has here.
pub fn resolving(ctx: &Ctx, names: &[&str]) -> Bundle {
    let bundle = net(ctx, &[]);
    bundle
        .file("/etc/hosts", "127.0.0.1 localhost\n10.9.8.7 beside beside.local\n")
        .file(
            "/etc/resolv.conf",
            "search example.test other.test\nnameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        )
        .file("/etc/services", "oddity 4711/tcp\n");
    let mut args = vec!["/module.wasm"];
    for name in names {
        args.extend(["resolve", name]);
    }
    bundle.args(&args);
    bundle
}

/// A nameserver on the loopback device of the container's network namespace, which tells every name that it is asked for. It
/// knows one name of each search domain. It ends with the test's process.
pub fn nameserver(container: &Container<'_>) -> mpsc::Receiver<String> {
    let namespace = fs::File::open(format!("/proc/{}/ns/net", container.pid())).unwrap();
    let (asked, hear) = mpsc::channel();
    let (ready, wait) = mpsc::channel();
    std::thread::spawn(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        ready.send(()).unwrap();
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let (answer, name) = answer(&packet[..length]);
            socket.send_to(&answer, from).unwrap();
            if asked.send(name).is_err() {
                return;
            }
        }
    });
    wait.recv().unwrap();
    hear
}

/// RFC 1035: the header, the question again, and an address if the question is for one that is known.
fn answer(query: &[u8]) -> (Vec<u8>, String) {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let end = at + 1 + query[at] as usize;
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
        at = end;
    }
    let (name, kind) = (labels.join("."), query[at + 2]);
    let known: Option<[u8; 4]> = match name.as_str() {
        "inner.example.test" => Some([10, 1, 2, 3]),
        "only.other.test" => Some([10, 1, 2, 4]),
        _ => None,
    };
    let found = known.filter(|_| kind == 1);
    let code = if known.is_some() { 0 } else { 3 };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, found.iter().len() as u8, 0, 0, 0, 0]);
    answer.extend(&query[12..at + 5]);
    if let Some(address) = found {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
    }
    (answer, name)
}

fn names_of_etc_hosts_are_resolved(ctx: &Ctx) {
    let bundle = resolving(ctx, &["beside", "beside.local", "localhost", "192.0.2.1"]);
    let out = ctx.run(&bundle);
    assert_eq!(
        out.ok().text(),
        "beside: 10.9.8.7\nbeside.local: 10.9.8.7\nlocalhost: 127.0.0.1\n192.0.2.1: 192.0.2.1"
    );
    // And ports by /etc/services.
    bundle.args(&["/module.wasm", "resolve", "beside", ":oddity"]);
    assert_eq!(ctx.run(&bundle).ok().text(), "beside: 10.9.8.7/4711");
    // With narrowed files, too.
    annotate(&bundle, &[("preopens", "nothing")]);
    assert_eq!(ctx.run(&bundle).ok().text(), "beside: 10.9.8.7/4711");
}

fn a_nameserver_is_asked_with_the_search_domains(ctx: &Ctx) {
    for files in ["root", "nothing"] {
        let bundle = resolving(ctx, &["inner.example.test", "inner", "only"]);
        annotate(&bundle, &[("preopens", files)]);
        let container = ctx.create(&bundle);
        let asked = nameserver(&container);
        container.start();
        container.stopped();
        assert_eq!(
            container.stdout().trim(),
            "inner.example.test: 10.1.2.3\ninner: 10.1.2.3\nonly: 10.1.2.4"
        );
        let asked: Vec<String> = asked.try_iter().collect();
        assert!(asked.contains(&"only.example.test".to_owned()), "{asked:?}");
        container.delete();
    }
}

fn a_name_that_nobody_knows_is_an_error(ctx: &Ctx) {
    let bundle = resolving(ctx, &["absent"]);
    let container = ctx.create(&bundle);
    let asked = nameserver(&container);
    container.start();
    container.stopped();
    let said = container.stdout();
    assert!(said.starts_with("absent: error "), "{said}");
    let asked: Vec<String> = asked.try_iter().collect();
    assert!(asked.contains(&"absent.other.test".to_owned()), "{asked:?}");
}
